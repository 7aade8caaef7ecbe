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
from omniq_executor.code.versions import Version
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


def test_the_line_of_a_class_within_a_function_is_no_code(module: Any) -> None:
    """Since Python 3.13 its body stores it."""
    source = "def f(n):\n    class C:\n        value = {}\n    return C.value + n\n"
    digests = [
        Version(module(moved + source.format(value)).f, own=["edited"]).digests
        for moved, value in (("", 1), ("# moved\n", 1), ("\n", 3), ("\n\n", 4))
    ]
    assert digests[0] == digests[1]
    assert digests[2] != digests[3], "a value that happens to be the number of the line counts"


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
    [
        "edited.f",
        "functools.partial(edited.f, 1)",
        "edited.C",
        "edited.C(1).m",
        "edited.cached",
        "edited.wrapped",
        "edited.hidden",
    ],
)
def test_whatever_names_the_code_is_checked(make_executor: MakeExecutor, module: Any, name: str) -> None:
    source = (
        "import functools\ndef deep(n): return n + STEP\ndef f(n): return deep(n)\n"
        "class C:\n    def __init__(self, n): self.n = deep(n)\n    def m(self, n): return self.n + n\n"
        "    def __eq__(self, other): return self.n == other.n\n"
        "@functools.lru_cache\ndef cached(n): return deep(n)\n"
        "def wrap(f):\n    @functools.wraps(f)\n    def g(n): return f(n)\n    return g\n"
        "@wrap\ndef wrapped(n): return deep(n)\n"
        "def hide(f):\n    def g(n): return f(n)\n    return g\n"
        "@hide\ndef hidden(n): return deep(n)\n"
    )
    edited = module(source.replace("STEP", "1"))
    function = eval(name, {"edited": edited, "functools": functools})
    args = () if "partial" in name else (1,)
    executor = make_executor(1)
    assert executor.submit(function, *args).result(WAIT_S) == function(*args)
    module(source.replace("STEP", "2"), load=False)
    other = make_executor(1, queue="other")
    assert isinstance(other.submit(function, *args).exception(WAIT_S), CodeChanged)


def test_what_goes_along_with_arguments_is_of_the_function_and_of_the_code_as_it_is(
    make_executor: MakeExecutor, module: Any
) -> None:
    source = "class C:\n    def m(self): return STEP\n"
    edited = module(source.replace("STEP", "1"))
    executor = make_executor(1)
    for _ in range(2):
        assert executor.submit(calls.echo, edited.C()).result(WAIT_S).m() == 1
        assert executor.submit(repr, edited.C()).result(WAIT_S)
    edited = module(source.replace("STEP", "2"))
    assert executor.submit(calls.echo, edited.C()).result(WAIT_S).m() == 2
    module(source.replace("STEP", "3"), load=False)
    other = make_executor(1, queue="other")
    for _ in range(2):
        for function, name in (calls.echo, "calls.echo"), (repr, "builtins.repr"):
            with pytest.raises(CodeChanged, match=name):
                other.submit(function, edited.C()).result(WAIT_S)


def test_a_class_that_python_completes_when_it_is_first_called_is_the_same(
    make_executor: MakeExecutor, module: Any
) -> None:
    edited = module(
        "from typing import Protocol\nclass P(Protocol):\n    def m(self): ...\n"
        "class B:\n    def __init__(self): self.n = 1\nclass C(P, B):\n    def m(self): return self.n\n"
        "def f(n): return C().m() + n\n"
    )
    executor = make_executor(1)
    assert executor.submit(edited.f, 1).result(WAIT_S) == 2
    assert executor.submit(calls.echo, edited.C()).result(WAIT_S).m() == 1
    fresh = make_executor(1, queue="other")  # whose worker has called none
    assert fresh.submit(calls.echo, edited.C()).result(WAIT_S).m() == 1


def test_values_of_a_flag_that_are_put_together_make_no_other_class_of_it(module: Any) -> None:
    edited = module("import enum\nclass F(enum.Flag):\n    A = 1\n    B = 2\ndef f(x): return F.A | x\n")
    first = Version(edited.f).identity
    assert edited.F.A | edited.F.B
    assert Version(edited.f).identity == first


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
        module("def f(): return 22\n")
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


EDITED = """
import inner
import functools
RATE = "old"
TABLE = {"rate": "old"}
class Config:
    rate = "old"
def work(n): return inner.rate()
def with_rate(n): return RATE
def with_default(n, rate="old"): return rate
def with_helper(n): return with_default(n)
def with_table(n): return TABLE["rate"]
def with_config(n): return Config.rate
class Job:
    def run(self, n): return "old"
OPERATIONS = {"run": lambda n: "old"}
JOB = Job()
def with_operation(n): return OPERATIONS["run"](n)
def with_job(n): return JOB.run(n)
def call(function, n): return function(n)
def run(job, n): return job.run(n)
@functools.singledispatch
def dispatched(n): return "other"
@dispatched.register
def _(n: int): return "old"
class Methods:
    def given(self, rate, n): return rate
    by_default = functools.partialmethod(given, "old")
    @functools.cached_property
    def rate(self): return "old"
class Decorated:
    def __init__(self, function): functools.update_wrapper(self, function)
    def __call__(self, n): return self.__wrapped__(n)
@Decorated
def decorated(n): return "old"
def with_dispatch(n): return dispatched(n)
def with_partialmethod(n): return Methods().by_default(n)
def with_cached_property(n): return Methods().rate
def with_decorated(n): return decorated(n)
"""
WAYS = [
    "edited.with_rate", "edited.with_helper", "edited.with_table", "edited.with_config", "edited.with_operation",
    "edited.with_job", "edited.with_dispatch", "edited.with_partialmethod", "edited.with_cached_property",
    "edited.with_decorated",
    "lambda n: edited.RATE", "lambda n: edited.TABLE['rate']", "lambda n: edited.Config.rate",
    "lambda n: package.deep.rate()", "imports", "imports_from", "lambda n, work=edited.work: work(n)",
    "closed_over(edited.work)", "lambda n: operations['work'](n)", "lambda n: job.run(n)",
    "functools.partial(edited.call, edited.work)", "functools.partial(edited.run, edited.Job())",
    "edited.call, edited.work", "edited.run, edited.Job()", "call, edited.work",
]  # fmt: skip
HELD = """
import functools, os, sys
import edited, package.deep
from omniq_executor import PersistentExecutor
operations = {"work": edited.work}
job = edited.Job()
def call(function, n): return function(n)
def closed_over(function): return lambda n: function(n)
def imports(n):
    import edited
    return edited.work(n)
def imports_from(n):
    from other.lazy import rate
    return rate()
with PersistentExecutor(1) as executor:
    for way in sys.argv[2:]:
        function, *args = eval(f"({way},)")
        print(executor.submit(function, *args, 1).result(), flush=True)
    if sys.argv[1] == "die":
        os.kill(os.getpid(), 9)
"""


def test_nothing_of_the_old_code_is_left_after_an_edit_however_it_is_reached(script: Any) -> None:
    for name in ("package", "other"):
        (script.folder / name).mkdir()
        (script.folder / name / "__init__.py").touch()
    files = {
        "edited.py": EDITED,
        "inner.py": "def rate(): return 'old'\n",
        "package/deep.py": "def rate(): return 'old'\n",
        "other/lazy.py": "from other import lazier\ndef rate(): return lazier.rate()\n",
        "other/lazier.py": "def rate(): return 'old'\n",
    }
    for name, text in files.items():
        (script.folder / name).write_text(text)
    script.write(HELD)
    assert script.run("die", *WAYS).stdout.split() == ["old"] * len(WAYS)
    again = script.run("die", *WAYS)
    assert again.stdout.split() == ["old"] * len(WAYS)
    assert f"{len(WAYS)} of {len(WAYS)} calls are done" in again.stderr
    for name, text in files.items():
        (script.folder / name).write_text(text.replace("old", "new"))
    done = script.run("end", *WAYS)
    assert done.stdout.split() == ["new"] * len(WAYS), done.stderr


RELOADED = [
    "edited.with_helper", "edited.with_table", "edited.with_config", "edited.with_rate", "edited.with_job",
    "edited.with_operation", "edited.call, edited.work", "edited.run, edited.Job()",
    "functools.partial(edited.call, edited.work)",
]  # fmt: skip


@pytest.mark.parametrize("way", RELOADED)
def test_workers_do_not_keep_values_and_arguments_of_before_a_reload(
    make_executor: MakeExecutor, module: Any, way: str, context: Any
) -> None:
    old = EDITED.replace("inner.rate()", "'old'").replace("import inner", "")
    edited = module(old)
    names = {"edited": edited, "functools": functools}
    executor = make_executor(1, context)
    function, *args = eval(f"({way},)", names)
    assert executor.submit(function, *args, 1).result(WAIT_S) == "old"
    module(old.replace("old", "new"))
    function, *args = eval(f"({way},)", names)
    future = executor.submit(function, *args, 1)
    if context.get_start_method() == "fork":  # fresh workers have the old module too
        assert isinstance(future.exception(WAIT_S), CodeChanged)
    else:
        assert future.result(WAIT_S) == "new"


def test_what_a_worker_has_imported_on_the_way_is_known_by_what_its_file_was_then(
    make_executor: MakeExecutor, module: Any, context: Any
) -> None:
    module("RATE = 'old'\n", "inner")
    edited = module("import inner\ndef f(): return 1\ndef g(): return inner.RATE\n")
    executor = make_executor(1, context)
    assert executor.submit(edited.f).result(WAIT_S) == 1
    module("RATE = 'new'\n", "inner")
    future = executor.submit(edited.g)
    if context.get_start_method() == "fork":
        assert isinstance(future.exception(WAIT_S), CodeChanged)
    else:
        assert future.result(WAIT_S) == "new"


def test_names_that_mean_something_else_in_the_script_are_no_code(script: Any) -> None:
    (script.folder / "helper.py").write_text("def run(n): return n\ndef rate(): return 3\n")
    script.write(
        """
import helper
from helper import run, rate
from omniq_executor import PersistentExecutor
class Job:
    def run(self, n): return n
    helper = 2
def has_an_attribute_of_that_name(n): return Job().run(n) + Job().helper
def imports_it_itself(n):
    import helper as known
    from helper import rate
    return rate() + known.rate()
with PersistentExecutor(1) as executor:
    print(executor.submit(has_an_attribute_of_that_name, 1).result(), executor.submit(imports_it_itself, 1).result())
"""
    )
    done = script.run()
    assert done.stdout == "3 6\n", done.stderr


def test_what_calls_make_of_the_values_of_a_module_is_no_code(make_executor: MakeExecutor, module: Any) -> None:
    edited = module(
        "COUNT = 0\nLAST = None\nclass Made: pass\n"
        "def f():\n    global COUNT, LAST\n    COUNT += 1\n    LAST = Made()\n    return COUNT\n"
        "def g():\n    return COUNT, type(LAST).__name__\n"
    )
    executor = make_executor(1)
    assert [executor.submit(edited.f).result(WAIT_S) for _ in range(2)] == [1, 2]
    edited.COUNT = 7
    assert executor.submit(edited.g).result(WAIT_S) == (2, "Made")
