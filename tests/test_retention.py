"""Executors remove what was kept long enough: between turns, at their end, and without holding anybody up."""

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import calls
import pytest

from omniq_executor import PersistentExecutor, Settings, SettingsError, StoreError
from omniq_executor.dispatch import retention, sessions
from omniq_executor.model.task import log_name
from omniq_executor.stores.base import Store, Swept
from omniq_executor.stores.file.journal import ROTATE_BYTES

WAIT_S = 30.0
DAY_S = 86_400
NIGHTS = 30
MakeExecutor = Callable[..., PersistentExecutor]


@pytest.fixture(params=["store.db", "store"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The path of a store of each kind, that is not there yet."""
    return tmp_path / str(request.param)


class Clock:
    """The clock on the wall of this process, which can be set."""

    def __init__(self, time_ns: Callable[[], int]) -> None:
        self._time_ns = time_ns
        self.ahead_s = 0.0

    def __call__(self) -> int:
        return self._time_ns() + int(self.ahead_s * 1e9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock, to be set by the test."""
    made = Clock(time.time_ns)
    monkeypatch.setattr(time, "time_ns", made)
    return made


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has executors look as soon as they are open, and go on without a pause."""
    monkeypatch.setattr(retention, "FIRST_LOOK_S", 0.0)
    monkeypatch.setattr(retention, "PAUSE", 0)


def night(make_executor: MakeExecutor, count: int, **how: Any) -> Store:
    """A script that makes so many calls and ends well; returns its store, which is closed."""
    with make_executor(1, **how) as executor:
        assert sum(executor.map(calls.square, range(count))) == sum(n * n for n in range(count))
    sessions.end_all()
    return executor.store


def count_of(path: Path, open_store: Any) -> int:
    """How many tasks a store holds."""
    return len(open_store(path).ids())


@pytest.mark.timeout(3600)
@pytest.mark.slow
@pytest.mark.once
@pytest.mark.parametrize("is_proof", [bool(os.environ.get("OMNIQ_PROOF"))])
def test_thirty_nights_take_no_more_than_eight(
    make_executor: MakeExecutor, open_store: Any, store: Path, clock: Clock, is_proof: bool
) -> None:
    count = 10_000 if is_proof else 1000 if store.suffix else 200
    counts, sizes = [], []
    for _ in range(NIGHTS):
        night(make_executor, count)
        clock.ahead_s += DAY_S
        opened = open_store(store)
        counts.append(len(opened.ids()))
        sizes.append(opened.usage().size)
        opened.close()
    assert set(counts[7:]) <= {7 * count, 8 * count}  # the one that is just seven days old may be gone or not
    journal = 0 if store.suffix else ROTATE_BYTES  # which begins anew when it is that long
    assert max(sizes[8:]) <= sizes[7] * 8 / 7 * 1.1 + journal


def test_an_executor_that_lives_long_removes_them_meanwhile(
    make_executor: MakeExecutor, open_store: Any, store: Path, clock: Clock, at_once: None, wait_until: Any
) -> None:
    night(make_executor, 300)
    clock.ahead_s += 8 * DAY_S
    executor = make_executor(1, queue="elsewhere")
    assert executor.submit(calls.square, 3).result(WAIT_S) == 9
    wait_until(lambda: count_of(store, open_store) == 1)  # it has nothing else to do
    assert executor.submit(calls.square, 4).result(WAIT_S) == 16


def test_one_that_has_much_to_do_goes_on_with_it_while_they_are_removed(
    make_executor: MakeExecutor, open_store: Any, store: Path, clock: Clock, at_once: None
) -> None:
    night(make_executor, 500)
    clock.ahead_s += 8 * DAY_S
    with make_executor(2) as executor:
        assert list(executor.map(calls.square, range(700))) == [n * n for n in range(700)]
        futures = [executor.submit(calls.square, n) for n in range(300)]
        assert [future.result(WAIT_S) for future in futures] == [n * n for n in range(300)]
    assert count_of(store, open_store) == 1000


@pytest.mark.parametrize(
    "kept", [{"result_ttl": None}, {"result_ttl": timedelta(days=30)}, {"result_ttl": 9.0 * DAY_S}]
)
def test_how_long_is_what_the_run_has_said_whoever_removes_it(
    make_executor: MakeExecutor, open_store: Any, store: Path, clock: Clock, kept: Any
) -> None:
    night(make_executor, 10, **kept)
    clock.ahead_s += 8 * DAY_S
    night(make_executor, 1, result_ttl=1)
    assert count_of(store, open_store) == 11


def test_the_settings_say_it_for_who_does_not(
    make_executor: MakeExecutor, open_store: Any, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text, micros in (("never", None), ("12h", 43_200_000_000)):
        monkeypatch.setenv("OMNIQ_RESULT_TTL", text)
        night(make_executor, 1)
        assert open_store(store).runs()[-1].result_ttl == micros
    monkeypatch.delenv("OMNIQ_RESULT_TTL")
    night(make_executor, 1)
    assert open_store(store).runs()[-1].result_ttl == 7 * DAY_S * 1_000_000
    assert Settings().result_ttl == 7 * DAY_S


@pytest.mark.parametrize("nonsense", [0, -1, "7d", timedelta(0), float("nan"), True])
def test_a_time_that_makes_no_sense_is_refused(make_executor: MakeExecutor, nonsense: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="result_ttl"):
        make_executor(result_ttl=nonsense)


def test_a_variable_that_makes_no_sense_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNIQ_RESULT_TTL", "0")
    with pytest.raises(SettingsError, match=r"OMNIQ_RESULT_TTL is '0'.*never"):
        Settings.from_env()


def test_what_can_be_resumed_is_never_removed(
    make_executor: MakeExecutor, open_store: Any, store: Path, clock: Clock
) -> None:
    make_executor(1).map(calls.square, range(5))
    executor = make_executor(1, queue="q")
    list(executor.map(calls.square, range(5)))
    executor.kill_workers()
    sessions.end_all()
    clock.ahead_s += 100 * DAY_S
    night(make_executor, 1, queue="third")
    assert count_of(store, open_store) == 11


def test_captured_output_goes_too(make_executor: MakeExecutor, open_store: Any, store: Path, clock: Clock) -> None:
    with make_executor(1, capture_output=True) as executor:
        future = executor.submit(print, "text")
        future.result(WAIT_S)
        path = executor.store.output.folder / log_name(future.task().id, 1)
    sessions.end_all()
    assert path.read_text() == "text\n"
    clock.ahead_s += 8 * DAY_S
    night(make_executor, 1)
    assert not path.exists()


# --- When steps are taken ----------------------------------------------------------------------------------------


class Sweeps:
    """A store of which a sweep takes so many steps, each of which removes ten."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.begun = self.taken = self.compacted = 0
        self.error: Exception | None = None

    def expire(self, now: int, owner: int) -> Any:
        self.begun += 1
        for _ in range(self.steps):
            if self.error is not None:
                raise self.error
            self.taken += 1
            yield Swept(100, 10)

    def compact(self, most_bytes: int) -> bool:
        self.compacted += 1
        return True


@pytest.fixture
def monotonic(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock that pauses go by, to be set by the test: the one item."""
    moment = [1000.0]
    monkeypatch.setattr(retention.time, "monotonic", lambda: moment[0])
    return moment


def test_a_step_is_followed_by_a_pause_of_many_times_its_length(monotonic: list[float]) -> None:
    swept = Sweeps(1)
    steps: Any = retention.Retention(swept, 1)  # type: ignore[arg-type]
    assert steps.at == 1000 + retention.FIRST_LOOK_S

    def slow(now: int, owner: int) -> Any:
        monotonic[0] += 0.5
        yield Swept(1, 1)

    swept.expire = slow  # type: ignore[method-assign]
    steps.step()
    assert steps.at == 1000.5 + 0.5 * retention.PAUSE
    assert steps.step() is None
    assert steps.at == 1000.5 + retention.LOOK_EVERY_S


def test_a_store_that_refuses_is_asked_again_later(monotonic: list[float], caplog: Any) -> None:
    swept = Sweeps(3)
    steps = retention.Retention(swept, 1)  # type: ignore[arg-type]
    assert steps.step() is not None
    swept.error = StoreError("the disk is full")
    assert steps.step() is None
    assert steps.at == 1000 + retention.LOOK_EVERY_S
    assert "removed later: the disk is full" in caplog.text
    swept.error = None
    assert steps.step() is not None
    assert swept.begun == 2


@pytest.mark.parametrize(("added", "taken"), [(0, 10), (100, 30), (10_000, 1000)])
def test_at_the_end_of_an_executor_its_share_is_removed(added: int, taken: int) -> None:
    swept = Sweeps(1000)
    retention.Retention(swept, 1).finish(added)  # type: ignore[arg-type]
    assert (swept.taken, swept.compacted) == (taken, 1)


def test_where_nothing_is_removed_nothing_is_compacted() -> None:
    swept = Sweeps(0)
    retention.Retention(swept, 1).finish(10)  # type: ignore[arg-type]
    assert (swept.begun, swept.compacted) == (1, 0)
