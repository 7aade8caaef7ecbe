"""What a file store keeps for how long. See ../retention.py, and store.py.

An expiry looks at the names of the tasks, a few at a time. A name tells when its task was added, so the file of one
that is too young to go is not read. What unfinished tasks come after is collected first, and then kept by what is
committed (see Tasks.needed).
"""

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...model.ids import time_of
from ...model.task import FINISHED, Status
from ..base import Usage
from ..reserve import size_on_disk
from ..retention import Expired, expired, expiries, goes_with_its_run, names, with_dependents
from .counts import BLOCK_BYTES, BLOCKS, DEPENDENT, LATEST, PASSING
from .folders import TASK_FOLDERS
from .records import Record
from .tasks import Changes
from .upkeep import Upkeep

_STEP_S = 0.003  # that a step looks, and then it removes what it has found
_CLOCK_EVERY = 64  # names, after which it looks at the clock
_READ = 50  # files of tasks that a step reads at most


class Retention(Upkeep):
    """Removes what is not wanted any more."""

    def _remove(self, ids: Sequence[int]) -> dict[int, int]:
        with self._tasks.locked():
            needed = self._tasks.needed_by_unfinished()
            return self._commit_removal(
                record
                for record in self._tasks.records(ids)
                if record.task.status in FINISHED and record.task.id not in needed
            )

    def _commit_removal(self, records: Iterator[Record]) -> dict[int, int]:
        changes = Changes()
        for record in records:
            changes.change(record, record.removed())
        self._tasks.commit(0, changes)
        return {number: record.task.attempts for number, record in changes.old.items()}

    def results_of(self, function: str, queue: str | None = None) -> tuple[list[int], list[int]]:
        calls, others, after = set[int](), set[int](), dict[int, tuple[int, ...]]()
        with self._tasks.locked():
            for record in self._tasks.all():
                task = record.task
                after[task.id] = task.after
                if task.status in FINISHED:
                    is_meant = names(function, task.func_path) and queue in (None, task.queue)
                    (calls if is_meant else others).add(task.id)
        dependents = with_dependents(calls, after) & others
        return sorted(calls, reverse=True), sorted(dependents, reverse=True)

    def _expire(self, now: int, owner: int) -> Iterator[tuple[int, dict[int, int]]]:
        going = expired(self.runs(), now)
        if not going.before:
            return
        needed = self._tasks.needed = set[int]()  # from now on it is kept; what was there before is collected here
        used = set[int]()  # runs that still have tasks
        try:
            with self._tasks.locked():
                unfinished = self._tasks.linked(Status.PENDING, Status.RUNNING)
            while unfinished:
                some, unfinished = unfinished[:_READ], unfinished[_READ:]
                with self._tasks.locked():
                    for record in self._tasks.records(some):
                        needed.update(record.task.after)
                        used.add(record.task.run)
                yield len(some), {}
            numbers, looked_at = self._tasks.folders.scan(), 1
            while looked_at:
                with self._tasks.locked():
                    if self._tasks.needed is not needed:
                        return  # it is not certain any more what is needed: the next one begins anew
                    looked_at, found = self._look(numbers, max(going.before.values()))
                    still = self._still_expired(going)
                    removed = self._commit_removal(
                        record for record in found if _goes(record, still) and record.task.id not in needed
                    )
                    used.update(record.task.run for record in found if record.task.id not in removed)
                yield looked_at, removed
            with self._tasks.locked():
                newest = max(self._tasks.folders.numbers("runs"), default=0)
                for run in self._still_expired(going).keys() - used - {newest}:
                    (self.path / "runs" / f"{run}.json").unlink(missing_ok=True)
                    self._taken_path(run).unlink(missing_ok=True)
        finally:
            if self._tasks.needed is needed:
                self._tasks.needed = None

    def _look(self, numbers: Iterator[int], youngest: int) -> tuple[int, list[Record]]:
        """Read the next tasks that are old enough; return how many were looked at, which is 0 at the end, and those."""
        found: list[Record] = []
        until = time.perf_counter() + _STEP_S
        looked_at = 0
        for looked_at, number in enumerate(numbers, 1):
            if time_of(number) < youngest and (record := self._tasks.load(number)) is not None:
                found.append(record)
            if len(found) >= _READ or (looked_at % _CLOCK_EVERY == 0 and time.perf_counter() > until):
                break
        return looked_at, found

    def _still_expired(self, going: Expired) -> dict[int, int]:
        """Return what goes of which runs, but for those that a run has continued since they were looked at."""
        newer = [id for id in self._tasks.folders.numbers("runs") if id > going.newest]
        return going.still(run["continues"] for run in self._read_runs(newer).values())

    def usage(self) -> Usage:
        with self._tasks.locked():
            runs = self.runs()
            at, ttl = expiries(runs), {run.id: run.result_ttl or 0 for run in runs}
            counts = self._tasks.counted()
            going: dict[int, int] = {}
            latest: dict[int, int] = {}
            for (_, run, _), row in counts.items():
                if run in at:
                    going[run] = going.get(run, 0) + row[PASSING]
                    latest[run] = max(latest.get(run, 0), row[LATEST])
            if any(row[DEPENDENT] for row in counts.values()):
                for record in self._tasks.records(self._tasks.needed_by_unfinished()):
                    task = record.task
                    if task.run in at and task.status in FINISHED and goes_with_its_run(task.key):
                        going[task.run] -= 1
            size = self._size(sum(row[BLOCKS] for row in counts.values()))
            first = self._tasks.folders.first()
            oldest = None if first is None else self._tasks.load(first)
        expiring = sorted((max(at[run], latest[run] + ttl[run]), many) for run, many in going.items() if many)
        return Usage(size, oldest.task.enqueued_at if oldest is not None else None, expiring)

    def _size(self, blocks: int) -> int:
        """Return how much the store takes, with so many blocks of tasks. Their links take nothing but their names."""
        size = blocks * BLOCK_BYTES
        with os.scandir(self.path) as entries:
            for entry in entries:
                is_of_tasks = entry.name in TASK_FOLDERS
                size += entry.stat(follow_symlinks=False).st_blocks * 512 if is_of_tasks else size_on_disk(Path(entry))
        return size


def _goes(record: Record, runs: dict[int, int]) -> bool:
    task = record.task
    return (
        task.status in FINISHED
        and task.run in runs
        and (task.finished_at or 0) < runs[task.run]
        and goes_with_its_run(task.key)
    )
