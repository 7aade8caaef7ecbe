"""The power is cut in the middle of a session: with durability="power" all that was acknowledged is there.

The session works in an ext4 file system that lies in a file, on a loop device, and that writes nothing of
its own accord for ten minutes. What its processes write stays in the memory of the kernel until they ask
for it to be on disk. At some call of the system the session is ended by SIGKILL, and the file is copied
while the file system is still mounted: the copy holds what had reached the disk by then, and nothing of
what the kernel had in memory. It is mounted, and recovers by its journal as a disk does after a cut.

The disk has no cache of its own: what reached it is kept, also what nobody asked it to flush. That a store
asks for no more than a system call, and in the right order, is what is tested; not what a disk makes of it.

That the test sees a loss is shown by sessions with durability="process", which lose something.
"""

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import disks
import pytest
import scripted
import tracing
from backends import PROOF, Backend
from tracing import Point

from omniq_executor import open_store
from omniq_executor.stores.file import journal

CUTS = 100 if PROOF else 6
ROUNDS = 2  # of the session: so that it syncs more than a hundred times

WHY_NOT = tracing.why_not() or disks.why_no_images()
pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT)),
    pytest.mark.timeout(1800 if PROOF else 240),
]


class Cuts:
    """Cuts the power of sessions of one store, and looks at what is left."""

    def __init__(self, backend: Backend, folder: Path, durability: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._backend = backend
        self._folder = folder
        self._durability = durability
        self._monkeypatch = monkeypatch
        self._fresh = folder / "fresh.img"
        disks.make_image(self._fresh)

    def points(self) -> list[Point]:
        """Where sessions can be ended."""
        folder = self._folder / "whole"
        with self._disk(folder) as disk:
            address = self._backend.address(disk)
            traced = tracing.trace(
                self._backend.name, address, self._folder / "log", durability=self._durability, rounds=ROUNDS
            )
        return tracing.points(traced)

    def cut_at(self, point: Point) -> tuple[int, list[str]]:
        """Cut the power at a call of the system; returns how many tasks were lost, and all that is wrong."""
        folder = self._folder / "cut"
        inject = f"{point.call}:signal=SIGKILL:when={point.number}"
        with self._disk(folder) as disk:
            address = self._backend.address(disk)
            traced = tracing.trace(
                self._backend.name, address, self._folder / "log", inject=inject, durability=self._durability,
                rounds=ROUNDS,
            )  # fmt: skip
            assert traced.injected_at(point), traced.log[-500:]
            shutil.copyfile(folder / "image", folder / "copy")  # at the same path afterwards: the same address
        with disks.image(folder / "copy", folder / "disk"):
            found = self._look(address, traced.acknowledged)
        shutil.rmtree(folder)
        return found

    def _disk(self, folder: Path) -> contextlib.AbstractContextManager[Path]:
        folder.mkdir()
        shutil.copyfile(self._fresh, folder / "image")
        return disks.image(folder / "image", folder / "disk")

    def _look(self, address: Path, acknowledged: int) -> tuple[int, list[str]]:
        with self._monkeypatch.context() as patch:
            # After a cut the machine has been started anew, which the system would say.
            patch.setattr(journal, "_boot_id", lambda: "the next start of the machine")
            with contextlib.closing(open_store(address)) as store:
                held = {task.id: task for task in store.find()}
            return scripted.Allowed(ROUNDS, acknowledged).lost(held), scripted.check(address, ROUNDS, acknowledged)


@pytest.fixture
def make_cuts(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Cuts]:
    return lambda durability: Cuts(backend, tmp_path, durability, monkeypatch)


def test_a_power_cut_loses_nothing_acknowledged_with_durability_power(
    backend: Backend, make_cuts: Callable[[str], Cuts], tally: Callable[..., None]
) -> None:
    cuts = make_cuts("power")
    found = cuts.points()
    # Nothing but what was acknowledged may have been synced yet; and what was about to be is not.
    chosen = tracing.sample([point for point in found if point.is_first], CUTS // 2)
    others = [point for point in found if point.call in tracing.SYNCS and point not in chosen]
    chosen += tracing.sample(others, CUTS - len(chosen))
    lost, bad = 0, []
    for point in chosen:
        missing, problems = cuts.cut_at(point)
        lost += missing
        bad += [f"{point}: {problem}" for problem in problems]
    tally('power cut, durability="power"', backend.name, f"{len(chosen)} cuts", lost)
    assert bad == []


def test_a_power_cut_can_lose_something_with_durability_process(
    backend: Backend, make_cuts: Callable[[str], Cuts], tally: Callable[..., None]
) -> None:
    cuts = make_cuts("process")
    chosen = longest_without_sync(cuts.points())[: 10 if PROOF else 2]
    lost = sum(cuts.cut_at(point)[0] for point in chosen)
    tally('power cut, durability="process", as a control', backend.name, f"{len(chosen)} cuts", lost)
    assert lost > 0


def longest_without_sync(found: list[Point]) -> list[Point]:
    """The ends of the times without a sync, the longest time first."""
    ends = [i for i, point in enumerate(found) if point.call in tracing.SYNCS or i == len(found) - 1]
    lengths = {end: end - before for before, end in zip([-1, *ends], ends, strict=False)}
    return [found[end] for end in sorted(ends, key=lambda end: -lengths[end])]
