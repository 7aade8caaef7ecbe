"""Values that are too large for a row: files beside a store, which hold one buffer each.

    0f3c….104857600.9ae1f2c4          what arguments and functions hold, named by its hash, size and checksum
    task-….104857600.9ae1f2c4.5b…     a result, or a part of one, of that task
    new-4711-5b…                      what is being written

A value is pickled with its buffers out of band. A buffer of LARGE bytes, and a pickle that is as long without its
buffers, goes into a file, written by the process that has it: who submits, or the worker. What is stored and sent in
its place is a pickle of the names, `Reference`. So neither the parent, nor a pipe, nor the store has the bytes, and
whoever loads that pickle maps the files, copy on write: an array can be changed, and costs nothing until it is.

**What is written survives.** A file is written under a name of its own, synced if the store is to survive a cut of the
power, and then linked to the name by which others know it. Only then is there anything that refers to it.

**Nothing is removed that is about to be used**, though the same content is written once, and one process may remove it
(stores/values.py) while another decides to use it again. Whoever writes or finds a file for a call or a function takes
a shared lock on it, a `Pin`, looks whether it still has its name, and lets go when what refers to it is committed.
Whoever removes one takes the exclusive lock first, then looks whether anything refers to it, and unlinks it before it
lets go. So either the pin comes first, and the file stays; or it does not, and finds no name: then it is written again,
under a name of its own, if the first is not free. The system lets go of the locks of a process that dies. No pin is
needed for a result: the claim of its task was committed before it was written, and what is not finished keeps all.

**What is read is what was written.** A file that has not its size is refused with ValueLost. So is one with another
checksum, which is looked at up to 16 MB, and in any file that is older than the last start of the machine, as a cut of
the power may have emptied it. What was read stays whatever becomes of the file.
"""

import contextlib
import errno
import mmap
import os
import re
import sys
import threading
import time
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .errors import ValueLost
from .hashes import hash_of

if sys.platform != "win32":  # where the package is only meant to be imported
    import fcntl

_MOST_MAPPED = 128  # files that are mapped at a time where each takes a descriptor, and others are read
_LOOKED_AT = 1 << 24  # bytes, up to which all of a file is looked at whenever it is loaded
_WRITTEN_MEANWHILE = 1 << 21  # likewise, from which a thread writes them while they are hashed
_PIECE = 1 << 18  # that is looked at at a time
_MOST_REMEMBERED = 64
_MOST_SYNCED = 4096
_TRIES = 10

UNFINISHED = "new-"  # begins the name of what is being written
OF_TASK = "task-"  # begins the name of a result
_NAMES = re.compile(rb"(?:[0-9a-f]{32}|task-[0-9a-z]{13})\.[0-9]+\.[0-9a-f]{8}(?:\.[0-9a-f]{8})?")

Place = tuple[int, int]  # address and size of a buffer


class Pin:
    """The shared lock on a file that is to be referred to, until it is released or nobody has it any more."""

    def __init__(self, fd: int, name: str) -> None:
        self.fd = fd
        self.name = name
        _pins.add(self)

    def release(self, close: Callable[[int], None] = os.close) -> None:  # which may be gone at the interpreter's end
        """Let go of it."""
        fd, self.fd = self.fd, -1
        if fd != -1:
            close(fd)

    __del__ = release


class _Unfinished(NamedTuple):
    """What was written, and is only to be given a name."""

    pin: Pin
    path: Path
    own: str  # ends a name that no other has

    def drop(self) -> None:
        """Do without it."""
        self.pin.release()
        with contextlib.suppress(OSError):
            os.unlink(self.path)


_pins: "weakref.WeakSet[Pin]" = weakref.WeakSet()
_mappings: "weakref.WeakSet[mmap.mmap]" = weakref.WeakSet()  # which keep a descriptor each


class Files:
    """The files of one store, as whoever writes and reads values sees them. Safe to call from any thread."""

    def __init__(self, folder: Path, durable: bool) -> None:
        self.folder = folder
        self.durable = durable
        self._remembered: OrderedDict[Place, str] = OrderedDict()  # where in memory something was that has a file
        self._synced: set[str] = set()  # the names of files that survive a cut of the power

    def __reduce__(self) -> Any:
        return Files, (self.folder, self.durable)

    def prepare(self) -> None:
        """Make the folder, unless it is there. A worker finds it made."""

    # writing

    def keep(self, data: memoryview) -> tuple[str, bytes, Pin]:
        """Have a file with this content; return its name, the hash of the content, and its pin. Raises OSError."""
        self.prepare()
        place = place_of(data)
        name = self._remembered.get(place) if place is not None else None
        if name is not None:
            pin = self._pinned(name, data)  # a look at every byte, at a tenth of the cost of a hash
            if pin is not None:
                return name, bytes.fromhex(name[:32]), pin
        written: _Unfinished | OSError | None = None
        if len(data) < _WRITTEN_MEANWHILE:
            digest, checksum = hash_of(data), zlib.crc32(data)
        else:
            digest, checksum, written = self._hashed(data)
        name = f"{digest.hex()}.{len(data)}.{checksum:08x}"
        pin = self._pinned(name, data)
        if pin is None:
            if isinstance(written, OSError):
                raise written
            name, pin = self._finish(name, written or self._write(data))
        elif isinstance(written, _Unfinished):
            written.drop()
        if place is not None:
            self._remembered.pop(place, None)
            self._remembered[place] = name
            if len(self._remembered) > _MOST_REMEMBERED:
                self._remembered.popitem(last=False)
        return name, digest, pin

    def keep_result(self, data: memoryview, task: str) -> str:
        """Have a file with a part of the result of a task; return its name. Raises OSError."""
        name = f"{task}.{len(data)}.{zlib.crc32(data):08x}"
        name, pin = self._finish(name, self._write(data), is_shared=False)
        pin.release()
        return name

    def _hashed(self, data: memoryview) -> tuple[bytes, int, "_Unfinished | OSError"]:
        """Return hash and checksum of the content, and what was written meanwhile by a thread of its own."""
        written: list[_Unfinished | OSError] = []
        checksum = 0

        def write() -> None:
            nonlocal checksum
            checksum = zlib.crc32(data)
            try:
                written.append(self._write(data))
            except OSError as error:
                written.append(error)

        thread = threading.Thread(target=write, name="omniq-values")
        thread.start()
        digest = hash_of(data)
        thread.join()
        return digest, checksum, written[0]

    def _pinned(self, name: str, data: memoryview) -> Pin | None:
        """Return the pin of a file that has this name and content; None if there is none, or it is about to go."""
        path = self.folder / name
        try:
            pin = Pin(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), name)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(pin.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            found = os.fstat(pin.fd)
            # The name after the lock: whoever removed it had the lock before.
            if found.st_size == len(data) and os.path.samestat(found, os.lstat(path)) and _is_same(pin.fd, data):
                self._sync(pin)
                return pin
        except (BlockingIOError, FileNotFoundError):
            pass
        except BaseException:
            pin.release()
            raise
        pin.release()
        return None

    def _write(self, data: memoryview) -> "_Unfinished":
        """Write a file, which has no name yet that others know."""
        unfinished = self._begin()
        try:
            at = 0
            while at < len(data):
                at += os.write(unfinished.pin.fd, data[at:])
            if self.durable:
                os.fsync(unfinished.pin.fd)
        except BaseException:
            unfinished.drop()
            raise
        return unfinished

    def _begin(self) -> "_Unfinished":
        """Make a file that is to be written, locked."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        for _ in range(_TRIES):
            own = _new_ending()
            path = self.folder / f"{UNFINISHED}{os.getpid()}-{own}"
            unfinished = _Unfinished(Pin(os.open(path, flags, 0o600), ""), path, own)
            fd = unfinished.pin.fd
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(fd), os.lstat(path)):
                    if os.fstat(fd).st_mode & 0o777 != 0o600:  # an umask that takes more away
                        os.fchmod(fd, 0o600)
                    return unfinished
            except (BlockingIOError, FileNotFoundError):  # before the lock it was taken for one of a dead process
                pass
            except BaseException:
                unfinished.drop()
                raise
            unfinished.drop()
        raise OSError(errno.EAGAIN, "what is made there is removed again and again", str(self.folder))

    def _finish(self, name: str, written: "_Unfinished", is_shared: bool = True) -> tuple[str, Pin]:
        """Give a file this name if it is free and shared, or else one of its own that begins with it."""
        pin = written.pin
        try:
            pin.name = self._give_name(written.path, name, f"{name}.{written.own}", is_shared)
            self._sync(pin)
        except BaseException:
            written.drop()
            raise
        return pin.name, pin

    def _sync(self, pin: Pin) -> None:
        """Have a file and its name survive a cut of the power, if they are to, whoever has written it."""
        if not self.durable or pin.name in self._synced:
            return
        os.fsync(pin.fd)
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        if len(self._synced) >= _MOST_SYNCED:
            self._synced.clear()
        self._synced.add(pin.name)

    def _replaces_damaged(self, fresh: Path, name: str) -> bool:
        """Give a file the name of one that is damaged, as calls that wait refer to that; return whether that was so."""
        with contextlib.suppress(OSError), self._opened(name) as fd:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # whoever removes it by this name has the other lock
            if os.path.samestat(os.fstat(fd), os.lstat(self.folder / name)) and not is_whole(fd, name):
                os.rename(fresh, self.folder / name)
                return True
        return False

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        fd = os.open(self.folder / name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)

    def _give_name(self, fresh: Path, name: str, own: str, is_shared: bool) -> str:
        if is_shared:
            try:
                os.link(fresh, self.folder / name)  # unlike a renaming, it replaces nothing that others have pinned
            except OSError:  # another was faster, what is there is damaged, or the file system has no such links
                if self._replaces_damaged(fresh, name):
                    return name
            else:
                os.unlink(fresh)
                return name
        os.rename(fresh, self.folder / own)
        return own

    # reading

    def open(self, name: str) -> Any:
        """Return what a file holds, as memory that can be changed. Raises ValueLost."""
        path = self.folder / name
        size, checksum = size_of(name), int(name.split(".")[2], 16)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise ValueLost(f"{path} is missing, which holds a value of {size} bytes: {_remedy(name)}") from error
        except OSError as error:
            raise ValueLost(f"{path} cannot be read, which holds a value of {size} bytes: {error.strerror}") from error
        try:
            found = os.fstat(fd)
            if found.st_size != size:
                raise ValueLost(f"{path} has {found.st_size} bytes, and had {size}: {_remedy(name)}")
            memory = _mapped(fd, size)
            if memory is None:
                memory = mmap.mmap(-1, size)
                _fill(fd, memory)
            if (size <= _LOOKED_AT or _may_be_torn(found)) and zlib.crc32(memory) != checksum:
                raise ValueLost(f"{path} is damaged: {_remedy(name)}")
        finally:
            os.close(fd)
        return memory


def size_of(name: str) -> int:
    """Return how many bytes the file of that name holds."""
    return int(name.split(".")[1])


def _remedy(name: str) -> str:
    if name.startswith(OF_TASK):
        return "have the call run again, after `omniq-executor forget` with the name of its function"
    return "submit the call again, which writes it again"


def is_whole(fd: int, name: str) -> bool:
    """Return whether a file, which was just opened, holds what its name says."""
    checksum, at, piece = 0, 0, bytearray(_PIECE)
    while count := os.readv(fd, [piece]):
        checksum = zlib.crc32(memoryview(piece)[:count], checksum)
        at += count
    return (at, f"{checksum:08x}") == (size_of(name), name.split(".")[2])


def names_in(data: bytes) -> list[str]:
    """Return the names of the files to which a stored function, call or result refers."""
    return [name.decode() for name in _NAMES.findall(data)]


def is_name(name: str) -> bool:
    """Return whether a file may be one of a store's values, or what is to be one."""
    return name.startswith(UNFINISHED) or _NAMES.fullmatch(name.encode(errors="replace")) is not None


def place_of(data: memoryview) -> Place | None:
    """Return where in memory a buffer is, as far as that can be told: of numpy's arrays, and of bytes."""
    owner: Any = data.obj
    if type(owner) in (bytes, bytearray):
        return (id(owner), data.nbytes) if len(owner) == data.nbytes else None
    kind = type(owner)
    if kind.__name__ == "ndarray" and kind.__module__ == "numpy" and owner.nbytes == data.nbytes:
        return owner.__array_interface__["data"][0], data.nbytes
    return None


def _is_same(fd: int, data: memoryview) -> bool:
    """Return whether a file, which is as long and was just opened, has the same content."""
    piece, at = bytearray(_PIECE), 0
    while at < len(data):
        count = os.readv(fd, [piece])
        if count != min(_PIECE, len(data) - at):
            return False
        if (piece if count == _PIECE else piece[:count]) != data[at : at + count]:
            return False
        at += count
    return True


def _mapped(fd: int, size: int) -> mmap.mmap | None:
    """Map a file copy on write; None where too many files are open to do so, or it cannot be mapped."""
    needs_fd = sys.version_info < (3, 13)
    if needs_fd and len(_mappings) >= _MOST_MAPPED:
        return None
    more: dict[str, Any] = {} if needs_fd else {"trackfd": False}
    try:
        memory = mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE, **more)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENODEV):
            return None
        raise
    if needs_fd:
        _mappings.add(memory)
    return memory


def _new_ending() -> str:
    return os.urandom(4).hex()


def _fill(fd: int, memory: mmap.mmap) -> None:
    view, at = memoryview(memory), 0
    while at < len(view):
        count = os.readv(fd, [view[at:]])
        if not count:
            return
        at += count


def _may_be_torn(found: os.stat_result) -> bool:
    """Return whether a file was written before the machine was started, or nobody can tell."""
    now = time.time()
    return not now - time.monotonic() < found.st_mtime <= now


def _after_fork_in_child() -> None:
    for pin in list(_pins):  # the locks are the parent's, and would last as long as this process
        pin.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
