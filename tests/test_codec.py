"""What is written as JSON and what as a pickle, and that both come back as they were."""

import collections
import enum
import functools
import json
import math
import operator
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

import omniq_executor
from omniq_executor import SerializationError
from omniq_executor.model.codec import (
    SCALARS,
    decode,
    decode_call,
    encode,
    encode_call,
    encode_json,
    encode_rows,
    join,
    script_class,
    write,
)

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
plain = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=20
)
odd_floats = st.sampled_from([math.nan, math.inf, -math.inf])
odd_text = st.text(st.characters(categories=["Cs"]), min_size=1, max_size=3)
anything = st.recursive(
    scalars | odd_floats | odd_text | st.binary() | st.complex_numbers(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.booleans(), inner, max_size=4)
    ),
    max_leaves=20,
)


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal and of the very same types, all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return a.hex() == b.hex()  # tells -0.0 from 0.0, and NaN equals NaN
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return len(a) == len(b) and all(map(same, a.items(), b.items()))
    if isinstance(a, complex):
        return same(a.real, b.real) and same(a.imag, b.imag)
    return bool(a == b)


# --- Values ---


@given(value=plain)
def test_plain_data_is_json_and_comes_back_exactly(value: Any) -> None:
    text = encode(value)
    assert isinstance(text, str)
    text.encode()
    assert same(json.loads(text), value)
    assert same(decode(text), value)


@given(value=anything)
def test_any_data_comes_back_exactly(value: Any) -> None:
    for in_worker in (False, True):
        assert same(decode(encode(value, in_worker=in_worker)), value)


class Text(str):
    __slots__ = ()


class Number(int):
    pass


class Rows(list[int]):
    pass


class Colour(enum.IntEnum):
    RED = 1


shared: list[int] = [1]
PICKLED = {
    "tuple": (1, 2),
    "tuple in a list": [(1, 2)],
    "bytes": b"1",
    "set": {1},
    "str subclass": Text("a"),
    "int subclass": Number(1),
    "list subclass": Rows([1]),
    "enum": Colour.RED,
    "dict subclass": collections.OrderedDict(a=1),
    "key of a str subclass": {Text("a"): 1},
    "int key": {1: 2},
    "None as a key": {None: 1},
    "mixed keys": {"1": 1, 1: 2},
    "NaN": math.nan,
    "infinity": [math.inf],
    "minus infinity": {"a": -math.inf},
    "lone surrogate": "\ud800",
    "lone surrogate as a key": {"\udcff": 1},
    "list that occurs twice": [shared, shared],
    "dict that occurs twice": {"a": (one := {"b": 1}), "c": [one]},  # type: ignore[dict-item]
    "int of more digits than Python converts": 10**5000,
    "deep nesting": functools.reduce(lambda inner, _: [inner], range(100), []),
}


@pytest.mark.parametrize("name", PICKLED)
def test_what_json_would_change_is_pickled(name: str) -> None:
    value = PICKLED[name]
    data = encode(value)
    assert isinstance(data, bytes)
    assert encode_json(value) is None
    assert same(decode(data), value)
    for call in (encode_call((value,), {}), encode_call((), {"named": value})):
        assert isinstance(call[0], bytes)
        assert call[1] is None


def test_what_occurs_twice_is_still_one() -> None:
    first, second = decode(encode([shared, shared]))
    assert first is second


def test_what_contains_itself_is_pickled() -> None:
    knot: list[Any] = []
    knot.append(knot)
    (inner,) = again = decode(encode(knot))
    assert inner is again


edges = [2**63 - 1, -(2**63), 2**63, 10**4000, True, False, -0.0, 5e-324, "\0\x7f\u2028"]


@pytest.mark.parametrize("value", edges, ids=range(len(edges)))
def test_scalars_at_the_edges_are_json(value: Any) -> None:
    text = encode(value)
    assert isinstance(text, str)
    assert same(decode(text), value)


class Rude:
    """A value whose pickling raises what it is told to."""

    def __init__(self, error: type[Exception]) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error("this is rude")


@pytest.mark.parametrize("value", [threading.Lock(), [threading.Lock()], Rude(ValueError), Rude(pickle.PicklingError)])
@pytest.mark.parametrize("in_worker", [False, True])
def test_what_cannot_be_written_raises_serialization_error(value: Any, in_worker: bool) -> None:
    with pytest.raises(SerializationError, match=f"a {type(value).__qualname__} cannot be stored") as caught:
        encode(value, in_worker=in_worker)
    assert caught.value.__cause__ is not None


def test_what_is_too_deep_for_pickle_raises_serialization_error() -> None:
    deep = functools.reduce(lambda inner, _: [inner], range(100_000), [])
    with pytest.raises(SerializationError, match="a list cannot be stored"):
        encode(deep)


# --- Calls ---


@given(args=st.lists(plain, max_size=4).map(tuple), kwargs=st.dictionaries(st.text(), plain, max_size=3))
def test_calls_of_plain_arguments_are_json_and_come_back_exactly(args: Any, kwargs: Any) -> None:
    first, second = encode_call(args, kwargs)
    assert isinstance(first, str)
    assert (second is None) == (not kwargs)
    positional, named = decode_call(first, second)
    assert same(list(positional), list(args))
    assert same(named, kwargs)


@given(args=st.lists(anything, max_size=4).map(tuple), kwargs=st.dictionaries(st.text(), anything, max_size=3))
def test_any_call_comes_back_exactly(args: Any, kwargs: Any) -> None:
    positional, named = decode_call(*encode_call(args, kwargs))
    assert same(list(positional), list(args))
    assert same(named, kwargs)


@pytest.mark.parametrize(("args", "kwargs"), [((shared, shared), {}), ((shared,), {"also": shared})])
def test_an_argument_that_is_given_twice_is_still_one(args: Any, kwargs: Any) -> None:
    positional, named = decode_call(*encode_call(args, kwargs))
    first, second = [*positional, *named.values()]
    assert first is second


# --- Rows ---


@given(table=st.integers(1, 4).flatmap(lambda width: st.lists(st.tuples(*[scalars] * width), max_size=5)))
def test_rows_of_scalars_are_one_text(table: list[tuple[Any, ...]]) -> None:
    text = encode_rows(table)
    assert text is not None
    assert same(json.loads(text), [list(row) for row in table])
    assert text == join(str(encode_call(row, {})[0]) for row in table)


@given(table=st.lists(st.tuples(anything, anything), min_size=1, max_size=5))
def test_rows_of_anything_come_back_exactly_or_have_no_text(table: list[tuple[Any, ...]]) -> None:
    text = encode_rows(table)
    if text is None:
        assert any(type(value) not in SCALARS or isinstance(encode(value), bytes) for row in table for value in row)
    else:
        assert same(json.loads(text), [list(row) for row in table])


@pytest.mark.parametrize("name", PICKLED)
def test_a_row_that_json_would_change_leaves_its_rows_without_a_text(name: str) -> None:
    assert encode_rows([(1, "a"), (2, PICKLED[name])]) is None


@given(values=st.lists(plain, max_size=5))
def test_joined_texts_are_one_array(values: list[Any]) -> None:
    assert same(json.loads(join(str(encode(value)) for value in values)), values)


# --- Functions ---


def test_an_importable_function_travels_by_name() -> None:
    for function in (math.sqrt, json.dumps, len, dict.fromkeys, collections.Counter):
        data = write(function).data
        assert data == pickle.dumps(function, 5)
        assert decode(data) == function


def test_lambdas_and_closures_travel_by_value() -> None:
    step = 2
    for function in (lambda n: n + 2, lambda n: n + step, functools.partial(lambda a, n: a + n, 2)):
        loaded = decode(write(function).data)
        assert loaded is not function
        assert loaded(1) == 3


def test_a_partial_of_an_importable_function_is_a_plain_pickle() -> None:
    assert decode(write(functools.partial(operator.add, 2)).data)(1) == 3


def test_a_closure_over_what_cannot_be_pickled_raises_serialization_error() -> None:
    lock = threading.Lock()
    with pytest.raises(SerializationError, match="a function cannot be stored"):
        write(lambda: lock.acquire())


def test_script_class_finds_inner_classes_and_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "Outer", type("Outer", (), {"Inner": Colour}), raising=False)
    assert script_class("Outer.Inner") is Colour
    for name in ("Missing", "Outer.Missing"):
        with pytest.raises(AttributeError, match=name):
            script_class(name)


# --- Scripts: what is defined in __main__ ---


Python = Callable[..., str]


@pytest.fixture
def python(tmp_path: Path) -> Python:
    """Runs code as a program; returns what it prints."""
    path = str(Path(omniq_executor.__file__).parents[1])

    def run(code: str) -> str:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", PRELUDE + code],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return run


PRELUDE = "import sys\nfrom pathlib import Path\nfrom omniq_executor.model.codec import *\n"
SCRIPT = """
class Point:
    class Inner: pass
    def __init__(self, x): self.x = x
STEP = 10
def move(point): return Point(point.x + STEP)
def dig(point): return point.Inner()
"""
WORKER = """
function = decode(Path("function").read_bytes())
args, kwargs = decode_call(Path("call").read_bytes(), None)
Path("result").write_bytes(encode(function(*args, **kwargs), in_worker=True))
"""


def work(python: Python, function: str) -> None:
    """Call a function of the script in a program that has no such function."""
    python(f"""{SCRIPT}
Path("function").write_bytes(write({function}).data)
Path("call").write_bytes(encode_call((Point(1),), {{}})[0])
""")
    python(WORKER)


def test_what_a_script_defines_travels_by_value_and_its_classes_come_back_by_name(python: Python) -> None:
    work(python, "move")
    code = "result = decode(Path('result').read_bytes())\nprint(type(result) is Point, result.x)"
    assert python(SCRIPT + code) == "True 11\n"


def test_a_class_within_a_class_of_a_script_comes_back_too(python: Python) -> None:
    work(python, "dig")
    code = "result = decode(Path('result').read_bytes())\nprint(type(result) is Point.Inner)"
    assert python(SCRIPT + code) == "True\n"


def test_a_value_of_another_script_says_so(python: Python) -> None:
    work(python, "move")
    code = "try: decode(Path('result').read_bytes())\nexcept AttributeError as error: print(error)"
    assert python(code) == "Point was defined by the script that made this value; this program has none\n"


def test_a_function_of_a_script_that_cannot_travel_by_value_travels_by_name(python: Python) -> None:
    script = "import threading\nlock = threading.Lock()\ndef work():\n    with lock: return 7\n"
    script += "__file__ = 'script.py'\n"
    assert python(f"{script}print(decode(write(work).data) is work)") == "True\n"


def test_in_a_session_it_is_refused_and_the_global_is_named(python: Python) -> None:
    code = """
import threading
lock = threading.Lock()
def work(): return lock
try: write(work)
except Exception as error: print(type(error).__name__, error)
"""
    text = python(code)
    assert text.startswith("SerializationError a function cannot be stored")
    assert "global `lock` (_thread.lock) cannot be pickled" in text


def test_an_importable_function_needs_no_cloudpickle(python: Python) -> None:
    code = "import json\nwrite(json.dumps), encode((1, 2))\nprint('cloudpickle' in sys.modules)"
    assert python(code) == "False\n"
