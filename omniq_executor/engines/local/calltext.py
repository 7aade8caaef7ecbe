"""A failed call as a short text, `parse('a.csv', 3, strict=True)`, for the note on its exception.

What Python itself defines is written here, bounded in depth and length. Anything else is asked for its
`repr()`, which is code of somebody else's: it may raise, make megabytes of text, or never come back. So
that runs in a thread which is waited for only shortly, and after one that has not come back in time none
is started again.
"""

import functools
import itertools
import threading
from collections.abc import Mapping, Sequence
from typing import Any

WAIT_S = 0.2
_MOST = 200  # characters of the whole text
_MOST_STRING = 60  # of one value
_MOST_ITEMS = 5  # of one container
_MOST_DEPTH = 3
_MOST_BITS = 200  # of an int, which takes long to write if it is large
_SHORT = frozenset({bool, float, complex, type(None), type(...), range, slice})
_TEXTS = frozenset({str, bytes, bytearray})
_BRACKETS: dict[type, tuple[str, str]] = {
    list: ("[", "]"), tuple: ("(", ")"), set: ("{", "}"), frozenset: ("{", "}"), dict: ("{", "}"),
}  # fmt: skip


class CallText:
    """Writes calls as text."""

    def __init__(self) -> None:
        self._trusts = True  # that a repr() comes back

    def of(self, function: Any, args: Sequence[Any] | None, kwargs: Mapping[str, Any]) -> str:
        """The text of a call; the arguments are None where they are not known."""
        while type(function) is functools.partial and args is not None:
            args, kwargs = (*function.args, *args), {**function.keywords, **kwargs}
            function = function.func
        name = getattr(function, "__qualname__", None) or f"{type(function).__qualname__}.__call__"
        if args is None:
            return f"{_cut(name, _MOST - 5)}(...)"
        texts: dict[int, str] = {}
        foreign: list[Any] = []
        # Twice: to find who is to be asked, and with what they have said.
        self._join(args, kwargs, texts, foreign)
        if foreign and self._trusts:
            asking = threading.Thread(target=_ask, args=(foreign, texts), name="omniq-repr", daemon=True)
            asking.start()
            asking.join(WAIT_S)
            self._trusts = not asking.is_alive()
        return f"{_cut(name, _MOST // 2)}({_cut(self._join(args, kwargs, texts, []), _MOST // 2)})"

    def _join(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], texts: Mapping[int, str], foreign: list[Any]
    ) -> str:
        shown = [_text(value, 0, texts, foreign) for value in itertools.islice(args, _MOST // 2)]
        named = itertools.islice(kwargs.items(), _MOST // 2)
        return ", ".join([*shown, *(f"{name}={_text(value, 0, texts, foreign)}" for name, value in named)])


def _ask(values: Sequence[Any], texts: dict[int, str]) -> None:
    for value in values:
        try:
            texts[id(value)] = _cut(repr(value), _MOST_STRING)
        except BaseException as error:  # noqa: BLE001 - whatever it raises, it is another's, and nobody waits for it
            texts[id(value)] = f"<{type(value).__qualname__}: its __repr__ raised {type(error).__qualname__}>"


def _text(value: Any, depth: int, texts: Mapping[int, str], foreign: list[Any]) -> str:
    """A value as text; those that are to be asked for theirs, and have not said it, are added to `foreign`."""
    kind = type(value)
    if kind in _TEXTS:
        return repr(value) if len(value) <= _MOST_STRING else f"{value[: _MOST_STRING - 3]!r}..."
    if kind is int:
        return repr(value) if value.bit_length() <= _MOST_BITS else f"<int of {value.bit_length()} bits>"
    if kind in _SHORT:
        return repr(value)
    if kind in _BRACKETS:
        return _items(value, depth, texts, foreign)
    if id(value) in texts:
        return texts[id(value)]
    foreign.append(value)
    return f"<{_cut(kind.__qualname__, _MOST_STRING)}>"


def _items(value: Any, depth: int, texts: Mapping[int, str], foreign: list[Any]) -> str:
    opening, closing = _BRACKETS[type(value)]
    if not value:
        return "set()" if type(value) is set else f"{opening}{closing}"
    if depth == _MOST_DEPTH:
        return f"{opening}...{closing}"
    shown = [_text(item, depth + 1, texts, foreign) for item in itertools.islice(value, _MOST_ITEMS)]
    if type(value) is dict:
        held = itertools.islice(value.values(), _MOST_ITEMS)
        shown = [f"{name}: {_text(item, depth + 1, texts, foreign)}" for name, item in zip(shown, held, strict=True)]
    if len(value) > _MOST_ITEMS:
        shown.append("...")
    elif type(value) is tuple and len(value) == 1:
        closing = ",)"
    return f"{opening}{', '.join(shown)}{closing}"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
