"""What threads do with an executor, in small: each scenario is run under thousands of schedules.

A scenario is a function of a `House`, which has the dispatcher, its store and its engine, and asks the dispatcher for
what a program does. It runs in the main virtual thread; the own thread of the dispatcher, the workers and whatever the
scenario starts are the others. Afterwards the executor is shut down, and the invariants are checked:

- Every future is done, and says what the store says.
- No call is lost: what was accepted is finished, unless workers cannot be started any more; and what a worker has
  reported is stored.
- Ctrl-C is never lost: each KeyboardInterrupt reaches the program, or is followed by another one that does.
- The process ends: `shutdown()` returns, every thread ends, and nothing is left open.

That nobody sleeps while there is something to do is watched by the scheduler, and that no attempt of a call is given
twice by the engine.
"""

import concurrent.futures
import functools
import gc
import math
import signal
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any

from fakes import CRASH, FUNCTION, LONG, OWNER, RAISE, RUN, FakeEngine, FakeStore, result_of
from instrument import Copy
from primitives import World
from scheduler import Failure, Scheduler, VirtualThread, replaced

from omniq_executor.errors import PoolBroken, RemoteError, StoreError
from omniq_executor.model import codec
from omniq_executor.model.task import FINISHED, Call, Status

REFUSAL_S = 1.5  # how long everybody may sleep where a store refuses: it is asked again after a second


@dataclass(frozen=True)
class Scenario:
    """What is done, and which faults come with it."""

    play: "Callable[[House], None]"
    length: int  # points, about
    signals: int = 0  # at most
    refusals: int = 0  # from one of so many things on that the store is asked for, one or some are refused
    breaks: int = 0  # among so many calls, with one the workers break


@functools.cache
def _future_of(copy: Copy) -> Any:
    """The class of futures. By addresses, `wait()` would look at them in another order each time."""
    future: Any = copy["future"].DurableFuture
    return type("Future", (future,), {"__hash__": lambda self: self._number})


class House:
    """An executor with all that belongs to it, under a scheduler."""

    def __init__(self, copy: Copy, scheduler: Scheduler, scenario: Scenario) -> None:
        self.scheduler = scheduler
        self.chance = scheduler.chance
        self.world = World(scheduler)
        self.interrupts = 0
        """How often Ctrl-C was raised in the main thread."""
        self.futures: list[tuple[Any, Any]] = []
        """Those that were given out, with what their calls do."""
        self.exits = 0
        """How often SystemExit was, that a callback has raised."""
        self.is_closing = False
        self.is_stopped = False
        self._copy = copy
        self._scenario = scenario
        self._threads: list[VirtualThread] = []

    def run(self) -> None:
        """Play the scenario to the end of its process. Raises Failure."""
        self.scheduler.add(self.scheduler.thread(self._main, "main"))
        with self.world.installed(self._copy), replaced(sys, unraisablehook=self._lose):
            self.scheduler.run()

    def _main(self) -> None:
        self._copy["interrupts"].interrupts.__init__()  # its main thread is this one
        scenario, chance = self._scenario, self.chance
        break_at = chance.randint(1, scenario.breaks) if scenario.breaks else None
        self.store = FakeStore(self.world)
        self.engine = FakeEngine(self.world, self.store, chance.randint(1, 2), chance.randint(1, 3), break_at)
        self.dispatcher = self._copy["dispatch.dispatcher"].Dispatcher(
            self.store, OWNER, RUN, self.engine, 2, new_future=_future_of(self._copy)
        )
        self.engine.is_heard = lambda: self.dispatcher.failure is None
        self.dispatcher._loop.retention.at = math.inf  # else its clock would have those go on who wait for ever
        if scenario.refusals:
            first = self.store.asked + chance.randint(1, scenario.refusals)
            self.store.refuses = range(first, first + chance.choice((1, 1, 2, 4)))
        self.scheduler.send_signals(chance.randint(1, scenario.signals) if scenario.signals else 0)
        self.attempt(lambda: scenario.play(self))
        if chance.random() < 0.7:  # so that nothing more happens for which threads are woken
            self.join()
        self.shutdown()
        self.join()
        self.scheduler.stop_signals()
        self._check()

    def _lose(self, lost: Any) -> None:
        self.scheduler.fail(f"lost in a finalizer: {lost.exc_value!r}")

    # what a program does

    def start(self, target: Callable[[], object], name: str) -> None:
        """Start a thread, which ends before the scenario does."""
        thread = self.scheduler.thread(target, name)
        self._threads.append(thread)
        thread.start()

    def join(self) -> None:
        """Wait for the threads that were started."""
        for thread in self._threads:
            self.insist(thread.join)

    def submit(self, what: Any) -> Any:
        """Submit a call; return its future, or None where that was interrupted or refused."""

        def submit() -> Any:
            call = Call(*codec.encode_call((what,), {}))
            future = self.dispatcher.submit(FUNCTION, call, self._copy["dispatch.dispatcher"].USUAL)
            self.futures.append((future, what))
            return future

        return self.attempt(submit)

    def map(self, items: Iterable[Any]) -> Any:
        """Map a function over items; return the iterator, or None likewise."""
        usual = self._copy["dispatch.dispatcher"].USUAL
        source = self._copy["items"].Items(((item,) for item in items), True)
        return self.attempt(
            lambda: self._copy["map_iterator"].Results(self.dispatcher, FUNCTION, source, None, None, usual)
        )

    def next(self, results: Any) -> Any:
        """Return the next result of a map, or None likewise."""
        return self.attempt(lambda: next(results))

    def future(self, number: int) -> Any:
        """Return a future of a task in the store."""
        return self.attempt(lambda: self.dispatcher.future(number))

    def result(self, future: Any, what: Any) -> None:
        """Wait for a result however often it is interrupted, and look whether it is right."""
        if future is None:
            return
        try:
            value = self.insist(future.result)
            assert value == result_of(what), f"the result of {what} is {value}"
        except CancelledError:
            assert future.cancelled()
        except RemoteError:
            assert what == RAISE
        except PoolBroken:
            assert self._may_fail()

    def cancel(self, future: Any, running: bool = False) -> None:
        """Cancel a call."""
        if future is not None:
            self.attempt(lambda: future.cancel(running))

    def shutdown(self, wait: bool = True) -> None:
        """Shut the executor down, also where that is interrupted."""
        self.is_closing = True
        self.insist(lambda: self.dispatcher.close(wait))

    def stop(self) -> None:
        """End the workers and the executor, also where that is interrupted."""
        self.is_closing = self.is_stopped = True
        self.insist(lambda: self.dispatcher.stop(signal.SIGTERM, "the executor was left by KeyboardInterrupt"))

    def attempt(self, ask: Callable[[], Any]) -> Any:
        """Ask once; return None where that is interrupted, or fails as it may."""
        try:
            return ask()
        except KeyboardInterrupt:
            self.interrupts += 1
        except SystemExit:
            self.exits += 1
        except StoreError:
            if self.store.refused is None:
                raise
        except PoolBroken:
            if not self._may_fail():
                raise
        except RuntimeError:
            if not self.is_closing:
                raise
        return None

    def insist(self, ask: Callable[[], Any]) -> Any:
        """Ask until it is not interrupted."""
        while True:
            try:
                return ask()
            except KeyboardInterrupt:
                self.interrupts += 1
            except SystemExit:
                self.exits += 1

    # what must be so

    def _may_fail(self) -> bool:
        """Whether calls may be left to the next run."""
        return self.engine.broken is not None or self.is_stopped

    def _check(self) -> None:
        store, dispatcher = self.store, self.dispatcher
        raised = self.scheduler.interrupts
        assert self.interrupts == raised or 1 <= self.interrupts < raised, f"{self.interrupts} of {raised} interrupts"
        assert dispatcher.failure is None or self._may_fail(), f"the dispatcher has failed: {dispatcher.failure}"
        for future, what in self.futures:
            assert future.done(), f"the future of {what} is not done"
            self._compare(future, store.rows[future._number])
        for row in store.rows.values():
            if row.run != RUN.id:
                continue
            is_left = row.status is Status.PENDING and dispatcher.failure is not None
            assert row.status in FINISHED or is_left, f"a call is lost: {row}"
            assert row.status in FINISHED or row.id not in self.engine.reported, f"a result is lost: {row}"
        if dispatcher.driver.has_thread:
            assert dispatcher._waiters.open == 0
        assert dispatcher.driver.is_closed
        assert store.is_closed
        assert self.engine.has_ended
        its = self._copy["interrupts"].interrupts
        assert not self.world.files.left_open((*its._pipe, *its._meanwhile))

    def _compare(self, future: Any, row: Any) -> None:
        """Look whether a future says what the store says."""
        if future.cancelled():
            assert row.status is Status.CANCELLED
            return
        error = future.exception(0)
        if isinstance(error, PoolBroken) and type(error) is PoolBroken:
            assert self.dispatcher.failure is not None
        elif error is not None:
            assert row.status is Status.FAILED
        else:
            assert row.status is Status.COMPLETED
            assert codec.decode(row.result) == future.result(0)


# the scenarios


def submits_and_asks(house: House) -> None:
    """One thread submits and asks for each result."""
    futures = [(house.submit(n), n) for n in range(3)]
    for future, what in futures:
        house.result(future, what)
    house.result(house.submit(RAISE), RAISE)


def two_submit_and_one_waits(house: House) -> None:
    """Two threads submit; the main one waits as concurrent.futures does."""
    ready: list[Any] = []

    def submit(first: int) -> None:
        ready.extend(house.submit(n) for n in range(first, first + 2))

    house.start(lambda: submit(10), "one")
    house.start(lambda: submit(20), "two")
    own = [house.submit(1), house.submit(2)]
    concurrent.futures.wait([future for future in own if future])
    house.join()
    for future in concurrent.futures.as_completed(ready):
        assert future.done()


def one_parks_while_another_drives(house: House) -> None:
    """Several threads wait for results at a time, so that all but one are parked."""
    futures = [house.submit(n) for n in range(3)]
    house.start(lambda: house.result(futures[1], 1), "one")
    house.start(lambda: [house.result(futures[n], n) for n in (1, 2)], "two")
    house.result(futures[0], 0)


def one_drives_while_another_waits_for_an_event(house: House) -> None:
    """One thread takes turns for a result; the main one waits for more as concurrent.futures does, and takes none."""
    futures = [house.submit(n) for n in range(4)]
    house.start(lambda: house.result(futures[0], 0), "driver")
    if house.chance.random() < 0.5:
        house.start(lambda: house.result(house.submit(5), 5), "other")
    concurrent.futures.wait(futures[1:])


def drops_an_iterator(house: House) -> None:
    """A map is dropped after its first result, while another thread waits for a result of its own."""
    results = house.map(range(6))
    house.start(lambda: house.result(house.submit(7), 7), "other")
    if results is not None:
        assert house.next(results) in (0, None)
    del results
    house.result(house.submit(8), 8)


def maps(house: House) -> None:
    """Two threads map, to the end; a third one submits."""

    def read(first: int) -> None:
        results = house.map(range(first, first + 4))
        if results is not None:
            assert list(results) == [result_of(n) for n in range(first, first + 4)]

    house.start(lambda: read(10), "other")
    house.start(lambda: [house.submit(n) for n in (5, 6)], "submitter")
    read(0)


def cancels_what_runs(house: House) -> None:
    """One thread waits for a call that does not end by itself; another one ends it."""
    long = house.submit(LONG)
    queued = [house.submit(n) for n in range(3)]

    def cancel() -> None:
        house.cancel(queued[2])
        house.cancel(long, running=True)

    house.start(cancel, "canceller")
    house.result(queued[0], 0)
    house.result(long, LONG)


def shuts_down_beside_a_submitter(house: House) -> None:
    """The main thread shuts down while another one submits and asks."""

    def submit() -> None:
        for n in range(3):
            house.result(house.submit(n), n)

    house.start(submit, "submitter")
    house.submit(5)
    house.shutdown(wait=house.chance.random() < 0.7)


def is_interrupted(house: House) -> None:
    """The main thread gets Ctrl-C at any point of what it does; another one waits for a result of its own."""
    house.start(lambda: house.result(house.submit(9), 9), "other")
    first = house.submit(1)
    if first is not None:
        first.add_done_callback(lambda future: house.chance.random())
    house.result(first, 1)
    results = house.map(range(3))
    if results is not None:
        house.next(results)
    del results
    futures = [house.submit(n) for n in range(2)]
    house.insist(lambda: concurrent.futures.wait([future for future in futures if future]))


def is_left_by_ctrl_c(house: House) -> None:
    """Ctrl-C leaves the `with` block, which ends the workers; another thread waits for a result."""
    house.start(lambda: house.result(house.submit(9), 9), "other")
    futures = [house.submit(n) for n in (1, LONG, 3)]
    for future in futures:
        if not house.interrupts:
            house.attempt(future.result)
    house.stop()


def callbacks_submit_and_ask(house: House) -> None:
    """Callbacks submit calls, and ask for the results of others."""
    first, second, asked = (house.submit(n) for n in (1, 2, 3))

    def submit(future: Any) -> None:
        house.submit(4)
        sys.exit("a callback may want to leave")

    def ask(future: Any) -> None:
        house.result(asked, 3)
        house.result(house.submit(5), 5)

    first.add_done_callback(submit)
    second.add_done_callback(ask)
    house.result(asked, 3)


def the_store_refuses(house: House) -> None:
    """The store refuses one of the things that it is asked for, whichever."""
    house.store.leave_behind(5)
    house.start(lambda: house.result(house.submit(9), 9), "other")
    house.result(house.future(5), 5)
    futures = [(house.submit(n), n) for n in (0, CRASH, 2)]
    results = house.map(range(4))
    house.cancel(futures[2][0])
    if results is not None:
        house.next(results)
    del results
    for future, what in futures:
        house.result(future, what)


def submits_are_refused(house: House) -> None:
    """One thread waits, asleep, for a result; what the main one submits beside it may be refused."""
    first = house.submit(1)
    house.start(lambda: house.result(first, 1), "other")
    for n in range(2, 5):
        house.submit(n)


def workers_break(house: House) -> None:
    """A call kills its worker, and at some time no worker can be started any more."""
    house.start(lambda: house.result(house.submit(CRASH), CRASH), "other")
    futures = [(house.submit(n), n) for n in range(4)]
    for future, what in futures:
        house.result(future, what)


def others_tell(house: House) -> None:
    """Another process finishes what is waited for here, and cancels what was submitted here."""
    store = house.store
    store.add_elsewhere(77)
    future = house.submit(LONG)
    number = None if future is None else future._number

    def act() -> None:
        if number is not None:
            store.cancel_elsewhere(number)
        store.finish_elsewhere(77, 8)

    foreign = house.future(77)
    house.start(act, "another process")
    house.start(lambda: house.result(future, LONG), "other")
    assert house.insist(foreign.result) == 8


def others_die(house: House) -> None:
    """Another process comes, and dies in a call that is waited for here, while the store refuses now and then."""

    def live() -> None:
        house.store.add_elsewhere(77)
        house.store.die_elsewhere()

    first = house.submit(1)
    house.start(live, "another process")
    house.submit(2)
    future = house.future(77)
    house.result(first, 1)
    house.result(future, 77)


SCENARIOS = {
    scenario.play.__name__: scenario
    for scenario in (
        Scenario(submits_and_asks, 4500),
        Scenario(two_submit_and_one_waits, 5000),
        Scenario(one_parks_while_another_drives, 3800),
        Scenario(one_drives_while_another_waits_for_an_event, 4400),
        Scenario(drops_an_iterator, 4900, refusals=60),
        Scenario(maps, 6900),
        Scenario(cancels_what_runs, 4700),
        Scenario(shuts_down_beside_a_submitter, 3100),
        Scenario(is_interrupted, 6100, signals=3),
        Scenario(is_left_by_ctrl_c, 3100, signals=2),
        Scenario(callbacks_submit_and_ask, 4300),
        Scenario(the_store_refuses, 7400, refusals=40),
        Scenario(submits_are_refused, 4000, refusals=12),
        Scenario(workers_break, 4300, breaks=12),
        Scenario(others_tell, 3500),
        Scenario(others_die, 3900, refusals=12),
    )
}


# the search


def play(copy: Copy, name: str, seed: int, traces: bool = False) -> Scheduler:
    """Play a scenario under the schedule of a seed, and return what is known of it. Raises Failure."""
    scenario = SCENARIOS[name]
    patience_s = REFUSAL_S if scenario.refusals else 0.5
    scheduler = Scheduler(f"{name} {seed}", scenario.length, patience_s, traces)
    House(copy, scheduler, scenario).run()
    return scheduler


def search(copy: Copy, name: str, seeds: Iterable[int]) -> int:
    """Play a scenario with each of the seeds; return how many points there were. Raises Failure with the schedule."""
    points = 0
    # Nothing is collected while a schedule runs: when it is would not be the same in another process.
    gc.collect()
    gc.disable()
    try:
        for place, seed in enumerate(seeds, 1):
            try:
                points += play(copy, name, seed).points
            except Failure as error:
                raise _replayed(copy, name, seed, error) from None
            if place % 100 == 0:
                gc.collect()
    finally:
        gc.enable()
    return points


def _replayed(copy: Copy, name: str, seed: int, error: Failure) -> Failure:
    """The failure of a seed once more, with its schedule."""
    try:
        play(copy, name, seed, traces=True)
    except Failure as again:
        if str(again).splitlines()[0] == str(error).splitlines()[0]:
            return Failure(f"{name}, seed {seed}: {again}")
    return Failure(f"{name}, seed {seed}, which does not replay: {error}")
