"""Who waits for which task, and is given what became of it."""

from collections.abc import Callable
from typing import Any

import pytest

from omniq_executor.dispatch.waiters import Tally, Waiters
from omniq_executor.stores.base import ResultBatch


class Taker(Tally):
    """A Consumer that keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.resumed = 0
        self.given: list[Any] = []

    def put(self, position: int, id: int, count: int, outcome: Any) -> None:
        """Keep it."""
        self.given.append((position, id, count, outcome))


BATCH = ResultBatch(10, 3, 0, "[[1],[2],[3]]")
AWAITED: dict[str, Callable[[Waiters, int], None]] = {
    "by a future": lambda waiters, id: waiters.add_future(id, object()),  # type: ignore[arg-type]
    "by a map, alone": lambda waiters, id: waiters.add_single(id, Taker(), 0),
    "by a map, as the last of some": lambda waiters, id: waiters.add_range(id - 5, 6, Taker(), 0),
    "by a map, as the first of some": lambda waiters, id: waiters.add_range(id, 9, Taker(), 0),
}


@pytest.mark.parametrize("how", AWAITED)
def test_results_are_not_given_to_one_alone_for_which_others_wait(how: str) -> None:
    for id in range(9, 14):
        waiters, taker = Waiters(), Taker()
        AWAITED[how](waiters, id)
        is_free = (id == 13 and "last" not in how) or (id == 9 and "first" not in how)
        assert waiters.give(taker, 7, BATCH) is is_free, id
        assert taker.given == ([(7, 10, 3, BATCH)] if is_free else [])
        assert waiters.put is is_free
        assert waiters.done == (3 if is_free else 0)
