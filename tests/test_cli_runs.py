"""`omniq-executor runs` and `diff`, as a user runs them: also of a run that was killed, and from another process."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = """
import os, sys
from omniq_executor import PersistentExecutor

def work(n):
    return n * {factor}

def other(n):
    if n == 1:
        raise ValueError(n)
    return n

if __name__ == "__main__":
    with PersistentExecutor(1, store=sys.argv[1]) as executor:
        for function, items in {calls}:
            for future in [executor.submit(globals()[function], item) for item in items]:
                future.exception()
        if {dies}:
            os.kill(os.getpid(), 9)
"""


def omniq(folder: Path, *args: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "omniq_executor", *args], cwd=folder, capture_output=True, text=True, timeout=120
    )


@pytest.fixture(scope="module", params=["store.db", "store"])
def past(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with a store of three runs: killed, killed with an edit, and ended well after another edit."""
    folder, store = tmp_path_factory.mktemp("runs"), str(request.param)
    for factor, calls, dies in (
        (2, [("work", [1, 2, 3]), ("other", [1, 2])], True),
        (2, [("work", [3, 1, 4]), ("other", [1])], True),
        (3, [("work", [1, 4, 9]), ("other", [2, 2])], False),
    ):
        (folder / "script.py").write_text(SCRIPT.format(factor=factor, calls=calls, dies=dies))
        done = subprocess.run([sys.executable, "script.py", store], cwd=folder, capture_output=True, timeout=120)
        assert done.returncode == (-signal.SIGKILL if dies else 0), done.stderr
    return folder, store


def told(past: tuple[Path, str], *args: str) -> Any:
    done = omniq(past[0], *args, "--store", past[1], "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def listed(past: tuple[Path, str], *args: str) -> list[Any]:
    """What `runs` prints, one object a line."""
    done = omniq(past[0], "runs", *args, "--store", past[1], "--json")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def printed(past: tuple[Path, str], *args: str) -> str:
    done = omniq(past[0], *args, "--store", past[1])
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_runs_are_listed_with_their_end_and_with_what_they_took_over_and_ran(past: tuple[Path, str]) -> None:
    found = listed(past)
    assert [(it["run"], it["end"], it["continues"], it["counts"]) for it in found] == [
        (1, "killed", [], {"afresh": 5}),
        (2, "killed", [1], {"result": 2, "failed": 1, "arguments": 1}),
        (3, "clean", [1, 2], {"result": 1, "code": 2, "arguments": 2}),
    ]
    assert [it["left_alone"] for it in found] == [0, 2, 5]
    assert listed(past, "--queue", "nobody") == []
    lines = [line.split() for line in printed(past, "runs").splitlines()]
    assert " ".join(lines[0]) == "RUN QUEUE STARTED TOOK END CALLS REUSED CODE ARGUMENTS AFRESH"
    assert [(it[0], it[1], it[-6:]) for it in lines[1:]] == [
        ("1", "script", ["killed", "5", "0", "0", "0", "5"]),
        ("2", "script", ["killed", "4", "3", "0", "1", "0"]),
        ("3", "script", ["clean", "5", "1", "2", "2", "0"]),
    ]


def test_one_run_is_told_by_function_and_reason_with_what_changed(past: tuple[Path, str]) -> None:
    found = told(past, "runs", "3")
    assert found["functions"] == {
        "__main__.other": {"counts": {"result": 1, "arguments": 1}, "why": {}},
        "__main__.work": {"counts": {"code": 2, "arguments": 1}, "why": {"code": "its own code changed"}},
    }
    text = printed(past, "runs", "3")
    assert "run 3 of queue 'script', begun at " in text
    assert "it continues 1, 2, of which 5 calls are left alone" in text
    assert "__main__.work 2 run, since code changed its own code changed" in [
        " ".join(it.split()) for it in text.splitlines()
    ]
    first = printed(past, "runs", "1")
    assert "killed" in first
    assert "its calls are run, since no earlier run is continued: it is the first of its queue" in first


def test_two_runs_are_compared_by_code_and_calls(past: tuple[Path, str]) -> None:
    found = told(past, "diff", "2", "3")
    assert found["functions"] == [{"function": "__main__.work", "changed": "its own code changed"}]
    assert [(it["run"], it["calls"], it["finished"]) for it in found["runs"]] == [(2, 4, 3), (3, 5, 5)]
    assert [[(it["function"], it["arguments"]) for it in side["only"]] for side in found["runs"]] == [
        [("__main__.work", "[3]"), ("__main__.other", "[1]")],
        [("__main__.other", "[2]"), ("__main__.work", "[9]"), ("__main__.other", "[2]")],
    ]
    text = printed(past, "diff", "2", "3")
    assert text.startswith("__main__.work: its own code changed\n")
    assert "run 3 had 5 calls, 5 of which are completed; 3 of them the other had not" in text
    assert "  __main__.work [9]" in text
    assert printed(past, "diff", "1", "1").startswith("no function that both had has other code")


def test_a_run_that_there_is_not_is_named(past: tuple[Path, str]) -> None:
    done = omniq(past[0], "runs", "7", "--store", past[1])
    assert (done.returncode, done.stdout) == (1, "")
    assert "holds no run 7; `omniq-executor runs` shows what it holds" in done.stderr
    assert omniq(past[0], "diff", "1", "--store", past[1]).returncode == 2
