"""The async face: tasks are enqueued, looked at and waited for without holding up the event loop.

    enqueue(), cancel() ...  --awaited verbs-->  store (stores/sqlite/async_store.py)
    get_result()  <--wakes--  listener  <--read_changes()--  store
                                 ^
                             notification pipe (a FIFO that others write to)

Everything is opened by the first await that needs it, and belongs to the loop that runs it. It is closed
by `aclose()`, or else with its loop: what is open is held by an async generator, and a loop that ends, as
asyncio.run() has it, closes those that are open.

Only who enqueues, claims or waits is an owner (see stores/owners.py); who looks changes nothing. The tasks
are of no run: a queue's messages are not the submissions of a script, which a later run of it takes over.
If the process dies, what it had claimed is released by an executor or worker that is there, or else by
whoever enters the store next.

The module is longer than others by the example of each method.
"""

import asyncio
import base64
import concurrent.futures
import contextlib
import datetime
import functools
import logging
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from .config import Settings, parse_address
from .errors import RemoteError, StoreError, TaskNotFound
from .executor import PersistentExecutor
from .future import rebuild
from .hashes import hash_of
from .model import codec
from .model.checks import check_queue
from .model.functions import Functions, named, stored_call
from .model.ids import Ids
from .model.options import make_options
from .model.schema import task_to_dict
from .model.task import FINISHED, Call, Function, Options, Status, format_id, parse_id
from .stores.base import NO_RUN, Batch, TaskState, Turn, now
from .stores.owners import open_pipe
from .stores.sqlite.async_store import AwaitedStore, open_awaited
from .value_files import Files

DEFAULT_QUEUE = "default"
_HEAR_S = 1.0  # at least, between two looks at what finished, while nobody waits for it

_log = logging.getLogger("omniq_executor")
_T = TypeVar("_T")


class AsyncOmniQ:
    """A queue of durable tasks for coroutines.

    Nothing is opened before the first await. `async with` or `aclose()` closes; what is not closed then is
    closed with the event loop. An instance belongs to one event loop at a time.

    Parameters
    ----------
    store: where the tasks are kept: a Settings, or an address as PersistentExecutor takes it. Default: what
        the variables OMNIQ_* say (see Settings). max_retries and timeout of the Settings hold for tasks that
        are enqueued without.
    queue: the queue that `enqueue()` adds to and `worker()` works off, and that `list_tasks()` and `stats()`
        are about. Without it, it is "default", and they are about the whole store.

    Its methods raise StoreError where the store cannot be opened, read or written, and RuntimeError after
    `aclose()`. A call that is cancelled has happened whole or not at all.
    """

    def __init__(self, store: Settings | str | os.PathLike[str] | None = None, *, queue: str | None = None) -> None:
        check_queue(queue)
        self._settings = store if isinstance(store, Settings) else Settings.from_env()
        backend, path = parse_address(self._settings if store is None else store)
        path = path.absolute()  # also for the worker, which may open it when the current folder is another
        self._address = f"sqlite:///{path}" if backend == "sqlite" else f"file://{path}"
        self.queue = queue or DEFAULT_QUEUE
        """The name of the queue that tasks are added to."""
        self._looked_at = queue
        self._functions = Functions()
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opened: _Once[_Session]
        self._ended: _Once[None]
        self._life: contextlib.AbstractAsyncContextManager[_Session]

    @classmethod
    def from_env(cls, *, queue: str | None = None) -> Self:
        """Return one with the settings of the variables OMNIQ_*. Raises SettingsError where they make no sense.

        >>> AsyncOmniQ.from_env().queue
        'default'
        """
        return cls(Settings.from_env(), queue=queue)

    async def __aenter__(self) -> Self:
        await self._session()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the store. What was claimed is PENDING again; whoever waits for a result gets a StoreError.

        >>> async def example():
        ...     omniq = AsyncOmniQ()
        ...     await omniq.enqueue("math.sqrt", [4])
        ...     await omniq.aclose()
        >>> asyncio.run(example())
        """
        self._closed = True
        if self._loop is asyncio.get_running_loop():
            await self._ended()

    async def _session(self) -> "_Session":
        loop = asyncio.get_running_loop()
        if self._closed:
            raise RuntimeError("this AsyncOmniQ has been closed; make another one")
        if self._loop is not loop:
            if self._loop is not None and not self._loop.is_closed():
                raise RuntimeError("this AsyncOmniQ is open in another event loop; make another one")
            self._loop, self._opened, self._ended = loop, _Once(self._open), _Once(self._end)
        return await self._opened()

    async def _open(self) -> "_Session":
        self._life = _session(self._address, self.queue)
        return await self._life.__aenter__()

    async def _end(self) -> None:
        if await self._opened.is_made():
            await self._life.__aexit__(None, None, None)

    # tasks

    async def enqueue(
        self,
        func: str | Callable[..., Any],
        args: Sequence[Any] | Mapping[str, str] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        eta: datetime.datetime | datetime.timedelta | float | str | None = None,
        interval: datetime.timedelta | float | None = None,
        max_retries: int | None = None,
        timeout: datetime.timedelta | float | None = None,
    ) -> str:
        """Add a task that calls `func(*args, **kwargs)`, and return its id. It is stored when this returns.

        func: a function, or the dotted path of one, which need not be importable here.
        args, kwargs: its arguments. They are read at once. `args` may be what `list_tasks()` gives of a task
            whose arguments are pickled, {"pickle": …}: they are stored as they are, without being loaded.
        eta, interval, max_retries, timeout: as of `PersistentExecutor.options()`; `eta` also as ISO-8601 text.

        Raises TypeError or ValueError that names what makes no sense, and SerializationError for what can be
        neither written as JSON nor pickled.

        >>> async def example():
        ...     async with AsyncOmniQ() as omniq:
        ...         return await omniq.enqueue("math.sqrt", [4], timeout=60)
        >>> asyncio.run(example())  # doctest: +ELLIPSIS
        'task-...'
        """
        function = named(func) if isinstance(func, str) else self._functions.describe(func)
        call, after = _call(function, args, {} if kwargs is None else kwargs, self._address)
        call_options = make_options(
            now(), key=None, max_retries=self._settings.max_retries if max_retries is None else max_retries,
            backoff=None, retry_on=Exception, timeout=self._settings.timeout if timeout is None else timeout,
            priority=0, eta=_moment(eta), interval=interval, tags=(),
        )  # fmt: skip
        session = await self._session()
        return await session.add(
            function, call, call_options.eta, call_options.after(after).options if after else call_options.options
        )

    async def get_result(self, task_id: str, wait: bool = True, timeout: float | None = None) -> Any:
        """Return what the task returned. With `wait`, wait until it is finished, at most `timeout` seconds.

        Raises what `DurableFuture.result()` raises, where concurrent.futures.CancelledError is not asyncio's;
        but RemoteError where the call raised what is no Exception, as it would mean something else here. Also
        TaskNotFound if there is no such task, and ValueError for what is no task id.

        >>> async def example():
        ...     async with AsyncOmniQ() as omniq, omniq.worker(1):
        ...         return await omniq.get_result(await omniq.enqueue("math.sqrt", [4]))
        >>> asyncio.run(example())
        2.0
        """
        number = parse_id(task_id)
        try:
            async with asyncio.timeout(timeout if wait else None):
                session = await self._session()
                found = await (session.finished(number) if wait else session.state(number))
        except TimeoutError:
            raise TimeoutError(f"{task_id} is not finished after {timeout} s") from None
        if found.status not in FINISHED:
            raise TimeoutError(f"{task_id} is {found.status.name}, and is not waited for")
        if found.status is Status.CANCELLED:
            raise concurrent.futures.CancelledError(f"{task_id} was cancelled")
        result, error = await asyncio.to_thread(_read, found, session.store.files)
        if error is None:
            return result
        if not isinstance(error, Exception):
            raise RemoteError(f"{task_id} raised {type(error).__name__}: {error}") from error
        raise error

    async def list_tasks(self, status: Status | str | None = None, limit: int | None = None) -> list[dict[str, Any]]:
        """Return the tasks, oldest first, each as a mapping; with `limit` the newest that many of them.

        Names are those of the JSON file of a task: id, func_path, args, kwargs, status, attempts, max_retries,
        timeout, eta, interval, enqueued_at, started_at, completed_at, failed_at, result, error and others.
        Times are ISO-8601 in UTC, timeout and interval seconds. What JSON could not keep is not loaded: it is
        {"pickle": its bytes in base 64}. `status` is a Status or the name of one.

        Raises ValueError for a status or limit that makes no sense.

        >>> async def example():
        ...     async with AsyncOmniQ() as omniq:
        ...         await omniq.enqueue("math.sqrt", [4])
        ...         return [task["args"] for task in await omniq.list_tasks("PENDING")]
        >>> asyncio.run(example())
        [[4]]
        """
        if status is not None and not isinstance(status, Status):
            named_so = Status.__members__.get(str(status).upper())
            if named_so is None:
                raise ValueError(f"status is one of {', '.join(Status.__members__)}, not {status!r}")
            status = named_so
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):  # type: ignore[redundant-expr]
            raise ValueError(f"limit is a whole number from 0 up, not {limit!r}")
        session = await self._session()
        tasks = await session.store.find(status, self._looked_at, limit)
        return await asyncio.to_thread(lambda: [task_to_dict(task) for task in tasks])

    async def stats(self) -> dict[str, int]:
        """Return how many tasks there are, by the name of their status; 0 where there are none.

        >>> async def example():
        ...     async with AsyncOmniQ() as omniq:
        ...         await omniq.enqueue("math.sqrt", [4])
        ...         return await omniq.stats()
        >>> asyncio.run(example())
        {'PENDING': 1, 'RUNNING': 0, 'COMPLETED': 0, 'FAILED': 0, 'CANCELLED': 0}
        """
        session = await self._session()
        counts = await session.store.counts()
        found = [count for queue, count in counts.items() if self._looked_at in (None, queue)]
        return {status.name: sum(count.get(status, 0) for count in found) for status in Status}

    async def cancel(self, task_id: str, running: bool = False) -> bool:
        """Cancel the task if it has not started; return True if it is cancelled, now or before.

        With `running` also if it has; see `DurableFuture.cancel()`. Raises TaskNotFound if there is no such task, and
        ValueError for what is no task id.

        >>> async def example():
        ...     async with AsyncOmniQ() as omniq:
        ...         return await omniq.cancel(await omniq.enqueue("math.sqrt", [4]))
        >>> asyncio.run(example())
        True
        """
        number = parse_id(task_id)
        session = await self._session()
        if await session.store.cancel(number, running):
            return True
        return (await session.state(number)).status is Status.CANCELLED

    async def claim_task(self, task_id: str) -> bool:
        """Claim the task if it is PENDING, whenever it is due: then nobody else runs it.

        Return False if it is not PENDING, or waits for others that it comes after. Each is claimed exactly once per
        attempt, whoever asks at the same time. It is RUNNING until `aclose()`, or the death of this process, makes it
        PENDING again. Raises TaskNotFound if there is no such task, and ValueError for what is no task id.

        >>> async def example():
        ...     async with AsyncOmniQ() as omniq:
        ...         task_id = await omniq.enqueue("math.sqrt", [4])
        ...         return await omniq.claim_task(task_id), await omniq.claim_task(task_id)
        >>> asyncio.run(example())
        (True, False)
        """
        number = parse_id(task_id)
        session = await self._session()
        if await session.store.claim(await session.owner(), number) is not None:
            return True
        await session.state(number)
        return False

    # working

    @contextlib.asynccontextmanager
    async def worker(self, concurrency: int | None = None) -> AsyncIterator[None]:
        """Have the queue worked off by a pool of processes, until the block is left.

            async with omniq.worker(4):
                print(await omniq.get_result(task_id))

        concurrency: how many processes; by default as many as this process may use CPUs.

        The pool is that of a PersistentExecutor on the same store and queue. When the block is left, calls that
        run are finished and nothing more is started; when it is left by a cancellation they are ended, and
        PENDING again. Raises what PersistentExecutor raises.

        >>> async def example():
        ...     async with AsyncOmniQ() as omniq, omniq.worker(2):
        ...         return await omniq.get_result(await omniq.enqueue(pow, [2, 5]))
        >>> asyncio.run(example())
        32
        """
        await self._session()
        starting = asyncio.ensure_future(asyncio.to_thread(self._start_worker, concurrency))
        try:
            executor = await asyncio.shield(starting)
        except asyncio.CancelledError:
            await asyncio.to_thread((await starting).terminate_workers)  # which nobody else would end
            raise
        end = executor.terminate_workers
        try:
            yield
            end = functools.partial(_finish, executor)
        except Exception:
            end = functools.partial(_finish, executor)
            raise
        finally:
            await asyncio.to_thread(end)

    def _start_worker(self, concurrency: int | None) -> PersistentExecutor:
        executor = PersistentExecutor(concurrency, store=self._address, queue=self.queue, resume="never")
        executor._dispatcher.work_off()
        return executor


def _finish(executor: PersistentExecutor) -> None:
    executor._dispatcher.drain()
    executor.shutdown()


class _Session:
    """What an AsyncOmniQ has open in one event loop."""

    def __init__(self, store: AwaitedStore, queue: str) -> None:
        self.store = store
        self.owner = _Once(self._enter)
        """The owner that this process is, from the first time that it is asked for."""
        self._run = NO_RUN._replace(queue=queue)
        self._entered: int | None = None
        self._ids: Ids
        self._notify_fd: int | None = None
        self._was_notified = asyncio.Event()
        self._awaited = asyncio.Event()  # somebody waits for a result
        self._waiters: dict[int, set[asyncio.Event]] = {}
        self._listener: asyncio.Task[None] | None = None
        self._closing = False

    async def close(self) -> None:
        """Leave, and close the store."""
        self._closing = True
        await self.owner.is_made()
        if self._listener is not None:
            self._listener.cancel()
        if self._notify_fd is not None:
            asyncio.get_running_loop().remove_reader(self._notify_fd)
            os.close(self._notify_fd)
        self._wake(self._waiters)
        await self.store.close(self._entered)

    async def _enter(self) -> int:
        if self._entered is None:  # else what follows has failed, and is tried again
            self._entered = await self.store.enter(self._run.queue)
            self._ids = Ids(self._entered)
        owner = self._entered
        if self._notify_fd is None:
            self._notify_fd = open_pipe(self.store.notify_path(owner))
        if self._notify_fd is not None:
            asyncio.get_running_loop().add_reader(self._notify_fd, self._on_notification)
        self._listener = self._listener or asyncio.ensure_future(self._listen(owner))
        await self.store.notify(owner)  # who listens for the death of others is to know of this one
        return owner

    async def add(self, function: Function, call: Call, eta: int, options: Options | None) -> str:
        """Store a task, and return its id."""
        owner = await self.owner()
        number = self._ids.take(1)
        batch = Batch(number, 1, function, calls=(call,), eta=eta, options=options)
        await self.store.turn(owner, self._run, Turn(now(), adds=(batch,)))
        return format_id(number)

    async def state(self, number: int) -> TaskState:
        """Return where a task stands. Raises TaskNotFound."""
        found = await self.store.states([number])
        if not found:
            raise TaskNotFound(f"{self.store.address} holds no {format_id(number)}")
        return found[0]

    # waiting

    async def finished(self, number: int) -> TaskState:
        """Wait until a task is finished, and return where it stands."""
        await self.owner()  # before the look, so that what finishes after it is news to this owner
        woken = asyncio.Event()
        self._waiters.setdefault(number, set()).add(woken)
        self._awaited.set()
        try:
            while (found := await self.state(number)).status not in FINISHED:
                await woken.wait()
                woken.clear()
                if self._closing:
                    raise StoreError(f"{self.store.address} has been closed before {format_id(number)} was finished")
            return found
        finally:
            self._waiters[number].discard(woken)
            if not self._waiters[number]:
                del self._waiters[number]
            if not self._waiters:
                self._awaited.clear()

    def _wake(self, numbers: Iterable[int]) -> None:
        """Have those look again who wait for these tasks."""
        for number in numbers:
            for woken in self._waiters.get(number, ()):
                woken.set()

    def _on_notification(self) -> None:
        assert self._notify_fd is not None
        with contextlib.suppress(BlockingIOError):
            while os.read(self._notify_fd, 4096):
                pass
        self._was_notified.set()

    async def _listen(self, owner: int) -> None:
        """Take in what others finish, also while nobody waits: the store keeps it until then."""
        while True:
            await self._was_notified.wait()
            self._was_notified.clear()
            try:
                finished_ids = await self.store.read_changes(owner)
            except Exception as error:  # noqa: BLE001 - whatever it is, nobody may wait for ever because of it
                _log.error("%s: what has finished is looked for: %s", self.store.address, error)
                finished_ids = list(self._waiters)
            self._wake(finished_ids)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_HEAR_S):
                    await self._awaited.wait()


@contextlib.asynccontextmanager
async def _session(address: str, queue: str) -> AsyncIterator[_Session]:
    """Open a session, which is closed when the block is left or when the loop ends."""
    session = _Session(await open_awaited(address), queue)
    try:
        yield session
    finally:
        await session.close()


class _Once(Generic[_T]):
    """Something that is awaited once, whoever wants it and however often; again only where it raised."""

    def __init__(self, make: Callable[[], Coroutine[Any, Any, _T]]) -> None:
        self._make = make
        self._task: asyncio.Task[_T] | None = None

    async def __call__(self) -> _T:
        """Return what it gave. Who is cancelled while it is made does not stop it, as others may wait for it too."""
        task = self._task
        if task is None or _has_failed(task):
            task = self._task = asyncio.ensure_future(self._make())
        return await asyncio.shield(task)

    async def is_made(self) -> bool:
        """Return whether it is there; if it is being made, after that."""
        if self._task is None:
            return False
        await asyncio.wait([self._task])
        return not _has_failed(self._task)


def _has_failed(task: "asyncio.Task[Any]") -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


def _call(function: Function, args: Any, kwargs: Any, store: str) -> tuple[Call, tuple[int, ...]]:
    """Return the stored form of a call, of arguments as enqueue() takes them, and the tasks that it comes after."""
    if isinstance(args, Mapping):
        try:
            pickled = base64.b64decode(args["pickle"], validate=True)
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"args is a list or tuple, or the pickle that list_tasks() gives, not {args!r}") from None
        if kwargs:
            raise ValueError(f"kwargs must be empty where args is a pickle, which has them too, and is {kwargs!r}")
        return Call(pickled, None, hash_of(pickled)), ()
    if not isinstance(args, list | tuple):
        raise TypeError(f"args is a list or tuple, not {args!r}")
    if not isinstance(kwargs, Mapping) or not all(isinstance(name, str) for name in kwargs):
        raise TypeError(f"kwargs is a mapping of names to values, not {kwargs!r}")
    return stored_call(function, tuple(args), dict(kwargs), store=store, keeps_text=True)


def _moment(eta: Any) -> Any:
    """Return a time as make_options() takes it."""
    if not isinstance(eta, str):
        return eta
    try:
        return datetime.datetime.fromisoformat(eta)
    except ValueError:
        raise ValueError(f"eta is a time, such as 2030-12-01T10:00:00Z, not {eta!r}") from None


def _read(found: TaskState, files: Files) -> tuple[Any, BaseException | None]:
    """Return what a task returned and what it raised; loading either is code of the user's."""
    try:
        if found.result is not None:
            return codec.decode_result(found.result, lambda: files), None
    except BaseException as error:  # noqa: BLE001 - it is the outcome then
        return None, error
    assert found.error is not None
    return None, rebuild(found.error, found.id)
