"""A Jupyter kernel that has an executor: it is interrupted, and shut down in order."""

import os
from pathlib import Path
from typing import Any

import psutil
import pytest
from kernels import WAIT_S, Kernel

# Of the libraries under the kernel, not of ours.
pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "default::ResourceWarning")

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
