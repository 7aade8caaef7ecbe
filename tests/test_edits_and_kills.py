"""Scripts that are killed, edited, started twice and run again at random: each gets the results of its own code.

What a process prints must be what its own version of the code gives with its own arguments, whatever other
processes did to the store before and meanwhile.
"""

import os
import random
import signal
import subprocess
from typing import Any

import pytest

SEEDS = range(200 if os.environ.get("OMNIQ_PROOF") == "1" else 4)
STEPS = 12

SCRIPT = """
import dataclasses, logging, os, sys, time
logging.basicConfig(level=logging.INFO)
from omniq_executor import PersistentExecutor

VERSION = {version}
YEAR = None
SEEN = []

@dataclasses.dataclass(frozen=True)
class Row:
    n: int
    scale: int = VERSION

def prepare(year):
    global YEAR
    YEAR = year

def helper(n):
    return n * VERSION

def work(n):
    time.sleep(0.001 * (n % 3))
    SEEN.append(n)
    return VERSION, YEAR, helper(n)

def of_row(row):
    assert type(row) is Row, type(row)
    return row.n * row.scale, YEAR

if __name__ == "__main__":
    year, resume, leftovers = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    with PersistentExecutor(
        2, initializer=prepare, initargs=(year,), resume=resume, leftovers=leftovers, store=sys.argv[4]
    ) as executor:
        futures = [executor.submit(work, n) for n in range(60)]
        rows = executor.map(of_row, [Row(n) for n in range(40)])
        assert [future.result() for future in futures] == [(VERSION, year, n * VERSION) for n in range(60)]
        assert list(rows) == [(n * VERSION, year) for n in range(40)]
        memo = executor.options(memo=True)
        assert list(memo.map(work, range(30))) == [(VERSION, year, n * VERSION) for n in range(30)]
        assert list(executor.map(work, range(100))) == [(VERSION, year, n * VERSION) for n in range(100)]
    print("right")
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", [pytest.param(it, marks=pytest.mark.once if it else []) for it in SEEDS])
def test_every_process_gets_the_results_of_its_own_code(script: Any, seed: int) -> None:
    chance = random.Random(seed)
    store = chance.choice(["store.db", "store"])
    running: list[Any] = []
    for _ in range(STEPS):
        (script.folder / "edited").write_text(SCRIPT.format(version=chance.randrange(1, 4)))
        (script.folder / "edited").rename(script.folder / "script.py")  # whoever starts just now reads all of one
        args = [
            str(chance.choice([2023, 2024])), chance.choice(["crashed", "crashed", "always", "never"]),
            chance.choice(["leave", "leave", "run", "cancel"]), store,
        ]  # fmt: skip
        running += [script.start(*args) for _ in range(chance.choice([1, 1, 2]))]
        for process in list(running):
            if chance.random() < 0.6:
                try:
                    process.wait(chance.uniform(0, 0.8))
                except subprocess.TimeoutExpired:
                    process.send_signal(chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
                running.remove(process)
                check(script, process)
    for process in running:
        check(script, process)


def check(script: Any, process: Any) -> None:
    """It was killed, or it got the right results."""
    done = script.finished(process, timeout_s=60)
    assert done.returncode in (0, -signal.SIGKILL, -signal.SIGTERM), done.stderr
    if not done.returncode:  # one that is killed while it starts a worker may leave any message
        assert (done.stdout, "Traceback" in done.stderr) == ("right\n", False), done.stderr
