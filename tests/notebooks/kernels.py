"""Kernels for tests: notebooks whose cells are run one by one, and that are interrupted, killed or shut down."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from jupyter_client.manager import KernelManager

import omniq_executor

WAIT_S = 60.0


class Kernel:
    """A kernel in a folder, which runs the notebook of the name given, or one that nobody tells the name of."""

    def __init__(self, folder: Path, notebook: str | None = "analysis.ipynb") -> None:
        self.store = folder / "omniq_data" / "omniq.db"
        env = {key: value for key, value in os.environ.items() if key != "JPY_SESSION_NAME"}
        env["PYTHONPATH"] = str(Path(omniq_executor.__file__).parents[1])
        if notebook is not None:
            env["JPY_SESSION_NAME"] = str(folder / notebook)  # as Jupyter has it
        self._manager = KernelManager(kernel_name="python3")
        self._manager.kernel_spec.argv[0] = sys.executable
        self._manager.start_kernel(cwd=str(folder), env=env)
        self._client = self._manager.client()
        self._client.start_channels()
        self._client.wait_for_ready(WAIT_S)

    @property
    def process(self) -> Any:
        return psutil.Process(self._manager.provisioner.pid)  # type: ignore[union-attr]

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
            if message["msg_type"] == "stream" and content["name"] == "stdout":
                printed += content["text"]
            elif message["msg_type"] == "error":
                raised = content["ename"]
            elif message["msg_type"] == "status" and content["execution_state"] == "idle":
                return printed, raised

    def run(self, cell: str) -> str:
        """What a cell prints, which raises nothing."""
        printed, raised = self.end(self.begin(cell))
        assert not raised, raised
        return printed

    def fail(self, cell: str) -> str:
        """The name of the exception that a cell raises."""
        raised = self.end(self.begin(cell))[1]
        assert raised
        return raised

    def interrupt(self) -> None:
        """What the button with the square does."""
        self._manager.interrupt_kernel()

    def shut_down(self) -> None:
        """Have it end in order. One that does not in time, as the manager has it, is killed."""
        self._manager.shutdown_kernel(now=False, restart=False)

    def begin_to_shut_down(self) -> None:
        """Ask it to end in order, and return when its last cell has ended and it begins to."""
        self._manager.request_shutdown()
        while self._client.get_iopub_msg(timeout=WAIT_S)["msg_type"] != "shutdown_reply":
            pass

    def end_within(self, seconds: float) -> None:
        """Wait until it has ended, and kill it after so many seconds."""
        self._manager.finish_shutdown(seconds)

    def kill(self) -> None:
        """Have it end at once, with nothing done before."""
        process = self.process
        process.kill()
        psutil.wait_procs([process], WAIT_S)

    def close(self) -> None:
        """End it, if it lives."""
        self._client.stop_channels()
        with contextlib.suppress(Exception):
            self._manager.shutdown_kernel(now=True)
        self._manager.cleanup_resources()


@contextlib.contextmanager
def kernel_in(folder: Path, notebook: str | None = "analysis.ipynb") -> Iterator[Kernel]:
    """Give a kernel, which is ended at last."""
    made = Kernel(folder, notebook)
    try:
        yield made
    finally:
        made.close()
