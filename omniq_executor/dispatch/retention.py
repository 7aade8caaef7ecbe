"""When what was kept long enough is removed: by whoever has the store open, a step at a time, between turns.

Whose results go, and when, the store knows (see stores/retention.py); all that is decided here is when it is asked to
take the next step. While the executor lives a step is followed by a pause of many times its length, so it costs others
a small share of the time and nobody waits for more than one step. A script that is over before that does its share at
its end, in proportion to what it has added: so a store does not grow by runs that are short.
"""

import logging
import time
from collections.abc import Iterator

from ..errors import StoreError
from ..stores.base import Store, Swept, now

FIRST_LOOK_S = 1.0  # after the opening, when others may be in a hurry
LOOK_EVERY_S = 3600.0
PAUSE = 20  # so many times as long as a step took nothing is done after it
REMOVED_PER_CALL, LOOKED_AT_PER_CALL = 2, 20  # at the end, for each call that was added, ...
LEAST_REMOVED, LEAST_LOOKED_AT = 100, 2000  # ... and in any case
_COMPACTED_BYTES = 16 << 20  # what is in use then is written anew within a moment

_log = logging.getLogger("omniq_executor")


class Retention:
    """See the module's docstring. Called under the dispatcher's lock."""

    def __init__(self, store: Store, owner: int) -> None:
        self.at = time.monotonic() + FIRST_LOOK_S
        """When the next step is due."""
        self._store = store
        self._owner = owner
        self._steps: Iterator[Swept] | None = None  # those of a sweep that is under way
        self._has_removed = False

    def step(self) -> Swept | None:
        """Take a step; return what it did, or None if nothing is left to do for now."""
        began = time.monotonic()
        swept = None
        try:
            if self._steps is None:
                self._steps = self._store.expire(now(), self._owner)
            swept = next(self._steps, None)
        except StoreError as error:
            _log.warning("what was kept long enough is removed later: %s", error)
        ended = time.monotonic()
        if swept is None:
            self._steps = None
            self.at = ended + LOOK_EVERY_S
        else:
            self.at = ended + PAUSE * (ended - began)
            self._has_removed = self._has_removed or swept.removed > 0
        return swept

    def finish(self, added: int) -> None:
        """At the end of who has added so many calls: take as many steps as is its share."""
        removed = LEAST_REMOVED + REMOVED_PER_CALL * added
        looked_at = LEAST_LOOKED_AT + LOOKED_AT_PER_CALL * added
        while removed > 0 and looked_at > 0 and (swept := self.step()) is not None:
            removed -= swept.removed
            looked_at -= swept.looked_at
        if self._has_removed:
            self._store.compact(_COMPACTED_BYTES)
