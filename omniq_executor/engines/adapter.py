"""The engine that has any concurrent.futures.Executor run the calls: a pool, threads, or a cluster's.

    dispatcher --give()--> _waiting --submit(omniq_chunk, bytes)--> executor
               <--reports-- _take_in() <--pipe-- _hear(), in whatever thread the executor calls it

An Executor tells little: that a future is done, with the answer of a chunk or with an exception. As the function that
it is given raises for no call (remote.py), an exception says that the engine has failed. Which call is to blame for it
says the row (slots.py) in which a worker of this machine notes what it is in. Where it is on another machine:

- A future that fails by itself has lost its chunk. A chunk of one call is charged. The calls of a larger one are given
  again, each by itself; the guilty one among them will be charged then.
- An executor that breaks (BrokenExecutor) fails all futures at once, guilty or not. So what was with it is given again
  in parts, each with nothing beside it, and what breaks in its turn is divided further. What is alone then is charged.
  So it is with calls of workers of this machine if more than one of these has died.
- An executor that is cut off (cancelled futures, errors of a connection) loses chunks in the same way as futures that
  fail by themselves.

After the last two it is made anew by whoever made it, or asked whether it answers again, in a thread of its own. Calls
wait here meanwhile. If it stays away for AWAY_S the engine is broken, and so are all futures.

What an Executor cannot do: end a call that runs. Then the call is over for the dispatcher, and what comes of it is not
reported; but its slot is taken until it really ends.

- Every chunk is another one, also one that is given again, so that no engine takes two of them for the same.
- `_hear()` takes no lock but that of the pipe and the rows, under which nobody waits for anything.
"""

import contextlib
import functools
import logging
import math
import os
import pickle
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor
from pathlib import Path

from ..errors import EngineError, EngineMismatch
from ..model import codec
from ..pipes import drain, wake_pipe
from ..slots import SINCE, STARTED, Slots, machine
from ..value_files import Files
from . import remote
from .asking import ask, no_package, slots_of, text_of
from .base import CRASHED, RESULT, RETURNED, TIMED_OUT, Chunk, Report
from .given import UNTOLD, ChunkThroughput, Given, Untold
from .local import worker as proc
from .local.record import outcome_of
from .pacing import Throughput
from .renewing import Renewal

LIMIT = 2  # times what a chunk should take, after which a chunk gives the rest of its calls back
LEAD = 1.25  # chunks with the executor, for each slot
BREAK_S = 5.0  # in which all futures of a broken executor are done, or given up
_ROWS = 256  # of workers, at least
PARTS = 16  # in which calls are given alone, of which one has broken the executor

_AWAY = (CancelledError, OSError)  # ConnectionError and TimeoutError too

_log = logging.getLogger("omniq_executor")

Make = Callable[[], Executor]


class ExecutorEngine:
    """An Engine on an Executor that is there, or that is made by a function and then is the engine's own."""

    snapshot = None

    def __init__(self, executor: Executor | Make, max_workers: int | None = None) -> None:
        """`max_workers` says how many calls run at a time, if the executor does not.

        Raises EngineError if no worker answers, and ValueError if the number of slots is not known.
        """
        self.broken: str | None = None
        self.reports: list[Report] = []
        self._pace = ChunkThroughput()
        self.throughput: Throughput = self._pace
        self._is_own = not isinstance(executor, Executor)
        self._make: Make = (lambda: executor) if isinstance(executor, Executor) else executor
        self._token = os.urandom(16)
        self._told_slots = max_workers
        self._renewal = Renewal(self._make, self._is_own, self._ring)
        self._executor = self._make()
        self.name = type(self._executor).__name__
        try:
            self.max_workers = self._slots()
            ask(self._executor, self.max_workers)  # it may have to start workers first
            since = time.monotonic()
            self._is_here = ask(self._executor, 1)  # whether workers can note what they are in, as far as is known
            self._pace.turnaround_s = time.monotonic() - since
        except BaseException:
            if self._is_own:
                self._executor.shutdown(wait=False)
            raise
        self._numbers = 0
        self._given: dict[int, Given] = {}
        self._waiting: deque[Chunk] = deque()  # to be given before anything else
        self._alone: deque[Chunk] = deque()  # likewise, with nothing beside it
        self._suspects: list[Chunk] = []  # calls that had begun when their executor broke
        self._unknown: list[Chunk] = []  # of these it is not known
        self._unbegun: set[int] = set()  # calls that have come back once with nobody having had them
        self._charged: set[int] = set()  # calls, with a death
        self._down: str | None = None  # why it can be given nothing for now
        self._down_until = math.inf  # for futures that are still to come
        self._is_healing = False
        self._done: deque[Given] = deque()
        self._files: Files | None = None
        self._selector: selectors.BaseSelector | None = None
        self._wake: Callable[[], None] = lambda: None
        self._rows = Slots(max(4 * self._limit(), _ROWS))
        self._lanes = [*range(self._rows.count)]  # rows that nobody writes to
        self._lane_rows: list[memoryview[int]] = []
        self._pipe_lock = threading.RLock()
        self._ear, self._mouth = wake_pipe()

    @property
    def sees_files(self) -> bool:
        """Whether workers are on this machine, as far as is known."""
        return self._is_here

    def keep_large(self, files: Files) -> None:
        """As of an Engine."""
        self._files = files

    def attach(self, selector: selectors.BaseSelector, wake: Callable[[], None], slots: Path) -> None:
        """As of an Engine."""
        self._rows.make(slots)
        for lane in self._lanes:
            self._lane_rows.append(self._rows.row(lane))
            self._lane_rows[lane][STARTED] = UNTOLD  # nothing has begun
        selector.register(self._ear, selectors.EVENT_READ, lambda _: self._take_in())
        self._selector, self._wake = selector, wake

    def prepare(self) -> None:
        """There is nothing to do."""

    # giving

    def free_capacity(self, digest: bytes | None = None) -> tuple[int, int]:
        """As of an Engine: there is none while something waits that was given before."""
        if self._down is not None or self.broken is not None or self._waiting or self._alone:
            return 0, 0
        free = self._limit() - len(self._given)
        best = self._pace.best(self._pace if digest is None else self._pace.of(digest)) if free > 0 else 0
        return free * best, best

    def idle(self) -> int:
        """As of an Engine."""
        return max(self.max_workers - len(self._given), 0) if self.free_capacity()[1] else 0

    def _limit(self) -> int:
        """How many chunks the executor is given: so many more than it has slots that none waits for the next."""
        self.max_workers = self._slots()
        return max(int(self.max_workers * LEAD), self.max_workers + 1)

    def _slots(self) -> int:
        told = self._told_slots or slots_of(self._executor)
        if told is None:
            raise ValueError(
                f"a {type(self._executor).__name__} does not say how many calls it runs at a time:"
                " give that number as max_workers"
            )
        return max(told, 1)

    def give(self, chunk: Chunk) -> None:
        """As of an Engine. A call that was charged before goes alone, so that its next death is charged at once."""
        self._waiting.extend([chunk] if self._charged.isdisjoint(chunk.ids) else chunk.parts(1))
        self._give_waiting()

    def _give_waiting(self) -> None:
        while self._down is None and self.broken is None:
            if self._alone:
                if any(not given.is_over for given in self._given.values()):
                    return
                chunks = self._alone
            elif self._waiting:
                # A call with a timeout begins at once, as its time does.
                most = self._limit() if self._waiting[0].timeout is None else self.max_workers
                if len(self._given) >= most:
                    return
                chunks = self._waiting
            else:
                return
            self._submit(chunks.popleft())

    def _submit(self, chunk: Chunk) -> None:
        self._numbers += 1
        lane = self._lanes.pop() if self._lanes else None
        row = None if lane is None else self._lane_rows[lane]
        given = Given(self._numbers, chunk, len(self._given) < self.max_workers, lane, row)
        limit_s = self._pace.chunk_s * LIMIT
        message: remote.Message = (
            remote.kind(), self._token, given.number, limit_s, None if lane is None else (machine(), self._rows, lane),
            self._files if self._is_here else None, chunk.space, chunk.function, chunk.text, chunk.calls, chunk.ids,
        )  # fmt: skip
        chunk.given_at = given.since
        try:
            given.future = self._executor.submit(remote.omniq_chunk, pickle.dumps(message, 5))
        except Exception as error:  # noqa: BLE001 - whatever an executor of somebody else's raises, it took nothing
            if lane is not None:
                self._lanes.append(lane)
            self._waiting.appendleft(chunk)
            self._break(error)
            return
        self._given[given.number] = given
        given.future.add_done_callback(functools.partial(self._hear, given))

    # hearing of it

    def _hear(self, given: Given, _: object) -> None:
        """Take note that a future is done, in any thread."""
        with self._pipe_lock:  # under which the rows are closed
            if self._mouth != -1:
                given.note_survivor()  # now: a pool that breaks tells its futures, and then ends workers that live
        self._done.append(given)
        self._ring()

    def _ring(self) -> None:
        with self._pipe_lock:
            if self._mouth != -1:
                with contextlib.suppress(BlockingIOError):  # full of them already
                    os.write(self._mouth, b"!")

    def _take_in(self) -> None:
        drain(self._ear)
        while self._done:
            given = self._done.popleft()
            if self._given.pop(given.number, None) is not None:
                self._conclude(given)
                if given.lane is not None and given.is_let_go():
                    self._lanes.append(given.lane)
        while self._renewal.found:
            self._end_healing(self._renewal.found.popleft())
        if self._down is not None and self.broken is None and not self._given:
            self._heal()
        self._give_waiting()

    def _conclude(self, given: Given) -> None:
        assert given.future is not None
        error = CancelledError() if given.future.cancelled() else given.future.exception()
        if error is None:
            self._accept(given, given.future.result())
            return
        if not given.is_over:
            self._lose(given, error)

    def _accept(self, given: Given, answer: bytes) -> None:
        executed, busy_s, items, is_noted = pickle.loads(answer)
        self._is_here = self._is_here and is_noted
        if self._unbegun:
            self._unbegun.difference_update(given.chunk.ids)
        if executed:
            self._pace.learn(executed, busy_s)
            self._pace.of(given.chunk.digest).learn(executed, busy_s)
            if given.is_prompt:
                self._pace.see(max(time.monotonic() - given.since - busy_s, 0.0))
        chunk = given.chunk
        for kind, place, *rest in items:
            if kind == proc.SKIPPED:
                self._return(given.left(place, place + rest[0]))
                continue
            told, count, payload = outcome_of(kind, rest)
            ids, attempts = chunk.ids[place : place + count], chunk.attempts[place : place + count]
            if given.over.isdisjoint(ids):
                self.reports.append(Report(told, ids, attempts, payload))
            elif count > 1:
                for id, attempt, text in zip(ids, attempts, codec.split(payload), strict=True):
                    if id not in given.over:
                        self.reports.append(Report(RESULT, [id], [attempt], text[1:-1]))

    def _return(self, chunks: Iterable[Chunk]) -> None:
        self.reports += [Report(RETURNED, chunk.ids, chunk.attempts, chunk) for chunk in chunks]

    # faults

    def _lose(self, given: Given, error: BaseException) -> None:
        """Charge what a chunk was lost by, or find out which of its calls is to be charged."""
        if isinstance(error, EngineMismatch | ImportError):
            self._waiting.extend(given.left())
            self._give_up(error if isinstance(error, EngineMismatch) else no_package(error))
        elif isinstance(error, BrokenExecutor):
            if given.place is None:
                self._unknown += given.left()
            elif given.survived:
                self._waiting.extend(given.left())
            else:
                self._suspects += self._begun(given)
            self._break(error)
        else:
            if given.place is not None:
                self._charge(self._begun(given), text_of(error))
            elif given.is_unbegun and self._is_here and self._unbegun.isdisjoint(given.chunk.ids):
                self._unbegun.update(given.chunk.ids)  # once: it may be that the chunk itself cannot get there
                self._waiting.extend(given.left())
            else:
                self._charge(given.left(), text_of(error))
            if isinstance(error, _AWAY):
                self._break(error)

    def _begun(self, given: Given) -> list[Chunk]:
        """Return the call that a worker was in, and have the others be given again."""
        place = given.place
        assert place is not None
        self._waiting.extend([*given.left(0, place), *given.left(place + 1)])
        return given.left(place, place + 1)

    def _charge(self, chunks: Iterable[Chunk], how: str) -> None:
        """Charge calls with what has befallen them, if each is alone in its chunk. Others are given again so."""
        for chunk in chunks:
            if len(chunk.ids) == 1:
                self._charged.update(chunk.ids)
                self.reports.append(Report(CRASHED, chunk.ids, chunk.attempts, how))
            else:
                self._waiting.extend(chunk.parts(1))

    def _break(self, error: BaseException) -> None:
        """Give nothing more to the executor, and see to another one when all is back that it had."""
        if self._down is None and self.broken is None:
            self._down = text_of(error)
            self._down_until = time.monotonic() + BREAK_S
            _log.warning("the %s that runs calls has failed: %s", self.name, self._down)
            if not self._given:
                self._ring()

    def _heal(self) -> None:
        """Divide what the executor had, and get another one."""
        if self._is_healing:
            return
        self._is_healing, self._down_until = True, math.inf
        suspects, unknown, self._suspects, self._unknown = self._suspects, self._unknown, [], []
        if suspects:  # then workers tell what they are in, and the others had not begun
            self._waiting.extend(unknown)
        else:
            suspects = unknown
        count = sum(len(chunk.ids) for chunk in suspects)
        if count == 1:
            self._charge(suspects, str(self._down))
            self._waiting.extend(self._alone)
            self._alone.clear()
        else:
            parts = [part for chunk in suspects for part in chunk.parts(-(-count // PARTS))]
            self._alone.extendleft(reversed(parts))
        self._renewal.begin(self._executor, self.max_workers)

    def _end_healing(self, healed: Executor | EngineError) -> None:
        self._is_healing = False
        if isinstance(healed, Executor):
            self._executor, self._down = healed, None
            return
        remedy = "" if self._is_own else ". A function that makes it, as engine=, would be asked for another one"
        self._give_up(EngineError(f"the {self.name} that runs calls has failed: {self._down}; {healed}{remedy}"))

    def _give_up(self, error: EngineError) -> None:
        if self.broken is None:
            self.broken = str(error)
            self._wake()

    # looking

    def is_busy(self) -> bool:
        """As of an Engine. What was ended and still runs does not count."""
        return next(self.held(), None) is not None

    def held(self) -> Iterator[int]:
        """As of an Engine."""
        for chunk in [*self._waiting, *self._alone, *self._suspects, *self._unknown]:
            yield from chunk.ids
        for given in self._given.values():
            yield from (id for id in given.chunk.ids if id not in given.over)

    def running(self) -> Sequence[tuple[int, float]]:
        """Return the calls that workers of this machine say they are in, and since when."""
        found = []
        for given in self._given.values():
            place, row = given.place, given.row
            if place is not None and row is not None and row[SINCE] and given.chunk.ids[place] not in given.over:
                found.append((given.chunk.ids[place], row[SINCE] / 1e9))
        return found

    def probe_stacks(self, on_end: Callable[[], None]) -> "Untold":
        """Say that nobody can be asked."""
        on_end()
        return Untold(
            dict.fromkeys(self.held(), f"it is with a {self.name}, which does not tell where its calls are\n")
        )

    # taking back, and ending

    def next_check(self, is_idle: Callable[[], bool]) -> float:
        """As of an Engine."""
        due = self._down_until
        for given in list(self._given.values()):
            if given.chunk.timeout is not None and not given.is_over:
                due = min(due, given.since + given.chunk.timeout)
        return due

    def steal(self, now: float, is_idle: Callable[[], bool]) -> None:
        """End what takes too long, and give up futures of a broken executor that do not come."""
        for given in list(self._given.values()):
            limit_s = given.chunk.timeout
            if limit_s is not None and not given.is_over and given.since + limit_s <= now:
                self._end(given, given.chunk.ids, TIMED_OUT, limit_s)
        if self._down_until <= now:
            for given in list(self._given.values()):
                self._unknown += given.left()
            self._given.clear()  # and nobody is given their rows, which may still be written to
            self._heal()

    def _end(self, given: Given, ids: Container[int], kind: str, payload: object) -> None:
        """Report calls that may still run, and whose results are not waited for any more."""
        for id, attempt in zip(given.chunk.ids, given.chunk.attempts, strict=True):
            if id in ids and id not in given.over:
                given.over.add(id)
                self.reports.append(Report(kind, [id], [attempt], payload))
        if given.is_over and given.future is not None:
            given.future.cancel()

    def recall(self, ids: Container[int]) -> None:
        """As of an Engine: chunks come back as a whole."""
        for chunks in (self._waiting, self._alone):
            for _ in range(len(chunks)):
                chunk = chunks.popleft()
                if any(id in ids for id in chunk.ids):
                    self._return([chunk])
                else:
                    chunks.append(chunk)
        for given in list(self._given.values()):
            assert given.future is not None
            if any(id in ids for id in given.chunk.ids) and not given.is_over and given.future.cancel():
                del self._given[given.number]
                if given.lane is not None:
                    self._lanes.append(given.lane)
                self._return(given.left())

    def end(self, ids: Container[int]) -> None:
        """As of an Engine: those that run go on, and are reported."""
        for given in list(self._given.values()):
            self._end(given, ids, CRASHED, "the end of its claim")

    def ask_for_results(self) -> None:
        """They come when their chunk is done."""

    def awaits_results(self) -> bool:
        """Nobody was asked."""
        return False

    # the end

    def close(self, signal_number: int | None = None, grace_s: float | None = None) -> None:
        """As of an Engine, for an executor that the engine has made. Calls that run go on to their ends."""
        self._renewal.close()
        with self._pipe_lock:
            if self._mouth == -1:
                return
            if self._selector is not None:
                self._selector.unregister(self._ear)
            os.close(self._ear)
            os.close(self._mouth)
            self._ear = self._mouth = -1
            self._rows.close()
        is_idle = not self._given
        for given in self._given.values():
            if given.future is not None:
                given.future.cancel()
        self._forget()
        if not self._is_own:
            return
        # Whoever is in a call that is not waited for holds the executor's end up as well.
        ending = threading.Thread(target=self._executor.shutdown, kwargs={"wait": is_idle}, daemon=True)
        ending.start()
        ending.join(BREAK_S if grace_s is None else grace_s)

    def leave_to_parent(self) -> None:
        """As of an Engine."""
        self._pipe_lock = threading.RLock()
        self._renewal.close()
        if self._mouth != -1:
            os.close(self._ear)
            os.close(self._mouth)
        self._ear = self._mouth = -1
        self._forget()
        self._rows.close()

    def _forget(self) -> None:
        self._given.clear()
        self._waiting.clear()
        self._alone.clear()
        self._suspects.clear()
        self._unknown.clear()
        self.reports.clear()
        self._selector = None
