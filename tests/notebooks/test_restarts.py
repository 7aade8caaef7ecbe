"""The table of docs/notebooks.md, in real kernels: what runs again, and what is taken over."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from kernels import WAIT_S, Kernel, kernel_in

from omniq_executor import Status

# Of the libraries under the kernel, not of ours.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default::DeprecationWarning", "default::ResourceWarning"),
]

MAKE = """
import os, time
from pathlib import Path
from omniq_executor import PersistentExecutor
executor = PersistentExecutor(2)
kept = PersistentExecutor(1, queue="kept", resume="always")
"""
DEFINE = """
FACTOR = 10
def f(n):
    note(f"f{n}")
    return FACTOR * n
def g(n):
    note(f"g{n}")
    return n
def h(n):
    note(f"h{n}")
    while not Path("gate").exists():
        time.sleep(0.01)
    return n
def note(line):
    fd = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, f"{line}\\n".encode())
    os.close(fd)
"""
MAP = "print(sum(executor.map(f, range(3))), sum(kept.map(g, range(3))))"
ALL = ["f0", "f1", "f2", "g0", "g1", "g2"]


class Log:
    """What calls have noted, since it was last asked."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "log"

    def take(self) -> list[str]:
        lines = sorted(self._path.read_text().split()) if self._path.exists() else []
        self._path.unlink(missing_ok=True)
        return lines

    def count(self, start: str) -> int:
        return self._path.exists() and sum(line.startswith(start) for line in self._path.read_text().split())


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path)


@pytest.fixture
def began(tmp_path: Path) -> Iterator[Any]:
    """Begins the notebook in a kernel of its own, as "Restart and run all" does, as far as the map."""
    with kernel_in(tmp_path) as first:
        kernels = [first]

        def begin() -> Kernel:
            kernel = kernels.pop() if kernels else stack.enter_context(kernel_in(tmp_path))
            kernel.run(MAKE)
            kernel.run(DEFINE)
            assert kernel.run(MAP) == "30 3\n"
            return kernel

        with contextlib.ExitStack() as stack:
            yield begin


def test_restart_and_run_all_goes_by_how_the_last_cell_ended(began: Any, log: Log, wait_until: Any) -> None:
    kernel = began()
    assert log.take() == ALL
    kernel.fail("1 / 0")
    kernel.run("print('looked at it, and went on')")
    kernel.shut_down()

    kernel = began()  # it has finished, though an exception was survived: only what is kept always is taken over
    assert log.take() == ["f0", "f1", "f2"]
    kernel.fail("1 / 0")
    kernel.shut_down()

    kernel = began()  # it has failed, though not in a call
    assert log.take() == []
    cell = kernel.begin("list(executor.map(h, range(9)))")
    wait_until(lambda: log.count("h") == 2)
    kernel.interrupt()
    assert kernel.end(cell)[1] == "KeyboardInterrupt"
    assert log.count("h") == 2
    log.take()
    kernel.shut_down()

    kernel = began()  # it was interrupted
    assert log.take() == []
    kernel.begin("list(executor.map(h, range(9)))")
    wait_until(lambda: log.count("h") == 2)
    kernel.kill()
    log.take()

    kernel = began()  # it was killed
    assert log.take() == []
    (Path(kernel.store).parents[1] / "gate").touch()
    assert kernel.run("print(len([*executor.map(h, range(9))]))") == "9\n"
    assert log.take() == [f"h{n}" for n in range(9)]
    kernel.shut_down()

    began()  # it has finished after that
    assert log.take() == ["f0", "f1", "f2"]


def test_a_run_stands_as_the_last_cell_that_used_it_did(kernel: Kernel, log: Log, open_store: Any) -> None:
    kernel.run(MAKE)
    kernel.run(DEFINE)
    kernel.run("mended, failed = (PersistentExecutor(1, queue=name) for name in ('mended', 'failed'))")
    kernel.run("def reciprocal(n): return 1 / n")
    for name in "mended", "failed":
        assert kernel.fail(f"list({name}.map(reciprocal, [2, 1, 0]))") == "ZeroDivisionError"
    kernel.run("def reciprocal(n): return 1 / n if n else 0")
    kernel.run("list(mended.map(reciprocal, [2, 1, 0]))")
    kernel.run("print('looked at something')")
    kernel.shut_down()
    assert {run.queue: run.clean for run in open_store(kernel.store).runs()} == {
        "analysis": True,
        "kept": True,
        "mended": True,
        "failed": False,
    }


def test_what_is_run_again_in_the_same_kernel(kernel: Kernel, log: Log, tmp_path: Path, wait_until: Any) -> None:
    kernel.run(MAKE)
    kernel.run(DEFINE)
    kernel.run(MAP)
    assert log.take() == ALL

    kernel.run(MAP)  # the cell of the map: what is kept always is free
    assert log.take() == ["f0", "f1", "f2"]

    kernel.run(MAKE)  # the cell of the executors, which have nothing left to do
    kernel.run(MAP)
    assert log.take() == ["f0", "f1", "f2"]

    # The cell of the executor while calls run and wait: they are taken over.
    kernel.run("futures = [executor.submit(h, n) for n in range(4)]")
    wait_until(lambda: log.count("h") == 2)
    workers = [psutil.Process(int(pid)) for pid in kernel.run("print(*executor._processes)").split()]
    kernel.run(MAKE)
    assert len(log.take()) == 2
    said = kernel.run("print({type(future.exception(0)).__name__ for future in futures}, futures[0].exception(0))")
    assert said.startswith("{'PoolBroken'} the statement that made the executor is run again")
    assert kernel.run("print(executor.submit(f, 2).result())") == "20\n"
    assert log.take() == []  # it had finished, and the run is continued
    (tmp_path / "gate").touch()
    assert kernel.run("print([*executor.map(h, range(4))])") == "[0, 1, 2, 3]\n"
    assert log.take() == ["h0", "h1", "h2", "h3"]
    assert "4 taken over unfinished" in kernel.run("print(executor.resumed)")
    assert psutil.wait_procs(workers, WAIT_S)[1] == []

    # What a cell defines again.
    kernel.run(DEFINE.replace("FACTOR = 10", "FACTOR = 20"))
    assert kernel.run("print(sum(kept.map(g, range(3))), sum(kept.map(f, range(3))))") == "3 60\n"
    assert log.take() == ["f0", "f1", "f2"]
    kernel.run(DEFINE.replace("FACTOR = 10", "FACTOR = 20").replace("return n", "return n + 1", 1))
    assert kernel.run("print(sum(kept.map(g, range(3))), sum(kept.map(f, range(3))))") == "6 60\n"
    assert log.take() == ["g0", "g1", "g2"]


def test_an_interrupt_in_mid_map_stops_what_runs_and_the_next_run_goes_on(
    kernel: Kernel, log: Log, tmp_path: Path, open_store: Any, wait_until: Any
) -> None:
    kernel.run(MAKE)
    store = open_store(kernel.store)
    kernel.run(DEFINE + "\ndef some(n):\n    note(f'{n}:{os.getpid()}')\n    return n if n < 2 else h(n)")
    in_next, in_body = "list(executor.map(some, range(9)))", "for n in executor.map(some, range(9)): time.sleep(999)"
    for loop in in_next, in_body:
        cell = kernel.begin(loop)
        wait_until(lambda: log.count("h") == 2 and store.find(Status.COMPLETED))
        processes = [psutil.Process(pid) for pid in {int(line.split(":")[1]) for line in log.take() if ":" in line}]
        assert len(processes) == 2
        kernel.interrupt()
        assert kernel.end(cell)[1] == "KeyboardInterrupt"
        assert psutil.wait_procs(processes, WAIT_S)[1] == []  # nobody has opened the gate
    done = len(store.find(Status.COMPLETED))  # of the first two: they may wait behind one that waits for the gate
    (tmp_path / "gate").touch()
    assert kernel.run("print([*executor.map(some, range(9))])") == f"{[*range(9)]}\n"
    assert log.count("0:") + log.count("1:") == 2 - done
    assert kernel.run("print(executor.resumed.left_alone)") == "0\n"
    log.take()
    kernel.run("list(executor.map(some, range(9)))")  # it had ended well
    assert log.count("0:") == log.count("1:") == 1


def test_a_kernel_that_is_shut_down_waits_for_its_calls_and_goes_on_if_it_is_killed_before(
    log: Log, tmp_path: Path, open_store: Any, wait_until: Any
) -> None:
    calls = "futures = [executor.submit(h, n) for n in range(3)]"
    with kernel_in(tmp_path) as kernel:
        for cell in MAKE, DEFINE, "executor.submit(f, 1).result()", calls:
            kernel.run(cell)
        wait_until(lambda: log.count("h") == 2)
        kernel.begin_to_shut_down()
        kernel.end_within(1)  # nobody opens the gate
    assert sorted(log.take()) == ["f1", "h0", "h1"]
    with kernel_in(tmp_path) as kernel:
        for cell in MAKE, DEFINE, "executor.submit(f, 1).result()", calls:
            kernel.run(cell)
        wait_until(lambda: log.count("h"))  # those that were under way come after the third
        kernel.begin_to_shut_down()
        (tmp_path / "gate").touch()
        kernel.end_within(WAIT_S)
    assert sorted(log.take()) == ["h0", "h1", "h2"]
    store = open_store(kernel.store)
    assert [run.clean for run in store.runs() if run.queue == "analysis"] == [None, True]
    assert len(store.find(Status.COMPLETED)) == 4


def test_what_a_loop_has_finished_after_its_cell_failed_is_taken_over_when_the_cell_is_run_again(
    kernel: Kernel, log: Log, tmp_path: Path, wait_until: Any, open_store: Any
) -> None:
    kernel.run(MAKE)
    kernel.run(DEFINE)
    loop = """
futures = []
for n in range(6):
    futures.append(executor.submit(h, n))
    if n == 3:
        %s
print(sum(future.result() for future in futures))
"""
    assert kernel.fail(loop % "raise KeyError(n)") == "KeyError"
    (tmp_path / "gate").touch()
    store = open_store(kernel.store)
    wait_until(lambda: sum(counts.get(Status.COMPLETED, 0) for counts in store.counts().values()) == 4)
    assert kernel.run(loop % "pass") == "15\n"
    assert log.take() == ["h0", "h1", "h2", "h3", "h4", "h5"]
    assert "4 taken over" in kernel.run("print(executor.resumed)")
