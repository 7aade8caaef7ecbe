"""Digests of functions and values: equal in every process for what is equal, different for what is not."""

import cmath
import copyreg
import enum
import functools
import json
import math
import os
import sqlite3
import struct
import subprocess
import sys
import threading
import types
import weakref
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, strategies as st

from omniq_executor.code.digest import Uncanonical, value_digest


def define(source: str, name: str = "f", module: str = "__main__") -> Any:
    """`name` as a script with this source would define it."""
    namespace: dict[str, Any] = {"__name__": module}
    exec(compile(source, "script.py", "exec"), namespace)
    return namespace[name]


def digest_of(source: str, name: str = "f") -> bytes:
    return value_digest(define(source, name))


@pytest.fixture
def import_source(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Stands for an import of a module `mylib` with a given source."""

    def load(source: str) -> types.ModuleType:
        module = types.ModuleType("mylib")
        monkeypatch.setitem(sys.modules, "mylib", module)
        exec(compile(source, "mylib.py", "exec"), module.__dict__)
        return module

    return load


# --- Plain data ------------------------------------------------------------------------------------------------


def canon(value: object) -> object:
    """The same distinctions as the digest should make, in values that Python compares."""
    kind = type(value)
    if isinstance(value, float):
        return kind, struct.pack(">d", value)
    if isinstance(value, dict):
        return kind, frozenset((canon(key), canon(each)) for key, each in value.items())
    if isinstance(value, (set, frozenset)):
        return kind, frozenset(canon(each) for each in value)
    if isinstance(value, (list, tuple)):
        return kind, tuple(canon(each) for each in value)
    return kind, repr(value)


def rebuilt(value: Any) -> Any:
    """An equal value that shares no container with `value`, with its dicts and sets made in another order."""
    if isinstance(value, dict):
        return {rebuilt(key): rebuilt(value[key]) for key in reversed(list(value))}
    if isinstance(value, (list, tuple)):
        return type(value)([rebuilt(each) for each in value])
    if isinstance(value, (set, frozenset)):
        return type(value)([rebuilt(each) for each in sorted(value, key=repr)])
    return value


few = st.sampled_from([None, True, False, 0, 1, -1, 0.0, -0.0, 1.0, "", "a", "1", b"", b"a", b"1", ..., "s1:a", 1j])
hashable = st.recursive(
    few | st.integers() | st.floats() | st.text(max_size=4) | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)
plain = st.recursive(
    few | hashable,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.sets(hashable, max_size=3)
        | st.dictionaries(hashable, inner, max_size=3)
    ),
    max_leaves=8,
)
tiny = st.recursive(few, lambda inner: st.lists(inner, max_size=2) | st.lists(inner, max_size=2).map(tuple))


@given(plain | tiny, plain | tiny)
def test_digests_are_equal_exactly_when_values_and_types_are(one: object, other: object) -> None:
    assert (value_digest(one) == value_digest(other)) == (canon(one) == canon(other))


@given(plain)
def test_order_of_dicts_and_sets_makes_no_difference(value: object) -> None:
    assert value_digest(value) == value_digest(rebuilt(value))


@given(plain)
def test_sharing_makes_no_difference(value: object) -> None:
    shared, apart = [value, (value, [value])], [value, (rebuilt(value), [rebuilt(value)])]
    assert value_digest(shared) == value_digest(apart)
    assert value_digest([shared] * 20) == value_digest([rebuilt(apart) for _ in range(20)])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True),
        (1, 1.0),
        (0.0, -0.0),
        (1j, -1j),
        ("a", b"a"),
        (b"a", bytearray(b"a")),
        ((1,), [1]),
        ({1}, frozenset({1})),
        ({}, set()),
        ([], [[]]),
        (["ab", "c"], ["a", "bc"]),
        ([["a"], "b"], [["a", "b"]]),
        ({"a": "b", "c": "d"}, {"a": "d", "c": "b"}),
        ({"a": {"b": 1}}, {"a": {}, "b": 1}),
        ([1, 1], [1]),
        ([1, 2], [2, 1]),
        ("x", ["x"]),
        (None, "None"),
        (..., None),
        (range(3), range(0, 3, 2)),
        (slice(1, 2), slice(1, 3)),
        (15, "f"),
        (-1, 1),
        (0x11111111, struct.unpack(">d", b"11111111")[0]),
        (PurePosixPath("a"), "a"),
        (PurePosixPath("a"), Path("a")),
        (OrderedDict(a=1, b=2), OrderedDict(b=2, a=1)),
        (OrderedDict(a=1), {"a": 1}),
        (Decimal("1.0"), Decimal("1.00")),
        (ValueError("a"), TypeError("a")),
        (int, float),
        (type(None), None),
        (types.FunctionType, types.GeneratorType),
        (len, abs),
        (math.sqrt, cmath.sqrt),
        (json, os),
        (json, "json"),
        (functools.partial(int, base=3), functools.partial(int, base=4)),
        ("a".upper, "b".upper),
        ("a".upper, "a".lower),
    ],
)
def test_different_values_have_different_digests(one: object, other: object) -> None:
    assert value_digest(one) != value_digest(other)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 100_000])
def test_long_values_count_to_their_last_byte(size: int) -> None:
    variants = [b"x" * size, b"x" * size + b"y", b"x" * size + b"z", "x" * size, ["x"] * size]
    assert len({value_digest(each) for each in variants}) == len(variants)
    assert value_digest(b"x" * size) == value_digest(b"xx" * (size // 2) + b"x" * (size % 2))


def test_numbers_may_have_more_digits_than_python_prints() -> None:
    assert value_digest(10**5000) == value_digest(10**5000) != value_digest(10**5000 + 1)


def test_a_digest_is_sixteen_bytes() -> None:
    assert len(value_digest([1])) == len(value_digest(len)) == 16


def test_text_that_is_not_unicode_has_a_digest() -> None:
    assert value_digest("\ud800") != value_digest("\ud801")


# --- Objects ---------------------------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "r"
    BLUE = "b"


class Right(enum.Flag):
    READ = 1
    WRITE = 2


@dataclass
class Job:
    name: str
    parts: list[Any] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Slotted:
    name: str


class Tags(set[str]):
    pass


class Callback:
    def __init__(self, value: object) -> None:
        self.value = value

    def __call__(self) -> object:
        return self.value

    def run(self) -> object:
        return self.value

    def stop(self) -> object:
        return self.value


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    "make",
    [
        lambda x: Colour.RED if x == "1" else Colour.BLUE,
        lambda x: Right.READ if x == "1" else Right.READ | Right.WRITE,
        lambda x: Job(x, [Job("inner")]),
        lambda x: Job("outer", [Job(x)]),
        lambda x: Slotted(x),
        lambda x: Point(1, x),
        lambda x: Callback(x),
        lambda x: Callback(x).run,
        lambda x: functools.partial(print, x),
        lambda x: functools.partial(print, sep=x),
        lambda x: Tags(["a", x]),
        lambda x: Counter(["a", x]),
        lambda x: deque([x]),
        lambda x: defaultdict(list, a=[x]),
        lambda x: defaultdict(list, {x: [1]}),
        lambda x: datetime(2020, 1, int(x), tzinfo=UTC),
        lambda x: date(2020, 1, int(x)),
        lambda x: timedelta(int(x)),
        lambda x: Decimal(x),
        lambda x: Fraction(int(x), 7),
        lambda x: UUID(int=int(x)),
        lambda x: Path("a") / x,
        lambda x: ValueError(x),
        lambda x: types.SimpleNamespace(x=x),
        lambda x: types.MappingProxyType({"x": x}),
        lambda x: bytearray(x.encode()),
        lambda x: complex(x),
        lambda x: range(int(x)),
        lambda x: slice(int(x)),
        lambda x: lambda: x,
    ],
)
def test_objects_of_equal_state_have_equal_digests(make: Callable[[str], object]) -> None:
    assert value_digest(make("1")) == value_digest(make("1"))
    assert value_digest(make("1")) != value_digest(make("2"))


def test_a_path_counts_as_a_whole_however_it_was_put_together() -> None:
    assert value_digest(Path("a") / "b") == value_digest(Path("a/b"))


def test_insertion_order_of_a_dict_subclass_makes_no_difference() -> None:
    one, other = defaultdict(int, a=1, b=2), defaultdict(int, b=2, a=1)
    assert value_digest(one) == value_digest(other)


def test_a_reducer_in_copyreg_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(copyreg.dispatch_table, Callback, lambda each: (Callback, (str(each.value),)))
    assert value_digest(Callback(1)) == value_digest(Callback("1"))


def test_the_state_counts_of_what_is_pickled_as_a_global() -> None:
    class Unit:
        def __init__(self, size: int) -> None:
            self.size = size

        def __reduce__(self) -> str:
            return "KM"

    assert value_digest(Unit(1000)) == value_digest(Unit(1000)) != value_digest(Unit(1024))


def test_every_part_of_a_reduction_counts() -> None:
    class Reduced:
        def __init__(self, *parts: object) -> None:
            self.parts = parts

        def __reduce__(self) -> Any:
            return self.parts

    whole = (list, (1,), "state", [2], [(3, 4)], print)
    changes = [set, (2,), "other", [3], [(3, 5)], len]
    variants = [
        whole,
        *[(*whole[:n], change, *whole[n + 1 :]) for n, change in enumerate(changes)],
        whole[:2],
        whole[:3],
    ]
    assert len({value_digest(Reduced(*each)) for each in variants}) == len(variants)


def test_a_set_that_reduces_itself_keeps_its_own_order() -> None:
    class Ordered(set):  # type: ignore[type-arg]
        def __init__(self, items: list[str]) -> None:
            super().__init__(items)
            self.items = items

        def __reduce__(self) -> Any:
            return type(self), (self.items,)

    assert value_digest(Ordered(["a", "b"])) != value_digest(Ordered(["b", "a"]))


def test_arrays_count_by_dtype_shape_and_content() -> None:
    np = pytest.importorskip("numpy")
    variants = [np.zeros(4), np.zeros((2, 2)), np.zeros(4, "f4"), np.ones(4), np.float64(0), np.add, np.mean]
    assert len({value_digest(each) for each in variants}) == len(variants)
    assert value_digest(np.arange(8)[::2]) == value_digest(np.array([0, 2, 4, 6]))


# --- No stable form --------------------------------------------------------------------------------------------


def test_data_that_contains_itself_is_refused() -> None:
    ring: list[object] = [1]
    ring.append({"again": ring})
    job = Job("job")
    job.parts.append(job)
    for value in (ring, job):
        with pytest.raises(Uncanonical):
            value_digest(value)


def test_deep_nesting_is_refused_and_moderate_nesting_is_not() -> None:
    value: Any = []
    for _ in range(100):
        value = Job("nested", [value]) if len(value) == 7 else [value]
    value_digest(value)
    for _ in range(100_000):
        value = [value]
    with pytest.raises(Uncanonical):
        value_digest(value)


@pytest.mark.parametrize(
    "wrap", [lambda v: [v], lambda v: {"k": v}, lambda v: (v,), Callback, lambda v: Callback(v).run]
)
def test_the_depth_allowed_fits_in_the_recursion_limit(wrap: Callable[[object], object]) -> None:
    value: object = None
    for _ in range(1000):
        value = wrap(value)
    with pytest.raises(Uncanonical, match="levels"):
        value_digest(value)


def test_a_stack_that_is_nearly_used_up_is_refused_as_well() -> None:
    def descend() -> None:
        try:
            descend()
        except RecursionError:
            value_digest([[[[[[]]]]]])

    with pytest.raises(Uncanonical) as caught:
        descend()
    assert isinstance(caught.value.__cause__, RecursionError)


def test_shared_parts_are_looked_at_once() -> None:
    value: object = "x" * 1000
    for _ in range(100):
        value = [value, value]
    assert len(value_digest(value)) == 16


def test_what_only_a_process_has_is_known_by_its_type() -> None:
    """Or no function would be known again that uses a lock of its script, and an edit of it would not be seen."""
    kinds: list[Any] = [threading.Lock(), threading.Event(), weakref.WeakKeyDictionary(), sqlite3.connect(":memory:")]
    digests = {value_digest([value]) for value in kinds}
    assert len(digests) == 4
    assert value_digest([threading.Lock()]) in digests
    kinds[-1].close()


def test_what_cannot_be_reduced_is_refused_with_its_cause() -> None:
    unreducible: list[object] = [(each for each in "ab"), {"a": 1}.keys()]
    for value in unreducible:
        with pytest.raises(Uncanonical) as caught:
            value_digest([value])
        assert isinstance(caught.value.__cause__, TypeError)


@pytest.mark.parametrize("method", ["__reduce__", "__reduce_ex__", "__getstate__"])
def test_an_error_in_the_code_of_a_class_is_the_cause(method: str) -> None:
    class Odd:
        def fail(self, *args: object) -> Any:
            raise ZeroDivisionError

    setattr(Odd, method, Odd.fail)
    with pytest.raises(Uncanonical) as caught:
        value_digest(Odd())
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_reduction_of_the_wrong_shape_is_refused() -> None:
    class Odd:
        def __reduce__(self) -> Any:
            return 42

    with pytest.raises(Uncanonical):
        value_digest(Odd())


def test_ctrl_c_during_a_reduction_is_not_swallowed() -> None:
    class Slow:
        def __reduce__(self) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        value_digest(Slow())


def test_an_object_that_makes_functions_whenever_it_is_reduced_is_refused() -> None:
    class Endless:
        def __getstate__(self) -> object:
            return {"again": lambda: self}

    class Twice:
        def __getstate__(self) -> object:
            return [lambda: 1, lambda: 2]

    for value in (Endless(), Twice()):
        with pytest.raises(Uncanonical, match="functions"):
            value_digest(value)


# --- Functions -------------------------------------------------------------------------------------------------

BASE = """
LIMIT = 3
def helper(x):
    return x + LIMIT
def f(x, y=1, *, z=2):
    return helper(x) + y + z
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("+ y + z", "+ y - z"),  # the body
        ("+ y + z", "+ y + z + 0"),  # a constant
        ("y=1", "y=2"),
        ("y=1", "y=True"),
        ("z=2", "z=3"),
        ("*, z", "z"),
        ("y=1, *", "y=1, /, *"),
        ("def f", "async def f"),
        ("helper(x) +", "help(x) +"),
        ("x + LIMIT", "x - LIMIT"),  # the body of a global it calls
        ("LIMIT = 3", "LIMIT = 4"),  # a global of that
        ("LIMIT = 3", "LIMIT = 3.0"),
    ],
)
def test_a_change_that_can_matter_changes_the_digest(old: str, new: str) -> None:
    assert old in BASE
    assert digest_of(BASE) != digest_of(BASE.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("def f", "# why\n\n\ndef f"),
        ("    return helper(x)", "    # why\n\n    return helper(x)"),
        ("    return helper(x)", "    '''What it does.'''\n    return helper(x)"),
        ("x, y=1", "x: int, y: int = 1"),
        ("LIMIT = 3", "OTHER = 5\nLIMIT = 3"),
        ("def helper", "def unused(): pass\ndef helper"),
        ("x + LIMIT", "(x +\n  LIMIT)"),
    ],
)
def test_a_change_that_cannot_matter_does_not(old: str, new: str) -> None:
    assert old in BASE
    assert digest_of(BASE) == digest_of(BASE.replace(old, new))


def test_a_class_within_a_function_may_move_and_may_not_change() -> None:
    source = """def f():
    class C:
        'doc'
        size = 3
        def m(self): self.b = self.a = 1
    return C
"""
    assert digest_of(source) == digest_of("\n" * 300 + source)
    assert digest_of(source) == digest_of("\n" + source)  # the class is in line 3 then, and `size` is 3, too
    assert digest_of(source) == digest_of(source.replace("'doc'", "'other'"))
    assert digest_of(source) != digest_of(source.replace("size = 3", "size = 4"))
    assert digest_of("\n" + source) != digest_of("\n\n" + source.replace("size = 3", "size = 4"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("def f(x): return -x", "def f(x): return ~x"),
        ("def f(x): return x.a", "def f(x): return x.b"),
        ("def f(x): return x", "def f(y): return y"),
        ("def f(*x): return x", "def f(**x): return x"),
        ("def f(x, /): return x", "def f(x): return x"),
        ("def f(*, x): return 1", "def f():\n    return 1\n    x = 2"),
        ("def f(): return 1", "def f(): yield 1"),
        ("a = 1\ndef f(): return a, b", "b = 1\ndef f(): return a, b"),
        ("def f(): return 1", "def g(): return 1\nf = g"),
        ("class f: pass", "class g: pass\nf = g"),
        ("class f: pass", "class g:\n    class f: pass\nf = g.f"),
        ("class M(type): pass\nclass f: pass", "class M(type): pass\nclass f(metaclass=M): pass"),
        (
            "def f():\n    try:\n        a()\n        b()\n    except OSError:\n        c()",
            "def f():\n    try:\n        a()\n    except OSError:\n        c()\n    else:\n        b()",
        ),
    ],
)
def test_functions_and_classes_that_differ_in_one_thing_differ(one: str, other: str) -> None:
    assert digest_of(one) != digest_of(other)


def test_equal_functions_of_two_modules_differ() -> None:
    source = "def f(): return 1"
    assert value_digest(define(source)) != value_digest(define(source, module="other"))
    assert value_digest(define(source)) == value_digest(define(source, module="__mp_main__"))  # the same script


@pytest.mark.parametrize(("one", "other"), [("{1, 2}", "{1, 3}"), ("{1, 2}", "(1, 2)"), ("{0.0, 2}", "{-0.0, 2}")])
def test_constant_sets_count_by_content(one: str, other: str) -> None:
    assert digest_of(f"def f(x): return x in {one}") != digest_of(f"def f(x): return x in {other}")


def test_nested_functions_count() -> None:
    source = "def f():\n    def g():\n        return lambda: {}\n    return g\n"
    assert digest_of(source.format(1)) == digest_of(source.format(1))
    assert digest_of(source.format(1)) != digest_of(source.format(2))
    source = "LIMIT = {}\ndef f():\n    def g():\n        return lambda: LIMIT\n    return g\n"
    assert digest_of(source.format(1)) != digest_of(source.format(2))


def test_globals_read_in_the_body_of_a_nested_class_count() -> None:
    source = "LIMIT = {}\ndef f():\n    class C:\n        limit = LIMIT\n    return C\n"
    assert digest_of(source.format(1)) != digest_of(source.format(2))


def test_constants_beyond_the_first_256_count() -> None:
    source = "def f(): return [{}]"
    numbers = [f"g({each}.5)" for each in range(400)]
    changed = [*numbers[:-1], "g(0.25)"]
    assert digest_of(source.format(",".join(numbers))) != digest_of(source.format(",".join(changed)))


def test_closed_over_values_count() -> None:
    def make(value: object) -> Callable[[], object]:
        return lambda: value

    assert value_digest(make(1)) == value_digest(make(1))
    assert value_digest(make(1)) != value_digest(make(True))
    assert value_digest(make(make(1))) != value_digest(make(make(2)))


def test_a_variable_not_bound_yet_is_not_one_that_is_none() -> None:
    source = "def make(bind):\n    def g(): return value\n    if bind: value = None\n    return g\n"
    make = define(source, "make")
    assert value_digest(make(bind=False)) == value_digest(make(bind=False))
    assert value_digest(make(bind=False)) != value_digest(make(bind=True))


def test_how_functions_are_put_together_counts_to_any_depth() -> None:
    def add(n: int) -> Callable[[int], int]:
        return lambda x: x + n

    def then(first: Callable[[int], int], second: Callable[[int], int]) -> Callable[[int], int]:
        return lambda x: second(first(x))

    one, two, three = add(1), add(2), add(3)
    chain, chains = one, []
    for _ in range(8):
        chain = then(chain, chain)
        chains.append(chain)
    variants = [
        then(one, two),
        then(two, one),
        then(one, one),
        then(then(one, two), three),
        then(one, then(two, three)),
        then(then(one, two), then(one, two)),
        then(then(one, two), then(two, one)),
        *chains[1:],
    ]
    assert len({value_digest(each) for each in variants}) == len(variants)
    assert value_digest([add(1), then(add(1), add(1))]) == value_digest([one, then(one, one)])
    assert value_digest(["x"] * 300 + [one, two]) != value_digest(["x"] * 300 + [two, one])


def test_an_attribute_named_like_a_global_does_not_count() -> None:
    source = "result = {}\ndef f(future): return future.result\n"
    assert digest_of(source.format(1)) == digest_of(source.format(2))


def test_a_global_that_is_not_there_yet_is_no_error() -> None:
    assert digest_of("def f(): return later") != digest_of("later = 1\ndef f(): return later")


def test_imported_things_count_by_name() -> None:
    source = "import {0} as mod\nfrom {0} import {1} as name\ndef f(): return mod, name\n"
    variants = [("json", "loads"), ("json", "dumps"), ("pickle", "loads"), ("json", "JSONDecoder"), ("math", "sqrt")]
    assert len({digest_of(source.format(*each)) for each in variants}) == len(variants)
    source = "from {} import join\ndef f(): return join"
    assert digest_of(source.format("posixpath")) != digest_of(source.format("ntpath"))


def test_a_function_that_calls_itself_has_a_digest() -> None:
    source = "def f(n): return f(n - {})"
    assert digest_of(source.format(1)) == digest_of(source.format(1))
    assert digest_of(source.format(1)) != digest_of(source.format(2))

    def make(step: int) -> Callable[[int], object]:
        def recursive(n: int) -> object:
            return recursive(n - step)

        return recursive

    assert value_digest(make(1)) == value_digest(make(1))
    assert value_digest(make(1)) != value_digest(make(2))


def test_functions_that_call_each_other_have_digests() -> None:
    source = "def even(n): return n == 0 or odd(n - 1)\ndef odd(n): return n != 0 and even(n - {})\n"
    assert digest_of(source.format(1), "even") == digest_of(source.format(1), "even")
    assert digest_of(source.format(1), "even") != digest_of(source.format(1), "odd")
    assert digest_of(source.format(1), "even") != digest_of(source.format(2), "even")


def test_many_functions_that_all_call_each_other_take_no_time() -> None:
    names = [f"f{each}" for each in range(40)]
    source = "".join(f"def {name}(): return {{{', '.join(names)}}}\n" for name in names)
    assert digest_of(source, "f0") == digest_of(source, "f0")
    assert digest_of(source, "f0") != digest_of(source.replace("def f39(): return", "def f39(): yield"), "f0")


def test_length_of_a_ring_of_equal_functions_makes_no_difference_and_a_different_one_in_it_does() -> None:
    def make(n: int) -> Any:
        after: object = None

        def g() -> object:
            return n, after

        def link(f: object) -> None:
            nonlocal after
            after = f

        return g, link

    def ring(*numbers: int) -> Any:
        links = [make(each) for each in numbers]
        for (_, link), (after, _) in zip(links, links[1:] + links[:1], strict=True):
            link(after)
        return links[0][0]

    assert value_digest(ring(1)) == value_digest(ring(1, 1, 1))
    assert value_digest(ring(1, 2)) == value_digest(ring(1, 2, 1, 2))
    variants = [ring(1), ring(2), ring(1, 2), ring(2, 1), ring(1, 1, 2), ring(1, 2, 1), ring(1, 1, 1, 2)]
    assert len({value_digest(each) for each in variants}) == len(variants)


def test_functions_in_sets_and_dicts_count_in_any_order() -> None:
    source = "def a(): return 1\ndef b(): return 2\nTABLE = {}\ndef f(x): return TABLE[x]()\n"
    assert digest_of(source.format("{'a': a, 'b': b}")) == digest_of(source.format("{'b': b, 'a': a}"))
    assert digest_of(source.format("{'a': a, 'b': b}")) != digest_of(source.format("{'a': b, 'b': a}"))
    assert digest_of(source.format("{a, b}")) == digest_of(source.format("{b, a}"))


def test_a_digest_stays_the_same_while_the_function_is_used() -> None:
    f = define(BASE)
    before = value_digest(f)
    for each in range(2000):
        f(each)
    assert value_digest(f) == before


def test_an_importable_function_counts_by_its_own_code_alone(import_source: Callable[[str], Any]) -> None:
    before = value_digest(import_source(BASE).f)
    assert before == value_digest(import_source(BASE.replace("LIMIT = 3", "LIMIT = 4")).f)
    assert before != value_digest(import_source(BASE.replace("y=1", "y=2")).f)
    assert before != digest_of(BASE)


def test_a_decorated_importable_function_counts_like_one_that_is_not(import_source: Callable[[str], Any]) -> None:
    source = """
import functools, threading
lock = threading.Lock()  # which has no digest
def traced(fn):
    @functools.wraps(fn)
    def wrapper(*args):
        with lock:
            return fn(*args)
    return wrapper
@traced
def f():
    return lock, 1
"""
    before = value_digest(import_source(source).f)
    assert before == value_digest(import_source(source).f)
    assert before != value_digest(import_source(source.replace("lock, 1", "lock, 2")).f)


def test_a_lambda_of_an_importable_module_takes_its_globals_along(import_source: Callable[[str], Any]) -> None:
    source = "LIMIT = {}\nf = lambda: LIMIT"
    assert value_digest(import_source(source.format(1)).f) != value_digest(import_source(source.format(2)).f)


def test_an_importable_function_among_the_globals_counts_by_name(import_source: Callable[[str], Any]) -> None:
    user = "from mylib import f as g\ndef f(): return g()"
    import_source("def f(): return 1")
    before = digest_of(user)
    import_source("def f(): return 2")
    assert digest_of(user) == before


def test_a_cached_function_counts_by_what_it_wraps() -> None:
    source = "import functools\n@functools.lru_cache\ndef f(): return {}"
    assert digest_of(source.format(1)) == digest_of(source.format(1))
    assert digest_of(source.format(1)) != digest_of(source.format(2))


def test_a_bound_method_counts_by_function_and_object() -> None:
    assert value_digest(Callback(1).run) == value_digest(Callback(1).run)
    variants: list[Any] = [Callback(1).run, Callback(1).stop, Callback(2).run, Callback(1), Callback.run, Callback]
    assert len({value_digest(each) for each in variants}) == len(variants)


CLASS = """
import dataclasses, functools
class Base:
    def greet(self): return 'hello'
@dataclasses.dataclass
class C(Base):
    size: int = 3
    tags: list = dataclasses.field(default_factory=list, metadata={'a': 1})
    kinds = {'a', 'b'}
    def run(self): return super().greet(), C(1)
    @property
    def double(self): return self.size * 2
    @functools.cached_property
    def triple(self): return self.size * 3
    @staticmethod
    def still(): return 4
    @classmethod
    def make(cls): return cls(5)
def f(): return C
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("'hello'", "'bye'"),
        ("size: int = 3", "size: int = 4"),
        ("{'a', 'b'}", "{'a', 'c'}"),
        ("C(1)", "C(2)"),
        ("size * 2", "size * 9"),
        ("size * 3", "size * 9"),
        ("return 4", "return 9"),
        ("cls(5)", "cls(9)"),
        ("C(Base)", "C"),
        ("@staticmethod", "@classmethod"),
    ],
)
def test_a_class_of_the_script_counts_by_its_definition(old: str, new: str) -> None:
    assert old in CLASS
    for source in (CLASS, CLASS + "f = C\n", CLASS + "c = C(1)\nf = c.run\n"):
        assert digest_of(source) == digest_of(source) == digest_of("\n\n" + source)
        assert digest_of(source) != digest_of(source.replace(old, new))


def test_use_of_a_class_does_not_change_its_digest() -> None:
    flags = define("import enum\nclass f(enum.Flag):\n    A = 1\n    B = 2\n    C = 4\n")
    cls = define(CLASS, "C")
    before = value_digest([cls, flags])
    assert cls(1).triple == 3
    cls(1).__reduce_ex__(4)  # leaves __slotnames__ in the class
    assert cls.__annotations__ is not flags.__annotations__
    assert (flags.A | flags.B).value == 3
    assert value_digest([cls, flags]) == before


# --- Other processes -------------------------------------------------------------------------------------------

SCRIPT = """
import abc, collections, dataclasses, decimal, enum, json, pathlib, typing
from omniq_executor.code.digest import value_digest

NAMES = {"red", "green", "blue", "yellow"}

def helper(word):
    return word in {"one", "two", "three", "four"} and word not in NAMES

def work(word):
    class Inner:
        def fill(self):
            self.one = self.two = self.three = self.four = word
    return helper(word) or work(Inner)

class Colour(enum.Enum):
    RED = "r"
    BLUE = "b"

class Right(enum.Flag):
    READ = 1
    WRITE = 2

@dataclasses.dataclass
class Job:
    name: str
    tags: set = dataclasses.field(default_factory=set)
    def run(self):
        self.one = self.two = self.three = work(self.name)

class Pair(typing.NamedTuple):
    left: int
    right: frozenset = frozenset({"x", "y", "z"})

class Tags(set):
    pass

class Shape(abc.ABC):
    @abc.abstractmethod
    def area(self): ...
    @abc.abstractmethod
    def edge(self): ...

digests = {
    "set": value_digest(NAMES),
    "nested sets": value_digest([{frozenset({a, b}) for a in NAMES for b in NAMES}]),
    "set subclass": value_digest(Tags(NAMES)),
    "dict from a set": value_digest(dict.fromkeys(NAMES)),
    "counter from a set": value_digest(collections.Counter(NAMES)),
    "set of functions": value_digest({helper, work, len}),
    "frozenset constant": value_digest(lambda x: x in {"a", "b", "c", "d"}),
    "function with helper": value_digest(work),
    "dataclass": value_digest(Job("a", {"x", "y", "z"})),
    "method": value_digest(Job("a").run),
    "class": value_digest(Job),
    "abstract class": value_digest(Shape),
    "namedtuple": value_digest(Pair(1)),
    "enum": value_digest([Colour.RED, Right.READ | Right.WRITE]),
    "objects": value_digest([decimal.Decimal("1.5"), pathlib.Path("a"), ValueError("x"), object()]),
    "imported": value_digest(json.dumps),
    "builtin": value_digest(print),
}
print(json.dumps({key: digest.hex() for key, digest in digests.items()}))
"""


def run_script(path: Path, source: str, seed: int) -> dict[str, str]:
    path.write_text(source)
    environment = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, path], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    digests: dict[str, str] = json.loads(run.stdout)
    return digests


def test_processes_with_different_hash_seeds_agree(tmp_path: Path) -> None:
    first, *others = (run_script(tmp_path / "script.py", "# moved\n" * seed + SCRIPT, seed) for seed in range(3))
    assert others == [first, first]
    assert len(set(first.values())) == len(first)


def test_a_changed_helper_in_the_script_changes_what_uses_it_and_nothing_else(tmp_path: Path) -> None:
    before = run_script(tmp_path / "script.py", SCRIPT, 0)
    after = run_script(tmp_path / "script.py", SCRIPT.replace('"four"}', '"five"}'), 0)
    users = {"set of functions", "function with helper", "dataclass", "method", "class"}
    assert {key for key in before if before[key] != after[key]} == users
