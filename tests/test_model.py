"""The table of what may happen to a task, and the ids and times of tasks."""

import contextlib
from datetime import UTC, datetime

import pytest
from hypothesis import given, strategies as st

from omniq_executor.model.task import (
    ALPHABET,
    ENDS_CLAIM,
    FINISHED,
    LAST_TIER,
    TRANSITIONS,
    Claim,
    ErrorInfo,
    Event,
    Refused,
    Status,
    Successor,
    Task,
    apply,
    format_id,
    iso,
    parse_id,
    source,
    succeed,
    target,
    tier,
)

ids = st.integers(0, 2**63 - 1)
NEW = Task(id=7, queue="work", run=1, func_path="numbers.square", func=b"", args="[2]", enqueued_at=10)
ERROR = ErrorInfo("ValueError", "no", "Traceback")
CLAIM = Claim(owner=5, attempt=1)


def in_state(status: Status) -> Task:
    """A task that came to a state by the shortest way."""
    running = apply(NEW, Event.CLAIM, 20, claim=CLAIM)
    return {
        Status.PENDING: NEW,
        Status.RUNNING: running,
        Status.COMPLETED: apply(running, Event.COMPLETE, 30, claim=CLAIM, result="4"),
        Status.FAILED: apply(running, Event.FAIL, 30, claim=CLAIM, error=ERROR),
        Status.CANCELLED: apply(NEW, Event.CANCEL, 30),
    }[status]


def happen(task: Task, event: Event, owner: int | None = 5, attempt: int | None = None) -> Task:
    """Let an event happen to a task, with a claim that suits it unless told otherwise."""
    if attempt is None:
        attempt = task.attempts + (event is Event.CLAIM)
    return apply(task, event, 40, claim=Claim(owner, attempt), result="4", error=ERROR)  # type: ignore[arg-type]


# --- The table ---


@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("status", Status)
def test_an_event_leads_where_the_table_says_or_is_refused(status: Status, event: Event) -> None:
    task = in_state(status)
    assert task.status is status
    if (status, event) in TRANSITIONS:
        assert happen(task, event).status is TRANSITIONS[status, event]
    else:
        with pytest.raises(Refused, match=rf"{task.task_id} is {status.name}: {event.value} is not possible"):
            happen(task, event)
    assert task == in_state(status)


def test_only_a_claim_leads_to_running_and_only_a_wish_out_of_a_finished_state() -> None:
    assert source(Event.CLAIM) == (Status.PENDING,)
    assert [to for to in TRANSITIONS.values() if to is Status.RUNNING] == [Status.RUNNING]
    assert {key for key in TRANSITIONS if key[0] in FINISHED} == {
        (Status.FAILED, Event.MANUAL_RETRY),
        (Status.CANCELLED, Event.MANUAL_RETRY),
    }


def test_what_ends_a_claim_is_what_may_happen_to_a_running_task() -> None:
    anybodys = {Event.ABORT, Event.ORPHAN}
    assert {event for status, event in TRANSITIONS if status is Status.RUNNING} == ENDS_CLAIM | anybodys
    assert not ENDS_CLAIM & anybodys


@pytest.mark.parametrize("event", Event)
def test_source_and_target_are_read_from_the_table(event: Event) -> None:
    assert {(status, event): target(event) for status in source(event)} == {
        key: to for key, to in TRANSITIONS.items() if key[1] is event
    }


# --- What an event changes ---


def test_a_claim_names_its_owner_and_is_the_next_attempt() -> None:
    running = apply(NEW, Event.CLAIM, 20, claim=CLAIM)
    assert (running.owner, running.attempts, running.started_at) == (5, 1, 20)
    for claim in (None, Claim(5, 0), Claim(5, 2)):
        with pytest.raises(Refused, match="is not the next"):
            apply(NEW, Event.CLAIM, 20, claim=claim)


@pytest.mark.parametrize("event", sorted(ENDS_CLAIM, key=lambda event: event.value))
def test_only_the_present_claim_can_be_ended(event: Event) -> None:
    running = in_state(Status.RUNNING)
    for claim in (None, Claim(6, 1), Claim(5, 2), Claim(5, 0)):
        with pytest.raises(Refused, match="is claimed by 5 as attempt 1"):
            apply(running, event, 40, claim=claim)
    again = happen(happen(running, Event.RELEASE), Event.CLAIM)
    with pytest.raises(Refused, match="as attempt 2"):  # the first claim has come to its end
        apply(again, event, 40, claim=CLAIM)


def test_a_finished_task_has_a_time_and_a_result_or_an_error() -> None:
    completed, failed, cancelled = map(in_state, (Status.COMPLETED, Status.FAILED, Status.CANCELLED))
    assert (completed.result, completed.error, completed.completed_at, completed.failed_at) == ("4", None, 30, None)
    assert (failed.result, failed.error, failed.completed_at, failed.failed_at) == (None, ERROR, None, 30)
    assert (cancelled.finished_at, cancelled.completed_at, cancelled.failed_at) == (30, None, None)


@pytest.mark.parametrize(("event", "crashes"), [(Event.RELEASE, 0), (Event.CRASH, 1)])
def test_what_is_given_back_keeps_its_attempts_and_only_a_crash_is_charged(event: Event, crashes: int) -> None:
    back = happen(in_state(Status.RUNNING), event)
    assert (back.owner, back.started_at, back.attempts, back.crashes) == (None, None, 1, crashes)


def test_a_revived_task_starts_anew_but_for_its_attempts() -> None:
    crashed = happen(in_state(Status.RUNNING), Event.CRASH)
    failed = happen(happen(crashed, Event.CLAIM), Event.FAIL)
    retried = happen(failed, Event.MANUAL_RETRY)
    assert (retried.error, retried.finished_at, retried.crashes, retried.attempts) == (None, None, 0, 2)


@given(events=st.lists(st.tuples(st.sampled_from(Event), st.sampled_from([5, 6]), st.integers(0, 4)), max_size=30))
def test_attempts_only_grow_and_what_is_finished_has_a_time(events: list[tuple[Event, int, int]]) -> None:
    task = NEW
    for event, owner, attempt in events:
        before = task
        try:
            task = happen(task, event, owner, attempt)
        except Refused:
            continue
        assert task.status is TRANSITIONS[before.status, event]
        assert task.attempts == before.attempts + (event is Event.CLAIM)
        assert (task.finished_at is not None) == (task.status in FINISHED)
        assert task.status is not Status.RUNNING or task.owner is not None


# --- Ids ---


@given(number=ids)
def test_an_id_is_read_back(number: int) -> None:
    shown = format_id(number)
    assert parse_id(shown) == number
    assert shown.startswith("task-")
    assert len(shown) == 18
    assert set(shown[5:]) <= set(ALPHABET)


@given(a=ids, b=ids)
def test_shown_ids_sort_like_their_numbers(a: int, b: int) -> None:
    assert (format_id(a) < format_id(b)) == (a < b)


@given(text=st.text(ALPHABET + "task-ILOU \n", max_size=20).flatmap(lambda t: st.sampled_from([t, f"task-{t}"])))
def test_whatever_is_read_as_an_id_is_how_it_is_shown(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert format_id(parse_id(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "", "task-", "0000000000007", "task-7", "task-00000000000007", "TASK-0000000000007", "task-000000000000I",
        "task-000000000000A", "task-8000000000000", " task-0000000000007", "task-0000000000007\n",
        "task-task-0000000000007", "task-../../../etc",
    ],
)  # fmt: skip
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a task id"):
        parse_id(text)


# --- Times ---


def test_times_are_shown_in_utc_to_the_microsecond() -> None:
    assert iso(None) is None
    assert iso(0) == "1970-01-01T00:00:00.000000Z"
    assert iso(1_700_000_000_000_001) == "2023-11-14T22:13:20.000001Z"


@given(microseconds=st.integers(-(2**45), 2**52))
def test_a_shown_time_is_read_back_exactly(microseconds: int) -> None:
    moment = datetime.fromisoformat(str(iso(microseconds)))
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    assert (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds == microseconds


# --- The death of an owner ---


def test_the_death_of_its_owner_is_counted_apart_and_is_anybodys_to_tell() -> None:
    back = apply(in_state(Status.RUNNING), Event.ORPHAN, 40)
    assert (back.status, back.owner, back.started_at, back.attempts) == (Status.PENDING, None, None, 1)
    assert (back.owner_deaths, back.crashes) == (1, 0)
    again = apply(happen(back, Event.CLAIM), Event.ORPHAN, 50)
    assert (again.owner_deaths, again.attempts) == (2, 2)


@pytest.mark.parametrize(("deaths", "of_tier"), [(0, 0), (1, 1), (2, 2), (3, 2), (9, 2)])
def test_a_tier_is_the_number_of_deaths_up_to_the_last(deaths: int, of_tier: int) -> None:
    assert tier(NEW._replace(owner_deaths=deaths)) == of_tier <= LAST_TIER


def test_only_a_revival_forgets_the_deaths() -> None:
    orphan = NEW._replace(owner_deaths=2)
    for event in (Event.RELEASE, Event.CRASH, Event.RETRY):
        assert happen(happen(orphan, Event.CLAIM), event).owner_deaths == 2
    failed = happen(happen(orphan, Event.CLAIM), Event.FAIL)
    assert failed.owner_deaths == 2
    assert happen(failed, Event.MANUAL_RETRY).owner_deaths == 0
    assert happen(happen(orphan, Event.CANCEL), Event.MANUAL_RETRY).owner_deaths == 0
    assert succeed(orphan, Successor(9, 5), 7).owner_deaths == 0
