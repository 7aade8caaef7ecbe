"""How a worker keeps what each call writes: while it runs, the descriptors 1 and 2 lead to its file.

    print(), sys.stderr, logging ---.
    os.write(1, ...), code in C -----+--> descriptors 1 and 2 --> FOLDER/task-0d5kq3v7x8m2a.1.log
    child processes ----------------'

Nothing on that way keeps anything back, so what was written before a SIGKILL is in the file: sys.stdout
and sys.stderr become streams without a buffer, and so does the stdout of C. Before and after a call
the descriptors lead to where they led when the worker was started. Threads and processes that a call leaves
behind write to where the descriptors lead at that moment: a thread into the file of the next call, a
process into that of the call that started it.

No call fails for its output. If the file cannot be opened, what it writes goes to where it would go anyway;
if the disk is full, what Python's streams cannot write is lost. A warning says so, once in a worker.
"""

import contextlib
import ctypes
import io
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

_STDOUT, _STDERR = 1, 2
_IONBF = 2  # of C's setvbuf(): no buffer
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

_log = logging.getLogger("omniq_executor")


class Capture:
    """Keeps the output of the calls of this process, made before the first of them and after the initializer.

    `streams` are sys.stdout and sys.stderr as they were before the initializer, which may have changed them.
    """

    def __init__(self, streams: Sequence[Any]) -> None:
        self._path: str | None = None  # where they lead now
        self._has_warned = False
        self._saved: Sequence[int] = ()  # where the descriptors led
        self._streams: Sequence[_Unbuffered] = ()
        try:
            self._saved = _save()
            self._streams = _Unbuffered(_STDOUT, "<stdout>"), _Unbuffered(_STDERR, "<stderr>")
        except OSError as error:
            self._warn("stdout, stderr", error)
            return
        _flush()
        for name, old, new in zip(("stdout", "stderr"), streams, self._streams, strict=True):
            if getattr(sys, name) is old:
                setattr(sys, name, io.TextIOWrapper(new, "utf-8", "backslashreplace", "\n", write_through=True))
        _unbuffer_c()
        _keep_logging()

    def begin(self, path: str) -> None:
        """Have what is written appended to the file at `path`, which is made."""
        if not self._streams:
            return
        try:
            fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                if os.fstat(fd).st_mode & 0o777 != 0o600:  # the umask took something
                    os.fchmod(fd, 0o600)
                os.dup2(fd, _STDOUT)
                os.dup2(fd, _STDERR)
            finally:
                os.close(fd)
        except OSError as error:
            self._warn(path, error)
            return
        self._path = path
        for stream in self._streams:
            stream.refused = None

    def end(self) -> None:
        """Have it go where it went before; a file to which nothing was written is removed."""
        path, self._path = self._path, None
        if path is None:
            return
        _flush()
        for saved, fd in zip(self._saved, (_STDOUT, _STDERR), strict=True):
            os.dup2(saved, fd)
        with contextlib.suppress(OSError):
            if not os.stat(path).st_size:
                os.unlink(path)
        for stream in self._streams:
            if stream.refused is not None:
                self._warn(path, stream.refused)

    def _warn(self, path: str, error: OSError) -> None:
        if not self._has_warned:
            self._has_warned = True
            _log.warning("%s: output of calls is not kept: %s", path, error.strerror or error)


class _Unbuffered(io.FileIO):
    """One of the standard descriptors, to which everything can be written, be the disk full or not."""

    def __init__(self, fd: int, name: str) -> None:
        super().__init__(fd, "w", closefd=False)
        self.name = name
        self.refused: OSError | None = None  # why something could not be written

    def write(self, data: Any, /) -> int:
        """Write all of it, or as much as is possible."""
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while left:
                left = left[super().write(left) or len(left) :]  # None: it is a pipe that is full
        except OSError as error:
            self.refused = error
        return size


def _save() -> tuple[int, int]:
    # Without them the numbers 1 and 2 are anything's, such as the socket to the parent.
    if sys.__stdout__ is None or sys.__stderr__ is None:
        raise OSError("this process was started without stdout or stderr")
    return os.dup(_STDOUT), os.dup(_STDERR)


def _flush() -> None:
    """Have the streams write what they keep back, also those that were there before ours."""
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        try:
            if stream is not None:
                stream.flush()
        except Exception:  # noqa: BLE001 - a stream of the user's may be closed, or raise anything
            pass


def _unbuffer_c() -> None:
    """Have C's stdout keep nothing back. Its stderr never does."""
    for name in ("stdout", "__stdoutp"):  # the latter on macOS
        with contextlib.suppress(AttributeError, OSError, ValueError):  # there is nothing of that name
            libc = ctypes.CDLL(None)
            libc.setvbuf(ctypes.c_void_p.in_dll(libc, name), None, _IONBF, ctypes.c_size_t(0))
            return


def _keep_logging() -> None:
    """Have what is logged written to stderr, where the initializer (or the parent, with fork) has not seen to it.

    Where nothing is configured, records of INFO and above are written, by the handler of last resort: so
    modules that are imported later and call logging.basicConfig() still have their way.
    """
    root = logging.getLogger()
    ours = logging.StreamHandler(sys.stderr)
    ours.setFormatter(logging.Formatter(_FORMAT))
    if not root.handlers:
        logging.lastResort = ours
        if root.level == logging.WARNING:  # as it comes
            root.setLevel(logging.INFO)
    elif not any(_is_captured(handler) for handler in root.handlers):
        root.addHandler(ours)


def _is_captured(handler: logging.Handler) -> bool:
    try:
        return isinstance(handler, logging.StreamHandler) and handler.stream.fileno() in (_STDOUT, _STDERR)
    except (AttributeError, OSError, ValueError):  # it writes to no file
        return False
