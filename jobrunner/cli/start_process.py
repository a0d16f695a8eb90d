"""`jobrunner start process`: a command on this host, supervised."""

import functools
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from jobrunner.cli.options import Duration, JobOptions, Pair, job_options
from jobrunner.paths import is_directory, is_there

_CLOSED = ", or is in a directory that this user may not enter"


@click.command("process", context_settings={"allow_interspersed_args": False})
@click.argument("command", metavar="[--] CMD...", nargs=-1, required=True)
@click.option(
    "--env",
    type=Pair(),
    multiple=True,
    metavar="NAME=VALUE",
    help="A variable for the command; may be repeated.",
)
@click.option("--cwd", metavar="DIR", help="The directory that the command runs in; without it, this one.")
@click.option("--stop-grace", type=Duration(), help="Time between SIGTERM and SIGKILL.  [default: 10s]")
@job_options("the command", default_name="the program's", is_local=True)
def process(
    *,
    command: tuple[str, ...],
    env: tuple[tuple[str, str], ...],
    cwd: str | None,
    stop_grace: float | None,
    options: JobOptions,
) -> int:
    """Start a command on this host, in a session of its own, and watch it to its end.

    The command outlives this process: Ctrl-C, SIGTERM or a closed terminal release it, and `jobrunner
    attach` takes it over again. Durations are such as 90s, 45m or 12h; a bare number is seconds.
    """
    from jobrunner.cli.foreground import start_monitor_job
    from jobrunner.models import ProcessMonitorJob

    _check_command(command, dict(env), cwd)
    make = functools.partial(ProcessMonitorJob, command, cwd, dict(env))
    if stop_grace is not None:
        make = functools.partial(make, stop_grace=stop_grace)
    return start_monitor_job(make, options)


def _check_command(command: Sequence[str], env: Mapping[str, str], cwd: str | None) -> None:
    """Refuse what cannot be started here, before anything is stored."""
    try:
        directory = Path(cwd or ".").absolute()
    except FileNotFoundError:
        raise click.UsageError(
            "The working directory was removed: name another with --cwd, by its whole path."
        ) from None
    if not is_directory(directory):
        what = "is no directory" if is_there(directory) else f"does not exist{_CLOSED}"
        raise click.UsageError(f"The directory {directory} for the command {what}: give another --cwd.")
    if not os.access(directory, os.X_OK):
        raise click.UsageError(
            f"The directory {directory} may not be entered by this user: give another --cwd."
        )
    program = command[0]
    if "/" in program:
        path = directory / program
        if not is_there(path):
            raise click.UsageError(f"The command {program} was not found: {path} does not exist{_CLOSED}.")
        if is_directory(path) or not os.access(path, os.X_OK):
            what = "a directory" if is_directory(path) else "not executable by this user"
            raise click.UsageError(f"The command {program} cannot be run: {path} is {what}.")
    elif not program or shutil.which(program, path=env.get("PATH")) is None:
        raise click.UsageError(
            f"The command {program!r} was not found on the PATH: give its whole path, or correct its name."
        )
