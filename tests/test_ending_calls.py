"""Calls that are ended while they run: by their timeout, and by who cancels them."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import calls
import pytest

from omniq_executor import NotImportable, PersistentExecutor, Settings, Status, TaskTimeout
from omniq_executor.engines.local import termination as ending
from omniq_executor.model.task import Options

WAIT_S = 30.0
LONG_S = 300.0
MakeExecutor = Callable[..., PersistentExecutor]


def sleep_noted(path: Path, seconds: float = LONG_S) -> str:
    calls.note(path, os.getpid())
    time.sleep(seconds)
    return "slept"


def sleep_deaf(path: Path) -> None:
    """Sleep whatever SIGTERM says."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sleep_noted(path)


def sleep_the_first_time(path: Path) -> str:
    calls.note(path, os.getpid())
    if len(path.read_text().splitlines()) == 1:
        time.sleep(LONG_S)
    return "second"


def with_children(path: Path, deaf: bool) -> None:
    """Wait with a child and a grandchild, who outlive SIGTERM if they are `deaf`."""
    prepare = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if deaf else ""
    note = f"import calls, os, pathlib; calls.note(pathlib.Path({str(path)!r}), os.getpid())"
    grandchild = f"{prepare}{note}; import time; time.sleep({LONG_S})"
    child = f"{prepare}import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    process = subprocess.Popen(
        [sys.executable, "-c", child], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    calls.note(path, process.pid)
    time.sleep(LONG_S)


# --- Timeouts ---


def test_a_call_that_takes_longer_than_its_timeout_is_ended(executor: PersistentExecutor, journal: Any) -> None:
    began = time.monotonic()
    future = executor.options(timeout=0.5).submit(sleep_noted, journal.path)
    with pytest.raises(TaskTimeout, match=rf"{future.task_id} ran for more than 0\.5 s, as attempt 1, and was ended"):
        future.result(WAIT_S)
    assert time.monotonic() - began >= 0.5
    task = future.task()
    assert (task.status, task.attempts, task.crashes) == (Status.FAILED, 1, 0)
    assert executor.submit(calls.square, 3).result(WAIT_S) == 9


def test_a_call_that_is_done_in_time_is_not_touched(executor: PersistentExecutor) -> None:
    timed = executor.options(timeout=WAIT_S)
    assert [timed.submit(calls.square, n).result(WAIT_S) for n in range(20)] == [n * n for n in range(20)]
    assert list(timed.map(calls.square, range(200))) == [n * n for n in range(200)]
    assert len({executor.submit(calls.pid).result(WAIT_S) for _ in range(20)}) <= 2


def test_the_time_before_a_worker_begins_does_not_count(
    make_executor: MakeExecutor, journal: Any, tmp_path: Path
) -> None:
    executor = make_executor(1, initializer=time.sleep, initargs=(1.0,))
    gate = tmp_path / "gate"
    first = executor.submit(calls.wait_for, gate)
    behind = executor.options(timeout=0.7).submit(calls.echo, "in time")
    time.sleep(1.5)
    gate.touch()
    assert first.result(WAIT_S) == "gate"
    assert behind.result(WAIT_S) == "in time"


@pytest.mark.parametrize("n", range(3))
def test_neighbours_of_a_call_that_is_ended_run_once(
    executor: PersistentExecutor, journal: Any, tmp_path: Path, n: int
) -> None:
    seen = tmp_path / "seen"
    timed = executor.options(timeout=0.2 + n / 10)
    futures: list[Any] = []
    for i in range(30):
        futures.append(executor.submit(calls.noted, seen, i))
        if i % 10 == 5:
            futures.append(timed.submit(sleep_noted, journal.path))
    outcomes = [future.exception(WAIT_S) or future.result() for future in futures]
    assert [type(it) for it in outcomes].count(TaskTimeout) == 3
    assert sorted(it for it in outcomes if isinstance(it, int)) == [*range(30)]
    assert sorted(map(int, seen.read_text().split())) == [*range(30)]


def test_a_call_that_takes_too_long_is_tried_again(executor: PersistentExecutor, journal: Any) -> None:
    future = executor.options(timeout=0.5, max_retries=2, backoff=0).submit(sleep_the_first_time, journal.path)
    assert future.result(WAIT_S) == "second"
    task = future.task()
    assert (task.attempts, task.crashes, task.options) == (2, 0, Options(2, 1, 0.5, policy=task.options.policy))  # type: ignore[union-attr]


def test_retry_on_may_leave_out_timeouts(executor: PersistentExecutor, journal: Any) -> None:
    choosy = executor.options(timeout=0.3, max_retries=2, backoff=0, retry_on=ValueError)
    assert isinstance(choosy.submit(sleep_the_first_time, journal.path).exception(WAIT_S), TaskTimeout)


def test_a_worker_that_does_not_heed_sigterm_is_killed(
    executor: PersistentExecutor, journal: Any, is_alive: Any
) -> None:
    began = time.monotonic()
    future = executor.options(timeout=0.3).submit(sleep_deaf, journal.path)
    assert isinstance(future.exception(WAIT_S), TaskTimeout)
    assert time.monotonic() - began >= 0.3 + ending.GRACE_S
    assert not is_alive(int(journal.lines()[0]))


def test_a_worker_that_is_stopped_is_ended(executor: PersistentExecutor, journal: Any) -> None:
    future = executor.options(timeout=1).submit(sleep_noted, journal.path)
    os.kill(int(journal.wait_for(1)[0]), signal.SIGSTOP)
    assert isinstance(future.exception(WAIT_S), TaskTimeout)


@pytest.mark.parametrize("deaf", [False, True], ids=["heeding", "deaf"])
def test_the_processes_that_a_call_has_started_end_with_it(
    executor: PersistentExecutor, journal: Any, is_alive: Any, wait_until: Any, deaf: bool
) -> None:
    future = executor.options(timeout=1.5).submit(with_children, journal.path, deaf)
    pids = [int(line) for line in journal.wait_for(2)]
    assert isinstance(future.exception(WAIT_S), TaskTimeout)
    wait_until(lambda: not any(map(is_alive, pids)), what="the child and the grandchild to end")


def test_shutdown_waits_for_what_is_left_of_a_call(
    make_executor: MakeExecutor, journal: Any, is_alive: Any, wait_until: Any
) -> None:
    with make_executor(1) as executor:
        future = executor.options(timeout=1.5).submit(with_children, journal.path, True)
        pids = [int(line) for line in journal.wait_for(2)]
        assert isinstance(future.exception(WAIT_S), TaskTimeout)
    wait_until(lambda: not any(map(is_alive, pids)), what="those that were killed to be gone")


@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (-1.5, ValueError), ("1m", TypeError), (math.nan, ValueError)]
)
def test_a_timeout_that_makes_no_sense_is_refused(
    executor: PersistentExecutor, value: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match=f"timeout .*{value!r}"):
        executor.options(timeout=value)


# --- What holds of calls that say nothing else ---


def settings_of(store: Path, **given: Any) -> Settings:
    return Settings("sqlite", store.parent, **given)


def test_settings_give_retries_and_timeout(make_executor: MakeExecutor, store: Path, journal: Any) -> None:
    executor = make_executor(2, store=settings_of(store, max_retries=1, timeout=0.5))
    future = executor.submit(sleep_noted, journal.path)
    assert executor.options(timeout=math.inf).submit(calls.echo, 1).task().options == Options(1)
    assert list(executor.map(calls.square, range(3))) == [0, 1, 4]
    assert isinstance(future.exception(WAIT_S), TaskTimeout)
    assert len(journal.lines()) == 2
    assert executor.options(max_retries=0).submit(calls.echo, 1).task().options == Options(timeout=0.5)


def test_the_environment_gives_retries_and_timeout(
    make_executor: MakeExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMNIQ_MAX_RETRIES", "4")
    monkeypatch.setenv("OMNIQ_TIMEOUT", "1.5h")
    assert make_executor(1).submit(calls.echo, 1).task().options == Options(4, timeout=5400.0)


# --- Cancelling what runs ---


def test_a_call_that_runs_is_cancelled_if_that_is_wished(
    executor: PersistentExecutor, journal: Any, is_alive: Any, wait_until: Any
) -> None:
    future = executor.submit(sleep_noted, journal.path)
    (pid,) = map(int, journal.wait_for(1))
    assert not future.cancel()
    assert future.cancel(running=True)
    with pytest.raises(CancelledError):
        future.result(0)
    assert future.task().status is Status.CANCELLED
    wait_until(lambda: not is_alive(pid), what="the worker to end")
    assert executor.submit(calls.square, 3).result(WAIT_S) == 9
    assert len(journal.lines()) == 1


def test_a_call_that_is_done_is_not_cancelled(executor: PersistentExecutor) -> None:
    future = executor.submit(calls.square, 3)
    assert future.result(WAIT_S) == 9
    assert not future.cancel(running=True)
    assert future.result() == 9


@pytest.mark.parametrize("place", range(6))
def test_calls_beside_one_that_is_cancelled_run_once(
    make_executor: MakeExecutor, journal: Any, tmp_path: Path, place: int
) -> None:
    executor, gate = make_executor(1), tmp_path / "gate"
    assert list(executor.map(calls.square, range(20))) == [n * n for n in range(20)]  # short calls travel together
    futures = [executor.submit(calls.gated, journal.path, gate, place, n) for n in range(8)]
    if place:
        journal.wait_for(place)
    assert futures[place].cancel(running=True)
    assert [future.result(WAIT_S) for n, future in enumerate(futures) if n != place] == [
        n for n in range(8) if n != place
    ]
    assert sorted(map(int, journal.lines())) == [n for n in range(8) if n != place]


def test_all_that_a_map_has_left_can_be_cancelled(make_executor: MakeExecutor, journal: Any, wait_until: Any) -> None:
    executor = make_executor(2)
    results = executor.map(sleep_noted, [journal.path] * 6)
    journal.wait_for(2)
    for future in executor.futures(Status.RUNNING) + executor.futures(Status.PENDING):
        future.cancel(running=True)
    with pytest.raises(CancelledError):
        next(results)
    assert {task.status for task in executor.store.find()} == {Status.CANCELLED}
    wait_until(lambda: not executor._dispatcher.engine.is_busy(), what="the workers to end")
    assert len(journal.lines()) == 2


def test_a_call_is_cancelled_from_another_process(
    executor: PersistentExecutor, journal: Any, is_alive: Any, wait_until: Any, store: Path
) -> None:
    future = executor.submit(sleep_noted, journal.path)
    (pid,) = map(int, journal.wait_for(1))
    behind = [executor.submit(sleep_noted, journal.path, 0.0) for _ in range(3)]
    command = [
        sys.executable,
        "-m",
        "omniq_executor",
        "cancel",
        future.task_id or "",
        "--running",
        "--store",
        str(store),
    ]
    told = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert (told.returncode, told.stdout, told.stderr) == (0, "1 task cancelled\n", "")
    with pytest.raises(CancelledError):
        future.result(WAIT_S)
    wait_until(lambda: not is_alive(pid), what="the worker to end")
    assert [it.result(WAIT_S) for it in behind] == ["slept"] * 3
    assert len(journal.lines()) == 4


def test_a_call_that_nobody_awaits_is_cancelled_from_elsewhere(
    executor: PersistentExecutor, journal: Any, is_alive: Any, wait_until: Any, open_store: Any, store: Path
) -> None:
    number = executor.submit(sleep_noted, journal.path)._number
    (pid,) = map(int, journal.wait_for(1))
    executor._dispatcher._waiters.remove(number)  # type: ignore[arg-type]
    other = open_store(store)
    assert other.cancel([number], 1, running=True) == [number]
    other.notify(0)
    wait_until(lambda: not is_alive(pid), what="the worker to end")


def test_a_series_is_cancelled_while_it_runs(executor: PersistentExecutor, journal: Any, wait_until: Any) -> None:
    first = executor.options(interval=0.05).submit(sleep_noted, journal.path, 0.5)
    journal.wait_for(1)
    assert not first.cancel()
    assert first.result(WAIT_S) == "slept"
    wait_until(lambda: not executor._dispatcher.engine.is_busy(), what="the occurrence to end")
    assert [task.status for task in executor.store.find()] == [Status.COMPLETED]


# --- Functions that are not there ---


def test_a_function_that_cannot_be_imported_fails_at_once_and_says_where_it_was_looked_for(
    make_executor: MakeExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").write_text("def work():\n    return 1\n")
    executor = make_executor(1)
    assert executor.submit(calls.square, 2).result(WAIT_S) == 4  # the worker is there, with its path
    monkeypatch.syspath_prepend(tmp_path)
    import only_here  # type: ignore[import-not-found]

    future = executor.options(max_retries=3).submit(only_here.work)
    error = future.exception(WAIT_S)
    assert isinstance(error, NotImportable)
    assert isinstance(error, ImportError)
    assert "cannot import the function: ModuleNotFoundError: No module named 'only_here'" in str(error)
    assert all(folder in str(error) for folder in sys.path[2:] if folder)
    task = future.task()
    assert (task.status, task.attempts, task.options) == (Status.FAILED, 1, Options(3))


# --- With each start method ---


def test_calls_are_ended_with_each_start_method(make_executor: MakeExecutor, context: Any, tmp_path: Path) -> None:
    executor = make_executor(2, context)
    late = executor.options(timeout=0.3).submit(sleep_noted, tmp_path / "late")
    unwanted = executor.submit(sleep_noted, tmp_path / "unwanted")
    calls.wait_for(tmp_path / "unwanted")
    assert unwanted.cancel(running=True)
    assert isinstance(late.exception(WAIT_S), TaskTimeout)
    assert [executor.submit(calls.square, n).result(WAIT_S) for n in range(5)] == [0, 1, 4, 9, 16]
