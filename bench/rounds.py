"""What is measured, how often and against which targets; and the rounds in which both executors take turns.

A round is one process of ProcessPoolExecutor and, right after it, one of PersistentExecutor. The ratio is
taken within each round and the median over all rounds: a machine that slows down in between slows both.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.measure import ARRAYS_MB

ROOT = Path(__file__).resolve().parent.parent
PROBE_LIMIT_S = 180.0


@dataclass(frozen=True)
class Row:
    """A figure of a measurement as a row of the table. `need` and `aim` are ratios, or figures if `absolute`."""

    figure: str
    what: str
    unit: str
    more_is_better: bool = False
    need: float | None = None
    aim: float | None = None
    absolute: bool = False


@dataclass(frozen=True)
class Measurement:
    """Sizes and rounds of a measurement, in full and quick, and the rows it fills. `{n}` in a row is the size."""

    name: str
    size: int
    quick_size: int
    rounds: int
    quick_rounds: int
    rows: tuple[Row, ...]


PLAN = (
    Measurement("map", 20_000, 5_000, 9, 2, (
        Row("rate", "no-op `map` of {n:,}, chunksize 1", "calls/s", True, need=5, aim=8),
        Row("cpu", "its CPU time per 10,000 calls, all processes, with shutdown", "s"),
    )),
    Measurement("files", 3_000, 1_000, 9, 2, (
        Row("rate", "no-op `map` of {n:,}, on a folder of files", "calls/s", True, need=0.3, aim=0.6),
    )),
    Measurement("submit", 5_000, 2_000, 9, 2, (
        Row("rate", "no-op `submit` loop of {n:,}, until every result is there", "calls/s", True, need=1.8, aim=2.5),
        Row("submit_rate", "its `submit` calls alone, durable when they return", "calls/s", True),
    )),
    Measurement("own", 20_000, 2_000, 7, 2, (
        Row("rate", "`submit` loop of {n:,}, function of the script", "calls/s", True,
            need=2.5, aim=3.5),
    )),
    Measurement("round-trip", 3_000, 500, 9, 2, (
        Row("p50", "submit and wait, one at a time, p50", "µs", need=1.1, aim=0.8),
        Row("p99", "submit and wait, one at a time, p99", "µs"),
    )),
    Measurement("1ms", 1_000, 300, 9, 2, (
        Row("rate", "`map` of {n:,} calls that sleep 1 ms, chunksize 1", "calls/s", True),
    )),
    Measurement("5ms", 600, 100, 5, 1, (
        Row("over", "`map` of {n:,} calls of 5 ms after short ones, over the ideal", "×"),
    )),
    Measurement("10ms", 400, 50, 5, 1, (
        Row("over", "`map` of {n:,} calls of 10 ms, likewise", "×"),
    )),
    Measurement("tail", 3_000, 100, 3, 1, (
        Row("over", "`map` of {n:,} calls of 0.1 ms to 1 s, likewise", "×"),
    )),
    Measurement("results", 200, 10, 5, 1, tuple(
        Row(f"of_{size}", f"arrays of {size} MB as results", "MB/s", True, need=1, aim=2) for size in ARRAYS_MB
    )),
    Measurement("arguments", 200, 10, 5, 1, tuple(
        Row(f"of_{size}", f"arrays of {size} MB as arguments", "MB/s", True, need=1, aim=2) for size in ARRAYS_MB
    )),
    Measurement("same", 100, 2, 5, 1, (
        Row("time", "one array of {n} MB as an argument of 20 calls", "s", need=0.2, aim=0.1),
    )),
    Measurement("resume", 100_000, 5_000, 3, 1, (
        Row("time", "`map` of {n:,} calls that an earlier run has finished", "s"),
        Row("pickled", "`map` of as many with complex numbers, which are pickled", "s"),
        Row("loop", "loop of `submit` over as many, until all results are there", "s"),
        Row("submit", "each submit of that loop", "µs"),
    )),
    Measurement("first", 1, 1, 11, 2, (
        Row("time", "first result after construction, everything cold", "ms"),
    )),
    Measurement("memory", 200_000, 20_000, 2, 1, (
        Row("peak", "peak memory of the parent, `map` of {n:,} consumed in order", "MiB", need=0.25, aim=0.1),
    )),
    Measurement("import", 5, 3, 5, 1, (
        Row("package", "`import omniq_executor`, beside `concurrent.futures.process`", "ms", need=2),
        Row("class", "import of the executor's class", "ms"),
    )),
    Measurement("idle", 2_000, 1_000, 3, 1, (
        Row("share", "idle executor, parent and workers, share of a core", "%", need=0.5, aim=0, absolute=True),
    )),
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    """A row with its figures. `rounds` are the pairs they come from: ProcessPoolExecutor, PersistentExecutor."""

    measurement: str
    figure: str
    what: str
    unit: str
    more_is_better: bool
    need: float | None
    aim: float | None
    absolute: bool
    pool: float
    persistent: float
    ratio: float | None
    met: bool | None
    rounds: list[tuple[float, float]]


class ProbeFailed(RuntimeError):
    """A measurement's process ended badly or not in time."""


def run(
    measurement: Measurement, *, quick: bool, durability: str, store_dir: Path, tell: Callable[[str], None]
) -> Iterator[Result]:
    """Take all rounds of a measurement, then yield its rows."""
    size = measurement.quick_size if quick else measurement.size
    pairs = []
    for number in range(1, (count := measurement.quick_rounds if quick else measurement.rounds) + 1):
        tell(f"{measurement.name}: round {number} of {count}")
        pool, persistent = (probe(measurement.name, s, size, durability, store_dir) for s in ("pool", "persistent"))
        pairs.append((pool, persistent))
    for row in measurement.rows:
        yield summarize(measurement.name, row, size, [(a[row.figure], b[row.figure]) for a, b in pairs])


def summarize(name: str, row: Row, size: int, rounds: list[tuple[float, float]]) -> Result:
    """Median of each side and of the ratios within the rounds, held against the row's target."""
    persistent = median(b for _, b in rounds)
    ratio = None if row.absolute else median(b / a for a, b in rounds)
    met = None
    if row.need is not None:
        held = persistent if ratio is None else ratio
        met = held >= row.need if row.more_is_better else held <= row.need
    return Result(
        measurement=name,
        figure=row.figure,
        what=row.what.format(n=size),
        unit=row.unit,
        more_is_better=row.more_is_better,
        need=row.need,
        aim=row.aim,
        absolute=row.absolute,
        pool=median(a for a, _ in rounds),
        persistent=persistent,
        ratio=ratio,
        met=met,
        rounds=rounds,
    )


def probe(name: str, side: str, size: int, durability: str, store_dir: Path) -> dict[str, float]:
    """Run one measurement of one side in a fresh process with a fresh store.

    The store is left there: ext4 is slow to make files for a minute or so after many were removed.
    """
    folder = tempfile.mkdtemp(prefix="bench-", dir=store_dir)
    command = [sys.executable, "-m", "bench.measure", name, side, str(size), f"{folder}/store.db", durability]
    # A session of its own: its processes can be counted, and ended, as one.
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        output, _ = process.communicate(timeout=PROBE_LIMIT_S)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            raise ProbeFailed(f"{name}, {side}: no end after {PROBE_LIMIT_S:.0f} s") from None
        raise
    if process.returncode:
        raise ProbeFailed(f"{name}, {side}: exit status {process.returncode}")
    figures: dict[str, float] = json.loads(output)
    return figures
