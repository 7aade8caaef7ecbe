"""The commands that tell of runs, those that were killed too, and change nothing: `runs` and `diff`."""

from collections.abc import Iterable, Sequence
from typing import Any

import click

from ..dispatch.history import Difference, History, RunHistory, difference
from ..model.preview import shown_arguments
from ..model.reasons import REUSED, Reason, Resumed
from ..model.task import Status, iso
from ..stores.base import RunRecord, Store
from .console import print_json, print_table, printable, to_the_second
from .options import look_into, on_store

_SHOWN_CALLS = 20  # of those that only one of two runs had, where nobody asks for JSON


@click.command()
@click.argument("run", metavar="[RUN]", type=int, required=False)
@click.option("--queue", help="Only the runs of this queue.")
@on_store
def runs(run: int | None, queue: str | None, address: str | None, as_json: bool) -> None:
    """List the runs of executors, or tell of one by function: what it took over and what it ran, and why.

    What a later run took over unfinished is counted for both.

    \b
    For example:
      omniq-executor runs --queue etl
      omniq-executor runs 12
    """
    with look_into(address) as store:
        history = History(store)
        if run is not None:
            _tell_of(store, history.of(run), as_json)
            return
        alive = {owner.id for owner in store.owners() if owner.alive}
        told = [(it.record, end_of(it.record, alive), it.resumed()) for it in history.each(queue)]
    if as_json:
        for record, end, resumed in told:
            print_json(_fields(record, end) | resumed.to_dict(), indent=None)
        return
    reasons = [reason for reason in Reason if any(reason in resumed.counts for *_, resumed in told)]
    reasons = [reason for reason in reasons if reason not in REUSED]
    print_table(
        ["RUN", "QUEUE", "STARTED", "TOOK", "END", "CALLS", "REUSED", *(reason.name for reason in reasons)],
        [
            [
                record.id,
                record.queue,
                to_the_second(record.started_at),
                _took(record),
                end,
                sum(resumed.counts.values()),
                resumed.reused,
                *(resumed.counts.get(reason, 0) for reason in reasons),
            ]
            for record, end, resumed in told
        ],
        optional=["TOOK", "STARTED"],
    )


def _tell_of(store: Store, run: RunHistory, as_json: bool) -> None:
    record, resumed = run.record, run.resumed()
    end = end_of(record, {owner.id for owner in store.owners() if owner.alive})
    if as_json:
        print_json(_fields(record, end) | resumed.to_dict(), indent=None)
        return
    began = f"begun at {to_the_second(record.started_at)}"
    took = f", which took {_took(record)}" if record.ended_at else ""
    click.echo(printable(f"run {record.id} of queue {record.queue!r}, {began}{took}: {end}"))
    click.echo(printable(_origin(resumed)))
    if resumed.by_function:
        click.echo()
        print_table(["FUNCTION", "CALLS", "REASON", "WHAT"], resumed.rows())


def _origin(resumed: Resumed) -> str:
    if resumed.fresh is not None:
        return f"its calls are {resumed.fresh}"
    return f"it continues {', '.join(map(str, resumed.continues))}, of which {resumed.left_alone} calls are left alone"


def end_of(run: RunRecord, alive: Iterable[int]) -> str:
    """Return in a word how a run ended."""
    if run.ended_at is None:
        return "running" if run.owner in alive else "killed"
    return "failed" if run.clean is False else "clean"


def _took(run: RunRecord) -> str:
    return "" if run.ended_at is None else f"{(run.ended_at - run.started_at) / 1e6:.1f} s"


def _fields(run: RunRecord, end: str) -> dict[str, Any]:
    return {
        "run": run.id,
        "queue": run.queue,
        "started_at": iso(run.started_at),
        "ended_at": iso(run.ended_at),
        "end": end,
        "continues": list(run.continues),
    }


@click.command()
@click.argument("first", metavar="RUN", type=int)
@click.argument("second", metavar="RUN", type=int)
@on_store
def diff(first: int, second: int, address: str | None, as_json: bool) -> None:
    """Tell what differs between two runs: the code of functions, and calls that only one of them had.

    A call is the same if its arguments are and its function's path is, whatever code that had.

    \b
    For example:
      omniq-executor diff 11 12
    """
    with look_into(address) as store:
        history = History(store)
        found = history.of(first), history.of(second)
        differs = difference(*found)
        only = [_shown(store, ids if as_json else ids[:_SHOWN_CALLS]) for ids in differs.only]
    if as_json:
        functions = [{"function": path, "changed": what} for path, what in differs.functions]
        sides = [
            {"run": run.record.id, "calls": len(run.calls), "finished": _finished(run), "only": calls}
            for run, calls in zip(found, only, strict=True)
        ]
        print_json({"functions": functions, "runs": sides})
        return
    _print_difference(found, differs, only)


def _print_difference(
    runs: Sequence[RunHistory], differs: Difference, only: Sequence[Sequence[dict[str, str]]]
) -> None:
    for path, what in differs.functions:
        click.echo(printable(f"{path}: {what}"))
    if not differs.functions:
        click.echo("no function that both had has other code")
    for run, ids, calls in zip(runs, differs.only, only, strict=True):
        had = f"{len(run.calls)} calls, {_finished(run)} of which are completed"
        click.echo(f"\nrun {run.record.id} had {had}; {len(ids)} of them the other had not")
        for call in calls:
            click.echo(printable(f"  {call['id']}  {call['function']} {call['arguments']}"))
        if len(ids) > len(calls):
            click.echo(f"  and {len(ids) - len(calls)} more: --json has them all")


def _finished(run: RunHistory) -> int:
    return sum(call.status is Status.COMPLETED for call in run.calls)


def _shown(store: Store, ids: Sequence[int]) -> list[dict[str, str]]:
    return [
        {
            "id": row.task.task_id,
            "function": row.task.func_path,
            "arguments": shown_arguments(row.task.args, row.task.kwargs),
        }
        for row in sorted(store.stored(ids), key=lambda row: row.task.id)
    ]
