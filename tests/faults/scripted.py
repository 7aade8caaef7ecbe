"""A session of everything that a store does, as a list of steps, to be run and ended anywhere.

    python scripted.py BACKEND ADDRESS DURABILITY ROUNDS [retry]

runs it in a process. After each step has returned, the step's number is written to stdout: so it is
acknowledged. This is done by writev(), which the tests leave alone, and by nothing else. With `retry` a
step that raises StoreError may have changed nothing, which is looked at, and is done once more.

`Expected` goes through the same steps beside it, on Task objects that model.apply() alone changes. With
it `check()` tells from the last acknowledged step what a store may hold: for each task what it was then,
or what it became in the one step that may have been under way.
"""

import contextlib
import importlib
import os
import pickle
import secrets
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from backends import CUBE, ERROR, SQUARE, Model, call, rows

from omniq_executor import StoreError, open_store, value_files, values
from omniq_executor.model.codec import decode_result
from omniq_executor.model.task import (
    FINISHED,
    LAST_TIER,
    Claim,
    Event,
    Options,
    Status,
    Successor,
    Task,
    format_id,
    succeed,
)
from omniq_executor.stores.base import Batch, Outcome, ResultBatch, Store, Turn

QUEUE = "work"
CONTEXT = "an initializer"
FIRST = 1 << 40  # the id of the first task
PER_ROUND = 100  # ids, more than are used
T0 = 1_700_000_000_000_000  # the time of the first step; each is a second later
LATER = T0 + 3_600_000_000  # when everything is due
LARGE = pickle.dumps(b"x" * 30_000)  # a result that takes many pages
KEPT = b"y" * values.LARGE  # one that is a file
OWN = "0a1b2c3d"  # ends the name of each such file

# What happens only now and then in a store must happen in a session too: by module, what makes it so.
OFTEN: dict[str, dict[str, Any]] = {
    "sqlite": {"sqlite.database.CHECKPOINT_BYTES": 1, "sqlite.database.LOOK_AT_LOG_EVERY": 5},
    "file": {"file.journal.ROTATE_BYTES": 20_000},
}

OPTIONS = Options(max_retries=2, interval=60_000_000, tags=("nightly", "a b"))

Step = tuple[Any, ...]  # a method of Doing and Expected, and its arguments


def steps(rounds: int) -> list[Step]:
    """The session. The first argument is who does it."""
    found: list[Step] = [("open", "a"), ("enter", "a"), ("begin_session", "a"), ("begin", "a")]
    for number in range(rounds):
        found += _round(FIRST + number * PER_ROUND, f"key {number}")
    return found


def _round(o: int, key: str) -> list[Step]:
    """What is done with the tasks from `o` on. It ends with all of them finished."""
    return [
        ("add", "a", range(o, o + 4)),
        ("add", "a", range(o + 4, o + 7), True),
        ("claim", "a", [o, o + 1]),
        ("block", "a", range(o + 4, o + 7)),
        ("add_claimed", "a", o + 7),
        ("turn", "a", [], [(o + 7, Event.COMPLETE, "7")], []),
        # one whose result is a file beside the store
        ("add_claimed", "a", o + 19),
        ("keep", "a", o + 19),
        # new ones, an end and a claim in one transaction
        ("turn", "a", [o + 8, o + 9], [(o, Event.FAIL, None)], [o + 2, o + 3, o + 8]),
        ("turn", "a", [], [(o + 2, Event.RELEASE, None), (o + 3, Event.CRASH, None)], []),
        ("cancel", "a", [o + 2, o + 9]),
        ("retry", "a", [o, o + 2]),
        ("add_keyed", "a", o + 10, key),
        ("claim", "a", [o, o + 2]),
        ("turn", "a", [], [(o, Event.COMPLETE, LARGE), (o + 2, Event.FAIL, None)], []),
        # one that is tried again, and recurs
        ("add_recurring", "a", o + 13),
        ("claim", "a", [o + 13]),
        ("turn", "a", [], [(o + 13, Event.RETRY, None)], []),
        ("claim", "a", [o + 13]),
        ("recur", "a", o + 13, o + 14),
        ("cancel", "a", [o + 14]),
        # another owner, who leaves something behind
        ("open", "b"), ("enter", "b"), ("begin_session", "b"), ("begin", "b"),
        ("add", "b", range(o + 11, o + 13), True),
        ("turn", "b", [], [(o + 11, Event.COMPLETE, "11")], []),
        ("hear", "a", [o + 11]),
        ("end_run", "b", False), ("leave", "b"), ("end_session", "b", False), ("close", "b"),
        # the first one dies, and its run is continued
        ("die", "a"), ("close", "a"),
        ("open", "a"), ("reap", "a"), ("enter", "a"), ("begin_session", "a"), ("begin", "a"),
        ("take_over", "a", [o + 1, o + 2, o + 4, o + 20]),
        ("adopt", "a", [o + 10, o + 12], [o + 10, o + 12]),
        ("claim", "a", [o + 2, o + 10, o + 12], 0, True),
        ("claim", "a", [o + 3]),
        ("claim", "a", [o + 1, o + 8], 1),
        ("block", "a", range(o + 1, o + 4)),
        ("turn", "a", [], [(n, Event.COMPLETE, str(n)) for n in (o + 8, o + 10, o + 12)], []),
        # of two runs of a session, one has left something
        ("open", "b"), ("enter", "b"), ("begin", "b", "a"),
        ("add", "b", range(o + 15, o + 19)),
        ("end_run", "b", True), ("leave", "b"), ("close", "b"),
        ("adopt", "a", None, [o + 15, o + 16, o + 17, o + 18]),
        ("claim", "a", [o + 15], 0, True),
        ("cancel_run", "a", [o + 16, o + 17, o + 18]),
        ("block", "a", range(o + 15, o + 16)),
        ("end_run", "a", True), ("leave", "a"), ("end_session", "a", True), ("settled", "a"),
        ("purge", "a", 20), ("close", "a"),
        ("open", "a"), ("enter", "a"), ("begin_session", "a"), ("begin", "a"),
    ]  # fmt: skip


def _error_of(event: Event) -> Any:
    return ERROR if event in (Event.FAIL, Event.RETRY) else None


class Doing:
    """The steps, on a store."""

    def __init__(self, address: Path, durability: str, expected: "Expected") -> None:
        self.address = address
        self.durability = durability
        self.now = T0
        self.stores: dict[str, Store] = {}
        self.owners: dict[str, int] = {}
        self.sessions: dict[str, int] = {}
        self.runs: dict[str, Any] = {}
        self._expected = expected  # for the attempts of claims

    def open(self, who: str) -> None:
        self.stores[who] = open_store(self.address, durability=self.durability)

    def enter(self, who: str) -> None:
        self.owners[who] = self.stores[who].enter(QUEUE)

    def begin_session(self, who: str) -> None:
        self.sessions[who] = self.stores[who].begin_session(self.now)

    def end_session(self, who: str, clean: bool) -> None:
        self.stores[who].end_session(self.sessions[who], clean, self.now)

    def begin(self, who: str, whose: str | None = None) -> None:
        how: Any = {"session": self.sessions[whose or who], "context": CONTEXT}
        self.runs[who] = self.stores[who].begin_run(QUEUE, self.owners[who], "crashed", self.now, **how)

    def settled(self, who: str) -> None:
        assert all(run.settled for run in self.stores[who].runs())

    def end_run(self, who: str, clean: bool) -> None:
        self.stores[who].end_run(self.runs[who], clean, self.now)

    def leave(self, who: str) -> None:
        self.stores[who].leave(self.owners[who])

    def close(self, who: str) -> None:
        self.stores[who].close()

    def die(self, who: str) -> None:
        """Look as if the process had died."""
        for id in (self.owners[who], self.sessions[who]):
            self.stores[who]._owners._held.pop(id).release()  # type: ignore[attr-defined]

    def reap(self, who: str) -> None:
        self.stores[who].reap(self.now)

    def add(self, who: str, ids: range, claimed: bool = False) -> None:
        text = rows(ids)
        self._turn(who, adds=[Batch(ids[0], len(ids), SQUARE, text=text, claimed=claimed)])

    def add_claimed(self, who: str, id: int) -> None:
        self.stores[who].add_claimed(self.owners[who], self.runs[who], id, CUBE, call(id), self.now)

    def keep(self, who: str, id: int) -> None:
        writer = values.Writer(self.stores[who].values, format_id(id))
        self.stores[who].values.prepare()
        values.here.writer = writer
        try:
            result = values.dumps(KEPT)
        finally:
            values.here.writer = None
        writer.check()
        self.turn(who, [], [(id, Event.COMPLETE, result)], [])

    def add_keyed(self, who: str, id: int, key: str) -> None:
        self._turn(who, adds=[Batch(id, 1, SQUARE, calls=[call(id)], key=key)])

    def add_recurring(self, who: str, id: int) -> None:
        self._turn(who, adds=[Batch(id, 1, CUBE, calls=[call(id)], priority=5, options=OPTIONS)])

    def recur(self, who: str, id: int, next_id: int) -> None:
        successor = Successor(next_id, self.now)
        end = Outcome(id, self._expected.tasks[id].attempts, Event.COMPLETE, "0", successor=successor)
        assert self._turn(who, outcomes=[end]).refused == set()

    def purge(self, who: str, seconds: int) -> None:
        assert self.stores[who].purge(self.now - seconds * 1_000_000) == len(self._expected.finished(seconds))

    def claim(self, who: str, ids: list[int], tier: int = 0, of_run: bool = False) -> None:
        assert [it.id for it in self._turn(who, claim=len(ids), tier=tier, of_run=of_run).claimed] == ids

    def adopt(self, who: str, asked: list[int] | None, ids: list[int]) -> None:
        self.stores[who].reap(self.now)  # as a dispatcher does before: who has left may be registered, if that failed
        assert self.stores[who].adopt(self.runs[who], asked, self.now) == len(ids)

    def cancel_run(self, who: str, ids: list[int]) -> None:
        assert sorted(self.stores[who].cancel_run(self.runs[who].id, self.now)) == ids

    def block(self, who: str, ids: range) -> None:
        attempts = {self._expected.tasks[id].attempts for id in ids}
        work = [ResultBatch(ids[0], len(ids), attempt, rows(ids)) for attempt in attempts]
        if len(attempts) > 1:
            work = [ResultBatch(id, 1, self._expected.tasks[id].attempts, rows([id])) for id in ids]
        assert self._turn(who, blocks=work).refused == set()

    def turn(self, who: str, adds: list[int], ends: list[Any], claims: list[int]) -> None:
        batches = [Batch(id, 1, CUBE, calls=[call(id)]) for id in adds]
        outcomes = [
            Outcome(id, self._expected.tasks[id].attempts, event, result, _error_of(event))
            for id, event, result in ends
        ]
        turned = self._turn(who, adds=batches, outcomes=outcomes, claim=len(claims))
        assert (turned.refused, [it.id for it in turned.claimed]) == (set(), claims)

    def cancel(self, who: str, ids: list[int]) -> None:
        assert sorted(self.stores[who].cancel(ids, self.now)) == ids

    def retry(self, who: str, ids: list[int]) -> None:
        assert sorted(self.stores[who].retry(ids, self.now)) == ids

    def hear(self, who: str, ids: list[int]) -> None:
        self.stores[who].notify(self.owners[who])
        heard = self.stores[who].read_changes(self.owners[who])
        assert set(ids) <= set(heard), (ids, heard)

    def take_over(self, who: str, ids: list[int]) -> None:
        calls = [call(id) for id in ids]
        found = self.stores[who].take_over(self.runs[who], SQUARE, calls, self.now)
        assert [it and it.id for it in found] == [id if id in self._expected.tasks else None for id in ids]

    def _turn(self, who: str, **work: Any) -> Any:
        return self.stores[who].turn(self.owners[who], self.runs[who], Turn(self.now, **work))


class Expected(Model):
    """The steps, on what a store should hold; and all that each task has ever been."""

    OWNERS = {"a": 1, "b": 2}  # noqa: RUF012 - the real ids are random

    def __init__(self) -> None:
        super().__init__()
        self.now = T0
        self.histories: dict[int, list[Task | None]] = {}

    def step(self, step: Step) -> None:
        name, who, *args = step
        getattr(self, name, self._nothing)(who, *args)

    def _nothing(self, *_: Any) -> None:
        """What changes no task."""

    def happen(self, id: int, event: Event, now: int, **what: Any) -> bool:
        assert super().happen(id, event, now, **what), (id, event)
        self.histories[id].append(self.tasks[id])
        return True

    def _add(self, function: Any, id: int, key: str | None = None, owner: int | None = None) -> None:
        super().add(QUEUE, 0, function, id, call(id), self.now, key)
        if owner is None:
            self.histories[id] = [self.tasks[id]]
        else:  # claimed as it is added: it never was PENDING to anybody
            self.histories[id] = []
            super().claim(id, owner, self.now)

    def add(self, who: str, ids: range, claimed: bool = False) -> None:  # type: ignore[override]
        for id in ids:
            self._add(SQUARE, id, owner=self.OWNERS[who] if claimed else None)

    def add_claimed(self, who: str, id: int) -> None:
        self._add(CUBE, id, owner=self.OWNERS[who])

    def keep(self, who: str, id: int) -> None:
        data = pickle.dumps(KEPT, 5)
        name = f"{format_id(id)}.{len(data)}.{zlib.crc32(data):08x}.{OWN}"
        self._end(who, id, Event.COMPLETE, pickle.dumps(values.Reference(name, [], ""), 5))

    def add_keyed(self, who: str, id: int, key: str) -> None:
        self._add(SQUARE, id, key)

    def claim(self, who: str, ids: list[int], *_: Any) -> None:  # type: ignore[override]
        for id in ids:
            super().claim(id, self.OWNERS[who], self.now)

    def block(self, who: str, ids: range) -> None:
        for id in ids:
            self._end(who, id, Event.COMPLETE, str(id))

    def turn(self, who: str, adds: list[int], ends: list[Any], claims: list[int]) -> None:
        for id in adds:
            self._add(CUBE, id)
        for end in ends:
            self._end(who, *end)
        self.claim(who, claims)

    def _end(self, who: str, id: int, event: Event, result: Any) -> None:
        claim = Claim(self.OWNERS[who], self.tasks[id].attempts)
        self.happen(id, event, self.now, claim=claim, result=result, error=_error_of(event))

    def add_recurring(self, who: str, id: int) -> None:
        self._add(CUBE, id)
        self.tasks[id] = self.tasks[id]._replace(priority=5, options=OPTIONS)
        self.histories[id] = [self.tasks[id]]

    def recur(self, who: str, id: int, next_id: int) -> None:
        self._end(who, id, Event.COMPLETE, "0")
        self.tasks[next_id] = succeed(self.tasks[id], Successor(next_id, self.now), self.now)
        self.histories[next_id] = [self.tasks[next_id]]

    def finished(self, seconds: int) -> list[int]:
        """What had finished so long ago."""
        before = self.now - seconds * 1_000_000
        return [id for id, task in self.tasks.items() if task.status in FINISHED and (task.finished_at or 0) < before]

    def purge(self, who: str, seconds: int) -> None:
        for id in self.finished(seconds):
            del self.tasks[id]
            self.histories[id].append(None)

    def cancel(self, who: str, ids: list[int]) -> None:
        for id in ids:
            self.happen(id, Event.CANCEL, self.now)

    def retry(self, who: str, ids: list[int]) -> None:
        for id in ids:
            self.happen(id, Event.MANUAL_RETRY, self.now)

    def cancel_run(self, who: str, ids: list[int]) -> None:
        self.cancel(who, ids)

    def leave(self, who: str) -> None:
        self.release_all(self.OWNERS[who], self.now)

    def reap(self, who: str) -> None:
        self.orphan_all(self.OWNERS[who], self.now)  # of an owner of that name who died

    def take_over(self, who: str, ids: list[int]) -> None:
        self.retry(who, [id for id in ids if id in self.tasks and self.tasks[id].status is Status.FAILED])


def run(address: Path, durability: str, rounds: int, acknowledge: Callable[[int], None], retry: bool) -> None:
    """Run the session, and tell of each step that has returned."""
    expected = Expected()
    doing = Doing(address, durability, expected)
    for number, step in enumerate(steps(rounds)):
        doing.now = expected.now = T0 + number * 1_000_000
        name, who, *args = step
        try:
            getattr(doing, name)(who, *args)
        except StoreError as error:
            if not retry:
                raise
            print(f"step {number}, {name}: {error}", file=sys.stderr)  # noqa: T201
            if name != "open":
                held = {task.id: task for task in doing.stores[who].find()} if name != "close" else None
                assert held is None or differences(held, expected.tasks) == [], f"{name} raised, and changed something"
            getattr(doing, name)(who, *args)
        expected.step(step)
        acknowledge(number)


def make_rare_things_happen(backend: str) -> None:
    """Have what happens only now and then happen in every session, and the same in each."""
    for path, value in OFTEN.get(backend, {}).items():
        path, _, name = path.rpartition(".")
        module = importlib.import_module(f"omniq_executor.stores.{path}")
        assert hasattr(module, name), f"{path} has no {name} any more"
        setattr(module, name, value)
    numbers = iter(range(1_000_000_000, 2_000_000_000, 7_919))
    value_files._new_ending = lambda: OWN  # likewise
    secrets.randbits = lambda bits: next(numbers) % (1 << bits)  # owners' ids, whose length is that of what is written


# --- What a store may hold afterwards ---


def differences(held: dict[int, Task], expected: dict[int, Task]) -> list[str]:
    """What the store has otherwise than expected."""
    found = [f"{id}: {_shown(held.get(id))} instead of {_shown(expected.get(id))}" for id in {*held, *expected}
             if _comparable(held.get(id)) != _comparable(expected.get(id))]  # fmt: skip
    return sorted(found)


def _comparable(task: Task | None) -> Any:
    """A task without what differs from session to session: the ids of owners and runs."""
    return task and task._replace(run=0, owner=None if task.owner is None else 0)


def _shown(task: Task | None) -> str:
    return "nothing" if task is None else f"{task.status.name} ({task})"


class Allowed:
    """What a store may hold when so many steps of a session were acknowledged."""

    def __init__(self, rounds: int, acknowledged: int) -> None:
        script = steps(rounds)
        self.before = Expected()
        for number, step in enumerate(script[:acknowledged]):
            self.before.now = T0 + number * 1_000_000
            self.before.step(step)
        marks = {id: len(history) for id, history in self.before.histories.items()}
        self._tasks_before = dict(self.before.tasks)
        self.under_way = script[acknowledged] if acknowledged < len(script) else None
        if self.under_way is not None:
            self.before.now = T0 + acknowledged * 1_000_000
            self.before.step(self.under_way)
        self._tasks_after = dict(self.before.tasks)
        self._histories = {id: history[marks.get(id, 0) :] for id, history in self.before.histories.items()}

    def problems(self, held: dict[int, Task]) -> list[str]:
        """What is wrong with what a store holds."""
        known = {**self._tasks_before, **self._tasks_after}
        found = [f"invented: {_shown(held[id])}" for id in held.keys() - known.keys()]
        for id in known:
            may_be = [self._tasks_before.get(id), *self._histories[id]]
            if _comparable(held.get(id)) not in map(_comparable, may_be):
                found.append(f"{id}: {_shown(held.get(id))} instead of one of {[_shown(task) for task in may_be]}")
        if not found and differences(held, self._tasks_before) and differences(held, self._tasks_after):
            found.append(f"step {self.under_way} is there in part: {differences(held, self._tasks_after)}")
        return found

    def lost(self, held: dict[int, Task]) -> int:
        """How many tasks are not what was acknowledged, nor what they may have become since."""
        return sum(
            _comparable(held.get(id)) not in map(_comparable, [task, *self._histories[id]])
            for id, task in self._tasks_before.items()
        )


def _is_kept(store: Store, task: Task) -> bool:
    """Whether the result of a task that is a file can be had."""
    if not isinstance(task.result, bytes) or not values.is_reference(task.result):
        return True
    try:
        return bool(decode_result(task.result, lambda: store.values) == KEPT)
    except StoreError:
        return False


def finish(store: Store) -> Iterator[Task]:
    """Have a new owner work off all that is left, and something new; gives the tasks that it completed."""
    owner = store.enter(QUEUE)
    open_runs = {run.id for run in store.runs() if not run.settled}
    run = store.begin_run(QUEUE, owner, "crashed", LATER, context=CONTEXT)
    assert open_runs <= set(run.continues), "a session of the dead process counts as one that goes on"
    new = FIRST - 1
    store.turn(owner, run, Turn(LATER, adds=[Batch(new, 1, SQUARE, calls=[call("new")])]))
    claimed = [
        it for tier in range(LAST_TIER + 1) for it in store.turn(owner, run, Turn(LATER, claim=1000, tier=tier)).claimed
    ]
    assert new in {it.id for it in claimed}
    ends = [Outcome(it.id, it.attempt, Event.COMPLETE, str(it.id)) for it in claimed]
    assert store.turn(owner, run, Turn(LATER, outcomes=ends)).refused == set()
    for it in claimed:
        yield store.get(it.id)
    store.end_run(run, True, LATER)
    store.leave(owner)


def check(address: Path, rounds: int, acknowledged: int) -> list[str]:
    """Open a store that a session has left behind, and say what is wrong with it."""
    allowed = Allowed(rounds, acknowledged)
    with contextlib.closing(open_store(address)) as store:
        found = allowed.problems({task.id: task for task in store.find()})
        if any(owner.alive for owner in store.owners()):
            found.append("an owner of the dead process counts as alive")
        found += [f"not what was kept: {task}" for task in store.find() if not _is_kept(store, task)]
        store.reap(LATER)
        left = store.find()
        found += [f"still claimed by a dead owner: {task}" for task in left if task.status is Status.RUNNING]
        if store.owners():
            found.append(f"an owner that is dead is still there: {store.owners()}")
        done = {task.id for task in finish(store)}
        if missing := {task.id for task in left if task.status is Status.PENDING} - done:
            found.append(f"PENDING, and not claimed by who comes next: {missing}")
    with contextlib.closing(open_store(address, create=False)) as store:
        store.purge(0)  # for what was written and never referred to
        found += [f"still not as it should be: {problem}" for problem in store.check()]
        for task in store.find():
            if task.status is not Status.COMPLETED and (
                task.id in done or task.status in (Status.PENDING, Status.RUNNING)
            ):
                found.append(f"not finished in the end: {task}")
    return found


def main() -> None:
    backend, address, durability, rounds, *retry = sys.argv[1:]
    make_rare_things_happen(backend)

    def acknowledge(number: object) -> None:
        os.writev(1, [f"{number}\n".encode()])

    acknowledge("begin")
    run(Path(address), durability, int(rounds), acknowledge, bool(retry))
    acknowledge("end")


if __name__ == "__main__":
    main()
