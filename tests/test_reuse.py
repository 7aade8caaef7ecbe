"""Calls that are run once: by resume="always" within their run, by memo=True anywhere; and failed ones, run again."""

import random
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import calls
import pytest

from omniq_executor import DependencyFailed, PersistentExecutor, Status
from omniq_executor.dispatch import sessions
from omniq_executor.model.reasons import Reason

WAIT_S = 30.0
MakeExecutor = Callable[..., PersistentExecutor]


@pytest.fixture(params=["store.db", "store"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The path of a store of each kind, that is not there yet."""
    return tmp_path / str(request.param)


@pytest.fixture(params=["always", "memo"])
def once(request: pytest.FixtureRequest, make_executor: MakeExecutor) -> Any:
    """An executor that runs equal calls once, in either way."""
    if request.param == "always":
        return make_executor(resume="always")
    return make_executor().options(memo=True)


# --- Within a run ------------------------------------------------------------------------------------------------


def test_a_call_that_is_made_again_is_given_its_result(once: Any, journal: Any) -> None:
    for _ in range(3):
        assert [once.submit(calls.noted, journal.path, n).result(WAIT_S) for n in (1, 2)] == [1, 2]
    assert journal.lines() == ["1", "2"]


def test_a_map_that_is_made_again_is_given_its_results(once: Any, journal: Any) -> None:
    for count in (5, 5, 7):  # extended, too
        assert list(once.map(calls.noted, [journal.path] * count, range(count))) == list(range(count))
    assert sorted(journal.lines()) == [str(n) for n in range(7)]


def test_a_call_that_is_running_is_the_same_future(once: Any, journal: Any, gate: Path) -> None:
    first = once.submit(calls.noted_wait, journal.path, 1, gate)
    journal.wait_for(1)
    again = once.submit(calls.noted_wait, journal.path, 1, gate)
    assert (again is first, again.done()) == (True, False)
    gate.touch()
    assert again.result(WAIT_S) == 1
    assert journal.lines() == ["1"]


@pytest.mark.parametrize("values", [[1, 1, 1], [1, 2, 1, 3, 2], [3, 3, 2, 2, 1]])
def test_equal_items_of_a_map_run_once_and_each_has_the_result(once: Any, journal: Any, values: list[int]) -> None:
    assert list(once.map(calls.noted, [journal.path] * len(values), values)) == values
    assert sorted(journal.lines()) == sorted({str(value) for value in values})


def test_submit_and_map_share_a_call(once: Any, journal: Any, gate: Path) -> None:
    future = once.submit(calls.noted_wait, journal.path, 1, gate)
    results = [once.map(calls.noted_wait, [journal.path] * 2, [1, 2], [gate] * 2) for _ in range(2)]
    again = once.submit(calls.noted_wait, journal.path, 2, gate)
    gate.touch()
    assert [list(result) for result in results] == [[1, 2], [1, 2]]
    assert (future.result(WAIT_S), again.result(WAIT_S)) == (1, 2)
    assert sorted(journal.lines()) == ["1", "2"]


def test_an_iterator_that_is_dropped_cancels_nothing_that_others_wait_for(
    make_executor: MakeExecutor, journal: Any, gate: Path
) -> None:
    executor = make_executor(1, resume="always")
    executor.submit(calls.wait_for, gate)
    dropped = executor.map(calls.noted, [journal.path] * 3, [1, 2, 3])
    kept = executor.map(calls.noted, [journal.path], [2])
    future = executor.submit(calls.noted, journal.path, 3)
    del dropped
    gate.touch()
    assert (list(kept), future.result(WAIT_S)) == ([2], 3)
    executor.shutdown()
    assert sorted(journal.lines()) == ["2", "3"]


def test_other_arguments_or_another_function_are_another_call(once: Any) -> None:
    futures = [once.submit(calls.add, 1, 2), once.submit(calls.add, 2, 1), once.submit(calls.add, 1, also=2)]
    futures += [once.submit(calls.square, 1), once.submit(calls.echo, 1), once.submit(calls.echo, 1.0)]
    assert len({future.task_id for future in futures}) == len(futures)
    assert [future.result(WAIT_S) for future in futures] == [3, 3, 3, 1, 1, 1.0]


def test_a_call_that_failed_runs_again(once: Any, journal: Any) -> None:
    first = once.submit(calls.noted_fail, journal.path, "a")
    with pytest.raises(ValueError, match="a"):
        first.result(WAIT_S)
    again = once.submit(calls.noted_fail, journal.path, "a")
    assert again is not first
    with pytest.raises(ValueError, match="a"):
        again.result(WAIT_S)
    assert journal.lines() == ["a", "a"]
    with pytest.raises(ValueError, match="a"):  # as it was, for whoever has it
        first.result(0)


def test_a_call_that_was_cancelled_runs_when_it_is_made_again(make_executor: MakeExecutor, gate: Path) -> None:
    executor = make_executor(1, resume="always")
    for once in (executor, executor.options(memo=True)):
        begun = gate.with_name(f"gate-{once is executor}")
        executor.submit(calls.wait_for, begun)
        first = once.submit(calls.square, 3)
        assert first.cancel()
        again = once.submit(calls.square, 3)
        assert again.why() == "run again, since it had been cancelled"
        begun.touch()
        assert again.result(WAIT_S) == 9
        assert executor._dispatcher.why(again._number).reason is Reason.CANCELLED  # so says the store
        with pytest.raises(CancelledError):
            first.result(0)


def test_a_call_that_was_cancelled_while_it_ran_runs_again(once: Any, journal: Any, gate: Path) -> None:
    for turn in range(1, 4):
        future = once.submit(calls.noted_wait, journal.path, 1, gate)
        journal.wait_for(turn)
        assert future.cancel(running=True)
    gate.touch()
    assert once.submit(calls.noted_wait, journal.path, 1, gate).result(WAIT_S) == 1
    assert journal.lines() == ["1"] * 4


def test_a_call_that_recurs_is_one_each_time(make_executor: MakeExecutor) -> None:
    executor = make_executor(resume="always").options(interval=3600)
    futures = [executor.submit(calls.square, 2) for _ in range(2)]
    assert len({future.task_id for future in futures}) == 2
    assert [future.result(WAIT_S) for future in futures] == [4, 4]
    for future in futures:
        future.cancel()


def test_what_was_removed_meanwhile_runs_anew(once: Any, journal: Any, open_store: Any, store: Path) -> None:
    once.submit(calls.noted, journal.path, 1).result(WAIT_S)
    open_store(store).purge(1 << 62)
    assert once.submit(calls.noted, journal.path, 1).result(WAIT_S) == 1
    assert list(once.map(calls.noted, [journal.path], [1])) == [1]
    assert journal.lines() == ["1", "1"]


def test_without_it_equal_calls_run_each(make_executor: MakeExecutor, journal: Any) -> None:
    for resume in ("crashed", "failed", "never"):
        with make_executor(resume=resume) as executor:
            assert [executor.submit(calls.noted, journal.path, resume).result(WAIT_S) for _ in range(2)] == [resume] * 2
    assert Counter(journal.lines()) == {"crashed": 2, "failed": 2, "never": 2}


@pytest.mark.parametrize("way", ["always", "memo"])
@pytest.mark.parametrize("seed", range(3))
def test_threads_that_make_the_same_calls_at_once_have_each_run_once(
    make_executor: MakeExecutor, journal: Any, way: str, seed: int
) -> None:
    executors = [make_executor(2, resume="always" if way == "always" else "crashed")]
    if way == "memo":
        executors.append(make_executor(1))  # another run of the queue at the same time
    verbs: list[Any] = [executor.options(memo=True) if way == "memo" else executor for executor in executors]
    chance = random.Random(seed)
    jobs = [[chance.randrange(12) for _ in range(chance.randrange(1, 9))] for _ in range(24)]
    plans = [[(chance.choice(verbs), chance.random() < 0.5, job) for job in jobs[n::6]] for n in range(6)]
    wrong: list[Any] = []
    begin = threading.Barrier(len(plans))

    def work(plan: list[Any]) -> None:
        begin.wait()
        for verb, maps, job in plan:
            if maps:
                found = list(verb.map(calls.noted, [journal.path] * len(job), job, timeout=WAIT_S))
            else:
                futures = [verb.submit(calls.noted, journal.path, n) for n in job]
                found = [future.result(WAIT_S) for future in futures]
            if found != job:
                wrong.append((found, job))

    threads = [threading.Thread(target=work, args=(plan,)) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * WAIT_S)
    assert (wrong, [thread.is_alive() for thread in threads]) == ([], [False] * len(threads))
    assert sorted(map(int, journal.lines())) == sorted({n for job in jobs for n in job})


# --- In other runs -----------------------------------------------------------------------------------------------


def test_memo_holds_in_later_runs_and_under_any_resume(make_executor: MakeExecutor, journal: Any) -> None:
    for resume in ("crashed", "never", "failed", "always"):
        with make_executor(resume=resume) as executor:
            memo = executor.options(memo=True)
            assert memo.submit(calls.noted, journal.path, 1).result(WAIT_S) == 1
            assert list(memo.map(calls.noted, [journal.path] * 2, [1, 2])) == [1, 2]
    assert journal.lines() == ["1", "2"]
    with make_executor(queue="elsewhere") as executor:
        executor.options(memo=True).submit(calls.noted, journal.path, 1).result(WAIT_S)
    assert journal.lines() == ["1", "2", "1"]


def test_memo_holds_in_another_process_that_runs_at_the_same_time(script: Any, tmp_path: Path) -> None:
    script.write("""
import os, sys, time
from omniq_executor import PersistentExecutor

def work(n):
    fd = os.open("journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{n}\\n".encode())
    os.close(fd)
    time.sleep(0.01)
    return n

with PersistentExecutor(1) as executor:
    print(sum(executor.options(memo=True).map(work, range(30))))
""")
    processes = [script.start() for _ in range(2)]
    ends = [script.finished(process) for process in processes]
    assert [(end.returncode, end.stdout) for end in ends] == [(0, "435\n")] * 2, [end.stderr for end in ends]
    assert sorted(map(int, script.journal.lines())) == list(range(30))


def test_always_makes_one_of_equal_calls_of_earlier_runs(make_executor: MakeExecutor, journal: Any) -> None:
    with make_executor(queue="q") as executor:
        for _ in range(2):
            executor.submit(calls.noted, journal.path, 1).result(WAIT_S)
    with make_executor(queue="q", resume="always") as executor:
        futures = [executor.submit(calls.noted, journal.path, 1) for _ in range(4)]
        assert list(executor.map(calls.noted, [journal.path] * 2, [1, 1])) == [1, 1]
        assert len({future.task_id for future in futures}) == 1
    assert journal.lines() == ["1", "1"]


def test_memo_tells_initializers_apart(make_executor: MakeExecutor) -> None:
    """A call was given what it had come to with other arguments of the initializer."""
    for year, resumed in (2023, False), (2024, False), (2023, True):
        with make_executor(1, initializer=calls.remember, initargs=(year,)) as executor:
            memo = executor.options(memo=True)
            preview = memo.preview(calls.remembered, ["a"])
            future = memo.submit(calls.remembered)
            assert (future.result(WAIT_S), future.resumed, preview.runs) == ([year], resumed, not resumed)
            assert list(memo.map(calls.remembered, ["a"])) == [[year]]
            if year == 2024:
                why = "run, since the initializer's arguments changed, so that no earlier call is the same"
                assert (preview.why(0), future.why()) == (why, why)


@pytest.mark.parametrize("nonsense", [{"memo": True, "key": "k"}, {"memo": True, "interval": 1}, {"key": "memo:1"}])
def test_memo_with_what_contradicts_it_is_refused(executor: PersistentExecutor, nonsense: Any) -> None:
    with pytest.raises(ValueError, match="memo"):
        executor.options(**nonsense)
    with pytest.raises(TypeError, match="memo"):
        executor.options(memo=1)  # type: ignore[arg-type]


# --- What failed -------------------------------------------------------------------------------------------------


def end_process() -> None:
    """As if this process had ended clean."""
    sessions.end_all()


def run_all(executor: PersistentExecutor, journal: Any, gate: Path) -> list[Any]:
    futures = [executor.submit(calls.noted_if, journal.path, n, gate, n == 2) for n in (1, 2, 3)]
    return [future.exception(WAIT_S) or future.result(WAIT_S) for future in futures]


def test_failed_has_the_failed_calls_of_a_clean_process_run_again_and_no_others(
    make_executor: MakeExecutor, journal: Any, gate: Path
) -> None:
    with make_executor(resume="failed") as executor:
        assert isinstance(run_all(executor, journal, gate)[1], FileNotFoundError)
    end_process()
    with make_executor(resume="failed") as executor:  # it fails once more
        assert isinstance(run_all(executor, journal, gate)[1], FileNotFoundError)
    end_process()
    gate.touch()
    with make_executor(resume="failed") as executor:
        assert run_all(executor, journal, gate) == [1, 2, 3]
    assert Counter(journal.lines()) == {"1": 1, "2": 3, "3": 1}
    end_process()
    with make_executor(resume="failed") as executor:  # nothing has failed: it starts afresh
        assert run_all(executor, journal, gate) == [1, 2, 3]
    assert Counter(journal.lines()) == {"1": 2, "2": 4, "3": 2}


def test_without_failed_a_clean_process_is_over(make_executor: MakeExecutor, journal: Any, gate: Path) -> None:
    for _ in range(2):
        with make_executor() as executor:
            run_all(executor, journal, gate)
        end_process()
    assert Counter(journal.lines()) == {"1": 2, "2": 2, "3": 2}


def test_retry_failed_runs_what_failed_and_what_was_to_be_given_it(
    make_executor: MakeExecutor, journal: Any, gate: Path
) -> None:
    with make_executor() as executor:
        good = executor.submit(calls.noted, journal.path, "good")
        bad = executor.submit(calls.noted_if, journal.path, "bad", gate, True)
        child = executor.submit(calls.noted, journal.path, bad)
        assert good.result(WAIT_S) == "good"
        assert isinstance(child.exception(WAIT_S), DependencyFailed)
        gate.touch()
        futures = executor.retry_failed()
        assert [future.task_id for future in futures] == [bad.task_id, child.task_id]
        assert [future.result(WAIT_S) for future in futures] == ["bad", "bad"]
        assert executor.retry_failed() == []
        assert isinstance(bad.exception(0), FileNotFoundError)
    assert Counter(journal.lines()) == {"good": 1, "bad": 3}


def test_retry_failed_takes_the_runs_that_are_continued_and_no_others(
    make_executor: MakeExecutor, journal: Any, gate: Path
) -> None:
    with make_executor(queue="q") as executor:
        run_all(executor, journal, gate)
    with make_executor(queue="other") as executor:
        run_all(executor, journal, gate)
    end_process()
    gate.touch()
    with make_executor(queue="q", resume="failed") as executor:
        (future,) = executor.retry_failed()
        assert future.result(WAIT_S) == 2
        assert run_all(executor, journal, gate) == [1, 2, 3]  # taken over, with what was run again
        assert [task.queue for task in executor.store.find(Status.FAILED)] == ["other"]
    assert Counter(journal.lines()) == {"1": 2, "2": 3, "3": 2}


@pytest.mark.parametrize("option", [{"key": "k"}, {"memo": True}])
def test_what_was_resumed_is_told_also_after_the_end(make_executor: MakeExecutor, option: Any) -> None:
    """Where all of it was found by keys the store was asked, which was closed."""
    for found in (Reason.AFRESH, Reason.ARGUMENTS), (Reason.KEY, Reason.EQUAL):
        with make_executor(1, resume="always") as executor:
            assert executor.options(**option).submit(calls.square, 3).result(WAIT_S) == 9
        assert executor.resumed.counts.keys() <= {*found}
