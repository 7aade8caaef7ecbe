"""Who waits for which task: futures, and maps by position.

    committed outcomes --resolve()--> map: put() at once, under the dispatcher's lock
                                 '--> future: remembered, and told by notify_waiting() outside the lock

Futures are told outside the lock because their callbacks are code of the user's, which may take any
time, or submit. A map of a million items is one range of ids here, not a million entries; a range is
split where a part of it is resolved, so that what is left tells what is still open.

All but `notify_waiting()` and `all_notified` are called under the dispatcher's lock.
"""

import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence, Set as AbstractSet
from typing import Any, NamedTuple, Protocol

from ..model import codec
from ..model.task import ErrorInfo, Status
from ..stores.base import ResultBatch, TaskState

CANCELLED = Status.CANCELLED
_FAILURES = ErrorInfo, BaseException


class Tally:
    """Counts outcomes."""

    def __init__(self) -> None:
        self.done = self.failed = self.cancelled = 0
        """How many there were; and how many of these failed, or were cancelled."""

    def count(self, count: int, outcome: Any) -> None:
        """Take in so many, of which each is this one, as for a Consumer."""
        self.done += count
        if outcome is CANCELLED:
            self.cancelled += count
        elif isinstance(outcome, _FAILURES):
            self.failed += count


class Consumer(Protocol):
    """Who waits for tasks by position: the iterator of a map."""

    resumed: int
    """How many results were in the store already when their calls were added."""

    def put(self, position: int, id: int, count: int, outcome: Any) -> None:
        """Take what became of `count` consecutive positions, whose tasks have the ids from `id` on.

        The outcome is a ResultBatch of all of them, or of a single one its stored result, its ErrorInfo,
        CANCELLED, or an exception of this process's own. It is committed, unless it is the last.
        """


class Waiter(Protocol):
    """Who waits for one task: a future. It is told outside the dispatcher's lock, once."""

    recurs: bool
    """Whether the call was submitted with an interval."""
    resumed: bool
    """Whether the result was in the store already when the call was submitted."""

    def _finish(self, stored: str | bytes | ErrorInfo) -> None:
        """Resolve with a stored result or error."""

    def _finish_value(self, value: Any) -> None:
        """Resolve with a result that is read already."""

    def _fail(self, error: BaseException) -> None:
        """Resolve with an error of this process's own."""

    def _cancelled(self) -> None:
        """The task is CANCELLED in the store."""


class _Range(NamedTuple):
    """Consecutive ids that are consecutive positions of a consumer."""

    first: int
    end: int
    position: int
    consumer: Consumer


class Waiters(Tally):
    """See the module's docstring. What is counted was waited for, and is resolved."""

    def __init__(self) -> None:
        super().__init__()
        self.open = 0
        """How many tasks are waited for and not resolved."""
        self.put = False
        """Whether a consumer was given something, since whoever sets this to False last looked."""
        self._futures: dict[int, Waiter] = {}
        self._ranges: list[_Range] = []  # in order of their ids
        # Of maps, where ids are not in the order of positions, or several positions are one task.
        self._singles: dict[int, list[tuple[Consumer, int]]] = {}
        self.to_notify: deque[tuple[Waiter, Any, bool]] = deque()
        """Futures that are resolved and are to be told, see `notify_waiting()`."""
        self._resolved = 0  # futures, ever, and ...
        self._notified = 0  # ... those of them that know
        self._notified_lock = threading.Lock()
        self._notifying: list[int] = []  # the threads that do so, one more often where callbacks ask for results

    # who waits

    def future(self, id: int) -> Waiter | None:
        """The future that waits for a task."""
        return self._futures.get(id)

    def add_future(self, id: int, future: Waiter) -> None:
        """Have a future wait."""
        self._futures[id] = future
        self.open += 1

    def add_range(self, first: int, count: int, consumer: Consumer, position: int) -> None:
        """Have a consumer wait for new tasks, whose ids are above all others."""
        self._ranges.append(_Range(first, first + count, position, consumer))
        self.open += count

    def remove(self, first: int) -> None:
        """Have nobody wait any more for new tasks from this one on, which could not be stored."""
        if self._futures.pop(first, None) is not None:
            self.open -= 1
        self.open -= len(self._singles.pop(first, ()))
        span = self._range_of(first)
        if span is not None:
            self.open -= span.end - first
            self._ranges.remove(span)

    def add_single(self, id: int, consumer: Consumer, position: int) -> None:
        """Have a consumer wait for a task whose id has nothing to do with those of its neighbours."""
        self._singles.setdefault(id, []).append((consumer, position))
        self.open += 1

    def give(self, consumer: Consumer, position: int, batch: ResultBatch) -> bool:
        """Give a consumer results of consecutive positions that are there, unless others wait for some of them."""
        ids = range(batch.first, batch.first + batch.size)
        index = self._index(ids[-1])
        if (index >= 0 and self._ranges[index].end > ids[0]) or self._are_shared(ids):
            return False
        self.count(batch.size, batch)
        consumer.put(position, batch.first, batch.size, batch)
        self.put = True  # as in resolve()
        return True

    def __contains__(self, id: int) -> bool:
        return id in self._futures or id in self._singles or self._range_of(id) is not None

    def ids(self, consumer: Consumer | None = None) -> list[int]:
        """The tasks that are waited for, by anybody, or by `consumer` and nobody else."""
        spans = [span for span in self._ranges if consumer is None or span.consumer is consumer]
        ids = [id for span in spans for id in range(span.first, span.end)]
        if consumer is None:
            return [*self._futures, *self._singles, *ids]
        shared = {*self._futures}
        for id, singles in self._singles.items():
            span = self._range_of(id)
            if any(of is not consumer for of, _ in singles) or (span is not None and span.consumer is not consumer):
                shared.add(id)
            else:
                ids.append(id)
        return [id for id in ids if id not in shared] if shared else ids

    def is_of(self, id: int, consumer: Consumer) -> bool:
        """Return whether a consumer waits for a task."""
        span = self._range_of(id)
        return (span is not None and span.consumer is consumer) or any(
            of is consumer for of, _ in self._singles.get(id, ())
        )

    def consumers(self) -> list[Consumer]:
        """Return the consumers that wait."""
        waiting = [span.consumer for span in self._ranges]
        waiting += [consumer for singles in self._singles.values() for consumer, _ in singles]
        return [*{id(consumer): consumer for consumer in waiting}.values()]

    # what became of it

    def resolve_all(self, ids: Sequence[int], outcome: Any, refused: AbstractSet[int]) -> None:
        """Resolve tasks with the outcome of them all, a ResultBatch or that of a single one, less the refused ones."""
        if not isinstance(outcome, ResultBatch):
            if ids[0] not in refused:
                self.resolve(ids[0], outcome)
            return
        span = self._range_of(ids[0])
        if span is not None and ids[-1] < span.end and not refused and not self._are_shared(ids):
            self._put(span, ids[0], len(ids), outcome)
            return
        for id, (value,) in zip(ids, codec.decode(outcome.text), strict=True):
            if id in refused:
                continue
            future = self._futures.pop(id, None)
            if future is not None:
                self._hand_over(future, value, True)
            if (self._ranges or self._singles) and id in self:
                self.resolve(id, codec.encode(value))

    def resolve(self, id: int, outcome: Any) -> None:
        """Resolve one task with what a Consumer is given for one, for everybody who waits for it."""
        future = self._futures.pop(id, None)
        if future is not None:
            self._hand_over(future, outcome, False)
        for consumer, position in self._singles.pop(id, ()):
            self.count(1, outcome)
            self.open -= 1
            consumer.put(position, id, 1, outcome)
            self.put = True  # after it: whoever unsets this, and looks at the consumer, is to find it there
        span = self._range_of(id)
        if span is not None:
            self._put(span, id, 1, outcome)

    def fail_all(self, error: BaseException) -> None:
        """Resolve everything with an error of this process's own."""
        for id in self.ids():
            self.resolve(id, error)

    def _hand_over(self, future: Waiter, outcome: Any, is_read: bool) -> None:
        self.count(1, None if is_read else outcome)
        self._resolved += 1
        self.to_notify.append((future, outcome, is_read))
        self.open -= 1  # last: whoever finds that nothing is open is to find that it is to be told

    def _put(self, span: _Range, id: int, count: int, outcome: Any) -> None:
        index = self._index(id)
        self._ranges[index : index + 1] = [
            _Range(first, end, span.position + first - span.first, span.consumer)
            for first, end in ((span.first, id), (id + count, span.end))
            if first < end
        ]
        self.count(count, outcome)
        self.open -= count
        span.consumer.put(span.position + id - span.first, id, count, outcome)
        self.put = True  # as in resolve()

    def _range_of(self, id: int) -> _Range | None:
        index = self._index(id)
        if index >= 0 and id < self._ranges[index].end:
            return self._ranges[index]
        return None

    def _index(self, id: int) -> int:
        """Return the place of the last range that begins at an id or before it, or -1."""
        return bisect_right(self._ranges, id, key=lambda r: r.first) - 1

    def _are_shared(self, ids: Sequence[int]) -> bool:
        """Return whether some of the tasks are waited for otherwise than in ranges."""
        of_futures = self._futures and not self._futures.keys().isdisjoint(ids)
        return bool(of_futures or (self._singles and not self._singles.keys().isdisjoint(ids)))

    # telling

    def is_notifying(self) -> bool:
        """Return whether this thread is telling futures, so that it is in a callback, whose end it cannot wait for."""
        return threading.get_ident() in self._notifying

    @property
    def all_notified(self) -> bool:
        """Whether every future that was resolved knows it."""
        return self._notified == self._resolved

    def notify_waiting(self) -> int:
        """Tell the futures that were resolved, and return how many. Several threads may do so at once."""
        told = 0
        self._notifying.append(threading.get_ident())
        try:
            while self.to_notify:
                try:
                    future, outcome, is_read = self.to_notify.popleft()
                except IndexError:  # another thread was faster
                    break
                told += 1
                if is_read:
                    future._finish_value(outcome)
                elif outcome is CANCELLED:
                    future._cancelled()
                elif isinstance(outcome, BaseException):
                    future._fail(outcome)
                else:
                    future._finish(outcome)
        finally:
            self._notifying.remove(threading.get_ident())
            if told:
                with self._notified_lock:
                    self._notified += told
        return told


def outcome_of(found: TaskState) -> Any:
    """What a finished task has to show, as `Waiters.resolve()` takes it."""
    if found.status is Status.COMPLETED:
        return found.result
    return found.error if found.status is Status.FAILED else CANCELLED
