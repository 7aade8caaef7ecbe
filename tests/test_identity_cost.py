"""What it costs to know the code of a large project: once some milliseconds, and then next to nothing."""

import dis
import importlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest

from omniq_executor.code import byte_code, modules, versions
from omniq_executor.model.functions import Functions

MODULES = 200
FIRST_S = 0.05  # on a machine that does nothing else, for all code of 200 modules
AGAIN_S = 25e-6
SLOWER = 4  # a machine that does something else

MODULE = """
from {package} import m{near}
from {package}.m{far} import first as first_of_far, Kind{far}

LIMIT = {number}
TABLE = {{"one": {number}, "two": [1, 2, 3]}}

class Kind{number}:
    size = {number}
    def method(self, n):
        return helper(n) + LIMIT + self.size
    def other(self, n, step=2):
        return Kind{far}().method(n) + step

def helper(n):
    if n > LIMIT:
        return TABLE["one"]
    return m{near}.second(n)

def first(n, step={number}):
    return helper(n) + Kind{number}().other(n) + step

def second(n):
    return first_of_far(n) + m{near}.first(n)
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function that reaches all of 200 modules."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    package = "large_project"
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").touch()
    (tmp_path / package / f"m{MODULES}.py").write_text(
        f"class Kind{MODULES}:\n    def method(self, n): return n\ndef first(n): return n\nsecond = helper = first\n"
    )
    importlib.import_module(f"{package}.m{MODULES}")
    for number in reversed(range(MODULES)):
        near, far = number + 1, min(number + 7, MODULES)
        text = MODULE.format(package=package, number=number, near=near, far=far)
        (tmp_path / package / f"m{number}.py").write_text(text)
        importlib.import_module(f"{package}.m{number}")
    yield sys.modules[f"{package}.m0"].second
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]


def forget() -> None:
    """Know as little of code as a process that has just begun."""
    versions._known.clear()
    byte_code.code_digest.cache_clear()
    modules.mentions.cache_clear()
    for known in (modules._known, modules._texts):
        for name in [name for name in known if name.startswith("large_project")]:
            del known[name]  # type: ignore[attr-defined]


def test_the_code_of_two_hundred_modules_is_known_in_a_moment(work: Any) -> None:
    taken = []
    for _ in range(5):
        forget()
        began = time.process_time()
        described = Functions().describe(work)
        taken.append(time.process_time() - began)
    assert len(versions.version_of(work).values) == MODULES + 1
    assert described.pickle.count(b"large_project.m") > MODULES
    assert min(taken) < SLOWER * FIRST_S, taken


def test_what_is_known_costs_next_to_nothing_for_each_call(work: Any) -> None:
    functions = Functions()
    described = functions.describe(work)
    taken = []
    for _ in range(5):
        began = time.process_time()
        for _ in range(200):
            assert functions.describe(work) is described
        taken.append((time.process_time() - began) / 200)
    assert min(taken) < SLOWER * AGAIN_S, taken


def test_a_module_that_is_loaded_anew_is_seen_at_once_in_a_large_project(work: Any) -> None:
    functions = Functions()
    before = functions.describe(work)
    module = sys.modules["large_project.m150"]
    path = Path(module.__file__ or "")
    path.write_text(path.read_text().replace("LIMIT = 150", "LIMIT = 151"))
    importlib.invalidate_caches()
    importlib.reload(module)
    assert functions.describe(work).digest != before.digest


def test_what_is_put_in_place_of_a_function_is_seen_a_moment_later(work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    functions = Functions()
    before = functions.describe(work)
    monkeypatch.setattr(sys.modules["large_project.m150"], "helper", lambda n: n)
    deadline = time.monotonic() + 30
    while functions.describe(work).digest == before.digest:
        assert time.monotonic() < deadline


def test_names_are_read_from_byte_code_as_dis_reads_them() -> None:
    many = compile(f"def f():\n return [{','.join(f'n{i}' for i in range(70_000))}]", "many", "exec")
    scopes = compile(
        "class A:\n x = y\n def f(self):\n  global z\n  z = 1\n  del z\n def g(self, q):\n  class B:\n   w = q + v\n",
        "scopes", "exec",
    )  # fmt: skip
    codes = [many, scopes]
    for module in (dis, importlib, pytest, Path, time, versions, modules):
        codes += [each.__code__ for each in vars(module).values() if isinstance(each, FunctionType)]
    assert len(codes) > 50
    for code in codes:
        assert {*modules.mentions(code).names} == read_by_dis(code)


def read_by_dis(code: CodeType) -> set[str]:
    steps = {"LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}
    found = {step.argval for step in dis.get_instructions(code) if step.opname in steps}
    return found.union(*(read_by_dis(each) for each in code.co_consts if isinstance(each, CodeType)))
