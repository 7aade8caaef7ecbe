"""An executor runs what it was asked for: nothing of other runs, and no old code unasked."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import calls
import pytest

from omniq_executor import ContextChanged, KeyConflict, PersistentExecutor, Status, WorkerCrashed, attach
from omniq_executor.dispatch import sessions
from omniq_executor.model.task import MOST_OWNER_DEATHS
from omniq_executor.stores.base import Leftover

WAIT_S = 30.0

HEAD = """
import logging, os, sys, time
logging.basicConfig(level=logging.INFO)
from omniq_executor import PersistentExecutor

def note(line):
    fd = os.open("journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{line}\\n".encode())
    os.close(fd)

def die():
    os.kill(os.getpid(), 9)
    time.sleep(60)
"""


def killed(script: Any, *args: str) -> Any:
    done = script.run(*args)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return done


def ended(script: Any, *args: str) -> Any:
    done = script.run(*args)
    assert done.returncode == 0, done.stderr
    return done


def stand(store: Any) -> dict[str, int]:
    """How many tasks of each state there are."""
    found: dict[str, int] = {}
    for of_queue in store.counts().values():
        for status, count in of_queue.items():
            found[status.name] = found.get(status.name, 0) + count
    return found


# --- Two runs at a time ---

YEARS = """
YEAR = None

def prepare(year):
    global YEAR
    import builtins
    builtins.YEAR = year

def work(n):
    import builtins, os
    time.sleep(0.002)
    return builtins.YEAR, os.getcwd()

if __name__ == "__main__":
    year = int(sys.argv[1])
    folder = f"year{year}"
    os.makedirs(folder, exist_ok=True)
    os.chdir(folder)
    with PersistentExecutor(1, initializer=prepare, initargs=(year,), store="../shared.db") as executor:
        futures = [executor.submit(work, n) for n in range(40)]
        print(f"{year} submitted", flush=True)
        sys.stdin.readline()
        futures += [executor.submit(work, n) for n in range(40, 80)]
        found = {future.result() for future in futures} | set(executor.map(work, range(200)))
        print(found == {(year, os.getcwd())}, flush=True)
"""


def test_two_runs_of_a_script_at_a_time_run_each_its_own_calls(script: Any, wait_until: Any) -> None:
    """Issue 9: each ran calls of the other, with the wrong year."""
    script.write(HEAD + YEARS)
    processes = [script.start(str(year), stdin=subprocess.PIPE) for year in (2023, 2024)]
    for number in range(2):
        wait_until((script.folder / f"{number}.out").read_text)
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        done = script.finished(process)
        assert done.stdout.splitlines()[-1] == "True", done.stderr


# --- Calls that need an initializer ---

WARM = """
YEAR = None

def prepare(year):
    global YEAR
    YEAR = year

def work(n):
    return n, YEAR

if __name__ == "__main__":
    year, leftovers, count = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    with PersistentExecutor(1, initializer=prepare, initargs=(year,), leftovers=leftovers) as executor:
        executor.submit(time.sleep, 60) if len(sys.argv) > 4 else None
        futures = [executor.submit(work, n) for n in range(count)]
        if len(sys.argv) > 4:
            die()
        print([future.result() for future in futures], flush=True)
"""


def test_a_worker_runs_no_call_that_needs_an_initializer(script: Any, start_worker: Any, open_store: Any) -> None:
    """It ran them without, and a resumed script was given what came of that."""
    script.write(HEAD + WARM)
    killed(script, "2023", "leave", "3", "die")
    store = open_store(script.store)
    PersistentExecutor(store=script.store, queue="script", engine="external").shutdown()
    worker = start_worker("--store", str(script.store))
    with PersistentExecutor(store=script.store, queue="script", engine="external") as other:
        assert other.submit(abs, -1).result(WAIT_S) == 1  # by the worker, who looks at the whole queue for it
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert stand(store) == {"PENDING": 4, "COMPLETED": 1}
    assert ended(script, "2023", "leave", "3").stdout == "[(0, 2023), (1, 2023), (2, 2023)]\n"


def test_leftovers_are_not_run_with_another_initializer(script: Any, open_store: Any) -> None:
    script.write(HEAD + WARM.replace("time.sleep, 60", "time.sleep, 0.5"))
    killed(script, "2023", "leave", "3", "die")
    ended(script, "2024", "run", "1")
    assert stand(open_store(script.store)) == {"PENDING": 4, "COMPLETED": 1}
    done = ended(script, "2023", "leave", "0")
    assert "an executor with leftovers='run' and the same initializer and arguments runs them" in done.stderr
    ended(script, "2023", "run", "1")
    assert stand(open_store(script.store)) == {"COMPLETED": 6}


def test_who_waits_by_id_with_another_initializer_does_not_run_the_call_and_says_why(script: Any, store: Path) -> None:
    """It was run with that initializer, and the result was stored for whoever asks for the task."""
    script.write(HEAD + WARM.replace("time.sleep, 60", "time.sleep, 0.1"))
    killed(script, "2023", "leave", "2", "die")
    with PersistentExecutor(1, store=script.store, queue="script", initializer=calls.remember) as executor:
        *_, left = executor.futures()
        with pytest.raises(ContextChanged, match="the initializer and its arguments changed since"):
            left.result(WAIT_S)
        assert left.task().status is Status.PENDING
    assert ended(script, "2023", "leave", "2").stdout == "[(0, 2023), (1, 2023)]\n"


PLAIN = """
def work(seconds):
    time.sleep(seconds)
    return seconds

if __name__ == "__main__":
    with PersistentExecutor(1) as executor:
        futures = [executor.submit(work, 1.0), executor.submit(work, 0.0)]
        die() if len(sys.argv) > 1 else futures[0].result()
"""


def test_what_a_call_needs_is_run_here_though_nobody_waits_for_it(script: Any) -> None:
    """A future by `attach()` is only looked at. So nobody ran its task, and the call waited for ever."""
    script.write(HEAD + PLAIN)
    killed(script, "die")
    *_, left = attach(script.store).futures()
    with PersistentExecutor(1, store=script.store, queue="other") as executor:
        near = executor.submit(calls.echo, left)
        assert executor.submit(calls.echo, near).result(WAIT_S) == 0.0
        assert list(executor.map(calls.echo, [left, near])) == [0.0, 0.0]
    killed(script, "die")
    *_, left = attach(script.store).futures()
    with PersistentExecutor(1, store=script.store, queue="other") as executor:
        assert list(executor.map(calls.echo, [left, 1])) == [0.0, 1]


def test_what_a_call_needs_is_run_here_once_who_ran_it_is_dead(script: Any, wait_until: Any) -> None:
    script.write(HEAD + PLAIN.replace("work, 1.0", "work, 60"))
    process = script.start()
    wait_until(script.store.exists)
    wait_until(lambda: len(attach(script.store).futures()) == 2)
    *_, left = attach(script.store).futures()
    with PersistentExecutor(1, store=script.store, queue="other") as executor:
        needs = executor.submit(calls.echo, left)
        process.kill()
        assert needs.result(WAIT_S) == 0.0


@pytest.mark.parametrize("way", ["before", "after", "map"])
def test_what_needs_a_call_of_another_initializer_fails_likewise(script: Any, way: str) -> None:
    """It waited for whoever runs that call, which may be nobody."""
    script.write(HEAD + WARM.replace("time.sleep, 60", "time.sleep, 0.1"))
    killed(script, "2023", "leave", "2", "die")
    with PersistentExecutor(1, store=script.store, queue="script", initializer=calls.remember) as executor:
        *_, left = executor.futures()
        if way == "after":
            with pytest.raises(ContextChanged):
                left.result(WAIT_S)
        if way == "map":
            near, *others = executor.map(calls.echo, [left, 1, left], return_exceptions=True)
            assert others[0] == 1
            assert isinstance(others[1], ContextChanged)
            assert isinstance(near, ContextChanged)
        near = executor.submit(calls.echo, left)
        far = executor.submit(calls.echo, near)
        for future in (near, far, executor.submit(calls.echo, far), executor.submit(calls.echo, left)):
            with pytest.raises(ContextChanged, match="needs a result that is not there"):
                future.result(WAIT_S)
            assert future.task().status is Status.PENDING
        assert executor.submit(calls.echo, 7).result(WAIT_S) == 7


def test_a_key_is_run_here_in_whatever_context_it_was_submitted_before(script: Any) -> None:
    script.write(
        HEAD
        + WARM.replace("executor.submit(work, n)", "executor.options(key=str(n)).submit(work, n)").replace(
            "time.sleep, 60", "time.sleep, 0.1"
        )
    )
    killed(script, "2023", "leave", "2", "die")
    assert ended(script, "2024", "leave", "2").stdout == "[(0, 2024), (1, 2024)]\n"


@pytest.mark.parametrize("option", [{"key": "k"}, {"memo": True}])
def test_what_an_executor_without_workers_has_submitted_is_run_by_who_submits_it_too(store: Path, option: Any) -> None:
    """The one that only submits counted as one who would run it, and both waited for ever."""
    with PersistentExecutor(store=store, engine="external", queue="q") as external:
        first = external.options(**option).submit(calls.square, 3)
        with PersistentExecutor(1, store=store, queue="q") as executor:
            assert executor.options(**option).submit(calls.square, 3).result(WAIT_S) == 9
        assert first.result(WAIT_S) == 9


# --- Leftovers ---

MENDED = """
def work(n):
    note(f"FACTOR {n}")
    if n == 3 and len(sys.argv) > 1:
        time.sleep(60)
    return FACTOR * n

if __name__ == "__main__":
    with PersistentExecutor(1, **OPTIONS) as executor:
        futures = [executor.submit(work, n) for n in range(10)]
        print(futures[2].result(), flush=True)
        if len(sys.argv) > 1:
            die()
        print([future.result() for future in futures], flush=True)
"""


def mended(factor: int, options: str = "{}") -> str:
    return HEAD + MENDED.replace("FACTOR", str(factor)).replace("OPTIONS", options)


@pytest.mark.parametrize("options", ["{}", "{'resume': 'never'}", "{'resume': 'always'}"])
def test_a_mended_script_runs_its_own_code_alone(script: Any, open_store: Any, options: str) -> None:
    """Issue 9: leftover calls ran first, with the old code, and wrote over what the new ones wrote."""
    script.write(mended(10))
    killed(script, "die")
    old = len(script.journal.lines())
    script.write(mended(20, options))
    done = ended(script)
    assert done.stdout.splitlines()[-1] == str([20 * n for n in range(10)])
    assert script.journal.lines()[old:] == [f"20 {n}" for n in range(10)]
    assert stand(open_store(script.store)) == {"COMPLETED": 13, "PENDING": 7}
    assert "continuing" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "PENDING" in line]
    found = re.search(r"7 calls of run (\d+), begun at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC, not submitted", line)
    assert found, line
    assert f"omniq-executor cancel --store {script.store.resolve()} --run {found[1]}" in line
    assert f"omniq-executor worker --store {script.store.resolve()} --queue script" in line
    assert "PENDING" not in ended(script).stderr  # it is said once


def test_the_commands_about_leftovers_can_be_copied_to_a_shell(caplog: pytest.LogCaptureFixture) -> None:
    sessions.tell_of_leftovers("/my runs/s.db", [Leftover(3, "b's", 0, 1, ""), Leftover(4, "b", 0, 2, "")])
    assert [record.getMessage() for record in caplog.records] == [
        'queue "b\'s": 1 call of run 3, begun at 1970-01-01 00:00:00 UTC, not submitted again, stays PENDING.'
        " `omniq-executor worker --store '/my runs/s.db' --queue 'b'\"'\"'s'` runs it,"
        " `omniq-executor cancel --store '/my runs/s.db' --run 3` cancels it",
        "queue 'b': 2 calls of run 4, begun at 1970-01-01 00:00:00 UTC, not submitted again, stay PENDING."
        " `omniq-executor worker --store '/my runs/s.db' --queue b` runs them,"
        " `omniq-executor cancel --store '/my runs/s.db' --run 4` cancels them",
    ]


def test_leftovers_are_cancelled_if_that_is_wished(script: Any, open_store: Any) -> None:
    script.write(mended(10))
    killed(script, "die")
    script.write(mended(20, "{'leftovers': 'cancel'}"))
    assert "PENDING" not in ended(script).stderr
    assert stand(open_store(script.store)) == {"COMPLETED": 13, "CANCELLED": 7}


def test_leftovers_that_were_named_before_are_cancelled_too(script: Any, open_store: Any) -> None:
    script.write(mended(10))
    killed(script, "die")
    script.write(mended(20))
    assert "PENDING" in ended(script).stderr
    script.write(mended(30, "{'leftovers': 'cancel'}"))
    assert "PENDING" not in ended(script).stderr
    assert stand(open_store(script.store)) == {"COMPLETED": 23, "CANCELLED": 7}


def test_leftovers_are_run_if_that_is_wished_with_the_code_they_were_submitted_with(
    script: Any, open_store: Any
) -> None:
    script.write(mended(10))
    killed(script, "die")
    script.write(mended(20, "{'leftovers': 'run'}"))
    ended(script)
    assert stand(open_store(script.store)) == {"COMPLETED": 20}
    assert {f"10 {n}" for n in range(10)} <= set(script.journal.lines())


@pytest.mark.parametrize("submits", [True, False])
def test_leftovers_are_run_to_their_end_before_the_executor_ends(submits: bool, script: Any, open_store: Any) -> None:
    """Issue 13: what no worker had begun when the last call of the script was there stayed PENDING."""
    script.write(mended(10))
    killed(script, "die")
    submit = "executor.submit(len, 'x')" if submits else "pass"
    script.write(f"{HEAD}\nwith PersistentExecutor(1, leftovers='run') as executor:\n    {submit}")
    ended(script)
    assert stand(open_store(script.store)) == {"COMPLETED": 10 + submits}


@pytest.mark.parametrize(("options", "cancels"), [("{'eta': 3600}", False), ("{}", True)])
def test_leftovers_that_are_not_due_or_not_wished_any_more_are_not_waited_for(
    options: str, cancels: bool, script: Any, open_store: Any
) -> None:
    begin = HEAD + "executor = PersistentExecutor(1, leftovers='run')\n"
    script.write(f"{begin}executor.options(**{options}).submit(time.sleep, 3600); die()")
    killed(script)
    script.write(f"{begin}executor.shutdown(cancel_futures={cancels})")
    ended(script)
    assert stand(open_store(script.store)) == {"PENDING": 1}


def test_the_two_commands_that_are_named_do_what_is_said(script: Any, open_store: Any) -> None:
    script.write(mended(10))
    killed(script, "die")
    script.write(mended(20))
    (line,) = [line for line in ended(script).stderr.splitlines() if "PENDING" in line]
    command = re.search(r"`omniq-executor (cancel [^`]*)`", line)
    assert command
    done = script.run("--json", python=["-m", "omniq_executor", *command[1].split()])
    assert len(json.loads(done.stdout)["cancelled"]) == 7
    assert stand(open_store(script.store)) == {"COMPLETED": 13, "CANCELLED": 7}


@pytest.mark.parametrize("other", [None, "initargs", "folder"])
def test_a_run_in_another_context_is_not_continued(script: Any, other: str | None) -> None:
    script.write(
        HEAD
        + """
def prepare(value):
    pass

def work(n):
    return n

if __name__ == "__main__":
    if "folder" in sys.argv:
        os.makedirs("elsewhere", exist_ok=True)
        os.chdir("elsewhere")
    store = os.path.join(os.path.dirname(os.path.abspath(__file__)), "x.db")
    initargs = (2 if "initargs" in sys.argv else 1,)
    with PersistentExecutor(1, initializer=prepare, initargs=initargs, store=store) as executor:
        futures = [executor.submit(work, n) for n in range(3)]
        [future.result() for future in futures]
        print(sum(future.resumed for future in futures), flush=True)
        if "die" in sys.argv:
            die()
"""
    )
    killed(script, "die")
    assert ended(script, str(other)).stdout == ("3\n" if other is None else "0\n")
    assert ended(script).stdout == ("0\n" if other is None else "3\n")


def test_a_lock_among_the_initargs_does_not_count(script: Any) -> None:
    script.write(
        HEAD
        + """
import multiprocessing

def prepare(lock, value):
    pass

if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    with PersistentExecutor(1, context, prepare, (context.Lock(), 5)) as executor:
        future = executor.submit(abs, -1)
        future.result()
        print(future.resumed, flush=True)
        if len(sys.argv) > 1:
            die()
"""
    )
    killed(script, "die")
    assert ended(script).stdout == "True\n"


# --- Waiting for what others have submitted ---


def test_who_waits_by_id_runs_what_its_dead_run_left_and_what_that_needs(script: Any, open_store: Any) -> None:
    script.write(
        HEAD
        + """
def work(n):
    note(n)
    return n

if __name__ == "__main__":
    if len(sys.argv) > 1:
        executor = PersistentExecutor(1)
        executor.submit(time.sleep, 60)
        first = executor.submit(work, 1)
        second = executor.submit(work, first)
        executor.submit(work, 7)
        open("id", "w").write(second.task_id)
        die()
    with PersistentExecutor(1) as executor:
        print(executor.future(open("id").read()).result(20), flush=True)
"""
    )
    killed(script, "die")
    assert ended(script).stdout == "1\n"
    assert script.journal.lines() == ["1", "1"]
    assert stand(open_store(script.store)) == {"COMPLETED": 2, "PENDING": 2}


def test_who_waits_by_id_leaves_it_to_the_run_that_lives(store: Path, journal: Any, tmp_path: Path) -> None:
    with PersistentExecutor(1, store=store) as living, PersistentExecutor(1, store=store) as other:
        blocked = living.submit(calls.noted_wait, journal.path, "first", tmp_path / "gate")
        waiting = living.submit(calls.noted_pid, journal.path, 2)
        future = other.future(waiting.task_id)
        assert other.submit(abs, -1).result(WAIT_S) == 1
        assert not future.done()
        (tmp_path / "gate").touch()
        assert future.result(WAIT_S) == waiting.result(WAIT_S)
        assert blocked.result(WAIT_S) == "first"
        assert waiting.task().run == blocked.task().run


def test_who_waits_by_id_takes_it_when_its_executor_has_ended(store: Path, journal: Any, tmp_path: Path) -> None:
    living, other = PersistentExecutor(1, store=store), PersistentExecutor(1, store=store)
    living.submit(calls.noted_wait, journal.path, "first", tmp_path / "gate")
    waiting = living.submit(calls.noted, journal.path, "second")
    future = other.future(waiting.task_id)
    living.kill_workers()
    assert future.result(WAIT_S) == "second"
    other.shutdown()


# --- Sessions ---


def test_what_is_settled_by_a_clean_session_is_not_given_days_later(script: Any) -> None:
    """Issue 9: day 1 fails, days 2 to 5 run other things and end clean, day 6 got the content of day 1."""
    script.write(
        HEAD
        + """
def day():
    return open("day").read()

if __name__ == "__main__":
    with PersistentExecutor(1) as executor:
        if sys.argv[1] == "other":
            print(executor.submit(abs, -1).result())
        else:
            print(executor.submit(day).result())
    if sys.argv[1] == "fails":
        raise ValueError("day 1 fails")
"""
    )
    (script.folder / "day").write_text("1")
    assert script.run("fails").returncode == 1
    (script.folder / "day").write_text("2")
    done = ended(script, "other")
    assert "continuing" not in done.stderr
    (script.folder / "day").write_text("6")
    assert ended(script, "works").stdout == "6\n"


def test_an_exception_that_is_caught_leaves_nothing_to_continue(script: Any) -> None:
    script.write(
        HEAD
        + """
if __name__ == "__main__":
    for attempt in range(2):
        try:
            with PersistentExecutor(1) as executor:
                future = executor.submit(abs, -1)
                future.result()
                print(future.resumed)
                if not attempt:
                    raise ValueError("caught")
        except ValueError:
            pass
"""
    )
    assert ended(script).stdout == "False\nTrue\n"  # within the process it is continued
    assert ended(script).stdout == "False\nTrue\n"


def test_an_interrupt_that_is_caught_leaves_what_was_cut_off(script: Any) -> None:
    script.write(
        HEAD
        + """
if __name__ == "__main__":
    try:
        with PersistentExecutor(1) as executor:
            future = executor.submit(abs, -1)
            future.result()
            print(future.resumed)
            if len(sys.argv) > 1:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        sys.exit(1)
"""
    )
    assert script.run("interrupt").stdout == "False\n"
    assert ended(script).stdout == "True\n"
    assert ended(script).stdout == "False\n"


def test_nothing_is_continued_that_is_older_than_resume_within(script: Any) -> None:
    script.write(
        HEAD
        + """
if __name__ == "__main__":
    within = None if sys.argv[1] == "None" else float(sys.argv[1])
    with PersistentExecutor(1, resume_within=within) as executor:
        future = executor.submit(abs, -1)
        future.result()
        print(future.resumed, flush=True)
        die()
"""
    )
    assert killed(script, "60").stdout == "False\n"
    assert killed(script, "0").stdout == "False\n"
    assert killed(script, "60").stdout == "True\n"
    assert killed(script, "None").stdout == "True\n"


@pytest.mark.parametrize(("value", "error"), [(-1, ValueError), ("week", TypeError), (True, TypeError)])
def test_a_time_that_makes_no_sense_is_refused(store: Path, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="resume_within"):
        PersistentExecutor(store=store, resume_within=value)


def test_a_word_for_leftovers_that_makes_no_sense_is_refused(store: Path) -> None:
    with pytest.raises(ValueError, match="leftovers is 'leave', 'cancel' or 'run', not 'keep'"):
        PersistentExecutor(store=store, leftovers="keep")  # type: ignore[arg-type]


def test_the_run_of_a_script_is_clean_when_its_process_has_ended_well(script: Any, open_store: Any) -> None:
    script.write(HEAD + 'with PersistentExecutor(1) as executor:\n    executor.submit(abs, -1)\nprint("end")\n')
    ended(script)
    (run,) = open_store(script.store).runs()
    assert (run.clean, run.settled) == (True, True)


def test_in_a_process_of_multiprocessing_a_run_is_clean_unless_an_exception_has_left_it(
    method: str, script: Any, open_store: Any
) -> None:
    script.write(
        HEAD
        + f"""
import multiprocessing

def job(fails):
    with PersistentExecutor(1, queue=str(fails)) as executor:
        executor.submit(abs, -1).result()
    if fails:
        raise ValueError

if __name__ == "__main__":
    for fails in (False, True):
        process = multiprocessing.get_context({method!r}).Process(target=job, args=(fails,))
        process.start()
        process.join()
"""
    )
    ended(script)
    # From 3.13 on nothing tells at the end of such a process that an exception has left it.
    fails_clean = sys.version_info >= (3, 13)
    runs = [(run.queue, run.clean) for run in open_store(script.store).runs()]
    assert runs == [("False", True), ("True", fails_clean)]


def test_of_many_sessions_those_that_are_not_needed_are_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_store: Any
) -> None:
    monkeypatch.setattr(sessions, "_sessions", {})
    monkeypatch.setattr(sessions, "_MOST", 3)
    for number in range(5):
        with PersistentExecutor(1, store=tmp_path / f"{number}.db") as executor:
            executor.submit(abs, -1).result(WAIT_S)
    assert len(sessions._sessions) == 3
    assert [open_store(tmp_path / f"{n}.db").runs()[0].clean for n in range(5)] == [True, True, None, None, None]
    sessions.end_all()
    assert all(open_store(tmp_path / f"{n}.db").runs()[0].clean for n in range(5))


# --- Calls that kill their owner ---

KILLS = """
def work(n):
    if n == 3:
        note("deadly")
        time.sleep(0.02)
        os.kill(int(open("pid").read()), 9)
        time.sleep(60)
    note(n)
    return n

if __name__ == "__main__":
    open("pid", "w").write(str(os.getpid()))
    with PersistentExecutor(2, **OPTIONS) as executor:
        results = executor.map(work, range(20))  # which adds all of them before anything is claimed
        futures = executor.futures()
        print([future.exception() and type(future.exception()).__name__ for future in futures])
        print(futures[3].exception())
"""


def test_a_call_that_kills_its_owner_fails_after_three_times_and_the_rest_gets_done(
    script: Any, open_store: Any
) -> None:
    """Issue 9: it was endless."""
    script.write(HEAD + KILLS.replace("OPTIONS", "{}"))
    for deaths in range(1, MOST_OWNER_DEATHS + 1):
        killed(script)
        assert script.journal.lines().count("deadly") == deaths
        if deaths == 2:  # it came after all others then, but for one that had begun beside it
            assert len({str(n) for n in range(20) if n != 3} - set(script.journal.lines())) <= 1
    done = ended(script)
    assert done.stdout.splitlines()[0] == str([None] * 3 + ["WorkerCrashed"] + [None] * 16)
    assert f"died {MOST_OWNER_DEATHS} times while it had this call" in done.stdout
    assert script.journal.lines().count("deadly") == MOST_OWNER_DEATHS
    (failed,) = open_store(script.store).find(Status.FAILED)
    assert (failed.owner_deaths, failed.crashes) == (MOST_OWNER_DEATHS, 0)


def test_only_what_had_begun_is_charged_with_the_death_of_its_owner(script: Any, open_store: Any) -> None:
    script.write(
        HEAD
        + """
def work(n):
    if n >= 4:
        note(n)
        time.sleep(60)

if __name__ == "__main__":
    with PersistentExecutor(2) as executor:
        list(executor.map(work, range(4)))  # so that calls are known to be short, and many are given at a time
        results = executor.map(work, range(4, 300))
        while not os.path.exists("journal") or len(open("journal").readlines()) < 2:
            time.sleep(0.001)
        die()
"""
    )
    killed(script)
    began = {int(line) for line in script.journal.lines()}
    store = open_store(script.store)
    store.reap(1)
    charged = {json.loads(task.args)[0] for task in store.find() if task.owner_deaths}
    assert charged == began
    assert stand(store) == {"COMPLETED": 4, "PENDING": 296}


# --- Keys ---


def test_a_key_is_of_one_function_and_its_arguments(store: Path) -> None:
    """Issue 9: two calls with one key were 5 and 5."""
    with PersistentExecutor(1, store=store) as executor:
        keyed = executor.options(key="may")
        assert keyed.submit(pow, 2, 5).result(WAIT_S) == 32
        with pytest.raises(KeyConflict, match=r"'may' .*builtins\.pow, task-\w+, .* builtins\.abs"):
            keyed.submit(abs, -5)
        with pytest.raises(KeyConflict, match=r"builtins\.pow .*\[2,5\], task-\w+, .*\[2,10\]"):
            keyed.submit(pow, 2, 10)
        with pytest.raises(KeyConflict, match="may"):
            keyed.submit(pow, 2, (5,))
        assert keyed.submit(pow, 2, 5).result(WAIT_S) == 32


def test_arguments_without_a_stable_form_may_be_those_of_the_key(store: Path) -> None:
    with PersistentExecutor(1, store=store) as executor:
        keyed = executor.options(key="may")
        first = keyed.submit(calls.echo, calls.Unstable())
        assert keyed.submit(calls.echo, calls.Unstable()).task_id == first.task_id


def test_a_changed_body_is_the_same_function_to_a_key(script: Any) -> None:
    source = HEAD + (
        "def work(n):\n    return n + FACTOR\n"
        'if __name__ == "__main__":\n'
        "    with PersistentExecutor(1) as executor:\n"
        '        print(executor.options(key="k").submit(work, 1).result())\n'
    )
    script.write(source.replace("FACTOR", "1"))
    assert ended(script).stdout == "2\n"
    script.write(source.replace("FACTOR", "2"))
    assert ended(script).stdout == "2\n"


def test_changed_code_of_what_is_among_the_arguments_makes_no_others_of_them(script: Any) -> None:
    source = HEAD + (
        "class Work:\n    def __init__(self, n):\n        self.n = n\n"
        "    def do(self):\n        return self.n + FACTOR\n"
        "def double(n):\n    return FACTOR * n\n"
        "def work(job, function):\n    return job.do(), function(1)\n"
        'if __name__ == "__main__":\n'
        "    with PersistentExecutor(1) as executor:\n"
        '        print(executor.options(key="k").submit(work, Work(NUMBER), double).result())\n'
    )
    script.write(source.replace("FACTOR", "1").replace("NUMBER", "1"))
    assert ended(script).stdout == "(2, 1)\n"
    script.write(source.replace("FACTOR", "2").replace("NUMBER", "1"))
    assert ended(script).stdout == "(2, 1)\n"
    script.write(source.replace("FACTOR", "2").replace("NUMBER", "3"))
    assert "KeyConflict" in script.run().stderr


def test_a_key_whose_task_failed_runs_again_in_a_later_run(store: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with PersistentExecutor(1, store=store) as executor:
        keyed = executor.options(key="may")
        assert isinstance(keyed.submit(calls.size_of, gate).exception(WAIT_S), FileNotFoundError)
        gate.touch()
        again = keyed.submit(calls.size_of, gate)
        assert isinstance(again.exception(WAIT_S), FileNotFoundError)  # in the same run it is as it is
    with PersistentExecutor(1, store=store) as executor:
        future = executor.options(key="may").submit(calls.size_of, gate)
        assert future.result(WAIT_S) == 0
        assert future.task().attempts == 2


def test_a_worker_that_crashes_is_charged_as_before(store: Path) -> None:
    with PersistentExecutor(1, store=store, crash_retries=1) as executor:
        future = executor.submit(calls.kill_self)
        assert isinstance(future.exception(WAIT_S), WorkerCrashed)
        assert (future.task().crashes, future.task().owner_deaths) == (1, 0)
