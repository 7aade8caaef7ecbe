"""dask: a graph computed on an executor, by `scheduler=executor`."""

import itertools
import signal
from pathlib import Path
from typing import Any

import calls
import pytest

from omniq_executor import PersistentExecutor, Status

np = pytest.importorskip("numpy", reason="dask[array] is in the extra `clients`")
dask = pytest.importorskip("dask", reason="dask is in the extra `clients`")
bag = pytest.importorskip("dask.bag", reason="dask is in the extra `clients`")
array = pytest.importorskip("dask.array", reason="dask[array] is in the extra `clients`")

WAIT_S = 30.0


def compute(executor: PersistentExecutor, *collections: Any) -> Any:
    return dask.compute(*collections, scheduler=executor)


def meet(folder: Path, name: str, other: str) -> str:
    """Return only when another call is running at the same time."""
    (folder / name).touch()
    return calls.wait_for(folder / other)


def pair(folder: Path) -> list[Any]:
    return [dask.delayed(meet)(folder, "a", "b"), dask.delayed(meet)(folder, "b", "a")]


def test_a_graph_of_delayed_calls_is_computed(executor: PersistentExecutor) -> None:
    square, add = dask.delayed(calls.square), dask.delayed(calls.add)
    squares = [square(n) for n in range(20)]
    pairs = [add(first, second, also=1) for first, second in itertools.pairwise(squares)]
    total = dask.delayed(sum)(pairs)
    assert compute(executor, total, squares) == dask.compute(total, squares, scheduler="synchronous")
    assert executor.store.counts()[executor.queue][Status.COMPLETED] >= 20


def test_a_bag_is_computed(executor: PersistentExecutor) -> None:
    numbers = bag.from_sequence(range(1000), npartitions=10)
    even = numbers.map(calls.square).filter(lambda n: n % 2 == 0)
    tally = numbers.map(lambda n: n % 7).frequencies()
    total, many, counted = compute(executor, even.sum(), even.count(), tally)
    assert (total, many) == (sum(n * n for n in range(0, 1000, 2)), 500)
    assert dict(counted) == {left: len(range(left, 1000, 7)) for left in range(7)}


def test_an_array_is_computed(executor: PersistentExecutor) -> None:
    numbers = np.arange(10_000).reshape(100, 100)
    blocks = array.from_array(numbers, chunks=(25, 25))
    product, total = compute(executor, blocks @ blocks.T, (blocks + blocks.T).sum(axis=0))
    assert np.array_equal(product, numbers @ numbers.T)
    assert np.array_equal(total, (numbers + numbers.T).sum(axis=0))


def test_an_executor_is_set_for_a_block_of_code(executor: PersistentExecutor) -> None:
    with dask.config.set(scheduler=executor):
        assert dask.delayed(calls.pid)().compute() != dask.delayed(calls.pid)().compute(scheduler="synchronous")


def test_the_exception_of_a_call_is_raised(executor: PersistentExecutor) -> None:
    fails = [dask.delayed(calls.fail_at)(3, n) for n in range(6)]
    with pytest.raises(ValueError, match=r"(?m)^item 3$"):
        compute(executor, fails)


def test_a_worker_that_dies_costs_no_result(executor: PersistentExecutor, tmp_path: Path) -> None:
    deaths = [dask.delayed(calls.die_if_missing)(tmp_path / str(n), "kill") for n in range(3)]
    assert compute(executor, *deaths) == ("lived",) * 3


def test_all_workers_are_used_whatever_dask_is_set_to(executor: PersistentExecutor, tmp_path: Path) -> None:
    with dask.config.set(num_workers=1):  # of pools that dask makes
        assert compute(executor, *pair(tmp_path)) == ("b", "a")


def test_an_executor_is_the_pool_of_the_processes_scheduler(executor: PersistentExecutor, tmp_path: Path) -> None:
    assert dask.compute(*pair(tmp_path), scheduler="processes", pool=executor, chunksize=1) == ("b", "a")


SCRIPT = """
import logging, os, signal, sys
logging.basicConfig()
import dask
from dask.callbacks import Callback
from omniq_executor import PersistentExecutor

def note(line):
    fd = os.open("journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{line}\\n".encode())
    os.close(fd)

@dask.delayed(pure=True)
def load(n):
    note(f"load {n}")
    return n

@dask.delayed(pure=True)
def merge(parts):
    note("merge")
    return sum(parts)

finished = []

def count(key, result, *_):
    if "die" in sys.argv and key.startswith("load"):
        finished.append(result)
        if len(finished) == 8:
            print(*finished, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

with PersistentExecutor(2) as executor, Callback(posttask=count):
    print(merge([load(n) for n in range(20)]).compute(scheduler=executor))
"""


@pytest.mark.slow
def test_a_killed_graph_repeats_no_finished_call(script: Any) -> None:
    script.write(SCRIPT)
    killed = script.run("die")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    finished = killed.stdout.split()
    assert len(finished) == 8
    done = script.run()
    assert (done.returncode, done.stdout) == (0, "190\n"), done.stderr
    assert "calls are done" in done.stderr
    lines = script.journal.lines()
    assert set(lines) == {*(f"load {n}" for n in range(20)), "merge"}
    assert all(lines.count(f"load {n}") == 1 for n in finished)
