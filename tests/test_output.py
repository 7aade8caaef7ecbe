"""What calls write: kept for each attempt, however the worker ends, and no call fails for it."""
# ruff: noqa: T201 - to print is what is tested

import ctypes
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, NoReturn

import calls
import pytest

from omniq_executor import PersistentExecutor, TaskNotFound, WorkerCrashed, open_store
from omniq_executor.model.task import FINISHED
from omniq_executor.stores.base import now

WAIT_S = 30.0
MakeExecutor = Callable[..., PersistentExecutor]


@pytest.fixture(params=["store.db", "store"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The path of each kind of store."""
    return tmp_path / request.param


@pytest.fixture(autouse=True)
def _buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python and C keep back what they would; with this variable neither does, and nothing would be tested."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)


@pytest.fixture
def make(make_executor: MakeExecutor, place: Path) -> MakeExecutor:
    """Makes executors that capture on it, with one worker."""

    def make_one(max_workers: int = 1, *args: Any, **kwargs: Any) -> PersistentExecutor:
        return make_executor(max_workers, *args, **{"store": place, "capture_output": True, **kwargs})

    return make_one


def files(place: Path) -> list[str]:
    """What is kept, by name."""
    folder = place.with_name(f"{place.name}-output") if place.suffix else place / "output"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


# --- What workers run ---


def write_in_every_way() -> None:
    print("print")
    print("stderr", file=sys.stderr)
    os.write(1, b"descriptor 1\n")
    os.write(2, b"descriptor 2\n")
    subprocess.run(["sh", "-c", "echo child; echo its stderr >&2"], check=True)
    ctypes.CDLL(None).printf(b"C\n")
    sys.stdout.buffer.write(b"bytes\n")
    sys.__stdout__.write("the first stdout\n")  # type: ignore[union-attr]


EVERY_WAY = "print\nstderr\ndescriptor 1\ndescriptor 2\nchild\nits stderr\nC\nbytes\nthe first stdout\n"


def say(what: Any) -> Any:
    print(what)
    return what


def say_nothing(_: object = None) -> None:
    pass


class SaysWhenPickled:
    def __init__(self) -> None:
        print("made")

    def __reduce__(self) -> Any:
        print("pickled")
        return complex, (1, 2)


def say_without_end_of_line(what: str) -> None:
    print(what, end="")
    ctypes.CDLL(None).printf(b", and from C")


def say_and_fail_until(path: Path, good: int) -> int:
    calls.note(path, "tried")
    tries = len(path.read_text().splitlines())
    print(f"try {tries}")
    if tries < good:
        raise ValueError(tries)
    return tries


def say_and_die() -> NoReturn:
    print("line")
    print("no line", end="")
    os.write(1, b", bytes")
    ctypes.CDLL(None).printf(b", C")
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(WAIT_S)
    raise AssertionError


def say_and_wait(what: str, path: Path, gate: Path) -> str:
    print(f"{what} begins")
    calls.note(path, what)
    calls.wait_for(gate)
    print(f"{what} ends")
    return what


def say_often(what: str, path: Path, path_of_other: Path) -> None:
    """Write 200 lines, most of them while another call does so."""
    path.touch()
    calls.wait_for(path_of_other)
    for n in range(200):
        print(what, n)
        os.write(2, f"{what} {n}\n".encode())


def log(name: str = "some.module") -> None:
    logger = logging.getLogger(name)
    for level in ("debug", "info", "warning"):
        getattr(logger, level)("at %s", level)


def log_after_basic_config() -> None:
    logging.basicConfig(level=logging.DEBUG, format="mine: %(message)s")
    log()


def configure(format: str, level: int) -> None:
    logging.basicConfig(format=format, level=level)


def log_to_file(path: Path) -> None:
    logging.basicConfig(filename=path, level=logging.INFO)


def replace_stdout(path: Path) -> None:
    sys.stdout = path.open("w", buffering=1)


def close_everything() -> None:
    sys.stdout.close()
    os.close(1)
    os.close(2)


def crash_telling_where() -> None:
    import faulthandler

    faulthandler.enable()
    calls.crash_self()


def fill_descriptors() -> None:
    print("before")
    while True:
        try:
            os.dup(0)
        except OSError:
            return


def limit_files(most: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def say_much(size: int) -> int:
    return print("x" * size) or size


LEFT: list["subprocess.Popen[bytes]"] = []  # else it warns that nobody waits for it


def leave_child(gate: Path, what: str = "") -> None:
    """Leave a child behind that writes later."""
    print(what, end="")
    LEFT.append(subprocess.Popen(["sh", "-c", f"until [ -e {gate} ]; do sleep 0.01; done; echo child"]))


def leave_thread(gate: Path, over: Path) -> None:
    """Leave a thread behind that writes later."""

    def say_later() -> None:
        calls.wait_for(gate)
        os.write(1, b"thread\n")
        over.touch()

    threading.Thread(target=say_later, daemon=True).start()


# --- What is kept ---


def test_all_that_a_call_writes_is_kept_in_the_order_of_writing(context: BaseContext, make: MakeExecutor) -> None:
    with make(1, context) as executor:
        future = executor.submit(write_in_every_way)
        future.result(WAIT_S)
        assert future.logs() == EVERY_WAY
    assert future.logs() == EVERY_WAY


def test_it_does_not_go_where_the_workers_output_goes(script: Any) -> None:
    script.write("""
import subprocess
from omniq_executor import PersistentExecutor

def say():
    print("said")
    subprocess.run(["echo", "said"])

def greet():
    print("hello")

with PersistentExecutor(1, initializer=greet, capture_output=True) as executor:
    future = executor.submit(say)
    future.result()
    print(repr(future.logs()))
with PersistentExecutor(1, capture_output=False) as executor:
    executor.submit(print, "plain").result()
""")
    done = script.run()
    assert (done.stdout, done.stderr) == ("hello\n'said\\nsaid\\n'\nplain\n", "")


def test_what_happens_before_and_after_the_call_is_not_its_output(make: MakeExecutor, capfd: Any) -> None:
    with make(1, multiprocessing.get_context("spawn"), say, ("initializer",)) as executor:
        future = executor.submit(SaysWhenPickled)
        assert future.exception(WAIT_S) is None
        assert future.logs() == "made\n"
    assert capfd.readouterr().out == "initializer\npickled\n"


def test_nothing_is_kept_unless_it_is_asked_for(make: MakeExecutor, place: Path) -> None:
    with make(capture_output=False) as executor:
        future = executor.submit(say, "loud")
        assert future.result(WAIT_S) == "loud"
        assert future.logs() == ""
    assert not files(place)
    assert {path.name for path in place.parent.iterdir()} <= {
        place.name, f"{place.name}-owners", f"{place.name}-reserve", f"{place.name}-values"
    }  # fmt: skip


@pytest.mark.parametrize("value", [1, None, "yes"])
def test_whether_to_capture_is_yes_or_no(place: Path, value: Any) -> None:
    with pytest.raises(TypeError, match=f"capture_output is True or False, not {value!r}"):
        PersistentExecutor(1, store=place, capture_output=value)
    assert not place.exists()


def test_a_call_that_writes_nothing_leaves_no_file(make: MakeExecutor, place: Path) -> None:
    with make() as executor:
        silent = executor.submit(say_nothing)
        loud = executor.submit(say, 1)
        assert list(executor.map(say_nothing, range(50))) == [None] * 50
        assert loud.result(WAIT_S) == 1
    assert silent.logs() == ""
    assert files(place) == [f"{loud.task_id}.1.log"]


def test_files_are_for_their_user_alone(make: MakeExecutor, tmp_path: Path) -> None:
    before = os.umask(0o777)
    try:
        with make(1, multiprocessing.get_context("spawn")) as executor:
            executor.submit(say, 1).result(WAIT_S)
    finally:
        os.umask(before)
    found = [path for path in tmp_path.rglob("*") if "output" in str(path.relative_to(tmp_path))]
    assert [path.stat().st_mode & 0o777 for path in sorted(found)] == [0o700, 0o600]


def test_what_cannot_be_decoded_or_encoded_is_replaced(make: MakeExecutor) -> None:
    with make() as executor:
        odd = executor.submit(os.write, 1, b"a\xffb\n")
        lone = executor.submit(say, "\udc80 \u00e9 \U0001f40d")
        wait_for_all(odd, lone)
        assert odd.logs() == "a\ufffdb\n"
        assert lone.logs() == "\\udc80 \u00e9 \U0001f40d\n"


def wait_for_all(*futures: Any) -> list[Any]:
    return [future.result(WAIT_S) for future in futures]


def test_a_call_has_what_it_wrote_and_nothing_of_the_one_before(make: MakeExecutor) -> None:
    with make() as executor:
        futures = [executor.submit(say_without_end_of_line, str(n)) for n in range(100)]
        wait_for_all(*futures)
        assert [future.logs() for future in futures] == [f"{n}, and from C" for n in range(100)]


def test_calls_of_a_map_travel_together_and_are_kept_apart(make: MakeExecutor, place: Path) -> None:
    with make(2) as executor:
        assert list(executor.map(say, range(1000))) == [*range(1000)]
        futures = executor.futures()
        assert [future.logs() for future in futures] == [f"{n}\n" for n in range(1000)]
    assert len(files(place)) == 1000


def test_two_calls_that_run_at_once_never_mix(make: MakeExecutor, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    with make(2) as executor:
        futures = executor.submit(say_often, "one", one, two), executor.submit(say_often, "two", two, one)
        wait_for_all(*futures)
        for name, future in zip(("one", "two"), futures, strict=True):
            assert future.logs() == "".join(f"{name} {n}\n{name} {n}\n" for n in range(200))


def test_a_call_that_raises_or_exits_has_its_output(make: MakeExecutor) -> None:
    with make() as executor:
        failed = executor.submit(exec, "print('now'); raise ValueError")
        gone = executor.submit(exec, "print('now'); raise SystemExit(3)")
        assert isinstance(failed.exception(WAIT_S), ValueError)
        with pytest.raises(SystemExit):
            gone.result(WAIT_S)
        assert (failed.logs(), gone.logs()) == ("now\n", "now\n")


# --- Attempts ---


def test_each_attempt_has_its_own(make: MakeExecutor, journal: Any, place: Path) -> None:
    with make() as executor:
        future = executor.options(max_retries=3, backoff=0.01).submit(say_and_fail_until, journal.path, 3)
        assert future.result(WAIT_S) == 3
        for _ in range(2):
            assert [future.logs(n) for n in (1, 2, 3, 4)] == ["try 1\n", "try 2\n", "try 3\n", ""]
            assert future.logs() == "try 1\ntry 2\ntry 3\n"
            executor.shutdown()  # and again, from a store that is closed
    assert files(place) == [f"{future.task_id}.{n}.log" for n in (1, 2, 3)]


@pytest.mark.parametrize(("attempt", "error"), [(0, ValueError), (-1, ValueError), ("1", TypeError), (1.0, TypeError)])
def test_attempts_are_counted_from_1(make: MakeExecutor, attempt: Any, error: type[Exception]) -> None:
    with make() as executor:
        future = executor.submit(say, 1)
        future.result(WAIT_S)
        with pytest.raises(error, match=repr(attempt)):
            future.logs(attempt)


def test_a_worker_that_is_killed_leaves_all_that_it_wrote(context: BaseContext, make: MakeExecutor) -> None:
    with make(1, context, crash_retries=1) as executor:
        future = executor.submit(say_and_die)
        with pytest.raises(WorkerCrashed):
            future.result(WAIT_S)
        assert [future.logs(n) for n in (1, 2, 3)] == ["line\nno line, bytes, C"] * 2 + [""]
        assert executor.submit(say, "after").result(WAIT_S) == "after"


def test_a_call_that_is_ended_leaves_all_that_it_wrote(make: MakeExecutor, journal: Any, tmp_path: Path) -> None:
    with make() as executor:
        future = executor.submit(say_and_wait, "it", journal.path, tmp_path / "gate")
        journal.wait_for(1)
        assert future.cancel(running=True)
        assert executor.submit(say, "after").result(WAIT_S) == "after"  # its worker is gone
        assert future.logs() == "it begins\n"


def test_a_crash_tells_where_it_was(make: MakeExecutor) -> None:
    with make(crash_retries=0) as executor:
        future = executor.submit(crash_telling_where)
        with pytest.raises(WorkerCrashed):
            future.result(WAIT_S)
        assert "Fatal Python error: Segmentation fault" in future.logs()
        assert "in crash_self" in future.logs()


def test_a_neighbour_of_a_call_that_dies_has_its_own_output_once(make: MakeExecutor, journal: Any) -> None:
    with make(2, crash_retries=0) as executor:
        futures = [executor.submit(say, n) for n in range(20)]
        killed = executor.submit(say_and_die)
        others = [executor.submit(say, n) for n in range(20, 40)]
        with pytest.raises(WorkerCrashed):
            killed.result(WAIT_S)
        wait_for_all(*futures, *others)
        assert killed.logs() == "line\nno line, bytes, C"
        assert {future.logs() for future in others} == {f"{n}\n" for n in range(20, 40)}


def test_it_can_be_read_while_the_call_runs_and_by_another_process(
    make: MakeExecutor, place: Path, journal: Any, tmp_path: Path
) -> None:
    code = "import sys; from omniq_executor import PersistentExecutor\n"
    code += "executor = PersistentExecutor(1, store=sys.argv[1], queue='another')\n"
    code += "print(executor.future(sys.argv[2]).logs(), flush=True)\n"
    code += "executor.kill_workers()  # which does not wait for the call\n"
    with make() as executor:
        future = executor.submit(say_and_wait, "it", journal.path, tmp_path / "gate")
        journal.wait_for(1)
        assert future.logs() == "it begins\n"
        command = [sys.executable, "-c", code, str(place), future.task_id or ""]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        told = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True).stdout
        assert told == "it begins\n\n"
        (tmp_path / "gate").touch()
        future.result(WAIT_S)
        assert future.logs() == "it begins\nit ends\n"


def test_a_run_that_is_continued_keeps_what_was_written_before(script: Any) -> None:
    script.write("""
import os, sys, time
from pathlib import Path
from omniq_executor import PersistentExecutor

def work():
    is_first = Path("parent").exists()
    print("first" if is_first else "second")
    if is_first:
        parent = int(Path("parent").read_text())
        Path("parent").unlink()
        os.kill(parent, 9)
        time.sleep(30)

with PersistentExecutor(1, capture_output=True) as executor:
    if len(sys.argv) > 1:
        Path("parent").write_text(str(os.getpid()))
    future = executor.submit(work)
    future.result()
    print(future.logs(1) + future.logs(2))
""")
    assert script.run("first").returncode == -signal.SIGKILL
    done = script.run()
    assert (done.returncode, done.stdout) == (0, "first\nsecond\n\n"), done.stderr


# --- Logging ---


def test_records_from_info_on_are_kept_where_nobody_configures_logging(make: MakeExecutor) -> None:
    with make(1, multiprocessing.get_context("spawn")) as executor:
        future = executor.submit(log)
        future.result(WAIT_S)
        info, warning = future.logs().splitlines()
        assert info.endswith(" INFO some.module: at info")
        assert warning.endswith(" WARNING some.module: at warning")


def test_a_fork_keeps_what_the_parent_logs_elsewhere(make: MakeExecutor) -> None:
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("there is no fork")
    with make(1, multiprocessing.get_context("fork")) as executor:  # pytest's handlers keep records to themselves
        future = executor.submit(log)
        future.result(WAIT_S)
        (warning,) = future.logs().splitlines()  # the level is the parent's
        assert warning.endswith(" WARNING some.module: at warning")


def test_what_an_initializer_configures_is_kept_once_and_as_it_has_it(make: MakeExecutor) -> None:
    context = multiprocessing.get_context("spawn")
    with make(1, context, configure, ("own %(message)s", logging.DEBUG)) as executor:
        future = executor.submit(log)
        future.result(WAIT_S)
        assert future.logs() == "own at debug\nown at info\nown at warning\n"


def test_what_an_initializer_has_logged_to_a_file_is_kept_too(make: MakeExecutor, tmp_path: Path) -> None:
    with make(1, multiprocessing.get_context("spawn"), log_to_file, (tmp_path / "log",)) as executor:
        future = executor.submit(log)
        future.result(WAIT_S)
        assert [line.partition("some.module: ")[2] for line in future.logs().splitlines()] == ["at info", "at warning"]
    assert (tmp_path / "log").read_text() == "INFO:some.module:at info\nWARNING:some.module:at warning\n"


def test_a_module_that_configures_logging_later_has_its_way(make: MakeExecutor) -> None:
    with make(1, multiprocessing.get_context("spawn")) as executor:
        future = executor.submit(log_after_basic_config)
        future.result(WAIT_S)
        assert future.logs() == "mine: at debug\nmine: at info\nmine: at warning\n"


# --- Calls that do what they should not, and disks that are full ---


def test_an_initializer_that_replaces_stdout_has_its_way(make: MakeExecutor, tmp_path: Path) -> None:
    with make(1, multiprocessing.get_context("spawn"), replace_stdout, (tmp_path / "own",)) as executor:
        future = executor.submit(write_in_every_way)
        assert future.exception(WAIT_S) is None
        assert "child\n" in future.logs()
        assert "print\n" not in future.logs()
    assert (tmp_path / "own").read_text().startswith("print\n")


def test_a_call_that_closes_the_descriptors_harms_no_other(make: MakeExecutor) -> None:
    with make() as executor:
        executor.submit(close_everything).result(WAIT_S)
        future = executor.submit(os.write, 1, b"after\n")
        child = executor.submit(subprocess.call, ["echo", "child"])
        assert wait_for_all(future, child) == [6, 0]
        assert (future.logs(), child.logs()) == ("after\n", "child\n")


def test_a_child_that_is_left_behind_writes_to_the_output_of_its_call(
    make: MakeExecutor, tmp_path: Path, wait_until: Any
) -> None:
    gate = tmp_path / "gate"
    with make() as executor:
        silent = executor.submit(leave_child, gate)
        first, second = executor.submit(leave_child, gate, "parent\n"), executor.submit(say, "other")
        wait_for_all(silent, first, second)
        gate.touch()
        wait_until(lambda: first.logs() == "parent\nchild\n")
        assert second.logs() == "other\n"
        assert silent.logs() == ""  # its file was removed when it ended


@pytest.mark.parametrize("between", [False, True])
def test_a_thread_that_is_left_behind_writes_to_where_output_goes_at_that_moment(
    make: MakeExecutor, journal: Any, tmp_path: Path, wait_until: Any, capfd: Any, between: bool
) -> None:
    gate, over, end = tmp_path / "gate", tmp_path / "over", tmp_path / "end"
    with make(1, multiprocessing.get_context("spawn")) as executor:
        first = executor.submit(leave_thread, gate, over)
        first.result(WAIT_S)
        if between:
            gate.touch()
            wait_until(over.exists)
        second = executor.submit(say_and_wait, "second", journal.path, end)
        journal.wait_for(1)
        gate.touch()
        wait_until(over.exists)
        end.touch()
        second.result(WAIT_S)
        assert first.logs() == ""
        assert second.logs() == "second begins\n" + ("" if between else "thread\n") + "second ends\n"
    assert capfd.readouterr().out == ("thread\n" if between else "")


def test_what_runs_twice_as_one_attempt_has_the_output_of_both(tmp_path: Path) -> None:
    code = """
import sys
from omniq_executor.engines.local.capture import Capture

for n in range(2):
    capture = Capture((sys.stdout, sys.stderr))
    capture.begin(sys.argv[1])
    print("time", n)
    capture.end()
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, tmp_path / "file"], env=env, timeout=60, check=True)
    assert (tmp_path / "file").read_text() == "time 0\ntime 1\n"


def test_calls_run_though_their_output_cannot_be_kept(make: MakeExecutor, place: Path, capfd: Any) -> None:
    with make(1, multiprocessing.get_context("spawn")) as executor:
        assert executor.submit(say, 1).result(WAIT_S) == 1
        folder = executor.store.output.folder
        folder.rename(folder.with_name("away"))
        futures = [executor.submit(say, n) for n in range(2, 5)]
        assert wait_for_all(*futures) == [2, 3, 4]
        assert [future.logs() for future in futures] == [""] * 3
        folder.with_name("away").rename(folder)
        again = executor.submit(say, 5)
        assert again.result(WAIT_S) == 5
        assert again.logs() == "5\n"
    out, err = capfd.readouterr()
    assert out == "2\n3\n4\n"  # where it would go without
    assert err.count("output of calls is not kept: No such file or directory") == 1


def test_calls_run_though_the_disk_takes_no_more(make: MakeExecutor, capfd: Any) -> None:
    with make(1, multiprocessing.get_context("spawn"), limit_files, (10_000,)) as executor:
        futures = [executor.submit(say_much, size) for size in (5_000, 20_000, 30_000, 10)]
        assert wait_for_all(*futures) == [5_000, 20_000, 30_000, 10]
        assert [len(future.logs()) for future in futures] == [5_001, 10_000, 10_000, 11]
    assert capfd.readouterr().err.count("output of calls is not kept: File too large") == 1


@pytest.mark.skipif(not Path("/proc").exists(), reason="needs descriptors that can be counted")
def test_calls_run_though_no_file_can_be_opened(make: MakeExecutor) -> None:
    with make() as executor:
        full = executor.submit(fill_descriptors)
        futures = [executor.submit(say_nothing) for _ in range(5)]
        wait_for_all(full, *futures)
        assert full.logs() == "before\n"


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_script_without_stdout_and_stderr_works(script: Any, method: str) -> None:
    script.write(f"""
import multiprocessing, os
from pathlib import Path
from omniq_executor import PersistentExecutor

def say(n):
    print(n)
    return n

if __name__ == "__main__":
    with PersistentExecutor(1, multiprocessing.get_context({method!r}), capture_output=True) as executor:
        results = list(executor.map(say, range(20)))
        Path("results").write_text(repr(results == list(range(20))))
""")
    command = f"exec '{sys.executable}' script.py >&- 2>&-"
    done = subprocess.run(["bash", "-c", command], cwd=script.folder, env=script._env, timeout=60, check=False)
    assert done.returncode == 0
    assert (script.folder / "results").read_text() == "True"


def test_stacks_of_captured_calls_are_their_own(
    make: MakeExecutor, journal: Any, tmp_path: Path, wait_until: Any
) -> None:
    gate = tmp_path / "gate"
    with make() as executor:
        future = executor.submit(calls.noted_wait, journal.path, 1, gate)
        journal.wait_for(1)
        stack = wait_until(lambda: executor.stacks(WAIT_S).get(future.task_id or ""))
        assert "in noted_wait" in stack
        assert "omniq_executor" not in stack
        gate.touch()
        future.result(WAIT_S)


# --- Upkeep ---


def test_purged_tasks_take_their_output_with_them(
    make: MakeExecutor, place: Path, journal: Any, tmp_path: Path
) -> None:
    with make() as executor:
        done = executor.submit(say, "done")
        done.result(WAIT_S)
        running = executor.submit(say_and_wait, "running", journal.path, tmp_path / "gate")
        journal.wait_for(1)
        assert executor.store.purge(now() + 1) == 1
        assert files(place) == [f"{running.task_id}.1.log"]
        with pytest.raises(TaskNotFound):
            done.logs()
        (tmp_path / "gate").touch()
        running.result(WAIT_S)
        assert running.logs() == "running begins\nrunning ends\n"


def test_purges_while_calls_run_remove_no_output_of_what_is_kept(make: MakeExecutor, place: Path) -> None:
    over = threading.Event()

    def purge() -> None:
        with closing(open_store(place)) as store:
            while not over.is_set():
                store.purge(0, FINISHED)

    with make(2) as executor:
        thread = threading.Thread(target=purge)
        thread.start()
        try:
            futures = [executor.submit(say, n) for n in range(300)]
            wait_for_all(*futures)
        finally:
            over.set()
            thread.join()
        assert [future.logs() for future in futures] == [f"{n}\n" for n in range(300)]


@pytest.fixture(autouse=True)
def _descriptors_stay() -> Iterator[None]:
    """No test leaves this process's own output elsewhere."""
    before = sys.stdout, sys.stderr
    yield
    assert (sys.stdout, sys.stderr) == before
