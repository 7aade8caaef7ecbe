"""Claims from several queues, by who has no run: what `omniq-executor worker` does."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from backends import SQUARE, Client, call, new_ids, tick

from omniq_executor.model.task import Event, Status
from omniq_executor.stores.base import NO_RUN, Batch, Outcome, Turn, TurnResult

Enter = Callable[..., Client]


@pytest.fixture
def queues(enter: Enter) -> dict[str, Client]:
    return {name: enter(name) for name in ("one", "two", "three")}


@pytest.fixture
def worker(enter: Enter, queues: dict[str, Client]) -> Client:
    """One who entered with its own handle, and whose run is not used."""
    return enter("*")


def claim(worker: Client, queues: tuple[str, ...], most: int = 100, now: int | None = None, **work: Any) -> TurnResult:
    turn = Turn(tick() if now is None else now, claim=most, queues=queues, **work)
    return worker.store.turn(worker.owner, NO_RUN, turn)


def test_all_queues_are_claimed_from_or_those_that_are_named(queues: dict[str, Client], worker: Client) -> None:
    ids = {name: client.add(1, 2) for name, client in queues.items()}
    named = claim(worker, ("three", "nowhere", "one")).claimed
    assert sorted(one.id for one in named) == sorted(ids["one"] + ids["three"])
    assert [one.id for one in claim(worker, ()).claimed] == ids["two"]
    assert claim(worker, ()).claimed == claim(worker, ("one",)).claimed == []
    assert {task.owner for task in worker.store.find(Status.RUNNING)} == {worker.owner}
    assert set(worker.store.counts()) == set(queues)


def test_no_more_are_claimed_than_was_asked_for_and_each_queue_in_its_order(
    queues: dict[str, Client], worker: Client
) -> None:
    ids = {name: client.add(*range(4)) for name, client in queues.items()}
    order: dict[str, list[int]] = {name: [] for name in ids}
    for _ in range(4):
        claimed = claim(worker, (), 3).claimed
        assert len(claimed) == 3
        for one in claimed:
            (name,) = [name for name in ids if one.id in ids[name]]
            order[name].append(one.id)
    assert order == ids


@pytest.mark.parametrize("most", [3, 7, 11, 100])
def test_each_queue_gives_its_share_of_a_claim_and_a_long_one_what_is_left(
    queues: dict[str, Client], worker: Client, most: int
) -> None:
    queues["one"].add(*range(50))
    queues["two"].add(*range(2))
    queues["three"].add(1)
    claimed = claim(worker, (), most).claimed
    found = Counter(worker.store.get(one.id).queue for one in claimed)
    assert len(claimed) == min(most, 53)
    assert found["three"] == 1
    assert found["two"] >= min(2, most // 3)


def test_each_queue_comes_first_now_and_then(queues: dict[str, Client], worker: Client) -> None:
    for client in queues.values():
        client.add(*range(60))
    firsts = Counter(worker.store.get(claim(worker, (), 1).claimed[0].id).queue for _ in range(60))
    assert set(firsts) == set(queues), "one in 10^10 runs may fail here"


def test_what_comes_back_in_the_same_turn_is_there_for_it(queues: dict[str, Client], worker: Client) -> None:
    (id,) = queues["two"].add(1)
    (claimed,) = claim(worker, ()).claimed
    turned = claim(worker, (), outcomes=[Outcome(id, claimed.attempt, Event.RELEASE)])
    assert [(one.id, one.attempt) for one in turned.claimed] == [(id, 2)]
    later = tick() + 10**9
    turned = claim(worker, (), outcomes=[Outcome(id, 2, Event.RETRY, eta=later)])
    assert (turned.claimed, turned.due) == ([], later)


def test_it_is_told_when_the_next_task_of_these_queues_is_due(queues: dict[str, Client], worker: Client) -> None:
    now = tick()
    for name, eta in (("one", now + 300), ("two", now + 200), ("three", now + 100)):
        queues[name].turn(now, adds=[Batch(*new_ids(1), 1, SQUARE, calls=[call(1)], eta=eta)])
    assert claim(worker, (), now=now).due == now + 100
    assert claim(worker, ("one", "two"), now=now).due == now + 200
    assert claim(worker, ("nowhere",), now=now).due is None
    assert len(claim(worker, (), 1, now=now + 100).claimed) == 1
    assert claim(worker, (), now=now + 100).due == now + 200


def test_who_has_no_run_leaves_none(queues: dict[str, Client], worker: Client) -> None:
    runs = worker.store.runs()
    ids = queues["one"].add(1)
    claim(worker, ())
    worker.store.turn(worker.owner, NO_RUN, Turn(tick(), outcomes=[Outcome(ids[0], 1, Event.COMPLETE, "1")]))
    assert queues["one"].statuses(ids) == [Status.COMPLETED]
    assert worker.store.runs() == runs
