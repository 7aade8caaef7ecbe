"""The order of claims that a file store keeps in a file: it saves reading what is PENDING, and may be lost."""

import contextlib
import json
import os
from pathlib import Path

import pytest
from backends import BACKENDS, SQUARE, Backend, Client, call, new_ids, tick

from omniq_executor import StoreError
from omniq_executor.model.task import Event, Status, format_id
from omniq_executor.stores.base import Batch
from omniq_executor.stores.file import journal, ready_index as order
from omniq_executor.stores.file.store import FileStore

pytestmark = pytest.mark.once


@pytest.fixture
def backend() -> Backend:
    return BACKENDS["file"]


def add(client: Client, *, priority: int = 0, eta: int = 0, count: int = 1) -> list[int]:
    ids = new_ids(count)
    calls = [call(n) for n in range(count)]
    client.turn(adds=[Batch(ids[0], count, SQUARE, calls=calls, priority=priority, eta=eta)])
    return list(ids)


def lines(address: Path) -> list[int]:
    """The tasks that the file names, once for each line."""
    return [json.loads(line)[2] for line in (address / "order").read_text().split("\n") if line]


def test_the_first_claim_of_a_process_reads_the_files_of_what_it_takes(
    client: Client, other: Client, read: list[int]
) -> None:
    ids = add(client, count=500)
    (urgent,) = add(client, priority=1)
    assert read == []
    other.reopen()
    assert other.claim(3) == [urgent, *ids[:2]]
    assert sorted(read) == sorted([urgent, *ids[:2]])


def test_what_ended_or_was_retried_is_where_it_belongs(client: Client, read: list[int]) -> None:
    first, second, third = add(client, count=3)
    client.claim()
    later = tick() + 10**9
    client.end(Event.COMPLETE, first, result="1")
    client.end(Event.RELEASE, second)
    client.end(Event.FAIL, third)
    client.store.retry([third], tick())
    (waits,) = add(client, eta=later)
    client.reopen()
    read.clear()
    assert client.claim() == [second, third]
    assert set(read) == {second, third}
    assert client.turn(claim=1).due == later
    assert [claimed.id for claimed in client.turn(later, claim=1).claimed] == [waits]


@pytest.mark.parametrize(
    "damage", ["missing", "empty", "torn", "NUL", "garbage", "nested", "of other types", "without line ends"]
)
def test_what_is_missing_in_the_order_is_read_once(client: Client, address: Path, read: list[int], damage: str) -> None:
    ids = add(client, count=3)
    (urgent,) = add(client, priority=7)
    client.close()
    path = address / "order"
    text = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(
            {
                "empty": b"",
                "torn": text[: len(text) // 2],
                "NUL": text[:70] + bytes(len(text) - 70),
                "garbage": os.urandom(200) + b"\n[]\n{}\n[1, 2]\n" + text[9:],
                "nested": b"[" * 200_000 + text,
                "of other types": text.replace(b"[", b"[true,").replace(b'"', b""),
                "without line ends": text.replace(b"\n", b""),
            }[damage]
        )
    client.reopen()
    assert client.claim(1) == [urgent]
    client.reopen()
    read.clear()
    assert client.claim() == ids
    assert sorted(read) == ids


def test_a_torn_line_does_not_spoil_the_next(client: Client, other: Client, address: Path, read: list[int]) -> None:
    (first,) = add(client)
    with (address / "order").open("a") as file:
        file.write("[0,0,12")  # somebody died over it
    (second,) = add(client)
    other.reopen()
    read.clear()
    assert other.claim() == [first, second]
    assert sorted(read) == [first, second]  # to claim them; before, they would have been read twice


def test_a_task_that_never_came_is_passed_over(client: Client, address: Path) -> None:
    ids = new_ids(3)
    with (address / "order").open("a") as file:
        file.write("".join(f'[0,0,{id},"work"]\n' for id in ids))
    (id,) = add(client)
    client.reopen()
    assert client.claim() == [id]


@pytest.mark.parametrize("change", ["priority", "eta", "queue"])
def test_what_was_edited_by_hand_is_claimed_by_its_file(client: Client, address: Path, change: str) -> None:
    edited, plain = add(client, count=2)
    client.close()
    path = address / "tasks" / f"{format_id(edited)}.json"
    fields = json.loads(path.read_text())
    fields |= {"priority": {"priority": -5}, "eta": {"eta": "2100-01-01T00:00:00Z"}, "queue": {"queue": "other"}}[
        change
    ]
    path.write_text(json.dumps(fields, indent=2) + "\n")
    client.reopen()
    claimed = client.claim()
    assert claimed == ([plain, edited] if change == "priority" else [plain])
    if change == "queue":
        turned = client.turn(claim=1, queues=("other",))
        assert [found.id for found in turned.claimed] == [edited]
    if change == "eta":
        assert client.turn(claim=1).due is not None


def test_a_check_puts_the_order_right(client: Client, address: Path) -> None:
    (edited,) = add(client, eta=tick() + 10**12)
    client.close()
    path = address / "tasks" / f"{format_id(edited)}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eta": None}, indent=2) + "\n")
    client.reopen()
    assert client.claim() == []
    client.store.check()
    assert client.claim() == [edited]


def test_the_order_is_not_believed_after_a_new_start_of_the_machine(
    client: Client, address: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lines may be lost then, and what is left of them out of date."""
    (id,) = add(client)
    client.close()
    (address / "order").write_text(f'[0,{tick() + 10**12},{id},"work"]\n')
    monkeypatch.setattr(journal, "_boot_id", lambda: "another")
    client.reopen()
    assert client.claim() == [id]


def test_what_is_out_of_date_is_left_out_in_time(
    client: Client, other: Client, address: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while no process is started anew, and while the others go on with theirs."""
    monkeypatch.setattr(order, "_LONG", 1_000)
    monkeypatch.setattr(order, "_FEW", 10)
    monkeypatch.setattr(journal, "ROTATE_BYTES", 5_000)
    client.reopen()
    stays = add(client, eta=tick() + 10**12, count=3)
    longest = 0
    for _ in range(60):
        ids = add(client, count=3)
        assert other.claim() == ids
        other.end(Event.COMPLETE, *ids, result="1")
        longest = max(longest, (address / "order").stat().st_size)
    assert longest < 1_500
    assert set(stays) <= set(lines(address))
    other.reopen()
    assert [found.id for found in other.turn(tick() + 10**13, claim=9).claimed] == stays


def test_a_link_in_the_place_of_the_order_is_refused(client: Client, address: Path, tmp_path: Path) -> None:
    client.close()
    (address / "order").unlink(missing_ok=True)
    (tmp_path / "elsewhere").write_text("")
    (address / "order").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="order is a symbolic link"):
        FileStore(address)
    assert (tmp_path / "elsewhere").read_text() == ""


def test_a_turn_whose_lines_cannot_be_written_changes_nothing(
    client: Client, address: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (id,) = add(client)
    with monkeypatch.context() as patch:
        patch.setattr(order.ReadyIndex, "_write", full_disk)
        with pytest.raises(StoreError, match="No space left"):
            add(client)
        assert client.claim() == [id]
        with pytest.raises(StoreError, match="No space left"):
            client.end(Event.RELEASE, id)
    assert client.store.counts() == {"work": {Status.RUNNING: 1}}
    client.end(Event.RELEASE, id)
    assert client.claim() == [id]


def full_disk(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_backup_has_the_order(client: Client, tmp_path: Path, read: list[int]) -> None:
    ids = add(client, count=3)
    client.store.backup(tmp_path / "copy")
    read.clear()
    with contextlib.closing(FileStore(tmp_path / "copy")) as copy:
        places = [place for places in copy._tasks.in_order().values() for _, place in places]
        assert places == [(0, 0, id) for id in ids]
    assert read == []


@pytest.mark.parametrize("verb", ["claim", "cancel_run", "adopt", "leftovers"])
@pytest.mark.parametrize("trimmed", [False, True])
def test_a_line_of_a_turn_that_never_came_hides_no_task(
    client: Client, other: Client, monkeypatch: pytest.MonkeyPatch, verb: str, trimmed: bool
) -> None:
    """Whoever adopts tasks may die, or find the disk full, once the order has them in another lane."""
    (id,) = add(other)
    other.stop(clean=False)
    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, "append", full_disk)
        with pytest.raises(StoreError, match="No space left"):
            client.store.adopt(client.run, [id], tick())
    if trimmed:
        monkeypatch.setattr(order, "_FEW", -10)
    client.reopen()
    assert client.claim(of_run=True) == []
    assert client.store.get(id).run == other.run.id
    if verb == "claim":
        assert client.claim() == [id]
    elif verb == "cancel_run":
        assert client.store.cancel_run(client.run.id, tick()) == []
        assert client.store.cancel_run(other.run.id, tick()) == [id]
    elif verb == "adopt":
        assert client.store.adopt(client.run, None, tick()) == 1
        assert client.claim(of_run=True) == [id]
    else:
        assert [(left.run, left.tasks) for left in client.stop()] == [(other.run.id, 1)]
