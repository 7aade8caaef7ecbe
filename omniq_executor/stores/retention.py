"""What is kept for how long, and what depends on what: decided in the same way for every store, without I/O.

A run says when it begins how long its results are to be kept (`result_ttl`), counted from its clean end. It lasts
longer where a later run has continued it: what that took over is still of the first one, so all of it goes with the
last of them. A run that may still be continued, because it or one that continues it did not end clean and nothing
has settled that, has no such end.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from ..model.options import MEMO

if TYPE_CHECKING:
    from .base import RunRecord

KEPT_KEYS = f"(key IS NULL OR key GLOB '{MEMO}*')"  # in SQL: the same as `goes_with_its_run()` says of a key


class Expired(NamedTuple):
    """Runs whose results are to go."""

    before: dict[int, int]  # by run: only what finished before that time goes
    newest: int  # the newest run of all, as they were looked at

    def still(self, continued: Iterable[Iterable[int]]) -> dict[int, int]:
        """Return `before` less the runs that newer ones continue, of each of which it is given those."""
        those = {id for ids in continued for id in ids}
        return {run: before for run, before in self.before.items() if run not in those}


def expiries(runs: Collection["RunRecord"]) -> dict[int, int]:
    """Return by run when its results are to go, of those for which that is certain by now."""
    found: dict[int, int | None] = {}
    clean_ends: dict[tuple[str, str], int] = {}  # of the runs that are alike, the first one that followed
    for run in sorted(runs, key=lambda run: -run.id):
        alike = run.queue, run.context
        if run.settled and run.clean and run.ended_at is not None:
            clean_ends[alike] = run.ended_at
        over_at = run.ended_at if run.clean else clean_ends.get(alike, run.ended_at or run.started_at)
        is_certain = run.settled and run.result_ttl is not None and over_at is not None
        found[run.id] = over_at + run.result_ttl if is_certain else None  # type: ignore[operator]
    latest = dict(found)
    for run in runs:
        for earlier in run.continues:
            latest[earlier] = _later(latest.get(earlier), found[run.id])
    return {id: at for id, at in latest.items() if at is not None}


def _later(at: int | None, other: int | None) -> int | None:
    return None if at is None or other is None else max(at, other)


def expired(runs: Collection["RunRecord"], now: int) -> Expired:
    """Return the runs whose results are to go by now."""
    due = {id for id, at in expiries(runs).items() if at <= now}
    before = {run.id: now - (run.result_ttl or 0) for run in runs if run.id in due}
    return Expired(before, max((run.id for run in runs), default=0))


def goes_with_its_run(key: str | None) -> bool:
    """Return whether a finished task with that key goes. What a key names is done once and for all; a memo is not."""
    return key is None or key.startswith(MEMO)


def with_dependents(ids: Iterable[int], after: Mapping[int, Iterable[int]]) -> set[int]:
    """Return these tasks and those that were given their results, and so on; `after` has what each was given."""
    given_to: dict[int, list[int]] = {}
    for id, needed in after.items():
        for other in needed:
            given_to.setdefault(other, []).append(id)
    found, left = set[int](), list(ids)
    while left:
        id = left.pop()
        if id not in found:
            found.add(id)
            left += given_to.get(id, ())
    return found


def names(function: str, path: str) -> bool:
    """Return whether a function is meant by a name: its whole dotted path, or the end of it."""
    return path == function or path.endswith("." + function)
