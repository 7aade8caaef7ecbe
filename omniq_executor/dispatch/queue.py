"""Calls on their way from a committed claim to a worker.

Usually they go at once. They wait here while every worker has enough to do, in a burst of submits
for a moment (so that many go in one message), and after they came back from a worker that died, or
from one that sat in a long call. They are claimed all the while, so nothing of it is written anywhere.
"""

import itertools
import logging
import operator
from collections import deque
from collections.abc import Container, Sequence

from ..engines.base import ERROR, Chunk, Engine, Report
from ..engines.pacing import MOST_BYTES
from ..errors import FunctionLost, StoreError
from ..model import codec
from ..model.task import Call, Function
from ..stores.base import Claimed, Store
from .results import error_info

_KNOWN_FUNCTIONS = 1024  # whose pickles are kept; others are read from the store again

_log = logging.getLogger("omniq_executor")


class DispatchQueue:
    """See the module's docstring. Called under the dispatcher's lock."""

    def __init__(self, store: Store, engine: Engine) -> None:
        self.size = 0
        """How many calls wait here."""
        self.by_run = False
        """Whether calls run in the namespace of the run that submitted them, instead of in that of the executor's."""
        self._store = store
        self._engine = engine
        self._chunks: deque[Chunk] = deque()
        self._burst: list[tuple[int, Function, Call]] = []  # single calls, younger than the chunks
        self._functions: dict[bytes, bytes] = {}  # pickles by digest, as the store has them
        self._own: dict[bytes, bytes] = {}  # of those that this process has described itself

    def know(self, function: Function) -> bool:
        """Have calls of a function made with its pickle of this process, also those that an earlier one has stored.

        Return whether it may be new here.
        """
        if self._own.get(function.digest) is function.pickle:
            return False
        self._own.pop(function.digest, None)
        if len(self._own) == _KNOWN_FUNCTIONS:
            del self._own[next(iter(self._own))]
        self._own[function.digest] = function.pickle
        return True

    def add(self, ids: Sequence[int], function: Function, text: str | None, calls: Sequence[Call], gives: bool) -> None:
        """Take in new calls, claimed as attempt 1: give them, past none that waits, or have them wait."""
        if not gives and len(calls) == 1:
            self.hold_one(ids[0], function, calls[0])
            return
        chunk = Chunk(ids, [1] * len(ids), function.digest, function.pickle, text)
        if text is None:
            chunk.calls = [call[:2] for call in calls]
        if gives:
            self._engine.give(chunk)
        else:
            self._gather_burst()
            self.hold(chunk)

    def hold_one(self, id: int, function: Function, call: Call) -> None:
        """Have a new call wait, likewise: others are about to follow, and go with it."""
        self._burst.append((id, function, call))
        self.size += 1

    def hold(self, chunk: Chunk) -> None:
        """Have a chunk wait, until the next `give()`."""
        self._chunks.append(chunk)
        self.size += len(chunk.ids)

    def give(self) -> None:
        """Give what waits, as far as there is room, in order and many at a time."""
        if self._burst:
            self._gather_burst()
        while self._chunks:
            digest = self._chunks[0].digest
            _, best = self._engine.free_capacity(digest)
            if best <= 0:
                return
            most = min(best, self._engine.throughput.of(digest).share(self.size, self._engine.max_workers))
            chunk = self._chunks.popleft()
            if len(chunk.ids) > most:
                self._chunks.appendleft(chunk.part(most, len(chunk.ids)))
                chunk = chunk.part(0, most)
            self.size -= len(chunk.ids)
            self._engine.give(chunk)

    def give_claimed(self, claimed: Sequence[Claimed]) -> tuple[list[Claimed], list[Claimed]]:
        """Give tasks that were claimed because there was room for them.

        Return those whose function cannot be read from the store at the moment, and those that are to go back. Where
        there is no room any more, since their functions take longer than was thought, calls of others' runs do: other
        processes may have room, and other queues short calls. Those of the own run wait here.
        """
        unread: list[Claimed] = []
        too_many: list[Claimed] = []
        start = 0
        while start < len(claimed):
            digest, timeout = claimed[start].digest, _timeout(claimed[start])
            _, best = self._engine.free_capacity(digest)
            share = self._engine.throughput.of(digest).share(len(claimed) - start, self._engine.max_workers)
            if best > 0:
                share = min(best, share)
            stop = start + (1 if _is_apart(claimed[start]) else share)
            kind, size = self._kind(claimed[start]), 0
            for i in range(start, stop):
                size += len(claimed[i].args)
                alone = size > MOST_BYTES or _is_apart(claimed[i])
                if self._kind(claimed[i]) != kind or (alone and i > start):
                    stop = i
                    break
            try:
                chunk = self._chunk_of_claimed(claimed[start:stop])
            except FunctionLost as error:
                failed = [Report(ERROR, [task.id], [task.attempt], error_info(error)) for task in claimed[start:stop]]
                self._engine.reports += failed
                start = stop
                continue
            except StoreError as error:
                _log.error("%s; the function of calls is read again later", error)
                unread += claimed[start:stop]
                start = stop
                continue
            chunk.timeout = timeout
            if best > 0:
                self._engine.give(chunk)
            elif self.by_run:
                too_many += claimed[start:stop]
            else:  # large arguments have filled a worker's socket, say
                self.hold(chunk)
            start = stop
        return unread, too_many

    def _kind(self, task: Claimed) -> tuple[bytes, int]:
        """The function of a task and its namespace, which are the same for all calls of a chunk."""
        return task.digest, task.run if self.by_run else 0

    def take_out(self, ids: Container[int] | None = None) -> dict[int, int]:
        """Take out those of the tasks that wait here, or all; return their attempts by id."""
        self._gather_burst()
        taken: dict[int, int] = {}
        for _ in range(len(self._chunks)):
            chunk = self._chunks.popleft()
            pairs = zip(chunk.ids, chunk.attempts, strict=True)
            found = {id: attempt for id, attempt in pairs if ids is None or id in ids}
            taken |= found
            if len(found) < len(chunk.ids):
                self._chunks.append(chunk.without(found) if found else chunk)
        self.size -= len(taken)
        return taken

    def ids(self) -> set[int]:
        """Return the ids of all calls that wait here."""
        return {id for chunk in self._chunks for id in chunk.ids}.union(id for id, *_ in self._burst)

    def _gather_burst(self) -> None:
        """Make one chunk of each stretch of a burst that is of one function."""
        for function, stretch in itertools.groupby(self._burst, operator.itemgetter(1)):
            ids, _, calls = zip(*stretch, strict=True)
            pairs = [call[:2] for call in calls]
            self._chunks.append(Chunk(ids, [1] * len(ids), function.digest, function.pickle, calls=pairs))
        self._burst.clear()

    def _chunk_of_claimed(self, tasks: Sequence[Claimed]) -> Chunk:
        ids: Sequence[int] = [task.id for task in tasks]
        if ids == [*range(ids[0], ids[0] + len(ids))]:
            ids = range(ids[0], ids[0] + len(ids))  # which travels in a few bytes, however long
        digest, space = self._kind(tasks[0])
        chunk = Chunk(ids, [task.attempt for task in tasks], digest, self._pickle_of(digest), space=space)
        texts = [task.args for task in tasks if isinstance(task.args, str) and task.kwargs is None]
        if len(texts) == len(tasks):
            chunk.text = codec.join(texts)
        else:
            chunk.calls = [(task.args, task.kwargs) for task in tasks]
        return chunk

    def _pickle_of(self, digest: bytes) -> bytes:
        pickled = self._own.get(digest) or self._functions.get(digest)
        if pickled is None:
            if len(self._functions) == _KNOWN_FUNCTIONS:
                self._functions.clear()
            pickled = self._functions[digest] = self._store.function(digest).pickle
        return pickled


def _timeout(task: Claimed) -> float | None:
    return None if task.options is None else task.options.timeout


def _is_apart(task: Claimed) -> bool:
    """Whether the task travels alone: one that may be ended, or whose owner has died in it."""
    return _timeout(task) is not None or task.owner_deaths > 0
