"""Memory that a worker and its parent share, and that outlives both: a row of numbers for each worker, in a file.

    STARTED        the number of the call that the worker is in, or was in last
    STOP, RESUME   calls numbered STOP <= n < RESUME must not start
    SINCE          when it began with its present chunk
    FIRST, TASK    the number of a call of its chunk, and the id of that one's task; the next ones follow both

The numbers of calls are the engine's, see engines/local/record.py and worker.py, which say who writes what when.
The file lies beside the store. When the owner is dead, whoever takes back its tasks reads there which calls had
begun: of hundreds that it had claimed, those alone can be what killed it.
"""

import contextlib
import functools
import mmap
import os
import socket
from pathlib import Path
from typing import Any

from .errors import StoreError

STARTED, STOP, RESUME, SINCE, FIRST, TASK = range(6)
CELLS = 6  # per worker
_BYTES = 8  # of a cell


@functools.cache
def machine() -> str:
    """Return what tells apart machines, and the same one before and after a boot: memory is shared within one."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return f"{socket.gethostname()} {boot}"


class Slots:
    """The rows of up to `count` workers. It is pickled as the way to its file."""

    def __init__(self, count: int, path: str | None = None) -> None:
        self.count = count
        self.fd = -1
        """Of the file, from `make()` to `close()`."""
        self._path = path
        self._map: mmap.mmap | None = None
        self._views: list[memoryview[int]] = []  # that are in use

    def make(self, path: Path) -> None:
        """Make the file. Raises StoreError where that is not possible."""
        self._path = str(path)
        size = max(self.count, 1) * CELLS * _BYTES
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self.fd, 0, size)  # to write where a full disk has no blocks is a SIGBUS
            else:
                os.write(self.fd, bytes(size))
            self._map = mmap.mmap(self.fd, size)
        except OSError as error:
            raise StoreError(f"{path} cannot be made: {error.strerror}") from error

    def row(self, slot: int) -> "memoryview[int]":
        """The row of a worker."""
        if self._map is None:  # in the worker
            assert self._path is not None
            fd = os.open(self._path, os.O_RDWR | os.O_NOFOLLOW)
            self._map = mmap.mmap(fd, 0)
            os.close(fd)
        self._views.append(row_of(self._map, slot))
        return self._views[-1]

    def close(self) -> None:
        """Let go of the file; nobody uses a row any more."""
        if self.fd != -1:
            os.close(self.fd)
            self.fd = -1
        while self._views:
            self._views.pop().release()
        if self._map is not None:
            with contextlib.suppress(BufferError):  # somebody looks at a row just now, and lets go of it
                self._map.close()
            self._map = None

    def __reduce__(self) -> Any:
        return Slots, (self.count, self._path)


def row_of(memory: "mmap.mmap | memoryview[Any]", slot: int) -> "memoryview[int]":
    """The row of a worker in the memory of all."""
    return memoryview(memory).cast("B").cast("q")[slot * CELLS : (slot + 1) * CELLS]


def begun(path: Path) -> set[int] | None:
    """The ids of the tasks that workers had begun with last, by their file; None where there is none that tells."""
    times = since(path)
    return None if times is None else set(times)


def since(path: Path) -> dict[int, int] | None:
    """Return for these tasks when the worker began with the chunk that they are of, likewise.

    In nanoseconds of time.monotonic() of the worker's machine; 0 where that was not noted yet.
    """
    try:
        data = path.read_bytes()
    except OSError:
        return None
    found = {}
    count = len(data) // (CELLS * _BYTES)
    whole = memoryview(data)[: count * CELLS * _BYTES]
    for slot in range(count):
        row = row_of(whole, slot)
        # While a worker changes to another chunk, FIRST is ahead of STARTED: it is in no call then.
        if 0 <= row[FIRST] <= row[STARTED]:
            found[row[TASK] + row[STARTED] - row[FIRST]] = row[SINCE]
    return found
