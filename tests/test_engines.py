"""What the Engine protocol promises, for those that need nothing installed: local, external, fake, and Executors."""

import time
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import calls
import pytest
from engine_contract import Bench, EngineContract, RunsCalls, RunsCallsInWorkers, values_of
from fake_engine import FakeEngine

from omniq_executor.engines.adapter import ExecutorEngine
from omniq_executor.engines.base import CRASHED, RETURNED, Engine
from omniq_executor.engines.external import External
from omniq_executor.engines.local.pool import LocalEngine
from omniq_executor.engines.local.start_method import default_context


def paced(path: Path, gate: Path, place: int) -> int:
    """Append a line: the first after some time, the second at once, the third when the gate is open."""
    if place == 0:
        time.sleep(0.02)
    elif place == 2:
        calls.wait_for(gate)
    calls.note(path, place)
    return place


class TestLocal(RunsCallsInWorkers):
    def make(self) -> Engine:
        return LocalEngine(2, default_context(), None, (), None)

    def test_a_message_of_before_is_not_taken_for_all_that_a_worker_has_to_tell_before_it_is_ended(
        self, bench: Bench, journal: Any, gate: Path
    ) -> None:
        """Then calls whose results lay there ran twice."""
        engine = bench.engine
        for first in range(1, 60, 3):
            engine.throughput.lead = 3
            bench.run(bench.chunk(calls.square, (2,), first=1000))  # a worker is there
            lines = len(journal.lines())
            engine.give(bench.chunk(paced, *((journal.path, gate, place) for place in range(3)), first=first))
            journal.wait_for(lines + 2)  # the first was told of as it ended, and that lies in the socket
            engine.end({first + 2})
            ended = bench.run()
            assert values_of({id: ended[id] for id in (first, first + 1)}) == {first: 0, first + 1: 1}
            assert (ended[first + 2].kind, journal.lines()[lines:]) == (CRASHED, ["0", "1"])

    def test_who_is_idle_takes_over_what_waits_in_a_worker_that_reports_regularly(self, bench: Bench) -> None:
        engine = bench.engine
        for first in (1, 2):
            engine.give(bench.chunk(calls.square, (2,), first=first))  # so that there are two
        bench.take_reports(lambda: not engine.is_busy())
        engine.give(bench.chunk(time.sleep, *[(0.004,)] * 60, first=3))
        bench.take_reports(lambda: not engine.is_busy(), is_idle=True)
        returned = [id for report in bench.reports if report.kind == RETURNED for id in report.ids]
        assert len(returned) > 30


class TestFake(RunsCalls):
    def make(self) -> Engine:
        return FakeEngine(2)


class TestExternal(EngineContract):
    def make(self) -> Engine:
        return External()

    def test_it_takes_no_call(self, bench: Bench) -> None:
        with pytest.raises(RuntimeError, match="were given to an engine that runs none"):
            bench.engine.give(bench.chunk(calls.square, (2,)))


class OnExecutor(RunsCallsInWorkers):
    ENDS = RECALLS = False

    def make(self) -> Engine:
        return ExecutorEngine(self.executor)

    def executor(self) -> Executor:
        raise NotImplementedError


class TestProcessPool(OnExecutor):
    def executor(self) -> Executor:
        return ProcessPoolExecutor(2, default_context())


class TestThreadPool(OnExecutor):
    DIES = False

    def executor(self) -> Executor:
        return ThreadPoolExecutor(2)
