"""One fault costs one call: dying workers, dying parents, Ctrl-C."""

import concurrent.futures
import os
import random
import signal
import sys
from collections import Counter
from concurrent.futures import as_completed, wait
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import calls
import pytest

from omniq_executor import PersistentExecutor, Status, WorkerCrashed

pytestmark = pytest.mark.each_store

WAIT_S = 30.0

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at processes in /proc")


# --- A worker dies in a call -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "args", "how"),
    [
        (calls.kill_self, (), "SIGKILL"),
        (calls.crash_self, (), "SIGSEGV"),
        (calls.exit_self, (0,), "exit code 0"),
        (calls.exit_self, (9,), "exit code 9"),
    ],
)
def test_a_call_that_kills_its_worker_is_tried_again_and_then_fails(
    make_executor: Any, function: Any, args: Any, how: str
) -> None:
    executor = make_executor(1)
    future = executor.submit(function, *args)
    with pytest.raises(WorkerCrashed, match=how) as caught:
        future.result(WAIT_S)
    assert isinstance(caught.value, concurrent.futures.process.BrokenProcessPool)
    assert future.task_id in str(caught.value)
    task = future.task()
    assert (task.status, task.attempts) == (Status.FAILED, 3)  # crash_retries is 2
    assert task.error is not None
    assert task.error.type.endswith("WorkerCrashed")
    assert how in task.error.message
    assert executor.submit(calls.square, 3).result(WAIT_S) == 9


def test_it_is_so_with_every_start_method(context: BaseContext, make_executor: Any) -> None:
    executor = make_executor(2, context)
    futures = [executor.submit(calls.square, n) for n in range(10)]
    with pytest.raises(WorkerCrashed, match="SIGKILL"):
        executor.submit(calls.kill_self).result(WAIT_S)
    assert [future.result(WAIT_S) for future in futures] == [n * n for n in range(10)]
    assert executor.submit(calls.square, 3).result(WAIT_S) == 9


@pytest.mark.parametrize("crash_retries", [0, 1, 4])
def test_it_is_tried_as_often_as_crash_retries_says(make_executor: Any, journal: Any, crash_retries: int) -> None:
    executor = make_executor(1, crash_retries=crash_retries)
    future = executor.submit(calls.die_on, journal.path, 7, 7)
    with pytest.raises(WorkerCrashed):
        future.result(WAIT_S)
    assert journal.lines() == ["7"] * (crash_retries + 1)
    assert future.task().attempts == crash_retries + 1


@pytest.mark.parametrize("by", ["kill", "exit"])
def test_a_call_that_kills_its_worker_only_once_succeeds(make_executor: Any, tmp_path: Path, by: str) -> None:
    executor = make_executor(1)
    future = executor.submit(calls.die_if_missing, tmp_path / "died", by)
    assert future.result(WAIT_S) == "lived"
    task = future.task()
    assert (task.status, task.attempts, task.crashes, task.error) == (Status.COMPLETED, 2, 1, None)


def test_calls_beside_it_run_elsewhere_once_and_uncharged(make_executor: Any, journal: Any) -> None:
    executor = make_executor(2)
    list(executor.map(calls.square, range(2000), timeout=WAIT_S))  # now many calls travel together
    futures = [executor.submit(calls.die_on, journal.path, 150, n) for n in range(300)]
    for n, future in enumerate(futures):
        if n == 150:
            with pytest.raises(WorkerCrashed, match="SIGKILL"):
                future.result(WAIT_S)
        else:
            assert future.result(WAIT_S) == n
    for n, future in enumerate(futures):
        assert future.task().crashes == 0 or n == 150
    times = Counter(map(int, journal.lines()))
    assert times.pop(150) == 3
    assert times.keys() == set(range(300)) - {150}
    # Only what had run and was not reported yet when its worker died may have run again.
    assert sum(times.values()) - len(times) <= 300


def test_neighbours_that_had_not_started_run_only_once(make_executor: Any, journal: Any, tmp_path: Path) -> None:
    executor = make_executor(1)
    list(executor.map(calls.square, range(2000), timeout=WAIT_S))
    pid = executor.submit(calls.pid).result(WAIT_S)
    held = executor.submit(calls.noted_wait, journal.path, "held", tmp_path / "gate")
    others = [executor.submit(calls.noted, journal.path, n) for n in range(20)]
    journal.wait_for(1)
    os.kill(pid, signal.SIGKILL)
    (tmp_path / "gate").touch()
    assert held.result(WAIT_S) == "held"
    assert [future.result(WAIT_S) for future in others] == list(range(20))
    assert Counter(journal.lines()) == {"held": 2, **{str(n): 1 for n in range(20)}}
    assert held.task().crashes == 1
    assert {future.task().crashes for future in others} == {0}


def test_a_crash_in_a_map_comes_in_its_place(make_executor: Any, journal: Any) -> None:
    executor = make_executor(2)
    results = executor.map(calls.die_on, [journal.path] * 20, [5] * 20, range(20), timeout=WAIT_S)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(WorkerCrashed):
        next(results)
    assert executor.submit(calls.square, 3).result(WAIT_S) == 9


def test_workers_killed_between_calls_are_replaced(make_executor: Any, wait_until: Any, is_alive: Any) -> None:
    executor = make_executor(2)
    for _ in range(5):
        pid = executor.submit(calls.pid).result(WAIT_S)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda pid=pid: not is_alive(pid))
        assert executor.submit(calls.pid).result(WAIT_S) != pid
    assert all(task.crashes == 0 and task.status is Status.COMPLETED for task in executor.store.find())


def test_workers_killed_at_random_lose_and_falsify_nothing(make_executor: Any, journal: Any) -> None:
    seed = 3
    print(f"seed {seed}")  # noqa: T201 - for whoever looks into a failure
    chance = random.Random(seed)
    executor = make_executor(2, crash_retries=1000)
    futures = {executor.submit(calls.noted_pid_slowly, journal.path, n): n for n in range(400)}
    for kill in range(15):
        lines = journal.wait_for(min(1 + kill * 20 + chance.randrange(20), 400))
        pid = int(lines[-1].split()[0])
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue  # it is gone since
    for future in as_completed(futures, timeout=60):
        assert future.result() == futures[future]
    assert {int(line.split()[1]) for line in journal.lines()} == set(range(400))


def test_a_worker_that_is_stopped_holds_up_only_its_own_call(make_executor: Any, journal: Any, tmp_path: Path) -> None:
    executor = make_executor(2)
    list(executor.map(calls.square, range(2000), timeout=WAIT_S))
    held = executor.submit(calls.noted_pid_wait, journal.path, tmp_path / "gate")
    pid = int(journal.wait_for(1)[0])
    os.kill(pid, signal.SIGSTOP)
    try:
        futures = [executor.submit(calls.square, n) for n in range(500)]
        done, _ = wait(futures, timeout=WAIT_S)
        assert len(done) == 500
        assert not held.done()
    finally:
        os.kill(pid, signal.SIGCONT)
    (tmp_path / "gate").touch()
    assert held.result(WAIT_S) == pid
    assert [future.result(0) for future in futures] == [n * n for n in range(500)]


def test_workers_can_die_while_large_arguments_are_on_their_way(make_executor: Any, tmp_path: Path) -> None:
    executor = make_executor(2)
    big = b"x" * 3_000_000
    bad = executor.submit(calls.die_with, big)
    good = [executor.submit(len, big) for _ in range(4)]
    assert [future.result(WAIT_S) for future in good] == [len(big)] * 4
    with pytest.raises(WorkerCrashed):
        bad.result(WAIT_S)


# --- The parent dies ---------------------------------------------------------------------------------------------

PARENT = """
import multiprocessing, os, sys, time
from omniq_executor import PersistentExecutor

def work(n):
    with open("pids", "a") as pids:
        pids.write(f"{{os.getpid()}}\\n")
    {body}

if __name__ == "__main__":
    with PersistentExecutor(2, multiprocessing.get_context({method!r})) as executor:
        futures = [executor.submit(work, n) for n in range(10)]
        for future in futures:
            future.result()
"""


@linux_only
@pytest.mark.parametrize("body", ["time.sleep(60)", "while True: pass"], ids=["sleeping", "busy"])
def test_after_the_death_of_the_parent_all_its_processes_go(
    method: str, script: Any, wait_until: Any, is_alive: Any, body: str
) -> None:
    script.write(PARENT.format(method=method, body=body))
    process = script.start()
    pids_file = script.folder / "pids"
    pids = wait_until(
        lambda: lines if len(lines := (pids_file.read_text().split() if pids_file.exists() else [])) >= 2 else None
    )
    workers = [int(pid) for pid in pids]
    assert all(map(is_alive, workers))
    process.kill()
    process.wait(WAIT_S)
    wait_until(lambda: not any(map(is_alive, workers)), timeout_s=2, what="the workers to end")
    wait_until(lambda: not script.members(process), timeout_s=5, what="the helpers of multiprocessing to end")


@linux_only
def test_after_the_death_of_the_parent_its_idle_workers_go(
    method: str, script: Any, wait_until: Any, is_alive: Any
) -> None:
    script.write(f"""
import multiprocessing, os, sys, time
from omniq_executor import PersistentExecutor
if __name__ == "__main__":
    executor = PersistentExecutor(1, multiprocessing.get_context({method!r}))
    print(executor.submit(os.getpid).result(), flush=True)
    time.sleep(60)
""")
    process = script.start()
    out = script.folder / "0.out"
    worker = int(wait_until(lambda: text if (text := out.read_text()).endswith("\n") else None))
    assert is_alive(worker)
    process.kill()
    process.wait(WAIT_S)
    wait_until(lambda: not is_alive(worker), timeout_s=2)
    wait_until(lambda: not script.members(process), timeout_s=5, what="the helpers of multiprocessing to end")


@linux_only
def test_a_killed_parent_leaves_its_calls_to_the_next_run(script: Any, wait_until: Any, open_store: Any) -> None:
    script.write(PARENT.format(method="forkserver", body="time.sleep(60)"))
    process = script.start()
    pids_file = script.folder / "pids"
    wait_until(lambda: pids_file.exists() and len(pids_file.read_text().split()) >= 2)
    store = open_store(script.store)
    wait_until(lambda: len(store.ids()) == 10)  # the first ones run while the last are submitted
    process.kill()
    process.wait(WAIT_S)
    assert [owner.alive for owner in store.owners()] == [False]
    with PersistentExecutor(1, store=script.store, queue="other"):
        pass  # whoever comes next takes the calls of the dead back
    assert store.counts()["script"] == {Status.PENDING: 10}
    assert store.owners() == []


# --- Ctrl-C ------------------------------------------------------------------------------------------------------

INTERRUPTED = """
import multiprocessing, os, sys, time
from omniq_executor import PersistentExecutor

def work(n):
    with open("journal", "a") as journal:
        journal.write(f"{{n}}\\n")
    time.sleep(60)

if __name__ == "__main__":
    context = multiprocessing.get_context({method!r})
    {body}
"""
BODIES = {
    "with": """with PersistentExecutor(2, context) as executor:
        futures = [executor.submit(work, n) for n in range(20)]
        for future in futures:
            future.result()""",
    "with_map": """with PersistentExecutor(2, context) as executor:
        for result in executor.map(work, range(20)):
            pass""",
    "without_with": """executor = PersistentExecutor(2, context)
    futures = [executor.submit(work, n) for n in range(20)]
    futures[0].result()""",
    "in_exit": """with PersistentExecutor(2, context) as executor:
        futures = [executor.submit(work, n) for n in range(20)]""",
    "in_wait": """import concurrent.futures
    with PersistentExecutor(2, context) as executor:
        futures = [executor.submit(work, n) for n in range(20)]
        concurrent.futures.wait(futures)""",
}


@linux_only
@pytest.mark.parametrize("form", BODIES)
def test_ctrl_c_ends_script_and_workers_and_keeps_the_calls(
    script: Any, wait_until: Any, open_store: Any, form: str
) -> None:
    interrupt_once(script, wait_until, open_store, "forkserver", BODIES[form])


@linux_only
def test_ctrl_c_does_so_with_every_start_method(method: str, script: Any, wait_until: Any, open_store: Any) -> None:
    interrupt_once(script, wait_until, open_store, method, BODIES["with"])


def interrupt_once(script: Any, wait_until: Any, open_store: Any, method: str, body: str) -> None:
    script.write(INTERRUPTED.format(method=method, body=body))
    process = script.start()
    script.journal.wait_for(2)
    store = open_store(script.store)
    wait_until(lambda: sum(store.counts()["script"].values()) == 20, what="all to be submitted")  # two may begin before
    os.killpg(process.pid, signal.SIGINT)
    done = script.finished(process, timeout_s=15)
    assert done.returncode in (-signal.SIGINT, 130, 1)
    assert "KeyboardInterrupt" in done.stderr
    assert "BrokenPipe" not in done.stderr
    wait_until(lambda: not script.members(process), timeout_s=5, what="all its processes to end")
    assert store.counts() == {"script": {Status.PENDING: 20}}
    assert store.owners() == []
    assert script.journal.lines() == ["0", "1"] or sorted(script.journal.lines()) == ["0", "1"]


@linux_only
def test_what_was_interrupted_is_resumed(script: Any) -> None:
    script.write("""
import os, sys, time
from omniq_executor import PersistentExecutor

def work(n):
    with open("journal", "a") as journal:
        journal.write(f"{n}\\n")
    if n == 5 and not os.path.exists("gate"):
        time.sleep(60)
    return n

if __name__ == "__main__":
    with PersistentExecutor(1) as executor:
        print(sum(executor.map(work, range(10))))
""")
    process = script.start()
    script.journal.wait_for(6)
    os.killpg(process.pid, signal.SIGINT)
    assert script.finished(process).stdout == ""
    (script.folder / "gate").touch()
    done = script.run()
    assert (done.returncode, done.stdout) == (0, "45\n")
    assert Counter(map(int, script.journal.lines())) == {**dict.fromkeys(range(10), 1), 5: 2}
    assert "continuing an earlier run" in done.stderr
