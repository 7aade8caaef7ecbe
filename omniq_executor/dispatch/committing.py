"""How turns are committed, and what becomes of what the store refuses.

It is kept and offered again with the next turn, at the latest RETRY_S later. A store that refuses for REFUSED_S is
given up.
"""

import logging
import math
import time
from collections.abc import Callable

from ..errors import StoreError, TooLarge
from ..stores.base import Run, Store, Turn, TurnResult
from .results import singly, too_large

RETRY_S = 1.0  # until what could not be stored is offered again
REFUSED_S = 60.0  # after which a store that takes nothing ends the executor

_log = logging.getLogger("omniq_executor")


class Committer:
    """See the module's docstring. Called under the dispatcher's lock."""

    def __init__(self, store: Store, owner: int, run: Run) -> None:
        self.retry_at = math.inf
        """When a turn is to be taken since the store has refused something, in seconds of time.monotonic()."""
        self.refused_since: float | None = None
        """Since when it has, without having taken anything."""
        self._store = store
        self._owner = owner
        self._run = run
        self._said = ""  # of the store, since it took something last

    def commit(self, turn: Turn) -> TurnResult:
        """Commit a turn. Raises StoreError, and then nothing of it is to be forgotten."""
        try:
            turned = self._store.turn(self._owner, self._run, turn)
        except TooLarge:
            if not turn.outcomes and not turn.blocks:
                raise
            turned = self._commit_apart(turn)
        self._said = ""
        return turned

    def _commit_apart(self, turn: Turn) -> TurnResult:
        """Commit each outcome alone, since one is too large for the store. That one's call fails for it."""
        refused, freed = set(), False
        for outcome in singly(turn):
            try:
                turned = self._store.turn(self._owner, self._run, Turn(turn.now, outcomes=[outcome]))
                refused |= turned.refused
            except TooLarge as error:
                failed = Turn(turn.now, outcomes=[too_large(outcome, error)])
                turned = self._store.turn(self._owner, self._run, failed)
                refused.add(outcome.id)  # what was reported of it is not what became of it
            freed = freed or turned.freed
        turned = self._store.turn(self._owner, self._run, turn._replace(outcomes=(), blocks=()))
        turned.refused |= refused
        turned.freed = turned.freed or freed
        return turned

    def refuse(self) -> bool:
        """Try again what the store has refused; return whether it has refused for so long that it is given up."""
        self.retry()
        moment = time.monotonic()
        if self.refused_since is None:
            self.refused_since = moment
        return moment - self.refused_since > REFUSED_S

    def retry(self) -> None:
        """Have a turn taken later, whatever happens."""
        self.retry_at = time.monotonic() + RETRY_S

    def attempt(self, verb: Callable[[], object]) -> bool:
        """Do something with the store that a later turn can do as well; return whether it could be done now."""
        try:
            verb()
        except StoreError as error:
            self.put_off(error)
            return False
        return True

    def put_off(self, error: StoreError) -> None:
        """Have what the store has refused just now be done by a later turn."""
        level = logging.DEBUG if str(error) == self._said else logging.ERROR  # once: a disk may be full for long
        self._said = str(error)
        _log.log(level, "%s; it is tried again every %s s", error, RETRY_S)
        self.retry()
