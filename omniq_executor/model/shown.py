"""What people are shown of a call and its task, in a line or as a card. Nothing of the user's is loaded or run.

The classes of tasks and errors are not named here, since they ask this module for their `repr()`.
"""

import contextlib
import json
import reprlib
import time
from datetime import UTC, datetime
from typing import Any, NamedTuple

from ..display import words
from ..display.card import Card
from .preview import pickled_arguments

Task = Any
ErrorInfo = Any

CALL = 80  # characters of a call
_MESSAGE = 120  # of the head of an error
_READ = 4000  # characters of JSON that are read to be shown; of longer ones the beginning is, as it is written

_shorten = reprlib.Repr()
_shorten.maxstring = _shorten.maxother = _shorten.maxlong = 40
_shorten.maxlevel = 3


def call_text(path: str, args: str | bytes, kwargs: str | None, most: int = CALL) -> str:
    """Return a call as it is stored as a short text: `parse('a.csv', 3, strict=True)`."""
    name = words.shortened(path.removeprefix("__main__."), most)
    return f"{name}({words.shortened(_arguments(args, kwargs), max(most - len(name), 20))})"


def _arguments(args: str | bytes, kwargs: str | None) -> str:
    if isinstance(args, bytes):
        return pickled_arguments(args, _shorten) if args else "…"  # what is too large is not read to be shown
    given: Any = None
    named: dict[str, Any] = {}
    with contextlib.suppress(ValueError, RecursionError):
        named = json.loads(kwargs) if kwargs and len(kwargs) <= _READ else {}
        given = json.loads(args) if len(args) <= _READ else None
    if given is None:
        return f"{args[1:_READ]}…"
    shown = [_shorten.repr(value) for value in given]
    return ", ".join([*shown, *(f"{name}={_shorten.repr(value)}" for name, value in named.items())])


def error_head(error: ErrorInfo) -> str:
    """Return what an error is, in a line: the name of its class, and the first line of what it says."""
    name = error.type.rpartition(".")[2]
    return f"{name}: {words.shortened(error.message, _MESSAGE)}" if error.message.strip() else name


def time_text(task: Task, now: int) -> str:
    """Return in words how long a task took, or has been running or waiting, at `now` microseconds."""
    if task.finished_at is not None:
        since = task.enqueued_at if task.started_at is None else task.started_at
        word = "in" if task.status.name == "COMPLETED" else "after"
        return f"{word} {words.duration((task.finished_at - since) / 1e6)}"
    if task.started_at is not None:
        return f"for {words.duration((now - task.started_at) / 1e6)}"
    return ""


def task_line(task: Task) -> str:
    """Return what is shown of a task in a line."""
    said = [f"{task.status.name} {time_text(task, _now())}".rstrip()]
    said += [f"{task.attempts} attempts"] if task.attempts > 1 else []
    ending = f": {error_head(task.error)}" if task.error else ""
    return f"<Task {task.task_id} {call_text(task.func_path, task.args, task.kwargs)} {', '.join(said)}{ending}>"


def task_card(task: Task, kind: str = "Task", state: str = "", notes: tuple[tuple[str, str], ...] = ()) -> Card:
    """Return what is shown of a task in a notebook. `state` takes the place of that in the store."""
    moment = _now()
    options = task.options
    result = task.result if isinstance(task.result, str) and len(task.result) <= _READ else ""
    kept = "a pickle, which is not shown" if isinstance(task.result, bytes) else words.shortened(result, 200)
    fields = [
        ("call", call_text(task.func_path, task.args, task.kwargs, 300)),
        ("function", "" if task.func_path.startswith("__main__.") else task.func_path),
        *notes,
        ("queue", f"{task.queue}, run {task.run}" if task.run else task.queue),
        ("key", task.key or ""),
        ("tags", ", ".join(options.tags) if options else ""),
        ("submitted", _moment(task.enqueued_at, moment)),
        ("ran", _times(task, moment)),
        ("due", _moment(task.eta, moment) if task.status.name == "PENDING" and task.eta > moment else ""),
        ("waits for", words.counted(len(task.after), "task") if task.status.name == "PENDING" and task.after else ""),
        ("attempts", "" if task.attempts == 1 and not task.options else _attempts(task)),
        ("result", kept),
    ]
    note = f"{error_head(task.error)}{_traceback(task.error)}" if task.error else ""
    return Card(kind, task.task_id, state or task.status.name, fields, note=note, is_bad=bool(note))


class ShownFuture(NamedTuple):
    """What is known of a future."""

    task_id: str | None  # None of a call that could not be stored
    ended: str  # how, as this process knows; "" while it has not
    returned: str  # the name of the result's class, if it was read
    error: str  # its head
    resumed: bool
    task: Task  # as the store has it
    unseen: str  # why it has not, about the store

    @property
    def state(self) -> str:
        """The state: what this process was told of goes before what the store says a moment earlier or later."""
        return self.ended or ("not done" if self.task is None else self.task.status.name)


def future_line(shown: ShownFuture) -> str:
    """Return what is shown of a future in a line."""
    task = shown.task
    said = [shown.state]
    if task is not None:
        if shown.state == task.status.name:
            said = [f"{shown.state} {time_text(task, _now())}".rstrip()]
        said += [f"{task.attempts} attempts"] if task.attempts > 1 else []
    said += ["resumed"] if shown.resumed else []
    said += [f"returned {shown.returned}"] if shown.returned and not shown.error else []
    call = "" if task is None else f" {call_text(task.func_path, task.args, task.kwargs)}"
    unseen = f" (its store {words.shortened(shown.unseen, 200)})" if shown.unseen else ""
    head = shown.error or (error_head(task.error) if task is not None and task.error else "")
    error = f": {head}" if head else ""
    return f"<DurableFuture {shown.task_id or 'that was not stored'}{call} {', '.join(said)}{error}{unseen}>"


def future_card(shown: ShownFuture) -> Card:
    """Return what is shown of a future in a notebook."""
    notes = (
        ("returned", "" if shown.error or (shown.task is not None and shown.task.result) else shown.returned),
        ("resumed", "its result was there already" if shown.resumed else ""),
        ("its store", shown.unseen),
    )
    if shown.task is not None:
        return task_card(shown.task, "DurableFuture", shown.state, notes)
    return Card(
        "DurableFuture", shown.task_id or "not stored", shown.state, notes, note=shown.error, is_bad=bool(shown.error)
    )


def exception_head(error: BaseException) -> str:
    """Return what an exception is, in a line. Its class may be anybody's, and fail to say."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - it is not ours
        text = ""
    name = type(error).__name__
    return f"{name}: {words.shortened(text, _MESSAGE)}" if text.strip() else name


def _times(task: Task, now: int) -> str:
    """Return when it began, and how long that took."""
    if task.started_at is None:
        return ""
    waited = task.started_at - task.enqueued_at
    began = f"after {words.duration(waited / 1e6)} of waiting, " if waited >= 1_000_000 else ""
    return f"{began}for {words.duration(((task.finished_at or now) - task.started_at) / 1e6)}"


def _attempts(task: Task) -> str:
    died = task.crashes + task.owner_deaths
    deaths = f", of which {died} died" if died else ""
    limit = task.options.max_retries if task.options else 0
    allowed = f", {words.counted(limit, 'retry', 'retries')} allowed" if limit else ""
    return f"{task.attempts}{deaths}{allowed}"


def _traceback(error: ErrorInfo) -> str:
    """Return where it was raised: the last place that the traceback names."""
    _, place, after = error.traceback.rpartition("\n  File ")
    where, *code = after.splitlines() or [""]
    return (
        "\n".join(["", f"File {where}", *(line[2:] for line in code[:2] if line.startswith("    "))]) if place else ""
    )


def _moment(microseconds: int, now: int) -> str:
    """Return a time of the day, of this machine's zone, with the date unless that is today, and how long ago it was."""
    moment, today = (datetime.fromtimestamp(at // 1_000_000, UTC).astimezone() for at in (microseconds, now))
    written = f"{moment:%H:%M:%S}" if moment.date() == today.date() else f"{moment:%Y-%m-%d %H:%M:%S}"
    ago = (now - microseconds) / 1e6
    return f"{written}, {words.duration(ago)} ago" if ago >= 1 else written


def _now() -> int:
    return time.time_ns() // 1000
