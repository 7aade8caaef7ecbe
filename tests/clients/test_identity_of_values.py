"""What identifies values of numpy, pandas, polars, pyarrow, scikit-learn and attrs, in whichever process."""

from typing import Any

import pytest
from identity_table import Line, Table, check, check_processes, identity

attrs = pytest.importorskip("attrs", reason="attrs is in the extra `clients`")
np = pytest.importorskip("numpy", reason="numpy is in the extra `clients`")
pd = pytest.importorskip("pandas", reason="pandas is in the extra `clients`")
pl = pytest.importorskip("polars", reason="polars is in the extra `clients`")
pa = pytest.importorskip("pyarrow", reason="pyarrow is in the extra `clients`")
sparse = pytest.importorskip("scipy.sparse", reason="scipy is in the extra `clients`")
compose = pytest.importorskip("sklearn.compose", reason="scikit-learn is in the extra `clients`")
ensemble = pytest.importorskip("sklearn.ensemble", reason="scikit-learn is in the extra `clients`")
linear = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is in the extra `clients`")
pipeline = pytest.importorskip("sklearn.pipeline", reason="scikit-learn is in the extra `clients`")
scaling = pytest.importorskip("sklearn.preprocessing", reason="scikit-learn is in the extra `clients`")

X, Y = np.arange(20.0).reshape(10, 2), np.arange(10) % 2
COLUMNS = {"a": [1, 2, 3], "b": ["x", "y", None], "c": [0.5, 1.5, 2.5]}


@attrs.define
class Job:
    name: str
    tags: set[str] = attrs.field(factory=set)


@attrs.frozen
class Frozen:
    name: str
    limit: float = 1.0


def put(key: Any, value: object) -> Any:
    return lambda target: target.__setitem__(key, value)


def set_attribute(name: str, value: object) -> Any:
    return lambda target: setattr(target, name, value)


def frame() -> Any:
    return pd.DataFrame(COLUMNS, index=[10, 20, 30])


def looked_at(value: Any) -> Any:
    """A frame whose caches are filled."""
    value.describe()
    value.index.is_unique, value.columns.get_loc("a"), value["a"].sum(), value.T
    repr(value)
    return value


def fitted(estimator: Any, shift: float = 0.0) -> Any:
    return estimator.fit(X + shift * Y[:, None], Y)


TABLE: Table = {
    "numpy array": Line(
        lambda: np.arange(6.0).reshape(2, 3),
        [
            lambda: np.arange(6.0), lambda: np.arange(6.0).reshape(3, 2), lambda: np.arange(6).reshape(2, 3),
            lambda: np.arange(6, dtype="f4").reshape(2, 3), lambda: np.arange(6, dtype=">f8").reshape(2, 3),
            lambda: np.arange(6.0).reshape(2, 3).tolist(), lambda: np.zeros((2, 3)),
        ],
        [put((0, 0), 9.0), put((1, 2), np.nan)],
    ),
    "numpy view": Line(
        lambda: np.arange(10)[2:6], [lambda: np.arange(10)[2:7], lambda: np.arange(10)[6:2:-1]], [put(0, 7)]
    ),
    "numpy empty": Line(lambda: np.empty((0, 3)), [lambda: np.empty((3, 0)), lambda: np.empty((0, 3), dtype="i8")]),
    "numpy objects": Line(
        lambda: np.array(["a", {"x", "y", "z"}, None], dtype=object),
        [lambda: np.array(["a", {"x"}, None], dtype=object)],
        [put(0, "b"), lambda value: value[1].add("w")],
    ),
    "numpy texts": Line(lambda: np.array(["a", "bc"]), [lambda: np.array(["a", "bd"]), lambda: np.array(["a", "bcd"])]),
    "numpy records": Line(
        lambda: np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
        [lambda: np.array([(1, 2.0)], dtype=[("b", "i4"), ("a", "f8")])], [lambda value: put(0, 5)(value["a"])],
    ),
    "numpy times": Line(
        lambda: np.array(["2024-05-01"], dtype="M8[D]"), [lambda: np.array(["2024-05-01"], dtype="M8[s]")]
    ),
    "numpy number": Line(
        lambda: np.float64(1.5), [lambda: np.float32(1.5), lambda: 1.5, lambda: np.int64(1), lambda: np.bool_(True)]
    ),
    "numpy dtype and function": Line(
        lambda: (np.dtype("f8"), np.sum), [lambda: (np.dtype("f4"), np.sum), lambda: np.add]
    ),
    "numpy generator": Line(
        lambda: np.random.default_rng(1), [lambda: np.random.default_rng(2)], [lambda value: value.random()]
    ),
    "masked array": Line(
        lambda: np.ma.array([1, 2], mask=[0, 1], fill_value=0),
        [lambda: np.ma.array([1, 2], mask=[1, 0], fill_value=0)], [put(0, np.ma.masked)],
    ),
    "sparse matrix": Line(
        lambda: sparse.csr_array(np.eye(3)),
        [lambda: sparse.csc_array(np.eye(3)), lambda: sparse.csr_array(np.ones((3, 3)))]
    ),
    "pandas frame": Line(
        frame,
        [
            lambda: frame()[["b", "a", "c"]], lambda: frame().reset_index(drop=True),
            lambda: frame().astype({"a": "i4"}),
            lambda: frame().astype({"a": "float64"}), lambda: frame().rename(columns={"a": "d"}), lambda: frame()[:2],
            lambda: frame().astype({"b": "category"}), lambda: frame()[::-1], lambda: frame()["a"],
            lambda: frame().rename_axis("i"), lambda: frame().convert_dtypes(),
        ],
        [
            put("d", 1), put("a", [9, 9, 9]), lambda value: value.pop("a"),
            lambda value: value.iloc.__setitem__((0, 0), 7), lambda value: value.attrs.update(unit="m"),
        ],
    ),
    "pandas series": Line(
        lambda: frame()["a"], [lambda: frame()["c"], lambda: frame()["a"].rename("x"), lambda: frame()["a"].to_frame()],
        [put(10, 8)],
    ),
    "pandas index": Line(
        lambda: pd.Index(["a", "b"]), [lambda: pd.Index(["b", "a"]), lambda: pd.RangeIndex(2), lambda: pd.Index([0, 1])]
    ),
    "pandas levels": Line(
        lambda: pd.MultiIndex.from_product([["a", "b"], [1, 2]]),
        [lambda: pd.MultiIndex.from_product([["a", "b"], [2, 1]])],
    ),
    "pandas times": Line(
        lambda: pd.date_range("2024-05-01", periods=3, tz="Europe/Berlin"),
        [
            lambda: pd.date_range("2024-05-01", periods=3, tz="UTC"), lambda: pd.date_range("2024-05-01", periods=3),
            lambda: pd.Timestamp("2024-05-01"), lambda: pd.Timedelta("1D"), lambda: pd.NaT, lambda: pd.NA,
        ],
    ),
    "pandas categories": Line(
        lambda: pd.Categorical(["a", "b"]), [lambda: pd.Categorical(["a", "b"], categories=["b", "a"])]
    ),
    "polars frame": Line(
        lambda: pl.DataFrame(COLUMNS),
        [
            lambda: pl.DataFrame(COLUMNS).select("b", "a", "c"), lambda: pl.DataFrame(COLUMNS)[:2],
            lambda: pl.DataFrame(COLUMNS).cast({"a": pl.Int32}), lambda: pl.DataFrame(COLUMNS).rename({"a": "d"}),
            lambda: pl.DataFrame(COLUMNS)["a"], lambda: pl.DataFrame(COLUMNS).lazy(), lambda: pl.col("a"),
        ],
        [put((0, "a"), 9), lambda value: value.drop_in_place("a")],
    ),
    "polars query": Line(
        lambda: pl.DataFrame(COLUMNS).lazy().filter(pl.col("a") > 1),
        [lambda: pl.DataFrame(COLUMNS).lazy().filter(pl.col("a") > 2)],
    ),
    "arrow table": Line(
        lambda: pa.table(COLUMNS),
        [
            lambda: pa.table(COLUMNS).select(["b", "a", "c"]), lambda: pa.table(COLUMNS).slice(1),
            lambda: pa.table(COLUMNS).cast(pa.schema([("a", "int32"), ("b", "string"), ("c", "double")])),
            lambda: pa.table(COLUMNS).replace_schema_metadata({"unit": "m"}),
            lambda: pa.table({**COLUMNS, "a": [1, 2, 4]}),
        ],
    ),
    "arrow array": Line(
        lambda: pa.array([1, None, 3]),
        [
            lambda: pa.array([1, 2, 3]), lambda: pa.array([1, None, 3], pa.int8()), lambda: pa.scalar(1),
            lambda: pa.int8(),
        ],
    ),
    "attrs": Line(
        lambda: Job("a", {"x", "y", "z"}), [lambda: Job("b", {"x", "y", "z"}), lambda: Job("a")],
        [set_attribute("name", "c"), lambda value: value.tags.add("w")],
    ),
    "frozen attrs": Line(lambda: Frozen("a"), [lambda: Frozen("a", 1), lambda: Frozen("b")]),
    "estimator": Line(
        lambda: linear.LogisticRegression(C=0.5),
        [
            lambda: linear.LogisticRegression(C=0.6), lambda: fitted(linear.LogisticRegression(C=0.5)),
            linear.LinearRegression,
        ],
        [lambda value: value.set_params(C=0.7), set_attribute("added", 1)],
    ),
    "fitted estimator": Line(
        lambda: fitted(linear.LinearRegression()),
        [lambda: fitted(linear.LinearRegression(), 1.0), linear.LinearRegression],
        [lambda value: put(0, 7.0)(value.coef_)],
    ),
    "forest": Line(
        lambda: fitted(ensemble.RandomForestClassifier(3, random_state=1)),
        [
            lambda: fitted(ensemble.RandomForestClassifier(3, random_state=2)),
            lambda: fitted(ensemble.RandomForestClassifier(4, random_state=1)),
        ],
    ),
    "pipeline": Line(
        lambda: pipeline.make_pipeline(scaling.StandardScaler(), linear.LogisticRegression()),
        [
            lambda: pipeline.make_pipeline(scaling.StandardScaler(with_mean=False), linear.LogisticRegression()),
            lambda: compose.ColumnTransformer([("a", scaling.StandardScaler(), ["a"])]), scaling.StandardScaler,
            lambda: fitted(pipeline.make_pipeline(scaling.StandardScaler())),
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_equal_values_are_the_same_and_changed_ones_are_not(name: str) -> None:
    check(TABLE[name])


def test_every_process_has_the_same_identities() -> None:
    check_processes(__file__)


def test_a_frame_that_was_looked_at_is_the_same() -> None:
    check(Line(frame, [lambda: frame()[:2]]))
    check(Line(lambda: looked_at(frame()), [lambda: frame()[:2]]))
    assert identity(looked_at(frame())) == identity(frame())


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_layout_of_an_array_is_told_apart_or_not_but_always_the_same(order: Any) -> None:
    check(Line(lambda: np.asarray(X, order=order), [lambda: np.asarray(X[:5], order=order)]))
