"""Code that goes by name is code that runs: a worker that has imported another version does not run it."""

import functools
import importlib
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import calls
import pytest

from omniq_executor import CodeChanged, PersistentExecutor, Status
from omniq_executor.model.functions import Functions

WAIT_S = 30.0
MakeExecutor = Callable[..., PersistentExecutor]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Writes a module, and imports it, or imports it again."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    names = []

    def write(source: str, name: str = "edited", load: bool = True) -> Any:
        (tmp_path / f"{name}.py").write_text(source)
        importlib.invalidate_caches()
        names.append(name)
        if not load:
            return None
        if name in sys.modules:
            return importlib.reload(sys.modules[name])
        return importlib.import_module(name)

    yield write
    for name in names:
        sys.modules.pop(name, None)


SCRIPT = """
import importlib, multiprocessing, sys
def write(source, name="edited"):
    with open(f"{{name}}.py", "w") as file:
        file.write(source)
    importlib.invalidate_caches()
write("def helper(): return 1", "other")
write("import other\\ndef f(): return 1\\ndef g(): return other.helper()\\ndef h(): return 1")
import edited, other
from omniq_executor import CodeChanged, PersistentExecutor

def outcome(function):
    try:
        return executor.submit(function).result(30)
    except CodeChanged as error:
        return type(error).__name__ + (" edited.py" if "edited.py here" in str(error) else "")

with PersistentExecutor(2, multiprocessing.get_context({method!r})) as executor:
    print([outcome(edited.f) for _ in range(4)], outcome(edited.g), outcome(edited.h), outcome(lambda: edited.f()))
    write("import other\\ndef f(): return 222\\ndef g(): return other.helper()\\ndef h(): return 1")
    importlib.reload(edited)
    print([outcome(edited.f) for _ in range(4)], outcome(edited.g), outcome(lambda: edited.f()))
    write("def helper(): return 333", "other")
    importlib.reload(other)
    print(outcome(edited.g), outcome(edited.f), outcome(edited.h))
    write("def f(): return 222\\ndef new(): return 4444\\ndef h(): return 1")
    importlib.reload(edited)
    print(outcome(edited.new), outcome(edited.h), len(executor._dispatcher.engine.pids()) <= 2)
"""


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_what_is_reloaded_runs_in_fresh_workers(script: Any, method: str) -> None:
    script.write(SCRIPT.format(method=method))
    done = script.run()
    assert done.stdout.splitlines() == [
        "[1, 1, 1, 1] 1 1 1",
        "[222, 222, 222, 222] 1 222",
        "333 222 1",
        "4444 1 True",
    ], done.stderr


def test_with_fork_fresh_workers_have_the_old_code_too_and_the_calls_fail(script: Any) -> None:
    script.write(SCRIPT.format(method="fork"))
    done = script.run()
    assert done.stdout.splitlines()[:3] == [
        "[1, 1, 1, 1] 1 1 1",
        f"{['CodeChanged edited.py'] * 4} 1 CodeChanged edited.py",
        "CodeChanged CodeChanged edited.py 1",
    ], done.stderr


def test_a_worker_that_comes_after_an_edit_of_the_file_runs_nothing_of_it(
    make_executor: MakeExecutor, module: Any, context: Any
) -> None:
    edited = module("def f(): return 1\ndef die():\n    import os\n    os._exit(1)\n")
    executor = make_executor(1, context, crash_retries=0)
    assert executor.submit(edited.f).result(WAIT_S) == 1
    module("def f(): return 22\ndef die():\n    import os\n    os._exit(1)\n", load=False)
    assert executor.submit(edited.die).exception(WAIT_S) is not None
    future = executor.options(max_retries=3).submit(edited.f)
    if context.get_start_method() == "fork":  # they have what was imported here
        assert future.result(WAIT_S) == 1
        return
    error = future.exception(WAIT_S)
    assert isinstance(error, CodeChanged)
    assert "another version of edited.f" in str(error)
    assert str(Path(edited.__file__)) in str(error)
    task = future.task()
    assert (task.status, task.attempts) == (Status.FAILED, 1)
    assert executor.submit(calls.square, 3).result(WAIT_S) == 9


def test_neighbours_of_what_has_changed_are_not_touched(make_executor: MakeExecutor, module: Any) -> None:
    edited = module("def f(n): return n\n")
    executor = make_executor(2, max_tasks_per_child=7)
    assert executor.submit(edited.f, 0).result(WAIT_S) == 0
    old = [executor.submit(calls.square, n) for n in range(50)]
    edited = module("def f(n): return -n\n")
    new = list(executor.map(edited.f, range(50), timeout=WAIT_S))
    mixed = [executor.submit((calls.square, edited.f)[n % 2], n) for n in range(50)]
    assert new == [-n for n in range(50)]
    assert [future.result(WAIT_S) for future in old] == [n * n for n in range(50)]
    assert [future.result(WAIT_S) for future in mixed] == [-n if n % 2 else n * n for n in range(50)]


def test_what_no_worker_has_any_more_fails_and_nothing_hangs(make_executor: MakeExecutor, module: Any) -> None:
    edited = module("def f(n): return n\n")
    executor = make_executor(2)
    module("def f(n): return n + 1\n", load=False)
    futures = [executor.submit((calls.square, edited.f)[n % 2], n) for n in range(20)]
    for n, future in enumerate(futures):
        if n % 2:
            assert isinstance(future.exception(WAIT_S), CodeChanged)
        else:
            assert future.result(WAIT_S) == n * n


def test_values_are_no_code(make_executor: MakeExecutor, module: Any) -> None:
    edited = module(
        "STATE = {}\ndef f(n, seen=[]):\n    seen.append(n)\n    return len(seen), len(STATE)\n"
        "class C:\n    count = 0\n    def m(self): return C.count\n"
    )
    executor = make_executor(1)
    edited.f(1)
    edited.STATE["a"] = 1
    edited.C.count = 5
    assert executor.submit(edited.f, 1).result(WAIT_S) == (1, 0)
    assert executor.submit(edited.C().m).result(WAIT_S) == 0


def test_docstrings_and_lines_are_no_code(make_executor: MakeExecutor, module: Any) -> None:
    edited = module('def f():\n    "old"\n    return 1\n')
    module('# moved\n\ndef f():\n    "new text"\n    return 1\n', load=False)
    assert make_executor(1).submit(edited.f).result(WAIT_S) == 1


def test_a_function_that_was_replaced_here_alone_is_not_run(
    make_executor: MakeExecutor, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited = module("def helper(): return 1\ndef f(): return helper()\n")
    executor = make_executor(1)
    assert executor.submit(edited.f).result(WAIT_S) == 1
    with monkeypatch.context() as patched:
        patched.setattr(edited, "helper", lambda: 2)
        assert isinstance(executor.submit(edited.f).exception(WAIT_S), CodeChanged)
    assert executor.submit(edited.f).result(WAIT_S) == 1


@pytest.mark.parametrize(
    "name",
    ["edited.f", "functools.partial(edited.f, 1)", "edited.C", "edited.C(1).m", "edited.cached", "edited.wrapped"],
)
def test_whatever_names_the_code_is_checked(make_executor: MakeExecutor, module: Any, name: str) -> None:
    source = (
        "import functools\ndef deep(n): return n + STEP\ndef f(n): return deep(n)\n"
        "class C:\n    def __init__(self, n): self.n = deep(n)\n    def m(self, n): return self.n + n\n"
        "    def __eq__(self, other): return self.n == other.n\n"
        "@functools.lru_cache\ndef cached(n): return deep(n)\n"
        "def wrap(f):\n    @functools.wraps(f)\n    def g(n): return f(n)\n    return g\n"
        "@wrap\ndef wrapped(n): return deep(n)\n"
    )
    edited = module(source.replace("STEP", "1"))
    function = eval(name, {"edited": edited, "functools": functools})
    args = () if "partial" in name else (1,)
    executor = make_executor(1)
    assert executor.submit(function, *args).result(WAIT_S) == function(*args)
    module(source.replace("STEP", "2"), load=False)
    other = make_executor(1, queue="other")
    assert isinstance(other.submit(function, *args).exception(WAIT_S), CodeChanged)


def test_workers_of_other_programs_check_it_too(
    store: Path, module: Any, start_worker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited = module("def f(): return 1\n")
    start_worker("--store", store, "-n", 1)
    with PersistentExecutor(store=store, engine="external") as executor:
        assert executor.submit(edited.f).result(WAIT_S) == 1
        module("def f(): return 22\n", load=False)
        assert executor.submit(edited.f).result(WAIT_S) == 1  # it has not heard of the edit
        edited = module("def f(): return 22\n")
        assert executor.submit(edited.f).result(WAIT_S) == 22
        module("def f(): return 1\n", load=False)
        importlib.reload(edited)
        module("def f(): return 333\n", load=False)
        assert isinstance(executor.submit(edited.f).exception(WAIT_S), CodeChanged)


def test_what_is_installed_is_not_checked_and_costs_nothing() -> None:
    for function in (pickle.dumps, functools.reduce, pytest.raises, len):
        assert Functions().describe(function).pickle == pickle.dumps(function, 5)


def test_code_that_a_script_names_is_checked_where_the_version_of_python_differs(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited = module("def f(): return 1\n")
    monkeypatch.setattr("omniq_executor.code.versions._PYTHON", "another-1")
    pickled = Functions().describe(edited.f).pickle
    monkeypatch.undo()
    sys.path.insert(0, str(Path(edited.__file__).parent))
    try:
        assert pickle.loads(pickled) is edited.f
        module("def f(): return 22\n", load=False)
        with pytest.raises(CodeChanged, match="edited"):
            pickle.loads(pickled)
    finally:
        sys.path.pop(0)


@pytest.mark.parametrize("edit", ["FACTOR = 3", "return n - FACTOR", "class Scale:\n    def by(self, n): return n"])
@pytest.mark.parametrize("kind", ["script", "imported"])
def test_a_call_is_not_resumed_whose_helper_in_another_module_has_changed(script: Any, edit: str, kind: str) -> None:
    helper = (
        "FACTOR = 2\nTABLE = {}\ndef scaled(n):\n    TABLE[n] = n\n    return n + FACTOR\n"
        "class Scale:\n    def by(self, n): return 2 * n\n"
    )
    (script.folder / "helper.py").write_text(helper)
    (script.folder / "middle.py").write_text("import helper\ndef work(n): return helper.scaled(helper.Scale().by(n))\n")
    script.write(
        f"""
import os, sys
from omniq_executor import PersistentExecutor
import middle
def own(n): return middle.work(n)
with PersistentExecutor(1) as executor:
    futures = [executor.submit(own if {kind!r} == "script" else middle.work, n) for n in range(3)]
    print([future.result() for future in futures], [future.resumed for future in futures], flush=True)
    if len(sys.argv) > 1:
        os.kill(os.getpid(), 9)
"""
    )
    assert script.run("die").stdout == "[2, 4, 6] [False, False, False]\n"
    (script.folder / "helper.py").write_text("# a comment\n" + helper)
    assert script.run("die").stdout == "[2, 4, 6] [True, True, True]\n"
    old = {"FACTOR = 3": "FACTOR = 2", "return n - FACTOR": "return n + FACTOR"}
    before = old.get(edit, "class Scale:\n    def by(self, n): return 2 * n")
    assert before in helper
    (script.folder / "helper.py").write_text(helper.replace(before, edit))
    assert script.run().stdout.endswith("[False, False, False]\n")


def test_a_run_is_not_continued_whose_initializer_calls_a_helper_that_has_changed(script: Any) -> None:
    (script.folder / "helper.py").write_text("def scale(): return 2\n")
    script.write(
        """
import os, sys
from omniq_executor import PersistentExecutor
import helper
SCALE = None
def prepare():
    global SCALE
    SCALE = helper.scale()
def work(n): return n * SCALE
with PersistentExecutor(1, initializer=prepare) as executor:
    future = executor.submit(work, 1)
    print(future.result(), future.resumed, flush=True)
    if len(sys.argv) > 1:
        os.kill(os.getpid(), 9)
"""
    )
    assert script.run("die").stdout == "2 False\n"
    assert script.run("die").stdout == "2 True\n"
    (script.folder / "helper.py").write_text("def scale(): return 3\n")
    assert script.run().stdout == "3 False\n"
