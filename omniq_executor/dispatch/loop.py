"""The loop between stores and engines: events in, one store transaction a turn, outcomes out.

    new calls -----add()-----.                         .--resolves--> futures, maps
                             v                         |
    workers' reports ---> [ a turn, under the lock:    |
    notification -------> [   1. take in reports       |
                          [   2. ONE TRANSACTION: add, end, claim         planned in turn.py
                          [   3. resolve what was committed --------------'
                          [   4. hand claimed calls to the engine

Who takes turns, and when, is in driving.py. Guarantees, and the order that gives them:

- A call is handed to a worker only after the commit of its claim, so a claim is on disk before its side effects begin.
  A future is resolved only after the commit of its outcome.
- Reports, and claims that are to be released, are dropped only once they are committed (claims.py). If the store fails
  they are offered again with the next turn. A store that refuses for too long (committing.py) ends the executor: its
  futures fail, and the calls are left to the next run.
- Between the commit and the handing on of what was committed nothing can fail: what the store must be asked for
  afterwards is asked again later if it does not answer.
- An outcome that the store refuses (its claim was lost) resolves nothing; the store is asked how the task stands.

In a burst, claimed calls are held for up to POLL_S and given to the workers many at a time: waking a worker costs more
than storing a call. A call that comes alone is given at once.
"""

import functools
import logging
import math
import time
import traceback
from collections.abc import Callable, Iterable, Sequence

from ..engines.base import Engine
from ..errors import PoolBroken, StoreError, TaskNotFound
from ..model.ids import Ids
from ..model.options import CallOptions
from ..model.task import FINISHED, Call, Function, Options, Status
from ..stores.base import Batch, Resume, Run, Store, TaskState, Turn, TurnResult, now
from . import sessions
from .claims import Claims
from .committing import Committer
from .driving import Driver
from .dropped import Dropped
from .peers import Peers
from .resumption import OnChange, Resumption
from .retention import Retention
from .turn import Pending, Situation, TurnPlan, is_empty, is_of_interest, plan, take_in
from .waiters import CANCELLED, Waiters, outcome_of

LOOK_AT_CLOCK_S = 30.0
POLL_S = 0.002  # of a burst, after which a caller's turn brings in outcomes and gives what is held
KILL_AFTER_S = 5.0  # for workers that do not end by themselves when they should

USUAL = CallOptions()

_log = logging.getLogger("omniq_executor")


class Loop:
    """Takes turns, see the module's docstring. All is called under the lock, but for what driving.Work says of it."""

    def __init__(
        self, store: Store, owner: int, run: Run, engine: Engine, crash_retries: int, waiters: Waiters,
        queues: Sequence[str] | None, runs_leftovers: bool, resume: Resume, on_change: OnChange,
    ) -> None:  # fmt: skip
        self.driver = Driver(self)
        self.waiters = waiters
        self.ids = Ids(owner)
        self.claims = Claims(store, engine, crash_retries, functools.partial(self.ids.take, 1))
        self.resumption = Resumption(store, run, waiters, runs_leftovers, resume, on_change)
        self.retention = Retention(store, owner)
        self.dropped = Dropped(self.driver.waker)
        self.failure: str | None = None  # why nothing is taken any more
        self.clean = True  # whether the run has gone well so far
        self._cell_failed = False  # whether the last cell of a notebook that used it has failed
        self._uses: tuple[int, int, int] | None = None  # how much it had been used when that cell ended
        self.on_end: Callable[[], object] | None = None
        self.is_closing = False
        self.is_draining = False  # whether nothing is given to workers any more
        self._store = store
        self._owner = owner
        self._run = run
        self._engine = engine
        self._committer = Committer(store, owner, run)
        self._pending = Pending()
        self._capacity = 0  # of the workers, for how many calls, when it was last looked at
        self._is_visit = False  # whether the present turn is of somebody who adds, and may add more
        self._holds = False  # whether the present turn gives nothing to workers
        self._polled_at = 0.0
        self.claim_from(queues)
        try:
            engine.attach(self.driver.selector, self.driver.wake, store.slots_path(owner))
            self.peers = Peers(store, owner, self.driver.selector)
        except BaseException:
            self.driver.close()
            raise

    def claim_from(self, queues: Sequence[str] | None) -> None:
        """Claim from these queues, as in Turn, whoever has added to them; or if it is None what is of the run."""
        self._queues = queues
        self.claims.queue.by_run = queues is not None

    # adding

    def enter(self) -> None:
        """Make ready for a turn in the thread of whoever adds something."""
        if self.failure is not None:
            raise PoolBroken(self.failure)
        if self.is_closing:
            raise RuntimeError("cannot schedule new futures after shutdown")
        self.driver.start()
        self._holds, self._is_visit = False, True
        if self.waiters.open:  # a burst
            self.driver.count_visit()
            moment = time.monotonic()
            if moment - self._polled_at > POLL_S:
                self._polled_at = moment
                try:
                    self.driver.poll()
                except Exception as error:
                    self.fail(error)
                    raise
            else:
                self._holds = True

    def add_one(self, id: int, function: Function, call: Call, call_options: CallOptions) -> None:
        """Store a call, and give it to a worker if one has room."""
        if call_options is not USUAL or not self._has_room_for_one(function):
            self.turn(Batch(id, 1, function, None, (call,), False, *call_options))
            return
        self._store.add_claimed(self._owner, self._run, id, function, call, now())
        if self._holds:
            self.claims.queue.hold_one(id, function, call)
            self.driver.tick()
        else:
            self.claims.queue.add((id,), function, None, (call,), gives=True)

    def heed_needs(self, options: Options | None) -> None:
        """See to it that somebody runs what calls come after that were added just now, with these options."""
        if options is not None and options.after and self.resumption.note_needs(options.after, self.ids):
            self.turn_or_later()

    def take_back(self, ids: Iterable[int], error: BaseException) -> None:
        """Have nobody wait for what could not be added."""
        for id in ids:
            self.waiters.remove(id)
        self.fail_by(error)

    def _has_room_for_one(self, function: Function) -> bool:
        """Return whether a new call can go to a worker, with no older one and nothing else to do first."""
        if self._pending.some or self._pending.is_alone:
            return False
        claims, engine = self.claims, self._engine
        if self._holds:
            return claims.queue.size < self._capacity
        return (
            not (claims.queue.size or engine.reports or claims.reports or engine.broken)
            and engine.free_capacity(function.digest)[1] > 0
        )

    # the turn

    def take_turn(self) -> None:
        """Take the turn for what has come. It raises nothing: what could not be stored is tried again."""
        self._is_visit = self._holds = False
        self.turn_or_later()
        if self.failure is None and self.retention.at <= time.monotonic():
            self.retention.step()

    def turn_or_later(self) -> None:
        """Take a turn now, or if that fails once more later."""
        try:
            self.turn()
        except StoreError as error:
            self._committer.put_off(error)
        except Exception as error:  # noqa: BLE001 - a fault of our own: nobody may wait for ever because of it
            self.fail_by(error)

    def turn(self, batch: Batch | None = None) -> None:
        """Take a turn, with new calls. Raises StoreError if it could not be committed, and then nothing has changed."""
        if self.failure is not None:
            return
        batch, refused = (batch, None) if self._engine.broken is None else (None, batch)
        self._committer.retry_at = math.inf
        looks = not self._is_visit and (self.peers.was_notified or self.peers.look_at < math.inf)
        if looks and not self._committer.attempt(self._look_after_peers):
            self.peers.look_at = self._committer.retry_at
            self.peers.must_notify = True  # of what was taken back before it failed
        try:
            while self.dropped:
                self.cancel(*self.dropped.first(self.waiters))
                self.dropped.remove_first()  # now that it is done
            if not self._holds:
                self._engine.steal(time.monotonic(), self._is_idle)
            self.claims.take_reports()
            planned = self._plan(batch)
            if not is_empty(planned.turn) or self.claims.unread:
                self._hand_on(planned, self._committer.commit(planned.turn))
            self._committer.refused_since = None  # also where nothing is left that was refused
            if self.is_closing and not (self._pending.is_any or self.claims.queue.size or self._engine.is_busy()):
                self.resumption.ends_leftovers = False  # that was all, whatever others will add
        except StoreError as error:
            self._take_in_refusal(error)
            raise
        if self.peers.may_have_changed or self.peers.changes:
            self._committer.attempt(self._catch_up)
        if self.peers.must_notify or self.resumption.has_retried:
            self._notify()
        if self._engine.broken is not None:
            why = f"no worker can be started; the calls stay in the store. In a worker:\n{self._engine.broken}"
            self.fail(PoolBroken(why))
            if refused is not None:
                raise PoolBroken(self.failure)

    def _plan(self, batch: Batch | None) -> TurnPlan:
        engine, claims, peers, pending = self._engine, self.claims, self.peers, self._pending
        moment = now()
        if self.is_draining:
            claims.release_queued()
        elif not self._holds:
            claims.queue.give()
        ends = claims.ends(moment)
        total, best = (0, 0) if engine.broken is not None else engine.free_capacity()
        if batch is not None and total:
            best = engine.free_capacity(batch.function.digest)[1]
        self._capacity = total
        if peers.may_have_changed:
            self.resumption.expect()
        if self.resumption.may_adopt:
            self._expect_some()  # also if only a part of it can be adopted now
            self.resumption.adopt(self.waiters, bool(engine.max_workers))
        # What few turns need is looked up for those alone.
        is_late = pending.next_tier is not None or pending.is_alone
        found = Situation(
            moment, total, best, engine.idle() if is_late else 0, claims.queue.size, is_late and engine.is_busy(),
            is_late and claims.are_suspects_only(), self._is_visit, self._holds, self.is_draining,
            peers.may_have_changed,
        )  # fmt: skip
        planned = plan(self._pending, ends, batch, self._queues, found)
        self._pending = planned.pending
        if planned.waits:
            self.driver.hold_off()
        return planned

    def _hand_on(self, planned: TurnPlan, turned: TurnResult) -> None:
        """Hand on what is committed: nothing in here may fail, and so nothing asks the store without a second try."""
        claims, peers, turn = self.claims, self.peers, planned.turn
        claims.end(planned.resolutions)
        for ids, outcome in planned.resolutions:
            self.waiters.resolve_all(ids, outcome, turned.refused)
        self._pending, follows = take_in(planned.pending, turn, turned)
        for batch in turn.adds:
            if batch.claimed:
                ids = range(batch.first, batch.first + batch.size)
                claims.queue.add(ids, batch.function, batch.text, batch.calls or (), planned.gives)
                if not planned.gives:
                    self.driver.tick()
        if turned.claimed or claims.unread:
            claims.give(turned.claimed)
            if claims.unread:
                self._committer.retry()
            if claims.releases:  # committed with the next turn; later there may be room for them here, too
                self._expect_some()
        if follows or claims.reports or claims.releases:  # of some that are not to be run, or not here
            self.driver.wake()
        peers.changes += turned.refused
        peers.may_have_changed = peers.may_have_changed or turned.foreign
        peers.must_notify = peers.must_notify or is_of_interest(turn)

    def _expect_some(self) -> None:
        """Take note that something may be PENDING."""
        self._pending = self._pending._replace(some=True)

    # cancelling

    def cancel(self, ids: Sequence[int], running: bool = False) -> None:
        """Cancel those of the tasks that have not started, for good; with `running`, end those that have.

        Raises StoreError if they could not be cancelled; what was taken back for it then runs all the same.
        """
        if not ids:
            return
        cancelled = self._store.cancel(ids, now(), running)
        self._take_in_cancelled(cancelled)
        if running:
            self._abort(set(cancelled))
        mine = self._recall(set(ids).difference(cancelled))
        if mine:
            # From here on they are with nobody. They are released with this turn, or else with the next.
            self.claims.releases |= mine
            self.peers.must_notify = True
            self._expect_some()
            self.driver.wake()
            try:
                self._committer.commit(Turn(now(), outcomes=self.claims.released()))
            except StoreError as error:
                self._take_in_refusal(error)
                raise
            self.claims.releases.clear()
            self._take_in_cancelled(self._store.cancel([*mine], now()))
        if self.peers.must_notify:
            self._notify()

    def _take_in_cancelled(self, cancelled: Sequence[int]) -> None:
        for id in cancelled:
            self.waiters.resolve(id, CANCELLED)
        if cancelled:
            # It is a change to this owner too, to be cleared with the next turn.
            self.peers.may_have_changed = self.peers.must_notify = True
            self.driver.wake()  # for that turn: others may have waited for what is cancelled

    def _abort(self, ids: set[int]) -> None:
        """End those of the tasks here whose claim is gone."""
        self._recall(ids)
        self._engine.end(ids)

    def _recall(self, ids: set[int]) -> dict[int, int]:
        """Take back those of the tasks that have not started, and return their attempts by id."""
        mine = self.claims.recall(ids)
        if self.claims.queue.size:
            self.driver.tick()
        return mine

    # notebooks

    def note_cell(self, failed: bool, interrupted: bool) -> None:
        """Take note that a cell of the notebook has ended. If the cell has used the run, that stands as it did.

        If it was interrupted, what runs for maps whose iterators are gone is ended.
        """
        if interrupted:
            self.turn_or_later()  # which notices those that were dropped just now
        gone = [it for it in self.waiters.consumers() if not self.dropped.watches(it)] if interrupted else ()
        before, self._uses = self._uses, (self.driver.visits, self.ids.taken, self.resumption.resumed.reused)
        if self._uses != before:
            self._cell_failed = failed
        try:
            self.cancel([id for consumer in gone for id in self.waiters.ids(consumer)], running=True)
            if failed and self._uses != before:
                self.resumption.continue_own()
        except StoreError as error:
            _log.error("%s; what the cell has left goes on, and what it has finished will run again", error)

    # others

    def _look_after_peers(self) -> None:
        if self.peers.look_after():
            self._expect_some()  # whoever has found it
            self.resumption.expect()

    def _notify(self) -> None:
        """Tell the others that something is there for them, now or later: it is committed."""
        if self._committer.attempt(self.peers.notify):
            self.resumption.has_retried = False

    def _catch_up(self) -> None:
        """Take in what others did. Raises StoreError; then it is done again later."""
        self._expect_some()
        self.resumption.expect()
        changes = self.peers.read_changes()
        awaited = [id for id in changes if id in self.waiters]
        for found in self._store.states(awaited) if awaited else ():
            self.take_in_state(found)
        if changes and (mine := self.claims.held().intersection(changes)):
            still = {found.id for found in self._store.states(mine) if found.status is Status.RUNNING}
            self._abort(mine - still)
        self.peers.forget_changes()

    def take_in_state(self, found: TaskState, may_adopt: bool = False) -> None:
        """Resolve a task that the store says is finished, or see to it that it is run."""
        if found.status in FINISHED:
            self.waiters.resolve(found.id, outcome_of(found))
            return
        if may_adopt:
            self.resumption.foreign.add(found.id)
            self.resumption.expect()
        if found.status is Status.PENDING:
            self._expect_some()

    # what the driver asks

    def next_alarm(self) -> float:
        """Return the seconds until something is due that no event tells of, or infinity."""
        # Without the lock: what changes meanwhile is followed by a turn, and so by another look.
        engine, peers, retry_at = self._engine, self.peers, self._committer.retry_at
        # The last two where a submit took them in: it failed then, or it leaves the peers to this thread.
        if (self.dropped and retry_at == math.inf) or engine.reports or peers.was_notified:
            return 0
        left = min(engine.next_check(self._is_idle), retry_at, peers.look_at, self.retention.at) - time.monotonic()
        due = self._pending.due
        if due is not None:
            # By the clock on the wall, which may be set meanwhile: so it is looked at now and then.
            left = min(left, (due - now()) / 1e6, LOOK_AT_CLOCK_S)
        return max(left, 0.0)

    def holds_back(self) -> bool:
        """Return whether calls wait for the end of a burst."""
        return self.claims.queue.size > 0

    def notify_waiting(self) -> bool:
        """Tell the futures that were resolved; return whether there were any, or a consumer was given something."""
        waiters = self.waiters
        was_put = waiters.put
        if was_put:  # not if it is not: another thread may be putting something just now
            waiters.put = False
        return bool(waiters.to_notify and waiters.notify_waiting()) or was_put

    def is_over(self) -> bool:
        """Return whether everything that was asked for is done, and nothing more is taken."""
        if not self.is_closing or self.waiters.open or not self.waiters.all_notified or self.has_leftovers():
            return False
        engine, claims = self._engine, self.claims
        return self.failure is not None or not (engine.is_busy() or engine.reports or claims.reports or claims.releases)

    def has_leftovers(self) -> bool:
        """Return whether there may be more of what earlier runs left that is due, and is to be run before the end."""
        return self.resumption.ends_leftovers and not (self.failure or self.is_draining or not self._engine.max_workers)

    def is_at_rest(self) -> bool:
        """Return whether nobody waits for anything, and others are to be told of nothing, so that no turn is needed."""
        return not (self.waiters.open or self.peers.must_notify or self.resumption.has_retried)

    def has_work(self) -> bool:
        """Return whether there is more than the workers have, or may be."""
        return self._pending.some or self.claims.queue.size > 0

    def _is_idle(self) -> bool:
        return not self.has_work() and self._engine.free_capacity()[1] > 0

    # the end

    def _take_in_refusal(self, error: StoreError) -> None:
        """Try again what the store has refused, but not for ever."""
        if self.claims.reports or self.claims.releases:
            self._store.reserve.let_go()  # for these; it may be that the disk is full
        if self._committer.refuse():
            self.fail(error)

    def fail_by(self, error: BaseException) -> None:
        """Do what is to be done after any exception: one that is not the store's is a fault of our own, and the end."""
        if not isinstance(error, StoreError | TaskNotFound | PoolBroken):
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Give up: every open future fails with `error`. The store is not touched, so the calls are kept."""
        if self.failure is None:
            # As text: an exception would keep the frames of whoever it is raised to.
            is_known = isinstance(error, PoolBroken | StoreError)
            self.failure = str(error) if is_known else "".join(traceback.format_exception(error))
            self.clean, self.driver.is_stopped = False, True
            _log.error("the executor has stopped: %s", self.failure)
        self.claims.end(())
        self.waiters.fail_all(error)
        self.driver.rouse()  # to tell them, where this thread does not

    def end(self) -> None:
        """Close everything: nothing is asked for any more."""
        with self.driver:
            if self.driver.is_closed:
                return
            try:
                self._engine.close(grace_s=None if self.failure is None else KILL_AFTER_S)
            finally:  # whatever that meets, nobody is to wait for the rest
                self._end_run()

    def _end_run(self) -> None:
        clean = self.clean and not self._cell_failed
        if self.failure is None and clean and self.retention.at < math.inf:
            self.retention.finish(self.ids.taken)
        try:
            if self._run.id:
                sessions.leave(self._store.address)
                self.resumption.tell(self.ids.taken)
                self._store.end_run(self._run, clean, now())
        except StoreError as error:
            _log.error("the run could not be closed, and will be continued as a broken one: %s", error)
        try:
            self._store.leave(self._owner)
        except StoreError as error:
            _log.error("what is claimed here could not be given back before this process ends: %s", error)
        finally:
            self._store.close()
        if self.on_end is not None:
            self.on_end()
        self.dropped.clear()  # before the pipe is closed that it writes to
        self.driver.close()
        self.peers.close()

    def leave_to_parent(self) -> None:
        """After a fork, in the child: the executor is the parent's alone, and this process must not touch it."""
        if self.driver.is_closed:
            return
        self.is_closing = True
        self.dropped.clear()
        self.failure = "this executor belongs to the parent process; make another one after the fork"
        self.driver.leave_to_parent()
        self._engine.leave_to_parent()
        self.peers.close()
