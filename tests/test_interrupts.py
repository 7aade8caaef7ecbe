"""Ctrl-C at any moment: nothing hangs, nothing is lost, and it is raised."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

import omniq_executor
from omniq_executor.dispatch.interrupts import Interrupts, SafeCondition, interrupts

INTERRUPTS = 10_000 // 6 if os.environ.get("OMNIQ_PROOF") else 60  # for each store and start method
ENDED_S = 2.0  # in which a script ends after the last one


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("name", ["store.db", "store"])
@pytest.mark.timeout(60 + INTERRUPTS)
def test_a_session_goes_on_after_each_interrupt(method: str, tmp_path: Path, name: str) -> None:
    """Issue 10: it hung within 15 interrupts. For all of OMNIQ_PROOF: 10,000."""
    seed = random.randrange(1 << 30)
    hunt = Path(__file__).with_name("interrupt_hunt.py")
    env = {**os.environ, "PYTHONPATH": str(Path(omniq_executor.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, hunt, method, tmp_path / name, str(INTERRUPTS), str(seed)],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"seed {seed}:\n{done.stderr[-9000:]}"


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("name", ["store.db", "store"])
def test_a_script_ends_soon_after_the_last_interrupt(script: Any, method: str, name: str, count: int) -> None:
    """Issue 10: two of ten never did."""
    script.write(
        f"""
import multiprocessing, time
from omniq_executor import PersistentExecutor
def nap(n):
    time.sleep(0.01)
    with open("journal", "a") as file: file.write(f"{{n}}\\n")
    return n
if __name__ == "__main__":
    with PersistentExecutor(2, multiprocessing.get_context({method!r}), store={name!r}) as executor:
        futures = [executor.submit(nap, n) for n in range(300)]
        list(executor.map(nap, range(300, 600)))
        [future.result() for future in futures]
"""
    )
    process = script.start()
    script.journal.wait_for(1)
    for _ in range(count):
        time.sleep(random.random() * 0.1)
        process.send_signal(signal.SIGINT)
    began = time.monotonic()
    done = script.finished(process)
    assert time.monotonic() - began < ENDED_S
    assert "KeyboardInterrupt" in done.stderr
    assert done.returncode == -signal.SIGINT
    again = script.run()
    assert again.returncode == 0
    assert "continuing a run" in again.stderr


# --- The block ---


def test_an_interrupt_is_put_off_to_the_end_of_the_block() -> None:
    steps = []
    with pytest.raises(KeyboardInterrupt), interrupts:  # noqa: PT012 - it is the end of the block that raises
        interrupt()
        steps.append("inner")
        with interrupts:
            interrupt()
        steps.append("outer")
    assert steps == ["inner", "outer"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_is_raised_where_a_wait_may_end() -> None:
    with pytest.raises(KeyboardInterrupt), interrupts:  # noqa: PT012 - it is the end of the block that raises
        interrupt()
        assert interrupts.is_pending
        with interrupts:
            interrupts.deliver()  # not there: what is around it may be under way
        interrupts.deliver()
        raise AssertionError


def test_what_sleeps_in_the_block_is_woken() -> None:
    woken = threading.Event()
    with pytest.raises(KeyboardInterrupt), interrupts:  # noqa: PT012 - it is the end of the block that raises
        before = interrupts.set_wake(woken.set)
        interrupt()
        assert woken.wait(5)
        interrupts.set_wake(before)


def test_the_handler_of_the_program_is_called_once_and_need_not_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: called.append(number))
    try:
        with interrupts:
            interrupt()
            interrupt()
            assert called == []
            interrupts.deliver()
            assert called == [signal.SIGINT]
        assert called == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_what_is_no_function_is_left_alone(handler: Any) -> None:
    before = signal.signal(signal.SIGINT, handler)
    try:
        with interrupts:
            assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_code_of_the_users_is_interrupted_and_the_rest_put_off_again() -> None:
    def interrupted(_: Any) -> None:
        interrupt()
        raise AssertionError

    with interrupts:
        with pytest.raises(KeyboardInterrupt):
            interrupts.run(interrupted, None)
        interrupts.run(str, None)
        with pytest.raises(KeyboardInterrupt):
            interrupts.run(lambda _: interrupts.__enter__() or interrupt() or interrupts.__exit__(), None)  # type: ignore[func-returns-value]
        assert not interrupts.is_pending
        handler = signal.getsignal(signal.SIGINT)
        assert handler == interrupts._note


def test_a_handler_that_code_of_the_users_sets_stays() -> None:
    called: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    try:
        with interrupts:
            interrupts.run(lambda _: signal.signal(signal.SIGINT, lambda number, _: called.append(number)), None)
            interrupt()
            assert called == []
        assert called == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_put_nothing_off() -> None:
    def enter() -> None:
        with interrupts:
            handlers.append(signal.getsignal(signal.SIGINT))
            assert not interrupts.hold(SystemExit())

    handlers: list[Any] = []
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler]


def test_every_moment_of_entering_and_leaving_is_safe() -> None:
    """At each line that Python runs meanwhile an interrupt comes: it is raised, and the handler is as before."""
    mine = Interrupts()
    line = 0
    raised = 0

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal line
        if "interrupts.py" not in frame.f_code.co_filename:
            return None
        if event == "line":
            line += 1
            if line == at:
                interrupt()
        return trace

    for at in range(1, 40):
        line = 0
        is_within = False
        try:
            sys.settrace(trace)
            with mine:
                is_within = True
                mine.deliver()
        except KeyboardInterrupt:
            raised += 1
        finally:
            sys.settrace(None)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert mine._depth == 0
        assert (raised == at) or line < at, (at, line, is_within)
    assert raised > 10


# --- Conditions of futures ---


def test_a_condition_of_a_future_is_not_left_taken() -> None:
    future = Future[None]()
    SafeCondition.protect(future._condition)  # type: ignore[attr-defined]
    condition: Any = future._condition  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt), condition:
        interrupt()
    condition.acquire()
    interrupt()
    with pytest.raises(KeyboardInterrupt):
        condition.release()
    taken = []
    thread = threading.Thread(target=lambda: taken.append(condition.acquire(timeout=5)))
    thread.start()
    thread.join()
    assert taken == [True]
