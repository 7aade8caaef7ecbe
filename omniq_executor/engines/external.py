"""The engine that runs nothing: what is submitted is worked off by other processes, whenever they like."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..value_files import Files
from .base import Chunk, Report
from .pacing import Throughput


class External:
    """An Engine without workers: it has room for no call, so it is given none."""

    name = "external"
    max_workers = 0
    broken: str | None = None
    snapshot = None
    sees_files = True  # those who run the calls open the same store

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.throughput = Throughput()

    def keep_large(self, files: Files) -> None:
        """There is nobody to tell."""

    def free_capacity(self, digest: bytes | None = None) -> tuple[int, int]:
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

    def running(self) -> Sequence[tuple[int, float]]:
        """Return nothing: what runs elsewhere, the store alone knows."""
        return ()

    def probe_stacks(self, on_end: Callable[[], None]) -> "External":
        """Ask nobody."""
        on_end()
        return self

    def stacks(self) -> dict[int, str]:
        """Return nothing: nothing runs here."""
        return {}

    def awaits_results(self) -> bool:
        """Return that nobody was asked."""
        return False

    def next_check(self, is_idle: Callable[[], bool]) -> float:
        """Return that nothing is ever to be done."""
        return math.inf

    def nothing(self, *_: Any, **__: Any) -> None:
        """Nothing was given, so there is nothing to do."""

    attach = prepare = steal = recall = end = ask_for_results = close = leave_to_parent = nothing
