"""From counts to what is said of progress: rate, time left, the lines of it. Pure: counts and `now` in, a Frame out.

The time that is left is a range, or nothing is said of it. Its ends are of several guesses: the rate of all that has
run here so far, that of the later half of it, and, as long as little has run here, how long the calls of earlier runs
took. It is as wide as these differ, and wider the fewer calls they are made from.
"""

import math
import statistics
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from . import words
from .card import BAD, FONT, LINE, MONO
from .words import escape

_LEAST_CALLS = 5  # from which something is guessed
_LEAST_S = 2.0  # likewise, that they took here
_ENOUGH_CALLS = 100  # after which nobody asks what earlier runs took
_WIDEST = 8.0  # times as long as the low end the high one may be; a wider range says nothing
_SAMPLES = 128
SLOW_S = 1.0  # from which on the slowest call is named

_TRACK = "height: 0.5em; border-radius: 3px; overflow: hidden; display: flex; margin: 0.3em 0"


class Slow(NamedTuple):
    """The call that has been running for longest."""

    task_id: str
    call: str
    for_s: float


class Counts(NamedTuple):
    """How calls stand."""

    what: str  # what they are of
    total: int | None  # None where nobody knows yet
    done: int = 0  # with those of the next three
    resumed: int = 0
    failed: int = 0
    cancelled: int = 0
    workers: int = 0  # that run them, if they are of this executor
    slowest: Slow | None = None

    @property
    def ran(self) -> int:
        """How many were run here, to whatever end."""
        return max(self.done - self.resumed - self.cancelled, 0)

    @property
    def is_over(self) -> bool:
        """Whether all are done."""
        return self.total is not None and self.done >= self.total


class Frame(NamedTuple):
    """What is shown at a moment."""

    counts: Counts
    elapsed_s: float
    rate: str  # "" where too little has run
    left: str  # likewise
    end: str = ""  # how it ended: "done", or "stopped" if calls are left

    @property
    def amount(self) -> str:
        """How many of how many."""
        done, total = self.counts.done, self.counts.total
        return f"{done:,}" if total is None else f"{done:,}/{total:,}"

    @property
    def percent(self) -> str:
        """The same as a share, "" where that is not known. All is 100 %, and nothing less."""
        done, total = self.counts.done, self.counts.total
        return f"{done * 100 // total} %" if total else ""

    def details(self) -> list[tuple[str, bool]]:
        """Return what is said beside the amount, and of each whether it is bad."""
        counts = self.counts
        said = [
            (f"{counts.resumed:,} resumed" if counts.resumed else "", False),
            (f"{counts.failed:,} failed" if counts.failed else "", True),
            (f"{counts.cancelled:,} cancelled" if counts.cancelled else "", False),
            (self.rate, False),
            (f"{self.left} left" if self.left else "", False),
            (self._when(), False),
        ]
        return [(text, is_bad) for text, is_bad in said if text]

    def _when(self) -> str:
        if not self.end:
            return _clock(self.elapsed_s) if self.elapsed_s else ""
        word = "in" if self.end == "done" else "after"
        return f"{self.end} {word} {words.duration(self.elapsed_s)}" if self.elapsed_s else self.end

    def slowest(self) -> str:
        """Return a line on the call that has been running for longest, if it is worth one."""
        slow = self.counts.slowest
        if self.end or slow is None or slow.for_s < SLOW_S:
            return ""
        named = f"{slow.call} ({slow.task_id})" if slow.call else slow.task_id
        return f"slowest running: {named} for {words.duration(slow.for_s)}"

    def line(self) -> str:
        """Return it in one line, for a log."""
        share = f" ({self.percent})" if self.percent and not self.end else ""
        said = ", ".join([f"{self.amount}{share}", *(text for text, _ in self.details())])
        slowest = f"; {self.slowest()}" if self.slowest() else ""
        return f"{self.counts.what}: {said}{slowest}"

    def text(self) -> str:
        """Return it in lines, for who cannot show HTML."""
        lines = [f"{self.counts.what}  {self.amount}  {self.percent}".rstrip()]
        lines.append("  " + " · ".join(text for text, _ in self.details()))
        lines += [f"  {self.slowest()}"] if self.slowest() else []
        return "\n".join(lines)

    def shares(self) -> tuple[float, float, float]:
        """Return the parts of the whole that were resumed, have run and have failed, each from 0 to 1."""
        counts = self.counts
        if not counts.total:
            return 0.0, 0.0, 0.0
        bad = min((counts.failed + counts.cancelled) / counts.total, 1.0)
        resumed = min(counts.resumed / counts.total, 1.0 - bad)
        return resumed, max(min(counts.done / counts.total, 1.0) - bad - resumed, 0.0), bad

    def html(self) -> str:
        """Return it as HTML without script, legible on dark and on light."""
        resumed, ran, bad = (f"{share * 100:.2f}%" for share in self.shares())
        details = " · ".join(
            f'<span style="color: {BAD}">{escape(text)}</span>' if is_bad else escape(text)
            for text, is_bad in self.details()
        )
        slowest = f'<div style="opacity: 0.75">{escape(self.slowest())}</div>' if self.slowest() else ""
        return (
            f'<div style="{FONT}; max-width: 46em; color: inherit; background: transparent">'
            f'<div style="display: flex; justify-content: space-between"><span style="{MONO}; font-weight: 600">'
            f"{escape(self.counts.what)}</span><span>{self.amount}&ensp;{self.percent}</span></div>"
            f'<div style="{_TRACK}; background: {LINE}">'
            f'<div style="width: {resumed}; background: currentColor; opacity: 0.4"></div>'
            f'<div style="width: {ran}; background: currentColor; opacity: 0.75"></div>'
            f'<div style="width: {bad}; background: {BAD}"></div></div>'
            f'<div style="font-variant-numeric: tabular-nums">{details}</div>{slowest}</div>'
        )


def still(counts: Counts) -> Frame:
    """Return what is shown of calls by themselves, with no clock that runs."""
    return Frame(counts, 0.0, "", "", "done" if counts.is_over else "")


class Meter:
    """Remembers how it went, to tell how fast it goes."""

    def __init__(self, began: float, first: Counts | None = None, earlier_s: Sequence[float] = ()) -> None:
        """`first` is how it stood when it began, and `earlier_s` how long calls of earlier runs took."""
        self.earlier_s = earlier_s
        self._began = began
        self._before = 0 if first is None else first.ran
        self._samples: deque[tuple[float, int]] = deque([(began, 0)])  # when, and how many had run here

    def frame(self, counts: Counts, now: float, end: str = "") -> Frame:
        """Take in how it stands, and return what is shown."""
        ran = max(counts.ran - self._before, 0)
        if ran > self._samples[-1][1]:
            if len(self._samples) == _SAMPLES:
                self._samples = deque([*self._samples][::2])  # coarser, and as far back
            self._samples.append((now, ran))
        elapsed = max(now - self._began, 0.0)
        if end and not ran:
            return Frame(counts, 0.0, "", "", end)
        rate = self._recent(ran, now)
        return Frame(
            counts,
            elapsed,
            words.rate(ran / elapsed if end else rate) if rate and elapsed else "",
            "" if end else self._left(counts, ran, elapsed, rate),
            end,
        )

    def _recent(self, ran: int, now: float) -> float:
        """Return how many a second have run lately: the later half of all. 0 where they are too few."""
        if ran < _LEAST_CALLS:
            return 0.0
        since, before = next(sample for sample in reversed(self._samples) if sample[1] <= ran / 2)
        return (ran - before) / (now - since) if now > since else 0.0

    def _left(self, counts: Counts, ran: int, elapsed: float, recent: float) -> str:
        """Return how long the rest may take, or "" where that would be made up."""
        rest = 0 if counts.total is None else counts.total - counts.done
        if not rest:
            return ""
        guesses: list[float] = []
        seen = 0
        if ran >= _LEAST_CALLS and elapsed >= _LEAST_S and recent:
            guesses += [rest * elapsed / ran, rest / recent]
            seen += ran
        if len(self.earlier_s) >= _LEAST_CALLS and ran < _ENOUGH_CALLS and counts.workers:
            each = rest / min(counts.workers, rest)
            guesses += [each * statistics.fmean(self.earlier_s), each * statistics.median(self.earlier_s)]
            seen += len(self.earlier_s)
        if not guesses:
            return ""
        wider = 1 + 1 / math.sqrt(seen)
        low, high = min(guesses) / wider, max(guesses) * wider
        return words.between(low, high) if high < low * _WIDEST else ""


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
