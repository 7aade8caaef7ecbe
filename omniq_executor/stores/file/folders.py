"""The folders of the file store: one with the tasks, and one for each status with links to them.

    tasks/task-….json        the truth
    pending/task-….json      a link to ../tasks/task-….json; likewise running, completed, failed, cancelled
    waiting/task-….json      likewise, of what is PENDING and waits for other tasks, instead of in pending
    keys/….json              likewise, by the hash of queue and key
    valued/task-….json       likewise, of tasks whose arguments refer to files with large values
    functions/….json         a function, by its digest
    runs/….json, sessions/   see runs.py
    owners/                  see owners.py
    broken/                  what was found and is nothing of these

The links are an index of the truth, and `check()` makes it agree. Files are reached from handles of
their folders, and no link is followed where a file belongs.
"""

import contextlib
import errno
import json
import logging
import os
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

from ... import values
from ...model.task import Status, Task, format_id, is_waiting, parse_id
from .. import permissions
from ..base import Problem
from .records import Damaged, Record, from_text

STATUS_FOLDERS = {status: status.name.lower() for status in Status}
WAITING = "waiting"
_LINK_FOLDERS = (*STATUS_FOLDERS.values(), WAITING)
VALUED = "valued"
TASK_FOLDERS = ("tasks", *_LINK_FOLDERS, "keys", VALUED)
FOLDERS = (*TASK_FOLDERS, "functions", "runs", "sessions", "owners", "broken")
_SUFFIX = ".json"
_READ_BYTES = 1 << 16

_log = logging.getLogger("omniq_executor")


class Folders:
    """See the module's docstring. Every method is called under the store's lock, and may raise OSError."""

    def __init__(self, root: Path, durable: bool) -> None:
        self.root = root
        self.repairs: list[Problem] = []  # what was not as it should be, since `check()` of the store asked last
        self.has_lost = False  # whether a task was put aside, until somebody has said so in the journal
        self._durable = durable
        self._fds: dict[str, int] = {}

    def has_tasks(self) -> bool:
        """Return whether there is anything where tasks are; it may be asked before `open()`."""
        try:
            with os.scandir(self.root / "tasks") as entries:
                return next(entries, None) is not None
        except FileNotFoundError:
            return False

    def missing(self) -> bool:
        """Return whether `open()` will make some."""
        return not all((self.root / name).exists() for name in FOLDERS)

    def open(self) -> None:
        """Make those that are missing, and get hold of all. Raises StoreError where others can write one."""
        permissions.check_private(self.root / "values")  # which is made when it is needed
        for name in FOLDERS:
            permissions.make_folder(self.root / name)
            permissions.check_private(self.root / name)
            if name not in ("owners", "runs", "sessions", "functions"):
                self._fds[name] = os.open(self.root / name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.popitem()[1])

    # tasks

    def read(self, number: int) -> Record | None:
        """Return a task, or None if there is none. Raises Damaged."""
        try:
            # Not to wait for whoever writes it, where somebody has put a pipe there.
            fd = os.open(_name(number), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=self._fds["tasks"])
            text = _read_and_close(fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR):
                raise Damaged("it is not a file") from error
            raise
        return from_text(number, text)

    def create(self, record: Record, text: bytes) -> None:
        """Write a new task and its links, or nothing."""
        made: list[tuple[str, str]] = []
        try:
            for folder, name in self._places(record):
                if folder != "tasks":
                    self._link(folder, name, _name(record.task.id))
                made.append((folder, name))
                if folder == "tasks":
                    self._write(name, text, os.O_CREAT | os.O_EXCL)
        except OSError as error:
            if len(made) > 1 or not isinstance(error, FileExistsError):  # not a task that was there before
                for folder, name in made:
                    self._unlink(folder, name)
            raise

    def remove(self, record: Record) -> None:
        """Undo `create()`."""
        for folder, name in self._places(record):
            self._unlink(folder, name)

    def _places(self, record: Record) -> list[tuple[str, str]]:
        name = _name(record.task.id)
        places = [("tasks", name), (_folder(record.task), name)]
        if record.task.key is not None:
            places.append(("keys", _key_name(record.task.queue, record.task.key)))
        if refers(record.task.args):
            places.append((VALUED, name))
        return places

    def rewrite(self, old: Record, new: Record, text: bytes) -> None:
        """Write a task that has changed, and move its link."""
        if new.is_removed:
            self.remove(old)
            return
        name = _name(new.task.id)
        self._write(name, text, 0, shorter=len(text) < old.size)
        source, target = _folder(old.task), _folder(new.task)
        if target != source:
            try:
                os.rename(name, name, src_dir_fd=self._fds[source], dst_dir_fd=self._fds[target])
            except FileNotFoundError:  # somebody has removed the link
                self._link(target, name, name)

    def restore(self, record: Record, text: bytes) -> None:
        """Write a task and its links unless it is there already, as this text has it or a later one."""
        number, task = record.task.id, record.task
        if record.is_removed:
            for folder in (*_LINK_FOLDERS, VALUED):
                self._unlink(folder, _name(number))
            self.remove(record)
            return
        try:
            found = self.read(number)
        except Damaged:
            self._unlink("tasks", _name(number))
            found = None
        if found is None or found.version < record.version:
            self._write(_name(number), text, os.O_CREAT, shorter=True)
            self.link(record)
        elif found.version == record.version:
            self.link(record)
        if task.key is not None:
            with contextlib.suppress(FileExistsError):
                self._link("keys", _key_name(task.queue, task.key), _name(number))

    def link(self, record: Record) -> None:
        """Have exactly the one link of a task that its status asks for."""
        name, right = _name(record.task.id), _folder(record.task)
        for folder in _LINK_FOLDERS:
            if folder != right or not self._is_link(folder, name):
                self._unlink(folder, name)
        with contextlib.suppress(FileExistsError):
            self._link(right, name, name)
        if refers(record.task.args):
            with contextlib.suppress(FileExistsError):
                self._link(VALUED, name, name)

    def names(self, folder: str) -> list[int]:
        """Return the tasks that are linked in the folder of a status, or are in `tasks`, oldest first."""
        numbers = map(_number, os.listdir(self._fds[folder]))
        return sorted(number for number in numbers if number is not None)

    def first(self) -> int | None:
        """Return the oldest task."""
        # Names are in the order of the numbers, and to parse them all would take three times as long.
        names = sorted(os.listdir(self._fds["tasks"]))
        return next((number for name in names if (number := _number(name)) is not None), None)

    def scan(self) -> Iterator[int]:
        """Give the tasks in any order, while others come and go."""
        with os.scandir(self.root / "tasks") as entries:  # with an offset of its own, unlike a look at the open folder
            for entry in entries:
                number = _number(entry.name)
                if number is not None:
                    yield number

    def by_key(self, queue: str, key: str) -> int | None:
        """Return the task with a key."""
        try:
            target = os.readlink(_key_name(queue, key), dir_fd=self._fds["keys"])
        except FileNotFoundError:
            return None
        return _number(target.removeprefix("../tasks/"))

    def free_key(self, queue: str, key: str) -> None:
        """Put aside a link of which the task is gone."""
        self.quarantine("keys", _key_name(queue, key), "the task that it links to is gone")

    def sync(self, numbers: set[int]) -> None:
        """Have the files of tasks survive a cut of the power, and all folders."""
        for number in numbers:
            with contextlib.suppress(FileNotFoundError):
                fd = os.open(_name(number), os.O_RDONLY | os.O_NOFOLLOW, dir_fd=self._fds["tasks"])
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)
        for name in FOLDERS:
            permissions.sync(self.root / name)

    # other files

    def read_json(self, folder: str, name: str, fields: Set[str] = frozenset()) -> dict[str, Any] | None:
        """Return the object with these fields in a file, or None if it has none: a cut of power may empty it."""
        try:
            content = json.loads(_read_and_close(os.open(self.root / folder / name, os.O_RDONLY | os.O_NOFOLLOW)))
        except (FileNotFoundError, ValueError):
            return None
        return content if isinstance(content, dict) and fields <= content.keys() else None

    def write_json(self, folder: str, name: str, content: Any) -> None:
        """Write a file whole or not at all."""
        text = json.dumps(content, indent=2) + "\n"
        permissions.write_whole(self.root / folder / name, text.encode(), self._durable)

    def json_names(self, folder: str) -> Iterator[str]:
        """Give the files of a folder, without their suffix."""
        for name in sorted(os.listdir(self.root / folder)):
            if name.endswith(_SUFFIX):
                yield name.removesuffix(_SUFFIX)

    def numbers(self, folder: str) -> list[int]:
        """Return those of them that are named by a number, by which others are no owner, session or run."""
        return [int(name) for name in self.json_names(folder) if name.isdecimal()]

    # repairs

    def check(self) -> None:
        """Have every task linked once, from the folder of its status, and quarantine what is no task."""
        tasks = set()
        with os.scandir(self._fds["tasks"]) as entries:
            for entry in entries:
                if _number(entry.name) is not None and entry.is_file(follow_symlinks=False):
                    tasks.add(entry.name)
                else:
                    self.quarantine("tasks", entry.name, "it is not a task")
        linked: dict[str, int] = dict.fromkeys(tasks, 0)
        for folder in _LINK_FOLDERS:
            for name in os.listdir(self._fds[folder]):
                if not self._is_link(folder, name):
                    self.quarantine(folder, name, "it is not a link to a task of the same name")
                elif name in linked:
                    linked[name] += 1
                else:
                    self.quarantine(folder, name, "the task that it links to is gone")
        for name in os.listdir(self._fds["keys"]):
            target = self._target("keys", name)
            if target is None or target.removeprefix("../tasks/") not in tasks:
                self.quarantine("keys", name, "the task that it links to is gone")
        for name in os.listdir(self._fds[VALUED]):
            if name not in tasks:  # somebody died over it
                self._unlink(VALUED, name)
        for name, links in linked.items():
            if links != 1:
                self.repairs.append(Problem(f"tasks/{name} had {links or 'no'} links from the folders of states", True))
                self.relink(_number(name) or 0)

    def check_link(self, record: Record) -> None:
        """Have a task linked from the folder of its status."""
        name = _name(record.task.id)
        if not self._is_link(_folder(record.task), name):
            self.repairs.append(Problem(f"tasks/{name} was linked from the folder of another state", True))
            self.link(record)
        if refers(record.task.args) and not self._is_link(VALUED, name):
            self.repairs.append(Problem(f"tasks/{name} was not linked from {VALUED}", True))
            self.link(record)

    def check_keys(self, keys: dict[tuple[str, str], int]) -> None:
        """Have exactly these keys linked to these tasks."""
        names = {_key_name(*key): number for key, number in keys.items()}
        for name in os.listdir(self._fds["keys"]):
            if name not in names:
                self.quarantine("keys", name, "the task that it links to has another key")
        for name, number in names.items():
            if self._target("keys", name) != f"../tasks/{_name(number)}":
                self.repairs.append(Problem(f"the key of tasks/{_name(number)} was not linked to it", True))
                self._unlink("keys", name)
                self._link("keys", name, _name(number))

    def check_json(self, folder: str, fields: set[str], loss: str) -> list[str]:
        """Return the files of a folder that hold an object with these fields; quarantine others, which is a loss."""
        good = []
        for name in sorted(os.listdir(self.root / folder)):
            if name.endswith(".new"):  # somebody died over it
                (self.root / folder / name).unlink()
            elif name.endswith(_SUFFIX):
                with contextlib.suppress(OSError):
                    if self.read_json(folder, name, fields) is not None:
                        good.append(name.removesuffix(_SUFFIX))
                        continue
                self.quarantine(folder, name, f"it is damaged; {loss}", is_lost=True)
        return good

    def relink(self, number: int) -> Record | None:
        """Read a task and link it as its text says; one that is damaged is quarantined, and None returned."""
        try:
            record = self.read(number)
        except Damaged as error:
            self.quarantine("tasks", _name(number), str(error), is_lost=True)
            for folder in _LINK_FOLDERS:
                self._unlink(folder, _name(number))
            return None
        if record is not None:
            self.link(record)
        return record

    def quarantine(self, folder: str, name: str, why: str, is_lost: bool = False) -> None:
        """Move something to `broken/` under a name that is free, and say so."""
        taken = set(os.listdir(self._fds["broken"]))
        quarantined = next(
            free for n in range(len(taken) + 1) if (free := f"{folder}.{name}{f'.{n}' if n else ''}") not in taken
        )
        os.rename(self.root / folder / name, quarantined, dst_dir_fd=self._fds["broken"])
        self.has_lost = self.has_lost or (folder == "tasks" and _number(name) is not None)
        self.repairs.append(Problem(f"{folder}/{name} is moved to broken/{quarantined}: {why}", not is_lost))
        _log.warning("%s is moved to broken/%s: %s", self.root / folder / name, quarantined, why)

    # underneath

    def _write(self, name: str, text: bytes, flags: int, shorter: bool = False) -> None:
        # In place, by one write: to rename a new file over the old one costs ten times as much. A reader
        # without the lock may find half of it, and a process may die there; the journal has it whole.
        fd = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | flags, 0o600, dir_fd=self._fds["tasks"])
        try:
            if flags:
                permissions.have_mode(fd)
            permissions.write_all(fd, text)
            if shorter:
                os.ftruncate(fd, len(text))
        finally:
            os.close(fd)

    def _link(self, folder: str, name: str, task: str) -> None:
        os.symlink(f"../tasks/{task}", name, dir_fd=self._fds[folder])

    def _unlink(self, folder: str, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._fds[folder])

    def _is_link(self, folder: str, name: str) -> bool:
        return self._target(folder, name) == f"../tasks/{name}"

    def _target(self, folder: str, name: str) -> str | None:
        try:
            return os.readlink(name, dir_fd=self._fds[folder])
        except OSError:  # there is none, or it is no link
            return None


def refers(stored: str | bytes | None) -> bool:
    """Return whether arguments, or a result, refer to files with large values."""
    return isinstance(stored, bytes) and values.is_reference(stored)


def _folder(task: Task) -> str:
    """Return the folder from which a task is linked."""
    return WAITING if is_waiting(task) else STATUS_FOLDERS[task.status]


def _name(number: int) -> str:
    return format_id(number) + _SUFFIX


def _number(name: str) -> int | None:
    try:
        return parse_id(name.removesuffix(_SUFFIX)) if name.endswith(_SUFFIX) else None
    except ValueError:
        return None


def _key_name(queue: str, key: str) -> str:
    import hashlib  # 5 ms, and most calls have no key

    text = json.dumps([queue, key])
    return hashlib.sha256(text.encode()).hexdigest() + _SUFFIX


def _read_and_close(fd: int) -> bytes:
    try:
        pieces = [os.read(fd, _READ_BYTES)]
        while len(pieces[-1]) == _READ_BYTES:
            pieces.append(os.read(fd, _READ_BYTES))
        return b"".join(pieces)
    finally:
        os.close(fd)
