"""How much work a worker is given ahead, and when what is to come is due. No clock, no thread, no I/O.

Calls travel in chunks, because a message costs more than a short call. A worker is kept about
LEAD_S of work ahead, so that it never waits for the parent, and no more, so that work is spread
evenly and little is under way when a process dies. Durations are measured, not told.
"""

import math
from collections.abc import Iterable, Mapping

LEAD_S = 0.005
LEAST_S = 0.0002  # of work in a chunk, if there is that much
MOST_CALLS = 2048  # given to one worker, however short they are
MOST_BYTES = 1 << 20  # of arguments given to one worker beyond the first call
PREFETCH_BELOW_S = 0.05  # calls longer than this gain nothing from having the next one at hand
STEAL_AFTER_S = 0.02  # a worker silent for longer holds up the calls queued behind its present one
MOST_FUNCTIONS = 1024  # whose pace is known
TAKE_OVER_S = LEAD_S  # of work that waits in a worker: it is worth the way to an idle one


class Pace:
    """How long calls take, as far as the last reports tell.

    A longer call counts at once and a shorter one by halves: handing out too little costs a
    message, handing out too much makes calls wait behind a long one.
    """

    def __init__(self) -> None:
        self.call_s: float | None = None  # unknown until the first report
        self.lead = 1
        """How many calls a worker should have, the one it runs included."""

    def learn(self, calls: int, busy_s: float) -> None:
        """Take in that `calls` calls took `busy_s` seconds together."""
        latest = max(busy_s / calls, 1e-9)
        if self.call_s is None or latest > self.call_s:
            self.call_s = latest
        else:
            self.call_s += (latest - self.call_s) / 2
        if self.call_s > PREFETCH_BELOW_S:
            self.lead = 1
        else:
            self.lead = min(max(int(LEAD_S / self.call_s), 2), MOST_CALLS)

    def share(self, calls: int, workers: int) -> int:
        """How many of so many calls one of the workers gets: its part, but not so few that the message costs more."""
        least = 1 if self.call_s is None else int(LEAST_S / self.call_s)
        return max(-(-calls // workers), min(calls, least))


class Throughput(Pace):
    """The pace of all calls together, and of those of each function by itself."""

    def __init__(self) -> None:
        super().__init__()
        self._paces: dict[bytes, Pace] = {}

    def of(self, digest: bytes) -> Pace:
        """Return the pace of a function."""
        found = self._paces.get(digest)
        if found is None:
            if len(self._paces) == MOST_FUNCTIONS:
                del self._paces[next(iter(self._paces))]
            found = self._paces[digest] = self._make()
        return found

    def _make(self) -> Pace:
        return Pace()

    def least_lead(self, load: Mapping[bytes, int]) -> int:
        """Return how many calls of any function a worker should have that has calls of these. Any thread may ask."""
        paces = [self._paces.get(digest) for digest in list(load)]  # at once: another thread may be changing it
        return min([self.lead, *(1 if pace is None else pace.lead for pace in paces)])

    def room(self, digest: bytes, load: Mapping[bytes, int], queued: int) -> int:
        """Return how many more calls of a function a worker should have that has `queued` calls.

        `load` says of which functions they are. Of the first that it was given some are reported and count no more.
        """
        lead = (self._paces.get(digest) or self.of(digest)).lead
        if not queued or (len(load) == 1 and digest in load):  # as usual
            return lead - queued
        used = -(sum(load.values()) - queued) / self.of(next(iter(load))).lead
        for other, calls in load.items():
            used += calls / self.of(other).lead
        return math.ceil(lead * (1 - used) - 1e-9)  # up: one more, where there is room for a part of it

    def work_s(self, parts: Iterable[tuple[bytes, int]]) -> float:
        """Return how many seconds so many calls of these functions will take; unknown ones take none."""
        known = [(self._paces.get(digest), calls) for digest, calls in parts]
        return sum((pace.call_s or 0.0) * calls for pace, calls in known if pace is not None)
