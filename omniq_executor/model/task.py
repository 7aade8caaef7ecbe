"""What a task is, and the one table of what may happen to it.

Everything that decides what may follow what lives in this file. A backend asks `TRANSITIONS`
which state an event leads to, and either applies it to a `Task` with `apply()` or writes the
same source and target states into its SQL. Nothing else in the package compares states to
decide what comes next.

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
from typing import NamedTuple

from .schema import (
    ALPHABET as ALPHABET,
    USUAL,
    ErrorInfo as ErrorInfo,
    Options as Options,
    Status as Status,
    Task as Task,
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


def source(event: Event) -> tuple[Status, ...]:
    """The states in which `event` may happen."""
    return tuple(status for status, happened in TRANSITIONS if happened is event)


def target(event: Event) -> Status:
    """The state that `event` leads to; it is one and the same from every source."""
    (status,) = {to for (_, happened), to in TRANSITIONS.items() if happened is event}
    return status


class Refused(Exception):
    """An event that may not happen to a task as it is now; the task is unchanged."""


class Function(NamedTuple):
    """A function as it is stored: once, however many calls it has."""

    digest: bytes  # identity of its code and what it closes over, 16 bytes: a changed function has another
    path: str  # module and qualified name, for people
    pickle: bytes


class Call(NamedTuple):
    """The stored form of one call's arguments (see Task), and what identifies them in a resume."""

    args: str | bytes
    kwargs: str | None = None
    identity: bytes | None = None  # of a pickled call; of a JSON call it is the text itself


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
    """The task after `event`, at `now` microseconds.

    `claim` names the new owner for CLAIM (its attempt must be the next one), and the claim that
    ends for COMPLETE, FAIL, RETRY, RELEASE and CRASH; `eta` is when a RETRY is due.
    Raises Refused, changing nothing, where the table has no such transition or the claim is not the
    task's present one.
    """
    to = TRANSITIONS.get((task.status, event))
    if to is None:
        raise Refused(f"{task.task_id} is {task.status.name}: {event.value} is not possible")
    if event in ENDS_CLAIM and claim != (task.owner, task.attempts):
        raise Refused(f"{task.task_id} is claimed by {task.owner} as attempt {task.attempts}, not by {claim}")
    match event:
        case Event.CLAIM:
            if claim is None or claim.attempt != task.attempts + 1:
                raise Refused(f"{task.task_id} has had {task.attempts} attempts: {claim} is not the next")
            return task._replace(status=to, owner=claim.owner, attempts=claim.attempt, started_at=now)
        case Event.COMPLETE:
            return task._replace(status=to, finished_at=now, result=result, error=None)
        case Event.FAIL:
            return task._replace(status=to, finished_at=now, error=error)
        case Event.RETRY:
            options = task.options or USUAL
            options = options._replace(retries=options.retries + 1)
            return task._replace(status=to, owner=None, started_at=None, eta=eta, error=error, options=options)
        case Event.RELEASE | Event.CRASH:
            crashes = task.crashes + (event is Event.CRASH)
            return task._replace(status=to, owner=None, started_at=None, crashes=crashes)
        case Event.ORPHAN:
            return task._replace(status=to, owner=None, started_at=None, owner_deaths=task.owner_deaths + 1)
        case Event.CANCEL | Event.ABORT:
            return with_wait(task._replace(status=to, finished_at=now), waits=False)
        case Event.MANUAL_RETRY:
            afresh = task.options and task.options._replace(retries=0).or_none()
            return task._replace(
                status=to, finished_at=None, error=None, crashes=0, owner_deaths=0, options=afresh
            )  # fmt: skip


def tier(task: Task) -> int:
    """In which of three groups a PENDING task is claimed: 0 first, and the others only after it.

    A claim whose owner died leaves up to hundreds of calls, of which one may be what killed it. In tier 1 their
    owner died once: each travels alone. In tier 2 it died more often: each runs while nothing else does, so that
    one more death tells which call it was.
    """
    return min(task.owner_deaths, LAST_TIER)


def with_wait(task: Task, *, waits: bool) -> Task:
    """The task, waiting for those that it comes after, or waiting no more. It must be PENDING if it waits.

    A task waits from when it becomes PENDING, by whichever event, until all that it comes after are finished.
    """
    if task.options is None or waits == is_waiting(task):
        return task
    if waits:
        return task._replace(eta=NEVER, options=task.options._replace(due=task.eta))
    return task._replace(eta=task.options.due or 0, options=task.options._replace(due=None))


def is_waiting(task: Task) -> bool:
    """Whether the task waits for others, so that nobody may claim it."""
    return task.options is not None and task.options.due is not None


def succeed(task: Task, successor: Successor, now: int) -> Task:
    """The next occurrence of a task that recurs, as it is added when the task ends. See also `last()`."""
    options = (task.options or USUAL)._replace(retries=0, series=task.series)
    return Task(
        id=successor.id, queue=task.queue, run=task.run, func_path=task.func_path, func=task.func, args=task.args,
        kwargs=task.kwargs, priority=task.priority, eta=successor.eta, enqueued_at=now, options=options,
    )  # fmt: skip


def last(task: Task) -> Task:
    """A task that recurs, as the last of its series: no occurrence follows it."""
    options = (task.options or USUAL)._replace(interval=None)
    return task._replace(options=options.or_none())
