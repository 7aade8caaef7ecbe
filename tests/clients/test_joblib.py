"""joblib: `Parallel` with a backend made of an executor, and `Memory` and `hash` as calls."""

import multiprocessing
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import calls
import pytest

from omniq_executor import PersistentExecutor, Status

joblib = pytest.importorskip("joblib", minversion="1.5", reason="joblib is in the extra `clients`")

from joblib_backend import ExecutorBackend  # noqa: E402 - it imports joblib

WAIT_S = 30.0


def parallel(executor: PersistentExecutor, tasks: Iterator[Any], **options: Any) -> Any:
    options = {"n_jobs": 2, "timeout": WAIT_S, **options}
    return joblib.Parallel(backend=ExecutorBackend(executor), **options)(tasks)


def squares(count: int) -> Iterator[Any]:
    return (joblib.delayed(calls.square)(n) for n in range(count))


@pytest.mark.parametrize("batch_size", [1, 7])
def test_results_come_in_order(executor: PersistentExecutor, batch_size: int) -> None:
    assert parallel(executor, squares(200), batch_size=batch_size) == [n * n for n in range(200)]
    assert len(executor.futures(Status.COMPLETED)) == pytest.approx(200 / batch_size, abs=2)  # a batch is a call


def test_results_come_while_calls_run(executor: PersistentExecutor, journal: Any, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    tasks = (joblib.delayed(calls.gated)(journal.path, gate, 5, n) for n in range(10))
    results = parallel(executor, tasks, return_as="generator")
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    gate.touch()
    assert list(results) == [5, 6, 7, 8, 9]


def test_results_come_in_the_order_of_their_completion(
    executor: PersistentExecutor, journal: Any, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    tasks = (joblib.delayed(calls.gated)(journal.path, gate, 0, n) for n in range(10))
    results = parallel(executor, tasks, return_as="generator_unordered")
    assert sorted(next(results) for _ in range(9)) == list(range(1, 10))
    gate.touch()
    assert list(results) == [0]


def test_a_registered_backend_is_used_by_code_that_names_none(executor: PersistentExecutor) -> None:
    joblib.register_parallel_backend("executor", ExecutorBackend)
    with joblib.parallel_config("executor", executor=executor, n_jobs=2):
        assert joblib.Parallel()(squares(20)) == [n * n for n in range(20)]
    assert len(executor.futures(Status.COMPLETED)) == 20


def test_a_parallel_that_is_kept_is_used_again(executor: PersistentExecutor) -> None:
    with joblib.Parallel(n_jobs=2, backend=ExecutorBackend(executor), timeout=WAIT_S) as kept:
        assert [kept(squares(count)) for count in (3, 0, 30)] == [[n * n for n in range(count)] for count in (3, 0, 30)]


def test_a_parallel_within_a_call_works(executor: PersistentExecutor) -> None:
    tasks = (joblib.delayed(nested)(count) for count in range(4))
    assert parallel(executor, tasks) == [0, 0, 1, 5]


def nested(count: int) -> int:
    return sum(joblib.Parallel(n_jobs=2)(squares(count)))


def test_the_calls_exception_is_raised_with_the_workers_traceback(executor: PersistentExecutor) -> None:
    with pytest.raises(ValueError, match=r"(?m)^item 30$") as caught:
        parallel(executor, (joblib.delayed(calls.fail_at)(30, n) for n in range(100)))
    assert "in fail_at" in str(caught.value.__cause__)


def test_a_failure_cancels_what_has_not_started(make_executor: Any, journal: Any, tmp_path: Path) -> None:
    executor, gate = make_executor(2), tmp_path / "gate"
    executor.submit(calls.noted_wait, journal.path, "busy", gate)  # one of two workers
    tasks = [joblib.delayed(calls.raise_value_error)("fails")]
    tasks += [joblib.delayed(calls.noted_wait)(journal.path, "waiting", gate) for _ in range(9)]
    journal.wait_for(1)
    with pytest.raises(ValueError, match=r"(?m)^fails$"):
        parallel(executor, iter(tasks), n_jobs=10, pre_dispatch="all")
    gate.touch()
    assert executor.submit(calls.echo, "later").result(WAIT_S) == "later"
    assert len(executor.futures(Status.CANCELLED)) >= 8
    assert journal.lines().count("waiting") <= 1


def test_a_timeout_is_raised(executor: PersistentExecutor, tmp_path: Path) -> None:
    with pytest.raises(multiprocessing.TimeoutError):
        parallel(executor, iter([joblib.delayed(calls.wait_for)(tmp_path / "gate")] * 2), timeout=0.05)


def test_a_worker_that_dies_costs_no_result(executor: PersistentExecutor, tmp_path: Path) -> None:
    tasks = (joblib.delayed(calls.die_if_missing)(tmp_path / str(n), "kill") for n in range(3))
    assert parallel(executor, tasks) == ["lived"] * 3


SCRIPT = """
import logging, os, signal, sys
logging.basicConfig()
import joblib
from omniq_executor import PersistentExecutor
sys.path.insert(0, {folder!r})
from joblib_backend import ExecutorBackend

def noted(n):
    fd = os.open("journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{{n}}\\n".encode())
    os.close(fd)
    return n * n

with PersistentExecutor(2) as executor:
    parallel = joblib.Parallel(2, backend=ExecutorBackend(executor), pre_dispatch="all", return_as="generator")
    results = parallel(joblib.delayed(noted)(n) for n in range(60))
    if "die" in sys.argv:
        print([next(results) for _ in range(20)], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    print(list(results) == [n * n for n in range(60)])
"""


@pytest.mark.slow
def test_a_killed_job_repeats_no_finished_call(script: Any) -> None:
    script.write(SCRIPT.format(folder=str(Path(__file__).parent)))
    killed = script.run("die")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert killed.stdout == f"{[n * n for n in range(20)]}\n"
    done = script.run()
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
    assert "of 60 calls are done" in done.stderr
    lines = script.journal.lines()
    assert set(lines) == {str(n) for n in range(60)}
    assert all(lines.count(str(n)) == 1 for n in range(20))


# --- Functions of joblib's own as calls --------------------------------------------------------------------------


def test_a_remembered_function_runs_once(executor: PersistentExecutor, journal: Any, tmp_path: Path) -> None:
    cached = joblib.Memory(tmp_path / "memory", verbose=0).cache(calls.noted)
    assert [executor.submit(cached, journal.path, "once").result(WAIT_S) for _ in range(3)] == ["once"] * 3
    assert list(executor.map(cached, [journal.path] * 3, ["once", "twice", "once"], timeout=WAIT_S)) == [
        "once",
        "twice",
        "once",
    ]
    assert journal.lines() == ["once", "twice"]
    assert cached(journal.path, "once") == "once"  # found here as well
    assert journal.lines() == ["once", "twice"]


def test_a_hash_is_the_same_in_a_worker(executor: PersistentExecutor) -> None:
    values = [1, "text", (1, 2.5), {"a": [1, {2, 3}], "b": None}, b"\0" * 1000]
    assert list(executor.map(joblib.hash, values, timeout=WAIT_S)) == [joblib.hash(value) for value in values]
