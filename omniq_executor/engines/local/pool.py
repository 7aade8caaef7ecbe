"""The engine that runs calls on processes of this machine.

    dispatcher --give()--> worker's outbox ----> worker process
               <--reports-- worker's inbox <----'

Each worker has a data socket of its own and nothing that is shared with another worker, so what
befalls one befalls the others in no way. What a worker was given and has not reported yet is in
its record here, as is the number of the call it is in (slots.py), so that its death can be
charged to the one call that was running; calls beside it come back as RETURNED and run elsewhere.

Numbers: the calls given to a worker are numbered in the order in which it runs and reports them.

    reported          next
    |--- given, not reported ---|
         ^ STARTED: the one it is in

All methods are called by one thread at a time (the dispatcher's lock sees to it).
"""

import contextlib
import selectors
import signal
import socket
import time
import traceback
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, NamedTuple

from ...code.modules import Snapshot
from ...model import codec
from ...slots import FIRST, RESUME, SINCE, STARTED, STOP, Slots
from ..pacing import MOST_BYTES, STEAL_AFTER_S, Pace, earlier
from . import worker as proc
from .launch import Process, make_launcher
from .termination import Ending
from .wire import Inbox, Outbox

_START_DEATHS_ALLOWED = 3  # in a row, before a pool is called broken in which no worker has ever run a call
_LATER_DEATHS_ALLOWED = 10  # likewise of a pool that has worked: somebody may be killing its workers
_START_FAILURES_ALLOWED = 5  # likewise, of starts that the system refused, while no worker lives
_START_AGAIN_S = 0.2
_VISIBLE_S = 0.001  # after which a write to shared memory is seen by every process, with much to spare


@dataclass(slots=True)
class Chunk:
    """Calls of one function that travel together. Either `text` has their arguments, or `calls`."""

    ids: Sequence[int]
    attempts: Sequence[int]
    digest: bytes
    function: bytes  # its pickle
    text: str | None = None  # JSON array of argument arrays
    calls: Sequence[tuple[str | bytes, str | None]] | None = None  # stored forms of (args, kwargs)
    timeout: float | None = None  # seconds that its call may take; then it is the only one
    space: int = 0  # the namespace in which it runs, see spaces.py: 0 is that of the executor's own run
    number: int = 0  # of its first call, given by the engine
    given_at: float = 0.0  # likewise, if it has a timeout: by time.monotonic()

    def without(self, ids: Container[int]) -> "Chunk":
        """The chunk less the calls with these ids."""
        whole = self.part(0, len(self.ids))
        kept = [i for i, number in enumerate(self.ids) if number not in ids]
        return Chunk(
            [self.ids[i] for i in kept], [self.attempts[i] for i in kept], self.digest, self.function,
            calls=[(whole.calls or ())[i] for i in kept], timeout=self.timeout, space=self.space,
        )  # fmt: skip

    def part(self, start: int, stop: int) -> "Chunk":
        """The calls from `start` up to `stop` as a chunk of their own."""
        calls = self.calls
        if calls is None:
            rows = codec.decode(self.text or "[]")
            calls = [codec.encode_call(tuple(row), {}) for row in rows]
        return Chunk(
            self.ids[start:stop], self.attempts[start:stop], self.digest, self.function, calls=calls[start:stop],
            timeout=self.timeout, space=self.space,
        )  # fmt: skip


class Report(NamedTuple):
    """What became of calls. The kinds are BLOCK, RESULT and ERROR, as in the worker's messages, and those below."""

    kind: str
    ids: Sequence[int]
    attempts: Sequence[int]
    payload: Any


CRASHED = "crashed"  # the process died in this call; the payload says how
TIMED_OUT = "timed out"  # the call was ended; the payload is its timeout, in seconds
RETURNED = "returned"  # not started, or its result was lost with the process: the payload is a Chunk to run elsewhere


class Look:
    """The question to all workers where they are in their calls, and what came of it so far."""

    def __init__(self, on_end: Callable[[], None]) -> None:
        self.asked: dict[int, Process] = {}
        """Who has not answered, by the id of the call that was running then."""
        self.answers: dict[int, str] = {}
        """Stacks by the id of the call."""
        self.open = 0
        """How many workers have not answered."""
        self._on_end = on_end

    def stacks(self) -> dict[int, str]:
        """The answers, and for those that are missing a text that says so."""
        silent = {
            number: f"process {process.pid} does not answer: stopped, or in code that holds the GIL\n"
            for number, process in self.asked.items()
        }
        return {**silent, **self.answers}

    def close_one(self, asked: int | None = None) -> None:
        """The worker that was in the call `asked` has answered, or never will."""
        if asked is not None:
            self.asked.pop(asked, None)
        self.open -= 1
        if not self.open:
            self._on_end()


class _Worker:
    """The parent's record of a worker process."""

    def __init__(self, process: Process, sock: socket.socket, control: socket.socket, cells: memoryview) -> None:
        self.process = process
        self.socket = sock
        self.control = control
        self.cells = cells
        self.inbox = Inbox(sock)
        self.outbox = Outbox(sock)
        self.questions: deque[tuple[Look, int]] = deque()  # not answered, with the call that was running then
        self.chunks: deque[Chunk] = deque()
        self.functions: set[int] = set()
        self.next = 0
        self.reported = 0
        self.taken = proc.NEVER  # calls from this number on were taken back
        self.take_at = 0.0  # when a taking back that is under way can be concluded, or 0
        self.heard_at = time.monotonic()
        self.asked_at = 0.0  # to send what results lie there
        self.has_run = False  # a call; its second thread answers before that, while it is being set up
        self.broken: str | None = None  # why it could not start
        self.watched = False
        self.timer = 0.0  # when a call with a timeout is to be looked at, or 0
        self.ending: Ending | None = None  # of the call that it is in

    @property
    def queued(self) -> int:
        """How many calls it has, the one it runs included."""
        return self.next - self.reported


class LocalEngine:
    """A pool of up to `max_workers` worker processes, started when there is work for them."""

    def __init__(
        self,
        max_workers: int,
        context: BaseContext,
        initializer: Callable[..., object] | None,
        initargs: Iterable[Any],
        max_tasks_per_child: int | None,
    ) -> None:
        self.max_workers = max_workers
        self.broken: str | None = None  # why no worker can be started
        self.reports: list[Report] = []
        self.output: str | None = None  # the folder that keeps what calls write, if any does
        self.pace = Pace()
        self._max_tasks = max_tasks_per_child
        self._slots_file = Slots(max_workers)
        self._launcher = make_launcher(context, self._slots_file, initializer, tuple(initargs))
        self._slots: list[_Worker | None] = [None] * max_workers
        self._function_ids: dict[tuple[int, bytes, int, int], int] = {}
        self._last_function = 0
        self._has_run = False  # a call, in any worker
        self._start_deaths = 0
        self._start_failures = 0
        self._start_at = 0.0  # before which no worker is started, after a failure; or 0
        self._orphans: list[tuple[Process, Ending]] = []  # children of workers that were ended, in their grace
        self._selector: selectors.BaseSelector | None = None
        self._wake: Callable[[], None] = lambda: None

    def attach(self, selector: selectors.BaseSelector, wake: Callable[[], None], slots: Path) -> None:
        """Have the engine's events waited for by `selector`, with their handlers as its data.

        `wake` is called when there is a report that no event tells of. What is shared with the workers is in
        the file `slots`, which is made here. Raises StoreError if it cannot be.
        """
        self._slots_file.make(slots)
        self._selector = selector
        self._wake = wake
        self._launcher.attach(selector)

    def prepare(self) -> None:
        """Do what is to be done before a first call is described: with fork, fork."""
        if self.max_workers:
            self._launcher.prepare()

    @property
    def snapshot(self) -> Snapshot | None:
        """What workers have of the script by a fork, as functions are written for them."""
        return self._launcher.snapshot

    # giving work

    def room(self) -> tuple[int, int]:
        """How many more calls the workers could be given in all, and how many the one with the most room."""
        total = best = 0
        for worker in self._slots:
            free = self._room(worker)
            if free > 0:
                total += free
                if free > best:
                    best = free
        return total, best

    def idle(self) -> int:
        """How many workers have nothing to do, or could be started."""
        return sum((worker is None or not worker.queued) and self._room(worker) > 0 for worker in self._slots)

    def _room(self, worker: _Worker | None) -> int:
        lead = self.pace.lead
        if worker is None:
            if self._start_at:
                return 0
            return lead if self._max_tasks is None else min(lead, self._max_tasks)
        if worker.outbox.waiting or worker.take_at or worker.taken != proc.NEVER or worker.ending is not None:
            return 0
        free = lead - worker.next + worker.reported
        return free if self._max_tasks is None else min(free, self._max_tasks - worker.next)

    def give(self, chunk: Chunk) -> None:
        """Hand a chunk to the worker that has the most room, starting one where none is idle. One must have room."""
        # Among equals: an idle worker, then a new one. A running worker is never preferred to a new one.
        slot, most = 0, (-1, False)
        for i, worker in enumerate(self._slots):
            room = self._room(worker), worker is not None
            if room > most:
                slot, most = i, room
        worker = self._slots[slot] or self._try_to_start(slot)
        if worker is None:
            self.reports.append(Report(RETURNED, chunk.ids, chunk.attempts, chunk))
            self._wake()
            return
        self._give_to(worker, chunk)

    def _give_to(self, worker: _Worker, chunk: Chunk) -> None:
        function, pickled = self._function_for(worker, chunk)
        chunk.number = worker.next
        if not worker.queued:
            worker.heard_at = time.monotonic()
        if chunk.timeout is not None:
            chunk.given_at = time.monotonic()
            self._set_timer(worker, chunk.given_at + chunk.timeout)
        worker.next += len(chunk.ids)
        worker.chunks.append(chunk)
        message: tuple[Any, ...] = chunk.number, function, pickled, chunk.text, chunk.calls, chunk.ids, chunk.space
        if self.output is not None:
            message = *message, (self.output, chunk.attempts)
        worker.outbox.send(message)
        if worker.outbox.waiting:
            self._watch(worker)

    def _function_for(self, worker: _Worker, chunk: Chunk) -> tuple[int, bytes | None]:
        """The number of a chunk's function, and its pickle if the worker does not have it."""
        # The digest alone does not tell all versions apart: attributes of a function, say, are not in it.
        version = chunk.space, chunk.digest, len(chunk.function), hash(chunk.function)
        number = self._function_ids.get(version)
        if number is None:
            if len(self._function_ids) == proc.FUNCTIONS:
                self._function_ids.clear()
            self._last_function += 1
            number = self._function_ids[version] = self._last_function
        if number in worker.functions:
            return number, None
        if len(worker.functions) == proc.FUNCTIONS:  # as the worker does
            worker.functions.clear()
        worker.functions.add(number)
        return number, chunk.function

    def _try_to_start(self, slot: int) -> _Worker | None:
        """Start a worker. If it cannot be started, it is tried again later, or the pool is broken."""
        try:
            worker = self._start(slot)
        except OSError as error:  # too many processes or open files, say
            self._start_failures += 1
            self._start_at = time.monotonic() + _START_AGAIN_S
            if self._start_failures >= _START_FAILURES_ALLOWED and not any(self._slots):
                self.broken = f"{type(error).__name__}: {error}, {self._start_failures} times in a row"
        except Exception:  # noqa: BLE001 - pickling the initializer's arguments runs code of the user's
            self.broken = traceback.format_exc()
        else:
            self._start_failures = 0
            return worker
        return None

    def _start(self, slot: int) -> _Worker:
        cells = self._slots_file.cells(slot)
        cells[STARTED], cells[STOP], cells[RESUME], cells[SINCE] = -1, proc.NEVER, proc.NEVER, 0
        cells[FIRST] = 0
        data, theirs = socket.socketpair()
        control, their_control = socket.socketpair()
        data.setblocking(False)
        control.setblocking(False)
        try:
            process = self._launcher.start(slot, theirs, their_control, lambda: self._on_death(slot, worker))
        except BaseException:
            data.close()
            control.close()
            raise
        finally:
            theirs.close()
            their_control.close()
        worker = self._slots[slot] = _Worker(process, data, control, cells)
        self._watch(worker)
        return worker

    def _watch(self, worker: _Worker) -> None:
        """Wait for what the worker's socket can do now: be read, and be written while something waits for it."""
        assert self._selector is not None
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if worker.outbox.waiting else 0)
        handler = lambda mask: self._on_ready(worker, mask)  # noqa: E731
        if worker.watched:
            self._selector.modify(worker.socket, events, handler)
        else:
            self._selector.register(worker.socket, events, handler)
            worker.watched = True

    # hearing of it

    def _on_ready(self, worker: _Worker, mask: int) -> None:
        if not worker.watched:  # it was let go by an event of the same look
            return
        if mask & selectors.EVENT_WRITE:
            worker.outbox.flush()
            if not worker.outbox.waiting:
                self._watch(worker)
        if mask & selectors.EVENT_READ:
            self._read(worker)

    def _read(self, worker: _Worker) -> bool:
        """Take in what one read of the worker's socket brings; False when there is nothing more."""
        try:
            messages = worker.inbox.read()
        except BlockingIOError:
            return False
        except (EOFError, ConnectionResetError):
            self._unwatch(worker)  # its death is told by the launcher
            return False
        for executed, busy_s, items in messages:
            if not items or items[0][0] != proc.STACK:  # who looks often keeps no call from being taken back
                worker.heard_at = time.monotonic()
            if executed:
                self.pace.learn(executed, busy_s)
                if not worker.has_run:
                    worker.has_run = self._has_run = True
                    self._start_deaths = 0
            for item in items:
                self._take(worker, *item)
        if worker.ending is not None and not worker.ending.has_begun:
            self._go_on_ending(worker, worker.ending)  # it has sent what it had
        if not worker.queued and worker in self._slots:  # else it was replaced just now
            self._settle(worker)
        return worker.watched

    def _take(self, worker: _Worker, kind: str, number: int, *rest: Any) -> None:
        match kind:
            case proc.BLOCK:
                count, text = rest
                self._report(worker, kind, number, count, text)
            case proc.RESULT:
                self._report(worker, kind, number, 1, rest[0])
            case proc.ERROR:
                self._report(worker, kind, number, 1, rest)
            case proc.SKIPPED:
                end = number + rest[0]
                self._return(worker, number, min(end, worker.taken))
                worker.reported = max(worker.reported, end)
                self._drop_reported(worker)
            case proc.STALE:
                self._replace(worker, number)
            case proc.STACK:
                self._answer(worker, number, rest[0])
            case proc.BROKEN:
                worker.broken = rest[0]

    def _report(self, worker: _Worker, kind: str, number: int, count: int, payload: Any) -> None:
        """Report on calls with consecutive numbers."""
        ids: list[int] | Sequence[int] = []
        attempts: list[int] | Sequence[int] = []
        for chunk, start, stop in _parts(worker.chunks, number, number + count):
            ids = [*ids, *chunk.ids[start:stop]] if ids else chunk.ids[start:stop]
            attempts = [*attempts, *chunk.attempts[start:stop]] if attempts else chunk.attempts[start:stop]
        self.reports.append(Report(kind, ids, attempts, payload))
        worker.reported = number + count
        self._drop_reported(worker)

    def _replace(self, worker: _Worker, number: int) -> None:
        """Let a worker go that has another version of a function, whose calls a fresh one is given first of all.

        So it is that one's answer that counts, and nothing else can come between.
        """
        parts = [
            chunk.part(start, stop)
            for chunk, start, stop in _parts(worker.chunks, number, min(worker.next, worker.taken))
        ]
        worker.reported = worker.next
        worker.chunks.clear()
        worker.timer, worker.ending = 0.0, None
        if worker in self._slots:
            slot = self._slots.index(worker)
            self._retire(worker)
            if parts and (fresh := self._try_to_start(slot)) is not None:
                self._give_to(fresh, parts.pop(0))
        self.reports += [Report(RETURNED, part.ids, part.attempts, part) for part in parts]
        self._wake()

    def _return(self, worker: _Worker, number: int, end: int) -> None:
        for chunk, start, stop in _parts(worker.chunks, number, end):
            part = chunk.part(start, stop)
            self.reports.append(Report(RETURNED, part.ids, part.attempts, part))

    def _drop_reported(self, worker: _Worker) -> None:
        while worker.chunks and worker.chunks[0].number + len(worker.chunks[0].ids) <= worker.reported:
            worker.chunks.popleft()

    def _settle(self, worker: _Worker) -> None:
        """All that the worker was given is reported."""
        worker.timer = 0.0
        if worker.taken != proc.NEVER or worker.take_at:
            worker.taken, worker.take_at = proc.NEVER, 0.0
            worker.cells[STOP] = proc.NEVER
        if self._max_tasks is not None and worker.next >= self._max_tasks and worker.ending is None:
            self._retire(worker)

    # taking back

    def next_check(self, is_idle: Callable[[], bool]) -> float | None:
        """When `take_back()` has something to do, in seconds of time.monotonic(), or None."""
        due = self._start_at or None
        for _, ending in self._orphans:
            due = earlier(due, ending.due)
        for worker in self._slots:
            if worker is None:
                continue
            if worker.timer:
                due = earlier(due, worker.timer)
            if worker.ending is not None:
                due = earlier(due, worker.ending.due)
            if worker.take_at:
                at = worker.take_at
            elif self._may_have_results(worker) or (self._is_hoarding(worker) and is_idle()):
                at = worker.heard_at + STEAL_AFTER_S
            else:
                continue
            due = earlier(due, at)
        return due

    def take_back(self, now: float, is_idle: Callable[[], bool]) -> None:
        """Take back calls that wait behind a long one, where a worker could take more than there is.

        And have a worker that is silent for long send the results of the calls before the long one, and
        end calls whose time is over.
        """
        if self._start_at <= now:
            self._start_at = 0.0
        self._end_overdue(now)
        for worker in self._slots:
            if worker is None:
                continue
            if worker.take_at:
                if worker.take_at <= now:
                    self._conclude(worker)
            elif worker.heard_at + STEAL_AFTER_S <= now:
                if self._may_have_results(worker):
                    worker.asked_at = now
                    with contextlib.suppress(OSError):
                        worker.control.send(proc.FLUSH)
                if self._is_hoarding(worker) and is_idle():
                    self._stop(worker, self._first_to_take(worker))
                    worker.take_at = now + _VISIBLE_S

    def ask_for_results(self) -> None:
        """Have all workers send what results lie there."""
        for worker in self._slots:
            if worker is not None and worker.queued:
                worker.asked_at = time.monotonic()
                with contextlib.suppress(OSError):
                    worker.control.send(proc.FLUSH)

    def awaits_results(self) -> bool:
        """Whether a worker that was asked has not answered."""
        return any(worker is not None and worker.queued and worker.heard_at < worker.asked_at for worker in self._slots)

    def recall(self, ids: Container[int]) -> None:
        """Take back, at once, what waits in workers that have unstarted calls with one of these ids."""
        stopped = []
        for worker in self._slots:
            if worker is not None and worker.queued and not worker.take_at and worker.taken == proc.NEVER:
                # The next one counts as started: with it the worker may be in it before it can be told.
                first = max(_unstarted(worker), worker.reported + 1)
                parts = _parts(worker.chunks, first, worker.next)
                if any(chunk.ids[i] in ids for chunk, start, stop in parts for i in range(start, stop)):
                    self._stop(worker, first)
                    stopped.append(worker)
        if stopped:
            time.sleep(_VISIBLE_S)  # no event tells that a write has become visible
        for worker in stopped:
            self._conclude(worker)

    # ending calls

    def end(self, ids: Container[int]) -> None:
        """End the workers that are in a call with one of these ids; what else they have runs elsewhere."""
        doomed = []
        for worker in self._slots:
            if worker is not None and worker.queued:
                # If it is between two calls, it is the next one that it cannot be kept from.
                number = max(worker.cells[STARTED], worker.reported)
                parts = _parts(worker.chunks, number, min(number + 1, worker.taken))
                if any(chunk.ids[start] in ids for chunk, start, _ in parts):
                    doomed.append((worker, number, None))
        self._begin_ending(doomed)

    def _set_timer(self, worker: _Worker, at: float) -> None:
        worker.timer = min(worker.timer, at) if worker.timer else at

    def _end_overdue(self, now: float) -> None:
        """End calls whose time is over, and go on with those that are being ended."""
        for process, ending in self._orphans:
            if ending.due is not None and ending.due <= now:
                ending.step(process, now)
        self._orphans = [(process, ending) for process, ending in self._orphans if ending.outlived()]
        overdue = []
        for worker in self._slots:
            if worker is None:
                continue
            if worker.timer and worker.timer <= now:
                overdue += self._look_at_clock(worker, now)
            if worker.ending is not None and worker.ending.due is not None and worker.ending.due <= now:
                self._go_on_ending(worker, worker.ending)
        if overdue:
            self._begin_ending(overdue)

    def _look_at_clock(self, worker: _Worker, now: float) -> list[tuple[_Worker, int, float | None]]:
        """The worker's call whose time is over, if there is one; its timer is set anew for the others."""
        worker.timer = 0.0
        overdue: list[tuple[_Worker, int, float | None]] = []
        for chunk in worker.chunks:
            if chunk.timeout is None or chunk.number < worker.reported:
                continue
            has_started = worker.cells[STARTED] >= chunk.number and worker.cells[SINCE]
            # Not before it was given, should STARTED be seen before SINCE. If it has not started, all its time is left.
            since = max(worker.cells[SINCE] / 1e9, chunk.given_at) if has_started else now
            if since + chunk.timeout <= now:
                overdue.append((worker, chunk.number, chunk.timeout))
            else:
                self._set_timer(worker, since + chunk.timeout)
        return overdue

    def _begin_ending(self, doomed: Sequence[tuple[_Worker, int, float | None]]) -> None:
        """Have these workers end in the calls of these numbers. What waits behind is taken back before."""
        for worker, number, _ in doomed:
            if worker.taken == proc.NEVER and not worker.take_at:
                self._stop(worker, number + 1)
        if doomed:
            time.sleep(_VISIBLE_S)  # no event tells that a write has become visible
        now = time.monotonic()
        for worker, number, limit_s in doomed:
            if worker.taken == proc.NEVER:
                self._conclude(worker)
            if worker.ending is None and worker.cells[STARTED] <= number:  # else it is over just now
                worker.ending = Ending(number, limit_s, now)
                worker.asked_at = now
                with contextlib.suppress(OSError):
                    worker.control.send(proc.FLUSH)

    def _go_on_ending(self, worker: _Worker, ending: Ending) -> None:
        if worker.reported > ending.number and not ending.has_begun:
            worker.ending = None  # it has come to its end by itself
            return
        ending.step(worker.process, time.monotonic())

    def _stop(self, worker: _Worker, first: int) -> None:
        """Have the worker start none of its calls from the one of that number on."""
        # RESUME first: a worker that sees STOP must find the end of the range there.
        worker.cells[RESUME] = worker.next
        worker.cells[STOP] = first

    def _conclude(self, worker: _Worker) -> None:
        """Report as RETURNED what the worker did not start; _VISIBLE_S have passed since `_stop()`."""
        # Below STOP everything is the worker's, also what it has not started yet.
        started = max(worker.cells[STARTED], worker.cells[STOP] - 1)
        worker.taken, worker.take_at = max(started + 1, worker.reported), 0.0
        self._return(worker, worker.taken, worker.next)

    def _may_have_results(self, worker: _Worker) -> bool:
        """Whether results of calls before its present one may lie in the worker, which was not asked for them."""
        return worker.queued > 1 and worker.taken == proc.NEVER and worker.asked_at < worker.heard_at

    def _is_hoarding(self, worker: _Worker) -> bool:
        """Whether calls wait in the worker that can be taken back."""
        if not worker.queued or worker.take_at or worker.taken != proc.NEVER:
            return False
        return self._first_to_take(worker) < worker.next

    def _first_to_take(self, worker: _Worker) -> int:
        """The first of its calls that is better off elsewhere.

        One that is not started counts only if another worker has nothing to do; else this one, which
        may only be coming up, is as good as a new one.
        """
        first = _unstarted(worker)
        if first == worker.reported and not any(
            other is not None and not other.queued and self._room(other) > 0 for other in self._slots
        ):
            return first + 1
        return first

    # endings

    def _retire(self, worker: _Worker) -> None:
        """Let a worker go that has done its share; its slot is free at once."""
        self._slots[self._slots.index(worker)] = None
        self._close(worker)

    def _on_death(self, slot: int, worker: _Worker) -> None:
        while worker.watched and self._read(worker):
            pass
        how = _describe_exit(worker.process.exitcode)
        if worker.broken is not None:  # known now, and told only now: its last log records are out
            self.broken = worker.broken
        if self._slots[slot] is worker:
            self._slots[slot] = None
            started, end = worker.cells[STARTED], min(worker.taken, worker.next)
            ending = worker.ending
            if ending is not None and ending.number >= worker.reported:
                started = ending.number  # whether it had begun or not
            if worker.reported <= started < end:
                self._return(worker, worker.reported, started)
                self._return(worker, started + 1, end)
                if ending is not None and ending.limit_s is not None and ending.number == started:
                    self._report(worker, TIMED_OUT, started, 1, ending.limit_s)
                else:
                    self._report(worker, CRASHED, started, 1, how)
            else:
                self._return(worker, worker.reported, end)
            if ending is not None and ending.outlived():
                self._orphans.append((worker.process, ending))
            if started >= 0:
                self._start_deaths = 0
                self._has_run = True
            else:
                self._on_start_death(how)
        self._close(worker)
        worker.control.close()
        for look, asked in worker.questions:
            look.close_one(asked)
        worker.questions.clear()

    def _on_start_death(self, how: str) -> None:
        self._start_deaths += 1
        if self._start_deaths < _START_DEATHS_ALLOWED or self.broken is not None:
            return
        works = any(worker is not None and worker.cells[STARTED] >= 0 for worker in self._slots)
        if works or (self._has_run and self._start_deaths < _LATER_DEATHS_ALLOWED):
            self._start_at = time.monotonic() + _START_AGAIN_S  # it need not grow at once
        else:
            self.broken = f"{self._start_deaths} workers in a row ended before their first call, by {how}"

    def _unwatch(self, worker: _Worker) -> None:
        if worker.watched and self._selector is not None:
            self._selector.unregister(worker.socket)
            worker.watched = False

    def _close(self, worker: _Worker) -> None:
        self._unwatch(worker)
        with contextlib.suppress(OSError):
            worker.socket.shutdown(socket.SHUT_RDWR)
        worker.socket.close()

    def is_busy(self) -> bool:
        """Whether a worker has calls that are not reported, or something of one that was ended is left."""
        return bool(self._orphans) or any(worker is not None and worker.queued for worker in self._slots)

    def held(self) -> Iterator[int]:
        """The ids of all calls that workers have."""
        return (id for worker in self._slots if worker is not None for chunk in worker.chunks for id in chunk.ids)

    def look(self, on_end: Callable[[], None]) -> Look:
        """Ask the workers for the Python stacks of the calls that are running.

        The answers come with the other events; after the last one `on_end` is called.
        """
        look = Look(on_end)
        look.open = 1  # this loop
        for worker in self._slots:
            number = self._running(worker) if worker is not None else None
            if worker is None or number is None:
                continue
            look.asked[number] = worker.process
            with contextlib.suppress(OSError):
                worker.control.send(proc.SHOW)
                worker.questions.append((look, number))
                look.open += 1
        look.close_one()
        return look

    def _answer(self, worker: _Worker, number: int, stack: str) -> None:
        """Take the answer to the oldest question. The reports of calls that ended before it came before it."""
        look, asked = worker.questions.popleft()
        if stack and worker.reported <= number:
            for chunk, start, _ in _parts(worker.chunks, number, number + 1):
                look.answers[chunk.ids[start]] = stack
        look.close_one(asked)

    def leave_to_parent(self) -> None:
        """After a fork, in the child: let go of what is the parent's, without a word to the workers."""
        for worker in self._slots:
            if worker is not None:
                worker.socket.close()
                worker.control.close()
        self._launcher.leave_to_parent()
        self._slots_file.close()
        self._slots = [None] * self.max_workers

    def pids(self) -> list[int]:
        """The process ids of the workers."""
        return list(self.processes())

    def processes(self) -> dict[int, Process]:
        """The worker processes by their ids, as far as those are known. Any thread may ask."""
        processes = [worker.process for worker in self._slots if worker is not None]
        return {process.pid: process for process in processes if process.pid is not None}

    def _running(self, worker: _Worker) -> int | None:
        """The id of the call that a worker is in."""
        started = worker.cells[STARTED]
        if worker.reported <= started:
            for chunk, start, _ in _parts(worker.chunks, started, started + 1):
                return chunk.ids[start]
        return None

    def close(self, signal_number: int | None = None, grace_s: float | None = None) -> None:
        """End the workers, by a signal or by letting them run out of work, and wait until they have ended.

        Those that have not after `grace_s` seconds are killed.
        """
        workers = [worker for worker in self._slots if worker is not None]
        for worker in workers:
            if signal_number is not None:
                worker.process.kill(signal_number)
            self._close(worker)
        self._launcher.close(grace_s)
        self._slots_file.close()
        for process, ending in self._orphans:
            ending.step(process, time.monotonic())
        self._orphans.clear()
        self._slots = [None] * self.max_workers
        self._selector = None


def _unstarted(worker: _Worker) -> int:
    """The number of the first call that the worker has not started."""
    return max(worker.cells[STARTED] + 1, worker.reported)


def _parts(chunks: Iterable[Chunk], number: int, end: int) -> Iterator[tuple[Chunk, int, int]]:
    """Where the calls with these numbers are: (chunk, start, stop)."""
    for chunk in chunks:
        if chunk.number >= end:
            break
        start, stop = max(number - chunk.number, 0), min(end - chunk.number, len(chunk.ids))
        if start < stop:
            yield chunk, start, stop


def _describe_exit(code: int | None) -> str:
    if code is None:
        return "an unknown cause"
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"signal {signal.Signals(-code).name}"
        return f"signal {-code}"
    return f"exit code {code}"


__all__ = ["CRASHED", "MOST_BYTES", "RETURNED", "TIMED_OUT", "Chunk", "LocalEngine", "Report"]
