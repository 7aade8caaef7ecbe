"""CPython's own tests of its process pool, passed by ours."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from cpython_suite import MODULES

RUNNER = Path(__file__).with_name("cpython_suite.py")


def has_suite() -> bool:
    """Whether this interpreter was installed with a test suite that can be imported by parts."""
    if sys.version_info < (3, 12) or importlib.util.find_spec("test") is None:
        return False
    return importlib.util.find_spec("test.test_concurrent_futures") is not None


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(not has_suite(), reason="this interpreter has no test package of 3.12 or newer")
@pytest.mark.parametrize("context", ["fork", "forkserver", "spawn"])
@pytest.mark.parametrize("module", MODULES)
def test_passes_the_tests_of_process_pool_executor(module: str, context: str) -> None:
    done = subprocess.run(
        [sys.executable, str(RUNNER), context, module], capture_output=True, text=True, timeout=360, check=False
    )
    assert done.returncode == 0, done.stderr[-8000:]
