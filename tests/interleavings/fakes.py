"""A store without a disk and an engine without processes, for the dispatcher to run against.

The store keeps tasks in a dictionary, as the contract of `stores/base.py` has it as far as a dispatcher asks for it. It
refuses some of the things that it is asked for, as a disk does that is full for a while. The engine keeps calls in the
queues of its workers, and one virtual thread ends them, in an order left to chance. What a call does is its argument: a
number is returned ten times as large, CRASH kills its worker in the first attempt, RAISE raises, LONG ends only when it
is ended.

Both check what they are asked for: a call is given to the engine only while its claim is committed, once for each
attempt, and only where there is room.
"""

import math
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from primitives import World

from omniq_executor.engines.base import CRASHED, ERROR, RESULT, RESULTS, RETURNED, Chunk, Report
from omniq_executor.engines.pacing import Throughput
from omniq_executor.errors import StoreError, TaskNotFound
from omniq_executor.model import codec
from omniq_executor.model.task import FINISHED, Call, ErrorInfo, Event, Function, Status
from omniq_executor.stores.base import Claimed, Outcome, Run, TaskState, Turn, TurnResult

CRASH, RAISE, LONG = "crash", "raise", "long"
FUNCTION = Function(b"digest of sixteen", "tests.function", b"its pickle")
OWNER, OTHER = 1, 2
RUN = Run(1, "queue")
OTHERS_RUN = 7


@dataclass(frozen=True)
class Row:
    """A task in the store."""

    id: int
    run: int
    call: Call
    status: Status
    owner: int | None = None
    attempt: int = 0
    crashes: int = 0
    result: str | bytes | None = None
    error: ErrorInfo | None = None
    after: tuple[int, ...] = ()


class NotifyPath:
    """Where an owner is notified."""

    def __init__(self, owner: int) -> None:
        self._owner = owner

    def __str__(self) -> str:
        return f"FIFO of {self._owner}"


class FakeStore:
    """See the module's docstring. Only what a Dispatcher asks of a Store."""

    address = "fake"
    path = Path("fake")

    def __init__(self, world: World) -> None:
        self.rows: dict[int, Row] = {}
        self.refused: str | None = None
        """What was refused, once it was."""
        self.reserve = SimpleNamespace(let_go=lambda: None)
        self.asked = 0
        """For how many things it was asked."""
        self.refuses = range(0)
        """Which of them it refuses."""
        self.others: set[int] = set()
        """Other owners that are registered."""
        self._dead: set[int] = set()
        self.is_closed = False
        self.has_left = False
        self._world = world
        self._news: list[int] = []
        self._has_changed = False  # by others

    # the work

    def turn(self, owner: int, run: Run, work: Turn) -> TurnResult:
        self._ask("turn")
        result = TurnResult(foreign=self._has_changed)
        self._has_changed = False
        for batch in work.adds:
            for number, call in enumerate(batch.each(), batch.first):
                self._add(number, run, call, batch.claimed)
        for block in work.blocks:
            for number, (value,) in enumerate(codec.decode(block.text), block.first):
                self._end(result, Outcome(number, block.attempt, Event.COMPLETE, codec.encode(value)))
        for outcome in work.outcomes:
            self._end(result, outcome)
        pending = [row for row in self._of(run) if row.status is Status.PENDING] if work.tier == 0 else []
        for row in pending[: work.claim]:
            self.rows[row.id] = row = replace(row, status=Status.RUNNING, owner=OWNER, attempt=row.attempt + 1)
            result.claimed.append(
                Claimed(row.id, row.attempt, row.crashes, row.run, FUNCTION.digest, row.call.args, row.call.kwargs)
            )
        self._answer()
        return result

    def add_claimed(self, owner: int, run: Run, number: int, function: Function, call: Call, now: int) -> None:
        self._ask("add_claimed")
        self._add(number, run, call, True)
        self._answer()

    def cancel(self, ids: Sequence[int], now: int, running: bool = False) -> list[int]:
        self._ask("cancel")
        return self._cancel(ids, running)

    def adopt(self, run: Run, ids: Collection[int] | None, now: int, *, any_context: bool = False) -> int:
        self._ask("adopt")
        others = [row for row in self.rows.values() if row.run != run.id and row.status is Status.PENDING]
        adopted = [row for row in others if row.owner not in self.others and (ids is None or row.id in ids)]
        for row in adopted:
            self.rows[row.id] = replace(row, run=run.id)
        self._answer()
        return len(adopted)

    def reap(self, now: int) -> int:
        self._ask("reap")
        robbed = [row for row in self.rows.values() if row.status is Status.RUNNING and row.owner in self._dead]
        for row in robbed:
            self.rows[row.id] = replace(row, status=Status.PENDING, owner=None)
        self.others -= self._dead
        self._answer()
        return len(robbed)

    # who is there

    def owners(self) -> list[Any]:
        self._ask("owners")
        return []

    def stored(self, ids: Collection[int]) -> list[Any]:
        self._ask("stored")
        return [SimpleNamespace(task=row) for id in ids if (row := self.rows.get(id)) is not None]

    def runs(self) -> list[Any]:  # those of other contexts are what is looked for, and there are none
        self._ask("runs")
        return []

    def notify(self, owner: int) -> None:
        self._ask("notify")

    def read_changes(self, owner: int) -> list[int]:
        self._ask("read_changes")
        news, self._news = self._news, []
        return news

    def peers(self, owner: int) -> list[int]:
        self._ask("peers")
        return sorted(self.others)

    def notify_path(self, owner: int) -> Any:
        return NotifyPath(owner)

    def slots_path(self, owner: int) -> Path:
        return Path("slots")

    def leave(self, owner: int) -> None:
        self._ask("leave")
        for row in self._claimed():
            self.rows[row.id] = replace(row, status=Status.PENDING, owner=None)
        self.has_left = True

    def end_run(self, run: Run, clean: bool, now: int) -> list[Any]:
        self._ask("end_run")
        return []

    def expire(self, now: int, owner: int) -> Iterator[Any]:
        return iter(())

    def close(self) -> None:
        self.is_closed = True
        self._world.scheduler.operation()

    # looking

    def states(self, ids: Iterable[int]) -> list[TaskState]:
        self._ask("states")
        rows = [self.rows[number] for number in ids if number in self.rows]
        return [TaskState(row.id, row.status, row.owner, row.result, row.error) for row in rows]

    def function(self, digest: bytes) -> Function:
        self._ask("function")
        return FUNCTION

    def get(self, number: int) -> Any:
        raise TaskNotFound("nobody looks at tasks here")

    def is_running(self, number: int, attempt: int) -> bool:
        """Whether that attempt of a task is committed as this owner's."""
        row = self.rows.get(number)
        return row is not None and (row.status, row.owner, row.attempt) == (Status.RUNNING, OWNER, attempt)

    # what other processes do

    def add_elsewhere(self, number: int) -> None:
        """Another process enters, adds a task, and runs it."""
        self.others.add(OTHER)
        self.rows[number] = Row(number, OTHERS_RUN, Call(f"[{number}]"), Status.RUNNING, OTHER, 1)
        self._tell(number)

    def die_elsewhere(self) -> None:
        """It dies."""
        self._dead.add(OTHER)
        self._world.files.silence(self.notify_path(OTHER))

    def leave_behind(self, number: int) -> None:
        """An earlier run has added a task that this one takes over."""
        self.rows[number] = Row(number, RUN.id, Call(f"[{number}]"), Status.PENDING)

    def finish_elsewhere(self, number: int, value: int) -> None:
        """It has finished it."""
        self.rows[number] = replace(self.rows[number], status=Status.COMPLETED, result=codec.encode(value))
        self._tell(number)

    def cancel_elsewhere(self, number: int) -> None:
        """It has cancelled a task of this one, also one that runs."""
        if self._cancel([number], True):
            self._tell(number)

    # within

    def _ask(self, what: str) -> None:
        """Be asked for something: this is the one place where a store refuses."""
        self._world.scheduler.operation()
        if self.is_closed:
            raise StoreError("the store is closed")
        self.asked += 1
        if self.asked in self.refuses:
            self.refused = what
            self._world.scheduler.note(f"the store refuses: {what}")
            raise StoreError(f"no space left for {what}")

    def _answer(self) -> None:
        """Return from what is committed, with others in between."""
        self._world.scheduler.operation()

    def _add(self, number: int, run: Run, call: Call, claimed: bool) -> None:
        if number in self.rows:
            self._world.scheduler.fail("a task is added twice")
        new = Row(number, run.id, call, Status.PENDING)
        self.rows[number] = replace(new, status=Status.RUNNING, owner=OWNER, attempt=1) if claimed else new

    def _end(self, result: TurnResult, end: Outcome) -> None:
        if not self.is_running(end.id, end.attempt):
            result.refused.add(end.id)
            return
        row = self.rows[end.id]
        if end.event is Event.COMPLETE:
            row = replace(row, status=Status.COMPLETED, result=end.result)
        elif end.event is Event.FAIL:
            row = replace(row, status=Status.FAILED, error=end.error)
        else:
            crashes = row.crashes + (end.event is Event.CRASH)
            row = replace(row, status=Status.PENDING, owner=None, crashes=crashes)
        self.rows[end.id] = row

    def _cancel(self, ids: Sequence[int], running: bool) -> list[int]:
        ends = {Status.PENDING, Status.RUNNING} if running else {Status.PENDING}
        cancelled = [number for number in ids if number in self.rows and self.rows[number].status in ends]
        for number in cancelled:
            self.rows[number] = replace(self.rows[number], status=Status.CANCELLED)
        self._news += cancelled
        self._answer()
        return cancelled

    def _tell(self, number: int) -> None:
        if self.rows[number].status in FINISHED:
            self._news.append(number)
        self._has_changed = True
        self._world.files.notify(self.notify_path(OWNER))

    def _of(self, run: Run) -> list[Row]:
        return sorted((row for row in self.rows.values() if row.run == run.id), key=lambda row: row.id)

    def _claimed(self) -> list[Row]:
        return [row for row in self.rows.values() if row.status is Status.RUNNING and row.owner == OWNER]


class _Given:
    """A call that the engine has."""

    def __init__(self, chunk: Chunk) -> None:
        self.chunk = chunk
        self.id, self.attempt = chunk.ids[0], chunk.attempts[0]
        ((args, kwargs),) = chunk.calls or ()
        ((self.what,), _) = codec.decode_call(args, kwargs)
        self.has_started = False
        self.is_ended = False

    def ends(self) -> bool:
        """Whether it can end, now or after it has begun."""
        return self.what != LONG or self.is_ended


class FakeEngine:
    """See the module's docstring. It breaks when it was given its `break_at`-th call."""

    snapshot = None
    name = "fake"
    sees_files = False

    def __init__(self, world: World, store: FakeStore, workers: int, depth: int, break_at: int | None) -> None:
        self.max_workers = workers
        self.broken: str | None = None
        self.reports: list[Report] = []
        self.throughput = Throughput()
        self.has_ended = False
        self.had: set[tuple[int, int]] = set()
        """Which attempts it was given and has not returned."""
        self.reported: set[int] = set()
        """Which calls it has reported as finished."""
        self.is_heard: Callable[[], bool] = lambda: True
        """Whether what it reports is still of interest."""
        self._world = world
        self._store = store
        self._depth = depth
        self._break_at = break_at
        self._count = 0
        self._queues: list[list[_Given]] = [[] for _ in range(workers)]
        self._sent: list[Report] = []  # by the workers, and not taken in yet
        self._is_closing = False
        self._takes_s = world.scheduler.chance.choice((0.0, 0.0, 0.004, 0.012))

    def attach(self, selector: Any, wake: Callable[[], None], slots: Path) -> None:
        self._selector = selector
        self._pipe, self._end_of_workers = self._world.files.pipe()
        selector.register(self._pipe, 1, self._on_event)
        self._workers = self._world.scheduler.thread(self._work, "workers")
        self._workers.start()

    def prepare(self) -> None:
        pass

    # giving

    def free_capacity(self, digest: bytes | None = None) -> tuple[int, int]:
        if self.broken is not None:
            return 0, 0
        left = [self._depth - len(queue) for queue in self._queues]
        return sum(left), max(left)

    def idle(self) -> int:
        return sum(not queue for queue in self._queues)

    def give(self, chunk: Chunk) -> None:
        calls = [_Given(chunk.part(place, place + 1)) for place in range(len(chunk.ids))]
        queue = min(self._queues, key=len)
        self._check(self.broken is not None or len(queue) < self._depth, "calls are given to an engine without room")
        for call in calls:
            key = call.id, call.attempt
            self._check(key not in self.had, f"attempt {call.attempt} of a call is given twice")
            is_known = self._store.is_running(*key) or self._store.rows[call.id].status is Status.CANCELLED
            self._check(is_known, "a call is given whose claim is not committed")
            self.had.add(key)
            queue.append(call)
            self._count += 1
            if self._count == self._break_at:
                self.broken = "workers die as they start"
                self._world.files.write(self._end_of_workers, b"!")
        self._world.scheduler.operation()

    # looking

    def is_busy(self) -> bool:
        return bool(self._sent) or any(self._queues)

    def held(self) -> Iterator[int]:
        sent = [report.ids for report in self._sent]
        return iter([call.id for queue in self._queues for call in queue] + [id for ids in sent for id in ids])

    # taking back, and ending

    def next_check(self, is_idle: Callable[[], bool]) -> float:
        return math.inf

    def steal(self, now: float, is_idle: Callable[[], bool]) -> None:
        pass

    def recall(self, ids: Container[int]) -> None:
        for place, queue in enumerate(self._queues):
            back = [call for call in queue if call.id in ids and not call.has_started]
            self._queues[place] = [call for call in queue if call not in back]
            for call in back:
                self.had.remove((call.id, call.attempt))
                self.reports.append(Report(RETURNED, [call.id], [call.attempt], call.chunk))
        self._world.scheduler.operation()

    def end(self, ids: Container[int]) -> None:
        for queue in self._queues:
            for call in queue:
                call.is_ended = call.is_ended or (call.id in ids and call.has_started)
        self._world.scheduler.operation()

    def ask_for_results(self) -> None:
        pass

    def awaits_results(self) -> bool:
        return False

    def close(self, signal_number: int | None = None, grace_s: float | None = None) -> None:
        self._is_closing = True
        self._queues = [[] for _ in self._queues]
        self._workers.join()
        if not self.has_ended:
            self._selector.unregister(self._pipe)
            for fd in (self._pipe, self._end_of_workers):
                self._world.files.close(fd)
        self.has_ended = True

    def _check(self, is_so: object, why: str) -> None:
        """Fail the schedule if it is not so: the dispatcher would catch an exception, and go on."""
        if not is_so:
            self._world.scheduler.fail(why)

    # the workers

    def _work(self) -> None:
        scheduler = self._world.scheduler
        while True:
            scheduler.block("calls", lambda: self._is_closing or bool(self._able()))
            able = self._able()
            if not able:
                return
            call = able[int(scheduler.chance.random() * len(able))]
            call.has_started = True
            scheduler.operation()
            if self._takes_s and call.ends():
                until = scheduler.clock() + 2 * self._takes_s * scheduler.chance.random()
                scheduler.block("the end of a call", lambda: self._is_closing, until)
            ended = [queue.pop(0) for queue in self._queues if call.ends() and call in queue]
            if ended:
                self._send(call)

    def _able(self) -> list[_Given]:
        """Calls that can begin or end."""
        return [queue[0] for queue in self._queues if queue and (queue[0].ends() or not queue[0].has_started)]

    def _send(self, call: _Given) -> None:
        ids, attempts = [call.id], [call.attempt]
        if call.is_ended or (call.what == CRASH and call.attempt == 1):
            self._sent.append(Report(CRASHED, ids, attempts, "signal 9"))
        elif call.what == RAISE:
            self._sent.append(Report(ERROR, ids, attempts, ErrorInfo("ValueError", "raised", "")))
        else:
            value = codec.encode(result_of(call.what))
            last = self._sent[-1] if self._sent else None
            if last is not None and last.kind == RESULTS:  # they travel together
                text = codec.join([*codec.split(last.payload), f"[{value!s}]"])
                self._sent[-1] = Report(RESULTS, [*last.ids, *ids], [*last.attempts, *attempts], text)
            elif self._world.scheduler.chance.random() < 0.5:
                self._sent.append(Report(RESULT, ids, attempts, value))
            else:
                self._sent.append(Report(RESULTS, ids, attempts, f"[[{value!s}]]"))
        if not self._is_closing:
            self._world.files.write(self._end_of_workers, b"!")

    def _on_event(self, mask: int) -> None:
        self._world.files.read(self._pipe, 4096)
        sent, self._sent = self._sent, []
        self.reports += sent
        if self.is_heard():
            self.reported.update(id for report in sent if report.kind in (RESULT, RESULTS) for id in report.ids)


def result_of(what: Any) -> Any:
    """What a call with this argument returns."""
    return what * 10 if isinstance(what, int) else what
