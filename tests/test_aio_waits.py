"""AsyncOmniQ where others hold the store, calls are cancelled on their way, and processes share the work."""

import asyncio
import concurrent.futures
import contextlib
import contextvars
import itertools
import os
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import calls
import pytest

import omniq_executor
from omniq_executor import AsyncOmniQ, StoreError, aio
from omniq_executor.stores.sqlite import tally
from omniq_executor.stores.sqlite.async_store import AwaitedSQLite, AwaitedStore

WAIT_S = 30.0
ROOT = str(Path(omniq_executor.__file__).parents[1])
Verb = Callable[[AsyncOmniQ, str], Coroutine[Any, Any, Any]]

VERBS: dict[str, Verb] = {
    "enqueue": lambda omniq, id: omniq.enqueue("another.one"),
    "cancel": lambda omniq, id: omniq.cancel(id),
    "claim": lambda omniq, id: omniq.claim_task(id),
    "hear": lambda omniq, id: _hear(omniq),
    "list": lambda omniq, id: omniq.list_tasks(),
    "stats": lambda omniq, id: omniq.stats(),
    "result": lambda omniq, id: omniq.get_result(id),
}
WRITES = ["enqueue", "cancel", "claim", "hear"]


async def _hear(omniq: AsyncOmniQ) -> None:
    session = await omniq._session()
    await session.store.read_changes(await session.owner())


@pytest.fixture(params=["store.db", "store"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A store that is not there yet, of each kind."""
    return tmp_path / str(request.param)


def run(main: Coroutine[Any, Any, Any]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(2 * WAIT_S):
            return await main

    return asyncio.run(bounded())


HOLDS = {
    ".db": "c = sqlite3.connect(path, isolation_level=None, timeout=30); c.execute('BEGIN IMMEDIATE')",
    "": "lock = filelock.FileLock(path + '/turn.lock', thread_local=False); lock.acquire()",
}


@contextlib.asynccontextmanager
async def held(address: Path) -> AsyncIterator[Callable[[], None]]:
    """A store that another process has the lock of, until what this gives is called."""
    code = f"import filelock, sqlite3; path = {str(address)!r}\n{HOLDS[address.suffix]}\n"
    code += "print('held', flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert await asyncio.to_thread(process.stdout.readline) == b"held\n"
        yield process.stdin.close
    finally:
        process.stdin.close()
        process.wait(WAIT_S)
        process.stdout.close()


async def come_round() -> None:
    """Have the loop come round some times; it would not, if anything held it up."""
    for _ in range(50):
        await asyncio.sleep(0.005)


async def write_elsewhere(address: Path) -> None:
    """Take the writer's lock, which is free unless a transaction was left open."""

    def write() -> None:
        with contextlib.closing(sqlite3.connect(address, isolation_level=None, timeout=10)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")

    await asyncio.to_thread(write)


# --- The loop goes on ---


@pytest.mark.parametrize("verb", VERBS)
def test_the_loop_goes_on_while_another_process_holds_the_store(address: Path, verb: str) -> None:
    async def main() -> None:
        async with AsyncOmniQ(address) as omniq:
            id = await omniq.enqueue("a.b")
            if verb == "result":
                assert await omniq.cancel(id)
            async with held(address) as let_go:
                call = asyncio.ensure_future(VERBS[verb](omniq, id))
                await come_round()
                if address.suffix == "" or verb in WRITES:
                    assert not call.done()
                let_go()  # which nobody would do if the loop stood still
                await asyncio.wait([call])
                assert (type(call.exception()).__name__ == "CancelledError") == (verb == "result")

    run(main())


def test_the_loop_goes_on_while_the_store_is_opened_and_closed(address: Path) -> None:
    async def main() -> None:
        async with AsyncOmniQ(address) as omniq, AsyncOmniQ(address) as other:
            await omniq.enqueue("a.b")
            await other.enqueue("a.b")
            async with held(address) as let_go:
                calls = [asyncio.ensure_future(call) for call in (AsyncOmniQ(address).enqueue("a.b"), other.aclose())]
                await come_round()
                assert not any(call.done() for call in calls)
                let_go()
                await asyncio.gather(*calls)
            assert (await omniq.stats())["PENDING"] == 3

    run(main())


def test_a_turn_is_done_though_the_mark_of_the_counts_cannot_be_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 13: it was stored, and raised as if it were not."""

    def refused(*_: int) -> Any:
        raise StoreError("no")
        yield

    async def main() -> Any:
        async with AsyncOmniQ(tmp_path / "store.db") as omniq:
            session = await omniq._session()
            batch = aio.Batch(1, tally.STEP, aio.named("a.b"), text=str([[n] for n in range(tally.STEP)]))
            owner = await session.owner()
            with monkeypatch.context() as patch:
                patch.setattr(tally, "move_on", refused)
                await session.store.turn(owner, session._run, aio.Turn(1, adds=(batch,)))
            return await omniq.stats()

    assert run(main())["PENDING"] == tally.STEP


def test_the_loop_goes_on_while_a_long_list_is_read(address: Path) -> None:
    long = 20_000 if address.suffix else 10_000  # files take longer

    async def main() -> tuple[int, int]:
        async with AsyncOmniQ(address) as omniq:
            session = await omniq._session()
            owner = await session.owner()
            batch = aio.Batch(1, long, aio.named("a.b"), text=str([[n] for n in range(long)]))
            await session.store.turn(owner, session._run, aio.Turn(1, adds=(batch,)))
            listing = asyncio.ensure_future(omniq.list_tasks())
            ticks = 0
            while not listing.done():
                await asyncio.sleep(0.005)
                ticks += 1
            return ticks, len(listing.result())

    ticks, count = run(main())
    assert count == long
    assert ticks > 5


def test_who_waits_for_a_result_looks_once_and_when_there_is_news(
    address: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    for kind in (AwaitedStore, AwaitedSQLite):

        async def states(self: Any, numbers: list[int], of: Any = kind.states) -> Any:
            looks.append(len(numbers))
            return await of(self, numbers)

        monkeypatch.setattr(kind, "states", states)

    async def main() -> None:
        async with AsyncOmniQ(address) as omniq:
            mine, other = [await omniq.enqueue("a.b") for _ in range(2)]
            result = asyncio.ensure_future(omniq.get_result(mine))
            await asyncio.sleep(0.3)
            assert len(looks) == 1
            async with AsyncOmniQ(address) as elsewhere:
                await elsewhere.cancel(other)
                await asyncio.sleep(0.3)
                assert len(looks) == 1
                await elsewhere.cancel(mine)
            await asyncio.wait([result])
            assert len(looks) == 2

    run(main())


def test_news_are_heard_while_nobody_waits(tmp_path: Path, wait_until: Any) -> None:
    address = tmp_path / "store.db"

    async def main() -> None:
        async with AsyncOmniQ(address) as omniq:
            for n in range(10):
                await omniq.enqueue("math.sqrt", [n])
            async with omniq.worker(1):
                while (await omniq.stats())["COMPLETED"] < 10:
                    await asyncio.sleep(0.01)
                owner = await (await omniq._session()).owner()
                with contextlib.closing(sqlite3.connect(address)) as connection:
                    heard = "SELECT heard = (SELECT seq FROM sqlite_sequence) FROM owner WHERE id = ?"
                    while connection.execute(heard, (owner,)).fetchone() != (1,):
                        await asyncio.sleep(0.01)

    run(main())


# --- Cancelled on the way ---


@pytest.mark.parametrize("when", ["in a statement", "after it"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_call_that_is_cancelled_at_any_statement_leaves_no_transaction_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, when: str
) -> None:
    address = tmp_path / "store.db"
    statements: list[str] = []
    is_of_victim = contextvars.ContextVar("is_of_victim", default=False)
    victim: asyncio.Future[Any]
    cancel_at = 0
    execute = AwaitedSQLite._execute

    async def watched(self: AwaitedSQLite, sql: str, parameters: Any) -> Any:
        if not is_of_victim.get():
            return await execute(self, sql, parameters)
        statements.append(sql)
        is_it = len(statements) == cancel_at
        if is_it and when == "in a statement":
            victim.cancel()
        reply = await execute(self, sql, parameters)
        if is_it and when == "after it":
            victim.cancel()
        return reply

    monkeypatch.setattr(AwaitedSQLite, "_execute", watched)

    async def attempt(omniq: AsyncOmniQ, id: str) -> bool:
        """Whether it was cancelled."""
        nonlocal victim
        statements.clear()

        async def marked() -> None:
            is_of_victim.set(True)
            with contextlib.suppress(concurrent.futures.CancelledError):  # which is a result
                await VERBS[verb](omniq, id)

        victim = asyncio.ensure_future(marked())
        await asyncio.wait([victim])
        return victim.cancelled()

    async def main() -> int:
        nonlocal cancel_at
        async with AsyncOmniQ(address) as omniq:
            await omniq.enqueue("a.b")
            for cancel_at in itertools.count(1):
                id = await omniq.enqueue("a.b")
                if verb == "result":
                    await omniq.cancel(id)
                else:
                    session = await omniq._session()
                    session.store._functions.clear()  # type: ignore[attr-defined]  # as at the first time
                before = await omniq.stats()
                cancelled = await attempt(omniq, id)
                if not cancelled:
                    assert len(statements) <= cancel_at
                    return cancel_at - 1
                after = await omniq.stats()  # which is after what is under way
                await write_elsewhere(address)
                if verb in WRITES and "COMMIT" not in statements:
                    assert after == before
                if verb == "claim" and "COMMIT" in statements:
                    assert after["RUNNING"] == before["RUNNING"] + 1
                await omniq.enqueue("a.b")
        return 0

    assert run(main()) >= (4 if verb in WRITES else 1)


def test_who_is_cancelled_does_not_wait_for_the_store(address: Path) -> None:
    async def main() -> None:
        async with AsyncOmniQ(address) as omniq:
            id = await omniq.enqueue("a.b")
            async with held(address) as let_go:
                for verb in WRITES * 2:
                    call = asyncio.ensure_future(VERBS[verb](omniq, id))
                    await asyncio.sleep(0.02)
                    call.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await call
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await omniq.enqueue("a.b")
                let_go()
            again = await omniq.enqueue("a.b")
            stats = await omniq.stats()
            if address.suffix == ".db":
                assert stats == {"PENDING": 2, "RUNNING": 0, "COMPLETED": 0, "FAILED": 0, "CANCELLED": 0}
            assert again in [task["id"] for task in await omniq.list_tasks()]

    run(main())


def test_whose_first_call_is_cancelled_goes_on_opening_for_the_others(address: Path) -> None:
    async def main() -> None:
        async with AsyncOmniQ(address) as omniq:
            await omniq.stats()
        omniq = AsyncOmniQ(address)
        calls = [asyncio.ensure_future(omniq.enqueue("a.b")) for _ in range(3)]
        await asyncio.sleep(0)
        calls[0].cancel()
        await asyncio.wait(calls)
        assert [call.cancelled() for call in calls] == [True, False, False]
        assert (await omniq.stats())["PENDING"] == 2

    run(main())


def test_many_at_once_do_not_mix_their_transactions(address: Path) -> None:
    async def main() -> None:
        async with AsyncOmniQ(address) as omniq:
            calls = []
            for n in range(60):
                calls.append(asyncio.ensure_future(omniq.enqueue(f"module.f{n % 7}", [n])))
                calls.append(asyncio.ensure_future(omniq.stats()))
                if n % 3 == 0:
                    await asyncio.sleep(0)
                    calls[-2].cancel()
            await asyncio.wait(calls)
            added = {call.result() for call in calls[::2] if not call.cancelled()}
            listed = {task["id"]: task for task in await omniq.list_tasks()}
            assert len(added) >= 40
            assert added <= listed.keys()
            assert all(task["func_path"] == f"module.f{task['args'][0] % 7}" for task in listed.values())

    run(main())


# --- Several processes ---

WORKS = """
import asyncio, sys
from omniq_executor import AsyncOmniQ

async def main():
    async with AsyncOmniQ(sys.argv[1]) as omniq, omniq.worker(1):
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


def test_one_process_enqueues_and_waits_and_another_works(script: Any, address: Path) -> None:
    script.write(WORKS)

    async def main() -> list[Any]:
        async with AsyncOmniQ(address) as omniq:
            ids = [await omniq.enqueue("math.factorial", [n]) for n in range(5)]
            worker = script.start(str(address), stdin=subprocess.PIPE)
            ids += [await omniq.enqueue("math.factorial", [n]) for n in range(5, 10)]
            results = await asyncio.gather(*(omniq.get_result(id) for id in ids))
            last = await omniq.enqueue("math.factorial", [3])  # while it is idle
            results.append(await omniq.get_result(last))
            worker.stdin.close()
            done = await asyncio.to_thread(script.finished, worker)
            assert (done.returncode, done.stderr) == (0, "")
            return results

    assert run(main()) == [1, 1, 2, 6, 24, 120, 720, 5040, 40320, 362880, 6]


def test_the_command_worker_works_off_what_is_enqueued(script: Any, address: Path) -> None:
    async def main() -> list[Any]:
        async with AsyncOmniQ(address) as omniq:
            ids = [await omniq.enqueue("math.factorial", [n]) for n in range(5)]
            worker = script.start("--store", str(address), "-n", "1", python=["-m", "omniq_executor", "worker"])
            results = await asyncio.gather(*(omniq.get_result(id) for id in ids))
            worker.terminate()
            assert (await asyncio.to_thread(script.finished, worker)).returncode == 0
            return results

    assert run(main()) == [1, 1, 2, 6, 24]


def test_a_worker_that_is_left_finishes_what_runs_and_starts_nothing_more(
    address: Path, journal: Any, tmp_path: Path
) -> None:
    async def main() -> None:
        async with AsyncOmniQ(address) as omniq:
            first = await omniq.enqueue(calls.noted_wait, [journal.path, "first", tmp_path / "gate"])
            for n in range(3):
                await omniq.enqueue(calls.noted, [journal.path, n])
            async with omniq.worker(1):
                await asyncio.to_thread(journal.wait_for, 1)
                asyncio.get_running_loop().call_later(0.1, (tmp_path / "gate").touch)
            assert await omniq.get_result(first, wait=False) == "first"
            assert (await omniq.stats())["PENDING"] == 3
        assert journal.lines() == ["first"]

    run(main())


def test_a_worker_that_is_cancelled_while_it_starts_leaves_nothing_behind(
    address: Path, tmp_path: Path, open_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = AsyncOmniQ._start_worker

    async def main() -> None:
        loop, starts = asyncio.get_running_loop(), asyncio.Event()

        def watched(omniq: AsyncOmniQ, concurrency: int | None) -> Any:
            loop.call_soon_threadsafe(starts.set)
            return start(omniq, concurrency)

        monkeypatch.setattr(AsyncOmniQ, "_start_worker", watched)

        async def work() -> None:
            async with omniq.worker(1):
                await asyncio.Event().wait()

        async with AsyncOmniQ(address) as omniq:
            await omniq.enqueue(calls.wait_for, [tmp_path / "gate"])
            working = asyncio.ensure_future(work())
            await starts.wait()
            working.cancel()
            with pytest.raises(asyncio.CancelledError):
                await working
            assert (await omniq.stats())["PENDING"] == 1

    run(main())
    assert open_store(address).owners() == []


def test_a_worker_that_is_cancelled_ends_its_calls_and_leaves_them_pending(
    address: Path, journal: Any, tmp_path: Path
) -> None:
    async def main() -> None:
        async with AsyncOmniQ(address) as omniq:
            id = await omniq.enqueue(calls.noted_wait, [journal.path, "called", tmp_path / "gate"])

            async def work() -> None:
                async with omniq.worker(1):
                    await asyncio.Event().wait()

            working = asyncio.ensure_future(work())
            await asyncio.to_thread(journal.wait_for, 1)
            working.cancel()
            with pytest.raises(asyncio.CancelledError):
                await working
            assert (await omniq.stats())["PENDING"] == 1
            (tmp_path / "gate").touch()
            async with omniq.worker(1):
                assert await omniq.get_result(id) == "called"
        assert journal.lines() == ["called", "called"]

    run(main())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_leaves_the_store_to_its_parent(script: Any, address: Path) -> None:
    script.write(f"""
import asyncio, gc, os
from omniq_executor import AsyncOmniQ

async def main():
    omniq = AsyncOmniQ({str(address)!r})
    first = await omniq.enqueue("a.b")
    child = os.fork()
    if child == 0:
        for held in gc.get_objects():
            if type(held).__name__ in ("AwaitedSQLite", "AwaitedStore", "SQLiteStore", "FileStore"):
                vars(held).clear()
        for _ in range(5):
            gc.collect()
        os._exit(0)
    os.waitpid(child, 0)
    await omniq.enqueue("a.b")
    print((await omniq.stats())["PENDING"])
    async with AsyncOmniQ({str(address)!r}) as other:
        print((await other.stats())["PENDING"])

asyncio.run(main())
""")
    done = script.run(python=["-W", "ignore", "script.py"])
    assert (done.stdout, done.stderr, done.returncode) == ("2\n2\n", "", 0)
