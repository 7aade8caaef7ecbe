"""Progress: what is said of how calls stand, with a clock that is set, and where and how long it is shown."""

import gc
import os
import pty
import queue
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable
from operator import length_hint
from pathlib import Path
from typing import Any

import calls
import pytest

import omniq_executor
from omniq_executor import PersistentExecutor
from omniq_executor.display import meter, progress as shown
from omniq_executor.display.meter import Counts, Frame, Meter, Slow, still
from omniq_executor.display.places import Lines

WAIT_S = 30.0


def frames(counts: Iterable[tuple[float, Counts]], **what: Any) -> list[Frame]:
    meter = Meter(0.0, **what)
    return [meter.frame(how, now) for now, how in counts]


# what is said


def test_the_rate_and_a_range_of_the_time_left_follow_from_what_has_run() -> None:
    *_, last = frames((second, Counts("f", 1000, 10 * second)) for second in range(1, 21))
    assert (last.amount, last.percent, last.rate) == ("200/1,000", "20 %", "10/s")
    assert last.left == "70–90 s"


def test_the_range_is_as_wide_as_the_guesses_differ() -> None:
    fast = [(second, Counts("f", 1000, 20 * second)) for second in range(1, 11)]
    slow = [(10 + second, Counts("f", 1000, 200 + 5 * second)) for second in range(1, 41)]
    *_, last = frames([*fast, *slow])
    assert (last.rate, last.left) == ("5.0/s", "70–135 s")  # 8 a second in all, and 5 lately


@pytest.mark.parametrize(("elapsed_s", "done"), [(60.0, 0), (60.0, 4), (1.9, 100)], ids=["none", "few", "short"])
def test_nothing_is_said_of_the_time_left_where_too_little_has_run(elapsed_s: float, done: int) -> None:
    (frame,) = frames([(elapsed_s, Counts("f", 1000, done, workers=2))])
    assert frame.left == ""


def test_what_was_resumed_or_cancelled_has_not_run_here() -> None:
    (frame,) = frames([(10.0, Counts("f", 1000, 950, resumed=800, cancelled=50))])
    assert (frame.rate, frame.left) == ("10/s", "4–6 s")


def test_what_was_done_before_it_began_does_not_count() -> None:
    (frame,) = frames([(10.0, Counts("f", 1000, 600))], first=Counts("f", 1000, 500))
    assert frame.rate == "10/s"


def test_earlier_runs_tell_the_time_left_until_enough_has_run_here() -> None:
    (frame,) = frames([(0.5, Counts("f", 100, workers=4))], earlier_s=[10.0] * 30)
    assert frame.left == "3–5 min"  # 100 calls of 10 s by 4 workers
    (frame,) = frames([(0.5, Counts("f", 100, workers=4))], earlier_s=[10.0] * 4)
    assert frame.left == ""
    *_, frame = frames(((s, Counts("f", 1000, 10 * s, workers=4)) for s in range(1, 21)), earlier_s=[1000.0] * 30)
    assert frame.left == "70–90 s"


def test_nothing_is_said_where_earlier_runs_and_this_one_say_the_contrary() -> None:
    *_, frame = frames(((s, Counts("f", 1000, 4 * s, workers=4)) for s in range(1, 6)), earlier_s=[100.0] * 30)
    assert (frame.rate, frame.left) == ("4.0/s", "")


def test_few_workers_are_no_more_than_the_calls_that_are_left() -> None:
    (frame,) = frames([(0.5, Counts("f", 2, workers=64))], earlier_s=[10.0] * 30)
    assert frame.left == "8–12 s"


def test_a_stall_slows_the_rate() -> None:
    steady = [(s, Counts("f", 100, 5 * s)) for s in range(1, 11)]
    *_, last = frames([*steady, (60.0, Counts("f", 100, 50))])
    assert last.rate == "27/min"


def test_a_long_run_keeps_few_samples_and_the_beginning() -> None:
    one = Meter(0.0)
    for second in range(10_000):
        frame = one.frame(Counts("f", 20_000, second), second)
    assert len(one._samples) <= meter._SAMPLES
    assert (frame.rate, frame.left) == ("1.0/s", "160–180 min")


def test_all_is_said_in_one_line_and_in_lines() -> None:
    slow = Slow("task-0000000000001", "f('a.csv')", 12.0)
    (frame,) = frames([(20.0, Counts("f", 1000, 340, 120, 2, 1, 4, slow))])
    assert frame.line() == (
        "f: 340/1,000 (34 %), 120 resumed, 2 failed, 1 cancelled, 11/s, 55–65 s left, 0:20;"
        " slowest running: f('a.csv') (task-0000000000001) for 12.0 s"
    )
    assert frame.text().splitlines() == [
        "f  340/1,000  34 %",
        "  120 resumed · 2 failed · 1 cancelled · 11/s · 55–65 s left · 0:20",
        "  slowest running: f('a.csv') (task-0000000000001) for 12.0 s",
    ]


def test_the_end_says_how_long_it_took() -> None:
    assert Meter(0.0).frame(Counts("f", 10, 10), 4.0, "done").line() == "f: 10/10, 2.5/s, done in 4.0 s"
    assert Meter(0.0).frame(Counts("f", 10, 6), 4.0, "stopped").line() == "f: 6/10, 1.5/s, stopped after 4.0 s"
    assert Meter(0.0).frame(Counts("f", 10, 10, resumed=10), 4.0, "done").line() == "f: 10/10, 10 resumed, done"


def test_html_is_escaped_without_script_and_without_a_colour_of_the_page() -> None:
    slow = Slow("task-0000000000001", "<script>alert('x')</script>", 12.0)
    html = frames([(20.0, Counts("<b>", 1000, 340, failed=2, slowest=slow))])[0].html()
    assert "<script" not in html
    assert "&lt;script&gt;alert(&#x27;x&#x27;)" in html
    assert "&lt;b&gt;" in html
    assert "currentColor" in html
    assert "background: transparent" in html


def test_of_a_total_that_nobody_knows_only_what_is_done_is_said() -> None:
    (frame,) = frames([(10.0, Counts("f", None, 100))])
    assert (frame.amount, frame.percent, frame.left, frame.rate) == ("100", "", "", "10/s")


# where and how long


class FakePlace:
    """Takes frames. What it is told to raise, it raises with each."""

    first_s = 0.0
    every_s = 0.01

    def __init__(self) -> None:
        self.frames: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self.ended = threading.Event()
        self.last: Frame | None = None
        self.error: Exception | None = None

    def show(self, frame: Frame) -> None:
        self.frames.put(frame)
        if self.error:
            raise self.error

    def end(self, frame: Frame) -> None:
        assert not self.ended.is_set()
        self.last = frame
        self.ended.set()

    def wait_for(self, condition: Callable[[Frame], object]) -> Frame:
        while not condition(frame := self.frames.get(timeout=WAIT_S)):
            pass
        return frame


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> FakePlace:
    it = FakePlace()
    monkeypatch.setattr(shown, "find_place", lambda: it)
    monkeypatch.setattr(meter, "SLOW_S", 0.0)
    return it


def gated(executor: PersistentExecutor, journal: Any, gate: Path, count: int, closed: int, **options: Any) -> Any:
    args = [[same] * count for same in (journal.path, gate, closed)]
    return executor.map(calls.gated, *args, range(count), timeout=WAIT_S, progress=True, **options)


@pytest.mark.each_store
def test_a_map_shows_how_many_are_done_and_which_call_is_the_slowest(
    make_executor: Any, journal: Any, gate: Path, place: FakePlace
) -> None:
    results = gated(make_executor(1), journal, gate, 4, 2)
    frame = place.wait_for(lambda frame: frame.counts.done == 2 and frame.counts.slowest)
    assert frame.counts.total == 4
    assert frame.counts.what == "calls.gated"
    (line,) = [frame.slowest()]
    assert line.startswith("slowest running: calls.gated(")
    assert "task-" in line
    gate.touch()
    assert list(results) == [0, 1, 2, 3]
    assert place.ended.is_set()  # with the last result, at the latest
    assert place.last is not None
    assert (place.last.amount, place.last.end) == ("4/4", "done")


def test_a_run_that_is_continued_shows_what_was_resumed_and_what_failed(make_executor: Any, place: FakePlace) -> None:
    first = make_executor(1)
    assert list(first.map(calls.square, range(5), timeout=WAIT_S)) == [0, 1, 4, 9, 16]
    first.kill_workers()
    results = make_executor(1).map(calls.square, [*range(8), "x"], progress=True, return_exceptions=True)
    assert len(list(results)) == 9
    assert place.ended.wait(WAIT_S)
    assert place.last is not None
    assert place.last.counts[1:6] == (9, 9, 5, 1, 0)


def test_calls_that_took_long_in_earlier_runs_tell_the_time_left(
    make_executor: Any, store: Path, journal: Any, gate: Path, place: FakePlace
) -> None:
    with make_executor(1) as first:
        list(first.map(calls.gated, [journal.path] * 6, [gate] * 6, [-1] * 6, range(6), timeout=WAIT_S))
        ids = [task.id for task in first.store.find()]
    import sqlite3

    with sqlite3.connect(store) as connection:
        connection.execute("UPDATE task SET started_at = finished_at - 60000000")
    assert len(ids) == 6
    results = gated(make_executor(2), journal, gate, 10, 0)
    assert place.wait_for(lambda frame: frame.left).left == "3–8 min"
    gate.touch()
    assert len(list(results)) == 10


def test_a_map_that_ends_by_an_exception_is_shown_as_stopped(make_executor: Any, place: FakePlace) -> None:
    results = make_executor(1).map(calls.square, ["x", *range(2000)], progress=True)
    with pytest.raises(TypeError):
        next(results)
    assert place.last is not None
    assert place.last.end in ("stopped", "done")  # by then all may have run
    assert place.last.counts.failed == 1


def test_a_map_that_is_dropped_is_shown_no_more(make_executor: Any, journal: Any, gate: Path, place: FakePlace) -> None:
    results = gated(make_executor(1), journal, gate, 3, 1)
    place.wait_for(lambda frame: frame.counts.done == 1)
    del results
    gc.collect()
    assert place.ended.wait(WAIT_S)
    assert place.last is not None
    assert place.last.end == "stopped"
    gate.touch()


def test_what_cannot_be_shown_harms_no_call(executor: PersistentExecutor, place: FakePlace) -> None:
    place.error = BrokenPipeError("the terminal is closed")
    results = executor.map(calls.square, range(100), timeout=WAIT_S, progress=True)
    place.wait_for(lambda frame: True)
    assert list(results) == [n * n for n in range(100)]
    assert not place.ended.is_set()  # nothing is tried again


def test_nothing_is_shown_unless_it_is_asked_for(executor: PersistentExecutor, capfd: Any) -> None:
    assert list(executor.map(calls.square, range(10), timeout=WAIT_S)) == [n * n for n in range(10)]
    assert capfd.readouterr() == ("", "")
    assert "omniq-progress" not in [thread.name for thread in threading.enumerate()]


def test_an_unordered_map_and_one_with_options_show_it_too(executor: PersistentExecutor, place: FakePlace) -> None:
    results = executor.options(priority=1).map_unordered(calls.square, range(10), timeout=WAIT_S, progress=True)
    assert sorted(results) == [n * n for n in range(10)]
    assert place.last is not None
    assert place.last.amount == "10/10"


def test_futures_are_waited_for_and_counted_whatever_becomes_of_them(
    make_executor: Any, journal: Any, gate: Path, place: FakePlace
) -> None:
    executor = make_executor(1)
    failed = executor.submit(calls.square, "x")
    running = executor.submit(calls.noted_wait, journal.path, "running", gate)
    cancelled = executor.submit(calls.square, 1)
    journal.wait_for(1)
    assert cancelled.cancel()
    threading.Thread(target=lambda: (place.wait_for(lambda f: f.counts.done == 2), gate.touch())).start()
    executor.progress([failed, running, cancelled])
    assert running.done()
    assert place.last is not None
    assert (place.last.counts.what, place.last.counts[1:6]) == ("calls", (3, 3, 0, 1, 1))


def test_an_executor_waits_for_all_of_its_calls(make_executor: Any, journal: Any, gate: Path, place: FakePlace) -> None:
    executor = make_executor(2, queue="etl")
    results = executor.map(calls.gated, [journal.path] * 3, [gate] * 3, [0] * 3, range(3), timeout=WAIT_S)
    future = executor.submit(calls.square, 3)
    threading.Thread(target=lambda: (place.wait_for(lambda f: f.counts.total == 4), gate.touch())).start()
    executor.progress()
    assert future.done()
    assert place.last is not None
    assert (place.last.counts.what, place.last.amount) == ("queue etl", "4/4")
    assert list(results) == [0, 1, 2]


def test_progress_of_nothing_returns_at_once(executor: PersistentExecutor, place: FakePlace) -> None:
    executor.progress()
    executor.progress([])
    assert list(executor.map(calls.square, [], progress=True)) == []


def test_interrupt_just_as_it_is_begun_to_be_shown_ends_it(
    executor: PersistentExecutor, place: FakePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = shown.Progress.start

    def interrupted(self: shown.Progress) -> None:
        start(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(shown.Progress, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        executor.progress([executor.submit(calls.square, 3)])
    assert place.ended.is_set()


def test_interrupt_ends_the_wait_and_none_of_the_calls(
    make_executor: Any, journal: Any, gate: Path, place: FakePlace
) -> None:
    executor = make_executor(1)
    future = executor.submit(calls.noted_wait, journal.path, 7, gate)
    journal.wait_for(1)
    main = threading.main_thread().ident
    assert main is not None
    threading.Thread(target=lambda: (place.wait_for(lambda f: True), signal.pthread_kill(main, signal.SIGINT))).start()
    with pytest.raises(KeyboardInterrupt):
        executor.progress([future])
    assert place.ended.is_set()
    gate.touch()
    assert future.result(WAIT_S) == 7


def test_a_forked_child_shows_nothing_at_its_end(
    make_executor: Any, journal: Any, gate: Path, place: FakePlace
) -> None:
    results = gated(make_executor(1), journal, gate, 3, 1)
    place.wait_for(lambda frame: frame.counts.done == 1)
    assert len(shown._open) == 1
    child = os.fork()
    if child == 0:
        os._exit(len(shown._open))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    gate.touch()
    assert list(results) == [0, 1, 2]


def test_lines_are_written_whole(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stream:
        Lines(stream).show(still(Counts("f", 10, 5)))
        assert (tmp_path / "log").read_text() == "f: 5/10 (50 %)\n"  # it is there at once


SCRIPT = textwrap.dedent("""
    import sys, threading, time
    from omniq_executor import PersistentExecutor
    from omniq_executor.display import terminal
    terminal.Terminal.first_s = 0.0
    shown = threading.Event()
    show = terminal.Terminal.show
    def told(self, frame):
        show(self, frame)
        shown.set()
    terminal.Terminal.show = told
    def work(n):
        return n
    with PersistentExecutor(1, store="s.db") as executor:
        for n in executor.map(work, range(3), progress=True):
            print("line", n)
            assert shown.wait(60) or n
""")


@pytest.mark.once
@pytest.mark.slow
def test_on_a_terminal_a_bar_is_drawn_below_what_is_printed(tmp_path: Path) -> None:
    text = _on_terminal(tmp_path, "xterm")
    assert text.count("line ") == 3
    assert "━" in text
    assert "3/3  100 %" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is there again
    assert text.index("line 2") < text.rindex("3/3")


def _on_terminal(tmp_path: Path, kind: str) -> str:
    """Return what the script writes on a terminal."""
    parent, child = pty.openpty()
    environment = {**os.environ, "TERM": kind, "COLUMNS": "100", "PYTHONPATH": _root(), "PYTHONUTF8": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], cwd=tmp_path, env=environment, stdin=child, stdout=child, stderr=child
    )
    os.close(child)
    written = b""
    try:
        while piece := os.read(parent, 1 << 16):
            written += piece
    except OSError:  # how the end of a terminal is told
        pass
    finally:
        os.close(parent)
    assert process.wait(WAIT_S) == 0, written.decode()
    return written.decode()


def _root() -> str:
    return str(Path(omniq_executor.__file__).parents[1])


@pytest.mark.once
@pytest.mark.slow
def test_into_a_pipe_go_lines_alone_and_stdout_stays_the_programs(tmp_path: Path) -> None:
    code = SCRIPT.replace("assert shown.wait(60) or n", "")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": _root()},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout == "line 0\nline 1\nline 2\n"
    (line,) = done.stderr.splitlines()
    assert line.startswith("work: 3/3, done in ")


def test_a_frame_that_takes_long_is_followed_by_a_longer_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: queue.SimpleQueue[float] = queue.SimpleQueue()
    clock = iter([0.5, 1.0, 1.001, 2.0, 2.0])
    monkeypatch.setattr(time, "thread_time", lambda: next(clock))

    class Closed(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            pauses.put(timeout or 0.0)
            return pauses.qsize() == 4

    place = FakePlace()
    it = shown.Progress(lambda: None, place=place)
    it.close()
    it._look, it._closed, it._is_ended = (lambda: Counts("f", 2, 1)), Closed(), False
    it._run()
    assert [pauses.get() for _ in range(4)] == [0.0, 0.01, pytest.approx(0.2), 0.01]


# totals that others find


def test_the_number_of_results_to_come_is_known(executor: PersistentExecutor) -> None:
    results: Any = executor.map(calls.square, range(10), timeout=WAIT_S)
    assert (len(results), length_hint(results)) == (10, 10)
    next(results)
    assert len(results) == 9
    assert list(results) == [n * n for n in range(1, 10)]
    assert (len(results), length_hint(results), bool(results)) == (0, 0, True)


def test_with_buffersize_the_iterables_tell_it_if_they_can(executor: PersistentExecutor) -> None:
    results: Any = executor.map(calls.square, range(10), timeout=WAIT_S, buffersize=2)
    assert (len(results), length_hint(results)) == (10, 10)
    unknown: Any = executor.map(calls.square, iter(range(10)), timeout=WAIT_S, buffersize=2)
    with pytest.raises(TypeError):
        len(unknown)
    assert length_hint(unknown, 7) == 7
    assert (list(results), list(unknown)) == ([n * n for n in range(10)],) * 2
    assert len(unknown) == 0


def test_rich_finds_the_total(executor: PersistentExecutor) -> None:
    from rich.progress import Progress

    with Progress(disable=True) as bar:
        assert len(list(bar.track(executor.map(calls.square, range(10), timeout=WAIT_S)))) == 10
        assert bar.tasks[0].total == 10
