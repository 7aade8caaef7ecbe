"""What several commands take: the store, JSON instead of text, and values that are checked before anything is done."""

import datetime
from collections.abc import Callable
from contextlib import closing
from typing import Any

import click

from ..config import parse_duration
from ..engines.addresses import check_address
from ..model.task import parse_id
from ..stores import open_store
from ..stores.base import Store, now

store_option = click.option(
    "--store",
    "address",
    metavar="ADDRESS",
    help="The store.  [default: what the variables OMNIQ_* say, else omniq_data/omniq.db]",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def on_store(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options --store and --json."""
    return store_option(as_json(command))


def look_into(address: str | None) -> closing[Store]:
    """Open a store that exists. Raise StoreError where there is none."""
    return closing(open_store(address, create=False))


def _checked(parse: Callable[[Any], Any]) -> Callable[[click.Context, click.Parameter, Any], Any]:
    def callback(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        try:
            return None if value is None else parse(value)
        except ValueError as error:
            raise click.BadParameter(str(error)) from error

    return callback


def _names(values: tuple[str, ...]) -> tuple[str, ...]:
    if "" in values:
        raise ValueError("a name is empty")
    return tuple(dict.fromkeys(values))


def _fraction(value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{value} is not between 0 and 1")
    return value


def _since(text: str) -> int:
    """Return a time of so long ago, or at a date, in microseconds."""
    try:
        if "-" in text:
            return int(
                datetime.datetime.fromisoformat(text).timestamp() * 1e6
            )  # without a zone it is that of the place
        at = now()
        return at - int(min(parse_duration(text) * 1e6, at))
    except ValueError:
        raise ValueError(f"{text!r} is no time: give how long ago, 2h say, or a date, 2026-05-01T12:00") from None


checked_since = _checked(_since)
checked_id = _checked(parse_id)
checked_ids = _checked(lambda values: [parse_id(value) for value in dict.fromkeys(values)])
checked_names = _checked(_names)
checked_address = _checked(check_address)
checked_duration = _checked(parse_duration)
checked_fraction = _checked(_fraction)
