"""Why calls run, or need not, in a run that continues others; and what is counted by these reasons."""

import enum
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..display.words import escape
from .task import Status


class Reason(enum.Enum):
    """Why a call runs, or need not; the value says so of several."""

    RESULT = "taken over: their results were there"
    OLDER = "taken over though their code changed"
    UNFINISHED = "taken over unfinished"
    FAILED = "run again, since they had failed"
    CANCELLED = "run again, since they had been cancelled"
    AGAIN = "run again, since they had failed in this run"
    CODE = "run, since code changed"
    ARGUMENTS = "run, for new arguments"
    FUNCTION = "run: no call of their function is left of earlier runs"
    CONTEXT = "run, since the context changed"
    AFRESH = "run afresh"
    EQUAL = "not run for themselves: equal calls were there"
    KEY = "of a key that was there"
    REFUSED = "not run: they cannot be stored"


REUSED = (
    Reason.RESULT,
    Reason.OLDER,
    Reason.UNFINISHED,
    Reason.FAILED,
    Reason.CANCELLED,
)  # a task of an earlier run is taken over
_NOT_RUN = (*REUSED, Reason.EQUAL, Reason.KEY, Reason.REFUSED)
_SENTENCES = {
    Reason.RESULT: "taken over: its result was there",
    Reason.OLDER: "taken over though {}",
    Reason.UNFINISHED: "taken over unfinished: no earlier run has come to its end",
    Reason.FAILED: "run again, since it had failed",
    Reason.CANCELLED: "run again, since it had been cancelled",
    Reason.AGAIN: "run again, since it had failed in this run",
    Reason.CODE: "run, since {}",
    Reason.ARGUMENTS: "run, since no earlier call of its function with equal arguments is left to be taken over",
    Reason.FUNCTION: "run, since no call of its function is left of earlier runs: it is new, or they were forgotten",
    Reason.CONTEXT: "run, since {} changed, so that no earlier call is the same",
    Reason.AFRESH: "run, since no earlier run is continued: {}",
    Reason.EQUAL: "not run for itself: an equal call was there already",
    Reason.KEY: "it is the task of its key, which was there already",
    Reason.REFUSED: "not run: {}",
}


class Why(NamedTuple):
    """The reason of one call, with what it is about."""

    reason: Reason
    what: str = ""

    def __str__(self) -> str:
        return _SENTENCES[self.reason].format(self.what)


_TAKEN_OVER = {
    Status.COMPLETED: Why(Reason.RESULT),
    Status.FAILED: Why(Reason.FAILED),
    Status.CANCELLED: Why(Reason.CANCELLED),
}
_UNFINISHED = Why(Reason.UNFINISHED)


def taken_over(status: Status) -> Why:
    """Return why a task was taken over, by how it stood before."""
    return _TAKEN_OVER.get(status, _UNFINISHED)


class Counts:
    """How many calls of which functions have which reason. `str()` is a text, and a notebook shows a table."""

    def __init__(self) -> None:
        self.by_function: dict[str, Counter[Reason]] = {}
        """By the path of a function, how many of its calls have which reason."""
        self.changes: dict[str, dict[Reason, str]] = {}
        """By the path of a function, what its reasons are about, such as what has changed."""

    @property
    def counts(self) -> Mapping[Reason, int]:
        """How many calls have which reason, in the order of the reasons."""
        total: Counter[Reason] = Counter()
        for counts in self.by_function.values():
            total += counts
        return {reason: total[reason] for reason in Reason if total[reason]}

    @property
    def reused(self) -> int:
        """How many calls are taken over from earlier runs, whatever is left to do of them."""
        return sum(count for reason, count in self.counts.items() if reason in REUSED)

    def add(self, path: str, why: Why, count: int = 1) -> None:
        """Count calls of a function."""
        counts = self.by_function.get(path)
        if counts is None:
            counts = self.by_function[path] = Counter()
        counts[why.reason] += count
        if why.what:
            self.changes.setdefault(path, {})[why.reason] = why.what

    def to_dict(self) -> dict[str, object]:
        """Return it as plain data; reasons are in small letters."""
        return {
            "counts": {reason.name.lower(): count for reason, count in self.counts.items()},
            "functions": {
                path: {
                    "counts": {reason.name.lower(): counts[reason] for reason in Reason if counts[reason]},
                    "why": {reason.name.lower(): what for reason, what in self.changes.get(path, {}).items()},
                }
                for path, counts in sorted(self.by_function.items())
            },
        }

    def rows(self) -> list[tuple[str, int, str, str]]:
        """Return for each function and reason: the function, how many calls, the reason, and what it is about."""
        return [
            (path, counts[reason], reason.value, self.changes.get(path, {}).get(reason, ""))
            for path, counts in sorted(self.by_function.items())
            for reason in Reason
            if counts[reason]
        ]

    def sentence(self) -> str:
        """Return it as one line."""
        parts = []
        for reason, count in self.counts.items():
            about = "; ".join(f"{path}: {it[reason]}" for path, it in sorted(self.changes.items()) if reason in it)
            parts.append(f"{count} {reason.value}" + (f" ({about})" if about else ""))
        return ", ".join(parts) or "no calls"

    def _heading(self) -> str:
        return calls(sum(self.counts.values()))

    def __str__(self) -> str:
        lines = [self._heading()]
        width = max((len(str(count)) for count in self.counts.values()), default=0)
        for reason, count in self.counts.items():
            lines.append(f"  {count:>{width}} {reason.value}")
            lines += [
                f"  {'':>{width}}   {path}: {said[reason]}"
                for path, said in sorted(self.changes.items())
                if reason in said
            ]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.sentence()}>"

    def _repr_html_(self) -> str:
        """Return a table without colours of its own, so it is legible on dark and on light."""
        cell = 'style="text-align: left; padding: 0.1em 0.8em; border-bottom: 1px solid currentColor"'
        heads = "".join(f"<th {cell}>{head}</th>" for head in ("function", "calls", "why", "what"))
        rows = "".join(
            f"<tr>{''.join(f'<td {cell}>{escape(str(value))}</td>' for value in row)}</tr>" for row in self.rows()
        )
        return f"<p>{escape(self._heading())}</p><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"


class Resumed(Counts):
    """What a run has taken over of those that it continues, and what it has run and why.

    >>> print(executor.resumed)
    run 1 of queue 'examples': its calls are run, since no earlier run is continued: it is the first of its queue
    """

    def __init__(self, queue: str, run: int, continues: tuple[int, ...], total: int) -> None:
        super().__init__()
        self.queue = queue
        self.run = run
        self.continues = continues
        """The runs whose calls it takes over."""
        self.fresh: Why | None = None
        """Why it continues none, if it does not."""
        self.again = 0
        """How many tasks of those runs were found by their keys, so that they are no one run's."""
        self._total = total

    def continue_own(self, continues: tuple[int, ...], total: int) -> None:
        """Take note that the run continues these from now on, with itself, of which it can take over so many calls."""
        self.continues = continues
        self._total = self.reused + total

    def count_as(self, stored: "Resumed") -> None:
        """Have calls that were run be counted as the store tells of the same run, if it tells more than this."""
        if self.fresh is not None and not stored.counts.keys() & {Reason.CODE, Reason.AGAIN, Reason.ARGUMENTS}:
            return
        for path, counts in self.by_function.items():
            for reason in [reason for reason in counts if reason not in _NOT_RUN]:
                del counts[reason]
                self.changes.get(path, {}).pop(reason, None)
        for path, counts in stored.by_function.items():
            for reason in [reason for reason in counts if reason not in _NOT_RUN]:
                why = Why(reason, stored.changes.get(path, {}).get(reason, ""))
                if self.fresh is not None and reason in (Reason.AFRESH, Reason.CONTEXT):
                    why = self.fresh
                self.add(path, why, counts[reason])

    @property
    def left_alone(self) -> int:
        """How many calls of the runs that it continues were not submitted again so far."""
        return max(self._total - self.reused - self.again, 0)

    def to_dict(self) -> dict[str, object]:
        """Return it as plain data; reasons are in small letters."""
        about = {"queue": self.queue, "run": self.run, "continues": list(self.continues), "left_alone": self.left_alone}
        return {**about, "fresh": self.fresh and str(self.fresh), **super().to_dict()}

    def sentence(self) -> str:
        """Return it as one line."""
        if self.fresh is not None and not self.by_function:
            return self._heading()
        return super().sentence() + (f", {self.left_alone} left alone" if self.left_alone else "")

    def _heading(self) -> str:
        of = f"run {self.run} of queue {self.queue!r}"
        if self.fresh is not None and self.by_function:
            return f"{of}, which continues none: {super()._heading()}"
        if self.fresh is not None:
            return f"{of}: its calls are {self.fresh}"
        others = [run for run in self.continues if run != self.run]
        if not others:
            return f"{of}, a cell of which is run again: {super()._heading()}"
        runs = runs_text(others)
        left = f"; {calls(self.left_alone)} of {runs} left alone" if self.left_alone else ""
        return f"{of}, which continues {runs}: {super()._heading()}{left}"


class Preview(Counts):
    """What a map would run, and why; see PersistentExecutor.preview(). Items have the places of the map's.

    >>> preview = executor.preview(abs, [-1, -2])
    >>> preview.runs, preview.why(0)
    (2, 'run, since no earlier run is continued: it is the first of its queue')
    """

    def __init__(self) -> None:
        super().__init__()
        self.reasons: list[Why] = []
        """Of each item."""

    def note(self, path: str, why: Why) -> None:
        """Count the next item."""
        self.reasons.append(why)
        self.add(path, why)

    def __len__(self) -> int:
        return len(self.reasons)

    @property
    def runs(self) -> int:
        """How many of the calls would be run, those that are under way elsewhere among them."""
        at_rest = Reason.RESULT, Reason.OLDER, Reason.EQUAL, Reason.REFUSED
        return len(self) - sum(self.counts.get(reason, 0) for reason in at_rest)

    def why(self, item: int) -> str:
        """Return in a sentence what would become of one item."""
        return str(self.reasons[item])

    def _heading(self) -> str:
        return f"{super()._heading()}, of which {self.runs} would run"


def runs_text(runs: Sequence[int]) -> str:
    """Return which runs, in words."""
    return f"{'run' if len(runs) == 1 else 'runs'} {', '.join(map(str, runs))}"


def calls(count: int) -> str:
    """Return so many calls, in words."""
    return "1 call" if count == 1 else f"{count} calls"
