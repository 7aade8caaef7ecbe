"""Which engine an executor is given: "local", "external", an Executor, what makes one, or the address of a cluster."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from multiprocessing.context import BaseContext
from typing import TYPE_CHECKING, Any

from ..interrupts import interrupts
from .addresses import check_address, fitted, maker_of

if TYPE_CHECKING:
    from .adapter import ExecutorEngine
    from .base import Engine
    from .external import External
    from .local.pool import LocalEngine

Place = str | Executor | Callable[[], Executor]
"""Where calls run, as a user says it."""


def check_place(engine: Place) -> None:
    """Raise ValueError or TypeError for what names no engine."""
    if isinstance(engine, str):
        if "://" in engine:
            check_address(engine)
        elif engine not in ("local", "external"):
            raise ValueError(f"engine is 'local', 'external', an Executor or the address of a cluster, not {engine!r}")
    elif not isinstance(engine, Executor) and not callable(engine):
        raise TypeError(f"engine is a word, an Executor or a function that makes one, not {engine!r}")


def refuse_processes(engine: Place, **parameters: Any) -> None:
    """Raise ValueError for a parameter that describes processes, where an engine starts none; None are not given."""
    for name, value in parameters.items():
        if value is not None:
            where = f"engine={engine!r}" if isinstance(engine, str) else "an engine of yours"
            who = "starts no processes" if engine == "external" else "has processes that you have started"
            raise ValueError(f"{where} {who}, so {name}={value!r} has no place: leave it out")


def open_engine(
    engine: Place,
    max_workers: int | None,
    context: BaseContext,
    initializer: Callable[..., object] | None,
    initargs: Iterable[Any],
    max_tasks_per_child: int | None,
) -> "LocalEngine | External | ExecutorEngine":
    """Return an engine that is ready. Raises EngineError where an Executor is not."""
    if engine == "local":
        from .local.pool import LocalEngine  # each only where it is wanted

        return LocalEngine(max_workers or usable_cpus(), context, initializer, initargs, max_tasks_per_child)
    if engine == "external":
        from .external import External

        return External()
    from .adapter import ExecutorEngine

    made: list[ExecutorEngine] = []

    def make(where: Executor | Callable[[], Executor]) -> None:
        made.append(ExecutorEngine(where, max_workers))

    try:  # it may take long, and is code of the user's
        interrupts.run(make, maker_of(engine) if isinstance(engine, str) else fitted(engine))
    except BaseException:
        for one in made:
            one.close()
        raise
    return made[0]


def usable_cpus() -> int:
    """Return how many processes can run at a time."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def workers_of(engine: "Engine", context: BaseContext) -> tuple[int, str]:
    """Return how many workers an engine has at the moment, and in a word what they are, or how they start."""
    from .local.pool import LocalEngine

    if isinstance(engine, LocalEngine):
        return len(engine.processes()), context.get_start_method()
    return engine.max_workers, engine.name
