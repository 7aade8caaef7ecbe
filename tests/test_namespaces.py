"""The functions of a script share one namespace in a worker: the answers are those of an importable module.

Each program is run by ProcessPoolExecutor with spawn as a module, for the expected answers, and by
PersistentExecutor as a script with each start method, and in a session.
"""

import ast
import functools
import multiprocessing
import signal
import subprocess
import sys
import textwrap
from typing import Any

import pytest

from omniq_executor import PersistentExecutor, TooLarge

METHODS = sorted(multiprocessing.get_all_start_methods())

# What is defined; the initializer and its arguments or nothing; and expressions, each with `call` as submit().result()
PROGRAMS: dict[str, tuple[str, str, str]] = {
    "a global set by the initializer": (
        """
        MODEL = None
        def init(value):
            global MODEL
            MODEL = value
        def ask(): return MODEL
        """,
        "init, (42,)",
        "[call(ask), call(ask)]",
    ),
    "a list that two functions share": (
        """
        ITEMS = []
        def put(n):
            ITEMS.append(n)
            return len(ITEMS)
        def count(): return len(ITEMS), ITEMS
        """,
        "",
        "[call(put, 1), call(count), call(put, 2), call(put, 3), call(count)]",
    ),
    "a class attribute that two functions share": (
        """
        class C:
            items = []
            count = 0
            @classmethod
            def bump(cls):
                cls.count += 1
                return cls.count
        def put(n): C.items.append(n)
        def look(): return C.items, C.count, len(C.items)
        """,
        "",
        "[call(put, 1), call(put, 2), call(look), call(C.bump), call(C.bump), call(look)]",
    ),
    "a counter": (
        """
        COUNT = 0
        def bump():
            global COUNT
            COUNT += 1
            return COUNT
        def look(): return COUNT
        """,
        "",
        "[call(bump), call(bump), call(look), call(bump), call(look)]",
    ),
    "a cache": (
        """
        import functools
        RUNS = []
        @functools.lru_cache(maxsize=None)
        def slow(n):
            RUNS.append(n)
            return n * n
        def use(n): return slow(n), len(RUNS), slow.cache_info().hits
        """,
        "",
        "[call(slow, 3), call(slow, 3), call(use, 3), call(use, 4), call(slow, 4), call(use, 5)]",
    ),
    "function attributes": (
        """
        def f():
            f.calls += 1
            return f.calls
        f.calls = 0
        def look(): return f.calls
        """,
        "",
        "[call(f), call(f), call(look), call(f)]",
    ),
    "a mutable default that is a global": (
        """
        SEEN = []
        def note(n, seen=SEEN):
            seen.append(n)
            return len(seen), seen is SEEN
        def look(): return SEEN
        """,
        "",
        "[call(note, 1), call(look), call(note, 2), call(look)]",
    ),
    "a mutable default": (
        """
        def note(n, seen=[]):
            seen.append(n)
            return list(seen)
        """,
        "",
        "[call(note, 1), call(note, 2), call(note, 3)]",
    ),
    "a registry": (
        """
        REGISTRY = {}
        def register(function):
            REGISTRY[function.__name__] = function
            return function
        @register
        def f(): return "f"
        @register
        def g(): return [REGISTRY["f"] is f, REGISTRY["g"] is g, sorted(REGISTRY), REGISTRY["f"]()]
        """,
        "",
        "[call(g), call(f), call(g)]",
    ),
    "data in data": (
        """
        INNER = [1]
        OUTER = {"inner": INNER, "more": [INNER]}
        def put(n): INNER.append(n)
        def look(): return OUTER, OUTER["inner"] is INNER, OUTER["more"][0] is INNER
        """,
        "",
        "[call(look), call(put, 2), call(look)]",
    ),
    "instances of classes": (
        """
        import dataclasses, enum, typing
        @dataclasses.dataclass
        class Point:
            x: int
            tags: list = dataclasses.field(default_factory=list)
        class Colour(enum.Enum):
            RED = "r"
            BLUE = "b"
        class Pair(typing.NamedTuple):
            a: int
            b: int = 2
        ORIGIN = Point(0)
        LAST = None
        def make(n):
            global LAST
            LAST = Point(n)
            return LAST
        def check(point, colour, pair):
            return (isinstance(point, Point), colour is Colour.RED, isinstance(pair, Pair), type(ORIGIN) is Point,
                    isinstance(LAST, Point), LAST == point, pair.b, Colour("b").name)
        """,
        "",
        "[call(make, 1), call(check, Point(1), Colour.RED, Pair(1)), call(make, 3), "
        "call(check, Point(3), Colour.RED, Pair(7))]",
    ),
    "nested classes": (
        """
        class Outer:
            class Inner:
                made = 0
                def __init__(self):
                    type(self).made += 1
        def make():
            inner = Outer.Inner()
            return type(inner).__qualname__, Outer.Inner.made
        """,
        "",
        "[call(make), call(make)]",
    ),
    "classes that are noted when they are made, enums with bases": (
        """
        import enum
        class Plugin:
            known = []
            def __init_subclass__(cls): Plugin.known.append(cls.__name__)
        class First(Plugin): pass
        class Second(First): pass
        class Weighed:
            def __init__(self, mass):
                self.mass = mass
                self.double = 2 * mass
        class Planet(Weighed, enum.Enum):
            EARTH = 5
            MARS = 3
        def look(): return list(Plugin.known)
        def use():
            class Third(Plugin): pass
            return look(), issubclass(Second, Plugin), Planet.EARTH.double, Planet(3) is Planet.MARS
        """,
        "",
        "[call(look), call(use), call(use)]",
    ),
    "functions that call each other": (
        """
        DEPTH = []
        def even(n):
            DEPTH.append(n)
            return n == 0 or odd(n - 1)
        def odd(n): return n != 0 and even(n - 1)
        def factorial(n): return 1 if n < 2 else n * factorial(n - 1)
        """,
        "",
        "[call(even, 4), call(odd, 4), call(factorial, 10), call(even, 3)]",
    ),
    "super and a class that names itself": (
        """
        class Base:
            def __init__(self): self.log = ["Base"]
            def name(self): return "base"
        class Derived(Base):
            shared = []
            def __init__(self):
                super().__init__()
                Derived.shared.append(1)
                self.log.append("Derived")
            def name(self): return "derived of " + super().name()
        def make(): return Derived().log, Derived().name(), len(Derived.shared), Derived.__mro__[1] is Base
        """,
        "",
        "[call(make), call(make)]",
    ),
    "slots, metaclasses, abstract classes": (
        """
        import abc
        class Meta(type):
            made = []
            def __call__(cls, *args):
                Meta.made.append(cls.__name__)
                return super().__call__(*args)
        class Slotted(metaclass=Meta):
            __slots__ = ("x", "__hidden")
            def __init__(self, x):
                self.x = x
                self.__hidden = x + 1
            def hidden(self): return self.__hidden
        class Shape(abc.ABC):
            @abc.abstractmethod
            def area(self): ...
        class Square(Shape):
            def area(self): return 4
        def use():
            try: Shape()
            except TypeError: abstract = True
            return Slotted(1).hidden(), hasattr(Slotted(1), "__dict__"), len(Meta.made), abstract, Square().area()
        """,
        "",
        "[call(use), call(use)]",
    ),
    "properties": (
        """
        import functools
        class C:
            def __init__(self): self.n = 1
            @property
            def double(self): return self.n * 2
            @double.setter
            def double(self, value): self.n = value // 2
            @functools.cached_property
            def triple(self): return self.n * 3
            @staticmethod
            def still(): return SHARED
        SHARED = []
        def use():
            c = C()
            c.double = 8
            SHARED.append(c.triple)
            return c.n, c.triple, C.still(), C.still() is SHARED
        """,
        "",
        "[call(use), call(use)]",
    ),
    "a decorated function": (
        """
        import functools
        CALLS = []
        def traced(function):
            @functools.wraps(function)
            def wrapper(*args):
                CALLS.append(function.__name__)
                return function(*args)
            return wrapper
        @traced
        def f(n): return n + len(CALLS)
        @traced
        def g(n): return f(n), CALLS
        """,
        "",
        "[call(f, 1), call(g, 1), call(f, 1)]",
    ),
    "a list given as an argument is a copy": (
        """
        ITEMS = [1]
        def put(items):
            items.append(2)
            return items is ITEMS, len(ITEMS)
        """,
        "",
        "[call(put, ITEMS), call(put, ITEMS)]",
    ),
    "what pickles": (
        """
        import pickle
        class P:
            def __init__(self, x): self.x = x
            def __reduce__(self): return rebuilt, (self.x,)
        def rebuilt(x): return P(x + STEP)
        STEP = 1
        def round_trip(p):
            copy = pickle.loads(pickle.dumps(p))
            return p.x, copy.x, pickle.loads(pickle.dumps(round_trip)) is round_trip
        """,
        "",
        "[call(round_trip, P(1)), call(round_trip, P(5))]",
    ),
}

MODULE = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from program import *
if __name__ == "__main__":
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), {initializer}) as executor:
        def call(function, *args): return executor.submit(function, *args).result(30)
        print({answers})
"""

SCRIPT = """
import multiprocessing
from omniq_executor import PersistentExecutor
{definitions}
executor = PersistentExecutor(1, multiprocessing.get_context({method!r}), {initializer})
def call(function, *args): return executor.submit(function, *args).result(30)

print({answers})
executor.shutdown()
"""


def as_session(text: str) -> str:
    """What a session would be typed: an empty line after each statement."""
    lines = text.splitlines()
    typed = []
    for statement in ast.parse(text).body:
        first = min([statement.lineno, *(each.lineno for each in getattr(statement, "decorator_list", []))])
        typed += [line for line in lines[first - 1 : statement.end_lineno] if line.strip()]
        typed.append("")
    return "\n".join(typed) + "\n"


@pytest.fixture(scope="session")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What ProcessPoolExecutor prints for a program that is a module, the same however it is run as a script."""

    @functools.cache
    def run(name: str) -> str:
        definitions, initializer, answers = PROGRAMS[name]
        folder = tmp_path_factory.mktemp("module")
        (folder / "program.py").write_text(textwrap.dedent(definitions))
        (folder / "run.py").write_text(MODULE.format(initializer=initializer, answers=answers))
        done = subprocess.run(
            [sys.executable, "-B", "run.py"], cwd=folder, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.replace("program.", "__main__.")

    return run


def written(name: str, method: str) -> str:
    definitions, initializer, answers = PROGRAMS[name]
    return SCRIPT.format(
        definitions=textwrap.dedent(definitions), method=method, initializer=initializer, answers=answers
    )


def crossed(offset: int) -> list[Any]:
    """Return each start method with each program: one method of each program with every Python, all with one Python."""
    found = []
    for place, name in enumerate(PROGRAMS, offset):
        for method in METHODS:
            marks = () if method == METHODS[place % len(METHODS)] else pytest.mark.crossed
            found.append(pytest.param(method, name, marks=marks))
    return found


@pytest.mark.parametrize(("method", "name"), crossed(0))
def test_a_script_is_answered_as_a_module_is(method: str, script: Any, expected: Any, name: str) -> None:
    script.write(written(name, method))
    done = script.run()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == expected(name)


@pytest.mark.parametrize(("method", "name"), crossed(1))
def test_a_session_is_answered_as_a_module_is(method: str, script: Any, expected: Any, name: str) -> None:
    done = script.run(python=["-i", "-q"], text=as_session(written(name, method)))
    assert done.stdout == expected(name), done.stderr


# --- What changes in the script ---

CHANGES = """
import multiprocessing
from omniq_executor import PersistentExecutor
X = 1
ITEMS = ["script"]
UNTOUCHED = []
def helper(): return "old"
class C:
    limit = 1
    items = []
def look(): return X, list(ITEMS), helper(), C.limit
def put(n):
    UNTOUCHED.append(n)
    ITEMS.append(n)
    C.items.append(n)
    return len(UNTOUCHED), len(C.items)
def versions(expected):
    return X == expected

def main():
    global X, helper
    with PersistentExecutor(1, multiprocessing.get_context({method!r})) as executor:
        def call(function, *args): return executor.submit(function, *args).result(30)
        print(call(look), call(put, 1), call(look)[1])
        X = 2
        C.limit = 2
        print(call(look), call(put, 2))
        def helper(): return "new"
        print(call(look)[2], call(put, 3))
        futures = []
        for n in range(300):
            X = n % 2
            futures.append(executor.submit(versions, X))
        print(all(future.result(30) for future in futures))
        X = 7
        maps = [executor.map(versions, [7] * 50)]
        X = 8
        maps.append(executor.map(versions, [8] * 50))
        print([all(results) for results in maps], call(put, 4))
main()
"""


def test_what_the_script_changes_arrives_and_what_it_does_not_change_undoes_nothing(method: str, script: Any) -> None:
    script.write(CHANGES.format(method=method))
    done = script.run()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "(1, ['script'], 'old', 1) (1, 1) ['script', 1]",
        "(2, ['script', 1], 'old', 2) (2, 2)",
        "new (3, 3)",
        "True",
        "[True, True] (4, 4)",
    ]


def test_a_list_that_the_script_changes_in_itself_arrives(script: Any) -> None:
    script.write("""
from omniq_executor import PersistentExecutor
ITEMS = [1]
NESTED = {"a": [ITEMS]}
def look(): return ITEMS, NESTED, NESTED["a"][0] is ITEMS
with PersistentExecutor(1) as executor:
    print(executor.submit(look).result(30))
    ITEMS.append(2)
    print(executor.submit(look).result(30))
    NESTED["b"] = 1
    print(executor.submit(look).result(30))
""")
    done = script.run()
    assert done.stdout.splitlines() == [
        "([1], {'a': [[1]]}, True)", "([1, 2], {'a': [[1, 2]]}, True)", "([1, 2], {'a': [[1, 2]], 'b': 1}, True)",
    ], done.stderr  # fmt: skip


HOLDERS = """
import functools
from omniq_executor import PersistentExecutor
CELL = '''
def clean(x): return x + {n}
STEPS, BY_NAME, BOUND, best = [clean], {{"a": {{"s": (clean,)}}}}, functools.partial(clean, 1), clean
class Job:
    steps = [clean]
def in_list(): return STEPS[0](1)
def in_dict(): return BY_NAME["a"]["s"][0](1)
def in_partial(): return BOUND()
def by_another_name(): return best(1)
def in_class(): return Job.steps[0](1)
def in_default(f=clean): return f(1)
'''
with PersistentExecutor(1) as executor:
    for n in (0, 10, 0):
        exec(CELL.format(n=n), globals())
        for function in (in_list, in_dict, in_partial, by_another_name, in_class, in_default):
            assert executor.submit(function).result(30) == function() == 1 + n, (function, n)
    CONFIG = {"a": 1}
    ALL = [CONFIG]
    class Model:
        config = CONFIG
    def in_all(): return ALL[0]["a"]
    def in_attribute(): return Model.config["a"]
    def in_argument(given=ALL): return given[0]["a"]
    for value in (1, 2, 1):
        CONFIG["a"] = value
        for function in (in_all, in_attribute, in_argument):
            assert executor.submit(function).result(30) == value, (function, value)
    CONFIG = {"a": 3}
    ALL = [CONFIG]
    assert executor.submit(in_all).result(30) == 3
    print("done")
"""


def test_what_holds_something_that_the_script_changes_holds_the_new_one(script: Any) -> None:
    """Each was as it had arrived: what held it had not changed itself."""
    script.write(HOLDERS)
    done = script.run()
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_what_workers_have_changed_begins_anew_when_the_script_sets_it_again(script: Any) -> None:
    """A cache kept what was made with an older constant, though the cell that makes it was run again."""
    script.write("""
import functools
from omniq_executor import PersistentExecutor
CELL = '''
CACHE = {}
def in_dict(x):
    if x not in CACHE: CACHE[x] = x * FACTOR
    return CACHE[x]
def in_default(x, known={}):
    if x not in known: known[x] = x * FACTOR
    return known[x]
@functools.lru_cache
def cached(x): return x * FACTOR
def calls_cached(x): return cached(x)
'''
COUNT = [0]
def count():
    COUNT[0] += 1
    return COUNT[0]
with PersistentExecutor(1) as executor:
    for FACTOR in (2, 10, 2):
        exec(CELL, globals())
        for function in (in_dict, in_default, cached, calls_cached):
            assert list(executor.map(function, [1, 2])) == [FACTOR, 2 * FACTOR], function
    for first in (0, 100, 0):
        COUNT[0] = first
        assert [executor.submit(count).result(30) for _ in range(3)] == [first + 1, first + 2, first + 3]
    print("done")
""")
    done = script.run()
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_the_attributes_of_a_class_keep_their_order(method: str, script: Any) -> None:
    """They came in the order of the alphabet, and after an edit in that of their kinds."""
    script.write(f"""
import multiprocessing, typing
from omniq_executor import PersistentExecutor
class Ordered(type):
    @property
    def columns(cls): return [name for name in vars(cls) if name[:2] != "__"]
class Table(metaclass=Ordered):
    zeta = 1
    limits = [2]
    def clean(self): return "clean"
    alpha = 3
    def apply(self): return "apply"
class Row(typing.NamedTuple):
    z: int
    a: int = 1
def columns(): return Table.columns, [name for name in vars(Row) if name[:1] != "_"]
def main():
    with PersistentExecutor(1, multiprocessing.get_context({method!r})) as executor:
        def ask(): return executor.submit(columns).result(30) == columns()
        print(ask())
        del Table.zeta
        Table.zeta = 1
        print(ask())
        Table.beta = [4]
        print(ask())
        futures = []
        for n in range(100):  # calls of both come in turns
            del Table.alpha
            Table.alpha = 3
            if n % 2:
                del Table.zeta
                Table.zeta = 1
            futures.append((executor.submit(columns), columns()))
        print(all(future.result(30) == expected for future, expected in futures))
main()
""")
    done = script.run()
    assert (done.stdout.split(), done.stderr) == (["True"] * 4, "")


def test_a_name_that_only_a_text_names_is_never_an_old_one(script: Any) -> None:
    """It stood for what it had been when another function had brought it."""
    script.write("""
from omniq_executor import PersistentExecutor
LIMIT, STATE, EDITED = 1, None, {}
def prepare():
    global STATE
    STATE = EDITED["by"] = "worker"
def shown(): return LIMIT
def evaluated(): return eval("LIMIT + 0")
def both(): return LIMIT, eval("LIMIT")
def kept(): return globals()["STATE"], eval("EDITED")
def told(call):
    try:
        return call.result(30)
    except NameError as error:
        return error.args[0]
with PersistentExecutor(1, initializer=prepare) as executor:
    for LIMIT in (1, 2, 1):
        calls = [executor.submit(it) for it in (evaluated, shown, evaluated, both, shown, kept)]
        print([told(call) for call in calls])
""")
    done = script.run()
    missing, kept = "name 'LIMIT' is not defined", ("worker", {"by": "worker"})
    rows = [str([missing, n, missing, (n, n), n, kept]) for n in (1, 2, 1)]
    assert (done.stdout.splitlines(), done.stderr) == (rows, "")


def test_what_the_script_deletes_is_gone(script: Any) -> None:
    script.write("""
from omniq_executor import PersistentExecutor
class Base:
    v = 1
class Model(Base):
    v = 2
def sum(values): return -1
def total(values): return sum(values)
def look(): return Model.v
def read(): return table
table = [1]
with PersistentExecutor(1) as executor:
    first = [executor.submit(total, [1, 2]) for _ in range(2)]
    print(executor.submit(total, [1, 2]).result(30), executor.submit(look).result(30), executor.submit(read).result(30))
    del sum, Model.v, table
    print(executor.submit(total, [1, 2]).result(30), executor.submit(look).result(30))
    print(repr(executor.submit(read).exception(30)))
    def sum(values): return -3
    Model.v, table = 5, []
    print(executor.submit(total, [1, 2]).result(30), executor.submit(look).result(30), executor.submit(read).result(30))
    futures = []
    for n in range(200):  # calls of both come in turns
        if n % 2:
            del Model.v
        else:
            Model.v = 6
        futures.append(executor.submit(look))
    print([future.result(30) for future in futures] == [6, 1] * 100)
""")
    done = script.run()
    assert done.stdout.splitlines() == [
        "-1 2 [1]", "3 1", """NameError("name 'table' is not defined")""", "-3 5 []", "True",
    ], done.stderr  # fmt: skip


def test_instances_keep_their_class_when_a_killed_script_is_resumed(method: str, script: Any) -> None:
    script.write(f"""
import dataclasses, multiprocessing, os, signal, time
from omniq_executor import PersistentExecutor
@dataclasses.dataclass
class Point:
    x: int
    made = []
class Odd(Point): pass
def use(point):
    assert isinstance(point, Point) and type(point) in (Point, Odd), type(point)
    Point.made.append(point)
    if point.x == 3 and not os.path.exists("there"):
        open("there", "w").close()
        time.sleep(60)
    return point
with PersistentExecutor(1, multiprocessing.get_context({method!r})) as executor:
    is_first = not os.path.exists("there")
    futures = [executor.submit(use, (Odd if n % 2 else Point)(n)) for n in range(8)]
    while is_first and not os.path.exists("there"):
        time.sleep(0.01)
    if is_first:
        os.kill(os.getpid(), signal.SIGKILL)
    print([future.result(30).x for future in futures])
""")
    assert script.run().returncode == -signal.SIGKILL
    done = script.run(timeout_s=30)
    assert done.stdout == "[0, 1, 2, 3, 4, 5, 6, 7]\n", done.stderr


def test_a_class_that_is_local_to_a_function_comes_back_as_itself(method: str, script: Any) -> None:
    script.write(f"""
import multiprocessing
from omniq_executor import PersistentExecutor
def main():
    class Local:
        seen = []
        def __init__(self, x): self.x = x
    def make(x):
        Local.seen.append(x)
        return Local(x), len(Local.seen)
    with PersistentExecutor(1, multiprocessing.get_context({method!r})) as executor:
        for n in range(3):
            made, count = executor.submit(make, n).result(30)
            print(type(made) is Local, made.x, count, isinstance(executor.submit(lambda v: v, made).result(30), Local))
main()
""")
    done = script.run()
    assert (done.stdout, done.stderr) == ("True 0 1 True\nTrue 1 2 True\nTrue 2 3 True\n", "")


# --- What cannot travel, and tracebacks ---

REFUSED = """
import multiprocessing, threading, sys
from omniq_executor import PersistentExecutor
LOCK = threading.Lock()
def locked(n): return LOCK.locked(), n
def make():
    lock = threading.Lock()
    def inner(): return lock
    return inner
class C:
    held = threading.Lock()
def of_class(): return C.held
executor = PersistentExecutor(1, multiprocessing.get_context("spawn"))
def say(function, *args, **kwargs):
    error = executor.submit(function, *args, **kwargs).exception(30)
    print(type(error).__name__, error)

say(locked, 1)
say(of_class)
say(make())
say(abs, 1, threading.Lock())
say(abs, x=[LOCK])
executor.shutdown()
"""


def test_in_a_session_what_cannot_be_pickled_is_named_at_once(script: Any) -> None:
    done = script.run(python=["-i", "-q"], text=as_session(REFUSED))
    expected = [
        "global `LOCK` (_thread.lock) cannot be pickled",
        "attribute `C.held` (_thread.lock) cannot be pickled",
        "closure variable `lock` (_thread.lock) cannot be pickled",
        "argument 2 (_thread.lock) cannot be pickled",
        "argument `x` (list) cannot be pickled",
    ]
    lines = done.stdout.splitlines()
    assert len(lines) == len(expected), done.stderr
    for line, text in zip(lines, expected, strict=True):
        assert line.startswith("SerializationError")
        assert text in line


def test_a_script_that_cannot_be_imported_for_it_says_both(script: Any) -> None:
    script.write(REFUSED.replace("say(of_class)", "").replace("executor = P", "import time\nexecutor = P"))
    done = script.run()
    first = done.stdout.splitlines()[0]
    assert first.startswith("SerializationError"), done.stderr
    assert "global `LOCK` (_thread.lock) cannot be pickled" in first
    assert "if __name__ == '__main__':" in first


def test_a_script_that_is_imported_for_it_shares_one_namespace(method: str, script: Any) -> None:
    script.write(f"""
import multiprocessing, threading
from omniq_executor import PersistentExecutor
LOCK = threading.Lock()
ITEMS = []
class Point:
    def __init__(self, x): self.x = x
def put(n):
    ITEMS.append(n)
    return len(ITEMS)
def locked(point):
    with LOCK:
        return put(point.x), isinstance(point, Point), Point(len(ITEMS))
def count(): return len(ITEMS)
if __name__ == "__main__":
    with PersistentExecutor(1, multiprocessing.get_context({method!r})) as executor:
        print(executor.submit(put, 1).result(30))
        a, b, point = executor.submit(locked, Point(2)).result(30)
        print(a, b, type(point) is Point, point.x, executor.submit(count).result(30))
""")
    done = script.run()
    assert (done.stdout, done.stderr) == ("1\n2 True True 2 2\n", "")


def test_a_traceback_shows_the_lines_of_the_script(method: str, script: Any) -> None:
    script.write(f"""
import multiprocessing
from omniq_executor import PersistentExecutor
def helper(n):
    return 1 / n  # the line in question
def f(n): return helper(n)
with PersistentExecutor(1, multiprocessing.get_context({method!r})) as executor:
    print(executor.submit(f, 0).exception(30).__cause__)
""")
    done = script.run()
    assert "script.py" in done.stdout
    assert "return 1 / n  # the line in question" in done.stdout


def test_what_is_too_large_is_named(
    executor: PersistentExecutor, monkeypatch: pytest.MonkeyPatch, make_executor: Any
) -> None:
    def refuse(*_: Any) -> None:
        raise TooLarge("the store: a value is larger than it can hold")

    monkeypatch.setattr(executor._dispatcher, "submit", refuse)
    with pytest.raises(TooLarge, match=r"argument 1 \(bytes\) has 2 MB: the store"):
        executor.submit(len, bytes(2_000_000))
    with pytest.raises(TooLarge, match=r"argument `b` \(str\) has 1.5 kB"):
        executor.submit(dict, a=1, b="x" * 1500)
    monkeypatch.setattr(sys.modules["__main__"], "LARGE", b"x" * 3_000_000, raising=False)
    function: Any = eval("lambda: LARGE", sys.modules["__main__"].__dict__)
    with pytest.raises(TooLarge, match=r"global `LARGE` \(bytes\) has 3 MB"):
        executor.submit(function)
