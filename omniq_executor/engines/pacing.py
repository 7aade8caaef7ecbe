"""How much work a worker is given ahead, and when what is to come is due. No clock, no thread, no I/O.

Calls travel in chunks, because a message costs more than a short call. A worker is kept about
LEAD_S of work ahead, so that it never waits for the parent, and no more, so that work is spread
evenly and little is under way when a process dies. Durations are measured, not told.
"""

LEAD_S = 0.005
LEAST_S = 0.0002  # of work in a chunk, if there is that much
MOST_CALLS = 2048  # given to one worker, however short they are
MOST_BYTES = 1 << 20  # of arguments given to one worker beyond the first call
PREFETCH_BELOW_S = 0.05  # calls longer than this gain nothing from having the next one at hand
STEAL_AFTER_S = 0.02  # a worker silent for longer holds up the calls queued behind its present one


class Throughput:
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
