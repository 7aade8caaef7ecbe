"""Ways to break a store on purpose: each is a bug that somebody could write, and the tests must see it.

They are for a process of their own, or for pytest's monkeypatch to undo.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from omniq_executor.model.task import Event, Status
from omniq_executor.stores.base import Run, Turn
from omniq_executor.stores.file import tasks as file
from omniq_executor.stores.owners import Owners
from omniq_executor.stores.sqlite import runs, tally, turns
from omniq_executor.stores.sqlite.store import SQLiteStore
from omniq_executor.stores.sqlite.tables import PENDING, RUNNING

SetAttr = Callable[[Any, str, Any], None]
Mutation = Callable[[SetAttr], None]

_ENDS = "_END", "_COMPLETE_BLOCK"
_CLAIMS = "_CLAIM", "_FIRST"


def _sql(names: tuple[str, ...], old: str, new: str) -> Mutation:
    """Replace a part of the text of SQL statements."""

    def mutate(setattr: SetAttr) -> None:
        for name in names:
            module = turns if hasattr(turns, name) else runs
            statement: Any = getattr(module, name)
            if isinstance(statement, dict):
                mutated: Any = {event: sql.replace(old, new) for event, sql in statement.items()}
            elif isinstance(statement, list):
                mutated = [sql.replace(old, new) for sql in statement]
            else:
                mutated = statement.replace(old, new)
            assert mutated != statement, f"{name} does not contain {old}"
            setattr(module, name, mutated)

    return mutate


def _accepting(event: Event, status: Status) -> Mutation:
    """Let an event happen in one state more."""
    mutated = turns._CHANGE[event].replace("status IN (", f"status IN ({status:d}, ")
    return lambda setattr: setattr(turns, "_CHANGE", {**turns._CHANGE, event: mutated})


def _forgetting(field: str, value: Any) -> Mutation:
    """Take turns as if a field of what they ask for had its usual value."""
    turn = turns.turn

    def mutated(owner: int, run: Run, queue: int, functions: Any, work: Turn, *args: Any, **how: Any) -> Any:
        return turn(owner, run, queue, functions, work._replace(**{field: value}), *args, **how)

    return lambda setattr: setattr(turns, "turn", mutated)


def _forgetting_adopted(setattr: SetAttr) -> None:
    setattr(SQLiteStore, "_adopted_by", lambda *_: set())


def _not_settling(setattr: SetAttr) -> None:
    def only_itself(past: Any, own: Any, keep_broken: bool) -> tuple[set[int], set[int]]:
        clean, settled = ended(past, own, keep_broken)
        return clean, settled.intersection(own)

    ended = runs.ended
    setattr(runs, "ended", only_itself)


def _continuing(change: Callable[[Any], Any]) -> Mutation:
    """Have a run continue others than it should."""
    continued = runs.continued
    return lambda setattr: setattr(runs, "continued", lambda *args: change(continued(*args)))


def _living(alive: bool) -> Mutation:
    """Take all other owners for living, or for dead."""

    def is_alive(self: Owners, owner: int, host: str) -> bool:
        return owner in self._held or alive

    return lambda setattr: setattr(Owners, "is_alive", is_alive)


def _uncounted(name: str, place: int = -1) -> Mutation:
    """Count nothing where the counts of tasks change; `place` is that of what is done meanwhile, or -1."""

    def mutated(*args: Any) -> Any:
        if place >= 0:
            return (yield from args[place])
        return None
        yield  # it is a generator

    return lambda setattr: setattr(tally, name, mutated)


def _forgetting_what_was(module: Any, state: Status) -> Mutation:
    """Count nothing where a module has tasks become something that were in a state."""
    became = tally.became

    def mutated(ids: Any, was: Status | None) -> Any:
        if was is not state:
            yield from became(ids, was)

    return lambda setattr: setattr(module, "tally", SimpleNamespace(**{**vars(tally), "became": mutated}))


SQLITE: dict[str, Mutation] = {
    "an end does not look at the owner": _sql(_ENDS, "owner = ? AND attempts", "(owner = ? OR 1) AND attempts"),
    "an end does not look at the attempt": _sql(_ENDS, "attempts = ?", "attempts >= ?"),
    "an end does not look at the state": _sql(_ENDS, RUNNING, "1"),
    "a claim does not look at the state": _sql(_CLAIMS, PENDING, "status <= 3"),
    "a claim by its id does not look at the state": _sql(("_CLAIM_ONE",), PENDING, "status <= 3"),
    "a claim does not look at the queue": _sql((*_CLAIMS, "_RUNS"), "queue = ?", "queue > -?"),
    "a claim does not look at the run": _sql(("_CLAIM",), "run = ?", "run > -?"),
    "a claim of several runs does not look at the run": _sql(("_FIRST",), "run = ?", "run > -?"),
    "a claim does not look at the tier": _sql(_CLAIMS, "owner_deaths =", "owner_deaths >="),
    "the last tier is for two deaths only": _sql(_CLAIMS, "owner_deaths >=", "owner_deaths ="),
    "what waits makes a next tier": _sql(("_NEXT_TIER",), "AND eta < ", "AND eta <= "),
    "a claim of a run is one of its queue": _forgetting("of_run", False),
    "a claim of a run forgets what it adopted": _forgetting_adopted,
    "a run of the queue is overlooked": _sql(("_RUNS",), "run > pending.run", "run > pending.run + 1"),
    "a claim does not count": _sql(("_CLAIM",), "attempts + 1", "max(attempts, 1)"),
    "a claim takes one more": _sql(("_CLAIM",), "LIMIT ?", "LIMIT ? + 1"),
    "a claim takes the newest": _sql(_CLAIMS, "eta, id LIMIT", "eta, id DESC LIMIT"),
    "what the dead had is lost": _sql(("_ORPHAN_ALL",), "AND owner = ?", "AND owner = -?"),
    "the living are robbed by a reap": _sql(("_ORPHAN_ALL",), "owner = ?", "(owner = ? OR 1)"),
    "what one who leaves had is lost": _sql(("_RELEASE_ALL",), "AND owner = ?", "AND owner = -?"),
    "who leaves has claimed nothing": lambda setattr: setattr(SQLiteStore, "note_claim", lambda *_: None),
    "the living are robbed by who leaves": _sql(("_RELEASE_ALL",), "owner = ?", "(owner = ? OR 1)"),
    "a death is not counted": _sql(("_ORPHAN_ALL",), "owner_deaths + 1", "owner_deaths"),
    "a death is charged as a crash": _sql(("_ORPHAN_ALL",), "owner_deaths = owner_deaths", "crashes = crashes"),
    "who leaves counts as dead": _sql(("_RELEASE_ALL",), "owner = NULL,", "owner = NULL, owner_deaths = 1,"),
    "a manual retry remembers the deaths": _sql(("_CHANGE",), "owner_deaths = 0,", ""),
    "what others run is adopted": _sql(("_ADOPT_LEFT", "_ADOPT_THESE"), "run NOT IN", "0 NOT IN"),
    "what is read ahead is not the first of its kind": _sql(("_AHEAD",), "min(id)", "max(id)"),
    "what is read ahead is of any context": _sql(("_AHEAD",), "task.run) = ?", "task.run) >= substr(?, 1, 0)"),
    "what was given ahead is given again": _sql(("_GIVE",), "id IN", "id + 1 IN"),
    "the counts forget a claim": _forgetting_what_was(turns, Status.PENDING),
    "the counts forget an end": _forgetting_what_was(turns, Status.RUNNING),
    "the counts forget what is given back": _forgetting_what_was(runs, Status.RUNNING),
    "the counts keep what is retried": _uncounted("changing", 1),
    "the counts keep what has changed": _uncounted("subtract"),
    "a lone end is not counted": lambda setattr: setattr(
        turns, "_ALONE", turns._ALONE.replace(f"id >= {tally.MARK}", "1")
    ),
    "what is counted at once is not looked at": lambda setattr: setattr(
        tally, "_ARE_ALIKE", tally._ARE_ALIKE.replace("status = ?", "status >= 0 * ?")
    ),
    "the mark passes over a task": lambda setattr: setattr(tally, "_NEXT", tally._NEXT.replace("id < ?", "id < ? - 1")),
    "what runs is adopted": _sql(("_ADOPT_LEFT", "_ADOPT_THESE"), PENDING, "status <= 2"),
    "what an adopted task comes after is not": _sql(("_ADOPT_THESE",), "dependency.task =", "-dependency.task ="),
    "the living are settled": _sql(("_IS_OVER",), "NOT IN", "<> 0 OR 0 IN"),
    "sessions that go on are over": _sql(("_HAS_NO_SESSION",), "NOT IN", "<> -1 OR 0 IN"),
    "what did not end is fine": _sql(("_IS_BROKEN",), "ended_at IS NULL", "0"),
    "what ended badly is fine": _sql(("_IS_BROKEN",), "clean IS 0", "0"),
    "another context is the same": _sql(("_ALIKE",), "context = ?", "(context = ? OR 1)"),
    "leftovers of another run are told": _sql(("_PENDING_OF",), "task.run =", "task.run >="),
    "a release keeps its owner": _sql(("_END",), "owner = NULL, ", ""),
    "a crash is not charged": _sql(("_END",), "crashes + 1", "crashes"),
    "what completed is retried": _accepting(Event.MANUAL_RETRY, Status.COMPLETED),
    "what runs is cancelled": _accepting(Event.CANCEL, Status.RUNNING),
    "what completed is cancelled": _accepting(Event.CANCEL, Status.COMPLETED),
    "a clean end settles nothing else": _not_settling,
    "nothing is continued": _continuing(lambda _: set()),
    "one run of several is not continued": _continuing(lambda runs: set(sorted(runs)[:1])),
    "nobody is ever dead": _living(True),
    "all others are dead": _living(False),
}


def _counting(is_meant: Callable[[Any, int], bool]) -> Mutation:
    """Have the file store forget some of what changes the counts: by the record, and by whether it comes or goes."""

    def mutated(found: Any, records: Any, sizes: Any, by: int = 1) -> None:
        pairs = [(record, size) for record, size in zip(records, sizes, strict=True) if is_meant(record, by)]
        count_in(found, [record for record, _ in pairs], [size for _, size in pairs], by)

    count_in = file.count_in
    return lambda setattr: setattr(file, "count_in", mutated)


FILE: dict[str, Mutation] = {
    "the counts keep what has changed": _counting(lambda record, by: by > 0),
    "the counts forget an end": _counting(lambda record, by: record.task.status is not Status.COMPLETED),
    "the counts forget a claim": _counting(lambda record, by: record.task.status is not Status.RUNNING),
    "the counts forget a retry": _counting(lambda record, by: by > 0 or record.task.status is not Status.FAILED),
}
MUTATIONS = {"sqlite": SQLITE, "file": FILE}
