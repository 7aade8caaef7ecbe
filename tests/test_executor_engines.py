"""PersistentExecutor(engine=...) on Executors of Python's own: what they run is kept, charged and refused as here."""

import multiprocessing
import os
import pickle
import signal
import sys
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import calls
import psutil
import pytest
from engine_contract import Bench, killable_script, values_of

from omniq_executor import (
    EngineClosed,
    EngineError,
    EngineMismatch,
    EngineUnreachable,
    PersistentExecutor,
    PoolBroken,
    Status,
    TaskTimeout,
    WorkerCrashed,
)
from omniq_executor.engines import adapter, asking, given, remote, renewing
from omniq_executor.engines.base import RETURNED
from omniq_executor.engines.local.start_method import default_context
from omniq_executor.engines.local.worker import NEVER
from omniq_executor.slots import RESUME, STARTED

WAIT_S = 30.0


def pool(workers: int = 2) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, default_context())


@pytest.fixture
def on_pools(make_executor: Any) -> PersistentExecutor:
    """On pools of processes, made anew when they break."""
    executor: PersistentExecutor = make_executor(None, engine=pool)
    return executor


# --- Results ---


def test_calls_of_all_kinds_have_their_results(on_pools: PersistentExecutor) -> None:
    offset = 3
    assert on_pools.submit(lambda n: n + offset, 4).result(WAIT_S) == 7
    assert on_pools.submit(calls.add, 1, 2, also=3).result(WAIT_S) == 6
    assert list(on_pools.map(calls.square, range(3000), timeout=WAIT_S)) == [n * n for n in range(3000)]
    assert isinstance(on_pools.submit(calls.raise_chained).exception(WAIT_S), ValueError)
    with pytest.raises(TypeError, match="JSON nor pickled"):
        raise TypeError(str(on_pools.submit(calls.make_lock).exception(WAIT_S)))
    assert on_pools.store.counts()[on_pools.queue][Status.COMPLETED] == 3002


def test_threads_of_this_process_can_run_them(make_executor: Any) -> None:
    with ThreadPoolExecutor(2) as threads:
        executor = make_executor(None, engine=threads)
        assert {*executor.map(calls.pid, range(100), timeout=WAIT_S)} == {os.getpid()}
        main = sys.modules["__main__"]
        executor.shutdown()
        assert sys.modules["__main__"] is main
        assert threads.submit(calls.square, 3).result(WAIT_S) == 9  # it is whose it was


def test_who_tells_that_a_call_is_done_waits_for_nobody(make_executor: Any, journal: Any, gate: Path) -> None:
    with ThreadPoolExecutor(1) as threads:
        executor = make_executor(None, engine=threads)
        future = executor.submit(calls.noted_wait, journal.path, 1, gate)
        journal.wait_for(1)
        with executor._dispatcher.driver:  # as while a turn is taken
            gate.touch()
            assert threads.submit(calls.square, 2).result(WAIT_S) == 4  # in the thread that has told
        assert future.result(WAIT_S) == 1


def test_a_chunk_that_takes_longer_than_was_thought_gives_the_rest_of_its_calls_back(
    tmp_path: Path, journal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(given, "CHUNK_S", 0.01)
    monkeypatch.setattr(given, "MOST_CHUNK_S", 0.01)
    with ThreadPoolExecutor(2) as threads:
        bench = Bench(adapter.ExecutorEngine(threads), tmp_path / "slots")
        bench.engine.give(bench.chunk(calls.noted_slowly, *((journal.path, n) for n in range(30))))
        bench.take_reports(lambda: bool(bench.reports))
        assert 1 <= len(journal.lines()) < 30
        assert RETURNED in {report.kind for report in bench.reports}
        assert values_of(bench.run()) == {n + 1: n for n in range(30)}
        assert len(journal.lines()) == 30
        bench.engine.close()


# --- Faults ---


@pytest.mark.parametrize("retries", [0, 2])
def test_a_call_that_kills_its_worker_is_charged_alone(make_executor: Any, journal: Any, retries: int) -> None:
    executor = make_executor(None, engine=pool, crash_retries=retries)
    futures = [executor.submit(calls.die_on, journal.path, 37, n) for n in range(60)]
    errors = {n: error for n, future in enumerate(futures) if (error := future.exception(WAIT_S)) is not None}
    assert [*errors] == [37]
    assert isinstance(errors[37], WorkerCrashed)
    assert journal.lines().count("37") == retries + 1
    assert futures[37].task().attempts == retries + 1
    assert {future.task().crashes for n, future in enumerate(futures) if n != 37} == {0}


def test_a_worker_that_is_on_its_way_out_does_not_count_as_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end is heard of before it is a zombie. So a call that had killed it was run once more than allowed."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    monkeypatch.setattr(psutil.Process, "status", lambda _: psutil.STATUS_RUNNING)
    try:
        assert given._is_alive(os.getpid())
        assert not given._is_alive(pid)
    finally:
        os.waitpid(pid, 0)


def test_a_worker_that_takes_a_chunk_after_the_pool_has_broken_is_no_suspect() -> None:
    """It was, so the call that had broken the pool was not charged for it, and was run once more than allowed."""
    row = memoryview(bytearray(8 * 8)).cast("q")
    chunk: Any = SimpleNamespace(ids=range(7, 9))
    it = given.Given(1, chunk, True, 0, row)
    it.note_survivor()
    row[STARTED], row[RESUME] = 0, NEVER + 2**22 + 1  # of a process that there is not
    assert it.place == 0
    assert it.survived
    it.note_survivor()
    assert not it.survived


def run_apart(fn: Any, *args: Any) -> Any:
    """Run a call in a process of its own. Raises RuntimeError if that dies."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process: Any = default_context().Process(target=send, args=(theirs, fn, *args))  # type: ignore[attr-defined]
    with ours:
        process.start()
        theirs.close()
        try:
            return ours.recv()
        except EOFError:
            raise RuntimeError("a worker has died") from None
        finally:
            process.join()


def send(there: Any, fn: Any, *args: Any) -> None:
    there.send(fn(*args))


class FailingAlone(ThreadPoolExecutor):
    """A process for each chunk, whose death fails the future of that one alone, as on a cluster."""

    def __init__(self) -> None:
        super().__init__(2)

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> "Future[Any]":
        return super().submit(run_apart, fn, *args)


@pytest.mark.parametrize("make", [pool, FailingAlone])
def test_where_workers_are_elsewhere_a_deadly_call_is_found_by_giving_calls_again(
    make_executor: Any, journal: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (adapter, asking):
        monkeypatch.setattr(module, "machine", lambda: "elsewhere")  # so that they note nothing
    executor = make_executor(None, engine=make, crash_retries=1)
    list(executor.map(calls.square, range(4), timeout=WAIT_S))  # so that several go together
    futures = [executor.submit(calls.die_on, journal.path, 3, n) for n in range(8)]
    errors = [n for n, future in enumerate(futures) if future.exception(WAIT_S) is not None]
    assert errors == [3]
    assert futures[3].task().attempts == 2
    # With others in its chunk it is not charged, nor the first time that all of a pool is divided.
    assert 2 <= journal.lines().count("3") <= (3 if make is FailingAlone else 6)
    assert {future.task().crashes for n, future in enumerate(futures) if n != 3} == {0}


def test_neighbours_in_both_workers_survive_a_death_uncharged(
    on_pools: PersistentExecutor, journal: Any, gate: Path
) -> None:
    beside = on_pools.submit(calls.noted_wait, journal.path, "beside", gate)
    journal.wait_for(1)
    deadly = on_pools.submit(calls.die_if_missing, gate.with_name("died"), "kill")
    assert deadly.result(WAIT_S) == "lived"  # though the other one has not ended
    gate.touch()
    assert beside.result(WAIT_S) == "beside"
    assert beside.task().crashes == 0


class Forsaking(ThreadPoolExecutor):
    """It gives calls up that go on, when a test says so, as a cluster that has lost sight of a worker."""

    def __init__(self) -> None:
        super().__init__(4)
        self.lost: list[Future[Any]] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> "Future[Any]":
        theirs = super().submit(fn, *args, **kwargs)
        if fn is remote.who:
            return theirs
        self.lost.append(Future())
        return self.lost[-1]


def test_what_a_worker_notes_that_was_given_up_is_taken_for_nobody_elses(
    make_executor: Any, journal: Any, gate: Path
) -> None:
    with Forsaking() as threads:
        executor = make_executor(None, engine=threads, crash_retries=1)
        future = executor.submit(calls.noted_wait, journal.path, 1, gate)
        for turn in range(2):
            journal.wait_for(turn + 1)
            threads.lost[turn].set_exception(RuntimeError("it is lost"))
        assert isinstance(future.exception(WAIT_S), WorkerCrashed)
        engine = executor._dispatcher.engine
        assert len(engine._lanes) == engine._rows.count - 2  # both calls are still there
        gate.touch()


def test_after_a_fork_the_child_leaves_everything_to_its_parent(on_pools: PersistentExecutor) -> None:
    assert on_pools.submit(calls.square, 2).result(WAIT_S) == 4
    child = os.fork()
    if not child:
        try:
            on_pools.submit(calls.square, 3)
        except PoolBroken:
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert on_pools.submit(calls.square, 4).result(WAIT_S) == 16


def test_a_pool_that_is_given_and_breaks_tells_all_futures(make_executor: Any, open_store: Any, gate: Path) -> None:
    with pool() as mine:
        executor = make_executor(None, engine=mine)
        waiting = executor.submit(calls.wait_for, gate)
        deadly = executor.submit(calls.kill_self)
        for future in (waiting, deadly):
            with pytest.raises(PoolBroken, match="A function that makes it, as engine="):
                future.result(WAIT_S)
        with pytest.raises(PoolBroken):
            executor.submit(calls.square, 2)
        gate.touch()
    executor.shutdown()
    assert {*open_store(executor.store.path).counts()[executor.queue]} == {Status.PENDING}


class Cancelling(Executor):
    """One whose futures are cancelled whatever their calls do, as by a client that has lost its cluster."""

    _max_workers = 2

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(2)
        self.futures: list[Future[Any]] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        self.futures.append(future)

        def tell(done: "Future[Any]") -> None:
            if not future.cancelled():
                future.set_result(done.result())

        self._threads.submit(fn, *args, **kwargs).add_done_callback(tell)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._threads.shutdown(wait)


def test_calls_of_an_executor_that_was_cut_off_run_on_another_one(make_executor: Any, journal: Any, gate: Path) -> None:
    made: list[Cancelling] = []

    def make() -> Executor:
        made.append(Cancelling())
        return made[-1]

    executor = make_executor(None, engine=make)
    futures = [executor.submit(calls.noted_wait, journal.path, n, gate) for n in range(2)]
    journal.wait_for(2)
    for future in made[0].futures:
        future.cancel()
    journal.wait_for(4)
    gate.touch()
    assert [future.result(WAIT_S) for future in futures] == [0, 1]
    assert len(made) == 2


def test_an_executor_that_stays_away_ends_all_futures(make_executor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renewing, "AWAY_S", 0.0)
    made: list[ProcessPoolExecutor] = []

    def once() -> Executor:
        if made:
            raise OSError("there is no other")
        made.append(pool())
        return made[0]

    executor = make_executor(None, engine=once)
    with pytest.raises(PoolBroken, match="OSError: there is no other"):
        executor.submit(calls.kill_self).result(WAIT_S)


# --- Endings ---


def test_a_call_that_takes_too_long_fails_and_its_slot_is_lost_until_it_ends(
    on_pools: PersistentExecutor, journal: Any, gate: Path
) -> None:
    late = on_pools.options(timeout=0.1).submit(calls.noted_wait, journal.path, "late", gate)
    assert isinstance(late.exception(WAIT_S), TaskTimeout)
    assert list(on_pools.map(calls.square, range(10), timeout=WAIT_S)) == [n * n for n in range(10)]
    assert on_pools._dispatcher.engine.idle() == 1
    gate.touch()
    assert late.task().status is Status.FAILED


def test_a_map_that_is_dropped_leaves_no_call_to_run(
    on_pools: PersistentExecutor, open_store: Any, journal: Any, gate: Path
) -> None:
    iterator = on_pools.map(calls.noted_wait, [journal.path] * 50, range(50), [gate] * 50)
    journal.wait_for(2)
    del iterator
    gate.touch()
    on_pools.shutdown()
    counts = open_store(on_pools.store.path).counts()[on_pools.queue]
    assert counts[Status.CANCELLED] >= 40
    assert not {Status.PENDING, Status.RUNNING} & {*counts}


def test_stacks_say_that_they_are_not_told(on_pools: PersistentExecutor, journal: Any, gate: Path) -> None:
    future = on_pools.submit(calls.noted_wait, journal.path, 1, gate)
    journal.wait_for(1)
    assert "does not tell" in on_pools.stacks()[future.task_id]
    gate.touch()
    future.result(WAIT_S)


@pytest.mark.slow
def test_a_script_that_is_killed_goes_on_where_it_was(script: Any) -> None:
    script.write(killable_script("lambda: ProcessPoolExecutor(2)", 400))
    killed = script.run("100")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = script.run("-1")
    assert (done.returncode, done.stdout) == (0, f"{sum(n * n for n in range(400))}\n"), done.stderr
    lines = script.journal.lines()
    assert {*map(int, lines)} == {*range(400)}
    assert all(lines.count(str(n)) == 1 for n in range(100))  # what was handed out is not run again


UNCLOSED = """
import os
import time
from concurrent.futures import {pool}
from omniq_executor import PersistentExecutor

def work(n):
    time.sleep(0.01)
    os.write(1, f"{{n}}\\n".encode())  # whole, whoever else writes

if __name__ == "__main__":
    executor = PersistentExecutor(engine={pool}(2))
    futures = [executor.submit(work, n) for n in range(50)]
"""


@pytest.mark.parametrize("kind", ["ProcessPoolExecutor", "ThreadPoolExecutor"])
def test_a_script_that_closes_nothing_has_its_calls_done_at_its_end(script: Any, kind: str) -> None:
    script.write(UNCLOSED.format(pool=kind))
    done = script.run()
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(map(int, done.stdout.split())) == [*range(50)]


def test_a_cluster_whose_client_is_not_installed_is_refused(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "omniq_executor.engines.dask", raising=False)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(EngineError, match=r"pip install 'omniq-executor\[dask\]'"):
        PersistentExecutor(store=store, engine="dask://host:8786")
    assert nothing_in(store)


# --- What is refused ---


def nothing_in(path: Path) -> bool:
    return not path.exists()


def test_an_executor_that_is_shut_down_is_refused(store: Path) -> None:
    mine = ThreadPoolExecutor(1)
    mine.shutdown()
    with pytest.raises(EngineClosed, match=r"takes no calls.*Give one that is open"):
        PersistentExecutor(store=store, engine=mine)
    assert nothing_in(store)


def test_a_broken_pool_is_refused(store: Path) -> None:
    with pool(1) as mine:
        with pytest.raises(BrokenProcessPool):
            mine.submit(calls.kill_self).result(WAIT_S)
        with pytest.raises(EngineClosed):
            PersistentExecutor(store=store, engine=mine)
    assert nothing_in(store)


class Silent(ThreadPoolExecutor):
    """It takes everything and runs nothing."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> "Future[Any]":
        return Future()


def test_one_whose_workers_do_not_answer_is_refused(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "ANSWER_S", 0.01)
    with pytest.raises(EngineUnreachable, match="start workers"):
        PersistentExecutor(store=store, engine=Silent(1))
    assert nothing_in(store)


class Interrupted(Silent):
    """Likewise, and the user loses patience."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> "Future[Any]":
        os.kill(os.getpid(), signal.SIGINT)
        return Future()


def test_ctrl_c_ends_the_wait_for_workers(store: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        PersistentExecutor(store=store, engine=Interrupted(1))
    assert nothing_in(store)


class Elsewhere(ThreadPoolExecutor):
    """Whose workers are something else."""

    answer: Any = ("Python 2.7 with omniq_executor 0.0", "host boot", 7)

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        if isinstance(self.answer, Exception):
            future.set_exception(self.answer)
        else:
            future.set_result(self.answer)
        return future


def test_another_python_is_refused(store: Path) -> None:
    with pytest.raises(EngineMismatch, match=r"process 7 on host, .* is Python 2\.7 .*install the one's version"):
        PersistentExecutor(store=store, engine=Elsewhere(1))
    assert nothing_in(store)


def test_workers_without_the_package_are_refused(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Elsewhere, "answer", ModuleNotFoundError("No module named 'omniq_executor'"))
    with pytest.raises(EngineMismatch, match="install omniq_executor in the environment of"):
        PersistentExecutor(store=store, engine=Elsewhere(1))
    assert nothing_in(store)


class Mixed(ThreadPoolExecutor):
    """With one worker that is another Python, which does not answer the first question."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> "Future[Any]":
        return super().submit(fn if fn is remote.who else refuse, *args, **kwargs)


def refuse(message: bytes) -> bytes:
    _theirs, *rest = pickle.loads(message)
    return remote.omniq_chunk(pickle.dumps(("Python 2.7", *rest)))


def test_a_worker_that_is_found_to_be_another_python_later_is_told_to_all(make_executor: Any) -> None:
    with Mixed(1) as threads, pytest.raises(PoolBroken, match=r"the submitter is Python 2\.7"):
        make_executor(None, engine=threads).submit(calls.square, 2).result(WAIT_S)


def test_an_executor_that_tells_no_slots_needs_a_number(
    make_executor: Any, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cancelling, "_max_workers", None)
    with pytest.raises(ValueError, match="give that number as max_workers"):
        PersistentExecutor(store=store, engine=Cancelling)
    assert nothing_in(store)
    executor = make_executor(3, engine=Cancelling)
    assert executor.submit(calls.square, 3).result(WAIT_S) == 9
    assert executor._max_workers == 3


@pytest.mark.parametrize(
    "parameter",
    [{"mp_context": default_context()}, {"initializer": print}, {"max_tasks_per_child": 1}, {"capture_output": True}],
)
def test_what_describes_processes_is_refused(store: Path, parameter: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="has processes that you have started"):
        PersistentExecutor(store=store, engine=pool, **parameter)
    assert nothing_in(store)


@pytest.mark.parametrize("engine", ["mesos://host", "dask://"])
def test_an_address_of_nothing_known_is_refused(store: Path, engine: str) -> None:
    with pytest.raises(ValueError, match="dask://host:port"):
        PersistentExecutor(store=store, engine=engine)


def test_what_is_no_engine_is_refused(store: Path) -> None:
    with pytest.raises(TypeError, match="an Executor or a function that makes one"):
        PersistentExecutor(store=store, engine=7)  # type: ignore[arg-type]


def test_what_makes_no_executor_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"made None, which is no concurrent\.futures\.Executor"):
        PersistentExecutor(engine=lambda: None, store=tmp_path / "store.db")  # type: ignore[arg-type]
    assert not (tmp_path / "store.db").exists()
