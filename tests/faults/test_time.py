"""Clocks, process ids and pauses prove nothing: only the lock that a process holds says whether it lives."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import calls
import jobs
import pytest
from backends import Backend, Client, tick

import omniq_executor
from omniq_executor import PersistentExecutor, Status, StoreError
from omniq_executor.stores.file import tasks as file
from omniq_executor.stores.sqlite import database as sqlite

pytestmark = pytest.mark.once

WAIT_S = 30.0
DAY_S = 24 * 3600

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="stops processes, and looks at /proc")


def why_no_namespaces() -> str | None:
    """Why no process can be given an id of our choice here, if it cannot."""
    if shutil.which("unshare") is None:
        return "unshare is not installed"
    done = subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True, text=True)
    return None if done.returncode == 0 else f"no new namespace of process ids: {done.stderr.strip()}"


# --- The clock on the wall ---


class Clock:
    """The time of day of this process, which can be set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._real_ns, self._real = time.time_ns, time.time
        self._shift_s = 0
        monkeypatch.setattr(time, "time_ns", lambda: self._real_ns() + self._shift_s * 1_000_000_000)
        monkeypatch.setattr(time, "time", lambda: self._real() + self._shift_s)

    def set(self, shift_s: int) -> None:
        self._shift_s = shift_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.mark.parametrize("shift_s", [DAY_S, -DAY_S], ids=["forward", "back"])
def test_a_clock_that_is_set_in_mid_run_neither_robs_nor_holds_up_anybody(
    address: Path, clock: Clock, tmp_path: Path, shift_s: int, wait_until: Any
) -> None:
    gate, journal = tmp_path / "gate", tmp_path / "journal"
    with PersistentExecutor(1, store=address) as executor:
        running = executor.submit(jobs.large_after, journal, gate, 10)
        pending = [executor.submit(calls.square, n) for n in range(20)]
        wait_until(journal.exists)
        clock.set(shift_s)
        with PersistentExecutor(1, store=address, queue="another") as other:  # who comes looks for the dead
            assert other.submit(calls.square, 3).result(WAIT_S) == 9
            assert all(owner.alive for owner in other.store.owners())
            assert executor.store.get(running.task_id).status is Status.RUNNING
        later = [executor.submit(calls.square, n) for n in range(20)]
        clock.set(0)
        again = [executor.submit(calls.square, n) for n in range(20)]
        gate.touch()
        assert running.result(WAIT_S) == "x" * 10
        for futures in (pending, later, again):
            assert [future.result(WAIT_S) for future in futures] == [n * n for n in range(20)]
        assert list(executor.map(calls.square, range(100), timeout=WAIT_S)) == [n * n for n in range(100)]
        tasks = executor.store.find()
    assert {(task.status, task.attempts) for task in tasks} == {(Status.COMPLETED, 1)}
    assert len({task.id for task in tasks}) == 162
    assert journal.read_text() == "10\n"


@pytest.mark.parametrize("shift_s", [DAY_S, -DAY_S], ids=["forward", "back"])
def test_a_broken_run_is_resumed_whatever_the_clock_says(
    backend: Backend, address: Path, clock: Clock, shift_s: int
) -> None:
    client = Client(backend, address)
    ids = client.add(1, 2, 3, claimed=True)
    client.die()
    client.close()
    clock.set(shift_s)
    now = time.time_ns() // 1000
    with contextlib.closing(backend.open(address)) as store:
        assert store.reap(now) == 3
        owner = store.enter("work")
        run = store.begin_run("work", owner, "crashed", now)
        assert (run.continues, run.total) == ((client.run.id,), 3)
        assert [it.status for it in store.states(ids)] == [Status.PENDING] * 3
        store.leave(owner)


# --- Process ids ---

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(backend: Backend, address: Path) -> Iterator[Start]:
    """Starts a process that has a Client; returns it once it has printed a line, with that line."""
    here = Path(__file__).parent
    folders = [Path(omniq_executor.__file__).parents[1], here.parent / "contract"]
    setup = "import os\nfrom pathlib import Path\nfrom backends import *\n"
    setup += f"backend = BACKENDS[{backend.name!r}]\naddress = Path({str(address)!r})\n"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    with contextlib.ExitStack() as stack:

        def run(code: str, *before: str) -> "subprocess.Popen[str]":
            process = subprocess.Popen(
                [*before, sys.executable, "-c", setup + code], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            stack.enter_context(process)
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", process.communicate(timeout=30)
            return process

        yield run


CLAIMS = """
client = Client(backend, address)
assert len(client.add(1, 2, 3, claimed=True)) == 3
print("ready", flush=True)
input()
"""
LOOKS = """
with_id = backend.open(address)
print("ready", flush=True)
input()
print([(owner.pid == os.getpid(), owner.alive) for owner in with_id.owners()], with_id.reap(tick()))
"""
OWN_NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child=SIGKILL")


@linux_only
@pytest.mark.faults
@pytest.mark.skipif(why_no_namespaces() is not None, reason=str(why_no_namespaces()))
def test_a_process_that_has_the_id_of_a_dead_owner_is_not_taken_for_it(start: Start) -> None:
    owner = start(CLAIMS, *OWN_NAMESPACE)
    living = start(LOOKS, *OWN_NAMESPACE)  # both have the id 1, each in a namespace of its own
    assert living.communicate("\n", timeout=WAIT_S) == ("[(True, True)] 0\n", "")
    owner.kill()
    owner.wait(WAIT_S)
    after = start(LOOKS, *OWN_NAMESPACE)
    assert after.communicate("\n", timeout=WAIT_S) == ("[(True, False)] 3\n", "")


def test_an_owner_whose_id_a_living_process_has_by_now_is_dead(backend: Backend, address: Path, start: Start) -> None:
    process = start(f"os.getpid = lambda: {os.getpid()}\n" + CLAIMS)
    with contextlib.closing(backend.open(address)) as store:
        assert [(owner.pid, owner.alive) for owner in store.owners()] == [(os.getpid(), True)]
        process.kill()
        process.wait(WAIT_S)
        assert [(owner.pid, owner.alive) for owner in store.owners()] == [(os.getpid(), False)]
        assert store.reap(tick()) == 3


def test_an_owner_whose_id_no_process_has_is_alive_while_its_process_is(
    backend: Backend, address: Path, start: Start
) -> None:
    start("os.getpid = lambda: 1 << 30\n" + CLAIMS)
    with contextlib.closing(backend.open(address)) as store:
        assert [(owner.pid, owner.alive) for owner in store.owners()] == [(1 << 30, True)]
        assert store.reap(tick()) == 0


# --- Pauses ---

PAUSED = """
import multiprocessing, os, sys, time
from omniq_executor import PersistentExecutor

def work(n):
    with open("journal", "a") as journal:
        journal.write(f"{{n}}\\n")
    while not os.path.exists("gate"):
        time.sleep(0.005)
    return n

if __name__ == "__main__":
    with PersistentExecutor(1, store={address!r}, queue="work") as executor:
        futures = [executor.submit(work, n) for n in range(3)]
        print([future.result() for future in futures])
"""


def stopped_outside_of_a_turn(
    members: list[int], backend: Backend, address: Path, monkeypatch: pytest.MonkeyPatch
) -> list[int]:
    """Stop processes; return those, or none if they hold the store's lock just now, and go on with it."""
    for member in members:
        os.kill(member, signal.SIGSTOP)
    with monkeypatch.context() as patch:
        patch.setattr(sqlite, "BUSY_TIMEOUT_S", 0.5)
        patch.setattr(file, "BUSY_TIMEOUT_S", 0.5)
        try:
            with contextlib.closing(backend.open(address)) as store:
                store.leave(store.enter("another"))
            return members
        except StoreError:
            for member in members:
                os.kill(member, signal.SIGCONT)
            return []


@linux_only
@pytest.mark.parametrize("ends", ["continued", "killed"])
def test_an_executor_that_is_paused_keeps_its_calls_and_one_that_is_killed_does_not(
    backend: Backend, address: Path, script: Any, wait_until: Any, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    script.write(PAUSED.format(address=str(address)))
    process = script.start()
    script.journal.wait_for(1)
    members = wait_until(lambda: stopped_outside_of_a_turn(script.members(process), backend, address, monkeypatch))
    (script.folder / "gate").touch()
    with PersistentExecutor(1, store=address, queue="another") as other:
        assert other.submit(calls.square, 5).result(WAIT_S) == 25  # it works on, and looked for the dead
        store = other.store
        running = store.find(Status.RUNNING)
        assert [task.attempts for task in running] == [1] * len(running)
        assert running
        if ends == "continued":
            for member in members:
                os.kill(member, signal.SIGCONT)
            done = script.finished(process)
            assert (done.returncode, done.stdout, done.stderr) == (0, "[0, 1, 2]\n", "")
            assert sorted(script.journal.lines()) == ["0", "1", "2"]
        else:
            for member in members:
                os.kill(member, signal.SIGKILL)
            process.wait(WAIT_S)
            # The other executor is told of the death by the system.
            wait_until(lambda: store.find(Status.RUNNING) == [], what="what the dead had claimed to be taken back")
            assert store.counts()["work"] == {Status.PENDING: 3}
