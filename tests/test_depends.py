"""options(version=..., depends=[...]): what counts as part of a function's code, though it cannot be seen there."""

import importlib
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import omniq_executor
from omniq_executor import InputError, InputNotFound, PersistentExecutor, inputs
from omniq_executor.code.depends import Depends

CODE = b"digest of a function"


def digest(*args: Any, **kwargs: Any) -> bytes:
    return Depends(*args, **kwargs).joined_to(CODE, "")[0]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, from which modules are imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path  # type: ignore[misc]
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_version_counts_by_value_and_type() -> None:
    assert len({digest(version) for version in (None, 1, 2, "1", "2", "")}) == 6
    assert digest(1) == digest(1) != Depends(1).joined_to(b"another function", "")[0]


def test_nothing_given_is_nothing() -> None:
    assert not Depends()
    assert not Depends(None, iter([]))
    assert Depends(0)
    assert Depends("")


def test_a_file_counts_by_its_content_and_the_path_that_was_given(folder: Path) -> None:
    (folder / "model.bin").write_bytes(b"1")
    by_text, by_path = digest(depends=["model.bin"]), digest(depends=[folder / "model.bin"])
    assert by_text == digest(depends=[Path("model.bin")]) != by_path
    (folder / "model.bin").write_bytes(b"2")
    assert digest(depends=["model.bin"]) != by_text
    assert digest(depends=[folder / "model.bin"]) != by_path


def test_what_changes_after_options_is_seen_from_any_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "table").write_text("1")
    depends = Depends(None, ["table"])
    before = depends.joined_to(CODE, "")[0]
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert depends.joined_to(CODE, "")[0] == before
    (folder / "table").write_text("2")
    assert depends.joined_to(CODE, "")[0] != before
    (folder / "table").unlink()
    with pytest.raises(InputNotFound, match="table"):
        depends.joined_to(CODE, "")[0]


def test_a_folder_counts_by_all_files_in_it(folder: Path) -> None:
    (folder / "data" / "deep").mkdir(parents=True)
    (folder / "data" / "a").write_text("a")
    found = [digest(depends=["data"])]

    def expect_another() -> None:
        found.append(digest(depends=["data"]))
        assert len(set(found)) == len(found)
        assert digest(depends=["data"]) == found[-1]

    (folder / "data" / "deep" / "b").write_text("b")
    expect_another()
    (folder / "data" / "deep" / "b").write_text("c")
    expect_another()
    (folder / "data" / "a").rename(folder / "data" / "d")
    expect_another()
    (folder / "outside").mkdir()
    (folder / "outside" / "e").write_text("e")
    (folder / "data" / "link").symlink_to(folder / "outside")
    expect_another()
    (folder / "outside" / "e").write_text("f")
    expect_another()
    (folder / "data" / "nowhere").symlink_to(folder / "missing")  # as an editor locks a file
    expect_another()


def test_a_folder_that_is_linked_into_itself_has_an_end(folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "data" / "a").write_text("a")
    (folder / "data" / "round").symlink_to(folder / "data")
    assert digest(depends=["data"]) == digest(depends=["data"])


def test_compiled_code_does_not_count(folder: Path) -> None:
    (folder / "data").mkdir()
    before = digest(depends=["data"])
    (folder / "data" / "__pycache__").mkdir()
    (folder / "data" / "__pycache__" / "a.pyc").write_text("a")
    assert digest(depends=["data"]) == before


@pytest.mark.parametrize("is_imported", [True, False])
@pytest.mark.parametrize("as_object", [True, False])
def test_a_module_counts_by_its_text(folder: Path, is_imported: bool, as_object: bool) -> None:
    (folder / "plugin_a.py").write_text("A = 1")
    (folder / "package_a").mkdir()
    (folder / "package_a" / "__init__.py").write_text("")
    (folder / "package_a" / "inner.py").write_text("B = 1")
    importlib.invalidate_caches()
    names = ["plugin_a", "package_a", "package_a.inner"]
    given: list[Any] = [*names]
    if as_object or is_imported:
        given = [importlib.import_module(name) for name in names] if as_object else given
        for name in names:
            importlib.import_module(name)
    before = [digest(depends=[each]) for each in given]
    assert len(set(before)) == 3
    assert [digest(depends=[each]) for each in names] == before
    (folder / "plugin_a.py").write_text("A = 2")
    (folder / "package_a" / "inner.py").write_text("B = 2")
    after = [digest(depends=[each]) for each in given]
    assert not set(before) & set(after)


def test_a_module_is_not_imported_to_be_looked_at(folder: Path) -> None:
    (folder / "plugin_b.py").write_text("raise SystemExit")
    importlib.invalidate_caches()
    digest(depends=["plugin_b"])
    assert "plugin_b" not in sys.modules


def test_a_text_that_names_a_file_is_a_path(folder: Path) -> None:
    (folder / "run_b.py").write_text("raise SystemExit")
    (folder / "json").write_text("1")  # and a module
    importlib.invalidate_caches()
    before = digest(depends=["run_b.py", "json"])
    (folder / "json").write_text("2")
    assert digest(depends=["run_b.py", "json"]) != before
    assert "run_b" not in sys.modules


def test_an_installed_module_counts_by_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    import _pytest
    import cloudpickle

    read: list[str] = []
    monkeypatch.setattr(inputs, "file_digest", read.append)
    given = [cloudpickle, "cloudpickle.cloudpickle", pytest, "_pytest", json, "sys", _pytest]
    before = digest(depends=given)
    assert digest(depends=given) == before
    depends = Depends(None, given)
    assert not read
    said = [item.version for item in depends._items]
    assert said[0] == said[1] == f"cloudpickle {metadata.version('cloudpickle')}"
    assert said[3] == said[6] == f"pytest {metadata.version('pytest')}"  # one distribution with several modules
    assert said[4] == said[5] == "{}.{}.{}".format(*sys.version_info)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"version": 1.5}, TypeError, "version is a text or a whole number, not 1.5"),
        ({"version": True}, TypeError, "version"),
        ({"version": ("a", 1)}, TypeError, "version"),
        ({"depends": "numpy"}, TypeError, "depends are several"),
        ({"depends": Path()}, TypeError, "depends are several"),
        ({"depends": json}, TypeError, "depends are several"),
        ({"depends": 3}, TypeError, "depends are several"),
        ({"depends": [3]}, TypeError, "3 in depends is neither"),
        ({"depends": [len]}, TypeError, "len"),
        ({"depends": [None]}, TypeError, "None in depends"),
        ({"depends": ["no_such_module_at_all"]}, FileNotFoundError, "neither a module that can be found nor a path"),
        ({"depends": ["json.no_such_module"]}, FileNotFoundError, "neither a module that can be found nor a path"),
        ({"depends": ["no/such/path"]}, FileNotFoundError, "no/such/path"),
        ({"depends": [Path("nowhere")]}, FileNotFoundError, "nowhere"),
        ({"depends": [""]}, FileNotFoundError, "depends"),
        ({"depends": [types.ModuleType("made_up")]}, ValueError, "made_up"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words) as caught:
        Depends(**options)
    assert not isinstance(caught.value, OSError) or isinstance(caught.value, InputError)


def test_options_refuses_what_makes_no_sense(executor: PersistentExecutor) -> None:
    with pytest.raises(TypeError, match="version"):
        executor.options(version=1.5)  # type: ignore[arg-type]
    with pytest.raises(InputNotFound):
        executor.options(depends=["no_such_module_at_all"])


def test_a_file_that_has_gone_since_fails_the_call(executor: PersistentExecutor, folder: Path) -> None:
    (folder / "table").write_text("1")
    with_table = executor.options(depends=["table"])
    assert with_table.submit(len, "abc").result(30) == 3
    (folder / "table").unlink()
    assert isinstance(with_table.submit(len, "abc").exception(0), InputNotFound)
    with pytest.raises(InputNotFound):
        with_table.map(len, ["abc"])


SCRIPT = """
import sys
from omniq_executor import PersistentExecutor

def note(n):
    with open("runs", "a") as opened:
        opened.write(str(n))
    return n

if __name__ == "__main__":
    version, depends = eval(sys.argv[1])
    with PersistentExecutor(1, resume="always", store=sys.argv[2]) as executor:
        executor.submit(note, 0).result()
        executor.options(version=version, depends=depends).submit(note, 1).result()
        list(executor.options(version=version, depends=depends).map(note, [2, 3]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("store", ["store.db", "store"])
def test_calls_run_again_when_what_they_depend_on_is_another(folder: Path, store: str) -> None:
    (folder / "script.py").write_text(SCRIPT)
    (folder / "table").write_text("1")
    (folder / "plugin_c.py").write_text("A = 1")

    def run(version: Any, depends: list[str]) -> str:
        root = str(Path(omniq_executor.__file__).parents[1])
        (folder / "runs").write_text("")
        done = subprocess.run(
            [sys.executable, "script.py", repr((version, depends)), store],
            cwd=folder, env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return (folder / "runs").read_text()

    assert run(1, ["table", "plugin_c"]) == "0123"
    assert run(1, ["table", "plugin_c"]) == ""
    assert run(2, ["table", "plugin_c"]) == "123"
    (folder / "table").write_text("2")
    assert run(2, ["table", "plugin_c"]) == "123"
    (folder / "plugin_c.py").write_text("A = 2")
    assert run(2, ["table", "plugin_c"]) == "123"
    assert run(2, ["table", "plugin_c"]) == ""
    assert run(2, ["table"]) == "123"
    (folder / "table").write_text("1")


def test_looking_again_reads_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []

    def opening(path: Any, *args: Any, **kwargs: Any) -> Any:
        opened.append(path)
        return open(path, *args, **kwargs)

    monkeypatch.setattr(inputs, "_SETTLED_NS", -(10**12))
    monkeypatch.setattr(inputs, "open", opening, raising=False)
    (folder / "data").mkdir()
    for n in range(20):
        (folder / "data" / str(n)).write_text("content")
    depends = Depends(None, ["data"])
    assert len({depends.joined_to(CODE, "")[0] for _ in range(50)}) == 1
    assert len(opened) == 20


def test_data_whose_change_is_not_seen_is_named_once(
    executor: PersistentExecutor, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "tables_d.py").write_text(
        "RING = [1]\nRING.append(RING)\nTABLE = {'a': 1}\ndef first(n, ring=RING): return n + TABLE['a']\n"
        "def second(n): return n + len(RING)\n"
    )
    module = importlib.import_module("tables_d")
    for function in (module.first, module.second) * 2:
        assert executor.submit(function, 1).result(30) in (2, 3)
    said = [record.getMessage() for record in caplog.records if "will not be seen" in record.getMessage()]
    assert [text.partition(" will")[0] for text in said] == [
        "a change of what first holds in module tables_d", "a change of RING in module tables_d"
    ]  # fmt: skip
    assert "within itself" in said[0]
    assert "options(depends=['tables_d'])" in said[0]
