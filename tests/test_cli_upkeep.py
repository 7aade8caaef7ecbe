"""Upkeep from the command line, as a script uses it: what it does, what it prints, and its exit status."""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

import omniq_executor
from omniq_executor import PersistentExecutor, Status, open_store
from omniq_executor.cli.main import main
from omniq_executor.model.task import Call, Event, Function, Options, Successor
from omniq_executor.stores.base import Batch, Outcome, Store, Turn, now

pytestmark = pytest.mark.once

ROOT = str(Path(omniq_executor.__file__).parents[1])

HOLDS = """
import sys, time
from omniq_executor import PersistentExecutor

def wait_for(path):
    while not path.exists():
        time.sleep(0.01)
    return 7

if __name__ == "__main__":
    from pathlib import Path
    with PersistentExecutor(1, store=sys.argv[1], queue="held") as executor:
        running = executor.submit(wait_for, Path("go").absolute())
        pending = [executor.submit(pow, 2, n) for n in range(3)]
        while not running.running():
            time.sleep(0.01)
        print(*[future.task_id for future in (running, *pending)], flush=True)
        sys.stdin.readline()
        print(running.result(30), flush=True)
        sys.stdin.readline()
"""


class Shop:
    """A store with a few tasks in it, and the command line on it."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        with PersistentExecutor(1, store=folder / name, queue="first") as executor:
            self.done = executor.submit(pow, 2, 5).task_id
            self.failed = executor.submit(int, "seven").task_id
        with PersistentExecutor(1, store=folder / name, queue="second") as executor:
            self.other_failed = executor.submit(int, "eight").task_id

    def run(self, *args: str, status: int = 0) -> "subprocess.CompletedProcess[str]":
        done = omniq(self.folder, *args, "--store", self.name)
        assert done.returncode == status, done.stderr
        return done

    def json(self, *args: str, status: int = 0) -> Any:
        return json.loads(self.run(*args, "--json", status=status).stdout)

    def open(self) -> Store:
        return open_store(self.folder / self.name, create=False)

    def statuses(self) -> dict[str, str]:
        store = self.open()
        try:
            return {task.task_id: task.status.name for task in store.find()}
        finally:
            store.close()


def omniq(folder: Path, *args: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "omniq_executor", *args]
    env = {**os.environ, "PYTHONPATH": ROOT, **variables}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(params=["a.db", "a"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Shop:
    return Shop(tmp_path, request.param)


@pytest.fixture
def held(shop: Shop) -> Iterator["subprocess.Popen[str]"]:
    """A process whose executor runs one call, and has three more that wait."""
    script = shop.folder / "holds.py"
    script.write_text(HOLDS)
    command = [sys.executable, str(script), shop.name]
    env = {**os.environ, "PYTHONPATH": ROOT}
    with subprocess.Popen(
        command, cwd=shop.folder, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def ids_of(process: "subprocess.Popen[str]") -> list[str]:
    assert process.stdout
    return process.stdout.readline().split()


def test_retry_makes_the_named_tasks_pending(shop: Shop) -> None:
    assert "1 task PENDING again" in shop.run("retry", shop.failed).stdout
    assert shop.statuses() == {shop.done: "COMPLETED", shop.failed: "PENDING", shop.other_failed: "FAILED"}


def test_retry_takes_all_that_failed_or_those_of_a_queue(shop: Shop) -> None:
    assert shop.json("retry", "--failed", "--queue", "second") == {"retried": [shop.other_failed], "unchanged": {}}
    assert shop.json("retry", "--failed") == {"retried": [shop.failed], "unchanged": {}}
    assert shop.json("retry", "--failed", status=1) == {"retried": [], "unchanged": {}}


def test_retry_names_what_it_did_not_retry(shop: Shop) -> None:
    unknown = "task-0000000000000"
    told = shop.json("retry", shop.done, shop.failed, unknown, shop.failed, status=1)
    assert told == {"retried": [shop.failed], "unchanged": {shop.done: "COMPLETED", unknown: None}}
    told = shop.run("retry", shop.done, unknown, status=1).stderr
    assert told == f"{shop.done} is COMPLETED, and is not retried\n{unknown} is not there, and is not retried\n"


def test_a_task_that_is_retried_is_run_by_an_idle_executor_that_runs_leftovers(
    shop: Shop, wait_until: Callable[..., Any]
) -> None:
    with PersistentExecutor(1, store=shop.folder / shop.name, queue="first", leftovers="run") as executor:
        assert executor.submit(pow, 2, 3).result(30) == 8
        shop.run("retry", shop.failed)
        with closing(shop.open()) as store:  # nobody waits for the executor, which would wake it
            wait_until(lambda: (task := store.get(shop.failed)).attempts == 2 and task.status is Status.FAILED, 3)


def test_cancel_takes_what_has_not_started_and_no_other(shop: Shop, held: "subprocess.Popen[str]") -> None:
    running, first, second, third = ids_of(held)
    assert shop.json("cancel", first, second) == {"cancelled": [first, second], "unchanged": {}}
    told = shop.json("cancel", running, first, third, status=1)
    assert told == {"cancelled": [third], "unchanged": {running: "RUNNING", first: "CANCELLED"}}
    assert held.stdin
    assert held.stdout
    (shop.folder / "go").touch()
    held.stdin.write("\n\n")
    held.stdin.flush()
    assert held.stdout.readline() == "7\n"
    assert held.wait(30) == 0
    statuses = shop.statuses()
    assert [statuses[id] for id in (running, first, second, third)] == ["COMPLETED"] + 3 * ["CANCELLED"]


def test_cancel_ends_a_series_whichever_of_it_is_named(shop: Shop) -> None:
    store = shop.open()
    owner = store.enter("series")
    run = store.begin_run("series", owner, "never", now())
    first = 77
    every = Options(interval=10**9)
    store.turn(
        owner, run, Turn(now(), [Batch(first, 1, Function(b"f" * 16, "f", b"f"), calls=[Call("[]")], options=every)])
    )
    (claimed,) = store.turn(owner, run, Turn(now(), claim=1)).claimed
    end = Outcome(first, claimed.attempt, Event.COMPLETE, "1", successor=Successor(first + 1, now() + 10**9))
    store.turn(owner, run, Turn(now(), outcomes=[end]))
    one, two = store.find(queue="series")
    assert (one.status, two.status) == (Status.COMPLETED, Status.PENDING)
    assert shop.json("cancel", one.task_id) == {"cancelled": [two.task_id], "unchanged": {}}
    store.end_run(run, True, now())
    store.leave(owner)
    store.close()


def test_forget_removes_what_a_function_returned_and_what_was_given_it(shop: Shop) -> None:
    with PersistentExecutor(1, store=shop.folder / shop.name, queue="third") as executor:
        child = executor.submit(pow, executor.submit(abs, -2), 3)
        assert child.result(30) == 8
    found = {"calls": 1, "dependents": 1, "removed": 0}
    assert shop.json("forget", "--function", "abs", "--dry-run") == found
    assert shop.json("forget", "--function", "abs", "--queue", "first", status=1) == dict.fromkeys(found, 0)
    assert len(shop.statuses()) == 5
    assert shop.run("forget", "--function", "builtins.abs").stdout == (
        "1 task of builtins.abs, and 1 that were given their results: 2 removed\n"
    )
    assert shop.statuses().keys() == {shop.done, shop.failed, shop.other_failed}
    assert "nothing is removed" in shop.run("forget", "--function", "pow", "--dry-run").stdout
    shop.run("forget", "--function", "abs", status=1)


def test_forget_leaves_what_is_under_way(shop: Shop, held: "subprocess.Popen[str]") -> None:
    ids = ids_of(held)
    assert shop.json("forget", "--function", "pow") == {"calls": 1, "dependents": 0, "removed": 1}
    assert set(ids) <= shop.statuses().keys()


def test_forget_needs_a_function(shop: Shop) -> None:
    assert "--function" in shop.run("forget", status=2).stderr


def test_purge_removes_what_ended_long_enough_ago(shop: Shop) -> None:
    assert shop.json("purge", "--older-than", "1h", status=1) == {"removed": 0}
    assert shop.json("purge", "--older-than", "0", "--status", "completed") == {"removed": 1}
    assert shop.json("purge", "--older-than", "0", "--queue", "second") == {"removed": 1}
    assert shop.statuses() == {shop.failed: "FAILED"}
    assert shop.run("purge", "--older-than", "0s").stdout == "1 task removed\n"
    assert shop.run("purge", "--older-than", "9999999999999w", status=1).stdout == "0 tasks removed\n"


def test_purge_leaves_what_is_not_finished(shop: Shop, held: "subprocess.Popen[str]") -> None:
    ids = ids_of(held)
    assert shop.json("purge", "--older-than", "0") == {"removed": 3}
    assert shop.statuses() == dict(zip(ids, ["RUNNING", "PENDING", "PENDING", "PENDING"], strict=True))


def test_purge_goes_by_the_settings_if_it_is_not_told_otherwise(shop: Shop) -> None:
    assert omniq(shop.folder, "purge", "--store", shop.name).returncode == 2
    assert omniq(shop.folder, "purge", "--store", shop.name, OMNIQ_RESULT_TTL="7d").returncode == 1
    assert omniq(shop.folder, "purge", "--store", shop.name, OMNIQ_RESULT_TTL="0.000001").returncode == 0


def test_a_backup_is_a_store_and_overwrites_nothing(shop: Shop) -> None:
    copy = f"saved/{shop.name}"
    assert shop.json("backup", copy) == {"backup": str(shop.folder / copy), "tasks": 3}
    assert [path.name for path in (shop.folder / "saved").iterdir()] == [shop.name]
    listed = omniq(shop.folder, "list", "--json", "--store", copy)
    assert listed.stdout.count('{"id": "task-') == 3
    assert listed.stdout == shop.run("list", "--json").stdout
    told = shop.run("backup", copy, status=1).stderr
    assert told == f"Error: {copy} is there already; give a path that is free\n"
    other = "copy" if shop.name.endswith(".db") else "copy.db"
    assert "omniq-executor migrate" in shop.run("backup", other, status=2).stderr


def test_a_backup_of_a_store_at_work_can_be_worked_on(shop: Shop, held: "subprocess.Popen[str]") -> None:
    ids = ids_of(held)
    shop.run("backup", f"saved/{shop.name}")
    (shop.folder / "go").touch()
    saved = shop.folder / "saved" / shop.name
    with PersistentExecutor(1, store=saved, queue="held") as executor:
        assert [executor.future(id).result(30) for id in ids] == [7, 1, 2, 4]


def test_doctor_finds_nothing_in_a_store_in_order(shop: Shop) -> None:
    assert shop.run("doctor").stdout == f"{shop.folder / shop.name}: no problems; 0 processes work on it\n"
    assert shop.json("doctor") == {"store": str(shop.folder / shop.name), "problems": [], "owners": []}


def test_doctor_frees_what_the_dead_hold(shop: Shop, held: "subprocess.Popen[str]") -> None:
    running, *_ = ids_of(held)
    alive = shop.json("doctor")
    assert (alive["problems"], [owner["pid"] for owner in alive["owners"]]) == ([], [held.pid])
    held.send_signal(signal.SIGKILL)
    held.wait(30)
    found = shop.json("doctor")
    assert {problem["repaired"] for problem in found["problems"]} == {True}
    assert any(str(held.pid) in problem["what"] for problem in found["problems"])
    assert found["owners"] == []
    assert shop.statuses()[running] == "PENDING"
    assert shop.json("doctor")["problems"] == []


def test_doctor_says_what_it_could_not_repair(shop: Shop) -> None:
    if shop.name.endswith(".db"):
        path = shop.folder / shop.name
        content = bytearray(path.read_bytes())
        content[2048 * 2 : 2048 * 12] = b"\xff" * 20480
        path.write_bytes(content)
    else:
        for function in (shop.folder / shop.name / "functions").iterdir():
            function.unlink()
    done = omniq(shop.folder, "doctor", "--store", shop.name)
    assert done.returncode == 1
    assert "PROBLEM" in done.stdout or done.stderr.startswith("Error: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("verb", main.list_commands(click.Context(main)))
def test_every_verb_has_help_with_an_example(verb: str) -> None:
    done = CliRunner().invoke(main, [verb, "--help"], prog_name="omniq-executor")
    assert done.exit_code == 0
    assert f"For example:\n    omniq-executor {verb}" in done.stdout


@pytest.mark.parametrize(
    "args",
    [
        ["retry"],
        ["retry", "--failed", "task-0000000000000"],
        ["retry", "--queue", "x", "task-0000000000000"],
        ["retry", "seven"],
        ["cancel"],
        ["cancel", "seven"],
        ["purge", "--older-than", "a week"],
        ["purge", "--older-than", "-1"],
        ["purge", "--older-than", "1d", "--status", "RUNNING"],
        ["backup"],
    ],
    ids=" ".join,
)
def test_a_command_that_makes_no_sense_is_a_usage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, args)
    assert (done.exit_code, done.stdout) == (2, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "args",
    [
        ["retry", "--failed"],
        ["cancel", "task-0000000000000"],
        ["purge", "--older-than", "1d"],
        ["backup", "x.db"],
        ["doctor"],
    ],
    ids=" ".join,
)
def test_a_store_that_is_not_there_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, args)
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert list(tmp_path.iterdir()) == []
    assert logging.getLogger("omniq_executor").level == logging.NOTSET  # whoever calls it in a process of theirs
