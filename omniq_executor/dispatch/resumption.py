"""What this run takes over: for a new call the task of its key, or the one that an earlier run left; and leftovers."""

import logging
from collections.abc import Sequence

from ..errors import KeyConflict
from ..model.functions import same_arguments
from ..model.preview import shown_arguments
from ..model.task import Call, Function, Status
from ..stores.base import Run, Store, TaskState, now
from .reuse import is_memo
from .waiters import Waiters

_log = logging.getLogger("omniq_executor")


class Resumption:
    """See the module's docstring. Called under the dispatcher's lock."""

    def __init__(self, store: Store, run: Run, runs_leftovers: bool, repeats: bool) -> None:
        self.has_retried = False
        """Whether tasks became PENDING again, which others are to be told of, since whoever unsets this last looked."""
        self.foreign: set[int] = set()
        """Tasks that are waited for here and may be for nobody else to run."""
        self.may_adopt = runs_leftovers
        """Whether there may be something to adopt."""
        self.had: dict[bytes, int] | None = {} if repeats else None
        """The tasks of the calls that this run has had, by their names (see reuse.py), if they are run once each."""
        self._store = store
        self._run = run
        self._said = False  # that a run is continued
        self._runs_leftovers = runs_leftovers

    def find(self, function: Function, call: Call, key: str | None) -> TaskState | None:
        """Return the task that a new call is, or None. Raises KeyConflict if its key is another call's."""
        if key is not None and is_memo(key):
            return self.by_memo(key)
        if key is not None and (found := self.by_key(function, call, key)) is not None:
            return found
        return self.find_each(function, [call])[0] if self._run.continues else None

    def by_key(self, function: Function, call: Call, key: str) -> TaskState | None:
        """Return the task that has the key, or None. Raises KeyConflict if it is another call."""
        queue = self._run.queue
        found = self._store.by_key(queue, key)
        stored = self._store.stored([found.id]) if found is not None else []
        if found is None or not stored:  # it was purged in between
            return None
        task, _, identity = stored[0]
        if task.func_path != function.path:
            raise KeyConflict(
                f"the key {key!r} of the queue {queue!r} is of a call of {task.func_path}, {task.task_id},"
                f" and cannot be of one of {function.path} as well"
            )
        if not same_arguments(task, identity, call):
            raise KeyConflict(
                f"the key {key!r} of the queue {queue!r} is of {task.func_path} with the arguments"
                f" {shown_arguments(task.args, task.kwargs)}, {task.task_id}, and cannot be of one with"
                f" {shown_arguments(call.args, call.kwargs)} as well"
            )
        if found.status is Status.FAILED and task.run != self._run.id and self._store.retry([found.id], now()):
            self.has_retried = True
            return found._replace(status=Status.PENDING, error=None)
        return found

    def by_memo(self, key: str) -> TaskState | None:
        """Return the task of a call with memo=True, to be run again if it is no good; None if there is none."""
        found = self._store.by_key(self._run.queue, key)
        return None if found is None else self._runnable(found)

    def find_once(self, had: dict[bytes, int], function: Function, calls: dict[bytes, Call]) -> dict[bytes, TaskState]:
        """Return the tasks of those of these calls that this run has had, or takes over now, all by their names."""
        ids = {name: had[name] for name in calls if name in had}
        states = {found.id: found for found in self._store.states(ids.values())} if ids else {}
        runnable = {name: self._runnable(states[id]) for name, id in ids.items() if id in states}
        known = {name: found for name, found in runnable.items() if found is not None}  # others were removed
        left = [name for name in calls if name not in known]
        if left and self._run.continues:
            taken = self.find_each(function, [calls[name] for name in left])
            known |= {name: found for name, found in zip(left, taken, strict=True) if found is not None}
            had |= {name: known[name].id for name in left if name in known}
        return known

    def _runnable(self, found: TaskState) -> TaskState | None:
        """Return where a task stands whose call is made again: one that failed, or was cancelled, is PENDING."""
        if found.status not in (Status.FAILED, Status.CANCELLED):
            return found
        if self._store.retry([found.id], now()):
            self.has_retried = True
            return found._replace(status=Status.PENDING, error=None)
        return next(iter(self._store.states([found.id])), None)  # somebody else was faster

    def find_each(self, function: Function, calls: Sequence[Call]) -> list[TaskState | None]:
        """Return for each call the task that it continues, as Store.take_over() has them."""
        run = self._run
        found = self._store.take_over(run, function, calls, now())
        if any(known is not None for known in found) and not self._said:
            self._said = True
            _log.warning(
                "queue %r: continuing a run that did not end clean: %d of %d calls are done (run %s)",
                run.queue, run.done, run.total, ", ".join(map(str, run.continues)),
            )  # fmt: skip
        if any(known is not None and known.status is Status.PENDING for known in found):
            self.has_retried = True  # what had failed is PENDING again, and may be for workers elsewhere
        return found

    def expect(self) -> None:
        """Take note that others may have left something, or are gone."""
        self.may_adopt = self._runs_leftovers or bool(self.foreign)

    def adopt(self, waiters: Waiters, runs_calls: bool) -> None:
        """Have this run be of what is waited for, or lies about, and nobody else would run. Raises StoreError."""
        self.foreign = {id for id in self.foreign if id in waiters}
        if self._runs_leftovers:
            self._store.adopt(self._run, None, now())
        if self.foreign and runs_calls:
            self._store.adopt(self._run, self.foreign, now())
        self.may_adopt = False
