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
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, wait
from pathlib import Path
from typing import Any

import psutil

from ..errors import EngineClosed, EngineError, EngineMismatch, EngineUnreachable
from ..model import codec
from ..pipes import drain, wake_pipe
from ..slots import RESUME, SINCE, STARTED, Slots, machine
from . import remote
from .base import CRASHED, RESULT, RETURNED, TIMED_OUT, Chunk, Report
from .local import worker as proc
from .local.record import outcome_of
from .pacing import MOST_CALLS, Throughput

CHUNK_S = 0.1  # of work in a chunk, or ...
CHUNK_TURNAROUNDS = 20  # ... as many times what the way there and back costs, up to ...
MOST_CHUNK_S = 0.5
LIMIT = 2  # times that, after which a chunk gives the rest of its calls back
LEAD = 1.25  # chunks with the executor, for each slot
ANSWER_S = 60.0  # in which a worker must answer the first question
BREAK_S = 5.0  # in which all futures of a broken executor are done, or given up
AWAY_S = 60.0  # after which an executor that does not come back is given up
AGAIN_S = 1.0  # between two tries
_UNTOLD = -2  # in a row: no worker has said that it has the chunk
_ROWS = 256
_MOST_ASKED = 64
PARTS = 16  # in which calls are given alone, of which one has broken the executor

_AWAY = (CancelledError, ConnectionError, TimeoutError, OSError)

_log = logging.getLogger("omniq_executor")

Make = Callable[[], Executor]


class _Given:
    """A chunk that is with the executor."""

    def __init__(
        self, number: int, chunk: Chunk, is_prompt: bool, lane: int | None, row: "memoryview[int] | None"
    ) -> None:
        self.number = number
        self.chunk = chunk
        self.lane, self.row = lane, row  # where a worker notes what it is in, if it can
        if row is not None:
            row[STARTED] = _UNTOLD
        self.is_prompt = is_prompt  # whether a slot was free for it
        self.since = time.monotonic()
        self.future: Future[Any] | None = None  # until it is there
        self.over: set[int] = set()  # its calls that were reported before their end
        self.survived = False  # whether the worker that had it was alive when its future failed

    @property
    def is_over(self) -> bool:
        return len(self.over) == len(self.chunk.ids)

    @property
    def place(self) -> int | None:
        """The call that a worker says it is in, or was when it died, by its place in the chunk."""
        if self.row is None or self.row[STARTED] < 0:
            return None
        return self.row[STARTED]

    @property
    def is_unbegun(self) -> bool:
        """Whether no worker of this machine had it."""
        return self.row is not None and self.row[STARTED] == _UNTOLD

    def left(self, start: int = 0, stop: int | None = None) -> list[Chunk]:
        """The calls that are not reported, of those from one place up to another."""
        whole = (start, stop) == (0, None)
        part = self.chunk if whole else self.chunk.part(start, len(self.chunk.ids) if stop is None else stop)
        if self.over:
            part = part.without(self.over)
        return [part] if part.ids else []


class _Pace(Throughput):
    """How much travels together, where chunks are few and dear."""

    def __init__(self) -> None:
        super().__init__()
        self.turnaround_s = 0.0
        """What the way there and back costs, beside the calls."""

    @property
    def chunk_s(self) -> float:
        """How much work is best given together."""
        return min(max(CHUNK_S, CHUNK_TURNAROUNDS * self.turnaround_s), MOST_CHUNK_S)

    @property
    def best(self) -> int:
        """Return how many calls that are."""
        return 1 if self.call_s is None else min(max(int(self.chunk_s / self.call_s), 1), MOST_CALLS)

    def share(self, calls: int, workers: int) -> int:
        """As of Throughput: the best where there are so many, and else a part that is worth the way."""
        if calls >= self.best:
            return self.best
        least = 1 if self.call_s is None else int(self.turnaround_s / self.call_s)
        return max(-(-calls // workers), min(calls, least))

    def see(self, way_s: float) -> None:
        """Take in what a way there and back has cost that began at once."""
        # A shorter one counts at once, and a longer one by degrees: it may have waited for others.
        self.turnaround_s = min(way_s, self.turnaround_s + (way_s - self.turnaround_s) / 8)


class ExecutorEngine:
    """An Engine on an Executor that is there, or that is made by a function and then is the engine's own."""

    snapshot = None

    def __init__(self, executor: Executor | Make, max_workers: int | None = None) -> None:
        """`max_workers` says how many calls run at a time, if the executor does not.

        Raises EngineError if no worker answers, and ValueError if the number of slots is not known.
        """
        self.broken: str | None = None
        self.reports: list[Report] = []
        self._pace = _Pace()
        self.throughput: Throughput = self._pace
        self._is_own = not isinstance(executor, Executor)
        self._make: Make = (lambda: executor) if isinstance(executor, Executor) else executor
        self._token = os.urandom(16)
        self._told_slots = max_workers
        self._closing = threading.Event()
        self._executor = self._make()
        self.name = type(self._executor).__name__
        try:
            self.max_workers = self._slots()
            _ask(self._executor, self.max_workers)  # it may have to start workers first
            since = time.monotonic()
            self._is_here = _ask(self._executor, 1)  # whether workers can note what they are in, as far as is known
            self._pace.turnaround_s = time.monotonic() - since
        except BaseException:
            if self._is_own:
                self._executor.shutdown(wait=False)
            raise
        self._numbers = 0
        self._given: dict[int, _Given] = {}
        self._waiting: deque[Chunk] = deque()  # to be given before anything else
        self._alone: deque[Chunk] = deque()  # likewise, with nothing beside it
        self._suspects: list[Chunk] = []  # calls that had begun when their executor broke
        self._unknown: list[Chunk] = []  # of these it is not known
        self._unbegun: set[int] = set()  # calls that have come back once with nobody having had them
        self._down: str | None = None  # why it can be given nothing for now
        self._down_until = math.inf  # for futures that are still to come
        self._is_healing = False
        self._done: deque[_Given] = deque()
        self._healed: deque[Executor | EngineError] = deque()
        self._selector: selectors.BaseSelector | None = None
        self._wake: Callable[[], None] = lambda: None
        self._rows = Slots(max(4 * self._limit(), _ROWS))
        self._lanes = [*range(self._rows.count)]  # rows that nobody writes to
        self._lane_rows: list[memoryview[int]] = []
        self._pipe_lock = threading.RLock()
        self._ear, self._mouth = wake_pipe()

    def attach(self, selector: selectors.BaseSelector, wake: Callable[[], None], slots: Path) -> None:
        """As of an Engine."""
        self._rows.make(slots)
        for lane in self._lanes:
            self._lane_rows.append(self._rows.row(lane))
            self._lane_rows[lane][STARTED] = _UNTOLD  # nothing has begun
        selector.register(self._ear, selectors.EVENT_READ, lambda _: self._take_in())
        self._selector, self._wake = selector, wake

    def prepare(self) -> None:
        """There is nothing to do."""

    # giving

    def free_capacity(self) -> tuple[int, int]:
        """As of an Engine: there is none while something waits that was given before."""
        if self._down is not None or self.broken is not None or self._waiting or self._alone:
            return 0, 0
        free = self._limit() - len(self._given)
        best = self._pace.best if free > 0 else 0
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
        """As of an Engine."""
        self._waiting.append(chunk)
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
        given = _Given(self._numbers, chunk, len(self._given) < self.max_workers, lane, row)
        limit_s = self._pace.chunk_s * LIMIT
        message: remote.Message = (
            remote.kind(), self._token, given.number, limit_s, None if lane is None else (machine(), self._rows, lane),
            chunk.space, chunk.function, chunk.text, chunk.calls, chunk.ids,
        )  # fmt: skip
        chunk.given_at = given.since
        try:
            given.future = self._executor.submit(remote.omniq_chunk, pickle.dumps(message, 5))
        except Exception as error:  # noqa: BLE001 - whatever an executor of somebody else's raises, it took nothing
            self._free(given)
            self._waiting.appendleft(chunk)
            self._break(error)
            return
        self._given[given.number] = given
        given.future.add_done_callback(functools.partial(self._hear, given))

    # hearing of it

    def _hear(self, given: _Given, _: object) -> None:
        """Take note that a future is done, in any thread."""
        with self._pipe_lock:  # under which the rows are closed
            if self._mouth != -1 and given.place is not None and given.row is not None:
                # Now: a pool that breaks tells its futures first, and then ends those of its workers that live.
                given.survived = _is_alive(given.row[RESUME] - proc.NEVER)
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
                self._free(given)
        while self._healed:
            self._end_healing(self._healed.popleft())
        if self._down is not None and not self._given:
            self._heal()
        self._give_waiting()

    def _free(self, given: _Given) -> None:
        """Let another chunk have the row of one that no worker has."""
        if given.lane is not None:
            self._lanes.append(given.lane)

    def _conclude(self, given: _Given) -> None:
        assert given.future is not None
        error = CancelledError() if given.future.cancelled() else given.future.exception()
        if error is None:
            self._accept(given, given.future.result())
            return
        if not given.is_over:
            self._lose(given, error)

    def _accept(self, given: _Given, answer: bytes) -> None:
        executed, busy_s, items, is_noted = pickle.loads(answer)
        self._is_here = self._is_here and is_noted
        if self._unbegun:
            self._unbegun.difference_update(given.chunk.ids)
        if executed:
            self.throughput.learn(executed, busy_s)
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

    def _lose(self, given: _Given, error: BaseException) -> None:
        """Charge what a chunk was lost by, or find out which of its calls is to be charged."""
        if isinstance(error, EngineMismatch | ImportError):
            self._waiting.extend(given.left())
            self._give_up(error if isinstance(error, EngineMismatch) else _no_package(error))
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
                self._charge(self._begun(given), error)
            elif given.is_unbegun and self._is_here and self._unbegun.isdisjoint(given.chunk.ids):
                self._unbegun.update(given.chunk.ids)  # once: it may be that the chunk itself cannot get there
                self._waiting.extend(given.left())
            else:
                self._charge(given.left(), error)
            if isinstance(error, _AWAY):
                self._break(error)

    def _begun(self, given: _Given) -> list[Chunk]:
        """Return the call that a worker was in, and have the others be given again."""
        place = given.place
        assert place is not None
        self._waiting.extend([*given.left(0, place), *given.left(place + 1)])
        return given.left(place, place + 1)

    def _charge(self, chunks: Iterable[Chunk], error: BaseException | str) -> None:
        """Charge calls with what has befallen them, if each is alone in its chunk. Others are given again so."""
        how = error if isinstance(error, str) else _text(error)
        for chunk in chunks:
            if len(chunk.ids) == 1:
                self.reports.append(Report(CRASHED, chunk.ids, chunk.attempts, how))
            else:
                self._waiting.extend(_parts(chunk, 1))

    def _break(self, error: BaseException) -> None:
        """Give nothing more to the executor, and see to another one when all is back that it had."""
        if self._down is None and self.broken is None:
            self._down = _text(error)
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
            parts = [part for chunk in suspects for part in _parts(chunk, -(-count // PARTS))]
            self._alone.extendleft(reversed(parts))
        threading.Thread(target=self._renew, args=(self._executor,), name="omniq-engine", daemon=True).start()

    def _renew(self, old: Executor) -> None:
        """Get an executor that answers, in a thread of its own."""
        deadline = time.monotonic() + AWAY_S
        while not self._closing.is_set():
            try:
                if self._is_own:
                    old.shutdown(wait=False)
                new = self._make()
                try:
                    _ask(new, self.max_workers)
                except BaseException:
                    old = new
                    raise
            except EngineError as error:
                failure = error
            except Exception as error:  # noqa: BLE001 - of the user's function, or of somebody else's executor
                failure = EngineError(_text(error))
            else:
                self._healed.append(new)
                break
            if time.monotonic() > deadline or (isinstance(failure, EngineClosed) and not self._is_own):
                self._healed.append(failure)
                break
            self._closing.wait(AGAIN_S)
        self._ring()

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

    def _end(self, given: _Given, ids: Container[int], kind: str, payload: object) -> None:
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
                self._free(given)
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
        self._closing.set()
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
        self._closing.set()
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


class Untold:
    """The answer of an engine that knows no stacks."""

    def __init__(self, told: dict[int, str]) -> None:
        self._told = told

    def stacks(self) -> dict[int, str]:
        """As of a StackProbe."""
        return self._told


def slots_of(executor: Executor) -> int | None:
    """Return how many calls an executor says it runs at a time, if it does."""
    for name in ("_max_workers", "num_workers"):
        count = getattr(executor, name, None)
        if isinstance(count, int) and not isinstance(count, bool):
            return count
    return None


def _ask(executor: Executor, slots: int) -> bool:
    """Return whether a worker is of this machine. Raise EngineError if none answers, or one that is another Python."""
    kind = type(executor).__name__
    try:
        # As many as there are slots: a pool starts its workers by it, and a ProcessPoolExecutor may not notice the
        # death of one that it has started for the last call it was given.
        futures = [executor.submit(remote.who) for _ in range(min(slots, _MOST_ASKED))]
    except Exception as error:
        raise EngineClosed(f"the {kind} takes no calls: {_text(error)}. Give one that is open") from error
    wait(futures, ANSWER_S, FIRST_COMPLETED)
    done = [future for future in futures if future.done()]
    for future in futures:
        if not future.done():
            future.cancel()
    if not done:
        raise EngineUnreachable(
            f"no worker of the {kind} has answered within {ANSWER_S:g} s: start workers, or see whether they are busy"
        )
    here = [_is_here(future, kind) for future in done]  # of each: any may be another Python
    return all(here)


def _is_here(future: "Future[Any]", kind: str) -> bool:
    """Return whether a worker that has answered is of this machine. Raise EngineError if it cannot run calls."""
    try:
        told = future.result()
    except (ImportError, AttributeError) as error:
        raise _no_package(error) from error
    except BrokenExecutor as error:
        raise EngineClosed(f"the {kind} is broken: {_text(error)}. Give one that works") from error
    except CancelledError as error:
        raise EngineUnreachable(f"the {kind} has lost its workers: see whether they run") from error
    except Exception as error:
        raise EngineError(f"the {kind} runs no call: {_text(error)}") from error
    remote.check(*told)
    return bool(told[1] == machine())


def _is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def _no_package(error: BaseException) -> EngineMismatch:
    return EngineMismatch(f"{_text(error)}, in a worker: install omniq_executor in the environment of the workers too")


def _parts(chunk: Chunk, size: int) -> list[Chunk]:
    count = len(chunk.ids)
    return [chunk] if count <= size else [chunk.part(i, min(i + size, count)) for i in range(0, count, size)]


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
