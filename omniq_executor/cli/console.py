"""What the command line prints: tables, which are drawn where they fit and stay whole in a pipe, text and JSON."""

import codecs
import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence

import click

from ..model.task import iso
from ..stores.base import Owner

_UNLIMITED = 1_000_000
_STYLES = {"COMPLETED": "green", "FAILED": "red", "RUNNING": "cyan", "alive": "green", "dead": "red"}


def printable(text: str) -> str:
    """Return `text` without what could steer a terminal or cannot be encoded; line ends and tabs stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def first_line(text: str) -> str:
    """Return the first line of `text`, printable."""
    return printable(text.strip().partition("\n")[0])


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


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str | int]]) -> None:
    """Print a table, numbers to the right.

    Where there is no terminal, or not one wide enough for a drawn table, a row is a line of aligned
    columns, two spaces or more apart. Nothing is ever cut.
    """
    right = [any(isinstance(row[i], int) for row in rows) for i in range(len(headings))]
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    if not sys.stdout.isatty() or not _draw(headings, cells, right):
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


def _draw(headings: Sequence[str], rows: list[list[str]], right: list[bool]) -> bool:
    """Draw a table on the terminal, if that is wide enough; return whether it is."""
    from rich.console import Console  # which is half of the time that a command takes, and no pipe needs it
    from rich.table import Table
    from rich.text import Text

    table = Table(header_style="bold")
    for heading, to_right in zip(headings, right, strict=True):
        table.add_column(heading, justify="right" if to_right else "left")
    for row in rows:
        table.add_row(*(Text(cell, _STYLES.get(cell, "")) for cell in row))
    console = Console()
    fits = console.measure(table, options=console.options.update_width(_UNLIMITED)).maximum <= console.width
    if fits:
        console.print(table)
    return fits


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
