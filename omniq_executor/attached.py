"""Futures of tasks that are in a store already: how they are found, and `attach()` for a process that runs none."""

import os
from collections.abc import Callable, Sequence
from typing import Any, overload

from .config import Settings, parse_address
from .dispatch.attachment import Attachment, attachment
from .errors import TaskNotFound
from .future import DurableFuture, reference
from .model.checks import check_queue
from .model.functions import path_of
from .model.task import Status, format_id, parse_id
from .stores import glance
from .stores.base import Store
from .stores.glances import Glance, Wanted, card_of, line_of


def attach(store: str | os.PathLike[str] | Settings | Store | None = None, *, queue: str | None = None) -> "Attached":
    """Return what gives futures of a store's tasks, whoever submitted them and wherever they run.

        future = attach("runs/etl.db").future("task-0d5kq3v7x8m2a")

    store: an open store, or an address as PersistentExecutor takes it. It is opened by the first question, and
        never made.
    queue: only the tasks of this queue; by default those of the whole store.

    Nothing is run, claimed or changed by it, and there is nothing to close.

    >>> executor.options(key="monday").submit(pow, 2, 5).result()
    32
    >>> attach("omniq_data/omniq.db").future(key="monday").result()
    32
    """
    check_queue(queue)
    if isinstance(store, Store):
        return Attached(attachment(store.url), queue)
    backend, path = parse_address(store)
    return Attached(attachment(f"{'sqlite:///' if backend == 'sqlite' else 'file://'}{path.absolute()}"), queue)


class Attached:
    """What `attach()` returns. Each question raises StoreError where there is no such store."""

    def __init__(self, to: Attachment, queue: str | None) -> None:
        self._attachment = to
        self.queue = queue
        """The queue whose tasks are found, or None for all."""

    @overload
    def future(self, task_id: str) -> DurableFuture[Any]: ...
    @overload
    def future(self, *, key: str) -> DurableFuture[Any]: ...
    def future(self, task_id: str | None = None, *, key: str | None = None) -> DurableFuture[Any]:
        """Return the future of the task of that id, or of that key.

        Raises TaskNotFound if there is none, and ValueError for what is no task id, or a key of several queues.

        >>> task_id = executor.submit(pow, 2, 5).task_id
        >>> attach().future(task_id).result()
        32
        """
        return self._of(find_one(self._attachment.store, self.queue, task_id, key))

    def futures(
        self,
        status: Status | None = None,
        tags: Sequence[str] | None = None,
        *,
        function: str | Callable[..., Any] | None = None,
    ) -> list[DurableFuture[Any]]:
        """Return the futures of all tasks that match all that is given, oldest first.

        function: a function, or the name under which the store has it, such as "etl.parse" or "__main__.parse".

        >>> results = list(executor.map(abs, [-1, -2]))
        >>> [future.result() for future in attach().futures(function=abs)]
        [1, 2]
        """
        return [self._of(id) for id in find_all(self._attachment.store, self.queue, status, tags, function)]

    def _of(self, id: int) -> DurableFuture[Any]:
        return reference(self._attachment.address, format_id(id))

    def _look(self) -> Glance:
        found = glance(self._attachment.address, Wanted(counts=True))
        if self.queue is None or not found.counts or "" in found.counts:
            return found
        return found._replace(counts={name: of for name, of in found.counts.items() if name == self.queue})

    def __repr__(self) -> str:
        return line_of("Attached to", self._attachment.address, self._look, self._state)

    def _repr_html_(self) -> str:
        """Return what a notebook shows of it."""
        return card_of("Attached to", self._attachment.address, self._look, self._state).html()

    @property
    def _state(self) -> str:
        return "" if self.queue is None else f"queue {self.queue!r}"


def find_one(store: Store, queue: str | None, task_id: str | None, key: str | None) -> int:
    """Return the number of the task of an id, or of a key in a queue or in any. Raises TaskNotFound."""
    if (task_id is None) == (key is None):
        raise TypeError("future() takes a task id, or a key")
    hint = "`omniq-executor list` shows what it holds"
    if key is None:
        number = parse_id(task_id or "")
        if not store.states([number]):
            raise TaskNotFound(f"{store.address} holds no {task_id}; {hint}")
        return number
    queues = sorted(store.counts()) if queue is None else [queue]
    found = {name: state.id for name in queues if (state := store.by_key(name, key)) is not None}
    if not found:
        raise TaskNotFound(f"{store.address} holds no task with the key {key!r} in {queue or 'any queue'}; {hint}")
    if len(found) > 1:
        raise ValueError(f"the key {key!r} is in the queues {', '.join(map(repr, found))}: attach to one of them")
    return next(iter(found.values()))


def find_all(
    store: Store,
    queue: str | None,
    status: Status | None,
    tags: Sequence[str] | None,
    function: str | Callable[..., Any] | None,
) -> list[int]:
    """Return the numbers of the tasks that match all that is given, oldest first."""
    path = function if function is None or isinstance(function, str) else path_of(function)
    return [task.id for task in store.find(status, queue, tags, function=path)]
