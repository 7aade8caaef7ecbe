"""What the tests of notebooks share. They need what is in the extra `clients`, and are left out where that is not."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from kernels import Kernel

NEEDED = ("ipykernel", "jupyter_client", "nbclient", "papermill")
collect_ignore_glob = ["test_*.py"] if any(importlib.util.find_spec(name) is None for name in NEEDED) else []


@pytest.fixture
def kernel(tmp_path: Path) -> "Iterator[Kernel]":
    from kernels import kernel_in

    with kernel_in(tmp_path) as made:
        yield made
