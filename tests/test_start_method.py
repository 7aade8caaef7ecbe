"""What of multiprocessing may be given to workers where no context is named, and what programs read of a pool."""

import functools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import calls
import pytest

from omniq_executor import PersistentExecutor, PoolBroken
from omniq_executor.engines.local import launch, start_method

WAIT_S = 30.0
MakeExecutor = Callable[..., PersistentExecutor]

pytestmark = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="without fork there is nothing that only it shares"
)
FORK = multiprocessing.get_context("fork") if "fork" in multiprocessing.get_all_start_methods() else multiprocessing

KINDS: dict[str, Callable[[Any], Any]] = {
    "Lock": lambda context: context.Lock(),
    "RLock": lambda context: context.RLock(),
    "Semaphore": lambda context: context.Semaphore(1),
    "BoundedSemaphore": lambda context: context.BoundedSemaphore(1),
    "Condition": lambda context: context.Condition(),
    "Event": lambda context: context.Event(),
    "Barrier": lambda context: context.Barrier(2),
    "Queue": lambda context: context.Queue(),
    "JoinableQueue": lambda context: context.JoinableQueue(),
    "SimpleQueue": lambda context: context.SimpleQueue(),
    "Value": lambda context: context.Value("i", 1),
    "Array": lambda context: context.Array("i", 3),
}


@dataclass
class Holder:
    held: Any


@pytest.fixture(autouse=True)
def _said_by_nobody() -> Iterator[None]:
    start_method._say_that_it_forks.cache_clear()
    yield
    start_method._say_that_it_forks.cache_clear()


def method_for(*initargs: Any, initializer: Any = calls.remember) -> str:
    return str(start_method.context_for(initializer, initargs).get_start_method())


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_fork_context_made_needs_fork(kind: str) -> None:
    made = KINDS[kind](FORK)
    for held in (made, [made], {"key": (1, made)}, Holder(Holder([made])), [Holder({made})]):
        assert method_for(0, held) == "fork"
    assert method_for(initializer=functools.partial(calls.remember, made)) == "fork"
    assert method_for(initializer=Holder(made).__eq__) == "fork"


@pytest.mark.parametrize("kind", KINDS)
def test_what_another_context_made_does_not(kind: str) -> None:
    default = start_method.default_context()
    assert method_for(KINDS[kind](default), KINDS[kind](multiprocessing.get_context("spawn"))) != "fork"


def test_other_arguments_do_not_and_are_looked_at_in_no_time() -> None:
    ring: list[Any] = []
    ring.append(ring)
    deep: Any = ring
    for _ in range(5000):
        deep = [deep, Holder(deep)]
    began = time.monotonic()
    large = [list(range(100_000))] * 3 + [{n: Holder(n) for n in range(100_000)}]
    assert method_for(deep, large, b"x" * 10_000_000, multiprocessing, Holder, None, 1.5, object()) != "fork"
    assert time.monotonic() - began < 5


def test_what_stands_behind_many_others_is_found() -> None:
    assert method_for([Holder(n) for n in range(20_000)], FORK.Lock()) == "fork"


def test_a_class_that_makes_up_attributes_is_not_asked() -> None:
    class Strange:
        __slots__ = ()

        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(name)

        @property
        def __class__(self) -> Any:
            raise RuntimeError("asked for its class")

    assert method_for(Strange()) != "fork"


# --- In an executor ---


def share(*shared: Any) -> None:
    global _shared
    _shared = shared


def use(n: int) -> bool:
    lock, event, queue, value = _shared
    assert event.wait(WAIT_S)
    with lock, value.get_lock():
        value.value += n
    queue.put(n)
    return bool(lock.acquire(timeout=0.0)) and lock.release() is None


def test_locks_events_queues_and_values_are_shared_by_default(
    make_executor: MakeExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "omniq_executor")  # whatever a command line in this process has set
    shared = FORK.Lock(), FORK.Event(), FORK.Queue(), FORK.Value("i", 0)
    lock, event, queue, value = shared
    executor = make_executor(2, initializer=share, initargs=iter(shared))
    results = executor.map(use, range(20), timeout=WAIT_S)
    event.set()
    assert len(list(results)) == 20
    assert value.value == sum(range(20))
    assert sorted(queue.get(timeout=WAIT_S) for _ in range(20)) == list(range(20))
    with lock:
        assert executor.submit(try_lock).result(WAIT_S) is False
    assert executor.submit(try_lock).result(WAIT_S) is True
    assert executor._mp_context.get_start_method() == "fork"
    make_executor(1, initializer=share, initargs=(lock,))
    (said,) = [record for record in caplog.records if record.name == "omniq_executor"]
    assert "the workers are forked" in said.getMessage()


def try_lock() -> bool:
    return bool(_shared[0].acquire(timeout=0.0)) and _shared[0].release() is None


def test_nothing_is_said_where_the_default_will_do(make_executor: MakeExecutor, caplog: Any) -> None:
    executor = make_executor(1, initializer=share, initargs=(start_method.default_context().Lock(),))
    assert executor.submit(try_lock).result(WAIT_S) is True
    assert executor._mp_context.get_start_method() == start_method.default_context().get_start_method()
    assert caplog.records == []


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_context_that_was_named_is_taken_and_its_error_told(make_executor: MakeExecutor, method: str) -> None:
    context = multiprocessing.get_context(method)
    executor = make_executor(1, context, share, (FORK.Lock(),))
    assert executor._mp_context is context
    with pytest.raises(PoolBroken, match="SemLock created in a fork context"):
        executor.submit(calls.pid).result(WAIT_S)


# --- What programs read of a process pool ---


def test_the_processes_are_there_by_pid(make_executor: MakeExecutor, context: Any, wait_until: Any) -> None:
    executor = make_executor(2, context)
    assert executor._processes == {}
    pid = executor.submit(calls.pid).result(WAIT_S)
    process = executor._processes[pid]
    assert (process.pid, process.exitcode, process.is_alive()) == (pid, None, True)
    process.join(0.01)
    assert process.is_alive()
    process.terminate()
    process.join(WAIT_S)
    assert (process.is_alive(), process.exitcode) == (False, -signal.SIGTERM)
    other = executor.submit(calls.pid).result(WAIT_S)
    process = executor._processes[other]
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    executor.submit(calls.pid).result(WAIT_S)
    (*_, last) = executor._processes.values()
    executor.shutdown()
    last.join()
    assert (last.exitcode, executor._processes) == (0, {})


def test_a_process_is_there_though_the_fork_server_tells_of_it_after_its_first_result(
    make_executor: MakeExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late:
        size = launch.ForkServerLauncher._MESSAGE.size
        unpack = launch.ForkServerLauncher._MESSAGE.unpack

        def pack(self, *fields: int, kept: Any = launch.ForkServerLauncher._MESSAGE) -> bytes:
            time.sleep(0.3)  # in the fork server
            told: bytes = kept.pack(*fields)
            return told

    monkeypatch.setattr(launch.ForkServerLauncher, "_MESSAGE", Late())
    executor = make_executor(2, multiprocessing.get_context("fork"))
    pid = executor.submit(calls.pid).result(WAIT_S)
    assert pid in executor._processes
    assert executor.submit(calls.square, 3).result(WAIT_S) == 9


def test_a_call_is_ended_by_its_process(
    make_executor: MakeExecutor, context: Any, journal: Any, gate: Any, wait_until: Any
) -> None:
    """What programs do with a process pool whose calls take too long."""
    executor = make_executor(1, context, crash_retries=0)
    future = executor.submit(calls.noted_pid_wait, journal.path, gate)
    (pid,) = journal.wait_for(1)
    # With fork the id is told by the process that has forked it, maybe after the call has begun.
    (process,) = wait_until(lambda: list(executor._processes.values()))
    process.kill()
    assert str(process.pid) == pid
    with pytest.raises(BrokenProcessPool, match="SIGKILL"):
        future.result(WAIT_S)
    assert os.getpid() != executor.submit(calls.pid).result(WAIT_S)


@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="there is no forkserver")
def test_a_forkserver_that_was_killed_is_started_anew(script: Any) -> None:
    """A script ended by EOFError if the forkserver died just before a worker was to start."""
    script.write("""
import os, signal, threading
from multiprocessing import forkserver, get_context
from omniq_executor import PersistentExecutor
if __name__ == "__main__":
    for _ in range(3):
        with PersistentExecutor(1, get_context("forkserver")) as executor:
            assert executor.submit(abs, -1).result(30) == 1
            server = forkserver._forkserver._forkserver_pid
        os.kill(server, signal.SIGSTOP)
        threading.Timer(0.2, os.kill, (server, signal.SIGKILL)).start()  # while it is waited for
        with PersistentExecutor(1, get_context("forkserver")) as executor:
            assert executor.submit(abs, -2).result(30) == 2
    print("done")
""")
    done = script.run()
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
