"""Functions on their way into the store: what they are called, what identifies them, how they travel."""

import hashlib
import pickle
import sys
import types
from typing import Any

from . import codec, dependencies, keys
from .errors import SerializationError
from .stores.base import Call, Function

_CACHE_SIZE = 1024
_LARGEST_KEPT = 1 << 18  # bytes of a pickle


class Functions:
    """Remembers the stored form of functions that are found by name.

    Of what travels by value only what identifies it: what it carries may have changed since.
    """

    def __init__(self, snapshot: Any = None) -> None:
        """`snapshot` says what workers have of the script by a fork."""
        self._snapshot = snapshot
        self._by_name: dict[Any, Function] = {}
        self._by_value: dict[bytes, Function] = {}  # by the signature of all that is carried

    def describe(self, function: Any) -> Function:
        """The stored form of a function. Raises SerializationError if it has none, TypeError if it cannot be called."""
        if type(function) in _NAMED:
            known = self._by_name.get(function)
            if known is not None:
                return known
        elif not callable(function):
            raise TypeError(f"{function!r} cannot be called")
        written = codec.write(function, self._snapshot)
        if written.signature is not None and (known := self._by_value.get(written.signature)) is not None:
            # With the pickle that was given first, if it is small: workers know it by that.
            return known if known.pickle else known._replace(pickle=written.data)
        try:
            digest = keys.function_digest(function)
        except keys.Uncanonical:  # then it is the same only if its pickle is
            digest = hashlib.blake2b(written.data, digest_size=16).digest()
        described = Function(digest, _path(function), written.data)
        if written.signature is not None:
            if len(self._by_value) >= _CACHE_SIZE:
                self._by_value.clear()
            kept = described if len(written.data) < _LARGEST_KEPT else described._replace(pickle=b"")
            self._by_value[written.signature] = kept
        elif type(function) in _NAMED and _is_by_name(function, written.data):
            if len(self._by_name) >= _CACHE_SIZE:
                self._by_name.clear()
            self._by_name[function] = described
        return described


def named(path: str) -> Function:
    """The stored form of the function with a dotted path, which is imported where it is called.

    One of `__main__` is looked for here, as workers do not import the script. Raises ValueError for what is
    no dotted path, and where `__main__` has no such function.
    """
    module, *names = path.split(".")
    if not names or not all(name.isidentifier() for name in (module, *names)):
        raise ValueError(f"{path!r} is not the dotted path of a function, such as my_module.my_function")
    if module == "__main__":
        found: Any = sys.modules["__main__"]
        for name in names:
            found = getattr(found, name, None)
        if not callable(found):
            raise ValueError(f"{path!r} is no function of this script, and workers have no other")
        return Functions().describe(found)
    pickled = codec.dump_path(path)
    return Function(hashlib.blake2b(pickled, digest_size=16).digest(), path, pickled)


def stored_call(
    function: Function, args: tuple[Any, ...], kwargs: dict[str, Any], snapshot: Any = None
) -> tuple[Call, tuple[int, ...]]:
    """The stored form of a call's arguments, and the tasks whose futures are among them.

    `snapshot` as for Functions. Raises SerializationError if they have none.
    """
    plain = codec.encode_plain_call(args, kwargs)
    if plain is not None:
        return Call(*plain), ()
    with dependencies.noting() as noted:
        try:
            pickled = codec.dump_call(args, kwargs, snapshot)
        except SerializationError as error:
            cause = error.__cause__
            said = f"{cause}" if hasattr(cause, "what") else f"{type(cause).__name__}: {cause}"
            raise SerializationError(
                f"an argument of {function.path} can be neither written as JSON nor pickled: {said}"
            ) from cause
        after = tuple(dict.fromkeys(noted))
        try:
            identity = keys.value_digest((args, kwargs))
        except keys.Uncanonical:
            identity = hashlib.blake2b(pickled, digest_size=16).digest()
    return Call(pickled, None, identity), after


_NAMED = frozenset({types.FunctionType, types.BuiltinFunctionType, type})


def _is_by_name(function: Any, pickled: bytes) -> bool:
    # By value or by name after all, a function of the script is never cached; see the class.
    return getattr(function, "__module__", None) != "__main__" and pickled == _dumps_or_none(function)


def _dumps_or_none(function: Any) -> bytes | None:
    try:
        return pickle.dumps(function, 5)
    except (pickle.PicklingError, AttributeError, TypeError):
        return None


def _path(function: Any) -> str:
    inner = getattr(function, "func", function)  # of a functools.partial
    module, name = getattr(inner, "__module__", None), getattr(inner, "__qualname__", None)
    return f"{module}.{name}" if module and name else type(function).__qualname__
