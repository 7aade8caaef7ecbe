"""Every SQL transaction of the SQLite store, each written once.

A transaction is a generator: it yields `(sql, parameters)` and is sent a `Reply` with the rows and
the number of rows changed. What drives it decides how to wait, so one text serves a blocking
connection and an async one. The driver opens the transaction, commits when the generator returns
and rolls back when it raises. States and what may follow them come from model.TRANSITIONS.

Bulk forms. A batch of plain calls, and a block of plain results, arrive as one JSON text and are
taken apart by json_each() in one statement: half the cost of executemany, and the interpreter's
lock is released once instead of once per row. `json_each.value` of an array is its JSON text, so
each call and each result is wrapped in an array of its own; results are unwrapped by substr(),
which keeps digits of floats that a conversion to REAL would round.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from ...errors import TaskNotFound
from ...model.codec import decode_error, decode_options, encode_options
from ...model.task import (
    FINISHED,
    LAST_TIER,
    NEVER,
    Call,
    Event,
    Function,
    Status,
    format_id,
    source,
    target,
)
from ..base import (
    Batch,
    Claimed,
    Leftover,
    Outcome,
    PastRun,
    ResultBatch,
    Resume,
    Run,
    RunRecord,
    TaskRow,
    TaskState,
    Turn,
    TurnResult,
    continued,
    shares,
)
from .tables import PUT, STORED, Many, Reply, Statement, Transaction, error_columns, row_of, task_of

# Statements of the turn. The states they name come from the table of transitions.

_ADDED = int(Status.PENDING)
_CLAIMED = int(target(Event.CLAIM))
_PENDING = f"status = {source(Event.CLAIM)[0]:d}"
_RUNNING = f"status = {source(Event.COMPLETE)[0]:d}"
_FENCE = f"{_RUNNING} AND owner = ? AND attempts = ?"

_ADD = (
    "INSERT INTO task (id, queue, run, function, args, kwargs, identity, key, status, enqueued_at, attempts, owner,"
    " started_at) "
)
_ADD_TEXT = _ADD + "SELECT ? + key, ?, ?, ?, value, NULL, NULL, NULL, ?, ?, ?, ?, ? FROM json_each(?)"
_ADD_CALL = _ADD + "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_ADD_SPECIAL = (
    _ADD.replace("started_at)", "started_at, priority, eta, options)")
    + "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)

_COMPLETE = f"UPDATE task SET status = {target(Event.COMPLETE):d}, finished_at = ?, error = NULL, exception = NULL, "
_COMPLETE_BLOCK = (
    _COMPLETE + "result = substr(j.value, 2, length(j.value) - 2) FROM json_each(?) AS j"
    f" WHERE task.id = j.key + ? AND {_FENCE}"
)
_END = {
    Event.COMPLETE: _COMPLETE + f"result = ? WHERE id = ? AND {_FENCE}",
    Event.FAIL: f"UPDATE task SET status = {target(Event.FAIL):d}, finished_at = ?, error = ?, exception = ?"
    f" WHERE id = ? AND {_FENCE}",
    Event.RETRY: f"UPDATE task SET status = {target(Event.RETRY):d}, owner = NULL, started_at = NULL, eta = ?,"
    " error = ?, exception = ?, options ="
    " json_set(coalesce(options, '{}'), '$.retries', coalesce(options ->> 'retries', 0) + 1)"
    f" WHERE id = ? AND {_FENCE}",
    Event.RELEASE: f"UPDATE task SET status = {target(Event.RELEASE):d}, owner = NULL, started_at = NULL"
    f" WHERE id = ? AND {_FENCE}",
    Event.CRASH: f"UPDATE task SET status = {target(Event.CRASH):d}, owner = NULL, started_at = NULL,"
    f" crashes = crashes + 1 WHERE id = ? AND {_FENCE}",
}
_ALONE = " AND (SELECT count(*) FROM owner) = 1 AND NOT EXISTS (SELECT 1 FROM dependency)"
_CLAIM_THAT = f"""
    UPDATE task SET status = {target(Event.CLAIM):d}, owner = ?, attempts = attempts + 1, started_at = ? WHERE %s
    RETURNING priority, eta, id, attempts, crashes, run, args, kwargs,
        (SELECT digest FROM function WHERE function.id = task.function), options, owner_deaths
"""
_OF_TIER = [f"owner_deaths {'>=' if number == LAST_TIER else '='} {number}" for number in range(LAST_TIER + 1)]
_FIRST = [
    f"SELECT %s FROM task WHERE {_PENDING} AND queue = ? AND run = ? AND {of_tier} AND eta <= ?"
    " ORDER BY priority DESC, eta, id LIMIT ?"
    for of_tier in _OF_TIER
]
_CLAIM = [_CLAIM_THAT % f"id IN ({first % 'id'})" for first in _FIRST]
_CLAIM_THESE = _CLAIM_THAT % "id IN (SELECT value FROM json_each(?))"
_CLAIM_ONE = _CLAIM_THAT % f"id = ? AND {_PENDING} AND eta < {NEVER:d}"
_OF_RUN = f"FROM task WHERE {_PENDING} AND queue = ? AND run = ? AND"
_DUE = [f"SELECT min(eta) {_OF_RUN} {of_tier} AND eta < {NEVER:d}" for of_tier in _OF_TIER]
_NEXT_TIER = f"SELECT min(owner_deaths) {_OF_RUN} owner_deaths > ? AND eta < {NEVER:d}"
# The runs that have PENDING tasks of a queue, each found by one look into the index.
_RUNS = f"""
    WITH RECURSIVE pending(run) AS (
        SELECT min(run) FROM task WHERE {_PENDING} AND queue = ?
        UNION ALL SELECT (SELECT min(run) FROM task WHERE {_PENDING} AND queue = ? AND run > pending.run)
        FROM pending WHERE pending.run IS NOT NULL)
    SELECT run FROM pending WHERE run IS NOT NULL
"""
_SUCCEED = f"""
    INSERT INTO task (id, queue, run, function, args, kwargs, identity, status, priority, eta, enqueued_at, options)
    SELECT ?, queue, run, function, args, kwargs, identity, {_ADDED:d}, priority, ?, ?,
        json_set(options, '$.series', coalesce(options ->> 'series', id), '$.retries', 0)
    FROM task WHERE id = ? AND options ->> 'interval' IS NOT NULL
"""
_SERIES = "coalesce(options ->> 'series', id)"
# What a task comes after, and who waits for it; see Store.turn().
_ARE_DEPENDENCIES = "SELECT EXISTS (SELECT 1 FROM dependency)"
_WIRES = "SELECT t.id, a.value FROM task t, json_each(t.options, '$.after') a"
_WIRE = f"INSERT OR IGNORE INTO dependency {_WIRES} WHERE t.id IN (SELECT value FROM json_each(?))"
_OPEN = ", ".join(f"{status:d}" for status in Status if status not in FINISHED)
# The youngest first: it is the likeliest one not to be finished.
_IS_HELD_UP = f"""(SELECT 1 FROM dependency d JOIN task n ON n.id = d.needs
    WHERE d.task = task.id AND n.status IN ({_OPEN}) ORDER BY d.needs DESC LIMIT 1)"""
_HOLD = f"""
    UPDATE task SET options = json_set(options, '$.due', eta), eta = {NEVER:d}
    WHERE {_PENDING} AND options ->> 'due' IS NULL AND {_IS_HELD_UP} IS NOT NULL AND id IN """
_LET_GO = f"""
    UPDATE task SET eta = options ->> 'due', options = json_remove(options, '$.due')
    WHERE {_PENDING} AND options ->> 'due' IS NOT NULL AND {_IS_HELD_UP} IS NULL AND id IN """
_GIVEN = "(SELECT value FROM json_each(?))"
_ALL_DEPENDENT = "(SELECT task FROM dependency)"
_NOTE_CHANGE = "INSERT INTO news (task, owner) VALUES (?, ?)"
_RELEASE_ALL = f"""
    UPDATE task SET status = {target(Event.RELEASE):d}, owner = NULL, started_at = NULL WHERE {_RUNNING} AND owner = ?
    AND (? OR id IN (SELECT value FROM json_each(?))) RETURNING id
"""
_ORPHAN_ALL = f"""
    UPDATE task SET status = {target(Event.ORPHAN):d}, owner = NULL, started_at = NULL, owner_deaths = owner_deaths + 1
    WHERE {_RUNNING} AND owner = ? AND (? OR id IN (SELECT value FROM json_each(?))) RETURNING id
"""


class Inexact(Exception):
    """A bulk statement changed fewer rows than it should have: roll back, and do the turn with `exact=True`."""


def lone_end(owner: int, work: Turn) -> Statement | None:
    """The one statement of a turn that ends one claim and nothing else, or None for any other turn.

    It needs no transaction around it (see `add_claimed`), and changes nothing where another owner is
    there who has to be told, or where the claim is lost: then the turn is done in the general way.
    """
    if len(work.outcomes) != 1 or work.blocks or work.adds or work.claim:
        return None
    (end,) = work.outcomes
    if end.successor is not None:
        return None
    return _END[end.event] + _ALONE, (*_end_columns(end, work.now), end.id, owner, end.attempt)


def turn(
    owner: int,
    run: Run,
    queue: int,
    functions: dict[bytes, int],
    work: Turn,
    peers: Sequence[int],
    exact: bool = False,
    adopted: Collection[int] = (),
) -> Transaction:
    """One turn of a dispatcher: returns a TurnResult. See Store.turn().

    `adopted` are the other queues that the run has adopted tasks of.

    Ends go by bulk statements, and it is enough to count what they changed, since claims are hardly
    ever lost. If one was, Inexact is raised; with `exact` the turn then finds out which.
    """
    turned = TurnResult()
    for batch in work.adds:
        yield from _add(owner, run.id, queue, functions[batch.function.digest], batch, work.now)
    for block in work.blocks:
        yield from _complete_block(owner, block, work.now, exact, turned.refused)
    if work.outcomes:
        for event, sql in _END.items():
            ends = [end for end in work.outcomes if end.event is event]
            if ends:
                yield from _end(owner, event, sql, ends, work.now, exact, turned.refused)
        for end in work.outcomes:
            if end.successor is not None and end.id not in turned.refused:
                yield _SUCCEED, (*end.successor, work.now, end.id)
    if (work.blocks or work.outcomes) and (yield _ARE_DEPENDENCIES, ()).rows[0][0]:
        turned.freed = yield from _heed_dependencies(work, turned.refused)
    if len(peers) > 1:
        yield _NOTE_CHANGE, Many((id, owner) for id in _finished(work, turned.refused))
    if work.claim > 0:
        yield from _claim(owner, run, [queue, *adopted], work, turned)
    return turned


def _claim(owner: int, run: Run, queues: Sequence[int], work: Turn, turned: TurnResult) -> Transaction:
    """Claim what a turn asks for, and see what is left where that is not there."""
    if work.queues is not None:
        queues = yield from _pending_queues(work.queues)
    elif not work.of_run:
        queues = queues[:1]
    sources: list[tuple[int, list[int]]] = []  # of each queue the runs whose tasks are claimed
    for queue in queues:
        if work.of_run:
            sources.append((queue, [run.id]))
        else:
            rows, _ = yield _RUNS, (queue, queue)
            sources.append((queue, [id for (id,) in rows]))
    for (queue, runs), share in shares(sources, work.claim, turned.claimed):
        turned.claimed += yield from _claim_from(owner, queue, runs, work, share)
    if len(turned.claimed) < work.claim:
        dues, tiers = [], []
        for queue, runs in sources:
            for id in runs:
                dues += (yield _DUE[work.tier], (queue, id)).rows[0]
                tiers += (yield _NEXT_TIER, (queue, id, work.tier)).rows[0]
        turned.due = min((due for due in dues if due is not None), default=None)
        turned.next_tier = min((min(tier, LAST_TIER) for tier in tiers if tier is not None), default=None)
        if turned.next_tier == work.tier:  # the last one, which has all that is more
            turned.next_tier = None


def _claim_from(owner: int, queue: int, runs: Sequence[int], work: Turn, most: int) -> Transaction:
    """Claim the first tasks of a queue, of these runs taken together; returns them in order."""
    if len(runs) == 1:
        rows, _ = yield _CLAIM[work.tier], (owner, work.now, queue, runs[0], work.now, most)
    else:
        first: list[Any] = []
        for run in runs:
            first += (yield _FIRST[work.tier] % "-priority, eta, id", (queue, run, work.now, most)).rows
        ids = [id for _, _, id in sorted(first)[:most]]
        rows, _ = (yield _CLAIM_THESE, (owner, work.now, json.dumps(ids))) if ids else Reply([], 0)
    rows.sort(key=lambda row: (-row[0], row[1], row[2]))
    return _claimed(rows)


def _pending_queues(names: Sequence[str]) -> Transaction:
    """The numbers of those of the named queues, or of all, that have PENDING tasks."""
    rows, _ = yield (
        "SELECT id FROM queue WHERE (? OR name IN (SELECT value FROM json_each(?)))"
        f" AND EXISTS (SELECT 1 FROM task WHERE {_PENDING} AND task.queue = queue.id) ORDER BY random()",
        (not names, json.dumps(list(names))),
    )
    return [id for (id,) in rows]


def _claimed(rows: Sequence[Any]) -> list[Claimed]:
    return [
        Claimed(id, attempt, crashes, run, digest, args, kwargs, eta, decode_options(options), deaths)
        for _, eta, id, attempt, crashes, run, args, kwargs, digest, options, deaths in rows
    ]


def _add(owner: int, run: int, queue: int, function: int, batch: Batch, now: int) -> Transaction:
    # A batch that is claimed as it is added never was PENDING to anybody: one insert is add and claim.
    claim = (_CLAIMED, now, 1, owner, now) if batch.claimed else (_ADDED, now, 0, None, None)
    special = batch.priority, batch.eta, encode_options(batch.options)
    if batch.options is not None and batch.options.after:
        yield from _check_there(batch.options.after)
    if special != (0, 0, None):
        for number, call in enumerate(batch.each(), batch.first):
            yield _ADD_SPECIAL, (number, queue, run, function, *call, batch.key, *claim, *special)
        if batch.options is not None and batch.options.after:
            yield from _wire(range(batch.first, batch.first + batch.size))
    elif batch.text is not None:
        yield _ADD_TEXT, (batch.first, queue, run, function, *claim, batch.text)
    else:
        for number, call in enumerate(batch.calls or (), batch.first):
            yield _ADD_CALL, (number, queue, run, function, *call, batch.key, *claim)


def add_claimed(owner: int, run: int, queue: int, function: int, number: int, call: Call, now: int) -> Statement:
    """The one statement that stores and claims one call. It needs no BEGIN and COMMIT around it.

    A lone statement that writes takes the writer's lock from its start, as BEGIN IMMEDIATE does.
    """
    return _ADD_CALL, (number, queue, run, function, *call, None, _CLAIMED, now, 1, owner, now)


def _complete_block(owner: int, block: ResultBatch, now: int, exact: bool, refused: set[int]) -> Transaction:
    values = (now, block.text, block.first, owner, block.attempt)
    if exact:
        rows, _ = yield f"{_COMPLETE_BLOCK} RETURNING id", values
        refused.update({*range(block.first, block.first + block.size)}.difference(id for (id,) in rows))
        return
    _, changed = yield _COMPLETE_BLOCK, values
    if changed != block.size:
        raise Inexact


def _end(
    owner: int, event: Event, sql: str, ends: Sequence[Outcome], now: int, exact: bool, refused: set[int]
) -> Transaction:
    values = Many((*_end_columns(end, now), end.id, owner, end.attempt) for end in ends)
    if exact:
        for end, row in zip(ends, values, strict=True):
            _, changed = yield sql, row
            if not changed:
                refused.add(end.id)
        return
    _, changed = yield sql, values
    if changed != len(ends):
        raise Inexact


def _end_columns(end: Outcome, now: int) -> tuple[Any, ...]:
    if end.event is Event.COMPLETE:
        return now, end.result
    if end.event is Event.FAIL:
        return now, *error_columns(end.error)
    if end.event is Event.RETRY:
        return end.eta, *error_columns(end.error)
    return ()


def _finished(work: Turn, refused: set[int]) -> list[int]:
    """The tasks that a turn finished."""
    ids = [block.first + i for block in work.blocks for i in range(block.size)]
    ids += [end.id for end in work.outcomes if end.event in (Event.COMPLETE, Event.FAIL)]
    return [id for id in ids if id not in refused]


def _check_there(ids: Sequence[int]) -> Transaction:
    rows, _ = yield f"SELECT id FROM task WHERE id IN {_GIVEN}", (json.dumps(ids),)
    missing = set(ids).difference(id for (id,) in rows)
    if missing:
        raise TaskNotFound(
            f"the store holds no {format_id(min(missing))}, so there is no result of it that a call could be given:"
            " it is of another store, or was purged"
        )


def _wire(ids: Sequence[int]) -> Transaction:
    """Have new tasks wait for those that they come after."""
    text = json.dumps(list(ids))
    yield _WIRE, (text,)
    yield _HOLD + _GIVEN, (text,)


def _heed_dependencies(work: Turn, refused: set[int]) -> Transaction:
    """Do what the ends of a turn mean for what waits, or should; returns whether tasks wait no more."""
    ends = [end for end in work.outcomes if end.id not in refused]
    yield from _wire([end.successor.id for end in ends if end.successor is not None])
    back = [end.id for end in ends if target(end.event) is Status.PENDING]
    yield _HOLD + _GIVEN, (json.dumps(back),)
    return (yield from _let_go_after(_finished(work, refused)))


def _let_go_after(finished: Sequence[int]) -> Transaction:
    """Have those wait no more that waited for one of these tasks, the last one; returns whether there are any."""
    text = json.dumps(finished)
    yield f"DELETE FROM dependency WHERE task IN {_GIVEN}", (text,)
    waiting, _ = yield f"SELECT DISTINCT task FROM dependency WHERE needs IN {_GIVEN}", (text,)
    _, changed = yield _LET_GO + _GIVEN, (json.dumps([id for (id,) in waiting]),)
    return changed > 0


def ensure_queue(name: str) -> Transaction:
    """The number of a queue."""
    yield "INSERT OR IGNORE INTO queue (name) VALUES (?)", (name,)
    ((id,),), _ = yield "SELECT id FROM queue WHERE name = ?", (name,)
    return id


def ensure_function(function: Function) -> Transaction:
    """The number of a function. A function that no task uses is harmless."""
    yield "INSERT OR IGNORE INTO function (digest, path, pickle) VALUES (?, ?, ?)", tuple(function)
    ((id,),), _ = yield "SELECT id FROM function WHERE digest = ?", (function.digest,)
    return id


def claim(owner: int, number: int, now: int) -> Transaction:
    """CLAIM one task if it is PENDING; returns a Claimed, or None."""
    rows, _ = yield _CLAIM_ONE, (owner, now, number)
    return _claimed(rows)[0] if rows else None


def cancel(ids: Sequence[int], now: int, running: bool) -> Transaction:
    """CANCEL the PENDING ones of ids, ABORT the RUNNING ones if that is wished, and return them. See Store.cancel().

    It is a change to all owners, whoever asked for it.
    """
    recurring, _ = yield (
        f"SELECT {_SERIES} FROM task"
        " WHERE id IN (SELECT value FROM json_each(?)) AND options ->> 'interval' IS NOT NULL",
        (json.dumps(list(ids)),),
    )
    if recurring:
        others, _ = yield (
            f"SELECT id, status FROM task WHERE status IN ({Status.PENDING:d}, {Status.RUNNING:d})"
            f" AND {_SERIES} IN (SELECT value FROM json_each(?))",
            (json.dumps([series for (series,) in recurring]),),
        )
        ids = [*ids, *(id for id, _ in others)]
        yield (
            "UPDATE task SET options = json_remove(options, '$.interval') WHERE id = ?",
            Many((id,) for id, status in others if status == Status.RUNNING and not running),
        )
    changed = []
    for event in (Event.CANCEL, Event.ABORT) if running else (Event.CANCEL,):
        changed += yield from _change(event, f"finished_at = {now:d}, {_WAITS_NO_MORE}", ids)
    yield from _let_go_after(changed)
    yield _NOTE_CHANGE, Many((id, None) for id in changed)
    return changed


_WAITS_NO_MORE = "eta = coalesce(options ->> 'due', eta), options = json_remove(options, '$.due')"


def retry(ids: Sequence[int]) -> Transaction:
    """MANUAL_RETRY the FAILED and CANCELLED ones of ids, and return them."""
    changed = yield from _change(Event.MANUAL_RETRY, _RETRIED_BY_HAND, ids)
    yield from _wire(changed)
    return changed


_RETRIED_BY_HAND = (
    "finished_at = NULL, error = NULL, exception = NULL, crashes = 0, owner_deaths = 0,"
    " options = CASE WHEN options ->> 'retries' THEN json_set(options, '$.retries', 0) ELSE options END"
)


def _change(event: Event, columns: str, ids: Sequence[int]) -> Transaction:
    sources = ", ".join(f"{status:d}" for status in source(event))
    rows, _ = yield (
        f"UPDATE task SET status = {target(event):d}, {columns}"
        f" WHERE id IN (SELECT value FROM json_each(?)) AND status IN ({sources}) RETURNING id",
        (json.dumps(list(ids)),),
    )
    return [id for (id,) in rows]


# Owners


OWNERS = "SELECT id FROM owner"


def enter(id: int, nodes: int, queue: str, host: str, pid: int, now: int) -> Transaction:
    """Register an owner, unless its id is another's modulo `nodes`; returns whether it is.

    What finished before is no change to it.
    """
    _, changed = yield (
        "INSERT INTO owner SELECT ?, ?, ?, ?, ?, coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'news'), 0)"
        " WHERE NOT EXISTS (SELECT 1 FROM owner WHERE id % ? = ?)",
        (id, queue, host, pid, now, nodes, id % nodes),
    )
    return changed == 1


def release_dead(suspects: Mapping[int, Collection[int] | None], dead_sessions: Sequence[int] = ()) -> Transaction:
    """Take back the tasks of owners that are dead, forget them, and return how many tasks that were.

    `suspects` has of each owner the tasks that it had begun, or None if any may have been.
    """
    returned = 0
    for owner, begun in suspects.items():
        returned += yield from _take_back(_ORPHAN_ALL, owner, begun)
    returned += yield from _forget_owners(list(suspects))
    yield "DELETE FROM session WHERE id = ?", Many((id,) for id in dead_sessions)
    return returned


def leave(owner: int) -> Transaction:
    """RELEASE the tasks of an owner that is alive, and forget it."""
    return (yield from _forget_owners([owner]))


def _forget_owners(owners: Sequence[int]) -> Transaction:
    returned = 0
    for owner in owners:
        returned += yield from _take_back(_RELEASE_ALL, owner)
        yield "DELETE FROM owner WHERE id = ?", (owner,)
    yield _DROP_READ_CHANGES, ()
    return returned


def _take_back(sql: str, owner: int, ids: Collection[int] | None = None) -> Transaction:
    """Have tasks of an owner be PENDING, those of `ids` or all; returns how many."""
    rows, _ = yield sql, (owner, ids is None, json.dumps(list(ids or ())))
    yield _HOLD + _GIVEN, (json.dumps([id for (id,) in rows]),)
    return len(rows)


_CHANGES_OF_OTHERS = "FROM news WHERE id > (SELECT heard FROM owner WHERE id = ?) AND owner IS NOT ?"
_DROP_READ_CHANGES = """
    DELETE FROM news WHERE NOT EXISTS
        (SELECT 1 FROM owner WHERE owner.heard < news.id AND owner.id IS NOT news.owner)
"""
HAS_CHANGES = f"SELECT 1 {_CHANGES_OF_OTHERS} LIMIT 1"


def read_changes(owner: int) -> Transaction:
    """The tasks that others finished since this owner last asked. What all others have read is dropped."""
    rows, _ = yield f"SELECT id, task {_CHANGES_OF_OTHERS}", (owner, owner)
    if rows:
        yield "UPDATE owner SET heard = ? WHERE id = ?", (max(id for id, _ in rows), owner)
        yield _DROP_READ_CHANGES, ()
    return [task for _, task in rows]


def release_unowned() -> Transaction:
    """RELEASE what is RUNNING without a registered owner, and return how many tasks that were."""
    rows, _ = yield (
        f"UPDATE task SET status = {target(Event.RELEASE):d}, owner = NULL, started_at = NULL"
        f" WHERE {_RUNNING} AND coalesce(owner, -1) NOT IN (SELECT id FROM owner) RETURNING id",
        (),
    )
    yield _HOLD + _GIVEN, (json.dumps([id for (id,) in rows]),)
    return len(rows)


# Upkeep


def purge(before: int, statuses: Collection[Status], queue: str | None) -> Transaction:
    """Remove finished tasks and what nothing else needs, and return how many tasks. See Store.purge()."""
    _, changed = yield (
        f"DELETE FROM task WHERE status IN ({', '.join(f'{status:d}' for status in statuses)}) AND finished_at < ?"
        " AND (? IS NULL OR queue = (SELECT id FROM queue WHERE name = ?))"
        " AND id NOT IN (SELECT needs FROM dependency)",
        (before, queue, queue),
    )
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
    return changed


def abandon() -> Transaction:
    """Make of a copy a store without owners."""
    yield "DELETE FROM owner", ()
    yield "DELETE FROM session", ()
    yield "DELETE FROM news", ()
    yield from release_unowned()


def reindex() -> Transaction:
    """Make the indexes anew from the tables."""
    yield "REINDEX", ()


def rewire() -> Transaction:
    """Have all wait as their options say, for as long as they should; returns how much that was not so before."""
    wires = f"{_WIRES.replace('t.options,', _VALID)} WHERE t.status IN ({_OPEN})"
    changes = 0
    for sql in (
        f"DELETE FROM dependency WHERE (task, needs) NOT IN ({wires})",
        f"INSERT OR IGNORE INTO dependency {wires}",
        _HOLD + _ALL_DEPENDENT,
        _LET_GO + _ALL_DEPENDENT,
    ):
        _, changed = yield sql, ()
        changes += changed
    return changes


_VALID = "CASE WHEN json_valid(t.options) THEN t.options END,"

# Moving to another store


def begin_filling(address: str) -> Transaction:
    """Note that the store is filled from another; returns from which it is. See Store.begin_filling()."""
    if (yield IS_IMPORTING, ()).rows[0][0]:
        ((found,),), _ = yield "SELECT source FROM migration", ()
        return found
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


def put(tasks: Sequence[TaskRow], runs: Sequence[RunRecord], gone: Sequence[int]) -> Transaction:
    """Have tasks and runs as they are given. See Store.put()."""
    yield "DELETE FROM task WHERE id IN (SELECT value FROM json_each(?))", (json.dumps(list(gone)),)
    queues: dict[str, int] = {}
    for queue in {stored.task.queue for stored in tasks} | {run.queue for run in runs}:
        queues[queue] = yield from ensure_queue(queue)
    functions: dict[bytes, int] = {}
    rows = Many()
    for task, digest, identity in tasks:
        if digest not in functions:
            functions[digest] = yield from ensure_function(Function(digest, task.func_path, task.func))
        rows.append(row_of(task, queues[task.queue], functions[digest], identity))
    yield PUT, rows
    yield (
        "INSERT OR REPLACE INTO run"
        " (id, queue, owner, continues, started_at, ended_at, clean, settled, session, context)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        Many((run.id, queues[run.queue], run.owner, json.dumps(run.continues), *run[4:]) for run in runs),
    )


def end_filling() -> Transaction:
    """Note that nothing is missing any more."""
    yield from rewire()
    yield "DROP TABLE migration", ()


# Sessions and runs

SESSIONS = "SELECT id, host FROM session"
_IS_OVER = "owner NOT IN (SELECT id FROM owner)"  # of a run
_HAS_NO_SESSION = "session NOT IN (SELECT id FROM session)"
_ALIKE = "queue = ? AND context = ?"
_IS_BROKEN = "(clean IS 0 OR ended_at IS NULL)"
# Through the index of what can be claimed, which begins with the queue: tasks of a run may be of any.
_PENDING_OF = f"{_PENDING} AND task.queue IN (SELECT id FROM queue) AND task.run ="


def begin_session(id: int, host: str, pid: int, now: int) -> Transaction:
    """Register a session. See Store.begin_session()."""
    yield "INSERT INTO session VALUES (?, ?, ?, ?)", (id, host, pid, now)


def end_session(session: int, clean: bool, keep_broken: bool) -> Transaction:
    """End a session, and settle what is to be settled; returns a list of Leftover. See Store.end_session()."""
    yield "DELETE FROM session WHERE id = ?", (session,)
    if not clean:
        yield "UPDATE run SET clean = 0 WHERE session = ? AND clean IS NULL", (session,)
        return []
    rows, _ = yield (
        f"SELECT id, queue, context, {_IS_BROKEN} FROM run WHERE session = ? AND settled = 0",
        (session,),
    )
    kept = {(queue, context) for _, queue, context, is_broken in rows if keep_broken and is_broken}
    yield (
        f"UPDATE run SET clean = 1 WHERE session = ? AND NOT (? AND {_IS_BROKEN})",
        (session, keep_broken),
    )
    ending = [(id, (queue, context)) for id, queue, context, _ in rows if (queue, context) not in kept]
    return (yield from _settle_runs([id for id, _ in ending], {like for _, like in ending}))


def _settle_runs(ids: Sequence[int], like: Collection[tuple[int, str]]) -> Transaction:
    """Settle these runs, and those like them that are over; returns what they have left, as a list of Leftover.

    `like` are queues with contexts. A run that was left by an exception in a session that goes on is kept.
    """
    settled = set(ids)
    for queue, context in like:
        rows, _ = yield (
            f"SELECT id FROM run WHERE {_ALIKE} AND settled = 0 AND {_IS_OVER} AND {_HAS_NO_SESSION}",
            (queue, context),
        )
        settled.update(id for (id,) in rows)
    text = json.dumps(sorted(settled))
    yield f"UPDATE run SET settled = 1 WHERE id IN {_GIVEN}", (text,)
    rows, _ = yield (
        f"SELECT r.id, q.name, r.started_at, (SELECT count(*) FROM task WHERE {_PENDING_OF} r.id)"
        f" FROM run r JOIN queue q ON q.id = r.queue WHERE r.id IN {_GIVEN} ORDER BY r.id",
        (text,),
    )
    return [Leftover(*row) for row in rows if row[-1]]


def begin_run(
    queue: int, queue_name: str, owner: int, resume: Resume, now: int, session: int, context: str, since: int
) -> Transaction:
    """Open a run; returns a Run. See Store.begin_run()."""
    rows, _ = yield (
        f"SELECT id, session, {_IS_BROKEN}, settled, continues FROM run"
        f" WHERE {_ALIKE} AND {_IS_OVER} AND ({_HAS_NO_SESSION} OR session = ?)",
        (queue, context, session),
    )
    past = [
        PastRun(id, of, bool(is_broken), bool(settled), json.loads(chain)) for id, of, is_broken, settled, chain in rows
    ]
    continues = continued(past, resume, session)
    if continues and since:
        continues.difference_update((yield from _older(continues, since)))
    chain = json.dumps(sorted(continues))
    _, _ = yield (
        "INSERT INTO run (queue, owner, continues, started_at, session, context) VALUES (?, ?, ?, ?, ?, ?)",
        (queue, owner, chain, now, session, context),
    )
    ((run,),), _ = yield "SELECT last_insert_rowid()", ()
    done = total = 0
    if continues:
        yield f"DROP TABLE IF EXISTS temp.resumable_{run}", ()  # of a store that was deleted and made again
        yield (
            f"CREATE TEMP TABLE resumable_{run} AS"
            " SELECT function, coalesce(identity, args || coalesce(kwargs, '')) AS call, id"
            f" FROM task WHERE run IN (SELECT value FROM json_each(?)) AND status <> {Status.CANCELLED:d}",
            (chain,),
        )
        yield f"CREATE INDEX temp.resumable_call_{run} ON resumable_{run} (function, call, id)", ()
        ((total, done),), _ = yield (
            f"SELECT count(*), sum(status = {Status.COMPLETED:d}) FROM resumable_{run} JOIN task USING (id)",
            (),
        )
    return Run(run, queue_name, tuple(sorted(continues)), done or 0, total)


def _older(runs: Collection[int], since: int) -> Transaction:
    """Those of the runs of which nothing has happened after `since`."""
    text = json.dumps(list(runs))
    rows, _ = yield (
        f"SELECT id FROM run WHERE max(started_at, coalesce(ended_at, 0)) <= ? AND id IN {_GIVEN}",
        (since, text),
    )
    old = {id for (id,) in rows}
    if old:  # a run that was killed may have been at work until then
        rows, _ = yield (
            f"SELECT DISTINCT run FROM task WHERE run IN {_GIVEN}"
            " AND max(enqueued_at, coalesce(started_at, 0), coalesce(finished_at, 0)) > ?",
            (json.dumps(list(old)), since),
        )
        old.difference_update(id for (id,) in rows)
    return old


def end_run(run: Run, clean: bool, now: int) -> Transaction:
    """Close a run; returns a list of Leftover. See Store.end_run()."""
    yield f"DROP TABLE IF EXISTS temp.resumable_{run.id}", ()
    yield "UPDATE run SET ended_at = ?, clean = ? WHERE id = ?", (now, None if clean else 0, run.id)
    rows, _ = yield "SELECT queue, context FROM run WHERE id = ? AND session = 0 AND settled = 0", (run.id,)
    if not (rows and clean):
        return []
    yield "UPDATE run SET clean = 1 WHERE id = ?", (run.id,)
    return (yield from _settle_runs([run.id], rows))


def take_over(run: int, function: int, calls: Sequence[Call]) -> Transaction:
    """For each call its TaskState, or None. See Store.take_over()."""
    wanted: dict[str | bytes, list[int]] = {}
    for place, call in enumerate(calls):
        identity = call.identity if call.identity is not None else str(call.args) + (call.kwargs or "")
        wanted.setdefault(identity, []).append(place)
    given: dict[int, int] = {}
    for identity, places in wanted.items():
        rows, _ = yield (
            f"DELETE FROM temp.resumable_{run} WHERE rowid IN"
            f" (SELECT rowid FROM temp.resumable_{run} WHERE function = ? AND call = ? ORDER BY id LIMIT ?)"
            " RETURNING id",
            (function, identity, len(places)),
        )
        given.update(zip(sorted(id for (id,) in rows), places, strict=False))  # as many as are left
    ids = json.dumps(list(given))
    failed, _ = yield f"SELECT id FROM task WHERE id IN {_GIVEN} AND status = {Status.FAILED:d}", (ids,)
    if failed:
        yield from retry([id for (id,) in failed])
    yield f"UPDATE task SET run = ? WHERE id IN {_GIVEN} AND {_PENDING}", (run, ids)
    rows, _ = yield f"SELECT {_FOUND} WHERE id IN {_GIVEN}", (ids,)
    found: list[TaskState | None] = [None] * len(calls)
    for row in rows:
        found[given[row[0]]] = _found(row)
    return found


_ADOPT = f"""
    UPDATE task SET run = ? WHERE {_PENDING} AND run <> ? AND %s
    AND run NOT IN (SELECT id FROM run WHERE owner IN (SELECT id FROM owner)) RETURNING queue
"""


# With a dependency of a dependency, and so on.
_ADOPTED_WITH = f"""id IN (WITH RECURSIVE wanted(id) AS ({_GIVEN[1:-1]} UNION
    SELECT needs FROM dependency JOIN wanted ON dependency.task = wanted.id) SELECT id FROM wanted)"""


def queues_of(run: int) -> Transaction:
    """The queues in which a run has PENDING tasks."""
    rows, _ = yield f"SELECT DISTINCT queue FROM task WHERE {_PENDING_OF} ?", (run,)
    return {queue for (queue,) in rows}


def adopt(run: int, queue: int, ids: Collection[int] | None) -> Transaction:
    """Have PENDING tasks be of a run; returns how many, and of which queues. See Store.adopt()."""
    if ids is None:
        rows, _ = yield _ADOPT % "queue = ?", (run, run, queue)
    else:
        rows, _ = yield _ADOPT % _ADOPTED_WITH, (run, run, json.dumps(list(ids)))
    return len(rows), {of for (of,) in rows}


def cancel_run(run: int, now: int) -> Transaction:
    """CANCEL what is PENDING of a run, and return it."""
    rows, _ = yield f"SELECT id FROM task WHERE {_PENDING_OF} ?", (run,)
    return (yield from cancel([id for (id,) in rows], now, False))


# Looking

_FOUND = "id, status, owner, result, error, exception FROM task"


def _found(row: Sequence[Any]) -> TaskState:
    id, status, owner, result, error, exception = row
    return TaskState(id, Status(status), owner, result, decode_error(error, exception))


def states(ids: Iterable[int]) -> Transaction:
    """Where tasks stand."""
    rows, _ = yield f"SELECT {_FOUND} WHERE id IN (SELECT value FROM json_each(?))", (json.dumps(list(ids)),)
    return [_found(row) for row in rows]


def by_key(queue: int, key: str) -> Transaction:
    """Where the task of that key stands, or None."""
    rows, _ = yield f"SELECT {_FOUND} WHERE queue = ? AND key = ?", (queue, key)
    return _found(rows[0]) if rows else None


def stored(ids: Sequence[int]) -> Transaction:
    """All that is stored of tasks: a TaskRow of each that is there."""
    rows, _ = yield f"SELECT {STORED} WHERE t.id IN (SELECT value FROM json_each(?))", (json.dumps(list(ids)),)
    return [TaskRow(task_of(row), row[0], row[1]) for row in rows]


def find(status: Status | None, queue: str | None, tags: Sequence[str] | None, limit: int | None) -> Transaction:
    """The tasks that match, oldest first. See Store.find()."""
    conditions: list[tuple[str, Any]] = [("t.status = ?", status), ("q.name = ?", queue)]
    conditions += [("EXISTS (SELECT 1 FROM json_each(t.options, '$.tags') WHERE value = ?)", t) for t in tags or ()]
    given = [(sql, value) for sql, value in conditions if value is not None]
    where = "WHERE " + " AND ".join(sql for sql, _ in given) if given else ""
    rows, _ = yield (
        f"SELECT {STORED} {where} ORDER BY t.id DESC LIMIT ?",
        (*(value for _, value in given), -1 if limit is None else limit),
    )
    return [task_of(rows.pop()) for _ in range(len(rows))]  # the last first, each let go of: a list may be long


def counts() -> Transaction:
    """Number of tasks per queue and state."""
    rows, _ = yield (
        "SELECT q.name, t.status, count(*) FROM task t JOIN queue q ON q.id = t.queue GROUP BY 1, 2 ORDER BY 1, 2",
        (),
    )
    found: dict[str, dict[Status, int]] = {}
    for queue, status, count in rows:
        found.setdefault(queue, {})[Status(status)] = count
    return found
