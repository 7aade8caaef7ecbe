"""What the dispatcher does between a store and an engine: with a real store, and an engine without processes."""

import contextlib
import itertools
import pickle
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_engine import FakeEngine

from omniq_executor import items
from omniq_executor.dispatch import committing
from omniq_executor.dispatch.dispatcher import Dispatcher
from omniq_executor.dispatch.loop import USUAL
from omniq_executor.errors import DependencyFailed, PoolBroken, StoreError, WorkerCrashed
from omniq_executor.future import DurableFuture
from omniq_executor.items import Items
from omniq_executor.map_iterator import Results
from omniq_executor.model.functions import Functions, stored_call
from omniq_executor.model.ids import Ids
from omniq_executor.model.options import CallOptions
from omniq_executor.model.task import Function, Options, Status, parse_id
from omniq_executor.stores import open_store
from omniq_executor.stores.base import Batch, Run, Store, Turn, now

WAIT_S = 30.0
RETRIED_ONCE = Options(max_retries=1, policy=pickle.dumps((0.001, Exception)))


class House:
    """A dispatcher with what it stands between."""

    def __init__(self, path: Path, engine: FakeEngine, **parameters: Any) -> None:
        self.engine = engine
        self.store: Any = open_store(path)
        owner = self.store.enter("queue")
        run = self.store.begin_run("queue", owner, "crashed", now())
        self.dispatcher = Dispatcher(self.store, owner, run, engine, 1, new_future=DurableFuture, **parameters)
        self._function = Functions(None).describe(pow)

    def submit(self, *args: Any, call_options: CallOptions = USUAL) -> DurableFuture:
        call, after = stored_call(self._function, args or (2, 3), {}, store=self.dispatcher.store.url)
        future: DurableFuture = self.dispatcher.submit(
            self._function, call, call_options.after(after) if after else call_options
        )
        return future

    def submit_and_give(self, count: int) -> list[DurableFuture]:
        """Submit so many, and wait until all are with the engine: in a burst they may be held for a moment."""
        futures = [self.submit() for _ in range(count)]
        self.wait(lambda: {id_of(future) for future in futures} <= {*self.engine.held()})
        return futures

    def map(self, numbers: Iterable[int], buffersize: int | None = None) -> Results:
        rows = ((n, n) for n in numbers)
        return Results(self.dispatcher, self._function, Items(rows, True), WAIT_S, buffersize, USUAL)

    def tell(self, verb: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        """Have something happen to the engine; a turn follows."""
        with self.dispatcher.driver:
            verb(*args, **kwargs)
        self.dispatcher.driver.rouse()

    def wait(self, done: Callable[[], bool]) -> None:
        assert self.dispatcher.wait_until(done, WAIT_S)

    def status(self, future: DurableFuture) -> Status:
        with self.dispatcher.driver:
            (state,) = self.store.states([id_of(future)])
        status: Status = state.status
        return status


def id_of(future: DurableFuture) -> int:
    assert future.task_id is not None
    return parse_id(future.task_id)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., House]]:
    monkeypatch.setattr(committing, "RETRY_S", 0.02)
    made: list[House] = []

    def make_one(engine: FakeEngine, **parameters: Any) -> House:
        made.append(House(tmp_path / "store.db", engine, **parameters))
        return made[-1]

    yield make_one
    for house in made:
        house.dispatcher.stop(9, "the test is over")


@pytest.fixture
def house(make: Callable[..., House], engine: FakeEngine) -> House:
    return make(engine)


@pytest.fixture
def other(house: House, tmp_path: Path) -> Iterator[Store]:
    """The same store, opened once more."""
    store = open_store(tmp_path / "store.db")
    yield store
    store.close()


def test_each_claim_is_given_once_in_order_and_only_where_there_is_room(house: House, engine: FakeEngine) -> None:
    engine.room = 2
    futures = [house.submit() for _ in range(5)]
    house.wait(lambda: len(engine.given) == 2)
    for count in (4, 5, 5):
        house.tell(engine.finish)
        house.wait(lambda count=count: len(engine.given) == count)  # type: ignore[misc]
    assert [future.result(WAIT_S) for future in futures] == ["done"] * 5
    assert engine.given == [(id_of(future), 1) for future in futures]


def test_the_end_waits_for_leftovers_and_not_for_what_others_commit_meanwhile(
    make: Callable[..., House], engine: FakeEngine, tmp_path: Path
) -> None:
    with contextlib.closing(open_store(tmp_path / "store.db")) as other:
        gone = other.enter("queue")
        run = other.begin_run("queue", gone, "never", now())
        batch = Batch(Ids(gone).take(2), 2, Functions(None).describe(pow), text="[[2, 4], [3, 2]]")
        other.turn(gone, run, Turn(now(), adds=[batch]))
        other.leave(gone)
        engine.room = 1
        house = make(engine, runs_leftovers=True)
        house.submit()
        ending = threading.Thread(target=house.dispatcher.close, args=(True,), daemon=True)
        ending.start()
        for count in (1, 2, 3):
            house.wait(lambda count=count: len(engine.given) == count)  # type: ignore[misc]
            with house.dispatcher.driver:
                if count == 3:
                    other.leave(other.enter("another"))
                engine.finish()
        ending.join(WAIT_S)
        assert not ending.is_alive()
        assert other.counts()["queue"] == {Status.COMPLETED: 3}


def test_a_result_is_stored_before_its_future_resolves(house: House, engine: FakeEngine, other: Store) -> None:
    stored: queue.Queue[Any] = queue.Queue()
    future = house.submit()
    future.add_done_callback(lambda future: stored.put(list(other.states([id_of(future)]))))
    house.tell(engine.finish, result="7")
    assert future.result(WAIT_S) == 7
    # result() may return before the callbacks are called.
    assert [(state.status, state.result) for state in stored.get(timeout=WAIT_S)] == [(Status.COMPLETED, "7")]


def test_results_of_a_map_are_stored_before_they_are_there(house: House, engine: FakeEngine, other: Store) -> None:
    results = house.map(range(20))
    engine.room = 100
    house.tell(engine.finish)
    taken = 0
    while taken < 20:
        if house.engine.is_busy():
            house.tell(engine.finish)
        assert next(results) == "done"
        taken += 1
        assert other.counts()["queue"][Status.COMPLETED] >= taken


def test_a_map_with_a_buffer_adds_a_quarter_of_it_at_once(house: House, engine: FakeEngine) -> None:
    engine.room = 100
    numbers = itertools.count()
    results = house.map(numbers, buffersize=40)
    house.wait(lambda: len(engine.given) == 40)
    taken = []
    for n in range(21):
        house.tell(engine.finish, engine.given[n][0])
        assert next(results) == "done"
        taken.append(next(numbers) - n)
    assert taken == [40] * 10 + [50] * 10 + [60]


def test_a_map_with_a_buffer_adds_what_it_may_where_a_worker_is_idle(
    house: House, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "idle", lambda: 1)
    engine.room = 100
    results = house.map(itertools.count(), buffersize=40)
    for n in range(5):
        house.wait(lambda n=n: len(engine.given) == 40 + max(n - 1, 0))  # type: ignore[misc]
        house.tell(engine.finish, engine.given[n][0])
        assert next(results) == "done"


def test_whatever_the_end_of_an_engine_raises_the_owner_leaves(
    house: House, engine: FakeEngine, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    monkeypatch.setattr(engine, "close", lambda **_: 1 / 0)
    future = house.submit()
    house.tell(engine.finish)
    house.dispatcher.close(True)
    assert future.result(0) == "done"
    assert house.dispatcher.driver.is_closed
    assert other.owners() == []
    assert [found.exc_type for found in raised] == [ZeroDivisionError]


def test_results_that_are_there_do_not_wait_for_items_that_take_long(
    house: House, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow() -> Iterator[int]:
        for n in itertools.count():
            clock.append(clock[-1] + 1.0)
            yield n

    clock = [0.0]
    engine.room = 100
    results = house.map(slow(), buffersize=40)
    house.wait(lambda: len(engine.given) == 40)
    house.tell(lambda: [engine.finish(id) for id, _ in engine.given])
    monkeypatch.setattr(items, "time", SimpleNamespace(monotonic=lambda: clock[-1]))
    for n in range(15):
        assert next(results) == "done"
        assert clock[-1] == 40 + (n >= 10)  # one item where there is room for ten, and then results first


def test_what_is_reported_of_a_claim_that_is_gone_resolves_nothing(
    house: House, engine: FakeEngine, other: Store
) -> None:
    future = house.submit()
    house.tell(engine.start, id_of(future))
    assert other.cancel([id_of(future)], now(), running=True) == [id_of(future)]
    house.tell(engine.finish, result="7")
    house.wait(future.done)
    assert future.cancelled()
    assert house.status(future) is Status.CANCELLED


def test_a_call_that_others_cancel_while_it_runs_is_ended(house: House, engine: FakeEngine, other: Store) -> None:
    future, beside = house.submit_and_give(2)
    house.tell(engine.start, id_of(future), id_of(beside))
    owner = other.enter("queue")
    assert other.cancel([id_of(future)], now(), running=True)
    other.notify(owner)
    house.wait(lambda: bool(engine.ended))
    assert engine.ended == [id_of(future)]
    house.tell(engine.finish)
    assert beside.result(WAIT_S) == "done"
    assert future.cancelled()
    other.leave(owner)


def test_a_call_that_has_not_started_is_taken_back_released_and_cancelled(house: House, engine: FakeEngine) -> None:
    running, waiting = house.submit_and_give(2)
    house.tell(engine.start, id_of(running))
    assert waiting.cancel()
    assert not running.cancel()
    assert house.status(waiting) is Status.CANCELLED
    assert [*engine.held()] == [id_of(running)]
    house.tell(engine.finish)
    assert running.result(WAIT_S) == "done"


def test_of_a_map_that_is_dropped_what_has_not_started_is_cancelled(house: House, engine: FakeEngine) -> None:
    results: Any = house.map(range(20))
    results = None  # noqa: F841 - dropped
    house.wait(lambda: not engine.is_busy())
    house.wait(lambda: house.store.counts()["queue"] == {Status.CANCELLED: 20})


def test_a_crash_is_charged_to_the_call_that_ran_and_tried_again(house: House, engine: FakeEngine) -> None:
    ran, waited = house.submit_and_give(2)
    house.tell(engine.start, id_of(ran))
    house.tell(engine.crash, id_of(ran))
    house.wait(lambda: len(engine.given) == 4)
    assert sorted(engine.given[2:]) == [(id_of(ran), 2), (id_of(waited), 1)]
    house.tell(engine.finish)
    assert [ran.result(WAIT_S), waited.result(WAIT_S)] == ["done", "done"]
    assert [future.task().crashes for future in (ran, waited)] == [1, 0]


def test_a_call_that_crashes_more_often_than_it_may_fails(house: House, engine: FakeEngine) -> None:
    future = house.submit()
    for attempt in (1, 2):
        house.wait(lambda attempt=attempt: (id_of(future), attempt) in engine.given)  # type: ignore[misc]
        house.tell(engine.start, id_of(future))
        house.tell(engine.crash, id_of(future))
    with pytest.raises(WorkerCrashed, match="signal SIGSEGV"):
        future.result(WAIT_S)
    assert house.status(future) is Status.FAILED


def test_a_call_that_fails_is_tried_again_as_its_options_say(house: House, engine: FakeEngine) -> None:
    future = house.submit(call_options=CallOptions(options=RETRIED_ONCE))
    for attempt in (1, 2):
        house.wait(lambda attempt=attempt: (id_of(future), attempt) in engine.given)  # type: ignore[misc]
        house.tell(engine.fail, id_of(future), f"no, {attempt}")
    with pytest.raises(Exception, match="no, 2"):
        future.result(WAIT_S)
    assert future.task().attempts == 2


def test_what_waits_behind_a_long_call_is_given_again_as_the_same_attempt(house: House, engine: FakeEngine) -> None:
    long, behind = house.submit_and_give(2)
    house.tell(engine.start, id_of(long))
    engine.steals_at = time.monotonic()
    house.dispatcher.driver.rouse()
    house.wait(lambda: len(engine.given) == 3)
    assert engine.given[2] == (id_of(behind), 1)
    house.tell(engine.finish)
    assert [long.result(WAIT_S), behind.result(WAIT_S)] == ["done", "done"]


def test_a_call_is_given_the_results_that_it_waits_for(house: House, engine: FakeEngine) -> None:
    first, bad = house.submit_and_give(2)
    second, unrun = house.submit(first, 1), house.submit(bad, 1)
    assert [id for id, _ in engine.given] == [id_of(first), id_of(bad)]
    house.tell(engine.fail, id_of(bad))
    with pytest.raises(DependencyFailed, match="ValueError: no"):
        unrun.result(WAIT_S)
    house.tell(engine.finish, id_of(first))
    house.wait(lambda: id_of(second) in engine.held())
    house.tell(engine.finish)
    assert second.result(WAIT_S) == "done"


def test_who_drains_gives_back_what_has_not_started_and_stores_what_runs(
    house: House, engine: FakeEngine, other: Store
) -> None:
    engine.room = 2
    futures = [*house.submit_and_give(2), house.submit(), house.submit()]
    house.tell(engine.start, id_of(futures[0]))
    house.dispatcher.drain()
    house.wait(lambda: [*engine.held()] == [id_of(futures[0])])
    house.wait(lambda: other.counts()["queue"] == {Status.RUNNING: 1, Status.PENDING: 3})
    house.tell(engine.finish)
    house.wait(lambda: other.counts()["queue"] == {Status.COMPLETED: 1, Status.PENDING: 3})
    assert futures[0].result(WAIT_S) == "done"
    assert len(engine.given) == 2


def test_where_no_worker_can_be_started_open_futures_fail_and_their_calls_are_kept(
    house: House, engine: FakeEngine, other: Store
) -> None:
    done, lost = house.submit_and_give(2)
    house.tell(lambda: (engine.finish(id_of(done)), engine.break_down()))  # type: ignore[arg-type,return-value]
    assert done.result(WAIT_S) == "done"  # it was reported before
    with pytest.raises(PoolBroken, match="it was broken by the test"):
        lost.result(WAIT_S)
    with pytest.raises(PoolBroken):
        house.submit()
    house.dispatcher.close(wait=True)
    assert other.counts()["queue"] == {Status.COMPLETED: 1, Status.PENDING: 1}


class Refusal:
    """Has a verb of a store raise StoreError, once."""

    def __init__(self, store: Any, verb: str) -> None:
        self.count = 0
        self._verb = getattr(store, verb)
        setattr(store, verb, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.count += 1
        if self.count == 1:
            raise StoreError("refused by the test")
        return self._verb(*args, **kwargs)


def insist(verb: Callable[[], Any]) -> Any:
    """Do it, once more if the store refuses."""
    try:
        return verb()
    except StoreError:
        return verb()


@pytest.mark.parametrize(
    "verb",
    ["turn", "add_claimed", "function", "states", "cancel", "notify", "read_changes", "peers", "end_run", "leave"],
)
def test_whatever_a_store_refuses_once_no_call_is_lost_or_given_twice(
    make: Callable[..., House], engine: FakeEngine, tmp_path: Path, verb: str
) -> None:
    house = make(engine, queues=("queue",))
    other = open_store(tmp_path / "store.db")
    owner = other.enter("queue")
    theirs = Function(b"theirs", "path", b"theirs")
    refusal = Refusal(house.store, verb)
    first, second = insist(house.submit), insist(house.submit)
    house.wait(lambda: {id_of(first), id_of(second)} <= {*engine.held()})
    third = insist(lambda: house.submit(first, 1))
    house.tell(engine.start, id_of(first), id_of(second))
    # Others add a call, whose function is to be read here; and they cancel one that runs.
    added = Ids(owner).take(1)
    other.turn(owner, Run(0, "queue"), Turn(now(), adds=[Batch(added, 1, theirs, "[[1]]")]))
    assert other.cancel([id_of(second)], now(), running=True)
    other.notify(owner)
    house.tell(engine.finish, id_of(first))
    house.wait(lambda: {id_of(third), added} <= {*engine.held()})
    dropped = insist(house.submit)
    insist(dropped.cancel)
    house.tell(engine.finish)
    assert first.result(WAIT_S) == third.result(WAIT_S) == "done"
    house.wait(lambda: second.done() and dropped.done())
    assert (second.cancelled(), dropped.cancelled()) == (True, True)
    house.wait(lambda: not engine.is_busy() and not engine.reports)
    # What was refused was asked for again. Another thread may have stored in a turn what add_claimed() was to.
    house.wait(lambda: refusal.count > 1 or verb in ("add_claimed", "end_run", "leave"))
    other.leave(owner)
    house.dispatcher.close(wait=True)
    assert other.counts()["queue"] == {Status.COMPLETED: 3, Status.CANCELLED: 2}
    assert engine.is_closed
    other.close()
