"""executor.stacks(): where the running calls are, taken without harming them."""

import concurrent.futures
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import calls
import pytest

from omniq_executor import PersistentExecutor, Status
from omniq_executor.model.task import format_id

WAIT_S = 30.0
SILENT = "does not answer"

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="stops processes and looks in /proc")


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[int]:
    """The writing end of a FIFO called "fifo"."""
    os.mkfifo(tmp_path / "fifo")
    fd = os.open(tmp_path / "fifo", os.O_RDWR)
    yield fd
    os.close(fd)


def stop(pid: int, wait_until: Any) -> None:
    """Stop a process, all of its threads."""
    os.kill(pid, signal.SIGSTOP)
    stat = Path(f"/proc/{pid}/stat")
    wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", what=f"{pid} to stop")


def wait_until_it_rests(thread: threading.Thread, wait_until: Any) -> None:
    """Wait until a thread waits for something, within the package: it is in the same place at two looks."""
    places: list[tuple[object, int]] = []

    def rests() -> bool:
        stack = [frame for frame, _ in traceback.walk_stack(sys._current_frames()[thread.ident or 0])]
        places.append((stack[0].f_code, stack[0].f_lasti))
        is_inside = any("omniq_executor" in frame.f_code.co_filename for frame in stack)
        return is_inside and len(places) > 1 and places[-1] == places[-2]

    wait_until(rests, what="the thread to wait")


def look_when_there(executor: PersistentExecutor, count: int, wait_until: Any) -> dict[str, str]:
    """The stacks of so many calls once all wait for the gate: they note that they run before they are there."""

    def look() -> Any:
        stacks = executor.stacks(WAIT_S)
        return stacks if sum("in wait_for" in stack for stack in stacks.values()) == count else None

    stacks: dict[str, str] = wait_until(look)
    return stacks


# --- What runs -----------------------------------------------------------------------------------------------------


def test_each_running_call_is_shown_with_its_innermost_line_last(
    context: BaseContext, make_executor: Any, journal: Any, gate: Path, wait_until: Any
) -> None:
    executor = make_executor(2, context)
    deep = executor.submit(calls.noted_descent, journal.path, gate, 3)
    flat = executor.submit(calls.noted_wait, journal.path, "flat", gate)
    stacks = look_when_there(executor, 2, wait_until)
    assert stacks.keys() == {deep.task_id, flat.task_id}
    frames = [line.rpartition(" in ")[2] for line in stacks[deep.task_id].splitlines() if line.startswith("  File")]
    assert frames[:5] == ["noted_descent"] * 4 + ["wait_for"]  # which may be in something itself
    assert f'File "{calls.__file__}", line ' in stacks[deep.task_id]
    assert "return noted_descent(path, gate, depth - 1)" in stacks[deep.task_id]
    assert stacks[flat.task_id].index("in noted_wait") < stacks[flat.task_id].index("in wait_for")
    gate.touch()
    assert (deep.result(WAIT_S), flat.result(WAIT_S)) == ("gate", "flat")


def test_only_what_runs_is_shown(make_executor: Any, journal: Any, gate: Path) -> None:
    executor = make_executor(1)
    list(executor.map(calls.square, range(2000), timeout=WAIT_S))  # now a worker gets more calls than it runs
    running, *others = [executor.submit(calls.noted_wait, journal.path, n, gate) for n in range(5)]
    journal.wait_for(1)
    assert executor.stacks(WAIT_S).keys() == {running.task_id}
    gate.touch()
    assert [future.result(WAIT_S) for future in (running, *others)] == list(range(5))


def test_items_of_a_map_are_shown_too(make_executor: Any, journal: Any, gate: Path, wait_until: Any) -> None:
    executor = make_executor(2)
    results = executor.map(calls.noted_wait, [journal.path] * 4, range(4), [gate] * 4, timeout=WAIT_S)
    stacks = look_when_there(executor, 2, wait_until)
    assert len(stacks) == 2
    assert stacks.keys() <= {format_id(task.id) for task in executor.store.find(Status.RUNNING)}
    gate.touch()
    assert list(results) == [0, 1, 2, 3]


def test_an_executor_that_runs_nothing_shows_nothing(context: BaseContext, make_executor: Any) -> None:
    executor = make_executor(2, context)
    assert executor.stacks() == {}
    assert executor.submit(calls.square, 3).result(WAIT_S) == 9
    assert executor.stacks() == {}
    executor.shutdown()
    assert executor.stacks() == {}


def test_looking_again_and_again_harms_no_call(executor: PersistentExecutor) -> None:
    futures = [executor.submit(calls.square, n) for n in range(300)]
    results = executor.map(calls.square, range(300), timeout=WAIT_S)
    known = {future.task_id for future in futures}
    looks = 0
    while not all(future.done() for future in futures):
        stacks = executor.stacks(WAIT_S)
        assert len(stacks) <= 2
        assert all(SILENT not in stack for stack in stacks.values())
        looks += len(stacks.keys() & known)
    assert [future.result(0) for future in futures] == [n * n for n in range(300)]
    assert list(results) == [n * n for n in range(300)]


def test_many_threads_can_look_at_once(make_executor: Any, journal: Any, gate: Path, wait_until: Any) -> None:
    executor = make_executor(2)
    futures = [executor.submit(calls.noted_wait, journal.path, n, gate) for n in range(2)]
    look_when_there(executor, 2, wait_until)
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        looks = [threads.submit(executor.stacks, WAIT_S) for _ in range(40)]
        for look in looks:
            stacks = look.result(WAIT_S)
            assert stacks.keys() == {future.task_id for future in futures}
            assert all("in wait_for" in stack for stack in stacks.values())
    gate.touch()
    assert [future.result(WAIT_S) for future in futures] == [0, 1]


# --- What does not answer ------------------------------------------------------------------------------------------


def test_a_stopped_worker_is_named_and_answers_again_when_it_goes_on(
    context: BaseContext, make_executor: Any, journal: Any, gate: Path, wait_until: Any
) -> None:
    executor = make_executor(2, context)
    futures = [executor.submit(calls.noted_pid_wait, journal.path, gate) for _ in range(2)]
    look_when_there(executor, 2, wait_until)
    stopped, other = map(int, journal.lines())
    stop(stopped, wait_until)
    began = time.monotonic()
    stacks = executor.stacks(0.5)
    took = time.monotonic() - began
    os.kill(stopped, signal.SIGCONT)
    assert 0.5 <= took < WAIT_S / 3
    assert stacks.keys() == {future.task_id for future in futures}
    silent, answering = sorted(stacks.values(), key=lambda stack: SILENT not in stack)
    assert SILENT in silent
    assert str(stopped) in silent
    assert "in wait_for" in answering
    assert SILENT not in answering
    again = executor.stacks(WAIT_S)
    assert again.keys() == stacks.keys()
    assert all("in wait_for" in stack and SILENT not in stack for stack in again.values())
    gate.touch()
    assert {future.result(WAIT_S) for future in futures} == {stopped, other}


def test_a_worker_that_is_asked_often_while_stopped_answers_in_the_end(
    make_executor: Any, journal: Any, gate: Path, wait_until: Any
) -> None:
    executor = make_executor(1)
    future = executor.submit(calls.noted_pid_wait, journal.path, gate)
    pid = int(journal.wait_for(1)[0])
    stop(pid, wait_until)
    for _ in range(20):
        assert SILENT in executor.stacks(0.005)[future.task_id]
    os.kill(pid, signal.SIGCONT)
    assert "in noted_pid_wait" in executor.stacks(WAIT_S)[future.task_id]
    gate.touch()
    assert future.result(WAIT_S) == pid
    assert executor.submit(calls.pid).result(WAIT_S) == pid


def test_an_answer_that_came_too_late_is_not_taken_for_a_later_one(
    make_executor: Any, journal: Any, gate: Path, wait_until: Any, tmp_path: Path
) -> None:
    executor = make_executor(1)
    early = executor.submit(calls.noted_pid_wait, journal.path, gate)
    pid = int(journal.wait_for(1)[0])
    stop(pid, wait_until)
    assert SILENT in executor.stacks(0.01)[early.task_id]
    os.kill(pid, signal.SIGCONT)  # now the answer comes that nobody waits for
    gate.touch()
    assert early.result(WAIT_S) == pid
    late = executor.submit(calls.noted_wait, journal.path, "late", tmp_path / "another")
    journal.wait_for(2)
    stop(pid, wait_until)
    stacks = executor.stacks(0.05)
    os.kill(pid, signal.SIGCONT)
    assert stacks.keys() == {late.task_id}
    assert "noted_pid_wait" not in stacks[late.task_id]
    assert SILENT in stacks[late.task_id]
    assert "in noted_wait" in executor.stacks(WAIT_S)[late.task_id]
    (tmp_path / "another").touch()
    assert late.result(WAIT_S) == "late"


def test_a_stack_is_of_the_call_that_it_is_shown_for(
    make_executor: Any, journal: Any, wait_until: Any, tmp_path: Path
) -> None:
    # The worker is in the first call when it is asked, and may be in the second when it answers.
    executor = make_executor(1)
    for turn in range(40):
        executor.submit(calls.square, 1).result(WAIT_S)  # short ones, so that two travel together
        executor.submit(calls.square, 2).result(WAIT_S)
        gates = [tmp_path / f"{turn}.{which}" for which in ("first", "second")]
        first = executor.submit(calls.noted_pid_wait, journal.path, gates[0])
        second = executor.submit(calls.noted_wait, journal.path, "second", gates[1])
        pid = int(journal.wait_for(turn * 2 + 1)[-1])
        stop(pid, wait_until)
        looks: list[dict[str, str]] = []
        looking = threading.Thread(target=lambda looks=looks: looks.append(executor.stacks(WAIT_S)))
        looking.start()
        wait_until_it_rests(looking, wait_until)
        gates[0].touch()
        os.kill(pid, signal.SIGCONT)
        looking.join(WAIT_S)
        stacks = looks[0]
        gates[1].touch()
        assert (first.result(WAIT_S), second.result(WAIT_S)) == (pid, "second")
        journal.wait_for(turn * 2 + 2)
        for future, own, of_the_other in (
            (first, "in noted_pid_wait", "in noted_wait"),
            (second, "in noted_wait", "in noted_pid_wait"),
        ):
            stack = stacks.get(future.task_id, own)
            assert of_the_other not in stack
            assert stack  # a call that ended meanwhile is not there, or it is said


def test_a_worker_that_dies_while_it_is_asked_keeps_nobody_waiting(
    make_executor: Any, journal: Any, gate: Path, wait_until: Any
) -> None:
    executor = make_executor(2)
    futures = [executor.submit(calls.noted_pid_wait, journal.path, gate) for _ in range(2)]
    victim = int(journal.wait_for(2)[0])
    stop(victim, wait_until)
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        look = thread.submit(executor.stacks, WAIT_S)
        os.kill(victim, signal.SIGKILL)
        assert len(look.result(WAIT_S / 3)) <= 2
    journal.wait_for(3)  # its call runs again
    look_when_there(executor, 2, wait_until)
    gate.touch()
    assert victim not in {future.result(WAIT_S) for future in futures}


def test_a_call_that_holds_the_interpreters_lock_is_named_and_shown_once_it_lets_go(
    context: BaseContext, make_executor: Any, journal: Any, gate: Path, fifo: int, tmp_path: Path, wait_until: Any
) -> None:
    executor = make_executor(2, context)
    waiting = executor.submit(calls.noted_wait, journal.path, "waiting", gate)
    holding = executor.submit(calls.noted_hold_gil, journal.path, tmp_path / "fifo")
    journal.wait_for(2)

    def look() -> Any:
        stacks = executor.stacks(0.1)
        return stacks if SILENT in stacks[holding.task_id] and "in wait_for" in stacks[waiting.task_id] else None

    silent = wait_until(look)
    os.write(fifo, b"!")
    pid = holding.result(WAIT_S)
    assert f"process {pid} " in silent[holding.task_id]
    # The worker owes answers now; what it runs next is shown all the same.
    others = [executor.submit(calls.noted_wait, journal.path, n, gate) for n in range(2)]
    stacks = look_when_there(executor, 2, wait_until)
    assert stacks.keys() <= {future.task_id for future in (waiting, *others)}
    assert len(stacks) == 2
    assert all("in noted_wait" in stack and "in wait_for" in stack for stack in stacks.values())
    gate.touch()
    assert waiting.result(WAIT_S) == "waiting"
    assert [future.result(WAIT_S) for future in others] == [0, 1]


@pytest.mark.parametrize("function", [calls.noted_match, calls.noted_power])
def test_within_the_timeout_it_is_said_that_c_code_does_not_answer(
    make_executor: Any, journal: Any, wait_until: Any, function: Any
) -> None:
    executor = make_executor(1)
    future = executor.submit(function, journal.path)
    journal.wait_for(1)
    wait_until(lambda: SILENT in executor.stacks(0.1)[future.task_id])
    began = time.monotonic()
    stacks = executor.stacks(0.3)
    took = time.monotonic() - began
    assert SILENT in stacks[future.task_id]
    assert 0.3 <= took < WAIT_S / 3
    executor.kill_workers()


def test_while_nobody_answers_the_other_worker_goes_on(
    make_executor: Any, journal: Any, gate: Path, wait_until: Any, tmp_path: Path
) -> None:
    executor = make_executor(2)
    held = executor.submit(calls.noted_pid_wait, journal.path, gate)
    pid = int(journal.wait_for(1)[0])
    stop(pid, wait_until)
    other = executor.submit(calls.noted_wait, journal.path, "other", tmp_path / "another")
    journal.wait_for(2)
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        look = thread.submit(executor.stacks, 3.0)
        (tmp_path / "another").touch()
        assert other.result(WAIT_S) == "other"
        assert executor.submit(calls.square, 3).result(WAIT_S) == 9
        assert not look.done()  # nobody who submits or waits has to wait for the answer
        os.kill(pid, signal.SIGCONT)
        stacks = look.result(WAIT_S)
    assert stacks.keys() >= {held.task_id}
    gate.touch()
    assert held.result(WAIT_S) == pid
