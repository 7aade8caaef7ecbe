"""What the Engine protocol promises, for those that need nothing installed: local, external, fake, and Executors."""

from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor

import calls
import pytest
from engine_contract import Bench, EngineContract, RunsCalls, RunsCallsInWorkers
from fake_engine import FakeEngine

from omniq_executor.engines.adapter import ExecutorEngine
from omniq_executor.engines.base import Engine
from omniq_executor.engines.external import External
from omniq_executor.engines.local.pool import LocalEngine
from omniq_executor.engines.local.start_method import default_context


class TestLocal(RunsCallsInWorkers):
    def make(self) -> Engine:
        return LocalEngine(2, default_context(), None, (), None)


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
