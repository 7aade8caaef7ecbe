"""What an object is, as a line and as a table of HTML that is legible on dark and on light.

There is no script and no style sheet, since notebooks keep neither: colours are those of the page (`currentColor`),
and the two that are not are legible on both. Whatever comes from users is escaped here and nowhere else.
"""

from collections.abc import Sequence
from typing import NamedTuple

from .words import escape, printable

GOOD, BAD = "#2b8a4b", "#d9483b"  # on white and on near-black alike
FONT = "font: 13px/1.5 system-ui, -apple-system, 'Segoe UI', sans-serif"
MONO = "font-family: ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace; font-size: 0.92em"
LINE = "rgba(128, 128, 128, 0.35)"
_BOX = (
    f"{FONT}; display: inline-block; max-width: 56em; border: 1px solid {LINE}; border-radius: 6px;"
    " padding: 0.5em 0.9em 0.6em; margin: 0.2em 0; color: inherit; background: transparent"
)
_TABLE = "border-collapse: collapse; margin: 0.3em 0 0; border: none; background: transparent; color: inherit"
_ROW = "background: transparent; border: none"
_CELL = "text-align: {}; vertical-align: top; padding: 0.1em {} 0.1em 0; border: none; background: transparent"


class Table(NamedTuple):
    """Numbers by rows and columns; the first column has what the rows are."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str | int]]


class Card(NamedTuple):
    """What is shown of an object."""

    kind: str  # such as "Task"
    title: str  # its name, or address
    state: str = ""  # a word; FAILED and the like are red, COMPLETED is green
    fields: Sequence[tuple[str, str]] = ()  # names and values; those without a value are left out
    table: Table | None = None
    note: str = ""  # what is to be read last, such as an error
    is_bad: bool = False  # whether the note says that something failed

    def html(self) -> str:
        """Return it as HTML."""
        state = f' <span style="{MONO}; font-weight: 600; {_colour(self.state)}">{_e(self.state)}</span>'
        head = (
            f'<span style="opacity: 0.7">{_e(self.kind)}</span>'
            f' <span style="{MONO}; font-weight: 600">{_e(self.title)}</span>{state if self.state else ""}'
        )
        rows = "".join(
            f'<tr style="{_ROW}"><td style="{_CELL.format("left", "1.2em")}; opacity: 0.7; white-space: nowrap">'
            f'{_e(name)}</td><td style="{_CELL.format("left", "0")}; overflow-wrap: anywhere">{_e(value)}</td></tr>'
            for name, value in self.fields
            if value
        )
        parts = [f"<div>{head}</div>"]
        parts += [f'<table style="{_TABLE}"><tbody>{rows}</tbody></table>'] if rows else []
        parts += [_table(self.table)] if self.table and self.table.rows else []
        if self.note:
            red = f"border-left: 3px solid {BAD}" if self.is_bad else f"border-left: 3px solid {LINE}"
            parts.append(
                f'<div style="{MONO}; {red}; margin-top: 0.5em; padding-left: 0.7em; white-space: pre-wrap;'
                f' overflow-wrap: anywhere">{_e(self.note)}</div>'
            )
        return f'<div style="{_BOX}">{"".join(parts)}</div>'


def _table(table: Table) -> str:
    def cell(tag: str, at: int, value: str | int) -> str:
        side = "left" if at == 0 else "right"
        faint = "; opacity: 0.35" if value in (0, "0") else ""
        head = f"; opacity: 0.7; font-weight: normal; border-bottom: 1px solid {LINE}" if tag == "th" else ""
        text = f"{value:,}" if isinstance(value, int) else value
        return f'<{tag} style="{_CELL.format(side, "1.4em")}{head}"><span style="{faint[2:]}">{_e(text)}</span></{tag}>'

    heads = "".join(cell("th", at, head) for at, head in enumerate(table.heads))
    rows = "".join(
        f'<tr style="{_ROW}">{"".join(cell("td", at, value) for at, value in enumerate(row))}</tr>'
        for row in table.rows
    )
    return f'<table style="{_TABLE}"><thead><tr style="{_ROW}">{heads}</tr></thead><tbody>{rows}</tbody></table>'


def _colour(state: str) -> str:
    word = state.partition(" ")[0].strip(",:")
    return {"COMPLETED": f"color: {GOOD}", "FAILED": f"color: {BAD}", "broken": f"color: {BAD}"}.get(word, "")


def _e(text: str) -> str:
    return escape(printable(text))
