"""The iterators of `map()` and `map_unordered()`: results without a future for each."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

from . import values
from .dispatch.dispatcher import Dispatcher
from .dispatch.waiters import CANCELLED, Tally
from .errors import CallError
from .future import rebuild
from .items import Items, Row
from .model import codec
from .model.options import CallOptions
from .model.task import Call, ErrorInfo, Function
from .notebooks import is_interactive
from .stores.base import Batch, ResultBatch
from .value_files import Pin, size_of

if TYPE_CHECKING:
    from .display.meter import Counts
    from .display.progress import Progress

_PIECE = 256  # calls stored at once while the workers have enough to do
_PIECE_BYTES = 1 << 20  # beyond which pieces get smaller
_MOST_ESCAPED, _MOST_DIGITS = 6, 4400  # characters of JSON, of a character of a text and of a number
_MOST_PINS = 64  # files of large values that calls refer to which are not stored yet
_KEPT_BYTES = 16 << 20  # of results that arrived before their turn


class _InOrder(Tally):
    """Outcomes by the position of their items, those that came before their turn as they came.

    The dispatcher holds this, and not the iterator, so that it is seen when the iterator is dropped.
    """

    def __init__(self) -> None:
        super().__init__()
        self.resumed = 0  # of those that are counted, how many calls had run before
        self.position = 0  # of the outcome to take next
        self._arrived: dict[int, tuple[int, int, Any]] = {}  # id, count, outcome
        self._kept_bytes = 0

    def put(self, position: int, id: int, count: int, outcome: Any) -> None:
        """Take what became of `count` positions; beyond _KEPT_BYTES it is left in the store."""
        self.count(count, outcome)
        size = _size(outcome)
        if size and self._kept_bytes + size > _KEPT_BYTES and position != self.position:
            outcome = _IN_STORE
        else:
            self._kept_bytes += size
        self._arrived[position] = id, count, outcome

    def has_next(self) -> bool:
        """Return whether the next outcome is there."""
        return self.position in self._arrived

    def take(self) -> tuple[int, int, Any]:
        """Return the next outcome, as (id, count, outcome); it may be of several positions."""
        id, count, outcome = self._arrived.pop(self.position)
        self.position += count
        size = _size(outcome)  # a line by itself: during a call another thread may put something
        self._kept_bytes -= size
        return id, count, outcome


class _AsTheyCome(_InOrder):
    """Outcomes in the order in which they came, which is what they are given for a position."""

    def put(self, position: int, id: int, count: int, outcome: Any) -> None:
        """Take what became of `count` positions, wherever they are. The dispatcher's lock is held."""
        super().put(self.done, id, count, outcome)


class Results(Iterator[Any]):
    """Results of a map, in the order of its items or as they come, waiting for each as long as it takes.

    Results that arrive early are kept in their stored form, and beyond a limit they are read from
    the store again. Like ProcessPoolExecutor's, the iterator ends with the first error that it
    raises, and then, or when it is dropped, cancels what has not started. With `returns_exceptions`
    what became of a call is no such error, whatever it is.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        function: Function,
        source: Items,
        timeout_s: float | None,
        buffersize: int | None,
        call_options: CallOptions,
        in_order: bool = True,
        returns_exceptions: bool = False,
        total: int | None = None,
        shows_progress: bool = False,
    ) -> None:
        """`total` is how many items there are, if that is known before they are read."""
        self._dispatcher = dispatcher
        self._function = function
        self._source = source
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._buffersize = buffersize
        self._call_options = call_options
        self._piece = _PIECE
        self._added = 0
        self._arrivals = _InOrder() if in_order else _AsTheyCome()
        self._returns_exceptions = returns_exceptions
        self._values: deque[Any] = deque()  # read, to be given next
        self._ended = False
        self._is_of_call = False  # whether what it raises is what a call has raised
        self._items = total  # how many there are in all, as far as is known
        self._progress: Progress | None = None
        if shows_progress:
            from .progress import of_map

            self._progress = of_map(self, dispatcher, self._arrivals, function.path)
        dispatcher.watch(self, self._arrivals)
        try:
            if self._progress is not None:
                self._progress.start()
            while self._add_piece(None) if buffersize is None else self._refill(buffersize):
                pass
        except BaseException as error:
            self._end(error)
            raise

    def _add_piece(self, limit: int | None) -> bool:
        """Store the calls of the next items; return whether there may be more."""
        source = self._source
        count = min(self._dispatcher.free_capacity(self._function) or self._piece, self._piece)
        if limit is not None:
            count = min(count, limit - self._added)
        rows = source.draw(count, self._add_rows)
        if source.are_over:
            self._items = self._added + len(rows)
        if rows:
            self._add_rows(rows)
        return not source.are_over

    def _add_rows(self, rows: Sequence[Row]) -> None:
        """Store the calls of items."""
        text = codec.encode_rows(rows)
        if text is None or (len(text) >= values.LARGE and any(map(_is_long, rows))):
            try:
                size = self._add_calls(rows)
            finally:
                values.release(values.here.pins)  # what refers to the files is stored now
        else:
            size = len(text)
            self._add(len(rows), text)
        self._piece = max(1, self._piece // 2) if size > _PIECE_BYTES else min(self._piece * 2, 1024)

    def _add_calls(self, rows: Sequence[Row]) -> int:
        """Store calls one by one encoded. One that has no stored form fails in its place."""
        calls: list[Call] = []
        size = 0
        for row in rows:
            try:
                call, after = self._dispatcher.stored(self._function, row, {})
                size += len(call.args)
                if after:  # unlike its neighbours, so by itself
                    self._add(len(calls), calls=calls)
                    calls = []
                    self._add(1, calls=[call], call_options=self._call_options.after(after))
                else:
                    calls.append(call)
                if values.here.pins and _are_enough(values.here.pins):
                    self._add(len(calls), calls=calls)
                    calls = []
                    values.release(values.here.pins)
            except CallError as error:
                self._add(len(calls), calls=calls)
                calls = []
                with self._dispatcher.driver:
                    self._arrivals.put(self._added, 0, 1, error)
                self._added += 1
        self._add(len(calls), calls=calls)
        return size

    def _add(
        self, count: int, text: str | None = None, calls: Sequence[Call] = (), call_options: CallOptions | None = None
    ) -> None:
        if count:
            batch = Batch(0, count, self._function, text, calls, False, *(call_options or self._call_options))
            self._dispatcher.add(self._arrivals, self._added, batch)
            self._added += count

    def __iter__(self) -> "Results":
        return self

    def __len__(self) -> int:
        """Return how many results are to come: what progress bars take for their total. TypeError if nobody knows."""
        if self._items is None:
            raise TypeError("the number of items is not known, since they are read as results are taken")
        return 0 if self._ended else len(self._values) + self._items - self._arrivals.position

    def __bool__(self) -> bool:
        return True  # as any iterator is, also at its end

    def __length_hint__(self) -> int:
        return NotImplemented if self._items is None else len(self)

    def counts(self) -> "Counts":
        """Return how its calls stand."""
        from .display.meter import Counts

        came = self._arrivals
        what = self._function.path.removeprefix("__main__.")
        return Counts(what, self._items, came.done, came.resumed, came.failed, came.cancelled)

    def __repr__(self) -> str:
        from .display.meter import still

        return f"<map of {still(self.counts()).line()}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows of it."""
        from .display.meter import still

        return still(self.counts()).html()

    def __next__(self) -> Any:
        if self._values:
            return self._values.popleft()
        if self._ended:
            raise StopIteration
        self._ended = True  # unless it comes to a value: a second Ctrl-C may keep the lines below from being run
        try:
            value = self._next()
        except BaseException as error:
            self._end(error)
            if self._is_of_call:  # then our frames say nothing of it
                BaseException.with_traceback(error, None)
            raise
        self._ended = False
        return value

    def close(self) -> None:
        """End it, as a generator: no result comes any more, and what has not started is cancelled."""
        self._values.clear()
        if not self._ended:
            self._leave()
            self._dispatcher.forget(self._arrivals)

    def _leave(self) -> None:
        self._ended = True
        self._dispatcher.unwatch(self._arrivals)
        if self._progress is not None:
            self._progress.close()

    def _end(self, error: BaseException) -> None:
        self._leave()
        # Ctrl-C ends a script, and is no wish to cancel then: what has not started is left for the next run. A session
        # or a notebook goes on, where nobody can get at these results any more: it means what runs, too.
        if isinstance(error, Exception):
            if not isinstance(error, StopIteration):
                self._dispatcher.forget(self._arrivals)
        elif is_interactive():
            self._dispatcher.forget(self._arrivals, running=True)

    def _next(self) -> Any:
        if self._buffersize is not None:
            while self._refill(self._buffersize) and self._source.are_slow:
                pass
        if self._arrivals.position == self._added and (self._buffersize is None or self._source.are_over):
            raise StopIteration
        if not self._arrivals.has_next():
            left = None if self._deadline is None else self._deadline - time.monotonic()
            if not self._dispatcher.wait_until(self._arrivals.has_next, left):
                raise TimeoutError
        id, count, outcome = self._arrivals.take()
        if outcome is _IN_STORE:
            # Several at once are plain JSON, so reading them ahead of their turn cannot fail.
            outcome, *others = self._dispatcher.read(id, count)
            self._values.extend(self._value(id, other) for other in others)
        if isinstance(outcome, ResultBatch):
            self._values.extend(value for (value,) in codec.decode(outcome.text))
            return self._values.popleft()
        return self._value(id, outcome)

    def _refill(self, most: int) -> bool:
        """Add calls, so that at most so many are outstanding, where that is best done now; return whether it was.

        Results that are there come before items that take long. Others are added a quarter of the buffer at a time,
        unless a worker is idle.
        """
        came, source = self._arrivals, self._source
        free = came.position + most - self._added
        is_there = came.has_next()
        if source.are_over or free <= 0 or (source.are_slow and (is_there or self._is_late())):
            return False
        if came.position and free < most // 4:
            there = came.done - came.position if is_there else 0
            if there >= most // 4 or self._are_all_busy():
                return False
        self._add_piece(came.position + most)
        return True

    def _is_late(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline

    def _are_all_busy(self) -> bool:
        """Return whether each worker has something to do; False where nobody knows the workers."""
        engine = self._dispatcher.engine
        with self._dispatcher.driver:
            return engine.max_workers > 0 and not engine.idle()

    def _value(self, id: int, outcome: Any) -> Any:
        """Return the result that the outcome of a task stands for. Raises, or returns, what it says the call raised."""
        error: BaseException
        if isinstance(outcome, str | bytes):
            try:
                return codec.decode_result(outcome, lambda: self._dispatcher.store.values)
            except KeyboardInterrupt:  # it is of this process
                raise
            except BaseException as raised:  # noqa: BLE001 - loading is code of the user's
                error = raised
        elif isinstance(outcome, ErrorInfo):
            error = rebuild(outcome, id, lambda: self._dispatcher.store.get(id))
        elif outcome is CANCELLED:
            error = CancelledError()
        else:
            error = outcome
            if not isinstance(error, CallError):  # the executor's end, which says nothing of any call
                raise error
        if self._returns_exceptions:
            return error
        self._is_of_call = isinstance(outcome, ErrorInfo)
        if isinstance(error, StopIteration):  # which would end the map as if there were no more calls
            raise RuntimeError("a call raised StopIteration") from error
        raise error


def _are_enough(pins: list[Pin]) -> bool:
    """Return whether the calls of which these are the files are to be stored, before more are written."""
    return len(pins) > _MOST_PINS or sum(size_of(pin.name) for pin in pins) > _KEPT_BYTES


def _is_long(row: Row) -> bool:
    """Return whether a row of scalars is written as `submit()` writes a call whose JSON is long."""
    most = sum(_MOST_ESCAPED * len(value) if type(value) is str else _MOST_DIGITS for value in row)
    if most < values.LARGE // 2:  # a look at the lengths tells of most
        return False
    plain = codec.encode_plain_call(row, {})
    return plain is not None and values.is_long(*plain)


_IN_STORE = object()  # an outcome that is to be read from there


def _size(outcome: Any) -> int:
    """Return how many bytes a result or an error has, as it is kept; 0 for what is neither, or is in no store."""
    if isinstance(outcome, ResultBatch):
        return len(outcome.text)
    if isinstance(outcome, str | bytes):
        return len(outcome)
    if isinstance(outcome, ErrorInfo):
        return len(outcome.traceback) + len(outcome.message) + len(outcome.pickle or b"")
    return 0
