"""A call that failed, once more under the debugger of a notebook."""

import textwrap
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("jupyter_client.manager", reason="jupyter_client is in the extra `clients`")
pytest.importorskip("ipykernel", reason="ipykernel is in the extra `clients`")

WAIT_S = 60.0
Run = Callable[..., str]


@pytest.fixture
def run(client: Any) -> Run:
    """Runs cells in a kernel of their own, with somebody who types if that is said; returns what each prints."""

    def run_cell(source: str, typed: list[str] | None = None) -> str:
        texts: list[str] = []

        def hear(message: Any) -> None:
            content = message["content"]
            texts.append(content.get("text") or "".join(content.get("traceback", ())))
            texts.extend(content["data"].values() if message["msg_type"] == "execute_result" else ())

        client.execute_interactive(
            textwrap.dedent(source), timeout=WAIT_S, output_hook=hear, allow_stdin=typed is not None,
            stdin_hook=lambda _: client.input(typed.pop(0) if typed else "q"),
        )  # fmt: skip
        return "".join(texts)

    return run_cell


def test_a_cell_debugs_a_call_and_shows_what_failed(run: Run) -> None:
    assert "Traceback" not in run("""
        from omniq_executor import PersistentExecutor
        LIMIT = 3
        def check(x):
            here = x + LIMIT
            raise ValueError(here)
        executor = PersistentExecutor(1)
        future = executor.submit(check, 2)
        future.exception();
    """)
    run("LIMIT = 100")
    shown = run("future.debug()", ["p here * 1000", "q"])
    assert "check(2) is called again here" in shown
    assert "5000" in shown
    assert run("print(LIMIT)") == "100\n"
    assert "this notebook is run without anybody who could type" in run("future.debug()")
    failures = run("executor.failures()")
    assert "1 x ValueError: line 5 of a cell, in check" in failures
    assert "<table" in failures
    run("executor.shutdown()")
