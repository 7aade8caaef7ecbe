"""Transactions of the SQLite store about owners, sessions and runs, see turns.py."""

import itertools
import json
from collections.abc import Collection, Mapping, Sequence

from ...model.task import Call, Event, Status, source
from ..base import ADDS, SMALL, Leftover, Run, RunRecord, TaskState
from ..rules import PastRun, Resume, beside, can_be_taken, continued, ended
from . import tally
from .looking import FOUND, STATE, found
from .tables import GIVEN, LIKENESS, PENDING, RUNNING, Many, Transaction, changes, refers, statement
from .turns import cancel, retry
from .waits import hold

_LOOKED_UP = 512  # calls by one statement

OWNERS = "SELECT id FROM owner"
_CHANGES_OF_OTHERS = "FROM news WHERE id > (SELECT heard FROM owner WHERE id = ?) AND owner IS NOT ?"
_DROP_READ_CHANGES = """
    DELETE FROM news WHERE NOT EXISTS
        (SELECT 1 FROM owner WHERE owner.heard < news.id AND owner.id IS NOT news.owner)
"""
HAS_CHANGES = f"SELECT 1 {_CHANGES_OF_OTHERS} LIMIT 1"
_TAKE_BACK = "UPDATE task SET %s WHERE %s AND owner = ? AND id >= ? AND (? OR id IN %s) RETURNING id"
_RELEASE_ALL = _TAKE_BACK % (changes(Event.RELEASE), RUNNING, GIVEN)
_ORPHAN_ALL = _TAKE_BACK % (changes(Event.ORPHAN), RUNNING, GIVEN)
_RELEASE_UNOWNED = (
    f"UPDATE task SET {changes(Event.RELEASE)}"
    f" WHERE {RUNNING} AND coalesce(owner, -1) NOT IN (SELECT id FROM owner) RETURNING id"
)


def enter(id: int, nodes: int, queue: str, host: str, pid: int, now: int) -> Transaction[bool]:
    """Register an owner, unless its id is another's modulo `nodes`; returns whether it is.

    What finished before is no change to it.
    """
    _, changed = yield (
        "INSERT INTO owner SELECT ?, ?, ?, ?, ?, coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'news'), 0)"
        " WHERE NOT EXISTS (SELECT 1 FROM owner WHERE id % ? = ?)",
        (id, queue, host, pid, now, nodes, id % nodes),
    )
    return changed == 1


def release_dead(suspects: Mapping[int, Collection[int] | None], dead_sessions: Sequence[int] = ()) -> Transaction[int]:
    """Take back the tasks of owners that are dead, forget them, and return how many tasks that were.

    `suspects` has of each owner the tasks that it had begun, or None if any may have been.
    """
    returned = 0
    for owner, begun in suspects.items():
        returned += yield from _take_back(_ORPHAN_ALL, owner, 0, begun)
    if suspects:
        yield from tally.move_on()
    returned += yield from forget_owners(list(suspects))
    yield "DELETE FROM session WHERE id = ?", Many((id,) for id in dead_sessions)
    return returned


def leave(owner: int, first: int) -> Transaction[None]:
    """RELEASE the tasks of an owner that leaves, and forget it. It has claimed none before `first`."""
    yield from forget_owners([owner], first)
    yield from tally.move_on()


def forget_owners(owners: Sequence[int], first: int = 0) -> Transaction[int]:
    """RELEASE the tasks of owners that leave or left, and forget them; returns how many tasks.

    No owner has claimed one before `first`: there may be millions of them, which are not looked at then.
    """
    returned = 0
    for owner in owners:
        returned += yield from _take_back(_RELEASE_ALL, owner, first)
        yield "DELETE FROM owner WHERE id = ?", (owner,)
    yield _DROP_READ_CHANGES, ()
    return returned


def _take_back(sql: str, owner: int, first: int, ids: Collection[int] | None = None) -> Transaction[int]:
    """Have tasks of an owner be PENDING, from `first` on, those of `ids` or all; returns how many."""
    return (yield from _given_back(sql, (owner, first, ids is None, json.dumps(list(ids or ())))))


def release_unowned() -> Transaction[int]:
    """RELEASE what is RUNNING without a registered owner, and return how many tasks that were."""
    return (yield from _given_back(_RELEASE_UNOWNED, ()))


def _given_back(sql: str, parameters: Sequence[object]) -> Transaction[int]:
    """Do what makes RUNNING tasks PENDING; returns how many."""
    rows, _ = yield sql, parameters
    ids = [id for (id,) in rows]
    yield from tally.became(ids, Status.RUNNING)
    yield from hold(ids)
    return len(ids)


def read_changes(owner: int) -> Transaction[list[int]]:
    """Return the tasks that others finished since this owner last asked. What all others have read is dropped."""
    rows, _ = yield f"SELECT id, task {_CHANGES_OF_OTHERS}", (owner, owner)
    if rows:
        yield "UPDATE owner SET heard = ? WHERE id = ?", (max(id for id, _ in rows), owner)
        yield _DROP_READ_CHANGES, ()
    return [task for _, task in rows]


SESSIONS = "SELECT id, host FROM session"
_IS_OVER = "owner NOT IN (SELECT id FROM owner)"  # of a run
_HAS_NO_SESSION = "session NOT IN (SELECT id FROM session)"
_ALIKE = "queue = ? AND context = ?"
_IS_BROKEN = "(clean IS 0 OR ended_at IS NULL)"
# Through the index of what can be claimed, which begins with the queue: tasks of a run may be of any.
FORGET_TAKEN = "DELETE FROM taken WHERE run NOT IN (SELECT id FROM run)"
_PENDING_OF = f"{PENDING} AND task.queue IN (SELECT id FROM queue) AND task.run ="


def end_session(session: int, clean: bool, keep_broken: bool) -> Transaction[list[Leftover]]:
    """End a session, and settle what is to be settled; returns a list of Leftover. See Store.end_session()."""
    yield "DELETE FROM session WHERE id = ?", (session,)
    if not clean:
        yield "UPDATE run SET clean = 0 WHERE session = ? AND clean IS NULL", (session,)
        return []
    own, _ = yield "SELECT id FROM run WHERE session = ? AND settled = 0", (session,)
    return (yield from _settle([id for (id,) in own], keep_broken))


def _past(where: str, *parameters: object) -> Transaction[list[PastRun]]:
    rows, _ = yield (
        f"SELECT id, queue, context, continues, session, {_IS_BROKEN}, settled, {_IS_OVER} AND {_HAS_NO_SESSION}"
        f" FROM run WHERE {where}",
        parameters,
    )
    return [PastRun(id, (queue, context), json.loads(chain), *rest) for id, queue, context, chain, *rest in rows]


def _settle(own: Sequence[int], keep_broken: bool) -> Transaction[list[Leftover]]:
    """Have these runs end clean, and settle what is settled by that; returns what that has left."""
    clean, settled = ended((yield from _past("settled = 0")), own, keep_broken)
    yield f"UPDATE run SET clean = 1 WHERE id IN {GIVEN}", (json.dumps(list(clean)),)
    text = json.dumps(list(settled))
    yield f"UPDATE run SET settled = 1 WHERE id IN {GIVEN}", (text,)
    rows, _ = yield (
        f"SELECT r.id, q.name, r.started_at, (SELECT count(*) FROM task WHERE {_PENDING_OF} r.id) AS tasks, context"
        f" FROM run r JOIN queue q ON q.id = r.queue WHERE r.id IN {GIVEN} ORDER BY r.id",
        (text,),
    )
    return [left for left in itertools.starmap(Leftover, rows) if left.tasks]


def begin_run(
    queue: int, queue_name: str, owner: int, resume: Resume, now: int, session: int, context: str, since: int,
    result_ttl: int | None,
) -> Transaction[Run]:  # fmt: skip
    """Open a run; returns a Run. See Store.begin_run()."""
    where = f"{_ALIKE} AND {_IS_OVER} AND ({_HAS_NO_SESSION} OR session = ?)"
    past = yield from _past(where, queue, context, session)
    have_failed: list[int] = []
    if resume == "failed":
        rows, _ = yield tally.OF_RUNS.format(f"status = {Status.FAILED:d}"), ()
        have_failed = [id for id, _, _ in rows]
    continues = continued(past, resume, session, have_failed)
    if continues and since:
        continues.difference_update((yield from _older(continues, since)))
    chain = json.dumps(sorted(continues))
    _, _ = yield (
        "INSERT INTO run (queue, owner, continues, started_at, session, context, result_ttl)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (queue, owner, chain, now, session, context, result_ttl),
    )
    ((run,),), _ = yield "SELECT last_insert_rowid()", ()
    rows, _ = yield "SELECT id, session, queue, context FROM run WHERE session = ?", (session,)
    others = beside(run, {id: tuple(life) for id, *life in rows}, continues)
    opened = Run(run, queue_name, tuple(sorted(continues)), context=context, beside=others)
    return (yield from _offer(opened, f"status <> {Status.CANCELLED:d}")) if continues else opened


def offer_again(run: Run) -> Transaction[Run]:
    """Have what is COMPLETED be there to be taken over once more; returns the Run. See Store.offer_again()."""
    own = run._replace(continues=tuple(sorted({*run.continues, run.id})))
    return (yield from _offer(own, f"status = {Status.COMPLETED:d}"))


def offer_more(run: int, ids: Collection[int]) -> Transaction[None]:
    """Have what is COMPLETED of these tasks be there to be taken over, too. See Store.offer_more()."""
    text = json.dumps(list(ids))
    yield (
        f"INSERT OR IGNORE INTO temp.resumable_{run} SELECT id, function, {LIKENESS} FROM task"
        f" WHERE id IN {GIVEN} AND run = ? AND status = {Status.COMPLETED:d}",
        (text, run),
    )
    yield (
        f"INSERT INTO temp.resumable_function_{run} SELECT id, digest, path FROM function"
        f" WHERE id IN (SELECT function FROM task WHERE id IN {GIVEN})"
        f" AND id NOT IN (SELECT id FROM temp.resumable_function_{run})",
        (text,),
    )


def _offer(run: Run, where: str) -> Transaction[Run]:
    """Note what there is to be taken over of the runs that one continues; returns that one with how much it is."""
    id = run.id
    yield f"DROP TABLE IF EXISTS temp.resumable_{id}", ()  # also of a store that was deleted and made again
    yield f"CREATE TEMP TABLE resumable_{id} (id INTEGER PRIMARY KEY, function INTEGER, call)", ()
    yield (
        f"INSERT INTO temp.resumable_{id} SELECT id, function, {LIKENESS}"
        f" FROM task WHERE run IN {GIVEN} AND {where} AND id NOT IN (SELECT task FROM taken WHERE run IN {GIVEN})",
        (json.dumps(run.continues), json.dumps(run.beside)),
    )
    yield f"CREATE INDEX temp.resumable_call_{id} ON resumable_{id} (function, call, id)", ()
    yield f"DROP TABLE IF EXISTS temp.resumable_function_{id}", ()
    yield (
        f"CREATE TEMP TABLE resumable_function_{id} AS SELECT id, digest, path FROM function"
        f" WHERE id IN (SELECT function FROM resumable_{id})",
        (),
    )
    ((total, done),), _ = yield (
        f"SELECT count(*), sum(status = {Status.COMPLETED:d}) FROM resumable_{id} JOIN task USING (id)",
        (),
    )
    return run._replace(done=done or 0, total=total)


def _older(runs: Collection[int], since: int) -> Transaction[set[int]]:
    """Return those of the runs of which nothing has happened after `since`."""
    text = json.dumps(list(runs))
    rows, _ = yield (
        f"SELECT id FROM run WHERE max(started_at, coalesce(ended_at, 0)) <= ? AND id IN {GIVEN}",
        (since, text),
    )
    old = {id for (id,) in rows}
    if old:  # a run that was killed may have been at work until then
        rows, _ = yield (
            f"SELECT DISTINCT run FROM task WHERE run IN {GIVEN}"
            " AND max(enqueued_at, coalesce(started_at, 0), coalesce(finished_at, 0)) > ?",
            (json.dumps(list(old)), since),
        )
        old.difference_update(id for (id,) in rows)
    return old


def end_run(run: Run, clean: bool, now: int) -> Transaction[list[Leftover]]:
    """Close a run; returns a list of Leftover. See Store.end_run()."""
    for name in "resumable", "resumable_function":
        yield f"DROP TABLE IF EXISTS temp.{name}_{run.id}", ()
    yield "UPDATE run SET ended_at = ?, clean = ? WHERE id = ?", (now, None if clean else 0, run.id)
    own, _ = yield "SELECT id FROM run WHERE id = ? AND session = 0 AND settled = 0", (run.id,)
    return (yield from _settle([run.id], keep_broken=False)) if own and clean else []


_GIVE = f"DELETE FROM temp.resumable_{{0}} WHERE id IN {GIVEN}"
_THEIRS = f"SELECT task FROM taken WHERE run IN {GIVEN} AND task IN {GIVEN}"
_NOTE_TAKEN = f"INSERT OR IGNORE INTO taken SELECT ?, id, status, run FROM task WHERE id IN {GIVEN} AND run <> ?"


def _find_equal(run: int, function: int, calls: Sequence[Call]) -> Transaction[dict[int, int]]:
    """Return the tasks that are there to be taken over for these calls, each with the place of its call."""
    wanted: dict[str | bytes, list[int]] = {}
    for place, call in enumerate(calls):
        wanted.setdefault(call.likeness, []).append(place)
    given: dict[int, int] = {}
    once = [likeness for likeness, places in wanted.items() if len(places) == 1]
    for start in range(0, len(once), _LOOKED_UP):
        some = once[start : start + _LOOKED_UP]
        rows, _ = yield (
            f"WITH wanted (call) AS (VALUES {', '.join(['(?)'] * len(some))})"
            f" SELECT (SELECT id FROM temp.resumable_{run} WHERE function = ? AND call = wanted.call"
            " ORDER BY id LIMIT 1) FROM wanted",
            (*some, function),
        )
        given |= {id: wanted[likeness][0] for likeness, (id,) in zip(some, rows, strict=True) if id is not None}
    for likeness, places in wanted.items():
        if len(places) > 1:
            rows, _ = yield (
                f"SELECT id FROM temp.resumable_{run} WHERE function = ? AND call = ? ORDER BY id LIMIT ?",
                (function, likeness, len(places)),
            )
            given |= zip((id for (id,) in rows), places, strict=False)  # as many as are left
    return given


def take_over(run: Run, function: int, calls: Sequence[Call]) -> Transaction[list[TaskState | None]]:
    """Return for each call its TaskState, or None. See Store.take_over()."""
    given = yield from _find_equal(run.id, function, calls)
    while run.beside and given:
        rows, _ = yield _THEIRS, (json.dumps(run.beside), json.dumps([*given]))
        if not rows:
            break
        yield _GIVE.format(run.id), (json.dumps([id for (id,) in rows]),)
        given = yield from _find_equal(run.id, function, calls)
    if not given:
        return [None] * len(calls)
    ids = json.dumps(list(given))
    yield _GIVE.format(run.id), (ids,)
    looked, _ = yield (
        f"SELECT (SELECT context FROM run WHERE id = task.run) = ?, {FOUND} WHERE id IN {GIVEN}",
        (run.context, ids),
    )
    rows = [row for is_alike, *row in looked if can_be_taken(row[1], is_alike)]
    if len(rows) < len(given):
        ids = json.dumps([row[0] for row in rows])
    yield _NOTE_TAKEN, (run.id, ids, run.id)
    failed = [row[0] for row in rows if row[1] == Status.FAILED]
    if failed:
        yield from retry(failed)
    if failed or any(row[1] == Status.PENDING for row in rows):
        pending = [row[0] for row in rows if row[1] == Status.PENDING]
        yield from _have(run.id, [*failed, *pending])
        rows, _ = yield f"SELECT {FOUND} WHERE id IN {GIVEN}", (ids,)
    states: list[TaskState | None] = [None] * len(calls)
    for row in rows:
        states[given[row[0]]] = found(row)
    for id in failed:
        state = states[given[id]]
        states[given[id]] = state and state._replace(had_failed=True)
    return states


_AHEAD = f"""
    SELECT next.call, {STATE}
    FROM (SELECT id, function, call FROM temp.resumable_{{0}} WHERE id > ? ORDER BY id LIMIT ?) next
    JOIN task USING (id)
    WHERE next.function = ? AND status = {Status.COMPLETED:d} AND length(result) <= {SMALL} AND NOT ({refers("result")})
    AND (SELECT context FROM run WHERE id = task.run) = ?
    AND NOT EXISTS (SELECT 1 FROM taken WHERE taken.run IN {GIVEN} AND taken.task = task.id) AND id =
        (SELECT min(id) FROM temp.resumable_{{0}} other WHERE other.function = next.function AND other.call = next.call)
    ORDER BY id
"""


def ahead(run: Run, function: int, after: int, most: int) -> Transaction[list[tuple[str | bytes, TaskState]]]:
    """Return what may be taken over next, with likenesses. See Store.ahead()."""
    rows, _ = yield _AHEAD.format(run.id), (after, most, function, run.context, json.dumps(run.beside))
    return [(likeness, found(row)) for likeness, *row in rows]


def note_given(run: int, ids: Sequence[int]) -> Transaction[None]:
    """Note tasks as taken over. See Store.note_given()."""
    yield _GIVE.format(run), (json.dumps(ids),)
    yield _NOTE_TAKEN, (run, json.dumps(ids), run)


def retry_for(run: int, ids: Sequence[int]) -> Transaction[list[int]]:
    """Retry tasks, and note how they stood; returns which were retried. See Store.retry_for()."""
    yield (
        f"INSERT OR IGNORE INTO taken SELECT ?, id, status, run FROM task WHERE id IN {GIVEN} AND status IN (?, ?)",
        (run, json.dumps(list(ids)), *source(Event.MANUAL_RETRY)),
    )
    return (yield from retry(ids))


_ADOPT = f"""
    SELECT id FROM task WHERE {PENDING} AND run <> :run AND %s
    AND run NOT IN (SELECT id FROM run WHERE owner IN (SELECT id FROM owner%s))
"""
_IS_ALIKE = "(run = 0 OR run IN (SELECT id FROM run WHERE {0} = (SELECT {0} FROM run WHERE id = :run)))"
_INITIALIZER = "substr(context, instr(context || '.', '.'))"  # see rules.initializer_of()
_HAS_CONTEXT, _HAS_INITIALIZER = _IS_ALIKE.format("context"), _IS_ALIKE.format(_INITIALIZER)
_GIVEN = "SELECT value FROM json_each(:ids)"
# With a dependency of a dependency, and so on.
_ADOPTED_WITH = f"""id IN (WITH RECURSIVE wanted(id) AS ({_GIVEN} UNION
    SELECT needs FROM dependency JOIN wanted ON dependency.task = wanted.id) SELECT id FROM wanted)"""
_ADOPT_LEFT = _ADOPT % (f"queue = :queue AND {_HAS_CONTEXT}", "")
_ADOPT_THESE = {
    any_context: _ADOPT % (f"{_ADOPTED_WITH} AND {condition}", f" WHERE queue <> '{ADDS}'")
    for any_context, condition in {False: _HAS_INITIALIZER, True: f"({_HAS_INITIALIZER} OR id IN ({_GIVEN}))"}.items()
}


def all_runs() -> Transaction[list[RunRecord]]:
    """Return all runs, oldest first."""
    rows, _ = yield (
        "SELECT r.id, q.name, owner, continues, started_at, ended_at, clean, settled, session, context, result_ttl"
        " FROM run r JOIN queue q ON q.id = r.queue ORDER BY r.id",
        (),
    )
    return [
        RunRecord(
            id, queue, owner, tuple(json.loads(continues)), started_at, ended_at,
            None if clean is None else bool(clean), bool(settled), *rest,
        )
        for id, queue, owner, continues, started_at, ended_at, clean, settled, *rest in rows
    ]  # fmt: skip


def queues_of(run: int) -> Transaction[set[int]]:
    """Return the queues in which a run has PENDING tasks."""
    rows, _ = yield f"SELECT DISTINCT queue FROM task WHERE {_PENDING_OF} ?", (run,)
    return {queue for (queue,) in rows}


def adopt(run: int, queue: int, ids: Collection[int] | None, any_context: bool) -> Transaction[tuple[int, set[int]]]:
    """Have PENDING tasks be of a run; returns how many, and of which queues. See Store.adopt()."""
    if ids is None:
        rows, _ = yield _ADOPT_LEFT, {"run": run, "queue": queue}
    else:
        rows, _ = yield _ADOPT_THESE[any_context], {"run": run, "ids": json.dumps(list(ids))}
    queues = yield from _have(run, [id for (id,) in rows])
    return len(rows), queues


def _have(run: int, ids: Sequence[int]) -> Transaction[set[int]]:
    """Have PENDING tasks be of a run; returns of which queues they are."""
    change = statement(f"UPDATE task SET run = ? WHERE id IN {GIVEN} RETURNING queue", (run, json.dumps(ids)))
    rows, _ = yield from tally.changing(ids, change)
    return {queue for (queue,) in rows}


def cancel_run(run: int, now: int) -> Transaction[list[int]]:
    """CANCEL what is PENDING of a run, and return it."""
    rows, _ = yield f"SELECT id FROM task WHERE {_PENDING_OF} ?", (run,)
    return (yield from cancel([id for (id,) in rows], now, False))
