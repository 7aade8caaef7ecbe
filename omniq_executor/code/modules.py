"""The modules of a process: which are the user's own, what the script is, what they held when it was forked."""

import contextlib
import functools
import importlib.machinery
import io
import opcode
import os
import re
import sys
from collections.abc import Iterable, Iterator
from operator import attrgetter
from types import CodeType, FunctionType
from typing import Any, NamedTuple

from ..hashes import hash_of

MAIN = "__main__"
MAINS = (MAIN, "__mp_main__")  # the second is its name in a process that multiprocessing spawned
CONTAINERS = frozenset({dict, list, tuple, set, frozenset})
CACHED: Any = type(functools.lru_cache(lambda: None))
_LIBRARY = os.path.realpath(os.path.dirname(os.__file__)) + os.sep  # sysconfig takes 20 ms to say as much
_OF_GLOBALS = ("LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
# By step of byte code, how many bits of its argument say something else than which name it is.
_GLOBALS = {opcode.opmap[name]: int(name == "LOAD_GLOBAL") for name in _OF_GLOBALS if name in opcode.opmap}
_EXTENDED = opcode.opmap["EXTENDED_ARG"]
_GLOBAL_STEPS = re.compile(b"[%b]" % re.escape(bytes(_GLOBALS)), re.DOTALL)
_HAS_DOCSTRING = 0x4000000  # a flag of code, since 3.14
_WORD = re.compile(r"[^\W\d]\w*")
_LONGEST_TEXT = 10_000  # of which words are taken
_MOST_WORDS = 1000
_MOST_DECORATORS = 100  # around one function


class Reduced:
    """Is pickled as the given call."""

    def __init__(self, *call: Any) -> None:
        self._call = call

    def __reduce__(self) -> Any:
        return self._call


def is_main(value: Any) -> bool:
    """Return whether a function or class is the script's."""
    return getattr(value, "__module__", None) in MAINS


def find(place: Any, qualname: str) -> Any:
    """Return what a module, or a class, has under a qualified name; None where it has nothing."""
    for name in qualname.split("."):
        place = getattr(place, name, None)
    return place


def namesake(value: Any) -> Any:
    """Return what an importable module has under the name of `value`: itself, its decorated form, or None."""
    try:
        return None if is_main(value) else attrgetter(value.__qualname__)(sys.modules[value.__module__])
    except (AttributeError, ImportError, KeyError, TypeError):  # of the module's own __getattr__, too
        return None


def is_found(value: Any) -> bool:
    """Return whether its name leads to a function or class, also through what decorates it and says so."""
    found = namesake(value)
    for _ in range(_MOST_DECORATORS):
        if found is value or found is None:
            break
        found = getattr(found, "__wrapped__", None)
    return found is value


def type_name(value: Any) -> str:
    """Return what the type of a value is called in messages."""
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def wrapped(value: Any) -> list[Any] | None:
    """Return what a property, a class method or the like calls; None for anything else."""
    if isinstance(value, property):
        return [part for part in (value.fget, value.fset, value.fdel) if part is not None]
    if isinstance(value, staticmethod | classmethod):
        return [value.__func__]
    if isinstance(value, functools.cached_property):
        return [value.func]
    return [value.__wrapped__] if type(value) is CACHED else None


def is_called(value: Any, path: str) -> bool:
    """Return whether code of a class was defined there under that name, and so is told apart by it."""
    if isinstance(value, functools.singledispatchmethod):
        return True
    parts = [value] if isinstance(value, FunctionType | type) else wrapped(value) or ()
    return bool(parts) and all(getattr(part, "__qualname__", "") == path for part in parts)


_known: dict[str, tuple[Any, bool]] = {}


_NOBODYS = sys.stdlib_module_names | {__name__.partition(".")[0]}


def is_own(name: str) -> bool:
    """Return whether a module is neither the standard library's nor installed; of the latter nobody edits the code.

    Nor is it this package's, however that is installed: a future among arguments refers to it.
    """
    module = sys.modules.get(name)
    known = _known.get(name)
    if known is not None and known[0] is module:
        return known[1]
    file = getattr(module, "__file__", None)
    own = module is not None and name.partition(".")[0] not in _NOBODYS
    if own and isinstance(file, str):
        own = is_own_file(file)
    _known[name] = module, own
    return own


Stamp = tuple[int, int] | None  # when a file was changed, and its size
_texts: dict[str, tuple[Any, bytes | None, Stamp]] = {}


def text_digest(name: str) -> bytes | None:
    """Return what stands for the file of a module, which is read once for each time that the module is loaded."""
    module = sys.modules.get(name)
    spec, known = getattr(module, "__spec__", None), _texts.get(name)
    if known is None or known[0] is not spec:
        digest, stamp = None, None
        with contextlib.suppress(OSError), open(getattr(module, "__file__", None) or "", "rb") as file:
            stamp = _stamp_of(os.fstat(file.fileno()))  # before it is read: a later change is seen
            digest = hash_of(file.read())
        known = _texts[name] = spec, digest, stamp
    return known[1]


def text_stamp(name: str) -> Stamp:
    """Return the state of the file of a module as its text was read; None where there is none."""
    text_digest(name)
    return _texts[name][2]


def file_stamp(name: str) -> Stamp:
    """Return the state of the file of a module as it is now, or None."""
    with contextlib.suppress(OSError, KeyError):
        return _stamp_of(os.stat(getattr(sys.modules[name], "__file__", None) or ""))
    return None


def forget_text(name: str) -> None:
    """Have the text of a module be read again: the module is by now what its file says."""
    _texts.pop(name, None)


def _stamp_of(found: os.stat_result) -> Stamp:
    """Return what tells one state of a file from another."""
    return found.st_mtime_ns, found.st_size


def note_texts() -> None:
    """Read the files of all modules of the user's own that are loaded: later they may be others."""
    for name in [*sys.modules]:
        if is_own(name):
            text_digest(name)


def is_hash_of_attrs(code: CodeType) -> bool:
    """Return whether code is the `__hash__` that attrs writes: it holds the hash of a text, which no run has again."""
    return code.co_name == "__hash__" and code.co_filename.startswith("<attrs generated ")


class Mentions(NamedTuple):
    """The names in code, and in the functions within it."""

    names: tuple[str, ...]  # that it may read or set in its module
    imports: tuple[tuple[int, str], ...]  # level and name of modules
    attributes: frozenset[str]  # of whatever it is, among them those of modules
    texts: tuple[str, ...]  # words in texts, which may be names for eval(), globals()[…] or the query of a DataFrame


@functools.lru_cache(maxsize=1 << 16)
def mentions(code: CodeType) -> Mentions:
    """Return what code names."""
    steps, data = code.co_code[::2], code.co_code[1::2]
    names: dict[str, None] = {}
    imports = _imports(code) if opcode.opmap["IMPORT_NAME"] in steps else {}
    attributes = dict.fromkeys(code.co_names)
    texts = dict.fromkeys(_words(code.co_consts[begins_with_docstring(code) :]))
    # By itself, as dis takes 150 µs for a function, and a project has thousands.
    for found in _GLOBAL_STEPS.finditer(steps):
        place, shift = found.start(), 8
        argument, step = data[place], steps[place]
        while place and steps[place - 1] == _EXTENDED:
            place -= 1
            argument |= data[place] << shift
            shift += 8
        names[code.co_names[argument >> _GLOBALS[step]]] = None
    for constant in code.co_consts:
        if type(constant) is CodeType:
            inner = mentions(constant)
            names |= dict.fromkeys(inner.names)
            imports |= dict.fromkeys(inner.imports)
            attributes |= dict.fromkeys(inner.attributes)
            texts |= dict.fromkeys(inner.texts)
    words = tuple(text for text in texts if text not in names)
    return Mentions(tuple(names), tuple(imports), frozenset(attributes), words[:_MOST_WORDS])


def _words(constants: Iterable[Any]) -> Iterator[str]:
    for constant in constants:
        if type(constant) is str:
            yield from _WORD.findall(constant[:_LONGEST_TEXT])
        elif type(constant) in (tuple, frozenset):
            yield from _words(constant)


def begins_with_docstring(code: CodeType) -> bool:
    """Return whether the first constant of code is its docstring."""
    if sys.version_info >= (3, 14):
        return bool(code.co_flags & _HAS_DOCSTRING)
    return bool(code.co_consts) and type(code.co_consts[0]) is str and code.co_name[:1] != "<"  # else it is None


def _imports(code: CodeType) -> dict[tuple[int, str], None]:
    import dis

    imports: dict[tuple[int, str], None] = {}
    steps = [*dis.get_instructions(code)]
    for place, step in enumerate(steps):
        if step.opname == "IMPORT_NAME":  # after its level and what it takes from the module
            level, taken = steps[place - 2].argval, steps[place - 1].argval or ()
            imports[level, step.argval] = None
            imports |= {(level, f"{step.argval}.{name}".lstrip(".")): None for name in taken if name != "*"}
    return imports


def text_of_unloaded(name: str) -> str:
    """Return the syntax of a module that is not imported yet, and of those of the user's own that it imports."""
    import ast

    found: dict[str, str] = {}
    queue = [name]
    while queue:
        name = queue.pop()
        path = None if name in found else file_of(name)
        if path is None:
            continue
        try:
            with open(path, "rb") as file:
                tree = ast.parse(file.read())
        except (OSError, SyntaxError):
            continue
        found[name] = ast.dump(tree)
        package = name if path.endswith("__init__.py") else name.rpartition(".")[0]
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                queue += [each.name for each in node.names]
            elif isinstance(node, ast.ImportFrom):
                parents = package.split(".")
                base = parents[: len(parents) - node.level + 1] if node.level else []
                stem = ".".join([*base, *([node.module] if node.module else [])])
                queue += [stem, *(f"{stem}.{each.name}" for each in node.names)]
    return repr(sorted(found.items()))


def file_of(name: str) -> str | None:
    """Return the file of a module of the user's own that may not have been imported; nothing is imported for it."""
    path: Any = None
    spec = None
    parts = name.split(".")
    if not all(parts) or parts[0] in sys.stdlib_module_names:
        return None
    for place in range(len(parts)):
        spec = importlib.machinery.PathFinder.find_spec(".".join(parts[: place + 1]), path)
        if spec is None:
            return None
        path = spec.submodule_search_locations
        if path is None and place < len(parts) - 1:
            return None
    origin = spec.origin if spec is not None else None
    return origin if origin is not None and origin.endswith(".py") and is_own_file(origin) else None


def is_own_file(file: str) -> bool:
    """Return whether a file is the user's own: neither of the standard library nor installed."""
    file = os.path.realpath(file) if os.path.islink(file) else os.path.abspath(file)
    return _is_own_folder(os.path.dirname(file))


@functools.lru_cache(4096)  # most modules of a project are in few folders, and each part of a path is a system call
def _is_own_folder(folder: str) -> bool:
    path = os.path.join(os.path.realpath(folder), "")
    return not path.startswith(_LIBRARY) and not {"site-packages", "dist-packages"} & {*path.split(os.sep)}


def script() -> tuple[str, str] | None:
    """Return how the main module can be imported, as multiprocessing knows it; None for a session or a notebook."""
    from multiprocessing import spawn

    if not hasattr(main := sys.modules["__main__"], "__spec__"):
        main.__spec__ = None  # IPython's %run takes all from the module of a script that it runs again
    data = spawn.get_preparation_data("")
    for how in ("path", "name"):
        if f"init_main_from_{how}" in data:
            return how, data[f"init_main_from_{how}"]
    return None


def code_of_script(how: str, what: str) -> tuple[CodeType, dict[str, Any]]:
    """Return the code of a main module, and the names that a module has by itself."""
    import importlib.util
    import pkgutil

    if how == "name":
        spec = importlib.util.find_spec(what)
        found, name = getattr(spec, "loader", None), what
    elif os.path.isfile(what) and pkgutil.get_importer(what) is None:
        with io.open_code(what) as file:
            return compile(file.read(), what, "exec"), {"__file__": what}
    else:  # a folder or an archive, with a __main__.py
        sys.path.insert(0, what)
        importer = pkgutil.get_importer(what)
        spec, name = importer.find_spec(MAIN) if importer is not None else None, MAIN
        found = getattr(spec, "loader", None)
    if found is None or spec is None:
        raise ImportError(f"there is no script {what}")
    return found.get_code(name), {"__file__": spec.origin, "__spec__": spec, "__package__": spec.parent}


class Snapshot:
    """What the modules of the user hold at a moment, by reference."""

    def __init__(self) -> None:
        own = [(name, module) for name, module in list(sys.modules.items()) if name == MAIN or is_own(name)]
        note_texts()  # before the fork
        self._names = {name: dict(vars(module)) for name, module in own}
        self._classes = {
            kind: dict(vars(kind)) for kind in self._names[MAIN].values() if isinstance(kind, type) and is_main(kind)
        }

    def holds(self, key: tuple[str, str], value: Any) -> bool:
        """Return whether a name stands for the same object now as then."""
        return self._names.get(key[0], {}).get(key[1], self) is value

    def attributes(self, kind: type) -> dict[str, Any] | None:
        """Return the attributes of a class as they were; None where it was not there under its name."""
        return self._classes.get(kind) if self.holds((MAIN, kind.__qualname__), kind) else None
