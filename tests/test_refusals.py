"""What the executor does when its store refuses something, or code of the user's does what it should not.

Nothing may hang, no call may be lost, and nothing that is in the store may fail for it.
"""

import concurrent.futures
import contextlib
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import calls
import pytest
from click.testing import CliRunner

from omniq_executor import FunctionLost, PersistentExecutor, Status, StoreError, open_store
from omniq_executor.cli.main import main
from omniq_executor.dispatch import committing as module, sessions
from omniq_executor.dispatch.driving import Driver

WAIT_S = 30.0
MakeExecutor = Callable[..., PersistentExecutor]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have what was refused be tried again soon."""
    monkeypatch.setattr(module, "RETRY_S", 0.05)


@pytest.fixture(autouse=True)
def _submits_between_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests here hold the driver, so that nobody takes a turn, and submit: else that is a signal handler's doing."""
    monkeypatch.setattr(Driver, "refuse_within", lambda _: None)


@pytest.fixture(params=["store.db", "store"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


class Refusal:
    """Has a verb of a store raise StoreError, as often as it is to, where `applies` to what it is given."""

    def __init__(
        self, store: Any, verb: str, times: int = 1, applies: Callable[..., bool] = lambda *_, **__: True
    ) -> None:
        self.left = times
        self.refused = threading.Event()
        self.passed = threading.Event()  # once more, after all of that
        self._verb = getattr(store, verb)
        self._applies = applies
        setattr(store, verb, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.left and self._applies(*args, **kwargs):
            self.left -= 1
            self.refused.set()
            raise StoreError("refused by the test")
        if self.refused.is_set():
            self.passed.set()
        return self._verb(*args, **kwargs)


def has_outcomes(_: int, __: Any, turn: Any) -> bool:
    return bool(turn.outcomes or turn.blocks)


def test_results_that_are_refused_are_stored_later(make_executor: MakeExecutor, address: Path, tmp_path: Path) -> None:
    executor = make_executor(2, store=address)
    futures = [executor.submit(calls.wait_for, tmp_path / "gate") for _ in range(5)]
    refusal = Refusal(executor.store, "turn", times=3, applies=has_outcomes)
    (tmp_path / "gate").touch()
    assert [future.result(WAIT_S) for future in futures] == ["gate"] * 5
    assert refusal.left == 0
    assert {future.task().status for future in futures} == {Status.COMPLETED}


def test_claimed_calls_run_though_their_function_cannot_be_read_at_first(
    make_executor: MakeExecutor, address: Path
) -> None:
    """Issue 10: they stayed RUNNING under an owner that lived, and submit() raised though its call was stored."""
    with PersistentExecutor(store=address, engine="external") as first:
        futures = [first.submit(calls.square, n) for n in range(3)]
        second = make_executor(1, store=address)
        refusal = Refusal(second.store, "function", times=2)
        second._dispatcher.work_off()
        assert refusal.refused.wait(WAIT_S)
        assert second.submit(calls.square, 5).result(WAIT_S) == 25
        assert [future.result(WAIT_S) for future in futures] == [0, 1, 4]


def test_a_call_whose_function_is_lost_fails_and_can_be_submitted_again(
    make_executor: MakeExecutor, tmp_path: Path
) -> None:
    """It was read again every second, without an end."""
    address = tmp_path / "store"
    with PersistentExecutor(store=address, engine="external") as first:
        lost = first.submit(calls.square, 3)
        next((address / "functions").iterdir()).write_text("")  # as a cut of the power leaves it
        second = make_executor(1, store=address)
        second._dispatcher.work_off()
        with pytest.raises(FunctionLost, match="holds no function"):
            lost.result(WAIT_S)
        assert second.submit(calls.square, 4).result(WAIT_S) == 16


def test_what_was_committed_with_a_claim_whose_function_cannot_be_read_is_told(
    make_executor: MakeExecutor, address: Path, tmp_path: Path
) -> None:
    """Issue 10: the results of that turn were stored, and their futures never resolved."""
    with PersistentExecutor(store=address, engine="external") as first:
        second = make_executor(1, store=address)
        held = second.submit(calls.wait_for, tmp_path / "gate")
        with second._dispatcher.driver:
            refusal = Refusal(second.store, "function", times=1 << 30)
            future = first.submit(calls.square, 3)
            second._dispatcher.work_off()
            (tmp_path / "gate").touch()
            while not second._dispatcher.engine.reports:
                second._dispatcher.driver.poll(0.01)
        assert held.result(WAIT_S) == "gate"
        assert refusal.refused.wait(WAIT_S)
        refusal.left = 0
        assert future.result(WAIT_S) == 9


def test_a_call_is_given_results_that_cannot_be_read_at_first(make_executor: MakeExecutor, address: Path) -> None:
    executor = make_executor(1, store=address)
    first = executor.submit(calls.square, 2)
    assert first.result(WAIT_S) == 4
    refusal = Refusal(executor.store, "states", times=2)
    assert executor.submit(calls.square, first).result(WAIT_S) == 16
    assert refusal.left == 0


@pytest.mark.parametrize("verb", ["begin_run", "begin_session", "notify", "peers", "slots_path"])
def test_an_executor_that_cannot_be_made_leaves_nobody_behind(
    address: Path, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 10: its owner lived on, and heard nothing of what was kept for it."""
    executor = PersistentExecutor(1, store=address)  # all imports are done
    executor.shutdown()
    users = sessions._sessions[executor.store.address].users
    if verb == "begin_session":
        sessions.end_all()
    open_files = os.listdir("/dev/fd")
    with monkeypatch.context() as patch:
        patch.setattr(type(executor.store), verb, Refusal(SimpleNamespace(**{verb: None}), verb))
        with pytest.raises(StoreError, match="refused by the test"):
            PersistentExecutor(1, store=address)
    assert len(os.listdir("/dev/fd")) == len(open_files)
    assert verb == "begin_session" or sessions._sessions[executor.store.address].users == users
    with contextlib.closing(open_store(address)) as store:
        assert store.owners() == []


def test_a_queue_worker_that_cannot_be_made_leaves_nobody_behind(
    address: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.closing(open_store(address)) as store:
        with monkeypatch.context() as patch:
            patch.setattr(type(store), "slots_path", Refusal(SimpleNamespace(slots_path=None), "slots_path"))
            patch.setattr(sys, "path", sys.path.copy())  # the worker adds to it
            done = CliRunner().invoke(main, ["worker", "-n", "1", "--store", str(address)])
        assert "refused by the test" in f"{done.output} {done.exception!r}"
        assert done.exit_code != 0
        assert store.owners() == []


def test_space_is_kept_for_outcomes_and_let_go_of_when_they_are_refused(
    make_executor: MakeExecutor, address: Path
) -> None:
    executor = make_executor(1, store=address)
    reserve: Path = executor.store.reserve._path
    assert reserve.stat().st_size == 1 << 20
    refusal = Refusal(executor.store, "turn")
    with pytest.raises(StoreError, match="refused by the test"):
        executor.map(calls.square, [1])
    assert reserve.exists()  # it is for no new call
    refusal = Refusal(executor.store, "turn", applies=has_outcomes)
    assert executor.submit(calls.square, 3).result(WAIT_S) == 9
    assert refusal.left == 0
    assert not reserve.exists()
    make_executor(1, store=address)
    assert reserve.stat().st_size == 1 << 20


def test_a_call_that_could_not_be_cancelled_runs(make_executor: MakeExecutor, address: Path, tmp_path: Path) -> None:
    """Issue 10: it was taken out of the worker, and its future never resolved."""
    executor = make_executor(1, store=address)
    assert list(executor.map(calls.square, range(100))) == [n * n for n in range(100)]  # short, so many travel together
    (tmp_path / "open").touch()
    executor.submit(calls.wait_for, tmp_path / "open").result(WAIT_S)  # it is short as well, as far as is known
    first = executor.submit(calls.wait_for, tmp_path / "gate")
    second = executor.submit(calls.square, 3)
    refusal = Refusal(executor.store, "turn", applies=has_outcomes)
    with pytest.raises(StoreError):
        second.cancel()
    assert refusal.left == 0
    (tmp_path / "gate").touch()
    assert (first.result(WAIT_S), second.result(WAIT_S)) == ("gate", 9)


def test_a_cancel_that_is_refused_after_the_release_leaves_the_call_to_run(
    make_executor: MakeExecutor, address: Path, tmp_path: Path
) -> None:
    executor = make_executor(1, store=address)
    assert list(executor.map(calls.square, range(100))) == [n * n for n in range(100)]
    (tmp_path / "open").touch()
    executor.submit(calls.wait_for, tmp_path / "open").result(WAIT_S)  # it is short as well, as far as is known
    first = executor.submit(calls.wait_for, tmp_path / "gate")
    second = executor.submit(calls.square, 3)
    cancels = 0

    def is_second(*_: Any) -> bool:
        nonlocal cancels
        cancels += 1
        return cancels == 2

    Refusal(executor.store, "cancel", applies=is_second)
    with pytest.raises(StoreError):
        second.cancel()
    (tmp_path / "gate").touch()
    assert (first.result(WAIT_S), second.result(WAIT_S)) == ("gate", 9)


@pytest.mark.parametrize("verb", ["peers", "reap"])
def test_who_cannot_look_after_other_owners_takes_its_turn(
    make_executor: MakeExecutor, address: Path, verb: str
) -> None:
    """Issue 10: what had been reported was not stored then, and nothing was tried again."""
    executor = make_executor(1, store=address)
    future = executor.submit(calls.square, 1)
    assert future.result(WAIT_S) == 1
    peers = executor._dispatcher._loop.peers
    with contextlib.closing(open_store(address)) as store:
        store._owners._held.pop(store.enter("of the dead")).release()  # type: ignore[attr-defined]
    refusal = Refusal(executor.store, verb)
    with executor._dispatcher.driver:
        peers.was_notified = verb == "peers"
        peers.look_at = time.monotonic() if verb == "reap" else math.inf
        future = executor.submit(calls.square, 2)
    assert future.result(WAIT_S) == 4
    assert refusal.refused.wait(WAIT_S)
    assert refusal.passed.wait(WAIT_S)
    while peers.was_notified or peers.look_at < math.inf:
        time.sleep(0.01)
    assert [owner.queue for owner in executor.store.owners()] == [executor.queue]
    assert executor.submit(calls.square, 3).result(WAIT_S) == 9


def test_others_who_could_not_be_told_are_told_later(make_executor: MakeExecutor, address: Path) -> None:
    worker = make_executor(1, store=address, queue="shared")
    assert worker.submit(calls.square, 1).result(WAIT_S) == 1
    with PersistentExecutor(store=address, queue="shared", engine="external") as submitter:
        worker._dispatcher.work_off()
        refusal = Refusal(worker.store, "notify")
        assert submitter.submit(calls.square, 2).result(WAIT_S) == 4
        assert refusal.left == 0


def test_a_store_that_refuses_for_long_ends_the_executor_and_the_next_run_goes_on(
    address: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 10: with a disk that stayed full the end of the `with` block was waited for without an end."""
    monkeypatch.setattr(module, "REFUSED_S", 0.3)
    with PersistentExecutor(1, store=address) as executor:
        assert executor.submit(calls.square, 1).result(WAIT_S) == 1
        Refusal(executor.store, "turn", times=1 << 30, applies=has_outcomes)
        future = executor.submit(calls.square, 2)
        assert isinstance(future.exception(WAIT_S), StoreError)
        with pytest.raises(concurrent.futures.BrokenExecutor, match="refused by the test"):
            executor.submit(calls.square, 3)
    with PersistentExecutor(1, store=address) as executor:
        assert executor.submit(calls.square, 1).resumed
        assert executor.submit(calls.square, 2).result(WAIT_S) == 4


def test_a_map_of_which_a_later_piece_cannot_be_stored_ends(address: Path, tmp_path: Path) -> None:
    """Issue 10: its first calls were taken back, their release failed, and shutdown() waited for them for ever."""
    with PersistentExecutor(1, store=address) as executor:
        assert list(executor.map(calls.square, range(100))) == [n * n for n in range(100)]  # so many travel together
        held = executor.submit(calls.wait_for, tmp_path / "gate")
        adds = 0

        def is_later(_: int, __: Any, turn: Any) -> bool:
            nonlocal adds
            adds += bool(turn.adds)
            return adds > 1

        refusal = Refusal(executor.store, "turn", times=3, applies=is_later)
        with pytest.raises(StoreError):
            executor.map(calls.square, range(2_000))
        refusal.left = 0
        (tmp_path / "gate").touch()
        assert held.result(WAIT_S) == "gate"


def test_results_that_are_refused_are_stored_later_though_then_a_cancel_is_refused(
    make_executor: MakeExecutor, address: Path, tmp_path: Path
) -> None:
    """Issue 10: after that nothing was offered again."""
    executor = make_executor(2, store=address)
    held = executor.submit(calls.wait_for, tmp_path / "gate")
    results = executor.map(calls.wait_for, [tmp_path / "gate"])
    dispatcher = executor._dispatcher
    refusals = [Refusal(executor.store, "turn", applies=has_outcomes), Refusal(executor.store, "cancel", times=2)]

    with dispatcher.driver:
        (tmp_path / "gate").touch()
        while len(dispatcher.engine.reports) < 2:  # no event will come after them
            dispatcher.driver.poll(0.01)
        dispatcher._loop.take_turn()  # it is refused
        assert refusals[0].refused.is_set()
        del results
        dispatcher._loop.take_turn()
        assert refusals[1].refused.is_set()
    assert not concurrent.futures.wait([held], WAIT_S).not_done  # it takes no turns
    assert held.result(0) == "gate"
    assert [refusal.left for refusal in refusals] == [0, 0]


def test_a_submit_that_is_refused_has_others_look_at_what_it_has_taken_in(
    make_executor: MakeExecutor, address: Path, wait_until: Any
) -> None:
    """Issue 10: the future of what it had taken in did not resolve before something else happened."""
    executor = make_executor(1, store=address)
    assert executor.submit(calls.square, 1).result(WAIT_S) == 1
    dispatcher = executor._dispatcher
    driver, reports = dispatcher.driver, dispatcher.engine.reports
    with driver:
        future = executor.submit(calls.square, 2)
        while not reports:
            driver.poll(0.01)
        taken = reports.copy()
        reports.clear()
    wait_until(lambda: driver._sleepers)  # the executor's own thread, which no event will wake
    driver.poll = lambda: reports.extend(taken)
    for verb in ("turn", "add_claimed"):
        Refusal(executor.store, verb)
    with pytest.raises(StoreError, match="refused by the test"):
        executor.submit(calls.square, 3)
    assert not concurrent.futures.wait([future], WAIT_S).not_done
    assert future.result(0) == 4


def test_a_broken_pool_stores_what_was_reported(make_executor: MakeExecutor, address: Path) -> None:
    """Issue 10: it was dropped, and ran once more in the next run."""
    executor = make_executor(1, store=address)
    assert executor.submit(calls.square, 1).result(WAIT_S) == 1
    dispatcher = executor._dispatcher
    with dispatcher.driver:
        future = executor.submit(calls.square, 2)
        while not dispatcher.engine.reports:
            dispatcher.driver.poll(0.01)
        dispatcher.engine.broken = "broken by the test"
    assert future.result(WAIT_S) == 4
    assert future.task().status is Status.COMPLETED
    with pytest.raises(concurrent.futures.BrokenExecutor, match="broken by the test"):
        executor.submit(calls.square, 3)


# --- Callbacks ---


def test_a_callback_that_exits_harms_nobody(script: Any) -> None:
    """Issue 10: it ended the executor's own thread, others waited for ever, and the process never ended."""
    script.write(
        """
import sys, threading
from concurrent.futures import wait
from omniq_executor import PersistentExecutor

if __name__ == "__main__":
    executor = PersistentExecutor(1)
    futures = [executor.submit(pow, 2, n) for n in range(5)]
    futures[1].add_done_callback(lambda _: sys.exit(3))
    called = threading.Event()
    futures[1].add_done_callback(lambda _: called.set())
    wait(futures)  # it takes no turns, so the executor's own thread calls the callbacks
    print([future.result() for future in futures], called.wait(30), executor.submit(pow, 2, 5).result())
"""
    )
    done = script.run()
    assert (done.returncode, done.stdout) == (0, "[1, 2, 4, 8, 16] True 32\n")
    assert "SystemExit: 3" in done.stderr


@pytest.mark.parametrize("waits", [True, False])
def test_a_callback_may_shut_the_executor_down(make_executor: MakeExecutor, tmp_path: Path, waits: bool) -> None:
    executor = make_executor(1)
    futures = [executor.submit(calls.wait_for, tmp_path / "gate"), executor.submit(calls.square, 3)]
    shut = threading.Event()

    def shut_down(_: Any) -> None:
        executor.shutdown(wait=True)
        shut.set()

    futures[0].add_done_callback(shut_down)
    (tmp_path / "gate").touch()
    if waits:
        assert futures[0].result(WAIT_S) == "gate"
    assert shut.wait(WAIT_S)
    assert futures[1].result(WAIT_S) == 9


# --- Waits ---


def test_a_thread_sleeps_while_another_takes_the_turns(make_executor: MakeExecutor, tmp_path: Path) -> None:
    """The next item of a map was asked for again and again meanwhile, at the cost of a CPU."""
    executor = make_executor(1)
    held = executor.submit(calls.wait_for, tmp_path / "gate")
    driver = executor._dispatcher.driver
    other = threading.Thread(target=held.result, args=(WAIT_S,))
    other.start()
    while driver._driver is None:
        time.sleep(0.001)
    results: Any = executor.map(calls.square, range(3))
    looks = 0

    def has_next(look: Callable[[], bool] = results._arrivals.has_next) -> bool:
        nonlocal looks
        looks += 1
        return look()

    results._arrivals.has_next = has_next
    threading.Timer(0.3, (tmp_path / "gate").touch).start()
    assert list(results) == [0, 1, 4]
    other.join(WAIT_S)
    assert looks < 100


def test_who_waits_takes_the_turns_when_the_one_that_did_has_what_it_wanted(
    make_executor: MakeExecutor, tmp_path: Path
) -> None:
    executor = make_executor(2)
    driver = executor._dispatcher.driver
    futures = [executor.submit(calls.wait_for, tmp_path / name) for name in ("first", "second")]
    threads = []
    for future in futures:
        threads.append(threading.Thread(target=future.result, args=(WAIT_S,)))
        threads[-1].start()
        while driver._driver is None or len(driver._parked) < len(threads) - 1:
            time.sleep(0.001)
    for name, thread in zip(("first", "second"), threads, strict=True):
        (tmp_path / name).touch()
        thread.join(WAIT_S)
        assert not thread.is_alive()
        while driver._parked:  # for the CPU
            assert threads[-1].is_alive()
