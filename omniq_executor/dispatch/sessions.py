"""Sessions: one life of this process in a store, with all of its runs.

A run is not clean before the process has ended well: what its calls brought may be needed once more if the
script dies later on. So a session is begun with the first executor on a store, outlives all of them, and is ended
when the interpreter ends. A process that is killed ends none, and its lock tells so. A run that was cut off, by
Ctrl-C say, does not become clean at all, and is continued by the next one, in this process or another. A notebook ends
as its last cell did.
"""

import logging
import os
import shlex
import sys
import threading
from collections.abc import Iterable
from datetime import UTC, datetime
from types import CodeType

from .. import notebooks
from ..errors import StoreError
from ..stores.base import Leftover, Run, Store, now
from ..stores.rules import initializer_of

_MOST = 64  # sessions at a time, each of which holds a file open; one that is not needed is ended before others

_log = logging.getLogger("omniq_executor")


class _Session:
    """This process's session in a store."""

    def __init__(self, store: Store) -> None:
        self.id = store.begin_session(now())
        self.reopen = store.reopen
        self.users = 0  # executors that are open
        self.cancels: set[str] = set()  # queues whose leftovers are cancelled
        self.raised: list[Run] = []  # runs whose `with` block was left by an exception, which may be caught


_sessions: dict[str, _Session] = {}  # by address of the store, the oldest first
_lock = threading.Lock()  # executors may be made in several threads
_outermost: CodeType | None = None  # what an exception must leave to end the process


def enter(store: Store, queue: str, leftovers: str) -> int:
    """The id of this process's session in a store, which an executor on the queue uses until `leave()`."""
    global _outermost
    with _lock:
        _outermost = _outermost_code()
        if store.address not in _sessions:
            unused = [address for address, session in _sessions.items() if not session.users]
            for address in unused[: max(len(_sessions) + 1 - _MOST, 0)]:
                _end(address, _sessions.pop(address))
            _sessions[store.address] = _Session(store)
        session = _sessions[store.address]
        session.users += 1
        (session.cancels.add if leftovers == "cancel" else session.cancels.discard)(queue)
        return session.id


def leave(address: str) -> None:
    """One executor of the session is closed."""
    with _lock:
        if address in _sessions:
            _sessions[address].users -= 1


def raised(address: str, run: Run) -> None:
    """An exception has left the run's `with` block. If it does not leave the process, the run is none the worse."""
    with _lock:
        if address in _sessions and not notebooks.is_interactive():
            _sessions[address].raised.append(run)


def end_all() -> None:
    """End the sessions of this process, which is about to end; the executors are closed."""
    with _lock:
        while _sessions:
            _end(*_sessions.popitem())


def _end(address: str, session: _Session) -> None:
    """End a session, clean unless an exception is about to end the process."""
    clean = ended_by() is None
    try:
        store = session.reopen()
    except StoreError as error:  # it was removed meanwhile, for one
        _log.debug("the session in %s could not be ended: %s", address, error)
        return
    try:
        for run in session.raised if clean else ():
            store.end_run(run, True, now())
        left = store.end_session(session.id, clean, now(), keep_broken=True)
        # Also what was left and named by sessions before this one, which did not cancel it.
        for record in store.runs() if session.cancels else ():
            if record.settled and record.queue in session.cancels:
                store.cancel_run(record.id, now())
        tell_of_leftovers(address, [leftover for leftover in left if leftover.queue not in session.cancels])
    except StoreError as error:
        _log.error("the session could not be ended, and its runs will be continued as broken ones: %s", error)
    finally:
        store.close()


def tell_of_leftovers(address: str, left: Iterable[Leftover]) -> None:
    """Say what settled runs have left PENDING: it is said once, and nothing runs it unasked."""
    quoted = shlex.quote(address)
    for run, queue, started_at, tasks, context in left:
        began = datetime.fromtimestamp(started_at / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        runs_them = f"`omniq-executor worker --store {quoted} --queue {shlex.quote(queue)}`"
        if initializer_of(context):
            runs_them = "an executor with leftovers='run' and the same initializer and arguments"
        calls, stay, them = ("1 call", "stays", "it") if tasks == 1 else (f"{tasks} calls", "stay", "them")
        _log.warning(
            f"queue %r: %s of run %d, begun at %s, not submitted again, {stay} PENDING."
            f" %s runs {them}, `omniq-executor cancel --store %s --run %d` cancels {them}",
            queue, calls, run, began, runs_them, quoted, run,
        )  # fmt: skip


def ended_by() -> type[BaseException] | None:
    """Return the exception that nobody caught, and that is about to end this process, or that ended its notebook."""
    if notebooks.cell_error is not None:
        return notebooks.cell_error
    if notebooks.is_interactive() and notebooks.shell() is None:
        return None  # whoever types went on after it
    error = sys.exc_info()[1]  # in a process of multiprocessing
    if error is None:
        error = getattr(sys, "last_value", None)
        start = error.__traceback__ if error is not None else None
        # Debuggers, consoles and test runners leave there what they have caught, from where they have caught it.
        if start is not None and _outermost is not None and start.tb_frame.f_code is not _outermost:
            return None
    return None if error is None else type(error)


def _outermost_code() -> CodeType | None:
    """Return the code in which the main thread began."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None and frame.f_back is not None:
        frame = frame.f_back
    return None if frame is None else frame.f_code


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()  # another thread of the parent's may have held it
    _sessions.clear()  # they are the parent's


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
