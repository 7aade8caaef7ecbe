"""Races of the dispatcher's threads, each made to happen."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import calls
import pytest

from omniq_executor import PersistentExecutor
from omniq_executor.dispatch.driving import YIELD_S

WAIT_S = 30.0


@pytest.fixture
def executor(tmp_path: Path) -> Iterator[PersistentExecutor]:
    with PersistentExecutor(1, store=tmp_path / "store.db") as made:
        yield made


def drive_past_a_turn_of_another_thread(executor: PersistentExecutor, is_done: Any, gate: Path) -> None:
    """Drive until `is_done()`, which others' turns make true between the driver's first look and its wait."""
    dispatcher = executor._dispatcher
    looked = threading.Event()

    def take_turns() -> None:
        while not is_done():
            dispatcher.driver._take_turn(0.01)  # not for longer: the dispatcher's own thread may have been faster

    def look() -> bool:
        if not looked.is_set():
            looked.set()
            assert not is_done()
            gate.touch()
            other = threading.Thread(target=take_turns)
            other.start()
            other.join()
            return False  # what the driver saw is out of date by now
        return bool(is_done())

    ended = threading.Event()

    def drive() -> None:
        dispatcher.driver.wait_until(look)
        ended.set()

    threading.Thread(target=drive, daemon=True).start()
    assert ended.wait(WAIT_S / 3)


def test_a_driver_sees_an_item_of_a_map_that_came_between_its_look_and_its_wait(
    executor: PersistentExecutor, tmp_path: Path
) -> None:
    executor.submit(calls.square, 1).result(WAIT_S)
    results: Any = executor.map(calls.wait_for, [tmp_path / "gate"])
    drive_past_a_turn_of_another_thread(executor, results._arrivals.has_next, tmp_path / "gate")
    assert list(results) == ["gate"]


def test_a_driver_sees_a_future_that_was_done_between_its_look_and_its_wait(
    executor: PersistentExecutor, tmp_path: Path
) -> None:
    executor.submit(calls.square, 1).result(WAIT_S)
    future = executor.submit(calls.wait_for, tmp_path / "gate")
    drive_past_a_turn_of_another_thread(executor, future.done, tmp_path / "gate")
    assert future.result(WAIT_S) == "gate"


def test_a_thread_that_waits_while_another_drives_gets_the_result_itself(executor: PersistentExecutor) -> None:
    """A future is resolved with the stored form of its result, which the waiting thread must read."""
    dispatcher = executor._dispatcher
    future = executor.submit(calls.square, 3)
    driving = threading.Event()

    def drive() -> None:
        dispatcher.driver.wait_until(lambda: driving.set() or future.done())  # type: ignore[func-returns-value]

    driver = threading.Thread(target=drive)
    with dispatcher.driver._lock:  # so that it is not done before the other thread waits
        driver.start()
        assert driving.wait(WAIT_S)
        results: list[Any] = []
        waiter = threading.Thread(target=lambda: results.append(future.result(WAIT_S)))
        waiter.start()
        while not dispatcher.driver._parked:
            assert waiter.is_alive()
    waiter.join(WAIT_S)
    driver.join(WAIT_S)
    assert results == [9]


class OvertakenSelector:
    """As a selector, but what it finds ready is taken in by somebody else before the thread that asked does so."""

    def __init__(self, dispatcher: Any) -> None:
        self._dispatcher = dispatcher
        self._real = dispatcher.driver.selector

    def select(self, timeout: float | None) -> Any:
        ready = self._real.select(timeout)
        if timeout != 0:
            with self._dispatcher.driver:
                self._dispatcher.driver._take_in(self._real.select(0))
                self._dispatcher._loop.turn()
        return ready

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def test_what_another_thread_has_taken_in_meanwhile_is_not_waited_for_under_the_lock(
    context: BaseContext, tmp_path: Path
) -> None:
    """A submit in a burst takes in events without a turn; with fork its messages were read twice."""
    with PersistentExecutor(2, context, store=tmp_path / "store.db") as executor:
        dispatcher: Any = executor._dispatcher
        dispatcher.driver.selector = OvertakenSelector(dispatcher)
        assert [executor.submit(calls.square, n).result(WAIT_S) for n in range(20)] == [n * n for n in range(20)]
        dispatcher.driver.selector = dispatcher.driver.selector._real


@pytest.mark.parametrize("name", ["store.db", "store"])
def test_idle_executors_on_one_store_keep_each_other_busy_with_nothing(
    tmp_path: Path, make_executor: Callable[..., PersistentExecutor], name: str
) -> None:
    both = [make_executor(1, store=tmp_path / name, queue="shared") for _ in range(2)]
    taken = Counter[int]()
    for number, executor in enumerate(both):
        executor.submit(pow, 2, 3).result(WAIT_S)
        dispatcher = executor._dispatcher

        def take(
            *args: Any, number: int = number, take_turn: Any = dispatcher.driver._take_turn, **kwargs: Any
        ) -> None:
            taken[number] += 1
            take_turn(*args, **kwargs)

        dispatcher.driver._take_turn = take  # type: ignore[method-assign]
    for executor in both:
        executor.submit(pow, 2, 3).result(WAIT_S)
    time.sleep(0.3)  # in which they could ring each other some hundred times
    assert all(count < 20 for count in taken.values()), taken


def test_a_ring_that_a_submit_took_in_is_left_to_no_event(executor: PersistentExecutor) -> None:
    """It was taken in between the wake of the dispatcher's own thread and its look at what is due."""
    executor.submit(calls.square, 1).result(WAIT_S)
    dispatcher = executor._dispatcher
    with dispatcher.driver._lock:
        dispatcher._loop.peers.was_notified = True
        assert dispatcher._loop.next_alarm() == 0
    dispatcher.driver.wake()


def test_a_driver_does_not_spin_while_a_thread_that_was_woken_waits_for_a_cpu(
    executor: PersistentExecutor, tmp_path: Path
) -> None:
    """Which would keep the CPU from it, where there are too few."""
    dispatcher = executor._dispatcher
    taken = 0

    def take(*args: Any, take_turn: Any = dispatcher.driver._take_turn, **kwargs: Any) -> None:
        nonlocal taken
        taken += 1
        take_turn(*args, **kwargs)

    future = executor.submit(calls.wait_for, tmp_path / "gate")
    driver = threading.Thread(target=future.result, args=(WAIT_S,))
    driver.start()
    while dispatcher.driver._driver is None:
        time.sleep(0.001)
    dispatcher.driver._take_turn = take  # type: ignore[method-assign]
    dispatcher.driver._sleepers.add(-1)  # a thread that has not come so far as to take itself out
    began = time.monotonic()
    dispatcher.driver.wake()
    time.sleep(0.1)
    dispatcher.driver._sleepers.discard(-1)
    most = 10 + (time.monotonic() - began) / YIELD_S
    (tmp_path / "gate").touch()
    driver.join(WAIT_S)
    assert 2 < taken <= most
