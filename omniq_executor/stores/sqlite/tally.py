"""How many tasks are finished, kept in a table by queue, run and state: parts of transactions, see turns.py.

Counting millions of tasks takes seconds, and nearly all of them are finished. A table that each turn changes would cost
a tenth of one call at a time, which writes one page more then. So it is right while no owner is registered, and that is
when stores are large and somebody asks:

    an owner       counts in memory what it finishes of its own run, and adds that as it leaves, in the same transaction
    all others     what finishes, changes or removes tasks otherwise, changes the table with them
    who asks       adds what is PENDING, by the index of what can be claimed. While owners are there, it counts all
    a death        takes with it what was not added: then nobody knows, until somebody has counted all once
"""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from ...model.task import Status
from .tables import FINISHED_TASKS, GIVEN, PENDING, RUNNING, Many, Transaction

_T = TypeVar("_T")

Ended = Counter[tuple[int, int, Status]]
"""How many tasks have finished, by queue, run and state."""

_KEY = "queue, run, status"
_COUNT_GIVEN = FINISHED_TASKS % f"AND id IN {GIVEN}"
_ADD = f"""
    INSERT INTO tally VALUES (?, ?, ?, ?, ?) ON CONFLICT ({_KEY})
    DO UPDATE SET tasks = tasks + excluded.tasks, last = max(last, excluded.last)
"""
_UNKNOWN = -1  # a state that no task has: while there is a row of it nobody knows
_IS_RIGHT = f"NOT EXISTS (SELECT 1 FROM owner) AND NOT EXISTS (SELECT 1 FROM tally WHERE status = {_UNKNOWN})"

# Each in one statement, so that all of it is of one moment. A CROSS JOIN is done in this order: no task is looked at
# where the first table is empty.
_BY_LOOK = "SELECT queue, run, status, count(*) AS tasks FROM {} CROSS JOIN task WHERE {} GROUP BY queue, run, status"
_UNFINISHED = f"""
    {_BY_LOOK.format("(SELECT 1)", PENDING)}
    UNION ALL {_BY_LOOK.format("(SELECT 1 FROM owner LIMIT 1)", RUNNING)}
"""
COUNTS = f"""
    SELECT q.name, c.status, sum(c.tasks) FROM (
        SELECT {_KEY}, tasks FROM (SELECT 1 WHERE {_IS_RIGHT}) CROSS JOIN tally
        UNION ALL {_BY_LOOK.format(f"(SELECT 1 WHERE {_IS_RIGHT})", PENDING)}
        UNION ALL {_BY_LOOK.format(f"(SELECT 1 WHERE NOT ({_IS_RIGHT}))", "1")}
    ) c JOIN queue q ON q.id = c.queue
    GROUP BY 1, 2 HAVING sum(c.tasks) > 0 ORDER BY 1, 2
"""
COUNTS_OF_OLD = "SELECT q.name, t.status, count(*) FROM task t JOIN queue q ON q.id = t.queue GROUP BY 1, 2"
UNFINISHED = f"SELECT run, sum(tasks) FROM ({_UNFINISHED}) GROUP BY run"


def is_right() -> Transaction[bool]:
    """Return whether the table is right. Where nobody knows, and no owner is there, all tasks are counted for it."""
    yield from recount(where_known=False)
    return bool((yield f"SELECT {_IS_RIGHT}", ()).rows[0][0])


def add(ended: Mapping[tuple[int, int, Status], int], now: int) -> Transaction[None]:
    """Count tasks that have finished."""
    yield _ADD, Many((*of, tasks, now) for of, tasks in ended.items())


def add_these(ids: Collection[int]) -> Transaction[None]:
    """Count those of these tasks that are finished, which they were not before."""
    rows, _ = yield _COUNT_GIVEN, (json.dumps(list(ids)),)
    yield _ADD, Many(rows)


def changing(ids: Collection[int], change: Transaction[_T]) -> Transaction[_T]:
    """Do what may change whether these tasks are finished, whose they are, or whether they are there."""
    text = json.dumps(list(ids))
    before, _ = yield _COUNT_GIVEN, (text,)
    done = yield from change
    yield from subtract(before)
    after, _ = yield _COUNT_GIVEN, (text,)
    yield _ADD, Many(after)
    return done


def subtract(rows: Iterable[Sequence[Any]]) -> Transaction[None]:
    """Count tasks no more, of rows as `(queue, run, status, count, last)`."""
    yield _ADD, Many((queue, run, status, -tasks, last) for queue, run, status, tasks, last in rows)


def counted(where: str, parameters: Sequence[Any]) -> Transaction[list[Any]]:
    """Return the finished tasks for which a condition holds, as `subtract()` takes them."""
    rows, _ = yield FINISHED_TASKS % f"AND {where}", parameters
    return rows


def forget() -> Transaction[None]:
    """Note that nobody knows."""
    yield "INSERT OR IGNORE INTO tally VALUES (0, 0, ?, 0, 0)", (_UNKNOWN,)


def recount(*, where_known: bool = True) -> Transaction[bool]:
    """Count all finished tasks, if no owner is there; returns whether the table was wrong.

    Not `where_known`: only if nobody knows.
    """
    ((is_alone, is_known),), _ = yield (
        f"SELECT NOT EXISTS (SELECT 1 FROM owner), NOT EXISTS (SELECT 1 FROM tally WHERE status = {_UNKNOWN})",
        (),
    )
    if not is_alone or (is_known and not where_known):
        return False
    kept, _ = yield f"SELECT {_KEY}, tasks FROM tally WHERE tasks <> 0 ORDER BY {_KEY}", ()
    rows, _ = yield FINISHED_TASKS % "", ()
    is_wrong = is_known and kept != [row[:4] for row in rows]
    if is_wrong or not is_known:
        yield "DELETE FROM tally", ()
        yield _ADD, Many(rows)
    return is_wrong
