"""The command line on a terminal and for people: `watch`, tables that adapt, completion, what to do next."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from terminal import Terminal

import omniq_executor
from omniq_executor import PersistentExecutor, open_store
from omniq_executor.cli.advice import next_steps
from omniq_executor.cli.console import layout_of
from omniq_executor.cli.watching import RunningCall, Snapshot, duration, look, shown
from omniq_executor.model.failures import groups_of
from omniq_executor.model.task import ErrorInfo, FailedCall, Status
from omniq_executor.stores.base import Owner, RunRecord

pytestmark = pytest.mark.once
ENV = {"PYTHONPATH": os.pathsep.join([str(Path(omniq_executor.__file__).parents[1]), str(Path(__file__).parent)])}


def omniq(folder: Path, *args: str, **env: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "omniq_executor", *args]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **env}
    )


# --- watch ---

BUSY = """
import os, sys
from omniq_executor import PersistentExecutor

def wait(name):
    open(f"{name} began", "w").close()
    while not os.path.exists("gate"):
        __import__("time").sleep(0.01)

def fail(name):
    raise ValueError(name)

if __name__ == "__main__":
    with PersistentExecutor(1, store=sys.argv[1], queue="busy") as executor:
        list(executor.map(fail, ["one", "two"], return_exceptions=True))
        executor.submit(wait, "first")
        executor.submit(wait, "second")
        print("ready", flush=True)
        sys.stdin.read()
"""
DONE = r"busy +0 +0 +2 +2 +0"


class Busy:
    """A process that is in a call, with another one that waits."""

    def __init__(self, folder: Path, store: str, wait_until: Any) -> None:
        self.folder, self.store = folder, store
        (folder / "busy.py").write_text(BUSY)
        self.process = subprocess.Popen(
            [sys.executable, "busy.py", store], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **ENV}, start_new_session=True,
        )  # fmt: skip
        assert self.process.stdout
        assert self.process.stdout.readline() == "ready\n"
        wait_until(lambda: (folder / "first began").exists())

    def watch(self, **size: int) -> Terminal:
        command = [sys.executable, "-m", "omniq_executor", "watch", "--store", self.store]
        return Terminal(command, self.folder, env=ENV, **size)


@pytest.fixture(params=["x.db", "x"])
def busy(request: pytest.FixtureRequest, tmp_path: Path, wait_until: Any) -> Iterator[Busy]:
    made = Busy(tmp_path, request.param, wait_until)
    yield made
    (tmp_path / "gate").touch()
    made.process.communicate(timeout=60)


def test_watch_shows_what_runs_goes_on_and_ends_on_ctrl_c(busy: Busy) -> None:
    with busy.watch() as terminal:
        terminal.wait_for('wait ["first"]')
        terminal.wait_for("ValueError")
        assert "busy.py:11, in fail" in terminal.text
        at = len(terminal.text)
        (busy.folder / "gate").touch()
        while not re.search(DONE, terminal.text[at:]):
            at = terminal.wait_for("busy", at)
            terminal.wait_for("PER SECOND", at)
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.wait() == 0
    assert b"\x1b[?1049h" in terminal.raw
    last = terminal.raw.rpartition(b"\x1b[?1049l")[2].decode()  # the screen of before, with the last look
    assert re.search(DONE, last)
    assert "Traceback" not in terminal.text


def test_watch_gives_the_terminal_back_on_sigterm(busy: Busy) -> None:
    with busy.watch() as terminal:
        terminal.wait_for("first")
        terminal.process.terminate()
        assert terminal.wait() == 0
    assert b"\x1b[?1049l" in terminal.raw


def test_watch_prints_once_where_there_is_no_terminal(busy: Busy) -> None:
    done = omniq(busy.folder, "watch", "--store", busy.store, COLUMNS="120")
    assert (done.returncode, done.stderr) == (0, "")
    assert 'wait ["first"]' in done.stdout
    assert "\x1b" not in done.stdout
    (line,) = omniq(busy.folder, "watch", "--store", busy.store, "--json").stdout.splitlines()
    found = json.loads(line)
    assert found["queues"]["busy"]["FAILED"] == 2
    (running,) = found["running"]
    assert (running["call"], running["pid"]) == ('__main__.wait ["first"]', busy.process.pid)
    assert running["seconds"] > 0
    (owner,) = found["owners"]
    assert (owner["pid"], owner["run"], owner["alive"]) == (busy.process.pid, 1, True)
    assert [group["count"] for group in found["failures"]] == [2]


def test_a_look_reads_failures_again_only_if_there_are_others_and_tells_the_rate(busy: Busy) -> None:
    store = open_store(busy.folder / busy.store, create=False)
    try:
        first = look(store)
        again = look(store, first)
        assert again.failures is first.failures
        assert again.rates == {"busy": 0}
        store.retry([store.find(Status.FAILED)[0].id], 1)
        assert look(store, again).failures.calls == 1
    finally:
        store.close()


def of_rich(snapshot: Snapshot, width: int, height: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height)
    console.print(shown(snapshot, width, height))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("width", "height"), [(200, 60), (120, 40), (100, 24), (60, 24)])
def test_what_is_watched_fits_into_the_terminal(width: int, height: int) -> None:
    error = ErrorInfo("ValueError", "no " * 200, 'Traceback (most recent call last):\n  File "/x.py", line %d, in f\n')
    snapshot = Snapshot(
        "/here/x.db",
        10**15,
        {f"queue {n}": {Status.PENDING: n} for n in range(90)},
        [Owner(n, "queue 1", "host", n, 10**15 - 10**8 * n, n != 2) for n in range(1, 9)],
        {1: RunRecord(7, "queue 1", 1, (), 0, None, None, False)},
        [RunningCall(f"task-{n:013}", "queue 1", f"parse ['{'x' * 300}']\x1b[31m", 1, 9.5) for n in range(50)],
        groups_of(
            FailedCall(n, 1, "q", "f", 1, error._replace(traceback=error.traceback % n)) for n in range(1, 30)
        ),
    )  # fmt: skip
    lines = of_rich(snapshot, width, height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "\x1b[31m" not in text
    for what in ("more queues", "more calls that run", "more ways to fail", "run 7", "2 on host, dead", "ValueError"):
        assert what in text
    assert re.search(r"task-0000000000000 +9\.5 s", text)
    headings = {word for line in lines for word in line.split() if word.isupper() and word.isalpha()}
    assert headings <= {"QUEUE", *Status.__members__, "PER", "SECOND", "PROCESS", "RUN", "FOR", "CALL", "EXCEPTION",
                        "WHERE", "SUCH", "AS"}  # fmt: skip
    assert {"QUEUE", "PENDING", "PROCESS", "RUNNING", "CALL", "FAILED"} <= headings
    assert not any("…" in line for line in lines if "QUEUE" in line or "RUNNING" in line)


def test_an_empty_store_says_so() -> None:
    assert of_rich(Snapshot("/here/x.db", 10**15), 80, 24)[-1] == "there is nothing in it yet"


@pytest.mark.parametrize(("seconds", "said"), [(0, "0.0 s"), (59.94, "59.9 s"), (60, "1:00"), (3725, "1:02:05")])
def test_durations_are_said_shortly(seconds: float, said: str) -> None:
    assert duration(seconds) == said


# --- tables ---

ROWS = [["ID", "TIME", "QUEUE", "ERROR"], ["x" * 18, "t" * 20, "q" * 5, "e" * 100]]


@pytest.mark.parametrize(
    ("width", "layout"),
    [
        (200, ([0, 1, 2, 3], [])),
        (156, ([0, 1, 2, 3], [])),
        (155, ([0, 1, 2, 3], [3])),
        (80, ([0, 1, 2, 3], [3])),
        (79, ([0, 2, 3], [3])),
        (57, ([0, 2, 3], [3])),
        (56, ([0, 3], [3])),
        (39, ([0, 3], [3])),
        (38, None),
    ],
)
def test_a_table_is_folded_then_loses_columns_then_is_none(width: int, layout: Any) -> None:
    assert layout_of(ROWS, [1, 2], width) == layout


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("listed")
    with PersistentExecutor(1, store=folder / "x.db", queue="q") as executor:
        executor.submit(int, f"{'seven ' * 30}end")
    return folder


@pytest.mark.parametrize(
    ("columns", "left_out"),
    [
        (400, ""),
        (130, ""),
        (100, "too narrow for ENQUEUED, QUEUE\n"),
        (80, "too narrow for ENQUEUED, FINISHED, QUEUE\n"),
        (40, ""),
    ],
)
def test_list_adapts_to_the_terminal_and_cuts_nothing(listed: Path, columns: int, left_out: str) -> None:
    command = [sys.executable, "-m", "omniq_executor", "list", "--store", "x.db"]
    with Terminal(command, listed, columns=columns, env=ENV) as terminal:
        assert terminal.wait() == 0
    lines = terminal.text.splitlines()
    assert columns == 40 or max(map(len, lines)) <= columns
    assert left_out in terminal.text
    assert ("too narrow" in terminal.text) == bool(left_out)
    assert terminal.text.count("seven") == 30
    assert terminal.text.count("end") == 1


def test_list_takes_function_tag_run_and_since(tmp_path: Path) -> None:
    with PersistentExecutor(1, store=tmp_path / "x.db", queue="q") as executor:
        power = executor.options(tags=["a", "b"]).submit(pow, 2, 3)
        absolute = executor.options(tags=["a"]).submit(abs, -1)
    with PersistentExecutor(1, store=tmp_path / "x.db", queue="q") as executor:
        other = executor.submit(abs, -2)

    def found(*args: str) -> list[str]:
        lines = omniq(tmp_path, "list", "--store", "x.db", "--json", *args).stdout.splitlines()
        return [json.loads(line)["id"] for line in lines]

    assert found("--function", "abs") == [absolute.task_id, other.task_id]
    assert found("--function", "builtins.abs", "--run", "1") == [absolute.task_id]
    assert found("--tag", "a") == [power.task_id, absolute.task_id]
    assert found("--tag", "a", "--tag", "b") == [power.task_id]
    assert found("--since", "1h") == [power.task_id, absolute.task_id, other.task_id]
    assert found("--since", "2999-01-01T12:00") == []
    done = omniq(tmp_path, "list", "--store", "x.db", "--since", "last-week")
    assert done.returncode == 2
    assert "'last-week' is no time: give how long ago, 2h say, or a date" in done.stderr


# --- completion ---


def completed(folder: Path, words: str, **more: str) -> list[str]:
    """What bash is told for a line that ends with the cursor."""
    env = {
        "_OMNIQ_EXECUTOR_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
        **more,
    }
    script = Path(sys.executable).with_name("omniq-executor")
    done = subprocess.run(
        [script], cwd=folder, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **env}
    )
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_is_given_its_completion(shell: str, tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("omniq-executor")
    env = {**os.environ, "_OMNIQ_EXECUTOR_COMPLETE": f"{shell}_source"}
    done = subprocess.run([script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert "_OMNIQ_EXECUTOR_COMPLETE" in done.stdout
    assert "omniq-executor" in done.stdout


def test_commands_options_and_states_are_completed(tmp_path: Path) -> None:
    assert completed(tmp_path, "omniq-executor w") == ["watch", "worker"]
    assert completed(tmp_path, "omniq-executor failures --fu") == ["--function"]
    assert [found.upper() for found in completed(tmp_path, "omniq-executor list --status F")] == ["FAILED"]


# --- what to do next ---

ALIVE, DEAD = Owner(1, "etl", "here", 10, 0, True), Owner(2, "etl", "here", 11, 0, False)
WORKER = Owner(3, "a, etl", "here", 12, 0, True)
ANY = Owner(3, "*", "here", 12, 0, True)


def run(id: int, ended_at: int | None = 5, clean: bool | None = True, settled: bool = True) -> RunRecord:
    return RunRecord(id, "etl", 2, (), 0, ended_at, clean, settled)


KILLED = run(7, None, None, False)
FAILED = run(8, 5, False, False)
WARM = run(9)._replace(context="folder.init.2023")
STEPS: dict[str, tuple[list[Any], list[str]]] = {
    "nothing": ([{}, [], [], {}, None], ["Nothing is left to do."]),
    "all is well": ([{"etl": {Status.COMPLETED: 3}}, [], [run(1)], {}, None], ["Nothing is left to do."]),
    "failures": (
        [{"etl": {Status.FAILED: 1}}, [], [run(1)], {}, None],
        ["1 task has failed: `omniq-executor failures` shows why"],
    ),
    "work": (
        [{"etl": {Status.PENDING: 2, Status.RUNNING: 1}}, [ALIVE], [KILLED], {7: 3}, "a b.db"],
        ["3 tasks are to be done in queue 'etl': `omniq-executor watch --store 'a b.db'` shows how it goes"],
    ),
    "work of a worker": (
        [{"etl": {Status.PENDING: 1}}, [WORKER], [], {0: 1}, None],
        ["1 task is to be done in queue 'etl': `omniq-executor watch` shows how it goes"],
    ),
    "work of a worker of all queues": (
        [{"etl": {Status.PENDING: 1}}, [ANY], [], {0: 1}, None],
        ["1 task is to be done in queue 'etl': `omniq-executor watch` shows how it goes"],
    ),
    "a killed run": (
        [{"etl": {Status.PENDING: 2, Status.RUNNING: 1}}, [DEAD], [run(1), KILLED], {7: 3}, None],
        ["run 7 of queue 'etl' was killed, with 3 tasks left: start its script again, and it goes on where it was"],
    ),
    "a run that failed after all calls": (
        [{"etl": {Status.COMPLETED: 2}}, [], [KILLED, FAILED], {}, None],
        ["run 8 of queue 'etl' did not end well: start its script again, and it goes on where it was"],
    ),
    "leftovers": (
        [{"etl": {Status.PENDING: 5}}, [], [run(1), run(2), run(3)], {1: 3, 3: 2}, None],
        ["5 tasks are left in queue 'etl', and nobody works on it: `omniq-executor worker --queue etl` runs them,"
         " `omniq-executor cancel --run 1` and `omniq-executor cancel --run 3` cancel them"],
    ),
    "leftovers that need an initializer": (
        [{"etl": {Status.PENDING: 5}}, [], [run(1), WARM], {1: 3, 9: 2}, None],
        ["3 tasks are left in queue 'etl', and nobody works on it: `omniq-executor worker --queue etl` runs them,"
         " `omniq-executor cancel --run 1` cancels them",
         "2 tasks are left in queue 'etl' that need an initializer: their script runs them, with leftovers='run' and"
         " the same initializer and arguments, `omniq-executor cancel --run 9` cancels them"],
    ),
    "messages without a worker": (
        [{"etl": {Status.PENDING: 1}}, [], [], {0: 1}, "x.db"],
        ["1 task is left in queue 'etl', and nobody works on it:"
         " `omniq-executor worker --queue etl --store x.db` runs them"],
    ),
    "a killed run, and leftovers of another": (
        [{"etl": {Status.PENDING: 5, Status.FAILED: 2}}, [], [run(1), KILLED], {1: 2, 7: 3}, None],
        ["2 tasks have failed: `omniq-executor failures` shows why",
         "run 7 of queue 'etl' was killed, with 3 tasks left: start its script again, and it goes on where it was",
         "2 tasks are left in queue 'etl', and nobody works on it: `omniq-executor worker --queue etl` runs them,"
         " `omniq-executor cancel --run 1` cancels them"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("situation", STEPS)
def test_what_is_to_do_next_in(situation: str) -> None:
    given, steps = STEPS[situation]
    assert next_steps(*given) == steps


def test_status_ends_with_what_to_do_next_after_a_kill(busy: Busy) -> None:
    working = omniq(busy.folder, "status", "--store", busy.store).stdout.splitlines()
    assert working[-1] == (
        f"2 tasks are to be done in queue 'busy': `omniq-executor watch --store {busy.store}` shows how it goes"
    )
    os.killpg(busy.process.pid, signal.SIGKILL)
    busy.process.wait(60)
    killed = json.loads(omniq(busy.folder, "status", "--store", busy.store, "--json").stdout)["next"]
    assert killed == [
        f"2 tasks have failed: `omniq-executor failures --store {busy.store}` shows why",
        "run 1 of queue 'busy' was killed, with 2 tasks left: start its script again, and it goes on where it was",
    ]
