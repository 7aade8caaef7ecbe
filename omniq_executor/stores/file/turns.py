"""The turns of the file store, and what happens to single tasks. See store.py."""

import contextlib
import heapq
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence

from ...errors import StoreError, TaskNotFound
from ...model import codec
from ...model.task import LAST_TIER, Call, Claim, Event, Function, Refused, Status, Task, format_id, last, succeed
from ..base import Batch, Claimed, Outcome, Run, Turn, TurnResult
from ..rules import initializer_of, shares
from .part import OfFiles
from .ready_index import Lane, Place, lane_of, place_of
from .records import Record
from .tasks import Changes, is_claimable


class Turns(OfFiles):
    """Adds, ends, claims, cancels and retries tasks."""

    def turn(self, owner: int, run: Run, work: Turn) -> TurnResult:
        with self._tasks.locked():
            changes, refused = Changes(), set[int]()
            for batch in work.adds:
                self._add(changes, owner, run, batch, work.now)
            for block in work.blocks:
                for number, text in enumerate(codec.split(block.text), block.first):
                    end = Outcome(number, block.attempt, Event.COMPLETE, text[1:-1])
                    self._end(changes, refused, owner, end, work.now)
            for end in work.outcomes:
                self._end(changes, refused, owner, end, work.now)
            freed = self._tasks.apply_waits(changes)
            claimed: list[Record] = []
            lanes: list[Lane] = []
            try:
                if work.claim > 0:
                    lanes = self._lanes_of(changes, run, work)
                    claimed = self._claim(changes, owner, lanes, work.claim, work.now)
                self._tasks.commit(owner, changes)
            except OSError:
                self._tasks.forget()  # what was taken out of them is still PENDING
                raise
            foreign, self._tasks.is_foreign = self._tasks.is_foreign, False
            turned = TurnResult(map(_claimed, claimed), refused, foreign, freed=freed)
            if len(claimed) < work.claim:
                dues = (self._tasks.lanes()[lane].next_due() for lane in lanes)
                turned.due = min((due for due in dues if due is not None), default=None)
                turned.next_tier = self._next_tier(run, work)
        return turned

    def add_claimed(self, owner: int, run: Run, number: int, function: Function, call: Call, now: int) -> None:
        batch = Batch(number, 1, function, calls=(call,), claimed=True)
        with self._tasks.locked():
            changes = Changes()
            self._add(changes, owner, run, batch, now)
            self._tasks.commit(owner, changes)

    def _add(self, changes: Changes, owner: int, run: Run, batch: Batch, now: int) -> None:
        function = batch.function
        self._functions.keep(function)
        if batch.key is not None and self._tasks.by_key(run.queue, batch.key) is not None:
            raise StoreError(f"the store {self.path}: the queue {run.queue} has a task with the key {batch.key!r}")
        for needed in batch.options.after if batch.options is not None else ():
            if needed not in changes.new and self._tasks.load(needed) is None:
                raise TaskNotFound(
                    f"the store {self.path} holds no {format_id(needed)}, so there is no result of it that a call could"
                    " be given: it is of another store, or was purged"
                )
        claim = {"status": Status.RUNNING, "attempts": 1, "owner": owner, "started_at": now} if batch.claimed else {}
        for number, call in enumerate(batch.each(), batch.first):
            task = Task(
                id=number, queue=run.queue, run=run.id, func_path=function.path, func=b"", args=call.args,
                kwargs=call.kwargs, enqueued_at=now, key=batch.key, priority=batch.priority, eta=batch.eta,
                options=batch.options and batch.options.or_none(), **claim,  # type: ignore[arg-type]
            )  # fmt: skip
            changes.new[number] = Record(task, function.digest, call.identity, 1 + batch.claimed)

    def _end(self, changes: Changes, refused: set[int], owner: int, end: Outcome, now: int) -> None:
        record = changes.new.get(end.id) or self._tasks.load(end.id)
        if record is None:
            refused.add(end.id)
            return
        try:
            claim = Claim(owner, end.attempt)
            ended = record.after(end.event, now, claim=claim, result=end.result, error=end.error, eta=end.eta)
        except Refused:
            refused.add(end.id)
        else:
            changes.change(record, ended)
            if end.successor is not None and record.task.recurs:
                task = succeed(record.task, end.successor, now)
                changes.new[task.id] = Record(task, record.digest, record.identity, 1)

    def _claim(self, changes: Changes, owner: int, lanes: Sequence[Lane], most: int, now: int) -> list[Record]:
        """Claim the first tasks of these lanes. Those of a queue are as one, and each queue gives its share."""
        claimed: list[Record] = []
        known, of_queue = self._tasks.lanes(), defaultdict[str, list[Lane]](list)
        for lane in lanes:
            of_queue[lane[0]].append(lane)
        ours = set(lanes)
        for new in changes.new.values():
            if is_claimable(new.task) and lane_of(new.task) in ours:
                known[lane_of(new.task)].push(place_of(new.task))
        for queue, share in shares(list(of_queue), most, claimed):
            enough = len(claimed) + share
            heap = [(place, lane) for lane in of_queue[queue] if (place := known[lane].first(now)) is not None]
            heapq.heapify(heap)
            while heap and len(claimed) < enough:
                place, lane = heapq.heappop(heap)
                if (next_place := known[lane].drop_first(now)) is not None:
                    heapq.heappush(heap, (next_place, lane))
                record = changes.new.get(place[-1]) or self._tasks.load(place[-1])
                if record is not None and self._is_at(record, lane, place):
                    claimed.append(changes.change(record, record.claim(owner, now)))
        return claimed

    def _is_at(self, record: Record, lane: Lane, place: Place) -> bool:
        """Return whether a task is in the lane and at the place that were taken for its own, or is put where it is."""
        if not is_claimable(record.task):
            return False
        right = lane_of(record.task), place_of(record.task)
        if right != (lane, place):
            self._tasks.lanes()[right[0]].push(right[1])
        return right == (lane, place)

    def _lanes_of(self, changes: Changes, run: Run, work: Turn) -> list[Lane]:
        """Return the lanes that a turn claims from, those of a queue beside each other, and the queues in any order."""
        known = self._tasks.lanes()
        for lane in [lane for lane, places in known.items() if not places]:
            del known[lane]
        names = (run.queue,) if work.queues is None else work.queues
        found = {*known, *(lane_of(record.task) for record in changes.new.values() if is_claimable(record.task))}
        if work.of_run:
            lanes = [lane for lane in found if lane[1:] == (run.id, work.tier)]
        else:
            lanes = [lane for lane in found if lane[2] == work.tier and (not names or lane[0] in names)]
            lanes = [lane for lane in lanes if not initializer_of(self.context_of(lane[1]))]
        order = {queue: random.random() for queue, _, _ in lanes}
        return sorted(lanes, key=lambda lane: (order[lane[0]], lane))

    def _has_tasks(self, lane: Lane) -> bool:
        """Return whether a lane has tasks, due or not; places that are out of date are taken out until one is right."""
        places = self._tasks.lanes()[lane]
        while places:
            place = places.take()
            record = self._tasks.load(place[-1])
            if record is not None and self._is_at(record, lane, place):
                places.push(place)
                return True
        return False

    def _next_tier(self, run: Run, work: Turn) -> int | None:
        """Return the next tier that has PENDING tasks of what the turn claims from."""
        for tier in range(work.tier + 1, LAST_TIER + 1):
            while lanes := self._lanes_of(Changes(), run, work._replace(tier=tier)):
                if any(map(self._has_tasks, lanes)):
                    return tier
        return None

    def claim(self, owner: int, number: int, now: int) -> Claimed | None:
        with self._tasks.changing() as changes:
            record = self._tasks.load(number)
            if record is None or not is_claimable(record.task):
                return None
            return _claimed(changes.change(record, record.claim(owner, now)))

    def cancel(self, ids: Sequence[int], now: int, running: bool = False) -> list[int]:
        with self._tasks.changing() as changes:
            records = list(self._tasks.records(ids))
            series = {record.task.series for record in records if record.task.recurs}
            if series:
                unfinished = self._tasks.all(Status.PENDING, Status.RUNNING)
                records += [it for it in unfinished if it.task.recurs and it.task.series in series]
            cancelled = self._change(changes, records, Event.CANCEL, now)
            if running:
                cancelled += self._change(changes, records, Event.ABORT, now)
            for record in records:
                task = record.task
                if task.id not in changes.new and task.status is Status.RUNNING and task.recurs:
                    changes.change(record, record.changed(last(record.task)))
            return cancelled

    def retry(self, ids: Sequence[int], now: int) -> list[int]:
        with self._tasks.changing() as changes:
            return self._change(changes, self._tasks.records(ids), Event.MANUAL_RETRY, now)

    def _change(self, changes: Changes, records: Iterable[Record], event: Event, now: int) -> list[int]:
        """Let an event happen to those to which it may; returns which."""
        before = len(changes.new)
        for record in records:
            with contextlib.suppress(Refused):
                changes.change(record, record.after(event, now))
        return list(changes.new)[before:]


def _claimed(record: Record) -> Claimed:
    task = record.task
    return Claimed(
        task.id, task.attempts, task.crashes, task.run, record.digest, task.args, task.kwargs, task.eta, task.options,
        task.owner_deaths,
    )  # fmt: skip
