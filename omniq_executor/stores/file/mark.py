"""What says that a folder is a store, of which version, and whether it may be used: the file `omniq.json`."""

import contextlib
import os
import stat
from pathlib import Path
from typing import Any

from ...errors import StoreError, StoreVersionError
from ...model import codec, schema
from .. import permissions

FORMAT = "omniq-executor file store"
VERSION = schema.VERSION - 2  # the first has what the tables of SQLite have since their second; the last is only theirs
MARK = "omniq.json"
ORDER = "order"
LOCK = "turn.lock"
JOURNAL = "journal"


def prepare(path: Path, create: bool) -> None:
    """Make the folder, or see that it is one of ours; nothing is put in one that is not."""
    if not create and not (path / MARK).exists():
        raise StoreError(f"there is no store at {path}")
    permissions.check_place(path.parent)
    with permissions.explained(f"the store {path} cannot be created"):
        permissions.make_folders(path)
        for part in (path, *(path / name for name in (MARK, LOCK, JOURNAL, ORDER))):
            permissions.check_private(part)
        if not stat.S_ISDIR(path.stat().st_mode):
            raise StoreError(f"{path} is not a folder; give a name that ends in .db, or the path of a folder")
        if not (path / MARK).exists():
            others = [n for n in os.listdir(path) if n not in (LOCK, MARK) and not n.startswith("omniq.db")]
            if others and not (path / MARK).exists():  # again: another process may have made it meanwhile
                raise StoreError(f"{path} holds other files, {others[0]!r} for one; give the store a folder of its own")


def read_mark(path: Path, importing: bool) -> dict[str, Any]:
    """Return what it says, of this version or an older one; who finds none writes it.

    Raises StoreError if the folder is no store that may be used; while a migration into it is under way, by nobody
    but who is `importing`. It is called under the store's lock.
    """
    mark = path / MARK
    text = mark.read_bytes() if mark.exists() else b""
    if text.strip():
        return _checked(path, text, importing)
    # First of all: a folder that holds it is ours, however far the making of it came.
    fd = os.open(mark, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW, 0o600)
    with open(fd, "w") as file:
        permissions.have_mode(fd)
        file.write(f'{{"format": "{FORMAT}", "version": {VERSION}}}\n')
    return {"format": FORMAT, "version": VERSION}


def _checked(path: Path, text: bytes, importing: bool) -> dict[str, Any]:
    content = None
    with contextlib.suppress(ValueError):
        content = codec.decode(text.decode())
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise StoreError(f"{path / MARK} is not of a store; give the store a folder of its own")
    if content.get("version", 0) > VERSION:
        raise StoreVersionError(
            f"{path} has version {content['version']}, and this omniq_executor reads up to {VERSION}:"
            " install a newer one, or use another store"
        )
    if not importing and "migrating" in content:
        source = content["migrating"]
        raise StoreError(f"{path} holds a part of {source} only: run `omniq-executor migrate {source} {path}` again")
    return content
