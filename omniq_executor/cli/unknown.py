"""What is said where a command was asked about something that the store does not hold: that, and what it holds."""

from collections.abc import Iterable

import click

from ..errors import FunctionLost
from ..model.failures import groups_of
from ..stores.base import Store
from ..stores.retention import names
from .console import printable

_SHOWN = 10  # names


def tell_of_function(store: Store, name: str) -> None:
    """Say it if no call is of a function of that name. It reads all calls: for where nothing else was found."""
    digests = {call.digest for call in store.calls([0, *(run.id for run in store.runs())])}
    paths = set()
    for digest in digests:
        try:
            paths.add(store.function(digest).path)
        except FunctionLost:
            continue
    if not any(names(name, path) for path in paths):
        _tell(f"no call is of a function {name!r}", "there are calls of", paths, "there are no calls at all")


def tell_of_group(store: Store, group: str, queue: str | None) -> None:
    """Say that no failure is of that group."""
    groups = (it.id for it in groups_of(store.failures(queue)))
    where = "" if queue is None else f" of the queue {queue!r}"
    _tell(f"no failure{where} is of a group {group!r}", "the groups are", groups, "no call has failed")


def _tell(what: str, there: str, found: Iterable[str], nothing: str) -> None:
    shown = sorted(found)
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    instead = f"{there} {', '.join(shown[:_SHOWN])}{more}" if shown else nothing
    click.echo(printable(f"{what}: {instead}"), err=True)
