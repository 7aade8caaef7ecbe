"""Who ends calls: those whose time is over, and those that are cancelled while they run.

What waits behind such a call in its worker is taken back before the first signal, so that no signal can meet another
call, and the worker is asked for the results that lie there.
"""

import math
import time
from collections.abc import Container, Sequence

from ...slots import SINCE, STARTED
from ..base import Report
from . import worker as proc
from .launch import Process
from .record import VISIBLE_S, Record
from .termination import Termination

Doomed = tuple[Record, int, float | None]  # worker, sequence number of the call to end, and its timeout if that is why


class Terminator:
    """See the module's docstring. It reports to the list that it is given."""

    def __init__(self, reports: list[Report]) -> None:
        self.orphans: list[tuple[Process, Termination]] = []
        """Child processes of workers that were ended, in their grace."""
        self._reports = reports

    def set_timer(self, worker: Record, at: float) -> None:
        """Look at a call of the worker at that time of time.monotonic()."""
        worker.timer = min(worker.timer, at) if worker.timer else at

    def due(self, workers: Sequence[Record]) -> float:
        """Return when `go_on_all()` has something to do, or infinity."""
        due = math.inf
        for _, ending in self.orphans:
            due = min(due, ending.due)
        for worker in workers:
            if worker.timer:
                due = min(due, worker.timer)
            if worker.ending is not None:
                due = min(due, worker.ending.due)
        return due

    def go_on_all(self, workers: Sequence[Record], now: float) -> None:
        """End calls whose time is over, and go on with those that are being ended."""
        if self.orphans:
            for process, ending in self.orphans:
                if ending.due <= now:
                    ending.step(process, now)
            self.orphans = [(process, ending) for process, ending in self.orphans if ending.outlived()]
        overdue: list[Doomed] = []
        for worker in workers:
            if worker.timer and worker.timer <= now:
                overdue += self._look_at_clock(worker, now)
            if worker.ending is not None and worker.ending.due <= now:
                self.go_on(worker, worker.ending)
        if overdue:
            self._begin(overdue)

    def end(self, workers: Sequence[Record], ids: Container[int]) -> None:
        """End the workers that are in a call with one of these ids; what else they have runs elsewhere."""
        doomed: list[Doomed] = []
        for worker in workers:
            if worker.queued:
                # If it is between two calls, it is the next one that it cannot be kept from.
                sequence = max(worker.row[STARTED], worker.reported)
                if worker.has_any(ids, sequence, min(sequence + 1, worker.taken)):
                    doomed.append((worker, sequence, None))
        self._begin(doomed)

    def go_on(self, worker: Record, ending: Termination) -> None:
        """Take the next step, unless the call has come to its end by itself."""
        if worker.reported > ending.sequence and not ending.has_begun:
            worker.ending = None
            return
        ending.step(worker.process, time.monotonic())

    def take_over(self, worker: Record) -> None:
        """Go on with what is left of a worker that has died."""
        if worker.ending is not None and worker.ending.outlived():
            self.orphans.append((worker.process, worker.ending))

    def close(self) -> None:
        """Take the last step with what is left."""
        for process, ending in self.orphans:
            ending.step(process, time.monotonic())
        self.orphans.clear()

    def _look_at_clock(self, worker: Record, now: float) -> list[Doomed]:
        """Return the worker's call whose time is over, if there is one; its timer is set anew for the others."""
        worker.timer = 0.0
        overdue: list[Doomed] = []
        for chunk in worker.chunks:
            if chunk.timeout is None or chunk.sequence < worker.reported:
                continue
            has_started = worker.row[STARTED] >= chunk.sequence and worker.row[SINCE]
            # Not before it was given, should STARTED be seen before SINCE. If it has not started, all its time is left.
            since = max(worker.row[SINCE] / 1e9, chunk.given_at) if has_started else now
            if since + chunk.timeout <= now:
                overdue.append((worker, chunk.sequence, chunk.timeout))
            else:
                self.set_timer(worker, since + chunk.timeout)
        return overdue

    def _begin(self, doomed: Sequence[Doomed]) -> None:
        """Have these workers end in the calls of these numbers. What waits behind is taken back before."""
        for worker, sequence, _ in doomed:
            if not worker.is_being_taken_from:
                worker.stop(sequence + 1)
        if doomed:
            time.sleep(VISIBLE_S)  # no event tells that a write has become visible
        now = time.monotonic()
        for worker, sequence, limit_s in doomed:
            if worker.taken == proc.NEVER:
                self._reports += worker.conclude()
            if worker.ending is None and worker.row[STARTED] <= sequence:  # else it is over just now
                worker.ending = Termination(sequence, limit_s, now, has_results=worker.reported < sequence)
                worker.ask(proc.FLUSH, now)
