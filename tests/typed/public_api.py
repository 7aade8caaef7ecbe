"""What type checkers see of the public API. It is checked, never run: see the environment `types` of tox.

Each `ignore` is an error that has to be there: both checkers refuse one that suppresses nothing.
"""

import asyncio
import concurrent.futures
import copy
import datetime
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, assert_type, cast

import omniq_executor
from omniq_executor import (
    AsyncOmniQ,
    Attached,
    DurableFuture,
    FailureGroup,
    Failures,
    InputFile,
    PersistentExecutor,
    Preview,
    Reason,
    Resumed,
    Settings,
    Status,
    Store,
    Task,
    attach,
    open_store,
)
from omniq_executor.config import Settings as SettingsByItsModule

FOLDER = Path("runs")


def word(count: int, *, upper: bool = False) -> str:
    return ("A" if upper else "a") * count


def add(a: int, b: int = 0) -> int:
    return a + b


def total(numbers: Iterable[int]) -> int:
    return sum(numbers)


def mixed(a: int, b: str, c: bytes, d: float) -> float:
    return a + len(b) + len(c) + d


def look_up(table: Mapping[str, int], name: str) -> int:
    return table[name]


def half(number: float) -> float:
    return number / 2


def many(*numbers: int) -> int:
    return sum(numbers)


def anything(value: Any) -> Any:
    return value


class Point:
    def __init__(self, x: int, y: int) -> None:
        self.x, self.y = x, y

    def shifted(self, by: int) -> "Point":
        return Point(self.x + by, self.y)


# --- Executors ---------------------------------------------------------------------------------------------------


def makes_executors() -> None:
    PersistentExecutor()
    PersistentExecutor(2, None, print, ("worker",), max_tasks_per_child=10, capture_output=True)
    PersistentExecutor(store="runs/etl.db", queue="etl", resume="always", resume_within=3600, leftovers="run")
    PersistentExecutor(store=FOLDER, resume_within=datetime.timedelta(days=1), crash_retries=1, durability="power")
    PersistentExecutor(store=Settings("file", FOLDER, max_retries=2), engine="external")
    PersistentExecutor(engine=concurrent.futures.ThreadPoolExecutor(2))
    PersistentExecutor(engine=concurrent.futures.ThreadPoolExecutor)
    PersistentExecutor(4, engine="dask://host:8786")
    PersistentExecutor(engine=7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    PersistentExecutor(resume="failed", result_ttl=None)
    PersistentExecutor(result_ttl=datetime.timedelta(days=30))
    PersistentExecutor(result_ttl="7d")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    PersistentExecutor(resume="sometimes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    PersistentExecutor(on_change="reuse")
    PersistentExecutor(on_change="ignore")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    PersistentExecutor(workers=2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    with PersistentExecutor() as executor:
        assert_type(executor, PersistentExecutor)
        assert_type(executor.queue, str)
        assert_type(executor.store, Store)
        assert_type(executor.stacks(timeout=2), dict[str, str])
        assert_type(executor.resumed, Resumed)
        assert_type(executor.resumed.counts, Mapping[Reason, int])
        assert_type(executor.preview(word, [1, 2]), Preview)
        assert_type(executor.preview(word, [1, 2]).why(0), str)
        assert_type(executor.options(priority=1).preview(add, [1], [2]).runs, int)
        assert_type(executor.submit(word, 1).why(), str)
        assert_type(executor.retry_failed(), list[DurableFuture[Any]])
        assert_type(executor.options(memo=True).submit(add, 1), DurableFuture[int])
        executor.shutdown(wait=False, cancel_futures=True)
        executor.terminate_workers()
        executor.kill_workers()
    as_one_of_any: concurrent.futures.Executor = PersistentExecutor()
    as_one_of_any = executor.options(priority=1)
    assert_type(as_one_of_any.submit(add, 1).result(), int)


def submits(executor: PersistentExecutor) -> None:
    assert_type(executor.submit(word, 3), DurableFuture[str])
    assert_type(executor.submit(word, 3, upper=True), DurableFuture[str])
    assert_type(executor.submit(word, count=3), DurableFuture[str])
    assert_type(executor.submit(Point, 1, 2), DurableFuture[Point])
    assert_type(executor.submit(Point(1, 2).shifted, 1), DurableFuture[Point])
    assert_type(executor.submit(lambda: 3), DurableFuture[int])
    assert_type(executor.submit(many), DurableFuture[int])
    assert_type(executor.submit(sum, [1, 2]), DurableFuture[int])
    assert_type(executor.submit(print, "a"), DurableFuture[None])
    assert_type(executor.submit(anything, 3), DurableFuture[Any])

    executor.submit(add, "1")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    executor.submit(add)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    executor.submit(add, 1, 2, 3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    executor.submit(add, 1, c=2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    executor.submit(word, 1, upper=3)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    executor.submit(3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    _: DurableFuture[int] = executor.submit(word, 3)  # type: ignore[call-overload]  # pyright: ignore[reportAssignmentType]


def submits_with_futures(executor: PersistentExecutor) -> None:
    number = executor.submit(add, 1)
    text = executor.submit(word, 3)
    whatever = executor.future("task-0123456789abc")

    assert_type(executor.submit(add, number), DurableFuture[int])
    assert_type(executor.submit(add, number, 2), DurableFuture[int])
    assert_type(executor.submit(add, 1, number), DurableFuture[int])
    assert_type(executor.submit(add, number, number), DurableFuture[int])
    assert_type(executor.submit(add, number, b=2), DurableFuture[int])
    assert_type(executor.submit(add, whatever), DurableFuture[int])
    assert_type(executor.submit(word, number, upper=True), DurableFuture[str])
    assert_type(executor.submit(half, number), DurableFuture[float])  # an int does where a float does
    assert_type(executor.submit(many, number, 2), DurableFuture[int])
    assert_type(executor.submit(mixed, 1, text, b"", 2.0), DurableFuture[float])
    assert_type(executor.submit(mixed, number, text, executor.submit(bytes, 3), 2.0), DurableFuture[float])
    assert_type(executor.submit(Point, number, 2), DurableFuture[Point])

    assert_type(executor.submit(total, [number, number]), DurableFuture[int])
    assert_type(executor.submit(total, (number, number)), DurableFuture[int])
    assert_type(executor.submit(total, {number}), DurableFuture[int])
    assert_type(executor.submit(total, [executor.submit(add, i) for i in range(3)]), DurableFuture[int])
    assert_type(executor.submit(sum, executor.futures(Status.COMPLETED)), DurableFuture[int])
    assert_type(executor.submit(look_up, {"a": number}, "a"), DurableFuture[int])
    assert_type(executor.submit(look_up, {"a": number}, text), DurableFuture[int])

    assert_type(executor.submit(word, count=cast(int, number)), DurableFuture[str])

    executor.submit(add, text)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    executor.submit(add, number, "2")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    executor.submit(add, "1", number)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    executor.submit(word, number, lower=True)  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
    executor.submit(word, count=number)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    executor.submit(mixed, 1, "", b"", number)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]


def maps(executor: PersistentExecutor) -> None:
    assert_type(executor.map(word, [1, 2]), Iterator[str])
    assert_type(executor.map(word, [1, 2], progress=True), Iterator[str])
    assert_type(executor.map_unordered(word, [1, 2], progress=True), Iterator[str])
    executor.progress()
    executor.progress([executor.submit(add, 1)])
    assert_type(executor.map(add, [1, 2], range(2)), Iterator[int])
    assert_type(executor.map(mixed, [1], [""], [b""], [2.0], timeout=3, chunksize=2, buffersize=4), Iterator[float])
    assert_type(executor.map(add, [executor.submit(add, 1), 2]), Iterator[int])
    assert_type([text.upper() for text in executor.map(word, [1, 2])], list[str])
    assert_type(executor.options(tags=["t"]).map(word, [1, 2], buffersize=1), Iterator[str])

    executor.map(word, 3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    executor.map(word, [1], timeout="3")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    executor.options(priority=1).map(word, [1], chunks=2)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


def maps_what_may_fail(executor: PersistentExecutor, is_bold: bool) -> None:
    assert_type(executor.map(word, [1], return_exceptions=False), Iterator[str])
    assert_type(executor.map(word, [1], timeout=3, return_exceptions=True), Iterator[str | BaseException])
    assert_type(executor.map(word, [1], return_exceptions=is_bold), Iterator[str | BaseException])
    good = [text for text in executor.map(word, [1], return_exceptions=True) if not isinstance(text, BaseException)]
    assert_type(good, list[str])

    assert_type(executor.map_unordered(add, [1, 2], range(2)), Iterator[int])
    assert_type(executor.options(priority=1).map_unordered(word, [1], timeout=3, buffersize=4), Iterator[str])
    assert_type(executor.map_unordered(word, [1], return_exceptions=True), Iterator[str | BaseException])

    executor.map_unordered(word, 3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    executor.map_unordered(word, [1], chunksize=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    _: Iterator[str] = executor.map(word, [1], return_exceptions=True)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]


def length(path: PathLike[str], limit: int = 0) -> int:
    return len(str(path)) + limit


def gives_files(executor: PersistentExecutor) -> None:
    file = InputFile(InputFile(FOLDER))
    assert_type(file.path, str)
    assert_type(executor.submit(length, file, limit=1), DurableFuture[int])
    assert_type(executor.map(length, [InputFile("a"), InputFile("b")]), Iterator[int])
    with open(file) as opened:
        assert_type(opened.read(), str)
    file.path = "other"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    InputFile(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    missing: FileNotFoundError = omniq_executor.InputNotFound()
    of_one_call: omniq_executor.CallError = omniq_executor.InputIsFolder()
    raise missing from of_one_call


def gives_options(executor: PersistentExecutor) -> None:
    careful = executor.options(
        key="k", max_retries=3, backoff=lambda retry: 2.0 * retry, retry_on=(OSError, ValueError), timeout=90,
        priority=1, eta=datetime.timedelta(hours=1), interval=datetime.timedelta(days=1), tags=("nightly",),
    )  # fmt: skip
    assert_type(careful.submit(word, 3, upper=True), DurableFuture[str])
    assert_type(careful.submit(add, careful.submit(add, 1), 2), DurableFuture[int])
    assert_type(careful.map(add, [1], [2]), Iterator[int])
    with careful as the_same:
        assert_type(the_same.submit(word, 3).result(), str)
    careful.shutdown(wait=False)

    careful.submit(add, "1")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    executor.options(version=3, depends=["numpy", FOLDER, datetime, InputFile("table.csv")])
    executor.options(version="2024-05", depends=(name for name in ["settings"]))
    executor.options(version=1.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    executor.options(depends=[3])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    executor.options(max_retries="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    executor.options(retries=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    executor.options(3)  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]


# --- Futures -----------------------------------------------------------------------------------------------------


def asks_a_future(executor: PersistentExecutor) -> None:
    future = executor.submit(word, 3)
    assert_type(future.result(), str)
    assert_type(future.result(timeout=3), str)
    assert_type(future.exception(), BaseException | None)
    assert_type(future.task_id, str | None)
    assert_type(future.task(), Task)
    assert_type(future.task().status, Status)
    assert_type(future.logs(1), str)
    assert_type(future.cancel(running=True), bool)
    assert_type(future.running(), bool)
    assert_type(future.resumed, bool)
    assert_type(future.recurs, bool)
    assert_type(executor.future("task-0123456789abc"), DurableFuture[Any])
    assert_type(executor.futures(), list[DurableFuture[Any]])
    assert_type(executor.futures(Status.FAILED, tags=["t"])[0].result(), Any)
    assert_type(executor.future(key="k"), DurableFuture[Any])
    assert_type(executor.futures(function=word), list[DurableFuture[Any]])
    assert_type(copy.deepcopy(future), DurableFuture[str])

    as_one_of_any: concurrent.futures.Future[str] = future
    as_one_of_any.add_done_callback(lambda done: done.result().upper())
    for done in concurrent.futures.as_completed([future]):
        assert_type(done.result(), str)
    assert_type(concurrent.futures.wait([future]).done, set[concurrent.futures.Future[str]])

    future.result("3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    _: int = future.result()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    executor.future(3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    executor.future()  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    executor.future("task-0123456789abc", key="k")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


def looks_from_elsewhere() -> None:
    calls = attach("runs/etl.db", queue="etl")
    assert_type(calls, Attached)
    assert_type(attach(open_store("runs/etl.db")), Attached)
    assert_type(calls.queue, str | None)
    assert_type(calls.future("task-0123456789abc"), DurableFuture[Any])
    assert_type(calls.future(key="k").result(timeout=3), Any)
    assert_type(calls.futures(Status.FAILED, ["t"], function="etl.parse"), list[DurableFuture[Any]])

    calls.future()  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    calls.nonsense()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    calls.future(key="k").nonsense()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    attach(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def awaits_futures(executor: PersistentExecutor) -> None:
    text, number = executor.submit(word, 3), executor.submit(add, 1)
    assert_type(await text, str)
    assert_type(await executor.future("task-0123456789abc"), Any)
    assert_type(await asyncio.gather(text, number), tuple[str, int])
    assert_type(await asyncio.wait_for(text, 3), str)
    assert_type(await asyncio.wrap_future(text), str)
    loop = asyncio.get_running_loop()
    assert_type(await loop.run_in_executor(executor, add, 1), int)
    assert_type(await loop.run_in_executor(executor.options(priority=1), add, 1), int)


# --- Queues ------------------------------------------------------------------------------------------------------


async def uses_a_queue() -> None:
    async with AsyncOmniQ("runs/queue.db", queue="mail") as omniq:
        assert_type(omniq, AsyncOmniQ)
        task_id = await omniq.enqueue(add, (1, 2), eta="2030-12-01T10:00:00Z", max_retries=3)
        assert_type(task_id, str)
        assert_type(await omniq.enqueue("shop.mails.send", ["x"], {"copy": True}, interval=3600), str)
        async with omniq.worker(2) as nothing:
            assert_type(nothing, None)
            assert_type(await omniq.get_result(task_id, timeout=3), Any)
        assert_type(await omniq.list_tasks(Status.FAILED, limit=3), list[dict[str, Any]])
        assert_type(await omniq.list_tasks("failed"), list[dict[str, Any]])
        assert_type(await omniq.stats(), dict[str, int])
        assert_type(await omniq.cancel(task_id, running=True), bool)
        assert_type(await omniq.claim_task(task_id), bool)

        await omniq.enqueue(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        await omniq.enqueue(add, 1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        await omniq.enqueue(add, (1,), key="k")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    assert_type(AsyncOmniQ.from_env(queue="mail"), AsyncOmniQ)


class Mailer(AsyncOmniQ):
    """A subclass keeps its type."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, traceback)


async def uses_a_subclass() -> None:
    async with Mailer() as mailer:
        assert_type(mailer, Mailer)
    assert_type(Mailer.from_env(), Mailer)


# --- The rest ----------------------------------------------------------------------------------------------------


def finds_failures(executor: PersistentExecutor) -> None:
    assert_type(executor.failures(), Failures)
    assert_type(executor.failures()[0], FailureGroup)
    assert_type(executor.failures()[0].retry(), list[Any])
    assert_type(executor.submit(len, "abc").debug(), int | None)


def looks_into_stores() -> None:
    store = open_store("runs/etl.db")
    assert_type(store, Store)
    assert_type(store.find(Status.FAILED), list[Task])
    assert_type(Settings.from_env(), SettingsByItsModule)
    assert_type(omniq_executor.__version__, str)
    try:
        raise omniq_executor.TaskTimeout("slow")
    except omniq_executor.CallError as error:
        assert_type(error, omniq_executor.CallError)
    omniq_executor.open_stores()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
