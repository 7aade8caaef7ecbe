"""What the Engine protocol promises, for all that there are: the local pool, the external one, and the fake."""

import math
import selectors
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import calls
import pytest
from fake_engine import FakeEngine

from omniq_executor.engines.base import RESULT, RESULTS, RETURNED, Chunk, Engine, Report
from omniq_executor.engines.external import External
from omniq_executor.engines.local.pool import LocalEngine
from omniq_executor.engines.local.start_method import default_context
from omniq_executor.model.functions import Functions

WAIT_S = 30.0


class Bench:
    """An engine with what a dispatcher gives it: a selector, and somebody who takes its reports."""

    def __init__(self, engine: Engine, slots: Path) -> None:
        self.engine = engine
        self.selector = selectors.DefaultSelector()
        self.reports: list[Report] = []
        engine.attach(self.selector, lambda: None, slots)
        engine.prepare()

    def chunk(self, function: Callable[..., Any], *texts: str, first: int = 1) -> Chunk:
        described = Functions(lambda: self.engine.snapshot).describe(function)
        ids = [*range(first, first + len(texts))]
        return Chunk(ids, [3] * len(ids), described.digest, described.pickle, "[" + ",".join(texts) + "]")

    def take_reports(self, until: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not until():
            assert time.monotonic() < deadline
            if isinstance(self.engine, FakeEngine):
                self.engine.finish()
            for key, mask in self.selector.select(0.05) if self.selector.get_map() else ():
                key.data(mask)
            self.engine.steal(time.monotonic(), lambda: False)
            self.reports += self.engine.reports
            self.engine.reports.clear()


@pytest.fixture(params=["local", "external", "fake"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    made: dict[str, Callable[[], Engine]] = {
        "local": lambda: LocalEngine(2, default_context(), None, (), None),
        "external": External,
        "fake": lambda: FakeEngine(2),
    }
    bench = Bench(made[request.param](), tmp_path / "slots")
    yield bench
    bench.engine.close(grace_s=5)


runs_calls = pytest.mark.parametrize("bench", ["local", "fake"], indirect=True)


def test_an_engine_that_was_given_nothing_has_nothing_and_does_nothing(bench: Bench) -> None:
    engine = bench.engine
    assert (engine.is_busy(), [*engine.held()], engine.broken, engine.awaits_results()) == (False, [], None, False)
    engine.recall({1, 2})
    engine.end({1, 2})
    engine.ask_for_results()
    engine.steal(time.monotonic(), lambda: True)
    assert engine.reports == []
    assert engine.next_check(lambda: True) == math.inf
    ended: list[bool] = []
    assert engine.probe_stacks(lambda: ended.append(True)).stacks() == {}
    assert ended == [True]


def test_there_is_room_where_calls_can_run_and_nowhere_else(bench: Bench) -> None:
    total, best = bench.engine.free_capacity()
    assert 0 <= best <= total
    assert (best > 0) is (bench.engine.idle() > 0) is (bench.engine.max_workers > 0)


@pytest.mark.parametrize("bench", ["external"], indirect=True)
def test_an_engine_without_room_takes_no_call(bench: Bench) -> None:
    with pytest.raises(RuntimeError, match="were given to an engine that runs none"):
        bench.engine.give(bench.chunk(calls.square, "[2]"))


@runs_calls
def test_each_call_is_reported_once_with_its_id_and_attempt(bench: Bench) -> None:
    engine = bench.engine
    engine.give(bench.chunk(calls.square, "[2]"))
    assert engine.is_busy()
    assert [*engine.held()] == [1]
    bench.take_reports(lambda: not engine.is_busy())
    engine.give(bench.chunk(calls.square, "[3]", "[4]", first=2))
    bench.take_reports(lambda: not engine.is_busy())
    assert [*engine.held()] == []
    claims = [claim for report in bench.reports for claim in zip(report.ids, report.attempts, strict=True)]
    assert sorted(claims) == [(1, 3), (2, 3), (3, 3)]
    assert {report.kind for report in bench.reports} <= {RESULT, RESULTS}


@runs_calls
def test_what_is_recalled_comes_back_as_it_was_given_or_has_started(bench: Bench, tmp_path: Path) -> None:
    engine = bench.engine
    gate = tmp_path / "gate"
    engine.throughput.lead = 3
    engine.give(bench.chunk(calls.wait_for, *[f'["{gate}"]'] * 3))
    engine.recall({1, 2, 3})
    back = [report for report in engine.reports if report.kind == RETURNED]
    returned = {id: attempt for report in back for id, attempt in zip(report.ids, report.attempts, strict=True)}
    assert {2: 3, 3: 3}.items() <= returned.items()
    assert [[*report.payload.ids] for report in back] == [[*report.ids] for report in back]
    assert {*engine.held()} | {*returned} == {1, 2, 3}
    gate.touch()
    engine.reports.clear()


@runs_calls
def test_an_engine_that_is_closed_reports_no_more(bench: Bench, tmp_path: Path) -> None:
    bench.engine.give(bench.chunk(calls.wait_for, f'["{tmp_path / "gate"}"]'))
    bench.engine.close(9, 5)
    assert bench.engine.reports == []
    assert not bench.engine.is_busy()
