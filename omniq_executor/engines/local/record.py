"""What the parent knows of a worker: the calls it was given, by sequence number, and how far it has come with them.

The calls given to a worker are numbered in the order in which it runs and reports them.

    reported          next
    |--- given, not reported ---|
         ^ STARTED: the one it is in

Calls that it has not started can be taken back without its help, see worker.py: `stop()` writes from which
one on, and VISIBLE_S later `conclude()` reads what the worker has started by then.
"""

import contextlib
import math
import socket
import time
from collections import deque
from collections.abc import Container, Iterator, Sequence
from typing import Any

from ...model.task import ErrorInfo
from ...slots import RESUME, SINCE, STARTED, STOP
from ..base import ERROR, RESULT, RESULTS, RETURNED, Chunk, Report
from ..pacing import STEAL_AFTER_S, TAKE_OVER_S, Throughput
from . import worker as proc
from .launch import Process
from .probe import Probe
from .termination import Termination
from .wire import Inbox, Outbox

VISIBLE_S = 0.001  # after which a write to shared memory is seen by every process, with much to spare


def outcome_of(kind: str, rest: Sequence[Any]) -> tuple[str, int, Any]:
    """Return an item that says what came of calls as the (kind, number of calls, payload) of a report."""
    if kind == proc.ERROR:
        return ERROR, 1, ErrorInfo(*rest)
    if kind == proc.RESULT:
        return RESULT, 1, rest[0]
    count, text = rest
    # Of one its [[result]], so that nobody else has to know of the brackets.
    return (RESULTS, count, text) if count > 1 else (RESULT, 1, text[2:-2])


class Record:
    """The parent's record of a worker process."""

    def __init__(self, process: Process, sock: socket.socket, control: socket.socket, row: "memoryview[int]") -> None:
        self.process = process
        self.socket = sock
        self.control = control
        self.row = row
        self.inbox = Inbox(sock)
        self.outbox = Outbox(sock)
        self.questions: deque[tuple[Probe, int]] = deque()  # not answered, with the call that was running then
        self.chunks: deque[Chunk] = deque()
        self.load: dict[bytes, int] = {}  # how many calls of each function are in the chunks, by digest
        self.functions: set[int] = set()
        self.next = 0
        self.reported = 0
        self.taken = proc.NEVER  # calls from this sequence number on were taken back
        self.take_at = 0.0  # when a taking back that is under way can be concluded, or 0
        self.heard_at = time.monotonic()
        self.asked_at = 0.0  # to send what results lie there
        self.has_run = False  # a call; its second thread answers before that, while it is being set up
        self.broken: str | None = None  # why it could not start
        self.watched = False
        self.timer = 0.0  # when a call with a timeout is to be looked at, or 0
        self.ending: Termination | None = None  # of the call that it is in

    @property
    def queued(self) -> int:
        """How many calls it has, the one it runs included."""
        return self.next - self.reported

    def take(self, chunk: Chunk) -> None:
        """Take note of what it is given."""
        chunk.sequence = self.next
        self.next += len(chunk.ids)
        self.chunks.append(chunk)
        self.load[chunk.digest] = self.load.get(chunk.digest, 0) + len(chunk.ids)

    def parts(self, sequence: int, end: int) -> Iterator[tuple[Chunk, int, int]]:
        """Return where the calls with these numbers are: (chunk, start, stop)."""
        for chunk in self.chunks:
            if chunk.sequence >= end:
                break
            start, stop = max(sequence - chunk.sequence, 0), min(end - chunk.sequence, len(chunk.ids))
            if start < stop:
                yield chunk, start, stop

    def id_of(self, sequence: int) -> int | None:
        """Return the id of the call with that sequence number, if it is not reported."""
        return next((chunk.ids[start] for chunk, start, _ in self.parts(sequence, sequence + 1)), None)

    def has_any(self, ids: Container[int], sequence: int, end: int) -> bool:
        """Return whether one of these ids is of a call with these numbers."""
        return any(chunk.ids[i] in ids for chunk, start, stop in self.parts(sequence, end) for i in range(start, stop))

    def running(self) -> int | None:
        """Return the id of the call that it is in."""
        started: int = self.row[STARTED]
        return self.id_of(started) if self.reported <= started else None

    def running_since(self) -> tuple[int, float] | None:
        """Return the id of the call that it is in, and when it began with that or with a short one before it."""
        id, since = self.running(), self.row[SINCE]
        return None if id is None or not since else (id, since / 1e9)

    # reports

    def report(self, kind: str, sequence: int, count: int, payload: Any) -> Report:
        """Return the report on calls with consecutive numbers, which it does not have any more."""
        ids: Sequence[int] = []
        attempts: Sequence[int] = []
        for chunk, start, stop in self.parts(sequence, sequence + count):
            ids = [*ids, *chunk.ids[start:stop]] if ids else chunk.ids[start:stop]
            attempts = [*attempts, *chunk.attempts[start:stop]] if attempts else chunk.attempts[start:stop]
        self.reported = sequence + count
        self.drop_reported()
        return Report(kind, ids, attempts, payload)

    def returned(self, sequence: int, end: int) -> list[Report]:
        """Return the reports on calls with these numbers that are to run elsewhere."""
        parts = [chunk.part(start, stop) for chunk, start, stop in self.parts(sequence, end)]
        return [Report(RETURNED, part.ids, part.attempts, part) for part in parts]

    def drop_reported(self) -> None:
        """Forget chunks that are reported."""
        while self.chunks and self.chunks[0].sequence + len(self.chunks[0].ids) <= self.reported:
            chunk = self.chunks.popleft()
            self.load[chunk.digest] -= len(chunk.ids)
            if not self.load[chunk.digest]:
                del self.load[chunk.digest]

    def answer(self, sequence: int, stack: str) -> None:
        """Take the answer to the oldest question. The reports of calls that ended before it came before it."""
        look, asked = self.questions.popleft()
        if stack and self.reported <= sequence and (id := self.id_of(sequence)) is not None:
            look.answers[id] = stack
        look.close_one(asked)

    # taking back

    def first_to_take(self, has_idle: bool) -> int:
        """Return the first of its calls that is better off elsewhere.

        One that is not started counts only if another worker has nothing to do; else this one, which may only be
        coming up, is as good as a new one.
        """
        first = self.unstarted()
        return first + 1 if first == self.reported and not has_idle else first

    def is_hoarding(self) -> bool:
        """Return whether calls wait in it that could be taken back."""
        return self.unstarted() < self.next and not self.is_being_taken_from

    def steal_at(self, throughput: Throughput, has_idle: bool) -> float:
        """Return when calls that wait in it are to be taken back, if another worker could have them.

        When it has been silent for long; and at once where there is much to do, which it may report bit by bit.
        """
        first = self.first_to_take(has_idle)
        if first >= self.next:
            return math.inf
        if has_idle:
            chunks = [*self.chunks]  # any thread may ask: see next_check()
            ends = [(chunk.digest, len(chunk.ids), chunk.sequence + len(chunk.ids)) for chunk in chunks]
            waiting = [(digest, min(size, end - first)) for digest, size, end in ends if end > first]
            if throughput.work_s(waiting) >= TAKE_OVER_S:
                return self.heard_at
        return self.heard_at + STEAL_AFTER_S

    def unstarted(self) -> int:
        """Return the sequence number of the first call that it has not started."""
        return max(self.row[STARTED] + 1, self.reported)

    @property
    def is_being_taken_from(self) -> bool:
        """Whether calls were taken back from it, or are just now."""
        return bool(self.take_at) or self.taken != proc.NEVER

    def stop(self, first: int) -> None:
        """Have it start none of its calls from the one of that sequence number on."""
        # RESUME first: a worker that sees STOP must find the end of the range there.
        self.row[RESUME] = self.next
        self.row[STOP] = first

    def conclude(self) -> list[Report]:
        """Return as RETURNED what it did not start; VISIBLE_S have passed since `stop()`."""
        # Below STOP everything is the worker's, also what it has not started yet.
        started = max(self.row[STARTED], self.row[STOP] - 1)
        self.taken, self.take_at = max(started + 1, self.reported), 0.0
        return self.returned(self.taken, self.next)

    def resume(self) -> None:
        """Let it start whatever it is given: all that it had is reported."""
        self.timer = 0.0
        if self.is_being_taken_from:
            self.taken, self.take_at = proc.NEVER, 0.0
            self.row[STOP] = proc.NEVER

    def may_have_results(self) -> bool:
        """Return whether results of calls before its present one may lie there, which it was not asked for."""
        return self.queued > 1 and self.taken == proc.NEVER and self.asked_at < self.heard_at

    def ask(self, what: bytes, now: float = 0.0) -> bool:
        """Ask its second thread for something; return whether it could be. With `now` for its results."""
        self.asked_at = now or self.asked_at
        with contextlib.suppress(OSError):
            self.control.send(what)
            return True
        return False
