"""Which context of multiprocessing a pool needs, where its user has named none.

Locks of a fork context, and events, queues and values, which have such locks in them, have no name, and so
reach only a process that is forked. All else of multiprocessing reaches workers of every start method.
"""

import functools
import itertools
import logging
import multiprocessing
import types
from collections import deque
from collections.abc import Iterable
from multiprocessing.context import BaseContext
from typing import Any

_log = logging.getLogger("omniq_executor")
_MAX_DEPTH = 8  # a lock in an event in an object in a list is 5 deep
_MAX_OBJECTS = 10_000  # looked at in all; who passes more than that does not wait for it
_MAX_EACH = 1_000  # items of one container
_LEAVES = (str, bytes, bytearray, int, float, complex, type(None), type, types.ModuleType, types.FunctionType)


def default_context() -> BaseContext:
    """Forkserver where there is one, else spawn."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    return multiprocessing.get_context(method)


def context_for(initializer: Any, initargs: tuple[Any, ...]) -> BaseContext:
    """The context for a pool whose workers begin with `initializer(*initargs)`: the default one, if that will do."""
    if initializer is None or not _holds_fork_lock((initializer, *initargs)):
        return default_context()
    _say_that_it_forks()
    return multiprocessing.get_context("fork")


@functools.cache
def _say_that_it_forks() -> None:
    _log.warning(
        "the initializer is given a lock, queue or the like of multiprocessing's context fork, so the workers are"
        " forked; with mp_context=multiprocessing.get_context('fork') this is not said, and what is made by"
        " get_context('forkserver') needs no fork"
    )


def _holds_fork_lock(values: tuple[Any, ...]) -> bool:
    """Whether a lock that reaches only forked processes is found in values, and in what they hold.

    Containers and attributes are looked at, near ones first, and nothing is pickled for it.
    """
    seen: set[int] = set()
    waiting: deque[tuple[Any, int]] = deque((value, 0) for value in values)
    while waiting and len(seen) < _MAX_OBJECTS:
        value, depth = waiting.popleft()
        if id(value) in seen or issubclass(type(value), _LEAVES):  # isinstance() would ask a proxy what it stands for
            continue
        seen.add(id(value))
        if _is_fork_lock(value):
            return True
        if depth < _MAX_DEPTH:
            try:
                held = list(itertools.islice(_held_by(value), _MAX_EACH))
            except RuntimeError:  # another thread changes it at this moment
                continue
            waiting.extend((each, depth + 1) for each in held)
    return False


def _is_fork_lock(value: Any) -> bool:
    """Whether it is a semaphore of a context that forks.

    Those are unlinked as they are made, and therefore without a name, in every version of Python.
    """
    semaphore = _attributes(value).get("_semlock") if type(value).__module__ == "multiprocessing.synchronize" else None
    return semaphore is not None and semaphore.name is None


def _held_by(value: Any) -> Iterable[Any]:
    kind = type(value)  # as above
    if issubclass(kind, dict):
        return itertools.chain(dict.values(value), dict.keys(value), _attributes(value).values())
    if issubclass(kind, (tuple, list, set, frozenset, deque)):
        return itertools.chain(value, _attributes(value).values())
    if issubclass(kind, types.MethodType):
        return (value.__self__,)
    if issubclass(kind, functools.partial):
        return (value.func, *value.args, *value.keywords.values())
    return _attributes(value).values()


def _attributes(value: Any) -> dict[str, Any]:
    try:
        found = object.__getattribute__(value, "__dict__")  # not by an attribute that the class makes up
    except AttributeError:
        return {}
    return found if isinstance(found, dict) else {}
