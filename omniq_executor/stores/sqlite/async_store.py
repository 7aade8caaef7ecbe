"""Stores whose verbs are awaited: none holds up the event loop, however long a lock, a disk or a query takes.

    AwaitedStore     any store: its verbs run, one after the other, in a thread
    AwaitedSQLite    SQLite: each statement of a transaction is awaited on an aiosqlite connection

The transactions are those of turns.py and its neighbours, as in SQLiteStore; here a statement is awaited where it is
called there. What is rare and more than a transaction (opening, entering, leaving, looking after the log)
SQLiteStore does itself, in the thread.

A call that is cancelled has happened whole or not at all, and its caller does not wait for that. A
transaction of SQLite that is not at its COMMIT is rolled back. The order that gives it: all statements go
through aiosqlite's queue, so a ROLLBACK that is put there runs after the statement that is under way and
before any other; and the lock, which keeps the transactions of several tasks apart, is held until it has.
Therefore a transaction runs in a task of its own, which outlives the one that asked for it.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar, cast

import aiosqlite

from ...config import Settings
from ...errors import StoreError
from ...model.task import Status, Task
from ...stores.base import now
from ...value_files import Files
from .. import open_store
from ..base import Claimed, Run, Store, TaskState, Turn, TurnResult
from . import looking, runs, tally, turns
from .database import LOOK_AT_LOG_EVERY, explained
from .store import SQLiteStore
from .tables import Many, Reply, Statement, Transaction

_LONG = 256  # rows; to make more of them into tasks takes so long that a thread does it

_T = TypeVar("_T")


async def open_awaited(address: str | Settings) -> "AwaitedStore":
    """Open the store at an address. Raises what open_store() raises."""
    thread = ThreadPoolExecutor(1, "omniq-store")
    try:
        store = await _run_in(thread, open_store, address)
        if not isinstance(store, SQLiteStore):
            return AwaitedStore(store, thread)
        # One of its connections is opened in the same way as the other, which is in aiosqlite's own thread.
        connection = aiosqlite.Connection(store.db.connect, 64)
        worker: Any = getattr(connection, "_thread", connection)  # before aiosqlite 0.22 it is a thread itself
        worker.daemon = True  # so that a program ends which does not close it
        try:
            await connection
        except BaseException:
            await _run_in(thread, store.close)
            raise
    except BaseException:
        thread.shutdown(wait=False)
        raise
    return AwaitedSQLite(store, thread, connection)


async def _run_in(thread: ThreadPoolExecutor, function: Callable[..., _T], *args: Any) -> _T:
    return await asyncio.get_running_loop().run_in_executor(thread, function, *args)


class AwaitedStore:
    """A store whose verbs are awaited; what they do is said in Store.

    Verbs that change what others may wait for notify them, too.
    """

    def __init__(self, store: Store, thread: ThreadPoolExecutor) -> None:
        self._store = store
        self._thread = thread  # a single one, so that nothing is done after what is asked for later
        self._closed = False

    @property
    def address(self) -> str:
        """Where the store is, as text."""
        return self._store.address

    @property
    def files(self) -> Files:
        """The files of its large values."""
        return self._store.values

    async def _call(self, function: Callable[..., _T], *args: Any) -> _T:
        self._check_open()
        return await _run_in(self._thread, function, *args)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"the store {self.address} has been closed")

    async def close(self, owner: int | None) -> None:
        """Have the owner, if there is one, leave, and close the store. What is under way is waited for."""
        self._closed = True
        try:
            await _run_in(self._thread, self._close, owner)
        finally:
            self._thread.shutdown(wait=False)

    def _close(self, owner: int | None) -> None:
        try:
            if owner is not None:
                self._store.leave(owner)
                self._store.notify(owner)  # what it had claimed is anybody's
        finally:
            self._store.close()

    async def enter(self, queue: str) -> int:
        return await self._call(self._enter, queue)

    def _enter(self, queue: str) -> int:
        self._store.reap(now())
        return self._store.enter(queue)

    def notify_path(self, owner: int) -> Path:
        return self._store.notify_path(owner)

    async def notify(self, owner: int) -> None:
        await self._call(self._store.notify, owner)

    async def read_changes(self, owner: int) -> list[int]:
        return await self._call(self._store.read_changes, owner)

    async def turn(self, owner: int, run: Run, work: Turn) -> TurnResult:
        return await self._call(self._notifying, owner, self._store.turn, owner, run, work)

    async def claim(self, owner: int, number: int) -> Claimed | None:
        return await self._call(self._store.claim, owner, number, now())

    async def cancel(self, number: int, running: bool) -> list[int]:
        return await self._call(self._notifying, 0, self._store.cancel, [number], now(), running)

    def _notifying(self, owner: int, verb: Callable[..., _T], *args: Any) -> _T:
        result = verb(*args)
        self._store.notify(owner)
        return result

    async def states(self, numbers: list[int]) -> list[TaskState]:
        return await self._call(self._store.states, numbers)

    async def find(self, status: Status | None, queue: str | None, limit: int | None) -> list[Task]:
        return await self._call(self._store.find, status, queue, None, limit)

    async def counts(self) -> dict[str, dict[Status, int]]:
        return await self._call(self._store.counts)


class AwaitedSQLite(AwaitedStore):
    """See the module's docstring."""

    _store: SQLiteStore

    def __init__(self, store: SQLiteStore, thread: ThreadPoolExecutor, connection: aiosqlite.Connection) -> None:
        super().__init__(store, thread)
        self._connection = connection
        self._lock = asyncio.Lock()  # held by whoever has a transaction open
        self._queues: dict[str, int] = {}
        self._functions: dict[bytes, int] = {}  # none is purged while an owner is registered
        self._peers: list[int] = []  # the registered owners, as of the last transaction
        self._turns = 0
        self._added = 0  # tasks since the mark of the counts was moved up last

    async def close(self, owner: int | None) -> None:
        try:
            async with self._lock:
                self._closed = True
                await self._connection.close()
        finally:
            await super().close(owner)

    def _enter(self, queue: str) -> int:
        owner = super()._enter(queue)
        self._store.note_claim(owner, 0)  # it claims by the connection here, so the store sees nothing of it
        return owner

    async def read_changes(self, owner: int) -> list[int]:
        return await self._write(runs.read_changes(owner))

    async def turn(self, owner: int, run: Run, work: Turn) -> TurnResult:
        if run.queue not in self._queues:
            self._queues[run.queue] = await self._write(turns.ensure_queue(run.queue))
        for batch in work.adds:
            if batch.function.digest not in self._functions:
                number = await self._write(turns.ensure_function(batch.function))
                self._functions[batch.function.digest] = number
        text = turns.turn(owner, run, self._queues[run.queue], self._functions, work, self._peers, exact=True)
        turned = await self._write(text, notifies=owner)
        steps, self._added = divmod(self._added + sum(batch.size for batch in work.adds), tally.STEP)
        for _ in range(steps):
            with contextlib.suppress(StoreError):  # as in SQLiteStore: the turn is committed
                await self._write(tally.move_on(run.id, work.now))
        return turned

    async def claim(self, owner: int, number: int) -> Claimed | None:
        return await self._write(turns.claim(owner, number, now()))

    async def cancel(self, number: int, running: bool) -> list[int]:
        return await self._write(turns.cancel([number], now(), running), notifies=0)

    async def states(self, numbers: list[int]) -> list[TaskState]:
        return await self._ask(looking.states(numbers))

    async def find(self, status: Status | None, queue: str | None, limit: int | None) -> list[Task]:
        return await self._ask(looking.find(status, queue, None, limit))

    async def counts(self) -> dict[str, dict[Status, int]]:
        return await self._ask(looking.counts())

    # how they reach the database

    async def _ask(self, looking: Transaction[_T]) -> _T:
        """Run a transaction of one statement that only reads. Cancelled, it leaves nothing to undo."""
        async with self._lock:
            self._check_open()
            with explained(self._store.path):
                return await self._drive(looking)

    async def _write(self, transaction: Transaction[_T], notifies: int | None = None) -> _T:
        """Run a transaction; with `notifies`, wake all owners but that one after it."""
        work = asyncio.ensure_future(self._run(transaction, notifies))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            work.cancel()
            raise

    async def _run(self, transaction: Transaction[_T], notifies: int | None) -> _T:
        async with self._lock:
            self._check_open()
            with explained(self._store.path):
                try:
                    await self._execute("BEGIN IMMEDIATE", ())
                    self._peers[:] = [id for (id,) in (await self._execute(runs.OWNERS, ())).rows]
                    result = await self._drive(transaction)
                    await self._execute("COMMIT", ())
                except BaseException:
                    await self._connection.rollback()  # nothing, where none is open: a COMMIT may have happened
                    raise
                finally:
                    if notifies is not None:
                        self._store.notify_all(self._peers, notifies)
        self._turns += 1
        if self._turns % LOOK_AT_LOG_EVERY == 0 and not self._closed:
            await self._call(self._store.db.work_off_log)
        return result

    async def _drive(self, transaction: Transaction[_T]) -> _T:
        statement, result = _advance(transaction, None)
        while statement is not None:
            reply = await self._execute(*statement)
            if len(reply.rows) < _LONG:
                statement, result = _advance(transaction, reply)
            else:
                statement, result = await asyncio.to_thread(_advance, transaction, reply)
        return cast(_T, result)

    async def _execute(self, sql: str, parameters: Iterable[Any]) -> Reply:
        """Run a statement to its end in one go, so that it is done or not when its caller is cancelled."""
        connection = self._connection
        before = connection.total_changes
        if isinstance(parameters, Many):
            await connection.executemany(sql, parameters)
            rows: list[Any] = []
        else:
            rows = list(await connection.execute_fetchall(sql, parameters))
        return Reply(rows, connection.total_changes - before)


def _advance(transaction: Transaction[Any], reply: Reply | None) -> tuple[Statement | None, Any]:
    """Return the next statement of a transaction, or None and its result."""
    try:
        return transaction.send(reply), None  # type: ignore[arg-type]  # None begins it
    except StopIteration as done:
        return None, done.value
