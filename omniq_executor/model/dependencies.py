"""Results as arguments: a future in the arguments of a call of its store stands for what its task will return.

    submit(fn, [future])        the pickle of the arguments has result_of("task-...") where the future was
    stored                      with the ids of those tasks in its options: the call waits for them
    claimed, when they are done the dispatcher binds their stored results to the pickle; those with instances of
                                classes of the script, which name these alone, with the classes
    in the worker               the pickle is loaded, and result_of() gives the results

Where in the arguments a future is makes no difference, as long as pickle comes by it: so nobody
looks for them, and a call without any is not looked through. Results travel as they are stored and are
loaded by the worker alone, each call's own copy of them. Everywhere else, also in the arguments of a call of another
store, a future is pickled as one: see future.py.
"""

import contextlib
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .. import values
from ..code import modules
from ..errors import DependencyFailed
from ..value_files import Files, names_in
from . import codec
from .task import format_id, parse_id

_OF_SCRIPT = codec.script_class.__name__.encode()
_MOST_WRITTEN_ANEW = 1 << 24  # bytes


class _Here(threading.local):
    """What the pickling or unpickling of a call's arguments in this thread is to know."""

    noted: list[int] | None = None  # the tasks that were referred to, while arguments are being pickled, ...
    store = ""  # ... which are of the store of that url
    is_function = False  # whether it is a function that is being pickled
    results: Mapping[int, str | bytes] | None = None  # their results, while arguments are being loaded
    is_looking = False  # whether arguments are loaded to be looked at alone


here = _Here()


@contextlib.contextmanager
def noting(store: str) -> Iterator[list[int]]:
    """Have futures of a store be pickled as their results; gives the list to which their tasks' numbers are added."""
    before = here.noted, here.store
    noted: list[int] = []
    here.noted, here.store = noted, store
    try:
        yield noted
    finally:
        here.noted, here.store = before


def refer(number: int, store: str) -> Any:
    """How the future of a task is pickled where it stands for its result, or None where it does not.

    Raises TypeError in a function: what that closes over is no argument, so a call would wait for it in a worker.
    """
    if here.is_function:
        raise TypeError("a future can be an argument of a call, and not a part of its function")
    if here.noted is None or not _is_same(here.store, store):
        return None
    here.noted.append(number)
    return result_of, (format_id(number),)


def _is_same(one: str, other: str) -> bool:
    """Return whether two addresses are of one store, which may have been opened by several names."""
    return one == other or os.path.realpath(one.partition("//")[2]) == os.path.realpath(other.partition("//")[2])


def result_of(task_id: str) -> Any:
    """The result of a task in the arguments of a call that is about to run; what stands for it for who only looks.

    Raises DependencyFailed if the call does not wait for that task, as one whose arguments were stored anew.
    """
    if here.is_looking:
        return Reference(task_id)
    if here.results is None:
        raise DependencyFailed(f"the arguments refer to the result of {task_id}, which the call does not wait for")
    return codec.decode(here.results[parse_id(task_id)])


@contextlib.contextmanager
def looking() -> Iterator[None]:
    """Have arguments be loaded with what stands for results."""
    here.is_looking = True
    try:
        yield
    finally:
        here.is_looking = False


class Reference:
    """Stands for a result in arguments that are only looked at."""

    def __init__(self, task_id: str) -> None:
        self.task_id = task_id

    def __repr__(self) -> str:
        return f"<result of {self.task_id}>"


def for_workers(result: str | bytes, files: Callable[[], Files], snapshot: Any) -> str | bytes:
    """Return a result as workers can load it: with the classes of the script, of which it has the names alone.

    One that is large, or that this process cannot load either, stays as it is: workers that know these classes, as from
    the function that they run, can load it.
    """
    if isinstance(result, str) or values.size_with_files(result) > _MOST_WRITTEN_ANEW:
        return result
    try:
        in_files = names_in(result) if values.is_reference(result) else ()
        if _OF_SCRIPT in result or any(files().open(name).find(_OF_SCRIPT) >= 0 for name in in_files):
            return codec.write(codec.decode_result(result, files), snapshot).data
        return result
    except Exception:  # noqa: BLE001 - code of the user's class may raise anything; the call says what, if it does there
        return result


def bind(args: str | bytes, kwargs: str | None, results: Mapping[int, str | bytes]) -> bytes:
    """The stored form of a call whose arguments refer to results, from its own and theirs."""
    return pickle.dumps(modules.Reduced(load_bound, (args, kwargs, results)), 5)


def load_bound(args: str | bytes, kwargs: str | None, results: Mapping[int, str | bytes]) -> Any:
    """The arguments, with the results in place."""
    with giving(results):
        return codec.decode_call(args, kwargs)


@contextlib.contextmanager
def giving(results: Mapping[int, str | bytes]) -> Iterator[None]:
    """Have arguments that are loaded be given these results."""
    before, here.results = here.results, results
    try:
        yield
    finally:
        here.results = before
