"""What an executor opens, each for the next: engine, store, owner, run, dispatcher. Where one fails, all are closed."""

import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from multiprocessing.context import BaseContext
from typing import Any, Literal

from ..code.run_context import context_of
from ..config import Settings, parse_address
from ..engines.local.pool import LocalEngine
from ..engines.opening import Place, open_engine
from ..interrupts import interrupts
from ..stores import open_store
from ..stores.base import ADDS, Resume, now
from . import cells, sessions
from .dispatcher import Dispatcher, open_dispatchers
from .lifetimes import close_before_pools, close_with_multiprocessing
from .resumption import OnChange
from .stranded import stranded

_log = logging.getLogger("omniq_executor")


def open_dispatcher(
    executor: Any,
    new_future: Callable[[Dispatcher, int | None], Any],
    engine: Place,
    max_workers: int | None,
    context: BaseContext,
    initializer: Callable[..., object] | None,
    initargs: Sequence[Any],
    max_tasks_per_child: int | None,
    *,
    store: str | os.PathLike[str] | Settings | None,
    durability: str,
    queue: str,
    is_named: bool,
    resume: Resume,
    within_s: float | None,
    kept_s: float | None,
    leftovers: Literal["leave", "cancel", "run"],
    on_change: OnChange,
    crash_retries: int,
    capture_output: bool,
) -> Dispatcher:
    """Return a dispatcher that ends with the executor, when that is dropped at the latest.

    The parameters are those of PersistentExecutor, checked, with times in seconds. `is_named` says whether the queue is
    one that the user has named. Raises what an engine and a store raise that cannot be opened.
    """
    cells.enter(parse_address(store).path.absolute(), queue)
    with contextlib.ExitStack() as undo:
        with interrupts:  # else what is made here, and nobody else knows yet, might be left behind
            pool = open_engine(engine, max_workers, context, initializer, initargs, max_tasks_per_child)
            undo.callback(pool.close)
            opened = open_store(store, durability=durability)
            undo.callback(opened.close)
            if pool.max_workers and pool.sees_files:
                opened.values.prepare()
                pool.keep_large(opened.values)
            if isinstance(pool, LocalEngine) and capture_output:
                pool.output = str(opened.output.prepare())
            owner = opened.enter(queue if pool.max_workers else ADDS)
            undo.callback(opened.leave, owner)
            session = sessions.enter(opened, queue, leftovers)
            undo.callback(sessions.leave, opened.address)
            moment = now()
            run = opened.begin_run(
                queue, owner, resume, moment, session=session,
                context=context_of(initializer, initargs, opened.path),
                since=0 if within_s is None else moment - int(within_s * 1e6),
                result_ttl=None if kept_s is None else int(kept_s * 1e6),
            )  # fmt: skip
            there = [it for it in list(open_dispatchers) if it.store.address == opened.address]
            others = [it for it in there if it.run.id in run.beside]
            for other in others:
                other.share([run.id])
            lost = [] if is_named or resume == "never" else stranded(opened, queue, run.id)
            dispatcher = Dispatcher(
                opened, owner, run, pool, crash_retries, runs_leftovers=leftovers == "run",
                resume=resume, new_future=new_future, on_change=on_change,
            )  # fmt: skip
            if others:
                dispatcher.share([it.run.id for it in others])
            dispatcher.initializer = None if initializer is None else (initializer, initargs)
            undo.pop_all()
            undo.callback(dispatcher.close, wait=False)
            dispatcher.close_with(executor)
            close_with_multiprocessing()
            if engine not in ("local", "external"):
                close_before_pools()
        undo.pop_all()
    if lost:
        _log.warning(
            "queue %r is new in this store. Calls of others wait whose script is not to be found: %s. If it is this"
            " script that had another name, give the executor that queue, and it continues them",
            run.queue, "; ".join(map(str, lost)),
        )  # fmt: skip
    return dispatcher
