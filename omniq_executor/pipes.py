"""Pipes by which somebody who waits for events is woken: nobody waits in them, and how much is in them says nothing."""

import os


def wake_pipe() -> tuple[int, int]:
    """Make such a pipe; return the end to wait for and the end to write to."""
    ends = os.pipe()
    for fd in ends:
        os.set_blocking(fd, False)
    return ends


def drain(fd: int) -> None:
    """Read all that is in a pipe."""
    try:
        while os.read(fd, 4096):
            pass
    except BlockingIOError:
        pass
