"""How much work is given ahead."""

import pytest
from hypothesis import given, strategies as st

from omniq_executor.engines.pacing import LEAD_S, LEAST_S, MOST_CALLS, MOST_FUNCTIONS, PREFETCH_BELOW_S, Throughput

reports = st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 100)), max_size=20)


def throughput(*reports: tuple[int, float]) -> Throughput:
    made = Throughput()
    for calls, busy_s in reports:
        made.learn(calls, busy_s)
    return made


def test_nothing_is_given_ahead_before_the_first_report() -> None:
    assert (Throughput().call_s, Throughput().lead) == (None, 1)


@pytest.mark.parametrize(
    ("call_s", "lead"),
    [
        (LEAD_S / 100, 100),
        (LEAD_S / 3, 3),
        (LEAD_S, 2),  # one to run, one at hand
        (PREFETCH_BELOW_S, 2),
        (PREFETCH_BELOW_S * 1.01, 1),
        (10.0, 1),
        (LEAD_S / MOST_CALLS / 10, MOST_CALLS),
        (0.0, MOST_CALLS),
    ],
)
def test_a_worker_has_a_few_milliseconds_of_work(call_s: float, lead: int) -> None:
    assert throughput((1, call_s)).lead == pytest.approx(lead, abs=1 if lead == 100 else 0)
    assert throughput((8, call_s * 8)).lead == throughput((1, call_s)).lead


def test_a_longer_call_counts_at_once_and_a_shorter_one_by_halves() -> None:
    assert throughput((1, 0.001), (1, 0.5)).call_s == 0.5
    assert throughput((1, 0.5), (1, 0.1)).call_s == pytest.approx(0.3)
    assert throughput((1, 0.5), (1, 0.1), (1, 0.1)).call_s == pytest.approx(0.2)


def test_after_one_long_call_short_ones_are_soon_given_ahead_again() -> None:
    after = throughput((1, 10.0), *[(1, 0.000_01)] * 20)
    assert after.lead > 100


@given(reports=reports)
def test_the_lead_is_bounded_and_the_estimate_lies_between_the_extremes(reports: list[tuple[int, float]]) -> None:
    made = throughput(*reports)
    assert 1 <= made.lead <= MOST_CALLS
    if reports:
        durations = [busy_s / calls for calls, busy_s in reports]
        assert made.call_s is not None
        assert min(durations) <= made.call_s <= max(*durations, 1e-9)


def test_calls_are_shared_out_evenly_before_the_first_report() -> None:
    assert [Throughput().share(calls, 4) for calls in (0, 1, 4, 5, 8, 9)] == [0, 1, 1, 2, 2, 3]


def test_short_calls_are_not_shared_out_so_thin_that_messages_cost_more() -> None:
    short = throughput((1, LEAST_S / 10))
    assert [short.share(calls, 4) for calls in (3, 10, 20, 400)] == [3, 10, 10, 100]
    assert throughput((1, LEAST_S * 2)).share(8, 4) == 2


@given(reports=reports, calls=st.integers(0, 10_000), workers=st.integers(1, 100))
def test_a_share_is_enough_for_all_and_no_more_than_there_is(
    reports: list[tuple[int, float]], calls: int, workers: int
) -> None:
    share = throughput(*reports).share(calls, workers)
    assert share <= calls <= share * workers


def test_each_function_has_a_pace_of_its_own() -> None:
    made = Throughput()
    made.of(b"short").learn(1000, 0.001)
    made.of(b"long").learn(1, 0.01)
    assert (made.of(b"short").lead, made.of(b"long").lead, made.of(b"unknown").lead) == (MOST_CALLS, 2, 1)
    assert made.room(b"long", {b"short": MOST_CALLS // 2}, MOST_CALLS // 2) == 1
    assert made.room(b"short", {b"long": 1}, 1) == MOST_CALLS // 2
    assert made.room(b"unknown", {b"long": 2}, 2) == 0
    assert made.room(b"short", {b"long": 2, b"short": 1}, 2) == MOST_CALLS // 2 - 1  # one of the first is reported
    assert made.work_s([(b"long", 3), (b"unknown", 5)]) == pytest.approx(0.03)


def test_only_so_many_functions_are_known() -> None:
    made = Throughput()
    for n in range(MOST_FUNCTIONS + 1):
        made.of(b"%d" % n).learn(1, 0.01)
    assert (made.of(b"1").lead, made.of(b"0").lead) == (2, 1)
