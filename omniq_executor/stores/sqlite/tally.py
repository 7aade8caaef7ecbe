"""How many tasks are finished, kept in a table by queue, run and state: parts of transactions, see turns.py.

Counting millions of tasks takes seconds, and nearly all of them are finished. So whatever finishes tasks, or changes or
removes finished ones, changes the table in the same transaction. What is PENDING is counted by the index of what can be
claimed, and what is RUNNING by looking for it, where there are owners at all.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any, TypeVar

from ...model.task import Status
from .tables import ADD_TO_TALLY, FINISHED_TASKS, GIVEN, PENDING, RUNNING, Many, Transaction

_T = TypeVar("_T")

_KEY = "queue, run, status"
_COUNT_GIVEN = FINISHED_TASKS % f"AND id IN {GIVEN}"
_ADD = ADD_TO_TALLY % "?, ?, ?, ?, ?"
# In one statement, so that all of it is of one moment. A CROSS JOIN is done in this order: without an owner no task is
# looked at.
_UNFINISHED = f"""
    SELECT queue, run, {Status.PENDING:d} AS status, count(*) AS tasks FROM task WHERE {PENDING} GROUP BY queue, run
    UNION ALL SELECT queue, run, {Status.RUNNING:d}, count(*) FROM (SELECT 1 FROM owner LIMIT 1) CROSS JOIN task
        WHERE {RUNNING} GROUP BY queue, run
"""
COUNTS = f"""
    SELECT q.name, c.status, sum(c.tasks) FROM
        (SELECT {_KEY}, tasks FROM tally UNION ALL {_UNFINISHED}) c JOIN queue q ON q.id = c.queue
    GROUP BY 1, 2 HAVING sum(c.tasks) > 0 ORDER BY 1, 2
"""
COUNTS_OF_OLD = "SELECT q.name, t.status, count(*) FROM task t JOIN queue q ON q.id = t.queue GROUP BY 1, 2"
UNFINISHED = f"SELECT run, sum(tasks) FROM ({_UNFINISHED}) GROUP BY run"


def add(queue: int, run: int, finished: Counter[Status], now: int) -> Transaction[None]:
    """Count tasks of one queue and run that have finished."""
    for status, tasks in finished.items():
        yield _ADD, (queue, run, status, tasks, now)


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


def recount() -> Transaction[bool]:
    """Count all finished tasks; returns whether the table was wrong."""
    kept, _ = yield f"SELECT {_KEY}, tasks FROM tally WHERE tasks <> 0 ORDER BY {_KEY}", ()
    rows, _ = yield FINISHED_TASKS % "", ()
    if kept == [row[:4] for row in rows]:
        return False
    yield "DELETE FROM tally", ()
    yield _ADD, Many(rows)
    return True
