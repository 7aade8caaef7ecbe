"""Where what travels by value lives in a worker: one namespace for each submitting run.

A payload (see namespaces.py) is a *shell*, the callable or the arguments of a call, and what its
functions reach, each value in a pickle of its own with a *token*, a digest of that pickle:

    entries    the global names of modules      (module, name): token, pickle
    absent     names that are read there, and that the script does not have (any more)
    unnamed    words in texts of the code, which are no names to it but may be to eval(), say
    classes    by id, and their attributes      id: skeleton, {attribute: token, pickle}

A `Space` holds a dict for each module, its classes, and the token that last arrived under each name. A
value is set only if its token is another one than that. So what the script did not change does not undo
what the worker has set since, and what the script did change arrives. What a value holds by reference counts in its
token: a list of functions is made anew with a function in it. What arrived and is absent now is removed.

Calls of two versions of a function, with X = 1 and with X = 2, may come in turns. Therefore what arrived
with a function is kept as its `Record`, and `Space.apply()` sets the names of which another version
has arrived meanwhile, before the function is called.

The order of loading: functions are made, without their state; then methods and the like are set on
classes; then the state of functions, which may refer to any function or class; then data, which may
need any of these to be rebuilt; then the shell. What refers to a name that is not loaded yet loads it.
"""

import builtins
import functools
import importlib
import io
import linecache
import pickle
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import CellType, FunctionType, ModuleType
from typing import Any, NamedTuple

from ..values import loaders
from .arrived import AS_FORKED, Class, Names, Record
from .modules import MAIN, MAINS, code_of_script, find

SPACES = 64  # that a worker keeps at most
Key = tuple[str, str]  # module, name


class Payload(NamedTuple):
    """A pickle for a worker: a payload, or a plain one, which carries nothing of the script's."""

    data: bytes
    signature: bytes | None = None  # of all that it carries by value; None where it is a plain pickle
    sizes: Mapping[Key, int] = {}  # in bytes, of the globals that it carries


class Entry(NamedTuple):
    """The value of a global name. What a function is made from is apart from its state."""

    token: bytes
    data: bytes
    code: bytes | None = None  # of a function: the pickle of its code and the number of its cells


class Attribute(NamedTuple):
    """An attribute of a class."""

    token: bytes
    data: bytes
    is_early: bool  # whether instances may need it to be rebuilt, and it needs none itself


class Kind(NamedTuple):
    """A class: (function, arguments) as a pickle that makes it without attributes, and these."""

    skeleton: bytes
    set_state: Any
    attributes: dict[str, Attribute]
    tracker: str | None = None  # cloudpickle's tracker id of it, by which who wrote it knows it again


class Space:
    """See the module's docstring."""

    def __init__(self, is_forked: bool = False) -> None:
        self.epoch = 0
        """Grows whenever a token changes, or an order."""
        self.main = sys.modules[MAIN] if is_forked else ModuleType(MAIN)
        self.record: Record | None = None
        """Of the payload that was loaded last."""
        self.classes: dict[str, Class] = {}
        self.has_imported = is_forked
        """Whether the script has run here."""
        self.is_forked = is_forked
        self._modules = {MAIN: Names(self.main.__dict__, is_forked)}
        self.main.__dict__.setdefault("__builtins__", builtins)

    def keep_arrived(self) -> None:
        """Have what has arrived so far stay, whatever function is called."""
        for names in self._modules.values():
            names.kept = {*names.tokens}

    def take_record(self) -> Record | None:
        """Return the record of the payload that was loaded last, if it was not taken before."""
        record, self.record = self.record, None
        return record

    def names_of(self, module: str) -> Names:
        """Return the names that stand for those of a module."""
        found = self._modules.get(module)
        if found is None:
            is_there = self.is_forked and module in sys.modules
            names = vars(sys.modules[module]) if is_there else {"__name__": module, "__builtins__": builtins}
            found = self._modules[module] = Names(names, is_there)
        return found

    def set(self, owner: Names, values: Mapping[str, tuple[bytes, Any]]) -> None:
        """Take in values of a module or class, as (token, value) each."""
        owner.set(values)
        self.epoch += 1

    def put_in_order(self, kind: Class, attributes: Collection[str]) -> None:
        """Have the attributes of a class be in this order."""
        self.epoch += kind.put_in_order(attributes)

    def apply(self, record: Record) -> None:
        """Have the names as the function of the record needs them, where another version has arrived meanwhile."""
        if record.epoch == self.epoch:
            return
        changed: dict[Names, dict[str, tuple[bytes, Any]]] = {}
        for owner, name, token, value in record.items:
            if owner.tokens.get(name, AS_FORKED) != token:
                changed.setdefault(owner, {})[name] = token, value if token else owner.forked.get(name)
        for owner, names in record.absent:
            if removed := owner.remove(names):
                changed.setdefault(owner, {}).update(removed)
        for owner, names in record.unnamed:
            if removed := owner.hide(names):
                changed.setdefault(owner, {}).update(removed)
        for kind, attributes in record.classes:
            if removed := kind.remove_others(attributes):
                changed.setdefault(kind, {}).update(removed)
        for owner, values in changed.items():
            self.set(owner, values)
        for kind, attributes in record.classes:
            self.put_in_order(kind, attributes)
        record.epoch = self.epoch

    def enter(self) -> None:
        """Have the script's names be found in this space from now on, in this thread."""
        _here.space = self
        if not self.is_forked and sys.modules[MAIN] is not self.main:
            sys.modules.update(dict.fromkeys(MAINS, self.main))

    def import_script(self, how: str, what: str) -> None:
        """Run the script here, by "path" or by "name", with its __name__ not "__main__".

        What has arrived before stays. An unguarded script that makes an executor is told so there, by RuntimeError.
        """
        from multiprocessing import process

        self.has_imported = True
        code, more = code_of_script(how, what)
        main = self.names_of(MAIN)
        kept = {name: main.names[name] for name in main.tokens if name in main.names}
        self.main.__dict__.update(more, __name__="__mp_main__")
        current: Any = process.current_process()
        current._inheriting = True
        try:
            exec(code, self.main.__dict__)
        finally:
            del current._inheriting
            self.main.__dict__.update(kept)


class _Here(threading.local):
    space: Space | None = None  # where this thread loads payloads; none: each in one of its own
    loading: "_Loading | None" = None  # the payload that this thread is loading


_here = _Here()
trackers: "weakref.WeakKeyDictionary[type, str]" = weakref.WeakKeyDictionary()
"""cloudpickle's tracker ids of classes that have arrived, for their way back."""
_spaces: OrderedDict[int, Space] = OrderedDict()


def space_of(run: int, is_forked: bool = False) -> Space:
    """Return the space of a run; `is_forked`: the one of the process that this one was forked from."""
    found = _spaces.get(run)
    if found is None:
        if len(_spaces) == SPACES:
            _spaces.popitem(last=False)
        found = _spaces[run] = Space(is_forked)
    _spaces.move_to_end(run)
    return found


def use(space: Space | None) -> Space | None:
    """Have payloads of this thread be loaded in a space, or each in one of its own; return what was said before.

    The script's names are found by what is loaded there alone: `__main__` stays what it is, as others may need it.
    """
    before, _here.space = _here.space, space
    return before


@contextmanager
def visiting(space: Space) -> Iterator[Space]:
    """Have the script's names be found in a space for a while, in a process that has a script of its own."""
    before, mains = _here.space, {name: sys.modules[name] for name in MAINS if name in sys.modules}
    space.enter()
    try:
        yield space
    finally:
        _here.space = before
        for name in MAINS:
            sys.modules.pop(name, None)
        sys.modules.update(mains)


class _Loading:
    """The loading of one payload."""

    def __init__(
        self,
        space: Space,
        entries: Mapping[Key, Entry],
        classes: Mapping[str, Kind],
        absent: Mapping[str, Sequence[str]],
        unnamed: Mapping[str, Sequence[str]],
    ) -> None:
        self.space = space
        self._absent = [(space.names_of(module), names) for module, names in absent.items()]
        self._unnamed = [(space.names_of(module), names) for module, names in unnamed.items()]
        self._entries = {key: entry for key, entry in entries.items() if entry.token or space.is_forked}
        self._classes = classes
        self._fresh = {
            key: entry
            for key, entry in self._entries.items()
            if space.names_of(key[0]).tokens.get(key[1], AS_FORKED) != entry.token
        }
        self._made: dict[Key, None] = {}  # functions

    def run(self) -> None:
        """Load all but the shell."""
        for module, names in self._absent:
            if removed := module.remove(names):
                self.space.set(module, removed)
        for module, names in self._unnamed:
            if removed := module.hide(names):
                self.space.set(module, removed)
        for key, entry in self._fresh.items():
            if entry.code is not None:
                self._make(key, entry.code)
        for class_id in self._classes:
            self.class_of(class_id)
        for class_id in self._classes:
            self._set_attributes(class_id, is_early=True)
        for key in self._made:
            self._finish(key)
        for class_id in self._classes:
            self._set_attributes(class_id, is_early=False)
        for key in list(self._fresh):
            self.value(key)
        for class_id, kind in self._classes.items():
            known = self.space.classes[class_id]
            if removed := known.remove_others(kind.attributes):
                self.space.set(known, removed)
            self.space.put_in_order(known, kind.attributes)

    def _make(self, key: Key, code: bytes) -> None:
        made, cells = pickle.loads(code)
        module, name = self.space.names_of(key[0]), key[1]
        module.keep_forked(name)
        closure = tuple(CellType() for _ in range(cells)) or None
        module.names[name] = FunctionType(made, module.names, made.co_name, None, closure)
        self._made[key] = None

    def _finish(self, key: Key) -> None:
        entry = self._fresh[key]
        module, name = self.space.names_of(key[0]), key[1]
        function = module.names[name]
        set_state, state = _load(entry.data)
        set_state(function, state)
        del self._fresh[key]
        self.space.set(module, {name: (entry.token, function)})

    def value(self, key: Key) -> Any:
        """Return what a name stands for."""
        module, name = self.space.names_of(key[0]), key[1]
        entry = self._fresh.get(key)
        if entry is not None and key not in self._made:  # of a function the state comes later
            value = _load(entry.data) if entry.token else module.forked.get(name)
            self._fresh.pop(key, None)
            self.space.set(module, {name: (entry.token, value)})
            return value
        if name in module.names:
            return module.names[name]
        if name in module.arrived:  # a call has deleted it
            return module.arrived[name]
        raise NotInScript(f"{key[0]} has no {name} here")

    def class_of(self, class_id: str) -> Class:
        """Return a class, which may have no attributes yet."""
        known = self.space.classes.get(class_id)
        if known is None:
            kind = self._classes[class_id]
            known = self._imported(class_id, kind)
            if known is None:
                make, args = _load(kind.skeleton)
                if make.__name__ == "_make_skeleton_enum":  # which makes the members, by what the bases say
                    for base, of_base in list(self.space.classes.items()):
                        if base in self._classes and of_base.kind in args[0]:
                            self._set_attributes(base, is_early=True)
                known = self.space.classes.get(class_id)  # its bases may have needed it
            if known is None:
                with self._silent_bases():
                    known = Class(make(*args), kind.set_state, self.space.is_forked)
                if kind.tracker is not None:
                    trackers[known.kind] = kind.tracker
            self.space.classes[class_id] = known
        return known

    @contextmanager
    def _silent_bases(self) -> Iterator[None]:
        """Have no __init_subclass__ run again for a class for which it has run in the script."""
        hooks = [
            (known.kind, vars(known.kind)["__init_subclass__"])
            for known in self.space.classes.values()
            if "__init_subclass__" in vars(known.kind)
        ]
        for kind, _ in hooks:
            del kind.__init_subclass__
        try:
            yield
        finally:
            for kind, hook in hooks:
                kind.__init_subclass__ = hook

    def _imported(self, class_id: str, kind: Kind) -> Class | None:
        """Return a class as the import of the script has made it, if that was done; then its code is the same."""
        if not self.space.has_imported or self.space.is_forked:
            return None
        found = find(self.space.main, class_id.partition("/")[0].removeprefix(f"{MAIN}."))
        if not isinstance(found, type) or found.__module__ != "__mp_main__":
            return None
        known = Class(found, kind.set_state, is_forked=False)
        for name, attribute in kind.attributes.items():
            if attribute.is_early:
                known.tokens[name], known.arrived[name] = attribute.token, vars(found).get(name)
        return known

    def _set_attributes(self, class_id: str, is_early: bool) -> None:
        known = self.class_of(class_id)
        values = {
            name: (attribute.token, _load(attribute.data) if attribute.token else known.forked.get(name))
            for name, attribute in self._classes[class_id].attributes.items()
            if attribute.is_early is is_early and known.tokens.get(name, AS_FORKED) != attribute.token
        }
        if values:
            self.space.set(known, values)

    def record(self) -> Record:
        """Return what is needed to have it so again."""
        space = self.space
        wanted: list[tuple[Names, str, bytes]] = [
            (space.names_of(module), name, entry.token) for (module, name), entry in self._entries.items()
        ]
        wanted += [
            (space.classes[class_id], name, attribute.token)
            for class_id, kind in self._classes.items()
            for name, attribute in kind.attributes.items()
        ]
        items = [(owner, name, token, owner.arrived.get(name)) for owner, name, token in wanted]
        classes = [(space.classes[class_id], kind.attributes) for class_id, kind in self._classes.items()]
        return Record(space, space.epoch, items, self._absent, self._unnamed, classes)


def load(
    shell: bytes,
    entries: Mapping[Key, Entry],
    classes: Mapping[str, Kind],
    headers: Mapping[str, Mapping[str, Any]],
    sources: Mapping[str, Sequence[str]],
    absent: Mapping[str, Sequence[str]] | None = None,  # older stores have payloads without these
    unnamed: Mapping[str, Sequence[str]] | None = None,
) -> Any:
    """Return the callable, or the arguments, of a payload."""
    space = _here.space or Space()
    space.record = Record(space)  # should it fail
    for name, lines in sources.items():
        linecache.cache[name] = sum(map(len, lines)), None, list(lines), name
    for module, header in headers.items():
        names = space.names_of(module).names
        for name, value in header.items():
            names.setdefault(name, value)
    before, _here.loading = _here.loading, _Loading(space, entries, classes, absent or {}, unnamed or {})
    try:
        _here.loading.run()
        loaded = _load(shell)
        space.record = _here.loading.record()
    finally:
        _here.loading = before
    return loaded


class NotInScript(AttributeError):
    """What is to be loaded is the script's, which is to be imported for it."""


def by_name(data: bytes, why: str) -> Any:
    """Return what a pickle names. Raise NotInScript, with the reason why it did not travel by value."""
    try:
        return pickle.loads(data)
    except AttributeError as error:
        raise NotInScript(f"{why}, so the worker has to import the script ({error})") from error


class _Loader(pickle.Unpickler):
    def persistent_load(self, pid: Any) -> Any:
        return global_of(*pid)


def _load(data: bytes) -> Any:
    return _Loader(io.BytesIO(data)).load()


LOADER = "space"
loaders[LOADER] = lambda data, buffers: _Loader(io.BytesIO(data), buffers=buffers).load()


# What stands in the pickles of a payload.


def global_of(module: str, name: str) -> Any:
    """Return what a global name stands for."""
    assert _here.loading is not None
    return _here.loading.value((module, name))


def globals_of(module: str) -> dict[str, Any]:
    """Return the dict of a module's names."""
    assert _here.loading is not None
    return _here.loading.space.names_of(module).names


def imported_globals(module: str) -> dict[str, Any]:
    """Import a module of a library and return the dict of its names."""
    return importlib.import_module(module).__dict__


def imported_global(module: str, name: str) -> Any:
    """Import a module and return what it has under a name."""
    names = imported_globals(module)
    if name not in names:
        raise NotInScript(f"{module} has no {name} here")
    return names[name]


def class_of(class_id: str) -> Any:
    """Return a class that travels by value."""
    assert _here.loading is not None
    return _here.loading.class_of(class_id).kind


def cached(function: Any, parameters: dict[str, Any]) -> Any:
    """Return a function with a cache of its own, as functools.lru_cache makes one."""
    return functools.lru_cache(**parameters)(function)


def set_attributes(made: Any, attributes: dict[str, Any]) -> None:
    """Give what `cached` made its attributes."""
    made.__dict__.update(attributes)


def cached_property(function: Any, name: str | None) -> Any:
    """Return a functools.cached_property, which keeps a lock in some versions of Python."""
    made = functools.cached_property(function)
    made.attrname = name
    return made
