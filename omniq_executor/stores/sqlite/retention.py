"""Transactions of the SQLite store about what is kept for how long, see turns.py and stores/retention.py."""

import json
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from ..retention import KEPT_KEYS, Expired, expiries, names, with_dependents
from . import tally
from .runs import FORGET_TAKEN, all_runs
from .tables import GIVEN, IS_FINISHED, Transaction
from .waits import IS_FREE

_REMOVE = f"DELETE FROM task WHERE {IS_FINISHED} AND {IS_FREE} AND %s RETURNING id, queue, run, status, attempts"
_REMOVE_GIVEN = _REMOVE % f"id IN {GIVEN}"
_KEPT = (
    f"INDEXED BY task_key WHERE key IS NOT NULL AND NOT {KEPT_KEYS}",
    f"WHERE id IN (SELECT needs FROM dependency) AND {KEPT_KEYS}",
)
_EXPIRE = _REMOVE % f"id > ? AND id <= ? AND run IN {GIVEN} AND finished_at < ? AND {KEPT_KEYS}"


def remove(ids: Sequence[int]) -> Transaction[dict[int, int]]:
    """Remove finished tasks; returns how many attempts each of them had. See Store.remove()."""
    return (yield from _remove(_REMOVE_GIVEN, json.dumps(list(ids))))


def _remove(sql: str, *parameters: object) -> Transaction[dict[int, int]]:
    rows, _ = yield sql, parameters
    yield from tally.removed(rows)
    return {id: attempts for id, _, _, _, attempts in rows}


def results_of(function: str, queue: str | None) -> Transaction[tuple[list[int], list[int]]]:
    """Return finished tasks of a function, and those that were given their results. See Store.results_of()."""
    rows, _ = yield "SELECT id, path FROM function", ()
    meant = json.dumps([id for id, path in rows if names(function, path)])
    rows, _ = yield (
        f"SELECT id FROM task WHERE {IS_FINISHED} AND function IN {GIVEN}"
        " AND (? IS NULL OR queue = (SELECT id FROM queue WHERE name = ?))",
        (meant, queue, queue),
    )
    calls = {id for (id,) in rows}
    rows, _ = yield (
        "SELECT id, options ->> 'after' FROM task WHERE options IS NOT NULL AND options ->> 'after' IS NOT NULL",
        (),
    )
    dependents = with_dependents(calls, {id: json.loads(after) for id, after in rows}) - calls
    rows, _ = yield f"SELECT id FROM task WHERE {IS_FINISHED} AND id IN {GIVEN}", (json.dumps(list(dependents)),)
    return sorted(calls, reverse=True), sorted((id for (id,) in rows), reverse=True)


class Step(NamedTuple):
    """What a step of an expiry did."""

    last: int | None  # the last task that was looked at, or None where there is none left
    looked_at: int
    removed: dict[int, int]  # the attempts of those that were removed
    runs: set[int]  # that still have tasks among those that were looked at
    functions: set[int]  # likewise


def expire(going: Expired, after: int, most: int) -> Transaction[Step]:
    """Look at the next `most` tasks after one, and remove those that are to go."""
    rows, _ = yield "SELECT id FROM task WHERE id > ? ORDER BY id LIMIT ?", (after, most)
    if not rows:
        return Step(None, 0, {}, set(), set())
    last = rows[-1][0]
    still = yield from _still_expired(going)
    removed: dict[int, int] = {}
    for before in set(still.values()):
        ids = [run for run, at in still.items() if at == before]
        removed.update((yield from _remove(_EXPIRE, after, last, json.dumps(ids), before)))
    left, _ = yield "SELECT DISTINCT run, function FROM task WHERE id > ? AND id <= ?", (after, last)
    return Step(last, len(rows), removed, {run for run, _ in left}, {function for _, function in left})


def _still_expired(going: Expired) -> Transaction[dict[int, int]]:
    """Return what goes of which runs, but for those that a run has continued since they were looked at."""
    rows, _ = yield "SELECT continues FROM run WHERE id > ?", (going.newest,)
    return going.still(json.loads(continues) for (continues,) in rows)


def end_expiry(
    going: Expired, last: int, used_runs: Collection[int], functions: Collection[int], owner: int
) -> Transaction[bool]:
    """Remove the expired runs, and the functions, that no task has; returns whether functions were.

    `used_runs` and `functions` are those of the tasks up to `last`.
    """
    empty = set((yield from _still_expired(going))).difference(used_runs)
    yield (
        f"DELETE FROM run WHERE id IN {GIVEN} AND id < (SELECT max(id) FROM run)"
        " AND id NOT IN (SELECT run FROM task WHERE id > ?)",
        (json.dumps(list(empty)), last),
    )
    yield FORGET_TAKEN, ()
    # While another owner is there it may know the number of a function, which another could be given then.
    _, dropped = yield (
        f"DELETE FROM function WHERE id NOT IN {GIVEN} AND id NOT IN (SELECT function FROM task WHERE id > ?)"
        " AND NOT EXISTS (SELECT 1 FROM owner WHERE id <> ?)",
        (json.dumps(list(functions)), last, owner),
    )
    return dropped > 0


def expiring() -> Transaction[tuple[int | None, list[tuple[int, int]]]]:
    """Return when the oldest task was added, and when tasks are to go, with how many."""
    rows, _ = yield "SELECT enqueued_at FROM task ORDER BY id LIMIT 1", ()
    oldest = rows[0][0] if rows else None
    records = yield from all_runs()
    at = expiries(records)
    ttl = {run.id: run.result_ttl or 0 for run in records}
    rows = yield from _going(list(at))
    return oldest, sorted((max(at[run], last + ttl[run]), count) for run, count, last in rows)


def _going(runs: list[int]) -> Transaction[list[Any]]:
    """Return of these runs how many tasks go with them, and when the last task of each finished, or later."""
    kept = Counter[int]()  # of finished tasks, by run
    for keyed_or_needed in _KEPT:
        rows, _ = yield f"SELECT run, count(*) FROM task {keyed_or_needed} AND {IS_FINISHED} GROUP BY run", ()
        kept.update(dict(rows))
    finished = tally.OF_RUNS.format(f"{IS_FINISHED} AND run IN {GIVEN}")
    rows, _ = yield finished, 2 * (json.dumps(runs),)
    return [(run, tasks - kept[run], last) for run, tasks, last in rows if tasks > kept[run]]
