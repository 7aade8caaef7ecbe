"""What a turn is planned to do, by values alone: what it adds, ends, claims and gives."""

from typing import Any

import pytest

from omniq_executor.dispatch.results import ClaimEnds
from omniq_executor.dispatch.turn import Pending, Situation, TurnPlan, is_empty, is_of_interest, plan, take_in
from omniq_executor.model.task import LAST_TIER, Event, Function, Options
from omniq_executor.stores.base import Batch, Claimed, Outcome, Turn, TurnResult

NOW = 1_000
FUNCTION = Function(b"digest", "path", b"pickle")
NOTHING = ClaimEnds([], [], [])
SOME, NONE = Pending(), Pending(some=False)


def batch(size: int = 1, **options: Any) -> Batch:
    return Batch(100, size, FUNCTION, "[]", **options)


def found(total: int = 4, best: int = 2, **more: Any) -> Situation:
    return Situation(NOW, total, best, **more)


def claimed(count: int) -> list[Claimed]:
    return [Claimed(n, 1, 0, 1, b"digest", "[]", None) for n in range(count)]


def test_what_may_be_pending_is_claimed_for_all_that_is_free() -> None:
    expected = TurnPlan(Turn(NOW, (), [], [], 4, None, True), [], SOME, gives=True, waits=False)
    assert plan(SOME, NOTHING, None, None, found()) == expected


def test_where_nothing_is_pending_there_is_nothing_to_do() -> None:
    assert plan(NONE, NOTHING, None, None, found()) == TurnPlan(
        Turn(NOW, of_run=True, outcomes=[], blocks=[]), [], NONE, True
    )
    assert is_empty(plan(NONE, NOTHING, None, None, found()).turn)


def test_ends_are_committed_as_they_are_and_told_afterwards() -> None:
    ends = ClaimEnds([], [Outcome(1, 1, Event.COMPLETE, result="1")], [((1,), "1")])
    planned = plan(NONE, ends, None, None, found())
    assert (planned.turn.outcomes, planned.resolutions, planned.turn.claim) == (ends.outcomes, ends.resolutions, 0)


@pytest.mark.parametrize(
    ("pending", "situation", "new", "expected"),
    [
        (NONE, found(), batch(2), True),
        (NONE, found(), batch(3), False),  # no one worker has room for it
        (NONE, found(total=2, queued=1), batch(2), False),  # those that wait come first
        (SOME, found(), batch(), False),  # something older is PENDING
        (Pending(some=False, is_alone=True), found(is_busy=True), batch(), False),
        (NONE, found(), batch(priority=1), False),
        (NONE, found(), batch(eta=NOW + 1), False),
        (NONE, found(), batch(options=Options(max_retries=1)), False),
        (NONE, found(was_notified=True), batch(), False),  # others may have added something older
    ],
)
def test_new_calls_are_claimed_as_they_are_added_if_nothing_is_before_them_and_a_worker_has_room(
    pending: Pending, situation: Situation, new: Batch, expected: bool
) -> None:
    planned = plan(pending, NOTHING, new, None, situation)
    (added,) = planned.turn.adds
    kept = [name for name in Batch.__slots__ if name != "claimed"]
    assert [getattr(added, name) for name in kept] == [getattr(new, name) for name in kept]
    assert added.claimed is expected
    assert planned.pending.some is not expected
    assert not new.claimed  # what it is asked with stays as it is


@pytest.mark.parametrize(
    ("situation", "expected"), [(found(), True), (found(queued=1), False), (found(holds=True), False)]
)
def test_what_is_claimed_as_it_is_added_goes_to_a_worker_past_none_that_waits_and_not_in_a_burst(
    situation: Situation, expected: bool
) -> None:
    planned = plan(NONE, NOTHING, batch(), None, situation)
    assert [added.claimed for added in planned.turn.adds] == [True]
    assert planned.gives is expected


@pytest.mark.parametrize("situation", [found(queued=1), found(is_draining=True)])
def test_nothing_is_claimed_while_calls_wait_for_a_worker_or_nothing_is_given_any_more(situation: Situation) -> None:
    assert not plan(SOME, NOTHING, None, None, situation).turn.claim


def test_a_crash_a_retry_and_a_successor_give_something_back_to_claim() -> None:
    for event in (Event.CRASH, Event.RETRY):
        ends = ClaimEnds([], [Outcome(1, 1, event)], [])
        turn = plan(NONE, ends, None, ["queue"], found()).turn
        assert (turn.claim, turn.queues, turn.of_run, turn.outcomes) == (4, ["queue"], False, ends.outcomes)


def test_a_task_is_claimed_when_it_is_due_and_not_before() -> None:
    pending = Pending(some=False, due=NOW + 1)
    assert plan(pending, NOTHING, None, None, found()).pending == pending
    planned = plan(pending, NOTHING, None, None, found()._replace(now=NOW + 1))
    assert planned.turn.claim == 4
    assert planned.pending == SOME


def test_what_an_owner_has_died_in_comes_last_and_where_a_worker_has_nothing_else() -> None:
    pending = Pending(some=False, next_tier=1)
    assert not plan(pending, NOTHING, None, None, found(idle=2, has_suspects_only=False)).turn.claim
    turn = plan(pending, NOTHING, None, None, found(idle=2)).turn
    assert (turn.claim, turn.tier) == (2, 1)
    planned = plan(pending, NOTHING, None, None, found(idle=2, is_visit=True))
    assert planned.waits
    assert is_empty(planned.turn)


def test_what_owners_have_died_in_runs_with_nothing_beside_it() -> None:
    pending = Pending(some=False, next_tier=LAST_TIER)
    assert not plan(pending, NOTHING, None, None, found(is_busy=True)).turn.claim
    assert not plan(pending, NOTHING, batch(), None, found()).turn.claim
    turn = plan(pending, NOTHING, None, None, found()).turn
    assert (turn.claim, turn.tier) == (1, LAST_TIER)
    alone, follows = take_in(pending, turn, TurnResult(claimed(1)))
    assert (alone.is_alone, follows) == (True, False)
    assert not plan(alone, NOTHING, None, None, found(is_busy=True)).turn.claim  # beside it
    after = plan(alone, NOTHING, None, None, found())
    assert after.turn.claim == 4
    assert not after.pending.is_alone


def test_a_full_claim_tells_nothing_and_a_short_one_what_is_left() -> None:
    pending = Pending(due=5)
    turn = Turn(NOW, claim=4)
    assert take_in(pending, turn, TurnResult(claimed(4), due=7)) == (Pending(some=True, due=5), False)
    assert take_in(pending, turn, TurnResult(claimed(3), due=7)) == (Pending(some=False, due=7), False)
    # Those of a later tier are claimed by a turn that follows.
    assert take_in(pending, turn, TurnResult([], next_tier=1)) == (Pending(some=False, next_tier=1), True)


def test_a_short_claim_of_a_later_tier_does_not_say_that_the_first_is_empty() -> None:
    pending = Pending(some=True, due=5, next_tier=1)
    assert take_in(pending, Turn(NOW, claim=2, tier=1), TurnResult([], due=9)) == (Pending(some=True, due=5), False)


def test_what_waits_no_more_is_claimed_by_a_turn_that_follows() -> None:
    assert take_in(NONE, Turn(NOW), TurnResult(freed=True)) == (SOME, True)
    assert take_in(NONE, Turn(NOW), TurnResult()) == (NONE, False)


@pytest.mark.parametrize("count", [0, 1])
def test_what_is_freed_by_a_turn_that_claims_from_another_tier_is_claimed_by_one_that_follows(count: int) -> None:
    turn = Turn(NOW, claim=1, tier=1)
    pending, follows = take_in(NONE._replace(next_tier=1), turn, TurnResult(claimed(count), freed=True))
    assert (pending.some, follows) == (True, True)


def test_claims_are_of_interest_to_nobody() -> None:
    new = batch(claimed=True)
    assert not is_of_interest(Turn(NOW, adds=(new,), claim=5))
    assert is_of_interest(Turn(NOW, adds=(batch(),)))
    assert is_of_interest(Turn(NOW, outcomes=[Outcome(1, 1, Event.RELEASE)]))
