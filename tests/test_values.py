"""Large values are files beside the store: written once, mapped when they are read, gone with what refers to them."""

import contextlib
import errno
import fcntl
import os
import pickle
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import calls
import pytest
from click.testing import CliRunner
from large_values import WAIT_S, N, files, names, shared, store

from omniq_executor import (
    PersistentExecutor,
    Status,
    StoreError,
    ValueLost,
    attach,
    map_iterator,
    open_store,
    value_files,
    values,
)
from omniq_executor.cli.main import main
from omniq_executor.model import codec
from omniq_executor.model.task import format_id
from omniq_executor.stores import migration
from omniq_executor.stores.base import now
from omniq_executor.stores.values import ValueFiles

MakeExecutor = Callable[..., PersistentExecutor]

__all__ = ["files", "store"]  # fixtures


@pytest.fixture(params=[0, 1 << 30], ids=["written meanwhile", "written then"])
def meanwhile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a thread writes what is hashed."""
    monkeypatch.setattr(value_files, "_WRITTEN_MEANWHILE", request.param)


def keep(files: ValueFiles, content: bytes) -> tuple[str, value_files.Pin]:
    name, _, pin = files.keep(memoryview(content))
    return name, pin


def of_results(files: ValueFiles, id: int = 7) -> str:
    return files.keep_result(memoryview(b"r" * 100), format_id(id))


# --- What comes back ---


@pytest.mark.parametrize(
    "value", ["é" * values.LARGE, b"b" * values.LARGE, [1.5] * values.LARGE, {"k": ["ab"] * values.LARGE}], ids=type
)
def test_what_is_large_without_buffers_comes_back(executor: PersistentExecutor, value: Any) -> None:
    future = executor.submit(calls.echo, value)
    assert future.result(WAIT_S) == value
    assert len(future.task().args) < 1000 > len(future.task().result)  # type: ignore[arg-type]
    assert list(executor.map(calls.echo, [value, 1])) == [value, 1]


def _loaded(files: ValueFiles, args: str | bytes) -> Any:
    with values.reading(files):
        return codec.decode_call(args, None)


def test_objects_that_hand_out_buffers_come_back(files: ValueFiles) -> None:
    value = [
        calls.Block(b"b" * values.LARGE),
        calls.Block(b"s"),
        calls.Block(b"o" * values.LARGE),
        pickle.PickleBuffer(b"r" * values.LARGE),
    ]
    with values.writing(files) as writer:
        data = values.dumps(value)
    assert writer is not None
    assert len(writer.pins) == 3
    *blocks, raw = codec.decode_result(data, lambda: files)
    assert blocks == value[:3]
    assert {type(it) for it in blocks} == {calls.Block}
    assert type(raw) is memoryview
    assert raw.readonly
    assert raw == b"r" * values.LARGE


# --- Once ---


def test_what_was_written_is_not_written_again(make_executor: MakeExecutor) -> None:
    block = calls.Block(os.urandom(values.LARGE))
    with make_executor() as executor:
        for other in (block, calls.Block(block)):
            executor.submit(calls.echo, [other, 1]).result(WAIT_S)
        assert len(shared(executor)) == 1
    with make_executor() as executor:
        executor.submit(calls.echo, block).result(WAIT_S)
        assert len(shared(executor)) == 1


@pytest.mark.parametrize(
    "text", ["x" * (values.LARGE - 4), "x" * (values.LARGE - 3), '"' * (values.LARGE // 2), "\x00" * 50_000]
)
def test_a_long_text_is_the_same_call_however_it_is_given(make_executor: MakeExecutor, text: str) -> None:
    with make_executor() as executor:
        assert executor.submit(len, text).result(WAIT_S) == len(text)
    with make_executor(resume="always") as executor:
        assert [it.name for it in executor.preview(len, [text]).counts] == ["RESULT"]
        assert list(executor.map(len, [text])) == [len(text)]
        assert executor.resumed.reused == 1


@pytest.mark.once
def test_the_command_line_shows_where_a_value_is(store: Path) -> None:
    with PersistentExecutor(1, store=store) as executor:
        future = executor.submit(calls.block, 8 * N)
        future.result(WAIT_S)
        (name,) = names(executor)
    show = ["show", future.task_id or "", "--store", str(store)]
    shown = CliRunner().invoke(main, show).output
    assert name in shown
    assert "a pickle of 262" in shown
    assert "Block(b'" in CliRunner().invoke(main, [*show, "--load"]).output


# --- Globals of functions ---


# --- Missing, damaged, refused ---


@pytest.mark.parametrize("harm", ["remove", "shorten", "change", "no rights"])
def test_a_file_that_is_not_what_it_was_is_named(make_executor: MakeExecutor, harm: str) -> None:
    if harm == "no rights" and os.geteuid() == 0:
        pytest.skip("root reads everything")
    executor = make_executor()
    future = executor.submit(calls.echo, calls.block(8 * N))
    future.task()
    future.exception(WAIT_S)
    fresh = attach(executor.store).future(future.task_id)
    harmed = 0
    for name in names(executor):
        path = executor.store.values.folder / name
        harmed += 1
        if harm == "remove":
            path.unlink()
        elif harm == "shorten":
            os.truncate(path, 100)
        elif harm == "change":
            with path.open("r+b") as file:
                file.seek(N)
                file.write(b"other")
        else:
            path.chmod(0)
    assert harmed == 2
    with pytest.raises(ValueLost, match=rf"{executor.store.values.folder}/task-"):
        fresh.result(WAIT_S)
    doubled = executor.submit(calls.echo, [future, 2])
    with pytest.raises(ValueLost, match="task-"):
        doubled.result(WAIT_S)
    problems = [it.what for it in executor.store.check() if not it.repaired]
    assert len(problems) == (0 if harm == "no rights" else 2)
    assert all(("missing" if harm == "remove" else "damaged") in it for it in problems)
    assert executor.submit(len, calls.block(8 * N)).result(WAIT_S) == 8 * N  # it is written anew
    # In its place, so calls that were stored before can have it, too.
    assert all("task-" in it.what for it in executor.store.check() if not it.repaired)


def test_a_damaged_file_that_somebody_is_about_to_remove_is_not_replaced(files: ValueFiles) -> None:
    data = memoryview(bytes(8 * N))
    name, _, pin = files.keep(data)
    pin.release()
    (files.folder / name).write_bytes(b"other" + bytes(8 * N - 5))
    with open(files.folder / name, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        other, _, pin = files.keep(data)
        pin.release()
    assert other.startswith(f"{name}.")
    (files.folder / other).unlink()
    again, _, pin = files.keep(data)
    pin.release()
    assert again == name
    assert bytes(files.open(name)) == bytes(8 * N)


def test_what_may_have_been_torn_by_a_cut_of_the_power_is_looked_at(
    files: ValueFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(value_files, "_LOOKED_AT", 10)
    name = of_results(files)
    path = files.folder / name
    path.write_bytes(bytes(100))
    assert bytes(files.open(name)) == bytes(100)  # nobody looks
    os.utime(path, (1, 1))
    with pytest.raises(ValueLost, match="damaged"):
        files.open(name)


def test_a_value_outlives_its_file(executor: PersistentExecutor) -> None:
    result = executor.submit(calls.echo, calls.block(8 * N)).result(WAIT_S)
    executor.store.purge(now() + 10**9)
    assert names(executor) == []
    assert result == calls.block(8 * N)


def test_a_full_disk_is_told_as_for_any_value(
    executor: PersistentExecutor, monkeypatch: pytest.MonkeyPatch, meanwhile: None
) -> None:
    executor.submit(calls.echo, 1).result(WAIT_S)

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(ValueFiles, "_write", full)
        with pytest.raises(StoreError, match="No space left"):
            executor.submit(calls.echo, calls.block(8 * N))
        with pytest.raises(StoreError, match="No space left"):
            executor.map(calls.echo, [calls.block(8 * N)])
    assert executor.submit(calls.echo, calls.block(8 * N)).result(WAIT_S) == calls.block(8 * N)


def test_a_result_that_cannot_be_a_file_goes_the_way_of_the_others(make_executor: MakeExecutor) -> None:
    executor = make_executor(1)
    executor.submit(calls.echo, 1).result(WAIT_S)
    executor.store.values.folder.rmdir()
    future = executor.submit(calls.block, 8 * N)
    assert future.result(WAIT_S) == calls.block(8 * N)
    assert type(future.result()) is calls.Block
    assert names(executor) == []


def test_files_are_private(executor: PersistentExecutor) -> None:
    before = os.umask(0)
    try:
        executor.submit(calls.echo, calls.block(8 * N)).result(WAIT_S)
    finally:
        os.umask(before)
    folder = executor.store.values.folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE((folder / name).stat().st_mode) for name in names(executor)} == {0o600}
    assert len(names(executor)) == 2


def test_a_folder_that_others_can_write_is_refused(store: Path) -> None:
    with PersistentExecutor(1, store=store) as executor:
        future = executor.submit(calls.block, 8 * N)
        wait([future], WAIT_S)
        os.chmod(executor.store.values.folder, 0o777)
        with pytest.raises(StoreError, match="can be written by other users"):
            future.result()
        with pytest.raises(StoreError, match="can be written by other users"):
            executor.submit(calls.echo, calls.block(8 * N))
    with pytest.raises(StoreError, match="can be written by other users"):
        open_store(store)


# --- What goes, and what stays ---


def test_files_go_with_the_tasks_that_refer_to_them(make_executor: MakeExecutor) -> None:
    with make_executor() as executor:
        both = calls.block(8 * N, 2)
        first = executor.submit(calls.echo, both)
        executor.submit(calls.echo, [both, calls.block(8 * N)]).result(WAIT_S)
        first.result(WAIT_S)
    with contextlib.closing(open_store(executor.store.address)) as store:
        assert len(names(store)) == 2 + 3
        assert store.remove([store.find()[0].id]) == 1
        assert len(names(store)) == 2 + 2  # its result
        store.purge(0)
        assert len(names(store)) == 2 + 2
        store.purge(now())
        assert names(store) == []


def test_an_expiry_removes_files(make_executor: MakeExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    with make_executor() as executor:
        executor.submit(calls.echo, calls.block(8 * N, 2)).result(WAIT_S)
        executor.submit(calls.echo, calls.block(8 * N)).result(WAIT_S)
    with contextlib.closing(open_store(executor.store.address)) as store:
        removed = store._remove([store.find()[0].id])  # as an expiry does that is killed then
        assert len(names(store)) == 4
        monkeypatch.setattr(type(store), "_expire", lambda *_: iter([(1, removed)]))
        assert [it.removed for it in store.expire(now())] == [1]
        assert len(names(store)) == 2
        assert store.check() == []


def test_what_the_dead_left_is_removed(store: Path) -> None:
    with contextlib.closing(open_store(store)) as opened:
        files = opened.values
        files.prepare()
        (files.folder / "new-4711-0a1b2c3d").write_bytes(b"a part")
        of_results(files)  # of a task that is not there
        name, pin = keep(files, b"x" * 100)  # of who died before the commit ...
        pin.release()
        other, pinned = keep(files, b"y" * 100)  # ... and of who lives
        (files.folder / "notes.txt").write_text("mine")
        assert [it.repaired for it in opened.check()] == [True]
        assert names(opened) == sorted(["notes.txt", other])
        pinned.release()
        opened.purge(0)
        assert names(opened) == ["notes.txt"]
        assert name not in names(opened)


def test_the_result_of_an_earlier_attempt_goes_when_its_task_is_finished(files: ValueFiles) -> None:
    left, kept = of_results(files), of_results(files)
    running = of_results(files, 8)
    assert files.remove_left_results(lambda ids: {7: b"..." + kept.encode(), 8: None}) == 1
    assert names(files) == sorted([kept, running])
    assert left not in names(files)


def test_what_is_about_to_be_referred_to_is_not_removed(files: ValueFiles, meanwhile: None) -> None:
    content = os.urandom(1000)
    name, pin = keep(files, content)
    assert files.remove_unused(set) == 0
    pin.release()
    again, pin = keep(files, content)
    assert again == name
    assert files.remove_unused(set) == 0
    pin.release()
    assert files.remove_unused(lambda: {name}) == 0
    assert files.remove_unused(set) == 1
    assert names(files) == []


def test_what_is_being_removed_is_not_referred_to(files: ValueFiles, meanwhile: None) -> None:
    content = os.urandom(1000)
    name, pin = keep(files, content)
    pin.release()
    with (files.folder / name).open("r+b") as removing:
        fcntl.flock(removing, fcntl.LOCK_EX)
        other, pin = keep(files, content)
        (files.folder / name).unlink()
    assert other != name
    assert bytes(files.open(other)) == content
    third, _ = keep(files, content)  # pinned there in memory, or written to the name that is free
    assert bytes(files.open(third)) == content
    pin.release()


def test_nothing_is_missing_that_is_referred_to_however_often_it_is_purged(files: ValueFiles, meanwhile: None) -> None:
    """A submitter with few contents, and somebody who purges all the time: each sees what the other has committed."""
    committed: set[str] = set()
    stop, lost = threading.Event(), []

    def purge() -> None:
        while not stop.is_set():
            files.remove_unused(lambda: set(committed))

    thread = threading.Thread(target=purge)
    thread.start()
    others = ValueFiles(files.folder, durable=False)
    for n in range(300):
        name, pin = keep(others, bytes([n % 3]) * 500)
        committed.add(name)
        pin.release()
        if not (files.folder / name).exists():
            lost.append(name)
        committed.discard(name)
    stop.set()
    thread.join()
    assert lost == []


def test_a_store_can_be_purged_while_calls_are_added(
    executor: PersistentExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(map_iterator, "_KEPT_BYTES", 3 * values.LARGE)  # so many are written before they are added
    stop = threading.Event()

    def purge() -> None:
        while not stop.is_set():
            executor.store.purge(0)

    thread = threading.Thread(target=purge)
    thread.start()
    try:
        items = [bytes([n]) * values.LARGE for n in range(20)]
        assert list(executor.map(calls.echo, items, timeout=WAIT_S)) == items
        assert [executor.submit(calls.echo, item).result(WAIT_S) for item in items[:5]] == items[:5]
    finally:
        stop.set()
        thread.join()


def test_a_fork_has_none_of_the_locks(files: ValueFiles) -> None:
    _, pin = keep(files, b"x" * 100)
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        theirs.send(b"!")
        theirs.recv(1)  # until the parent has looked
        os._exit(0)
    theirs.close()
    ours.recv(1)
    pin.release()
    try:
        assert files.remove_unused(set) == 1
    finally:
        ours.close()
        os.waitpid(child, 0)


# --- Copies ---


def test_a_backup_has_its_own_files(store: Path, tmp_path: Path) -> None:
    with PersistentExecutor(1, store=store) as executor:
        future = executor.submit(calls.echo, calls.block(8 * N, 2))
        future.result(WAIT_S)
        copy = tmp_path / f"copy{store.suffix}"
        executor.store.backup(copy)
        executor.store.purge(now() + 10**9)
    with contextlib.closing(open_store(copy)) as saved:
        assert saved.check() == []
    assert attach(copy).future(future.task_id).result(WAIT_S) == calls.block(8 * N, 2)


@pytest.mark.once
def test_a_migration_takes_the_files_along(store: Path, tmp_path: Path) -> None:
    with PersistentExecutor(1, store=store) as executor:
        future = executor.submit(calls.echo, calls.block(8 * N, 2))
        future.result(WAIT_S)
    there = tmp_path / ("there" if store.suffix else "there.db")
    with (
        contextlib.closing(open_store(store)) as source,
        contextlib.closing(open_store(there, importing=True)) as destination,
    ):
        migration.migrate(source, destination, lambda _: None)
        assert names(destination) == names(source)
        assert destination.check() == []
        source.purge(now())
        assert names(source) == []
    assert attach(there).future(future.task_id).result(WAIT_S) == calls.block(8 * N, 2)


# --- Killed at any point ---

_KILLED = """
    import os, signal, sys
    from omniq_executor import PersistentExecutor, value_files
    from omniq_executor.stores.values import ValueFiles

    POINTS = "open", "write", "fsync", "link", "unlink", "rename"
    left = int(sys.argv[2])

    def counted(name):
        known = getattr(os, name)
        def call(*args, **kwargs):
            global left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return known(*args, **kwargs)
        return call

    class Os:
        def __getattr__(self, name):
            return counted(name) if name in POINTS else getattr(os, name)

    executor = PersistentExecutor(store=sys.argv[1], engine="external", durability="power")
    value_files.os = Os()
    for n in range(3):
        print(executor.submit(len, bytes([n % 2]) * 300_000).task_id, flush=True)
    value_files.os = os
    print("done", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.faults
def test_a_submitter_can_be_killed_at_any_point(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(_KILLED))
    lines: list[str] = []
    points = 0
    while "done" not in lines:
        points += 3 if not os.environ.get("OMNIQ_PROOF") else 1
        address = tmp_path / f"{points}.db"
        ended = subprocess.run(
            [sys.executable, str(script), str(address), str(points)],
            capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(Path(values.__file__).parents[1])},
        )  # fmt: skip
        lines = ended.stdout.split()
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        with contextlib.closing(open_store(address)) as store:
            assert all(problem.repaired for problem in store.check())
            assert [name for name in names(store) if name.startswith("new-")] == []
            found = {task.task_id: task for task in store.find()}
            for n, id in enumerate(line for line in lines if line != "done"):
                (argument,), _ = _loaded(store.values, found[id].args)
                assert argument == bytes([n % 2]) * 300_000
            assert len(names(store)) <= 2
    assert points > 10


# --- The pieces ---


def test_what_refers_to_files_is_known_by_its_beginning(files: ValueFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "LARGE", 160)
    with values.writing(files):
        data = values.dumps(calls.block(160))
    assert values.is_reference(data)
    assert not values.is_reference(pickle.dumps([calls.block(160)], 5))
    assert values.hold(data) is data
    held = values.hold(pickle.dumps({"inner": data}))
    assert values.is_reference(held)
    assert value_files.names_in(held) == value_files.names_in(data) == names(files)
    assert codec.decode_result(held, lambda: files) == {"inner": data}
    with pytest.raises(ValueLost, match="its store"):
        codec.decode(data)


def test_small_values_make_no_files(executor: PersistentExecutor) -> None:
    executor.submit(calls.echo, calls.block(80)).result(WAIT_S)
    list(executor.map(calls.echo, range(100)))
    assert names(executor) == []
    assert executor.store.counts()[executor.queue][Status.COMPLETED] == 101


def test_more_results_than_descriptors(files: ValueFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(value_files, "_MOST_MAPPED", 2)
    found = [files.open(of_results(files)) for _ in range(5)]
    assert all(bytes(it) == b"r" * 100 for it in found)
    found[4][0:1] = b"x"


@pytest.fixture(autouse=True)
def _nothing_is_pinned_at_the_end() -> Iterator[None]:
    yield
    assert values.here.pins == []
    assert values.here.writer is None


def test_a_file_that_was_cut_off_is_written_again_for_all_who_refer_to_it(tmp_path: Path) -> None:
    """It was written under a name of its own, and a call that waited for the first failed with each run."""
    data = memoryview(os.urandom(300_000))
    for cut in (0, 500):
        name, _, pin = ValueFiles(tmp_path, False).keep(data)
        pin.release()
        os.truncate(tmp_path / name, cut)
        again, _, pin = ValueFiles(tmp_path, False).keep(data)
        pin.release()
        assert again == name
        assert bytes(ValueFiles(tmp_path, False).open(name)) == data
        assert os.listdir(tmp_path) == [name]
