"""The executor: `concurrent.futures.ProcessPoolExecutor`, with calls and results kept in a store.

It is made in two steps, since a forkserver takes as long to start as the rest of this package to be imported. What
checks the parameters is imported with this module; then the forkserver is begun, and what opens the rest is imported.
So a name that stands under TYPE_CHECKING is imported where it is used.
"""

import datetime
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from multiprocessing.context import BaseContext
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, overload

from . import notebooks
from .config import Settings
from .engines.local.start_method import context_for
from .engines.local.starting import warm_up
from .engines.opening import Place, check_place, refuse_processes, usable_cpus, workers_of
from .errors import TaskNotFound
from .interrupts import interrupts
from .model.checks import Backoff, RetryOn, check_queue, check_whole, seconds
from .submitter import Submitter

if TYPE_CHECKING:
    from .code.depends import Dependency, Depends
    from .engines.local.launch import Process
    from .future import DurableFuture
    from .model.failures import Failures
    from .model.options import CallOptions
    from .model.reasons import Resumed
    from .model.task import Status
    from .shown import Facts

RESUME_WITHIN = datetime.timedelta(days=7)
_TOLD_WITHIN_S = 1.0  # which process a worker is that was forked


class PersistentExecutor(Submitter):
    """A process pool that loses nothing.

    When `submit()` returns, the call is in the store. When a result is there, it is in the store.
    A call that was under way when its process died runs again, so its side effects may happen more
    than once; a call that finished is never repeated.

    Parameters
    ----------
    max_workers: how many processes at most; by default as many as this process may use CPUs.
    mp_context: a context of multiprocessing, for its start method. Default: forkserver where there
        is one, else spawn; but fork if `initargs` hold a lock or the like that reaches only forked processes.
    initializer, initargs: called in each worker before its first call.
    max_tasks_per_child: after how many calls a worker is replaced; None for never.
    store: where calls and results are kept: `x.db`, `x.sqlite`, `x.sqlite3` or `sqlite:///x` is an
        SQLite database, any other path and `file:///x` a folder of files; or a Settings.
        Default: what the variables OMNIQ_* say (see Settings), else `omniq_data/omniq.db` in the
        current folder.
    queue: the calls of one queue are worked off by the executors of that queue. Default: the name of the
        script or notebook (see docs/notebooks.md), so that two in one folder do not run each other's calls.
    resume: "crashed" continues what processes left that did not end clean: a call submitted again is not
        run again if it finished then. "failed" also continues the last process if it ended clean but calls of
        it failed, as of a script that catches their exceptions. "always" also continues the last process however
        it ended, and equal calls of this run are one: a call that is submitted again is given the task that it had,
        running or finished, unless that failed. "never" starts afresh. A call is the same if function, arguments,
        initializer, its arguments and the current folder are.
    resume_within: seconds, or a timedelta, after which a run is not continued any more; None for no limit.
    result_ttl: seconds, or a timedelta, that results of this run are kept after its clean end; None for ever.
        Whoever has the store open then removes its finished calls, unless a later run that continues it still
        counts, they have a key, or a call that is not finished comes after them. A run that can still be continued
        keeps all. Default: what the Settings say, else seven days. See docs/retention.md.
    leftovers: what becomes of calls that an earlier run left and this one does not submit again. "leave" has
        them stay PENDING, and says so once, when a process ends clean. "cancel" cancels them then. "run"
        runs them here, with the code that they were submitted with, if initializer, initargs and folder are the same;
        `shutdown()` waits for those that are due, unless it cancels futures.
    on_change: what becomes of a call that an earlier run finished, if its function has other code now, or
        anything of your own modules that this reaches. "rerun" has it run again. "reuse" takes the result over
        all the same, and says so once, with what has changed; not for lambdas and functions of functions, which
        have no name to know them by. "raise" has submit() and map() raise FunctionChanged.
    engine: where calls run. "local": in processes of this executor. "external": in those of
        `omniq-executor worker`, started by whomever, before or after; this executor only submits, and
        its futures resolve when workers have finished. They wait as long as there are none, and so
        does `shutdown()`. Or any `concurrent.futures.Executor`, such as a cluster's; or a function without
        parameters that makes one, which is called again when that breaks, and whose executor is shut down with
        this one; or the address of a cluster, "dask://host:port" or "ray://host:port". See docs/engines.md. Then
        max_workers is how many calls run at a time, where the executor does not say. What describes processes has
        no place in any of these: mp_context, initializer, max_tasks_per_child and capture_output, and with
        "external" max_workers and crash_retries.
    crash_retries: how often a call is run again whose process died in it, before it fails with
        WorkerCrashed.
    durability: "process" keeps what is acknowledged through the death of any process; "power"
        through a cut of the power too.
    capture_output: whether what each call writes to stdout, stderr and logging is kept beside the
        store, a file for each attempt, instead of going where the workers' output goes. See
        `DurableFuture.logs()` and docs/output.md.

    Raises ValueError or TypeError for a parameter that makes no sense, StoreError where the store
    cannot be opened, StoreVersionError where a newer version wrote it, SettingsError where a
    variable OMNIQ_* makes no sense, and EngineError where an executor given as engine runs no calls.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: BaseContext | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        *,
        max_tasks_per_child: int | None = None,
        store: str | os.PathLike[str] | Settings | None = None,
        queue: str | None = None,
        resume: Literal["crashed", "failed", "always", "never"] = "crashed",
        resume_within: datetime.timedelta | float | None = RESUME_WITHIN,
        result_ttl: datetime.timedelta | float | Literal["default"] | None = "default",
        leftovers: Literal["leave", "cancel", "run"] = "leave",
        on_change: Literal["rerun", "reuse", "raise"] = "rerun",
        engine: Place = "local",
        crash_retries: int = 2,
        durability: Literal["process", "power"] = "process",
        capture_output: bool = False,
    ) -> None:
        _refuse_in_worker_start()
        check_place(engine)
        _check_word("resume", resume, "crashed", "failed", "always", "never")
        _check_word("leftovers", leftovers, "leave", "cancel", "run")
        _check_word("on_change", on_change, "rerun", "reuse", "raise")
        if engine != "local":
            refuse_processes(
                engine, mp_context=mp_context, initializer=initializer, max_tasks_per_child=max_tasks_per_child,
                capture_output=capture_output or None,
            )  # fmt: skip
        if engine == "external":
            refuse_processes(
                engine, max_workers=max_workers, crash_retries=None if crash_retries == 2 else crash_retries
            )
        if max_workers is not None:
            check_whole("max_workers", max_workers, at_least=1)
        check_whole("crash_retries", crash_retries, at_least=0)
        check_queue(queue)
        if mp_context is not None and not isinstance(mp_context, BaseContext):
            raise TypeError(f"mp_context is a context of multiprocessing, as get_context() returns, not {mp_context!r}")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if max_tasks_per_child is not None:
            check_whole("max_tasks_per_child", max_tasks_per_child, at_least=1)
        within_s = None if resume_within is None else seconds("resume_within", resume_within)
        if within_s is not None and within_s < 0:
            raise ValueError(f"resume_within must be at least 0, not {resume_within!r}")
        settings = store if isinstance(store, Settings) else Settings.from_env()
        kept_s = settings.result_ttl if result_ttl == "default" else result_ttl
        kept_s = None if kept_s is None else seconds("result_ttl", kept_s)
        if kept_s is not None and kept_s <= 0:
            raise ValueError(f"result_ttl must be greater than 0, or None for ever, not {result_ttl!r}")
        if not isinstance(capture_output, bool):
            raise TypeError(f"capture_output is True or False, not {capture_output!r}")
        initargs = tuple(initargs)
        context = mp_context or context_for(initializer, initargs)
        if engine == "local":
            warm_up(context)
        with interrupts:  # see there why imports are
            from .dispatch.loop import USUAL
            from .dispatch.opening import open_dispatcher
            from .future import DurableFuture
            from .model.functions import Functions
            from .model.options import CallOptions
            from .model.task import Options

        dispatcher = open_dispatcher(
            self, DurableFuture, engine, max_workers, context, initializer, initargs, max_tasks_per_child,
            store=store, durability=durability, queue=queue or default_queue(),
            is_named=queue is not None, resume=resume, within_s=within_s, kept_s=kept_s, leftovers=leftovers,
            on_change=on_change, crash_retries=crash_retries, capture_output=capture_output,
        )  # fmt: skip
        self.store = dispatcher.store
        """The open store: for looking, as with `open_store()`."""
        self.queue = dispatcher.run.queue
        """The name of the queue that the executor works off."""
        # The name under which dask and others read it from a process pool.
        self._max_workers = dispatcher.engine.max_workers or usable_cpus()
        self._mp_context = context  # likewise
        self._dispatcher = dispatcher
        self._functions = Functions(dispatcher.prepare, resume != "never", dispatcher.files)
        options = Options(settings.max_retries, timeout=settings.timeout).or_none()
        self._call_options = USUAL if options is None else CallOptions(options=options)

    def options(
        self,
        *,
        key: str | None = None,
        max_retries: int | None = None,
        backoff: Backoff | None = None,
        retry_on: RetryOn = Exception,
        timeout: datetime.timedelta | float | None = None,
        priority: int = 0,
        eta: datetime.datetime | datetime.timedelta | float | None = None,
        interval: datetime.timedelta | float | None = None,
        tags: Iterable[str] = (),
        version: str | int | None = None,
        depends: "Iterable[Dependency]" = (),
        memo: bool = False,
    ) -> "_WithOptions":
        """Return an executor on the same pool whose calls have options.

        key: names one call within the queue. Whoever submits a call with a key that the queue has
            already gets a future of that task, and nothing is added.
        max_retries: how often a call that raised is tried again; 3 means up to four tries. What a dying
            worker costs is counted apart, see `crash_retries`. Default: what the Settings say, else 0.
        backoff: seconds before a retry, or a function from the number of the retry (1, 2, …) to them.
            By default 1, 2, 4, … up to 60, each a quarter more or less by chance.
        retry_on: the exceptions after which it is tried again, a class or a tuple of classes.
        timeout: how long each try may take, in seconds or as a timedelta, from when a worker has imported
            the function and begins with the call. One that takes longer is ended with its worker and the
            child processes it has started, by SIGTERM and two seconds later by SIGKILL. It has failed
            with TaskTimeout then, and is tried again if retry_on says so. Other calls are not touched.
            Default: what the Settings say, else none; math.inf for none in any case.
        priority: calls of a higher one run first, within the queue.
        eta: when the call is due: a datetime with a time zone, or a timedelta or seconds from now.
        interval: seconds or a timedelta after which the call is due again, and so on until it is
            cancelled, whether it succeeds or fails. The future is that of the first occurrence; each
            next one is a task of its own that carries the first one's id as its series. They keep the
            schedule: one that comes late does not move the next, and times that are over are left out.
        tags: texts to find tasks by.
        version: a text or number that counts as part of the function's code: with another one its calls run again
            in a run that is resumed.
        depends: what counts likewise, though it cannot be seen in the code: modules, or their dotted names, and
            paths of files and folders. Of a module of your own, and of a path, all files count by their content, of
            an installed one its version. They are looked at for each submit() and map(). With a key neither counts:
            the key says which call it is.
        memo: whether equal calls are one, in all runs of the queue with the same initializer, initargs and folder:
            whoever submits a call with it that was submitted with it before, or is under way, gets a future of
            that task. One that failed or was cancelled runs again. It is kept for as long as its run, see `result_ttl`.

        Raises TypeError or ValueError that names the option and value that make no sense, and InputNotFound, a
        FileNotFoundError, for what is neither a module nor a path.

        >>> executor.options(max_retries=3, timeout=60, tags=["nightly"]).submit(pow, 2, 5).result()
        32
        """
        with interrupts:
            from .code.depends import Depends
            from .model.options import make_options
            from .model.task import Options
            from .stores.base import now

        usual = self._call_options.options or Options()
        call_options = make_options(
            now(), key=key, max_retries=usual.max_retries if max_retries is None else max_retries, backoff=backoff,
            retry_on=retry_on, timeout=usual.timeout if timeout is None else timeout, priority=priority, eta=eta,
            interval=interval, tags=tags, memo=memo,
        )  # fmt: skip
        return _WithOptions(self, call_options, Depends(version, depends) or None)

    @overload
    def future(self, task_id: str) -> "DurableFuture[Any]": ...
    @overload
    def future(self, *, key: str) -> "DurableFuture[Any]": ...
    def future(self, task_id: str | None = None, *, key: str | None = None) -> "DurableFuture[Any]":
        """Return a future for the task of that id, whoever submitted it, or of that key in this queue.

        A task that nobody else would run is run here. `attach()` gives futures that are only looked at.
        Raises TaskNotFound if the store has none, and ValueError for what is no task id.

        >>> future = executor.submit(pow, 2, 5)
        >>> executor.future(future.task_id).result()
        32
        """
        from .attached import find_one

        return self._of(find_one(self.store, self.queue, task_id, key))

    def futures(
        self,
        status: "Status | None" = None,
        tags: Sequence[str] | None = None,
        *,
        function: str | Callable[..., Any] | None = None,
    ) -> "list[DurableFuture[Any]]":
        """Return futures for all tasks of this queue that match all that is given, oldest first.

        function: a function, or the name under which the store has it, such as "etl.parse" or "__main__.parse".

        >>> results = list(executor.map(abs, [-1, -2]))
        >>> [future.result() for future in executor.futures(function=abs)]
        [1, 2]
        """
        from .attached import find_all

        return [self._of(id) for id in find_all(self.store, self.queue, status, tags, function)]

    def _of(self, id: int) -> "DurableFuture[Any]":
        future: DurableFuture[Any] | None = self._dispatcher.future(id)
        if future is None:
            from .model.task import format_id

            raise TaskNotFound(f"{self.store.address} holds no {format_id(id)} any more")
        return future

    def retry_failed(self) -> "list[DurableFuture[Any]]":
        """Have the calls run again that have FAILED, of this run and of the runs that it continues.

        Return their futures, oldest first: new ones, since those that failed stay as they are. A call that failed
        since its arguments did (DependencyFailed) waits for these. What earlier runs left runs with the code
        that it was submitted with. Raises StoreError if the store does not allow it, and RuntimeError after
        `shutdown()`.

        >>> executor.submit(int, "seven").exception()
        ValueError("invalid literal for int() with base 10: 'seven'")
        >>> len(executor.retry_failed())
        1
        """
        futures: list[DurableFuture[Any]] = self._dispatcher.retry(self._dispatcher.failures().numbers)
        return futures

    def failures(self) -> "Failures":
        """Return what has failed of this run and of the runs that it continues, in groups, the largest first.

        A group has the calls that failed by the same type of exception, raised from the same line of code of your
        own. It says how many, since when and with an example, and its `retry()` has them run again. Printed it is a
        text, and a notebook shows a table. It can be asked for after `shutdown()`, too.

        >>> executor.submit(int, "seven").exception()
        ValueError("invalid literal for int() with base 10: 'seven'")
        >>> executor.failures()[0].count
        1
        """
        return self._dispatcher.failures()

    @property
    def resumed(self) -> "Resumed":
        """What was taken over so far of earlier runs, and why the rest was run; or why no earlier run is continued.

        It counts the calls by reason and by function, as they are now; printed it is a text, and a notebook shows
        a table. It can be asked for after `shutdown()`, too.

        >>> executor.resumed.continues
        ()
        """
        return self._dispatcher.resumed()

    def progress(self, futures: Iterable[Future[Any]] | None = None) -> None:
        """Show how calls stand until they are done: these, or all of this executor. Nothing of them is raised.

        It shows how many are done, were resumed and failed, how fast they run, how long the rest may take and which is
        the slowest: in the cell of a notebook, on a terminal, or as a line every 30 s. Ctrl-C ends the wait, and
        none of the calls. See docs/progress.md.

        >>> executor.progress([executor.submit(pow, 2, n) for n in range(3)])
        """
        from . import progress

        if futures is None:
            progress.wait_for_all(self._dispatcher, self.queue)
        else:
            progress.wait_for(futures, self._dispatcher)

    def __repr__(self) -> str:
        from .shown import executor_line

        return executor_line(self._facts())

    def _repr_html_(self) -> str:
        """Return what a notebook shows of it."""
        from .shown import executor_card

        return executor_card(self._facts()).html()

    def _facts(self) -> "Facts":
        from .shown import Facts

        dispatcher = self._dispatcher
        started, method = workers_of(dispatcher.engine, self._mp_context)
        return Facts(
            type(self).__name__, self.store.address, dispatcher.run, dispatcher.standing(),
            started, dispatcher.engine.max_workers, method, dispatcher.failure or "",
        )  # fmt: skip

    def stacks(self, timeout: float = 1.0) -> dict[str, str]:
        """Return the Python stack of each running call, by task id, innermost line last.

        The workers are asked and go on. One that does not answer within `timeout` seconds, because
        it is stopped or holds the interpreter's lock, is there with a text that says so.

        >>> executor.stacks()
        {}
        """
        from .model.task import format_id

        return {format_id(number): stack for number, stack in self._dispatcher.stacks(timeout).items()}

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, and end when those that were taken are done; with `wait`, return only then.

        With `cancel_futures` what has not started is cancelled, for good.

        >>> executor.shutdown(cancel_futures=True)
        """
        self._dispatcher.close(wait, cancel_futures)

    def terminate_workers(self) -> None:
        """End the workers by SIGTERM, and the executor; calls that are not done stay PENDING in the store.

        >>> executor.terminate_workers()
        """
        self._dispatcher.stop(signal.SIGTERM, "terminate_workers() was called")

    def kill_workers(self) -> None:
        """End the workers by SIGKILL, and the executor; calls that are not done stay PENDING in the store.

        >>> executor.kill_workers()
        """
        self._dispatcher.stop(signal.SIGKILL, "kill_workers() was called")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        if kind is not None:
            self._dispatcher.leave_unclean()
            if issubclass(kind, Exception):
                from .dispatch import sessions

                sessions.raised(self.store.address, self._dispatcher.run)
            else:  # Ctrl-C, or an exit: whoever wants to leave is not made to wait
                self._dispatcher.stop(signal.SIGTERM, f"the executor was left by {kind.__name__}")
                return None
        try:
            self.shutdown(wait=True)
        except KeyboardInterrupt:
            self._dispatcher.stop(signal.SIGTERM, "waiting for the calls was interrupted")
            raise
        return None

    @property
    def _broken(self) -> str | None:
        return self._dispatcher.failure

    @property
    def _processes(self) -> "dict[int, Process]":
        """The worker processes by pid, as programs look for them in a process pool."""
        from .engines.local.pool import LocalEngine

        engine, driver = self._dispatcher.engine, self._dispatcher.driver
        if not isinstance(engine, LocalEngine):
            return {}
        # A worker may have given a result before the fork server of the launcher has told which process it is.
        if not driver.is_within():
            driver.wait_until(engine.are_known, _TOLD_WITHIN_S)
        return engine.processes()


class _WithOptions(Submitter):
    """What `PersistentExecutor.options()` returns: it submits to the same pool, with options of its own."""

    def __init__(self, executor: PersistentExecutor, call_options: "CallOptions", depends: "Depends | None") -> None:
        self._executor = executor
        self._dispatcher = executor._dispatcher
        self._functions = executor._functions
        self._call_options = call_options
        self._depends = depends
        self._max_workers = executor._max_workers

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Shut the executor down whose pool it is."""
        self._executor.shutdown(wait, cancel_futures=cancel_futures)


def _check_word(name: str, value: str, *allowed: str) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {', '.join(map(repr, allowed[:-1]))} or {allowed[-1]!r}, not {value!r}")


def default_queue() -> str:
    """Return the name of the script, of the module given by -m, or of the notebook that is running."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name:
        return str(spec.name).removesuffix(".__main__")
    # A script that a cell has started has the notebook's environment too, so its own name comes first.
    path: str | None = getattr(main, "__file__", None)
    if path:
        return os.path.splitext(os.path.basename(path))[0]
    from .dispatch.stranded import SESSION

    return notebooks.name() or SESSION


def _refuse_in_worker_start() -> None:
    process = multiprocessing.current_process()
    if getattr(process, "_inheriting", False):
        raise RuntimeError(
            "a PersistentExecutor is being made by the import of the main script in a process that multiprocessing"
            " is starting: put what the script does under `if __name__ == '__main__':`"
        )
