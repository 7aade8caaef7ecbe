"""Where a store is, when nobody says."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from .errors import StoreError

DEFAULT_ADDRESS = "omniq_data/omniq.db"
_SQLITE_ENDINGS = (".db", ".sqlite", ".sqlite3")


class Address(NamedTuple):
    """What an address says."""

    backend: str  # "sqlite" or "file"
    path: Path


def _path_text(address: Any) -> str:
    text = os.fspath(address) if isinstance(address, os.PathLike) else address
    if not isinstance(text, str):
        raise TypeError(f"the address of a store is a text or a path, not {address!r}")
    return text


def parse_address(address: str | os.PathLike[str] | None) -> Address:
    """The backend and path that an address names; None is `omniq_data/omniq.db` in the current folder.

    `x.db`, `x.sqlite`, `x.sqlite3` and `sqlite:///x` are SQLite; `file:///x` and any other path are a
    folder. `sqlite:///x` is relative to the current folder and `sqlite:////x` absolute, as usual for
    such addresses. Raises StoreError for a scheme that is neither.
    """
    text = DEFAULT_ADDRESS if address is None else address if isinstance(address, str) else _path_text(address)
    scheme, separator, rest = text.partition("://")
    if separator or _is_scheme(text.partition(":/")[0], text):
        if scheme in ("sqlite", "file") and len(rest) > 1 and rest.startswith("/"):
            return Address(scheme, Path(rest[1:] if scheme == "sqlite" else rest))
        raise StoreError(
            f"{text!r} is not the address of a store: give a path such as runs/etl.db, sqlite:///runs/etl.db or"
            " file:///runs/etl"
        )
    if not text:
        raise StoreError("the address of the store is empty: give a path such as runs/etl.db")
    return Address("sqlite" if text.endswith(_SQLITE_ENDINGS) else "file", Path(text))


def _is_scheme(word: str, text: str) -> bool:
    """Whether a text begins as `word:/`, which is hardly meant as a folder; C:/ is."""
    return word != text and len(word) > 1 and word.isalnum()
