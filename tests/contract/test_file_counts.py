"""What a file store keeps of how many tasks it has, and that nobody lists or reads what it does not need to."""

import contextlib
import json
import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from backends import BACKENDS, CUBE, SQUARE, Backend, Client, call, new_ids, tick

from omniq_executor import StoreError, StoreVersionError
from omniq_executor.model.task import Event, Options, Status, format_id
from omniq_executor.stores import permissions
from omniq_executor.stores.base import Batch
from omniq_executor.stores.file import journal
from omniq_executor.stores.file.counts import Kept, differences
from omniq_executor.stores.file.folders import Folders
from omniq_executor.stores.file.store import FileStore
from omniq_executor.stores.glances import Wanted
from omniq_executor.stores.reserve import size_on_disk

pytestmark = pytest.mark.once

Counts = dict[str, dict[Status, int]]


@pytest.fixture
def backend() -> Backend:
    return BACKENDS["file"]


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The folders that have been listed."""
    folders: list[Any] = []

    def noting(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def noted(folder: Any) -> Any:
            folders.append(folder)
            return original(folder)

        return noted

    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, noting(getattr(os, name)))
    return folders


def name_of(id: int) -> str:
    return f"{format_id(id)}.json"


def in_files(address: Path) -> Counts:
    """The counts, as the files of the tasks have it."""
    counts: Counts = {}
    for path in sorted((address / "tasks").iterdir()):
        fields = json.loads(path.read_text())
        of_queue = counts.setdefault(fields["queue"], {})
        of_queue[Status[fields["status"]]] = of_queue.get(Status[fields["status"]], 0) + 1
    return counts


def some_of_all(client: Client) -> list[int]:
    """Have something in each state; return all ids."""
    ids = client.add(*range(8))
    assert client.claim(5) == ids[:5]
    client.end(Event.COMPLETE, *ids[:2], result="1")
    client.end(Event.FAIL, ids[2])
    client.store.cancel(ids[5:6], tick())
    return ids


EXPECTED = {"work": {Status.PENDING: 2, Status.RUNNING: 2, Status.COMPLETED: 2, Status.FAILED: 1, Status.CANCELLED: 1}}


# --- What is not read, and not listed ---


def test_opening_lists_nothing(client: Client, address: Path, reopened: Any, listed: list[Any]) -> None:
    some_of_all(client)
    client.close()
    listed.clear()
    store = reopened()
    assert listed == []
    assert store.counts() == EXPECTED
    assert store.unfinished() == {client.run.id: 4}
    assert listed == []


def test_counts_read_no_task(client: Client, reopened: Any, read: list[int]) -> None:
    ids = some_of_all(client)
    client.end(Event.COMPLETE, *ids[3:5], result="1")
    client.stop()
    store = reopened()
    read.clear()
    assert store.counts()["work"][Status.COMPLETED] == 4
    assert store.unfinished() == {client.run.id: 2}
    store.usage()
    assert read == [ids[0]]  # the oldest one, for its age


def test_usage_is_what_the_folder_takes(client: Client, address: Path, reopened: Any) -> None:
    ids = client.add(*range(300), claimed=True)
    client.end(Event.COMPLETE, *ids[:200], result=json.dumps("x" * 6000))
    client.end(Event.FAIL, *ids[200:])
    client.store.remove(ids[:50])
    usage = reopened().usage()
    assert usage.size == pytest.approx(size_on_disk(address), rel=0.01)
    assert usage.size > 150 * 8000


def test_what_unfinished_ones_need_is_not_to_go(client: Client, reopened: Any) -> None:
    first, second, _ = client.add(1, 2, 3, claimed=True)
    client.end(Event.COMPLETE, first, second, result="1")
    before = client.store.runs()[0]
    (id,) = new_ids(1)
    client.turn(adds=[Batch(id, 1, SQUARE, calls=[call(1)], options=Options(after=(first,)))])
    run = {**before._asdict(), "settled": True, "clean": True, "ended_at": tick(), "result_ttl": 10}
    client.store.put(runs=[type(before)(**run)])
    assert [many for _, many in reopened().usage().expiring] == [1]
    client.store.cancel([id], tick())
    assert [many for _, many in reopened().usage().expiring] == [3]


def test_a_glance_has_the_counts_without_a_look_at_the_tasks(
    client: Client, address: Path, listed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    some_of_all(client)
    client.close()
    listed.clear()
    with (address / "journal").open("ab") as file:
        file.write(b"7 900 12345 20\n[[")  # somebody is just writing
    assert client.store._glance(Wanted(counts=True)).counts == EXPECTED
    assert listed == []
    (address / "journal").unlink()
    assert client.store._glance(Wanted(counts=True)).counts == {"": EXPECTED["work"]}
    assert listed != []
    monkeypatch.setattr("omniq_executor.stores.file.glance.GLANCE_S", -1)
    client.store.path.joinpath("journal").write_bytes(b"\0" * 200)
    some = client.store.path / "pending"
    for n in range(1000):
        (some / f"{n}").touch()
    assert client.store._glance(Wanted(counts=True)).counts is None


# --- That they are right ---


def test_several_handles_agree_while_the_journal_is_begun_anew(
    client: Client, enter: Callable[..., Client], address: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "ROTATE_BYTES", 6000)
    others = [client, enter("other"), enter()]
    rotations = set()
    for n in range(30):
        at = others[n % 3]
        ids = at.add(*range(3), claimed=True, function=CUBE)
        at.end(Event.COMPLETE, ids[0], result="1")
        at.end(Event.FAIL, ids[1])
        if n % 4 == 0:
            at.store.remove(ids[:1])
        if n % 5 == 0:
            others[1].reopen()
        rotations.add((address / "journal").read_bytes()[:44].split()[2])
        assert others[(n + n // 3) % 3].store.counts() == in_files(address)
    assert len(rotations) > 10
    assert [it.store.counts() for it in others] == 3 * [in_files(address)]
    assert client.store.check() == []


def test_a_turn_that_is_refused_changes_no_counts(
    client: Client, other: Client, reopened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.add(1, 2)
    assert client.store.counts() == other.store.counts() == {"work": {Status.PENDING: 2}}

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Folders, "create", refuse)
        with pytest.raises(StoreError):
            client.add(3)
    for store in (client.store, other.store, reopened()):
        assert store.counts() == {"work": {Status.PENDING: 2}}
        with monkeypatch.context() as patch, client.store._tasks.locked():  # type: ignore[attr-defined]
            client.store._tasks.counts.note(None)  # type: ignore[attr-defined]
            patch.setattr(Folders, "create", refuse)
            with pytest.raises(OSError, match="No space"):
                client.add(3)
        assert b"\nnull" in client.store.path.joinpath("journal").read_bytes()  # that is not taken back with it


def test_a_queue_may_have_any_name(enter: Callable[..., Client], reopened: Any) -> None:
    for name in ('a "b" \\ {\n}\n', "é\U0001f40d\x00"):
        enter(name).add(1)
        assert reopened().counts()[name] == {Status.PENDING: 1}


# --- Deaths ---


class Death(BaseException):
    """Of a process, at some point: nothing that it would do later is done."""


@pytest.mark.parametrize("point", ["before the new journal", "before it takes its place", "after it has"])
def test_a_death_while_the_journal_is_begun_anew(
    client: Client, address: Path, reopened: Any, read: list[int], monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    ids = some_of_all(client)
    write_whole = permissions.write_whole

    def die(path: Path, data: bytes, durable: bool) -> None:
        if path.name == "journal":
            if point == "before it takes its place":
                (address / "journal.new").write_bytes(data)
            elif point == "after it has":
                write_whole(path, data, durable)
            raise Death
        write_whole(path, data, durable)

    with monkeypatch.context() as patch:
        patch.setattr(journal, "ROTATE_BYTES", 0)
        patch.setattr(permissions, "write_whole", die)
        with pytest.raises(Death):
            client.end(Event.COMPLETE, ids[3], result="1")
    expected = {"work": {**EXPECTED["work"], Status.RUNNING: 1, Status.COMPLETED: 3}}
    store = reopened()
    read.clear()
    assert store.counts() == in_files(address) == expected
    assert read == []  # they are known
    store.cancel(ids[6:7], tick())
    assert reopened().counts() == in_files(address) == client.store.counts()
    assert client.store.check() == []


@pytest.mark.parametrize("durable", [False, True])
def test_counts_are_unknown_after_a_new_start_of_the_machine(
    client: Client, address: Path, read: list[int], monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    """Files may be as they were before turns that no journal has any more."""
    ids = some_of_all(client)
    monkeypatch.setattr(journal, "ROTATE_BYTES", 0)
    client.add(9)
    before = (address / "tasks" / name_of(ids[3])).read_bytes()
    client.end(Event.COMPLETE, ids[3], result="1")
    client.close()
    (address / "tasks" / name_of(ids[3])).write_bytes(before)
    monkeypatch.setattr(journal, "_boot_id", lambda: "another")
    with contextlib.closing(FileStore(address, durability="power" if durable else "process")) as store:
        assert store.counts() == in_files(address)
        assert store.counts()["work"][Status.RUNNING] == 2
    read.clear()
    with contextlib.closing(FileStore(address)) as store:
        assert store.counts() == in_files(address)
        assert read == []
        assert store.check() == []


@pytest.mark.parametrize("died_at", ["check", "mark_boot"])
def test_who_dies_over_the_opening_leaves_it_to_the_next(
    client: Client, address: Path, monkeypatch: pytest.MonkeyPatch, died_at: str
) -> None:
    ids = some_of_all(client)
    client.close()
    for path in (address / "pending").iterdir():
        path.unlink()
    (address / "pending").rmdir()

    def die(*_: Any) -> None:
        raise Death

    with monkeypatch.context() as patch:
        patch.setattr(Folders if died_at == "check" else journal.Journal, died_at, die)
        with pytest.raises(Death):
            FileStore(address)
    with contextlib.closing(FileStore(address)) as store:
        assert {*os.listdir(address / "pending")} == {*map(name_of, ids[6:])}
        assert store.counts() == EXPECTED


# --- Where they are not known ---


def as_of_an_older_version(address: Path) -> None:
    """Write the journal as the first version of it did, which said nothing of counts."""
    path = address / "journal"
    header, data = path.read_bytes()[:128], path.read_bytes()[128:]
    text = b""
    for by, texts, _ in journal.parse_entries(data)[0]:
        body = b"".join(texts)
        text += b"%d %d %d\n%b" % (by, len(body), zlib.crc32(body), body)
    header = re.sub(rb" 0{5}%d " % journal.VERSION, b" 000001 ", header)
    header = header[:42].rpartition(b" ")[0] + b" %020d" % (128 + len(text)) + header[62:]
    path.write_bytes(header[:127].ljust(127) + b"\n" + text)


def test_counts_of_an_older_store_are_counted_once(client: Client, address: Path, read: list[int]) -> None:
    ids = some_of_all(client)
    client.close()
    as_of_an_older_version(address)
    read.clear()
    for expected in (ids, []):
        with contextlib.closing(FileStore(address)) as store:
            assert store.counts() == EXPECTED
        assert sorted(read) == expected
        read.clear()
    with contextlib.closing(FileStore(address)) as store:
        assert store.check() == []


def test_what_an_older_version_adds_that_is_still_there_is_counted(client: Client, address: Path) -> None:
    (id,) = client.add(1)
    text = (address / "tasks" / name_of(id)).read_bytes()
    changed = text.replace(b'"status": "PENDING"', b'"status": "CANCELLED"').replace(b'"version": 1', b'"version": 2')
    assert client.store.counts() == {"work": {Status.PENDING: 1}}
    with (address / "journal").open("ab") as file:  # as one does that has opened the store before it was brought up
        file.write(b"0 %d %d\n%b" % (len(changed), zlib.crc32(changed), changed))
    assert client.store.counts() == {"work": {Status.CANCELLED: 1}}
    assert client.store.check()[0].what == "1 turns in the journal had files left to write"


def test_an_older_version_reads_no_entry_of_this_one(client: Client, address: Path, reopened: Any) -> None:
    """It would take it for torn, and cut it off."""
    client.close()
    as_of_an_older_version(address)
    reopened()
    assert (address / "journal").read_bytes()[:20].split()[1] == b"%06d" % journal.VERSION
    with (address / "journal").open("r+b") as file:
        file.write(b"omniq-journal %06d" % (journal.VERSION + 1))
    with pytest.raises(StoreVersionError, match="the journal has version"):
        reopened()


def test_counts_are_found_again_without_a_journal(client: Client, address: Path, reopened: Any) -> None:
    some_of_all(client)
    client.close()
    (address / "journal").unlink()
    assert reopened().counts() == EXPECTED
    assert reopened().check() == []


def test_a_task_that_is_put_aside_is_not_counted(
    client: Client, address: Path, reopened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = some_of_all(client)
    monkeypatch.setattr(journal, "ROTATE_BYTES", 0)
    client.end(Event.COMPLETE, ids[3], result="1")  # after this the journal knows of none of them
    (address / "tasks" / name_of(ids[0])).write_bytes(b"")
    store = reopened()
    assert len(store.find(Status.COMPLETED)) == 2
    assert store.counts() == client.store.counts() == reopened().counts() == in_files(address)


@pytest.mark.parametrize("what", ["link", "folder", "pipe"])
def test_what_is_no_file_is_put_aside_when_it_is_read(client: Client, address: Path, reopened: Any, what: str) -> None:
    some_of_all(client)
    path = address / "tasks" / name_of(new_ids(1)[0])
    {"link": lambda: path.symlink_to("/etc/passwd"), "folder": path.mkdir, "pipe": lambda: os.mkfifo(path)}[what]()
    store = reopened()
    assert len(store.find()) == 8
    assert os.listdir(address / "broken") == [f"tasks.{path.name}"]
    assert store.counts() == EXPECTED


# --- Links that somebody has removed ---


def test_a_claim_finds_a_task_that_has_lost_its_link(client: Client, address: Path, enter: Any) -> None:
    ids = client.add(1, 2, 3)
    (address / "pending" / name_of(ids[1])).unlink()
    other = enter()
    assert other.claim() == ids
    assert [problem.repaired for problem in other.store.check()] == [True]


def test_what_a_dead_owner_ran_is_found_without_its_link(client: Client, address: Path, enter: Any) -> None:
    dead = enter()
    (id,) = dead.add(1, claimed=True)
    (address / "running" / name_of(id)).unlink()
    dead.die()
    assert client.store.reap(tick()) == 1
    assert client.store.get(id).status is Status.PENDING


def test_a_task_that_is_removed_with_its_link_is_counted_no_more(client: Client, address: Path, reopened: Any) -> None:
    ids = client.add(1, 2, 3)
    for folder in ("tasks", "pending"):
        (address / folder / name_of(ids[1])).unlink()
    store = reopened()
    assert [task.id for task in store.find(Status.PENDING)] == [ids[0], ids[2]]
    assert store.counts() == {"work": {Status.PENDING: 2}}


def test_a_key_whose_task_is_removed_is_free(client: Client, address: Path, enter: Any) -> None:
    (id,) = client.add(1, key="k")
    client.close()
    for folder in ("tasks", "pending"):
        (address / folder / name_of(id)).unlink()
    other = enter()
    assert other.store.by_key("work", "k") is None
    (again,) = other.add(1, key="k")
    assert other.store.by_key("work", "k").id == again


def test_what_could_not_be_written_is_not_counted_as_it_was(
    client: Client, address: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    id, _ = client.add(1, 2, claimed=True)
    tasks: Any = client.store._tasks  # type: ignore[attr-defined]

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with tasks.locked():
        with monkeypatch.context() as patch:
            patch.setattr(Folders, "rewrite", refuse)
            client.end(Event.COMPLETE, id, result="1")
        assert [record.task.id for record in tasks.all(Status.COMPLETED)] == [id]
    assert client.store.counts() == in_files(address) == {"work": {Status.RUNNING: 1, Status.COMPLETED: 1}}


# --- The doctor ---


def test_counts_that_are_wrong_are_found_and_made_right(client: Client, reopened: Any) -> None:
    some_of_all(client)
    tasks: Any = client.store._tasks  # type: ignore[attr-defined]
    with tasks.locked():
        wrong = {key: [*row] for key, row in tasks.counts.now().items()}
        wrong["work", client.run.id, int(Status.FAILED)][0] += 3
        wrong["gone", 1, int(Status.PENDING)] = [1, 1, 0, 0, 0]
        tasks.counts.note(wrong)
    assert reopened().counts() != EXPECTED
    (problem,) = reopened().check()
    assert problem.repaired
    assert problem.what == (
        "the counts that are kept were wrong: 1 PENDING in queue 'gone' of run 1 instead of 0;"
        f" 4 FAILED in queue 'work' of run {client.run.id} instead of 1"
    )
    assert client.store.counts() == reopened().counts() == EXPECTED
    assert reopened().check() == []


def test_what_is_reckoned_only_is_no_difference() -> None:
    kept = {("q", 1, 3): [1, 2, 1, 0, 70]}
    assert differences(kept, {("q", 1, 3): [1, 1, 1, 0, 60]}) == []
    assert differences(kept, {("q", 1, 3): [1, 2, 0, 0, 70]}) != []


def test_counts_of_very_many_runs_do_not_have_the_journal_begun_anew_each_turn(
    client: Client, address: Path, reopened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "ROTATE_BYTES", 5000)
    tasks: Any = client.store._tasks  # type: ignore[attr-defined]
    with tasks.locked():
        tasks.counts.note({("work", run, 3): [1, 1, 1, 0, 0] for run in range(1000)})
        tasks.counts.rotate()
    for store in (client.store, reopened()):
        kept: Kept = store._tasks.counts
        with store._tasks.locked():
            assert kept.now() is not None
            assert not store._tasks.journal.is_long
    generation = (address / "journal").read_bytes()[:42]
    client.add(1)
    assert (address / "journal").read_bytes()[:42] == generation
