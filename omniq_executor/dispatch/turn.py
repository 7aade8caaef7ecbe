"""What a turn adds, ends, claims and gives. Pure: no store, no engine, no thread and no clock.

    what is known of the store, ends of claims, new calls, what is free  --plan()-->     a TurnPlan
    the plan, what came of its commit                                    --take_in()-->  what is known of the store

Tasks are claimed in tiers (model.tier()), each only when nothing of the one before is left: first those no owner has
died in; then those with which one has died, in workers that have nothing else; then those with which more have, with
nothing beside them, so that one more death tells which call it was.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..model.task import LAST_TIER
from ..stores.base import Batch, Turn, TurnResult
from .results import ClaimEnds


class Situation(NamedTuple):
    """What a turn finds."""

    now: int  # microseconds since 1970
    total: int  # for how many more calls the workers have room in all, ...
    best: int  # ... how many of these the one with the most room takes, ...
    idle: int = 0  # ... and how many workers have nothing to do
    queued: int = 0  # how many calls are claimed and wait for a worker
    is_busy: bool = False  # whether a worker has calls
    has_suspects_only: bool = True  # whether all calls that workers have are such as an owner has died in
    is_visit: bool = False  # whether the turn is of somebody who adds, and may add more
    holds: bool = False  # whether nothing is given to workers by this turn, as in a burst, ...
    is_draining: bool = False  # ... or by any other
    was_notified: bool = False  # whether others may have added something, or given it back


class Pending(NamedTuple):
    """What is known of the tasks in the store that an owner could claim."""

    some: bool = True  # whether there may be some of the first tier
    due: int | None = None  # when the next one is due, in microseconds since 1970, as far as is known
    next_tier: int | None = None  # the first of the other tiers that has some
    is_alone: bool = False  # whether a call of the last tier is under way, beside which nothing runs

    @property
    def is_any(self) -> bool:
        """Whether there may be some that are due."""
        return self.some or self.next_tier is not None or self.is_alone


class TurnPlan(NamedTuple):
    """What a turn is to do."""

    turn: Turn  # what is committed together
    resolutions: Sequence[tuple[Sequence[int], Any]]
    """What whoever waits is told then, as Waiters.resolve_all() takes it."""
    pending: Pending  # what is known now, whether it is committed or not
    gives: bool = False  # whether calls that are claimed as they are added go to a worker at once, past none that waits
    waits: bool = False  # whether another turn is to come when nobody has added anything for a moment


def plan(
    pending: Pending, ends: ClaimEnds, batch: Batch | None, queues: Sequence[str] | None, found: Situation
) -> TurnPlan:
    """Return what a turn does with ends of claims and a batch of new calls, and what it claims.

    `queues` are those to claim from, or None for what is of the run.
    """
    _, due, next_tier, is_alone = pending
    # Who notified may have added or retried something: it is claimed in this very turn, as no other may follow.
    some = pending.some or ends.gives_back or found.was_notified
    if due is not None and found.now >= due:
        due, some = None, True
    if is_alone and not (found.is_busy or found.queued):
        is_alone, some = False, True
    if batch is not None:
        # Claimed at once only if nothing older is PENDING, and if one worker can have all of it.
        is_usual = not batch.priority and not batch.eta and batch.options is None and not is_alone
        has_room = found.best >= batch.size and found.total >= batch.size + found.queued
        if is_usual and has_room and not some:
            batch = batch.as_claimed()
        some = some or not batch.claimed
    claim, tier, waits = 0, 0, False
    claims = not (found.queued or found.is_draining or is_alone)
    if claims:
        if some:
            claim = found.total
        elif next_tier is not None and found.is_visit:
            waits = True  # they come after all that is being added
        elif next_tier == LAST_TIER:
            claim, tier = int(found.total > 0 and batch is None and not found.is_busy), LAST_TIER
        elif next_tier is not None and found.has_suspects_only:
            claim, tier = found.idle, next_tier
    turn = Turn(
        found.now, () if batch is None else (batch,), ends.blocks, ends.outcomes, claim,
        queues if claims else None, claims and queues is None, tier,
    )  # fmt: skip
    known = Pending(some, due, next_tier, is_alone)
    return TurnPlan(turn, ends.resolutions, known, not (found.holds or found.queued), waits)


def take_in(pending: Pending, turn: Turn, turned: TurnResult) -> tuple[Pending, bool]:
    """Return what is known after a turn that was committed, and whether another one is to follow at once."""
    if not turn.claim:
        return (pending._replace(some=True) if turned.freed else pending), turned.freed
    is_alone = turn.tier == LAST_TIER and bool(turned.claimed)
    freed = turned.freed and turn.tier > 0  # by the ends of this turn; a claim of the first tier comes after those
    some = pending.some or freed
    if len(turned.claimed) == turn.claim:
        return pending._replace(some=some, is_alone=is_alone), freed
    dues = [due for due in (turned.due, pending.due if turn.tier else None) if due is not None]
    known = Pending(some and turn.tier > 0, min(dues, default=None), turned.next_tier, is_alone)
    return known, freed or turned.next_tier is not None


def is_empty(turn: Turn) -> bool:
    """Return whether there is nothing to commit."""
    return not (turn.adds or turn.blocks or turn.outcomes or turn.claim)


def is_of_interest(turn: Turn) -> bool:
    """Return whether others may wait for what a turn commits.

    Claims are of interest to nobody: two who notify each other for having been notified would do so for ever.
    """
    return bool(turn.blocks or turn.outcomes) or any(not batch.claimed for batch in turn.adds)
