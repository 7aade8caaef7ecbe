"""What a pickle holds, as text, without running any of its code.

A pickle names classes and functions, and loading it calls them. Here a stand-in takes the place of
each: it calls nothing and only notes what it was given. So a stranger's pickle can be looked at.
"""

import io
import pickle
import reprlib
import threading
from typing import Any

from .. import values
from ..value_files import size_of

MOST_BYTES = 1 << 16  # a larger pickle is not looked into: it would take as much memory as it is large

_SHOWN = 200  # characters of arguments
_shorten = reprlib.Repr()
_shorten.maxstring = _shorten.maxother = _shorten.maxlong = 60
_shorten.maxlevel = 4
_MOST_OBJECTS = 40  # that are shown with what they were given


class _Shown(threading.local):
    level = 0  # of objects within objects, of what is written in this thread
    objects = 0  # that were written so far


_shown = _Shown()


def preview(data: bytes) -> str:
    """Return a short text that tells a reader what is pickled in `data`."""
    if len(data) > MOST_BYTES:
        return f"a pickle of {len(data)} bytes"
    try:
        return _shorten.repr(_Looker(io.BytesIO(data)).load())
    except Exception as error:  # noqa: BLE001 - a damaged pickle may make the unpickler raise anything
        return f"a pickle of {len(data)} bytes ({type(error).__name__})"


def pickled_arguments(data: bytes, shorten: reprlib.Repr) -> str:
    """Return the pickled (args, kwargs) of a call as they would be written in it."""
    if len(data) <= MOST_BYTES:
        try:
            args, kwargs = _Looker(io.BytesIO(data)).load()
            named = [f"{name}={shorten.repr(value)}" for name, value in kwargs.items()]
            return ", ".join([*map(shorten.repr, args), *named])
        except Exception:  # noqa: BLE001 - as in preview(), which says what is there instead
            pass
    return preview(data)


def shown_arguments(args: str | bytes, kwargs: str | None) -> str:
    """Return the stored arguments of a call as a short text."""
    text = preview(args) if isinstance(args, bytes) else f"{args}{kwargs or ''}"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


class _Looker(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module in _CODE and name in _OF_PAYLOADS:
            return _OF_PAYLOADS[name]
        if module == values.__name__:
            return _of_file if name == "load" else _OF_PAYLOADS["checked_call"]
        if (module, name) == _RESULT_OF:
            return lambda task_id: _stand_in(f"<result of {task_id}>")
        label = name if module in ("builtins", "__main__") else f"{module}.{name}"
        return _stand_in(label)


class _Named(type):
    label: str

    def __repr__(cls) -> str:
        return cls.label


class _StandIn(metaclass=_Named):
    """An object of a class that is not loaded, or what a function that is not called would return."""

    label = ""

    def __new__(cls, *given: Any, **named: Any) -> Any:
        made = super().__new__(cls)
        made.given = [*given, *named.values()]
        return made

    def __setstate__(self, state: Any) -> None:
        self.given.append(state)

    append = __setstate__

    def extend(self, items: Any) -> None:
        self.given.extend(items)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.given.append((key, value))

    def __call__(self, *given: Any) -> Any:
        return type(self)(*given)

    def __repr__(self) -> str:
        # Of objects that refer to each other a Repr sees no end: for each it begins to count levels anew.
        if _shown.level == 0:
            _shown.objects = 0
        if _shown.level == _shorten.maxlevel or _shown.objects == _MOST_OBJECTS:
            return f"{self.label}(...)"
        _shown.level += 1
        _shown.objects += 1
        try:
            return f"{self.label}({', '.join(map(_shorten.repr, self.given[:4]))})"
        finally:
            _shown.level -= 1

    given: list[Any]


_RESULT_OF = "omniq_executor.model.dependencies", "result_of"
_CODE = ("omniq_executor.code.spaces", "omniq_executor.code.versions")
# What stands in the pickles of arguments with classes and functions of the user's: their shell is looked into.
_OF_PAYLOADS: dict[str, Any] = {
    "load": lambda shell, *_: _Looker(io.BytesIO(shell)).load(),
    "checked_call": lambda call, _: _Looker(io.BytesIO(call)).load(),
    "class_of": lambda number: _stand_in(number.partition("/")[0].removeprefix("__main__.")),
    "global_of": lambda _, name: _stand_in(name),
}


def _of_file(stream: bytes | str, parts: list[bytearray | str], _: str) -> Any:
    """Return what stands for a value whose large parts are in files."""
    shown = [_stand_in(f"<{size_of(part)} bytes>") if isinstance(part, str) else part for part in parts]
    if isinstance(stream, str):
        return _stand_in(f"<a pickle of {size_of(stream)} bytes>")
    return _Looker(io.BytesIO(stream), buffers=shown).load()


def _stand_in(label: str) -> Any:
    return _Named("StandIn", (_StandIn,), {"label": label})
