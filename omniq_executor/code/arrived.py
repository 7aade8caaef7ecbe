"""What has arrived in a space of a worker, under which names, and as which version: see spaces.py."""

import enum
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

GONE = b"gone"
"""The token of what has arrived once, and was removed since the script has it no more."""
AS_FORKED = b""
"""The token of what a worker has by a fork, before anything else arrives under that name."""


class Names:
    """The names of a module in a space, or the attributes of a class, and what last arrived under each."""

    def __init__(self, names: dict[str, Any], is_forked: bool) -> None:
        self.names = names
        self.is_forked = is_forked
        self.tokens: dict[str, bytes] = {}
        self.arrived: dict[str, Any] = {}
        self.kept: Container[str] = ()
        """Names that stay, whatever function is called: those that the initializer came with."""
        self.forked: dict[str, Any] = {}
        """What was there by a fork, where something else has arrived since."""

    def keep_forked(self, name: str) -> None:
        """Keep what a fork brought under a name, which is about to be replaced."""
        if self.is_forked and name not in self.tokens and name in self.names:
            self.forked.setdefault(name, self.names[name])

    def set(self, values: Mapping[str, tuple[bytes, Any]]) -> None:
        """Take in values that have arrived, as (token, value) each, or are gone."""
        for name in values:
            self.keep_forked(name)
        self._put({name: value for name, (token, value) in values.items() if token != GONE})
        for name, (token, value) in values.items():
            self.tokens[name] = token
            if token == GONE:
                self.arrived.pop(name, None)
                self._drop(name)
            else:
                self.arrived[name] = value

    def _put(self, values: dict[str, Any]) -> None:
        self.names.update(values)

    def _drop(self, name: str) -> None:
        """Remove a name, unless a call has."""
        self.names.pop(name, None)

    def hide(self, names: Iterable[str]) -> dict[str, tuple[bytes, Any]]:
        """Return what `set()` takes to remove those of the names that have arrived with other functions, as they came.

        A function that finds them by a text alone, as by eval(), might find what they were long ago.
        """
        missing = object()
        came = [name for name in names if self.names.get(name, missing) is self.arrived.get(name)]
        return self.remove([name for name in came if name not in self.kept])

    def remove(self, names: Iterable[str]) -> dict[str, tuple[bytes, Any]]:
        """Return what `set()` takes to remove those of the names that have arrived."""
        return {name: (GONE, None) for name in names if self.tokens.get(name, GONE) != GONE}


class Class(Names):
    """A class that travels by value, and its attributes."""

    def __init__(self, kind: Any, set_state: Any, is_forked: bool) -> None:
        super().__init__(vars(kind), is_forked)
        self.kind = kind
        self._set_state = set_state

    def _put(self, values: dict[str, Any]) -> None:
        self._set_state(self.kind, (values, {}))

    def _drop(self, name: str) -> None:
        with suppress(AttributeError):
            delattr(self.kind, name)

    def put_in_order(self, names: Collection[str]) -> bool:
        """Have the attributes be in this order that are not Python's own; return whether they were in another one."""
        if issubclass(self.kind, enum.Enum):  # whose members have an order of their own
            return False
        there = vars(self.kind)
        wanted = [name for name in names if name in there and name[:2] != "__"]
        if wanted == [name for name in there if name in names and name[:2] != "__"]:
            return False
        for name in wanted:
            value = there[name]
            type.__delattr__(self.kind, name)
            type.__setattr__(self.kind, name, value)
        return True

    def remove_others(self, names: Container[str]) -> dict[str, tuple[bytes, Any]]:
        """Return what `set()` takes to remove what has arrived, but for these."""
        return self.remove([name for name in self.tokens if name not in names])


class Record:
    """What a function came with."""

    def __init__(
        self,
        space: Any,
        epoch: int = -1,
        items: Sequence[tuple[Names, str, bytes, Any]] = (),
        absent: Sequence[tuple[Names, Sequence[str]]] = (),
        unnamed: Sequence[tuple[Names, Sequence[str]]] = (),
        classes: Sequence[tuple[Class, Collection[str]]] = (),
    ) -> None:
        self.space = space
        self.epoch = epoch  # of its space, when it was all in place
        self.items = items  # whose, name, token, value
        self.absent = absent  # whose, names that were not there
        self.unnamed = unnamed  # whose, names that are not to be found, if others brought them
        self.classes = classes  # with the names of all attributes that were there, in their order
