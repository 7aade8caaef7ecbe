"""What a function was written from, by which it is known at each submit whether it would be written alike again.

A loop that submits a function of the script a hundred thousand times writes it once. While a payload is written (see
namespaces.py), `Reads` notes what that depends on; `Memory` keeps it, and compares it with what is there now:

    names      of modules, that code reads or that are referred to: each stands for the same object, or for none
    functions  their code, defaults and so on are the same objects, and what their cells hold
    classes    have the same attributes, bases and names
    data       what can be changed in place, all of it in one pickle, which has the same bytes

Other names of a module do not count, so the variable of the loop does not, where that is a global.

The pickle of the data is one, so that what two names share is told from two that are equal. Functions, classes and
modules stand in it as numbers, and are the same objects as before: what they are made of is compared by itself.

Another thread may change data between its being written and its being looked at. So that is looked at before and
after it is written, and kept only if both are alike: by the second submit at the earliest.
"""

import abc
import enum
import functools
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from operator import attrgetter, is_, itemgetter
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, NamedTuple

from .modules import CACHED, Snapshot
from .spaces import Payload

ATOMS = frozenset({int, str, float, bool, complex, bytes, type(None), type(...)})
_FROZEN = ATOMS | {FunctionType, BuiltinFunctionType, CACHED}
_REMEMBERED = frozenset({FunctionType, functools.partial, CACHED})
_KEPT = 1024
_LARGE = 1 << 18  # bytes
_LARGEST_KEPT = 1 << 28
_ABSENT = object()

Look = Callable[[Sequence[Any]], tuple[bytes, Sequence[Any]]]

_parts = attrgetter(
    "__code__", "__defaults__", "__kwdefaults__", "__closure__", "__globals__", "__name__", "__qualname__",
    "__module__", "__doc__",
)  # fmt: skip
_parts_of_class = attrgetter("__bases__", "__name__", "__qualname__")
_contents = attrgetter("cell_contents")


def _items(names: Sequence[str]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    """Return what gives the items of these names, of which there is one at least."""
    return itemgetter(*names, names[0])  # of one name alone it would give no tuple


class Reads:
    """What is read while a payload is written."""

    def __init__(self) -> None:
        self.is_whole = True
        """Whether what was noted is all that the payload depends on."""
        self.modules: dict[str, Any] = {}
        self.names: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
        self.functions: dict[int, FunctionType] = {}
        self.classes: dict[int, type] = {}
        self.attributes: dict[int, Mapping[str, Any]] = {}  # of functions and classes, each whole
        self.cells: list[Any] = []
        self.contents: list[Any] = []  # of the cells
        self.data: dict[int, Any] = {}

    def note_module(self, name: str, names: dict[str, Any]) -> None:
        """Note that a module with these names has this name in sys.modules."""
        self.modules[name] = sys.modules[name]
        self.names.setdefault(id(names), (names, {}))

    def note_name(self, names: dict[str, Any], name: str) -> None:
        """Note what stands under a name of a module, or that nothing does."""
        self.names.setdefault(id(names), (names, {}))[1].setdefault(name, names.get(name, _ABSENT))

    def note_function(self, function: FunctionType) -> None:
        """Note what a function is made of. Functions and classes that it carries are noted when they are written."""
        if id(function) in self.functions:
            return
        self.functions[id(function)] = function
        annotations, keywords = function.__annotations__, function.__kwdefaults__ or {}
        for attributes in (annotations, keywords, function.__dict__):
            self.attributes[id(attributes)] = attributes
        try:
            contents = [*map(_contents, function.__closure__ or ())]
        except ValueError:  # not bound yet
            self.is_whole = False
            return
        self.cells += function.__closure__ or ()
        self.contents += contents
        for value in (*(function.__defaults__ or ()), *keywords.values(), *function.__dict__.values(), *contents):
            self.note_data(value)
        for value in annotations.values():
            if type(value).__module__ not in ("typing", "types"):  # which cannot be changed
                self.note_data(value)

    def note_class(self, kind: type) -> None:
        """Note the attributes of a class; what is data among them is noted by `note_data()`."""
        self.classes[id(kind)] = kind
        self.attributes[id(kind)] = vars(kind)
        if issubclass(kind, enum.Enum):
            for member in kind.__members__.values():
                self.note_data(member.value)

    def note_cached(self, wrapper: Any) -> None:
        """Note what a functools.lru_cache carries beside its function."""
        self.attributes[id(wrapper)] = vars(wrapper)
        for value in vars(wrapper).values():
            self.note_data(value)

    def note_data(self, value: Any) -> None:
        """Note a value, which may be changed in place."""
        if not _is_frozen(value):
            self.data[id(value)] = value


def _is_frozen(value: Any) -> bool:
    """Return whether a value is noted by being the same object: it cannot be changed, or it is a definition."""
    kind = type(value)
    if kind in (tuple, frozenset):
        return all(map(_is_frozen, value))
    return kind in _FROZEN or isinstance(value, type) or is_named(value)


def is_named(value: Any) -> bool:
    """Return whether it is a module that has a name; others travel with all that they hold."""
    return type(value) is ModuleType and sys.modules.get(value.__name__) is value


class _Look(NamedTuple):
    """The state of data at a moment."""

    data: Sequence[Any]
    pickled: bytes
    met: Sequence[Any]  # the definitions in it

    def is_same(self, other: "_Look | None") -> bool:
        return (
            other is not None
            and self.pickled == other.pickled
            and _are_same(self.data, other.data)
            and _are_same(self.met, other.met)
        )


def _are_same(some: Sequence[Any], others: Sequence[Any]) -> bool:
    return len(some) == len(others) and all(map(is_, some, others))


class Memory:
    """What was written, and what it depends on."""

    def __init__(self, value: Any, snapshot: Snapshot | None, payload: Payload, reads: Reads, look: Look) -> None:
        self.payload = payload
        self._pickle = look
        self.snapshot = None if snapshot is None else weakref.ref(snapshot)
        self.latest: _Look | None = None
        """At the data, where that was not the same as when it was written."""
        self._seen: _Look | None = None
        self._count = len(sys.modules)  # submodules may come, which are then sent along
        self._own_parts = _parts(value) if type(value) is FunctionType else ()
        functions = [each for each in reads.functions.values() if each is not value]  # which may go meanwhile
        # What gives a tuple of what is there now, from what; and what that was.
        self._looks: list[tuple[Callable[[Any], Sequence[Any]], Any]] = [(_parts, each) for each in functions]
        self._were = [*chain.from_iterable(map(_parts, functions))]
        self._absent: list[tuple[dict[str, Any], str]] = []
        for names, read in (*reads.names.values(), (sys.modules, reads.modules)):
            there = [name for name, stood in read.items() if stood is not _ABSENT]
            self._absent += [(names, name) for name in read.keys() - there]
            if there:
                self._looks.append((_items(there), names))
                self._were += _items(there)(read)
        self._classes = [*reads.classes.values()]
        self._parts_of_classes = [*chain.from_iterable(map(_parts_of_class, self._classes))]
        self._subclasses = abc.get_cache_token() if self._classes else None  # that were registered
        attributes = [*reads.attributes.values()]
        self._empty = [each for each in attributes if not each]
        self._filled = [each for each in attributes if each]
        self._lengths = [*map(len, self._filled)]
        self._keys = [*chain.from_iterable(self._filled)]
        self._values = [*chain.from_iterable([each.values() for each in self._filled])]
        self._cells, self._contents = reads.cells, reads.contents
        self._data = [*reads.data.values()]

    def still_holds(self, value: Any) -> bool:
        """Return whether nothing of it has changed."""
        try:
            return self._holds(value) and (not self._data or self._looks_alike())
        # A name is gone, or a cell empty by now; another thread changes a dict.
        except (KeyError, ValueError, AttributeError, RuntimeError):
            return False

    def _holds(self, value: Any) -> bool:
        now: list[Any] = []
        for look, at in self._looks:
            now += look(at)
        return (
            all(map(is_, now, self._were))
            and self._count == len(sys.modules)
            and (not self._own_parts or all(map(is_, _parts(value), self._own_parts)))
            and not (self._absent and any(name in names for names, name in self._absent))
            and (not self._cells or all(map(is_, map(_contents, self._cells), self._contents)))
            and not any(self._empty)
            and (not self._filled or self._has_same_attributes())
            and (
                not self._classes
                or (
                    all(map(is_, chain.from_iterable(map(_parts_of_class, self._classes)), self._parts_of_classes))
                    and self._subclasses == abc.get_cache_token()
                )
            )
        )

    def _has_same_attributes(self) -> bool:
        now = chain.from_iterable([each.values() for each in self._filled])
        return (
            [*map(len, self._filled)] == self._lengths
            and [*chain.from_iterable(self._filled)] == self._keys
            and all(map(is_, now, self._values))
        )

    def _looks_alike(self) -> bool:
        self.latest = self._look()
        return self.latest is not None and self.latest.is_same(self._seen)

    def settle(self, before: _Look | None) -> bool:
        """Take note of the state of data, if it was the same `before` it was written. Return whether it is of use."""
        if self._data and (now := self._look()) is not None:
            if len(now.pickled) > _LARGE:
                return False
            self._seen = now if now.is_same(before) else None
            return True
        return not self._data

    def _look(self) -> _Look | None:
        try:
            return _Look(self._data, *self._pickle(self._data))
        except Exception:  # noqa: BLE001 - whatever a __reduce__ of the user's raises
            return None


_Place = tuple[int, int]
_memories: dict[_Place, tuple["weakref.ref[Any]", Memory]] = {}


def _forget(memories: dict[_Place, Any], place: _Place, _: object) -> None:
    memories.pop(place, None)  # given, as names of modules are gone at the end of the interpreter


def recall(value: Any, snapshot: Snapshot | None) -> Payload | None:
    """Return the payload of a callable, if it was written and would be written alike again."""
    known = _memories.get((id(value), id(snapshot)))
    if known is None or known[0]() is not value:
        return None
    memory = known[1]
    if memory.snapshot is not None and memory.snapshot() is not snapshot:
        return None
    return memory.payload if memory.still_holds(value) else None


def keep(value: Any, snapshot: Snapshot | None, payload: Payload, reads: Reads, look: Look) -> None:
    """Have a callable that was written be recalled. `look` returns a pickle of data, and the definitions in it."""
    if type(value) not in _REMEMBERED:
        return
    place = id(value), id(snapshot)
    before = _memories.pop(place, None)
    if not reads.is_whole or len(payload.data) > _LARGEST_KEPT:
        return
    if type(value) is functools.partial:
        reads.note_data(value.args)
        reads.note_data(value.keywords)
        reads.note_data(vars(value))
    memory = Memory(value, snapshot, payload, reads, look)
    if not memory.settle(before[1].latest if before is not None else None):
        return
    if len(_memories) >= _KEPT or len(payload.data) > _LARGE:
        _memories.clear()  # of large ones there is one at most
    _memories[place] = weakref.ref(value, functools.partial(_forget, _memories, place)), memory
