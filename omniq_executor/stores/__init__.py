"""Where tasks are kept."""

import os

from ..config import Settings, parse_address
from .base import Store
from .glances import Glance, Wanted, patiently


def open_store(
    address: str | os.PathLike[str] | Settings | None = None,
    *,
    create: bool = True,
    durability: str = "process",
    importing: bool = False,
) -> Store:
    """Open the store at an address (see config.parse_address), to look at it or to work on it.

    Without one it is the store that Settings.from_env() says, by default omniq_data/omniq.db.

    `create=False` refuses, with StoreError, to make one that is not there; `importing` takes also one that a
    migration has not finished. Raises StoreError where
    it cannot be opened, StoreVersionError where a newer version has written it, and SettingsError where
    the environment says nonsense.

    >>> results = list(executor.map(abs, [-1, -2]))
    >>> [task.result for task in open_store().find(Status.COMPLETED)]
    ['1', '2']
    """
    backend, path = parse_address(address)
    if backend == "sqlite":
        from .sqlite.store import SQLiteStore

        return SQLiteStore(path, create=create, durability=durability, importing=importing)  # type: ignore[arg-type]  # checked there
    from .file.store import FileStore

    return FileStore(path, create=create, durability=durability, importing=importing)  # type: ignore[arg-type]


def glance(address: str, wanted: Wanted) -> Glance:
    """Return what a look into a store finds that waits for nobody, see glances.py. Raises StoreError."""
    backend, path = parse_address(address)
    if backend == "sqlite":
        from .sqlite.glance import look
    else:
        from .file.glance import look
    return patiently(address, lambda: look(path.absolute(), wanted))
