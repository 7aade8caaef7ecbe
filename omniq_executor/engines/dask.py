"""dask.distributed as an Executor that runs each chunk once, and knows how many threads the cluster has.

The scheduler runs a task again whose worker has died, three times by default, and the setting
(`distributed.scheduler.allowed-failures`) is for the whole cluster. So a plugin of the scheduler has each chunk count
as one that has failed so often already. The plugin also tells when workers come and go.
"""

import uuid
from collections.abc import Callable
from concurrent.futures import Executor, Future
from importlib import import_module
from typing import Any

from ..errors import EngineClosed, EngineError, EngineUnreachable
from .asking import text_of

distributed: Any = import_module("distributed")  # which has no types

CONNECT_S = 10.0
_NAME = "omniq_chunk"  # with which the keys of chunks begin, as the dashboard shows them
_TOPIC = "omniq-slots"


class DaskExecutor(Executor):
    """Submits to a client; if that is its own, it is closed with it."""

    def __init__(self, client: Any, is_own: bool) -> None:
        self._client = client
        self._is_own = is_own
        self._max_workers = 0
        if client.asynchronous:
            raise EngineError("a dask client that is asynchronous cannot be waited for: give one of asynchronous=False")
        try:
            client.register_plugin(_plugin(), name="omniq")
        except Exception as error:
            # Of whatever the scheduler raises there. Without the plugin it would run deadly calls several times.
            raise EngineError(f"the dask scheduler takes no plugin: {text_of(error)}. Allow pickle there") from error
        client.subscribe_topic(_TOPIC, self._count)
        self._max_workers = sum(client.nthreads().values())

    def _count(self, event: tuple[float, Any]) -> None:
        self._max_workers = int(event[1])

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """As of an Executor. A future cannot be cancelled: dask does not tell whether its call has begun."""
        if self._client.status in ("closing", "closed"):
            raise RuntimeError("the client is closed")
        theirs = self._client.submit(fn, *args, key=f"{_NAME}-{uuid.uuid4().hex}", pure=False, retries=0, **kwargs)
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        theirs.add_done_callback(lambda _: _pass_on(theirs, future))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As of an Executor."""
        if self._is_own:
            self._client.close()


def _pass_on(theirs: Any, future: "Future[Any]") -> None:
    """Tell a future what came of a task."""
    if theirs.status in ("cancelled", "lost"):
        future.set_exception(ConnectionError("the cluster has cancelled it, or is gone"))
        return
    try:
        result = theirs.result()
    except distributed.KilledWorker as error:
        future.set_exception(WorkerDied(error.last_worker.address))
    except BaseException as error:  # noqa: BLE001 - as of a future
        future.set_exception(error)
    else:
        future.set_result(result)


class WorkerDied(Exception):  # no error of anybody's: it becomes the text of a report
    """A worker has died with what it had: the one of that address."""


def _plugin() -> Any:
    # Made in a function, and so pickled by value: a scheduler need not have this package.
    name, topic = _NAME, _TOPIC

    class OneRunEach(distributed.SchedulerPlugin):  # type: ignore[misc]
        idempotent = True

        async def start(self, scheduler: Any) -> None:
            self.scheduler = scheduler

        def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
            if finish == "processing" and str(key).startswith(name):
                self.scheduler.tasks[key].suspicious = self.scheduler.allowed_failures

        def add_worker(self, scheduler: Any, worker: str) -> None:
            scheduler.log_event(topic, scheduler.total_nthreads)

        def remove_worker(self, scheduler: Any, worker: str, **kwargs: Any) -> None:
            scheduler.log_event(topic, scheduler.total_nthreads)

    OneRunEach.__module__ = "__main__"
    return OneRunEach()


def connect(address: str) -> Executor:
    """Return an executor for the scheduler at dask://host:port."""
    where = address.replace("dask://", "tcp://", 1)
    try:
        client = distributed.Client(where, timeout=CONNECT_S, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise EngineUnreachable(f"no dask scheduler answers at {where}: start one, or correct the address") from error
    return DaskExecutor(client, is_own=True)


def fit(executor: Any) -> Executor:
    """Return an executor on the same client as that of Client.get_executor()."""
    if executor._shutdown:
        raise EngineClosed("the executor of the dask client was shut down: give one that is open")
    return DaskExecutor(executor._client, is_own=False)
