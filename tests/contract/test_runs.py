"""What a run continues, and which tasks it takes over."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from backends import BACKENDS, CUBE, ERROR, SQUARE, Client, call, new_ids, tick

from omniq_executor import StoreError, values
from omniq_executor.model import codec
from omniq_executor.model.task import Call, Event, Function, Options, Status
from omniq_executor.stores.base import ADDS, Batch, Taken, TaskState

Enter = Callable[..., Client]


def take_over(client: Client, *values: Any, function: Function = SQUARE) -> list[int | None]:
    """The ids that calls with these values are given."""
    found = client.store.take_over(client.run, function, [call(value) for value in values], tick())
    return [it and it.id for it in found]


def crash(client: Client, values: Sequence[Any] = ()) -> list[int]:
    """Die with these calls accepted."""
    ids = client.add(*values) if values else []
    client.die()
    return ids


# --- What is continued ---


def test_the_first_run_continues_nothing(client: Client) -> None:
    assert (client.run.queue, client.run.continues, client.run.done, client.run.total) == ("work", (), 0, 0)


def test_a_run_whose_owner_died_is_continued(client: Client, enter: Enter) -> None:
    ids = client.add(*range(4), claimed=True)
    client.end(Event.COMPLETE, *ids[:2], result="1")
    crash(client)
    run = enter().run
    assert (run.continues, run.done, run.total) == ((client.run.id,), 2, 4)
    assert run.id > client.run.id


def test_a_run_whose_dead_owner_is_still_registered_is_continued(client: Client) -> None:
    dead = Client(client.backend, client.store.address)  # type: ignore[arg-type]
    ids = crash(dead, [1])
    dead.close()
    run = client.store.begin_run("work", client.owner, "crashed", tick())
    assert (run.continues, run.total) == ((dead.run.id,), len(ids))


def test_a_run_that_ended_unclean_is_continued(client: Client, enter: Enter) -> None:
    client.add(1)
    client.stop(clean=False)
    assert enter().run.continues == (client.run.id,)


def test_a_run_that_ended_clean_is_not_continued(client: Client, enter: Enter) -> None:
    client.add(1)
    client.stop()
    assert enter().run.continues == ()


def test_a_run_whose_owner_lives_is_not_continued(client: Client, enter: Enter) -> None:
    assert enter().run.continues == ()
    client.store.end_run(client.run, False, tick())
    assert enter().run.continues == ()


def test_a_run_of_another_queue_is_not_continued(client: Client, enter: Enter) -> None:
    crash(client, [1])
    assert enter("elsewhere", "crashed").run.continues == ()
    assert enter("elsewhere", "always").run.continues == ()


def test_resume_never_continues_nothing_and_leaves_it_to_the_next_unless_it_ends_clean(
    client: Client, enter: Enter
) -> None:
    crash(client, [1])
    second = enter(resume="never")
    assert (second.run.continues, second.run.total) == ((), 0)
    second.stop(clean=False)
    third = enter(resume="never")
    assert third.run.continues == ()
    third.stop()
    assert enter().run.continues == ()


def test_resume_always_continues_the_last_run_however_it_ended(client: Client, enter: Enter) -> None:
    client.add(1)
    client.stop()
    second = enter()
    ids = second.add(2)
    second.stop()
    third = enter(resume="always")
    assert (third.run.continues, third.run.total) == ((second.run.id,), 1)
    assert take_over(third, 1, 2) == [None, *ids]


def test_resume_always_continues_what_the_last_run_continued(client: Client, enter: Enter) -> None:
    ids = crash(client, [1])
    second = enter()
    assert take_over(second, 1) == ids
    second.stop()
    third = enter(resume="always")
    assert take_over(third, 1) == ids


def test_all_runs_of_a_chain_that_crashed_are_continued(client: Client, enter: Enter) -> None:
    ids = client.add(1, 2, claimed=True)
    client.end(Event.COMPLETE, ids[0], result="1")
    crash(client)
    second = enter()
    assert take_over(second, 1) == ids[:1]
    ids += crash(second, [3])
    third = enter()
    assert (third.run.continues, third.run.done, third.run.total) == ((client.run.id, second.run.id), 1, 3)
    assert take_over(third, 1, 2, 3, 4) == [*ids, None]


def test_a_clean_run_settles_the_runs_from_which_it_took_calls(client: Client, enter: Enter) -> None:
    ids = crash(client, [1, 2])
    second = enter()
    assert take_over(second, 1) == ids[:1]
    second.stop()
    third = enter()
    assert (third.run.continues, third.run.total) == ((), 0)


def test_a_clean_run_settles_a_whole_chain(client: Client, enter: Enter) -> None:
    ids = crash(client, [1])
    second = enter()
    assert take_over(second, 1) == ids
    crash(second)
    third = enter()
    assert take_over(third, 1) == ids
    third.stop()
    fourth = enter()
    assert fourth.run.total == 0
    assert take_over(fourth, 1) == [None]


def test_a_clean_run_that_took_nothing_settles_what_it_continued(client: Client, enter: Enter) -> None:
    crash(client, [1])
    second = enter()
    assert take_over(second, 9) == [None]
    second.stop()
    third = enter()
    assert (third.run.continues, take_over(third, 1)) == ((), [None])


def test_an_unclean_run_settles_nothing(client: Client, enter: Enter) -> None:
    ids = crash(client, [1])
    second = enter()
    assert take_over(second, 1) == ids
    second.stop(clean=False)
    assert take_over(enter(), 1) == ids


# --- What is taken over ---


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_damaged_file_of_a_run_stops_nothing(tmp_path: Path, content: str) -> None:
    backend = BACKENDS["file"]
    with contextlib.closing(Client(backend, backend.address(tmp_path))) as first:
        first.add(1)
        first.stop()
        (tmp_path / "runs" / backend.filename / "runs" / f"{first.run.id}.json").write_text(content)
        with contextlib.closing(Client(backend, backend.address(tmp_path))) as second:
            assert (second.run.id, second.run.continues) == (first.run.id + 1, ())


def test_a_damaged_file_of_a_function_is_written_again_by_who_submits_it(tmp_path: Path) -> None:
    backend = BACKENDS["file"]
    with contextlib.closing(Client(backend, backend.address(tmp_path))) as client:
        client.add(1)
        (tmp_path / "runs" / backend.filename / "functions" / f"{SQUARE.digest.hex()}.json").write_text("")
        client.reopen()
        with pytest.raises(StoreError, match="holds no function"):
            client.store.function(SQUARE.digest)
        client.add(2)
        client.reopen()
        assert client.store.function(SQUARE.digest) == SQUARE


def test_a_run_that_continues_nothing_takes_nothing_over(client: Client) -> None:
    client.add(1)
    assert take_over(client, 1, 2) == [None, None]


def test_a_run_that_continues_nothing_takes_nothing_from_what_an_earlier_run_of_its_handle_continued(
    client: Client, enter: Enter
) -> None:
    crash(client, [1])
    second = enter()
    second.store.end_run(second.run, True, tick())
    second.run = second.store.begin_run("work", second.owner, "never", tick())
    assert take_over(second, 1) == [None]


def test_the_nth_call_takes_over_the_nth_equal_call_and_none_twice(client: Client, enter: Enter) -> None:
    ids = crash(client, [1, 2, 1, 1])
    second = enter()
    assert take_over(second, 1, 3, 1) == [ids[0], None, ids[2]]
    assert take_over(second, 2, 1, 1, 2) == [ids[1], ids[3], None, None]


def test_equal_calls_are_given_in_order_of_id_whichever_run_was_first(client: Client, enter: Enter) -> None:
    later, sooner = new_ids(2)[::-1]
    for id in (later, sooner):
        client.turn(adds=[Batch(id, 1, SQUARE, calls=[call(1)])])
    crash(client)
    assert take_over(enter(), 1, 1) == [sooner, later]


def ahead(client: Client, after: int = 0, most: int = 100, function: Function = SQUARE) -> list[tuple[Any, int]]:
    """The likenesses and ids of what is read ahead."""
    return [(likeness, state.id) for likeness, state in client.store.ahead(client.run, function, after, most)]


def test_what_is_read_ahead_is_finished_and_what_the_next_such_call_is_given(client: Client, enter: Enter) -> None:
    ids = client.add(1, 2, 1, 3, 4, 2, claimed=True)
    cubes = client.add(1, function=CUBE, claimed=True)
    client.end(Event.COMPLETE, ids[0], ids[2], *ids[4:], *cubes, result="7")
    crash(client)
    second = enter()
    assert ahead(second) == [(call(1).likeness, ids[0]), (call(4).likeness, ids[4])]  # the first 2 is still to be run
    assert ahead(second, ids[0]) == [(call(4).likeness, ids[4])]
    assert ahead(second, ids[4]) == []
    assert ahead(second, most=1) == [(call(1).likeness, ids[0])]
    assert ahead(second, function=CUBE) == [(call(1).likeness, *cubes)]
    assert ahead(second, function=SQUARE._replace(digest=b"squared".ljust(16))) == []
    assert take_over(second, 1, 2) == [ids[0], ids[1]]
    assert ahead(second) == [(call(1).likeness, ids[2]), (call(4).likeness, ids[4]), (call(2).likeness, ids[5])]


def test_what_was_read_ahead_and_given_is_taken_over(client: Client, enter: Enter) -> None:
    ids = client.add(1, 2, 1, claimed=True)
    client.end(Event.COMPLETE, *ids, result="7")
    crash(client)
    second = enter()
    second.store.note_given(
        second.run, {id: (SQUARE.digest, call(value).likeness) for id, value in zip(ids, [1, 2], strict=False)}
    )
    assert second.store.taken() == [Taken(second.run.id, id, Status.COMPLETED, client.run.id) for id in ids[:2]]
    assert take_over(second, 1, 2, 1) == [ids[2], None, None]
    assert ahead(second) == []
    crash(second)
    third = enter()
    assert take_over(third, 1, 2, 1) == [ids[0], ids[1], ids[2]]


def test_only_small_results_without_files_are_read_ahead(client: Client, enter: Enter) -> None:
    client.store.values.prepare()
    with values.writing(client.store.values):
        in_a_file = codec.encode(bytearray(1 << 20))
    assert isinstance(in_a_file, bytes)
    assert values.is_reference(in_a_file)
    ids = client.add(1, 2, 3, claimed=True)
    for id, result in zip(ids, [f'"{"x" * 5000}"', in_a_file, "7"], strict=True):
        client.end(Event.COMPLETE, id, result=result)
    crash(client)
    assert ahead(enter()) == [(call(3).likeness, ids[2])]


def test_what_another_run_has_finished_in_another_context_is_not_read_ahead(client: Client, enter: Enter) -> None:
    first = enter(context=HERE)
    ids = crash(first, [1, 2])
    second, other = enter(context=HERE), enter(context=THERE)
    other.store.adopt(other.run, ids[:1], tick(), any_context=True)
    second.store.adopt(second.run, ids[1:], tick())
    for each in (other, second):
        each.end(Event.COMPLETE, *each.claim(of_run=True), result="7")
    assert ahead(second) == [(call(2).likeness, ids[1])]


def test_what_runs_beside_have_taken_over_is_not_given(client: Client, enter: Enter) -> None:
    ids = client.add(1, 1, 1, 2, claimed=True)
    client.end(Event.COMPLETE, *ids, result="7")
    crash(client)
    first, second = enter(), enter()
    second.run = second.run._replace(beside=(first.run.id,))
    assert take_over(first, 1) == ids[:1]
    assert ahead(second) == [(call(2).likeness, ids[3])]  # of the others the first is not there for it
    found = second.store.resumable(second.run, SQUARE.path, [call(1).likeness])
    assert [it.id for it in (found or {})[call(1).likeness]] == ids[1:3]
    assert take_over(second, 1, 2) == [ids[1], ids[3]]
    assert take_over(first, 1) == ids[1:2]  # it was not told of the other
    first.run = first.run._replace(beside=(second.run.id,))
    assert take_over(first, 1, 1, 2) == [ids[2], None, None]
    assert take_over(second, 1) == [None]


def test_what_a_run_has_finished_since_it_was_offered_to_itself_can_be_offered_too(client: Client) -> None:
    first, *others = client.add(1, 1, 2, claimed=True)
    (cube,) = client.add(1, function=CUBE, claimed=True)
    client.end(Event.COMPLETE, others[0], result="7")
    client.run = client.store.offer_again(client.run)
    assert take_over(client, 2) == [None]
    client.end(Event.COMPLETE, first, others[1], cube, result="7")
    client.store.offer_more(client.run, [first, *others[1:], cube])
    assert ahead(client) == [(call(1).likeness, first), (call(2).likeness, others[1])]
    assert take_over(client, 1, 2, 1, 1) == [first, others[1], others[0], None]
    assert client.store.resumable(client.run, CUBE.path, [call(1).likeness]) is not None
    assert take_over(client, 1, function=CUBE) == [cube]


def test_what_a_run_has_not_finished_is_not_offered(client: Client) -> None:
    ids = client.add(1, claimed=True)
    client.run = client.store.offer_again(client.run)
    client.store.offer_more(client.run, ids)
    assert take_over(client, 1) == [None]


def test_another_function_or_another_digest_of_it_takes_nothing_over(client: Client, enter: Enter) -> None:
    ids, cubes = client.add(1), client.add(1, function=CUBE)
    crash(client)
    second = enter()
    changed = SQUARE._replace(digest=b"squared".ljust(16))
    assert take_over(second, 1, function=changed) == [None]
    assert take_over(second, 1, 1, function=CUBE) == [*cubes, None]
    assert take_over(second, 1) == ids


def test_calls_are_told_apart_by_their_arguments_names_and_types(client: Client, enter: Enter) -> None:
    calls = [call(1), call(1.0), call("1"), call([1]), call(True), call(x=1), call(1, x=1), call(1, x=2), call()]
    ids = new_ids(len(calls))
    client.turn(adds=[Batch(ids[0], len(ids), SQUARE, calls=calls)])
    crash(client)
    second = enter()
    found = second.store.take_over(second.run, SQUARE, calls[::-1], tick())
    assert [it and it.id for it in found] == list(ids[::-1])


def test_pickled_calls_are_told_apart_by_their_identity(client: Client, enter: Enter) -> None:
    ids = new_ids(2)
    calls = [Call(b"pickle", None, b"one"), Call(b"pickle", None, b"two")]
    client.turn(adds=[Batch(ids[0], 2, SQUARE, calls=calls)])
    crash(client)
    second = enter()
    again = [Call(b"another pickle of it", None, b"two"), Call(b"pickle", None, b"three")]
    found = second.store.take_over(second.run, SQUARE, again, tick())
    assert [it and it.id for it in found] == [ids[1], None]


def test_calls_that_were_added_as_one_text_are_taken_over_one_by_one(client: Client, enter: Enter) -> None:
    ids = new_ids(3)
    client.turn(adds=[Batch(ids[0], 3, SQUARE, text='[[1],["\\u0001é"],[1.50]]')])
    crash(client)
    assert take_over(enter(), "\x01é", 1) == [ids[1], ids[0]]


def test_where_a_task_that_is_taken_over_stands(client: Client, enter: Enter) -> None:
    done, failed, running, pending, cancelled = client.add(*range(5))
    client.store.cancel([cancelled], tick())
    assert client.claim(3) == [done, failed, running]
    client.end(Event.COMPLETE, done, result='"done"')
    client.end(Event.FAIL, failed)
    assert client.store.get(failed).error == ERROR
    crash(client)
    second = enter()
    assert (second.run.done, second.run.total) == (1, 4)
    found = second.store.take_over(second.run, SQUARE, [call(value) for value in range(5)], tick())
    assert found[:2] == [
        TaskState(done, Status.COMPLETED, client.owner, '"done"', None),
        TaskState(failed, Status.PENDING, client.owner, None, None, had_failed=True),
    ]
    assert [(it.id, it.status) for it in found[2:4] if it] == [(running, Status.PENDING), (pending, Status.PENDING)]
    assert found[4] is None
    assert second.store.get(failed).status is Status.PENDING
    assert {second.store.get(id).run for id in (failed, running, pending)} == {second.run.id}
    assert {second.store.get(id).run for id in (done, cancelled)} == {client.run.id}
    claimed = second.turn(claim=9).claimed + second.turn(claim=9, tier=1).claimed
    assert [(it.id, it.attempt) for it in claimed] == [(failed, 2), (pending, 1), (running, 2)]


@pytest.mark.parametrize("resume", ["crashed", "always"])
def test_what_is_taken_over_is_of_the_new_run_and_the_rest_stays_and_is_claimed_with_the_queue(
    client: Client, enter: Enter, resume: str
) -> None:
    ids = crash(client, [1, 2])
    second = enter(resume=resume)
    assert take_over(second, 2) == ids[1:]
    assert [task.run for task in second.store.find()] == [client.run.id, second.run.id]
    assert second.claim(of_run=True) == ids[1:]
    assert second.claim() == ids[:1]


def test_resume_failed_continues_the_last_run_only_if_a_task_of_it_failed(client: Client, enter: Enter) -> None:
    good, bad = client.add(1, 2, claimed=True)
    client.end(Event.COMPLETE, good, result="1")
    client.end(Event.FAIL, bad)
    client.stop()
    second = enter(resume="failed")
    assert (second.run.continues, second.run.done, second.run.total) == ((client.run.id,), 1, 2)
    assert take_over(second, 1, 2) == [good, bad]
    assert second.claim() == [bad]
    second.end(Event.COMPLETE, bad, attempt=second.store.get(bad).attempts, result="2")
    second.stop()
    assert enter("elsewhere", "failed").run.continues == ()
    third = enter(resume="failed")  # of the second one nothing has failed
    assert third.run.continues == ()
    third.stop(clean=False)
    assert enter(resume="failed").run.continues == (third.run.id,)  # as with "crashed"


# --- What others have adopted ---

HERE, THERE = "folder.init.2023", "folder.init.2024"  # contexts with initializers


@pytest.mark.parametrize(
    ("context", "is_begun", "is_given"),
    [(THERE, True, False), (THERE, False, True), (HERE, True, True)],
    ids=["begun in another context", "not begun", "begun in the same context"],
)
@pytest.mark.parametrize("is_finished", [False, True], ids=["running", "finished"])
def test_what_another_run_has_adopted_is_given_unless_it_was_begun_in_another_context(
    client: Client, enter: Enter, context: str, is_begun: bool, is_given: bool, is_finished: bool
) -> None:
    first = enter(context=HERE)
    ids = crash(first, [1])
    second, other = enter(context=HERE), enter(context=context)
    assert second.run.total == 1
    assert other.store.adopt(other.run, ids, tick(), any_context=True) == 1
    if is_begun:
        assert other.claim(of_run=True) == ids
        if is_finished:
            other.end(Event.COMPLETE, *ids, result="2024")
    assert take_over(second, 1) == (ids if is_given else [None])


def test_what_was_cancelled_meanwhile_is_not_given(client: Client, enter: Enter) -> None:
    ids = crash(client, [1])
    second = enter()
    second.store.cancel(ids, tick())
    assert take_over(second, 1) == [None]


@pytest.mark.parametrize("by_id", [False, True], ids=["of the queue", "by id"])
def test_tasks_are_adopted_by_runs_of_the_same_context_alone(client: Client, enter: Enter, by_id: bool) -> None:
    first = enter(context=HERE)
    ids = crash(first, [1, 2])
    which = ids if by_id else None
    for context in (THERE, "", "folder", *([] if by_id else ["elsewhere.init.2023"])):
        other = enter(context=context)
        assert (other.store.adopt(other.run, which, tick()), other.claim(of_run=True)) == (0, [])
    same = enter(context="elsewhere.init.2023" if by_id else HERE)
    assert (same.store.adopt(same.run, which, tick()), same.claim(of_run=True)) == (2, ids)


def test_what_was_submitted_anew_is_adopted_in_any_context_but_not_what_it_needs(client: Client, enter: Enter) -> None:
    first = enter(context=HERE)
    (needed,) = first.add(1)
    (id,) = new_ids(1)
    first.turn(adds=[Batch(id, 1, SQUARE, calls=[call(2)], options=Options(after=(needed,)))])
    first.die()
    other = enter(context=THERE)
    assert other.store.adopt(other.run, [id], tick(), any_context=True) == 1
    assert {task.id: task.run for task in other.store.find()} == {needed: first.run.id, id: other.run.id}


def test_calls_of_an_owner_that_only_adds_are_adopted_by_their_ids_alone(client: Client) -> None:
    adds = Client(client.backend, client.store.address, "work")  # type: ignore[arg-type]
    adds.store.leave(adds.owner)
    adds.owner = adds.store.enter(ADDS)
    adds.run = adds.store.begin_run("work", adds.owner, "never", tick())
    ids = adds.add(1, 2)
    assert client.store.adopt(client.run, None, tick()) == 0
    assert client.store.adopt(client.run, ids[:1], tick()) == 1
    assert client.claim(of_run=True) == ids[:1]
    adds.die()
    adds.close()


def test_who_claims_from_queues_is_given_no_call_that_needs_an_initializer(client: Client, enter: Enter) -> None:
    (warm,) = enter(context=HERE).add(1)
    (mine,) = enter(context="folder").add(1)
    turned = client.turn(claim=9, queues=())
    assert ([it.id for it in turned.claimed], turned.next_tier, turned.due) == ([mine], None, None)
    assert client.claim(queues=("work",)) == []
    assert client.statuses([warm]) == [Status.PENDING]
