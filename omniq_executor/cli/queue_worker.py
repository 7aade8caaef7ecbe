"""What `omniq-executor worker` does: work off what others have added to a store, in processes of its own.

It is a dispatcher with a pool of processes and nobody who waits for results, which claims from queues of
others and has no run. Its one thread takes the turns, and a signal is an event among the others:

    SIGTERM, SIGINT    drain: claim nothing more, give back what has not started, let calls that run end
    another one        end the processes; what they were running is PENDING again
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence, Set as AbstractSet
from typing import Any

from ..dispatch.dispatcher import Dispatcher
from ..dispatch.waiters import Waiters
from ..engines.local.pool import LocalEngine
from ..engines.local.start_method import default_context
from ..executor import usable_cpus
from ..model.task import ErrorInfo, Status, format_id
from ..stores import open_store
from ..stores.base import NO_RUN

CRASH_RETRIES = 2
ENDED_BY = 128  # plus the signal: the exit status of who was not left the time to drain

Tell = Callable[[dict[str, Any]], None]


def run(
    address: str | None,
    processes: int | None,
    queues: Sequence[str],
    durability: str,
    capture_output: bool,
    tell: Tell,
) -> int:
    """Work queues off, or all of the store, until a signal comes; returns the exit status.

    `tell` is given what happens: {"event": "started" | "finished" | "draining" | "ended", …}. Raises
    StoreError where the store cannot be opened.
    """
    sys.path.insert(0, os.getcwd())  # as `python -m` does: what is to be run is imported from there
    count = processes or usable_cpus()
    with _signals() as signals, contextlib.ExitStack() as undo:
        engine = LocalEngine(count, default_context(), None, (), None)
        undo.callback(engine.close)
        store = open_store(address, durability=durability)
        undo.callback(store.close)
        engine.output = str(store.output.prepare()) if capture_output else None
        owner = store.enter(", ".join(queues) or "*")
        undo.callback(store.leave, owner)
        ended = _Ended(tell)
        dispatcher = Dispatcher(store, owner, NO_RUN, engine, CRASH_RETRIES, ended, queues)
        undo.pop_all()
        about = {"store": store.address, "queues": list(queues), "processes": count, "pid": os.getpid()}
        tell({"event": "started", **about})
        asked: list[int] = []

        def on_signal() -> None:
            asked.append(os.read(signals, 64)[-1])  # those that come together count as one
            if len(asked) == 1:
                tell({"event": "draining", "signal": signal.Signals(asked[0]).name})
                dispatcher.drain()

        dispatcher.listen(signals, on_signal)
        dispatcher.serve(lambda: len(asked) > 1)
        is_broken = dispatcher.failure is not None
        if len(asked) > 1:
            dispatcher.stop(signal.SIGTERM, f"a second signal came, {signal.Signals(asked[1]).name}")
        else:
            dispatcher.close(wait=True)
        tell({"event": "ended", "completed": ended.completed, "failed": ended.failed})
    if is_broken:
        return 1
    return ENDED_BY + asked[1] if len(asked) > 1 else 0


class _Ended(Waiters):
    """Nobody waits for results; they are counted and told of."""

    def __init__(self, tell: Tell) -> None:
        super().__init__()
        self.completed = 0
        self.failed = 0
        self._tell = tell

    def resolve_all(self, numbers: Sequence[int], outcome: Any, refused: AbstractSet[int]) -> None:
        """Take in what is committed."""
        status = Status.FAILED if isinstance(outcome, ErrorInfo) else Status.COMPLETED
        for number in numbers:
            if number not in refused:
                if status is Status.FAILED:
                    self.failed += 1
                else:
                    self.completed += 1
                self._tell({"event": "finished", "task": format_id(number), "status": status.name})


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """A file descriptor from which the numbers of the signals that ask for an end can be read."""
    ear, mouth = os.pipe()
    os.set_blocking(ear, False)
    os.set_blocking(mouth, False)
    before = signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
    handlers = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield ear
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before)
        os.close(ear)
        os.close(mouth)
