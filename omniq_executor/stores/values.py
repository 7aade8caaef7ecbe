"""The files of a store with large values, see ../value_files.py: how they are copied, checked and removed.

A result goes with its task. What calls and functions refer to is removed once nothing does, under a lock that nobody
can have who is about to refer to it; what was being written goes when its writer is dead, whose lock the system has let
go of. Both are looked for whenever a store is purged or checked, or something of it expires, whoever has left them.
"""

import contextlib
import logging
import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from .. import value_files
from ..model.task import parse_id
from . import permissions

if sys.platform != "win32":  # where the package is only meant to be imported
    import fcntl

_AT_A_TIME = 100  # files that are locked, or tasks that are looked at

_log = logging.getLogger("omniq_executor")


class ValueFiles(value_files.Files):
    """The files of one store. The folder is there once a value was to be kept, or a worker may have one."""

    def prepare(self) -> None:
        """Make the folder, unless it is there. Raises StoreError where that is not possible."""
        with permissions.explained(f"{self.folder} cannot be made"):
            permissions.make_folder(self.folder)
            permissions.check_private(self.folder)

    def open(self, name: str) -> Any:
        """Return what a file holds, as memory that can be changed. Raises ValueLost, and StoreError."""
        permissions.check_private(self.folder)  # what others could have written may run code of theirs
        return super().open(name)

    def results(self) -> dict[int, list[str]]:
        """Return the names of the files that hold results, by task."""
        found: dict[int, list[str]] = defaultdict(list)
        for name in self._names():
            if name.startswith(value_files.OF_TASK):
                with contextlib.suppress(ValueError):
                    found[parse_id(name.partition(".")[0])].append(name)
        return found

    def remove_results(self, ids: Iterable[int], results: Mapping[int, Collection[str]]) -> None:
        """Remove what tasks returned that are gone, of what `results()` has."""
        for id in ids:
            for name in results.get(id, ()):
                self._remove(name)

    def remove_left_results(self, of_tasks: Callable[[Collection[int]], Mapping[int, str | bytes | None]]) -> int:
        """Remove results of which no task knows; return how many.

        `of_tasks` gives for those tasks that are there, and finished, what they have as their result, and None for
        those that are not finished: what they write is not known yet.
        """
        results = self.results()  # before the look at the tasks: what comes later is not touched
        removed, ids = 0, list(results)
        for first in range(0, len(ids), _AT_A_TIME):
            some = ids[first : first + _AT_A_TIME]
            known = of_tasks(some)
            for id in some:
                result = known.get(id, b"")
                for name in results[id] if result is not None else ():
                    if not isinstance(result, bytes) or name.encode() not in result:
                        removed += self._remove(name)
        return removed

    def remove_unused(self, used: Callable[[], Collection[str]]) -> int:
        """Remove what nothing refers to, and what the dead were writing; return how many files.

        `used` gives the names to which stored functions and calls refer, as they are when it is asked.
        """
        names = [name for name in self._names() if not name.startswith(value_files.OF_TASK)]
        unfinished = [name for name in names if name.startswith(value_files.UNFINISHED)]
        removed = self._remove_unlocked(unfinished, set)  # first: one may be the same file as one of the others
        others = set(names).difference(unfinished)
        if others:
            removed += self._remove_unlocked(others.difference(used()), used)
        return removed

    def _remove_unlocked(self, names: Iterable[str], used: Callable[[], Collection[str]]) -> int:
        """Remove what nobody has locked, and is not in use; return how many."""
        removed, left = 0, list(names)
        for first in range(0, len(left), _AT_A_TIME):
            with contextlib.ExitStack() as locks:
                some = [name for name in left[first : first + _AT_A_TIME] if self._lock(name, locks)]
                # Again, with the locks: who had one before has committed what refers to the file, or never will.
                known = used() if some else ()
                removed += sum(self._remove(name) for name in some if name not in known)
        return removed

    def damaged(self) -> Iterator[str]:
        """Give the names of files that are not what they were."""
        for name in self._names():
            if not name.startswith(value_files.UNFINISHED):
                with contextlib.suppress(FileNotFoundError), self._opened(name) as fd:
                    if not value_files.is_whole(fd, name):
                        yield name

    def missing(self, names: Iterable[str]) -> list[str]:
        """Return which of these files are not there."""
        there = set(self._names())
        return sorted(set(names) - there)

    def take_in(self, other: "ValueFiles") -> None:
        """Have a copy of all that `other` has, and this one has not. Raises StoreError."""
        with permissions.explained(f"{other.folder} cannot be copied to {self.folder}"):
            there, copied = set(self._names()), False
            for name in list(other._names()):
                if name not in there and not name.startswith(value_files.UNFINISHED):
                    self.prepare()
                    with contextlib.suppress(FileNotFoundError):  # it was removed
                        self._copy(other, name)
                        copied = True
            if copied:
                os.sync()  # a file after the other would take minutes

    def move_to(self, other: "ValueFiles") -> None:
        """Move all files to another folder on the same disk."""
        with permissions.explained(f"{self.folder} cannot be moved to {other.folder}"):
            for name in list(self._names()):
                other.prepare()
                os.replace(self.folder / name, other.folder / name)

    def _copy(self, other: "ValueFiles", name: str) -> None:
        fresh = self.folder / f"{value_files.UNFINISHED}{name}"
        fresh.unlink(missing_ok=True)
        with other._opened(name) as source:
            permissions.make_file(fresh)
            with open(source, "rb", closefd=False) as old, fresh.open("r+b") as new:
                fcntl.flock(new, fcntl.LOCK_SH | fcntl.LOCK_NB)
                shutil.copyfileobj(old, new)
                new.flush()
                os.rename(fresh, self.folder / name)

    def _names(self) -> Iterator[str]:
        """Give the names of the files. Others that lie there are not ours."""
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self.folder):
                if value_files.is_name(name):
                    yield name

    def _lock(self, name: str, locks: contextlib.ExitStack) -> bool:
        """Lock a file that is to be removed; return False if somebody uses it, or it is gone."""
        with contextlib.suppress(FileNotFoundError, BlockingIOError), contextlib.ExitStack() as undo:
            fcntl.flock(undo.enter_context(self._opened(name)), fcntl.LOCK_EX | fcntl.LOCK_NB)
            locks.push(undo.pop_all())
            return True
        return False

    def _remove(self, name: str) -> bool:
        try:
            os.unlink(self.folder / name)
        except FileNotFoundError:
            return False
        except OSError as error:
            _log.warning("%s: a value that nothing refers to is removed later: %s", self.folder, error)
            return False
        return True
