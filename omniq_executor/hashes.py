"""What stands for contents: 16 bytes, by the hash that takes the least time for as many bytes.

blake2b is taken from its own module: hashlib loads OpenSSL as well, which takes 5 to 10 ms of the start of each
process. Of large contents SHA-256 takes half of the time on processors that have instructions for it, so OpenSSL is
loaded by the first who needs that.
"""

from functools import cache
from typing import Any

try:
    from _blake2 import blake2b  # as `random` imports its hash
except ImportError:  # a Python that was built without it
    from hashlib import blake2b

__all__ = ["begin", "blake2b", "end", "hash_of"]

_SIZE = 16  # bytes
_LARGE = 1 << 18  # bytes; part of the identity of what is stored, so it is as good as never changed


@cache
def _sha256() -> Any:
    from hashlib import sha256

    return sha256


def begin(size: int) -> Any:
    """Return a hash that is to be updated with `size` bytes in all, as far as is known."""
    return blake2b(digest_size=_SIZE) if size < _LARGE else _sha256()()


def end(hashed: Any) -> bytes:
    """Return the 16 bytes of a hash that was updated."""
    digest: bytes = hashed.digest()
    return digest[:_SIZE]


def hash_of(data: bytes | memoryview) -> bytes:
    """Return 16 bytes that stand for these."""
    if len(data) < _LARGE:
        return blake2b(data, digest_size=_SIZE).digest()
    hashed = begin(len(data))
    hashed.update(data)
    return end(hashed)
