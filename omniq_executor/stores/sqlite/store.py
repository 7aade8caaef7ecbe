"""The SQLite store: one database file in WAL mode, opened by any number of processes.

    omniq.db           the tasks; the view `tasks` is meant for people
    omniq.db-wal/-shm  SQLite's own
    omniq.db-owners/   who is alive, see owners.py
    omniq.db-output/   what calls wrote, see output.py
    omniq.db-reserve   some space, see reserve.py

Rules that keep it whole:

- Every write starts with BEGIN IMMEDIATE. A transaction that begins by reading and upgrades later
  fails at once when another has written in between, in spite of the busy timeout.
- The file is made with O_EXCL by whoever is first, and never opened again other than by SQLite:
  closing any other handle on it would drop SQLite's POSIX locks in this process.
- SQLite before 3.51.3 can lose commits when a checkpoint overlaps another connection's commit. So
  automatic checkpoints are off, and ours is of a kind that holds the writer's lock.
- A connection never crosses a fork: the child keeps it open and unused, since closing it would
  run SQLite's own clean-up on files that the parent is using.
"""

import contextlib
import json
import logging
import os
import sqlite3
import stat
import threading
import weakref
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from filelock import Timeout

from ... import slots
from ...errors import StoreError, StoreVersionError, TaskNotFound, TooLarge
from ...model.ids import NODES
from ...model.schema import VERSION
from ...model.task import FINISHED, Call, Function, Status, Task, format_id, parse_id
from .. import permissions as safety
from ..base import (
    NO_RUN,
    Claimed,
    Leftover,
    Owner,
    Problem,
    Resume,
    Run,
    RunRecord,
    Store,
    TaskRow,
    TaskState,
    Turn,
    TurnResult,
    check_finished,
    now,
)
from ..output import Output
from ..owners import Owners, new_owner_id, new_session_id
from ..reserve import Reserve
from . import looking, runs, tables, turns, upkeep, waits
from .tables import Many, Reply, Statement, Transaction

Durability = Literal["process", "power"]

BUSY_TIMEOUT_S = 30.0
CHECKPOINT_BYTES = 64 << 20  # of write-ahead log; a checkpoint syncs the disk, so the fewer the better
_CHECKPOINT_TIMEOUT_S = 1.0
LOOK_AT_LOG_EVERY = 64  # turns
_KNOWN_FUNCTIONS = 4096  # whose numbers are kept
_ERRORS = (sqlite3.Error, OverflowError)  # the latter of a value of more than 2 GB

_log = logging.getLogger("omniq_executor")
_open_stores: "weakref.WeakSet[SQLiteStore]" = weakref.WeakSet()
_lost_in_fork: list[Any] = []  # connections that a child inherited: kept, so that they are not closed


class SQLiteStore(Store):
    """See the module's docstring, and Store for the methods.

    `durability="process"` keeps what is acknowledged through the death of any process; "power"
    also through a cut of the machine's power, at about ten times the cost of a lone commit.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durability: Durability = "process",
        create: bool = True,
        importing: bool = False,
    ):
        if durability not in ("process", "power"):
            raise ValueError(f"durability is 'process' or 'power', not {durability!r}")
        self.path = Path(path).absolute()
        self.address = str(self.path)
        self._lock = threading.RLock()
        self._functions: dict[bytes, int] = {}
        self._queues: dict[str, int] = {}
        self._adopted: dict[int, set[int]] = {}  # by run: the other queues that it has adopted tasks of
        self._version = -1  # of PRAGMA data_version: changes when another connection has committed
        self._peers: list[int] = []  # the registered owners, as of that version
        self._foreign = False  # whether one has, since the last turn
        self._turns = 0
        self._is_importing = importing  # whether a migration may be under way in it
        self._durability = durability
        self._lent: list[sqlite3.Connection] = []  # to others, see connect()
        self._connection: sqlite3.Connection | None = None
        self._owners = Owners(self._beside("-owners"))
        self.output = Output(self._beside("-output"))
        self.reserve = Reserve(self._beside("-reserve"))
        try:
            if not create and not self.path.exists():
                raise StoreError(f"there is no store at {self.path}")
            self._prepare_files()
            with explained(self.path), self._one_at_a_time():
                self._connection = self._connect()
        except OSError as error:
            what = "opened" if os.path.exists(self.path) else "created"
            raise StoreError(f"the store {self.path} cannot be {what}: {safety.explain(error)}") from error
        _open_stores.add(self)

    # opening and closing

    def _prepare_files(self) -> None:
        safety.check_place(self.path.parent)
        self._check_private()
        for folder in reversed(self.path.parents):
            safety.make_folder(folder)
        with contextlib.suppress(FileExistsError):
            safety.make_file(self.path)
        if not stat.S_ISREG(self.path.stat().st_mode):
            raise StoreError(f"{self.path} is not a file; give the path of a database file")
        with explained(self.path), contextlib.closing(self._look()) as connection:
            self._check_format(connection)  # before anything is left beside a file that is not ours
        safety.make_folder(self._owners.folder)

    def _check_private(self) -> None:
        """Refuse files that others could have written. SQLite reads those beside the database as part of it."""
        for ending in ("", "-wal", "-shm", "-journal", "-owners", "-owners/open.lock", "-output", "-reserve"):
            safety.check_private(self._beside(ending))

    def _beside(self, ending: str) -> Path:
        return Path(f"{self.path}{ending}")

    def _look(self) -> sqlite3.Connection:
        return sqlite3.connect(
            self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, cached_statements=256
        )

    def _check_format(self, connection: sqlite3.Connection) -> None:
        ((version,),) = connection.execute("PRAGMA user_version").fetchall()
        ((count,),) = connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
        ((application,),) = connection.execute("PRAGMA application_id").fetchall()
        if (version or count) and application != tables.APPLICATION_ID:
            raise StoreError(f"{self.path} is the database of another program; give the store a file of its own")
        if version > VERSION:
            raise StoreVersionError(
                f"{self.path} has schema version {version}, and this omniq_executor reads up to"
                f" {VERSION}: install a newer one, or use another store"
            )
        if not self._is_importing and connection.execute(upkeep.IS_IMPORTING).fetchone()[0]:
            ((source,),) = connection.execute("SELECT source FROM migration").fetchall()
            raise StoreError(
                f"{self.path} holds a part of {source} only: run `omniq-executor migrate {source} {self.path}` again"
            )

    def connect(self) -> sqlite3.Connection:
        """Another connection like the store's own, for who drives transactions in another way, and closes it."""
        with explained(self.path), self._one_at_a_time():
            self._opened()
            connection = self._connect()
        self._lent.append(connection)
        return connection

    def _connect(self) -> sqlite3.Connection:
        connection = self._look()
        try:
            self._check_format(connection)
            connection.execute(
                "PRAGMA page_size = 2048"
            )  # a lone commit writes a page or two: half the bytes of the default
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {'FULL' if self._durability == 'power' else 'NORMAL'}")
            connection.execute("PRAGMA wal_autocheckpoint = 0")
            connection.execute("BEGIN IMMEDIATE")
            _drive(connection, tables.create())
            if os.access(self.path, os.W_OK):
                # What it cannot open for writing just now, for too many open files, say, SQLite opens for
                # reading, without a word and for good.
                connection.execute("DELETE FROM owner WHERE 0")
            connection.execute("COMMIT")
            self._check_private()  # again: now SQLite has its files open, and takes no others any more
        except BaseException:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                with explained(self.path):
                    self._connection.close()
                self._connection = None
            _open_stores.discard(self)

    # how everything else reaches the database

    def _write(self, transaction: Transaction) -> Any:
        """Run a transaction. The hot path: no context managers, which would cost as much as an insert."""
        with self._lock:
            connection = self._opened()
            try:
                connection.execute("BEGIN IMMEDIATE")
                try:
                    self._look_for_peers(connection)
                    result = _drive(connection, transaction)
                    connection.execute("COMMIT")
                except BaseException:
                    if connection.in_transaction:  # SQLite has rolled back by itself after, say, a full disk
                        connection.execute("ROLLBACK")
                    raise
            except _ERRORS as error:
                raise _explain(self.path, error) from error
            return result

    def _execute(self, statement: Statement) -> sqlite3.Cursor:
        """Run a statement that is a transaction by itself."""
        try:
            return self._opened().execute(*statement)
        except _ERRORS as error:
            raise _explain(self.path, error) from error

    def _ask(self, looking: Transaction) -> Any:
        """Run a transaction of one statement that only reads."""
        with self._lock, explained(self.path):
            return _drive(self._opened(), looking)

    def _read(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        with self._lock, explained(self.path):
            return self._opened().execute(sql, parameters).fetchall()

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StoreError(f"the store {self.path} has been closed")
        return self._connection

    # who is there

    def enter(self, queue: str) -> int:
        self.reserve.take()
        with self._lock:
            while True:
                owner = new_owner_id(id for (id,) in self._read(runs.OWNERS))
                self._owners.hold(owner)
                self._functions.clear()  # while no owner was registered, some may have been purged
                if self._write(runs.enter(owner, NODES, queue, self._owners.host, os.getpid(), now())):
                    self._version = -1  # this connection's own change of the owners does not count there
                    return owner
                self._owners.let_go(owner)  # another was faster with such an id

    def leave(self, owner: int) -> None:
        try:
            self._write(runs.leave(owner))
        except StoreError:
            self._owners.let_go(owner, is_registered=True)
            raise
        self._version = -1
        self._owners.let_go(owner)

    def owners(self) -> list[Owner]:
        rows = self._read("SELECT id, queue, host, pid, opened_at FROM owner ORDER BY opened_at, id")
        # One process at a time: a lock that another one is trying just now looks like that of a living owner.
        with self._one_at_a_time():
            return [
                Owner(id, queue, host, pid, opened_at, self._owners.is_alive(id, host))
                for id, queue, host, pid, opened_at in rows
            ]

    @contextlib.contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        """Keep other processes from opening the store, and from finding out who is alive."""
        try:
            with self._owners.gate(BUSY_TIMEOUT_S):
                yield
        except Timeout as error:
            raise StoreError(
                f"the store {self.path} is being opened by another process for more than {BUSY_TIMEOUT_S:.0f} s"
            ) from error
        except OSError as error:
            raise StoreError(f"the store {self.path}: {safety.explain(error)}") from error

    def peers(self, owner: int) -> list[int]:
        return [id for (id,) in self._read("SELECT id FROM owner WHERE id <> ?", (owner,))]

    def reap(self, now: int) -> int:
        dead = [owner.id for owner in self.owners() if not owner.alive]
        sessions = self._dead_sessions()
        if not dead and not sessions:
            return 0
        suspects = {id: slots.begun(self._owners.slots_path(id)) for id in dead}
        orphaned: int = self._write(runs.release_dead(suspects, sessions))
        self._version = -1
        for id in [*dead, *sessions]:
            self._owners.forget(id)
        return orphaned

    def _dead_sessions(self) -> list[int]:
        rows = self._read(runs.SESSIONS)
        if not rows:
            return []
        with self._one_at_a_time():
            return [id for id, host in rows if not self._owners.is_alive(id, host)]

    def notify_path(self, owner: int) -> Path:
        """The FIFO that others write to for this owner."""
        self._opened()
        return self._owners.notify_path(owner)

    def slots_path(self, owner: int) -> Path:
        self._opened()
        return self._owners.slots_path(owner)

    def notify(self, owner: int) -> None:
        """Wake the other owners: something that they may wait for is committed."""
        self._opened()
        self.notify_all(self._peers, owner)

    def notify_all(self, owners: Iterable[int], but: int) -> None:
        """Wake these owners, all but one."""
        for owner in owners:
            if owner != but:
                self._owners.notify(owner)

    def read_changes(self, owner: int) -> list[int]:
        """The tasks that other owners finished since the last call."""
        if not self._read(
            runs.HAS_CHANGES, (owner, owner)
        ):  # without the writer's lock: most notifications are for others
            return []
        changed: list[int] = self._write(runs.read_changes(owner))
        return changed

    # sessions and runs

    def begin_session(self, now: int) -> int:
        self._opened()
        session = new_session_id()
        self._owners.hold(session, has_bell=False)
        try:
            self._write(runs.begin_session(session, self._owners.host, os.getpid(), now))
        except StoreError:
            self._owners.let_go(session)
            raise
        return session

    def end_session(self, session: int, clean: bool, now: int, *, keep_broken: bool = False) -> list[Leftover]:
        left: list[Leftover] = self._write(runs.end_session(session, clean, keep_broken))
        self._owners.let_go(session)
        return left

    def begin_run(
        self, queue: str, owner: int, resume: Resume, now: int, *,
        session: int = 0, context: str = "", since: int = 0,
    ) -> Run:  # fmt: skip
        self.reap(now)  # so that who is registered is alive
        text = runs.begin_run(self._queue(queue), queue, owner, resume, now, session, context, since)
        run: Run = self._write(text)
        self._adopted[run.id] = set()
        return run

    def end_run(self, run: Run, clean: bool, now: int) -> list[Leftover]:
        left: list[Leftover] = self._write(runs.end_run(run, clean, now))
        self._adopted.pop(run.id, None)
        return left

    def take_over(self, run: Run, function: Function, calls: Sequence[Call], now: int) -> list[TaskState | None]:
        if not run.continues:
            self._opened()
            return [None] * len(calls)
        found: list[TaskState | None] = self._write(runs.take_over(run.id, self._function(function), calls))
        return found

    def adopt(self, run: Run, ids: Collection[int] | None, now: int) -> int:
        queue = self._queue(run.queue)
        count, queues = self._write(runs.adopt(run.id, queue, ids))
        self._adopted_by(run.id, queue).update(queues - {queue})
        return int(count)

    def _adopted_by(self, run: int, queue: int) -> set[int]:
        """The queues other than its own that a run has adopted tasks of; of one begun elsewhere, as they are now."""
        if run not in self._adopted:
            self._adopted[run] = self._ask(runs.queues_of(run)) - {queue}
        return self._adopted[run]

    def cancel_run(self, run: int, now: int) -> list[int]:
        cancelled: list[int] = self._write(runs.cancel_run(run, now))
        return cancelled

    # the work

    def add_claimed(self, owner: int, run: Run, number: int, function: Function, call: Call, now: int) -> None:
        queue, known = self._queues.get(run.queue), self._functions.get(function.digest)
        if queue is None or known is None:
            queue, known = self._queue(run.queue), self._function(function)
        statement = turns.add_claimed(owner, run.id, queue, known, number, call, now)
        with self._lock:
            self._execute(statement)
            self._count_turn()

    def turn(self, owner: int, run: Run, work: Turn) -> TurnResult:
        queue = self._queue(run.queue) if run is not NO_RUN else 0
        for batch in work.adds:
            self._function(batch.function)
        with self._lock:
            statement = turns.lone_end(owner, work) if len(self._peers) == 1 else None
            if statement is not None and self._execute(statement).rowcount == 1:
                self._count_turn()
                return TurnResult()
            about = owner, run, queue, self._functions, work, self._peers
            adopted = self._adopted_by(run.id, queue) if work.of_run else ()
            try:
                turned: TurnResult = self._write(turns.turn(*about, adopted=adopted))
            except turns.Inexact:
                turned = self._write(turns.turn(*about, exact=True, adopted=adopted))
            turned.foreign, self._foreign = self._foreign, False
            self._count_turn()
        return turned

    def _count_turn(self) -> None:
        self._turns += 1
        if self._turns % LOOK_AT_LOG_EVERY == 0:
            self.work_off_log()

    def work_off_log(self) -> None:
        """Bring what is in the write-ahead log into the database, if that is much."""
        try:
            with self._lock:
                self._checkpoint()
        except StoreError as error:
            # What is in it is committed, and must not look as if it were not. The log is as good as before.
            _log.warning("%s: its log is worked off later", error)

    def claim(self, owner: int, number: int, now: int) -> Claimed | None:
        claimed: Claimed | None = self._write(turns.claim(owner, number, now))
        return claimed

    def cancel(self, ids: Sequence[int], now: int, running: bool = False) -> list[int]:
        cancelled: list[int] = self._write(turns.cancel(ids, now, running))
        return cancelled

    def retry(self, ids: Sequence[int], now: int) -> list[int]:
        retried: list[int] = self._write(turns.retry(ids))
        return retried

    # upkeep

    def purge(self, before: int, statuses: Collection[Status] = FINISHED, queue: str | None = None) -> int:
        check_finished(statuses)
        removed: int = self._write(upkeep.purge(before, statuses, queue))
        self.output.remove_strays(self.ids)
        return removed

    def backup(self, destination: Path) -> int:
        self._opened()
        with safety.appearing(destination) as fresh, explained(destination):
            output = Output(Path(f"{fresh}-output"))
            output.take_in(self.output)
            ids = self._copy_to(fresh)
            output.take_in(self.output)  # again: neither what came meanwhile is without it now, nor what went
            output.remove_strays(lambda: ids)
            # Before the database, without which they are nobody's. Those of a backup that was killed here are replaced.
            output.move_to(Output(Path(f"{destination}-output")))
        return len(ids)

    def _copy_to(self, fresh: Path) -> list[int]:
        with self._lock:
            safety.make_file(fresh)
            with contextlib.closing(sqlite3.connect(fresh, isolation_level=None)) as copy:
                self._opened().backup(copy)  # in one step: in smaller ones it begins again whenever somebody writes
                copy.execute("PRAGMA synchronous = FULL")
                copy.execute("BEGIN IMMEDIATE")
                _drive(copy, upkeep.abandon())
                copy.execute("COMMIT")
                return [id for (id,) in copy.execute("SELECT id FROM task")]

    def check(self) -> list[Problem]:
        self._opened()
        problems: list[Problem] = []
        damage = self._damage()
        if damage:
            with contextlib.suppress(StoreError):  # the next look tells what it could not do
                self._write(upkeep.reindex())
            left = self._damage()
            problems = [Problem(text, not left) for text in damage]
            if left:
                return problems  # the rest is left as it is, so that what can be saved still can
        problems += [
            Problem(f"the owner {owner.id} of the queue {owner.queue}, process {owner.pid}, is dead", True)
            for owner in self.owners()
            if not owner.alive
        ]
        released = self.reap(now()) + self._write(runs.release_unowned())
        if released:
            problems.append(Problem(f"{released} tasks were RUNNING though their owners are gone", True))
        strays = self.output.remove_strays(self.ids)
        if strays:
            problems.append(Problem(f"{strays} files held what tasks wrote that are gone", True))
        for condition, what in tables.CHECKS:
            ids = [id for (id,) in self._read(f"SELECT id FROM {condition} LIMIT 1")]
            if ids:
                ((count,),) = self._read(f"SELECT count(*) FROM {condition}")
                problems.append(Problem(f"{count} tasks, {format_id(ids[0])} for one, {what}", False))
        if self._write(waits.rewire()):
            problems.append(Problem("it was not as it should be which tasks wait for others", True))
        return problems

    def _damage(self) -> list[str]:
        """What SQLite finds wrong with its file."""
        try:
            return [text for (text,) in self._read("PRAGMA integrity_check") if text != "ok"]
        except StoreError as error:
            return [str(error)]

    # moving to another store

    def ids(self) -> list[int]:
        return [id for (id,) in self._read("SELECT id FROM task ORDER BY id")]

    def stored(self, ids: Sequence[int]) -> list[TaskRow]:
        stored: list[TaskRow] = self._ask(looking.stored(ids))
        return stored

    def runs(self) -> list[RunRecord]:
        rows = self._read(
            "SELECT r.id, q.name, owner, continues, started_at, ended_at, clean, settled, session, context"
            " FROM run r JOIN queue q ON q.id = r.queue ORDER BY r.id"
        )
        return [
            RunRecord(id, queue, owner, tuple(json.loads(continues)), started, ended, *_flags(clean, settled), *rest)
            for id, queue, owner, continues, started, ended, clean, settled, *rest in rows
        ]

    def begin_filling(self, source: str) -> str | None:
        self.reap(now())
        found: str | None = self._write(upkeep.begin_filling(source))
        return found

    def put(self, tasks: Sequence[TaskRow] = (), runs: Sequence[RunRecord] = (), gone: Sequence[int] = ()) -> None:
        with self._lock:
            self._write(upkeep.put(tasks, runs, gone))
            self._count_turn()

    def end_filling(self) -> None:
        with self._lock, explained(self.path):
            self._opened().execute("PRAGMA synchronous = FULL")  # with this commit, all before it are synced
            self._write(upkeep.end_filling())

    def _look_for_peers(self, connection: sqlite3.Connection) -> None:
        # Inside the transaction, so that an owner who enters is either seen here or sees this turn's changes.
        version = connection.execute("PRAGMA data_version").fetchone()[0]
        if version != self._version:
            self._version = version
            self._foreign = True
            self._peers[:] = [id for (id,) in connection.execute(runs.OWNERS)]

    def _checkpoint(self) -> None:
        try:
            if os.stat(f"{self.path}-wal").st_size < CHECKPOINT_BYTES:
                return
        except FileNotFoundError:
            return
        with explained(self.path):
            connection = self._opened()
            connection.execute(f"PRAGMA busy_timeout = {int(_CHECKPOINT_TIMEOUT_S * 1000)}")
            try:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            finally:
                connection.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")

    def _queue(self, name: str) -> int:
        if name not in self._queues:
            self._queues[name] = self._write(turns.ensure_queue(name))
        return self._queues[name]

    def _function(self, function: Function) -> int:
        number = self._functions.get(function.digest)
        if number is None:
            if len(self._functions) == _KNOWN_FUNCTIONS:
                self._functions.clear()
            number = self._functions[function.digest] = self._write(turns.ensure_function(function))
        return number

    # looking

    def get(self, task_id: int | str) -> Task:
        number = parse_id(task_id) if isinstance(task_id, str) else task_id
        found: list[TaskRow] = self._ask(looking.stored([number])) if 0 <= number < 1 << 63 else []
        if not found:
            raise TaskNotFound(f"{self.path} holds no {format_id(number)}; `omniq-executor list` shows what it holds")
        return found[0].task

    def function(self, digest: bytes) -> Function:
        rows = self._read("SELECT digest, path, pickle FROM function WHERE digest = ?", (digest,))
        if not rows:
            raise StoreError(f"{self.path} holds no function {digest.hex()}")
        return Function(*rows[0])

    def states(self, ids: Iterable[int]) -> list[TaskState]:
        found: list[TaskState] = self._ask(looking.states(ids))
        return found

    def by_key(self, queue: str, key: str) -> TaskState | None:
        found: TaskState | None = self._ask(looking.by_key(self._queue(queue), key))
        return found

    def counts(self) -> dict[str, dict[Status, int]]:
        counts: dict[str, dict[Status, int]] = self._ask(looking.counts())
        return counts

    def find(
        self,
        status: Status | None = None,
        queue: str | None = None,
        tags: Sequence[str] | None = None,
        limit: int | None = None,
    ) -> list[Task]:
        found: list[Task] = self._ask(looking.find(status, queue, tags, limit))
        return found


def _flags(clean: int | None, settled: int) -> tuple[bool | None, bool]:
    return None if clean is None else bool(clean), bool(settled)


def _drive(connection: sqlite3.Connection, transaction: Transaction) -> Any:
    try:
        sql, parameters = next(transaction)
        while True:
            if isinstance(parameters, Many):
                reply = Reply([], connection.executemany(sql, parameters).rowcount)
            else:
                cursor = connection.execute(sql, parameters)
                reply = Reply(cursor.fetchall(), cursor.rowcount)
            sql, parameters = transaction.send(reply)
    except StopIteration as done:
        return done.value


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Raise SQLite's errors as StoreError."""
    try:
        yield
    except _ERRORS as error:
        raise _explain(path, error) from error


def _explain(path: Path, error: Exception) -> StoreError:
    """Say of an error of SQLite's what it was about, and what can be done."""
    name = getattr(error, "sqlite_errorname", "")
    if name == "SQLITE_TOOBIG" or isinstance(error, OverflowError):
        return TooLarge(f"the store {path}: a value is larger than SQLite can hold, which is 1 GB in all for one call")
    hint = {
        "SQLITE_NOTADB": "the file is not an SQLite database; give the store a file of its own",
        "SQLITE_CANTOPEN": f"it cannot be opened: {safety.why_nothing_opens(path.parent)}",
        "SQLITE_READONLY": "it cannot be written; check its permissions",
        "SQLITE_FULL": "the disk is full; free some space, nothing that was acknowledged is lost",
        "SQLITE_BUSY": f"another process has held it for more than {BUSY_TIMEOUT_S:.0f} s",
    }.get(name, str(error))
    return StoreError(f"the store {path}: {hint}")


def _after_fork_in_child() -> None:
    for store in list(_open_stores):
        _lost_in_fork.extend([store._connection, *store._lent])
        store._connection = None
        store._lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
