"""The executor as a drop-in for ProcessPoolExecutor: what is submitted runs, once, and everyone hears of it."""

import asyncio
import concurrent.futures
import gc
import logging
import signal
import sys
import threading
from collections import Counter
from concurrent.futures import CancelledError, as_completed, wait
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import calls
import pytest

from omniq_executor import DurableFuture, PersistentExecutor, PoolBroken, Status, TaskNotFound

pytestmark = pytest.mark.each_store

WAIT_S = 30.0


def statuses(store: Any) -> Counter[str]:
    """How many tasks of each state there are in all queues."""
    counts: Counter[str] = Counter()
    for of_queue in store.counts().values():
        counts.update({status.name: number for status, number in of_queue.items()})
    return counts


# --- Calls and results -------------------------------------------------------------------------------------------


def test_calls_run_in_other_processes_and_their_results_come_back(context: BaseContext, make_executor: Any) -> None:
    executor = make_executor(2, context)
    futures = [executor.submit(calls.square, n) for n in range(50)]
    assert [future.result(WAIT_S) for future in futures] == [n * n for n in range(50)]
    assert executor.submit(calls.add, 1, 2, also=3).result(WAIT_S) == 6
    assert list(executor.map(calls.square, range(50), timeout=WAIT_S)) == [n * n for n in range(50)]
    assert executor.submit(calls.pid).result(WAIT_S) not in (executor.submit(calls.square, 1).result(WAIT_S), 0)
    with pytest.raises(ValueError, match="as it should"):
        executor.submit(calls.raise_value_error, "as it should").result(WAIT_S)


def test_futures_are_futures_of_the_standard_library(executor: PersistentExecutor) -> None:
    future = executor.submit(calls.square, 3)
    assert isinstance(future, concurrent.futures.Future)
    assert isinstance(future, DurableFuture)
    assert future.exception(WAIT_S) is None
    assert future.done()
    assert not future.cancelled()


def test_keyword_names_of_the_executor_itself_can_be_passed_to_calls(executor: PersistentExecutor) -> None:
    assert executor.submit(dict, fn=1, self=2, key=3).result(WAIT_S) == {"fn": 1, "self": 2, "key": 3}


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -1,
        2**70,
        1.5,
        float("inf"),
        "text",
        "\ud800",
        b"bytes",
        (1, 2),
        [1, [2]],
        {"a": 1},
        {1: "a"},
        {1},
    ],
    ids=repr,
)
def test_values_come_back_as_they_were(executor: PersistentExecutor, value: Any) -> None:
    result = executor.submit(calls.echo, value).result(WAIT_S)
    assert (type(result), result) == (type(value), value)
    assert list(executor.map(calls.echo, [value, value], timeout=WAIT_S)) == [value, value]


def test_a_shared_part_of_an_argument_stays_shared(executor: PersistentExecutor) -> None:
    part = [1]
    first, second = executor.submit(calls.echo, [part, part]).result(WAIT_S)
    assert first is second


def test_lambdas_closures_and_local_classes_can_be_called(context: BaseContext, make_executor: Any) -> None:
    factor = 7

    def times(n: int) -> int:
        return n * factor

    executor = make_executor(1, context)
    assert executor.submit(lambda: "from a lambda").result(WAIT_S) == "from a lambda"
    assert list(executor.map(times, range(5), timeout=WAIT_S)) == [0, 7, 14, 21, 28]


def test_a_closure_that_changed_between_two_calls_is_called_as_it_is_then(executor: PersistentExecutor) -> None:
    value = 1

    def current() -> int:
        return value

    first = executor.submit(current)
    value = 2
    assert (first.result(WAIT_S), executor.submit(current).result(WAIT_S)) == (1, 2)


# --- Waiting -----------------------------------------------------------------------------------------------------


def test_wait_and_as_completed_see_every_future(executor: PersistentExecutor) -> None:
    futures = [executor.submit(calls.square, n) for n in range(20)]
    assert sorted(future.result() for future in as_completed(futures, timeout=WAIT_S)) == [n * n for n in range(20)]
    done, not_done = wait(futures, timeout=WAIT_S)
    assert (len(done), len(not_done)) == (20, 0)


def test_wait_returns_at_the_first_end_and_at_the_first_exception(
    executor: PersistentExecutor, tmp_path: Path, journal: Any
) -> None:
    gate = tmp_path / "gate"
    held = executor.submit(calls.noted_wait, journal.path, "held", gate)
    quick = executor.submit(calls.square, 2)
    done, not_done = wait([held, quick], timeout=WAIT_S, return_when=concurrent.futures.FIRST_COMPLETED)
    assert (done, not_done) == ({quick}, {held})
    failing = executor.submit(calls.raise_value_error, "early")
    done, not_done = wait([held, failing], timeout=WAIT_S, return_when=concurrent.futures.FIRST_EXCEPTION)
    assert (done, not_done) == ({failing}, {held})
    gate.touch()
    assert held.result(WAIT_S) == "held"


def test_a_result_that_is_not_there_in_time_raises_timeout_and_comes_later(
    executor: PersistentExecutor, tmp_path: Path
) -> None:
    future = executor.submit(calls.wait_for, tmp_path / "gate")
    with pytest.raises(TimeoutError):
        future.result(timeout=0.05)
    with pytest.raises(TimeoutError):
        future.exception(timeout=0)
    with pytest.raises(TimeoutError):
        list(as_completed([future], timeout=0))
    (tmp_path / "gate").touch()
    assert future.result(WAIT_S) == "gate"


def test_callbacks_are_called_once_each_before_and_after_the_end(executor: PersistentExecutor) -> None:
    called: list[tuple[str, int]] = []
    last = threading.Event()
    future = executor.submit(calls.square, 4)
    future.add_done_callback(lambda f: called.append(("first", f.result())))
    future.add_done_callback(lambda f: (called.append(("second", f.result())), last.set()))
    assert last.wait(WAIT_S)
    future.add_done_callback(lambda f: called.append(("late", f.result())))
    assert called == [("first", 16), ("second", 16), ("late", 16)]


def test_a_callback_that_raises_harms_nobody(executor: PersistentExecutor, caplog: pytest.LogCaptureFixture) -> None:
    def fail(future: Any) -> None:
        raise RuntimeError("from the callback")

    after = threading.Event()
    with caplog.at_level(logging.ERROR, "concurrent.futures"):
        future = executor.submit(calls.square, 5)
        future.add_done_callback(fail)
        future.add_done_callback(lambda _: after.set())
        assert after.wait(WAIT_S)
    assert future.result(WAIT_S) == 25
    assert executor.submit(calls.square, 6).result(WAIT_S) == 36
    assert "exception calling callback" in caplog.text


def test_a_callback_can_submit_and_even_wait_for_its_call(executor: PersistentExecutor) -> None:
    results: list[int] = []
    all_done = threading.Event()

    def go_on(future: Any) -> None:
        results.append(future.result())
        if len(results) < 20:
            executor.submit(calls.square, len(results)).add_done_callback(go_on)
        else:
            results.append(executor.submit(calls.square, 100).result(WAIT_S))
            all_done.set()

    executor.submit(calls.square, 0).add_done_callback(go_on)
    assert all_done.wait(WAIT_S)
    assert results == [*(n * n for n in range(20)), 10000]


@pytest.mark.parametrize("waits_in_thread", [False, True])
def test_a_callback_can_submit_while_threads_wait(executor: PersistentExecutor, waits_in_thread: bool) -> None:
    later: concurrent.futures.Future[int] = concurrent.futures.Future()

    def chain(_: Any) -> None:
        executor.submit(calls.square, 9).add_done_callback(lambda f: later.set_result(f.result()))

    first = executor.submit(calls.square, 8)
    first.add_done_callback(chain)
    if waits_in_thread:
        thread = threading.Thread(target=first.result, args=(WAIT_S,))
        thread.start()
        thread.join(WAIT_S)
        assert not thread.is_alive()
    assert first.result(WAIT_S) == 64
    assert later.result(WAIT_S) == 81


def test_many_threads_can_wait_for_one_result(executor: PersistentExecutor, tmp_path: Path) -> None:
    future = executor.submit(calls.wait_for, tmp_path / "gate")
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        barrier = threading.Barrier(9, timeout=WAIT_S)
        waiting = [threads.submit(lambda: (barrier.wait(), future.result(WAIT_S))[1]) for _ in range(8)]
        barrier.wait()
        (tmp_path / "gate").touch()
        assert [each.result(WAIT_S) for each in waiting] == ["gate"] * 8


def test_many_threads_can_wait_each_for_its_own_result(executor: PersistentExecutor) -> None:
    def ask(n: int) -> list[int]:
        return [executor.submit(calls.square, n * i).result(WAIT_S) for i in range(25)]

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        for n, found in zip(range(8), threads.map(ask, range(8)), strict=True):
            assert found == [(n * i) ** 2 for i in range(25)]


def test_many_threads_submitting_at_once_lose_and_double_nothing(executor: PersistentExecutor, journal: Any) -> None:
    def submit_all(thread: int) -> list[Any]:
        return [executor.submit(calls.noted, journal.path, f"{thread}-{i}") for i in range(200)]

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        for thread, futures in enumerate(threads.map(submit_all, range(8))):
            assert [f.result(WAIT_S) for f in futures] == [f"{thread}-{i}" for i in range(200)]
    assert Counter(journal.lines()) == {f"{thread}-{i}": 1 for thread in range(8) for i in range(200)}


# --- asyncio -----------------------------------------------------------------------------------------------------


def test_futures_can_be_awaited(executor: PersistentExecutor) -> None:
    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        return [
            await executor.submit(calls.square, 2),
            await asyncio.wrap_future(executor.submit(calls.square, 3)),
            *await asyncio.gather(*(asyncio.wrap_future(executor.submit(calls.square, n)) for n in range(4, 20))),
            await loop.run_in_executor(executor, calls.square, 20),
        ]

    assert asyncio.run(asyncio.wait_for(main(), WAIT_S)) == [n * n for n in range(2, 21)]


def test_many_coroutines_await_calls_at_once(executor: PersistentExecutor) -> None:
    async def one(n: int) -> Any:
        return await executor.submit(calls.square, n) + await executor.submit(calls.square, n)

    async def main() -> list[Any]:
        return await asyncio.gather(*map(one, range(100)))

    assert asyncio.run(asyncio.wait_for(main(), WAIT_S)) == [2 * n * n for n in range(100)]


def test_awaiting_raises_what_the_call_raised(executor: PersistentExecutor) -> None:
    async def main() -> None:
        await executor.submit(calls.raise_value_error, "for the coroutine")

    with pytest.raises(ValueError, match="for the coroutine") as caught:
        asyncio.run(asyncio.wait_for(main(), WAIT_S))
    assert "raise_value_error" in str(caught.value.__cause__)


@pytest.mark.skipif(sys.version_info >= (3, 15), reason="asyncio does so itself")
def test_futures_can_be_awaited_as_python_3_15_does(executor: PersistentExecutor, monkeypatch: Any) -> None:
    """Issue 10: it takes the result from a snapshot of the future, where there was None before it was read."""

    def copy_state(source: Any, target: Any) -> None:
        if target.cancelled():
            return
        done, cancelled, result, exception = source._get_snapshot()
        assert done
        if cancelled:
            target.cancel()
        elif exception is not None:
            target.set_exception(exception)
        else:
            target.set_result(result)

    monkeypatch.setattr(asyncio.futures, "_copy_future_state", copy_state)
    cancelled = DurableFuture(None, None)
    assert cancelled._get_snapshot() == (False, False, None, None)
    cancelled._cancelled()

    async def main() -> list[Any]:
        submitted = executor.submit(calls.square, 3), executor.submit(calls.raise_value_error, "late"), cancelled
        return await asyncio.gather(*map(asyncio.wrap_future, submitted), return_exceptions=True)

    result, error, end = asyncio.run(asyncio.wait_for(main(), WAIT_S))
    assert (result, repr(error)) == (9, "ValueError('late')")
    assert isinstance(end, asyncio.CancelledError)


def test_cancelling_an_awaiting_coroutine_cancels_what_has_not_started(
    make_executor: Any, tmp_path: Path, journal: Any
) -> None:
    executor = make_executor(1)
    held = executor.submit(calls.noted_wait, journal.path, "held", tmp_path / "gate")
    journal.wait_for(1)
    second = executor.submit(calls.noted, journal.path, "second")

    async def main() -> None:
        task = asyncio.ensure_future(asyncio.wrap_future(second))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(asyncio.wait_for(main(), WAIT_S))
    assert second.cancelled()
    (tmp_path / "gate").touch()
    assert held.result(WAIT_S) == "held"
    executor.shutdown()
    assert journal.lines() == ["held"]


# --- Workers -----------------------------------------------------------------------------------------------------


def test_the_initializer_runs_in_every_worker_before_its_first_call(context: BaseContext, make_executor: Any) -> None:
    executor = make_executor(2, context, calls.remember, ("a", 1))
    assert all(found == ["a", 1] for found in executor.map(calls.remembered, range(20), timeout=WAIT_S))


def test_an_initializer_can_be_a_lambda(context: BaseContext, make_executor: Any, journal: Any) -> None:
    path = journal.path
    executor = make_executor(1, context, lambda line: calls.note(path, line), ("started",))
    assert executor.submit(calls.square, 2).result(WAIT_S) == 4
    assert journal.lines() == ["started"]


def test_an_initializer_can_be_given_queues_and_locks(context: BaseContext, make_executor: Any) -> None:
    queue = context.Queue()
    executor = make_executor(2, context, calls.use_queue, (queue, context.Lock()))
    pids = set(executor.map(calls.pid, range(20), timeout=WAIT_S))
    started = {queue.get(timeout=WAIT_S) for _ in pids}
    assert pids <= started
    executor.shutdown()
    queue.close()
    queue.join_thread()


def test_an_initializer_can_be_a_lambda_and_be_given_a_queue(context: BaseContext, make_executor: Any) -> None:
    queue = context.Queue()
    executor = make_executor(1, context, lambda q, lock: calls.use_queue(q, lock), (queue, context.Lock()))
    assert executor.submit(calls.pid).result(WAIT_S) == queue.get(timeout=WAIT_S)
    executor.shutdown()
    queue.close()
    queue.join_thread()


@pytest.mark.parametrize("initializer", [calls.fail_to_start, calls.die_at_start])
def test_a_pool_that_cannot_start_says_so_on_every_future_and_stops_trying(
    context: BaseContext, make_executor: Any, journal: Any, open_store: Any, store: Path, initializer: Any
) -> None:
    executor = make_executor(2, context, initializer, (journal.path,))
    futures = [executor.submit(calls.square, n) for n in range(3)]
    for future in futures:
        with pytest.raises(PoolBroken, match="ValueError: this init" if initializer is calls.fail_to_start else "7"):
            future.result(WAIT_S)
    with pytest.raises(PoolBroken):
        executor.submit(calls.square, 1)
    executor.shutdown()
    assert 1 <= len(journal.lines()) <= 6
    assert set(statuses(open_store(store))) == {"PENDING"}


def test_a_broken_pool_is_what_users_of_process_pools_catch(make_executor: Any, journal: Any) -> None:
    executor = make_executor(1, None, calls.fail_to_start, (journal.path,))
    with pytest.raises(concurrent.futures.process.BrokenProcessPool):
        executor.submit(calls.square, 1).result(WAIT_S)


def test_calls_of_a_pool_that_could_not_start_are_kept_and_not_run_with_another_initializer(
    make_executor: Any, journal: Any, open_store: Any, store: Path
) -> None:
    broken = make_executor(1, None, calls.fail_to_start, (tmp := journal.path.with_name("starts"),))
    with pytest.raises(PoolBroken):
        broken.submit(calls.noted, journal.path, "kept").result(WAIT_S)
    broken.shutdown()
    assert tmp.exists()
    assert make_executor().submit(calls.noted, journal.path, "kept").result(WAIT_S) == "kept"
    assert journal.lines() == ["kept"]
    assert statuses(open_store(store)) == {"PENDING": 1, "COMPLETED": 1}


@pytest.mark.parametrize("most", [1, 3])
def test_workers_are_replaced_after_so_many_calls(
    context: BaseContext, make_executor: Any, journal: Any, most: int
) -> None:
    executor = make_executor(2, context, max_tasks_per_child=most)
    pids = Counter(executor.map(calls.noted_pid, [journal.path] * 12, range(12), timeout=WAIT_S))
    assert max(pids.values()) <= most
    assert sum(pids.values()) == 12
    assert Counter(map(int, journal.lines())) == pids


def test_an_idle_worker_is_used_again_and_no_more_are_started_than_needed(make_executor: Any) -> None:
    executor = make_executor(4)
    assert len({executor.submit(calls.pid).result(WAIT_S) for _ in range(10)}) == 1


def test_all_workers_are_started_when_there_is_work_for_all(make_executor: Any, journal: Any, tmp_path: Path) -> None:
    executor = make_executor(4)
    futures = [executor.submit(calls.noted_wait, journal.path, n, tmp_path / "gate") for n in range(8)]
    journal.wait_for(4)
    (tmp_path / "gate").touch()
    assert [future.result(WAIT_S) for future in futures] == list(range(8))


# --- Endings -----------------------------------------------------------------------------------------------------


def test_leaving_the_with_block_waits_for_all_calls(context: BaseContext, store: Path, journal: Any) -> None:
    with PersistentExecutor(2, context, store=store) as executor:
        assert isinstance(executor, PersistentExecutor)
        futures = [executor.submit(calls.noted, journal.path, n) for n in range(50)]
    assert all(future.done() for future in futures)
    assert sorted(map(int, journal.lines())) == list(range(50))


def test_after_shutdown_nothing_is_taken(executor: PersistentExecutor) -> None:
    executor.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(calls.square, 1)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.map(calls.square, [1])
    executor.shutdown()


def test_an_executor_that_was_never_used_ends_at_once(context: BaseContext, store: Path) -> None:
    with PersistentExecutor(2, context, store=store):
        pass
    PersistentExecutor(2, context, store=store).shutdown(wait=False)


def test_shutdown_without_waiting_finishes_the_work(
    context: BaseContext, make_executor: Any, journal: Any, tmp_path: Path
) -> None:
    executor = make_executor(2, context)
    held = [executor.submit(calls.noted_wait, journal.path, n, tmp_path / "gate") for n in range(4)]
    journal.wait_for(2)
    executor.shutdown(wait=False)
    with pytest.raises(RuntimeError):
        executor.submit(calls.square, 1)
    (tmp_path / "gate").touch()
    assert [future.result(WAIT_S) for future in held] == [0, 1, 2, 3]


def test_shutdown_with_cancel_futures_runs_only_what_had_started(
    make_executor: Any, journal: Any, tmp_path: Path, store: Path, open_store: Any
) -> None:
    executor = make_executor(2)
    futures = [executor.submit(calls.noted_wait, journal.path, n, tmp_path / "gate") for n in range(20)]
    journal.wait_for(2)
    waiting = threading.Thread(target=lambda: list(as_completed(futures, timeout=WAIT_S)))
    waiting.start()
    executor.shutdown(wait=False, cancel_futures=True)
    (tmp_path / "gate").touch()
    waiting.join(WAIT_S)  # every waiter wakes
    assert not waiting.is_alive()
    executor.shutdown()
    ran = [n for n, future in enumerate(futures) if not future.cancelled()]
    assert ran == [0, 1]
    assert [futures[n].result(WAIT_S) for n in ran] == ran
    assert sorted(map(int, journal.lines())) == ran
    assert statuses(open_store(store)) == {"COMPLETED": 2, "CANCELLED": 18}


@pytest.mark.parametrize("how", ["kill_workers", "terminate_workers"])
def test_workers_can_be_ended_at_once_and_their_calls_are_kept(
    context: BaseContext, make_executor: Any, journal: Any, tmp_path: Path, store: Path, is_alive: Any, how: str
) -> None:
    executor = make_executor(2, context)
    done = executor.submit(calls.noted_pid, journal.path)
    pid = done.result(WAIT_S)
    futures = [executor.submit(calls.noted_wait, journal.path, n, tmp_path / "gate") for n in range(5)]
    journal.wait_for(3)
    getattr(executor, how)()
    assert not is_alive(pid)
    assert done.result(0) == pid
    for future in futures:
        with pytest.raises(PoolBroken, match=how):
            future.result(WAIT_S)
    with pytest.raises((RuntimeError, PoolBroken)):
        executor.submit(calls.square, 1)
    (tmp_path / "gate").touch()
    with PersistentExecutor(2, context, store=store) as later:
        again = [later.submit(calls.noted_wait, journal.path, n, tmp_path / "gate") for n in range(5)]
        assert [future.result(WAIT_S) for future in again] == list(range(5))


def test_an_executor_that_is_dropped_finishes_its_calls_and_ends(
    context: BaseContext, store: Path, wait_until: Any, is_alive: Any
) -> None:
    executor = PersistentExecutor(2, context, store=store)
    futures = [executor.submit(calls.pid) for _ in range(20)]
    del executor
    gc.collect()
    pids = {future.result(WAIT_S) for future in futures}
    wait_until(lambda: not any(map(is_alive, pids)), what="the workers to end")


def test_the_end_of_the_interpreter_waits_for_the_work(method: str, script: Any) -> None:
    script.write(f"""
import multiprocessing, calls
from omniq_executor import PersistentExecutor
if __name__ == "__main__":
    executor = PersistentExecutor(2, multiprocessing.get_context({method!r}))
    futures = [executor.submit(calls.noted, "journal", n) for n in range(200)]
    print("submitted", flush=True)
""")
    (script.folder / "calls.py").write_text(Path(calls.__file__).read_text())
    done = script.run()
    assert (done.returncode, done.stdout, done.stderr) == (0, "submitted\n", "")
    assert sorted(map(int, script.journal.lines())) == list(range(200))


def test_the_end_of_the_interpreter_waits_for_a_map_that_nobody_reads(script: Any) -> None:
    script.write("""
import calls
from omniq_executor import PersistentExecutor
if __name__ == "__main__":
    executor = PersistentExecutor(2)
    results = executor.map(calls.noted, ["journal"] * 200, range(200))
""")
    (script.folder / "calls.py").write_text(Path(calls.__file__).read_text())
    done = script.run()
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(map(int, script.journal.lines())) == list(range(200))


def test_nothing_is_taken_once_the_interpreter_ends(script: Any) -> None:
    script.write("""
import atexit

@atexit.register  # before the package is imported, so it is called after the package's own
def too_late():
    try:
        executor.submit(pow, 2, 3)
    except RuntimeError as error:
        print("refused:", error)

from omniq_executor import PersistentExecutor
if __name__ == "__main__":
    executor = PersistentExecutor(1)
    print(executor.submit(pow, 2, 2).result())
""")
    done = script.run()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "4\nrefused: cannot schedule new futures after shutdown\n"


def test_a_fork_of_the_users_own_harms_neither_side(script: Any) -> None:
    script.write("""
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # the fork is on purpose
from omniq_executor import PersistentExecutor
if __name__ == "__main__":
    with PersistentExecutor(2) as executor:
        assert executor.submit(pow, 2, 3).result() == 8
        child = os.fork()
        if child == 0:
            os._exit(5)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
        child = os.fork()
        if child == 0:
            sys.exit(6)  # with all the handlers
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 6
        assert list(executor.map(abs, range(100))) == list(range(100))
        print("went on")
""")
    done = script.run(timeout_s=30)
    assert (done.returncode, done.stdout) == (0, "went on\n")


def test_a_forked_child_keeps_the_files_that_it_opens(script: Any) -> None:
    """Issue 10: it closed the number of a file of the parent's twice, the second time for another file."""
    script.write("""
import gc, os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # the fork is on purpose
from omniq_executor import PersistentExecutor
if __name__ == "__main__":
    with PersistentExecutor(2) as executor:
        child = os.fork()  # before the executor has a thread, whose stack would keep in the child what it uses
        if child == 0:
            files = [os.open(__file__, os.O_RDONLY) for _ in range(100)]
            vars(executor._dispatcher).clear()  # so that all that it had is collected
            gc.collect()
            for file in files:
                os.fstat(file)
            os._exit(5)
        assert executor.submit(pow, 2, 3).result() == 8
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
""")
    done = script.run(timeout_s=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "5\n", "")


def test_a_fork_waits_for_a_turn_that_is_under_way_and_the_child_is_refused(script: Any) -> None:
    """Issue 10: a child in which the turn was cut off could stand still in SQLite."""
    script.write("""
import os, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # the fork is on purpose
from omniq_executor import PersistentExecutor
if __name__ == "__main__":
    with PersistentExecutor(1) as executor:
        assert executor.submit(pow, 2, 3).result() == 8
        store, begun, turns = executor.store, threading.Event(), 0
        def turn(*work, of_store=store.turn):
            global turns
            turns += 1
            begun.set()
            threading.Event().wait(0.3)  # nobody can tell when the other thread waits in fork()
            try:
                return of_store(*work)
            finally:
                turns -= 1
        store.turn = turn
        thread = threading.Thread(target=lambda: list(executor.map(abs, [1])))
        thread.start()
        begun.wait()
        child = os.fork()
        if child == 0:
            try:
                executor.submit(abs, 1)
            except Exception as error:
                os._exit(5 if turns == 0 and "belongs to the parent" in str(error) else 6)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        thread.join()
""")
    done = script.run(timeout_s=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "5\n", "")


# --- Cancelling --------------------------------------------------------------------------------------------------


def test_a_cancelled_call_never_runs_here_or_later(
    make_executor: Any, journal: Any, tmp_path: Path, store: Path, open_store: Any
) -> None:
    executor = make_executor(1)
    held = executor.submit(calls.noted_wait, journal.path, "held", tmp_path / "gate")
    journal.wait_for(1)
    second = executor.submit(calls.noted, journal.path, "second")
    assert second.cancel()
    assert second.cancelled()
    assert second.cancel()  # again is fine
    assert second.task().status is Status.CANCELLED
    with pytest.raises(CancelledError):
        second.result(WAIT_S)
    assert not held.cancel()  # it runs
    (tmp_path / "gate").touch()
    assert held.result(WAIT_S) == "held"
    assert not held.cancel()  # it is done
    executor.shutdown()
    with PersistentExecutor(1, store=store, resume="always") as later:
        assert later.submit(calls.noted, journal.path, "later").result(WAIT_S) == "later"
    assert journal.lines() == ["held", "later"]
    assert open_store(store).get(second.task_id).status is Status.CANCELLED


def test_a_call_that_a_worker_has_but_not_started_can_be_cancelled(
    make_executor: Any, journal: Any, tmp_path: Path
) -> None:
    executor = make_executor(1)
    assert len(list(executor.map(calls.square, range(1000), timeout=WAIT_S))) == 1000  # now short calls are expected
    executor.submit(calls.noted_wait, journal.path, "held", tmp_path / "gate")
    waiting = [executor.submit(calls.noted, journal.path, n) for n in range(5)]
    journal.wait_for(1)
    assert [future.cancel() for future in waiting] == [True] * 5
    (tmp_path / "gate").touch()
    executor.shutdown()
    assert journal.lines() == ["held"]


def test_cancelling_wakes_whoever_waits(make_executor: Any, journal: Any, tmp_path: Path) -> None:
    executor = make_executor(1)
    executor.submit(calls.noted_wait, journal.path, "held", tmp_path / "gate")
    journal.wait_for(1)
    second = executor.submit(calls.square, 2)
    seen: list[str] = []

    def wait_for_it() -> None:
        try:
            second.result(WAIT_S)
        except CancelledError:
            seen.append("cancelled")

    threads = [threading.Thread(target=wait_for_it) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert second.cancel()
    for thread in threads:
        thread.join(WAIT_S)
    assert seen == ["cancelled"] * 3
    (tmp_path / "gate").touch()


def test_another_executor_can_cancel_by_id(make_executor: Any, journal: Any, tmp_path: Path) -> None:
    executor, other = make_executor(1), make_executor(1, queue="other")
    executor.submit(calls.noted_wait, journal.path, "held", tmp_path / "gate")
    journal.wait_for(1)
    second = executor.submit(calls.noted, journal.path, "second")
    assert other.future(second.task_id).cancel()
    with pytest.raises(CancelledError):
        second.result(WAIT_S)
    (tmp_path / "gate").touch()
    executor.shutdown()
    assert journal.lines() == ["held"]


# --- One store, many executors -----------------------------------------------------------------------------------


def test_executors_of_different_queues_do_not_run_each_others_calls(make_executor: Any, journal: Any) -> None:
    first, second = make_executor(1, queue="first"), make_executor(1, queue="second")
    pids = [
        set(executor.map(calls.noted_pid, [journal.path] * 40, range(40), timeout=WAIT_S))
        for executor in (first, second)
    ]
    assert (len(pids[0]), len(pids[1])) == (1, 1)
    assert pids[0] != pids[1]
    assert {task.queue for task in first.store.find()} == {"first", "second"}
    assert len(journal.lines()) == 80


def test_executors_on_one_queue_share_the_work_and_run_each_call_once(make_executor: Any, journal: Any) -> None:
    executors = [make_executor(1) for _ in range(3)]
    futures = [
        executor.submit(calls.noted, journal.path, f"{i}-{n}")
        for n in range(60)
        for i, executor in enumerate(executors)
    ]
    results = [
        iter(e.map(calls.noted, [journal.path] * 60, [f"m{i}-{n}" for n in range(60)])) for i, e in enumerate(executors)
    ]
    assert [f.result(WAIT_S) for f in futures] == [f"{i}-{n}" for n in range(60) for i in range(3)]
    assert [list(r) for r in results] == [[f"m{i}-{n}" for n in range(60)] for i in range(3)]
    assert set(Counter(journal.lines()).values()) == {1}
    assert len(journal.lines()) == 360


# --- Keys and ids ------------------------------------------------------------------------------------------------


def test_calls_with_one_key_are_one_task(make_executor: Any, journal: Any, tmp_path: Path) -> None:
    executor = make_executor(2)
    first = executor.options(key="once").submit(calls.noted_wait, journal.path, "once", tmp_path / "gate")
    second = executor.options(key="once").submit(calls.noted_wait, journal.path, "once", tmp_path / "gate")
    other = executor.options(key="twice").submit(calls.noted, journal.path, "other")
    (tmp_path / "gate").touch()
    assert first.task_id == second.task_id != other.task_id
    assert (first.result(WAIT_S), second.result(WAIT_S), other.result(WAIT_S)) == ("once", "once", "other")
    third = executor.options(key="once").submit(calls.noted_wait, journal.path, "once", tmp_path / "gate")
    assert third.result(WAIT_S) == "once"
    assert first.task().key == "once"
    assert sorted(journal.lines()) == ["once", "other"]


def test_a_key_finds_the_stored_result_in_a_later_run(store: Path, journal: Any) -> None:
    for _ in range(2):
        with PersistentExecutor(1, store=store) as executor:
            future = executor.options(key="k").submit(calls.noted, journal.path, "once")
            assert future.result(WAIT_S) == "once"
    assert future.resumed
    assert journal.lines() == ["once"]


def test_keys_of_different_queues_are_different(make_executor: Any, journal: Any) -> None:
    for queue in ("a", "b"):
        executor = make_executor(1, queue=queue)
        assert executor.options(key="k").submit(calls.noted, journal.path, queue).result(WAIT_S) == queue
    assert journal.lines() == ["a", "b"]


def test_many_threads_with_one_key_make_one_task(executor: PersistentExecutor, journal: Any) -> None:
    def submit(_: int) -> Any:
        return executor.options(key="one").submit(calls.noted, journal.path, "one")

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        futures = list(threads.map(submit, range(40)))
    assert {future.result(WAIT_S) for future in futures} == {"one"}
    assert len({future.task_id for future in futures}) == 1
    assert journal.lines() == ["one"]


def test_two_executors_with_one_key_make_one_task(make_executor: Any, journal: Any) -> None:
    executors = [make_executor(1), make_executor(1)]

    def submit(n: int) -> Any:
        return executors[n % 2].options(key=f"key {n // 2}").submit(calls.noted, journal.path, n // 2)

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        futures = list(threads.map(submit, range(60)))
    assert [future.result(WAIT_S) for future in futures] == [n // 2 for n in range(60)]
    assert Counter(map(int, journal.lines())) == dict.fromkeys(range(30), 1)


def test_a_future_can_be_had_by_its_id(make_executor: Any, store: Path) -> None:
    executor = make_executor()
    done = executor.submit(calls.square, 5)
    failed = executor.submit(calls.raise_value_error, "kept")
    assert done.result(WAIT_S) == 25
    assert executor.future(done.task_id).result(WAIT_S) == 25
    with pytest.raises(ValueError, match="kept"):
        executor.future(failed.task_id).result(WAIT_S)
    executor.shutdown()
    later = make_executor()
    assert later.future(done.task_id).result(WAIT_S) == 25
    with pytest.raises(ValueError, match="kept") as caught:
        later.future(failed.task_id).result(WAIT_S)
    assert "raise_value_error" in str(caught.value.__cause__)


def test_an_unknown_id_is_named(executor: PersistentExecutor) -> None:
    with pytest.raises(TaskNotFound, match="task-0123456789abc"):
        executor.future("task-0123456789abc")


def test_futures_lists_what_the_queue_holds(make_executor: Any) -> None:
    executor = make_executor()
    done = [executor.submit(calls.square, n) for n in range(3)]
    failed = executor.submit(calls.raise_value_error, "x")
    wait([*done, failed], timeout=WAIT_S)
    make_executor(1, queue="other").submit(calls.square, 1).result(WAIT_S)
    assert [f.task_id for f in executor.futures()] == [f.task_id for f in [*done, failed]]
    assert [f.task_id for f in executor.futures(Status.FAILED)] == [failed.task_id]
    assert [f.result(WAIT_S) for f in executor.futures(status=Status.COMPLETED)] == [0, 1, 4]
    assert executor.futures(Status.CANCELLED) == []


# --- The whole ---------------------------------------------------------------------------------------------------


def test_ctrl_c_handlers_and_signals_of_the_script_are_left_as_they_were(make_executor: Any) -> None:
    before = signal.getsignal(signal.SIGINT)
    executor = make_executor()
    assert list(executor.map(calls.square, range(100), timeout=WAIT_S))
    executor.shutdown()
    assert signal.getsignal(signal.SIGINT) is before


def test_no_process_and_no_file_is_left_open_by_executors_that_ended(store: Path) -> None:
    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    def use() -> None:
        with PersistentExecutor(2, store=store) as executor:
            list(executor.map(calls.square, range(10), timeout=WAIT_S))
        gc.collect()

    if not Path("/proc/self/fd").exists():
        pytest.skip("there is no /proc/self/fd")
    use()
    files, threads = open_files(), threading.active_count()
    for _ in range(3):
        use()
    assert open_files() <= files  # what earlier tests have left may have been collected
    assert threading.active_count() <= threads
