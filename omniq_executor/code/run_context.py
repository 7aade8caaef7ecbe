"""What a call depends on without naming it: who is to continue a run must have the same."""

import os
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from . import digest as keys, versions


def context_of(initializer: Callable[..., object] | None, initargs: Sequence[Any], store: Path) -> str:
    """Return a text that is the same in every run with the same initializer, its arguments, and the same folder.

    The current folder counts by its way from the store, so that a project that is moved with its store is the
    same one. An argument that has no stable form, such as a lock, does not count.
    """
    try:
        folder = os.path.relpath(os.getcwd(), store.parent)
    except OSError:  # it is not there any more
        folder = ""
    said = [keys.value_digest([folder]).hex()]
    if initializer is not None:
        version = versions.check_of(initializer)  # as of a function that is submitted: helpers count, too
        digests = [keys.digest_and_named(value, versions.code_of)[0] for value in (initializer, *initargs)]
        code: Any = digests[0] or getattr(initializer, "__qualname__", "")
        code = code, None if version is None else version.identity
        said += [keys.value_digest(code).hex(), keys.value_digest(digests[1:]).hex()]
    return ".".join(said)


def context_changes(before: str, after: str) -> str:
    """Return in words what differs between two contexts."""
    parts = zip_longest(("the folder", "the initializer", "its arguments"), before.split("."), after.split("."))
    changed = [what for what, old, new in parts if old != new]
    if "the initializer" not in changed:
        changed = [what.replace("its", "the initializer's") for what in changed]
    return " and ".join(changed)
