"""The command line, as a user runs it: real processes on real stores."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from omniq_executor import PersistentExecutor

pytestmark = pytest.mark.once

SCRIPT = """
import sys
from omniq_executor import PersistentExecutor

if __name__ == "__main__":
    with PersistentExecutor(1, store="held.db", queue="held") as executor:
        executor.submit(pow, 2, 3).result()
        print("ready", flush=True)
        sys.stdin.read()
"""


class Trap:
    """Leaves a file behind wherever it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


class Store:
    """A store with one task of each kind, and the command line on it."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        self.marker = folder / "unpickled"
        with PersistentExecutor(1, store=folder / name, queue="first") as executor:
            self.plain = executor.submit(pow, 2, 5)
            self.pickled = executor.submit(complex, 1, 2)
            self.failed = executor.submit(int, "seven")
        time.sleep(0.02)  # ids are in the order of time by 16 ms, and what is asserted is in the order of ids
        with PersistentExecutor(1, store=folder / name, queue="second") as executor:
            self.trap = executor.submit(repr, Trap(self.marker))
            self.rude = executor.submit(exec, "raise ValueError('\\x1b[31m[bold]\\udc80')")
        self.marker.unlink()  # the worker had to unpickle it
        self.tasks = [self.plain, self.pickled, self.failed, self.trap, self.rude]

    def run(self, *args: str) -> str:
        done = omniq(self.folder, *args, "--store", self.name)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def json(self, *args: str) -> Any:
        return json.loads(self.run(*args, "--json"))

    def lines(self, *args: str) -> list[Any]:
        """What is one JSON object a line."""
        return [json.loads(line) for line in self.run(*args, "--json").splitlines()]


def omniq(folder: Path, *args: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "omniq_executor", *args]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module", params=["a.db", "a"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"), request.param)


def test_importing_the_package_loads_nothing_of_the_terminal() -> None:
    code = "import sys, omniq_executor; print(sorted({'click', 'rich'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, timeout=60) == "[]\n"


def test_status_counts_each_queue_and_state(store: Store) -> None:
    assert store.json("status")["queues"] == {
        "first": {"COMPLETED": 2, "FAILED": 1},
        "second": {"COMPLETED": 1, "FAILED": 1},
    }
    heading, first, second, _, usage, _, step = store.run("status").splitlines()
    assert heading.split() == ["QUEUE", "PENDING", "RUNNING", "COMPLETED", "FAILED", "CANCELLED"]
    assert first.split() == ["first", "0", "0", "2", "1", "0"]
    assert second.split() == ["second", "0", "0", "1", "1", "0"]
    assert "on disk; the oldest task is of 20" in usage
    assert step == f"2 tasks have failed: `omniq-executor failures --store {store.name}` shows why"


def test_status_tells_what_is_to_go_and_when(tmp_path: Path) -> None:
    for queue, days in (("one", 1), ("two", 2), ("three", 3)):
        code = (
            f"from omniq_executor import PersistentExecutor\nwith PersistentExecutor(1, store='x.db', queue={queue!r},"
            f" result_ttl={days * 86400}) as e: list(e.map(abs, range({days})))"
        )
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=60)
    usage = json.loads(omniq(tmp_path, "status", "--store", "x.db", "--json").stdout)["usage"]
    assert [found["tasks"] for found in usage["expiring"]] == [1, 2, 3]
    assert usage["oldest"] < usage["expiring"][0]["after"] < usage["expiring"][1]["after"]
    assert usage["bytes"] > 10_000
    first, last = (f"{usage['expiring'][n]['after'][:19]}Z" for n in (0, -1))
    said = omniq(tmp_path, "status", "--store", "x.db").stdout.splitlines()[-3]
    assert f"; 1 task can go after {first}; 5 tasks until {last}" in said


def test_status_tells_a_living_owner_from_a_dead_one(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        alive = omniq(tmp_path, "status", "--store", "held.db").stdout
        process.kill()
    dead = omniq(tmp_path, "status", "--store", "held.db").stdout
    for output, state in (alive, "alive"), (dead, "dead"):
        owner = output.splitlines()[-5].split()
        assert (owner[1], owner[3], owner[-1]) == ("held", str(process.pid), state)


def test_list_has_whole_rows_in_a_pipe_the_newest_last(store: Store) -> None:
    heading, *rows = store.run("list").splitlines()
    assert heading.startswith("ID ")
    assert [row.split()[0] for row in rows] == [task.task_id for task in store.tasks]
    assert "ValueError: invalid literal for int() with base 10: 'seven'" in rows[2]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (["--status", "FAILED"], [2, 4]),
        (["--status", "completed", "--queue", "first"], [0, 1]),
        (["--queue", "second"], [3, 4]),
        (["--limit", "2"], [3, 4]),
        (["--status", "FAILED", "--limit", "1"], [4]),
        (["--queue", "nobody's"], []),
    ],
)
def test_list_takes_filters(store: Store, filters: list[str], expected: list[int]) -> None:
    assert [task["id"] for task in store.lines("list", *filters)] == [store.tasks[i].task_id for i in expected]


def test_list_as_json_has_every_field(store: Store) -> None:
    plain, pickled, failed, trap, _ = store.lines("list")
    assert plain["func_path"] == "builtins.pow"
    assert (plain["args"], plain["kwargs"], plain["result"], plain["status"]) == ([2, 5], {}, 32, "COMPLETED")
    assert plain["enqueued_at"] <= plain["started_at"] <= plain["completed_at"]
    assert plain["failed_at"] is plain["error"] is plain["eta"] is None
    assert (plain["attempts"], plain["crashes"], plain["queue"]) == (1, 0, "first")
    assert set(pickled["result"]) == set(trap["args"]) == {"pickle"}
    assert failed["completed_at"] is None
    assert failed["error"]["type"] == "ValueError"


def test_show_tells_everything_about_a_task(store: Store) -> None:
    shown = store.run("show", store.failed.task_id)
    for text in store.failed.task_id, "FAILED", "builtins.int", '["seven"]', "ValueError: invalid literal", "Traceback":
        assert text in shown
    assert store.json("show", store.failed.task_id) in store.lines("list")


def test_show_shortens_what_is_long_unless_told_not_to(tmp_path: Path) -> None:
    with PersistentExecutor(1, store=tmp_path / "a.db") as executor:
        future = executor.submit(str, "x" * 5000)
        assert len(future.result()) == 5000
    command = ["show", str(future.task_id), "--store", "a.db"]
    shown, whole = omniq(tmp_path, *command).stdout, omniq(tmp_path, *command, "--full").stdout
    assert (shown.count("x" * 900), len(shown) < 3500) == (2, True)
    assert shown.count("(the first 1000 of 5,00") == 2
    assert whole.count("x" * 5000) == 2
    assert len(omniq(tmp_path, *command, "--json").stdout) > 10_000


@pytest.mark.parametrize("name", ["a.db", "a"])
def test_show_tells_for_whose_results_a_task_waits(tmp_path: Path, name: str) -> None:
    executor = PersistentExecutor(1, store=tmp_path / name)
    first = executor.options(eta=3600).submit(pow, 2, 3)
    later = executor.submit(pow, first, 2)
    command = ["show", str(later.task_id), "--store", name]
    fields = json.loads(omniq(tmp_path, *command, "--json").stdout)
    assert (fields["status"], fields["after"], fields["eta"]) == ("PENDING", [first.task_id], None)
    assert f"<result of {first.task_id}>, 2" in omniq(tmp_path, *command, "--load").stdout
    executor.kill_workers()


def test_looking_unpickles_nothing(store: Store) -> None:
    for command in ["status"], ["list"], ["failures"], ["watch"], ["show", store.trap.task_id]:
        store.run(*command)
        store.run(*command, "--json")
    assert not store.marker.exists()
    assert "(--load shows it)" in store.run("show", store.trap.task_id)
    assert "(--load shows it)" in store.run("show", store.pickled.task_id)


def test_show_unpickles_when_told_to(store: Store) -> None:
    shown = store.run("show", store.pickled.task_id, "--load")
    assert "(1+2j)" in shown
    assert store.json("show", store.pickled.task_id, "--load")["loaded"] == {"result": "(1+2j)"}
    store.run("show", store.trap.task_id, "--load")
    assert store.marker.exists()
    store.marker.unlink()


def test_text_from_a_task_cannot_steer_the_terminal(store: Store) -> None:
    for command in ["list"], ["show", store.rude.task_id]:
        shown = store.run(*command)
        assert "\x1b" not in shown
        assert r"\x1b[31m[bold]\udc80" in shown


@pytest.mark.parametrize("command", [["status"], ["list"], ["show", "task-0000000000000"]])
def test_looking_creates_no_store(tmp_path: Path, command: list[str]) -> None:
    for where in [], ["--store", "other.db"]:
        done = omniq(tmp_path, *command, *where)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("Error: ")
        assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_looking_makes_no_store_of_an_empty_file_or_folder(tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    (tmp_path / "empty").mkdir()
    for name in "empty.db", "empty":
        for command in ["status"], ["list"], ["watch"], ["failures"], ["doctor"], ["retry", "--failed"]:
            done = omniq(tmp_path, *command, "--store", name)
            assert (done.returncode, done.stdout) == (1, "")
            assert done.stderr.startswith("Error: there is no store at ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "empty.db"]
    assert ((tmp_path / "empty.db").stat().st_size, [*(tmp_path / "empty").iterdir()]) == (0, [])
    with PersistentExecutor(1, store=tmp_path / "empty.db") as executor:
        assert executor.submit(abs, -1).result() == 1
    (tmp_path / "made.db-owners").mkdir(mode=0o700)
    (tmp_path / "made.db").touch(mode=0o600)
    assert omniq(tmp_path, "status", "--store", "made.db").returncode == 0  # another process makes it just now


def test_a_file_that_is_no_store_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("not a database, only longer than the header of one " * 20)
    done = omniq(tmp_path, "status", "--store", "notes.db")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "notes.db" in done.stderr


def test_an_unknown_task_is_an_error_and_a_malformed_id_a_usage_error(store: Store) -> None:
    unknown = omniq(store.folder, "show", "task-0000000000000", "--store", store.name)
    assert (unknown.returncode, unknown.stdout, unknown.stderr.count("\n")) == (1, "", 1)
    assert "task-0000000000000" in unknown.stderr
    malformed = omniq(store.folder, "show", "seven", "--store", store.name)
    assert malformed.returncode == 2
    assert "'seven' is not a task id" in malformed.stderr


def test_a_reader_that_leaves_early_is_no_error_of_ours(store: Store) -> None:
    command = f"'{sys.executable}' -m omniq_executor list --store {store.name} | true"  # it has left before we begin
    done = subprocess.run(["bash", "-c", command], cwd=store.folder, capture_output=True, timeout=60, check=True)
    assert done.stderr == b""
