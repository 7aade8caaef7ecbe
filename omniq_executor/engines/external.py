"""The engine that runs nothing: what is submitted is worked off by other processes, whenever they like."""

import selectors
from collections.abc import Callable, Container, Iterator
from pathlib import Path

from .base import Chunk, Report
from .pacing import Throughput


class External:
    """An Engine without workers: it has room for no call, so it is given none."""

    max_workers = 0
    broken: str | None = None
    snapshot = None

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.throughput = Throughput()

    def attach(self, selector: selectors.BaseSelector, wake: Callable[[], None], slots: Path) -> None:
        """Nothing happens here."""

    def prepare(self) -> None:
        """Nothing is described for workers of this process."""

    def free_capacity(self) -> tuple[int, int]:
        """Return that there is none."""
        return 0, 0

    def idle(self) -> int:
        """Return that nobody is."""
        return 0

    def give(self, chunk: Chunk) -> None:
        """Raises RuntimeError: there is no room."""
        raise RuntimeError(f"{len(chunk.ids)} calls were given to an engine that runs none")

    def is_busy(self) -> bool:
        """Return that it is not."""
        return False

    def held(self) -> Iterator[int]:
        """Return nothing."""
        return iter(())

    def probe_stacks(self, on_end: Callable[[], None]) -> "External":
        """Ask nobody."""
        on_end()
        return self

    def stacks(self) -> dict[int, str]:
        """Return nothing: nothing runs here."""
        return {}

    def next_check(self, is_idle: Callable[[], bool]) -> float | None:
        """Return None: never."""
        return None

    def steal(self, now: float, is_idle: Callable[[], bool]) -> None:
        """Nothing was given."""

    def recall(self, ids: Container[int]) -> None:
        """Nothing was given."""

    def end(self, ids: Container[int]) -> None:
        """Nothing was given."""

    def ask_for_results(self) -> None:
        """There are none."""

    def awaits_results(self) -> bool:
        """Return that nobody was asked."""
        return False

    def close(self, signal_number: int | None = None, grace_s: float | None = None) -> None:
        """There is nobody to end."""

    def leave_to_parent(self) -> None:
        """There is nothing to let go of."""
