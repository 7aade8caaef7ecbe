"""Both stores side by side, at what a task queue does: the figures of docs/backends.md.

    python -m bench.backends [--rounds N] [--backlog] [--store-dir FOLDER] [--json PATH]

Each round takes both stores in turn, each in a fresh process with a fresh store; the table has the medians.
One at a time means a transaction for each task, on disk when it returns. Together means what a map does.
--backlog measures instead what a claim costs beside 1,000 and beside 100,000 tasks that are PENDING.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import calls
from omniq_executor import PersistentExecutor, open_store
from omniq_executor.model.codec import encode_rows
from omniq_executor.model.functions import Functions
from omniq_executor.model.ids import Ids
from omniq_executor.model.task import Call, Event
from omniq_executor.stores.base import Batch, Claimed, Outcome, Run, Store, Turn, now

ROOT = Path(__file__).resolve().parent.parent
TASKS = 1_000
MANY = 10_000
WORKERS = 4
ROUND_S = 300.0
# What the storage document says from which this project grew, in ms (and MiB) for (file, sqlite).
SEED = {
    "enqueue 1,000, one at a time": (500, 300),
    "enqueue 1,000 together": (500, 300),
    "claim 1,000, one at a time": (1_500, 100),
    "claim 1,000 together": (1_500, 100),
    "complete 1,000, one at a time": (10_000, 10_000),
    "complete 1,000 together": (10_000, 10_000),
    "list 1,000": (500, 50),
    "list 10,000": (5_000, 500),
    "claim 10,000, 100 at a time": (30_000, 3_000),
    "memory of the process, MiB": (150, 30),
    "4 workers, 1,000 tasks by submit()": (25_000, 5_000),
    "4 workers, 1,000 tasks by map()": (25_000, 5_000),
}
SUFFIXES = {"file": "", "sqlite": ".db"}

Figures = dict[str, float]


class Client:
    """An owner of a queue of a store, who does by hand what a dispatcher does."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.owner = store.enter("bench")
        self.run: Run = store.begin_run("bench", self.owner, "never", now())
        self.ids = Ids(self.owner)
        self.function = Functions().describe(calls.noop)

    def turn(self, **work: object) -> list[Claimed]:
        """One transaction."""
        return self.store.turn(self.owner, self.run, Turn(now(), **work)).claimed  # type: ignore[arg-type]

    def add(self, count: int) -> None:
        """Enqueue one task."""
        for number in range(count):
            self.turn(adds=[Batch(self.ids.take(1), 1, self.function, calls=[Call(f"[{number}]")])])

    def add_together(self, count: int) -> None:
        """Enqueue many."""
        text = encode_rows([(number,) for number in range(count)])
        self.turn(adds=[Batch(self.ids.take(count), count, self.function, text)])

    def end(self, claimed: list[Claimed]) -> None:
        """Complete tasks."""
        self.turn(outcomes=[Outcome(task.id, task.attempt, Event.COMPLETE, "null") for task in claimed])


def one_at_a_time(store: Store, figures: Figures) -> None:
    """Every task in transactions of its own."""
    client = Client(store)
    with taking(figures, "enqueue 1,000, one at a time"):
        client.add(TASKS)
    with taking(figures, "claim 1,000, one at a time"):
        claimed = [client.turn(claim=1)[0] for _ in range(TASKS)]
    with taking(figures, "complete 1,000, one at a time"):
        for task in claimed:
            client.end([task])


def together(store: Store, figures: Figures) -> None:
    """A thousand in one transaction, and what it takes to look at them."""
    client = Client(store)
    with taking(figures, "enqueue 1,000 together"):
        client.add_together(TASKS)
    with taking(figures, "claim 1,000 together"):
        claimed = client.turn(claim=TASKS)
    with taking(figures, "complete 1,000 together"):
        client.end(claimed)
    with taking(figures, "list 1,000"):
        assert len(store.find()) == TASKS


def large(store: Store, figures: Figures) -> None:
    """Ten thousand."""
    client = Client(store)
    with taking(figures, "enqueue 10,000 together"):
        client.add_together(MANY)
    with taking(figures, "list 10,000"):
        assert len(store.find()) == MANY
    with taking(figures, "claim 10,000, 100 at a time"):
        for _ in range(MANY // 100):
            assert len(client.turn(claim=100)) == 100
    figures["memory of the process, MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def executor(address: Path, figures: Figures) -> None:
    """Four processes work off a thousand tasks."""
    with PersistentExecutor(WORKERS, store=address) as pool:
        list(pool.map(calls.noop, range(WORKERS * 50)))  # the workers are up
        with taking(figures, "4 workers, 1,000 tasks by submit()"):
            for future in [pool.submit(calls.noop, number) for number in range(TASKS)]:
                future.result()
        with taking(figures, "4 workers, 1,000 tasks by map()"):
            list(pool.map(calls.noop, range(TASKS)))


def backlog(address: Path, figures: Figures, size: int) -> None:
    """Claims and completions, 10 at a time, of a process that opens a store with so many tasks PENDING."""
    filler = Client(open_store(address))
    for _ in range(size // TASKS):
        filler.add_together(TASKS)
    filler.store.close()
    client = Client(open_store(address))
    with taking(figures, f"first claim of a process, {size:,} PENDING"):
        client.end(client.turn(claim=10))
    with taking(figures, f"claim and complete 500, {size:,} PENDING"):
        for _ in range(50):
            client.end(client.turn(claim=10))


PARTS: dict[str, Callable[[Store, Figures], None]] = {
    "one_at_a_time": one_at_a_time, "together": together, "large": large,
}  # fmt: skip


@contextmanager
def taking(figures: Figures, name: str) -> Iterator[None]:
    """Note how many milliseconds a block takes."""
    began = time.perf_counter()
    yield
    figures[name] = (time.perf_counter() - began) * 1000


def measure(part: str, address: Path) -> Figures:
    """The figures of one part on a new store."""
    figures: Figures = {}
    if part == "executor":
        executor(address, figures)
    elif part.startswith("backlog-"):
        backlog(address, figures, int(part.removeprefix("backlog-")))
    else:
        PARTS[part](open_store(address), figures)
    return figures


def measured_apart(part: str, address: Path) -> Figures:
    """The same, in a fresh process."""
    ran = subprocess.run(
        [sys.executable, "-m", "bench.backends", "--part", part, str(address)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=ROUND_S, check=True,
    )  # fmt: skip
    figures: Figures = json.loads(ran.stdout)
    return figures


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser("python -m bench.backends", description="Both stores side by side.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--backlog", action="store_true", help="what a claim costs beside many that wait")
    parser.add_argument("--store-dir", type=Path, metavar="FOLDER", help="where stores are made, else a temporary one")
    parser.add_argument("--json", type=Path, metavar="PATH")
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(measure(options.part[0], Path(options.part[1]))))
        return
    taken: dict[str, dict[str, list[float]]] = {backend: {} for backend in SUFFIXES}
    load_before = os.getloadavg()[0]
    # All stores go at the end: a file system that has much to free makes new files slowly.
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.store_dir, ignore_cleanup_errors=True) as stores:
        for number in range(options.rounds):
            for part in ("backlog-1000", "backlog-100000") if options.backlog else (*PARTS, "executor"):
                for backend, suffix in SUFFIXES.items():
                    address = Path(stores) / f"{part}-{number}{suffix}"
                    for name, value in measured_apart(part, address).items():
                        taken[backend].setdefault(name, []).append(value)
    medians = {
        backend: {name: statistics.median(values) for name, values in of.items()} for backend, of in taken.items()
    }
    print(f"load {load_before:.1f} before, {os.getloadavg()[0]:.1f} after; {options.rounds} rounds\n")
    print("| what | file | before | sqlite | before |\n|---|--:|--:|--:|--:|")
    for name in medians["file"]:
        cells = [name]
        for place, backend in enumerate(SUFFIXES):
            value = medians[backend][name]
            cells.append(f"{value:,.1f}" + ("" if "MiB" in name else " ms"))
            before = SEED[name][place] if name in SEED else None
            cells.append("" if before is None else f"{before:,}, {before / value:,.1f} ×")
        print(f"| {' | '.join(cells)} |")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(medians, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
