"""Numbers for tasks: ordered by time, unique among the owners of a store."""

import time

NODES = 4096  # owners of one store that live at a time differ in id modulo this: it makes their task ids distinct
_TICK_NS = 16_000_000
_COUNT_BITS = 14
_NODE_BITS = NODES.bit_length() - 1
_MOST = 1 << _COUNT_BITS  # of a tick
_TIME_BITS = _COUNT_BITS + _NODE_BITS  # below the tick


class Ids:
    """Makes the ids of one owner.

    63 bits: 37 of time since 1970 in ticks of 16 ms (69 years), 12 of the owner, 14 that count within
    a tick. Ids that are taken together are consecutive, so a batch needs only its first.
    """

    def __init__(self, owner: int) -> None:
        self._node = owner % NODES << _COUNT_BITS
        self._first = 0
        self.taken = 0
        """How many it has made."""
        self._tick = 0
        self._used = 0

    def take(self, count: int) -> int:
        """Return the first of `count` consecutive new ids. Raise ValueError for more than a tick has."""
        if count > _MOST:
            raise ValueError(f"{count} ids at once are more than {_MOST}")
        tick = time.time_ns() // _TICK_NS
        if tick > self._tick:  # a clock that was set back is ignored until time has caught up
            self._tick, self._used = tick, 0
        elif self._used + count > _MOST:
            self._tick, self._used = self._tick + 1, 0
        first = self._tick << _TIME_BITS | self._node | self._used
        self._used += count
        if not self.taken:
            self._first = first
        self.taken += count
        return first

    def has_made(self, id: int) -> bool:
        """Return whether an id is one of these. Of an earlier owner of the same number, all are lower."""
        return self.taken > 0 and id >= self._first and id & (NODES - 1 << _COUNT_BITS) == self._node


def time_of(number: int) -> int:
    """Return when an id was made, in microseconds since 1970: a tick earlier at most, or later for many at once."""
    return (number >> _TIME_BITS) * (_TICK_NS // 1000)
