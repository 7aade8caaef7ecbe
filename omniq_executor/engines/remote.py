"""What a worker of somebody else's is sent: one function that runs a chunk, and one that says who is there.

    submitter --bytes--> omniq_chunk()    decode, call, encode
              <--bytes-- (calls, seconds, items), the items as a worker process of our own sends them

Everything here is found by name, so a worker needs this package and nothing else. What is of a script, which no such
worker has, comes by value in the chunk. A worker may run chunks of many submitters, and in many threads: each
thread has for each submitter the namespaces of its runs and the functions that it has loaded. `sys.modules["__main__"]`
is the worker's own, as other threads may need it.

A chunk that takes much longer than was thought gives the rest of its calls back, so that they can run elsewhere: nobody
can take them.
"""

import os
import pickle
import signal
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import MutableSequence, Sequence
from typing import Any

from .. import values
from ..code import spaces
from ..errors import EngineMismatch, NotImportable, SerializationError
from ..hashes import blake2b
from ..slots import CELLS, RESUME, STARTED, STOP, Slots, machine
from ..value_files import Files
from .local.worker import NEVER, Caller

_CALLERS = 8  # that a thread keeps, one for each submitter

Message = tuple[
    str, bytes, int, float, "Notes | None", Files | None, int, bytes, str | None, Sequence[Any] | None, Sequence[int]
]  # fmt: skip
"""What the submitter is; its token; what makes each chunk another one; seconds after which no further call is begun;
where the call is noted that is under way; where large values are; the function's space, its pickle, the calls as text
or each by itself, and their ids."""

Notes = tuple[str, Slots, int]
"""The machine, the file and the row in it, see slots.py. A worker elsewhere notes nothing."""

Answer = tuple[int, float, list[tuple[Any, ...]], bool]
"""How many calls were made, the seconds that they took together, the items, and whether it was noted what was under
way."""


def kind() -> str:
    """Return what must be the same here and there: byte code travels, and so do messages of this package."""
    package = sys.modules[__name__.partition(".")[0]]  # no import: imports go down the floors only
    return f"Python {sys.version_info.major}.{sys.version_info.minor} with omniq_executor {package.__version__}"


def who() -> tuple[str, str, int]:
    """Return what a worker is, its machine and its process."""
    return kind(), machine(), os.getpid()


def omniq_chunk(message: bytes) -> bytes:
    """Run a chunk, and return the Answer, pickled. It raises for no call, so whatever is raised is the engine's."""
    theirs, token, _, *chunk = pickle.loads(message)
    if theirs != kind():
        raise EngineMismatch(_mismatch(theirs, *who()))
    # Ctrl-C reaches the processes of a terminal. What it means for calls is for the submitter to say.
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if is_main else None
    try:
        return pickle.dumps(_caller_of(token).run(*chunk), 5)
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


def _no_row() -> list[int]:
    return [0] * CELLS


def check(theirs: str, host: str, pid: int) -> None:
    """Raise EngineMismatch if what a worker is, as it says, is not what this process is."""
    if theirs != kind():
        raise EngineMismatch(_mismatch(kind(), theirs, host, pid))


def _mismatch(here: str, there: str, where: str, pid: int) -> str:
    return (
        f"process {pid} on {where.partition(' ')[0]}, which is to run calls, is {there}, and the submitter is {here}."
        " Functions travel as byte code, so both must be the same: install the one's version where the other is"
    )


class _Callers(threading.local):
    def __init__(self) -> None:
        self.by_token: OrderedDict[bytes, _RemoteCaller] = OrderedDict()


_here = _Callers()


def _caller_of(token: bytes) -> "_RemoteCaller":
    found = _here.by_token.get(token)
    if found is None:
        if len(_here.by_token) == _CALLERS:
            _here.by_token.popitem(last=False)
        found = _here.by_token[token] = _RemoteCaller()
    _here.by_token.move_to_end(token)
    return found


class _RemoteCaller(Caller):
    """Makes calls for one submitter, in one thread."""

    def __init__(self) -> None:
        super().__init__(_no_row())
        self._until = 0.0
        self._notes: tuple[Slots, dict[int, memoryview[int]]] | None = None  # the file, and rows of it
        self._spaces: OrderedDict[int, spaces.Space] = OrderedDict()

    def run(
        self,
        limit_s: float,
        notes: Notes | None,
        files: Files | None,
        space: int,
        function: bytes,
        text: str | None,
        calls: Sequence[Any] | None,
        ids: Sequence[int],
    ) -> Answer:
        """Run the calls of a chunk, see Message."""
        self._items, self._values, self._times = [], [], []  # maybe of one that went wrong
        self._slot = self._row(notes)
        self._slot[STARTED] = -1
        self._slot[STOP], self._slot[RESUME] = NEVER, NEVER + os.getpid()  # which says whose row it is
        self._is_fresh = True  # no other process can be asked for, so what is found here is the answer
        self._until = time.perf_counter() + limit_s
        digest = blake2b(function, digest_size=8, key=space.to_bytes(8, "big"))
        function_id = int.from_bytes(digest.digest(), "big")
        is_noted = type(self._slot) is not list
        self._files = files if is_noted else None  # else it is elsewhere, and sees them no more than its row
        before = spaces.use(None)
        try:
            self.enter(space)
            pickled = None if function_id in self._functions else function
            with values.reading(self._files):
                self.run_chunk(0, function_id, pickled, text, calls, ids, space)
        finally:
            spaces.use(before)
            self._slot[STARTED] = -1  # it is in no call any more
        self._encode_values()
        executed = sum(calls for _, calls, _ in self._times)
        return executed, sum(busy_s for *_, busy_s in self._times), self._items, is_noted

    def _row(self, notes: Notes | None) -> "MutableSequence[int] | memoryview[int]":
        """Return where it is noted which call is under way: in a file that the submitter sees, if it is here."""
        if notes is None or notes[0] != machine():
            return _no_row()
        _, file, number = notes
        if self._notes is None:
            self._notes = file, {}
        file, rows = self._notes
        try:
            row = rows[number] = rows[number] if number in rows else file.row(number)
        except OSError:  # another container, say
            return _no_row()
        return row

    def enter(self, space: int) -> None:
        """As of a Caller, for this thread alone."""
        found = self._spaces.get(space)
        if found is None:
            if len(self._spaces) == spaces.SPACES:
                self._spaces.popitem(last=False)
            found = self._spaces[space] = spaces.Space()
        self._spaces.move_to_end(space)
        self._space, self._space_number = found, space
        spaces.use(found)

    def flush(self, always: bool = False) -> None:
        """Keep all until the end, and begin no call any more when the time is over."""
        if time.perf_counter() > self._until:
            self._slot[STOP] = 0

    def _load_or_tell(self, function_id: int, function: bytes) -> Any:
        try:
            return super()._load_or_tell(function_id, function)
        except NotImportable as error:
            if isinstance(error.__cause__, spaces.NotInScript):
                raise SerializationError(f"{error.__cause__}, and workers of this engine have no script") from error
            raise NotImportable(f"on {machine().partition(' ')[0]}: {error}") from error.__cause__
