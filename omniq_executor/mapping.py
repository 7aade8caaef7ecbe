"""The iterator of `map()`: results in order, without a future for each."""

import itertools
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any

from . import codec
from .dispatcher import CANCELLED, Dispatcher, Text
from .functions import stored_call
from .future import rebuild
from .model import ErrorInfo
from .stores.base import Function

_PIECE = 256  # calls stored at once while the workers have enough to do
_PIECE_BYTES = 1 << 20  # beyond which pieces get smaller
_KEPT_BYTES = 16 << 20  # of results that arrived before their turn


class Results(Iterator[Any]):
    """Results of a map in the order of its items, waiting for each as long as it takes.

    Outcomes arrive in any order, many at a time, and are kept as they arrived until it is their
    turn; beyond _KEPT_BYTES they are read from the store again. Like ProcessPoolExecutor's, the
    iterator ends with the first error that it raises, and then, or when it is dropped, cancels what
    has not started.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        function: Function,
        rows: Iterator[tuple[Any, ...]],
        timeout_s: float | None,
        buffersize: int | None,
    ) -> None:
        self._dispatcher = dispatcher
        self._function = function
        self._rows = rows
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._buffersize = buffersize
        self._piece = _PIECE
        self._added = 0
        self._position = 0  # of the next result to take from `_arrived`
        self._arrived: dict[int, tuple[int, int, Any]] = {}  # by position: id, count, outcome
        self._kept_bytes = 0
        self._values: deque[Any] = deque()  # read, to be given next
        self._exhausted = False
        self._ended = False
        while not self._exhausted and (buffersize is None or self._added < buffersize):
            self._add_piece(buffersize)

    def _add_piece(self, limit: int | None) -> None:
        """Store the calls of the next items."""
        count = min(self._dispatcher.room() or self._piece, self._piece)
        if limit is not None:
            count = min(count, limit - self._added)
        rows = list(itertools.islice(self._rows, count))
        if len(rows) < count:
            self._exhausted = True
        if not rows:
            return
        text = codec.encode_rows(rows)
        if text is None:
            calls = [stored_call(row, {}) for row in rows]
            size = sum(len(call.args) for call in calls)
        else:
            calls, size = [], len(text)
        self._dispatcher.add(self, self._added, len(rows), self._function, text, calls)
        self._added += len(rows)
        self._piece = max(1, self._piece // 2) if size > _PIECE_BYTES else min(self._piece * 2, 1024)

    def put(self, position: int, number: int, count: int, outcome: Any) -> None:
        """Called by the dispatcher with what became of `count` positions."""
        size = _size(outcome)
        if size and self._kept_bytes + size > _KEPT_BYTES and position != self._position:
            outcome = _IN_STORE
        else:
            self._kept_bytes += size
        self._arrived[position] = number, count, outcome

    def __iter__(self) -> "Results":
        return self

    def __next__(self) -> Any:
        if self._values:
            return self._values.popleft()
        if self._ended:
            raise StopIteration
        try:
            return self._next()
        except BaseException as error:
            self._ended = True
            if isinstance(error, Exception) and not isinstance(error, StopIteration):
                self._dispatcher.forget(self)
            raise

    def _next(self) -> Any:
        if self._buffersize is not None and not self._exhausted:
            self._add_piece(self._position + self._buffersize)
        if self._position == self._added:
            raise StopIteration
        if not self._has_arrived():
            self._wait()
        number, count, outcome = self._arrived.pop(self._position)
        self._position += count
        self._kept_bytes -= _size(outcome)
        if outcome is _IN_STORE:
            # Several at once are plain JSON, so reading them ahead of their turn cannot fail.
            first, *others = self._dispatcher.read(number, count)
            self._values.extend(map(_value, others))
            return _value(first)
        if isinstance(outcome, Text):
            self._values.extend(value for (value,) in codec.decode(outcome.json))
            return self._values.popleft()
        return _value(outcome)

    def _has_arrived(self) -> bool:
        return self._position in self._arrived

    def _wait(self) -> None:
        while not self._has_arrived():
            left = None if self._deadline is None else self._deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError
            self._dispatcher.drive(self._has_arrived, left)

    def __del__(self) -> None:
        if not self._ended and self._position < self._added:
            self._ended = True
            self._dispatcher.forget(self)


_IN_STORE = object()  # an outcome that is to be read from there


def _size(outcome: Any) -> int:
    """The bytes of a result, as it is kept; 0 for what is no result."""
    if isinstance(outcome, Text):
        return len(outcome.json)
    return len(outcome) if isinstance(outcome, str | bytes) else 0


def _value(outcome: Any) -> Any:
    """The result that an outcome stands for. Raises what it says the call raised."""
    if isinstance(outcome, str | bytes):
        return codec.decode(outcome)
    if isinstance(outcome, ErrorInfo):
        raise rebuild(outcome)
    if isinstance(outcome, BaseException):
        raise outcome
    assert outcome is CANCELLED
    raise CancelledError
