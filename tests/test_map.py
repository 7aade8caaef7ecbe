"""`map()`: results in the order of the items, as a lazy iterator, and nothing left behind when it ends early."""

import contextlib
import gc
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import CancelledError
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import calls
import pytest

from omniq_executor import PersistentExecutor, PoolBroken, SerializationError, Status, map_iterator

pytestmark = pytest.mark.each_store

WAIT_S = 30.0


def statuses(executor: PersistentExecutor) -> dict[str, int]:
    """How many tasks of each state the executor's queue has."""
    return {status.name: number for status, number in executor.store.counts().get(executor.queue, {}).items()}


# --- Order and values --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunksize", [1, 7, 1000])
def test_results_come_in_the_order_of_the_items(context: BaseContext, make_executor: Any, chunksize: int) -> None:
    executor = make_executor(2, context)
    results = executor.map(calls.square, range(200), timeout=WAIT_S, chunksize=chunksize)
    assert list(results) == [n * n for n in range(200)]


def test_order_is_kept_where_calls_take_different_times(executor: PersistentExecutor) -> None:
    durations = [0.03, 0.0, 0.01, 0.0, 0.0, 0.02] * 5
    results = executor.map(lambda n, s: (time.sleep(s), n)[1], range(30), durations, timeout=WAIT_S)
    assert list(results) == list(range(30))


def test_twenty_thousand_items(executor: PersistentExecutor) -> None:
    results = executor.map(calls.square, range(20_000), timeout=60)
    for n, result in enumerate(results):
        assert result == n * n
    assert statuses(executor) == {"COMPLETED": 20_000}


def test_the_result_is_an_iterator(executor: PersistentExecutor) -> None:
    results = executor.map(calls.square, [1, 2], timeout=WAIT_S)
    assert iter(results) is results
    assert [next(results), next(results)] == [1, 4]
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(results)


@pytest.mark.parametrize("iterables", [((),), ([], range(5)), (range(5), [])])
def test_nothing_to_map_gives_nothing(executor: PersistentExecutor, iterables: Any) -> None:
    assert list(executor.map(calls.add, *iterables, timeout=WAIT_S)) == []
    assert statuses(executor) == {}


def test_the_shortest_of_several_iterables_ends_it(executor: PersistentExecutor) -> None:
    assert list(executor.map(calls.add, range(10), itertools.count(100), [1, 2, 3], timeout=WAIT_S)) == [101, 104, 107]


VALUES: list[Any] = [
    None, 1, True, 1.0, 0.1 + 0.2, -0.0, 5e-324, float("inf"), "", "text", "\udc80", "\x00", "日本", b"", b"\x00\xff",
    (), (1, (2,)), [], [1, [2.5]], {}, {"a": [None]}, {1: 2}, {1, 2}, 2**63, -(2**63), 2**1000, 1 + 2j, range(3),
    Counter("aab"),
]  # fmt: skip


def test_values_of_all_kinds_side_by_side_come_back_as_they_were(executor: PersistentExecutor) -> None:
    results = list(executor.map(calls.echo, VALUES * 5, timeout=WAIT_S))
    assert [(type(result), result) for result in results] == [(type(value), value) for value in VALUES * 5]
    zeros = [repr(result) for result, value in zip(results, VALUES * 5, strict=True) if repr(value) == "-0.0"]
    assert zeros == ["-0.0"] * 5


def test_nan_among_numbers_comes_back_in_its_place(executor: PersistentExecutor) -> None:
    items = [1.5, float("nan"), 2.5] * 10
    results = list(executor.map(calls.echo, items, timeout=WAIT_S))
    assert [repr(result) for result in results] == ["1.5", "nan", "2.5"] * 10


def test_a_value_that_the_function_changes_later_is_what_it_was(executor: PersistentExecutor) -> None:
    def grow(n: int, kept: list[int] = []) -> list[int]:  # noqa: B006 - that is the point
        kept.append(n)
        return kept

    results = list(executor.map(grow, range(20), timeout=WAIT_S))
    assert [result[-1] for result in results] == list(range(20))


def test_large_arguments_and_results_go_both_ways_at_once(executor: PersistentExecutor) -> None:
    items = [bytes([n]) * 3_000_000 for n in range(12)]
    assert all(a == b for a, b in zip(executor.map(calls.echo, items, timeout=60), items, strict=True))


def test_maps_can_be_read_in_turn_and_in_threads(executor: PersistentExecutor) -> None:
    first, second = (executor.map(calls.square, range(n, n + 300), timeout=WAIT_S) for n in (0, 1000))
    for n, (one, other) in enumerate(zip(first, second, strict=True)):
        assert (one, other) == (n**2, (n + 1000) ** 2)
    found: dict[int, list[int]] = {}
    threads = [
        threading.Thread(target=lambda n=n: found.update({n: list(executor.map(calls.add, range(500), [n] * 500))}))
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert found == {n: [i + n for i in range(500)] for n in range(4)}


def test_every_item_is_a_task_of_its_own(executor: PersistentExecutor) -> None:
    assert list(executor.map(calls.add, range(3), [10, 10, 10], timeout=WAIT_S)) == [10, 11, 12]
    tasks = executor.store.find()
    assert [(task.func_path, task.args, task.result, task.status) for task in tasks] == [
        ("calls.add", f"[{n},10]", str(n + 10), Status.COMPLETED) for n in range(3)
    ]


# --- Arguments of map() itself -----------------------------------------------------------------------------------


@pytest.mark.parametrize("chunksize", [0, -1])
def test_a_chunksize_below_one_is_refused(executor: PersistentExecutor, chunksize: int) -> None:
    with pytest.raises(ValueError, match="chunksize"):
        executor.map(calls.square, range(3), chunksize=chunksize)


@pytest.mark.parametrize(
    ("buffersize", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("2", TypeError)]
)
def test_a_buffersize_that_makes_no_sense_is_refused(executor: PersistentExecutor, buffersize: Any, error: Any) -> None:
    with pytest.raises(error, match="buffersize"):
        executor.map(calls.square, range(3), buffersize=buffersize)


def test_the_end_of_the_timeout_raises_and_cancels_the_rest(make_executor: Any, journal: Any, tmp_path: Path) -> None:
    executor = make_executor(1)
    results = executor.map(calls.noted_wait, [journal.path] * 5, range(5), [tmp_path / "gate"] * 5, timeout=0.2)
    with pytest.raises(TimeoutError):
        next(results)
    assert list(results) == []
    (tmp_path / "gate").touch()
    executor.shutdown()
    assert journal.lines() in ([], ["0"])


def test_a_timeout_that_is_not_reached_changes_nothing(executor: PersistentExecutor) -> None:
    assert list(executor.map(calls.square, range(5), timeout=1000)) == [0, 1, 4, 9, 16]


# --- buffersize --------------------------------------------------------------------------------------------------


class Counted:
    """An iterator that knows how much of it was taken."""

    def __init__(self, items: Iterator[Any]) -> None:
        self.items = items
        self.taken = 0

    def __iter__(self) -> "Counted":
        return self

    def __next__(self) -> Any:
        item = next(self.items)
        self.taken += 1
        return item


@pytest.mark.parametrize("buffersize", [1, 3, 100])
def test_with_buffersize_items_are_taken_only_so_far_ahead(executor: PersistentExecutor, buffersize: int) -> None:
    items = Counted(itertools.count())  # it has no end
    results = executor.map(calls.square, items, timeout=WAIT_S, buffersize=buffersize)
    assert items.taken <= buffersize
    for n in range(50):
        assert next(results) == n * n
        assert items.taken <= n + 1 + buffersize
    results = None
    gc.collect()
    executor.shutdown()
    assert items.taken <= 50 + buffersize


def test_with_buffersize_all_items_come(executor: PersistentExecutor) -> None:
    assert list(executor.map(calls.square, range(500), timeout=WAIT_S, buffersize=7)) == [n * n for n in range(500)]
    assert list(executor.map(calls.square, range(3), timeout=WAIT_S, buffersize=100)) == [0, 1, 4]
    assert list(executor.map(calls.square, [], timeout=WAIT_S, buffersize=1)) == []


@pytest.mark.parametrize("form", ["map", "map_unordered"])
@pytest.mark.parametrize(
    ("together", "buffersize"), [(1, None), (3, None), (10, None), (1, 1), (1, 2), (3, 9), (10, 10), (10, 1000)]
)
def test_an_iterable_may_wait_for_what_the_calls_of_its_items_do(
    executor: PersistentExecutor, form: str, buffersize: int | None, together: int, journal: Any
) -> None:
    """They were held until the next item came, which waited for them."""

    def items() -> Iterator[int]:
        for n in range(30):
            yield n
            if n % together == together - 1:
                journal.wait_for(n + 1)

    results = getattr(executor, form)(calls.noted, [journal.path] * 30, items(), buffersize=buffersize)
    assert sorted(results) == [*range(30)]


@pytest.mark.parametrize("form", ["map", "map_unordered"])
def test_the_timeout_holds_while_items_take_long(executor: PersistentExecutor, form: str, gate: Path) -> None:
    def items() -> Iterator[Path]:
        while True:
            yield gate
            time.sleep(0.05)

    began = time.monotonic()
    results = getattr(executor, form)(calls.wait_for, items(), buffersize=10_000, timeout=0.3)
    with pytest.raises(TimeoutError):
        next(results)
    assert time.monotonic() - began < WAIT_S / 2
    gate.touch()


def test_without_buffersize_all_items_are_stored_when_map_returns(make_executor: Any, journal: Any) -> None:
    executor = make_executor(1)
    items = Counted(iter(range(2000)))
    results = executor.map(calls.square, items, timeout=WAIT_S)
    assert items.taken == 2000
    assert sum(statuses(executor).values()) == 2000
    assert list(results)[-1] == 1999**2


# --- Errors and early ends ---------------------------------------------------------------------------------------


def test_an_exception_comes_in_its_place_and_ends_the_iterator(executor: PersistentExecutor) -> None:
    results = executor.map(calls.fail_at, [5] * 20, range(20), timeout=WAIT_S)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="item 5") as caught:
        next(results)
    assert "fail_at" in str(caught.value.__cause__)
    assert list(results) == []


def test_after_an_exception_the_rest_is_cancelled(make_executor: Any, journal: Any, tmp_path: Path) -> None:
    executor = make_executor(1)

    def run(path: Path, gate: Path, n: int) -> int:
        calls.note(path, n)
        if n == 0:
            raise ValueError("the first")
        calls.wait_for(gate)
        return n

    results = executor.map(run, [journal.path] * 50, [tmp_path / "gate"] * 50, range(50), timeout=WAIT_S)
    with pytest.raises(ValueError, match="the first"):
        next(results)
    (tmp_path / "gate").touch()
    executor.submit(calls.square, 1).result(WAIT_S)
    found = statuses(executor)
    assert found["FAILED"] == 1
    assert found["CANCELLED"] >= 40
    executor.shutdown()
    assert len(journal.lines()) == 50 - found["CANCELLED"]


def test_dropping_the_iterator_cancels_what_has_not_started(
    make_executor: Any, journal: Any, tmp_path: Path, wait_until: Any
) -> None:
    executor = make_executor(1)
    held = executor.submit(calls.noted_wait, journal.path, "held", tmp_path / "gate")
    journal.wait_for(1)
    results = executor.map(calls.noted, [journal.path] * 30, range(30))
    del results
    gc.collect()
    wait_until(lambda: statuses(executor) == {"RUNNING": 1, "CANCELLED": 30})
    (tmp_path / "gate").touch()
    assert held.result(WAIT_S) == "held"
    executor.shutdown()
    assert journal.lines() == ["held"]


@pytest.mark.parametrize("kind", ["map", "map_unordered"])
def test_closing_the_iterator_cancels_what_has_not_started_and_ends_it(
    make_executor: Any, journal: Any, tmp_path: Path, wait_until: Any, kind: str
) -> None:
    executor = make_executor(1)
    with contextlib.closing(executor.map(calls.square, range(30))) as first:
        assert next(first) == 0
    assert list(first) == []
    held = executor.submit(calls.noted_wait, journal.path, "held", tmp_path / "gate")
    journal.wait_for(1)
    results = getattr(executor, kind)(calls.noted, [journal.path] * 30, range(30))
    results.close()
    results.close()
    assert list(results) == []
    wait_until(lambda: statuses(executor).get("CANCELLED", 0) >= 30)
    (tmp_path / "gate").touch()
    assert held.result(WAIT_S) == "held"
    executor.shutdown()
    assert journal.lines() == ["held"]


def test_shutdown_with_cancel_futures_ends_maps_with_cancelled_error(
    make_executor: Any, journal: Any, tmp_path: Path
) -> None:
    executor = make_executor(1)
    results = executor.map(calls.noted_wait, [journal.path] * 10, range(10), [tmp_path / "gate"] * 10)
    journal.wait_for(1)
    executor.shutdown(wait=False, cancel_futures=True)
    (tmp_path / "gate").touch()
    assert next(results) == 0
    with pytest.raises(CancelledError):
        for _ in results:
            pass


def test_results_can_be_read_after_shutdown(store: Path) -> None:
    with PersistentExecutor(2, store=store) as executor:
        results = executor.map(calls.square, range(100))
    assert list(results) == [n * n for n in range(100)]


@pytest.mark.parametrize("name", ["store.db", "store"])
def test_results_that_are_read_from_the_store_again_can_be_so_after_shutdown(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 10: beyond 16 MB they were looked for in a store that was closed."""
    monkeypatch.setattr(map_iterator, "_KEPT_BYTES", 100)
    with PersistentExecutor(2, store=tmp_path / name) as executor:
        results = executor.map(calls.echo, ["x" * 50, b"y" * 50] * 10)
    assert list(results) == ["x" * 50, b"y" * 50] * 10


def test_an_iterable_that_raises_does_so_to_the_caller_and_leaves_nothing_to_run(
    make_executor: Any, journal: Any, tmp_path: Path
) -> None:
    executor = make_executor(1)
    held = executor.submit(calls.noted_wait, journal.path, "held", tmp_path / "gate")
    journal.wait_for(1)

    def items() -> Iterator[int]:
        yield from range(1000)
        raise OSError("the items end here")

    with pytest.raises(OSError, match="the items end here"):
        executor.map(calls.noted, [journal.path] * 2000, items())
    gc.collect()
    (tmp_path / "gate").touch()
    assert held.result(WAIT_S) == "held"
    executor.shutdown()
    assert journal.lines() == ["held"]


def test_an_item_that_cannot_be_stored_fails_in_its_place(executor: PersistentExecutor) -> None:
    results = executor.map(calls.echo, [1, (n for n in ()), 3], timeout=WAIT_S)
    assert next(results) == 1
    with pytest.raises(SerializationError, match="generator"):
        next(results)
    assert list(results) == []
    assert "PENDING" not in statuses(executor)


def test_a_function_that_cannot_be_stored_fails_with_the_first_result(executor: PersistentExecutor) -> None:
    lock = threading.Lock()
    with pytest.raises(SerializationError, match="lock"):
        list(executor.map(lambda n: (lock, n), range(3), timeout=WAIT_S))
    assert statuses(executor) == {}
    assert executor.submit(calls.square, 2).result(WAIT_S) == 4


def test_a_result_that_cannot_be_loaded_raises_in_its_place(executor: PersistentExecutor) -> None:
    def make(n: int) -> Any:
        return calls.make_unloadable() if n == 3 else n

    results = executor.map(make, range(6), timeout=WAIT_S)
    assert [next(results), next(results), next(results)] == [0, 1, 2]
    with pytest.raises(ValueError, match="cannot be loaded"):
        next(results)
    assert executor.submit(calls.square, 2).result(WAIT_S) == 4


# --- Spreading the work ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("long", [0, 1, 150, 299])
def test_short_calls_do_not_wait_behind_a_long_one(
    executor: PersistentExecutor, journal: Any, tmp_path: Path, long: int
) -> None:
    gate = tmp_path / "gate"
    count = 300
    results = executor.map(calls.gated, [journal.path] * count, [gate] * count, [long] * count, range(count))
    assert len(journal.wait_for(count - 1, timeout_s=10)) == count - 1  # all others, while the long one runs
    gate.touch()
    assert list(results) == list(range(count))


@pytest.mark.parametrize("count", [2, 10, 500])
def test_results_of_short_calls_do_not_wait_for_a_long_one_after_them(
    make_executor: Any, tmp_path: Path, count: int
) -> None:
    executor = make_executor(1)
    list(executor.map(calls.square, range(2000), timeout=WAIT_S))  # now many calls travel together
    gate = tmp_path / "gate"
    results = executor.map(
        calls.gated, [tmp_path / "journal"] * count, [gate] * count, [count - 1] * count, range(count), timeout=10
    )
    assert [next(results) for _ in range(count - 1)] == list(range(count - 1))
    gate.touch()
    assert list(results) == [count - 1]


def test_long_calls_are_spread_over_the_workers(executor: PersistentExecutor, journal: Any, tmp_path: Path) -> None:
    list(executor.map(calls.square, range(2000), timeout=WAIT_S))  # now short calls are expected
    gate = tmp_path / "gate"
    results = executor.map(calls.noted_wait, [journal.path] * 4, range(4), [gate] * 4)
    assert len(journal.wait_for(2, timeout_s=10)) == 2
    gate.touch()
    assert list(results) == [0, 1, 2, 3]


# --- return_exceptions -------------------------------------------------------------------------------------------

FORMS = ["map", "map_unordered"]


def test_exceptions_come_in_place_of_results_and_the_map_goes_on(executor: PersistentExecutor) -> None:
    def odd(n: int) -> int:
        if n % 3 == 0:
            raise ValueError(f"item {n}")
        return n

    found = list(executor.map(odd, range(300), timeout=WAIT_S, return_exceptions=True))
    assert len(found) == 300
    for n, value in enumerate(found):
        if n % 3:
            assert value == n
        else:
            assert isinstance(value, ValueError)
            assert str(value) == f"item {n}"
            assert "in odd" in str(value.__cause__)
    assert statuses(executor) == {"COMPLETED": 200, "FAILED": 100}


@pytest.mark.parametrize("form", FORMS)
def test_whatever_becomes_of_a_call_is_returned(executor: PersistentExecutor, form: str) -> None:
    def act(what: Any) -> Any:
        match what:
            case "exit":
                raise SystemExit(3)
            case "interrupt":
                raise KeyboardInterrupt("of the call")
            case "own":
                raise calls.TwoArguments("one", "two")
            case "unloadable":
                return calls.make_unloadable()
            case "exits on load":
                return calls.make_exit_on_load()
            case "die":
                calls.kill_self()
            case "stop":
                raise StopIteration("of the call")
        return what

    items = [1, "exit", "interrupt", "own", "unloadable", "exits on load", "die", "stop", (n for n in ()), 2]
    results = getattr(executor, form)(act, items, timeout=WAIT_S, return_exceptions=True)
    found = [type(value).__name__ for value in results]
    expected = [
        "int", "SystemExit", "KeyboardInterrupt", "RemoteError", "ValueError", "SystemExit", "WorkerCrashed",
        "StopIteration", "SerializationError", "int",
    ]  # fmt: skip
    assert found == expected if form == "map" else sorted(found) == sorted(expected)
    assert executor.submit(calls.square, 3).result(WAIT_S) == 9


@pytest.mark.parametrize("form", FORMS)
def test_calls_that_were_cancelled_are_returned_as_cancelled_errors(
    make_executor: Any, journal: Any, tmp_path: Path, form: str
) -> None:
    executor = make_executor(1)
    gates = [tmp_path / "gate"] * 10
    results = getattr(executor, form)(calls.noted_wait, [journal.path] * 10, range(10), gates, return_exceptions=True)
    journal.wait_for(1)
    executor.shutdown(wait=False, cancel_futures=True)
    gates[0].touch()
    found = list(results)
    assert len(found) == 10
    assert sorted(value for value in found if not isinstance(value, CancelledError)) == [0]


@pytest.mark.parametrize("form", FORMS)
def test_what_says_nothing_of_a_call_is_raised_all_the_same(
    make_executor: Any, journal: Any, tmp_path: Path, form: str
) -> None:
    executor = make_executor(1, initializer=calls.fail_to_start, initargs=(journal.path,))
    with pytest.raises(PoolBroken):
        next(getattr(executor, form)(calls.square, range(3), timeout=WAIT_S, return_exceptions=True))
    executor = make_executor(1)
    results = getattr(executor, form)(calls.wait_for, [tmp_path / "gate"] * 3, timeout=0.1, return_exceptions=True)
    with pytest.raises(TimeoutError):
        next(results)
    assert list(results) == []
    (tmp_path / "gate").touch()

    def items() -> Iterator[int]:
        yield 1
        raise OSError("the items end here")

    results = getattr(executor, form)(calls.square, items(), timeout=WAIT_S, buffersize=1, return_exceptions=True)
    assert next(results) == 1
    with pytest.raises(OSError, match="the items end here"):
        next(results)
    assert list(results) == []


def test_errors_that_come_early_are_kept_within_bounds(
    executor: PersistentExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(map_iterator, "_KEPT_BYTES", 2000)
    results = executor.map(calls.raise_value_error, map(str, range(50)), timeout=WAIT_S, return_exceptions=True)
    executor.shutdown()
    arrived = results._arrivals._arrived.values()  # type: ignore[attr-defined]
    assert len(arrived) == 50
    assert 0 < sum(outcome is not map_iterator._IN_STORE for _, _, outcome in arrived) < 15
    assert [str(error) for error in results] == [str(n) for n in range(50)]


# --- map_unordered -----------------------------------------------------------------------------------------------


def test_unordered_results_come_as_soon_as_they_are_there(executor: PersistentExecutor, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    results = executor.map_unordered(
        calls.gated, [tmp_path / "journal"] * 300, [gate] * 300, [0] * 300, range(300), timeout=WAIT_S
    )
    assert sorted(next(results) for _ in range(299)) == list(range(1, 300))
    gate.touch()
    assert list(results) == [0]
    assert list(results) == []


def test_unordered_results_of_all_kinds_are_all_there(context: BaseContext, make_executor: Any) -> None:
    executor = make_executor(2, context)
    assert Counter(executor.map_unordered(calls.square, range(5000), timeout=WAIT_S)) == Counter(
        n * n for n in range(5000)
    )
    found = list(executor.map_unordered(calls.echo, VALUES * 3, timeout=WAIT_S))
    assert Counter(map(repr, found)) == Counter(map(repr, VALUES * 3))
    assert list(executor.map_unordered(calls.square, [], timeout=WAIT_S)) == []
    assert sorted(executor.map_unordered(calls.add, range(3), itertools.count(10), timeout=WAIT_S)) == [10, 12, 14]


@pytest.mark.parametrize("buffersize", [1, 3, 100])
def test_unordered_items_are_taken_only_so_far_ahead(executor: PersistentExecutor, buffersize: int) -> None:
    items = Counted(itertools.count())
    results = executor.map_unordered(calls.square, items, timeout=WAIT_S, buffersize=buffersize)
    assert items.taken <= buffersize
    found = set()
    for n in range(50):
        found.add(next(results))
        assert items.taken <= n + 1 + buffersize
    assert len(found) == 50
    assert found <= {n * n for n in range(50 + buffersize)}


def test_an_item_that_is_slow_holds_up_no_other_beyond_the_buffer(executor: PersistentExecutor, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    count = 200
    results = executor.map_unordered(
        calls.gated, [tmp_path / "journal"] * count, [gate] * count, [0] * count, range(count), timeout=WAIT_S,
        buffersize=4,
    )  # fmt: skip
    assert sorted(next(results) for _ in range(count - 1)) == list(range(1, count))
    gate.touch()
    assert next(results) == 0


def test_an_exception_ends_an_unordered_map_and_cancels_the_rest(make_executor: Any, tmp_path: Path) -> None:
    executor = make_executor(1)
    gate = tmp_path / "gate"

    def run(gate: Path, n: int) -> int:
        if n == 0:
            raise ValueError("the first")
        calls.wait_for(gate)
        return n

    results = executor.map_unordered(run, [gate] * 50, range(50), timeout=WAIT_S)
    with pytest.raises(ValueError, match="the first"):
        next(results)
    assert list(results) == []
    gate.touch()
    executor.submit(calls.square, 1).result(WAIT_S)
    assert statuses(executor)["CANCELLED"] >= 40


def test_dropping_an_unordered_iterator_cancels_what_has_not_started(
    make_executor: Any, journal: Any, tmp_path: Path, wait_until: Any
) -> None:
    executor = make_executor(1)
    held = executor.submit(calls.noted_wait, journal.path, "held", tmp_path / "gate")
    journal.wait_for(1)
    results = executor.map_unordered(calls.noted, [journal.path] * 30, range(30), return_exceptions=True)
    del results
    gc.collect()
    wait_until(lambda: statuses(executor) == {"RUNNING": 1, "CANCELLED": 30})
    (tmp_path / "gate").touch()
    assert held.result(WAIT_S) == "held"


@pytest.mark.parametrize("name", ["store.db", "store"])
def test_unordered_results_beyond_what_is_kept_are_read_from_the_store(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(map_iterator, "_KEPT_BYTES", 100)
    with PersistentExecutor(2, store=tmp_path / name) as executor:
        results = executor.map_unordered(calls.echo, ["x" * 50, b"y" * 50] * 10)
    assert Counter(results) == {"x" * 50: 10, b"y" * 50: 10}


@pytest.mark.parametrize("buffersize", [0, "2"])
def test_what_map_refuses_map_unordered_does(executor: PersistentExecutor, buffersize: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="buffersize"):
        executor.map_unordered(calls.square, range(3), buffersize=buffersize)
    with pytest.raises(ValueError, match="key"):
        executor.options(key="k").map_unordered(calls.square, range(3))


# --- Resumed item by item ----------------------------------------------------------------------------------------

RESUMED = """
import os, sys, time
from omniq_executor import PersistentExecutor

def note(line):
    fd = os.open("journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{line}\\n".encode())
    os.close(fd)

def work(n):
    note(n)
    if n % 10 == 7 and not os.path.exists("mended"):
        raise ValueError(n)
    return [n]

if __name__ == "__main__":
    form, kind, buffersize, items = sys.argv[1:5]
    with PersistentExecutor(2, store=kind) as executor:
        results = getattr(executor, form)(
            work, eval(items), buffersize=eval(buffersize), return_exceptions=True
        )
        found = []
        for result in results:
            found.append(str(result) if isinstance(result, ValueError) else result)
            if len(found) == 40 and "die" in sys.argv:
                os.kill(os.getpid(), 9)
                time.sleep(60)
        print(found if form == "map" else sorted(found, key=str))
"""


@pytest.mark.parametrize("kind", ["store.db", "store"])
@pytest.mark.parametrize(("form", "buffersize"), [("map", "None"), ("map", "8"), ("map_unordered", "8")])
def test_a_map_of_other_items_in_another_order_runs_only_what_is_new_or_had_failed(
    script: Any, form: str, buffersize: str, kind: str, open_store: Any
) -> None:
    script.write(RESUMED)
    assert script.run(form, kind, buffersize, "range(100)", "die").returncode == -9
    before = Counter(map(int, script.journal.lines()))
    completed = {json.loads(task.args)[0] for task in open_store(script.folder / kind).find(Status.COMPLETED)}
    (script.folder / "mended").touch()
    wanted = [n for n in range(-5, 120) if n % 4][::-1]
    done = script.run(form, kind, buffersize, "[n for n in range(-5, 120) if n % 4][::-1]")
    expected = [[n] for n in wanted]
    assert eval(done.stdout) == (expected if form == "map" else sorted(expected, key=str)), done.stderr
    again = Counter(map(int, script.journal.lines())) - before
    assert len(completed) >= 30
    failed = {n for n in before if n % 10 == 7}  # 7 not always: a worker that begins late has it, and the other's come
    assert failed
    assert not failed & completed
    assert again == Counter(set(wanted) - completed)


MIXED = """
import os, random, sys
from omniq_executor import PersistentExecutor, map_iterator

map_iterator._KEPT_BYTES = 1000  # others that come before their turn are read again

def value(n):
    return [n, -n, (n,), "ü" * n, "x" * 5000, None, {"n": [n]}, 1e300 * n, 2**70 + n][n % 9 if n % 5 == 0 else n % 2]

def work(n):
    with open("journal", "a") as journal:
        journal.write(f"{n}\\n")
    return value(n)

if __name__ == "__main__":
    form, kind, seed = sys.argv[1:4]
    with PersistentExecutor(2, store=kind) as executor:
        if seed == "die":
            list(executor.map(work, range(400)))
            os.kill(os.getpid(), 9)
        chance = random.Random(seed)
        cuts = sorted(chance.sample(range(1, 400), 12))
        pieces = [range(*ends) for ends in zip([0, *cuts], [*cuts, 400])] + [[n] for n in range(400, 405)]
        items = [n for piece in chance.sample(pieces, len(pieces)) for n in piece]
        wanted, found = [value(n) for n in items], list(getattr(executor, form)(work, items))
        print(found == wanted if form == "map" else sorted(map(repr, found)) == sorted(map(repr, wanted)))
        print(executor.resumed.reused)
"""


@pytest.mark.parametrize("kind", ["store.db", "store"])
@pytest.mark.parametrize("form", ["map", "map_unordered"])
def test_results_of_all_kinds_are_taken_over_each_for_its_item(script: Any, form: str, kind: str) -> None:
    """Those that are plain and lie side by side are given at once."""
    script.write(MIXED)
    assert script.run(form, kind, "die").returncode == -9
    done = script.run(form, kind, "13")
    assert done.stdout == "True\n400\n", done.stderr
    assert sorted(map(int, script.journal.lines())) == [*range(405)]


@pytest.mark.parametrize("form", ["map", "map_unordered", "buffered"])
def test_a_call_that_raises_stop_iteration_does_not_end_the_map_as_if_there_were_no_more(
    executor: PersistentExecutor, form: str
) -> None:
    verb = executor.map_unordered if form == "map_unordered" else executor.map
    rows = verb(calls.raise_stop_iteration, range(3), **({"buffersize": 2} if form == "buffered" else {}))
    with pytest.raises(RuntimeError, match="a call raised StopIteration") as caught:
        next(rows)
    assert type(caught.value.__cause__) is StopIteration
    assert [type(it) for it in executor.map(calls.raise_stop_iteration, range(3), return_exceptions=True)] == (
        [StopIteration] * 3
    )
