"""Calls with options: tried again, due later, recurring, in order of priority, tagged."""

import datetime
import threading
from pathlib import Path
from typing import Any

import calls
import pytest

from omniq_executor import PersistentExecutor, Status, open_store
from omniq_executor.model.options import backoff_s, make_options, next_occurrence, retry_at
from omniq_executor.model.task import ErrorInfo, Options, parse_id

WAIT_S = 30.0
SECOND = 1_000_000


# --- What is decided, without a clock ---


def test_delays_double_up_to_a_minute_each_a_quarter_more_or_less() -> None:
    assert [backoff_s(n, 0.5) for n in (1, 2, 3, 6, 7, 8, 500)] == [1, 2, 4, 32, 60, 60, 60]
    assert (backoff_s(3, 0.0), backoff_s(3, 1.0)) == (3, 5)


@pytest.mark.parametrize(
    ("now", "due"), [(100, 110), (105, 110), (109, 110), (110, 120), (111, 120), (155, 160), (50, 110)]
)
def test_a_recurring_task_keeps_its_schedule_however_late_it_ran(now: int, due: int) -> None:
    assert next_occurrence(100, 10, now) == due


def plan(**given: Any) -> Any:
    usual: dict[str, Any] = {
        "key": None, "max_retries": 0, "backoff": None, "retry_on": Exception, "timeout": None, "priority": 0,
        "eta": None, "interval": None, "tags": (),
    }  # fmt: skip
    return make_options(5 * SECOND, **{**usual, **given})


def test_options_that_are_as_usual_are_not_stored() -> None:
    assert plan().is_usual
    assert plan(key="k").is_usual


def test_due_times_are_absolute_or_from_now_on() -> None:
    moment = datetime.datetime(2030, 1, 2, 3, 4, 5, 6, tzinfo=datetime.timezone(datetime.timedelta(hours=2)))
    assert plan(eta=moment).eta == 1893546245000006
    assert plan(eta=2.5).eta == plan(eta=datetime.timedelta(seconds=2.5)).eta == 7_500_000
    assert plan(eta=-100).eta == 0


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("key", "", ValueError), ("max_retries", -1, ValueError), ("max_retries", 1.5, TypeError),
        ("max_retries", True, TypeError), ("priority", "high", TypeError), ("priority", 1 << 40, ValueError),
        ("eta", datetime.datetime(2030, 1, 1), ValueError), ("eta", "soon", TypeError),  # noqa: DTZ001 - the point
        ("eta", float("nan"), ValueError), ("interval", 0, ValueError), ("interval", -1.0, ValueError),
        ("interval", datetime.timedelta(0), ValueError), ("tags", "nightly", TypeError), ("tags", [1], TypeError),
    ],
)  # fmt: skip
def test_a_bad_option_is_named_with_its_value(option: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        plan(**{option: value})
    assert option in str(caught.value)
    if not isinstance(value, datetime.timedelta):
        assert str(value) in str(caught.value) or repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ("option", "value"), [("backoff", -1), ("backoff", "long"), ("retry_on", ()), ("retry_on", 3), ("retry_on", int)]
)
def test_a_bad_option_for_retries_is_named(option: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=option):
        plan(max_retries=1, **{option: value})


def failed(error: Exception) -> ErrorInfo:
    import pickle

    return ErrorInfo(type(error).__name__, str(error), "", pickle.dumps(error))


def test_it_is_decided_by_the_count_and_the_kind_of_error_whether_it_is_tried_again() -> None:
    options = plan(max_retries=2, backoff=3, retry_on=(KeyError, OSError)).options
    assert retry_at(options, failed(KeyError(1)), 100) == 100 + 3 * SECOND
    assert retry_at(options, failed(FileNotFoundError()), 100) == 100 + 3 * SECOND
    assert retry_at(options, failed(ValueError()), 100) is None
    assert retry_at(options._replace(retries=1), failed(KeyError(1)), 100) is not None
    assert retry_at(options._replace(retries=2), failed(KeyError(1)), 100) is None


def test_an_error_that_cannot_be_rebuilt_counts_as_an_exception() -> None:
    lost = ErrorInfo("Strange", "", "", None)
    assert retry_at(plan(max_retries=1).options, lost, 0) is not None
    assert retry_at(plan(max_retries=1, retry_on=KeyError).options, lost, 0) is None


def test_what_a_backoff_raises_is_logged_and_ends_the_retries(caplog: pytest.LogCaptureFixture) -> None:
    options = plan(max_retries=1, backoff=calls.raise_value_error).options
    assert retry_at(options, failed(ValueError()), 0) is None
    assert "not tried again" in caplog.text


# --- With workers ---


def test_a_call_that_fails_is_tried_again_until_it_succeeds(make_executor: Any, journal: Any) -> None:
    executor = make_executor(2)
    future = executor.options(max_retries=3, backoff=0).submit(calls.fail_until, journal.path, 3)
    assert future.result(WAIT_S) == 3
    task = future.task()
    assert (task.attempts, task.crashes, task.status, task.error) == (3, 0, Status.COMPLETED, None)
    assert task.options == Options(3, 2, policy=task.options.policy)


def test_max_retries_are_counted_after_the_first_try(make_executor: Any, journal: Any) -> None:
    executor = make_executor(2)
    future = executor.options(max_retries=3, backoff=lambda n: 0.001 * n).submit(calls.fail_until, journal.path, 99)
    with pytest.raises(ValueError, match="try 4"):
        future.result(WAIT_S)
    assert len(journal.lines()) == 4
    assert future.task().status is Status.FAILED


def test_an_error_that_is_not_meant_fails_the_call_at_once(make_executor: Any, journal: Any) -> None:
    executor = make_executor(1)
    future = executor.options(max_retries=3, backoff=0, retry_on=OSError).submit(calls.fail_until, journal.path, 99)
    with pytest.raises(ValueError, match="try 1"):
        future.result(WAIT_S)


def test_a_retry_waits_for_its_delay_and_holds_up_nobody(make_executor: Any, journal: Any) -> None:
    executor = make_executor(1)
    future = executor.options(max_retries=1, backoff=0.3).submit(calls.fail_until, journal.path, 2)
    journal.wait_for(1)
    assert list(executor.map(calls.square, range(20))) == [n * n for n in range(20)]
    assert future.result(WAIT_S) == 2
    task = future.task()
    assert task.started_at - task.enqueued_at >= 0.3 * SECOND


def test_items_of_a_map_are_tried_again_each_by_itself(make_executor: Any, tmp_path: Path) -> None:
    executor = make_executor(2)
    paths = [tmp_path / str(n) for n in range(6)]
    assert list(executor.options(max_retries=2, backoff=0).map(calls.fail_until, paths, [1, 2, 3, 1, 2, 3])) == [
        1, 2, 3, 1, 2, 3,
    ]  # fmt: skip


def test_a_call_runs_when_it_is_due_and_not_before(make_executor: Any) -> None:
    executor = make_executor(2)
    later = executor.options(eta=0.4).submit(calls.square, 3)
    assert executor.submit(calls.square, 2).result(WAIT_S) == 4
    assert not later.done()
    assert later.result(WAIT_S) == 9
    assert later.task().started_at >= later.task().eta


def test_nobody_has_to_wait_for_a_call_that_is_due_for_it_to_run(make_executor: Any) -> None:
    executor = make_executor(1)
    done = threading.Event()
    executor.options(eta=0.2).submit(calls.square, 3).add_done_callback(lambda _: done.set())
    assert done.wait(WAIT_S)


def test_a_call_that_is_not_due_can_be_cancelled(make_executor: Any) -> None:
    executor = make_executor(1)
    later = executor.options(eta=datetime.timedelta(days=1)).submit(calls.square, 3)
    assert later.cancel()
    executor.shutdown()


def test_calls_of_higher_priority_run_first(make_executor: Any, journal: Any, tmp_path: Path) -> None:
    executor = make_executor(1)
    gate = tmp_path / "gate"
    held = executor.submit(calls.noted_wait, journal.path, "held", gate)
    journal.wait_for(1)
    futures = [executor.options(priority=p).submit(calls.noted, journal.path, p) for p in (-1, 5, 0, 9)]
    gate.touch()
    for future in [held, *futures]:
        future.result(WAIT_S)
    assert journal.lines() == ["held", "9", "5", "0", "-1"]


def test_a_recurring_call_runs_again_and_again_until_its_series_is_cancelled(
    make_executor: Any, journal: Any, wait_until: Any
) -> None:
    executor = make_executor(1)
    first = executor.options(interval=0.05, tags=["beat"]).submit(calls.noted, journal.path, "x")
    assert first.result(WAIT_S) == "x"
    journal.wait_for(4)
    assert not first.cancel()  # it is done, and the series ends all the same
    wait_until(lambda: not executor.store.find(Status.RUNNING), what="the last occurrence to end")
    tasks = executor.store.find(tags=["beat"])
    executor.shutdown(wait=True)
    assert [task.options.series for task in tasks] == [None] + [parse_id(first.task_id)] * (len(tasks) - 1)
    etas = [task.eta for task in tasks[1:]]
    base = tasks[0].eta or tasks[0].started_at
    assert all((eta - etas[0]) % 50_000 == 0 for eta in etas), base
    last = tasks[-1]  # cancelled before it began, or told while it ran that it is the last
    assert last.status is Status.CANCELLED or (last.status is Status.COMPLETED and last.options.interval is None)


def test_a_recurring_call_goes_on_after_a_failure(make_executor: Any, journal: Any) -> None:
    executor = make_executor(1)
    first = executor.options(interval=0.02).submit(calls.fail_until, journal.path, 99)
    with pytest.raises(ValueError, match="try 1"):
        first.result(WAIT_S)
    journal.wait_for(3)
    first.cancel()


def test_tasks_are_found_by_their_tags(make_executor: Any) -> None:
    executor = make_executor(1)
    tagged = executor.options(tags=["a", "b"]).submit(calls.square, 2)
    executor.submit(calls.square, 3)
    assert [future.task_id for future in executor.futures(tags=["a"])] == [tagged.task_id]
    assert tagged.result(WAIT_S) == 4


def test_what_is_scheduled_outlives_its_executor(store: Path, tmp_path: Path) -> None:
    with PersistentExecutor(1, store=store, queue="q") as executor:
        executor.options(interval=3600, eta=3600, key="hourly").submit(calls.square, 3)
        executor.kill_workers()
    opened = open_store(store)
    (task,) = opened.find()
    opened.close()
    assert (task.status, task.options) == (Status.PENDING, Options(interval=3600 * SECOND))
