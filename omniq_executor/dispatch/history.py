"""What runs took over and what they ran, and why, from what is stored: also of those that were killed.

A run is known by its record, its tasks by the run that they are of, and what it has taken over by a note. A task that
a later run takes over unfinished is of that one from then on; the note says of which it was. The rest is derived: a
task that is new in its run was not there before, or with other arguments, or under other code.
"""

import functools
from collections import Counter
from collections.abc import Collection, Iterable
from operator import attrgetter
from typing import NamedTuple

from ..code.parts import changes
from ..code.run_context import context_changes
from ..errors import FunctionLost, TaskNotFound
from ..model.failures import FailedCall, Failures, Retry, groups_of
from ..model.preview import shown_arguments
from ..model.reasons import Reason, Resumed, Why, taken_over
from ..model.task import Function, Status
from ..stores.base import PastCall, RunRecord, Store, Taken

FIRST = Why(Reason.AFRESH, "it is the first of its queue")


class History:
    """What a store tells of its runs, as it is now."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.runs = {run.id: run for run in store.runs()}
        self._functions: dict[bytes, Function] = {}
        self._by_run: dict[int, list[PastCall]] | None = None  # all calls, if they are read already

    def each(self, queue: str | None = None) -> list["RunHistory"]:
        """Return what each run had, oldest first, or each one of a queue."""
        self._by_run = {}
        for call in self._store.calls(self.runs):
            self._by_run.setdefault(call.run, []).append(call)
        return [self.of(run.id) for run in self.runs.values() if queue in (None, run.queue)]

    @functools.cached_property
    def _taken(self) -> list[Taken]:
        return self._store.taken()

    def run(self, id: int) -> RunRecord:
        """Return the record of a run. Raises TaskNotFound if there is none."""
        if id not in self.runs:
            raise TaskNotFound(f"{self._store.address} holds no run {id}; `omniq-executor runs` shows what it holds")
        return self.runs[id]

    def function(self, digest: bytes) -> Function:
        """Return a function, or one without a name if it is lost."""
        if digest not in self._functions:
            try:
                self._functions[digest] = self._store.function(digest)
            except FunctionLost:
                self._functions[digest] = Function(digest, "?", b"")
        return self._functions[digest]

    def of(self, id: int) -> "RunHistory":
        """Return what one run had. Raises TaskNotFound if there is none of that id."""
        run = self.run(id)
        taken = [it for it in self._taken if it.run == id]
        later = [it for it in self._taken if it.run > id]
        calls = self._calls_of({id, *run.continues, *(it.run for it in later)})
        was_of = _runs_at_end(calls, later)
        mine = {it.task for it in taken}
        return RunHistory(
            self,
            run,
            taken,
            [it for it in calls if was_of[it.id] == id or it.id in mine],
            [it for it in calls if was_of[it.id] in run.continues and it.id not in mine],
        )

    def _calls_of(self, runs: Collection[int]) -> list[PastCall]:
        if self._by_run is None:
            return self._store.calls(runs)
        return sorted((call for run in runs for call in self._by_run.get(run, ())), key=attrgetter("id"))

    def fresh(self, run: RunRecord) -> Why:
        """Return why the calls of a run that continues none were run."""
        before = [it for it in self.runs.values() if it.queue == run.queue and it.id < run.id]
        if not before:
            return FIRST
        alike = [it for it in before if it.context == run.context]
        others = [it for it in before if it.id > max((it.id for it in alike), default=0) and _is_broken(it)]
        if others:
            return Why(Reason.CONTEXT, context_changes(others[-1].context, run.context))
        if alike and _is_broken(alike[-1]):
            return Why(Reason.AFRESH, "what did not end clean is at work still, too old, or not to be resumed")
        return Why(Reason.AFRESH, "the last one ended clean")


def _is_broken(run: RunRecord) -> bool:
    return run.clean is False or run.ended_at is None


def _runs_at_end(calls: Iterable[PastCall], later: Iterable[Taken]) -> dict[int, int]:
    """Return of each task the run that it was of at the end of a run, given what later runs have taken over."""
    was_of = {call.id: call.run for call in calls}
    for taken in sorted(later, reverse=True):  # the earliest has the last word
        was_of[taken.task] = taken.origin
    return was_of


class RunHistory(NamedTuple):
    """What one run had."""

    history: History
    record: RunRecord
    taken: list[Taken]
    calls: list[PastCall]  # of the run, and those that it took over
    left: list[PastCall]  # of the runs that it continues, which it did not take over

    def reasons(self) -> dict[int, Why]:
        """Return by task why it was run, or was not, in this run."""
        found = {it.task: taken_over(it.status) for it in self.taken}
        own = [call for call in self.calls if call.id not in found]
        if not self.record.continues:
            return found | dict.fromkeys((call.id for call in own), self.history.fresh(self.record))
        function = self.history.function
        digests = {call.digest for call in own}
        others: dict[tuple[str, str | bytes], bytes] = {}  # the newest code, by path and likeness
        before = [*self.left, *(call for call in self.calls if call.id in found)]
        paths = {function(call.digest).path for call in before}
        for call in self.left:
            if call.digest not in digests and call.status is not Status.CANCELLED:
                others[function(call.digest).path, call.likeness] = call.digest
        changed: dict[tuple[bytes, bytes], str] = {}
        for call in own:
            of = function(call.digest)
            older = others.get((of.path, call.likeness))
            if older is None:
                found[call.id] = Why(Reason.ARGUMENTS if of.path in paths else Reason.FUNCTION)
                continue
            pair = older, call.digest
            if pair not in changed:
                changed[pair] = changes(of.path, function(older).parts, of.parts)
            found[call.id] = Why(Reason.CODE, changed[pair])
        return found

    def resumed(self) -> Resumed:
        """Return how many calls had which reason."""
        record, function = self.record, self.history.function
        left = sum(call.status is not Status.CANCELLED for call in self.left)
        resumed = Resumed(record.queue, record.id, record.continues, left + len(self.taken))
        reasons = self.reasons()
        for call in self.calls:
            resumed.add(function(call.digest).path, reasons[call.id])
        if not record.continues:
            resumed.fresh = self.history.fresh(record)
        return resumed

    def functions(self) -> dict[str, list[Function]]:
        """Return the functions of its calls by path, of which several may have one path."""
        found: dict[str, list[Function]] = {}
        for digest in dict.fromkeys(call.digest for call in self.calls):
            found.setdefault(self.history.function(digest).path, []).append(self.history.function(digest))
        return found


class Difference(NamedTuple):
    """What two runs do not have in common."""

    functions: list[tuple[str, str]]  # the path of a function whose code differs, and in what
    only: tuple[list[int], list[int]]  # tasks of calls that only the first had, and only the second


def difference(first: RunHistory, second: RunHistory) -> Difference:
    """Return what differs between two runs. A call is the same if its function's path and its arguments are."""
    before, after = first.functions(), second.functions()
    changed = []
    for path in sorted(before.keys() & after.keys()):
        old, new = before[path], after[path]
        gone = [it for it in old if it not in new]
        came = [it for it in new if it not in old]
        if gone and came:
            changed.append((path, changes(path, gone[-1].parts, came[-1].parts)))
    left, right = (_by_call(of) for of in (first, second))
    return Difference(changed, (_only(left, right), _only(right, left)))


def _by_call(run: RunHistory) -> dict[tuple[str, str | bytes], list[int]]:
    found: dict[tuple[str, str | bytes], list[int]] = {}
    for call in run.calls:
        found.setdefault((run.history.function(call.digest).path, call.likeness), []).append(call.id)
    return found


def _only(
    these: dict[tuple[str, str | bytes], list[int]], others: dict[tuple[str, str | bytes], list[int]]
) -> list[int]:
    """Return the tasks of calls that the others have not, or not as often."""
    counts: Counter[tuple[str, str | bytes]] = Counter({call: len(ids) for call, ids in others.items()})
    return sorted(id for call, ids in these.items() for id in ids[counts[call] :])


def why(store: Store, id: int) -> Why:
    """Return why a task was run in the run that it is of. Raises TaskNotFound if there is no such task."""
    task, history = store.get(id), History(store)
    if task.run not in history.runs:
        return Why(Reason.AFRESH, "it is of no run")
    record = history.run(task.run)
    return history.of(record.id).reasons()[id] if record.continues else history.fresh(record)


def failures_of(store: Store, calls: Iterable[FailedCall], retry: Retry | None = None) -> Failures:
    """Return calls that failed in groups. Where the worker could not say an example's arguments, the store does."""
    failures = groups_of(calls, retry)
    told_by_none = {group.example.id: group for group in failures if not group.example.error.call}
    for row in store.stored([*told_by_none]):
        group, task = told_by_none[row.task.id], row.task
        call = f"{task.func_path} {shown_arguments(task.args, task.kwargs)}"
        group.example = group.example._replace(error=group.example.error._replace(call=call))
    return failures
