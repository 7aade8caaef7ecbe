"""Sessions: how long they last, which of their runs are continued, what is settled when, and what is left then."""

import contextlib
import gc
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from backends import BACKENDS, SQUARE, Backend, Client, call, new_ids, tick

from omniq_executor.model.task import Event, Options, Status
from omniq_executor.stores.base import Batch, Leftover, Store
from omniq_executor.stores.file.store import FileStore

Enter = Callable[..., Client]
Start = Callable[..., "subprocess.Popen[str]"]

LEAVES_A_RUN = """
store = backend.open(address)
client = Client(backend, address, session=store.begin_session(tick()))
client.add(1)
client.stop()
client.close()
store.close()
"""


@pytest.fixture
def session(store: Store) -> Iterator[int]:
    """A session of this process, which goes on."""
    begun = store.begin_session(tick())
    yield begun
    store._owners.let_go(begun)  # type: ignore[attr-defined]  # else its file is open as long as this process lives


def end(store: Store, session: int, clean: bool = True, **how: Any) -> list[Leftover]:
    return store.end_session(session, clean, tick(), **how)


def settled(store: Store) -> list[int]:
    return [run.id for run in store.runs() if run.settled]


def let_die(store: Any, session: int) -> None:
    """Have the session look as if its process had died."""
    store._owners._held.pop(session).release()


# --- How long they last ---


def test_a_run_of_a_session_that_goes_on_is_not_continued_though_its_executor_is_closed(
    enter: Enter, session: int
) -> None:
    first = enter(session=session)
    first.add(1)
    first.stop()
    for resume in ("crashed", "always"):
        assert enter(resume=resume).run.continues == ()


def test_sessions_have_ids_of_their_own(store: Store, client: Client) -> None:
    sessions = [store.begin_session(tick()) for _ in range(3)]
    assert len({*sessions, client.owner, 0}) == 5
    for each in sessions:
        assert end(store, each) == []


def test_a_session_lasts_until_its_process_is_killed_also_when_its_handle_is_closed(enter: Enter, start: Start) -> None:
    process = start(f"import gc\n{LEAVES_A_RUN}\ndel client, store\ngc.collect()\nready()\ninput()")
    assert enter().run.continues == ()
    assert enter("elsewhere").store.reap(tick()) == 0
    assert enter().run.continues == ()
    process.kill()
    process.wait(30)
    assert enter().run.total == 1


def test_a_session_that_no_handle_ended_is_over_with_its_process(enter: Enter, start: Start) -> None:
    process = start(f"{LEAVES_A_RUN}\nready()\ninput()")
    assert process.communicate("end\n", timeout=30) == ("", "")
    (run,) = enter("elsewhere").store.runs()[:1]
    assert (run.clean, run.settled) == (None, False)
    assert enter().run.continues == (run.id,)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_that_lives_on_does_not_keep_it_alive(enter: Enter, start: Start) -> None:
    process = start(
        f"import os\n{LEAVES_A_RUN}\nif not os.fork():\n    ready()\n    input()\n    os._exit(0)\nos.wait()"
    )
    assert enter().run.continues == ()
    process.kill()
    process.wait(30)
    assert enter().run.total == 1
    process.communicate("end\n", timeout=30)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_the_end_of_a_forked_child_does_not_end_it(enter: Enter, start: Start) -> None:
    process = start(
        f"import os, gc, sys\n{LEAVES_A_RUN}\nchild = os.fork()\nif not child:\n    del client, store\n"
        "    gc.collect()\n    sys.exit(0)\nos.waitpid(child, 0)\nready()\ninput()"
    )
    assert enter().run.continues == ()
    process.kill()
    process.wait(30)
    assert enter().run.total == 1


def test_a_session_is_ended_through_another_handle_and_lets_go_of_its_lock(
    backend: Backend, address: Path, enter: Enter, store: Store
) -> None:
    session = store.begin_session(tick())
    first = enter(session=session)
    first.stop()
    folder = store.notify_path(first.owner).parent
    assert (folder / f"{session}.lock").exists()
    with contextlib.closing(backend.open(address)) as other:
        assert end(other, session) == []
    assert not (folder / f"{session}.lock").exists()
    assert settled(store) == [first.run.id]


def test_a_session_whose_handle_is_gone_is_ended_through_another(backend: Backend, address: Path, store: Store) -> None:
    handle = backend.open(address)
    session = handle.begin_session(tick())
    handle.close()
    del handle
    gc.collect()
    assert store.reap(tick()) == 0
    folder = store.notify_path(1).parent
    assert (folder / f"{session}.lock").exists()
    assert end(store, session) == []
    assert not (folder / f"{session}.lock").exists()


def test_a_reap_forgets_sessions_whose_process_is_dead_and_no_others(enter: Enter, store: Store, session: int) -> None:
    dead = store.begin_session(tick())
    runs = [enter(session=each) for each in (dead, session)]
    for run in runs:
        run.stop(clean=False)
    assert enter().run.continues == ()
    let_die(store, dead)
    assert store.reap(tick()) == 0
    assert enter().run.continues == (runs[0].run.id,)
    assert store.check() == []


# --- What is continued ---


def test_a_run_continues_what_broke_in_its_own_session(enter: Enter, session: int) -> None:
    broken, fine = enter(session=session), enter(session=session)
    broken.stop(clean=False)
    fine.stop()
    assert enter().run.continues == ()
    assert enter(session=session).run.continues == (broken.run.id,)
    assert enter(session=session, resume="never").run.continues == ()


def test_a_run_that_was_never_ended_is_broken(enter: Enter, session: int) -> None:
    left = enter(session=session)
    left.store.leave(left.owner)
    assert enter(session=session).run.continues == (left.run.id,)


@pytest.mark.parametrize("clean", [True, False])
def test_always_continues_the_session_that_ended_last_and_its_own(enter: Enter, store: Store, clean: bool) -> None:
    older = enter()
    older.stop()
    last = store.begin_session(tick())
    runs = [enter(session=last, resume="never") for _ in range(2)]
    for run in runs:
        run.stop()
    end(store, last, clean)
    own = store.begin_session(tick())
    mine = enter(session=own, resume="never")
    mine.stop()
    ids = [run.run.id for run in runs]
    assert enter(resume="always").run.continues == tuple(ids)
    assert enter(session=own, resume="always").run.continues == (*ids, mine.run.id)
    assert end(store, own) == []


def test_always_continues_one_run_that_is_a_session_by_itself_beside_its_own(enter: Enter, session: int) -> None:
    first, second = enter(), enter()
    first.stop()
    second.stop()
    mine = enter(session=session, resume="never")
    mine.stop()
    assert enter(session=session, resume="always").run.continues == (second.run.id, mine.run.id)
    assert enter(resume="always").run.continues == (second.run.id,)


@pytest.mark.parametrize("resume", ["crashed", "always"])
def test_what_a_run_continued_is_continued_with_it_though_it_was_settled(enter: Enter, resume: str) -> None:
    first = enter()
    first.stop()
    second = enter(resume="always")
    assert second.run.continues == (first.run.id,)
    second.stop(clean=False)
    assert enter(resume=resume).run.continues == (first.run.id, second.run.id)


@pytest.mark.parametrize("resume", ["crashed", "always"])
def test_a_run_of_another_context_is_neither_continued_nor_settled(enter: Enter, resume: str) -> None:
    one = enter(context="one")
    one.stop(clean=False)
    two = enter(resume=resume, context="two")
    assert two.run.continues == ()
    two.stop()
    assert enter(resume=resume).run.continues == ()
    third = enter(resume=resume, context="one")
    assert third.run.continues == (one.run.id,)
    third.stop()
    assert enter(context="one").run.continues == ()


def test_a_run_of_which_nothing_has_happened_since_is_not_continued(enter: Enter) -> None:
    old = enter()
    ids = old.add(1, 2)
    ended = tick()
    old.store.end_run(old.run, False, ended)
    old.store.leave(old.owner)
    assert enter(since=ended).run.continues == ()
    assert enter(since=ended - 1).run.continues == (old.run.id,)
    worker = enter("elsewhere")
    worker.store.claim(worker.owner, ids[0], tick())
    done = tick()
    worker.turn(done, outcomes=[])
    assert worker.end(Event.COMPLETE, ids[0], result="1") == set()
    assert enter(since=done).run.continues == (old.run.id,)
    assert enter(since=tick()).run.continues == ()


@pytest.mark.parametrize("sign", ["added", "claimed"])
def test_a_run_that_was_killed_was_at_work_until_its_last_task(enter: Enter, sign: str) -> None:
    killed = enter()
    since = tick()
    (id,) = killed.add(1, claimed=sign == "claimed")
    if sign == "claimed":
        killed.end(Event.COMPLETE, id, result="1")
    killed.die()
    assert enter(since=since).run.continues == (killed.run.id,)


def test_what_is_too_old_is_left_out_of_a_chain(enter: Enter) -> None:
    first = enter()
    first.stop(clean=False)
    between = tick()
    second = enter()
    second.stop(clean=False)
    assert enter(since=between).run.continues == (second.run.id,)


def test_a_run_says_of_which_session_and_context_it_is(enter: Enter, session: int) -> None:
    client = enter(session=session, context="an initializer")
    (run,) = client.store.runs()
    assert (run.id, run.session, run.context, run.clean, run.settled) == (
        client.run.id, session, "an initializer", None, False,
    )  # fmt: skip


# --- What is settled ---


def test_a_clean_end_of_a_run_settles_nothing_before_the_end_of_its_session(enter: Enter, store: Store) -> None:
    broken = enter()
    broken.stop(clean=False)
    session = store.begin_session(tick())
    run = enter(session=session)
    run.add(1)
    assert run.stop() == []
    assert settled(store) == []
    assert [record.clean for record in store.runs()] == [False, None]
    assert end(store, session) == [Leftover(run.run.id, "work", store.runs()[1].started_at, 1)]
    assert settled(store) == [broken.run.id, run.run.id]
    assert [record.clean for record in store.runs()] == [False, True]
    assert end(store, session) == []  # it was told


def test_an_unclean_end_of_a_session_settles_nothing_and_all_of_its_runs_are_continued(
    enter: Enter, store: Store
) -> None:
    session = store.begin_session(tick())
    runs = [enter(session=session) for _ in range(2)]
    for run in runs:
        run.stop()
    assert end(store, session, clean=False) == []
    assert settled(store) == []
    assert [record.clean for record in store.runs()] == [False, False]
    assert enter().run.continues == tuple(run.run.id for run in runs)


def test_the_clean_end_of_a_session_settles_what_broke_in_it(enter: Enter, store: Store) -> None:
    session = store.begin_session(tick())
    broken, fine = enter(session=session), enter(session=session)
    broken.stop(clean=False)
    fine.stop()
    end(store, session)
    assert settled(store) == [broken.run.id, fine.run.id]


def test_a_clean_end_settles_what_came_before_whatever_was_taken_over_and_nothing_else(
    enter: Enter, store: Store, session: int
) -> None:
    before = enter(), enter(context="another"), enter("elsewhere")
    for run in before:
        run.stop(clean=False)
    of_another = enter(session=session)
    of_another.stop(clean=False)
    alive = enter(resume="never")
    clean = enter(resume="never")
    clean.stop()
    assert settled(store) == [before[0].run.id, clean.run.id]
    assert alive.run.id not in settled(store)


@pytest.mark.parametrize("of_session", [True, False])
def test_a_broken_run_settles_nothing(enter: Enter, store: Store, of_session: bool) -> None:
    before = enter()
    before.stop(clean=False)
    session = store.begin_session(tick()) if of_session else 0
    enter(session=session).stop(clean=False)
    if of_session:
        end(store, session, clean=False)
    assert settled(store) == []


@pytest.mark.parametrize("how", ["broken", "never ended"])
def test_what_broke_is_kept_if_that_is_wished_with_all_of_its_queue_and_context(
    enter: Enter, store: Store, how: str
) -> None:
    before = {name: enter(context=name) for name in ("broken", "fine")}
    for run in before.values():
        run.stop(clean=False)
    session = store.begin_session(tick())
    broken = enter(session=session, context="broken")
    beside = enter(session=session, context="broken", resume="never")
    fine = enter(session=session, context="fine")
    if how == "broken":
        broken.stop(clean=False)
    else:
        broken.store.leave(broken.owner)
    for run in (beside, fine):
        run.add(1)
        run.stop()
    left = end(store, session, keep_broken=True)
    assert [run.run for run in left] == [fine.run.id]
    assert settled(store) == [before["fine"].run.id, fine.run.id]
    records = {record.id: record.clean for record in store.runs()}
    assert records[broken.run.id] is (False if how == "broken" else None)
    assert records[beside.run.id] is True
    continues = enter(context="broken").run.continues
    assert continues == (before["broken"].run.id, broken.run.id, beside.run.id)
    assert enter(context="fine").run.continues == ()


def test_what_broke_and_was_continued_to_a_clean_end_in_the_same_session_is_settled(enter: Enter, store: Store) -> None:
    session = store.begin_session(tick())
    broken = enter(session=session)
    broken.stop(clean=False)
    again = enter(session=session)
    again.stop(clean=False)
    mended = enter(session=session)
    assert mended.run.continues == (broken.run.id, again.run.id)
    mended.stop()
    end(store, session, keep_broken=True)
    assert settled(store) == [broken.run.id, again.run.id, mended.run.id]
    assert [record.clean for record in store.runs()] == [False, False, True]
    assert enter().run.continues == ()


def test_a_run_whose_end_is_told_twice_tells_once_what_it_left(client: Client) -> None:
    client.add(1)
    assert [left.tasks for left in (*client.store.end_run(client.run, True, tick()),)] == [1]
    assert client.store.end_run(client.run, True, tick()) == []


# --- What is left ---


def test_leftovers_are_told_by_run_whatever_waits_and_whatever_queue_it_is_of(
    client: Client, enter: Enter, store: Store
) -> None:
    broken = enter()
    first, second = broken.add(1, 2)
    (waiting,) = new_ids(1)
    broken.turn(adds=[Batch(waiting, 1, SQUARE, calls=[call(3)], options=Options(after=(first,)))])
    (later,) = new_ids(1)
    broken.turn(adds=[Batch(later, 1, SQUARE, calls=[call(4)], eta=tick() + 10**12)])
    strange = enter("elsewhere")
    (stranger,) = strange.add(5)
    strange.stop(clean=False)
    broken.stop(clean=False)
    clean = enter()
    assert clean.store.take_over(clean.run, SQUARE, [call(2)], tick())[0] is not None
    assert clean.store.adopt(clean.run, [stranger], tick()) == 1
    client.add(9)
    started = {run.id: run.started_at for run in store.runs()}
    assert clean.stop() == [
        Leftover(broken.run.id, "work", started[broken.run.id], 3),
        Leftover(clean.run.id, "work", started[clean.run.id], 2),
    ]
    assert [left.tasks for left in client.stop()] == [1]
    assert {task.id for task in store.find(Status.PENDING)} >= {first, second, waiting, later, stranger}


def test_what_runs_or_is_finished_is_not_left(client: Client, other: Client) -> None:
    ids = client.add(*range(4))
    assert other.claim(2) == ids[:2]
    other.end(Event.COMPLETE, ids[0], result="1")
    client.store.cancel(ids[2:], tick())
    assert client.stop() == []


# --- Moving, copies and damage ---


def test_a_backup_has_no_sessions_and_its_runs_can_be_continued(
    backend: Backend, enter: Enter, store: Store, session: int, tmp_path: Path
) -> None:
    runs = [enter(session=session), enter(session=session)]
    runs[0].stop()
    store.backup(tmp_path / "saved" / backend.filename)
    with contextlib.closing(Client(backend, tmp_path / "saved" / backend.filename)) as copied:
        assert copied.run.continues == tuple(run.run.id for run in runs)
        assert copied.store.runs()[:2] == store.runs()
    assert enter().run.continues == ()


@pytest.mark.parametrize("other", sorted(BACKENDS))
def test_runs_move_with_their_sessions_and_contexts_and_can_be_continued_there(
    enter: Enter, store: Store, session: int, tmp_path: Path, other: str
) -> None:
    run = enter(session=session, context="an initializer")
    run.stop()
    address = BACKENDS[other].address(tmp_path / "moved")
    with contextlib.closing(BACKENDS[other].open(address)) as moved:
        moved.put(runs=store.runs())
        assert moved.runs() == store.runs()
    with contextlib.closing(Client(BACKENDS[other], address, context="an initializer")) as client:
        assert client.run.continues == (run.run.id,)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"host": 5}', "null"])
def test_a_damaged_file_of_a_session_stops_nothing_while_its_process_lives(tmp_path: Path, content: str) -> None:
    backend = BACKENDS["file"]
    address = backend.address(tmp_path)
    with contextlib.closing(FileStore(address)) as store:
        session = store.begin_session(tick())
        file = address / "sessions" / f"{session}.json"
        client = Client(backend, address, session=session)
        client.stop()
        client.close()
        file.write_text(content)
        (address / "sessions" / "notes.json").write_text("{}")
        with contextlib.closing(Client(backend, address)) as second:
            assert second.run.continues == ()
            assert second.store.reap(tick()) == 0
            problems = second.store.check()
            assert [problem.repaired for problem in problems] == [True]
            assert f"sessions/{session}.json was damaged" in problems[0].what
            assert second.store.check() == []
            file.write_text(content)
            let_die(store, session)
            assert second.store.reap(tick()) == 0
            assert not file.exists()
            assert second.store.begin_run("work", second.owner, "crashed", tick()).continues == (client.run.id,)


def test_what_a_killed_process_left_of_a_session_is_cleared_up(tmp_path: Path) -> None:
    backend = BACKENDS["file"]
    address = backend.address(tmp_path)
    with contextlib.closing(FileStore(address)) as store:
        session = store.begin_session(tick())
        let_die(store, session)
        (address / "sessions" / "77.json.1.new").write_text("{")
        assert store.check() == []
        assert os.listdir(address / "sessions") == []
