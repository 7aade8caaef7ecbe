"""A store that has moved is resumed where it is then: in another folder, on a host or for a user of another name."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.once

SCRIPT = """
import os, sys
from omniq_executor import PersistentExecutor

def call(number):
    with open("journal", "a") as file:
        file.write(f"{number}\\n")
    while number == 5 and not os.path.exists("go on"):
        pass
    return number

with PersistentExecutor(1, store=sys.argv[1]) as executor:
    print([*executor.map(call, range(10))])
"""
AS_BEFORE = """
import socket
socket.gethostname = lambda: "the container before"
"""


def _move(folder: Path) -> Path:
    shutil.move(folder, moved := folder.with_name("elsewhere"))
    return moved


def _copy(folder: Path) -> Path:
    # Pipes of owners are no files.
    ignore = lambda at, names: [name for name in names if Path(at, name).is_fifo()]  # noqa: E731
    return Path(shutil.copytree(folder, folder.with_name("copied"), ignore=ignore, symlinks=True))


def _have_another_host_name(folder: Path) -> Path:
    (folder / "sitecustomize.py").unlink()
    return folder


@pytest.mark.parametrize("name", ["store.db", "store"])
@pytest.mark.parametrize("move", [_move, _copy, _have_another_host_name])
def test_a_killed_run_is_continued_wherever_its_store_is_by_then(
    script: Any, tmp_path: Path, name: str, move: Callable[[Path], Path]
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    script.folder, script.journal.path = project, project / "journal"
    script._env["PYTHONPATH"] += os.pathsep + "."
    script._env["USER"] = script._env["LOGNAME"] = "somebody"
    (project / "sitecustomize.py").write_text(AS_BEFORE)
    script.write(SCRIPT)
    process = script.start(name)
    script.journal.wait_for(6)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for member in script.members(process):
        os.kill(member, signal.SIGKILL)
    script.folder = move(project)
    script._env["USER"] = script._env["LOGNAME"] = "somebody else"
    (script.folder / "go on").touch()
    done = script.run(name)
    assert done.stdout == f"{[*range(10)]}\n", done.stderr
    assert "of 10 calls are done (run 1)" in done.stderr
