"""How the SQLite store reaches its file: connections, transactions, the write-ahead log, forks.

Rules that keep it whole:

- Every write starts with BEGIN IMMEDIATE. A transaction that begins by reading and upgrades later
  fails at once when another has written in between, in spite of the busy timeout.
- The file is made with O_EXCL by whoever is first, and never opened again other than by SQLite:
  closing any other handle on it would drop SQLite's POSIX locks in this process.
- SQLite before 3.51.3 can lose commits when a checkpoint overlaps another connection's commit. So
  automatic checkpoints are off, and ours is of a kind that holds the writer's lock.
- A connection never crosses a fork: the child keeps it open and unused, since closing it would
  run SQLite's own clean-up on files that the parent is using.
- What is in the log and not in the database yet is lost to whoever copies that alone. So the database says that there
  is a log (the table `log`), and the log that there need be none: it is written right after that into the
  log alone. An orderly close, which works the log off, brings that into the database.
"""

import contextlib
import logging
import math
import os
import sqlite3
import stat
import time
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from ...errors import StoreError, StoreVersionError, TooLarge
from ...interrupts import SafeLock, interrupts
from ...model.schema import VERSION
from .. import permissions
from ..owners import Owners
from ..permissions import BUSY_TIMEOUT_S
from . import tables
from .runs import OWNERS
from .tables import Many, Reply, Statement, Transaction
from .upkeep import IS_IMPORTING

_T = TypeVar("_T")
Durability = Literal["process", "power"]

CHECKPOINT_BYTES = 64 << 20  # of write-ahead log; a checkpoint syncs the disk, so the fewer the better
_CHECKPOINT_TIMEOUT_S = 1.0
_LEAST_FREE = 1 << 20  # bytes, below which it is not worth while to give them back
LOOK_AT_LOG_EVERY = 64  # turns
LOOK_AT_FILE_S = 1.0
MARK_AFTER_S = 2.0  # since it was opened: it syncs the disk, and what is that short is soon done again
_ERRORS = (sqlite3.Error, OverflowError)  # the latter of a value of more than 2 GB

_HAS_MARK = "SELECT count(*) FROM sqlite_master WHERE name = 'log'"
_PUT_MARK = (
    "CREATE TABLE IF NOT EXISTS log (is_apart INTEGER NOT NULL)",
    "DELETE FROM log",
    "INSERT INTO log VALUES (1)",
)
_TAKE_MARK = "UPDATE log SET is_apart = 0 WHERE is_apart"

_log = logging.getLogger("omniq_executor")
_open: "weakref.WeakSet[Database]" = weakref.WeakSet()
_lost_in_fork: list[Any] = []  # connections that a child inherited: kept, so that they are not closed


class Database:
    """The file of a store, and this process's connection to it. Every method is safe to call from any thread.

    `lock` keeps the transactions of several threads apart. Raises StoreError, also where it cannot be opened.
    """

    def __init__(self, path: Path, owners: Owners, durability: Durability, create: bool, importing: bool) -> None:
        self.path = path
        self.lock = SafeLock()
        self.peers: list[int] = []  # the registered owners, as of the last transaction
        self.is_foreign = False  # whether another connection has committed; who looks at it sets it back
        self.connection: sqlite3.Connection | None = None
        self._owners = owners
        self._version = -1  # of PRAGMA data_version: changes when another connection has committed
        self._turns = 0
        self._mark_at = time.monotonic() + MARK_AFTER_S  # when the database is to say that there is a log
        self._is_importing = importing  # whether a migration may be under way in it
        self._durability = durability
        self._lent: list[sqlite3.Connection] = []  # to others, see connect()
        self._is_lost = False  # whether the file was deleted, or is another one
        self._look_at = 0.0  # when to look whether it was
        try:
            if not create and not path.exists():
                raise StoreError(f"there is no store at {path}")
            has_log = self._has_log()  # before it is looked into, by which it may be worked off
            if not create and not has_log and self._is_empty():
                raise StoreError(f"there is no store at {path}: the file is empty")
            is_hollow = self._prepare_files()
            with explained(path), self.one_at_a_time():
                is_alone = not (has_log or self._has_log())
                self.connection = self._connect()
                is_lost = (self._take_mark(self.connection) or is_hollow) and is_alone
        except OSError as error:
            what = "opened" if os.path.exists(path) else "created"
            raise StoreError(f"the store {path} cannot be {what}: {permissions.explain(error)}") from error
        self._place = _place_of(path)
        _open.add(self)
        if is_lost:
            _log.warning(
                "%s: calls and results may be missing. It was in use when it was copied or its process was killed, and"
                " the log that was beside it then, %s-wal, is not there any more",
                path, path.name,
            )  # fmt: skip

    # opening and closing

    def _prepare_files(self) -> bool:
        """Make what is missing; return whether the database is there and holds nothing, as while all is in its log."""
        permissions.check_place(self.path.parent)
        self._check_private()
        permissions.make_folders(self.path.parent)
        if not self.path.exists():
            permissions.make_folder(self._owners.folder)  # first, see _is_empty()
        with contextlib.suppress(FileExistsError):
            permissions.make_file(self.path)
        if not stat.S_ISREG(self.path.stat().st_mode):
            raise StoreError(f"{self.path} is not a file; give the path of a database file")
        is_made = self.path.stat().st_size > 0
        with explained(self.path), contextlib.closing(self._look()) as connection:
            version = self._check_format(connection)  # before anything is left beside a file that is not ours
        permissions.make_folder(self._owners.folder)
        return is_made and not version

    def _is_empty(self) -> bool:
        """Return whether there is an empty file that is no store which another process makes just now."""
        return self.path.is_file() and not self.path.stat().st_size and not self._owners.folder.exists()

    def _check_private(self) -> None:
        """Refuse files that others could have written. SQLite reads those beside the database as part of it."""
        beside = "-wal", "-shm", "-journal", "-owners", "-owners/open.lock", "-output", "-values", "-reserve"
        for ending in ("", *beside):
            permissions.check_private(Path(f"{self.path}{ending}"))

    def _look(self) -> sqlite3.Connection:
        return sqlite3.connect(
            self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, cached_statements=256
        )

    def _check_format(self, connection: sqlite3.Connection) -> int:
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
        if not self._is_importing and connection.execute(IS_IMPORTING).fetchone()[0]:
            ((source,),) = connection.execute("SELECT source FROM migration").fetchall()
            raise StoreError(
                f"{self.path} holds a part of {source} only: run `omniq-executor migrate {source} {self.path}` again"
            )
        return int(version)

    def _has_log(self) -> bool:
        return os.path.exists(f"{self.path}-wal")

    def _take_mark(self, connection: sqlite3.Connection) -> bool:
        """Return whether the database says that there is a log, and have it say so no more."""
        return bool(connection.execute(_HAS_MARK).fetchone()[0]) and connection.execute(_TAKE_MARK).rowcount > 0

    def connect(self) -> sqlite3.Connection:
        """Return another connection like the store's own, for who drives transactions otherwise, and closes it."""
        with explained(self.path), self.one_at_a_time():
            self.opened()
            connection = self._connect()
        self._lent.append(connection)
        return connection

    def _connect(self) -> sqlite3.Connection:
        connection = self._look()
        try:
            self._check_format(connection)
            # A lone commit writes a page or two: half the bytes of the default.
            connection.execute("PRAGMA page_size = 2048")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {'FULL' if self._durability == 'power' else 'NORMAL'}")
            connection.execute("PRAGMA wal_autocheckpoint = 0")
            connection.execute("BEGIN IMMEDIATE")
            drive(connection, tables.create())
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
        """Close the connection, if it is open."""
        with self.lock:
            if self.connection is not None:
                with contextlib.suppress(sqlite3.Error):
                    self._take_mark(self.connection)  # of a process that died as it worked off the log
                with explained(self.path):
                    self.connection.close()
                self.connection = None
            _open.discard(self)

    def opened(self) -> sqlite3.Connection:
        """Return the connection. Raises StoreError after close()."""
        if self.connection is None:
            raise StoreError(f"the store {self.path} has been closed")
        if self._is_lost:
            raise StoreError(
                f"the store {self.path} was deleted, or another file has taken its place, while it was open: what is"
                " stored from now on would be lost. Make another executor"
            )
        return self.connection

    # transactions

    def write(self, transaction: Transaction[_T]) -> _T:
        """Run a transaction. The hot path: no context managers, which would cost as much as an insert."""
        with self.lock:
            connection = self.opened()
            try:
                connection.execute("BEGIN IMMEDIATE")
                try:
                    self._look_for_peers(connection)
                    result = drive(connection, transaction)
                    connection.execute("COMMIT")
                except BaseException:
                    if connection.in_transaction:  # SQLite has rolled back by itself after, say, a full disk
                        connection.execute("ROLLBACK")
                    raise
            except _ERRORS as error:
                raise _explain(self.path, error) from error
            return result

    def execute(self, statement: Statement) -> sqlite3.Cursor:
        """Run a statement that is a transaction by itself."""
        try:
            return self.opened().execute(*statement)
        except _ERRORS as error:
            raise _explain(self.path, error) from error

    def ask(self, looking: Transaction[_T]) -> _T:
        """Run a transaction of one statement that only reads."""
        with self.lock, explained(self.path):
            return drive(self.opened(), looking)

    def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        with self.lock, explained(self.path):
            return self.opened().execute(sql, parameters).fetchall()

    @contextlib.contextmanager
    def one_at_a_time(self) -> Iterator[None]:
        """Keep other processes from opening the store, and from finding out who is alive."""
        with permissions.explained(f"the store {self.path}"), interrupts, self._owners.gate(BUSY_TIMEOUT_S):
            yield

    # who else is there

    def forget_peers(self) -> None:
        """Have the next transaction look who is registered: a change of this connection's own does not tell."""
        self._version = -1

    def _look_for_peers(self, connection: sqlite3.Connection) -> None:
        # Inside the transaction, so that an owner who enters is either seen here or sees this turn's changes.
        version = connection.execute("PRAGMA data_version").fetchone()[0]
        if version != self._version:
            self._version = version
            self.is_foreign = True
            self.peers[:] = [id for (id,) in connection.execute(OWNERS)]

    # the log

    def count_turn(self) -> None:
        """After each turn: look now and then at what is on the disk."""
        self._turns += 1
        moment = time.monotonic()
        if moment >= self._look_at:
            self._look_at = moment + LOOK_AT_FILE_S
            self._is_lost = _place_of(self.path) != self._place
        if self._turns % LOOK_AT_LOG_EVERY == 0 or moment >= self._mark_at:
            self.work_off_log()

    def work_off_log(self) -> None:
        """Bring what is in the write-ahead log into the database, if that is much, or must say that there is a log."""
        try:
            with self.lock, explained(self.path), contextlib.suppress(FileNotFoundError):
                must_mark = time.monotonic() >= self._mark_at
                if must_mark or os.stat(f"{self.path}-wal").st_size >= CHECKPOINT_BYTES:
                    self._mark_at = math.inf
                    self._checkpoint(self.opened())
        except StoreError as error:
            # What is in it is committed, and must not look as if it were not. The log is as good as before.
            _log.warning("%s: its log is worked off later", error)

    def compact(self, most_bytes: int | None) -> bool:
        """Give free pages back to the disk if most of them are free. See Store.compact()."""
        try:
            with self.lock, explained(self.path):
                connection = self.opened()
                free, pages, page = (
                    connection.execute(f"PRAGMA {what}").fetchone()[0]
                    for what in ("freelist_count", "page_count", "page_size")
                )
                used = (pages - free) * page
                if free * page < _LEAST_FREE or free * 4 < pages * 3 or (most_bytes is not None and used > most_bytes):
                    return False
                # What is left is written to the log, so this takes as long as that is large, and no longer.
                connection.execute("VACUUM")
                self._checkpoint(connection)
                return True
        except StoreError as error:
            _log.warning("%s: its free space is used again, and not given back to the disk", error)
            return False

    def _checkpoint(self, connection: sqlite3.Connection) -> None:
        connection.execute(f"PRAGMA busy_timeout = {int(_CHECKPOINT_TIMEOUT_S * 1000)}")
        try:
            connection.execute("BEGIN IMMEDIATE")
            for statement in _PUT_MARK:
                connection.execute(statement)
            connection.execute("COMMIT")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self._take_mark(connection)
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            connection.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")


def _place_of(path: Path) -> tuple[int, int] | None:
    """Return what tells one file from another, or None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def drive(connection: sqlite3.Connection, transaction: Transaction[_T]) -> _T:
    """Run the statements of a transaction; returns its result."""
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
        result: _T = done.value
        return result


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
        "SQLITE_CANTOPEN": f"it cannot be opened: {permissions.why_nothing_opens(path.parent)}",
        "SQLITE_READONLY": "it cannot be written; check its permissions",
        "SQLITE_FULL": "the disk is full; free some space, nothing that was acknowledged is lost",
        "SQLITE_BUSY": f"another process has held it for more than {BUSY_TIMEOUT_S:.0f} s",
    }.get(name, str(error))
    return StoreError(f"the store {path}: {hint}")


def _after_fork_in_child() -> None:
    for database in list(_open):
        _lost_in_fork.extend([database.connection, *database._lent])
        database.connection = None
        database.lock = SafeLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
