"""Who may write a store. Whoever can, can run code as its user: functions and values are pickles.

So a store is private. What we make is 0700 (folders) and 0600 (files) whatever the umask, and what is
there already is looked at before anything in it is read: see docs/security.md for the rules and why.
"""

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import StoreError

BUSY_TIMEOUT_S = 30.0  # how long a store's locks are waited for
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH  # with an access list, the group's bits show what it grants at most


def check_private(path: Path) -> None:
    """Refuse, with StoreError, a file or folder of a store that another user could have written.

    It must be no symbolic link, belong to this process's user or to root, and be writable by its
    owner alone. What is missing is fine. Raises OSError where it cannot be looked at.
    """
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return
    if stat.S_ISLNK(found.st_mode):
        raise StoreError(
            f"{path} is a symbolic link, which a store does not follow: give the path of what it points to"
        )
    if not hasattr(os, "geteuid"):
        return  # where there are no users to tell apart by number
    if found.st_uid not in (os.geteuid(), 0):
        raise StoreError(
            f"{path} belongs to the user {found.st_uid}, and this process to {os.geteuid()}: whoever can write a store"
            f" can run code in your name. Use a store of your own, or, if you trust all that is in it,"
            f" `chown {os.geteuid()} {path}`"
        )
    if found.st_mode & _WRITABLE_BY_OTHERS:
        raise StoreError(
            f"{path} can be written by other users (its mode is {stat.S_IMODE(found.st_mode):04o}): whoever can write a"
            f" store can run code in your name. If you trust all that is in it, `chmod go-w {path}`"
        )


def check_place(folder: Path) -> None:
    """Refuse, with StoreError, to have a store right in a folder where everybody can exchange files of others.

    A folder such as /tmp, where only the owner of a file can remove it, is fine, and so is one that
    a group can write: see docs/security.md.
    """
    try:
        mode = folder.stat().st_mode
    except OSError:
        return  # it is not there, and will be made private; or whoever opens the store says why not
    if stat.S_ISDIR(mode) and mode & stat.S_IWOTH and not mode & stat.S_ISVTX and hasattr(os, "geteuid"):
        raise StoreError(
            f"everybody can exchange files in {folder} (its mode is {stat.S_IMODE(mode):04o}), and whoever can write a"
            f" store can run code in your name: give the store a folder of its own in it, which is made private, or"
            f" `chmod o-w {folder}`"
        )


def make_folder(folder: Path) -> None:
    """Make a folder that only its user can look into, whatever the umask, unless it is there."""
    if not folder.exists():
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            folder.chmod(0o700)  # an umask can only take away; here it may have taken too much


def make_folders(folder: Path) -> None:
    """Make such a folder with all that it is in."""
    for parent in reversed((folder, *folder.parents)):
        make_folder(parent)


def make_file(path: Path) -> None:
    """Make an empty file that only its user can read, whatever the umask. Raises FileExistsError if it is there."""
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    try:
        have_mode(fd)
    finally:
        os.close(fd)


def have_mode(fd: int) -> None:
    """Have a file that was just made be read and written by its user alone, whatever the umask."""
    if os.fstat(fd).st_mode & 0o777 != 0o600:  # a look costs less than the change, which is hardly ever needed
        os.fchmod(fd, 0o600)


def write_all(fd: int, data: bytes) -> None:
    """Write all of it, where the system may take a part at a time."""
    written = os.write(fd, data)
    while written < len(data):
        written += os.write(fd, memoryview(data)[written:])


def write_whole(path: Path, data: bytes, durable: bool) -> None:
    """Have a file hold this, whole or not at all: it is written beside it, and takes its place."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    fd = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        have_mode(fd)
        write_all(fd, data)
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(fresh, path)
    if durable:
        sync(path.parent)


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Raise the system's errors, and those of locks, as a StoreError that begins with `what`."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{what}: {explain(error)}") from error


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Give the path to make something at that appears at `path`, whole, when the block is left without an error.

    Raises StoreError if there is something at `path`, or if the system does not allow it.
    """
    taken = f"{path} is there already; give a path that is free"
    if os.path.lexists(path):
        raise StoreError(taken)
    path = path.absolute()
    check_place(path.parent)
    with explained(f"{path} cannot be made"):
        make_folders(path.parent)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent, ignore_cleanup_errors=True) as where:
            fresh = Path(where, path.name)
            yield fresh
            if fresh.is_dir():
                os.rename(fresh, path)  # refuses to replace what is not empty
                return
            sync(fresh)
            try:
                os.link(fresh, path)  # unlike a renaming, it replaces nothing
            except FileExistsError as error:
                raise StoreError(taken) from error
            except OSError:  # not every file system has such links
                os.rename(fresh, path)


def sync(path: Path) -> None:
    """Have the content of a file, or the names in a folder, survive a cut of the power."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def explain(error: OSError) -> str:
    """Say what an error of the system's, or of a lock, was about, and what can be done."""
    from filelock import Timeout  # see owners.py

    if isinstance(error, Timeout):
        return f"another process has held it for more than {BUSY_TIMEOUT_S:.0f} s"
    remedy = {
        errno.EMFILE: "close some, or raise the limit (`ulimit -n`)",
        errno.ENFILE: "close some, or raise the system's limit",
        errno.ENOSPC: "free some space, or some files; nothing that was acknowledged is lost",
        errno.EDQUOT: "free some space; nothing that was acknowledged is lost",
        errno.EIO: "check the disk; nothing that was acknowledged is lost as far as it kept what was synced",
    }.get(error.errno or 0, "choose a folder that you can write to")
    where = f" ({error.filename})" if error.filename else ""
    return f"{error.strerror}{where}; {remedy}"


def why_nothing_opens(folder: Path) -> str:
    """Return the probable reason for which a library, that does not tell, could not open a file in a folder."""
    try:
        os.close(os.open(folder, os.O_RDONLY))
        disk = os.statvfs(folder)
    except OSError as error:
        return explain(error)
    if disk.f_files and not disk.f_favail:
        return explain(OSError(errno.ENOSPC, "no more files can be made on that disk", str(folder)))
    return "check the folder, its permissions, and how many files may be open (`ulimit -n`)"
