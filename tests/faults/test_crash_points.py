"""A process is ended by SIGKILL at every call of the system that changes something: nothing acknowledged is lost.

One session for each such call, which strace kills as it is about to make it. What is on disk is then what
all calls before it made of it. The short run takes a sample of them, the same each time, and the long one
(OMNIQ_PROOF=1) all.
"""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import scripted
import tracing
from backends import PROOF, Backend
from tracing import Point

MOST = None if PROOF else 12

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(tracing.why_not() is not None, reason=str(tracing.why_not())),
    pytest.mark.timeout(1800 if PROOF else 240),
]


@pytest.fixture
def found(backend: Backend, tmp_path: Path) -> list[Point]:
    """The points of the session at which it can be ended, by a run that is not."""
    (tmp_path / "whole").mkdir()
    address = backend.address(tmp_path / "whole")
    traced = tracing.trace(backend.name, address, tmp_path / "log")
    assert traced.acknowledged == len(scripted.steps(1)), traced.err
    assert scripted.check(address, 1, traced.acknowledged) == []
    return tracing.points(traced)


def test_a_process_can_be_killed_at_any_call_of_the_system(
    backend: Backend, tmp_path: Path, found: list[Point], tally: Callable[..., None]
) -> None:
    chosen = tracing.sample(found, MOST)
    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(partial(killed_at, backend, tmp_path), chosen))
    bad = [f"{point}: {problem}" for point, problems in zip(chosen, results, strict=True) for problem in problems]
    good = sum(not problems for problems in results)
    tally(
        "SIGKILL at a call of the system that changes the store", backend.name,
        f"{good} of {len(chosen)} crash points{'' if MOST is None else f', of {len(found)}'}", len(chosen) - good,
    )  # fmt: skip
    assert bad == []


def killed_at(backend: Backend, tmp_path: Path, point: Point) -> list[str]:
    """End a session at one point; returns what is wrong afterwards."""
    folder = tmp_path / f"{point.call}-{point.number}"
    address = backend.address(folder)
    folder.mkdir()
    inject = f"{point.call}:signal=SIGKILL:when={point.number}"
    traced = tracing.trace(backend.name, address, folder / "log", inject=inject)
    if not traced.injected_at(point):
        return [f"it was not ended there: {traced.log[-400:]} {traced.err[-400:]}"]
    problems = scripted.check(address, 1, traced.acknowledged)
    if not problems:
        shutil.rmtree(folder)
    return problems


# --- These tests can fail ---


def test_a_store_that_forgets_is_found_out(backend: Backend, tmp_path: Path, found: list[Point]) -> None:
    """What a session held before its last acknowledged step is not enough."""
    point = found[len(found) // 2]
    traced = tracing.trace(
        backend.name, backend.address(tmp_path), tmp_path / "log",
        inject=f"{point.call}:signal=SIGKILL:when={point.number}",
    )  # fmt: skip
    assert traced.injected_at(point)
    assert scripted.check(backend.address(tmp_path), 1, traced.acknowledged + 12) != []


def test_a_session_that_is_not_ended_is_found_out(backend: Backend, tmp_path: Path, found: list[Point]) -> None:
    point = found[-1]
    inject = f"{point.call}:signal=SIGKILL:when={point.number + 10_000}"
    traced = tracing.trace(backend.name, backend.address(tmp_path), tmp_path / "log", inject=inject)
    assert not traced.injected_at(point)
