"""An engine without processes, whose calls come to their ends when a test says so."""

import math
import selectors
from collections.abc import Callable, Container, Iterator
from pathlib import Path

from omniq_executor.engines.base import CRASHED, ERROR, RESULT, RESULTS, RETURNED, Chunk, Engine, Report
from omniq_executor.engines.pacing import Throughput
from omniq_executor.model.task import ErrorInfo


class FakeEngine:
    """An Engine with room for so many calls. What tests call is called under the dispatcher's lock, too."""

    snapshot = None
    name = "fake"
    sees_files = True

    def __init__(self, max_workers: int = 1, room: int = 8) -> None:
        self.max_workers = max_workers
        self.broken: str | None = None
        self.reports: list[Report] = []
        self.throughput = Throughput()
        self.room = room
        self.given: list[tuple[int, int]] = []
        """Every call that was ever given, by id and attempt."""
        self.started: set[int] = set()
        """Calls that cannot be taken back any more."""
        self.ended: list[int] = []
        """Calls that were ended in the middle."""
        self.is_closed = False
        self.steals_at: float | None = None
        """When it takes back all that has not started, in seconds of time.monotonic()."""
        self._chunks: list[Chunk] = []
        self._out: set[tuple[int, int]] = set()  # claims that were given and did not come back
        self._wake: Callable[[], None] = lambda: None

    # what tests call

    def start(self, *ids: int) -> None:
        """Have workers begin with these calls."""
        self.started.update(ids)

    def finish(self, *ids: int, result: str = '"done"') -> None:
        """Have these calls return, or all; those of one chunk are reported together."""
        for chunk in list(self._chunks):
            mine = [id for id in chunk.ids if not ids or id in ids]
            attempts = self._take(mine)
            if len(mine) == 1:
                self._report(RESULT, mine, attempts, result)
            elif mine:
                self._report(RESULTS, mine, attempts, "[" + ",".join([f"[{result}]"] * len(mine)) + "]")

    def fail(self, id: int, message: str = "no") -> None:
        """Have a call raise ValueError."""
        self._report(ERROR, [id], self._take([id]), ErrorInfo("builtins.ValueError", message, "", None))

    def crash(self, id: int) -> None:
        """Have the worker die that is in this call; what it has not started comes back."""
        self._report(CRASHED, [id], self._take([id]), "signal SIGSEGV")
        self._return([*self.held()])

    def break_down(self) -> None:
        """Have no worker run any more, so that none can be started."""
        self.broken = "it was broken by the test"
        self._wake()

    # as of an Engine

    def keep_large(self, files: object) -> None:
        """There are no workers."""

    def attach(self, selector: selectors.BaseSelector, wake: Callable[[], None], slots: Path) -> None:
        """Nothing is waited for: `wake` tells of all reports."""
        self._wake = wake

    def prepare(self) -> None:
        """There is nothing to do."""

    def free_capacity(self, digest: bytes | None = None) -> tuple[int, int]:
        """As if there were one worker."""
        free = 0 if self.broken else max(self.room - len([*self.held()]), 0)
        return free, free

    def idle(self) -> int:
        """One, or none."""
        return int(not self.is_busy())

    def give(self, chunk: Chunk) -> None:
        """Keep the calls. No claim is given twice, but for one that came back."""
        claims = {*zip(chunk.ids, chunk.attempts, strict=True)}
        assert self.free_capacity()[1] > 0
        assert self._out.isdisjoint(claims)
        self._out |= claims
        self.given += zip(chunk.ids, chunk.attempts, strict=True)
        self._chunks.append(chunk)

    def is_busy(self) -> bool:
        """Whether it has calls."""
        return bool(self._chunks)

    def held(self) -> Iterator[int]:
        """Those."""
        return (id for chunk in self._chunks for id in chunk.ids)

    def probe_stacks(self, on_end: Callable[[], None]) -> "FakeEngine":
        """All answer at once."""
        on_end()
        return self

    def stacks(self) -> dict[int, str]:
        """A text for each call that has started."""
        return {id: "here" for id in self.held() if id in self.started}

    def next_check(self, is_idle: Callable[[], bool]) -> float:
        """When a test has said so."""
        return math.inf if self.steals_at is None else self.steals_at

    def steal(self, now: float, is_idle: Callable[[], bool]) -> None:
        """Take back all that has not started."""
        if self.steals_at is not None and self.steals_at <= now:
            self.steals_at = None
            self._return([*self.held()])

    def recall(self, ids: Container[int]) -> None:
        """Take those back that have not started."""
        self._return([id for id in self.held() if id in ids])

    def end(self, ids: Container[int]) -> None:
        """Their workers die at once."""
        for id in [id for id in self.held() if id in ids]:
            self.ended.append(id)
            self.crash(id)

    def ask_for_results(self) -> None:
        """None lie anywhere."""

    def awaits_results(self) -> bool:
        """So nobody is asked."""
        return False

    def close(self, signal_number: int | None = None, grace_s: float | None = None) -> None:
        """Forget what is there."""
        self._chunks.clear()
        self.is_closed = True

    def leave_to_parent(self) -> None:
        """There is nothing to let go of."""

    def _report(self, kind: str, ids: list[int], attempts: list[int], payload: object) -> None:
        self.reports.append(Report(kind, ids, attempts, payload))
        self._wake()

    def _return(self, ids: Container[int]) -> None:
        for chunk in list(self._chunks):
            mine = [id for id in chunk.ids if id in ids and id not in self.started]
            if mine:
                back = chunk.without([id for id in chunk.ids if id not in mine])
                self._out.difference_update(zip(mine, self._take(mine), strict=True))
                self._report(RETURNED, [*back.ids], [*back.attempts], back)

    def _take(self, ids: list[int]) -> list[int]:
        """Take calls out, and return their attempts."""
        pairs = (zip(chunk.ids, chunk.attempts, strict=True) for chunk in self._chunks)
        attempts = dict(pair for part in pairs for pair in part)
        self._chunks = [left for chunk in self._chunks if (left := chunk.without(ids)).ids]
        self.started.difference_update(ids)
        return [attempts[id] for id in ids]


_: Engine = FakeEngine()  # it is one, says mypy
