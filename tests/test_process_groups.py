"""Workers, and the processes that start them, are in process groups of their own and end with their parent."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

OPEN = """
import multiprocessing, os, sys, time
from omniq_executor import PersistentExecutor

def group(n):
    return os.getpid(), os.getpgrp()

def wait(n):
    with open("journal", "a") as journal:
        journal.write(f"{{n}}\\n")
    time.sleep(300)

if __name__ == "__main__":
    context = multiprocessing.get_context({method!r})
"""
PYTHON = ("-X", "dev", "-W", "error", "script.py")  # with ResourceWarning for what nobody waits for


def others(script: Any, process: Any) -> list[int]:
    return [member for member in script.members(process) if member != process.pid]


def test_only_the_script_itself_is_in_its_group(script: Any, method: str) -> None:
    script.write(
        OPEN.format(method=method)
        + """
    executor = PersistentExecutor(2, context)
    futures = [executor.submit(wait, n) for n in range(2)]
    sys.stdin.read()
    executor.kill_workers()
    """
    )
    process = script.start(python=PYTHON, stdin=-1)
    script.journal.wait_for(2)
    children = others(script, process)
    assert len(children) >= {"spawn": 3, "fork": 3, "forkserver": 4}[method]  # the workers and what is needed for them
    assert process.pid not in {os.getpgid(child) for child in children}
    process.stdin.close()
    done = script.finished(process)
    assert (done.returncode, [line for line in done.stderr.splitlines() if "Warning" in line]) == (0, [])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGKILL])
def test_all_of_them_end_with_the_script(script: Any, method: str, number: int, wait_until: Any) -> None:
    script.write(
        OPEN.format(method=method)
        + """
    with PersistentExecutor(2, context) as executor:
        list(executor.map(wait, range(4)))
    """
    )
    process = script.start()
    script.journal.wait_for(2)
    os.killpg(process.pid, number)
    script.finished(process)
    wait_until(lambda: not script.members(process), what="all its processes to end")


def test_a_script_ends_in_order_with_its_executor_open(script: Any, method: str, open_store: Any) -> None:
    script.write(
        OPEN.format(method=method)
        + """
    executor = PersistentExecutor(2, context)
    print(executor.submit(abs, -1).result())
    """
    )
    process = script.start(python=PYTHON)
    done = script.finished(process)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")
    assert open_store(script.store).runs()[-1].clean is True


@pytest.mark.parametrize("method", ["forkserver"])
def test_workers_of_a_forkserver_that_was_there_leave_its_group(script: Any, method: str) -> None:
    script.write(
        OPEN.format(method=method)
        + """
    process = context.Process(target=group, args=(0,))
    process.start()
    process.join()
    with PersistentExecutor(1, context) as executor:
        pid, its_group = executor.submit(group, 0).result()
    assert pid == its_group, (pid, its_group, os.getpgrp())
    """
    )
    assert script.run().stderr == ""


@pytest.mark.parametrize("method", ["spawn"])
def test_what_the_program_starts_itself_stays_in_its_group(script: Any, method: str) -> None:
    script.write(
        OPEN.format(method=method)
        + """
    import concurrent.futures
    with PersistentExecutor(1, context) as executor, concurrent.futures.ProcessPoolExecutor(1, context) as other:
        assert executor.submit(group, 0).result()[1] != os.getpgrp()
        assert other.submit(group, 0).result()[1] == os.getpgrp()
    """
    )
    assert script.run().stderr == ""


def test_a_worker_does_not_stand_still_for_want_of_the_terminal(script: Any, method: str, tmp_path: Path) -> None:
    """A process in the background is stopped when it reads from the terminal, and writes to it if `stty tostop`."""
    script.write(
        OPEN.format(method=method)
        + """
    def read():
        try:
            with open("/dev/tty") as terminal:
                return terminal.read(1)
        except OSError as error:
            return type(error).__name__
    import termios
    modes = termios.tcgetattr(1)
    modes[3] |= termios.TOSTOP
    termios.tcsetattr(1, termios.TCSANOW, modes)
    with PersistentExecutor(1, context) as executor:
        assert executor.submit(read).result() == "OSError"
        executor.submit(print, "printed", flush=True).result()
    """
    )
    code = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn([sys.executable, 'script.py'])))"
    done = script.run(python=["-c", code])
    assert (done.returncode, done.stdout.splitlines()) == (0, ["printed"])
