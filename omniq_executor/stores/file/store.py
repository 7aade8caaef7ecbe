"""The file store: a folder in which every task is a JSON file that anybody can read.

    ROOT/omniq.json    says that this is a store, and of which version
    ROOT/turn.lock     the lock that each turn holds (filelock)
    ROOT/journal       what makes a turn one transaction, see journal.py
    ROOT/order         in which order tasks are claimed, see ready_index.py
    ROOT/tasks/ ...    see folders.py
    ROOT/runs/N.json   the runs, and in sessions/ the processes that have begun some and live
    ROOT/owners/       a file, a lock and a notification pipe for each owner, see owners.py
    ROOT/output/       what calls wrote, see output.py
    ROOT/values/       large arguments and results, see ../values.py
    ROOT/reserve       some space, see reserve.py

tasks.py has what is committed and how it is changed; the verbs are in turns.py, runs.py, upkeep.py and retention.py,
by what they are about, and those that only look are here.
"""

import itertools
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Literal

from ...model.options import MEMO
from ...model.schema import USUAL
from ...model.task import FINISHED, FailedCall, Function, Status, Task
from ..base import PastCall, TaskState
from ..glances import Glance, Wanted
from ..retention import names, with_dependents
from .counts import TASKS, by_status
from .functions import Functions
from .glance import look
from .part import found, likeness_of
from .records import Record
from .retention import Retention
from .tasks import Tasks
from .turns import Turns

_FAILURES = 256  # that are read at a time


class FileStore(Turns, Retention):
    """See the module's docstring, and Store for the methods.

    `durability="process"` keeps what is acknowledged through the death of any process; "power"
    also through a cut of the machine's power, at one fsync a turn.
    """

    scheme = "file://"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durability: Literal["process", "power"] = "process",
        create: bool = True,
        importing: bool = False,
    ):
        super().__init__(path, durability, ("/owners", "/output", "/values", "/reserve"))
        self._tasks = Tasks(self.path, durability == "power", create, importing)
        self._functions = Functions(self._tasks.folders)
        self._resumable, self._resumable_functions, self._in_order = {}, {}, {}
        self._taken, self._contexts = {}, {}

    def close(self) -> None:
        self._tasks.close()

    # looking

    def function(self, digest: bytes) -> Function:
        found = self._functions.known.get(digest)
        if found is None:
            with self._tasks.locked():
                found = self._functions.read(digest)
        return found

    def calls(self, runs: Collection[int]) -> list[PastCall]:
        with self._tasks.locked():
            return [_past_call(record) for record in self._tasks.all() if record.task.run in runs]

    def states(self, ids: Iterable[int]) -> list[TaskState]:
        with self._tasks.locked():
            return list(map(found, self._tasks.records(ids)))

    def dependents(self, ids: Collection[int]) -> set[int]:
        with self._tasks.locked():
            unfinished = self._tasks.all(Status.PENDING, Status.RUNNING)
            return with_dependents(ids, {record.task.id: record.task.after for record in unfinished}).difference(ids)

    def by_key(self, queue: str, key: str) -> TaskState | None:
        with self._tasks.locked():
            record = self._tasks.by_key(queue, key)
            return None if record is None else found(record)

    def _glance(self, wanted: Wanted) -> Glance:
        return look(self.path, wanted)

    def counts(self) -> dict[str, dict[Status, int]]:
        with self._tasks.locked():
            return by_status(self._tasks.counted())

    def unfinished(self) -> dict[int, int]:
        found: dict[int, int] = {}
        with self._tasks.locked():
            for (_, run, status), row in self._tasks.counted().items():
                if status not in FINISHED:
                    found[run] = found.get(run, 0) + row[TASKS]
        return found

    def find(
        self,
        status: Status | None = None,
        queue: str | None = None,
        tags: Sequence[str] | None = None,
        limit: int | None = None,
        function: str | None = None,
        *,
        name: str | None = None,
        run: int | None = None,
        since: int | None = None,
    ) -> list[Task]:
        with self._tasks.locked():
            matching = (
                record
                for record in self._tasks.all(*(() if status is None else (status,)), newest_first=True)
                if queue in (None, (task := record.task).queue)
                and function in (None, task.func_path)
                and (name is None or names(name, task.func_path))
                and run in (None, task.run)
                and (since is None or (task.finished_at or task.started_at or task.enqueued_at) > since)
                and set(tags or ()) <= set((task.options or USUAL).tags)
            )
            return list(map(self._task, itertools.islice(matching, limit)))[::-1]

    def failures(self, queue: str | None = None) -> Iterator[FailedCall]:
        with self._tasks.locked():
            numbers = sorted(self._tasks.linked(Status.FAILED))
        for first in range(0, len(numbers), _FAILURES):
            with self._tasks.locked():
                tasks = [record.task for record in self._tasks.records(numbers[first : first + _FAILURES])]
            for task in tasks:
                if task.status is Status.FAILED and task.error is not None and queue in (None, task.queue):
                    error = task.error._replace(pickle=None)
                    yield FailedCall(task.id, task.run, task.queue, task.func_path, task.finished_at or 0, error)


def _past_call(record: Record) -> PastCall:
    task, is_memo = record.task, (record.task.key or "").startswith(MEMO)
    return PastCall(
        task.id, task.run, record.digest, likeness_of(record), task.status, task.enqueued_at, task.finished_at, is_memo
    )
