"""Progress of maps, of futures and of whole executors: who is asked, and what is shown of the answers.

The numbers are of this process's memory; the store is asked, by looks that wait for nobody, what the slowest call is
and how long earlier ones took.
"""

import concurrent.futures
import weakref
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from .dispatch.dispatcher import Dispatcher
from .dispatch.lifetimes import at_end
from .display import meter
from .display.meter import Counts, Slow
from .display.progress import Progress, close_all
from .errors import StoreError
from .model.shown import call_text
from .model.task import format_id
from .stores.glances import Wanted

if TYPE_CHECKING:
    from .dispatch.standing import Standing

at_end.append(close_all)


class Map(Protocol):
    """What is asked of the iterator of a map."""

    def counts(self) -> Counts:
        """Return how its calls stand."""
        raise NotImplementedError


def of_map(iterator: Map, dispatcher: Dispatcher, arrivals: Any, path: str) -> Progress:
    """Return what shows the progress of a map, for as long as it is there."""
    alive = weakref.ref(iterator)  # who drops it wants no results any more
    describe = _Describe(dispatcher)

    def look() -> Counts | None:
        it = alive()
        if it is None:
            return None
        standing = dispatcher.standing(arrivals)
        return it.counts()._replace(workers=dispatcher.engine.max_workers, slowest=describe(standing))

    return Progress(look, lambda: _earlier(dispatcher, path))


def wait_for_all(dispatcher: Dispatcher, queue: str) -> None:
    """Show the progress of all calls of an executor, until nothing is waited for any more."""
    describe = _Describe(dispatcher)
    last = Counts(f"queue {queue}", None)

    def look() -> Counts:
        nonlocal last
        standing = dispatcher.standing()
        if standing is not None:
            total = standing.open + standing.done
            last = Counts(
                last.what, total, standing.done, standing.resumed, standing.failed, standing.cancelled,
                standing.workers, describe(standing),
            )  # fmt: skip
        return last

    progress = Progress(look)
    try:
        progress.start()
        dispatcher.wait_until(lambda: not dispatcher.awaited)
    finally:
        progress.close()


def wait_for(futures: Iterable[concurrent.futures.Future[Any]], dispatcher: Dispatcher) -> None:
    """Show the progress of futures, until all are done. Those of other executors are taken as well."""
    those = list(futures)
    for one in those:
        if not isinstance(one, concurrent.futures.Future):
            raise TypeError(f"{one!r} is no future")
    count = _Counted(those, dispatcher)
    progress = Progress(count, lambda: _earlier(dispatcher, count.path) if count.path else ())
    try:
        progress.start()
        concurrent.futures.wait(those)
    finally:
        progress.close()


class _Counted:
    """Counts futures; those that were done when it last looked are not looked at again."""

    def __init__(self, futures: Sequence[concurrent.futures.Future[Any]], dispatcher: Dispatcher) -> None:
        self._open = list(futures)
        self._dispatcher = dispatcher
        self._describe = _Describe(dispatcher)
        ids = [id for future in futures if (id := getattr(future, "_number", None)) is not None]
        self._ids = set(ids)
        self._total = len(self._open)
        self._resumed = self._failed = self._cancelled = 0
        self.path = self._describe.path_of(ids[:: max(len(ids) // 50, 1)])
        """Of their function, by some fifty of them; "" if there are several."""

    def __call__(self) -> Counts:
        still = []
        for future in self._open:
            if not future.done():
                still.append(future)
            elif future.cancelled():
                self._cancelled += 1
            elif getattr(future, "_exception", None) is not None:
                self._failed += 1
            else:
                self._resumed += bool(getattr(future, "resumed", False))
        self._open = still
        what = self.path.removeprefix("__main__.") or "calls"
        standing = self._dispatcher.standing() if still else None
        return Counts(
            what, self._total, self._total - len(still), self._resumed, self._failed, self._cancelled,
            self._dispatcher.engine.max_workers, self._describe(standing, self._ids),
        )  # fmt: skip


class _Describe:
    """Says which call is the slowest, by a look into the store for each that has become it."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._store = dispatcher.store
        self._known = (0, "")  # the call that was described last

    def __call__(self, standing: "Standing | None", ids: Any = None) -> Slow | None:
        if standing is None or standing.slowest is None:
            return None
        id, for_s = standing.slowest
        if ids is not None and id not in ids:
            return None
        if for_s >= meter.SLOW_S and self._known[0] != id:
            try:
                (task,) = self._store.glance(Wanted(ids=[id])).tasks or (None,)
            except StoreError:
                task = None
            self._known = id, "" if task is None else call_text(task.func_path, task.args, task.kwargs, 50)
        return Slow(format_id(id), self._known[1] if self._known[0] == id else "", for_s)

    def path_of(self, ids: Collection[int]) -> str:
        """Return the path of the function of tasks, "" if they are of several, or the store does not say it."""
        try:
            paths = {task.func_path for task in self._store.glance(Wanted(ids=[*ids])).tasks}
        except StoreError:
            paths = set()
        return paths.pop() if len(paths) == 1 else ""


def _earlier(dispatcher: Dispatcher, path: str) -> Sequence[float]:
    """Return how long calls of a function took in earlier runs."""
    try:
        return dispatcher.store.glance(Wanted(function=path, run=dispatcher.run.id)).earlier_s
    except StoreError:
        return ()
