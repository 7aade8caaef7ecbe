"""Futures as arguments: the call runs when they are done, and gets their results."""

import asyncio
import collections
import functools
import signal
import threading
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import calls
import pytest

from omniq_executor import AsyncOmniQ, DependencyFailed, PersistentExecutor, SerializationError, Status, TaskNotFound
from omniq_executor.dispatch.results import UNMET, claim_ends_of
from omniq_executor.engines.base import Report
from omniq_executor.model.task import Event
from omniq_executor.stores.base import Outcome, TaskState

WAIT_S = 30.0


@pytest.fixture(params=["store.db", "store"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Both kinds of store."""
    return tmp_path / str(request.param)


@dataclass
class Box:
    content: Any


Pair = collections.namedtuple("Pair", "left right")


# --- Results in place of futures ---


def test_a_future_as_an_argument_is_its_result(executor: PersistentExecutor) -> None:
    two = executor.submit(calls.echo, 2)
    assert executor.submit(calls.add, two, 3, also=executor.submit(calls.square, two)).result(WAIT_S) == 9


def test_it_is_so_wherever_in_the_arguments_it_is(executor: PersistentExecutor) -> None:
    one, two = executor.submit(calls.echo, 1), executor.submit(calls.echo, {"a": (2,)})
    value = [one, (two, {"k": Box([one])}), Pair(left=two, right=None)]
    assert executor.submit(calls.echo, value).result(WAIT_S) == [
        1, ({"a": (2,)}, {"k": Box([1])}), Pair({"a": (2,)}, None),
    ]  # fmt: skip


def test_one_future_in_two_places_is_one_value(executor: PersistentExecutor) -> None:
    one = executor.submit(calls.echo, [1])
    first, second = executor.submit(calls.echo, (one, one)).result(WAIT_S)
    assert first is second


def test_the_result_of_a_call_is_given_whatever_it_is(executor: PersistentExecutor) -> None:
    for value in (None, 1.5, "text", b"bytes", {1: 2}, Box("b"), float("inf")):
        future = executor.submit(calls.echo, executor.submit(calls.echo, value))
        assert future.result(WAIT_S) == value


def test_a_dependency_that_is_done_already_is_given_at_once(executor: PersistentExecutor) -> None:
    done = executor.submit(calls.square, 3)
    assert done.result(WAIT_S) == 9
    later = executor.submit(calls.square, done)
    assert later.result(WAIT_S) == 81
    assert later.task().options.after == (done.task().id,)


def test_a_call_waits_and_shows_for_what(executor: PersistentExecutor, gate: Path) -> None:
    first = executor.submit(calls.wait_for, gate)
    later = executor.submit(calls.echo, first)
    other = executor.submit(calls.square, 5)
    assert other.result(WAIT_S) == 25  # nobody is held up by it
    task = later.task()
    assert (task.status, task.options.after) == (Status.PENDING, (first.task().id,))
    assert not later.running()
    gate.touch()
    assert later.result(WAIT_S) == "gate"


def test_chains_and_diamonds(executor: PersistentExecutor) -> None:
    top = executor.submit(calls.echo, 2)
    left, right = executor.submit(calls.square, top), executor.submit(calls.add, top, 1)
    bottom = executor.submit(calls.add, left, right)
    for _ in range(30):
        bottom = executor.submit(calls.add, bottom, 1)
    assert bottom.result(WAIT_S) == 4 + 3 + 30


def test_one_call_can_wait_for_many_and_many_for_one(executor: PersistentExecutor) -> None:
    base = executor.submit(calls.echo, 1)
    parts = [executor.submit(calls.add, base, n) for n in range(200)]
    assert executor.submit(calls.add, *parts).result(WAIT_S) == sum(range(200)) + 200


def test_a_map_takes_futures_too(executor: PersistentExecutor) -> None:
    futures = [executor.submit(calls.square, n) for n in range(20)]
    mixed = [future if n % 3 else n * n for n, future in enumerate(futures)]
    assert list(executor.map(calls.add, mixed, range(20))) == [n * n + n for n in range(20)]


def test_a_call_with_options_takes_futures_too(make_executor: Any, journal: Any) -> None:
    executor = make_executor(2)
    two = executor.submit(calls.echo, 2)
    future = executor.options(priority=3, max_retries=3, backoff=0, tags=["t"], key="k").submit(
        calls.fail_until, journal.path, two
    )
    assert future.result(WAIT_S) == 2
    task = future.task()
    assert (task.attempts, task.options.tags, task.options.after) == (2, ("t",), (two.task().id,))


def test_a_call_that_is_due_later_is_not_run_before(executor: PersistentExecutor, gate: Path) -> None:
    first = executor.submit(calls.wait_for, gate)
    later = executor.options(eta=0.4).submit(calls.echo, first)
    gate.touch()
    first.result(WAIT_S)
    assert later.result(WAIT_S) == "gate"
    assert later.task().started_at >= later.task().eta > 0


def test_a_recurring_call_is_given_the_same_result_each_time(executor: PersistentExecutor, journal: Any) -> None:
    first = executor.submit(calls.echo, "x")
    series = executor.options(interval=0.02).submit(calls.noted, journal.path, first)
    assert journal.wait_for(3)[:3] == ["x", "x", "x"]
    series.cancel()


def test_callbacks_are_told_though_nobody_waits(executor: PersistentExecutor, gate: Path) -> None:
    done = threading.Event()
    first = executor.submit(calls.wait_for, gate)
    executor.submit(calls.echo, executor.submit(calls.echo, first)).add_done_callback(lambda _: done.set())
    gate.touch()
    assert done.wait(WAIT_S)


def test_shutdown_waits_for_what_waits(make_executor: Any, gate: Path) -> None:
    executor = make_executor(2)
    first = executor.submit(calls.wait_for, gate)
    last = executor.submit(calls.echo, executor.submit(calls.echo, first))
    threading.Timer(0.05, gate.touch).start()
    executor.shutdown()
    assert last.result(0) == "gate"


# --- Failures ---


def test_a_failed_dependency_fails_the_call_unrun_and_says_why(executor: PersistentExecutor, journal: Any) -> None:
    failed = executor.submit(calls.raise_value_error, "no such luck")
    future = executor.options(max_retries=3, backoff=0).submit(calls.noted, journal.path, failed)
    with pytest.raises(DependencyFailed, match=rf"{failed.task_id}, which FAILED: ValueError: no such luck") as caught:
        future.result(WAIT_S)
    assert future.task_id in str(caught.value)
    assert (future.task().status, future.task().attempts, journal.lines()) == (Status.FAILED, 1, [])


def test_a_failure_goes_down_the_whole_chain(executor: PersistentExecutor) -> None:
    last = executor.submit(calls.raise_value_error, "the root of it")
    for _ in range(20):
        last = executor.submit(calls.square, last)
    error = last.exception(WAIT_S)
    assert isinstance(error, DependencyFailed)
    assert str(error).endswith("which FAILED: ValueError: the root of it")
    assert len(str(error)) < 1000


def test_a_call_fails_though_only_one_of_many_did(executor: PersistentExecutor) -> None:
    good, bad = executor.submit(calls.echo, 1), executor.submit(calls.raise_value_error, "bad")
    assert isinstance(executor.submit(calls.add, good, bad, good).exception(WAIT_S), DependencyFailed)
    assert list(executor.map(calls.echo, [good])) == [1]
    with pytest.raises(DependencyFailed):
        list(executor.map(calls.echo, [good, bad]))


def test_a_cancelled_dependency_fails_the_call(make_executor: Any, gate: Path) -> None:
    executor = make_executor(1)
    held = executor.submit(calls.wait_for, gate)
    first = executor.options(eta=3600).submit(calls.square, 2)
    later = executor.submit(calls.square, first)
    assert first.cancel()
    gate.touch()
    with pytest.raises(DependencyFailed, match=f"{first.task_id}, which is CANCELLED"):
        later.result(WAIT_S)
    held.result(WAIT_S)


def test_a_call_that_waits_can_be_cancelled(executor: PersistentExecutor, gate: Path, journal: Any) -> None:
    first = executor.submit(calls.wait_for, gate)
    later = executor.submit(calls.noted, journal.path, first)
    assert later.cancel()
    gate.touch()
    first.result(WAIT_S)
    with pytest.raises(CancelledError):
        later.result(WAIT_S)
    executor.shutdown()
    assert journal.lines() == []


def test_a_result_that_cannot_be_loaded_fails_the_call_alone(executor: PersistentExecutor) -> None:
    made = executor.submit(calls.make_unloadable)
    with pytest.raises(ValueError, match="it cannot be loaded"):
        executor.submit(calls.echo, made).result(WAIT_S)
    assert executor.submit(calls.square, 2).result(WAIT_S) == 4


def test_a_call_whose_worker_dies_is_given_the_results_again(executor: PersistentExecutor, journal: Any) -> None:
    how = executor.submit(calls.echo, "kill")
    assert executor.submit(calls.die_if_missing, journal.path, how).result(WAIT_S) == "lived"


def test_a_call_that_is_revived_with_what_failed_runs_after_it(
    executor: PersistentExecutor, journal: Any, wait_until: Any, open_store: Any
) -> None:
    first = executor.submit(calls.fail_until, journal.path, 2)
    later = executor.submit(calls.square, first)
    assert isinstance(later.exception(WAIT_S), DependencyFailed)
    ids = [later.task().id, first.task().id]
    other = open_store(executor.store.address)
    assert sorted(other.retry(ids, 10**15)) == sorted(ids)
    other.notify(0)
    wait_until(lambda: later.task().status is Status.COMPLETED)
    assert later.task().result == "4"


def test_a_call_is_released_if_what_it_needs_was_revived_meanwhile() -> None:
    stand = {2: TaskState(2, Status.PENDING, None, None, None), 3: None}
    ends = claim_ends_of([Report(UNMET, [1], [4], stand)], {}, 2, 0, lambda: 9)
    assert (ends.outcomes, ends.resolutions) == ([Outcome(1, 4, Event.RELEASE)], [])


# --- Which futures ---


def test_a_future_of_another_store_is_a_future_there(executor: PersistentExecutor, tmp_path: Path) -> None:
    with PersistentExecutor(1, store=tmp_path / "other.db") as other:
        foreign = other.submit(calls.square, 2)
        future = executor.submit(calls.result_of, foreign)
        assert future.result(WAIT_S) == ("DurableFuture", 4)
    assert future.task().options is None  # it did not wait for a task of that id in its own store


def test_a_future_whose_task_is_gone_is_refused(executor: PersistentExecutor) -> None:
    future = executor.submit(calls.square, 2)
    assert future.result(WAIT_S) == 4
    assert executor.store.purge(10**17) == 1
    with pytest.raises(TaskNotFound, match=future.task_id):
        executor.submit(calls.square, future)
    assert executor.submit(calls.square, 3).result(WAIT_S) == 9


def test_a_future_of_another_executor_on_the_store_is_taken(make_executor: Any, gate: Path) -> None:
    one, other = make_executor(1, queue="one"), make_executor(1, queue="other")
    first = one.submit(calls.wait_for, gate)
    later = other.submit(calls.echo, first)
    failing = other.submit(calls.echo, one.submit(calls.raise_value_error, "there"))
    gate.touch()
    assert later.result(WAIT_S) == "gate"
    assert isinstance(failing.exception(WAIT_S), DependencyFailed)


def test_a_coroutine_enqueues_a_future_of_an_executor(executor: PersistentExecutor, store: Path) -> None:
    two = executor.submit(calls.echo, 2)

    async def enqueue() -> Any:
        async with AsyncOmniQ(store, queue="async") as omniq, omniq.worker(1):
            return await omniq.get_result(await omniq.enqueue(calls.square, [two]), timeout=WAIT_S)

    assert asyncio.run(enqueue()) == 4


def test_a_future_of_an_earlier_run_is_taken(make_executor: Any) -> None:
    first = make_executor(1)
    task_id = first.submit(calls.square, 3).task_id
    first.shutdown()
    executor = make_executor(1)
    assert executor.submit(calls.square, executor.future(task_id)).result(WAIT_S) == 81


def test_a_future_of_a_call_that_was_not_stored_makes_another_such(executor: PersistentExecutor) -> None:
    unstored = executor.submit(calls.echo, threading.Lock())
    assert isinstance(executor.submit(calls.echo, unstored).exception(WAIT_S), SerializationError)


def test_a_function_that_closes_over_a_future_is_refused(executor: PersistentExecutor) -> None:
    future = executor.submit(calls.square, 2)
    for function in (lambda: future, functools.partial(calls.echo, future), [future].count):
        error = executor.submit(function).exception(WAIT_S)
        assert isinstance(error, SerializationError)
        assert "a future can be an argument" in str(error)


# --- Other processes ---

HEAD = """
import os, sys, time
from omniq_executor import PersistentExecutor, DependencyFailed

def note(line):
    fd = os.open("journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{line}\\n".encode())
    os.close(fd)

def step(name, *before):
    note(name)
    return [name, *before]

def wait():
    while not os.path.exists("gate"):
        time.sleep(0.01)
"""


@pytest.fixture
def kind(store: Path) -> str:
    return store.name


def test_workers_that_do_not_know_a_class_of_the_script_are_given_it_with_a_result(script: Any, kind: str) -> None:
    script.write(
        f"""
import enum, os, sys, time
from dataclasses import dataclass
from typing import NamedTuple
from omniq_executor import PersistentExecutor

class Color(enum.Enum):
    RED = 1

class Pair(NamedTuple):
    first: int
    color: Color

@dataclass
class Box:
    pair: Pair
    data: bytes

    def opened(self):
        return self.pair.first + self.pair.color.value + len(self.data)

def box(size):
    return Box(Pair(3, Color.RED), bytes(size))

def opened(box, number):
    time.sleep(0.05)  # else one worker takes all
    return box.opened()

with PersistentExecutor(2, store={kind!r}) as executor:
    for size in 10, 1_000_000:
        boxed = executor.submit(box, size)
        boxed.result()
        if len(sys.argv) == 1:
            print([future.result() for future in [executor.submit(opened, boxed, n) for n in range(4)]])
    if len(sys.argv) > 1:
        os.kill(os.getpid(), 9)
"""
    )
    assert script.run("kill").returncode == -signal.SIGKILL
    done = script.run()
    assert done.stdout.splitlines() == [str([14] * 4), str([1_000_004] * 4)], done.stderr


def test_a_pipeline_killed_halfway_and_run_again_repeats_nothing_that_was_done(script: Any, kind: str) -> None:
    script.write(
        HEAD
        + f"""
if __name__ == "__main__":
    with PersistentExecutor(2, store={kind!r}) as executor:
        a = executor.submit(step, "a")
        b = executor.submit(step, "b", a)
        if len(sys.argv) > 1:
            b.result()
        c = executor.submit(step, "c", b)
        d = executor.submit(step, "d", b, c)
        if len(sys.argv) > 1:
            os.kill(os.getpid(), 9)
        print(d.result(), [f.resumed for f in (a, b)])
"""
    )
    assert script.run("kill").returncode == -signal.SIGKILL
    done = script.run()
    assert done.returncode == 0, done.stderr
    b = ["b", ["a"]]
    assert done.stdout.strip() == f"{['d', b, ['c', b]]} [True, True]"
    lines = collections.Counter(script.journal.lines())
    assert (lines["a"], lines["b"]) == (1, 1)
    assert set(lines) == set("abcd")
    again = script.run()
    assert again.returncode == 0
    assert "[False, False]" in again.stdout  # after a clean end everything starts afresh


def test_what_waits_when_everything_is_killed_runs_in_whichever_process_comes(
    script: Any, kind: str, open_store: Any, wait_until: Any
) -> None:
    script.write(
        HEAD
        + f"""
if __name__ == "__main__":
    with PersistentExecutor(1, store={kind!r}, queue="q", leftovers="run") as executor:
        if sys.argv[1] == "leave":
            a = executor.submit(step, "a")
            a.result()
            waits = executor.options(eta=0.5).submit(step, "b", a)
            fails = executor.submit(int, executor.options(eta=0.5).submit(step, "c", waits))
            executor.submit(step, "d", waits, executor.options(eta=0.5).submit(step, "e"))
            executor.submit(step, "f", fails)
            os.kill(os.getpid(), 9)
        executor.submit(int)  # it begins to work with its first call
        sys.stdin.read()
"""
    )
    assert script.run("leave").returncode == -signal.SIGKILL
    opened = open_store(script.folder / kind)
    process = script.start("work", stdin=-1)
    wait_until(lambda: not {Status.PENDING, Status.RUNNING} & opened.counts()["q"].keys())
    process.stdin.close()
    assert sorted(script.journal.lines()) == list("abcde")
    assert opened.counts() == {"q": {Status.COMPLETED: 6, Status.FAILED: 2}}
    errors = [task.error.type for task in opened.find(Status.FAILED)]
    assert sorted(errors) == ["TypeError", "omniq_executor.errors.DependencyFailed"]


def test_another_process_frees_what_waits_in_ours(make_executor: Any, script: Any, store: Path) -> None:
    """No clock helps: the executor sleeps until it is rung."""
    ours = make_executor(1, queue="ours")
    script.write(
        HEAD
        + f"""
if __name__ == "__main__":
    with PersistentExecutor(1, store={str(store)!r}, queue="theirs") as executor:
        note(executor.submit(wait).task_id)
        sys.stdin.read()
"""
    )
    process = script.start(stdin=-1)
    (task_id,) = script.journal.wait_for(1)
    done = threading.Event()
    later = ours.submit(calls.echo, ours.future(task_id))
    later.add_done_callback(lambda _: done.set())
    (script.folder / "gate").touch()
    assert done.wait(WAIT_S)
    assert later.result(0) is None
    process.stdin.close()


def test_a_task_cancelled_through_another_handle_fails_what_waits_for_it(make_executor: Any, open_store: Any) -> None:
    executor = make_executor(1)
    first = executor.options(eta=3600).submit(calls.square, 2)
    later = executor.submit(calls.square, first)
    other = open_store(executor.store.address)
    assert other.cancel([first.task().id], 10**15) == [first.task().id]
    other.notify(0)
    assert isinstance(later.exception(WAIT_S), DependencyFailed)


def test_what_is_shown_of_a_call_names_the_result_that_it_is_given(make_executor: Any) -> None:
    executor = make_executor()
    first = executor.submit(pow, 2, 3)
    second = executor.submit(divmod, first, 5)
    assert second.result() == (1, 3)
    assert f"divmod(<result of {first.task_id}>(), 5)" not in repr(second)
    assert f"<result of {first.task_id}>" in repr(second)


def test_what_needs_a_call_in_which_an_owner_died_runs_as_soon_as_that_has(script: Any, kind: str) -> None:
    """It waited for ever: it was freed by a turn that looked for calls of another tier."""
    script.write(
        HEAD
        + f"""
if __name__ == "__main__":
    with PersistentExecutor(1, store={kind!r}) as executor:
        if sys.argv[1] == "die":
            first, second = [executor.submit(time.sleep, 0.5) for _ in range(2)]
            print(first.task_id, second.task_id, flush=True)
            while not first.running():
                time.sleep(0.01)
            time.sleep(0.1)
            os.kill(os.getpid(), 9)
        needed = [executor.future(id) for id in sys.argv[1:]]
        print([executor.submit(repr, future).result(20) for future in needed])
"""
    )
    died = script.run("die")
    assert died.returncode == -signal.SIGKILL
    done = script.run(*died.stdout.split())
    assert (done.returncode, done.stdout) == (0, "['None', 'None']\n"), done.stderr
