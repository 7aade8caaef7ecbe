"""The measurements, each a function that takes a side and a size and returns figures by name.

Each runs in a fresh process of its own, so that no executor warms, fills or disturbs the next one:

    python -m bench.measure NAME SIDE SIZE STORE [DURABILITY]     # prints the figures as one line of JSON

SIDE is `pool` (ProcessPoolExecutor) or `persistent` (PersistentExecutor). Only that side's code is imported.
Calls are made as anybody would make them, without time limits: whoever starts the process limits it as a whole.
"""

import itertools
import json
import multiprocessing
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, NamedTuple

from bench import calls

WORKERS = 2
START_METHOD = "forkserver"
WARM_S = 20.0
WARM_CALLS = 200
ARRAYS_MB = 1, 10, 100
# The second time counts: a virtual machine has to be given memory for the first.
TWICE_MB = 1, 1, 10, 10, 100, 100

Figures = dict[str, float]


class Side(NamedTuple):
    """One of the two executors, and where the persistent one keeps its calls."""

    name: str
    store: str
    durability: Any = "process"

    def executor(self) -> Executor:
        """A new executor, alike on both sides."""
        context = multiprocessing.get_context(START_METHOD)
        if self.name == "pool":
            from concurrent.futures import ProcessPoolExecutor

            return ProcessPoolExecutor(WORKERS, context)
        from omniq_executor import PersistentExecutor

        return PersistentExecutor(WORKERS, context, store=self.store, durability=self.durability, queue="bench")

    def warm_executor(self) -> Executor:
        """An executor whose workers are all up and have run something."""
        executor = self.executor()
        deadline = time.monotonic() + WARM_S
        pids: set[int] = set()
        while len(pids) < WORKERS:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name}: {len(pids)} of {WORKERS} workers came up within {WARM_S:.0f} s")
            pids.update(executor.map(calls.worker_pid, [0.01] * 2 * WORKERS))
        run_map(executor, calls.noop, WARM_CALLS)
        return executor

    def empty_files(self) -> None:
        """Have files of large values take neither memory nor disk any more, as those that come next are measured.

        A disk that is behind by gigabytes lets whoever writes wait, and the host of a virtual machine takes its time to
        give it more memory. The files stay, since ext4 is slow to make some while after others were removed.
        """
        for path in Path(f"{self.store}-values").glob("*"):
            os.truncate(path, 0)

    def check_kept(self, n: int) -> None:
        """Raise unless the store, read as anybody can, has every no-op call as a finished task of its own."""
        if self.name == "pool":
            return
        import sqlite3  # here, so that it does not count as ProcessPoolExecutor's memory

        store = sqlite3.connect(self.store)
        where = "status = 'COMPLETED' AND func_path = 'bench.calls.noop' AND args = '[' || result || ']'"
        (kept,) = store.execute(f"SELECT count(*) FROM tasks WHERE {where}").fetchone()
        store.close()
        if kept != n + WARM_CALLS:
            raise RuntimeError(f"{kept} of {n + WARM_CALLS} calls are kept in the store")


def run_map(executor: Executor, call: Callable[[Any], int], n: int, items: Iterable[Any] | None = None) -> float:
    """Seconds for a map over `n` items, the numbers or what stands for them, its results taken and kept by nobody."""
    start = time.perf_counter()
    total = sum(executor.map(call, range(n) if items is None else items, chunksize=1))
    seconds = time.perf_counter() - start
    if total != n * (n - 1) // 2:
        raise RuntimeError(f"map over {n} items gave other results than those")
    return seconds


def run_pickled_map(executor: Executor, n: int) -> float:
    """Likewise, over complex numbers, which are pickled."""
    return run_map(executor, calls.real_of, n, map(complex, range(n)))


def noop_map(side: Side, n: int) -> Figures:
    """Throughput of a map, and the processor time of all processes from its start until after shutdown."""
    with side.warm_executor() as executor:
        cpu_before = session_cpu_s()
        seconds = run_map(executor, calls.noop, n)
    cpu_s = session_cpu_s() - cpu_before
    side.check_kept(n)
    return {"rate": n / seconds, "cpu": cpu_s * 10_000 / n}


def noop_submit(side: Side, n: int) -> Figures:
    """Throughput of a submit loop until every result is there, and of its submits alone."""
    with side.warm_executor() as executor:
        start = time.perf_counter()
        futures = [executor.submit(calls.noop, item) for item in range(n)]
        submitted = time.perf_counter()
        for future in futures:
            future.result()
        done = time.perf_counter()
    side.check_kept(n)
    return {"rate": n / (done - start), "submit_rate": n / (submitted - start)}


def own(item: int) -> int:
    """Do nothing, as a function of the script, which workers cannot import: this module is run as one."""
    return item


def own_submit(side: Side, n: int) -> Figures:
    """Throughput of a submit loop with a function of the script, until every result is there."""
    with side.warm_executor() as executor:
        executor.submit(own, 0).result()
        start = time.perf_counter()
        for future in [executor.submit(own, item) for item in range(n)]:
            future.result()
        return {"rate": n / (time.perf_counter() - start)}


def round_trip(side: Side, n: int) -> Figures:
    """Microseconds from submit to result, one call at a time."""
    took = []
    with side.warm_executor() as executor:
        for item in range(n):
            start = time.perf_counter()
            executor.submit(calls.noop, item).result()
            took.append((time.perf_counter() - start) * 1e6)
    took.sort()
    return {"p50": took[n // 2], "p99": took[n * 99 // 100]}


def file_map(side: Side, n: int) -> Figures:
    """Throughput of a map, on a folder of files."""
    side = side._replace(store=side.store.removesuffix(".db"))
    with side.warm_executor() as executor:
        seconds = run_map(executor, calls.noop, n)
    kept = 0 if side.name == "pool" else len(os.listdir(Path(side.store, "completed"))) - WARM_CALLS
    if side.name != "pool" and kept < n:
        raise RuntimeError(f"{kept} of {n} calls are kept in the store")
    return {"rate": n / seconds}


def calls_of_1_ms(side: Side, n: int) -> Figures:
    """Throughput of a map of calls that sleep for 1 ms."""
    with side.warm_executor() as executor:
        return {"rate": n / run_map(executor, calls.wait_1_ms, n)}


def calls_of_10_ms(side: Side, n: int) -> Figures:
    """How much longer a map of calls takes than its calls, if 2 workers never waited: of 10 ms, after short ones."""
    return {"over": _over_ideal(side, [0.01] * n)}


def calls_of_5_ms(side: Side, n: int) -> Figures:
    """Likewise, of 5 ms."""
    return {"over": _over_ideal(side, [0.005] * n)}


def heavy_tail(side: Side, n: int) -> Figures:
    """Likewise, of 0.1 ms to 1 s, of which few are long."""
    chance = random.Random(7)
    return {"over": _over_ideal(side, [min(0.0001 * chance.paretovariate(0.6), 1.0) for _ in range(n)])}


def _over_ideal(side: Side, durations: Sequence[float]) -> float:
    with side.warm_executor() as executor:
        start = time.perf_counter()
        done = sum(1 for _ in executor.map(calls.wait, durations))
        seconds = time.perf_counter() - start
    if done != len(durations):
        raise RuntimeError(f"map over {len(durations)} items gave {done}")
    return seconds / (sum(durations) / WORKERS)


def array_results(side: Side, n: int) -> Figures:
    """MB/s of arrays that calls return, by their size, so many MB of each."""
    figures = {}
    with side.warm_executor() as executor:
        executor.submit(calls.array_of, 1).result()  # the workers have imported numpy
        for size in TWICE_MB:
            count = max(n // size, 1)
            start = time.perf_counter()
            total = sum(array.nbytes for array in executor.map(calls.array_of, [size] * count))
            figures[f"of_{size}"] = total / 1e6 / (time.perf_counter() - start)
            side.empty_files()
            if total != size * count << 20:
                raise RuntimeError(f"{count} arrays of {size} MiB had {total} bytes together")
    return figures


def array_arguments(side: Side, n: int) -> Figures:
    """MB/s of arrays that calls are given, each another one, by their size, so many MB of each."""
    figures = {}
    with side.warm_executor() as executor:
        executor.submit(calls.last_of, calls.array_of(1)).result()
        for number, size in zip(itertools.count(1, 1000), TWICE_MB):
            arrays = [calls.array_of(size) * (number + place) for place in range(max(n // size, 1))]
            start = time.perf_counter()
            found = list(executor.map(calls.last_of, arrays))
            figures[f"of_{size}"] = sum(array.nbytes for array in arrays) / 1e6 / (time.perf_counter() - start)
            side.empty_files()
            if found != [float(number + place) for place in range(len(arrays))]:
                raise RuntimeError(f"calls saw other arrays than those that they were given: {found}")
    return figures


def same_array(side: Side, n: int) -> Figures:
    """Seconds for 20 calls that are given the same array of so many MB."""
    array = calls.array_of(n)
    with side.warm_executor() as executor:
        executor.submit(calls.last_of, calls.array_of(1)).result()
        start = time.perf_counter()
        futures = [executor.submit(calls.last_of, array) for _ in range(20)]
        if sum(future.result() for future in futures) != 20:
            raise RuntimeError("calls saw another array than the one that they were given")
        return {"time": time.perf_counter() - start}


def resumed(side: Side, n: int) -> Figures:
    """Seconds for maps, and a loop of submit(), of calls that an earlier run has finished; the pool runs them.

    For the loop also microseconds of each submit. One of the maps has arguments that JSON does not keep.
    """
    code = (
        "import os, sys; from bench import calls, measure;"
        "executor = measure.Side(sys.argv[1], sys.argv[2]).executor(); n = int(sys.argv[3]);"
        "measure.run_map(executor, calls.noop, n); measure.run_pickled_map(executor, n);"
        "os._exit(0)"  # in the midst: no clean end
    )
    if side.name == "persistent":
        subprocess.run([sys.executable, "-c", code, side.name, side.store, str(n)], check=True)
    with side.executor() as executor:
        seconds, pickled_s = run_map(executor, calls.noop, n), run_pickled_map(executor, n)
        if side.name == "persistent":
            executor._dispatcher.leave_unclean()  # type: ignore[attr-defined]  # so that the next one continues it
    with side.executor() as executor:
        start = time.perf_counter()
        futures = [executor.submit(calls.noop, item) for item in range(n)]
        submitted = time.perf_counter()
        if sum(future.result() for future in futures) != n * (n - 1) // 2:
            raise RuntimeError(f"a loop over {n} items gave other results than those")
        loop_s = time.perf_counter() - start
    return {"time": seconds, "pickled": pickled_s, "loop": loop_s, "submit": (submitted - start) / n * 1e6}


def first_result(side: Side, n: int) -> Figures:
    """Milliseconds from construction to the first result; forkserver, workers and store are all still to come."""
    start = time.perf_counter()
    with side.executor() as executor:
        executor.submit(calls.noop, n).result()
        return {"time": (time.perf_counter() - start) * 1e3}


def peak_memory(side: Side, n: int) -> Figures:
    """Peak resident MiB of the parent over its whole life, a map of `n` items in it."""
    with side.warm_executor() as executor:
        run_map(executor, calls.noop, n)
    status = Path("/proc/self/status").read_text()
    kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return {"peak": int(kib) / 1024}


def import_time(side: Side, n: int) -> Figures:
    """Milliseconds of an import in a fresh interpreter: of the package or module, and of the class itself."""
    package, of_class = (
        ("import concurrent.futures.process", "from concurrent.futures import ProcessPoolExecutor")
        if side.name == "pool"
        else ("import omniq_executor", "from omniq_executor import PersistentExecutor")
    )
    return {"package": _statement_ms(package, n), "class": _statement_ms(of_class, n)}


def idle(side: Side, n: int) -> Figures:
    """Share of a core, in percent, that parent and workers use over `n` ms in which there is nothing to do."""
    with side.warm_executor() as executor:
        run_map(executor, calls.noop, 1_000)
        time.sleep(0.3)  # what follows up on that work is not idleness yet
        pids = [pid for pid, _ in session_stats()]
        before, start = sum(map(process_cpu_s, pids)), time.perf_counter()
        time.sleep(n / 1e3)
        used, seconds = sum(map(process_cpu_s, pids)) - before, time.perf_counter() - start
    return {"share": 100 * used / seconds}


def _statement_ms(statement: str, n: int) -> float:
    code = f"from time import perf_counter as t; s = t(); {statement}; print((t() - s) * 1e3)"
    took = []
    for _ in range(n + 1):
        output = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE)
        took.append(float(output.stdout))
    return sorted(took[1:])[n // 2]  # the first one may have had to write bytecode


def session_stats() -> list[tuple[int, list[str]]]:
    """(pid, fields of /proc/PID/stat from the state on) of every process of this session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
        if int(fields[3]) == os.getsid(0):
            found.append((int(path.parent.name), fields))
    return found


def session_cpu_s() -> float:
    """Processor seconds of this session: its live processes and those they have reaped.

    Not RUSAGE_CHILDREN, which cannot see the workers: they are children of the forkserver, which outlives them.
    """
    return sum(sum(map(int, fields[11:15])) for _, fields in session_stats()) / os.sysconf("SC_CLK_TCK")


def process_cpu_s(pid: int) -> float:
    """Processor seconds of a live process in nanoseconds: a tick of /proc would be 0.5 % of two seconds."""
    return time.clock_gettime(~pid << 3 | 2)  # what clock_getcpuclockid(3) gives


MEASUREMENTS: dict[str, Callable[[Side, int], Figures]] = {
    "map": noop_map,
    "files": file_map,
    "submit": noop_submit,
    "own": own_submit,
    "round-trip": round_trip,
    "1ms": calls_of_1_ms,
    "5ms": calls_of_5_ms,
    "10ms": calls_of_10_ms,
    "tail": heavy_tail,
    "results": array_results,
    "arguments": array_arguments,
    "same": same_array,
    "resume": resumed,
    "first": first_result,
    "memory": peak_memory,
    "import": import_time,
    "idle": idle,
}

if __name__ == "__main__":
    name, side_name, size, *where = sys.argv[1:]
    print(json.dumps(MEASUREMENTS[name](Side(side_name, *where), int(size))))
