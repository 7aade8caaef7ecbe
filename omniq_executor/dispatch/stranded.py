"""Calls of a script that has another name now.

A queue goes by the name of its script, so a script that was killed and is renamed begins a queue of its
own, and nobody comes for the calls of the old one. This finds them, to be told of.
"""

import os
import sys
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..model.task import Status, iso
from ..stores.base import RunRecord, Store

SESSION: str = "interactive"  # the queue of sessions, which have no file
_SUFFIXES = (".py", ".ipynb", ".pyw", "")


class Stranded(NamedTuple):
    """Calls of a queue whose script is gone."""

    queue: str
    calls: int  # that are not finished
    since: int  # when the first run began that left some

    def __str__(self) -> str:
        calls = "1 call" if self.calls == 1 else f"{self.calls} calls"
        return f"{calls} of queue {self.queue!r} since {iso(self.since)} (queue={self.queue!r})"


def stranded(store: Store, queue: str, run: int, folders: Iterable[str] | None = None) -> list[Stranded]:
    """What waits in other queues whose script is in none of the folders, if `run` is the first of its queue.

    The folders are by default that of the script and the current one. A queue counts whose runs did not all end
    clean; what was enqueued for workers is of no run, and is not meant.
    """
    runs = store.runs()
    if any(record.queue == queue and record.id != run for record in runs):
        return []
    left = [record for record in runs if record.queue != queue and not record.clean and not record.settled]
    if not left:  # as in a store with one queue
        return []
    known = _folders() if folders is None else folders
    left = [record for record in left if record.queue != SESSION and not _has_script(record.queue, known)]
    return sorted(_with_calls(store, left)) if left else []


def _with_calls(store: Store, runs: Sequence[RunRecord]) -> Iterable[Stranded]:
    alive = {owner.id for owner in store.owners() if owner.alive}
    busy = {record.queue for record in runs if record.owner in alive}
    counts = store.counts()
    for queue in {record.queue for record in runs} - busy:
        count = counts.get(queue, {})
        if calls := count.get(Status.PENDING, 0) + count.get(Status.RUNNING, 0):
            yield Stranded(queue, calls, min(record.started_at for record in runs if record.queue == queue))


def _has_script(queue: str, folders: Iterable[str]) -> bool:
    """Whether there is a script, notebook or module of that name."""
    module = queue.replace(".", os.sep)
    names = [name + suffix for name in (queue, module) for suffix in _SUFFIXES]
    names.append(os.path.join(module, "__main__.py"))
    return any(os.path.isfile(os.path.join(folder, name)) for folder in folders for name in names)


def _folders() -> list[str]:
    path = getattr(sys.modules.get("__main__"), "__file__", None)
    return [os.curdir, *([os.path.dirname(os.path.abspath(path))] if path else [])]
