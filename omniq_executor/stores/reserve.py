"""The space of a store on the disk: how much it takes, and some for outcomes that come when the disk is full.

Calls that run then are not lost: what they have returned, if it is small, fits into the space that is let go of.
"""

import contextlib
import os
from pathlib import Path

from . import permissions

RESERVE_BYTES = 1 << 20


class Reserve:
    """See the module's docstring. Where it cannot be had the store does without."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def take(self) -> None:
        """Have it, unless it is there already."""
        if not hasattr(os, "posix_fallocate"):  # as on macOS
            return
        with contextlib.suppress(OSError):
            permissions.make_file(self._path)
            try:
                # Given by the file system without a byte being written: that took 11 ms of each new store.
                with self._path.open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)
            except OSError:
                self.let_go()

    def let_go(self) -> None:
        """Have it be free space. The next owner takes it again."""
        with contextlib.suppress(OSError):
            self._path.unlink()


def size_on_disk(path: Path) -> int:
    """Return how many bytes of the disk a file takes, or a folder with all that is in it; 0 where there is none."""
    try:
        size = os.lstat(path).st_blocks * 512
        if path.is_dir() and not path.is_symlink():
            with os.scandir(path) as entries:
                size += sum(size_on_disk(Path(entry.path)) for entry in entries)
    except FileNotFoundError:  # it has just gone
        return 0
    return size
