"""How the calls of an executor stand, as people are shown it: from memory alone, so that no store can hold it up."""

import time
from typing import TYPE_CHECKING, NamedTuple

from ..model.reasons import Reason

if TYPE_CHECKING:
    from ..engines.base import Engine
    from .loop import Loop
    from .waiters import Consumer


class Standing(NamedTuple):
    """Calls, and who runs them."""

    open: int  # waited for, and not done
    done: int  # with the next two
    failed: int
    cancelled: int
    resumed: int  # whose results an earlier run had
    workers: int  # at most, of this executor
    slowest: tuple[int, float] | None  # the id of the call that has been running for longest, and for how many seconds
    state: str  # "open", "closing", "closed", or "broken"


def standing_of(loop: "Loop", engine: "Engine", consumer: "Consumer | None") -> Standing:
    """Return how it stands. The lock is held. `slowest` is the consumer's, if there is one."""
    waiters = loop.waiters
    is_closed = loop.driver.is_closed
    running = [] if is_closed else engine.running()
    if consumer is not None:
        running = [(id, since) for id, since in running if waiters.is_of(id, consumer)]
    slowest = min(running, key=lambda found: found[1], default=None)
    reasons = loop.resumption.resumed.counts
    return Standing(
        waiters.open,
        waiters.done,
        waiters.failed,
        waiters.cancelled,
        sum(reasons.get(reason, 0) for reason in (Reason.RESULT, Reason.OLDER)),
        engine.max_workers,
        None if slowest is None else (slowest[0], max(time.monotonic() - slowest[1], 0.0)),
        "broken" if loop.failure else "closed" if is_closed else "closing" if loop.is_closing else "open",
    )
