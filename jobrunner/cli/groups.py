"""Groups of commands that are imported when they are used, so that `--help` stays fast."""

from importlib import import_module
from typing import Any, NamedTuple

import click


class Lazy(NamedTuple):
    """A command that is not imported yet: where it is, and its line in the help."""

    path: str
    short_help: str

    def load(self) -> click.Command:
        """Import the command."""
        module_name, _, name = self.path.partition(":")
        command: click.Command = getattr(import_module(module_name), name)
        return command


class LazyGroup(click.Group):
    """A group whose commands are named by import path, and imported when they are used."""

    def __init__(self, *args: Any, lazy: dict[str, Lazy], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        """Return the names in the order in which a person meets them."""
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the command of this name; None when there is none."""
        found = self.lazy.get(cmd_name)
        return None if found is None else found.load()

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the list of commands without importing one."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.short_help) for name, command in self.lazy.items()])
