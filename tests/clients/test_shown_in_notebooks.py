"""What a real kernel publishes: progress as one display that is updated, and objects as HTML beside their text."""

import textwrap
import time
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("jupyter_client.manager", reason="jupyter_client is in the extra `clients`")
pytest.importorskip("ipykernel", reason="ipykernel is in the extra `clients`")

WAIT_S = 60.0
Run = Callable[[str], list[Any]]


@pytest.fixture
def run(client: Any) -> Run:
    """Runs cells in a kernel of their own; returns the messages of each: (type, content, seconds since its start)."""

    def execute(source: str) -> list[Any]:
        began = time.monotonic()
        messages: list[Any] = []

        # A message that is not of this cell, by its parent, is not given to the hook.
        def hear(message: Any) -> None:
            messages.append((message["msg_type"], message["content"], time.monotonic() - began))

        client.execute_interactive(textwrap.dedent(source), timeout=WAIT_S, output_hook=hear)
        assert [content for kind, content, _ in messages if kind == "error"] == []
        return messages

    execute("""
        import pathlib, time
        from omniq_executor import PersistentExecutor
        executor = PersistentExecutor(1, store="s.db")
        def work(n):
            while n and not pathlib.Path("gate").exists(): time.sleep(0.005)
            return n
    """)
    return execute


def test_progress_is_one_display_of_its_cell_that_is_updated(run: Run) -> None:
    messages = run("""
        from omniq_executor.display import places
        seen, show = [], places.Cell.show
        def told(self, frame):  # opens the gate once it was shown four times
            show(self, frame)
            seen.append(frame)
            if len(seen) == 4: pathlib.Path("gate").touch()
        places.Cell.show = places.Cell.end = told
        results = list(executor.map(work, range(3), progress=True))
    """)
    shown = [it for it in messages if it[0] in ("display_data", "update_display_data")]
    assert [kind for kind, _, _ in shown] == ["display_data", *["update_display_data"] * (len(shown) - 1)]
    assert len(shown) >= 5
    assert len({content["transient"]["display_id"] for _, content, _ in shown}) == 1
    for _, content, _ in shown:
        assert content["data"].keys() == {"text/plain", "text/html"}
        assert "<script" not in content["data"]["text/html"]
        assert "widget" not in str(content)
    first, last = shown[0][1]["data"], shown[-1][1]["data"]
    assert first["text/plain"].startswith("work  1/3  33 %") or first["text/plain"].startswith("work  0/3  0 %")
    assert last["text/plain"].startswith("work  3/3  100 %\n")
    assert "done in " in last["text/plain"]
    times = [at for _, _, at in shown[:-1]]
    assert len(times) / max(times[-1] - times[0], 0.001) < 6  # four pauses of 0.25 s at least, and five messages


def test_objects_are_shown_as_html_beside_their_text(run: Run) -> None:
    run("future = executor.submit(work, 0); future.result()")
    for name, said in {
        "executor": "1 of 1 worker",
        "future": "work(0)",
        "executor.store": "1 COMPLETED",
        "future.task()": "COMPLETED",
        "executor.map(work, [0])": "work",
    }.items():
        (data,) = [content["data"] for kind, content, _ in run(name) if kind == "execute_result"]
        assert said in data["text/plain"], name
        assert said in data["text/html"], name
        assert data["text/html"].startswith("<div"), name
