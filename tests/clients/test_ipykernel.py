"""A Jupyter kernel that has an executor: it is interrupted, and shut down in order."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import omniq_executor

psutil = pytest.importorskip("psutil")
pytest.importorskip("ipykernel", reason="ipykernel is in the extra `clients`")
manager = pytest.importorskip("jupyter_client.manager", reason="jupyter_client is in the extra `clients`")

# Of the libraries under the kernel, not of ours.
pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "default::ResourceWarning")

WAIT_S = 60.0


class Kernel:
    """A kernel in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.store = folder / "omniq_data" / "omniq.db"
        env = {**os.environ, "PYTHONPATH": str(Path(omniq_executor.__file__).parents[1])}
        env["JPY_SESSION_NAME"] = str(folder / "analysis.ipynb")  # as Jupyter has it
        self._manager = manager.KernelManager(kernel_name="python3")
        self._manager.start_kernel(cwd=str(folder), env=env)
        self._client = self._manager.client()
        self._client.start_channels()
        self._client.wait_for_ready(WAIT_S)

    @property
    def process(self) -> Any:
        return psutil.Process(self._manager.provisioner.pid)

    def begin(self, cell: str) -> str:
        """Have a cell run; returns its number."""
        return str(self._client.execute(cell))

    def end(self, number: str) -> tuple[str, str]:
        """What a cell has printed, and the name of the exception that it raised, or ""."""
        printed = raised = ""
        while True:
            message = self._client.get_iopub_msg(timeout=WAIT_S)
            if message["parent_header"].get("msg_id") != number:
                continue
            content = message["content"]
            if message["msg_type"] == "stream":
                printed += content["text"]
            elif message["msg_type"] == "error":
                raised = content["ename"]
            elif message["msg_type"] == "status" and content["execution_state"] == "idle":
                return printed, raised

    def run(self, cell: str) -> str:
        """What a cell prints, which raises nothing."""
        printed, raised = self.end(self.begin(cell))
        assert not raised
        return printed

    def interrupt(self) -> None:
        """What the button with the square does."""
        self._manager.interrupt_kernel()

    def shut_down(self) -> None:
        """Have it end in order. One that does not in time, as the manager has it, is killed."""
        self._manager.shutdown_kernel(now=False, restart=False)

    def close(self) -> None:
        """End it, if it lives."""
        self._client.stop_channels()
        with contextlib.suppress(Exception):
            self._manager.shutdown_kernel(now=True)
        self._manager.cleanup_resources()


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    made = Kernel(tmp_path)
    try:
        yield made
    finally:
        made.close()


MAKE = """
import multiprocessing, os, time
from pathlib import Path
from omniq_executor import PersistentExecutor
executor = PersistentExecutor(2, multiprocessing.get_context({method!r}))
"""


def test_a_kernel_is_shut_down_in_order_and_its_run_is_clean(kernel: Kernel, method: str, open_store: Any) -> None:
    assert kernel.run(MAKE.format(method=method) + "print(executor.submit(abs, -1).result())") == "1\n"
    group = os.getpgid(kernel.process.pid)
    children = kernel.process.children(recursive=True)
    assert children
    # It waits for each that is, and after some seconds the manager has it killed.
    assert [child for child in children if os.getpgid(child.pid) == group] == []
    kernel.shut_down()
    assert open_store(kernel.store).runs()[-1].clean is True
    assert psutil.wait_procs(children, WAIT_S)[1] == []


def test_a_notebook_and_the_scripts_that_it_starts_go_by_their_own_names(kernel: Kernel, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(MAKE.format(method="spawn") + "print(executor.queue)\n")
    cell = MAKE.format(method="spawn") + "import sys\nprint(executor.queue)\n!{sys.executable} job.py\n"
    assert kernel.run(cell).split() == ["analysis", "job"]


def test_a_kernel_that_is_interrupted_goes_on_without_what_had_not_started(
    kernel: Kernel, method: str, tmp_path: Path, wait_until: Any
) -> None:
    kernel.run(
        MAKE.format(method=method)
        + """
def wait(n):
    Path(f"began{n}").touch()
    while not Path("gate").exists():
        time.sleep(0.01)
    return n
"""
    )
    cell = kernel.begin("list(executor.map(wait, range(20)))")
    wait_until((tmp_path / "began1").exists)
    kernel.interrupt()
    assert kernel.end(cell) == ("", "KeyboardInterrupt")
    (tmp_path / "gate").touch()
    assert kernel.run("print(list(executor.map(abs, range(-5, 0))))") == "[5, 4, 3, 2, 1]\n"
    assert not (tmp_path / "began19").exists()
