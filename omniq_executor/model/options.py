"""What the options of a call mean: which are accepted, when it is tried again, when it recurs."""

import datetime
import logging
import math
import pickle
import random
from collections.abc import Iterable
from typing import Any, NamedTuple, cast

from ..errors import CodeChanged, DependencyFailed, NotImportable
from . import codec
from .checks import Backoff, RetryOn, check_whole, seconds
from .task import ErrorInfo, Options

_MICROS = 1_000_000
LONGEST_BACKOFF_S = 60.0
MEMO = "memo:"  # begins the keys of calls with memo=True; in options, it stands for the key of each
JITTER = 0.25  # of a delay, so that what failed together does not come again together
_log = logging.getLogger("omniq_executor")


class CallOptions(NamedTuple):
    """The options of calls, as they are stored with each."""

    key: str | None = None
    priority: int = 0
    eta: int = 0
    options: Options | None = None

    def after(self, ids: tuple[int, ...]) -> "CallOptions":
        """Return the options of a call that is given the results of these tasks."""
        return self._replace(options=(self.options or Options())._replace(after=ids))

    @property
    def names_one(self) -> bool:
        """Whether its key names one call."""
        return self.key is not None and self.key != MEMO

    @property
    def is_usual(self) -> bool:
        """Whether a call with it is stored like any other; a key changes only whether it is stored."""
        return not self.priority and not self.eta and self.options is None


def make_options(
    now: int,
    *,
    key: str | None,
    max_retries: int,
    backoff: Backoff | None,
    retry_on: RetryOn,
    timeout: datetime.timedelta | float | None,
    priority: int,
    eta: datetime.datetime | datetime.timedelta | float | None,
    interval: datetime.timedelta | float | None,
    tags: Iterable[str],
    memo: bool = False,
) -> CallOptions:
    """Return the CallOptions that options make.

    Raises TypeError or ValueError that names the one that makes no sense.
    """
    if key is not None and (not isinstance(key, str) or not key):  # type: ignore[redundant-expr]  # callers may be untyped
        raise ValueError(f"key is a non-empty text, not {key!r}")
    if key is not None and key.startswith(MEMO):
        raise ValueError(f"key {key!r} begins as those of calls with memo=True do: give it another beginning")
    if not isinstance(memo, bool):
        raise TypeError(f"memo is True or False, not {memo!r}")
    if memo and (key is not None or interval is not None):
        raise ValueError("memo=True names a call by its arguments, and runs it once: it goes with no key or interval")
    check_whole("max_retries", max_retries, 0)
    check_whole("priority", priority, -(1 << 31))
    given = (tags,) if isinstance(tags, str) else tuple(tags)
    if isinstance(tags, str) or not all(isinstance(tag, str) for tag in given):
        raise TypeError(f"tags are several texts, not {tags!r}")
    micros = None if interval is None else round(seconds("interval", interval) * _MICROS)
    if micros is not None and micros <= 0:
        raise ValueError(f"interval must be greater than 0, not {interval!r}")
    limit_s = None if timeout is None or timeout == math.inf else seconds("timeout", timeout)
    if limit_s is not None and limit_s <= 0:
        raise ValueError(f"timeout must be greater than 0, not {timeout!r}")
    policy = _policy(backoff, retry_on)
    options = Options(max_retries, timeout=limit_s, interval=micros, tags=given, policy=policy if max_retries else None)
    return CallOptions(MEMO if memo else key, priority, _due(eta, now), None if options == Options() else options)


def retry_at(options: Options, error: ErrorInfo, now: int) -> int | None:
    """When a call that raised is tried again, or None if it is not."""
    if options.retries >= options.max_retries:
        return None
    retry = options.retries + 1
    try:
        backoff, retry_on = (None, Exception) if options.policy is None else pickle.loads(options.policy)
        if not _is_among(error, retry_on):
            return None
        if backoff is None:
            delay_s = backoff_s(retry, random.random())
        else:
            given: Any = backoff
            delay_s = float(cast(Any, given(retry)) if callable(given) else given)
        if not 0 <= delay_s < math.inf:
            raise ValueError(f"{delay_s} is no number of seconds to wait")
    except Exception:  # noqa: BLE001 - both are the user's, and so is what unpickling them runs
        _log.exception("backoff or retry_on of a call raised, so the call is not tried again")
        return None
    return now + round(delay_s * _MICROS)


def _is_among(error: ErrorInfo, kinds: RetryOn) -> bool:
    """Whether an error is one after which a call is tried again. One that was never called is not."""
    try:
        raised = pickle.loads(error.pickle or b"")
    except Exception:  # noqa: BLE001 - what cannot be rebuilt is some exception of the call's all the same
        raised = Exception()
    return isinstance(raised, kinds) and not isinstance(raised, NotImportable | CodeChanged | DependencyFailed)


def _policy(backoff: Backoff | None, retry_on: RetryOn) -> bytes | None:
    """What is stored of them, or None where both are the usual ones."""
    kinds = retry_on if isinstance(retry_on, tuple) else (retry_on,)
    if not kinds or not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds):  # type: ignore[redundant-expr]
        raise TypeError(f"retry_on is a class of exceptions, or several in a tuple, not {retry_on!r}")
    if backoff is not None and not callable(backoff) and seconds("backoff", backoff) < 0:
        raise ValueError(f"backoff is at least 0 seconds, not {backoff!r}")
    if backoff is None and retry_on is Exception:
        return None
    stored = codec.encode((backoff, retry_on))
    assert isinstance(stored, bytes)  # a tuple is no JSON
    return stored


def _due(eta: datetime.datetime | datetime.timedelta | float | None, now: int) -> int:
    if eta is None:
        return 0
    if isinstance(eta, datetime.datetime):
        if eta.tzinfo is None:
            raise ValueError(f"eta {eta!r} does not say in which time zone it is: give one, such as datetime.UTC")
        return max(round(eta.timestamp() * _MICROS), 0)
    return max(now + round(seconds("eta", eta) * _MICROS), 0)


def backoff_s(retry: int, chance: float) -> float:
    """Seconds before the `retry`-th retry, counted from 1: doubled each time. `chance` is from 0 to 1."""
    delay_s = min(2.0 ** min(retry - 1, 32), LONGEST_BACKOFF_S)
    return delay_s * (1 + JITTER * (2 * chance - 1))


def next_occurrence(eta: int, interval: int, now: int) -> int:
    """When a task that was due at `eta` is due again: the first time of its schedule after `now`.

    It stays on its schedule however late it ran; times that are over already are left out.
    """
    return eta + interval * max((now - eta) // interval + 1, 1)
