"""A call that failed, made once more in this process, under the debugger. Nothing of it is stored.

    stored function, arguments --loaded as a worker does--> the call --raises--> pdb, or IPython's debugger

What travelled by value, as from a script or a notebook, is the code that was submitted, in a namespace of its own: the
names of this process's script stay as they are. What goes by name is what this process imports, which may have changed
since then; that is said. Its `__main__` stands aside while the call runs, as pickles look for classes there.
"""

import bdb
import contextlib
import io
import os
import pdb
import pickle
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from . import notebooks, values
from .code import spaces, versions
from .errors import CannotDebug, CodeChanged, SerializationError
from .model import codec, dependencies
from .model.preview import shown_arguments
from .model.task import Status, Task, format_id
from .stores.base import Store, TaskState

Initializer = tuple[Callable[..., object], Sequence[Any]] | None

_SHOWN = 200  # characters of what it returns
# About a call whose result is needed, by how that stands.
_WHAT_TO_DO = {
    Status.PENDING: ": wait until that one has run",
    Status.RUNNING: ": wait until that one has run",
    Status.FAILED: ": debug that one",
    Status.CANCELLED: ": retry that one, and then this one",
}


def debug(store: Store, id: int, initializer: Initializer = None) -> Any:
    """Make the call of a task once more, and go where it raises; return what it returns if it does not.

    The initializer and its arguments are those of the executor that the future is of, where it is there.
    The store is only read, and closed before the call. Raises TaskNotFound, CannotDebug where the task has not FAILED,
    was never called, cannot be loaded here, or where nobody can type anything, and what loading raises.
    """
    with contextlib.closing(store):
        task = store.get(id)
        needed = {found.id: found for found in store.states(task.after)}
        files = store.values
    if task.status is not Status.FAILED:
        raise CannotDebug(f"{task.task_id} is {task.status.name}: only a call that has failed is made once more")
    results = _results(task, needed)
    debugger = _debugger()  # before anything is called
    called = task.error.call if task.error is not None else ""
    called = called or f"{task.func_path} {shown_arguments(task.args, task.kwargs)}"
    _say(
        f"{called} is called again here, in process {os.getpid()}:"
        " its side effects happen again. Nothing of it is stored."
    )
    main = vars(sys.modules["__main__"])
    prepare = _stored(initializer)
    with spaces.visiting(spaces.Space()) as space, values.reading(files):
        if prepare is not None:
            made, initargs = codec.decode(prepare)  # before the function, as in a worker: what it sets stays
            made(*initargs)
            space.keep_arrived()
        function, args, kwargs = _load(task, results, space, main)
        _tell_of_edits(function, task)
        try:
            value = _call(function, args, kwargs)
        except bdb.BdbQuit:  # somebody has left a breakpoint() of the call's own
            return None
        except BaseException as error:  # noqa: BLE001 - SystemExit, and Ctrl-C where it hangs, are looked at likewise
            found = error
        else:
            text = repr(value)
            _say(f"It did not fail this time. It returned {text if len(text) <= _SHOWN else text[:_SHOWN] + '...'}")
            return value
    # Past the frame above, and past that of _call() unless it is the last, as of a function that is not of Python.
    entry = found.__traceback__.tb_next if found.__traceback__ is not None else None
    entry = entry.tb_next or entry if entry is not None else found.__traceback__
    _say("".join(traceback.format_exception(type(found), found, entry)).rstrip())
    if entry is not None and entry.tb_frame.f_code is _call.__code__:
        _say(f"{task.func_path} is not written in Python: what is called is here as `function`, `args` and `kwargs`.")
    debugger.reset()
    debugger.interaction(None, entry)
    return None


def _call(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    return function(*args, **kwargs)


def _debugger() -> Any:
    """Return IPython's debugger where it is at work, else pdb. Raise CannotDebug where nobody can type."""
    shell = notebooks.shell()
    if shell is None:
        if sys.stdin is None or not sys.stdin.isatty():
            raise CannotDebug(
                "there is no terminal to debug in: call debug() in an interactive session or a notebook, or use"
                " `omniq-executor debug ID` in a terminal"
            )
        return pdb.Pdb()
    kernel = getattr(shell, "kernel", None)
    if kernel is not None and not getattr(kernel, "_allow_stdin", False):
        raise CannotDebug(
            "this notebook is run without anybody who could type: open it in Jupyter, or use"
            " `omniq-executor debug ID` in a terminal"
        )
    return shell.debugger_cls()


def _stored(initializer: Initializer) -> bytes | None:
    """Return an initializer as it travels to a worker; None where there is none, or it cannot."""
    if initializer is None:
        return None
    name = getattr(initializer[0], "__qualname__", "the initializer")
    try:
        data = codec.write(initializer).data
    except SerializationError as error:
        _say(f"{name}() is not run before it: {error}")
        return None
    _say(f"{name}() is run before it, as in a worker.")
    return data


def _results(task: Task, needed: Mapping[int, TaskState]) -> dict[int, str | bytes]:
    """Return the stored results that the call is given."""
    results: dict[int, str | bytes] = {}
    for id in task.after:
        found = needed.get(id)
        if found is None or found.result is None:
            how = "gone" if found is None else f"{found.status.name}{_WHAT_TO_DO.get(found.status, '')}"
            raise CannotDebug(f"{task.task_id} cannot be called without the result of {format_id(id)}, which is {how}")
        results[id] = found.result
    return results


def _load(
    task: Task, results: Mapping[int, str | bytes], space: spaces.Space, main: Mapping[str, Any]
) -> tuple[Callable[..., Any], Sequence[Any], Mapping[str, Any]]:
    """Return the function and its arguments, as a worker has them.

    `main` are the names of the script of this process, if that is the one that submitted the call. A function that
    could not travel by value takes from there what a worker would have by importing the script.
    """

    def load(loads: Callable[[bytes], Any]) -> tuple[Callable[..., Any], Sequence[Any], Mapping[str, Any]]:
        function = loads(task.func)
        with dependencies.giving(results):
            args, kwargs = codec.decode_call(task.args, task.kwargs) if isinstance(task.args, str) else loads(task.args)
        return function, args, kwargs

    try:
        try:
            return load(codec.decode)
        except CodeChanged as error:
            _say(f"The code is that of now. {error}")
            return load(_as_it_is)
    except ImportError as error:
        raise CannotDebug(
            f"{task.task_id} cannot be loaded here: {error}. Start it where its modules are found, as in the folder of"
            " the script"
        ) from error
    except AttributeError as error:
        for name, value in main.items():
            vars(space.main).setdefault(name, value)
        try:
            return load(_as_it_is)
        except AttributeError:
            raise CannotDebug(
                f"{task.task_id} needs names of its script that it was not stored with: call debug() of its future"
                f" there ({error})"
            ) from error


def _as_it_is(data: bytes) -> Any:
    """Load a pickle without a look whether the code that it names has changed."""
    return _Unchecked(io.BytesIO(data)).load()


class _Unchecked(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        return _first_as_it_is if found in (versions.checked, versions.checked_call, values.held) else found


def _first_as_it_is(data: bytes, _: Any) -> Any:
    return _as_it_is(data)


def _tell_of_edits(function: Any, task: Task) -> None:
    """Say whether the file of a function is younger than the call, so that it shows other lines than those that run."""
    code = getattr(function, "__code__", None)
    if code is None or getattr(function, "__module__", None) != "__main__":
        return
    with contextlib.suppress(OSError):
        if os.stat(code.co_filename).st_mtime * 1e6 > task.enqueued_at:
            _say(
                f"{code.co_filename} has changed since: what runs is the code that was submitted, and what is shown are"
                " the lines of now."
            )


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
