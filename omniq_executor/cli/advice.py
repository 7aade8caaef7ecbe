"""What to do next, by what a store holds. Pure: what was read goes in, lines of text come out."""

import shlex
from collections.abc import Iterator, Mapping, Sequence

from ..model.task import Status
from ..stores.base import Owner, RunRecord
from ..stores.rules import initializer_of
from .console import count_of_tasks


def next_steps(
    counts: Mapping[str, Mapping[Status, int]],
    owners: Sequence[Owner],
    runs: Sequence[RunRecord],
    unfinished: Mapping[int, int],
    address: str | None,
) -> list[str]:
    """Return a line for each thing that is left to do, with its command; or one that says that nothing is.

    `unfinished` has the number of tasks that are not finished by run; `address` is what --store said.
    """
    on = "" if address is None else f" --store {shlex.quote(address)}"
    alive = [owner for owner in owners if owner.alive]
    busy = {queue for owner in alive for queue in owner.queue.split(", ")}
    steps = []
    if failed := sum(of_queue.get(Status.FAILED, 0) for of_queue in counts.values()):
        steps.append(f"{_have(failed)} failed: `omniq-executor failures{on}` shows why")
    for queue, of_queue in sorted(counts.items()):
        left = of_queue.get(Status.PENDING, 0) + of_queue.get(Status.RUNNING, 0)
        of_runs = [run for run in runs if run.queue == queue]
        if busy & {queue, "*"}:
            if left:
                steps.append(
                    f"{_are(left)} to be done in queue {queue!r}: `omniq-executor watch{on}` shows how it goes"
                )
        else:
            steps += _of_nobody(queue, left, of_runs, unfinished, on)
    return steps or ["Nothing is left to do."]


def _of_nobody(
    queue: str, left: int, runs: Sequence[RunRecord], unfinished: Mapping[int, int], on: str
) -> Iterator[str]:
    """Yield what is to do about a queue on which no process works. So many of its tasks are not finished."""
    broken = [run for run in runs if not run.settled and (run.clean is False or run.ended_at is None)]
    if broken:
        last = max(broken)
        how = "was killed" if last.ended_at is None else "did not end well"
        of_broken = sum(unfinished.get(run.id, 0) for run in broken)
        todo = f", with {count_of_tasks(of_broken)} left" if of_broken else ""
        left -= of_broken
        yield f"run {last.id} of queue {queue!r} {how}{todo}: start its script again, and it goes on where it was"
    if left <= 0:
        return
    others = [run for run in runs if run not in broken and unfinished.get(run.id)]
    warm = [run for run in others if initializer_of(run.context)]
    of_warm = sum(unfinished[run.id] for run in warm)
    if left > of_warm:
        yield (
            f"{_are(left - of_warm)} left in queue {queue!r}, and nobody works on it:"
            f" `omniq-executor worker --queue {shlex.quote(queue)}{on}` runs them"
            f"{_cancelled([run for run in others if run not in warm], on)}"
        )
    if warm:
        yield (
            f"{_are(of_warm)} left in queue {queue!r} that {'needs' if of_warm == 1 else 'need'} an initializer:"
            " their script runs them, with leftovers='run' and the same initializer and arguments"
            f"{_cancelled(warm, on)}"
        )


def _cancelled(runs: Sequence[RunRecord], on: str) -> str:
    cancels = [f"`omniq-executor cancel --run {run.id}{on}`" for run in runs]
    return f", {' and '.join(cancels)} cancel{'s' if len(cancels) == 1 else ''} them" if cancels else ""


def _have(count: int) -> str:
    return f"{count_of_tasks(count)} {'has' if count == 1 else 'have'}"


def _are(count: int) -> str:
    return f"{count_of_tasks(count)} {'is' if count == 1 else 'are'}"
