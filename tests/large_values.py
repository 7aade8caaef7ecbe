"""What the tests of large values have in common: those of their files, and those of arrays."""

import os
from pathlib import Path
from typing import Any

import calls
import pytest

from omniq_executor import PersistentExecutor, values
from omniq_executor.model.functions import Functions
from omniq_executor.stores.base import Store
from omniq_executor.stores.values import ValueFiles

WAIT_S = 30.0
N = values.LARGE // 8
FUNCTION = Functions().describe(calls.echo)


@pytest.fixture(params=["store.db", pytest.param("store", marks=pytest.mark.once)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Both kinds of store."""
    return tmp_path / str(request.param)


@pytest.fixture
def files(tmp_path: Path) -> ValueFiles:
    """The files of a store of which nothing else is there."""
    made = ValueFiles(tmp_path / "values", durable=False)
    made.prepare()
    return made


def names(executor: PersistentExecutor | Store | ValueFiles) -> list[str]:
    of = executor.store if isinstance(executor, PersistentExecutor) else executor
    folder = of.values.folder if isinstance(of, Store) else of.folder
    return sorted(os.listdir(folder)) if folder.exists() else []


def shared(of: Any) -> list[str]:
    """The files of what calls and functions hold."""
    return [name for name in names(of) if not name.startswith("task-")]
