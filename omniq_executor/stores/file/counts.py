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
from json.encoder import encode_basestring_ascii as _quote

from ...model.task import FINISHED, Status
from ..retention import goes_with_its_run
from .journal import UNKNOWN, Entry, Journal, Place
from .records import Record

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

_NONE = [0] * len(FIELDS)


def count_in(found: Counts, records: Iterable[Record], sizes: Iterable[int], by: int = 1) -> None:
    """Add tasks, whose texts have these sizes, or take them away where `by` is -1."""
    queue, run, status, is_finished = "", 0, None, False
    row: list[int] = []
    for record, size in zip(records, sizes, strict=True):
        if record.is_removed:
            continue
        task = record.task
        if task.status is not status or task.run != run or task.queue != queue:  # most of a turn are as the one before
            queue, run, status = task.queue, task.run, task.status
            is_finished = status in FINISHED
            row = found.setdefault((queue, run, int(status)), [0, 0, 0, 0, 0])
        row[TASKS] += by
        row[BLOCKS] += by if size <= BLOCK_BYTES else by * -(-size // BLOCK_BYTES)
        if is_finished:
            if task.key is None or goes_with_its_run(task.key):
                row[PASSING] += by
                if by > 0 and (task.finished_at or 0) > row[LATEST]:
                    row[LATEST] = task.finished_at or 0
        elif task.options is not None and task.options.after:
            row[DEPENDENT] += by


def text_of_changes(counts: Counts) -> bytes:
    """Return what an entry says that changes the counts by this."""
    # By hand, which takes a third of the time: it is a part of every turn.
    text = ",".join(
        [
            f"[{_quote(queue)},{run},{status},{row[0]},{row[1]},{row[2]},{row[3]},{row[4]}]"
            for (queue, run, status), row in counts.items()
        ]
    )
    return b"[%b]" % text.encode() if text else b""


def text_of_all(counts: Counts | None) -> bytes:
    """Return what an entry says after which these are the counts; None if nobody knows them."""
    return UNKNOWN if counts is None else b'{"counts":%b}' % (text_of_changes(counts) or b"[]")


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
                add(counts, {(queue, run, status): row for queue, run, status, *row in said})
    return counts


def add(counts: Counts, changes: Counts) -> None:
    """Change the counts as `count_in()` has them for what has changed."""
    for key, more in changes.items():
        row = counts.get(key)
        if row is None:
            if more[TASKS]:
                counts[key] = list(more)
            continue
        row[TASKS] += more[TASKS]
        if not row[TASKS]:
            del counts[key]
            continue
        row[BLOCKS] += more[BLOCKS]
        row[PASSING] += more[PASSING]
        row[DEPENDENT] += more[DEPENDENT]
        if more[LATEST] > row[LATEST]:
            row[LATEST] = more[LATEST]


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
        rows = [of.get(key, _NONE) for of in (kept, counted)]
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

    def follow_own(self, place: Place, changes: Counts) -> None:
        """Take in what this process has added to the journal at a place, likewise."""
        if self._place == place:
            if self._counts is not None:
                add(self._counts, changes)
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
