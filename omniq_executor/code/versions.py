"""Which version of its code a function is, so that what goes by name is what runs.

A function of a module of the user's own goes to a worker as its name, with a digest of the byte code that it
reaches: its own, and that of the functions and classes of such modules that it names, directly or as
attributes of a module, and they in turn. Values (defaults, closures, data) are not in it, nor are docstrings
and line numbers. A worker compares it with what it has imported, and says `CodeChanged` where they differ.

With that code, and the constants that it names, changes what identifies a call: a helper that is edited, three modules
away, has the calls run again that reach it.

Byte code says nothing between two versions of Python; there the texts of the files are compared.
"""

import functools
import os
import pickle
import sys
from collections.abc import Callable, Collection
from hashlib import blake2b
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from .modules import CACHED, MAIN, Reduced, is_main, is_own, wrapped

_PYTHON = sys.implementation.cache_tag
_HAS_DOCSTRING = 0x4000000  # a flag of code since 3.14
_CONSTANTS = frozenset({int, float, complex, bool, str, bytes, tuple, frozenset, type(None)})

Versions = dict[str, tuple[bytes, bytes | None, str]]  # by module: digests of byte code and of the file; the file


class Version:
    """The code that a function reaches."""

    def __init__(self, function: Any, own: Collection[str] | None = None) -> None:
        """`own` are the modules that count; by default those that are neither installed nor of Python."""
        self.items: dict[str, set[tuple[str, bytes]]] = {}
        """By module, its functions and the digests of their code."""
        self._constants: dict[tuple[str, str], Any] = {}
        self._is_own: Callable[[str], bool] = is_own if own is None else own.__contains__
        self._names: list[tuple[dict[str, Any], str, Any]] = []
        self._codes: list[tuple[FunctionType, CodeType]] = []
        self._seen: set[int] = set()
        self._queue: list[Any] = [function]
        while self._queue:
            self._visit(self._queue.pop())

    def still_holds(self) -> bool:
        """Return whether it is as it was, by what is cheap to look at."""
        for function, code in self._codes:
            if function.__code__ is not code:
                return False
        for names, name, value in self._names:  # noqa: SIM110  # a loop takes half of what all() does
            if names.get(name) is not value:
                return False
        return True

    def digests(self) -> dict[str, bytes]:
        """Return what stands for the code of each module."""
        return {
            module: blake2b(repr(sorted(items)).encode(), digest_size=16).digest()
            for module, items in self.items.items()
        }

    def identity(self) -> bytes:
        """Return what stands for all of it, and for the constants of the modules that it names."""
        from . import digest as keys  # workers need none of it

        digests = ((place, keys.stable_digest(value)) for place, value in self._constants.items())
        constants = sorted((place, digest) for place, digest in digests if digest is not None)
        return repr((sorted(self.digests().items()), constants)).encode()

    def described(self) -> Versions:
        """Return what a worker is told."""
        return {
            module: (digest, _file_digest(_file(module)), _file(module)) for module, digest in self.digests().items()
        }

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
            self._queue += [value.func, *(part for part in value.args if isinstance(part, FunctionType | type))]
        elif (parts := wrapped(value)) is not None:
            self._queue += parts
        elif not isinstance(value, ModuleType):
            self._class(kind)

    def _function(self, function: FunctionType) -> None:
        module = function.__globals__.get("__name__")
        if not isinstance(module, str):
            return
        counts = self._counts(module)
        if counts or hasattr(function, "__wrapped__"):
            self._codes.append((function, function.__code__))
        if hasattr(function, "__wrapped__"):
            self._queue.append(function.__wrapped__)
        if counts:
            if module != MAIN:
                self.items.setdefault(module, set()).add((function.__qualname__, _code_digest(function.__code__)))
            names = _names(function.__code__)
            for name in names:
                if name in function.__globals__:
                    self._name(function.__globals__, name, names)

    def _name(self, names: dict[str, Any], name: str, others: Collection[str]) -> None:
        value = names[name]
        kind = type(value)
        if kind is ModuleType:
            if value.__name__ != MAIN and self._is_own(value.__name__):
                self._names.append((names, name, value))
                for other in others:
                    if other in value.__dict__ and type(value.__dict__[other]) is not ModuleType:
                        self._name(value.__dict__, other, ())
        elif kind is FunctionType or kind is CACHED or isinstance(value, type):
            self._names.append((names, name, value))
            self._queue.append(value)
        elif kind in _CONSTANTS and (module := names.get("__name__")) != MAIN:
            self._names.append((names, name, value))
            self._constants[str(module), name] = value

    def _class(self, kind: type) -> None:
        if kind.__module__ in sys.builtin_module_names or not self._counts(kind.__module__):
            return
        self._queue += kind.__bases__
        for value in vars(kind).values():
            if isinstance(
                value, FunctionType | staticmethod | classmethod | property | functools.cached_property | type
            ):
                self._queue.append(value)

    def _counts(self, module: str) -> bool:
        return module == MAIN or self._is_own(module)


def check(data: bytes, path: str, version: Version) -> bytes:
    """Return a pickle of the pickle of a callable, which is loaded only where its code is the same."""
    return pickle.dumps(Reduced(checked, (data, path, _PYTHON, version.described())), 5)


def checked(data: bytes, path: str, python: str | None, versions: Versions) -> Any:
    """Return the callable of a pickle. Raise CodeChanged if what it reaches has other code here."""
    from .spaces import NotInScript

    known = versions.keys() & sys.modules.keys()
    try:
        function = pickle.loads(data)
    except NotInScript:
        raise
    except AttributeError as error:
        if not known:
            raise
        raise _changed(path, versions, known, str(error)) from error
    here = Version(function, versions.keys()).digests()
    if python == _PYTHON:
        different = {module for module in versions if here.get(module) != versions[module][0]}
    else:
        different = {module for module, (_, text, _) in versions.items() if _file_digest(_file(module)) != text}
    if different:
        raise _changed(path, versions, different, None)
    return function


def _changed(path: str, versions: Versions, modules: Collection[str], why: str | None) -> Exception:
    from ..errors import CodeChanged

    files = []
    for module in sorted(modules):
        there, here = versions[module][2] or "without a file", _file(module) or "without a file"
        files.append(f"{module} is {there} where it was submitted and {here} here, in another version")
    said = why or "the code that it reaches is not the same"
    return CodeChanged(
        f"process {os.getpid()} has another version of {path}: {said}: {'; '.join(files)}."
        " Start the script again, or the worker, so that both have the same"
    )


def _file(module: str) -> str:
    return getattr(sys.modules.get(module), "__file__", None) or ""


def _file_digest(path: str) -> bytes | None:
    try:
        return _text_digest(path, os.stat(path).st_mtime_ns)
    except OSError:
        return None


@functools.lru_cache(maxsize=1024)
def _text_digest(path: str, _: int) -> bytes:
    with open(path, "rb") as file:
        return blake2b(file.read(), digest_size=16).digest()


@functools.lru_cache(maxsize=4096)
def _names(code: CodeType) -> tuple[str, ...]:
    names = dict.fromkeys(code.co_names)
    for constant in code.co_consts:
        if type(constant) is CodeType:
            names |= dict.fromkeys(_names(constant))
    return tuple(names)


@functools.lru_cache(maxsize=4096)
def _code_digest(code: CodeType) -> bytes:
    """Return what stands for byte code, whatever its lines, file and docstring are."""
    constants = list(code.co_consts)
    if constants and type(constants[0]) is str and code.co_name[:1] != "<":
        constants[0] = None  # the docstring
    parts = (
        code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & (_HAS_DOCSTRING - 1),
        code.co_code, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_exceptiontable,
        [_constant(each) for each in constants],
    )  # fmt: skip
    return blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _constant(value: Any) -> str:
    if type(value) is CodeType:
        return _code_digest(value).hex()
    if type(value) is frozenset:
        return f"frozenset {sorted(map(_constant, value))}"
    if type(value) is tuple:
        return f"({', '.join(map(_constant, value))})"
    return f"{type(value).__name__} {value!r}"


def check_of(function: Any) -> Version | None:
    """Return the version of what a callable reaches, or None where none of it is the user's own."""
    if type(function) in (FunctionType, type) and not is_main(function) and not is_own(function.__module__):
        return None
    version = Version(function)
    return version if version.items else None
