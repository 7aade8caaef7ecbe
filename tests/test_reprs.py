"""What objects say of themselves, as text and as HTML, whatever state they or their store are in."""

import contextlib
import os
import pickle
import re
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import calls
import pytest

from omniq_executor import DurableFuture, PersistentExecutor, attach, open_store
from omniq_executor.display import words
from omniq_executor.display.card import Card, Table
from omniq_executor.model.schema import ErrorInfo, Options, Status, Task
from omniq_executor.model.shown import call_text, error_head
from omniq_executor.stores import glance, glances
from omniq_executor.stores.glances import Wanted

WAIT_S = 30.0
SECOND = 1_000_000
ID = 0x1234


def task(**fields: Any) -> Task:
    given = {"id": ID, "queue": "etl", "run": 3, "func_path": "etl.parse", "func": b"\x80", "args": '["a.csv",3]'}
    return Task(**{**given, "enqueued_at": 0, **fields})


class Rude:
    """Whose repr() is code that must not be run."""

    def __repr__(self) -> str:
        raise AssertionError("its repr() was called")


@pytest.fixture(autouse=True)
def _asked_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glances, "_AGAIN_AFTER_S", 0.0)


def checked(html: str) -> str:
    """Return HTML of which nothing runs, and every tag is closed."""
    assert not re.search(r"<script|<style|<link|\son\w+=|javascript:", html)
    opened, closed = re.findall(r"<(\w+)", html), re.findall(r"</(\w+)", html)
    assert sorted(opened) == sorted(closed)
    return html


def both(it: Any) -> Iterator[str]:
    yield repr(it)
    yield checked(it._repr_html_())


# calls and tasks


@pytest.mark.parametrize(
    ("args", "kwargs", "shown"),
    [
        ("[]", None, "parse()"),
        ('["a.csv",3]', None, "parse('a.csv', 3)"),
        ('["a.csv"]', '{"strict":true}', "parse('a.csv', strict=True)"),
        (pickle.dumps(((1, 2), {})), None, "parse(1, 2)"),
        (pickle.dumps((((1, 2),), {})), None, "parse((1, 2))"),
        (b"", None, "parse(…)"),
        (pickle.dumps((({1},), {})), None, "parse({1})"),
        (pickle.dumps(((1,), {"a": 2})), None, "parse(1, a=2)"),
        (b"no pickle", None, "parse(a pickle of 9 bytes (UnpicklingError))"),
        ("no JSON", None, "parse(o JSON…)"),
    ],
)
def test_a_call_is_shown_as_it_would_be_written(args: str | bytes, kwargs: str | None, shown: str) -> None:
    assert call_text("parse", args, kwargs) == shown


@pytest.mark.parametrize("args", [f'["{"x" * 10_000}"]', pickle.dumps((("x" * 10_000,), {})), f"[{'1,' * 5000}1]"])
def test_a_call_is_shown_short(args: str | bytes) -> None:
    assert len(call_text("parse", args, None)) < 120
    assert len(call_text("f" * 10_000, args, None)) < 220


def test_arguments_of_the_users_are_not_loaded_and_not_asked_for_their_repr() -> None:
    text = call_text("parse", pickle.dumps(((Rude(),), {})), None)
    assert text.startswith("parse(")
    assert "Rude" in text


def test_a_printed_task_holds_no_pickle() -> None:
    failed = task(
        status=Status.FAILED, started_at=SECOND, finished_at=3 * SECOND, attempts=2, args=pickle.dumps((("a",), {})),
        error=ErrorInfo("builtins.ValueError", "no\nmore", "", b"\x80 pickled"),
    )  # fmt: skip
    assert (
        str(failed)
        == repr(failed)
        == (f"<Task {failed.task_id} etl.parse('a') FAILED after 2.0 s, 2 attempts: ValueError: no…>")
    )


def test_a_task_is_shown_with_all_that_one_asks_for_first() -> None:
    html = checked(
        task(
            status=Status.FAILED, started_at=5 * SECOND, finished_at=7 * SECOND, attempts=2, crashes=1, key="2024",
            options=Options(max_retries=3, tags=("nightly",)),
            error=ErrorInfo("m.Bad", "<b>no</b>", 'Traceback\n  File "x.py", line 1, in f\n    g()\nm.Bad: no\n', None),
        )._repr_html_()
    )  # fmt: skip
    for said in (
        "etl.parse(&#x27;a.csv&#x27;, 3)", "FAILED", "2, of which 1 died, 3 retries allowed", "nightly", "2024",
        "after 5.0 s of waiting, for 2.0 s", "Bad: &lt;b&gt;no&lt;/b&gt;", "File &quot;x.py&quot;, line 1, in f",
    ):  # fmt: skip
        assert said in html, said


def test_what_could_steer_a_terminal_is_made_harmless() -> None:
    error = ErrorInfo("ValueError", "\x1b[31mred\x07", "")
    for text in both(task(status=Status.FAILED, finished_at=SECOND, error=error, args='["\\u001b[2J"]')):
        assert "\x1b" not in text
        assert "\x07" not in text


def test_an_error_without_a_message_is_its_class() -> None:
    assert error_head(ErrorInfo("m.Bad", " ", "")) == "Bad"


# futures


def test_a_future_says_its_call_and_how_it_stands(make_executor: Any, journal: Any, gate: Path) -> None:
    executor = make_executor(1)
    running = executor.submit(calls.noted_wait, journal.path, "first", gate)
    waiting = executor.submit(calls.square, 4)
    cancelled = executor.submit(calls.square, 5)
    journal.wait_for(1)
    assert cancelled.cancel()
    assert f"<DurableFuture {running.task_id} calls.noted_wait(" in repr(running)
    assert " RUNNING for " in repr(running)
    assert re.match(rf"<DurableFuture {waiting.task_id} calls.square\(4\) (PENDING>|RUNNING for )", repr(waiting))
    assert repr(cancelled).startswith(f"<DurableFuture {cancelled.task_id} calls.square(5) CANCELLED")
    gate.touch()
    assert waiting.result(WAIT_S) == 16
    assert re.fullmatch(
        rf"<DurableFuture {waiting.task_id} calls\.square\(4\) COMPLETED in [\d.]+ m?s, returned int>", repr(waiting)
    )
    html = checked(waiting._repr_html_())
    assert "calls.square(4)" in html
    assert ">16<" in html


def test_a_future_that_failed_says_why_and_loads_nothing(executor: PersistentExecutor) -> None:
    future = executor.submit(calls.raise_unloadable)
    assert not future.cancelled()
    concurrent_wait(future)
    stored = future._stored
    text = repr(future)
    assert " FAILED after " in text
    assert "TwoArguments" in text or "Unloadable" in text or ": " in text
    assert future._stored is stored  # the exception was not loaded


def concurrent_wait(future: DurableFuture[Any]) -> None:
    future._wait(WAIT_S)


def test_an_exception_whose_text_raises_is_shown_by_its_class(executor: PersistentExecutor) -> None:
    future = executor.submit(calls.raise_bad_text)
    error = future.exception(WAIT_S)
    for text in both(future):
        assert type(error).__name__ in text or "FAILED" in text


def test_a_future_says_that_it_was_resumed(make_executor: Any) -> None:
    first = make_executor(1)
    assert first.submit(calls.square, 3).result(WAIT_S) == 9
    first.kill_workers()
    future = make_executor(1).submit(calls.square, 3)
    assert future.result(WAIT_S) == 9
    assert "COMPLETED" in repr(future)
    assert ", resumed, returned int>" in repr(future)
    assert "its result was there already" in future._repr_html_()


def test_a_call_that_could_not_be_stored_says_so(executor: PersistentExecutor) -> None:
    future = executor.submit(calls.square, threading.Lock())
    text, html = both(future)
    assert text.startswith("<DurableFuture that was not stored FAILED: SerializationError: ")
    assert "not stored" in html


def test_a_reference_is_shown_as_its_future_and_nothing_is_begun(executor: PersistentExecutor, store: Path) -> None:
    future = executor.submit(calls.square, 3)
    future.result(WAIT_S)
    other = attach(store).future(str(future.task_id))
    assert re.fullmatch(rf"<DurableFuture {other.task_id} calls\.square\(3\) COMPLETED in [\d.]+ m?s>", repr(other))
    assert "_state" not in vars(other)


def test_a_result_that_was_not_read_is_not_said_to_be_none(executor: PersistentExecutor) -> None:
    future = executor.submit(calls.echo, {1, 2})
    concurrent_wait(future)
    assert "NoneType" not in repr(future)


@pytest.mark.parametrize("name", ["x.db", "x"])
def test_a_list_of_futures_is_shown_by_a_few_looks_and_each_as_it_stands(
    make_executor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    executor = make_executor(1, store=tmp_path / name)
    futures = [executor.submit(calls.square, n) for n in range(500)]
    assert [future.result(WAIT_S) for future in futures] == [n * n for n in range(500)]
    looks = []

    def look(address: str, wanted: Wanted) -> Any:
        looks.append(wanted)
        return glance(address, wanted)

    monkeypatch.setattr("omniq_executor.future.glance", look)
    monkeypatch.setattr(glances, "_MOMENT_S", 60.0)
    shown = repr(futures)
    assert [f"{future.task_id} calls.square({n}) COMPLETED" in shown for n, future in enumerate(futures)] == [
        True
    ] * 500
    assert len(looks) < (10 if name == "x.db" else 501)
    for many in futures[::-1], [futures[n * 7 % 500] for n in range(500)]:
        looks.clear()
        assert repr(many).count("COMPLETED") == 500
        assert name == "x" or sum(1 + wanted.more for wanted in looks) < 10_000
    waiting = [executor.options(eta=3600).submit(calls.square, n) for n in range(40)]
    assert repr(waiting).count("PENDING") == 40
    executor.store.cancel([waiting[39].task().id], 1)
    looks.clear()
    assert "CANCELLED" in repr(waiting[39])  # it was told before, and is looked at again
    assert len(looks) == 1
    executor.kill_workers()


# executors and maps


def test_an_executor_says_where_it_is_and_what_it_did(make_executor: Any, store: Path) -> None:
    first = make_executor(1, queue="etl")
    assert repr(first).startswith(f"<PersistentExecutor store {store}, queue 'etl', run 1, 0 of 1 worker (")
    assert repr(first).endswith(", no calls yet>")
    assert first.submit(calls.square, 3).result(WAIT_S) == 9
    first.kill_workers()
    assert repr(first).startswith("<PersistentExecutor broken, store ")
    assert "kill_workers() was called" in repr(first)
    second = make_executor(2, queue="etl")
    list(second.map(calls.square, [3, "x", 4], return_exceptions=True))
    assert ", run 2, which continues 1, " in repr(second)
    assert "3 calls: 1 completed, 1 resumed, 1 failed>" in repr(second)
    html = checked(second._repr_html_())
    for said in ("etl", "2, which continues 1, with 1 of 1 call done", str(store), "3 calls: 1 completed, 1 resumed"):
        assert said in html, said
    second.shutdown()
    assert repr(second).startswith("<PersistentExecutor closed, ")


def test_what_was_cancelled_is_not_said_to_be_completed_when_it_is_submitted_again(
    make_executor: Any, tmp_path: Path, wait_until: Any
) -> None:
    executor, gate = make_executor(1), tmp_path / "gate"
    running = executor.submit(calls.wait_for, gate)
    wait_until(running.running)
    futures = [executor.submit(calls.square, n) for n in range(3)]
    assert all(future.cancel() for future in futures)
    gate.touch()
    assert list(executor.map(calls.square, range(3))) == [0, 1, 4]
    running.result(WAIT_S)
    assert repr(executor).endswith(", 7 calls: 4 completed, 3 cancelled>")


def test_an_executor_of_workers_elsewhere_says_so(store: Path) -> None:
    executor = PersistentExecutor(store=store, engine="external")
    try:
        assert "workers of others" in repr(executor)
    finally:
        executor.kill_workers()


def test_while_a_turn_takes_long_an_executor_says_so_at_once(executor: PersistentExecutor) -> None:
    driver = executor._dispatcher.driver
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        driver.hold()
        held.set()
        done.wait(WAIT_S)
        driver.let_go()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(WAIT_S)
    try:
        for text in both(executor):
            assert "a turn takes long just now" in text
    finally:
        done.set()
        thread.join()


def test_a_map_says_how_far_it_has_come(executor: PersistentExecutor) -> None:
    results: Any = executor.map(calls.square, [*range(9), "x"], return_exceptions=True)
    assert len(list(results)) == 10
    assert repr(results) == "<map of calls.square: 10/10, 1 failed, done>"
    assert "10/10" in checked(results._repr_html_())


# stores


@pytest.mark.each_store
def test_a_store_says_what_it_holds(make_executor: Any, store: Path) -> None:
    with make_executor(1, queue="etl") as executor:
        list(executor.map(calls.square, [1, 2, "x"], return_exceptions=True))
    with contextlib.closing(open_store(store)) as opened:
        kind = type(opened).__name__
        assert re.fullmatch(rf"<{kind} {store}: 3 tasks.* \(2 COMPLETED, 1 FAILED\)>", repr(opened))
        html = checked(opened._repr_html_())
        assert "COMPLETED" in html
    assert repr(opened).startswith(f"<{kind} {store}, closed: 3 tasks")
    attached = attach(store)
    assert "3 tasks" in repr(attached)
    assert "3 tasks" in checked(attached._repr_html_())


def test_an_attachment_to_a_queue_counts_that_one(make_executor: Any, store: Path) -> None:
    for queue in ("one", "two"):
        with make_executor(1, queue=queue) as executor:
            executor.submit(calls.square, 1)
    assert "queue 'one': 1 task in 1 queue (1 COMPLETED)" in repr(attach(store, queue="one"))
    assert "no tasks" in repr(attach(store, queue="three"))


@pytest.mark.each_store
def test_a_store_that_is_gone_is_said_to_be(make_executor: Any, store: Path) -> None:
    with make_executor(1) as executor:
        future = executor.submit(calls.square, 3)
    held = executor.store
    store.rename(store.with_name("elsewhere"))
    for it in (held, attach(store)):
        for text in both(it):
            assert "cannot be read now: " in text
            assert f"there is no store at {store}" in text
    for text in both(future):
        assert "COMPLETED" in text
        assert f"there is no store at {store}" in text
    assert not store.exists()  # looking made nothing


def test_a_store_that_another_process_holds_is_said_to_be(make_executor: Any, store: Path) -> None:
    with make_executor(1) as executor:
        future = executor.submit(calls.square, 3)
    with contextlib.closing(sqlite3.connect(store, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN IMMEDIATE")
        for it in (executor.store, future, attach(store)):
            for text in both(it):
                assert "another process holds it" in text


def test_whoever_writes_holds_up_no_look(executor: PersistentExecutor, store: Path) -> None:
    future = executor.submit(calls.square, 3)
    future.result(WAIT_S)
    with contextlib.closing(sqlite3.connect(store, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert "calls.square(3) COMPLETED" in repr(future)
        assert "(1 COMPLETED)" in repr(executor.store)


def test_a_store_that_did_not_answer_is_not_asked_again_for_each_of_a_list(
    make_executor: Any, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(glances, "_AGAIN_AFTER_S", 60.0)
    with make_executor(1) as executor:
        future = executor.submit(calls.square, 3)
    store.rename(store.with_name("elsewhere"))
    assert "there is no store" in repr(future)
    store.with_name("elsewhere").rename(store)
    assert "there is no store" in repr(future)
    glances._silent.clear()
    assert "calls.square(3)" in repr(future)


def test_what_is_no_store_is_shown_as_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    path.write_bytes(b"no database" * 1000)
    for text in both(attach(path)):
        assert "cannot be read now: " in text


@pytest.mark.each_store
def test_a_look_leaves_no_file_behind(make_executor: Any, store: Path) -> None:
    with make_executor(1) as executor:
        future = executor.submit(calls.square, 3)
    before = sorted(os.listdir(store.parent))
    for it in (executor.store, future, attach(store)):
        for text in both(it):
            assert text
    assert sorted(os.listdir(store.parent)) == before


def test_a_store_with_too_many_tasks_says_so(executor: PersistentExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    list(executor.map(calls.square, range(20_000), timeout=WAIT_S))
    from omniq_executor.stores.sqlite import glance

    monkeypatch.setattr(glance, "GLANCE_S", 0.0)
    assert "more tasks than can be counted at a glance" in repr(executor.store)
    assert "more tasks than" in checked(executor.store._repr_html_())


def test_what_is_large_is_not_read(executor: PersistentExecutor) -> None:
    future = executor.submit(calls.echo, "x" * 3_000_000)
    future.result(WAIT_S)
    assert len(repr(future)) < 250
    assert len(checked(future._repr_html_())) < 10_000


# words and cards


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0 ms"), (0.0004, "0.4 ms"), (0.05, "50 ms"), (0.0999, "0.1 s"), (12.34, "12.3 s"), (59.96, "1 min"),
     (61, "1 min 1 s"), (3599.6, "1 h"), (7260, "2 h 1 min"), (200_000, "2 d 7 h")],
)  # fmt: skip
def test_times_are_written_short(seconds: float, shown: str) -> None:
    assert words.duration(seconds) == shown


def test_a_card_leaves_out_what_has_no_value() -> None:
    html = checked(Card("Thing", "it", fields=[("a", ""), ("b", "<i>")], table=Table(["x", "n"], [["q", 0]])).html())
    assert ">a<" not in html
    assert "&lt;i&gt;" in html
