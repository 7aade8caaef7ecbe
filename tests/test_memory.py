"""A function is written once, until something changes that it reads: then it is never missed."""

import os
import random
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from omniq_executor import InputFile
from omniq_executor.code import memory, namespaces, spaces
from omniq_executor.model import codec
from omniq_executor.model.functions import Functions

SCRIPT = """
import array, collections, dataclasses, enum, functools, math, types

NUMBER, TEXT, NOBODYS = 1, "a", 0
PAIR, ITEMS, TABLE, SEEN = (1, [2]), [1, [2]], {"a": 1, "f": len}, {1}
SHARED, ARRAY, SPACE = ITEMS[1], array.array("i", [1]), types.SimpleNamespace(n=1)

class Base:
    size = 1

class Other:
    size = 2

class Kind(Base):
    limit, inner = 2, [3]
    def method(self): return self.limit + NUMBER
    @classmethod
    def of_class(cls): return cls.inner, TEXT
    @staticmethod
    def of_none(): return 1
    @property
    def asked(self): return self.inner
    @functools.cached_property
    def kept(self): return 1

class Colour(enum.Enum):
    RED = [1]

@dataclasses.dataclass
class Row:
    n: int = 1
    items: list = dataclasses.field(default_factory=list)

OBJECT, ROWS = Kind(), [Row(), {"row": Row(2)}]
OBJECT.more = [5]

def helper(n=1, box=[1], *, step=2, more=[2]): return n + step + NUMBER, box, more
helper.note = [1]

def decorate(function):
    @functools.wraps(function)
    def wrapper(): return function()
    return wrapper

@decorate
def decorated(): return TEXT

@functools.lru_cache(maxsize=None)
def cached(n): return n + 1

def make():
    cell, box = 1, [1]
    def deep(): return cell, box
    def inner(): return deep(), helper()
    def put(value):
        nonlocal cell
        cell = value
    return inner, put, box

CLOSURE, PUT, BOX = make()
PART = functools.partial(helper, 3)
LAMBDA = (lambda by: lambda: by)([1])
METHOD = OBJECT.method

def attempt(part):
    try: return part()
    except (AttributeError, TypeError) as error: return type(error).__name__

def f():
    parts = [
        lambda: [NUMBER, TEXT, PAIR, ITEMS, SHARED is ITEMS[1], TABLE["a"]], lambda: TABLE["f"]([1]),
        lambda: [sorted(SEEN), list(ARRAY), vars(SPACE)], lambda: [Kind.limit, Kind.inner, Kind.size],
        lambda: Kind.of_class(), lambda: Kind.of_none(), lambda: OBJECT.method(), lambda: OBJECT.more,
        lambda: OBJECT.asked, lambda: OBJECT.kept, lambda: Colour.RED.value, lambda: ROWS, lambda: helper(),
        lambda: helper.note, lambda: decorated(), lambda: cached.__wrapped__(1), lambda: CLOSURE(), lambda: PART(),
        lambda: LAMBDA(), lambda: METHOD(), lambda: math.pi, lambda: late() if "late" in globals() else 0,
    ]
    return repr([attempt(part) for part in parts])
"""

CHANGES = """
NUMBER += 1
NUMBER = float(NUMBER)
NUMBER = NUMBER != 0
TEXT += "b"
NOBODYS += 1
PAIR[1].append(3)
PAIR = (1, [*PAIR[1]])
ITEMS.append(4)
ITEMS[0] = True
ITEMS[1] = [*ITEMS[1]]
SHARED.append(1)
SHARED = [*ITEMS[1]]
SHARED = ITEMS[1]
TABLE["a"] = [TABLE["a"]]
TABLE["f"] = lambda items: items
TABLE["f"] = helper
SEEN.add(len(SEEN) + 1)
ARRAY.append(1)
SPACE.n += 1
Base.size += 1
Kind.__bases__ = (Other,)
Kind.__bases__ = (Base,)
Kind.limit += 1
Kind.inner.append(3)
Kind.inner = [*Kind.inner, 4]
Kind.method = lambda self: 7
Kind.method.__defaults__ = (1,)
Kind.of_none = staticmethod(lambda: NUMBER)
Kind.of_class.__func__.__code__ = (lambda cls: 5).__code__
OBJECT.more.append(1)
OBJECT.extra = {"a": [OBJECT.more]}
OBJECT.__class__ = Base if False else Kind
Colour.RED.value.append(2)
ROWS.append(Row(len(ROWS)))
ROWS[1]["row"].items.append(1)
Row.__repr__ = lambda self: f"<{self.n}>"
helper.__defaults__ = (2, [1])
helper.__defaults__[1].append(1)
helper.__kwdefaults__["step"] += 1
helper.__kwdefaults__["more"].append(1)
helper.__code__ = (lambda n=1, box=[1], *, step=2, more=[2]: (step, n)).__code__
helper.note.append(1)
helper.note = [*helper.note]
def helper(n=1, box=[1], *, step=2, more=[2]): return step
helper.note = []
decorated.__wrapped__.__code__ = (lambda: NUMBER).__code__
cached.__wrapped__.__code__ = (lambda n: n + 2).__code__
PUT(len(BOX))
PUT(BOX)
BOX.append(2)
PART.keywords["step"] = 9
LAMBDA.__closure__[0].cell_contents = (1, 2)
LAMBDA.__closure__[0].cell_contents.append(1)
METHOD = Kind().of_class
math = types.SimpleNamespace(pi=3)
def late(): return NUMBER
late = Kind.of_none
del late
f.__code__ = f.__code__.replace(co_consts=(*f.__code__.co_consts, 1))
""".strip().splitlines()


def _forget() -> None:
    for known in (memory._memories, namespaces._functions, namespaces._namings, namespaces._atoms):
        known.clear()  # type: ignore[attr-defined]


def _answer(pickled: bytes, main: ModuleType) -> Any:
    """What a worker answers that has nothing yet."""
    spaces._spaces.clear()
    spaces.space_of(0).enter()
    try:
        return codec.decode(pickled)()
    finally:
        spaces._here.space = None
        sys.modules["__main__"] = sys.modules["__mp_main__"] = main


@settings(max_examples=300 if os.environ.get("OMNIQ_PROOF") else 50)
@given(st.lists(st.tuples(st.sampled_from(CHANGES), st.integers(0, 3)), min_size=1, max_size=8))
def test_no_change_is_missed(changes: list[tuple[str, int]]) -> None:
    module = ModuleType("__main__")
    before, sys.modules["__main__"] = sys.modules["__main__"], module
    try:
        exec(SCRIPT, module.__dict__)
        functions, function = Functions(), module.f
        for change, submits in changes:
            for _ in range(submits):
                functions.describe(function)
            try:
                exec(change, module.__dict__)
            except (AttributeError, TypeError, NameError):  # it does not apply after another change
                continue
            described = functions.describe(function)
            kept, memory._memories = memory._memories, {}
            _forget()
            assert (change, described.digest) == (change, Functions().describe(function).digest)
            memory._memories = kept
            assert (change, _answer(described.pickle, module)) == (change, function())
    finally:
        sys.modules["__main__"] = before
        spaces._here.space = None
        spaces._spaces.clear()


# What a class is made with: a worker that has the class keeps it.
NOT_TOLD = {"Kind.__bases__ = (Other,)", "Kind.__bases__ = (Base,)", "Colour.RED.value.append(2)"}
DELETIONS = ["del NUMBER", "del ITEMS", "del TABLE", "del helper", "del Kind.limit", "del Kind.method", "del Base.size"]


def _given(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except NameError as error:
        return str(error)


@settings(max_examples=300 if os.environ.get("OMNIQ_PROOF") else 50)
@given(
    st.lists(st.sampled_from([it for it in CHANGES if it not in NOT_TOLD] + DELETIONS), min_size=1, max_size=8),
    st.randoms(use_true_random=False),
)
def test_a_worker_that_lives_on_misses_none_either(changes: list[str], chance: random.Random) -> None:
    module = ModuleType("__main__")
    before, sys.modules["__main__"] = sys.modules["__main__"], module
    versions: list[tuple[str, Any, Any, Any]] = []  # the change, what a worker has of it, and what it gave
    try:
        exec(SCRIPT, module.__dict__)
        functions, function = Functions(), module.f
        for change in changes:
            try:
                exec(change, module.__dict__)
            except (AttributeError, TypeError, NameError, KeyError):  # it does not apply after another change
                continue
            described = functions.describe(function)
            space = spaces.space_of(0)
            space.enter()
            loaded = codec.decode(described.pickle)
            versions.append((change, loaded, space.take_record(), _given(function)))
            for said, older, record, wanted in (versions[-1], chance.choice(versions), versions[-1]):
                space.apply(record)
                assert (change, said, _given(older)) == (change, said, wanted)
            sys.modules["__main__"] = sys.modules["__mp_main__"] = module
    finally:
        sys.modules["__main__"] = before
        spaces._here.space = None
        spaces._spaces.clear()


def test_the_content_of_a_file_that_a_function_carries_is_looked_at_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "__main__", module := ModuleType("__main__"))
    path = tmp_path / "table.csv"
    exec("def read(): return FILE", module.__dict__)
    functions, digests = Functions(), set()
    module.__dict__["FILE"] = InputFile(path)
    for text in ("one", "other"):
        path.write_text(text)
        digests |= {functions.describe(module.read).digest for _ in range(3)}
    assert len(digests) == 2


def test_a_function_is_written_once_while_other_names_of_its_module_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "__main__", module := ModuleType("__main__"))
    exec(SCRIPT, module.__dict__)
    functions, written = Functions(), []
    monkeypatch.setattr(namespaces, "_Dump", lambda *given, kind=namespaces._Dump: written.append(1) or kind(*given))
    for name in ("f", "helper", "decorated", "cached", "CLOSURE", "PART"):
        function = getattr(module, name)
        for number in range(10):
            exec(f"NOBODYS = {number}; _{name}_{number} = ITEMS", module.__dict__)
            functions.describe(function)
        assert (name, len(written) <= 3) == (name, True)
        written.clear()


def test_a_function_that_is_gone_is_forgotten_with_what_it_carries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "__main__", module := ModuleType("__main__"))
    exec("import array\ndef make():\n    box = array.array('i', [1])\n    return lambda: box", module.__dict__)
    function, functions = module.make(), Functions()
    for _ in range(3):
        functions.describe(function)
    box = weakref.ref(function())
    assert memory.recall(function, None) is not None
    del function
    assert box() is None
