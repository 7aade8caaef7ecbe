"""Random edits of random projects: a call never has the identity of one that gives another result.

And one whose code looks different, or that does not reach what was edited, has the identity that it had.
"""

import importlib
import operator
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from random_project import BY_CLASS, FUNCTIONS, PACKAGE, Element, Project

import omniq_executor
from omniq_executor.model.functions import Functions, stored_call

IS_PROOF = os.environ.get("OMNIQ_PROOF") == "1"
SEEDS = range(500 if IS_PROOF else 6)
EDITS = 60 if IS_PROOF else 25
N = 3


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A folder from which modules are imported, without a file of compiled code."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    forget()


def forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        del sys.modules[name]
    importlib.invalidate_caches()


Known = dict[str, tuple[bytes, bytes | str, int]]
"""By the name of each call the digests of its function and arguments, and what it gives."""


def look(project: Project, folder: Path) -> Known:
    """Import the project as it is, and see what identifies its calls and what they give."""
    project.write(folder)
    forget()
    functions = Functions()
    found: Known = {}
    for element in project.elements:
        defined = getattr(importlib.import_module(f"{PACKAGE}.m{element.module}"), element.name)
        for name, function, args in calls(element, defined):
            described = functions.describe(function)
            call, _ = stored_call(described, args, {}, store="none")
            found[name] = described.digest, call.identity or call.args, function(*args)
    return found


def calls(element: Element, defined: Any) -> list[tuple[str, Any, tuple[Any, ...]]]:
    """Calls of an element: of a function, and of a method of an object that is an argument, or whose it is."""
    if element.kind in FUNCTIONS:
        return [(element.name, defined, (N,))]
    if element.kind not in BY_CLASS:
        return []
    method = "inherited" if element.kind == "root" else "method"
    return [
        (element.name, operator.methodcaller(method, N), (defined(),)),
        (f"{element.name} bound", getattr(defined(), method), (N,)),
    ]


@pytest.mark.parametrize("seed", SEEDS)
def test_no_call_is_taken_for_one_that_gives_another_result(folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    project = Project(chance)
    given: dict[tuple[str, bytes, bytes | str], int] = {}
    before = look(project, folder)
    for _ in range(EDITS):
        edited: set[Element] = set()
        if chance.random() < 0.3:
            project.edit_looks()
        else:
            edited = project.edit_meaning()
        now = look(project, folder)
        for element in project.elements:
            for name in (element.name, f"{element.name} bound"):
                if name not in now:
                    continue
                *identity, result = now[name]
                assert given.setdefault((name, *identity), result) == result, f"{name} is stale"
                if not edited & project.reached_from(element):
                    others = [each.name for each in edited]
                    assert now[name] == before[name], f"{name} would run again without a reason, after {others}"
        before = now


MAKE = """
import functools
import operator
def make(k):
    def made(n):
        return n * 10 + k
    return made
def plus(n): return n + 1
def times(n): return n * 7
def apply(fn, n): return fn(n)
"""


@pytest.mark.parametrize(
    ("text", "edited"),
    [
        ("a = make(1)\nb = make(2)\ndef f(n): return a(b(n))", "a = make(2)\nb = make(1)\ndef f(n): return a(b(n))"),
        ("a = lambda n, k=1: n * k + k\nb = lambda n, k=2: n * k + k\ndef f(n): return a(b(n))",
         "a = lambda n, k=2: n * k + k\nb = lambda n, k=1: n * k + k\ndef f(n): return a(b(n))"),
        ("a = lambda n: n + 1\nb = lambda n: n * 7\ndef f(n): return a(b(n))",
         "a = lambda n: n * 7\nb = lambda n: n + 1\ndef f(n): return a(b(n))"),
        ("a, b = plus, times\ndef f(n): return a(b(n))", "a, b = times, plus\ndef f(n): return a(b(n))"),
        ("T = {'a': make(1), 'b': make(2)}\ndef f(n): return T['a'](T['b'](n))",
         "T = {'a': make(2), 'b': make(1)}\ndef f(n): return T['a'](T['b'](n))"),
        ("def f(n, a=make(1), b=make(2)): return a(b(n))", "def f(n, a=make(2), b=make(1)): return a(b(n))"),
        ("class A:\n a, b = make(1), make(2)\ndef f(n): return A.a(A.b(n))",
         "class A:\n a, b = make(2), make(1)\ndef f(n): return A.a(A.b(n))"),
        ("class A:\n def r(self, n, k): return n * k\n a, b = map(functools.partialmethod, (r, r), (3, 5))\n"
         "def f(n): return A().a(1) - n * A().b(1)",
         "class A:\n def r(self, n, k): return n * k\n a, b = map(functools.partialmethod, (r, r), (5, 3))\n"
         "def f(n): return A().a(1) - n * A().b(1)"),
        ("class A:\n def r(self, n): return n * 3\n def q(self, n): return n + 2\n a, b = r, q\n"
         "def f(n): return A().a(A().b(n))",
         "class A:\n def r(self, n): return n * 3\n def q(self, n): return n + 2\n a, b = q, r\n"
         "def f(n): return A().a(A().b(n))"),
        ("class A:\n a, b = property(make(1)), property(make(2))\n def __mul__(self, k): return k\n"
         "def f(n): return A().a * 3 + A().b",
         "class A:\n a, b = property(make(2)), property(make(1))\n def __mul__(self, k): return k\n"
         "def f(n): return A().a * 3 + A().b"),
        ("a = functools.partial(apply, plus)\ndef f(n): return a(n) + times(n)",
         "a = functools.partial(apply, times)\ndef f(n): return a(n) + times(plus(n))"),
        ("a, b = map(functools.partial, (plus, times))\ndef f(n): return a(b(n))",
         "a, b = map(functools.partial, (times, plus))\ndef f(n): return a(b(n))"),
        ("g = operator.itemgetter(0)\ndef f(n): return g((n, n + 1))",
         "g = operator.itemgetter(1)\ndef f(n): return g((n, n + 1))"),
    ],
)  # fmt: skip
def test_what_is_called_alike_is_told_apart(folder: Path, text: str, edited: str) -> None:
    (folder / PACKAGE).mkdir()
    (folder / PACKAGE / "__init__.py").touch()
    found = []
    for each in (text, "# moved\n" + text, edited):
        (folder / PACKAGE / "m.py").write_text(MAKE + each)
        forget()
        module = importlib.import_module(f"{PACKAGE}.m")
        found.append((Functions().describe(module.f).digest, module.f(N)))
    assert found[0] == found[1]
    assert found[2][1] != found[0][1]
    assert found[2][0] != found[0][0]


def test_a_function_that_carries_itself_is_known_again(folder: Path) -> None:
    (folder / PACKAGE).mkdir()
    (folder / PACKAGE / "__init__.py").touch()
    text = (
        "def make(k):\n    def down(n):\n        return k if n < 1 else down(n - 1)\n    return down\n"
        "inner = make({})\ndef f(n): return inner(n)"
    )
    found = []
    for k in (1, 1, 2):
        (folder / PACKAGE / "m.py").write_text(text.format(k))
        forget()
        found.append(Functions().describe(importlib.import_module(f"{PACKAGE}.m").f).digest)
    assert found[0] == found[1] != found[2]


SCRIPT = f"""
import importlib, json, sys
from omniq_executor import PersistentExecutor

if __name__ == "__main__":
    names = json.loads(sys.argv[1])
    functions = [getattr(importlib.import_module(f"{PACKAGE}.{{module}}"), name) for module, name in names]
    with PersistentExecutor(2, resume="always", store=sys.argv[2]) as executor:
        futures = [executor.submit(function, n) for function in functions for n in range(2)]
        results = [future.result() for future in futures]
        ids = [future.task_id for future in futures]
    print(json.dumps([results, ids]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40 if IS_PROOF else 1))
def test_runs_on_one_store_give_what_runs_from_scratch_give(tmp_path: Path, seed: int) -> None:
    import json

    chance = random.Random(1000 + seed)
    project = Project(chance)
    (tmp_path / "script.py").write_text(SCRIPT)
    names = json.dumps([(f"m{each.module}", each.name) for each in project.elements if each.kind in FUNCTIONS])
    root = str(Path(omniq_executor.__file__).parents[1])

    def run(store: str) -> tuple[list[int], list[str]]:
        done = subprocess.run(
            [sys.executable, "script.py", names, store], cwd=tmp_path, capture_output=True, text=True, timeout=100,
            env={**os.environ, "PYTHONPATH": root, "PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        results, ids = json.loads(done.stdout)
        return results, ids

    project.write(tmp_path)
    first, ids = run("kept.db")
    for n in range(4):
        if n % 2:
            project.edit_meaning()
        else:
            project.edit_looks()
        project.write(tmp_path)
        results, now = run("kept.db")
        assert results == run(f"fresh{n}.db")[0]
        if n % 2 == 0:
            assert (now, results) == (ids, first)
        first, ids = results, now
