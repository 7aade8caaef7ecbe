"""What the Engine protocol promises, as a class of tests that is derived from for each engine.

Where an engine may do otherwise, an attribute of the class says so:

    ENDS       a call that runs can be ended; else it is over for whoever asks, and runs on
    RECALLS    calls of a chunk that has begun can be taken back, if they have not; else the chunk is done as a whole
    DIES       a call can take its process along, and harms no other
"""

import math
import selectors
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import calls
import pytest

from omniq_executor.engines.base import CRASHED, ERROR, RESULT, RESULTS, RETURNED, TIMED_OUT, Chunk, Engine, Report
from omniq_executor.model import codec
from omniq_executor.model.functions import Functions

WAIT_S = 30.0


def killable_script(engine: str, count: int) -> str:
    """A script that maps over so many items on an engine, and is killed at the result whose place it is given."""
    return f"""
import os, signal, sys
from concurrent.futures import ProcessPoolExecutor
from omniq_executor import PersistentExecutor

def work(n):
    fd = os.open("journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{{n}}\\n".encode())
    os.close(fd)
    return n * n

if __name__ == "__main__":
    with PersistentExecutor(engine={engine}) as executor:
        total = 0
        for place, result in enumerate(executor.map(work, range({count}))):
            total += result
            if place == int(sys.argv[1]):
                os.kill(os.getpid(), signal.SIGKILL)
        print(total)
"""


class Bench:
    """An engine with what a dispatcher gives it: a selector, and somebody who takes its reports."""

    def __init__(self, engine: Engine, slots: Path) -> None:
        self.engine = engine
        self.selector = selectors.DefaultSelector()
        self.reports: list[Report] = []
        self._queue: deque[Chunk] = deque()
        engine.attach(self.selector, lambda: None, slots)
        engine.prepare()

    def chunk(self, function: Callable[..., Any], *rows: tuple[Any, ...], first: int = 1) -> Chunk:
        described = Functions(lambda: self.engine.snapshot).describe(function)
        ids = [*range(first, first + len(rows))]
        chunk = Chunk(ids, [3] * len(ids), described.digest, described.pickle, codec.encode_rows(rows))
        if chunk.text is None:
            chunk.calls = [codec.encode_call(row, {}) for row in rows]
        return chunk

    def look(self, wait_s: float = 0.05, is_idle: bool = False) -> None:
        """Take in what there is."""
        for key, mask in self.selector.select(wait_s) if self.selector.get_map() else ():
            key.data(mask)
        self.engine.steal(time.monotonic(), lambda: is_idle)
        self.reports += self.engine.reports
        self.engine.reports.clear()

    def take_reports(self, until: Callable[[], bool], is_idle: bool = False) -> None:
        deadline = time.monotonic() + WAIT_S
        while not until():
            assert time.monotonic() < deadline
            if hasattr(self.engine, "finish"):  # the fake
                self.engine.finish()
            self.look(is_idle=is_idle)

    def run(self, *chunks: Chunk) -> dict[int, Report]:
        """Run chunks to their ends, what comes back too; return the last report of each call."""
        self._queue.extend(chunks)

        def is_done() -> bool:
            for report in self.reports:
                if report.kind == RETURNED:
                    self._queue.append(report.payload)
                else:
                    ended.update(dict.fromkeys(report.ids, report))
            self.reports.clear()
            while self._queue and self.engine.free_capacity()[1] > 0:
                self.engine.give(self._queue.popleft())
            return not (self._queue or self.engine.is_busy() or self.engine.reports)

        ended: dict[int, Report] = {}
        self.take_reports(is_done)
        return ended


def values_of(reports: dict[int, Report]) -> dict[int, Any]:
    """Return what calls have returned."""
    found = {}
    for id, report in reports.items():
        if report.kind == RESULTS:
            found[id] = codec.decode(report.payload)[[*report.ids].index(id)][0]
        else:
            assert report.kind == RESULT, report
            found[id] = codec.decode(report.payload)
    return found


class EngineContract:
    """See the module's docstring."""

    ENDS: ClassVar[bool] = True
    RECALLS: ClassVar[bool] = True
    DIES: ClassVar[bool] = True

    @pytest.fixture
    def bench(self, tmp_path: Path) -> Iterator[Bench]:
        bench = Bench(self.make(), tmp_path / "slots")
        yield bench
        bench.engine.close(grace_s=5)

    def make(self) -> Engine:
        """Return an engine of two workers."""
        raise NotImplementedError

    def test_an_engine_that_was_given_nothing_has_nothing_and_does_nothing(self, bench: Bench) -> None:
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

    def test_there_is_room_where_calls_can_run_and_nowhere_else(self, bench: Bench) -> None:
        total, best = bench.engine.free_capacity()
        assert 0 <= best <= total
        assert (best > 0) is (bench.engine.idle() > 0) is (bench.engine.max_workers > 0)


class RunsCalls(EngineContract):
    """Of an engine that runs calls."""

    def test_each_call_is_reported_once_with_its_id_and_attempt(self, bench: Bench) -> None:
        engine = bench.engine
        engine.give(bench.chunk(calls.square, (2,)))
        assert engine.is_busy()
        assert [*engine.held()] == [1]
        bench.take_reports(lambda: not engine.is_busy())
        engine.give(bench.chunk(calls.square, (3,), (4,), first=2))
        bench.take_reports(lambda: not engine.is_busy())
        assert [*engine.held()] == []
        claims = [claim for report in bench.reports for claim in zip(report.ids, report.attempts, strict=True)]
        assert sorted(claims) == [(1, 3), (2, 3), (3, 3)]
        assert {report.kind for report in bench.reports} <= {RESULT, RESULTS}

    def test_what_is_recalled_comes_back_as_it_was_given_or_has_started(self, bench: Bench, gate: Path) -> None:
        engine = bench.engine
        engine.throughput.lead = 3
        engine.give(bench.chunk(calls.wait_for, *[(gate,)] * 3))
        engine.recall({1, 2, 3})
        back = [report for report in engine.reports if report.kind == RETURNED]
        returned = {id: attempt for report in back for id, attempt in zip(report.ids, report.attempts, strict=True)}
        if self.RECALLS:
            assert {2: 3, 3: 3}.items() <= returned.items()
        assert [[*report.payload.ids] for report in back] == [[*report.ids] for report in back]
        assert {*engine.held()} | {*returned} == {1, 2, 3}
        gate.touch()
        engine.reports.clear()

    def test_an_engine_that_is_closed_reports_no_more(self, bench: Bench, gate: Path) -> None:
        bench.engine.give(bench.chunk(calls.wait_for, (gate,)))
        bench.engine.close(9, 1)
        assert bench.engine.reports == []
        assert not bench.engine.is_busy()
        gate.touch()  # for one that goes on


class RunsCallsInWorkers(RunsCalls):
    """Of an engine that has real workers."""

    def test_results_errors_and_what_travels_by_value_are_told_apart(self, bench: Bench) -> None:
        offset = 10

        def shifted(n: int) -> int:
            return n + offset

        results = values_of(bench.run(bench.chunk(shifted, (1,), (2,), (3,))))
        assert results == {1: 11, 2: 12, 3: 13}
        mixed = bench.run(bench.chunk(calls.fail_at, (5, 4), (5, 5), (5, 6), first=4))
        assert values_of({id: mixed[id] for id in (4, 6)}) == {4: 4, 6: 6}
        assert (mixed[5].kind, mixed[5].payload.message) == (ERROR, "item 5")
        assert mixed[5].payload.call == "fail_at(5, 5)"
        assert "calls.py" in mixed[5].payload.traceback

    def test_a_call_that_takes_too_long_is_reported_once_and_the_next_one_runs(self, bench: Bench, gate: Path) -> None:
        chunk = bench.chunk(calls.wait_for, (gate,))
        chunk.timeout = 0.05
        bench.engine.give(chunk)
        assert bench.engine.next_check(lambda: False) < math.inf
        bench.take_reports(lambda: bool(bench.reports))
        assert [(report.kind, [*report.ids], report.payload) for report in bench.reports] == [(TIMED_OUT, [1], 0.05)]
        bench.reports.clear()
        assert values_of(bench.run(bench.chunk(calls.square, (3,), first=2))) == {2: 9}
        gate.touch()
        bench.look()
        assert bench.engine.reports == bench.reports == []
        if not self.ENDS:  # and its slot is free again
            bench.take_reports(lambda: bench.engine.idle() == 2)

    def test_a_call_that_is_ended_is_reported_crashed_and_its_neighbour_is_not(
        self, bench: Bench, journal: Any, gate: Path
    ) -> None:
        bench.engine.throughput.lead = 2
        bench.engine.give(bench.chunk(calls.noted_wait, (journal.path, 1, gate), (journal.path, 2, gate)))
        journal.wait_for(1)
        bench.engine.end({1})
        bench.take_reports(lambda: any(report.kind == CRASHED for report in bench.reports))
        gate.touch()
        ended = bench.run()
        assert (ended[1].kind, [*ended[1].ids]) == (CRASHED, [1])
        assert values_of({2: ended[2]}) == {2: 2}

    def test_a_death_is_charged_to_the_call_that_died_and_its_neighbours_have_results(
        self, bench: Bench, tmp_path: Path
    ) -> None:
        if not self.DIES:
            pytest.skip("a call would take the tests along")
        noted = tmp_path / "noted"
        bench.engine.throughput.lead = 4
        ended = bench.run(bench.chunk(calls.die_on, *((noted, 2, n) for n in range(4))))
        assert (ended[3].kind, [*ended[3].ids], [*ended[3].attempts]) == (CRASHED, [3], [3])
        assert values_of({id: ended[id] for id in (1, 2, 4)}) == {1: 0, 2: 1, 4: 3}
        assert noted.read_text().split().count("2") == 1  # it is the dispatcher who tries it again
