"""A session that gets Ctrl-C at random moments, one after the other, and goes on.

    python interrupt_hunt.py START_METHOD STORE INTERRUPTS SEED

The main thread does what users do, a thread submits beside it, and another sends the signals: the next one when the
last was raised. It ends with status 0 if each was raised within LOST_S, every future resolved, and the executor ended;
else it prints the stacks. An interrupt that is raised in a finalizer, from which nothing can be raised, counts as lost.
"""

import concurrent.futures
import contextlib
import faulthandler
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from typing import Any

from omniq_executor import PersistentExecutor

LOST_S = 20.0
KEPT = 200  # futures


def square(n: int) -> int:
    return n * n


def nap(n: float) -> float:
    time.sleep(n / 1000)
    return n


class Sender(threading.Thread):
    """Sends the interrupts to the main thread."""

    def __init__(self, interrupts: int, seed: int) -> None:
        super().__init__(daemon=True)
        self.left = interrupts
        self.raised = threading.Semaphore(0)
        self._random = random.Random(seed)

    def run(self) -> None:
        main = threading.main_thread().ident
        assert main is not None
        while self.left:
            time.sleep(self._random.choice([0, 0.0001, 0.0005, 0.001, 0.003, 0.01]) * self._random.random())
            self.left -= 1
            signal.pthread_kill(main, signal.SIGINT)
            if not self.raised.acquire(timeout=LOST_S):
                faulthandler.dump_traceback(all_threads=True)
                os._exit(9)


class Session:
    """What the main thread does."""

    def __init__(self, method: str, store: str, seed: int) -> None:
        self.executor: PersistentExecutor | None = None
        self.futures: list[Any] = []
        self._context = multiprocessing.get_context(method)
        self._store = store
        self._random = random.Random(seed)

    def step(self) -> None:
        """Do something, whatever it is."""
        if self.executor is None:
            self.executor = PersistentExecutor(2, self._context, store=self._store, resume="never")
        recent, chance = self.futures[-20:], self._random.random()
        match self._random.randrange(11):
            case 0:
                self.futures.append(self.executor.submit(square, 3))
            case 1:
                for n in range(self._random.randrange(40)):
                    self.futures.append(self.executor.submit(square, n))
            case 2:
                assert self.executor.submit(square, 5).result(LOST_S) == 25
            case 3:
                assert list(self.executor.map(square, range(50))) == [n * n for n in range(50)]
            case 4:
                for place, _ in enumerate(self.executor.map(nap, [1] * 20)):
                    if place == 3:
                        break
            case 5:
                concurrent.futures.wait(recent, timeout=0.05)
            case 6:
                with contextlib.suppress(TimeoutError):
                    for future in concurrent.futures.as_completed(recent, timeout=0.05):
                        future.done()
            case 7 if recent:
                recent[0].cancel()
            case 8:
                self.futures.append(self.executor.submit(square, 2))
                self.futures[-1].add_done_callback(self._submit_another)
            case 9 if recent:
                recent[-1].exception(LOST_S) if not recent[-1].cancelled() else None
            case 10 if chance < 0.1:
                self.executor.shutdown(wait=chance < 0.07, cancel_futures=chance < 0.03)
                self.executor = None
        del self.futures[:-KEPT]

    def _submit_another(self, _: Any) -> None:
        with contextlib.suppress(RuntimeError):  # after shutdown()
            if self.executor is not None:
                self.executor.submit(square, 7)

    def run(self, sender: Sender) -> None:
        """Do one thing after the other, until all interrupts were sent."""
        while sender.left:
            try:
                while sender.left:
                    try:
                        self.step()
                    except concurrent.futures.CancelledError:
                        pass
                    except RuntimeError as error:
                        if "after shutdown" not in str(error):
                            raise
                        self.executor = None
            except KeyboardInterrupt:
                sender.raised.release()

    def submit_beside(self, stop: threading.Event) -> None:
        """Submit in another thread."""
        while not stop.wait(0.002):
            executor = self.executor
            if executor is not None:
                with contextlib.suppress(RuntimeError, concurrent.futures.CancelledError):
                    self.futures.append(executor.submit(square, 4))


def main(method: str, store: str, interrupts: int, seed: int) -> int:
    sender, session, stop = Sender(interrupts, seed), Session(method, store, seed), threading.Event()
    lost = []
    sys.unraisablehook = lambda found: lost.append(f"{found.exc_type.__name__} in {found.object!r}")
    other = threading.Thread(target=session.submit_beside, args=(stop,), daemon=True)
    session.step()
    other.start()
    is_started = False
    while not is_started or other.is_alive() or sender.is_alive():
        try:
            if not is_started:
                is_started = True
                sender.start()
            session.run(sender)
            sender.join()
            stop.set()
            other.join()
        except KeyboardInterrupt:
            sender.raised.release()
    faulthandler.dump_traceback_later(LOST_S, exit=True)
    concurrent.futures.wait(session.futures)
    if session.executor is not None:
        session.executor.shutdown()
    if lost:
        sys.stderr.write("\n".join(lost))
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
