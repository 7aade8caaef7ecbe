"""What a loop of submit() takes over of earlier runs is read ahead, and is the same as if it were not."""

import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, strategies as st

from omniq_executor import StoreError
from omniq_executor.dispatch import ahead
from omniq_executor.dispatch.resumption import Resumption
from omniq_executor.dispatch.waiters import Waiters
from omniq_executor.model.task import Call, Function, Status
from omniq_executor.stores.base import Resumable, Run, TaskState

RUN = Run(2, "work", (1,), done=1, total=1)
FUNCTIONS = [Function(bytes([n]) * 16, f"module.function_{n}", b"") for n in range(2)]
Key = tuple[bytes, str | bytes]


class OneRun:
    """A store of what one earlier run has left, in order of id. It counts what it is asked, and can refuse that."""

    def __init__(self, tasks: Sequence[tuple[int, Any, Status]]) -> None:
        self.left: list[tuple[Key, TaskState]] = [
            ((FUNCTIONS[function].digest, text(value)), TaskState(id, status, None, f"{id}", None))
            for id, (function, value, status) in enumerate(tasks)
        ]
        self._all = [*self.left]
        self.noted: list[int] = []
        self.asked: Counter[str] = Counter()
        self.refuses: set[str] = set()
        self.removals = 0

    def _ask(self, what: str) -> None:
        self.asked[what] += 1
        if what in self.refuses:
            raise StoreError(f"{what} is refused")

    def take_over(self, run: Run, function: Function, calls: Sequence[Call], now: int) -> list[TaskState | None]:
        self._ask("take_over")
        return [self.give((function.digest, call.likeness)) for call in calls]

    def give(self, key: Key) -> TaskState | None:
        """What the next such call is given, by the rule."""
        for place, (of, state) in enumerate(self.left):
            if of == key:
                del self.left[place]
                self.noted.append(state.id)
                return state
        return None

    def ahead(self, run: Run, function: Function, after: int, most: int) -> list[tuple[str | bytes, TaskState]]:
        self._ask("ahead")
        there = [it for it in self.left if it[1].id > after][:most]
        firsts = {key: state.id for key, state in reversed(self.left)}
        return [
            (key[1], state)
            for key, state in there
            if key[0] == function.digest and state.status is Status.COMPLETED and firsts[key] == state.id
        ]

    def note_given(self, run: Run, given: Mapping[int, Key]) -> None:
        self._ask("note_given")
        assert given.keys() <= {state.id for _, state in self.left}
        self.left = [it for it in self.left if it[1].id not in given]
        self.noted += given

    def resumable(
        self, run: Run, path: str, likenesses: Collection[str | bytes]
    ) -> dict[str | bytes, list[Resumable]] | None:
        return None

    def offer_more(self, run: Run, ids: Collection[int]) -> None:
        self._ask("offer_more")
        more = [it for it in self._all if it[1].id in ids]
        self.left = sorted([*self.left, *more], key=lambda it: it[1].id)

    def offer_again(self, run: Run) -> Run:
        self.left = [it for it in self._all if it[1].status is Status.COMPLETED]
        return run


def text(value: Any) -> str:
    return f"[{value}]"


def resumption_of(store: Any) -> Resumption:
    return Resumption(store, RUN, Waiters(), False, "crashed")


def find(resumption: Resumption, function: int, value: Any) -> int | None:
    """The task that the call is given."""
    found, _ = resumption.find(FUNCTIONS[function], Call(text(value), None), None)
    return found and found.id


functions, values = st.sampled_from([0, 0, 0, 1]), st.integers(0, 4)
statuses = st.sampled_from([*[Status.COMPLETED] * 3, Status.PENDING, Status.RUNNING])
submits = st.tuples(functions, values)
maps = st.tuples(functions, st.lists(values, max_size=4))


@given(
    st.lists(st.tuples(functions, values, statuses), min_size=4, max_size=40),
    st.lists(submits | submits | maps | st.sampled_from(["note", "ahead", "note_given"]), min_size=8, max_size=60),
)
def test_calls_are_given_what_they_would_be_given_one_by_one(tasks: list[Any], steps: list[Any]) -> None:
    store, rule = OneRun(tasks), OneRun(tasks)
    resumption = resumption_of(store)
    for step in steps:
        match step:
            case "note":
                resumption.note_given()
            case "ahead" | "note_given":
                store.refuses = {"ahead"} if step == "ahead" else set()  # from now on
            case function, [*items]:
                expected = [rule.give((FUNCTIONS[function].digest, text(item))) for item in items]
                calls = [Call(text(item), None) for item in items]
                assert [look.found for look in resumption.find_each(FUNCTIONS[function], calls)] == expected
            case function, value:
                state = rule.give((FUNCTIONS[function].digest, text(value)))
                assert find(resumption, function, value) == (state and state.id)
    resumption.note_given()
    assert sorted(store.noted) == sorted(rule.noted)
    assert store.left == rule.left


def test_what_was_read_ahead_and_is_given_to_a_map_is_given_to_no_other_call() -> None:
    resumption = resumption_of(OneRun([(0, n, Status.COMPLETED) for n in range(3)]))
    assert find(resumption, 0, 0) == 0
    looks = resumption.find_each(FUNCTIONS[0], [Call(text(1), None), Call(text(2), None)])
    assert [look.found and look.found.id for look in looks] == [1, 2]
    assert find(resumption, 0, 1) is None


def test_a_loop_in_the_order_of_the_last_time_asks_the_store_some_times_only() -> None:
    store = OneRun([(0, n, Status.COMPLETED) for n in range(5_000)])
    resumption = resumption_of(store)
    assert [find(resumption, 0, n) for n in range(5_000)] == [*range(5_000)]
    resumption.note_given()
    assert store.asked.total() < 50
    assert sorted(store.noted) == [*range(5_000)]
    assert resumption.resumed.reused == 5_000


def test_loops_of_several_functions_in_turn_ask_the_store_some_times_only() -> None:
    store = OneRun([(n % 2, n, Status.COMPLETED) for n in range(4_000)])
    resumption = resumption_of(store)
    assert [find(resumption, n % 2, n) for n in range(4_000)] == [*range(4_000)]
    assert store.asked.total() < 80


def test_a_loop_that_leaves_out_every_fourth_call_still_reads_ahead() -> None:
    store = OneRun([(0, n, Status.COMPLETED) for n in range(4_000)])
    resumption = resumption_of(store)
    wanted = [n for n in range(4_000) if n % 4]
    assert [find(resumption, 0, n) for n in wanted] == wanted
    assert store.asked.total() < 80


def test_a_loop_in_another_order_hardly_reads_ahead() -> None:
    store = OneRun([(0, n, Status.COMPLETED) for n in range(2_000)])
    resumption, order = resumption_of(store), [*range(2_000)]
    random.Random(7).shuffle(order)
    assert [find(resumption, 0, n) for n in order] == order
    assert store.asked["ahead"] < 50


def test_a_call_that_was_read_ahead_has_its_task_though_the_store_refuses_what_is_not_needed() -> None:
    store = OneRun([(0, n, Status.COMPLETED) for n in range(3_000)])
    resumption = resumption_of(store)
    assert [find(resumption, 0, n) for n in range(1_200)] == [*range(1_200)]
    store.refuses = {"note_given"}
    assert find(resumption, 0, 1_200) == 1_200
    with pytest.raises(StoreError, match="note_given is refused"):  # before anything is changed
        resumption.find_each(FUNCTIONS[0], [Call(text(2_999), None)])
    store.refuses = set()
    assert find(resumption, 0, 2_999) == 2_999
    resumption.note_given()
    assert sorted(store.noted) == [*range(1_201), 2_999]


def test_what_is_offered_again_is_given_again() -> None:
    store = OneRun([(0, n, Status.COMPLETED) for n in range(20)])
    resumption = resumption_of(store)
    assert [find(resumption, 0, n) for n in range(5)] == [*range(5)]
    resumption.continue_own()
    assert [find(resumption, 0, n) for n in (*range(20), 0)] == [*range(20), None]


def test_what_was_read_ahead_is_given_for_a_moment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(ahead.time, "monotonic", lambda: clock[0])
    store = OneRun([(0, n, Status.COMPLETED) for n in range(200)])
    resumption = resumption_of(store)
    assert [find(resumption, 0, n) for n in range(100)] == [*range(100)]
    clock[0] += 3_600  # somebody has looked at the results meanwhile, and has had them forgotten
    store.left = [it for it in store.left if it[1].id in range(100)]
    assert find(resumption, 0, 100) is None


def test_what_was_read_ahead_is_not_given_after_this_process_has_removed_something() -> None:
    store = OneRun([(0, n, Status.COMPLETED) for n in range(200)])
    resumption = resumption_of(store)
    assert [find(resumption, 0, n) for n in range(100)] == [*range(100)]
    store.left, store.removals = [it for it in store.left if it[1].id in range(100)], 1
    assert find(resumption, 0, 100) is None


def test_what_finishes_after_a_run_was_offered_to_itself_is_given_once_it_has() -> None:
    store = OneRun([(0, n, Status.COMPLETED) for n in range(6)])
    resumption = resumption_of(store)
    waiters: Any = resumption._waiters
    for id in (3, 4, 5):
        waiters.add_future(id, object())
    resumption.continue_own()
    store.left = store.left[:3]  # the rest is under way
    assert [find(resumption, 0, n) for n in (0, 3, 1)] == [0, None, 1]
    assert store.asked["offer_more"] == 0
    for id in (5, 3):
        waiters._futures.pop(id)
        waiters.count(1, "1")
    store.refuses = {"offer_more"}
    assert find(resumption, 0, 4) is None
    store.refuses = set()
    waiters._futures.pop(4)
    waiters.count(1, "1")
    assert [find(resumption, 0, n) for n in (4, 4, 2, 9)] == [4, None, 2, None]
    assert store.asked["offer_more"] == 2
