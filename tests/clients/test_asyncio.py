"""asyncio: coroutines that wait for calls of an executor, by `loop.run_in_executor(executor, …)`."""

import asyncio
import functools
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import calls
import pytest

from omniq_executor import PersistentExecutor, Status

WAIT_S = 30.0


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """What the coroutine returns, within bounds."""
    return asyncio.run(asyncio.wait_for(main, WAIT_S))


def run_in(executor: PersistentExecutor, function: Any, *args: Any) -> "asyncio.Future[Any]":
    return asyncio.get_running_loop().run_in_executor(executor, function, *args)


async def until_there(path: Path) -> None:
    """Wait until a file is there, and let others run meanwhile."""
    while not path.exists():
        await asyncio.sleep(0.002)


def statuses(executor: PersistentExecutor) -> list[Status]:
    return [future.task().status for future in executor.futures()]


def test_many_calls_are_gathered_in_order(executor: PersistentExecutor) -> None:
    async def main() -> list[int]:
        return await asyncio.gather(*(run_in(executor, calls.square, n) for n in range(500)))

    assert run(main()) == [n * n for n in range(500)]


def test_keywords_come_through_a_partial(executor: PersistentExecutor) -> None:
    async def main() -> Any:
        return await run_in(executor, functools.partial(calls.add, 1, also=10), 2)

    assert run(main()) == 13


def test_calls_are_awaited_as_they_complete(executor: PersistentExecutor) -> None:
    async def main() -> list[int]:
        waiting = [run_in(executor, calls.square, n) for n in range(50)]
        return [await each for each in asyncio.as_completed(waiting)]

    assert sorted(run(main())) == [n * n for n in range(50)]


def test_a_future_is_awaited_itself(executor: PersistentExecutor) -> None:
    async def main() -> list[int]:
        return await asyncio.gather(*(executor.submit(calls.square, n) for n in range(50)))

    assert run(main()) == [n * n for n in range(50)]


def test_the_calls_exception_is_raised_with_the_workers_traceback(executor: PersistentExecutor) -> None:
    async def main() -> None:
        await run_in(executor, calls.raise_value_error, "as text")

    with pytest.raises(ValueError, match=r"(?m)^as text$") as caught:
        run(main())
    assert "in raise_value_error" in str(caught.value.__cause__)


def test_exceptions_are_gathered_among_the_results(executor: PersistentExecutor) -> None:
    async def main() -> list[Any]:
        waiting = [run_in(executor, calls.fail_at, 2, n) for n in range(4)]
        return await asyncio.gather(*waiting, return_exceptions=True)

    first, second, error, last = run(main())
    assert (first, second, last) == (0, 1, 3)
    assert isinstance(error, ValueError)
    assert str(error) == "item 2"


def test_the_loop_goes_on_while_calls_run(executor: PersistentExecutor, journal: Any, tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    async def main() -> str:
        call = run_in(executor, calls.noted_wait, journal.path, "called", gate)
        await until_there(journal.path)
        gate.touch()  # the call waits for what only this coroutine does
        return await call

    assert run(main()) == "called"


def test_loops_in_several_threads_share_an_executor(executor: PersistentExecutor) -> None:
    async def squares(start: int) -> list[int]:
        return await asyncio.gather(*(run_in(executor, calls.square, n) for n in range(start, start + 100)))

    async def main() -> list[list[int]]:
        return await asyncio.gather(*(asyncio.to_thread(asyncio.run, squares(start)) for start in (0, 100, 200)))

    assert run(main()) == [[n * n for n in range(start, start + 100)] for start in (0, 100, 200)]


# --- Leaving before the end --------------------------------------------------------------------------------------


def test_what_is_cancelled_before_it_starts_never_runs(make_executor: Any, journal: Any, tmp_path: Path) -> None:
    executor, gate = make_executor(1), tmp_path / "gate"

    async def main() -> None:
        running = run_in(executor, calls.noted_wait, journal.path, "running", gate)
        waiting = run_in(executor, calls.noted, journal.path, "cancelled")
        await until_there(journal.path)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        gate.touch()
        assert await running == "running"
        assert await run_in(executor, calls.noted, journal.path, "later") == "later"

    run(main())
    assert journal.lines() == ["running", "later"]
    assert statuses(executor) == [Status.COMPLETED, Status.CANCELLED, Status.COMPLETED]


def test_a_timeout_cancels_what_has_not_started(make_executor: Any, journal: Any, tmp_path: Path) -> None:
    executor, gate = make_executor(1), tmp_path / "gate"

    async def main() -> None:
        running = run_in(executor, calls.noted_wait, journal.path, "running", gate)
        await until_there(journal.path)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(run_in(executor, calls.noted, journal.path, "cancelled"), 0.05)
        gate.touch()
        assert await running == "running"
        assert await run_in(executor, calls.noted, journal.path, "later") == "later"

    run(main())
    assert journal.lines() == ["running", "later"]
    assert statuses(executor) == [Status.COMPLETED, Status.CANCELLED, Status.COMPLETED]


def test_a_call_that_was_timed_out_in_its_midst_keeps_its_result(
    make_executor: Any, journal: Any, tmp_path: Path
) -> None:
    executor, gate = make_executor(1), tmp_path / "gate"

    async def main() -> None:
        call = run_in(executor, calls.noted_wait, journal.path, "running", gate)
        await until_there(journal.path)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(call, 0.05)

    run(main())
    gate.touch()
    [future] = executor.futures()
    assert future.result(WAIT_S) == "running"
    assert future.task().status is Status.COMPLETED


def test_the_failure_of_one_task_of_a_group_cancels_what_has_not_started(
    make_executor: Any, journal: Any, tmp_path: Path
) -> None:
    executor, gate = make_executor(1), tmp_path / "gate"

    async def call(line: str) -> None:
        await run_in(executor, calls.noted_wait, journal.path, line, gate)

    async def fail() -> None:
        await until_there(journal.path)
        raise KeyError("the group's own")

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for line in ("running", "second", "third"):
                group.create_task(call(line))
            group.create_task(fail())

    with pytest.raises(ExceptionGroup, match="unhandled errors in a TaskGroup"):
        run(main())
    gate.touch()
    assert executor.submit(calls.noted, journal.path, "later").result(WAIT_S) == "later"
    assert journal.lines() == ["running", "later"]
    assert statuses(executor) == [Status.COMPLETED, Status.CANCELLED, Status.CANCELLED, Status.COMPLETED]
