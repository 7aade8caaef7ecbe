"""`omniq-executor worker`: what it works off, what it says, and how it ends."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import calls
import pytest
from click.testing import CliRunner

from omniq_executor import PersistentExecutor, Status
from omniq_executor.cli.main import main
from omniq_executor.engines.local.pool import LocalEngine

pytestmark = pytest.mark.once

WAIT_S = 30.0


@pytest.fixture(params=["store.db", "store"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


@pytest.fixture
def submit_to(address: Path) -> Iterator[Callable[[str], PersistentExecutor]]:
    """Makes an executor that submits to a queue."""
    made: list[PersistentExecutor] = []

    def make(queue: str) -> PersistentExecutor:
        made.append(PersistentExecutor(store=address, engine="external", queue=queue))
        return made[-1]

    yield make
    for executor in made:
        executor.kill_workers()


@pytest.fixture
def executor(submit_to: Callable[[str], PersistentExecutor]) -> PersistentExecutor:
    return submit_to("work")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_has_it_end_what_runs_and_give_back_the_rest(
    executor: PersistentExecutor, start_worker: Any, address: Path, journal: Any, tmp_path: Path, number: int
) -> None:
    worker = start_worker("-n", 2, "--store", address)
    # Short ones first, so that it holds some ahead.
    executor.submit(calls.square, 1).result(WAIT_S)
    assert list(executor.map(calls.square, range(200), timeout=WAIT_S))[-1] == 199 * 199
    gate = tmp_path / "gate"
    futures = [executor.submit(calls.noted_wait, journal.path, n, gate) for n in range(40)]
    journal.wait_for(2)
    worker.signal(number)
    assert worker.event("draining") == {"event": "draining", "signal": signal.Signals(number).name}
    started = {int(line) for line in journal.lines()}
    other = start_worker("-n", 1, "--store", address)
    journal.wait_for(3)  # what was given back is there for others, though two calls still run
    gate.touch()
    assert worker.wait() == 0
    assert [future.result(WAIT_S) for future in futures] == list(range(40))
    runs = Counter(map(int, journal.lines()))
    assert runs == dict.fromkeys(range(40), 1)
    tasks = [future.task() for future in futures]
    assert {task.status for task in tasks} == {Status.COMPLETED}
    assert all(task.crashes == 0 for task in tasks)
    assert started <= {n for n, task in enumerate(tasks) if task.owner != other_owner(executor, other)}


def other_owner(executor: PersistentExecutor, worker: Any) -> int:
    (owner,) = [owner.id for owner in executor.store.owners() if owner.pid == worker.process.pid]
    return owner


def test_a_worker_that_has_nothing_to_do_ends_at_once(start_worker: Any, address: Path) -> None:
    worker = start_worker("-n", 1, "--store", address)
    worker.signal(signal.SIGTERM)
    assert worker.event("ended") == {"event": "ended", "completed": 0, "failed": 0}
    assert worker.wait() == 0


@pytest.mark.parametrize(("second", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_ends_it_at_once_and_what_it_ran_is_pending(
    executor: PersistentExecutor, start_worker: Any, address: Path, journal: Any, tmp_path: Path, second: int,
    status: int, is_alive: Callable[[int], bool], wait_until: Any,
) -> None:  # fmt: skip
    worker = start_worker("-n", 1, "--store", address)
    pid = executor.submit(calls.pid).result(WAIT_S)
    future = executor.submit(calls.noted_wait, journal.path, 1, tmp_path / "gate")
    journal.wait_for(1)
    worker.signal(signal.SIGINT)
    worker.event("draining")
    worker.signal(second)
    assert worker.wait() == status
    assert not is_alive(pid)
    task = future.task()
    assert (task.status, task.crashes, task.owner) == (Status.PENDING, 0, None)
    start_worker("-n", 1, "--store", address)
    (tmp_path / "gate").touch()
    assert future.result(WAIT_S) == 1
    assert len(journal.lines()) == 2


def test_a_process_of_its_that_dies_while_it_drains_costs_one_attempt_of_its_call(
    executor: PersistentExecutor, start_worker: Any, address: Path, journal: Any
) -> None:
    worker = start_worker("-n", 1, "--store", address)
    gate = journal.path.with_name("gate")
    future = executor.submit(held_pid, journal.path, gate)
    (pid,) = map(int, journal.wait_for(1))
    worker.signal(signal.SIGTERM)
    worker.event("draining")
    os.kill(pid, signal.SIGKILL)
    assert worker.wait() == 0
    task = future.task()
    assert (task.status, task.attempts, task.crashes) == (Status.PENDING, 1, 1)


def held_pid(path: Path, gate: Path) -> None:
    calls.noted_pid(path)
    calls.wait_for(gate)


def test_two_workers_run_no_task_twice(
    executor: PersistentExecutor, start_worker: Any, address: Path, journal: Any
) -> None:
    workers = [start_worker("-n", 2, "--store", address) for _ in range(2)]
    mapped = executor.map(calls.noted, [journal.path] * 500, range(500), timeout=WAIT_S)
    futures = [executor.submit(calls.noted, journal.path, n) for n in range(500, 800)]
    assert list(mapped) == list(range(500))
    assert [future.result(WAIT_S) for future in futures] == list(range(500, 800))
    assert Counter(map(int, journal.lines())) == dict.fromkeys(range(800), 1)
    assert all(future.task().attempts == 1 for future in futures)
    done = 0
    for worker in workers:
        worker.signal(signal.SIGTERM)
        ended = worker.event("ended")
        assert ended["failed"] == 0
        done += ended["completed"]
    assert done == 800


def test_it_works_off_all_queues_those_that_come_later_too(submit_to: Any, start_worker: Any, address: Path) -> None:
    before = submit_to("one").submit(calls.square, 2)
    start_worker("-n", 1, "--store", address)
    assert before.result(WAIT_S) == 4
    assert submit_to("two").submit(calls.square, 3).result(WAIT_S) == 9


def test_it_leaves_alone_the_queues_that_it_is_not_given(submit_to: Any, start_worker: Any, address: Path) -> None:
    queues = {name: submit_to(name) for name in ("one", "two", "three")}
    futures = {name: executor.submit(calls.square, 2) for name, executor in queues.items()}
    worker = start_worker("-n", 1, "--queue", "one", "--queue", "three", "--store", address)
    assert worker.started["queues"] == ["one", "three"]
    assert futures["one"].result(WAIT_S) == futures["three"].result(WAIT_S) == 4
    assert queues["three"].submit(calls.square, 3).result(WAIT_S) == 9
    assert futures["two"].task().status is Status.PENDING


def test_a_long_queue_does_not_keep_a_short_one_waiting(submit_to: Any, start_worker: Any, address: Path) -> None:
    long, short = submit_to("long"), submit_to("short")
    slow = [long.submit(time.sleep, 0.02) for _ in range(500)]
    quick = [short.submit(calls.square, n) for n in range(5)]
    start_worker("-n", 1, "--store", address)
    assert [future.result(WAIT_S) for future in quick] == [0, 1, 4, 9, 16]
    assert not all(future.done() for future in slow)


def test_long_calls_that_were_claimed_as_if_they_were_short_go_back(
    submit_to: Any, start_worker: Any, address: Path
) -> None:
    long, short = submit_to("long"), submit_to("short")
    start_worker("-n", 1, "--store", address)
    assert list(short.map(calls.square, range(200), timeout=WAIT_S))[-1] == 199 * 199  # so there is room for thousands
    slow = [long.options(eta=0.2).submit(time.sleep, 0.02) for _ in range(500)]  # all due at a time
    slow[0].result(WAIT_S)
    quick = [short.submit(calls.square, n) for n in range(5)]
    assert [future.result(WAIT_S) for future in quick] == [0, 1, 4, 9, 16]
    assert sum(future.done() for future in slow) < 250


def test_calls_that_become_due_are_run_in_every_queue(submit_to: Any, start_worker: Any, address: Path) -> None:
    start_worker("-n", 1, "--store", address)
    futures = [submit_to(name).options(eta=eta).submit(calls.square, 3) for name, eta in (("one", 0.4), ("two", 0.2))]
    assert [future.result(WAIT_S) for future in futures] == [9, 9]


def test_a_call_that_is_cancelled_while_it_runs_elsewhere_is_ended(
    executor: PersistentExecutor, start_worker: Any, address: Path, journal: Any, tmp_path: Path,
    is_alive: Callable[[int], bool], wait_until: Any,
) -> None:  # fmt: skip
    start_worker("-n", 1, "--store", address)
    future = executor.submit(held_pid, journal.path, tmp_path / "gate")
    (pid,) = map(int, journal.wait_for(1))
    assert future.cancel(running=True)
    wait_until(lambda: not is_alive(pid))
    assert executor.submit(calls.square, 3).result(WAIT_S) == 9


def test_so_many_processes_run_as_it_is_given(
    executor: PersistentExecutor, start_worker: Any, address: Path, journal: Any, tmp_path: Path
) -> None:
    worker = start_worker("-n", 3, "--store", address)
    assert worker.started["processes"] == 3
    futures = [executor.submit(held_pid, journal.path, tmp_path / "gate") for _ in range(6)]
    assert len(set(journal.wait_for(3))) == 3
    (tmp_path / "gate").touch()
    for future in futures:
        future.result(WAIT_S)
    assert len(set(journal.lines())) == 3


def test_what_is_in_the_current_folder_can_be_imported(
    executor: PersistentExecutor, start_worker: Any, address: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "beside_it.py").write_text("def answer():\n    return 42\n")
    monkeypatch.syspath_prepend(tmp_path)
    import beside_it  # type: ignore[import-not-found]

    start_worker("-n", 1, "--store", address)
    assert executor.submit(beside_it.answer).result(WAIT_S) == 42


def test_what_calls_write_is_kept_if_that_is_wished(
    executor: PersistentExecutor, start_worker: Any, address: Path
) -> None:
    start_worker("-n", 1, "--capture-output", "--store", address)
    future = executor.submit(print, "from elsewhere")
    future.result(WAIT_S)
    assert future.logs() == "from elsewhere\n"


def test_the_store_is_made_by_whoever_is_first(start_worker: Any, address: Path) -> None:
    start_worker("-n", 1, "--store", address)
    with PersistentExecutor(store=address, engine="external") as executor:
        assert executor.submit(calls.square, 3).result(WAIT_S) == 9


def test_with_json_it_tells_of_every_task(executor: PersistentExecutor, start_worker: Any, address: Path) -> None:
    worker = start_worker("-n", 1, "--store", address)
    assert worker.started == {
        "event": "started", "store": str(address), "queues": [], "processes": 1, "pid": worker.process.pid,
    }  # fmt: skip
    good, bad = executor.submit(calls.square, 3), executor.submit(int, "seven")
    assert worker.event("finished") == {"event": "finished", "task": good.task_id, "status": "COMPLETED"}
    assert worker.event("finished") == {"event": "finished", "task": bad.task_id, "status": "FAILED"}
    worker.signal(signal.SIGTERM)
    assert worker.event("ended") == {"event": "ended", "completed": 1, "failed": 1}


def test_without_it_says_what_it_is_about_at_its_start_and_end(
    executor: PersistentExecutor, address: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "omniq_executor", "worker", "-n", "1", "--queue", "work", "--store", str(address)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert executor.submit(calls.square, 3).result(WAIT_S) == 9
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=WAIT_S)
        finally:
            process.kill()
    assert process.returncode == 0
    assert output.splitlines() == [
        f"process {process.pid} works off queues work of {address}, 1 calls at a time",
        "SIGTERM: no more calls are started; another signal ends those that run",
        "1 task completed, 0 failed",
    ]


@pytest.mark.parametrize(
    ("args", "status"),
    [
        (["-n", "0"], 2),
        (["-n", "many"], 2),
        (["--queue", ""], 2),
        (["--durability", "none"], 2),
        (["--engine", "mesos://host"], 2),
        (["--engine", "dask://host:8786", "--capture-output"], 2),
        (["--store", "nowhere://x"], 1),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], status: int
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    done = CliRunner().invoke(main, ["worker", *args])
    assert (done.exit_code, done.stdout) == (status, "")
    assert "Error: " in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_breaks_while_it_is_opened_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_text("no database " * 100)
    command = [sys.executable, "-m", "omniq_executor", "worker", "--store", "store.db"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)


def test_without_any_process_it_ends_and_says_why(
    executor: PersistentExecutor, address: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    future = executor.submit(calls.square, 2)

    def refuse(*_: object) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(LocalEngine, "_start", refuse)
    done = CliRunner().invoke(main, ["worker", "--store", str(address)])
    assert done.exit_code == 1
    assert "Resource temporarily unavailable" in caplog.text + done.stderr
    assert future.task().status is Status.PENDING


def test_each_run_has_a_namespace_of_its_own_in_a_worker(script: Any, start_worker: Any, address: Path) -> None:
    script.write(
        f"""
from omniq_executor import PersistentExecutor

SEEN = []

def seen(n):
    SEEN.append(n)
    return list(SEEN)

if __name__ == "__main__":
    with PersistentExecutor(store={str(address)!r}, engine="external") as executor:
        print([executor.submit(seen, n).result({WAIT_S}) for n in range(3)])
"""
    )
    start_worker("-n", 1, "--store", address)
    for _ in range(2):
        done = script.run()
        assert (done.returncode, done.stdout, done.stderr) == (0, "[[0], [0, 1], [0, 1, 2]]\n", "")
