"""Processes that share a store, are killed and stopped: their histories can be true.

How many histories are made is 4 for each backend, and 400 where the environment has OMNIQ_PROOF=1. Each
prints its seed if it fails; with the seed in OMNIQ_TEST_SEED, the same processes are harmed in the same
way, and what each is doing then is up to the machine.
"""

import contextlib
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from actor import PATIENCE_S, Actor
from backends import PROOF, SQUARE, Backend
from histories import Op, check, failure, read, sums

import omniq_executor
from omniq_executor.model.task import Event, Status, Task

pytestmark = pytest.mark.models

HISTORIES = 400 if PROOF else 4
SEED = int(os.environ.get("OMNIQ_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
WAIT_S = 60.0

# --- The check, on histories made by hand ---

A, B = 1, 2  # owners
T = 7  # a task


class Story:
    """A history that is told call by call, each after the one before unless its stamps say otherwise."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.clock = 0

    def op(self, do: str, answer: dict[str, Any] | None, during: tuple[int, int] | None, **asked: Any) -> Op:
        begin, end = during or (self.clock + 1, self.clock + 2)
        self.clock = max(self.clock, end)
        self.ops.append(Op(0, do, begin, end, asked, answer))
        return self.ops[-1]

    def turn(
        self, owner: int, *, adds: Any = (), ends: Any = (), claimed: Any = (), refused: Any = (), most: int = 0,
        answered: bool = True, during: tuple[int, int] | None = None, tier: int = 0,
    ) -> Op:  # fmt: skip
        answer = {"claimed": [list(it) for it in claimed], "refused": list(refused)} if answered else None
        return self.op(
            "turn", answer, during, owner=owner, queue="work", run=1, now=5, most=most or len(claimed), tier=tier,
            adds=[[task, "[0]", False] for task in adds],
            ends=[[task, attempt, event.value, value] for task, attempt, event, value in ends],
        )  # fmt: skip

    def end(self, owner: int, attempt: int, event: Event = Event.COMPLETE, value: str = '"a"', **how: Any) -> Op:
        return self.turn(owner, ends=[(T, attempt, event, value)], **how)

    def claim(self, owner: int, attempt: int, **how: Any) -> Op:
        return self.turn(owner, claimed=[(T, attempt)], **how)

    def die(self, owner: int, during: tuple[int, int] | None = None) -> Op:
        return self.op("die", {}, during, owner=owner)

    def leave(self, owner: int, during: tuple[int, int] | None = None) -> Op:
        return self.op("leave", {}, during, owner=owner)

    def reap(self, *, answered: bool = True, during: tuple[int, int] | None = None) -> Op:
        return self.op("reap", {} if answered else None, during)

    def change(self, do: str, *tasks: int, changed: Any = (), during: tuple[int, int] | None = None) -> Op:
        return self.op(do, {"tasks": list(changed)}, during, tasks=list(tasks), now=5)

    def look(self, *seen: Any, during: tuple[int, int] | None = None) -> Op:
        return self.op("look", {"tasks": [list(it) for it in seen]}, during)


def task(status: Status = Status.COMPLETED, owner: int | None = B, attempts: int = 1, **fields: Any) -> Task:
    """What the store holds at the end of a story."""
    if status is Status.COMPLETED:
        fields = {"result": '"a"', **fields}
    return Task(
        id=T, queue="work", run=1, func_path=SQUARE.path, func=SQUARE.pickle, args="[0]", enqueued_at=5, started_at=5,
        finished_at=5, status=status, owner=owner, attempts=attempts, **fields,
    )  # fmt: skip


@pytest.fixture
def story() -> Story:
    """A story in which the task was added."""
    told = Story()
    told.turn(A, adds=[T])
    return told


def test_a_task_that_is_claimed_and_completed_is_possible(story: Story) -> None:
    story.claim(B, 1)
    story.end(B, 1)
    assert check(story.ops, [task()]) == []


def test_a_task_that_passes_through_many_hands_is_possible(story: Story) -> None:
    story.claim(A, 1)
    story.die(A)
    story.reap()
    story.claim(B, 2, tier=1)
    story.end(A, 1, refused=[T])
    story.end(B, 2, Event.CRASH)
    story.claim(B, 3, tier=1)
    story.look((T, Status.RUNNING, 3, B))
    story.end(B, 3, Event.FAIL, "no")
    story.change("cancel", T)
    story.change("retry", T, changed=[T])
    story.claim(B, 4)
    story.end(B, 4)
    assert check(story.ops, [task(attempts=4)]) == []


@pytest.mark.parametrize(("died", "tier"), [(True, 0), (True, 2), (False, 1)])
def test_a_claim_in_another_tier_is_seen(story: Story, died: bool, tier: int) -> None:
    story.claim(A, 1)
    (story.die if died else story.leave)(A)
    story.reap()
    claim = story.claim(B, 2, tier=tier)
    story.end(B, 2)
    final = task(attempts=2, owner_deaths=int(died))
    assert check(story.ops, [final])
    story.ops[story.ops.index(claim)] = replace(claim, asked=claim.asked | {"tier": int(died)})
    assert check(story.ops, [final]) == []
    assert check(story.ops, [final._replace(owner_deaths=1 - died)])


def test_one_attempt_that_is_claimed_twice_is_seen(story: Story) -> None:
    story.claim(A, 1)
    story.claim(B, 1)
    story.end(B, 1)
    assert "7: attempt 1 was claimed 2 times" in check(story.ops, [task()])


def test_claims_that_overlap_are_seen(story: Story) -> None:
    story.claim(A, 1)
    story.claim(B, 2)
    story.end(A, 1, refused=[T])
    story.end(B, 2)
    assert check(story.ops, [task(attempts=2)])


def test_a_claim_before_the_release_of_the_one_before_is_seen(story: Story) -> None:
    story.claim(A, 1)
    release = story.end(A, 1, Event.RELEASE, during=(20, 30))
    story.claim(B, 2, during=(10, 19))
    story.end(B, 2)
    assert check(story.ops, [task(attempts=2)])
    story.ops[story.ops.index(release)] = replace(release, begin=15)  # then it may have been just in time
    assert check(story.ops, [task(attempts=2)]) == []


def test_an_attempt_that_is_skipped_is_seen(story: Story) -> None:
    story.claim(B, 2)
    story.end(B, 2)
    assert check(story.ops, [task(attempts=2)])


def test_an_attempt_that_a_killed_process_may_have_had_is_possible(story: Story) -> None:
    story.turn(A, most=1, answered=False, during=(10, 20))
    story.die(A, during=(15, 20))
    story.reap(during=(30, 40))
    story.claim(B, 2, tier=1)
    story.end(B, 2)
    assert check(story.ops, [task(attempts=2, owner_deaths=1)]) == []
    assert check(story.ops, [task(attempts=3, owner_deaths=1)])
    assert check(story.ops, [task(attempts=2)])


def test_a_killed_process_does_nothing_after_its_death(story: Story) -> None:
    story.turn(A, most=1, answered=False, during=(10, 20))
    story.die(A, during=(15, 20))
    story.look((T, Status.PENDING, 0, None), during=(30, 40))
    story.reap()
    story.claim(B, 2)
    story.end(B, 2)
    assert check(story.ops, [task(attempts=2)])


def test_a_living_owner_that_is_robbed_is_seen(story: Story) -> None:
    story.claim(A, 1)
    story.reap()
    story.claim(B, 2)
    story.end(B, 2)
    assert check(story.ops, [task(attempts=2)])
    story.leave(A)
    assert check(story.ops, [task(attempts=2)])  # it left too late


def test_what_could_not_leave_is_reaped_uncharged(story: Story) -> None:
    story.claim(A, 1)
    story.op("leave", {"raised": "no"}, None, owner=A)
    story.reap()
    story.claim(B, 2)
    story.end(B, 2)
    assert check(story.ops, [task(attempts=2)]) == []
    assert check(story.ops, [task(attempts=2, owner_deaths=1)])


def test_an_owner_that_is_robbed_before_its_death_is_seen(story: Story) -> None:
    story.claim(A, 1)
    story.reap(during=(10, 20))
    story.claim(B, 2, during=(30, 40))
    story.die(A, during=(50, 60))
    story.reap()
    story.end(B, 2)
    assert check(story.ops, [task(attempts=2)])


def test_a_dead_owner_whose_task_a_reap_leaves_is_seen(story: Story) -> None:
    story.claim(A, 1)
    story.die(A)
    story.reap()
    story.look((T, Status.RUNNING, 1, A))
    story.reap()
    story.claim(B, 2, tier=1)
    story.end(B, 2)
    assert check(story.ops, [task(attempts=2, owner_deaths=1)])


def test_a_late_outcome_that_is_accepted_is_seen(story: Story) -> None:
    story.claim(A, 1)
    story.die(A)
    story.reap()
    story.claim(B, 2, tier=1)
    story.end(A, 1)
    story.end(B, 2, refused=[T])
    assert check(story.ops, [task(owner=A)])
    assert check(story.ops, [task(owner=B, attempts=2, owner_deaths=1)])


def test_an_outcome_that_is_accepted_after_the_release_is_seen(story: Story) -> None:
    story.claim(B, 1)
    story.end(B, 1, Event.RELEASE)
    story.end(B, 1)
    assert check(story.ops, [task()])


def test_an_outcome_that_is_refused_while_the_claim_is_held_is_seen(story: Story) -> None:
    story.claim(B, 1)
    story.end(B, 1, refused=[T])
    story.end(B, 1)
    assert check(story.ops, [task()])


def test_an_outcome_of_another_owner_that_is_accepted_is_seen(story: Story) -> None:
    story.claim(B, 1)
    story.end(A, 1)
    assert check(story.ops, [task()])


def test_two_results_of_one_task_are_seen(story: Story) -> None:
    story.claim(B, 1)
    story.end(B, 1)
    story.end(B, 1)
    assert "7: 2 results were accepted" in check(story.ops, [task()])


def test_a_result_that_is_not_the_accepted_one_is_seen(story: Story) -> None:
    story.claim(B, 1)
    story.end(B, 1)
    assert check(story.ops, [task(result='"b"')])


def test_an_accepted_result_that_is_lost_is_seen(story: Story) -> None:
    story.claim(B, 1)
    story.end(B, 1)
    story.change("retry", T)
    assert check(story.ops, [task(Status.FAILED, error=failure("no"))])
    assert check(story.ops, [task(Status.CANCELLED)])


def test_a_result_that_was_never_answered_may_be_there_or_not(story: Story) -> None:
    story.claim(A, 1)
    story.end(A, 1, value='"x"', answered=False)
    story.die(A)
    story.reap()
    assert check(story.ops, [task(owner=A, result='"x"')]) == []
    story.claim(B, 2, tier=1)
    story.end(B, 2)
    assert check(story.ops, [task(attempts=2, owner_deaths=1)]) == []
    assert check(story.ops, [task(owner=A, result='"x"')])


def test_a_call_that_raised_has_done_nothing(story: Story) -> None:
    story.claim(B, 1)
    end = story.end(B, 1)
    story.ops[-1] = replace(end, answer={"raised": "a timeout"})
    assert check(story.ops, [task()])
    story.end(B, 1)
    assert check(story.ops, [task()]) == []


def test_a_task_that_is_lost_is_seen(story: Story) -> None:
    assert "[7] were added, and of these the store holds []" in check(story.ops, [])


def test_a_task_that_is_invented_is_seen(story: Story) -> None:
    story.claim(B, 1)
    story.end(B, 1)
    problems = check(story.ops, [task(), task()._replace(id=8)])
    assert "8: is in the store, though no call that may have succeeded has added it" in problems


def test_a_task_of_an_add_that_raised_is_seen() -> None:
    told = Story()
    turn = told.turn(A, adds=[T])
    told.ops = [replace(turn, answer={"raised": "a timeout"})]
    assert check(told.ops, []) == []
    assert check(told.ops, [task(Status.CANCELLED)])


def test_half_a_batch_is_seen() -> None:
    told = Story()
    told.turn(A, adds=[T, 8], answered=False)
    told.claim(B, 1)
    told.end(B, 1)
    assert "[7, 8] were added, and of these the store holds [7]" in check(told.ops, [task()])


def test_an_unfinished_task_is_seen(story: Story) -> None:
    (problem,) = check(story.ops, [task(Status.PENDING, None, 0)])[:1]
    assert problem == "7: was left PENDING"


@pytest.mark.parametrize("seen", [(T, Status.PENDING, 1, B), (T, Status.RUNNING, 2, B), (T, Status.RUNNING, 1, A)])
def test_a_look_that_sees_what_was_not_there_is_seen(story: Story, seen: Any) -> None:
    story.claim(B, 1)
    story.look(seen)
    story.end(B, 1)
    assert check(story.ops, [task()])


def test_a_cancel_of_what_runs_is_seen(story: Story) -> None:
    story.claim(B, 1)
    story.change("cancel", T, changed=[T])
    assert check(story.ops, [task(Status.CANCELLED)])


def test_a_cancel_that_spares_what_is_pending_is_seen(story: Story) -> None:
    story.change("cancel", T)
    story.claim(B, 1)
    story.end(B, 1)
    assert check(story.ops, [task()])


def test_a_log_that_ends_in_the_midst_is_read(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text('[0, "enter", 10, {"queue": "work"}]\n[0, "", 20, {"owner": 5}]\n[1, "reap", 30, {}]\n[1, "", 4')
    assert read(log, 3, (40, 50)) == [
        Op(3, "enter", 10, 20, {"queue": "work"}, {"owner": 5}),
        Op(3, "reap", 30, 50, {}, None),
        Op(3, "die", 40, 50, {"owner": 5}),
    ]


# --- Histories of processes ---


@dataclass
class Process:
    """A process that works on the store; see actor.py."""

    popen: "subprocess.Popen[str]"
    log: Path
    number: int
    gone: tuple[int, int] | None = None

    def send(self, sign: int) -> None:
        self.popen.send_signal(sign)

    def stop(self) -> None:
        """Stop it, and return when it stands still, wherever that is."""
        self.send(signal.SIGSTOP)
        assert os.WIFSTOPPED(os.waitpid(self.popen.pid, os.WUNTRACED)[1])

    def kill(self) -> None:
        begin = time.monotonic_ns()
        self.popen.kill()
        self.popen.wait(WAIT_S)
        self.gone = begin, time.monotonic_ns()

    def end(self) -> None:
        """Let it come to its end by itself."""
        begin = time.monotonic_ns()
        _, errors = self.popen.communicate(timeout=WAIT_S)
        self.gone = begin, time.monotonic_ns()
        assert (self.popen.returncode, errors) == (0, "")


@dataclass
class Crowd:
    """Processes on one store, and those who harm them."""

    backend: Backend
    folder: Path
    seed: int
    everyone: list[Process] = field(default_factory=list)
    harm: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.address = self.backend.address(self.folder)

    def start(self, victim: Process | None = None) -> Process:
        """Start one, which speaks for a victim too if there is one."""
        number = len(self.everyone) + 1
        log = self.folder / f"{number}.log"
        queue = self.chance.choice(["work", "work", "play"])
        args = [self.backend.name, str(self.address), str(log), queue, self.chance.randrange(1 << 32)]
        ops = f"read(Path({str(victim.log)!r}), 0, (0, 0))" if victim is not None else "()"
        path = os.pathsep.join([str(Path(omniq_executor.__file__).parents[1]), str(Path(__file__).parent)])
        popen = subprocess.Popen(
            [sys.executable, "-W", "error", "-c",
             f"from actor import *\nfrom histories import read\nact(*{args!r}, victim={ops})"],
            env={**os.environ, "PYTHONPATH": path}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.everyone.append(Process(popen, log, number))
        return self.everyone[-1]

    def let_go(self, processes: list[Process]) -> None:
        """Let them begin together, once all of them are there."""
        for process in processes:
            assert process.popen.stdout is not None
            assert process.popen.stdout.readline() == "ready\n", process.popen.communicate(timeout=WAIT_S)[1]
        for process in processes:
            assert process.popen.stdin is not None
            process.popen.stdin.write("go\n")
            process.popen.stdin.flush()

    def wait_for_progress(self, process: Process, lines: int) -> None:
        """Wait until it has noted so many lines more, or is done."""
        deadline = time.monotonic() + WAIT_S
        goal = _lines(process.log) + lines
        while _lines(process.log) < goal and not select.select([process.popen.stdout], [], [], 0.001)[0]:
            assert time.monotonic() < deadline, "it does nothing"

    def work(self) -> None:
        """From the start of the first to the end of the last."""
        alive = [self.start() for _ in range(self.chance.randint(3, 6))]
        self.let_go(alive)
        for harm in self.chance.choices(["kill", "stop", "stop and kill"], [3, 3, 1], k=self.chance.randint(2, 5)):
            victim = self.chance.choice(alive)
            self.wait_for_progress(victim, self.chance.randint(5, 60))
            if "stop" in harm:
                self.harm["stopped"] += 1
                victim.stop()
                time.sleep(PATIENCE_S * 1.5)  # past every timeout of the others
            if "kill" in harm:
                self.harm["killed"] += 1
                victim.kill()
                alive.remove(victim)
                alive.append(self.start(victim if self.chance.random() < 0.7 else None))
                self.let_go(alive[-1:])
            else:
                victim.send(signal.SIGCONT)
        for process in alive:
            process.end()

    def finish(self) -> tuple[list[Op], list[Task]]:
        """Do what was left, and return all that was done, and what came of it."""
        begin = time.monotonic_ns()
        for queue in ("work", "play"):
            actor = Actor(self.backend, self.address, self.folder / f"{queue}.log", queue, self.seed)
            actor.enter()
            actor.finish_all()
            actor.leave()
            tasks = actor.store.find()
            actor.close()
        gone = begin, time.monotonic_ns()
        ops = [op for queue in ("work", "play") for op in read(self.folder / f"{queue}.log", 0, gone)]
        for process in self.everyone:
            assert process.gone is not None
            ops += read(process.log, process.number, process.gone)
        return ops, tasks

    def __enter__(self) -> "Crowd":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.everyone:
            with process.popen:
                process.popen.kill()


def _lines(log: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return log.read_bytes().count(b"\n")
    return 0


def crowds(backend: Backend, folder: Path) -> Iterator[Crowd]:
    """As many crowds as are asked for, each with a store of its own."""
    for number in range(HISTORIES):
        place = folder / str(number)
        place.mkdir()
        with Crowd(backend, place, SEED + number) as crowd:
            yield crowd


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kills and stops processes")
@pytest.mark.timeout(120 + 10 * HISTORIES)
def test_what_processes_that_are_killed_and_stopped_did_is_possible(backend: Backend, tmp_path: Path) -> None:
    total: Counter[str] = Counter(histories=0)
    for crowd in crowds(backend, tmp_path):
        crowd.work()
        ops, tasks = crowd.finish()
        problems = check(ops, tasks)
        assert not problems, f"seed {crowd.seed}, {len(problems)} problems: " + "\n".join(problems[:3])
        total += Counter(histories=1, processes=len(crowd.everyone)) + crowd.harm + sums(ops)
    print(f"\n{backend.name}, seeds from {SEED}: {dict(total)}")  # noqa: T201 - what the proof was
    for what in ("killed", "stopped", "claims", "refused", "unanswered"):
        assert total[what] > 0, f"nothing was {what}, so nothing is shown"
