"""Tasks that come after others: they wait until those are finished, whoever finishes them and however."""

import contextlib
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from backends import BACKENDS, ERROR, SQUARE, Backend, Client, call, new_ids, tick

from omniq_executor.errors import TaskNotFound
from omniq_executor.model.task import NEVER, Event, Options, Status, Successor
from omniq_executor.stores.base import Batch, Outcome, Store
from omniq_executor.stores.migration import migrate

Enter = Callable[..., Client]


def add(client: Client, *after: int, eta: int = 0, priority: int = 0, **options: object) -> int:
    """Add a task that comes after others."""
    (id,) = new_ids(1)
    given = Options(after=after, **options)  # type: ignore[arg-type]
    client.turn(adds=[Batch(id, 1, SQUARE, calls=[call(1)], eta=eta, priority=priority, options=given)])
    return id


def is_waiting(store: Store, id: int) -> bool:
    task = store.get(id)
    assert (task.eta == NEVER) == (task.options is not None and task.options.due is not None)
    return task.eta == NEVER


def test_a_task_waits_until_all_that_it_comes_after_are_finished(client: Client) -> None:
    first, second = client.add(1, 2, claimed=True)
    id = add(client, first, second)
    assert client.claim() == []
    assert client.end(Event.COMPLETE, first, result="1") == set()
    assert client.claim() == []
    client.end(Event.COMPLETE, second, result="4")
    (claimed,) = client.turn(claim=1).claimed
    assert (claimed.id, claimed.options, claimed.eta) == (id, Options(after=(first, second)), 0)


def test_a_task_that_waits_is_not_claimed_by_its_id_either(client: Client) -> None:
    (first,) = client.add(1, claimed=True)
    id = add(client, first)
    assert client.store.claim(client.owner, id, tick()) is None
    client.end(Event.COMPLETE, first, result="1")
    assert client.store.claim(client.owner, id, tick()) is not None


@pytest.mark.parametrize("event", [Event.COMPLETE, Event.FAIL])
def test_it_is_told_when_an_end_frees_others(client: Client, event: Event) -> None:
    first, second, other = client.add(1, 2, 3, claimed=True)
    add(client, first, second)
    assert not client.turn(outcomes=[Outcome(other, 1, event, "1")]).freed
    assert not client.turn(outcomes=[Outcome(first, 1, event, "1")]).freed
    assert client.turn(outcomes=[Outcome(second, 1, event, "1")]).freed


def test_results_in_a_block_free_others(client: Client) -> None:
    ids = client.add(1, 2, 3, claimed=True)
    id = add(client, *ids)
    client.complete_block(ids[0], [1, 4, 9])
    assert client.claim() == [id]


def test_what_is_freed_is_claimed_in_the_same_turn(client: Client) -> None:
    (first,) = client.add(1, claimed=True)
    id = add(client, first)
    turned = client.turn(outcomes=[Outcome(first, 1, Event.COMPLETE, "1")], claim=5)
    assert [one.id for one in turned.claimed] == [id]


@pytest.mark.parametrize("event", [Event.RETRY, Event.RELEASE, Event.CRASH])
def test_an_end_that_is_none_for_the_task_frees_nobody(client: Client, event: Event) -> None:
    (first,) = client.add(1, claimed=True)
    id = add(client, first)
    client.end(event, first)
    assert is_waiting(client.store, id)
    assert client.claim() == [first]


def test_an_end_that_is_refused_frees_nobody(client: Client, other: Client) -> None:
    (first,) = client.add(1, claimed=True)
    id = add(client, first)
    assert other.end(Event.COMPLETE, first, result="1") == {first}
    assert client.end(Event.COMPLETE, first, attempt=2, result="1") == {first}
    assert is_waiting(client.store, id)


def test_a_refused_end_leaves_what_the_task_comes_after(client: Client, other: Client) -> None:
    (first,) = client.add(1, claimed=True)
    id = add(client, first)
    client.end(Event.COMPLETE, first, result="1")
    assert client.claim() == [id]
    assert other.end(Event.COMPLETE, id, result="1") == {id}
    assert client.store.purge(tick()) == 0


def test_a_cancelled_task_frees_what_waits_for_it(client: Client) -> None:
    (first,) = client.add(1)
    id = add(client, first)
    assert client.store.cancel([first], tick()) == [first]
    assert client.claim() == [id]


def test_a_task_waits_only_for_what_is_not_finished_when_it_is_added(client: Client) -> None:
    done, failed, cancelled = client.add(1, 2, 3)
    client.store.cancel([cancelled], tick())
    client.claim()
    client.end(Event.COMPLETE, done, result="1")
    client.end(Event.FAIL, failed)
    id = add(client, done, failed, cancelled, eta=7)
    task = client.store.get(id)
    assert (task.eta, task.options) == (7, Options(after=(done, failed, cancelled)))
    assert client.claim() == [id]


def test_a_task_that_comes_after_one_which_is_not_there_is_not_added(client: Client) -> None:
    (first,) = client.add(1)
    missing, id = new_ids(2)
    batch = Batch(id, 1, SQUARE, calls=[call(1)], options=Options(after=(first, missing)))
    with pytest.raises(TaskNotFound, match=r"another store"):
        client.turn(adds=[batch], claim=1)
    assert client.store.ids() == [first]
    assert client.claim() == [first]


def test_its_own_due_time_and_priority_hold_once_it_waits_no_more(client: Client) -> None:
    (first,) = client.add(1, claimed=True)
    now = tick()
    later, urgent, usual = add(client, first, eta=now + 500), add(client, first, priority=1), add(client, first)
    turned = client.turn(now, claim=5)
    assert (turned.claimed, turned.due) == ([], None)
    client.end(Event.COMPLETE, first, result="1")
    assert client.store.get(later).eta == now + 500
    turned = client.turn(now, claim=5)
    assert ([one.id for one in turned.claimed], turned.due) == ([urgent, usual], now + 500)
    assert [one.id for one in client.turn(now + 500, claim=5).claimed] == [later]


def test_a_chain_is_freed_one_by_one(client: Client) -> None:
    (first,) = client.add(1, claimed=True)
    second = add(client, first)
    third = add(client, second)
    client.end(Event.COMPLETE, first, result="1")
    assert client.claim() == [second]
    client.end(Event.FAIL, second)
    assert client.claim() == [third]


def test_a_task_in_another_queue_is_freed_by_whoever_ends_what_it_waits_for(client: Client, enter: Enter) -> None:
    elsewhere = enter("elsewhere")
    (first,) = client.add(1, claimed=True)
    id = add(elsewhere, first)
    assert elsewhere.claim() == []
    assert client.turn(outcomes=[Outcome(first, 1, Event.COMPLETE, "1")]).freed
    assert elsewhere.claim() == [id]


def test_another_handle_frees_what_it_has_not_seen_being_added(client: Client, other: Client) -> None:
    (first,) = client.add(1)
    assert other.claim() == [first]
    add(client, first)
    (also,) = other.add(2, claimed=True)
    other.end(Event.COMPLETE, also, result="1")  # so that it knows who waits
    second = add(client, first)
    assert other.turn(outcomes=[Outcome(first, 1, Event.COMPLETE, "1")]).freed
    assert not is_waiting(other.store, second)
    assert client.claim() == [second - 2, second]


def test_a_task_that_waits_can_be_cancelled_and_waits_again_when_it_is_retried(client: Client) -> None:
    (first,) = client.add(1, claimed=True)
    id = add(client, first, eta=7)
    assert client.store.cancel([id], tick()) == [id]
    task = client.store.get(id)
    assert (task.status, task.eta, task.options) == (Status.CANCELLED, 7, Options(after=(first,)))
    assert client.store.retry([id], tick()) == [id]
    assert is_waiting(client.store, id)
    client.end(Event.COMPLETE, first, result="1")
    assert client.claim() == [id]


def test_a_task_that_is_revived_with_what_it_comes_after_waits_for_it(client: Client) -> None:
    (first,) = client.add(1, claimed=True)
    id = add(client, first)
    client.end(Event.FAIL, first)
    client.claim()
    client.end(Event.FAIL, id)
    assert client.store.retry([id], tick()) == [id]
    assert not is_waiting(client.store, id)
    client.store.cancel([id], tick())
    assert sorted(client.store.retry([id, first], tick())) == [first, id]
    assert is_waiting(client.store, id)
    assert client.claim() == [first]


def test_a_task_that_is_revived_is_waited_for_by_those_that_still_wait(client: Client) -> None:
    first, second = client.add(1, 2, claimed=True)
    id = add(client, first, second)
    client.end(Event.FAIL, first)
    client.store.retry([first], tick())
    client.end(Event.COMPLETE, second, result="1")
    assert is_waiting(client.store, id)
    assert client.claim() == [first]
    client.end(Event.COMPLETE, first, attempt=2, result="1")
    assert client.claim() == [id]


@pytest.mark.parametrize("event", [Event.RELEASE, Event.CRASH, Event.RETRY])
def test_a_claimed_task_that_goes_back_waits_if_what_it_comes_after_was_retried(client: Client, event: Event) -> None:
    (first,) = client.add(1, claimed=True)
    id = add(client, first)
    client.end(Event.FAIL, first)
    assert client.claim() == [id]
    client.store.retry([first], tick())
    client.end(event, id)
    assert is_waiting(client.store, id)


def test_a_task_whose_owner_died_is_as_it_was(client: Client, other: Client) -> None:
    (first,) = client.add(1, claimed=True)
    waiting, claimed = add(client, first), add(client, *client.add(2, claimed=True))
    client.end(Event.COMPLETE, claimed - 1, result="1")
    assert client.claim() == [claimed]
    client.die()
    other.store.reap(tick())
    assert other.claim(tier=1) == [first, claimed]
    assert is_waiting(other.store, waiting)


def test_the_next_occurrence_comes_after_the_same(client: Client) -> None:
    (first,) = client.add(1, claimed=True)
    id = add(client, first, interval=60_000_000)
    client.end(Event.COMPLETE, first, result="1")
    client.claim()
    (next_id,) = new_ids(1)
    now = tick()
    client.turn(now, outcomes=[Outcome(id, 1, Event.COMPLETE, "1", successor=Successor(next_id, now + 100))])
    task = client.store.get(next_id)
    assert (task.eta, task.options) == (now + 100, Options(after=(first,), interval=60_000_000, series=id))
    assert client.store.purge(tick()) == 1
    assert client.store.ids() == [first, next_id]


def test_a_series_that_waits_is_cancelled(client: Client) -> None:
    (first,) = client.add(1, claimed=True)
    id = add(client, first, interval=60_000_000)
    assert client.store.cancel([id], tick()) == [id]
    assert client.statuses([id]) == [Status.CANCELLED]


def test_what_waits_is_found_as_pending(client: Client) -> None:
    (first,) = client.add(1)
    id = add(client, first)
    assert [task.id for task in client.store.find(Status.PENDING)] == [first, id]
    assert client.store.counts() == {"work": {Status.PENDING: 2}}


def test_purge_spares_what_a_task_that_is_not_finished_comes_after(client: Client) -> None:
    done, lone, running = client.add(1, 2, 3, claimed=True)
    for id in (done, lone):
        client.end(Event.COMPLETE, id, result="1")
    waits = add(client, done, running)
    assert client.store.purge(tick()) == 1
    assert client.store.ids() == [done, running, waits]
    client.end(Event.COMPLETE, running, result="1")
    assert client.claim() == [waits]
    assert client.store.purge(tick()) == 0
    client.end(Event.COMPLETE, waits, result="1")
    assert client.store.purge(tick()) == 3


def test_what_comes_after_a_task_that_was_purged_is_due_when_it_is_retried(client: Client) -> None:
    (first,) = client.add(1, claimed=True)
    id = add(client, first)
    client.store.cancel([id], tick())
    client.end(Event.COMPLETE, first, result="1")
    assert client.store.purge(tick(), [Status.COMPLETED]) == 1
    client.store.retry([id], tick())
    assert client.claim() == [id]


def test_it_waits_after_everything_was_closed_and_killed(
    client: Client, address: Path, backend: Backend, start: Callable[..., "subprocess.Popen[str]"]
) -> None:
    """A process adds what waits, and dies; the next one works it off."""
    process = start(
        "client = Client(backend, address)\n"
        "(first,) = client.add(1, claimed=True)\n"
        "from omniq_executor.model.task import Options\n"
        "client.turn(adds=[Batch(first + 1, 1, SQUARE, calls=[call(1)], options=Options(after=(first,)))])\n"
        "ready()\nimport time; time.sleep(60)"
    )
    process.kill()
    process.wait()
    client.store.reap(tick())
    (first,) = client.claim(tier=1)
    assert is_waiting(client.store, first + 1)
    client.reopen()
    client.end(Event.COMPLETE, first, attempt=2, result="1")
    client.reopen()
    assert client.claim() == [first + 1]


def test_a_backup_waits_for_the_same(client: Client, backend: Backend, tmp_path: Path) -> None:
    (first,) = client.add(1, claimed=True)
    id = add(client, first, eta=7)
    copy = tmp_path / f"copy-{backend.filename}"
    client.store.backup(copy)
    with contextlib.closing(Client(backend, copy)) as its:
        assert its.store.get(id) == client.store.get(id)
        assert its.claim() == [first]
        its.end(Event.COMPLETE, first, attempt=2, result="1")
        assert its.claim() == [id]


@pytest.mark.parametrize("to", sorted(BACKENDS))
def test_a_migrated_store_waits_for_the_same(backend: Backend, client: Client, tmp_path: Path, to: str) -> None:
    first, second = client.add(1, 2)
    waits, after_it = add(client, first, second, eta=7), add(client, first)
    client.claim(1)
    client.end(Event.COMPLETE, first, result="1")
    done = client.add(3)[0]
    client.stop()
    there = tmp_path / BACKENDS[to].filename
    from omniq_executor import open_store

    with contextlib.closing(open_store(there, importing=True)) as filled:
        migrate(client.store, filled, lambda count: None)
        assert [filled.get(id) for id in filled.ids()] == [client.store.get(id) for id in client.store.ids()]
    with contextlib.closing(Client(BACKENDS[to], there)) as its:
        assert its.claim() == [second, after_it, done]
        its.end(Event.FAIL, second)
        assert its.claim() == [waits]
        assert its.store.check() == []


def test_a_store_without_fault_has_no_problems(client: Client) -> None:
    (first,) = client.add(1, claimed=True)
    add(client, first)
    assert client.store.check() == []
    client.end(Event.COMPLETE, first, result="1")
    assert client.store.check() == []


def test_many_wait_for_one_and_one_for_many(client: Client) -> None:
    ids = client.add(*range(200), claimed=True)
    last = add(client, *ids)
    each = [add(client, ids[0]) for _ in range(50)]
    assert client.turn(outcomes=[Outcome(ids[0], 1, Event.COMPLETE, "1")]).freed
    assert client.claim(100) == each
    for id in ids[:0:-1]:
        assert client.claim() == []
        client.turn(outcomes=[Outcome(id, 1, Event.FAIL, error=ERROR)])
    assert client.claim() == [last]


def test_dependents_are_what_waits_for_a_task_at_any_distance(client: Client) -> None:
    first, other = client.add(1, 2, claimed=True)
    near = add(client, first)
    far, both = add(client, near), add(client, other, near)
    assert client.store.dependents([first]) == {near, far, both}
    assert client.store.dependents([other, near]) == {far, both}
    assert client.store.dependents([far]) == client.store.dependents([]) == client.store.dependents([999]) == set()
    client.store.cancel([far], tick())
    assert client.store.dependents([first]) == {near, both}
