"""Where tasks are kept."""

import os

from ..config import parse_address
from .base import Store


def open_store(
    address: str | os.PathLike[str] | None = None, *, create: bool = True, durability: str = "process"
) -> Store:
    """Open the store at an address (see config.parse_address), to look at it or to work on it.

    `create=False` refuses, with StoreError, to make one that is not there. Raises StoreError where
    it cannot be opened, and StoreVersionError where a newer version has written it.
    """
    backend, path = parse_address(address)
    if backend == "sqlite":
        from .sqlite import SQLiteStore

        return SQLiteStore(path, create=create, durability=durability)  # type: ignore[arg-type]  # checked there
    from .file import FileStore

    return FileStore(path, create=create, durability=durability)  # type: ignore[arg-type]
