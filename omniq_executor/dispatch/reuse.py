"""Calls that are run once however often they are submitted: what names them, and those that this run has had.

Two ways lead to it. With options(memo=True) a call has a key that is made from its function and arguments, so the
store sees to it, in all runs of the queue and all processes. With resume="always" a run remembers the calls that it
was given: nobody else has that run, so this is a dict, under the dispatcher's lock. Who asks for neither pays for
neither.
"""

from ..hashes import blake2b
from ..model.options import MEMO
from ..model.task import Call, Function
from ..stores.base import Run


def name_of(function: Function, call: Call) -> bytes:
    """Return what calls have in common that are equal in function and arguments."""
    likeness = call.likeness
    name = blake2b(function.path.encode(errors="surrogatepass"), digest_size=16)
    name.update(b"\0" + function.digest)
    name.update(b"t" + likeness.encode(errors="surrogatepass") if isinstance(likeness, str) else b"b" + likeness)
    return name.digest()


def memo_key(run: Run, function: Function, call: Call) -> str:
    """Return the key of a call with memo=True: a run of another context has another one."""
    name = blake2b(name_of(function, call), digest_size=16)
    name.update(run.context.encode())
    return MEMO + name.hexdigest()


def is_memo(key: str) -> bool:
    """Return whether a key is such a one, or stands for one of each call."""
    return key.startswith(MEMO)
