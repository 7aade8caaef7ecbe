"""Engines of others: loky, dask.distributed, mpi4py and ray, as far as they are installed, by the contract of all.

A cluster of dask's is made of processes by a test that kills them, and is one of this process for the others.
"""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import calls
import pytest
from engine_contract import WAIT_S, RunsCallsInWorkers, killable_script

import omniq_executor
from omniq_executor import EngineClosed, EngineUnreachable, PersistentExecutor, Status, WorkerCrashed
from omniq_executor.engines.adapter import ExecutorEngine
from omniq_executor.engines.base import Engine
from omniq_executor.engines.opening import fitted

ROOTS = os.pathsep.join([str(Path(omniq_executor.__file__).parents[1]), str(Path(__file__).parents[1])])
ROUNDS = 50 if os.environ.get("OMNIQ_PROOF") else 1  # of kills


def needs(module: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not importlib.util.find_spec(module), reason=f"{module} is not installed")


class OnExecutor(RunsCallsInWorkers):
    ENDS = RECALLS = False

    def make(self) -> Engine:
        return ExecutorEngine(fitted(self.executor))

    def executor(self) -> Executor:
        raise NotImplementedError


@needs("loky")
@pytest.mark.filterwarnings("ignore")
class TestLoky(OnExecutor):
    def executor(self) -> Executor:
        import loky

        made: Executor = loky.ProcessPoolExecutor(2)
        return made


@pytest.fixture(scope="module")
def dask_client() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed", reason="distributed is in the extra `clients`")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@needs("distributed")
@pytest.mark.filterwarnings("ignore")
class TestDask(OnExecutor):
    @pytest.fixture(autouse=True)
    def _with_client(self, dask_client: Any) -> None:
        dask_client.wait_for_workers(2, timeout=WAIT_S)
        self._client = dask_client

    def executor(self) -> Executor:
        made: Executor = self._client.get_executor()
        return made


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    ray = pytest.importorskip("ray", reason="ray is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", ROOTS)
        patch.setenv("RAY_AUTH_MODE", "disabled")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
        yield
        ray.shutdown()


@needs("ray")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
class TestRay(OnExecutor):
    @pytest.fixture(autouse=True)
    def _with_cluster(self, ray_cluster: None) -> None:
        pass

    def executor(self) -> Executor:
        from omniq_executor.engines.ray import RayExecutor

        return RayExecutor()


# --- The promises, on a cluster of dask's ---

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


class Cluster:
    """A scheduler and workers of dask's, each a process of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = 0
        self.workers: list[subprocess.Popen[bytes]] = []
        self.start_scheduler()

    @property
    def address(self) -> str:
        return f"dask://127.0.0.1:{self._port}"

    def start_scheduler(self) -> None:
        found = self._folder / "scheduler.json"
        found.unlink(missing_ok=True)
        self.scheduler = self._start(
            "scheduler", "--port", str(self._port), "--no-dashboard", "--scheduler-file", str(found)
        )
        deadline = time.monotonic() + WAIT_S
        while not found.exists() or not found.read_text().strip():
            assert time.monotonic() < deadline
            assert self.scheduler.poll() is None
            time.sleep(0.01)
        self._port = int(json.loads(found.read_text())["address"].rpartition(":")[2])

    def start_worker(self) -> None:
        where = self.address.replace("dask://", "tcp://")
        self.workers.append(
            self._start("worker", where, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--death-timeout", "60")
        )

    def _start(self, *args: str) -> "subprocess.Popen[bytes]":
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "distributed.cli.dask_" + args[0], *args[1:]],
                cwd=self._folder, env={**os.environ, "PYTHONPATH": ROOTS},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def end(self) -> None:
        for process in [*self.workers, self.scheduler]:
            process.kill()
            process.wait(WAIT_S)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    pytest.importorskip("distributed", reason="distributed is in the extra `clients`")
    made = Cluster(tmp_path)
    for _ in range(2):
        made.start_worker()
    try:
        yield made
    finally:
        made.end()


def runs_of(journal: Any) -> dict[str, int]:
    lines = journal.lines()
    return {line: lines.count(line) for line in {*lines}}


@needs("distributed")
def test_a_deadly_call_runs_as_often_as_its_retries_say_and_not_as_often_as_the_scheduler_would(
    dask_client: Any, make_executor: Any, journal: Any
) -> None:
    assert dask_client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.allowed_failures) == 3
    executor = make_executor(None, engine=dask_client.get_executor(), crash_retries=1)
    alone = executor.submit(calls.die_on, journal.path, -1, -1)
    assert isinstance(alone.exception(WAIT_S), WorkerCrashed)
    together = [executor.submit(calls.die_on, journal.path, 7, n) for n in range(20)]
    errors = [n for n, future in enumerate(together) if future.exception(WAIT_S) is not None]
    assert errors == [7]
    runs = runs_of(journal)
    assert (runs["-1"], runs["7"]) == (2, 2)


@needs("distributed")
@pytest.mark.slow
def test_killed_workers_and_schedulers_lose_no_call(cluster: Cluster, make_executor: Any, journal: Any) -> None:
    executor = make_executor(None, engine=cluster.address, crash_retries=5)
    for turn in range(ROUNDS):
        numbers = range(turn * 100, turn * 100 + 100)
        results = executor.map(calls.noted_slowly, [journal.path] * 100, numbers)
        found = [next(results) for _ in range(10)]
        cluster.workers.pop(0).kill()
        cluster.start_worker()
        found += [next(results) for _ in range(10)]
        cluster.scheduler.kill()
        cluster.scheduler.wait(WAIT_S)
        for worker in cluster.workers:
            worker.kill()  # they would go on with what they have
        cluster.start_scheduler()
        cluster.workers.clear()
        for _ in range(2):
            cluster.start_worker()
        assert [*found, *results] == [*numbers]
    assert {*map(int, journal.lines())} == {*range(ROUNDS * 100)}
    assert executor.store.counts()[executor.queue] == {Status.COMPLETED: ROUNDS * 100}


@needs("distributed")
@pytest.mark.slow
def test_a_script_that_is_killed_goes_on_where_it_was(cluster: Cluster, script: Any) -> None:
    script.write(killable_script(repr(cluster.address), 2000))
    places = [round((turn + 1) * 1500 / ROUNDS) for turn in range(ROUNDS)]
    for place in places:
        killed = script.run(str(place))
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = script.run("-1")
    assert (done.returncode, done.stdout) == (0, f"{sum(n * n for n in range(2000))}\n"), done.stderr
    lines = script.journal.lines()
    assert {*map(int, lines)} == {*range(2000)}
    assert all(lines.count(str(n)) == 1 for n in range(places[0]))


@needs("distributed")
@pytest.mark.slow
def test_a_worker_works_a_queue_off_on_a_cluster(
    cluster: Cluster, start_worker: Any, store: Path, make_executor: Any
) -> None:
    executor = make_executor(None, engine="external", queue="work")
    futures = [executor.submit(calls.pid) for _ in range(20)]
    worker = start_worker("--engine", cluster.address, "--store", store)
    assert {future.result(WAIT_S) for future in futures} <= {process.pid for process in cluster.workers}
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


def test_an_address_where_nobody_listens_is_refused(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed", reason="distributed is in the extra `clients`")
    from omniq_executor.engines import dask

    monkeypatch.setattr(dask, "CONNECT_S", 0.5)
    with pytest.raises(EngineUnreachable, match=r"no dask scheduler answers at tcp://127\.0\.0\.1:9: start one"):
        PersistentExecutor(store=store, engine="dask://127.0.0.1:9")
    assert not store.exists()


@needs("distributed")
def test_an_executor_of_a_client_that_was_shut_down_is_refused(dask_client: Any, store: Path) -> None:
    given = dask_client.get_executor()
    given.shutdown()
    with pytest.raises(EngineClosed, match="give one that is open"):
        PersistentExecutor(store=store, engine=given)
    assert not store.exists()


MPI = """
import sys
from mpi4py.futures import MPIPoolExecutor
from omniq_executor import PersistentExecutor

def work(n):
    return n * n

if __name__ == "__main__":
    with MPIPoolExecutor() as pool, PersistentExecutor(engine=pool) as executor:
        print(sum(executor.map(work, range(500))), executor.submit(work, 3).result())
"""


@needs("mpi4py")
@pytest.mark.skipif(not shutil.which("mpiexec"), reason="no MPI is installed: apt-get install openmpi-bin")
@pytest.mark.slow
def test_mpi_runs_calls(script: Any, tmp_path: Path) -> None:
    script.write(MPI)
    env = {**os.environ, "PYTHONPATH": ROOTS}
    env |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    command = ["mpiexec", "--oversubscribe", "-n", "3", sys.executable, "-m", "mpi4py.futures", "script.py"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, f"{sum(n * n for n in range(500))} 9\n"), done.stderr
