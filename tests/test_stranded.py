"""A script that was killed and is renamed is told of the calls that wait under its old name."""

import contextlib
import signal
from pathlib import Path
from typing import Any

import pytest

from omniq_executor import open_store as open_any
from omniq_executor.dispatch.stranded import stranded

JOB = """
import os, signal, sys
from omniq_executor import PersistentExecutor

def work(n):
    return n

if __name__ == "__main__":
    dies = "dies" in sys.argv
    queue = sys.argv[sys.argv.index("queue") + 1] if "queue" in sys.argv else None
    executor = PersistentExecutor(1, store="shared.db", queue=queue)
    if dies:
        futures = [executor.options(eta=3600).submit(work, 10 + n) for n in range(3)]
        os.kill(os.getpid(), signal.SIGKILL)
    if "again" in sys.argv:
        assert executor.submit(work, 10).cancel()
    print(executor.submit(work, 1).result())
    executor.shutdown()
    PersistentExecutor(1, store="shared.db", queue=queue).shutdown()
"""


def write(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(JOB)


def die(script: Any, *python: str) -> None:
    assert script.run("dies", python=python).returncode == -signal.SIGKILL


def said(done: Any) -> list[str]:
    assert (done.returncode, done.stdout) == (0, "1\n")
    return [line for line in done.stderr.splitlines() if "script is not to be found" in line]


def test_a_renamed_script_is_told_once_what_waits_under_its_old_name(script: Any, open_store: Any) -> None:
    write(script.folder, "old.py")
    die(script, "old.py")
    (script.folder / "old.py").rename(script.folder / "new.py")
    (line,) = said(script.run(python=["new.py"]))  # though it makes two executors
    assert "queue 'new' is new in this store" in line
    store = open_store(script.folder / "shared.db")
    run = store.runs()[0]
    assert f"3 calls of queue 'old' since {str(stranded(store, 'other', 0)[0]).split()[-2]} (queue='old')" in line
    assert run.queue == "old"
    assert said(script.run(python=["new.py"])) == []  # it has a queue of its own now


def test_with_the_old_queue_it_continues_them(script: Any, open_store: Any) -> None:
    write(script.folder, "old.py")
    die(script, "old.py")
    (script.folder / "old.py").rename(script.folder / "new.py")
    done = script.run("again", "queue", "old", python=["new.py"])
    assert said(done) == []
    assert "queue 'old': continuing an earlier run" in done.stderr
    assert list(open_store(script.folder / "shared.db").counts()) == ["old"]


@pytest.mark.parametrize(
    ("old", "kept"),
    [
        (("old.py",), "old.py"), (("old.py",), "old.ipynb"), (("-m", "package.old"), "package/old.py"),
        (("-m", "package"), "package/__main__.py"),
    ],
)  # fmt: skip
def test_a_script_that_is_still_there_has_lost_nothing(script: Any, old: tuple[str, ...], kept: str) -> None:
    made = "old.py" if old == ("old.py",) else kept
    write(script.folder, made)
    write(script.folder, "new.py")
    die(script, *old)
    (script.folder / made).rename(script.folder / kept)
    assert said(script.run(python=["new.py"])) == []
    (script.folder / kept).unlink()
    write(script.folder, "newer.py")
    assert len(said(script.run(python=["newer.py"]))) == 1


def test_what_ended_clean_or_is_at_work_has_lost_nothing(script: Any) -> None:
    write(script.folder, "old.py")
    write(script.folder, "new.py")
    assert said(script.run(python=["old.py"])) == []
    (script.folder / "old.py").unlink()
    (script.folder / "busy.py").write_text(
        "import sys\nfrom omniq_executor import PersistentExecutor\n"
        "executor = PersistentExecutor(1, store='shared.db')\n"
        "executor.options(eta=3600).submit(abs, 1)\nprint('ready', flush=True)\nsys.stdin.read()\n"
    )
    busy = script.start(python=["busy.py"], stdin=-1)
    out = script.folder / "1.out"
    while "ready" not in out.read_text():
        assert busy.poll() is None
    (script.folder / "busy.py").unlink()
    assert said(script.run(python=["new.py"])) == []
    busy.kill()
    busy.wait()
    write(script.folder, "newer.py")
    assert len(said(script.run(python=["newer.py"]))) == 1


def test_a_session_is_no_script_and_a_queue_that_is_named_asks_for_none(script: Any) -> None:
    write(script.folder, "new.py")
    code = JOB.replace('"dies" in sys.argv', "True")
    die(script, "-c", code)
    assert said(script.run(python=["new.py"])) == []
    write(script.folder, "old.py")
    die(script, "old.py")
    (script.folder / "old.py").unlink()
    assert said(script.run("queue", "mine", python=["new.py"])) == []


def test_one_queue_costs_one_look_at_the_runs(make_executor: Any, store: Path, monkeypatch: Any) -> None:
    make_executor(1, queue="here").shutdown()
    with contextlib.closing(open_any(store)) as it:
        for name in ("owners", "counts", "find", "states"):
            monkeypatch.setattr(type(it), name, None)
        assert stranded(it, "here", it.runs()[-1].id) == []
        assert stranded(it, "here", 0) == []
