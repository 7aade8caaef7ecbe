"""The namespaces of a worker, one for each run."""

import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from omniq_executor.code import namespaces, spaces
from omniq_executor.code.modules import Snapshot
from omniq_executor.model import codec


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Runs code as the script's, in a `__main__` of its own."""
    module = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)

    def run(source: str) -> Any:
        exec(source, module.__dict__)
        return module

    yield run
    spaces._here.space = None
    spaces._spaces.clear()


@pytest.fixture
def load() -> Callable[[int, bytes], Any]:
    """Loads a pickle in the space of a run, as a worker does."""

    def load_in(number: int, data: bytes) -> Any:
        before = sys.modules["__main__"], sys.modules.get("__mp_main__")
        space = spaces.space_of(number)
        space.enter()
        try:
            return codec.decode(data)
        finally:
            sys.modules["__main__"], sys.modules["__mp_main__"] = before[0], before[1] or before[0]
            spaces._here.space = None

    return load_in


COUNTER = "COUNT = 0\ndef bump():\n    global COUNT\n    COUNT += 1\n    return COUNT\ndef look(): return COUNT\n"


def test_runs_share_nothing(main: Any, load: Any) -> None:
    script = main(COUNTER)
    bump, look = (namespaces.dump(function).data for function in (script.bump, script.look))
    assert [load(1, bump)() for _ in range(3)] == [1, 2, 3]
    assert (load(2, bump)(), load(1, look)(), load(2, look)()) == (1, 3, 1)


def test_only_the_latest_spaces_are_kept(main: Any, load: Any) -> None:
    bump = namespaces.dump(main(COUNTER).bump).data
    for number in range(spaces.SPACES + 1):
        load(number, bump)()
    assert len(spaces._spaces) == spaces.SPACES
    assert load(0, bump)() == 1
    assert load(spaces.SPACES, bump)() == 2


def test_a_function_is_given_its_own_version_of_each_name(main: Any, load: Any) -> None:
    script = main("X = 1\nclass C:\n    limit = 1\ndef f(): return X, C.limit\ndef g(): return X")
    one = load(1, namespaces.dump(script.f).data)
    space = spaces.space_of(1)
    record = space.take_record()
    script.X, script.C.limit = 2, 2
    two = load(1, namespaces.dump(script.f).data)
    other = space.take_record()
    assert record is not None
    assert other is not None
    for function, its_record, expected in [(two, other, (2, 2)), (one, record, (1, 1)), (two, other, (2, 2))]:
        space.apply(its_record)
        assert function() == expected
    epoch = space.epoch
    space.apply(other)
    assert space.epoch == epoch


def test_the_identity_of_a_class_is_the_same_in_each_process(main: Any) -> None:
    source = "class C:\n    x = 1\n    def m(self): return super().__repr__()\n"
    source += "def make():\n    class C: pass\n    return C\n"
    script = main(source)
    first, again = namespaces.class_id_of(script.C), namespaces.class_id_of(script.C)
    script.C.x = 2
    assert first == again == namespaces.class_id_of(script.C)
    locals_ = [namespaces.class_id_of(script.make()) for _ in range(2)]
    assert len({first, *locals_}) == 3
    namespaces_of_another = main(source)
    assert namespaces.class_id_of(namespaces_of_another.C).rpartition("/")[0] == first.rpartition("/")[0]


def test_what_has_not_changed_is_not_written_anew(main: Any) -> None:
    script = main(
        "import math\nX = [1]\nclass C:\n    def m(self): return X\ndef f(): return C().m(), math.pi, late()\n"
    )
    for change in (
        "X.append(2)", "X = [1, 2]", "C.n = 1", "C.m = lambda self: 1", "def late(): return 3",
        "f.__code__ = (lambda: X).__code__", "f.note = 1",
    ):  # fmt: skip
        before, again = (namespaces.dump(script.f) for _ in range(2))  # of data it is known by the second time
        assert namespaces.dump(script.f) is again
        main(change)
        after = namespaces.dump(script.f)
        assert (change, after is again) == (change, False)
        if change != "X = [1, 2]":  # another list, which is equal
            assert (change, after.signature != before.signature) == (change, True)


def test_of_what_was_forked_only_names_are_written(main: Any) -> None:
    script = main("DATA = bytes(10**6)\nclass C:\n    data = bytes(10**6)\ndef f(): return DATA, C\n")
    snapshot = Snapshot()
    assert len(namespaces.dump(script.f, snapshot).data) < 2000
    assert len(namespaces.dump(script.C, snapshot).data) < 2000
    assert len(namespaces.dump(script.f).data) > 2 * 10**6
    main("MORE = bytes(10**5)\nOLD = f\ndef f(): return OLD(), MORE\n")
    assert 10**5 < len(namespaces.dump(script.f, snapshot).data) < 10**6
    script.C.data = b"new"
    assert b"new" in namespaces.dump(script.f, snapshot).data


def test_a_forked_name_is_given_its_value_back(main: Any, load: Any) -> None:
    script = main("X = 1\ndef f(): return X\n")
    snapshot = Snapshot()
    same = namespaces.dump(script.f, snapshot).data
    main("X = 2")
    changed = namespaces.dump(script.f, snapshot).data
    main("X = 1")
    space = spaces._spaces[7] = spaces.Space(is_forked=True)
    results, records = [], []
    for data in (same, changed, same):
        results.append(load(7, data))
        records.append(space.take_record())
        results[-1] = results[-1]()
    assert results == [1, 2, 1]
    space.apply(records[1])
    assert script.f() == 2
    space.apply(records[0])
    assert script.f() == 1


def test_a_very_large_value_has_no_digest_and_costs_no_copy() -> None:
    from omniq_executor.code import digest as keys

    with pytest.raises(keys.Uncanonical, match="parts"):
        keys.value_digest([[n] for n in range(600_000)])


def test_a_function_that_was_there_by_the_fork_is_there_again_after_another_version_of_it(main: Any) -> None:
    script = main("def answer(): return 1\ndef ask(): return answer()\n")
    snapshot, space, forked = Snapshot(), spaces.space_of(0, is_forked=True), script.answer
    space.enter()
    as_forked = namespaces.dump(script.ask, snapshot).data
    main("def answer(): return 2\n")
    edited = namespaces.dump(script.ask, snapshot).data
    script.answer = forked  # as in a worker, where no edit is seen
    records = []
    for data, expected in ((as_forked, 1), (edited, 2)):
        ask = codec.decode(data)
        records.append(space.take_record())
        assert ask() == expected
    space.apply(records[0])
    assert ask() == 1
