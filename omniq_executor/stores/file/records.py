"""A task as a JSON file: the names that people know, each on a line of its own.

What JSON keeps exactly stands there as JSON. Of a pickle there is a preview under the plain name, and
the pickle itself in base 64 under `args_pickle`, `result_pickle` or `exception_pickle`. Times are
ISO-8601 in UTC. `version` counts the changes of the task; of two texts the higher one is the later.
"""

import base64
import functools
import json
from dataclasses import dataclass, replace
from json.encoder import encode_basestring, encode_basestring_ascii
from typing import Any

from ...model.codec import decode_error, encode_error, encode_json
from ...model.preview import preview
from ...model.task import (
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
    last,
    parse_id,
    parse_iso,
    with_wait,
)

END = b"\n}\n"  # of every text, and in none before its end: JSON has no line ends within a text


class Damaged(ValueError):
    """What should be the text of a task is none."""


@dataclass(slots=True)
class Record:
    """A task as the file store keeps it. `task.func` is left empty: the function has a file of its own."""

    task: Task
    digest: bytes  # of the function
    identity: bytes | None  # of a pickled call, see Call
    version: int
    size: int = 0  # bytes of the text when it was last read or written
    is_removed: bool = False  # what the journal says of a task that is purged

    def after(self, event: Event, now: int, **what: Any) -> "Record":
        """The record after an event, as model.apply() has it, which may raise Refused."""
        return Record(apply(self.task, event, now, **what), self.digest, self.identity, self.version + 1, self.size)

    def claim(self, owner: int, now: int) -> "Record":
        """The record after its next claim."""
        return self.after(Event.CLAIM, now, claim=Claim(owner, self.task.attempts + 1))

    def release(self, now: int) -> "Record":
        """The record after its claim is taken back from its owner."""
        return self.after(Event.RELEASE, now, claim=Claim(self.task.owner or 0, self.task.attempts))

    def orphan(self, now: int) -> "Record":
        """The record after the death of the owner of its claim."""
        return self.after(Event.ORPHAN, now)

    def adopted(self, run: int) -> "Record":
        """The record as one of another run's."""
        return replace(self, task=self.task._replace(run=run), version=self.version + 1)

    def last(self) -> "Record":
        """The record of a task that recurs, as the last of its series."""
        return replace(self, task=last(self.task), version=self.version + 1)

    def settled(self, waits: bool) -> "Record":
        """The record of a task that waits for others, or does not, as model.with_wait() has it; it may be this one."""
        task = with_wait(self.task, waits=waits)
        return self if task is self.task else replace(self, task=task, version=self.version + 1)

    def removed(self) -> "Record":
        """What the journal says of the removal of the task: as little as its files can be found by."""
        task = self.task._replace(args="[]", kwargs=None, result=None, error=None, options=None)
        return Record(task, self.digest, None, self.version + 1, self.size, is_removed=True)


_USUAL = Options()
_time = functools.lru_cache(512)(iso)


def to_text(record: Record) -> bytes:
    """The text of a record."""
    task, rest = record.task, ""
    args, result = task.args, task.result
    if isinstance(args, bytes):
        rest += _pickle_line("args", args)
        args = _quote(preview(args))
    if isinstance(result, bytes):
        rest += _pickle_line("result", result)
        result = _quote(preview(result))
    if task.error is not None and task.error.pickle is not None:
        rest += _pickle_line("exception", task.error.pickle)
    if task.options is not None and task.options.policy is not None:
        rest += _pickle_line("policy", task.options.policy)
    if record.identity is not None:
        rest += f',\n  "identity": "{record.identity.hex()}"'
    if record.is_removed:
        rest += ',\n  "removed": true'
    if task.owner_deaths:
        rest += f',\n  "owner_deaths": {task.owner_deaths}'
    options = task.options or _USUAL
    if options.retries:
        rest += f',\n  "retries": {options.retries}'
    if options.series is not None:
        rest += f',\n  "series": "{format_id(options.series)}"'
    if options.tags:
        rest += f',\n  "tags": [{", ".join(map(_quote, options.tags))}]'
    if options.after:
        rest += f',\n  "after": [{", ".join(_quote(format_id(number)) for number in options.after)}]'
    eta = task.eta
    if options.due is not None:
        rest += ',\n  "waiting": true'
        eta = options.due
    status, finished = task.status, _moment(task.finished_at)
    return f"""{{
  "id": "{task.task_id}",
  "func_path": {_quote(task.func_path)},
  "args": {args},
  "kwargs": {task.kwargs or "{}"},
  "status": "{status.name}",
  "attempts": {task.attempts},
  "max_retries": {options.max_retries},
  "timeout": {"null" if options.timeout is None else options.timeout},
  "eta": {_moment(eta or None)},
  "interval": {"null" if options.interval is None else options.interval / 1_000_000},
  "enqueued_at": {_moment(task.enqueued_at)},
  "started_at": {_moment(task.started_at)},
  "completed_at": {finished if status is Status.COMPLETED else "null"},
  "failed_at": {finished if status is Status.FAILED else "null"},
  "cancelled_at": {finished if status is Status.CANCELLED else "null"},
  "result": {"null" if result is None else result},
  "error": {"null" if task.error is None else encode_error(task.error)},
  "queue": {_quote(task.queue)},
  "priority": {task.priority},
  "key": {"null" if task.key is None else _quote(task.key)},
  "crashes": {task.crashes},
  "owner": {"null" if task.owner is None else task.owner},
  "run": {task.run},
  "function": "{record.digest.hex()}",
  "version": {record.version}{rest}
}}
""".encode()


def from_text(number: int, data: bytes) -> Record:
    """The record of a text, which must be that of the task with this number. Raises Damaged."""
    try:
        fields = json.loads(data)
        if fields["id"] != format_id(number):
            raise Damaged(f"it speaks of {fields['id']}")
        return _record(number, fields, len(data))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{type(error).__name__}: {error}") from error


def _record(number: int, fields: dict[str, Any], size: int) -> Record:
    status = Status[fields["status"]]
    finished = fields["completed_at"] or fields["failed_at"] or fields["cancelled_at"]
    args = _stored(fields, "args")
    kwargs = None if isinstance(args, bytes) or not fields["kwargs"] else encode_json(fields["kwargs"])
    error = fields["error"] and ErrorInfo(**fields["error"], pickle=_pickle(fields, "exception"))
    completed = status is Status.COMPLETED
    task = Task(
        id=number, queue=_checked(fields["queue"], str), run=_checked(fields["run"], int),
        func_path=_checked(fields["func_path"], str), func=b"", args=args, kwargs=kwargs, status=status,
        priority=_checked(fields["priority"], int), eta=NEVER if _is_waiting(fields) else _micros(fields["eta"]) or 0,
        attempts=_checked(fields["attempts"], int), crashes=_checked(fields["crashes"], int),
        owner=fields["owner"] if fields["owner"] is None else _checked(fields["owner"], int),
        enqueued_at=_micros(fields["enqueued_at"]) or 0, started_at=_micros(fields["started_at"]),
        finished_at=_micros(finished), result=_stored(fields, "result") if completed else None, error=error,
        options=_options(fields), key=fields["key"] if fields["key"] is None else _checked(fields["key"], str),
        owner_deaths=_checked(fields.get("owner_deaths", 0), int),
    )  # fmt: skip
    identity = fields.get("identity")
    return Record(
        task,
        bytes.fromhex(fields["function"]),
        None if identity is None else bytes.fromhex(identity),
        _checked(fields["version"], int),
        size,
        fields.get("removed", False),
    )


def _options(fields: dict[str, Any]) -> Options | None:
    interval, series = fields["interval"], fields.get("series")
    return Options(
        _checked(fields["max_retries"], int), fields.get("retries", 0), fields["timeout"],
        None if interval is None else round(interval * 1_000_000), None if series is None else parse_id(series),
        tuple(fields.get("tags", ())), _pickle(fields, "policy"), tuple(map(parse_id, fields.get("after", ()))),
        (_micros(fields["eta"]) or 0) if _is_waiting(fields) else None,
    ).or_none()  # fmt: skip


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


def _pickle_line(name: str, data: bytes) -> str:
    return f',\n  "{name}_pickle": "{base64.b64encode(data).decode()}"'


def _quote(text: str) -> str:
    """A text as JSON, readable where UTF-8 has all of its characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return encode_basestring_ascii(text)
    return encode_basestring(text)


def _moment(microseconds: int | None) -> str:
    return "null" if microseconds is None else f'"{_time(microseconds)}"'


def _micros(text: str | None) -> int | None:
    return None if text is None else parse_iso(text)


__all__ = ["END", "Damaged", "Record", "decode_error", "from_text", "to_text"]
