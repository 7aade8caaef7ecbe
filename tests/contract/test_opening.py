"""Making and opening a store: by many at once, with the least rights, and not at all where it cannot be."""

import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from backends import Backend, Client, tick

from omniq_executor import StoreError
from omniq_executor.model.task import Event, Status

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def test_many_processes_make_and_write_one_store_at_once(backend: Backend, address: Path, start: Start) -> None:
    code = """
ready()
input()
client = Client(backend, address)
for n in range(20):
    (id,) = client.add(n, claimed=True)
    assert client.end(Event.COMPLETE, id, result=str(n)) == set()
client.stop()
client.close()
"""
    processes = [start(code) for _ in range(8)]
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        assert process.communicate(timeout=60) == ("", "")
        assert process.returncode == 0
    store = backend.open(address, create=False)
    assert store.counts() == {"work": {Status.COMPLETED: 160}}
    assert store.owners() == []
    assert len({task.run for task in store.find()}) == 8
    store.close()


def test_only_its_user_can_read_a_store_whatever_the_umask(
    no_umask: None, backend: Backend, address: Path, tmp_path: Path
) -> None:
    client = Client(backend, address)
    client.end(Event.COMPLETE, *client.add(1, claimed=True), result="1")
    client.store.cancel(client.add(2), tick())
    paths = [path for path in tmp_path.rglob("*") if not path.is_symlink()]
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in paths}
    expected = {path: 0o700 if path.is_dir() else 0o600 for path in paths}
    client.close()
    assert modes == expected
    assert address.parent in modes


def test_a_folder_that_is_there_keeps_its_mode(backend: Backend, address: Path) -> None:
    address.parent.mkdir(mode=0o755)
    before = address.parent.stat().st_mode
    backend.open(address).close()
    assert address.parent.stat().st_mode == before


def test_a_store_that_is_missing_is_made_only_if_wished(backend: Backend, address: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=address.name):
        backend.open(address, create=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("create", [True, False])
def test_a_store_below_a_file_is_refused(backend: Backend, tmp_path: Path, create: bool) -> None:
    blocker = tmp_path / "runs"
    blocker.write_text("not a folder")
    with pytest.raises(StoreError, match="runs"):
        backend.open(backend.address(tmp_path), create=create)
    assert list(tmp_path.iterdir()) == [blocker]
    assert blocker.read_text() == "not a folder"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_store_in_a_folder_that_cannot_be_written_is_refused(backend: Backend, address: Path) -> None:
    address.parent.mkdir(mode=0o500)
    with pytest.raises(StoreError, match=r"choose a folder|permissions"):
        backend.open(address)
    assert list(address.parent.iterdir()) == []


def test_errors_name_the_store(backend: Backend, address: Path) -> None:
    store = backend.open(address)
    store.close()
    with pytest.raises(StoreError, match=str(address)):
        store.counts()
