"""Tills to days to months to one report: a pipeline over files that can be killed, mended and simply run again.

    sales/2030-01-31.csv  --read_day()-->  totals of a day  --sum_month()-->  of a month  --report()-->  a text
    of a month, the text  --write_whole()-->  2030-01.json, report.md

Each call is in the store with what it was computed from: the content of its file, its arguments, and the code that it
reaches, here and in cleaning.py. So a second run does what is missing, and what an edit has made different:

    python pipeline.py sales out                 runs everything
    python pipeline.py sales out                 computes nothing, and writes what the last line says
    (a line is added to sales/2030-01-31.csv)    runs read_day() once, sum_month() once, report()
    (cleaning.amount() is mended)                runs everything
    python pipeline.py sales out --top 3         runs report()
    python pipeline.py sales out --preview       says which days it would read, and why; what comes of them follows

A result that is taken over may be older than a file that was written meanwhile, by a run with another `--top`, say. So
the calls that compute write nothing, and those that write are run each time: by a version that is new in each run. One
may run twice, if its process was killed when all was done but its commit, so what it writes is the same each time, and
whole or not there at all: see write_whole(). Those that a killed run has left are cancelled.
"""

import argparse
import csv
import json
import os
import tempfile
import time
import uuid
from collections import Counter
from itertools import groupby
from pathlib import Path

import cleaning

from omniq_executor import InputFile, PersistentExecutor


def read_day(file: InputFile) -> dict[str, int]:
    """Return what each product brought on a day, in cents."""
    totals: Counter[str] = Counter()
    with open(file, encoding="utf-8", newline="") as lines:
        for name, amount in csv.reader(lines):
            totals[cleaning.product(name)] += cleaning.amount(amount)
    return dict(sorted(totals.items()))


def sum_month(days: list[dict[str, int]]) -> dict[str, int]:
    """Return what each product brought in a month."""
    totals: Counter[str] = Counter()
    for day in days:
        totals.update(day)
    return dict(sorted(totals.items()))


def report(months: dict[str, dict[str, int]], top: int) -> str:
    """Return the best products of each month, as a text."""
    lines = ["# Sales", ""]
    for month, totals in months.items():
        best = sorted(totals.items(), key=lambda item: (-item[1], item[0]))[:top]
        lines.append(f"- {month}: " + ", ".join(f"{name} {cents / 100:.2f}" for name, cents in best))
    return "\n".join(lines) + "\n"


def write_whole(path: str, content: str | dict[str, int]) -> str:
    """Write a file so that whoever opens it, at whichever moment, finds the whole of it, or the one before.

    Each attempt writes to a file of its own, as one that was given up may still be at it, and renames it.
    """
    fd, part = tempfile.mkstemp(prefix=".", suffix=".part", dir=os.path.dirname(path))
    try:
        with open(fd, "w", encoding="utf-8") as file:
            file.write(content if isinstance(content, str) else json.dumps(content, indent=1))
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise
    return path


def main() -> None:
    """Run the pipeline."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("sales", type=Path, help="a folder with a file for each day, such as 2030-01-31.csv")
    parser.add_argument("out", type=Path, help="the folder to write to; the store is in it")
    parser.add_argument("--top", type=int, default=5, help="how many products of a month are reported")
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--preview", action="store_true", help="say what would be read, and why, and run nothing")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(exist_ok=True)
    for part in out.glob(".*.part"):
        if part.stat().st_mtime < time.time() - 3600:  # of a call that was killed: none takes as long
            part.unlink()
    store = out / "pipeline.db"
    with PersistentExecutor(arguments.workers, store=store, resume="always", leftovers="cancel") as executor:
        files = sorted(arguments.sales.glob("*.csv"))
        if arguments.preview:
            preview = executor.preview(read_day, map(InputFile, files))
            print(f"{preview.runs} of {len(preview)} days are to be read", preview, sep="\n")
            return
        writing = executor.options(version=uuid.uuid4().hex)
        months, written = {}, []
        for month, days in groupby(files, key=lambda file: file.stem[:7]):
            months[month] = executor.submit(sum_month, [executor.submit(read_day, InputFile(day)) for day in days])
            written.append(writing.submit(write_whole, str(out / f"{month}.json"), months[month]))
        text = executor.submit(report, months, arguments.top)
        written.append(writing.submit(write_whole, str(out / "report.md"), text))
        for future in written:
            print(future.result())


if __name__ == "__main__":
    main()
