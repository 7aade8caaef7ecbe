"""Ctrl-C at any moment: nothing hangs, nothing is lost, and it is raised."""

import concurrent.futures
import contextlib
import functools
import itertools
import multiprocessing
import os
import random
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import calls
import pytest

import omniq_executor
from omniq_executor import PersistentExecutor, PoolBroken, Status, interrupts as interrupts_module
from omniq_executor.dispatch import sessions
from omniq_executor.engines.local.pool import LocalEngine
from omniq_executor.future import DurableFuture
from omniq_executor.interrupts import Interrupts, SafeCondition, interrupts
from omniq_executor.map_iterator import Results
from omniq_executor.model import codec
from omniq_executor.pipes import wake_pipe

IS_PROOF = bool(os.environ.get("OMNIQ_PROOF"))
INTERRUPTS = 10_000 // 6 if IS_PROOF else 20  # for each store and start method
SCRIPTS = 17 if IS_PROOF else 1  # for each start method
ENDED_S = 2.0  # in which a script ends after the last one

each_store = pytest.mark.parametrize("name", ["store.db", "store"])


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@each_store
@pytest.mark.timeout(60 + INTERRUPTS)
def test_a_session_goes_on_after_each_interrupt(script: Any, method: str, name: str) -> None:
    """Issue 10: it hung within 15 interrupts. For all of OMNIQ_PROOF: 10,000."""
    seed = str(random.randrange(1 << 30))
    hunt = Path(__file__).with_name("interrupt_hunt.py")
    done = script.run(method, name, str(INTERRUPTS), seed, python=[str(hunt)], timeout_s=60 + INTERRUPTS)
    assert done.returncode == 0, f"seed {seed}:\n{done.stderr[-9000:]}"


def _has_nobody(script: Any, process: Any) -> bool:
    return not script.members(process)


def write_script(script: Any, method: str, name: str) -> None:
    """Write a script that says when its imports are over, and when it has done everything."""
    script.write(
        f"""
import multiprocessing, time
from omniq_executor import PersistentExecutor
def nap(n):
    time.sleep(0.002)
    with open("journal", "a") as file: file.write(f"{{n}}\\n")
    return n
def main():
    with PersistentExecutor(2, multiprocessing.get_context({method!r}), store={name!r}) as executor:
        futures = [executor.submit(nap, n) for n in range(100)]
        assert list(executor.map(nap, range(100, 200))) == list(range(100, 200))
        assert [future.result() for future in futures] == list(range(100))
if __name__ == "__main__":
    open("begun", "w").close()
    main()
    open("done", "w").close()
"""
    )


@pytest.mark.timeout(30 + 30 * SCRIPTS)
def test_a_script_ends_soon_after_the_last_interrupt_and_is_continued(
    script: Any, method: str, wait_until: Any, open_store: Any
) -> None:
    """Issue 10: two of ten never did. One to three come at any moment of its life."""
    for _ in range(SCRIPTS):
        name = random.choice(["store.db", "store"])
        write_script(script, method, name)
        for left in (*script.folder.glob("store*"), *script.folder.glob("begun"), *script.folder.glob("done")):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        script.journal.path.write_text("")
        process = script.start()
        wait_until((script.folder / "begun").exists)
        sent_at = []
        for _ in range(random.randint(1, 3)):
            time.sleep(random.random() * random.choice([0.001, 0.1, 1.2]))
            if process.poll() is None:
                sent_at.append(time.monotonic())
                random.choice([os.kill, os.killpg])(process.pid, signal.SIGINT)  # as kill does, and as a terminal
        done = script.finished(process)
        wait_until(functools.partial(_has_nobody, script, process))
        is_done = (script.folder / "done").exists()
        if sent_at:
            assert time.monotonic() - sent_at[-1] < ENDED_S
            assert done.returncode == -signal.SIGINT or (is_done and done.returncode == 0), done.stderr
        has_begun = bool((script.folder / name).exists() and open_store(script.folder / name).counts())
        finished = set(script.journal.lines())
        again = script.run()
        assert again.returncode == 0, again.stderr
        assert is_done or not has_begun or "continuing an earlier run" in again.stderr
        # Of each worker the calls whose results were on their way when it was ended may run again.
        assert len(script.journal.lines()) <= 200 * (2 if is_done else 1) + len(finished) // 2


# --- Chosen moments ---


@contextlib.contextmanager
def interrupted_at(moment: int, *files: str) -> Iterator[list[str]]:
    """Interrupt the moment of that number: where a function of the files begins, or one in C returns to it."""
    seen: list[str] = []

    def profile(frame: Any, event: str, argument: Any) -> None:
        if event in ("call", "c_return") and frame.f_code.co_filename.endswith(files):
            seen.append(f"{event} {getattr(argument, '__name__', '')} {frame.f_code.co_qualname}:{frame.f_lineno}")
            if len(seen) == moment:
                interrupt()

    sys.setprofile(profile)
    try:
        yield seen
    finally:
        sys.setprofile(None)


def interrupted_at_each(files: Sequence[str], code: Callable[[], object], after: Callable[[], object]) -> int:
    """Run code with an interrupt at each of its moments, and look at what is there afterwards; return how many."""
    for moment in itertools.count(1):
        with contextlib.suppress(KeyboardInterrupt), interrupted_at(moment, *files) as seen:
            code()
        try:
            after()
        except BaseException:
            sys.stderr.write(f"interrupted at {seen[moment - 1 : moment]}\n")
            raise
        if len(seen) < moment:
            break
    return moment


def in_a_thread(code: Callable[[], object]) -> None:
    """Run code in another thread, which must not take long."""
    threads = concurrent.futures.ThreadPoolExecutor(1)
    try:
        threads.submit(code).result(10)
    finally:
        threads.shutdown(wait=False)


@each_store
def test_a_store_is_free_after_each_interrupt_of_a_look(tmp_path: Path, name: str) -> None:
    """One that left a lock taken, the store's or one of filelock's, kept all others waiting."""
    files = "file/store.py", "sqlite/store.py", "owners.py", "_fork.py", "threading.py"
    with contextlib.closing(omniq_executor.open_store(tmp_path / name)) as store:
        moments = interrupted_at_each(files, store.owners, lambda: in_a_thread(store.owners))
    assert moments > 20


@each_store
def test_a_constructor_that_is_interrupted_leaves_nothing(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def enter(*args: Any) -> int:
        interrupt()
        return before(*args)

    before = sessions.enter
    monkeypatch.setattr(sessions, "enter", enter)
    with pytest.raises(KeyboardInterrupt):
        PersistentExecutor(1, store=tmp_path / name)
    with contextlib.closing(omniq_executor.open_store(tmp_path / name)) as store:
        assert store.owners() == []


def test_an_executor_is_closed_though_its_shutdown_was_interrupted(store: Path, wait_until: Any) -> None:
    for moment in (1, 2):
        executor = PersistentExecutor(1, store=store)
        files = "omniq_executor/executor.py", "dispatch/dispatcher.py"
        with pytest.raises(KeyboardInterrupt), interrupted_at(moment, *files):
            executor.shutdown()
        del executor
    with contextlib.closing(omniq_executor.open_store(store)) as opened:
        wait_until(lambda: not opened.owners())


def test_shutdown_waits_for_the_end_though_one_before_was_interrupted(
    executor: PersistentExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In Python 3.11 a thread whose join() was interrupted counts as ended."""

    def close(self: Any, *args: Any, **options: Any) -> None:
        assert may_end.wait(10)
        close_engine(self, *args, **options)

    def interrupted_lock() -> Iterator[None]:
        interrupt()
        yield

    may_end, close_engine, driver = threading.Event(), LocalEngine.close, executor._dispatcher.driver
    monkeypatch.setattr(LocalEngine, "close", close)
    executor.submit(abs, -1).result()
    with monkeypatch.context() as patch:
        patch.setattr(driver, "_running", contextlib.contextmanager(interrupted_lock)())
        with pytest.raises(KeyboardInterrupt):
            executor.shutdown()
    threading.Timer(0.2, may_end.set).start()
    executor.shutdown()
    assert driver.is_closed


def test_wait_leaves_nothing_taken_that_a_future_needs() -> None:
    """An interrupt in a threading.Event's wait() leaves its lock taken, or lets go of what another thread has."""

    def wait() -> None:
        future = DurableFuture(None, None)
        futures.append(future)
        concurrent.futures.wait([future], timeout=0)
        for _ in concurrent.futures.as_completed([future], timeout=0):
            pass

    def tell() -> None:
        in_a_thread(functools.partial(futures.pop().set_result, None))

    futures: list[DurableFuture] = []

    def looked_at() -> None:
        with contextlib.suppress(TimeoutError):
            wait()

    assert interrupted_at_each(["threading.py", "futures/_base.py"], looked_at, lambda: futures and tell()) > 20


@each_store
def test_no_python_runs_where_a_future_is_dropped(tmp_path: Path, name: str, method: str) -> None:
    """An interrupt in a finalizer is lost: nobody can catch it."""
    calls = []

    def profile(frame: Any, event: str, _: Any) -> None:
        if event == "call":
            calls.append(frame.f_code.co_qualname)

    with PersistentExecutor(1, multiprocessing.get_context(method), store=tmp_path / name) as executor:
        future = executor.submit(abs, -1)
    assert future.result() == 1
    del executor
    sys.setprofile(profile)
    del future
    sys.setprofile(None)
    assert calls == []


def test_a_map_that_is_interrupted_twice_leaves_out_no_result(
    executor: PersistentExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*_: Any) -> None:
        raise KeyboardInterrupt

    results = executor.map(abs, [1, 2, 3], buffersize=1)
    monkeypatch.setattr(Results, "_value", end)
    monkeypatch.setattr(codec, "decode", end)
    monkeypatch.setattr(Results, "_end", end)
    with pytest.raises(KeyboardInterrupt):
        next(results)
    monkeypatch.undo()
    assert list(results) == []


# --- The block ---


IMPORTS = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
from omniq_executor import PersistentExecutor

if __name__ == "__main__":
    try:
        with PersistentExecutor(1, store="x.db") as executor:
            list(executor.map(abs, [-1]))
            print(executor.submit(abs, -1), executor.options(tags=["x"]).preview(abs, [-1]), executor.resumed)
    except KeyboardInterrupt:
        print("interrupted", sys.argv[1] in sys.modules)
"""


@pytest.mark.parametrize(
    "module", ["dispatch.opening", "map_iterator", "model.shown", "code.depends", "dispatch.history"]
)
def test_an_import_is_not_interrupted(module: str, script: Any) -> None:
    """Issue 13: one that was may leave its lock to nobody, and the imports of all other threads wait for it."""
    script.write(IMPORTS)
    assert script.run(f"omniq_executor.{module}").stdout.splitlines()[-1] == "interrupted True"


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


def test_an_interrupt_keeps_no_code_of_the_users_from_being_run() -> None:
    """It may be the callback that lets go of a semaphore."""
    called: list[int] = []
    with pytest.raises(KeyboardInterrupt), interrupts:  # noqa: PT012 - it is the end of the block that raises
        interrupt()
        interrupts.run(called.append, 1)
        assert interrupts.is_pending
    assert called == [1]


def test_at_each_moment_of_code_of_the_users_the_rest_is_put_off_again() -> None:
    def run() -> None:
        with interrupts:
            try:
                interrupts.run(len, "")
            finally:
                sys.setprofile(None)
                states.append((interrupts._depth, signal.getsignal(signal.SIGINT) == interrupts._note))

    def look() -> None:
        assert set(states) <= {(1, True)}
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    states: list[tuple[int, bool]] = []
    assert interrupted_at_each(["omniq_executor/interrupts.py"], run, look) > 10


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
    condition = SafeCondition()
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


@pytest.mark.timeout(60)
@pytest.mark.parametrize("drives", [True, False])
def test_an_interrupt_that_comes_as_the_main_thread_falls_asleep_wakes_it(tmp_path: Path, drives: bool) -> None:
    """Issue 10. A signal that another thread of the process gets does not end the sleep either, and can be sent."""
    is_ready, is_over = threading.Event(), threading.Event()
    with PersistentExecutor(1, store=tmp_path / "store.db") as executor:
        quick = executor.submit(pow, 2, 3)
        assert quick.result() == 8
        slow = executor.submit(time.sleep, 30)

        def wait_first() -> None:
            with contextlib.suppress(concurrent.futures.CancelledError, omniq_executor.PoolBroken):
                slow.result()

        def interrupt_later() -> None:
            is_ready.wait()
            while slow._dispatcher.driver._parked == [] if not drives else not slow._dispatcher.driver._sleepers:
                is_over.wait(0.01)
            is_over.wait(0.1)
            interrupt()

        others = [threading.Thread(target=interrupt_later)]
        if not drives:
            others.insert(0, threading.Thread(target=wait_first))
        for other in others:
            other.start()
        if not drives:
            while slow._dispatcher.driver._driver is None:
                is_over.wait(0.01)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            is_ready.set()
            begun = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                slow.result()
            assert time.monotonic() - begun < 5
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            slow.cancel(running=True)
            for other in others:
                other.join()


def test_further_ones_at_the_end_of_the_interpreter_are_quiet_and_the_run_is_continued(
    script: Any, wait_until: Any, open_store: Any
) -> None:
    script.write(
        """
import atexit, os, signal, time
from omniq_executor import PersistentExecutor
def stubborn():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    open("begun", "a").close()
    while not os.path.exists("gate"):
        time.sleep(0.01)
def at_end():  # called before what the package does then
    open("ending", "w").close()
    signal.signal(signal.SIGINT, signal.default_int_handler)
if __name__ == "__main__":
    executor = PersistentExecutor(1)
    executor.submit(stubborn)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    atexit.register(at_end)
"""
    )
    process = script.start()
    wait_until(lambda: (script.folder / "begun").exists() and (script.folder / "ending").exists())
    for _ in range(5):  # in a second; its worker is killed after two
        os.kill(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
    done = script.finished(process)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "KeyboardInterrupt" not in done.stderr
    wait_until(functools.partial(_has_nobody, script, process))
    (script.folder / "gate").touch()
    again = script.run()
    assert "continuing an earlier run" in again.stderr
    assert open_store(script.store).counts() == {"script": {Status.COMPLETED: 1}}


def test_a_signal_that_comes_while_it_is_found_out_who_hears_of_signals_reaches_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was lost to an event loop, or to `omniq-executor worker`, which then went on for ever."""
    ear, mouth = wake_pipe()
    before = signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
    handler = signal.signal(signal.SIGTERM, lambda *_: None)
    fresh, selector = Interrupts(), selectors.DefaultSelector()
    fresh.watch(selector)
    set_wakeup_fd = interrupts_module.set_wakeup_fd
    moments = []

    def interrupted(fd: int, **how: Any) -> Any:
        found = set_wakeup_fd(fd, **how)
        moments.append(fd)
        if len(moments) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return found

    monkeypatch.setattr(interrupts_module, "set_wakeup_fd", interrupted)
    try:
        fresh.hear_signals(True)
        assert os.read(ear, 10) == bytes([signal.SIGTERM])
        fresh.hear_signals(False)
        assert (moments[-1], selector.select(0)) == (mouth, [])
        assert signal.set_wakeup_fd(-1) == mouth
        moments.clear()
        fresh.hear_signals(True)  # of nobody else's, it is ours
        ((key, _),) = selector.select(0)
        assert os.read(key.fd, 10) == bytes([signal.SIGTERM])
        fresh.hear_signals(False)
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        signal.signal(signal.SIGTERM, handler)
        signal.set_wakeup_fd(before)
        fresh.leave_to_parent()
        selector.close()
        os.close(ear)
        os.close(mouth)


# --- Handlers of other signals, which nobody puts off ---


@pytest.fixture
def in_turns(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[PersistentExecutor, Callable[[], object]], None]]:
    """Have a handler of SIGUSR1 do something in the middle of the next turn of the main thread, before its commit."""
    handler: Any = signal.getsignal(signal.SIGUSR1)

    def prepare(executor: PersistentExecutor, act: Callable[[], object]) -> None:
        turn = executor.store.turn

        def interrupted(*work: Any) -> Any:
            if threading.current_thread() is threading.main_thread():
                monkeypatch.setattr(executor.store, "turn", turn)
                signal.raise_signal(signal.SIGUSR1)
            return turn(*work)

        signal.signal(signal.SIGUSR1, lambda *_: act())
        monkeypatch.setattr(executor.store, "turn", interrupted)

    yield prepare
    signal.signal(signal.SIGUSR1, handler)


@each_store
def test_a_signal_handler_can_cancel_calls_in_the_middle_of_a_turn(
    tmp_path: Path, name: str, in_turns: Any, gate: Path, wait_until: Any
) -> None:
    """It began a transaction within the one that it had interrupted, and the executor was broken, or hung."""
    with PersistentExecutor(1, store=tmp_path / name) as executor:
        running = executor.submit(calls.wait_for, gate)
        wait_until(running.running)
        waits = [executor.submit(calls.square, n) for n in range(3)]
        seen: list[Any] = []
        told: list[Any] = []

        def ask() -> None:
            seen.append([running.running(), waits[0].cancel(), running.cancel(running=True)])
            assert not running.done()
            assert not running.cancelled()
            running.add_done_callback(told.append)
            with pytest.raises(TimeoutError):
                waits[1].result(0)

        in_turns(executor, ask)
        after = executor.options(tags=["late"]).submit(calls.square, 9)
        assert seen == [[True, False, False]]
        wait_until(lambda: waits[0].cancelled() and running.cancelled())
        assert [future.result(30) for future in (*waits[1:], after)] == [1, 4, 81]
        wait_until(lambda: told == [running])


@each_store
@pytest.mark.parametrize("way", ["shutdown", "terminate_workers", "kill_workers"])
def test_a_signal_handler_can_end_the_executor_in_the_middle_of_a_turn(
    tmp_path: Path, name: str, in_turns: Any, gate: Path, wait_until: Any, way: str
) -> None:
    with PersistentExecutor(1, store=tmp_path / name) as executor:
        running = executor.submit(calls.wait_for, gate)
        wait_until(running.running)
        end = functools.partial(getattr(executor, way), **({"cancel_futures": True} if way == "shutdown" else {}))
        in_turns(executor, end)
        after = executor.options(tags=["late"]).submit(calls.square, 9)
        wait_until(after.done)
        assert after.cancelled() or isinstance(after.exception(), PoolBroken)
        gate.touch()
        wait_until(running.done)


@each_store
def test_a_signal_handler_that_submits_in_the_middle_of_a_turn_is_told_so(
    tmp_path: Path, name: str, in_turns: Any
) -> None:
    with PersistentExecutor(1, store=tmp_path / name) as executor:
        first = executor.submit(calls.square, 2)
        assert first.result(30) == 4
        seen: list[BaseException] = []
        late = executor.options(eta=3600).submit(calls.square, 5)

        def ask() -> None:
            for act in (
                lambda: executor.submit(calls.square, 3),
                lambda: list(executor.map(calls.square, [3])),
                lambda: late.result(30),
            ):
                with pytest.raises(RuntimeError, match="a signal handler has interrupted the executor") as caught:
                    act()
                seen.append(caught.value)

        in_turns(executor, ask)
        assert executor.options(tags=["late"]).submit(calls.square, 9).result(30) == 81
        assert len(seen) == 3
        assert late.cancel()
        assert executor.submit(calls.square, 3).result(30) == 9
