"""No space, no files, no rights: what cannot be done says so and leaves nothing, and what was done stays."""

import contextlib
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import disks
import jobs
import pytest
from backends import Backend, Client

import omniq_executor
from omniq_executor import PersistentExecutor, Status, StoreError
from omniq_executor.dispatch import committing
from omniq_executor.model.task import Event
from omniq_executor.stores.reserve import RESERVE_BYTES

pytestmark = pytest.mark.once

WAIT_S = 30.0
FULL = r"full|No space|no more files"
LARGE = 2 * RESERVE_BYTES

needs_disks = pytest.mark.skipif(disks.why_no_small_disks() is not None, reason=str(disks.why_no_small_disks()))
as_posix = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="there are no such limits and modes here")


class Disk:
    """A small disk, and a file on it that takes all the space that is left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def fill(self) -> None:
        with self._filler.open("ab", buffering=0) as file:
            for size in (1 << 16, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while file.write(b"x" * size) == size:
                        pass

    def free(self) -> None:
        self._filler.unlink(missing_ok=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with disks.small(tmp_path / "disk", size="16m") as folder:
        yield Disk(folder)


def refusal_of(do: Callable[[], object]) -> StoreError:
    """Do something until a store refuses it."""
    for _ in range(100):
        try:
            do()
        except StoreError as error:
            return error
    raise AssertionError("it is never refused")


class Worker:
    """Adds, claims and ends tasks of a store, and knows what was acknowledged."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.tasks: dict[int, Status] = {}
        self.attempts: dict[int, int] = {}

    def add(self, size: int = 5_000, claimed: bool = False) -> None:
        (id,) = self.client.add("x" * size, claimed=claimed)
        self.tasks[id] = Status.RUNNING if claimed else Status.PENDING
        self.attempts[id] = int(claimed)

    def claim(self) -> None:
        for claimed in self.client.turn(claim=100).claimed:
            assert self.tasks[claimed.id] is Status.PENDING
            self.tasks[claimed.id] = Status.RUNNING
            self.attempts[claimed.id] = claimed.attempt

    def complete(self) -> None:
        """Complete what it has claimed, one by one."""
        for id in self._all(Status.RUNNING):
            result = json.dumps("y" * 5_000)
            assert self.client.end(Event.COMPLETE, id, attempt=self.attempts[id], result=result) == set()
            self.tasks[id] = Status.COMPLETED

    def work(self) -> None:
        """Do some of everything, and leave something in each state."""
        self.add(claimed=True)
        self.complete()
        self.add()
        self.claim()
        self.add()

    def is_refused(self, do: Callable[[], None], match: str = FULL) -> None:
        """Do something until the store refuses it; then all is as it was."""
        error = refusal_of(do)
        assert re.search(match, str(error)), error
        self.check()

    def check(self) -> None:
        """Exactly what was acknowledged is there."""
        assert {task.id: task.status for task in self.client.store.find()} == self.tasks

    def finish(self) -> None:
        """Everything that was acknowledged can be finished."""
        self.claim()
        self.complete()
        self.check()
        assert self._all(Status.COMPLETED) == list(self.tasks)
        self.client.stop()
        assert self.client.owner not in {owner.id for owner in self.client.store.owners()}
        self.client.close()

    def _all(self, status: Status) -> list[int]:
        return [id for id, found in self.tasks.items() if found is status]


# --- Space ---


@pytest.mark.faults
@needs_disks
def test_a_full_disk_refuses_what_is_new_and_keeps_what_is_there(backend: Backend, disk: Disk) -> None:
    worker = Worker(Client(backend, backend.address(disk.folder)))
    for _ in range(3):
        worker.work()
        disk.fill()
        worker.is_refused(worker.add)
        worker.is_refused(lambda: worker.add(claimed=True))
        worker.is_refused(worker.complete)
        disk.free()
        worker.complete()
        worker.work()
        worker.check()
    worker.finish()


@pytest.mark.faults
@needs_disks
def test_a_store_on_a_full_disk_can_be_looked_at(backend: Backend, disk: Disk) -> None:
    address = backend.address(disk.folder)
    worker = Worker(Client(backend, address))
    worker.work()
    disk.fill()
    worker.is_refused(worker.add)
    with contextlib.closing(backend.open(address)) as store:
        assert {task.id: task.status for task in store.find()} == worker.tasks
    disk.free()
    worker.finish()


@pytest.mark.faults
@needs_disks
def test_a_store_that_cannot_be_made_on_a_full_disk_can_be_made_later(backend: Backend, disk: Disk) -> None:
    disk.fill()
    with pytest.raises(StoreError, match=FULL):
        Client(backend, backend.address(disk.folder))
    disk.free()
    worker = Worker(Client(backend, backend.address(disk.folder)))
    worker.work()
    worker.finish()


@pytest.mark.faults
@needs_disks
@pytest.mark.parametrize("inodes", range(2, 34))
def test_a_disk_that_can_hold_no_more_files_says_so(backend: Backend, tmp_path: Path, inodes: int) -> None:
    """Wherever in the making of a store or a task it happens."""
    with disks.small(tmp_path / "disk", size="16m", inodes=inodes) as folder:
        address = backend.address(folder)
        started: list[Worker] = []

        def work() -> None:
            if not started:
                started.append(Worker(Client(backend, address)))
            started[0].work()

        try:
            for _ in range(10):
                work()
        except StoreError as error:
            refusal = str(error)
        else:
            refusal = FULL  # there were enough, which a store that is one file soon has
        assert re.search(FULL, refusal), refusal
        disks.remount(folder, "nr_inodes=1000")
        if started:
            started[0].check()
            started[0].finish()
        another = Worker(Client(backend, address, queue="another"))
        another.tasks = started[0].tasks if started else {}
        another.work()
        another.finish()


@pytest.mark.faults
@needs_disks
def test_a_result_that_cannot_be_stored_is_kept_and_stored_later(
    backend: Backend, disk: Disk, tmp_path: Path, caplog: pytest.LogCaptureFixture, wait_until: Any
) -> None:
    executor = PersistentExecutor(1, store=backend.address(disk.folder))
    try:
        gate, journal = tmp_path / "gate", tmp_path / "journal"
        future = executor.submit(jobs.large_after, journal, gate, LARGE)
        wait_until(journal.exists)
        disk.fill()
        refusal_of(lambda: executor.submit(len, "x" * 100_000))
        counts = executor.store.counts()
        with pytest.raises(StoreError, match=FULL):
            executor.submit(len, "x" * 100_000)
        assert executor.store.counts() == counts  # no ghost
        caplog.clear()
        gate.touch()
        for level in ("ERROR", "DEBUG"):  # each a second after the other, and said aloud once
            with caplog.at_level(logging.DEBUG, "omniq_executor"):
                wait_until(lambda: "it is tried again" in caplog.text)
            assert [it.levelname for it in caplog.records if "it is tried again" in it.message] == [level]
            caplog.clear()
            assert not future.done()
            assert executor.store.get(future.task_id).status is Status.RUNNING
        disk.free()
        assert future.result(WAIT_S) == "x" * LARGE
        task = executor.store.get(future.task_id)
        assert (task.status, task.attempts) == (Status.COMPLETED, 1)
        assert journal.read_text() == f"{LARGE}\n"  # and it ran once
        assert executor.submit(len, "x" * 100_000).result(WAIT_S) == 100_000
    finally:
        disk.free()
        executor.shutdown()
    with contextlib.closing(backend.open(backend.address(disk.folder))) as store:
        assert {task.status for task in store.find()} == {Status.COMPLETED}


@pytest.mark.faults
@needs_disks
def test_small_results_are_stored_on_a_full_disk(backend: Backend, disk: Disk, tmp_path: Path, wait_until: Any) -> None:
    """Issue 10: the calls were made, and made again when there was space."""
    gate, journal = tmp_path / "gate", tmp_path / "journal"
    with PersistentExecutor(2, store=backend.address(disk.folder)) as executor:
        futures = [executor.submit(jobs.large_after, journal, gate, 10_000 + n) for n in range(10)]
        wait_until(journal.exists)
        disk.fill()
        refusal_of(lambda: executor.submit(len, "x" * 100_000))
        disk.fill()
        gate.touch()
        assert [len(future.result(WAIT_S)) for future in futures] == list(range(10_000, 10_010))
        assert {future.task().status for future in futures} == {Status.COMPLETED}
    assert len(journal.read_text().splitlines()) == 10


@pytest.mark.faults
@needs_disks
def test_on_a_disk_that_stays_full_the_with_block_ends_and_the_next_run_makes_the_call(
    backend: Backend, disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait_until: Any
) -> None:
    """Issue 10: it waited for ever."""
    monkeypatch.setattr(committing, "REFUSED_S", 2.0)
    gate, journal = tmp_path / "gate", tmp_path / "journal"
    with PersistentExecutor(1, store=backend.address(disk.folder)) as executor:
        future = executor.submit(jobs.large_after, journal, gate, LARGE)
        wait_until(journal.exists)
        disk.fill()
        gate.touch()
    with pytest.raises(StoreError, match=FULL):
        future.result(0)
    disk.free()
    with PersistentExecutor(1, store=backend.address(disk.folder)) as executor:
        again = executor.submit(jobs.large_after, journal, gate, LARGE)
        assert again.task_id == future.task_id
        assert again.result(WAIT_S) == "x" * LARGE
    assert journal.read_text() == f"{LARGE}\n" * 2


# --- Files and limits of a process ---


@pytest.fixture
def run(backend: Backend, address: Path) -> Callable[[str], str]:
    """Runs code, in a process of its own, that has a Worker; returns what it printed."""
    here = Path(__file__).parent
    folders = [Path(omniq_executor.__file__).parents[1], here, here.parent, here.parent / "contract"]
    setup = "import os, resource\nfrom pathlib import Path\nfrom backends import *\nfrom test_full_disks import *\n"
    setup += f"backend = BACKENDS[{backend.name!r}]\naddress = Path({str(address)!r})\n"

    def run_one(code: str) -> str:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
        done = subprocess.run([sys.executable, "-c", setup + code], env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run_one


LIMIT = """
class limit:  # for a while
    def __init__(self, what, soft):
        self.what, self.soft = what, soft
    def __enter__(self):
        _, hard = resource.getrlimit(self.what)
        resource.setrlimit(self.what, (self.soft, hard))
    def __exit__(self, *_):
        _, hard = resource.getrlimit(self.what)
        resource.setrlimit(self.what, (min(hard, 1024) if self.what == resource.RLIMIT_NOFILE else hard, hard))

def files():
    return 1 + max(map(int, os.listdir("/proc/self/fd")))  # one more than the highest that is open
"""
linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at the open files in /proc")


@linux_only
def test_a_process_with_too_many_open_files_is_told_so(run: Callable[[str], str]) -> None:
    """Wherever in the making, opening or use of a store it happens."""
    out = run(
        LIMIT
        + """
Client(backend, address.with_name("first-" + address.name)).close()  # all imports are done
refused = 0
for more in range(1, 14):
    here = address.with_name(f"{more}-{address.name}")
    for _ in range(3):
        worker = None
        with limit(resource.RLIMIT_NOFILE, files() - 1 + more):
            try:
                worker = Worker(Client(backend, here))
                worker.work()
            except StoreError as error:
                assert "ulimit" in str(error), error
                refused += 1
        if worker is not None:
            worker.check()
            worker.finish()
            break
    again = Worker(Client(backend, here, queue="another"))
    again.tasks = worker.tasks if worker else {}
    again.work()
    again.finish()
print(refused)
"""
    )
    assert int(out) > 3


@linux_only
def test_a_store_that_is_open_outlives_a_time_of_too_many_open_files(run: Callable[[str], str]) -> None:
    run(
        LIMIT
        + """
worker = Worker(Client(backend, address))
worker.work()
for more in range(4):
    with limit(resource.RLIMIT_NOFILE, files() - 1 + more):
        for do in (worker.add, worker.claim, worker.complete):
            try:
                do()
            except StoreError as error:
                assert "ulimit" in str(error), error
    worker.check()
    worker.work()
worker.finish()
"""
    )


@as_posix
def test_a_limit_of_the_size_of_files_is_as_a_full_disk(run: Callable[[str], str]) -> None:
    run(
        LIMIT
        + """
worker = Worker(Client(backend, address))
worker.work()
with limit(resource.RLIMIT_FSIZE, 60_000):
    worker.is_refused(lambda: worker.add(100_000), match=str(address))
    worker.is_refused(lambda: worker.add(100_000, claimed=True), match=str(address))
worker.work()
worker.finish()
"""
    )


# --- Rights ---


@as_posix
def test_a_store_that_may_not_be_written_any_more_keeps_everything(
    backend: Backend, home: Path, as_nobody: None
) -> None:
    address = backend.address(home)
    worker = Worker(Client(backend, address))
    worker.work()
    worker.client.close()
    modes = {path: path.stat().st_mode for path in [*home.rglob("*")] if not path.is_symlink()}
    for path in modes:
        path.chmod(0o500 if path.is_dir() else 0o400)
    for _ in range(2):
        with pytest.raises(StoreError, match=f"{address}.*(permission|Permission|written|write)"):
            Client(backend, address, queue="another")
    for path, mode in reversed(modes.items()):
        path.chmod(mode)
    again = Client(backend, address, queue="another")
    assert {task.id: task.status for task in again.store.find()} == worker.tasks
    again.close()


@pytest.mark.faults
@needs_disks
def test_a_disk_that_has_become_read_only_keeps_everything(backend: Backend, disk: Disk) -> None:
    address = backend.address(disk.folder)
    worker = Worker(Client(backend, address))
    worker.work()
    worker.client.stop()
    worker.client.close()
    disks.remount(disk.folder, "ro")
    with pytest.raises(StoreError, match=f"{address}.*(Read-only|written|permission)"):
        Client(backend, address)
    disks.remount(disk.folder, "rw")
    client = Client(backend, address)
    assert set(worker.tasks) == {task.id for task in client.store.find()}
    assert not any(task.status is Status.RUNNING for task in client.store.find())
    client.stop()
    client.close()
