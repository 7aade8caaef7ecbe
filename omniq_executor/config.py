"""Settings: where the store is when nobody says, and what holds of a call that says nothing else.

They come from the environment:

    OMNIQ_BACKEND      sqlite (default), or file
    OMNIQ_BASE_DIR     the folder of the data: omniq_data by default
    OMNIQ_MAX_RETRIES  how often a call that failed is tried again: 0 by default
    OMNIQ_TIMEOUT      how long a call may run: 90, or 1.5h; by default for ever
    OMNIQ_RESULT_TTL   how long the results of a run are kept after its clean end: 7d by default; never for no end

Executors go by the last three, for calls whose options, and runs whose executors, say nothing else; and
`omniq-executor purge` by the last one, if it is set.
"""

import contextlib
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from .errors import SettingsError, StoreError

RESULT_TTL_S = 7 * 86400.0
DATABASE = "omniq.db"  # in base_dir
_SQLITE_ENDINGS = (".db", ".sqlite", ".sqlite3")


class Address(NamedTuple):
    """What an address says."""

    backend: str  # "sqlite" or "file"
    path: Path


_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def parse_duration(text: str) -> float:
    """Return the seconds of a text such as 90, 1.5h or 7d. Raises ValueError for any other."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw]?)", text, re.ASCII)
    if found is None:
        raise ValueError(f"{text!r} is not a time: give seconds, or a number and one of the units s, m, h, d and w")
    return float(found[1]) * _UNITS_S[found[2]]


class _Rule(NamedTuple):
    """What a setting can be."""

    said: str
    holds: Callable[[Any], bool]
    parse: Callable[[str], Any] = str


def _is_path(value: Any) -> bool:
    return isinstance(value, str | os.PathLike) and isinstance(os.fspath(value), str) and bool(os.fspath(value))


def _is_time(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and 0 < value < math.inf)


_TIME = "a time above 0: seconds, or a number with one of the units s, m, h, d and w, such as"
_RULES = {
    "backend": _Rule("'sqlite' or 'file'", lambda value: isinstance(value, str) and value in ("sqlite", "file")),
    "base_dir": _Rule("the path of a folder", _is_path),
    "max_retries": _Rule(
        "a whole number from 0 to 2147483647", lambda value: type(value) is int and 0 <= value < 1 << 31, int
    ),
    "timeout": _Rule(f"{_TIME} 15m", _is_time, parse_duration),
    "result_ttl": _Rule(
        f"{_TIME} 7d; or never", _is_time, lambda text: None if text == "never" else parse_duration(text)
    ),
}


class _Settings(NamedTuple):
    backend: Literal["sqlite", "file"]
    base_dir: Path
    max_retries: int
    timeout: float | None
    result_ttl: float | None


class Settings(_Settings):
    """Where the store is, and what holds of calls that say nothing else. Times are in seconds.

    With the backend "sqlite" the store is the file omniq.db in `base_dir`, with "file" it is `base_dir`
    itself. A relative `base_dir` is looked for in the folder that is current when the store is opened.
    `result_ttl` is the executor's, None for ever. Raises SettingsError for a value that makes no sense.
    """

    __slots__ = ()

    def __new__(
        cls,
        backend: Literal["sqlite", "file"] = "sqlite",
        base_dir: str | os.PathLike[str] = "omniq_data",
        max_retries: int = 0,
        timeout: float | None = None,
        result_ttl: float | None = RESULT_TTL_S,
    ) -> "Settings":
        """See the class."""
        given = backend, base_dir, max_retries, timeout, result_ttl
        for (name, rule), value in zip(_RULES.items(), given, strict=True):
            if not rule.holds(value):
                raise SettingsError(f"the setting {name} is {value!r}, and can be {rule.said}")
        return super().__new__(cls, backend, Path(base_dir), max_retries, timeout, result_ttl)

    @classmethod
    def from_env(cls) -> "Settings":
        """Return the settings that the variables OMNIQ_* give; what they leave out is as by default.

        >>> Settings.from_env().backend
        'sqlite'
        """
        given: dict[str, Any] = {}
        for name, rule in _RULES.items():
            variable = f"OMNIQ_{name.upper()}"
            text = os.environ.get(variable)
            if text is not None:
                with contextlib.suppress(ValueError):
                    given[name] = rule.parse(text)
                if name not in given or not rule.holds(given[name]):
                    raise SettingsError(f"the variable {variable} is {text!r}, and can be {rule.said}; or unset it")
        return cls(**given)

    @property
    def address(self) -> Address:
        """The address of the store."""
        return Address(self.backend, self.base_dir / DATABASE if self.backend == "sqlite" else self.base_dir)


def parse_address(address: str | os.PathLike[str] | Settings | None) -> Address:
    """Return the backend and path that an address names; None is what Settings.from_env() says.

    `x.db`, `x.sqlite`, `x.sqlite3` and `sqlite:///x` are SQLite; `file:///x` and any other path are a
    folder. `sqlite:///x` is relative to the current folder and `sqlite:////x` absolute, as usual for
    such addresses. Raises StoreError for a scheme that is neither, and for a database in memory.
    """
    if address is None or isinstance(address, Settings):
        return (address or Settings.from_env()).address
    text = os.fspath(address) if isinstance(address, os.PathLike) else address
    if not isinstance(text, str):
        raise TypeError(f"the address of a store is a text or a path, not {address!r}")
    if text.endswith(":memory:"):
        raise StoreError(f"{text!r} is in memory, and a store outlives its process: give a path such as runs/etl.db")
    scheme, separator, rest = text.partition("://")
    word = text.partition(":/")[0]
    if separator or (word != text and len(word) > 1 and word.isalnum()):  # `word:/` is hardly a folder; C:/ is
        if scheme in ("sqlite", "file") and len(rest) > 1 and rest.startswith("/"):
            return Address(scheme, Path(rest[1:] if scheme == "sqlite" else rest))
        raise StoreError(
            f"{text!r} is not the address of a store: give a path such as runs/etl.db, sqlite:///runs/etl.db or"
            " file:///runs/etl"
        )
    if not text:
        raise StoreError("the address of the store is empty: give a path such as runs/etl.db")
    return Address("sqlite" if text.lower().endswith(_SQLITE_ENDINGS) else "file", Path(text))
