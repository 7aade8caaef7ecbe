"""Arguments without a stable form: nobody can tell in a later run whether they are the same, which is said once.

Calls with such an argument run again in each run. Whoever submits them is told the first time, since it may be easy to
change: a list in place of a view of a dict, say.
"""

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from types import FunctionType, MethodType
from typing import Any

from ..code import digest as keys

_log = logging.getLogger("omniq_executor")
_MOST_KNOWN = 4096
_watched: dict[str, Sequence[str]] = {}  # by the path of a function, the names of its parameters
_said: set[tuple[str, str, type]] = set()


def watch(path: str, function: Callable[..., Any]) -> None:
    """Have arguments of a function be named that keep its calls from being resumed."""
    if len(_watched) >= _MOST_KNOWN:
        _watched.clear()
    _watched[path] = _parameters(function)


def name(path: str, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """Say once of each parameter of a function that is watched which of these arguments has no stable form, and why."""
    parameters = _watched.get(path)
    if parameters is None:
        return
    given = [*_named(parameters, args), *((f"{name!r}", value) for name, value in kwargs.items())]
    if any((path, name, type(value)) in _said for name, value in given):
        return  # the rest is not looked at with each call
    for name, value in given:
        try:
            keys.value_digest(value)
        except keys.Uncanonical as error:
            _said.add((path, name, type(value)))
            _log.warning(
                "argument %s of %s, of type %s, has no stable form (%s): calls with it run again in each run, and are"
                " not resumed", name, path, type(value).__qualname__, error,
            )  # fmt: skip


def _named(parameters: Sequence[str], args: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    for place, value in enumerate(args):
        yield f"{parameters[place]!r}" if place < len(parameters) else f"{place + 1}", value


def _parameters(function: Any) -> Sequence[str]:
    """Return the names of the parameters that are given by their place, as far as they can be told."""
    if isinstance(function, functools.partial):
        return _parameters(function.func)[len(function.args) :]
    if isinstance(function, type):
        return _parameters(function.__init__)[1:]  # type: ignore[misc]
    if isinstance(function, MethodType):
        return _parameters(function.__func__)[1:]
    if isinstance(function, FunctionType):
        return function.__code__.co_varnames[: function.__code__.co_argcount]
    return ()
