"""Bad input gets one typed error that names the thing, at once, and leaves nothing behind."""

import os
import re
import sqlite3
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import calls
import pytest

from omniq_executor import (
    OmniqError,
    PersistentExecutor,
    SerializationError,
    StoreError,
    StoreVersionError,
    TaskNotFound,
    open_store,
)
from omniq_executor.config import parse_address

WAIT_S = 30.0

as_user = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write wherever it likes")


_before: set[Any] = set()  # the threads and child processes of other tests, as those that wait for a store's tasks


def _children() -> set[str]:
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    return set(children.read_text().split()) if children.exists() else set()


@pytest.fixture(autouse=True)
def _note_what_there_is() -> None:
    _before.clear()
    _before.update(threading.enumerate(), _children())


def assert_nothing_is_left(folder: Path, *kept: str) -> None:
    """No file was made in the folder but those, no thread and no process of ours goes on that did not before."""
    assert sorted(path.name for path in folder.iterdir()) == sorted(kept)
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("omniq")]
    assert [thread.name for thread in threads if thread not in _before] == []
    names = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in _children() - _before]
    assert all(b"forkserver" in name or b"resource_tracker" in name for name in names)


# --- Parameters --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "error", "named"),
    [
        ({"max_workers": 0}, ValueError, "max_workers"),
        ({"max_workers": -3}, ValueError, "max_workers"),
        ({"max_workers": "2"}, TypeError, "max_workers"),
        ({"max_workers": 1.5}, TypeError, "max_workers"),
        ({"mp_context": "fork"}, TypeError, "mp_context"),
        ({"initializer": 3}, TypeError, "initializer"),
        ({"initializer": calls.remember, "initargs": 3}, TypeError, "initargs|iterable"),
        ({"max_tasks_per_child": 0}, ValueError, "max_tasks_per_child"),
        ({"max_tasks_per_child": -1}, ValueError, "max_tasks_per_child"),
        ({"max_tasks_per_child": 1.5}, TypeError, "max_tasks_per_child"),
        ({"max_tasks_per_child": "2"}, TypeError, "max_tasks_per_child"),
        ({"resume": "sometimes"}, ValueError, "resume"),
        ({"resume": True}, ValueError, "resume"),
        ({"engine": "magic"}, ValueError, "engine"),
        ({"engine": None}, TypeError, "engine"),
        ({"durability": "eternal"}, ValueError, "durability"),
        ({"durability": None}, ValueError, "durability"),
        ({"crash_retries": -1}, ValueError, "crash_retries"),
        ({"crash_retries": "2"}, TypeError, "crash_retries"),
        ({"crash_retries": 0.5}, TypeError, "crash_retries"),
        ({"queue": 3}, TypeError, "queue"),
        ({"queue": ""}, ValueError, "queue"),
        ({"store": 3}, TypeError, "store|path"),
        ({"store": b"x.db"}, TypeError, "store|path"),
    ],
    ids=lambda value: re.sub(" at 0x[0-9a-f]+", "", str(value)) if isinstance(value, dict) else "",
)
def test_parameters_that_make_no_sense_are_named(
    tmp_path: Path, parameters: dict[str, Any], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named):
        PersistentExecutor(**{"store": tmp_path / "store.db", **parameters})
    assert_nothing_is_left(tmp_path)


def test_unknown_parameters_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="workers"):
        PersistentExecutor(workers=2, store=tmp_path / "store.db")  # type: ignore[call-arg]
    assert_nothing_is_left(tmp_path)


@pytest.mark.parametrize("key", ["", 3, b"key", ("a",)], ids=repr)
def test_a_key_that_is_no_text_is_refused(executor: PersistentExecutor, key: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="key"):
        executor.options(key=key)
    assert executor.store.counts() == {}


def test_a_key_is_for_one_call(executor: PersistentExecutor) -> None:
    with pytest.raises(ValueError, match="one call"):
        executor.options(key="k").map(calls.square, range(3))
    assert executor.store.counts() == {}


# --- The store ---------------------------------------------------------------------------------------------------


def both_refuse(address: Any, error: type[Exception], match: str) -> None:
    """An executor on that store and a look into it are refused."""
    for open_it in (lambda: PersistentExecutor(1, store=address), lambda: open_store(address)):
        with pytest.raises(error, match=match) as caught:
            open_it()
        assert isinstance(caught.value, OmniqError)


@pytest.mark.parametrize(
    "address",
    ["redis://localhost/0", "http://x/y.db", "sqlite:/", "sqlite://", "sqlite:///", "file://", "postgresql:/x", "://"],
)
def test_an_address_of_an_unknown_scheme_is_named(tmp_path: Path, monkeypatch: Any, address: str) -> None:
    monkeypatch.chdir(tmp_path)
    if "://" in address:
        both_refuse(address, StoreError, address)
    else:  # it may be a path, though a strange one
        with pytest.raises(StoreError):
            PersistentExecutor(1, store=address)
    assert_nothing_is_left(tmp_path)


@pytest.mark.parametrize("address", [":memory:", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(tmp_path: Path, monkeypatch: Any, address: str) -> None:
    """It was a folder of that name."""
    monkeypatch.chdir(tmp_path)
    both_refuse(address, StoreError, "in memory")
    assert_nothing_is_left(tmp_path)


@pytest.mark.parametrize("name", ["STORE.DB", "Store.Sqlite", "s.SQLITE3"])
def test_the_ending_of_a_database_may_be_in_capitals(tmp_path: Path, name: str) -> None:
    assert parse_address(tmp_path / name).backend == "sqlite"


def test_an_empty_address_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    both_refuse("", StoreError, "empty")
    assert_nothing_is_left(tmp_path)


def test_a_file_that_is_no_database_is_named_and_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    path.write_text("These are notes, and no database.\n" * 50)
    both_refuse(path, StoreError, "notes.db.*not an SQLite database")
    assert path.read_text() == "These are notes, and no database.\n" * 50
    assert_nothing_is_left(tmp_path, "notes.db")


def test_a_database_of_another_program_is_named_and_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE theirs (x)")
        other.commit()
    before = path.read_bytes()
    both_refuse(path, StoreError, "other.db.*another program")
    assert path.read_bytes() == before
    assert_nothing_is_left(tmp_path, "other.db")


def test_a_store_of_a_newer_version_is_named_and_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "newer.db"
    with PersistentExecutor(1, store=path) as executor:
        executor.submit(calls.square, 2).result(WAIT_S)
    with closing(sqlite3.connect(path)) as newer:
        newer.execute("PRAGMA user_version = 999")
    both_refuse(path, StoreVersionError, "newer.db.*999.*install")
    with closing(sqlite3.connect(path)) as newer:
        assert newer.execute("PRAGMA user_version").fetchone() == (999,)
        assert newer.execute("SELECT count(*) FROM task").fetchone() == (1,)


def test_a_folder_in_the_place_of_the_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.db").mkdir()
    both_refuse(tmp_path / "folder.db", StoreError, "folder.db is not a file")
    assert_nothing_is_left(tmp_path, "folder.db")


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    both_refuse(tmp_path / "file" / "store.db", StoreError, r"file.store\.db cannot be created")
    assert_nothing_is_left(tmp_path, "file")


def test_a_folder_that_the_system_lets_nobody_write_is_named() -> None:
    if not Path("/proc/self").exists():
        pytest.skip("there is no /proc")
    both_refuse("/proc/omniq/store.db", StoreError, r"/proc/omniq.*choose a folder that you can write to")


@as_user
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    both_refuse(folder / "store.db", StoreError, "locked.*choose a folder that you can write to")
    assert_nothing_is_left(folder)


def test_a_folder_without_permission_is_named_to_users_other_than_root(tmp_path: Path, script: Any) -> None:
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or not sys.platform.startswith("linux"):
        pytest.skip("root alone can become somebody else")
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o755)
    script.write("""
import os, sys
from omniq_executor import PersistentExecutor, StoreError
PersistentExecutor(1, store="first.db").shutdown()  # whatever is imported late is imported now
os.setuid(65534)  # a user who may not even read this interpreter
try:
    PersistentExecutor(1, store="locked/store.db")
except StoreError as error:
    print(error)
""")
    for above in (tmp_path, *tmp_path.parents):  # pytest makes its folders 0700
        if above.stat().st_mode & 0o077 == 0:
            above.chmod(0o755)
    done = script.run()
    assert "locked/store.db cannot be created" in done.stdout
    assert "choose a folder that you can write to" in done.stdout
    assert_nothing_is_left(folder)


def test_a_folder_that_holds_something_else_is_named_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    both_refuse(tmp_path, StoreError, r"thesis\.txt.*a folder of its own")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_looking_at_a_store_that_is_not_there_makes_none(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"there is no store at .*none\.db"):
        open_store(tmp_path / "none.db", create=False)
    assert_nothing_is_left(tmp_path)


# --- Ids ---------------------------------------------------------------------------------------------------------

MALFORMED = ["", "task-", "task-123", "0123456789abc", "task-0123456789abu", "task-z123456789abc", "task-0123456789ABC",
             "task-0123456789abcd", " task-0123456789abc", "job-0123456789abc"]  # fmt: skip


@pytest.mark.parametrize("task_id", MALFORMED, ids=repr)
def test_what_is_no_task_id_is_named(executor: PersistentExecutor, task_id: str) -> None:
    for find in (executor.future, executor.store.get):
        with pytest.raises(ValueError, match="is not a task id") as caught:
            find(task_id)
        assert repr(task_id) in str(caught.value)


@pytest.mark.parametrize("task_id", [None, 3.5, b"task-0123456789abc"], ids=repr)
def test_an_id_that_is_no_text_is_refused(executor: PersistentExecutor, task_id: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        executor.future(task_id)
    assert executor.submit(calls.square, 2).result(WAIT_S) == 4


def test_an_unknown_task_id_is_named_with_its_store(executor: PersistentExecutor, store: Path) -> None:
    for find in (executor.future, executor.store.get):
        with pytest.raises(TaskNotFound, match="task-0123456789abc") as caught:
            find("task-0123456789abc")
        assert str(store) in str(caught.value)


# --- Calls -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [None, 3, "abs", [abs]], ids=repr)
def test_what_cannot_be_called_is_named(executor: PersistentExecutor, function: Any) -> None:
    with pytest.raises(TypeError, match="cannot be called") as caught:
        executor.submit(function, 1)
    assert repr(function) in str(caught.value)
    with pytest.raises(TypeError, match="cannot be called"):
        executor.map(function, [1])
    assert executor.store.counts() == {}
    assert executor.submit(calls.square, 2).result(WAIT_S) == 4


def test_submit_without_a_function_is_refused(executor: PersistentExecutor) -> None:
    with pytest.raises(TypeError):
        executor.submit()  # type: ignore[call-arg]
    assert executor.store.counts() == {}


def test_an_argument_that_cannot_be_pickled_is_named_in_its_future(executor: PersistentExecutor) -> None:
    for future in (
        executor.submit(calls.echo, threading.Lock()),
        executor.submit(calls.echo, 1, 2, 3, value=threading.Lock()),
        executor.submit(calls.echo, [{"a": (threading.Lock(),)}]),
    ):
        with pytest.raises(SerializationError, match="lock") as caught:
            future.result(WAIT_S)
        assert "a tuple cannot be stored" not in str(caught.value)  # the pair of arguments is not the user's
    assert executor.store.counts() == {}


def test_a_function_that_cannot_be_pickled_is_named_in_its_future(executor: PersistentExecutor) -> None:
    lock = threading.Lock()

    def uses_a_lock() -> None:
        lock.acquire()

    with pytest.raises(SerializationError, match="lock"):
        executor.submit(uses_a_lock).result(WAIT_S)
    assert executor.store.counts() == {}


def test_a_map_that_is_not_given_iterables_is_refused(executor: PersistentExecutor) -> None:
    with pytest.raises(TypeError, match=r"iterable|iteration"):
        executor.map(calls.square, 3)
    assert list(executor.map(calls.square)) == []
    assert executor.store.counts() == {}
