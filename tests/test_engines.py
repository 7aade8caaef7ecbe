"""What the Engine protocol promises, for those that need nothing installed: local, external, fake, and Executors."""

import time
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor

import calls
import pytest
from engine_contract import Bench, EngineContract, RunsCalls, RunsCallsInWorkers
from fake_engine import FakeEngine

from omniq_executor.engines.adapter import ExecutorEngine
from omniq_executor.engines.base import RETURNED, Engine
from omniq_executor.engines.external import External
from omniq_executor.engines.local.pool import LocalEngine
from omniq_executor.engines.local.start_method import default_context


class TestLocal(RunsCallsInWorkers):
    def make(self) -> Engine:
        return LocalEngine(2, default_context(), None, (), None)

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
