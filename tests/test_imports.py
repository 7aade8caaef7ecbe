"""Importing the package is cheap, and all that it promises is there."""

import importlib
import pickle
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

import omniq_executor
from omniq_executor import OmniqError, errors

ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, OmniqError)]


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    root = str(Path(omniq_executor.__file__).parents[1])
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r})\n{code}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def test_importing_the_package_loads_only_itself() -> None:
    assert run("import omniq_executor; print([name for name in sys.modules if name.startswith('omniq')])") == (
        "['omniq_executor']\n"
    )


@pytest.mark.parametrize("use", ["import omniq_executor", "from omniq_executor import OmniqError, WorkerCrashed, Task"])
def test_importing_the_package_loads_nothing_heavy(use: str) -> None:
    heavy = {"asyncio", "sqlite3", "aiosqlite", "click", "rich", "cloudpickle", "filelock"}
    assert run(f"{use}\nprint(sorted({heavy!r} & set(sys.modules)))") == "[]\n"


def test_importing_the_executor_loads_nothing_of_the_command_line_and_no_asyncio() -> None:
    heavy = {"asyncio", "click", "rich", "matplotlib"}
    code = f"from omniq_executor import PersistentExecutor, open_store\nprint(sorted({heavy!r} & set(sys.modules)))"
    assert run(code) == "[]\n"


def test_a_worker_loads_neither_the_store_nor_asyncio(tmp_path: Path) -> None:
    code = f"""
from omniq_executor import PersistentExecutor
def loaded():
    import sys
    names = "asyncio", "sqlite3", "filelock", "hashlib", "click", "omniq_executor.dispatch.dispatcher"
    return sorted(set(names) & set(sys.modules))
with PersistentExecutor(1, store={str(tmp_path / "s.db")!r}) as executor:
    print(executor.submit(loaded).result(30))
"""
    assert run(code) == "[]\n"


def test_a_forkserver_begins_to_start_before_most_of_the_package_is_imported(tmp_path: Path) -> None:
    code = f"""
from omniq_executor import executor
heavy = "sqlite3", "filelock", "json", "omniq_executor.dispatch.dispatcher", "omniq_executor.engines.local.worker"
begin = executor.warm_up
def warm_up(context):
    print(sorted(set(heavy) & set(sys.modules)))
    begin(context)
executor.warm_up = warm_up
executor.PersistentExecutor(1, store={str(tmp_path / "s.db")!r}).shutdown()
"""
    assert run(code) == "[]\n"


def test_a_forkserver_begins_to_start_before_the_store_is_opened(tmp_path: Path) -> None:
    (tmp_path / "s.db").mkdir()  # so that the store cannot be opened
    code = f"""
import os
from multiprocessing import forkserver, get_context
from omniq_executor import PersistentExecutor, StoreError
try:
    PersistentExecutor(1, get_context("forkserver"), store={str(tmp_path / "s.db")!r})
except StoreError:
    os.kill(forkserver._forkserver._forkserver_pid, 0)
    print("started")
"""
    assert run(code) == "started\n"


def test_a_forkserver_does_not_have_the_resource_tracker_start_beside_it(script: Any) -> None:
    """Issue 13: three processes started and imported at a time."""
    script.write("""
from multiprocessing import forkserver, get_context, resource_tracker
from omniq_executor import PersistentExecutor
with PersistentExecutor(1, get_context("forkserver")) as executor:
    print(forkserver._forkserver._forkserver_pid is None, resource_tracker._resource_tracker._fd)
    executor.submit(abs, -1).result(30)
    print(resource_tracker._resource_tracker._fd is None)
""")
    assert script.run().stdout == "False None\nFalse\n"


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_shared_memory_that_a_call_leaves_behind_ends_with_the_script(
    method: str, script: Any, wait_until: Any
) -> None:
    script.write(f"""
import multiprocessing
from multiprocessing.shared_memory import SharedMemory
from omniq_executor import PersistentExecutor
def leave():
    return SharedMemory(create=True, size=8).name
if __name__ == "__main__":
    with PersistentExecutor(1, multiprocessing.get_context("{method}"), max_tasks_per_child=1) as executor:
        names = [executor.submit(leave).result(30) for _ in range(2)]
    for name in names:  # the tracker is the script's, and outlives the workers
        SharedMemory(name).close()
    print(*names)
""")
    places = [Path("/dev/shm", name) for name in script.run().stdout.split()]
    assert len(places) == 2
    wait_until(lambda: not any(place.exists() for place in places))


def test_workers_of_a_forkserver_import_nothing_of_the_package_themselves(script: Any) -> None:
    script.write("""
import multiprocessing, os
from omniq_executor import PersistentExecutor
context = multiprocessing.get_context("forkserver")
with PersistentExecutor(1, context, max_tasks_per_child=1) as executor:
    print(len({executor.submit(os.getpid).result(30) for _ in range(3)}))
""")
    script._env["PYTHONPROFILEIMPORTTIME"] = "1"
    done = script.run()
    assert done.stdout == "3\n", done.stderr
    assert done.stderr.count(" omniq_executor.engines.local.worker\n") == 2  # by the script, and by the forkserver


def test_a_forkserver_finds_the_package_that_the_script_has(script: Any) -> None:
    (script.folder / "omniq_executor.py").write_text("print('another one')")
    (script.folder / "below").mkdir()
    script.write("""
import multiprocessing
from omniq_executor import PersistentExecutor
with PersistentExecutor(1, multiprocessing.get_context("forkserver")) as executor:
    print(executor.submit(abs, -1).result(30))
""")
    (script.folder / script.PATH).rename(script.folder / "below" / script.PATH)
    done = script.run(python=[f"below/{script.PATH}"])
    assert (done.stdout, done.stderr) == ("1\n", "")


@pytest.mark.parametrize("name", omniq_executor.__all__)
def test_every_public_name_is_there(name: str) -> None:
    value = getattr(omniq_executor, name)
    assert value.__name__ == name
    assert name in dir(omniq_executor)
    assert value.__doc__


def test_the_public_names_are_those_of_the_design() -> None:
    assert set(omniq_executor.__all__) >= {
        "PersistentExecutor", "DurableFuture", "open_store", "OmniqError", "WorkerCrashed", "TaskTimeout",
        "SerializationError", "StoreError", "StoreVersionError", "TaskNotFound",
    }  # fmt: skip
    namespace: dict[str, object] = {}
    exec("from omniq_executor import *", namespace)
    assert set(omniq_executor.__all__) <= namespace.keys()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Nonsense"):
        omniq_executor.Nonsense  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError, match="Nonsense"):
        exec("from omniq_executor import Nonsense")


def test_the_version_is_there() -> None:
    assert omniq_executor.__version__.count(".") >= 2


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_errors_can_be_pickled(kind: type[OmniqError]) -> None:
    error = kind("what happened, and to what")
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(error, protocol))
        assert type(again) is kind
        assert (again.args, str(again)) == (error.args, "what happened, and to what")
    assert getattr(omniq_executor, kind.__name__) is kind


def test_errors_are_caught_by_what_callers_of_process_pools_catch() -> None:
    assert issubclass(errors.WorkerCrashed, BrokenProcessPool)
    assert issubclass(errors.PoolBroken, BrokenProcessPool)
    assert issubclass(errors.TaskTimeout, TimeoutError)
    assert issubclass(errors.SerializationError, pickle.PicklingError)
    assert issubclass(errors.TaskNotFound, LookupError)
    assert issubclass(errors.StoreVersionError, errors.StoreError)


def test_every_module_can_be_imported_by_itself() -> None:
    root = Path(omniq_executor.__file__).parent
    names = [
        ".".join(["omniq_executor", *path.relative_to(root).with_suffix("").parts]).removesuffix(".__init__")
        for path in root.rglob("*.py")
        if path.name != "__main__.py" and path.name not in ("dask.py", "ray.py")  # which need what extras bring
    ]
    assert len(names) > 10
    code = "import importlib, subprocess\n" + "".join(f"importlib.import_module({name!r})\n" for name in sorted(names))
    assert run(code + "print('all')") == "all\n"
    assert importlib.import_module("omniq_executor.model.task")
