"""`jobrunner start`: one command for each kind of job, and one for a job of the user's own."""

from typing import Any

import click

from jobrunner.cli.groups import Lazy, LazyGroup

KINDS = {
    "process": Lazy("jobrunner.cli.start_process:process", "Start a command on this host."),
    "batch": Lazy("jobrunner.cli.start_batch:batch", "Start a job in AWS Batch."),
    "armada": Lazy("jobrunner.cli.start_armada:armada", "Start a job in Armada."),
    "airbyte": Lazy("jobrunner.cli.start_airbyte:airbyte", "Start a job in Airbyte."),
}
"""The kinds of jobs that can be started by name."""

_OWN = Lazy("jobrunner.cli.start_own:own", "Start a job of your own class.")


class _StartGroup(LazyGroup):
    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of a kind, or the one that starts MODULE:CLASS."""
        return _OWN.load() if ":" in cmd_name else super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command. Raises click's UsageError with the kinds that there are."""
        name = args[0]
        if name not in self.lazy and ":" not in name and not name.startswith("-"):
            kinds = ", ".join(self.lazy)
            raise click.UsageError(f"There is no kind of job {name!r}: give {kinds}, or MODULE:CLASS.", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the kinds, and the form of a user's own class."""
        with formatter.section("Jobs"):
            rows: list[tuple[str, Any]] = [(name, kind.short_help) for name, kind in self.lazy.items()]
            formatter.write_dl([*rows, ("MODULE:CLASS", _OWN.short_help)])


@click.group(cls=_StartGroup, lazy=KINDS, subcommand_metavar="KIND [OPTIONS] ...")
def start() -> None:
    """Start a job and watch it to its end.

    Prints the job's id at once, and exits as the job ended: 0 success, 1 failed, 3 killed, 4 lost.
    """
