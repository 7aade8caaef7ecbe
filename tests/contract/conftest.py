"""One fixture for all backends, and what a test needs of a store."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from backends import BACKENDS, DEVIATIONS, Backend, Client

import omniq_executor
from omniq_executor.stores.base import Store
from omniq_executor.stores.file.folders import Folders
from omniq_executor.stores.file.store import FileStore
from omniq_executor.stores.sqlite import tally

Enter = Callable[..., Client]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(autouse=True, scope="module")  # without an __init__.py a folder is no package
def counts_that_follow_closely() -> Iterator[None]:
    """Have an SQLite store count all but the newest two tasks, where it leaves some thousands uncounted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tally, "LAG", 2)
        patch.setattr(tally, "STEP", 2)
        yield


@pytest.fixture(params=[pytest.param(name, marks=[] if name == "sqlite" else pytest.mark.once) for name in BACKENDS])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each backend in turn: what brings a module of Python along with every Python, else with one."""
    reason = DEVIATIONS.get((request.param, request.node.originalname))
    if reason is not None:
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    return BACKENDS[request.param]


@pytest.fixture
def address(backend: Backend, tmp_path: Path) -> Path:
    """The address of a store that is not there yet."""
    return backend.address(tmp_path)


@pytest.fixture
def store(backend: Backend, address: Path) -> Iterator[Store]:
    """A store that is open, and has no owner."""
    with contextlib.closing(backend.open(address)) as opened:
        yield opened


@pytest.fixture
def enter(backend: Backend, address: Path) -> Iterator[Enter]:
    """Makes clients of one store."""
    with contextlib.ExitStack() as stack:

        def make(queue: str = "work", resume: Any = "crashed", **how: Any) -> Client:
            return stack.enter_context(contextlib.closing(Client(backend, address, queue, resume, **how)))

        yield make


@pytest.fixture
def client(enter: Enter) -> Client:
    """An owner of the queue "work"."""
    return enter()


@pytest.fixture
def other(client: Client, enter: Enter) -> Client:
    """A later owner of the same queue."""
    return enter()


@pytest.fixture
def start(backend: Backend, address: Path) -> Iterator[Start]:
    """Starts a process that runs code with `backend` and `address`, and prints "ready" when it has come so far."""
    path = os.pathsep.join([str(Path(omniq_executor.__file__).parents[1]), str(Path(__file__).parent)])
    setup = f"from pathlib import Path\nfrom backends import *\nbackend = BACKENDS[{backend.name!r}]\n"
    setup += f"address = Path({str(address)!r})\nready = lambda: print('ready', flush=True)\n"
    with contextlib.ExitStack() as stack:

        def run(code: str) -> "subprocess.Popen[str]":
            process = subprocess.Popen(
                [sys.executable, "-W", "error", "-c", setup + code],
                env={**os.environ, "PYTHONPATH": path}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            stack.enter_context(process)
            stack.callback(process.kill)
            line = process.stdout.readline() if process.stdout else ""
            assert line == "ready\n", process.communicate(timeout=30)[1]
            return process

        yield run


# --- Of the file store alone ---


@pytest.fixture
def reopened(address: Path) -> Iterator[Callable[[], FileStore]]:
    """Opens the store as another process would."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(contextlib.closing(FileStore(address)))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tasks whose files have been read."""
    numbers: list[int] = []
    original = Folders.read

    def noted(folders: Folders, number: int) -> Any:
        numbers.append(number)
        return original(folders, number)

    monkeypatch.setattr(Folders, "read", noted)
    return numbers
