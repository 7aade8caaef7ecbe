"""The demo: an ordinary job, killed for real, that goes on where it was."""

import json
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from omniq_executor.cli.demo import python_files
from omniq_executor.cli.demo_job import MOST, analyse

pytestmark = pytest.mark.once

FILES = 24
LAST_LINE = re.compile(r"(\d+) tasks, (\d+) resumed, (\d+) executed in \d+\.\d s")


def omniq(folder: Path, *args: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "omniq_executor", *args]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False)


def demo(folder: Path, *args: str) -> tuple[int, int, int, str]:
    """Run the demo to its end: tasks, resumed, executed, and all it printed before."""
    done = omniq(folder, "demo", "code", *args)
    assert done.returncode == 0, done.stderr
    output, _, last = done.stdout.rstrip("\n").rpartition("\n")
    match = LAST_LINE.fullmatch(last)
    assert match, done.stdout
    tasks, resumed, executed = map(int, match.groups())
    return tasks, resumed, executed, output


def killed_demo(folder: Path, fraction: str) -> int:
    """Run the demo until it kills itself, and return how many files were committed by then, over all its lives."""
    assert omniq(folder, "demo", "code", "--kill-at", fraction).returncode == -signal.SIGKILL
    return Counter(task["status"] for task in listed(folder))["COMPLETED"]


def listed(folder: Path, *args: str) -> Any:
    return [json.loads(line) for line in omniq(folder, "list", "--limit", "1000", "--json", *args).stdout.splitlines()]


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A current folder with code to analyse."""
    code = tmp_path / "code" / "deeper"
    code.mkdir(parents=True)
    for n in range(FILES):
        branches = "".join(f"    if x == {i}:\n        return {i}\n" for i in range(100 * n))
        (code / f"module_{n:02}.py").write_text(f"def f{n}(x):\n    pass\n{branches}")
    return tmp_path


def test_every_file_is_a_task_and_the_most_complex_functions_are_shown(job: Path) -> None:
    tasks, resumed, executed, output = demo(job)
    assert (tasks, resumed, executed) == (FILES, 0, FILES)
    heading, *rows = output.splitlines()[-11:]
    assert heading.split() == ["FUNCTION", "COMPLEXITY", "FILE"]
    first = FILES - 1
    assert [row.split() for row in rows] == [
        [f"f{n}", str(100 * n + 1), f"deeper/module_{n:02}.py:1"] for n in range(first, first - 10, -1)
    ]
    assert Counter(task["func_path"] for task in listed(job)) == {"omniq_executor.cli.demo_job.analyse": FILES}


def test_a_killed_job_resumes_with_what_was_committed(job: Path) -> None:
    committed = killed_demo(job, "0.5")
    assert committed >= FILES / 2
    tasks, resumed, executed, output = demo(job)
    assert (tasks, resumed, executed) == (FILES, committed, FILES - committed)
    assert "f23" in output


def test_a_job_killed_again_and_again_loses_nothing(job: Path) -> None:
    committed = [killed_demo(job, fraction) for fraction in ("0", "0.3", "0.6", "1")]
    assert committed == sorted(committed)
    assert committed[-1] == FILES
    assert demo(job)[:3] == (FILES, FILES, 0)


def test_after_a_clean_end_everything_starts_fresh(job: Path) -> None:
    killed_demo(job, "0.5")
    demo(job)
    assert demo(job)[:3] == (FILES, 0, FILES)


def test_a_file_that_does_not_parse_is_a_failed_task_and_the_job_goes_on(job: Path) -> None:
    (job / "code" / "broken.py").write_text("def f(:\n")
    tasks, resumed, executed, output = demo(job)
    assert (tasks, resumed, executed) == (FILES + 1, 0, FILES + 1)
    assert "failed: broken.py: SyntaxError: " in output
    (failed,) = listed(job, "--status", "FAILED")
    assert failed["error"]["type"] == "SyntaxError"
    assert failed["args"] == [str(job / "code" / "broken.py")]
    assert demo(job)[1] == 0  # a failed task does not make an unclean end


def test_failed_files_run_again_in_a_resume(job: Path) -> None:
    broken = job / "code" / "broken.py"
    broken.write_text("def f(:\n")
    assert killed_demo(job, "1") == FILES
    broken.write_text("def mended(): pass\n")
    tasks, resumed, executed, output = demo(job)
    assert (tasks, resumed, executed) == (FILES + 1, FILES, 1)
    assert "failed" not in output


def test_a_folder_may_be_named_in_another_way_when_resuming(job: Path) -> None:
    committed = killed_demo(job, "0.5")
    done = omniq(job / "code", "demo", "../code", "--kill-at", "1")
    assert done.returncode == -signal.SIGKILL  # another current folder is another store
    assert f"{FILES} tasks, {committed} resumed" in omniq(job, "demo", str(job / "code" / "deeper" / "..")).stdout


@pytest.mark.parametrize(
    "args",
    [["nowhere"], ["code", "--kill-at", "1.5"], ["code", "--kill-at", "-0.1"], ["code", "--kill-at", "nan"]],
)
def test_a_bad_argument_is_a_usage_error_and_leaves_no_store(job: Path, args: list[str]) -> None:
    done = omniq(job, "demo", *args)
    assert done.returncode == 2
    assert args[-1] in done.stderr
    assert not (job / "omniq_data").exists()


def test_a_folder_without_python_files_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    done = omniq(tmp_path, "demo", "code")
    assert done.returncode == 0
    assert "no Python files" in done.stdout
    assert not (tmp_path / "omniq_data").exists()


def test_files_are_sorted_and_only_files(tmp_path: Path) -> None:
    for name in "b.py", "a/z.py", "a.py", "a/notes.txt", "site-packages/c.py":
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "dangling.py").symlink_to("nowhere.py")
    root, paths = python_files(tmp_path)
    assert [str(path.relative_to(root)) for path in paths] == ["a/z.py", "a.py", "b.py", "site-packages/c.py"]


def test_the_standard_library_comes_without_what_is_installed() -> None:
    root, paths = python_files(None)
    names = {str(path.relative_to(root)) for path in paths}
    assert {"ast.py", "json/decoder.py"} <= names
    assert not any("site-packages" in name for name in names)


def test_a_function_counts_every_fork_but_those_of_functions_inside(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "if True: pass\n"
        "class C:\n"
        "    async def f(self, x):\n"
        "        def g(): return 1 if x else 2\n"
        "        for i in x or y and z:\n"
        "            try: assert i\n"
        "            except E: pass\n"
        "        return [j for j in x if j]\n"
    )
    assert analyse(str(path)) == {
        "lines": 8,
        "functions": 2,
        "branches": 9,
        "most_complex": [
            {"name": "C.f", "line": 3, "complexity": 8},
            {"name": "C.f.g", "line": 4, "complexity": 2},
        ],
    }


def test_an_analysis_stays_small_however_large_the_file(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("def f(): pass\n" * 1000 + "x = " + "-" * 50 + "1" + " + 1" * 500)
    analysis = analyse(str(path))
    assert analysis["functions"] == 1000
    assert len(analysis["most_complex"]) == MOST
    assert len(json.dumps(analysis)) < 1000
