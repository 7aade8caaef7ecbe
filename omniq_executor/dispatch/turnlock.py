"""The lock under which turns are taken."""

import threading

# The functions behind those of `signal`, which wrap handlers in enums at a tenth of the cost of a whole submit().
from _signal import SIGINT, getsignal, signal as set_signal  # type: ignore[import-not-found]
from typing import Any


class TurnLock:
    """A reentrant lock that also puts off Ctrl-C while the main thread holds it.

    Turns are taken in the main thread too, where KeyboardInterrupt may be raised between any two
    steps: after a commit, say, and before the claimed calls are handed on.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._main = threading.main_thread().ident
        self._depth = 0  # of the thread that holds it
        self._before: Any = None  # the handler that is put off, while one is
        self._missed: Any = None

    def __enter__(self) -> None:
        self._lock.acquire()
        self._depth += 1
        if self._depth == 1 and threading.get_ident() == self._main:
            before = getsignal(SIGINT)
            if callable(before):
                # Between these two lines nothing is under way yet that an interrupt could harm.
                self._before = before
                set_signal(SIGINT, self._miss)

    def enter_if_free(self) -> bool:
        """Take the lock if nobody has it, not even the calling thread."""
        if not self._lock.acquire(blocking=False):
            return False
        free = self._depth == 0
        if free:
            self.__enter__()
        self._lock.release()
        return free

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        before: Any = None
        if self._depth == 0 and self._before is not None:
            before, self._before = self._before, None
            set_signal(SIGINT, before)
        missed, self._missed = (self._missed, None) if before is not None else (None, self._missed)
        self._lock.release()
        if missed is not None:
            before(*missed)

    def _miss(self, number: int, frame: Any) -> None:
        self._missed = number, frame
