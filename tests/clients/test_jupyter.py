"""A notebook: cells run by a real kernel, where `__main__` is no file and names are defined again and again."""

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_namespaces import PROGRAMS, expected  # noqa: F401  # a fixture

pytest.importorskip("jupyter_client.manager", reason="jupyter_client is in the extra `clients`")
pytest.importorskip("ipykernel", reason="ipykernel is in the extra `clients`")

WAIT_S = 60.0
Cell = Callable[[str], str]


@pytest.fixture
def cell(client: Any) -> Cell:
    """Runs cells in a kernel of their own; returns what each prints, or the traceback of what it raises."""

    def run(source: str) -> str:
        texts: list[str] = []

        def hear(message: Any) -> None:
            content = message["content"]
            if message["msg_type"] == "stream":
                texts.append(content["text"])
            elif message["msg_type"] == "error":
                texts.extend(content["traceback"])

        client.execute_interactive(textwrap.dedent(source), timeout=WAIT_S, output_hook=hear)
        return "".join(texts)

    return run


@pytest.mark.slow
def test_cells_are_answered_as_a_module_is(method: str, cell: Cell, expected: Any, tmp_path: Path) -> None:  # noqa: F811
    cell("import multiprocessing\nfrom omniq_executor import PersistentExecutor\nexecutor = None")
    cell("def call(function, *args): return executor.submit(function, *args).result(30)")
    for name, (definitions, initializer, answers) in PROGRAMS.items():
        assert cell(definitions) == ""
        made = f"executor = PersistentExecutor(1, multiprocessing.get_context({method!r}), {initializer})"
        assert cell(made) == ""
        assert (name, cell(f"print({answers})")) == (name, expected(name))
        assert cell("executor.shutdown()") == ""


def test_what_a_cell_defines_again_runs_and_what_a_worker_set_stays(method: str, cell: Cell) -> None:
    cell(f"""
        import multiprocessing
        from omniq_executor import PersistentExecutor
        executor = PersistentExecutor(1, multiprocessing.get_context({method!r}))
    """)
    cell("SEEN = []\ndef helper(): return 'old'\ndef f(n):\n    SEEN.append(n)\n    return helper(), len(SEEN)")
    assert cell("print(executor.submit(f, 1).result(30))") == "('old', 1)\n"
    cell("def helper(): return 'new'")
    assert cell("print(executor.submit(f, 1).result(30))") == "('new', 2)\n"
    cell("class C:\n    def __init__(self): self.x = helper()\ndef g(c): return isinstance(c, C), c.x, len(SEEN)")
    assert cell("print(executor.submit(g, C()).result(30))") == "(True, 'new', 2)\n"
    cell("SEEN = ['script']")
    assert cell("print(executor.submit(f, 1).result(30))") == "('new', 2)\n"
    cell("executor.shutdown()")


def test_a_traceback_shows_the_line_of_the_cell(cell: Cell) -> None:
    cell("from omniq_executor import PersistentExecutor\nexecutor = PersistentExecutor(1)")
    cell("def helper(n):\n    return 1 / n  # the line in question\ndef f(n):\n    return helper(n) + 1")
    shown = cell("print(executor.submit(f, 0).exception(30).__cause__)")
    assert "return 1 / n  # the line in question" in shown
    assert "return helper(n) + 1" in shown
    cell("executor.shutdown()")


def test_a_global_that_cannot_be_pickled_is_named_at_once(cell: Cell) -> None:
    cell("import sqlite3\nfrom omniq_executor import PersistentExecutor\nexecutor = PersistentExecutor(1)")
    cell("conn = sqlite3.connect(':memory:')\ndef f(): return conn")
    shown = cell("error = executor.submit(f).exception(0)\nprint(type(error).__name__, error)")
    assert shown.startswith("SerializationError")
    assert "global `conn` (sqlite3.Connection) cannot be pickled" in shown
    cell("executor.shutdown()")
