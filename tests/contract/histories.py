"""Histories of processes that shared a store, and the check whether they can be true.

Each process notes what it asks of the store, when, and what was answered. Of each task there must then be
an order of everything that touched it which begins with nothing and ends in what the store holds, in which
every call happens between its two stamps, and in which model.apply() allows what was accepted and refuses
what was refused. That is the search for a linearization (Wing and Gong, 1993), task by task. It leaves no
room for a claim that was given twice, for claims that overlap, attempts that are skipped, outcomes that are
accepted after their claim was lost or refused while it was held, nor for an owner who lives and is robbed.

A call that was never answered, since its process was killed, may have happened or not. One that raised
must have done nothing.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backends import SQUARE

from omniq_executor.model.task import Claim, ErrorInfo, Event, Refused, Status, Task, apply, tier


@dataclass(frozen=True)
class Op:
    """Something that a process did, or that happened to it. Stamps are of a clock that all processes share.

    do      asked                                        answer
    turn    owner, queue, run, now, adds, ends, most,    claimed: [[task, attempt]], refused: [task]
            tier
    cancel  tasks, now                                   tasks
    abort   tasks, now                                   tasks: cancelled, also those that ran
    retry  tasks, now                                   tasks
    look                                                 tasks: [[task, status, attempts, owner]]
    reap
    enter   queue                                        owner
    leave   owner
    die     owner                                        (from here on its death can be proved)

    adds are [[task, args, claimed]], and ends are [[task, attempt, event, value]].
    """

    actor: int
    do: str
    begin: int
    end: int  # when it was answered; without an answer, when the process was gone
    asked: dict[str, Any] = field(default_factory=dict)
    answer: dict[str, Any] | None = field(default_factory=dict)  # None: there was none

    @property
    def raised(self) -> bool:
        """Whether it ended in a StoreError."""
        return self.answer is not None and "raised" in self.answer


def failure(value: str) -> ErrorInfo:
    """The error of an outcome that says so."""
    return ErrorInfo("ValueError", value, "", None)


def read(path: Path, actor: int, gone: tuple[int, int]) -> list[Op]:
    """What a process noted. It went in the interval `gone`, and those of its owners that had not left died then."""
    asked: dict[int, tuple[str, int, dict[str, Any]]] = {}
    answered: dict[int, tuple[int, dict[str, Any]]] = {}
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("\n"):  # else the process was killed as it wrote it
            number, do, at, what = json.loads(line)
            if do:
                asked[number] = do, at, what
            else:
                answered[number] = at, what
    ops = []
    for number, (do, begin, what) in asked.items():
        end, answer = answered.get(number, (gone[1], None))
        if do == "begin":  # of a run: it reaps, in a transaction of its own, and what raises may have done that
            do, answer = "reap", None if answer is None or "raised" in answer else answer
        ops.append(Op(actor, do, begin, end, what, answer))
    entered = {op.answer["owner"] for op in ops if op.do == "enter" and op.answer and not op.raised}
    over = {op.asked["owner"] for op in ops if op.do in ("leave", "die") and op.answer == {}}
    return ops + [Op(actor, "die", *gone, {"owner": owner}) for owner in sorted(entered - over)]


def check(ops: Iterable[Op], final: Iterable[Task]) -> list[str]:
    """What is wrong with a history that left these tasks; nothing, if the list is empty."""
    history = _History(ops)
    held = {task.id: task for task in final}
    problems = list(_plain_problems(history, held))
    for task in sorted(history.added.keys() | held.keys()):
        touching = history.touching(task)
        if not _is_possible(history, touching, task, held.get(task)):
            shown = "".join(f"\n    {_shown(op, task)}" for op in touching)
            problems.append(f"{task}: no order of these leads to {held.get(task)}{shown}")
    return problems


def sums(ops: Iterable[Op]) -> Counter[str]:
    """How much happened."""
    total: Counter[str] = Counter()
    for op in ops:
        total["calls"] += 1
        total["raised"] += op.raised
        total["unanswered"] += op.answer is None
        if op.do == "turn" and op.answer and not op.raised:
            total["tasks"] += len(op.asked["adds"])
            total["claims"] += len(op.answer["claimed"])
            total["outcomes"] += len(op.asked["ends"])
            total["refused"] += len(op.answer["refused"])
    return total


class _History:
    """What happened, by task. What raised is not in it, since it has done nothing, but for a leave."""

    def __init__(self, ops: Iterable[Op]) -> None:
        ops = list(ops)
        self.half_left: dict[int, Op] = {}
        """Owners that could not leave: they are taken for dead from then on, with nothing under way."""
        for op in ops:
            if op.do == "leave" and op.raised:
                self.half_left.setdefault(op.asked["owner"], op)
        self.ops = sorted((op for op in ops if not op.raised), key=lambda op: op.begin)
        self.deaths = {op.asked["owner"]: op for op in self.ops if op.do == "die"}
        self.added: dict[int, Op] = {}
        # places in `ops`
        self._reaps = [i for i, op in enumerate(self.ops) if op.do == "reap"]
        self._leaves = {op.asked["owner"]: i for i, op in enumerate(self.ops) if op.do == "leave"}
        self._may_have_claimed: defaultdict[str, set[int]] = defaultdict(set)  # by queue: what was not answered
        self._by_task: defaultdict[int, set[int]] = defaultdict(set)
        for i, op in enumerate(self.ops):
            for task in _named(op):
                self._by_task[task].add(i)
            if op.do == "turn":
                self.added.update((task, op) for task, *_ in op.asked["adds"])
                if op.answer is None and op.asked["most"]:
                    self._may_have_claimed[op.asked["queue"]].add(i)

    def touching(self, task: int) -> list[Op]:
        """All that may have changed a task, or that saw it, by the time of its begin."""
        places = set(self._by_task[task])
        if task in self.added:
            places |= self._may_have_claimed[self.added[task].asked["queue"]]
        owners = {self.ops[i].asked["owner"] for i in places if self.ops[i].do == "turn"}
        places |= {self._leaves[owner] for owner in owners & self._leaves.keys()}
        deaths = [ends[owner].begin for ends in (self.deaths, self.half_left) for owner in owners & ends.keys()]
        if deaths:
            places |= {i for i in self._reaps if self.ops[i].end >= min(deaths)}
        return [self.ops[i] for i in sorted(places)]


def _named(op: Op) -> set[int]:
    """The tasks that a call or its answer names."""
    if op.do == "turn":
        named = [*op.asked["adds"], *op.asked["ends"], *(op.answer["claimed"] if op.answer else ())]
    elif op.do == "look":
        named = op.answer["tasks"] if op.answer else []
    else:
        return set(op.asked.get("tasks", ()))
    return {task for task, *_ in named}


def _plain_problems(history: _History, held: Mapping[int, Task]) -> Iterator[str]:
    """What can be told without a search."""
    for task in held:
        if task not in history.added:
            yield f"{task}: is in the store, though no call that may have succeeded has added it"
        if held[task].status in (Status.PENDING, Status.RUNNING):
            yield f"{task}: was left {held[task].status.name}"
    given: Counter[tuple[int, int]] = Counter()
    completed: Counter[int] = Counter()
    for op in history.ops:
        if op.do != "turn":
            continue
        added = [task for task, *_ in op.asked["adds"]]
        there = [task for task in added if task in held]
        if there != added and (there or op.answer is not None):
            yield f"{added} were added, and of these the store holds {there}"
        if op.answer is not None:
            refused = op.answer["refused"]
            given.update((task, attempt) for task, attempt in op.answer["claimed"])
            ends = [(task, Event(event)) for task, _, event, _ in op.asked["ends"] if task not in refused]
            completed.update(task for task, event in ends if event is Event.COMPLETE)
    yield from (f"{task}: attempt {n} was claimed {times} times" for (task, n), times in given.items() if times > 1)
    yield from (f"{task}: {times} results were accepted" for task, times in completed.items() if times > 1)


def _is_possible(history: _History, ops: Sequence[Op], number: int, final: Task | None) -> bool:
    """Whether an order of `ops`, which are sorted by their begin, leads from nothing to the final task."""
    stack: list[tuple[int, Task | None]] = [((1 << len(ops)) - 1, None)]  # bit i: ops[i] has not happened yet
    seen = set(stack)
    while stack:
        left, task = stack.pop()
        window: list[int] = []  # what may happen next: what begins before anything that is left has ended
        horizon = None
        for i in _bits(left):
            if horizon is not None and ops[i].begin > horizon:
                break
            window.append(i)
            if ops[i].answer is not None:
                horizon = ops[i].end if horizon is None else min(horizon, ops[i].end)
        if horizon is None and task == final:
            return True
        for i in window:
            if horizon is not None and ops[i].begin > horizon:
                break
            rest = left & ~(1 << i)
            for j in window:
                if ops[j].answer is None and ops[j].end < ops[i].begin:
                    rest &= ~(1 << j)  # its process was gone before: it has not happened
            for after in _outcomes(history, ops[i], number, task):
                if (rest, after) not in seen:
                    seen.add((rest, after))
                    stack.append((rest, after))
    return False


def _bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def _outcomes(history: _History, op: Op, number: int, task: Task | None) -> list[Task | None]:
    """What a task may be after a call, if it was `task` before; nothing, if the call cannot have happened then."""
    if op.do == "turn":
        return _after_turn(op, number, task)
    if op.do in ("cancel", "abort", "retry"):
        accepted = number in op.answer["tasks"] if op.answer is not None else None
        is_pending = task is not None and task.status is Status.PENDING
        event = {"cancel": Event.CANCEL, "abort": Event.ABORT, "retry": Event.MANUAL_RETRY}[op.do]
        event = Event.CANCEL if event is Event.ABORT and is_pending else event
        return _happen(task, event, op.asked["now"], accepted)
    if op.do == "look" and op.answer is not None:
        (saw,) = [rest for seen, *rest in op.answer["tasks"] if seen == number]
        return [task] if task is not None and saw == [task.status, task.attempts, task.owner] else []
    if task is None or task.status is not Status.RUNNING or task.owner is None:
        return [task]
    if op.do == "leave" and op.asked["owner"] == task.owner:
        return [apply(task, Event.RELEASE, 0, claim=Claim(task.owner, task.attempts))]
    left = history.half_left.get(task.owner)
    if op.do == "reap" and left is not None and left.begin <= op.end:
        released = apply(task, Event.RELEASE, 0, claim=Claim(task.owner, task.attempts))
        return [released] if left.end < op.begin else [released, task]
    death = history.deaths.get(task.owner)
    if op.do == "reap" and death is not None and death.begin <= op.end:
        # It looked at some time after its begin who is dead.
        orphan = apply(task, Event.ORPHAN, 0)
        return [orphan] if death.end < op.begin else [orphan, task]
    return [task]


def _after_turn(op: Op, number: int, task: Task | None) -> list[Task | None]:
    owner, now = op.asked["owner"], op.asked["now"]
    for added, args, claimed in op.asked["adds"]:
        if added == number:
            if task is not None:
                return []
            task = Task(
                id=number, queue=op.asked["queue"], run=op.asked["run"], func_path=SQUARE.path, func=SQUARE.pickle,
                args=args, enqueued_at=now,
            )  # fmt: skip
            if claimed:
                task = apply(task, Event.CLAIM, now, claim=Claim(owner, 1))
    tasks = [task]
    for ended, attempt, name, value in op.asked["ends"]:
        if ended == number:
            accepted = number not in op.answer["refused"] if op.answer is not None else None
            what = {"complete": {"result": value}, "fail": {"error": failure(value)}}.get(name, {})
            tasks = _happen(task, Event(name), now, accepted, claim=Claim(owner, attempt), **what)
    if op.answer is not None:
        for claimed_task, attempt in op.answer["claimed"]:
            if claimed_task == number:
                claim = Claim(owner, attempt)
                there = [task for task in tasks if task is not None and tier(task) == op.asked["tier"]]
                tasks = [t for task in there for t in _happen(task, Event.CLAIM, now, True, claim=claim)]
    elif op.asked["most"]:
        for task in list(tasks):
            if task is not None and tier(task) == op.asked["tier"]:
                tasks += _happen(task, Event.CLAIM, now, True, claim=Claim(owner, task.attempts + 1))
    return tasks


def _happen(task: Task | None, event: Event, now: int, accepted: bool | None, **what: Any) -> list[Task | None]:
    """The task after an event that was accepted or refused, or of which that is not known."""
    try:
        after = apply(task, event, now, **what) if task is not None else None
    except Refused:
        after = None
    if after is None:
        return [] if accepted else [task]
    return [] if accepted is False else [after]


def _shown(op: Op, number: int) -> str:
    """A call as a line, with what it says of one task."""

    def of_task(what: dict[str, Any] | None) -> Any:
        if what is None:
            return "?"
        return {
            name: [it for it in value if number in (it, it[0] if isinstance(it, list) else it)]
            if isinstance(value, list) else value for name, value in what.items()
        }  # fmt: skip

    return f"{op.begin}..{op.end} {op.actor}: {op.do} {of_task(op.asked)} -> {of_task(op.answer)}"
