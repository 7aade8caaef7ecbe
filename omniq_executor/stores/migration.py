"""From one store to another: every task as it is, with its id, the runs, so that a broken one can be resumed,
and what calls wrote.

The destination is reserved first, and opened to everybody last, each by one step that is done or not done.
In between whoever is killed leaves a part that nobody can work on. A migration that is started again goes
over all tasks again and writes those that are missing or have changed in the source since.

The source is only read. What is RUNNING there for an owner that is dead is PENDING in the destination,
by RELEASE; for one that lives it is under way, and moving it would have it run twice.
"""

from collections.abc import Callable
from typing import NamedTuple

from ..errors import StoreError
from ..model.task import Claim, Event, Status, apply, format_id
from ..stores.base import now
from .base import Store, TaskRow

BATCH = 500  # tasks of a transaction
_MOST_PASSES = 10


class UnderWay(StoreError):
    """Tasks of the source are being run."""


class Moved(NamedTuple):
    """What a migration did."""

    tasks: int  # in the source
    runs: int
    written: int  # tasks that were not in the destination before, or not as they are now


def check_still(source: Store) -> None:
    """Raise UnderWay if a task is RUNNING for an owner that is alive."""
    alive = {owner.id: owner for owner in source.owners() if owner.alive}
    running = [task for task in source.find(status=Status.RUNNING) if task.owner in alive] if alive else []
    if running:
        owner = alive[running[0].owner or 0]
        raise UnderWay(
            f"{len(running)} tasks of {source.address} are under way, {running[0].task_id} for one in process"
            f" {owner.pid} on {owner.host}: wait until they are done (--wait), or end it"
        )


def migrate(source: Store, destination: Store, advance: Callable[[int], object]) -> Moved:
    """Have all of `source` in `destination`, which was opened with `importing`.

    `advance` is told of how many more tasks it is certain that they are there. Raises UnderWay as
    `check_still()`, and StoreError where the destination holds anything else.
    """
    check_still(source)
    reserved = destination.begin_import(source.address)
    ids = source.ids()
    if reserved is None:
        if set(ids) <= set(destination.ids()):
            advance(len(ids))
            return Moved(len(ids), len(source.runs()), 0)
        raise StoreError(f"{destination.address} holds something else already: give a store that is new")
    if reserved != source.address:
        raise StoreError(
            f"{destination.address} holds a part of {reserved}: run `omniq-executor migrate {reserved}"
            f" {destination.address}` again, or give another destination"
        )
    written = 0
    for _ in range(_MOST_PASSES):
        runs, is_still = source.runs(), not any(owner.alive for owner in source.owners())
        ids = source.ids()
        again = _copy(source, ids, destination, advance)
        advance = _nothing
        written += again
        if not again or (is_still and source.runs() == runs):
            break  # nobody was there who could have gone on in the meantime, or who did
    else:
        raise UnderWay(f"{source.address} keeps changing: end the processes that work on it, and begin again")
    destination.values.take_in(source.values)
    destination.output.take_in(source.output)
    destination.output.remove_strays(destination.ids)
    destination.end_import()
    return Moved(len(ids), len(source.runs()), written)


def _copy(source: Store, ids: list[int], destination: Store, advance: Callable[[int], object]) -> int:
    """Write what is not in the destination as it is in the source; returns how many tasks."""
    destination.put(gone=sorted(set(destination.ids()).difference(ids)))
    destination.put(runs=source.runs(), taken=source.taken())
    written = 0
    for start in range(0, len(ids), BATCH):
        batch = ids[start : start + BATCH]
        wanted = [_released(stored) for stored in source.stored(batch)]
        if len(wanted) < len(batch):
            missing = set(batch).difference(stored.task.id for stored in wanted)
            if left := missing.intersection(source.ids()):  # not removed in the meantime
                raise StoreError(
                    f"{source.address}: {format_id(min(left))} cannot be read; run `omniq-executor doctor`"
                )
        if any(stored.task.status is Status.RUNNING for stored in wanted):
            check_still(source)
        there = {stored.task.id: stored for stored in destination.stored(batch)}
        changed = [stored for stored in wanted if there.get(stored.task.id) != stored]
        if changed:
            destination.put(changed)
        written += len(changed)
        advance(len(batch))
    return written


def _nothing(count: int) -> None:
    """Return where nothing is to be told."""


def _released(stored: TaskRow) -> TaskRow:
    task = stored.task
    if task.status is not Status.RUNNING:
        return stored
    claim = Claim(task.owner or 0, task.attempts)
    return stored._replace(task=apply(task, Event.RELEASE, now(), claim=claim))
