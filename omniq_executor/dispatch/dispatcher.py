"""What executors, maps, futures and workers ask for: submit, add, cancel, look, close.

submit(), add(), cancel(), ...     [ enter, with Ctrl-C put off; the lock -- a turn of loop.py -- unlock, tell ]
wait_until()                       takes the turns meanwhile, see driving.py
"""

import contextlib
import functools
import logging
import selectors
import signal
import threading
import time
from _thread import start_new_thread
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..engines.base import Engine
from ..errors import CallError, PoolBroken, StoreError
from ..model.functions import stored_call
from ..model.options import CallOptions
from ..model.reasons import Reason, Resumed, Why
from ..model.task import Call, Function, Status
from ..stores.base import Batch, Resume, Run, Store, TaskState, now
from ..value_files import Files
from .dropped import when_dropped
from .loop import KILL_AFTER_S, USUAL, Loop
from .maps import Maps, is_resumed, recurs
from .resumption import NOTHING, Foresight, OnChange
from .reuse import is_memo, memo_key, name_of
from .standing import Standing, standing_of
from .waiters import Consumer, Waiters, outcome_of

if TYPE_CHECKING:
    from ..model.failures import Failures

ANSWER_S = 0.2  # in which workers that are to be ended can send what they have

_log = logging.getLogger("omniq_executor")

open_dispatchers: "dict[Dispatcher, Callable[[], Any]]" = {}
"""Those of executors that have not come to their end, with what notices that the executor is dropped."""


class Dispatcher:
    """See the module's docstring. Executors make one each; it is not for direct use."""

    def __init__(
        self,
        store: Store,
        owner: int,
        run: Run,
        engine: Engine,
        crash_retries: int,
        waiters: Waiters | None = None,
        queues: Sequence[str] | None = None,
        runs_leftovers: bool = False,
        resume: Resume = "never",
        new_future: "Callable[[Dispatcher, int | None], Any] | None" = None,
        on_change: OnChange = "rerun",
    ) -> None:
        """`queues` are those to claim from, as in Turn, or None for what is of the run.

        `waiters` is told of what finishes. With `runs_leftovers` the run adopts what is PENDING in its queue and
        that nobody else would run. With resume="always" equal calls of the run are one, however often they are
        submitted. `new_future` makes what waits for the task of an id.
        """
        self.store = store
        self.owner = owner
        self.engine = engine
        self.files: Files | None = store.values if engine.sees_files else None
        """Where large values go that are submitted, if the workers see these."""
        self.initializer: Any = None
        """Of the workers, with its arguments, if there is one: for who makes a call once more."""
        self._waiters = waiters or Waiters()
        self._new_future: Any = new_future
        self._whys: dict[int, Why] = {}  # that were looked up last
        self._loop = Loop(
            store, owner, run, engine, crash_retries, self._waiters, queues, runs_leftovers, resume, on_change
        )
        self._resume = resume
        self._maps = Maps(self._loop, self._waiters, owner)
        self.driver = self._loop.driver

    @property
    def run(self) -> Run:
        """The run that it works off."""
        return self._loop.resumption.run

    # adding

    def submit(self, function: Function, call: Call, call_options: CallOptions = USUAL) -> Any:
        """Store a call, and give it to a worker if one has room; return its future.

        Raises StoreError, and leaves nothing behind then.
        """
        self.driver.refuse_within()
        key = call_options.key
        if key is not None and is_memo(key):
            key = memo_key(self.run, function, call)
            call_options = call_options._replace(key=key)
        with self.driver:
            loop = self._loop
            loop.enter()
            if loop.claims.queue.know(function):
                loop.resumption.know(function)
            if (had := loop.resumption.had) is not None and key is None and not recurs(call_options.options):
                return self._submit_once(had, function, call, call_options)
            found, why = loop.resumption.find(function, call, key)
            if found is None:
                try:
                    return self._submit_new(loop.ids.take(1), function, call, call_options, why)
                except StoreError:
                    # Another process may have been faster with the same key.
                    found = self.store.by_key(self.run.queue, key) if key is not None else None
                    if found is None:
                        raise
                    why = Why(Reason.KEY)
            return self._submit_found(found, why, call_options)

    def _submit_once(self, had: dict[bytes, int], function: Function, call: Call, call_options: CallOptions) -> Any:
        """Submit a call that is the one that the run has had, if it has."""
        loop, name = self._loop, name_of(function, call)
        found, why = loop.resumption.find_once(had, function, {name: call}).get(name, NOTHING)
        if found is not None:
            return self._submit_found(found, why, call_options)
        id = loop.ids.take(1)
        future = self._submit_new(id, function, call, call_options, why)
        had[name] = id
        return future

    def _submit_found(self, found: TaskState, why: Why | None, call_options: CallOptions) -> Any:
        is_new = self._waiters.future(found.id) is None
        future = self._future_of(found)
        if is_new:  # else it is that of whoever submitted the call first
            future._why = why
        future.resumed = is_resumed(found, self.owner)
        if found.status is Status.COMPLETED and self._loop.is_at_rest():
            self.driver.leave_asleep()  # the future is told by this thread, and there is nothing else to do
        else:
            self._loop.turn_or_later()
            self._loop.heed_needs(call_options.options)
        return future

    def _submit_new(self, id: int, function: Function, call: Call, call_options: CallOptions, why: Why | None) -> Any:
        future = self._new_future(self, id)
        if why is not None:
            future._why = why
        if call_options is not USUAL and recurs(call_options.options):
            future.recurs = True
        self._waiters.add_future(id, future)
        try:
            self._loop.add_one(id, function, call, call_options)
        except BaseException as error:
            self._loop.take_back((id,), error)
            raise
        if call_options is not USUAL:
            self._loop.heed_needs(call_options.options)
        return future

    def share(self, runs: Sequence[int]) -> None:
        """Share what there is to be taken over with runs of this process that are open. Raises StoreError."""
        self.driver.refuse_within()
        with self.driver:
            if not self.driver.is_closed:
                self._loop.resumption.share(runs)

    def failed(self, error: CallError) -> Any:
        """Return the future of a call that cannot be stored."""
        future = self._new_future(self, None)
        future.set_exception(error)
        return future

    def add(self, consumer: Consumer, position: int, batch: Batch) -> None:
        """Store new calls for consecutive positions of a consumer. Their ids are given here."""
        self.driver.refuse_within()
        with self.driver:
            self._loop.enter()
            if self._loop.claims.queue.know(batch.function):
                self._loop.resumption.know(batch.function)
            self._maps.add(consumer, position, batch)

    def prepare(self) -> Any:
        """Make ready for a first call, before it is described, and return the engine's snapshot.

        No turn is under way meanwhile, if that forks.
        """
        with self.driver:
            if not self.driver.is_closed:
                self.engine.prepare()
            return self.engine.snapshot

    def stored(
        self, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any], has_key: bool = False
    ) -> tuple[Call, tuple[int, ...]]:
        """Return the stored form of a call, for this store and these workers. See stored_call()."""
        return stored_call(
            function, args, kwargs, self.engine.snapshot, has_key, store=self.store.url, files=self.files
        )

    def free_capacity(self, function: Function) -> int:
        """Return how many calls of a map are best added at once, for one worker to take; 0 if all have enough."""
        with self.driver:
            if self._loop.has_work() or self._loop.resumption.takes_all:
                return 0
            return self.engine.free_capacity(function.digest)[1]

    def future(self, id: int) -> Any:
        """Return a future for any task of the store, or None if there is none of that id."""
        self.driver.refuse_within()
        with self.driver:
            self._loop.enter()
            found = self.store.states([id])
            if not found:
                return None
            future = self._future_of(found[0])
            self._loop.turn_or_later()
            return future

    def retry(self, ids: Sequence[int]) -> list[Any]:
        """Have those of the tasks run again that FAILED or are CANCELLED; return their futures, oldest first."""
        self.driver.refuse_within()
        with self.driver:
            loop = self._loop
            loop.enter()
            retried = self.store.retry(ids, now()) if ids else []
            loop.peers.must_notify = loop.peers.must_notify or bool(retried)
            futures = [self._future_of(found) for found in sorted(self.store.states(retried))]
            loop.turn_or_later()
            return futures

    def failures(self) -> "Failures":
        """Return what has FAILED of the run and of those that it continues."""
        runs = self.run.id, *self.run.continues
        with self._looking() as store:
            from .history import failures_of  # by who asks, as below; and within, see interrupts.py

            return failures_of(store, (call for call in store.failures() if call.run in runs), self.retry)

    def _future_of(self, found: TaskState) -> Any:
        """Return the future of a task that is in the store already."""
        future: Any = self._waiters.future(found.id)
        if future is None:
            future = self._new_future(self, found.id)
            self._waiters.add_future(found.id, future)
            self._loop.take_in_state(found, may_adopt=True)
        return future

    def work_off(self) -> None:
        """Begin with the queue, whoever has added to it, though nothing has been added here."""
        with self.driver:
            self._loop.claim_from((self.run.queue,))
            self._loop.enter()
            self._loop.turn_or_later()

    # cancelling

    def cancel(self, ids: Sequence[int], running: bool = False) -> None:
        """Cancel those of the tasks that have not started, for good; with `running`, end those that have."""
        if self.driver.is_within():
            self._cancel_later(ids, running)
            return
        with self.driver:
            if not self.driver.is_closed:
                self._loop.cancel(ids, running)

    def forget(self, consumer: Consumer, running: bool = False) -> None:
        """Nobody waits for the consumer's tasks any more: cancel those that have not started, or with `running` all."""
        if self.driver.is_within():
            self._cancel_later(self._waiters.ids(consumer), running)
            return
        with self.driver:
            if not self.driver.is_closed:
                self._loop.cancel(self._waiters.ids(consumer), running)

    def _cancel_later(self, ids: Sequence[int], running: bool) -> None:
        """Cancel calls once the turn is over that a handler of a signal has interrupted in this thread."""
        self._loop.dropped.cancel(ids, running)
        self.driver.wake()

    def watch(self, iterator: Any, consumer: Consumer) -> None:
        """As `forget()`, when an iterator is dropped, with a turn that follows."""
        self._loop.dropped.watch(iterator, consumer)

    def unwatch(self, consumer: Consumer) -> None:
        """Do nothing when it is dropped, as it has come to its end."""
        self._loop.dropped.unwatch(consumer)

    # looking

    def close_with(self, executor: Any) -> None:
        """As `close(wait=False)`, when the executor is dropped: by another thread, see dropped.py."""
        close = functools.partial(start_new_thread, self.close, (False,))
        open_dispatchers[self] = when_dropped(executor, close)
        self._loop.on_end = functools.partial(open_dispatchers.pop, self, None)

    def read(self, first: int, count: int) -> list[Any]:
        """Return the outcomes of finished tasks with consecutive ids, each as for a Consumer; also after the end."""
        with self._looking() as store:
            return [outcome_of(found) for found in sorted(store.states(range(first, first + count)))]

    def foresee(self, function: Function, calls: Sequence[Call], foresight: Foresight, *, memo: bool) -> list[Why]:
        """Return for each call why it would run, or need not. `foresight` has what came of those before them."""
        with self.driver:
            if self.driver.is_closed:
                raise RuntimeError("cannot preview calls after shutdown")
            self._loop.resumption.know(function)
            asks_store = memo or self._loop.resumption.asks_store
            from .history import account_of
        if asks_store and foresight.account is None:
            with self._reading() as store:
                foresight.account = account_of(store, self.run.id, function, memo)
        with self.driver:
            fresh = None if self.run.continues else self._fresh
            return self._loop.resumption.foresee_each(function, calls, foresight, fresh, memo)

    def resumed(self) -> Resumed:
        """Return what the run has taken over so far, and why the rest was not."""
        with self._looking() as store:
            from .history import resumed_by

            resumed, asks_store = self._loop.resumption.so_far(store), self._loop.resumption.asks_store
        resumed.fresh = None if self.run.continues else self._fresh
        if asks_store:
            with self._reading() as store:
                resumed.count_as(resumed_by(store, self.run.id))
        return resumed

    def why(self, id: int) -> Why:
        """Return why a task runs, or did, by what is stored."""
        with self._looking() as store:
            from .history import why_of

            task = store.get(id)
        is_own = task.run == self.run.id
        if is_own and not (self.run.continues or self._loop.resumption.asks_store):
            return self._fresh
        with self._reading() as store:
            found = why_of(store, id, self._whys)
        if not is_own or is_memo(task.key or ""):  # which may be there whatever the run continues
            return found
        return self._fresh if found.reason in (Reason.AFRESH, Reason.CONTEXT) else found

    @functools.cached_property
    def _fresh(self) -> Why:
        """Why the run continues no others, if it does not."""
        with self._looking() as store:
            from .history import why_fresh

            return why_fresh(store, self.run.id, self._resume == "never")

    @contextlib.contextmanager
    def _looking(self) -> Iterator[Store]:
        """Give the store, also after the end."""
        with self.driver:
            if not self.driver.is_closed:
                yield self.store
                return
        with self._reading() as store:
            yield store

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Store]:
        """Give the store by a handle of its own, so that nobody else has to wait: for looks at all calls of a run."""
        with contextlib.closing(self.store.reopen()) as store:
            yield store

    def wait_until(self, done: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Wait for what a turn brings, see Driver.wait_until()."""
        return self.driver.wait_until(done, timeout_s)

    def stacks(self, timeout_s: float) -> dict[int, str]:
        """Return the Python stacks of the calls that are running, by id. Those that wait meanwhile are not held up."""
        ended = threading.Event()
        with self.driver:
            probe = self.engine.probe_stacks(ended.set)
        self.driver.wait_until(ended.is_set, timeout_s)
        with self.driver:
            return probe.stacks()

    def has_claimed(self, id: int) -> bool:
        """Return whether the task is with a worker, here or elsewhere, or about to be."""
        if self.driver.is_within():  # and the store may be in the middle of something, too
            return id in self._loop.claims.held()
        with self.driver:
            if id in self._loop.claims.held():
                return True
            return not self.driver.is_closed and any(it.status is Status.RUNNING for it in self.store.states([id]))

    @property
    def awaited(self) -> int:
        """How many calls are waited for and not done."""
        return self._waiters.open

    def standing(self, consumer: Consumer | None = None) -> Standing | None:
        """Return how calls stand: a consumer's alone, or all. None where a turn takes so long that nobody can tell."""
        return self.driver.glance(functools.partial(standing_of, self._loop, self.engine, consumer))

    @property
    def failure(self) -> str | None:
        """Why nothing is taken any more."""
        return self._loop.failure

    # closing

    def leave_unclean(self) -> None:
        """Have the run be continued by the next one: it has not gone well."""
        self._loop.clean = False

    def note_cell(self, failed: bool, interrupted: bool) -> None:
        """Take note of how a cell of the notebook has ended, see Loop.note_cell()."""
        with self.driver:
            if not self.driver.is_closed:
                self._loop.note_cell(failed, interrupted)

    def let_go(self, why: str) -> None:
        """End, so that another run can continue this one: at once if anything is under way."""
        with self.driver:
            is_busy = bool(self._waiters.open or self._loop.claims.held())
        if is_busy:
            self.stop(signal.SIGTERM, why)
        else:
            self.close(wait=True)

    def close(self, wait: bool, cancel_futures: bool = False) -> None:
        """Take nothing more, and end when everything awaited is resolved. With `wait`, return only then."""
        if self.driver.is_within():
            start_new_thread(self.close, (False, cancel_futures))
            return
        with self.driver:
            if self.driver.is_closed:
                return
            self._loop.resumption.ends_leftovers &= not cancel_futures
            self._loop.is_closing = self.driver.is_ending = True
            if self._loop.has_leftovers():
                self.driver.start()
                self._loop.take_turn()
            if cancel_futures:
                try:
                    self._loop.cancel(self._waiters.ids())
                except StoreError as error:
                    _log.error("%s; calls that could not be cancelled are run", error)
        self.driver.rouse()
        if not self.driver.has_thread:
            self._loop.end()
        elif wait and not self._waiters.is_notifying():
            self.driver.wait_until(self._loop.is_over)
            self.driver.rouse()
            self.driver.join()

    def stop(self, signal_number: int, why: str) -> None:
        """End the workers now. Calls that are not done stay in the store as PENDING; their futures fail."""
        if self.driver.is_within():
            start_new_thread(self.stop, (signal_number, why))
            return
        loop = self._loop
        with self.driver:
            if self.driver.is_closed:
                return
            loop.clean = False
            loop.is_closing = loop.is_draining = self.driver.is_ending = True
            try:
                self._save_results()
            finally:
                self.engine.close(signal_number, KILL_AFTER_S)
            loop.fail(PoolBroken(f"{why}; the call stays in the store and can be run again"))
        self.close(wait=True)

    def _save_results(self) -> None:
        """Bring in the results of calls that are done, before their workers are ended."""
        self.engine.ask_for_results()
        deadline = time.monotonic() + ANSWER_S
        while self.engine.awaits_results() and (left := deadline - time.monotonic()) > 0:
            self.driver.poll(left)
        try:
            self._loop.turn()
        except StoreError as error:
            _log.error("the last results could not be stored, and their calls will run again: %s", error)

    def drain(self) -> None:
        """Claim nothing more, give back what has not started, and be finished when what runs is stored."""
        with self.driver:
            self._loop.is_closing = self._loop.is_draining = self.driver.is_ending = True
            self.engine.recall(set(self.engine.held()))
            self.driver.wake()

    def serve(self, is_over: Callable[[], bool]) -> None:
        """Take turns in the calling thread until it is drained, the pool is broken, or `is_over()`."""
        self.driver.rouse()  # for what is there already
        self.driver.wait_until(lambda: is_over() or self.driver.is_stopped or self._loop.is_over())

    def listen(self, fd: int, on_data: Callable[[], None]) -> None:
        """Have `on_data` called in a turn, under the lock, when `fd` can be read."""
        self.driver.selector.register(fd, selectors.EVENT_READ, lambda _: on_data())

    def leave_to_parent(self) -> None:
        """After a fork, in the child: let go of what is the parent's."""
        self._loop.leave_to_parent()
