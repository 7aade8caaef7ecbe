"""The command `worker`: it works off what others have added to a store, in processes of its own.

It is a dispatcher with a pool of processes or a cluster, and nobody who waits for results. It claims from queues of
others and has no run. Its one thread takes the turns, and a signal is an event among the others:

    SIGTERM, SIGINT    drain: claim nothing more, give back what has not started, let calls that run end
    another one        end the processes; what they were running is PENDING again
"""

import contextlib
import functools
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set as AbstractSet
from typing import Any

import click

from ..dispatch.dispatcher import Dispatcher
from ..dispatch.waiters import Waiters
from ..engines.local.pool import LocalEngine
from ..engines.local.start_method import default_context
from ..engines.opening import open_engine
from ..model.task import ErrorInfo, Status, format_id
from ..pipes import wake_pipe
from ..stores import open_store
from ..stores.base import NO_RUN
from .console import count_of_tasks, exit_with, print_json, printable
from .options import checked_address, checked_names, on_store

CRASH_RETRIES = 2
ENDED_BY = 128  # plus the signal: the exit status of who was not left the time to drain


Tell = Callable[[dict[str, Any]], None]
"""Is given what happens: {"event": "started" | "finished" | "draining" | "ended", …}."""


@click.command()
@click.option("-n", "processes", type=click.IntRange(min=1), help="How many processes.  [default: one for each CPU]")
@click.option(
    "--queue",
    "queues",
    multiple=True,
    callback=checked_names,
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
@click.option("--engine", metavar="ADDRESS", callback=checked_address, help="Run the calls on this cluster.")
@on_store
def worker(
    processes: int | None,
    queues: tuple[str, ...],
    durability: str,
    capture_output: bool,
    engine: str | None,
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
      omniq-executor worker --engine dask://host:8786
    """
    tell: Tell = functools.partial(print_json, indent=None) if as_json else _tell_event
    sys.path.insert(0, os.getcwd())  # as `python -m` does: what is to be run is imported from there
    if engine is not None and capture_output:
        raise click.UsageError("--capture-output is not possible with --engine: what calls write stays on the cluster")
    with _signals() as signals, contextlib.ExitStack() as undo:
        runs = open_engine(engine or "local", processes, default_context(), None, (), None)
        undo.callback(runs.close)
        store = open_store(address, durability=durability)
        undo.callback(store.close)
        store.values.prepare()
        runs.keep_large(store.values)
        if isinstance(runs, LocalEngine):
            runs.output = str(store.output.prepare()) if capture_output else None
        owner = store.enter(", ".join(queues) or "*")
        undo.callback(store.leave, owner)
        ended = _Ended(tell)
        dispatcher = Dispatcher(store, owner, NO_RUN, runs, CRASH_RETRIES, ended, queues)
        undo.pop_all()
        about = {"store": store.address, "queues": list(queues), "processes": runs.max_workers, "pid": os.getpid()}
        tell({"event": "started", **about})
        asked: list[int] = []

        def on_signal() -> None:
            asked.append(os.read(signals, 64)[-1])  # those that come together count as one
            if len(asked) == 1:
                tell({"event": "draining", "signal": signal.Signals(asked[0]).name})
                dispatcher.drain()

        dispatcher.listen(signals, on_signal)
        dispatcher.serve(lambda: len(asked) > 1)
        is_broken = dispatcher.failure is not None
        if len(asked) > 1:
            dispatcher.stop(signal.SIGTERM, f"a second signal came, {signal.Signals(asked[1]).name}")
        else:
            dispatcher.close(wait=True)
        tell({"event": "ended", "completed": ended.counts[Status.COMPLETED], "failed": ended.counts[Status.FAILED]})
    exit_with(is_broken)
    exit_with(ENDED_BY + asked[1] if len(asked) > 1 else 0)


def _tell_event(event: dict[str, Any]) -> None:
    """Say what a worker is about, but for every task."""
    match event:
        case {"event": "started", "store": store, "queues": queues, "processes": count, "pid": pid}:
            which = f"queues {', '.join(queues)}" if queues else "all queues"
            click.echo(printable(f"process {pid} works off {which} of {store}, {count} calls at a time"))
        case {"event": "draining", "signal": name}:
            click.echo(f"{name}: no more calls are started; another signal ends those that run")
        case {"event": "ended", "completed": completed, "failed": failed}:
            click.echo(f"{count_of_tasks(completed)} completed, {failed} failed")


class _Ended(Waiters):
    """Counts what has ended and tells of it; nobody waits for results."""

    def __init__(self, tell: Tell) -> None:
        super().__init__()
        self.counts = Counter[Status]()
        self._tell = tell

    def resolve_all(self, ids: Sequence[int], outcome: Any, refused: AbstractSet[int]) -> None:
        """Take in what is committed."""
        status = Status.FAILED if isinstance(outcome, ErrorInfo) else Status.COMPLETED
        for id in ids:
            if id not in refused:
                self.counts[status] += 1
                self._tell({"event": "finished", "task": format_id(id), "status": status.name})


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """Yield a file descriptor from which the numbers of the signals that ask for an end can be read."""
    ear, mouth = wake_pipe()
    before = signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
    handlers = {signum: signal.signal(signum, lambda *_: None) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield ear
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(before)
        os.close(ear)
        os.close(mouth)
