"""Why each call runs, or need not: what is said of it beforehand, to its future, at the end, and afterwards."""

import contextlib
import fcntl
import json
import pickle
import random
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest

from omniq_executor import FunctionChanged, PersistentExecutor, Reason, Resumed
from omniq_executor.code import parts
from omniq_executor.code.depends import Depends
from omniq_executor.dispatch.history import History
from omniq_executor.model.functions import Functions
from omniq_executor.model.reasons import Counts, Preview, Why

SCRIPT = """
import json, os, sys
import helpers
from omniq_executor import PersistentExecutor

FACTOR = 2

def scaled(n, by=3):
    return n * by

def work(n):
    if n == 3 and not os.path.exists("mended"):
        raise ValueError(n)
    return helpers.parse(n) + scaled(n) + FACTOR

def other(n):
    return -n

def prepare(value):
    pass

if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    run = {"work": work, "other": other}[asked.get("function", "work")]
    how = asked.get("how", {})
    if "initializer" in asked:
        how |= {"initializer": prepare, "initargs": asked["initializer"]}
    with PersistentExecutor(1, store=asked["store"], **how) as executor:
        preview = executor.preview(run, asked["items"])
        foreseen = [preview.why(item) for item in range(len(preview))]
        if asked.get("map"):
            results = executor.map(run, asked["items"])
            whys = None
            found = list(results)
        else:
            futures = [executor.submit(run, item) for item in asked["items"]]
            found = [future.exception() and None or future.result() if not future.exception() else "failed"
                     for future in futures]
            whys = [future.why() for future in futures]
        print(json.dumps({
            "foreseen": foreseen, "preview": preview.to_dict(), "why": whys, "found": found,
            "resumed": executor.resumed.to_dict(), "text": str(executor.resumed),
        }), flush=True)
        if asked.get("dies"):
            os.kill(os.getpid(), 9)
"""
HELPERS = """
LIMIT = 10

def parse(n):
    return min(n, LIMIT)
"""


class Job:
    """The script with its module, whose text is edited between runs."""

    def __init__(self, script: Any, store: str) -> None:
        self.script = script
        self.store = store
        self.edit("script.py", SCRIPT)
        self.edit("helpers.py", HELPERS)

    def edit(self, name: str, text: str, *replaced: tuple[str, str]) -> None:
        for old, new in replaced:
            assert old in text
            text = text.replace(old, new)
        (self.script.folder / name).write_text(text)

    def run(self, *items: int, dies: bool = False, **asked: Any) -> dict[str, Any]:
        """Run it; returns what it said."""
        asked |= {"items": items, "store": self.store, "dies": dies}
        done = self.script.run(json.dumps(asked))
        assert done.returncode == (-signal.SIGKILL if dies else 0), done.stderr
        said: dict[str, Any] = {**json.loads(done.stdout), "stderr": done.stderr}
        return said

    def killed(self, *items: int, **asked: Any) -> dict[str, Any]:
        """Run it; it kills itself when all is done."""
        return self.run(*items, dies=True, **asked)


@pytest.fixture(params=["store.db", "store"])
def job(script: Any, request: pytest.FixtureRequest) -> Job:
    """The script, with each kind of store."""
    return Job(script, request.param)


RESULT, UNSEEN = str(Why(Reason.RESULT)), str(Why(Reason.ARGUMENTS))


def changed(what: str) -> str:
    return str(Why(Reason.CODE, what))


def test_each_call_of_a_run_that_continues_one_that_was_killed_says_why_it_runs(job: Job) -> None:
    first = job.killed(1, 2, 3)
    assert first["found"] == [6, 10, "failed"]
    assert first["why"] == [str(Why(Reason.AFRESH, "it is the first of its queue"))] * 3
    (job.script.folder / "mended").touch()
    second = job.run(1, 2, 3, 3, 4, 2)
    assert second["why"] == [RESULT, RESULT, str(Why(Reason.FAILED)), UNSEEN, UNSEEN, UNSEEN]
    assert second["foreseen"] == second["why"]
    assert second["found"] == [6, 10, 14, 14, 18, 10]
    assert second["resumed"]["counts"] == second["preview"]["counts"] == {"result": 2, "failed": 1, "arguments": 3}
    assert (second["resumed"]["left_alone"], second["resumed"]["continues"]) == (0, [1])
    assert "run 2 of queue 'script', which continues run 1: 6 calls" in second["text"]
    warnings = [line for line in second["stderr"].splitlines() if "'script'" in line]
    assert len(warnings) == 2
    assert "continuing an earlier run: 2 of 3 calls are done" in warnings[0]
    assert "run 2: 2 taken over: their results were there, 1 run again, since they had failed, 3 run," in warnings[1]


def test_a_run_after_one_that_ended_clean_says_so_and_one_with_another_context_what_changed(job: Job) -> None:
    job.run(1)
    clean = job.killed(1)
    assert clean["why"] == clean["foreseen"] == [str(Why(Reason.AFRESH, "the last one ended clean"))]
    assert (clean["resumed"]["counts"], "ended clean" in clean["text"]) == ({}, True)
    assert clean["stderr"] == ""
    other = job.killed(1, initializer=[1])
    assert other["why"] == other["foreseen"] == [str(Why(Reason.CONTEXT, "the initializer and its arguments"))]
    again = job.killed(1, initializer=[2])
    assert again["why"] == [str(Why(Reason.CONTEXT, "the initializer's arguments"))]
    assert job.run(1, initializer=[2])["why"] == [RESULT]


EDITS: list[tuple[str, tuple[str, str], str]] = [
    ("helpers.py", ("min(n, LIMIT)", "max(0, min(n, LIMIT))"), "helpers.parse (helpers.py) changed"),
    ("helpers.py", ("LIMIT = 10", "LIMIT = 11"), "the constant helpers.LIMIT (helpers.py) changed"),
    ("script.py", ("+ FACTOR", "+ FACTOR + 0"), "its own code changed"),
    ("script.py", ("FACTOR = 2", "FACTOR = 1 + 2"), "the constant FACTOR (script.py) changed"),
    ("script.py", ("return n * by", "return by * n"), "scaled (script.py) changed"),
    ("script.py", ("by=3", "by=4"), "defaults or closure of scaled (script.py) changed"),
    ("helpers.py", ("def parse", "# no more than a comment\ndef parse"), ""),
    ("script.py", ("return -n", "return 0 - n"), ""),
]


def test_what_changed_is_named_and_the_preview_said_so_before(job: Job) -> None:
    for place, (name, replaced, what) in enumerate(EDITS):
        text, asked = SCRIPT if name == "script.py" else HELPERS, {"how": {"queue": str(place)}, "map": place % 2}
        job.edit(name, text)
        job.killed(1, 2, **asked)
        job.edit(name, text, replaced)
        said = job.run(1, 2, 5, **asked)
        assert said["foreseen"] == [*[changed(what) if what else RESULT] * 2, UNSEEN]
        assert said["resumed"]["counts"] == said["preview"]["counts"]
        assert said["why"] in (None, said["foreseen"])
        assert said["resumed"]["functions"] == said["preview"]["functions"]
        job.edit(name, text)


def test_a_function_that_is_new_says_so_and_what_is_not_submitted_again_is_left_alone(job: Job) -> None:
    job.killed(1, 2)
    said = job.killed(1, 2, function="other")
    assert said["why"] == said["foreseen"] == [str(Why(Reason.FUNCTION))] * 2
    assert said["resumed"]["left_alone"] == 2
    assert "2 calls of run 1 left alone" in said["text"]
    assert "run 2:" not in said["stderr"]  # nothing was reused


def test_results_of_older_code_are_taken_over_where_that_is_wished_and_it_is_said_once(job: Job) -> None:
    job.killed(1, 2, 3)
    job.edit("helpers.py", HELPERS, ("LIMIT = 10", "LIMIT = 0"))
    said = job.run(1, 1, 2, 3, 4, how={"on_change": "reuse"})
    what = "the constant helpers.LIMIT (helpers.py) changed"
    older = str(Why(Reason.OLDER, what))
    assert said["why"] == said["foreseen"] == [older, changed(what), older, changed(what), UNSEEN]
    assert said["found"] == [6, 5, 10, "failed", 14]
    assert said["stderr"].count("are taken over (on_change='reuse') though " + what) == 1
    assert said["resumed"]["counts"] == {"older": 2, "code": 2, "arguments": 1}


def test_a_changed_function_is_refused_where_that_is_wished_and_nothing_is_added(job: Job) -> None:
    job.killed(1, 2)
    job.edit("helpers.py", HELPERS, ("LIMIT = 10", "LIMIT = 0"))
    for as_map in (False, True):
        done = job.script.run(
            json.dumps({"items": [5, 1], "store": job.store, "how": {"on_change": "raise"}, "map": as_map})
        )
        assert done.returncode == 1
        message = (
            "FunctionChanged: an earlier run has calls of __main__.work, and the constant helpers.LIMIT (helpers.py)"
        )
        assert message in done.stderr
    job.edit("helpers.py", HELPERS)
    said = job.run(1, 2, how={"on_change": "raise"})
    assert said["why"] == [RESULT] * 2


def test_lambdas_of_one_place_are_never_taken_for_one_another(script: Any) -> None:
    text = """
import os, sys
from omniq_executor import PersistentExecutor

if __name__ == "__main__":
    with PersistentExecutor(1, on_change="reuse") as executor:
        print([executor.submit(each, 5).result() for each in (lambda n: n + 1, lambda n: n + {second})])
        print([f"{{why}}" for why in executor.resumed.counts])
        sys.stdout.flush()
        if {dies}:
            os.kill(os.getpid(), 9)
"""
    script.write(text.format(second=2, dies=True))
    assert "[6, 7]" in script.run().stdout
    script.write(text.format(second=3, dies=False))
    done = script.run()
    assert done.stdout.splitlines() == ["[6, 8]", "['Reason.RESULT', 'Reason.CODE']"], done.stderr


def test_a_word_that_there_is_not_is_refused(make_executor: Callable[..., PersistentExecutor]) -> None:
    with pytest.raises(ValueError, match="on_change is 'rerun', 'reuse' or 'raise', not 'again'"):
        make_executor(on_change="again")


# --- In one process ---


def test_a_future_from_elsewhere_says_why_by_what_is_stored(make_executor: Callable[..., PersistentExecutor]) -> None:
    first = make_executor(queue="q")
    done = first.submit(pow, 2, 3)
    done.result()
    first.kill_workers()
    second = make_executor(queue="q")
    new = second.submit(pow, 2, 4)
    reused = second.submit(pow, 2, 3)
    assert [new.why(), reused.why()] == [UNSEEN, RESULT]
    new.result()
    third = make_executor(queue="q", resume="never")
    assert third.future(str(new.task_id)).why() == UNSEEN
    assert third.future(str(done.task_id)).why() == str(Why(Reason.AFRESH, "it is the first of its queue"))
    elsewhere = pickle.loads(pickle.dumps(new))
    assert (elsewhere is not new, elsewhere.why()) == (True, UNSEEN)
    keyed = third.options(key="k")
    first = keyed.submit(pow, 3, 3)
    assert keyed.submit(pow, 3, 3).result() == 27
    assert first.why().startswith("run, since no earlier run is continued")
    assert keyed.submit(pow, 3, 3).why() == str(Why(Reason.KEY))
    second.shutdown()
    assert second.resumed.counts == {Reason.RESULT: 1, Reason.ARGUMENTS: 1}
    assert third.resumed.fresh is not None


def test_calls_that_are_found_by_their_keys_are_counted_and_not_left_alone(make_executor: Any) -> None:
    first = make_executor(queue="q")
    wait([
        first.options(key="a").submit(pow, 2, 3),
        first.options(memo=True).submit(pow, 2, 4),
        first.submit(pow, 2, 5),
        first.submit(pow, 2, 6),
    ])  # fmt: skip
    first.kill_workers()
    second = make_executor(queue="q")
    for _ in range(2):
        assert second.options(key="a").submit(pow, 2, 3).result() == 8
        assert second.options(memo=True).submit(pow, 2, 4).result() == 16
        assert [*second.options(memo=True).map(pow, [2], [4])] == [16]
    assert second.submit(pow, 2, 5).result() == 32
    found = second.resumed
    assert found.counts == {Reason.RESULT: 1, Reason.EQUAL: 4, Reason.KEY: 2}
    assert (found.reused, found.left_alone) == (1, 1)


def test_a_preview_runs_and_changes_nothing(make_executor: Callable[..., PersistentExecutor], open_store: Any) -> None:
    first = make_executor(queue="q")
    assert list(first.map(pow, [1, 2], [3, 4])) == [1, 16]
    first.kill_workers()
    second = make_executor(queue="q")
    store = open_store(second.store.address)
    before = store.find(), store.runs(), store.taken()
    preview = second.preview(pow, [1, 2, 2], [3, 4, 4])
    assert (len(preview), preview.runs, preview.counts) == (3, 1, {Reason.RESULT: 2, Reason.ARGUMENTS: 1})
    assert [preview.why(item) for item in range(3)] == [RESULT, RESULT, UNSEEN]
    assert (store.find(), store.runs(), store.taken()) == before
    assert second.preview(pow, [1, 2, 2], [3, 4, 4]).reasons == preview.reasons
    assert list(second.map(pow, [1, 2, 2], [3, 4, 4])) == [1, 16, 16]
    assert second.resumed.counts == preview.counts
    with pytest.raises(ValueError, match="key"):
        second.options(key="k").preview(pow, [1], [1])
    unstorable = second.preview(str, [1, (x for x in ())])
    assert unstorable.counts == {Reason.FUNCTION: 1, Reason.REFUSED: 1}
    assert "can be neither written as JSON nor pickled" in unstorable.why(1)
    second.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        second.preview(pow, [1], [1])


def test_a_preview_of_more_than_a_piece_counts_equal_calls_like_the_map(
    make_executor: Callable[..., PersistentExecutor],
) -> None:
    first = make_executor(queue="q")
    list(first.map(abs, [7] * 1500))
    first.kill_workers()
    second = make_executor(queue="q")
    preview = second.preview(abs, [7] * 2500)
    assert preview.counts == {Reason.RESULT: 1500, Reason.ARGUMENTS: 1000}
    list(second.map(abs, [7] * 2500))
    assert second.resumed.counts == preview.counts


def test_equal_calls_that_are_run_once_say_so_and_the_preview_did(
    make_executor: Callable[..., PersistentExecutor],
) -> None:
    executor = make_executor(queue="q", resume="always")
    memo = make_executor(queue="memo").options(memo=True)
    for submitter, new in (executor, Reason.AFRESH), (memo, Reason.ARGUMENTS):
        for reasons in [new, new, Reason.EQUAL], [Reason.EQUAL] * 3:
            preview = submitter.preview(pow, [1, 2, 2], [3, 4, 4])
            assert [why.reason for why in preview.reasons] == reasons
            futures = []
            for base, exponent in (1, 3), (2, 4), (2, 4):
                futures.append(submitter.submit(pow, base, exponent))
                futures[-1].result()
            assert [future.why() for future in futures] == list(map(str, preview.reasons))
    executor.kill_workers()
    again = make_executor(queue="q", resume="always")
    preview = again.preview(pow, [1, 1, 9], [3, 3, 9])
    assert [why.reason for why in preview.reasons] == [Reason.RESULT, Reason.EQUAL, Reason.ARGUMENTS]
    assert list(again.map(pow, [1, 1, 9], [3, 3, 9])) == [1, 1, 9**9]
    assert again.resumed.counts == {Reason.RESULT: 1, Reason.ARGUMENTS: 1}


def test_a_run_that_continues_none_asks_nothing_of_the_store_for_its_calls(
    make_executor: Callable[..., PersistentExecutor], monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = make_executor()
    for verb in ("resumable", "take_over", "taken", "calls", "runs"):
        monkeypatch.setattr(executor.store, verb, None)
    assert executor.submit(pow, 2, 3).result() == 8
    assert list(executor.map(abs, range(3))) == [0, 1, 2]


# --- What is shown ---


def test_counts_are_shown_as_text_and_as_a_table_without_colours_or_scripts_of_their_own() -> None:
    resumed = Resumed("q", 3, (1, 2), 10)
    resumed.add("jobs.<lambda>", Why(Reason.CODE, "helpers.parse (helpers.py) changed"), 4)
    resumed.add("jobs.load", Why(Reason.RESULT), 3)
    assert str(resumed).splitlines() == [
        "run 3 of queue 'q', which continues runs 1, 2: 7 calls; 7 calls of runs 1, 2 left alone",
        "  3 taken over: their results were there",
        "  4 run, since code changed",
        "      jobs.<lambda>: helpers.parse (helpers.py) changed",
    ]
    html = resumed._repr_html_()
    assert "jobs.&lt;lambda&gt;" in html
    assert not any(word in html for word in ("<script", "color:", "background", "jobs.<"))
    assert resumed.rows()[1] == ("jobs.load", 3, "taken over: their results were there", "")
    preview = Preview()
    preview.note("jobs.load", Why(Reason.RESULT))
    preview.note("jobs.load", Why(Reason.FUNCTION))
    assert str(preview).startswith("2 calls, of which 1 would run\n")
    assert repr(Counts()) == "<Counts: no calls>"


def describe(function: Any) -> Any:
    return Functions().describe(function)


def local(value: Any) -> Callable[[], Any]:
    def inner() -> Any:
        return value

    return inner


def test_what_cannot_be_known_of_a_change_is_said() -> None:
    one, two = describe(local(1)), describe(local(2))
    assert parts.changes(one.path, one.parts, two.parts) == "its defaults or closure changed"
    assert parts.changes(one.path, "", two.parts) == "its code changed, in what is not known any more"
    assert parts.changes(one.path, one.parts, one.parts) == "what it is bound to changed"
    python = parts.changes(one.path, one.parts.replace("cpython-", "cpython-2"), one.parts)
    assert python.startswith("Python changed from cpython-2")


def test_what_was_said_that_a_call_depends_on_is_named(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("1")
    function = describe(local)

    def depending(version: int) -> str:
        return Depends(version, [table]).joined_to(function.digest, function.parts)[1]

    first = depending(1)
    assert parts.changes(function.path, first, depending(2)) == "its version changed"
    table.write_text("another")
    assert parts.changes(function.path, first, depending(1)) == f"{table} changed, on which it depends"
    neither = parts.changes(function.path, first, function.parts)
    assert neither == f"its version changed, {table} changed, on which it depends"


def test_a_function_that_reaches_very_much_is_described_by_module() -> None:
    pieces = [parts.Piece("m", f"f{n}", True, bytes([n % 256])) for n in range(5000)]
    text = parts.parts_of(pieces)
    assert len(text) < 200
    assert parts.changes("m.f1", text, parts.parts_of(pieces[1:])) == "m changed"
    assert parts.changes("m.f1", parts.parts_of(pieces[:2]), parts.parts_of(pieces[:3])) == "it reaches m.f2 now"


def test_the_error_is_one_of_ours() -> None:
    assert issubclass(FunctionChanged, Exception)


# --- At random ---


def scaling(factor: int, gate: str) -> Callable[[int], int]:
    def work(n: int) -> int:
        with open(gate) as file:
            fcntl.flock(file, fcntl.LOCK_SH)
        if n == 4:
            raise ValueError(n)
        return n * factor

    return work


@contextlib.contextmanager
def shut(gate: Path) -> Iterator[None]:
    with open(gate, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.mark.parametrize("seed", range(3))
def test_the_preview_the_futures_and_the_store_say_the_same_whatever_is_edited(
    make_executor: Callable[..., PersistentExecutor], tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    gate = tmp_path / "gate"
    for _ in range(8):
        executor = make_executor(1, queue="q", on_change=chance.choice(["rerun", "reuse"]))
        work = scaling(chance.randrange(2), str(gate))
        items = [chance.randrange(6) for _ in range(chance.randrange(1, 12))]
        # A call that fails before its twin is submitted is another reason for the twin than the preview can give.
        with shut(gate):
            preview = executor.preview(work, items)
            futures = [executor.submit(work, item) for item in items[: len(items) // 2]]
            whys = [future.why() for future in futures]
            rest = executor.preview(work, items[len(items) // 2 :])
            results = executor.map(work, items[len(items) // 2 :])
        assert whys == [preview.why(place) for place in range(len(whys))]
        assert rest.reasons == preview.reasons[len(whys) :]
        wait(futures)
        with contextlib.suppress(ValueError):
            list(results)
        resumed = executor.resumed
        if chance.random() < 0.7:
            executor.kill_workers()
        else:
            executor.shutdown()
        with contextlib.closing(executor.store.reopen()) as store:
            derived = History(store).of(resumed.run).resumed()
        if resumed.continues:
            assert (resumed.counts, derived.counts) == (preview.counts, preview.counts)
            assert (derived.changes, derived.left_alone) == (resumed.changes, resumed.left_alone)
        else:
            assert derived.fresh == resumed.fresh == preview.reasons[0]


def test_a_call_whose_function_was_forgotten_is_not_said_to_be_of_a_new_one(make_executor: Any) -> None:
    with make_executor() as first:
        first.submit(pow, 2, 3).result()
        first.submit(abs, -1).result()
        calls, _ = first.store.results_of("pow")
        assert first.store.remove(calls) == 1
    second = make_executor(resume="always")
    forgotten = second.submit(pow, 2, 3)
    assert forgotten.result() == 8
    assert forgotten.why() == (
        "run, since no call of its function is left of earlier runs: it is new, or they were forgotten"
    )
    assert second.submit(abs, -1).why() == "taken over: its result was there"


# --- Again in the same run ---

EDITED_TWICE = """
import json, sys, types
from omniq_executor import PersistentExecutor, open_store
from omniq_executor.dispatch.history import History

LIMIT = 1

def clip(n):
    return min(n, LIMIT)

def cell(text):
    exec(compile(text, "cell", "exec"), globals())

def fails(n):
    raise ValueError(n)

def said(executor, *futures):
    executor_says = [future.why() for future in futures]
    with_store = open_store("store.db")
    runs = History(with_store)
    later = [str(runs.of(executor.resumed.run).reasons()[future._number]) for future in futures]
    with_store.close()
    assert executor_says == later, (executor_says, later)
    return executor_says

if __name__ == "__main__":
    how = json.loads(sys.argv[1])
    memo = how.pop("memo", False)
    with PersistentExecutor(1, store="store.db", **how) as executor:
        calls = executor.options(memo=True) if memo else executor
        whys = []
        for edit in "", "LIMIT = 2", "def clip(n): return max(0, min(n, LIMIT))":
            cell(edit)
            foreseen = calls.preview(clip, [5])
            future = calls.submit(clip, 5)
            future.result()
            whys += said(executor, future)
            assert foreseen.why(0) == whys[-1], (foreseen.why(0), whys)
        failed = calls.submit(fails, 1)
        failed.exception()
        whys += said(executor, failed)
        foreseen = calls.preview(fails, [1]).why(0)
        again = calls.submit(fails, 1)
        again.exception()
        assert foreseen == again.why(), (foreseen, again.why())
        print(json.dumps([*whys, *said(executor, again)]))
        print(executor.resumed)
"""
LIMITED, CLIPPED = (
    "run, since the constant LIMIT (script.py) changed",
    "run, since its own code changed",
)
FIRST = str(Why(Reason.AFRESH, "it is the first of its queue"))
AGAIN, FAILED = str(Why(Reason.AGAIN)), str(Why(Reason.FAILED))


@pytest.mark.parametrize(
    ("how", "first", "again"),
    [
        ({}, FIRST, AGAIN),
        ({"resume": "always"}, FIRST, FAILED),
        ({"memo": True}, UNSEEN, FAILED),
    ],
)
def test_what_is_edited_or_has_failed_in_a_run_that_lives_on_is_said_to_run_because_of_that(
    script: Any, how: dict[str, Any], first: str, again: str
) -> None:
    script.write(EDITED_TWICE)
    done = script.run(json.dumps(how))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[0]) == [first, LIMITED, CLIPPED, first, again]


RESUMED_AND_EDITED = (
    EDITED_TWICE[: EDITED_TWICE.index("if __name__")]
    + """
import os

if __name__ == "__main__":
    with PersistentExecutor(1, store="store.db") as executor:
        def submit(function, n):
            foreseen = executor.preview(function, [n]).why(0)
            future = executor.submit(function, n)
            future.exception()
            assert future.why() == foreseen, (future.why(), foreseen)
            return future
        futures = [submit(clip, 5), submit(fails, 1)]
        if sys.argv[1] == "dies":
            os.kill(os.getpid(), 9)
        cell("LIMIT = 2")
        futures += [submit(clip, 5), submit(clip, 6), submit(fails, 1)]
        print(json.dumps(said(executor, *futures)))
        with_store = open_store("store.db")
        later = History(with_store).of(2).resumed()
        with_store.close()
        assert executor.resumed.to_dict() == later.to_dict(), (executor.resumed, later)
"""
)


def test_a_run_that_continues_another_says_so_too_and_at_its_end(script: Any) -> None:
    script.write(RESUMED_AND_EDITED)
    assert script.run("dies").returncode == -signal.SIGKILL
    done = script.run("ends")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [RESULT, FAILED, LIMITED, UNSEEN, AGAIN]
    assert "1 run again, since they had failed in this run, 1 run, since code changed (__main__.clip: " in done.stderr


@pytest.mark.parametrize("seed", range(3))
def test_the_preview_the_futures_and_the_store_say_the_same_of_what_is_edited_in_a_run(
    make_executor: Callable[..., PersistentExecutor], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance, main = random.Random(seed), vars(sys.modules["__main__"])
    executor = make_executor(1, queue="q", resume=chance.choice(["crashed", "always"]))
    for name in "LIMIT", "work":
        monkeypatch.setitem(main, name, None)
    futures, whys = [], []
    for _ in range(5):
        exec(f"LIMIT = {chance.randrange(2)}\ndef work(n): return 1 // (n - 4) + LIMIT", main)
        submitter = chance.choice([executor, executor, executor.options(memo=True)])
        for item in [chance.randrange(6) for _ in range(chance.randrange(1, 6))]:
            foreseen = submitter.preview(main["work"], [item]).why(0)
            futures.append(submitter.submit(main["work"], item))
            futures[-1].exception()
            whys.append(futures[-1].why())
            assert foreseen == whys[-1]
        if chance.random() < 0.3:
            executor._dispatcher.note_cell(failed=True, interrupted=False)  # type: ignore[attr-defined]
    with contextlib.closing(executor.store.reopen()) as store:
        reasons = History(store).of(1).reasons()
    assert len({*whys}) > 2
    for why, future in zip(whys, futures, strict=True):
        now = str(reasons[future.task().id])
        assert not why.startswith("run") or now in (why, FAILED)  # that it has failed since is said of a task, too
