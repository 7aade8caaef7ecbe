"""What the cells of a notebook mean for executors.

- A run stands as the last cell that used it did: one that failed leaves it to be continued, until a later cell that
  uses the same executor ends well. How the notebook ended is for sessions.py: as its last cell did.
- An interrupt ends what runs for maps whose iterators are gone: nobody can get at these results any more.
- A cell that makes an executor, and is run again, makes another one while the first is still bound to the name. The
  first lets go before the second begins: what it has not finished is PENDING then, and the second takes it over.
"""

from pathlib import Path

from .. import notebooks
from .dispatcher import open_dispatchers


def enter(path: Path, queue: str) -> None:
    """Make ready for an executor of the queue in the store at `path`, which the present statement makes."""
    notebooks.watch(_note_end)
    replaced = list(map(id, notebooks.about_to_be_replaced()))
    for dispatcher, executor in list(open_dispatchers.items()):
        if id(executor()) in replaced and dispatcher.store.path == path and dispatcher.run.queue == queue:
            dispatcher.let_go("the statement that made the executor is run again, and makes another one")


def _note_end() -> None:
    error = notebooks.cell_error
    interrupted = error is not None and issubclass(error, KeyboardInterrupt)
    for dispatcher in list(open_dispatchers):
        dispatcher.note_cell(error is not None, interrupted)
