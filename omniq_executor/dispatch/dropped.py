"""What is to be cancelled with the next turn: for iterators, and executors, that somebody drops, and signal handlers.

That may be anywhere, in any thread, with any lock taken.

No line of Python is run when that happens, as one is in `__del__`: an interrupt that comes there is raised there, where
nobody can catch it, and is lost. So what is called is a method of a deque, and after it the system's write(): of
callbacks of weak references the youngest is called first.
"""

import operator
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from .waiters import Consumer, Waiters


class _Reference(weakref.ref[Any]):
    """Tells that an iterator is gone, or an executor."""

    __slots__ = ("consumer", "wake")
    consumer: Consumer
    wake: Callable[[], object]


def when_dropped(thing: Any, act: Callable[[], object]) -> weakref.ref[Any]:
    """Have `act` called when a thing is dropped, for as long as what is returned is kept."""
    reference = _Reference(thing, operator.methodcaller("wake"))
    reference.wake = act
    return reference


class Dropped:
    """The consumers whose iterators were dropped, and what signal handlers have cancelled, the first one first."""

    def __init__(self, wake: Callable[[], object]) -> None:
        self._wake = wake
        self._watched: dict[int, tuple[weakref.ref[Any], weakref.ref[Any]]] = {}  # by the id of the consumer
        self._dropped: deque[Any] = deque()  # references, and pairs of ids and whether also what runs is to end

    def watch(self, iterator: Any, consumer: Consumer) -> None:
        """Notice when an iterator is dropped, and wake whoever looks here then."""
        wakes = when_dropped(iterator, self._wake)
        drops = _Reference(iterator, self._dropped.append)
        drops.consumer = consumer
        self._watched[id(consumer)] = wakes, drops

    def cancel(self, ids: Sequence[int], running: bool) -> None:
        """Have calls cancelled once the turn is over that a handler of a signal has interrupted in this thread."""
        self._dropped.append((ids, running))

    def unwatch(self, consumer: Consumer) -> None:
        """Do not notice it, as the iterator has come to its end."""
        self._watched.pop(id(consumer), None)

    def watches(self, consumer: Consumer) -> bool:
        """Return whether it would be noticed, so that the iterator is there."""
        return id(consumer) in self._watched

    def __bool__(self) -> bool:
        return bool(self._dropped)

    def first(self, waiters: Waiters) -> tuple[Sequence[int], bool]:
        """Return calls to cancel, and whether also what runs is to end. They stay here until `remove_first()`."""
        first = self._dropped[0]
        return first if isinstance(first, tuple) else (waiters.ids(first.consumer), False)

    def remove_first(self) -> None:
        """Do with it what is to be done no more: it is done."""
        first = self._dropped.popleft()
        if not isinstance(first, tuple):
            self.unwatch(first.consumer)

    def clear(self) -> None:
        """Notice nothing any more."""
        self._watched.clear()
