"""The scheduler itself: it finds what it is for, says it, and replays."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from instrument import load
from primitives import World
from scenarios import SCENARIOS, play
from scheduler import Failure, Scheduler

pytestmark = pytest.mark.models


def run(seed: int, main: Callable[[World], object]) -> Scheduler:
    scheduler = Scheduler(seed, length=50, traces=True)
    world = World(scheduler)
    scheduler.add(scheduler.thread(lambda: main(world), "main"))
    scheduler.run()
    return scheduler


def failures(main: Callable[[World], object], seeds: int = 200) -> list[str]:
    """The texts of those of the seeds that fail."""
    found = []
    for seed in range(seeds):
        try:
            run(seed, main)
        except Failure as error:
            found.append(str(error))
    return found


def two_locks_in_two_orders(world: World) -> None:
    one, two = world.threading.Lock(), world.threading.Lock()

    def other() -> None:
        with two, one:
            pass

    thread = world.threading.Thread(other, "other")
    thread.start()
    with one, two:
        pass
    thread.join()


def test_a_deadlock_is_found_and_says_who_waits_for_what() -> None:
    found = failures(two_locks_in_two_orders)
    assert 0 < len(found) < 200
    assert "everybody sleeps, for ever" in found[0]
    assert "  main: waits for a lock that other has\n  other: waits for a lock that main has" in found[0]
    assert "  4 switches, the last of them:\n" in found[0]


def test_an_event_that_was_cleared_too_late_is_found() -> None:
    def main(world: World) -> None:
        event = world.threading.Event()
        world.threading.Thread(event.set, "other").start()
        event.clear()
        event.wait()

    assert 0 < len(failures(main)) < 200


def test_a_sleep_with_a_deadline_ends_in_virtual_time_alone() -> None:
    def main(world: World) -> None:
        before = world.time.monotonic()
        assert not world.threading.Event().wait(0.4)
        assert world.time.monotonic() >= before + 0.4

    assert failures(main) == []


def test_a_sleep_that_is_longer_than_anything_here_takes_is_a_failure() -> None:
    assert len(failures(lambda world: world.threading.Event().wait(30), 10)) == 10


def test_a_signal_ends_a_wait_in_the_main_thread_alone() -> None:
    def main(world: World) -> None:
        event = world.threading.Event()
        other = world.threading.Thread(event.wait, "other")
        other.start()
        world.scheduler.send_signals(1)
        try:
            event.wait()
        except KeyboardInterrupt:
            event.set()
        other.join()

    assert failures(main) == []


def test_a_file_that_is_closed_is_not_written_to() -> None:
    def main(world: World) -> None:
        _, end = world.os.pipe()
        world.os.close(end)
        world.os.write(end, b"!")

    assert "a file is written to that is closed, by main" in failures(main, 1)[0]


def traces() -> list[str]:
    """What happens in each scenario with a few seeds."""
    copy = load()
    return [" ".join(play(copy, name, seed, True).trace) for name in SCENARIOS for seed in range(3)]


def test_a_seed_replays_in_another_process() -> None:
    code = "from test_scheduler import *\nfor text in traces(): print(text)"
    texts = [
        subprocess.run(
            [sys.executable, "-c", code], cwd=Path(__file__).parent, text=True, check=True, capture_output=True,
            env={**os.environ, "PYTHONHASHSEED": str(number)},
        ).stdout.splitlines()
        for number in (1, 2)
    ]  # fmt: skip
    assert texts == [traces(), traces()]
    assert len(set(texts[0])) == len(texts[0])
