"""A future that makes what waiting needs when somebody waits for it.

A future of the standard library has a condition, its lock and its waiters from the start: nine objects, which the
garbage collector looks at again and again. Most futures are asked for their result alone, which an executor's driver
brings without them. So here they are made by the first who asks for `_condition`, as whoever waits or adds a callback
does before anything else: the standard library's own `wait()`, `as_completed()` and `asyncio.wrap_future()` too.

No end is missed, and none is told twice, as a future becomes FINISHED either under its condition, if that is there, or
under the one lock under which conditions are made.
"""

import concurrent.futures
import os
import threading
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED, PENDING
from typing import TYPE_CHECKING, Any, TypeVar

from .interrupts import SafeCondition, SafeWaiters

_T = TypeVar("_T")
_CANCELLED = (CANCELLED, CANCELLED_AND_NOTIFIED)
_DONE = (FINISHED, *_CANCELLED)


class LeanFuture(concurrent.futures.Future[_T]):
    """See the module's docstring."""

    _made: SafeCondition | None = None  # the condition, once somebody has asked for it
    # Both are looked at under the condition, and made with it.
    _waiters: Any = ()
    _done_callbacks: Any = ()

    def __init__(self) -> None:
        # Not that of the standard library, which makes everything.
        self._state: str = PENDING
        self._result: Any = None
        self._exception: BaseException | None = None

    if not TYPE_CHECKING:  # which knows it as an attribute

        @property
        def _condition(self) -> SafeCondition:
            if self._made is None:
                with _making:
                    if self._made is None:
                        self._waiters = SafeWaiters()
                        self._done_callbacks = []
                        self._made = SafeCondition()  # last: it is looked at without the lock
            return self._made

    def done(self) -> bool:
        """Return whether it has a result or an exception, or was cancelled.

        >>> executor.options(eta=3600).submit(print, "an hour later").done()
        False
        """
        return self._state in _DONE  # without the lock: a wait asks several times, and it never changes back

    def cancelled(self) -> bool:
        """Return whether it was cancelled.

        >>> executor.options(eta=3600).submit(print, "an hour later").cancelled()
        False
        """
        return self._state in _CANCELLED

    def _settle(self, result: Any) -> None:
        """Have a result, if it is PENDING, and tell who waits."""
        if self._made is None:
            with _making:
                if self._made is None:  # and whoever makes it from here on finds the state
                    if self._state == PENDING:
                        self._result = result
                        self._state = FINISHED  # last, as in done()
                    return
        # set_result(), less what it does for waiters that are not there.
        with self._condition:
            if self._state != PENDING:
                return
            self._result = result
            self._state = FINISHED
            for waiter in self._waiters:
                waiter.add_result(self)
            self._condition.notify_all()
        if self._done_callbacks:
            self._invoke_callbacks()  # type: ignore[attr-defined]


MADE = ("_made", "_waiters", "_done_callbacks")
"""The attributes that a future has once somebody has asked for its condition."""
_making = threading.RLock()  # a handler of a signal may ask, too


def _after_fork_in_child() -> None:
    global _making
    _making = threading.RLock()  # another thread of the parent's may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
