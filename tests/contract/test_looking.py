"""What can be asked of a store, and what a closed one says."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from backends import CUBE, ERROR, SQUARE, Backend, Client, call, new_ids, tick

from omniq_executor import StoreError, TaskNotFound
from omniq_executor.model.task import Event, FailedCall, Status, format_id
from omniq_executor.stores.base import Batch, Run, Store, TaskState, Turn

Enter = Callable[..., Client]


def test_a_task_is_found_by_number_and_by_shown_id(client: Client) -> None:
    first, second = client.add(1, 2)
    assert client.store.get(second).id == second
    assert client.store.get(format_id(first)) == client.store.get(first)


@pytest.mark.parametrize("id", [0, 1, 2**63 - 1, format_id(1)])
def test_an_unknown_task_is_named(store: Store, id: int | str) -> None:
    shown = id if isinstance(id, str) else format_id(id)
    with pytest.raises(TaskNotFound, match=shown):
        store.get(id)


@pytest.mark.parametrize("id", ["", "task-", "task-1", "1", "../task-0000000000001", "TASK-0000000000001"])
def test_what_is_no_id_is_refused(store: Store, id: str) -> None:
    with pytest.raises(ValueError, match="is not a task id"):
        store.get(id)


@pytest.mark.parametrize("id", [-1, 2**63, -(2**70)])
def test_a_number_that_no_id_has_finds_no_task(store: Store, id: int) -> None:
    with pytest.raises((TaskNotFound, ValueError)):
        store.get(id)


def test_an_unknown_function_raises_store_error(store: Store) -> None:
    with pytest.raises(StoreError):
        store.function(b"?" * 16)


def test_states_tells_of_the_known_ones(client: Client, other: Client) -> None:
    done, failed, pending = client.add(1, 2, 3)
    assert other.claim(2) == [done, failed]
    other.end(Event.COMPLETE, done, result="[1]")
    other.end(Event.FAIL, failed)
    assert sorted(client.store.states([pending, *new_ids(1), failed, done])) == [
        TaskState(done, Status.COMPLETED, other.owner, "[1]", None),
        TaskState(failed, Status.FAILED, other.owner, None, client.store.get(failed).error),
        TaskState(pending, Status.PENDING, None, None, None),
    ]
    assert client.store.states([]) == []
    assert len(client.store.states(id for id in range(done, done + 3))) == 3


def test_a_task_is_found_by_its_key_in_its_queue(client: Client, enter: Enter) -> None:
    (id,) = client.add(1, key="monday")
    assert client.store.by_key("work", "monday") == TaskState(id, Status.PENDING, None, None, None)
    assert client.store.by_key("work", "tuesday") is None
    assert client.store.by_key("elsewhere", "monday") is None


def test_counts_per_queue_and_state_without_empty_ones(client: Client, enter: Enter) -> None:
    assert client.store.counts() == {}
    client.add(1, 2, 3, 4)
    client.end(Event.COMPLETE, *client.claim(2)[:1])
    enter("elsewhere").add(5)
    assert client.store.counts() == {
        "work": {Status.PENDING: 2, Status.RUNNING: 1, Status.COMPLETED: 1},
        "elsewhere": {Status.PENDING: 1},
    }


def test_find_gives_what_matches_all_filters_oldest_first(client: Client, enter: Enter) -> None:
    ids = client.add(1, 2, 3, 4)
    (strange,) = enter("elsewhere").add(5)
    client.claim(2)

    def found(**filters: Any) -> list[int]:
        return [task.id for task in client.store.find(**filters)]

    assert found() == [*ids, strange]
    assert found(status=Status.PENDING) == [*ids[2:], strange]
    assert found(status=Status.PENDING, queue="work") == ids[2:]
    assert found(queue="nowhere") == []
    assert found(limit=2) == [ids[3], strange]
    assert found(queue="work", limit=3) == ids[1:]
    assert found(limit=0) == []


def test_find_by_a_tag_that_no_task_has_finds_nothing(client: Client) -> None:
    client.add(1)
    assert client.store.find(tags=["nightly"]) == []


def test_find_by_a_function_goes_by_its_whole_path(client: Client, enter: Enter) -> None:
    (square,) = client.add(1)
    (cube,) = new_ids(1)
    client.turn(adds=[Batch(cube, 1, CUBE, text="[[2]]")])
    (other,) = enter("elsewhere").add(3)

    def found(**filters: Any) -> list[int]:
        return [task.id for task in client.store.find(**filters)]

    assert found(function=SQUARE.path) == [square, other]
    assert found(function=CUBE.path) == [cube]
    assert found(function=SQUARE.path, queue="elsewhere", status=Status.PENDING) == [other]
    assert found(function=SQUARE.path, limit=1) == [other]
    assert found(function=SQUARE.path.rpartition(".")[2]) == []


def test_find_by_a_name_goes_by_the_end_of_the_path(client: Client) -> None:
    square, *starred = new_ids(3)
    odd = [SQUARE._replace(digest=bytes([n]) * 16, path=f"numbers.{name}") for n, name in enumerate(("f[a]*?", "fa"))]
    client.turn(
        adds=[
            Batch(id, 1, function, text="[[2]]")
            for id, function in zip((square, *starred), (SQUARE, *odd), strict=True)
        ]
    )

    def found(name: str) -> list[int]:
        return [task.id for task in client.store.find(name=name)]

    assert found("square") == found("numbers.square") == [square]
    assert found("quare") == found("Square") == found("*") == found("numbers") == []
    assert (found("f[a]*?"), found("fa")) == ([starred[0]], [starred[1]])


def test_find_by_a_run_and_by_what_has_happened_since(client: Client, enter: Enter) -> None:
    first, second, third = client.add(1, 2, 3)
    (other,) = enter().add(4)
    before_claim = tick()
    assert client.claim(1) == [first]
    before_end = tick()
    client.end(Event.COMPLETE, first, result="1")
    client.claim(1)

    def found(**filters: Any) -> list[int]:
        return [task.id for task in client.store.find(**filters)]

    assert found(run=client.run.id) == [first, second, third]
    assert found(run=client.run.id + 1) == [other]
    assert found(since=before_claim) == found(since=before_end) == [first, second]
    assert found(since=before_end, status=Status.RUNNING) == [second]
    assert found(since=tick()) == []
    assert found(since=0) == [first, second, third, other]


def test_failures_are_what_is_failed_without_the_pickle_oldest_first(client: Client, enter: Enter) -> None:
    assert list(client.store.failures()) == []
    ids = client.add(*range(600))
    strange = enter("elsewhere")
    (strange_id,) = strange.add(5)
    client.claim(600)
    strange.claim(1)
    client.end(Event.COMPLETE, ids[1], result="1")
    client.end(Event.FAIL, *ids[:1], *ids[2:])
    strange.end(Event.FAIL, strange_id)
    failed = [ids[0], *ids[2:], strange_id]
    found = list(client.store.failures())
    assert [call.id for call in found] == failed
    task = client.store.get(ids[0])
    assert found[0] == FailedCall(
        ids[0], client.run.id, "work", SQUARE.path, task.finished_at or 0, ERROR._replace(pickle=None)
    )
    assert [call.id for call in client.store.failures("elsewhere")] == [strange_id]
    assert client.store.retry([ids[0]], tick()) == [ids[0]]
    assert next(client.store.failures()).id == ids[2]


def test_failures_can_change_while_they_are_read(client: Client) -> None:
    ids = client.add(*range(600))
    client.claim(600)
    client.end(Event.FAIL, *ids)
    found = client.store.failures()
    assert next(found).id == ids[0]
    client.store.retry(ids[300:], tick())
    client.store.remove(ids[290:300])
    assert {call.id for call in found} >= {*ids[1:290]}


def test_unfinished_tasks_are_counted_by_run(client: Client, enter: Enter) -> None:
    assert client.store.unfinished() == {}
    ids = client.add(1, 2, 3)
    other = enter("elsewhere")
    other.add(4)
    client.claim(2)
    client.end(Event.COMPLETE, ids[0], result="1")
    assert client.store.unfinished() == {client.run.id: 2, other.run.id: 1}
    client.store.cancel([ids[2]], tick())
    assert client.store.unfinished() == {client.run.id: 1, other.run.id: 1}


# --- Closing ---

RUN = Run(1, "work")
USES: dict[str, Callable[[Store], object]] = {
    "enter": lambda store: store.enter("work"),
    "leave": lambda store: store.leave(1),
    "owners": lambda store: store.owners(),
    "peers": lambda store: store.peers(1),
    "reap": lambda store: store.reap(tick()),
    "notify_path": lambda store: store.notify_path(1),
    "slots_path": lambda store: store.slots_path(1),
    "notify": lambda store: store.notify(1),
    "read_changes": lambda store: store.read_changes(1),
    "begin_session": lambda store: store.begin_session(tick()),
    "end_session": lambda store: store.end_session(1, True, tick()),
    "begin_run": lambda store: store.begin_run("work", 1, "crashed", tick()),
    "end_run": lambda store: store.end_run(RUN, True, tick()),
    "offer_again": lambda store: store.offer_again(RUN),
    "offer_more": lambda store: store.offer_more(RUN, [1]),
    "resumable": lambda store: store.resumable(RUN, "path", ["[1]"]),
    "taken": lambda store: store.taken(),
    "calls": lambda store: store.calls([1]),
    "take_over": lambda store: store.take_over(RUN, SQUARE, [call(1)], tick()),
    "ahead": lambda store: store.ahead(RUN, SQUARE, 0, 1),
    "note_given": lambda store: store.note_given(RUN, {1: (SQUARE.digest, "[1]")}),
    "adopt": lambda store: store.adopt(RUN, None, tick()),
    "cancel_run": lambda store: store.cancel_run(1, tick()),
    "add_claimed": lambda store: store.add_claimed(1, RUN, 1, SQUARE, call(1), tick()),
    "turn": lambda store: store.turn(1, RUN, Turn(tick())),
    "claim": lambda store: store.claim(1, 1, tick()),
    "cancel": lambda store: store.cancel([1], tick()),
    "retry": lambda store: store.retry([1], tick()),
    "retry_for": lambda store: store.retry_for(RUN, [1], tick()),
    "purge": lambda store: store.purge(tick()),
    "remove": lambda store: store.remove([1]),
    "results_of": lambda store: store.results_of("square"),
    "expire": lambda store: list(store.expire(tick())),
    "usage": lambda store: store.usage(),
    "compact": lambda store: store.compact(),
    "backup": lambda store: store.backup(Path(store.address).with_name("copy.db")),
    "check": lambda store: store.check(),
    "references": lambda store: list(store.references()),
    "ids": lambda store: store.ids(),
    "stored": lambda store: store.stored([1]),
    "runs": lambda store: store.runs(),
    "begin_import": lambda store: store.begin_import("/another"),
    "put": lambda store: store.put(),
    "end_import": lambda store: store.end_import(),
    "get": lambda store: store.get(1),
    "function": lambda store: store.function(SQUARE.digest),
    "states": lambda store: store.states([1]),
    "dependents": lambda store: store.dependents([1]),
    "by_key": lambda store: store.by_key("work", "monday"),
    "counts": lambda store: store.counts(),
    "find": lambda store: store.find(),
    "failures": lambda store: list(store.failures()),
    "unfinished": lambda store: store.unfinished(),
}


def test_every_verb_of_a_store_is_among_the_uses() -> None:
    verbs = {name for name, _ in inspect.getmembers(Store, inspect.isfunction) if not name.startswith("_")}
    assert verbs == {*USES, "close", "reopen", "glance"}  # which opens it for itself


@pytest.mark.parametrize("use", USES)
def test_a_closed_store_refuses_every_use_but_another_close(store: Store, use: str) -> None:
    store.close()
    with pytest.raises(StoreError, match="closed"):
        USES[use](store)
    store.close()


def test_what_is_closed_is_on_disk(backend: Backend, client: Client) -> None:
    ids = client.add(1, 2)
    client.claim(1)
    client.end(Event.COMPLETE, ids[0], result="1")
    before = client.store.find()
    client.store.leave(client.owner)
    client.close()
    again = backend.open(client.store.address, create=False)  # type: ignore[arg-type]
    assert again.find() == before
    again.close()
