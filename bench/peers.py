"""Other libraries beside ours, each at what its users do: the figures of docs/performance.md.

    python -m bench.peers [--only PEER]... [--row ROW]... [--rounds N] [--quick] [--json PATH] [--png PATH]

A round takes all peers in turn, each in a fresh process; the ratios are to ProcessPoolExecutor within the round, the
medians are over the rounds. Peers that are not installed are left out, and named. Those that take a call at a time, and
milliseconds for it, get fewer calls (`slow`): their figures are rates as well.

Durable are those whose calls and results outlive the process. DBOS runs calls in threads of one process; huey and
persist-queue need a worker, which is started here. With persist-queue people write that worker themselves, and so does
this file: a process that takes calls from one queue on disk and puts results into another.
"""

import argparse
import contextlib
import importlib.util
import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench import calls, report
from bench.measure import WORKERS

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 120.0
REFERENCE = "ProcessPoolExecutor"

Run = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]
"""Makes a call for each item and returns the results in order."""


class Peer(NamedTuple):
    """A library. `opened` gives how it makes calls from a list, as its users would do it."""

    opened: Callable[[Path], "contextlib.AbstractContextManager[Run]"]
    module: str  # without which it is left out
    is_durable: bool = False
    slow: bool = False


class Row(NamedTuple):
    """What is measured: a function of how calls are made and of a size, which gives a figure."""

    measure: Callable[[Run, int], float]
    what: str
    unit: str
    size: int
    slow_size: int
    more_is_better: bool = True


# peers


@contextlib.contextmanager
def of_executor(executor: Any) -> Iterator[Run]:
    """Anything with the interface of concurrent.futures: its `submit()` for each, as most people use it."""

    def run(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        futures = [executor.submit(function, item) for item in items]
        return [future.result() for future in futures]

    with executor:
        yield run


def process_pool(_: Path) -> Any:
    """Return that of the standard library."""
    from concurrent.futures import ProcessPoolExecutor

    return of_executor(ProcessPoolExecutor(WORKERS, multiprocessing.get_context("forkserver")))


def ours(store: Path) -> Any:
    """Return our executor on a store."""
    from omniq_executor import PersistentExecutor

    return PersistentExecutor(WORKERS, multiprocessing.get_context("forkserver"), store=store, queue="bench")


def persistent(folder: Path) -> Any:
    """Return ours on SQLite."""
    return of_executor(ours(folder / "store.db"))


def persistent_folder(folder: Path) -> Any:
    """Return ours on a folder of files."""
    return of_executor(ours(folder / "store"))


@contextlib.contextmanager
def persistent_map(folder: Path) -> Iterator[Run]:
    """Its map, as that of joblib and of mpire."""
    with ours(folder / "store.db") as executor:
        yield lambda function, items: list(executor.map(function, items))


@contextlib.contextmanager
def joblib(_: Path) -> Iterator[Run]:
    """Its Parallel, which batches by itself."""
    from joblib import Parallel, delayed

    with Parallel(n_jobs=WORKERS) as parallel:
        yield lambda function, items: list(parallel(delayed(function)(item) for item in items))


def loky(_: Path) -> Any:
    """Return the executor below joblib."""
    from loky import ProcessPoolExecutor

    return of_executor(ProcessPoolExecutor(WORKERS))


@contextlib.contextmanager
def pebble(_: Path) -> Iterator[Run]:
    """Its `schedule()`, which can end a call."""
    from pebble import ProcessPool

    with ProcessPool(WORKERS) as pool:

        def run(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
            futures = [pool.schedule(function, args=[item]) for item in items]
            return [future.result() for future in futures]

        yield run


@contextlib.contextmanager
def mpire(_: Path) -> Iterator[Run]:
    """Its map, in chunks of its own choice."""
    from mpire import WorkerPool

    with WorkerPool(WORKERS) as pool:
        yield lambda function, items: list(pool.map(function, [(item,) for item in items]))


@contextlib.contextmanager
def dask(_: Path) -> Iterator[Run]:
    """The executor of a client, with a cluster of processes on this machine."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=WORKERS, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
        of_executor(client.get_executor(pure=False)) as run,
    ):
        yield run


def executorlib(_: Path) -> Any:
    """Return its executor for one machine, with workers that stay."""
    from executorlib import SingleNodeExecutor

    return of_executor(SingleNodeExecutor(max_workers=WORKERS, block_allocation=True))


@contextlib.contextmanager
def huey(folder: Path, kind: str = "SqliteHuey") -> Iterator[Run]:
    """It on SQLite, with its consumer beside it."""
    with worker(folder, kind):
        call = huey_call(huey_at(folder, kind))

        def run(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
            results = [call(function, item) for item in items]
            return [result.get(blocking=True, max_delay=0.05) for result in results]

        yield run


def huey_at(folder: Path, kind: str) -> Any:
    """Open its storage."""
    import huey

    return (
        huey.FileHuey(path=str(folder / "huey"))
        if kind == "FileHuey"
        else huey.SqliteHuey(filename=str(folder / "h.db"))
    )


def huey_call(app: Any) -> Any:
    """Return its task that calls any function."""
    return app.task(name="call")(lambda function, item: function(item))


@contextlib.contextmanager
def dbos(folder: Path) -> Iterator[Run]:
    """It on SQLite: a queue of workflows, in threads of this process."""
    import logging

    from dbos import DBOS

    DBOS(config={"name": "bench", "system_database_url": f"sqlite:///{folder / 'dbos.db'}", "run_admin_server": False})
    logging.getLogger("dbos").setLevel(logging.ERROR)
    functions = {function: DBOS.workflow(name=function.__name__)(function) for function in FUNCTIONS}
    DBOS.launch()
    queue = DBOS.register_queue("bench", worker_concurrency=WORKERS, polling_interval_sec=0.01)

    def run(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        handles = [queue.enqueue(functions[function], item) for item in items]
        return [handle.get_result() for handle in handles]

    yield run
    DBOS.destroy()


@contextlib.contextmanager
def persist_queue(folder: Path) -> Iterator[Run]:
    """Two of its queues on SQLite, and workers that take from one and put into the other."""
    from persistqueue import SQLiteQueue

    with worker(folder, "persist-queue"):
        given = SQLiteQueue(str(folder / "calls"), multithreading=True, auto_commit=True)
        taken = SQLiteQueue(str(folder / "results"), multithreading=True, auto_commit=True)

        def run(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
            for place, item in enumerate(items):
                given.put((function.__name__, place, item))
            results: dict[int, Any] = {}
            while len(results) < len(items):
                try:
                    place, result = taken.get(block=False)
                    results[place] = result
                except Exception:  # noqa: BLE001 - its Empty, which it takes from different modules by the version
                    time.sleep(0.001)  # another process's puts wake nobody
            return [results[place] for place in range(len(items))]

        yield run


def own(item: int) -> int:
    """Do nothing, as a function of the script: this module is run as one."""
    return item


FUNCTIONS = (calls.noop, calls.wait, calls.array_of, calls.last_of, own)

PEERS = {
    REFERENCE: Peer(process_pool, "concurrent.futures"),
    "omniq_executor, SQLite": Peer(persistent, "omniq_executor", is_durable=True),
    "omniq_executor, SQLite, `map`": Peer(persistent_map, "omniq_executor", is_durable=True),
    "omniq_executor, folder": Peer(persistent_folder, "omniq_executor", is_durable=True),
    "joblib": Peer(joblib, "joblib"),
    "loky": Peer(loky, "loky"),
    "pebble": Peer(pebble, "pebble"),
    "mpire": Peer(mpire, "mpire"),
    "dask": Peer(dask, "distributed", slow=True),
    "executorlib": Peer(executorlib, "executorlib", slow=True),
    "huey, SQLite": Peer(huey, "huey", is_durable=True, slow=True),
    "huey, files": Peer(lambda folder: huey(folder, "FileHuey"), "huey", is_durable=True, slow=True),
    "DBOS, SQLite": Peer(dbos, "dbos", is_durable=True, slow=True),
    "persist-queue": Peer(persist_queue, "persistqueue", is_durable=True, slow=True),
}


# the workers of those that have none in the process that submits


@contextlib.contextmanager
def worker(folder: Path, kind: str) -> Iterator[None]:
    """Have processes work the calls off, until the end of the block."""
    ready = folder / "ready"
    command = [sys.executable, "-m", "bench.peers", "--work", kind, str(folder)]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(1 if "Huey" in kind else WORKERS)
    ]
    try:
        deadline = time.monotonic() + LIMIT_S
        while not ready.exists():
            if time.monotonic() > deadline or processes[0].poll() is not None:
                raise RuntimeError(f"the worker of {kind} has not begun")
            time.sleep(0.01)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def work(kind: str, folder: Path) -> None:
    """Work calls off: what `worker()` starts."""
    if "Huey" in kind:
        app = huey_at(folder, kind)
        huey_call(app)
        consumer = app.create_consumer(workers=WORKERS, worker_type="process", initial_delay=0.001, max_delay=0.01)
        consumer.start()
        Path(folder, "ready").touch()
        signal.pause()
    from persistqueue import SQLiteQueue

    named = {function.__name__: function for function in FUNCTIONS}
    given = SQLiteQueue(str(folder / "calls"), multithreading=True, auto_commit=True)
    taken = SQLiteQueue(str(folder / "results"), multithreading=True, auto_commit=True)
    Path(folder, "ready").touch()
    while True:
        try:
            name, place, item = given.get(block=False)
        except Exception:  # noqa: BLE001 - as above
            time.sleep(0.001)
            continue
        taken.put((place, named[name](item)))


# rows


def rate_of(function: Callable[[Any], Any]) -> Callable[[Run, int], float]:
    """Return what measures calls a second."""

    def measure(run: Run, n: int) -> float:
        run(function, range(20))
        start = time.perf_counter()
        if run(function, range(n)) != list(range(n)):
            raise RuntimeError("other results than those")
        return n / (time.perf_counter() - start)

    return measure


def over_ideal(run: Run, n: int) -> float:
    """How much longer calls of 10 ms take than they would on workers that never wait."""
    run(calls.noop, range(200))
    start = time.perf_counter()
    run(calls.wait, [0.01] * n)
    return (time.perf_counter() - start) / (n * 0.01 / WORKERS)


def array_results(run: Run, n: int) -> float:
    """MB/s of arrays of 10 MB that calls return."""
    run(calls.array_of, [1] * 4)
    start = time.perf_counter()
    total = sum(array.nbytes for array in run(calls.array_of, [10] * n))
    return total / 1e6 / (time.perf_counter() - start)


def array_arguments(run: Run, n: int) -> float:
    """MB/s of arrays of 10 MB that calls are given, each another one."""
    arrays = [calls.array_of(10) + number for number in range(n)]
    run(calls.last_of, arrays[:1] * 4)
    start = time.perf_counter()
    if run(calls.last_of, arrays) != [1.0 + number for number in range(n)]:
        raise RuntimeError("calls saw other arrays")
    return sum(array.nbytes for array in arrays) / 1e6 / (time.perf_counter() - start)


ROWS = {
    "noop": Row(rate_of(calls.noop), "no-op calls, until every result is there", "calls/s", 10_000, 300),
    "own": Row(rate_of(own), "the same with a function of the script", "calls/s", 10_000, 300),
    "10ms": Row(over_ideal, "calls of 10 ms, beside 2 workers that never wait", "×", 200, 100, more_is_better=False),
    "results": Row(array_results, "arrays of 10 MB as results", "MB/s", 20, 10),
    "arguments": Row(array_arguments, "arrays of 10 MB as arguments", "MB/s", 20, 10),
}


def measure(name: str, row_name: str, folder: Path, quick: bool) -> float:
    """Return one figure of one peer."""
    peer, row = PEERS[name], ROWS[row_name]
    size = row.slow_size if peer.slow else row.size
    with peer.opened(folder) as run:
        return row.measure(run, max(size // 10, 4) if quick else size)


def measured_apart(name: str, row: str, quick: bool) -> float | str:
    """Return the same, of a fresh process; or why there is none."""
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
        command = [sys.executable, "-m", "bench.peers", "--measure", name, row, folder, *["--quick"] * quick]
        errors = Path(folder, "errors")
        with errors.open("w") as said:  # no pipes: processes that a peer leaves behind would hold them open
            process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said, start_new_session=True)
        try:
            process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            return f"no end after {LIMIT_S:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        figure = Path(folder, "figure")
        if figure.exists():
            return float(figure.read_text())
        return (errors.read_text(errors="replace").strip().splitlines() or ["no figure"])[-1]


def main() -> None:
    """Measure all, print the table, write the files."""
    parser = argparse.ArgumentParser("python -m bench.peers", description="Other libraries beside ours.")
    parser.add_argument("--only", action="append", choices=PEERS, help="this peer, besides ProcessPoolExecutor")
    parser.add_argument("--row", action="append", choices=ROWS, help="this row; may be repeated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a tenth of the calls")
    parser.add_argument("--json", type=Path, metavar="PATH")
    parser.add_argument("--png", type=Path, metavar="PATH", help="draw a chart (needs the extra [bench])")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work[0], Path(options.work[1]))
    elif options.measure:
        name, row, folder = options.measure
        Path(folder, "figure").write_text(str(measure(name, row, Path(folder), options.quick)))
        os._exit(0)  # what a peer does at the end of its process is not measured, and some never come to it
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    """Take all rounds."""
    there = [name for name, peer in PEERS.items() if importlib.util.find_spec(peer.module) is not None]
    missing = [name for name in PEERS if name not in there]
    names = [name for name in there if not options.only or name in (REFERENCE, *options.only)]
    rows = options.row or list(ROWS)
    load_before = os.getloadavg()[0]
    found: dict[str, dict[str, list[float]]] = {name: {row: [] for row in rows} for name in names}
    failed: dict[tuple[str, str], str] = {}
    for number in range(options.rounds):
        for row in rows:
            for name in names:
                figure = measured_apart(name, row, options.quick)
                print(f"round {number + 1}: {ROWS[row].what}: {name}: {figure}", file=sys.stderr, flush=True)
                if isinstance(figure, float):
                    found[name][row].append(figure)
                else:
                    failed[name, row] = figure
    print(f"load {load_before:.1f} before, {os.getloadavg()[0]:.1f} after; {options.rounds} rounds\n")
    print(f"| | durable | {' | '.join(ROWS[row].what for row in rows)} |\n|---|---|{'--:|' * len(rows)}")
    medians: dict[str, dict[str, Any]] = {}
    for name in names:
        cells = []
        for row in rows:
            pairs = list(zip(found[name][row], found[REFERENCE][row], strict=False))
            if not pairs:
                cells.append("–")
                continue
            value = statistics.median(figure for figure, _ in pairs)
            ratio = statistics.median(figure / reference for figure, reference in pairs)
            medians.setdefault(name, {})[row] = {"figure": value, "ratio": ratio}
            of = report.figure(value, ROWS[row].unit)
            cells.append(of if name == REFERENCE else f"{of}, {report.times(ratio)}")
        print(f"| {name} | {'yes' if PEERS[name].is_durable else ''} | {' | '.join(cells)} |")
    for (name, row), why in failed.items():
        print(f"\n{name}, {ROWS[row].what}: {why}")
    if missing:
        print(f"\nnot installed: {', '.join(missing)}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(medians, indent=2) + "\n", encoding="utf-8")
    if options.png:
        draw(medians, rows, options.png)


def draw(medians: dict[str, dict[str, Any]], rows: Sequence[str], path: Path) -> None:
    """A chart for each row, its peers as bars. Raises ImportError where matplotlib is missing."""
    from matplotlib.figure import Figure

    chart = Figure(figsize=(11, 0.8 + 0.36 * len(medians) * ((len(rows) + 1) // 2)), dpi=120, layout="constrained")
    for place, row in enumerate(rows, 1):
        axes = chart.add_subplot((len(rows) + 1) // 2, 2, place)
        of = {name: figures[row] for name, figures in medians.items() if row in figures}
        colors = [report.GOOD if name.startswith("omniq") else report.FAINT for name in of]
        bars = axes.barh(list(of), [one["figure"] for one in of.values()], color=colors)
        axes.bar_label(bars, [f" {report.figure(one['figure'], ROWS[row].unit)}" for one in of.values()], size=7)
        axes.set_xscale("log")
        axes.margins(x=0.25)
        axes.invert_yaxis()
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
        way = "longer is better" if ROWS[row].more_is_better else "shorter is better"
        axes.set_title(f"{ROWS[row].what} ({way}, log scale)", size=8, color=report.INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.savefig(path)


if __name__ == "__main__":
    main()
