"""Arguments without a stable form: they are named once, and their calls run again rather than being resumed."""

import functools
import logging
import types
from collections.abc import Callable
from typing import Any

import pytest

from omniq_executor import PersistentExecutor
from omniq_executor.model import unstable
from omniq_executor.model.functions import same_arguments
from omniq_executor.model.task import Call

MakeExecutor = Callable[..., PersistentExecutor]


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unstable, "_said", set())
    monkeypatch.setattr(unstable, "_watched", {})


def ring() -> list[Any]:
    """Data that contains itself: it can be pickled, and has no stable form."""
    made: list[Any] = [1]
    made.append(made)
    return made


def size(values: Any, factor: int = 1, *more: Any, other: Any = None) -> int:
    return len(values) * factor


class Sizes:
    def __init__(self, values: Any) -> None:
        self.size = len(values)

    def of(self, values: Any) -> int:
        return len(values)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "stable form" in record.getMessage()]


def test_function_parameter_and_cause_are_named_once(
    executor: PersistentExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        assert executor.submit(size, ring(), 2).result(30) == 4
    assert list(executor.map(size, [ring(), ring()])) == [2, 2]
    assert said(caplog) == [
        f"argument 'values' of {__name__}.size, of type list, has no stable form (nested deeper than 150 levels, or"
        " within itself): calls with it run again in each run, and are not resumed"
    ]
    assert caplog.records[0].name == "omniq_executor"
    assert caplog.records[0].levelno == logging.WARNING


def test_each_parameter_is_named(executor: PersistentExecutor, caplog: pytest.LogCaptureFixture) -> None:
    executor.submit(size, [1], 1, ring(), other=ring()).result(30)
    executor.submit(size, ring()).result(30)
    executor.submit(size, ring()).result(30)
    assert [text.split(" of ")[0] for text in said(caplog)] == ["argument 3", "argument 'other'", "argument 'values'"]


@pytest.mark.parametrize(
    ("function", "given"),
    [
        (functools.partial(size, factor=2), "argument 'values' of "), (functools.partial(size, [1]), None),
        (Sizes, "argument 'values' of "), (Sizes([]).of, "argument 'values' of "), (len, "argument 1 of builtins.len"),
    ],
)  # fmt: skip
def test_parameters_are_known_of_whatever_can_be_called(
    executor: PersistentExecutor, caplog: pytest.LogCaptureFixture, function: Any, given: str | None
) -> None:
    executor.submit(function, 1 if given is None else ring()).result(30)
    assert len(said(caplog)) == (given is not None)
    assert all(text.startswith(given or "") for text in said(caplog))


def test_such_calls_run_again_and_others_are_resumed(
    make_executor: MakeExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    ids = []
    for _ in range(2):
        with make_executor(resume="always") as executor:
            futures = [executor.submit(size, ring()), executor.submit(size, (1,))]
            assert [future.result(30) for future in futures] == [2, 1]
            ids.append([future.task_id for future in futures])
    assert ids[0][0] != ids[1][0]
    assert ids[0][1] == ids[1][1]


def test_a_key_says_which_call_it_is(make_executor: MakeExecutor, caplog: pytest.LogCaptureFixture) -> None:
    ids = set()
    for _ in range(2):
        with make_executor(resume="always") as executor:
            future = executor.options(key="ring").submit(size, ring())
            assert future.result(30) == 2
            ids.add(future.task_id)
    assert len(ids) == 1
    assert said(caplog) == []


def test_nothing_is_said_where_nothing_is_resumed(
    make_executor: MakeExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    with make_executor(resume="never") as executor:
        assert executor.submit(size, ring()).result(30) == 2
    assert said(caplog) == []


def test_what_has_a_stable_form_is_not_looked_at_for_a_name(
    executor: PersistentExecutor, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(unstable, "name", lambda *args: asked.append(args))
    assert executor.submit(size, (1, 2)).result(30) == 2
    assert asked == []


def test_a_digest_that_begins_like_arguments_without_a_stable_form_is_one_all_the_same() -> None:
    """Each 256th does."""
    known, other = b"?" + bytes(15), b"?" + bytes(14) + b"1"
    task: Any = types.SimpleNamespace(options=None)
    for more in (b"", bytes(16)):  # of a call with a key
        assert same_arguments(task, known + more, Call(b"", None, known + more))
        assert not same_arguments(task, known + more, Call(b"", None, other + more))
    assert same_arguments(task, known + b"1", Call(b"", None, other))
