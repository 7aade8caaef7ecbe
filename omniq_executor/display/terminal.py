"""Progress on a terminal, by rich. That is imported for the first frame: what is done sooner needs a line alone."""

import sys
from typing import TYPE_CHECKING, TextIO

from .meter import Frame

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

_BAR = 36  # characters, or fewer on a narrow terminal


class Terminal:
    """Lines at the bottom of the terminal; what the program prints meanwhile goes above them."""

    first_s = 1.0
    every_s = 0.25

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live: Live | None = None

    def show(self, frame: Frame) -> None:
        """Show it."""
        if self._live is None:
            from rich.console import Console
            from rich.live import Live

            console = Console(file=self._stream)
            # What goes to stdout is to stay there, unless that is this terminal as well.
            self._live = Live(console=console, auto_refresh=False, redirect_stdout=sys.stdout.isatty())
            self._live.start()
        self._live.update(render(frame, self._live.console), refresh=True)

    def end(self, frame: Frame) -> None:
        """Show it as the last one, also if it is the first."""
        if self._live is None:
            self._stream.write(f"{frame.line()}\n")
            self._stream.flush()
            return
        try:
            self.show(frame)
        finally:
            self._live.stop()


def render(frame: Frame, console: "Console") -> "RenderableType":
    """Return a frame as rich draws it: the bar, what is said beside it, and the slowest call."""
    from rich.text import Text

    encoding = (console.encoding or "").lower()
    full = "━" if encoding.startswith("utf") else "="
    what, amount = frame.counts.what, f"{frame.amount}  {frame.percent}".rstrip()
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(what, "bold")
    width = min(_BAR, console.width - len(what) - len(amount) - 4)
    if frame.counts.total and width >= 8:
        resumed, ran, bad = (round(share * width) for share in frame.shares())
        bad = max(bad, 1) if frame.counts.failed else bad  # one of a million is to be seen too
        ran = max(min(ran, width - resumed - bad), 0)
        text.append("  ").append(full * resumed, "cyan").append(full * ran, "green").append(full * bad, "red")
        text.append((full if full == "━" else "-") * max(width - resumed - ran - bad, 0), "bright_black")
    text.append(f"  {amount}\n  ")
    for at, (said, is_bad) in enumerate(frame.details()):
        text.append(" · " if at else "", "bright_black").append(said, "red" if is_bad else "")
    if frame.slowest():
        text.append(f"\n  {frame.slowest()}", "dim")
    return text
