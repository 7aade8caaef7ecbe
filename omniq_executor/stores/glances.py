"""What a look at a store finds that waits for nobody: for `repr()`, notebooks and progress, which may hold up nothing.

Each kind of store has a `look()` of its own (sqlite/glance.py, file/glance.py), which opens the store for itself, takes
none of its locks, changes nothing and ends after GLANCE_S. So what it finds may be a moment old.
"""

from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import NamedTuple

from ..display import words
from ..display.card import Card, Table
from ..errors import StoreError
from ..model.task import Status, Task

GLANCE_S = 0.1
EARLIER = 200  # calls of earlier runs whose times are looked at
_AGAIN_AFTER_S = 2.0
_MOMENT_S = 0.1
_MOST_AHEAD = 256  # tasks

_silent: dict[str, tuple[float, StoreError]] = {}  # stores that did not answer, until when they are not asked again


class Glance(NamedTuple):
    """What was found."""

    counts: Mapping[str, Mapping[Status, int]] | None = None  # by queue, "" for all; None if there are too many
    tasks: Sequence[Task] = ()  # with no pickle of the function, and of arguments and results what is short
    earlier_s: Sequence[float] = ()  # how long the latest calls of a function took that completed
    size: int = 0  # bytes on the disk


class Wanted(NamedTuple):
    """What a look is for."""

    counts: bool = False
    ids: Sequence[int] = ()
    more: int = (
        0  # how many of the tasks after the first of these may be told of, too, where that costs less than a look
    )
    function: str = ""  # whose calls of earlier runs are looked for, by its path, ...
    run: int = 0  # ... other than those of this run


def patiently(address: str, look: Callable[[], Glance]) -> Glance:
    """Return what a look finds. One that has not answered is not asked again at once: a list may have many of it."""
    until, error = _silent.get(address, (0.0, None))
    if error is not None and monotonic() < until:
        raise error.with_traceback(None)
    _silent.pop(address, None)
    try:
        return look()
    except StoreError as found:
        _silent[address] = monotonic() + _AGAIN_AFTER_S, found
        raise


class _Seen(NamedTuple):
    """What the last look has found."""

    address: str
    id: int  # of the task that it was for
    until: float  # when it is too old
    ahead: int
    others: dict[int, Task]


class Row:
    """Looks at one task after the other, as when a list of futures is shown: one look finds its neighbours, too.

    What is told of a task is a moment old at most, and it is told once: who asks again is shown how it stands now.
    """

    def __init__(self) -> None:
        self._seen = _Seen("", 0, 0.0, 0, {})  # replaced as a whole, since several threads may look

    def find(self, address: str, id: int, look: Callable[[Wanted], Glance]) -> Task | None:
        """Return the task of a store, or None if it has none of that id. Raises StoreError."""
        seen, moment = self._seen, monotonic()
        is_next = seen.address == address and seen.id != id and moment < seen.until
        task = seen.others.pop(id, None) if is_next else None
        if task is None:
            goes_on = is_next and id > seen.id and len(seen.others) * 2 <= seen.ahead  # which were of use
            ahead = min(max(seen.ahead * 4, 16), _MOST_AHEAD) if goes_on else 0
            found = {it.id: it for it in look(Wanted(ids=[id], more=ahead)).tasks}
            task = found.pop(id, None)
            self._seen = _Seen(address, id, moment + _MOMENT_S, ahead, found)
        return task


def line_of(kind: str, path: str, look: Callable[[], Glance], state: str = "") -> str:
    """Return what is shown of a store in a line."""
    try:
        said = _summary(look())
    except StoreError as error:
        said = f"cannot be read now: {words.shortened(str(error), 200)}"
    return f"<{kind} {words.printable(path)}{f', {state}' if state else ''}: {said}>"


def card_of(kind: str, path: str, look: Callable[[], Glance], state: str = "") -> Card:
    """Return what is shown of a store in a notebook."""
    try:
        found = look()
    except StoreError as error:
        return Card(kind, path, state, note=f"It cannot be read now: {error}", is_bad=True)
    table = None
    if found.counts:
        shown = [status for status in Status if any(of.get(status) for of in found.counts.values())]
        rows: list[list[str | int]] = [
            [queue or "all queues", *(of.get(it, 0) for it in shown)] for queue, of in found.counts.items()
        ]
        table = Table(["queue", *(status.name for status in shown)], rows)
    return Card(kind, path, state, [("holds", _summary(found)), ("on disk", words.size(found.size))], table)


def _summary(found: Glance) -> str:
    if found.counts is None:
        return f"more tasks than can be counted at a glance, {words.size(found.size)}"
    total = {status: sum(of.get(status, 0) for of in found.counts.values()) for status in Status}
    each = ", ".join(f"{count:,} {status.name}" for status, count in total.items() if count)
    if not each:
        return "no tasks"
    queues = "" if "" in found.counts else f" in {words.counted(len(found.counts), 'queue')}"
    return f"{words.counted(sum(total.values()), 'task')}{queues} ({each})"
