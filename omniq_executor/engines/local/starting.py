"""How processes come to be through multiprocessing: in groups of their own, and without the script.

A forkserver takes as long to start as the executor to be imported. So an executor has it begin first, and this module
needs nothing but multiprocessing.
"""

import contextlib
import functools
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from multiprocessing import resource_tracker, spawn, util
from multiprocessing.context import BaseContext
from typing import Any

_WORKER = __name__.rpartition(".")[0] + ".worker"  # which is not imported here

_starting = threading.local()


def warm_up(context: BaseContext) -> None:
    """Have a forkserver begin to start, if the context has one."""
    if context.get_start_method() == "forkserver":
        from multiprocessing import forkserver

        with our_start(), contextlib.suppress(OSError):  # too many processes, say: the first worker will tell
            forkserver.ensure_running()


@contextlib.contextmanager
def our_start() -> Iterator[None]:
    """Have what this thread starts through multiprocessing in here be in a group of its own, without the script.

    That includes the forkserver and the resource tracker, where it is we who need them first. If somebody else
    has started them, they are in the group that they were started in, and no process can change that of a child
    that has begun another program; the workers of such a forkserver leave its group by themselves.
    """
    _teach_multiprocessing()
    _starting.ours = True
    try:
        yield
    finally:
        _starting.ours = False


@functools.cache
def _teach_multiprocessing() -> None:
    # multiprocessing has no switch for either. Its functions stay as they were for all but our own starts.
    get_preparation_data, spawnv_passfds = spawn.get_preparation_data, util.spawnv_passfds
    start_tracker = resource_tracker.ensure_running

    def without_the_script(name: str) -> dict[str, Any]:
        data = get_preparation_data(name)
        if getattr(_starting, "ours", False):
            data.pop("init_main_from_path", None)
            data.pop("init_main_from_name", None)
        return data

    def in_a_group_of_its_own(path: Any, args: Sequence[Any], passfds: Sequence[int]) -> int:
        if not getattr(_starting, "ours", False):
            return spawnv_passfds(path, args, passfds)
        args = [*args[:-1], _with_the_worker(args[-1])]
        started = subprocess.Popen(args, executable=path, pass_fds=passfds, restore_signals=False, process_group=0)
        started.returncode = 0  # whoever asked waits for its end, by its pid; this object is to forget it
        return started.pid

    def not_before_a_worker() -> None:
        # A forkserver has it start first, and does not need it: who starts a worker asks for its descriptor, by which
        # it starts. So there are two processes that start, and import, while the executor does, and not three.
        if not getattr(_starting, "ours", False):
            start_tracker()

    spawn.get_preparation_data = without_the_script
    util.spawnv_passfds = in_a_group_of_its_own
    resource_tracker.ensure_running = not_before_a_worker


def _with_the_worker(command: str) -> str:
    """Have a forkserver import once what each of its workers needs: without that a worker takes 0.1 s of CPU for it.

    It goes by this process's path, as its workers will: by its own it might find another omniq_executor. Where it finds
    none, each worker imports it as before.
    """
    if not command.startswith("from multiprocessing.forkserver import "):
        return command
    imports = f"try:\n    import {_WORKER}\nexcept ImportError:\n    pass"
    return f"import sys\nsys.path[:] = {sys.path!r}\n{imports}\n{command}"
