"""InputFile: a path whose file's content is part of what identifies a call."""

import builtins
import copy
import dataclasses
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import omniq_executor
from omniq_executor import InputError, InputFile, InputIsFolder, InputNotFound, PersistentExecutor, hashes, inputs
from omniq_executor.code.digest import value_digest

MakeExecutor = Callable[..., PersistentExecutor]
LONG_AGO_NS = 10**18


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "input.csv"
    path.write_text("a,b\n")
    return path


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The files that are read for a digest, in a process that knows none."""
    monkeypatch.setattr(inputs, "_known", {})
    opened: list[Any] = []

    def opening(path: Any, *args: Any, **kwargs: Any) -> Any:
        opened.append(path)
        return builtins.open(path, *args, **kwargs)

    monkeypatch.setattr(inputs, "open", opening, raising=False)
    return opened


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """No change of a file is so recent that another one could have the same time."""
    monkeypatch.setattr(inputs, "_SETTLED_NS", -(10**12))


def test_it_is_a_path_to_whoever_opens_it(file: Path) -> None:
    given = InputFile(file)
    with open(given) as opened:
        assert opened.read() == "a,b\n"
    assert os.fspath(given) == str(given) == given.path == str(file)
    assert (Path(given), os.path.getsize(given), InputFile(given)) == (file, 4, given)


def test_it_is_a_value() -> None:
    one = InputFile("a/b")
    assert one == InputFile(Path("a/b"))
    assert hash(one) == hash(InputFile("a/b"))
    assert one != InputFile("a/c")
    assert one != "a/b"
    assert len({one, InputFile("a/b"), "a/b"}) == 2
    assert repr(one) == "InputFile('a/b')"
    assert pickle.loads(pickle.dumps(one)) == copy.deepcopy(one) == copy.copy(one) == one
    with pytest.raises(AttributeError, match="cannot be changed"):
        one.path = "other"  # type: ignore[misc]
    with pytest.raises(AttributeError, match="cannot be changed"):
        one._path = "other"
    with pytest.raises(AttributeError, match="cannot be changed"):
        del one._path


@pytest.mark.parametrize(("path", "kind"), [(b"a", TypeError), (3, TypeError), (None, TypeError), ("", ValueError)])
def test_it_has_a_path_that_is_text(path: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        InputFile(path)


@dataclasses.dataclass
class Job:
    source: InputFile
    limit: int = 3


@pytest.mark.parametrize(
    "within",
    [
        lambda file: file, lambda file: [file], lambda file: {"files": (file,)}, lambda file: {file}, Job,
        lambda file: {file: 1}, lambda file: [[Job(file)] * 200],
    ],
)  # fmt: skip
def test_its_content_counts_wherever_it_is(file: Path, within: Callable[[InputFile], object]) -> None:
    given = InputFile(file)
    before = value_digest(within(given))
    os.utime(file, ns=(LONG_AGO_NS, LONG_AGO_NS))
    assert value_digest(within(given)) == before
    file.write_text("a,c\n")
    os.utime(file, ns=(LONG_AGO_NS, LONG_AGO_NS))
    assert value_digest(within(given)) != before
    file.write_text("a,b\n")
    assert value_digest(within(given)) == before


def test_equal_content_under_two_paths_is_two_inputs_and_a_path_is_no_input(file: Path) -> None:
    other = file.with_name("other.csv")
    other.write_bytes(file.read_bytes())
    values = [InputFile(file), InputFile(other), file, str(file), {"path": str(file)}]
    assert len({value_digest(value) for value in values}) == 5


def test_a_relative_path_counts_as_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for name in ("here", "moved"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "input").write_text("same")
        monkeypatch.chdir(tmp_path / name)
        found.append(value_digest(InputFile("input")))
    (tmp_path / "moved" / "input").write_text("another")
    assert found[0] == found[1] != value_digest(InputFile("input"))


@pytest.mark.usefixtures("settled")
def test_a_file_is_read_once(file: Path, readings: list[Any]) -> None:
    digests = {value_digest([InputFile(file)] * 3) for _ in range(100)}
    assert (len(digests), len(readings)) == (1, 1)


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("same_size", [True, False])
def test_a_change_is_seen_also_where_size_and_time_stay(file: Path, readings: list[Any], same_size: bool) -> None:
    os.utime(file, ns=(LONG_AGO_NS, LONG_AGO_NS))
    before, changed_ns = value_digest(InputFile(file)), file.stat().st_ctime_ns
    while file.stat().st_ctime_ns == changed_ns:  # the kernel's clock goes on after some milliseconds
        file.write_text("x,y\n" if same_size else "longer\n")
        os.utime(file, ns=(LONG_AGO_NS, LONG_AGO_NS))
    assert value_digest(InputFile(file)) != before
    assert len(readings) == 2


@pytest.mark.usefixtures("settled")
def test_a_file_in_place_of_another_is_read(file: Path, readings: list[Any]) -> None:
    before = value_digest(InputFile(file))
    other = file.with_name("other")
    other.write_text("x,y\n")
    other.replace(file)
    assert value_digest(InputFile(file)) != before
    assert len(readings) == 2


def test_what_was_written_just_now_is_read_again_as_its_times_may_stay(file: Path, readings: list[Any]) -> None:
    found = set()
    for n in range(200):  # faster than the clock that files have
        file.write_text(f"{n:04}")
        found.add(value_digest(InputFile(file)))
    assert (len(found), len(readings)) == (200, 200)


def test_a_file_that_is_written_to_all_the_time_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class WithWriter:
        """Each piece that is read is followed by one that somebody writes."""

        def __init__(self, size: int) -> None:
            self._pieces = 0

        def update(self, piece: bytes) -> None:
            self._pieces += 1
            if self._pieces == 1:
                file.write_bytes(file.read_bytes() + b"more")

        def digest(self) -> bytes:
            return b""

    monkeypatch.setattr(hashes, "begin", WithWriter)
    with pytest.raises(InputError, match="written to while it is read"):
        inputs.file_digest(str(file))


def test_what_cannot_be_read_fails_the_future_and_says_which(executor: PersistentExecutor, tmp_path: Path) -> None:
    missing, below = tmp_path / "missing.csv", tmp_path / "file" / "below"
    (tmp_path / "file").touch()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    kinds = [(missing, FileNotFoundError), (below, FileNotFoundError), (tmp_path, IsADirectoryError), (fifo, OSError)]
    for path, kind in kinds:
        error = executor.submit(os.path.getsize, InputFile(path)).exception(0)
        assert isinstance(error, InputError)
        assert isinstance(error, kind)
        assert error.filename == str(path)
        assert str(path) in str(error)
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert executor.store.counts() == {}
    assert isinstance(executor.submit(len, [InputFile(missing)]).exception(0), InputNotFound)
    assert isinstance(executor.submit(len, [InputFile(tmp_path)]).exception(0), InputIsFolder)


def test_a_relative_path_that_is_missing_is_named_with_the_folder(
    executor: PersistentExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert f"(in {tmp_path}): 'missing'" in str(executor.submit(len, InputFile("missing")).exception(0))


def test_in_a_map_it_fails_in_its_place(executor: PersistentExecutor, file: Path, tmp_path: Path) -> None:
    results = executor.map(os.path.getsize, [InputFile(file), InputFile(tmp_path / "missing"), InputFile(file)])
    assert next(results) == 4
    with pytest.raises(InputNotFound):
        next(results)


@pytest.mark.parametrize("name", ["store.db", "store"])
def test_a_call_is_given_the_path_and_runs_again_when_the_content_is_another(
    tmp_path: Path, file: Path, name: str
) -> None:
    program = f"""
import os, sys
from omniq_executor import InputFile, PersistentExecutor

def size(file, runs="runs"):
    with open(runs, "a") as opened:
        opened.write("x")
    with open(file) as opened:
        return type(file).__name__, len(opened.read())

if __name__ == "__main__":
    with PersistentExecutor(1, store={name!r}, resume="always") as executor:
        print(executor.submit(size, InputFile("input.csv")).result(), *executor.map(size, [InputFile("input.csv")]))
"""
    (tmp_path / "script.py").write_text(program)

    def run() -> tuple[str, int]:
        root = str(Path(omniq_executor.__file__).parents[1])
        done = subprocess.run(
            [sys.executable, "script.py"],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout, len((tmp_path / "runs").read_text())

    assert run() == ("('InputFile', 4) ('InputFile', 4)\n", 1)  # two equal calls are one in such a run
    os.utime(file, ns=(LONG_AGO_NS, LONG_AGO_NS))
    assert run() == ("('InputFile', 4) ('InputFile', 4)\n", 1)
    file.write_text("a,b,c\n")
    assert run() == ("('InputFile', 6) ('InputFile', 6)\n", 2)
    file.write_text("a,b\n")
    assert run()[0] == "('InputFile', 4) ('InputFile', 4)\n"


def test_a_key_is_of_one_content(executor: PersistentExecutor, file: Path) -> None:
    keyed = executor.options(key="size")
    assert keyed.submit(os.path.getsize, InputFile(file)).result(30) == 4
    assert keyed.submit(os.path.getsize, InputFile(file)).result(30) == 4
    file.write_text("another")
    with pytest.raises(omniq_executor.KeyConflict):
        keyed.submit(os.path.getsize, InputFile(file))
