"""Ctrl-C is put off while the main thread is in the executor, and raised when everything is consistent again.

KeyboardInterrupt may be raised between any two steps of the main thread: after a commit, say, and before the claimed
calls are handed on; or after a lock was taken and before anything sees to its release. So whoever enters the executor
enters `interrupts` first, before any lock, and leaves it last, after all who wait were told:

    with interrupts:      the handler of SIGINT is ours, which notes that a signal came, and wakes who sleeps
        ...
        interrupts.deliver()    where a wait may end: calls the program's own handler, which may raise
                          left: the program's handler is back; it is called now if a signal was noted

Why no moment is missed: a signal that comes before the handler is changed is raised before anything was done. One that
comes after it is noted. `set_signal()` takes in what is pending before it changes the handler, so when the block is
left a signal is either noted or the program's. If it raises there, in place of one that was noted before, the two count
as one.

Python runs the handler in the main thread, between two steps of it: not while that sleeps, if the signal came just
before, or to another thread. So while the main thread waits within for longer than a moment, the signal itself writes
to a pipe, and whoever drives an executor and sees it wakes the main thread.

What is imported only when it is needed is imported within: Ctrl-C between two steps of an import of Python's may leave
its lock to nobody, and whatever another thread imports then is waited for without an end.

Code of the user's that runs within (callbacks of futures) may take any time, so Ctrl-C interrupts it: `run()`. One that
came before is not raised there, but still when the block is left: else that code would not be run at all.
trio's `_core/_ki.py` tells of the same trouble, and solves it by asking in whose frame the signal came.
"""

import contextlib
import operator
import os
import selectors
import threading

# The functions behind those of `signal`, which wrap handlers in enums at a tenth of the cost of a whole submit().
from _signal import SIGINT, getsignal, set_wakeup_fd, signal as set_signal  # type: ignore[import-not-found]
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import get_ident
from typing import Any

from .pipes import drain, wake_pipe

_MANY = 1024  # signals


class Interrupts(contextlib.ContextDecorator):
    """See the module's docstring. There is one of the process, as there is one handler of SIGINT."""

    def __init__(self) -> None:
        self.is_pending = False
        """Whether a signal was noted that is not raised yet. It is the main thread that is to look."""
        self.wake: Callable[[], object] | None = None
        """What wakes the main thread where it sleeps within the block. It must be safe in a signal handler."""
        self._main = threading.main_thread().ident
        self._depth = 0  # of the main thread, in blocks
        self._before: Any = None  # the program's handler, while it is not set
        self._noted: Any = None  # what it is to be called with
        self._held: BaseException | None = None  # what it, or an exit, has raised in code of the user's
        self._pipe: tuple[int, int] | None = None  # never closed: the signal writes to it by its number
        self._meanwhile: tuple[int, int] = (-1, -1)  # another one, for the moment in which it is found out whose is set
        self._hears = False  # whether signals write to the pipe

    def __enter__(self) -> None:
        if get_ident() != self._main:
            return
        if self._depth == 0:
            before = getsignal(SIGINT)
            self._before, self._noted, self.is_pending = None, None, False
            if callable(before):  # else Ctrl-C ends the process, or is ignored
                self._before = before
                set_signal(SIGINT, self._note)
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        if get_ident() != self._main:
            return
        self._depth -= 1
        if self._depth or self._before is None:
            return
        before, self._before = self._before, None
        held, self._held = self._held, None
        self.is_pending = False
        set_signal(SIGINT, before)
        noted, self._noted = self._noted, None
        if held is not None:
            raise held
        if noted is not None:
            before(*noted)

    def set_wake(self, wake: Callable[[], object] | None) -> Callable[[], object] | None:
        """Set what wakes this thread, if it is the main one; return what did so far."""
        if get_ident() != self._main:
            return None
        before, self.wake = self.wake, wake
        return before

    def hear_signals(self, hears: bool) -> None:
        """Have signals write to the pipe from now on, or no more, if this is the main thread."""
        if self._pipe is None or get_ident() != self._main or hears is self._hears:
            return
        if not hears:
            self._hears = False
            found = set_wakeup_fd(-1)
            if found != self._pipe[1]:  # a handler of a signal has set it meanwhile
                set_wakeup_fd(found)
            return
        # Whose it is, is seen only by setting another. What comes meanwhile is handed on: an event loop, or a worker,
        # hears of its signals by its own, and would miss that one for good.
        found = set_wakeup_fd(self._meanwhile[1], warn_on_full_buffer=False)
        self._hears = found == -1
        fd = self._pipe[1] if self._hears else found
        set_wakeup_fd(fd, warn_on_full_buffer=False)
        with contextlib.suppress(BlockingIOError):
            os.write(fd, os.read(self._meanwhile[0], _MANY))

    def watch(self, selector: selectors.BaseSelector) -> None:
        """Have whoever waits for the selector's events, with their handlers as its data, wake the main thread."""
        if self._pipe is None:
            self._pipe, self._meanwhile = wake_pipe(), wake_pipe()
        selector.register(self._pipe[0], selectors.EVENT_READ, self._on_signal)

    def _on_signal(self, _: int) -> None:
        assert self._pipe is not None
        drain(self._pipe[0])  # others find nothing there
        wake = self.wake  # once: the main thread may go on meanwhile
        if wake is not None:
            wake()

    def is_to_leave(self) -> bool:
        """Return whether a signal was noted, and this is the main thread, which is to raise it."""
        return self.is_pending and get_ident() == self._main

    def deliver(self) -> None:
        """Call the program's handler if a signal was noted: in the outermost block, where all is consistent."""
        if self._depth == 1 and self.is_to_leave():
            self.is_pending = False
            held, self._held = self._held, None
            if held is not None:
                raise held
            noted, self._noted = self._noted, None
            if noted is not None:
                self._before(*noted)

    def run(self, code: Callable[[Any], object], argument: Any) -> None:
        """Run code of the user's, which Ctrl-C interrupts. Raises what that raises."""
        if self._before is None or get_ident() != self._main:
            code(argument)
            return
        depth, self._depth = self._depth, 0
        before, self._before = self._before, None
        wake, self.wake = self.wake, None
        held, self._held = self._held, None
        noted, now = None, before  # before anything that may be interrupted
        try:
            set_signal(SIGINT, before)
            noted, self._noted = self._noted, None
            code(argument)
        finally:
            try:
                now = getsignal(SIGINT)  # the user's code may have set another one
                set_signal(SIGINT, self._note)
            except BaseException:
                set_signal(SIGINT, self._note)  # what was pending has been taken in, and raised
                raise
            finally:
                self._depth, self.wake, self._held = depth, wake, held
                self._before = now if callable(now) else before
                self._noted = self._noted or noted
                self.is_pending = self._noted is not None or held is not None

    def hold(self, error: BaseException) -> bool:
        """Have an interrupt or exit that ended code of the user's be raised when the block is left.

        False in other threads than the main one, where it would end what is not the user's.
        """
        if self._depth == 0 or get_ident() != self._main:
            return False
        self._held, self.is_pending = error, True
        return True

    def leave_to_parent(self) -> None:
        """After a fork, in the child, whose one thread may have been any of the parent's."""
        if self._hears:
            set_wakeup_fd(-1)
            self._hears = False
        if self._pipe is not None:
            for fd in (*self._pipe, *self._meanwhile):
                os.close(fd)
            self._pipe = None
        if self._main != get_ident():
            self._main, self._depth = get_ident(), 0
            if self._before is not None:
                set_signal(SIGINT, self._before)
                self._before = None

    def _note(self, number: int, frame: Any) -> None:
        self._noted = number, frame
        self.is_pending = True  # after it, as whoever sees this takes it
        if self.wake is not None:
            self.wake()


interrupts = Interrupts()


class SafeLock:
    """A lock that its thread may take again, and under which Ctrl-C is put off."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        if get_ident() == interrupts._main:
            if interrupts._depth:  # nearly always: a transaction is not to cost a call for it
                interrupts._depth += 1
            else:
                interrupts.__enter__()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        if get_ident() == interrupts._main:
            if interrupts._depth > 1:
                interrupts._depth -= 1
            else:
                interrupts.__exit__()


class SafeCondition(threading.Condition):
    """A condition that Ctrl-C does not leave taken by the main thread, which would stop all others for ever.

    Between the taking of the lock and the `with` block no code in Python runs, so no interrupt can be raised there: the
    names below are looked up and called by the interpreter alone. While it is taken by `acquire()`, as wait() and
    as_completed() do with many in a loop, Ctrl-C is put off.
    """

    __enter__ = property(operator.attrgetter("_lock.__enter__"))
    __exit__ = property(operator.attrgetter("_lock.__exit__"))

    def __init__(self) -> None:
        super().__init__(threading.RLock())
        del self.acquire, self.release  # of the instance: those below take their place

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock, as Lock.acquire() does."""
        interrupts.__enter__()
        taken: bool = False
        try:
            taken = self._lock.acquire(blocking, timeout)  # type: ignore[attr-defined]
        finally:
            if not taken:
                interrupts.__exit__()
        return taken

    def release(self) -> None:
        """Let it go."""
        self._lock.release()  # type: ignore[attr-defined]
        interrupts.__exit__()


class SafeEvent:
    """An event that one thread waits for, and that Ctrl-C does not break.

    One that is raised within a threading.Event's wait() may leave its lock taken, or let go of it while another thread
    has it, which then hangs or fails in set().
    """

    def __init__(self) -> None:
        self._tokens: SimpleQueue[None] = SimpleQueue()

    def set(self) -> None:
        """Wake who waits."""
        self._tokens.put(None)

    def clear(self) -> None:
        """Take that back. It is the one that waits who does, and nobody sets it meanwhile."""
        self._tokens = SimpleQueue()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set; return whether it is."""
        try:
            self._tokens.get(timeout=timeout)
        except Empty:
            return False
        self._tokens.put(None)
        return True


class SafeWaiters(list[Any]):
    """What wait() and as_completed() have put into a future to be told, under its condition."""

    def append(self, waiter: Any) -> None:
        """Have it told. Nobody waits for its event yet."""
        if not isinstance(waiter.event, SafeEvent):
            waiter.event = SafeEvent()
        super().append(waiter)
