"""What parameters can be. Nothing else of the package is imported for it: see executor.py."""

import datetime
import math
from collections.abc import Callable
from typing import Any

Backoff = float | Callable[[int], float]
RetryOn = type[BaseException] | tuple[type[BaseException], ...]


def seconds(name: str, value: Any) -> float:
    """The seconds of a timedelta or a number. Raises TypeError or ValueError that names the parameter."""
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is a number of seconds, or a timedelta, not {value!r}")
    if not math.isfinite(value) or abs(value) > 1e10:
        raise ValueError(f"{name} is a number of seconds within centuries, not {value!r}")
    return value


def check_queue(queue: Any) -> None:
    """Check the name of a queue; None is no name. Raises TypeError or ValueError."""
    if queue is not None and not isinstance(queue, str):
        raise TypeError(f"queue is a text, not {queue!r}")
    if queue == "":
        raise ValueError("queue is empty: give it a name, or leave it out")


def check_whole(name: str, value: Any, at_least: int) -> None:
    """Check a parameter that is a whole number. Raises TypeError or ValueError that names it."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is a whole number, not {value!r}")
    if not at_least <= value < 1 << 31:
        raise ValueError(f"{name} must be greater than {at_least - 1} and less than {1 << 31}, not {value}")
