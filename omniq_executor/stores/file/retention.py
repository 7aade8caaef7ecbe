"""What a file store keeps for how long. See ../retention.py, and store.py.

An expiry looks at the names of the tasks, a few at a time. A name tells when its task was added, so the file of one
that is too young to go is not read. What unfinished tasks come after is collected first, and then kept by what is
committed (see Tasks.needed).
"""

import time
from collections.abc import Iterator, Sequence

from ...model.ids import time_of
from ...model.task import FINISHED, Status
from ..base import Usage
from ..reserve import size_on_disk
from ..retention import Expired, expired, expiries, goes_with_its_run, names, with_dependents
from .folders import STATUS_FOLDERS, WAITING
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
                folders = (STATUS_FOLDERS[Status.PENDING], WAITING, STATUS_FOLDERS[Status.RUNNING])
                unfinished = [number for folder in folders for number in self._tasks.folders.names(folder)]
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
            going: dict[int, list[int]] = {}
            records = list(self._tasks.all())
        needed = {number for record in records if record.task.status not in FINISHED for number in record.task.after}
        for record in records:
            task = record.task
            if task.run in at and task.status in FINISHED and goes_with_its_run(task.key) and task.id not in needed:
                going.setdefault(task.run, []).append(task.finished_at or 0)
        expiring = sorted((max(at[run], max(ends) + ttl[run]), len(ends)) for run, ends in going.items())
        oldest = records[0].task.enqueued_at if records else None
        return Usage(size_on_disk(self.path), oldest, expiring)


def _goes(record: Record, runs: dict[int, int]) -> bool:
    task = record.task
    return (
        task.status in FINISHED
        and task.run in runs
        and (task.finished_at or 0) < runs[task.run]
        and goes_with_its_run(task.key)
    )
