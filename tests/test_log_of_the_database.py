"""A database that is copied without its write-ahead log lacks what was in that: it is said when it is opened."""

import contextlib
import logging
import os
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from omniq_executor import PersistentExecutor, open_store
from omniq_executor.stores.sqlite import database

SAID = "calls and results may be missing"


@pytest.fixture(autouse=True)
def marks_at_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(database, "MARK_AFTER_S", 0.0)
    caplog.set_level(logging.WARNING, "omniq_executor")


@pytest.fixture
def used(tmp_path: Path) -> Iterator[Path]:
    """A store that is open, with calls."""
    with PersistentExecutor(1, store=tmp_path / "used.db") as executor:
        assert [*executor.map(abs, range(5))] == [*range(5)]
        yield tmp_path / "used.db"


def copy(source: Path, *endings: str) -> Path:
    for ending in ("", *endings):
        shutil.copy(f"{source}{ending}", f"{source.parent / 'copy.db'}{ending}")
    return source.parent / "copy.db"


def opened(path: Path) -> int:
    """Open a store, and return how many calls it has."""
    with contextlib.closing(open_store(path)) as store:
        return len(store.ids())


def test_a_copy_without_the_log_is_said_to_lack_calls_once(used: Path, caplog: Any) -> None:
    lacks = copy(used)
    opened(lacks)
    assert SAID in caplog.text
    assert "copy.db-wal" in caplog.text
    caplog.clear()
    opened(lacks)
    assert not caplog.text


def test_a_copy_with_the_log_has_all_and_nothing_is_said(used: Path, caplog: Any) -> None:
    assert opened(copy(used, "-wal")) == 5
    assert opened(used.parent / "copy.db") == 5
    assert not caplog.text


def test_it_is_said_of_one_that_was_used_for_a_moment_only(tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.setattr(database, "MARK_AFTER_S", 60.0)
    with PersistentExecutor(1, store=tmp_path / "used.db") as executor:
        executor.submit(abs, -1).result()
        opened(copy(tmp_path / "used.db"))
    assert SAID in caplog.text


def test_nothing_is_said_of_what_was_closed_in_order(used: Path, caplog: Any) -> None:
    with contextlib.closing(open_store(used)) as another:
        another.counts()
    with PersistentExecutor(1, store=used.with_name("closed.db")) as executor:
        assert executor.submit(abs, -1).result() == 1
    assert opened(copy(used.with_name("closed.db"))) == 1
    assert not caplog.text


@pytest.mark.parametrize("looks", ["nobody", "sqlite3", "the store", "the store, killed as it opens"])
def test_nothing_is_said_after_a_kill_whoever_has_looked(script: Any, looks: str, caplog: Any) -> None:
    script.write(
        """
import os, signal
from omniq_executor.stores.sqlite import database
database.MARK_AFTER_S = 0.0
from omniq_executor import PersistentExecutor
executor = PersistentExecutor(1, store="used.db")
print([*executor.map(abs, range(5))])
os.killpg(0, signal.SIGKILL)
"""
    )
    used = script.folder / "used.db"
    assert script.run().returncode == -signal.SIGKILL
    assert os.path.exists(f"{used}-wal")
    if looks == "sqlite3":
        with contextlib.closing(sqlite3.connect(used)) as connection:
            assert connection.execute("SELECT count(*) FROM task").fetchone() == (5,)
        assert not os.path.exists(f"{used}-wal")
    elif looks == "the store, killed as it opens":
        script.write("import os\nfrom omniq_executor import open_store\nopen_store('used.db')\nos._exit(0)\n")
        assert script.run().returncode == 0
    elif looks == "the store":
        opened(used)
    assert opened(used) == 5
    assert not caplog.text
    assert opened(used) == 5
    assert not caplog.text


def test_a_process_that_dies_as_it_works_off_the_log_has_nothing_said(
    used: Path, monkeypatch: Any, caplog: Any
) -> None:
    with contextlib.closing(open_store(used)) as store:
        db: Any = store
        monkeypatch.setattr(database, "_TAKE_MARK", "DELETE FROM log WHERE 0")
        db.db._mark_at = 0.0
        db.db.work_off_log()
        monkeypatch.undo()
    half = copy(used, "-wal")
    for _ in range(3):
        opened(half)
    assert not caplog.text
