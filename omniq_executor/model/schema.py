"""What is kept of a task, described once: each line of `Task` and of `Options` is a field.

    name: Annotated[type, Field(kind, column)] = default

All else that has to know the fields is made from these lines, when it is first needed:

    task_to_dict()           the mapping that people are shown
    stores/sqlite/tables.py  the table's columns, the view, what brings an older table up to date, and the
                             statements that write and read whole rows
    stores/file/records.py   the text of a task's JSON file, and its reading
    stores/migration.py      moves what those write and read

So a new field is one line here, with `since` one above VERSION: stores of older versions get it with its default when
they are opened, and older versions of the package refuse stores that have it. A field of Options is stored only with
tasks that have another value than the usual one.

What is made is the source of one expression, which names each field, and is compiled once (`compiled()`): no loop over
fields is on the way of a task. A field that needs more than its line needs a Kind of its own.
"""

import base64
import enum
import functools
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, NamedTuple, get_type_hints

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: sorts like the numbers do
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_PAIRS = [one + other for one in ALPHABET for other in ALPHABET]
_TO_BASE_32 = str.maketrans(ALPHABET, "0123456789abcdefghijklmnopqrstuv")  # as int() reads it
_DIGITS = 13  # 13 digits of 5 bits hold the 63 bits of an id


class Status(enum.IntEnum):
    """State of a task. The numbers are what the SQLite store keeps."""

    PENDING = 1
    RUNNING = 2
    COMPLETED = 3
    FAILED = 4
    CANCELLED = 5


class Kind(enum.Enum):
    """What a field holds, by which it is written, read and shown."""

    WHOLE = "a whole number"
    NUMBER = "a number"
    TEXT = "a text"
    TEXTS = "texts"
    ID = "the number of a task"
    IDS = "numbers of tasks"
    TIME = "a time in microseconds"
    SPAN = "microseconds, written and shown as seconds"
    VALUE = "a value in its stored form"
    KWARGS = "the keyword arguments of a call in their stored form, if it is not pickled"
    PICKLE = "a pickle, which is not shown"
    STATUS = "the state"
    ETA = "when the task is due; a task that waits is shown with what it has after that"
    DUE = "while the task waits: the eta that it has afterwards"
    END = "the time of the end, shown under the name of the state in which the task ended"
    QUEUE = "the queue, which has a table of its own"
    PATH = "the function's path, which is stored with the function"
    FUNCTION = "the function's pickle, likewise"
    ERROR = "an ErrorInfo"
    OPTIONS = "the Options, whose fields are shown beside those of the task"


class Field(NamedTuple):
    """How a field is kept."""

    kind: Kind
    column: str | None = None  # type and constraints of the column in the table of tasks, if it has one
    since: int = 1  # version of the stores that had it first
    of_call: bool = False  # said by who submits, so it holds of each occurrence of a task that recurs


class ErrorInfo(NamedTuple):
    """Why a task failed, as text that anything can read, and the exception itself if it pickles."""

    type: str
    message: str
    traceback: str
    pickle: bytes | None = None
    call: str = ""  # the function and its arguments, shortened; empty where the worker could not say

    def shown(self) -> dict[str, str]:
        """Return what people are shown of it."""
        fields = {"type": self.type, "message": self.message, "traceback": self.traceback}
        return {**fields, "call": self.call} if self.call else fields


class Options(NamedTuple):
    """How a task is run, where that is not as usual. A task without any has none of it stored."""

    max_retries: Annotated[int, Field(Kind.WHOLE, since=2)] = 0  # how often it is tried again after it raised
    retries: Annotated[int, Field(Kind.WHOLE, since=2)] = 0  # how often it was, so far
    timeout: Annotated[float | None, Field(Kind.NUMBER, since=2)] = None  # seconds, of each attempt
    interval: Annotated[int | None, Field(Kind.SPAN, since=2)] = None  # from one occurrence to the next, if it recurs
    series: Annotated[int | None, Field(Kind.ID, since=2)] = None  # the first occurrence, of a later one
    tags: Annotated[tuple[str, ...], Field(Kind.TEXTS, since=2)] = ()
    policy: Annotated[bytes | None, Field(Kind.PICKLE, since=2)] = None  # (backoff, retry_on), where not as usual
    after: Annotated[tuple[int, ...], Field(Kind.IDS, since=3)] = ()  # the tasks whose results are among its arguments
    due: Annotated[int | None, Field(Kind.DUE, since=3)] = None  # while it waits for one of them

    def or_none(self) -> "Options | None":
        """Return these options, or None where all of them are the usual ones."""
        return None if self == USUAL else self


USUAL = Options()


class Task(NamedTuple):
    """One durable call and everything that is known of it. Times are microseconds since 1970, UTC.

    `args`, `kwargs` and `result` hold the stored form: `str` is JSON text, `bytes` a pickle. A
    pickled call keeps the pair (args, kwargs) in `args`, and None in `kwargs`.
    """

    id: Annotated[int, Field(Kind.ID, "INTEGER PRIMARY KEY")]
    queue: Annotated[str, Field(Kind.QUEUE, "INTEGER NOT NULL", of_call=True)]
    run: Annotated[int, Field(Kind.WHOLE, "INTEGER NOT NULL", of_call=True)]
    func_path: Annotated[str, Field(Kind.PATH, of_call=True)]
    func: Annotated[bytes, Field(Kind.FUNCTION, "INTEGER NOT NULL", of_call=True)]  # by name, or else by value
    args: Annotated[str | bytes, Field(Kind.VALUE, "", of_call=True)]
    kwargs: Annotated[str | None, Field(Kind.KWARGS, "TEXT", of_call=True)] = None
    key: Annotated[str | None, Field(Kind.TEXT, "TEXT")] = None
    priority: Annotated[int, Field(Kind.WHOLE, "INTEGER NOT NULL DEFAULT 0", of_call=True)] = 0
    status: Annotated[Status, Field(Kind.STATUS, "INTEGER NOT NULL")] = Status.PENDING
    attempts: Annotated[int, Field(Kind.WHOLE, "INTEGER NOT NULL DEFAULT 0")] = 0
    crashes: Annotated[int, Field(Kind.WHOLE, "INTEGER NOT NULL DEFAULT 0")] = 0
    owner_deaths: Annotated[int, Field(Kind.WHOLE, "INTEGER NOT NULL DEFAULT 0", since=4)] = 0
    owner: Annotated[int | None, Field(Kind.WHOLE, "INTEGER")] = None  # who claimed it last
    options: Annotated[Options | None, Field(Kind.OPTIONS, "TEXT", since=2, of_call=True)] = None
    eta: Annotated[int, Field(Kind.ETA, "INTEGER NOT NULL DEFAULT 0")] = 0
    enqueued_at: Annotated[int, Field(Kind.TIME, "INTEGER NOT NULL")] = 0
    started_at: Annotated[int | None, Field(Kind.TIME, "INTEGER")] = None
    finished_at: Annotated[int | None, Field(Kind.END, "INTEGER")] = None
    result: Annotated[str | bytes | None, Field(Kind.VALUE, "")] = None
    error: Annotated[ErrorInfo | None, Field(Kind.ERROR, "TEXT")] = None

    def __repr__(self) -> str:
        from .shown import task_line

        return task_line(self)

    def _repr_html_(self) -> str:
        """Return what a notebook shows of it."""
        from .shown import task_card

        return task_card(self).html()

    @property
    def task_id(self) -> str:
        """The id as it is shown: `task-` and 13 characters that sort by time of submission."""
        return format_id(self.id)

    @property
    def completed_at(self) -> int | None:
        """When it completed, if it did."""
        return self.finished_at if self.status is Status.COMPLETED else None

    @property
    def failed_at(self) -> int | None:
        """When it failed, if it did."""
        return self.finished_at if self.status is Status.FAILED else None

    @property
    def recurs(self) -> bool:
        """Whether another occurrence is to follow it."""
        return self.options is not None and self.options.interval is not None

    @property
    def after(self) -> tuple[int, ...]:
        """The tasks whose results it is given."""
        return () if self.options is None else self.options.after

    @property
    def series(self) -> int:
        """The id of the first occurrence of a task that recurs; of any other, its own."""
        return self.id if self.options is None or self.options.series is None else self.options.series


def _described(kept: type) -> dict[str, Field]:
    return {name: hint.__metadata__[0] for name, hint in get_type_hints(kept, include_extras=True).items()}


FIELDS = _described(Task)
OPTIONS = _described(Options)
# Of the stores. Since the fifth, functions have their parts, and runs say what they have taken over and how long their
# results are kept.
VERSION = max(7, *(field.since for field in [*FIELDS.values(), *OPTIONS.values()]))


def is_optional(name: str) -> bool:
    """Return whether a field, of a task or of its options, may be None."""
    return {**Options._field_defaults, **Task._field_defaults}.get(name, "") is None


def compiled(parameters: str, expression: str, **names: Any) -> Callable[..., Any]:
    """Return the function that an expression makes, which was made from the description. It may use `names`."""
    made: Callable[..., Any] = eval(f"lambda {parameters}: {expression}", names)
    return made


# The mapping that people are shown, as expressions. Kinds that are missing are shown as they are.
_SHOWN = {
    Kind.ID: "format_id({})",
    Kind.IDS: "[format_id(number) for number in {}]",
    Kind.TEXTS: "list({})",
    Kind.TIME: "iso({})",
    Kind.SPAN: "{} / 1_000_000",
    Kind.VALUE: "plain({})",
    Kind.KWARGS: "plain({}) or ({{}} if isinstance(task.args, str) else None)",
    Kind.STATUS: "{}.name",
    Kind.ETA: "iso(({} if options.due is None else options.due) or None)",
    Kind.ERROR: "{}.shown()",
}
_AS_NONE_TOO = (Kind.KWARGS, Kind.ETA, Kind.TIME)


@functools.cache
def _shower() -> Callable[..., dict[str, Any]]:
    return compiled(
        "task, options", f"{{{', '.join(_items('task', FIELDS))}}}", iso=iso, format_id=format_id, plain=_plain
    )


def _items(of: str, fields: dict[str, Field]) -> Iterator[str]:
    for name, (kind, *_) in fields.items():
        value = f"{of}.{name}"
        if kind is Kind.OPTIONS:
            yield from _items("options", OPTIONS)
        elif kind is Kind.END:
            yield from (f"{end!r}: iso(task.{end})" for end in ("completed_at", "failed_at"))
        elif kind not in (Kind.FUNCTION, Kind.PICKLE, Kind.DUE):
            maybe = f"None if {value} is None else " if is_optional(name) and kind not in _AS_NONE_TOO else ""
            yield f"{name!r}: {maybe}{_SHOWN.get(kind, '{}').format(value)}"


def task_to_dict(task: Task) -> dict[str, Any]:
    """Return a task as plain data. What JSON could not keep is given as {"pickle": its bytes in base 64}."""
    return _shower()(task, task.options or USUAL)


def _plain(data: str | bytes | None) -> Any:
    if isinstance(data, bytes):
        return {"pickle": base64.b64encode(data).decode()}
    return None if data is None else json.loads(data)


def format_id(number: int) -> str:
    """Return the shown form of a task's number."""
    pairs = _PAIRS
    return (
        f"task-{ALPHABET[number >> 60 & 31]}{pairs[number >> 50 & 1023]}{pairs[number >> 40 & 1023]}"
        f"{pairs[number >> 30 & 1023]}{pairs[number >> 20 & 1023]}{pairs[number >> 10 & 1023]}{pairs[number & 1023]}"
    )


def parse_id(text: str) -> int:
    """Return the number of a shown id. Raises ValueError for anything that `format_id` does not write."""
    digits = text.removeprefix("task-") if isinstance(text, str) else ""  # type: ignore[redundant-expr]
    if len(digits) == _DIGITS and digits != text and not digits.strip(ALPHABET) and digits[0] in "01234567":
        return int(digits.translate(_TO_BASE_32), 32)
    raise ValueError(f"{text!r} is not a task id: it should be task- and {_DIGITS} characters")


def log_name(number: int, attempt: int) -> str:
    """Return the name of the file that keeps what an attempt of a task writes."""
    return f"{format_id(number)}.{attempt}.log"


def iso(microseconds: int | None) -> str | None:
    """Return a time as ISO-8601 in UTC, to the microsecond."""
    if microseconds is None:
        return None
    seconds, rest = divmod(microseconds, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_iso(text: str) -> int:
    """Return the microseconds of an ISO-8601 time. Raises ValueError where it is none, or does not say its zone."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} does not say in which time zone it is")
    return (moment - _EPOCH) // _MICROSECOND
