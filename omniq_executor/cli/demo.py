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
from collections.abc import Iterator
from concurrent.futures import as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..errors import CallError, OmniqError
from ..executor import PersistentExecutor
from ..future import DurableFuture
from .console import first_line, print_table, printable
from .demo_job import MOST, Analysis, Function, analyse

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
    lines: int = 0
    functions: int = 0
    branches: int = 0
    most_complex: list[tuple[Path, Function]] = field(default_factory=list)

    @property
    def done(self) -> int:
        """Number of files that are finished, well or not."""
        return self.resumed + self.executed

    def add(self, path: Path, future: DurableFuture) -> None:
        """Take in what became of one file. Raises what concerns more than that file."""
        error = future.exception()
        if isinstance(error, OmniqError) and not isinstance(error, CallError):
            raise error
        if future.resumed:
            self.resumed += 1
        else:
            self.executed += 1
        if error is None:
            self._add_analysis(path, future.result())
            return
        self.failed += 1
        if len(self.failures) < _NAMED_FAILURES:
            self.failures.append((self._name(path), f"{type(error).__name__}: {first_line(str(error))}"))

    def _add_analysis(self, path: Path, analysis: Analysis) -> None:
        self.lines += analysis["lines"]
        self.functions += analysis["functions"]
        self.branches += analysis["branches"]
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
        console.print(f"{self.lines} lines, {self.functions} functions, {self.branches} branches")
        print_table(
            ["FUNCTION", "COMPLEXITY", "FILE"],
            [
                (function["name"], function["complexity"], f"{self._name(path)}:{function['line']}")
                for path, function in self.most_complex
            ],
        )


def python_files(folder: Path | None) -> tuple[Path, list[Path]]:
    """The folder in full and its Python files, sorted. Without a folder, those of the standard library."""
    root = (folder or Path(sysconfig.get_path("stdlib"))).resolve()
    skipped = () if folder else ("site-packages", "dist-packages")  # installed into the library, not of it
    return root, sorted(_walk(root, skipped))


def _walk(root: Path, skipped: tuple[str, ...]) -> Iterator[Path]:
    for parent, folders, names in os.walk(root):
        folders[:] = (name for name in folders if name not in skipped)
        yield from (path for name in names if name.endswith(".py") and (path := Path(parent, name)).is_file())


def queue_of(root: Path) -> str:
    """The queue of a folder: each has its own, so that one folder does not wait for what is left of another."""
    return printable(f"demo {root}")


def run(folder: Path | None, kill_at: float | None) -> None:
    """Analyse the files of `folder` and print what was found.

    `kill_at` is the fraction of them after which the process kills itself, as `kill -9` would.
    """
    started_s = time.perf_counter()
    root, paths = python_files(folder)
    out, screen = (Console(stderr=stderr, highlight=False, markup=False, soft_wrap=True) for stderr in (False, True))
    if not paths:
        out.print(f"There are no Python files in {printable(str(root))}.")
        return
    summary = Summary(root)
    with PersistentExecutor(store=STORE, queue=queue_of(root)) as executor, _progress(screen) as progress:
        bar = progress.add_task("analysing", total=len(paths))
        futures = {executor.submit(analyse, str(path)): path for path in paths}
        _kill_if_due(summary, len(paths), kill_at)
        for future in cast(Iterator[DurableFuture], as_completed(futures)):
            summary.add(futures.pop(future), future)  # popped, so that its result can go
            progress.update(bar, completed=summary.done)
            _kill_if_due(summary, len(paths), kill_at)
    took_s = time.perf_counter() - started_s
    summary.print(out)
    out.print(f"{len(paths)} tasks, {summary.resumed} resumed, {summary.executed} executed in {took_s:.1f} s")


def _progress(console: Console) -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=console, disable=not console.is_terminal)


def _kill_if_due(summary: Summary, total: int, kill_at: float | None) -> None:
    if kill_at is not None and summary.done >= math.ceil(kill_at * total):
        os.kill(os.getpid(), signal.SIGKILL)
