"""Who is alive: one lock file per owner, held by its process for as long as it lives.

An owner is a process that claims tasks. Its lock lies in a folder beside the store, and the
operating system lets go of it when the process ends, however it ends. So a lock that can be taken
proves death, at once and without a clock; one that cannot proves life, however slow or stopped the
process is. Where nothing can be proved (another machine, a lock the system does not grant) the
owner counts as alive, because a living owner that is robbed would see its calls run twice. The name
of the machine may have changed, as from one container to the next. That is no hindrance where the
file system is of this machine alone: whatever its name was, the lock would be seen here.

The lock is taken before the owner is registered and let go after it is unregistered. In between
there is no moment at which a registered owner looks dead.

Beside the lock lies the owner's notification pipe, a FIFO. Whoever commits something that others wait for
writes a byte to each of theirs; the owner has it among the things it waits for.
"""

import contextlib
import os
import socket
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import StoreError
from ..interrupts import interrupts
from ..model.ids import NODES
from . import permissions

if TYPE_CHECKING:
    from filelock import FileLock


def new_owner_id(taken: Iterable[int]) -> int:
    """Return a random id whose remainder modulo NODES none of `taken` has: it makes their task ids distinct."""
    nodes = {id % NODES for id in taken}
    if len(nodes) == NODES:
        raise StoreError(f"{NODES} owners are registered in this store; end some of them first")
    while True:
        id = _random_31_bits()
        if id % NODES not in nodes:
            return id


def new_session_id() -> int:
    """Return a random id that no owner has: those are smaller."""
    return 1 << 31 | _random_31_bits()


def _random_31_bits() -> int:
    return int.from_bytes(os.urandom(4), "big") >> 1


_POLL_S = 0.002  # how often filelock tries
_OF_ONE_MACHINE = {  # the file systems that no two have mounted at a time
    "apfs", "bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "hfs", "jfs", "ntfs", "overlay", "ramfs", "reiserfs",
    "tmpfs", "ufs", "xfs", "zfs",
}  # fmt: skip
_holders: "dict[tuple[Path, int], Owners]" = {}  # by folder and owner: what keeps its lock, as long as it does


def _lock(path: Path, **how: Any) -> "FileLock":
    from filelock import FileLock  # 10 ms of imports, in which a forkserver can start

    return FileLock(path, mode=0o600, **how)


class Owners:
    """The lock files and notification pipes of the owners of one store, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.host = socket.gethostname()
        self._held: dict[int, FileLock] = {}

    @cached_property
    def _is_of_this_machine(self) -> bool:
        """Whether all locks in the folder are seen by this machine, since no other can have its file system mounted."""
        import psutil  # 20 ms, and most processes never need it

        kinds = {mount.mountpoint: mount.fstype for mount in psutil.disk_partitions(all=True)}
        folder = self.folder.resolve()
        return next((kinds[str(it)] for it in (folder, *folder.parents) if str(it) in kinds), "") in _OF_ONE_MACHINE

    def gate(self, timeout_s: float) -> "FileLock":
        """Return the lock under which a store is created and opened, and its owners are looked at."""
        return _lock(self.folder / "open.lock", timeout=timeout_s, poll_interval=_POLL_S)

    @interrupts  # one that is raised in a lock of filelock may keep all others from theirs
    def hold(self, owner: int, *, has_pipe: bool = True) -> None:
        """Prove from now on that this process lives: as an owner, or without a notification pipe as a session."""
        lock = _lock(self._lock_path(owner), thread_local=False)  # another thread may let go of it
        try:
            lock.acquire(blocking=False)
            self._held[owner] = lock
            _holders[self.folder, owner] = self  # though nobody refers to this any more
            if has_pipe and hasattr(os, "mkfifo"):
                os.mkfifo(self.notify_path(owner), 0o600)
                self.notify_path(owner).chmod(0o600)  # whatever the umask took
        except OSError as error:
            self.let_go(owner)
            raise StoreError(f"no owner can be registered in {self.folder}: {permissions.explain(error)}") from error

    @interrupts
    def let_go(self, owner: int, *, is_registered: bool = False) -> None:
        """Prove no more. One that is still registered is taken for dead then, with nothing under way."""
        # A session may have been begun through another handle, which may be closed by now.
        lock = _holders.pop((self.folder, owner), self)._held.pop(owner, None)
        if lock is None:
            return
        if is_registered:
            with contextlib.suppress(OSError):  # also where no worker of its own noted anything: it died in no call
                os.close(os.open(self.slots_path(owner), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600))
        lock.release()
        if not is_registered:
            self.forget(owner)

    @interrupts
    def is_alive(self, owner: int, host: str) -> bool:
        """Return False only if the owner's death is proved."""
        if owner in _holders.get((self.folder, owner), self)._held:
            return True
        probe = _lock(self._lock_path(owner))
        try:
            if host != self.host and not self._is_of_this_machine:
                return True
            permissions.check_private(self._lock_path(owner))  # a lock file is emptied as it is opened
            probe.acquire(blocking=False)
        except OSError:  # Timeout among them; others, such as too many open files, prove nothing
            return True
        probe.release()
        return False

    def forget(self, owner: int) -> None:
        """Remove the files of an owner that is gone. One that cannot be removed says nothing any more."""
        for path in (self._lock_path(owner), self.notify_path(owner), self.slots_path(owner)):
            with contextlib.suppress(OSError):
                path.unlink()

    def notify_path(self, owner: int) -> Path:
        """Return the owner's notification pipe."""
        return self.folder / f"{owner}.notify"

    def slots_path(self, owner: int) -> Path:
        """Return the file in which the owner's workers note what they have begun."""
        return self.folder / f"{owner}.slots"

    def notify(self, owner: int) -> None:
        """Wake an owner, if it listens. A full FIFO wakes it already, and a missing one has nobody behind it."""
        try:
            fd = os.open(self.notify_path(owner), os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        except (FileNotFoundError, OSError):
            return
        try:
            os.write(fd, b"!")
        except (BlockingIOError, BrokenPipeError):
            pass
        finally:
            os.close(fd)

    def _lock_path(self, owner: int) -> Path:
        return self.folder / f"{owner}.lock"


def open_pipe(path: Path) -> int | None:
    """Return a descriptor of an owner's notification pipe, for a selector; None where there are no FIFOs."""
    # Open for writing, too, it never sees the end of its last writer.
    return os.open(path, os.O_RDWR | os.O_NONBLOCK) if path.exists() else None


_lost_in_fork: "list[Owners]" = []  # what a child inherited: kept, so that it lets go of no lock of its parent's


def _after_fork_in_child() -> None:
    _lost_in_fork.extend(_holders.values())
    _holders.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
