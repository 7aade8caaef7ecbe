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
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: sorts like the numbers do
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_PAIRS = [one + other for one in ALPHABET for other in ALPHABET]
_TO_BASE_32 = str.maketrans(ALPHABET, "0123456789abcdefghijklmnopqrstuv")  # as int() reads it
LAST_TIER = 2  # see tier()
MOST_OWNER_DEATHS = 3  # after which a call fails instead of being tried again
_DIGITS = 13  # 13 digits of 5 bits hold the 63 bits of an id
NEVER = 253_402_300_799_999_999  # the last microsecond that ISO-8601 has a name for


class Status(enum.IntEnum):
    """State of a task. The numbers are what the SQLite store keeps."""

    PENDING = 1
    RUNNING = 2
    COMPLETED = 3
    FAILED = 4
    CANCELLED = 5


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


class Task(NamedTuple):
    """One durable call and everything that is known of it. Times are microseconds since 1970, UTC.

    `args`, `kwargs` and `result` hold the stored form: `str` is JSON text, `bytes` a pickle. A
    pickled call keeps the pair (args, kwargs) in `args`, and None in `kwargs`.
    """

    id: int
    queue: str
    run: int
    func_path: str
    func: bytes  # pickle of the function: by name where it can be imported, else by value
    args: str | bytes
    kwargs: str | None = None
    status: Status = Status.PENDING
    priority: int = 0
    eta: int = 0
    attempts: int = 0
    crashes: int = 0
    owner: int | None = None
    enqueued_at: int = 0
    started_at: int | None = None
    finished_at: int | None = None
    result: str | bytes | None = None
    error: "ErrorInfo | None" = None
    key: str | None = None
    options: "Options | None" = None
    owner_deaths: int = 0

    @property
    def task_id(self) -> str:
        """The id as it is shown: `task-` and 13 characters that sort by time of submission."""
        return format_id(self.id)

    @property
    def completed_at(self) -> int | None:
        """When it completed, if it did."""
        return self.finished_at if self.status is Status.COMPLETED else None

    @property
    def recurs(self) -> bool:
        """Whether another occurrence is to follow it."""
        return self.options is not None and self.options.interval is not None

    @property
    def series(self) -> int:
        """The id of the first occurrence of a task that recurs; of any other, its own."""
        return self.id if self.options is None or self.options.series is None else self.options.series

    @property
    def failed_at(self) -> int | None:
        """When it failed, if it did."""
        return self.finished_at if self.status is Status.FAILED else None


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


class Options(NamedTuple):
    """How a task is run, where that is not as usual. A task without any has none of it stored."""

    max_retries: int = 0  # how often it is tried again after it raised
    retries: int = 0  # how often it was, so far
    timeout: float | None = None  # seconds, of each attempt
    interval: int | None = None  # microseconds from one occurrence to the next, of a task that recurs
    series: int | None = None  # the first occurrence, of a later one
    tags: tuple[str, ...] = ()
    policy: bytes | None = None  # pickle of (backoff, retry_on), where they are not the usual ones
    after: tuple[int, ...] = ()  # the tasks whose results are among its arguments
    due: int | None = None  # while it waits for one of them: the eta that it has afterwards

    def or_none(self) -> "Options | None":
        """These options, or None where all of them are the usual ones."""
        return None if self == _USUAL else self


_USUAL = Options()


class Successor(NamedTuple):
    """The next occurrence of a task that recurs."""

    id: int
    eta: int


class ErrorInfo(NamedTuple):
    """Why a task failed, as text that anything can read, and the exception itself if it pickles."""

    type: str
    message: str
    traceback: str
    pickle: bytes | None = None
    call: str = ""  # the function and its arguments, shortened; empty where the worker could not say


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
            options = task.options or _USUAL
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
    options = (task.options or _USUAL)._replace(retries=0, series=task.series)
    return Task(
        id=successor.id, queue=task.queue, run=task.run, func_path=task.func_path, func=task.func, args=task.args,
        kwargs=task.kwargs, priority=task.priority, eta=successor.eta, enqueued_at=now, options=options,
    )  # fmt: skip


def last(task: Task) -> Task:
    """A task that recurs, as the last of its series: no occurrence follows it."""
    options = (task.options or _USUAL)._replace(interval=None)
    return task._replace(options=options.or_none())


def format_id(number: int) -> str:
    """The shown form of a task's number."""
    pairs = _PAIRS
    return (
        f"task-{ALPHABET[number >> 60 & 31]}{pairs[number >> 50 & 1023]}{pairs[number >> 40 & 1023]}"
        f"{pairs[number >> 30 & 1023]}{pairs[number >> 20 & 1023]}{pairs[number >> 10 & 1023]}{pairs[number & 1023]}"
    )


def parse_id(text: str) -> int:
    """The number of a shown id. Raises ValueError for anything that `format_id` does not write."""
    digits = text.removeprefix("task-") if isinstance(text, str) else ""  # type: ignore[redundant-expr]
    if len(digits) == _DIGITS and digits != text and not digits.strip(ALPHABET) and digits[0] in "01234567":
        return int(digits.translate(_TO_BASE_32), 32)
    raise ValueError(f"{text!r} is not a task id: it should be task- and {_DIGITS} characters")


def log_name(number: int, attempt: int) -> str:
    """The name of the file that keeps what an attempt of a task writes."""
    return f"{format_id(number)}.{attempt}.log"


def iso(microseconds: int | None) -> str | None:
    """A time as ISO-8601 in UTC, to the microsecond."""
    if microseconds is None:
        return None
    seconds, rest = divmod(microseconds, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_iso(text: str) -> int:
    """The microseconds of an ISO-8601 time. Raises ValueError where it is none, or does not say its zone."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} does not say in which time zone it is")
    return (moment - _EPOCH) // _MICROSECOND
