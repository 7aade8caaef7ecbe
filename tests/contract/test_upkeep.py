"""Purge, backup and check: what is removed and what stays, a copy at one moment, damage that is found."""

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from backends import BACKENDS, CUBE, SQUARE, Backend, Client, call, tick

from omniq_executor import StoreError
from omniq_executor.model.task import FINISHED, Call, Event, Options, Status, format_id, log_name
from omniq_executor.stores.base import Batch, Problem, Store
from omniq_executor.stores.file import journal
from omniq_executor.stores.output import Output

Enter = Callable[..., Client]
Start = Callable[..., "subprocess.Popen[str]"]


def one_in_each_state(client: Client) -> dict[Status, int]:
    running, completed, failed = client.add(1, 2, 3, claimed=True)
    client.end(Event.COMPLETE, completed, result="4")
    client.end(Event.FAIL, failed)
    pending, cancelled = client.add(4, 5)
    client.store.cancel([cancelled], tick())
    return dict(zip(Status, (pending, running, completed, failed, cancelled), strict=True))


def ids_of(store: Store) -> list[int]:
    return [task.id for task in store.find()]


def write_output(store: Store, id: int, text: bytes, attempt: int = 1) -> None:
    """As a worker does: append to what an attempt wrote."""
    with (store.output.prepare() / log_name(id, attempt)).open("ab") as file:
        file.write(text)


def output_of(store: Store) -> dict[str, bytes]:
    """All that is kept of what calls wrote."""
    folder = store.output.folder
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


# --- Purge ---


def test_purge_removes_what_is_finished_and_nothing_else(client: Client) -> None:
    ids = one_in_each_state(client)
    assert client.store.purge(tick()) == 3
    assert ids_of(client.store) == sorted([ids[Status.PENDING], ids[Status.RUNNING]])
    assert client.store.purge(tick()) == 0
    assert client.end(Event.COMPLETE, ids[Status.RUNNING], result="1") == set()
    assert client.claim() == [ids[Status.PENDING]]


@pytest.mark.parametrize("status", sorted(FINISHED))
def test_purge_takes_states(client: Client, status: Status) -> None:
    ids = one_in_each_state(client)
    assert client.store.purge(tick(), [status]) == 1
    assert ids_of(client.store) == sorted(id for of, id in ids.items() if of is not status)


def test_purge_takes_a_queue_and_no_state_is_nothing(client: Client, enter: Enter) -> None:
    other = enter("elsewhere")
    for each in (client, other):
        each.end(Event.COMPLETE, *each.add(1, claimed=True), result="1")
    assert client.store.purge(tick(), queue="nowhere") == 0
    assert client.store.purge(tick(), []) == 0
    assert client.store.purge(tick(), queue="elsewhere") == 1
    assert client.store.counts() == {"work": {Status.COMPLETED: 1}}


def test_purge_goes_by_the_time_of_the_end(client: Client) -> None:
    early, late = client.add(1, 2, claimed=True)
    client.end(Event.COMPLETE, early, result="1")
    client.end(Event.COMPLETE, late, result="1")
    assert client.store.purge(client.store.get(late).finished_at or 0) == 1
    assert ids_of(client.store) == [late]


@pytest.mark.parametrize("status", [Status.PENDING, Status.RUNNING])
def test_purge_of_what_is_not_finished_is_refused(client: Client, status: Status) -> None:
    ids = one_in_each_state(client)
    with pytest.raises(ValueError, match=status.name):
        client.store.purge(tick(), [Status.COMPLETED, status])
    assert len(ids_of(client.store)) == len(ids)


def test_a_key_is_free_after_its_task_is_purged(client: Client, other: Client) -> None:
    (first,) = client.add(1, key="monday", claimed=True)
    client.end(Event.COMPLETE, first, result="1")
    assert other.store.purge(tick()) == 1
    assert client.store.by_key("work", "monday") is None
    (second,) = client.add(1, key="monday")
    found = other.store.by_key("work", "monday")
    assert found is not None
    assert found.id == second


def test_functions_go_with_their_last_task_once_no_owner_is_there(client: Client, other: Client, store: Store) -> None:
    client.end(Event.COMPLETE, *client.add(1, claimed=True), result="1")
    client.end(Event.COMPLETE, *client.add(1, claimed=True, function=CUBE), result="1")
    (kept,) = other.add(2, function=CUBE)
    assert store.purge(tick()) == 2
    assert store.function(SQUARE.digest) == SQUARE  # the owners may be about to use it
    assert client.add(3)
    client.store.cancel(ids_of(store)[1:], tick())
    client.stop()
    other.stop()
    assert store.purge(tick()) == 1
    assert store.function(CUBE.digest) == CUBE
    with pytest.raises(StoreError):
        store.function(SQUARE.digest)
    # A handle that has used the function before, and another that comes instead.
    client.owner = client.store.enter("work")
    client.run = client.store.begin_run("work", client.owner, "never", tick())
    (again,) = client.add(5)
    assert client.store.get(again).func == SQUARE.pickle
    assert client.store.get(kept).func == CUBE.pickle


def test_a_purged_task_is_no_news_and_is_not_taken_over(client: Client, enter: Enter) -> None:
    done, open_ = client.add(1, 2, claimed=True)
    client.end(Event.COMPLETE, done, result="1")
    client.die()
    later = enter()
    assert later.run.total == 2
    listener = enter("elsewhere")
    assert later.store.purge(tick()) == 1
    assert listener.store.read_changes(listener.owner) == []
    found = later.store.take_over(later.run, SQUARE, [call(1), call(2)], tick())
    assert [it and it.id for it in found] == [None, open_]


def test_runs_that_are_settled_and_have_no_tasks_go_with_them(client: Client, enter: Enter) -> None:
    first = client.run
    client.end(Event.COMPLETE, *client.add(1, claimed=True), result="1")
    client.stop()
    second = enter()
    second.end(Event.COMPLETE, *second.add(1, claimed=True), result="1")
    second.stop()
    assert second.store.purge(tick()) == 2
    third = enter(resume="always")
    assert (third.run.continues, third.run.total) == ((second.run.id,), 0)
    assert third.run.id > second.run.id > first.id


def test_another_process_sees_what_is_purged(client: Client, other: Client) -> None:
    ids = client.add(*range(5), claimed=True)
    client.end(Event.COMPLETE, *ids, result="1")
    assert len(ids_of(other.store)) == 5
    assert client.store.purge(tick()) == 5
    assert ids_of(other.store) == []
    assert other.store.states(ids) == []
    assert other.store.retry(ids, tick()) == []


def test_what_a_task_wrote_is_purged_with_it_and_with_no_other(client: Client, enter: Enter) -> None:
    ids = one_in_each_state(client)
    elsewhere = enter("elsewhere")
    (other,) = elsewhere.add(1, claimed=True)
    elsewhere.end(Event.COMPLETE, other, result="1")
    for id in (*ids.values(), other):
        write_output(client.store, id, b"1")
        write_output(client.store, id, b"2", attempt=2)
    strange = client.store.output.folder / "notes.txt"
    strange.touch()
    assert client.store.purge(tick(), queue="work") == 3
    kept = [ids[Status.PENDING], ids[Status.RUNNING], other]
    assert sorted(output_of(client.store)) == sorted(
        ["notes.txt", *(log_name(id, attempt) for id in kept for attempt in (1, 2))]
    )
    assert client.store.output.attempts(kept[0], most=5) == client.store.output.attempts(kept[0]) == [1, 2]
    assert client.store.output.attempts(ids[Status.FAILED], most=5) == client.store.output.attempts(0) == []


def test_attempts_are_found_that_came_after_a_look(client: Client) -> None:
    assert client.store.output.attempts(7) == []
    write_output(client.store, 7, b"text")
    os.utime(client.store.output.folder, (1, 1))  # long ago
    assert client.store.output.attempts(7) == [1]
    write_output(client.store, 8, b"text", attempt=3)
    write_output(client.store, 7, b"text", attempt=12)
    assert client.store.output.attempts(7) == [1, 12]
    assert client.store.output.attempts(8) == [3]


def test_a_folder_of_output_that_is_a_link_is_not_followed(client: Client, tmp_path: Path) -> None:
    (done,) = client.add(1, claimed=True)
    client.end(Event.COMPLETE, done, result="1")
    write_output(client.store, done, b"text")
    folder = client.store.output.folder
    folder.rename(tmp_path / "away")
    folder.symlink_to(tmp_path / "away")
    assert client.store.output.read(done, 1) == b""
    assert client.store.purge(tick()) == 1
    assert len([*(tmp_path / "away").iterdir()]) == 1
    with pytest.raises(StoreError, match="is a symbolic link"):
        client.store.output.prepare()


def test_a_purge_that_cannot_remove_what_was_written_is_done_all_the_same(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (done,) = client.add(1, claimed=True)
    client.end(Event.COMPLETE, done, result="1")
    write_output(client.store, done, b"text")

    unlink = os.unlink

    def refuse(path: Any, **how: Any) -> None:
        if str(path).endswith(".log"):
            raise PermissionError(13, "Permission denied")
        unlink(path, **how)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        assert client.store.purge(tick()) == 1
    assert "is removed later" in caplog.text
    assert output_of(client.store)
    assert client.store.purge(tick()) == 0
    assert output_of(client.store) == {}


@pytest.mark.parametrize("rotated", [False, True])
def test_what_is_purged_from_a_folder_stays_away_after_a_cut_of_the_power(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rotated: bool
) -> None:
    backend = BACKENDS["file"]
    client = Client(backend, backend.address(tmp_path))
    (done,) = client.add(1, claimed=True, key="monday")
    client.end(Event.COMPLETE, done, result="1")
    if rotated:
        monkeypatch.setattr(journal, "ROTATE_BYTES", 0)
    assert client.store.purge(tick()) == 1
    (again,) = client.add(2, key="monday")
    client.close()
    monkeypatch.setattr(journal, "_boot_id", lambda: "another")  # the whole journal is applied again
    with contextlib.closing(backend.open(Path(client.store.address))) as store:
        assert ids_of(store) == [again]
        found = store.by_key("work", "monday")
        assert found is not None
        assert found.id == again


DIES_IN_PURGE = """
import os, sys
from omniq_executor.model.task import log_name
client = Client(backend, address)
ids = client.add(*range(20), claimed=True)
client.end(Event.COMPLETE, *ids, result="1")
for id in ids:
    (client.store.output.prepare() / log_name(id, 1)).write_bytes(b"text")
ready()
input()
calls = 0
def count(event, args):
    global calls
    calls += event in ("os.remove", "open")
    if calls == {calls}:
        calls += 1  # to kill is an event, too
        os.kill(os.getpid(), 9)
sys.addaudithook(count)
client.store.purge(tick())
print("purged", flush=True)
"""


@pytest.mark.parametrize("calls", [1, 2, 9, 26, 50])
def test_a_purge_that_is_killed_has_removed_all_or_nothing(
    backend: Backend, address: Path, start: Start, calls: int
) -> None:
    process = start(DIES_IN_PURGE.replace("{calls}", str(calls)))
    assert process.stdin
    assert process.communicate("go\n", timeout=30)[1] == ""
    if backend.name == "file" or calls < 10:
        assert process.returncode == -signal.SIGKILL
    with contextlib.closing(backend.open(address)) as store:
        assert len(ids_of(store)) in (0, 20)
        if ids_of(store):
            assert len(output_of(store)) == 20  # what it wrote goes after the task
        assert [problem for problem in store.check() if not problem.repaired] == []
        assert len(ids_of(store)) in (0, 20)
        assert sorted(output_of(store)) == [log_name(id, 1) for id in ids_of(store)]


# --- Backup ---


def test_a_backup_holds_everything_and_nothing_is_running(
    backend: Backend, client: Client, store: Store, tmp_path: Path
) -> None:
    ids = one_in_each_state(client)
    pickled = Call(b"a pickle", None, b"identity")
    special = client.add(7)
    client.turn(
        adds=[Batch(special[0] + 1000, 1, CUBE, calls=[pickled], key="k", priority=3, options=Options(4, tags=("a",)))]
    )
    copy = tmp_path / "saved" / backend.filename
    assert store.backup(copy) == 7
    with contextlib.closing(backend.open(copy, create=False)) as saved:
        before, after = store.find(), saved.find()
        assert [task.id for task in after] == [task.id for task in before]
        for one, other in zip(before, after, strict=True):
            if one.id != ids[Status.RUNNING]:
                assert one == other
        released = saved.get(ids[Status.RUNNING])
        assert (released.status, released.owner, released.attempts) == (Status.PENDING, None, 1)
        assert saved.owners() == []
        assert saved.check() == []
        found = saved.by_key("work", "k")
        assert found is not None
        assert found.id == special[0] + 1000
        run = saved.begin_run("work", saved.enter("work"), "crashed", tick())
        assert run.continues == (client.run.id,)
        assert saved.take_over(run, CUBE, [pickled], tick()) != [None]
    assert client.end(Event.COMPLETE, ids[Status.RUNNING], result="1") == set()


def test_a_backup_overwrites_nothing(backend: Backend, client: Client, tmp_path: Path) -> None:
    taken = tmp_path / backend.filename
    for make in (taken.mkdir, taken.touch, lambda: taken.symlink_to("nowhere")):
        make()
        with pytest.raises(StoreError, match=f"{taken} is there already"):
            client.store.backup(taken)
        taken.rmdir() if taken.is_dir() else taken.unlink()
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(StoreError, match="file"):
        client.store.backup(blocked / backend.filename)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "runs"]


def test_only_its_user_can_read_a_backup(backend: Backend, client: Client, tmp_path: Path) -> None:
    one_in_each_state(client)
    before = os.umask(0)
    try:
        client.store.backup(tmp_path / "saved" / backend.filename)
    finally:
        os.umask(before)
    paths = [path for path in (tmp_path / "saved").rglob("*") if not path.is_symlink()]
    assert {path.stat().st_mode & 0o777 for path in paths if path.is_file()} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in paths if path.is_dir()} <= {0o700}


def test_backups_under_load_are_each_of_one_moment(
    backend: Backend, client: Client, start: Start, tmp_path: Path
) -> None:
    """Another process adds, completes and purges pairs, each in one transaction: no copy has half of one."""
    process = start("""
client = Client(backend, address)
ready()
import threading
stop = threading.Event()
threading.Thread(target=lambda: (input(), stop.set())).start()
while not stop.is_set():
    for _ in range(50):
        ids = client.add(1, 2, claimed=True)
        client.end(Event.COMPLETE, *ids, result="1")
    client.store.purge(tick())
""")
    for n in range(8):
        client.store.backup(tmp_path / f"{n}" / backend.filename)
    process.communicate("stop\n", timeout=30)
    assert process.returncode == 0
    for n in range(8):
        with contextlib.closing(backend.open(tmp_path / f"{n}" / backend.filename, create=False)) as saved:
            assert saved.check() == []
            tasks = saved.find()
            assert len(tasks) % 2 == 0
            for one, two in zip(tasks[::2], tasks[1::2], strict=True):
                assert (one.id + 1, one.status) == (two.id, two.status)


def test_what_changes_while_a_folder_is_copied_is_in_the_copy_as_it_is_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = BACKENDS["file"]
    client = Client(backend, backend.address(tmp_path))
    old = client.add(*range(4), claimed=True)
    for path in (tmp_path / "runs" / "store" / "tasks").iterdir():
        os.utime(path, (1, 1))  # long ago
    real_locked = client.store._tasks.locked  # type: ignore[attr-defined]

    def first_change() -> Any:
        monkeypatch.setattr(client.store._tasks, "locked", real_locked)
        client.end(Event.COMPLETE, *old[:2], result="1")
        client.store.purge(client.store.get(old[1]).finished_at or 0)
        client.store.purge(tick(), [Status.COMPLETED])
        client.end(Event.COMPLETE, old[2], result="1")
        client.add(9)
        return real_locked()

    monkeypatch.setattr(client.store._tasks, "locked", first_change)
    assert client.store.backup(tmp_path / "copy") == 3
    with contextlib.closing(backend.open(tmp_path / "copy")) as saved:
        tasks = saved.find()
        assert [task.status for task in tasks] == [Status.COMPLETED, Status.PENDING, Status.PENDING]
        assert tasks[0] == client.store.get(old[2])
        assert saved.check() == []
    client.close()


@pytest.mark.parametrize("calls", [3, 30, 60, 120, 200, 240])
def test_a_backup_that_is_killed_leaves_nothing_at_its_destination(
    backend: Backend, address: Path, start: Start, tmp_path: Path, calls: int
) -> None:
    process = start(f"""
import os, sys
from omniq_executor.model.task import log_name
client = Client(backend, address)
for id in client.add(*range(40)):
    (client.store.output.prepare() / log_name(id, 1)).write_bytes(b"text of %d" % id)
ready()
input()
calls = 0
def count(event, args):
    global calls
    calls += event in ("os.link", "os.rename", "os.mkdir", "open", "sqlite3.connect/handle")
    is_last = event == "os.link" or (event == "os.rename" and str(args[1]) == {str(tmp_path / "saved" / "store")!r})
    if calls == {calls} or is_last:
        calls += 1  # to kill is an event, too
        os.kill(os.getpid(), 9)
sys.addaudithook(count)
client.store.backup(Path({str(tmp_path / "saved" / backend.filename)!r}))
""")
    assert process.communicate("go\n", timeout=30)[1] == ""
    assert process.returncode == -signal.SIGKILL
    destination = tmp_path / "saved" / backend.filename
    assert not destination.exists()
    with contextlib.closing(backend.open(address)) as store:
        store.backup(destination)
        written = output_of(store)
        assert len(written) == 40
    with contextlib.closing(backend.open(destination, create=False)) as saved:
        assert saved.counts() == {"work": {Status.PENDING: 40}}
        assert output_of(saved) == written


def test_a_backup_has_what_tasks_wrote(backend: Backend, client: Client, tmp_path: Path) -> None:
    ids = one_in_each_state(client)
    for id in ids.values():
        write_output(client.store, id, b"text of %d" % id)
    write_output(client.store, ids[Status.RUNNING], b"\xff", attempt=2)
    write_output(client.store, 77, b"of a task that is gone")
    copy = tmp_path / "saved" / backend.filename
    client.store.backup(copy)
    with contextlib.closing(backend.open(copy, create=False)) as saved:
        expected = output_of(client.store)
        del expected[log_name(77, 1)]
        assert output_of(saved) == expected
        assert saved.check() == []
        write_output(client.store, ids[Status.RUNNING], b"more")
        assert output_of(saved) == expected
    if backend.name == "sqlite":
        assert sorted(path.name for path in copy.parent.iterdir()) == [
            "store.db", "store.db-output", "store.db-owners"
        ]  # fmt: skip


def test_a_backup_of_tasks_that_wrote_nothing_has_nothing_beside_it(
    backend: Backend, client: Client, tmp_path: Path
) -> None:
    client.add(1)
    client.store.output.prepare()
    copy = tmp_path / "saved" / backend.filename
    client.store.backup(copy)
    assert [path.name for path in copy.parent.iterdir()] == [backend.filename]
    assert not (copy / "output").exists()


def test_a_backup_has_what_tasks_wrote_that_come_and_go_meanwhile(
    backend: Backend, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (goes,) = client.add(1, claimed=True)
    client.end(Event.COMPLETE, goes, result="1")
    write_output(client.store, goes, b"it goes")
    (grows,) = client.add(2, claimed=True)
    write_output(client.store, grows, b"it grows")
    real = Output.take_in
    came: list[int] = []

    def change_after_first(self: Output, other: Output) -> None:
        real(self, other)
        if not came:
            came.extend(client.add(3, claimed=True))
            write_output(client.store, came[0], b"it came")
            write_output(client.store, grows, b", and has grown")
            client.store.purge(tick())

    monkeypatch.setattr(Output, "take_in", change_after_first)
    client.store.backup(tmp_path / "saved" / backend.filename)
    with contextlib.closing(backend.open(tmp_path / "saved" / backend.filename, create=False)) as saved:
        assert sorted(ids_of(saved)) == sorted([grows, *came])
        expected = {log_name(grows, 1): b"it grows, and has grown", log_name(came[0], 1): b"it came"}
        assert output_of(saved) == expected


def test_a_backup_that_failed_leaves_nothing_and_one_that_was_killed_is_no_hindrance(
    backend: Backend, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (done,) = client.add(1, claimed=True)
    write_output(client.store, done, b"text")
    copy = tmp_path / "saved" / backend.filename

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "sync", fail)
        with pytest.raises(StoreError, match="No space left"):
            client.store.backup(copy)
    assert list(copy.parent.iterdir()) == []
    if backend.name == "sqlite":  # as far as one came that was killed
        left = copy.with_name("store.db-output")
        left.mkdir(0o700)
        (left / log_name(done, 1)).write_bytes(b"te")
    client.store.backup(copy)
    with contextlib.closing(backend.open(copy, create=False)) as saved:
        assert output_of(saved) == {log_name(done, 1): b"text"}


# --- Check ---


def test_a_store_in_order_has_no_problems(client: Client, store: Store) -> None:
    one_in_each_state(client)
    client.add(1, key="monday")
    assert client.store.check() == store.check() == []


def test_what_a_task_wrote_that_is_gone_is_removed(client: Client) -> None:
    ids = one_in_each_state(client)
    for id in ids.values():
        write_output(client.store, id, b"text")
    assert client.store.check() == []
    expected = output_of(client.store)
    write_output(client.store, 77, b"text")
    write_output(client.store, 78, b"", attempt=9)
    assert client.store.check() == [Problem("2 files held what tasks wrote that are gone", True)]
    assert output_of(client.store) == expected
    assert client.store.check() == []


def test_a_dead_owner_is_found_and_forgotten(client: Client, other: Client) -> None:
    ids = other.add(1, 2, claimed=True)
    other.die()
    problems = client.store.check()
    assert all(problem.repaired for problem in problems)
    assert str(other.owner) in problems[0].what
    assert any("2 tasks were RUNNING" in what for what, _ in problems)
    assert [owner.id for owner in client.store.owners()] == [client.owner]
    assert client.statuses(ids) == [Status.PENDING] * 2
    assert client.store.check() == []


def test_what_runs_for_a_living_owner_is_no_problem(client: Client, start: Start) -> None:
    process = start("client = Client(backend, address)\nclient.add(1, claimed=True)\nready()\ninput()\n")
    assert client.store.check() == []
    assert client.store.counts() == {"work": {Status.RUNNING: 1}}
    process.communicate("end\n", timeout=30)


def test_tasks_that_run_for_nobody_are_pending_again(client: Client, other: Client, address: Path) -> None:
    ids = other.add(1, 2, claimed=True)
    if (address / "owners").exists():
        (address / "owners" / f"{other.owner}.json").unlink()
    else:
        with contextlib.closing(sqlite3.connect(address)) as plain, plain:
            plain.execute("DELETE FROM owner WHERE id = ?", (other.owner,))
    assert client.store.check() == [Problem("2 tasks were RUNNING though their owners are gone", True)]
    assert client.statuses(ids) == [Status.PENDING] * 2


def whats(problems: list[Problem], repaired: bool) -> str:
    return "\n".join(what for what, is_repaired in problems if is_repaired is repaired)


def test_damage_in_a_database_that_cannot_be_repaired_is_told_and_left(tmp_path: Path) -> None:
    backend = BACKENDS["sqlite"]
    client = Client(backend, backend.address(tmp_path))
    for n in range(400):
        client.add(n)
    client.stop()
    client.close()
    path = Path(client.store.address)
    content = bytearray(path.read_bytes())
    content[2048 * 30 : 2048 * 32] = b"\xff" * 4096
    path.write_bytes(content)
    with contextlib.closing(backend.open(path)) as store:
        assert whats(store.check(), repaired=False)
        assert whats(store.check(), repaired=True) == ""


def test_an_index_that_disagrees_with_its_table_is_made_anew(tmp_path: Path) -> None:
    backend = BACKENDS["sqlite"]
    client = Client(backend, backend.address(tmp_path))
    ids = client.add(*range(5))
    with contextlib.closing(sqlite3.connect(client.store.address, isolation_level=None)) as plain:
        plain.execute("PRAGMA writable_schema = ON")
        plain.execute(
            "UPDATE sqlite_master SET sql = replace(sql, 'status = 1', 'status = 2') WHERE name = 'claimable'"
        )
        plain.execute(
            "UPDATE sqlite_master SET sql = replace(sql, 'status = 2', 'status = 1') WHERE name = 'claimable'"
        )
        (root,) = plain.execute("SELECT rootpage FROM sqlite_master WHERE name = 'claimable'").fetchone()
    client.close()
    path = Path(client.store.address)
    with contextlib.closing(sqlite3.connect(path)) as plain:
        plain.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray(path.read_bytes())
    page = 2048 * (root - 1)
    content[page + 3 : page + 5] = b"\0\0"  # the index says that it has no entries
    path.write_bytes(content)
    with contextlib.closing(backend.open(path)) as store:
        problems = store.check()
        assert problems
        assert all(repaired for _, repaired in problems)
        assert store.check() == []
    again = Client(backend, path)
    assert again.claim() == ids
    again.close()


def test_rows_that_make_no_sense_are_counted(tmp_path: Path) -> None:
    backend = BACKENDS["sqlite"]
    client = Client(backend, backend.address(tmp_path))
    one, two, three, four = client.add(1, 2, 3, 4)
    with contextlib.closing(sqlite3.connect(client.store.address, isolation_level=None)) as plain:
        plain.execute("UPDATE task SET function = 99 WHERE id = ?", (one,))
        plain.execute("UPDATE task SET status = 9 WHERE id = ?", (two,))
        plain.execute("UPDATE task SET args = '[1' WHERE id >= ?", (three,))
    told = whats(client.store.check(), repaired=False)
    assert f"1 tasks, {format_id(one)} for one, cannot run, as the function is missing" in told
    assert f"1 tasks, {format_id(two)} for one, have a state" in told
    assert f"2 tasks, {format_id(three)} for one, have args that are not JSON" in told
    assert four
    client.close()


class Folder:
    """A file store with a task in each state, some more, and its folder."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.ids = one_in_each_state(client)
        (self.keyed,) = client.add(1, key="monday")
        self.path = Path(client.store.address)

    def file(self, status: Status) -> Path:
        return self.path / "tasks" / f"{format_id(self.ids[status])}.json"

    def check(self) -> list[Problem]:
        """As another process does, now and once more, when nothing is left that can be repaired."""
        with contextlib.closing(BACKENDS["file"].open(self.path)) as store:
            problems = store.check()
            assert whats(store.check(), repaired=True) == ""
            return problems


@pytest.fixture
def folder(tmp_path: Path) -> Any:
    backend = BACKENDS["file"]
    with contextlib.closing(Client(backend, backend.address(tmp_path))) as client:
        yield Folder(client)


def test_links_that_are_wrong_are_found_and_made_right(folder: Folder) -> None:
    failed, pending = folder.file(Status.FAILED).name, folder.file(Status.PENDING).name
    (folder.path / "failed" / failed).rename(folder.path / "pending" / failed)
    (folder.path / "pending" / pending).unlink()
    told = whats(folder.check(), repaired=True)
    assert f"tasks/{failed} was linked from the folder of another state" in told
    assert f"tasks/{pending} had no links" in told
    assert (folder.path / "failed" / failed).is_symlink()
    assert (folder.path / "pending" / pending).is_symlink()


def test_keys_are_linked_as_the_tasks_say(folder: Folder) -> None:
    (link,) = (folder.path / "keys").iterdir()
    link.unlink()
    (folder.path / "keys" / "0.json").symlink_to(f"../tasks/{format_id(folder.keyed)}.json")
    told = whats(folder.check(), repaired=True)
    assert f"the key of tasks/{format_id(folder.keyed)}.json was not linked" in told
    assert "keys/0.json is moved to broken/" in told
    assert [path.name for path in (folder.path / "keys").iterdir()] == [link.name]


def test_two_tasks_with_one_key_are_told(folder: Folder) -> None:
    file = folder.file(Status.CANCELLED)
    file.write_text(file.read_text().replace('"key": null', '"key": "monday"'))
    assert "has the key 'monday', and so has" in whats(folder.check(), repaired=False)


def test_a_damaged_task_is_restored_or_told_to_be_lost(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder.file(Status.COMPLETED)
    file.write_bytes(b"{")
    told = folder.check()
    assert "is as the journal has it" in whats(told, repaired=True)
    assert whats(told, repaired=False) == ""
    monkeypatch.setattr(journal, "ROTATE_BYTES", 0)
    folder.client.add(9)  # the journal begins anew, and knows no more of the task
    file.write_bytes(b"{")
    assert f"tasks/{file.name} is moved to broken/" in whats(folder.check(), repaired=False)
    assert whats(folder.check(), repaired=False) == ""


def test_a_function_that_is_missing_or_damaged_is_told(folder: Folder) -> None:
    function = folder.path / "functions" / f"{SQUARE.digest.hex()}.json"
    function.write_text("{}")
    told = whats(folder.check(), repaired=False)
    assert f"functions/{function.name} is moved to broken/" in told
    assert f"functions/{function.name} is missing; 6 tasks cannot run" in told
    assert "is missing" in whats(folder.check(), repaired=False)


def test_a_damaged_run_is_put_aside_and_others_can_begin(folder: Folder) -> None:
    run = folder.path / "runs" / f"{folder.client.run.id}.json"
    run.write_bytes(b"")
    shutil.copy(run, run.with_name("9.json.1.new"))
    assert f"runs/{run.name} is moved to broken/" in whats(folder.check(), repaired=False)
    assert list((folder.path / "runs").iterdir()) == []


def test_a_damaged_owner_keeps_what_it_runs_if_it_lives(folder: Folder) -> None:
    """Its lock proves that it does, though nobody knows any more what it is."""
    owner = folder.path / "owners" / f"{folder.client.owner}.json"
    code = "import sys; from omniq_executor import open_store; s = open_store(sys.argv[1]); print(s.check())"
    owner.write_text("[]")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code, folder.path], env=env, capture_output=True, text=True, timeout=60, check=True
    )
    assert f"owners/{owner.name} is moved to broken/" in done.stdout
    assert folder.client.store.get(folder.ids[Status.RUNNING]).status is Status.RUNNING


def test_a_turn_that_was_left_half_way_is_told(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    class Died(BaseException):
        pass

    def die(*_: Any) -> None:
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(folder.client.store._tasks.folders, "rewrite", die)  # type: ignore[attr-defined]
        with pytest.raises(Died):
            folder.client.end(Event.COMPLETE, folder.ids[Status.RUNNING], result="1")
    assert "1 turns in the journal had files left to write" in whats(folder.check(), repaired=True)


def test_a_check_may_be_asked_by_many_at_once(client: Client, backend: Backend, address: Path) -> None:
    one_in_each_state(client)
    found: list[list[Problem]] = []

    def check() -> None:
        with contextlib.closing(backend.open(address)) as store:
            found.append(store.check())

    threads = [threading.Thread(target=check) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[]] * 4
