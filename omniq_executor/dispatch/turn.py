"""What a turn adds, ends and claims. Pure: no store, no engine, no thread and no clock.

    ends of claims, new calls, what is free, what is known of the store  --plan()-->  Turn
    the Turn, what came of it                                            --take_in()-->  what is known of the store

Tasks are claimed in tiers (model.tier()), each only when nothing of the one before is left: first those no owner has
died in; then those with which one has died, in workers that have nothing else; then those with which more have, with
nothing beside them, so that one more death tells which call it was.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..model.task import LAST_TIER
from ..stores.base import Batch, Turn, TurnResult
from .results import ClaimEnds


class Situation(NamedTuple):
    """What a turn finds."""

    now: int
    """Microseconds since 1970."""
    total: int
    """For how many more calls the workers have room in all, ..."""
    best: int
    """... how many of these the one with the most room takes, ..."""
    idle: int = 0
    """... and how many workers have nothing to do."""
    queued: int = 0
    """How many calls are claimed and wait for a worker."""
    is_busy: bool = False
    """Whether a worker has calls."""
    has_suspects_only: bool = True
    """Whether all calls that workers have are such as an owner has died in."""
    is_visit: bool = False
    """Whether the turn is of somebody who adds, and may add more."""
    is_draining: bool = False
    """Whether nothing is given to workers any more."""
    was_notified: bool = False
    """Whether others may have added something, or given it back."""


class TurnPlan(NamedTuple):
    """What a turn is to do."""

    turn: Turn
    waits: bool = False
    """Whether another turn is to come when nobody has added anything for a moment."""


@dataclass(slots=True)
class Pending:
    """What is known of the tasks in the store that an owner could claim."""

    some: bool = True
    """Whether there may be some of the first tier."""
    due: int | None = None
    """When the next one is due, in microseconds since 1970, as far as is known."""
    next_tier: int | None = None
    """The first of the other tiers that has some."""
    is_alone: bool = False
    """Whether a call of the last tier is under way, beside which nothing runs."""

    def plan(self, ends: ClaimEnds, batch: Batch | None, queues: Sequence[str] | None, found: Situation) -> TurnPlan:
        """Return what is committed together: ends of claims, a batch of new calls, and new claims.

        `queues` are those to claim from, or None for what is of the run. Whether the batch is claimed as it is added
        is written into it.
        """
        turn = Turn(found.now, blocks=ends.blocks, outcomes=ends.outcomes)
        if self.due is not None and found.now >= self.due:
            self.due, self.some = None, True
        if self.is_alone and not (found.is_busy or found.queued):
            self.is_alone, self.some = False, True
        # Who rang may have added or retried something: it is claimed in this very turn, as no other may follow.
        self.some = self.some or ends.gives_back or found.was_notified
        if batch is not None:
            # Claimed at once only if nothing older is PENDING, and if one worker can have all of it.
            is_usual = not batch.priority and not batch.eta and batch.options is None and not self.is_alone
            has_room = found.best >= batch.size and found.total >= batch.size + found.queued
            batch.claimed = is_usual and has_room and not self.some
            turn.adds = (batch,)
            self.some = self.some or not batch.claimed
        if found.queued or found.is_draining or self.is_alone:
            return TurnPlan(turn)
        turn.queues, turn.of_run = queues, queues is None
        if self.some:
            turn.claim = found.total
        elif self.next_tier is not None and found.is_visit:
            return TurnPlan(turn, waits=True)  # they come after all that is being added
        elif self.next_tier == LAST_TIER:
            turn.claim, turn.tier = int(found.total > 0 and batch is None and not found.is_busy), LAST_TIER
        elif self.next_tier is not None and found.has_suspects_only:
            turn.claim, turn.tier = found.idle, self.next_tier
        return TurnPlan(turn)

    def take_in(self, turn: Turn, turned: TurnResult) -> bool:
        """Take in what a committed turn has claimed; return whether another one is to follow at once."""
        if not turn.claim:
            self.some = self.some or turned.freed
            return turned.freed
        self.is_alone = turn.tier == LAST_TIER and bool(turned.claimed)
        if len(turned.claimed) == turn.claim:
            return False
        dues = [due for due in (turned.due, self.due if turn.tier else None) if due is not None]
        self.due = min(dues, default=None)
        self.next_tier = turned.next_tier
        self.some = self.some and turn.tier > 0
        return self.next_tier is not None


def is_empty(turn: Turn) -> bool:
    """Return whether there is nothing to commit."""
    return not (turn.adds or turn.blocks or turn.outcomes or turn.claim)


def is_of_interest(turn: Turn) -> bool:
    """Return whether others may wait for what a turn commits.

    Claims are of interest to nobody: two who notify each other for having been notified would do so for ever.
    """
    return bool(turn.blocks or turn.outcomes) or any(not batch.claimed for batch in turn.adds)
