"""`jobrunner start process`: a command on this host, supervised."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import click

from jobrunner.cli.options import Duration, Pair, json_option


@click.command("process", context_settings={"allow_interspersed_args": False})
@click.argument("command", metavar="[--] CMD...", nargs=-1, required=True)
@click.option("--name", help="The job's own name; without it, the program's.")
@click.option("--heartrate", type=Duration(), help="Time between two beats.")
@click.option("--poll-interval", type=Duration(), help="Time between two looks at the command.")
@click.option("--timeout", type=Duration(), help="Time after which the command is cancelled.")
@click.option("--stop-grace", type=Duration(), help="Time between SIGTERM and SIGKILL.  [default: 10s]")
@click.option(
    "--on-exit",
    type=click.Choice(["release", "kill"]),
    default="release",
    show_default=True,
    help="What Ctrl-C and SIGTERM do to the command: leave it running, or kill it.",
)
@click.option("--dag-id", help="The pipeline that the job belongs to.")
@click.option(
    "--env",
    type=Pair(),
    multiple=True,
    metavar="NAME=VALUE",
    help="A variable for the command; may be repeated.",
)
@click.option("--cwd", metavar="DIR", help="The directory that the command runs in; without it, this one.")
@json_option
def process(
    *,
    command: tuple[str, ...],
    name: str | None,
    heartrate: float | None,
    poll_interval: float | None,
    timeout: float | None,
    stop_grace: float | None,
    on_exit: Literal["release", "kill"],
    dag_id: str | None,
    env: tuple[tuple[str, str], ...],
    cwd: str | None,
    as_json: bool,
) -> int:
    """Start a command on this host, in a session of its own, and watch it to its end.

    The command outlives this process: Ctrl-C, SIGTERM or a closed terminal release it, and `jobrunner
    attach` takes it over again. Durations are such as 90s, 45m or 12h; a bare number is seconds.
    """
    from jobrunner import registry
    from jobrunner.cli.foreground import watch_to_the_end
    from jobrunner.cli.live import Live
    from jobrunner.cli.output import log_as_words
    from jobrunner.models import ProcessMonitorJob

    _check_command(command, dict(env), cwd)
    log_as_words()
    given = {"name": name, "dag_id": dag_id, "stop_grace": stop_grace}
    options: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    with Live(as_json=as_json) as live:
        job = ProcessMonitorJob(
            command,
            cwd,
            dict(env),
            executor=registry.load_executor_class("LocalExecutor")(on_exit=on_exit, on_started=live.started),
            heartrate=heartrate,
            poll_interval=poll_interval,
            timeout=timeout,
            **options,
        )
        return watch_to_the_end(job.run, live)


def _check_command(command: Sequence[str], env: Mapping[str, str], cwd: str | None) -> None:
    """Refuse what cannot be started here, before anything is stored."""
    directory = Path(cwd or ".").absolute()
    if not directory.is_dir():
        what = "is no directory" if directory.exists() else "does not exist"
        raise click.UsageError(f"The directory {directory} for the command {what}: give another --cwd.")
    if not os.access(directory, os.X_OK):
        raise click.UsageError(
            f"The directory {directory} may not be entered by this user: give another --cwd."
        )
    program = command[0]
    if "/" in program:
        path = directory / program
        if not path.exists():
            raise click.UsageError(f"The command {program} was not found: there is no {path}.")
        if path.is_dir() or not os.access(path, os.X_OK):
            raise click.UsageError(f"The command {program} cannot be run: {path} is not executable.")
    elif not program or shutil.which(program, path=env.get("PATH")) is None:
        raise click.UsageError(
            f"The command {program!r} was not found on the PATH: give its whole path, or correct its name."
        )
