"""A look into a folder of files that waits for nobody, see stores/glances.py: it reads what is there, without the lock.

So it may find a file that is being written, and links that are not there yet; the next look finds them.
"""

import os
import time
from pathlib import Path

from ...errors import StoreError
from ...model.task import Status, format_id, parse_id
from ..glances import EARLIER, GLANCE_S, Glance, Wanted
from .counts import after, by_status
from .folders import STATUS_FOLDERS, WAITING
from .journal import read_whole
from .mark import JOURNAL, MARK
from .records import Damaged, Record, from_text

_MOST_BYTES = 1 << 20  # of a task's file


def look(path: Path, wanted: Wanted) -> Glance:
    """Return what is there. Raises StoreError."""
    deadline = time.monotonic() + GLANCE_S
    try:
        if not (path / MARK).exists():
            raise StoreError(f"there is no store at {path}")
        tasks = [_read(path, id).task for id in wanted.ids]
        counts = _count(path, deadline) if wanted.counts else {}
        earlier = _earlier(path, wanted, deadline) if wanted.function else []
        size = (path / JOURNAL).stat().st_size if (path / JOURNAL).exists() else 0
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    return Glance(counts, tasks, earlier, size)


def _read(path: Path, id: int) -> Record:
    file = path / "tasks" / f"{format_id(id)}.json"
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise StoreError(f"{format_id(id)} is too large for a glance")
        return from_text(id, file.read_bytes())
    except FileNotFoundError as error:
        raise StoreError(f"{path} holds no {format_id(id)}") from error
    except Damaged as error:
        raise StoreError(f"{format_id(id)} is being written just now") from error


def _count(path: Path, deadline: float) -> dict[str, dict[Status, int]] | None:
    """Return the counts as the journal has them; where it does not know them, of the links there are."""
    try:
        counts = after(None, read_whole(path / JOURNAL))
    except (FileNotFoundError, ValueError):  # it is being begun, or written
        counts = None
    return _count_links(path, deadline) if counts is None else by_status(counts)


def _count_links(path: Path, deadline: float) -> dict[str, dict[Status, int]] | None:
    found: dict[Status, int] = {}
    for status, folder in [*STATUS_FOLDERS.items(), (Status.PENDING, WAITING)]:
        with os.scandir(path / folder) as entries:
            for at, _ in enumerate(entries, 1):
                found[status] = found.get(status, 0) + 1
                if at % 1000 == 0 and time.monotonic() > deadline:
                    return None
    return {"": dict(sorted(found.items()))} if found else {}


def _earlier(path: Path, wanted: Wanted, deadline: float) -> list[float]:
    """Return how long calls of a function took, of the newest that completed."""
    found: list[float] = []
    for name in sorted(os.listdir(path / STATUS_FOLDERS[Status.COMPLETED]), reverse=True):
        if len(found) == EARLIER or time.monotonic() > deadline:
            break
        try:
            task = _read(path, parse_id(name.removesuffix(".json"))).task
        except (StoreError, ValueError):
            continue
        if task.func_path == wanted.function and task.run != wanted.run and task.started_at and task.finished_at:
            found.append((task.finished_at - task.started_at) / 1e6)
    return found
