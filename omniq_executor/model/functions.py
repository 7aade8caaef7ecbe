"""Functions on their way into the store: what they are called, what identifies them, how they travel."""

import logging
import os
import pickle
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from .. import inputs, values
from ..code import digest as keys, memory, modules, parts, spaces, versions
from ..errors import SerializationError, TooLarge
from ..hashes import hash_of
from ..model.task import Call, Function
from ..value_files import Files, Pin
from . import codec, dependencies, unstable
from .task import Task

_CACHE_SIZE = 1024
_LARGEST_KEPT = 1 << 18  # bytes of a pickle
_MOST_PINS = 64
_TOLD_OF = 10_000_000  # bytes that a function reads

_log = logging.getLogger("omniq_executor")
_UNSTABLE = b"?"  # begins the identity of arguments that have no stable form, which is longer than a digest by it
_WITHOUT_CODE = 16  # bytes at the beginning of the identity of a call with a key; the rest says what code is in it


class _Known(NamedTuple):
    function: Function
    version: versions.Version | None  # of the code that it names, if any of it is the user's own
    named: Sequence[Any]  # what of such modules it holds by name

    def still_holds(self) -> bool:
        return self.version is None or self.version.still_holds()


class Functions:
    """Remembers the stored form of functions: by themselves where they are found by name.

    What travels by value is known by the signature of all that it carries, which is written anew only if that may have
    changed (see code/memory.py).
    """

    def __init__(
        self,
        prepare: Callable[[], Any] | None = None,
        names_unstable: bool = False,
        files: Files | None = None,
    ) -> None:
        """`prepare` is called before a function is first described, and returns what workers have of the script.

        `names_unstable` says whether arguments are to be named that keep calls from being resumed. Large globals go
        into `files`.
        """
        self._prepare = prepare
        self._names_unstable = names_unstable
        self._snapshot: Any = None
        self._files = files
        self._told: set[str] = set()  # the functions of which it was said that they read much
        self._pins: dict[str, Pin] = {}  # of the globals of what was described, by name
        self._of_this_process: dict[bytes, bytes] = {}  # digests that no other process is to know again
        self._known: dict[Any, _Known] = {}  # by the function, or by the signature of all that is carried by value

    def describe(self, function: Any) -> Function:
        """Return the stored form of a function.

        Raise SerializationError if it has none, TypeError if it cannot be called.
        """
        if type(function) in _NAMED:
            known = self._known.get(function)
            if known is not None and known.still_holds():
                return known.function
        if (carried := memory.recall(function, self._snapshot)) is not None and carried.signature is not None:
            known = self._known.get(carried.signature)
            if known is not None and known.function.pickle and known.still_holds():
                return known.function
        if not callable(function):
            raise TypeError(f"{function!r} cannot be called")
        if self._prepare is not None:
            self._snapshot, self._prepare = self._prepare(), None
        with values.writing(self._files) as writer:
            described = self._describe(function)
        if writer is not None and writer.pins:
            self._keep_pins(writer.pins)
        return described

    def _tell_of(self, function: Any, sizes: Mapping[spaces.Key, int]) -> None:
        """Say once that a function reads so much data that each look at it costs something."""
        size, path = sum(sizes.values()), path_of(function)
        if size <= _TOLD_OF or path in self._told:
            return
        self._told.add(path)
        names = [name for _, name in sorted(sizes, key=lambda key: -sizes[key])]
        largest = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        _log.warning(
            "%s reads %s of data of the script (%s). It is stored once, and each worker loads it once; but every"
            " submit() looks whether it has changed, where map() looks once", path, _shown(size), largest,
        )  # fmt: skip

    def _keep_pins(self, pins: list[Pin]) -> None:
        """Have files be there for as long as functions are described here: the store may have another pickle of one."""
        for pin in pins:
            self._pins.pop(pin.name, pin)
            self._pins[pin.name] = pin
        while len(self._pins) > max(_MOST_PINS, len(pins)):
            del self._pins[next(iter(self._pins))]

    def _describe(self, function: Any) -> Function:
        dependencies.here.is_function = True  # no block of `with`: this is on the way of each submit
        try:
            written = codec.write(function, self._snapshot)
        finally:
            dependencies.here.is_function = False
        if values.here.writer is not None and values.here.writer.pins:
            self._tell_of(function, written.sizes)
        if written.signature is not None:
            known = self._known.get(written.signature)
            if known is not None and known.still_holds():
                # With the pickle that was given first, if it is small: workers know it by that.
                return known.function if known.function.pickle else self._checked(known, written)
        pieces: list[keys.Piece] = []
        digest, named = keys.digest_and_named(function, versions.code_of, pieces)
        digest = digest or self._digest_of_pickle(written)
        version = versions.check_of(function, named)
        if version is not None:
            digest = hash_of(digest + version.identity)
            pieces += version.pieces()
        known = _Known(Function(digest, path_of(function), b"", parts.parts_of(pieces)), version, named)
        if self._names_unstable:
            unstable.watch(known.function.path, function)
        described = self._checked(known, written)
        if inputs.__name__.encode() in written.data:
            return described  # it carries an InputFile, whose content counts, and is looked at each time
        if written.signature is not None:
            self._keep(
                written.signature, known._replace(function=described) if len(written.data) < _LARGEST_KEPT else known
            )
        elif type(function) in _NAMED and function.__module__ != "__main__" and written.data == _pickled(function):
            # By value or by name after all, a function of the script is never cached; see the class.
            self._keep(function, known._replace(function=described))
        return described

    def _keep(self, key: Any, known: _Known) -> None:
        if len(self._known) >= _CACHE_SIZE:
            self._known.clear()
        self._known[key] = known

    def _digest_of_pickle(self, written: spaces.Payload) -> bytes:
        """Return what identifies a function without a stable form: its pickle, if it carries all of the script's code.

        One that names what is the script's would be the same after an edit: it is another one in each process.
        """
        is_by_name = codec.BY_NAME in written.data if written.signature is None else self._snapshot is not None
        if not is_by_name:
            return hash_of(written.data)
        return self._of_this_process.setdefault(written.signature or written.data, os.urandom(16))

    def _checked(self, known: _Known, written: spaces.Payload) -> Function:
        """Return the function with what was written, which is loaded only where the code that it names is the same."""
        function, version, named = known
        if version is None:
            return function._replace(pickle=written.data)
        return function._replace(pickle=versions.check_function(written.data, function.path, version, named))


def named(path: str) -> Function:
    """Return the stored form of the function with a dotted path, which is imported where it is called.

    One of `__main__` is looked for here, as workers do not import the script. Raise ValueError for what is
    no dotted path, and where `__main__` has no such function.
    """
    module, *names = path.split(".")
    if not names or not all(name.isidentifier() for name in (module, *names)):
        raise ValueError(f"{path!r} is not the dotted path of a function, such as my_module.my_function")
    if module == "__main__":
        found = modules.find(sys.modules["__main__"], ".".join(names))
        if not callable(found):
            raise ValueError(f"{path!r} is no function of this script, and workers have no other")
        return Functions().describe(found)
    pickled = pickle.dumps(modules.Reduced(codec.imported, (path,)), 5)  # it need not be importable here
    return Function(hash_of(pickled), path, pickled)


def stored_call(
    function: Function,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    snapshot: Any = None,
    has_key: bool = False,
    *,
    store: str,
    files: Files | None = None,
    keeps_text: bool = False,
) -> tuple[Call, tuple[int, ...]]:
    """Return the stored form of a call's arguments, and the tasks whose futures are among them, if of that store.

    `snapshot` says what workers have of the script by a fork. With `has_key` it is known whether the arguments are
    others, whatever code they hold: see `same_arguments()`. What is large goes into `files`, if they are given, and is
    there until whoever asked lets go of `values.here.pins`. What JSON keeps is pickled then, unless `keeps_text`. Raise
    SerializationError if they have no stored form, and StoreError where a file cannot be written.
    """
    plain = codec.encode_plain_call(args, kwargs)
    if plain is not None and (keeps_text or not values.is_long(*plain)):
        return Call(*plain), ()
    with dependencies.noting(store) as noted, values.writing(files) as writer:
        try:
            pickled = codec.write((args, kwargs), snapshot).data
        except SerializationError as error:
            cause = error.__cause__
            said = f"{cause}" if hasattr(cause, "what") else f"{type(cause).__name__}: {cause}"
            raise SerializationError(
                f"an argument of {function.path} can be neither written as JSON nor pickled: {said}"
            ) from cause
        after = tuple(dict.fromkeys(noted))
        identity, named = keys.digest_and_named((args, kwargs), versions.code_of)
        if identity is None:
            identity = _UNSTABLE + os.urandom(16)  # even an equal pickle may name what is another thing now
            if not has_key:
                unstable.name(function.path, args, kwargs)
        elif has_key:
            identity = keys.without_code((args, kwargs)) + identity
        if named:
            pickled = versions.check_call(pickled, function.path, named)
    if writer is not None and writer.pins:
        pickled = values.hold(pickled)
        values.here.pins += writer.pins
    return Call(pickled, None, identity), after


def same_arguments(task: Task, identity: bytes | None, call: Call) -> bool:
    """Return whether a call with a key has the arguments of the task with that key, as far as can be told.

    Arguments without a stable form may be the same, and results of other tasks are what their key says.
    """
    if call.identity is None or identity is None:
        return (call.args, call.kwargs, call.identity) == (task.args, task.kwargs, identity)
    if _is_unstable(call.identity) or _is_unstable(identity):
        return True
    return call.identity[:_WITHOUT_CODE] == identity[:_WITHOUT_CODE] or bool(
        task.options is not None and task.options.after
    )


def _is_unstable(identity: bytes) -> bool:
    return len(identity) == 17 and identity.startswith(_UNSTABLE)


def too_large(
    error: TooLarge, function: Function, called: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> TooLarge:
    """Return the error of a call that a store cannot hold, with what of it is the largest."""
    from ..code.pickling import parts_of  # 30 ms of imports

    parts = [(_size(value), what) for what, value in parts_of((args, kwargs))]
    for (module, name), size in codec.write(called).sizes.items():
        parts.append((size, f"global `{name}` ({modules.type_name(vars(sys.modules[module]).get(name))})"))
    if not parts:
        return TooLarge(f"{function.path}: {error}")
    size, what = max(parts)
    return TooLarge(f"{function.path}: {what} has {_shown(size)}: {error}")


def _size(value: Any) -> int:
    """Return how many bytes a value takes when it is pickled, roughly."""
    size = getattr(value, "nbytes", None)
    if isinstance(size, int):
        return size
    return len(value) if isinstance(value, str | bytes | bytearray) else len(_pickled(value) or b"")


def _shown(size: int) -> str:
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size} bytes"


_NAMED = frozenset({types.FunctionType, types.BuiltinFunctionType, type})


def _pickled(function: Any) -> bytes | None:
    try:
        return pickle.dumps(function, 5)
    except (pickle.PicklingError, AttributeError, TypeError):
        return None


def path_of(function: Any) -> str:
    """Return what a function is called in the store."""
    inner = getattr(function, "func", function)  # of a functools.partial
    module, name = getattr(inner, "__module__", None), getattr(inner, "__qualname__", None)
    return f"{module}.{name}" if module and name else type(function).__qualname__
