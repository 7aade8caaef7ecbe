"""What runs took over and what they ran, and why, from what is stored: also of those that were killed.

A run is known by its record, its tasks by the run that they are of, and what it has taken over by a note. A task that
a later run takes over unfinished is of that one from then on; the note says of which it was. The rest is derived: a
task that is new in its run was not there before, or with other arguments, or under other code; or the run has had
that call before, see repeats.py.
"""

import functools
import math
from collections import Counter
from collections.abc import Collection, Iterable
from operator import attrgetter
from typing import NamedTuple

from ..code.parts import changes
from ..code.run_context import context_changes
from ..errors import FunctionLost, TaskNotFound
from ..model.failures import Failures, Retry, groups_of
from ..model.preview import shown_arguments
from ..model.reasons import Reason, Resumed, Why, taken_over
from ..model.task import FailedCall, Function, Status
from ..stores.base import PastCall, RunRecord, Store, Taken
from ..stores.rules import beside
from .repeats import Repeats

_FIRST = Why(Reason.AFRESH, "it is the first of its queue")
_MOST_KEPT = 100_000  # reasons of calls


class History:
    """What a store tells of its runs, as it is now."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.runs = {run.id: run for run in store.runs()}
        self._lives = {run.id: (run.session, run.queue, run.context) for run in self.runs.values()}
        self._functions: dict[bytes, Function] = {}
        self._by_run: dict[int, list[PastCall]] | None = None  # all calls, if they are read already
        self._memos: dict[str, Memos] = {}  # by queue
        self._changes: dict[tuple[bytes, bytes], str] = {}

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

    def changed(self, older: bytes, newer: bytes) -> str:
        """Return in words what changed from one function to another of its path, by their digests."""
        pair = older, newer
        if pair not in self._changes:
            now = self.function(newer)
            self._changes[pair] = changes(now.path, self.function(older).parts, now.parts)
        return self._changes[pair]

    def know(self, function: Function) -> None:
        """Take note of a function that may not be stored yet."""
        self._functions.setdefault(function.digest, function)

    def memos(self, queue: str) -> "Memos":
        """Return what there is of the calls with memo=True of a queue, in all of its runs."""
        if queue not in self._memos:
            runs = [run.id for run in self.runs.values() if run.queue == queue]
            self._memos[queue] = Memos(self, [call for call in self._calls_of(runs) if call.is_memo])
        return self._memos[queue]

    def of(self, id: int) -> "RunHistory":
        """Return what one run had. Raises TaskNotFound if there is none of that id."""
        run = self.run(id)
        taken = [it for it in self._taken if it.run == id]
        later = [it for it in self._taken if it.run > id]
        calls = self._calls_of({id, *run.continues, *(it.run for it in later)})
        was_of = _runs_at_end(calls, later)
        mine = {it.task for it in taken}
        others = beside(id, self._lives, run.continues)
        theirs = {it.task for it in self._taken if it.run in others}
        return RunHistory(
            self,
            run,
            taken,
            [it for it in calls if was_of[it.id] == id or it.id in mine],
            [it for it in calls if was_of[it.id] in run.continues and it.id not in mine and it.id not in theirs],
        )

    def _calls_of(self, runs: Collection[int]) -> list[PastCall]:
        if self._by_run is None:
            return self._store.calls(runs)
        return sorted((call for run in runs for call in self._by_run.get(run, ())), key=attrgetter("id"))

    def fresh(self, run: RunRecord) -> Why:
        """Return why the calls of a run that continues none were run."""
        before = [it for it in self.runs.values() if it.queue == run.queue and it.id < run.id]
        if not before:
            return _FIRST
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
        return self.account().reasons

    def account(self) -> "Account":
        """Return the same, so that further calls can be judged."""
        account, taken = Account(self), {it.task: taken_over(it.status) for it in self.taken}
        for call in self.calls:
            if call.id in taken:
                account.take(call.digest, call.likeness, call)
                account.reasons[call.id] = taken[call.id]
            else:
                account.reasons[call.id] = account.judge(call.digest, call.likeness, call)
        return account

    def resumed(self) -> Resumed:
        """Return how many calls had which reason."""
        record, function = self.record, self.history.function
        left = sum(call.status is not Status.CANCELLED for call in self.left)
        resumed = Resumed(record.queue, record.id, record.continues, left + len(self.taken))
        reasons = self.reasons()
        for (digest, why), count in Counter((call.digest, reasons[call.id]) for call in self.calls).items():
            resumed.add(function(digest).path, why, count)
        if not record.continues:
            resumed.fresh = self.history.fresh(record)
        return resumed

    def functions(self) -> dict[str, list[Function]]:
        """Return the functions of its calls by path, of which several may have one path."""
        found: dict[str, list[Function]] = {}
        for digest in dict.fromkeys(call.digest for call in self.calls):
            found.setdefault(self.history.function(digest).path, []).append(self.history.function(digest))
        return found


class Memos:
    """Why calls with memo=True were run: the runs of a queue have them in common."""

    def __init__(self, history: History, calls: Iterable[PastCall]) -> None:
        self._history = history
        self._repeats: dict[str, Repeats] = {}  # by context, which tells calls apart as well
        self._latest: dict[tuple[bytes, str | bytes], str] = {}  # contexts, by what else tells calls apart
        self.reasons = {
            call.id: self.judge(history.runs[call.run].context, call.digest, call.likeness, call.enqueued_at)
            for call in calls
        }

    def judge(self, context: str, digest: bytes, likeness: str | bytes, at: float = math.inf) -> Why:
        """Return why the next call is run, if there is no equal one."""
        history, call = self._history, (digest, likeness)
        if context not in self._repeats:
            self._repeats[context] = Repeats(history.function, history.changed)
        why = self._repeats[context].add(digest, likeness, at)
        before, self._latest[call] = self._latest.get(call, context), context
        if why is None and before != context:
            return Why(Reason.CONTEXT, context_changes(before, context))
        return why or Why(Reason.ARGUMENTS)


class Account:
    """Why the calls of a run are run, in their order. With a call that is stored, what has become of it counts."""

    def __init__(self, run: RunHistory) -> None:
        self.reasons: dict[int, Why] = {}
        """By task, of what was there."""
        self.memos = functools.partial(run.history.memos, run.record.queue)
        self._function, self._changed = run.history.function, run.history.changed
        self._repeats = Repeats(self._function, self._changed)
        self._fresh = None if run.record.continues else run.history.fresh(run.record)
        self._digests: set[bytes] = set()  # of functions of this run, so that none is taken for an older one
        self._others: dict[tuple[str, str | bytes], list[bytes]] = {}  # what is left, by path and likeness
        for call in run.left:
            if call.status is not Status.CANCELLED:
                self._others.setdefault((self._function(call.digest).path, call.likeness), []).append(call.digest)
        taken = {it.task for it in run.taken if it.origin != run.record.id}
        before = {call.digest for call in [*run.left, *(call for call in run.calls if call.id in taken)]}
        self._paths = {self._function(digest).path for digest in before}

    def take(self, digest: bytes, likeness: str | bytes, call: PastCall | None = None) -> None:
        """Take in a call that is taken over."""
        self._repeats.add(digest, likeness, 0, _failed_at(call), is_new=False)

    def judge(self, digest: bytes, likeness: str | bytes, call: PastCall | None = None) -> Why:
        """Return why the next call that is not taken over is run."""
        if call is not None and call.is_memo:
            return self.memos().reasons[call.id]
        self._digests.add(digest)
        why = self._repeats.add(digest, likeness, math.inf if call is None else call.enqueued_at, _failed_at(call))
        if why is not None:
            return why
        if self._fresh is not None:
            return self._fresh
        path = self._function(digest).path
        others = [it for it in self._others.get((path, likeness), ()) if it not in self._digests]
        if others:
            return Why(Reason.CODE, self._changed(others[-1], digest))
        return Why(Reason.ARGUMENTS if path in self._paths else Reason.FUNCTION)


def _failed_at(call: PastCall | None) -> int | None:
    return call.finished_at if call is not None and call.status is Status.FAILED else None


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


def why_of(store: Store, id: int, known: dict[int, Why]) -> Why:
    """Return why a task was run in the run that it is of. Raises TaskNotFound if there is no such task.

    Who asks for one asks for its neighbours too: `known` has what was looked up last, and is filled.
    """
    if id in known:
        return known[id]
    task, history = store.get(id), History(store)
    if task.run not in history.runs:
        return Why(Reason.AFRESH, "it is of no run")
    run = history.of(task.run)
    reasons = run.reasons()
    known.clear()
    if len(reasons) <= _MOST_KEPT:  # not of what other runs have: it is told why that was run there
        known.update({call.id: reasons[call.id] for call in run.calls if call.run == task.run})
    return reasons[id]


def why_fresh(store: Store, run: int, is_never: bool) -> Why:
    """Return why a run continues no others; `is_never` if it was not to."""
    history = History(store)
    why = history.fresh(history.run(run))
    return Why(Reason.AFRESH, "resume='never'") if is_never and why != _FIRST else why


def resumed_by(store: Store, run: int) -> Resumed:
    """Return what a run has taken over, and why the rest was not, by what is stored."""
    return History(store).of(run).resumed()


def account_of(store: Store, run: int, function: Function, memo: bool) -> Account:
    """Return the account of a run so far, for further calls of a function that may not be stored yet."""
    history = History(store)
    history.know(function)
    account = history.of(run).account()
    if memo:
        account.memos()  # while the store is open
    return account


def failures_of(store: Store, calls: Iterable[FailedCall], retry: Retry | None = None) -> Failures:
    """Return calls that failed in groups. Where the worker could not say an example's arguments, the store does."""
    failures = groups_of(calls, retry)
    told_by_none = {group.example.id: group for group in failures if not group.example.error.call}
    for row in store.stored([*told_by_none]):
        group, task = told_by_none[row.task.id], row.task
        call = f"{task.func_path} {shown_arguments(task.args, task.kwargs)}"
        group.example = group.example._replace(error=group.example.error._replace(call=call))
    return failures
