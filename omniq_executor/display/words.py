"""Words for what people are shown: numbers, times, sizes, and texts of anybody's made short."""

import math
from collections.abc import Callable

_UNITS = ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min"))
_STEPS = (1, 2, 5, 10, 15, 20, 30)  # to which a time that is only estimated is rounded, as far as it is long


def printable(text: str) -> str:
    """Return `text` without what could steer a terminal or cannot be encoded; line ends and tabs stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def escape(text: str) -> str:
    """Return `text` as it is written in HTML."""
    import html  # with a table of 2,000 names, which few programs need

    return html.escape(text)


def first_line(text: str) -> str:
    """Return the first line of `text`, printable."""
    return printable(text.strip().partition("\n")[0])


def shortened(text: str, most: int) -> str:
    """Return the first line of `text`, printable, and no longer than `most` characters."""
    line = first_line(text[: most * 4])
    return line if len(line) <= most and "\n" not in text.strip() else f"{line[: most - 1]}…"


def counted(count: int, one: str, many: str = "") -> str:
    """Return so many of something, in words: "1 call", "2,000 calls"."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def duration(seconds: float) -> str:
    """Return how long something took, to two or three digits."""
    if seconds < 0.0995:
        return f"{max(seconds, 0) * 1000:.{0 if seconds >= 0.00995 or seconds <= 0 else 1}f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = int(seconds + 0.5)
    if whole < 3600:
        return _two(whole // 60, "min", whole % 60, "s")
    minutes = whole // 60
    if minutes < 1440:
        return _two(minutes // 60, "h", minutes % 60, "min")
    return _two(minutes // 1440, "d", minutes % 1440 // 60, "h")


def _two(large: int, unit: str, small: int, smaller: str) -> str:
    return f"{large} {unit} {small} {smaller}" if small else f"{large} {unit}"


def size(count: int) -> str:
    """Return a number of bytes."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return counted(count, "byte")


def rate(per_second: float) -> str:
    """Return how many a second, or a minute or an hour where they are few."""
    for seconds, unit in ((1.0, "s"), (60.0, "min"), (3600.0, "h")):
        often = per_second * seconds
        if often >= 1 or unit == "h":
            return f"{often:,.0f}/{unit}" if often >= 100 else f"{often:.{1 if often < 10 else 0}f}/{unit}"
    raise AssertionError  # the last unit returns


def between(low_s: float, high_s: float) -> str:
    """Return a time that is only estimated, as a range: "2–3 min", "about 40 s"."""
    unit_s, unit = next(((length, name) for length, name in _UNITS if high_s >= 3 * length), (1.0, "s"))
    low, high = _rounded(low_s / unit_s, math.floor), _rounded(high_s / unit_s, math.ceil)
    if high <= 1:
        return f"about 1 {unit}"
    return f"about {high} {unit}" if low == high else f"{max(low, 1)}–{high} {unit}"


def _rounded(value: float, to_whole: Callable[[float], int]) -> int:
    step = next((step for step in reversed(_STEPS) if value >= step * 8), 1)
    return to_whole(value / step) * step
