"""Futures of tasks that other processes run, or have run: by id, key, tag, function, and by pickle."""

import asyncio
import concurrent.futures
import contextlib
import copy
import gc
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import calls
import pytest

import omniq_executor
from omniq_executor import (
    DurableFuture,
    PersistentExecutor,
    Status,
    StoreError,
    TaskNotFound,
    attach,
)
from omniq_executor.dispatch import attachment

WAIT_S = 30.0


@pytest.fixture(params=["store.db", "store"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


@pytest.fixture
def local(address: Path, make_executor: Any) -> Callable[..., PersistentExecutor]:
    """Makes executors with two workers."""
    return lambda workers=2, **kwargs: make_executor(workers, store=address, **kwargs)


@pytest.fixture
def submitted(address: Path, make_executor: Any) -> Callable[..., str]:
    """Submits a call that nobody runs before a worker comes; returns its id."""
    executor = make_executor(None, store=address, engine="external", queue="jobs")

    def submit(*call: Any, **options: Any) -> str:
        task_id = executor.options(**options).submit(*call).task_id
        assert task_id is not None
        return task_id

    return submit


def owners(address: Path) -> list[Any]:
    """The owners of the store."""
    with contextlib.closing(omniq_executor.open_store(address, create=False)) as opened:
        return opened.owners()


def onlookers(address: Path) -> list[Any]:
    """Those that only wait."""
    return [owner for owner in owners(address) if owner.queue == attachment.QUEUE]


# --- What is finished already ------------------------------------------------------------------------------------


def test_what_is_finished_is_read_by_id_key_tag_and_function(local: Any, address: Path) -> None:
    with local(queue="one") as executor:
        good = executor.options(tags=["a", "b"]).submit(calls.square, 3)
        named = executor.options(key="k", tags=["a"]).submit(calls.echo, (1, 2))
        bad = executor.submit(calls.raise_value_error, "bad")
    with local(queue="two") as executor:
        other = executor.options(tags=["a"]).submit(calls.square, 4)
    there = attach(address)
    assert there.future(good.task_id).result() == 9
    assert there.future(key="k").result(0) == (1, 2)
    again = there.future(bad.task_id)
    with pytest.raises(ValueError, match="bad") as caught:
        again.result()
    assert "in raise_value_error" in str(caught.value.__cause__)
    assert again.exception() is caught.value
    assert again.done()
    assert not again.cancelled()
    assert not again.cancel()
    assert not again.running()
    assert again.task().error.type == "ValueError"
    assert again.why() == bad.why()
    assert [future.task_id for future in there.futures(tags=["a"])] == [f.task_id for f in (good, named, other)]
    assert [future.task_id for future in attach(address, queue="one").futures(tags=["a"])] == [
        good.task_id, named.task_id,
    ]  # fmt: skip
    for function in (calls.square, "calls.square"):
        assert [future.result() for future in there.futures(function=function)] == [9, 16]
    assert [future.task_id for future in there.futures(Status.FAILED)] == [bad.task_id]
    assert there.futures(Status.FAILED, tags=["a"]) == there.futures(function="square") == []
    assert owners(address) == []  # who looks at what is finished is no owner


def test_an_executor_finds_futures_alike(local: Any) -> None:
    with local(queue="one") as executor:
        executor.options(key="k").submit(calls.square, 2)
        executor.submit(calls.echo, "e")
    executor = local(queue="one")
    assert executor.future(key="k").result(WAIT_S) == 4
    assert [future.result(WAIT_S) for future in executor.futures(function=calls.echo)] == ["e"]
    with pytest.raises(TaskNotFound, match="'other'"):
        executor.future(key="other")
    with pytest.raises(TypeError, match="id, or a key"):
        executor.future()


def test_what_is_not_there_is_said(local: Any, address: Path) -> None:
    for ask in (lambda: attach(address).future("task-0000000000001"), attach(address).futures):
        with pytest.raises(StoreError, match=address.name):
            ask()
    assert not address.exists()
    for queue in ("one", "two"):
        with local(queue=queue) as executor:
            executor.options(key="k").submit(calls.square, 2)
    there = attach(address)
    with pytest.raises(TaskNotFound, match="task-0000000000001"):
        there.future("task-0000000000001")
    with pytest.raises(ValueError, match="nonsense"):
        there.future("nonsense")
    with pytest.raises(TaskNotFound, match="the key 'other' in any queue"):
        there.future(key="other")
    with pytest.raises(ValueError, match="in the queues 'one', 'two'"):
        there.future(key="k")
    assert attach(address, queue="two").future(key="k").result() == 4
    assert str(address) in repr(there)


def test_an_open_store_and_settings_can_be_attached_to(local: Any, address: Path, open_store: Any) -> None:
    with local() as executor:
        future = executor.submit(calls.square, 3)
    assert attach(open_store(address)).future(future.task_id).result() == 9
    assert attach(str(address)).future(future.task_id).result() == 9


# --- What others run ---------------------------------------------------------------------------------------------


def test_futures_resolve_when_a_worker_elsewhere_has_finished(
    submitted: Any, start_worker: Any, address: Path, tmp_path: Path
) -> None:
    ids = [submitted(calls.square, n) for n in range(20)]
    bad, gated = submitted(calls.raise_value_error, "bad"), submitted(calls.wait_for, tmp_path / "gate")
    there = attach(address)
    futures = [there.future(task_id) for task_id in ids]
    called: list[Any] = []
    told = threading.Event()
    there.future(bad).add_done_callback(lambda done: (called.append(done.exception()), told.set()))
    assert not any(future.done() for future in futures)
    with pytest.raises(concurrent.futures.TimeoutError):
        futures[0].result(0.05)
    start_worker("-n", 2, "--store", address)
    assert [future.result(WAIT_S) for future in futures] == [n * n for n in range(20)]
    assert told.wait(WAIT_S)
    assert isinstance(called[0], ValueError)
    waits = there.future(gated)
    assert concurrent.futures.wait([waits], timeout=0).not_done == {waits}
    (tmp_path / "gate").touch()
    assert list(concurrent.futures.as_completed([waits], timeout=WAIT_S)) == [waits]
    assert waits.result() == "gate"


def test_who_waits_is_an_owner_only_for_so_long(
    submitted: Any, start_worker: Any, address: Path, wait_until: Any
) -> None:
    future = attach(address).future(submitted(calls.square, 2))
    assert onlookers(address) == []
    for n in (3, 4):
        assert not future.done()
        assert [owner.pid for owner in onlookers(address)] == [os.getpid()]
        worker = start_worker("-n", 1, "--store", address)
        assert future.result(WAIT_S) == (n - 1) ** 2
        wait_until(lambda: onlookers(address) == [])
        worker.kill()
        future = attach(address).future(submitted(calls.square, n))


def test_who_waits_removes_nothing_that_was_kept_long_enough(
    submitted: Any, start_worker: Any, address: Path, monkeypatch: pytest.MonkeyPatch, wait_until: Any
) -> None:
    future = attach(address).future(submitted(calls.square, 2))
    with contextlib.closing(omniq_executor.open_store(address)) as opened:
        removes: list[Any] = []
        monkeypatch.setattr(type(opened), "expire", lambda *asked: removes.append(asked) or iter(()))
    assert not future.done()
    start_worker("-n", 1, "--store", address)
    assert future.result(WAIT_S) == 4
    wait_until(lambda: onlookers(address) == [])
    owners_of_executor = {owner.id for owner in owners(address)}
    assert [owner for _, _, owner in removes if owner not in owners_of_executor] == []


def test_looking_runs_and_takes_over_nothing(local: Any, address: Path, script: Any, journal: Any) -> None:
    """Unlike executor.future(), which has this process run what nobody else would."""
    script.write(
        """
import os, sys
from omniq_executor import PersistentExecutor
executor = PersistentExecutor(1, store=sys.argv[1], queue="left")
executor.options(key="k", eta=1).submit(int, 5)
os.kill(os.getpid(), 9)
"""
    )
    assert script.run(str(address)).returncode == -9
    executor = local(queue="mine")
    future = attach(address).future(key="k")
    other = pickle.loads(pickle.dumps(future))
    assert not future.done()
    with pytest.raises(TimeoutError):
        future.result(1.5)
    assert executor.submit(calls.square, 2).result(WAIT_S) == 4
    assert not other.done()
    assert future.task().status is Status.PENDING
    assert future.cancel()
    with pytest.raises(CancelledError):
        other.result(WAIT_S)


def test_a_call_that_waits_is_cancelled_and_so_is_one_that_runs(
    submitted: Any, start_worker: Any, address: Path, journal: Any, tmp_path: Path, wait_until: Any
) -> None:
    runs = attach(address).future(submitted(calls.noted_wait, journal.path, "runs", tmp_path / "gate"))
    start_worker("-n", 1, "--store", address)
    journal.wait_for(1)
    waits = attach(address).future(submitted(calls.square, 2))
    assert runs.running()
    assert not waits.running()
    assert not runs.cancel()
    assert waits.cancel()
    assert waits.cancelled()
    assert waits.cancel()
    assert runs.cancel(running=True)
    assert runs.task().status is Status.CANCELLED
    assert attach(address).future(submitted(calls.square, 3)).result(WAIT_S) == 9
    assert attach(address).future(waits.task_id).cancelled()


def test_a_call_that_another_process_cancels_is_cancelled_here(submitted: Any, address: Path, open_store: Any) -> None:
    future = attach(address).future(submitted(calls.square, 2))
    told = threading.Event()
    future.add_done_callback(lambda _: told.set())
    store = open_store(address)
    store.cancel([future.task().id], 10**15)
    store.notify(0)
    assert told.wait(WAIT_S)
    assert future.cancelled()


def test_a_future_can_be_awaited(submitted: Any, start_worker: Any, address: Path) -> None:
    future = attach(address).future(submitted(calls.square, 5))

    async def wait() -> Any:
        waiting = asyncio.ensure_future(asyncio.wait_for(future, WAIT_S))
        await asyncio.sleep(0)
        await asyncio.to_thread(start_worker, "-n", 1, "--store", address)
        return await waiting

    assert asyncio.run(wait()) == 25


def test_who_stops_waiting_does_not_cancel_the_call(submitted: Any, start_worker: Any, address: Path) -> None:
    future = attach(address).future(submitted(calls.square, 5))

    async def wait(timeout_s: float) -> Any:
        return await asyncio.wait_for(future, timeout_s)

    with pytest.raises(TimeoutError):
        asyncio.run(wait(0.05))
    assert future.task().status is Status.PENDING
    start_worker("-n", 1, "--store", address)
    assert future.result(WAIT_S) == 25
    assert asyncio.run(wait(WAIT_S)) == 25


def test_logs_of_a_call_elsewhere_are_read_while_it_runs(
    submitted: Any, start_worker: Any, address: Path, wait_until: Any, tmp_path: Path
) -> None:
    future = attach(address).future(submitted(calls.print_and_wait, "said", tmp_path / "gate"))
    assert future.logs() == ""
    start_worker("-n", 1, "--capture-output", "--store", address)
    wait_until(lambda: future.logs() == "said\n")
    assert not future.done()
    (tmp_path / "gate").touch()
    assert future.result(WAIT_S) == "gate"


def test_many_threads_that_look_first_at_one_future_are_all_told(
    submitted: Any, start_worker: Any, address: Path
) -> None:
    data = pickle.dumps([attach(address).future(submitted(calls.square, n)) for n in range(20)])
    futures = pickle.loads(data)
    barrier = threading.Barrier(8)
    found: list[Any] = []

    def look() -> None:
        barrier.wait(WAIT_S)
        found.append([future.result(WAIT_S) for future in futures])

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    start_worker("-n", 1, "--store", address)
    for thread in threads:
        thread.join(WAIT_S)
    assert found == [[n * n for n in range(20)]] * 8


def test_who_looks_first_waits_for_no_lock_of_another_future(
    submitted: Any, address: Path, open_store: Any, wait_until: Any
) -> None:
    """wait() of the standard library holds the locks of some futures while it first looks at others."""
    held = [attach(address).future(submitted(calls.square, n)) for n in range(2)]
    assert not any(future.done() for future in held)
    waiters = held[0]._onlooker._waiters  # type: ignore[attr-defined]
    looked = threading.Event()
    with held[0]._condition, held[1]._condition:
        store = open_store(address)
        store.cancel([future.task().id for future in held], 10**15)
        store.notify(0)
        wait_until(lambda: len(waiters.to_notify) == 1)  # the thread that tells futures waits for the lock of one
        other = attach(address).future(submitted(calls.square, 3))
        threading.Thread(target=lambda: (other.done(), looked.set()), daemon=True).start()
        assert looked.wait(WAIT_S)
    wait_until(lambda: all(future.cancelled() for future in held))


def test_a_callback_can_wait_for_another_future(submitted: Any, start_worker: Any, address: Path) -> None:
    """It is the thread that tells futures which runs it, so nobody else would."""
    first, second = (attach(address).future(submitted(calls.square, n)) for n in (2, 3))
    found: list[Any] = []
    told = threading.Event()
    first.add_done_callback(lambda _: (found.append(second.result(WAIT_S)), told.set()))
    start_worker("-n", 1, "--store", address)
    assert told.wait(WAIT_S)
    assert found == [9]


def test_a_call_whose_submitter_was_killed_is_found_and_awaited_in_another_process(
    script: Any, start_worker: Any, address: Path, journal: Any, tmp_path: Path
) -> None:
    script.write(
        """
import os, sys
from pathlib import Path
import calls
from omniq_executor import PersistentExecutor
store, journal, gate = sys.argv[1:]
executor = PersistentExecutor(store=store, engine="external", queue="script")
executor.options(key="k", tags=["t"]).submit(calls.noted_wait, Path(journal), "k", Path(gate))
executor.options(tags=["t"]).submit(calls.square, 3)
os.kill(os.getpid(), 9)
"""
    )
    script._env["PYTHONPATH"] += os.pathsep + str(Path(calls.__file__).parent)
    assert script.run(str(address), str(journal.path), str(tmp_path / "gate")).returncode == -9
    there = attach(address)
    by_key, by_tag, by_function = (
        there.future(key="k"),
        there.futures(tags=["t"]),
        there.futures(function="calls.square"),
    )
    assert by_tag == [by_key, *by_function]
    assert not by_key.done()
    worker = start_worker("-n", 1, "--store", address)
    journal.wait_for(1)
    worker.kill()  # with the call under way, which another worker takes up
    start_worker("-n", 1, "--store", address)
    journal.wait_for(2)
    (tmp_path / "gate").touch()
    assert [future.result(WAIT_S) for future in by_tag] == ["k", 9]
    assert by_key.task().owner_deaths == 1


# --- By pickle ---------------------------------------------------------------------------------------------------


def test_a_future_is_one_again_in_another_process(local: Any, address: Path, tmp_path: Path) -> None:
    executor = local()
    done, waits = executor.submit(calls.echo, (1, 2)), executor.submit(calls.wait_for, tmp_path / "gate")
    assert done.result(WAIT_S) == (1, 2)
    code = """
import pickle, sys
futures = pickle.load(sys.stdin.buffer)
from omniq_executor import DurableFuture
assert all(isinstance(future, DurableFuture) for future in futures)
print(futures[0].result(), futures[1].done(), flush=True)
print(futures[1].result(30), flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(pickle.dumps([done, waits]))
    process.stdin.close()
    assert process.stdout.readline() == b"(1, 2) False\n"
    (tmp_path / "gate").touch()
    assert process.stdout.read() == b"gate\n"
    assert process.wait(WAIT_S) == 0
    process.stdout.close()
    assert waits.result(WAIT_S) == "gate"


def test_unpickling_opens_nothing_and_gives_one_future_of_a_task(local: Any, address: Path) -> None:
    with local() as executor:
        future = executor.submit(calls.square, 3)
    data = pickle.dumps(future)
    assert len(data) < 300
    address.rename(address.with_name("elsewhere.db"))
    one, other = pickle.loads(data), pickle.loads(data)
    assert one is other is pickle.loads(pickle.dumps(one))
    assert one.task_id == future.task_id
    assert future.task_id in repr(one)
    address.with_name("elsewhere.db").rename(address)
    assert one.result() == 9
    assert "returned int" in repr(one)
    assert not hasattr(one, "nonsense")
    del one, other
    gc.collect()
    assert pickle.loads(data).exception() is None


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_of_a_future_is_the_future(local: Any, address: Path, copied: Any) -> None:
    future = local().submit(calls.square, 3)
    assert copied(future) is future
    assert copied([future])[0] is future
    there = attach(address).future(future.task_id)
    assert copied(there) is there


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_another_pool_is_given_the_future_itself(local: Any, tmp_path: Path, method: str) -> None:
    executor = local()
    future = executor.submit(calls.wait_for, tmp_path / "gate")
    with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool:
        waiting = pool.submit(calls.result_of, future)
        (tmp_path / "gate").touch()
        assert waiting.result(WAIT_S) == ("DurableFuture", "gate")


def test_a_call_of_its_own_store_is_given_the_result_and_one_of_another_the_future(
    local: Any, address: Path, tmp_path: Path, make_executor: Any
) -> None:
    executor = local()
    future = executor.submit(calls.square, 3)
    assert future.result(WAIT_S) == 9
    again = pickle.loads(pickle.dumps(future))
    assert executor.submit(calls.echo, [again]).result(WAIT_S) == [9]
    linked = tmp_path / "linked"
    linked.symlink_to(tmp_path)
    by_another_name = attach(linked / address.name).future(future.task_id)
    assert executor.submit(calls.echo, by_another_name).result(WAIT_S) == 9
    other = make_executor(1, store=tmp_path / "other.db")
    for given in (future, again):
        mapped = other.map(calls.result_of, [given], timeout=WAIT_S)
        assert other.submit(calls.result_of, given).result(WAIT_S) == next(mapped) == ("DurableFuture", 9)
    back = other.submit(calls.echo, future).result(WAIT_S)
    assert back.result(WAIT_S) == 9


def test_a_future_of_a_call_that_could_not_be_stored_cannot_be_pickled(local: Any) -> None:
    with pytest.raises(TypeError, match="could not be stored"):
        pickle.dumps(local().submit(calls.echo, threading.Lock()))


def test_the_examples_of_the_docs_run(script: Any, start_worker: Any, wait_until: Any, open_store: Any) -> None:
    page = Path(__file__).parents[1] / "docs" / "futures.md"
    submits, looks, maps = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    outputs = []
    for example in (submits, looks, maps):
        script.write(example)
        done = script.run()
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    assert re.fullmatch(r"task-\w{13}\n", outputs[0])
    assert outputs[1:] == ["False\n", "invalid literal for int() with base 10: 'two'\n[1, 2, 3]\n"]
    start_worker("-n", 1, "--store", script.folder / "runs" / "etl.db")
    store = open_store(script.folder / "runs" / "etl.db")
    wait_until(lambda: store.find(Status.COMPLETED))
    script.write(looks)
    assert script.run().stdout == "True\n"


# --- Ends --------------------------------------------------------------------------------------------------------


def test_a_task_or_store_that_is_gone_fails_the_future_that_looks_for_it(local: Any, address: Path) -> None:
    with local() as executor:
        gone, kept = executor.submit(calls.square, 3), executor.submit(calls.square, 4)
    data = pickle.dumps([gone, kept])
    away = address.with_name("away")
    address.rename(away)
    futures = pickle.loads(data)
    assert concurrent.futures.wait(futures, timeout=WAIT_S).not_done == set()
    with pytest.raises(StoreError, match=str(address)):
        futures[0].result()
    with pytest.raises(StoreError):
        futures[0].task()
    away.rename(address)
    futures = pickle.loads(data)  # others, which look anew
    assert futures[1].result() == 16


def test_what_is_waited_for_in_a_store_that_was_replaced_fails_with_the_next_look(
    submitted: Any, make_executor: Any, address: Path
) -> None:
    waits = attach(address).future(submitted(calls.square, 2))
    assert not waits.done()
    for path in [*address.parent.glob("store*")]:
        path.rename(path.with_name(f"old-{path.name}"))
    with make_executor(1, store=address) as executor:
        future = executor.submit(calls.square, 5)
    assert attach(address).future(future.task_id).result() == 25
    with pytest.raises(StoreError, match="looked into"):
        waits.result(WAIT_S)


def test_a_store_that_cannot_be_read_fails_the_future_and_nothing_stays_open(
    submitted: Any, address: Path, monkeypatch: pytest.MonkeyPatch, wait_until: Any
) -> None:
    future = attach(address).future(submitted(calls.square, 2))

    def refuse(*_: Any) -> Any:
        raise StoreError("no more")

    with monkeypatch.context() as patch:
        patch.setattr(attachment.Onlooker, "join", refuse)
        with pytest.raises(StoreError, match="no more"):
            future.result(WAIT_S)
    wait_until(lambda: onlookers(address) == [])
    assert not attach(address).future(future.task_id).done()


def test_a_process_ends_though_it_waits_for_what_nobody_runs(submitted: Any, address: Path, script: Any) -> None:
    script.write(
        """
import sys, threading
from omniq_executor import attach
future = attach(sys.argv[1]).future(sys.argv[2])
future.add_done_callback(lambda done: print(type(done.exception(0)).__name__))
threading.Thread(target=future.result, daemon=True).start()
print(future.done(), flush=True)
"""
    )
    done = script.run(str(address), submitted(calls.square, 2), timeout_s=20)
    assert (done.returncode, done.stdout) == (0, "False\nStoreError\n"), done.stderr
    assert onlookers(address) == []


def test_what_an_executor_finishes_at_the_end_of_the_process_is_told_to_who_waits_in_it(
    address: Path, script: Any
) -> None:
    script.write(
        """
import pickle, sys, time
from omniq_executor import PersistentExecutor
def nap(n):
    time.sleep(0.2)
    return n
executor = PersistentExecutor(1, store=sys.argv[1])
future = pickle.loads(pickle.dumps(executor.submit(nap, 5)))
future.add_done_callback(lambda done: print(done.result()))
"""
    )
    done = script.run(str(address))
    assert (done.returncode, done.stdout) == (0, "5\n"), done.stderr


@pytest.mark.parametrize("form", ["future.result()", "concurrent.futures.wait([future])", "asyncio.run(aio(future))"])
def test_ctrl_c_ends_the_wait_and_leaves_no_owner(
    submitted: Any, address: Path, script: Any, wait_until: Any, form: str
) -> None:
    script.write(
        f"""
import asyncio, concurrent.futures, sys
from omniq_executor import attach
async def aio(future):
    await future
future = attach(sys.argv[1]).future(sys.argv[2])
try:
    {form}
except KeyboardInterrupt:
    print("interrupted", future.done(), flush=True)
"""
    )
    process = script.start(str(address), submitted(calls.square, 2))
    wait_until(lambda: onlookers(address))
    process.send_signal(signal.SIGINT)
    done = script.finished(process)
    assert (done.returncode, done.stdout) == (0, "interrupted False\n"), done.stderr
    assert onlookers(address) == []


def test_a_process_that_is_killed_while_it_waits_holds_up_nobody(
    submitted: Any, start_worker: Any, address: Path, script: Any, wait_until: Any
) -> None:
    script.write("import sys\nfrom omniq_executor import attach\nattach(sys.argv[1]).future(sys.argv[2]).result()\n")
    task_id = submitted(calls.square, 2)
    process = script.start(str(address), task_id)
    wait_until(lambda: onlookers(address))
    process.kill()
    start_worker("-n", 1, "--store", address)
    assert attach(address).future(task_id).result(WAIT_S) == 4
    wait_until(lambda: onlookers(address) == [])


def test_a_fork_can_wait_though_a_thread_of_the_parent_had_the_lock_of_the_future(
    submitted: Any, start_worker: Any, address: Path
) -> None:
    waits = attach(address).future(submitted(calls.square, 2))
    assert not waits.done()
    is_held, is_over = threading.Event(), threading.Event()

    def hold() -> None:
        with waits._condition:
            is_held.set()
            is_over.wait(WAIT_S)

    thread = threading.Thread(target=hold)
    thread.start()
    assert is_held.wait(WAIT_S)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = int(waits not in concurrent.futures.wait([waits], WAIT_S).done)
        finally:
            os._exit(status)
    is_over.set()
    thread.join()
    start_worker("-n", 1, "--store", address)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_fork_looks_anew(submitted: Any, start_worker: Any, address: Path, tmp_path: Path) -> None:
    waits, done = (attach(address).future(submitted(calls.square, n)) for n in (2, 3))
    assert not waits.done()
    done.cancel()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = int(
                not (waits.result(WAIT_S) == 4 and done.cancelled() and waits.task().status is Status.COMPLETED)
            )
        finally:
            os._exit(status)
    start_worker("-n", 1, "--store", address)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert waits.result(WAIT_S) == 4
    assert isinstance(waits, DurableFuture)
