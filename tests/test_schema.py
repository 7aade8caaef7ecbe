"""The one description of a task: stores of former versions open unchanged, and a new field is one line."""

import contextlib
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import omniq_executor
from omniq_executor import open_store
from omniq_executor.model import schema
from omniq_executor.model.schema import task_to_dict
from omniq_executor.stores.base import Store, TaskRow

PACKAGE = Path(omniq_executor.__file__).parent
FORMER = json.loads(Path(__file__).with_name("stores_of_version_4.json").read_text())
NAMES = {"sqlite": "store.db", "file": "store"}


def write_former(kind: str, path: Path) -> None:
    """Write a store as version 4 has left it."""
    if kind == "sqlite":
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            for statement in FORMER["sqlite"]:
                connection.execute(statement)
        path.chmod(0o600)
        return
    for name, content in FORMER["file"].items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        if "link" in content:
            (path / name).symlink_to(content["link"])
        else:
            (path / name).write_text(content["text"], encoding="latin-1", newline="")
    for there in [path, *path.rglob("*")]:
        if not there.is_symlink():
            there.chmod(0o700 if there.is_dir() else 0o600)


def flat(row: TaskRow) -> dict[str, Any]:
    """A row in the words in which the former ones are noted; fields that are newer are left out."""
    fields: dict[str, Any] = {"digest": row.digest.hex(), "identity": row.identity and row.identity.hex()}
    former = FORMER["tasks"][0]
    for name, value in row.task._asdict().items():
        if name in ("options", "error"):
            names = former[name]
            fields[name] = value and {part: repr(of) for part, of in value._asdict().items() if part in names}
        elif name in former:
            fields[name] = repr(value)
    return fields


@pytest.fixture(params=sorted(NAMES))
def former(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A store of version 4, opened."""
    write_former(request.param, tmp_path / NAMES[request.param])
    with contextlib.closing(open_store(tmp_path / NAMES[request.param], create=False)) as store:
        yield store


def test_a_store_of_version_4_has_all_that_it_had(former: Store) -> None:
    rows = former.stored(former.ids())
    assert [flat(row) for row in sorted(rows)] == FORMER["tasks"]
    assert [(run.id, run.queue, run.continues, run.settled) for run in former.runs()] == [
        (1, "q", (), True), (2, "q", (1,), False), (3, "elsewhere", (1, 2), False),
    ]  # fmt: skip
    former.check()  # takes back what ran
    assert former.check() == []


def test_the_view_for_people_has_the_columns_that_it_had(tmp_path: Path) -> None:
    open_store(tmp_path / "store.db").close()
    with contextlib.closing(sqlite3.connect(tmp_path / "store.db")) as connection:
        columns = {name for name, *_ in connection.execute("SELECT * FROM tasks").description}
    assert columns >= set(FORMER["view"])


def test_every_field_is_shown_but_for_what_is_said_to_be_hidden() -> None:
    task = schema.Task(1, "q", 1, "path", b"", "[]")
    hidden = {"func", "options", "finished_at", "policy", "due"}
    assert task_to_dict(task).keys() >= {*schema.Task._fields, *schema.Options._fields} - hidden


ADDED = {
    "options: Annotated[": 'colour: Annotated[str | None, Field(Kind.TEXT, "TEXT", since=8)] = None',
    "retries: Annotated[": "patience: Annotated[int, Field(Kind.WHOLE, since=8)] = 0",
}
WITH_THE_FIELDS = """
import contextlib, json, sys
from omniq_executor import open_store
from omniq_executor.model.schema import Options, task_to_dict
from omniq_executor.stores.migration import migrate

former, other = sys.argv[1:]
with contextlib.closing(open_store(former)) as store:
    rows = sorted(store.stored(store.ids()))
    assert [row.task.colour for row in rows] == [None] * len(rows)
    assert {row.task.options.patience for row in rows if row.task.options} == {0}
    first = rows[0]._replace(task=rows[0].task._replace(colour="red", options=Options(patience=7)))
    store.put([first])
    assert store.stored([first.task.id]) == [first]
    with contextlib.closing(open_store(other, importing=True)) as destination:
        migrate(store, destination, lambda count: None)
with contextlib.closing(open_store(other)) as store:
    (row,) = store.stored([first.task.id])
    assert row == first, row
    print(json.dumps(task_to_dict(row.task)))
"""


@pytest.mark.parametrize("kind", sorted(NAMES))
def test_a_new_field_is_one_line(kind: str, tmp_path: Path) -> None:
    """The package gets a line for a field of a task, and one for an option, and no other change."""
    shutil.copytree(PACKAGE, tmp_path / "with" / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    description = tmp_path / "with" / PACKAGE.name / "model" / "schema.py"
    lines = description.read_text().split("\n")
    for before, line in ADDED.items():
        (at,) = [number for number, text in enumerate(lines) if text.strip().startswith(before)]
        lines.insert(at, f"    {line}")
    description.write_text("\n".join(lines))
    names = [NAMES[kind], *(f"other-{name}" for of, name in NAMES.items() if of != kind)]
    write_former(kind, tmp_path / names[0])
    ran = subprocess.run(
        [sys.executable, "-c", WITH_THE_FIELDS, *names], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "with")},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    shown = json.loads(ran.stdout)
    assert (shown["colour"], shown["patience"]) == ("red", 7)
    database = tmp_path / next(name for name in names if name.endswith(".db"))
    with contextlib.closing(sqlite3.connect(database)) as connection:
        found = connection.execute("SELECT colour, patience FROM tasks WHERE id = ?", (shown["id"],)).fetchall()
        assert found == [("red", 7)]
    folder = tmp_path / next(name for name in names if not name.endswith(".db"))
    text = json.loads((folder / "tasks" / f"{shown['id']}.json").read_text())
    assert (text["colour"], text["patience"]) == ("red", 7)
    for name in names:  # a version that does not know the fields would lose them
        with pytest.raises(omniq_executor.errors.StoreVersionError):
            open_store(tmp_path / name)
