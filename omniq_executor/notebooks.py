"""Notebooks and interactive sessions: what is known of the one that this process runs, and of the cell that runs now.

Whoever types statements goes on after one that failed, so neither an exception nor `sys.last_value` tells how a
notebook ended. IPython tells of each cell how it ended. It does not know what the notebook is called, so that is looked
for.
"""

import linecache
import os
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from .hashes import blake2b

_watched: Any = None  # the shell whose cells are watched
_shown: BaseException | None = None  # the exception that was shown last, when the last cell ended
cell_error: type[BaseException] | None = None
"""What ended the last cell that ran, if an exception did. Known only where cells are watched."""


def is_interactive() -> bool:
    """Return whether somebody types what is run: an exception ends a statement there, not the process."""
    return bool(sys.flags.interactive or hasattr(sys, "ps1"))


def shell() -> Any:
    """Return IPython's shell, or None where there is none."""
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None


def watch(on_end: Callable[[], object]) -> None:
    """Have `on_end` called after each cell, from the one that is running on. How it ended is `cell_error` then."""
    global _watched, _shown
    found = shell()
    if found is None or found is _watched:
        return
    _watched, _shown = found, getattr(sys, "last_value", None)

    def note(result: Any = None) -> None:
        global cell_error, _shown
        # `%run` shows what the script raised, and ends well.
        shown, before = getattr(sys, "last_value", None), _shown
        _shown = shown
        error = shown if shown is not before else None
        if result is None:  # it was cancelled
            error = error or KeyboardInterrupt()
        else:
            error = result.error_before_exec or result.error_in_exec or error
        cell_error = None if error is None else type(error)
        on_end()

    found.events.register("post_run_cell", note)


def name() -> str | None:
    """Return the name of the notebook that this process runs, or None where it runs none.

    That is the name of its file, as far as anybody tells: VS Code, a Jupyter server, or the command line of what has
    started the kernel. Else it is made from the text of the cell that is running, which is the same the next time.
    """
    main = sys.modules.get("__main__")
    path = getattr(main, "__vsc_ipynb_file__", None) or os.environ.get("JPY_SESSION_NAME")
    if not path and hasattr(shell(), "kernel"):
        path = _file_of_parent() or f"notebook-{_digest_of_cell()}"
    return os.path.splitext(os.path.basename(path))[0] if path else None


def _file_of_parent() -> str | None:
    """Return the notebook that the command line of the parent names first: papermill's input, say."""
    import psutil  # 20 ms, and most processes never need it

    try:
        parent = psutil.Process().parent()
        line = [] if parent is None else parent.cmdline()
    except psutil.Error:  # it is gone, or is not ours to look at
        return None
    return next((word for word in line[1:] if word.endswith(".ipynb") and not word.startswith("-")), None)


def _digest_of_cell() -> str:
    frame = _statement()
    lines = linecache.getlines(frame.f_code.co_filename) if frame is not None else ()
    return blake2b("".join(lines).strip().encode(errors="surrogatepass"), digest_size=4).hexdigest()


def _statement() -> FrameType | None:
    """Return the frame of the statement of the cell that has led here, or None in another thread than that of cells."""
    space = getattr(sys.modules.get("__main__"), "__dict__", None)
    frame: FrameType | None = sys._getframe()
    while frame is not None and not (frame.f_globals is space and frame.f_code.co_flags & _NEWLOCALS == 0):
        frame = frame.f_back
    return frame


_NEWLOCALS = 0x02  # what functions have, and modules and cells have not


def about_to_be_replaced() -> Iterator[Any]:
    """Give what the names stand for that the statement binds which has led here, where somebody types it."""
    frame = _statement() if is_interactive() else None
    if frame is None:
        return
    import dis  # 3 ms, as of the script's functions: workers, and who has none, need it not

    end = 0  # the line in which the statement's value ends; names that others bind are below it, or were bound before
    for step in dis.get_instructions(frame.f_code):
        first, last = (step.positions.lineno, step.positions.end_lineno) if step.positions else (None, None)
        if step.offset == frame.f_lasti:
            end = last or 0
        elif step.opname in ("STORE_NAME", "STORE_GLOBAL") and (first or 1) <= end and step.argval in frame.f_globals:
            yield frame.f_globals[step.argval]
