"""What this run takes over, and why: for a new call the task of its key, or one that an earlier run left; leftovers."""

import copy
import logging
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..code.parts import changes
from ..code.run_context import context_changes
from ..errors import ContextChanged, FunctionChanged, FunctionLost, KeyConflict
from ..model.functions import same_arguments
from ..model.ids import Ids
from ..model.preview import shown_arguments
from ..model.reasons import REUSED, Reason, Resumed, Why, runs_text, taken_over
from ..model.task import FINISHED, Call, Function, Status, Task, format_id
from ..stores.base import ADDS, Resumable, Resume, Run, RunRecord, Store, TaskState, now
from ..stores.rules import initializer_of
from .ahead import Ahead, UnderWay
from .repeats import LOCAL
from .reuse import is_memo, memo_key, name_of
from .waiters import Waiters

if TYPE_CHECKING:
    from .history import Account

OnChange = Literal["rerun", "reuse", "raise"]

_log = logging.getLogger("omniq_executor")


class Look(NamedTuple):
    """What there is of a call: its task, if there is one, and why; None for a new call of a run that continues none."""

    found: TaskState | None
    why: Why | None


NOTHING = Look(None, None)
_EQUAL = Why(Reason.EQUAL)
_OF_KEY = Why(Reason.KEY)
_IS_DONE = taken_over(Status.COMPLETED)
_NO_EQUAL = Why(Reason.ARGUMENTS)
_MOST_JUDGED = 100_000  # calls of a run for which the store is asked at its end


class Foresight:
    """What calls that are foreseen leave to those after them."""

    def __init__(self) -> None:
        self.account: Account | None = None
        """Of the calls so far, where they may be such as the run has had before."""
        self.left: dict[str | bytes, list[Resumable]] = {}
        """By likeness, what could still be taken over."""
        self.names: set[bytes] = set()
        """Of the calls so far, where equal ones are run once."""


class Resumption:
    """See the module's docstring. Called under the dispatcher's lock."""

    def __init__(
        self,
        store: Store,
        run: Run,
        waiters: Waiters,
        runs_leftovers: bool,
        resume: Resume,
        on_change: OnChange = "rerun",
    ) -> None:
        self.run = run
        """This run, as one that continues others, or as one that continues itself, too."""
        self.has_retried = False
        """Whether tasks became PENDING again, which others are to be told of, since whoever unsets this last looked."""
        self.foreign: set[int] = set()
        """Tasks that are waited for here and may be for nobody else to run."""
        self._renewed: set[int] = set()  # those of them that were submitted here, by their keys
        self._needed: set[int] = set()  # tasks that nobody waits for here, but that calls of this run come after
        self._new_needs: set[int] = set()  # those of them that nobody has looked at
        self._refused: set[int] = set()  # what is not run here, see _refuse_other_contexts()
        self.ends_leftovers = runs_leftovers
        """Whether what is due of them is run before the end."""
        self.takes_all = False
        """Whether all calls that were looked for last were there, so that workers wait for none of them."""
        self._looks_anew = runs_leftovers  # at all that may be for nobody else to run
        self.resumed = Resumed(run.queue, run.id, run.continues, run.total)
        """What was taken over so far, and why the rest was not."""
        self._unjudged = 0  # calls that run, and only the store tells why; see asks_store
        self._code: dict[str, bytes] = {}  # the digest of a function by its path, of those with a name of their own
        self._edited: set[str] = set()  # paths of functions of which this run has had several
        self._waiters = waiters
        self._on_change = on_change
        self._digests: set[bytes] = set()  # of functions of this run, so that none is taken for an older one
        self._said_of: set[tuple[bytes, bytes]] = set()  # that the calls of the one function were taken for another
        self._changes: dict[tuple[bytes, bytes], str] = {}  # in words, from the one digest to the other
        self.had: dict[bytes, int] | None = {} if resume == "always" else None
        """The tasks of the calls that this run has had, by their names (see reuse.py), if they are run once each."""
        self._store = store
        self._goes_on = resume in ("crashed", "failed")
        self._ahead = Ahead(store)
        self._under_way = UnderWay(store, waiters)
        self._is_shared = False  # what there is to be taken over, with runs of this process that are open
        self._said = False  # that a run is continued
        self._again: set[int] = set()  # tasks that were found by their keys
        self._runs_leftovers = runs_leftovers

    def know(self, function: Function) -> None:
        """Take note of a function of which calls are submitted."""
        path, digest = function.path, function.digest
        if LOCAL not in path and self._code.setdefault(path, digest) != digest:
            self._edited.add(path)

    @property
    def asks_store(self) -> bool:
        """Whether only the store tells why some calls run; see `_may_repeat()`."""
        may_take_older = self._on_change == "reuse" and self.run.continues
        ended = self._waiters.failed or self._waiters.cancelled
        has_had = self._edited or ended or self.run.id in self.run.continues
        return bool(has_had or self._unjudged or may_take_older)

    def _may_repeat(self, path: str) -> bool:
        """Return whether calls of a function may run because of what became of calls that this run has had before.

        Then only the store tells why: of calls nothing is kept here, since there may be very many.
        """
        return path in self._edited or bool(self._waiters.failed) or self.run.id in self.run.continues

    def continue_own(self) -> None:
        """Have equal calls be given what this run has finished so far, each once: a cell that used it has failed."""
        if self._goes_on:
            self.note_given()
            self._ahead.forget()
            self.run = self._store.offer_again(self.run)
            self._under_way.begin()
            self.resumed.continue_own(self.run.continues, self.run.total)
            self._said = True  # what is continued is no earlier run, or it is told already

    def share(self, runs: Collection[int]) -> None:
        """Leave to runs of this process that are open beside this one what they take over. Raises StoreError."""
        self._is_shared = True
        self.note_given()  # so that the others see it
        self._ahead.forget()
        self.run = self.run._replace(beside=tuple({*self.run.beside, *runs}))

    def note_given(self) -> None:
        """Note what calls were given that was read ahead. Raises StoreError."""
        self._ahead.note(self.run)

    def find(self, function: Function, call: Call, key: str | None) -> Look:
        """Return the task that a new call is, if there is one.

        Raises KeyConflict if its key is another call's, and FunctionChanged as `find_each()`.
        """
        if key is not None and is_memo(key):
            return self.by_memo(function, key)
        if key is not None and (found := self.by_key(function, call, key)) is not None:
            self._note_again(function, found, _OF_KEY)
            return Look(found, _OF_KEY)
        if not self.run.continues:
            return NOTHING
        if (found := self._ahead.take(self.run, function, call)) is not None:
            self.resumed.add(function.path, _IS_DONE)
            return Look(found, _IS_DONE)
        look = self.find_each(function, [call])[0]
        if look.found is not None and not self._is_shared:
            self._ahead.read(self.run, function, look.found)
        return look

    def by_key(self, function: Function, call: Call, key: str) -> TaskState | None:
        """Return the task that has the key, or None. Raises KeyConflict if it is another call."""
        queue = self.run.queue
        found = self._store.by_key(queue, key)
        stored = self._store.stored([found.id]) if found is not None else []
        if found is None or not stored:  # it was purged in between
            return None
        task, identity = stored[0].task, stored[0].identity
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
        if found.status is Status.FAILED and task.run != self.run.id and self._store.retry([found.id], now()):
            self.has_retried = True
            found = found._replace(status=Status.PENDING, error=None)
        if found.status not in FINISHED:  # of which there may be very many
            self._renewed.add(found.id)
        return found

    def by_memo(self, function: Function, key: str) -> Look:
        """Return the task of a call with memo=True, to be run again if it is no good; None if there is none."""
        found = self._store.by_key(self.run.queue, key)
        if found is None:
            self._unjudged += 1
            return NOTHING
        look = self._runnable(found)
        if look.found is not None and look.why is not None:
            self._note_again(function, look.found, look.why)
        return look

    def _note_again(self, function: Function, found: TaskState, why: Why) -> None:
        """Count a call that is a task which was there, without being taken over from a run."""
        if self.run.continues:
            self.resumed.add(function.path, why)
            if why.reason not in REUSED:
                self._again.add(found.id)

    def so_far(self, store: Store) -> Resumed:
        """Return what was taken over so far, and why the rest was not, as this handle has it. Raises StoreError."""
        resumed = copy.deepcopy(self.resumed)
        if self._again:
            resumed.again = sum(call.id in self._again for call in store.calls(self.run.continues))
        return resumed

    def find_once(self, had: dict[bytes, int], function: Function, calls: dict[bytes, Call]) -> dict[bytes, Look]:
        """Return what there is of these calls, by their names: those that this run has had, or takes over now."""
        ids = {name: had[name] for name in calls if name in had}
        states = {found.id: found for found in self._store.states(ids.values())} if ids else {}
        runnable = {name: self._runnable(states[id]) for name, id in ids.items() if id in states}
        known = {name: look for name, look in runnable.items() if look.found is not None}  # others were removed
        left = [name for name in calls if name not in known]
        if left and self.run.continues:
            looks = self.find_each(function, [calls[name] for name in left])
            known |= zip(left, looks, strict=True)
            had |= {name: look.found.id for name, look in zip(left, looks, strict=True) if look.found is not None}
        return known

    def _runnable(self, found: TaskState) -> Look:
        """Return where a task stands whose call is made again: one that failed, or was cancelled, is PENDING."""
        if found.status not in (Status.FAILED, Status.CANCELLED):
            return Look(found, _EQUAL)
        if self._store.retry_for(self.run, [found.id], now()):
            self.has_retried = True
            return Look(found._replace(status=Status.PENDING, error=None), taken_over(found.status))
        return Look(next(iter(self._store.states([found.id])), None), _EQUAL)  # somebody else was faster

    def find_each(self, function: Function, calls: Sequence[Call]) -> list[Look]:
        """Return for each call the task that it continues, and why, for a run that continues others.

        Raises FunctionChanged, and takes nothing over, if one of them is there under other code and that is not wished.
        """
        run = self.run
        self.note_given()  # so that no other call is given it
        self._ahead.leave(function, calls)
        if self._on_change == "raise":
            for _, why, older in self.foresee(function, calls):
                if older is not None:
                    raise FunctionChanged(
                        f"an earlier run has calls of {function.path}, and {why.what} since: have them run again by"
                        " on_change='rerun', or take their results by on_change='reuse'"
                    )
        self._digests.add(function.digest)
        found = self._store.take_over(run, function, calls, now())
        if None in found and self._under_way.offer(run):
            left = [place for place, it in enumerate(found) if it is None]
            more = self._store.take_over(run, function, [calls[place] for place in left], now())
            for place, it in zip(left, more, strict=True):
                found[place] = it
        looks = [Look(it, it and _why(it)) for it in found]
        missing = [place for place, it in enumerate(found) if it is None]
        if missing and (self._on_change == "reuse" or not self._may_repeat(function.path)):
            seen = self.foresee(function, [calls[place] for place in missing])
            for place, (call, why, older) in zip(missing, seen, strict=True):
                state = None
                if older is not None:
                    other = function._replace(digest=older.digest, parts="")  # the store knows what that was made of
                    (state,) = self._store.take_over(run, other, [call], now())
                    self._say_older(function, other, why)
                    self._edited.add(function.path)
                looks[place] = Look(state, None if state is None and self._may_repeat(function.path) else why)
        self._unjudged += sum(look == NOTHING for look in looks)
        for seen_why, count in Counter(look.why for look in looks).items():
            if seen_why is not None:
                self.resumed.add(function.path, seen_why, count)
        found = [look.found for look in looks]
        self.takes_all = None not in found
        if any(known is not None for known in found) and not self._said:
            self._said = True
            _log.warning(
                "queue %r: continuing an earlier run: %d of %d calls are done (%s)",
                run.queue, run.done, run.total, runs_text(run.continues),
            )  # fmt: skip
        if any(known is not None and known.status is Status.PENDING for known in found):
            self.has_retried = True  # what had failed is PENDING again, and may be for workers elsewhere
        return looks

    def foresee_each(
        self, function: Function, calls: Sequence[Call], foresight: Foresight, fresh: Why | None, memo: bool
    ) -> list[Why]:
        """Return for each call why it would run, or need not. `fresh` says why the run continues no others, if so."""
        whys: dict[int, Why] = {}
        left: dict[int, Call] = {}
        account = foresight.account
        for place, call in enumerate(calls):
            equal = self._foresee_equal(function, call, foresight.names, memo)
            if equal is not None:
                whys[place] = equal
            elif memo:
                memos = account and account.memos()
                whys[place] = memos.judge(self.run.context, function.digest, call.likeness) if memos else _NO_EQUAL
            elif fresh is not None:
                whys[place] = account.judge(function.digest, call.likeness) if account else fresh
            else:
                left[place] = call
        seen = self.foresee(function, [*left.values()], foresight.left) if left else ()
        for place, (call, why, older) in zip(left, seen, strict=True):
            whys[place] = why
            if account is not None and why.reason in REUSED:
                account.take(function.digest if older is None else older.digest, call.likeness)
            elif account is not None:
                whys[place] = account.judge(function.digest, call.likeness)
        return [whys[place] for place in range(len(calls))]

    def _foresee_equal(self, function: Function, call: Call, names: set[bytes], memo: bool) -> Why | None:
        """Return why a call need not run for itself, if equal calls are run once and there is one, in `names` say."""
        if self.had is None and not memo:
            return None
        name = name_of(function, call)
        if name in names:
            return _EQUAL
        names.add(name)
        if memo:
            found = self._store.by_key(self.run.queue, memo_key(self.run, function, call))
        else:
            found = next(iter(self._store.states([self.had[name]])), None) if self.had and name in self.had else None
        if found is None:
            return None
        return taken_over(found.status) if found.status in (Status.FAILED, Status.CANCELLED) else _EQUAL

    def foresee(
        self, function: Function, calls: Sequence[Call], left: dict[str | bytes, list[Resumable]] | None = None
    ) -> Iterator[tuple[Call, Why, Resumable | None]]:
        """Give for each call why it will run, or need not, and the task of it under other code that it is to take.

        With on_change="raise" that is the task for which it is to raise.

        Nothing is changed. `left` is what calls before these have left, by likeness, and is filled.
        """
        self.note_given()
        left = {} if left is None else left
        likenesses = {call.likeness for call in calls}
        found = self._store.resumable(self.run, function.path, likenesses - left.keys())
        for likeness in likenesses - left.keys():
            left[likeness] = (found or {}).get(likeness, [])
        for call in calls:
            why, older = self._judge(function, left[call.likeness])
            if why is None:
                why = Why(Reason.FUNCTION if found is None else Reason.ARGUMENTS)
            yield call, why, older

    def _judge(self, function: Function, left: list[Resumable]) -> tuple[Why | None, Resumable | None]:
        """Return why a call will run, or need not, by what could be taken over for it; that is taken out of `left`."""
        for own in left:
            if own.digest == function.digest:
                left.remove(own)
                return taken_over(own.status), None
        others = [it for it in left if it.digest not in self._digests]
        if not others:
            return None, None
        digest = others[-1].digest
        first = next(it for it in others if it.digest == digest)
        what = self._what_changed(function, digest)
        if self._on_change == "raise":  # for what has finished; there is nothing to lose of the rest
            return Why(Reason.CODE, what), next((it for it in others if it.status is Status.COMPLETED), None)
        if self._on_change != "reuse" or first.status is not Status.COMPLETED or LOCAL in function.path:
            return Why(Reason.CODE, what), None
        left.remove(first)
        return Why(Reason.OLDER, what), first

    def _what_changed(self, function: Function, digest: bytes) -> str:
        known = self._changes.get((digest, function.digest))
        if known is None:
            try:
                parts = self._store.function(digest).parts
            except FunctionLost:
                parts = ""
            known = self._changes[digest, function.digest] = changes(function.path, parts, function.parts)
        return known

    def _say_older(self, function: Function, other: Function, why: Why) -> None:
        if (other.digest, function.digest) not in self._said_of:
            self._said_of.add((other.digest, function.digest))
            _log.warning(
                "queue %r: results of %s are taken over (on_change='reuse') though %s",
                self.run.queue, function.path, why.what,
            )  # fmt: skip

    def tell(self, added: int) -> None:
        """Say at the end of a run that added so many calls what it took over, if it did, and why the rest ran."""
        self.note_given()
        if not self.resumed.reused:
            return
        resumed, more = self.so_far(self._store), ""
        if self._unjudged and added <= _MOST_JUDGED:
            from .history import resumed_by

            resumed.count_as(resumed_by(self._store, self.run.id))
        elif self._unjudged:
            more = f", {self._unjudged} run: `omniq-executor runs {self.run.id}` says why"
        _log.warning("queue %r: run %d: %s%s", self.run.queue, self.run.id, resumed.sentence(), more)

    def expect(self) -> None:
        """Take note that others may have left something, or are gone."""
        self._looks_anew = self._runs_leftovers or bool(self.foreign or self._needed)

    @property
    def may_adopt(self) -> bool:
        """Whether there may be something to adopt."""
        return self._looks_anew or bool(self._new_needs)

    def note_needs(self, after: Sequence[int], ids: Ids) -> bool:
        """Take note of what a new call comes after; returns whether somebody else may have to be asked for it.

        `ids` are those that this run gives. What it has submitted itself, or waits for, it runs anyway.
        """
        new = {id for id in after if id not in self._waiters and (id in self._refused or not ids.has_made(id))}
        self._needed |= new
        self._new_needs |= new
        return bool(new)

    def adopt(self, waiters: Waiters, runs_calls: bool) -> None:
        """Have this run be of what is waited for, or lies about, and nobody else would run. Raises StoreError."""
        self.foreign = {id for id in self.foreign if id in waiters}
        self._renewed &= self.foreign
        # There may be many that others are about to run, so what is new is looked at by itself.
        wanted = self.foreign | self._needed if self._looks_anew else self._new_needs
        if self._runs_leftovers:
            self._store.adopt(self.run, None, now())
        if wanted and runs_calls:
            self._store.adopt(self.run, wanted, now())
            if self._renewed:
                self._store.adopt(self.run, self._renewed, now(), any_context=True)
            self._refuse_other_contexts(wanted, waiters)
        self._looks_anew, self._new_needs = False, set()

    def _refuse_other_contexts(self, ids: Collection[int], waiters: Waiters) -> None:
        """Have nobody wait for tasks that were submitted with another initializer: they are not run here.

        Nor for calls that need the result of one.
        """
        others: dict[int, RunRecord] | None = None
        left, seen = set(ids), set[int]()
        while left:
            seen |= left
            states = {it.id: it.status for it in self._store.states(left)}
            self._needed -= {id for id in left if states.get(id, Status.COMPLETED) in FINISHED}
            rows = self._store.stored([id for id, status in states.items() if status is Status.PENDING])
            left = set()
            for task in (row.task for row in rows):
                if task.run == self.run.id:  # by now, and nobody else takes it; what it comes after may be another's
                    self.foreign.discard(task.id)
                    self._needed.discard(task.id)
                    left.update(task.after)
                    continue
                others = self._dead_of_other_contexts() if others is None else others
                if task.run in others:
                    self._refuse(task, context_changes(others[task.run].context, self.run.context), waiters)
            left -= seen
            self._needed |= left

    def _dead_of_other_contexts(self) -> dict[int, RunRecord]:
        """Return the runs that nobody works off, and whose initializer was another one, by id."""
        alive = {owner.id for owner in self._store.owners() if owner.queue != ADDS}
        mine = initializer_of(self.run.context)
        return {it.id: it for it in self._store.runs() if it.owner not in alive and initializer_of(it.context) != mine}

    def _refuse(self, task: Task, what: str, waiters: Waiters) -> None:
        why = (
            f"{task.task_id} was submitted by run {task.run} of queue {task.queue!r}, and {what} changed since,"
            " so it is not run here: its script runs it, with what it was then"
        )
        if task.id not in self._refused:
            _log.warning("%s. Calls that need its result wait in the store until then", why)
        waiters.resolve(task.id, ContextChanged(why))
        for id in self._store.dependents([task.id]):
            waiters.resolve(id, ContextChanged(f"{format_id(id)} needs a result that is not there: {why}"))
            self._refused.add(id)
        self._refused.add(task.id)
        self.foreign -= self._refused
        self._needed -= self._refused


def _why(taken: TaskState) -> Why:
    """Return why a task was taken over."""
    return taken_over(Status.FAILED if taken.had_failed else taken.status)
