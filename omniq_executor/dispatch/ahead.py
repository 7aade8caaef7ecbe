"""What a loop of submit() is given of earlier runs: read ahead, and noted afterwards, in pieces.

A call that continues a run asks the store for its task, which is noted as taken over: a transaction for each. But a
script that is started again makes its calls in the order of the last time, mostly. So when one of a function has found
what was finished, what comes after that is read, and the calls that ask for it are given it from memory; what was given
is noted with others. A process that dies before that has noted less than it was given, and nothing is lost: the next
run continues both, and finds the same.

Only what is COMPLETED is read ahead, as nothing changes a result any more, and only what the next call of its likeness
is given in any case, so that it makes no difference in which order calls come. Somebody may wish that a result is
forgotten: so what was read is used for a moment only, and not after this process has removed anything.
"""

import contextlib
import time
from collections.abc import Iterable

from ..errors import StoreError
from ..model.task import Call, Function, Status
from ..stores.base import Run, Store, TaskState
from .waiters import Waiters

_FIRST, _MOST = 8, 1024  # tasks that are read at a time
_MOST_WATCHED = 4096  # tasks that are each looked at
_MOMENT_S = 0.1  # in which 1024 calls are submitted three times
_Key = tuple[bytes, str | bytes]  # the digest of a function, and the likeness of a call


class Ahead:
    """See the module's docstring. Called under the dispatcher's lock."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._pieces: dict[bytes, _Piece] = {}  # by the digest of the function
        self._given: dict[int, _Key] = {}  # what is not noted yet

    def take(self, run: Run, function: Function, call: Call) -> TaskState | None:
        """Return what the call is given, if it was read ahead."""
        piece = self._pieces.get(function.digest)
        found = None if piece is None else piece.left.pop(call.likeness, None)
        if piece is None or found is None:
            return None
        if time.monotonic() > piece.until or self._store.removals != piece.removals:
            del self._pieces[function.digest]
            return None
        self._given[found.id] = function.digest, call.likeness
        if len(self._given) >= _MOST:
            with contextlib.suppress(StoreError):  # another call will try again
                self.note(run)
        return found

    def leave(self, function: Function, calls: Iterable[Call]) -> None:
        """Have the store give these calls what there is of them."""
        if (piece := self._pieces.get(function.digest)) is not None and piece.left:
            for call in calls:
                piece.left.pop(call.likeness, None)

    def read(self, run: Run, function: Function, found: TaskState) -> None:
        """Read what comes after a task that a call of the function has just found."""
        piece = self._pieces.setdefault(function.digest, _Piece())
        if found.status is not Status.COMPLETED or found.id <= piece.last:
            return
        if piece.pause:
            piece.pause -= 1
            return
        if not piece.size:
            piece.size = _FIRST
        elif piece.count and 2 * len(piece.left) <= piece.count:
            piece.size, piece.wasted = min(2 * piece.size, _MOST), 0
        else:  # the calls come in another order than the last time, or their results are large
            piece.size, piece.wasted = _FIRST, min(2 * piece.wasted + 1, _MOST)
            piece.pause = piece.wasted
        piece.left, piece.until, piece.removals = {}, time.monotonic() + _MOMENT_S, self._store.removals
        with contextlib.suppress(StoreError):  # the call has its task, and the next one asks for its own
            piece.left.update(self._store.ahead(run, function, found.id, piece.size))
        piece.count = len(piece.left)
        piece.last = max((state.id for state in piece.left.values()), default=found.id)

    def note(self, run: Run) -> None:
        """Note what was given. Raises StoreError, and can be called again then."""
        if self._given:
            self._store.note_given(run, self._given)
            self._given = {}

    def forget(self) -> None:
        """Read what is there anew, as it is offered again."""
        self._pieces.clear()


class UnderWay:
    """What was under way of a run when that was offered to itself. What of it has finished is offered, too."""

    def __init__(self, store: Store, waiters: Waiters) -> None:
        self._store = store
        self._waiters = waiters
        self._left: list[int] = []
        self._finished = 0  # how much was, of all that is waited for, when it was last looked

    def begin(self) -> None:
        """Take note of what is under way now."""
        self._left = self._waiters.ids()

    def offer(self, run: Run) -> bool:
        """Have what has finished of it be there for this run; return whether there is any."""
        if not self._left or self._waiters.done == self._finished:
            return False
        self._finished = self._waiters.done
        left = sorted(self._left, reverse=True)
        while left and left[-1] not in self._waiters:
            left.pop()
        if len(left) <= _MOST_WATCHED:  # else the oldest that is not finished keeps the others waiting
            left = [id for id in left if id in self._waiters]
        done = {*self._left}.difference(left)
        self._left = left
        if done:
            with contextlib.suppress(StoreError):  # then they run again
                self._store.offer_more(run, done)
        return bool(done)


class _Piece:
    """What was read ahead of the calls of one function."""

    def __init__(self) -> None:
        self.size = 0  # how many were asked for
        self.count = 0  # how many there were
        self.left: dict[str | bytes, TaskState] = {}  # those that no call has asked for, by likeness
        self.until = 0.0  # when, by time.monotonic(), they are not to be given any more
        self.removals = 0  # of the store, when they were read
        self.last = -1  # the largest id of them all
        self.wasted = 0  # a measure of how often most of them were left
        self.pause = 0  # how many calls are to find something before more is read
