"""A scheduler of virtual threads: one runs at a time, and a seed decides at each point who goes on.

    code of the package --point(), signals()--.                    .--> it goes on
    lock, event, ... -----operation()---------+--> the strategy ---+--> another thread goes on (`_hand_over()`)
                     `----block()-------------'                    `--> what comes meanwhile: signals, and time

A *point* lies between two statements of the package (instrument.py puts it there), an *operation* is one on a lock, an
event, a pipe and so on (primitives.py). A signal is delivered where the interpreter does it: `signals()`, `block()`.
Each virtual thread is a real one that waits for its turn, so code under test needs no change. All that is left to
chance comes from one generator with the seed: a seed replays exactly.

Two strategies look for races, and the seed says which: a random walk, which changes threads with a fixed probability at
each point and operation; and one of few preemptions (as PCT), where the thread with the highest of random priorities
runs, and loses its rank at a few random points. The latter finds what needs a long stretch of one thread in the midst
of another one's step; the former what needs many changes.

Time is virtual. It passes a little with each point, now and then by some milliseconds (the machine was busy, or one
thread was left without a CPU), and jumps to the next deadline where nobody can go on. A jump longer than `patience_s`
is a failure, as is no deadline at all: somebody sleeps while there is something to do.
"""

import contextlib
import os
import random
import sys
import threading
import traceback
from _thread import allocate_lock
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Protocol

MOST_POINTS = 60_000  # of a schedule, after which it is said not to end
STUCK_S = 60.0  # of real time, after which a schedule stands still by a fault of these tests
LATE_S = 0.006  # at most, by which all threads are late now and then ...
ROBBED_S = 0.02  # ... and one of them alone
SHOWN = 60  # switches at the end of a schedule that failed


IsAble = Callable[["VirtualThread"], bool]


class Failure(AssertionError):
    """A schedule broke an invariant; the text says which, who waits for what, and how it came to that."""


class Strategy(Protocol):
    """Who goes on."""

    def next_point(self, points: int) -> int:
        """Return the number of the next point at which `pick()` is asked."""

    def started(self, thread: "VirtualThread") -> None:
        """Take in that there is a thread more."""

    def changes(self) -> bool:
        """Return whether `pick()` is asked at this operation."""

    def pick(self, is_able: "IsAble", current: "VirtualThread", is_due: bool) -> "VirtualThread | None":
        """Return who of those that can go on does, or None if nobody can. It is due at a point that was said before."""


class RandomWalk:
    """Change threads with a fixed probability."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._at_operation = chance.choice((0.05, 0.2, 0.5))
        self._at_point = chance.choice((0.0, 0.003, 0.02, 0.1))
        self._threads: list[VirtualThread] = []

    def next_point(self, points: int) -> int:
        return points + 1 + int(self._chance.expovariate(self._at_point)) if self._at_point else sys.maxsize

    def started(self, thread: "VirtualThread") -> None:
        self._threads.append(thread)

    def changes(self) -> bool:
        return self._chance.random() < self._at_operation

    def pick(self, is_able: "IsAble", current: "VirtualThread", is_due: bool) -> "VirtualThread | None":
        able = [thread for thread in self._threads if is_able(thread)]
        others = [thread for thread in able if thread is not current] or able
        return others[int(self._chance.random() * len(others))] if others else None


class FewPreemptions:
    """Let the thread of the highest rank run, which it loses at a few points of a schedule of about this length."""

    def __init__(self, chance: random.Random, length: int) -> None:
        self._chance = chance
        self._points = sorted(chance.randrange(length) for _ in range(chance.choice((1, 2, 3))))
        self._lowest = 0.0
        self._ranked: list[VirtualThread] = []  # the highest first

    def next_point(self, points: int) -> int:
        while self._points and self._points[0] <= points:
            self._points.pop(0)
        # A thread that goes on and on, while it waits for what another does, loses its rank too.
        return min(self._points[0] if self._points else sys.maxsize, points + 1500)

    def started(self, thread: "VirtualThread") -> None:
        thread.rank = self._chance.random()
        self._ranked.append(thread)
        self._ranked.sort(key=lambda thread: -thread.rank)

    def changes(self) -> bool:
        return True

    def pick(self, is_able: "IsAble", current: "VirtualThread", is_due: bool) -> "VirtualThread | None":
        if is_due:
            self._lowest -= 1
            current.rank = self._lowest
            self._ranked.remove(current)
            self._ranked.append(current)
        for thread in self._ranked:  # most often the first one, and then nobody else is looked at
            if is_able(thread):
                return thread
        return None


def _one_cpu() -> int | None:
    """Return the CPU for the threads of this process, of which one runs at a time.

    On several, each change of threads would wake a CPU: a search takes up to three times as long. Processes of
    pytest-xdist take one each.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    cpus = sorted(os.sched_getaffinity(0))
    number = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
    return cpus[int(number or 0) % len(cpus)]


_CPU = _one_cpu()


class _Hand:
    """A real thread, that runs one virtual thread after the other."""

    idle: ClassVar[list[Any]] = []  # those that have none

    def __init__(self) -> None:
        self.gate = allocate_lock()
        self.gate.acquire()
        self.body: Callable[[], Callable[[], None]] | None = None
        threading.Thread(target=self._run, name="virtual", daemon=True).start()

    def _run(self) -> None:
        if _CPU is not None:
            os.sched_setaffinity(0, {_CPU})  # of this thread alone
            # Who is woken does not run before the waker waits, as it needs the interpreter's lock of the waker.
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        while True:
            self.gate.acquire()
            assert self.body is not None
            go_on = self.body()
            self.body = None
            _Hand.idle.append(self)  # before another thread goes on, which may start one
            go_on()


class VirtualThread:
    """A thread of a schedule, as `threading.Thread` has it."""

    def __init__(self, scheduler: "Scheduler", target: Callable[[], object], name: str) -> None:
        self.name = name
        self.ident = 0  # until it is started
        self.is_over = False
        self.rank = 0.0
        self.waits_for = ""
        self.can_go_on: Callable[[], bool] | None = None  # where it waits
        self.deadline: float | None = None  # likewise
        self._scheduler = scheduler
        self._target = target

    def start(self) -> None:
        """Let it run, from some later point on."""
        self._scheduler.add(self)
        self._scheduler.operation()

    def join(self) -> None:
        """Wait for its end."""
        self._scheduler.operation()
        self._scheduler.block(f"the end of {self.name}", lambda: self.is_over)

    def begin(self) -> None:
        """Give it a real thread."""
        self.hand = _Hand.idle.pop() if _Hand.idle else _Hand()
        self.hand.body = self._body

    def _body(self) -> Callable[[], None]:
        try:
            self._target()
        except BaseException:  # noqa: BLE001 - whatever it is, the schedule has failed
            return self._scheduler.failing(f"{self.name} ended by\n{traceback.format_exc()}")
        self.is_over = True
        return self._scheduler.leave


class Scheduler:
    """See the module's docstring. It is of one schedule.

    `length` is about how many points it has. The first thread is the main one, which signals are sent to.
    """

    def __init__(self, seed: int | str, length: int, patience_s: float = 0.5, traces: bool = False) -> None:
        self.chance = random.Random(seed)
        self.threads: list[VirtualThread] = []
        self.current: VirtualThread | None = None
        self.failure: str | None = None
        self.points = 0
        self.handler: Any = self._interrupt  # of the virtual signal
        self.interrupts = 0
        """How many signals were raised as KeyboardInterrupt."""
        self.is_pending = False  # a signal that came, and is to be delivered to the main thread
        self._is_over = False
        self._patience_s = patience_s
        self._passed_s = 1000.0  # by jumps and delays
        self._tick_s = self.chance.choice((1e-7, 1e-6, 2e-5))  # by each point
        self._lateness = self.chance.choice((0.0, 0.0, 0.02))
        self._robbery = self.chance.choice((0.0, 0.1, 0.5))
        few = self.chance.random() < 0.5
        self._strategy: Strategy = FewPreemptions(self.chance, length) if few else RandomWalk(self.chance)
        self._length = length
        self._signals: list[int] = []  # points at which one is sent
        self._traces = traces
        self.trace: list[str] = []
        """What happened, where it `traces`."""
        self._ended = allocate_lock()
        self._ended.acquire()
        self._due = 0  # the point at which the strategy is asked next
        self._next = 0  # the point at which anything happens next
        self._plan()

    # what a test does

    def add(self, thread: VirtualThread) -> None:
        """Have a thread more, which can go on at once."""
        thread.ident = len(self.threads) + 1
        thread.begin()
        self.threads.append(thread)
        self._strategy.started(thread)

    def thread(self, target: Callable[[], object], name: str) -> VirtualThread:
        """Return a new thread, which is not started."""
        return VirtualThread(self, target, name)

    def run(self) -> None:
        """Run the threads to the end of them all. Raises Failure."""
        self.current = self.threads[0]
        self.current.hand.gate.release()
        if not self._ended.acquire(timeout=STUCK_S):
            self.failure = "the schedule stands still for real: something in it is not virtual"
            frames = sys._current_frames()
            for frame in frames.values():
                self.failure += "\n" + "".join(traceback.format_stack(frame)[-6:])
        self._is_over = True
        if self.failure is not None:
            raise Failure(self.failure)

    # what virtual threads ask for

    def clock(self) -> float:
        """Return the time, in seconds."""
        return self._passed_s + self.points * self._tick_s

    def point(self) -> None:
        """Go on, or let another thread do so: between two statements."""
        self.points += 1
        if self.points >= self._next and not self._is_over:
            self._look()

    def signals(self) -> None:
        """Likewise, and have a signal delivered that has come: where the interpreter looks for one."""
        self.points += 1
        if (self.is_pending or self.points >= self._next) and not self._is_over:
            if self.points >= self._next:
                self._look()
            if self.is_pending and self.current is self.threads[0]:
                self._deliver()

    def operation(self) -> None:
        """Likewise, at an operation of which other threads may see something. No signal is delivered here."""
        if self._is_over:
            return
        self.points += 1
        if self._lateness and self.chance.random() < self._lateness:
            self._passed_s += self.chance.random() * LATE_S
        if self._strategy.changes():
            self._hand_over(self._strategy.pick(self._is_able, self._me(), False))

    def block(self, what: str, can_go_on: Callable[[], bool], deadline: float | None = None) -> bool:
        """Wait until it can go on, and return True; or return False at the deadline. Signals are delivered here."""
        me = self._me()
        while not can_go_on():
            if self.is_pending and me is self.threads[0]:
                self._deliver()
                continue
            if deadline is not None and deadline <= self.clock():
                return False
            me.waits_for, me.can_go_on, me.deadline = what, can_go_on, deadline
            self._hand_over(self._next_of_others())
            me.can_go_on = None
        return True

    def fail(self, why: str) -> None:
        """End the schedule as one that has failed; its threads stay where they are."""
        self.failing(why)()
        _stand_still()

    def failing(self, why: str) -> Callable[[], None]:
        """Note why it has failed, and return what ends it."""
        if self.failure is None:
            self.failure = "\n".join([why, *self._standing(), *self._shown()])
        return self._ended.release

    def leave(self) -> None:
        """Go on with others, as the present thread is over."""
        if all(thread.is_over for thread in self.threads):
            self._ended.release()
            return
        following = self._next_of_others()
        if following is not None:
            self._show_switch(following)
            self.current = following
            following.hand.gate.release()

    # signals

    def send_signals(self, count: int) -> None:
        """Have so many signals come from now on, at any points."""
        self._signals = sorted(self.points + self.chance.randrange(self._length) for _ in range(count))
        self._plan()

    def set_handler(self, handler: Any) -> Any:
        """Set the handler of signals, after what is pending was delivered to the old one, as signal.signal() does."""
        if self.is_pending:
            self._deliver()
        before, self.handler = self.handler, handler
        return before

    def stop_signals(self) -> None:
        """Have none come any more."""
        self._signals, self.is_pending = [], False

    def _interrupt(self, *_: object) -> None:
        self.interrupts += 1
        raise KeyboardInterrupt

    def _deliver(self) -> None:
        self.is_pending = False
        self.note("signal")
        self.handler(2, None)

    # within

    def _me(self) -> VirtualThread:
        assert self.current is not None
        return self.current

    def _plan(self) -> None:
        """Work out when something happens next."""
        self._due = self._strategy.next_point(self.points)
        self._next = min(self._due, self._signals[0] if self._signals else MOST_POINTS, MOST_POINTS)

    def _look(self) -> None:
        if self.points >= MOST_POINTS:
            self.fail(f"it does not end within {MOST_POINTS} points")
        while self._signals and self.points >= self._signals[0]:
            self._signals.pop(0)
            self.is_pending = not self.threads[0].is_over
        is_due = self.points >= self._due
        self._plan()
        if is_due and self._robbery and self.chance.random() < self._robbery:
            self._rob()
        elif is_due:
            self._hand_over(self._strategy.pick(self._is_able, self._me(), True))

    def _rob(self) -> None:
        """Have the present thread be without a CPU for a while, in which others go on and time passes."""
        me = self._me()
        me.waits_for, me.can_go_on = "a CPU", lambda: False
        me.deadline = self.clock() + self.chance.random() * ROBBED_S
        self._hand_over(self._next_of_others())
        me.can_go_on = None

    def _is_able(self, thread: VirtualThread) -> bool:
        if thread.is_over:
            return False
        if thread.can_go_on is None or thread.can_go_on():
            return True
        if thread.deadline is not None and thread.deadline <= self.clock():
            return True
        return self.is_pending and thread is self.threads[0]

    def _next_of_others(self) -> VirtualThread | None:
        """Return who goes on where the present thread cannot; let time pass if nobody can. None: it has failed."""
        me = self._me()
        following = self._strategy.pick(self._is_able, me, False)
        if following is None and self._signals:  # the signal comes now, as nothing else does
            self._signals.pop(0)
            self.is_pending = not self.threads[0].is_over
            self._plan()
            following = self._strategy.pick(self._is_able, me, False)
        if following is None:
            deadlines = [t.deadline for t in self.threads if not t.is_over and t.deadline is not None and t.can_go_on]
            left = min(deadlines, default=float("inf")) - self.clock()
            if left > self._patience_s:
                why = "for ever" if left == float("inf") else f"for {left:.3g} s"
                self.failing(f"everybody sleeps, {why}")()
                if me.is_over:
                    return None
                _stand_still()
            self._passed_s += max(left, 0.0) + 1e-9
            following = self._strategy.pick(self._is_able, me, False)
        return following

    def _hand_over(self, following: VirtualThread | None) -> None:
        me = self._me()
        assert following is not None
        if following is not me:
            self._show_switch(following)
            self.current = following
            following.hand.gate.release()
            me.hand.gate.acquire()

    # what is shown of a schedule

    def note(self, what: str) -> None:
        """Have it be shown when the schedule fails."""
        if self._traces:
            self.trace.append(f"    {self._me().name}: {_place()}: {what}")

    def _show_switch(self, following: VirtualThread) -> None:
        if self._traces:
            me = self._me()
            where = "ends" if me.is_over else f"{_place()}" + (f", waits for {me.waits_for}" if me.can_go_on else "")
            self.trace.append(f"    {me.name}: {where} -> {following.name}")

    def _standing(self) -> Iterator[str]:
        for thread in self.threads:
            if thread.is_over:
                how = "over"
            elif thread.can_go_on is None:
                how = "could go on"
            else:
                how = f"waits for {thread.waits_for}"
                how += "" if thread.deadline is None else f" for {thread.deadline - self.clock():.3g} s"
            yield f"  {thread.name}: {how}"

    def _shown(self) -> Iterator[str]:
        if self.trace:
            yield f"  {len(self.trace)} switches, the last of them:"
            yield from self.trace[-SHOWN:]


def _stand_still() -> None:
    """Stand still: the schedule has ended without this thread."""
    gate = allocate_lock()
    gate.acquire()
    gate.acquire()


def _place() -> str:
    """Where the present thread is in the package, innermost first."""
    frame: Any = sys._getframe(2)
    places: list[str] = []
    while frame is not None and len(places) < 3:
        path = frame.f_code.co_filename
        if "omniq_executor" in path and "interleavings" not in path:
            places.append(f"{path.rpartition('/')[2]}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return " < ".join(places) or "test"


@contextlib.contextmanager
def replaced(target: Any, **values: Any) -> Iterator[None]:
    """Have other values of attributes for as long as the block takes."""
    before = {name: getattr(target, name) for name in values}
    try:
        for name, value in values.items():
            setattr(target, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(target, name, value)
