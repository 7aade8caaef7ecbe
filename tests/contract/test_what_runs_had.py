"""What stores tell of runs afterwards: what each took over, which calls it had, and what functions are made of."""

import contextlib
from collections.abc import Callable
from pathlib import Path

from backends import BACKENDS, CUBE, SQUARE, Backend, Client, call, new_ids, tick

from omniq_executor.model.task import Call, Event, Function, Status
from omniq_executor.stores.base import Batch, PastCall, Resumable, Run, Taken
from omniq_executor.stores.migration import migrate

Enter = Callable[..., Client]

EDITED = Function(b"edited".ljust(16), SQUARE.path, b"pickle of another square", '{"": {"file": "a"}}')


def left_by_a_crash(client: Client) -> tuple[int, int, int]:
    """The calls 0, done, 1, failed, and 2, PENDING, of a run that died."""
    done, failed, pending = client.add(0, 1, 2)
    assert client.claim(2) == [done, failed]
    client.end(Event.COMPLETE, done, result="0")
    client.end(Event.FAIL, failed)
    client.die()
    return done, failed, pending


def take_over(client: Client, *values: int) -> list[int | None]:
    found = client.store.take_over(client.run, SQUARE, [call(value) for value in values], tick())
    return [it and it.id for it in found]


def test_what_a_run_takes_over_is_noted_as_it_was_before_that(client: Client, enter: Enter) -> None:
    done, failed, pending = left_by_a_crash(client)
    second = enter()
    assert second.store.taken() == []
    assert take_over(second, 2, 0, 9) == [pending, done, None]
    assert take_over(second, 1, 1) == [failed, None]
    first = client.run.id
    assert sorted(second.store.taken()) == [
        Taken(second.run.id, done, Status.COMPLETED, first),
        Taken(second.run.id, failed, Status.FAILED, first),
        Taken(second.run.id, pending, Status.PENDING, first),
    ]
    second.die()
    third = enter()
    assert take_over(third, 2) == [pending]
    assert third.store.taken()[-1] == Taken(third.run.id, pending, Status.PENDING, second.run.id)
    third.reopen()
    assert len(third.store.taken()) == 4


def test_what_could_still_be_taken_over_is_told_whatever_code_it_had_and_nothing_changes(
    client: Client, enter: Enter
) -> None:
    done, failed, pending = left_by_a_crash(client)
    second = enter()
    (edited,) = second.add(0, function=EDITED)
    (cube,) = second.add(0, function=CUBE)
    second.die()
    third = enter()
    zero, one, three = (call(value).likeness for value in (0, 1, 3))
    for _ in range(2):
        assert third.store.resumable(third.run, SQUARE.path, [zero, one, three]) == {
            zero: [
                Resumable(done, SQUARE.digest, Status.COMPLETED), Resumable(edited, EDITED.digest, Status.PENDING),
            ],
            one: [Resumable(failed, SQUARE.digest, Status.FAILED)],
        }  # fmt: skip
    assert third.store.resumable(third.run, "numbers.unheard_of", [zero]) is None
    assert third.store.taken() == []
    assert take_over(third, 0, 1, 2) == [done, failed, pending]
    assert third.store.resumable(third.run, SQUARE.path, [zero, one]) == {
        zero: [Resumable(edited, EDITED.digest, Status.PENDING)]
    }
    assert third.store.resumable(third.run, CUBE.path, [zero]) == {zero: [Resumable(cube, CUBE.digest, Status.PENDING)]}


def test_what_a_run_has_completed_and_taken_over_is_offered_to_itself_once_more(client: Client, enter: Enter) -> None:
    done, failed, pending = left_by_a_crash(client)
    second = enter()
    assert take_over(second, 0, 1, 2) == [done, failed, pending]
    own, other = second.add(5, 6, claimed=True)
    second.complete_block(own, [25])
    before = second.store.taken()
    second.run = second.store.offer_again(second.run)
    assert second.run == Run(second.run.id, second.run.queue, (client.run.id, second.run.id), done=2, total=2)
    assert take_over(second, 0, 1, 2, 5, 6) == [done, None, None, own, None]
    assert take_over(second, 0, 5) == [None, None]
    assert second.store.taken() == before
    second.run = second.store.offer_again(second.run)
    assert take_over(second, 0, 5) == [done, own]
    assert second.statuses([other]) == [Status.RUNNING]


def test_what_had_failed_and_is_run_again_for_an_equal_call_of_its_run_is_noted(client: Client) -> None:
    failed, pending, cancelled = client.add(0, 1, 2)
    assert client.claim(1) == [failed]
    client.end(Event.FAIL, failed)
    client.store.cancel([cancelled], tick())
    assert client.store.retry_for(client.run, [failed, pending, cancelled], tick()) == [failed, cancelled]
    stood = {failed: Status.FAILED, cancelled: Status.CANCELLED}
    assert client.store.taken() == [Taken(client.run.id, id, stood[id], client.run.id) for id in sorted(stood)]
    assert client.statuses([failed, pending, cancelled]) == [Status.PENDING] * 3


def test_what_is_pickled_is_told_by_its_identity(client: Client, enter: Enter) -> None:
    (id,) = new_ids(1)
    calls = [Call(b"a pickle", None, b"identity")]
    client.turn(adds=[Batch(id, 1, SQUARE, calls=calls)])
    client.die()
    second = enter()
    found = second.store.resumable(second.run, SQUARE.path, [b"identity", "identity"])
    assert found == {b"identity": [Resumable(id, SQUARE.digest, Status.PENDING)]}
    assert [it.likeness for it in second.store.calls([client.run.id])] == [b"identity"]


def test_a_function_of_which_all_calls_are_taken_over_was_there_all_the_same(client: Client, enter: Enter) -> None:
    client.add(1)
    client.die()
    second = enter()
    assert take_over(second, 1) != [None]
    assert second.store.resumable(second.run, SQUARE.path, [call(1).likeness]) == {}


def test_a_run_that_continues_nothing_can_take_over_nothing(client: Client) -> None:
    client.add(1)
    assert client.store.resumable(client.run, SQUARE.path, [call(1).likeness]) is None


def test_the_calls_of_runs(client: Client, enter: Enter) -> None:
    done, failed, pending = left_by_a_crash(client)
    second = enter()
    take_over(second, 2)
    (own,) = second.add(5, function=CUBE)
    first, after = client.run.id, second.run.id
    found = {it.id: it for it in second.store.calls([first, after])}
    assert list(found) == [done, failed, pending, own]
    assert {id: (it.run, it.status) for id, it in found.items()} == {
        done: (first, Status.COMPLETED), failed: (first, Status.FAILED), pending: (after, Status.PENDING),
        own: (after, Status.PENDING),
    }  # fmt: skip
    enqueued = second.store.get(own).enqueued_at
    assert found[own] == PastCall(own, after, CUBE.digest, call(5).likeness, Status.PENDING, enqueued)
    assert [it.id for it in second.store.calls([first])] == [done, failed]
    assert second.store.calls([]) == []


def test_what_a_function_is_made_of_is_stored_with_it_and_added_to_one_that_an_older_version_stored(
    client: Client, enter: Enter
) -> None:
    told = SQUARE._replace(parts='{"": {"file": "b"}}')
    client.add(1, function=EDITED)
    client.add(1)
    assert client.store.function(EDITED.digest) == EDITED
    client.stop()
    client.close()
    second = enter()
    assert second.store.function(SQUARE.digest).parts == ""
    second.add(2, function=told)
    assert second.store.function(SQUARE.digest) == told
    second.add(3)  # of whom does not know what it is made of
    second.reopen()
    assert second.store.function(SQUARE.digest) == told


def test_migration_and_backup_bring_along_what_runs_took_over_and_what_functions_are_made_of(
    client: Client, enter: Enter, backend: Backend, tmp_path: Path
) -> None:
    left_by_a_crash(client)
    second = enter()
    second.add(3, function=EDITED)
    take_over(second, 0, 1)
    second.stop()
    taken = second.store.taken()
    assert len(taken) == 2
    for kind in BACKENDS.values():
        with contextlib.closing(kind.open(tmp_path / f"moved-{kind.filename}", create=True)) as made:
            made.close()
        address = tmp_path / kind.name / kind.filename
        importing = type(made)(address, importing=True)
        with contextlib.closing(importing):
            for _ in range(2):
                migrate(second.store, importing, lambda _: None)
            assert (importing.taken(), importing.function(EDITED.digest)) == (taken, EDITED)
    copied = tmp_path / f"copy-{backend.filename}"
    second.store.backup(copied)
    with contextlib.closing(backend.open(copied, create=False)) as copy:
        assert (copy.taken(), copy.function(EDITED.digest)) == (taken, EDITED)


def test_a_run_that_is_purged_leaves_nothing_of_what_it_took_over(client: Client, enter: Enter) -> None:
    left_by_a_crash(client)
    second = enter()
    take_over(second, 0)
    second.stop()
    enter().stop()
    assert second.store.taken()
    for record in second.store.runs():
        assert record.id <= second.run.id + 1
    second.store.cancel(second.store.ids(), tick())
    assert second.store.purge(tick()) == 3
    assert second.store.taken() == []


def test_a_damaged_note_of_what_was_taken_over_costs_that_note_alone(tmp_path: Path) -> None:
    backend = BACKENDS["file"]
    with contextlib.closing(backend.open(tmp_path / "store")) as store:
        owner = store.enter("work")
        store.begin_run("work", owner, "crashed", tick())
        (tmp_path / "store" / "runs" / "1.taken").write_text("12 3 1\n13 3\nnonsense\n14 4 1")
        assert store.taken() == [Taken(1, 12, Status.COMPLETED, 1), Taken(1, 14, Status.FAILED, 1)]
        store.end_run(Run(1, "work"), True, tick())
        store.leave(owner)
        assert store.check() == []
