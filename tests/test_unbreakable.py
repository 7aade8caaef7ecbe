"""Nothing hangs and nothing is left over: large values, waiting calls, full pipes, faults of our own, endings."""

import concurrent.futures
import contextlib
import gc
import mmap
import multiprocessing
import os
import signal
import sqlite3
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed, wait
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import calls
import pytest

from omniq_executor import PersistentExecutor, PoolBroken, SerializationError, Status, open_store

WAIT_S = 30.0
SOON_S = 5.0  # for what takes milliseconds, where a hang is what is tested for

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="stops processes or looks in /proc")


def stop(pid: int, wait_until: Any) -> None:
    """Stop a process, all of its threads."""
    os.kill(pid, signal.SIGSTOP)
    stat = Path(f"/proc/{pid}/stat")
    wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", what=f"{pid} to stop")


def run_bounded(function: Callable[[], Any], timeout_s: float = WAIT_S) -> Any:
    """What a function returns, or raises; fails if it does neither in time."""
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 - raised below
            future.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if thread.is_alive():
        frames = traceback.format_stack(sys._current_frames()[thread.ident or 0])
        raise AssertionError(f"still there after {timeout_s} s:\n{''.join(frames)}")
    return future.result(0)


def all_done(futures: Any, timeout_s: float = WAIT_S) -> None:
    """Wait for all, without taking turns for them."""
    _, left = wait(futures, timeout=timeout_s)
    assert not left, f"{len(left)} of {len(futures)} do not end"


# --- Large values --------------------------------------------------------------------------------------------------


def test_hundreds_of_megabytes_go_both_ways_at_once(executor: PersistentExecutor) -> None:
    size = 64_000_000  # each, four times
    values: list[Any] = [b"\x00\xff" * (size // 2), "ab" * (size // 2)]  # one is a pickle, one is JSON
    futures = [executor.submit(calls.echo, value) for value in values]
    for future in as_completed(futures, timeout=WAIT_S * 2):
        assert future.result(0) == values[futures.index(future)]
    assert executor.submit(calls.square, 3).result(WAIT_S) == 9


def test_a_result_too_large_for_the_store_fails_its_own_call_only(executor: PersistentExecutor, tmp_path: Path) -> None:
    # SQLite's limit is 1 GB; here it is lowered, to the same effect, and below what goes into a file.
    assert executor.submit(calls.square, 3).result(WAIT_S) == 9
    executor.store.db.connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 100_000)
    large = executor.submit(calls.zeros, 200_000)
    small = executor.submit(calls.square, 4)
    all_done([large, small], SOON_S)
    assert small.result(0) == 16
    assert large.exception(0) is not None
    assert "too big" in str(large.exception(0)) or "too large" in str(large.exception(0))
    assert executor.submit(calls.square, 5).result(WAIT_S) == 25
    assert large.task().status is Status.FAILED


def test_a_result_above_two_gigabytes_fails_its_own_call_only(executor: PersistentExecutor, gate: Path) -> None:
    """Issue 10: the executor ended with it."""
    dispatcher = executor._dispatcher
    large, small = executor.submit(calls.wait_for, gate), executor.submit(calls.wait_for, gate)
    with dispatcher.driver:
        gate.touch()
        reports = dispatcher.engine.reports
        while len(reports) < 2:
            dispatcher.driver.poll(0.01)
        reports.sort(key=lambda report: report.ids[0])
        reports[0] = reports[0]._replace(payload=mmap.mmap(-1, 1 << 31))  # which takes no memory
    all_done([large, small], SOON_S)
    assert small.result(0) == gate.name
    with pytest.raises(SerializationError, match="too large"):
        large.result(0)
    assert executor.submit(calls.square, 5).result(WAIT_S) == 25


# --- Calls that wait for others ------------------------------------------------------------------------------------


@pytest.mark.parametrize("others", [0, 1, 50])
def test_a_call_can_wait_for_one_that_was_submitted_after_it(
    context: BaseContext, make_executor: Any, gate: Path, others: int
) -> None:
    executor = make_executor(2, context)
    list(executor.map(calls.square, range(2000), timeout=WAIT_S))  # now many calls travel together
    before = [executor.submit(calls.square, n) for n in range(others)]
    waiting = executor.submit(calls.wait_for, gate)
    between = [executor.submit(calls.square, n) for n in range(others)]
    opening = executor.submit(calls.noted, gate, "open")
    after = [executor.submit(calls.square, n) for n in range(others)]
    all_done([waiting, opening])
    assert (waiting.result(0), opening.result(0)) == ("gate", "open")
    for futures in (before, between, after):
        assert [future.result(WAIT_S) for future in futures] == [n * n for n in range(others)]


def test_an_item_of_a_map_can_wait_for_a_later_one(executor: PersistentExecutor, gate: Path, journal: Any) -> None:
    list(executor.map(calls.square, range(2000), timeout=WAIT_S))
    results = executor.map(calls.wait_or_open, [gate] * 600, [0] * 600, [599] * 600, range(600), timeout=WAIT_S)
    assert list(results) == list(range(600))


@pytest.mark.parametrize("waiting", [0, 1])
def test_a_call_can_wait_for_large_ones_that_were_submitted_after_it(
    make_executor: Any, journal: Any, tmp_path: Path, waiting: int
) -> None:
    # Once large arguments fill what a worker has room for, the next ones must not end up behind a waiting call.
    executor = make_executor(2)
    list(executor.map(calls.square, range(3000), timeout=WAIT_S))
    gates = [tmp_path / "first", tmp_path / "second"]
    held = [executor.submit(calls.noted_pid_wait, journal.path, gate) for gate in gates]
    journal.wait_for(2)
    short = [executor.submit(calls.square, n) for n in range(100)]
    large = [executor.submit(len, b"x" * 600_000) for _ in range(20)]
    gates[1 - waiting].touch()
    all_done([*short, *large], SOON_S)  # the call that waits would open its own gate now
    assert not held[waiting].done()
    gates[waiting].touch()
    assert len({future.result(WAIT_S) for future in held}) == 2


@pytest.mark.parametrize("waiting", [0, 1])
def test_no_call_is_lost_if_a_worker_dies_that_had_calls_taken_back(
    make_executor: Any, journal: Any, tmp_path: Path, waiting: int
) -> None:
    executor = make_executor(2, crash_retries=10)
    list(executor.map(calls.square, range(3000), timeout=WAIT_S))
    gates = [tmp_path / "first", tmp_path / "second"]
    held = [executor.submit(calls.noted_pid_wait, journal.path, gate) for gate in gates]
    pids = [int(pid) for pid in journal.wait_for(2)]
    short = [executor.submit(calls.square, n) for n in range(100)]
    large = [executor.submit(len, b"x" * 600_000) for _ in range(20)]
    gates[1 - waiting].touch()
    all_done(short, SOON_S)
    done = {held[1 - waiting].result(WAIT_S)}
    (victim,) = set(pids) - done
    os.kill(victim, signal.SIGKILL)
    gates[waiting].touch()
    all_done([*held, *large], SOON_S)
    assert [future.result(0) for future in short] == [n * n for n in range(100)]
    assert [future.result(0) for future in large] == [600_000] * 20


# --- Full pipes and stopped workers --------------------------------------------------------------------------------


@linux_only
def test_a_stopped_worker_that_is_given_much_holds_up_nobody(
    context: BaseContext, make_executor: Any, journal: Any, gate: Path, wait_until: Any
) -> None:
    executor = make_executor(2, context)
    held = executor.submit(calls.noted_pid_wait, journal.path, gate)
    pid = int(journal.wait_for(1)[0])
    stop(pid, wait_until)
    values = [bytes([n]) * 1_000_000 for n in range(12)]
    futures = [executor.submit(calls.echo, value) for value in values]
    results = executor.map(calls.echo, values, timeout=WAIT_S)
    all_done(futures)
    assert list(results) == values
    assert not held.done()
    os.kill(pid, signal.SIGCONT)
    gate.touch()
    assert held.result(WAIT_S) == pid
    assert [future.result(0) for future in futures] == values


@linux_only
def test_a_worker_stopped_in_the_midst_of_a_large_message_goes_on_with_it(make_executor: Any, wait_until: Any) -> None:
    executor = make_executor(1)
    pid = executor.submit(calls.pid).result(WAIT_S)
    stop(pid, wait_until)
    values = [bytes([n]) * 3_000_000 for n in range(10)]
    futures = [executor.submit(calls.echo, value) for value in values]  # the first fills the pipe
    assert not any(future.done() for future in futures)
    os.kill(pid, signal.SIGCONT)
    assert [future.result(WAIT_S) for future in futures] == values


@linux_only
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_call_given_to_an_idle_worker_that_is_stopped_runs_elsewhere(
    make_executor: Any, journal: Any, gate: Path, wait_until: Any, stopped: int
) -> None:
    executor = make_executor(2)
    both = [executor.submit(calls.noted_pid_wait, journal.path, gate) for _ in range(2)]
    pids = sorted(map(int, journal.wait_for(2)))
    gate.touch()
    all_done(both)
    stop(pids[stopped], wait_until)
    for n in range(5):
        assert executor.submit(calls.square, n).result(SOON_S) == n * n
    for n in range(5):
        future = executor.submit(calls.square, n)
        all_done([future], SOON_S)
        assert future.result(0) == n * n
    os.kill(pids[stopped], signal.SIGCONT)
    assert list(executor.map(calls.square, range(50), timeout=WAIT_S)) == [n * n for n in range(50)]


def test_a_callback_that_takes_its_time_loses_no_result_that_comes_meanwhile(
    executor: PersistentExecutor, gate: Path
) -> None:
    entered, leave = threading.Event(), threading.Event()
    first = executor.submit(calls.wait_for, gate)
    first.add_done_callback(lambda _: (entered.set(), leave.wait(WAIT_S)))
    gate.touch()
    assert entered.wait(WAIT_S)  # in the dispatcher's own thread, since this one takes no turns
    others = [executor.submit(calls.echo, b"x" * 1_000_000) for _ in range(20)]  # far more than a pipe holds
    late = executor.submit(calls.square, 5)
    leave.set()
    all_done([first, *others, late])
    assert [len(future.result(0)) for future in others] == [1_000_000] * 20
    assert late.result(0) == 25


# --- More than one who waits ---------------------------------------------------------------------------------------


def test_a_map_and_futures_of_its_items_all_get_their_results(executor: PersistentExecutor, gate: Path) -> None:
    results = executor.map(calls.wait_or_echo, [gate] * 6, range(6), timeout=SOON_S)
    futures = executor.futures()
    assert len(futures) == 6
    gate.touch()
    assert list(results) == list(range(6))
    all_done(futures, SOON_S)
    assert sorted(future.result(0) for future in futures) == list(range(6))


def test_short_calls_do_not_wait_for_one_that_another_thread_waits_for(
    executor: PersistentExecutor, gate: Path
) -> None:
    # Calls of a burst are held for a moment; the thread that takes the turns sleeps meanwhile.
    held = executor.submit(calls.wait_for, gate)
    waiting = threading.Thread(target=held.result, args=(WAIT_S,))
    waiting.start()
    for n in range(200):
        future = executor.submit(calls.square, n)
        all_done([future], SOON_S)
        assert future.result(0) == n * n
    gate.touch()
    waiting.join(WAIT_S)
    assert held.result(WAIT_S) == "gate"


def test_an_item_of_a_map_that_is_dropped_runs_for_who_else_waits_for_it(
    executor: PersistentExecutor, gate: Path
) -> None:
    results = executor.map(calls.wait_for, [gate] * 8, timeout=WAIT_S)
    futures = executor.futures()
    del results
    gate.touch()
    all_done(futures, SOON_S)
    assert [future.exception(0) for future in futures] == [None] * 8


# --- Faults of our own ---------------------------------------------------------------------------------------------

FAULT = "a fault of our own"
PLACES: dict[str, tuple[str, str, bool]] = {
    # what, the method that raises, and whether it does so after its work
    "as a turn begins": ("engine", "steal", False),
    "before the commit": ("store", "turn", False),
    "after the commit": ("store", "turn", True),
    "when work is given": ("engine", "give", False),
    "after work was given": ("engine", "give", True),
    "when a worker is heard": ("engine", "_on_ready", False),
    "when it is looked how much room there is": ("engine", "free_capacity", False),
    "between turns": ("engine", "next_check", False),
}


class Fault:
    """Makes a method raise RuntimeError, once (or always), in a thread of one kind, when it is armed."""

    def __init__(self, executor: PersistentExecutor, place: str, is_there: Callable[[], bool]) -> None:
        where, name, after = PLACES[place]
        target: Any = {"engine": executor._dispatcher.engine, "store": executor.store}[where]
        original = getattr(target, name)
        self.fired = threading.Event()
        self.armed = self.always = False

        def fail_here(*args: Any, **kwargs: Any) -> Any:
            if self.armed and is_there() and (self.always or not self.fired.is_set()):
                if after:
                    original(*args, **kwargs)
                self.fired.set()
                raise RuntimeError(FAULT)
            return original(*args, **kwargs)

        setattr(target, name, fail_here)


def is_of_the_fault(error: BaseException) -> bool:
    """Whether the error tells of it, with its traceback."""
    text = "".join(traceback.format_exception(error))
    return FAULT in text and "in fail_here" in text


def check_after_a_fault(
    executor: PersistentExecutor,
    futures: list[Any],
    results: Any,
    pids: list[int],
    wait_until: Any,
    is_alive: Any,
    raised: Sequence[BaseException] = (),
) -> None:
    """Everything is resolved: rightly, or with the traceback of the fault, and then the executor is out of use.

    `raised` is what submits have raised.
    """
    all_done(futures, SOON_S)
    errors = [*raised, *(future.exception(0) for future in futures)]
    assert {future.result(0) for future in futures if future.exception(0) is None} <= {"gate"}
    try:
        mapped = run_bounded(lambda: list(results))
    except RuntimeError as error:
        errors.append(error)
    else:
        assert mapped == ["gate"] * 4
    assert all(error is None or is_of_the_fault(error) for error in errors), errors
    if any(errors):
        with pytest.raises(RuntimeError, match=FAULT) as caught:
            executor.submit(calls.square, 3)
        assert is_of_the_fault(caught.value)
    else:
        future = executor.submit(calls.square, 3)
        all_done([future], SOON_S)
        assert future.result(0) == 9
    run_bounded(lambda: executor.shutdown() or True)
    wait_until(lambda: not any(map(is_alive, pids)), what="the workers to end")


def start_some(executor: PersistentExecutor, journal: Any, gate: Path) -> tuple[list[Any], Any, list[int]]:
    """Calls in both workers, more that wait for them, and a map: (futures, results of the map, process ids)."""
    futures = [executor.submit(calls.noted_pid_then_gate, journal.path, gate) for _ in range(8)]
    results = executor.map(calls.wait_for, [gate] * 4, timeout=SOON_S)
    return futures, results, [int(pid) for pid in journal.wait_for(2)]


@pytest.mark.parametrize("place", PLACES)
def test_a_fault_in_the_dispatchers_own_thread_fails_all_futures_and_ends_all(
    make_executor: Any, journal: Any, gate: Path, wait_until: Any, is_alive: Any, place: str
) -> None:
    executor = make_executor(2)
    futures, results, pids = start_some(executor, journal, gate)
    main = threading.current_thread()
    fault = Fault(executor, place, lambda: threading.current_thread() is not main)
    fault.armed = True
    gate.touch()
    assert fault.fired.wait(WAIT_S)
    check_after_a_fault(executor, futures, results, pids, wait_until, is_alive)


@pytest.mark.parametrize("place", PLACES)
def test_a_fault_in_a_thread_that_waits_fails_all_futures_and_ends_all(
    make_executor: Any, journal: Any, gate: Path, wait_until: Any, is_alive: Any, place: str
) -> None:
    executor = make_executor(2)
    futures, results, pids = start_some(executor, journal, gate)
    main = threading.current_thread()
    fault = Fault(executor, place, lambda: threading.current_thread() is main)
    opener = threading.Thread(target=lambda: (wait_until(lambda: fault.armed), gate.touch()))
    opener.start()
    fault.armed = True
    for future in futures:
        if not fault.fired.is_set():
            future.exception(WAIT_S)
    opener.join(WAIT_S)
    fault.armed = False
    check_after_a_fault(executor, futures, results, pids, wait_until, is_alive)


@pytest.mark.parametrize("place", PLACES)
def test_a_fault_in_a_thread_that_submits_leaves_no_future_unresolved(
    make_executor: Any, journal: Any, gate: Path, wait_until: Any, is_alive: Any, place: str
) -> None:
    executor = make_executor(2)
    futures, results, pids = start_some(executor, journal, gate)
    main = threading.current_thread()
    fault = Fault(executor, place, lambda: threading.current_thread() is main)
    raised: list[RuntimeError] = []
    fault.armed = True
    gate.touch()
    deadline = time.monotonic() + 1.0  # some places are never reached by a submit
    while not fault.fired.is_set() and time.monotonic() < deadline:
        try:
            futures.append(executor.submit(calls.wait_for, gate))
        except RuntimeError as error:
            raised.append(error)
    fault.armed = False
    check_after_a_fault(executor, futures, results, pids, wait_until, is_alive, raised)


@pytest.mark.parametrize("place", PLACES)
def test_a_fault_that_comes_again_and_again_cannot_keep_shutdown_from_ending(
    make_executor: Any, journal: Any, gate: Path, wait_until: Any, is_alive: Any, place: str
) -> None:
    executor = make_executor(2)
    futures, _, pids = start_some(executor, journal, gate)
    fault = Fault(executor, place, lambda: True)
    fault.armed = fault.always = True
    gate.touch()
    assert fault.fired.wait(WAIT_S)
    all_done(futures, SOON_S)
    with pytest.raises(RuntimeError, match=FAULT):
        executor.submit(calls.square, 3)
    run_bounded(lambda: executor.shutdown() or True)
    wait_until(lambda: not any(map(is_alive, pids)), what="the workers to end")


# --- Workers that cannot be started --------------------------------------------------------------------------------


def expect_broken(executor: PersistentExecutor, match: str) -> None:
    """Every future says so, whether somebody takes turns for it or not; and so does whoever comes later."""
    futures, raised = [], []
    for n in range(4):
        try:
            futures.append(executor.submit(calls.square, n))
        except PoolBroken as error:  # it is known by now
            raised.append(str(error))
    assert all(match in text for text in raised)
    all_done(futures, SOON_S * 2)
    for future in futures:
        with pytest.raises(PoolBroken, match=match):
            future.result(0)
    with pytest.raises(PoolBroken, match=match):
        executor.submit(calls.square, 1)
    with pytest.raises(PoolBroken, match=match):
        list(executor.map(calls.square, range(3)))
    run_bounded(lambda: executor.shutdown() or True)


@pytest.fixture(params=[name for name in ("forkserver", "spawn") if name in multiprocessing.get_all_start_methods()])
def pickling_context(request: pytest.FixtureRequest) -> BaseContext:
    """With fork, initargs are inherited and not loaded."""
    return multiprocessing.get_context(request.param)


def test_initargs_that_cannot_be_loaded_are_named_with_the_workers_traceback(
    pickling_context: BaseContext, make_executor: Any
) -> None:
    bad = calls.LoadsBy(calls.raise_value_error, "these initargs do not load")
    expect_broken(make_executor(2, pickling_context, calls.remember, (bad,)), "ValueError: these initargs do not load")
    executor = make_executor(1, pickling_context, calls.remember, (bad,))
    error = executor.submit(calls.square, 1).exception(WAIT_S)
    assert "in raise_value_error" in str(error)
    assert "worker.py" in str(error)


def test_initargs_that_exit_when_they_are_loaded_are_named(pickling_context: BaseContext, make_executor: Any) -> None:
    bad = calls.LoadsBy(calls.raise_system_exit, 3)
    expect_broken(make_executor(2, pickling_context, calls.remember, (bad,)), "SystemExit: 3")


def test_initargs_that_kill_the_worker_when_they_are_loaded_are_named_by_the_signal(
    pickling_context: BaseContext, make_executor: Any
) -> None:
    bad = calls.LoadsBy(calls.kill_self)
    expect_broken(make_executor(2, pickling_context, calls.remember, (bad,)), "SIGKILL")


def test_initargs_that_cannot_be_pickled_are_named(pickling_context: BaseContext, make_executor: Any) -> None:
    expect_broken(make_executor(2, pickling_context, calls.remember, (threading.Lock(),)), "lock")


NO_INTERPRETER = """
import multiprocessing, sys
from concurrent.futures import wait
from omniq_executor import PersistentExecutor, PoolBroken
if __name__ == "__main__":
    context = multiprocessing.get_context({method!r})
    context.set_executable({executable!r})
    executor = PersistentExecutor(2, context)
    futures = []
    for n in range(3):
        try:
            futures.append(executor.submit(pow, n, 2))
        except PoolBroken:
            pass
    print(len(wait(futures, 15).not_done), {{type(future.exception(1)) for future in futures}} <= {{PoolBroken}})
    executor.shutdown()
"""


@pytest.mark.parametrize("executable", ["/bin/false", "/nonexistent"])
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_an_interpreter_that_dies_at_once_breaks_the_pool_and_every_future_says_so(
    script: Any, method: str, executable: str
) -> None:
    script.write(NO_INTERPRETER.format(method=method, executable=executable))
    done = script.run()
    assert (done.returncode, done.stdout) == (0, "0 True\n"), done.stderr


def test_workers_that_die_at_start_do_not_break_a_pool_in_which_others_work(
    context: BaseContext, make_executor: Any, journal: Any, gate: Path, tmp_path: Path
) -> None:
    executor = make_executor(2, context, calls.die_unless_first, (journal.path,))
    held = executor.submit(calls.noted, tmp_path / "running", "held")  # the first worker is there
    held.result(WAIT_S)
    held = executor.submit(calls.noted_wait, tmp_path / "running", "held", gate)
    began = time.monotonic()
    others = [executor.submit(calls.square, n) for n in range(5)]
    journal.wait_for(5)  # starts
    time.sleep(0.5)  # in which it would be started some hundred times
    starts = len(journal.lines())
    assert starts <= 5 + (time.monotonic() - began) / 0.2  # a few at once, and then one in 0.2 s
    assert not held.done()
    gate.touch()
    all_done([held, *others], SOON_S)
    assert [future.result(0) for future in others] == [n * n for n in range(5)]


@linux_only
def test_while_the_system_refuses_new_processes_the_workers_that_are_there_do_all(method: str, script: Any) -> None:
    script.write(f"""
import multiprocessing, os, resource
from concurrent.futures import wait
from omniq_executor import PersistentExecutor
if __name__ == "__main__":
    with PersistentExecutor(2, multiprocessing.get_context({method!r})) as executor:
        first = executor.submit(os.getpid).result()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))), hard))
        futures = [executor.submit(os.getpid) for _ in range(20)]
        print(len(wait(futures, 20).not_done), {{future.result() for future in futures}} == {{first}})
        print(set(executor.map(abs, range(-100, 0))) == set(range(1, 101)))
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        print(sum(executor.map(abs, range(100))))
""")
    done = script.run()
    assert (done.returncode, done.stdout) == (0, "0 True\nTrue\n4950\n"), done.stderr


# --- Helpers that die ----------------------------------------------------------------------------------------------


def children_of(pid: int) -> dict[int, str]:
    """The living children of a process, with their command lines."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, *_ = path.read_text().rpartition(")")[2].split()
            if int(parent) == pid and state not in "ZX":
                found[int(path.parent.name)] = (path.parent / "cmdline").read_text()
        except (FileNotFoundError, ProcessLookupError):
            pass
    return found


@linux_only
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_death_of_the_fork_server_costs_no_result(
    make_executor: Any, journal: Any, gate: Path, is_alive: Any, wait_until: Any
) -> None:
    executor = make_executor(2, multiprocessing.get_context("forkserver"), crash_retries=2)
    futures = [executor.submit(calls.noted_pid_wait, journal.path, gate) for _ in range(6)]
    old = [int(pid) for pid in journal.wait_for(2)]
    (server,) = [pid for pid, command in children_of(os.getpid()).items() if "forkserver" in command]
    os.kill(server, signal.SIGKILL)
    journal.wait_for(4)  # both calls run again, in workers of another fork server
    gate.touch()
    all_done(futures)
    assert not {future.result(0) for future in futures} & set(old)
    wait_until(lambda: not any(map(is_alive, old)), what="the old workers to end")
    assert executor.submit(calls.square, 3).result(WAIT_S) == 9


@linux_only
def test_after_the_death_of_the_nursery_every_future_is_resolved(
    make_executor: Any, journal: Any, gate: Path, is_alive: Any, wait_until: Any
) -> None:
    before = set(children_of(os.getpid()))
    executor = make_executor(2, multiprocessing.get_context("fork"))
    futures = [executor.submit(calls.noted_pid_wait, journal.path, gate) for _ in range(6)]
    (fork_server,) = set(children_of(os.getpid())) - before
    old = [int(pid) for pid in journal.wait_for(2)]
    os.kill(fork_server, signal.SIGKILL)
    all_done(futures, SOON_S)
    assert all(isinstance(future.exception(0), PoolBroken) for future in futures)
    with pytest.raises(PoolBroken):
        executor.submit(calls.square, 3)
    run_bounded(lambda: executor.shutdown() or True)
    wait_until(lambda: not any(map(is_alive, old)), what="the workers to end")


def test_an_executor_ends_whose_nursery_another_thread_has_seen_end(
    make_executor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """multiprocessing asks for the end of each child wherever a process is started, and notes it a moment later."""
    executor = make_executor(1, multiprocessing.get_context("fork"))
    executor.submit(calls.square, 3).result(WAIT_S)
    process = executor._dispatcher.engine._launcher._nursery._popen
    monkeypatch.setattr(process, "poll", lambda flag=0: None)
    run_bounded(lambda: executor.shutdown() or True)
    with contextlib.closing(open_store(executor.store.address)) as store:
        assert store.owners() == []


# --- What is left over ---------------------------------------------------------------------------------------------


def zombies_below(ancestor: int) -> list[int]:
    """Descendants of a process that have ended and that nobody has waited for."""
    parents, states = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, *_ = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        pid = int(path.parent.name)
        parents[pid], states[pid] = int(parent), state

    def is_below(pid: int) -> bool:
        while pid in parents:
            pid = parents[pid]
            if pid == ancestor:
                return True
        return False

    return [pid for pid, state in states.items() if state == "Z" and is_below(pid)]


@linux_only
def test_workers_that_were_replaced_leave_no_zombies(
    method: str, context: BaseContext, make_executor: Any, wait_until: Any
) -> None:
    count = 100 if method != "spawn" else 20
    executor = make_executor(2, context, max_tasks_per_child=1)
    futures = [executor.submit(calls.pid) for _ in range(count)]
    all_done(futures, WAIT_S * 2)
    pids = Counter(future.result(0) for future in futures)
    assert set(pids.values()) == {1}
    # While the executor lives: its end would take them along.
    wait_until(lambda: not zombies_below(os.getpid()), what="zombies to go")
    executor.shutdown()
    assert zombies_below(os.getpid()) == []


@linux_only
def test_workers_that_were_killed_leave_no_zombies(context: BaseContext, make_executor: Any, wait_until: Any) -> None:
    executor = make_executor(2, context)
    for _ in range(10):
        os.kill(executor.submit(calls.pid).result(WAIT_S), signal.SIGKILL)
        assert executor.submit(calls.square, 3).result(WAIT_S) == 9
    wait_until(lambda: not zombies_below(os.getpid()), what="zombies to go")


@linux_only
def test_after_the_death_of_the_parent_a_worker_that_holds_the_lock_goes_when_it_lets_go(
    method: str, script: Any, wait_until: Any, is_alive: Any
) -> None:
    (script.folder / "calls.py").write_text(Path(calls.__file__).read_text())
    script.write(f"""
import multiprocessing, pathlib, calls
from omniq_executor import PersistentExecutor
if __name__ == "__main__":
    with PersistentExecutor(2, multiprocessing.get_context({method!r})) as executor:
        executor.submit(calls.noted_hold_gil, "journal", "fifo")
        executor.submit(calls.noted_pid_wait, "journal", pathlib.Path("gate")).result()
""")
    os.mkfifo(script.folder / "fifo")
    fifo = os.open(script.folder / "fifo", os.O_RDWR)
    try:
        process = script.start()
        workers = [int(pid) for pid in script.journal.wait_for(2)]
        process.kill()
        process.wait(WAIT_S)
        wait_until(lambda: not all(map(is_alive, workers)), timeout_s=2, what="the other worker to end")
        (holding,) = filter(is_alive, workers)
        os.write(fifo, b"!")
        wait_until(lambda: not is_alive(holding), timeout_s=2, what="the worker that held the lock to end")
        wait_until(lambda: not script.members(process), timeout_s=5, what="the helpers of multiprocessing to end")
    finally:
        os.close(fifo)


# --- Threads and deletion ------------------------------------------------------------------------------------------


def test_threads_can_come_and_go_with_what_they_submitted(executor: PersistentExecutor) -> None:
    futures: dict[Any, int] = {}

    def come_and_go(n: int) -> None:
        if n % 3 == 0:
            futures[executor.submit(calls.square, n)] = n  # and leave it to the others
        elif n % 3 == 1:
            assert executor.submit(calls.square, n).result(WAIT_S) == n * n
        else:
            assert list(executor.map(calls.square, range(n), timeout=WAIT_S)) == [i * i for i in range(n)]

    executor.submit(calls.square, 1).result(WAIT_S)
    before = threading.active_count()
    done = 0
    for n in range(0, 120, 6):
        threads = [threading.Thread(target=come_and_go, args=(n + i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
            done += not thread.is_alive()
    assert done == 120
    all_done(futures)
    assert all(future.result(0) == n * n for future, n in futures.items())
    assert threading.active_count() == before


def test_a_thread_can_end_while_it_is_the_one_that_takes_the_turns(
    executor: PersistentExecutor, gate: Path, wait_until: Any
) -> None:
    held = executor.submit(calls.wait_for, gate)
    for _ in range(20):

        def give_up() -> None:
            with pytest.raises(TimeoutError):
                held.result(0.01)

        thread = threading.Thread(target=give_up)
        thread.start()
        thread.join(WAIT_S)
        assert not thread.is_alive()
    gate.touch()
    all_done([held])
    assert held.result(0) == "gate"


def test_an_executor_can_be_dropped_in_another_thread(
    context: BaseContext, store: Path, wait_until: Any, is_alive: Any
) -> None:
    before = threading.active_count()
    executors = [PersistentExecutor(2, context, store=store)]
    futures = [executors[0].submit(calls.pid) for _ in range(20)]
    run_bounded(lambda: (executors.clear(), gc.collect()))
    all_done(futures)
    pids = {future.result(0) for future in futures}
    wait_until(lambda: not any(map(is_alive, pids)), what="the workers to end")
    wait_until(lambda: threading.active_count() == before, what="the executor's thread to end")


def test_an_executor_can_be_made_and_dropped_by_a_thread_that_is_gone(
    store: Path, wait_until: Any, is_alive: Any
) -> None:
    def make() -> list[Any]:
        executor = PersistentExecutor(2, store=store)
        return [executor.submit(calls.pid) for _ in range(20)]

    futures = run_bounded(make)
    gc.collect()
    all_done(futures)
    wait_until(lambda: not any(is_alive(future.result(0)) for future in futures), what="the workers to end")


def test_an_executor_can_be_dropped_by_a_callback_of_its_own(store: Path, wait_until: Any, is_alive: Any) -> None:
    executors = [PersistentExecutor(2, store=store)]
    first = executors[0].submit(calls.pid)
    others = [executors[0].submit(calls.square, n) for n in range(50)]
    first.add_done_callback(lambda _: (executors.clear(), gc.collect()))
    all_done([first, *others])
    assert [future.result(0) for future in others] == [n * n for n in range(50)]
    wait_until(lambda: not is_alive(first.result(0)), what="the workers to end")


def test_an_executor_in_a_cycle_can_be_collected_in_the_turn_of_another(
    executor: PersistentExecutor, tmp_path: Path, wait_until: Any, is_alive: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    doomed: Any = PersistentExecutor(1, store=tmp_path / "doomed.db")
    futures = [doomed.submit(calls.pid) for _ in range(5)]
    doomed.itself = doomed
    del doomed
    turn = executor.store.turn
    monkeypatch.setattr(executor.store, "turn", lambda *args: (gc.collect(), turn(*args))[1])
    assert list(executor.map(calls.square, range(50), timeout=WAIT_S)) == [n * n for n in range(50)]
    all_done(futures)
    wait_until(lambda: not any(is_alive(future.result(0)) for future in futures), what="the workers to end")


def test_an_executor_can_be_shut_down_by_many_threads_while_others_submit(
    make_executor: Any, is_alive: Any, wait_until: Any
) -> None:
    executor = make_executor(2)
    pid = executor.submit(calls.pid).result(WAIT_S)
    futures: list[Any] = []
    barrier = threading.Barrier(8, timeout=WAIT_S)

    def submit() -> None:
        barrier.wait()
        try:
            while True:
                futures.append(executor.submit(calls.square, 3))
        except RuntimeError as error:
            assert "after shutdown" in str(error)  # noqa: PT017 - it is how the loop ends

    def end() -> None:
        barrier.wait()
        wait_until(lambda: len(futures) > 50)
        executor.shutdown()

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        jobs = [threads.submit(submit) for _ in range(4)] + [threads.submit(end) for _ in range(4)]
        for job in jobs:
            job.result(WAIT_S)
    all_done(futures)
    assert all(future.exception(0) is None for future in futures)
    assert not is_alive(pid)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_process_that_a_call_has_forked_and_that_comes_back_ends_and_tells_nobody(
    context: BaseContext, make_executor: Any
) -> None:
    executor = make_executor(1, context)
    results = executor.map(calls.fork_and_come_back, ["return", "raise", "exit", "return"], timeout=WAIT_S)
    assert list(results) == ["parent of 0", "parent of 1", "parent of 3", "parent of 0"]
    assert executor.submit(calls.square, 3).result(WAIT_S) == 9
