"""Workers are killed, and stopped, at random while calls run: every future resolves, and every result is right.

How many are killed is in the environment variable OMNIQ_TEST_KILLS: 60 by default with fork and
forkserver, a quarter of that with spawn, whose workers take longer to start. The run that is asked of
a release:

    OMNIQ_TEST_KILLS=1000 pytest tests/test_stress.py -s

Each test prints its seed, and takes the one in OMNIQ_TEST_SEED if there is one. With it the same
victims are chosen at the same points; what each is doing then is up to the machine.
"""

import concurrent.futures
import contextlib
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import as_completed, wait
from multiprocessing.context import BaseContext
from typing import Any

import calls
import pytest

from omniq_executor import PersistentExecutor, WorkerCrashed

WAIT_S = 30.0
KILLS = int(os.environ.get("OMNIQ_TEST_KILLS", "60"))
SEED = int(os.environ.get("OMNIQ_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
STALL_S = 60.0  # without one call that ends, after which a test gives up

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kills and stops processes"),
    pytest.mark.timeout(120 + KILLS),
]


class Harm:
    """Kills and stops random workers of an executor from a thread of its own, as calls end.

    Each time after a random number of ends, so that there is always progress between two kills; no
    clock is involved. One worker at most is stopped at a time, and goes on a few ends later.
    """

    def __init__(self, executor: PersistentExecutor, kills: int, *, stops: bool = False, most: int = 12) -> None:
        self.seed = SEED
        self.kills = 0
        self.stops = 0
        self._executor = executor
        self._wanted = kills
        self._stops = stops
        self._most = most
        self._chance = random.Random(self.seed)
        self._ends = 0
        self._changed = threading.Condition()
        self._over = False
        self._stopped: int | None = None
        self._thread = threading.Thread(target=self._run, name="harm")

    def __enter__(self) -> "Harm":
        print(f"\nseed {self.seed}")  # noqa: T201 - for whoever looks into a failure
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._over = True
            self._changed.notify_all()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()

    @property
    def is_done(self) -> bool:
        """Whether all the kills have been made."""
        return self.kills >= self._wanted

    def watch(self, future: Any) -> None:
        """Count the end of this future as progress."""
        future.add_done_callback(self.progress)

    def progress(self, _: object = None) -> None:
        """A call has ended."""
        with self._changed:
            self._ends += 1
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            while not self.is_done and self._wait_for_ends(self._chance.randint(1, self._most)):
                self._harm_one()
        finally:
            self._let_go()

    def _wait_for_ends(self, count: int) -> bool:
        with self._changed:
            target = self._ends + count
            return self._changed.wait_for(lambda: self._over or self._ends >= target, STALL_S) and not self._over

    def _harm_one(self) -> None:
        pids = self._executor._dispatcher.engine.pids()
        if self._stopped is not None and (self._chance.random() < 0.5 or self._stopped not in pids):
            self._let_go()
        elif pids and self._stops and self._stopped is None and self._chance.random() < 0.5:
            self._stopped = self._chance.choice(pids)
            self.stops += self._send(self._stopped, signal.SIGSTOP)
        elif pids:
            self.kills += self._send(self._chance.choice(pids), signal.SIGKILL)

    def _let_go(self) -> None:
        if self._stopped is not None:
            self._send(self._stopped, signal.SIGCONT)
            self._stopped = None

    def _send(self, pid: int, signal_number: int) -> bool:
        try:
            os.kill(pid, signal_number)
        except ProcessLookupError:
            return False  # it is gone since
        return True


def report(text: str) -> None:
    """Print figures, for runs with -s."""
    print(text)  # noqa: T201


@pytest.fixture
def kills(method: str) -> int:
    """How many, for each start method."""
    return KILLS if method != "spawn" else KILLS // 4


class Load:
    """Calls of many kinds, whose right results are known."""

    def __init__(self, executor: PersistentExecutor, seed: int) -> None:
        self._executor = executor
        self._chance = random.Random(seed)
        self.expected: dict[Any, Any] = {}
        """The right result of each future."""

    def submit(self) -> Any:
        """Submit one call: tiny, busy for a millisecond or so, or with much to carry."""
        n = len(self.expected)
        match self._chance.randrange(8):
            case 0:
                text = f"{n}-" * 50_000
                future, right = self._executor.submit(calls.echo, text), text
            case 1:
                data = bytes([n % 256]) * 200_000
                future, right = self._executor.submit(calls.echo, data), data
            case 2 | 3:
                future, right = self._executor.submit(calls.sum_below, 20_000 + n), sum(range(20_000 + n))
            case _:
                future, right = self._executor.submit(calls.square, n), n * n
        self.expected[future] = right
        return future

    def check(self, future: Any) -> None:
        """Check a result that is there."""
        assert future.result(0) == self.expected[future], self._executor.store.get(future._number)


def pump(harm: Harm, load: Load, at_once: int = 100) -> None:
    """Submit calls, so many at once, until all the harm is done; and wait for all of them."""
    free = threading.BoundedSemaphore(at_once)
    while not harm.is_done:
        assert free.acquire(timeout=STALL_S), "no call ends any more"
        future = load.submit()
        harm.watch(future)
        future.add_done_callback(lambda _: free.release())
    _, left = wait(load.expected, timeout=STALL_S)
    assert not left


# --- Kills ---------------------------------------------------------------------------------------------------------


def test_killed_workers_cost_no_result_as_long_as_calls_may_be_tried_again(
    context: BaseContext, make_executor: Any, kills: int
) -> None:
    executor = make_executor(2, context, crash_retries=1_000_000)
    load = Load(executor, SEED)
    began = time.monotonic()
    with Harm(executor, kills) as harm:
        pump(harm, load)
    took = time.monotonic() - began
    for future in load.expected:
        load.check(future)
    tasks = [future.task() for future in load.expected]
    attempts = Counter(task.attempts for task in tasks)
    crashes = sum(task.crashes for task in tasks)
    assert crashes <= harm.kills
    report(
        f"{context.get_start_method()}: {harm.kills} kills and {len(tasks)} calls in {took:.1f} s;"
        f" {crashes} crashes charged; calls by attempts: {dict(sorted(attempts.items()))}"
    )


def test_with_few_retries_each_call_ends_with_its_result_or_as_crashed(
    context: BaseContext, make_executor: Any, kills: int
) -> None:
    executor = make_executor(2, context, crash_retries=0)
    load = Load(executor, SEED)
    with Harm(executor, kills) as harm:
        pump(harm, load)
    crashed = 0
    for future in load.expected:
        error = future.exception(0)
        if error is None:
            load.check(future)
        else:
            assert isinstance(error, WorkerCrashed), error
            assert "SIGKILL" in str(error)
            assert future.task_id in str(error)
            crashed += 1
    assert crashed <= harm.kills
    report(f"{context.get_start_method()}: {harm.kills} kills, {crashed} of {len(load.expected)} calls crashed")
    assert executor.submit(calls.square, 3).result(WAIT_S) == 9


def test_submits_and_maps_of_several_threads_survive_kills_and_stops(
    context: BaseContext, make_executor: Any, kills: int
) -> None:
    executor = make_executor(3, context, crash_retries=1_000_000)
    with Harm(executor, kills, stops=True) as harm:

        def submit(seed: int) -> int:
            load = Load(executor, seed)
            pump(harm, load, at_once=20)
            for future in load.expected:
                load.check(future)
            return len(load.expected)

        def map_all(size: int) -> int:
            count = 0
            while not harm.is_done:
                for n, result in enumerate(executor.map(calls.square, range(size), timeout=STALL_S * 2)):
                    assert result == n * n
                    count += 1
                    harm.progress()
            return count

        def map_some() -> int:
            rows = iter(range(1_000_000))
            count = 0
            results: Iterator[Any] = executor.map(calls.sum_below, rows, buffersize=7, timeout=STALL_S * 2 + KILLS)
            for n, result in enumerate(results):
                assert result == n * (n - 1) // 2
                count += 1
                harm.progress()
                if harm.is_done:
                    break
            return count

        with concurrent.futures.ThreadPoolExecutor(4) as threads:
            jobs = [threads.submit(submit, SEED), threads.submit(submit, SEED + 1)]
            jobs += [threads.submit(map_all, 300), threads.submit(map_some)]
            counts = [job.result() for job in as_completed(jobs, timeout=STALL_S * 2 + KILLS)]
    report(f"{context.get_start_method()}: {harm.kills} kills and {harm.stops} stops, {sum(counts)} calls")
    assert executor.submit(calls.square, 3).result(WAIT_S) == 9


def test_workers_that_are_replaced_all_the_time_can_be_killed_too(make_executor: Any) -> None:
    executor = make_executor(2, max_tasks_per_child=2, crash_retries=1_000_000)
    load = Load(executor, SEED)
    with Harm(executor, KILLS // 2) as harm:
        pump(harm, load)
    for future in load.expected:
        load.check(future)


def test_idle_workers_that_are_killed_cost_nothing(
    context: BaseContext, make_executor: Any, kills: int, wait_until: Any
) -> None:
    executor = make_executor(2, context, crash_retries=0)
    chance = random.Random(SEED)
    print(f"\nseed {SEED}")  # noqa: T201 - for whoever looks into a failure
    killed = 0
    while killed < kills:
        count = chance.randint(1, 4)
        futures = [executor.submit(calls.square, n) for n in range(count)]
        assert [future.result(WAIT_S) for future in futures] == [n * n for n in range(count)]
        assert all(future.task().crashes == 0 for future in futures)
        pids = wait_until(executor._dispatcher.engine.pids)  # with fork they are heard of
        for pid in chance.sample(pids, chance.randint(1, len(pids))):
            with contextlib.suppress(ProcessLookupError):  # it was killed before, and nobody has noticed yet
                os.kill(pid, signal.SIGKILL)
                killed += 1


# --- Stops ---------------------------------------------------------------------------------------------------------


def test_workers_that_are_stopped_now_and_then_cost_nothing(
    context: BaseContext, make_executor: Any, wait_until: Any
) -> None:
    executor = make_executor(2, context, crash_retries=0)
    load = Load(executor, SEED)
    chance = random.Random(SEED)
    print(f"\nseed {SEED}")  # noqa: T201 - for whoever looks into a failure
    for _ in range(KILLS // 3):
        futures = [load.submit() for _ in range(chance.randint(1, 30))]
        pids = wait_until(executor._dispatcher.engine.pids)  # with fork they are heard of
        pid = chance.choice(pids)
        os.kill(pid, signal.SIGSTOP)
        try:
            # All but what the stopped one is in end; and which one that is nobody knows.
            if len(futures) > 1:
                others, _ = wait(futures, timeout=WAIT_S, return_when=concurrent.futures.FIRST_COMPLETED)
                assert others
        finally:
            os.kill(pid, signal.SIGCONT)
        _, left = wait(futures, timeout=WAIT_S)
        assert not left
    for future in load.expected:
        load.check(future)
        assert future.task().attempts == 1
