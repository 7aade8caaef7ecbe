"""How many tasks there are, by queue, run and state, without a look at each: parts of transactions, see turns.py.

To count millions of tasks takes seconds. A table that each turn changes would cost a tenth of one call at a time, which
writes one page more then. So the counts are of the older tasks, of which little becomes anything else: `counted` has
an id, the mark, and `tally` counts the tasks below it.

    what happens above the mark, as nearly all does   changes nothing more
    what changes, adds or removes tasks below it      changes the counts, in the same transaction
    who has added STEP tasks, leaves, or finds dead   moves the mark up, but not over the LAG newest
    who asks                                          adds those above it

So the counts are right after each transaction, whoever dies.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any, TypeVar

from ...model.task import Status
from .tables import GIVEN, TALLIED, Many, Transaction
from .waits import OPEN

_T = TypeVar("_T")

LAG = 8192  # tasks: it takes some 5 ms to count them, and a map has not as many under way
STEP = 4096

MARK = "(SELECT below FROM counted)"
_OF_EACH = f"SELECT {TALLIED} FROM task WHERE %s GROUP BY queue, run, status"
_OF_THESE = _OF_EACH % f"id IN {GIVEN} AND id < {MARK}"
_ADD = """
    INSERT INTO tally VALUES (?, ?, ?, ?, ?) ON CONFLICT (queue, run, status)
    DO UPDATE SET tasks = tasks + excluded.tasks, last = max(last, excluded.last)
"""
_NEXT = f"id >= {MARK} AND id < ?"
# Without the index of what can be claimed, which SQLite chooses for those that are PENDING: there may be a million.
_ARE_ALIKE = f"SELECT count(*) FROM task NOT INDEXED WHERE {_NEXT} AND status = ? AND run = ? AND queue = ?"

# Each in one statement, so that all of it is of one moment.
COUNTS = f"""
    SELECT q.name, c.status, sum(c.tasks) FROM (
        SELECT queue, status, tasks FROM tally
        UNION ALL SELECT queue, status, count(*) FROM task WHERE id >= {MARK} GROUP BY queue, status
    ) c JOIN queue q ON q.id = c.queue
    GROUP BY 1, 2 HAVING sum(c.tasks) > 0 ORDER BY 1, 2
"""
COUNTS_OF_OLD = "SELECT q.name, t.status, count(*) FROM task t JOIN queue q ON q.id = t.queue GROUP BY 1, 2"
OF_RUNS = f"""
    SELECT run, sum(tasks), max(last) FROM (
        SELECT run, tasks, last FROM tally WHERE {{0}}
        UNION ALL SELECT run, count(*), coalesce(max(finished_at), 0) FROM task
        WHERE id >= {MARK} AND {{0}} GROUP BY run
    ) GROUP BY run HAVING sum(tasks) > 0
"""
"""How many tasks the runs have for which something holds, and when the last of those finished, or later."""
UNFINISHED = OF_RUNS.format(f"status IN ({OPEN})")


def became(ids: Collection[int], was: Status | None) -> Transaction[None]:
    """Count those of these tasks that are below the mark as they are now. They were in a state, or not there."""
    rows, _ = yield _OF_THESE, (json.dumps(list(ids)),)
    yield _ADD, Many(rows)
    if was is not None:
        yield _ADD, Many((queue, run, was, -tasks, 0) for queue, run, _, tasks, _ in rows)


def changing(ids: Collection[int], change: Transaction[_T]) -> Transaction[_T]:
    """Do what may change whether these tasks are there, whose they are, and their states."""
    text = json.dumps(list(ids))
    before, _ = yield _OF_THESE, (text,)
    done = yield from change
    after, _ = yield _OF_THESE, (text,)
    yield from subtract(before)
    yield _ADD, Many(after)
    return done


def subtract(rows: Iterable[Sequence[Any]]) -> Transaction[None]:
    """Count tasks no more, of rows as `(queue, run, status, count, last)`."""
    yield _ADD, Many((queue, run, status, -tasks, 0) for queue, run, status, tasks, _ in rows)


def removed(rows: Iterable[Sequence[int]]) -> Transaction[None]:
    """Count tasks no more that are removed, of rows that begin as `(id, queue, run, status)`."""
    ((below,),), _ = yield f"SELECT {MARK}", ()
    gone = Counter((queue, run, status) for id, queue, run, status, *_ in rows if id < below)
    yield from subtract((*of, tasks, 0) for of, tasks in gone.items())


def counted(where: str, parameters: Any) -> Transaction[list[Any]]:
    """Return of the tasks for which a condition holds those that are counted, as `subtract()` takes them."""
    rows, _ = yield _OF_EACH % f"id < {MARK} AND {where}", parameters
    return rows


def move_on(own: int = 0, now: int = 0) -> Transaction[None]:
    """Move the mark up by STEP tasks, unless there are not as many beside the LAG newest.

    `own` is a run that goes on.
    """
    sql = f"SELECT id, queue, run, status FROM task WHERE id >= {MARK} ORDER BY id LIMIT 1 OFFSET ?"
    if not (yield sql, (STEP + LAG,)).rows:
        return
    ((_, queue, run, status),), _ = yield sql, (0,)
    ((below, *_),), _ = yield sql, (STEP,)
    rows = [(queue, run, status, STEP, now)]
    # To see that all are as the first, as they usually are, takes a quarter of the time of a look at how they are. When
    # the last of them finished is not looked at then: it counts from the end of their run, which will be later.
    if run != own or (yield _ARE_ALIKE, (below, status, run, queue)).rows[0][0] < STEP:
        rows, _ = yield _OF_EACH % _NEXT, (below,)
    yield "DELETE FROM tally WHERE tasks = 0", ()
    yield _ADD, Many(rows)
    yield "UPDATE counted SET below = ?", (below,)


def recount() -> Transaction[bool]:
    """Count all that should be counted; returns whether the counts were wrong."""
    kept, _ = yield "SELECT queue, run, status, tasks FROM tally WHERE tasks <> 0 ORDER BY 1, 2, 3", ()
    rows, _ = yield _OF_EACH % f"id < {MARK}", ()
    is_wrong = kept != sorted(row[:4] for row in rows)
    if is_wrong:
        yield "DELETE FROM tally", ()
        yield _ADD, Many(rows)
    return is_wrong
