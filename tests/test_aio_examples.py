"""The seed's examples run as they stand there, but for the package's name, and so do those of docs/async.md."""

import ast
import asyncio
import os
import re
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

import omniq_executor
from omniq_executor import AsyncOmniQ, PersistentExecutor

DOCS = Path(__file__).parents[1] / "docs"

MIGRATION = """
import asyncio
from pathlib import Path
from omniq import AsyncOmniQ
from omniq.config import Settings

async def migrate_file_to_sqlite():
    # Source: File backend
    file_omniq = AsyncOmniQ(Settings(
        backend="file",
        base_dir=Path("./file_data")
    ))

    # Destination: SQLite backend
    sqlite_omniq = AsyncOmniQ(Settings(
        backend="sqlite",
        base_dir=Path("./sqlite_data")
    ))

    # Migrate all tasks
    tasks = await file_omniq.list_tasks()
    print(f"Migrating {len(tasks)} tasks...")

    for task in tasks:
        # Re-enqueue to SQLite backend
        task_id = await sqlite_omniq.enqueue(
            task["func_path"],
            task["args"],
            task["kwargs"],
            eta=task.get("eta"),
            interval=task.get("interval"),
            max_retries=task.get("max_retries", 3),
            timeout=task.get("timeout")
        )

        print(f"Migrated: {task['id']} -> {task_id}")

    print("Migration complete!")
    print(f"Source: ./file_data/")
    print(f"Destination: ./sqlite_data/")

if __name__ == "__main__":
    asyncio.run(migrate_file_to_sqlite())
"""

DEVELOPMENT = """
# Development: easy debugging
settings = Settings(backend="file", base_dir="./dev_data")
"""

PRODUCTION = """
# Production: performance and concurrency
settings = Settings(backend="sqlite", base_dir="/var/lib/omniq")
"""

SELECTION = """
import os

# Allow flexible backend switching
os.environ["OMNIQ_BACKEND"] = "sqlite"  # or "file"
omniq = AsyncOmniQ.from_env()
"""

MONITORING = """
import time

# Check operation performance
start = time.time()
tasks = await omniq.list_tasks()
elapsed = time.time() - start

print(f"Listed {len(tasks)} tasks in {elapsed:.3f}s")

if elapsed > 1.0:
    print("Warning: slow storage operations")
    print("Consider migrating to SQLite backend for better performance")
"""


async def execute(source: str, names: dict[str, Any]) -> None:
    """Run a text that may await, as the prompt of `python -m asyncio` does."""
    code = compile(source, "<example>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(code, names)
    if isinstance(result, Coroutine):
        await result


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and an environment that says nothing and is put back."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("OMNIQ_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OMNIQ_BASE_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("OMNIQ_BACKEND", "file")
    return tmp_path


def test_the_migration_script_moves_what_there_is(script: Any, folder: Path) -> None:
    async def fill() -> None:
        async with AsyncOmniQ(folder / "file_data") as omniq:
            await omniq.enqueue("math.factorial", [5])
            await omniq.enqueue("math.sqrt", [4.0], eta="2100-01-01T00:00:00Z", interval=60, max_retries=2, timeout=9.5)
            await omniq.enqueue("operator.add", [(1,), (2,)])  # tuples, which JSON does not keep
            await omniq.enqueue("builtins.dict", [], {"option": True})

    asyncio.run(fill())
    script.write(MIGRATION.replace("from omniq", "from omniq_executor"))
    done = script.run(python=["-W", "error", "script.py"])
    assert (done.stderr, done.returncode) == ("", 0)
    assert re.sub("task-[0-9a-z]+", "ID", done.stdout).splitlines() == [
        "Migrating 4 tasks...", *["Migrated: ID -> ID"] * 4, "Migration complete!", "Source: ./file_data/",
        "Destination: ./sqlite_data/",
    ]  # fmt: skip

    async def look() -> tuple[list[Any], list[Any]]:
        async with AsyncOmniQ(folder / "file_data") as old, AsyncOmniQ(folder / "sqlite_data/omniq.db") as new:
            before, after = await old.list_tasks(), await new.list_tasks()
            async with new.worker(1):
                return [before, after], [await new.get_result(after[i]["id"]) for i in (0, 2, 3)]

    both, results = asyncio.run(look())
    for task in (*both[0], *both[1]):
        del task["id"], task["enqueued_at"]
    assert both[0] == both[1]
    assert results == [120, (1, 2), {"option": True}]


def test_the_settings_of_the_best_practices(folder: Path) -> None:
    names = vars(omniq_executor).copy() | {"Settings": omniq_executor.Settings}
    asyncio.run(execute(PRODUCTION, names))
    assert names["settings"].address.path == Path("/var/lib/omniq/omniq.db")
    asyncio.run(execute(DEVELOPMENT, names))
    (task_id,) = [asyncio.run(AsyncOmniQ(names["settings"]).enqueue("my_module.my_function", [1, 2, 3]))]
    assert (folder / "dev_data" / "tasks" / f"{task_id}.json").exists()


def test_the_backend_is_selected_by_the_environment_and_monitored(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with PersistentExecutor(1, store=folder / "data/omniq.db") as executor:
        list(executor.map(abs, range(7)))
    names: dict[str, Any] = {"AsyncOmniQ": AsyncOmniQ}

    async def both() -> None:
        await execute(SELECTION, names)
        await execute(MONITORING, names)

    asyncio.run(both())
    assert re.match(r"Listed 7 tasks in \d+\.\d{3}s\n", capsys.readouterr().out)
    assert os.environ.pop("OMNIQ_BACKEND") == "sqlite"


def test_the_examples_of_the_docs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    examples = re.findall(r"```python\n(.*?)```", (DOCS / "async.md").read_text(), re.DOTALL)
    assert len(examples) == 4

    async def all_of_them() -> None:
        names: dict[str, Any] = {"__name__": "examples"}
        for example in examples:
            await execute(example, names)
        async with AsyncOmniQ("runs/mail.db") as omniq:
            assert (await omniq.stats())["RUNNING"] == 0

    asyncio.run(all_of_them())
    printed = capsys.readouterr().out
    assert printed.startswith("4.0\n")
    assert " is PENDING, and is not waited for\n" in printed
    assert "{'PENDING': 3, 'RUNNING': 0, 'COMPLETED': 2, 'FAILED': 0, 'CANCELLED': 0}\n" in printed
    assert sys.modules.get("my_module") is None
