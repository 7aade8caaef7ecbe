"""The ids that owners give to their tasks: unique, and ordered by time."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, strategies as st

import omniq_executor.model.ids
from omniq_executor import StoreError
from omniq_executor.model.ids import NODES, Ids
from omniq_executor.stores.owners import new_owner_id

owners = st.integers(0, 2**31 - 1)
START_NS = 1_700_000_000 * 10**9
MOST_AT_ONCE = 1 << 14


class Clock:
    """Stands in for the module `time`."""

    def __init__(self, times: Any = None) -> None:
        self.times: Iterator[int] = iter(times or itertools.repeat(START_NS))

    def time_ns(self) -> int:
        return next(self.times)


def take(owner: int, counts: list[int], times: Any = None) -> list[int]:
    """The ids that an owner takes, with its clock showing these times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(omniq_executor.model.ids, "time", Clock(times))
        ids = Ids(owner)
        return [first + place for count in counts for first in [ids.take(count)] for place in range(count)]


counts = st.lists(st.integers(1, 20) | st.integers(1, MOST_AT_ONCE), min_size=1, max_size=8)


@given(owner=owners, counts=counts)
def test_ids_are_unique_increasing_and_of_63_bits_while_the_clock_stands_still(owner: int, counts: list[int]) -> None:
    ids = take(owner, counts)
    assert all(a < b for a, b in itertools.pairwise(ids))
    assert ids[0] > 0
    assert ids[-1] < 2**63


@given(owner=owners, steps=st.lists(st.integers(-(10**10), 10**10), min_size=1, max_size=30))
def test_ids_are_unique_and_increasing_when_the_clock_is_set_back(owner: int, steps: list[int]) -> None:
    times = list(itertools.accumulate(steps, initial=START_NS))
    ids = take(owner, [1000] * len(times), times)
    assert all(a < b for a, b in itertools.pairwise(ids))


@given(a=owners, b=owners, first=counts, second=counts)
def test_owners_of_different_nodes_never_make_the_same_id(a: int, b: int, first: list[int], second: list[int]) -> None:
    if a % NODES == b % NODES:
        b += 1
    assert not set(take(a, first)) & set(take(b, second))


def test_ids_of_any_owner_are_ordered_by_time() -> None:
    earlier = take(NODES - 1, [1], [START_NS])
    later = take(0, [1], [START_NS + 17_000_000])
    assert earlier < later


def test_ids_that_are_taken_together_are_consecutive_also_when_a_tick_is_used_up() -> None:
    ids = take(3, [MOST_AT_ONCE - 1, 2])
    assert ids[-1] == ids[-2] + 1
    assert ids[MOST_AT_ONCE - 2] + 1 < ids[-2]


def test_there_are_ids_until_2039() -> None:
    start = 2_198_000_000  # September 2039
    (id,) = take(0, [1], [start * 10**9])
    assert 0 < id < 2**63


@given(taken=st.sets(owners, max_size=20))
def test_a_new_owner_shares_its_node_with_none_that_is_there(taken: set[int]) -> None:
    owner = new_owner_id(taken)
    assert 0 <= owner < 2**31
    assert owner % NODES not in {other % NODES for other in taken}


def test_the_last_free_node_is_found_and_then_there_is_none() -> None:
    assert new_owner_id(range(1, NODES)) % NODES == 0
    with pytest.raises(StoreError, match=f"{NODES} owners"):
        new_owner_id(range(NODES))
