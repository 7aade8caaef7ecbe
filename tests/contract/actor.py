"""A process that works on a store, at random, and notes all that it does; histories.py checks the notes.

It does what dispatchers do, and what they should not: it ends claims that are over or that are others',
lets its lock go as if it had died and goes on all the same, and its clock jumps.
"""

import itertools
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends import BACKENDS, SQUARE, Backend, call, new_ids
from histories import Op, failure

from omniq_executor.errors import StoreError
from omniq_executor.model.codec import encode
from omniq_executor.model.task import LAST_TIER, Event
from omniq_executor.stores.base import Batch, Outcome, ResultBatch, Run, Store, Turn, TurnResult, now
from omniq_executor.stores.file import journal, tasks as file
from omniq_executor.stores.sqlite import database as sqlite

PATIENCE_S = 0.2  # every timeout of the stores of actors
STEPS = 250
DAY = 86_400 * 10**6
EVENTS = [Event.COMPLETE] * 5 + [Event.FAIL, Event.RELEASE, Event.CRASH]


@dataclass(frozen=True)
class Held:
    """A claim that an actor was given."""

    owner: int
    task: int
    attempt: int


class Actor:
    """An owner with a log."""

    owner: int
    run: Run
    entered: Store

    def __init__(self, backend: Backend, address: Path, log: Path, queue: str, seed: int) -> None:
        self.backend, self.address, self.queue = backend, address, queue
        self.chance = random.Random(seed)
        self.held: list[Held] = []
        self.lost: list[Held] = []  # claims that are over, of this owner or of one that it speaks for
        self.looked: list[list[Any]] = []
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._numbers = itertools.count()
        self.store = self.patiently(lambda: backend.open(address))

    def patiently(self, open_it: Callable[[], Any]) -> Any:
        """Try until no other process has the store for longer than is waited for it."""
        while True:
            try:
                return open_it()
            except StoreError as error:
                _check_is_timeout(error)

    # what it notes

    def note(self, do: str, ask: Callable[[], Any], answer: Callable[[Any], dict[str, Any]], **asked: Any) -> Any:
        """Do something and note it. Returns what was answered, or None if that was a StoreError."""
        number = next(self._numbers)
        self._write(number, do, asked)
        try:
            result = ask()
        except StoreError as error:
            _check_is_timeout(error)
            self._write(number, "", {"raised": str(error)})
            return None
        self._write(number, "", answer(result))
        return result

    def _write(self, number: int, do: str, what: dict[str, Any]) -> None:
        line = json.dumps([number, do, time.monotonic_ns(), what])
        os.write(self._log, f"{line}\n".encode())

    # who it is

    def enter(self) -> None:
        """Be a new owner."""
        owner = None
        while owner is None:
            owner = self.note("enter", lambda: self.store.enter(self.queue), lambda it: {"owner": it}, queue=self.queue)
        self.owner, self.entered = owner, self.store
        run = None
        while run is None:
            run = self.note("begin", lambda: self.store.begin_run(self.queue, owner, "never", now()), lambda _: {})
        self.run = run

    def leave(self) -> None:
        """Be no owner any more."""
        while self.note("leave", lambda: self.store.leave(self.owner) or True, lambda _: {}, owner=self.owner) is None:
            pass
        self.lost += self.held
        self.held.clear()

    def let_lock_go(self) -> None:
        """Go on under another name, after this one looks dead."""
        self.note("die", lambda: self.backend.let_die(self.entered, self.owner), lambda _: {}, owner=self.owner)
        self.lost += self.held
        self.held.clear()
        self.enter()

    def reopen(self) -> None:
        """Work on through another handle."""
        self.store.close()
        self.store = self.patiently(lambda: self.backend.open(self.address))

    # the work

    def turn(
        self, adds: int = 0, claimed: bool = False, ends: Iterable[tuple[Held, Event]] = (), most: int = 0,
        owner: int | None = None, block: bool = False, alone: bool = False, tier: int = 0,
    ) -> TurnResult | None:  # fmt: skip
        """Take a turn. Each outcome has a value of its own, by which it is known again in the store."""
        by = self.owner if owner is None else owner
        time_ = now() + self.chance.choice([0, 0, 0, -DAY, DAY])
        ids = new_ids(adds) if adds else range(0)
        calls = [call(self.chance.randrange(100)) for _ in ids]
        batches = [Batch(ids[0], adds, SQUARE, calls=calls, claimed=claimed)] if adds else []
        values = [(held, event, f"{by}/{held.task}/{held.attempt}/{self.chance.random()}") for held, event in ends]
        outcomes, blocks = [], []
        if block:
            text = "[" + ",".join(f"[{encode(value)}]" for *_, value in values) + "]"
            blocks = [ResultBatch(values[0][0].task, len(values), values[0][0].attempt, text)]
        else:
            outcomes = [
                Outcome(
                    held.task, held.attempt, event, encode(value) if event is Event.COMPLETE else None,
                    failure(value) if event is Event.FAIL else None,
                ) for held, event, value in values
            ]  # fmt: skip

        def ask() -> TurnResult:
            if alone:
                self.store.add_claimed(by, self.run, ids[0], SQUARE, calls[0], time_)
                return TurnResult()
            return self.store.turn(by, self.run, Turn(time_, batches, blocks, outcomes, most, tier=tier))

        def answer(turned: TurnResult) -> dict[str, Any]:
            return {"claimed": [[it.id, it.attempt] for it in turned.claimed], "refused": sorted(turned.refused)}

        turned: TurnResult | None = self.note(
            "turn", ask, answer, owner=by, queue=self.run.queue, run=self.run.id, now=time_, most=most,
            tier=tier,
            adds=[[id, it.args, claimed] for id, it in zip(ids, calls, strict=True)],
            ends=[
                [held.task, held.attempt, event.value, encode(value) if event is Event.COMPLETE else value]
                for held, event, value in values
            ],
        )  # fmt: skip
        if turned is not None:
            over = [held for held, *_ in values if held in self.held]
            self.held = [held for held in self.held if held not in over]
            self.lost = (self.lost + over)[-20:]
            self.held += [Held(by, id, 1) for id in ids if claimed]
            self.held += [Held(by, it.id, it.attempt) for it in turned.claimed]
        return turned

    def some_ends(self) -> list[tuple[Held, Event]]:
        """Ends of some of its claims, of one for each task: an end that is refused is told by its task."""
        some = self.chance.sample(self.held, min(len(self.held), self.chance.randint(1, 3)))
        return [(held, self.chance.choice(EVENTS)) for held in {held.task: held for held in some}.values()]

    def complete_block(self) -> None:
        """Complete tasks that follow each other, whoever has them."""
        if self.held:
            first = self.chance.choice(self.held)
            tasks = range(first.task, first.task + self.chance.randint(1, 3))
            self.turn(ends=[(Held(self.owner, task, first.attempt), Event.COMPLETE) for task in tasks], block=True)

    def end_late(self) -> None:
        """End a claim that is over, in the name of whoever had it."""
        if self.lost:
            held = self.chance.choice(self.lost)
            self.turn(ends=[(held, self.chance.choice(EVENTS))], owner=held.owner)

    def end_for_another(self) -> None:
        """End what another has claimed."""
        theirs = [Held(self.owner, task, attempts) for task, _, attempts, owner in self.looked if owner != self.owner]
        if theirs:
            self.turn(ends=[(self.chance.choice(theirs), self.chance.choice(EVENTS))])

    def look(self) -> None:
        """See what the newest tasks are."""
        looked = self.note(
            "look",
            lambda: [[task.id, task.status, task.attempts, task.owner] for task in self.store.find(limit=8)],
            lambda tasks: {"tasks": tasks},
        )
        self.looked = looked or []

    def change(self, do: str) -> None:
        """Cancel some tasks, those that run too if it is to "abort", or retry them."""
        tasks = [task for task, *_ in self.chance.sample(self.looked, min(3, len(self.looked)))]
        time_ = now()
        change = {
            "cancel": lambda: self.store.cancel(tasks, time_),
            "abort": lambda: self.store.cancel(tasks, time_, running=True),
            "retry": lambda: self.store.retry(tasks, time_),
        }[do]
        self.note(do, change, lambda changed: {"tasks": changed}, tasks=tasks, now=time_)

    def reap(self) -> None:
        """Release what the dead had."""
        self.note("reap", lambda: self.store.reap(now()), lambda _: {})

    def step(self) -> None:
        """Do something."""
        some = self.chance.randint
        steps: list[tuple[int, Callable[[], Any]]] = [
            (4, lambda: self.turn(adds=some(1, 3), claimed=self.chance.random() < 0.3, most=some(0, 2))),
            (2, lambda: self.turn(adds=1, claimed=True, alone=True)),
            (8, lambda: self.turn(most=some(1, 3), tier=self.chance.choice([0, 0, *range(LAST_TIER + 1)]))),
            (10, lambda: self.turn(ends=self.some_ends())),
            (4, lambda: self.turn(adds=some(0, 2), ends=self.some_ends(), most=some(0, 3))),
            (2, self.complete_block),
            (4, self.end_late),
            (3, self.end_for_another),
            (4, self.look),
            (1, lambda: self.change("cancel")),
            (1, lambda: self.change("abort")),
            (2, lambda: self.change("retry")),
            (3, self.reap),
            (1, self.let_lock_go),
            (1, self.reopen),
            (1, lambda: (self.leave(), self.enter())),
        ]
        weights, calls = zip(*steps, strict=True)
        self.chance.choices(calls, weights)[0]()

    def finish_all(self) -> None:
        """Complete everything that is left."""
        self.reap()
        for tier in range(LAST_TIER + 1):
            self.turn(ends=[(held, Event.COMPLETE) for held in self.held], most=1000, tier=tier)
            while self.held:
                self.turn(ends=[(held, Event.COMPLETE) for held in self.held], most=1000, tier=tier)

    def close(self) -> None:
        """Let go of the handle and the log."""
        self.store.close()
        os.close(self._log)


def act(backend: str, address: str, log: str, queue: str, seed: int, victim: Iterable[Op] = ()) -> None:
    """Be such a process: from a line on stdin on until stdin ends."""
    sqlite.BUSY_TIMEOUT_S = file.BUSY_TIMEOUT_S = PATIENCE_S
    sqlite.CHECKPOINT_BYTES, journal.ROTATE_BYTES = 1 << 16, 1 << 15  # so that both happen
    actor = Actor(BACKENDS[backend], Path(address), Path(log), queue, seed)
    actor.lost += _claims(victim)
    print("ready", flush=True)  # noqa: T201 - to whoever started it
    sys.stdin.readline()
    actor.enter()
    for _ in range(STEPS):
        actor.step()
    print("done", flush=True)  # noqa: T201
    sys.stdin.read()
    if actor.chance.random() < 0.5:
        actor.leave()
    actor.close()


def _check_is_timeout(error: StoreError) -> None:
    """Nothing else is allowed to go wrong."""
    if "has held it" not in str(error) and "is being opened" not in str(error):
        raise error


def _claims(ops: Iterable[Op]) -> list[Held]:
    """What the answers to another gave it."""
    given = []
    for op in ops:
        if op.do == "turn" and op.answer and not op.raised:
            given += [Held(op.asked["owner"], task, 1) for task, _, claimed in op.asked["adds"] if claimed]
            given += [Held(op.asked["owner"], task, attempt) for task, attempt in op.answer["claimed"]]
    return given
