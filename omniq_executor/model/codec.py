"""How arguments and results are written: JSON text where that keeps them exactly, else a pickle.

    str    JSON that loads back to an equal value of the very same types
    bytes  a pickle, plain where that is possible, else by cloudpickle

"Exactly" excludes tuples, subclasses, NaN, lone surrogates, keys that are not str, and containers
that occur twice in a value (JSON would make two of one). Whole columns of plain values are written
by one call of the C encoder, as a JSON array of one array per call: `[[1],[2]]`. This form goes
unchanged into the store, which takes it apart in SQL, and to the worker.

What is defined in `__main__` is a special case, because workers do not import the script (it may
not be guarded, and a notebook has none). Going to a worker it travels by value, see namespaces.py. Coming
back, its classes travel by name, so that a result is an instance of the script's own class, also when a
later run of the script reads it from the store.
"""

import base64
import functools
import io
import json
import logging
import pickle
import sys
from collections.abc import Callable, Iterable, Sequence
from types import FunctionType
from typing import Any, NoReturn

from .. import values
from ..code import modules, spaces
from ..interrupts import interrupts
from ..value_files import Files
from .schema import OPTIONS, ErrorInfo, Kind, Options

_PROTOCOL = 5
_MAX_DEPTH = 60  # deeper values are pickled; SQLite's own JSON parser stops at 1000
SCALARS = frozenset({int, str, float, bool, type(None)})
BY_NAME = b"__main__"  # stands in every pickle that names something of the script
_SCRIPT_NAMES = tuple(name.encode() for name in modules.MAINS)

_INHERITED = "shared between processes through inheritance"  # what multiprocessing says of its locks and queues
_told: set[str] = set()
_log = logging.getLogger("omniq_executor")

_TUPLES = {name for name, field in OPTIONS.items() if field.kind in (Kind.TEXTS, Kind.IDS)}
_PICKLES = {name for name, field in OPTIONS.items() if field.kind is Kind.PICKLE}


def _json_encoder() -> Callable[[Any], str]:
    """Return what writes JSON: json's own encoder of C, made once.

    JSONEncoder makes another one for each value, which takes three times as long as to write two numbers. Where Python
    has none, or another one, it is JSONEncoder all the same. What is written has no circles, or is known to be deep.
    """
    plain = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    try:
        write = json.encoder.c_make_encoder(  # type: ignore[attr-defined]
            None, plain.default, json.encoder.encode_basestring, None, ":", ",", False, False, False
        )
    except (AttributeError, TypeError):
        return plain.encode
    return lambda value: "".join(write(value, 0))


_encode_json = _json_encoder()


def encode(value: Any, *, in_worker: bool = False) -> str | bytes:
    """Return the stored form of a value. Raise SerializationError if it has none.

    `in_worker` says which way it travels (see above).
    """
    if type(value) is int and -(2**63) <= value < 2**63:  # the most usual value, at a tenth of the cost
        return int.__repr__(value)
    text = encode_json(value)
    is_large = text is not None and len(text) >= values.LARGE and values.here.writer is not None
    return _dump(value, in_worker) if text is None or is_large else text


def decode(data: str | bytes) -> Any:
    """Return the value of a stored form. A pickle runs code of its own: whatever it raises comes out."""
    return json.loads(data) if isinstance(data, str) else pickle.loads(data)


def decode_result(data: str | bytes, files: Callable[[], Files]) -> Any:
    """Do the same for what a task returned, which may be in the files of its store."""
    if isinstance(data, str) or not values.is_reference(data):
        return decode(data)
    with values.reading(files()):
        return pickle.loads(data)


def encode_json(value: Any) -> str | None:
    """`value` as JSON text, or None where JSON would not keep it exactly."""
    return _encode_plain(value) if _is_plain(value, set(), 0) else None


def _encode_plain(value: Any) -> str | None:
    """Do as `encode_json`, for what is made of JSON's own types; a tuple is written as a list."""
    try:
        text = _encode_json(value)
        if not text.isascii():
            text.encode()
    except ValueError:  # NaN, an infinity, an int of more digits than Python converts, or a lone surrogate
        return None
    return text


def encode_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str | bytes, str | None]:
    """Return the stored form of a call: (JSON array, JSON object or None), or (pickle of both, None)."""
    return encode_plain_call(args, kwargs) or (write((args, kwargs)).data, None)


def encode_plain_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, str | None] | None:
    """Return a call as JSON array and JSON object or None; None where JSON would not keep it exactly."""
    if len(args) == 1 and not kwargs and type(args[0]) is int and -(2**63) <= args[0] < 2**63:
        return f"[{args[0]}]", None
    if not kwargs and SCALARS.issuperset(map(type, args)):
        text = _encode_plain(args)
        return (text, None) if text is not None else None
    seen: set[int] = set()  # by both, so that what is given twice stays one
    if all(_is_plain(value, seen, 0) for value in (*args, *kwargs.values())):
        text, named = _encode_plain(args), _encode_plain(kwargs) if kwargs else None
        if text is not None and (named is not None or not kwargs):
            return text, named
    return None


def decode_call(args: str | bytes, kwargs: str | None) -> tuple[Sequence[Any], dict[str, Any]]:
    """Return the arguments of a call from their stored form. A pickle runs code of its own, as in `decode`."""
    if isinstance(args, bytes):
        positional, named = pickle.loads(args)
        return positional, named
    return json.loads(args), json.loads(kwargs) if kwargs else {}


def encode_rows(rows: Sequence[Sequence[Any]]) -> str | None:
    """Return many calls' positional arguments as one JSON array of arrays, or None where JSON does not do.

    Only for scalars: a look at the types, a column at a time, is all it costs beyond the encoder.
    """
    for column in zip(*rows, strict=True):
        if not SCALARS.issuperset(map(type, column)):
            return None
    return _encode_plain(rows)


def join(texts: Iterable[str]) -> str:
    """Return one JSON array of the given JSON texts."""
    return f"[{','.join(texts)}]"


def split(text: str) -> list[str]:
    """Return the JSON texts in an array that `join` made, or that `encode_rows` wrote."""
    return [_encode_json(value) for value in json.loads(text)]


def write(value: Any, snapshot: Any = None) -> spaces.Payload:
    """Return a callable, or (args, kwargs), as a pickle: by name where a worker can import it, else by value.

    By value fails for what uses, say, a lock that the script made. Then what is the script's travels by name
    after all, and the worker has to import the script (see engines.worker). Raise SerializationError if
    neither is possible. `snapshot` says what workers have of the script by a fork, see namespaces.py.
    """
    plain = None
    buffers: list[memoryview] = []
    try:
        plain = _pickled(value, buffers)
        if BY_NAME not in plain:
            return spaces.Payload(values.finish(plain, buffers))
    except Exception:  # noqa: BLE001 - a __reduce__ of the user's may raise anything; cloudpickle has the last word
        pass
    namespaces = _namespaces()
    try:
        by_value: spaces.Payload = namespaces.dump(value, snapshot)
        return by_value
    except Exception as error:  # noqa: BLE001 - as above
        if plain is None or modules.script() is None:
            _refuse(value, error)
        _tell_of_shared(error)
        plain = values.finish(plain, buffers)
        return spaces.Payload(pickle.dumps(modules.Reduced(spaces.by_name, (plain, str(error))), _PROTOCOL))


def _tell_of_shared(error: Exception) -> None:
    """Say once of locks and the like that workers which import the script do not share them."""
    said = str(error)
    if _INHERITED in said and said not in _told:
        _told.add(said)
        _log.warning(
            "%s. So each worker imports the script, and makes one of its own: they share none. Where they must, hand it"
            " on by `initializer` and `initargs`, or have workers forked, by mp_context=get_context('fork')", said,
        )  # fmt: skip


@functools.cache
def _namespaces() -> Any:
    with interrupts:
        from ..code import namespaces  # 30 ms of imports, which most programs never need
    return namespaces


def _pickled(value: Any, buffers: list[memoryview]) -> bytes:
    """Pickle a value, with its large buffers apart if they go into files."""
    if values.here.writer is None:
        return pickle.dumps(value, _PROTOCOL)
    return pickle.dumps(value, _PROTOCOL, buffer_callback=values.collector(buffers))


def imported(path: str) -> Any:
    """Return what has a dotted path, which does not say where the module ends. Raise ImportError if nothing has it."""
    import pkgutil

    try:
        return pkgutil.resolve_name(path)
    except AttributeError as error:  # of a function that is not there; workers look for others in the script then
        raise ImportError(f"there is no {path}: {error}") from error


def encode_error(error: ErrorInfo) -> str:
    """Return what is shown of an error, as a JSON object. Its pickle is kept apart."""
    # The name of a file, say, may be no Unicode; what is shown must be.
    shown = {name: text.encode(errors="backslashreplace").decode() for name, text in error.shown().items()}
    return _encode_json(shown)


def decode_error(text: str | None, exception: bytes | None) -> ErrorInfo | None:
    """Return the error of a stored form, or None where there is none."""
    return ErrorInfo(**json.loads(text), pickle=exception) if text is not None else None


def encode_options(options: Options | None) -> str | None:
    """Return what differs from the usual in options, as a JSON object; None where nothing does."""
    if options is None:
        return None
    fields = {name: value for name, value in options._asdict().items() if value != Options._field_defaults[name]}
    for name in _PICKLES.intersection(fields):
        fields[name] = base64.b64encode(fields[name]).decode()
    return _encode_json(fields) if fields else None


def decode_options(text: str | None) -> Options | None:
    """Return the options of a stored form."""
    if text is None:
        return None
    fields = json.loads(text)
    for name in _TUPLES.intersection(fields):
        fields[name] = tuple(fields[name])
    for name in _PICKLES.intersection(fields):
        fields[name] = base64.b64decode(fields[name])
    return Options(**fields).or_none()


def _is_plain(value: Any, seen: set[int], depth: int) -> bool:
    kind = type(value)
    if kind in SCALARS:
        return True
    if kind is list:
        items = value
    elif kind is dict and all(type(name) is str for name in value):
        items = value.values()
    else:
        return False
    if id(value) in seen or depth == _MAX_DEPTH:
        return False
    seen.add(id(value))
    if SCALARS.issuperset(map(type, items)):
        return True
    return all(_is_plain(item, seen, depth + 1) for item in items)


def _dump(value: Any, in_worker: bool) -> bytes:
    if not in_worker:
        return write(value).data
    first: Exception | None = None
    data = b""
    buffers: list[memoryview] = []
    try:
        data = _pickled(value, buffers)
        if not any(name in data for name in _SCRIPT_NAMES):
            return values.finish(data, buffers)
    except Exception as error:  # noqa: BLE001 - as in `write`
        first = error
    buffer = io.BytesIO()
    others: list[memoryview] = []
    take = None if values.here.writer is None else values.collector(others)
    try:
        _result_pickler()(buffer, _PROTOCOL, buffer_callback=take).dump(value)
    except Exception as error:  # noqa: BLE001 - as above
        if first is None:
            return values.finish(data, buffers)
        _refuse(value, first if isinstance(first, pickle.PicklingError) else error)
    return values.finish(buffer.getvalue(), others)


def _refuse(value: Any, error: Exception) -> NoReturn:
    from ..errors import SerializationError  # costs 15 ms of imports, which a worker seldom needs

    raise SerializationError(
        f"a {type(value).__qualname__} cannot be stored, as it can be neither written as JSON nor pickled: "
        f"{error if type(error).__name__ == 'Unpicklable' else f'{type(error).__name__}: {error}'}"
    ) from error


@functools.cache
def _result_pickler() -> Any:
    """Return the pickler for what plain pickle cannot do, in a worker."""
    import cloudpickle  # 30 ms of imports, which most workers never need

    def is_in_script(value: Any) -> bool:
        return modules.find(sys.modules[modules.MAIN], value.__qualname__) is value

    class FromWorker(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
        """Pickles what the script defines by name, also where this process has no such script."""

        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, type):
                return self._reduce_class(obj)
            if type(obj) is FunctionType and modules.is_main(obj) and is_in_script(obj):
                return script_class, (obj.__qualname__,)
            return super().reducer_override(obj)

        def _reduce_class(self, kind: type) -> Any:
            tracker = spaces.trackers.get(kind)
            if modules.is_main(kind) and (tracker is None or "<locals>" not in kind.__qualname__):
                return script_class, (kind.__qualname__,)
            reduced = super().reducer_override(kind)
            if tracker is None or not isinstance(reduced, tuple) or len(reduced) != 6:
                return reduced
            # Local to a function: whoever wrote it finds its own class by that number, and others make one.
            make, args, *rest = reduced
            return make, (*args[:-2], tracker, args[-1]), *rest

    return FromWorker


def script_class(qualname: str) -> Any:
    """Return the class or function of that name in the script that is running. Raise AttributeError if it has none."""
    found = modules.find(sys.modules[modules.MAIN], qualname)
    if found is None:
        raise AttributeError(f"{qualname} was defined by the script that made this value; this program has none")
    return found
