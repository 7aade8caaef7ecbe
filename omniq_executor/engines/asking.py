"""Whether an Executor can run calls here, asked before it is given any."""

from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, wait
from typing import Any

from ..errors import EngineClosed, EngineError, EngineMismatch, EngineUnreachable
from ..slots import machine
from . import remote

ANSWER_S = 60.0  # in which a worker must answer
_MOST_ASKED = 64


def slots_of(executor: Executor) -> int | None:
    """Return how many calls an executor says it runs at a time, if it does."""
    for name in ("_max_workers", "num_workers"):
        count = getattr(executor, name, None)
        if isinstance(count, int) and not isinstance(count, bool):
            return count
    return None


def ask(executor: Executor, slots: int) -> bool:
    """Return whether a worker is of this machine. Raise EngineError if none answers, or one that is another Python."""
    kind = type(executor).__name__
    try:
        # As many as there are slots: a pool starts its workers by it, and a ProcessPoolExecutor may not notice the
        # death of one that it has started for the last call it was given.
        futures = [executor.submit(remote.who) for _ in range(min(slots, _MOST_ASKED))]
    except Exception as error:
        raise EngineClosed(f"the {kind} takes no calls: {text_of(error)}. Give one that is open") from error
    wait(futures, ANSWER_S, FIRST_COMPLETED)
    done = [future for future in futures if future.done()]
    for future in futures:
        if not future.done():
            future.cancel()
    if not done:
        raise EngineUnreachable(
            f"no worker of the {kind} has answered within {ANSWER_S:g} s: start workers, or see whether they are busy"
        )
    here = [_is_here(future, kind) for future in done]  # of each: any may be another Python
    return all(here)


def _is_here(future: "Future[Any]", kind: str) -> bool:
    """Return whether a worker that has answered is of this machine. Raise EngineError if it cannot run calls."""
    try:
        told = future.result()
    except (ImportError, AttributeError) as error:
        raise no_package(error) from error
    except BrokenExecutor as error:
        raise EngineError(f"workers of the {kind} do not live: {text_of(error)}") from error
    except CancelledError as error:
        raise EngineUnreachable(f"the {kind} has lost its workers: see whether they run") from error
    except Exception as error:
        raise EngineError(f"the {kind} runs no call: {text_of(error)}") from error
    remote.check(*told)
    return bool(told[1] == machine())


def no_package(error: BaseException) -> EngineMismatch:
    """Return the error for a worker that cannot import what it is to run."""
    return EngineMismatch(
        f"{text_of(error)}, in a worker: install omniq_executor in the environment of the workers too"
    )


def text_of(error: BaseException) -> str:
    """Return an error on one line, with its type."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
