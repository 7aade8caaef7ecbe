"""Who notices that another owner of the store has died, and takes back what it had claimed.

An owner's notification pipe is a FIFO that it has open for reading as long as it lives. Each dispatcher has the
others' open for writing, and so is told by the system, without a clock, when the last reader of one is
gone. That proves nothing: the process may be half-way through its end, or its pipe not be open yet. So
the store is asked, which goes by the locks, and asked again while somebody who is registered is silent.

Of two who enter at a time each finds the other: both listen first, then notify, then look who is there.
"""

import contextlib
import os
import selectors
import time

from ..stores.base import Store, now

_FIRST_PAUSE_S = 0.02  # before somebody silent is looked at again, doubled each time ...
_LONGEST_PAUSE_S = 5.0  # ... up to this


class Peers:
    """The other owners of a store. Called under the dispatcher's lock, from when its own notification pipe is open."""

    def __init__(self, store: Store, owner: int, selector: selectors.BaseSelector) -> None:
        self.look_at: float | None = None
        """When somebody who is silent is looked at, in seconds of time.monotonic(), or None."""
        self.was_notified = False
        """Whether this owner was notified, as those do who come."""
        self._store = store
        self._owner = owner
        self._selector = selector
        self._notify_fds: dict[int, int] = {}  # of those who listen, the file descriptors of their notification pipes
        self._pause_s = _FIRST_PAUSE_S
        store.notify(owner)
        self._watch()

    def look_after(self) -> bool:
        """Do what is due; returns whether somebody may have left something behind. Raises StoreError."""
        if self.was_notified:
            self.was_notified = False
            self._watch()
        if self.look_at is None or time.monotonic() < self.look_at:
            return False
        self._look()
        return True

    def close(self) -> None:
        """Let go of the notification pipes; the selector may be closed already."""
        for fd in self._notify_fds.values():
            os.close(fd)
        self._notify_fds.clear()

    def _watch(self) -> None:
        """Take notice of who came and who left."""
        peers = set(self._store.peers(self._owner))
        for gone in self._notify_fds.keys() - peers:
            self._drop(gone)
        for peer in peers - self._notify_fds.keys():
            self._listen(peer)
        if len(self._notify_fds) == len(peers):
            self.look_at, self._pause_s = None, _FIRST_PAUSE_S
        elif self.look_at is None:
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
