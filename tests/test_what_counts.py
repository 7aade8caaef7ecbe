"""What is part of a function though no plain name in its code leads there: an edit of it is another function."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from omniq_executor.model.functions import Functions

CASES = {
    "a method of a metaclass": """
        class M(type):
            def meth(cls): return 1
        class A(metaclass=M): pass
        def f(x): return A.meth()""",
    "a name of a class that begins with underscores": """
        class A:
            __tablename__ = 1
        def f(x): return A.__tablename__""",
    "an attribute of a helper": """
        def g(x): return g.limit
        g.limit = 1
        def f(x): return g(x)""",
    "an attribute of the function": """
        def f(x): return f.limit
        f.limit = 1""",
    "what an object of a library decorates": """
        import argparse
        def g(x): return 1
        held = argparse.Namespace()
        held.pyfunc = g
        def f(x): return held.pyfunc(x)""",
    "an object of a class of one's own in one of a library": """
        import argparse
        class P:
            def go(self): return 1
        held = argparse.Namespace(p=P())
        def f(x): return held.p.go()""",
    "data in an object of the standard library": """
        import argparse
        held = argparse.Namespace(a=1)
        def f(x): return held.a""",
    "a literal type": """
        from typing import Literal
        held = Literal["a", 1]
        def f(x): return held""",
    "a name that a module makes when it is asked for": """
        import sys
        me = sys.modules[__name__]
        def __getattr__(name): return 1
        def f(x): return me.lazy""",
    "the order of the bases of a class": """
        class A:
            def m(self): return 0
        class B:
            def m(self): return 5
        def f(x): return C().m()
        class C(*((A, B) if 1 == 1 else (B, A))): pass""",
    "which base a class of a library is to one's own": """
        import collections
        def f(x): return C([(0, 0)])
        class C(dict if 1 == 1 else collections.OrderedDict): pass""",
    "what a function is to its class": """
        def f(x): return A.m
        class A:
            def m(self=0): return 0
            m = (property if 1 == 1 else staticmethod)(m)""",
    "what a field of a dataclass says of itself": """
        import dataclasses
        def f(x): return dataclasses.fields(A)
        @dataclasses.dataclass
        class A:
            n: int = dataclasses.field(metadata={"unit": 1})""",
    "a format of packed bytes": """
        import struct
        held = struct.Struct("<1h")
        def f(x): return held.unpack(x)""",
    "what a decorator hides that does not say so": """
        def hide(g):
            def h(x): return g(x)
            return h
        @hide
        def f(x): return 1""",
    "a function of no module": """
        made = {}
        exec("def g(x): return 1", made)
        g = made["g"]
        def f(x): return g(x)""",
    "a distribution": """
        import statistics
        held = statistics.NormalDist(0, 1)
        def f(x): return held.mean""",
    "a function of a module that data holds": """
        import sys
        held = {"a": sys.modules[__name__]}
        def g(x): return 1
        def f(x): return held["a"].g(x)""",
}


@pytest.fixture
def digest_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Says what identifies the function f of a module with a text."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def digest(text: str) -> bytes:
        lines = [line[8:] for line in text.strip("\n").splitlines()]
        (tmp_path / "counted.py").write_text("\n".join(lines) + "\n")
        sys.modules.pop("counted", None)
        importlib.invalidate_caches()
        return Functions().describe(importlib.import_module("counted").f).digest

    yield digest
    sys.modules.pop("counted", None)


@pytest.mark.parametrize("what", CASES)
def test_an_edit_is_seen_and_a_comment_is_none(digest_of: Any, what: str) -> None:
    text = CASES[what]
    first, head, tail = digest_of(text), *text.rsplit("1", 1)
    assert digest_of(f"{head}2{tail}") != first
    assert digest_of("\n        # a comment\n" + text.lstrip("\n")) == first


def test_functions_by_value_that_differ_in_an_attribute_are_two() -> None:
    def made(limit: int) -> Any:
        def g() -> int:
            return 1

        g.limit = limit  # type: ignore[attr-defined]
        return g

    functions = Functions()
    assert functions.describe(made(1)).digest == functions.describe(made(1)).digest
    assert functions.describe(made(1)).digest != functions.describe(made(2)).digest


def test_a_constant_that_is_patched_as_its_file_says_is_another_one_and_a_counter_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """IPython's autoreload puts constants into a module as it is."""
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "patched_module.py"
    path.write_text("LIMIT = 1\nCOUNT = 0\nclass Kind:\n    size = 1\ndef f(x): return LIMIT + Kind.size + COUNT\n")
    module: Any = importlib.import_module("patched_module")
    functions = Functions()
    seen = [functions.describe(module.f).digest]
    module.COUNT = 5000  # by the program
    assert functions.describe(module.f).digest == seen[0]
    path.write_text("LIMIT = 1\nCOUNT = 0\nclass Kind:\n    size = 1\ndef f(x): return 0\n")  # edited, and not loaded
    module.COUNT = 6000
    assert functions.describe(module.f).digest == seen[0]
    module.COUNT = 0
    for limit, size in ((7000, 1), (7000, 8000)):
        path.write_text(f"LIMIT = {limit}\nCOUNT = 0\nclass Kind:\n    size = {size}\ndef f(x): return 0\n")
        module.LIMIT, module.Kind.size = limit, size
        seen.append(functions.describe(module.f).digest)
    assert len({*seen}) == 3
    del sys.modules["patched_module"]
