"""ray as an Executor: it has none of its own."""

import math
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from importlib import import_module
from typing import Any

from ..errors import EngineUnreachable

ray: Any = import_module("ray")  # most of which has no types
ASK_AGAIN_S = 10.0  # how many CPUs there are: it is asked elsewhere


class RayExecutor(Executor):
    """Submits tasks of one CPU to a cluster of ray's; ray itself runs none of them again."""

    def __init__(self, address: str | None = None) -> None:
        """`address` as of ray.init(); None starts ray on this machine, unless it runs in this process already."""
        self._is_own = not ray.is_initialized()
        if self._is_own:
            ray.init(address=address, log_to_driver=False, configure_logging=False)
        self._cpus, self._asked_at = 0, -math.inf
        self._remote = ray.remote(max_retries=0)(_call)

    @property
    def _max_workers(self) -> int:
        if time.monotonic() >= self._asked_at + ASK_AGAIN_S:
            self._asked_at = time.monotonic()
            self._cpus = int(ray.cluster_resources().get("CPU", 0))
        return self._cpus

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """As of an Executor."""
        future: Future[Any] = self._remote.remote(fn, *args, **kwargs).future()
        future.set_running_or_notify_cancel()  # ray does not tell whether a call has begun
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As of an Executor."""
        if self._is_own:
            ray.shutdown()


def _call(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    return fn(*args, **kwargs)


def connect(address: str) -> Executor:
    """Return an executor for ray://host:port, or ray://auto for the cluster of this machine."""
    try:
        return RayExecutor("auto" if address == "ray://auto" else address)
    except (ConnectionError, RuntimeError) as error:
        raise EngineUnreachable(f"no ray cluster answers at {address}: start one, or correct the address") from error
