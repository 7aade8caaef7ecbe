"""Functions on their way into the store: what they are called, what identifies them, how they travel."""

import hashlib
import pickle
import sys
import types
from typing import Any

from . import codec, dependencies, keys
from .errors import SerializationError
from .model import Task
from .stores.base import Call, Function

_CACHE_SIZE = 1024


class Functions:
    """Remembers the stored form of functions that are found by name.

    Only theirs: what travels by value carries what it closes over, which may have changed since.
    """

    def __init__(self) -> None:
        self._by_name: dict[Any, Function] = {}

    def describe(self, function: Any) -> Function:
        """The stored form of a function. Raises SerializationError if it has none, TypeError if it cannot be called."""
        if type(function) in _NAMED:
            known = self._by_name.get(function)
            if known is not None:
                return known
        elif not callable(function):
            raise TypeError(f"{function!r} cannot be called")
        pickled = codec.dump_function(function)
        try:
            digest = keys.function_digest(function)
        except keys.Uncanonical:  # then it is the same only if its pickle is
            digest = hashlib.blake2b(pickled, digest_size=16).digest()
        described = Function(digest, _path(function), pickled)
        if type(function) in _NAMED and _is_by_name(function, pickled):
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


def stored_call(function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Call, tuple[int, ...]]:
    """The stored form of a call's arguments, and the tasks whose futures are among them.

    Raises SerializationError if they have none.
    """
    plain = codec.encode_plain_call(args, kwargs)
    if plain is not None:
        return Call(*plain), ()
    with dependencies.noting() as noted:
        try:
            pickled = codec.dump_call(args, kwargs)
        except SerializationError as error:
            cause = error.__cause__
            raise SerializationError(
                f"an argument of {function.path} can be neither written as JSON nor pickled:"
                f" {type(cause).__name__}: {cause}"
            ) from cause
        after = tuple(dict.fromkeys(noted))
        try:
            identity = keys.value_digest((args, kwargs))
        except keys.Uncanonical:
            identity = _UNSTABLE + hashlib.blake2b(pickled, digest_size=16).digest()
    return Call(pickled, None, identity), after


_UNSTABLE = b"?"  # begins the identity of arguments that have no stable form


def same_arguments(task: Task, identity: bytes | None, call: Call) -> bool:
    """Whether a call has the arguments of a stored task, as far as can be told.

    Arguments without a stable form may be the same, and results of other tasks are what their key says.
    """
    if call.identity is None or identity is None:
        return (call.args, call.kwargs, call.identity) == (task.args, task.kwargs, identity)
    if call.identity.startswith(_UNSTABLE) or identity.startswith(_UNSTABLE):
        return True
    return call.identity == identity or bool(task.options is not None and task.options.after)


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
