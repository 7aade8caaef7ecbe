"""A task as a JSON file: the names that people know, each on a line of its own.

What JSON keeps exactly stands there as JSON. Of a pickle there is a preview under the plain name, and
the pickle itself in base 64 under `args_pickle`, `result_pickle` or `exception_pickle`. Times are
ISO-8601 in UTC. `version` counts the changes of the task; of two texts the higher one is the later.
"""

import base64
import functools
import json
from collections.abc import Callable, Iterator
from json.encoder import encode_basestring, encode_basestring_ascii
from typing import Any

from ...model.codec import encode_error, encode_json
from ...model.preview import preview
from ...model.schema import FIELDS, OPTIONS, USUAL, Field, Kind, compiled, is_optional
from ...model.task import (
    FINISHED,
    NEVER,
    Claim,
    ErrorInfo,
    Event,
    Options,
    Status,
    Task,
    apply,
    format_id,
    iso,
    parse_id,
    parse_iso,
)

END = b"\n}\n"  # of every text, and in none before its end: JSON has no line ends within a text


class Damaged(ValueError):
    """What should be the text of a task is none."""


class Record:
    """A task as the file store keeps it. `task.func` is left empty: the function has a file of its own."""

    __slots__ = "digest", "identity", "is_removed", "size", "task", "version"

    def __init__(
        self, task: Task, digest: bytes, identity: bytes | None, version: int, size: int = 0, is_removed: bool = False
    ) -> None:
        self.task = task
        self.digest = digest  # of the function
        self.identity = identity  # of a pickled call, see Call
        self.version = version
        self.size = size  # bytes of the text when it was last read or written
        self.is_removed = is_removed  # what the journal says of a task that is purged

    def after(self, event: Event, now: int, **what: Any) -> "Record":
        """Return the record after an event, as model.apply() has it, which may raise Refused."""
        return Record(apply(self.task, event, now, **what), self.digest, self.identity, self.version + 1, self.size)

    def claim(self, owner: int, now: int) -> "Record":
        """Return the record after its next claim."""
        return self.after(Event.CLAIM, now, claim=Claim(owner, self.task.attempts + 1))

    def changed(self, task: Task) -> "Record":
        """Return the record with the task changed otherwise; it is this one if that is the same."""
        return self if task is self.task else Record(task, self.digest, self.identity, self.version + 1, self.size)

    def removed(self) -> "Record":
        """Return what the journal says of the removal of the task: as little as its files can be found by."""
        task = self.task._replace(args="[]", kwargs=None, result=None, error=None, options=None)
        return Record(task, self.digest, None, self.version + 1, self.size, is_removed=True)


_time = functools.lru_cache(512)(iso)

# The names that stand in each text, in this order. What else there is stands behind them, where it is not as usual.
_ALWAYS = (
    "id", "func_path", "args", "kwargs", "status", "attempts", "max_retries", "timeout", "eta", "interval",
    "enqueued_at", "started_at", "completed_at", "failed_at", "cancelled_at", "result", "error", "queue", "priority",
    "key", "crashes", "owner", "run", "function", "version",
)  # fmt: skip
_ENDS = {status: f"{status.name.lower()}_at" for status in Status if status in FINISHED}

# How each kind is written, as an expression that gives the JSON of a value which is not None, and how it is read, as
# one of what JSON has under the name, which is {1}. What is written otherwise, see _lines(), has None here.
_KINDS: dict[Kind, tuple[str | None, str]] = {
    Kind.WHOLE: ("{}", "checked({}, int)"),
    Kind.NUMBER: ("{}", "{}"),
    Kind.TEXT: ("quote({})", "checked({}, str)"),
    Kind.QUEUE: ("quote({})", "checked({}, str)"),
    Kind.PATH: ("quote({})", "checked({}, str)"),
    Kind.TEXTS: ("'[%s]' % ', '.join(map(quote, {}))", "tuple({})"),
    Kind.ID: ("""f'"{{format_id({})}}"'""", "parse_id({})"),
    Kind.IDS: ("'[%s]' % ', '.join(quote(format_id(number)) for number in {})", "tuple(map(parse_id, {}))"),
    Kind.TIME: ("moment({})", "micros({})"),
    Kind.SPAN: ("{} / 1_000_000", "round({} * 1_000_000)"),
    Kind.VALUE: ("{0} if {0}.__class__ is str else quote(preview({0}))", "stored(fields, {1})"),
    Kind.KWARGS: ("{} or '{{}}'", "None if 'args_pickle' in fields or not {0} else encode_json({0})"),
    Kind.PICKLE: (None, "pickled(fields, {1})"),
    Kind.STATUS: ("""f'"{{{}.name}}"'""", "Status[{}]"),
    Kind.ETA: (
        "moment(({} if options.due is None else options.due) or None)",
        "NEVER if is_waiting(fields) else micros({}) or 0",
    ),
    Kind.DUE: (None, "micros(fields['eta']) or 0 if is_waiting(fields) else None"),
    Kind.END: (None, f"micros({' or '.join(f'fields[{end!r}]' for end in _ENDS.values())})"),
    Kind.FUNCTION: (None, "b''"),
    Kind.ERROR: ("encode_error({})", "{0} and ErrorInfo(**{0}, pickle=pickled(fields, 'exception'))"),
}
_READ_AS_NONE = (Kind.TIME, Kind.KWARGS, Kind.PICKLE, Kind.DUE, Kind.END, Kind.ERROR)


def _lines(of: str, fields: dict[str, Field]) -> Iterator[tuple[str, str, str]]:
    """Give each name of a text with the expression of its JSON, and the one of whether it is not as usual."""
    for name, (kind, *_) in fields.items():
        value = f"{of}.{name}"
        if kind is Kind.OPTIONS:
            yield from _lines("options", OPTIONS)
        elif kind is Kind.END:
            for status, end in _ENDS.items():
                yield end, f"moment({value}) if task.status == {status:d} else 'null'", value
        elif kind is Kind.DUE:
            yield "waiting", "'true'", f"{value} is not None"
        elif write := _KINDS[kind][0]:
            usual = {**Options._field_defaults, **Task._field_defaults}.get(name)
            maybe = f"'null' if {value} is None else " if is_optional(name) and kind is not Kind.KWARGS else ""
            yield name, maybe + write.format(value), "" if name in _ALWAYS else f"{value} != {usual!r}"
        if kind in (Kind.VALUE, Kind.PICKLE):
            yield f"{name}_pickle", f"base_64({value})", f"{value}.__class__ is bytes"
        elif kind is Kind.ERROR:
            yield "exception_pickle", "base_64(task.error.pickle)", "task.error and task.error.pickle is not None"


def _writer() -> Callable[..., str]:
    lines = {name: (text, is_unusual) for name, text, is_unusual in _lines("task", FIELDS)}
    lines["function"] = """f'"{digest.hex()}"'""", ""
    lines["version"] = "version", ""
    lines["identity"] = "quote(identity.hex())", "identity is not None"
    lines["removed"] = "'true'", "is_removed"
    template = ",\n".join(f'  "{name}": %s' for name in _ALWAYS)
    others, of_options = (
        " + ".join(
            f"""(',\\n  "{name}": %s' % ({text}) if {is_unusual} else '')"""
            for name, (text, is_unusual) in lines.items()
            if name not in _ALWAYS and is_unusual.startswith("options.") is is_option
        )
        for is_option in (False, True)
    )
    return compiled(
        "task, options, digest, identity, version, is_removed",
        f"template % ({', '.join(f'({lines[name][0]})' for name in _ALWAYS)},"
        f" {others} + ('' if options is USUAL else {of_options}))",
        template=f"{{\n{template}%s\n}}\n", USUAL=USUAL, quote=_quote, format_id=format_id, moment=_moment,
        preview=preview, encode_error=encode_error, base_64=_base_64,
    )  # fmt: skip


def to_text(record: Record) -> bytes:
    """Return the text of a record."""
    task = record.task
    return _write(
        task, task.options or USUAL, record.digest, record.identity, record.version, record.is_removed
    ).encode()


def from_text(number: int, data: bytes) -> Record:
    """Return the record of a text, which must be that of the task with this number. Raises Damaged."""
    try:
        fields = json.loads(data)
        if fields["id"] != format_id(number):
            raise Damaged(f"it speaks of {fields['id']}")
        identity = None if (text := fields.get("identity")) is None else bytes.fromhex(text)
        version, digest = _checked(fields["version"], int), bytes.fromhex(fields["function"])
        return Record(_read(fields), digest, identity, version, len(data), fields.get("removed", False))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{type(error).__name__}: {error}") from error


def _values(fields: dict[str, Field], usual: dict[str, Any]) -> Iterator[str]:
    """Give each field as an argument: an expression of what was read, which is `fields`."""
    for name, (kind, *_) in fields.items():
        found = f"fields[{name!r}]" if name in _ALWAYS else f"fields.get({name!r}, {usual.get(name)!r})"
        maybe = f"None if {found} is None else " if is_optional(name) and kind not in _READ_AS_NONE else ""
        if kind is Kind.OPTIONS:
            read = f"Options({', '.join(_values(OPTIONS, Options._field_defaults))}).or_none()"
        elif kind is Kind.VALUE and is_optional(name):  # a result may be None itself
            read = f"stored(fields, {name!r}) if fields['status'] == 'COMPLETED' else None"
        else:
            read = maybe + _KINDS[kind][1].format(found, repr(name))
        yield f"{name}={read}"


def _reader() -> Callable[..., Task]:
    return compiled(
        "fields", f"Task({', '.join(_values(FIELDS, Task._field_defaults))})", Task=Task, Options=Options,
        ErrorInfo=ErrorInfo, Status=Status, NEVER=NEVER, checked=_checked, parse_id=parse_id,
        micros=_micros, stored=_stored, pickled=_pickle, is_waiting=_is_waiting, encode_json=encode_json,
    )  # fmt: skip


def _is_waiting(fields: dict[str, Any]) -> bool:
    return _checked(fields.get("waiting", False), bool)  # type: ignore[no-any-return]


def _checked(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise Damaged(f"{value!r} should be of type {kind.__name__}")
    return value


def _stored(fields: dict[str, Any], name: str) -> str | bytes:
    pickled = _pickle(fields, name)
    if pickled is not None:
        return pickled
    text = encode_json(fields[name])
    if text is None:
        raise Damaged(f"{name} is not what JSON keeps exactly")
    return text


def _pickle(fields: dict[str, Any], name: str) -> bytes | None:
    text = fields.get(f"{name}_pickle")
    return None if text is None else base64.b64decode(text, validate=True)


def _base_64(data: bytes) -> str:
    return f'"{base64.b64encode(data).decode()}"'


def _quote(text: str) -> str:
    """Return a text as JSON, readable where UTF-8 has all of its characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return encode_basestring_ascii(text)
    return encode_basestring(text)


def _moment(microseconds: int | None) -> str:
    return "null" if microseconds is None else f'"{_time(microseconds)}"'


def _micros(text: str | None) -> int | None:
    return None if text is None else parse_iso(text)


_write, _read = _writer(), _reader()
