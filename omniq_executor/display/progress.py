"""Progress that is shown while calls run: a clock in a thread of its own, for as long as there is something to show.

    look()  -->  Meter  -->  Frame  -->  a place: a cell, a terminal, lines

It takes a share of 1/_SHARE of a CPU: a frame that took long is followed by a longer pause. And it never harms the
work: what cannot be shown is shown no more.
"""

import contextvars
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence

from .meter import Counts, Meter
from .places import Place, find_place

_SHARE = 200
_LONGEST_S = 2.0  # after which a frame is shown, whatever it takes

_log = logging.getLogger("omniq_executor")
_open: "weakref.WeakSet[Progress]" = weakref.WeakSet()


class Progress:
    """Shows what `look` returns, from `start()` until that is over, or `close()`, or until nothing is left to look at.

    `look` returns None then. Ctrl-C may come at any time: whoever starts it where `close()` follows in any case leaves
    nothing on the screen. `ask_earlier` is asked once, before the first frame, how long earlier calls took.
    """

    def __init__(
        self,
        look: Callable[[], Counts | None],
        ask_earlier: Callable[[], Sequence[float]] = tuple,
        place: Place | None = None,
    ) -> None:
        self._look = look
        self._ask_earlier = ask_earlier
        self._place = place or find_place()
        self._meter = Meter(time.monotonic(), look())
        self._counts: Counts | None = None  # as they were seen last
        self._drawing = threading.Lock()
        self._is_ended = False
        self._closed = threading.Event()
        # In the context of whoever begins it: by that, a notebook knows in which cell it is.
        run = contextvars.copy_context().run
        self._thread = threading.Thread(target=run, args=(self._run,), name="omniq-progress", daemon=True)

    def start(self) -> None:
        """Begin to show it."""
        _open.add(self)
        self._thread.start()

    def close(self) -> None:
        """Show how it stands for the last time, and show nothing any more."""
        self._closed.set()
        self._end()

    def _run(self) -> None:
        pause = self._place.first_s
        is_first = True
        while not self._closed.wait(pause):
            began = time.thread_time()
            if not self._draw():
                self._end()
                return
            # What the first frame takes is mostly imports.
            took = 0.0 if is_first else time.thread_time() - began
            pause = max(self._place.every_s, min(took * _SHARE, _LONGEST_S))
            is_first = False

    def _draw(self) -> bool:
        """Show a frame; return whether another is to follow."""
        counts = self._look()
        if counts is None or counts.is_over:
            return False
        with self._drawing:
            if self._is_ended:
                return False
            if self._counts is None:
                self._meter.earlier_s = self._ask_earlier()
            self._counts = counts
            try:
                self._place.show(self._meter.frame(counts, time.monotonic()))
            except Exception as error:  # noqa: BLE001 - a closed terminal, say: the calls have nothing to do with it
                _log.debug("progress is not shown any more: %r", error)
                self._is_ended = True
                _open.discard(self)
        return not self._is_ended

    def _end(self) -> None:
        counts = self._look() or self._counts
        with self._drawing:
            if self._is_ended:
                return
            self._is_ended = True
            _open.discard(self)
            try:
                if counts is not None:
                    end = "done" if counts.is_over else "stopped"
                    self._place.end(self._meter.frame(counts, time.monotonic(), end))
            except Exception as error:  # noqa: BLE001 - as above
                _log.debug("progress is not shown any more: %r", error)


def close_all() -> None:
    """Leave the terminal as it was, when the interpreter ends."""
    for progress in list(_open):
        progress.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_open.clear)  # what is shown is the parent's
