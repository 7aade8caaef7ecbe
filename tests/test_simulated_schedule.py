"""How calls are spread over workers: the engine and the queue with a clock and workers that are only counted.

What the parent does takes no time here, so that what is left is the order: which worker has which call, and when. It
is compared with the best that can be done without knowing durations: whoever is free takes the next call.
"""

import heapq
import os
import random
from collections import deque
from typing import Any

import pytest

from omniq_executor.dispatch.queue import DispatchQueue
from omniq_executor.engines.base import RETURNED
from omniq_executor.engines.local import pool, record, worker as proc
from omniq_executor.engines.local.pool import LocalEngine
from omniq_executor.engines.local.record import VISIBLE_S, Record
from omniq_executor.engines.pacing import LEAD_S
from omniq_executor.model.task import Function
from omniq_executor.slots import RESUME, STARTED, STOP
from omniq_executor.stores.base import Claimed

MIXES = [range(n, n + 1000) for n in range(0, 5000, 1000)] if os.environ.get("OMNIQ_PROOF") else [range(200)]
ABOVE = 1.03
TOGETHER_S = LEAD_S + VISIBLE_S  # what travels together, and how long it takes to take it back


class Clock:
    """Stands in for time."""

    now = 0.0

    def monotonic(self) -> float:
        """As of time."""
        return self.now


class Worker:
    """A worker process, by what worker.py says of it; it is also the socket that the engine has of it."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.row = [0] * 8
        self.row[STARTED], self.row[STOP] = -1, proc.NEVER
        self.chunks: deque[Any] = deque()
        self.rest: deque[int] = deque()  # calls of the present chunk
        self.times: list[Any] = []
        self.items: list[Any] = []
        self.messages: list[Any] = []
        self.waiting: list[Any] = []  # what the engine has not been able to send: nothing
        self.is_busy = False
        self.flush_at = 0.0

    def send(self, message: Any) -> None:
        """Take a chunk, or a request for what lies here."""
        if message == proc.FLUSH:
            self.flush(always=True)
            return
        self.chunks.append(message)
        if not self.is_busy:
            self.is_busy = True
            self.world.at(0.0, self.begin_chunk)

    def begin_chunk(self) -> None:
        """Take the next chunk, or wait for one."""
        if not self.chunks:
            self.is_busy = False
            self.flush()
            return
        self.sequence, self.function, *_, ids, _ = self.chunks.popleft()
        self.rest = deque(ids)
        self.size = len(ids)
        self.started, self.timed = self.world.clock.now, 0
        if not self.items:
            self.flush_at = self.started + proc.FLUSH_S
        self.begin_call()

    def begin_call(self) -> None:
        """Begin with the next call, if it is not taken back."""
        self.row[STARTED] = self.sequence
        if self.row[STOP] <= self.sequence < self.row[RESUME]:
            self.items.append((proc.SKIPPED, self.sequence, len(self.rest)))
            self.end_chunk()
        else:
            self.world.at(self.world.duration[self.rest[0]], self.end_call)

    def end_call(self) -> None:
        """Put its result, and go on."""
        now = self.world.clock.now
        self.world.ended.append(self.rest.popleft())
        self.items.append((proc.RESULT, self.sequence, "1"))
        self.sequence += 1
        self.timed += 1
        if now >= self.flush_at:
            self.note_time(now)
            self.flush()
            self.flush_at = now + proc.FLUSH_S
        if self.rest:
            self.begin_call()
        else:
            self.end_chunk()

    def end_chunk(self) -> None:
        """Send what a call left that came alone, and go on."""
        if self.timed:
            self.note_time(self.world.clock.now)
        if self.size == 1:
            self.flush()
        self.begin_chunk()

    def note_time(self, now: float) -> None:
        """Have the parent be told how long calls took."""
        self.times.append((self.function, self.timed, now - self.started))
        self.started, self.timed = now, 0

    def flush(self, always: bool = False) -> None:
        """Send what is there."""
        if self.items or always:
            self.messages.append((self.times, self.items))
            self.times, self.items = [], []
            self.world.at(0.0, lambda: self.world.hear(self))

    def read(self) -> list[Any]:
        """What has arrived of it."""
        messages, self.messages = self.messages, []
        return messages


class World:
    """An engine, a queue before it, workers, and a clock."""

    def __init__(self, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
        import multiprocessing

        self.clock = Clock()
        for module in (pool, record):
            monkeypatch.setattr(module, "time", self.clock)
        self.engine: Any = LocalEngine(workers, multiprocessing.get_context("spawn"), None, (), None)
        self.queue = DispatchQueue(None, self.engine)  # type: ignore[arg-type]
        self.duration: list[float] = []
        self.ended: list[int] = []
        self.records: dict[Worker, Record] = {}
        self._events: list[Any] = []
        self._number = 0
        for slot in range(workers):
            worker: Any = Worker(self)
            made = Record(None, worker, worker, worker.row)  # type: ignore[arg-type]
            made.inbox = made.outbox = worker
            self.records[worker] = made
            self.engine._set_worker(slot, made)

    def at(self, after_s: float, do: Any) -> None:
        """Have something happen."""
        self._number += 1
        heapq.heappush(self._events, (self.clock.now + after_s, self._number, do))

    def hear(self, worker: Worker) -> None:
        """Take in what a worker has sent."""
        self.engine._read(self.records[worker])
        self.turn()

    def turn(self) -> None:
        """Do what a turn of the loop does."""
        self.engine.steal(self.clock.now, self.is_idle)
        for report in self.engine.reports:
            if report.kind == RETURNED:
                self.queue.hold(report.payload)
        self.engine.reports.clear()
        self.queue.give()
        due = self.engine.next_check(self.is_idle)
        if due < float("inf"):
            self.at(max(due - self.clock.now, 0.0) + 1e-9, self.look)

    def look(self) -> None:
        """Take a turn, if one is due."""
        if self.engine.next_check(self.is_idle) <= self.clock.now:
            self.turn()

    def is_idle(self) -> bool:
        """As of the loop."""
        return not self.queue.size and self.engine.free_capacity()[1] > 0

    def run(self, functions: bytes, durations: list[float]) -> float:
        """Run calls, those below the mean of the last function and others of the first; return how long it took."""
        first, begun = len(self.duration), self.clock.now
        self.duration += durations
        mean = sum(durations) / len(durations)
        digests = [functions[-1:] if duration < mean else functions[:1] for duration in durations]
        claimed = [Claimed(first + n, 1, 0, 0, digest, "[1]", None) for n, digest in enumerate(digests)]
        for digest in set(digests):
            self.queue.know(Function(digest, "f", b"pickle"))
        self.queue.give_claimed(claimed)
        self.turn()
        while len(self.ended) < len(self.duration):
            self.clock.now, _, do = heapq.heappop(self._events)
            do()
        end = self.clock.now
        while self._events:  # what is still on its way
            self.clock.now, _, do = heapq.heappop(self._events)
            do()
        assert sorted(self.ended) == [*range(len(self.duration))]
        return end - begun


def list_schedule(durations: list[float], workers: int) -> float:
    """How long it takes if whoever is free takes the next call."""
    free = [0.0] * workers
    for duration in durations:
        heapq.heappush(free, heapq.heappop(free) + duration)
    return max(free)


def durations_of(kind: str, count: int, chance: random.Random) -> list[float]:
    """How long calls take."""
    scale = 10 ** chance.uniform(-6, -1)
    match kind:
        case "even":
            return [scale] * count
        case "mixed":
            return [scale * chance.uniform(0.5, 1.5) for _ in range(count)]
        case "heavy tail":
            return [min(scale * chance.paretovariate(0.8), 1.0) for _ in range(count)]
        case "two sizes":
            return [chance.choice((scale, scale * 100)) for _ in range(count)]
        case "longer and longer":
            return [scale * 1.02**n for n in range(count)]
        case "one long":
            return [*[scale] * (count - 1), scale * count / 2]
        case _:
            return sorted((scale * chance.paretovariate(1.2) for _ in range(count)), reverse=True)


KINDS = ["even", "mixed", "heavy tail", "two sizes", "longer and longer", "one long", "falling"]


@pytest.mark.once
@pytest.mark.parametrize("seeds", MIXES, ids=str)
def test_calls_are_spread_as_if_whoever_is_free_took_the_next(seeds: range, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in seeds:
        chance = random.Random(seed)
        workers = chance.choice((2, 2, 3, 4, 8))
        world = World(workers, monkeypatch)
        for _ in range(chance.randrange(3)):  # what came before
            world.run(
                chance.choice((b"f", b"g", b"gf")), durations_of(chance.choice(KINDS), chance.randrange(1, 100), chance)
            )
        kind = chance.choice(KINDS)
        durations = durations_of(kind, chance.randrange(1, 200), chance)
        took, best = world.run(chance.choice((b"f", b"fg")), durations), list_schedule(durations, workers)
        assert took <= max(best * ABOVE, best + max(durations)) + TOGETHER_S, (seed, kind, took, best, max(durations))
        world.engine._alive = []
        world.engine.close()
