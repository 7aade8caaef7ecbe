"""The commands that look into a store and change nothing: `status`, `list`, `show` and `logs`."""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from .. import values
from ..errors import TaskNotFound
from ..model import codec, dependencies
from ..model.schema import task_to_dict
from ..model.task import FINISHED, Status, Task, format_id, iso
from ..stores.base import Store, Usage, now
from ..value_files import Files, names_in, size_of
from .advice import next_steps
from .console import (
    Raw,
    count_of_tasks,
    exit_with,
    first_line,
    owner_fields,
    print_json,
    print_table,
    printable,
    to_the_second,
)
from .options import checked_id, checked_since, look_into, on_store
from .unknown import tell_of_function

# Between two looks: no event that Python can wait for tells that a file has grown. One who reads along does not
# notice, and it costs next to nothing.
_LOOK_S = 0.1
_PIECE_BYTES = 1 << 20
_SHOWN = 1000  # characters of what a task was given and has returned
_OWNERS_S = 1.0  # between two looks whether the process that runs the task lives


@click.command()
@on_store
def status(address: str | None, as_json: bool) -> None:
    """Tell how a store stands, and what to do next.

    That is the number of tasks by queue and state, which owners live, what the store takes, and what of it is to go.

    \b
    For example:
      omniq-executor status --store runs/etl.db
    """
    with look_into(address) as store:
        counts, there, usage = store.counts(), store.owners(), store.usage()
        steps = next_steps(counts, there, store.runs(), store.unfinished(), address)
    owners = [owner_fields(owner) for owner in there]
    if as_json:
        queues = {queue: {state.name: number for state, number in found.items()} for queue, found in counts.items()}
        expiring = [{"after": iso(at), "tasks": tasks} for at, tasks in usage.expiring]
        takes = {"bytes": usage.size, "oldest": iso(usage.oldest), "expiring": expiring}
        print_json({"queues": queues, "owners": owners, "usage": takes, "next": steps}, indent=None)
        return
    print_table(
        ["QUEUE", *(state.name for state in Status)],
        [[queue, *(found.get(state, 0) for state in Status)] for queue, found in sorted(counts.items())],
    )
    if owners:
        click.echo()
        print_table([name.upper() for name in owners[0]], [list(owner.values()) for owner in owners])
    click.echo()
    click.echo(_shown_usage(usage))
    click.echo()
    for step in steps:
        click.echo(printable(step))


def _shown_usage(usage: Usage) -> str:
    """Say in a line what a store takes, and what of it is to go."""
    said = [f"{_shown_size(usage.size)} on disk"]
    if usage.oldest is not None:
        said.append(f"the oldest task is of {to_the_second(usage.oldest)}")
    moment = now()
    due = sum(tasks for at, tasks in usage.expiring if at <= moment)
    later = [(at, tasks) for at, tasks in usage.expiring if at > moment]
    if due:
        said.append(f"{count_of_tasks(due)} can go now")
    if later:
        said.append(f"{count_of_tasks(later[0][1])} can go after {to_the_second(later[0][0])}")
    if len(later) > 1:
        others = sum(tasks for _, tasks in later[1:])
        said.append(f"{count_of_tasks(others)} until {to_the_second(later[-1][0])}")
    return "; ".join(said)


def _shown_size(size: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} bytes"


@click.command("list")
@click.option("--status", "state", type=click.Choice([state.name for state in Status], case_sensitive=False))
@click.option("--queue", help="Only the tasks of this queue.")
@click.option("--function", "name", metavar="NAME", help="Only calls of it: its dotted path, or the end of it.")
@click.option("--tag", "tags", metavar="TAG", multiple=True, help="Only those with this tag, and with all if several.")
@click.option("--run", metavar="RUN", type=int, help="Only the tasks of this run.")
@click.option(
    "--since",
    metavar="TIME",
    callback=checked_since,
    help="Only what was added, begun or finished since: 2h, or a date.",
)
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="Only the newest so many.")
@on_store
def list_(
    state: str | None,
    queue: str | None,
    name: str | None,
    tags: tuple[str, ...],
    run: int | None,
    since: int | None,
    limit: int,
    address: str | None,
    as_json: bool,
) -> None:
    """List tasks, the newest last.

    \b
    For example:
      omniq-executor list --status FAILED --limit 20
      omniq-executor list --function parse --since 2h
    """
    status = Status[state.upper()] if state else None
    with look_into(address) as store:
        tasks = store.find(status, queue, tags, limit, name=name, run=run, since=since)
        if name is not None and not tasks:
            tell_of_function(store, name)
    if as_json:
        for task in tasks:
            print_json(task_to_dict(task), indent=None)
        return
    print_table(
        ["ID", "STATUS", "ENQUEUED", "FINISHED", "QUEUE", "FUNCTION", "ERROR"],
        [
            [
                task.task_id,
                task.status.name,
                to_the_second(task.enqueued_at),
                to_the_second(task.finished_at),
                task.queue,
                task.func_path,
                f"{task.error.type}: {first_line(task.error.message)}" if task.error else "",
            ]
            for task in tasks
        ],
        optional=["ENQUEUED", "QUEUE", "FINISHED"],
    )


@click.command()
@click.argument("id", metavar="ID", callback=checked_id)
@click.option("--load", is_flag=True, help="Unpickle what is pickled, which runs code: only for stores you trust.")
@click.option("--full", is_flag=True, help="Do not shorten arguments and results, however long they are.")
@on_store
def show(id: int, load: bool, full: bool, address: str | None, as_json: bool) -> None:
    """Show everything about one task. Long arguments and results are shortened, but with --full or --json.

    \b
    For example:
      omniq-executor show task-0d5kq3v7x8m2a
      omniq-executor show task-0d5kq3v7x8m2a --full
    """
    with look_into(address) as store:
        task = store.get(id)
        owners = {owner.id: owner for owner in store.owners()}
        wrote = store.output.attempts(task.id, task.attempts)
        files = store.values
    fields = task_to_dict(task)
    loaded = _load(task, files) if load else {}
    if as_json:
        print_json({**fields, "loaded": loaded} if load else fields)
        return
    fields |= {"args": _stored_text(task.args), "kwargs": task.kwargs, "result": _stored_text(task.result), **loaded}
    for name in () if full else ("args", "kwargs", "result", "exception"):
        fields[name] = _shortened(fields.get(name))
    if task.owner in owners:
        owner = owner_fields(owners[task.owner])
        fields["owner"] = "{owner} (process {pid} on {host}, {state})".format(**owner)
    if task.error:
        called = f"\n\nin {task.error.call}" if task.error.call else ""
        fields["error"] = f"{task.error.type}: {task.error.message}{called}\n\n{task.error.traceback.strip()}"
    if wrote:
        fields["output"] = f"of attempt {', '.join(map(str, wrote))}: omniq-executor logs {task.task_id}"
    if load:
        fields["loaded"] = ", ".join(loaded) or "nothing: nothing is pickled"
    for name, value in fields.items():
        if value is not None:
            first, *others = printable(str(value)).split("\n")
            click.echo(f"{name:<14}{first}")
            for line in others:
                click.echo(f"{'':<14}{line}".rstrip())


def _shortened(text: Any) -> Any:
    if not isinstance(text, str) or len(text) <= _SHOWN:
        return text
    return f"{text[:_SHOWN]}... (the first {_SHOWN} of {len(text):,} characters: --full shows all)"


def _stored_text(data: str | bytes | None) -> str | None:
    if not isinstance(data, bytes):
        return data
    names = names_in(data)
    size = len(data) + sum(map(size_of, names))
    where = f", of which {', '.join(names)} hold the most" if names else ""
    return f"a pickle of {size} bytes{where} (--load shows it)"


def _load(task: Task, files: Files) -> dict[str, str]:
    """Return what is pickled in a task, as text. This runs whatever code the pickles name."""
    sys.path.insert(0, str(Path.cwd()))  # as when the script ran, so that its modules are found
    pickled = {
        "args": (task.args, _load_call),
        "result": (task.result, _load_value),
        "exception": (task.error and task.error.pickle, _load_value),
    }
    with values.reading(files):
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


@click.command()
@click.argument("id", metavar="ID", callback=checked_id)
@click.option("--attempt", metavar="N", type=click.IntRange(min=1), help="Only what this attempt wrote, from 1 on.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written until the task is finished.")
@on_store
def logs(id: int, attempt: int | None, follow: bool, address: str | None, as_json: bool) -> None:
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
    with look_into(address) as store:
        for which, data in _pieces(store, id, attempt, follow):
            if as_json:
                written[which] = written.get(which, b"") + data
                continue
            if which != at:
                raw.print_heading(f"==> attempt {which} <==")
            raw.print(data)
            written[which], at = b"", which
    if as_json:
        found = [{"attempt": n, "output": data.decode(errors="replace")} for n, data in sorted(written.items())]
        print_json({"id": format_id(id), "attempts": found})
    elif not written:
        click.echo(f"nothing that {format_id(id)} wrote was kept", err=True)
    exit_with(not written)


def _pieces(store: Store, id: int, attempt: int | None, follow: bool) -> Iterator[tuple[int, bytes]]:
    """Yield what all attempts of a task wrote, or that one, piece by piece, each with its attempt.

    With `follow` it goes on until the task is finished or removed, or the process that runs it is dead. Raise
    TaskNotFound where the task is not there to begin with.
    """
    seen: dict[int, int] = {}  # bytes, by attempt
    task = store.get(id)
    look_at_owners = 0.0
    while True:
        is_over = not follow or task.status in FINISHED
        if not is_over and time.monotonic() >= look_at_owners:
            look_at_owners = time.monotonic() + _OWNERS_S
            is_over = task.status is Status.RUNNING and not any(o.alive for o in store.owners() if o.id == task.owner)
        # After the look at the task: what it wrote before its end is there.
        for which in range(1, task.attempts + 1) if attempt is None else [attempt]:
            while data := store.output.read(id, which, seen.get(which, 0), _PIECE_BYTES):
                seen[which] = seen.get(which, 0) + len(data)
                yield which, data
        if is_over:
            return
        time.sleep(_LOOK_S)
        try:
            task = store.get(id)
        except TaskNotFound:
            return
