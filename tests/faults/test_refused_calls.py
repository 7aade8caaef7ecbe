"""The system refuses each call that a session makes, once: then a step is not done, and says so, or it is done.

As test_crash_points.py, but strace has the call fail: with ENOSPC, EIO, EMFILE, whichever it can. A step
that raised StoreError has changed nothing, and succeeds when it is tried again. A step that returned is
done. Anything but StoreError ends the session, and fails the test.
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
ERRORS = {"openat": "EMFILE", "fsync": "EIO", "fdatasync": "EIO", "ftruncate": "EIO", "unlink": "EIO", "rename": "EIO"}
OTHERS = ("ENOSPC", "EIO")  # by turns

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(tracing.why_not() is not None, reason=str(tracing.why_not())),
    pytest.mark.timeout(1800 if PROOF else 240),
]


@pytest.mark.parametrize("durability", ["process", "power"])
def test_what_the_system_refuses_fails_one_step_or_none(
    backend: Backend, tmp_path: Path, durability: str, tally: Callable[..., None]
) -> None:
    (tmp_path / "whole").mkdir()
    address = backend.address(tmp_path / "whole")
    whole = tracing.trace(backend.name, address, tmp_path / "log", durability=durability)
    found = tracing.points(whole)
    chosen = tracing.sample(found, MOST)
    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(partial(refused_at, backend, tmp_path, durability), chosen))
    bad = [f"{point}: {problem}" for point, problems in zip(chosen, results, strict=True) for problem in problems]
    good = sum(not problems for problems in results)
    tally(
        f"ENOSPC, EIO or EMFILE at a call of the system, durability={durability}", backend.name,
        f"{good} of {len(chosen)} calls{'' if MOST is None else f', of {len(found)}'}", len(chosen) - good,
    )  # fmt: skip
    assert bad == []


def refused_at(backend: Backend, tmp_path: Path, durability: str, point: Point) -> list[str]:
    """Have one call fail in a session; returns what is wrong."""
    folder = tmp_path / f"{point.call}-{point.number}"
    address = backend.address(folder)
    folder.mkdir()
    error = ERRORS.get(point.call, OTHERS[point.number % 2])
    traced = tracing.trace(
        backend.name, address, folder / "log", inject=f"{point.call}:error={error}:when={point.number}",
        durability=durability, retry=True,
    )  # fmt: skip
    if traced.log.count("(INJECTED)") != 1:
        return ["it was not refused"]
    if traced.status != 0:
        return [f"the session ended with {traced.status}: {traced.err[-2000:]}"]
    problems = scripted.check(address, 1, traced.acknowledged)
    if not problems:
        shutil.rmtree(folder)
    return problems
