"""A backend of joblib on any executor, as joblib's documentation of custom backends has them."""

import concurrent.futures
from typing import Any

from joblib.parallel import ParallelBackendBase


class ExecutorBackend(ParallelBackendBase):
    """Runs the batches of `joblib.Parallel` as calls of an executor, which it leaves open."""

    supports_retrieve_callback = True

    def __init__(self, executor: concurrent.futures.Executor | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.executor = executor
        self.futures: list[concurrent.futures.Future[Any]] = []

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        return 2 if n_jobs is None or n_jobs < 0 else n_jobs

    def submit(self, func: Any, callback: Any = None) -> "concurrent.futures.Future[Any]":
        future = self.executor.submit(func)
        self.futures.append(future)
        future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: "concurrent.futures.Future[Any]") -> Any:
        return out.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        for future in self.futures:
            future.cancel()
