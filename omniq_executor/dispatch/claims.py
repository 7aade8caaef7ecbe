"""What this owner has claimed, from the commit of each claim to the commit of its end.

    claimed --give()--> queue --> engine --take_reports()--> reports --ends()--> commit --end()-->
                          ^         |
                          '---------'  RETURNED

What is to be committed (reports, releases) is kept here until it is. So is what the store could not be asked for when
a claim was to be given.
"""

import logging
from collections.abc import Callable, Sequence

from ..engines.base import RETURNED, Engine, Report
from ..errors import StoreError
from ..model import dependencies
from ..model.task import MOST_OWNER_DEATHS, Event
from ..stores.base import Claimed, Outcome, Store
from .queue import DispatchQueue
from .results import ORPHANED, UNMET, ClaimEnds, claim_ends_of

_log = logging.getLogger("omniq_executor")


class Claims:
    """See the module's docstring. Called under the dispatcher's lock."""

    def __init__(self, store: Store, engine: Engine, crash_retries: int, new_id: Callable[[], int]) -> None:
        self.queue = DispatchQueue(store, engine)
        self.reports: list[Report] = []
        """What became of calls, not committed yet."""
        self.releases: dict[int, int] = {}
        """Tasks that go back unstarted, by id, with their attempts; likewise."""
        self.unread: list[Claimed] = []
        """Claimed tasks for which the store could not be read; it is tried again with the next turn."""
        self._special: dict[int, Claimed] = {}  # whose end is not that of any other: they crashed, or have options
        self._store = store
        self._engine = engine
        self._crash_retries = crash_retries
        self._new_id = new_id  # for next occurrences

    def held(self) -> set[int]:
        """Return the ids of what waits for a worker, or is with one."""
        return self.queue.ids().union(self._engine.held())

    def are_suspects_only(self) -> bool:
        """Return whether an owner has died in each of the tasks that workers have."""
        return all(id in self._special and self._special[id].owner_deaths for id in self._engine.held())

    # on the way to the engine

    def give(self, claimed: Sequence[Claimed]) -> None:
        """Give tasks to the workers, or have them wait, with those that were unread before.

        What is not to be run is reported, and what is too much released. Nothing fails: those for which the store
        cannot be read are unread again.
        """
        for task in claimed:
            if task.crashes or task.owner_deaths or task.options is not None:
                self._special[task.id] = task
        claimed = [*self.unread, *claimed] if self.unread else claimed
        self.unread = []
        if self._special:
            claimed = self._bound(self._without_deadly(claimed))
        unread, too_many = self.queue.give_claimed(claimed)
        self.unread += unread
        self.releases |= {task.id: task.attempt for task in too_many}

    def _without_deadly(self, claimed: Sequence[Claimed]) -> list[Claimed]:
        """Return those that have not killed their owners too often."""
        for task in claimed:
            if task.owner_deaths >= MOST_OWNER_DEATHS:
                self.reports.append(Report(ORPHANED, [task.id], [task.attempt], task.owner_deaths))
        return [task for task in claimed if task.owner_deaths < MOST_OWNER_DEATHS]

    def _bound(self, claimed: Sequence[Claimed]) -> list[Claimed]:
        """Return the tasks with the results that they are given, less those for which there are none."""
        needed = {id for task in claimed for id in _after(task)}
        try:
            states = {found.id: found for found in self._store.states(needed)} if needed else {}
        except StoreError as error:
            _log.error("%s; results that calls are given are read again later", error)
            self.unread = [task for task in claimed if _after(task)]
            return [task for task in claimed if not _after(task)]
        there = {
            found.id: dependencies.for_workers(found.result, lambda: self._store.values, self._engine.snapshot)
            for found in states.values()
            if found.result is not None
        }
        ready: list[Claimed] = []
        for task in claimed:
            after = {id: states.get(id) for id in _after(task)}
            results = {id: there[id] for id in after if id in there}
            if not after:
                ready.append(task)
            elif len(results) == len(after):
                ready.append(task._replace(args=dependencies.bind(task.args, task.kwargs, results), kwargs=None))
            else:
                self.reports.append(Report(UNMET, [task.id], [task.attempt], after))
        return ready

    # and back

    def take_reports(self) -> None:
        """Take over what the engine reports; a part that came back is with us again, whatever else happens."""
        for report in self._engine.reports:
            if report.kind == RETURNED:
                self.queue.hold(report.payload)
            else:
                self.reports.append(report)
        self._engine.reports.clear()

    def recall(self, ids: set[int]) -> dict[int, int]:
        """Take back those of the tasks that have not started, and return their attempts by id."""
        self._engine.recall(ids)
        self.take_reports()
        return self.queue.take_out(ids)

    def release_queued(self) -> None:
        """Have everything go back that waits for a worker."""
        self.releases |= self.queue.take_out()
        self.releases |= {task.id: task.attempt for task in self.unread}
        self.unread = []

    def released(self) -> list[Outcome]:
        """Return the ends of what goes back."""
        return [Outcome(id, attempt, Event.RELEASE) for id, attempt in self.releases.items()]

    def ends(self, now: int) -> ClaimEnds:
        """Return what is to be committed."""
        ends = claim_ends_of(self.reports, self._special, self._crash_retries, now, self._new_id)
        if self.releases:
            ends.outcomes.extend(self.released())
        return ends

    def end(self, resolutions: Sequence[tuple[Sequence[int], object]]) -> None:
        """Forget what was to be committed, as it is."""
        self.reports.clear()
        self.releases.clear()
        if self._special:
            for ids, _ in resolutions:
                for id in ids:
                    self._special.pop(id, None)


def _after(task: Claimed) -> tuple[int, ...]:
    """Return the tasks whose results it is given."""
    return () if task.options is None else task.options.after
