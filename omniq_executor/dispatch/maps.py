"""The calls of maps on their way into the store: those that are there already are waited for, the others are added.

Each piece of a map is added by one of these ways, which share the adding of what is new:

    a run of its own      all are new
    one that continues    some are those of earlier runs (resumption.py)
    resume="always"       equal ones are one call, also with those of before (reuse.py)
    memo=True             likewise, in all runs and processes
"""

import itertools
from collections.abc import Sequence

from ..errors import StoreError
from ..model.task import Options, Status
from ..stores.base import SMALL, Batch, ResultBatch, TaskState
from .loop import Loop
from .reuse import memo_key, name_of
from .waiters import Consumer, Waiters


class Maps:
    """See the module's docstring. Called under the dispatcher's lock."""

    def __init__(self, loop: Loop, waiters: Waiters, owner: int) -> None:
        self._loop = loop
        self._waiters = waiters
        self._owner = owner

    def add(self, consumer: Consumer, position: int, batch: Batch) -> None:
        """Store new calls for consecutive positions of a consumer. Raises StoreError."""
        had = self._loop.resumption.had
        if batch.key is not None:
            self._add_memos(consumer, position, batch)
        elif had is not None and not recurs(batch.options):
            self._add_once(had, consumer, position, batch)
        elif self._loop.resumption.run.continues:
            self._add_resumed(consumer, position, batch)
        else:
            self._add_new(consumer, position, batch)
        self._loop.heed_needs(batch.options)

    def _add_new(self, consumer: Consumer, position: int, batch: Batch) -> None:
        batch.first = self._loop.ids.take(batch.size)
        self._waiters.add_range(batch.first, batch.size, consumer, position)
        try:
            self._loop.turn(batch)
        except BaseException as error:
            self._loop.take_back((batch.first,), error)
            raise

    def _add_resumed(self, consumer: Consumer, position: int, batch: Batch) -> None:
        """Add calls of which some may be in the store already, by the runs that this one continues."""
        loop, calls = self._loop, batch.each()
        known = [look.found for look in loop.resumption.find_each(batch.function, calls)]
        # First those that are ours by now: adding others may fail.
        for apart, alike in itertools.groupby(enumerate(known), _apart):
            placed = [(place, found) for place, found in alike if found is not None]
            consumer.resumed += sum(is_resumed(found, self._owner) for _, found in placed)
            if apart is not None and len(placed) > 1 and self._give(consumer, position, placed):
                continue
            for place, found in placed:
                self._waiters.add_single(found.id, consumer, position + place)
                # What is PENDING is of this run by now; what runs elsewhere may be left by whoever runs it.
                loop.take_in_state(found, may_adopt=found.status is Status.RUNNING)
        for is_new, stretch in itertools.groupby(range(len(calls)), lambda place: known[place] is None):
            if is_new:
                start, *_ = places = [*stretch]
                part = batch.of(calls[start : start + len(places)])
                self._add_new(consumer, position + start, part)
        loop.turn_or_later()

    def _give(self, consumer: Consumer, position: int, placed: Sequence[tuple[int, TaskState]]) -> bool:
        """Give results at once that are equally far apart from their places; return False where that cannot be."""
        start, first = placed[0]
        text = f"[[{'],['.join(str(found.result) for _, found in placed)}]]"
        return self._waiters.give(consumer, position + start, ResultBatch(first.id, len(placed), 0, text))

    def _add_once(self, had: dict[bytes, int], consumer: Consumer, position: int, batch: Batch) -> None:
        """Add calls of which those that are equal are one, among them and with those that the run has had."""
        loop, calls = self._loop, batch.each()
        positions: dict[bytes, list[int]] = {}
        for place, call in enumerate(calls):
            positions.setdefault(name_of(batch.function, call), []).append(position + place)
        named = {name: calls[places[0] - position] for name, places in positions.items()}
        looks = loop.resumption.find_once(had, batch.function, named)
        known = {name: look.found for name, look in looks.items() if look.found is not None}
        for name, found in known.items():
            for place in positions[name]:
                self._waiters.add_single(found.id, consumer, place)
                consumer.resumed += is_resumed(found, self._owner)
        for found in known.values():
            loop.take_in_state(found, may_adopt=found.status is Status.RUNNING)
        new = [name for name in positions if name not in known]
        if new:
            part = batch.of([named[name] for name in new])
            self._add_shared(consumer, [positions[name] for name in new], part)
            had |= zip(new, range(part.first, part.first + part.size), strict=True)
        loop.turn_or_later()

    def _add_shared(self, consumer: Consumer, positions: Sequence[Sequence[int]], batch: Batch) -> None:
        """Add new calls of which each is the one of all these positions."""
        batch.first = self._loop.ids.take(batch.size)
        ids = range(batch.first, batch.first + batch.size)
        if all(len(places) == 1 for places in positions) and positions[-1][0] - positions[0][0] == batch.size - 1:
            self._waiters.add_range(batch.first, batch.size, consumer, positions[0][0])
        else:
            for id, places in zip(ids, positions, strict=True):
                for place in places:
                    self._waiters.add_single(id, consumer, place)
        try:
            self._loop.turn(batch)
        except BaseException as error:
            self._loop.take_back(ids, error)
            raise

    def _add_memos(self, consumer: Consumer, position: int, batch: Batch) -> None:
        """Add calls with memo=True, each in a turn of its own: another process may have one at the same time."""
        resumption = self._loop.resumption
        for place, call in enumerate(batch.each(), position):
            key = memo_key(resumption.run, batch.function, call)
            found = resumption.by_memo(batch.function, key).found
            if found is None:
                try:
                    self._add_new(consumer, place, batch.of([call], key))
                    continue
                except StoreError:
                    found = resumption.by_memo(batch.function, key).found
                    if found is None:
                        raise
            self._waiters.add_single(found.id, consumer, place)
            consumer.resumed += is_resumed(found, self._owner)
            self._loop.take_in_state(found, may_adopt=True)
        self._loop.turn_or_later()


def _apart(placed: tuple[int, TaskState | None]) -> int | None:
    """Return how far id and place are apart, which those have in common that can be given at once; None for others."""
    place, found = placed
    if found is None or found.status is not Status.COMPLETED:
        return None
    return found.id - place if isinstance(found.result, str) and len(found.result) <= SMALL else None


def is_resumed(found: TaskState, owner: int) -> bool:
    """Return whether a call need not run, since its result is there, and was not made by this owner."""
    return found.status is Status.COMPLETED and found.owner != owner


def recurs(options: Options | None) -> bool:
    """Return whether a call with these options is followed by another one."""
    return options is not None and options.interval is not None
