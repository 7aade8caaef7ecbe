"""What a turn is planned to do, by values alone."""

from typing import Any

import pytest

from omniq_executor.dispatch.results import ClaimEnds
from omniq_executor.dispatch.turn import Pending, Situation, is_empty, is_news
from omniq_executor.model.task import LAST_TIER, Event, Function, Options
from omniq_executor.stores.base import Batch, Claimed, Outcome, Turn, TurnResult

NOW = 1_000
FUNCTION = Function(b"digest", "path", b"pickle")
NOTHING = ClaimEnds([], [], [])


def batch(size: int = 1, **options: Any) -> Batch:
    return Batch(100, size, FUNCTION, "[]", **options)


def found(total: int = 4, best: int = 2, **more: Any) -> Situation:
    return Situation(NOW, total, best, **more)


def claimed(count: int) -> list[Claimed]:
    return [Claimed(n, 1, 0, 1, b"digest", "[]", None) for n in range(count)]


def test_what_may_be_pending_is_claimed_for_all_that_is_free() -> None:
    turn, waits = Pending().plan(NOTHING, None, None, found())
    assert (turn, waits) == (Turn(NOW, (), [], [], 4, None, True), False)


def test_where_nothing_is_pending_there_is_nothing_to_do() -> None:
    turn, _ = Pending(some=False).plan(NOTHING, None, None, found())
    assert is_empty(turn)


@pytest.mark.parametrize(
    ("pending", "situation", "new", "expected"),
    [
        (Pending(some=False), found(), batch(2), True),
        (Pending(some=False), found(), batch(3), False),  # no one worker has room for it
        (Pending(some=False), found(total=2, queued=1), batch(2), False),  # those that wait come first
        (Pending(some=True), found(), batch(), False),  # something older is PENDING
        (Pending(some=False, is_alone=True), found(is_busy=True), batch(), False),
        (Pending(some=False), found(), batch(priority=1), False),
        (Pending(some=False), found(), batch(eta=NOW + 1), False),
        (Pending(some=False), found(), batch(options=Options(max_retries=1)), False),
        (Pending(some=False), found(was_notified=True), batch(), False),  # others may have added something older
    ],
)
def test_new_calls_are_claimed_as_they_are_added_if_nothing_is_before_them_and_a_worker_has_room(
    pending: Pending, situation: Situation, new: Batch, expected: bool
) -> None:
    turn, _ = pending.plan(NOTHING, new, None, situation)
    assert turn.adds == (new,)
    assert new.claimed is expected
    assert pending.some is not expected


@pytest.mark.parametrize("situation", [found(queued=1), found(is_draining=True)])
def test_nothing_is_claimed_while_calls_wait_for_a_worker_or_nothing_is_given_any_more(situation: Situation) -> None:
    assert not Pending().plan(NOTHING, None, None, situation).turn.claim


def test_a_crash_a_retry_and_a_successor_give_something_back_to_claim() -> None:
    for event in (Event.CRASH, Event.RETRY):
        ends = ClaimEnds([], [Outcome(1, 1, event)], [])
        turn, _ = Pending(some=False).plan(ends, None, ["queue"], found())
        assert (turn.claim, turn.queues, turn.of_run, turn.outcomes) == (4, ["queue"], False, ends.outcomes)


def test_a_task_is_claimed_when_it_is_due_and_not_before() -> None:
    pending = Pending(some=False, due=NOW + 1)
    assert not pending.plan(NOTHING, None, None, found()).turn.claim
    assert pending.plan(NOTHING, None, None, found()._replace(now=NOW + 1)).turn.claim == 4
    assert pending.due is None


def test_what_an_owner_has_died_in_comes_last_and_where_a_worker_has_nothing_else() -> None:
    pending = Pending(some=False, next_tier=1)
    assert not pending.plan(NOTHING, None, None, found(idle=2, has_suspects_only=False)).turn.claim
    turn, _ = pending.plan(NOTHING, None, None, found(idle=2))
    assert (turn.claim, turn.tier) == (2, 1)
    turn, waits = pending.plan(NOTHING, None, None, found(idle=2, is_visit=True))
    assert waits
    assert is_empty(turn)


def test_what_owners_have_died_in_runs_with_nothing_beside_it() -> None:
    pending = Pending(some=False, next_tier=LAST_TIER)
    assert not pending.plan(NOTHING, None, None, found(is_busy=True)).turn.claim
    assert not pending.plan(NOTHING, batch(), None, found()).turn.claim
    turn, _ = (pending := Pending(some=False, next_tier=LAST_TIER)).plan(NOTHING, None, None, found())
    assert (turn.claim, turn.tier) == (1, LAST_TIER)
    assert not pending.take_in(turn, TurnResult(claimed(1)))
    assert pending.is_alone
    assert not pending.plan(NOTHING, None, None, found(is_busy=True)).turn.claim  # beside it
    assert pending.plan(NOTHING, None, None, found()).turn.claim == 4  # after it
    assert not pending.is_alone


def test_a_full_claim_tells_nothing_and_a_short_one_what_is_left() -> None:
    pending = Pending(due=5)
    turn = Turn(NOW, claim=4)
    assert not pending.take_in(turn, TurnResult(claimed(4), due=7))
    assert pending == Pending(some=True, due=5)
    assert not pending.take_in(turn, TurnResult(claimed(3), due=7))
    assert pending == Pending(some=False, due=7)
    assert pending.take_in(turn, TurnResult([], next_tier=1))  # those are claimed by a turn that follows
    assert pending == Pending(some=False, due=None, next_tier=1)


def test_a_short_claim_of_a_later_tier_does_not_say_that_the_first_is_empty() -> None:
    pending = Pending(some=True, due=5, next_tier=1)
    pending.take_in(Turn(NOW, claim=2, tier=1), TurnResult([], due=9))
    assert pending == Pending(some=True, due=5)


def test_what_waits_no_more_is_claimed_by_a_turn_that_follows() -> None:
    pending = Pending(some=False)
    assert pending.take_in(Turn(NOW), TurnResult(freed=True))
    assert pending.some


def test_claims_are_news_to_nobody() -> None:
    new = batch()
    new.claimed = True
    assert not is_news(Turn(NOW, adds=(new,), claim=5))
    new.claimed = False
    assert is_news(Turn(NOW, adds=(new,)))
    assert is_news(Turn(NOW, outcomes=[Outcome(1, 1, Event.RELEASE)]))
