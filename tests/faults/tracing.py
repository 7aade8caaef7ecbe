"""Processes under strace, which ends them, or makes the system refuse something, at a chosen call of the system."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import omniq_executor

HERE = Path(__file__).parent
# Whatever changes something on disk. "?": not every machine has all of them.
CALLS = (
    "write", "pwrite64", "openat", "mkdir", "mkdirat", "mknod", "mknodat", "rename", "renameat", "renameat2", "link",
    "linkat", "symlink", "symlinkat", "unlink", "unlinkat", "fsync", "fdatasync", "ftruncate", "fallocate", "chmod",
    "fchmod", "fchmodat",
)  # fmt: skip
SYNCS = ("fsync", "fdatasync")
_LINE = re.compile(r"(?:\d+ +)?(\w+)\((.*)")


class Point(NamedTuple):
    """The n-th time that the session makes a call of the system."""

    call: str
    number: int
    what: str  # as strace shows it
    is_first: bool  # since a step was acknowledged

    def __str__(self) -> str:
        return f"{self.call} #{self.number}: {self.what}"


@dataclass
class Traced:
    """What came of a session under strace."""

    status: int
    acknowledged: int  # the number of its steps
    log: str
    err: str

    def injected_at(self, point: Point) -> bool:
        """Whether it was ended by SIGKILL at that very call, and not by or at anything else."""
        lines = [line for line in self.log.splitlines() if not line.lstrip("0123456789 ").startswith("+++")]
        calls = [match for line in lines if (match := _LINE.match(line))]
        count = sum(match[1] == point.call for match in calls)
        return (
            self.status == -signal.SIGKILL
            and "+++ killed by SIGKILL +++" in self.log
            and calls[-1][1] == point.call
            and calls[-1][2].endswith(" = ?")
            and count == point.number
        )


def why_not() -> str | None:
    """Why nothing can be traced here, if nothing can."""
    if not sys.platform.startswith("linux"):
        return "strace is for Linux"
    if shutil.which("strace") is None:
        return "strace is not installed"
    done = subprocess.run(
        ["strace", "-f", "-qq", "-o", os.devnull, "-e", "trace=write", "true"], capture_output=True, text=True
    )
    return None if done.returncode == 0 else f"strace may not trace here: {done.stderr.strip()[-200:]}"


def trace(backend: str, address: Path, log: Path, *, inject: str = "", durability: str = "process", rounds: int = 1,
          retry: bool = False) -> Traced:  # fmt: skip
    """Run a session of scripted.py under strace, with one injection, to its end."""
    command = ["strace", "-f", "-qq", "-o", str(log)]
    command += ["-e", "trace=writev," + ",".join(f"?{call}" for call in CALLS)]
    command += ["-e", f"inject={inject}"] if inject else []
    command += [sys.executable, "-s", str(HERE / "scripted.py"), backend, str(address), durability, str(rounds)]
    command += ["retry"] if retry else []
    path = os.pathsep.join([str(Path(omniq_executor.__file__).parents[1]), str(HERE.parent / "contract")])
    # The same calls of the system in each run: nothing is compiled, and no set has another order.
    env = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=110)
    lines = done.stdout.split()
    return Traced(done.returncode, max(len(lines) - 1 - ("end" in lines), 0), log.read_text(), done.stderr)


def points(traced: Traced, calls: Sequence[str] = CALLS) -> list[Point]:
    """The calls of a whole session that changed something, in their order."""
    assert traced.status == 0, traced.err
    found: list[Point] = []
    seen: Counter[str] = Counter()
    begun = is_first = False
    for line in traced.log.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        name, what = match.groups()
        if name == "writev":
            begun = is_first = True
            if '"end' in what:
                break
            continue
        seen[name] += 1
        if begun and name in calls and " = -1 " not in what and (name != "openat" or "O_CREAT" in what):
            found.append(Point(name, seen[name], what, is_first))
            is_first = False
    return found


def sample(found: Sequence[Point], most: int | None) -> list[Point]:
    """So many of them, spread evenly; the same ones each time."""
    if most is None or len(found) <= most:
        return list(found)
    return [found[(2 * i + 1) * len(found) // (2 * most)] for i in range(most)]
