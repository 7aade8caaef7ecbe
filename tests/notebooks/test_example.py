"""The notebook of examples/: its kernel is killed in mid-map, it is mended and run again.

The outputs that are kept with it are of such a run: with OMNIQ_WRITE_EXAMPLES=1 they are written anew.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
import pytest
from kernels import WAIT_S
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

import omniq_executor
from omniq_executor import Status

# Of the libraries under the kernel, not of ours.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default::DeprecationWarning", "default::ResourceWarning"),
]

KEPT = Path(__file__).parents[2] / "examples" / "notebook" / "library.ipynb"
MENDED = 'summary["branches"] / max(summary["functions"], 1)'
FAULTY = 'summary["branches"] / summary["functions"]'


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., NotebookClient]:
    """Makes what runs the notebook in a kernel, with another line in the place of the mended one."""
    paths = [str(Path(omniq_executor.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable), prepend=os.pathsep)
    monkeypatch.setenv("JPY_SESSION_NAME", KEPT.name)  # as Jupyter has it
    monkeypatch.setenv("COLUMNS", "100")

    def make(line: str) -> NotebookClient:
        notebook = nbformat.read(KEPT, as_version=4)
        assert sum(MENDED in cell.source for cell in notebook.cells) == 1
        for cell in notebook.cells:
            cell.source = cell.source.replace(MENDED, line)
        return NotebookClient(notebook, timeout=int(WAIT_S), resources={"metadata": {"path": str(tmp_path)}})

    return make


def shown(notebook: Any) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)


def finished(store: Any) -> int:
    return int(store.counts()["library"].get(Status.COMPLETED, 0))


def test_it_is_killed_and_mended_and_goes_on(
    client: Callable[..., NotebookClient], tmp_path: Path, open_store: Any, wait_until: Any
) -> None:
    killed = client(FAULTY)
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(asyncio.run, killed.async_execute())
        path = tmp_path / "omniq_data" / "omniq.db"
        wait_until(lambda: path.exists() and open_store(path).counts())
        store = open_store(path)
        wait_until(lambda: finished(store) > 20)
        os.kill(killed.km.provisioner.pid, 9)  # type: ignore[union-attr]
        assert isinstance(running.exception(WAIT_S), DeadKernelError)
    done = finished(store)

    failed = client(FAULTY)
    with contextlib.suppress(CellExecutionError):
        failed.execute()
    assert f"continuing an earlier run: {done} of " in shown(failed.nb)
    assert "ZeroDivisionError" in str(failed.nb)

    mended = client(MENDED)
    mended.execute()
    text = shown(mended.nb)
    (count,) = {line.split()[0] for line in text.splitlines() if line.endswith("modules")}
    assert f"{count} taken over" in text
    runs = store.runs()
    assert len(runs) == 3
    assert [run.clean for run in runs] == [None, False, True]
    summaries = [task for task in store.find() if task.func_path.endswith("summarize")]
    assert len(summaries) == int(count)
    assert max(task.attempts for task in summaries) <= 2  # what was under way when the kernel was killed
    if os.environ.get("OMNIQ_WRITE_EXAMPLES"):
        for cell in mended.nb.cells:
            cell.pop("id", None)
            cell.metadata.pop("execution", None)
        nbformat.write(mended.nb, KEPT, version=4)


def test_its_kept_outputs_are_of_a_run_that_went_on_after_a_kill_and_a_failure() -> None:
    notebook = nbformat.read(KEPT, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    text = shown(notebook)
    assert "taken over: their results were there" in text
    assert [line.split()[-7] for line in text.splitlines() if " library " in line] == ["killed", "failed", "running"]
    assert KEPT.stat().st_size < 30_000
