"""What the parts of the file store have in common. See store.py."""

from collections import defaultdict, deque

from ...model.task import Call, Task
from ..base import Store, TaskState
from .functions import Functions
from .records import Record
from .tasks import Tasks


class OfFiles(Store):
    """What the parts of the file store have in common; each part is a class that has the verbs of one kind."""

    _tasks: Tasks
    _functions: Functions
    _resumable: dict[int, defaultdict[tuple[bytes, str | bytes], deque[int]]]  # by run, see begin_run()
    _resumable_functions: dict[int, defaultdict[str, set[bytes]]]  # likewise, the digests by path
    _in_order: dict[int, dict[bytes, list[tuple[int, str | bytes]]]]  # likewise, by digest the ids and likenesses
    _taken: dict[tuple[int, ...], tuple[dict[int, int], set[int]]]  # by runs, how much of each file was read, and tasks
    _contexts: dict[int, str]  # by run, of those that were asked for: they do not change

    def _check_open(self) -> None:
        self._tasks.check_open()

    def context_of(self, run: int) -> str:
        """Return the context of a run."""
        if run not in self._contexts:
            about = self._tasks.folders.read_json("runs", f"{run}.json") if run else None
            self._contexts[run] = str((about or {}).get("context", ""))
        return self._contexts[run]

    def _task(self, record: Record) -> Task:
        return record.task._replace(func=self.function(record.digest).pickle)


def likeness_of(record: Record) -> str | bytes:
    """Return what a call has in common with equal ones, see Call."""
    return Call(record.task.args, record.task.kwargs, record.identity).likeness


def found(record: Record) -> TaskState:
    """Return where a task stands."""
    task = record.task
    return TaskState(task.id, task.status, task.owner, task.result, task.error)
