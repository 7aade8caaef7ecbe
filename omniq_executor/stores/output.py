"""What calls wrote to stdout, stderr and logging: a plain file for each attempt, in a folder beside the tasks.

    FOLDER/task-0d5kq3v7x8m2a.1.log    what the first attempt of that task wrote, in the order of writing

The files are part of no transaction. A worker writes one while the call runs (engines/capture.py), so what
was written is there however the worker ends, and can be read meanwhile. Its claim was committed before:
so a file whose task is not in the store is of a task that was purged, and can go whenever it is found.
A file without content, of a call that was killed before it wrote anything, is as good as none.
"""

import contextlib
import logging
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from ..errors import StoreError
from ..model.task import log_name, parse_id
from . import permissions

_ENDING = ".log"
_SETTLED_S = 1.0  # a folder that changed that lately may change again without another time

_log = logging.getLogger("omniq_executor")


class Output:
    """The files of one store. The folder is there once something was to be kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._attempts: dict[int, list[int]] = {}
        self._indexed = -1  # when the folder had changed last as that was made, or -1

    def prepare(self) -> Path:
        """Make the folder, unless it is there; returns it. Raises StoreError where that is not possible."""
        with permissions.explained(f"{self.folder} cannot be made"):
            permissions.make_folder(self.folder)
            permissions.check_private(self.folder)
        return self.folder

    def attempts(self, number: int, most: int | None = None) -> list[int]:
        """Return the attempts of a task that wrote something, in order.

        `most` is how many it has had, where that is known: it saves a look at all files.
        """
        if most is not None:
            candidates: Iterable[int] = range(1, most + 1)
        else:
            with permissions.explained(f"{self.folder} cannot be looked at"):
                candidates = sorted(self._index().get(number, ()))
        return [attempt for attempt in candidates if self._size(log_name(number, attempt))]

    def read(self, number: int, attempt: int, start: int = 0, most: int = -1) -> bytes:
        """Return what an attempt has written so far, from byte `start` on; at most so many bytes of it."""
        try:
            with self._opened() as folder:
                fd = os.open(log_name(number, attempt), os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder)
        except (FileNotFoundError, NotADirectoryError):
            return b""
        except OSError as error:
            raise StoreError(f"what was written cannot be read: {permissions.explain(error)}") from error
        with open(fd, "rb") as file:
            file.seek(start)
            return file.read(most)

    def remove_strays(self, ids: Callable[[], Iterable[int]]) -> int:
        """Remove what was written by tasks that are not among `ids()`, which the store has; returns how many files."""
        removed = 0
        try:
            files = list(self._files())  # before the look at the tasks: the file of a new call comes after its task
            if not files:
                return 0
            there = set(ids())
            with self._opened() as folder:
                for number, _, name in files:
                    if number not in there:
                        with contextlib.suppress(FileNotFoundError):
                            os.unlink(name, dir_fd=folder)
                            removed += 1
        except OSError as error:
            # Their tasks are gone, and it must not look as if they were not.
            _log.warning("%s: what tasks wrote that are gone is removed later: %s", self.folder, error)
        return removed

    def remove(self, attempts: Mapping[int, int]) -> None:
        """Remove what was written by tasks that are gone, of which each had so many attempts."""
        try:
            with self._opened() as folder:
                for number, count in attempts.items():
                    for attempt in range(1, count + 1):
                        with contextlib.suppress(FileNotFoundError):
                            os.unlink(log_name(number, attempt), dir_fd=folder)
        except (FileNotFoundError, NotADirectoryError):  # nothing was ever kept
            return
        except OSError as error:
            _log.warning("%s: what tasks wrote that are gone is removed later: %s", self.folder, error)

    def take_in(self, other: "Output") -> None:
        """Have a copy of all that `other` has; it may go on growing meanwhile.

        What was copied before, and has not grown since, is not copied again. Raises StoreError.
        """
        copied = False
        with permissions.explained(f"{other.folder} cannot be copied to {self.folder}"):
            for _, _, name in list(other._files()):
                if other._size(name) != self._size(name):
                    self.prepare()
                    with contextlib.suppress(FileNotFoundError):  # it was purged
                        _copy(other.folder / name, self.folder / name)
                        copied = True
            if copied:
                os.sync()  # a file after the other would take minutes

    def move_to(self, other: "Output") -> None:
        """Move all files to another folder on the same disk; those of the same name there are replaced."""
        with permissions.explained(f"{self.folder} cannot be moved to {other.folder}"):
            for _, _, name in list(self._files()):
                other.prepare()
                os.replace(self.folder / name, other.folder / name)

    def _index(self) -> dict[int, list[int]]:
        """Return the attempts of all tasks, which is kept until the folder changes."""
        changed_at = os.stat(self.folder).st_mtime_ns if self.folder.exists() else 0
        if changed_at != self._indexed:
            self._attempts = defaultdict(list)
            for number, attempt, _ in self._files():
                self._attempts[number].append(attempt)
            self._indexed = changed_at if changed_at < time.time_ns() - _SETTLED_S * 1e9 else -1
        return self._attempts

    def _files(self) -> Iterator[tuple[int, int, str]]:
        """Give the task, the attempt and the name of each file. Others that lie there are not ours."""
        try:
            with self._opened() as folder:
                names = os.listdir(folder)
        except (FileNotFoundError, NotADirectoryError):
            return
        for name in names:
            number, _, attempt = name.removesuffix(_ENDING).partition(".")
            if name.endswith(_ENDING) and attempt.isdecimal():
                with contextlib.suppress(ValueError):
                    yield parse_id(number), int(attempt), name

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        # No link is followed: a store may have been copied from elsewhere.
        fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            yield fd
        finally:
            os.close(fd)

    def _size(self, name: str) -> int:
        try:
            return os.lstat(self.folder / name).st_size
        except OSError:  # there is none
            return 0


def _copy(source: Path, target: Path) -> None:
    with contextlib.suppress(FileExistsError):
        permissions.make_file(target)
    with (
        open(os.open(source, os.O_RDONLY | os.O_NOFOLLOW), "rb") as old,
        open(os.open(target, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW), "wb") as new,
    ):
        shutil.copyfileobj(old, new)
