"""What a worker process does.

    parent --data----> main thread: read a chunk, run its calls, write what came of them
           <--data---- (one socket, read by the main thread only while it has nothing to run)
    parent --control-> a second thread: exits the process when the parent is gone; on request it sends the
                       results that lie there while a long call runs, or shows where the first thread is

No lock and no queue is shared with another process, so no death can leave one held. What is shared
is a row of numbers per worker (see slots.py), each written by one side only:

- STARTED: the sequence number of the call that the worker is in, or was in last. It is written before the
  call starts, so that when the worker dies the parent knows which call to charge.
- STOP and RESUME: calls numbered STOP <= n < RESUME must not start. The parent writes them to take
  back calls that a busy worker has not started yet. It then waits longer than any write needs to
  become visible, and reads STARTED: a call below or at it runs here, one above it never will.
  For either the worker reads STOP after it wrote STARTED and sees the parent's, or the parent sees
  the worker's. This works without the worker's help, so also when it is stopped or holds the GIL.
- SINCE: when the worker began with the present chunk, in nanoseconds of time.monotonic(); 0 while it
  imports the function. A call that has a timeout is alone in its chunk.
- FIRST and TASK: which task the sequence number in STARTED stands for. FIRST is written first, so that it is ahead of
  STARTED until that is one of the new chunk's numbers, too.

Results are written when the chunk is done and nothing more is there, or with the first call that
ends FLUSH_S after the first of them. What lies there while a later call takes long, the parent asks
for: it sees that the worker is silent.
"""

import contextlib
import logging
import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, MutableSequence, Sequence
from typing import Any, NoReturn

from ... import values
from ...code import spaces
from ...code.arrived import Record
from ...code.modules import Reduced, type_name
from ...errors import CodeChanged, NotImportable, SerializationError, ValueLost
from ...model import codec
from ...model.task import format_id, log_name
from ...slots import FIRST, RESUME, SINCE, STARTED, STOP, TASK
from ...value_files import Files
from .wire import Inbox, frame

NEVER = 1 << 62  # a STOP that stops nothing
FLUSH_S = 0.001
FUNCTIONS = 1024  # that a worker keeps at most

# Kinds of items in a worker's message, all followed by the sequence number of the (first) call:
BLOCK = "block"  # count, JSON array of [result] arrays
RESULT = "result"  # stored form of one result
ERROR = "error"  # type, message, traceback, pickle of the exception or None, the call as text
SKIPPED = "skipped"  # count of calls that were taken back
STALE = "stale"  # this call, and all after it, were not run: this process has imported another version of its function
STACK = "stack"  # where that call is, as text; empty if it is over
FLUSH, SHOW = b"!", b"?"  # what the parent may ask for
BROKEN = "broken"  # traceback of the initializer; the sequence number is 0


Output = tuple[str, Sequence[int]]  # the folder where it is kept, and of each call the attempt


def enter(data: socket.socket, control: socket.socket, find_row: Callable[[], "memoryview[int]"], setup: Any) -> None:
    """Run calls until the parent closes its side: the target of a worker process, which shares a row with it."""
    _leave_group()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it may be sent to all; the parent decides what it means
    worker = _Worker(data, find_row())
    arguments = control, worker, threading.get_ident()
    threading.Thread(target=_heed_parent, args=arguments, name="omniq-control", daemon=True).start()
    try:
        worker.script, worker.is_forked = setup.script, setup.is_forked
        worker.keep_large(setup.files)
        worker.enter(0)
        initializer, initargs = setup.unpack()
        if initializer is not None:
            initializer(*initargs)
            worker.keep_arrived()
    except BaseException:  # whatever it is, this worker can run no calls, and the parent should know why
        logging.getLogger("concurrent.futures").critical("Exception in initializer:", exc_info=True)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # another worker's may have said it before
            worker.send_broken()
        return
    with contextlib.suppress(EOFError, ConnectionResetError, BrokenPipeError):
        worker.run()


def _leave_group() -> None:
    """Be in a process group of its own (see launch.py)."""
    if not hasattr(os, "setpgid"):
        return
    with contextlib.suppress(PermissionError):  # it leads a session, and so a group
        os.setpgid(0, 0)
    # A group in the background is stopped when it uses the terminal, and nobody would see why it stands still. So
    # reading fails, as in a process without a terminal, and writing works, whatever `stty tostop` says.
    signal.signal(signal.SIGTTIN, signal.SIG_IGN)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)


def _heed_parent(control: socket.socket, worker: "_Worker", main_thread: int) -> None:
    """Do what single bytes ask for, and exit the process when the parent is gone."""
    with contextlib.suppress(OSError):
        while asked := control.recv(1):
            if asked == FLUSH:
                worker.flush(always=True)
            else:
                worker.show(main_thread)
    os._exit(1)  # nobody is left to tell; the store knows what to do


_process = os.getpid()


def _note_fork() -> None:
    global _process
    _process = os.getpid()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def _end_copy(error: BaseException | None) -> NoReturn:
    """End a process that a call has forked and that has come back from the call: it is no worker, and tells nobody."""
    status = 0
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
    for stream in sys.stdout, sys.stderr:
        with contextlib.suppress(Exception):  # it may be anything by now
            stream.flush()
    os._exit(status & 0xFF)


class Caller:
    """Makes the calls of chunks, and keeps what came of them until it is flushed: what all engines have in common."""

    def __init__(self, slot: "MutableSequence[int] | memoryview[int]") -> None:
        self.script: tuple[str, str] | None = None  # how to import the script, if it can be
        self.is_forked = False  # from the process of the script
        self._space = spaces.Space()  # of the calls that run
        self._space_number = -1
        self._streams = sys.stdout, sys.stderr  # as they are before the initializer
        self._capture: Any = None  # made for the first call whose output is kept
        self._call_text: Any = None  # made for the first call that fails
        self._slot = slot
        self._functions: dict[int, Any] = {}  # pickles, and what they were loaded as
        self._is_fresh = True  # nothing has been run but the initializer
        self._is_stale = False  # it waits for its end, and runs nothing more
        self._records: dict[int, Record] = {}  # what functions came with, that travelled by value
        self._files: Files | None = None  # where large results are kept
        self._lock = threading.Lock()  # of what follows: the second thread may flush
        self._items: list[tuple[Any, ...]] = []  # encoded, not yet sent
        self._values: list[tuple[Any]] = []  # scalars not yet encoded, of calls with consecutive numbers ...
        self._first = 0  # ... from this one on
        self._times: list[list[Any]] = []  # functions, how many calls of each, and how long these took together
        self._flush_at = 0.0

    def run_chunk(
        self,
        sequence: int,
        function_id: int,
        function: bytes | None,
        text: str | None,
        calls: Sequence[Any] | None,
        ids: Sequence[int],
        space: int = 0,
        output: Output | None = None,
    ) -> None:
        """Make the calls of a chunk, numbered from `sequence` on; `calls` or `text` has their arguments.

        The function is known by its id from when its pickle came with it.
        """
        clock, slot, process = time.perf_counter, self._slot, _process
        if space != self._space_number:
            self.enter(space)
        if function is not None:
            if len(self._functions) == FUNCTIONS:  # the parent forgets which ones we have at the same moment
                self._functions.clear()
                self._records.clear()
            self._functions[function_id] = function
        rows, load = (codec.decode(text), None) if text is not None else (calls or (), self._decode)
        if output is not None:
            load = self._captured(load, sequence, ids, *output)
        end, timed = sequence + len(rows), sequence
        started = clock()
        # Before STARTED is: who sees that one must find this one.
        slot[SINCE] = 0 if type(self._functions[function_id]) is bytes else time.monotonic_ns()
        if not self._items and not self._values:
            self._flush_at = started + FLUSH_S
        slot[FIRST] = sequence  # before TASK, and both before STARTED is
        slot[TASK] = ids[0]
        others = None if type(ids) is range else iter(ids)
        for row in rows:
            if others is not None:
                slot[FIRST] = sequence
                slot[TASK] = next(others)
            slot[STARTED] = sequence
            if slot[STOP] <= sequence < slot[RESUME]:
                self._put((SKIPPED, sequence, end - sequence))
                break
            try:
                call = self._functions[function_id]
                if type(call) is bytes:
                    call = self._functions[function_id] = self._load_or_tell(function_id, call)
                    started = clock()  # loading is paid once, so it says nothing about the next calls
                    slot[SINCE] = time.monotonic_ns()
                if self._records and (record := self._records.get(function_id)) is not None:
                    record.space.apply(record)
                value = call(*row) if load is None else load(call, row)
                if _process != process:
                    _end_copy(None)
            except _Stale:
                self._is_stale = True
                self._put((STALE, sequence))
                self.flush()
                return
            except BaseException as error:  # noqa: BLE001 - SystemExit too is what became of the call
                if _process != process:
                    _end_copy(error)
                self._put_error(sequence, error, self._functions[function_id], row if text is not None else None)
            else:
                kind = type(value)
                if kind in codec.SCALARS and (kind is not str or len(value) < values.LARGE):
                    with self._lock:
                        if not self._values:
                            self._first = sequence
                        self._values.append((value,))
                else:
                    self._put_result(sequence, value, call, row if text is not None else None)
            sequence += 1
            now = clock()
            if now >= self._flush_at:
                self._note_time(function_id, sequence - timed, now - started)
                started, timed = now, sequence
                self.flush()
                self._flush_at = now + FLUSH_S
        self._is_fresh = False
        if sequence > timed:
            self._note_time(function_id, sequence - timed, clock() - started)
        if len(rows) == 1:  # a call that came alone is waited for
            self.flush()

    def enter(self, space: int) -> None:
        """Have what follows run among the names of that run."""
        self._space_number = space
        self._space = spaces.space_of(space, is_forked=self.is_forked and space == 0)
        self._space.enter()

    def keep_arrived(self) -> None:
        """Have the names that the initializer came with be found by every call."""
        self._space.keep_arrived()

    def _load_or_tell(self, function_id: int, function: bytes) -> Any:
        try:
            return self._load(function_id, function)
        except CodeChanged as error:
            if self._is_fresh:
                raise
            raise _Stale from error
        except (SerializationError, ValueLost):
            raise
        except Exception as error:
            raise NotImportable(
                f"process {os.getpid()} cannot import the function: {type(error).__name__}: {error}."
                f" It looks for modules in {', '.join(folder or 'its current folder' for folder in sys.path)}"
            ) from error

    def _load(self, function_id: int, function: bytes) -> Any:
        self._space.take_record()  # of arguments, or of the initializer
        try:
            loaded = codec.decode(function)
        except AttributeError as error:
            if self.script is None or self._space.has_imported or self._space.record is not None:
                raise
            # A function of the script that cannot travel by value: this worker needs the script after all.
            try:
                self._space.import_script(*self.script)
            except (Exception, SystemExit) as second:  # whatever the script does
                failure = f"{error}; that import failed: {type(second).__name__}: {second}"
                raise SerializationError(failure) from second
            loaded = codec.decode(function)
        record = self._space.take_record()
        if record is not None:
            self._records[function_id] = record
        return loaded

    def _decode(self, call: Callable[..., Any], row: tuple[str | bytes, str | None]) -> Any:
        try:
            args, kwargs = codec.decode_call(*row)
        except CodeChanged as error:
            if self._is_fresh:
                raise
            raise _Stale from error
        return call(*args, **kwargs)

    def _captured(
        self, load: Callable[..., Any] | None, first: int, ids: Sequence[int], folder: str, attempts: Sequence[int]
    ) -> Callable[..., Any]:
        """What makes a call as `load` does, and keeps what it writes in its file. The numbers begin with `first`."""
        if self._capture is None:
            from .capture import Capture  # most workers never need it

            self._capture = Capture(self._streams)
        capture, slot = self._capture, self._slot

        def captured(call: Callable[..., Any], row: Any) -> Any:
            place = slot[STARTED] - first
            capture.begin(f"{folder}/{log_name(ids[place], attempts[place])}")
            try:
                return call(*row) if load is None else load(call, row)
            finally:
                capture.end()

        return captured

    def _put_result(self, sequence: int, value: Any, call: Any, row: Any) -> None:
        # Encoded at once: the value may be an object that a later call changes.
        try:
            if self._files is None:
                data = codec.encode(value, in_worker=True)
            else:
                # What cannot be written as a file goes the way of the others, and the store says what is wrong.
                task = self._slot[TASK] + sequence - self._slot[FIRST]
                values.here.writer = values.Writer(self._files, format_id(task))
                try:
                    data = codec.encode(value, in_worker=True)
                finally:
                    values.here.writer = None
            self._put((RESULT, sequence, data))
        except BaseException as error:  # noqa: BLE001 - as above: pickling runs code of the user's
            self._put_error(sequence, error, call, row)

    def _put_error(self, sequence: int, error: BaseException, call: Any, row: Any) -> None:
        """Put what a call raised; `row` has its arguments, if they were plain."""
        told = self._told(call, (row, {}) if row is not None else _arguments(error))  # _describe() takes them away
        self._put((ERROR, sequence, *_describe(error), told))

    def _told(self, call: Any, arguments: tuple[Any, Any] | None) -> str:
        if type(call) is bytes:  # it could not be loaded
            return ""
        if self._call_text is None:
            from .calltext import CallText  # most workers never need it

            self._call_text = CallText()
        args, kwargs = arguments or (None, {})
        try:
            return str(self._call_text.of(call, args, kwargs))
        except Exception:  # noqa: BLE001 - a callable of the user's may do anything when it is asked for its name
            return ""

    def _put(self, item: tuple[Any, ...]) -> None:
        with self._lock:
            self._encode_values()
            self._items.append(item)

    def _note_time(self, function_id: int, calls: int, busy_s: float) -> None:
        """Have the parent be told how long calls of a function took."""
        with self._lock:
            if self._times and self._times[-1][0] == function_id:
                self._times[-1][1] += calls
                self._times[-1][2] += busy_s
            else:
                self._times.append([function_id, calls, busy_s])

    def _encode_values(self) -> None:
        values, self._values = self._values, []
        if not values:
            return
        text = codec.encode_rows(values)
        if text is not None:
            self._items.append((BLOCK, self._first, len(values), text))
        else:  # NaN, a lone surrogate, a huge int
            self._items += [
                (RESULT, sequence, codec.encode(value, in_worker=True))
                for sequence, (value,) in enumerate(values, self._first)
            ]

    def flush(self, always: bool = False) -> None:
        """Send what is there; `always` also if it is nothing. Called when a call has ended some time after the last."""
        raise NotImplementedError


class _Worker(Caller):
    def __init__(self, data: socket.socket, slot: "memoryview[int]") -> None:
        super().__init__(slot)
        self._socket = data
        self._inbox = Inbox(data)
        self._selector = selectors.DefaultSelector()
        self._selector.register(data, selectors.EVENT_READ)

    def keep_large(self, files: Files | None) -> None:
        """Have large values be in files, where the store has a place for them."""
        values.default = files
        self._files = files

    def run(self) -> None:
        while True:
            if (self._items or self._values) and not self._selector.select(0):
                self.flush()
            for message in self._inbox.read():
                if not self._is_stale:
                    self.run_chunk(*message)

    def send_broken(self) -> None:
        self._items.append((BROKEN, 0, _traceback_text()))
        self.flush()

    def show(self, main_thread: int) -> None:
        """Send where the main thread is in its call, and before that the results that are there."""
        import traceback  # most workers are never asked

        sequence = self._slot[STARTED]
        entries: list[traceback.FrameSummary] = []
        for place, line in traceback.walk_stack(sys._current_frames()[main_thread]):
            code = place.f_code
            if code.co_filename == __file__:
                if code is _Worker.run.__code__:  # it waits for the next call
                    entries.clear()
                break
            # Not the frames themselves: who keeps them keeps what is in them from being freed where it should.
            entries.append(traceback.FrameSummary(code.co_filename, line, code.co_name, lookup_line=False))
        if self._slot[STARTED] != sequence:  # it went on while it was looked at
            entries.clear()
        self._put((STACK, sequence, "".join(traceback.format_list(entries[::-1]))))
        self.flush()

    def flush(self, always: bool = False) -> None:
        """Send what is there; `always` also if it is nothing."""
        with self._lock:
            self._encode_values()
            if not (self._items or always):
                return
            message = (self._times, self._items)
            self._items, self._times = [], []
            for piece in frame(message):
                self._socket.sendall(piece)


def _arguments(error: BaseException) -> tuple[Any, Any] | None:
    """The arguments of the call that raised, from the frame that had decoded them; keeping them costs every call."""
    traceback = error.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        if frame.f_code is Caller._decode.__code__:
            found = frame.f_locals
            return (found["args"], found["kwargs"]) if "kwargs" in found else None
        traceback = traceback.tb_next
    return None


class _Stale(Exception):  # no error of anybody's
    """The function has another version here than where it was submitted; a fresh process may have the same."""


def _describe(error: BaseException) -> tuple[str, str, str, bytes | None]:
    """An exception as (type, message, traceback, pickle), whatever it does when it is looked at."""
    try:
        message = str(error)
    except Exception as second:  # noqa: BLE001 - a __str__ of the user's may raise anything
        message = f"<its __str__ raised {type(second).__name__}>"
    text = _traceback_text(of_call=True)
    try:
        data = codec.encode(_as_python_pickles(error.with_traceback(None)), in_worker=True)
    except Exception:  # noqa: BLE001 - and so may its __reduce__
        data = None
    return type_name(error), message, text, data if isinstance(data, bytes) else None


def _as_python_pickles(error: BaseException) -> Any:
    """Return what is pickled as an exception of Python's own is by itself, whatever `copyreg` has been taught.

    distributed, for one, has tblib teach it a way in which they come back without what their constructors set: an exit
    without its code, and a UnicodeDecodeError without a message.
    """
    return Reduced(*error.__reduce_ex__(5)) if type(error).__module__ == "builtins" else error


def _traceback_text(of_call: bool = False) -> str:
    """Return the present exception as text. Of a call it begins with the call, if there is a line of Python in that."""
    import traceback  # most workers never need it

    kind, error, frames = sys.exc_info()
    while of_call and frames and frames.tb_next and frames.tb_frame.f_globals is globals():
        frames = frames.tb_next
    return "".join(traceback.format_exception(kind, error, frames))
