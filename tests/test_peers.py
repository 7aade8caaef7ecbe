"""Owners of one store that end, each in its way: who finds what they leave behind, and when."""

import math
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from omniq_executor import PersistentExecutor

WAIT_S = 30.0

HOLDS = """
import os, sys, time
from omniq_executor import PersistentExecutor

def hold(journal, gate):
    with open(journal, "a") as file:
        file.write(f"{os.getpid()}\\n")
    while not os.path.exists(gate):
        time.sleep(0.005)
    return "done"

if __name__ == "__main__":
    store, journal, gate = sys.argv[1:]
    executor = PersistentExecutor(1, store=store, queue="shared")
    executor.options(key="held").submit(hold, journal, gate)
    print("submitted", flush=True)
    if sys.stdin.readline() == "leave\\n":
        executor.kill_workers()
    sys.stdin.readline()
"""


@pytest.fixture(params=["store.db", "store"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


def start_holder(script: Any, address: Path, journal: Any, gate: Path) -> Any:
    """A process whose executor has one call, which is under way when this returns."""
    script.write(HOLDS)
    process = script.start(str(address), str(journal.path), str(gate), stdin=subprocess.PIPE)
    journal.wait_for(1)
    return process


def future_of(executor: PersistentExecutor) -> Any:
    (task,) = (task for task in executor.store.find(queue="shared") if task.key == "held")
    return executor.future(task.task_id)


@pytest.mark.parametrize("came_first", ["who dies", "who waits"])
def test_a_call_whose_process_was_killed_is_taken_up_at_once_by_an_executor_that_waits(
    script: Any, make_executor: Callable[..., PersistentExecutor], address: Path, journal: Any, gate: Path,
    came_first: str,
) -> None:  # fmt: skip
    executor = make_executor(1, store=address, queue="shared") if came_first == "who waits" else None
    if executor is not None:
        executor.submit(pow, 2, 3).result(WAIT_S)
    process = start_holder(script, address, journal, gate)
    executor = executor or make_executor(1, store=address, queue="shared")
    future = future_of(executor)
    assert not future.done()
    process.kill()
    first, second = journal.wait_for(2)
    assert first != second
    gate.touch()
    assert future.result(WAIT_S) == "done"
    assert [owner.pid for owner in executor.store.owners()] == [os.getpid()]
    assert len(journal.lines()) == 2


def test_a_call_of_an_executor_that_left_is_taken_up_at_once(
    script: Any, make_executor: Callable[..., PersistentExecutor], address: Path, journal: Any, gate: Path
) -> None:
    executor = make_executor(1, store=address, queue="shared")
    process = start_holder(script, address, journal, gate)
    future = future_of(executor)
    print("leave", file=process.stdin, flush=True)
    journal.wait_for(2)
    gate.touch()
    assert future.result(WAIT_S) == "done"


def test_a_process_that_stands_still_is_not_robbed_and_who_waits_is_not_busy(
    script: Any, make_executor: Callable[..., PersistentExecutor], address: Path, journal: Any, gate: Path
) -> None:
    process = start_holder(script, address, journal, gate)
    executor = make_executor(1, store=address, queue="shared")
    future = future_of(executor)
    members = script.members(process)
    for member in members:
        os.kill(member, signal.SIGSTOP)
    gate.touch()
    assert executor.submit(pow, 2, 3).result(WAIT_S) == 8
    assert not future.done()
    assert executor._dispatcher._loop.peers.look_at == math.inf
    for member in members:
        os.kill(member, signal.SIGCONT)
    assert future.result(WAIT_S) == "done"
    assert len(journal.lines()) == 1
