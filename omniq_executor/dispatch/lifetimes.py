"""What becomes of open dispatchers when the interpreter ends, and when the process is forked."""

import atexit
import contextlib
import functools
import multiprocessing
import multiprocessing.util  # before our own exit handler is registered, so that ours runs first
import os
import signal
import threading
from collections.abc import Callable

from ..interrupts import interrupts
from . import sessions
from .dispatcher import open_dispatchers

FORK_WAIT_S = 1.0  # for the end of turns in other threads, each

at_end: list[Callable[[], object]] = []
"""What is called at the end of the interpreter, once all executors have come to theirs."""

_held = threading.local()  # what a thread that is forking keeps from taking turns


def _close_dispatchers() -> None:
    """Finish what was submitted, as ProcessPoolExecutor does at the end of the interpreter."""
    # Those of no run come last: they only wait, and what they wait for may be finished by the others meanwhile.
    for dispatcher in sorted(open_dispatchers, key=lambda one: not one.run.id):
        if issubclass(sessions.ended_by() or Exception, KeyboardInterrupt):
            dispatcher.stop(signal.SIGTERM, "the script was interrupted")
        else:
            dispatcher.close(wait=True)
    open_dispatchers.clear()  # nothing is to be done when their executors are dropped


def _close_at_exit() -> None:
    """Do that, and end what is of the process."""
    _close_dispatchers()
    sessions.end_all()
    for call in at_end:
        call()


def _before_fork() -> None:
    """Let no turn be under way in another thread: a child in which one is cut off may stand still in SQLite."""
    _held.dispatchers = [dispatcher for dispatcher in list(open_dispatchers) if dispatcher.driver.hold(FORK_WAIT_S)]


def _after_fork_in_parent() -> None:
    for dispatcher in _held.__dict__.pop("dispatchers", ()):
        dispatcher.driver.let_go()


def _after_fork_in_child() -> None:
    _held.__dict__.pop("dispatchers", None)
    interrupts.leave_to_parent()
    for dispatcher in list(open_dispatchers):
        dispatcher.leave_to_parent()
    open_dispatchers.clear()
    close_with_multiprocessing.cache_clear()


def _close_quietly(close: Callable[[], None] = _close_at_exit) -> None:
    """Do it; if Ctrl-C comes meanwhile, end what runs, and say nothing: nobody hears of it any more."""
    try:
        close()
    except KeyboardInterrupt:
        # Workers end in some seconds at most, and one more Ctrl-C makes them no faster. It is all done in here, where
        # the session sees how it ended, and does not end clean.
        is_over = False
        while not is_over:
            with contextlib.suppress(KeyboardInterrupt):
                for dispatcher in list(open_dispatchers):
                    dispatcher.stop(signal.SIGTERM, "waiting for the calls was interrupted")
                close()
                is_over = True


atexit.register(_close_quietly)


@functools.cache
def close_with_multiprocessing() -> None:
    """In a process that multiprocessing has started, do it at its end: what `atexit` knows may not be heeded there."""
    if multiprocessing.parent_process() is not None:
        multiprocessing.util.Finalize(None, _close_quietly, exitpriority=0)


@functools.cache
def close_before_pools() -> None:
    """Close dispatchers whose engines are Python's own pools while these still take calls.

    They refuse them at the end of the interpreter before any handler of `atexit` is called, and have no public way
    to be asked before that. What is registered there last is called first, so it comes after their import.
    """
    threading._register_atexit(_close_quietly, _close_dispatchers)  # type: ignore[attr-defined]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
