"""The picklers of namespaces.py, and what they ask about functions and classes."""

import contextlib
import functools
import io
import operator
import pickle
import types
import typing
import uuid
import weakref
from collections import ChainMap
from collections.abc import Iterator, Sequence
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, ModuleType
from typing import Any, ClassVar

import cloudpickle

from ..hashes import blake2b
from . import digest as keys, spaces
from .memory import ATOMS, is_named
from .modules import CACHED, MAIN, Reduced, is_main, mentions, namesake, type_name
from .spaces import Entry, Key

HEADER = ("__name__", "__package__")
_DUNDERS = frozenset({"__builtins__", "__annotations__", "__spec__", "__loader__", "__doc__", *HEADER})

_class_ids: "weakref.WeakKeyDictionary[type, str]" = weakref.WeakKeyDictionary()
_ordinals: dict[str, int] = {}


class Unpicklable(Exception):
    """Something of a payload cannot be pickled. `what` names it, the cause says why."""

    def __init__(self, what: str, why: BaseException) -> None:
        super().__init__(f"{what} cannot be pickled: {type(why).__name__}: {why}")
        self.what = what


class Needs:
    """What a pickle refers to, and so must be there when it is loaded."""

    def __init__(self) -> None:
        self.keys: dict[Key, None] = {}
        self.held: dict[Key, None] = {}  # of these, what it holds itself; code finds the others when it runs
        self.texts: dict[Key, None] = {}  # words in its texts, as if they were names
        self.classes: dict[type, None] = {}
        self.codes: dict[CodeType, None] = {}

    def add(self, needs: "Needs") -> None:
        """Refer to all that another pickle refers to."""
        self.keys |= needs.keys
        self.held |= needs.held
        self.texts |= needs.texts
        self.classes |= needs.classes
        self.codes |= needs.codes


def is_same(stamp: tuple[Any, ...] | None, known: tuple[Any, ...]) -> bool:
    """Return whether two stamps are of the same objects."""
    return stamp is not None and len(stamp) == len(known) and all(map(operator.is_, stamp, known))


def _reduce_code(code: CodeType) -> Any:
    """Reduce code as cloudpickle does, but with the name of the file, so that tracebacks show its lines."""
    make, args = cloudpickle.Pickler.dispatch_table[CodeType](code)
    return make, tuple(code.co_filename if arg == "<dynamic-code>" else arg for arg in args)


class ScriptPickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """Writes references to namespaces, their functions and classes."""

    dispatch_table: ClassVar[Any] = ChainMap({CodeType: _reduce_code}, cloudpickle.Pickler.dispatch_table)

    def __init__(self, buffer: Any, whole: Any, root: Any, buffer_callback: Any = None) -> None:
        if whole.table is not None:  # seen by what reads it once, when it is made
            self.dispatch_table = ChainMap({**whole.table}, ScriptPickler.dispatch_table)  # type: ignore[misc]
        super().__init__(buffer, 5, buffer_callback)
        self._whole = whole
        self._root = root

    def reducer_override(self, obj: Any) -> Any:
        """As of pickle.Pickler."""
        kind = type(obj)
        if kind is FunctionType:
            return self.reduce_function(obj)
        if issubclass(kind, type):
            return self._reduce_class(obj)
        if kind is CACHED:
            return self._reduce_cached(obj)
        if kind is functools.cached_property:
            return spaces.cached_property, (obj.func, obj.attrname)
        return NotImplemented

    def reduce_function(self, function: FunctionType) -> Any:
        """Reduce a function to its name, to a global of its namespace, or to its value without its globals."""
        whole = self._whole
        module = whole.module_of(function.__globals__)
        key = whole.functions.get(id(function))
        if key is not None and function is not self._root:
            return whole.refer(key)
        reduced = super().reducer_override(function)
        if reduced is NotImplemented:
            return reduced
        whole.reads.note_function(function)
        if module is None:  # its globals, too, are written by value
            whole.reads.is_whole = False
            return reduced
        make, args, (state, slots), _, _, set_state = reduced
        whole.needs.codes[function.__code__] = None
        if module in whole.dicts:
            names: Any = spaces.globals_of, (module,)
            mentioned = mentions(function.__code__)
            whole.needs.keys.update(dict.fromkeys((module, name) for name in mentioned.names))
            whole.needs.texts.update(dict.fromkeys((module, name) for name in mentioned.texts))
        else:  # of a library, which workers import
            names = spaces.imported_globals, (module,)
        slots["__globals__"] = {}
        if slots["__defaults__"]:
            slots["__defaults__"] = tuple(map(self._by_reference, slots["__defaults__"]))
        if slots["__closure__"]:
            slots["__closure__"] = tuple(map(self._cell, slots["__closure__"]))
        return make, (args[0], Reduced(*names), *args[2:]), (state, slots), None, None, set_state

    def _by_reference(self, value: Any) -> Any:
        key = self._whole.refer_to_data(value)
        return value if key is None else Reduced(*self._whole.refer(key))

    def _cell(self, cell: CellType) -> CellType:
        try:
            value = cell.cell_contents
        except ValueError:  # not bound yet
            return cell
        by_reference = self._by_reference(value)
        return cell if by_reference is value else CellType(by_reference)

    def _reduce_class(self, kind: type) -> Any:
        if not is_main(kind):
            reduced = super().reducer_override(kind)
            if not isinstance(reduced, tuple) or len(reduced) != 6:
                return reduced
        self._whole.needs.classes[kind] = None
        return spaces.class_of, (class_id_of(kind),)

    def reduce_class_by_value(self, kind: type) -> Any:
        """Reduce a class as cloudpickle does, but with its slots."""
        make, args, (members, slots), *rest = super().reducer_override(kind)
        declared = vars(kind).get("__slots__")
        # Of a NamedTuple they are made with its fields.
        is_tuple = typing.NamedTuple in vars(kind).get("__orig_bases__", ())
        if declared is not None and isinstance(args[3], dict) and not is_tuple:
            args[3]["__slots__"] = declared
        members.pop("__slots__", None)
        members = {name: members[name] for name in vars(kind) if name in members}  # cloudpickle sorts them
        return make, args, (members, slots), *rest

    def _reduce_cached(self, wrapper: Any) -> Any:
        whole = self._whole
        function = getattr(wrapper, "__wrapped__", None)
        if type(function) is not FunctionType or namesake(wrapper) is wrapper:
            return NotImplemented
        whole.module_of(function.__globals__)
        key = whole.functions.get(id(wrapper))
        if key is not None and wrapper is not self._root:
            return whole.refer(key)
        whole.reads.note_cached(wrapper)
        attributes = {name: value for name, value in vars(wrapper).items() if name != "__wrapped__"}
        return spaces.cached, (function, wrapper.cache_parameters()), attributes, None, None, spaces.set_attributes


class DataPickler(ScriptPickler):
    """Writes references to data of the namespaces, too."""

    def persistent_id(self, obj: Any) -> Any:
        """As of pickle.Pickler."""
        if obj is self._root or id(obj) not in self._whole.data:
            return None
        return self._whole.refer_to_data(obj)


class _Onlooker(pickle.Pickler):
    """Writes data with functions, classes and modules as numbers, and else as the picklers above reduce it."""

    dispatch_table: ClassVar[Any] = ScriptPickler.dispatch_table  # type: ignore[misc]

    def __init__(self, buffer: Any) -> None:
        super().__init__(buffer, 5)
        self.met: list[Any] = []

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is FunctionType or kind is CACHED or issubclass(kind, type) or is_named(obj):
            self.met.append(obj)
            return operator.index, (len(self.met),)
        return NotImplemented


def look(data: Sequence[Any]) -> tuple[bytes, Sequence[Any]]:
    """Return a pickle that tells whether data was changed in place, and the definitions that it holds as numbers."""
    buffer = io.BytesIO()
    onlooker = _Onlooker(buffer)
    onlooker.dump(data)
    return buffer.getvalue(), onlooker.met


def stamp_of(function: FunctionType) -> tuple[Any, ...] | None:
    """Return all that a function is made of, if none of it can change in itself."""
    cells = function.__closure__ or ()
    try:
        contents = [cell.cell_contents for cell in cells]
    except ValueError:  # not bound yet
        return None
    annotations = function.__annotations__
    values = [*(function.__defaults__ or ()), *contents, *annotations.values()]
    if function.__dict__ or function.__kwdefaults__:
        return None
    if not all(type(value) in ATOMS or isinstance(value, type) for value in values):
        return None
    names = function.__name__, function.__qualname__, function.__module__, function.__doc__
    return function.__code__, function.__globals__, *names, *annotations, *values


def class_id_of(kind: type) -> str:
    """Return what identifies a class that travels by value, in each run of the same script."""
    known = _class_ids.get(kind)
    if known is None:
        try:
            digest = keys.value_digest(kind)
        except keys.Uncanonical:
            digest = uuid.uuid4().bytes
        module = MAIN if is_main(kind) else kind.__module__
        stem = f"{module}.{kind.__qualname__}/{digest.hex()}"
        ordinal = _ordinals[stem] = _ordinals.get(stem, -1) + 1
        known = _class_ids[kind] = f"{stem}/{ordinal}"
    return known


def name_all(module: str, names: dict[str, Any], functions: dict[int, Key], data: dict[int, Key]) -> None:
    """Note what the names of a module stand for, by id."""
    # Those of an interactive shell's own begin with "_", and change with every line.
    for name in sorted(names, key=lambda name: name[:1] == "_"):
        value = names.get(name)
        kind: Any = type(value)
        if kind in ATOMS or kind is ModuleType or kind is BuiltinFunctionType or name in _DUNDERS:
            continue
        if kind is FunctionType or kind is CACHED:
            function = value if kind is FunctionType else getattr(value, "__wrapped__", None)
            if getattr(function, "__globals__", None) is names and (module == MAIN or namesake(value) is not value):
                functions.setdefault(id(value), (module, name))
        elif not isinstance(value, type):
            data.setdefault(id(value), (module, name))


def entry_of(data: bytes, code: bytes | None = None) -> Entry:
    """Return a value that was pickled, with its token."""
    digest = blake2b(data, digest_size=16)
    if code is not None:
        digest.update(code)
    return Entry(digest.digest(), data, code)


def parts_of(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a callable, or the arguments of a call, is made of, each with what it is called."""
    if type(value) is tuple and len(value) == 2:
        args, kwargs = value
        yield from ((f"argument {place} ({type_name(part)})", part) for place, part in enumerate(args, 1))
        yield from ((f"argument `{name}` ({type_name(part)})", part) for name, part in kwargs.items())
    elif isinstance(value, functools.partial):
        yield from parts_of((value.args, value.keywords))
        yield from parts_of(value.func)
    elif type(value) is FunctionType:
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # not bound yet
                yield f"closure variable `{name}` ({type_name(cell.cell_contents)})", cell.cell_contents
        for part in value.__defaults__ or ():
            yield f"a default of {value.__qualname__} ({type_name(part)})", part
    elif type(value) is types.MethodType:
        yield f"the object of the method {value.__qualname__} ({type_name(value.__self__)})", value.__self__


def is_flat(value: Any) -> bool:
    """Return whether a container holds nothing but what cannot change, nor hold anything."""
    return ATOMS.issuperset(map(type, value)) and (
        type(value) is not dict or ATOMS.issuperset(map(type, value.values()))
    )
