"""What the command line prints: tables, which are drawn where they fit and stay whole in a pipe, text and JSON."""

import codecs
import contextlib
import json
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import click

from ..display.words import first_line as first_line, printable as printable
from ..model.task import iso
from ..stores.base import Owner

if TYPE_CHECKING:
    from rich.table import Table

_WHOLE = 22  # characters of a column that is never folded, as ids and times are, ...
_FOLDED, _LEAST = 24, 14  # ... and of one that is, at least, and where there is no room for as much
BESIDE = 3  # that a drawn column takes beside its cells
STYLES = {"COMPLETED": "green", "FAILED": "red", "RUNNING": "cyan", "alive": "green", "dead": "red"}


def count_of_tasks(count: int) -> str:
    """Return how many tasks there are, in words."""
    return "1 task" if count == 1 else f"{count} tasks"


def owner_fields(owner: Owner) -> dict[str, str | int]:
    """Return what is shown of an owner."""
    return {
        "owner": owner.id,
        "queue": owner.queue,
        "host": owner.host,
        "pid": owner.pid,
        "since": iso(owner.opened_at) or "",
        "state": "alive" if owner.alive else "dead",
    }


def print_json(value: object, indent: int | None = 2) -> None:
    """Print a value as JSON; without an indent it is one line."""
    click.echo(json.dumps(value, indent=indent))


def report(as_json: bool, value: object, text: str) -> None:
    """Print what a command did, as JSON or as text."""
    if as_json:
        print_json(value)
    else:
        click.echo(text)


def exit_with(status: int) -> None:
    """End the command with an exit status; 0 or False lets it go on."""
    if status:
        raise click.exceptions.Exit(int(status))


class Raw:
    """Prints what somebody else's program wrote: as it is into a pipe or a file, and printable on a terminal.

    There, what was to return to the beginning of the line, as progress bars do, begins another.
    """

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._ends_line = True

    def print(self, data: bytes) -> None:
        """Print some of it, which may end within a character."""
        self._ends_line = data.endswith(b"\n")
        if self._is_terminal:
            text = self._decoder.decode(data).replace("\r\n", "\n").replace("\r", "\n")
            click.echo(printable(text), nl=False)
        else:
            click.echo(data, nl=False)

    def print_heading(self, text: str) -> None:
        """Print a line of our own."""
        click.echo(text if self._ends_line else f"\n{text}")
        self._ends_line = True


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str | int]], optional: Sequence[str] = ()) -> None:
    """Print a table, numbers to the right.

    Where there is no terminal a row is a line of aligned columns, two spaces or more apart. On a terminal it is drawn.
    If that is too narrow, long cells are folded; if that does not do, columns that are `optional` are left out, the
    first one first, which is said; and then each row is a block of lines. No cell is ever cut.
    """
    right = [any(isinstance(row[i], int) for row in rows) for i in range(len(headings))]
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _draw(headings, cells, right, optional)
    else:
        _write([headings, *cells], right)


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on the terminal, if there is one; yield what to call with how many more are done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


def _draw(headings: Sequence[str], rows: list[list[str]], right: list[bool], optional: Sequence[str]) -> None:
    """Draw a table on the terminal."""
    from rich.console import Console  # which is half of the time that a command takes, and no pipe needs it

    console = Console(highlight=False)
    layout = layout_of([headings, *rows], [*map(headings.index, optional)], console.width)
    if layout is None:
        for row in rows:
            click.echo()
            for heading, cell in zip(headings, row, strict=True):
                click.echo(f"{heading:<12}{cell}" if cell else heading)
        return
    shown, folded = layout
    console.print(drawn([headings[i] for i in shown], [[row[i] for i in shown] for row in rows],
                        [right[i] for i in shown], [shown.index(i) for i in folded]))  # fmt: skip
    if len(shown) < len(headings):
        left_out = ", ".join(heading for i, heading in enumerate(headings) if i not in shown)
        console.print(f"This terminal is too narrow for {left_out}", style="dim")


def layout_of(rows: Sequence[Sequence[str]], optional: Sequence[int], width: int) -> tuple[list[int], list[int]] | None:
    """Return which columns of a table to show in so many characters, and which of them to fold; None where none fit.

    Columns that are `optional` go first to last, when folding does not do.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    folded = [i for i, needed in enumerate(widths) if needed > _WHOLE]
    ways = [(left_out, _FOLDED) for left_out in range(len(optional) + 1)]
    for left_out, least in [*ways, (len(optional), _LEAST)]:
        shown = [i for i in range(len(widths)) if i not in optional[:left_out]]
        lines = BESIDE * len(shown) + 1
        if sum(widths[i] for i in shown) + lines <= width:
            return shown, []
        if sum(least if i in folded else widths[i] for i in shown) + lines <= width:
            return shown, [i for i in shown if i in folded]
    return None


def drawn(
    headings: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[bool], folded: Collection[int] = ()
) -> "Table":
    """Return a table for rich, whose columns stay whole, but for those that are folded."""
    from rich.table import Table
    from rich.text import Text

    table = Table(header_style="bold")
    for i, heading in enumerate(headings):
        table.add_column(
            heading, justify="right" if right[i] else "left", no_wrap=i not in folded, overflow="fold",
            min_width=_LEAST if i in folded else None,
        )  # fmt: skip
    for row in rows:
        table.add_row(*(Text(cell, STYLES.get(cell, "")) for cell in row))
    return table


def to_the_second(microseconds: int | None) -> str:
    """Return a time as ISO-8601 in UTC without its fraction, or nothing for None."""
    text = iso(microseconds)
    return f"{text[:19]}Z" if text else ""


def _write(rows: list[Sequence[str]], right: list[bool]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        columns = zip(row, widths, right, strict=True)
        cells = [cell.rjust(width) if to_right else cell.ljust(width) for cell, width, to_right in columns]
        click.echo("  ".join(cells).rstrip())
