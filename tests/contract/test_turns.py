"""Adding, claiming and ending: what one turn does, and what it refuses."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from backends import CUBE, ERROR, SQUARE, Client, call, new_ids, rows, tick
from hypothesis import HealthCheck, given, settings, strategies as st

from omniq_executor import StoreError
from omniq_executor.model.codec import decode, encode
from omniq_executor.model.task import ENDS_CLAIM, Call, ErrorInfo, Event, Status, Task, target
from omniq_executor.stores.base import Batch, Outcome, ResultBatch

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
on_one_store = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def batch(form: str, *values: Any, claimed: bool = False) -> Batch:
    ids = new_ids(len(values))
    if form == "text":
        return Batch(ids[0], len(ids), SQUARE, text=rows(values), claimed=claimed)
    return Batch(ids[0], len(ids), SQUARE, calls=[call(value) for value in values], claimed=claimed)


# --- Adding ---


@pytest.mark.parametrize("form", ["text", "calls"])
def test_added_calls_are_pending_with_consecutive_ids(client: Client, form: str) -> None:
    adds, now = batch(form, 2, "three"), tick()
    turned = client.turn(now, adds=[adds])
    assert (turned.claimed, turned.refused) == ([], set())
    assert client.store.find() == [
        Task(
            id=adds.first + place, queue="work", run=client.run.id, func_path=SQUARE.path, func=SQUARE.pickle,
            args=args, enqueued_at=now,
        )
        for place, args in enumerate(["[2]", '["three"]'])
    ]  # fmt: skip


@pytest.mark.parametrize("form", ["text", "calls"])
def test_calls_added_as_claimed_run_as_first_attempt_of_who_adds_them(client: Client, other: Client, form: str) -> None:
    adds, now = batch(form, 2, claimed=True), tick()
    client.turn(now, adds=[adds])
    task = client.store.get(adds.first)
    assert (task.status, task.owner, task.attempts) == (Status.RUNNING, client.owner, 1)
    assert (task.enqueued_at, task.started_at) == (now, now)
    assert other.claim() == []


@pytest.mark.parametrize("added", [call(2, base=3), Call(b"a pickle", None, b"identity")])
def test_add_claimed_does_what_a_turn_of_one_claimed_add_does(client: Client, other: Client, added: Call) -> None:
    (one, two), now = new_ids(2), tick()
    client.turn(now, adds=[Batch(one, 1, CUBE, calls=[added], claimed=True)])
    client.store.add_claimed(client.owner, client.run, two, CUBE, added, now)
    assert client.store.get(two) == client.store.get(one)._replace(id=two)
    assert other.claim() == []
    assert other.end(Event.COMPLETE, two) == {two}
    assert client.end(Event.COMPLETE, two, result="8") == set()


def test_add_claimed_of_an_id_that_is_there_changes_nothing(client: Client) -> None:
    (id,) = client.add(1)
    before = client.store.find()
    with pytest.raises(StoreError):
        client.store.add_claimed(client.owner, client.run, id, SQUARE, call(2), tick())
    assert client.store.find() == before


def test_a_call_is_kept_with_its_named_arguments_or_as_a_pickle(client: Client) -> None:
    calls = [call(1, [2], base=3), Call(b"pickle of a call", None, b"its identity")]
    ids = new_ids(2)
    client.turn(adds=[Batch(ids[0], 2, SQUARE, calls=calls)])
    assert [(task.args, task.kwargs) for task in client.store.find()] == [
        ("[1,[2]]", '{"base":3}'),
        (b"pickle of a call", None),
    ]


def test_one_turn_adds_calls_of_several_functions(client: Client) -> None:
    first, second = new_ids(1)[0], new_ids(1)[0]
    calls = [call(3)]
    client.turn(adds=[Batch(first, 1, SQUARE, calls=calls), Batch(second, 1, CUBE, calls=calls)])
    assert [client.store.get(id).func_path for id in (first, second)] == [SQUARE.path, CUBE.path]
    assert client.store.function(CUBE.digest) == CUBE


@given(values=st.lists(plain, min_size=1, max_size=5))
@on_one_store
def test_texts_of_arguments_and_results_are_kept_to_the_letter(client: Client, values: list[Any]) -> None:
    adds = batch("text", *values, claimed=True)
    assert client.turn(adds=[adds]).refused == set()
    assert client.complete_block(adds.first, values) == set()
    found = sorted(client.store.states(range(adds.first, adds.first + adds.size)))
    assert [it.result for it in found] == [encode(value) for value in values]
    assert repr([decode(it.result or "") for it in found]) == repr(values)
    tasks = [client.store.get(it.id) for it in found]
    assert [task.args for task in tasks] == [encode([value]) for value in values]


def test_a_key_is_there_once_in_a_queue(client: Client, enter: Callable[..., Client]) -> None:
    (first,) = client.add(1, key="monday")
    with pytest.raises(StoreError):
        client.add(2, key="monday")
    client.add(3, key="tuesday")
    enter("elsewhere").add(4, key="monday")
    assert [(task.queue, task.key, task.args) for task in client.store.find()] == [
        ("work", "monday", "[1]"),
        ("work", "tuesday", "[3]"),
        ("elsewhere", "monday", "[4]"),
    ]
    client.claim(1)
    client.end(Event.COMPLETE, first)
    with pytest.raises(StoreError):  # also when it is finished
        client.add(5, key="monday")


def test_a_turn_that_fails_has_done_nothing(client: Client) -> None:
    (taken,) = client.add(1, claimed=True)
    before = client.store.find()
    adds = [batch("calls", 2), batch("text", 3), Batch(taken, 1, CUBE, calls=[call(4)])]
    ends = [Outcome(taken, 1, Event.COMPLETE, "1")]
    with pytest.raises(StoreError):
        client.turn(adds=adds, outcomes=ends, claim=5)
    assert client.store.find() == before
    assert client.end(Event.COMPLETE, taken) == set()


# --- Claiming ---


def test_claims_come_in_the_order_of_ids(client: Client) -> None:
    later, sooner = new_ids(2)[::-1]
    for id in (later, sooner):
        client.turn(adds=[Batch(id, 1, SQUARE, calls=[call(id)])])
    assert client.claim() == [sooner, later]


def test_a_claim_takes_no_more_than_its_limit(client: Client) -> None:
    ids = client.add(*range(5))
    assert [client.claim(2), client.claim(0), client.claim(2), client.claim(2)] == [ids[:2], [], ids[2:4], ids[4:]]


def test_a_claim_brings_what_is_needed_to_run_the_call(client: Client, other: Client) -> None:
    (id,) = new_ids(1)
    client.turn(adds=[Batch(id, 1, SQUARE, calls=[call(7, base=2)])])
    now = tick()
    (claimed,) = other.turn(now, claim=1).claimed
    assert claimed == (id, 1, 0, client.run.id, SQUARE.digest, "[7]", '{"base":2}', 0, None, 0)
    task = client.store.get(id)
    assert (task.status, task.owner, task.attempts, task.started_at) == (Status.RUNNING, other.owner, 1, now)


def test_what_is_claimed_is_claimed_by_nobody_else(client: Client, other: Client) -> None:
    ids = client.add(*range(4))
    assert client.claim(2) + other.claim() + client.claim() == ids


def test_only_the_own_queue_is_claimed(client: Client, enter: Callable[..., Client]) -> None:
    ids, stranger = client.add(1, 2), enter("elsewhere")
    assert stranger.claim() == []
    assert client.claim() == ids


def test_a_task_is_not_claimed_before_its_eta(client: Client) -> None:
    ids = client.add(1)  # due since 1970, by default
    assert client.turn(-1, claim=1).claimed == []
    assert [claimed.id for claimed in client.turn(0, claim=1).claimed] == ids


def test_every_claim_of_a_task_has_the_next_attempt(client: Client, other: Client) -> None:
    (id,) = client.add(1)
    for attempt, who in enumerate([client, client, other, client], 1):
        (claimed,) = who.turn(claim=1).claimed
        assert (claimed.id, claimed.attempt) == (id, attempt)
        assert who.end(Event.RELEASE, id, attempt=attempt) == set()
    assert client.store.get(id).attempts == 4


def test_a_turn_adds_then_ends_then_claims(client: Client) -> None:
    (back,) = client.add(1, claimed=True)
    done = batch("text", 2, claimed=True)
    new = batch("calls", 3)
    turned = client.turn(
        adds=[done, new],
        blocks=[ResultBatch(done.first, 1, 1, "[[4]]")],
        outcomes=[Outcome(back, 1, Event.RELEASE)],
        claim=5,
    )
    assert turned.refused == set()
    assert [(claimed.id, claimed.attempt) for claimed in turned.claimed] == [(back, 2), (new.first, 1)]
    assert client.store.get(done.first).result == "4"


def test_threads_share_a_handle(client: Client) -> None:
    done: list[int] = []
    barrier = threading.Barrier(4)

    def work() -> None:
        barrier.wait(30)
        for n in range(10):
            client.add(n)
            for id in client.claim(2):
                assert client.end(Event.COMPLETE, id) == set()
                done.append(id)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(done) == [task.id for task in client.store.find(Status.COMPLETED)]
    assert len(done) == 40


# --- Claiming one by its id ---


def test_a_task_is_claimed_by_its_id_whatever_its_queue_and_whenever_it_is_due(
    client: Client, enter: Callable[..., Client]
) -> None:
    first, second = client.add(1, 2)
    (later,) = new_ids(1)
    client.turn(adds=[Batch(later, 1, CUBE, calls=[call(3)], eta=4 * 10**15, priority=5)])
    stranger, now = enter("elsewhere"), tick()
    claimed = stranger.store.claim(stranger.owner, second, now)
    assert claimed == (second, 1, 0, client.run.id, SQUARE.digest, "[2]", None, 0, None, 0)
    task = client.store.get(second)
    assert (task.status, task.owner, task.attempts, task.started_at) == (Status.RUNNING, stranger.owner, 1, now)
    again = stranger.store.claim(stranger.owner, later, now)
    assert again is not None
    assert (again.id, again.eta, again.digest) == (later, 4 * 10**15, CUBE.digest)
    assert client.claim() == [first]
    assert stranger.end(Event.COMPLETE, second, later, result="4") == set()


def test_only_what_is_pending_is_claimed_by_its_id_and_by_one_owner(client: Client, other: Client) -> None:
    ids = client.add(*range(5), claimed=True)
    client.end(Event.COMPLETE, ids[0], result="1")
    client.end(Event.FAIL, ids[1])
    client.end(Event.RELEASE, ids[2], ids[3])
    client.store.cancel([ids[3]], tick())
    before = client.store.find()
    for id in (ids[0], ids[1], ids[3], ids[4], new_ids(1)[0]):
        assert other.store.claim(other.owner, id, tick()) is None
    assert client.store.find() == before
    claims = [who.store.claim(who.owner, ids[2], tick()) for who in (other, client)]
    assert [claim and claim.attempt for claim in claims] == [2, None]
    other.store.leave(other.owner)
    assert client.claim() == [ids[2]]


# --- Ending ---


def test_a_completed_task_has_its_result(client: Client) -> None:
    ids, now = client.add(1, 2, claimed=True), tick()
    ends = [Outcome(ids[0], 1, Event.COMPLETE, '{"a":1.0}'), Outcome(ids[1], 1, Event.COMPLETE, b"a pickle")]
    assert client.turn(now, outcomes=ends).refused == set()
    tasks = [client.store.get(id) for id in ids]
    assert [(task.status, task.result, task.finished_at) for task in tasks] == [
        (Status.COMPLETED, '{"a":1.0}', now),
        (Status.COMPLETED, b"a pickle", now),
    ]


def test_a_block_completes_consecutive_tasks(client: Client) -> None:
    ids = client.add(1, 2, 3, claimed=True)
    assert client.complete_block(ids[0], [1, "zwei", [3.0]]) == set()
    assert [task.result for task in client.store.find(Status.COMPLETED)] == ["1", '"zwei"', "[3.0]"]


@given(error=st.builds(ErrorInfo, st.text(), st.text(), st.text(), st.none() | st.binary(), st.text()))
@on_one_store
def test_a_failed_task_has_its_error(client: Client, error: ErrorInfo) -> None:
    (id,), now = client.add(1, claimed=True), tick()
    assert client.turn(now, outcomes=[Outcome(id, 1, Event.FAIL, error=error)]).refused == set()
    task = client.store.get(id)
    assert (task.status, task.error, task.finished_at, task.result) == (Status.FAILED, error, now, None)


@pytest.mark.parametrize("message", ["a name of a file: \udcff", "NUL: \0, and on"])
def test_an_error_of_any_text_can_be_kept(client: Client, message: str) -> None:
    (id,) = client.add(1, claimed=True)
    outcome = Outcome(id, 1, Event.FAIL, error=ERROR._replace(message=message))
    assert client.turn(outcomes=[outcome]).refused == set()
    (found,) = client.store.states([id])
    assert found.error
    assert found.error.message.startswith(message[:5])
    assert found.error.traceback == ERROR.traceback


@pytest.mark.parametrize(("event", "crashes"), [(Event.RELEASE, 0), (Event.CRASH, 1)])
def test_a_task_that_is_given_back_is_pending_again(client: Client, event: Event, crashes: int) -> None:
    (id,) = client.add(1, claimed=True)
    assert client.end(event, id) == set()
    task = client.store.get(id)
    assert (task.status, task.owner, task.started_at, task.attempts) == (Status.PENDING, None, None, 1)
    assert task.crashes == crashes
    (claimed,) = client.turn(claim=1).claimed
    assert (claimed.attempt, claimed.crashes) == (2, crashes)


ENDS: dict[str, Callable[[Client, int, int], set[int]]] = {
    "complete": lambda who, id, attempt: who.end(Event.COMPLETE, id, attempt=attempt, result="1"),
    "complete in a block": lambda who, id, attempt: who.complete_block(id, [1], attempt),
    "fail": lambda who, id, attempt: who.end(Event.FAIL, id, attempt=attempt),
    "release": lambda who, id, attempt: who.end(Event.RELEASE, id, attempt=attempt),
    "crash": lambda who, id, attempt: who.end(Event.CRASH, id, attempt=attempt),
}


def give_back(mine: Client, id: int) -> None:
    assert mine.end(Event.RELEASE, id) == set()


def lose_by_death(mine: Client, other: Client, id: int) -> None:
    mine.die()
    assert other.store.reap(tick()) == 1


def fail_and_retry(mine: Client, id: int) -> None:
    mine.end(Event.FAIL, id)
    assert mine.store.retry([id], tick()) == [id]


# What happens to attempt 1 of a client; then who tries to end which attempt.
LOSSES: dict[str, Callable[[Client, Client, int], tuple[Any, Client, int]]] = {
    "another's": lambda mine, other, id: (None, other, 1),
    "a later attempt": lambda mine, other, id: (None, mine, 2),
    "an earlier attempt": lambda mine, other, id: (None, mine, 0),
    "released": lambda mine, other, id: (give_back(mine, id), mine, 1),
    "released, claimed again": lambda mine, other, id: (give_back(mine, id), mine.claim(), mine, 1)[1:],
    "released, claimed by another": lambda mine, other, id: (give_back(mine, id), other.claim(), mine, 1)[1:],
    "released, cancelled": lambda mine, other, id: (give_back(mine, id), mine.store.cancel([id], 1), mine, 1)[1:],
    "crashed": lambda mine, other, id: (mine.end(Event.CRASH, id), mine, 1),
    "taken from the dead": lambda mine, other, id: (lose_by_death(mine, other, id), mine, 1),
    "completed": lambda mine, other, id: (mine.end(Event.COMPLETE, id, result="0"), mine, 1),
    "failed": lambda mine, other, id: (mine.end(Event.FAIL, id), mine, 1),
    "failed, retried": lambda mine, other, id: (fail_and_retry(mine, id), mine, 1),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("loss", LOSSES)
def test_an_end_of_a_lost_claim_is_refused_and_changes_nothing(
    client: Client, other: Client, loss: str, end: str
) -> None:
    (id,) = client.add(1, claimed=True)
    _, who, attempt = LOSSES[loss](client, other, id)
    before = client.store.get(id)
    refused = ENDS[end](who, id, attempt)
    assert client.store.get(id) == before
    assert refused == {id}


def test_one_claim_that_is_lost_does_not_harm_the_other_ends_of_its_turn(client: Client, other: Client) -> None:
    ids = client.add(*range(6), claimed=True)
    for lost in (ids[1], ids[4]):
        client.end(Event.RELEASE, lost)
    assert other.claim() == [ids[1], ids[4]]
    turned = client.turn(
        blocks=[ResultBatch(ids[0], 3, 1, '[["a"],["b"],["c"]]')],
        outcomes=[Outcome(ids[3], 1, Event.FAIL, error=ERROR), Outcome(ids[4], 1, Event.COMPLETE, "1"),
                  Outcome(ids[5], 1, Event.COMPLETE, "2")],
    )  # fmt: skip
    assert turned.refused == {ids[1], ids[4]}
    assert [client.store.get(id).result for id in ids] == ['"a"', None, '"c"', None, None, "2"]
    assert [client.store.get(id).owner for id in (ids[1], ids[4])] == [other.owner] * 2


@pytest.mark.parametrize("event", sorted(ENDS_CLAIM, key=lambda event: event.value))
def test_of_several_like_ends_only_those_of_lost_claims_are_refused(client: Client, event: Event) -> None:
    ids = client.add(*range(4), claimed=True)
    client.end(Event.RELEASE, ids[2])
    assert client.claim() == [ids[2]]  # as attempt 2
    assert client.end(event, *ids) == {ids[2]}
    assert client.statuses(ids) == [target(event), target(event), Status.RUNNING, target(event)]
    assert client.complete_block(ids[2], ["a", "b"], attempt=2) == {ids[3]}


def test_an_end_of_an_unknown_task_is_refused(client: Client) -> None:
    (id,) = new_ids(1)
    for end in ENDS.values():
        assert end(client, id, 1) == {id}
    assert client.store.find() == []


# --- Whether others were there ---


def test_a_turn_tells_whether_another_has_changed_the_store(client: Client, other: Client) -> None:
    client.turn()
    assert not client.turn().foreign
    other.add(1)
    assert client.turn().foreign
    assert not client.turn().foreign


@pytest.mark.parametrize("between", ["adding a new function", "adding one", "listening", "cancelling"])
def test_what_another_changed_is_told_by_the_next_turns_whatever_comes_between(
    client: Client, other: Client, between: str
) -> None:
    client.turn()
    other.add(1)
    turns = []
    if between == "adding a new function":
        turns.append(client.turn(adds=[Batch(new_ids(1)[0], 1, CUBE, calls=[call(1)])]))
    elif between == "adding one":
        client.store.add_claimed(client.owner, client.run, new_ids(1)[0], CUBE, call(1), tick())
    elif between == "listening":
        client.store.read_changes(client.owner)
    else:
        client.store.cancel([], tick())
    turns.append(client.turn())
    assert any(turned.foreign for turned in turns)


# --- Cancelling and reviving ---


def one_of_each(client: Client) -> dict[Status, int]:
    pending, running, completed, failed, cancelled = client.add(*range(5))
    client.store.cancel([cancelled, pending], tick())
    client.store.retry([pending], tick())
    assert client.claim() == [pending, running, completed, failed]
    client.end(Event.RELEASE, pending)
    client.end(Event.CRASH, failed)
    client.turn(claim=2)  # pending and failed again
    client.end(Event.RELEASE, pending, attempt=2)
    client.end(Event.FAIL, failed, attempt=2)
    client.end(Event.COMPLETE, completed, result="1")
    return dict(zip(Status, (pending, running, completed, failed, cancelled), strict=True))


def test_only_what_is_pending_can_be_cancelled(client: Client) -> None:
    ids, now = one_of_each(client), tick()
    before = {status: client.store.get(id) for status, id in ids.items()}
    assert client.store.cancel([*ids.values(), *new_ids(1)], now) == [ids[Status.PENDING]]
    cancelled = client.store.get(ids[Status.PENDING])
    assert (cancelled.status, cancelled.finished_at) == (Status.CANCELLED, now)
    for status in set(Status) - {Status.PENDING}:
        assert client.store.get(ids[status]) == before[status]
    assert client.claim() == []


def test_what_runs_is_cancelled_only_by_who_wishes_that(client: Client, other: Client) -> None:
    ids, now = one_of_each(client), tick()
    before = {status: client.store.get(id) for status, id in ids.items()}
    for one in (client, other):
        one.store.read_changes(one.owner)
    pending, running = ids[Status.PENDING], ids[Status.RUNNING]
    assert sorted(client.store.cancel([*ids.values(), *new_ids(1)], now, running=True)) == [pending, running]
    cancelled = client.store.get(running)
    assert (cancelled.status, cancelled.finished_at, cancelled.attempts) == (Status.CANCELLED, now, 1)
    for status in (Status.COMPLETED, Status.FAILED, Status.CANCELLED):
        assert client.store.get(ids[status]) == before[status]
    assert (
        sorted(client.store.read_changes(client.owner))
        == sorted(other.store.read_changes(other.owner))
        == [pending, running]
    )


@pytest.mark.parametrize("event", sorted(ENDS_CLAIM, key=str))
def test_a_claim_whose_task_was_cancelled_is_refused_its_end(client: Client, event: Event) -> None:
    (id,) = client.add(1)
    client.claim()
    client.store.cancel([id], tick(), running=True)
    assert client.turn(outcomes=[Outcome(id, 1, event, "1" if event is Event.COMPLETE else None)]).refused == {id}
    assert client.store.get(id).status is Status.CANCELLED
    assert client.store.retry([id], tick()) == [id]
    assert [(it.id, it.attempt) for it in client.turn(claim=1).claimed] == [(id, 2)]


def test_only_what_failed_or_was_cancelled_can_be_retried(client: Client) -> None:
    ids = one_of_each(client)
    before = {status: client.store.get(id) for status, id in ids.items()}
    retried = [ids[Status.FAILED], ids[Status.CANCELLED]]
    assert sorted(client.store.retry([*ids.values(), *new_ids(1)], tick())) == retried
    for status in (Status.PENDING, Status.RUNNING, Status.COMPLETED):
        assert client.store.get(ids[status]) == before[status]
    failed, cancelled = map(client.store.get, retried)
    assert (failed.status, failed.error, failed.crashes, failed.finished_at) == (Status.PENDING, None, 0, None)
    assert (cancelled.status, cancelled.finished_at) == (Status.PENDING, None)
    claimed = client.turn(claim=9).claimed
    assert [(it.id, it.attempt) for it in claimed] == [(ids[Status.PENDING], 3), (failed.id, 3), (cancelled.id, 1)]
