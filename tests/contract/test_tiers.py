"""Which PENDING tasks a claim takes: of which tier, of which run; and how they become of another run."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from backends import SQUARE, Client, call, new_ids, tick

from omniq_executor.model.task import Event, Options, Status, Successor
from omniq_executor.stores.base import NO_RUN, Batch, Outcome, Store, Turn

Enter = Callable[..., Client]


def add(client: Client, *after: int, priority: int = 0, eta: int = 0, **options: Any) -> int:
    (id,) = new_ids(1)
    how = Options(after=after, **options)
    client.turn(adds=[Batch(id, 1, SQUARE, calls=[call(id)], priority=priority, eta=eta, options=how)])
    return id


def die_with(client: Client, enter: Enter, *ids: int, times: int = 1) -> None:
    """Have so many owners die while these tasks run."""
    for _ in range(times):
        victim = enter("elsewhere")
        for id in ids:
            assert victim.store.claim(victim.owner, id, tick()) is not None
        victim.die()
        assert client.store.reap(tick()) == len(ids)


# --- Tiers ---


def test_the_death_of_an_owner_is_counted_and_nothing_else_is(client: Client, enter: Enter) -> None:
    ids = client.add(*range(4), claimed=True)
    client.end(Event.RELEASE, ids[0])
    client.end(Event.CRASH, ids[1])
    client.store.leave(client.owner)
    other = enter()
    assert [client.store.get(id).owner_deaths for id in ids] == [0] * 4
    die_with(other, enter, *ids[2:])
    assert [other.store.get(id).owner_deaths for id in ids] == [0, 0, 1, 1]
    assert [(task.attempts, task.crashes, task.owner, task.started_at) for task in map(other.store.get, ids[2:])] == [
        (2, 0, None, None)
    ] * 2


def test_each_tier_is_claimed_by_itself_and_the_next_one_is_told(client: Client, enter: Enter) -> None:
    none, once, twice, often = client.add(*range(4))
    die_with(client, enter, once, times=1)
    die_with(client, enter, twice, times=2)
    die_with(client, enter, often, times=3)
    first = client.turn(claim=9)
    assert ([it.id for it in first.claimed], first.next_tier) == ([none], 1)
    second = client.turn(claim=9, tier=1)
    assert ([(it.id, it.owner_deaths) for it in second.claimed], second.next_tier) == ([(once, 1)], 2)
    assert client.turn(claim=9).next_tier == 2
    third = client.turn(claim=9, tier=2)
    assert ([(it.id, it.owner_deaths) for it in third.claimed], third.next_tier) == ([(twice, 2), (often, 3)], None)
    assert client.turn(claim=9).next_tier is None


def test_no_next_tier_is_told_where_all_was_claimed_that_was_asked_for(client: Client, enter: Enter) -> None:
    ids = client.add(1, 2)
    die_with(client, enter, ids[1])
    assert client.turn().next_tier is None
    assert client.turn(claim=1).next_tier is None
    assert client.turn(claim=1).next_tier == 1


def test_only_what_the_turn_claims_from_makes_a_next_tier(client: Client, enter: Enter) -> None:
    other, stranger = enter(), enter("elsewhere")
    (id,) = other.add(1)
    (strange,) = stranger.add(1)
    die_with(client, enter, id, strange)
    assert client.turn(claim=1).next_tier == 1
    assert client.turn(claim=1, of_run=True).next_tier is None
    assert other.turn(claim=1, of_run=True).next_tier == 1
    assert client.turn(claim=1, queues=("nowhere",)).next_tier is None
    assert client.turn(claim=1, queues=()).next_tier == 1
    assert other.claim(tier=1) == [id]
    assert client.turn(claim=1).next_tier is None
    assert client.turn(claim=1, queues=("elsewhere",)).next_tier == 1


def test_what_is_due_later_makes_a_next_tier(client: Client, enter: Enter) -> None:
    later = add(client)
    die_with(client, enter, later)
    assert client.claim(tier=1) == [later]
    due = tick() + 10**10
    client.turn(outcomes=[Outcome(later, 2, Event.RETRY, eta=due)])
    turned = client.turn(claim=1)
    assert (turned.next_tier, turned.due) == (1, None)
    turned = client.turn(claim=1, tier=1)
    assert (turned.claimed, turned.due, turned.next_tier) == ([], due, None)


def test_what_is_not_pending_any_more_makes_no_next_tier(client: Client, other: Client, enter: Enter) -> None:
    cancelled, taken, retried = client.add(1, 2, 3)
    die_with(client, enter, cancelled, taken, retried)
    assert client.turn(claim=1).next_tier == other.turn(claim=1).next_tier == 1
    client.store.cancel([cancelled, retried], tick())
    client.store.retry([retried], tick())
    assert client.store.claim(client.owner, taken, tick()) is not None
    turned = other.turn(claim=9)
    assert ([it.id for it in turned.claimed], turned.next_tier) == ([retried], None)
    assert client.turn(claim=1).next_tier is None


def test_what_waits_makes_no_next_tier(client: Client, enter: Enter) -> None:
    (needed,) = client.add(1, claimed=True)
    client.end(Event.FAIL, needed)
    id, victim = add(client, needed), enter("elsewhere")
    assert victim.store.claim(victim.owner, id, tick()) is not None
    client.store.retry([needed], tick())
    victim.die()
    assert client.store.reap(tick()) == 1
    turned = client.turn(claim=2)
    assert ([it.id for it in turned.claimed], turned.next_tier) == ([needed], None)
    assert client.claim(tier=1) == []
    client.end(Event.COMPLETE, needed, attempt=2, result="1")
    assert client.turn(claim=1).next_tier == 1
    assert client.claim(tier=1) == [id]


def test_in_a_tier_the_order_of_claims_is_the_same(client: Client, enter: Enter) -> None:
    late, soon, urgent = add(client, eta=5), add(client, eta=4), add(client, priority=1, eta=9)
    die_with(client, enter, late, soon, urgent, times=2)
    ten = add(client)
    die_with(client, enter, ten, times=3)
    assert client.claim(tier=2) == [urgent, ten, soon, late]


def test_a_turn_that_brings_tasks_back_claims_them_in_their_tier(client: Client, enter: Enter) -> None:
    (id,) = client.add(1)
    die_with(client, enter, id)
    assert client.claim(tier=1) == [id]
    turned = client.turn(outcomes=[Outcome(id, 2, Event.RELEASE)], claim=1)
    assert (turned.claimed, turned.next_tier) == ([], 1)
    assert client.claim(tier=1) == [id]
    turned = client.turn(outcomes=[Outcome(id, 3, Event.CRASH)], claim=1, tier=1)
    assert [(it.id, it.attempt, it.owner_deaths) for it in turned.claimed] == [(id, 4, 1)]


def test_an_added_or_recurring_task_and_one_that_is_revived_begin_in_the_first_tier(
    client: Client, enter: Enter
) -> None:
    recurs = add(client, interval=60_000_000)
    (other,) = client.add(1)
    die_with(client, enter, recurs, other, times=2)
    assert client.claim(tier=2) == [recurs, other]
    (successor,) = new_ids(1)
    client.turn(outcomes=[
        Outcome(recurs, 3, Event.COMPLETE, "1", successor=Successor(successor, 0)), Outcome(other, 3, Event.FAIL),
    ])  # fmt: skip
    client.store.retry([other], tick())
    assert sorted(client.claim()) == sorted([successor, other])
    assert client.store.get(other).owner_deaths == client.store.get(successor).owner_deaths == 0


# --- Claims of a whole queue, and of a run ---


def test_the_runs_of_a_queue_are_claimed_as_one(client: Client, enter: Enter) -> None:
    clients = [client, enter(), enter()]
    ids = []
    for place, (priority, eta) in enumerate(itertools.product((0, 2, 1), (0, 7, 3, 7))):
        ids.append((-priority, eta, add(clients[place % 3], priority=priority, eta=eta)))
    expected = [id for _, _, id in sorted(ids)]
    worker = enter("elsewhere")
    claimed = worker.store.turn(worker.owner, NO_RUN, Turn(tick(), claim=4, queues=("work",))).claimed
    assert [it.id for it in claimed] == expected[:4]
    assert client.claim(3) == expected[4:7]
    assert client.claim() == expected[7:]


def test_due_is_the_soonest_of_all_runs_and_of_a_run_its_own(client: Client, enter: Enter) -> None:
    soon, later = tick() + 10**9, tick() + 2 * 10**9
    other = enter()
    add(client, eta=later)
    add(other, eta=soon)
    assert client.turn(claim=1).due == other.turn(claim=1).due == soon
    assert client.turn(claim=1, of_run=True).due == later
    assert other.turn(claim=1, of_run=True).due == soon
    assert client.turn(claim=1, queues=()).due == soon
    third = enter()
    assert third.turn(claim=1, of_run=True).due is None


def test_a_claim_of_a_run_takes_what_it_added_and_nothing_else(client: Client, other: Client) -> None:
    theirs = other.add(1, 2)
    urgent = add(other, priority=9)
    mine = client.add(1, 2)
    assert client.claim(of_run=True) == mine
    assert client.claim(of_run=True) == []
    assert other.claim(of_run=True) == [urgent, *theirs]


def test_a_turn_claims_of_its_run_what_it_adds_and_gives_back(client: Client, other: Client) -> None:
    (theirs,) = other.add(1)
    (mine,) = client.add(1, claimed=True)
    assert other.store.claim(other.owner, theirs, tick()) is not None
    (new,) = new_ids(1)
    turned = client.turn(
        adds=[Batch(new, 1, SQUARE, calls=[call(1)])], outcomes=[Outcome(mine, 1, Event.RELEASE)], claim=9, of_run=True
    )
    assert [it.id for it in turned.claimed] == [mine, new]
    other.end(Event.RELEASE, theirs)
    assert client.claim(of_run=True) == []


# --- Adoption ---


def leave(client: Client) -> None:
    client.stop(clean=False)


def test_what_is_of_no_living_owner_is_adopted_and_then_claimed_with_the_run(client: Client, enter: Enter) -> None:
    gone, alive = enter(), enter()
    ids, theirs = gone.add(1, 2, 3), alive.add(4)
    assert client.store.adopt(client.run, ids, tick()) == 0
    leave(gone)
    assert client.store.adopt(client.run, [*ids[:2], *theirs, new_ids(1)[0]], tick()) == 2
    assert [client.store.get(id).run for id in (*ids, *theirs)] == [
        client.run.id, client.run.id, gone.run.id, alive.run.id,
    ]  # fmt: skip
    assert client.claim(of_run=True) == ids[:2]
    assert client.store.adopt(client.run, ids, tick()) == 1
    assert client.store.adopt(client.run, ids, tick()) == 0
    assert client.claim(of_run=True) == ids[2:]


def test_a_dead_owner_counts_as_soon_as_it_is_reaped(client: Client, enter: Enter) -> None:
    dead = enter()
    pending, running = dead.add(1, 2)
    dead.store.claim(dead.owner, running, tick())
    dead.die()
    client.store.reap(tick())
    assert client.store.adopt(client.run, [pending, running], tick()) == 2
    assert client.claim(of_run=True) == [pending]
    assert client.claim(of_run=True, tier=1) == [running]


def test_what_is_of_no_run_is_adopted(client: Client) -> None:
    (id,) = new_ids(1)
    batch = Batch(id, 1, SQUARE, calls=[call(1)])
    client.store.turn(client.owner, NO_RUN._replace(queue="work"), Turn(tick(), adds=[batch]))
    assert client.claim(of_run=True) == []
    assert client.store.adopt(client.run, None, tick()) == 1
    assert client.claim(of_run=True) == [id]


def test_all_of_the_queue_is_adopted_and_only_that_and_only_what_is_pending(
    client: Client, enter: Enter, store: Store
) -> None:
    gone, stranger = enter(), enter("elsewhere")
    pending, done, cancelled, failed, running = gone.add(*range(5))
    (strange,) = stranger.add(1)
    waiting, later = add(gone, pending), add(gone, eta=tick() + 10**12)
    for id in (done, failed, running):
        assert client.store.claim(client.owner, id, tick()) is not None
    client.end(Event.COMPLETE, done, result="1")
    client.end(Event.FAIL, failed)
    client.store.cancel([cancelled], tick())
    leave(gone)
    leave(stranger)
    assert client.store.adopt(client.run, None, tick()) == 3
    assert {task.id for task in store.find() if task.run == client.run.id} == {pending, waiting, later}
    before = store.get(strange)
    assert (before.run, before.status) == (stranger.run.id, Status.PENDING)
    assert client.claim(of_run=True) == [pending]
    client.end(Event.COMPLETE, pending, result="1")
    assert client.claim(of_run=True) == [waiting]


@pytest.mark.parametrize("handle", ["same", "reopened"])
def test_what_others_come_after_is_adopted_with_them_to_the_last_and_in_whichever_queue(
    client: Client, enter: Enter, handle: str
) -> None:
    gone, stranger = enter(), enter("elsewhere")
    (unrelated,) = stranger.add(0)
    bottom = add(stranger)
    (running,) = client.add(1, claimed=True)
    below_running = add(stranger)
    middle = add(gone, bottom)
    through = add(gone, middle, running)
    top = add(gone, through, below_running)
    leave(gone)
    leave(stranger)
    assert client.store.adopt(client.run, [top], tick()) == 5
    assert client.store.get(unrelated).run == stranger.run.id
    if handle == "reopened":
        client.reopen()
    assert sorted(client.claim(of_run=True)) == [bottom, below_running]
    client.end(Event.COMPLETE, running, bottom, below_running, result="1")
    for id in (middle, through, top):
        assert client.claim(of_run=True) == [id]
        client.end(Event.COMPLETE, id, result="1")


def test_what_a_running_task_comes_after_is_adopted_and_what_a_finished_one_does_is_not(
    client: Client, enter: Enter
) -> None:
    gone = enter()
    first, second = gone.add(1, 2)
    after_first, after_second = add(gone, first), add(gone, second)
    for id in (first, second):
        client.store.claim(client.owner, id, tick())
    client.end(Event.FAIL, first, second)
    client.store.claim(client.owner, after_first, tick())
    client.store.claim(client.owner, after_second, tick())
    client.end(Event.FAIL, after_second)
    client.store.retry([first, second], tick())
    leave(gone)
    assert client.store.adopt(client.run, [after_first, after_second], tick()) == 1
    assert [client.store.get(id).run for id in (first, second)] == [client.run.id, gone.run.id]


def test_a_run_claims_its_share_of_each_queue_that_it_has_adopted_from(client: Client, enter: Enter) -> None:
    stranger = enter("elsewhere")
    ids = stranger.add(*range(10))
    leave(stranger)
    mine = client.add(*range(10))
    assert client.store.adopt(client.run, ids, tick()) == 10
    claimed = client.claim(6, of_run=True)
    assert sorted(claimed) == sorted([*ids[:3], *mine[:3]])
    assert sorted(client.claim(of_run=True)) == sorted([*ids[3:], *mine[3:]])


# --- Cancelling a run ---


def test_what_is_pending_of_a_run_is_cancelled_and_nothing_else(client: Client, other: Client, enter: Enter) -> None:
    stranger = enter("elsewhere")
    (strange,) = stranger.add(1)
    leave(stranger)
    done, running, pending = client.add(1, 2, 3)
    assert client.claim(2) == [done, running]
    client.end(Event.COMPLETE, done, result="1")
    waiting = add(client, pending)
    (theirs,) = other.add(1)
    client.store.adopt(client.run, [strange], tick())
    freed = add(other, pending)
    assert sorted(other.store.cancel_run(client.run.id, tick())) == sorted([pending, waiting, strange])
    assert client.statuses([done, running, pending, waiting, strange, theirs]) == [
        Status.COMPLETED, Status.RUNNING, *[Status.CANCELLED] * 3, Status.PENDING,
    ]  # fmt: skip
    assert set(client.store.read_changes(client.owner)) >= {pending, waiting, strange}
    assert other.claim() == [theirs, freed]
    assert other.store.cancel_run(client.run.id, tick()) == []
    assert other.store.cancel_run(10**9, tick()) == []


def test_a_series_of_a_cancelled_run_ends(client: Client) -> None:
    first = add(client, interval=60_000_000)
    client.claim()
    (second,) = new_ids(1)
    client.turn(outcomes=[Outcome(first, 1, Event.COMPLETE, "1", successor=Successor(second, 0))])
    assert client.store.cancel_run(client.run.id, tick()) == [second]
    assert client.claim() == []
