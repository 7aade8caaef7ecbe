"""Ending a worker in the middle of a call, with the processes that the call has started.

A call is asked first, by SIGTERM, and then made to end, by SIGKILL. Its child processes are found
while the worker lives, since they have another parent afterwards; psutil tells a process from a later
one with the same id. One that has left its parents on purpose, as a daemon does, is not found.
"""

import contextlib
import math
import signal
from typing import TYPE_CHECKING

from .launch import Process

if TYPE_CHECKING:
    import psutil

GRACE_S = 2.0  # between SIGTERM and SIGKILL
ANSWER_S = 0.2  # in which a worker can say, before SIGTERM, that the call has come to its end by itself, ...
RESULTS_S = 2.0  # ... and send the results of calls before it, which would run again without


class Termination:
    """The end of the call with this sequence number, in a worker that has nothing else to do any more."""

    def __init__(self, sequence: int, limit_s: float | None, now: float, has_results: bool) -> None:
        self.sequence = sequence
        self.limit_s = limit_s
        """The timeout of the call, if that is why."""
        self.due = now + (RESULTS_S if has_results else ANSWER_S)
        """When the next step is to be taken, in seconds of time.monotonic(); infinity if there is none."""
        self._children: list[psutil.Process] = []
        self.has_begun = False
        """Whether a signal was sent."""

    def step(self, process: Process, now: float) -> None:
        """Send the next signal."""
        if process.pid is None:
            self.due = now + ANSWER_S  # the fork server is about to tell it
            return
        import psutil  # 20 ms, and most executors never need it

        if process.exitcode is None:
            with contextlib.suppress(psutil.Error):
                found = psutil.Process(process.pid).children(recursive=True)
                self._children += [child for child in found if child not in self._children]
        signal_number = signal.SIGKILL if self.has_begun else signal.SIGTERM
        self.due = math.inf if self.has_begun else now + GRACE_S
        self.has_begun = True
        process.kill(signal_number)
        for child in self._children:
            with contextlib.suppress(psutil.Error):
                child.send_signal(signal_number)

    def outlived(self) -> bool:
        """Whether children are left of a worker that has ended."""
        self._children = [child for child in self._children if _is_running(child)]
        return bool(self._children) and self.due < math.inf


def _is_running(process: "psutil.Process") -> bool:
    import psutil

    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
