"""The command: `python -m bench [--quick] [--only NAME]... [--json PATH] [--png PATH] [--against PATH]`."""

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path

from bench import report, rounds


def main() -> int:
    """Measure, print the table, write the files.

    The exit status is 1 if a measurement failed, or if one is slower by a fifth than in the file to compare with.
    """
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what runs is ended, as by Ctrl-C
    if not Path("/proc/self/stat").exists():
        sys.exit("python -m bench: this needs /proc, as Linux has it, for processor time and memory")
    chosen = [m for m in rounds.PLAN if not options.only or m.name in options.only]
    load_before = os.getloadavg()[0]
    results: list[rounds.Result] = []
    failed = False
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.store_dir, ignore_cleanup_errors=True) as stores:
        for measurement in chosen:
            try:
                results += rounds.run(
                    measurement,
                    quick=options.quick,
                    durability=options.durability,
                    store_dir=Path(stores),
                    tell=tell,
                )
            except rounds.ProbeFailed as error:
                failed = True
                tell(f"failed: {error}")
    of = report.report(results, durability=options.durability, quick=options.quick, load_before=load_before)
    print(report.markdown(of))
    report.write_json(of, options.json)
    tell(f"written: {options.json}")
    if options.png:
        try:
            report.draw(of, options.png)
            tell(f"drawn: {options.png}")
        except ImportError:
            tell("no chart: matplotlib is not installed; it comes with the extra, pip install 'omniq-executor[bench]'")
    slower = report.slower(results, options.against) if options.against else []
    for line in slower:
        tell(line)
    return 1 if failed or slower else 0


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser("python -m bench", description="PersistentExecutor beside ProcessPoolExecutor.")
    names = [measurement.name for measurement in rounds.PLAN]
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds: some 30 s, rough figures")
    parser.add_argument("--only", action="append", choices=names, help="take this measurement only; may be repeated")
    parser.add_argument("--json", type=Path, default=rounds.ROOT / "bench/results/latest.json", metavar="PATH")
    parser.add_argument("--png", type=Path, metavar="PATH", help="draw a bar chart (needs the extra [bench])")
    parser.add_argument("--against", type=Path, metavar="PATH", help="name what got slower than in this JSON file")
    parser.add_argument("--store-dir", type=Path, metavar="FOLDER", help="where stores are made, else a temporary one")
    parser.add_argument("--durability", choices=["process", "power"], default="process")
    return parser.parse_args()


def tell(line: str) -> None:
    """Say how it goes, apart from the table on standard output."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
