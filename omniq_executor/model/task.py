"""What a task is, and the one table of what may happen to it.

Everything that decides what may follow what lives in this file. A backend asks `TRANSITIONS`
which state an event leads to and `EFFECTS` what else it changes, and either applies it to a `Task` with
`apply()` or writes the same into its SQL. Nothing else in the package compares states to decide what
comes next.

    PENDING --CLAIM--> RUNNING --COMPLETE--> COMPLETED
       |  ^               | | +--FAIL------> FAILED ----+
       |  +--RELEASE------+ +----CRASH--> PENDING       |
       |  +--ORPHAN-------+ +----RETRY--> PENDING       |
       +--CANCEL--> CANCELLED <--ABORT (running)        |
       ^                |                               |
       +--MANUAL_RETRY--+---------MANUAL_RETRY----------+

A claim is fenced: what its owner ends it by (COMPLETE, FAIL, RETRY, RELEASE, CRASH) must name the owner and
the attempt of the claim. `attempts` counts the claims of a task and only ever grows, so an outcome that
arrives after its claim was lost finds another number there and is refused. ABORT and ORPHAN are anybody's, and
end whichever claim there is.

A task whose arguments are results of other tasks is PENDING like any other, and while one of those is not
finished it waits: it is not due before NEVER (see `with_wait()`).
"""

import enum
from collections.abc import Callable
from typing import NamedTuple

from .schema import (
    ALPHABET as ALPHABET,
    FIELDS,
    USUAL,
    ErrorInfo as ErrorInfo,
    Options as Options,
    Status as Status,
    Task as Task,
    compiled,
    format_id as format_id,
    iso as iso,
    log_name as log_name,
    parse_id as parse_id,
    parse_iso as parse_iso,
)

LAST_TIER = 2  # see tier()
MOST_OWNER_DEATHS = 3  # after which a call fails instead of being tried again
NEVER = 253_402_300_799_999_999  # the last microsecond that ISO-8601 has a name for


FINISHED = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED})


class Event(enum.Enum):
    """Something that happens to a task."""

    __hash__ = object.__hash__  # by identity, without a call of Python: each turn looks up what an event does

    CLAIM = "claim"  # an owner takes it, to run it
    COMPLETE = "complete"  # the call returned
    FAIL = "fail"  # the call raised, or ran out of crash retries
    RETRY = "retry"  # the call raised, and is to be tried again
    RELEASE = "release"  # given back by its owner: nothing is charged
    ORPHAN = "orphan"  # its owner died: counted apart, since the call may be what killed it
    CRASH = "crash"  # the worker died in it: charged against crash_retries
    CANCEL = "cancel"  # nobody wants it any more
    ABORT = "abort"  # nor what it does at present
    MANUAL_RETRY = "manual retry"  # an explicit wish to run it again


TRANSITIONS: dict[tuple[Status, Event], Status] = {
    (Status.PENDING, Event.CLAIM): Status.RUNNING,
    (Status.PENDING, Event.CANCEL): Status.CANCELLED,
    (Status.RUNNING, Event.COMPLETE): Status.COMPLETED,
    (Status.RUNNING, Event.FAIL): Status.FAILED,
    (Status.RUNNING, Event.RETRY): Status.PENDING,
    (Status.RUNNING, Event.RELEASE): Status.PENDING,
    (Status.RUNNING, Event.ORPHAN): Status.PENDING,
    (Status.RUNNING, Event.CRASH): Status.PENDING,
    (Status.RUNNING, Event.ABORT): Status.CANCELLED,
    (Status.FAILED, Event.MANUAL_RETRY): Status.PENDING,
    (Status.CANCELLED, Event.MANUAL_RETRY): Status.PENDING,
}
ENDS_CLAIM = frozenset({Event.COMPLETE, Event.FAIL, Event.RETRY, Event.RELEASE, Event.CRASH})


class Effect(enum.Enum):
    """What an event makes of a field, where that is not one and the same value each time."""

    GIVEN = "what comes with the event under the same name"
    NOW = "the time of the event"
    ONE_MORE = "one more than it was"


_Effects = dict[str, Effect | int | None]
_GIVEN_BACK: _Effects = {"owner": None, "started_at": None}
_OVER: _Effects = {"finished_at": Effect.NOW, "due": None}
# What an event changes beside the state, by the names of fields of Task and of Options. Without "due" a task waits for
# no others: it has as its eta what it had as "due".
EFFECTS: dict[Event, _Effects] = {
    Event.CLAIM: {"owner": Effect.GIVEN, "attempts": Effect.ONE_MORE, "started_at": Effect.NOW},
    Event.COMPLETE: {"finished_at": Effect.NOW, "result": Effect.GIVEN, "error": None},
    Event.FAIL: {"finished_at": Effect.NOW, "error": Effect.GIVEN},
    Event.RETRY: {**_GIVEN_BACK, "eta": Effect.GIVEN, "error": Effect.GIVEN, "retries": Effect.ONE_MORE},
    Event.RELEASE: _GIVEN_BACK,
    Event.ORPHAN: {**_GIVEN_BACK, "owner_deaths": Effect.ONE_MORE},
    Event.CRASH: {**_GIVEN_BACK, "crashes": Effect.ONE_MORE},
    Event.CANCEL: _OVER,
    Event.ABORT: _OVER,
    Event.MANUAL_RETRY: {"finished_at": None, "error": None, "crashes": 0, "owner_deaths": 0, "retries": 0},
}


def source(event: Event) -> tuple[Status, ...]:
    """Return the states in which `event` may happen."""
    return tuple(status for status, happened in TRANSITIONS if happened is event)


def target(event: Event) -> Status:
    """Return the state that `event` leads to; it is one and the same from every source."""
    (status,) = {to for (_, happened), to in TRANSITIONS.items() if happened is event}
    return status


FINISHING = frozenset(event for event in Event if target(event) in FINISHED)


class Refused(Exception):
    """An event that may not happen to a task as it is now; the task is unchanged."""


class Function(NamedTuple):
    """A function as it is stored: once, however many calls it has."""

    digest: bytes  # identity of its code and what it closes over, 16 bytes: a changed function has another
    path: str  # module and qualified name, for people
    pickle: bytes
    parts: str = ""  # what its identity is made of, see code/parts.py; empty where an older version stored it


class Call(NamedTuple):
    """The stored form of one call's arguments (see Task), and what identifies them in a resume."""

    args: str | bytes
    kwargs: str | None = None
    identity: bytes | None = None  # of a pickled call; of a JSON call it is the text itself

    @property
    def likeness(self) -> str | bytes:
        """What it has in common with equal calls of the same function, by which a later run finds it."""
        return self.identity if self.identity is not None else str(self.args) + (self.kwargs or "")


class FailedCall(NamedTuple):
    """What is looked at of a call that has FAILED. Its error is without the pickle."""

    id: int
    run: int
    queue: str
    function: str  # its path
    failed_at: int
    error: ErrorInfo

    @property
    def task_id(self) -> str:
        """The id as it is shown."""
        return format_id(self.id)


class Successor(NamedTuple):
    """The next occurrence of a task that recurs."""

    id: int
    eta: int


class Claim(NamedTuple):
    """What fences the end of a claim."""

    owner: int
    attempt: int


def apply(
    task: Task,
    event: Event,
    now: int,
    *,
    claim: Claim | None = None,
    result: str | bytes | None = None,
    error: ErrorInfo | None = None,
    eta: int = 0,
) -> Task:
    """Return the task after `event`, at `now` microseconds.

    `claim` names the new owner for CLAIM (its attempt must be the next one), and the claim that
    ends for COMPLETE, FAIL, RETRY, RELEASE and CRASH; `eta` is when a RETRY is due.
    Raises Refused, changing nothing, where the table has no such transition or the claim is not the
    task's present one.
    """
    if (task.status, event) not in TRANSITIONS:
        raise Refused(f"{task.task_id} is {task.status.name}: {event.value} is not possible")
    if event in ENDS_CLAIM and claim != (task.owner, task.attempts):
        raise Refused(f"{task.task_id} is claimed by {task.owner} as attempt {task.attempts}, not by {claim}")
    if event is Event.CLAIM and (claim is None or claim.attempt != task.attempts + 1):
        raise Refused(f"{task.task_id} has had {task.attempts} attempts: {claim} is not the next")
    return _AFTER[event](task, now, claim and claim.owner, result, error, eta)


def _after(event: Event) -> Callable[..., Task]:
    """Make the function that gives a task as it is after an event, from the table."""
    of_task = [f"status=Status.{target(event).name}"]
    of_options: list[str] = []
    for name, effect in EFFECTS[event].items():
        of, changed = ("task", of_task) if name in FIELDS else ("options", of_options)
        value = {Effect.NOW: "now", Effect.GIVEN: name, Effect.ONE_MORE: f"{of}.{name} + 1"}
        if name != "due":
            changed.append(f"{name}={value[effect]}" if isinstance(effect, Effect) else f"{name}={effect}")
    if of_options:
        of_task.append(
            f"options=(lambda options: options._replace({', '.join(of_options)}).or_none())(task.options or USUAL)"
        )
    task = "with_wait(task, waits=False)" if "due" in EFFECTS[event] else "task"
    return compiled(
        "task, now, owner, result, error, eta", f"{task}._replace({', '.join(of_task)})", Status=Status, USUAL=USUAL,
        with_wait=with_wait,
    )  # fmt: skip


def tier(task: Task) -> int:
    """Return in which of three groups a PENDING task is claimed: 0 first, and the others only after it.

    A claim whose owner died leaves up to hundreds of calls, of which one may be what killed it. In tier 1 their
    owner died once: each travels alone. In tier 2 it died more often: each runs while nothing else does, so that
    one more death tells which call it was.
    """
    return min(task.owner_deaths, LAST_TIER)


def with_wait(task: Task, *, waits: bool) -> Task:
    """Return the task, waiting for those that it comes after, or waiting no more. It must be PENDING if it waits.

    A task waits from when it becomes PENDING, by whichever event, until all that it comes after are finished.
    """
    if task.options is None or waits == is_waiting(task):
        return task
    if waits:
        return task._replace(eta=NEVER, options=task.options._replace(due=task.eta))
    return task._replace(eta=task.options.due or 0, options=task.options._replace(due=None))


def is_waiting(task: Task) -> bool:
    """Return whether the task waits for others, so that nobody may claim it."""
    return task.options is not None and task.options.due is not None


def succeed(task: Task, successor: Successor, now: int) -> Task:
    """Return the next occurrence of a task that recurs, as it is added when the task ends. See also `last()`."""
    options = (task.options or USUAL)._replace(retries=0, series=task.series)
    of_call = {name: getattr(task, name) for name, field in FIELDS.items() if field.of_call}
    return Task(**{**of_call, "id": successor.id, "eta": successor.eta, "enqueued_at": now, "options": options})


def last(task: Task) -> Task:
    """Return a task that recurs, as the last of its series: no occurrence follows it."""
    options = (task.options or USUAL)._replace(interval=None)
    return task._replace(options=options.or_none())


_AFTER = {event: _after(event) for event in Event}
