"""What holds of the SQLite store alone: any client of SQLite can read its file, and it takes no other's."""

import contextlib
import json
import mmap
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from backends import BACKENDS, CUBE, ERROR, SQUARE, Backend, Client, call, new_ids, tick
from filelock import FileLock

from omniq_executor import PersistentExecutor, StoreError, StoreVersionError, TooLarge
from omniq_executor.model.schema import VERSION
from omniq_executor.model.task import LAST_TIER, Call, Event, Options, Status, format_id, iso
from omniq_executor.stores import glance
from omniq_executor.stores.base import Batch, Outcome, Turn
from omniq_executor.stores.glances import Wanted
from omniq_executor.stores.sqlite import database as sqlite, runs, tally, turns
from omniq_executor.stores.sqlite.store import SQLiteStore

Connect = Callable[[Path], sqlite3.Connection]


@pytest.fixture
def backend() -> Backend:
    return BACKENDS["sqlite"]


@pytest.fixture
def plain(address: Path) -> Iterator[sqlite3.Connection]:
    """The plain sqlite3 client, on the test's store."""
    address.parent.mkdir(exist_ok=True)
    with contextlib.closing(sqlite3.connect(address, isolation_level=None)) as connection:
        connection.row_factory = sqlite3.Row
        yield connection


def shown(plain: sqlite3.Connection, id: int) -> dict[str, Any]:
    (row,) = plain.execute("SELECT * FROM tasks WHERE id = ?", (format_id(id),)).fetchall()
    return dict(row)


@pytest.mark.parametrize("alone", [True, False])
def test_a_value_above_two_gigabytes_is_refused_and_changes_nothing(
    client: Client, enter: Callable[..., Client], alone: bool
) -> None:
    """Issue 10: SQLite's module has an error of its own for it, which nobody took for the store's."""
    if not alone:
        enter()
    huge: Any = mmap.mmap(-1, 1 << 31)  # which takes no memory
    (id,) = client.add(1, claimed=True)
    with pytest.raises(TooLarge, match=str(client.store.path)):
        client.end(Event.COMPLETE, id, result=huge)
    with pytest.raises(TooLarge):
        client.store.add_claimed(client.owner, client.run, id + 1, SQUARE, Call(huge), tick())
    assert client.statuses([id]) == [Status.RUNNING]
    assert client.end(Event.COMPLETE, id, result="1") == set()
    assert client.store.ids() == [id]


def test_counts_that_are_not_right_are_repaired(client: Client, store: SQLiteStore, plain: sqlite3.Connection) -> None:
    first, second, third, *_ = client.add(1, 2, 3, 4, 5, 6, claimed=True)
    client.end(Event.COMPLETE, first, second, result="1")
    client.end(Event.FAIL, third)
    right = {"work": {Status.COMPLETED: 2, Status.FAILED: 1, Status.RUNNING: 3}}
    assert plain.execute("SELECT sum(tasks) FROM tally").fetchone()[0] == 2
    for damage in ("UPDATE tally SET tasks = tasks + 1 WHERE status = 3", "DELETE FROM tally"):
        assert (store.counts(), store.check()) == (right, [])
        plain.execute(damage)
        assert store.counts() != right
        assert [problem.repaired for problem in store.check()] == [True]
    assert (store.counts(), store.check()) == (right, [])


def test_counts_look_at_no_task_but_the_newest(client: Client, store: SQLiteStore, plain: sqlite3.Connection) -> None:
    def steps(sql: str) -> int:
        found: list[int] = []
        plain.set_progress_handler(lambda: found.append(1), 1)
        plain.execute(sql).fetchall()
        plain.set_progress_handler(None, 0)
        return len(found)

    for _ in range(150):
        client.end(Event.COMPLETE, *client.add(1, 2, claimed=True), result="1")
    assert steps("SELECT status, count(*) FROM task GROUP BY status") > 2000
    assert steps(tally.COUNTS) < 500 > steps(tally.UNFINISHED)
    client.die()  # nobody has to be there, or to have left
    assert store.counts() == {"work": {Status.COMPLETED: 300}}


def test_counting_goes_by_no_index_that_may_be_longer_than_what_is_counted(
    plain: sqlite3.Connection, client: Client
) -> None:
    for status in Status:
        plan = plain.execute(f"EXPLAIN QUERY PLAN {tally._ARE_ALIKE}", (100, status, 1, 1)).fetchall()
        assert [row[3] for row in plan if "task" in row[3]] == [
            "SEARCH task USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"
        ]


def test_a_task_whose_id_is_older_than_what_is_counted_is_counted(client: Client, store: SQLiteStore) -> None:
    """As of one who took its id, and was stopped for a while, or whose clock was set back (issue 13)."""
    early, other, _, fourth = new_ids(4)
    client.add(*range(10), claimed=True)
    assert fourth < store.db.read("SELECT below FROM counted")[0][0]
    client.store.add_claimed(client.owner, client.run, early, SQUARE, call(1), tick())
    client.turn(adds=[Batch(other, 2, SQUARE, calls=[call(2), call(3)])])
    client.turn(adds=[Batch(fourth, 1, SQUARE, calls=[call(2)], claimed=True)])
    assert store.counts() == {"work": {Status.RUNNING: 12, Status.PENDING: 2}}
    client.end(Event.COMPLETE, early, result="1")
    client.end(Event.FAIL, fourth)
    states = {Status.RUNNING: 10, Status.PENDING: 2, Status.COMPLETED: 1, Status.FAILED: 1}
    assert store.counts() == {"work": states}
    assert store.check() == []


def test_what_is_purged_or_removed_is_not_counted(client: Client, store: SQLiteStore) -> None:
    done = client.add(*range(6), claimed=True)
    client.end(Event.COMPLETE, *done, result="1")
    client.end(Event.FAIL, *client.add(*range(6), claimed=True))
    assert store.remove(done[:2]) == 2
    assert (store.counts(), store.check()) == ({"work": {Status.COMPLETED: 4, Status.FAILED: 6}}, [])
    assert store.purge(tick(), [Status.FAILED]) == 6
    assert (store.counts(), store.check()) == ({"work": {Status.COMPLETED: 4}}, [])


def test_a_mark_that_cannot_be_moved_now_is_moved_later(
    client: Client, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: int) -> Any:
        raise StoreError("no")
        yield

    with monkeypatch.context() as patch:
        patch.setattr(tally, "move_on", refused)
        client.add(*range(10))
    assert store.db.read("SELECT below FROM counted") == [(0,)]
    client.add(*range(10))
    assert store.db.read("SELECT below > 0 FROM counted") == [(1,)]
    assert store.counts() == {"work": {Status.PENDING: 20}}


# --- Whose file it is ---


OLDEST_COLUMNS = """
    id INTEGER PRIMARY KEY, queue INTEGER NOT NULL, run INTEGER NOT NULL, function INTEGER NOT NULL, args, kwargs TEXT,
    identity BLOB, key TEXT, status INTEGER NOT NULL, priority INTEGER NOT NULL DEFAULT 0,
    eta INTEGER NOT NULL DEFAULT 0, enqueued_at INTEGER NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
    crashes INTEGER NOT NULL DEFAULT 0, owner INTEGER, started_at INTEGER, finished_at INTEGER, result, error TEXT,
    exception BLOB
"""


def make_older(plain: sqlite3.Connection, version: int) -> None:
    """Take back what each version has added."""
    plain.execute("DROP TABLE counted")
    if version < 6:
        plain.execute("DROP TABLE tally")
    plain.execute("DROP VIEW tasks")
    if version < 5:
        plain.execute("DROP TABLE taken")
        plain.execute("ALTER TABLE run DROP COLUMN result_ttl")
        plain.execute("ALTER TABLE function DROP COLUMN parts")
    if version < 4:
        make_older_than_4(plain, version)
    plain.execute("CREATE VIEW tasks AS SELECT t.id, t.crashes, t.owner FROM task t")
    plain.execute(f"PRAGMA user_version = {version}")
    plain.execute("VACUUM")  # so that nothing of what was dropped is left


def make_older_than_4(plain: sqlite3.Connection, version: int) -> None:
    plain.execute("DROP TABLE session")
    for column in ("session", "context"):
        plain.execute(f"ALTER TABLE run DROP COLUMN {column}")
    columns = OLDEST_COLUMNS + (", options TEXT" if version > 1 else "")
    names = ", ".join(column.split()[0] for column in columns.split(","))
    plain.execute("ALTER TABLE task RENAME TO newer")
    plain.execute(f"CREATE TABLE task ({columns})")
    plain.execute(f"INSERT INTO task ({names}) SELECT {names} FROM newer")
    plain.execute("DROP TABLE newer")
    plain.execute("CREATE INDEX claimable ON task (queue, priority DESC, eta, id) WHERE status = 1")
    plain.execute("CREATE UNIQUE INDEX task_key ON task (queue, key) WHERE key IS NOT NULL")
    if version < 3:
        plain.execute("DROP TABLE dependency")


def shape(path: Path) -> dict[str, Any]:
    """The tables, indexes and views of a database, with their columns, which come in another order in older ones."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        names = connection.execute("SELECT type, name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'").fetchall()
        return {
            name: [(place, *column) for place, _, *column in connection.execute(f"PRAGMA index_xinfo({name})")]
            if kind == "index"
            else sorted(column for _, *column in connection.execute(f"PRAGMA table_xinfo({name})"))
            for kind, name in names
        }


@pytest.mark.parametrize("version", range(1, VERSION))
def test_a_store_of_an_older_version_is_brought_up_to_date(
    client: Client, plain: sqlite3.Connection, address: Path, tmp_path: Path, version: int
) -> None:
    done, later = client.add(1, 2)
    client.claim(1)
    client.end(Event.COMPLETE, done, result="1")
    (waiting,) = new_ids(1)
    if version >= 3:
        client.turn(adds=[Batch(waiting, 1, SQUARE, calls=[call(3)], options=Options(max_retries=7, after=(later,)))])
    client.stop(clean=False)
    tasks, runs, counts = client.store.find(), client.store.runs(), client.store.counts()
    client.close()
    make_older(plain, version)
    with contextlib.closing(sqlite3.connect(address)) as connection:
        columns = [name for _, name, *_ in connection.execute("PRAGMA table_info(task)")]
        assert ("owner_deaths" in columns) == (version >= 4)
        assert connection.execute("SELECT count(*) FROM tasks").fetchone() == (len(tasks),)
    assert glance(f"sqlite:///{address}", Wanted(counts=True)).counts == counts  # before anybody opens it
    with contextlib.closing(SQLiteStore(address)) as store:
        assert (store.find(), store.runs(), store.counts()) == (tasks, runs, counts)
        assert store.check() == []
    with contextlib.closing(SQLiteStore(tmp_path / "fresh.db")):
        assert shape(address) == shape(tmp_path / "fresh.db")
    assert plain.execute("PRAGMA user_version").fetchone()[0] == VERSION
    assert shown(plain, done)["owner_deaths"] == 0
    with contextlib.closing(Client(BACKENDS["sqlite"], address)) as after:
        assert (after.run.continues, after.run.done) == ((client.run.id,), 1)
        assert after.claim() == [later]
        after.die()
    with contextlib.closing(Client(BACKENDS["sqlite"], address)) as last:
        assert last.claim(tier=1) == [later]
        assert last.end(Event.COMPLETE, later, attempt=2, result="2") == set()
        assert last.claim() == ([waiting] if version >= 3 else [])
        last.stop()


def plan(plain: sqlite3.Connection, sql: str) -> list[str]:
    """What SQLite says of how it goes about a statement."""
    return [row["detail"] for row in plain.execute(f"EXPLAIN QUERY PLAN {sql}", (1,) * sql.count("?"))]


@pytest.mark.parametrize("tier", range(LAST_TIER))
def test_a_claim_goes_along_the_index_and_sorts_nothing(
    store: SQLiteStore, plain: sqlite3.Connection, tier: int
) -> None:
    for sql in (turns._CLAIM[tier], turns._FIRST[tier] % "id"):
        (first,) = [detail for detail in plan(plain, sql) if "claimable" in detail]
        assert "(queue=? AND run=? AND owner_deaths=?)" in first
        assert "B-TREE" not in "".join(plan(plain, sql))


def test_what_is_asked_of_a_run_or_of_the_next_tier_goes_along_the_index(
    store: SQLiteStore, plain: sqlite3.Connection
) -> None:
    for sql in (turns._RUNS, turns._NEXT_TIER, turns._DUE[0]):
        looks = [detail for detail in plan(plain, sql) if " task " in f"{detail} "]
        assert looks
        assert all("claimable" in detail and "queue=?" in detail for detail in looks)
    of_run = f"SELECT id FROM task WHERE {runs._PENDING_OF} ?"
    assert "claimable (queue=? AND run=?)" in "".join(plan(plain, of_run))


def test_what_waits_for_nothing_or_should_wait_is_repaired(
    client: Client, store: SQLiteStore, plain: sqlite3.Connection
) -> None:
    (first,) = client.add(1, claimed=True)
    (id,) = new_ids(1)
    client.turn(adds=[Batch(id, 1, SQUARE, calls=[call(1)], options=Options(after=(first,)))])
    before = store.get(id)
    plain.execute("DELETE FROM dependency")
    assert [problem.repaired for problem in store.check()] == [True]
    assert store.get(id) == before
    plain.execute("UPDATE task SET eta = 0, options = json_remove(options, '$.due') WHERE id = ?", (id,))
    plain.execute("INSERT INTO dependency VALUES (17, 18)")
    assert [problem.repaired for problem in store.check()] == [True]
    assert store.get(id) == before
    assert store.check() == []
    plain.execute("UPDATE task SET status = 4 WHERE id = ?", (first,))
    assert [problem.repaired for problem in store.check()] == [True]
    assert client.claim() == [id]


def test_a_store_of_a_newer_version_is_refused(store: SQLiteStore, plain: sqlite3.Connection, address: Path) -> None:
    plain.execute(f"PRAGMA user_version = {VERSION + 1}")
    with pytest.raises(StoreVersionError, match=f"{address} has schema version {VERSION + 1}.*install"):
        SQLiteStore(address)


@pytest.mark.parametrize("content", [b"hello\n", b"not a database " * 1000, b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_file_that_is_no_database_is_refused_and_left_alone(address: Path, content: bytes) -> None:
    address.parent.mkdir()
    address.write_bytes(content)
    with pytest.raises(StoreError, match=str(address)):
        SQLiteStore(address)
    assert address.read_bytes() == content


@pytest.mark.parametrize("version", [-1, 0, VERSION, VERSION + 1])
def test_the_database_of_another_program_is_refused_and_left_alone(
    plain: sqlite3.Connection, address: Path, version: int
) -> None:
    plain.execute("CREATE TABLE theirs (a)")
    plain.execute("INSERT INTO theirs VALUES (1)")
    plain.execute(f"PRAGMA user_version = {version}")
    before = address.read_bytes()
    with pytest.raises(StoreError, match=str(address)):
        SQLiteStore(address)
    assert address.read_bytes() == before


def test_a_folder_in_the_place_of_the_file_is_refused(address: Path) -> None:
    address.mkdir(parents=True)
    with pytest.raises(StoreError, match="is not a file"):
        SQLiteStore(address)


def test_an_empty_file_becomes_a_store(address: Path) -> None:
    address.parent.mkdir()
    address.touch()
    with contextlib.closing(SQLiteStore(address)) as store:
        assert store.counts() == {}


def test_an_unknown_durability_is_refused(address: Path) -> None:
    with pytest.raises(ValueError, match="durability"):
        SQLiteStore(address, durability="maybe")  # type: ignore[arg-type]
    assert not address.parent.exists()


# --- When others hold it ---


def test_a_store_that_another_process_is_opening_for_too_long_raises_store_error(
    store: SQLiteStore, address: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_S", 0.01)
    with FileLock(address.with_name(f"{address.name}-owners") / "open.lock"), pytest.raises(StoreError):
        SQLiteStore(address)


def test_a_write_that_waits_too_long_for_another_program_raises_store_error(
    client: Client, plain: sqlite3.Connection, address: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_S", 0.01)
    with contextlib.closing(SQLiteStore(address)) as impatient:
        ids = client.add(1)
        plain.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="held"):
            impatient.cancel(ids, tick())
        assert len(impatient.find()) == 1  # reading goes on
        plain.execute("ROLLBACK")
        assert impatient.cancel(ids, tick()) == ids


def test_a_child_of_a_fork_has_no_use_of_its_parents_handle(start: Callable[..., Any]) -> None:
    process = start(
        "import os, omniq_executor\n"
        "client = Client(backend, address)\n"
        "if not (child := os.fork()):\n"
        "    try: client.store.counts()\n"
        "    except omniq_executor.StoreError: os._exit(3)\n"
        "    finally: os._exit(4)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3\n"
        "client.add(1); ready(); input(); client.close()\n"
    )
    assert process.communicate("end\n", timeout=30) == ("", "")
    assert process.returncode == 0


# --- What people see ---


def test_the_view_shows_what_people_want_to_know(client: Client, plain: sqlite3.Connection) -> None:
    done, failed, pending = new_ids(3)
    calls = [call(2, [1.5, "\u00e9"], base=3), call(3), Call(b"a pickle", None, b"identity")]
    added, claimed, ended = tick(), tick(), tick()
    client.turn(added, adds=[Batch(done, 3, CUBE, calls=calls)])
    client.turn(claimed, claim=2)
    outcomes = [Outcome(done, 1, Event.COMPLETE, '{"a":[1.0]}'), Outcome(failed, 1, Event.FAIL, error=ERROR)]
    client.turn(ended, outcomes=outcomes)
    row = shown(plain, done)
    assert json.loads(row["args"]) == [2, [1.5, "\u00e9"]]
    assert (json.loads(row["kwargs"]), json.loads(row["result"])) == ({"base": 3}, {"a": [1.0]})
    assert (row["queue"], row["func_path"], row["status"], row["attempts"]) == ("work", "numbers.cube", "COMPLETED", 1)
    assert (row["enqueued_at"], row["started_at"]) == (iso(added), iso(claimed))
    assert (row["completed_at"], row["failed_at"]) == (iso(ended), None)
    row = shown(plain, failed)
    assert (row["status"], row["completed_at"], row["failed_at"]) == ("FAILED", None, iso(ended))
    assert (row["error_type"], row["error_message"], row["traceback"]) == ERROR[:3]
    row = shown(plain, pending)
    assert (row["status"], row["args"], row["kwargs"], row["attempts"]) == ("PENDING", b"a pickle", None, 0)
    assert (row["started_at"], row["owner"]) == (None, None)


@pytest.mark.parametrize("message", ["a name of a file: \udcff", "NUL: \0, and on"])
def test_the_view_shows_an_error_of_any_text(client: Client, plain: sqlite3.Connection, message: str) -> None:
    (id,) = client.add(1, claimed=True)
    client.turn(outcomes=[Outcome(id, 1, Event.FAIL, error=ERROR._replace(message=message))])
    assert shown(plain, id)["error_message"].startswith(message[:5])


def test_claims_come_by_priority_then_eta_then_id(client: Client, plain: sqlite3.Connection) -> None:
    ids = client.add(*range(5))
    for id, priority, eta in zip(ids, (0, 0, -1, 7, 0), (9, 5, 0, 9, 5), strict=True):
        plain.execute("UPDATE task SET priority = ?, eta = ? WHERE id = ?", (priority, eta, id))
    places = [3, 1, 4, 0, 2]
    assert [claimed.id for claimed in client.turn(8, claim=9).claimed] == [ids[1], ids[4], ids[2]]
    client.end(Event.RELEASE, ids[1], ids[2], ids[4])
    assert client.claim(1) + client.claim(2) + client.claim(2) == [ids[place] for place in places]
    for id in ids:
        client.end(Event.RELEASE, id, attempt=client.store.get(id).attempts)
    assert client.claim() == [ids[place] for place in places]


# --- What is left behind ---


@pytest.mark.parametrize("end", ["stops", "dies"])
def test_news_is_kept_only_while_several_owners_are_there(
    client: Client, other: Client, plain: sqlite3.Connection, end: str
) -> None:
    (first,), later = client.add(1, claimed=True), client.add(2, 3, claimed=True)
    client.end(Event.COMPLETE, first)
    assert plain.execute("SELECT count(*) FROM news").fetchone()[0] == 1
    other.stop() if end == "stops" else other.die()
    client.store.reap(tick())
    client.store.read_changes(client.owner)
    client.end(Event.COMPLETE, *later)  # there is nobody left to hear it
    assert plain.execute("SELECT count(*) FROM news").fetchone()[0] == 0


def test_the_log_does_not_grow_for_ever(
    client: Client, other: Client, address: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = address.with_name(f"{address.name}-wal")
    sizes = []
    for _ in range(65):
        client.add(1)
        sizes.append(log.stat().st_size)
    assert sizes == sorted(sizes)
    monkeypatch.setattr(sqlite, "CHECKPOINT_BYTES", sizes[0])
    for _ in range(64):
        client.add(1)
        sizes.append(log.stat().st_size)
    assert min(sizes[65:]) < sizes[0], "all but the mark that says that there is a log was worked off"
    assert len(other.claim(200)) == 129


def test_owners_leave_no_files_behind(client: Client, enter: Callable[..., Client], address: Path) -> None:
    folder = address.with_name(f"{address.name}-owners")
    before = {path.name for path in folder.iterdir() if not path.name.startswith(str(client.owner))}
    left, dead = enter(), enter()
    assert left.store.counts() == {}
    left.stop()
    dead.die()
    client.store.reap(tick())
    client.stop()
    assert {path.name for path in folder.iterdir()} == before
    assert client.store.counts().get("work", {}).get(Status.RUNNING) is None


def test_a_dead_owner_that_another_process_is_looking_at_is_still_found_dead(client: Client, other: Client) -> None:
    """To look at it is to hold its lock for a moment, which is just what a living owner does."""
    client.add(1, claimed=True)
    client.die()
    owners = other.store._owners  # type: ignore[attr-defined]
    looking = threading.Event()
    enough = threading.Event()

    def look() -> None:
        with owners.gate(5), FileLock(owners._lock_path(client.owner)):
            looking.set()
            enough.wait(0.2)

    looker = threading.Thread(target=look)
    looker.start()
    assert looking.wait(5)
    assert other.store.reap(tick()) == 1
    looker.join()


def test_news_are_dropped_as_soon_as_all_others_have_heard(address: Path, enter: Callable[..., Client]) -> None:
    client, second, third = enter(), enter(), enter()
    client.end(Event.COMPLETE, *client.add(1, 2, claimed=True), result="1")
    counts = []
    with contextlib.closing(sqlite3.connect(address)) as connection:
        for other in (second, third):
            assert len(other.store.read_changes(other.owner)) == 2
            counts += connection.execute("SELECT count(*) FROM news").fetchone()
    assert counts == [2, 0]


@pytest.mark.parametrize("replaced", [False, True])
def test_a_store_that_was_deleted_while_it_was_open_takes_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    """What was stored went to a file without a name, and nobody was told."""
    monkeypatch.setattr(sqlite, "LOOK_AT_FILE_S", 0.0)
    path = tmp_path / "runs.db"
    with PersistentExecutor(1, store=path) as executor:
        assert executor.submit(abs, -1).result() == 1
        path.unlink()
        if replaced:
            path.touch()
        with contextlib.suppress(StoreError):
            executor.submit(abs, -2)  # which may be the one that notices it
        with pytest.raises(StoreError, match="was deleted, or another file has taken its place"):
            executor.submit(abs, -2)
        executor.kill_workers()


def test_who_leaves_looks_at_nothing_older_than_what_it_has_claimed(client: Client) -> None:
    """Issue 13: each clean end of a script looked at all tasks, 0.9 s of CPU for ten millions."""
    client.complete_block(client.add(*range(20_000), claimed=True)[0], list(range(20_000)))
    client.stop()
    owner = client.store.enter("work")
    client.store.turn(owner, client.run, Turn(tick(), adds=[Batch(*new_ids(1)[:1], 1, SQUARE, calls=[call(1)])]))
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 100

    store = cast("SQLiteStore", client.store)
    store.db.opened().set_progress_handler(count, 100)
    client.store.leave(owner)
    assert steps < 1000


@pytest.mark.parametrize("is_committed", [True, False])
def test_what_a_turn_claimed_whose_commit_is_in_doubt_is_left_behind(
    client: Client, other: Client, monkeypatch: pytest.MonkeyPatch, is_committed: bool
) -> None:
    (old,) = other.add(0)
    (new,) = client.add(1, claimed=True)
    write = sqlite.Database.write

    def fail(self: sqlite.Database, transaction: Any) -> Any:
        if is_committed:
            write(self, transaction)
        raise StoreError("the disk is gone")

    with monkeypatch.context() as patched:
        patched.setattr(sqlite.Database, "write", fail)
        with pytest.raises(StoreError):
            client.claim()
    assert other.statuses([old, new]) == [Status.RUNNING if is_committed else Status.PENDING, Status.RUNNING]
    client.store.leave(client.owner)
    assert other.statuses([old, new]) == [Status.PENDING, Status.PENDING]
