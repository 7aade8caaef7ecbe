"""How functions, classes and arguments of the script are written: as payloads, which spaces.py loads.

cloudpickle writes a function with copies of the globals that it reads. So two functions had two copies of
one list, and what an initializer set was seen by nobody. Here a function refers to the namespace of its
module, and what it reads there is written beside it, each name by itself. What *is* a global, of the
functions, classes and data that are reached, is written as a reference to it.

A function, or a class, is written anew only if something of it has changed; what is mutable always is.

With fork, what was there when the workers' ancestor was forked is in every worker already. A `Snapshot`
knows what that is, and of all that is the same object still, nothing is written but its name.
"""

import functools
import io
import linecache
import os
import pickle
import sys
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from types import FunctionType, MemberDescriptorType
from typing import Any, NamedTuple, TypeVar

from .. import values
from ..hashes import blake2b
from ..value_files import names_in
from . import memory, spaces
from .arrived import AS_FORKED
from .memory import ATOMS
from .modules import CONTAINERS, MAIN, MAINS, Reduced, Snapshot, is_main, is_own, mentions, namesake, type_name, wrapped
from .pickling import (
    HEADER,
    DataPickler,
    Needs,
    ScriptPickler,
    Unpicklable,
    class_id_of,
    entry_of,
    is_flat,
    is_same,
    look,
    name_all,
    parts_of,
    stamp_of,
)
from .spaces import Attribute, Entry, Key, Kind, Payload

_T = TypeVar("_T")
_CODE = (FunctionType, staticmethod, classmethod, property, functools.cached_property)
_INCIDENTAL = frozenset({"__slotnames__", "__weakref__", "__dict__"})
_LONGEST_SOURCE = 1 << 18
_KEPT = 4096  # functions whose pickles are remembered
_LARGE = 1 << 18  # bytes


def dump(value: Any, snapshot: Snapshot | None = None, table: Mapping[type, Any] | None = None) -> Payload:
    """Return a callable, or (args, kwargs), as a payload. Raise Unpicklable if that cannot be.

    `table` has further ways to reduce objects, as copyreg.dispatch_table.
    """
    known = memory.recall(value, snapshot) if table is None else None
    if known is not None:
        return known
    whole = _Dump(snapshot, table)
    payload = whole.run(value)
    if table is None and not names_in(payload.data):  # else it is looked each time whether its files are still there
        memory.keep(value, snapshot, payload, whole.reads, look)
    return payload


class _Written(NamedTuple):
    """A function that was written, and what it was then."""

    function: Any  # a weak reference
    stamp: tuple[Any, ...]
    modules: int
    entry: Entry
    needs: Needs


_AS_FORKED = Entry(AS_FORKED, b"")
_functions: dict[tuple[int, bool], _Written] = {}
_namings: dict[str, tuple[Any, dict[int, Key], dict[int, Key]]] = {}
_atoms: dict[Key, tuple[Any, Entry]] = {}
_generations: dict[Key, "_Generation"] = {}


class _Generation(NamedTuple):
    """What a global was when it was written last, and how many others there were before."""

    value: Any  # or a weak reference; None of what is large and has no weak references
    address: int
    token: bytes
    number: int

    def is_of(self, value: Any) -> bool:
        """Return whether it is of this very object."""
        known = self.value() if isinstance(self.value, weakref.ref) else self.value
        return self.address == id(value) and (known is value or self.value is None)


def _of_its_generation(key: Key, value: Any, entry: Entry) -> Entry:
    """Return an entry whose token is another one whenever the script has set or changed the value, if only to an equal.

    A worker may have changed what it was given: a cache, a counter, the state of a generator of random numbers. It is
    to begin anew with the value if the cell that sets it is run again, or if it is set back to what it was.
    """
    known = _generations.get(key)
    number = 0
    if known is not None:
        number = known.number + (known.token != entry.token or not known.is_of(value))
    if known is None or number != known.number:
        kept = None
        try:
            kept = weakref.ref(value)
        except TypeError:  # a list, say: only small ones are kept from being freed
            kept = value if len(entry.data) < _LARGE >> 4 else None
        _generations[key] = _Generation(kept, id(value), entry.token, number)
    return entry._replace(token=_joined(entry.token, number.to_bytes(8, "big"))) if number else entry


def _joined(token: bytes, other: bytes) -> bytes:
    return blake2b(token + other, digest_size=16).digest() if token else token


class _Dump:
    """The writing of one payload."""

    def __init__(self, snapshot: Snapshot | None, table: Mapping[type, Any] | None) -> None:
        self.table = table
        self.functions: dict[int, Key] = {}  # the globals that are referred to, by id
        self.data: dict[int, Key] = {}
        self.needs = Needs()  # of the pickle that is being written
        self.dicts: dict[str, dict[str, Any]] = {}  # of the modules whose names are referred to
        self.reads = memory.Reads()
        self.snapshot = snapshot
        self._entries: dict[Key, Entry] = {}
        self._absent: dict[str, list[str]] = {}  # by module, the names that are read and are not there
        self._texts: dict[Key, None] = {}  # names that only texts of its code may name, or nothing does
        self._held: dict[Any, dict[Key, None]] = {}  # by key, or by class and attribute: what a value holds itself
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
        self._tell_of_held()
        unnamed: dict[str, list[str]] = {}
        for module, name in self._texts.keys() - self._seen:
            unnamed.setdefault(module, []).append(name)
        parts = shell, self._entries, self._classes, self._headers, self._sources, self._absent, unnamed
        whole = spaces.load, parts
        sizes = {key: values.size_with_files(entry.data) for key, entry in self._entries.items()}
        return Payload(pickle.dumps(Reduced(*whole), 5), self._signature(shell), sizes)

    def _tell_of_held(self) -> None:
        """Have the token of a value tell of all that it holds, which stands in its pickle by name.

        Where `STEPS = [clean]` and only `clean` has changed, a worker has to make that list anew, too.
        """
        told: dict[Any, bytes] = {}
        for place, held in self._held.items():
            found, left = set[Key](), [*held]
            while left:
                key = left.pop()
                if key not in found and key in self._entries:
                    found.add(key)
                    left += self._held.get(key, ())
            if found:
                digest = blake2b(digest_size=16)
                for key in sorted(found):
                    digest.update(repr(key).encode() + self._entries[key].token)
                told[place] = digest.digest()
        for place, token in told.items():
            if place in self._entries:
                entry = self._entries[place]
                self._entries[place] = entry._replace(token=_joined(entry.token, token))
            else:
                class_id, name = place
                attributes = self._classes[class_id].attributes
                attributes[name] = attributes[name]._replace(token=_joined(attributes[name].token, token))

    def _shell(self, value: Any) -> bytes:
        self.module_of(sys.modules[MAIN].__dict__)
        try:
            if type(value) is FunctionType and id(value) not in self.functions:
                return self._function(value, apart=False).data
            return self._pickle(value)
        except Unpicklable:
            raise
        except Exception as error:
            blamed = next((what for what, part in parts_of(value) if not self._can_pickle(part)), None)
            raise Unpicklable(blamed or f"a {type_name(value)}", error) from error

    def _can_pickle(self, value: Any) -> bool:
        try:
            self._pickle(value)
        except Exception:  # noqa: BLE001 - whatever a __reduce__ of the user's raises
            return False
        return True

    def _signature(self, shell: bytes) -> bytes:
        digest = blake2b(shell, digest_size=16)
        for key, entry in self._entries.items():
            digest.update(repr(key).encode() + entry.token)
        for class_id, kind in self._classes.items():
            digest.update(class_id.encode())
            for name, attribute in kind.attributes.items():
                digest.update(repr(name).encode() + attribute.token)
        return digest.digest()

    # references

    def module_of(self, names: dict[str, Any]) -> str | None:
        """Return the module whose dict it is."""
        if id(names) not in self._modules:
            name = names.get("__name__")
            module = sys.modules.get(name) if isinstance(name, str) else None
            known = None if module is None or vars(module) is not names or name is None else name
            if known in MAINS:
                known = MAIN
            self._modules[id(names)] = known
            if known is not None and (known == MAIN or is_own(known)):
                self.reads.note_module(str(name), names)
                self._meet(known, names)
        return self._modules[id(names)]

    def _meet(self, module: str, names: dict[str, Any]) -> None:
        """Learn what the names of a module stand for."""
        self.dicts[module] = names
        self._headers[module] = {name: names[name] for name in HEADER if name in names}
        if module == MAIN:
            self._headers[module]["__name__"] = MAIN
        for name in HEADER:
            self.reads.note_name(names, name)
        there = [*names.values()]
        looked = [*names], [*map(id, there)], [*map(type, there)]  # in a form that does not keep it alive
        known = _namings.get(module)
        if known is None or known[0] != looked:
            known = _namings[module] = looked, {}, {}
            name_all(module, names, known[1], known[2])
        self.functions |= known[1]
        self.data |= known[2]

    def refer(self, key: Key) -> Any:
        """Return what stands in a pickle for a global."""
        self.needs.keys[key] = self.needs.held[key] = None
        return spaces.global_of, key

    def refer_to_data(self, value: Any) -> Key | None:
        """Return the name under which a value is to be found, if it is to be."""
        key = self.data.get(id(value))
        if key is None or key in self._under_way:
            return None
        if self._under_way:
            self.ensure(key)  # before what refers to it; should it refer to that, in its turn, it has it by value
        self.needs.keys[key] = self.needs.held[key] = None
        return key

    # writing

    def ensure(self, key: Key) -> None:
        """Write the value of a global, unless it is written."""
        names = self.dicts[key[0]]
        if key in self._seen:
            return
        self.reads.note_name(names, key[1])
        self._seen.add(key)
        if key[1] not in names:
            self._absent.setdefault(key[0], []).append(key[1])
            return
        value = names[key[1]]
        if self.snapshot is not None and self.snapshot.holds(key, value):
            self._walk(value)
            self._entries[key] = _AS_FORKED
            return
        try:
            entry = self._write(lambda: self._entry(key, value), key)
            self._entries[key] = entry if type(value) in ATOMS else _of_its_generation(key, value, entry)
        except Unpicklable:
            raise
        except Exception as error:
            if key[0] != MAIN and vars(sys.modules[key[0]]).get(key[1]) is value:
                self._entries[key] = entry_of(pickle.dumps(Reduced(spaces.imported_global, key), 5))
                return
            raise Unpicklable(f"global `{key[1]}` ({type_name(value)})", error) from error

    def _entry(self, key: Key, value: Any) -> Entry:
        kind = type(value)
        if kind in ATOMS:
            known = _atoms.get(key)
            if known is not None and known[0] is value:
                return known[1]
            entry = entry_of(values.dumps(value))
            if len(entry.data) < _LARGE and not values.is_reference(entry.data):
                _atoms[key] = value, entry
            return entry
        at = self.functions.get(id(value), self.data.get(id(value), key))
        if at != key:  # another name of it
            return entry_of(pickle.dumps(Reduced(*self.refer(at)), 5))
        if kind is FunctionType and value.__globals__ is self.dicts[key[0]] and id(value) in self.functions:
            return self._function(value, apart=True)
        self.reads.note_data(value)
        if kind in CONTAINERS and is_flat(value):
            return entry_of(values.dumps(value))
        self._under_way.add(key)
        try:
            entry = entry_of(self._pickle(value, DataPickler, value))
        finally:
            self._under_way.discard(key)
        return entry

    def _write(self, write: Callable[[], _T], place: Any = None) -> _T:
        """Write something; what it needs is written later. Note what it holds, if it has a place in the payload."""
        written, needs = self._collect(write)
        if place is not None and needs.held:
            self._held[place] = needs.held
        for key in needs.keys:
            if key not in self._seen:
                self._queue.append(key)
        self._texts |= needs.texts
        self._queue.extend(needs.classes)
        for code in needs.codes:
            self._source(code.co_filename)
        return written

    def _collect(self, write: Callable[[], _T]) -> tuple[_T, Needs]:
        """Write something; return it and what it needs."""
        outer, self.needs = self.needs, Needs()
        try:
            return write(), self.needs
        finally:
            self.needs = outer

    def _pickle(self, value: Any, kind: type[ScriptPickler] = ScriptPickler, root: Any = None) -> bytes:
        """Pickle a value; `root` is the global that it is, and so is written by value."""
        buffer = io.BytesIO()
        buffers: list[memoryview] = []
        take = None if values.here.writer is None else values.collector(buffers)
        kind(buffer, self, root, take).dump(value)
        return values.finish(buffer.getvalue(), buffers, spaces.LOADER)

    def _function(self, function: FunctionType, apart: bool) -> Entry:
        """Write a function by value; `apart`: its code apart from its state."""
        self.reads.note_function(function)
        stamp, place = stamp_of(function), (id(function), apart)
        known = _functions.get(place)
        if (
            known is not None
            and known.function() is function
            and known.modules == len(sys.modules)  # its submodules may have come
            and is_same(stamp, known.stamp)
        ):
            self.module_of(function.__globals__)
            self.needs.add(known.needs)
            return known.entry
        entry, needs = self._collect(lambda: self._function_entry(function, apart))
        self.needs.add(needs)
        if stamp is not None and not values.is_reference(entry.data):
            if len(_functions) >= _KEPT:
                _functions.clear()
            _functions[place] = _Written(weakref.ref(function), stamp, len(sys.modules), entry, needs)
        return entry

    def _function_entry(self, function: FunctionType, apart: bool) -> Entry:
        if not apart:
            return entry_of(self._pickle(function, root=function))
        pickler = ScriptPickler(io.BytesIO(), self, function)
        _, args, state, _, _, set_state = pickler.reduce_function(function)
        return entry_of(self._pickle((set_state, state)), self._pickle((args[0], len(args[0].co_freevars))))

    def _class(self, kind: type) -> None:
        class_id = class_id_of(kind)
        if class_id in self._seen:
            return
        self._seen.add(class_id)
        self.reads.note_class(kind)
        attributes: dict[str, Attribute] = {}
        tracker = None
        before = self.snapshot.attributes(kind) if self.snapshot is not None else None
        pickler = ScriptPickler(io.BytesIO(), self, kind)
        make, args, (members, _), _, _, set_state = pickler.reduce_class_by_value(kind)
        if before is None:
            tracker = args[-2]
            made = make, (*args[:-2], None, args[-1])  # cloudpickle's tracker is of one process, and so of no use there
            skeleton = self._write(lambda: self._pickle(made))
            members = {**members, "__qualname__": kind.__qualname__}
        else:
            skeleton = pickle.dumps((spaces.imported_global, (MAIN, kind.__qualname__)), 5)
        for name, value in members.items():
            if before is not None and before.get(name, self) is value:
                self._walk(value)
                attributes[name] = Attribute(AS_FORKED, b"", is_early=False)
            elif name not in _INCIDENTAL and type(value) is not MemberDescriptorType:
                try:
                    entry = self._write(functools.partial(self._attribute, value), (class_id, name))
                except Unpicklable:
                    raise
                except Exception as error:
                    raise Unpicklable(f"attribute `{kind.__qualname__}.{name}` ({type_name(value)})", error) from error
                is_early = isinstance(value, _CODE) or type(value) in ATOMS
                attributes[name] = Attribute(entry.token, entry.data, is_early)
        self._classes[class_id] = Kind(skeleton, set_state, attributes, tracker)

    def _attribute(self, value: Any) -> Entry:
        kind = type(value)
        if kind in ATOMS:
            return entry_of(values.dumps(value))
        if kind is FunctionType and id(value) not in self.functions and namesake(value) is not value:
            return self._function(value, apart=False)
        if isinstance(value, staticmethod | classmethod | property):
            return entry_of(self._pickle(value))
        if (key := self.refer_to_data(value)) is not None:
            return entry_of(pickle.dumps(Reduced(*self.refer(key)), 5))
        if not isinstance(value, functools.cached_property):
            self.reads.note_data(value)
        return entry_of(self._pickle(value, DataPickler))

    def _walk(self, value: Any) -> None:
        """Look at what a function or class reads that need not be written itself."""
        function = getattr(value, "__func__", getattr(value, "__wrapped__", value))
        if isinstance(function, property | functools.cached_property):
            for part in wrapped(function) or ():
                self._walk(part)
        elif type(function) is FunctionType:
            module = self.module_of(function.__globals__)
            self.reads.note_function(function)
            if module in self.dicts:
                self._queue.extend((module, name) for name in mentions(function.__code__).names)
        elif isinstance(value, type) and is_main(value):
            self._queue.append(value)

    def _source(self, filename: str) -> None:
        """Let the lines of a cell travel along, which are in no file."""
        if filename not in self._sources and not os.path.exists(filename):
            lines = linecache.getlines(filename)
            if lines and sum(map(len, lines)) < _LONGEST_SOURCE:
                self._sources[filename] = lines
