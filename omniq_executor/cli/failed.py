"""The commands about what failed: `failures` and `debug`."""

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from .. import debugging
from ..dispatch.history import failures_of
from ..model.failures import FailureGroup
from ..model.task import FailedCall
from ..stores import open_store
from ..stores.base import Store
from ..stores.retention import names
from .console import print_json, printable
from .options import checked_id, checked_since, look_into, on_store, store_option
from .unknown import tell_of_function


@click.command()
@click.option("--queue", help="Only the calls of this queue.")
@click.option("--function", "name", metavar="NAME", help="Only calls of it: its dotted path, or the end of it.")
@click.option("--run", type=int, metavar="RUN", help="Only the calls of this run.")
@click.option(
    "--since", callback=checked_since, metavar="TIME", help="Only what failed in the last 2h, say, or since a date."
)
@on_store
def failures(
    queue: str | None, name: str | None, run: int | None, since: int | None, address: str | None, as_json: bool
) -> None:
    """Show what failed, in groups.

    A group has the calls that failed by the same exception, raised from the same line of your own code.

    \b
    For example:
      omniq-executor failures
      omniq-executor failures --function parse --since 2h
      omniq-executor retry --group 5f1c09ab
      omniq-executor debug task-0d5kq3v7x8m2a
    """
    with look_into(address) as store:
        found = failures_of(store, _calls(store, queue, name, run, since))
        if name is not None and not found:
            tell_of_function(store, name)
    if as_json:
        for group in found:
            print_json(group.to_dict(), indent=None)
        return
    click.echo(found.heading())
    for group in found:
        click.echo()
        _print(group)
    if found:
        click.echo(f"\nomniq-executor debug {found[0].example.task_id} makes such a call again, under the debugger")
        click.echo(f"omniq-executor retry --group {found[0].id} has those of a group run again")


def _calls(
    store: Store, queue: str | None, name: str | None, run: int | None, since: int | None
) -> Iterator[FailedCall]:
    for call in store.failures(queue):
        if (name is None or names(name, call.function)) and run in (None, call.run) and call.failed_at > (since or 0):
            yield call


def _print(group: FailureGroup) -> None:
    what, *others = group.lines()
    click.secho(printable(what), fg="red")
    for line in others:
        click.echo(printable(line))


@click.command()
@click.argument("id", metavar="ID", callback=checked_id)
@store_option
def debug(id: int, address: str | None) -> None:
    """Make a call that failed once more, under the debugger.

    It is made in this process, and pdb opens where it raises. Its side effects happen again; nothing of it is stored.
    It is unpickled, which runs code: only for stores that you trust. Start it in the folder of the script, so that its
    modules are found.

    \b
    For example:
      omniq-executor debug task-0d5kq3v7x8m2a
    """
    sys.path.insert(0, str(Path.cwd()))  # as when the script ran, so that its modules are found
    debugging.debug(open_store(address, create=False), id)
