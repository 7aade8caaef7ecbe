"""What the options of a task do in a store: order, due times, retries, recurrence, tags."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
from backends import ERROR, SQUARE, Backend, Client, call, new_ids, tick

from omniq_executor.model.task import Claim, Event, Options, Status, Successor
from omniq_executor.stores.base import Batch, Outcome

ALL = Options(3, 0, 2.5, 60_000_000, None, ("nightly", "é"), b"policy")


def add(client: Client, value: object = 1, *, priority: int = 0, eta: int = 0, options: Options | None = None) -> int:
    (id,) = new_ids(1)
    batch = Batch(id, 1, SQUARE, calls=[call(value)], priority=priority, eta=eta, options=options)
    client.turn(adds=[batch])
    return id


def end(client: Client, id: int, event: Event, attempt: int = 1, **more: object) -> set[int]:
    return client.turn(outcomes=[Outcome(id, attempt, event, **more)]).refused  # type: ignore[arg-type]


def test_options_are_kept_and_come_with_the_claim(client: Client, other: Client) -> None:
    eta = tick()
    id = add(client, priority=7, eta=eta, options=ALL)
    task = other.store.get(id)
    assert (task.priority, task.eta, task.options) == (7, eta, ALL)
    (claimed,) = other.turn(claim=1).claimed
    assert (claimed.id, claimed.eta, claimed.options) == (id, eta, ALL)


def test_options_that_are_as_usual_are_none(client: Client) -> None:
    assert client.store.get(add(client, options=Options())).options is None


def test_options_hold_for_each_call_of_a_text(client: Client) -> None:
    ids = new_ids(2)
    client.turn(adds=[Batch(ids[0], 2, SQUARE, text="[[1],[2]]", priority=1, options=Options(tags=("a",)))])
    tasks = [client.store.get(id) for id in ids]
    assert [(task.args, task.priority, task.options) for task in tasks] == [
        ("[1]", 1, Options(tags=("a",))), ("[2]", 1, Options(tags=("a",))),
    ]  # fmt: skip


def test_claims_go_by_priority_then_due_time_then_submission(client: Client) -> None:
    now = tick()
    ids = [add(client, priority=p, eta=e) for p, e in ((0, 5), (0, 0), (1, 9), (1, 9), (-1, 0))]
    claimed = client.turn(now, claim=9).claimed
    assert [ids.index(one.id) for one in claimed] == [2, 3, 1, 0, 4]


def test_it_is_told_when_the_next_task_is_due(client: Client, enter: Callable[..., Client]) -> None:
    now = tick()
    add(client, eta=now + 500)
    early = add(client, eta=now + 200)
    add(enter("elsewhere"), eta=now + 1)
    turned = client.turn(now, claim=1)
    assert (turned.claimed, turned.due) == ([], now + 200)
    turned = client.turn(now + 200, claim=2)
    assert ([one.id for one in turned.claimed], turned.due) == ([early], now + 500)
    assert client.turn(now + 500, claim=1).due is None  # there may be more
    assert client.turn(now + 500, claim=1).due is None


def test_a_task_becomes_due_also_if_the_clock_was_set_back_meanwhile(client: Client) -> None:
    now = tick()
    id = add(client, eta=now + 100)
    assert client.turn(now, claim=1).claimed == []
    assert client.turn(now - 10**9, claim=1).claimed == []
    assert [one.id for one in client.turn(now + 100, claim=1).claimed] == [id]


def test_a_retry_is_pending_until_it_is_due_and_shows_its_error(client: Client) -> None:
    id = add(client, options=ALL)
    client.claim()
    now = tick()
    assert client.turn(now, outcomes=[Outcome(id, 1, Event.RETRY, error=ERROR, eta=now + 50)]).refused == set()
    task = client.store.get(id)
    assert (task.status, task.owner, task.started_at, task.eta, task.error) == (
        Status.PENDING, None, None, now + 50, ERROR,
    )  # fmt: skip
    assert task.options == ALL._replace(retries=1)
    assert client.turn(now, claim=1).claimed == []
    (claimed,) = client.turn(now + 50, claim=1).claimed
    assert (claimed.attempt, claimed.options) == (2, ALL._replace(retries=1))
    end(client, id, Event.COMPLETE, 2, result="9")
    task = client.store.get(id)
    assert (task.status, task.result, task.error) == (Status.COMPLETED, "9", None)


def test_a_retry_of_a_claim_that_is_lost_is_refused(client: Client, other: Client) -> None:
    id = add(client, options=ALL)
    client.claim()
    before = client.store.get(id)
    assert end(other, id, Event.RETRY, error=ERROR, eta=5) == {id}
    assert end(client, id, Event.RETRY, attempt=2, error=ERROR, eta=5) == {id}
    assert client.store.get(id) == before


def test_a_retry_is_possible_without_options(client: Client) -> None:
    """The owner decides; the store only keeps count."""
    (id,) = client.add(1, claimed=True)
    end(client, id, Event.RETRY, error=ERROR, eta=5)
    assert client.store.get(id).options == Options(retries=1)


def test_who_revives_a_task_gives_it_its_retries_back(client: Client) -> None:
    id = add(client, options=ALL)
    client.claim()
    end(client, id, Event.RETRY, error=ERROR, eta=0)
    client.claim()
    end(client, id, Event.FAIL, 2, error=ERROR)
    assert client.store.retry([id], tick()) == [id]
    assert client.store.get(id).options == ALL


def test_who_revives_a_task_that_had_no_options_but_a_retry_leaves_it_without_any(client: Client) -> None:
    id = add(client)
    client.claim()
    end(client, id, Event.RETRY, error=ERROR, eta=0)
    assert client.store.cancel([id], tick()) == [id]
    assert client.store.retry([id], tick()) == [id]
    assert client.store.get(id).options is None


def test_the_next_occurrence_is_added_with_the_end_of_the_last(client: Client) -> None:
    id = add(client, 5, priority=2, options=ALL)
    client.claim()
    second, third = new_ids(2)
    now = tick()
    successor = Successor(second, now + 100)
    client.turn(now, outcomes=[Outcome(id, 1, Event.COMPLETE, "25", successor=successor)])
    task = client.store.get(second)
    assert (task.status, task.args, task.priority, task.eta, task.enqueued_at, task.attempts) == (
        Status.PENDING, "[5]", 2, now + 100, now, 0,
    )  # fmt: skip
    assert task.options == ALL._replace(series=id)
    assert [one.id for one in client.turn(now + 100, claim=5).claimed] == [second]
    end(client, second, Event.FAIL, error=ERROR, successor=Successor(third, now + 200))
    task = client.store.get(third)
    assert (task.eta, task.options) == (now + 200, ALL._replace(series=id))


def test_an_end_that_is_refused_adds_no_occurrence(client: Client, other: Client) -> None:
    id = add(client, options=ALL)
    client.claim()
    (next_id,) = new_ids(1)
    assert end(other, id, Event.COMPLETE, result="1", successor=Successor(next_id, 5)) == {id}
    assert client.store.states([next_id]) == []


def test_a_series_is_cancelled_by_any_of_its_occurrences(client: Client) -> None:
    first, stranger = add(client, options=ALL), add(client, options=ALL)
    client.claim(1)
    (second,) = new_ids(1)
    end(client, first, Event.COMPLETE, result="1", successor=Successor(second, tick() + 10**9))
    assert client.store.cancel([first], tick()) == [second]
    assert client.statuses([first, second, stranger]) == [Status.COMPLETED, Status.CANCELLED, Status.PENDING]


@pytest.mark.parametrize("named", ["first", "second"])
def test_a_series_that_is_cancelled_while_it_runs_ends_with_that_occurrence(client: Client, named: str) -> None:
    first, (second, third) = add(client, options=ALL), new_ids(2)
    client.claim(1)
    end(client, first, Event.COMPLETE, result="1", successor=Successor(second, 0))
    client.claim(1)
    assert client.store.cancel([first if named == "first" else second], tick()) == []
    assert client.store.get(second).options == ALL._replace(series=first, interval=None)
    assert end(client, second, Event.COMPLETE, result="2", successor=Successor(third, 0)) == set()
    assert client.statuses([first, second]) == [Status.COMPLETED, Status.COMPLETED]
    assert client.store.states([third]) == []


def test_a_series_is_cancelled_with_the_occurrence_that_runs_by_who_wishes_that(client: Client) -> None:
    first, (second, third) = add(client, options=ALL), new_ids(2)
    client.claim(1)
    end(client, first, Event.COMPLETE, result="1", successor=Successor(second, 0))
    client.claim(1)
    assert client.store.cancel([first], tick(), running=True) == [second]
    assert end(client, second, Event.COMPLETE, result="2", successor=Successor(third, 0)) == {second}
    assert client.store.states([third]) == []


def test_tasks_are_found_by_their_tags(client: Client) -> None:
    both, one = add(client, options=Options(tags=("a", "b"))), add(client, options=Options(tags=("a",)))
    client.add(3)
    found = client.store.find
    assert [task.id for task in found(tags=["a"])] == [both, one]
    assert [task.id for task in found(tags=["b", "a"])] == [both]
    assert found(tags=["c"]) == []


def test_options_outlive_the_handle(backend: Backend, client: Client, address: Path) -> None:
    id = add(client, priority=-3, eta=77, options=ALL._replace(series=12, retries=2))
    before = client.store.get(id)
    client.close()
    with contextlib.closing(backend.open(address)) as store:
        assert store.get(id) == before


def test_what_is_claimed_twice_has_two_attempts_whatever_its_options(client: Client, other: Client) -> None:
    id = add(client, options=ALL)
    client.claim()
    client.die()
    other.store.reap(tick())
    (claimed,) = other.turn(claim=1, tier=1).claimed
    assert (claimed.attempt, claimed.options, claimed.owner_deaths) == (2, ALL, 1)
    assert other.store.get(id).owner == Claim(other.owner, 2).owner
