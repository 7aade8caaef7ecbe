"""The turns of the SQLite store, and what happens to single tasks.

A transaction is a generator: it yields `(sql, parameters)` and is sent a `Reply` with the rows and
the number of rows changed. What drives it decides how to wait, so one text serves a blocking
connection and an async one. The driver opens the transaction, commits when the generator returns
and rolls back when it raises. States and what events make of them come from model.TRANSITIONS and model.EFFECTS.

Bulk forms. A batch of plain calls, and a block of plain results, arrive as one JSON text and are
taken apart by json_each() in one statement: half the cost of executemany, and the interpreter's
lock is released once instead of once per row. `json_each.value` of an array is its JSON text, so
each call and each result is wrapped in an array of its own; results are unwrapped by substr(),
which keeps digits of floats that a conversion to REAL would round.
"""

import json
from collections.abc import Collection, Sequence
from typing import Any

from ...model.codec import decode_options, encode_options
from ...model.task import ENDS_CLAIM, FINISHING, LAST_TIER, NEVER, Call, Event, Function, Status, source, target
from ..base import Batch, Claimed, Outcome, ResultBatch, Run, Turn, TurnResult
from ..rules import initializer_of, shares
from . import tally
from .tables import GIVEN, OF_CALL, PENDING, RUNNING, Many, Reply, Statement, Transaction, changes, statement, values_of
from .waits import OPEN, check_there, hold, let_go_after, wire

_ADDED = int(Status.PENDING)
_CLAIMED = int(target(Event.CLAIM))
_FENCE = f"{RUNNING} AND owner = ? AND attempts = ?"
_ADD = (
    "INSERT INTO task (id, queue, run, function, args, kwargs, identity, key, status, enqueued_at, attempts, owner,"
    " started_at) "
)
_ADD_TEXT = _ADD + "SELECT ? + key, ?, ?, ?, value, NULL, NULL, NULL, ?, ?, ?, ?, ? FROM json_each(?)"
_ADD_CALL = _ADD + "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_ADD_UNCOUNTED = _ADD + f"SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ? WHERE ? >= {tally.MARK}"
_ADD_SPECIAL = (
    _ADD.replace("started_at)", "started_at, priority, eta, options)")
    + "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_COMPLETE_BLOCK = (
    f"UPDATE task SET {changes(Event.COMPLETE)}".replace(
        "result = ?", "result = substr(j.value, 2, length(j.value) - 2)"
    )
    + f" FROM json_each(?) AS j WHERE task.id = j.key + ? AND {_FENCE}"
)
_END = {event: f"UPDATE task SET {changes(event)} WHERE id = ? AND {_FENCE}" for event in Event if event in ENDS_CLAIM}
_VALUES = {event: values_of(event) for event in _END}
_ALONE = f" AND id >= {tally.MARK} AND (SELECT count(*) FROM owner) = 1 AND NOT EXISTS (SELECT 1 FROM dependency)"
_STANDING = f"SELECT {tally.MARK}, EXISTS (SELECT 1 FROM dependency)"
_CLAIM_THAT = f"""
    UPDATE task SET {changes(Event.CLAIM)} WHERE %s
    RETURNING priority, eta, id, attempts, crashes, run, args, kwargs,
        (SELECT digest FROM function WHERE function.id = task.function), options, owner_deaths
"""
_OF_TIER = [f"owner_deaths {'>=' if number == LAST_TIER else '='} {number}" for number in range(LAST_TIER + 1)]
_FIRST = [
    f"SELECT %s FROM task WHERE {PENDING} AND queue = ? AND run = ? AND {of_tier} AND eta <= ?"
    " ORDER BY priority DESC, eta, id LIMIT ?"
    for of_tier in _OF_TIER
]
_CLAIM = [_CLAIM_THAT % f"id IN ({first % 'id'})" for first in _FIRST]
_CLAIM_THESE = _CLAIM_THAT % "id IN (SELECT value FROM json_each(?))"
_CLAIM_ONE = _CLAIM_THAT % f"id = ? AND {PENDING} AND eta < {NEVER:d}"
_OF_RUN = f"FROM task WHERE {PENDING} AND queue = ? AND run = ? AND"
_DUE = [f"SELECT min(eta) {_OF_RUN} {of_tier} AND eta < {NEVER:d}" for of_tier in _OF_TIER]
_NEXT_TIER = f"SELECT min(owner_deaths) {_OF_RUN} owner_deaths > ? AND eta < {NEVER:d}"
# The runs that have PENDING tasks of a queue, with their contexts, each found by one look into the index.
_RUNS = f"""
    WITH RECURSIVE pending(run) AS (
        SELECT min(run) FROM task WHERE {PENDING} AND queue = ?
        UNION ALL SELECT (SELECT min(run) FROM task WHERE {PENDING} AND queue = ? AND run > pending.run)
        FROM pending WHERE pending.run IS NOT NULL)
    SELECT pending.run, context FROM pending LEFT JOIN run ON run.id = pending.run WHERE pending.run IS NOT NULL
"""
_SERIES = "coalesce(options ->> 'series', id)"
_OF_CALL = ", ".join(name for name in OF_CALL if name != "options")
_SUCCEED = f"""
    INSERT INTO task (id, eta, enqueued_at, status, options, {_OF_CALL})
    SELECT ?, ?, ?, {_ADDED:d}, json_set(json_remove(options, '$.retries'), '$.series', {_SERIES}), {_OF_CALL}
    FROM task WHERE id = ? AND options ->> 'interval' IS NOT NULL
"""
_NOTE_CHANGE = "INSERT INTO news (task, owner) VALUES (?, ?)"


class Inexact(Exception):
    """A bulk statement changed fewer rows than it should have: roll back, and do the turn with `exact=True`."""


def lone_end(owner: int, work: Turn) -> Statement | None:
    """Return the one statement of a turn that ends one claim and nothing else, or None for any other turn.

    It needs no transaction around it (see `add_claimed`), and changes nothing where another owner is
    there who has to be told, where the task is counted, or where the claim is lost: then the turn is done in the
    general way.
    """
    if len(work.outcomes) != 1 or work.blocks or work.adds or work.claim:
        return None
    (end,) = work.outcomes
    if end.successor is not None:
        return None
    return _END[end.event] + _ALONE, (*_VALUES[end.event](end, work.now), end.id, owner, end.attempt)


def turn(
    owner: int,
    run: Run,
    queue: int,
    functions: dict[bytes, int],
    work: Turn,
    peers: Sequence[int],
    exact: bool = False,
    adopted: Collection[int] = (),
) -> Transaction[TurnResult]:
    """Do one turn of a dispatcher. See Store.turn().

    `adopted` are the other queues that the run has adopted tasks of.

    Ends go by bulk statements, and it is enough to count what they changed, since claims are hardly
    ever lost. If one was, Inexact is raised; with `exact` the turn then finds out which.
    """
    turned = TurnResult()
    ((below, are_dependencies),), _ = yield _STANDING, ()
    for batch in work.adds:
        yield from _add(owner, run.id, queue, functions[batch.function.digest], batch, work.now)
        are_dependencies = are_dependencies or (batch.options is not None and batch.options.after)
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
    yield from _count(work, turned.refused, below)
    if (work.blocks or work.outcomes) and are_dependencies:
        turned.freed = yield from _heed_dependencies(work, turned.refused)
    if len(peers) > 1:
        yield _NOTE_CHANGE, Many((id, owner) for id in _finished(work, turned.refused))
    if work.claim > 0:
        yield from _claim(owner, run, [queue, *adopted], work, turned)
        old = [claimed.id for claimed in turned.claimed if claimed.id < below]
        if old:
            yield from tally.became(old, Status.PENDING)
    return turned


def _count(work: Turn, refused: set[int], below: int) -> Transaction[None]:
    """Count what a turn has added and ended below the mark, which is hardly ever any."""
    batches, blocks = ([it for it in some if it.first < below] for some in (work.adds, work.blocks))
    new = {id for batch in batches for id in range(batch.first, batch.first + batch.size)}
    new |= {end.successor.id for end in work.outcomes if end.successor is not None and end.successor.id < below}
    old = {id for block in blocks for id in range(block.first, block.first + block.size)}
    old |= {end.id for end in work.outcomes if end.id < below}
    if new:
        yield from tally.became(new, None)
    if old - refused:
        yield from tally.became(old - refused, Status.RUNNING)


def _claim(owner: int, run: Run, queues: Sequence[int], work: Turn, turned: TurnResult) -> Transaction[None]:
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
            sources.append((queue, [id for id, context in rows if not initializer_of(context or "")]))
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


def _claim_from(owner: int, queue: int, runs: Sequence[int], work: Turn, most: int) -> Transaction[list[Claimed]]:
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


def _pending_queues(names: Sequence[str]) -> Transaction[list[int]]:
    """Return the numbers of those of the named queues, or of all, that have PENDING tasks."""
    rows, _ = yield (
        "SELECT id FROM queue WHERE (? OR name IN (SELECT value FROM json_each(?)))"
        f" AND EXISTS (SELECT 1 FROM task WHERE {PENDING} AND task.queue = queue.id) ORDER BY random()",
        (not names, json.dumps(list(names))),
    )
    return [id for (id,) in rows]


def _claimed(rows: Sequence[Any]) -> list[Claimed]:
    return [
        Claimed(id, attempt, crashes, run, digest, args, kwargs, eta, decode_options(options), deaths)
        for _, eta, id, attempt, crashes, run, args, kwargs, digest, options, deaths in rows
    ]


def _add(owner: int, run: int, queue: int, function: int, batch: Batch, now: int) -> Transaction[None]:
    # A batch that is claimed as it is added never was PENDING to anybody: one insert is add and claim.
    claim = (_CLAIMED, now, 1, owner, now) if batch.claimed else (_ADDED, now, 0, None, None)
    special = batch.priority, batch.eta, encode_options(batch.options)
    if batch.options is not None and batch.options.after:
        yield from check_there(batch.options.after)
    if special != (0, 0, None):
        for number, call in enumerate(batch.each(), batch.first):
            yield _ADD_SPECIAL, (number, queue, run, function, *call, batch.key, *claim, *special)
        if batch.options is not None and batch.options.after:
            yield from wire(range(batch.first, batch.first + batch.size))
    elif batch.text is not None:
        yield _ADD_TEXT, (batch.first, queue, run, function, *claim, batch.text)
    else:
        for number, call in enumerate(batch.calls or (), batch.first):
            yield _ADD_CALL, (number, queue, run, function, *call, batch.key, *claim)


def add_claimed(owner: int, run: int, queue: int, function: int, number: int, call: Call, now: int) -> Statement:
    """Return the one statement that stores and claims one call. It needs no BEGIN and COMMIT around it.

    A lone statement that writes takes the writer's lock from its start, as BEGIN IMMEDIATE does. It stores
    nothing where the call would have to be counted: then it is stored in the general way.
    """
    return _ADD_UNCOUNTED, (number, queue, run, function, *call, None, _CLAIMED, now, 1, owner, now, number)


def _complete_block(owner: int, block: ResultBatch, now: int, exact: bool, refused: set[int]) -> Transaction[None]:
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
) -> Transaction[None]:
    values = Many((*_VALUES[event](end, now), end.id, owner, end.attempt) for end in ends)
    if exact:
        for end, row in zip(ends, values, strict=True):
            _, changed = yield sql, row
            if not changed:
                refused.add(end.id)
        return
    _, changed = yield sql, values
    if changed != len(ends):
        raise Inexact


def _finished(work: Turn, refused: set[int]) -> list[int]:
    """Return the tasks that a turn finished."""
    ids = [block.first + i for block in work.blocks for i in range(block.size)]
    ids += [end.id for end in work.outcomes if end.event in FINISHING]
    return [id for id in ids if id not in refused]


def _heed_dependencies(work: Turn, refused: set[int]) -> Transaction[bool]:
    """Do what the ends of a turn mean for what waits, or should; returns whether tasks wait no more."""
    ends = [end for end in work.outcomes if end.id not in refused]
    yield from wire([end.successor.id for end in ends if end.successor is not None])
    back = [end.id for end in ends if end.event not in FINISHING]
    yield from hold(back)
    return (yield from let_go_after(_finished(work, refused)))


def ensure_queue(name: str) -> Transaction[int]:
    """Return the number of a queue."""
    yield "INSERT OR IGNORE INTO queue (name) VALUES (?)", (name,)
    rows, _ = yield "SELECT id FROM queue WHERE name = ?", (name,)
    return int(rows[0][0])


def ensure_function(function: Function) -> Transaction[int]:
    """Return the number of a function. A function that no task uses is harmless."""
    yield (
        "INSERT INTO function (digest, path, pickle, parts) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (digest) DO UPDATE SET parts = excluded.parts WHERE parts = ''",
        tuple(function),
    )
    rows, _ = yield "SELECT id FROM function WHERE digest = ?", (function.digest,)
    return int(rows[0][0])


def claim(owner: int, number: int, now: int) -> Transaction[Claimed | None]:
    """CLAIM one task if it is PENDING; returns a Claimed, or None."""
    rows, _ = yield _CLAIM_ONE, (owner, now, number)
    yield from tally.became([number] if rows else [], Status.PENDING)
    return _claimed(rows)[0] if rows else None


def cancel(ids: Sequence[int], now: int, running: bool) -> Transaction[list[int]]:
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
            f"SELECT id, status FROM task WHERE status IN ({OPEN}) AND {_SERIES} IN (SELECT value FROM json_each(?))",
            (json.dumps([series for (series,) in recurring]),),
        )
        ids = [*ids, *(id for id, _ in others)]
        yield (
            "UPDATE task SET options = json_remove(options, '$.interval') WHERE id = ?",
            Many((id,) for id, status in others if status in source(Event.ABORT) and not running),
        )
    changed = []
    for event in (Event.CANCEL, Event.ABORT) if running else (Event.CANCEL,):
        changed += yield from _change(event, ids, now)
    yield from let_go_after(changed)
    yield _NOTE_CHANGE, Many((id, None) for id in changed)
    return changed


def retry(ids: Sequence[int]) -> Transaction[list[int]]:
    """MANUAL_RETRY the FAILED and CANCELLED ones of ids, and return them."""
    changed = yield from _change(Event.MANUAL_RETRY, ids)
    yield from wire(changed)
    return changed


_CHANGE = {
    event: f"UPDATE task SET {changes(event)} WHERE id IN {GIVEN}"
    f" AND status IN ({', '.join(f'{status:d}' for status in source(event))}) RETURNING id"
    for event in (Event.CANCEL, Event.ABORT, Event.MANUAL_RETRY)
}


def _change(event: Event, ids: Sequence[int], *given: Any) -> Transaction[list[int]]:
    """Let an event happen to those to which it may, with what is given to it; returns which."""
    rows, _ = yield from tally.changing(ids, statement(_CHANGE[event], (*given, json.dumps(list(ids)))))
    return [id for (id,) in rows]
