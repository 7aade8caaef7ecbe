"""Chunks that an Executor has, and how much is best given to it at a time."""

import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import psutil

from ..slots import RESUME, STARTED
from .base import Chunk
from .local.worker import NEVER
from .pacing import MOST_CALLS, Pace, Throughput

CHUNK_S = 0.1  # of work in a chunk, or ...
CHUNK_TURNAROUNDS = 20  # ... as many times what the way there and back costs, up to ...
MOST_CHUNK_S = 0.5
_PF_EXITING = 4  # of Linux, see proc_pid_stat(5) and include/linux/sched.h
UNTOLD = -2  # in STARTED of a row: no worker has said that it has the chunk


class Given:
    """A chunk that is with the executor."""

    def __init__(
        self, number: int, chunk: Chunk, is_prompt: bool, lane: int | None, row: "memoryview[int] | None"
    ) -> None:
        self.number = number
        self.chunk = chunk
        self.lane, self.row = lane, row  # where a worker notes what it is in, if it can
        if row is not None:
            row[STARTED] = UNTOLD
        self.is_prompt = is_prompt  # whether a slot was free for it
        self.since = time.monotonic()
        self.future: Future[Any] | None = None  # until it is there
        self.over: set[int] = set()  # its calls that were reported before their end
        self.survived = False  # whether the worker that had it, or took it, was alive when its future failed

    @property
    def is_over(self) -> bool:
        """Whether all of it was reported before its end."""
        return len(self.over) == len(self.chunk.ids)

    @property
    def place(self) -> int | None:
        """The call that a worker says it is in, or was when it died, by its place in the chunk."""
        place = -1 if self.row is None else self.row[STARTED]
        return place if 0 <= place < len(self.chunk.ids) else None

    def note_survivor(self) -> None:
        """Take note whether the worker is alive that has it, or takes it after this."""
        self.survived = self.row is None or self.place is None or _is_alive(self.row[RESUME] - NEVER)

    def is_let_go(self) -> bool:
        """Return whether no worker writes to the row any more: also where its future has failed, one may go on."""
        assert self.future is not None
        if not self.future.cancelled() and self.future.exception() is None:
            return True
        return self.place is not None and not self.survived

    @property
    def is_unbegun(self) -> bool:
        """Whether no worker of this machine had it."""
        return self.row is not None and self.row[STARTED] == UNTOLD

    def left(self, start: int = 0, stop: int | None = None) -> list[Chunk]:
        """The calls that are not reported, of those from one place up to another."""
        whole = (start, stop) == (0, None)
        part = self.chunk if whole else self.chunk.part(start, len(self.chunk.ids) if stop is None else stop)
        if self.over:
            part = part.without(self.over)
        return [part] if part.ids else []


class ChunkPace(Pace):
    """How much travels together of a function, where chunks are few and dear."""

    def __init__(self, way: "ChunkThroughput") -> None:
        super().__init__()
        self._way = way

    def share(self, calls: int, workers: int) -> int:
        """As of a Pace: the best where there are so many, and else a part that is worth the way."""
        best = self._way.best(self)
        if calls >= best:
            return best
        least = 1 if self.call_s is None else int(self._way.turnaround_s / self.call_s)
        return max(-(-calls // workers), min(calls, least))


class ChunkThroughput(Throughput):
    """The paces of functions, and what the way costs."""

    def __init__(self) -> None:
        super().__init__()
        self.turnaround_s = 0.0
        """What the way there and back costs, beside the calls."""

    @property
    def chunk_s(self) -> float:
        """How much work is best given together."""
        return min(max(CHUNK_S, CHUNK_TURNAROUNDS * self.turnaround_s), MOST_CHUNK_S)

    def best(self, pace: Pace) -> int:
        """Return how many calls that are."""
        return 1 if pace.call_s is None else min(max(int(self.chunk_s / pace.call_s), 1), MOST_CALLS)

    def see(self, way_s: float) -> None:
        """Take in what a way there and back has cost that began at once."""
        # A shorter one counts at once, and a longer one by degrees: it may have waited for others.
        self.turnaround_s = min(way_s, self.turnaround_s + (way_s - self.turnaround_s) / 8)

    def _make(self) -> Pace:
        return ChunkPace(self)


def _is_alive(pid: int) -> bool:
    """Return whether a process lives.

    Its end is heard of as its files are closed. For a moment after that it still counts as running, and only its flags
    say that it is on its way out.
    """
    try:
        flags = int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[6])
        if flags & _PF_EXITING:
            return False
    except (OSError, IndexError):  # it is gone, or this is no Linux
        pass
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


class Untold:
    """The answer of an engine that knows no stacks."""

    def __init__(self, told: dict[int, str]) -> None:
        self._told = told

    def stacks(self) -> dict[int, str]:
        """As of a StackProbe."""
        return self._told
