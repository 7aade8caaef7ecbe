"""Who takes the turns: one class that sleeps, wakes, gives way and puts off Ctrl-C, and knows nothing of tasks.

Any thread takes turns that is in the executor anyway: one that adds something takes a turn for it (a *visit*), and
one that waits takes turns until it has what it waits for (`wait_until()`: it *drives*). It saves two switches
between threads per call, and leaves the interpreter's lock to the one thread that has something to do. For all
other times there is a thread of the executor's own (`_run()`), which waits for the same events.

    visit         with driver:           lock -- what is added, with its turn -- unlock -- tell
    drive         wait_until(done)       [ sleep until an event -- lock -- take in, turn -- unlock -- tell ] until done
    park          wait_until(done)       sleep while another thread drives; woken when done, or when that one stops
    own thread    _run()                 as drive, while nobody else does; else it stands by

Guarantees, and the order that gives them:

- One turn at a time, under the lock. What a turn brought is told outside of it, by the thread that took it, always:
  also where what was asked for failed.
- Ctrl-C is put off from before the lock is asked for until all is told (interrupts.py), and in a wait until the next
  look at what is pending: the handler wakes it.
- Somebody looks at each event. A driver that stops says so (`_driver = None`) and then looks for those who are parked
  or stand by; these make themselves known first and then look whether it is still there. So one of the two sees
  the other.
- Who wakes others needs no lock, not even in a signal handler or while garbage is collected. The pipe that wakes may be
  closed only under the lock, so it is written to under the lock too: by whoever asks, or if that is taken by
  whoever has it, after letting go. `_wanted` is set before the lock is tried, and looked at after each release.

How the own thread keeps out of the way:

- While others drive it stands by: it looks again after STANDBY_S, and sleeps without a clock once the same driver is
  still there then.
- Where threads have driven lately, or add in a burst (such turns bring in outcomes as well), it lets GRACE_S
  pass, and takes no turn if somebody came meanwhile. Otherwise the two would meet at the lock with every single call.
"""

import functools
import math
import os
import selectors
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Protocol, TypeVar

from ..engines.pacing import STEAL_AFTER_S
from ..interrupts import interrupts
from ..pipes import drain, wake_pipe

_T = TypeVar("_T")

STANDBY_S = 0.005
GRACE_S = 0.001, 0.004  # at first, and at most in a burst that goes on: each look costs as much as two calls
MOMENT_S = 0.001  # of a wait, in which nothing is done for a signal that comes just as it begins
YIELD_S = 0.005  # at most, in which a thread that was woken gets a CPU
GLANCE_S = 0.05  # for which who only looks waits for a turn to end


class Work(Protocol):
    """What the turns are taken for. It is asked under the lock, but for `next_alarm()`, `notify_waiting()`
    and `is_over()`."""

    def next_alarm(self) -> float:
        """Return the seconds until a turn is due that no event tells of, or infinity for never."""

    def holds_back(self) -> bool:
        """Return whether something waits for the end of a burst."""

    def take_turn(self) -> None:
        """Take a turn, after its events were taken in. It raises nothing."""

    def fail(self, error: BaseException) -> None:
        """Take note of a fault, which is the end."""

    def notify_waiting(self) -> bool:
        """Tell those who wait what has come, and return whether something had."""

    def is_over(self) -> bool:
        """Return whether everything is done, and the own thread can end."""

    def end(self) -> None:
        """Close everything, in the own thread, as its last act."""


class Driver:
    """See the module's docstring. As a context manager it is a visit."""

    def __init__(self, work: Work) -> None:
        self.is_closed = False
        self.is_stopped = False
        """Whether no turns are taken any more, since something is broken. Those who wait are told all the same."""
        self.is_ending = False
        """Whether the own thread is to find out when everything is over."""
        self.selector = selectors.DefaultSelector()
        """What is waited for, with handlers as its data; they are called under the lock with the mask of events."""
        self._work = work
        self._lock = threading.RLock()
        self._wake_r, self._wake_w = wake_pipe()
        self.selector.register(self._wake_r, selectors.EVENT_READ, lambda _: self._on_wake())
        interrupts.watch(self.selector)
        self.waker: Callable[[], object] = functools.partial(os.write, self._wake_w, b"!")
        """Has whoever sleeps look again, until `close()`."""
        self._wanted = False  # a wake
        self._is_ticking = False  # whether a wake for what is held back is under way
        self._events_seen = 0  # how often events were taken in
        self._sleepers: set[int] = set()  # threads that wait for events and wake up for nothing else
        self._yielded = threading.Event()  # set when one of them is not asleep any more
        self._yielded.set()
        self._driver: object | None = None
        self._driver_thread = 0
        self._driver_lock = threading.Lock()
        self._is_finishing = False  # whether nobody begins to drive any more
        self._parked: list[tuple[SimpleQueue[None], Callable[[], bool]]] = []
        self._calm = 0  # the thread whose present visit need wake nobody who sleeps
        self.visits = 0  # of threads that drive, or add while other things are open
        self._grace = False
        self._grace_s = GRACE_S[0]
        self._thread: threading.Thread | None = None
        self._running = threading.Lock()  # held by the own thread as long as it lives
        self._standby = threading.Event()
        self._stands_by = False  # whether it does so without a clock

    # visits

    def __enter__(self) -> None:
        interrupts.__enter__()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        try:
            self._afterwards()
        finally:
            interrupts.__exit__()

    def is_within(self) -> bool:
        """Return whether this thread is in a turn or visit, so that a handler of a signal has interrupted it there."""
        return bool(self._lock._is_owned())  # type: ignore[attr-defined]  # as threading.Condition asks it

    def refuse_within(self) -> None:
        """Raise RuntimeError there."""
        if self.is_within():
            raise RuntimeError(
                "a signal handler has interrupted the executor in the middle of something. It can ask it to cancel"
                " calls there, and to shut down, but not to take calls or to wait for them"
            )

    def start(self) -> None:
        """Start the own thread, if it does not run. The lock is held."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._live, name="omniq-dispatcher", daemon=True)
            self._thread.start()

    def count_visit(self) -> None:
        """Have the own thread keep away for a moment, as in a burst."""
        self.visits += 1
        self._grace = True

    def hold_off(self) -> None:
        """Likewise, with no visit: the own thread looks again within GRACE_S, if nobody else takes a turn before."""
        self._grace = True
        self.tick()

    def poll(self, timeout_s: float = 0) -> None:
        """Take in what events there are, or come within a time. The lock is held."""
        self._take_in(self.selector.select(timeout_s))

    def glance(self, look: Callable[[], _T]) -> _T | None:
        """Return what a look finds that changes nothing, or None where a turn takes too long. Nobody is told of it."""
        with interrupts:
            if not self._lock.acquire(timeout=GLANCE_S):
                return None
            try:
                return look()
            finally:
                self._lock.release()
                self._write_wake()  # of whoever found the lock taken meanwhile

    def leave_asleep(self) -> None:
        """Say at the end of a visit that it has changed nothing for whoever sleeps. The lock is held."""
        self._calm = threading.get_ident()

    # waking

    def wake(self) -> None:
        """Have whoever sleeps look again. Other threads may call it at any time, with any lock.

        The main thread calls it where Ctrl-C is put off, or in the handler that notes it.
        """
        self._wanted = True  # before the lock is tried, see the module's docstring
        self._write_wake()

    def tick(self) -> None:
        """Have somebody take a turn soon: whoever drives, or the own thread within GRACE_S. The lock is held."""
        if not self._is_ticking:
            self._is_ticking = True
            self.wake()

    def rouse(self) -> None:
        """Have the own thread look again, whatever it waits for."""
        with interrupts:
            self._standby.set()
            self.wake()

    def _write_wake(self) -> None:
        while self._wanted and self._lock.acquire(blocking=False):
            try:
                if self._wanted:
                    self._wanted = False
                    if not self.is_closed:
                        try:
                            os.write(self._wake_w, b"!")
                        except BlockingIOError:
                            pass  # full of wakes already
            finally:
                self._lock.release()

    def _on_wake(self) -> None:
        # Who is asleep, or drives and is about to be, must find what wakes it, whoever takes in events before.
        if self._sleepers:
            # It has found it, and needs a CPU to say so. To take one turn after the other meanwhile would keep that
            # from it where the machine is busy.
            self._yielded.clear()
            if self._sleepers:
                self._yielded.wait(YIELD_S)
        if not self._sleepers and (self._driver is None or self._driver_thread == threading.get_ident()):
            drain(self._wake_r)
            self._is_ticking = False  # a turn follows; what is held back later needs another wake

    # waiting

    def wait_until(self, done: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Wait until `done()`, or for `timeout_s` seconds; return whether it is.

        Nobody else is told of what is done, so it is something that turns bring about. Ctrl-C is raised in here.
        """
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        with interrupts:
            while not (is_done := done()) and not self.is_closed:
                if deadline < math.inf and time.monotonic() >= deadline:
                    break
                self.refuse_within()
                self._wait(done, deadline)
                if interrupts.is_pending:
                    interrupts.deliver()
        return is_done or done()

    def _wait(self, done: Callable[[], bool], deadline: float) -> None:
        """Drive, or park while another thread does, until it is worth a look."""
        # In a callback of a future: what is waited for may have come with the same turn, and be told after that future.
        self._afterwards()
        me = threading.get_ident()
        with self._driver_lock:
            is_nested = self._driver is not None and self._driver_thread == me  # in a callback of a future
            is_free = not self.is_stopped and not self._is_finishing and self._driver is None
            drives = is_free or is_nested
            if drives and not is_nested:
                self._driver, self._driver_thread = object(), me
        if not drives:
            self._park(done, deadline)
            return
        before = interrupts.set_wake(self.wake)
        try:
            self.count_visit()
            self._drive(done, deadline)
        finally:
            interrupts.set_wake(before)
            if not is_nested:
                # In this order: who parks or stands by makes itself known, and then looks at the driver once more.
                self._driver = None
                self._release_parked(everyone=True)
                if self._stands_by:
                    self._standby.set()

    def _drive(self, done: Callable[[], bool], deadline: float) -> None:
        if self._work.holds_back():  # for a burst, which is over
            self._take_turn(0)
        while not (done() or self.is_stopped or self._is_finishing):
            if interrupts.is_pending and interrupts.is_to_leave():
                return
            left = deadline - time.monotonic() if deadline < math.inf else math.inf
            if left < 0:
                return
            self._take_turn(left)

    def _park(self, done: Callable[[], bool], deadline: float) -> None:
        """Sleep while another thread drives, or tells of the end."""
        woken: SimpleQueue[None] = SimpleQueue()  # safe in a signal handler
        parked = woken, done
        before = interrupts.set_wake(lambda: woken.put(None))
        self._parked.append(parked)
        try:
            # After it can be found there: see _wait().
            is_driven = self._driver is not None or self.is_stopped or self._is_finishing
            if is_driven and not (done() or self.is_closed or interrupts.is_to_leave()):
                interrupts.hear_signals(True)
                try:
                    woken.get(timeout=max(deadline - time.monotonic(), 0) if deadline < math.inf else None)
                except Empty:
                    pass
                finally:
                    interrupts.hear_signals(False)
        finally:
            self._parked.remove(parked)
            interrupts.set_wake(before)

    def _release_parked(self, everyone: bool = False) -> None:
        for woken, done in list(self._parked):
            if everyone or done():
                woken.put(None)

    # turns

    def _live(self) -> None:
        with self._running:
            self._run()

    def _run(self) -> None:
        """Take the turns that nobody else takes, and close in the end: the own thread."""
        present = None
        while not self._work.is_over():
            self._standby.clear()
            driver = self._driver
            if self.is_stopped:
                self._afterwards()
                if not self._work.is_over():
                    self._standby.wait()
            elif driver is None:
                self._take_turn(math.inf, gives_way=True)
            elif driver is not present:
                self._standby.wait(STANDBY_S)
            else:
                self._stands_by = True
                if self._driver is driver:  # after the line above, see _wait()
                    self._standby.wait()
                self._stands_by = False
            present = driver
        self._let_driver_leave()
        self._work.end()

    def _let_driver_leave(self) -> None:
        """Wait until nobody sleeps in the selector: who does when its file is closed is never woken."""
        with self._driver_lock:
            self._is_finishing = True
        self._stands_by = True
        while True:
            self._standby.clear()
            if self._driver is None:  # after the line above, see _wait()
                return
            self.wake()
            self._standby.wait()

    def _take_turn(self, timeout_s: float, gives_way: bool = False) -> None:
        """Wait for something to happen, and take the turn for it."""
        if gives_way and self._grace:
            visits = self.visits
            self._standby.wait(self._grace_s)
            if self._driver is not None or self.visits != visits:
                self._grace_s = min(2 * self._grace_s, GRACE_S[1])
                return
            self._grace, self._grace_s = False, GRACE_S[0]
            timeout_s = 0 if self._work.holds_back() else timeout_s
        seen = self._events_seen
        try:
            ready = self._sleep(timeout_s)
            if gives_way and (self._grace or self._driver is not None):
                return
            with self._lock:
                if self.is_closed or self.is_stopped:  # what was ready may be closed by now
                    return
                if self._events_seen != seen:  # by another thread: what was ready may be gone by now
                    ready = self.selector.select(0)
                self._take_in(ready)
                self._work.take_turn()
        except Exception as error:  # noqa: BLE001 - a fault of our own: nobody may wait for ever because of it
            with self._lock:
                self._work.fail(error)
        self._afterwards()

    def _sleep(self, timeout_s: float) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for events, and return them."""
        me = threading.get_ident()
        hears = False
        self._sleepers.add(me)  # before the look at what is due
        try:
            timeout_s = min(timeout_s, self._work.next_alarm())
            if self.is_ending and self._work.is_over():  # whoever made it so may have found nobody asleep
                timeout_s = 0
            if timeout_s <= STEAL_AFTER_S:
                self._sleepers.discard(me)
            if timeout_s > MOMENT_S and interrupts.wake is not None:  # maybe of this thread
                ready = self.selector.select(MOMENT_S)
                if ready:
                    return ready
                hears = True  # it costs as much as ten calls of Python
                interrupts.hear_signals(True)
                timeout_s -= MOMENT_S
            return self.selector.select(timeout_s if timeout_s < math.inf else None)
        finally:
            if hears:
                interrupts.hear_signals(False)
            self._sleepers.discard(me)
            if not self._yielded.is_set():
                self._yielded.set()

    def _take_in(self, ready: list[tuple[selectors.SelectorKey, int]]) -> None:
        """Take in what events say. The lock is held, and nobody has taken in any since `ready` was found."""
        try:
            for key, mask in ready:
                key.data(mask)
        finally:
            # Last: who finds something ready while it is being taken in must see another count afterwards.
            self._events_seen += 1

    def _afterwards(self) -> None:
        """After each turn or visit, outside the lock: tell those who wait, and have others look who may need to."""
        has_news = self._work.notify_waiting()
        if self._parked:
            self._release_parked()
        # Who is asleep may have to look again earlier than it meant to. And what another thread waits for may have come
        # after it looked and before it waits for events.
        is_calm = self._calm != 0 and self._calm == threading.get_ident()
        if is_calm:
            self._calm = 0
        if (self._sleepers and not is_calm) or (has_news and self._is_driven_elsewhere()):
            self._wanted = True
        if self.is_stopped and not self.is_own_thread():
            self._standby.set()  # it may be what the own thread waits for before it ends
        if self._wanted:
            self._write_wake()

    def _is_driven_elsewhere(self) -> bool:
        """Return whether another thread than this one takes the turns, and may be waiting for events."""
        if self._driver is not None:
            return self._driver_thread != threading.get_ident()
        return self.is_ending and not self.is_own_thread()

    # endings

    def is_own_thread(self) -> bool:
        """Return whether this is the own thread."""
        return self._thread is threading.current_thread()

    def join(self) -> None:
        """Wait for the end of the own thread, unless this is it."""
        if self._thread is not None and not self.is_own_thread():
            with self._running:  # a Thread whose join() Ctrl-C has interrupted counts as ended in Python 3.11
                pass
            self._thread.join()

    @property
    def has_thread(self) -> bool:
        """Whether the own thread was started."""
        return self._thread is not None

    def close(self) -> None:
        """Let go of all. The lock is held, and no turn is taken any more."""
        self.is_closed = True
        self.selector.close()
        os.close(self._wake_r)
        os.close(self._wake_w)
        self._release_parked(everyone=True)

    def hold(self, timeout_s: float = -1) -> bool:
        """Keep turns from being taken, as before a fork, at most waiting so long; return whether that is so."""
        return self._lock.acquire(timeout=timeout_s)

    def let_go(self) -> None:
        """Let turns be taken again. Nobody is told of anything, so rouse() follows where that may be needed."""
        self._lock.release()

    def leave_to_parent(self) -> None:
        """After a fork, in the child: let go of what is the parent's."""
        self._lock = threading.RLock()  # another thread of the parent's may have held it
        self.is_closed = True
        self.selector.close()  # nothing is unregistered: what it waits for is shared with the parent
        os.close(self._wake_r)
        os.close(self._wake_w)
