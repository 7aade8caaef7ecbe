"""The loop at the heart of an executor: events in, one store transaction a turn, futures out.

    submit, map ---add()---.                         .--resolves--> futures, maps
                           v                         |
    worker's reports --> [ a turn, under the lock:   |
    doorbell ----------> [   1. take in reports      |
                         [   2. ONE TRANSACTION: add, end, claim
                         [   3. hand claimed calls to the engine
                         [   4. resolve what was committed ---'

Guarantees, and the order that gives them:

- A call is handed to a worker only after the commit of its claim, so a claim is on disk before its
  side effects begin. A future is resolved only after the commit of its outcome.
- Reports are dropped only once they are committed. If the store fails they are kept and offered
  again with the next turn, at the latest RETRY_S later.
- An outcome that the store refuses (its claim was lost) resolves nothing; the store is asked how
  the task stands.

Who takes turns. Any thread that is in the executor anyway: `submit()` takes one for its own call,
and a thread that waits for a result, or for the next item of a map, takes turns until it has it
(`drive()`). It saves two switches between threads per call, and leaves the interpreter's lock to
the one thread that has something to do. For all other times there is a thread of the dispatcher's
own (`_run()`), which waits for the same events.

- While others drive it stands by: it looks again after STANDBY_S, and sleeps without a clock once
  the same driver is still there then. That driver has been at it for longer than STANDBY_S, so it
  knows to wake the thread when it leaves.
- Where threads have driven lately, or submit in a burst (such turns bring in outcomes as well), it
  lets GRACE_S pass, and takes no turn if somebody came meanwhile. Otherwise the two would meet at
  the lock with every single call.

In a burst, claimed calls are held for up to POLL_S and given to the workers many at a time: waking
a worker costs more than storing a call. A call that comes alone is given at once.
"""

import logging
import os
import selectors
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..engines.local.pool import RETURNED, LocalEngine, Report
from ..engines.pacing import STEAL_AFTER_S, earlier
from ..errors import KeyConflict, PoolBroken, StoreError, TaskNotFound, TooLarge
from ..model import codec, dependencies
from ..model.functions import same_arguments
from ..model.ids import Ids
from ..model.options import Plan
from ..model.preview import shown_arguments
from ..model.task import FINISHED, LAST_TIER, MOST_OWNER_DEATHS, Call, Event, Function, Status
from ..stores.base import Batch, Claimed, Found, Outcome, Run, Store, Turn, Turned, now
from . import sessions
from .peers import Neighbours
from .queue import Handout
from .results import ORPHANED, UNMET, Ends, ends_of, singly, too_large
from .turnlock import TurnLock
from .waiters import CANCELLED, Sink, Waiter, Waiting, outcome_of

RETRY_S = 1.0  # until outcomes that could not be stored are offered again
STANDBY_S = 0.005
GRACE_S = 0.001
ANSWER_S = 0.2  # in which workers that are to be ended can send what they have
KILL_AFTER_S = 5.0  # for workers that do not end by themselves when they should
LOOK_AT_CLOCK_S = 30.0
STIR_S = 0.005  # at most, in which a thread that was woken gets a CPU
POLL_S = 0.002  # of a burst, after which a caller's turn brings in outcomes and gives what is held

USUAL = Plan()

_log = logging.getLogger("omniq_executor")


class Dispatcher:
    """See the module's docstring. Executors make one each; it is not for direct use."""

    def __init__(
        self,
        store: Store,
        owner: int,
        run: Run,
        engine: LocalEngine,
        crash_retries: int,
        waiting: Waiting | None = None,
        queues: Sequence[str] | None = None,
        runs_leftovers: bool = False,
        new_future: "Callable[[Dispatcher, int], Waiter] | None" = None,
    ) -> None:
        """`queues` are those to claim from, as in Turn, or None for what is of the run.

        `waiting` is told of what finishes. With `runs_leftovers` the run adopts what is PENDING in its queue and
        that nobody else would run. `new_future` makes what waits for the task of an id.
        """
        self.store = store
        self.owner = owner
        self.run = run
        self.engine = engine
        self.lock = TurnLock()
        self.clean = True  # whether the run has gone well so far
        self.failure: str | None = None  # why nothing is taken any more
        self._crash_retries = crash_retries
        self._closing = False
        self._closed = False
        self._stopping = False  # whether nothing is given to workers any more
        self._ids = Ids(owner)
        self._waiting = waiting or Waiting()
        self._queues = queues
        self._dropped: deque[Sink] = deque()  # by whoever waited
        self._handout = Handout(store, engine)
        self._handout.by_run = queues is not None
        self._room = 0  # of the workers, for how many calls, when it was last looked at
        self._claims: dict[int, Claimed] = {}  # of tasks claimed here that crashed before, or have options
        self._unbound: list[Claimed] = []  # those whose results of other tasks could not be read yet
        self._due: int | None = None  # when the next PENDING task is, as far as is known
        self._reports: list[Report] = []  # taken in, not committed yet
        self._backlog = True  # whether the store may have PENDING tasks for us
        self._next_tier: int | None = None  # the first of the others that has some, see model.tier()
        self._is_visit = False  # whether the present turn is of somebody who adds, and may add more
        self._is_alone = False  # whether a call of the last tier is under way, beside which nothing runs
        self._runs_leftovers = runs_leftovers
        self._new_future: Any = new_future
        self._foreign: set[int] = set()  # tasks that are waited for here and may be for nobody else to run
        self._may_adopt = runs_leftovers  # whether some of those may have become so
        self._said = False  # that a run is continued
        self._retry_at: float | None = None
        self._visits = 0  # of threads that drive, or submit while other calls are open
        self._grace = False
        self._holds = False  # whether the present turn gives nothing to workers
        self._ticking = False  # whether a wake for what is held is under way
        self._polled_at = 0.0
        self._heard = 0  # how often events were taken in
        self._asleep: set[int] = set()  # threads that wait for events and wake up for nothing else
        self._stirred = threading.Event()  # set when one of them is not asleep any more
        self._stirred.set()
        self._driver: object | None = None
        self._driver_thread = 0
        self._driver_lock = threading.Lock()
        self._standby = threading.Event()
        self._thread: threading.Thread | None = None
        self._selector = selectors.DefaultSelector()
        self._wake_r, self._wake_w = os.pipe()
        os.set_blocking(self._wake_r, False)
        os.set_blocking(self._wake_w, False)
        self._selector.register(self._wake_r, selectors.EVENT_READ, lambda _: self._on_wake())
        self._rung = False  # whether others may have finished something, or added
        self._news: list[int] = []  # tasks that are finished, to be looked at
        self._bell: int | None = None
        bell = store.bell_path(owner)
        if bell.exists():
            self._bell = os.open(bell, os.O_RDWR | os.O_NONBLOCK)  # RDWR: it never sees the end of its last writer
            self._selector.register(self._bell, selectors.EVENT_READ, lambda _: self._on_bell())
        engine.attach(self._selector, self._wake, store.slots_path(owner))
        self._neighbours = Neighbours(store, owner, self._selector)

    # what executors, maps and futures ask for

    def submit(self, function: Function, call: Call, plan: Plan) -> Any:
        """Store a call, and give it to a worker if one has room; returns its future.

        Raises StoreError, and leaves nothing behind then.
        """
        key = plan.key
        with self.lock:
            self._enter()
            self._handout.know(function)
            found = self._known(function, call, key)
            if found is not None:
                future = self._future_of(found)
                future.resumed = found.status is Status.COMPLETED and found.owner != self.owner
                self._turn()
            else:
                try:
                    future = self._submit_new(function, call, plan)
                except StoreError:
                    # Another process may have been faster with the same key.
                    found = self.store.by_key(self.run.queue, key) if key is not None else None
                    if found is None:
                        raise
                    future = self._future_of(found)
                    self._turn()
        if self._waiting.has_news or self._asleep:
            self._tell()
        return future

    def add(
        self,
        sink: Sink,
        position: int,
        count: int,
        function: Function,
        text: str | None,
        calls: Sequence[Call],
        plan: Plan,
    ) -> None:
        """Store `count` calls for consecutive positions of a sink: as one `text`, or else as `calls`."""
        with self.lock:
            self._enter()
            self._handout.know(function)
            if self.run.continues:
                if text is not None:
                    calls = [Call(codec.encode_call(tuple(row), {})[0]) for row in codec.decode(text)]
                self._add_resumed(sink, position, function, calls, plan)
            else:
                self._add_new(sink, position, count, function, text, calls, plan)
        self._tell()

    def prepare(self) -> None:
        """Make ready for a first call, before it is described. No turn is under way meanwhile, if that forks."""
        with self.lock:
            if not self._closed:
                self.engine.prepare()

    def room(self) -> int:
        """How many calls of a map are best added at once, for one worker to take; 0 if all have enough."""
        with self.lock:
            return 0 if self._backlog or self._handout.size else self.engine.room()[1]

    def future(self, number: int) -> Any:
        """A future for any task of the store, or None if there is none of that id."""
        with self.lock:
            self._enter()
            found = self.store.states([number])
            if not found:
                return None
            future = self._future_of(found[0])
            self._turn()
        self._tell()
        return future

    def work_off(self) -> None:
        """Begin with the queue, whoever has added to it, though nothing has been added here."""
        with self.lock:
            self._queues = (self.run.queue,)
            self._handout.by_run = True
            self._enter()
            self._turn()
        self._tell()

    def cancel(self, numbers: Sequence[int], running: bool = False) -> None:
        """Cancel those of the tasks that have not started, for good; with `running`, end those that have."""
        with self.lock:
            if not self._closed:
                self._cancel(numbers, running)
        self._tell()

    def forget(self, sink: Sink) -> None:
        """Nobody waits for the sink's tasks any more: cancel those that have not started."""
        with self.lock:
            if not self._closed:
                self._cancel(self._waiting.numbers(sink))
        self._tell()

    def drop(self, sink: Sink) -> None:
        """As `forget()`, from anywhere: an iterator can be collected within a turn, and then is left to the next."""
        if not self.lock.enter_if_free():
            self._dropped.append(sink)
            return
        try:
            if not self._closed:
                self._cancel(self._waiting.numbers(sink))
                if self._waiting.has_news:  # futures of its items; their callbacks are not for whoever drops it
                    self._wake()
        finally:
            self.lock.__exit__()

    def read(self, first: int, count: int) -> list[Any]:
        """The outcomes of finished tasks with consecutive ids, as a Sink is given single ones."""
        return [outcome_of(found) for found in sorted(self.store.states(range(first, first + count)))]

    def stacks(self, timeout_s: float) -> dict[int, str]:
        """The Python stacks of the calls that are running, by id. Those that wait meanwhile are not held up."""
        deadline = time.monotonic() + timeout_s
        ended = threading.Event()

        def end() -> None:
            ended.set()
            self._wake()  # another thread may have taken in the answer

        with self.lock:
            look = self.engine.look(end)
        self.drive(ended.is_set, timeout_s)
        ended.wait(max(deadline - time.monotonic(), 0))
        with self.lock:
            return look.stacks()

    def has_claimed(self, number: int) -> bool:
        """Whether the task is with a worker, here or elsewhere, or about to be."""
        with self.lock:
            if number in self.engine.held() or number in self._handout.ids():
                return True
            return not self._closed and any(found.status is Status.RUNNING for found in self.store.states([number]))

    # adding

    def _known(self, function: Function, call: Call, key: str | None) -> Found | None:
        """The task that a new call turns out to be."""
        if key is not None and (found := self._by_key(function, call, key)) is not None:
            return found
        if self.run.continues:
            return self._take_over(function, [call])[0]
        return None

    def _by_key(self, function: Function, call: Call, key: str) -> Found | None:
        """The task that has the key. Raises KeyConflict if it is another call."""
        found = self.store.by_key(self.run.queue, key)
        stored = self.store.stored([found.id]) if found is not None else []
        if found is None or not stored:  # it was purged in between
            return None
        task, _, identity = stored[0]
        if task.func_path != function.path:
            raise KeyConflict(
                f"the key {key!r} of the queue {self.run.queue!r} is of a call of {task.func_path}, {task.task_id},"
                f" and cannot be of one of {function.path} as well"
            )
        if not same_arguments(task, identity, call):
            raise KeyConflict(
                f"the key {key!r} of the queue {self.run.queue!r} is of {task.func_path} with the arguments"
                f" {shown_arguments(task.args, task.kwargs)}, {task.task_id}, and cannot be of one with"
                f" {shown_arguments(call.args, call.kwargs)} as well"
            )
        if found.status is Status.FAILED and task.run != self.run.id and self.store.revive([found.id], now()):
            self.store.ring(self.owner)
            return found._replace(status=Status.PENDING, error=None)
        return found

    def _take_over(self, function: Function, calls: Sequence[Call]) -> list[Found | None]:
        """The tasks that calls continue, as Store.take_over() has them."""
        run = self.run
        found = self.store.take_over(run, function, calls, now())
        if any(known is not None for known in found) and not self._said:
            self._said = True
            _log.warning(
                "queue %r: continuing a run that did not end clean: %d of %d calls are done (run %s)",
                run.queue, run.done, run.total, ", ".join(map(str, run.continues)),
            )  # fmt: skip
        if any(known is not None and known.status is Status.PENDING for known in found):
            self.store.ring(self.owner)  # what had failed is PENDING again, and may be for workers elsewhere
        return found

    def _submit_new(self, function: Function, call: Call, plan: Plan) -> Any:
        number = self._ids.take(1)
        future = self._new_future(self, number)
        future.recurs = plan.options is not None and plan.options.interval is not None
        self._waiting.add_future(number, future)
        try:
            if plan is USUAL and self._has_room_for_one():
                self.store.add_claimed(self.owner, self.run, number, function, call, now())
                if self._holds:
                    self._handout.hold_one(number, function, call)
                    self._tick()
                else:
                    self._handout.give_one(number, function, call)
            else:
                self._turn(Batch(number, 1, function, None, (call,), False, *plan))
        except BaseException as error:
            self._waiting.remove_future(number)
            self._fail_by(error)
            raise
        return future

    def _has_room_for_one(self) -> bool:
        """Whether a new call can go to a worker, with no older one before it and nothing else to do in a turn."""
        if self._backlog or self._is_alone:
            return False
        if self._holds:
            return self._handout.size < self._room
        engine = self.engine
        return not (self._handout.size or engine.reports or self._reports or engine.broken) and engine.room()[1] > 0

    def _future_of(self, found: Found) -> Any:
        """The future of a task that is in the store already."""
        future = self._waiting.future(found.id)
        if future is None:
            future = self._new_future(self, found.id)
            self._waiting.add_future(found.id, future)
            self._settle(found, may_adopt=True)
        return future

    def _add_new(
        self,
        sink: Sink,
        position: int,
        count: int,
        function: Function,
        text: str | None,
        calls: Sequence[Call],
        plan: Plan,
    ) -> None:
        first = self._ids.take(count)
        self._waiting.add_range(first, count, sink, position)
        try:
            self._turn(Batch(first, count, function, text, calls, False, *plan))
        except BaseException:
            self._waiting.remove_range(first)
            raise

    def _add_resumed(self, sink: Sink, position: int, function: Function, calls: Sequence[Call], plan: Plan) -> None:
        """Add calls of which some may be in the store already, by the runs that this one continues."""
        found = self._take_over(function, calls)
        start = 0
        for place, known in enumerate([*found, None]):
            if known is None and place < len(calls):
                continue
            if start < place:  # new ones in between
                self._add_new(sink, position + start, place - start, function, None, calls[start:place], plan)
            start = place + 1
            if known is not None:
                self._waiting.add_single(known.id, sink, position + place)
                # What is PENDING is of this run by now; what runs elsewhere may be left by whoever runs it.
                self._settle(known, may_adopt=known.status is Status.RUNNING)
        self._turn()

    def _cancel(self, numbers: Sequence[int], running: bool = False) -> None:
        if not numbers:
            return
        cancelled = self.store.cancel(numbers, now(), running)
        if running:
            self._abort(set(cancelled))
        mine = self._recall(set(numbers).difference(cancelled))
        if mine:
            releases = [Outcome(number, attempt, Event.RELEASE) for number, attempt in mine.items()]
            self.store.turn(self.owner, self.run, Turn(now(), outcomes=releases))
            self._backlog = True
            cancelled += self.store.cancel([*mine], now())
        for number in cancelled:
            self._waiting.resolve(number, CANCELLED)
            self._rung = True  # it is news to this owner too, to be cleared with the next turn
        if cancelled:
            self._wake()  # for that turn: others may have waited for what is cancelled
        self.store.ring(self.owner)

    def _abort(self, numbers: set[int]) -> None:
        """Have tasks not run here any more whose claim is gone."""
        self._recall(numbers)
        self.engine.end(numbers)

    def _recall(self, numbers: set[int]) -> dict[int, int]:
        """Those of the tasks that are claimed here and not started, with their attempts; nobody has them any more."""
        self.engine.recall(numbers)
        self._take_reports()
        mine = self._handout.take_out(numbers)
        if self._handout.size:
            self._tick()
        return mine

    # turns, and who takes them

    def _enter(self) -> None:
        """Make ready for a turn in the thread of whoever adds something. The lock is held."""
        if self.failure is not None:
            raise PoolBroken(self.failure)
        if self._closing:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="omniq-dispatcher", daemon=True)
            self._thread.start()
        self._holds = False
        self._is_visit = True
        if self._waiting.open:  # a burst
            self._visits += 1
            self._grace = True
            moment = time.monotonic()
            if moment - self._polled_at > POLL_S:
                self._polled_at = moment
                self._hear(self._selector.select(0))
            else:
                self._holds = True

    def drive(self, done: Callable[[], bool], timeout_s: float | None) -> None:
        """Take turns in the calling thread until `done()`, or for `timeout_s` seconds.

        Returns at once where another thread does so already: then waiting is all there is to do.
        """
        me = threading.get_ident()
        with self._driver_lock:
            nested = self._driver is not None and self._driver_thread == me  # in a callback of a future
            if self._closed or (self._driver is not None and not nested):
                return
            if not nested:
                self._driver, self._driver_thread = object(), me
                self._visits += 1
                self._grace = True
        began = time.monotonic()
        deadline = None if timeout_s is None else began + timeout_s
        try:
            if self._handout.size:  # for a burst, which is over
                self._take_turn(0)
            while not done() and self.failure is None and not self._closed:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left < 0:
                    return
                self._take_turn(left)
        finally:
            if not nested:
                self._driver = None
                if time.monotonic() - began > STANDBY_S:
                    self._standby.set()

    def _run(self) -> None:
        """The dispatcher's own thread: takes the turns that nobody else takes, and closes in the end."""
        present = None
        while not self._finished():
            self._standby.clear()
            driver = self._driver
            if self.failure is not None:  # no turns are taken any more
                self._tell()
                if not self._finished():
                    self._standby.wait()
            elif driver is None:
                self._take_turn(None, gives_way=True)
            else:
                # The second look at the same driver is STANDBY_S after the first, so it wakes us.
                self._standby.wait(None if driver is present else STANDBY_S)
            present = driver
        self._close()

    def _take_turn(self, timeout_s: float | None, gives_way: bool = False) -> None:
        """Wait for something to happen, and take the turn for it."""
        if gives_way and self._grace:
            visits = self._visits
            self._standby.wait(GRACE_S)
            if self._driver is not None or self._visits != visits:
                return
            self._grace = False
            timeout_s = 0 if self._handout.size else timeout_s
        heard = self._heard
        me = threading.get_ident()
        try:
            self._asleep.add(me)  # before the look at what is due
            try:
                timeout_s = earlier(timeout_s, self._next_alarm())
                if timeout_s is not None and timeout_s <= STEAL_AFTER_S:
                    self._asleep.discard(me)
                ready = self._selector.select(timeout_s)
            finally:
                self._asleep.discard(me)
                if not self._stirred.is_set():
                    self._stirred.set()
            if gives_way and (self._grace or self._driver is not None):
                return
            with self.lock:
                if self._closed:
                    return
                if self._heard != heard:  # by another thread: what was ready may be gone by now
                    ready = self._selector.select(0)
                self._hear(ready)
                self._holds = self._is_visit = False
                if self._neighbours.tend():
                    self._backlog = self._may_adopt = True  # whoever has found it
                self._turn()
        except StoreError as error:
            _log.error("%s; it is tried again every %s s", error, RETRY_S)
        except Exception as error:  # noqa: BLE001 - a fault of our own: nobody may wait for ever because of it
            with self.lock:
                self._fail_by(error)
        self._tell()

    def _hear(self, ready: list[tuple[selectors.SelectorKey, int]]) -> None:
        """Take in what events say. The lock is held, and nobody has taken in any since `ready` was found."""
        try:
            for key, mask in ready:
                key.data(mask)
        except Exception as error:
            self._fail_by(error)
            raise
        finally:
            # Last: who finds something ready while it is being taken in must see another count afterwards.
            self._heard += 1

    def _next_alarm(self) -> float | None:
        """Seconds until something is due that no event tells of."""
        # Without the lock: what changes meanwhile is followed by a turn, and so by another look.
        # The last two where a submit took them in: it failed then, or it leaves the neighbours to this thread.
        if self._dropped or self.engine.reports or self._neighbours.rung:
            return 0
        alarm = earlier(earlier(self.engine.next_check(self._is_idle), self._retry_at), self._neighbours.look_at)
        left = None if alarm is None else max(alarm - time.monotonic(), 0.0)
        if self._due is not None:
            # By the clock on the wall, which may be set meanwhile: so it is looked at now and then.
            left = earlier(left, min(max((self._due - now()) / 1e6, 0.0), LOOK_AT_CLOCK_S))
        return left

    def _is_idle(self) -> bool:
        return not self._backlog and not self._handout.size and self.engine.room()[1] > 0

    def _tick(self) -> None:
        """Have somebody give what is held: whoever drives, or the dispatcher's own thread within GRACE_S."""
        if not self._ticking:
            self._ticking = True
            self._wake()

    def _wake(self) -> None:
        """Have whoever waits for events look again."""
        with self.lock:
            if not self._closed:
                try:
                    os.write(self._wake_w, b"!")
                except BlockingIOError:
                    pass  # full of wakes already

    def _rouse(self) -> None:
        """Have the dispatcher's own thread look again, whatever it waits for."""
        self._standby.set()
        self._wake()

    def _on_wake(self) -> None:
        # Who is asleep, or drives and is about to be, must find what wakes it, whoever takes in events before.
        if self._asleep:
            # It has found it, and needs a CPU to say so. To take one turn after the other meanwhile would keep that
            # from it where the machine is busy.
            self._stirred.clear()
            if self._asleep:
                self._stirred.wait(STIR_S)
        if not self._asleep and (self._driver is None or self._driver_thread == threading.get_ident()):
            _drain(self._wake_r)
            self._ticking = False  # a turn follows, and gives what is held; what is held later needs another wake

    def _on_bell(self) -> None:
        assert self._bell is not None
        _drain(self._bell)
        self._rung = self._neighbours.rung = True

    # the turn

    def _turn(self, batch: Batch | None = None) -> None:
        try:
            self._do_turn(batch)
        except Exception as error:
            self._fail_by(error)
            raise

    def _do_turn(self, batch: Batch | None) -> None:
        engine = self.engine
        self._retry_at = None
        while self._dropped:
            self._cancel(self._waiting.numbers(self._dropped.popleft()))
        if not self._holds:
            engine.take_back(time.monotonic(), self._is_idle)
        self._take_reports()
        if engine.broken is not None:
            self._fail(
                PoolBroken(f"no worker can be started; the calls stay in the store. In a worker:\n{engine.broken}")
            )
            if batch is not None:
                raise PoolBroken(self.failure)
            return
        moment = now()
        if self._due is not None and moment >= self._due:
            self._due = None
            self._backlog = True
        ends = ends_of(self._reports, self._claims, self._crash_retries, moment, self._new_id)
        if self._stopping and self._handout.size:
            ends.outcomes.extend(Outcome(number, n, Event.RELEASE) for number, n in self._handout.take_all().items())
        if not self._holds and not self._stopping:
            self._handout.give()
        total, best = engine.room()
        self._room = total
        work = Turn(moment, blocks=ends.blocks, outcomes=ends.outcomes)
        if self._may_adopt or (self._rung and (self._runs_leftovers or self._foreign)):
            self._adopt()
        if self._is_alone and not (engine.is_busy() or self._handout.size):
            self._is_alone = False
            self._backlog = True
        # Who rang may have added or revived something: it is claimed in this very turn, as no other may follow.
        self._backlog = self._backlog or ends.gives_back or self._rung
        if batch is not None:
            # Claimed at once only if nothing older is PENDING, and if one worker can have all of it.
            usual = not batch.priority and not batch.eta and batch.options is None and not self._is_alone
            batch.claimed = (
                usual and not self._backlog and best >= batch.size and total >= batch.size + self._handout.size
            )
            work.adds = (batch,)
            self._backlog = self._backlog or not batch.claimed
        if not (self._handout.size or self._stopping or self._is_alone):
            self._ask_for_tasks(work, total)
        if work.adds or work.blocks or work.outcomes or work.claim or self._unbound:
            self._commit(work, ends)
        elif self._rung:
            self._catch_up(True)

    def _ask_for_tasks(self, work: Turn, total: int) -> None:
        """Have a turn claim as many tasks as there is room for, those last whose owners died in them."""
        work.queues, work.of_run = self._queues, self._queues is None
        if self._backlog:
            work.claim = total
        elif self._next_tier is not None and self._is_visit:
            self._grace = True  # they come after all that is being added
            self._tick()
        elif self._next_tier == LAST_TIER:
            # One more death is to tell which call it was, so nothing else runs meanwhile.
            work.claim, work.tier = int(total > 0 and not work.adds and not self.engine.is_busy()), LAST_TIER
        elif self._next_tier is not None and all(
            number in self._claims and self._claims[number].owner_deaths for number in self.engine.held()
        ):
            work.claim, work.tier = self.engine.idle(), self._next_tier

    def _adopt(self) -> None:
        """Have this run be of what is waited for here, or lies about, and nobody else would run."""
        self._foreign = {number for number in self._foreign if number in self._waiting}
        adopted = self.store.adopt(self.run, None, now()) if self._runs_leftovers else 0
        if self._foreign and self.engine.max_workers:
            adopted += self.store.adopt(self.run, self._foreign, now())
        self._backlog = self._backlog or adopted > 0
        self._may_adopt = False

    def _new_id(self) -> int:
        return self._ids.take(1)

    def _take_reports(self) -> None:
        """Take over what the engine reports; a part that came back is with us again, whatever else happens."""
        for report in self.engine.reports:
            if report.kind == RETURNED:
                self._handout.hold(report.payload)
            else:
                self._reports.append(report)
        self.engine.reports = []

    def _commit(self, work: Turn, ends: Ends) -> None:
        # Not for what is news to nobody: two who are rung would ring each other for ever.
        is_news = bool(work.blocks or work.outcomes) or any(not batch.claimed for batch in work.adds)
        try:
            try:
                turned = self.store.turn(self.owner, self.run, work)
            except TooLarge:
                if not work.outcomes and not work.blocks:
                    raise
                turned = self._commit_apart(work)
        except (StoreError, TaskNotFound):
            if self._reports or self._rung or work.claim:
                self._retry_at = time.monotonic() + RETRY_S
            raise
        self._reports.clear()
        if work.claim:
            self._take_in_claims(work, turned)
        elif turned.freed:
            self._backlog = True
            self._wake()
        for batch in work.adds:
            if not batch.claimed:
                continue
            if self._holds or self._handout.size:
                self._handout.hold_batch(batch)
                self._tick()
            else:
                self._handout.give_batch(batch)
        claimed: Sequence[Claimed] = turned.claimed
        if work.tier:
            claimed = self._without_deadly(claimed)
        if self._claims and not self._stopping:
            claimed = self._bound([*self._unbound, *claimed])
        self._handout.give_claimed(claimed)
        for numbers, outcome in ends.resolutions:
            self._waiting.resolve_all(numbers, outcome, turned.refused)
            for number in numbers if self._claims else ():
                self._claims.pop(number, None)
        self._news += turned.refused
        if is_news:
            self.store.ring(self.owner)
        if turned.foreign or self._rung or self._news:
            self._catch_up(turned.foreign)

    def _take_in_claims(self, work: Turn, turned: Turned) -> None:
        """Note what a turn has claimed, and what is left to claim."""
        for task in turned.claimed:
            if task.crashes or task.owner_deaths or task.options is not None:
                self._claims[task.id] = task
        self._is_alone = work.tier == LAST_TIER and bool(turned.claimed)
        if len(turned.claimed) == work.claim:
            return
        dues = [due for due in (turned.due, self._due if work.tier else None) if due is not None]
        self._due = min(dues, default=None)
        self._next_tier = turned.next_tier
        self._backlog = self._backlog and work.tier > 0
        if self._next_tier is not None:
            self._wake()  # for the turn that claims those

    def _without_deadly(self, claimed: Sequence[Claimed]) -> list[Claimed]:
        """Those of the claimed tasks that are run; the others have killed their owners too often."""
        for task in claimed:
            if task.owner_deaths >= MOST_OWNER_DEATHS:
                self._reports.append(Report(ORPHANED, [task.id], [task.attempt], task.owner_deaths))
                self._wake()
        return [task for task in claimed if task.owner_deaths < MOST_OWNER_DEATHS]

    def _catch_up(self, is_foreign: bool) -> None:
        """Take in what others did. What was committed stays so if that fails: it is done again later."""
        try:
            if is_foreign or self._rung:
                self._rung = True
                self._news += self.store.hear(self.owner)
            self._backlog = True
            self._may_adopt = self._runs_leftovers or bool(self._foreign)
            self._hear_of(self._news)
            self._news.clear()
            self._rung = False
        except StoreError as error:
            self._rung = True
            self._retry_at = time.monotonic() + RETRY_S
            _log.error("%s; it is tried again every %s s", error, RETRY_S)

    def _bound(self, claimed: Sequence[Claimed]) -> list[Claimed]:
        """The claimed tasks with the results that they are given, less those for which there are none."""
        needed = {number for task in claimed for number in _after(task)}
        try:
            stand = {found.id: found for found in self.store.states(needed)} if needed else {}
        except StoreError as error:
            _log.error("%s; results that calls are given are read again in %s s", error, RETRY_S)
            self._unbound = [task for task in claimed if _after(task)]
            self._retry_at = time.monotonic() + RETRY_S
            return [task for task in claimed if not _after(task)]
        self._unbound = []
        ready: list[Claimed] = []
        for task in claimed:
            after = {number: stand.get(number) for number in _after(task)}
            results = {found.id: found.result for found in after.values() if found and found.result is not None}
            if not after:
                ready.append(task)
            elif len(results) == len(after):
                ready.append(task._replace(args=dependencies.bind(task.args, task.kwargs, results), kwargs=None))
            else:
                self._reports.append(Report(UNMET, [task.id], [task.attempt], after))
                self._wake()
        return ready

    def _commit_apart(self, work: Turn) -> Turned:
        """Commit each outcome alone, since one is too large for the store. That one's call fails for it."""
        refused, freed = set(), False
        for outcome in singly(work):
            try:
                turned = self.store.turn(self.owner, self.run, Turn(work.now, outcomes=[outcome]))
                refused |= turned.refused
            except TooLarge as error:
                turned = self.store.turn(self.owner, self.run, Turn(work.now, outcomes=[too_large(outcome, error)]))
                refused.add(outcome.id)  # what was reported of it is not what became of it
            freed = freed or turned.freed
        work.outcomes, work.blocks = [], []
        turned = self.store.turn(self.owner, self.run, work)
        turned.refused |= refused
        turned.freed = turned.freed or freed
        return turned

    def _hear_of(self, numbers: Sequence[int]) -> None:
        """Take in that tasks were finished or cancelled by others."""
        self._look(number for number in numbers if number in self._waiting)
        if numbers and (mine := self._handout.ids().union(self.engine.held()).intersection(numbers)):
            still = {found.id for found in self.store.states(mine) if found.status is Status.RUNNING}
            self._abort(mine - still)

    def _look(self, numbers: Iterable[int]) -> None:
        """Ask the store how tasks stand, and resolve those that are finished."""
        asked = list(numbers)
        if asked:
            for found in self.store.states(asked):
                self._settle(found)

    def _settle(self, found: Found, may_adopt: bool = False) -> None:
        """Resolve a task that the store says is finished, or see to it that it is run."""
        if found.status in FINISHED:
            self._waiting.resolve(found.id, outcome_of(found))
            return
        if may_adopt:
            self._foreign.add(found.id)
            self._may_adopt = True
        if found.status is Status.PENDING:
            self._backlog = True

    def _tell(self) -> None:
        """Outside the lock: tell those who wait, and whoever takes turns for them."""
        told = self._waiting.tell()
        if self._asleep:
            self._wake()  # it may have to look again earlier than it meant to
        if told or self._waiting.put or self._closing:
            self._waiting.put = False
            if self._looks_elsewhere():
                # What it waits for may have come, after it looked and before it waits for events.
                self._wake()
                if self.failure is not None:
                    self._standby.set()  # for the end of the dispatcher's own thread

    def _looks_elsewhere(self) -> bool:
        """Whether another thread than this one takes the turns, and may be waiting for events."""
        me = threading.current_thread()
        if self._driver is not None:
            return self._driver_thread != me.ident
        return self._closing and me is not self._thread

    # endings

    def close(self, wait: bool, cancel_futures: bool = False) -> None:
        """Take nothing more, and end when everything awaited is resolved. With `wait`, return only then."""
        with self.lock:
            if self._closed:
                return
            self._closing = True
            if cancel_futures:
                self._cancel(self._waiting.numbers())
        self._tell()
        self._rouse()
        if self._thread is None:
            self._close()
        elif wait and self._thread is not threading.current_thread():
            self.drive(self._finished, None)
            self._rouse()
            self._thread.join()

    def stop(self, signal_number: int, why: str) -> None:
        """End the workers now. Calls that are not done stay in the store as PENDING; their futures fail."""
        with self.lock:
            if self._closed:
                return
            self.clean = False
            self._closing = self._stopping = True
            try:
                self._save_results()
            finally:
                self.engine.close(signal_number, KILL_AFTER_S)
            self._fail(PoolBroken(f"{why}; the call stays in the store and can be run again"))
        self._tell()
        self.close(wait=True)

    def _save_results(self) -> None:
        """Bring in the results of calls that are done, before their workers are ended."""
        self.engine.ask_for_results()
        deadline = time.monotonic() + ANSWER_S
        while self.engine.awaits_results() and (left := deadline - time.monotonic()) > 0:
            self._hear(self._selector.select(left))
        try:
            self._turn()
        except StoreError as error:
            _log.error("the last results could not be stored, and their calls will run again: %s", error)

    def drain(self) -> None:
        """Claim nothing more, give back what has not started, and be finished when what runs is stored."""
        with self.lock:
            self._closing = self._stopping = True
            self.engine.recall(set(self.engine.held()))
        self._wake()

    def serve(self, is_over: Callable[[], bool]) -> None:
        """Take turns in the calling thread until it is drained, the pool is broken, or `is_over()`."""
        self._wake()  # for what is there already
        self.drive(lambda: is_over() or self._finished(), None)

    def listen(self, fd: int, heard: Callable[[], None]) -> None:
        """Have `heard` called in a turn, under the lock, when `fd` can be read."""
        self._selector.register(fd, selectors.EVENT_READ, lambda _: heard())

    def _finished(self) -> bool:
        if not self._closing or self._waiting.open or not self._waiting.all_told:
            return False
        return self.failure is not None or not (self.engine.is_busy() or self.engine.reports or self._reports)

    def _close(self) -> None:
        with self.lock:
            if self._closed:
                return
            self._closed = True
            self.engine.close(grace_s=None if self.failure is None else KILL_AFTER_S)
            sessions.leave(self.store.address)
            try:
                if self.run.id:
                    self.store.end_run(self.run, self.clean, now())
                self.store.leave(self.owner)
                self.store.close()
            except StoreError as error:
                _log.error("the run could not be closed, and will be continued as a broken one: %s", error)
            self._selector.close()
            self._neighbours.close()
            for fd in (self._wake_r, self._wake_w, self._bell):
                if fd is not None:
                    os.close(fd)

    def leave_to_parent(self) -> None:
        """After a fork, in the child: the executor is the parent's alone, and this process must not touch it."""
        if self._closed:
            return
        self._closed = self._closing = True
        self.failure = "this executor belongs to the parent process; make another one after the fork"
        self.lock = TurnLock()  # another thread of the parent's may have held it
        self.engine.leave_to_parent()
        self._neighbours.close()
        os.close(self._selector.fileno())  # not unregistered: what it waits for is shared with the parent
        for fd in (self._wake_r, self._wake_w, self._bell):
            if fd is not None:
                os.close(fd)

    def _fail_by(self, error: BaseException) -> None:
        """What is to be done after any exception: one that is not the store's is a fault of our own, and the end."""
        if not isinstance(error, StoreError | TaskNotFound | PoolBroken):
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Give up: every open future fails with `error`. The store is not touched, so the calls are kept."""
        if self.failure is None:
            # As text: an exception would keep the frames of whoever it is raised to.
            self.failure = str(error) if isinstance(error, PoolBroken) else "".join(traceback.format_exception(error))
            self.clean = False
            _log.error("the executor has stopped: %s", self.failure)
        self._reports.clear()
        self._waiting.fail_all(error)
        self._rouse()  # to tell them, where this thread does not


def _after(task: Claimed) -> tuple[int, ...]:
    """The tasks whose results it is given."""
    return () if task.options is None else task.options.after


def _drain(fd: int) -> None:
    try:
        while os.read(fd, 4096):
            pass
    except BlockingIOError:
        pass
