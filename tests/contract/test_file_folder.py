"""What holds of the file store alone: what people and plain tools find there, and what damage it repairs."""

import base64
import contextlib
import errno
import json
import os
import pickle
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from backends import BACKENDS, CUBE, ERROR, SQUARE, Backend, Client, call, new_ids, tick

from omniq_executor import StoreError, StoreVersionError, TaskNotFound
from omniq_executor.model.codec import encode_call
from omniq_executor.model.task import Call, Event, Options, Status, format_id, iso
from omniq_executor.stores.base import Batch, Outcome, Turn
from omniq_executor.stores.file import journal
from omniq_executor.stores.file.store import FileStore
from omniq_executor.stores.file.tasks import VERSION

pytestmark = pytest.mark.once

FOLDERS = ("pending", "running", "completed", "failed", "cancelled")
Enter = Callable[..., Client]


@pytest.fixture
def backend() -> Backend:
    return BACKENDS["file"]


def name_of(id: int) -> str:
    return f"{format_id(id)}.json"


def fields_of(address: Path, id: int) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads((address / "tasks" / name_of(id)).read_text())
    return fields


def folders_of(address: Path, id: int) -> list[str]:
    """The folders that have a link to a task, each of which must be the right one."""
    linked = [folder for folder in (*FOLDERS, "waiting") if (address / folder / name_of(id)).is_symlink()]
    for folder in linked:
        assert os.readlink(address / folder / name_of(id)) == f"../tasks/{name_of(id)}"
    return linked


def one_in_each_state(client: Client) -> dict[str, int]:
    """A task in each state, by the name of its folder."""
    running, completed, failed = client.add(1, 2, 3, claimed=True)
    client.end(Event.COMPLETE, completed, result="4")
    client.end(Event.FAIL, failed)
    pending, cancelled = client.add(4, 5)
    client.store.cancel([cancelled], tick())
    return dict(zip(FOLDERS, (pending, running, completed, failed, cancelled), strict=True))


# --- What people find ---


def test_a_task_is_a_file_with_the_fields_that_people_know(client: Client, address: Path) -> None:
    (id,) = new_ids(1)
    now = tick()
    client.turn(now, adds=[Batch(id, 1, SQUARE, calls=[call(1, [2, {"a": None}], option=True)], claimed=True)])
    client.turn(now + 5, outcomes=[Outcome(id, 1, Event.COMPLETE, '{"ok":[1.5,"é"]}')])
    fields = fields_of(address, id)
    known = {
        "id": format_id(id), "func_path": "numbers.square", "args": [1, [2, {"a": None}]], "kwargs": {"option": True},
        "status": "COMPLETED", "attempts": 1, "max_retries": 0, "timeout": None, "eta": None, "interval": None,
        "enqueued_at": iso(now), "started_at": iso(now), "completed_at": iso(now + 5), "failed_at": None,
        "result": {"ok": [1.5, "é"]}, "error": None,
    }  # fmt: skip
    assert {name: fields[name] for name in known} == known
    assert list(fields)[: len(known)] == [
        *list(known)[:12], "completed_at", "failed_at", "cancelled_at", "result"
    ]  # fmt: skip
    text = (address / "tasks" / name_of(id)).read_text()
    assert '\n  "result": {"ok":[1.5,"é"]},\n' in text  # a line each, and readable


def test_an_error_is_there_as_text(client: Client, address: Path) -> None:
    (id,) = client.add(1, claimed=True)
    client.end(Event.FAIL, id)
    fields = fields_of(address, id)
    assert fields["error"] == {"type": ERROR.type, "message": ERROR.message, "traceback": ERROR.traceback}
    assert base64.b64decode(fields["exception_pickle"]) == ERROR.pickle
    assert fields["failed_at"]


def test_what_is_pickled_has_a_readable_preview_that_runs_nothing(client: Client, address: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(address / "sprung"),)

    (id,) = new_ids(1)
    args, kwargs = encode_call(((1, "two"), Trap()), {})
    assert isinstance(args, bytes)
    client.turn(adds=[Batch(id, 1, SQUARE, calls=[Call(args, kwargs, b"i" * 16)], claimed=True)])
    client.end(Event.COMPLETE, id, result=pickle.dumps({1, 2}))
    fields = fields_of(address, id)
    assert fields["args"].startswith("(((1, 'two'), posix.mkdir('")
    assert base64.b64decode(fields["args_pickle"]) == args
    assert fields["result"] == "{1, 2}"
    assert client.store.get(id).args == args
    assert not (address / "sprung").exists()


def test_a_task_is_linked_from_the_folder_of_its_status_alone(client: Client, address: Path) -> None:
    for folder, id in one_in_each_state(client).items():
        assert folders_of(address, id) == [folder]
        assert len(os.listdir(address / folder)) == 1


def test_the_plain_tools_of_the_shell_work(client: Client, address: Path) -> None:
    client.add(1, 2, 3)
    (running,) = client.claim(1)
    count = subprocess.run("ls pending | wc -l", shell=True, cwd=address, capture_output=True, text=True, check=True)
    assert count.stdout.strip() == "2"
    shown = subprocess.run(["cat", f"running/{name_of(running)}"], cwd=address, capture_output=True, check=True)
    assert json.loads(shown.stdout)["status"] == "RUNNING"


def test_a_copied_folder_is_a_store_with_the_same_tasks(client: Client, address: Path, tmp_path: Path) -> None:
    ids = one_in_each_state(client)
    subprocess.run(["cp", "-r", address, tmp_path / "copy"], check=True)
    with contextlib.closing(FileStore(tmp_path / "copy")) as copy:
        assert [copy.get(id) for id in ids.values()] == [client.store.get(id) for id in ids.values()]


# --- The cost of a claim ---


def test_a_claim_reads_the_files_that_it_takes_and_lists_nothing(
    client: Client, enter: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = client.add(*range(300))
    other = enter()  # which knows of no task yet
    assert other.claim(1) == ids[:1]  # now it does
    opened: list[Any] = []
    real_open = os.open

    def noted_open(path: Any, flags: int, *args: Any, **more: Any) -> int:
        opened.append(path)
        return real_open(path, flags, *args, **more)

    def refuse(*_: Any) -> Any:
        raise AssertionError("a claim lists no folder")

    monkeypatch.setattr(os, "open", noted_open)
    monkeypatch.setattr(os, "listdir", refuse)
    monkeypatch.setattr(os, "scandir", refuse)
    assert other.claim(5) == ids[1:6]
    tasks = [path for path in opened if str(path).startswith("task-")]
    assert sorted(tasks) == sorted(2 * [name_of(id) for id in ids[1:6]])  # read, and written


# --- Damage ---


@pytest.mark.parametrize("content", [b"", b"\0" * 700, b'{"id": "task-', b"[]", b"{}", b"\xff\xfe"], ids=repr)
@pytest.mark.parametrize("folder", ["pending", "running", "completed"])
def test_a_damaged_file_is_restored_from_the_journal(
    client: Client, address: Path, reopened: Any, folder: str, content: bytes
) -> None:
    id = one_in_each_state(client)[folder]
    before = client.store.get(id)
    (address / "tasks" / name_of(id)).write_bytes(content)
    assert reopened().get(id) == before
    assert fields_of(address, id)["status"] == before.status.name


@pytest.mark.parametrize("content", [b"", b"\0" * 700, b'{"id": "task-'], ids=repr)
def test_a_damaged_file_that_cannot_be_restored_is_put_aside_and_the_rest_goes_on(
    client: Client,
    address: Path,
    reopened: Any,
    content: bytes,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bad, good = client.add(1, 2)
    monkeypatch.setattr(journal, "ROTATE_BYTES", 0)
    client.add(3)  # after this the journal knows of none of them
    (address / "tasks" / name_of(bad)).write_bytes(content)
    store = reopened()
    owner = store.enter("work")
    run = store.begin_run("work", owner, "never", tick())
    assert [task.id for task in store.turn(owner, run, turn_with_claim(2)).claimed] == [good, good + 1]
    with pytest.raises(TaskNotFound):
        store.get(bad)
    assert (address / "broken" / f"tasks.{name_of(bad)}").read_bytes() == content
    assert folders_of(address, bad) == []
    assert f"broken/tasks.{name_of(bad)}" in caplog.text


def turn_with_claim(most: int) -> Turn:
    return Turn(tick(), claim=most)


def test_what_is_no_task_is_put_aside(client: Client, address: Path, reopened: Any) -> None:
    ids = one_in_each_state(client)
    (address / "tasks" / "notes.txt").write_text("hello")
    (address / "tasks" / "task-0.json").mkdir()
    (address / "pending" / "task-0.json").symlink_to("../tasks/task-0.json")
    (address / "running" / name_of(ids["running"] + 77)).symlink_to(f"../tasks/{name_of(ids['running'] + 77)}")
    (address / "failed" / "a").symlink_to("b")
    (address / "failed" / "b").symlink_to("a")
    (address / "completed" / "readme").write_text("mine")
    (address / "cancelled" / "folder").mkdir()
    (address / "tasks" / name_of(ids["pending"] + 99)).symlink_to("/etc/passwd")
    store = reopened()  # which does not look for it
    assert store.counts() == {"work": dict.fromkeys(Status, 1)}
    assert len(store.check()) == 9
    assert store.counts() == {"work": dict.fromkeys(Status, 1)}
    assert sorted(os.listdir(address / "broken")) == sorted([
        "tasks.notes.txt", "tasks.task-0.json", "pending.task-0.json", f"running.{name_of(ids['running'] + 77)}",
        "failed.a", "failed.b", "completed.readme", "cancelled.folder", f"tasks.{name_of(ids['pending'] + 99)}",
    ])  # fmt: skip
    assert {folder: len(os.listdir(address / folder)) for folder in FOLDERS} == dict.fromkeys(FOLDERS, 1)


@pytest.mark.parametrize("is_by_doctor", [True, False])
@pytest.mark.parametrize("wrong", FOLDERS)
@pytest.mark.parametrize("right", FOLDERS)
def test_links_are_repaired_as_the_file_says(
    client: Client, address: Path, reopened: Any, right: str, wrong: str, is_by_doctor: bool
) -> None:
    """By a doctor, and by whoever asks for what is in a state of which there are more or fewer than are counted."""
    ids = one_in_each_state(client)
    link = address / right / name_of(ids[right])
    if wrong == right:
        link.unlink()  # in none
    else:
        (address / wrong / link.name).symlink_to(f"../tasks/{link.name}")  # in two
    if is_by_doctor:
        assert [problem.repaired for problem in reopened().check()] == [True]
    else:
        assert [task.id for task in reopened().find(Status[wrong.upper()])] == [ids[wrong]]
    assert folders_of(address, ids[right]) == [right]


def test_a_link_in_the_wrong_folder_does_not_make_a_finished_task_run_again(
    client: Client, address: Path, reopened: Any
) -> None:
    ids = one_in_each_state(client)
    name = name_of(ids["completed"])
    (address / "completed" / name).rename(address / "pending" / name)
    store = reopened()
    owner = store.enter("work")
    run = store.begin_run("work", owner, "never", tick())
    assert [task.id for task in store.turn(owner, run, turn_with_claim(9)).claimed] == [ids["pending"]]
    assert folders_of(address, ids["completed"]) == ["completed"]


def test_folders_that_are_missing_are_made_again(client: Client, address: Path, reopened: Any) -> None:
    ids = one_in_each_state(client)
    client.close()
    for folder in FOLDERS:
        shutil.rmtree(address / folder)
    assert reopened().counts() == {"work": dict.fromkeys(Status, 1)}
    for folder, id in ids.items():
        assert folders_of(address, id) == [folder]


def test_task_ids_are_checked_before_a_path_is_made(store: FileStore, address: Path) -> None:
    (address.parent / "secret.json").write_text("{}")
    for id in ("../../secret", "task-../../secret", "task-0000000000000/", "", "task-" + "0" * 12 + "\0"):
        with pytest.raises(ValueError, match="is not a task id"):
            store.get(id)


# --- The journal ---


def test_a_turn_that_is_in_the_journal_alone_is_finished_by_whoever_comes_next(
    client: Client, address: Path, reopened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the process had died right after its commit."""
    first, second = client.add(1, 2, claimed=True)
    with monkeypatch.context() as patch:

        def die(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(client.store._tasks.folders, "rewrite", die)  # type: ignore[attr-defined]
        with pytest.raises(KeyboardInterrupt):
            client.end(Event.COMPLETE, first, second, result="7")
    assert fields_of(address, first)["status"] == "RUNNING"
    store = reopened()
    for id in (first, second):
        assert store.get(id).result == "7"
        assert folders_of(address, id) == ["completed"]
        assert fields_of(address, id)["status"] == "COMPLETED"


def test_a_torn_entry_was_never_committed(client: Client, address: Path, reopened: Any) -> None:
    (id,) = client.add(1)
    path = address / "journal"
    whole = path.stat().st_size
    with path.open("ab") as file:
        file.write(b"0 700 12345\n{ half of")
    store = reopened()
    assert store.counts() == {"work": {Status.PENDING: 1}}
    assert path.stat().st_size == whole
    assert client.claim() == [id]


def test_after_a_new_start_of_the_machine_all_of_the_journal_is_applied_again(
    client: Client, address: Path, reopened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cut of the power keeps what was synced, which is the journal, and nothing else for sure."""
    ids = one_in_each_state(client)
    before = [client.store.get(id) for id in ids.values()]
    client.close()
    (address / "tasks" / name_of(ids["completed"])).write_bytes(b"")
    (address / "tasks" / name_of(ids["failed"])).unlink()
    (address / "failed" / name_of(ids["failed"])).unlink()
    monkeypatch.setattr(journal, "_boot_id", lambda: "another")
    store = reopened()
    assert [store.get(id) for id in ids.values()] == before
    for folder, id in ids.items():
        assert folders_of(address, id) == [folder]


def test_others_read_on_when_the_journal_is_begun_anew(
    client: Client, other: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = client.add(*range(4))
    monkeypatch.setattr(journal, "ROTATE_BYTES", 0)
    other.claim(2)
    assert client.claim(1) == [ids[2]]
    other.end(Event.COMPLETE, ids[0], result="1")  # two beginnings, of which the other has missed one
    other.end(Event.COMPLETE, ids[1], result="2")
    assert set(client.store.read_changes(client.owner)) >= {ids[0], ids[1]}
    assert client.claim(5) == [ids[3]]
    assert client.statuses(ids) == [Status.COMPLETED, Status.COMPLETED, Status.RUNNING, Status.RUNNING]


def test_a_journal_that_is_begun_anew_stays_short(
    client: Client, address: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "ROTATE_BYTES", 10_000)
    for n in range(40):
        client.end(Event.COMPLETE, *client.add(n, claimed=True), result="1")
    assert (address / "journal").stat().st_size < 14_000
    assert client.store.counts() == {"work": {Status.COMPLETED: 40}}


# --- What waits for others ---


def add_waiting(client: Client, *after: int, eta: int = 0) -> int:
    (id,) = new_ids(1)
    client.turn(adds=[Batch(id, 1, SQUARE, calls=[call(1)], eta=eta, options=Options(after=after))])
    return id


def test_what_waits_is_linked_from_a_folder_of_its_own(client: Client, address: Path) -> None:
    (first,) = client.add(1, claimed=True)
    eta = tick()
    id = add_waiting(client, first, eta=eta)
    assert folders_of(address, id) == ["waiting"]
    fields = fields_of(address, id)
    assert (fields["status"], fields["after"], fields["waiting"], fields["eta"]) == (
        "PENDING", [format_id(first)], True, iso(eta),
    )  # fmt: skip
    client.end(Event.COMPLETE, first, result="1")
    assert folders_of(address, id) == ["pending"]
    assert "waiting" not in fields_of(address, id)
    assert fields_of(address, id)["eta"] == iso(eta)


def test_links_of_what_waits_are_repaired(client: Client, address: Path, reopened: Callable[[], FileStore]) -> None:
    (first,) = client.add(1, claimed=True)
    id = add_waiting(client, first)
    os.rename(address / "waiting" / name_of(id), address / "pending" / name_of(id))
    assert any(problem.repaired for problem in reopened().check())
    assert folders_of(address, id) == ["waiting"]
    client.end(Event.COMPLETE, first, result="1")
    assert client.claim() == [id]


def test_who_waits_for_what_is_gone_is_found(client: Client, address: Path) -> None:
    (first,) = client.add(1, claimed=True)
    id = add_waiting(client, first)
    (address / "tasks" / name_of(first)).unlink()
    client.reopen()
    problems = client.store.check()
    assert [problem.what for problem in problems if "waited for what is finished" in problem.what]
    assert not client.store.get(id).options.due  # type: ignore[union-attr]
    assert client.store.check() == []


# --- Whose folder it is ---


@pytest.mark.parametrize("version", range(1, VERSION))
def test_a_store_of_an_older_version_is_brought_up_to_date(
    client: Client, backend: Backend, address: Path, version: int
) -> None:
    """Which had no sessions, no contexts and other lines in its order; and the first one no folder of what waits."""
    done, later = client.add(1, 2)
    client.claim(1)
    client.end(Event.COMPLETE, done, result="1")
    client.stop(clean=False)
    runs = client.store.runs()
    client.close()
    mark = address / "omniq.json"
    mark.write_text(mark.read_text().replace(f'"version": {VERSION}', f'"version": {version}'))
    (address / "order").write_text(f'\n[0,0,{done},"work"]\n\n[0,0,{later},"work"]\n')
    (address / "sessions").rmdir()
    if version < 2:
        (address / "waiting").rmdir()
    run = address / "runs" / f"{client.run.id}.json"
    run.write_text(
        json.dumps(
            {k: v for k, v in json.loads(run.read_text()).items() if k not in ("session", "context", "result_ttl")}
        )
    )
    with contextlib.closing(FileStore(address)) as store:
        assert store.check() == []
        assert store.ids() == [done, later]
        assert store.runs() == runs
    assert json.loads(mark.read_text())["version"] == VERSION
    with contextlib.closing(Client(backend, address)) as after:
        assert (after.run.continues, after.run.done) == ((client.run.id,), 1)
        assert after.claim() == [later]
        assert after.end(Event.COMPLETE, later, result="1") == set()
        assert after.stop() == []
        assert [run.settled for run in after.store.runs()] == [True, True]


def test_a_store_of_a_newer_version_is_refused(store: FileStore, address: Path) -> None:
    mark = address / "omniq.json"
    mark.write_text(re.sub(r'"version": \d+', '"version": 99', mark.read_text()))
    with pytest.raises(StoreVersionError, match=f"{address} has version 99.*install"):
        FileStore(address)


def test_a_folder_with_other_files_is_refused_and_left_alone(address: Path) -> None:
    address.mkdir(parents=True)
    (address / "thesis.txt").write_text("years of work")
    with pytest.raises(StoreError, match=r"holds other files, 'thesis.txt'.*folder of its own"):
        FileStore(address)
    assert os.listdir(address) == ["thesis.txt"]


def test_a_folder_that_was_only_half_made_is_made_whole(store: FileStore, address: Path, reopened: Any) -> None:
    store.close()
    for folder in ("tasks", "completed"):
        (address / folder).rmdir()
    (address / "journal").unlink()
    (address / "omniq.json").write_bytes(b"")
    assert reopened().counts() == {}


def test_the_same_function_is_kept_once(client: Client, address: Path) -> None:
    client.add(1, 2)
    client.add(3, function=CUBE)
    client.add(4)
    assert len(os.listdir(address / "functions")) == 2


def test_files_that_could_not_be_written_are_written_though_a_turn_after_it_wrote_its_own(
    client: Client, address: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both turns under one lock. The mark of the second said that all files are written, so the first were not."""

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    first, second = client.add(1, 2, claimed=True)
    tasks = cast("FileStore", client.store)._tasks
    with tasks.locked():
        with monkeypatch.context() as patched:
            patched.setattr(tasks.folders, "rewrite", refuse)
            client.end(Event.COMPLETE, first, result="1")
        client.end(Event.COMPLETE, second, result="4")
    client.reopen()
    assert client.statuses([first, second]) == [Status.COMPLETED] * 2
    assert [fields_of(address, id)["status"] for id in (first, second)] == ["COMPLETED"] * 2
    assert folders_of(address, first) == ["completed"]
