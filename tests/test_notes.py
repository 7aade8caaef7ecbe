"""The exception of a failed call has a note that names its task and its call."""

import concurrent.futures
import dataclasses
import functools
import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import calls
import pytest

from omniq_executor import (
    AsyncOmniQ,
    DependencyFailed,
    NotImportable,
    PersistentExecutor,
    Status,
    TaskTimeout,
    WorkerCrashed,
)
from omniq_executor.engines.local import calltext
from omniq_executor.engines.local.calltext import CallText
from omniq_executor.future import rebuild
from omniq_executor.model.codec import decode_error, encode_error
from omniq_executor.model.task import ErrorInfo, format_id

WAIT_S = 30.0
MakeExecutor = Callable[..., PersistentExecutor]


def parse(path: Any, *numbers: Any, strict: bool = False) -> None:
    raise ValueError("no number")


@dataclasses.dataclass
class Point:
    x: int

    def fail(self, by: int) -> None:
        raise ValueError(by)

    def __call__(self, n: int) -> None:
        raise ValueError(n)


class Raises:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class Exits:
    def __repr__(self) -> str:
        raise SystemExit(3)


class Huge:
    def __repr__(self) -> str:
        return "x" * 10_000_000


class Stands:
    """Its repr comes back when the test is over."""

    asked = 0
    gate = threading.Event()

    def __repr__(self) -> str:
        type(self).asked += 1
        self.gate.wait(WAIT_S)
        return "late"


class Sleeps:
    def __repr__(self) -> str:
        time.sleep(WAIT_S * 3)
        return "late"


class OwnNotes(Exception):
    """Has made something else of its notes."""

    __notes__ = 5


class NoState(Exception):
    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)

    def add_note(self, note: str) -> None:
        raise AssertionError("not this one")


def note(error: BaseException | None) -> str:
    assert error is not None
    (only,) = error.__notes__
    return str(only)


# --- The text ---


def text(function: Any, *args: Any, **kwargs: Any) -> str:
    return CallText().of(function, args, kwargs)


def test_a_call_is_shown_as_it_is_written() -> None:
    assert text(parse, "a.csv", 3, strict=True) == "parse('a.csv', 3, strict=True)"
    assert text(parse) == "parse()"
    assert text(parse, [1, (2,), {"a": {3}}], set(), (), {}, frozenset(), b"b", 1.5, None, ...) == (
        "parse([1, (2,), {'a': {3}}], set(), (), {}, {}, b'b', 1.5, None, Ellipsis)"
    )
    assert text(Point(1).fail, Point(2)) == "Point.fail(Point(x=2))"
    assert text(Point(1), 2) == "Point.__call__(2)"
    assert text(functools.partial(functools.partial(parse, 1), 2, strict=True), 3) == "parse(1, 2, 3, strict=True)"
    assert text(parse, Path("a")) == f"parse({Path('a')!r})"
    assert CallText().of(parse, None, {}) == "parse(...)"


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10_000_000, b"x" * 10_000_000, 1 << 10_000_000, list(range(1_000_000)), {n: n for n in range(100_000)},
        [["x" * 60] * 9] * 9, Huge(), [Huge()] * 9, type("x" * 10_000, (), {"__slots__": ()})(),
    ],
    ids=lambda value: type(value).__name__[:10],
)  # fmt: skip
def test_what_is_huge_is_shortened_in_no_time(value: Any) -> None:
    began = time.monotonic()
    for shown in (text(parse, value), text(parse, *[value] * 50), text(parse, **{"n" * 10_000: value})):
        assert len(shown) <= 250
        assert shown.startswith("parse(")
    assert time.monotonic() - began < 5


def test_a_list_that_holds_itself_is_shortened() -> None:
    ring: list[Any] = []
    ring.append(ring)
    assert text(parse, ring) == "parse([[[[...]]]])"


def test_a_repr_that_raises_is_named() -> None:
    assert text(parse, Raises(), 2) == "parse(<Raises: its __repr__ raised RuntimeError>, 2)"
    assert text(parse, Exits(), Point(1)) == "parse(<Exits: its __repr__ raised SystemExit>, Point(x=1))"


def test_a_repr_that_does_not_come_back_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calltext, "WAIT_S", 0.05)
    shows = CallText()
    assert shows.of(parse, (Point(1), Stands(), Point(2)), {}) == "parse(Point(x=1), <Stands>, <Point>)"
    assert shows.of(parse, (Stands(), 3), {}) == "parse(<Stands>, 3)"
    assert Stands.asked == 1
    Stands.gate.set()


# --- Where it is stored ---


def test_it_is_stored_only_where_there_is_one() -> None:
    plain, told = (
        ErrorInfo("ValueError", "no", "Traceback"),
        ErrorInfo("ValueError", "no", "Traceback", b"1", "f('\ud800')"),
    )
    assert encode_error(plain) == '{"type":"ValueError","message":"no","traceback":"Traceback"}'  # as it always was
    assert decode_error(encode_error(plain), None) == plain
    assert decode_error(encode_error(told), b"1") == told._replace(call="f('\\ud800')")


def test_show_tells_the_call(executor: PersistentExecutor, store: Path) -> None:
    from click.testing import CliRunner

    from omniq_executor.cli.main import main

    future = executor.submit(parse, "a.csv", strict=True)
    assert future.exception(WAIT_S) is not None
    assert future.task().error.call == "parse('a.csv', strict=True)"
    run = functools.partial(CliRunner().invoke, main)
    shown = run(["show", future.task_id, "--store", str(store)])
    assert "in parse('a.csv', strict=True)" in shown.output
    shown = run(["show", future.task_id, "--store", str(store), "--json"])
    assert '"call": "parse(\'a.csv\', strict=True)"' in shown.output


# --- On the exception ---


def test_a_future_has_it_once_however_often_it_is_asked(executor: PersistentExecutor) -> None:
    future = executor.submit(parse, "a.csv", 3, strict=True)
    error = future.exception(WAIT_S)
    with pytest.raises(ValueError, match=r"(?m)^no number$") as caught:
        future.result(WAIT_S)
    assert caught.value is error is future.exception()
    assert note(error) == f"{future.task_id}: parse('a.csv', 3, strict=True)"
    assert note(executor.future(future.task_id or "").exception(WAIT_S)) == note(error)
    assert note(pickle.loads(pickle.dumps(error))) == note(error)


def test_so_do_calls_whose_arguments_are_pickled(executor: PersistentExecutor) -> None:
    for args in [(Path("a"), (1, 2)), (Point(1),)]:
        future = executor.submit(parse, *args, strict=True)
        shown = ", ".join(map(repr, args))
        assert note(future.exception(WAIT_S)) == f"{future.task_id}: parse({shown}, strict=True)"


def test_so_do_calls_whose_output_is_kept(make_executor: MakeExecutor) -> None:
    executor = make_executor(1, capture_output=True)
    for args in [("a", 1), (Path("a"),)]:
        future = executor.submit(parse, *args)
        assert note(future.exception(WAIT_S)) == f"{future.task_id}: parse({', '.join(map(repr, args))})"


def test_a_map_has_it(executor: PersistentExecutor) -> None:
    with pytest.raises(ValueError, match="item 3") as caught:
        list(executor.map(calls.fail_at, [3] * 9, range(9), timeout=WAIT_S))
    (failed,) = executor.futures(Status.FAILED)
    assert note(caught.value) == note(failed.exception()) == f"{failed.task_id}: fail_at(3, 3)"
    with pytest.raises(ValueError, match="item 3") as caught:
        list(executor.map(calls.fail_at, [3], [3]))
    assert note(caught.value).endswith(": fail_at(3, 3)")


def test_awaits_have_it(store: Path) -> None:
    import asyncio

    async def main() -> None:
        async with AsyncOmniQ(store) as omniq:
            task = await omniq.enqueue(parse, ["a.csv"])
            working = asyncio.create_task(asyncio.to_thread(work))
            with pytest.raises(ValueError, match="no number") as caught:
                await omniq.get_result(task, timeout=WAIT_S)
            await working
            assert note(caught.value) == f"{task}: parse('a.csv')"

    def work() -> None:
        with PersistentExecutor(1, store=store, queue="default") as executor:
            concurrent.futures.wait(executor.futures(), WAIT_S)

    asyncio.run(main())


def test_errors_of_our_own_name_the_task_and_the_function(make_executor: MakeExecutor, journal: Any) -> None:
    executor = make_executor(2, crash_retries=0)
    crashed = executor.submit(calls.kill_self)
    assert type(crashed.exception(WAIT_S)) is WorkerCrashed
    assert note(crashed.exception()) == f"{crashed.task_id}: calls.kill_self"
    late = executor.options(timeout=0.1).submit(time.sleep, WAIT_S)
    assert type(late.exception(WAIT_S)) is TaskTimeout
    assert note(late.exception()) == f"{late.task_id}: time.sleep"
    dependent = executor.submit(calls.echo, crashed)
    assert type(dependent.exception(WAIT_S)) is DependencyFailed
    assert note(dependent.exception()) == f"{dependent.task_id}: calls.echo"


def test_it_is_the_task_alone_where_the_store_is_closed(make_executor: MakeExecutor) -> None:
    executor = make_executor(1, crash_retries=0)
    future = executor.submit(calls.kill_self)
    executor.shutdown()
    assert note(future.exception(WAIT_S)) == future.task_id


def test_a_function_that_cannot_be_imported_is_named(
    executor: PersistentExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert executor.submit(calls.square, 2).result(WAIT_S) == 4  # the worker is there, with its path
    (tmp_path / "only_noted.py").write_text("def work(n):\n    return n\n")
    monkeypatch.syspath_prepend(tmp_path)
    import only_noted  # type: ignore[import-not-found]

    future = executor.submit(only_noted.work, 1)
    assert type(future.exception(WAIT_S)) is NotImportable
    assert note(future.exception()) == f"{future.task_id}: only_noted.work"


def test_what_cannot_be_returned_names_the_call(executor: PersistentExecutor) -> None:
    future = executor.submit(calls.make_lock, 1)
    assert note(future.exception(WAIT_S)) == f"{future.task_id}: make_lock(1)"


@pytest.mark.parametrize("name", ["raise_two_arguments", "raise_unloadable", "raise_bad_text", "raise_keeping_a_lock"])
def test_odd_exceptions_have_it(executor: PersistentExecutor, name: str) -> None:
    future = executor.submit(getattr(calls, name))
    assert note(future.exception(WAIT_S)) == f"{future.task_id}: {name}()"


def test_an_exception_that_takes_no_notes_comes_without(executor: PersistentExecutor) -> None:
    future = executor.submit(calls.throw, OwnNotes("as it is"))
    assert (type(future.exception(WAIT_S)), future.exception().__notes__) == (OwnNotes, 5)
    future = executor.submit(calls.throw, NoState("as it is"))
    assert (type(future.exception(WAIT_S)), str(future.exception())) == (NoState, "as it is")


def test_the_calls_own_notes_stay(executor: PersistentExecutor) -> None:
    future = executor.submit(fail_with_note, "mine")
    assert future.exception(WAIT_S).__notes__ == ["mine", f"{future.task_id}: fail_with_note('mine')"]


def fail_with_note(text: str) -> None:
    error = ValueError("no")
    error.add_note(text)
    raise error


def test_a_repr_that_stands_still_holds_up_no_worker(make_executor: MakeExecutor) -> None:
    executor = make_executor(1)
    futures = [executor.submit(parse, Sleeps(), n) for n in range(5)]
    assert executor.submit(calls.square, 3).result(WAIT_S) == 9
    for n, future in enumerate(futures):
        assert note(future.exception(WAIT_S)) == f"{future.task_id}: parse(<Sleeps>, {n})"


def test_an_error_of_an_earlier_version_has_its_task(executor: PersistentExecutor) -> None:
    stored = ErrorInfo("ValueError", "no", "Traceback", pickle.dumps(ValueError("no")))
    assert note(rebuild(stored, 5)) == format_id(5)
    assert not hasattr(rebuild(stored, None), "__notes__")
