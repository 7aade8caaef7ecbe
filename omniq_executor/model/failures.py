"""What failed, in groups: by the type of the exception and the line that it came from. Pure, and reads text alone.

    Store.failures()  --one after the other-->  groups_of()  -->  Failures, a sequence of FailureGroup

The line is the innermost one of the user's own code in the stored traceback. Where there is none, as of a call of a
function of a library, it is the innermost of all; where nothing was called, as of a worker that died, the function
stands for it. Of each group one failure is kept whole, of the others the id: so much memory they take.
"""

import os
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, overload

from ..display import words
from ..display.words import escape
from ..hashes import blake2b
from .schema import ErrorInfo, format_id, iso
from .task import FailedCall

_SHOWN = 160  # characters of a message, in a list
_MOST_SHOWN = 6000  # characters of a traceback
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_WORKER = os.sep + os.path.join("omniq_executor", "engines", "local", "worker.py")  # as another process has it
_LIBRARY = re.compile(r"[/\\](site-packages|dist-packages)[/\\]|[/\\]lib(64)?[/\\]python3[^/\\]*[/\\]")
_TYPED = ("<string>", "<stdin>", "<console>", "<ipython", "<doctest", "<unknown>")
# The outermost frames of a group of exceptions stand behind a bar, and those of its members further in.
_BEGIN = re.compile(r"(?:  \+ Exception Group )?Traceback \(most recent call last\):$")
_FRAME = re.compile(r'(?:  \| )?  File "(.+)", line (\d+), in (.+)$')
_CELL = re.compile(r"[/\\]ipykernel_\d+[/\\](.+)$")  # the file that stands for a cell, by its kernel and its content


class Place(NamedTuple):
    """A line of code, as a traceback has it."""

    file: str
    line: int
    function: str
    text: str = ""  # of the line, where the traceback has it

    def __str__(self) -> str:
        if _CELL.search(self.file):
            return f"line {self.line} of a cell, in {self.function}"
        here = os.getcwd() + os.sep
        return f"{self.file.removeprefix(here)}:{self.line}, in {self.function}"


class FailureGroup:
    """Calls that failed by the same type of exception, raised from the same line."""

    def __init__(self, call: FailedCall, place: Place | None, retry: "Retry | None") -> None:
        self.id = _id_of(call, place)
        """A short text that is the same for such failures in each look, for `omniq-executor retry --group`."""
        self.type = call.error.type
        """The exception's class, as its path."""
        self.place = place
        """The line that it came from; None where the error tells none."""
        self.example = call
        """The call that was submitted last."""
        self.first = self.last = call.failed_at
        """When the first one failed, and the last one, in microseconds since 1970, UTC."""
        self.functions: Counter[str] = Counter()
        """How many calls of which functions."""
        self._ids = array("q")
        self._retry = retry

    def _add(self, call: FailedCall) -> None:
        self._ids.append(call.id)
        self.functions[call.function] += 1
        self.first, self.last = min(self.first, call.failed_at), max(self.last, call.failed_at)
        if call.id > self.example.id:
            self.example = call

    @property
    def count(self) -> int:
        """How many calls there are in it."""
        return len(self._ids)

    @property
    def task_ids(self) -> list[str]:
        """The ids of its tasks, oldest first."""
        return [format_id(id) for id in sorted(self._ids)]

    @property
    def numbers(self) -> list[int]:
        """The numbers behind these ids."""
        return sorted(self._ids)

    def retry(self) -> list[Any]:
        """Have its calls run again, those that are FAILED still; return their futures, oldest first.

        They are new futures, as those of `retry_failed()`.

        >>> results = list(executor.map(int, ["7", "eight", "nine"], return_exceptions=True))
        >>> [type(future.exception()) for future in executor.failures()[0].retry()]
        [<class 'ValueError'>, <class 'ValueError'>]
        """
        if self._retry is None:
            raise RuntimeError(f"nothing runs here: `omniq-executor retry --group {self.id}` has them run again")
        return self._retry(self.numbers)

    @property
    def _said(self) -> str:
        return self.type.removeprefix("omniq_executor.errors.")

    @property
    def where(self) -> str:
        """The line that it came from, in words; or which function's calls failed."""
        return str(self.place) if self.place is not None else f"a call of {self.example.function}"

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        place = None if self.place is None else self.place._asdict()
        example = {
            "id": self.example.task_id,
            "function": self.example.function,
            "call": self.example.error.call,
            "message": self.example.error.message,
        }
        return {
            "group": self.id,
            "type": self.type,
            "place": place,
            "count": self.count,
            "functions": dict(self.functions),
            "first": iso(self.first),
            "last": iso(self.last),
            "example": example,
        }

    def __repr__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """Return it as text: what and where, since when, and an example."""
        example = self.example
        text = [f"      {self.place.text}"] if self.place is not None and self.place.text else []
        first, last = _time(self.first), _time(self.last)
        times = f"at {last}" if first == last else f"{first} to {last}"
        such = "it is" if self.count == 1 else "such as"
        lines = [
            f"{self.count} x {self._said}: {self.where}",
            *text,
            f"      {short(example.error.message)}",
            f"      {such} {example.task_id}: {example.error.call or example.function}",
            f"      {times}; group {self.id}",
        ]
        return [*map(words.printable, lines)]

    def _repr_html_(self) -> str:
        """Return a table without colours of its own, so it is legible on dark and on light."""
        return _table([self])


Retry = Callable[[Sequence[int]], list[Any]]


class Failures(Sequence[FailureGroup]):
    """Groups of failures, the largest first. `repr()` is a text, and a notebook shows a table.

    >>> future = executor.submit(int, "seven").exception()
    >>> [(group.type, group.count) for group in executor.failures()]
    [('ValueError', 1)]
    """

    def __init__(self, groups: Iterable[FailureGroup]) -> None:
        self._groups = sorted(groups, key=lambda group: (-group.count, -group.last))

    @property
    def calls(self) -> int:
        """How many calls failed."""
        return sum(group.count for group in self._groups)

    @property
    def numbers(self) -> list[int]:
        """The numbers behind the ids of their tasks, oldest first."""
        return sorted(number for group in self for number in group.numbers)

    @overload
    def __getitem__(self, at: int) -> FailureGroup: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[FailureGroup]: ...
    def __getitem__(self, at: int | slice) -> FailureGroup | Sequence[FailureGroup]:
        return self._groups[at]

    def __len__(self) -> int:
        return len(self._groups)

    def __repr__(self) -> str:
        return "\n".join([self.heading(), *(f"  {line}" for group in self for line in group.lines())])

    def heading(self) -> str:
        """Return in a line how many there are."""
        if not self:
            return "no call has failed"
        calls = "1 call has failed" if self.calls == 1 else f"{self.calls} calls have failed"
        return calls if len(self) == 1 else f"{calls}, in {len(self)} ways"

    def _repr_html_(self) -> str:
        """Return a table without colours of its own, so it is legible on dark and on light."""
        return f"<p>{escape(self.heading())}</p>{_table(self) if self else ''}"


def groups_of(calls: Iterable[FailedCall], retry: Retry | None = None) -> Failures:
    """Return calls that failed in groups. `retry` has the tasks of some numbers run again."""
    groups: dict[str, FailureGroup] = {}
    for call in calls:
        place = place_of(call.error)
        id = _id_of(call, place)
        if id not in groups:
            groups[id] = FailureGroup(call, place, retry)
        groups[id]._add(call)
    return Failures(groups.values())


def group_of(call: FailedCall) -> str:
    """Return the id of the group that a call is of."""
    return _id_of(call, place_of(call.error))


def _id_of(call: FailedCall, place: Place | None) -> str:
    if place is None:
        what = [call.function]
    else:
        cell = _CELL.search(place.file)  # another kernel has another number
        what = [cell[1] if cell else place.file, str(place.line), place.function]
    text = "\0".join([call.error.type, *what])
    return blake2b(text.encode(errors="surrogatepass"), digest_size=4).hexdigest()


def place_of(error: ErrorInfo) -> Place | None:
    """Return the innermost line of the user's own code in the traceback of an error, see the module's docstring."""
    text = error.traceback
    if "\n" in error.message:  # which may hold the text of another traceback
        text = text.rpartition(error.message)[0] or text
    innermost = own = None
    lines = text.splitlines()
    for at, line in enumerate(lines):
        if _BEGIN.match(line):  # of several, as of an exception with a cause, the last is that of the error
            innermost = own = None
        elif (found := _FRAME.match(line)) is not None:
            file = found[1]
            if file.startswith(_PACKAGE) or file.endswith(_WORKER):
                continue
            code = lines[at + 1].removeprefix("  | ") if at + 1 < len(lines) else ""
            innermost = Place(file, int(found[2]), found[3], code.strip() if code.startswith("    ") else "")
            if is_own(file):
                own = innermost
    return own or innermost


def is_own(file: str) -> bool:
    """Return whether a file, by its name in a traceback, is neither Python's nor installed."""
    if file.startswith("<"):
        return file.startswith(_TYPED)
    return _LIBRARY.search(file) is None


def short(message: str) -> str:
    """Return the beginning of a message, in one line that steers no terminal."""
    line = " ".join(message[: _SHOWN * 2].split())
    if not line.isprintable():
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 3]}..."


def _time(microseconds: int) -> str:
    return (iso(microseconds) or "")[:19] + "Z"


def _bounded(text: str) -> str:
    """Return the beginning and the end of a traceback, whose message may be of any length, made printable."""
    if len(text) > _MOST_SHOWN:
        left_out = len(text) - _MOST_SHOWN
        text = f"{text[: _MOST_SHOWN // 2]}\n… {left_out:,} characters …\n{text[-_MOST_SHOWN // 2 :]}"
    return words.printable(text)


def _table(groups: Iterable[FailureGroup]) -> str:
    cell = 'style="text-align: left; vertical-align: top; padding: 0.1em 0.8em; border-bottom: 1px solid currentColor"'
    heads = "".join(f"<th {cell}>{head}</th>" for head in ("calls", "exception", "where", "for example", "when"))
    rows = []
    for group in groups:
        example, text = group.example, group.place.text if group.place is not None else ""
        code = f"<br><code>{escape(words.shortened(text, _SHOWN))}</code>" if text else ""
        traceback = f'<pre style="white-space: pre-wrap">{escape(_bounded(example.error.traceback))}</pre>'
        call = words.shortened(example.error.call or example.function, 2 * _SHOWN)
        cells = (
            str(group.count),
            escape(group._said),
            escape(group.where) + code,
            f"<details><summary>{escape(f'{call}: {short(example.error.message)}')}</summary>"
            f"{example.task_id}{traceback if example.error.traceback else ''}</details>",
            "<br>to ".join(dict.fromkeys(_time(at).replace("T", " ") for at in (group.first, group.last))),
        )
        rows.append(f"<tr>{''.join(f'<td {cell}>{value}</td>' for value in cells)}</tr>")
    body = f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<table style="border-collapse: collapse">{body}</table>'
