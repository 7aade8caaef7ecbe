"""The queues of notebooks: each has its own, also where no server says what the notebook is called."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
import pytest
from kernels import WAIT_S
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import omniq_executor

# Of the libraries under the kernel, not of ours.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default::DeprecationWarning", "default::ResourceWarning"),
]

MAKE = "from omniq_executor import PersistentExecutor\nexecutor = PersistentExecutor(1)\nprint(executor.queue)"
SQUARE = "def square(n):\n    return n * n\nprint(sum(executor.map(square, range(5))), executor.resumed.reused)"


@pytest.fixture(autouse=True)
def no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    paths = [str(Path(omniq_executor.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))


def write(path: Path, cells: Sequence[str]) -> Path:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata.kernelspec = {"name": "python3", "language": "python", "display_name": "Python"}
    nbformat.write(notebook, path)
    return path


def printed(notebook: Any) -> list[str]:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "".join(output.text for output in outputs if output.get("name") == "stdout").splitlines()


def run_by_nbclient(path: Path) -> list[str]:
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=int(WAIT_S), resources={"metadata": {"path": str(path.parent)}})
    with contextlib.suppress(CellExecutionError):
        client.execute()
    return printed(notebook)


def test_notebooks_that_nbclient_runs_in_one_folder_go_on_each_by_itself(tmp_path: Path, open_store: Any) -> None:
    cells = [MAKE, SQUARE, "1 / 0"]
    one = write(tmp_path / "one.ipynb", cells)
    other = write(tmp_path / "other.ipynb", [f"# The other one\n{MAKE}", SQUARE])
    queue, result = run_by_nbclient(one)  # which fails
    assert queue.startswith("notebook-")
    assert result == "30 0"
    queue_of_other, result = run_by_nbclient(other)  # which ends well, and has nothing to do with the first
    assert queue_of_other.startswith("notebook-")
    assert queue_of_other != queue
    assert result == "30 0"
    write(one, [*cells[:2], "1 / 1"])
    assert run_by_nbclient(one) == [queue, "30 5"]  # taken over, since it had failed


def test_a_notebook_that_papermill_runs_goes_by_its_own_name(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()

    def run(*cells: str) -> list[str]:
        path, output = write(folder / "sums.ipynb", cells), tmp_path / "out.ipynb"
        command = [sys.executable, "-m", "papermill", path, output, "--no-progress-bar", "-k", "python3"]
        subprocess.run(command, cwd=tmp_path, timeout=WAIT_S, check=False, capture_output=True)
        return printed(nbformat.read(output, as_version=4))

    assert run(MAKE, SQUARE, "1 / 0") == ["sums", "30 0"]
    assert run(f"# A comment\n{MAKE}", SQUARE, "1 / 1") == ["sums", "30 5"]
