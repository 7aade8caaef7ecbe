"""A store that takes a million calls a day and removes those of the day before: whether it keeps its size and speed.

    python -m bench.days [--days N] [--calls N] [--folder] [--json PATH]

Each day is a process of its own, whose clock is so many days ahead, with results that are kept for 12 hours. So the
calls of a day are removed by the process of the next one, while it makes its own and at its end.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import calls

ROOT = Path(__file__).resolve().parent.parent
DAY_S = 86_400
KEPT_S = DAY_S / 2
DAY_LIMIT_S = 600.0


def day(number: int, count: int, address: str) -> dict[str, float]:
    """Make the calls of one day; return how fast, how long the end took, and what the store holds then."""
    time_ns = time.time_ns
    time.time_ns = lambda: time_ns() + number * DAY_S * 10**9
    from omniq_executor import PersistentExecutor, open_store  # with that clock

    began = time.perf_counter()
    with PersistentExecutor(2, store=address, queue="bench", result_ttl=KEPT_S) as executor:
        if sum(executor.map(calls.noop, range(count))) != count * (count - 1) // 2:
            raise RuntimeError("other results than those")
        done = time.perf_counter()
    ended = time.perf_counter()
    store = open_store(address)
    kept = len(store.ids())
    size = store.usage().size
    store.close()
    return {"rate": count / (done - began), "end": ended - done, "kept": kept, "size": size}


def main() -> None:
    """Let the days pass, and print a row for each."""
    parser = argparse.ArgumentParser("python -m bench.days", description="A store over many days.")
    parser.add_argument("--days", type=int, default=10)
    parser.add_argument("--calls", type=int, default=1_000_000, help="of each day")
    parser.add_argument("--folder", action="store_true", help="a folder of files in place of SQLite")
    parser.add_argument("--json", type=Path, metavar="PATH")
    parser.add_argument("--day", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.day:
        number, address = options.day
        print(json.dumps(day(int(number), options.calls, address)))
        return
    rows: list[dict[str, float]] = []
    load_before = os.getloadavg()[0]
    print("| day | calls/s | its end | kept | size |\n|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
        address = f"{folder}/{'store' if options.folder else 'store.db'}"
        for number in range(options.days):
            command = [sys.executable, "-m", "bench.days", "--calls", str(options.calls), "--day", str(number), address]
            ran = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=DAY_LIMIT_S, check=True)
            rows.append(json.loads(ran.stdout))
            row = rows[-1]
            kept, size = f"{row['kept']:,.0f}", f"{row['size'] / 1e6:,.1f} MB"
            print(f"| {number + 1} | {row['rate']:,.0f} | {row['end']:.1f} s | {kept} | {size} |", flush=True)
    print(f"\nload {load_before:.1f} before, {os.getloadavg()[0]:.1f} after")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
