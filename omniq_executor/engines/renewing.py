"""Another Executor in the place of one that has failed, found by a thread of its own: nobody else waits for it."""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor

from ..errors import EngineClosed, EngineError
from .asking import ask, text_of

AWAY_S = 60.0  # after which an executor that does not come back is given up
AGAIN_S = 1.0  # between two tries


class Renewal:
    """Makes an executor anew, or waits until the one that was given answers again."""

    def __init__(self, make: Callable[[], Executor], is_own: bool, ring: Callable[[], None]) -> None:
        """`is_own`: whether `make` gives another one each time; `ring` is called when there is something in `found`."""
        self.found: deque[Executor | EngineError] = deque()
        """An executor, or why there is none."""
        self._make = make
        self._is_own = is_own
        self._ring = ring
        self._closing = threading.Event()

    def begin(self, old: Executor, slots: int) -> None:
        """Look for one that has so many slots."""
        threading.Thread(target=self._renew, args=(old, slots), name="omniq-engine", daemon=True).start()

    def close(self) -> None:
        """Look no more."""
        self._closing.set()

    def _renew(self, old: Executor, slots: int) -> None:
        """Get an executor that answers."""
        deadline = time.monotonic() + AWAY_S
        while not self._closing.is_set():
            try:
                if self._is_own:
                    old.shutdown(wait=False)
                new = self._make()
                try:
                    ask(new, slots)
                except BaseException:
                    old = new
                    raise
            except EngineError as error:
                failure = error
            except Exception as error:  # noqa: BLE001 - of the user's function, or of somebody else's executor
                failure = EngineError(text_of(error))
            else:
                self.found.append(new)
                if self._is_own and self._closing.is_set():  # nobody takes it any more
                    new.shutdown(wait=False)
                break
            if time.monotonic() > deadline or isinstance(failure, EngineClosed):  # a new one too, as at an exit
                self.found.append(failure)
                break
            self._closing.wait(AGAIN_S)
        self._ring()
