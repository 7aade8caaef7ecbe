"""What the tests of clients share: a kernel of Jupyter's in a process of its own."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import omniq_executor

START_S = 60.0


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The client of a kernel that runs in the folder of the test."""
    from jupyter_client.manager import KernelManager  # of the extra `clients`: who has it not skips the test before

    paths = [str(Path(omniq_executor.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.chdir(tmp_path)
    kernel: Any = KernelManager()
    kernel.kernel_spec_manager  # noqa: B018  # made by the look
    kernel._kernel_spec = None
    kernel.kernel_cmd = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.start_kernel()
    client = kernel.client()
    client.start_channels()
    client.wait_for_ready(timeout=START_S)
    yield client
    client.stop_channels()
    kernel.shutdown_kernel(now=True)
