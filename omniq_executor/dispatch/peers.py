"""The other owners of a store: what they did, what they are told, and who notices that one of them has died.

An owner's notification pipe is a FIFO that it has open for reading as long as it lives. Each dispatcher has the
others' open for writing, and so is told by the system, without a clock, when the last reader of one is
gone. That proves nothing: the process may be half-way through its end, or its pipe not be open yet. So
the store is asked, which goes by the locks, and asked again while somebody who is registered is silent.

Of two who enter at a time each finds the other: both listen first, then notify, then look who is there.
"""

import contextlib
import math
import os
import selectors
import time

from ..pipes import drain
from ..stores.base import Store, now
from ..stores.owners import open_pipe

_FIRST_PAUSE_S = 0.02  # before somebody silent is looked at again, doubled each time ...
_LONGEST_PAUSE_S = 5.0  # ... up to this


class Peers:
    """See the module's docstring. Called under the dispatcher's lock."""

    def __init__(self, store: Store, owner: int, selector: selectors.BaseSelector) -> None:
        self.look_at = math.inf
        """When somebody who is silent is looked at, in seconds of time.monotonic(); infinity if nobody is."""
        self.was_notified = False
        """Whether this owner was notified, as those do who come: it is to be seen who is there."""
        self.may_have_changed = False
        """Whether they may have finished something, or added."""
        self.changes: list[int] = []
        """Tasks that were finished or cancelled, to be looked at."""
        self.must_notify = False
        """Whether they are to be told that something is there for them."""
        self._store = store
        self._owner = owner
        self._selector = selector
        self._pause_s = _FIRST_PAUSE_S
        self._notify_fds: dict[int, int] = {}  # of those who listen, and of this owner: of their notification pipes
        fd = open_pipe(store.notify_path(owner))
        if fd is not None:
            self._notify_fds[owner] = fd
            selector.register(fd, selectors.EVENT_READ, lambda _: self._on_notification(fd))
        try:
            store.notify(owner)
            self._watch()
        except BaseException:
            self.close()
            raise

    def notify(self) -> None:
        """Tell the others that something is there for them: it is committed. Raises StoreError."""
        self._store.notify(self._owner)
        self.must_notify = False

    def read_changes(self) -> list[int]:
        """Return `changes`, with what is new. They are kept. Raises StoreError."""
        if self.may_have_changed:
            self.changes += self._store.read_changes(self._owner)
        return self.changes

    def forget_changes(self) -> None:
        """Forget them, as they were looked at."""
        self.changes.clear()
        self.may_have_changed = False

    def look_after(self) -> bool:
        """Look who is there; return whether somebody may have left something behind. Raises StoreError."""
        if self.was_notified:
            self.was_notified = False
            self._watch()
        if time.monotonic() < self.look_at:
            return False
        self._look()
        return True

    def close(self) -> None:
        """Let go of the notification pipes; the selector may be closed already."""
        for fd in self._notify_fds.values():
            os.close(fd)
        self._notify_fds.clear()

    def _on_notification(self, fd: int) -> None:
        drain(fd)
        self.may_have_changed = self.was_notified = True

    def _watch(self) -> None:
        """Take notice of who came and who left."""
        peers = set(self._store.peers(self._owner))
        for gone in self._notify_fds.keys() - peers - {self._owner}:
            self._drop(gone)
        for peer in peers - self._notify_fds.keys():
            self._listen(peer)
        if peers <= self._notify_fds.keys():
            self.look_at, self._pause_s = math.inf, _FIRST_PAUSE_S
        elif self.look_at == math.inf:
            self.look_at = time.monotonic() + self._pause_s

    def _look(self) -> None:
        """Have what the dead had claimed taken back, and whoever may want it told."""
        self._pause_s = min(self._pause_s * 2, _LONGEST_PAUSE_S)
        self.look_at = time.monotonic() + self._pause_s
        if self._store.reap(now()):
            self._store.notify(self._owner)
        self._watch()

    def _listen(self, peer: int) -> None:
        """Wait for the silence of a peer, if it can be heard yet."""
        with contextlib.suppress(OSError):  # nobody listens there, or there are no FIFOs
            fd = os.open(self._store.notify_path(peer), os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
            # A pipe is never readable at this end: what is told is the error that its other end is gone.
            self._selector.register(fd, selectors.EVENT_READ, lambda _: self._on_silence(peer))
            self._notify_fds[peer] = fd

    def _on_silence(self, peer: int) -> None:
        self._drop(peer)
        self.look_at = time.monotonic()

    def _drop(self, peer: int) -> None:
        fd = self._notify_fds.pop(peer)
        self._selector.unregister(fd)
        os.close(fd)
