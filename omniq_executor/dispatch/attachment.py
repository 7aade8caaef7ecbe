"""Looks into a store from a process that runs none of its tasks: whoever waits for one is told when it is finished.

    look()    the open store, for what is asked once: it changes nothing there
    join()    a future waits ---> Onlooker: an owner of the store, with a thread that is told what finishes.
                                  It ends when nothing is waited for any more; the next join() makes another one.

An Onlooker is a dispatcher that has nothing to run: it claims, takes over and adopts nothing, and belongs to no run. It
is an owner only to be told, and others write down for it what they finish, so there is none for longer than needed.

There is one Attachment for each store that this process looks into, which stays until the process ends. What is at its
address may be another store by the next look: the file tells, and what was waited for in the old one fails.

A thread that joins, or finds that nothing is waited for any more, tells no other future of its end: it may have the
locks of some, as wait() of the standard library has, and another thread those of others. The Onlooker's thread does.
"""

import contextlib
import math
import os
from _thread import start_new_thread
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..config import parse_address
from ..engines.external import External
from ..errors import StoreError, TaskNotFound
from ..interrupts import SafeLock, interrupts
from ..model.reasons import Why
from ..model.task import FINISHED, Status, format_id
from ..stores import open_store
from ..stores.base import NO_RUN, Store
from . import history
from .dispatcher import Dispatcher
from .lifetimes import close_with_multiprocessing
from .waiters import Waiter, outcome_of

QUEUE = "(waits)"  # what an Onlooker has in place of the queue of an owner


class Onlooker(Dispatcher):
    """See the module's docstring. An Attachment makes and ends it."""

    def __init__(self, store: Store) -> None:
        owner = store.enter(QUEUE)
        try:
            super().__init__(store, owner, NO_RUN, External(), 0)
        except BaseException:
            store.leave(owner)
            raise
        self._loop.retention.at = math.inf  # who only looks removes nothing
        try:
            self.driver.start()
        except BaseException:
            self._loop.end()
            raise
        self.close_with(self)  # at the end of the interpreter, and of the parent alone after a fork

    @property
    def is_at_end(self) -> bool:
        """Whether nothing more is waited for by this one."""
        return self._loop.is_closing or self.failure is not None

    def join(self, id: int, future: Waiter) -> bool:
        """Have a future wait for a task; return False if this one is at its end. Raises TaskNotFound, StoreError."""
        with self._untelling():
            if self.is_at_end:
                return False
            # After this process is an owner: what finishes after the look is news to it.
            found = self.store.states([id])
            if not found:
                raise TaskNotFound(f"{self.store.address} holds no {format_id(id)}")
            self._waiters.add_future(id, future)
            self._loop.take_in_state(found[0])
            return True

    def end_if_idle(self, _: object = None) -> None:
        """End, if nothing is waited for."""
        if self._waiters.open:  # its end is followed by another look
            return
        with self._untelling():
            # Under the lock that join() takes: who joins is waited for, or told to look for another one.
            if not self._waiters.open:
                self._loop.is_closing = self.driver.is_ending = True

    @contextlib.contextmanager
    def _untelling(self) -> Iterator[None]:
        """Hold the lock, and have the own thread look at what was done."""
        with interrupts:
            self.driver.hold()
            try:
                yield
            finally:
                self.driver.let_go()
                self.driver.rouse()

    def close(self, wait: bool, cancel_futures: bool = False) -> None:
        """Wait for nothing any more: futures that are open fail. With `wait`, return when all is let go of."""
        with self.driver:
            if self.driver.is_closed:
                return
            self._loop.is_closing = self.driver.is_ending = True
            self.driver.poll()  # for what has finished just now
            self._loop.turn_or_later()
            self._waiters.fail_all(StoreError(f"{self.store.address} is not looked into any more by this process"))
        super().close(wait)

    def stop(self, signal_number: int, why: str) -> None:
        """Do the same: there are no workers to end."""
        self.close(wait=True)


class Attachment:
    """See the module's docstring. `attachment()` gives the one of a store."""

    initializer = None  # which is not known of others' workers

    def __init__(self, address: str) -> None:
        self.address = address
        """What open_store() takes, from any folder."""
        self._path = parse_address(address).path
        self._lock = SafeLock()
        self._store: Store | None = None
        self._file: object = None  # which it is
        self._onlooker: Onlooker | None = None
        self._whys: dict[int, Why] = {}

    @property
    def store(self) -> Store:
        """The open store. Raises StoreError where there is none."""
        onlooker = store = None
        with self._lock:
            if self._file != _file_at(self._path):
                onlooker, store = self._onlooker, self._store
                self._onlooker = self._store = None
        if onlooker is not None:
            start_new_thread(onlooker.close, (False,))
        if store is not None:
            store.close()
        with self._lock:
            if self._store is None:
                self._store = open_store(self.address, create=False)
                self._file = _file_at(self._path)
            return self._store

    def why(self, id: int) -> Why:
        """Return why a task runs, or did, by what is stored."""
        return history.why_of(self.store, id, self._whys)

    def join(self, id: int, future: Any) -> Onlooker | None:
        """Resolve a future if its task is finished; else have it wait, and return the Onlooker that it waits by.

        Raises TaskNotFound if the store has no such task, and StoreError.
        """
        found = self.store.states([id])
        if not found:
            raise TaskNotFound(f"{self.address} holds no {format_id(id)}")
        if found[0].status is Status.CANCELLED:
            future._cancelled()
            return None
        if found[0].status in FINISHED:
            future._finish(outcome_of(found[0]))
            return None
        while True:
            onlooker = self._enter()
            try:
                is_joined = onlooker.join(id, future)
            except BaseException:
                onlooker.end_if_idle()
                raise
            if is_joined:
                future.add_done_callback(onlooker.end_if_idle)
                return onlooker

    def _enter(self) -> Onlooker:
        """Return an Onlooker that has not begun to end, as far as is known."""
        with self._lock:
            if self._onlooker is None or self._onlooker.is_at_end:
                close_with_multiprocessing()
                store = open_store(self.address, create=False)
                try:
                    self._onlooker = Onlooker(store)
                except BaseException:
                    store.close()
                    raise
            return self._onlooker

    def has_claimed(self, id: int) -> bool:
        """Return whether the task is with a worker, or about to be."""
        return any(found.status is Status.RUNNING for found in self.store.states([id]))

    def leave_to_parent(self) -> None:
        """After a fork, in the child: what is open is the parent's, and is kept so that nothing of it is closed."""
        _lost_in_fork.append((self._store, self._onlooker))
        self._lock = SafeLock()  # another thread of the parent's may have held it
        self._store = self._onlooker = None


_attachments: dict[str, Attachment] = {}  # by address
_lost_in_fork: list[Any] = []


def attachment(address: str) -> Attachment:
    """Return this process's Attachment to the store at an address, its `url`. It opens nothing."""
    # One dict operation each: two threads that are here at a time are given the same one.
    return _attachments.get(address) or _attachments.setdefault(address, Attachment(address))


def _file_at(path: Path) -> tuple[int, int] | None:
    """Return which file or folder is there, whatever it is called."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _after_fork_in_child() -> None:
    for one in _attachments.values():
        one.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
