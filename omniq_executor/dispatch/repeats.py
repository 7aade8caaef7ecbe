"""Calls that a run has had before: under other code, or they had failed.

It is told the calls in their order, one by one. The n-th call under new code is said to run since that changed, if the
older code had n such calls; a further one is a repetition, for which no code has changed. Likewise with what failed.
"""

from collections.abc import Callable

from ..model.reasons import Reason, Why
from ..model.task import Function

LOCAL = "<"  # in the path of what has no name of its own: lambdas and functions of functions may share one


class _Had:
    """What there was of calls that are equal but for the code of their function."""

    __slots__ = "code", "count", "failed", "left", "older"

    def __init__(self, code: Function) -> None:
        self.code = code
        self.count = 0  # of calls under this code, ...
        self.older = b""  # ... and the digest of the code before it, ...
        self.left = 0  # ... which had so many more calls
        self.failed: dict[bytes, list[int]] | None = None  # by digest, when calls failed that were not made again


class Repeats:
    """See the module's docstring."""

    def __init__(self, function: Callable[[bytes], Function], changed: Callable[[bytes, bytes], str]) -> None:
        """`function` gives the function of a digest, and `changed` in words what changed from the one to the other."""
        self._function = function
        self._changed = changed
        self._had: dict[tuple[str | bytes, str | bytes], _Had] = {}

    def add(
        self, digest: bytes, likeness: str | bytes, at: float, failed_at: int | None = None, is_new: bool = True
    ) -> Why | None:
        """Take in the next call, and return why it was run if the run has had it before.

        It was added at that time and may have failed. If it is not new, it is one that the run has taken over.
        """
        function = self._function(digest)
        key = digest if LOCAL in function.path else function.path, likeness
        had = self._had.get(key)
        if had is None:
            had = self._had[key] = _Had(function)
        elif not _is_same(had.code, function):
            had.older, had.left, had.count, had.code = had.code.digest, had.count, 0, function
        had.count += 1
        why = self._why(had, digest, at) if is_new and (had.left or had.failed) else None
        if failed_at is not None:
            had.failed = had.failed or {}
            had.failed.setdefault(digest, []).append(failed_at)
        return why

    def _why(self, had: _Had, digest: bytes, at: float) -> Why | None:
        if had.left:
            had.left -= 1
            return Why(Reason.CODE, self._changed(had.older, digest))
        failed = (had.failed or {}).get(digest, [])
        before = next((it for it in failed if it < at), None)
        if before is None:
            return None
        failed.remove(before)
        return Why(Reason.AGAIN)


def _is_same(one: Function, other: Function) -> bool:
    """Return whether two functions of a path have the same code, though they may be bound to different things."""
    return one.digest == other.digest or (one.parts == other.parts != "")
