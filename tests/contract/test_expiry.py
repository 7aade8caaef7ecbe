"""What is removed by and by once it was kept long enough, what is forgotten on purpose, and what stays."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from backends import BACKENDS, CUBE, SQUARE, Backend, Client, call, new_ids, tick

from omniq_executor.errors import FunctionLost
from omniq_executor.model.options import MEMO
from omniq_executor.model.task import Event, Options, Status, log_name
from omniq_executor.stores.base import NO_RUN, Batch, RunRecord, Store, Turn
from omniq_executor.stores.retention import expiries

Enter = Callable[..., Client]
Start = Callable[..., "subprocess.Popen[str]"]
TTL = 10_000
LATER = 1 << 62


def ids_of(store: Store) -> list[int]:
    return [task.id for task in store.find()]


def removed(store: Store, now: int, owner: int = 0) -> int:
    """Do all the steps of an expiry; returns how many tasks they removed."""
    return sum(step.removed for step in store.expire(now, owner))


def done(client: Client, *values: Any, **how: Any) -> list[int]:
    """Calls that are completed."""
    ids = client.add(*values, **how)
    client.claim(len(ids))
    client.end(Event.COMPLETE, *ids, result="1")
    return ids


@pytest.fixture
def nightly(enter: Enter) -> Callable[..., list[int]]:
    """Makes a run with completed calls, one failed and one cancelled, that ends; returns its tasks."""

    def run(*, clean: bool = True, **how: Any) -> list[int]:
        client = enter(**{"result_ttl": TTL, **how})
        ids = done(client, 1, 2, 3)
        failed, cancelled = client.add(4, 5)
        client.store.cancel([cancelled], tick())
        client.claim(1)
        client.end(Event.FAIL, failed)
        client.stop(clean=clean)
        return [*ids, failed, cancelled]

    return run


# --- When a run goes ---


def test_what_is_finished_of_a_run_that_ended_clean_goes_when_its_time_is_over(nightly: Any, store: Store) -> None:
    ids = nightly()
    (run,) = store.runs()
    assert (run.result_ttl, removed(store, (run.ended_at or 0) + TTL - 1)) == (TTL, 0)
    assert ids_of(store) == sorted(ids)
    assert removed(store, (run.ended_at or 0) + TTL) == len(ids)
    assert ids_of(store) == []


def test_a_run_goes_with_its_tasks_unless_it_is_the_newest(nightly: Any, store: Store) -> None:
    for _ in range(3):
        nightly()
    assert removed(store, LATER) == 15
    assert [run.id for run in store.runs()] == [3]
    nightly()
    assert (removed(store, LATER), [run.id for run in store.runs()]) == (5, [4])


@pytest.mark.parametrize("how", [{"result_ttl": None}, {"clean": False}])
def test_a_run_that_is_kept_for_ever_or_can_be_continued_stays(nightly: Any, store: Store, how: Any) -> None:
    ids = nightly(**how)
    assert removed(store, LATER) == 0
    assert ids_of(store) == sorted(ids)


def test_a_run_that_goes_on_stays(enter: Enter, store: Store) -> None:
    client = enter(result_ttl=TTL)
    ids = done(client, 1, 2)
    assert removed(store, LATER) == 0
    client.store.end_run(client.run, True, tick())
    assert removed(store, LATER) == 2
    assert ids_of(store) == [] != ids


def test_a_run_of_a_session_stays_until_that_has_ended_clean(enter: Enter, store: Store) -> None:
    for clean in (False, True):
        session = store.begin_session(tick())
        client = enter(result_ttl=TTL, session=session, queue=f"q{clean}")
        done(client, 1)
        client.stop()
        assert removed(store, LATER) == 0
        store.end_session(session, clean, tick())
        assert removed(store, LATER) == clean


def test_a_broken_run_goes_when_the_run_that_settled_it_does(nightly: Any, enter: Enter, store: Store) -> None:
    nightly(clean=False)
    nightly(resume="never")
    first, second = store.runs()
    assert (first.settled, first.clean) == (True, False)
    assert removed(store, (second.ended_at or 0) + TTL - 1) == 0
    assert removed(store, (second.ended_at or 0) + TTL) == 10


def test_a_run_stays_as_long_as_one_that_continued_it(nightly: Any, enter: Enter, store: Store) -> None:
    nightly(clean=False)
    later = enter(result_ttl=TTL)
    assert later.run.continues == (1,)
    assert removed(store, LATER) == 0  # it goes on
    later.stop()
    nightly(resume="always")
    third = store.runs()[-1]
    assert third.continues == (1, 2)
    assert removed(store, (third.ended_at or 0) + TTL - 1) == 0
    assert removed(store, (third.ended_at or 0) + TTL) == 10


def test_a_run_that_is_continued_while_it_is_removed_stays_from_then_on(
    nightly: Any, enter: Enter, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sqlite.store._FIRST_LOOK", "file.retention._READ"):
        monkeypatch.setattr(f"omniq_executor.stores.{name}", 1)
    monkeypatch.setattr("omniq_executor.stores.sqlite.store._MOST_LOOKED_AT", 1)
    nightly()
    steps = store.expire(LATER)
    assert next(steps).removed == 1
    later = enter(resume="always")
    assert later.run.total >= 3  # less the cancelled one, which may be the one that is gone
    left = ids_of(store)
    assert sum(step.removed for step in steps) == 0
    assert ids_of(store) == left
    assert {run.id for run in store.runs()} == {1, later.run.id}


# --- What stays of a run that goes ---


def test_what_is_not_finished_stays_and_what_it_comes_after(enter: Enter, store: Store) -> None:
    client = enter(result_ttl=TTL)
    needed, _ = done(client, 1, 2)
    (child,) = new_ids(1)
    client.turn(adds=[Batch(child, 1, CUBE, calls=[call(1)], options=Options(after=(needed,)))])
    client.stop()
    assert removed(store, LATER) == 1
    assert ids_of(store) == sorted([needed, child])
    assert [run.id for run in store.runs()] == [1]
    later = enter("elsewhere")
    assert later.store.claim(later.owner, child, tick()) is not None
    later.end(Event.COMPLETE, child, result="1")
    assert removed(store, LATER) == 2


def test_what_comes_to_be_needed_while_others_are_removed_stays(
    enter: Enter, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sqlite.store._FIRST_LOOK", "sqlite.store._MOST_LOOKED_AT", "file.retention._READ"):
        monkeypatch.setattr(f"omniq_executor.stores.{name}", 1)
    client = enter(result_ttl=TTL)
    ids = done(client, 1, 2, 3, 4)
    client.stop()
    later = enter("elsewhere")
    steps = store.expire(LATER)
    assert next(steps).removed == 1
    (needed, *others) = ids_of(store)
    (child,) = new_ids(1)
    later.turn(adds=[Batch(child, 1, CUBE, calls=[call(1)], options=Options(after=(needed,)))])
    assert sum(step.removed for step in steps) == len(others)
    assert ids_of(store) == sorted([needed, child])
    assert len(ids) == 4


def test_what_finished_lately_stays_however_long_its_run_is_over(enter: Enter, store: Store) -> None:
    client = enter(result_ttl=TTL)
    early = done(client, 1)
    (late,) = client.add(2)
    client.stop()
    ended_at = store.runs()[0].ended_at or 0
    worker = enter("elsewhere")
    worker.store.claim(worker.owner, late, tick())
    worker.turn(now=ended_at + TTL, outcomes=[])
    worker.end(Event.COMPLETE, late, result="1")
    finished_at = store.get(late).finished_at or 0
    assert removed(store, ended_at + TTL) == 1 + (finished_at < ended_at)
    assert (ids_of(store), late in early) == ([late], False)
    assert removed(store, finished_at + TTL + 1) == 1


def test_a_key_holds_and_a_memo_does_not(enter: Enter, store: Store) -> None:
    client = enter(result_ttl=TTL)
    (named,) = done(client, 1, key="invoice 7")
    done(client, 2, key=f"{MEMO}0123")
    client.stop()
    assert removed(store, LATER) == 1
    assert ids_of(store) == [named]
    assert (store.by_key("work", "invoice 7") is None, store.by_key("work", f"{MEMO}0123") is None) == (False, True)


def test_tasks_of_no_run_stay(enter: Enter, nightly: Any, store: Store) -> None:
    client = enter()
    (id,) = new_ids(1)
    run = NO_RUN._replace(queue="work")
    batch = Batch(id, 1, SQUARE, calls=[call(1)], claimed=True)
    client.store.turn(client.owner, run, Turn(tick(), adds=[batch]))
    client.end(Event.COMPLETE, id, result="1")
    nightly()
    assert removed(store, LATER) == 5
    assert ids_of(store) == [id]


def test_what_calls_wrote_goes_with_them(nightly: Any, store: Store) -> None:
    ids = nightly()
    kept = nightly(result_ttl=None)
    folder = store.output.prepare()
    for id in (ids[0], kept[0]):
        (folder / log_name(id, 1)).write_text("text")
    assert removed(store, LATER) == 5
    assert [path.name for path in folder.iterdir()] == [log_name(kept[0], 1)]


def test_functions_go_that_no_task_uses_while_no_other_owner_knows_them(
    enter: Enter, backend: Backend, address: Path
) -> None:
    def there() -> list[bytes]:
        found = []
        with contextlib.closing(backend.open(address)) as fresh:
            for function in (CUBE, SQUARE):
                with contextlib.suppress(FunctionLost):
                    found.append(fresh.function(function.digest).digest)
        return found

    client = enter(result_ttl=TTL)
    done(client, 1, function=CUBE)
    client.stop()
    other, later = enter("elsewhere"), enter()
    done(later, 2, function=SQUARE)
    assert (removed(later.store, LATER, later.owner), there()) == (1, [CUBE.digest, SQUARE.digest])
    other.stop()
    client = enter("elsewhere", result_ttl=TTL)
    client.stop()
    assert (removed(later.store, LATER, later.owner), there()) == (0, [SQUARE.digest])
    assert later.add(3, function=CUBE)  # which is stored again
    assert there() == [CUBE.digest, SQUARE.digest]


# --- Steps ---


def test_an_expiry_can_be_left_off_after_any_step_and_begun_again(
    nightly: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sqlite.store._FIRST_LOOK", "sqlite.store._MOST_LOOKED_AT", "file.retention._READ"):
        monkeypatch.setattr(f"omniq_executor.stores.{name}", 2)
    for _ in range(3):
        nightly()
    kept = nightly(result_ttl=None)
    total = 0
    for _ in range(40):
        for step in store.expire(LATER):
            total += step.removed
            break
        assert store.check() == []
    assert total >= 2 or store.path.is_dir()  # whose order is any: those that stay may come first each time
    total += removed(store, LATER)
    assert (total, ids_of(store)) == (15, sorted(kept))


def test_a_store_where_nothing_is_to_go_takes_no_step(nightly: Any, store: Store) -> None:
    assert list(store.expire(LATER)) == []
    nightly(result_ttl=None)
    assert list(store.expire(LATER)) == []


def test_two_handles_may_expire_at_once(nightly: Any, store: Store, backend: Backend, address: Path) -> None:
    for _ in range(4):
        nightly()
    with contextlib.closing(backend.open(address)) as other:
        steps: list[Iterator[Any]] = [store.expire(LATER), other.expire(LATER)]
        total = 0
        while steps:
            steps = [each for each in steps if (step := next(each, None)) and [total := total + step.removed]]
    assert (total, ids_of(store), store.check()) == (20, [], [])


@pytest.mark.parametrize("verb", ["expire", "remove"])
def test_who_dies_in_the_midst_of_a_removal_leaves_a_whole_store(
    backend: Backend, address: Path, enter: Enter, start: Start, verb: str
) -> None:
    client = enter(result_ttl=TTL)
    ids = done(client, *range(300))
    client.stop()
    how = "for _ in store.expire(1 << 62): pass" if verb == "expire" else f"store.remove({ids!r})"
    for moment in (10, 40, 80, 160, 320, 640, 1280, 2560, 5120):
        process = start(f"""
import os, sys
store = backend.open(address)
ready()
lines = 0
def trace(frame, event, arg):
    global lines
    lines += "stores" in frame.f_code.co_filename
    if lines == {moment}:
        os.kill(os.getpid(), 9)
    return trace
sys.stdin.readline()
sys.settrace(trace)
{how}
sys.settrace(None)
""")
        process.communicate("go\n", timeout=60)
        store = backend.open(address)
        left = ids_of(store)
        assert [problem for problem in store.check() if not problem.repaired] == []
        assert set(left) <= set(ids)
        assert all(status is Status.COMPLETED for status in (found.status for found in store.states(left)))
        store.close()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
    store = backend.open(address)
    with contextlib.closing(store):
        removed(store, LATER)
        assert ids_of(store) == []


# --- Forgetting ---


def test_what_a_function_returned_is_forgotten_with_what_was_given_it(enter: Enter, store: Store) -> None:
    client = enter()
    other = done(client, 1, function=SQUARE)
    calls = done(client, 2, 3, function=CUBE)
    children = list(new_ids(2))
    for child, needed in zip(children, (calls[0], children[0]), strict=True):
        options = Options(after=(needed,))
        client.turn(adds=[Batch(child, 1, SQUARE, calls=[call(child)], options=options)])
        assert client.claim(1) == [child]
        client.end(Event.COMPLETE, child, result="1")
    for name in ("cube", "numbers.cube"):
        assert store.results_of(name) == (calls[::-1], children[::-1])
    assert store.results_of("umbers.cube") == store.results_of("numbers") == ([], [])
    assert store.results_of("cube", "elsewhere") == ([], [])
    assert store.remove([*children, *calls]) == 4
    assert ids_of(store) == other


def test_what_is_not_finished_is_not_forgotten_nor_what_it_needs(enter: Enter, store: Store) -> None:
    client = enter()
    needed, free = done(client, 1, 2, function=CUBE)
    pending, running = client.add(3, function=CUBE), client.add(4, function=CUBE, claimed=True)
    (child,) = new_ids(1)
    client.turn(adds=[Batch(child, 1, SQUARE, calls=[call(1)], options=Options(after=(needed,)))])
    assert store.results_of("cube") == ([free, needed], [])
    assert store.remove([needed, free, *pending, *running, child]) == 1
    assert ids_of(store) == sorted([needed, *pending, *running, child])


def test_what_was_forgotten_is_not_taken_over_and_its_key_is_free(enter: Enter, store: Store) -> None:
    client = enter()
    ids = done(client, 1, 2)
    (named,) = done(client, 3, key="k")
    client.stop(clean=False)
    later = enter()
    assert store.remove([ids[0], named]) == 2
    found = later.store.take_over(later.run, SQUARE, [call(1), call(2)], tick())
    assert [state and state.id for state in found] == [None, ids[1]]
    assert later.add(3, key="k")


# --- What is told ---


def test_usage_tells_size_age_and_what_is_to_go_when(nightly: Any, store: Store) -> None:
    assert store.usage()[1:] == (None, [])
    before = tick()
    nightly()
    nightly(result_ttl=2 * TTL)
    nightly(result_ttl=None)
    first, second, _ = store.runs()
    usage = store.usage()
    assert usage.size > 10_000
    assert before < (usage.oldest or 0) < (first.ended_at or 0)
    assert usage.expiring == [((first.ended_at or 0) + TTL, 5), ((second.ended_at or 0) + 2 * TTL, 5)]
    assert removed(store, usage.expiring[0][0]) == 5
    assert store.usage().expiring == usage.expiring[1:]


def run(id: int, **fields: Any) -> RunRecord:
    """A run that ended clean at 100 times its id."""
    usual = {"queue": "q", "owner": 1, "continues": (), "started_at": id * 100 - 50, "ended_at": id * 100}
    return RunRecord(**{"id": id, **usual, "clean": True, "settled": True, "result_ttl": 10, **fields})


@pytest.mark.parametrize(
    ("runs", "when"),
    [
        ([run(1)], {1: 110}),
        ([run(1, result_ttl=None)], {}),
        ([run(1, settled=False, clean=None)], {}),
        ([run(1), run(2, continues=(1,))], {1: 210, 2: 210}),
        ([run(1), run(2, continues=(1,), result_ttl=None)], {}),
        ([run(1), run(2, continues=(1,), clean=None, settled=False)], {}),
        ([run(1, clean=False), run(2), run(3)], {1: 210, 2: 210, 3: 310}),
        ([run(1, clean=False, ended_at=None), run(2, queue="p")], {1: 60, 2: 210}),
        ([run(1, clean=False, ended_at=None), run(2, context="c"), run(3)], {1: 310, 2: 210, 3: 310}),
        ([run(3, continues=(1, 2))], {3: 310}),
    ],
)
def test_when_the_results_of_runs_are_to_go(runs: list[RunRecord], when: dict[int, int]) -> None:
    assert expiries(runs) == expiries(runs[::-1]) == when


# --- Space ---


def test_a_purge_gives_the_space_back(enter: Enter, store: Store, backend: Backend) -> None:
    client = enter()
    client.turn(adds=[Batch(new_ids(2000)[0], 2000, SQUARE, text=json.dumps([["x" * 2000]] * 2000), claimed=True)])
    ids = ids_of(store)
    client.complete_block(ids[0], ["y" * 500] * 2000)
    kept = done(client, 1)
    client.stop()
    before = store.usage().size
    assert store.purge(store.get(kept[0]).finished_at or 0) == 2000
    store.close()
    reopened = backend.open(Path(store.address))
    with contextlib.closing(reopened):
        assert reopened.usage().size < before / 3
        assert (ids_of(reopened), reopened.check()) == (kept, [])


def test_a_database_is_compacted_while_others_use_it(tmp_path: Path) -> None:
    address = tmp_path / "store.db"
    backend = BACKENDS["sqlite"]
    with contextlib.closing(Client(backend, address)) as client, contextlib.closing(Client(backend, address)) as other:
        done(client, *("x" * 4000 for _ in range(600)))
        kept = other.add("kept", claimed=True)
        assert client.store.compact() is False  # nothing is free
        assert client.store.purge(LATER) == 600
        assert other.end(Event.COMPLETE, *kept, result="1") == set()
        assert client.store.compact() is False
        assert os.stat(address).st_size + os.stat(f"{address}-wal").st_size < 600 * 4000 / 4
        assert other.store.get(kept[0]).status is Status.COMPLETED


def test_what_is_free_is_used_again_before_more_is_taken(tmp_path: Path) -> None:
    address = tmp_path / "store.db"
    with contextlib.closing(Client(BACKENDS["sqlite"], address)) as client:
        sizes = []
        for _ in range(6):
            ids = done(client, *("x" * 1000 for _ in range(300)))
            with contextlib.closing(sqlite3.connect(address)) as plain:
                sizes.append(plain.execute("PRAGMA page_count").fetchone()[0])
            client.store.remove(ids)
        assert sizes[-1] <= sizes[0] * 1.1
