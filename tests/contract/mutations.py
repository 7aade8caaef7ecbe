"""Ways to break a store on purpose: each is a bug that somebody could write, and the tests must see it.

They are for a process of their own, or for pytest's monkeypatch to undo.
"""

from collections.abc import Callable
from typing import Any

from omniq_executor.model import Event, Status, source
from omniq_executor.stores import transactions
from omniq_executor.stores.owners import Owners

SetAttr = Callable[[Any, str, Any], None]
Mutation = Callable[[SetAttr], None]

_ENDS = "_END", "_COMPLETE_BLOCK"


def _sql(names: tuple[str, ...], old: str, new: str) -> Mutation:
    """Replace a part of the text of SQL statements."""

    def mutate(setattr: SetAttr) -> None:
        for name in names:
            statement: Any = getattr(transactions, name)
            if isinstance(statement, dict):
                mutated: Any = {event: sql.replace(old, new) for event, sql in statement.items()}
            else:
                mutated = statement.replace(old, new)
            assert mutated != statement, f"{name} does not contain {old}"
            setattr(transactions, name, mutated)

    return mutate


def _accepting(event: Event, status: Status) -> Mutation:
    """Let an event happen in one state more."""
    return lambda setattr: setattr(
        transactions, "source", lambda of: (*source(of), status) if of is event else source(of)
    )


def _living(alive: bool) -> Mutation:
    """Take all other owners for living, or for dead."""

    def is_alive(self: Owners, owner: int, host: str) -> bool:
        return owner in self._held or alive

    return lambda setattr: setattr(Owners, "is_alive", is_alive)


SQLITE: dict[str, Mutation] = {
    "an end does not look at the owner": _sql(_ENDS, "owner = ? AND attempts", "(owner = ? OR 1) AND attempts"),
    "an end does not look at the attempt": _sql(_ENDS, "attempts = ?", "attempts >= ?"),
    "an end does not look at the state": _sql(_ENDS, transactions._RUNNING, "1"),
    "a claim does not look at the state": _sql(("_CLAIM",), transactions._PENDING, "status <= 3"),
    "a claim by its id does not look at the state": _sql(("_CLAIM_ONE",), transactions._PENDING, "status <= 3"),
    "a claim does not look at the queue": _sql(("_CLAIM",), "queue = ?", "queue > -?"),
    "a claim does not count": _sql(("_CLAIM",), "attempts + 1", "max(attempts, 1)"),
    "a claim takes one more": _sql(("_CLAIM",), "LIMIT ?", "LIMIT ? + 1"),
    "a claim takes the newest": _sql(("_CLAIM",), "eta, id LIMIT", "eta, id DESC LIMIT"),
    "what the dead had is lost": _sql(("_RELEASE_ALL",), "AND owner = ?", "AND owner = -?"),
    "the living are robbed": _sql(("_RELEASE_ALL",), "owner = ?", "(owner = ? OR 1)"),
    "a release keeps its owner": _sql(("_END",), "owner = NULL, ", ""),
    "a crash is not charged": _sql(("_END",), "crashes + 1", "crashes"),
    "what completed is revived": _accepting(Event.REVIVE, Status.COMPLETED),
    "what runs is cancelled": _accepting(Event.CANCEL, Status.RUNNING),
    "what completed is cancelled": _accepting(Event.CANCEL, Status.COMPLETED),
    "nobody is ever dead": _living(True),
    "all others are dead": _living(False),
}
MUTATIONS = {"sqlite": SQLITE}
