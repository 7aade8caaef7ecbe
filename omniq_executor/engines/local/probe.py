"""The question to all workers where they are in their calls."""

from collections.abc import Callable

from .launch import Process


class Probe:
    """The question, and what came of it so far."""

    def __init__(self, on_end: Callable[[], None]) -> None:
        self.asked: dict[int, Process] = {}
        """Who has not answered, by the id of the call that was running then."""
        self.answers: dict[int, str] = {}
        """Stacks by the id of the call."""
        self.open = 0
        """How many workers have not answered."""
        self._on_end = on_end

    def stacks(self) -> dict[int, str]:
        """Return the answers, and for those that are missing a text that says so."""
        silent = {
            id: f"process {process.pid} does not answer: stopped, or in code that holds the GIL\n"
            for id, process in self.asked.items()
        }
        return {**silent, **self.answers}

    def close_one(self, asked: int | None = None) -> None:
        """Take note that the worker that was in the call `asked` has answered, or never will."""
        if asked is not None:
            self.asked.pop(asked, None)
        self.open -= 1
        if not self.open:
            self._on_end()
