"""What a task writes, as it comes."""

import time
from collections.abc import Iterator

from ..errors import TaskNotFound
from ..model.task import FINISHED, Status, Task
from ..stores.base import Store

# Between two looks: no event that Python can wait for tells that a file has grown. One who reads along does not
# notice, and it costs next to nothing.
_LOOK_S = 0.1
_PIECE_BYTES = 1 << 20
_OWNERS_S = 1.0  # between two looks whether the process that runs the task lives


def pieces(store: Store, number: int, attempt: int | None, follow: bool) -> Iterator[tuple[int, bytes]]:
    """What the attempts of a task wrote, or the one with that number, piece by piece, each with its attempt.

    With `follow` it goes on until the task is finished or removed, or the process that runs it is dead. Raises
    TaskNotFound where it is not there to begin with.
    """
    seen: dict[int, int] = {}  # bytes, by attempt
    task = store.get(number)
    look_at_owners = 0.0
    while True:
        is_over = not follow or task.status in FINISHED
        if not is_over and time.monotonic() >= look_at_owners:
            look_at_owners = time.monotonic() + _OWNERS_S
            is_over = _is_left(store, task)
        # After the look at the task: what it wrote before its end is there.
        for which in range(1, task.attempts + 1) if attempt is None else [attempt]:
            while data := store.output.read(number, which, seen.get(which, 0), _PIECE_BYTES):
                seen[which] = seen.get(which, 0) + len(data)
                yield which, data
        if is_over:
            return
        time.sleep(_LOOK_S)
        try:
            task = store.get(number)
        except TaskNotFound:
            return


def _is_left(store: Store, task: Task) -> bool:
    """Whether the process that runs the task is dead."""
    return task.status is Status.RUNNING and not any(o.alive for o in store.owners() if o.id == task.owner)
