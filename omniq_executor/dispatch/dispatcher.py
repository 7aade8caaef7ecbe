"""The loop at the heart of an executor: events in, one store transaction a turn, futures out.

    submit, map ---add()---.                         .--resolves--> futures, maps
                           v                         |
    worker's reports --> [ a turn, under the lock:   |
    notification ------> [   1. take in reports      |
                         [   2. ONE TRANSACTION: add, end, claim          planned in turn.py
                         [   3. resolve what was committed ---------------'
                         [   4. hand claimed calls to the engine

Who takes turns, and when, is in driving.py. Guarantees, and the order that gives them:

- A call is handed to a worker only after the commit of its claim, so a claim is on disk before its
  side effects begin. A future is resolved only after the commit of its outcome.
- Reports, and claims that are to be released, are dropped only once they are committed. If the store fails they are
  kept and offered again with the next turn, at the latest RETRY_S later. A store that refuses for REFUSED_S
  ends the executor: its futures fail, and the calls are left to the next run.
- Between the commit and the handing on of what was committed nothing can fail: what the store must be asked for
  afterwards is asked again later if it does not answer.
- An outcome that the store refuses (its claim was lost) resolves nothing; the store is asked how
  the task stands.

In a burst, claimed calls are held for up to POLL_S and given to the workers many at a time: waking
a worker costs more than storing a call. A call that comes alone is given at once.
"""

import contextlib
import functools
import logging
import operator
import os
import selectors
import threading
import time
import traceback
import weakref
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..engines.base import RETURNED, Engine, Report
from ..engines.pacing import earlier
from ..errors import PoolBroken, StoreError, TaskNotFound, TooLarge
from ..model import codec
from ..model.ids import Ids
from ..model.options import CallOptions
from ..model.task import FINISHED, Call, Event, Function, Status
from ..stores.base import Batch, Claimed, Outcome, Run, Store, TaskState, Turn, TurnResult, now
from ..stores.owners import open_pipe
from . import sessions
from .claims import Claims
from .driving import Driver, drain
from .peers import Peers
from .queue import DispatchQueue
from .results import ClaimEnds, claim_ends_of, singly, too_large
from .resumption import Resumption
from .turn import Pending, Situation, is_empty, is_of_interest
from .waiters import CANCELLED, Consumer, Waiters, outcome_of

RETRY_S = 1.0  # until what could not be stored is offered again
REFUSED_S = 60.0  # after which a store that takes nothing ends the executor
ANSWER_S = 0.2  # in which workers that are to be ended can send what they have
KILL_AFTER_S = 5.0  # for workers that do not end by themselves when they should
LOOK_AT_CLOCK_S = 30.0
POLL_S = 0.002  # of a burst, after which a caller's turn brings in outcomes and gives what is held

USUAL = CallOptions()

_log = logging.getLogger("omniq_executor")

open_dispatchers: "dict[Dispatcher, _Dropped]" = {}
"""Those of executors that have not come to their end, with what notices that the executor is dropped."""


class _Dropped(weakref.ref[Any]):
    """Tells that an iterator is gone, or an executor."""

    __slots__ = ("consumer", "wake")
    consumer: Consumer
    wake: Callable[[], object]


class _Watch:
    """Notices that an iterator is dropped: anywhere, in any thread, with any lock taken.

    No line of Python is run for it, as one is in `__del__`: an interrupt that comes there is raised there, where nobody
    can catch it, and is lost. So what is called is a method of a deque, and after it the system's write(): of callbacks
    of weak references the youngest is called first.
    """

    def __init__(
        self, iterator: Any, consumer: Consumer, dropped: Callable[[Any], object], wake: Callable[[], object]
    ) -> None:
        self._wakes = _Dropped(iterator, operator.methodcaller("wake"))
        self._wakes.wake = wake
        self._drops = _Dropped(iterator, dropped)
        self._drops.consumer = consumer


class Dispatcher:
    """See the module's docstring. Executors make one each; it is not for direct use."""

    def __init__(
        self,
        store: Store,
        owner: int,
        run: Run,
        engine: Engine,
        crash_retries: int,
        waiters: Waiters | None = None,
        queues: Sequence[str] | None = None,
        runs_leftovers: bool = False,
        new_future: "Callable[[Dispatcher, int], Any] | None" = None,
    ) -> None:
        """`queues` are those to claim from, as in Turn, or None for what is of the run.

        `waiters` is told of what finishes. With `runs_leftovers` the run adopts what is PENDING in its queue and
        that nobody else would run. `new_future` makes what waits for the task of an id.
        """
        self.store = store
        self.owner = owner
        self.run = run
        self.engine = engine
        self.driver = Driver(self)
        self.clean = True  # whether the run has gone well so far
        self.failure: str | None = None  # why nothing is taken any more
        self._crash_retries = crash_retries
        self._closing = False
        self._draining = False  # whether nothing is given to workers any more
        self._ids = Ids(owner)
        self._waiters = waiters or Waiters()
        self._queues = queues
        self._new_future: Any = new_future
        self._watched: dict[int, _Watch] = {}  # iterators that somebody may drop, by the id of their consumer
        self._dropped: deque[Any] = deque()  # those of them that were
        self._dispatch_queue = DispatchQueue(store, engine)
        self._dispatch_queue.by_run = queues is not None
        self._capacity = 0  # of the workers, for how many calls, when it was last looked at
        self._resumption = Resumption(store, run)
        self._claims = Claims(store)
        self._pending = Pending()
        self._reports: list[Report] = []  # taken in, not committed yet
        self._releases: dict[int, int] = {}  # tasks that go back unstarted, by id, with their attempts; likewise
        self._is_visit = False  # whether the present turn is of somebody who adds, and may add more
        self._holds = False  # whether the present turn gives nothing to workers
        self._polled_at = 0.0
        self._runs_leftovers = runs_leftovers
        self._foreign: set[int] = set()  # tasks that are waited for here and may be for nobody else to run
        self._may_adopt = runs_leftovers  # whether some of those may have become so
        self._retry_at: float | None = None
        self._refused_since: float | None = None
        self._must_notify = False  # others, who could not be told
        self._was_notified = False  # whether others may have finished something, or added
        self._changes: list[int] = []  # tasks that are finished, to be looked at
        self._notify_fd: int | None = None
        try:
            self._notify_fd = open_pipe(store.notify_path(owner))
            if self._notify_fd is not None:
                self.driver.selector.register(self._notify_fd, selectors.EVENT_READ, lambda _: self._on_notification())
            engine.attach(self.driver.selector, self.driver.wake, store.slots_path(owner))
            self._peers = Peers(store, owner, self.driver.selector)
        except BaseException:
            self._let_go()
            raise

    # what executors, maps and futures ask for

    def submit(self, function: Function, call: Call, call_options: CallOptions) -> Any:
        """Store a call, and give it to a worker if one has room; return its future.

        Raises StoreError, and leaves nothing behind then.
        """
        key = call_options.key
        with self.driver:
            self._enter()
            self._dispatch_queue.know(function)
            found = self._resumption.find(function, call, key)
            self._must_notify = self._must_notify or self._resumption.has_retried
            if found is None:
                try:
                    return self._submit_new(function, call, call_options)
                except StoreError:
                    # Another process may have been faster with the same key.
                    found = self.store.by_key(self.run.queue, key) if key is not None else None
                    if found is None:
                        raise
            future = self._future_of(found)
            future.resumed = found.status is Status.COMPLETED and found.owner != self.owner
            self._turn_or_later()
            return future

    def add(
        self,
        consumer: Consumer,
        position: int,
        count: int,
        function: Function,
        text: str | None,
        calls: Sequence[Call],
        call_options: CallOptions,
    ) -> None:
        """Store `count` calls for consecutive positions of a consumer: as one `text`, or else as `calls`."""
        with self.driver:
            self._enter()
            self._dispatch_queue.know(function)
            if self.run.continues:
                if text is not None:
                    calls = [Call(codec.encode_call(tuple(row), {})[0]) for row in codec.decode(text)]
                self._add_resumed(consumer, position, function, calls, call_options)
            else:
                self._add_new(consumer, position, count, function, text, calls, call_options)

    def prepare(self) -> Any:
        """Make ready for a first call, before it is described, and return the engine's snapshot.

        No turn is under way meanwhile, if that forks.
        """
        with self.driver:
            if not self.driver.is_closed:
                self.engine.prepare()
            return self.engine.snapshot

    def free_capacity(self) -> int:
        """Return how many calls of a map are best added at once, for one worker to take; 0 if all have enough."""
        with self.driver:
            return 0 if self._pending.some or self._dispatch_queue.size else self.engine.free_capacity()[1]

    def future(self, number: int) -> Any:
        """Return a future for any task of the store, or None if there is none of that id."""
        with self.driver:
            self._enter()
            found = self.store.states([number])
            if not found:
                return None
            future = self._future_of(found[0])
            self._turn_or_later()
            return future

    def work_off(self) -> None:
        """Begin with the queue, whoever has added to it, though nothing has been added here."""
        with self.driver:
            self._queues = (self.run.queue,)
            self._dispatch_queue.by_run = True
            self._enter()
            self._turn_or_later()

    def cancel(self, numbers: Sequence[int], running: bool = False) -> None:
        """Cancel those of the tasks that have not started, for good; with `running`, end those that have."""
        with self.driver:
            if not self.driver.is_closed:
                self._cancel(numbers, running)

    def forget(self, consumer: Consumer) -> None:
        """Nobody waits for the consumer's tasks any more: cancel those that have not started."""
        with self.driver:
            if not self.driver.is_closed:
                self._cancel(self._waiters.numbers(consumer))

    def watch(self, iterator: Any, consumer: Consumer) -> None:
        """As `forget()`, when an iterator is dropped, with a turn that follows."""
        self._watched[id(consumer)] = _Watch(iterator, consumer, self._dropped.append, self.driver.waker)

    def unwatch(self, consumer: Consumer) -> None:
        """Do nothing when it is dropped, as it has come to its end."""
        self._watched.pop(id(consumer), None)

    def close_with(self, executor: Any) -> None:
        """As `close(wait=False)`, when the executor is dropped: by another thread, for the reason that _Watch has."""
        dropped = open_dispatchers[self] = _Dropped(executor, operator.methodcaller("wake"))
        dropped.wake = functools.partial(start_new_thread, self.close, (False,))

    def read(self, first: int, count: int) -> list[Any]:
        """Return the outcomes of finished tasks with consecutive ids, each as for a Consumer; also after the end."""
        numbers = range(first, first + count)
        with self.driver:
            if not self.driver.is_closed:
                return [outcome_of(found) for found in sorted(self.store.states(numbers))]
        with contextlib.closing(self.store.reopen()) as store:
            return [outcome_of(found) for found in sorted(store.states(numbers))]

    def wait_until(self, done: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Wait for what a turn brings, see Driver.wait_until()."""
        return self.driver.wait_until(done, timeout_s)

    def stacks(self, timeout_s: float) -> dict[int, str]:
        """Return the Python stacks of the calls that are running, by id. Those that wait meanwhile are not held up."""
        ended = threading.Event()
        with self.driver:
            probe = self.engine.probe_stacks(ended.set)
        self.driver.wait_until(ended.is_set, timeout_s)
        with self.driver:
            return probe.stacks()

    def has_claimed(self, number: int) -> bool:
        """Return whether the task is with a worker, here or elsewhere, or about to be."""
        with self.driver:
            if number in self.engine.held() or number in self._dispatch_queue.ids():
                return True
            is_open = not self.driver.is_closed
            return is_open and any(found.status is Status.RUNNING for found in self.store.states([number]))

    # adding

    def _enter(self) -> None:
        """Make ready for a turn in the thread of whoever adds something. The lock is held."""
        if self.failure is not None:
            raise PoolBroken(self.failure)
        if self._closing:
            raise RuntimeError("cannot schedule new futures after shutdown")
        self.driver.start()
        self._holds = False
        self._is_visit = True
        if self._waiters.open:  # a burst
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

    def _submit_new(self, function: Function, call: Call, call_options: CallOptions) -> Any:
        number = self._ids.take(1)
        future = self._new_future(self, number)
        future.recurs = call_options.options is not None and call_options.options.interval is not None
        self._waiters.add_future(number, future)
        try:
            if call_options is USUAL and self._has_room_for_one():
                self.store.add_claimed(self.owner, self.run, number, function, call, now())
                if self._holds:
                    self._dispatch_queue.hold_one(number, function, call)
                    self.driver.tick()
                else:
                    self._dispatch_queue.give_one(number, function, call)
            else:
                self._turn(Batch(number, 1, function, None, (call,), False, *call_options))
        except BaseException as error:
            self._waiters.remove_future(number)
            self._fail_by(error)
            raise
        return future

    def _has_room_for_one(self) -> bool:
        """Return whether a new call can go to a worker, with no older one and nothing else to do first."""
        if self._pending.some or self._pending.is_alone:
            return False
        if self._holds:
            return self._dispatch_queue.size < self._capacity
        engine = self.engine
        return (
            not (self._dispatch_queue.size or engine.reports or self._reports or engine.broken)
            and engine.free_capacity()[1] > 0
        )

    def _future_of(self, found: TaskState) -> Any:
        """Return the future of a task that is in the store already."""
        future: Any = self._waiters.future(found.id)
        if future is None:
            future = self._new_future(self, found.id)
            self._waiters.add_future(found.id, future)
            self._take_in_state(found, may_adopt=True)
        return future

    def _add_new(
        self,
        consumer: Consumer,
        position: int,
        count: int,
        function: Function,
        text: str | None,
        calls: Sequence[Call],
        call_options: CallOptions,
    ) -> None:
        first = self._ids.take(count)
        self._waiters.add_range(first, count, consumer, position)
        try:
            self._turn(Batch(first, count, function, text, calls, False, *call_options))
        except BaseException as error:
            self._waiters.remove_range(first)
            self._fail_by(error)
            raise

    def _add_resumed(
        self, consumer: Consumer, position: int, function: Function, calls: Sequence[Call], call_options: CallOptions
    ) -> None:
        """Add calls of which some may be in the store already, by the runs that this one continues."""
        found = self._resumption.find_each(function, calls)
        self._must_notify = self._must_notify or self._resumption.has_retried
        start = 0
        for place, known in enumerate([*found, None]):
            if known is None and place < len(calls):
                continue
            if start < place:  # new ones in between
                self._add_new(
                    consumer, position + start, place - start, function, None, calls[start:place], call_options
                )
            start = place + 1
            if known is not None:
                self._waiters.add_single(known.id, consumer, position + place)
                # What is PENDING is of this run by now; what runs elsewhere may be left by whoever runs it.
                self._take_in_state(known, may_adopt=known.status is Status.RUNNING)
        self._turn_or_later()

    # cancelling

    def _cancel(self, numbers: Sequence[int], running: bool = False) -> None:
        """Cancel tasks. Raises StoreError if they could not be; what was taken back for it then runs all the same."""
        if not numbers:
            return
        cancelled = self.store.cancel(numbers, now(), running)
        self._take_in_cancelled(cancelled)
        if running:
            self._abort(set(cancelled))
        mine = self._recall(set(numbers).difference(cancelled))
        if mine:
            # From here on they are with nobody. They are released with this turn, or else with the next.
            self._releases |= mine
            self._pending.some = self._must_notify = True
            self.driver.wake()
            self._commit_releases()
            self._take_in_cancelled(self.store.cancel([*mine], now()))
        if self._must_notify:
            self._notify()

    def _take_in_cancelled(self, cancelled: Sequence[int]) -> None:
        for number in cancelled:
            self._waiters.resolve(number, CANCELLED)
        if cancelled:
            # It is a change to this owner too, to be cleared with the next turn.
            self._was_notified = self._must_notify = True
            self.driver.wake()  # for that turn: others may have waited for what is cancelled

    def _commit_releases(self) -> None:
        outcomes = [Outcome(number, attempt, Event.RELEASE) for number, attempt in self._releases.items()]
        try:
            self.store.turn(self.owner, self.run, Turn(now(), outcomes=outcomes))
        except StoreError as error:
            self._take_in_refusal(error)
            raise
        self._releases.clear()

    def _cancel_dropped(self) -> None:
        while self._dropped:
            consumer = self._dropped[0].consumer
            self._cancel(self._waiters.numbers(consumer))
            self._dropped.popleft()  # now that it is done
            self.unwatch(consumer)

    def _abort(self, numbers: set[int]) -> None:
        """End those of the tasks here whose claim is gone."""
        self._recall(numbers)
        self.engine.end(numbers)

    def _recall(self, numbers: set[int]) -> dict[int, int]:
        """Take back those of the tasks that have not started, and return their attempts by id."""
        self.engine.recall(numbers)
        self._take_reports()
        mine = self._dispatch_queue.take_out(numbers)
        if self._dispatch_queue.size:
            self.driver.tick()
        return mine

    # the turn

    def take_turn(self) -> None:
        """Take the turn for what has come. It raises nothing: what could not be stored is tried again."""
        self._is_visit = self._holds = False
        if self._peers.was_notified or self._peers.look_at is not None:
            self._look_after_peers()
        self._turn_or_later()

    def _turn_or_later(self) -> None:
        """Take a turn now, or if that fails once more later."""
        try:
            self._turn()
        except StoreError as error:
            _log.error("%s; it is tried again every %s s", error, RETRY_S)
        except Exception as error:  # noqa: BLE001 - a fault of our own: nobody may wait for ever because of it
            self._fail_by(error)

    def _turn(self, batch: Batch | None = None) -> None:
        """Take a turn. Raises StoreError if it could not be committed, and then nothing has changed in the store."""
        if self.failure is not None:
            return
        refused = batch if self.engine.broken is not None else None
        if refused is not None:
            batch = None
        self._retry_at = None
        try:
            if self._dropped:
                self._cancel_dropped()
            if not self._holds:
                self.engine.steal(time.monotonic(), self._is_idle)
            self._take_reports()
            turn, ends = self._planned(batch)
            if not is_empty(turn) or self._claims.unread:
                turned = self._commit(turn)
                self._hand_on(turn, ends, turned)
            self._refused_since = None  # also where nothing is left that was refused
        except StoreError as error:
            self._take_in_refusal(error)
            raise
        if self._was_notified or self._changes:
            self._catch_up()
        if self._must_notify:
            self._notify()
        if self.engine.broken is not None:
            self.fail(
                PoolBroken(f"no worker can be started; the calls stay in the store. In a worker:\n{self.engine.broken}")
            )
            if refused is not None:
                raise PoolBroken(self.failure)

    def _planned(self, batch: Batch | None) -> tuple[Turn, ClaimEnds]:
        engine, pending = self.engine, self._pending
        moment = now()
        ends = claim_ends_of(
            self._reports, self._claims.special, self._crash_retries, moment, lambda: self._ids.take(1)
        )
        if self._draining:
            self._releases |= self._dispatch_queue.take_all()
            self._releases |= {task.id: task.attempt for task in self._claims.unread}
            self._claims.unread = []
        if self._releases:
            ends.outcomes.extend(Outcome(number, n, Event.RELEASE) for number, n in self._releases.items())
        if not self._holds and not self._draining:
            self._dispatch_queue.give()
        total, best = (0, 0) if engine.broken is not None else engine.free_capacity()
        self._capacity = total
        if self._may_adopt or (self._was_notified and (self._runs_leftovers or self._foreign)):
            self._adopt()
        # What few turns need is looked up for those alone.
        is_late = pending.next_tier is not None or pending.is_alone
        found = Situation(
            moment,
            total,
            best,
            engine.idle() if is_late else 0,
            self._dispatch_queue.size,
            is_late and engine.is_busy(),
            is_late and self._claims.are_suspects([*engine.held()]),
            self._is_visit,
            self._draining,
            self._was_notified,
        )
        turn, waits = pending.plan(ends, batch, self._queues, found)
        if waits:
            self.driver.hold_off()
            self.driver.tick()
        return turn, ends

    def _commit(self, turn: Turn) -> TurnResult:
        try:
            return self.store.turn(self.owner, self.run, turn)
        except TooLarge:
            if not turn.outcomes and not turn.blocks:
                raise
            return self._commit_apart(turn)

    def _commit_apart(self, turn: Turn) -> TurnResult:
        """Commit each outcome alone, since one is too large for the store. That one's call fails for it."""
        refused, freed = set(), False
        for outcome in singly(turn):
            try:
                turned = self.store.turn(self.owner, self.run, Turn(turn.now, outcomes=[outcome]))
                refused |= turned.refused
            except TooLarge as error:
                turned = self.store.turn(self.owner, self.run, Turn(turn.now, outcomes=[too_large(outcome, error)]))
                refused.add(outcome.id)  # what was reported of it is not what became of it
            freed = freed or turned.freed
        turn.outcomes, turn.blocks = [], []
        turned = self.store.turn(self.owner, self.run, turn)
        turned.refused |= refused
        turned.freed = turned.freed or freed
        return turned

    def _hand_on(self, turn: Turn, ends: ClaimEnds, turned: TurnResult) -> None:
        """Hand on what is committed: nothing in here may fail, and so nothing asks the store without a second try."""
        self._reports.clear()
        self._releases.clear()
        for numbers, outcome in ends.resolutions:
            self._waiters.resolve_all(numbers, outcome, turned.refused)
            if self._claims.special:
                self._claims.end(numbers)
        self._claims.note(turned.claimed)
        if self._pending.take_in(turn, turned):
            self.driver.wake()
        for batch in turn.adds:
            if not batch.claimed:
                continue
            if self._holds or self._dispatch_queue.size:
                self._dispatch_queue.hold_batch(batch)
                self.driver.tick()
            else:
                self._dispatch_queue.give_batch(batch)
        if turned.claimed or self._claims.unread:
            self._give(turned.claimed)
        self._changes += turned.refused
        self._was_notified = self._was_notified or turned.foreign
        if is_of_interest(turn):
            self._must_notify = True

    def _give(self, claimed: Sequence[Claimed]) -> None:
        """Give claimed tasks to the workers, or hold them. Those for which the store cannot be read come later."""
        unread = self._dispatch_queue.give_claimed(self._claims.ready(claimed))
        self._claims.unread += unread  # apart from the line above, in which others are put there
        if self._claims.unread:
            self._try_again()
        if self._claims.reports:
            self._reports += self._claims.reports
            self._claims.reports = []
            self.driver.wake()

    def _take_reports(self) -> None:
        """Take over what the engine reports; a part that came back is with us again, whatever else happens."""
        for report in self.engine.reports:
            if report.kind == RETURNED:
                self._dispatch_queue.hold(report.payload)
            else:
                self._reports.append(report)
        self.engine.reports.clear()

    # others

    def _look_after_peers(self) -> None:
        try:
            if self._peers.look_after():
                self._pending.some = self._may_adopt = True  # whoever has found it
        except StoreError as error:
            _log.error("%s; it is tried again every %s s", error, RETRY_S)
            self._peers.look_at = time.monotonic() + RETRY_S  # not _try_again(): the turn that follows unsets it
            self._must_notify = True  # of what was taken back before it failed

    def _adopt(self) -> None:
        """Have this run be of what is waited for here, or lies about, and nobody else would run."""
        self._foreign = {number for number in self._foreign if number in self._waiters}
        adopted = self.store.adopt(self.run, None, now()) if self._runs_leftovers else 0
        if self._foreign and self.engine.max_workers:
            adopted += self.store.adopt(self.run, self._foreign, now())
        self._pending.some = self._pending.some or adopted > 0
        self._may_adopt = False

    def _catch_up(self) -> None:
        """Take in what others did. What was committed stays so if that fails: it is done again later."""
        try:
            if self._was_notified:
                self._changes += self.store.read_changes(self.owner)
            self._pending.some = True
            self._may_adopt = self._runs_leftovers or bool(self._foreign)
            self._take_in_changes(self._changes)
            self._changes.clear()
            self._was_notified = False
        except StoreError as error:
            self._was_notified = True
            self._try_again()
            _log.error("%s; it is tried again every %s s", error, RETRY_S)

    def _notify(self) -> None:
        """Tell the others that something is there for them, now or later: it is committed."""
        try:
            self.store.notify(self.owner)
            self._must_notify = self._resumption.has_retried = False
        except StoreError as error:
            self._must_notify = True
            self._try_again()
            _log.error("%s; others are told in %s s", error, RETRY_S)

    def _take_in_changes(self, numbers: Sequence[int]) -> None:
        """Take in that tasks were finished or cancelled by others."""
        self._look(number for number in numbers if number in self._waiters)
        if numbers and (mine := self._dispatch_queue.ids().union(self.engine.held()).intersection(numbers)):
            still = {found.id for found in self.store.states(mine) if found.status is Status.RUNNING}
            self._abort(mine - still)

    def _look(self, numbers: Iterable[int]) -> None:
        """Ask the store how tasks stand, and resolve those that are finished."""
        asked = list(numbers)
        if asked:
            for found in self.store.states(asked):
                self._take_in_state(found)

    def _take_in_state(self, found: TaskState, may_adopt: bool = False) -> None:
        """Resolve a task that the store says is finished, or see to it that it is run."""
        if found.status in FINISHED:
            self._waiters.resolve(found.id, outcome_of(found))
            return
        if may_adopt:
            self._foreign.add(found.id)
            self._may_adopt = True
        if found.status is Status.PENDING:
            self._pending.some = True

    # what the driver asks

    def next_alarm(self) -> float | None:
        """Return the seconds until something is due that no event tells of."""
        # Without the lock: what changes meanwhile is followed by a turn, and so by another look.
        # The last two where a submit took them in: it failed then, or it leaves the peers to this thread.
        if (self._dropped and self._retry_at is None) or self.engine.reports or self._peers.was_notified:
            return 0
        alarm = earlier(earlier(self.engine.next_check(self._is_idle), self._retry_at), self._peers.look_at)
        left = None if alarm is None else max(alarm - time.monotonic(), 0.0)
        due = self._pending.due
        if due is not None:
            # By the clock on the wall, which may be set meanwhile: so it is looked at now and then.
            left = earlier(left, min(max((due - now()) / 1e6, 0.0), LOOK_AT_CLOCK_S))
        return left

    def holds_back(self) -> bool:
        """Return whether calls wait for the end of a burst."""
        return self._dispatch_queue.size > 0

    def notify_waiting(self) -> bool:
        """Tell the futures that were resolved; return whether there were any, or a consumer was given something."""
        waiters = self._waiters
        was_put = waiters.put
        if was_put:  # not if it is not: another thread may be putting something just now
            waiters.put = False
        return bool(waiters.to_notify and waiters.notify_waiting()) or was_put

    def is_over(self) -> bool:
        """Return whether everything that was asked for is done, and nothing more is taken."""
        if not self._closing or self._waiters.open or not self._waiters.all_notified:
            return False
        return self.failure is not None or not (
            self.engine.is_busy() or self.engine.reports or self._reports or self._releases
        )

    def _is_idle(self) -> bool:
        return not self._pending.some and not self._dispatch_queue.size and self.engine.free_capacity()[1] > 0

    def _on_notification(self) -> None:
        assert self._notify_fd is not None
        drain(self._notify_fd)
        self._was_notified = self._peers.was_notified = True

    # endings

    def close(self, wait: bool, cancel_futures: bool = False) -> None:
        """Take nothing more, and end when everything awaited is resolved. With `wait`, return only then."""
        with self.driver:
            if self.driver.is_closed:
                return
            self._closing = self.driver.is_ending = True
            if cancel_futures:
                try:
                    self._cancel(self._waiters.numbers())
                except StoreError as error:
                    _log.error("%s; calls that could not be cancelled are run", error)
        self.driver.rouse()
        if not self.driver.has_thread:
            self.end()
        elif wait and not self._waiters.is_notifying():
            self.driver.wait_until(self.is_over)
            self.driver.rouse()
            self.driver.join()

    def stop(self, signal_number: int, why: str) -> None:
        """End the workers now. Calls that are not done stay in the store as PENDING; their futures fail."""
        with self.driver:
            if self.driver.is_closed:
                return
            self.clean = False
            self._closing = self._draining = self.driver.is_ending = True
            try:
                self._save_results()
            finally:
                self.engine.close(signal_number, KILL_AFTER_S)
            self.fail(PoolBroken(f"{why}; the call stays in the store and can be run again"))
        self.close(wait=True)

    def _save_results(self) -> None:
        """Bring in the results of calls that are done, before their workers are ended."""
        self.engine.ask_for_results()
        deadline = time.monotonic() + ANSWER_S
        while self.engine.awaits_results() and (left := deadline - time.monotonic()) > 0:
            self.driver.poll(left)
        try:
            self._turn()
        except StoreError as error:
            _log.error("the last results could not be stored, and their calls will run again: %s", error)

    def drain(self) -> None:
        """Claim nothing more, give back what has not started, and be finished when what runs is stored."""
        with self.driver:
            self._closing = self._draining = self.driver.is_ending = True
            self.engine.recall(set(self.engine.held()))
            self.driver.wake()

    def serve(self, is_over: Callable[[], bool]) -> None:
        """Take turns in the calling thread until it is drained, the pool is broken, or `is_over()`."""
        self.driver.rouse()  # for what is there already
        self.driver.wait_until(lambda: is_over() or self.driver.is_stopped or self.is_over())

    def listen(self, fd: int, on_data: Callable[[], None]) -> None:
        """Have `on_data` called in a turn, under the lock, when `fd` can be read."""
        self.driver.selector.register(fd, selectors.EVENT_READ, lambda _: on_data())

    def end(self) -> None:
        """Close everything: nothing is asked for any more."""
        with self.driver:
            if self.driver.is_closed:
                return
            self.engine.close(grace_s=None if self.failure is None else KILL_AFTER_S)
            sessions.leave(self.store.address)
            try:
                if self.run.id:
                    self.store.end_run(self.run, self.clean, now())
            except StoreError as error:
                _log.error("the run could not be closed, and will be continued as a broken one: %s", error)
            try:
                self.store.leave(self.owner)
            except StoreError as error:
                _log.error("what is claimed here could not be given back before this process ends: %s", error)
            finally:
                self.store.close()
            open_dispatchers.pop(self, None)
            self._let_go()
            self._peers.close()

    def _let_go(self) -> None:
        self._watched.clear()  # before the pipe is closed that they write to
        self.driver.close()
        if self._notify_fd is not None:
            os.close(self._notify_fd)

    def leave_to_parent(self) -> None:
        """After a fork, in the child: the executor is the parent's alone, and this process must not touch it."""
        if self.driver.is_closed:
            return
        self._closing = True
        self._watched.clear()
        self.failure = "this executor belongs to the parent process; make another one after the fork"
        self.driver.leave_to_parent()
        self.engine.leave_to_parent()
        self._peers.close()
        if self._notify_fd is not None:
            os.close(self._notify_fd)

    # faults

    def _try_again(self) -> None:
        self._retry_at = time.monotonic() + RETRY_S

    def _take_in_refusal(self, error: StoreError) -> None:
        """Try again what the store has refused, but not for ever."""
        moment = time.monotonic()
        if self._refused_since is None:
            self._refused_since = moment
        if self._reports or self._releases:
            self.store.reserve.let_go()  # for these; it may be that the disk is full
        if moment - self._refused_since > REFUSED_S:
            self.fail(error)
        else:  # whatever it was: outcomes, releases, claims that are not given yet, news for others
            self._retry_at = moment + RETRY_S

    def _fail_by(self, error: BaseException) -> None:
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
        self._reports.clear()
        self._releases.clear()
        self._waiters.fail_all(error)
        self.driver.rouse()  # to tell them, where this thread does not
