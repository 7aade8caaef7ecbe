"""The tables of the SQLite store, and how a row of `task` becomes a Task: made from the description in model/schema.py.

Beside the fields of a task the table has what a TaskRow has (its function's number, the call's identity) and the
pickle of an error. Every statement names its columns, since their order is another one where a version added some.
"""

from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple, TypeVar

from ... import values
from ...model.codec import decode_error, decode_options, encode_error, encode_options
from ...model.schema import FIELDS, OPTIONS, USUAL, VERSION, ErrorInfo, Kind, Status, Task, compiled
from ...model.task import EFFECTS, FINISHED, Effect, Event, source, target


class Reply(NamedTuple):
    """What a statement brought."""

    rows: list[Any]
    changed: int


class Many(list[Any]):
    """Parameter sets: the statement runs once for each, and `changed` is their total."""


Statement = tuple[str, Any]
_T = TypeVar("_T")
Transaction = Generator[Statement, Reply, _T]  # that gives a _T


def statement(sql: str, parameters: Any) -> Transaction[Reply]:
    """Be a transaction, or a part of one, of one statement."""
    return (yield sql, parameters)


APPLICATION_ID = 0x6F6D6E71  # "omnq": tells a store from the databases of other programs

_BESIDE = {"identity": "BLOB", "exception": "BLOB"}  # what identifies a pickled call; an error's pickle
_NAMES = {name: "function" if field.kind is Kind.FUNCTION else name
          for name, field in FIELDS.items() if field.column is not None}  # fmt: skip
COLUMNS = {_NAMES[name]: FIELDS[name].column for name in _NAMES} | _BESIDE
OF_CALL = ["identity", *(_NAMES[name] for name in _NAMES if FIELDS[name].of_call)]
_JSON = [name for name, field in FIELDS.items()
         if field.kind in (Kind.VALUE, Kind.KWARGS, Kind.ERROR, Kind.OPTIONS)]  # fmt: skip

_SHOWN_ID = "'task-' || " + " || ".join(
    f"substr('0123456789abcdefghjkmnpqrstvwxyz', 1 + ((t.id >> {shift}) & 31), 1)" for shift in range(60, -1, -5)
)


def _shown_time(time: str) -> str:
    whole = f"strftime('%Y-%m-%dT%H:%M:%S', {time} / 1000000, 'unixepoch')"
    return f"{whole} || printf('.%06dZ', {time} % 1000000)"


_SHOWN = {
    Kind.ID: _SHOWN_ID,
    Kind.QUEUE: "q.name",
    Kind.PATH: "f.path",
    Kind.STATUS: "CASE t.status " + " ".join(f"WHEN {status:d} THEN '{status.name}'" for status in Status) + " END",
    Kind.ETA: _shown_time("coalesce(t.options ->> 'due', t.eta)"),
}


def _view() -> Iterator[str]:
    """Give each column of the view."""
    for name, (kind, *_) in FIELDS.items():
        if kind is Kind.OPTIONS:
            for option, (of, *_) in OPTIONS.items():
                value, usual = f"t.options ->> '{option}'", USUAL._asdict()[option]
                if of is Kind.WHOLE and usual is not None:
                    value = f"coalesce({value}, {usual})"
                if of not in (Kind.PICKLE, Kind.DUE):
                    yield f"{value} AS {option}"
        elif kind is Kind.END:
            time = _shown_time("t.finished_at")
            for status in Status.COMPLETED, Status.FAILED:
                yield f"CASE t.status WHEN {status:d} THEN {time} END AS {status.name.lower()}_at"
        elif kind is Kind.ERROR:
            yield "t.error ->> 'type' AS error_type, t.error ->> 'message' AS error_message"
            yield "t.error ->> 'traceback' AS traceback"
        elif kind is Kind.TIME:
            yield f"{_shown_time(f't.{name}')} AS {name}"
        elif kind is not Kind.FUNCTION:
            yield f"{_SHOWN.get(kind, f't.{name}')} AS {name}"


_FROM = "FROM task t JOIN queue q ON q.id = t.queue JOIN function f ON f.id = t.function"
_VIEW = f"CREATE VIEW tasks AS SELECT {', '.join(_view())}, t.id AS number {_FROM}"

# Of each task that is not finished: the tasks that it comes after. The truth is in its options.
_DEPENDENCY = (
    "CREATE TABLE dependency (task INTEGER NOT NULL, needs INTEGER NOT NULL, PRIMARY KEY (task, needs)) WITHOUT ROWID",
    "CREATE INDEX dependency_needs ON dependency (needs)",
)

# Those of the hot path are claimed in this order without a sort: see model.tier() for the place of owner_deaths.
_CLAIMABLE = (
    f"CREATE INDEX claimable ON task (queue, run, owner_deaths, priority DESC, eta) WHERE status = {Status.PENDING:d}"
)
_SESSION = (
    "CREATE TABLE session (id INTEGER PRIMARY KEY, host TEXT NOT NULL, pid INTEGER NOT NULL,"
    " started_at INTEGER NOT NULL)"
)

# What a run has taken over: the status and the run that the task had before.
_TAKEN = (
    "CREATE TABLE taken (run INTEGER NOT NULL, task INTEGER NOT NULL, status INTEGER NOT NULL,"
    " origin INTEGER NOT NULL, PRIMARY KEY (run, task)) WITHOUT ROWID"
)

# How many tasks there are below the mark: see tally.py. `last` is when the last of them finished, or later.
_TALLY = (
    "CREATE TABLE tally (queue INTEGER NOT NULL, run INTEGER NOT NULL, status INTEGER NOT NULL,"
    " tasks INTEGER NOT NULL, last INTEGER NOT NULL, PRIMARY KEY (queue, run, status)) WITHOUT ROWID"
)
IS_FINISHED = f"status IN ({', '.join(f'{status:d}' for status in FINISHED)})"
TALLIED = "queue, run, status, count(*), coalesce(max(finished_at), 0)"
COUNTED_SINCE = 7  # of the versions
_MARK = "CREATE TABLE counted (below INTEGER NOT NULL)"

_SCHEMA = (
    "CREATE TABLE queue (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)",
    "CREATE TABLE function (id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, path TEXT NOT NULL,"
    " pickle BLOB NOT NULL, parts TEXT NOT NULL DEFAULT '')",
    "CREATE TABLE owner (id INTEGER PRIMARY KEY, queue TEXT NOT NULL, host TEXT NOT NULL, pid INTEGER NOT NULL,"
    " opened_at INTEGER NOT NULL, heard INTEGER NOT NULL)",
    _SESSION,
    # clean: NULL until its session ends, or 0 as soon as it did not end well; settled: nothing of it is taken over.
    "CREATE TABLE run (id INTEGER PRIMARY KEY, queue INTEGER NOT NULL, owner INTEGER NOT NULL, continues TEXT NOT NULL,"
    " started_at INTEGER NOT NULL, ended_at INTEGER, clean INTEGER, settled INTEGER NOT NULL DEFAULT 0,"
    " session INTEGER NOT NULL DEFAULT 0, context TEXT NOT NULL DEFAULT '', result_ttl INTEGER)",
    _TAKEN,
    # What finished, in order: kept only while several owners are there, for those who wait for others.
    "CREATE TABLE news (id INTEGER PRIMARY KEY AUTOINCREMENT, task INTEGER NOT NULL, owner INTEGER)",
    f"CREATE TABLE task ({', '.join(f'{name} {column}' for name, column in COLUMNS.items())})",
    _TALLY,
    _MARK,
    "INSERT INTO counted VALUES (0)",
    _CLAIMABLE,
    "CREATE UNIQUE INDEX task_key ON task (queue, key) WHERE key IS NOT NULL",
    *_DEPENDENCY,
    _VIEW,
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {VERSION}",
)

# What a version has brought beside the fields of a task.
_BROUGHT = {
    3: _DEPENDENCY,
    4: (
        "ALTER TABLE run ADD COLUMN session INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE run ADD COLUMN context TEXT NOT NULL DEFAULT ''",
        _SESSION,
        "DROP INDEX claimable",
        _CLAIMABLE,
    ),
    5: (
        "ALTER TABLE run ADD COLUMN result_ttl INTEGER",
        "ALTER TABLE function ADD COLUMN parts TEXT NOT NULL DEFAULT ''",
        _TAKEN,
    ),
    6: (_TALLY,),
    COUNTED_SINCE: (
        _MARK,
        "INSERT INTO counted SELECT coalesce(max(id) + 1, 0) FROM task",
        "DELETE FROM tally",
        f"INSERT INTO tally SELECT {TALLIED} FROM task GROUP BY queue, run, status",
    ),
}


def create() -> Transaction[None]:
    """Make the tables, or bring older ones up to date, unless another process was faster."""
    ((version,),), _ = yield "PRAGMA user_version", ()
    if version == 0:
        for statement in _SCHEMA:
            yield statement, ()
        return
    for newer in range(version + 1, VERSION + 1):
        for name, field in FIELDS.items():
            if field.since == newer and field.column is not None:
                yield f"ALTER TABLE task ADD COLUMN {name} {field.column}", ()
        for statement in _BROUGHT.get(newer, ()):
            yield statement, ()
    if version < VERSION:
        yield "DROP VIEW tasks", ()
        yield _VIEW, ()
        yield f"PRAGMA user_version = {VERSION}", ()


# States and what events change, from the tables in model/task.py.

PENDING = f"status = {source(Event.CLAIM)[0]:d}"
RUNNING = f"status = {source(Event.COMPLETE)[0]:d}"
GIVEN = "(SELECT value FROM json_each(?))"
LIKENESS = "coalesce(identity, args || coalesce(kwargs, ''))"  # of a call, see Call


def changes(event: Event) -> str:
    """Return what an event changes, as assignments; each "?" is for what `values_of()` gives, in the same order."""
    changed, options = [f"status = {target(event):d}"], "options"
    for name, effect in EFFECTS[event].items():
        if name == "due":
            changed.append("eta = coalesce(options ->> 'due', eta)")
        if name not in FIELDS:
            if effect is Effect.ONE_MORE:
                options = f"json_set(coalesce({options}, '{{}}'), '$.{name}', coalesce(options ->> '{name}', 0) + 1)"
            else:  # as usual: then it is not there
                options = f"json_remove({options}, '$.{name}')"
            continue
        value = {Effect.ONE_MORE: f"{name} + 1", None: "NULL", 0: "0"}.get(effect, "?")
        changed += [f"{column} = {value}" for column in ([name, "exception"] if name == "error" else [name])]
    return ", ".join(changed if options == "options" else [*changed, f"options = {options}"])


def values_of(event: Event) -> Callable[..., Any]:
    """Make the function that gives, for an Outcome and the time, what `changes()` leaves open."""
    given = {Effect.NOW: "now", Effect.GIVEN: "end.{}"}
    values = ["*error_columns(end.error)" if name == "error" else given[effect].format(name)
              for name, effect in EFFECTS[event].items() if effect in given]  # fmt: skip
    return compiled("end, now", f"({''.join(f'{value}, ' for value in values)})", error_columns=error_columns)


# Large values, see ../../value_files.py. The calls that refer to files are found by an index, which few stores need.

_BEGINNING = f"x'{values.BEGINNING.hex()}'"


def refers(column: str) -> str:
    """Return whether a call or a result refers to files."""
    beginning = f"substr({column}, {values.BEGINS_AT + 1}, {len(values.BEGINNING)})"
    return f"typeof({column}) = 'blob' AND {beginning} = {_BEGINNING}"


VALUED = f"CREATE INDEX IF NOT EXISTS valued ON task (id) WHERE {refers('args')}"
VALUED_FUNCTIONS = f"SELECT path, pickle FROM function WHERE instr(pickle, {_BEGINNING})"

# Whole rows. What is asked for beside the fields stands before them.

_SELECTED = {Kind.QUEUE: "q.name", Kind.PATH: "f.path", Kind.FUNCTION: "f.pickle"}
STORED = f"""f.digest, t.identity, t.exception, f.parts,
    {", ".join(_SELECTED.get(field.kind, f"t.{name}") for name, field in FIELDS.items())} {_FROM}"""

_STATUSES = {status.value: status for status in Status}  # a look here costs a tenth of a call of Status
_READ = {
    Kind.STATUS: "statuses[{}]",
    Kind.ERROR: "None if {0} is None else decode_error({0}, row[2])",
    Kind.OPTIONS: "None if {0} is None else decode_options({0})",
}
_READ_ALL = ", ".join(_READ.get(kind, "{}").format(f"row[{at}]") for at, (kind, *_) in enumerate(FIELDS.values(), 4))
task_of = compiled(
    "row", f"Task({_READ_ALL})", Task=Task, statuses=_STATUSES, decode_error=decode_error, decode_options=decode_options
)
"""Give the task of a row that STORED asked for."""

PUT = f"""
    INSERT INTO task ({", ".join(COLUMNS)}) VALUES ({", ".join("?" * len(COLUMNS))})
    ON CONFLICT (id) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in COLUMNS)}
"""
_WRITTEN = {
    Kind.QUEUE: "queue",
    Kind.FUNCTION: "function",
    Kind.ERROR: "error",
    Kind.OPTIONS: "encode_options(task.options)",
}
_WRITE_ALL = ", ".join(
    _WRITTEN.get(field.kind, f"task.{name}") for name, field in FIELDS.items() if field.column is not None
)
_row_of = compiled(
    "task, queue, function, identity, error, exception",
    f"({_WRITE_ALL}, identity, exception)",
    encode_options=encode_options,
)


def row_of(task: Task, queue: int, function: int, identity: bytes | None) -> Any:
    """Return the parameters of PUT: a task, with the numbers of its queue and function."""
    return _row_of(task, queue, function, identity, *error_columns(task.error))


def error_columns(error: ErrorInfo | None) -> tuple[str | None, bytes | None]:
    """Return how an error is written: what is shown of it, and its pickle."""
    return (None, None) if error is None else (encode_error(error), error.pickle)


# What should find nothing, and what it means if it does.
CHECKS = (
    ("task WHERE function NOT IN (SELECT id FROM function)", "cannot run, as the function is missing"),
    ("task WHERE queue NOT IN (SELECT id FROM queue)", "cannot run, as the queue is missing"),
    (f"task WHERE status NOT IN ({', '.join(f'{status:d}' for status in Status)})", "have a state that there is not"),
    *(
        (f"task WHERE typeof({column}) = 'text' AND NOT json_valid({column})", f"have {column} that are not JSON")
        for column in _JSON
    ),
)
