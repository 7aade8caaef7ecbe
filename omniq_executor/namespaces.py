"""How functions, classes and arguments of the script are written: as payloads, which spaces.py loads.

cloudpickle writes a function with copies of the globals that it reads. So two functions had two copies of
one list, and what an initializer set was seen by nobody. Here a function refers to the namespace of its
module, and what it reads there is written beside it, each name by itself. What *is* a global, of the
functions, classes and data that are reached, is written as a reference to it.

A function, or a class, is written anew only if something of it has changed; what is mutable always is.

With fork, what was there when the workers' ancestor was forked is in every worker already. A `Snapshot`
knows what that is, and of all that is the same object still, nothing is written but its name.
"""

import contextlib
import copyreg
import functools
import io
import linecache
import operator
import os
import pickle
import sys
import types
import typing
import uuid
import weakref
from collections import ChainMap, deque
from collections.abc import Callable, Iterator, Mapping
from hashlib import blake2b
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MemberDescriptorType, ModuleType
from typing import Any, ClassVar, NamedTuple

import cloudpickle

from . import keys, spaces
from .modules import Snapshot, is_main, is_own
from .spaces import MAIN, Attribute, Entry, Key, Kind

_MAINS = (MAIN, "__mp_main__")
_ATOMS = frozenset({int, str, float, bool, complex, bytes, type(None), type(...)})
_CONTAINERS = frozenset({list, tuple, set, frozenset, dict})
_CODE = (FunctionType, staticmethod, classmethod, property, functools.cached_property)
_CACHED: Any = type(functools.lru_cache(lambda: None))
_INCIDENTAL = frozenset({"__slotnames__", "__weakref__", "__dict__"})
_HEADER = ("__name__", "__package__")
_DUNDERS = frozenset({"__builtins__", "__annotations__", "__spec__", "__loader__", "__doc__", *_HEADER})
_READS_GLOBAL = frozenset({"LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})
_LONGEST_SOURCE = 1 << 18
_KEPT = 4096  # functions whose pickles are remembered
_LARGE = 1 << 18  # bytes
_LARGEST_KEPT = 1 << 28


class Unpicklable(Exception):
    """Something of a payload cannot be pickled. `what` names it, the cause says why."""

    def __init__(self, what: str, why: BaseException) -> None:
        super().__init__(f"{what} cannot be pickled: {type(why).__name__}: {why}")
        self.what = what


class Payload(NamedTuple):
    """What was written."""

    data: bytes
    signature: bytes  # of all that it carries
    sizes: dict[Key, int]  # in bytes, of the globals that it carries


def dump(value: Any, snapshot: Snapshot | None = None, table: Mapping[type, Any] | None = None) -> Payload:
    """A callable, or (args, kwargs), as a payload. Raises Unpicklable.

    `table` has further ways to reduce objects, as copyreg.dispatch_table.
    """
    if type(value) is not FunctionType:
        return _Dump(snapshot, table).run(value)
    place = id(value), id(snapshot)
    known = _memories.get(place)
    if known is not None and known.function() is value and known.still_holds():
        return known.payload
    whole = _Dump(snapshot, table)
    memory = _Memory(value, snapshot, whole.run(value), whole)
    _memories.pop(place, None)
    if memory.is_of_use and len(memory.payload.data) < _LARGEST_KEPT:
        if len(_memories) >= _KEPT or len(memory.payload.data) > _LARGE:
            _memories.clear()  # of large ones there is one at most
        _memories[place] = memory
    return memory.payload


class _Memory:
    """A function that was written, and all by which it can be told whether it would be written alike again."""

    def __init__(self, function: FunctionType, snapshot: Snapshot | None, payload: Payload, whole: "_Dump") -> None:
        self.function = weakref.ref(function)
        self.payload = payload
        self.is_of_use = whole.is_fixed
        self._snapshot = snapshot  # so that its id stays its own
        self._modules = len(sys.modules)  # its submodules may come
        self._dicts = [(names, _look(names)) for names in whole.dicts.values()]
        self._functions = whole.stamps
        self._classes = [(kind, dict(vars(kind))) for kind in whole.kinds]
        self._values = whole.values

    def still_holds(self) -> bool:
        """Whether nothing of it has changed."""
        if self._modules != len(sys.modules):
            return False
        if not all(_look(names) == known for names, known in self._dicts):
            return False
        if not all(_is_same(_stamp(function), stamp) for function, stamp in self._functions):
            return False
        for kind, known in self._classes:
            members = vars(kind)
            if len(members) != len(known) or not all(map(operator.is_, members.values(), known.values())):
                return False
        return all(pickle.dumps(value, 5) == data for value, data in self._values)


def _look(names: dict[str, Any]) -> tuple[list[str], list[int], list[type]]:
    """What the names of a module stand for now, in a form that does not keep it alive."""
    values = [*names.values()]
    return [*names], [*map(id, values)], [*map(type, values)]


def _is_same(stamp: tuple[Any, ...] | None, known: tuple[Any, ...]) -> bool:
    return stamp is not None and len(stamp) == len(known) and all(map(operator.is_, stamp, known))


class _Needs:
    """What a pickle refers to, and so must be there when it is loaded."""

    def __init__(self) -> None:
        self.keys: dict[Key, None] = {}
        self.classes: dict[type, None] = {}
        self.codes: dict[CodeType, None] = {}


class _Written(NamedTuple):
    """A function that was written, and what it was then."""

    function: Any  # a weak reference
    stamp: tuple[Any, ...]
    modules: int
    entry: Entry
    needs: _Needs


_memories: dict[tuple[int, int], _Memory] = {}
_AS_FORKED = Entry(spaces.AS_FORKED, b"")
_functions: dict[tuple[int, bool], _Written] = {}
_namings: dict[str, tuple[Any, dict[int, Key], dict[int, Key]]] = {}
_atoms: dict[Key, tuple[Any, Entry]] = {}
_numbers: "weakref.WeakKeyDictionary[type, str]" = weakref.WeakKeyDictionary()
_ordinals: dict[str, int] = {}


class _Dump:
    """The writing of one payload."""

    def __init__(self, snapshot: Snapshot | None, table: Mapping[type, Any] | None) -> None:
        self.table = table
        self.functions: dict[int, Key] = {}  # the globals that are referred to, by id
        self.data: dict[int, Key] = {}
        self.needs = _Needs()  # of the pickle that is being written
        self.dicts: dict[str, dict[str, Any]] = {}  # of the modules whose names are referred to
        self.is_fixed = table is None  # whether what follows tells all that it is made of
        self.stamps: list[tuple[FunctionType, tuple[Any, ...]]] = []
        self.values: list[tuple[Any, bytes]] = []
        self.kinds: list[type] = []
        self.snapshot = snapshot
        self._entries: dict[Key, Entry] = {}
        self._classes: dict[str, Kind] = {}
        self._headers: dict[str, dict[str, Any]] = {}
        self._sources: dict[str, list[str]] = {}
        self._modules: dict[int, str | None] = {}  # by the id of their dict
        self._under_way: set[Key] = set()
        self._seen: set[Any] = set()
        self._queue: deque[Any] = deque()

    def run(self, value: Any) -> Payload:
        """Write all of it."""
        shell = self._write(lambda: self._shell(value))
        while self._queue:
            item = self._queue.popleft()
            if isinstance(item, tuple):
                self.ensure(item)
            else:
                self._class(item)
        whole = spaces.load, (shell, self._entries, self._classes, self._headers, self._sources)
        sizes = {key: len(entry.data) for key, entry in self._entries.items()}
        return Payload(pickle.dumps(_Reduced(whole), 5), self._signature(shell), sizes)

    def _shell(self, value: Any) -> bytes:
        self.module_of(sys.modules[MAIN].__dict__)
        if type(value) is FunctionType and id(value) not in self.functions:
            return self._function(value, apart=False).data
        try:
            return self._pickle(value, root=None)
        except Unpicklable:
            raise
        except Exception as error:
            blamed = next((what for what, part in _parts(value) if not self._can_pickle(part)), None)
            raise Unpicklable(blamed or f"a {_type_name(value)}", error) from error

    def _can_pickle(self, value: Any) -> bool:
        try:
            self._pickle(value, root=None)
        except Exception:  # noqa: BLE001 - whatever a __reduce__ of the user's raises
            return False
        return True

    def _signature(self, shell: bytes) -> bytes:
        digest = blake2b(shell, digest_size=16)
        for key, entry in self._entries.items():
            digest.update(repr(key).encode() + entry.token)
        for number, kind in self._classes.items():
            digest.update(number.encode())
            for attribute in kind.attributes.values():
                digest.update(attribute.token)
        return digest.digest()

    # references

    def module_of(self, names: dict[str, Any]) -> str | None:
        """The module whose dict it is."""
        if id(names) not in self._modules:
            name = names.get("__name__")
            module = sys.modules.get(name) if isinstance(name, str) else None
            known = None if module is None or vars(module) is not names or name is None else name
            if known is not None and known in _MAINS:
                known = MAIN
            self._modules[id(names)] = known
            if known is not None and (known == MAIN or is_own(known)):
                self._meet(known, names)
        return self._modules[id(names)]

    def _meet(self, module: str, names: dict[str, Any]) -> None:
        """Learn what the names of a module stand for."""
        self.dicts[module] = names
        self._headers[module] = {name: names[name] for name in _HEADER if name in names}
        if module == MAIN:
            self._headers[module]["__name__"] = MAIN
        look = _look(names)
        known = _namings.get(module)
        if known is None or known[0] != look:
            known = _namings[module] = look, {}, {}
            _name(module, names, known[1], known[2])
        self.functions |= known[1]
        self.data |= known[2]

    def refer(self, key: Key) -> Any:
        """What stands in a pickle for a global."""
        self.needs.keys[key] = None
        return spaces.global_of, key

    def refer_to_data(self, value: Any) -> Key | None:
        """The name under which a value is to be found, if it is to be."""
        key = self.data.get(id(value))
        if key is None or key in self._under_way:
            return None
        if self._under_way:
            self.ensure(key)  # before what refers to it; should it refer to that, in its turn, it has it by value
        self.needs.keys[key] = None
        return key

    # writing

    def ensure(self, key: Key) -> None:
        """Write the value of a global, unless it is written."""
        names = self.dicts[key[0]]
        if key in self._seen or key[1] not in names:
            return
        self._seen.add(key)
        value = names[key[1]]
        if self.snapshot is not None and self.snapshot.holds(key, value):
            self._walk(value)
            self._entries[key] = _AS_FORKED
            return
        try:
            self._entries[key] = self._write(lambda: self._entry(key, value))
        except Unpicklable:
            raise
        except Exception as error:
            if key[0] != MAIN and _is_imported(key, value):
                self._entries[key] = _entry(pickle.dumps(_Reduced((spaces.imported_global, key)), 5))
                return
            raise Unpicklable(f"global `{key[1]}` ({_type_name(value)})", error) from error

    def _entry(self, key: Key, value: Any) -> Entry:
        kind = type(value)
        if kind in _ATOMS:
            known = _atoms.get(key)
            if known is not None and known[0] is value:
                return known[1]
            entry = _entry(pickle.dumps(value, 5))
            if len(entry.data) < _LARGE:
                _atoms[key] = value, entry
            return entry
        at = self.functions.get(id(value), self.data.get(id(value), key))
        if at != key:  # another name of it
            return _entry(pickle.dumps(_Reduced(self.refer(at)), 5))
        if kind is FunctionType and value.__globals__ is self.dicts[key[0]] and key == at and id(value) in self.functions:
            return self._function(value, apart=True)
        if kind in _CONTAINERS and _is_flat(value):
            entry = _entry(pickle.dumps(value, 5))
            self.values.append((value, entry.data))
            return entry
        self._under_way.add(key)
        try:
            entry = _entry(self._pickle(value, _DataPickler, value))
        finally:
            self._under_way.discard(key)
        if kind is not ModuleType and not isinstance(value, type):  # of these, classes are looked at by themselves
            self._remember(value, entry)
        return entry

    def _remember(self, value: Any, entry: Entry) -> None:
        """Have it noted whether a plain pickle tells that a value is what it was."""
        if self.is_fixed and not (self.needs.keys or self.needs.classes) and len(entry.data) < _LARGE:
            with contextlib.suppress(Exception):  # what a __reduce__ of the user's raises
                plain = pickle.dumps(value, 5)
                if MAIN.encode() not in plain:
                    self.values.append((value, plain))
                    return
        self.is_fixed = False

    def _write(self, write: Callable[[], Any]) -> Any:
        """Write something; what it needs is written later."""
        outer, self.needs = self.needs, _Needs()
        try:
            written = write()
        finally:
            needs, self.needs = self.needs, outer
        for key in needs.keys:
            if key not in self._seen:
                self._queue.append(key)
        self._queue.extend(needs.classes)
        for code in needs.codes:
            self._source(code.co_filename)
        return written

    def _pickle(self, value: Any, kind: Any = None, root: Any = None) -> bytes:
        """`root` is the global that it is, and so is written by value."""
        buffer = io.BytesIO()
        (kind or _Pickler)(buffer, self, root).dump(value)
        return buffer.getvalue()

    def _function(self, function: FunctionType, apart: bool) -> Entry:
        """A function by value; `apart`: its code apart from its state."""
        stamp, place = _stamp(function), (id(function), apart)
        if stamp is None:
            self.is_fixed = False
        else:
            self.stamps.append((function, stamp))
        known = _functions.get(place)
        if (
            known is not None
            and known.function() is function
            and known.modules == len(sys.modules)  # its submodules may have come
            and _is_same(stamp, known.stamp)
        ):
            needs = known.needs
            self.module_of(function.__globals__)
            self.needs.keys.update(needs.keys)
            self.needs.classes.update(needs.classes)
            self.needs.codes.update(needs.codes)
            return known.entry
        outer, self.needs = self.needs, _Needs()
        try:
            if apart:
                pickler = _Pickler(io.BytesIO(), self, function)
                _, args, state, _, _, set_state = pickler.reduce_function(function)
                cells = len(args[0].co_freevars)
                entry = _entry(self._pickle((set_state, state)), self._pickle((args[0], cells)))
            else:
                entry = _entry(self._pickle(function, root=function))
        finally:
            needs, self.needs = self.needs, outer
            self.needs.keys.update(needs.keys)
            self.needs.classes.update(needs.classes)
            self.needs.codes.update(needs.codes)
        if stamp is not None:
            if len(_functions) >= _KEPT:
                _functions.clear()
            _functions[place] = _Written(weakref.ref(function), stamp, len(sys.modules), entry, needs)
        return entry

    def _class(self, kind: type) -> None:
        number = _number(kind)
        if number in self._seen:
            return
        self._seen.add(number)
        self.kinds.append(kind)
        attributes: dict[str, Attribute] = {}
        before = self.snapshot.attributes(kind) if self.snapshot is not None else None
        pickler = _Pickler(io.BytesIO(), self, kind)
        make, args, (members, _), _, _, set_state = pickler.reduce_class_by_value(kind)
        if before is None:
            made = make, (*args[:-2], None, args[-1])  # without cloudpickle's own number of it
            skeleton = self._write(lambda: self._pickle(made))
            members = {**members, "__qualname__": kind.__qualname__}
        else:
            skeleton = pickle.dumps((spaces.imported_global, (MAIN, kind.__qualname__)), 5)
            for name, value in members.items():
                if before.get(name, self) is value:
                    self._walk(value)
                    attributes[name] = Attribute(spaces.AS_FORKED, b"", is_early=False)
            members = {name: value for name, value in members.items() if before.get(name, self) is not value}
        for name, value in members.items():
            if name not in _INCIDENTAL and type(value) is not MemberDescriptorType:
                try:
                    entry = self._write(functools.partial(self._attribute, value))
                except Unpicklable:
                    raise
                except Exception as error:
                    raise Unpicklable(f"attribute `{kind.__qualname__}.{name}` ({_type_name(value)})", error) from error
                is_early = isinstance(value, _CODE) or type(value) in _ATOMS
                attributes[name] = Attribute(entry.token, entry.data, is_early)
        self._classes[number] = Kind(skeleton, set_state, attributes)

    def _attribute(self, value: Any) -> Entry:
        kind = type(value)
        if kind in _ATOMS:
            return _entry(pickle.dumps(value, 5))
        if kind is FunctionType and id(value) not in self.functions and not _is_named(value):
            return self._function(value, apart=False)
        if isinstance(value, staticmethod | classmethod | property):
            self._stamp_parts(value)
            return _entry(self._pickle(value))
        if (key := self.refer_to_data(value)) is not None:
            return _entry(pickle.dumps(_Reduced(self.refer(key)), 5))
        entry = _entry(self._pickle(value, _DataPickler))
        self._remember(value, entry)
        return entry

    def _stamp_parts(self, value: Any) -> None:
        for part in (value.fget, value.fset, value.fdel) if isinstance(value, property) else (value.__func__,):
            stamp = _stamp(part) if type(part) is FunctionType else None
            if stamp is not None:
                self.stamps.append((part, stamp))
            elif part is not None:
                self.is_fixed = False

    def _walk(self, value: Any) -> None:
        """Have what a function or class reads looked at that need not be written itself."""
        function = getattr(value, "__func__", getattr(value, "__wrapped__", value))
        if isinstance(function, property):
            for part in (function.fget, function.fset, function.fdel):
                self._walk(part)
        elif type(function) is FunctionType:
            module = self.module_of(function.__globals__)
            stamp = _stamp(function)
            if stamp is None:
                self.is_fixed = False
            else:
                self.stamps.append((function, stamp))
            if module in self.dicts:
                self._queue.extend((module, name) for name in names_in(function.__code__))
        elif isinstance(value, type) and is_main(value):
            self._queue.append(value)

    def _source(self, filename: str) -> None:
        """Have the lines of a cell travel along, which are in no file."""
        if filename not in self._sources and not os.path.exists(filename):
            lines = linecache.getlines(filename)
            if lines and sum(map(len, lines)) < _LONGEST_SOURCE:
                self._sources[filename] = lines


def _name(module: str, names: dict[str, Any], functions: dict[int, Key], data: dict[int, Key]) -> None:
    """Note what the names of a module stand for, by id."""
    # Those of an interactive shell's own begin with "_", and change with every line.
    for name in sorted(list(names), key=lambda name: name[:1] == "_"):
        value = names.get(name)
        kind = type(value)
        if kind in _ATOMS or kind is ModuleType or kind is BuiltinFunctionType or name in _DUNDERS:
            continue
        if kind is FunctionType or kind is _CACHED:
            function = value if kind is FunctionType else getattr(value, "__wrapped__", None)
            if getattr(function, "__globals__", None) is names and (module == MAIN or not _is_named(value)):
                functions.setdefault(id(value), (module, name))
        elif not isinstance(value, type):
            data.setdefault(id(value), (module, name))


class _Reduced:
    """Is pickled as the given call."""

    def __init__(self, call: tuple[Any, ...]) -> None:
        self._call = call

    def __reduce__(self) -> Any:
        return self._call


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """Refers to namespaces, their functions and classes."""

    dispatch_table: ClassVar[Any] = ChainMap(
        {CodeType: lambda code: _reduce_code(code)}, cloudpickle.Pickler.dispatch_table
    )

    def __init__(self, buffer: Any, whole: _Dump, root: Any) -> None:
        if whole.table is not None:  # seen by what reads it once, when it is made
            self.dispatch_table = ChainMap(whole.table, _Pickler.dispatch_table)  # type: ignore[misc]
        super().__init__(buffer, 5)
        self._whole = whole
        self._root = root

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is FunctionType:
            return self.reduce_function(obj)
        if issubclass(kind, type):
            return self._reduce_class(obj)
        if kind is _CACHED:
            return self._reduce_cached(obj)
        if kind is functools.cached_property:
            return spaces.cached_property, (obj.func, obj.attrname)
        return NotImplemented

    def reduce_function(self, function: FunctionType) -> Any:
        whole = self._whole
        module = whole.module_of(function.__globals__)
        key = whole.functions.get(id(function))
        if key is not None and function is not self._root:
            return whole.refer(key)
        reduced = super().reducer_override(function)
        if reduced is NotImplemented or module is None:
            return reduced
        make, args, (state, slots), _, _, set_state = reduced
        whole.needs.codes[function.__code__] = None
        if module in whole.dicts:
            names: Any = spaces.globals_of, (module,)
            whole.needs.keys.update(dict.fromkeys((module, name) for name in names_in(function.__code__)))
        else:  # of a library, which workers import
            names = spaces.imported_globals, (module,)
        slots["__globals__"] = {}
        if slots["__defaults__"]:
            slots["__defaults__"] = tuple(map(self._by_reference, slots["__defaults__"]))
        if slots["__closure__"]:
            slots["__closure__"] = tuple(map(self._cell, slots["__closure__"]))
        return make, (args[0], _Reduced(names), *args[2:]), (state, slots), None, None, set_state

    def _by_reference(self, value: Any) -> Any:
        key = self._whole.refer_to_data(value)
        return value if key is None else _Reduced(self._whole.refer(key))

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
        return spaces.class_of, (_number(kind),)

    def reduce_class_by_value(self, kind: type) -> Any:
        make, args, (members, slots), *rest = super().reducer_override(kind)
        declared = vars(kind).get("__slots__")
        # Of a NamedTuple they are made with its fields.
        is_tuple = typing.NamedTuple in vars(kind).get("__orig_bases__", ())
        if declared is not None and isinstance(args[3], dict) and not is_tuple:
            args[3]["__slots__"] = declared
        members.pop("__slots__", None)
        return make, args, (members, slots), *rest

    def _reduce_cached(self, wrapper: Any) -> Any:
        whole = self._whole
        function = getattr(wrapper, "__wrapped__", None)
        if type(function) is not FunctionType or _is_named(wrapper):
            return NotImplemented
        whole.module_of(function.__globals__)
        key = whole.functions.get(id(wrapper))
        if key is not None and wrapper is not self._root:
            return whole.refer(key)
        attributes = {name: value for name, value in vars(wrapper).items() if name != "__wrapped__"}
        return spaces.cached, (function, wrapper.cache_parameters()), attributes, None, None, spaces.set_attributes


class _DataPickler(_Pickler):
    """Refers to data of the namespaces too."""

    def persistent_id(self, obj: Any) -> Any:
        if obj is self._root or id(obj) not in self._whole.data:
            return None
        return self._whole.refer_to_data(obj)


def names_in(code: CodeType) -> tuple[str, ...]:
    """The names that code may read or set in its module."""
    return tuple(_names_in(code))


@functools.lru_cache(maxsize=4096)
def _names_in(code: CodeType) -> dict[str, None]:
    import dis

    names = {step.argval: None for step in dis.get_instructions(code) if step.opname in _READS_GLOBAL}
    for constant in code.co_consts:
        if type(constant) is CodeType:
            names |= _names_in(constant)
    return names


def _entry(data: bytes, code: bytes | None = None) -> Entry:
    digest = blake2b(data, digest_size=16)
    if code is not None:
        digest.update(code)
    return Entry(digest.digest(), data, code)


def _stamp(function: FunctionType) -> tuple[Any, ...] | None:
    """All that a function is made of, if none of it can change in itself."""
    cells = function.__closure__ or ()
    try:
        contents = [cell.cell_contents for cell in cells]
    except ValueError:  # not bound yet
        return None
    annotations = function.__annotations__
    values = [*(function.__defaults__ or ()), *contents, *annotations.values()]
    if function.__dict__ or function.__kwdefaults__:
        return None
    if not all(type(value) in _ATOMS or isinstance(value, type) for value in values):
        return None
    names = function.__name__, function.__qualname__, function.__module__, function.__doc__
    return function.__code__, function.__globals__, *names, *annotations, *values


def _number(kind: type) -> str:
    """What identifies a class that travels by value, in each run of the same script."""
    known = _numbers.get(kind)
    if known is None:
        try:
            digest = keys.value_digest(kind).hex()
        except keys.Uncanonical:
            digest = uuid.uuid4().hex
        module = MAIN if is_main(kind) else kind.__module__
        stem = f"{module}.{kind.__qualname__}/{digest}"
        ordinal = _ordinals[stem] = _ordinals.get(stem, -1) + 1
        known = _numbers[kind] = f"{stem}/{ordinal}"
    return known


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What a callable, or the arguments of a call, is made of, as it is called."""
    if type(value) is tuple and len(value) == 2:
        args, kwargs = value
        yield from ((f"argument {place} ({_type_name(part)})", part) for place, part in enumerate(args, 1))
        yield from ((f"argument `{name}` ({_type_name(part)})", part) for name, part in kwargs.items())
    elif isinstance(value, functools.partial):
        yield from _parts((value.args, value.keywords))
        yield from _parts(value.func)
    elif type(value) is FunctionType:
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # not bound yet
                yield f"closure variable `{name}` ({_type_name(cell.cell_contents)})", cell.cell_contents
        for part in value.__defaults__ or ():
            yield f"a default of {value.__qualname__} ({_type_name(part)})", part
    elif type(value) is types.MethodType:
        yield f"the object of the method {value.__qualname__} ({_type_name(value.__self__)})", value.__self__


def _is_named(value: Any) -> bool:
    """Whether a function or class can be imported."""
    module = sys.modules.get(value.__module__) if not is_main(value) else None
    found: Any = module
    for name in value.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is value


def _is_imported(key: Key, value: Any) -> bool:
    return vars(sys.modules[key[0]]).get(key[1]) is value


def _is_flat(value: Any) -> bool:
    items: Iterator[Any] = iter(value)
    if type(value) is dict:
        return _ATOMS.issuperset(map(type, value)) and _ATOMS.issuperset(map(type, value.values()))
    return _ATOMS.issuperset(map(type, items))


def _type_name(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _reduce_code(code: CodeType) -> Any:
    """As cloudpickle does, but with the name of the file, so that tracebacks show its lines."""
    reduce = cloudpickle.Pickler.dispatch_table.get(CodeType) or copyreg.dispatch_table[CodeType]
    make, args = reduce(code)
    return make, tuple(code.co_filename if arg == "<dynamic-code>" else arg for arg in args)
