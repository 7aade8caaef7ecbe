"""engine="external": one process submits, workers in other processes run, and both may die."""

import os
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import calls
import pytest

from omniq_executor import DependencyFailed, PersistentExecutor, Status, StoreError, open_store
from omniq_executor.stores.base import now

WAIT_S = 30.0
P50_S = 0.05  # of the way from a worker to a future: ten times what is promised, for a machine that is busy

SUBMITS = """
import sys
import calls
from pathlib import Path
from omniq_executor import PersistentExecutor

if __name__ == "__main__":
    store, journal, gate, resume = sys.argv[1:]
    with PersistentExecutor(store=store, engine="external", queue="script", resume=resume) as executor:
        futures = [executor.submit(calls.noted, Path(journal), n) for n in range(20)]
        futures += [executor.submit(calls.noted_wait, Path(journal), "last", Path(gate))]
        print("submitted", flush=True)
        print([future.result() for future in futures], sum(future.resumed for future in futures))
"""

External = Callable[..., PersistentExecutor]


@pytest.fixture(params=["store.db", "store"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


@pytest.fixture
def external(address: Path) -> Iterator[External]:
    """Makes executors that only submit."""
    made: list[PersistentExecutor] = []

    def make(**kwargs: Any) -> PersistentExecutor:
        made.append(PersistentExecutor(store=address, engine="external", **kwargs))
        return made[-1]

    yield make
    for executor in made:
        executor.kill_workers()


@pytest.fixture
def submits(script: Any) -> Any:
    """SUBMITS, to be started."""
    script.write(SUBMITS)
    script._env["PYTHONPATH"] += os.pathsep + str(Path(calls.__file__).parent)
    return script


def test_a_worker_elsewhere_gives_results_to_the_calls_that_wait_for_them(
    external: External, start_worker: Any, address: Path
) -> None:
    executor = external()
    first, bad = executor.submit(calls.square, 2), executor.submit(calls.raise_value_error, "bad")
    second, unrun = executor.submit(calls.add, first, first), executor.submit(calls.square, bad)
    start_worker("--store", address)
    assert executor.submit(calls.add, second, 1).result(WAIT_S) == 9
    assert isinstance(unrun.exception(WAIT_S), DependencyFailed)


def test_results_and_errors_come_from_a_worker_elsewhere(external: External, start_worker: Any, address: Path) -> None:
    executor = external()
    worker = start_worker("--store", address)
    assert executor.submit(os.getppid).result(WAIT_S) not in (os.getpid(), os.getppid())
    assert list(executor.map(calls.square, range(300), timeout=WAIT_S)) == [n * n for n in range(300)]
    failing = executor.submit(int, "seven")
    with pytest.raises(ValueError, match="seven"):
        failing.result(WAIT_S)
    here = lambda n: n + 1  # noqa: E731 - by value
    assert executor.submit(here, 2).result(WAIT_S) == 3
    owners = executor.store.owners()
    assert {owner.pid for owner in owners} == {os.getpid(), worker.process.pid}


def test_what_was_submitted_before_there_was_a_worker_is_run_when_one_comes(
    external: External, start_worker: Any, address: Path
) -> None:
    executor = external()
    futures = [executor.submit(calls.square, n) for n in range(5)]
    mapped = executor.map(calls.square, range(5))
    assert executor.store.counts()[executor.queue] == {Status.PENDING: 10}
    start_worker("--store", address)
    assert [future.result(WAIT_S) for future in futures] == list(mapped) == [0, 1, 4, 9, 16]


def test_a_future_resolves_within_milliseconds_of_the_commit(
    external: External, start_worker: Any, address: Path
) -> None:
    executor = external()
    start_worker("-n", 1, "--store", address)
    delays: list[float] = []
    for n in range(60):
        future = executor.submit(calls.square, n)
        assert future.result(WAIT_S) == n * n
        at = now()
        finished_at = future.task().finished_at
        assert finished_at is not None
        delays.append((at - finished_at) / 1e6)
    # Others may keep the machine busy for a while, but hardly in each third.
    assert min(statistics.median(delays[start : start + 20]) for start in (0, 20, 40)) < P50_S, sorted(delays)


def test_who_waits_and_who_has_nothing_to_do_are_not_busy(external: External, start_worker: Any, address: Path) -> None:
    executor = external()
    worker, other = start_worker("-n", 1, "--store", address), start_worker("-n", 1, "--store", address)
    executor.submit(calls.square, 2).result(WAIT_S)
    gate = address.with_name("gate")
    future = executor.submit(calls.wait_for, gate)
    pids = [os.getpid(), worker.process.pid, other.process.pid]
    while not future.running():
        time.sleep(0.001)
    time.sleep(0.2)  # until what they still had to do is done
    before = [cpu_s(pid) for pid in pids]
    time.sleep(1)
    used = [cpu_s(pid) - s for pid, s in zip(pids, before, strict=True)]
    gate.touch()
    assert future.result(WAIT_S) == "gate"
    assert max(used) <= 0.05, used


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_future_tells_whether_a_worker_elsewhere_is_in_the_call(
    external: External, start_worker: Any, address: Path, tmp_path: Path, wait_until: Any
) -> None:
    executor = external()
    first, second = executor.submit(calls.wait_for, tmp_path / "gate"), executor.submit(calls.square, 3)
    assert not first.running()
    start_worker("-n", 1, "--store", address)
    wait_until(first.running)
    assert not second.running()
    assert second.cancel()
    assert not first.cancel()
    (tmp_path / "gate").touch()
    assert first.result(WAIT_S) == "gate"
    assert second.cancelled()
    assert executor.stacks() == {}


def test_shutdown_waits_for_what_workers_elsewhere_have(
    external: External, start_worker: Any, address: Path, journal: Any, tmp_path: Path
) -> None:
    executor = external()
    start_worker("-n", 1, "--store", address)
    gate = tmp_path / "gate"
    futures = [executor.submit(calls.noted_wait, journal.path, n, gate) for n in range(3)]
    journal.wait_for(1)
    executor.shutdown(wait=False, cancel_futures=True)
    assert not futures[0].done()
    gate.touch()
    executor.shutdown(wait=True)
    assert futures[0].result(0) == 0
    assert [future.cancelled() for future in futures] == [False, True, True]
    assert journal.lines() == ["0"]


def test_options_are_heeded_by_the_worker(external: External, start_worker: Any, address: Path, journal: Any) -> None:
    executor = external()
    start_worker("-n", 1, "--store", address)
    retried = executor.options(max_retries=2, backoff=0.01).submit(calls.noted, address.parent / "calls" / "line", 1)
    later = executor.options(eta=0.2).submit(calls.square, 3)
    named = executor.options(key="one").submit(calls.noted, journal.path, "once")
    assert executor.options(key="one").submit(calls.noted, journal.path, "once").result(WAIT_S) == "once"
    assert later.result(WAIT_S) == 9
    with pytest.raises(FileNotFoundError):
        retried.result(WAIT_S)
    assert retried.task().options.retries == 2  # a claim that is given back before it began is an attempt, too
    assert named.result(WAIT_S) == "once"
    assert journal.lines() == ["once"]


@pytest.mark.parametrize("survivors", [0, 1])
def test_what_a_killed_worker_had_claimed_is_finished_by_another(
    external: External, start_worker: Any, address: Path, journal: Any, tmp_path: Path, wait_until: Any, survivors: int
) -> None:
    executor = external()
    gate = tmp_path / "gate"
    killed = start_worker("-n", 2, "--store", address)
    held = [executor.submit(calls.noted_wait, journal.path, f"held {n}", gate) for n in range(2)]
    journal.wait_for(2)
    for _ in range(survivors):
        start_worker("-n", 2, "--store", address)
    others = [executor.submit(calls.noted, journal.path, f"other {n}") for n in range(30)]
    killed.kill()
    if not survivors:
        # There is only who waits to find it.
        wait_until(lambda: executor.store.counts()[executor.queue] == {Status.PENDING: 32})
        start_worker("-n", 2, "--store", address)
    wait_until(lambda: Counter(journal.lines())["held 1"] == 2, what="a second attempt")
    gate.touch()
    assert [future.result(WAIT_S) for future in held] == ["held 0", "held 1"]
    assert [future.result(WAIT_S) for future in others] == [f"other {n}" for n in range(30)]
    runs = Counter(journal.lines())
    assert runs == {f"held {n}": 2 for n in range(2)} | {f"other {n}": 1 for n in range(30)}
    tasks = [future.task() for future in held]
    assert [(task.attempts, task.crashes) for task in tasks] == [(2, 0), (2, 0)]


def test_workers_killed_again_and_again_lose_nothing(
    external: External, start_worker: Any, address: Path, journal: Any
) -> None:
    executor = external()
    count = 300
    futures = [executor.submit(calls.noted, journal.path, n) for n in range(count)]
    for round_ in range(1, 4):
        worker = start_worker("-n", 2, "--store", address)
        journal.wait_for(min(round_ * 40, count))
        worker.kill()
    start_worker("-n", 2, "--store", address)
    assert [future.result(WAIT_S) for future in futures] == list(range(count))
    runs = Counter(map(int, journal.lines()))
    assert set(runs) == set(range(count))
    for future in futures:
        assert runs[future.result()] <= future.task().attempts


def test_a_worker_finishes_what_a_killed_process_has_submitted(
    submits: Any, start_worker: Any, address: Path, journal: Any, tmp_path: Path, wait_until: Any
) -> None:
    worker = start_worker("-n", 2, "--store", address)
    args = [str(address), str(journal.path), str(tmp_path / "gate"), "crashed"]
    process = submits.start(*args)
    journal.wait_for(21)
    process.kill()
    process.wait(WAIT_S)
    (tmp_path / "gate").touch()
    store = open_store(address, create=False)
    try:
        wait_until(lambda: store.counts()["script"] == {Status.COMPLETED: 21})
        # It is told of the death, and forgets who has died.
        wait_until(lambda: [owner.pid for owner in store.owners()] == [worker.process.pid])
    finally:
        store.close()
    again = submits.run(*args)
    assert again.stdout == f"submitted\n{[*range(20), 'last']} 21\n", again.stderr
    assert len(journal.lines()) == 21


def test_a_worker_is_no_run_that_could_be_resumed(
    submits: Any, start_worker: Any, address: Path, journal: Any, tmp_path: Path
) -> None:
    (tmp_path / "gate").touch()
    args = [str(address), str(journal.path), str(tmp_path / "gate"), "always"]
    for resumed in (0, 21):
        worker = start_worker("-n", 1, "--queue", "script", "--store", address)
        assert submits.run(*args).stdout == f"submitted\n{[*range(20), 'last']} {resumed}\n"
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
    store = open_store(address, create=False)
    try:
        assert [run.queue for run in store.runs()] == ["script", "script"]
        assert store.owners() == []
    finally:
        store.close()


def test_calls_of_a_broken_run_that_had_failed_are_run_again_by_a_worker_that_is_idle(
    external: External, start_worker: Any, address: Path, journal: Any
) -> None:
    start_worker("-n", 1, "--store", address)
    line = journal.path.with_name("folder") / "line"
    broken = external(queue="shared")
    with pytest.raises(FileNotFoundError):
        broken.submit(calls.noted, line, 1).result(WAIT_S)
    mapped = broken.map(calls.noted, [line], [2])
    with pytest.raises(FileNotFoundError):
        next(mapped)
    broken.kill_workers()
    line.parent.mkdir()
    executor = external(queue="shared")
    assert executor.submit(calls.noted, line, 1).result(WAIT_S) == 1
    assert list(executor.map(calls.noted, [line], [2], timeout=WAIT_S)) == [2]


@pytest.mark.parametrize("refuses", ["read_changes", "states"])
def test_news_that_could_not_be_read_are_read_later(
    external: External, start_worker: Any, address: Path, monkeypatch: pytest.MonkeyPatch, refuses: str
) -> None:
    executor = external()
    start_worker("-n", 1, "--store", address)
    executor.submit(calls.square, 2).result(WAIT_S)
    works, refused = getattr(executor.store, refuses), []

    def refuse_once(*args: Any) -> Any:
        if not refused:
            refused.append(args)
            raise StoreError("not now")
        return works(*args)

    monkeypatch.setattr(executor.store, refuses, refuse_once)
    assert executor.submit(calls.square, 3).result(WAIT_S) == 9
    assert refused


@pytest.mark.parametrize(
    "parameter",
    [
        {"max_workers": 2},
        {"mp_context": calls},
        {"initializer": calls.square},
        {"max_tasks_per_child": 1},
        {"crash_retries": 0},
        {"capture_output": True},
    ],
    ids=lambda parameter: next(iter(parameter)),
)
def test_parameters_of_processes_have_no_place_where_there_are_none(tmp_path: Path, parameter: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"engine='external' starts no processes, so {next(iter(parameter))}="):
        PersistentExecutor(store=tmp_path / "store.db", engine="external", **parameter)
    assert list(tmp_path.iterdir()) == []


def test_an_engine_that_there_is_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"engine is 'local', 'external', an Executor or .*, not 'elsewhere'"):
        PersistentExecutor(store=tmp_path / "store.db", engine="elsewhere")
