"""The commands that look after a store: `retry`, `cancel`, `forget`, `purge`, `backup`, `migrate` and `doctor`."""

import logging
import os
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager

import click

from ..config import Settings, parse_address
from ..model.failures import group_of
from ..model.task import FINISHED, Status, format_id
from ..stores import open_store
from ..stores.base import Store, now
from ..stores.migration import UnderWay, check_still, migrate as move
from .console import count_of_tasks, exit_with, owner_fields, print_json, printable, progress, report
from .options import as_json as json_option, checked_duration, checked_ids, look_into, on_store
from .unknown import tell_of_group

_WAIT_S = 0.5  # between two looks whether a store is still
_FORGOTTEN_AT_ONCE = 1000  # tasks, in a transaction


@click.command()
@click.argument("task_ids", metavar="[ID]...", nargs=-1, callback=checked_ids)
@click.option("--failed", is_flag=True, help="All that have failed.")
@click.option("--group", metavar="GROUP", help="Those of a group, as `omniq-executor failures` names it.")
@click.option("--queue", help="With --failed or --group: only those of this queue.")
@on_store
def retry(
    task_ids: list[int], failed: bool, group: str | None, queue: str | None, address: str | None, as_json: bool
) -> None:
    """Have tasks that failed or were cancelled run again.

    \b
    For example:
      omniq-executor retry task-0d5kq3v7x8m2a
      omniq-executor retry --failed --queue etl
      omniq-executor retry --group 5f1c09ab
    """
    if bool(task_ids) + failed + (group is not None) != 1:
        raise click.UsageError("give the ids of tasks, or --failed, or --group")
    if queue is not None and task_ids:
        raise click.UsageError("--queue goes with --failed or --group")
    with look_into(address) as store:
        asked = task_ids or [call.id for call in store.failures(queue) if group is None or group_of(call) == group]
        if group is not None and not asked:
            tell_of_group(store, group, queue)
        changed = store.retry(asked, now())
        store.notify(0)  # whoever works on the queue has something to do
        unchanged = _stand(store, asked, changed) if task_ids else {}
    _tell_changes("retried", "PENDING again", changed, unchanged, as_json)


@click.command()
@click.argument("task_ids", metavar="ID...", nargs=-1, callback=checked_ids)
@click.option("--run", type=click.IntRange(min=1), help="All tasks of this run instead, as its leftovers are named.")
@click.option("--running", is_flag=True, help="Also those that run: their processes are ended.")
@on_store
def cancel(task_ids: list[int], run: int | None, running: bool, address: str | None, as_json: bool) -> None:
    """Cancel tasks that have not started; a task that recurs does so no more.

    \b
    For example:
      omniq-executor cancel task-0d5kq3v7x8m2a
      omniq-executor cancel task-0d5kq3v7x8m2a --running
      omniq-executor cancel --run 3
    """
    if (run is None) != bool(task_ids) or (run is not None and running):
        raise click.UsageError("give the ids of tasks, or --run alone")
    with look_into(address) as store:
        changed = store.cancel(task_ids, now(), running) if run is None else store.cancel_run(run, now())
        store.notify(0)
        unchanged = _stand(store, task_ids, changed)
    _tell_changes("cancelled", "cancelled", changed, unchanged, as_json)


def _stand(store: Store, asked: Sequence[int], changed: Collection[int]) -> dict[str, str | None]:
    """Return by id the states of tasks that were asked for and not changed; None for one that is not there."""
    ended = {options.series for id in changed if (options := store.get(id).options) is not None}
    found = {id: store.get(id) for id in {found.id for found in store.states(asked)}}
    return {
        format_id(id): found[id].status.name if id in found else None
        for id in asked
        if id not in changed and (id not in found or found[id].series not in ended)
    }


def _tell_changes(
    done: str, now_they_are: str, changed: list[int], unchanged: dict[str, str | None], as_json: bool
) -> None:
    if as_json:
        print_json({done: [format_id(id) for id in changed], "unchanged": unchanged})
    else:
        click.echo(f"{count_of_tasks(len(changed))} {now_they_are}")
        for id, state in unchanged.items():
            click.echo(f"{id} is {state or 'not there'}, and is not {done}", err=True)
    exit_with(not changed or bool(unchanged))


@click.command()
@click.option("--function", metavar="NAME", required=True, help="Its dotted path, or the end of it: etl.parse, parse.")
@click.option("--queue", help="Only calls of this queue, and what was given their results.")
@click.option("--dry-run", is_flag=True, help="Only say how many tasks those are.")
@on_store
def forget(function: str, queue: str | None, dry_run: bool, address: str | None, as_json: bool) -> None:
    """Have no later run reuse what a function returned, nor what was given that as an argument.

    These tasks are removed, if they are finished. What is PENDING or RUNNING stays, with what it needs.

    \b
    For example:
      omniq-executor forget --function parse --dry-run
      omniq-executor forget --function etl.parse --queue etl
    """
    with look_into(address) as store:
        calls, dependents = store.results_of(function, queue)
        ids, removed = [*dependents, *calls], 0  # in this order: what depends on others goes before them
        for first in range(0, 0 if dry_run else len(ids), _FORGOTTEN_AT_ONCE):
            removed += store.remove(ids[first : first + _FORGOTTEN_AT_ONCE])
    found = {"calls": len(calls), "dependents": len(dependents), "removed": removed}
    what = f"{count_of_tasks(len(calls))} of {function}, and {len(dependents)} that were given their results"
    report(as_json, found, f"{what}: {'nothing is removed' if dry_run else f'{removed} removed'}")
    exit_with(not ids)


@click.command()
@click.option(
    "--older-than",
    metavar="TIME",
    callback=checked_duration,
    help="How long ago they ended, at least: 7d, 12h, 90 (seconds).  [default: OMNIQ_RESULT_TTL]",
)
@click.option(
    "--status",
    "states",
    multiple=True,
    type=click.Choice(sorted(state.name for state in FINISHED), case_sensitive=False),
    help="Only those in this state; can be given several times.",
)
@click.option("--queue", help="Only the tasks of this queue.")
@on_store
def purge(
    older_than: float | None, states: tuple[str, ...], queue: str | None, address: str | None, as_json: bool
) -> None:
    """Remove tasks that are finished, their results and what only they used.

    What is PENDING or RUNNING stays.

    \b
    For example:
      omniq-executor purge --older-than 7d
      omniq-executor purge --older-than 12h --status COMPLETED --queue etl
    """
    if older_than is None:
        older_than = Settings.from_env().result_ttl if "OMNIQ_RESULT_TTL" in os.environ else None
    if older_than is None:
        raise click.UsageError("give --older-than, 7d say, or set OMNIQ_RESULT_TTL")
    at = now()
    with look_into(address) as store:
        store.reap(at)  # what the dead hold on to can go, too
        before = at - int(min(older_than * 1e6, at))
        removed = store.purge(before, [Status[state.upper()] for state in states] or FINISHED, queue)
    report(as_json, {"removed": removed}, f"{count_of_tasks(removed)} removed")
    exit_with(not removed)


@click.command()
@click.argument("destination", metavar="DEST")
@on_store
def backup(destination: str, address: str | None, as_json: bool) -> None:
    """Copy a store, as it is at one moment, while others use it.

    DEST is a path at which nothing is yet: a database file for a database, a folder for a folder. What is
    RUNNING is PENDING in the copy.

    \b
    For example:
      omniq-executor backup backups/2026-05-01.db
    """
    there, here = parse_address(destination), parse_address(address)
    if there.backend != here.backend:
        kinds = {"sqlite": "a database, such as copy.db", "file": "a folder, such as copy"}
        raise click.UsageError(
            f"{destination} is the name of {kinds[there.backend]}, and the store is {kinds[here.backend]}:"
            " give such a name, or use `omniq-executor migrate`"
        )
    with look_into(address) as store:
        tasks = store.backup(there.path)
    done = {"backup": str(there.path.absolute()), "tasks": tasks}
    report(as_json, done, f"{count_of_tasks(tasks)} in {there.path}")


@click.command()
@click.argument("source", metavar="SOURCE")
@click.argument("destination", metavar="DEST", required=False)
@click.option("--wait", is_flag=True, help="Wait until nothing in SOURCE is under way, instead of refusing.")
@json_option
def migrate(source: str, destination: str | None, wait: bool, as_json: bool) -> None:
    """Have all tasks and runs of SOURCE in DEST, a new store, with their ids.

    Each is a database file or a folder, in any combination. SOURCE stays as it is. If it is interrupted, run
    it again: it goes on. DEST can be used when it is finished. Without DEST, or if it is SOURCE, an older
    format is brought up to date in its place.

    \b
    For example:
      omniq-executor migrate omniq_data/omniq.db runs/etl
      omniq-executor migrate runs/etl runs/etl.db
    """
    here, there = parse_address(source), parse_address(destination or source)
    with closing(open_store(source, create=False)) as old:  # which brings an older format up to date
        if destination is None or (here.backend, here.path.resolve()) == (there.backend, there.path.resolve()):
            done = {"source": old.address, "destination": old.address, "tasks": len(old.ids()), "written": 0}
            report(as_json, done, f"{old.address} has the newest format: nothing is left to do")
            return
        while True:
            try:
                check_still(old)  # before anything is made
                with (
                    closing(open_store(destination, importing=True)) as new,
                    progress("tasks", len(old.ids())) as advance,
                ):
                    moved = move(old, new, advance)
                    where = new.address
                break
            except UnderWay:
                if not wait:
                    raise
            time.sleep(_WAIT_S)
    done = {"source": old.address, "destination": where, "tasks": moved.tasks, "written": moved.written}
    tasks = count_of_tasks(moved.tasks)
    if moved.written or not moved.tasks:
        report(as_json, done, f"{tasks} of {old.address} are in {where}")
    else:
        report(as_json, done, f"{where} holds {tasks} of {old.address} already: nothing to do")


@contextmanager
def _errors_alone() -> Iterator[None]:
    """Have nothing be logged but errors."""
    log = logging.getLogger("omniq_executor")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


@click.command()
@on_store
def doctor(address: str | None, as_json: bool) -> None:
    """Check a store, repair what can be, and say what was not as it should be.

    The exit status is 1 if something could not be repaired.

    \b
    For example:
      omniq-executor doctor --store runs/etl.db
    """
    with _errors_alone(), look_into(address) as store:  # the rest is told below, and not twice
        problems = store.check()
        owners = [owner_fields(owner) for owner in store.owners()]
        where = store.address
    if as_json:
        print_json({"store": where, "problems": [problem._asdict() for problem in problems], "owners": owners})
    else:
        for what, repaired in problems:
            click.echo(f"{'repaired: ' if repaired else 'PROBLEM:  '}{printable(what)}")
        left = sum(not repaired for _, repaired in problems)
        found = f"{len(problems) - left} problems repaired, {left} left" if problems else "no problems"
        click.echo(f"{where}: {found}; {len(owners)} processes work on it")
    exit_with(not all(repaired for _, repaired in problems))
