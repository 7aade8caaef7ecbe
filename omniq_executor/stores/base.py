"""The Store contract: what a place that keeps tasks must do.

The docstrings here are the specification; a backend exists once it passes tests/contract. A store
knows nothing of processes that run calls: it keeps tasks, and it says who is alive.

Every method is safe to call from any thread. Every method that changes something does so in one
transaction: it is on disk, whole, when the method returns, and not at all when it raises. Each
raises StoreError where the disk or the format does not allow it, and TooLarge for a value larger
than it can hold, in which case it can go on with others. Times are microseconds since
1970, UTC; ids are the numbers behind `task-…`. The module is longer than others, since a contract
is read as a whole.
"""

import abc
import functools
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

from ..errors import StoreError, TaskNotFound
from ..model.codec import split
from ..model.task import (
    FINISHED,
    Call,
    ErrorInfo,
    Event,
    FailedCall,
    Function,
    Options,
    Status,
    Successor,
    Task,
    format_id,
    parse_id,
)
from ..value_files import names_in
from .glances import Glance, Wanted, card_of, line_of, patiently
from .output import Output
from .owners import Owners, new_session_id
from .reserve import Reserve
from .rules import Resume as Resume, check_finished
from .values import ValueFiles

SMALL = 4096
"""Bytes of results that are read ahead of the calls that are given them, or with those beside them."""


def now() -> int:
    """Return the time, in microseconds since 1970, UTC."""
    return time.time_ns() // 1000


class Batch:
    """New calls of one function; call i gets the id `first + i`.

    Either `text` is the JSON array of their argument arrays (the fast form), or `calls` has each.
    With `claimed` they are RUNNING from the start, as attempt 1 of the owner who adds them; then their
    options name no tasks that they come after.
    """

    __slots__ = "calls", "claimed", "eta", "first", "function", "key", "options", "priority", "size", "text"

    def __init__(
        self,
        first: int,
        size: int,
        function: Function,
        text: str | None = None,
        calls: Sequence[Call] | None = None,
        claimed: bool = False,
        key: str | None = None,
        priority: int = 0,
        eta: int = 0,
        options: Options | None = None,
    ) -> None:
        self.first = first
        self.size = size
        self.function = function
        self.text = text
        self.calls = calls
        self.claimed = claimed
        self.key = key
        self.priority = priority
        self.eta = eta
        self.options = options

    def as_claimed(self) -> "Batch":
        """Return it with its tasks claimed."""
        return Batch(
            self.first, self.size, self.function, self.text, self.calls, True, self.key, self.priority, self.eta,
            self.options,
        )  # fmt: skip

    def of(self, calls: Sequence[Call], key: str | None = None) -> "Batch":
        """Return one of these calls, with the same function and options."""
        return Batch(
            self.first, len(calls), self.function, None, calls, self.claimed, key or self.key, self.priority, self.eta,
            self.options,
        )  # fmt: skip

    def each(self) -> Sequence[Call]:
        """Return the calls, one by one."""
        return self.calls or () if self.text is None else [Call(text) for text in split(self.text)]


class ResultBatch(NamedTuple):
    """Results of `size` tasks with consecutive ids, all of one attempt: a JSON array of [result] arrays."""

    first: int
    size: int
    attempt: int
    text: str


class Outcome(NamedTuple):
    """The end of one claim, other than in a ResultBatch. `event` is one of ENDS_CLAIM."""

    id: int
    attempt: int
    event: Event
    result: str | bytes | None = None
    error: ErrorInfo | None = None
    eta: int = 0  # of a RETRY
    successor: Successor | None = None  # of a task that recurs: what is added in the same transaction


class Claimed(NamedTuple):
    """A task that a turn claimed: what is needed to run it."""

    id: int
    attempt: int
    crashes: int
    run: int
    digest: bytes
    args: str | bytes
    kwargs: str | None
    eta: int = 0
    options: Options | None = None
    owner_deaths: int = 0


class TaskState(NamedTuple):
    """Where a task stands, as a resume or a waiting future needs it."""

    id: int
    status: Status
    owner: int | None  # who claimed it last
    result: str | bytes | None
    error: ErrorInfo | None
    had_failed: bool = False  # of what take_over() gives: whether it is PENDING by a retry


class Resumable(NamedTuple):
    """A task that a run may still take over, for an equal call of its function."""

    id: int
    digest: bytes  # of the function
    status: Status


class Taken(NamedTuple):
    """A task that a run has taken over, as it was before that."""

    run: int
    task: int
    status: Status
    origin: int  # the run that it was of


class PastCall(NamedTuple):
    """What is looked at of a task to tell what runs have in common."""

    id: int
    run: int
    digest: bytes  # of its function
    likeness: str | bytes  # see Call
    status: Status
    enqueued_at: int
    finished_at: int | None = None
    is_memo: bool = False  # whether it was submitted with memo=True


class Turn(NamedTuple):
    """Everything one transaction of the dispatcher does, in this order: add, end, claim."""

    now: int
    adds: Sequence[Batch] = ()
    blocks: Sequence[ResultBatch] = ()
    outcomes: Sequence[Outcome] = ()
    claim: int = 0  # how many PENDING tasks to claim at most
    queues: Sequence[str] | None = None  # to claim from; () for all of the store, None for that of the run
    of_run: bool = False  # claim only what the run has added, taken over or adopted; `queues` is None then
    tier: int = 0  # claim only tasks of this tier, see model.tier()


class TurnResult:
    """What a turn brought: the claimed tasks in the order to run them, and the refused ends."""

    __slots__ = "claimed", "due", "foreign", "freed", "next_tier", "refused"

    def __init__(
        self,
        claimed: Iterable[Claimed] = (),
        refused: Iterable[int] = (),
        foreign: bool = False,
        due: int | None = None,
        freed: bool = False,
        next_tier: int | None = None,
    ) -> None:
        self.claimed = [*claimed]
        self.refused = {*refused}  # ids whose claim was not ours any more; nothing was written
        self.foreign = foreign  # another process has changed the store since this owner's last turn
        self.due = due  # if fewer were claimed than asked for: when the next of such tasks is due
        self.freed = freed  # whether tasks wait no more, in any queue, since what they come after is finished
        self.next_tier = next_tier  # likewise: the next tier that has PENDING tasks which wait for no others


class Owner(NamedTuple):
    """A process that claims, or did. `alive` is False only where its death is proved."""

    id: int
    queue: str
    host: str
    pid: int
    opened_at: int
    alive: bool


class Run(NamedTuple):
    """One life of an executor on a queue. A session is one life of a process, with all of its runs."""

    id: int
    queue: str
    continues: tuple[int, ...] = ()  # broken runs whose calls this run takes over
    done: int = 0  # tasks of those runs that are COMPLETED
    total: int = 0  # tasks of those runs
    context: str = ""  # see Store.begin_run()
    beside: tuple[int, ...] = ()  # other runs of its session, which it does not continue: what they took over is theirs


ADDS = "(adds)"  # the queue of an owner that only adds, and leaves the rest to workers
NO_RUN = Run(0, "")  # of who only works off what others have added, and of tasks that no later run takes over


class RunRecord(NamedTuple):
    """All that is stored of a run."""

    id: int
    queue: str
    owner: int
    continues: tuple[int, ...]
    started_at: int
    ended_at: int | None
    clean: bool | None  # None while it is open
    settled: bool  # nothing of it is taken over any more
    session: int = 0  # 0 where the run is a session by itself
    context: str = ""  # see Store.begin_run()
    result_ttl: int | None = None  # microseconds that its results are kept after its end; None for ever


class Leftover(NamedTuple):
    """What a settled run has left PENDING."""

    run: int
    queue: str
    started_at: int  # of the run
    tasks: int  # how many
    context: str = ""  # of the run, see Store.begin_run()


class TaskRow(NamedTuple):
    """All that is stored of a task."""

    task: Task
    digest: bytes  # of its function, of which `task` has the rest
    identity: bytes | None  # of a pickled call, see Call
    parts: str = ""  # of its function, see Function


class Swept(NamedTuple):
    """What a step of `Store.expire()` did."""

    looked_at: int  # tasks, ...
    removed: int  # ... and how many of them were removed


class Usage(NamedTuple):
    """What a store takes, and what of it is to go."""

    size: int  # bytes on the disk, of all its files
    oldest: int | None  # when the oldest task was added
    expiring: list[tuple[int, int]]  # when tasks are to go, and how many; the next first


class Problem(NamedTuple):
    """Something in a store that was not as it should be."""

    what: str
    repaired: bool


class Store(abc.ABC):
    """A place that keeps tasks. See the module's docstring for what holds of every method."""

    scheme: ClassVar[str]  # of addresses that say the kind of store too

    def __init__(self, path: str | os.PathLike[str], durability: str, beside: tuple[str, str, str, str]) -> None:
        if durability not in ("process", "power"):
            raise ValueError(f"durability is 'process' or 'power', not {durability!r}")
        self.removals = 0  # how often somebody has had tasks removed by this handle
        self.path = Path(path).absolute()  # its database file, or its folder
        self.address = str(self.path)
        self.url = f"{self.scheme}{self.path}"  # under which open_store() finds it from any folder, whatever its name
        owners, output, large, reserve = (Path(f"{self.path}{ending}") for ending in beside)
        self._owners = Owners(owners)
        self.output = Output(output)  # what its calls wrote, in files beside it
        self.values = ValueFiles(large, durability == "power")  # the large ones, in files beside it
        self.reserve = Reserve(reserve)  # space on its disk, which is there as long as an owner is

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of files and connections. Closing twice is fine; any other use afterwards raises StoreError."""

    @abc.abstractmethod
    def _check_open(self) -> None:
        """Raise StoreError after close()."""

    def glance(self, wanted: Wanted) -> Glance:
        """Return what a look finds that waits for nobody, see glances.py; also after close(). Raises StoreError."""
        return patiently(self.url, lambda: self._glance(wanted))

    @abc.abstractmethod
    def _glance(self, wanted: Wanted) -> Glance:
        """Look, by means of its own: not by those of the open store, which others may hold up."""

    @property
    def _state(self) -> str:
        try:
            self._check_open()
        except StoreError:
            return "closed"
        return ""

    def __repr__(self) -> str:
        look = functools.partial(self.glance, Wanted(counts=True))
        return line_of(type(self).__name__, self.address, look, self._state)

    def _repr_html_(self) -> str:
        """Return what a notebook shows of it."""
        look = functools.partial(self.glance, Wanted(counts=True))
        return card_of(type(self).__name__, self.address, look, self._state).html()

    def reopen(self) -> "Store":
        """Return another handle on the store, also after this one is closed. Raises StoreError where it is gone."""
        return type(self)(self.path, create=False)  # type: ignore[call-arg]  # the address alone may not tell the kind

    # who is there

    @abc.abstractmethod
    def enter(self, queue: str) -> int:
        """Register this process as an owner of `queue`, or of ADDS, and return the owner's id.

        The owner is alive until `leave()` or the death of the process, whichever comes first;
        both can be proved by others through a lock that the process holds.
        """

    def leave(self, owner: int) -> None:
        """Unregister. Its RUNNING tasks, if any are left, go back to PENDING by RELEASE: it is alive."""
        try:
            self._leave(owner)
        except StoreError:
            self._owners.let_go(owner, is_registered=True)
            raise
        self._owners.let_go(owner)

    @abc.abstractmethod
    def _leave(self, owner: int) -> None:
        """Do it, but for what proves that it lives."""

    @abc.abstractmethod
    def owners(self) -> list[Owner]:
        """Return all registered owners, oldest first."""

    @abc.abstractmethod
    def peers(self, owner: int) -> list[int]:
        """Return the ids of the other registered owners, alive or not."""

    @abc.abstractmethod
    def reap(self, now: int) -> int:
        """Take back the RUNNING tasks of every owner whose death is proved, forget it, and return how many.

        ORPHAN those that had begun, as the owner's slots tell, or all where there are none; RELEASE the
        others. An owner that is alive keeps its tasks however slow or still it is. Sessions whose process is
        dead are forgotten too.
        """

    def notify_path(self, owner: int) -> Path:
        """Return the owner's notification pipe: a FIFO (where there are FIFOs) to which others write to wake it."""
        self._check_open()
        return self._owners.notify_path(owner)

    def slots_path(self, owner: int) -> Path:
        """Return where an owner keeps which of its tasks have begun, see slots.py; it goes with the owner."""
        self._check_open()
        return self._owners.slots_path(owner)

    @abc.abstractmethod
    def notify(self, owner: int) -> None:
        """Wake all other owners: what `owner` committed may be what they wait for."""

    @abc.abstractmethod
    def read_changes(self, owner: int) -> list[int]:
        """Return the tasks that were finished or cancelled by others since `owner` entered or last asked.

        It is asked through the handle with which the owner entered. One that finished, was retried and
        finished again is there for each time.
        """

    # sessions and runs

    def begin_session(self, now: int) -> int:
        """Register the life of this process as a session and return its id.

        It lasts until `end_session()`, which another handle may call, or the death of the process; either is
        proved to others by a lock that the process holds, also after this handle is closed.
        """
        self._check_open()
        session = new_session_id()
        self._owners.hold(session, has_pipe=False)
        try:
            self._register_session(session, now)
        except StoreError:
            self._owners.let_go(session)
            raise
        return session

    @abc.abstractmethod
    def _register_session(self, session: int, now: int) -> None:
        """Note that a session has begun, whose lock is held."""

    @abc.abstractmethod
    def end_session(self, session: int, clean: bool, now: int, *, keep_broken: bool = False) -> list[Leftover]:
        """End a session of this process. If it is clean, settle its runs and what came before them.

        Those are the runs of the same queue and context whose session is over, whether calls of them were
        taken over or not. With `keep_broken` the session's own runs that did not end clean stay as they are, to be
        continued, and nothing of their queue and context is settled, unless a run of the session has continued them
        and ended clean. Returns what settled runs have left PENDING, in whichever queue, of which nobody was told
        before.
        """

    @abc.abstractmethod
    def begin_run(
        self, queue: str, owner: int, resume: Resume, now: int, *,
        session: int = 0, context: str = "", since: int = 0, result_ttl: int | None = None,
    ) -> Run:  # fmt: skip
        """Open a run of `queue`, as part of a session or as one by itself.

        With "crashed" it continues each earlier run of the queue that is not settled, has the same
        context and no living owner, and is of a session that is over, or of this session if it did not
        end clean. With "always" it also continues the runs of the queue and context that ended last: those of
        one session, and of this one. With "failed" it continues those of them of which tasks FAILED, with all
        of their session. With "never" none. What those runs continued in their turn is continued too. A run of
        which nothing has happened after `since` is not continued.

        The context is a text that stands for all that calls depend on and do not name: the folder, and, behind a dot,
        the initializer, if there is one.
        `result_ttl` is for how many microseconds `expire()` keeps what is finished of it, None for ever.
        """

    @abc.abstractmethod
    def end_run(self, run: Run, clean: bool, now: int) -> list[Leftover]:
        """Close a run. One that is a session by itself ends it, as `end_session()` does, whose result is returned."""

    def take_over(self, run: Run, function: Function, calls: Sequence[Call], now: int) -> list[TaskState | None]:
        """Return for each call the task that it continues, or None where it is a new one.

        The n-th call equal in function and arguments is given the n-th such task of the runs that
        `run` continues, in order of id. A task is given once. CANCELLED tasks are not given;
        FAILED ones are given after a MANUAL_RETRY, so as PENDING. What is PENDING then is of `run` from now on.
        What another run has adopted meanwhile is not given if it was begun, or is finished, in another context.
        Nor is what the runs `beside` have taken over: the executors of a script share what was left by it.
        What is given is noted, see `taken()`.
        """
        self._check_open()
        return self._take_over(run, function, calls, now) if run.continues else [None] * len(calls)

    @abc.abstractmethod
    def _take_over(self, run: Run, function: Function, calls: Sequence[Call], now: int) -> list[TaskState | None]:
        """Do it for a run that continues others."""

    @abc.abstractmethod
    def ahead(self, run: Run, function: Function, after: int, most: int) -> list[tuple[str | bytes, TaskState]]:
        """Return tasks that `take_over()` would give to the next calls of a function, with likenesses, oldest first.

        Those are COMPLETED, have ids above `after` and results that are small and in the task itself, and are what is
        given for the next call that is like theirs. They are at most so many, and not all that there are. Nothing is
        changed, and they are given by `note_given()`.
        """

    @abc.abstractmethod
    def note_given(self, run: Run, given: Mapping[int, tuple[bytes, str | bytes]]) -> None:
        """Note as taken over what `ahead()` has returned, and give it no more.

        It is given by id, each with the digest of the function and the likeness of the call.
        """

    @abc.abstractmethod
    def offer_again(self, run: Run) -> Run:
        """Have all that is COMPLETED of `run`, and of the runs that it continues, be there to be taken over once more.

        Nothing else is, then. Returns the run as one that continues itself, too.
        """

    @abc.abstractmethod
    def offer_more(self, run: Run, ids: Collection[int]) -> None:
        """Have those of these tasks of the run be there to be taken over, too, that are COMPLETED by now."""

    def resumable(
        self, run: Run, path: str, likenesses: Collection[str | bytes]
    ) -> dict[str | bytes, list[Resumable]] | None:
        """Return by likeness the tasks that `run` may still take over for calls of the function with that path.

        Whatever code the function had, and in order of id. None if the runs that it continues had no call of the
        function, and where it continues none. Nothing is changed.
        """
        self._check_open()
        return self._resumable_of(run, path, likenesses) if run.continues else None

    @abc.abstractmethod
    def _resumable_of(
        self, run: Run, path: str, likenesses: Collection[str | bytes]
    ) -> dict[str | bytes, list[Resumable]] | None:
        """Do it for a run that continues others."""

    @abc.abstractmethod
    def adopt(self, run: Run, ids: Collection[int] | None, now: int, *, any_context: bool = False) -> int:
        """Have PENDING tasks be of `run` that nobody else would run, and return how many.

        Those are of no run, or of runs without a registered owner. If `ids` is None: of the run's queue, and of the
        same context. Or else `ids` and all that those come after, with the same initializer; then an owner that only
        adds does not count, and with `any_context` the initializer of `ids` themselves does not.
        """

    @abc.abstractmethod
    def cancel_run(self, run: int, now: int) -> list[int]:
        """CANCEL what is PENDING of a run, as `cancel()` does, and return it."""

    # the work

    @abc.abstractmethod
    def turn(self, owner: int, run: Run, work: Turn) -> TurnResult:
        """Add, end and claim, in this order, in one transaction.

        Adds: a `key` that the queue has already is the one reason for which a batch is not added;
        use `by_key()` first. One whose options name, as `after`, a task that the store does not hold
        raises TaskNotFound. Ends: each is checked against (owner, attempt) and refused if the
        claim is gone; the successor of one that is not refused is added as model.succeed() has it,
        unless the series was cancelled meanwhile.
        Claims: up to `work.claim` tasks of the queue and of `work.tier` that are PENDING with an eta not after
        `work.now`, highest priority first, then earliest eta, then lowest id; each becomes RUNNING
        with the next attempt. With `work.queues` it is so of each of these queues, of which each gives its
        share, in an order left to chance, so that none waits for another to be empty. Who
        adds nothing and claims in this way needs no run: NO_RUN will do. What is claimed so is of no run that
        has an initializer: only an executor that has it, too, can run that.

        What comes after others waits (see model.with_wait()): whatever becomes PENDING, by an add, an
        end or `retry()`, while a task that it comes after is not finished, does; and with the end, or
        `cancel()`, of the last of those, in the same transaction, it waits no more. A task that is not
        there any more counts as finished.
        """

    @abc.abstractmethod
    def add_claimed(self, owner: int, run: Run, number: int, function: Function, call: Call, now: int) -> None:
        """Add one call with the id `number`, RUNNING as attempt 1 of `owner`: as a turn of one claimed add."""

    @abc.abstractmethod
    def claim(self, owner: int, number: int, now: int) -> Claimed | None:
        """CLAIM the task with that id, whatever its queue and whenever it is due.

        None if it is not PENDING, or waits for others.
        """

    @abc.abstractmethod
    def cancel(self, ids: Sequence[int], now: int, running: bool = False) -> list[int]:
        """CANCEL those that are PENDING and, with `running`, ABORT those that are RUNNING; returns them.

        Whoever runs one of them hears of it (see `read_changes()`) and is to end it.
        Of a task that recurs, the series ends, whichever of it is named: an occurrence that is PENDING
        is cancelled with it, and one that is RUNNING likewise or, without `running`, is the last.
        """

    @abc.abstractmethod
    def retry(self, ids: Sequence[int], now: int) -> list[int]:
        """MANUAL_RETRY those that are FAILED or CANCELLED, and return them."""

    @abc.abstractmethod
    def retry_for(self, run: Run, ids: Sequence[int], now: int) -> list[int]:
        """`retry()`, since equal calls were submitted in a run: it is noted how they stood, see `taken()`."""

    # upkeep

    def purge(self, before: int, statuses: Collection[Status] = FINISHED, queue: str | None = None) -> int:
        """Remove the tasks of these states, and of this queue, that finished before a time; return how many.

        Their keys are free then. With them go the functions that no task uses, unless an owner is
        registered, who may be about to use one; and the settled runs that have no tasks left, but for
        the last of each queue. A task that one which is not finished comes after stays. What they wrote
        goes last: whoever dies before that leaves it to the next purge or check. Then it is compacted. Raises
        ValueError for a state in which a task is not finished.
        """
        check_finished(statuses)
        self.removals += 1
        removed = self._purge(before, statuses, queue)
        self.output.remove_strays(self.ids)
        self._remove_values()
        self.compact()
        return removed

    @abc.abstractmethod
    def _purge(self, before: int, statuses: Collection[Status], queue: str | None) -> int:
        """Do it, but for what they wrote, and large values."""

    def _remove_values(self) -> int:
        """Remove the files of large values that nothing refers to, and return how many."""
        return self.values.remove_left_results(self._results) + self.values.remove_unused(self._used_values)

    def _used_values(self) -> set[str]:
        return {name for _, data in self.references() for name in names_in(data)}

    def _results(self, ids: Collection[int]) -> dict[int, str | bytes | None]:
        return {it.id: (it.result or "") if it.status in FINISHED else None for it in self.states(ids)}

    @abc.abstractmethod
    def references(self, results: bool = False) -> Iterator[tuple[str, bytes]]:
        """Give what refers to files of large values, with what it is: functions, calls and, if asked for, results."""

    def remove(self, ids: Sequence[int]) -> int:
        """Remove those of these tasks that are finished, with what they wrote; return how many.

        One that a task which is not finished comes after stays. Their keys are free then.
        """
        self.removals += 1
        removed = self._remove(ids)
        self.output.remove(removed)
        self.values.remove_results(removed, self.values.results())
        return len(removed)

    @abc.abstractmethod
    def _remove(self, ids: Sequence[int]) -> dict[int, int]:
        """Do it, but for what they wrote; return how many attempts each had."""

    @abc.abstractmethod
    def results_of(self, function: str, queue: str | None = None) -> tuple[list[int], list[int]]:
        """Return the finished tasks of a function, and those finished ones that were given their results, and so on.

        The function is named by its dotted path or the end of it. Both newest first, so that what is removed in
        this order goes before what it depends on. With `queue`, only tasks of the function that are of it.
        """

    def expire(self, now: int, owner: int = 0) -> Iterator[Swept]:
        """Remove what is finished and kept long enough, by and by: each item is a step that was done, of some ms.

        That is what is of a run that is over, as long ago as it said when it began, with all that continue it (see
        retention.py), and that finished that long ago itself. What has a key stays, unless it is one of memo=True;
        so does a task that one which is not finished comes after. A run with nothing left goes last, and functions
        that no task uses, unless an owner other than `owner` is registered. It may be left off after any step.
        """
        results: dict[int, list[str]] | None = None  # as they are when the first tasks go, long after they came
        for looked_at, removed in self._expire(now, owner):
            self.output.remove(removed)
            if removed:
                results = self.values.results() if results is None else results
                self.values.remove_results(removed, results)
            yield Swept(looked_at, len(removed))
        if results is not None:  # else hardly anything is unused, and in a folder a look reads many files
            self.values.remove_unused(self._used_values)

    @abc.abstractmethod
    def _expire(self, now: int, owner: int) -> Iterator[tuple[int, dict[int, int]]]:
        """Do it, but for what they wrote: give how many were looked at, and the attempts of those removed."""

    @abc.abstractmethod
    def usage(self) -> Usage:
        """Return what the store takes, and what of it is to go when."""

    def compact(self, most_bytes: int | None = None) -> bool:
        """Give space back to the disk if most of what it takes is free; return whether it did.

        With `most_bytes` only if no more than that is in use, so that others are not held up for long.
        """
        self._check_open()
        return False

    @abc.abstractmethod
    def backup(self, destination: Path) -> int:
        """Make a store of the same kind at `destination` that holds what this one holds at one moment.

        Returns the number of tasks in it. Others may go on using this store meanwhile. The copy has no
        owners, so what is RUNNING here is PENDING there, by RELEASE. It appears whole or not at all.
        What its calls wrote is copied with it, of running ones as far as they have come, and so are large values.
        Raises StoreError if there is something at `destination` already.
        """

    @abc.abstractmethod
    def check(self) -> list[Problem]:
        """Look at everything, repair what can be, and say what was not as it should be.

        What was repaired on opening counts. Dead owners are forgotten, as by `reap()`, and what is
        RUNNING without a registered owner goes back to PENDING by RELEASE. What was written by tasks that
        are not there is removed, and so are large values to which nothing refers.
        """

    def _check_output(self) -> list[Problem]:
        strays = self.output.remove_strays(self.ids)
        return [Problem(f"{strays} files held what tasks wrote that are gone", True)] if strays else []

    def _check_values(self) -> list[Problem]:
        strays = self._remove_values()
        found = [Problem(f"{strays} files held large values to which nothing refers", True)] if strays else []
        used: dict[str, str] = {}
        for what, data in self.references(results=True):
            used.update(dict.fromkeys(names_in(data), what))
        bad = dict.fromkeys(self.values.missing(used), "missing")
        bad |= dict.fromkeys(used.keys() & set(self.values.damaged()), "damaged")
        folder = self.values.folder
        found += [Problem(f"{folder / it} is {how}, to which {used[it]} refers", False) for it, how in bad.items()]
        return found

    # moving to another store

    @abc.abstractmethod
    def ids(self) -> list[int]:
        """Return the ids of all tasks, oldest first."""

    @abc.abstractmethod
    def stored(self, ids: Sequence[int]) -> list[TaskRow]:
        """Return those of the given tasks that are there, in no special order."""

    @abc.abstractmethod
    def runs(self) -> list[RunRecord]:
        """Return all runs, oldest first."""

    @abc.abstractmethod
    def begin_import(self, source: str) -> str | None:
        """Reserve an empty store for what comes from `source`, until `end_import()`.

        From now on it can only be opened with `importing=True`, so that nobody works on a part. Returns
        what it is reserved for, which is another source if it was reserved before; None, and nothing
        has changed, where it holds tasks, runs or owners already.
        """

    @abc.abstractmethod
    def put(
        self, tasks: Sequence[TaskRow] = (), runs: Sequence[RunRecord] = (), gone: Sequence[int] = (),
        taken: Sequence[Taken] = (),
    ) -> None:  # fmt: skip
        """Have these tasks with their functions, and these runs, as they are given; and the tasks `gone` no more.

        `taken` is all that these runs have taken over.
        What was there under the same id is replaced. What is gone goes first.
        """

    @abc.abstractmethod
    def end_import(self) -> None:
        """Open the store to everybody. What was put is on disk, also through a cut of the power, before that."""

    # looking

    @abc.abstractmethod
    def taken(self) -> list[Taken]:
        """Return what each run has taken over from others, or has run again though it is its own."""

    @abc.abstractmethod
    def calls(self, runs: Collection[int]) -> list[PastCall]:
        """Return the tasks that are of these runs, oldest first."""

    def get(self, task_id: int | str) -> Task:
        """Return the task of that number or shown id. Raises TaskNotFound, or ValueError for what is no id."""
        number = parse_id(task_id) if isinstance(task_id, str) else task_id
        found = self.stored([number]) if 0 <= number < 1 << 63 else []
        if not found:
            raise TaskNotFound(f"{self.path} holds no {format_id(number)}; `omniq-executor list` shows what it holds")
        return found[0].task

    @abc.abstractmethod
    def function(self, digest: bytes) -> Function:
        """Return the stored function of that digest. Raises FunctionLost if there is none."""

    @abc.abstractmethod
    def states(self, ids: Iterable[int]) -> list[TaskState]:
        """Return where the given tasks stand, in no special order; unknown ids are left out."""

    @abc.abstractmethod
    def dependents(self, ids: Collection[int]) -> set[int]:
        """Return what is not finished and comes after one of these tasks, or after one that does, and so on."""

    @abc.abstractmethod
    def by_key(self, queue: str, key: str) -> TaskState | None:
        """Return where the task with that key in that queue stands, or None."""

    @abc.abstractmethod
    def counts(self) -> dict[str, dict[Status, int]]:
        """Return number of tasks per queue and state; states without tasks are left out."""

    @abc.abstractmethod
    def unfinished(self) -> dict[int, int]:
        """Return by run how many tasks of it are not finished; runs without such are left out."""

    @abc.abstractmethod
    def find(
        self,
        status: Status | None = None,
        queue: str | None = None,
        tags: Sequence[str] | None = None,
        limit: int | None = None,
        function: str | None = None,
        *,
        name: str | None = None,
        run: int | None = None,
        since: int | None = None,
    ) -> list[Task]:
        """Return tasks that match all that is given, oldest first; with `limit` the newest that many of them.

        `function` is a whole dotted path, and `name` the whole of it or its end. `since` is a time: the tasks that were
        added after it, or started last, or finished, whichever of these was last.
        """

    @abc.abstractmethod
    def failures(self, queue: str | None = None) -> Iterator[FailedCall]:
        """Give what has FAILED, oldest first, and of a queue if one is given.

        It is read piece by piece while it is asked for. What changes meanwhile is there as it was or as it is.
        """


def of_the_dead(owners: Iterable[Owner], tasks: int) -> list[Problem]:
    """Return what `check()` says of owners that are dead, and of so many tasks whose owners were gone."""
    found = [f"the owner {it.id} of the queue {it.queue!r}, process {it.pid}, is dead" for it in owners if not it.alive]
    found += [f"{tasks} tasks were RUNNING though their owners are gone"] if tasks else []
    return [Problem(what, True) for what in found]
