"""Every future resolves: with a result, with what the call raised, or with an error that says what happened."""

import concurrent.futures
import pickle
import threading
from concurrent.futures import InvalidStateError
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import calls
import pytest

import omniq_executor
from omniq_executor import CallError, PersistentExecutor, RemoteError, SerializationError, Status, TaskNotFound

pytestmark = pytest.mark.each_store

WAIT_S = 30.0


def works(executor: PersistentExecutor) -> bool:
    """Whether the executor still does what it should."""
    return executor.submit(calls.square, 12).result(WAIT_S) == 144 and list(
        executor.map(calls.square, range(10), timeout=WAIT_S)
    ) == [n * n for n in range(10)]


# --- What a call raises ------------------------------------------------------------------------------------------


def test_the_calls_exception_comes_with_the_workers_traceback(context: BaseContext, make_executor: Any) -> None:
    executor = make_executor(1, context)
    future = executor.submit(calls.raise_value_error, "as text")
    with pytest.raises(ValueError, match=r"(?m)^as text$") as caught:
        future.result(WAIT_S)
    assert type(caught.value) is ValueError
    cause = str(caught.value.__cause__)
    assert "Traceback (most recent call last)" in cause
    assert "in raise_value_error" in cause
    assert "ValueError: as text" in cause
    assert future.exception(WAIT_S) is caught.value
    task = future.task()
    assert task.status is Status.FAILED
    assert task.error is not None
    assert (task.error.type, task.error.message) == ("ValueError", "as text")
    assert "in raise_value_error" in task.error.traceback


def test_a_traceback_begins_with_the_call_and_has_at_most_one_frame_of_ours(executor: PersistentExecutor) -> None:
    others = str(Path(omniq_executor.__file__).parent), str(Path(concurrent.futures.__file__).parent)
    future = executor.submit(calls.raise_value_error, "no")
    for raises in future.result, lambda: list(executor.map(calls.raise_value_error, ["no"])):
        with pytest.raises(ValueError, match="no") as caught:
            raises()
        assert sum(str(frame.path).startswith(others) for frame in caught.traceback) <= 1
        assert str(caught.value.__cause__).strip().splitlines()[1].startswith(f'  File "{calls.__file__}"')
    with pytest.raises(ValueError, match="invalid literal") as caught:
        executor.submit(int, "seven").result()
    assert "worker.py" in str(caught.value.__cause__)  # there is no line of Python in the call


def test_the_traceback_of_a_chain_of_exceptions_has_all_of_them(executor: PersistentExecutor) -> None:
    error = executor.submit(calls.raise_chained).exception(WAIT_S)
    assert isinstance(error, ValueError)
    assert "KeyError: 'inner'" in str(error.__cause__)
    assert "direct cause" in str(error.__cause__)


@pytest.mark.parametrize(
    ("function", "type_name", "text"),
    [
        (calls.raise_two_arguments, "calls.TwoArguments", "one and two"),
        (calls.raise_unloadable, "calls.Unloadable", "as it was raised"),
        (calls.raise_keeping_a_lock, "calls.KeepsALock", "held"),
    ],
)
def test_an_exception_that_cannot_be_rebuilt_is_quoted_by_a_remote_error(
    executor: PersistentExecutor, function: Any, type_name: str, text: str
) -> None:
    future = executor.submit(function)
    with pytest.raises(RemoteError, match=f"{type_name}: {text}") as caught:
        future.result(WAIT_S)
    assert f"in {function.__name__}" in str(caught.value.__cause__)
    error = future.task().error
    assert error is not None
    assert (error.type, error.message) == (type_name, text)
    assert f"in {function.__name__}" in error.traceback
    assert isinstance(caught.value, CallError)
    assert works(executor)


def test_an_exception_that_cannot_be_printed_fails_its_future_only(executor: PersistentExecutor) -> None:
    error = executor.submit(calls.raise_bad_text).exception(WAIT_S)
    assert isinstance(error, calls.BadText)
    assert works(executor)


def test_exceptions_that_cannot_be_rebuilt_come_from_a_map_too(executor: PersistentExecutor) -> None:
    with pytest.raises(RemoteError, match="one and two"):
        next(executor.map(lambda _: calls.raise_two_arguments(), [1], timeout=WAIT_S))


def test_system_exit_in_a_call_is_what_became_of_the_call(context: BaseContext, make_executor: Any) -> None:
    executor = make_executor(1, context)
    pid = executor.submit(calls.pid).result(WAIT_S)
    with pytest.raises(SystemExit) as caught:
        executor.submit(calls.raise_system_exit, 3).result(WAIT_S)
    assert caught.value.code == 3
    with pytest.raises(KeyboardInterrupt):
        executor.submit(calls.raise_keyboard_interrupt).result(WAIT_S)
    assert executor.submit(calls.pid).result(WAIT_S) == pid


def test_an_exception_of_pythons_own_comes_whole_whatever_copyreg_was_taught_in_the_worker(
    executor: PersistentExecutor,
) -> None:
    with pytest.raises(UnicodeDecodeError, match="can't decode byte 0xff in position 0: invalid start byte"):
        executor.submit(calls.raise_bad_bytes_where_copyreg_pickles_less).result(WAIT_S)


def test_endless_recursion_in_a_call_is_an_exception(executor: PersistentExecutor) -> None:
    with pytest.raises(RecursionError):
        executor.submit(calls.recurse).result(WAIT_S)
    assert works(executor)


def test_wrong_arguments_are_the_calls_exception(executor: PersistentExecutor) -> None:
    with pytest.raises(TypeError, match="square"):
        executor.submit(calls.square, 1, 2, 3).result(WAIT_S)
    with pytest.raises(TypeError, match="unexpected keyword"):
        executor.submit(calls.square, m=1).result(WAIT_S)


# --- What cannot travel ------------------------------------------------------------------------------------------


def test_a_result_that_cannot_be_pickled_is_a_serialization_error(context: BaseContext, make_executor: Any) -> None:
    executor = make_executor(1, context)
    future = executor.submit(calls.make_lock)
    with pytest.raises(SerializationError, match="lock") as caught:
        future.result(WAIT_S)
    assert isinstance(caught.value, pickle.PicklingError)
    assert future.task().status is Status.FAILED
    assert works(executor)


@pytest.mark.parametrize("depth", [300, 5_000, 100_000])
def test_a_result_of_any_depth_comes_back_or_fails_its_future(executor: PersistentExecutor, depth: int) -> None:
    future = executor.submit(calls.make_deep, depth)
    error = future.exception(60)
    if error is None:
        value, found = future.result(WAIT_S), 0
        while value:
            (value,), found = value, found + 1
        assert found == depth
    else:
        assert isinstance(error, SerializationError | RecursionError)
        assert depth > 300
    assert works(executor)


@pytest.mark.parametrize("depth", [300, 100_000])
def test_an_argument_of_any_depth_arrives_or_fails_its_future(executor: PersistentExecutor, depth: int) -> None:
    future = executor.submit(len, calls.make_deep(depth))
    error = future.exception(60)
    if error is None:
        assert future.result(WAIT_S) == 1
    else:
        assert isinstance(error, SerializationError | RecursionError)
        assert depth > 300
    assert works(executor)


@pytest.mark.parametrize(
    "argument", [threading.Lock(), (n for n in ()), [threading.Lock()]], ids=["lock", "generator", "list"]
)
def test_an_argument_that_cannot_be_pickled_fails_its_future_and_leaves_no_task(
    executor: PersistentExecutor, argument: Any
) -> None:
    future = executor.submit(calls.echo, argument)
    with pytest.raises(SerializationError):
        future.result(WAIT_S)
    assert future.done()
    assert future.task_id is None
    assert not future.cancel()
    assert not future.running()
    with pytest.raises(ValueError, match="could not be stored"):
        future.task()
    with pytest.raises(SerializationError):
        executor.submit(calls.add, also=argument).result(WAIT_S)
    assert executor.store.counts() == {}
    assert works(executor)


def test_a_function_that_cannot_be_pickled_fails_its_future_and_leaves_no_task(executor: PersistentExecutor) -> None:
    lock = threading.Lock()
    with pytest.raises(SerializationError, match="lock"):
        executor.submit(lambda: lock).result(WAIT_S)
    with pytest.raises(SerializationError, match="lock"):
        executor.submit(lock.acquire).result(WAIT_S)
    assert executor.store.counts() == {}
    assert works(executor)


class RefusesPickling:
    """Raises what a user may raise, when it is pickled."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


@pytest.mark.parametrize("error", [ZeroDivisionError("no"), AttributeError("no"), RecursionError("no")], ids=repr)
def test_whatever_pickling_raises_fails_the_future(executor: PersistentExecutor, error: BaseException) -> None:
    with pytest.raises(SerializationError, match=r"no|recursion"):
        executor.submit(calls.echo, RefusesPickling(error)).result(WAIT_S)
    assert works(executor)


def test_an_argument_that_cannot_be_loaded_in_the_worker_fails_its_future(executor: PersistentExecutor) -> None:
    with pytest.raises(ValueError, match="cannot be loaded"):
        executor.submit(calls.echo, calls.make_unloadable()).result(WAIT_S)
    with pytest.raises(SystemExit):
        executor.submit(calls.echo, calls.make_exit_on_load()).result(WAIT_S)
    assert works(executor)


def test_a_result_whose_loading_raises_fails_its_future_only(context: BaseContext, make_executor: Any) -> None:
    executor = make_executor(1, context)
    before, bad, after = (executor.submit(f) for f in (calls.pid, calls.make_unloadable, calls.pid))
    with pytest.raises(ValueError, match="it cannot be loaded"):
        bad.result(WAIT_S)
    with pytest.raises(ValueError, match="it cannot be loaded"):
        bad.result(WAIT_S)  # and again
    assert isinstance(bad.exception(WAIT_S), ValueError)
    assert before.result(WAIT_S) == after.result(WAIT_S)
    assert bad.task().status is Status.COMPLETED  # the call itself did well
    assert works(executor)


def test_a_result_that_exits_when_it_is_loaded_fails_its_future_only(executor: PersistentExecutor) -> None:
    bad = executor.submit(calls.make_exit_on_load)
    with pytest.raises(SystemExit):
        bad.result(WAIT_S)
    assert works(executor)


def test_a_result_that_loads_only_in_the_worker_fails_its_future_only(executor: PersistentExecutor) -> None:
    with pytest.raises(RuntimeError, match="only the process that made it"):
        executor.submit(calls.make_for_this_process).result(WAIT_S)
    assert works(executor)


def test_waiting_sees_a_future_whose_result_cannot_be_loaded(executor: PersistentExecutor) -> None:
    bad = executor.submit(calls.make_unloadable)
    called = threading.Event()
    bad.add_done_callback(lambda _: called.set())
    done, _ = concurrent.futures.wait([bad], timeout=WAIT_S)
    assert done == {bad}
    assert called.wait(WAIT_S)


# --- The future itself -------------------------------------------------------------------------------------------


def test_a_future_tells_all_that_the_store_knows(make_executor: Any) -> None:
    executor = make_executor(queue="the queue")
    future = executor.submit(calls.add, 1, 2, also=3)
    assert future.result(WAIT_S) == 6
    task = future.task()
    assert task.task_id == future.task_id
    assert future.task_id.startswith("task-")
    assert (task.queue, task.func_path, task.status) == ("the queue", "calls.add", Status.COMPLETED)
    assert (task.args, task.kwargs, task.result) == ("[1,2]", '{"also":3}', "6")
    assert (task.attempts, task.crashes, task.priority, task.error, task.key) == (1, 0, 0, None, None)
    assert task.owner is not None
    assert task.started_at is not None
    assert task.completed_at is not None
    assert task.enqueued_at <= task.started_at <= task.completed_at
    assert task.failed_at is None
    assert not future.resumed


def test_ids_of_later_calls_sort_later(executor: PersistentExecutor) -> None:
    ids = [executor.submit(calls.square, n).task_id for n in range(100)]
    assert ids == sorted(set(ids))
    assert [task.task_id for task in executor.store.find()] == ids


def test_what_json_does_not_keep_is_stored_as_a_pickle(executor: PersistentExecutor) -> None:
    task_of = executor.submit(calls.echo, (1, 2))
    assert task_of.result(WAIT_S) == (1, 2)
    task = task_of.task()
    assert isinstance(task.args, bytes)
    assert isinstance(task.result, bytes)
    assert pickle.loads(task.args) == (((1, 2),), {})
    assert pickle.loads(task.result) == (1, 2)


def test_a_future_is_running_while_its_call_is_with_a_worker(
    make_executor: Any, journal: Any, tmp_path: Path, wait_until: Any
) -> None:
    executor = make_executor(1)
    first = executor.submit(calls.noted_wait, journal.path, "first", tmp_path / "gate")
    journal.wait_for(1)
    second = executor.submit(calls.square, 2)
    assert first.running()
    assert not first.done()
    assert first.task().status is Status.RUNNING
    assert not second.running()
    assert not second.done()
    assert second.task().status is Status.PENDING
    (tmp_path / "gate").touch()
    assert (first.result(WAIT_S), second.result(WAIT_S)) == ("first", 4)
    assert not first.running()
    assert first.done()
    assert (first.task().status, second.task().status) == (Status.COMPLETED, Status.COMPLETED)


def test_a_future_can_be_read_after_its_executor_ended(store: Path) -> None:
    with PersistentExecutor(1, store=store) as executor:
        good, bad = executor.submit(calls.echo, (1, 2)), executor.submit(calls.raise_value_error, "late")
    assert good.result(0) == (1, 2)
    with pytest.raises(ValueError, match="late"):
        bad.result(0)
    assert not good.cancel()
    assert not good.running()


def test_a_finished_future_cannot_be_finished_again_by_the_user(executor: PersistentExecutor) -> None:
    future = executor.submit(calls.square, 3)
    assert future.result(WAIT_S) == 9
    with pytest.raises(InvalidStateError):
        future.set_result(10)
    assert future.result(WAIT_S) == 9


def test_a_task_that_is_not_there_is_named(executor: PersistentExecutor) -> None:
    with pytest.raises(TaskNotFound, match="task-0000000000001") as caught:
        executor.store.get("task-0000000000001")
    assert isinstance(caught.value, LookupError)
