"""Killed and run again: what was finished is not repeated, and nothing that was accepted is lost."""

import random
import re
import signal
import subprocess
from collections import Counter
from typing import Any

import pytest

from omniq_executor import Status

pytestmark = pytest.mark.each_store

WAIT_S = 30.0
ANNOUNCED = re.compile(r"WARNING:omniq_executor:.*continuing an earlier run: (\d+) of (\d+) calls are done")

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

def noted(n):
    note(n)
    return n
"""


def announcements(text: str) -> list[tuple[int, int]]:
    """The (done, total) of each announcement of a resume in a log."""
    return [(int(done), int(total)) for done, total in ANNOUNCED.findall(text)]


def killed(script: Any, *args: str) -> Any:
    """Run the script, which kills itself."""
    done = script.run(*args)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return done


def ended(script: Any, *args: str) -> Any:
    """Run the script to its good end."""
    done = script.run(*args)
    assert done.returncode == 0, done.stderr
    return done


# --- Killed at any moment ----------------------------------------------------------------------------------------

JOB = """
def work(n):
    note(n)
    time.sleep(0.005)
    return n * n

if __name__ == "__main__":
    with PersistentExecutor(2) as executor:
        {body}
    print("all right", total == sum(n * n for n in range({count})))
"""
BODIES = {
    "submit": "total = sum(f.result() for f in [executor.submit(work, n) for n in range({count})])",
    "map": "total = sum(executor.map(work, range({count})))",
    "buffered": "total = sum(executor.map(work, range({count}), buffersize=20))",
}


def ended_as_it_may(done: Any) -> str:
    """How a job that is killed ended. Kills that meet one and the same call three times are taken for its doing."""
    if "died 3 times while it had this call" in done.stderr:
        return "given up"
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return "killed" if done.returncode else "done"


@pytest.mark.once
@pytest.mark.slow
@pytest.mark.parametrize("form", BODIES)
def test_a_job_killed_at_random_moments_repeats_at_most_four_calls_a_kill(
    script: Any, open_store: Any, wait_until: Any, form: str
) -> None:
    count, kills, seed = 500, 8, 20_000 + len(form)
    print(f"seed {seed}")  # noqa: T201 - for whoever looks into a failure
    chance = random.Random(seed)
    script.write(HEAD + JOB.format(count=count, body=BODIES[form].format(count=count)))
    ends = []
    for kill in range(kills):
        before = len(script.journal.lines())
        process = script.start()
        if kill % 2:  # at a moment that has nothing to do with what it is doing
            try:
                process.wait(chance.uniform(0.0, 0.6))
            except subprocess.TimeoutExpired:
                pass
        else:  # in the midst of its work
            target = before + chance.randrange(1, 60)
            wait_until(lambda: process.poll() is not None or len(script.journal.lines()) >= target)  # noqa: B023
        process.kill()
        done = script.finished(process)
        ends.append(ended_as_it_may(done))
        assert len(announcements(done.stderr)) <= 1
    assert ends.count("killed") >= kills - 1
    done = script.run()
    if ended_as_it_may(done) == "given up":
        done = script.run()
    assert (done.returncode, done.stdout) == (0, "all right True\n"), done.stderr
    times = Counter(map(int, script.journal.lines()))
    assert times.keys() == set(range(count))
    assert sum(times.values()) - count <= 4 * kills
    assert open_store(script.store).counts()["script"][Status.COMPLETED] == count


def test_a_resume_is_announced_once_with_how_much_was_done(script: Any, open_store: Any) -> None:
    script.write(
        HEAD
        + """
if __name__ == "__main__":
    with PersistentExecutor(1) as executor:
        futures = [executor.submit(noted, n) for n in range(10)]
        if len(sys.argv) > 1:
            [future.result() for future in futures]
            die()
        futures += [executor.submit(noted, n) for n in range(10, 13)]
        print([future.result() for future in futures], [future.resumed for future in futures])
"""
    )
    assert announcements(killed(script, "die").stderr) == []
    store = open_store(script.store)
    finished = store.counts()["script"].get(Status.COMPLETED, 0)
    done = ended(script)
    assert finished == 10
    assert announcements(done.stderr) == [(10, 10)]
    assert done.stderr.count("continuing") == 1
    assert done.stdout == f"{list(range(13))} {[True] * 10 + [False] * 3}\n"
    assert sorted(map(int, script.journal.lines())) == list(range(13))


def test_a_map_is_resumed_where_it_was(script: Any) -> None:
    script.write(
        HEAD
        + """
if __name__ == "__main__":
    with PersistentExecutor(1) as executor:
        results = executor.map(noted, range(300))
        for n, result in enumerate(results):
            assert n == result
            if len(sys.argv) > 1 and n == int(sys.argv[1]):
                die()
        print("end", n)
"""
    )
    killed(script, "100")
    killed(script, "200")
    done = ended(script)
    assert done.stdout == "end 299\n"
    times = Counter(map(int, script.journal.lines()))
    assert times.keys() == set(range(300))
    assert {times[n] for n in range(101)} == {1}  # the script had had their results
    assert max(times.values()) <= 3


def test_a_loop_of_submits_that_is_killed_before_what_it_took_over_is_noted_finds_it_again(
    script: Any, open_store: Any
) -> None:
    script.write(
        HEAD
        + """
if __name__ == "__main__":
    with PersistentExecutor(2) as executor:
        futures = [executor.submit(noted, n % 250) for n in range(int(sys.argv[1]))]
        print(sum(future.result() for future in futures), executor.resumed.reused, flush=True)
        if "die" in sys.argv:
            die()
"""
    )
    assert killed(script, "300", "die").stdout == f"{sum(range(250)) + sum(range(50))} 0\n"
    assert killed(script, "260", "die").stdout == f"{sum(range(250)) + sum(range(10))} 260\n"
    assert ended(script, "310").stdout == f"{sum(range(250)) + sum(range(60))} 300\n"
    assert len(script.journal.lines()) == 310
    noted = Counter(taken.run for taken in open_store(script.store).taken())
    assert noted[3] == 300
    assert noted[2] <= 260


DRAWS = """
def draw():
    fd = os.open("journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, b"drawn\\n")
    place = os.lseek(fd, 0, os.SEEK_CUR) // 6  # behind its own line: two that draw at a time are given two numbers
    os.close(fd)
    return place

def die_after(out):
    print(sorted(out), flush=True)
    if "die" in sys.argv:
        die()
"""
ONE_AFTER_THE_OTHER = """
if __name__ == "__main__":
    out = []
    for _ in range(4):
        with PersistentExecutor(1) as executor:
            out += [executor.submit(draw).result(), *executor.map(lambda _: draw(), [0])]
    die_after(out)
"""
ONE_BESIDE_THE_OTHER = """
if __name__ == "__main__":
    with PersistentExecutor(1) as one, PersistentExecutor(1) as other:
        futures = [executor.submit(draw) for _ in range(20) for executor in (one, other)]
        die_after([future.result() for future in futures])
"""


@pytest.mark.parametrize("form", [ONE_AFTER_THE_OTHER, ONE_BESIDE_THE_OTHER], ids=["after", "beside"])
def test_executors_of_a_script_share_what_it_left_and_none_is_given_what_another_was(script: Any, form: str) -> None:
    script.write(HEAD + DRAWS + form)
    first = killed(script, "die").stdout
    assert killed(script, "die").stdout == first
    assert ended(script).stdout == first
    assert first == f"{[*range(1, len(script.journal.lines()) + 1)]}\n"


def test_with_on_change_raise_a_call_that_failed_or_never_finished_runs_under_its_new_code(script: Any) -> None:
    script.write(
        HEAD
        + """
SCALE = int(sys.argv[1])
def work(n):
    if SCALE == 1 and n == 1:
        raise ValueError("a fault that is mended")
    if SCALE == 1 and n == 2:
        die()
    return n * SCALE

if __name__ == "__main__":
    with PersistentExecutor(1, on_change="raise", crash_retries=0) as executor:
        for n in range(3):
            try:
                print(executor.submit(work, n).result(), flush=True)
            except Exception as error:
                print(type(error).__name__, flush=True)
        die() if SCALE == 1 else None
"""
    )
    assert killed(script, "1").stdout == "0\nValueError\nWorkerCrashed\n"
    assert ended(script, "2").stdout == "FunctionChanged\n2\n4\n"


def test_a_loop_of_submits_that_continues_a_run_wakes_nobody_for_what_is_finished(script: Any) -> None:
    script.write(
        HEAD
        + """
if __name__ == "__main__":
    with PersistentExecutor(1) as executor:
        if sys.argv[1:]:
            list(executor.map(abs, range(200)))
            die()
        executor.submit(abs, 0).result()
        driver = executor._dispatcher.driver
        before = driver._events_seen
        futures = [executor.submit(abs, n) for n in range(1, 200)]
        print("woken", driver._events_seen - before, [future.result() for future in futures] == [*range(1, 200)])
        print("new", executor.submit(abs, -200).result(), executor.submit(abs, 7).result())
"""
    )
    killed(script, "die")
    woken, new = ended(script).stdout.splitlines()
    assert int(woken.split()[1]) <= 3
    assert woken.endswith("True")
    assert new == "new 200 7"


def test_results_in_the_store_are_those_that_the_first_run_gave(script: Any) -> None:
    script.write(
        HEAD
        + """
VALUES = [None, 1.5, float("inf"), "text", b"bytes", (1, (2, 3)), {1: "a"}, {2, 3}, [1, [2]], 2**80, -0.0]

def value(n):
    note(n)
    return VALUES[n]

if __name__ == "__main__":
    with PersistentExecutor(2) as executor:
        print(list(executor.map(value, range(len(VALUES)))) == VALUES, flush=True)
        if len(sys.argv) > 1:
            die()
"""
    )
    assert killed(script, "die").stdout == "True\n"
    assert ended(script).stdout == "True\n"
    assert len(script.journal.lines()) == 11


# --- What matches ------------------------------------------------------------------------------------------------


def test_calls_with_arguments_of_all_kinds_are_recognised(script: Any) -> None:
    script.write(
        HEAD
        + """
from dataclasses import dataclass
from pathlib import Path

@dataclass(frozen=True)
class Point:
    x: int
    tags: frozenset

def shown(*args, **kwargs):
    note("ran")
    return repr((args, kwargs))

CALLS = [
    ((), {}), ((1,), {}), ((1.0,), {}), ((True,), {}), (("1",), {}), (((1,),), {}), (([1],), {}), ((None,), {"a": 1}),
    ((), {"a": 1, "b": {"c": [1, 2]}}), ((Point(1, frozenset("abc")),), {}), ((Path("x"),), {}),
    (({"x", "y", "z"},), {}),
    ((float("nan"),), {}), ((len,), {}),
]

if __name__ == "__main__":
    with PersistentExecutor(1) as executor:
        futures = [executor.submit(shown, *args, **kwargs) for args, kwargs in CALLS]
        [future.result() for future in futures]
        if len(sys.argv) > 1:
            die()
        print([n for n, future in enumerate(futures) if not future.resumed])
"""
    )
    killed(script, "die")
    assert ended(script).stdout == "[]\n"
    assert script.journal.lines() == ["ran"] * 14


def test_the_nth_call_takes_over_the_nth_equal_call(script: Any) -> None:
    script.write(
        HEAD
        + """
def counted(name):
    note(name)
    return sum(1 for line in open("journal") if line.strip() == name)

if __name__ == "__main__":
    with PersistentExecutor(1) as executor:
        if len(sys.argv) > 1:
            print([executor.submit(counted, name).result() for name in "aba"], flush=True)
            die()
        futures = [executor.submit(counted, name) for name in "aaabbb"]
        print([(future.result(), future.resumed) for future in futures])
"""
    )
    assert killed(script, "die").stdout == "[1, 1, 2]\n"
    assert ended(script).stdout == f"{[(1, True), (2, True), (3, False), (1, True), (2, False), (3, False)]}\n"
    assert Counter(script.journal.lines()) == {"a": 3, "b": 3}


def test_calls_that_had_failed_run_again(script: Any, open_store: Any) -> None:
    script.write(
        HEAD
        + """
def picky(n):
    note(n)
    if not os.path.exists("gate"):
        raise ValueError("not yet")
    return n

if __name__ == "__main__":
    with PersistentExecutor(1) as executor:
        future = executor.submit(picky, 1)
        print(repr(future.exception()), flush=True)
        if len(sys.argv) > 1:
            die()
        print(future.result(), future.resumed, future.task().attempts, future.task().error)
"""
    )
    assert killed(script, "die").stdout == "ValueError('not yet')\n"
    (script.folder / "gate").touch()
    assert ended(script).stdout == "None\n1 False 2 None\n"
    assert script.journal.lines() == ["1", "1"]


@pytest.mark.parametrize(
    ("change", "matches"),
    [
        (("n * 2", "n * 3"), False),
        (("FACTOR = 10", "FACTOR = 11"), False),
        (("return m + 1", "return m + 2"), False),
        (("def work(n):", "# a comment\n\n\ndef work(n):"), True),
        (('"""Words."""', '"""Other words."""'), True),
    ],
    ids=["code", "global", "helper", "comment", "docstring"],
)
def test_a_changed_function_does_not_match(script: Any, change: tuple[str, str], matches: bool) -> None:
    source = (
        HEAD
        + '''
FACTOR = 10

def helper(m):
    return m + 1

def work(n):
    """Words."""
    note(n)
    return helper(n * 2) * FACTOR

if __name__ == "__main__":
    with PersistentExecutor(1) as executor:
        futures = [executor.submit(work, n) for n in range(3)]
        results = [future.result() for future in futures]
        if len(sys.argv) > 1:
            die()
        print([future.resumed for future in futures])
'''
    )
    script.write(source)
    killed(script, "die")
    assert source.replace(*change) != source
    script.write(source.replace(*change))
    resumed = ended(script).stdout.splitlines()[-1]
    assert resumed == str([matches] * 3)
    assert len(script.journal.lines()) == (3 if matches else 6)


KINDS = {
    "lock": ("LOCK = threading.Lock()", "with LOCK:\n        return n + 1", True),
    "singledispatch": (
        "@functools.singledispatch\ndef add(n): pass\n@add.register\ndef _(n: int): return n + 1",
        "return add(n)",
        True,
    ),
    "generator": ("PARTS = (part for part in ())", "return n + 1 if PARTS else 0", False),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_function_that_cannot_travel_by_value_is_another_after_an_edit(script: Any, kind: str, method: str) -> None:
    """It goes by its name, which is the same."""
    head, body, is_stable = KINDS[kind]
    source = HEAD + (
        f"import functools, multiprocessing, threading\n{head}\ndef work(n):\n    {body}\n"
        'if __name__ == "__main__":\n'
        f"    with PersistentExecutor(1, multiprocessing.get_context({method!r})) as executor:\n"
        "        future = executor.submit(work, 1)\n"
        "        print(future.result(), future.resumed, flush=True)\n"
        "        if len(sys.argv) > 1:\n            die()\n"
    )
    script.write(source)
    assert killed(script, "die").stdout == "2 False\n"
    assert killed(script, "die").stdout == f"2 {is_stable}\n"
    script.write(source.replace("n + 1", "n + 1000"))
    assert ended(script).stdout == "1001 False\n"


def test_only_what_an_earlier_run_finished_is_called_resumed(script: Any) -> None:
    script.write(
        HEAD
        + """
if __name__ == "__main__":
    with PersistentExecutor(1) as executor:
        if len(sys.argv) > 1:
            executor.submit(time.sleep, 0.2)
            for n in range(5):
                executor.submit(pow, n, 2)
            die()
        assert executor.submit(abs, -1).result() == 1
        futures = [executor.submit(pow, n, 2) for n in range(5)]
        print([future.result() for future in futures], [future.resumed for future in futures])
"""
    )
    killed(script, "die")
    assert ended(script).stdout == f"{[0, 1, 4, 9, 16]} {[False] * 5}\n"


def test_results_that_are_of_the_scripts_own_classes_are_so_after_a_resume(script: Any) -> None:
    script.write(
        HEAD
        + """
from dataclasses import dataclass, field
import enum

class Colour(enum.Enum):
    RED = 1

@dataclass
class Row:
    number: int
    colour: Colour
    rest: list = field(default_factory=list)

class Outer:
    @dataclass
    class Inner:
        text: str

class Failure(Exception):
    pass

def make(n):
    note(n)
    return Row(n, Colour.RED, [Outer.Inner("x")])

def fail():
    raise Failure("of the script")

if __name__ == "__main__":
    with PersistentExecutor(1) as executor:
        futures = [executor.submit(make, n) for n in range(3)]
        rows = [future.result() for future in futures]
        assert rows == [Row(n, Colour.RED, [Outer.Inner("x")]) for n in range(3)]
        assert all(type(row) is Row and row.colour is Colour.RED for row in rows)
        assert all(isinstance(row.rest[0], Outer.Inner) for row in rows)
        assert type(executor.submit(fail).exception()) is Failure
        if len(sys.argv) > 1:
            die()
        print([future.resumed for future in futures])
"""
    )
    killed(script, "die")
    assert ended(script).stdout == "[True, True, True]\n"
    assert script.journal.lines() == ["0", "1", "2"]


# --- Which runs are resumed --------------------------------------------------------------------------------------

CALLS = """
if __name__ == "__main__":
    end, resume, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    with PersistentExecutor(1, resume=resume) as executor:
        futures = [executor.submit(noted, n) for n in range(count)]
        [future.result() for future in futures]
        print(sum(future.resumed for future in futures), flush=True)
        if end == "die":
            die()
        if end == "raise":
            raise RuntimeError("the script fails")
        if end == "exit":
            sys.exit(3)
"""


def test_after_a_clean_end_everything_starts_afresh(script: Any) -> None:
    script.write(HEAD + CALLS)
    for _ in range(2):
        done = ended(script, "clean", "crashed", "5")
        assert done.stdout == "0\n"
        assert announcements(done.stderr) == []
    assert len(script.journal.lines()) == 10


@pytest.mark.parametrize(("end", "status"), [("raise", 1), ("exit", 3), ("die", -9)])
def test_an_unclean_end_is_resumed_once(script: Any, end: str, status: int) -> None:
    script.write(HEAD + CALLS)
    assert script.run(end, "crashed", "5").returncode == status
    done = ended(script, "clean", "crashed", "7")
    assert done.stdout == "5\n"
    assert announcements(done.stderr) == [(5, 5)]
    done = ended(script, "clean", "crashed", "7")
    assert done.stdout == "0\n"
    assert announcements(done.stderr) == []
    assert len(script.journal.lines()) == 5 + 2 + 7


def test_an_exception_outside_of_the_with_block_is_an_unclean_end_too(script: Any) -> None:
    script.write(
        HEAD
        + """
if __name__ == "__main__":
    executor = PersistentExecutor(1)
    futures = [executor.submit(noted, n) for n in range(5)]
    [future.result() for future in futures]
    print(sum(future.resumed for future in futures), flush=True)
    if len(sys.argv) > 1:
        raise RuntimeError("the script fails")
"""
    )
    assert script.run("raise").returncode == 1
    assert ended(script).stdout == "5\n"
    assert ended(script).stdout == "0\n"
    assert len(script.journal.lines()) == 10


def test_always_resumes_after_a_clean_end_too(script: Any) -> None:
    script.write(HEAD + CALLS)
    ended(script, "clean", "crashed", "5")
    assert ended(script, "clean", "always", "6").stdout == "5\n"
    assert ended(script, "clean", "always", "7").stdout == "6\n"
    assert len(script.journal.lines()) == 7
    assert ended(script, "clean", "crashed", "2").stdout == "0\n"


def test_never_starts_afresh_after_any_end(script: Any) -> None:
    script.write(HEAD + CALLS)
    killed(script, "die", "crashed", "5")
    done = ended(script, "clean", "never", "5")
    assert done.stdout == "0\n"
    assert announcements(done.stderr) == []
    assert len(script.journal.lines()) == 10


def test_a_chain_of_broken_runs_is_resumed_as_one(script: Any) -> None:
    script.write(HEAD + CALLS)
    assert killed(script, "die", "crashed", "3").stdout == "0\n"
    assert killed(script, "die", "crashed", "6").stdout == "3\n"
    assert killed(script, "die", "crashed", "2").stdout == "2\n"
    done = ended(script, "clean", "crashed", "8")
    assert done.stdout == "6\n"
    assert announcements(done.stderr) == [(6, 6)]
    assert sorted(map(int, script.journal.lines())) == list(range(8))


def test_a_run_killed_before_its_first_call_hides_no_earlier_one(script: Any) -> None:
    script.write(HEAD + CALLS)
    killed(script, "die", "crashed", "4")
    assert killed(script, "die", "crashed", "0").stdout == "0\n"
    assert ended(script, "clean", "crashed", "4").stdout == "4\n"
    assert len(script.journal.lines()) == 4


def test_all_executors_of_a_script_that_is_killed_later_are_resumed(script: Any) -> None:
    script.write(
        HEAD
        + """
if __name__ == "__main__":
    with PersistentExecutor(1) as executor:
        futures = [executor.submit(noted, f"first {n}") for n in range(3)]
        [future.result() for future in futures]
        print(sum(future.resumed for future in futures), flush=True)
    with PersistentExecutor(1) as executor:
        futures = [executor.submit(noted, f"second {n}") for n in range(4)]
        [future.result() for future in futures[:2]]
        if len(sys.argv) > 1:
            [future.result() for future in futures]
            die()
        print([future.result() for future in futures][-1], sum(future.resumed for future in futures))
"""
    )
    assert killed(script, "die").stdout == "0\n"
    assert ended(script).stdout == "3\nsecond 3 4\n"
    assert set(Counter(script.journal.lines()).values()) == {1}
    assert ended(script).stdout == "0\nsecond 3 0\n"


def test_scripts_with_other_names_do_not_resume_each_others_runs(script: Any) -> None:
    script.write(HEAD + CALLS)
    (script.folder / "another.py").write_text(HEAD + CALLS)
    killed(script, "die", "crashed", "3")
    done = script.run("clean", "crashed", "3", python=["another.py"])
    assert (done.returncode, done.stdout) == (0, "0\n")
    assert ended(script, "clean", "crashed", "3").stdout == "3\n"


def test_a_run_that_still_lives_is_not_resumed(script: Any, wait_until: Any) -> None:
    script.write(
        HEAD
        + """
if __name__ == "__main__":
    with PersistentExecutor(1) as executor:
        futures = [executor.submit(noted, n) for n in range(3)]
        [future.result() for future in futures]
        print(sum(future.resumed for future in futures), flush=True)
        if len(sys.argv) > 1:
            sys.stdin.read()
"""
    )
    living = script.start("wait", stdin=subprocess.PIPE)
    wait_until((script.folder / "0.out").read_text)
    done = ended(script)
    assert (done.stdout, announcements(done.stderr)) == ("0\n", [])
    living.kill()
    living.wait(WAIT_S)
    done = ended(script)
    assert (done.stdout, announcements(done.stderr)) == ("3\n", [(3, 3)])


def test_a_map_takes_over_as_many_calls_at_a_time_as_it_adds(
    make_executor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 13: by two at a time, since nothing went to the workers, 100,000 finished calls took 100 s of a CPU."""
    first = make_executor(queue="q")
    assert sum(first.map(abs, range(5000))) == sum(range(5000))
    first.kill_workers()
    second = make_executor(queue="q")
    store = second._dispatcher.store
    pieces: list[int] = []
    take_over = store.take_over
    monkeypatch.setattr(
        store, "take_over", lambda run, of, calls, now: pieces.append(len(calls)) or take_over(run, of, calls, now)
    )
    assert sum(second.map(abs, range(5000))) == sum(range(5000))
    assert sum(pieces) == 5000
    assert len(pieces) < 12
    assert second.resumed.reused == 5000
