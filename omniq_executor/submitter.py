"""The verbs that an executor shares with what its `options()` returns: submit, map, preview.

What these need is imported by executor.py when it makes its first executor, see there.
"""

import concurrent.futures
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypeVar, overload

from . import values
from .errors import CallError, TooLarge
from .interrupts import interrupts

if TYPE_CHECKING:
    from .code.depends import Depends
    from .dispatch.dispatcher import Dispatcher
    from .future import DurableFuture
    from .model.functions import Functions
    from .model.options import CallOptions
    from .model.reasons import Preview
    from .model.task import Call, Function

_PREVIEWED = 1024  # calls that a preview looks for at a time

_P = ParamSpec("_P")
_T = TypeVar("_T")
_A = TypeVar("_A")
_B = TypeVar("_B")
_C = TypeVar("_C")
if TYPE_CHECKING:
    _Given = DurableFuture[_T] | Collection[DurableFuture[Any]] | Mapping[Any, DurableFuture[Any]]
    """What a call may be given in place of a value: its future, or futures in a list, tuple, set or dict."""


class Submitter(concurrent.futures.Executor):
    """The verbs that an executor shares with what its `options()` returns."""

    _dispatcher: "Dispatcher"
    _functions: "Functions"
    _call_options: "CallOptions"  # of each call
    _depends: "Depends | None" = None  # what counts beside the code

    @overload
    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> "DurableFuture[_T]": ...
    @overload
    def submit(
        self, fn: Callable[Concatenate[_A, _P], _T], a: "_Given[_A]", /, *args: _P.args, **kwargs: _P.kwargs
    ) -> "DurableFuture[_T]": ...
    @overload
    def submit(
        self, fn: Callable[Concatenate[_A, _B, _P], _T], a: "_A | _Given[_A]", b: "_Given[_B]", /,
        *args: _P.args, **kwargs: _P.kwargs,
    ) -> "DurableFuture[_T]": ...  # fmt: skip
    @overload
    def submit(
        self, fn: Callable[Concatenate[_A, _B, _C, _P], _T], a: "_A | _Given[_A]", b: "_B | _Given[_B]",
        c: "_Given[_C]", /, *args: _P.args, **kwargs: _P.kwargs,
    ) -> "DurableFuture[_T]": ...  # fmt: skip
    def submit(self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> "DurableFuture[_T]":
        """Store the call `fn(*args, **kwargs)`, have it run, and return its future.

        A future of the same store, anywhere in the arguments that pickle reaches, stands for its
        result: the call waits until that is there and is given it instead. If the task of such a
        future fails or is cancelled the call is not run, and fails with DependencyFailed.

        A call that can be neither written as JSON nor pickled gives a future that fails with
        SerializationError. Raises StoreError if the call cannot be stored, PoolBroken if workers
        cannot be started, RuntimeError after `shutdown()`, and TaskNotFound for a future in the
        arguments whose task is not in this store.

        >>> executor.submit(pow, 2, 5).result()
        32
        """
        future: DurableFuture[_T]
        dispatcher, call_options = self._dispatcher, self._call_options
        try:
            function = self._describe(fn)
            call, after = dispatcher.stored(function, args, kwargs, call_options.names_one)
        except CallError as error:
            future = dispatcher.failed(error)
            return future
        if after:
            call_options = call_options.after(after)
        try:
            future = dispatcher.submit(function, call, call_options)
        except TooLarge as error:
            from .model.functions import too_large

            raise too_large(error, function, fn, args, kwargs) from error
        finally:
            if values.here.pins:  # what refers to the files is stored now
                values.release(values.here.pins)
        return future

    @overload
    def map(
        self, fn: Callable[..., _T], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1,
        buffersize: int | None = None, return_exceptions: Literal[False] = False, progress: bool = False,
    ) -> Iterator[_T]: ...  # fmt: skip
    @overload
    def map(
        self, fn: Callable[..., _T], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1,
        buffersize: int | None = None, return_exceptions: bool, progress: bool = False,
    ) -> Iterator[_T | BaseException]: ...  # fmt: skip
    def map(
        self,
        fn: Callable[..., _T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        return_exceptions: bool = False,
        progress: bool = False,
    ) -> Iterator[Any]:
        """Return the results of `fn` for each item, in order, as a lazy iterator. Every item is a task of its own.

        All items are stored before `map()` returns, or, with `buffersize`, so many that at most
        that number of results are outstanding. `timeout` is in seconds, counted from this call, and
        its end makes the iterator raise TimeoutError. `chunksize` changes nothing: how many calls
        travel together is decided from how long they take. Raises ValueError with a key, which names one call.

        The iterator ends with the first exception of a call, which it raises. With `return_exceptions` it
        goes on, and gives the exception in place of the result: CancelledError for a call that was cancelled,
        SerializationError for one that cannot be stored. What says nothing of a call is raised all the same: the end
        of the timeout, StoreError, PoolBroken, and what the iterables raise.

        With `progress` it is shown how many are done, were resumed and failed, how fast they run, how long the rest
        may take and which is the slowest: in the cell of a notebook, on a terminal, or as a line every 30 s.

        >>> list(executor.map(pow, [2, 3], [5, 2]))
        [32, 9]
        >>> list(executor.map(int, ["7", "x"], return_exceptions=True))
        [7, ValueError("invalid literal for int() with base 10: 'x'")]
        """
        self._check_map(chunksize, buffersize)
        if "submit" in vars(self) and buffersize is None and not return_exceptions and not progress:
            # Somebody has put a function of its own there and relies on being called for each item, as tqdm does.
            return super().map(fn, *iterables, timeout=timeout, chunksize=chunksize)
        return self._results(fn, iterables, timeout, buffersize, return_exceptions, progress, in_order=True)

    @overload
    def map_unordered(
        self, fn: Callable[..., _T], *iterables: Iterable[Any], timeout: float | None = None,
        buffersize: int | None = None, return_exceptions: Literal[False] = False, progress: bool = False,
    ) -> Iterator[_T]: ...  # fmt: skip
    @overload
    def map_unordered(
        self, fn: Callable[..., _T], *iterables: Iterable[Any], timeout: float | None = None,
        buffersize: int | None = None, return_exceptions: bool, progress: bool = False,
    ) -> Iterator[_T | BaseException]: ...  # fmt: skip
    def map_unordered(
        self,
        fn: Callable[..., _T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        buffersize: int | None = None,
        return_exceptions: bool = False,
        progress: bool = False,
    ) -> Iterator[Any]:
        """As `map()`, but each result comes as soon as it is there, whichever item it is of.

        Like those of multiprocessing's imap_unordered(), results come alone: have `fn` return what tells the
        item, where that matters.

        >>> sorted(executor.map_unordered(abs, [-1, -2]))
        [1, 2]
        """
        self._check_map(1, buffersize)
        return self._results(fn, iterables, timeout, buffersize, return_exceptions, progress, in_order=False)

    def _check_map(self, chunksize: int, buffersize: int | None) -> None:
        if self._call_options.names_one:
            raise ValueError("a key names one call: use submit() with options(key=...) for each item")
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None:
            if not isinstance(buffersize, int):
                raise TypeError("buffersize must be an integer or None")
            if buffersize < 1:
                raise ValueError("buffersize must be None or > 0")

    def _results(
        self,
        fn: Callable[..., Any],
        iterables: tuple[Iterable[Any], ...],
        timeout: float | None,
        buffersize: int | None,
        returns_exceptions: bool,
        progress: bool,
        in_order: bool,
    ) -> Iterator[Any]:
        with interrupts:
            from .items import Items, are_at_hand
            from .map_iterator import Results

        function = self._describe(fn)
        total = _shortest(iterables) if progress or buffersize is not None else None
        source = Items(zip(*iterables, strict=False), are_at_hand(iterables))
        try:
            return Results(
                self._dispatcher, function, source, timeout, buffersize, self._call_options, in_order,
                returns_exceptions, total, progress,
            )  # fmt: skip
        except TooLarge as error:
            from .model.functions import too_large

            raise too_large(error, function, fn, (), {}) from error

    def preview(self, fn: Callable[..., Any], *iterables: Iterable[Any]) -> "Preview":
        """Return what `map(fn, *iterables)` would run now, and why, and what need not run. Nothing is run or changed.

        The iterables are read to their end. What is returned counts the calls by reason and says of each item, by
        `why(item)`, what would become of it; printed it is a text, and a notebook shows a table. Raises ValueError
        with a key, as `map()` does: of one call with a key, `future(key=…)` tells whether it is there. Raises
        RuntimeError after `shutdown()`.

        >>> print(executor.preview(abs, [-1, -2]))
        2 calls, of which 2 would run
          2 run afresh
              builtins.abs: it is the first of its queue
        """
        with interrupts:
            from .dispatch.resumption import Foresight
            from .model.functions import stored_call
            from .model.options import MEMO
            from .model.reasons import Preview, Reason, Why

        if self._call_options.names_one:
            raise ValueError(
                "a key names one call, and a preview is of a map: executor.future(key=…) finds the task of a key"
            )
        function = self._describe(fn)
        preview = Preview()
        foresight, memo = Foresight(), self._call_options.key == MEMO
        rows = zip(*iterables, strict=False)
        while piece := [*itertools.islice(rows, _PREVIEWED)]:
            calls: list[Call | CallError] = []
            for row in piece:
                try:
                    store, snapshot = self._dispatcher.store, self._dispatcher.engine.snapshot
                    calls.append(stored_call(function, row, {}, snapshot, store=store.url)[0])
                except CallError as error:
                    calls.append(error)
            stored = [call for call in calls if not isinstance(call, CallError)]
            reasons = iter(self._dispatcher.foresee(function, stored, foresight, memo=memo))
            for call in calls:
                is_refused = isinstance(call, CallError)
                preview.note(function.path, Why(Reason.REFUSED, str(call)) if is_refused else next(reasons))
        return preview

    def _describe(self, fn: Callable[..., Any]) -> "Function":
        """Return the stored form of a function, with what its calls depend on beside its code."""
        function = self._functions.describe(fn)
        if self._depends is None:
            return function
        digest, parts = self._depends.joined_to(function.digest, function.parts)
        return function._replace(digest=digest, parts=parts)


def _shortest(iterables: tuple[Iterable[Any], ...]) -> int | None:
    """Return how many items they have together, or None if that is not known before they are read."""
    try:
        return min((len(it) for it in iterables), default=0)  # type: ignore[arg-type]
    except TypeError:
        return None
