"""The items of a map on their way from the user's iterables to the store.

Items are stored many at a time, as that is what makes maps fast. But what an iterable waits for, before it gives its
next item, may be what the calls of those before do. ProcessPoolExecutor has these run already, as it submits each by
itself. So none is held for long: where the next takes longer than READ_S, another thread stores those that are there.
"""

import contextlib
import itertools
import time
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from .interrupts import SafeLock

READ_S = 0.01
_AT_HAND = list, tuple, range, str, bytes, dict, set, frozenset  # whose items wait for nothing

Row = tuple[Any, ...]


class Items:
    """The rows of some iterables, of which one thread at a time draws."""

    def __init__(self, rows: Iterator[Row], are_at_hand: bool = False) -> None:
        """Take rows that come one by one, or without any wait if they are at hand."""
        self.are_over = False
        """Whether there are no more."""
        self.are_slow = False
        """Whether those that were drawn last took long."""
        self._rows = rows
        self._are_at_hand = are_at_hand
        self._held: deque[Row] = deque()
        self._lock = SafeLock()
        self._store: Callable[[Sequence[Row]], object] | None = None  # while some are drawn: what stores them
        self._until = 0.0  # when those that are held are to be stored
        self._is_watched = False
        self._error: BaseException | None = None  # what kept the other thread from it

    def draw(self, count: int, store: Callable[[Sequence[Row]], object]) -> list[Row]:
        """Return the next ones that are not stored yet: in all so many, unless they end or take long.

        `store` is called meanwhile, by another thread, with those that come before one that takes long. Raises what
        that has raised, and what the iterables raise.
        """
        try:
            with self._lock:
                self._store, self._until, self.are_slow = store, time.monotonic() + READ_S, False
                if not (self._is_watched or self._are_at_hand):
                    with contextlib.suppress(RuntimeError):  # as the interpreter ends, or where there are too many
                        start_new_thread(self._watch, ())
                        self._is_watched = True
            self._draw(count)
        finally:
            with self._lock:
                self._store = None
                rows = self._take()
                error, self._error = self._error, None
        if error is not None:
            raise error
        return rows

    def _draw(self, count: int) -> None:
        drawn = 0
        while drawn < count:
            asked = min(count, 2 * drawn + 1)  # not many after the time
            for row in itertools.islice(self._rows, asked - drawn):
                self._held.append(row)
                drawn += 1
                if self.are_slow:  # the other thread watches no more
                    return
            if drawn < asked:
                self.are_over = True
                return
            if time.monotonic() > self._until:
                self.are_slow = True
                return

    def _take(self) -> list[Row]:
        return [self._held.popleft() for _ in range(len(self._held))]  # the other thread may append meanwhile

    def _watch(self) -> None:
        """Store what is held if it is for too long: once, as who draws stops after the one that it waits for."""
        while True:
            with self._lock:
                left = self._until - time.monotonic()
                if self._store is None or left <= 0:
                    self._is_watched = False
                    if self._store is not None:
                        self.are_slow = True
                        self._store_held(self._store)
                    return
            time.sleep(left)

    def _store_held(self, store: Callable[[Sequence[Row]], object]) -> None:
        if rows := self._take():
            try:
                store(rows)
            except BaseException as error:  # noqa: BLE001 - it is for who draws
                self._error = error


def are_at_hand(iterables: Iterable[Iterable[Any]]) -> bool:
    """Return whether none of the iterables runs code, or waits, for its next item."""
    return all(type(it) in _AT_HAND for it in iterables)
