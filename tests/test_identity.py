"""What identifies values of Python's own kinds and of the user's classes as arguments, in whichever process."""

import array
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import operator
import pathlib
import random
import re
import types
import typing
import uuid
import zoneinfo
from typing import Any

import pytest
from identity_table import Line, Table, check, check_processes

WORDS = ["one", "two", "three", "four", "five", "six", "seven"]


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Right(enum.Flag):
    READ = 1
    WRITE = 2
    RUN = 4


@dataclasses.dataclass
class Job:
    name: str
    tags: set[str] = dataclasses.field(default_factory=set)
    parent: "Job | None" = None

    def run(self, n: int) -> int:
        return n

    def stop(self, n: int) -> int:
        return n

    @classmethod
    def of(cls, n: int) -> int:
        return n

    @staticmethod
    def alone(n: int) -> int:
        return n


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    name: str
    limit: float = 1.0


class Pair(typing.NamedTuple):
    left: int
    right: Any = None


Point = collections.namedtuple("Point", "x y")  # as older code has it


class Options(typing.TypedDict):
    depth: int


class Slotted:
    __slots__ = ("__dict__", "one", "two")

    def __init__(self, one: Any) -> None:
        self.one = one


class Tags(set[str]):
    name = "tags"


class Table2D(dict[str, Any]):
    def __init__(self, *args: Any, name: str = "") -> None:
        super().__init__(*args)
        self.name = name


class Celsius(float):
    pass


class Money:
    """Has a reduction of its own."""

    def __init__(self, amount: int) -> None:
        self.amount = amount
        self.seen = object()

    def __reduce__(self) -> Any:
        return Money, (self.amount,)


def add(a: int, b: int = 0) -> int:
    return a + b


def multiply(a: int, b: int = 0) -> int:
    return a * b


def put(name: str, value: object) -> Any:
    return functools.partial(_put, name=name, value=value)


def _put(target: Any, name: str, value: object) -> None:
    object.__setattr__(target, name, value)


NOON = datetime.datetime(2024, 5, 1, 12, 30)  # noqa: DTZ001  # one without a zone is another
TABLE: Table = {
    "text": Line(lambda: "a", [lambda: "b", lambda: b"a", lambda: ["a"], lambda: "", lambda: None]),
    "number": Line(lambda: 1, [lambda: 1.0, lambda: True, lambda: "1", lambda: 2, lambda: 1 + 0j, lambda: -1]),
    "float": Line(lambda: 0.0, [lambda: -0.0, lambda: float("nan"), lambda: float("inf"), lambda: 5e-324]),
    "bytes": Line(lambda: b"ab", [lambda: bytearray(b"ab"), lambda: b"ac", lambda: memoryview(b"ab").tolist()]),
    "list": Line(
        lambda: [1, (2, "x")], [lambda: [1, [2, "x"]], lambda: [(2, "x"), 1]], [lambda value: value.append(3)]
    ),
    "dict": Line(
        lambda: {word: len(word) for word in WORDS}, [lambda: collections.OrderedDict(one=3)],
        [lambda value: value.update(one=4), lambda value: value.pop("one"), lambda value: value.update({1: 1})],
    ),
    "ordered dict": Line(
        lambda: collections.OrderedDict(a=1, b=2), [lambda: collections.OrderedDict(b=2, a=1), lambda: {"a": 1, "b": 2}]
    ),
    "default dict": Line(lambda: collections.defaultdict(list, a=[1]), [lambda: collections.defaultdict(set, a=[1])]),
    "counter": Line(lambda: collections.Counter("abca"), [lambda: collections.Counter("abcaa")]),
    "deque": Line(lambda: collections.deque([1, 2]), [lambda: collections.deque([1, 2], maxlen=2), lambda: [1, 2]]),
    "set": Line(lambda: {*WORDS}, [lambda: frozenset(WORDS)], [lambda value: value.add("eight")]),
    "set of tuples": Line(lambda: {(word, i) for i, word in enumerate(WORDS)}, [lambda: {("one", 0)}]),
    "frozenset": Line(lambda: frozenset(WORDS), [lambda: frozenset(WORDS[1:])]),
    "sets in sets": Line(lambda: {frozenset(WORDS), frozenset(WORDS[:3])}, [lambda: {frozenset(WORDS)}]),
    "set subclass": Line(lambda: Tags(WORDS), [lambda: Tags(WORDS[1:]), lambda: set(WORDS)], [put("name", "others")]),
    "dict subclass": Line(
        lambda: Table2D({"a": 1}, name="x"), [lambda: Table2D({"a": 1}, name="y"), lambda: {"a": 1}],
        [put("name", "z"), lambda value: value.update(a=2)],
    ),
    "float subclass": Line(lambda: Celsius(1.5), [lambda: Celsius(2.5), lambda: 1.5], [put("unit", "K")]),
    "dataclass": Line(
        lambda: Job("a", {*WORDS}, Job("b")),
        [lambda: Job("a", {*WORDS}, Job("c")), lambda: Job("b", {*WORDS}, Job("b")), lambda: Job("a", {*WORDS})],
        [put("name", "c"), lambda job: job.tags.add("x"), lambda job: job.parent.tags.add("x"), put("added", 1)],
    ),
    "frozen dataclass": Line(
        lambda: Frozen("a", 2.0), [lambda: Frozen("a", 2), lambda: Frozen("b", 2.0), lambda: Job("a")],
        [put("limit", 3.0)],
    ),
    "named tuple": Line(lambda: Pair(1, {*WORDS}), [lambda: (1, {*WORDS}), lambda: Pair(1), lambda: Point(1, 2)]),
    "older named tuple": Line(lambda: Point(1, 2), [lambda: Point(2, 1), lambda: (1, 2)]),
    "slots": Line(lambda: Slotted(1), [lambda: Slotted("1")], [put("two", 2), put("three", 3)]),
    "own reduction": Line(lambda: Money(1), [lambda: Money(2)], [put("amount", 3)]),
    "enum": Line(lambda: Colour.RED, [lambda: Colour.BLUE, lambda: "red", lambda: Level.LOW, lambda: Right.READ]),
    "number enum": Line(lambda: Level.LOW, [lambda: Level.HIGH, lambda: 1]),
    "flags": Line(lambda: Right.READ | Right.RUN, [lambda: Right.READ, lambda: Right.READ | Right.WRITE]),
    "class": Line(lambda: Job, [lambda: Frozen, lambda: Job("a"), lambda: int, lambda: list[int], lambda: dict]),
    "typing": Line(lambda: list[int], [lambda: list[str], lambda: int | str, lambda: typing.Callable[[int], str]]),
    "function": Line(lambda: add, [lambda: multiply, lambda: len, lambda: "add"]),
    "lambda": Line(lambda: lambda n: n + 1, [lambda: lambda n: n + 2, lambda: lambda m: m + 1]),
    "partial": Line(
        lambda: functools.partial(add, 1, b=2),
        [
            lambda: functools.partial(add, 2, b=2), lambda: functools.partial(add, 1, b=3),
            lambda: functools.partial(multiply, 1, b=2), lambda: functools.partial(add, 1), lambda: add,
        ],
        [lambda value: value.keywords.update(b=4)],
    ),
    "bound method": Line(
        lambda: Job("a", {*WORDS}).run,
        [lambda: Job("a", {*WORDS}).stop, lambda: Job("b", {*WORDS}).run, lambda: Job("a", {*WORDS}), lambda: Job.run],
        [lambda method: method.__self__.tags.add("x")],
    ),
    "class method": Line(lambda: Job.of, [lambda: Job.alone, lambda: Job.run]),
    "method of a built-in": Line(lambda: [1].append, [lambda: [2].append, lambda: [1].extend, lambda: "a".join]),
    "operators": Line(
        lambda: operator.itemgetter(1, 2), [lambda: operator.itemgetter(1), lambda: operator.attrgetter("a")]
    ),
    "datetime": Line(
        lambda: NOON,
        [
            lambda: NOON + datetime.timedelta(microseconds=1), lambda: NOON.replace(tzinfo=datetime.UTC),
            lambda: NOON.replace(tzinfo=datetime.timezone(datetime.timedelta(hours=1))),
            lambda: NOON.replace(tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")), lambda: NOON.replace(fold=1),
            lambda: NOON.replace(tzinfo=zoneinfo.ZoneInfo("Europe/Paris")), lambda: NOON.date(), lambda: NOON.time(),
        ],
    ),
    "time zone": Line(
        lambda: zoneinfo.ZoneInfo("Europe/Berlin"), [lambda: zoneinfo.ZoneInfo("UTC"), lambda: datetime.UTC]
    ),
    "duration": Line(lambda: datetime.timedelta(days=1), [lambda: datetime.timedelta(days=1, microseconds=1)]),
    "path": Line(
        lambda: pathlib.Path("a") / "b",
        [lambda: pathlib.Path("a/c"), lambda: "a/b", lambda: pathlib.PurePosixPath("a/b"), lambda: pathlib.Path("/a")],
    ),
    "decimal": Line(
        lambda: decimal.Decimal("1.50"),
        [lambda: decimal.Decimal("1.5"), lambda: 1.5, lambda: decimal.Decimal("-1.50"), lambda: decimal.Decimal("NaN")],
    ),
    "fraction": Line(lambda: fractions.Fraction(1, 2), [lambda: fractions.Fraction(1, 3), lambda: 0.5]),
    "uuid": Line(lambda: uuid.UUID(int=1), [lambda: uuid.UUID(int=2)]),
    "pattern": Line(lambda: re.compile("a+"), [lambda: re.compile("a+", re.IGNORECASE), lambda: re.compile(b"a+")]),
    "array": Line(
        lambda: array.array("i", [1, 2]), [lambda: array.array("q", [1, 2]), lambda: array.array("i", [2, 1])],
        [lambda value: value.append(3)],
    ),
    "range and slice": Line(lambda: (range(3), slice(1)), [lambda: (range(4), slice(1)), lambda: (range(3), slice(2))]),
    "random": Line(lambda: random.Random(1), [lambda: random.Random(2)], [lambda value: value.random()]),
    "exception": Line(lambda: ValueError("a"), [lambda: ValueError("b"), lambda: KeyError("a")]),
    "namespace": Line(
        lambda: types.SimpleNamespace(a=1, b={*WORDS}), [lambda: types.SimpleNamespace(a=1)], [put("a", 2)]
    ),
    "generic alias in a dict": Line(lambda: {"kind": list[int], "of": {*WORDS}}, [lambda: {"kind": list[str]}]),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_equal_values_are_the_same_and_changed_ones_are_not(name: str) -> None:
    check(TABLE[name])


def test_every_process_has_the_same_identities() -> None:
    check_processes(__file__)
