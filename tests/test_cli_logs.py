"""`omniq-executor logs`, as a script or somebody at a terminal uses it."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import omniq_executor
from omniq_executor import PersistentExecutor

pytestmark = pytest.mark.once

ROOT = str(Path(omniq_executor.__file__).parents[1])
WAIT_S = 30.0

WORKS = """
import sys, time
from pathlib import Path
from omniq_executor import PersistentExecutor

def wait_for(name):
    while not Path(name).exists():
        time.sleep(0.01)

def work():
    attempt = 2 if Path("failed").exists() else 1
    print("begins", attempt)
    wait_for(f"gate{attempt}")
    print("ends", attempt)
    if attempt == 1:
        Path("failed").touch()
        raise ValueError

if __name__ == "__main__":
    with PersistentExecutor(1, store=sys.argv[1], capture_output=True) as executor:
        future = executor.options(max_retries=1, backoff=0.01).submit(work)
        print(future.task_id, flush=True)
        future.result()
"""


def write(data: bytes) -> None:
    os.write(1, data)


def fail_first(marker: Path) -> None:
    is_first = not marker.exists()
    os.write(1, b"first" if is_first else b"second\n")
    if is_first:
        marker.touch()
        raise ValueError


class Shop:
    """A store with a few tasks in it, and the command line on it."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        with PersistentExecutor(1, store=folder / name, capture_output=True) as executor:
            self.rude = executor.submit(write, b"\x1b[31mred\xff\r50 %\r100 %\r\n").task_id or ""
            self.silent = executor.submit(pow, 2, 3).task_id or ""
            retried = executor.options(max_retries=1, backoff=0.01)
            self.retried = retried.submit(fail_first, folder / "marker").task_id or ""

    def command(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "omniq_executor", *args, "--store", self.name]

    def run(self, *args: str, status: int = 0) -> "subprocess.CompletedProcess[bytes]":
        env = {**os.environ, "PYTHONPATH": ROOT}
        done = subprocess.run(
            self.command(*args), cwd=self.folder, env=env, capture_output=True, timeout=60, check=False
        )
        assert done.returncode == status, done.stderr
        return done

    def json(self, *args: str, status: int = 0) -> Any:
        return json.loads(self.run(*args, "--json", status=status).stdout)


@pytest.fixture(params=["a.db", "a"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Shop:
    return Shop(tmp_path, request.param)


@pytest.fixture
def start(shop: Shop) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts processes in the shop's folder, that are ended with the test."""
    with ExitStack() as stack:

        def run(*command: str) -> "subprocess.Popen[str]":
            env = {**os.environ, "PYTHONPATH": ROOT}
            pipe = subprocess.PIPE
            process = subprocess.Popen(command, cwd=shop.folder, env=env, stdout=pipe, stderr=pipe, text=True)
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield run


@pytest.fixture
def working(shop: Shop, start: Callable[..., "subprocess.Popen[str]"]) -> "subprocess.Popen[str]":
    """A process that runs a call, which waits for a file in each of its two attempts."""
    (shop.folder / "works.py").write_text(WORKS)
    return start(sys.executable, "works.py", shop.name)


def line_of(process: "subprocess.Popen[str]") -> str:
    assert process.stdout
    return process.stdout.readline().strip()


# --- What it prints ---


def test_in_a_pipe_it_is_byte_for_byte_what_was_written(shop: Shop) -> None:
    done = shop.run("logs", shop.rude)
    assert (done.stdout, done.stderr) == (b"\x1b[31mred\xff\r50 %\r100 %\r\n", b"")


def test_show_says_whether_there_is_any(shop: Shop) -> None:
    assert f"of attempt 1, 2: omniq-executor logs {shop.retried}" in shop.run("show", shop.retried).stdout.decode()
    assert "logs" not in shop.run("show", shop.silent).stdout.decode()


def test_on_a_terminal_it_steers_nothing(shop: Shop) -> None:
    ours, theirs = pty.openpty()
    env = {**os.environ, "PYTHONPATH": ROOT}
    with subprocess.Popen(shop.command("logs", shop.rude), cwd=shop.folder, env=env, stdout=theirs) as process:
        os.close(theirs)
        shown = b""
        while not shown.endswith(b"100 %\r\n"):
            shown += os.read(ours, 1000)
        assert process.wait(WAIT_S) == 0
    os.close(ours)
    assert shown == b"\\x1b[31mred\\xff\r\n50 %\r\n100 %\r\n"


def test_attempts_are_told_apart_or_printed_alone(shop: Shop) -> None:
    assert shop.run("logs", shop.retried).stdout == b"first\n==> attempt 2 <==\nsecond\n"
    assert shop.run("logs", shop.retried, "--attempt", "1").stdout == b"first"
    assert shop.run("logs", shop.retried, "--attempt", "2").stdout == b"second\n"


def test_as_json_each_attempt_has_its_output(shop: Shop) -> None:
    both = [{"attempt": 1, "output": "first"}, {"attempt": 2, "output": "second\n"}]
    assert shop.json("logs", shop.retried) == {"id": shop.retried, "attempts": both}
    assert shop.json("logs", shop.retried, "-f") == {"id": shop.retried, "attempts": both}
    assert shop.json("logs", shop.retried, "--attempt", "2") == {"id": shop.retried, "attempts": both[1:]}
    (rude,) = shop.json("logs", shop.rude)["attempts"]
    assert rude["output"] == "\x1b[31mred\ufffd\r50 %\r100 %\r\n"


def test_a_task_that_wrote_nothing_is_status_1(shop: Shop) -> None:
    done = shop.run("logs", shop.silent, status=1)
    assert (done.stdout, done.stderr.decode()) == (b"", f"nothing that {shop.silent} wrote was kept\n")
    assert shop.run("logs", shop.silent, "--follow", status=1).stdout == b""
    assert shop.json("logs", shop.silent, status=1) == {"id": shop.silent, "attempts": []}
    assert shop.run("logs", shop.retried, "--attempt", "3", status=1).stdout == b""


def test_an_unknown_task_is_status_1_and_what_is_no_id_or_attempt_is_2(shop: Shop) -> None:
    unknown = shop.run("logs", "task-0000000000000", status=1)
    assert (unknown.stdout, unknown.stderr.count(b"\n")) == (b"", 1)
    assert b"'seven' is not a task id" in shop.run("logs", "seven", status=2).stderr
    shop.run("logs", shop.rude, "--attempt", "0", status=2)
    shop.run("logs", status=2)


def test_a_reader_that_leaves_early_is_no_error_of_ours(shop: Shop) -> None:
    command = f"'{sys.executable}' -m omniq_executor logs {shop.rude} --store {shop.name} | true"
    env = {**os.environ, "PYTHONPATH": ROOT}
    bash = ["bash", "-c", command]
    assert subprocess.run(bash, cwd=shop.folder, env=env, capture_output=True, timeout=60, check=True).stderr == b""


# --- Following ---


def test_it_follows_all_attempts_until_the_task_is_finished(shop: Shop, working: Any, start: Any) -> None:
    following = start(*shop.command("logs", line_of(working), "-f"))
    assert line_of(following) == "begins 1"
    (shop.folder / "gate1").touch()
    assert [line_of(following) for _ in range(3)] == ["ends 1", "==> attempt 2 <==", "begins 2"]
    (shop.folder / "gate2").touch()
    assert following.communicate(timeout=WAIT_S) == ("ends 2\n", "")
    assert following.returncode == 0
    assert working.wait(WAIT_S) == 0


def test_following_ends_with_the_process_that_runs_the_task(shop: Shop, working: Any, start: Any) -> None:
    following = start(*shop.command("logs", line_of(working), "-f"))
    assert line_of(following) == "begins 1"
    working.kill()
    assert following.communicate(timeout=WAIT_S) == ("", "")
    assert following.returncode == 0


def test_following_ends_with_a_purge(shop: Shop, working: Any, start: Any) -> None:
    id = line_of(working)
    following = start(*shop.command("logs", id, "-f"))
    assert line_of(following) == "begins 1"
    following.send_signal(signal.SIGSTOP)  # so that it does not see the end
    (shop.folder / "gate1").touch()
    (shop.folder / "gate2").touch()
    assert working.wait(WAIT_S) == 0
    shop.run("purge", "--older-than", "0")
    following.send_signal(signal.SIGCONT)
    _, err = following.communicate(timeout=WAIT_S)
    assert err == ""
    assert following.returncode == 0


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc for processor time")
def test_following_takes_next_to_no_time_of_a_processor(shop: Shop, working: Any, start: Any) -> None:
    following = start(*shop.command("logs", line_of(working), "-f"))
    assert line_of(following) == "begins 1"

    def busy_s() -> float:
        fields = Path(f"/proc/{following.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    before = busy_s()
    time.sleep(2)
    assert busy_s() - before < 0.2
