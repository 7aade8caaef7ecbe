"""From what workers report to what the store is told. Pure: reports in, ends of claims out."""

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..engines.base import CRASHED, ERROR, RESULT, RESULTS, TIMED_OUT, Report
from ..errors import CallError, DependencyFailed, SerializationError, TaskTimeout, TooLarge, WorkerCrashed
from ..model import codec
from ..model.options import next_occurrence, retry_at
from ..model.task import FINISHED, ErrorInfo, Event, Status, Successor, format_id
from ..stores.base import Claimed, Outcome, ResultBatch, TaskState, Turn

UNMET = "unmet"  # kind of a Report: it was not run for want of results; payload: what it comes after, as it stands
ORPHANED = "orphaned"  # likewise, since its owners died in it; payload: how many
_QUOTED = 500  # characters of the error of another task


class ClaimEnds(NamedTuple):
    """The ends of claims that a turn commits, and what whoever waits is told then."""

    blocks: list[ResultBatch]
    outcomes: list[Outcome]
    resolutions: list[tuple[Sequence[int], Any]]  # as Waiters.resolve_all() takes them

    @property
    def gives_back(self) -> bool:
        """Whether a task becomes PENDING again, or another is added."""
        for end in self.outcomes:
            if end.event is Event.CRASH or end.event is Event.RETRY or end.successor is not None:
                return True
        return False


def claim_ends_of(
    reports: Sequence[Report],
    claims: Mapping[int, Claimed],
    crash_retries: int,
    now: int,
    new_id: Callable[[], int],
) -> ClaimEnds:
    """The ends that reports stand for, at `now` microseconds.

    `claims` has what is known of those tasks that crashed before or have options. One that crashes
    more often than `crash_retries` fails; `new_id` is asked for the id of a next occurrence.
    """
    ends = _claim_ends_of(reports, claims, crash_retries)
    if claims:
        _heed_options(ends, claims, now, new_id)
    return ends


def _claim_ends_of(reports: Sequence[Report], claims: Mapping[int, Claimed], crash_retries: int) -> ClaimEnds:
    ends = ClaimEnds([], [], [])
    for kind, ids, attempts, payload in reports:
        id, attempt = ids[0], attempts[0]
        if kind == RESULT:
            _complete(ends, id, attempt, payload)
        elif kind == RESULTS and claims and not claims.keys().isdisjoint(ids):
            for one, its_attempt, text in zip(ids, attempts, codec.split(payload), strict=True):
                _complete(ends, one, its_attempt, text[1:-1])
        elif kind == RESULTS:
            for batch in _consecutive(ids, attempts, payload):
                ends.blocks.append(batch)
                ends.resolutions.append((range(batch.first, batch.first + batch.size), batch))
        elif kind == ERROR:
            _fail(ends, id, attempt, payload)
        elif kind == CRASHED:
            count = claims[id].crashes + 1 if id in claims else 1
            if count > crash_retries:
                _fail(ends, id, attempt, _crash_error(id, attempt, count, payload))
            else:
                ends.outcomes.append(Outcome(id, attempt, Event.CRASH))
        elif kind == TIMED_OUT:
            _fail(ends, id, attempt, _timeout_error(id, attempt, payload))
        elif kind == ORPHANED:
            _fail(ends, id, attempt, _orphan_error(id, payload))
        elif kind == UNMET:
            if all(found is None or found.status in FINISHED for found in payload.values()):
                _fail(ends, id, attempt, _dependency_error(id, payload))
            else:  # one was retried meanwhile
                ends.outcomes.append(Outcome(id, attempt, Event.RELEASE))
    return ends


def _heed_options(ends: ClaimEnds, claims: Mapping[int, Claimed], now: int, new_id: Callable[[], int]) -> None:
    """Have those that failed tried again that may be, and those that recur be followed by the next occurrence."""
    for place, end in enumerate(ends.outcomes):
        claim = claims.get(end.id)
        if claim is None or claim.options is None or end.event in (Event.CRASH, Event.RELEASE):
            continue
        if end.error is not None and (eta := retry_at(claim.options, end.error, now)) is not None:
            ends.outcomes[place] = end._replace(event=Event.RETRY, eta=eta)
            ends.resolutions.remove(((end.id,), end.error))
        elif claim.options.interval is not None:
            due = next_occurrence(claim.eta or now, claim.options.interval, now)
            ends.outcomes[place] = end._replace(successor=Successor(new_id(), due))


def singly(work: Turn) -> Iterator[Outcome]:
    """The outcomes of a turn, those in blocks too, one by one."""
    yield from work.outcomes
    for first, _, attempt, text in work.blocks:
        for id, (value,) in enumerate(codec.decode(text), first):
            yield Outcome(id, attempt, Event.COMPLETE, result=codec.encode(value))


def too_large(outcome: Outcome, why: TooLarge) -> Outcome:
    """What becomes of a call whose outcome the store cannot hold."""
    error = SerializationError(f"what {format_id(outcome.id)} returned or raised is too large: {why}")
    return outcome._replace(event=Event.FAIL, result=None, error=error_info(error))


def _complete(ends: ClaimEnds, id: int, attempt: int, result: str | bytes) -> None:
    ends.outcomes.append(Outcome(id, attempt, Event.COMPLETE, result=result))
    ends.resolutions.append(((id,), result))


def _fail(ends: ClaimEnds, id: int, attempt: int, error: ErrorInfo) -> None:
    ends.outcomes.append(Outcome(id, attempt, Event.FAIL, error=error))
    ends.resolutions.append(((id,), error))


def _consecutive(ids: Sequence[int], attempts: Sequence[int], text: str) -> Iterator[ResultBatch]:
    """Yield results in parts with consecutive ids and one attempt each."""
    count = len(ids)
    # All of them: of calls that came back and were given again, the first and the last alone say nothing.
    if [*ids] == [*range(ids[0], ids[0] + count)] and attempts.count(attempts[0]) == count:
        yield ResultBatch(ids[0], count, attempts[0], text)
        return
    values = codec.decode(text)
    start = 0
    for i in range(1, count + 1):
        if i == count or ids[i] != ids[i - 1] + 1 or attempts[i] != attempts[start]:
            yield ResultBatch(ids[start], i - start, attempts[start], codec.encode_rows(values[start:i]) or "")
            start = i


def _crash_error(id: int, attempt: int, crashes: int, how: str) -> ErrorInfo:
    error = WorkerCrashed(
        f"the process running {format_id(id)} ended by {how}, as attempt {attempt};"
        f" it has happened {crashes} times to this call, so it is not tried again"
    )
    return error_info(error)


def _orphan_error(id: int, deaths: int) -> ErrorInfo:
    error = WorkerCrashed(
        f"the process that {format_id(id)} was submitted by, or whose worker ran it, died {deaths} times while it"
        " had this call, the last time with nothing else running; so it is not tried again"
    )
    return error_info(error)


def _timeout_error(id: int, attempt: int, limit_s: float) -> ErrorInfo:
    return error_info(
        TaskTimeout(f"{format_id(id)} ran for more than {limit_s:g} s, as attempt {attempt}, and was ended")
    )


def _dependency_error(id: int, after: Mapping[int, TaskState | None]) -> ErrorInfo:
    other, found = next(
        (other, found) for other, found in after.items() if found is None or found.status is not Status.COMPLETED
    )
    if found is None:
        how = "which the store does not hold any more"
    elif found.error is None:
        how = f"which is {found.status.name}"
    else:
        # The end of it, which tells how a chain of such failures began.
        text = f"{found.error.type}: {found.error.message}"
        how = f"which {found.status.name}: {text if len(text) <= _QUOTED else '... ' + text[-_QUOTED:]}"
    return error_info(DependencyFailed(f"{format_id(id)} needs the result of {format_id(other)}, {how}"))


def error_info(error: CallError) -> ErrorInfo:
    """An error of our own as it is stored."""
    return ErrorInfo(f"omniq_executor.errors.{type(error).__name__}", str(error), "", pickle.dumps(error))
