"""Races of the dispatcher's threads, each made to happen."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import calls
import pytest

from omniq_executor import PersistentExecutor

WAIT_S = 30.0


@pytest.fixture
def executor(tmp_path: Path) -> Iterator[PersistentExecutor]:
    with PersistentExecutor(1, store=tmp_path / "store.db") as made:
        yield made


def drive_past_a_turn_of_another_thread(executor: PersistentExecutor, is_done: Any) -> None:
    """Drive until `is_done()`, with a whole turn by another thread between the driver's first look and its wait."""
    dispatcher = executor._dispatcher
    looked = threading.Event()

    def look() -> bool:
        if not looked.is_set():
            looked.set()
            other = threading.Thread(target=dispatcher._take_turn, args=(WAIT_S,))
            other.start()
            other.join()
            assert is_done()
            return False  # what the driver saw is out of date by now
        return bool(is_done())

    ended = threading.Event()

    def drive() -> None:
        dispatcher.drive(look, None)
        ended.set()

    threading.Thread(target=drive, daemon=True).start()
    assert ended.wait(WAIT_S / 3)


def test_a_driver_sees_an_item_of_a_map_that_came_between_its_look_and_its_wait(executor: PersistentExecutor) -> None:
    executor.submit(calls.square, 1).result(WAIT_S)
    results: Any = executor.map(calls.square, [3])
    drive_past_a_turn_of_another_thread(executor, results._arrivals.has_next)
    assert list(results) == [9]


def test_a_driver_sees_a_future_that_was_done_between_its_look_and_its_wait(executor: PersistentExecutor) -> None:
    executor.submit(calls.square, 1).result(WAIT_S)
    future = executor.submit(calls.square, 3)
    drive_past_a_turn_of_another_thread(executor, future.done)
    assert future.result(WAIT_S) == 9


def test_a_thread_that_waits_while_another_drives_gets_the_result_itself(executor: PersistentExecutor) -> None:
    """A future is resolved with the stored form of its result, which the waiting thread must read."""
    dispatcher = executor._dispatcher
    future = executor.submit(calls.square, 3)
    driving = threading.Event()

    def drive() -> None:
        dispatcher.drive(lambda: driving.set() or future.done(), None)  # type: ignore[func-returns-value]

    driver = threading.Thread(target=drive)
    with dispatcher.lock:  # so that it is not done before the other thread waits
        driver.start()
        assert driving.wait(WAIT_S)
        results: list[Any] = []
        waiter = threading.Thread(target=lambda: results.append(future.result(WAIT_S)))
        waiter.start()
        while not future._condition._waiters:  # type: ignore[attr-defined]
            assert waiter.is_alive()
    waiter.join(WAIT_S)
    driver.join(WAIT_S)
    assert results == [9]
