"""What is defined in the script itself can be called, guarded or not, in a session, with -c and with -m."""

import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from omniq_executor.executor import default_queue

METHODS_ALL = """
import multiprocessing, os, sys
with open("starts", "a") as starts:
    starts.write(f"{os.getpid()} {__name__}\\n")
from omniq_executor import PersistentExecutor
"""

DEFINITIONS = """
from dataclasses import dataclass
import enum

BASE = 100

def based(n):
    return BASE + n

def make_adder(m):
    def add(n):
        return based(n) + m
    return add

@dataclass
class Point:
    x: int
    y: int = 0

    def moved(self, by):
        return Point(self.x + by, self.y)

class Colour(enum.Enum):
    RED = "red"

class Refused(Exception):
    pass

def move(point, by):
    assert isinstance(point, Point)
    return point.moved(by)

def refuse(point):
    raise Refused(point)

class Callable:
    def __call__(self, n):
        return Point(n, n)
"""

BODY = """
with PersistentExecutor(2, multiprocessing.get_context({method!r})) as executor:
    assert executor.submit(based, 1).result(30) == 101
    assert list(executor.map(based, range(50), timeout=30)) == list(range(100, 150))
    assert executor.submit(lambda: BASE).result(30) == 100
    assert executor.submit(make_adder(5), 1).result(30) == 106
    result = executor.submit(move, Point(1), 2).result(30)
    assert type(result) is Point and result == Point(3), result
    points = list(executor.map(move, [Point(n) for n in range(5)], [1] * 5, timeout=30))
    assert points == [Point(n + 1) for n in range(5)], points
    assert executor.submit(Point(1).moved, 1).result(30) == Point(2)
    assert executor.submit(Point, 5, y=6).result(30) == Point(5, 6)
    assert executor.submit(Callable(), 3).result(30) == Point(3, 3)
    assert executor.submit(lambda c: c, Colour.RED).result(30) is Colour.RED
    assert executor.submit(lambda: [{{Colour.RED: Point(1)}}]).result(30) == [{{Colour.RED: Point(1)}}]
    error = executor.submit(refuse, Point(1)).exception(30)
    assert type(error) is Refused and error.args == (Point(1),), repr(error)
print("all right")
"""


def indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines())


def starts(folder: Path) -> list[str]:
    return [line.split()[1] for line in (folder / "starts").read_text().splitlines()]


@pytest.mark.parametrize("guard", ["guarded", "unguarded"])
def test_all_that_a_script_defines_can_be_called(method: str, script: Any, guard: str) -> None:
    body = BODY.format(method=method)
    if guard == "guarded":
        body = f'if __name__ == "__main__":\n{indented(body)}'
    script.write(METHODS_ALL + DEFINITIONS + body)
    done = script.run(timeout_s=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "all right\n", "")
    assert starts(script.folder) == ["__main__"]


def test_an_unguarded_script_with_a_bare_map_runs_once(method: str, script: Any) -> None:
    script.write(
        METHODS_ALL
        + f"""
executor = PersistentExecutor(2, multiprocessing.get_context({method!r}))
print(sum(executor.map(lambda n: n * n, range(100))))
"""
    )
    done = script.run()
    assert (done.returncode, done.stdout, done.stderr) == (0, "328350\n", "")
    assert starts(script.folder) == ["__main__"]


def test_a_function_with_what_cannot_travel_works_in_a_guarded_script(method: str, script: Any) -> None:
    script.write(
        METHODS_ALL
        + f"""
import threading
LOCK = threading.Lock()

def locked(n):
    with LOCK:
        return n + 1

if __name__ == "__main__":
    with PersistentExecutor(1, multiprocessing.get_context({method!r})) as executor:
        print(executor.submit(locked, 1).result(30), list(executor.map(locked, range(3), timeout=30)))
"""
    )
    done = script.run()
    assert (done.returncode, done.stdout, done.stderr) == (0, "2 [1, 2, 3]\n", "")


def test_what_a_script_sets_in_its_process_is_for_the_initializer(script: Any) -> None:
    script.write(
        METHODS_ALL
        + """
import decimal

def prepare():
    decimal.getcontext().prec = 50

def precision():
    return decimal.getcontext().prec

if __name__ == "__main__":
    prepare()
    for given in {}, {"initializer": prepare}, {"mp_context": multiprocessing.get_context("fork")}:
        with PersistentExecutor(1, **given) as executor:
            print(executor.submit(precision).result(30))
"""
    )
    assert script.run().stdout.split() == ["28", "50", "50"]


def test_processes_that_calls_start_ignore_ctrl_c_too(method: str, script: Any) -> None:
    script.write(
        METHODS_ALL
        + f"""
import subprocess

CODE = "import signal; print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"

def started():
    return subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True).stdout.strip()

if __name__ == "__main__":
    with PersistentExecutor(1, multiprocessing.get_context({method!r})) as executor:
        print(executor.submit(started).result(30))
"""
    )
    assert script.run().stdout == "True\n"


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_what_workers_would_share_by_a_fork_alone_is_told_of_once(method: str, script: Any) -> None:
    script.write(
        METHODS_ALL
        + f"""
COUNT = multiprocessing.Value("i", 0)

def counted(n):
    with COUNT.get_lock():
        COUNT.value += 1
    return n

if __name__ == "__main__":
    with PersistentExecutor(2, multiprocessing.get_context({method!r})) as executor:
        print([executor.submit(counted, n).result(30) for n in range(3)], COUNT.value)
"""
    )
    done = script.run()
    assert (done.returncode, done.stdout) == (0, "[0, 1, 2] 0\n")
    assert done.stderr.count("they share none") == 1
    assert "global `COUNT`" in done.stderr


def test_an_initializer_that_fails_is_told_of_by_its_own_traceback_alone(method: str, script: Any) -> None:
    script.write(
        METHODS_ALL
        + f"""
def fail():
    1 / 0

if __name__ == "__main__":
    with PersistentExecutor(2, multiprocessing.get_context({method!r}), initializer=fail) as executor:
        print(type(executor.submit(pow, 2, 3).exception(30)).__name__)
"""
    )
    done = script.run()
    assert "PoolBroken" in done.stdout + done.stderr
    assert "ZeroDivisionError" in done.stderr
    assert "BrokenPipeError" not in done.stderr


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_it_ends_with_one_clear_error_in_an_unguarded_script(method: str, script: Any) -> None:
    script.write(
        METHODS_ALL
        + f"""
import threading
LOCK = threading.Lock()

def locked(n):
    with LOCK:
        return n + 1

with PersistentExecutor(1, multiprocessing.get_context({method!r})) as executor:
    print(executor.submit(locked, 1).result(30))
"""
    )
    done = script.run(timeout_s=60)
    assert done.returncode == 1
    assert "if __name__ == '__main__'" in done.stderr
    assert len(starts(script.folder)) <= 2  # the second is the import that says so


def test_an_initializer_of_the_script(method: str, script: Any) -> None:
    script.write(
        METHODS_ALL
        + f"""
import builtins

def prepare(value):
    builtins.prepared = value

with PersistentExecutor(2, multiprocessing.get_context({method!r}), prepare, ("yes",)) as executor:
    print({{executor.submit(lambda: builtins.prepared).result(30) for _ in range(5)}})
"""
    )
    done = script.run()
    assert (done.returncode, done.stdout, done.stderr) == (0, "{'yes'}\n", "")
    assert starts(script.folder) == ["__main__"]


def test_an_interactive_session(method: str, script: Any) -> None:
    session = f"""
import multiprocessing
from omniq_executor import PersistentExecutor
executor = PersistentExecutor(2, multiprocessing.get_context({method!r}))
def double(n):
    return 2 * n

print(list(executor.map(double, range(5))))
def double(n):
    return 20 * n

print(list(executor.map(double, range(5))))
class Point:
    def __init__(self, x):
        self.x = x

point = executor.submit(Point, 7).result()
print(type(point) is Point, point.x)
1 / 0
future = executor.submit(lambda: sum(executor_free))
executor_free = [1, 2]
print(executor.submit(lambda: sum(executor_free)).result())
print(executor.queue)
executor.shutdown()
"""
    done = script.run(python=["-i", "-q"], text=session)
    assert done.returncode == 0
    assert done.stdout.splitlines() == ["[0, 2, 4, 6, 8]", "[0, 20, 40, 60, 80]", "True 7", "3", "interactive"]
    assert "ZeroDivisionError" in done.stderr


def test_an_interactive_session_that_is_left_without_shutdown(script: Any) -> None:
    session = """
from omniq_executor import PersistentExecutor
executor = PersistentExecutor(2)
futures = [executor.submit(lambda n: open(f"ran{n}", "w").close(), n) for n in range(10)]
"""
    done = script.run(python=["-i", "-q"], text=session)
    assert done.returncode == 0
    assert sorted(path.name for path in script.folder.glob("ran*")) == [f"ran{n}" for n in range(10)]


def test_executors_of_a_script_that_a_session_follows_leave_each_other_alone(script: Any) -> None:
    """Only the name that a statement binds tells that it replaces an executor, and not those of others in the file."""
    script.write("""
from omniq_executor import PersistentExecutor
one = PersistentExecutor(1)
two = PersistentExecutor(
    1,
)
print(one.submit(abs, -1).result(), two.submit(abs, -2).result())
one, three = PersistentExecutor(1), one
two = PersistentExecutor(
    1,
)
for executor in (one, two, three):
    try:
        print(executor.submit(abs, -3).result())
    except RuntimeError:
        print("it has let go")
""")
    done = script.run(python=["-i", "script.py"])
    assert done.stdout.splitlines() == ["1 2", "3", "3", "it has let go"]


def test_a_command_given_by_c(method: str, script: Any) -> None:
    code = METHODS_ALL + DEFINITIONS + BODY.format(method=method)
    done = script.run(python=["-c", code])
    assert (done.returncode, done.stdout, done.stderr) == (0, "all right\n", "")
    assert starts(script.folder) == ["__main__"]


def test_a_script_read_from_stdin(method: str, script: Any) -> None:
    done = script.run(python=["-"], text=METHODS_ALL + DEFINITIONS + BODY.format(method=method))
    assert (done.returncode, done.stdout, done.stderr) == (0, "all right\n", "")
    assert starts(script.folder) == ["__main__"]


@pytest.mark.parametrize(("name", "queue"), [("job", "job"), ("package", "package"), ("package.job", "package.job")])
def test_a_module_run_by_m(method: str, script: Any, name: str, queue: str) -> None:
    package = script.folder / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    source = METHODS_ALL + DEFINITIONS + BODY.format(method=method) + "print(executor.queue)\n"
    for path in (script.folder / "job.py", package / "__main__.py", package / "job.py"):
        path.write_text(source)
    done = script.run(python=["-m", name])
    assert (done.returncode, done.stdout, done.stderr) == (0, f"all right\n{queue}\n", "")
    assert starts(script.folder) == ["__main__"]


def test_the_queue_is_named_after_the_script(script: Any, open_store: Any) -> None:
    script.write("from omniq_executor import PersistentExecutor\nwith PersistentExecutor(1) as e: e.submit(abs, 1)\n")
    assert script.run().returncode == 0
    assert list(open_store(script.store).counts()) == ["script"]


def test_a_script_that_a_notebook_has_started_goes_by_its_own_name(script: Any, open_store: Any) -> None:
    script._env["JPY_SESSION_NAME"] = "/home/me/analysis.ipynb"
    script.write("from omniq_executor import PersistentExecutor\nwith PersistentExecutor(1) as e: e.submit(abs, 1)\n")
    assert script.run().returncode == 0
    assert script.run(python=["-m", "script"]).returncode == 0
    assert list(open_store(script.store).counts()) == ["script"]


@pytest.mark.parametrize(
    ("session", "name", "queue"),
    [
        ("/home/me/analysis.ipynb", None, "analysis"),
        (None, "/home/me/in.code.ipynb", "in.code"),
        ("no notebook's", "in_code.ipynb", "in_code"),
        (None, None, "interactive"),
    ],
)
def test_a_notebook_goes_by_its_own_name(monkeypatch: Any, session: Any, name: Any, queue: str) -> None:
    main = types.ModuleType("__main__")
    if name is not None:
        main.__vsc_ipynb_file__ = name  # type: ignore[attr-defined]
    if session is not None:
        monkeypatch.setenv("JPY_SESSION_NAME", session)
    else:
        monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert default_queue() == queue


def test_a_worker_of_a_script_is_no_place_to_make_an_executor_by_import(method: str, script: Any) -> None:
    """ProcessPoolExecutor beside it imports the script in its workers: an unguarded script must not multiply there."""
    script.write(
        METHODS_ALL
        + f"""
from concurrent.futures import ProcessPoolExecutor
with PersistentExecutor(1, multiprocessing.get_context({method!r})) as executor:
    print(executor.submit(abs, -1).result(30), flush=True)
    if {method!r} != "fork":
        with ProcessPoolExecutor(1, multiprocessing.get_context({method!r})) as other:
            try:
                other.submit(abs, -1).result(30)
            except Exception as error:
                print(type(error).__name__)
"""
    )
    process = script.start(stdin=subprocess.DEVNULL)
    done = script.finished(process)
    assert done.stdout.splitlines()[0] == "1"
    assert len(starts(script.folder)) <= 3


def test_what_a_script_changes_before_its_first_call_is_seen(method: str, script: Any) -> None:
    """With fork, too, as with ProcessPoolExecutor: the workers are forked with the first call."""
    script.write(
        METHODS_ALL
        + f"""
SEEN = [1]

def seen():
    return SEEN

executor = PersistentExecutor(1, multiprocessing.get_context({method!r}))
SEEN.append(2)
print(executor.submit(seen).result(30))
"""
    )
    assert script.run().stdout == "[1, 2]\n"


@pytest.mark.slow
def test_with_fork_nothing_of_a_large_global_is_copied(script: Any) -> None:
    """Issue 9: 20 submits took 14 s and 1.2 GB, and what was above 1 GB was refused."""
    script.write(
        METHODS_ALL
        + """
import re, time
DATA = bytes(200 << 20)

def look(n):
    return DATA[n]

if __name__ == "__main__":
    with PersistentExecutor(2, multiprocessing.get_context("fork")) as executor:
        began = time.monotonic()
        assert sum(future.result(30) for future in [executor.submit(look, n) for n in range(20)]) == 0
        took = time.monotonic() - began
        with open("/proc/self/status") as of_process:  # getrusage() counts what the process was forked from
            status = of_process.read()
        print(took < 5, int(re.search(r"VmHWM:\\s*(\\d+) kB", status)[1]) < 300 << 10)
        print(sum(len(executor.store.function(stored.digest).pickle)
            for stored in executor.store.stored(executor.store.ids())) < 1 << 20)
"""
    )
    done = script.run()
    assert (done.returncode, done.stdout, done.stderr) == (0, "True True\nTrue\n", "")


@pytest.mark.parametrize(("end", "clean"), [("", True), ("1 / 0", False)])
@pytest.mark.parametrize("python", [["script.py"], ["-m", "script"]], ids=["script", "module"])
def test_what_a_console_has_caught_is_no_bad_end(
    script: Any, open_store: Any, python: list[str], end: str, clean: bool
) -> None:
    script.write(f"""
import code, sys
from omniq_executor import PersistentExecutor
with PersistentExecutor(1) as executor:
    executor.submit(abs, -1).result()
code.InteractiveConsole().push("1 / 0")
assert isinstance(sys.last_value, ZeroDivisionError)
{end}
""")
    assert (script.run(python=python).returncode == 0) is clean
    assert [run.clean for run in open_store(script.store).runs()] == [clean]
