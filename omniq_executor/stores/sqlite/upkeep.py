"""Transactions of the SQLite store about purges, backups, repairs and migrations, see turns.py."""

import json
from collections.abc import Collection, Sequence

from ...model.task import Function, Status
from ..base import RunRecord, Taken, TaskRow
from . import tally
from .runs import FORGET_TAKEN, release_unowned
from .tables import PUT, Many, Transaction, row_of
from .turns import ensure_function, ensure_queue
from .waits import IS_FREE, rewire


def purge(before: int, statuses: Collection[Status], queue: str | None) -> Transaction[int]:
    """Remove finished tasks and what nothing else needs, and return how many tasks. See Store.purge()."""
    where = (
        f"status IN ({', '.join(f'{status:d}' for status in statuses)}) AND finished_at < ?"
        f" AND (? IS NULL OR queue = (SELECT id FROM queue WHERE name = ?)) AND {IS_FREE}"
    )
    yield from tally.subtract((yield from tally.counted(where, (before, queue, queue))))
    _, changed = yield f"DELETE FROM task WHERE {where}", (before, queue, queue)
    if changed:
        # While an owner is there it may know the number of a function, which another could be given then.
        yield (
            "DELETE FROM function WHERE id NOT IN (SELECT function FROM task) AND NOT EXISTS (SELECT 1 FROM owner)",
            (),
        )
        yield (
            "DELETE FROM run WHERE settled = 1 AND id NOT IN (SELECT run FROM task)"
            " AND id NOT IN (SELECT max(id) FROM run GROUP BY queue)",
            (),
        )
        yield FORGET_TAKEN, ()
    return changed


def abandon() -> Transaction[None]:
    """Make of a copy a store without owners."""
    for table in ("owner", "session", "news"):
        yield f"DELETE FROM {table}", ()
    yield from release_unowned()


def begin_import(address: str) -> Transaction[str | None]:
    """Note that the store is filled from another; returns from which it is. See Store.begin_import()."""
    if (yield IS_IMPORTING, ()).rows[0][0]:
        return str((yield "SELECT source FROM migration", ()).rows[0][0])
    ((is_used,),), _ = yield (
        "SELECT EXISTS (SELECT 1 FROM task) OR EXISTS (SELECT 1 FROM run) OR EXISTS (SELECT 1 FROM owner)",
        (),
    )
    if is_used:
        return None
    yield "CREATE TABLE migration (source TEXT NOT NULL)", ()
    yield "INSERT INTO migration VALUES (?)", (address,)
    return address


IS_IMPORTING = "SELECT count(*) FROM sqlite_master WHERE name = 'migration'"


def put(
    tasks: Sequence[TaskRow], runs: Sequence[RunRecord], gone: Sequence[int], taken: Sequence[Taken]
) -> Transaction[None]:
    """Have tasks and runs as they are given. See Store.put()."""
    ids = [*gone, *(stored.task.id for stored in tasks)]
    yield from tally.changing(ids, _put(tasks, runs, gone, taken))


def _put(
    tasks: Sequence[TaskRow], runs: Sequence[RunRecord], gone: Sequence[int], taken: Sequence[Taken]
) -> Transaction[None]:
    yield "DELETE FROM task WHERE id IN (SELECT value FROM json_each(?))", (json.dumps(list(gone)),)
    queues: dict[str, int] = {}
    for queue in {stored.task.queue for stored in tasks} | {run.queue for run in runs}:
        queues[queue] = yield from ensure_queue(queue)
    functions: dict[bytes, int] = {}
    rows = Many()
    for task, digest, identity, parts in tasks:
        if digest not in functions:
            functions[digest] = yield from ensure_function(Function(digest, task.func_path, task.func, parts))
        rows.append(row_of(task, queues[task.queue], functions[digest], identity))
    yield PUT, rows
    yield (
        "INSERT OR REPLACE INTO run"
        " (id, queue, owner, continues, started_at, ended_at, clean, settled, session, context, result_ttl)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        Many((run.id, queues[run.queue], run.owner, json.dumps(run.continues), *run[4:]) for run in runs),
    )
    yield "INSERT OR REPLACE INTO taken VALUES (?, ?, ?, ?)", Many(taken)


def end_import() -> Transaction[None]:
    """Note that nothing is missing any more."""
    yield from rewire()
    yield "DROP TABLE migration", ()
