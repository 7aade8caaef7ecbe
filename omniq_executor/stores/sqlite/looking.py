"""Transactions of the SQLite store that only look, see turns.py."""

import json
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from ...model.codec import decode_error
from ...model.options import MEMO
from ...model.task import FailedCall, Status, Task
from ..base import PastCall, Resumable, Run, Taken, TaskRow, TaskState
from . import tally
from .tables import GIVEN, LIKENESS, STORED, Transaction, task_of

_FAILURES = 256  # that are read at a time
_IS_MEMO = f"t.key GLOB '{MEMO}*'"

STATE = "id, status, owner, result, error, exception"
FOUND = f"{STATE} FROM task"


def found(row: Sequence[Any]) -> TaskState:
    """Return where a task stands, of a row that FOUND asked for."""
    id, status, owner, result, error, exception = row
    return TaskState(id, Status(status), owner, result, decode_error(error, exception))


def states(ids: Iterable[int]) -> Transaction[list[TaskState]]:
    """Return where tasks stand."""
    rows, _ = yield f"SELECT {FOUND} WHERE id IN (SELECT value FROM json_each(?))", (json.dumps(list(ids)),)
    return [found(row) for row in rows]


def dependents(ids: Collection[int]) -> Transaction[set[int]]:
    """Return what is not finished and comes after one of these tasks, or after one that does, and so on."""
    rows, _ = yield (
        f"WITH RECURSIVE dependent(id) AS (SELECT value FROM {GIVEN} UNION"
        " SELECT task FROM dependency JOIN dependent ON dependency.needs = dependent.id) SELECT id FROM dependent",
        (json.dumps(list(ids)),),
    )
    return {id for (id,) in rows}.difference(ids)


def by_key(queue: int, key: str) -> Transaction[TaskState | None]:
    """Return where the task of that key stands, or None."""
    rows, _ = yield f"SELECT {FOUND} WHERE queue = ? AND key = ?", (queue, key)
    return found(rows[0]) if rows else None


def stored(ids: Sequence[int]) -> Transaction[list[TaskRow]]:
    """Return all that is stored of tasks: a TaskRow of each that is there."""
    rows, _ = yield f"SELECT {STORED} WHERE t.id IN (SELECT value FROM json_each(?))", (json.dumps(list(ids)),)
    return [TaskRow(task_of(row), row[0], row[1], row[3]) for row in rows]


def find(
    status: Status | None,
    queue: str | None,
    tags: Sequence[str] | None,
    limit: int | None,
    function: str | None = None,
    name: str | None = None,
    run: int | None = None,
    since: int | None = None,
) -> Transaction[list[Task]]:
    """Return the tasks that match, oldest first. See Store.find()."""
    conditions: list[tuple[str, Any]] = [
        ("t.status = ?", status),
        ("q.name = ?", queue),
        ("f.path = ?", function),
        ("'.' || f.path GLOB ?", None if name is None else f"*.{_literally(name)}"),
        ("t.run = ?", run),
        ("coalesce(t.finished_at, t.started_at, t.enqueued_at) > ?", since),
    ]
    conditions += [("EXISTS (SELECT 1 FROM json_each(t.options, '$.tags') WHERE value = ?)", t) for t in tags or ()]
    given = [(sql, value) for sql, value in conditions if value is not None]
    where = "WHERE " + " AND ".join(sql for sql, _ in given) if given else ""
    rows, _ = yield (
        f"SELECT {STORED} {where} ORDER BY t.id DESC LIMIT ?",
        (*(value for _, value in given), -1 if limit is None else limit),
    )
    return [task_of(rows.pop()) for _ in range(len(rows))]  # the last first, each let go of: a list may be long


def _literally(text: str) -> str:
    """Return the pattern that only the text itself matches."""
    return re.sub(r"([*?[])", r"[\1]", text)


def failures(after: int, queue: str | None) -> Transaction[list[FailedCall]]:
    """Return some of what has FAILED with ids above `after`, oldest first. See Store.failures()."""
    rows, _ = yield (
        "SELECT t.id, t.run, q.name, f.path, t.finished_at, t.error FROM task t JOIN queue q ON q.id = t.queue"
        " JOIN function f ON f.id = t.function WHERE t.status = ? AND t.error IS NOT NULL AND t.id > ?"
        " AND (? IS NULL OR q.name = ?) ORDER BY t.id LIMIT ?",
        (Status.FAILED, after, queue, queue, _FAILURES),
    )
    return [
        FailedCall(id, run, of, path, at or 0, error)
        for id, run, of, path, at, text in rows
        if (error := decode_error(text, None)) is not None
    ]


def counts() -> Transaction[dict[str, dict[Status, int]]]:
    """Return number of tasks per queue and state."""
    return _by_queue((yield tally.COUNTS, ()).rows)


def counts_of_old() -> Transaction[dict[str, dict[Status, int]]]:
    """Return the same of a store of a version that kept no counts."""
    return _by_queue((yield tally.COUNTS_OF_OLD, ()).rows)


def _by_queue(rows: Iterable[Sequence[Any]]) -> dict[str, dict[Status, int]]:
    found: dict[str, dict[Status, int]] = {}
    for queue, status, count in rows:
        found.setdefault(queue, {})[Status(status)] = count
    return found


def unfinished() -> Transaction[dict[int, int]]:
    """Return by run how many tasks are not finished."""
    rows, _ = yield tally.UNFINISHED, ()
    return {run: tasks for run, tasks, _ in rows}


def taken() -> Transaction[list[Taken]]:
    """Return what each run has taken over."""
    rows, _ = yield "SELECT run, task, status, origin FROM taken ORDER BY run, task", ()
    return [Taken(run, task, Status(status), origin) for run, task, status, origin in rows]


def calls(runs: Collection[int]) -> Transaction[list[PastCall]]:
    """Return the tasks that are of runs, oldest first."""
    rows, _ = yield (
        f"SELECT t.id, t.run, f.digest, {LIKENESS}, t.status, t.enqueued_at, t.finished_at, {_IS_MEMO} FROM task t"
        f" JOIN function f ON f.id = t.function WHERE t.run IN {GIVEN} ORDER BY t.id",
        (json.dumps(list(runs)),),
    )
    return [
        PastCall(id, of, digest, like, Status(status), at, finished, bool(is_memo))
        for id, of, digest, like, status, at, finished, is_memo in rows
    ]


def resumable(
    run: Run, path: str, likenesses: Collection[str | bytes]
) -> Transaction[dict[str | bytes, list[Resumable]] | None]:
    """Return by likeness what a run may still take over. See Store.resumable()."""
    functions, _ = yield f"SELECT id, digest FROM temp.resumable_function_{run.id} WHERE path = ?", (path,)
    if not functions:
        return None
    digests = dict(functions)
    found: dict[str | bytes, list[Resumable]] = {}
    for likeness in likenesses:
        rows, _ = yield (
            f"SELECT task.id, r.function, task.status FROM temp.resumable_{run.id} r JOIN task USING (id)"
            f" WHERE r.function IN {GIVEN} AND r.call = ?"
            f" AND NOT EXISTS (SELECT 1 FROM taken WHERE taken.run IN {GIVEN} AND taken.task = r.id) ORDER BY task.id",
            (json.dumps(list(digests)), likeness, json.dumps(run.beside)),
        )
        if rows:
            found[likeness] = [Resumable(id, digests[function], Status(status)) for id, function, status in rows]
    return found
