"""Run CPython's own tests of ProcessPoolExecutor on PersistentExecutor: a module of them, with one start method.

    python cpython_suite.py fork | forkserver | spawn test_wait | …

The tests are imported from the interpreter's `test` package, where it has one (3.12 or newer), with
the executor class put in their place of ProcessPoolExecutor's. What is left out is named below.
"""

import atexit
import functools
import importlib
import shutil
import sys
import tempfile
import unittest
from concurrent.futures import ProcessPoolExecutor
from types import ModuleType
from typing import Any

from omniq_executor import PersistentExecutor

MODULES = ("test_as_completed", "test_deadlock", "test_init", "test_process_pool", "test_shutdown", "test_wait")

# Tests that look into ProcessPoolExecutor's private attributes, or start an interpreter of their own
# that names it. test_executor.py and test_faults.py have counterparts of these.
INTERNALS = {
    "test_context_manager_shutdown",
    "test_crash_big_data",
    "test_del_shutdown",
    "test_force_shutdown_workers",
    "test_force_shutdown_workers_dead_pool",
    "test_force_shutdown_workers_stops_pool",
    "test_gh105829_should_not_deadlock_if_wakeup_pipe_full",
    "test_hang_gh83386",
    "test_idle_process_reuse_multiple",
    "test_idle_process_reuse_one",
    "test_interpreter_shutdown",
    "test_max_tasks_per_child_defaults_to_spawn_context",
    "test_processes_terminate",
    "test_python_finalization_error",
    "test_saturation",
    "test_shutdown_deadlock_pickle",
    "test_shutdown_no_wait",
    "test_submit_after_interpreter_shutdown",
}
# Tests that want what PersistentExecutor does otherwise on purpose: docs/differences.md has the reasons.
BY_DESIGN = {
    "test_error_at_task_unpickle",
    "test_error_during_result_unpickle_in_result_handler",
    "test_exit_at_task_unpickle",
    "test_exit_during_result_unpickle_in_result_handler",
    "test_killed_child",
    "test_max_tasks_per_child",
}


class Executor(PersistentExecutor):
    """PersistentExecutor with a store of its own for each instance."""

    _folder = tempfile.mkdtemp(prefix="suite-")

    @functools.wraps(PersistentExecutor.__init__)
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, store=f"{tempfile.mkdtemp(dir=self._folder)}/suite.db", **kwargs)


def put_in_place(module: ModuleType, context: str) -> unittest.TestSuite:
    """The tests of a module for one start method, with the classes replaced in the module itself.

    In the module, because the tests pickle their own methods by name.
    """
    suite = unittest.TestSuite()
    for name, case in sorted(vars(module).items()):
        if getattr(case, "executor_type", None) is not ProcessPoolExecutor or case.ctx != context:
            continue
        if not issubclass(case, unittest.TestCase):
            continue
        ours = type(name, (case,), {"executor_type": Executor, "__module__": module.__name__})
        setattr(module, name, ours)
        names = set(unittest.defaultTestLoader.getTestCaseNames(ours)) - INTERNALS - BY_DESIGN
        suite.addTests(ours(test) for test in sorted(names))
    return suite


def main(context: str, module: str) -> int:
    """Run them; the exit status is 0 if all passed."""
    atexit.register(shutil.rmtree, Executor._folder, ignore_errors=True)
    suite = put_in_place(importlib.import_module(f"test.test_concurrent_futures.{module}"), context)
    result = unittest.TextTestRunner(verbosity=2).run(suite)
    return 0 if result.testsRun > 0 and result.wasSuccessful() else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
