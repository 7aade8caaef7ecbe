"""Migration in every direction: all is kept, the source stays, and a kill anywhere costs nothing."""

import contextlib
import itertools
import json
import os
import pty
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import omniq_executor
from omniq_executor import PersistentExecutor, Status, StoreError, open_store
from omniq_executor.model.codec import encode_call
from omniq_executor.model.task import ErrorInfo, Function, Options, Task, log_name
from omniq_executor.stores.base import RunRecord, Store, TaskRow
from omniq_executor.stores.migration import Moved, UnderWay, migrate

pytestmark = pytest.mark.once

ROOT = str(Path(omniq_executor.__file__).parents[1])
NAMES = {"sqlite": "store.db", "file": "store"}
EVERY_WAY = [*itertools.product(NAMES, NAMES)]
FUNCTION = Function(b"function".ljust(16), "numbers.square", b"its pickle")
Open = Callable[..., Store]

SCRIPT = """
import sys
from omniq_executor import PersistentExecutor

def note(n):
    with open("journal", "a") as journal:
        journal.write(f"{n}\\n")
    if n < 0:
        sys.stdin.close()
        raise ValueError(n)
    return {"n": n, "at": (n,)}

if __name__ == "__main__":
    with PersistentExecutor(1, store=sys.argv[1], queue="q") as executor:
        futures = [executor.submit(note, n) for n in range(5)]
        results = [future.result(60) for future in futures[: int(sys.argv[2])]]
        if len(results) < 5:
            import os
            os.kill(os.getpid(), 9)
        print(len(results), executor.store.counts())
"""


def omniq(folder: Path, *args: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "omniq_executor", *args]
    env = {**os.environ, "PYTHONPATH": ROOT}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def open_(tmp_path: Path) -> Iterator[Open]:
    """Opens stores by their name in the test's folder; they are closed after it."""
    with contextlib.ExitStack() as stack:

        def opened(name: str, **how: Any) -> Store:
            return stack.enter_context(contextlib.closing(open_store(tmp_path / name, **how)))

        yield opened


def a_value(name: str, kind: object, number: int) -> Any:
    """Something that the field of a Task can be and usually is not."""
    known = {
        "id": 1000 + number, "queue": "q", "run": 1 + number % 3, "func_path": FUNCTION.path, "func": FUNCTION.pickle,
        "args": '[1,"é",[2.5]]', "kwargs": '{"a":null}', "status": Status.PENDING, "owner": None, "result": None,
        "error": ErrorInfo("ValueError", "no\\udcff", "Traceback", b"pickle"), "key": f"key {number}",
        "options": Options(3, 1, 2.5, 60_000_000, 999, ("a", "b"), b"policy"),
        "started_at": None, "finished_at": None,
    }  # fmt: skip
    if name in known:
        return known[name]
    assert kind is int, f"say here what Task.{name} can be"  # a field that is new
    return 10_000 + number


def some_tasks(count: int = 10) -> list[TaskRow]:
    """Tasks with something in every field, in each of the states, with JSON and with pickles."""
    found = []
    for number in range(count):
        task = Task(**{name: a_value(name, kind, number) for name, kind in get_type_hints(Task).items()})
        status = [*Status][number % 5]
        if status is not Status.PENDING:
            task = task._replace(status=status, owner=5, started_at=77, error=None)
        if status in (Status.COMPLETED, Status.FAILED, Status.CANCELLED):
            task = task._replace(finished_at=88, result="[1,2]" if status is Status.COMPLETED else None)
        identity = None
        if number >= 5:
            args, kwargs = encode_call((complex(1, number), (1,)), {})
            result = b"a pickle" if status is Status.COMPLETED else None
            task = task._replace(args=args, kwargs=kwargs, result=result, key=None, options=None, priority=0, eta=0)
            identity = b"identity".ljust(16)
        found.append(TaskRow(task, FUNCTION.digest, identity))
    return found


RUNS = [
    RunRecord(1, "q", 5, (), 10, 20, True, True),
    RunRecord(2, "q", 6, (1,), 11, None, None, False),
    RunRecord(3, "elsewhere", 7, (1, 2), 12, 22, False, False),
]


def sorted_tasks(store: Store) -> list[TaskRow]:
    return sorted(store.stored(store.ids()), key=lambda stored: stored.task.id)


def write_output(store: Store) -> dict[str, bytes]:
    """Have each task have written something, in two attempts; returns what is kept."""
    for id in store.ids():
        for attempt in (1, 12):
            (store.output.prepare() / log_name(id, attempt)).write_bytes(b"%d in %d" % (id, attempt))
    return output_of(store)


def output_of(store: Store) -> dict[str, bytes]:
    folder = store.output.folder
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def released(tasks: list[TaskRow]) -> list[TaskRow]:
    """As they are where nobody runs any."""
    pending = {"status": Status.PENDING, "owner": None, "started_at": None}
    return [
        one._replace(task=one.task._replace(**pending)) if one.task.status is Status.RUNNING else one for one in tasks
    ]


def ids_for_anybody(path: Path) -> list[int] | None:
    """What somebody finds who uses the store; None if nobody can."""
    try:
        with contextlib.closing(open_store(path, create=False)) as store:
            return store.ids()
    except StoreError:
        return None


@pytest.mark.parametrize(("kind", "other"), EVERY_WAY)
def test_every_field_of_tasks_and_runs_is_kept(open_: Open, tmp_path: Path, kind: str, other: str) -> None:
    source, told = open_(f"a/{NAMES[kind]}"), list[int]()
    tasks = some_tasks()
    source.put(tasks, RUNS)
    assert sorted_tasks(source) == tasks
    assert source.runs() == RUNS
    destination = open_(f"b/{NAMES[other]}", importing=True)
    assert migrate(source, destination, told.append) == Moved(10, 3, 10)
    assert sum(told) == 10
    assert sorted_tasks(destination) == released(tasks)
    assert destination.runs() == RUNS
    assert sorted_tasks(source) == tasks  # it stays as it is
    assert destination.check() == []
    found = destination.by_key("q", "key 2")
    assert found is not None
    assert found.id == 1002
    # All of it is of use: one of a series is cancelled with the others of it.
    assert open_(f"b/{NAMES[other]}").cancel([1000], 99) == [1000, 1001]


@pytest.mark.parametrize(("kind", "other"), EVERY_WAY)
def test_what_tasks_wrote_is_kept_with_its_attempts(open_: Open, kind: str, other: str) -> None:
    source = open_(f"a/{NAMES[kind]}")
    source.put(some_tasks(), RUNS)
    written = write_output(source)
    assert len(written) == 20
    (source.output.folder / log_name(77, 1)).write_bytes(b"of a task that is gone")
    destination = open_(f"b/{NAMES[other]}", importing=True)
    migrate(source, destination, lambda _: None)
    assert output_of(destination) == written
    assert destination.output.attempts(1000) == [1, 12]
    assert destination.check() == []
    modes = {path.stat().st_mode & 0o777 for path in destination.output.folder.iterdir()}
    assert modes | {destination.output.folder.stat().st_mode & 0o777} == {0o600, 0o700}


@pytest.mark.parametrize(("kind", "other"), EVERY_WAY)
def test_a_migration_that_is_run_again_does_nothing(open_: Open, kind: str, other: str) -> None:
    source = open_(f"a/{NAMES[kind]}")
    source.put(some_tasks(), RUNS)
    assert migrate(source, open_(f"b/{NAMES[other]}", importing=True), lambda _: None).written == 10
    destination = open_(f"b/{NAMES[other]}", importing=True)
    destination.cancel([1000], 99)  # somebody has worked on it since
    assert migrate(source, destination, lambda _: None) == Moved(10, 3, 0)
    assert destination.get(1000).status is Status.CANCELLED


@pytest.mark.parametrize("kind", NAMES)
def test_a_part_can_be_opened_by_nobody_until_it_is_finished(open_: Open, tmp_path: Path, kind: str) -> None:
    name = NAMES[kind]
    part = open_(name, importing=True)
    assert part.begin_import("/old/one") == "/old/one"
    assert part.begin_import("/another") == "/old/one"
    with pytest.raises(StoreError, match=f"omniq-executor migrate /old/one {tmp_path / name}` again"):
        open_(name)
    assert omniq(tmp_path, "status", "--store", name).returncode == 1
    other = open_("other.db")
    with pytest.raises(StoreError, match="holds a part of /old/one"):
        migrate(other, part, lambda _: None)
    part.end_import()
    assert open_(name).ids() == []


@pytest.mark.parametrize("kind", NAMES)
def test_a_destination_that_holds_something_else_is_refused_and_left(open_: Open, kind: str) -> None:
    source, destination = open_("source.db"), open_(NAMES[kind], importing=True)
    source.put(some_tasks(), RUNS)
    destination.put([some_tasks()[0]._replace(task=some_tasks()[0].task._replace(id=5))], RUNS[:1])
    with pytest.raises(StoreError, match="holds something else already"):
        migrate(source, destination, lambda _: None)
    assert destination.ids() == [5]
    assert open_(NAMES[kind]).runs() == RUNS[:1]


@pytest.mark.parametrize("kind", NAMES)
def test_what_has_changed_in_the_source_since_an_interruption_is_taken_in(open_: Open, kind: str) -> None:
    source, destination = open_("source.db"), open_(NAMES[kind], importing=True)
    tasks = some_tasks(20)
    source.put(tasks, RUNS)

    class Interrupted(Exception):
        pass

    def interrupt(count: int) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        migrate(source, destination, interrupt)
    assert len(destination.ids()) == 20
    first, second = tasks[0].task, tasks[2].task
    assert source.cancel([first.id], 99) == [first.id]
    assert source.purge(1000, [Status.COMPLETED]) == 4
    written = write_output(source)
    cut = log_name(first.id, 1)  # the interruption was within it
    (destination.output.prepare() / cut).write_bytes(written[cut][:3])
    (destination.output.folder / log_name(second.id, 1)).write_bytes(b"of a task that was removed")
    moved = second._replace(id=5000)  # a new task has the key of one that was removed
    source.put([TaskRow(moved, FUNCTION.digest, None)])
    # The first, the new one, and the occurrence of the same series that runs, which is the last now.
    assert migrate(source, destination, lambda _: None) == Moved(17, 3, 3)
    assert destination.get(first.id).status is Status.CANCELLED
    found = destination.by_key("q", second.key or "")
    assert found is not None
    assert found.id == 5000
    assert destination.ids() == source.ids()
    assert output_of(destination) == written


# --- Kills ---

DIES = """
import os, sys
from omniq_executor.stores import migration
from omniq_executor.cli.main import main
from omniq_executor.stores.file import store as file
from omniq_executor.stores.sqlite import store as sqlite
migration.BATCH = 10
calls = 0
def count(event, args):
    global calls
    calls += event in ("os.rename", "os.symlink", "open", "os.mkdir", "os.sync")
    if calls == {calls}:
        calls += 1  # to kill is an event, too
        os.kill(os.getpid(), 9)
sys.addaudithook(count)
for kind in (file.FileStore, sqlite.SQLiteStore):
    for name in ("begin_import", "put", "end_import"):
        def counted(self, *args, do=getattr(kind, name), **kwargs):
            global calls
            count("open", ())
            result = do(self, *args, **kwargs)
            count("open", ())
            return result
        setattr(kind, name, counted)
main(["migrate", sys.argv[1], sys.argv[2]])
"""


@pytest.mark.parametrize(("kind", "other"), [("sqlite", "file"), ("file", "sqlite")])
def test_a_migration_that_is_killed_anywhere_goes_on(open_: Open, tmp_path: Path, kind: str, other: str) -> None:
    source = open_(f"a/{NAMES[kind]}")
    tasks = some_tasks(60)
    source.put(tasks, RUNS)
    expected, written = sorted_tasks(source), write_output(source)
    kills = 0
    for calls in [1, 2, 3, 5, 8, 13, 21, 34, 55, 70, 89, 120, 144, 180, 233, 300, 377, 610]:
        destination = tmp_path / f"b{calls}" / NAMES[other]
        command = [sys.executable, "-c", DIES.replace("{calls}", str(calls)), source.address, str(destination)]
        env = {**os.environ, "PYTHONPATH": ROOT}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        kills += done.returncode != 0
        assert ids_for_anybody(destination) in (None, [], source.ids())
        with contextlib.closing(open_store(destination, importing=True)) as there:
            assert migrate(source, there, lambda _: None).tasks == 60
        with contextlib.closing(open_store(destination, create=False)) as there:
            assert sorted_tasks(there) == released(expected)
            assert there.runs() == RUNS
            assert output_of(there) == written
            assert [problem for problem in there.check() if not problem.repaired] == []
    assert kills >= 8
    assert sorted_tasks(source) == expected


# --- What is under way ---


HELD = """
import sys, time, pathlib
from omniq_executor import PersistentExecutor

def wait(path):
    while not path.exists():
        time.sleep(0.01)

if __name__ == "__main__":
    with PersistentExecutor(1, store="held.db", queue="held") as executor:
        call = executor.submit(wait, pathlib.Path("go").absolute())
        while not call.running():
            time.sleep(0.01)
        print("ready", flush=True)
        call.result()
        sys.stdin.readline()
"""


@pytest.fixture
def held(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process whose executor runs a call until it gets a line."""
    (tmp_path / "held.py").write_text(HELD)
    env = {**os.environ, "PYTHONPATH": ROOT}
    with subprocess.Popen(
        [sys.executable, "held.py"], cwd=tmp_path, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def test_what_is_under_way_is_refused_and_no_destination_is_made(
    held: "subprocess.Popen[str]", tmp_path: Path, open_: Open
) -> None:
    done = omniq(tmp_path, "migrate", "held.db", "new/store")
    assert (done.returncode, done.stdout) == (1, "")
    assert "1 tasks of" in done.stderr
    assert f"in process {held.pid}" in done.stderr
    assert "--wait" in done.stderr
    assert not (tmp_path / "new").exists()
    with pytest.raises(UnderWay):
        migrate(open_("held.db"), open_("other", importing=True), lambda _: None)


def test_what_is_under_way_is_waited_for(held: "subprocess.Popen[str]", tmp_path: Path, open_: Open) -> None:
    command = [sys.executable, "-m", "omniq_executor", "migrate", "held.db", "new", "--wait", "--json"]
    env = {**os.environ, "PYTHONPATH": ROOT}
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.5)
        assert not (tmp_path / "new").exists()
        (tmp_path / "go").touch()
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert json.loads(out)["tasks"] == 1
    assert [task.status for task in open_("new").find()] == [Status.COMPLETED]  # its owner is there still, and idle


def test_what_a_dead_owner_was_running_is_pending_in_the_destination_alone(
    held: "subprocess.Popen[str]", tmp_path: Path, open_: Open
) -> None:
    held.kill()
    held.wait(30)
    done = omniq(tmp_path, "migrate", "held.db", "new")
    assert done.returncode == 0, done.stderr
    (before,), (after,) = open_("held.db").find(), open_("new").find()
    assert before.status is Status.RUNNING
    assert after == before._replace(status=Status.PENDING, owner=None, started_at=None)
    (tmp_path / "go").touch()
    with PersistentExecutor(1, store=tmp_path / "new", queue="held") as executor:
        assert executor.future(after.task_id).result(30) is None


# --- As a user does it ---


@pytest.mark.parametrize(("kind", "other"), [("sqlite", "file"), ("file", "sqlite")])
def test_a_broken_run_is_resumed_after_the_migration(tmp_path: Path, kind: str, other: str) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    env = {**os.environ, "PYTHONPATH": ROOT}

    def script(store: str, results: int) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "script.py", store, str(results)]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)

    old, new = f"old/{NAMES[kind]}", f"new/{NAMES[other]}"
    assert script(old, 3).returncode == -signal.SIGKILL
    with contextlib.closing(open_store(tmp_path / old)) as store:
        done = [task.id for task in store.find(Status.COMPLETED)]
    assert len(done) >= 3
    assert omniq(tmp_path, "migrate", old, new).returncode == 0
    again = script(new, 5)
    assert again.returncode == 0, again.stderr
    assert f"{len(done)} of 5 calls are done" in again.stderr
    journal = (tmp_path / "journal").read_text().split()
    assert sorted(set(journal)) == ["0", "1", "2", "3", "4"]
    assert all(journal.count(str(n)) == 1 for n in range(len(done)))  # what was done was not run again
    with contextlib.closing(open_store(tmp_path / new)) as store:
        assert store.counts() == {"q": {Status.COMPLETED: 5}}


def test_both_stores_can_be_in_the_one_folder_of_the_settings(tmp_path: Path) -> None:
    with PersistentExecutor(1, store=tmp_path / "omniq_data" / "omniq.db", queue="q") as executor:
        ids = [executor.submit(pow, 2, n).task_id for n in range(3)]
    assert omniq(tmp_path, "migrate", "omniq_data/omniq.db", "omniq_data").returncode == 0
    shown = omniq(tmp_path, "list", "--store", "omniq_data", "--json").stdout.splitlines()
    assert [json.loads(line)["id"] for line in shown] == ids
    back = omniq(tmp_path, "migrate", "omniq_data", "omniq_data/omniq.db")
    assert (
        back.stdout == f"{tmp_path}/omniq_data/omniq.db holds 3 tasks of {tmp_path}/omniq_data already: nothing to do\n"
    )


@pytest.mark.parametrize("args", [["x.db"], ["x.db", "x.db"], ["x.db", "sqlite:///x.db"]])
def test_in_place_there_is_nothing_to_do_and_it_says_so(tmp_path: Path, args: list[str]) -> None:
    open_store(tmp_path / "x.db").close()
    done = omniq(tmp_path, "migrate", *args)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/x.db has the newest format: nothing is left to do\n")


def test_a_source_that_is_missing_is_an_error_and_nothing_is_made(tmp_path: Path) -> None:
    done = omniq(tmp_path, "migrate", "x.db", "y")
    assert (done.returncode, done.stderr) == (1, f"Error: there is no store at {tmp_path}/x.db\n")
    assert list(tmp_path.iterdir()) == []
    assert omniq(tmp_path, "migrate").returncode == 2
    assert "omniq-executor migrate omniq_data/omniq.db runs/etl" in omniq(tmp_path, "migrate", "--help").stdout


def test_a_terminal_gets_a_bar_and_a_pipe_does_not(tmp_path: Path, open_: Open) -> None:
    open_("a.db").put(some_tasks(), RUNS)
    assert omniq(tmp_path, "migrate", "a.db", "piped").stderr == ""
    parent, child = pty.openpty()
    command = [sys.executable, "-m", "omniq_executor", "migrate", "a.db", "shown"]
    env = {**os.environ, "PYTHONPATH": ROOT, "TERM": "xterm"}
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL, stderr=child) as process:
        os.close(child)
        shown = b""
        with contextlib.suppress(OSError):  # which is how a terminal ends
            while piece := os.read(parent, 4096):
                shown += piece
        os.close(parent)
    assert process.returncode == 0
    assert b"10/10" in shown


def test_a_task_that_cannot_be_read_stops_the_migration(tmp_path: Path, open_: Open) -> None:
    source = open_("a.db")
    source.put(some_tasks(), RUNS)
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as plain, plain:
        plain.execute("UPDATE task SET function = 99 WHERE id = 1003")
    with pytest.raises(StoreError, match=r"task-000000000.* cannot be read; run `omniq-executor doctor`"):
        migrate(source, open_("b", importing=True), lambda _: None)
