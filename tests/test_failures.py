"""What failed, in groups: by the exception and the line of the user's own code, in Python and on the command line."""

import json
import os
import subprocess
import sys
import textwrap
import traceback
from pathlib import Path
from typing import Any

import pytest

import omniq_executor
from omniq_executor import FailureGroup, Failures, PersistentExecutor
from omniq_executor.model.failures import Place, group_of, groups_of, place_of
from omniq_executor.model.task import ErrorInfo, FailedCall

FAILING = """
import json

class Bad(Exception):
    pass

def helper(text):
    return int(text)

def parse(text):
    return helper(text)

def load(text):
    return json.loads(text)

def chained(text):
    try:
        helper(text)
    except ValueError as error:
        raise Bad("<b>bad</b>\\nTraceback (most recent call last):\\n  File 'x'") from error

def fine_when(path):
    with open(path) as file:
        return file.read()
"""


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: Any) -> Any:
    """A module of the user's own."""
    (tmp_path / "failing.py").write_text(FAILING)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("failing", None)
    import failing  # type: ignore[import-not-found]

    return failing


def error_of(code: str, type: str = "ValueError", message: str = "no") -> ErrorInfo:
    return ErrorInfo(type, message, code)


def call(id: int, error: ErrorInfo, at: int = 0, function: str = "etl.parse") -> FailedCall:
    return FailedCall(id, 1, "etl", function, at or id, error)


WORKER = f'  File "{Path(omniq_executor.__file__).parent}/engines/local/worker.py", line 1, in _run_chunk\n    call()\n'
LINES = {
    "an own line": (
        f'Traceback (most recent call last):\n{WORKER}  File "/home/me/etl.py", line 7, in parse\n    int(text)\n'
        "    ^^^\nValueError: no\n",
        Place("/home/me/etl.py", 7, "parse", "int(text)"),
    ),
    "an own line that calls a library": (
        f'Traceback (most recent call last):\n{WORKER}  File "/home/me/etl.py", line 7, in parse\n    loads(text)\n'
        '  File "/usr/lib/python3.11/json/__init__.py", line 346, in loads\n    return decode(s)\n'
        '  File "/x/lib/python3.12/site-packages/simple/json.py", line 3, in f\n    raise\nValueError: no\n',
        Place("/home/me/etl.py", 7, "parse", "loads(text)"),
    ),
    "a library's, for want of an own": (
        f'Traceback (most recent call last):\n{WORKER}  File "/usr/lib/python3.11/json/decoder.py", line 355, in raw\n'
        "    raise JSONDecodeError\nValueError: no\n",
        Place("/usr/lib/python3.11/json/decoder.py", 355, "raw", "raise JSONDecodeError"),
    ),
    "none, for want of any": (f"Traceback (most recent call last):\n{WORKER}ValueError: no\n", None),
    "none, for want of a traceback": ("", None),
    "the error's, and not that of its cause": (
        'Traceback (most recent call last):\n  File "/home/me/etl.py", line 3, in helper\n    1 / 0\nKeyError\n'
        "\nThe above exception was the direct cause of the following exception:\n\n"
        'Traceback (most recent call last):\n  File "/home/me/etl.py", line 9, in parse\n    raise\nValueError: no\n',
        Place("/home/me/etl.py", 9, "parse", "raise"),
    ),
    "one whose file is of another worker's package": (
        'Traceback (most recent call last):\n  File "/srv/omniq_executor/engines/local/worker.py", line 9, in run\n'
        '    call()\n  File "<string>", line 1, in <module>\nValueError: no\n',
        Place("<string>", 1, "<module>"),
    ),
    "a group's own": (
        '  + Exception Group Traceback (most recent call last):\n  |   File "/home/me/etl.py", line 5, in parse\n'
        "  |     raise ExceptionGroup('no', [error])\n  | ExceptionGroup: no (1 sub-exception)\n"
        '  +-+---------------- 1 ----------------\n    | Traceback (most recent call last):\n'
        '    |   File "/home/me/etl.py", line 3, in helper\n    |     int(text)\n    | ValueError: no\n',
        Place("/home/me/etl.py", 5, "parse", "raise ExceptionGroup('no', [error])"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", LINES)
def test_the_line_that_an_error_came_from_is(what: str) -> None:
    text, place = LINES[what]
    assert place_of(error_of(text)) == place


def test_a_message_that_quotes_a_traceback_does_not_lead_astray() -> None:
    message = 'failed:\nTraceback (most recent call last):\n  File "/other.py", line 1, in other\n    x()\nKeyError: 1'
    text = 'Traceback (most recent call last):\n  File "/home/me/etl.py", line 4, in run\n    raise\n'
    text += f"ValueError: {message}\n"
    assert place_of(error_of(text, message=message)) == Place("/home/me/etl.py", 4, "run", "raise")


def test_a_real_group_of_exceptions_is_read_as_it_is_written() -> None:
    try:
        raise ExceptionGroup("no", [ValueError("one"), ExceptionGroup("deep", [KeyError("two")])])
    except ExceptionGroup as error:
        found = place_of(error_of(traceback.format_exc(), "ExceptionGroup", str(error)))
    assert found is not None
    assert found[:1] + found[2:3] == (__file__, "test_a_real_group_of_exceptions_is_read_as_it_is_written")


def at_line(number: int, type: str = "ValueError", file: str = "/home/me/etl.py") -> ErrorInfo:
    text = f'Traceback (most recent call last):\n  File "{file}", line {number}, in parse\n    x\n{type}: no\n'
    return ErrorInfo(type, "no", text, None, f"parse({number})")


def test_failures_are_grouped_by_type_and_line_the_largest_first() -> None:
    crashed = ErrorInfo("omniq_executor.errors.WorkerCrashed", "gone", "")
    calls = [
        call(1, at_line(3)),
        call(2, at_line(4), at=50),
        call(3, at_line(4), at=40),
        call(4, at_line(4, "KeyError")),
        call(5, crashed),
        call(6, at_line(4), at=45, function="etl.also"),
        call(7, crashed, function="etl.other"),
    ]
    found = groups_of(calls)
    shown = [(it.type, it.place and it.place.line, it.count, it.first, it.last, it.example.id) for it in found]
    assert shown[0] == ("ValueError", 4, 3, 40, 50, 6)
    assert sorted(shown[1:]) == [
        ("KeyError", 4, 1, 4, 4, 4),
        ("ValueError", 3, 1, 1, 1, 1),
        ("omniq_executor.errors.WorkerCrashed", None, 1, 5, 5, 5),
        ("omniq_executor.errors.WorkerCrashed", None, 1, 7, 7, 7),
    ]
    assert found[0].functions == {"etl.parse": 2, "etl.also": 1}
    assert found[0].numbers == [2, 3, 6]
    assert len({group.id for group in found}) == len(found) == 5
    assert found.calls == 7
    assert [group_of(one) for one in calls if one.id in found[0].numbers] == [found[0].id] * 3


def test_a_group_of_a_cell_is_the_same_in_another_kernel() -> None:
    one, other = (at_line(2, file=f"/tmp/ipykernel_{pid}/123456.py") for pid in (17, 4711))
    (group,) = groups_of([call(1, one), call(2, other)])
    assert (group.count, group.where) == (2, "line 2 of a cell, in parse")


def test_many_failures_take_the_memory_of_their_ids_alone() -> None:
    import tracemalloc

    error = at_line(3)
    tracemalloc.start()
    try:
        (group,) = groups_of(call(id, error._replace(message="x" * 1000)) for id in range(1, 20_001))
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert group.count == 20_000
    assert size < 20_000 * 24  # bytes


def test_what_a_message_holds_steers_no_terminal() -> None:
    (group,) = groups_of([call(1, at_line(3)._replace(message="\x1b[31mred\x07\nand more"))])
    assert "\\x1b[31mred\\x07 and more" in repr(group)
    assert "\x1b" not in repr(group)


def test_what_a_notebook_shows_of_failures_is_bounded_and_without_control_characters() -> None:
    message = "\x1b[31m" + "long " * 20_000
    error = at_line(3)._replace(message=message, traceback=f"{at_line(3).traceback}{message}", call="f('\x1b')")
    found = groups_of([call(1, error)])
    assert "\x1b" not in repr(found)
    html = found._repr_html_()
    assert len(html) < 10_000
    assert "\x1b" not in html
    assert all(text in html for text in ("line 3, in parse", "\\x1b[31mlong", " characters …"))


def test_an_empty_store_has_no_failures() -> None:
    assert (len(Failures([])), repr(Failures([])), Failures([]).calls) == (0, "no call has failed", 0)
    assert "<table" not in Failures([])._repr_html_()


@pytest.mark.each_store
def test_failures_of_a_run_are_shown_and_a_group_is_retried(
    make_executor: Any, store: Path, failing: Any, tmp_path: Path
) -> None:
    executor: PersistentExecutor = make_executor()
    list(executor.map(failing.parse, ["1", "x", "y"], return_exceptions=True))
    list(executor.map(failing.fine_when, [str(tmp_path / "there")], return_exceptions=True))
    executor.submit(int, "seven").exception()
    found = executor.failures()
    assert [(group.type, group.count) for group in found] == [
        ("ValueError", 2), ("ValueError", 1), ("FileNotFoundError", 1),
    ]  # fmt: skip
    assert found[0].place == Place(str(tmp_path / "failing.py"), 8, "helper", "return int(text)")
    assert found[0].example.error.call == "parse('y')"
    assert (found[1].place, found[1].where) == (None, "a call of builtins.int")
    (tmp_path / "there").write_text("now")
    (future,) = found[2].retry()
    assert future.result(30) == "now"
    assert [group.count for group in executor.failures()] == [2, 1]
    executor.shutdown()
    assert executor.failures().calls == 3
    with pytest.raises(RuntimeError):
        found[0].retry()


def test_failures_of_other_runs_are_not_this_ones(make_executor: Any, failing: Any) -> None:
    with make_executor(resume="never") as first:
        first.submit(failing.parse, "x").exception()
    second = make_executor(resume="never")
    assert (first.failures().calls, second.failures().calls) == (1, 0)


def test_shown_failures_are_escaped_and_have_no_script(make_executor: Any, failing: Any) -> None:
    executor: PersistentExecutor = make_executor()
    executor.submit(failing.chained, "<script>alert(1)</script>").exception()
    found = executor.failures()
    (group,) = found
    assert isinstance(group, FailureGroup)
    assert group.place is not None
    assert (group.place.function, group.example.error.call) == ("chained", "chained('<script>alert(1)</script>')")
    for html in found._repr_html_(), group._repr_html_():
        assert "<script" not in html
        assert "<b>bad" not in html
        assert "&lt;script&gt;alert(1)" in html
        assert "color:" not in html
    assert "chained('<script>alert(1)</script>')" in repr(found)
    assert "<b>bad</b> Traceback" in repr(group)


def test_what_the_worker_could_not_say_of_a_call_the_store_says(make_executor: Any) -> None:
    executor: PersistentExecutor = make_executor(crash_retries=0)
    executor.submit(os._exit, 3).exception()
    (group,) = executor.failures()
    assert (group.place, group.example.error.call) == (None, f"{os._exit.__module__}._exit [3]")


class Shop:
    """A store with failures of two queues, and the command line on it."""

    def __init__(self, folder: Path, name: str, failing: Any) -> None:
        self.folder = folder
        self.name = name
        with PersistentExecutor(1, store=folder / name, queue="first") as executor:
            list(executor.map(failing.parse, ["x", "y"], return_exceptions=True))
            self.late = executor.submit(failing.fine_when, str(folder / "there"))
        with PersistentExecutor(1, store=folder / name, queue="second") as executor:
            self.other = executor.submit(failing.parse, "z")

    def run(self, *args: str, status: int = 0, said: str = "") -> str:
        command = [sys.executable, "-m", "omniq_executor", *args, "--store", self.name]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (status, said)
        return done.stdout

    def json(self, *args: str, status: int = 0) -> list[Any]:
        return [json.loads(line) for line in self.run(*args, "--json", status=status).splitlines()]


@pytest.fixture(params=["a.db", "a"])
def shop(request: pytest.FixtureRequest, tmp_path: Path, failing: Any) -> Shop:
    return Shop(tmp_path, request.param, failing)


@pytest.mark.once
def test_the_command_line_shows_groups_and_retries_one(shop: Shop) -> None:
    parsed, late = shop.json("failures")
    assert (parsed["type"], parsed["count"], parsed["functions"]) == ("ValueError", 3, {"failing.parse": 3})
    assert (parsed["place"]["line"], parsed["example"]["id"]) == (8, shop.other.task_id)
    assert late["example"]["id"] == shop.late.task_id
    assert [group["count"] for group in shop.json("failures", "--queue", "second")] == [1]
    assert [group["count"] for group in shop.json("failures", "--function", "fine_when")] == [1]
    assert [group["count"] for group in shop.json("failures", "--run", "1")] == [2, 1]
    assert len(shop.json("failures", "--since", "1h")) == 2
    assert shop.json("failures", "--since", "2999-01-01") == []
    text = shop.run("failures")
    assert text.startswith("4 calls have failed, in 2 ways\n\n3 x ValueError: failing.py:8, in helper\n")
    assert f"such as {shop.other.task_id}: parse('z')\n" in text
    assert text.endswith(f"omniq-executor retry --group {parsed['group']} has those of a group run again\n")

    retried = shop.run("retry", "--group", parsed["group"], "--queue", "second")
    assert retried == "1 task PENDING again\n"
    assert [group["count"] for group in shop.json("failures")] == [2, 1]
    left = ", ".join(sorted(group["group"] for group in shop.json("failures")))
    nothing = "0 tasks PENDING again\n"
    said = f"no failure is of a group '00000000': the groups are {left}\n"
    assert shop.run("retry", "--group", "00000000", status=1, said=said) == nothing
    said = "no failure of the queue 'third' is of a group '00000000': no call has failed\n"
    assert shop.run("retry", "--group", "00000000", "--queue", "third", status=1, said=said) == nothing
    said = "no call is of a function 'zz': there are calls of failing.fine_when, failing.parse\n"
    for command in "failures", "list":
        shop.run(command, "--function", "zz", said=said)
        shop.run(command, "--function", "parse", "--since", "2999-01-01")


@pytest.mark.once
def test_nothing_is_unpickled_to_show_failures(tmp_path: Path) -> None:
    code = """
        import pathlib, omniq_executor
        class Trap(Exception):
            def __reduce__(self):
                return pathlib.Path.touch, (pathlib.Path("unpickled"),)
        def spring(): raise Trap("snap")
        with omniq_executor.PersistentExecutor(1, store="x.db") as executor:
            executor.submit(spring)
    """
    (tmp_path / "job.py").write_text(textwrap.dedent(code))
    subprocess.run([sys.executable, "job.py"], cwd=tmp_path, check=True, timeout=60)
    command = [sys.executable, "-m", "omniq_executor", "failures", "--store", "x.db"]
    text = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60).stdout
    assert "__main__.Trap: job.py:6, in spring" in text
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize("args", [(), ("task-0d5kq3v7x8m2a", "--failed"), ("--failed", "--group", "a"),
                                  ("task-0d5kq3v7x8m2a", "--queue", "q")])  # fmt: skip
@pytest.mark.once
def test_a_retry_is_of_tasks_or_of_all_or_of_a_group(args: tuple[str, ...], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "omniq_executor", "retry", *args, "--store", "x.db"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60, check=False).returncode == 2
