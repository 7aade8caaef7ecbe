"""The command `watch`: what happens in a store, on a terminal, until Ctrl-C.

    look()     reads the store --> Snapshot     once a second; less often where a look takes longer
    shown()    Snapshot --> what rich draws     of as many lines as there is room for

Nobody is notified of what a command looks at: whoever is to be, is an owner of the store, for which all others write
down what they finish. So it looks again and again, and takes a tenth of the time of one processor at most.
"""

import contextlib
import signal
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .. import slots
from ..dispatch.history import failures_of
from ..model.failures import Failures, short
from ..model.preview import shown_arguments
from ..model.task import Status, iso
from ..stores.base import Owner, RunRecord, Store, now
from .console import BESIDE, drawn, print_json, printable
from .options import look_into, on_store

_LOOK_S = 1.0
_SHARE = 10  # of the time that a look takes, which is waited after it at least
_LOW = 30  # lines, where there is no room for empty ones
_RATE = "PER SECOND"
_FEWEST = 2  # rows of a table, however low the terminal is
_LINES_BESIDE = 4  # of a table: its headings, the line below, what is left out, and an empty one


@dataclass(frozen=True, slots=True)
class RunningCall:
    """A call that a worker is in."""

    id: str
    queue: str
    call: str
    pid: int  # of its owner
    for_s: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a store holds at a moment."""

    address: str
    at: int  # microseconds
    counts: Mapping[str, Mapping[Status, int]] = field(default_factory=dict)
    owners: Sequence[Owner] = ()
    runs: Mapping[int, RunRecord] = field(default_factory=dict)  # that go on, by owner
    running: Sequence[RunningCall] = ()  # the longest first
    failures: Failures = field(default_factory=lambda: Failures([]))
    rates: Mapping[str, float] = field(default_factory=dict)  # calls that end in a second, by queue

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "store": self.address,
            "at": iso(self.at),
            "queues": {queue: {state.name: n for state, n in found.items()} for queue, found in self.counts.items()},
            "owners": [
                {
                    "pid": owner.pid,
                    "host": owner.host,
                    "queue": owner.queue,
                    "run": self.runs[owner.id].id if owner.id in self.runs else None,
                    "since": iso(owner.opened_at),
                    "alive": owner.alive,
                }
                for owner in self.owners
            ],
            "running": [
                {"id": it.id, "queue": it.queue, "call": it.call, "pid": it.pid, "seconds": round(it.for_s, 3)}
                for it in self.running
            ],
            "failures": [group.to_dict() for group in self.failures],
        }


def look(store: Store, before: Snapshot | None = None) -> Snapshot:
    """Return what a store holds now. What failed is read again if there is more or less of it than `before`."""
    at, counts, owners = now(), store.counts(), store.owners()
    rates: dict[str, float] = {}
    failures = None
    if before is not None:
        if _count(counts, Status.FAILED) == _count(before.counts, Status.FAILED):
            failures = before.failures
        passed_s = max(at - before.at, 1) / 1e6
        rates = {
            queue: max(_ended(found) - _ended(before.counts.get(queue, {})), 0) / passed_s
            for queue, found in counts.items()
        }
    return Snapshot(
        store.address, at, counts, owners,
        {run.owner: run for run in store.runs() if run.ended_at is None},
        _running(store, owners, at),
        failures_of(store, store.failures()) if failures is None else failures,
        rates,
    )  # fmt: skip


def _count(counts: Mapping[str, Mapping[Status, int]], status: Status) -> Counter[str]:
    return Counter({queue: found[status] for queue, found in counts.items() if status in found})


def _ended(found: Mapping[Status, int]) -> int:
    return found.get(Status.COMPLETED, 0) + found.get(Status.FAILED, 0)


def _running(store: Store, owners: Sequence[Owner], at: int) -> list[RunningCall]:
    """Return the calls that workers are in, by what these have written down where their owners see it."""
    here, clock_ns = socket.gethostname(), time.monotonic_ns()
    since: dict[int, tuple[Owner, int]] = {}
    for owner in owners:
        if owner.alive:
            since |= {id: (owner, began) for id, began in (slots.since(store.slots_path(owner.id)) or {}).items()}
    states = {found.id for found in store.states([*since]) if found.status is Status.RUNNING}
    found = []
    for row in store.stored([*states]):
        task, (owner, began) = row.task, since[row.task.id]
        if task.owner != owner.id:
            continue
        # Another machine has another clock; a function that is being imported has not begun.
        known = owner.host == here and began
        for_s = (clock_ns - began) / 1e9 if known else (at - (task.started_at or at)) / 1e6
        call = f"{task.func_path} {shown_arguments(task.args, task.kwargs)}"
        found.append(RunningCall(task.task_id, task.queue, call, owner.pid, max(for_s, 0.0)))
    return sorted(found, key=lambda it: -it.for_s)


def shown(snapshot: Snapshot, width: int, height: int) -> Group:
    """Return a snapshot as rich draws it, in so many columns and, if that is enough for the least, lines."""
    states = [state.name for state in Status]
    queues = [
        [
            queue,
            *(str(found.get(state, 0)) for state in Status),
            f"{rate:.1f}" if (rate := snapshot.rates.get(queue, 0)) else "",
        ]
        for queue, found in sorted(snapshot.counts.items())
    ]
    owners = [
        [
            f"{owner.pid} on {owner.host}" if owner.alive else f"{owner.pid} on {owner.host}, dead",
            owner.queue,
            f"run {snapshot.runs[owner.id].id}" if owner.id in snapshot.runs else "",
            duration((snapshot.at - owner.opened_at) / 1e6),
        ]
        for owner in snapshot.owners
    ]
    running = [[it.id, duration(it.for_s), str(it.pid), it.call] for it in snapshot.running]
    failed = [
        [str(group.count), group.type, group.where, short(group.example.error.message)] for group in snapshot.failures
    ]
    empty = [state for at, state in enumerate(states, 1) if all(row[at] == "0" for row in queues)]
    # With what is left out first where there is no room for all of it.
    tables: list[tuple[str, list[str], list[list[str]], set[str], list[str]]] = [
        ("queues", ["QUEUE", *states, _RATE], queues, {*states, _RATE}, [*empty, _RATE, *reversed(states)]),
        ("processes", ["PROCESS", "QUEUE", "RUN", "FOR"], owners, {"FOR"}, ["FOR", "RUN", "QUEUE"]),
        ("calls that run", ["RUNNING", "FOR", "PROCESS", "CALL"], running, {"FOR", "PROCESS"}, ["PROCESS", "FOR"]),
        ("ways to fail", ["FAILED", "EXCEPTION", "WHERE", "SUCH AS"], failed, {"FAILED"}, ["SUCH AS", "WHERE"]),
    ]
    tables = [table for table in tables if table[2]]
    is_low = height < _LOW
    room = height - 2 - (_LINES_BESIDE - is_low) * len(tables)
    parts: list[Any] = [Text(f"{snapshot.address}  {(iso(snapshot.at) or '')[:19]}Z", style="bold", overflow="fold")]
    for left, (what, headings, rows, right, optional) in zip(range(len(tables), 0, -1), tables, strict=True):
        most = max(room // left, _FEWEST)
        cells = [[printable(" ".join(cell.split())) for cell in row] for row in rows[:most]]
        parts += [] if is_low else [Text()]
        parts.append(_table(headings, cells, right, optional, width))
        room -= min(len(rows), most)
        if len(rows) > most:
            parts.append(Text(f"and {len(rows) - most} more {what}", style="dim"))
    if not tables:
        parts.append(Text("there is nothing in it yet"))
    return Group(*parts)


def _table(headings: list[str], rows: list[list[str]], right: set[str], optional: list[str], width: int) -> Table:
    """Return a table with a line for each row: the last column is cut where there is no room for it.

    No heading is cut: columns are left out, in the order of `optional`.
    """
    columns = dict(zip(headings, zip(*rows, strict=True), strict=True))
    for name in optional:
        if _least(columns) <= width:
            break
        columns.pop(name, None)
    table = drawn([*columns], [*zip(*columns.values(), strict=True)], [name in right for name in columns])
    *_, last = columns
    table.box, table.show_edge = SIMPLE_HEAD, False
    table.columns[-1].overflow = "ellipsis"
    table.columns[-1].max_width = width - _least(columns) + len(last)
    return table


def _least(columns: Mapping[str, Sequence[str]]) -> int:
    """Return how many characters a table takes whose last column is cut to its heading."""
    *others, last = columns
    return sum(max(map(len, [name, *columns[name]])) + BESIDE for name in others) + len(last) + BESIDE + 1


def duration(seconds: float) -> str:
    """Return a time that something takes, as 0.4 s, 2:05 or 1:00:00."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@click.command()
@on_store
def watch(address: str | None, as_json: bool) -> None:
    """Show what happens in a store, until Ctrl-C.

    It shows queues, processes, what runs now and for how long, and what failed. Where there is no terminal, and with
    --json, it shows that once.

    \b
    For example:
      omniq-executor watch --store runs/etl.db
    """
    with look_into(address) as store:
        snapshot = look(store)
        if as_json:
            print_json(snapshot.to_dict(), indent=None)
            return
        console = Console(highlight=False)
        if not console.is_terminal:
            console.print(shown(snapshot, console.width, 1 << 16))
            return
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # the terminal is to be as it was before
        # On a screen of its own, so that a terminal whose size changes shows no remains.
        live = Live(console=console, screen=True, auto_refresh=False)
        with contextlib.suppress(KeyboardInterrupt), live:
            wait_s = _LOOK_S
            while True:
                live.update(shown(snapshot, console.width, console.height), refresh=True)
                time.sleep(wait_s)
                began = time.perf_counter()
                snapshot = look(store, snapshot)
                wait_s = max((time.perf_counter() - began) * _SHARE, _LOOK_S)
        console.print(shown(snapshot, console.width, console.height))
