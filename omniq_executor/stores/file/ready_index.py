"""The order in which the tasks of a file store are claimed: in memory, and in the file `order`.

    place    of a task: minus its priority, when it is due, its id; the least is claimed first
    lane     the tasks of one queue, one run and one tier (see model.tier()), which are claimed one after the other
    order    a line for each task that became PENDING, so that a process need not read their files to know

The file is only a help. A line is written before the turn that it belongs to is committed, so whoever dies
leaves no task without one. If there is such a task all the same, since somebody has removed or damaged the
file, the task's own is read. A line may be out of date, or of a turn that never came, and so may a
place in a lane: whoever takes one out compares it with the task. Therefore a task has all places that its
lines name, of which one is right.
"""

import contextlib
import heapq
import json
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from ...model.task import Task, tier
from .. import permissions
from .journal import read_all

Place = tuple[int, int, int]  # minus the priority, eta, id
Lane = tuple[str, int, int]  # queue, run, tier
Noted = dict[int, set[tuple[Lane, Place]]]  # by task
_TYPES = (int, int, int, str, int, int)  # of a line: a place and a lane
_LONG = 1 << 20  # bytes
_FEW = 10_000  # lines


def place_of(task: Task) -> Place:
    """Return where a PENDING task stands in the order."""
    return -task.priority, task.eta, task.id


def lane_of(task: Task) -> Lane:
    """Return the lane of a PENDING task."""
    return task.queue, task.run, tier(task)


class Places:
    """The PENDING tasks of a lane in the order of claims. It may hold places that are out of date."""

    def __init__(self) -> None:
        self._due: list[Place] = []
        self._later: list[tuple[int, Place]] = []  # by eta

    def push(self, place: Place) -> None:
        """Put a place in, which may be there already."""
        heapq.heappush(self._due, place)

    def first(self, now: int) -> Place | None:
        """Return the first place that is due, or None."""
        while self._later and self._later[0][0] <= now:
            heapq.heappush(self._due, heapq.heappop(self._later)[1])
        while self._due and self._due[0][1] > now:
            place = heapq.heappop(self._due)
            heapq.heappush(self._later, (place[1], place))
        return self._due[0] if self._due else None

    def drop_first(self, now: int) -> Place | None:
        """Take out what `first()` gave; returns what it gives then."""
        heapq.heappop(self._due)
        return self.first(now)

    def next_due(self) -> int | None:
        """Return when the next place is due, if none is now."""
        return self._later[0][0] if self._later else None

    def __len__(self) -> int:
        return len(self._due) + len(self._later)

    def take(self) -> Place:
        """Take out one place, due or not. There must be one."""
        return heapq.heappop(self._due) if self._due else heapq.heappop(self._later)[1]


class ReadyIndex:
    """The file; see the module's docstring. Every method is called under the store's lock, and may raise OSError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1
        self._lines = 0  # that were read last
        self._enough = _LONG

    def close(self) -> None:
        """Let go of it."""
        if self._fd != -1:
            os.close(self._fd)
            self._fd = -1

    def add(self, tasks: Iterable[Task]) -> None:
        """Note tasks that are about to become PENDING."""
        lines = [_line(lane_of(task), place_of(task)) for task in tasks]
        if lines:
            self._write(lines)

    def read(self, pending: Collection[int]) -> Noted:
        """Return the lanes and places of those of these tasks that it has."""
        self._open()
        rows = _rows(read_all(self._fd))
        self._lines = len(rows)
        found: Noted = {}
        for row in rows:
            if type(row) is list and tuple(map(type, row)) == _TYPES and row[2] in pending:
                found.setdefault(row[2], set()).add((tuple(row[3:]), tuple(row[:3])))
        return found

    @property
    def is_long(self) -> bool:
        """Whether it may hold so much that is out of date that `read()` and `trim()` are worth it."""
        self._open()
        return os.fstat(self._fd).st_size > self._enough

    def trim(self, found: Noted) -> None:
        """Have only these in it, after `read()`, if most of it is out of date."""
        if self._lines > 2 * sum(map(len, found.values())) + _FEW:
            self.rewrite(found)
        self._enough = max(_LONG, 2 * os.fstat(self._fd).st_size)

    def rewrite(self, found: Noted) -> None:
        """Have only these in it. Who dies meanwhile leaves it without some, whose own files are read then."""
        self._open()
        os.ftruncate(self._fd, 0)
        self._write([_line(lane, place) for places in found.values() for lane, place in places])

    def _open(self) -> None:
        if self._fd == -1:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
            permissions.have_mode(self._fd)

    def _write(self, lines: list[str]) -> None:
        self._open()
        # The line end first: half a line may stand before it.
        permissions.write_all(self._fd, "".join(["\n", *lines]).encode())


def _line(lane: Lane, place: Place) -> str:
    (priority, eta, number), (queue, run, tier) = place, lane
    return f"[{priority},{eta},{number},{json.dumps(queue)},{run},{tier}]\n"


def _rows(data: bytes) -> list[Any]:
    lines = [line for line in data.split(b"\n") if line]
    try:
        return list(json.loads(b"[%b]" % b",".join(lines)))
    except (ValueError, RecursionError):  # some are torn, by whoever died over them, or garbage
        rows = []
        for line in lines:
            with contextlib.suppress(ValueError, RecursionError):
                rows.append(json.loads(line))
        return rows
