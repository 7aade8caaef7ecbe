"""The backends that the contract suite runs over, and short ways to say what an owner does with a store.

A backend exists once it passes every test here. What it may do differently is in DEVIATIONS, each with
its reason; a deviation is expected to fail its test, so one that is gone shows up.
"""

import itertools
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omniq_executor import open_store
from omniq_executor.model.codec import encode, join
from omniq_executor.model.task import (
    FINISHED,
    Call,
    Claim,
    ErrorInfo,
    Event,
    Function,
    Options,
    Refused,
    Status,
    Task,
    apply,
    is_waiting,
    tier,
    with_wait,
)
from omniq_executor.stores.base import (
    Batch,
    Leftover,
    Outcome,
    ResultBatch,
    Resume,
    Run,
    RunRecord,
    Store,
    Turn,
    TurnResult,
)


@dataclass(frozen=True)
class Backend:
    """A kind of store."""

    name: str
    filename: str  # which makes it this kind
    let_die: Callable[[Any, int], None]  # makes an owner of this process look as if its process had died

    def address(self, folder: Path) -> Path:
        """Where a test's store is; the folder above it is not there yet."""
        return folder / "runs" / self.filename

    def open(self, address: Path, *, create: bool = True) -> Store:
        return open_store(address, create=create)


def _let_go_of_lock(store: Any, owner: int) -> None:
    store._owners._held.pop(owner).release()


PROOF = os.environ.get("OMNIQ_PROOF") == "1"  # the long run, which is asked of a release
BACKENDS = {
    backend.name: backend
    for backend in (Backend("sqlite", "store.db", _let_go_of_lock), Backend("file", "store", _let_go_of_lock))
}
DEVIATIONS: dict[tuple[str, str], str] = {  # (backend, test function): reason
    ("file", "test_functions_go_that_no_task_uses_while_no_other_owner_knows_them"): (
        "to know which are used an expiry would read every task; they go with a purge"
    ),
}

SQUARE = Function(b"square".ljust(16), "numbers.square", b"pickle of square")
CUBE = Function(b"cube".ljust(16), "numbers.cube", b"pickle of cube")
ERROR = ErrorInfo("ValueError", "no such thing: \u00e9\U0001f40d", "Traceback:\n  ...", b"pickle of it")

tick = itertools.count(1_700_000_000_012_345).__next__  # the time of what a test does: always later
_ids = itertools.count(os.getpid() << 24)  # in another process than other processes' ids


def new_ids(count: int) -> range:
    """Consecutive new ids."""
    ids = [next(_ids) for _ in range(count)]
    return range(ids[0], ids[0] + count)


def call(*args: Any, **kwargs: Any) -> Call:
    """A call as it is stored where JSON does."""
    return Call(str(encode(list(args))), str(encode(kwargs)) if kwargs else None)


def rows(values: Any) -> str:
    """Arguments of calls with one argument each, or results, as one JSON text."""
    return join(f"[{encode(value)}]" for value in values)


class Client:
    """An owner with a handle of its own on the store, and a run."""

    def __init__(
        self, backend: Backend, address: Path, queue: str = "work", resume: Resume = "crashed", **how: Any
    ) -> None:
        self.backend = backend
        self.store = self.entered = backend.open(address)
        self.store.reap(tick())
        self.owner = self.store.enter(queue)
        self.run = self.store.begin_run(queue, self.owner, resume, tick(), **how)

    def turn(self, now: int | None = None, **work: Any) -> TurnResult:
        return self.store.turn(self.owner, self.run, Turn(tick() if now is None else now, **work))

    def add(self, *values: Any, function: Function = SQUARE, claimed: bool = False, key: Any = None) -> list[int]:
        """Add a call for each value; returns their ids."""
        ids = new_ids(len(values))
        calls = [call(value) for value in values]
        self.turn(adds=[Batch(ids[0], len(ids), function, calls=calls, claimed=claimed, key=key)])
        return list(ids)

    def claim(self, most: int = 100, **how: Any) -> list[int]:
        """Claim tasks; returns their ids in the order to run them."""
        return [claimed.id for claimed in self.turn(claim=most, **how).claimed]

    def end(self, event: Event, *ids: int, attempt: int = 1, result: Any = None) -> set[int]:
        """End claims, FAIL with ERROR; returns the ids of those that are refused."""
        error = ERROR if event is Event.FAIL else None
        return self.turn(outcomes=[Outcome(id, attempt, event, result, error) for id in ids]).refused

    def complete_block(self, first: int, values: list[Any], attempt: int = 1) -> set[int]:
        """Complete consecutive tasks; returns the ids of those that are refused."""
        return self.turn(blocks=[ResultBatch(first, len(values), attempt, rows(values))]).refused

    def statuses(self, ids: list[int]) -> list[Status]:
        found = {found.id: found.status for found in self.store.states(ids)}
        return [found[id] for id in ids]

    def stop(self, *, clean: bool = True) -> list[Leftover]:
        """End the run and leave, as an executor that is shut down; returns what it was told to be left."""
        left = self.store.end_run(self.run, clean, tick())
        self.store.leave(self.owner)
        return left

    def die(self) -> None:
        """Look, from now on, as if the process had died."""
        self.backend.let_die(self.entered, self.owner)

    def reopen(self) -> None:
        """Close the handle and open another. The owner stays, as its process does."""
        self.store.close()
        self.store = self.backend.open(Path(self.store.address))

    def close(self) -> None:
        self.store.close()


class Model:
    """What a store should hold: tasks, changed by model.apply() alone."""

    def __init__(self) -> None:
        self.tasks: dict[int, Task] = {}
        self.changed: set[int] = set()  # by the present transaction

    def add(
        self, queue: str, run: int, function: Function, id: int, call: Call, now: int, key: str | None = None,
        options: Options | None = None,
    ) -> None:  # fmt: skip
        self.changed.add(id)
        self.tasks[id] = Task(
            id=id, queue=queue, run=run, func_path=function.path, func=function.pickle, args=call.args,
            kwargs=call.kwargs, enqueued_at=now, key=key, options=options and options.or_none(),
        )  # fmt: skip

    def happen(self, id: int, event: Event, now: int, **what: Any) -> bool:
        """Let something happen to a task; returns whether it may."""
        try:
            self.tasks[id] = apply(self.tasks[id], event, now, **what)
        except (KeyError, Refused):
            return False
        self.changed.add(id)
        return True

    def with_wait(self) -> bool:
        """At the end of a transaction have wait what should; returns whether tasks wait no more."""
        freed = False
        for task in self.tasks.values():
            if task.status is Status.PENDING and task.options and (task.id in self.changed or is_waiting(task)):
                waits = any(self.tasks[id].status not in FINISHED for id in task.options.after)
                self.tasks[task.id] = with_wait(task, waits=waits)
                freed = freed or (is_waiting(task) and not waits)
        self.changed.clear()
        return freed

    def claim(self, id: int, owner: int, now: int) -> int:
        """Claim a task; returns the attempt."""
        attempt = self.tasks[id].attempts + 1
        assert self.happen(id, Event.CLAIM, now, claim=Claim(owner, attempt))
        return attempt

    def pending(self, of_tier: int = 0, **fields: Any) -> list[Task]:
        """What is PENDING in a tier and waits for nothing."""
        tasks = self.all(status=Status.PENDING, **fields)
        return [task for task in tasks if tier(task) == of_tier and not is_waiting(task)]

    def claimable(self, now: int, of_tier: int = 0, **fields: Any) -> list[int]:
        """What may be claimed, in the order of claims."""
        tasks = [task for task in self.pending(of_tier, **fields) if task.eta <= now]
        return [task.id for task in sorted(tasks, key=lambda task: (-task.priority, task.eta, task.id))]

    def release_all(self, owner: int, now: int) -> int:
        """RELEASE what an owner has claimed; returns how many."""
        mine = self.all(owner=owner, status=Status.RUNNING)
        return sum(self.happen(t.id, Event.RELEASE, now, claim=Claim(owner, t.attempts)) for t in mine)

    def orphan_all(self, owner: int, now: int) -> int:
        """ORPHAN what a dead owner has claimed; returns how many."""
        mine = self.all(owner=owner, status=Status.RUNNING)
        return sum(self.happen(task.id, Event.ORPHAN, now) for task in mine)

    def all(self, **fields: Any) -> list[Task]:
        """The tasks with these fields, oldest first."""
        self.with_wait()
        tasks = (self.tasks[id] for id in sorted(self.tasks))
        return [task for task in tasks if all(getattr(task, name) == value for name, value in fields.items())]


class RunsModel:
    """What a store should hold of sessions and runs, beside a Model of its tasks. Times are not compared."""

    def __init__(self, tasks: Model) -> None:
        self.tasks = tasks
        self.runs: dict[int, RunRecord] = {}
        self.owners: set[int] = set()  # that are registered
        self.sessions: set[int] = set()  # likewise
        self.taken: dict[int, set[int]] = {}  # by run, what it has taken over of others

    def is_over(self, run: RunRecord) -> bool:
        """Whether a run's owner and session are gone."""
        return run.owner not in self.owners and run.session not in self.sessions

    def begin(self, run: Run, owner: int, resume: Resume, session: int, context: str) -> list[Task]:
        """Begin a run; returns the tasks that it can take over, oldest first."""
        alike = [it for it in self.runs.values() if (it.queue, it.context) == (run.queue, context)]
        own = [it for it in alike if session and it.session == session and it.owner not in self.owners]
        others = sorted(it for it in alike if self.is_over(it) and it not in own)
        chosen = []
        if resume != "never":
            chosen += [it for it in others if not it.settled]
            chosen += [it for it in own if not it.settled and (it.clean is False or it.ended_at is None)]
        if resume in ("always", "failed"):
            last = [it for it in others if it is others[-1] or (it.session and it.session == others[-1].session)]
            failed = {task.run for task in self.tasks.all(status=Status.FAILED)}
            for together in own, last:
                if resume == "always" or failed.intersection(it.id for it in together):
                    chosen += together
        continues = sorted({id for it in chosen for id in (it.id, *it.continues)})
        assert run.continues == tuple(continues)
        assert run.id > max(self.runs, default=0)
        beside = [it.id for it in alike if session and it.session == session and it.id not in continues]
        assert run.beside == tuple(sorted(beside))
        theirs = self.taken_by(run.beside)
        tasks = [
            task
            for task in self.tasks.all()
            if task.run in continues and task.status is not Status.CANCELLED and task.id not in theirs
        ]
        assert (run.total, run.done) == (len(tasks), sum(task.status is Status.COMPLETED for task in tasks))
        self.runs[run.id] = RunRecord(
            run.id, run.queue, owner, tuple(continues), 0, None, None, False, session, context
        )  # fmt: skip
        return tasks

    def note_taken(self, run: int, id: int) -> None:
        """Note that a run takes a task over."""
        if self.tasks.tasks[id].run != run:
            self.taken.setdefault(run, set()).add(id)

    def taken_by(self, runs: Collection[int]) -> set[int]:
        """What runs have taken over."""
        return set().union(*(self.taken.get(run, ()) for run in runs))

    def end(self, id: int, clean: bool) -> list[Leftover]:
        """End a run."""
        run = self.runs[id]
        self.runs[id] = run._replace(ended_at=0, clean=None if clean else False)
        if run.session or not clean:
            return []
        self.runs[id] = self.runs[id]._replace(clean=True)
        return self._settle([] if run.settled else [id])

    def end_session(self, session: int, clean: bool, keep_broken: bool) -> list[Leftover]:
        """End a session."""
        self.sessions.discard(session)
        own = [run for run in self.runs.values() if run.session == session and not run.settled]
        if not clean:
            for run in own:
                self.runs[run.id] = run._replace(clean=False)
            return []
        broken = [run for run in own if keep_broken and (run.clean is False or run.ended_at is None)]
        for run in own:
            if run not in broken:
                self.runs[run.id] = run._replace(clean=True)
        mended = {id for run in own if run not in broken for id in run.continues}
        kept = {(run.queue, run.context) for run in broken if run.id not in mended}
        return self._settle([run.id for run in own if (run.queue, run.context) not in kept])

    def _settle(self, ids: list[int]) -> list[Leftover]:
        alike = {(self.runs[id].queue, self.runs[id].context) for id in ids}
        settled = [
            run.id for run in self.runs.values()
            if run.id in ids or (not run.settled and self.is_over(run) and (run.queue, run.context) in alike)
        ]  # fmt: skip
        for id in settled:
            self.runs[id] = self.runs[id]._replace(settled=True)
        left = [(id, len(self.tasks.all(status=Status.PENDING, run=id))) for id in sorted(settled)]
        return [Leftover(id, self.runs[id].queue, 0, count, self.runs[id].context) for id, count in left if count]

    def can_take(self, run: Run, id: int) -> bool:
        """Whether a task that was there to be taken over as the run began still is."""
        task = self.tasks.tasks.get(id)
        if task is None or task.status is Status.CANCELLED:
            return False
        is_begun = task.status in (Status.RUNNING, Status.COMPLETED)
        return not is_begun or self.runs[task.run].context == self.runs[run.id].context

    def for_any_worker(self, ids: list[int]) -> list[int]:
        """Those of the tasks that need no initializer."""
        return [id for id in ids if not (of := self.runs.get(self.tasks.tasks[id].run)) or "." not in of.context]

    def adopt(self, run: Run, ids: list[int] | None, any_context: bool = False) -> int:
        """Have tasks be of a run; returns how many."""
        tasks = self.tasks.tasks
        wanted = {id for id, task in tasks.items() if task.queue == run.queue} if ids is None else set[int]()
        left = list(ids or ())
        while left:
            id = left.pop()
            if id in tasks and id not in wanted and tasks[id].status not in FINISHED:
                wanted.add(id)
                left += tasks[id].options.after if tasks[id].options else ()
        busy = {it.id for it in self.runs.values() if it.owner in self.owners} | {run.id}
        mine = self.runs[run.id].context
        alike = {0, *(it.id for it in self.runs.values() if it.context == mine)}
        if ids is not None:
            alike |= {it.id for it in self.runs.values() if it.context.partition(".")[2] == mine.partition(".")[2]}
        anyhow = set(ids or ()) if any_context else set[int]()
        free = [id for id in wanted if tasks[id].status is Status.PENDING and tasks[id].run not in busy]
        adopted = [id for id in free if tasks[id].run in alike or id in anyhow]
        for id in adopted:
            tasks[id] = tasks[id]._replace(run=run.id)
        return len(adopted)
