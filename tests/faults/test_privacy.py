"""A store is its user's alone: what it makes is private, and what others could have written is refused unread."""

import contextlib
import os
import pickle
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from backends import Backend, Client, tick

from omniq_executor import PersistentExecutor, StoreError, TaskNotFound, open_store
from omniq_executor.model.task import Event, Function, format_id

NOBODY = 65534
WAIT_S = 30.0

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(not hasattr(os, "geteuid"), reason="there are no users and modes here"),
]
as_root = pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() != 0, reason="only root can give files away")


def work(client: Client) -> None:
    """Do some of everything, so that all kinds of files are there."""
    client.end(Event.COMPLETE, *client.add(1, claimed=True), result="1")
    client.end(Event.FAIL, *client.add(2, claimed=True))
    client.store.cancel(client.add(3), tick())
    client.add(4, claimed=True)
    client.add(5)
    client.store.output.prepare()


def modes_below(folder: Path) -> dict[Path, int]:
    return {path: stat.S_IMODE(path.lstat().st_mode) for path in folder.rglob("*") if not path.is_symlink()}


def contents(folder: Path) -> dict[Path, Any]:
    """All that is there, to see whether anything changes; what lies in it, but for what a look must touch."""
    found = {}
    for path in folder.rglob("*"):
        text = path.read_bytes() if path.is_file() and not path.is_symlink() and path.suffix != ".db-shm" else None
        found[path] = (path.lstat().st_mode, text)
    return found


@pytest.fixture
def old_store(backend: Backend, address: Path) -> Path:
    """The address of a store in which somebody has worked."""
    client = Client(backend, address)
    work(client)
    client.stop(clean=False)
    client.close()
    return address


def parts(address: Path) -> Iterator[Path]:
    """The store's outermost files and folders: in them nobody else can do anything."""
    yield from sorted(path for path in address.parent.iterdir() if path.name.startswith(address.name))


# --- What is made ---


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777], indirect=True, ids=oct)
def test_all_that_is_made_is_its_users_alone_whatever_the_umask(
    umask: int, backend: Backend, address: Path, tmp_path: Path
) -> None:
    client = Client(backend, address)
    work(client)
    modes = modes_below(tmp_path)
    client.stop()
    client.close()
    assert address.parent in modes
    assert modes == {path: 0o700 if path.is_dir() else 0o600 for path in modes}


@pytest.mark.parametrize("umask", [0o777], indirect=True, ids=oct)
def test_a_user_whose_umask_takes_everything_can_use_a_store(umask: int, backend: Backend, home: Path) -> None:
    address = backend.address(home)
    for _ in range(2):  # what is made, and what is there
        client = Client(backend, address)
        work(client)
        client.stop()
        client.close()


# --- What others could have written ---


@pytest.mark.parametrize("bit", [0o020, 0o002, 0o022], ids=oct)
def test_a_store_that_others_can_write_is_refused_and_left_alone(backend: Backend, old_store: Path, bit: int) -> None:
    for part in parts(old_store):
        mode = part.stat().st_mode
        part.chmod(mode | bit)
        before = contents(old_store.parent)
        with pytest.raises(StoreError, match=f"{part} can be written by other users.*chmod go-w {part}"):
            backend.open(old_store)
        assert contents(old_store.parent) == before
        part.chmod(mode)
        backend.open(old_store).close()  # the remedy is one


def test_what_sqlite_keeps_beside_a_database_is_looked_at_too(tmp_path: Path) -> None:
    address = tmp_path / "store.db"
    with contextlib.closing(open_store(address)) as store:
        store.enter("work")
        for ending in ("-wal", "-shm", "-owners"):
            part = Path(f"{address}{ending}")
            part.chmod(part.stat().st_mode | 0o020)
            with pytest.raises(StoreError, match=f"{part} can be written"):
                open_store(address)
            part.chmod(part.stat().st_mode & ~0o020)
        open_store(address).close()


@as_root
def test_a_store_of_somebody_else_is_refused_and_left_alone(backend: Backend, old_store: Path) -> None:
    for part in parts(old_store):
        os.chown(part, NOBODY, -1)
        before = contents(old_store.parent)
        with pytest.raises(StoreError, match=f"{part} belongs to the user {NOBODY}.*chown 0 {part}"):
            backend.open(old_store)
        assert contents(old_store.parent) == before
        os.chown(part, 0, -1)
    backend.open(old_store).close()


@as_root
def test_a_store_of_roots_is_not_somebody_elses(tmp_path: Path, as_nobody: None) -> None:
    os.seteuid(0)
    store = open_store(tmp_path / "store.db")
    tmp_path.chmod(0o711)
    os.seteuid(NOBODY)
    with pytest.raises(StoreError) as caught:
        open_store(tmp_path / "store.db")
    assert "belongs to" not in str(caught.value)  # it cannot be read, which is another thing
    os.seteuid(0)
    store.close()


class Planted:
    """Makes a folder as it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("mode", [0o000, 0o022], ids=["private", "writable"])
def test_nothing_of_a_store_that_others_can_write_is_unpickled(
    backend: Backend, address: Path, tmp_path: Path, mode: int
) -> None:
    marker = tmp_path / "marker"
    client = Client(backend, address)
    (id,) = client.add(1, function=Function(b"planted".ljust(16), "planted", pickle.dumps(Planted(marker))))
    client.stop()
    client.close()
    outermost = next(parts(address))
    outermost.chmod(outermost.stat().st_mode | mode)
    if mode:
        with pytest.raises(StoreError, match="can be written by other users"):
            PersistentExecutor(1, store=address, queue="work")
        assert not marker.exists()
    else:
        with PersistentExecutor(1, store=address, queue="work") as executor:
            assert executor.future(format_id(id)).exception(WAIT_S) is not None
        assert marker.exists()  # it would have been


# --- Where it lies ---


@pytest.mark.parametrize("mode", [0o777, 0o757, 0o703], ids=oct)
def test_no_store_is_put_where_everybody_can_exchange_files(backend: Backend, tmp_path: Path, mode: int) -> None:
    place = tmp_path / "place"
    place.mkdir()
    place.chmod(mode)
    with pytest.raises(StoreError, match=f"everybody can exchange files in {place}.*chmod o-w {place}"):
        backend.open(place / backend.filename)
    assert list(place.iterdir()) == []
    backend.open(place / "own" / backend.filename).close()  # the remedy is one
    assert modes_below(place)[place / "own"] == 0o700


@pytest.mark.parametrize("mode", [0o1777, 0o775, 0o770, 0o755], ids=oct)
def test_a_store_can_be_where_others_cannot_exchange_files(backend: Backend, tmp_path: Path, mode: int) -> None:
    place = tmp_path / "place"
    place.mkdir()
    place.chmod(mode)
    with contextlib.closing(backend.open(place / backend.filename)) as store:
        assert store.counts() == {}
    backend.open(place / backend.filename).close()


# --- Links ---


def test_a_link_where_a_store_belongs_is_not_followed(backend: Backend, old_store: Path, tmp_path: Path) -> None:
    for part in parts(old_store):
        moved = tmp_path / "moved"
        part.rename(moved)
        part.symlink_to(moved)
        before = contents(tmp_path)
        with pytest.raises(StoreError, match=f"{part} is a symbolic link"):
            backend.open(old_store)
        assert contents(tmp_path) == before
        part.unlink()
        moved.rename(part)


def test_a_dangling_link_where_a_store_belongs_makes_nothing(backend: Backend, address: Path, tmp_path: Path) -> None:
    address.parent.mkdir(mode=0o700)
    address.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=f"{address} is a symbolic link"):
        backend.open(address)
    assert not (tmp_path / "elsewhere").exists()
    assert list(address.parent.iterdir()) == [address]


def test_a_link_to_the_folder_of_a_store_is_for_its_user_to_make(backend: Backend, tmp_path: Path) -> None:
    (tmp_path / "large").mkdir(mode=0o700)
    (tmp_path / "runs").symlink_to(tmp_path / "large")
    client = Client(backend, backend.address(tmp_path))
    work(client)
    client.stop()
    client.close()


def test_links_inside_a_store_are_not_followed(backend: Backend, old_store: Path, tmp_path: Path) -> None:
    """A file that a link in the place of a lock or notification pipe points to would be emptied or written."""
    victim = tmp_path / "victim"
    victim.write_text("of somebody's")
    client = Client(backend, old_store)
    other = Client(backend, old_store)
    pipe = client.store.notify_path(client.owner)
    pipe.unlink()
    pipe.symlink_to(victim)
    other.store.notify(other.owner)
    for path in [*old_store.parent.rglob("*.lock")]:
        path.unlink()
        path.symlink_to(victim)
    with pytest.raises(StoreError, match="symbolic link"):
        backend.open(old_store).owners()
    assert victim.read_text() == "of somebody's"
    for path in [*old_store.parent.rglob("*.lock")]:
        path.unlink()
    client.close()
    other.close()


# --- Ids ---


@pytest.mark.parametrize(
    "id",
    ["", ".", "..", "/etc/passwd", "task-", "task-../../../etc/pa", "../tasks/task-0000000000001", "task-000000000000/",
     "task-0000000000001\n", "task-0000000000001\0", "task-000000000000\u0661", "TASK-0000000000001",
     "task-00000000000001", "task-8000000000000", "task-000000000000u", "task-*************"],
)  # fmt: skip
def test_what_is_no_id_is_refused_before_any_path_is_made_of_it(
    backend: Backend, address: Path, tmp_path: Path, id: str
) -> None:
    with contextlib.closing(backend.open(address)) as store:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(ValueError, match="is not a task id"):
            store.get(id)
        for number in (-1, 1 << 63, 1 << 200, 1):
            with pytest.raises(TaskNotFound):
                store.get(number)
        assert sorted(tmp_path.rglob("*")) == before
