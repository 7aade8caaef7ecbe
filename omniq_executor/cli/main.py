"""The command `omniq-executor`: a look into a store, its upkeep, a worker, and the demo.

Looking creates nothing, runs nothing and, short of `show --load` and `debug`, unpickles nothing. The exit status
is 0 when what was asked for is done, 1 when there was nothing to do it to or a problem is left, and
2 for a command that makes no sense.
"""

import io
import pkgutil
import sys
from typing import Any

import click

from .. import __version__
from ..errors import OmniqError, SettingsError
from .console import printable

# Where each command is. Its module is loaded when it is asked for: a look needs neither executor nor dispatcher.
_COMMANDS = {
    "status": "looking.status",
    "watch": "watching.watch",
    "list": "looking.list_",
    "show": "looking.show",
    "logs": "looking.logs",
    "failures": "failed.failures",
    "debug": "failed.debug",
    "runs": "past.runs",
    "diff": "past.diff",
    "retry": "upkeep.retry",
    "cancel": "upkeep.cancel",
    "forget": "upkeep.forget",
    "purge": "upkeep.purge",
    "backup": "upkeep.backup",
    "migrate": "upkeep.migrate",
    "doctor": "upkeep.doctor",
    "worker": "working.worker",
    "demo": "demo.demo",
}


class _Commands(click.Group):
    """Commands that report the package's own errors as one line and exit status 1, or 2 for a bad setting."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = pkgutil.resolve_name(f"{__package__}.{_COMMANDS[cmd_name]}")
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SettingsError as error:
            raise click.UsageError(printable(str(error))) from error
        except OmniqError as error:
            raise click.ClickException(printable(" ".join(str(error).split()))) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Look into a store of durable calls and look after it, or try the demo."""
    for stream in sys.stdout, sys.stderr:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # whatever a task holds can be shown
