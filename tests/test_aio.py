"""AsyncOmniQ: what its calls do, on both stores, and that none of them holds up the loop."""

import asyncio
import concurrent.futures
import contextlib
import gc
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import calls
import pytest

from omniq_executor import (
    AsyncOmniQ,
    DependencyFailed,
    PersistentExecutor,
    RemoteError,
    SerializationError,
    Settings,
    SettingsError,
    Status,
    StoreError,
    TaskNotFound,
    TaskTimeout,
)
from omniq_executor.model.task import iso
from omniq_executor.stores.sqlite import async_store as awaited

WAIT_S = 30.0
UNKNOWN = "task-0123456789abc"
Main = Callable[[AsyncOmniQ], Coroutine[Any, Any, Any]]


@pytest.fixture(params=["store.db", "store"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A store that is not there yet, of each kind."""
    return tmp_path / str(request.param)


@pytest.fixture(autouse=True)
def nothing_is_left_open() -> Iterator[None]:
    """After each test every thread ends that it started for stores."""
    before = {*threading.enumerate()}  # a test of another module may leave who waits for what nobody runs
    yield
    gc.collect()
    for thread in {*threading.enumerate()} - before:
        if thread.name.startswith(("omniq-store", "omniq-dispatcher")) or "_connection_worker" in thread.name:
            thread.join(WAIT_S)
            assert not thread.is_alive(), thread


def run(main: Awaitable[Any]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(2 * WAIT_S):
            return await main

    return asyncio.run(bounded())


def run_with(address: Any, main: Main, **how: Any) -> Any:
    """What a coroutine returns that is given an AsyncOmniQ."""

    async def opened() -> Any:
        async with AsyncOmniQ(address, **how) as omniq:
            return await main(omniq)

    return run(opened())


async def ids_of(omniq: AsyncOmniQ, count: int) -> list[str]:
    return [await omniq.enqueue("calls.square", [n]) for n in range(count)]


# --- Enqueuing and results ---


def test_what_is_enqueued_is_worked_off_and_its_result_read(address: Path) -> None:
    async def main(omniq: AsyncOmniQ) -> list[Any]:
        ids = [
            await omniq.enqueue("math.sqrt", [16]),
            await omniq.enqueue(calls.square, (3,)),
            await omniq.enqueue(lambda a, *, b: (a, b), [1], {"b": {2}}),
            await omniq.enqueue("calls.Outer.Inner.double", [5]),
        ]
        async with omniq.worker(2):
            return [await omniq.get_result(id) for id in ids]

    assert run_with(address, main) == [4.0, 9, (1, {2}), 10]


def test_a_task_has_the_seeds_fields(address: Path) -> None:
    eta = datetime(2100, 1, 1, tzinfo=UTC)

    async def main(omniq: AsyncOmniQ) -> Any:
        plain = await omniq.enqueue("my_module.my_function", [1, 2, 3], {"option": True})
        special = await omniq.enqueue("a.b", eta=eta, interval=timedelta(minutes=1), max_retries=3)
        return plain, special, await omniq.list_tasks()

    plain, special, (first, second) = run_with(address, main)
    assert isinstance(first.pop("enqueued_at"), str)
    assert first == {
        "id": plain, "func_path": "my_module.my_function", "args": [1, 2, 3], "kwargs": {"option": True},
        "status": "PENDING", "attempts": 0, "max_retries": 0, "timeout": None, "eta": None, "interval": None,
        "started_at": None, "completed_at": None, "failed_at": None, "result": None, "error": None,
        "queue": "default", "run": 0, "key": None, "priority": 0, "crashes": 0, "owner_deaths": 0, "owner": None,
        "retries": 0, "series": None, "tags": [], "after": [],
    }  # fmt: skip
    assert second["id"] == special
    assert (second["eta"], second["interval"], second["max_retries"]) == ("2100-01-01T00:00:00.000000Z", 60.0, 3)


def test_what_a_task_is_listed_with_enqueues_it_again(address: Path, tmp_path: Path) -> None:
    """Also what JSON could not keep, which is not loaded on the way."""

    async def main(omniq: AsyncOmniQ) -> Any:
        await omniq.enqueue("calls.square", [2], eta=timedelta(days=1), interval=7.5, max_retries=2)
        await omniq.enqueue("calls.add", [calls.make_unloadable()], {"also": (1,)})
        listed = await omniq.list_tasks()
        async with AsyncOmniQ(tmp_path / "other.db") as other:
            for task in listed:
                await other.enqueue(
                    task["func_path"], task["args"], task["kwargs"], eta=task["eta"], interval=task["interval"],
                    max_retries=task["max_retries"], timeout=task["timeout"],
                )  # fmt: skip
            return listed, await other.list_tasks()

    before, after = run_with(address, main)
    for task in (*before, *after):
        del task["id"], task["enqueued_at"]
    assert before == after
    assert list(before[1]["args"]) == ["pickle"]


def test_an_eta_is_kept_in_each_form(address: Path) -> None:
    moment = datetime(2100, 1, 1, 12, 30, 0, 123456, tzinfo=UTC)

    async def main(omniq: AsyncOmniQ) -> Any:
        for eta in (moment, moment.isoformat(), "2100-01-01T14:30:00.123456+02:00", None):
            await omniq.enqueue("a.b", eta=eta)
        return [task["eta"] for task in await omniq.list_tasks()]

    text = iso(round(moment.timestamp() * 1e6))
    assert run_with(address, main) == [text, text, text, None]


def test_settings_say_what_holds_of_tasks_that_say_nothing_else(tmp_path: Path) -> None:
    async def main(omniq: AsyncOmniQ) -> Any:
        await omniq.enqueue("a.b")
        await omniq.enqueue("a.b", max_retries=0)
        return [task["max_retries"] for task in await omniq.list_tasks()]

    for backend in ("sqlite", "file"):
        settings = Settings(backend=backend, base_dir=tmp_path / backend, max_retries=5)  # type: ignore[arg-type]
        assert run_with(settings, main) == [5, 0]
        assert settings.address.path.exists()


def test_a_function_of_the_script_is_found_by_its_path(script: Any, address: Path) -> None:
    script.write(f"""
import asyncio
from omniq_executor import AsyncOmniQ

def double(n):
    return 2 * n

async def main():
    omniq = AsyncOmniQ({str(address)!r})
    id = await omniq.enqueue("__main__.double", [4])
    async with omniq.worker(1):
        print(await omniq.get_result(id))
    try:
        await omniq.enqueue("__main__.treble", [4])
    except ValueError as error:
        print(error)

asyncio.run(main())
""")
    done = script.run()
    assert done.stderr == ""
    assert done.stdout == "8\n'__main__.treble' is no function of this script, and workers have no other\n"


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (ValueError("as text"), ValueError),
        (SystemExit(3), RemoteError),
        (asyncio.CancelledError("mine"), RemoteError),
        (StopIteration(4), RuntimeError),
    ],
    ids=repr,
)
def test_what_the_call_raised_is_raised(address: Path, raised: BaseException, expected: type[Exception]) -> None:
    async def main(omniq: AsyncOmniQ) -> Any:
        id = await omniq.enqueue(calls.throw, [raised])
        async with omniq.worker(1):
            with pytest.raises(expected) as caught:
                await omniq.get_result(id)
        assert (await omniq.list_tasks())[0]["status"] == "FAILED"
        return caught.value

    error = run_with(address, main)
    chain = [error, error.__cause__, error.__cause__ and error.__cause__.__cause__]
    assert any("in throw" in str(cause) for cause in chain)


def test_a_result_that_is_not_there_is_a_timeout(address: Path) -> None:
    async def main(omniq: AsyncOmniQ) -> None:
        id = await omniq.enqueue("calls.square", [3])
        with pytest.raises(TimeoutError, match=f"{id} is PENDING"):
            await omniq.get_result(id, wait=False)
        with pytest.raises(TimeoutError, match=f"{id} is not finished after 0.01 s"):
            await omniq.get_result(id, timeout=0.01)
        async with omniq.worker(1):
            assert await omniq.get_result(id, timeout=WAIT_S) == 9
        assert await omniq.get_result(id, wait=False) == 9

    run_with(address, main)


def test_of_a_cancelled_task_the_result_is_not_asyncios_cancellation(address: Path) -> None:
    async def main(omniq: AsyncOmniQ) -> None:
        before, later = await ids_of(omniq, 2)
        assert await omniq.cancel(before)
        waiting = asyncio.ensure_future(omniq.get_result(later))
        await asyncio.sleep(0.05)  # so that it waits
        async with AsyncOmniQ(address) as other:
            assert await other.cancel(later)
        for result in (omniq.get_result(before), waiting):
            with pytest.raises(concurrent.futures.CancelledError):
                await result

    run_with(address, main)


def test_many_wait_each_for_its_own(address: Path) -> None:
    async def main(omniq: AsyncOmniQ) -> Any:
        ids = await ids_of(omniq, 50)
        async with asyncio.TaskGroup() as group, omniq.worker(2):
            waiting = [group.create_task(omniq.get_result(id)) for id in (*ids, *ids)]
            return await asyncio.gather(*waiting)

    assert run_with(address, main) == [n * n for n in range(50)] * 2


@pytest.mark.parametrize(
    ("path", "expected", "says"),
    [
        ("no_such_module.function", ImportError, "no_such_module"),
        ("math.no_such_function", ImportError, "there is no math.no_such_function"),
        ("math.pi", TypeError, "'float' object is not callable"),
    ],
)
def test_of_a_path_that_is_no_functions_the_task_fails_and_says_so(
    address: Path, path: str, expected: type[Exception], says: str
) -> None:
    async def main(omniq: AsyncOmniQ) -> None:
        id = await omniq.enqueue(path)
        async with omniq.worker(1):
            with pytest.raises(expected, match=says):
                await omniq.get_result(id)

    run_with(address, main)


def test_a_task_that_takes_too_long_is_ended(address: Path, tmp_path: Path) -> None:
    async def main(omniq: AsyncOmniQ) -> None:
        ids = [
            await omniq.enqueue(calls.wait_for, [tmp_path / "never"], timeout=0.1),
            await omniq.enqueue(calls.wait_for, [tmp_path / "never"]),
        ]
        assert [task["timeout"] for task in await omniq.list_tasks()] == [0.1, 0.2]
        async with omniq.worker(1):
            for id in ids:
                with pytest.raises(TaskTimeout, match=id):
                    await omniq.get_result(id)

    if address.suffix:
        run_with(Settings(base_dir=address, timeout=0.2), main)
    else:
        run_with(Settings(backend="file", base_dir=address, timeout=0.2), main)


# --- Looking ---


def test_tasks_are_listed_by_status_and_the_newest_of_them(address: Path) -> None:
    async def main(omniq: AsyncOmniQ) -> None:
        ids = await ids_of(omniq, 5)
        await omniq.cancel(ids[1])
        await omniq.claim_task(ids[3])

        async def listed(*args: Any) -> list[int]:
            return [ids.index(task["id"]) for task in await omniq.list_tasks(*args)]

        assert await listed() == [0, 1, 2, 3, 4]
        assert await listed("pending") == await listed("PENDING") == await listed(Status.PENDING) == [0, 2, 4]
        assert await listed("Cancelled") == [1]
        assert await listed(None, 2) == [3, 4]
        assert await listed("PENDING", 2) == [2, 4]
        assert await listed(None, 0) == []
        assert await omniq.stats() == {"PENDING": 3, "RUNNING": 1, "COMPLETED": 0, "FAILED": 0, "CANCELLED": 1}

    run_with(address, main)


def test_a_long_list_is_in_order(address: Path) -> None:
    with PersistentExecutor(1, store=address, queue="mapped") as executor:
        list(executor.map(calls.square, range(awaited._LONG + 10)))
    listed = run_with(address, lambda omniq: omniq.list_tasks("completed"))
    assert [task["result"] for task in listed] == [n * n for n in range(awaited._LONG + 10)]


def test_who_names_a_queue_looks_at_that_one_and_who_names_none_at_all(address: Path) -> None:
    async def main(omniq: AsyncOmniQ) -> None:
        async with AsyncOmniQ(address, queue="mail") as mail, AsyncOmniQ(address, queue="empty") as empty:
            await mail.enqueue("a.b")
            await omniq.enqueue("a.b")
            assert {task["queue"] for task in await omniq.list_tasks()} == {"mail", "default"}
            assert [task["queue"] for task in await mail.list_tasks()] == ["mail"]
            assert await empty.list_tasks() == []
            assert [(await each.stats())["PENDING"] for each in (omniq, mail, empty)] == [2, 1, 0]

    run_with(address, main)


def test_who_only_looks_is_no_owner(address: Path, open_store: Any) -> None:
    async def main(omniq: AsyncOmniQ) -> Any:
        assert await omniq.list_tasks() == []
        await omniq.stats()
        return await asyncio.to_thread(lambda: open_store(address).owners())

    assert run_with(address, main) == []


@pytest.mark.parametrize("closes", [False, True])
def test_who_could_not_make_itself_known_is_the_same_owner_later(
    address: Path, open_store: Any, monkeypatch: pytest.MonkeyPatch, closes: bool
) -> None:
    """Issue 10: each try had left an owner that lived and never heard."""
    notify = awaited.AwaitedStore.notify

    async def refuse_once(self: awaited.AwaitedStore, owner: int) -> None:
        monkeypatch.setattr(awaited.AwaitedStore, "notify", notify)
        raise StoreError("refused by the test")

    monkeypatch.setattr(awaited.AwaitedStore, "notify", refuse_once)

    async def main() -> None:
        async with AsyncOmniQ(address) as omniq:
            with pytest.raises(StoreError, match="refused by the test"):
                await omniq.enqueue("math.sqrt", [4])
            (owner,) = open_store(address).owners()
            if not closes:
                await omniq.enqueue("math.sqrt", [4])
                assert [it.id for it in open_store(address).owners()] == [owner.id]

    asyncio.run(main())
    assert open_store(address).owners() == []


def test_a_task_that_needs_results_and_is_enqueued_anew_is_not_run_without_them(
    address: Path, journal: Any, tmp_path: Path
) -> None:
    """Its arguments name tasks of the store that it was listed from, which it does not wait for here."""
    with PersistentExecutor(1, store=address, queue="default") as executor:
        executor.submit(calls.noted, journal.path, executor.submit(calls.square, 3)).result()

    async def main(omniq: AsyncOmniQ) -> None:
        (task,) = [task for task in await omniq.list_tasks() if task["after"]]
        async with AsyncOmniQ(tmp_path / "other.db") as other, other.worker(1):
            again = await other.enqueue(task["func_path"], task["args"], task["kwargs"])
            with pytest.raises(DependencyFailed, match=f"result of {task['after'][0]}, which the call does not wait"):
                await other.get_result(again)

    run_with(address, main)
    assert len(journal.lines()) == 1


# --- Cancelling and claiming ---


def test_only_what_has_not_started_is_cancelled(address: Path, journal: Any, tmp_path: Path) -> None:
    async def main(omniq: AsyncOmniQ) -> None:
        running = await omniq.enqueue(calls.noted_wait, [journal.path, "called", tmp_path / "gate"])
        async with omniq.worker(1):
            await asyncio.to_thread(journal.wait_for, 1)
            waiting = await omniq.enqueue("calls.square", [1], eta=timedelta(days=1))
            assert await omniq.cancel(waiting)
            assert await omniq.cancel(waiting)  # it is cancelled, as before
            assert not await omniq.cancel(running)
            (tmp_path / "gate").touch()
            assert await omniq.get_result(running) == "called"
            assert not await omniq.cancel(running)

    run_with(address, main)


def test_what_runs_is_ended_if_that_is_asked_for(address: Path, journal: Any, tmp_path: Path) -> None:
    async def main(omniq: AsyncOmniQ) -> None:
        running = await omniq.enqueue(calls.noted_wait, [journal.path, "called", tmp_path / "gate"])
        async with omniq.worker(1):
            await asyncio.to_thread(journal.wait_for, 1)
            assert await omniq.cancel(running, running=True)
            with pytest.raises(concurrent.futures.CancelledError):
                await omniq.get_result(running)
            assert await omniq.get_result(await omniq.enqueue("calls.square", [3])) == 9  # the only worker is free
            (done,) = await omniq.list_tasks("completed")
            assert not await omniq.cancel(done["id"], running=True)

    run_with(address, main)


def test_a_task_is_claimed_once(address: Path) -> None:
    async def main(omniq: AsyncOmniQ) -> None:
        (id,) = await ids_of(omniq, 1)
        async with contextlib.AsyncExitStack() as stack:
            others = [await stack.enter_async_context(AsyncOmniQ(address)) for _ in range(3)]
            for attempt in (1, 2):
                claims = await asyncio.gather(*(each.claim_task(id) for each in (omniq, *others, omniq, *others)))
                assert sorted(claims) == [False] * 7 + [True]
                (task,) = await omniq.list_tasks()
                assert (task["status"], task["attempts"]) == ("RUNNING", attempt)
                claimer = (omniq, *others)[claims.index(True) % 4]
                if claimer is not omniq:
                    others.remove(claimer)
                    await claimer.aclose()
                    assert (await omniq.stats())["PENDING"] == 1
                    others.append(await stack.enter_async_context(AsyncOmniQ(address)))
                else:
                    break

    run_with(address, main)


def test_what_was_claimed_is_worked_off_when_it_is_released(address: Path) -> None:
    async def main(omniq: AsyncOmniQ) -> Any:
        (id,) = await ids_of(omniq, 1)
        other = AsyncOmniQ(address)
        assert await other.claim_task(id)
        async with omniq.worker(1):
            assert await omniq.get_result(await omniq.enqueue("math.sqrt", [4])) == 2
            assert (await omniq.stats())["RUNNING"] == 1
            await other.aclose()
            return await omniq.get_result(id)

    assert run_with(address, main) == 0


def test_what_a_killed_process_enqueued_is_kept_and_what_it_claimed_comes_back(
    script: Any, address: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script.write(f"""
import asyncio, os, signal
from omniq_executor import AsyncOmniQ

async def main():
    omniq = AsyncOmniQ({str(address)!r})
    for n in range(2, 4):
        id = await omniq.enqueue("math.factorial", [n])
    assert await omniq.claim_task(id)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
""")
    assert script.run().returncode == -9

    async def main(omniq: AsyncOmniQ) -> Any:
        first, second = [task["id"] for task in await omniq.list_tasks()]
        assert (await omniq.stats())["RUNNING"] == 1
        async with omniq.worker(1):
            return await omniq.get_result(first), await omniq.get_result(second)

    assert run_with(address, main) == (2, 6)
    with PersistentExecutor(1, store=address, queue="default") as executor:
        assert executor.submit(pow, 2, 3).result(WAIT_S) == 8
    assert not caplog.records  # no run is continued: what is enqueued is not the submission of a script


# --- What makes no sense ---

BAD_CALLS: list[tuple[str, list[Any], dict[str, Any], type[Exception], str]] = [
    ("enqueue", [""], {}, ValueError, "''"),
    ("enqueue", ["function"], {}, ValueError, "'function'"),
    ("enqueue", ["a.b c"], {}, ValueError, "'a.b c'"),
    ("enqueue", ["module.<lambda>"], {}, ValueError, "'module.<lambda>'"),
    ("enqueue", ["__main__.no_such_function"], {}, ValueError, "'__main__.no_such_function'"),
    ("enqueue", [3], {}, TypeError, "3 cannot be called"),
    ("enqueue", ["a.b", "abc"], {}, TypeError, "'abc'"),
    ("enqueue", ["a.b", 7], {}, TypeError, "args.*7"),
    ("enqueue", ["a.b", {"pickel": "gA=="}], {}, ValueError, "pickel"),
    ("enqueue", ["a.b", {"pickle": "?"}], {}, ValueError, "'pickle': '[?]'"),
    ("enqueue", ["a.b", {"pickle": None}], {}, ValueError, "None"),
    ("enqueue", ["a.b", {"pickle": "gA=="}, {"a": 1}], {}, ValueError, "kwargs.*'a': 1"),
    ("enqueue", ["a.b", [], [1]], {}, TypeError, r"kwargs.*\[1\]"),
    ("enqueue", ["a.b", [], {1: 2}], {}, TypeError, "kwargs.*1: 2"),
    ("enqueue", ["a.b", [threading.Lock()]], {}, SerializationError, "a.b"),
    ("enqueue", ["a.b"], {"eta": "tomorrow"}, ValueError, "eta.*'tomorrow'"),
    ("enqueue", ["a.b"], {"eta": "2100-01-01T00:00:00"}, ValueError, "eta.*time zone"),
    ("enqueue", ["a.b"], {"eta": []}, TypeError, "eta"),
    ("enqueue", ["a.b"], {"interval": 0}, ValueError, "interval.*0"),
    ("enqueue", ["a.b"], {"max_retries": -1}, ValueError, "max_retries.*-1"),
    ("get_result", ["7"], {}, ValueError, "'7'"),
    ("get_result", [UNKNOWN], {}, TaskNotFound, UNKNOWN),
    ("get_result", [UNKNOWN], {"wait": False}, TaskNotFound, UNKNOWN),
    ("cancel", ["task-"], {}, ValueError, "'task-'"),
    ("cancel", [UNKNOWN], {}, TaskNotFound, UNKNOWN),
    ("claim_task", [None], {}, ValueError, "None"),
    ("claim_task", [UNKNOWN], {}, TaskNotFound, UNKNOWN),
    ("list_tasks", ["DONE"], {}, ValueError, "'DONE'"),
    ("list_tasks", [3], {}, ValueError, "3"),
    ("list_tasks", [], {"limit": -1}, ValueError, "-1"),
    ("list_tasks", [], {"limit": "5"}, ValueError, "'5'"),
]


@pytest.mark.parametrize(("verb", "args", "kwargs", "kind", "says"), BAD_CALLS, ids=lambda it: str(it)[:40])
def test_what_makes_no_sense_is_named(
    address: Path, verb: str, args: list[Any], kwargs: dict[str, Any], kind: type[Exception], says: str
) -> None:
    async def main(omniq: AsyncOmniQ) -> None:
        with pytest.raises(kind, match=says):
            await getattr(omniq, verb)(*args, **kwargs)
        assert await omniq.list_tasks() == []

    run_with(address, main)


def test_a_store_and_a_queue_that_make_no_sense_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for store, queue, kind, says in [
        (7, None, TypeError, "7"), ("", None, StoreError, "empty"), ("redis://x", None, StoreError, "redis"),
        ("a.db", "", ValueError, "queue"), ("a.db", 3, TypeError, "queue.*3"),
    ]:  # fmt: skip
        with pytest.raises(kind, match=says):
            AsyncOmniQ(store, queue=queue)  # type: ignore[arg-type]
    monkeypatch.setenv("OMNIQ_BACKEND", "redis")
    with pytest.raises(SettingsError, match="redis"):
        AsyncOmniQ.from_env()
    (tmp_path / "file").touch()

    async def main() -> None:
        omniq = AsyncOmniQ(Settings(base_dir=tmp_path / "file"))
        for _ in range(2):  # it is tried again
            with pytest.raises(StoreError, match="file"):
                await omniq.list_tasks()
        await omniq.aclose()
        with pytest.raises(RuntimeError, match="closed"):
            await omniq.list_tasks()

    run(main())


# --- Opening and closing ---


def test_closing_ends_whoever_waits_and_all_that_follows(address: Path, open_store: Any) -> None:
    fds = len(os.listdir("/dev/fd"))

    async def main() -> None:
        omniq = AsyncOmniQ(address)
        (id,) = await ids_of(omniq, 1)
        waiting = [asyncio.ensure_future(omniq.get_result(id)) for _ in range(3)]
        await asyncio.sleep(0.05)
        await asyncio.gather(omniq.aclose(), omniq.aclose())
        await omniq.aclose()
        for each in waiting:
            with pytest.raises(StoreError, match="closed"):
                await each
        for call in (omniq.enqueue("a.b"), omniq.get_result(id), omniq.list_tasks(), omniq.stats(), omniq.cancel(id)):
            with pytest.raises(RuntimeError, match="closed"):
                await call
        await AsyncOmniQ(address).aclose()  # which was never opened

    run(main())
    assert len(os.listdir("/dev/fd")) == fds
    assert open_store(address).owners() == []


def test_closing_while_calls_are_under_way_has_each_done_or_refused(address: Path) -> None:
    async def main() -> None:
        omniq = AsyncOmniQ(address)
        added = [asyncio.ensure_future(omniq.enqueue("a.b", [n])) for n in range(20)]
        for _ in range(5):
            await asyncio.sleep(0)
        await omniq.aclose()
        outcomes = await asyncio.gather(*added, return_exceptions=True)
        assert all(isinstance(each, str | StoreError | RuntimeError) for each in outcomes)
        async with AsyncOmniQ(address) as other:
            listed = {task["id"] for task in await other.list_tasks()}
        assert {each for each in outcomes if isinstance(each, str)} == listed

    run(main())


def test_what_is_not_closed_is_closed_with_its_loop_and_opens_again_in_the_next(address: Path, open_store: Any) -> None:
    omniq = AsyncOmniQ(address)
    (id,) = asyncio.run(ids_of(omniq, 1))
    assert open_store(address).owners() == []

    async def main() -> Any:
        async with omniq.worker(1):
            return await omniq.get_result(id)

    assert run(main()) == 0
    assert open_store(address).owners() == []


def test_two_loops_at_once_cannot_share_it(address: Path) -> None:
    async def main(omniq: AsyncOmniQ) -> None:
        await omniq.stats()
        with pytest.raises(RuntimeError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, omniq.stats())
        await omniq.stats()

    run_with(address, main)


@pytest.mark.parametrize("end", ["asyncio.run(main())", "asyncio.new_event_loop().run_until_complete(main())"])
def test_a_program_that_closes_nothing_ends(script: Any, address: Path, end: str) -> None:
    script.write(f"""
import asyncio
from omniq_executor import AsyncOmniQ

omniq = AsyncOmniQ({str(address)!r})

async def main():
    print(len(await omniq.enqueue("a.b")))

{end}
""")
    done = script.run()
    assert (done.stdout, done.returncode) == ("18\n", 0)
    if "asyncio.run" in end:
        assert done.stderr == ""


def test_the_current_folder_may_change_before_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    for settings in (Settings(base_dir="data"), Settings(backend="file", base_dir="files")):  # type: ignore[arg-type]
        monkeypatch.chdir(tmp_path / "here")
        omniq = AsyncOmniQ(settings)
        monkeypatch.chdir(tmp_path / "there")
        run(omniq.enqueue("a.b"))
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == ["data", "files"]
    assert not list((tmp_path / "there").iterdir())
