"""Large values are files beside the store: written once, mapped when they are read, gone with what refers to them."""

import asyncio
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
from hypothesis import given, settings, strategies as st

from omniq_executor import (
    AsyncOmniQ,
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
from omniq_executor.model.functions import Functions, stored_call
from omniq_executor.model.preview import preview
from omniq_executor.model.task import format_id
from omniq_executor.stores import migration
from omniq_executor.stores.base import Store, now
from omniq_executor.stores.values import ValueFiles

np = pytest.importorskip("numpy")

MakeExecutor = Callable[..., PersistentExecutor]

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


@pytest.fixture(params=[0, 1 << 30], ids=["written meanwhile", "written then"])
def meanwhile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a thread writes what is hashed."""
    monkeypatch.setattr(value_files, "_WRITTEN_MEANWHILE", request.param)


def names(executor: PersistentExecutor | Store | ValueFiles) -> list[str]:
    of = executor.store if isinstance(executor, PersistentExecutor) else executor
    folder = of.values.folder if isinstance(of, Store) else of.folder
    return sorted(os.listdir(folder)) if folder.exists() else []


def shared(of: Any) -> list[str]:
    """The files of what calls and functions hold."""
    return [name for name in names(of) if not name.startswith("task-")]


def keep(files: ValueFiles, content: bytes) -> tuple[str, value_files.Pin]:
    name, _, pin = files.keep(memoryview(content))
    return name, pin


def of_results(files: ValueFiles, id: int = 7) -> str:
    return files.keep_result(memoryview(b"r" * 100), format_id(id))


# --- What comes back ---


def test_arrays_come_back_and_can_be_changed(executor: PersistentExecutor) -> None:
    array = np.arange(float(N))
    future = executor.submit(calls.echo, array)
    result = future.result(WAIT_S)
    assert (result == array).all()
    result[0] = -1.0  # copy on write
    again = attach(executor.store).future(future.task_id).result(WAIT_S)
    assert again[0] == 0.0
    assert array[0] == 0.0
    assert len(future.task().args) < 1000 > len(future.task().result)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value", ["é" * values.LARGE, b"b" * values.LARGE, [1.5] * values.LARGE, {"k": ["ab"] * values.LARGE}], ids=type
)
def test_what_is_large_without_buffers_comes_back(executor: PersistentExecutor, value: Any) -> None:
    future = executor.submit(calls.echo, value)
    assert future.result(WAIT_S) == value
    assert len(future.task().args) < 1000 > len(future.task().result)  # type: ignore[arg-type]
    assert list(executor.map(calls.echo, [value, 1])) == [value, 1]


def test_results_are_given_to_calls_and_to_whoever_looks(executor: PersistentExecutor) -> None:
    first = executor.submit(calls.echo, np.ones(N))
    second = executor.submit(calls.echo, [first, first])
    assert all((it == np.ones(N)).all() for it in second.result(WAIT_S))
    assert len(second.task().args) < 1000  # type: ignore[arg-type]

    async def look() -> Any:
        async with AsyncOmniQ(executor.store.address) as omniq:
            return await omniq.get_result(first.task_id or "")

    assert (asyncio.run(look()) == np.ones(N)).all()
    assert preview(first.task().result).startswith("numpy.")  # type: ignore[arg-type]


_NUMBERS = st.integers(0, 50)
_ARRAYS = st.builds(
    lambda count, kind, form: _formed(np.arange(count * 4).astype(kind).reshape(4, count), form),
    _NUMBERS, st.sampled_from(["i8", "f4", "u1", "S3"]), st.sampled_from(["C", "F", "strided", "frozen"]),
)  # fmt: skip


def _formed(array: Any, form: str) -> Any:
    if form == "strided":
        return array[::2, ::2]
    array = np.asfortranarray(array) if form == "F" else array
    array.flags.writeable = form != "frozen"
    return array


@settings(max_examples=60)
@given(
    st.recursive(
        st.one_of(_ARRAYS, st.binary(max_size=200), st.binary(max_size=200).map(bytearray), st.text(max_size=90)),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
        max_leaves=6,
    )
)
def test_any_value_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(values, "LARGE", 64)
        files = ValueFiles(tmp_path_factory.mktemp("any") / "values", durable=False)
        with values.writing(files):
            data = values.dumps(value)
        _same(codec.decode_result(data, lambda: files), pickle.loads(pickle.dumps(value, 5)))
        call, _ = stored_call(FUNCTION, (value,), {}, store="", files=files)
        values.release(values.here.pins)
        (found,), _ = _loaded(files, call.args)
        _same(found, pickle.loads(pickle.dumps(value, 5)))


def _loaded(files: ValueFiles, args: str | bytes) -> Any:
    with values.reading(files):
        return codec.decode_call(args, None)


def _same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, np.ndarray):
        assert (one.dtype, one.shape, one.flags.writeable) == (other.dtype, other.shape, other.flags.writeable)
        assert one.tobytes() == other.tobytes()
    elif isinstance(one, list):
        assert len(one) == len(other)
        for each, its in zip(one, other, strict=True):
            _same(each, its)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            _same(one[key], other[key])
    else:
        assert one == other


class Block(bytearray):
    """Hands out its buffer, as the documentation of pickle has it."""

    def __reduce_ex__(self, _: Any) -> Any:
        return Block, (pickle.PickleBuffer(self),)


def test_objects_that_hand_out_buffers_come_back(files: ValueFiles) -> None:
    value = [
        Block(b"b" * values.LARGE),
        Block(b"s"),
        Block(b"o" * values.LARGE),
        pickle.PickleBuffer(b"r" * values.LARGE),
    ]
    with values.writing(files) as writer:
        data = values.dumps(value)
    assert writer is not None
    assert len(writer.pins) == 3
    *blocks, raw = codec.decode_result(data, lambda: files)
    assert blocks == value[:3]
    assert {type(it) for it in blocks} == {Block}
    assert type(raw) is memoryview
    assert raw.readonly
    assert raw == b"r" * values.LARGE


def test_a_list_of_very_many_arrays_needs_few_descriptors(files: ValueFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "LARGE", 64)
    monkeypatch.setattr(values, "MOST_PARTS", 5)
    value = [np.full(10, n) for n in range(20)]
    call, _ = stored_call(FUNCTION, (value,), {}, store="", files=files)
    assert len(values.here.pins) == len(names(files)) == 5 + 1
    values.release(values.here.pins)
    (found,), _ = _loaded(files, call.args)
    _same(found, value)


def test_data_frames_come_back(executor: PersistentExecutor) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": np.arange(N), "b": np.ones(N), "s": ["text"] * N})
    result = executor.submit(calls.echo, frame).result(WAIT_S)
    assert result.equals(frame)
    result.loc[0, "a"] = 5
    assert frame.loc[0, "a"] == 0


# --- Once ---


def test_what_was_written_is_not_written_again(make_executor: MakeExecutor) -> None:
    array = np.random.default_rng(1).random(N)
    with make_executor() as executor:
        for other in (array, array.copy(), np.asfortranarray(array)):
            executor.submit(calls.echo, [other, 1]).result(WAIT_S)
        assert len(shared(executor)) == 1
    with make_executor() as executor:
        executor.submit(calls.echo, array).result(WAIT_S)
        assert len(shared(executor)) == 1


def test_an_array_that_was_changed_in_place_is_another_value(executor: PersistentExecutor) -> None:
    array, sums = np.zeros(N), []
    for n in range(3):
        array[-1] = n
        sums.append(executor.submit(np.sum, array))
    assert [it.result(WAIT_S) for it in sums] == [0.0, 1.0, 2.0]


def test_a_call_is_known_again_by_its_large_arguments(make_executor: MakeExecutor, files: ValueFiles) -> None:
    class Made:  # whose buffers are others whenever it is pickled
        def __init__(self, number: int) -> None:
            self.number = number

        def __reduce_ex__(self, _: Any) -> Any:
            return np.ravel, (np.full(N, self.number),)

    for args in ((np.arange(N),), ("x" * values.LARGE,), ([np.ones((3, N)).T, np.zeros(N)[::2]],), (Made(1), Made(2))):
        call, _ = stored_call(FUNCTION, args, {}, store="", files=files)
        plain, _ = stored_call(FUNCTION, (*args, 1), {}, store="")
        again, _ = stored_call(FUNCTION, (*args, 1), {}, store="", files=files)
        assert again.identity == plain.identity or isinstance(plain.args, str)
        assert call.identity != again.identity
    values.release(values.here.pins)
    one, _ = stored_call(FUNCTION, (Made(1), Made(2)), {}, store="", files=files)
    other, _ = stored_call(FUNCTION, (Made(1), Made(1)), {}, store="", files=files)
    values.release(values.here.pins)
    assert one.identity != other.identity
    for _ in range(2):
        executor = make_executor(resume="always")
        future = executor.submit(calls.echo, np.arange(N))
        future.result(WAIT_S)
        executor.shutdown()
    assert future.resumed


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
        future = executor.submit(np.ones, N)
        future.result(WAIT_S)
        (name,) = names(executor)
    shown = CliRunner().invoke(main, ["show", future.task_id or "", "--store", str(store)]).output
    assert name in shown
    assert "a pickle of 262" in shown
    assert (
        "array([1." in CliRunner().invoke(main, ["show", "--load", future.task_id or "", "--store", str(store)]).output
    )


# --- Globals of functions ---


def test_large_globals_are_stored_once_and_loaded_once(
    executor: PersistentExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = sys.modules["__main__"]
    monkeypatch.setattr(script, "TABLE", np.arange(N), raising=False)
    source = "def look(i):\n    return int(TABLE[i]) {}, id(TABLE)"
    before: set[int] = set()
    for edit in ("", "+ 0", "* 1"):
        exec(source.format(edit), vars(script))
        found = list(executor.map(script.look, range(20)))  # type: ignore[attr-defined]
        assert [value for value, _ in found] == [*range(20)]
        assert len({place for _, place in found} | before) <= 2  # of each worker, whatever was edited
        before |= {place for _, place in found}
        assert len(shared(executor)) == 1
    script.TABLE[0] = 5  # type: ignore[attr-defined]
    assert executor.submit(script.look, 0).result(WAIT_S)[0] == 5  # type: ignore[attr-defined]


def test_a_function_that_reads_much_is_named_once(
    executor: PersistentExecutor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    script = sys.modules["__main__"]
    monkeypatch.setattr(script, "TABLE", np.arange(2_000_000), raising=False)
    exec("def look(i):\n    return int(TABLE[i])", vars(script))
    for n in range(3):
        assert executor.submit(script.look, n).result(WAIT_S) == n  # type: ignore[attr-defined]
    (told,) = [it.getMessage() for it in caplog.records if "every submit()" in it.getMessage()]
    assert told.startswith("__main__.look reads 16 MB of data of the script (TABLE")


# --- Missing, damaged, refused ---


@pytest.mark.parametrize("harm", ["remove", "shorten", "change", "no rights"])
def test_a_file_that_is_not_what_it_was_is_named(make_executor: MakeExecutor, harm: str) -> None:
    if harm == "no rights" and os.geteuid() == 0:
        pytest.skip("root reads everything")
    executor = make_executor()
    future = executor.submit(calls.echo, np.ones(N))
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
    assert executor.submit(np.sum, np.ones(N)).result(WAIT_S) == N  # written anew, under a name of its own if need be


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
    result = executor.submit(calls.echo, np.ones(N)).result(WAIT_S)
    executor.store.purge(now() + 10**9)
    assert names(executor) == []
    assert result.sum() == N


def test_a_full_disk_is_told_as_for_any_value(
    executor: PersistentExecutor, monkeypatch: pytest.MonkeyPatch, meanwhile: None
) -> None:
    executor.submit(calls.echo, 1).result(WAIT_S)

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(ValueFiles, "_write", full)
        with pytest.raises(StoreError, match="No space left"):
            executor.submit(calls.echo, np.ones(N))
        with pytest.raises(StoreError, match="No space left"):
            executor.map(calls.echo, [np.ones(N)])
    assert executor.submit(calls.echo, np.ones(N)).result(WAIT_S).sum() == N


def test_a_result_that_cannot_be_a_file_goes_the_way_of_the_others(make_executor: MakeExecutor) -> None:
    executor = make_executor(1)
    executor.submit(calls.echo, 1).result(WAIT_S)
    executor.store.values.folder.rmdir()
    future = executor.submit(np.ones, N)
    assert future.result(WAIT_S).sum() == N
    assert future.result().flags.writeable
    assert names(executor) == []


def test_files_are_private(executor: PersistentExecutor) -> None:
    before = os.umask(0)
    try:
        executor.submit(calls.echo, np.ones(N)).result(WAIT_S)
    finally:
        os.umask(before)
    folder = executor.store.values.folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE((folder / name).stat().st_mode) for name in names(executor)} == {0o600}
    assert len(names(executor)) == 2


def test_a_folder_that_others_can_write_is_refused(store: Path) -> None:
    with PersistentExecutor(1, store=store) as executor:
        future = executor.submit(np.ones, N)
        wait([future], WAIT_S)
        os.chmod(executor.store.values.folder, 0o777)
        with pytest.raises(StoreError, match="can be written by other users"):
            future.result()
        with pytest.raises(StoreError, match="can be written by other users"):
            executor.submit(calls.echo, np.ones(N))
    with pytest.raises(StoreError, match="can be written by other users"):
        open_store(store)


# --- What goes, and what stays ---


def test_files_go_with_the_tasks_that_refer_to_them(make_executor: MakeExecutor) -> None:
    with make_executor() as executor:
        both = np.arange(N)
        first = executor.submit(calls.echo, both)
        executor.submit(calls.echo, [both, np.ones(N)]).result(WAIT_S)
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
        executor.submit(calls.echo, np.arange(N)).result(WAIT_S)
        executor.submit(calls.echo, np.ones(N)).result(WAIT_S)
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
        future = executor.submit(calls.echo, np.arange(N))
        future.result(WAIT_S)
        copy = tmp_path / f"copy{store.suffix}"
        executor.store.backup(copy)
        executor.store.purge(now() + 10**9)
    with contextlib.closing(open_store(copy)) as saved:
        assert saved.check() == []
    assert (attach(copy).future(future.task_id).result(WAIT_S) == np.arange(N)).all()


@pytest.mark.once
def test_a_migration_takes_the_files_along(store: Path, tmp_path: Path) -> None:
    with PersistentExecutor(1, store=store) as executor:
        future = executor.submit(calls.echo, np.arange(N))
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
    assert (attach(there).future(future.task_id).result(WAIT_S) == np.arange(N)).all()


# --- Killed at any point ---

_KILLED = """
    import os, signal, sys
    import numpy as np
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
        print(executor.submit(np.sum, np.full(40_000, n % 2)).task_id, flush=True)
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
                (array,), _ = _loaded(store.values, found[id].args)
                assert (array == n % 2).all()
            assert len(names(store)) <= 2
    assert points > 10


# --- The pieces ---


def test_what_refers_to_files_is_known_by_its_beginning(files: ValueFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "LARGE", 160)
    with values.writing(files):
        data = values.dumps(np.ones(20))
    assert values.is_reference(data)
    assert not values.is_reference(pickle.dumps([np.ones(20)]))
    assert values.hold(data) is data
    held = values.hold(pickle.dumps({"inner": data}))
    assert values.is_reference(held)
    assert value_files.names_in(held) == value_files.names_in(data) == names(files)
    assert codec.decode_result(held, lambda: files) == {"inner": data}
    with pytest.raises(ValueLost, match="its store"):
        codec.decode(data)


def test_small_values_make_no_files(executor: PersistentExecutor) -> None:
    executor.submit(calls.echo, np.ones(10)).result(WAIT_S)
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
