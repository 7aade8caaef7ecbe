"""Tasks that were claimed here, on their way to the queue: which can be run, and with which results of others."""

import logging
from collections.abc import Sequence

from ..engines.base import Report
from ..errors import StoreError
from ..model import dependencies
from ..model.task import MOST_OWNER_DEATHS
from ..stores.base import Claimed, Store
from .results import ORPHANED, UNMET

_log = logging.getLogger("omniq_executor")


class Claims:
    """See the module's docstring. Called under the dispatcher's lock."""

    def __init__(self, store: Store) -> None:
        self.special: dict[int, Claimed] = {}
        """Claimed tasks, by id, whose end is not that of any other: they crashed before, or have options."""
        self.unread: list[Claimed] = []
        """Claimed tasks for which the store could not be read; it is tried again with the next turn."""
        self.reports: list[Report] = []
        """What became of those that are not run, for the next turn to commit."""
        self._store = store

    def note(self, claimed: Sequence[Claimed]) -> None:
        """Remember what their ends will depend on."""
        for task in claimed:
            if task.crashes or task.owner_deaths or task.options is not None:
                self.special[task.id] = task

    def end(self, numbers: Sequence[int]) -> None:
        """Forget tasks whose end is committed."""
        for number in numbers:
            self.special.pop(number, None)

    def are_suspects(self, numbers: Sequence[int]) -> bool:
        """Return whether an owner has died in each of these tasks."""
        return all(number in self.special and self.special[number].owner_deaths for number in numbers)

    def ready(self, claimed: Sequence[Claimed]) -> Sequence[Claimed]:
        """Return those of the tasks that can be run, and of those unread before, with what they are given."""
        claimed = [*self.unread, *claimed] if self.unread else claimed
        self.unread = []
        if not self.special:
            return claimed
        return self._bound(self._without_deadly(claimed))

    def _without_deadly(self, claimed: Sequence[Claimed]) -> list[Claimed]:
        """Return those that have not killed their owners too often."""
        for task in claimed:
            if task.owner_deaths >= MOST_OWNER_DEATHS:
                self.reports.append(Report(ORPHANED, [task.id], [task.attempt], task.owner_deaths))
        return [task for task in claimed if task.owner_deaths < MOST_OWNER_DEATHS]

    def _bound(self, claimed: Sequence[Claimed]) -> list[Claimed]:
        """Return the tasks with the results that they are given, less those for which there are none."""
        needed = {number for task in claimed for number in _after(task)}
        try:
            states = {found.id: found for found in self._store.states(needed)} if needed else {}
        except StoreError as error:
            _log.error("%s; results that calls are given are read again later", error)
            self.unread = [task for task in claimed if _after(task)]
            return [task for task in claimed if not _after(task)]
        ready: list[Claimed] = []
        for task in claimed:
            after = {number: states.get(number) for number in _after(task)}
            results = {found.id: found.result for found in after.values() if found and found.result is not None}
            if not after:
                ready.append(task)
            elif len(results) == len(after):
                ready.append(task._replace(args=dependencies.bind(task.args, task.kwargs, results), kwargs=None))
            else:
                self.reports.append(Report(UNMET, [task.id], [task.attempt], after))
        return ready


def _after(task: Claimed) -> tuple[int, ...]:
    """Return the tasks whose results it is given."""
    return () if task.options is None else task.options.after
