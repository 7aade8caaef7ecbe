"""A session that gets Ctrl-C at random moments, one after the other, and goes on.

    python interrupt_hunt.py START_METHOD STORE INTERRUPTS SEED

The main thread does what users do (see `Session`), two threads use the executor beside it, and another sends the
signals: to the main thread or, as a terminal does, to the whole process group; the next one when the last was raised,
or now and then a second one while the first is being handled, of which one may count for both. It ends with status 0
if each was raised within LOST_S, every future resolved with the right value, every callback was called, and no owner
is left in the store; else it prints what was wrong, or the stacks. An interrupt that is raised in a finalizer, from
which nothing can be raised, counts as lost. Its last line has how often what was interrupted, and the time of
the monotonic clock when all were raised.
"""

import collections
import concurrent.futures
import contextlib
import faulthandler
import json
import multiprocessing
import os
import pickle
import queue
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from omniq_executor import PersistentExecutor, PoolBroken, open_store

LOST_S = 20.0
SECOND_S = 0.05  # in which the second of two is raised, if it does not count as one with the first ...
LATE_S = 0.3  # ... where the thread that the system gave it to has to wait for a CPU
KEPT = 200  # futures
WRONG: list[str] = []


def square(n: int) -> int:
    return n * n


def nap(n: float) -> float:
    time.sleep(n / 1000)
    return n


def fail(n: int) -> int:
    raise ValueError(n)


def hang(*_: object) -> None:
    """Print all stacks and end: something takes for ever."""
    os.write(2, f"{WRONG}\n".encode())
    faulthandler.dump_traceback(all_threads=True)
    os._exit(9)


class Sender(threading.Thread):
    """Sends the interrupts."""

    def __init__(self, interrupts: int, seed: int) -> None:
        super().__init__(daemon=True)
        self.left = interrupts
        self.raised: queue.SimpleQueue[None] = queue.SimpleQueue()  # one that an interrupt can't break
        self.ended_at = 0.0  # 0 while it goes on; is_alive() of Python 3.11 may be wrong where it is interrupted
        self._random = random.Random(seed)

    def run(self) -> None:
        self.raised.get()  # to begin with
        while self.left:
            while not self.raised.empty():  # the second of two that came late
                self.raised.get()
            self._pause()
            self.left -= 1
            self._send()
            is_double = self._random.random() < 0.2 and self.left > 5
            if is_double:
                self._pause()
                self.left -= 1
                self._send()
            try:
                self.raised.get(timeout=LOST_S)
            except queue.Empty:
                hang()
            if is_double:
                with contextlib.suppress(queue.Empty):
                    self.raised.get(timeout=SECOND_S)
        time.sleep(LATE_S)
        self.ended_at = time.monotonic()

    def _pause(self) -> None:
        time.sleep(self._random.choice([0, 0.0001, 0.0005, 0.001, 0.003, 0.01]) * self._random.random())

    def _send(self) -> None:
        if self._random.random() < 0.3:
            os.killpg(0, signal.SIGINT)
        else:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


class Call:
    """A call that was submitted, and what is to come of it."""

    def __init__(self, executor: PersistentExecutor, future: Any, value: object) -> None:
        self.future = future
        self._owner = executor._dispatcher.owner
        self._value = value
        self.may_be_cancelled = False

    def check(self, given_up: set[int]) -> None:
        """Wait for it, and compare."""
        try:
            error = self.future.exception(LOST_S)
            found = self.future.result() if error is None or isinstance(error, PoolBroken) else error.args
            assert found == self._value, (self.future, found, self._value)
        except concurrent.futures.CancelledError:
            assert self.may_be_cancelled or self._owner in given_up, self.future
        except PoolBroken:
            assert self._owner in given_up, self.future
        except TimeoutError:
            hang()


class Session:
    """What the main thread does, and the threads beside it."""

    def __init__(self, method: str, store: str, seed: int) -> None:
        self.doing = ""
        self.stop = threading.Event()
        self._executor: PersistentExecutor | None = None
        self._calls: collections.deque[Call] = collections.deque()
        self._given_up: set[int] = set()  # executors left by Ctrl-C, or shut down with what had not started
        self._asked: list[Any] = []  # futures with a callback ...
        self._called: collections.deque[Any] = collections.deque()  # ... and those whose callback was called
        self._context = multiprocessing.get_context(method)
        self._store = store
        self._random = random.Random(seed)
        self._steps = [
            self.construct, self.submit, self.submit_many, self.result, self.map, self.map_lazily, self.map_unordered,
            self.drop_iterator, self.look_from_elsewhere,
            self.wait, self.as_completed, self.cancel, self.callback, self.callback_that_takes_time, self.exception,
            self.look, self.shutdown, self.with_block,
        ]  # fmt: skip

    # what it does

    def step(self) -> None:
        """Do something, whatever it is."""
        while len(self._calls) > KEPT:
            self._do(self.check)
        self._do(self._random.choice(self._steps))

    def _do(self, step: Callable[[], object]) -> None:
        self.doing = step.__name__
        step()

    @property
    def executor(self) -> PersistentExecutor:
        if self._executor is None:
            self._executor = self._make("hunt")
        return self._executor

    def _make(self, queue: str) -> PersistentExecutor:
        return PersistentExecutor(2, self._context, store=self._store, queue=queue, resume="never")

    def _submit(self, function: Callable[[int], int], n: int, value: object) -> Any:
        executor = self.executor
        future = executor.submit(function, n)
        self._calls.append(Call(executor, future, value))
        return future

    def _recent(self) -> list[Any]:
        return [call.future for call in list(self._calls)[-20:]]

    def check(self) -> None:
        self._calls[0].check(self._given_up)
        self._calls.popleft()

    def construct(self) -> None:
        if self._random.random() < 0.2:
            self._make("hunt").shutdown()

    def submit(self) -> None:
        self._submit(square, 3, 9)

    def submit_many(self) -> None:
        for n in range(self._random.randrange(40)):
            self._submit(square, n, n * n)

    def result(self) -> None:
        assert self._submit(square, 5, 25).result(LOST_S) == 25

    def exception(self) -> None:
        error = self._submit(fail, 5, (5,)).exception(LOST_S)
        assert isinstance(error, ValueError)
        assert error.args == (5,)

    def map(self) -> None:
        assert list(self.executor.map(square, range(50), timeout=LOST_S)) == [n * n for n in range(50)]

    def map_lazily(self) -> None:
        assert list(self.executor.map(square, range(50), timeout=LOST_S, buffersize=7)) == [n * n for n in range(50)]

    def map_unordered(self) -> None:
        found = self.executor.map_unordered(square, range(50), timeout=LOST_S, return_exceptions=True)
        assert sorted(found) == [n * n for n in range(50)]

    def look_from_elsewhere(self) -> None:
        """As another process does: by an owner of its own."""
        future = pickle.loads(pickle.dumps(self._submit(square, 6, 36)))
        future.add_done_callback(self._called.append)
        self._asked.append(future)
        if self._random.random() < 0.7:
            assert future.result(LOST_S) == 36

    def drop_iterator(self) -> None:
        for place, value in enumerate(self.executor.map(nap, [1] * 20)):
            assert value == 1
            if place == 3:
                break
        self.executor.map(nap, [1] * 5)

    def wait(self) -> None:
        how = self._random.choice([concurrent.futures.FIRST_COMPLETED, concurrent.futures.ALL_COMPLETED])
        concurrent.futures.wait(self._recent(), timeout=0.05, return_when=how)

    def as_completed(self) -> None:
        with contextlib.suppress(TimeoutError):
            for future in concurrent.futures.as_completed(self._recent(), timeout=0.05):
                assert future.done()

    def cancel(self) -> None:
        if self._calls:
            call = self._random.choice(self._calls)
            call.may_be_cancelled = True
            call.future.cancel(running=self._random.random() < 0.1)

    def callback(self) -> None:
        future = self._submit(square, 2, 4)
        future.add_done_callback(self._submit_another)
        future.add_done_callback(self._called.append)
        self._asked.append(future)

    def _submit_another(self, _: Any) -> None:
        with contextlib.suppress(RuntimeError):  # after shutdown()
            if self._executor is not None:
                assert self._executor.submit(square, 7).result(LOST_S) == 49

    def callback_that_takes_time(self) -> None:
        future = self._submit(square, 2, 4)
        future.add_done_callback(lambda _: time.sleep(0.005))
        future.add_done_callback(self._called.append)
        self._asked.append(future)
        future.result(LOST_S)

    def look(self) -> None:
        if self._calls:
            self.executor.stacks(0.01)
            self._calls[-1].future.running()

    def shutdown(self) -> None:
        if self._random.random() < 0.5:
            return
        executor, cancels = self.executor, self._random.random() < 0.3
        if cancels:
            self._given_up.add(executor._dispatcher.owner)
        self._executor = None
        executor.shutdown(self._random.random() < 0.7, cancel_futures=cancels)

    def with_block(self) -> None:
        if self._random.random() < 0.5:
            return
        executor = self._make("block")
        self._given_up.add(executor._dispatcher.owner)
        with executor:
            self._calls.extend([Call(executor, executor.submit(square, n), n * n) for n in range(5)])
            if self._random.random() < 0.5:
                self._calls[-1].future.result(LOST_S)

    # threads beside it

    def submit_beside(self) -> None:
        while not self.stop.wait(0.002):
            if self._executor is not None:
                self._submit(square, 4, 16)

    def map_beside(self) -> None:
        while not self.stop.is_set():
            if (executor := self._executor) is not None:
                assert list(executor.map(square, range(20), timeout=LOST_S)) == [n * n for n in range(20)]
                next(executor.map(nap, [1] * 5))
                concurrent.futures.wait(self._recent(), timeout=0.01)
            sum(range(20_000))

    def beside(self, loop: Callable[[], None]) -> None:
        """Run one of them."""
        while not self.stop.is_set():
            try:
                with self.going_on():
                    loop()
            except Exception as error:  # noqa: BLE001 - it is a thread's, and what was wrong is told in the end
                WRONG.append(f"{loop.__name__}: {error!r}")
                return

    # the end

    @contextlib.contextmanager
    def going_on(self) -> Iterator[None]:
        """Take no offence at what follows from what was asked for."""
        try:
            yield
        except concurrent.futures.CancelledError:
            pass
        except RuntimeError as error:
            if "after shutdown" not in str(error):
                raise

    def finish(self) -> None:
        """Wait for everything, and compare."""
        while self._calls:
            self.check()
        if self._executor is not None:
            self._executor.shutdown()
        missed = set(self._asked).difference(self._called)
        if missed:
            WRONG.append(f"{len(missed)} of {len(self._asked)} callbacks were not called")


def interrupted(sender: Sender, session: Session) -> collections.Counter[str]:
    """Be interrupted as often as is sent; return what was, how often."""
    found: collections.Counter[str] = collections.Counter()
    is_ready = False  # for the next
    while True:
        # Two of them, for a second interrupt that comes between the end of a `try` and the beginning of the next.
        try:
            while True:
                try:
                    if not is_ready:
                        is_ready = True
                        sender.raised.put(None)
                    while not sender.ended_at:
                        with session.going_on():
                            session.step()
                    return found
                except KeyboardInterrupt:
                    is_ready = False
                    found[session.doing] += 1
        except KeyboardInterrupt:
            is_ready = False


def main(method: str, store: str, interrupts: int, seed: int) -> int:
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    sys.setswitchinterval(random.Random(seed).choice([0.005, 1e-4, 1e-6]))
    sender, session = Sender(interrupts, seed), Session(method, store, seed)
    sys.unraisablehook = lambda found: WRONG.append(f"{found.exc_type.__name__} in {found.object!r}")
    session.submit()
    threads = [
        threading.Thread(target=session.beside, args=(loop,)) for loop in (session.submit_beside, session.map_beside)
    ]
    for thread in (*threads, sender):
        thread.start()
    found = interrupted(sender, session)
    faulthandler.dump_traceback_later(LOST_S, exit=True)
    session.stop.set()
    for thread in threads:
        thread.join()
    session.finish()
    opened = open_store(store)
    while opened.owners():  # of executors whose end nobody has waited for
        time.sleep(0.01)
    opened.close()
    sys.stderr.write("".join(f"{line}\n" for line in WRONG))
    sys.stdout.write(json.dumps({"interrupted": found, "last_at": sender.ended_at}))
    return 1 if WRONG else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
