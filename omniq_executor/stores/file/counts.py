"""How many tasks of each queue, run and state a file store has: kept by the journal, so that nobody reads their files.

What an entry of the journal says of the counts is one of

    [[queue, run, status, ...], ...]            what the entry adds to each, see FIELDS
    {"counts": [[queue, run, status, ...], ...]}   all of them, as they are after it
    null                                        that nobody knows them any more
    nothing                                     that it changes none

Each journal begins with all of them. So they are read, and added up, from one file, of which the commit of a turn is a
part: there is no moment at which the counts are of another turn than the tasks. They are not known after entries of
an older version, where a damaged task was put aside, and after a new start of the machine, for which nobody
has synced the files. Then whoever wants to know counts once, and notes it. What a process has in memory is as of a
place in the journal, and is read again where that is not the end.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ...model.task import FINISHED, Status, Task
from ..retention import goes_with_its_run
from .journal import UNKNOWN, Entry, Journal, Place

BLOCK_BYTES = 4096
FIELDS = (
    "tasks",
    "blocks",  # that their files take, of BLOCK_BYTES
    "passing",  # finished ones that go with their run
    "dependent",  # unfinished ones that come after others
    "latest",  # when a passing one ended, the latest that there has been
)
TASKS, BLOCKS, PASSING, DEPENDENT, LATEST = range(len(FIELDS))

Key = tuple[str, int, int]  # queue, run, status
Counts = dict[Key, list[int]]  # each with what FIELDS says

_WIDTH = len(FIELDS)


def count_in(found: Counts, task: Task, size: int, by: int = 1) -> None:
    """Add a task, whose text has this size, or take it away where `by` is -1."""
    key = task.queue, task.run, int(task.status)
    row = found.get(key)
    if row is None:
        row = found[key] = [0] * _WIDTH
    row[TASKS] += by
    row[BLOCKS] += by * -(-size // BLOCK_BYTES)
    if task.status in FINISHED:
        if task.key is None or goes_with_its_run(task.key):
            row[PASSING] += by
            if by > 0 and (task.finished_at or 0) > row[LATEST]:
                row[LATEST] = task.finished_at or 0
    elif task.options is not None and task.options.after:
        row[DEPENDENT] += by


def text_of_changes(counts: Counts) -> bytes:
    """Return what an entry says that changes the counts by this."""
    return _text([[*key, *row] for key, row in counts.items() if any(row)])


def text_of_all(counts: Counts | None) -> bytes:
    """Return what an entry says after which these are the counts; None if nobody knows them."""
    if counts is None:
        return UNKNOWN
    return _text({"counts": [[*key, *row] for key, row in counts.items()]})


def _text(content: Any) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


def after(counts: Counts | None, entries: Iterable[Entry]) -> Counts | None:
    """Return the counts after entries of the journal, None where they are unknown. Those that are given change."""
    for entry in entries:
        if entry.counts:
            said = json.loads(entry.counts)
            if said is None:
                counts = None
            elif isinstance(said, dict):
                counts = {(queue, run, status): row for queue, run, status, *row in said["counts"]}
            elif counts is not None:
                _add(counts, said)
    return counts


def _add(counts: Counts, rows: Iterable[list[Any]]) -> None:
    for queue, run, status, *more in rows:
        key = queue, run, status
        row = counts.get(key)
        if row is None:
            row = counts[key] = [0] * _WIDTH
        latest = max(row[LATEST], more[LATEST])
        row[:] = map(int.__add__, row, more)
        row[LATEST] = latest
        if not row[TASKS]:
            del counts[key]


def by_status(counts: Counts) -> dict[str, dict[Status, int]]:
    """Return the number of tasks by queue and state."""
    found: dict[str, dict[Status, int]] = {}
    for (queue, _, status), row in sorted(counts.items()):
        of_queue = found.setdefault(queue, {})
        of_queue[Status(status)] = of_queue.get(Status(status), 0) + row[TASKS]
    return {queue: dict(sorted(of_queue.items())) for queue, of_queue in found.items()}


def differences(kept: Counts, counted: Counts) -> list[str]:
    """Return what was kept otherwise than it was counted. What is reckoned only, is not compared."""
    found = []
    for key in sorted({*kept, *counted}):
        rows = [of.get(key, [0] * _WIDTH) for of in (kept, counted)]
        if any(rows[0][of] != rows[1][of] for of in (TASKS, PASSING, DEPENDENT)):
            queue, run, status = key
            what = f"{Status(status).name} in queue {queue!r} of run {run}"
            found.append(f"{rows[0][TASKS]} {what} instead of {rows[1][TASKS]}")
    return found


class Kept:
    """The counts as the journal has them. Every method is called under the store's lock."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._counts: Counts | None = None
        self._place: Place | None = None  # as of which they are

    def now(self) -> Counts | None:
        """Return them, or None if nobody knows them. They must not be changed."""
        if self._place is None or self._place != self._journal.place:
            self._counts = after(None, self._journal.entries())
            self._place = self._journal.place
        return self._counts

    def follow(self, place: Place, entries: Iterable[Entry]) -> None:
        """Take in what has come to the journal after a place, where they are as of that."""
        if self._place == place:
            self._counts = after(self._counts, entries)
            self._place = self._journal.place

    def forget(self) -> None:
        """Read them again when they are asked for: not all that came to the journal was seen."""
        self._place = None

    def note(self, counts: Counts | None) -> None:
        """Have the journal say what they are, or that nobody knows them. Raises OSError."""
        self._counts = counts
        try:
            self._journal.append(0, [], text_of_all(counts))
        finally:
            self._place = self._journal.place  # also where only this process knows it now

    def rotate(self) -> None:
        """Begin the journal anew, with them. Raises OSError."""
        counts = self.now()
        self._journal.rotate(b"" if counts is None else text_of_all(counts))
        self._place = self._journal.place


def states(counts: Mapping[Key, list[int]], *statuses: Status) -> int:
    """Return how many tasks are in any of these states."""
    return sum(row[TASKS] for (_, _, status), row in counts.items() if status in statuses)
