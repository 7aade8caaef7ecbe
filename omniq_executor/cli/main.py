"""The command `omniq-executor`: a look into a store, its upkeep, and the demo.

Looking creates nothing, runs nothing and, short of `show --load`, unpickles nothing. The exit status
is 0 when what was asked for is done, 1 when there was nothing to do it to or a problem is left, and
2 for a command that makes no sense.
"""

import io
import json
import logging
import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from .. import __version__
from ..config import Settings, parse_address, parse_duration
from ..errors import OmniqError, SettingsError
from ..model import codec, dependencies
from ..model.fields import task_fields
from ..model.task import FINISHED, Status, Task, format_id, iso, parse_id
from ..stores import open_store
from ..stores.base import Owner, Store, now
from ..stores.migration import UnderWay, check_still, migrate as move
from .console import Raw, first_line, print_table, printable, progress
from .demo import run as run_demo
from .log_follower import pieces
from .queue_worker import run as run_worker

_WAIT_S = 0.5  # between two looks whether a store is still


class _Commands(click.Group):
    """Commands that report the package's own errors as one line and exit status 1, or 2 for a bad setting."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SettingsError as error:
            raise click.UsageError(printable(str(error))) from error
        except OmniqError as error:
            raise click.ClickException(printable(" ".join(str(error).split()))) from error


def _checked_id(ctx: click.Context, param: click.Parameter, value: str) -> str:
    try:
        parse_id(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    return value


def _checked_ids(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> list[int]:
    return [parse_id(_checked_id(ctx, param, value)) for value in dict.fromkeys(values)]


def _checked_names(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    if "" in values:
        raise click.BadParameter("a name is empty")
    return tuple(dict.fromkeys(values))


def _checked_duration(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    try:
        return None if value is None else parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _checked_fraction(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    if value is not None and not 0 <= value <= 1:
        raise click.BadParameter(f"{value} is not between 0 and 1")
    return value


_store = click.option(
    "--store",
    "address",
    metavar="ADDRESS",
    help="The store.  [default: what the variables OMNIQ_* say, else omniq_data/omniq.db]",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Look into a store of durable calls and look after it, or try the demo."""
    for stream in sys.stdout, sys.stderr:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # whatever a task holds can be shown


@main.command()
@_store
@_json
def status(address: str | None, as_json: bool) -> None:
    """Count tasks by queue and state, and tell which owners live.

    \b
    For example:
      omniq-executor status --store runs/etl.db
    """
    with _look_into(address) as store:
        counts, owners = store.counts(), [_owner_fields(owner) for owner in store.owners()]
    if as_json:
        queues = {queue: {state.name: number for state, number in found.items()} for queue, found in counts.items()}
        _print_json({"queues": queues, "owners": owners})
        return
    print_table(
        ["QUEUE", *(state.name for state in Status)],
        [[queue, *(found.get(state, 0) for state in Status)] for queue, found in sorted(counts.items())],
    )
    if owners:
        click.echo()
        print_table([name.upper() for name in owners[0]], [list(owner.values()) for owner in owners])


@main.command("list")
@_store
@click.option("--status", "state", type=click.Choice([state.name for state in Status], case_sensitive=False))
@click.option("--queue", help="Only the tasks of this queue.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="Only the newest so many.")
@_json
def list_(address: str | None, state: str | None, queue: str | None, limit: int, as_json: bool) -> None:
    """List tasks, the newest last.

    \b
    For example:
      omniq-executor list --status FAILED --limit 20
    """
    with _look_into(address) as store:
        tasks = store.find(status=Status[state.upper()] if state else None, queue=queue, limit=limit)
    if as_json:
        _print_json([task_fields(task) for task in tasks])
        return
    print_table(
        ["ID", "STATUS", "ENQUEUED", "FINISHED", "QUEUE", "FUNCTION", "ERROR"],
        [
            [
                task.task_id,
                task.status.name,
                _to_the_second(task.enqueued_at),
                _to_the_second(task.finished_at),
                task.queue,
                task.func_path,
                f"{task.error.type}: {first_line(task.error.message)}" if task.error else "",
            ]
            for task in tasks
        ],
    )


@main.command()
@click.argument("task_id", metavar="ID", callback=_checked_id)
@_store
@click.option("--load", is_flag=True, help="Unpickle what is pickled, which runs code: only for stores you trust.")
@_json
def show(task_id: str, address: str | None, load: bool, as_json: bool) -> None:
    """Show everything about one task.

    \b
    For example:
      omniq-executor show task-0d5kq3v7x8m2a
    """
    with _look_into(address) as store:
        task = store.get(task_id)
        owners = {owner.id: owner for owner in store.owners()}
        wrote = store.output.attempts(task.id, task.attempts)
    fields = task_fields(task)
    loaded = _load(task) if load else {}
    if as_json:
        _print_json({**fields, "loaded": loaded} if load else fields)
        return
    fields |= {"args": _stored_text(task.args), "kwargs": task.kwargs, "result": _stored_text(task.result), **loaded}
    if task.owner in owners:
        owner = _owner_fields(owners[task.owner])
        fields["owner"] = "{owner} (process {pid} on {host}, {state})".format(**owner)
    if task.error:
        called = f"\n\nin {task.error.call}" if task.error.call else ""
        fields["error"] = f"{task.error.type}: {task.error.message}{called}\n\n{task.error.traceback.strip()}"
    if wrote:
        fields["output"] = f"of attempt {', '.join(map(str, wrote))}: omniq-executor logs {task_id}"
    if load:
        fields["loaded"] = ", ".join(loaded) or "nothing: nothing is pickled"
    for name, value in fields.items():
        if value is not None:
            first, *others = printable(str(value)).split("\n")
            click.echo(f"{name:<14}{first}")
            for line in others:
                click.echo(f"{'':<14}{line}".rstrip())


@main.command()
@click.argument("task_id", metavar="ID", callback=_checked_id)
@click.option("--attempt", metavar="N", type=click.IntRange(min=1), help="Only what this attempt wrote, from 1 on.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written until the task is finished.")
@_store
@_json
def logs(task_id: str, attempt: int | None, follow: bool, address: str | None, as_json: bool) -> None:
    """Print what a task wrote to stdout, stderr and logging.

    It is kept where the executor that ran it has capture_output=True, or the worker --capture-output. A line such
    as "==> attempt 2 <==" stands before what a second attempt wrote. The exit status is 1 if nothing was written.

    \b
    For example:
      omniq-executor logs task-0d5kq3v7x8m2a
      omniq-executor logs task-0d5kq3v7x8m2a --follow
      omniq-executor logs task-0d5kq3v7x8m2a --attempt 1 > first.log
    """
    written: dict[int, bytes] = {}
    raw, at = Raw(), attempt or 1
    with _look_into(address) as store:
        for which, data in pieces(store, parse_id(task_id), attempt, follow):
            if as_json:
                written[which] = written.get(which, b"") + data
                continue
            if which != at:
                raw.print_heading(f"==> attempt {which} <==")
            raw.print(data)
            written[which], at = b"", which
    if as_json:
        found = [{"attempt": n, "output": data.decode(errors="replace")} for n, data in sorted(written.items())]
        _print_json({"id": task_id, "attempts": found})
    elif not written:
        click.echo(f"nothing that {task_id} wrote was kept", err=True)
    _exit(bool(written))


@main.command()
@click.argument("task_ids", metavar="[ID]...", nargs=-1, callback=_checked_ids)
@click.option("--failed", is_flag=True, help="All that have failed.")
@click.option("--queue", help="With --failed: only those of this queue.")
@_store
@_json
def retry(task_ids: list[int], failed: bool, queue: str | None, address: str | None, as_json: bool) -> None:
    """Have tasks that failed or were cancelled run again.

    \b
    For example:
      omniq-executor retry task-0d5kq3v7x8m2a
      omniq-executor retry --failed --queue etl
    """
    if failed == bool(task_ids):
        raise click.UsageError("give the ids of tasks, or --failed")
    if queue is not None and not failed:
        raise click.UsageError("--queue goes with --failed")
    with _look_into(address) as store:
        asked = [task.id for task in store.find(Status.FAILED, queue)] if failed else task_ids
        changed = store.retry(asked, now())
        store.notify(0)  # whoever works on the queue has something to do
        unchanged = {} if failed else _stand(store, asked, changed)
    _tell_changes("retried", "PENDING again", changed, unchanged, as_json)


@main.command()
@click.argument("task_ids", metavar="ID...", nargs=-1, callback=_checked_ids)
@click.option("--run", type=click.IntRange(min=1), help="All tasks of this run instead, as its leftovers are named.")
@click.option("--running", is_flag=True, help="Also those that run: their processes are ended.")
@_store
@_json
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
    with _look_into(address) as store:
        changed = store.cancel(task_ids, now(), running) if run is None else store.cancel_run(run, now())
        store.notify(0)
        unchanged = _stand(store, task_ids, changed)
    _tell_changes("cancelled", "cancelled", changed, unchanged, as_json)


@main.command()
@click.option(
    "--older-than",
    metavar="TIME",
    callback=_checked_duration,
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
@_store
@_json
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
        older_than = Settings.from_env().result_ttl
    if older_than is None:
        raise click.UsageError("give --older-than, 7d say, or set OMNIQ_RESULT_TTL")
    at = now()
    with _look_into(address) as store:
        store.reap(at)  # what the dead hold on to can go, too
        before = at - int(min(older_than * 1e6, at))
        removed = store.purge(before, [Status[state.upper()] for state in states] or FINISHED, queue)
    if as_json:
        _print_json({"removed": removed})
    else:
        click.echo(f"{_tasks(removed)} removed")
    _exit(removed > 0)


@main.command()
@click.argument("destination", metavar="DEST")
@_store
@_json
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
    with _look_into(address) as store:
        tasks = store.backup(there.path)
    if as_json:
        _print_json({"backup": str(there.path.absolute()), "tasks": tasks})
    else:
        click.echo(f"{_tasks(tasks)} in {there.path}")


@main.command()
@click.argument("source", metavar="SOURCE")
@click.argument("destination", metavar="DEST", required=False)
@click.option("--wait", is_flag=True, help="Wait until nothing in SOURCE is under way, instead of refusing.")
@_json
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
            if as_json:
                _print_json({"source": old.address, "destination": old.address, "tasks": len(old.ids()), "written": 0})
            else:
                click.echo(f"{old.address} has the newest format: nothing is left to do")
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
    if as_json:
        _print_json({"source": old.address, "destination": where, "tasks": moved.tasks, "written": moved.written})
    elif moved.written or not moved.tasks:
        click.echo(f"{_tasks(moved.tasks)} of {old.address} are in {where}")
    else:
        click.echo(f"{where} holds {_tasks(moved.tasks)} of {old.address} already: nothing to do")


@main.command()
@_store
@_json
def doctor(address: str | None, as_json: bool) -> None:
    """Check a store, repair what can be, and say what was not as it should be.

    The exit status is 1 if something could not be repaired.

    \b
    For example:
      omniq-executor doctor --store runs/etl.db
    """
    logging.getLogger("omniq_executor").setLevel(logging.ERROR)  # it is told below, and not twice
    with _look_into(address) as store:
        problems = store.check()
        owners = [_owner_fields(owner) for owner in store.owners()]
        where = store.address
    if as_json:
        _print_json({"store": where, "problems": [problem._asdict() for problem in problems], "owners": owners})
    else:
        for what, repaired in problems:
            click.echo(f"{'repaired: ' if repaired else 'PROBLEM:  '}{printable(what)}")
        left = sum(not repaired for _, repaired in problems)
        found = f"{len(problems) - left} problems repaired, {left} left" if problems else "no problems"
        click.echo(f"{where}: {found}; {len(owners)} processes work on it")
    _exit(all(repaired for _, repaired in problems))


@main.command()
@click.option("-n", "processes", type=click.IntRange(min=1), help="How many processes.  [default: one for each CPU]")
@click.option(
    "--queue",
    "queues",
    multiple=True,
    callback=_checked_names,
    help="Only this queue; can be given several times.  [default: all of the store]",
)
@click.option(
    "--durability",
    type=click.Choice(["process", "power"]),
    default="process",
    show_default=True,
    help="What results are kept through, once they are acknowledged.",
)
@click.option("--capture-output", is_flag=True, help="Keep what calls write, for `omniq-executor logs`.")
@_store
@_json
def worker(
    processes: int | None,
    queues: tuple[str, ...],
    durability: str,
    capture_output: bool,
    address: str | None,
    as_json: bool,
) -> None:
    """Work off what executors with engine="external", and others, have submitted.

    What is called is imported from where Python finds it, the current folder first. On SIGTERM or Ctrl-C it
    starts nothing more, and ends with status 0 when what runs is done. A second signal ends it at once.

    \b
    For example:
      omniq-executor worker
      omniq-executor worker -n 4 --queue etl --queue reports --store runs/etl.db
    """
    tell = _print_line if as_json else _tell_event
    _exit_with(run_worker(address, processes, queues, durability, capture_output, tell))


@main.command()
@click.argument("folder", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--kill-at",
    metavar="FRACTION",
    type=float,
    callback=_checked_fraction,
    help="Kill this process with SIGKILL when so much is done, from 0 to 1. Run it again to see it resume.",
)
def demo(folder: Path | None, kill_at: float | None) -> None:
    """Analyse every Python file of FOLDER, one durable call a file.

    Without FOLDER it takes the standard library. The store is omniq_data/omniq.db in the current folder.

    \b
    For example:
      omniq-executor demo --kill-at 0.5
    """
    run_demo(folder, kill_at)


def _look_into(address: str | None) -> closing[Store]:
    return closing(open_store(address, create=False))


def _stand(store: Store, asked: Sequence[int], changed: Collection[int]) -> dict[str, str | None]:
    """By id the states of those tasks that were asked for and not changed; None for one that is not there."""
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
        _print_json({done: [format_id(id) for id in changed], "unchanged": unchanged})
    else:
        click.echo(f"{_tasks(len(changed))} {now_they_are}")
        for id, state in unchanged.items():
            click.echo(f"{id} is {state or 'not there'}, and is not {done}", err=True)
    _exit(bool(changed) and not unchanged)


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count} tasks"


def _exit(is_done: bool) -> None:
    if not is_done:
        raise click.exceptions.Exit(1)


def _exit_with(status: int) -> None:
    if status:
        raise click.exceptions.Exit(status)


def _print_line(value: object) -> None:
    click.echo(json.dumps(value))


def _tell_event(event: dict[str, Any]) -> None:
    """Say what a worker is about, but for every task."""
    match event:
        case {"event": "started", "store": store, "queues": queues, "processes": count, "pid": pid}:
            which = f"queues {', '.join(queues)}" if queues else "all queues"
            click.echo(printable(f"process {pid} works off {which} of {store}, {count} calls at a time"))
        case {"event": "draining", "signal": name}:
            click.echo(f"{name}: no more calls are started; another signal ends those that run")
        case {"event": "ended", "completed": completed, "failed": failed}:
            click.echo(f"{_tasks(completed)} completed, {failed} failed")


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2))


def _to_the_second(microseconds: int | None) -> str:
    text = iso(microseconds)
    return f"{text[:19]}Z" if text else ""


def _owner_fields(owner: Owner) -> dict[str, str | int]:
    return {
        "owner": owner.id,
        "queue": owner.queue,
        "host": owner.host,
        "pid": owner.pid,
        "since": iso(owner.opened_at) or "",
        "state": "alive" if owner.alive else "dead",
    }


def _stored_text(data: str | bytes | None) -> str | None:
    return f"a pickle of {len(data)} bytes (--load shows it)" if isinstance(data, bytes) else data


def _load(task: Task) -> dict[str, str]:
    """What is pickled in a task, as text. This runs whatever code the pickles name."""
    sys.path.insert(0, str(Path.cwd()))  # as when the script ran, so that its modules are found
    pickled = {
        "args": (task.args, _load_call),
        "result": (task.result, _load_value),
        "exception": (task.error and task.error.pickle, _load_value),
    }
    return {name: _try(load, data) for name, (data, load) in pickled.items() if isinstance(data, bytes)}


def _load_call(data: bytes) -> str:
    with dependencies.looking():
        positional, named = codec.decode_call(data, None)
    return ", ".join([*map(repr, positional), *(f"{name}={value!r}" for name, value in named.items())])


def _load_value(data: bytes) -> str:
    return repr(codec.decode(data))


def _try(load: Callable[[bytes], str], data: bytes) -> str:
    try:
        return load(data)
    except Exception as error:  # noqa: BLE001 - it is the pickle's own code that raises
        return f"cannot be loaded: {type(error).__name__}: {error}"
