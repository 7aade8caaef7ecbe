"""Where progress is shown: in the cell of a notebook, on a terminal, or as lines of a log."""

import sys
from typing import Any, Protocol, TextIO

from .. import notebooks
from .meter import Frame

LOG_EVERY_S = 30.0
_OFTEN_S = 0.25  # four times a second at most


class Place(Protocol):
    """Shows one progress, each frame in the place of the one before."""

    first_s: float
    """After which time the first frame is shown."""
    every_s: float
    """At least, between two frames."""

    def show(self, frame: Frame) -> None:
        """Show it."""

    def end(self, frame: Frame) -> None:
        """Show it as the last one, also if it is the first."""


class Cell:
    """The output of a notebook's cell: one display, which is updated by its id. No widget and no script is needed."""

    first_s = every_s = _OFTEN_S

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, frame: Frame) -> None:
        """Show it."""
        bundle = {"text/plain": frame.text(), "text/html": frame.html()}
        if self._handle is None:
            from IPython.display import display  # type: ignore[import-not-found,unused-ignore]

            self._handle = display(bundle, raw=True, display_id=True)  # type: ignore[no-untyped-call,unused-ignore]
        else:
            self._handle.update(bundle, raw=True)

    end = show


class Lines:
    """A file, a pipe or the log of a service: a line now and then, and one at the end."""

    first_s = every_s = LOG_EVERY_S

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def show(self, frame: Frame) -> None:
        """Show it."""
        self._stream.write(f"{frame.line()}\n")
        self._stream.flush()

    end = show


def find_place() -> Place:
    """Return where progress belongs in this process."""
    if getattr(notebooks.shell(), "kernel", None) is not None:  # which makes a shell that of a notebook
        return Cell()
    if sys.stderr.isatty():
        from .terminal import Terminal

        return Terminal(sys.stderr)
    return Lines(sys.stderr)
