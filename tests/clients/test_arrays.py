"""Arrays and data frames as large values: see test_values.py for what becomes of their files."""

import asyncio
import copy
import pickle
import sys
from collections.abc import Callable, Iterator
from typing import Any

import calls
import pytest
from hypothesis import given, settings, strategies as st
from large_values import FUNCTION, WAIT_S, N, files, names, shared, store

from omniq_executor import AsyncOmniQ, PersistentExecutor, attach, values
from omniq_executor.code.digest import data_digests
from omniq_executor.model import codec
from omniq_executor.model.functions import stored_call
from omniq_executor.model.preview import preview
from omniq_executor.stores.values import ValueFiles

np = pytest.importorskip("numpy")


MakeExecutor = Callable[..., PersistentExecutor]

__all__ = ["files", "store"]  # fixtures


def _loaded(files: ValueFiles, args: str | bytes) -> Any:
    with values.reading(files):
        return codec.decode_call(args, None)


@pytest.fixture(autouse=True)
def _nothing_is_pinned_at_the_end() -> Iterator[None]:
    yield
    assert values.here.pins == []
    assert values.here.writer is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.ma.masked_array([1, 2], [0, 1]), np.ma.masked_array([1, 2], [1, 1])),
        (np.rec.array([(1, 2)]), np.rec.array([(1, 3)])),
        (np.polynomial.Polynomial([1, 2]), np.polynomial.Polynomial([1, 3])),
        (np.poly1d([1, 2]), np.poly1d([1, 3])),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_module_holds_of_numpy_counts_by_content(one: Any, other: Any) -> None:
    left_out: list[str] = []
    first, same, third = (
        data_digests({"held": [value]}, lambda name, _: left_out.append(name))
        for value in (one, copy.deepcopy(one), other)
    )
    assert first == same != third
    assert left_out == []


def test_a_generator_of_random_numbers_that_a_module_holds_counts_by_its_type() -> None:
    first, other = (data_digests({"held": [np.random.default_rng(n)]}, lambda *_: None) for n in range(2))
    assert first == other


def test_arrays_come_back_and_can_be_changed(executor: PersistentExecutor) -> None:
    array = np.arange(float(N))
    future = executor.submit(calls.echo, array)
    result = future.result(WAIT_S)
    assert (result == array).all()
    result[0] = -1.0  # copy on write
    again = attach(executor.store).future(future.task_id).result(WAIT_S)
    assert again[0] == 0.0
    assert array[0] == 0.0
    assert len(future.task().args) < 1000 > len(future.task().result)  # type: ignore[arg-type]


def test_results_are_given_to_calls_and_to_whoever_looks(executor: PersistentExecutor) -> None:
    first = executor.submit(calls.echo, np.ones(N))
    second = executor.submit(calls.echo, [first, first])
    assert all((it == np.ones(N)).all() for it in second.result(WAIT_S))
    assert len(second.task().args) < 1000  # type: ignore[arg-type]

    async def look() -> Any:
        async with AsyncOmniQ(executor.store.address) as omniq:
            return await omniq.get_result(first.task_id or "")

    assert (asyncio.run(look()) == np.ones(N)).all()
    assert preview(first.task().result).startswith("numpy.")  # type: ignore[arg-type]


_NUMBERS = st.integers(0, 50)


_ARRAYS = st.builds(
    lambda count, kind, form: _formed(np.arange(count * 4).astype(kind).reshape(4, count), form),
    _NUMBERS, st.sampled_from(["i8", "f4", "u1", "S3"]), st.sampled_from(["C", "F", "strided", "frozen"]),
)  # fmt: skip


def _formed(array: Any, form: str) -> Any:
    if form == "strided":
        return array[::2, ::2]
    array = np.asfortranarray(array) if form == "F" else array
    array.flags.writeable = form != "frozen"
    return array


@settings(max_examples=60)
@given(
    st.recursive(
        st.one_of(_ARRAYS, st.binary(max_size=200), st.binary(max_size=200).map(bytearray), st.text(max_size=90)),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
        max_leaves=6,
    )
)
def test_any_value_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(values, "LARGE", 64)
        files = ValueFiles(tmp_path_factory.mktemp("any") / "values", durable=False)
        with values.writing(files):
            data = values.dumps(value)
        _same(codec.decode_result(data, lambda: files), pickle.loads(pickle.dumps(value, 5)))
        call, _ = stored_call(FUNCTION, (value,), {}, store="", files=files)
        values.release(values.here.pins)
        (found,), _ = _loaded(files, call.args)
        _same(found, pickle.loads(pickle.dumps(value, 5)))


def _same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, np.ndarray):
        assert (one.dtype, one.shape, one.flags.writeable) == (other.dtype, other.shape, other.flags.writeable)
        assert one.tobytes() == other.tobytes()
    elif isinstance(one, list):
        assert len(one) == len(other)
        for each, its in zip(one, other, strict=True):
            _same(each, its)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            _same(one[key], other[key])
    else:
        assert one == other


def test_a_list_of_very_many_arrays_needs_few_descriptors(files: ValueFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "LARGE", 64)
    monkeypatch.setattr(values, "MOST_PARTS", 5)
    value = [np.full(10, n) for n in range(20)]
    call, _ = stored_call(FUNCTION, (value,), {}, store="", files=files)
    assert len(values.here.pins) == len(names(files)) == 5 + 1
    values.release(values.here.pins)
    (found,), _ = _loaded(files, call.args)
    _same(found, value)


def test_data_frames_come_back(executor: PersistentExecutor) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": np.arange(N), "b": np.ones(N), "s": ["text"] * N})
    result = executor.submit(calls.echo, frame).result(WAIT_S)
    assert result.equals(frame)
    result.loc[0, "a"] = 5
    assert frame.loc[0, "a"] == 0


def test_an_array_that_was_changed_in_place_is_another_value(executor: PersistentExecutor) -> None:
    array, sums = np.zeros(N), []
    for n in range(3):
        array[-1] = n
        sums.append(executor.submit(np.sum, array))
    assert [it.result(WAIT_S) for it in sums] == [0.0, 1.0, 2.0]


def test_a_call_is_known_again_by_its_large_arguments(make_executor: MakeExecutor, files: ValueFiles) -> None:
    class Made:  # whose buffers are others whenever it is pickled
        def __init__(self, number: int) -> None:
            self.number = number

        def __reduce_ex__(self, _: Any) -> Any:
            return np.ravel, (np.full(N, self.number),)

    for args in ((np.arange(N),), ("x" * values.LARGE,), ([np.ones((3, N)).T, np.zeros(N)[::2]],), (Made(1), Made(2))):
        call, _ = stored_call(FUNCTION, args, {}, store="", files=files)
        plain, _ = stored_call(FUNCTION, (*args, 1), {}, store="")
        again, _ = stored_call(FUNCTION, (*args, 1), {}, store="", files=files)
        assert again.identity == plain.identity or isinstance(plain.args, str)
        assert call.identity != again.identity
    values.release(values.here.pins)
    one, _ = stored_call(FUNCTION, (Made(1), Made(2)), {}, store="", files=files)
    other, _ = stored_call(FUNCTION, (Made(1), Made(1)), {}, store="", files=files)
    values.release(values.here.pins)
    assert one.identity != other.identity
    for _ in range(2):
        executor = make_executor(resume="always")
        future = executor.submit(calls.echo, np.arange(N))
        future.result(WAIT_S)
        executor.shutdown()
    assert future.resumed


def test_large_globals_are_stored_once_and_loaded_once(
    executor: PersistentExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = sys.modules["__main__"]
    monkeypatch.setattr(script, "TABLE", np.arange(N), raising=False)
    source = "def look(i):\n    return int(TABLE[i]) {}, id(TABLE)"
    before: set[int] = set()
    for edit in ("", "+ 0", "* 1"):
        exec(source.format(edit), vars(script))
        found = list(executor.map(script.look, range(20)))  # type: ignore[attr-defined]
        assert [value for value, _ in found] == [*range(20)]
        assert len({place for _, place in found} | before) <= 2  # of each worker, whatever was edited
        before |= {place for _, place in found}
        assert len(shared(executor)) == 1
    script.TABLE[0] = 5  # type: ignore[attr-defined]
    assert executor.submit(script.look, 0).result(WAIT_S)[0] == 5  # type: ignore[attr-defined]


def test_a_function_that_reads_much_is_named_once(
    executor: PersistentExecutor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    script = sys.modules["__main__"]
    monkeypatch.setattr(script, "TABLE", np.arange(2_000_000), raising=False)
    exec("def look(i):\n    return int(TABLE[i])", vars(script))
    for n in range(3):
        assert executor.submit(script.look, n).result(WAIT_S) == n  # type: ignore[attr-defined]
    (told,) = [it.getMessage() for it in caplog.records if "every submit()" in it.getMessage()]
    assert told.startswith("__main__.look reads 16 MB of data of the script (TABLE")
