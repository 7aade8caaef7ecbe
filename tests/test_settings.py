"""Settings: from the environment or given, and refused by name where they make no sense."""

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import omniq_executor
from omniq_executor import OmniqError, PersistentExecutor, Settings, SettingsError, open_store
from omniq_executor.config import Address, parse_duration

ROOT = str(Path(omniq_executor.__file__).parents[1])
VARIABLES = ["OMNIQ_BACKEND", "OMNIQ_BASE_DIR", "OMNIQ_MAX_RETRIES", "OMNIQ_TIMEOUT", "OMNIQ_RESULT_TTL"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and an environment that says nothing."""
    monkeypatch.chdir(tmp_path)
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


def omniq(*args: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "omniq_executor", *args]
    env = {**os.environ, "PYTHONPATH": ROOT, **variables}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_by_default_it_is_a_database_in_omniq_data_and_nothing_is_tried_again() -> None:
    assert Settings.from_env() == Settings() == Settings("sqlite", Path("omniq_data"), 0, None, 7 * 86400.0)
    assert Settings().address == Address("sqlite", Path("omniq_data/omniq.db"))


def test_every_field_comes_from_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, text in zip(VARIABLES, ("file", "/var/lib/omniq", "3", "1.5m", "2d"), strict=True):
        monkeypatch.setenv(variable, text)
    assert Settings.from_env() == Settings("file", Path("/var/lib/omniq"), 3, 90.0, 172800.0)
    monkeypatch.setenv("OMNIQ_RESULT_TTL", "never")
    assert Settings.from_env().result_ttl is None


def test_there_is_a_variable_for_every_field() -> None:
    assert [f"OMNIQ_{name.upper()}" for name in Settings._fields] == VARIABLES


@pytest.mark.parametrize(
    ("variable", "text", "allowed"),
    [
        ("OMNIQ_BACKEND", "redis", "'sqlite' or 'file'"),
        ("OMNIQ_BACKEND", "", "'sqlite' or 'file'"),
        ("OMNIQ_BACKEND", "SQLite ", "'sqlite' or 'file'"),
        ("OMNIQ_BASE_DIR", "", "the path of a folder"),
        ("OMNIQ_MAX_RETRIES", "-1", "a whole number from 0"),
        ("OMNIQ_MAX_RETRIES", "three", "a whole number from 0"),
        ("OMNIQ_MAX_RETRIES", "1.5", "a whole number from 0"),
        ("OMNIQ_MAX_RETRIES", "9" * 30, "a whole number from 0"),
        ("OMNIQ_TIMEOUT", "0", "a time above 0"),
        ("OMNIQ_TIMEOUT", "-5", "a time above 0"),
        ("OMNIQ_TIMEOUT", "nan", "a time above 0"),
        ("OMNIQ_TIMEOUT", "9" * 400, "a time above 0"),
        ("OMNIQ_RESULT_TTL", "a week", "a time above 0"),
        ("OMNIQ_RESULT_TTL", "7 d", "a time above 0"),
    ],
)
def test_a_variable_that_makes_no_sense_is_refused_with_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, folder: Path, variable: str, text: str, allowed: str
) -> None:
    monkeypatch.setenv(variable, text)
    for use in Settings.from_env, open_store, lambda: PersistentExecutor(1):
        with pytest.raises(SettingsError) as caught:
            use()
        assert variable in str(caught.value)
        assert repr(text) in str(caught.value)
        assert allowed in str(caught.value)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "given",
    [
        {"backend": "redis"},
        {"backend": None},
        {"base_dir": ""},
        {"base_dir": None},
        {"base_dir": b"x"},
        {"max_retries": -1},
        {"max_retries": "3"},
        {"max_retries": True},
        {"timeout": 0},
        {"timeout": float("nan")},
        {"timeout": "60"},
        {"result_ttl": float("inf")},
    ],
    ids=str,
)
def test_a_given_value_that_makes_no_sense_is_refused_by_name(given: dict[str, Any]) -> None:
    ((name, value),) = given.items()
    with pytest.raises(SettingsError) as caught:
        Settings(**given)
    assert name in str(caught.value)
    assert repr(value) in str(caught.value)
    assert isinstance(caught.value, OmniqError)
    assert isinstance(caught.value, ValueError)


def test_settings_cannot_be_changed_and_take_a_path_as_text() -> None:
    settings = Settings("file", "dev_data")  # type: ignore[arg-type]
    assert settings == Settings("file", Path("dev_data"))
    with pytest.raises(AttributeError):
        settings.backend = "sqlite"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("1.5h", 5400), ("2w", 1209600), ("0.5", 0.5), ("7d", 604800)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "d", "-1", "1y", "1e3", "\u0663", "1 d", "inf", ".5"])
def test_what_is_no_duration_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time"):
        parse_duration(text)


# --- Where the store is ---


def test_the_executor_and_open_store_go_where_the_environment_says(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMNIQ_BACKEND", "file")
    with PersistentExecutor(1) as executor:
        future = executor.submit(pow, 2, 5)
        assert future.result(30) == 32
    assert (folder / "omniq_data" / "completed" / f"{future.task_id}.json").is_symlink()
    with closing(open_store(create=False)) as store:
        assert store.get(future.task_id).result == "32"
        assert store.address == str(folder / "omniq_data")


@pytest.mark.parametrize("backend", ["sqlite", "file"])
@pytest.mark.parametrize("is_absolute", [True, False])
def test_relative_and_absolute_paths_mean_what_they_say(
    folder: Path, monkeypatch: pytest.MonkeyPatch, backend: str, is_absolute: bool
) -> None:
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv("OMNIQ_BACKEND", backend)
    monkeypatch.setenv("OMNIQ_BASE_DIR", str(folder / "a" / "data") if is_absolute else "../a/data")
    monkeypatch.chdir(elsewhere)
    with closing(open_store()):
        pass
    made = folder / "a" / "data" / ("omniq.db" if backend == "sqlite" else "omniq.json")
    assert made.exists()
    assert list(elsewhere.iterdir()) == []


def test_the_name_of_the_folder_does_not_choose_the_backend() -> None:
    with closing(open_store(Settings("file", Path("odd.db")))):
        assert Path("odd.db/tasks").is_dir()


def test_both_backends_can_share_a_folder() -> None:
    for backend in ("sqlite", "file", "sqlite"):
        with closing(open_store(Settings(backend))):  # type: ignore[arg-type]
            pass


def test_a_given_address_needs_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNIQ_BACKEND", "redis")
    with closing(open_store("mine.db")):
        assert Path("mine.db").exists()


def test_the_command_line_looks_where_the_environment_says() -> None:
    with closing(open_store(Settings("file", Path("there")))):
        pass
    assert omniq("status", OMNIQ_BACKEND="file", OMNIQ_BASE_DIR="there").returncode == 0
    assert omniq("status").returncode == 1
    assert omniq("status", "--store", "there", OMNIQ_BACKEND="sqlite").returncode == 0


def test_a_bad_variable_is_a_usage_error_of_the_command_line() -> None:
    done = omniq("status", OMNIQ_BACKEND="redis")
    assert (done.returncode, done.stdout) == (2, "")
    assert "OMNIQ_BACKEND" in done.stderr
    assert "'redis'" in done.stderr
