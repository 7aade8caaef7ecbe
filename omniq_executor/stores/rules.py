"""What every store decides in the same way, without I/O."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

from ..model.task import FINISHED, Status

Resume = Literal["crashed", "failed", "always", "never"]
_Queue = TypeVar("_Queue")


def shares(queues: Sequence[_Queue], most: int, claimed: Sequence[object]) -> Iterator[tuple[_Queue, int]]:
    """Give how many to claim from which queue next, for `most` in all, given what is `claimed` by then.

    From each its share of what is missing, and then whatever there is.
    """
    for left in range(len(queues), 0, -1):
        yield queues[-left], -(-(most - len(claimed)) // left)
    for queue in queues if len(queues) > 1 else ():
        if len(claimed) < most:
            yield queue, most - len(claimed)


def initializer_of(context: str) -> str:
    """Return the part of a context that stands for the initializer and its arguments; empty if there is none."""
    return context.partition(".")[2]


def can_be_taken(status: Status, is_alike: bool) -> bool:
    """Return whether a task that was to be taken over still can be. `is_alike`: the run that has it has that context.

    What a run of another context has adopted and begun, was begun with its initializer and in its folder.
    """
    return status in (Status.PENDING, Status.FAILED) or (status != Status.CANCELLED and is_alike)


def beside(run: int, lives: Mapping[int, tuple[Any, ...]], continues: Collection[int]) -> tuple[int, ...]:
    """Return the earlier runs whose takings are not given to a run: those of its session that it does not continue.

    `lives` has of each run its session, queue and context.
    """
    own = lives[run]
    return tuple(
        id for id, life in sorted(lives.items()) if life == own and life[0] and id < run and id not in continues
    )


class PastRun(NamedTuple):
    """A run, as one that begins or ends sees it."""

    id: int
    likeness: tuple[object, str]  # its queue and context, which it has in common with those that continue and settle it
    continues: Sequence[int]
    session: int
    is_broken: bool  # it did not end, or not clean
    settled: bool
    is_over: bool  # its owner is gone, and so is its session


def ended(past: Iterable[PastRun], own: Collection[int], keep_broken: bool) -> tuple[set[int], set[int]]:
    """Return which runs are clean and which are settled as these end clean: themselves, and those like them.

    With `keep_broken` those of them that are broken stay as they are, and all that are like them, unless another one of
    these has continued them and is not broken itself.
    """
    unsettled = [run for run in past if not run.settled]
    broken = {run.id for run in unsettled if keep_broken and run.is_broken and run.id in own}
    mended = {id for run in unsettled if run.id in own and run.id not in broken for id in run.continues}
    kept = {run.likeness for run in unsettled if run.id in broken.difference(mended)}
    alike = {run.likeness for run in unsettled if run.id in own}.difference(kept)
    settled = {run.id for run in unsettled if run.likeness in alike and (run.is_over or run.id in own)}
    return set(own).difference(broken), settled


def continued(past: Iterable[PastRun], resume: Resume, session: int, have_failed: Collection[int] = ()) -> set[int]:
    """Return which of these runs, which are alike and over, a run of `session` continues.

    With "failed" those that ended last are continued if tasks of them FAILED, which is so of the runs `have_failed`.
    """
    newest = sorted(past, reverse=True)
    found: list[PastRun] = []
    if resume != "never":
        found += [run for run in newest if not run.settled and (not _is_of(run, session) or run.is_broken)]
    if resume in ("always", "failed"):
        own = [run for run in newest if _is_of(run, session)]
        others = [run for run in newest if not _is_of(run, session)]
        last = [run for run in others if run is others[0] or _is_of(run, others[0].session)]
        for runs in own, last:
            if resume == "always" or any(run.id in have_failed for run in runs):
                found += runs
    return {id for run in found for id in (run.id, *run.continues)}


def _is_of(run: PastRun, session: int) -> bool:
    return bool(session) and run.session == session


def check_finished(statuses: Collection[Status]) -> None:
    """Raise ValueError if tasks of one of these states are not finished."""
    for status in statuses:
        if status not in FINISHED:
            names = ", ".join(sorted(status.name for status in FINISHED))
            raise ValueError(f"only tasks that are finished can be purged ({names}), not those that are {status.name}")
