"""The calls that the workers run, in a module of their own so that they are found by name."""

import os
import time
from typing import Any


def noop(item: int) -> int:
    """Give back what came in: all the time it takes is the executor's own."""
    return item


def real_of(item: complex) -> int:
    """Give back the whole part of what came in, likewise."""
    return int(item.real)


def wait_1_ms(item: int) -> int:
    """Take 1 ms without using the processor, of which there may be no more than there are workers."""
    time.sleep(0.001)
    return item


def wait(seconds: float) -> int:
    """Take so long, likewise."""
    time.sleep(seconds)
    return 0


def array_of(megabytes: int) -> Any:
    """Make an array of so many MB, of which each page is written."""
    import numpy

    return numpy.ones(megabytes << 17)


def last_of(array: Any) -> float:
    """Look at one number of an array."""
    return float(array[-1])


def worker_pid(pause_s: float) -> int:
    """Say which process ran this; the pause leaves the next call to another worker."""
    time.sleep(pause_s)
    return os.getpid()
