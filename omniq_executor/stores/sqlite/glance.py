"""A look into a database that waits for nobody, see stores/glances.py: by a connection of its own that only reads."""

import contextlib
import json
import sqlite3
import time
from pathlib import Path
from urllib.parse import quote

from ...errors import StoreError
from ...model.schema import FIELDS, Kind
from ...model.task import Status
from ..glances import EARLIER, GLANCE_S, Glance, Wanted
from .database import drive
from .looking import counts, counts_of_old
from .tables import COUNTED_SINCE, task_of

_STEPS = 2000  # of SQLite's, between two looks at the clock

# What may be large is left out, or cut: the pickle of a function, arguments and results.
_SHOWN = {
    "args": "iif(length(t.args) <= 65536, t.args, iif(typeof(t.args) = 'text', substr(t.args, 1, 1000), x''))",
    "kwargs": "substr(t.kwargs, 1, 65536)",
    "result": "iif(typeof(t.result) = 'text' AND length(t.result) <= 1000, t.result, NULL)",
}
_OF_KIND = {Kind.QUEUE: "q.name", Kind.PATH: "f.path", Kind.FUNCTION: "x''"}
_TASKS = f"""SELECT f.digest, NULL, NULL, '',
    {", ".join(_SHOWN.get(name, _OF_KIND.get(field.kind, f"t.{name}")) for name, field in FIELDS.items())}
    FROM task t JOIN queue q ON q.id = t.queue JOIN function f ON f.id = t.function
    WHERE t.id IN (SELECT value FROM json_each(?))"""
_AHEAD = f"{_TASKS} OR t.id IN (SELECT id FROM task WHERE id > ? ORDER BY id LIMIT ?)"
_EARLIER = f"""SELECT t.finished_at - t.started_at FROM task t
    WHERE t.function IN (SELECT id FROM function WHERE path = ?) AND t.run <> ? AND t.status = {Status.COMPLETED:d}
    ORDER BY t.id DESC LIMIT {EARLIER}"""


def look(path: Path, wanted: Wanted) -> Glance:
    """Return what is there. Raises StoreError."""
    try:
        size = sum(beside.stat().st_size for beside in (path, Path(f"{path}-wal")) if beside.exists())
        if not path.exists():
            raise StoreError(f"there is no store at {path}")
        # Not as other connections are: it works off no log, and where there is none it begins none.
        how = "mode=ro" if Path(f"{path}-wal").exists() else "mode=ro&immutable=1"
        uri = f"file:{quote(str(path))}?{how}"
        with contextlib.closing(sqlite3.connect(uri, timeout=GLANCE_S, uri=True, isolation_level=None)) as connection:
            return _look(connection, wanted, size)
    except (sqlite3.Error, OSError) as error:
        busy = getattr(error, "sqlite_errorname", "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))
        raise StoreError(f"{path}: {'another process holds it' if busy else error}") from error


def _look(connection: sqlite3.Connection, wanted: Wanted, size: int) -> Glance:
    deadline = time.monotonic() + GLANCE_S
    connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS)
    ids = json.dumps(list(wanted.ids))
    asked = (_AHEAD, (ids, wanted.ids[0], wanted.more)) if wanted.more else (f"{_TASKS} ORDER BY t.id", (ids,))
    tasks = [task_of(row) for row in connection.execute(*asked)] if wanted.ids else []
    found = Glance({}, tasks, size=size)
    try:
        if wanted.counts:
            ((version,),) = connection.execute("PRAGMA user_version").fetchall()
            counting = counts() if version >= COUNTED_SINCE else counts_of_old()
            found = found._replace(counts=drive(connection, counting))
        if wanted.function:
            rows = connection.execute(_EARLIER, (wanted.function, wanted.run)).fetchall()
            found = found._replace(earlier_s=[took / 1e6 for (took,) in rows if took is not None])
    except sqlite3.OperationalError as error:
        if error.sqlite_errorname != "SQLITE_INTERRUPT":
            raise
        return found._replace(counts=None)
    return found
