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

import itertools
import logging
import os
import pickle
import selectors
import threading
import time
import traceback

# The functions behind those of `signal`, which wrap handlers in enums at a tenth of the cost of a whole submit().
from _signal import SIGINT, getsignal, signal as set_signal  # type: ignore[import-not-found]
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from . import codec
from .engines import worker as proc
from .engines.local import CRASHED, RETURNED, Chunk, LocalEngine, Report
from .errors import PoolBroken, StoreError, WorkerCrashed
from .future import DurableFuture
from .model import FINISHED, ErrorInfo, Event, Status, format_id, now
from .schedule import MOST_BYTES
from .stores.base import Batch, Block, Call, Claimed, Found, Function, Outcome, Run, Store, Turn
from .stores.owners import NODES

RETRY_S = 1.0  # until outcomes that could not be stored are offered again
STANDBY_S = 0.005
GRACE_S = 0.001
ANSWER_S = 0.2  # in which workers that are to be ended can send what they have
KILL_AFTER_S = 5.0  # for workers that do not end by themselves when they should
POLL_S = 0.002  # of a burst, after which a caller's turn brings in outcomes and gives what is held

_log = logging.getLogger("omniq_executor")


class Sink(Protocol):
    """Who waits for tasks by position: the iterator of a map."""

    def put(self, position: int, number: int, count: int, outcome: Any) -> None:
        """Take what became of `count` consecutive positions, whose tasks have the ids from `number` on.

        The outcome is a Text of all of them, or of a single one its stored result, its ErrorInfo,
        CANCELLED, or an exception of this process's own. It is committed, unless it is the last.
        """


class Text(NamedTuple):
    """Results of consecutive positions: a JSON array of [result] arrays."""

    json: str


CANCELLED = Status.CANCELLED


class _Range(NamedTuple):
    """Consecutive ids that are consecutive positions of a sink."""

    first: int
    end: int
    position: int
    sink: Sink


class _Held(NamedTuple):
    """A call that is claimed, and not given yet."""

    number: int
    function: Function
    call: Call


class Ids:
    """Makes the ids of one owner: ordered by time, and unique among the owners of a store.

    63 bits: 37 of time in ticks of 16 ms (until 2039 and beyond: 69 years from 1970 on), 12 of the
    owner, 14 that count within a tick. Ids that are taken together are consecutive.
    """

    _COUNT_BITS, _NODE_BITS = 14, NODES.bit_length() - 1

    def __init__(self, owner: int) -> None:
        self._node = owner % NODES << self._COUNT_BITS
        self._tick = 0
        self._used = 0

    def take(self, count: int) -> int:
        """The first of `count` consecutive new ids. Raises ValueError for more than a tick has."""
        if count > 1 << self._COUNT_BITS:
            raise ValueError(f"{count} ids at once are more than {1 << self._COUNT_BITS}")
        tick = time.time_ns() // 16_000_000
        if tick > self._tick:  # a clock that was set back is ignored until time has caught up
            self._tick, self._used = tick, 0
        elif self._used + count > 1 << self._COUNT_BITS:
            self._tick, self._used = self._tick + 1, 0
        first = self._tick << self._COUNT_BITS + self._NODE_BITS | self._node | self._used
        self._used += count
        return first


class Dispatcher:
    """See the module's docstring. Executors make one each; it is not for direct use."""

    def __init__(self, store: Store, owner: int, run: Run, engine: LocalEngine, crash_retries: int) -> None:
        self.store = store
        self.owner = owner
        self.run = run
        self.engine = engine
        self.lock = _TurnLock()
        self.clean = True  # whether the run has gone well so far
        self.failure: str | None = None  # why nothing is taken any more
        self._crash_retries = crash_retries
        self._closing = False
        self._closed = False
        self._stopping = False  # whether nothing is given to workers any more
        self._ids = Ids(owner)
        self._futures: dict[int, DurableFuture] = {}
        self._ranges: list[_Range] = []  # of maps, in order of their ids
        self._singles: dict[int, tuple[Sink, int]] = {}  # of maps, where ids are not in the order of positions
        self._open = 0  # tasks that somebody waits for and that are not resolved in the store
        self._to_tell = 0  # futures that were resolved in the store, ever, and ...
        self._told = 0  # ... those of them that know
        self._told_lock = threading.Lock()
        self._sunk = False  # whether a sink was given something that a driver may wait for
        self._resolved: deque[tuple[DurableFuture, Any, bool]] = deque()  # committed, to be told outside the lock
        self._crashes: dict[int, int] = {}  # of tasks claimed here that have crashed before
        self._functions: dict[bytes, bytes] = {}  # pickles by digest
        self._returned: deque[Chunk] = deque()  # claimed by us, and with no worker at present ...
        self._burst: list[_Held] = []  # likewise, and younger: held for a moment, to be given together
        self._held = 0  # how many calls both are
        self._room = 0  # of the workers, for how many calls, when it was last looked at
        self._reports: list[Report] = []  # taken in, not committed yet
        self._backlog = True  # whether the store may have PENDING tasks for us
        self._retry_at: float | None = None
        self._dropped: deque[Sink] = deque()  # by whoever waited
        self._turns = 0  # taken by callers
        self._visits = 0  # of threads that drive, or submit while other calls are open
        self._grace = False
        self._holds = False  # whether the present turn gives nothing to workers
        self._ticking = False  # whether the dispatcher's own thread will look within GRACE_S
        self._polled_at = 0.0
        self._serial = 0  # of turns
        self._driver: object | None = None
        self._driver_thread = 0
        self._driver_lock = threading.Lock()
        self._standby = threading.Event()
        self._thread: threading.Thread | None = None
        self._selector = selectors.DefaultSelector()
        self._wake_r, self._wake_w = os.pipe()
        os.set_blocking(self._wake_r, False)
        os.set_blocking(self._wake_w, False)
        self._selector.register(self._wake_r, selectors.EVENT_READ, lambda _: _drain(self._wake_r))
        self._rung = False
        self._bell: int | None = None
        bell = store.bell_path(owner)
        if bell.exists():
            self._bell = os.open(bell, os.O_RDWR | os.O_NONBLOCK)  # RDWR: it never sees the end of its last writer
            self._selector.register(self._bell, selectors.EVENT_READ, lambda _: self._on_bell())
        engine.attach(self._selector)

    # what executors, maps and futures ask for

    def submit(self, function: Function, call: Call, key: str | None) -> DurableFuture:
        """Store a call, and give it to a worker if one has room. Raises StoreError, and leaves nothing behind."""
        with self.lock:
            self._enter()
            found = self._known(function, call, key)
            if found is not None:
                future = self._future_of(found)
                future.resumed = found.status is Status.COMPLETED and found.owner != self.owner
                self._turn()
            else:
                try:
                    future = self._submit_new(function, call, key)
                except StoreError:
                    # Another process may have been faster with the same key.
                    found = self.store.by_key(self.run.queue, key) if key is not None else None
                    if found is None:
                        raise
                    future = self._future_of(found)
                    self._turn()
        if self._resolved or self._sunk:
            self._tell()
        return future

    def _submit_new(self, function: Function, call: Call, key: str | None) -> DurableFuture:
        number = self._ids.take(1)
        future = self._futures[number] = DurableFuture(self, number)
        self._open += 1
        try:
            if key is None and self._has_room_for_one():
                self.store.add_claimed(self.owner, self.run, number, function, call, now())
                held = _Held(number, function, call)
                if self._holds:
                    self._hold(held)
                else:
                    self.engine.give(_chunk_of([held]))
            else:
                self._turn(Batch(number, 1, function, calls=(call,), key=key))
        except BaseException:
            del self._futures[number]
            self._open -= 1
            raise
        return future

    def _has_room_for_one(self) -> bool:
        """Whether a new call can go to a worker, with no older one before it and nothing else to do in a turn."""
        if self._backlog:
            return False
        if self._holds:
            return self._held < self._room
        engine = self.engine
        return not (self._held or engine.reports or self._reports or engine.broken) and engine.room()[1] > 0

    def add(
        self, sink: Sink, position: int, count: int, function: Function, text: str | None, calls: Sequence[Call]
    ) -> None:
        """Store `count` calls for consecutive positions of a sink: as one `text`, or else as `calls`."""
        with self.lock:
            self._enter()
            if self.run.continues:
                if text is not None:
                    calls = [Call(codec.encode_call(tuple(row), {})[0]) for row in codec.decode(text)]
                self._add_resumed(sink, position, function, calls)
            else:
                self._add_new(sink, position, count, function, text, calls)
        self._tell()

    def room(self) -> int:
        """How many calls of a map are best added at once, for one worker to take; 0 if all have enough."""
        with self.lock:
            return 0 if self._backlog or self._held else self.engine.room()[1]

    def future(self, number: int) -> DurableFuture | None:
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

    def cancel(self, numbers: Sequence[int]) -> None:
        """Cancel those of the tasks that have not started, for good."""
        with self.lock:
            if not self._closed:
                self._cancel(numbers)
        self._tell()

    def _cancel(self, numbers: Sequence[int]) -> None:
        cancelled = self.store.cancel(numbers, now())
        mine = self._recall(set(numbers).difference(cancelled))
        if mine:
            releases = [Outcome(number, attempt, Event.RELEASE) for number, attempt in mine.items()]
            self.store.turn(self.owner, self.run, Turn(now(), outcomes=releases))
            self._backlog = True
            cancelled += self.store.cancel([*mine], now())
        for number in cancelled:
            self._resolve(number, CANCELLED)
            self._rung = True  # it is news to this owner too, to be cleared with the next turn
        self.store.ring(self.owner)

    def _recall(self, numbers: set[int]) -> dict[int, int]:
        """Those of the tasks that are claimed here and not started, with their attempts; nobody has them any more."""
        self.engine.recall(numbers)
        self._take_reports()
        self._gather_burst()
        mine: dict[int, int] = {}
        for _ in range(len(self._returned)):
            chunk = self._returned.popleft()
            found = {
                number: attempt for number, attempt in zip(chunk.ids, chunk.attempts, strict=True) if number in numbers
            }
            if found:
                mine |= found
                chunk = chunk.without(found)
            if chunk.ids:
                self._returned.append(chunk)
        self._held -= len(mine)
        if self._held:
            self._tick()
        return mine

    def cancel_all(self) -> None:
        """Cancel whatever has not started of what somebody here waits for."""
        with self.lock:
            numbers = [*self._futures, *self._singles]
            for span in self._ranges:
                numbers += range(span.first, span.end)
            self._cancel(numbers)
        self._tell()

    def forget(self, sink: Sink) -> None:
        """Nobody waits for the sink's tasks any more: cancel those that have not started."""
        with self.lock:
            if not self._closed:
                self._forget(sink)
        self._tell()

    def _forget(self, sink: Sink) -> None:
        numbers = [number for number, (other, _) in self._singles.items() if other is sink]
        for span in self._ranges:
            if span.sink is sink:
                numbers += range(span.first, span.end)
        if numbers:
            self._cancel(numbers)

    def drop(self, sink: Sink) -> None:
        """As `forget()`, from anywhere: an iterator can be collected within a turn, and then is left to the next."""
        if not self.lock.enter_if_free():
            self._dropped.append(sink)
            return
        try:
            if not self._closed:
                self._forget(sink)
        finally:
            self.lock.__exit__()

    def read(self, first: int, count: int) -> list[Any]:
        """The outcomes of finished tasks with consecutive ids, as `put()` gives single ones."""
        return [_outcome(found) for found in sorted(self.store.states(range(first, first + count)))]

    def stacks(self, timeout_s: float) -> dict[int, str]:
        """The Python stacks of the calls that are running, by id."""
        with self.lock:
            return self.engine.stacks(timeout_s)

    def has_claimed(self, number: int | None) -> bool:
        """Whether the task is with a worker of this executor, or about to be."""
        with self.lock:
            return (
                self.engine.holds(number)
                or any(number in chunk.ids for chunk in self._returned)
                or any(number == held.number for held in self._burst)
            )

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
        self._turns += 1
        self._holds = False
        if self._open:  # a burst
            self._visits += 1
            self._grace = True
            moment = time.monotonic()
            if moment - self._polled_at > POLL_S:
                self._polled_at = moment
                for key, mask in self._selector.select(0):
                    key.data(mask)
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
            if self._held:  # for a burst, which is over
                self._take_turn(0)
            while not done() and not self._closed:
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
            if driver is None:
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
            self._grace = self._ticking = False  # before the look at what is held: see _give_or_hold()
            timeout_s = 0 if self._held else timeout_s
        serial = self._serial
        ready = self._selector.select(_earlier(timeout_s, self._next_alarm()))
        if gives_way and self._grace:
            return
        with self.lock:
            if self._closed:
                return
            try:
                if self._serial != serial:  # another thread took a turn: what was ready may be gone by now
                    ready = self._selector.select(0)
                for key, mask in ready:
                    key.data(mask)
                self._holds = False
                self._turn()
            except StoreError as error:
                _log.error("%s; it is tried again every %s s", error, RETRY_S)
            except Exception as error:  # noqa: BLE001 - a fault of our own: nobody may wait for ever because of it
                self._fail(error)
        self._tell()

    def _next_alarm(self) -> float | None:
        """Seconds until something is due that no event tells of."""
        # Without the lock: what changes meanwhile is followed by a turn, and so by another look.
        if self._dropped:
            return 0
        due = _earlier(self.engine.next_check(self._is_idle), self._retry_at)
        return None if due is None else max(due - time.monotonic(), 0.0)

    def _is_idle(self) -> bool:
        return not self._backlog and not self._held and self.engine.room()[1] > 0

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

    def _on_bell(self) -> None:
        assert self._bell is not None
        _drain(self._bell)
        self._rung = True

    # the turn

    def _turn(self, batch: Batch | None = None) -> None:
        engine = self.engine
        self._serial += 1
        while self._dropped:
            self._forget(self._dropped.popleft())
        if not self._holds:
            engine.take_back(time.monotonic(), self._is_idle)
        self._take_reports()
        if engine.broken is not None:
            self._break(engine.broken)
            if batch is not None:
                raise PoolBroken(self.failure)
            return
        work = Turn(now())
        outcomes = self._prepare_ends(work) if self._reports else []
        if not self._holds and not self._stopping:
            self._give_returned()
        total, best = engine.room()
        self._room = total
        if batch is not None:
            self._functions.setdefault(batch.function.digest, batch.function.pickle)
            # Claimed at once only if nothing older is PENDING, and if one worker can have all of it.
            claimed = not self._backlog and best >= batch.size and total >= batch.size + self._held
            batch.claimed = claimed
            work.adds = (batch,)
            self._backlog = self._backlog or not claimed
        if self._backlog and not self._held and not self._stopping:
            work.claim = total
        if work.adds or work.blocks or work.outcomes or work.claim or self._rung:
            self._commit(work, outcomes)
        else:
            self._reports.clear()

    def _take_reports(self) -> None:
        """Take over what the engine reports; a part that came back is with us again, whatever else happens."""
        for report in self.engine.reports:
            if report.kind == RETURNED:
                self._returned.append(report.payload)
                self._held += len(report.ids)
            else:
                self._reports.append(report)
        self.engine.reports = []

    def _commit(self, work: Turn, outcomes: list[tuple[Sequence[int], Any]]) -> None:
        try:
            turned = self.store.turn(self.owner, self.run, work)
        except StoreError:
            if self._reports:
                self._retry_at = time.monotonic() + RETRY_S
            raise
        self._reports.clear()
        self._retry_at = None
        if work.claim:
            self._backlog = len(turned.claimed) == work.claim
        for batch in work.adds:
            if batch.claimed:
                self._give_or_hold(_chunk_of_batch(batch))
        self._give_claimed(turned.claimed)
        for numbers, outcome in outcomes:
            self._resolve_all(numbers, outcome, turned.refused)
        if turned.refused:
            self._look(turned.refused)
        if turned.foreign or self._rung:
            self._rung = False
            self._backlog = True
            self._look(number for number in self.store.hear(self.owner) if self._is_awaited(number))
        self.store.ring(self.owner)

    def _prepare_ends(self, work: Turn) -> list[tuple[Sequence[int], Any]]:
        """Write the reports into the turn; returns what to resolve once it is committed."""
        blocks: list[Block] = []
        outcomes: list[Outcome] = []
        resolutions: list[tuple[Sequence[int], Any]] = []
        for kind, numbers, attempts, payload in self._reports:
            if kind == proc.BLOCK and len(numbers) == 1:
                result = payload[2:-2]  # of [[result]]
                outcomes.append(Outcome(numbers[0], attempts[0], Event.COMPLETE, result=result))
                resolutions.append((numbers, result))
            elif kind == proc.BLOCK:
                for first, part, attempt, text in _consecutive(numbers, attempts, payload):
                    blocks.append(Block(first, part, attempt, text))
                    resolutions.append((range(first, first + part), Text(text)))
            elif kind == proc.RESULT:
                outcomes.append(Outcome(numbers[0], attempts[0], Event.COMPLETE, result=payload))
                resolutions.append((numbers, payload))
            elif kind == proc.ERROR:
                self._prepare_failure(numbers, attempts, ErrorInfo(*payload), outcomes, resolutions)
            elif kind == CRASHED:
                crashes = self._crashes.pop(numbers[0], 0) + 1
                if crashes > self._crash_retries:
                    error = _crash_error(numbers[0], attempts[0], crashes, payload)
                    self._prepare_failure(numbers, attempts, error, outcomes, resolutions)
                else:
                    outcomes.append(Outcome(numbers[0], attempts[0], Event.CRASH))
                    self._backlog = True
        work.blocks, work.outcomes = blocks, outcomes
        return resolutions

    def _prepare_failure(
        self,
        numbers: Sequence[int],
        attempts: Sequence[int],
        error: ErrorInfo,
        outcomes: list[Outcome],
        resolutions: list[tuple[Sequence[int], Any]],
    ) -> None:
        outcomes.append(Outcome(numbers[0], attempts[0], Event.FAIL, error=error))
        resolutions.append((numbers, error))

    def _give_or_hold(self, chunk: Chunk) -> None:
        if self._holds or self._held:
            self._gather_burst()
            self._returned.append(chunk)
            self._held += len(chunk.ids)
            self._tick()
        else:
            self.engine.give(chunk)

    def _hold(self, held: "_Held") -> None:
        self._burst.append(held)
        self._held += 1
        self._tick()

    def _tick(self) -> None:
        """Have the dispatcher's own thread look within GRACE_S. After something is held: see _take_turn()."""
        if not self._ticking:
            self._ticking = True
            self._wake()

    def _gather_burst(self) -> None:
        """Make chunks of the calls of a burst: one of each stretch of calls of one function."""
        for _, held in itertools.groupby(self._burst, key=lambda held: held.function.digest):
            self._returned.append(_chunk_of(list(held)))
        self._burst.clear()

    def _give_returned(self) -> None:
        """Give what is claimed and held, as far as there is room, in order and many at a time."""
        if self._burst:
            self._gather_burst()
        while self._returned:
            _, best = self.engine.room()
            if best <= 0:
                return
            most = min(best, self.engine.pace.share(self._held, self.engine.max_workers))
            chunk = self._returned.popleft()
            if len(chunk.ids) > most:
                self._returned.appendleft(chunk.part(most, len(chunk.ids)))
                chunk = chunk.part(0, most)
            self._held -= len(chunk.ids)
            self.engine.give(chunk)

    def _give_claimed(self, claimed: Sequence[Claimed]) -> None:
        start = 0
        while start < len(claimed):
            _, best = self.engine.room()
            stop = start + max(1, min(best, self.engine.pace.share(len(claimed) - start, self.engine.max_workers)))
            digest, size = claimed[start].digest, 0
            for i in range(start, stop):
                size += len(claimed[i].args)
                if claimed[i].digest != digest or (size > MOST_BYTES and i > start):
                    stop = i
                    break
            part = claimed[start:stop]
            self._crashes.update((task.id, task.crashes) for task in part if task.crashes)
            self.engine.give(self._chunk(part))
            start = stop

    def _chunk(self, tasks: Sequence[Claimed]) -> Chunk:
        digest = tasks[0].digest
        pickled = self._functions.get(digest)
        if pickled is None:
            pickled = self._functions[digest] = self.store.function(digest).pickle
        chunk = Chunk([task.id for task in tasks], [task.attempt for task in tasks], digest, pickled)
        texts = [task.args for task in tasks if isinstance(task.args, str) and task.kwargs is None]
        if len(texts) == len(tasks):
            chunk.text = codec.join(texts)
        else:
            chunk.calls = [(task.args, task.kwargs) for task in tasks]
        return chunk

    # adding

    def _known(self, function: Function, call: Call, key: str | None) -> Found | None:
        """The task that a new call turns out to be."""
        if key is not None:
            found = self.store.by_key(self.run.queue, key)
            if found is not None:
                return found
        if self.run.continues:
            return self.store.take_over(self.run, function, [call], now())[0]
        return None

    def _future_of(self, found: Found) -> DurableFuture:
        future = self._futures.get(found.id)
        if future is None:
            future = self._futures[found.id] = DurableFuture(self, found.id)
            self._open += 1
            self._settle(found)
            self._backlog = self._backlog or found.status is Status.PENDING
        return future

    def _add_new(
        self, sink: Sink, position: int, count: int, function: Function, text: str | None, calls: Sequence[Call]
    ) -> None:
        first = self._ids.take(count)
        self._ranges.append(_Range(first, first + count, position, sink))
        self._open += count
        try:
            self._turn(Batch(first, count, function, text, calls))
        except BaseException:
            self._ranges = [span for span in self._ranges if span.first != first]
            self._open -= count
            raise

    def _add_resumed(self, sink: Sink, position: int, function: Function, calls: Sequence[Call]) -> None:
        """Add calls of which some may be in the store already, by the runs that this one continues."""
        found = self.store.take_over(self.run, function, calls, now())
        start = 0
        for place, known in enumerate([*found, None]):
            if known is None and place < len(calls):
                continue
            if start < place:  # new ones in between
                self._add_new(sink, position + start, place - start, function, None, calls[start:place])
            start = place + 1
            if known is not None:
                self._singles[known.id] = sink, position + place
                self._open += 1
                self._settle(known)
                self._backlog = self._backlog or known.status is Status.PENDING
        self._turn()

    # resolving

    def _is_awaited(self, number: int) -> bool:
        return number in self._futures or number in self._singles or self._range_of(number) is not None

    def _look(self, numbers: Iterable[int]) -> None:
        """Ask the store how tasks stand, and resolve those that are finished."""
        asked = list(numbers)
        if asked:
            for found in self.store.states(asked):
                self._settle(found)

    def _settle(self, found: Found) -> None:
        """Resolve a task that the store says is finished."""
        if found.status in FINISHED:
            self._resolve(found.id, _outcome(found))

    def _resolve_all(self, numbers: Sequence[int], outcome: Any, refused: set[int]) -> None:
        """Resolve tasks with the outcomes that are committed, other than the refused ones."""
        if not isinstance(outcome, Text):
            if numbers[0] not in refused:
                self._resolve(numbers[0], outcome)
            return
        span = self._range_of(numbers[0])
        if span is not None and numbers[-1] < span.end and not refused:
            self._put(span, numbers[0], len(numbers), outcome)
            return
        for number, (value,) in zip(numbers, codec.decode(outcome.json), strict=True):
            if number in refused:
                continue
            future = self._futures.pop(number, None)
            if future is not None:
                self._hand_over(future, value, True)
            else:
                self._resolve(number, codec.encode(value))

    def _resolve(self, number: int, outcome: Any) -> None:
        """Resolve one task: its future when the lock is left, its map at once."""
        future = self._futures.pop(number, None)
        if future is not None:
            self._hand_over(future, outcome)
            return
        single = self._singles.pop(number, None)
        if single is not None:
            sink, position = single
            self._open -= 1
            self._sunk = True
            sink.put(position, number, 1, outcome)
            return
        span = self._range_of(number)
        if span is not None:
            self._put(span, number, 1, outcome)

    def _hand_over(self, future: DurableFuture, outcome: Any, is_read: bool = False) -> None:
        """Have a future told its outcome, or the value of its result where that `is_read` already."""
        self._open -= 1
        self._to_tell += 1
        self._resolved.append((future, outcome, is_read))

    def _put(self, span: _Range, number: int, count: int, outcome: Any) -> None:
        # A range is split where it is resolved, so that what is left of it tells what is still open.
        index = bisect_right(self._ranges, number, key=lambda r: r.first) - 1
        rest = [
            _Range(first, end, span.position + first - span.first, span.sink)
            for first, end in ((span.first, number), (number + count, span.end))
            if first < end
        ]
        self._ranges[index : index + 1] = rest
        self._open -= count
        self._sunk = True
        span.sink.put(span.position + number - span.first, number, count, outcome)

    def _range_of(self, number: int) -> _Range | None:
        index = bisect_right(self._ranges, number, key=lambda r: r.first) - 1
        if index >= 0 and number < self._ranges[index].end:
            return self._ranges[index]
        return None

    def _tell(self) -> None:
        """Resolve the futures of what was committed. Outside the lock: their callbacks are code of the user's."""
        told = 0
        try:
            while self._resolved:
                try:
                    future, outcome, is_read = self._resolved.popleft()
                except IndexError:  # another thread was faster
                    break
                told += 1
                if is_read:
                    future._finish_value(outcome)
                else:
                    _tell(future, outcome)
        finally:
            if told:
                with self._told_lock:
                    self._told += told
            if told or self._sunk or self._closing:
                self._sunk = False
                if self._looks_elsewhere():
                    # What it waits for may have come, after it looked and before it waits for events.
                    self._wake()

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
                self.cancel_all()
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
            self._save_results()
            self.engine.close(signal_number, KILL_AFTER_S)
            self._fail(PoolBroken(f"{why}; the call stays in the store and can be run again"))
        self._tell()
        self.close(wait=True)

    def _save_results(self) -> None:
        """Bring in the results of calls that are done, before their workers are ended."""
        self.engine.ask_for_results()
        deadline = time.monotonic() + ANSWER_S
        while self.engine.awaits_results() and (left := deadline - time.monotonic()) > 0:
            for key, mask in self._selector.select(left):
                key.data(mask)
        try:
            self._turn()
        except StoreError as error:
            _log.error("the last results could not be stored, and their calls will run again: %s", error)

    def _finished(self) -> bool:
        if not self._closing or self._open or self._told != self._to_tell:
            return False
        return self.failure is not None or not self.engine.is_busy()

    def _close(self) -> None:
        with self.lock:
            if self._closed:
                return
            self._closed = True
            self.engine.close(grace_s=None if self.failure is None else KILL_AFTER_S)
            try:
                self.store.end_run(self.run, self.clean, now())
                self.store.leave(self.owner)
                self.store.close()
            except StoreError as error:
                _log.error("the run could not be closed, and will be continued as a broken one: %s", error)
            self._selector.close()
            for fd in (self._wake_r, self._wake_w, self._bell):
                if fd is not None:
                    os.close(fd)

    def leave_to_parent(self) -> None:
        """After a fork, in the child: the executor is the parent's alone, and this process must not touch it."""
        if self._closed:
            return
        self._closed = self._closing = True
        self.failure = "this executor belongs to the parent process; make another one after the fork"
        self.lock = _TurnLock()  # another thread of the parent's may have held it
        self.engine.leave_to_parent()
        os.close(self._selector.fileno())  # not unregistered: what it waits for is shared with the parent
        for fd in (self._wake_r, self._wake_w, self._bell):
            if fd is not None:
                os.close(fd)

    def _break(self, text: str) -> None:
        """No worker can be started."""
        self.clean = False
        self._fail(PoolBroken(f"the workers cannot be started; the calls stay in the store. In a worker:\n{text}"))

    def _fail(self, error: BaseException) -> None:
        """Give up: every open future fails with `error`. The store is not touched, so the calls are kept."""
        if self.failure is None:
            # As text: an exception would keep the frames of whoever it is raised to.
            self.failure = str(error) if isinstance(error, PoolBroken) else "".join(traceback.format_exception(error))
            self.clean = False
            _log.error("the executor has stopped: %s", self.failure)
        self._reports.clear()
        for number in list(self._futures):
            self._resolve(number, error)
        for number in list(self._singles):
            self._resolve(number, error)
        for span in list(self._ranges):
            for number in range(span.first, span.end):
                self._resolve(number, error)


def _tell(future: DurableFuture, outcome: Any) -> None:
    if outcome is CANCELLED:
        future._cancelled()
    elif isinstance(outcome, BaseException):
        future._fail(outcome)
    else:
        future._finish(outcome)


def _outcome(found: Found) -> Any:
    """What a finished task has to show."""
    if found.status is Status.COMPLETED:
        return found.result
    return found.error if found.status is Status.FAILED else CANCELLED


def _chunk_of(held: Sequence[_Held]) -> Chunk:
    """Calls of one function that were claimed as they were added, as attempt 1."""
    function = held[0].function
    calls = [one.call[:2] for one in held]
    return Chunk([one.number for one in held], [1] * len(held), function.digest, function.pickle, calls=calls)


def _chunk_of_batch(batch: Batch) -> Chunk:
    """Likewise, of a batch."""
    ids = range(batch.first, batch.first + batch.size)
    chunk = Chunk(ids, [1] * batch.size, batch.function.digest, batch.function.pickle, batch.text)
    if batch.text is None:
        chunk.calls = [call[:2] for call in batch.calls or ()]
    return chunk


def _consecutive(numbers: Sequence[int], attempts: Sequence[int], text: str) -> Iterator[tuple[int, int, int, str]]:
    """A block of results as parts with consecutive ids and one attempt: (first id, count, attempt, text)."""
    count = len(numbers)
    if numbers[-1] - numbers[0] == count - 1 and attempts.count(attempts[0]) == count:
        yield numbers[0], count, attempts[0], text
        return
    values = codec.decode(text)
    start = 0
    for i in range(1, count + 1):
        if i == count or numbers[i] != numbers[i - 1] + 1 or attempts[i] != attempts[start]:
            yield numbers[start], i - start, attempts[start], codec.encode_rows(values[start:i]) or ""
            start = i


def _crash_error(number: int, attempt: int, crashes: int, how: str) -> ErrorInfo:
    error = WorkerCrashed(
        f"the process running {format_id(number)} ended by {how}, as attempt {attempt};"
        f" it has happened {crashes} times to this call, so it is not tried again"
    )
    return ErrorInfo("omniq_executor.errors.WorkerCrashed", str(error), "", pickle.dumps(error))


class _TurnLock:
    """The dispatcher's lock, which also puts off Ctrl-C while it is held. Reentrant.

    Turns are also taken in the main thread, where KeyboardInterrupt may be raised between any two
    steps: after a commit, say, and before the claimed calls are handed on.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._main = threading.main_thread().ident
        self._depth = 0  # of the thread that holds it
        self._before: Any = None  # the handler that is put off, while one is
        self._missed: Any = None

    def __enter__(self) -> None:
        self._lock.acquire()
        self._depth += 1
        if self._depth == 1 and threading.get_ident() == self._main:
            before = getsignal(SIGINT)
            if callable(before):
                # Between these two lines nothing is under way yet that an interrupt could harm.
                self._before = before
                set_signal(SIGINT, self._miss)

    def enter_if_free(self) -> bool:
        """Take the lock if nobody has it, not even the calling thread."""
        if not self._lock.acquire(blocking=False):
            return False
        free = self._depth == 0
        if free:
            self.__enter__()
        self._lock.release()
        return free

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        before: Any = None
        if self._depth == 0 and self._before is not None:
            before, self._before = self._before, None
            set_signal(SIGINT, before)
        missed, self._missed = (self._missed, None) if before is not None else (None, self._missed)
        self._lock.release()
        if missed is not None:
            before(*missed)

    def _miss(self, number: int, frame: Any) -> None:
        self._missed = number, frame


def _earlier(one: float | None, other: float | None) -> float | None:
    return other if one is None else one if other is None else min(one, other)


def _drain(fd: int) -> None:
    try:
        while os.read(fd, 4096):
            pass
    except BlockingIOError:
        pass


__all__ = ["CANCELLED", "Dispatcher", "Sink", "Text"]
