"""The example in the docstring of each public function and method runs, and gives what it shows."""

import asyncio
import doctest
import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import omniq_executor
from omniq_executor import PersistentExecutor

pytestmark = pytest.mark.once

# What is no class of methods that people call: values that are looked at, and what the package itself calls.
PLAIN = {"Store", "Task", "Status", "Reason", "Failures", "FailureGroup", "Preview", "Resumed"}


def documented() -> dict[str, Any]:
    """What is public, by name: functions and classes, with their methods and properties."""
    found: dict[str, Any] = {}
    for name in omniq_executor.__all__:
        thing = getattr(omniq_executor, name)
        if isinstance(thing, type) and issubclass(thing, BaseException):
            continue
        found[name] = thing
        for kind in thing.__mro__ if isinstance(thing, type) else ():
            if kind.__module__.startswith("omniq_executor"):
                for attribute, value in vars(kind).items():
                    function = inspect.unwrap(getattr(value, "fget", None) or getattr(value, "__func__", value))
                    if not attribute.startswith("_") and inspect.isfunction(function) and function.__doc__:
                        found.setdefault(f"{name}.{attribute}", value)
    return found


PUBLIC = documented()
WITH_EXAMPLE = {name: thing for name, thing in PUBLIC.items() if ">>>" in (inspect.getdoc(thing) or "")}


def test_each_public_function_and_method_has_an_example() -> None:
    called = {
        name
        for name, thing in PUBLIC.items()
        if not isinstance(thing, type | property) and name.partition(".")[0] not in PLAIN
    }
    assert called - WITH_EXAMPLE.keys() == set()


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What the examples find: the package's names, some modules, an executor on a store of its own."""
    monkeypatch.chdir(tmp_path)
    for variable in [name for name in os.environ if name.startswith("OMNIQ_")]:
        monkeypatch.delenv(variable)
    found = {name: getattr(omniq_executor, name) for name in omniq_executor.__all__}
    executor = PersistentExecutor(1, queue="examples", store=omniq_executor.Settings())
    try:
        yield found | {"executor": executor, "asyncio": asyncio, "os": os, "Path": Path}
    finally:
        executor.kill_workers()


@pytest.mark.parametrize("name", WITH_EXAMPLE)
def test_the_example_of(name: str, names: dict[str, Any]) -> None:
    text = inspect.getdoc(WITH_EXAMPLE[name]) or ""
    test = doctest.DocTestParser().get_doctest(text, names, name, None, None)
    said: list[str] = []
    failed, tried = doctest.DocTestRunner().run(test, out=said.append, clear_globs=False)
    assert tried
    assert not failed, "".join(said)
