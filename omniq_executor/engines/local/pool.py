"""The engine that runs calls on processes of this machine.

    dispatcher --give()--> worker's outbox ----> worker process
               <--reports-- worker's inbox <----'

Each worker has a data socket of its own and nothing that is shared with another worker, so what
befalls one befalls the others in no way. What a worker was given and has not reported yet is in
its record (record.py), as is the sequence number of the call it is in (slots.py), so that its death can be
charged to the one call that was running; calls beside it come back as RETURNED and run elsewhere.
"""

import contextlib
import math
import selectors
import socket
import time
import traceback
from collections.abc import Callable, Container, Iterable, Iterator
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from ...code.modules import Snapshot
from ...slots import FIRST, RESUME, SINCE, STARTED, STOP, Slots
from ..base import CRASHED, RETURNED, TIMED_OUT, Chunk, Report
from ..pacing import STEAL_AFTER_S, Throughput
from . import worker as proc
from .launch import Process, describe_exit, make_launcher
from .probe import Probe
from .record import VISIBLE_S, Record, outcome_of
from .terminator import Terminator

_START_DEATHS_ALLOWED = 3  # in a row, before a pool is called broken in which no worker has ever run a call
_LATER_DEATHS_ALLOWED = 10  # likewise of a pool that has worked: somebody may be killing its workers
_START_FAILURES_ALLOWED = 5  # likewise, of starts that the system refused, while no worker lives
_START_AGAIN_S = 0.2


class LocalEngine:
    """A pool of up to `max_workers` worker processes, started when there is work for them."""

    name = "local"
    sees_files = True

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
        self.throughput = Throughput()
        self._max_tasks = max_tasks_per_child
        self._shared = Slots(max_workers)
        self._launcher = make_launcher(context, self._shared, initializer, tuple(initargs))
        self.keep_large = self._launcher.keep_large
        self._workers: list[Record | None] = [None] * max_workers
        self._alive: list[Record] = []  # those of them that are there
        self._function_ids: dict[tuple[int, bytes, int, int], int] = {}
        self._digests: dict[int, bytes] = {}  # of functions, by these ids
        self._last_function = 0
        self._has_run = False  # a call, in any worker
        self._start_deaths = 0
        self._start_failures = 0
        self._start_at = 0.0  # before which no worker is started, after a failure; or 0
        self._terminator = Terminator(self.reports)
        self._selector: selectors.BaseSelector | None = None
        self._wake: Callable[[], None] = lambda: None

    def attach(self, selector: selectors.BaseSelector, wake: Callable[[], None], slots: Path) -> None:
        """As of an Engine: the file `slots` is made here."""
        self._shared.make(slots)
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

    def _set_worker(self, slot: int, worker: Record | None) -> None:
        self._workers[slot] = worker
        # A new list, as a thread without the lock may be in the old one: see next_check().
        self._alive = [worker for worker in self._workers if worker is not None]

    # giving

    def free_capacity(self, digest: bytes | None = None) -> tuple[int, int]:
        """How many more calls the workers could be given in all, and how many the one with the most room."""
        total = best = 0
        for worker in self._workers:
            free = self._free_capacity_of(worker, digest)
            if free > 0:
                total += free
                if free > best:
                    best = free
        return total, best

    def idle(self) -> int:
        """How many workers have nothing to do, or could be started."""
        return sum(
            (worker is None or not worker.queued) and self._free_capacity_of(worker) > 0 for worker in self._workers
        )

    def _free_capacity_of(self, worker: Record | None, digest: bytes | None = None) -> int:
        throughput = self.throughput
        if worker is None:
            if self._start_at:
                return 0
            lead = throughput.lead if digest is None else throughput.of(digest).lead
            return lead if self._max_tasks is None else min(lead, self._max_tasks)
        if worker.outbox.waiting or worker.take_at or worker.taken != proc.NEVER or worker.ending is not None:
            return 0
        queued = worker.next - worker.reported
        if digest is None:  # with calls of an unknown pace it has enough
            free = throughput.least_lead(worker.load) - queued
        else:
            free = throughput.room(digest, worker.load, queued)
        return free if self._max_tasks is None else min(free, self._max_tasks - worker.next)

    def give(self, chunk: Chunk) -> None:
        """Hand a chunk to the worker that has the most room, starting one where none is idle. One must have room."""
        # Among equals: an idle worker, then a new one. A running worker is never preferred to a new one.
        slot, most = 0, (-1, False, False)
        for i, worker in enumerate(self._workers):
            is_idle = worker is None or not worker.queued
            room = self._free_capacity_of(worker, chunk.digest), is_idle, worker is not None
            if room > most:
                slot, most = i, room
        worker = self._workers[slot] or self._try_to_start(slot)
        if worker is None:
            self.reports.append(Report(RETURNED, chunk.ids, chunk.attempts, chunk))
            self._wake()
            return
        self._give_to(worker, chunk)

    def _give_to(self, worker: Record, chunk: Chunk) -> None:
        function, pickled = self._function_for(worker, chunk)
        if not worker.queued:
            worker.heard_at = time.monotonic()
        if chunk.timeout is not None:
            chunk.given_at = time.monotonic()
            self._terminator.set_timer(worker, chunk.given_at + chunk.timeout)
        worker.take(chunk)
        message: tuple[Any, ...] = chunk.sequence, function, pickled, chunk.text, chunk.calls, chunk.ids, chunk.space
        if self.output is not None:
            message = *message, (self.output, chunk.attempts)
        worker.outbox.send(message)
        if worker.outbox.waiting:
            self._watch(worker)

    def _function_for(self, worker: Record, chunk: Chunk) -> tuple[int, bytes | None]:
        """The id of a chunk's function, and its pickle if the worker does not have it."""
        # The digest alone does not tell all versions apart: attributes of a function, say, are not in it.
        version = chunk.space, chunk.digest, len(chunk.function), hash(chunk.function)
        function_id = self._function_ids.get(version)
        if function_id is None:
            if len(self._function_ids) == proc.FUNCTIONS:
                self._function_ids.clear()
                self._digests.clear()
            self._last_function += 1
            function_id = self._function_ids[version] = self._last_function
            self._digests[function_id] = chunk.digest
        if function_id in worker.functions:
            return function_id, None
        if len(worker.functions) == proc.FUNCTIONS:  # as the worker does
            worker.functions.clear()
        worker.functions.add(function_id)
        return function_id, chunk.function

    def _try_to_start(self, slot: int) -> Record | None:
        """Start a worker. If it cannot be started, it is tried again later, or the pool is broken."""
        try:
            worker = self._start(slot)
        except OSError as error:  # too many processes or open files, say
            self._start_failures += 1
            self._start_at = time.monotonic() + _START_AGAIN_S
            if self._start_failures >= _START_FAILURES_ALLOWED and not any(self._workers):
                self.broken = f"{type(error).__name__}: {error}, {self._start_failures} times in a row"
        except Exception:  # noqa: BLE001 - pickling the initializer's arguments runs code of the user's
            self.broken = traceback.format_exc()
        else:
            self._start_failures = 0
            return worker
        return None

    def _start(self, slot: int) -> Record:
        row = self._shared.row(slot)
        row[STARTED], row[STOP], row[RESUME], row[SINCE] = -1, proc.NEVER, proc.NEVER, 0
        row[FIRST] = 0
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
        worker = Record(process, data, control, row)
        self._set_worker(slot, worker)
        self._watch(worker)
        return worker

    def _watch(self, worker: Record) -> None:
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

    def _on_ready(self, worker: Record, mask: int) -> None:
        if not worker.watched:  # it was let go by an event of the same look
            return
        if mask & selectors.EVENT_WRITE:
            worker.outbox.flush()
            if not worker.outbox.waiting:
                self._watch(worker)
        if mask & selectors.EVENT_READ:
            self._read(worker)

    def _read(self, worker: Record) -> bool:
        """Take in what one read of the worker's socket brings; False when there is nothing more."""
        try:
            messages = worker.inbox.read()
        except BlockingIOError:
            return False
        except (EOFError, ConnectionResetError):
            self._unwatch(worker)  # its death is told by the launcher
            return False
        for times, items in messages:
            if not items or items[0][0] != proc.STACK:  # who looks often keeps no call from being taken back
                worker.heard_at = time.monotonic()
            for function_id, executed, busy_s in times:
                self.throughput.learn(executed, busy_s)
                if (digest := self._digests.get(function_id)) is not None:
                    self.throughput.of(digest).learn(executed, busy_s)
            if times and not worker.has_run:
                worker.has_run = self._has_run = True
                self._start_deaths = 0
            for item in items:
                self._take(worker, *item)
        ending = worker.ending
        if ending is not None and not ending.has_begun and worker.reported >= ending.sequence:
            self._terminator.go_on(worker, ending)  # it has sent what it had, and no message of before is this
        if not worker.queued and worker in self._workers:  # else it was replaced just now
            self._judge(worker)
        return worker.watched

    def _take(self, worker: Record, kind: str, sequence: int, *rest: Any) -> None:
        """Take in one item of a message."""
        match kind:
            case proc.BLOCK | proc.RESULT | proc.ERROR:
                told, count, payload = outcome_of(kind, rest)
                self.reports.append(worker.report(told, sequence, count, payload))
            case proc.SKIPPED:
                end = sequence + rest[0]
                self.reports += worker.returned(sequence, min(end, worker.taken))
                worker.reported = max(worker.reported, end)
                worker.drop_reported()
            case proc.STALE:
                self._replace(worker, sequence)
            case proc.STACK:
                worker.answer(sequence, rest[0])
            case proc.BROKEN:
                worker.broken = rest[0]

    def _replace(self, worker: Record, sequence: int) -> None:
        """Let a worker go that has another version of a function, whose calls a fresh one is given first of all.

        So it is that one's answer that counts, and nothing else can come between.
        """
        parts = [
            chunk.part(start, stop) for chunk, start, stop in worker.parts(sequence, min(worker.next, worker.taken))
        ]
        worker.reported = worker.next
        worker.chunks.clear()
        worker.load.clear()
        worker.timer, worker.ending = 0.0, None
        if worker in self._workers:
            slot = self._workers.index(worker)
            self._retire(worker)
            if parts and (fresh := self._try_to_start(slot)) is not None:
                self._give_to(fresh, parts.pop(0))
        self.reports += [Report(RETURNED, part.ids, part.attempts, part) for part in parts]
        self._wake()

    def _judge(self, worker: Record) -> None:
        """Take note that all is reported that the worker was given."""
        worker.resume()
        if self._max_tasks is not None and worker.next >= self._max_tasks and worker.ending is None:
            self._retire(worker)

    # taking back

    def next_check(self, is_idle: Callable[[], bool]) -> float:
        """Return when `steal()` has something to do, in seconds of time.monotonic(), or infinity."""
        due = min(self._start_at or math.inf, self._terminator.due(self._alive))
        for worker in self._alive:
            if worker.take_at:
                due = min(due, worker.take_at)
                continue
            if worker.may_have_results():
                due = min(due, worker.heard_at + STEAL_AFTER_S)
            if worker.is_hoarding() and is_idle():
                due = min(due, worker.steal_at(self.throughput, self._has_idle()))
        return due

    def steal(self, now: float, is_idle: Callable[[], bool]) -> None:
        """Take calls back, have a worker that is silent for long send what results it has, and end what is overdue."""
        if self._start_at <= now:
            self._start_at = 0.0
        self._terminator.go_on_all(self._alive, now)
        for worker in self._alive:
            if worker.take_at:
                if worker.take_at <= now:
                    self.reports += worker.conclude()
                continue
            if worker.may_have_results() and worker.heard_at + STEAL_AFTER_S <= now:
                worker.ask(proc.FLUSH, now)
            if worker.is_hoarding() and is_idle():
                has_idle = self._has_idle()
                if worker.steal_at(self.throughput, has_idle) <= now:
                    worker.stop(worker.first_to_take(has_idle))
                    worker.take_at = now + VISIBLE_S

    def _has_idle(self) -> bool:
        """Return whether a worker has nothing to do, and could be given something."""
        return any(worker.next == worker.reported and self._free_capacity_of(worker) > 0 for worker in self._alive)

    def recall(self, ids: Container[int]) -> None:
        """Take back, at once, what waits in workers that have unstarted calls with one of these ids."""
        stopped = []
        for worker in self._alive:
            if worker.queued and not worker.is_being_taken_from:
                # The next one counts as started: with it the worker may be in it before it can be told.
                first = max(worker.unstarted(), worker.reported + 1)
                if worker.has_any(ids, first, worker.next):
                    worker.stop(first)
                    stopped.append(worker)
        if stopped:
            time.sleep(VISIBLE_S)  # no event tells that a write has become visible
        for worker in stopped:
            self.reports += worker.conclude()

    def end(self, ids: Container[int]) -> None:
        """End the workers that are in a call with one of these ids; what else they have runs elsewhere."""
        self._terminator.end(self._alive, ids)

    def ask_for_results(self) -> None:
        """Have all workers send what results lie there."""
        for worker in self._alive:
            if worker.queued:
                worker.ask(proc.FLUSH, time.monotonic())

    def awaits_results(self) -> bool:
        """Return whether a worker that was asked has not answered."""
        return any(worker.queued and worker.heard_at < worker.asked_at for worker in self._alive)

    # endings

    def _retire(self, worker: Record) -> None:
        """Let a worker go that has done its share; its slot is free at once."""
        self._set_worker(self._workers.index(worker), None)
        self._close(worker)

    def _on_death(self, slot: int, worker: Record) -> None:
        while worker.watched and self._read(worker):
            pass
        how = describe_exit(worker.process.exitcode)
        if worker.broken is not None:  # known now, and told only now: its last log records are out
            self.broken = worker.broken
        if self._workers[slot] is worker:
            self._set_worker(slot, None)
            started, end = worker.row[STARTED], min(worker.taken, worker.next)
            ending = worker.ending
            if ending is not None and ending.sequence >= worker.reported:
                started = ending.sequence  # whether it had begun or not
            if worker.reported <= started < end:
                self.reports += worker.returned(worker.reported, started)
                self.reports += worker.returned(started + 1, end)
                if ending is not None and ending.limit_s is not None and ending.sequence == started:
                    self.reports.append(worker.report(TIMED_OUT, started, 1, ending.limit_s))
                else:
                    self.reports.append(worker.report(CRASHED, started, 1, how))
            else:
                self.reports += worker.returned(worker.reported, end)
            self._terminator.take_over(worker)
            if started >= 0:
                self._start_deaths = 0
                self._has_run = True
            else:
                self._on_start_death(how)
        self._close(worker)
        worker.control.close()
        for probe, asked in worker.questions:
            probe.close_one(asked)
        worker.questions.clear()

    def _on_start_death(self, how: str) -> None:
        self._start_deaths += 1
        if self._start_deaths < _START_DEATHS_ALLOWED or self.broken is not None:
            return
        works = any(worker.row[STARTED] >= 0 for worker in self._alive)
        if works or (self._has_run and self._start_deaths < _LATER_DEATHS_ALLOWED):
            self._start_at = time.monotonic() + _START_AGAIN_S  # it need not grow at once
        else:
            self.broken = f"{self._start_deaths} workers in a row ended before their first call, by {how}"

    def _unwatch(self, worker: Record) -> None:
        if worker.watched and self._selector is not None:
            self._selector.unregister(worker.socket)
            worker.watched = False

    def _close(self, worker: Record) -> None:
        self._unwatch(worker)
        with contextlib.suppress(OSError):
            worker.socket.shutdown(socket.SHUT_RDWR)
        worker.socket.close()

    def is_busy(self) -> bool:
        """Whether a worker has calls that are not reported, or something of one that was ended is left."""
        return bool(self._terminator.orphans) or any(worker.queued for worker in self._alive)

    def held(self) -> Iterator[int]:
        """The ids of all calls that workers have."""
        return (id for worker in self._alive for chunk in worker.chunks for id in chunk.ids)

    def probe_stacks(self, on_end: Callable[[], None]) -> Probe:
        """Ask the workers where they are."""
        probe = Probe(on_end)
        probe.open = 1  # this loop
        for worker in self._alive:
            if (id := worker.running()) is None:
                continue
            probe.asked[id] = worker.process
            if worker.ask(proc.SHOW):
                worker.questions.append((probe, id))
                probe.open += 1
        probe.close_one()
        return probe

    def leave_to_parent(self) -> None:
        """After a fork, in the child: let go of what is the parent's, without a word to the workers."""
        for worker in self._alive:
            worker.socket.close()
            worker.control.close()
        self._launcher.leave_to_parent()
        self._shared.close()
        self._workers, self._alive = [None] * self.max_workers, []

    def pids(self) -> list[int]:
        """The process ids of the workers."""
        return list(self.processes())

    def running(self) -> list[tuple[int, float]]:
        """Return the ids of the calls that workers are in, and since when."""
        return [found for worker in self._alive if (found := worker.running_since()) is not None]

    def are_known(self) -> bool:
        """Return whether the ids of all processes are known. Any thread may ask."""
        return all(worker.process.pid is not None for worker in self._alive)

    def processes(self) -> dict[int, Process]:
        """The worker processes by their ids, as far as those are known. Any thread may ask."""
        processes = [worker.process for worker in self._alive]
        return {process.pid: process for process in processes if process.pid is not None}

    def close(self, signal_number: int | None = None, grace_s: float | None = None) -> None:
        """End the workers, and wait until they have ended."""
        for worker in self._alive:
            if signal_number is not None:
                worker.process.kill(signal_number)
            self._close(worker)
        self._launcher.close(grace_s)
        self._shared.close()
        self._terminator.close()
        self.reports.clear()
        self._workers, self._alive = [None] * self.max_workers, []
        self._selector = None
