"""Digests of functions and values that are the same in every run of the same script.

A resumed run finds its calls again by what they call and with what. Pickle bytes cannot tell: they
differ with shared references, with the order of a set under hash randomisation and with the random
ids cloudpickle gives to classes. So a value is written here in one canonical form, and hashed.

**Equal structure, equal digest.** The order of dicts and sets and the identity of equal parts do not
matter, nor do a function's lines, file, comments, docstrings and annotations.

**Different structure, different digest.** Types count (1, True and 1.0 differ), so does the sign of
zero. Every part is tagged, and of known length, so nothing encodes alike by being strung together.

**No stable form, `Uncanonical`.** So for what cannot be reduced (a generator), for data that
contains itself and for data nested too deep. The caller does without a key.

How far it looks: a function that can be imported is its name, its code, its defaults and what it
closes over. One that cannot (of `__main__`, a lambda, a local function) is also the globals it reads:
plain data and other such functions and classes by content, modules and what can be imported by name.
A class is its name if it can be imported; else its bases and attributes count too. All else is what
`__reduce_ex__(5)` says of it, but a file that is given as an InputFile, whose content counts.

Not promised: a digest in another version of Python, whose byte code differs, or of a library that
reduces its objects in another way; an object that caches in itself is another one after use. What does
not match is only run again. An edit in what is only named, such as an imported helper, is seen only where it
is asked for: `code_of` (see versions.py) says what stands for the code of what can be imported.

Functions and classes refer to each other in circles, so they are not written in place. `_Encoder`
writes a label for each, describes them one after the other, and hashes the descriptions to new labels,
until a round tells no more of them apart. The labels of that round, taken together, are the whole graph
(each implies the one before it, by which the others refer to it); how often equal functions occur in
it, or how long a circle of equal ones is, leaves no trace.
"""

import contextlib
import copyreg
import functools
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from types import CellType, CodeType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any, NamedTuple

from .. import values
from ..errors import InputError
from ..hashes import hash_of
from ..inputs import InputFile, file_digest
from .modules import MAIN, is_found, is_hash_of_attrs, is_main, is_own, namesake

_INLINE_BYTES = 512  # a longer body is replaced by its hash, so that no level copies what lies below it
_LENGTHS = [b"%d:" % size for size in range(_INLINE_BYTES + 1)]
_MAX_DEPTH = 150  # of data; four Python frames a level at most, so reached before the recursion limit of 1000
_MAX_NODES = 1_000_000  # of one value: beyond, looking at each would take seconds for every submit
_MAX_NODES_OF_DATA = 100_000  # of what a module holds, which is looked at before a function's first call
_MAX_DEFINITIONS = 10_000  # functions and classes by content in one digest
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE, set on every class that Python code defines
_CODE_FLAGS = 0x3FFFFFF  # without CO_HAS_DOCSTRING (3.14)
_READS_GLOBAL = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})
# What the compiler or a mere look leaves in a class. The body of a class stores the first two (line numbers: 3.13).
_COMPILED_IN = frozenset({"__doc__", "__firstlineno__"})
_INCIDENTAL = _COMPILED_IN | {
    *("__dict__", "__weakref__", "__module__", "__qualname__", "__slotnames__", "_abc_impl", "_value2member_map_"),
    *("__annotations__", "__annotations_cache__", "__annotate__", "__annotate_func__"),
}
_SET_REDUCERS: tuple[Any, ...] = tuple((object.__reduce_ex__, kind.__reduce__) for kind in (set, frozenset))


# Modules and types of what a process has and no other can have: locks, connections, open files, caches of weak
# references. They are known again by their type, or no function that uses one would be.
_OF_PROCESS = frozenset({
    *("_thread", "threading", "multiprocessing.synchronize", "sqlite3", "socket", "_weakref", "weakref"),
    *(("_io", name) for name in ("TextIOWrapper", "BufferedReader", "BufferedWriter", "BufferedRandom", "FileIO")),
})  # fmt: skip


# Of which objects count that a module holds: others may be anything, from a client to the environment.
_PLAIN = frozenset({
    *("argparse", "array", "builtins", "collections", "configparser", "datetime", "decimal", "enum", "fractions"),
    *("functools", "ipaddress", "numpy", "operator", "pathlib", "re", "statistics", "string", "_struct", "types"),
    *("typing", "uuid", "zoneinfo"),
})  # fmt: skip


def _is_plain(module: str) -> bool:
    """Return whether objects of classes of a module count. Those of `numpy.random` change with each use."""
    return module in _PLAIN or (module.startswith("numpy.") and not module.startswith("numpy.random"))


class Uncanonical(Exception):
    """There is no stable form of a value, so it cannot be recognised in another run."""


def value_digest(value: object) -> bytes:
    """Return 16 bytes that stand for the structure of `value`, or for what it does if it can be called.

    Raise Uncanonical if it has no stable form.
    """
    return _Encoder().digest(value)


class Piece(NamedTuple):
    """A part of what identifies a function: code, or data that it reaches."""

    module: str
    name: str
    is_code: bool
    digest: bytes


def digest_and_named(
    value: object, code_of: Callable[[Any], bytes], pieces: list[Piece] | None = None
) -> tuple[bytes | None, list[Any]]:
    """Return a value's digest, None if it has none, and the functions and classes with a version that it holds by name.

    `code_of` says what stands for the code of one that can be imported, or nothing where that does not count. What the
    digest is made of, as far as it is the content of functions and classes, is added to `pieces`.
    """
    encoder = _Encoder(code_of=code_of, pieces=pieces)
    digest = None
    with contextlib.suppress(Uncanonical):
        digest = encoder.digest(value)
    return digest, encoder.named()


def without_code(value: object) -> bytes:
    """Return what stands for a value with its functions and classes by name."""
    return _Encoder(by_name=True).digest(value)


def data_digests(
    values: Mapping[str, Iterable[Any]], leave_out: Callable[[str, Uncanonical], object]
) -> dict[str, bytes]:
    """Return what stands for data of a module, by name: plain data, and objects of classes of the user's own.

    Several values may have one name, in any order. `leave_out` is told of each that has no stable form, which does not
    count.
    """
    found: dict[str, list[bytes]] = {}
    encoder = _Encoder(by_name=True, is_plain=True)
    for name, several in values.items():
        for value in several:
            try:
                found.setdefault(name, []).append(encoder.digest(value))
            except Uncanonical as error:
                leave_out(name, error)
                encoder = _Encoder(by_name=True, is_plain=True)  # that one stopped in the midst of a value
    return {name: hash_of(b"".join(sorted(digests))) for name, digests in sorted(found.items())}


def _item(tag: bytes, body: bytes | memoryview) -> bytes:
    """Return tag, length and body; no item is the beginning of another, so items can be strung together."""
    size = len(body)
    if size > _INLINE_BYTES:
        return tag + b"#" + hash_of(body)
    return tag + _LENGTHS[size] + body


def _text(text: str) -> bytes:
    return _item(b"s", text.encode("utf-8", "surrogatepass"))


@functools.lru_cache(maxsize=1024)
def _name(module: str, qualname: str) -> bytes:
    """Return where a definition is found."""
    return _text(module) + _text(qualname)


@functools.lru_cache(maxsize=1024)
def _code(code: CodeType) -> tuple[bytes, frozenset[str]]:
    """Return what `code` does, and the names of the globals that it reads.

    Constants are written where they are used: their numbering changes with docstrings and line numbers.
    """
    import dis  # 3 ms: calls of what can be imported need it not

    steps: list[bytes] = []
    names: set[str] = set()
    for step in dis.get_instructions(code):
        if step.opname == "STORE_NAME" and step.argval in _COMPILED_IN:
            steps.pop()  # the step that loads what is stored
        elif step.opcode in dis.hasconst:
            if type(step.argval) is CodeType:
                constant, inner_names = _code(step.argval)
                names |= inner_names
            elif type(step.argval) is int and is_hash_of_attrs(code):
                constant = b""
            else:
                constant = _Encoder().encode(step.argval)
            steps.append(b"%d %b" % (step.opcode, constant))
        else:
            steps.append(b"%d %d;" % (step.opcode, -1 if step.arg is None else step.arg))
            if step.opname in _READS_GLOBAL:
                names.add(step.argval)
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & _CODE_FLAGS)
    tables = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_exceptiontable)
    head = _Encoder().encode((counts, tables))
    return _item(b"c", head + b"".join(steps)), frozenset(names)


class _Encoder:
    """Writes one value, and describes the functions and classes that it reaches."""

    def __init__(
        self,
        *,
        by_name: bool = False,
        is_plain: bool = False,
        code_of: Callable[[Any], bytes] = lambda _: b"",
        pieces: list[Piece] | None = None,
    ) -> None:
        """With `by_name` functions and classes count by name alone, with `is_plain` objects of libraries by type."""
        self._code_of = code_of
        self._pieces = pieces
        self._by_name = by_name
        self._is_plain = is_plain
        self._most_nodes = _MAX_NODES_OF_DATA if is_plain else _MAX_NODES
        self._versioned: dict[int, tuple[Any, bytes]] = {}  # by id, what can be imported, and what stands for its code
        self._depth = 0
        self._nodes = 0
        self._round = 1
        self._memo: dict[int, tuple[object, bytes]] = {}  # holds what it names by id, so that ids stay unique
        self._labels: dict[int, bytes] = {}  # of each definition, by id
        self._inside: set[int] = set()  # functions that are being written
        self._definitions: list[Any] = []

    def digest(self, value: object) -> bytes:
        self._nodes = 0
        while True:
            try:
                whole = self.encode(value)
                # The list grows while it is read: a description may refer to definitions not met before.
                after = {id(each): hash_of(self._describe(each)) for each in self._definitions}
            except RuntimeError as error:  # RecursionError is one; so is a dict that another thread changes meanwhile
                raise Uncanonical("nested too deep, or changed while it was read") from error
            if len(set(after.values())) == len(set(self._labels.values())):
                return hash_of(whole + b"".join(sorted(set(after.values()))))
            self._labels = after
            self._nodes = 0
            self._memo.clear()  # its entries may hold labels of the round before
            self._round += 1

    def named(self) -> list[Any]:
        """Return the functions and classes with a version that it holds by name, in a stable order."""
        named = [definition for definition, code in self._versioned.values() if code and is_found(definition)]
        return sorted(named, key=lambda each: (each.__module__, each.__qualname__))

    def encode(self, value: Any) -> bytes:
        kind = type(value)
        self._nodes += 1
        if self._nodes > self._most_nodes:
            raise Uncanonical(f"made of more than {self._most_nodes} parts")
        if scalar := _SCALARS.get(kind):
            return scalar(value)
        if self._memo and (known := self._memo.get(id(value))):
            return known[1]
        if self._depth == _MAX_DEPTH:
            raise Uncanonical(f"nested deeper than {_MAX_DEPTH} levels, or within itself")
        self._depth += 1
        if compound := _COMPOUNDS.get(kind):
            encoded = compound(self, value)
        elif issubclass(kind, type):
            encoded = self._named(value)
        elif issubclass(kind, ModuleType):
            encoded = _item(b"M", _text(value.__name__))
        elif issubclass(kind, property):
            encoded = _item(b"p", self._all((kind, value.fget, value.fset, value.fdel)))
        else:
            encoded = self._object(value)
        self._depth -= 1
        if encoded[1] == ord("#"):  # only what is long can be costly to meet again
            self._memo[id(value)] = (value, encoded)
        return encoded

    def _all(self, values: Iterable[object]) -> bytes:
        return b"".join(map(self.encode, values))

    def _mapping(self, pairs: Iterable[tuple[object, object]]) -> bytes:
        return b"".join(sorted([self.encode(key) + self.encode(value) for key, value in pairs]))

    def _named(self, value: Any) -> bytes:
        """Write a function or class by its name, if that is enough to find it; or else `value` by content."""
        is_class = issubclass(type(value), type)
        if not is_class and type(value) is not FunctionType:
            return self.encode(value)
        # A compiled class may be in its module under another name, or in none: FunctionType, NoneType.
        if namesake(value) is value or (is_class and not value.__flags__ & _HEAP_TYPE):
            return _item(b"n", _name(value.__module__, value.__qualname__) + self._version(value))
        return self._reference(value)

    def _version(self, definition: Any) -> bytes:
        """What stands for the code of a definition that can be imported."""
        known = self._versioned.get(id(definition))
        if known is None:
            known = self._versioned[id(definition)] = definition, self._code_of(definition)
        return known[1]

    def _object(self, value: Any) -> bytes:
        """Write any object, by what pickle would be told of it."""
        kind = type(value)
        if (
            kind.__module__ in _OF_PROCESS
            or (kind.__module__, kind.__name__) in _OF_PROCESS
            or (self._is_plain and not (_is_plain(kind.__module__) or is_own(kind.__module__)))
        ):
            return _item(b"O", _text(kind.__module__) + _text(kind.__qualname__))
        try:
            reducer = copyreg.dispatch_table.get(kind)
            if kind.__module__ == "numpy" and kind.__name__ == "ndarray" and not value.flags.forc:
                value = value.copy()  # every other item, say, which is no buffer; it counts as one that is
            reduced: Any = reducer(value) if reducer else value.__reduce_ex__(5)
            if isinstance(reduced, str):  # the name of a global; but an lru_cache is as good as what it wraps
                module = pickle.whichmodule(value, reduced)  # type: ignore[attr-defined]
                is_ours = is_own(kind.__module__) or is_main(kind)
                state = getattr(value, "__dict__", None) if is_ours else getattr(value, "__wrapped__", None)
                reduced = (module, reduced, state)
            make, args, state, listed, mapped, set_state = (*reduced, None, None, None, None)[:6]
            if (kind.__reduce_ex__, kind.__reduce__) in _SET_REDUCERS and not reducer:
                args = frozenset(*args)  # instead of a list in hash order
            items: list[object] = list(listed or ())
            pairs: list[tuple[object, object]] = list(mapped or ())
        except Exception as error:  # the code of whoever wrote the class may raise anything; all mean the same here
            raise Uncanonical(f"{kind.__module__}.{kind.__qualname__} cannot be reduced") from error
        as_dict = issubclass(kind, dict) and not issubclass(kind, OrderedDict)
        content = self._mapping(pairs) if as_dict else self._all(pairs)
        return _item(b"o", self._named(make) + self._all((args, state, items)) + self._named(set_state) + content)

    def _reference(self, definition: Any) -> bytes:
        """Write the label of a function or class, which is described elsewhere."""
        if self._by_name:
            name = _text(definition.__module__ or "") + _text(definition.__qualname__)  # "" of an eval()
            return _item(b"n", name + self._nameless(definition) if self._is_plain else name)
        label = self._labels.get(id(definition))
        if label is None:
            if self._round > 1 or len(self._definitions) == _MAX_DEFINITIONS:
                raise Uncanonical("too many functions, or others every time that an object is reduced")
            label = self._labels[id(definition)] = bytes(16)
            self._definitions.append(definition)
        return _item(b"r", label)

    def _nameless(self, definition: Any) -> bytes:
        """Write what tells lambdas, functions within functions and those of no module apart.

        Several of them may have one name.
        """
        if type(definition) is not FunctionType or id(definition) in self._inside:
            return b""
        if "<" not in definition.__qualname__ and "__name__" in definition.__globals__:
            return b""
        self._inside.add(id(definition))
        carried = definition.__defaults__, definition.__kwdefaults__, definition.__closure__
        written = _code(definition.__code__)[0] + self._all(carried)
        self._inside.discard(id(definition))
        return written

    def _describe(self, definition: Any) -> bytes:
        module = MAIN if is_main(definition) else definition.__module__
        name = self._all((module, definition.__qualname__))
        if issubclass(type(definition), type):
            members = {key: value for key, value in vars(definition).items() if key not in _INCIDENTAL}
            content = self._all((type(definition), definition.__bases__, members))
            self._note(module, definition.__qualname__, content)
            return _item(b"C", name + content)
        code, names = _code(definition.__code__)
        own = self._all((definition.__defaults__, definition.__kwdefaults__, definition.__closure__))
        if attributes := {name: value for name, value in vars(definition).items() if name != "__wrapped__"}:
            own += self.encode(attributes)
        self._note(module, definition.__qualname__, code)
        if own != _CARRIES_NOTHING:
            self._note(module, f"{definition.__qualname__}()", own, is_code=False)
        if namesake(definition) is not None:
            return _item(b"F", name + code + own + self._version(definition))
        known = definition.__globals__
        read = {each: self._named(known[each]) for each in sorted(names & known.keys())}
        for each, value in read.items():
            if value[:1] not in _ELSEWHERE:
                self._note(module, each, value, is_code=False)
        return _item(b"L", name + code + own + b"".join(_text(each) + value for each, value in read.items()))

    def _note(self, module: str, name: str, content: bytes, is_code: bool = True) -> None:
        """Note a piece as it is by itself: in the first round all labels are alike."""
        if self._pieces is not None and self._round == 1:
            self._pieces.append(Piece(module, name, is_code, hash_of(content)))

    def _input(self, file: InputFile) -> bytes:
        """Write a file by its path and content. Of what modules hold none need be there: it may be written later."""
        try:
            content = file_digest(file.path)
        except InputError:
            if not self._is_plain:
                raise
            content = b""
        return _item(b"I", _text(file.path) + content)

    def _buffer(self, value: Any) -> bytes:
        """Write bytes that an object hands to pickle without a copy."""
        try:
            data = value.raw()
            known = values.hash_of(data)  # of one that was written to a file just now
            return _item(b"y", data) if known is None else b"y#" + known
        except BufferError as error:
            raise Uncanonical("bytes that are not all in one place") from error

    def _cell(self, cell: CellType) -> bytes:
        try:
            contents = cell.cell_contents
        except ValueError:  # a variable that is not bound yet
            return _item(b"k", b"")
        return _item(b"k", self.encode(contents))


_CARRIES_NOTHING = 3 * b"N0:"  # of a function: no defaults, and nothing that it closes over
_ELSEWHERE = (b"r", b"n", b"M")  # the tags of what is described elsewhere: functions, classes and modules
_SCALARS: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda value: b"N0:",
    type(...): lambda value: b"E0:",
    bool: lambda value: b"b1:1" if value else b"b1:0",
    int: lambda value: _item(b"i", b"%x" % value),  # decimal has a limit of digits
    float: lambda value: _item(b"f", struct.pack(">d", value)),
    str: _text,
    bytes: lambda value: _item(b"y", value),
    # By text, as 3.13 reduces a path to the pieces it was made from.
    **dict.fromkeys(
        (PosixPath, WindowsPath, PurePosixPath, PureWindowsPath),
        lambda value: _item(b"P", _text(type(value).__name__) + _text(str(value))),
    ),
}
_COMPOUNDS: dict[type, Callable[[_Encoder, Any], bytes]] = {
    tuple: lambda encoder, value: _item(b"t", encoder._all(value)),
    list: lambda encoder, value: _item(b"l", encoder._all(value)),
    dict: lambda encoder, value: _item(b"d", encoder._mapping(value.items())),
    MappingProxyType: lambda encoder, value: _item(b"D", encoder._mapping(value.items())),
    set: lambda encoder, value: _item(b"S", b"".join(sorted(map(encoder.encode, value)))),
    frozenset: lambda encoder, value: _item(b"Z", b"".join(sorted(map(encoder.encode, value)))),
    FunctionType: _Encoder._reference,
    MethodType: lambda encoder, value: _item(b"B", encoder._all((value.__func__, value.__self__))),
    CellType: _Encoder._cell,
    InputFile: _Encoder._input,
    pickle.PickleBuffer: _Encoder._buffer,
    struct.Struct: lambda encoder, value: _item(b"o", encoder._named(struct.Struct) + encoder.encode(value.format)),
    # Parts of classes that pickle does not reduce.
    staticmethod: lambda encoder, value: _item(b"T", encoder.encode(value.__func__)),
    classmethod: lambda encoder, value: _item(b"K", encoder.encode(value.__func__)),
    functools.cached_property: lambda encoder, value: _item(b"H", encoder._all((value.func, value.attrname))),
}
