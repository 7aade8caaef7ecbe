"""A call that failed, once more under the debugger: in the process of its future and on the command line."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from terminal import Terminal

import omniq_executor
from omniq_executor import CannotDebug, TaskNotFound, open_store

ROOT = str(Path(omniq_executor.__file__).parents[1])

SCRIPT = """
import os, sys, time
from dataclasses import dataclass
from omniq_executor import PersistentExecutor
import helping

LIMIT = 3
LOCK = __import__("threading").Lock()

@dataclass
class Point:
    x: int

def make(x):
    return Point(x)

def use(point, scale=1):
    with open("calls", "a") as file:
        file.write("called\\n")
    here = point.x * scale * LIMIT
    assert isinstance(point, Point)
    assert Point is sys.modules["__main__"].Point
    print("printed by the call")
    raise ValueError(f"too large: {here}")

def leave():
    where = "leaving"
    sys.exit(7)

def sometimes():
    if not os.path.exists("calm"):
        raise RuntimeError("not calm")
    return Point(5)

def hang():
    where = "hanging"
    calm = os.path.exists("calm")
    print("hangs", flush=True)  # from here on no frame but this one is interrupted
    if calm:
        time.sleep(60)
    raise RuntimeError

def locked():
    where = "locked"
    with LOCK:
        raise RuntimeError("locked")

def stops():
    if not os.path.exists("calm"):
        raise RuntimeError("not calm")
    breakpoint()
    return 1

if __name__ == "__main__":
    with PersistentExecutor(2, store=sys.argv[1]) as executor:
        point = executor.submit(make, 2)
        calls = {
            "use": executor.submit(use, point, scale=4),
            "leave": executor.submit(leave),
            "sometimes": executor.submit(sometimes),
            "hang": executor.submit(hang),
            "locked": executor.submit(locked),
            "helping": executor.submit(helping.check, helping.Box(1)),
            "int": executor.submit(int, "seven"),
            "point": point,
            "later": executor.options(eta=3600).submit(leave),
            "stops": executor.submit(stops),
        }
        calls["after"] = executor.submit(use, calls["leave"])
        done = [future for name, future in calls.items() if name != "later"]
        for future in done:
            future.exception()
        for name, future in calls.items():
            print('id:', name, future.task_id)
        executor.shutdown(cancel_futures=True)
    for name in sys.argv[2:]:
        found = calls[name].debug()
        print("it gave", found, LIMIT, __name__, sys.modules["__main__"].__dict__ is globals())
"""
HELPING = """
class Box:
    def __init__(self, value):
        self.value = value

def check(box):
    seen = box.value
    raise LookupError(f"box {seen}")
"""


class Job:
    """The script in a folder, run once."""

    def __init__(self, folder: Path, store: str) -> None:
        self.folder, self.store = folder, store
        (folder / "script.py").write_text(SCRIPT)
        (folder / "helping.py").write_text(HELPING)
        self.env = {"PYTHONPATH": ROOT, "PYTHON_BASIC_REPL": "1"}
        command = [sys.executable, "script.py", store]
        done = subprocess.run(
            command, cwd=folder, env={**os.environ, **self.env}, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        self.ids = dict(line.split()[1:] for line in done.stdout.splitlines() if line.startswith("id: "))

    def in_terminal(self, *command: str) -> Terminal:
        return Terminal([sys.executable, *command], self.folder, env=self.env)

    def debug(self, name: str) -> Terminal:
        return self.in_terminal("-m", "omniq_executor", "debug", self.ids[name], "--store", self.store)

    def tasks(self) -> list[Any]:
        store = open_store(self.folder / self.store, create=False)
        try:
            return [store.find(), store.runs(), store.owners()]
        finally:
            store.close()


@pytest.fixture(params=["x.db", pytest.param("x", marks=pytest.mark.once)])
def job(request: pytest.FixtureRequest, tmp_path: Path) -> Job:
    return Job(tmp_path, request.param)


@pytest.fixture(scope="module")
def shared_job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return Job(tmp_path_factory.mktemp("job"), "x.db")


@pytest.fixture
def one_job(shared_job: Job) -> Iterator[Job]:
    """The job, with its files as they were."""
    yield shared_job
    (shared_job.folder / "script.py").write_text(SCRIPT)
    (shared_job.folder / "helping.py").write_text(HELPING)
    for name in ("calm", "calls"):
        (shared_job.folder / name).unlink(missing_ok=True)


def types(terminal: Terminal, lines: Sequence[str], after: int = 0) -> int:
    for line in lines:
        after = terminal.wait_for("(Pdb) ", after)
        terminal.type(line)
    return after


def test_the_command_line_leads_to_where_the_call_raised_and_stores_nothing(job: Job) -> None:
    before = job.tasks()
    with job.debug("use") as terminal:
        types(terminal, ["p here, point", "up", "q"])
        assert terminal.wait() == 0
    assert "use(Point(x=2), scale=4) is called again here" in terminal.text
    assert "its side effects happen again. Nothing of it is stored." in terminal.text
    assert terminal.text.index("side effects") < terminal.text.index("printed by the call")
    assert "ValueError: too large: 24" in terminal.text
    assert "(24, Point(x=2))" in terminal.text
    assert "*** Oldest frame" in terminal.text
    assert "debugging.py" not in terminal.text
    assert (job.folder / "calls").read_text() == "called\n" * 2
    assert job.tasks() == before


def test_a_future_leads_there_in_its_own_process_which_stays_as_it_is(one_job: Job) -> None:
    with one_job.in_terminal("script.py", "y.db", "use") as terminal:
        types(terminal, ["p here, type(point) is Point", "q"])
        assert terminal.wait() == 0
    assert "(24, True)" in terminal.text
    assert terminal.text.endswith("it gave None 3 __main__ True\n")
    assert "ended by" not in terminal.text


@pytest.mark.once
def test_an_exit_of_the_call_is_looked_at(one_job: Job) -> None:
    with one_job.debug("leave") as terminal:
        types(terminal, ["p where", "q"])
        assert terminal.wait() == 0
    assert "'leaving'" in terminal.text
    assert "SystemExit: 7" in terminal.text


@pytest.mark.once
def test_a_call_that_does_not_fail_this_time_says_so_and_gives_its_result(one_job: Job) -> None:
    (one_job.folder / "calm").touch()
    with one_job.debug("sometimes") as terminal:
        assert terminal.wait() == 0
    assert "It did not fail this time. It returned Point(x=5)" in terminal.text
    (one_job.folder / "calm").unlink()
    with one_job.in_terminal("-i", "script.py", "y.db") as terminal:
        at = terminal.wait_for(">>> ")
        (one_job.folder / "calm").touch()
        terminal.type("print('got', calls['sometimes'].debug())")
        terminal.wait_for("got Point(x=5)", at)


@pytest.mark.once
def test_ctrl_c_leads_to_where_a_call_hangs(one_job: Job) -> None:
    (one_job.folder / "calm").touch()
    with one_job.debug("hang") as terminal:
        terminal.wait_for("hangs")
        terminal.process.send_signal(signal.SIGINT)
        types(terminal, ["p where", "q"])
        assert terminal.wait() == 0
    assert "KeyboardInterrupt" in terminal.text
    assert "'hanging'" in terminal.text


@pytest.mark.once
def test_a_function_that_is_no_python_is_shown_with_its_arguments(one_job: Job) -> None:
    with one_job.debug("int") as terminal:
        types(terminal, ["p function, args, kwargs", "q"])
        assert terminal.wait() == 0
    assert "(<class 'int'>, ['seven'], {})" in terminal.text
    said = " ".join(terminal.text.split())
    assert "builtins.int is not written in Python: what is called is here as `function`, `args` and `kwargs`." in said


@pytest.mark.once
def test_a_breakpoint_of_the_call_works_and_may_be_left(one_job: Job) -> None:
    (one_job.folder / "calm").touch()
    with one_job.debug("stops") as terminal:
        types(terminal, ["q"])
        assert terminal.wait() == 0
    assert "BdbQuit" not in terminal.text.rpartition("(Pdb) ")[2]


@pytest.mark.once
def test_what_could_not_travel_by_value_needs_its_script(one_job: Job) -> None:
    with one_job.in_terminal("script.py", "y.db", "locked") as terminal:
        types(terminal, ["p where, LOCK.locked()", "q"])
        assert terminal.wait() == 0
    assert "('locked'," in terminal.text
    with one_job.debug("locked") as terminal:
        assert terminal.wait() == 1
    assert "needs names of its script" in terminal.text


@pytest.mark.once
def test_code_that_goes_by_name_is_that_of_now_which_is_said(one_job: Job) -> None:
    (one_job.folder / "helping.py").write_text(HELPING.replace("box.value", "box.value + 10"))
    with one_job.debug("helping") as terminal:
        types(terminal, ["p seen", "q"])
        assert terminal.wait() == 0
    assert "The code is that of now" in terminal.text
    assert "LookupError: box 11" in terminal.text


@pytest.mark.once
def test_in_another_folder_it_says_where_to_start_it(one_job: Job, tmp_path: Path) -> None:
    store = str(one_job.folder / "x.db")
    command = [sys.executable, "-m", "omniq_executor", "debug", one_job.ids["helping"], "--store", store]
    with Terminal(command, tmp_path, env=one_job.env) as terminal:
        assert terminal.wait() == 1
    said = " ".join(terminal.text.split())
    assert "No module named 'helping'. Start it where its modules are found, as in the folder of the script" in said


@pytest.mark.once
def test_code_of_a_script_is_that_of_then_and_an_edit_is_said(one_job: Job) -> None:
    script = one_job.folder / "script.py"
    script.write_text(SCRIPT.replace("LIMIT = 3", "LIMIT = 4"))
    with one_job.debug("use") as terminal:
        types(terminal, ["p here", "q"])
        assert terminal.wait() == 0
    assert "script.py has changed since" in terminal.text
    assert "too large: 24" in terminal.text


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("point", "is COMPLETED: only a call that has failed"),
        ("later", "is CANCELLED: only a call that has failed"),
        ("after", "cannot be called without the result of"),
    ],
)
@pytest.mark.once
def test_what_was_not_called_or_has_not_failed_is_refused(one_job: Job, name: str, said: str) -> None:
    with one_job.debug(name) as terminal:
        assert terminal.wait() == 1
    assert said in " ".join(terminal.text.split())
    assert "is called again" not in terminal.text


@pytest.mark.once
def test_without_a_terminal_it_says_what_to_do_and_calls_nothing(one_job: Job) -> None:
    command = [sys.executable, "-m", "omniq_executor", "debug", one_job.ids["use"], "--store", "x.db"]
    done = subprocess.run(
        command, cwd=one_job.folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "there is no terminal to debug in" in done.stderr
    assert "`omniq-executor debug ID` in a terminal" in done.stderr
    assert "is called again" not in done.stderr
    for id, said in (one_job.ids["point"], "is COMPLETED: only"), ("task-0000000000000", "holds no task-0000000000000"):
        done = subprocess.run(
            [*command[:4], id, *command[5:]],
            cwd=one_job.folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert said in done.stderr


def test_a_call_that_needs_another_says_what_that_one_waits_for(executor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", _Typing())
    first = executor.submit(int, "seven")
    later = executor.submit(abs, first)
    assert later.exception() is not None
    needed, address = first.task().id, executor.store.address
    executor.shutdown()  # so that nobody runs what is retried
    for how, change in (
        ("FAILED: debug that one", "retry"),
        ("PENDING: wait until that one has run", "cancel"),
        ("CANCELLED: retry that one, and then this one", "retry"),
    ):
        with pytest.raises(CannotDebug, match=f"{first.task_id}, which is {how}$"):
            later.debug()
        with contextlib.closing(open_store(address)) as store:
            assert getattr(store, change)([needed], 1) == [needed]


def test_a_future_without_a_terminal_raises_cannot_debug(executor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    future = executor.submit(int, "seven")
    future.exception()
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        with pytest.raises(CannotDebug, match="no terminal"):
            future.debug()
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(CannotDebug, match="no terminal"):
        future.debug()


class _Typing:
    """Stands for a terminal in which nobody types."""

    def isatty(self) -> bool:
        return True


def test_a_task_that_is_gone_is_not_found(executor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    future = executor.submit(int, "seven")
    future.exception()
    executor.store.remove([future.task().id])
    monkeypatch.setattr(sys, "stdin", _Typing())
    with pytest.raises(TaskNotFound):
        future.debug()


def test_a_call_that_could_not_be_stored_has_no_task_to_debug(executor: Any) -> None:
    future = executor.submit(print, (n for n in "abc"))
    with pytest.raises(ValueError, match="no task of it"):
        future.debug()


@pytest.mark.once
def test_the_initializer_is_run_before_it_as_in_a_worker(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        textwrap.dedent("""
            from omniq_executor import PersistentExecutor
            MODEL = None
            def load(name):
                global MODEL
                MODEL = [name]
            def use():
                raise ValueError(MODEL)
            if __name__ == "__main__":
                with PersistentExecutor(1, initializer=load, initargs=("large",)) as executor:
                    future = executor.submit(use)
                future.debug()
                print("the script has", MODEL)
        """)
    )
    with Terminal([sys.executable, "script.py"], tmp_path, env={"PYTHONPATH": ROOT}) as terminal:
        types(terminal, ["p MODEL", "q"])
        assert terminal.wait() == 0
    assert "load() is run before it, as in a worker." in terminal.text
    assert "['large']" in terminal.text.rpartition("(Pdb) p MODEL")[2]
    assert terminal.text.endswith("the script has None\n")
