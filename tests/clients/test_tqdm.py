"""tqdm: a bar over results, as they come."""

import asyncio
import concurrent.futures
import io
import multiprocessing
import os
from pathlib import Path
from typing import Any

import calls
import pytest

from omniq_executor import PersistentExecutor

tqdm = pytest.importorskip("tqdm", reason="tqdm is in the extra `clients`")
tqdm_asyncio = pytest.importorskip("tqdm.asyncio", reason="tqdm is in the extra `clients`")
tqdm_concurrent = pytest.importorskip("tqdm.contrib.concurrent", reason="tqdm is in the extra `clients`")

WAIT_S = 30.0
AT_ONCE = {"mininterval": 0, "miniters": 1}  # shows each step


def test_a_bar_over_a_map_reaches_its_total(executor: PersistentExecutor) -> None:
    shown = io.StringIO()
    bar = tqdm.tqdm(executor.map(calls.square, range(1000), timeout=WAIT_S), total=1000, file=shown)
    assert list(bar) == [n * n for n in range(1000)]
    assert bar.n == 1000
    assert "| 1000/1000 [" in shown.getvalue()


@pytest.mark.parametrize("options", [{}, {"buffersize": 3}], ids=["all at once", "buffered"])
def test_a_bar_over_a_map_moves_while_calls_run(
    make_executor: Any, journal: Any, tmp_path: Path, options: dict[str, int]
) -> None:
    gate, shown = tmp_path / "gate", io.StringIO()
    count, closed = 4, 2
    args = [[same] * count for same in (journal.path, gate, closed)]
    results = make_executor(1).map(calls.gated, *args, range(count), timeout=WAIT_S, **options)
    results = iter(tqdm.tqdm(results, total=count, file=shown, **AT_ONCE))
    assert [next(results), next(results)] == [0, 1]
    assert "| 1/4 [" in shown.getvalue()  # it counts a result when the next one is asked for
    gate.touch()
    assert list(results) == [2, 3]
    assert "| 4/4 [" in shown.getvalue()


def test_a_bar_over_as_completed_moves_while_calls_run(make_executor: Any, journal: Any, tmp_path: Path) -> None:
    gate, shown = tmp_path / "gate", io.StringIO()
    executor = make_executor(2)
    futures = [executor.submit(calls.gated, journal.path, gate, 0, n) for n in range(20)]
    bar = iter(tqdm.tqdm(concurrent.futures.as_completed(futures, WAIT_S), total=20, file=shown, **AT_ONCE))
    assert {next(bar).result() for _ in range(19)} == set(range(1, 20))
    assert "| 18/20 [" in shown.getvalue()
    gate.touch()
    assert [future.result() for future in bar] == [0]
    assert "| 20/20 [" in shown.getvalue()


def test_a_bar_is_moved_by_the_callbacks_of_futures(executor: PersistentExecutor) -> None:
    with tqdm.tqdm(total=200, file=io.StringIO()) as bar:
        futures = [executor.submit(calls.square, n) for n in range(200)]
        for future in futures:
            future.add_done_callback(lambda _: bar.update())
        executor.shutdown()
        assert bar.n == 200


def test_a_bar_stops_where_a_call_failed(executor: PersistentExecutor) -> None:
    bar = tqdm.tqdm(executor.map(calls.fail_at, [3] * 6, range(6), timeout=WAIT_S), total=6, file=io.StringIO())
    came = []
    with pytest.raises(ValueError, match=r"(?m)^item 3$"):
        came.extend(bar)
    assert bar.n == 3


def test_a_bar_over_awaited_calls_reaches_its_total(executor: PersistentExecutor) -> None:
    shown = io.StringIO()

    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        waiting = [loop.run_in_executor(executor, calls.square, n) for n in range(50)]
        return await tqdm_asyncio.tqdm.gather(*waiting, timeout=WAIT_S, file=shown)

    assert asyncio.run(main()) == [n * n for n in range(50)]
    assert "| 50/50 [" in shown.getvalue()


def bar_of_its_own(n: int) -> tuple[int, int]:
    """A bar in a worker, which takes the lock that tqdm has brought there."""
    for _ in tqdm.tqdm(range(3), file=io.StringIO(), **AT_ONCE):
        pass
    return n, os.getpid()


def test_process_map_works_with_its_lock(monkeypatch: Any, store: Path) -> None:
    made = []

    def make(**options: Any) -> PersistentExecutor:
        made.append(PersistentExecutor(store=store, **options))
        return made[0]

    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", make)
    shown = io.StringIO()
    results = tqdm_concurrent.process_map(bar_of_its_own, range(20), max_workers=2, file=shown, **AT_ONCE)
    assert [n for n, _ in results] == list(range(20))
    assert os.getpid() not in {pid for _, pid in results}
    assert "| 20/20 [" in shown.getvalue()
    assert made[0]._mp_context.get_start_method() == multiprocessing.get_start_method()


def test_a_bar_finds_the_total_of_a_map_by_itself(executor: PersistentExecutor) -> None:
    bar = tqdm.tqdm(executor.map(calls.square, range(1000), timeout=WAIT_S), file=io.StringIO())
    assert bar.total == 1000
    assert len(list(bar)) == 1000
