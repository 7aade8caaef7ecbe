"""The future of a durable call: of this process's own, or of any task of a store.

    submit()  ------------------>  DurableFuture        resolved by the dispatcher of its executor
    pickle, attach()  ---------->  a reference to it: address of the store and id of the task, and nothing else
    first look at a reference -->  resolved from the store, or by dispatch/attachment.py when it is finished

A reference is there once in a process, however often it is unpickled, so that all who look see one future.
"""

import contextlib
import functools
import logging
import os
import time
import weakref
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError
from concurrent.futures._base import FINISHED, PENDING
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from .errors import OmniqError, StoreError
from .interrupts import SafeEvent, SafeLock, interrupts
from .lean_future import MADE, LeanFuture
from .model import codec, dependencies
from .model.checks import check_whole
from .model.reasons import Reason, Why
from .model.task import ErrorInfo, Task, format_id, parse_id
from .stores import glance
from .stores.glances import Row

if TYPE_CHECKING:
    from .dispatch.attachment import Attachment, Onlooker
    from .dispatch.dispatcher import Dispatcher
    from .model.shown import ShownFuture

_log = logging.getLogger("concurrent.futures")  # the name under which callbacks that raise are looked for
_T = TypeVar("_T")
_UNREAD = object()
_NO_VALUE: Any = None  # stands for a result until that is read
_FAILED = Exception("not read yet")
_row = Row()


class DurableFuture(LeanFuture[_T]):
    """A `concurrent.futures.Future` whose call and result are in a store.

    It is a real one: `wait()`, `as_completed()`, callbacks and `asyncio.wrap_future()` take it, and
    in a coroutine it can be awaited itself. A result is kept in its stored form and read by the
    thread that asks for it, so that whatever its loading does happens there and nowhere else.

    It can be pickled, and is a future of the same task wherever it is loaded: see docs/futures.md.
    """

    # As most are: an attribute of its own takes time and memory, and there may be a million of them.
    recurs = False
    """Whether the call was submitted with an interval."""
    resumed = False
    """Whether the result was in the store already when the call was submitted, so that nothing ran for it."""
    _why: Why | None = None  # the call runs, or need not, if that was seen when it was submitted
    _stored: Any = _UNREAD  # the stored form of the result, until it is read

    def __init__(self, dispatcher: "Dispatcher", number: int | None) -> None:
        """`number` is the id of the task; None for a call that could not be stored, which fails at once."""
        super().__init__()
        self._dispatcher = dispatcher
        self._number = number

    @property
    def task_id(self) -> str | None:
        """The id of the task in the store; None for a call that could not be stored at all.

        >>> executor.submit(pow, 2, 5).task_id  # doctest: +ELLIPSIS
        'task-...'
        """
        return None if self._number is None else format_id(self._number)

    def task(self) -> Task:
        """Return all that the store knows of the call now. Raises TaskNotFound if it was purged meanwhile.

        >>> executor.submit(pow, 2, 5).task().func_path
        'builtins.pow'
        """
        if self._number is None:
            raise ValueError("this call could not be stored, so there is no task of it")
        return self._dispatcher.store.get(self._number)

    def why(self) -> str:
        """Return in a sentence why the call runs, or why it need not: that its result was there, say, or what changed.

        Of a future that was not submitted here it is what the store tells of the run that the task is of. Raises
        TaskNotFound if it was purged meanwhile.

        >>> executor.submit(pow, 2, 5).why()
        'run, since no earlier run is continued: it is the first of its queue'
        """
        if self._number is None:
            return str(Why(Reason.REFUSED, "it could not be stored"))
        return str(self._why or self._dispatcher.why(self._number))

    def logs(self, attempt: int | None = None) -> str:
        """Return what the call has written so far to stdout, stderr and logging, in the order of writing.

        It is kept where the executor that ran it has `capture_output=True`; "" where nothing was. Of
        all attempts, one after the other, or of the one with that number, from 1 on. It can be asked
        while the call runs, by any process that has the store, and after `shutdown()`. Bytes that are no
        UTF-8 become U+FFFD. Raises TaskNotFound if the task was purged meanwhile, and TypeError or
        ValueError for what is no number of an attempt.

        >>> with PersistentExecutor(capture_output=True) as loud:
        ...     future = loud.submit(print, "hello")
        >>> print(future.logs(), end="")
        hello
        """
        if attempt is not None:
            check_whole("attempt", attempt, at_least=1)
        if self._number is None:
            return ""  # it could not be stored, so it never ran
        store = self._dispatcher.store
        if attempt is not None:
            return store.output.read(self._number, attempt).decode(errors="replace")
        try:
            attempts = store.output.attempts(self._number, store.get(self._number).attempts)
        except StoreError:  # it is closed; what is kept beside it can be read all the same
            attempts = store.output.attempts(self._number)
        return b"".join(store.output.read(self._number, n) for n in attempts).decode(errors="replace")

    def debug(self) -> _T | None:
        """Make the call that failed once more, in this process, and go where it raises, by pdb or IPython's debugger.

        What it does beside returning happens again, which is said first; nothing of it is stored, and the task stays
        as it is. If it does not fail this time, that is said, and its result is returned. Ctrl-C while it runs leads
        into the debugger, too. A function of a script or notebook is the one that was submitted, others are those of
        now. The initializer of its executor is run before it. See docs/failures.md.

        Raises CannotDebug if the call has not failed, was never made, or where nobody can type, and TaskNotFound.

        >>> future = executor.submit(int, "seven")
        >>> future.debug()                                                 # doctest: +SKIP
        builtins.int ["seven"] is called again here, in process 4711: its side effects happen again. ...
        (Pdb) args
        """
        if self._number is None:
            raise ValueError("this call could not be stored, so there is no task of it")
        from . import debugging  # with pdb, which most programs never need

        return cast(
            "_T | None", debugging.debug(self._dispatcher.store.reopen(), self._number, self._dispatcher.initializer)
        )

    def cancel(self, running: bool = False) -> bool:
        """Cancel the call if it has not started; return whether it is cancelled, now or before.

        A cancelled call never runs: not here, not in another process, not after a restart. Of a call
        that recurs the series ends, also when this occurrence is done, which is then not cancelled itself.

        With `running` a call that has started is cancelled too, in whichever process it runs: its worker
        is ended with the child processes that the call has started, by SIGTERM and two seconds later by
        SIGKILL. Other calls are not touched. What it had done by then is not undone.

        >>> executor.options(eta=3600).submit(print, "an hour later").cancel()
        True
        """
        if self._number is not None and (not self.done() or self.recurs):
            self._dispatcher.cancel([self._number], running)
        return self.cancelled()

    def running(self) -> bool:
        """Return whether a worker, of whichever process, is in the call, or has it among the calls to run next.

        >>> executor.options(eta=3600).submit(print, "an hour later").running()
        False
        """
        return self._number is not None and not self.done() and self._dispatcher.has_claimed(self._number)

    def result(self, timeout: float | None = None) -> _T:
        """Return the call's result. `timeout` is in seconds.

        Raises what the call raised, with the worker's traceback as its `__cause__`; CancelledError
        if it was cancelled; TimeoutError if it is not done in time; and what loading the result
        raises, if it cannot be loaded here.

        >>> executor.submit(pow, 2, 5).result(timeout=60)
        32
        """
        if not self.done():
            self._wait(timeout)
        if self._stored is not _UNREAD:
            self._read()
        if self._exception is not None:
            try:
                raise self._exception  # here: no frames of the library stand between the call and who asks
            finally:
                self = None  # type: ignore[assignment]  # the exception's frames are not to keep what keeps it
        if self._state != FINISHED:
            raise CancelledError
        return cast("_T", self._result)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the call raised, or None. `timeout` and what is raised are as for `result()`.

        >>> executor.submit(int, "seven").exception()
        ValueError("invalid literal for int() with base 10: 'seven'")
        """
        if not self.done():
            self._wait(timeout)
        self._read()
        if self._state != FINISHED:
            raise CancelledError
        return self._exception

    def _get_snapshot(self) -> tuple[bool, bool, Any, BaseException | None]:
        """(done, cancelled, result, exception), which asyncio of Python 3.15 and later asks for."""
        if not self.done() or self.cancelled():
            return self.done(), self.cancelled(), None, None
        self._read()
        return True, False, self._result, self._exception

    def __repr__(self) -> str:
        with interrupts:
            from .model.shown import future_line

        return future_line(self._shown())

    def _repr_html_(self) -> str:
        """Return what a notebook shows of it."""
        with interrupts:
            from .model.shown import future_card

        return future_card(self._shown()).html()

    def _shown(self) -> "ShownFuture":
        """Return what is known of it here, and by a look into the store that waits for nobody."""
        with interrupts:
            from .model.shown import ShownFuture, error_head, exception_head

        is_done, stored, error = self.done(), self._stored, self._exception
        is_read = is_done and stored is _UNREAD and error is None and not self.cancelled()
        kind = type(self._result).__name__ if is_read else ""
        head = error_head(stored) if isinstance(stored, ErrorInfo) else "" if error is None else exception_head(error)
        ended = "CANCELLED" if self.cancelled() else "FAILED" if head else "COMPLETED"
        return ShownFuture(self.task_id, ended if is_done else "", kind, head, self.resumed, *self._seen())

    def _seen(self) -> tuple[Task | None, str]:
        """Return the task as a glance finds it, or why that finds none."""
        if self._number is None:
            return None, ""
        try:
            url = self._url()
            task = _row.find(url, self._number, functools.partial(glance, url))
        except StoreError as error:
            return None, f"cannot be read now: {error}"
        return (task, "") if task is not None else (None, "holds it no more")

    def __reduce__(self) -> Any:
        """Refer to the result, as an argument of a call of the same store; elsewhere to the future."""
        if self._number is None:
            raise TypeError("the call of this future could not be stored, so there will be no result to pass on")
        url = self._url()
        return dependencies.refer(self._number, url) or (reference, (url, format_id(self._number)))

    def __copy__(self) -> Self:
        """Return the future itself: there is one of a task."""
        return self

    def __deepcopy__(self, _: object) -> Self:
        """Return the future itself."""
        return self

    def _url(self) -> str:
        return self._dispatcher.store.url

    def __await__(self) -> Generator[Any, None, _T]:
        import asyncio

        return asyncio.wrap_future(self).__await__()

    def _wait(self, timeout: float | None) -> None:
        """Wait until it is done, or raise TimeoutError."""
        # A thread that has nothing else to do than wait takes the dispatcher's turns itself: the result then needs no
        # switch between threads.
        if not self._dispatcher.wait_until(self.done, timeout):
            raise TimeoutError

    def _read(self) -> None:
        if self._stored is _UNREAD:
            return
        with self._condition:
            stored = self._stored
            if stored is _UNREAD:
                return
            try:
                if isinstance(stored, ErrorInfo):
                    self._exception = rebuild(stored, self._number, self.task)
                else:
                    self._result = codec.decode_result(stored, lambda: self._dispatcher.store.values)
            except KeyboardInterrupt:  # whoever asks the next time reads it anew
                raise
            except BaseException as error:  # noqa: BLE001 - loading is code of the user's: this is the outcome
                self._exception = error
            self._stored = _UNREAD  # last: an interrupt may come between any two lines

    def _invoke_callbacks(self) -> None:
        """Call the callbacks, all of them whatever one raises, and let Ctrl-C interrupt each."""
        for callback in self._done_callbacks:
            try:
                interrupts.run(callback, self)
            except Exception:  # noqa: BLE001 - as those of any future
                _log.exception("exception calling callback for %r", self)
            except BaseException as error:  # noqa: BLE001 - the thread may be the executor's own
                if not interrupts.hold(error):
                    _log.exception("exception calling callback for %r", self)

    # Called by the dispatcher, once, with the state's lock not held.

    def _finish(self, stored: str | bytes | ErrorInfo) -> None:
        """Resolve with a stored result or error."""
        if self._state != PENDING:
            return
        self._stored = stored  # before the state: who sees that reads it
        if isinstance(stored, ErrorInfo):
            self.set_exception(_FAILED)  # wait() must see that it failed; _read() puts the real one there
        else:
            self._settle(_NO_VALUE)

    def _finish_value(self, value: Any) -> None:
        """Resolve with a result that is read already."""
        self._settle(value)

    def _fail(self, error: BaseException) -> None:
        """Resolve with an error of this process's own."""
        if not self.done():
            self.set_exception(error)

    def _cancelled(self) -> None:
        """The task is CANCELLED in the store."""
        if super().cancel():
            self.set_running_or_notify_cancel()


class _Reference(DurableFuture[_T]):
    """A future of a task of a store, whoever runs it, of which nothing is known before somebody looks.

    Until then it has none of the attributes of a future. The first that anybody asks for, wait() and as_completed()
    of the standard library too, has it begin: `__getattr__()` is called for what is not there alone.
    """

    def __init__(self, to: "Attachment", number: int) -> None:
        self._attachment = to
        self._number: int = number
        self._forget()

    def _forget(self) -> None:
        self._joined = SafeEvent()  # set when the next line holds
        self._onlooker: Onlooker | None = None  # what resolves it, if it was not finished
        for name in (*_OF_ANY, *MADE):
            vars(self).pop(name, None)

    if not TYPE_CHECKING:

        @property
        def _condition(self) -> Any:
            if "_state" not in vars(self):
                self._begin()
            return super()._condition

        def __getattr__(self, name: str) -> Any:
            if name not in _OF_ANY:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
            self._begin()
            return vars(self)[name]

    def _begin(self) -> None:
        """Be a future from now on. One that cannot be looked up fails; nothing is raised here."""
        with interrupts:
            with _beginning:
                if "_state" in vars(self):
                    return
                # All at once: other threads look at its attributes without the lock.
                vars(self).update(vars(DurableFuture[Any](self._attachment, self._number)))  # type: ignore[arg-type]
            # Not under the lock: others may be told of their results meanwhile.
            try:
                self._onlooker = self._attachment.join(self._number, self)
            except Exception as error:  # noqa: BLE001 - whatever it is, nobody may wait for ever because of it
                _references.pop((self._attachment.address, self._number), None)  # another one is to look anew
                self._fail(error)
            finally:
                self._joined.set()

    def _wait(self, timeout: float | None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        if self._joined.wait(timeout) and self._onlooker is not None:
            self._onlooker.wait_until(self.done, None if deadline is None else deadline - time.monotonic())
        if not self.done():
            raise TimeoutError

    def cancel(self, running: bool = False) -> bool:
        if not self.done() and self._joined.wait() and self._onlooker is not None:
            self._onlooker.cancel([self._number], running)
        return self.cancelled()

    def __await__(self) -> Generator[Any, None, _T]:
        return self._awaited().__await__()

    async def _awaited(self) -> _T:
        """Wait, and leave the call alone if the wait is cancelled: it is another's."""
        import asyncio

        loop = asyncio.get_running_loop()
        told = asyncio.Event()

        def tell(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(told.set)

        self.add_done_callback(tell)
        await told.wait()
        if self.cancelled():
            raise asyncio.CancelledError
        return self.result(0)

    def _url(self) -> str:
        return self._attachment.address

    def _shown(self) -> "ShownFuture":
        from .model.shown import ShownFuture

        if "_state" in vars(self):
            return super()._shown()
        return ShownFuture(self.task_id, "", "", "", False, *self._seen())  # nothing has begun, and nothing does here


_OF_ANY = frozenset(vars(DurableFuture[Any](None, None))) - {"_number"}  # type: ignore[arg-type]  # it is not used
_beginning = SafeLock()
_references: weakref.WeakValueDictionary[tuple[str, int], _Reference[Any]] = weakref.WeakValueDictionary()


def reference(url: str, task_id: str) -> DurableFuture[Any]:
    """Return the future of a task of the store at that url. Nothing is opened before something of it is asked for."""
    with interrupts:
        from .dispatch.attachment import attachment  # most processes are given none

    key = url, parse_id(task_id)
    with _beginning:
        found = _references.get(key)
        if found is None:
            found = _references[key] = _Reference(attachment(url), key[1])
    return found


def _after_fork_in_child() -> None:
    global _beginning
    _beginning = SafeLock()  # another thread of the parent's may have held it
    for future in list(_references.values()):
        if vars(future).get("_state") == PENDING:  # what would resolve it is the parent's
            future._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def rebuild(error: ErrorInfo, number: int | None, look: Callable[[], Task] | None = None) -> BaseException:
    """Return the exception that a task's stored error tells of, with the worker's traceback as its cause.

    A note on it names the task and its call. Where the error does not say the call, as of a worker that has died,
    it is the function alone, if `look` is given and finds the task.
    """
    # The same class of cause as ProcessPoolExecutor's, which is what test suites and loggers look for.
    from concurrent.futures.process import _RemoteTraceback

    from .errors import RemoteError

    exception: object = None
    unreadable = ""
    if error.pickle is not None:
        try:
            exception = codec.decode(error.pickle)
        except Exception as why:  # noqa: BLE001 - an exception class of the user's may fail to load in any way
            unreadable = f" (it cannot be rebuilt here: {type(why).__name__}: {why})"
    if not isinstance(exception, BaseException):
        exception = RemoteError(f"{error.type}: {error.message}{unreadable}")
    # Not by the class's own way of setting attributes, which may refuse. What it is given is the text.
    BaseException.__setattr__(exception, "__cause__", _RemoteTraceback(error.traceback))  # type: ignore[arg-type]
    if number is not None:
        try:
            BaseException.add_note(exception, _note(number, error.call, look))
        except Exception:  # noqa: BLE001 - the class may have made of __notes__ what it likes; it goes without one
            pass
    return exception


def _note(number: int, call: str, look: Callable[[], Task] | None) -> str:
    if not call and look is not None:
        try:
            call = look().func_path
        except OmniqError:  # it is closed, or the task was purged
            pass
    return f"{format_id(number)}: {call}" if call else format_id(number)
