"""The calls that the workers run, in a module of their own so that they are found by name."""

import os
import time


def noop(item: int) -> int:
    """Give back what came in: all the time it takes is the executor's own."""
    return item


def wait_1_ms(item: int) -> int:
    """Take 1 ms without using the processor, of which there may be no more than there are workers."""
    time.sleep(0.001)
    return item


def worker_pid(pause_s: float) -> int:
    """Say which process ran this; the pause leaves the next call to another worker."""
    time.sleep(pause_s)
    return os.getpid()
