"""The pipeline of examples/: killed and run again it writes what it writes undisturbed, and runs only what must run."""

import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from omniq_executor import open_store

pytestmark = pytest.mark.once

EXAMPLE = Path(__file__).parents[1] / "examples" / "pipeline"
KILLS = 100 if os.environ.get("OMNIQ_PROOF") else 12
PRODUCTS = ("Apple", "pear ", "Plum", "sour  cherry", "quince", "Medlar")

# Found by each process of the pipeline as it starts: with one file of six all are killed, when half of it is written,
# before it has its name, or after that.
KILLER = """
import os, random, signal, tempfile
first = int(os.environ.setdefault("FIRST", str(os.getpid())))
make, rename, chance = tempfile.mkstemp, os.replace, random.Random()

def killed(file):
    return str(file).endswith(".part") and chance.random() < 1 / 18

def die():
    os.kill(first, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)

def mkstemp(*args, **kwargs):
    fd, path = make(*args, **kwargs)
    if killed(path):
        os.write(fd, b"# Sa")
        die()
    return fd, path

def replace(source, target):
    if killed(source):
        die()
    rename(source, target)
    if killed(source):
        die()

tempfile.mkstemp, os.replace = mkstemp, replace
"""


class Pipeline:
    """A copy of the example, with its sales."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "killer").mkdir()
        (folder / "killer" / "sitecustomize.py").write_text(KILLER)
        (folder / "sales").mkdir()
        chance = random.Random(1)
        for month in range(1, 4):
            for day in range(1, 9):
                lines = [f"{chance.choice(PRODUCTS)},€ {chance.randrange(9)},{chance.randrange(100, 999)}.5\n".replace(
                    ",", ',"', 1).replace("\n", '"\n') for _ in range(40)]  # fmt: skip
                (folder / "sales" / f"2030-{month:02}-{day:02}.csv").write_text("".join(lines))

    def start(self, *arguments: str, killer: bool = False) -> "subprocess.Popen[str]":
        """Start it, in a group of its own."""
        path = os.pathsep.join([str(self.folder / "killer")] * killer)
        return subprocess.Popen(
            [sys.executable, "pipeline.py", "sales", "out", "--workers", "2", *arguments], cwd=self.folder, text=True,
            env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip

    def run(self, *arguments: str) -> Counter[str]:
        """Run it to its end; return how often each function ran."""
        before = self._attempts()
        process = self.start(*arguments)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        return self._attempts() - before

    def _attempts(self) -> Counter[str]:
        attempts: Counter[str] = Counter()
        if (self.folder / "out" / "pipeline.db").exists():
            store = open_store(self.folder / "out" / "pipeline.db")
            for task in store.find():
                attempts[task.func_path.rpartition(".")[2]] += task.attempts
            store.close()
        return attempts

    def written(self) -> dict[str, str]:
        """What it has written."""
        return {
            file.name: file.read_text() for file in (self.folder / "out").iterdir() if file.suffix in (".json", ".md")
        }

    def edit(self, name: str, old: str, new: str) -> None:
        """Change a text in one of its files."""
        text = (self.folder / name).read_text()
        assert old in text
        (self.folder / name).write_text(text.replace(old, new))


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    return Pipeline(tmp_path / "pipeline")


@pytest.fixture
def undisturbed(tmp_path: Path) -> dict[str, str]:
    """What the pipeline writes if nothing happens."""
    other = Pipeline(tmp_path / "undisturbed")
    other.run()
    return other.written()


@pytest.mark.timeout(60 + 20 * KILLS)
def test_a_pipeline_that_is_killed_at_any_moment_writes_what_it_writes_undisturbed(
    pipeline: Pipeline, undisturbed: dict[str, str]
) -> None:
    kills, ends, chance = 0, 0, random.Random()
    while kills < KILLS or not ends:
        process = pipeline.start(killer=True)
        try:
            # A quarter to the end, unless it is killed as it writes.
            _, err = process.communicate(timeout=None if chance.random() < 0.25 else chance.uniform(0.2, 1.5))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL) if chance.random() < 0.7 else process.kill()
            _, err = process.communicate()
        if process.returncode == 0:
            assert pipeline.written() == undisturbed
            shutil.rmtree(pipeline.folder / "out")
            ends += 1
        elif process.returncode != 1 or "has happened 3 times" not in err:  # else the next run tries that call again
            assert process.returncode == -signal.SIGKILL, err
            kills += 1
            for name, text in pipeline.written().items() if (pipeline.folder / "out").exists() else ():
                assert text == undisturbed[name]  # whole, or not there
    pipeline.run()
    assert pipeline.written() == undisturbed


def _add_a_sale(pipeline: Pipeline) -> None:
    with open(pipeline.folder / "sales" / "2030-02-03.csv", "a") as file:
        file.write('Apple,"€ 1,000.00"\n')


ALL = {"read_day": 24, "sum_month": 3, "report": 1}
WRITES = Counter({"write_whole": 4})  # each time
EDITS: dict[str, tuple[Callable[[Pipeline], object], list[str], dict[str, int]]] = {
    "nothing": (lambda _: None, [], {}),
    "an input": (_add_a_sale, [], {"read_day": 1, "sum_month": 1, "report": 1}),
    "a helper": (lambda p: p.edit("cleaning.py", "* 100 + int", "* 100 + 1 + int"), [], ALL),
    "a comment": (lambda p: p.edit("cleaning.py", "    units, _", "    # in two parts\n    units, _"), [], {}),
    "a function": (lambda p: p.edit("pipeline.py", "totals.update(day)", "totals.update(day.copy())"), [],
                   {"sum_month": 3, "report": 1}),
    "a parameter": (lambda _: None, ["--top", "2"], {"report": 1}),
    "the order": (lambda p: p.edit("pipeline.py", "for day in days]", "for day in reversed([*days])]"), [],
                  {"sum_month": 3, "report": 1}),
}  # fmt: skip


@pytest.mark.parametrize("what", EDITS)
def test_a_pipeline_runs_what_depends_on_a_change_and_nothing_else(pipeline: Pipeline, what: str) -> None:
    edit, arguments, ran = EDITS[what]
    assert pipeline.run() == Counter(ALL) + WRITES
    edit(pipeline)
    foreseen = pipeline.start(*arguments, "--preview").communicate(timeout=120)[0]
    assert foreseen.startswith(f"{ran.get('read_day', 0)} of 24 days are to be read\n"), foreseen
    assert pipeline.run(*arguments) == Counter(ran) + WRITES
    afresh = Pipeline(pipeline.folder.with_name("afresh"))
    edit(afresh)
    afresh.run(*arguments)
    assert pipeline.written() == afresh.written()


def test_what_is_written_is_what_was_asked_for_last(pipeline: Pipeline) -> None:
    pipeline.run()
    first = pipeline.written()
    pipeline.run("--top", "1")
    assert pipeline.written() != first
    assert pipeline.run() == WRITES
    assert pipeline.written() == first
    (pipeline.folder / "out" / "report.md").unlink()
    pipeline.run()
    assert pipeline.written() == first
