"""Which tasks of a file store wait for which, as one process knows it: what is in `waiting/`, and what changes there.

It is read once, when the first task ends, and then kept by what is committed. Where no task waits it is empty.
"""

from collections.abc import Callable, Collection

from ...model.task import FINISHED, Task, is_waiting


class DependencyIndex:
    """See the module's docstring. Every method is called under the store's lock."""

    def __init__(self) -> None:
        self._waiters: dict[int, set[int]] = {}  # by task: those of the tasks it comes after that are not finished
        self._needed_by: dict[int, set[int]] = {}  # by task: those that wait and come after it

    def take_in(self, task: Task, is_finished: Callable[[int], bool]) -> None:
        """Take in a task as it is committed."""
        for other in self._needed_by.get(task.id, ()):
            if task.status in FINISHED:
                self._waiters[other].discard(task.id)
            else:  # it may have been retried
                self._waiters[other].add(task.id)
        self._drop(task)
        if task.options is not None and is_waiting(task):
            self._waiters[task.id] = {number for number in task.options.after if not is_finished(number)}
            for number in task.options.after:
                self._needed_by.setdefault(number, set()).add(task.id)

    def knows(self, number: int) -> bool:
        """Return whether a task waits, or another one for it."""
        return number in self._waiters or number in self._needed_by

    def _drop(self, task: Task) -> None:
        if self._waiters.pop(task.id, None) is None or task.options is None:
            return
        for number in task.options.after:
            self._needed_by[number].discard(task.id)
            if not self._needed_by[number]:
                del self._needed_by[number]

    def waiting_for(self, finished: Collection[int]) -> list[int]:
        """Return the tasks that wait for some of these, and for nothing else."""
        if not self._waiters:
            return []
        found = {other for number in finished for other in self._needed_by.get(number, ())}
        return sorted(other for other in found if self._waiters[other].issubset(finished))
