"""What waits between a claim and a worker."""

from typing import Any

from omniq_executor.dispatch.queue import DispatchQueue
from omniq_executor.engines.pacing import Throughput
from omniq_executor.model.task import Call, Function
from omniq_executor.stores.base import Claimed


class Engine:
    """An engine with room for so many calls."""

    max_workers = 2
    throughput = Throughput()

    def __init__(self, room: int) -> None:
        self.room_left = room
        self.given: list[int] = []

    def free_capacity(self, digest: bytes | None = None) -> tuple[int, int]:
        """As of LocalEngine."""
        return self.room_left, self.room_left

    def give(self, chunk: Any) -> None:
        """Likewise, which asks for room."""
        assert self.room_left > 0
        self.room_left -= len(chunk.ids)
        self.given += chunk.ids


class Store:
    """A store with one function."""

    pickle = b"function"

    def function(self, _: bytes) -> "Store":
        """As of a store."""
        return self


def test_what_was_claimed_for_room_that_is_gone_is_held() -> None:
    # The arguments of the first filled its worker's socket. Workers without room may be ones that are being taken
    # back from, and what they were given then was lost with their death.
    engine: Any = Engine(2)
    queue = DispatchQueue(Store(), engine)  # type: ignore[arg-type]
    queue.give_claimed([Claimed(n, 1, 0, 1, b"digest", f"[{n}]", None) for n in range(5)])
    assert (engine.given, queue.size) == ([0, 1], 3)
    engine.room_left = 9
    queue.give()
    assert (engine.given, queue.size) == ([0, 1, 2, 3, 4], 0)


def test_a_call_of_an_earlier_process_is_made_with_the_pickle_of_this_one() -> None:
    engine: Any = Engine(9)
    chunks: list[Any] = []
    engine.give = chunks.append
    queue = DispatchQueue(Store(), engine)  # type: ignore[arg-type]
    queue.give_claimed([Claimed(1, 1, 0, 1, b"digest", "[1]", None)])
    queue.know(Function(b"digest", "path", b"own"))
    queue.give_claimed([Claimed(2, 1, 0, 1, b"digest", "[2]", None)])
    queue.know(Function(b"digest", "path", b"newer"))
    queue.give_claimed([Claimed(3, 1, 0, 1, b"digest", "[3]", None)])
    assert [chunk.function for chunk in chunks] == [b"function", b"own", b"newer"]


def test_two_versions_of_a_function_in_a_burst_are_kept_apart() -> None:
    engine: Any = Engine(9)
    chunks: list[Any] = []
    engine.give = chunks.append
    queue = DispatchQueue(Store(), engine)  # type: ignore[arg-type]
    for number, version in enumerate([b"a", b"a", b"b", b"a"]):
        queue.add([number], Function(b"digest", "path", version), None, [Call(f"[{number}]")], gives=False)
    queue.give()
    assert [(chunk.function, [*chunk.ids]) for chunk in chunks] == [(b"a", [0, 1]), (b"b", [2]), (b"a", [3])]
