"""Who is there: what the dead had claimed comes back, the living keep theirs, and each hears of the others."""

import contextlib
import gc
import os
import select
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from backends import BACKENDS, Backend, Client, tick

from omniq_executor import StoreError, slots
from omniq_executor.model.task import Event, Status
from omniq_executor.stores.base import Store
from omniq_executor.stores.owners import Owners

Start = Callable[..., "subprocess.Popen[str]"]
Enter = Callable[..., Client]

CLAIMS_THREE = """
client = Client(backend, address)
assert len(client.claim(3)) == 3
ready()
input()
client.close()
"""


def freeze(process: "subprocess.Popen[str]") -> None:
    """Stop a process, and return when it stands still."""
    process.send_signal(signal.SIGSTOP)
    assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])


def test_an_owner_is_registered_until_it_leaves(client: Client, enter: Enter, store: Store) -> None:
    other = enter("elsewhere")
    first, second = store.owners()
    assert (first.id, second.id) == (client.owner, other.owner)
    assert (first.queue, second.queue) == ("work", "elsewhere")
    assert (first.pid, first.host, first.alive) == (os.getpid(), socket.gethostname(), True)
    assert 0 < first.opened_at <= second.opened_at
    assert client.store.peers(client.owner) == [other.owner]
    client.store.leave(client.owner)
    assert [owner.id for owner in store.owners()] == store.peers(client.owner) == [other.owner]
    assert other.store.peers(other.owner) == []


def test_what_an_owner_leaves_behind_is_pending(client: Client, other: Client) -> None:
    ids = client.add(1, 2, claimed=True)
    (kept,) = other.add(3, claimed=True)
    client.store.leave(client.owner)
    assert other.statuses([*ids, kept]) == [Status.PENDING, Status.PENDING, Status.RUNNING]
    claimed = other.turn(claim=9).claimed
    assert [(it.id, it.attempt, it.crashes) for it in claimed] == [(ids[0], 2, 0), (ids[1], 2, 0)]


def test_what_a_killed_owner_had_claimed_is_pending(client: Client, start: Start) -> None:
    ids = client.add(*range(4))
    process = start(CLAIMS_THREE)
    assert [owner.alive for owner in client.store.owners()] == [True, True]
    process.kill()
    process.wait(30)
    assert [owner.alive for owner in client.store.owners()] == [True, False]
    assert client.store.reap(tick()) == 3
    assert [owner.id for owner in client.store.owners()] == [client.owner]
    assert client.store.reap(tick()) == 0
    turned = client.turn(claim=9)
    assert ([(it.id, it.attempt, it.owner_deaths) for it in turned.claimed], turned.next_tier) == ([(ids[3], 1, 0)], 1)
    claimed = client.turn(claim=9, tier=1).claimed
    assert [(it.id, it.attempt, it.crashes, it.owner_deaths) for it in claimed] == [(id, 2, 0, 1) for id in ids[:3]]
    assert [client.store.get(id).owner_deaths for id in ids] == [1, 1, 1, 0]


def test_an_owner_that_ended_without_leaving_is_dead(client: Client, start: Start) -> None:
    client.add(*range(3))
    process = start(CLAIMS_THREE)
    assert process.communicate("end\n", timeout=30) == ("", "")
    assert client.store.reap(tick()) == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_killed_owner_is_dead_though_a_forked_child_of_it_lives_on(client: Client, start: Start) -> None:
    client.add(*range(3))
    process = start("""
import os
client = Client(backend, address)
assert len(client.claim(3)) == 3
if not os.fork():
    ready()
    input()
    os._exit(0)
os.wait()
""")
    process.kill()
    process.wait(30)
    assert client.store.reap(tick()) == 3
    process.communicate("end\n", timeout=30)


def test_a_living_owner_is_not_robbed_whatever_the_clock_says(client: Client, start: Start) -> None:
    ids = client.add(*range(3))
    process = start(CLAIMS_THREE)
    assert client.store.reap(tick() + 10**15) == 0  # thirty years on
    freeze(process)  # nor one that stands still
    assert client.store.reap(tick() + 10**15) == 0
    assert [owner.alive for owner in client.store.owners()] == [True, True]
    assert client.statuses(ids) == [Status.RUNNING] * 3
    process.kill()
    process.wait(30)
    assert client.store.reap(0) == 3


def test_nobody_reaps_itself_or_another_owner_of_its_process(client: Client, other: Client) -> None:
    ids = client.add(1, claimed=True) + other.add(2, claimed=True)
    assert client.store.reap(tick()) == other.store.reap(tick()) == 0
    assert client.statuses(ids) == [Status.RUNNING] * 2


def test_an_owner_lives_as_long_as_its_process_also_when_its_handle_is_closed(
    backend: Backend, address: os.PathLike[str], other: Client
) -> None:
    client = Client(backend, address)  # type: ignore[arg-type]
    client.close()
    del client
    gc.collect()
    assert [owner.alive for owner in other.store.owners()] == [True, True, True]


@pytest.mark.parametrize("is_shared", [False, True])
def test_death_is_proved_though_the_host_has_another_name_where_no_other_host_has_the_disk(
    client: Client, start: Start, monkeypatch: pytest.MonkeyPatch, is_shared: bool
) -> None:
    """Issue 10: what was killed in one container was never resumed in the next."""
    monkeypatch.setattr(Owners, "_is_of_this_machine", not is_shared)
    client.add(*range(3))
    process = start(f"""
import socket
socket.gethostname = lambda: "the name before"
store = backend.open(address)
(address.parent / "session").write_text(str(store.begin_session(tick())))
{CLAIMS_THREE}""")
    session = int((Path(client.store.address).parent / "session").read_text())
    run = client.store.begin_run("work", client.owner, "crashed", tick(), session=session)
    assert client.store.owners()[1].host == "the name before"
    assert client.store.reap(tick()) == 0
    process.kill()
    process.wait(30)
    assert client.store.reap(tick()) == (0 if is_shared else 3)
    assert len(client.store.owners()) == 1 + is_shared
    client.stop()
    assert (run.id in client.store.begin_run("work", 0, "crashed", tick()).continues) is not is_shared


def test_a_disk_is_of_this_machine_by_the_kind_of_what_is_mounted_next_above_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "store" / "owners"
    folder.mkdir(parents=True)
    kinds = {"/": "ext4", str(tmp_path): "nfs4"}

    def partitions(**_: object) -> list[SimpleNamespace]:
        return [SimpleNamespace(mountpoint=where, fstype=kind) for where, kind in kinds.items()]

    monkeypatch.setattr(psutil, "disk_partitions", partitions)
    assert not Owners(folder)._is_of_this_machine
    kinds[str(tmp_path / "store")] = "tmpfs"
    assert Owners(folder)._is_of_this_machine
    kinds.clear()
    assert not Owners(folder)._is_of_this_machine


@pytest.mark.parametrize("has_slots", [True, False])
def test_what_could_not_leave_is_dead_and_what_it_had_claimed_released(
    client: Client, other: Client, monkeypatch: pytest.MonkeyPatch, has_slots: bool
) -> None:
    """Issue 10: on a full disk, it was taken for one that lives, until its process ended."""
    ids = client.add(1, 2, claimed=True)
    if has_slots:
        shared = slots.Slots(1)
        shared.make(client.store.slots_path(client.owner))
        began = shared.row(0)
        began[slots.FIRST], began[slots.TASK], began[slots.STARTED] = 0, ids[0], 0

    def refuse(*_: object) -> None:
        raise StoreError("refused by the test")

    with monkeypatch.context() as patch:
        patch.setattr(client.store, "_leave", refuse)
        with pytest.raises(StoreError, match="refused by the test"):
            client.store.leave(client.owner)
    assert other.store.reap(tick()) == 2
    assert [other.store.get(id).owner_deaths for id in ids] == [0, 0]
    assert [owner.id for owner in other.store.owners()] == [other.owner]


def test_only_what_had_begun_is_charged_with_the_death_of_its_owner(client: Client, other: Client) -> None:
    ids = client.add(*range(6), claimed=True)
    shared = slots.Slots(3)
    shared.make(client.store.slots_path(client.owner))
    began, between, _ = (shared.row(slot) for slot in range(3))
    began[slots.FIRST], began[slots.TASK], began[slots.STARTED] = 10, ids[1], 12
    between[slots.FIRST], between[slots.TASK], between[slots.STARTED] = 20, ids[0], 19  # the next chunk has not begun
    shared.row(2)[slots.STARTED] = -1  # nor has this worker
    client.die()
    assert other.store.reap(tick()) == 6
    assert [other.store.get(id).owner_deaths for id in ids] == [0, 0, 0, 1, 0, 0]
    assert not other.store.slots_path(client.owner).exists()


def test_what_is_left_of_the_slots_after_a_power_cut_charges_nothing_wrong(client: Client, other: Client) -> None:
    ids = client.add(1, 2, claimed=True)
    client.store.slots_path(client.owner).write_bytes(bytes(8 * slots.CELLS) + b"torn")
    client.die()
    assert other.store.reap(tick()) == 2
    assert [other.store.get(id).owner_deaths for id in ids] == [0, 0]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": 5}'])
def test_a_damaged_file_of_an_owner_stops_nothing_and_its_lock_tells_whether_it_lives(
    tmp_path: Path, content: str
) -> None:
    """Issue 10: a cut of the power had left one empty, and no process could work on the store any more."""
    backend = BACKENDS["file"]
    address = backend.address(tmp_path)
    with contextlib.closing(Client(backend, address)) as damaged:
        (id,) = damaged.add(1, claimed=True)
        file = address / "owners" / f"{damaged.owner}.json"
        file.write_text(content)
        with contextlib.closing(Client(backend, address)) as client:
            assert client.statuses([id]) == [Status.RUNNING]
            assert client.store.peers(client.owner) == [damaged.owner]
            damaged.die()
            assert client.store.reap(tick()) == 1
            assert not file.exists()
            assert client.statuses([id]) == [Status.PENDING]


# --- News ---


@pytest.mark.parametrize("event", [Event.COMPLETE, Event.FAIL])
def test_an_owner_hears_once_what_another_finished(client: Client, other: Client, event: Event) -> None:
    ids = client.add(1, 2, claimed=True)
    assert client.end(event, *ids) == set()
    assert sorted(other.store.read_changes(other.owner)) == ids
    assert other.store.read_changes(other.owner) == []


def test_one_who_has_just_entered_hears_of_the_end_of_a_lone_claim(client: Client, enter: Enter) -> None:
    (id,) = client.add(1, claimed=True)  # in a turn in which nobody else was there
    other = enter()
    client.end(Event.COMPLETE, id)
    assert other.store.read_changes(other.owner) == [id]


def test_a_block_is_heard(client: Client, other: Client) -> None:
    ids = client.add(1, 2, 3, claimed=True)
    client.end(Event.RELEASE, ids[1])
    assert client.complete_block(ids[0], [1, 2, 3]) == {ids[1]}
    assert sorted(other.store.read_changes(other.owner)) == [ids[0], ids[2]]


def test_a_cancel_is_heard_also_when_it_is_by_no_owner(client: Client, other: Client, store: Store) -> None:
    first, second = client.add(1, 2)
    client.store.cancel([first], tick())
    store.cancel([first, second], tick())
    assert sorted(other.store.read_changes(other.owner)) == [first, second]


def test_what_is_given_back_or_refused_is_no_news(client: Client, other: Client) -> None:
    released, crashed, theirs = client.add(1, 2, 3, claimed=True)
    client.end(Event.RELEASE, released)
    client.end(Event.CRASH, crashed)
    assert client.end(Event.COMPLETE, theirs, attempt=2) == {theirs}
    assert other.store.read_changes(other.owner) == []


def test_what_finished_before_an_owner_entered_is_no_news_to_it(client: Client, other: Client, enter: Enter) -> None:
    early, late = client.add(1, 2, claimed=True)
    client.end(Event.COMPLETE, early)
    third = enter()
    client.end(Event.COMPLETE, late)
    assert third.store.read_changes(third.owner) == [late]
    assert sorted(other.store.read_changes(other.owner)) == [early, late]


def test_an_owner_does_not_hear_what_it_finished_itself(client: Client, other: Client) -> None:
    mine, theirs = client.add(1, claimed=True), other.add(2, claimed=True)
    client.end(Event.COMPLETE, *mine)
    other.end(Event.COMPLETE, *theirs)
    assert client.store.read_changes(client.owner) == theirs


def test_owners_that_share_a_handle_hear_of_each_other(client: Client) -> None:
    second = client.store.enter("work")
    (id,) = client.add(1, claimed=True)
    client.end(Event.COMPLETE, id)
    assert client.store.read_changes(second) == [id]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs here")
def test_a_ring_wakes_all_other_owners(client: Client, other: Client, enter: Enter) -> None:
    everyone = client, other, enter("elsewhere")
    pipes = [os.open(each.store.notify_path(each.owner), os.O_RDWR | os.O_NONBLOCK) for each in everyone]
    try:
        client.add(1)
        client.store.notify(client.owner)
        client.store.notify(client.owner)
        rung = select.poll()
        for pipe in pipes:
            rung.register(pipe, select.POLLIN)
        assert sorted(pipe for pipe, _ in rung.poll(0)) == sorted(pipes[1:])
    finally:
        for pipe in pipes:
            os.close(pipe)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs here")
def test_a_ring_waits_for_nobody(client: Client, other: Client) -> None:
    client.add(1)
    client.store.notify(client.owner)  # nobody listens
    pipe = os.open(other.store.notify_path(other.owner), os.O_RDWR | os.O_NONBLOCK)
    try:
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(pipe, b"!" * 4096)
        client.store.notify(client.owner)  # it is full
    finally:
        os.close(pipe)
    other.stop()
    client.store.notify(client.owner)  # it is gone
