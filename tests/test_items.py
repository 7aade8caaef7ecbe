"""Items of a map are stored many at a time, and none waits for long."""

import random
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from omniq_executor.errors import StoreError
from omniq_executor.items import READ_S, Items, are_at_hand

WAIT_S = 30.0


@pytest.mark.parametrize("seed", range(5))
def test_each_comes_once_and_in_order_however_long_they_take(seed: int) -> None:
    chance = random.Random(seed)

    def rows() -> Iterator[tuple[int]]:
        for n in range(300):
            if chance.random() < 0.02:
                time.sleep(chance.random() * 3 * READ_S)
            yield (n,)

    stored: list[Any] = []
    source = Items(rows())
    while not source.are_over:
        before, asked = len(stored), chance.randrange(1, 60)
        stored += source.draw(asked, stored.extend)
        assert len(stored) - before <= asked
        assert source.are_slow or source.are_over or len(stored) - before == asked
    assert stored == [(n,) for n in range(300)]
    assert source.draw(5, stored.extend) == []


def test_what_is_there_is_stored_while_the_next_one_takes_long() -> None:
    stored, is_stored = [], threading.Event()

    def rows() -> Iterator[tuple[int]]:
        yield (1,)
        yield (2,)
        assert is_stored.wait(WAIT_S)
        yield (3,)
        yield (4,)

    def store(rows: Sequence[Any]) -> None:
        stored.append(rows)
        is_stored.set()

    source = Items(rows())
    assert source.draw(4, store) == [(3,)]  # the rest is for the next time
    assert stored == [[(1,), (2,)]]
    assert source.are_slow
    assert source.draw(4, store) == [(4,)]
    assert source.are_over


def test_what_keeps_them_from_being_stored_is_raised_where_they_are_drawn() -> None:
    is_refused = threading.Event()

    def rows() -> Iterator[tuple[int]]:
        yield (1,)
        assert is_refused.wait(WAIT_S)
        yield (2,)

    def refuse(rows: Sequence[Any]) -> None:
        is_refused.set()
        raise StoreError("no")

    source = Items(rows())
    with pytest.raises(StoreError, match=r"^no$"):
        source.draw(4, refuse)
    assert source.draw(4, refuse) == []  # it is raised once


def test_what_an_iterable_raises_comes_out() -> None:
    def rows() -> Iterator[tuple[int]]:
        yield (1,)
        raise ValueError("no more")

    with pytest.raises(ValueError, match=r"^no more$"):
        Items(rows()).draw(4, print)


def test_nobody_watches_over_what_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omniq_executor.items.start_new_thread", None)
    source = Items(iter([(1,), (2,)]), are_at_hand([[1, 2], range(2), "ab", {}]))
    assert source.draw(9, print) == [(1,), (2,)]
    assert not are_at_hand([[1, 2], iter([1, 2])])
