"""The demo: analyse every Python file of a folder, one durable call a file.

It is an ordinary job on a ProcessPoolExecutor, but for the executor's name. Kill it at any moment
and start it again: it goes on where it was.
"""

import heapq
import math
import os
import signal
import sysconfig
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import click
from rich.console import Console

from ..errors import CallError, OmniqError
from ..executor import PersistentExecutor
from ..future import DurableFuture
from .console import first_line, print_table, printable, progress
from .demo_job import MOST, Analysis, Function, analyse
from .options import checked_fraction

STORE = "omniq_data/omniq.db"
_NAMED_FAILURES = 5  # how many files that failed are named


@dataclass(slots=True)
class Summary:
    """What is known of the files so far; its size does not grow with their number."""

    root: Path
    resumed: int = 0
    executed: int = 0
    failed: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)  # the first few: file, error
    totals: Counter[str] = field(default_factory=Counter)  # lines, functions, branches
    most_complex: list[tuple[Path, Function]] = field(default_factory=list)

    @property
    def done(self) -> int:
        """How many files are finished, well or not."""
        return self.resumed + self.executed

    def add(self, path: Path, future: DurableFuture[Analysis]) -> None:
        """Take in what became of one file. Raise what concerns more than that file."""
        error = future.exception()
        if isinstance(error, OmniqError) and not isinstance(error, CallError):
            raise error
        if future.resumed:
            self.resumed += 1
        else:
            self.executed += 1
        if error is not None:
            self.failed += 1
            if len(self.failures) < _NAMED_FAILURES:
                self.failures.append((self._name(path), f"{type(error).__name__}: {first_line(str(error))}"))
            return
        analysis = future.result()
        self.totals.update(lines=analysis["lines"], functions=analysis["functions"], branches=analysis["branches"])
        self.most_complex += ((path, function) for function in analysis["most_complex"])
        self.most_complex = heapq.nsmallest(
            MOST, self.most_complex, key=lambda found: (-found[1]["complexity"], found[0], found[1]["line"])
        )

    def _name(self, path: Path) -> str:
        return printable(str(path.relative_to(self.root)))

    def print(self, console: Console) -> None:
        """Print what was found: what failed, the totals, and the most complex functions."""
        for name, error in self.failures:
            console.print(f"failed: {name}: {error}", style="red")
        if self.failed > len(self.failures):
            console.print(f"failed: {self.failed - len(self.failures)} more", style="red")
        if self.failed:
            console.print(f"All of them: omniq-executor list --queue '{queue_of(self.root)}' --status FAILED")
        console.print(", ".join(f"{self.totals[name]} {name}" for name in ("lines", "functions", "branches")))
        print_table(
            ["FUNCTION", "COMPLEXITY", "FILE"],
            [
                (function["name"], function["complexity"], f"{self._name(path)}:{function['line']}")
                for path, function in self.most_complex
            ],
        )


def python_files(folder: Path | None) -> tuple[Path, list[Path]]:
    """Return the folder in full and its Python files, sorted. Without a folder, take the standard library."""
    root = (folder or Path(sysconfig.get_path("stdlib"))).resolve()
    skipped = () if folder else ("site-packages", "dist-packages")  # installed into the library, not of it
    found: list[Path] = []
    for parent, folders, names in os.walk(root):
        folders[:] = (name for name in folders if name not in skipped)
        found += (path for name in names if name.endswith(".py") and (path := Path(parent, name)).is_file())
    return root, sorted(found)


def queue_of(root: Path) -> str:
    """Return the queue of a folder: each has its own, so that none waits for what is left of another."""
    return printable(f"demo {root}")


@click.command()
@click.argument("folder", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--kill-at",
    metavar="FRACTION",
    type=float,
    callback=checked_fraction,
    help="Kill this process with SIGKILL when so much is done, from 0 to 1. Run it again to see it resume.",
)
def demo(folder: Path | None, kill_at: float | None) -> None:
    """Analyse every Python file of FOLDER, one durable call a file.

    Without FOLDER it takes the standard library. The store is omniq_data/omniq.db in the current folder.

    \b
    For example:
      omniq-executor demo --kill-at 0.5
    """
    started_s = time.perf_counter()
    root, paths = python_files(folder)
    out = Console(highlight=False, markup=False, soft_wrap=True)
    if not paths:
        out.print(f"There are no Python files in {printable(str(root))}.")
        return
    summary = Summary(root)
    with (
        PersistentExecutor(store=STORE, queue=queue_of(root)) as executor,
        progress("analysing", len(paths)) as advance,
    ):
        futures = {executor.submit(analyse, str(path)): path for path in paths}
        _kill_if_due(summary, len(paths), kill_at)
        for future in cast(Iterator[DurableFuture[Analysis]], as_completed(futures)):
            summary.add(futures.pop(future), future)  # popped, so that its result can go
            advance(1)
            _kill_if_due(summary, len(paths), kill_at)
    took_s = time.perf_counter() - started_s
    summary.print(out)
    out.print(f"{len(paths)} tasks, {summary.resumed} resumed, {summary.executed} executed in {took_s:.1f} s")


def _kill_if_due(summary: Summary, total: int, kill_at: float | None) -> None:
    if kill_at is not None and summary.done >= math.ceil(kill_at * total):
        os.kill(os.getpid(), signal.SIGKILL)
