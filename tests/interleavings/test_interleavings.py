"""Threads, signals, refusals and deaths in thousands of orders, with the real code of the dispatcher."""

import os

import pytest
from instrument import load
from scenarios import SCENARIOS, House, Scenario, search
from scheduler import Scheduler

pytestmark = pytest.mark.models

SEEDS = 200_000 if os.environ.get("OMNIQ_PROOF") else 600
PARTS = 4


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_future_resolves_and_the_process_ends_in_whatever_order(name: str, part: int) -> None:
    search(load(), name, range(part, SEEDS, PARTS))


def test_two_refusals_with_minutes_between_them_do_not_end_the_executor() -> None:
    def play(house: House) -> None:
        house.result(house.submit(1), 1)
        for _ in range(2):
            house.world.threading.Event().wait(1)  # for the own thread to come to rest
            house.store.refuses = range(house.store.asked + 1, house.store.asked + 2)
            assert house.map([3]) is None
            house.world.threading.Event().wait(120)
        house.result(house.submit(2), 2)

    House(load(), Scheduler(1, length=1000, patience_s=200), Scenario(play, 1000)).run()
