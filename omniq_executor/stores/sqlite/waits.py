"""Which tasks of the SQLite store wait for which others: parts of transactions, see turns.py.

Of each task that is not finished the table `dependency` has the tasks that it comes after. See Store.turn() for when a
task waits.
"""

import json
from collections.abc import Iterable, Sequence

from ...errors import TaskNotFound
from ...model.task import FINISHED, NEVER, Status, format_id
from .tables import GIVEN, PENDING, Transaction

# What a task comes after, and who waits for it; see Store.turn().
IS_FREE = "id NOT IN (SELECT needs FROM dependency)"  # of a task that none which is not finished comes after
_WIRES = "SELECT t.id, a.value FROM task t, json_each(t.options, '$.after') a"
_WIRE = f"INSERT OR IGNORE INTO dependency {_WIRES} WHERE t.id IN {GIVEN}"
OPEN = ", ".join(f"{status:d}" for status in Status if status not in FINISHED)
# The youngest first: it is the likeliest one not to be finished.
_IS_HELD_UP = f"""(SELECT 1 FROM dependency d JOIN task n ON n.id = d.needs
    WHERE d.task = task.id AND n.status IN ({OPEN}) ORDER BY d.needs DESC LIMIT 1)"""
_HOLD = f"""
    UPDATE task SET options = json_set(options, '$.due', eta), eta = {NEVER:d}
    WHERE {PENDING} AND options ->> 'due' IS NULL AND {_IS_HELD_UP} IS NOT NULL AND id IN """
_LET_GO = f"""
    UPDATE task SET eta = options ->> 'due', options = json_remove(options, '$.due')
    WHERE {PENDING} AND options ->> 'due' IS NOT NULL AND {_IS_HELD_UP} IS NULL AND id IN """
_ALL_DEPENDENT = "(SELECT task FROM dependency)"


def hold(ids: Iterable[int]) -> Transaction[None]:
    """Have those of these tasks wait that should."""
    yield _HOLD + GIVEN, (json.dumps(list(ids)),)


def wire(ids: Sequence[int]) -> Transaction[None]:
    """Have new tasks wait for those that they come after."""
    text = json.dumps(list(ids))
    yield _WIRE, (text,)
    yield _HOLD + GIVEN, (text,)


def check_there(ids: Sequence[int]) -> Transaction[None]:
    """Raise TaskNotFound unless the store has all of these tasks."""
    rows, _ = yield f"SELECT id FROM task WHERE id IN {GIVEN}", (json.dumps(ids),)
    missing = set(ids).difference(id for (id,) in rows)
    if missing:
        raise TaskNotFound(
            f"the store holds no {format_id(min(missing))}, so there is no result of it that a call could be given:"
            " it is of another store, or was purged"
        )


def let_go_after(finished: Sequence[int]) -> Transaction[bool]:
    """Have those wait no more that waited for one of these tasks, the last one; returns whether there are any."""
    text = json.dumps(finished)
    yield f"DELETE FROM dependency WHERE task IN {GIVEN}", (text,)
    waiting, _ = yield f"SELECT DISTINCT task FROM dependency WHERE needs IN {GIVEN}", (text,)
    _, changed = yield _LET_GO + GIVEN, (json.dumps([id for (id,) in waiting]),)
    return changed > 0


def rewire() -> Transaction[int]:
    """Have all wait as their options say, for as long as they should; returns how much that was not so before."""
    wires = f"{_WIRES.replace('t.options,', _VALID)} WHERE t.status IN ({OPEN})"
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
