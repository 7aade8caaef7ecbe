"""What the tests share: stores, executors that are always ended, scripts in processes of their own, bounded waits."""

import compileall
import contextlib
import functools
import gc
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import hypothesis
import pytest

import omniq_executor
from omniq_executor import PersistentExecutor

pytest.register_assert_rewrite("engine_contract")

METHODS = [name for name in ("fork", "forkserver", "spawn") if name in multiprocessing.get_all_start_methods()]
WAIT_S = 30.0  # a bound for what is expected at once, on a machine that is busy with other things

# How long one example takes says how busy the machine is; what hangs is ended by pytest's own timeout.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")

# A job that a shell runs in the background ignores Ctrl-C and SIGQUIT, and one of `nohup` the end of the terminal; the
# scripts that the tests end by these would, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
for _number in (signal.SIGHUP, signal.SIGQUIT):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.SIG_DFL)

# Python takes a module from its .pyc file where the source has the size and the second of change that it had then,
# and tests edit sources faster than that. Processes that they start take it from the environment, forkservers too.
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
# The tests themselves, which none edits, are compiled once all the same: now, for the workers and scripts that import
# them, and until they are collected by pytest, whose own processes have that variable too.
for _path in Path(__file__).parent.rglob("*.py"):
    compileall.compile_file(_path, quiet=2)
sys.dont_write_bytecode = False

# Functions of tests are in modules that import pytest, and it is no matter of theirs that each worker does so anew.
if "forkserver" in METHODS:
    multiprocessing.set_forkserver_preload(["__main__", "pytest"])

# Threads that give way to each other this often, in seconds, meet where they else hardly do: see tox.ini.
if interval_s := os.environ.get("OMNIQ_TEST_SWITCH_INTERVAL"):
    sys.setswitchinterval(float(interval_s))

MakeExecutor = Callable[..., PersistentExecutor]


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    """Each start method."""
    return str(request.param)


@pytest.fixture
def context(method: str) -> BaseContext:
    """A context of multiprocessing for each start method."""
    return multiprocessing.get_context(method)


def pytest_collection_finish() -> None:
    """Have no module compiled to a file any more, and no collection of garbage look at all that is loaded by now.

    That took 0.2 s, and some tests collect often.
    """
    sys.dont_write_bytecode = True
    gc.collect()
    gc.freeze()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Have what is marked `each_store` run on SQLite with every Python, and on a folder of files with one."""
    if "store" in metafunc.fixturenames and metafunc.definition.get_closest_marker("each_store"):
        names = ["store.db", pytest.param("store", marks=pytest.mark.once)]
        metafunc.parametrize("store", names, indirect=True)


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The path of a store that is not there yet: SQLite, where the test is not told otherwise."""
    return tmp_path / getattr(request, "param", "store.db")


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """The file that calls wait for."""
    return tmp_path / "gate"


@pytest.fixture
def make_executor(store: Path) -> Iterator[MakeExecutor]:
    """Makes executors on one store. Those that the test did not end are ended with their workers."""
    with contextlib.ExitStack() as stack:

        def make(max_workers: int = 2, *args: Any, **kwargs: Any) -> PersistentExecutor:
            executor = PersistentExecutor(max_workers, *args, **{"store": store, **kwargs})
            stack.callback(executor.kill_workers)
            return executor

        yield make


@pytest.fixture
def executor(make_executor: MakeExecutor) -> PersistentExecutor:
    """Two workers, all else by default."""
    return make_executor()


def wait_until(condition: Callable[[], object], timeout_s: float = WAIT_S, what: str = "") -> Any:
    """Wait for a condition of another process or thread; returns what it gave, or fails after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what or condition}"
        time.sleep(0.002)
    return found


@pytest.fixture(name="wait_until")
def _wait_until() -> Callable[..., Any]:
    return wait_until


class Journal:
    """A file to which calls append lines: who ran, and how often."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> list[str]:
        """The lines so far."""
        return self.path.read_text().splitlines() if self.path.exists() else []

    def wait_for(self, count: int, timeout_s: float = WAIT_S) -> list[str]:
        """Wait until there are so many lines."""
        return wait_until(  # type: ignore[no-any-return]
            lambda: lines if len(lines := self.lines()) >= count else None, timeout_s, f"{count} lines in {self.path}"
        )


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """A file that calls append to."""
    return Journal(tmp_path / "journal")


def is_alive(pid: int) -> bool:
    """Whether a process is there that can still do something: a zombie cannot."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] not in "ZX" if stat.parent.exists() else True
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture(name="is_alive")
def _is_alive() -> Callable[[int], bool]:
    return is_alive


class Script:
    """A script in a folder of its own, run in processes of their own with omniq_executor on their path."""

    PATH = "script.py"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = folder / "omniq_data" / "omniq.db"  # the default of what runs in that folder
        self.journal = Journal(folder / "journal")
        self._env = {**os.environ, "PYTHONFAULTHANDLER": "1"}
        self._env["PYTHONPATH"] = str(Path(omniq_executor.__file__).parents[1])
        self._env.pop("PYTHONSTARTUP", None)
        self._processes: list[subprocess.Popen[str]] = []

    def write(self, source: str) -> None:
        """Make this its text."""
        (self.folder / self.PATH).write_text(source)

    def start(self, *args: str, python: Sequence[str] = (PATH,), stdin: Any = subprocess.DEVNULL) -> Any:
        """Start it, in a session of its own, with its output in files; returns the Popen."""
        number = len(self._processes)
        with self._output(number, "out").open("w") as out, self._output(number, "err").open("w") as err:
            process = subprocess.Popen(
                [sys.executable, *python, *args],
                cwd=self.folder, env=self._env, stdin=stdin, stdout=out, stderr=err, text=True, start_new_session=True,
            )  # fmt: skip
        self._processes.append(process)
        return process

    def run(
        self, *args: str, python: Sequence[str] = (PATH,), text: str = "", timeout_s: float = 60
    ) -> "subprocess.CompletedProcess[str]":
        """Run it to its end, whatever that is."""
        process = self.start(*args, python=python, stdin=subprocess.PIPE)
        try:
            process.communicate(text, timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"not ended after {timeout_s} s:\n{self._stacks(process)}") from error
        return self.finished(process)

    def _stacks(self, process: "subprocess.Popen[str]") -> str:
        """What its processes are doing; it ends them."""
        members = self.members(process)
        for member in members:
            os.kill(member, signal.SIGABRT)  # PYTHONFAULTHANDLER prints the stacks
        process.wait(WAIT_S)
        return f"{members}\n" + self._output(self._processes.index(process), "err").read_text()

    def finished(self, process: "subprocess.Popen[str]", timeout_s: float = WAIT_S) -> Any:
        """Wait for its end; returns its exit status and what it printed."""
        status = process.wait(timeout_s)
        number = self._processes.index(process)
        texts = [self._output(number, stream).read_text() for stream in ("out", "err")]
        return subprocess.CompletedProcess(process.args, status, *texts)

    def _output(self, number: int, stream: str) -> Path:
        return self.folder / f"{number}.{stream}"

    def members(self, process: "subprocess.Popen[str]") -> list[int]:
        """The living processes of its session, itself among them. For Linux."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                state, _, _, session, *_ = path.read_text().rpartition(")")[2].split()
                if int(session) == process.pid and state not in "ZX":
                    found.append(int(path.parent.name))
        return found

    def end(self) -> None:
        """End whatever is left of it."""
        for process in self._processes:
            for member in self.members(process):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(member, signal.SIGKILL)
            process.wait(WAIT_S)
            if process.stdin is not None:
                process.stdin.close()


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Script]:
    """A script to write and run."""
    made = Script(tmp_path)
    try:
        yield made
    finally:
        made.end()


class Worker:
    """`omniq-executor worker --json` in a session of its own, which finds the tests' modules."""

    def __init__(self, folder: Path, *args: str) -> None:
        roots = [str(Path(omniq_executor.__file__).parents[1]), str(Path(__file__).parent)]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(roots), "PYTHONFAULTHANDLER": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "omniq_executor", "worker", "--json", *args],
            cwd=folder, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        self.started = self.event("started")

    def event(self, name: str) -> dict[str, Any]:
        """The next event of that name."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event: dict[str, Any] = json.loads(line)
            if event["event"] == name:
                return event
        raise AssertionError(f"the worker ended without the event {name}, with {self.process.wait(WAIT_S)}")

    def signal(self, number: int) -> None:
        """Send it a signal, but not its processes."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """Have it die at once; what it has started ends by itself."""
        self.process.kill()
        self.process.wait(WAIT_S)

    def wait(self) -> int:
        """Wait for its end; returns the exit status."""
        return self.process.wait(WAIT_S)

    def end(self) -> None:
        """End it, if it lives."""
        self.kill()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    """Starts `omniq-executor worker` with the given arguments; returns when it is at work."""
    with contextlib.ExitStack() as stack:

        def start(*args: object) -> Worker:
            worker = Worker(tmp_path, *map(str, args))
            stack.callback(worker.end)
            return worker

        yield start


@pytest.fixture
def open_store() -> Iterator[Callable[..., Any]]:
    """`omniq_executor.open_store`, for what exists already; closed after the test."""
    with contextlib.ExitStack() as stack:

        @functools.wraps(omniq_executor.open_store)
        def open_one(address: Any) -> Any:
            return stack.enter_context(contextlib.closing(omniq_executor.open_store(address, create=False)))

        yield open_one
