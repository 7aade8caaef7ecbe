"""Which version of its code a function is, so that what goes by name is what runs.

A function of a module of the user's own goes to a worker as its name, with a digest of the byte code that it
reaches: its own, and that of the functions and classes of such modules that it names, as globals, as attributes
of a module or in one that it imports itself, and they in turn. Docstrings and line numbers are not in it. A worker
compares it with what it has imported, and says `CodeChanged` where they differ. Functions and classes that
arguments hold are compared likewise.

Data (constants, tables, attributes of classes, defaults, closures) is in workers what calls have made of it. It is
compared only if the file of the module is another one than the worker has imported, as after a reload.

All of it, with its data, is part of what identifies a call: an edit three modules away has the calls run again that
reach it. Data is what it was when the function was first submitted; objects of libraries count by their type, and a
module that is imported only when the function is called by its text.

Byte code says nothing between two versions of Python; there the texts of the files are compared.
"""

import contextlib
import functools
import importlib
import importlib.util
import itertools
import logging
import os
import pickle
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from operator import attrgetter, is_
from types import CellType, CodeType, FunctionType, MappingProxyType, MethodType, ModuleType, NoneType
from typing import TYPE_CHECKING, Any

from ..hashes import hash_of
from .byte_code import MADE, code_digest
from .in_place import Constants, look_at_functions
from .modules import (
    CACHED,
    CONTAINERS,
    MAIN,
    Reduced,
    file_of,
    is_called,
    is_main,
    is_own,
    mentions,
    note_texts,
    text_digest,
    text_of_unloaded,
    wrapped,
)

if TYPE_CHECKING:
    from .digest import Piece

_PYTHON = sys.implementation.cache_tag
_METHODS = (functools.partialmethod, functools.singledispatchmethod)
_CODE = (FunctionType, staticmethod, classmethod, property, functools.cached_property, type, *_METHODS)
_CALLED = (FunctionType, MethodType, functools.partial, type)
_PLAIN_KINDS = frozenset({str, bytes, int, float, bool, NoneType, *CONTAINERS})
_LOOKED_INTO = 10_000  # items of a container, for functions among them
_GIVES_NAMES = frozenset({"__getattr__"})  # of a module, for those that it has not
_FEW = 200  # functions, which are looked at for each call
_LOOK_EVERY_S = 0.1  # at more
_log = logging.getLogger("omniq_executor")
_code_of = attrgetter("__code__")


class Version:
    """The code that functions, classes and what they are part of reach."""

    def __init__(self, *roots: Any, own: Collection[str] | None = None) -> None:
        """`own` are the modules that count; by default those that are neither installed nor of Python.

        What data holds is looked at when `values` are asked for. Workers compare without: theirs is what calls have
        made of it.
        """
        self._items: dict[str, set[tuple[str, bytes]]] = {}  # by module, its functions and the digests of their code
        self._values: dict[str, dict[str, list[Any]]] = {}  # by module, its data, by what that is called
        self._unloaded: set[str] = set()  # modules that functions import when they are called
        self._is_own: Callable[[str], bool] = is_own if own is None else own.__contains__
        self._names: dict[int, tuple[Mapping[str, Any], dict[str, Any]]] = {}  # names that were read, and their values
        self._loads: list[tuple[Mapping[str, Any], Any]] = []  # names of modules, and what each load makes anew
        self._look_at = 0.0  # when to look at names again
        self.said: dict[str, bytes] = {}  # goes along with calls that name the roots, by the path of the function
        self._constants = Constants() if own is None else None
        self._functions: list[FunctionType] = []
        self._codes: list[CodeType] = []
        self._seen: set[int] = set()
        self._read: dict[int, dict[str, ModuleType | None]] = {}  # by names, which were read, with those of modules
        self._with_data = False
        self._data: list[Any] = []  # to look at when data counts
        self._queue: list[Any] = [*roots]
        self._visit_all()

    def _visit_all(self) -> None:
        while self._queue:
            self._visit(self._queue.pop())

    def still_holds(self) -> bool:
        """Return whether it is as it was: whether modules were loaded anew, and what stands under each name now.

        It is asked for each call, and in a project of 200 modules there are thousands of names. Where there are many
        they are looked at every tenth of a second only, so that what is put in their place is seen that much later.
        """
        for names, spec in self._loads:
            if names.get("__spec__") is not spec:
                return False
        moment = time.monotonic()
        if moment < self._look_at:
            return True
        holds = all(map(is_, map(_code_of, self._functions), self._codes)) and all(
            all(map(is_, map(names.get, known), known.values())) for names, known in self._names.values()
        )
        if not holds:
            look_at_functions(self._functions, self._codes)
        elif self._constants is not None and not self._constants.are_same():
            holds = not self._constants.are_patched()
        if holds and len(self._functions) > _FEW:
            self._look_at = moment + _LOOK_EVERY_S
        return holds

    @functools.cached_property
    def digests(self) -> dict[str, bytes]:
        """Return what stands for the code of each module, without what its data holds."""
        return self._hashed()

    def _hashed(self) -> dict[str, bytes]:
        return {module: hash_of(repr(sorted(items)).encode()) for module, items in self._items.items()}

    @functools.cached_property
    def data(self) -> dict[str, dict[str, bytes]]:
        """Return what stands for each piece of data of each module, as far as it has a stable form."""
        from .digest import data_digests  # workers need it seldom

        self.digests  # noqa: B018  # before there is more
        self._with_data = True
        self._queue, self._data = self._data, []
        self._visit_all()
        return {
            module: data_digests(values, functools.partial(_leave_out, module))
            for module, values in self._values.items()
        }

    def pieces(self) -> "Iterator[Piece]":
        """Give all that the identity is made of."""
        from .digest import Piece

        for module, values in self.data.items():
            yield from (Piece(module, name, False, digest) for name, digest in values.items())
        for module, items in self._items.items():
            yield from (Piece(module, name, True, digest) for name, digest in items)
        for module in self._unloaded:
            if file_of(module):
                yield Piece(module, "", True, hash_of(text_of_unloaded(module).encode()))

    @functools.cached_property
    def values(self) -> dict[str, bytes]:
        """Return what stands for the data of each module, as far as it has a stable form, and for the code in it."""
        data = self.data
        codes = self._hashed()
        return {
            module: hash_of(b"".join(name.encode() + value for name, value in data.get(module, {}).items()))
            + codes.get(module, b"")
            for module in codes.keys() | data.keys()
        }

    @functools.cached_property
    def identity(self) -> bytes:
        """Return what stands for all of it; empty where nothing of the user's own modules is reached."""
        values = sorted(self.values.items())
        parts = values, [(name, text_of_unloaded(name)) for name in sorted(self._unloaded) if file_of(name)]
        return hash_of(repr(parts).encode()) if any(parts) else b""

    @functools.cached_property
    def told(self) -> dict[str, tuple[bytes, bytes | None, bytes, str]]:
        """Return what a worker is told of each module: digests of its code, file and data, and the file."""
        return {
            module: (
                self.digests.get(module, b""), text_digest(module), self.values.get(module, b""), _file(module)
            )
            for module in self.values
        }  # fmt: skip

    def _visit(self, value: Any) -> None:
        if id(value) in self._seen:
            return
        self._seen.add(id(value))
        kind = type(value)
        if kind is FunctionType:
            self._function(value)
        elif isinstance(value, type):
            self._class(value)
        elif kind is MethodType:
            self._queue += [value.__func__, value.__self__]
        elif isinstance(value, functools.partial):
            self._queue += [value.func, *value.args, *value.keywords.values()]
        elif isinstance(value, _METHODS):
            self._queue += vars(value).values()
        elif (parts := wrapped(value)) is not None:
            self._queue += parts
        elif kind is CellType:
            with contextlib.suppress(ValueError):  # not bound yet
                self._queue.append(value.cell_contents)
        elif kind in CONTAINERS:
            if self._with_data:
                self._queue += itertools.islice(value.values() if kind is dict else value, _LOOKED_INTO)
            else:
                self._seen.discard(id(value))
                self._data.append(value)
        elif kind is ModuleType:  # one that data holds: nothing says which of its names are looked for there
            if value.__name__ != MAIN and self._is_own(value.__name__):
                self._attributes(value, frozenset(vars(value)), set())
        else:
            attributes = getattr(value, "__dict__", None)
            if self._counts(kind.__module__):
                self._queue += [kind, attributes]
            elif type(attributes) is dict:  # a library's, which may hold what it decorates
                held = itertools.islice(attributes.values(), _LOOKED_INTO)
                self._queue += [
                    each for each in held if isinstance(each, _CALLED) or self._counts(type(each).__module__)
                ]

    def _function(self, function: FunctionType) -> None:
        module = function.__globals__.get("__name__")
        if not isinstance(module, str):
            return
        if not self._counts(module):
            if not hasattr(function, "__wrapped__"):
                return
        elif module != MAIN:
            self._items.setdefault(module, set()).add((function.__qualname__, code_digest(function.__code__)))
            self._named(function.__globals__, function)
            carried = function.__defaults__, function.__kwdefaults__, function.__closure__
            if any(carried):
                self._keep(module, f"{function.__qualname__}()", carried)
                self._hold(*(carried[0] or ()), *(carried[1] or {}).values(), *(carried[2] or ()))
            for name, value in vars(function).items():
                if type(value) in _PLAIN_KINDS:
                    self._keep(module, f"{function.__qualname__}.{name}", value)
        self._functions.append(function)
        self._codes.append(function.__code__)
        if hasattr(function, "__wrapped__"):
            self._queue.append(function.__wrapped__)
        if isinstance(registry := getattr(function, "registry", None), MappingProxyType):  # of a singledispatch
            self._queue += registry.values()
        if not self._counts(module):
            return
        mentioned = mentions(function.__code__)
        seen: set[int] = set()
        self._read_names(function.__globals__, mentioned.names, mentioned.attributes, seen)
        for level, name in mentioned.imports:
            self._import(level, name, function.__globals__, mentioned.attributes, seen)

    def _read_names(
        self, names: dict[str, Any], mentioned: Collection[str], attributes: frozenset[str], seen: set[int]
    ) -> None:
        """Look at what stands under the names that are mentioned, in modules under them at these attributes."""
        read = self._read.setdefault(id(names), {})
        found = names.keys() & mentioned
        for name in found - read.keys():  # most were read for another function
            read[name] = self._name(names, name)
        for name in found:
            if (module := read[name]) is not None:
                self._attributes(module, attributes, seen)

    def _name(self, names: dict[str, Any], name: str) -> ModuleType | None:
        """Look at what stands under a name; return it if it is a module that counts."""
        value = names[name]
        kind = type(value)
        if kind is ModuleType:
            if value.__name__ != MAIN and self._is_own(value.__name__):
                self._note(names, name, value)
                return value  # type: ignore[no-any-return]
        elif kind is FunctionType or kind is CACHED or isinstance(value, type):
            self._note(names, name, value)
            self._queue.append(value)
            place = names.get("__name__")
            if place != MAIN and (getattr(value, "__qualname__", ""), getattr(value, "__module__", "")) != (
                name,
                place,
            ):
                self._keep(str(place), name, value)  # a name for another's, or for one of several that are called alike
        elif (module := names.get("__name__")) != MAIN:
            # As it is now, until the module is loaded anew: what this process makes of it meanwhile does not reach
            # workers, and a counter would make each call another one.
            self._note_load(names)
            self._keep(str(module), name, value)
            self._hold(value)
            if self._constants is not None:
                self._constants.note(str(module), names, name, name, value)
        return None

    def _attributes(self, module: ModuleType, attributes: frozenset[str], seen: set[int]) -> None:
        """Look at what a module has of the names; each module once for a function."""
        if id(module) not in seen:
            seen.add(id(module))
            self._items.setdefault(module.__name__, set())
            self._read_names(module.__dict__, attributes | _GIVES_NAMES, attributes, seen)

    def _import(
        self, level: int, name: str, names: Mapping[str, Any], attributes: frozenset[str], seen: set[int]
    ) -> None:
        """Look at a module that a function imports when it is called."""
        if level:
            try:
                name = importlib.util.resolve_name("." * level + name, names.get("__package__"))
            except ImportError:
                return
        module = sys.modules.get(name)
        if module is None:
            self._unloaded.add(name)
        elif name != MAIN and self._is_own(name):
            self._attributes(module, attributes, seen)

    def _class(self, kind: type) -> None:
        module = kind.__module__
        if module in sys.builtin_module_names or not self._counts(module):
            return
        self._queue += [*kind.__bases__, type(kind)]
        if module != MAIN and module in sys.modules:
            self._items.setdefault(module, set()).add((kind.__qualname__, _shape_of(kind)))
            self._named(vars(sys.modules[module]), kind)
        for name, value in vars(kind).items():
            if name == "__dataclass_fields__":
                for field in value.values():
                    self._hold(*field.metadata.values())
                    if module != MAIN and field.metadata:
                        self._keep(module, f"{kind.__qualname__}.{field.name}", field.metadata)
            elif isinstance(value, _CODE):
                self._queue.append(value)
                if module != MAIN and not is_called(value, f"{kind.__qualname__}.{name}"):
                    self._keep(module, f"{kind.__qualname__}.{name}", value)
            elif name not in MADE and (name[:2] != "__" or type(value) in _PLAIN_KINDS):
                self._hold(value)
                if module != MAIN:
                    path = f"{kind.__qualname__}.{name}"
                    self._keep(module, path, value)
                    if self._constants is not None:
                        self._constants.note(module, vars(kind), name, path, value)

    def _named(self, names: Mapping[str, Any], definition: FunctionType | type) -> None:
        """Note a function or class, which may be replaced under its name, as by a reload."""
        if names.get(definition.__qualname__) is definition:
            self._note(names, definition.__qualname__, definition)

    def _note(self, names: Mapping[str, Any], name: str, value: Any) -> None:
        """Note what stands under a name: while it does, and the like, the version holds."""
        self._note_load(names)[name] = value

    def _note_load(self, names: Mapping[str, Any]) -> dict[str, Any]:
        """Note which load of a module counts, and return what was read of its names."""
        known = self._names.get(id(names))
        if known is None:
            known = self._names[id(names)] = names, {}
            self._loads.append((names, names.get("__spec__")))
        return known[1]

    def _keep(self, module: str, name: str, value: Any) -> None:
        """Have data count. Several functions may have one name in a module, as lambdas have, and closures."""
        self._values.setdefault(module, {}).setdefault(name, []).append(value)

    def _hold(self, *values: Any) -> None:
        """Look at data, now or when it counts."""
        (self._queue if self._with_data else self._data).extend(values)

    def _counts(self, module: str) -> bool:
        return module == MAIN or self._is_own(module)


def _shape_of(kind: type) -> bytes:
    """Return what stands for the bases of a class, in their order, and for what its functions are to it."""
    bases = [(base.__module__, base.__qualname__) for base in kind.__bases__]
    members = sorted(
        (name, type(value).__name__)
        for name, value in vars(kind).items()
        if name[:2] != "__" and isinstance(value, _CODE)  # a Protocol is given its __init__ when it is first called
    )
    return hash_of(repr((bases, members)).encode())


def _leave_out(module: str, name: str, why: Exception) -> None:
    """Say once that a change of some data will not be seen."""
    if (module, name) not in _left_out:
        _left_out.add((module, name))
        what = f"what {name[:-2]} holds" if name.endswith("()") else name
        _log.warning(
            "a change of %s in module %s will not be seen, so results of before are reused then: it has no stable form"
            " (%s). options(depends=[%r]) has the text of the module count", what, module, why, module,
        )  # fmt: skip


_left_out: set[tuple[str, str]] = set()
_known: dict[tuple[int, ...], Version] = {}
_MOST_KNOWN = 4096


def version_of(*definitions: Any) -> Version:
    """Return the version of functions and classes that have names in modules of the user's own."""
    key = tuple(map(id, definitions))  # the version keeps them alive
    version = _known.get(key)
    if version is None or not version.still_holds():
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        version = _known[key] = Version(*definitions)
    return version


def code_of(definition: Any) -> bytes:
    """Return what stands for the code of a function or class, where it counts (see `digest.digest_and_named()`)."""
    return version_of(definition).identity if is_own(definition.__module__) else b""


def check_function(data: bytes, path: str, version: Version, named: Iterable[Any]) -> bytes:
    """Return the pickle of a callable as one that is checked, and with it what is named in what it carries."""
    return pickle.dumps(Reduced(checked, (data, _said(path, version, named))), 5)


def check_call(data: bytes, path: str, named: Collection[Any]) -> bytes:
    """Return the pickle of a call's arguments as one that is checked, for what is named in them."""
    # Of one alone code_of() has looked just now whether it still holds.
    version = (len(named) == 1 and _known.get(tuple(map(id, named)))) or version_of(*named)
    said = version.said.get(path)
    if said is None:
        said = version.said[path] = _said(path, version, named)
    return pickle.dumps(Reduced(checked_call, (data, said)), 5)


def _said(path: str, version: Version, named: Iterable[Any]) -> bytes:
    return pickle.dumps((path, _PYTHON, version.told, [(each.__module__, each.__qualname__) for each in named]), 5)


def checked(data: bytes, said: bytes) -> Any:
    """Return the callable of a pickle. Raise CodeChanged if what it reaches has other code here."""
    from .spaces import NotInScript

    path, python, told, named = pickle.loads(said)
    known = told.keys() & sys.modules.keys()
    try:
        function = pickle.loads(data)
    except NotInScript:
        raise
    except AttributeError as error:
        if not known:
            raise
        raise _changed(path, told, known, str(error)) from error
    _compare(path, python, told, named, function)
    return function


_compared: dict[bytes, Version] = {}


def checked_call(data: bytes, said: bytes) -> Any:
    """Return the arguments of a pickle. Raise CodeChanged if what is named there has other code here."""
    version = _compared.get(said)
    if version is None or not version.still_holds():
        if len(_compared) >= _MOST_KNOWN:
            _compared.clear()
        _compared[said] = _compare(*pickle.loads(said))
    return pickle.loads(data)


def _compare(
    path: str, python: str, told: Mapping[str, Any], named: Iterable[tuple[str, str]], *functions: Any
) -> Version:
    """Return the version of functions and of what has the names. Raise CodeChanged if another one was told."""
    for module in told.keys() - sys.modules.keys():
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    note_texts()
    try:
        definitions = [attrgetter(name)(sys.modules[module]) for module, name in named]
    except (AttributeError, KeyError) as error:
        raise _changed(path, told, told.keys(), str(error)) from error
    version = Version(*functions, *definitions, own=told.keys())
    different = set()
    for module, (code, text, values, _) in told.items():
        is_edited = text is not None and text != text_digest(module)
        if python != _PYTHON:
            is_other = is_edited
        else:  # values may have been changed by calls, or where it was submitted: they count if the file has changed
            is_other = version.digests.get(module, b"") != code
            is_other = is_other or (is_edited and version.values.get(module, b"") != values)
        if is_other:
            different.add(module)
    if different:
        raise _changed(path, told, different, None)
    return version


def _changed(path: str, told: Mapping[str, Any], modules: Collection[str], why: str | None) -> Exception:
    from ..errors import CodeChanged

    files = []
    for module in sorted(modules):
        there, here = told[module][-1] or "without a file", _file(module) or "without a file"
        files.append(f"{module} is {there} where it was submitted and {here} here, in another version")
    said = why or "the code that it reaches is not the same"
    return CodeChanged(
        f"process {os.getpid()} has another version of {path}: {said}: {'; '.join(files)}."
        " Start the script again, or the worker, so that both have the same"
    )


def _file(module: str) -> str:
    return getattr(sys.modules.get(module), "__file__", None) or ""


def check_of(function: Any, named: Iterable[Any] = ()) -> Version | None:
    """Return the version of what a callable reaches, and of what it holds by name; None where none is the user's."""
    if (
        not named and type(function) in (FunctionType, type) and not is_main(function)
        and not is_own(function.__module__)
    ):  # fmt: skip
        return None
    note_texts()
    definitions = {id(each): each for each in named}
    is_named = id(function) in definitions  # else it is not kept, nor what it carries
    version = version_of(*definitions.values()) if is_named else Version(function, *named)
    return version if version.identity else None
