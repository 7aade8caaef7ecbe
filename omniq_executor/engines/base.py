"""What the dispatcher asks of an engine, which runs calls somewhere, and what goes between the two.

    dispatcher --Chunk--> engine          calls that are claimed, and whose claims are committed
               <--Report-- engine         what became of them

An engine knows no store. Each call that it was given it reports once, with its id and attempt, and never one that it
was not given. What a report says is not yet stored, so an engine that is asked again for the same call runs it again.

All methods are called under the dispatcher's lock, by one thread at a time, but for those that say otherwise. None
of them waits for a call, and none raises for what a call or a process does: that is in reports, and the end of all
is in `broken`.
"""

import selectors
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ..model import codec
from ..value_files import Files
from .pacing import Throughput


class Chunk:
    """Calls of one function that travel together. Either `text` has their arguments, or `calls`."""

    __slots__ = "attempts", "calls", "digest", "function", "given_at", "ids", "sequence", "space", "text", "timeout"

    def __init__(
        self,
        ids: Sequence[int],
        attempts: Sequence[int],
        digest: bytes,
        function: bytes,
        text: str | None = None,
        calls: Sequence[tuple[str | bytes, str | None]] | None = None,
        timeout: float | None = None,
        space: int = 0,
    ) -> None:
        self.ids = ids
        self.attempts = attempts
        self.digest = digest
        self.function = function  # its pickle
        self.text = text  # JSON array of argument arrays
        self.calls = calls  # stored forms of (args, kwargs)
        self.timeout = timeout  # seconds that its call may take; then it is the only one
        self.space = space  # the namespace in which it runs, see spaces.py: 0 is that of the executor's own run
        self.sequence = 0  # the number of its first call among those of its worker, given by the engine
        self.given_at = 0.0  # likewise, if it has a timeout: by time.monotonic()

    def without(self, ids: Container[int]) -> "Chunk":
        """Return the chunk less the calls with these ids."""
        whole = self.part(0, len(self.ids))
        kept = [i for i, id in enumerate(self.ids) if id not in ids]
        return Chunk(
            [self.ids[i] for i in kept], [self.attempts[i] for i in kept], self.digest, self.function,
            calls=[(whole.calls or ())[i] for i in kept], timeout=self.timeout, space=self.space,
        )  # fmt: skip

    def part(self, start: int, stop: int) -> "Chunk":
        """Return the calls from `start` up to `stop` as a chunk of their own."""
        calls = self.calls
        if calls is None:
            rows = codec.decode(self.text or "[]")
            calls = [codec.encode_call(tuple(row), {}) for row in rows]
        return Chunk(
            self.ids[start:stop], self.attempts[start:stop], self.digest, self.function, calls=calls[start:stop],
            timeout=self.timeout, space=self.space,
        )  # fmt: skip

    def parts(self, size: int) -> list["Chunk"]:
        """Return the calls as chunks of at most that many."""
        count = len(self.ids)
        return [self] if count <= size else [self.part(i, min(i + size, count)) for i in range(0, count, size)]


class Report(NamedTuple):
    """What became of calls, which are several only in RESULTS and RETURNED."""

    kind: str
    ids: Sequence[int]
    attempts: Sequence[int]
    payload: Any


RESULTS = "results"  # they returned; the payload is the JSON array of their [result] arrays
RESULT = "result"  # it returned; the payload is the stored form of the result
ERROR = "error"  # it raised; the payload is an ErrorInfo
CRASHED = "crashed"  # the process died in it; the payload says how
TIMED_OUT = "timed out"  # it was ended; the payload is its timeout, in seconds
RETURNED = "returned"  # not started, or its result was lost with the process: the payload is a Chunk to run elsewhere


class StackProbe(Protocol):
    """The question where the running calls are, and what came of it so far."""

    def stacks(self) -> dict[int, str]:
        """Return the Python stacks by the ids of the calls; for those that do not answer a text that says so."""


class Engine(Protocol):
    """See the module's docstring."""

    name: str
    """What it is called where it is shown."""
    max_workers: int
    """How many calls can run at a time; 0 where none do."""
    broken: str | None
    """Why no call can be run any more."""
    reports: list[Report]
    """What became of calls. The dispatcher takes them out."""
    throughput: Throughput
    """How long calls take."""

    @property
    def sees_files(self) -> bool:
        """Whether the workers see the files of this machine, so that large values can be in those of the store."""

    @property
    def snapshot(self) -> Any:
        """What workers have of the script by a fork, as functions are written for them, or None."""

    def keep_large(self, files: Files) -> None:
        """Have workers read and write large values as files of a store, if they see them. Before all others."""

    def attach(self, selector: selectors.BaseSelector, wake: Callable[[], None], slots: Path) -> None:
        """Have events waited for by `selector`, with their handlers as its data.

        `wake` is to be called when there is a report that no event tells of. What workers share with whoever looks
        after a dead owner is in the file `slots`, see slots.py. Raises StoreError if it cannot be made.
        """

    def prepare(self) -> None:
        """Do what is to be done before a first call is described."""

    # giving

    def free_capacity(self, digest: bytes | None = None) -> tuple[int, int]:
        """Return how many more calls the workers could be given in all, and how many the one with the most room.

        They are of the function with this digest, or of any.
        """

    def idle(self) -> int:
        """Return how many workers have nothing to do, or could be started."""

    def give(self, chunk: Chunk) -> None:
        """Run calls, for which one worker must have room."""

    # looking

    def is_busy(self) -> bool:
        """Return whether calls are not reported yet, or something of one that was ended is left."""

    def held(self) -> Iterator[int]:
        """Return the ids of all calls that are not reported yet."""

    def running(self) -> Sequence[tuple[int, float]]:
        """Return the ids of the calls that workers are in, and since when: in seconds of time.monotonic()."""

    def probe_stacks(self, on_end: Callable[[], None]) -> StackProbe:
        """Ask where the running calls are. The answers come with other events; after the last `on_end` is called."""

    # taking back, and ending

    def next_check(self, is_idle: Callable[[], bool]) -> float:
        """Return when `steal()` has something to do, in seconds of time.monotonic(), or infinity. Any thread may ask.

        `is_idle` tells whether a worker could take more than there is.
        """

    def steal(self, now: float, is_idle: Callable[[], bool]) -> None:
        """Report as RETURNED what waits behind a long call if it could run elsewhere; end what has taken too long."""

    def recall(self, ids: Container[int]) -> None:
        """Report as RETURNED, at once, what has not started of these calls, and maybe of others."""

    def end(self, ids: Container[int]) -> None:
        """End those of these calls that have started, and report them as CRASHED; what else is harmed as RETURNED."""

    def ask_for_results(self) -> None:
        """Have all workers send what results lie there."""

    def awaits_results(self) -> bool:
        """Return whether a worker that was asked has not answered."""

    # the end

    def close(self, signal_number: int | None = None, grace_s: float | None = None) -> None:
        """End the workers, by a signal or by letting them run out of work, and wait until they have ended.

        Those that have not after `grace_s` seconds are killed. What they had is reported no more.
        """

    def leave_to_parent(self) -> None:
        """After a fork, in the child: let go of what is the parent's, without a word to the workers."""
