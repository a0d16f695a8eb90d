"""`jobrunner start airbyte`: a job in Airbyte, started once and watched to its end."""

import functools
from typing import Any

import click

from jobrunner.cli.options import Duration, JobOptions, WholeNumber, job_options

_EPILOG = """\b
Examples:
  jobrunner start airbyte --connection-id 3f4c1f9e-6d0a-4a6f-9a57-0a6f2c1f7d11
  jobrunner start airbyte --spec sync.yaml --min-rows 1 --timeout 6h
  jobrunner start airbyte --attach 12345
  curl … /jobs | jobrunner start airbyte --attach -
"""


@click.command("airbyte", epilog=_EPILOG)
@click.option(
    "--connection-id",
    metavar="UUID",
    help="The Airbyte connection whose data is moved, or ${env:NAME}; --connection is the server.",
)
@click.option(
    "--job-type",
    type=click.Choice(["sync", "reset", "refresh", "clear"]),
    help="What Airbyte is to do; without it, a sync.",
)
@click.option(
    "--on-conflict",
    type=click.Choice(["adopt", "fail"]),
    help="Where a job of the Airbyte connection runs already: watch that one (the default), or fail.",
)
@click.option(
    "--min-rows",
    type=WholeNumber(min=0),
    metavar="N",
    help="A success with fewer rows is a failure.",
)
@click.option(
    "--exponential-backoff",
    is_flag=True,
    help="Look less and less often the longer it takes, at least every 10 minutes.",
)
@click.option(
    "--max-retry-delay",
    type=Duration(),
    help="The longest time between two looks with --exponential-backoff.",
)
@click.option(
    "--api-version",
    metavar="VERSION",
    default="v1",
    show_default=True,
    help="The version of the API, which must be the one at the end of the connection's url.",
)
@click.option(
    "--spec",
    "spec_path",
    metavar="FILE",
    help="connectionId, jobType, onConflict and minRows in YAML or JSON; `-` is standard input. Options "
    "come over it.",
)
@click.option(
    "--attach",
    metavar="JOB_ID",
    help="Watch an Airbyte job that somebody else started. `-` reads its id from standard input: the bare "
    "id, or what another command prints with --json.",
)
@click.option("--dry-run", is_flag=True, help="Print the validated spec, and start and store nothing.")
@job_options("the Airbyte job", default_name="what is done to which Airbyte connection")
@click.pass_context
def airbyte(
    ctx: click.Context,
    /,
    *,
    spec_path: str | None,
    attach: str | None,
    dry_run: bool,
    min_rows: int | None,
    exponential_backoff: bool,
    max_retry_delay: float | None,
    api_version: str,
    options: JobOptions,
    **described: Any,
) -> int:
    """Start a job in Airbyte, exactly once, and watch it to its end.

    The job outlives this process: Ctrl-C, SIGTERM or a closed terminal release it, and `jobrunner attach`
    takes it over again, on any machine. With --detach the timeout is 7 days, unless one is given. Durations
    are such as 90s, 45m or 12h; a bare number is seconds.
    """
    from jobrunner.cli.describing import ensure_only_attached, show_described
    from jobrunner.cli.foreground import start_monitor_job
    from jobrunner.extras import require
    from jobrunner.models.airbyte_monitor_job import AirbyteMonitorJob

    require("httpx", "airbyte", "Airbyte")
    if options.detach:
        options.of_job.setdefault("timeout", _DETACHED_TIMEOUT_S)
    watching: dict[str, Any] = {
        "exponential_backoff": exponential_backoff,
        "max_retry_delay": max_retry_delay,
        "api_version": api_version,
    }
    if attach is not None:
        if not attach.strip():
            raise click.UsageError("--attach needs the id of an Airbyte job.", ctx)
        ensure_only_attached(ctx, _DESCRIBING)
        job_id = _read_id() if attach == "-" else attach
        make = functools.partial(AirbyteMonitorJob.attach, job_id, min_rows=min_rows, **watching)
        return start_monitor_job(make, options)
    spec = _merged(spec_path, described | {"min_rows": min_rows}, ctx)
    if dry_run:
        job = AirbyteMonitorJob.from_spec(spec, **watching, **options.of_job)
        return show_described(job.spec, "Nothing was started.", as_json=options.as_json)
    return start_monitor_job(functools.partial(AirbyteMonitorJob.from_spec, spec, **watching), options)


_KEYS = {
    "connection_id": "connectionId",
    "job_type": "jobType",
    "on_conflict": "onConflict",
    "min_rows": "minRows",
}
_LARGEST = 1024 * 1024
_DETACHED_TIMEOUT_S = 7 * 24 * 3600.0  # as a deferred sensor's: nobody is there who would miss the end
_DESCRIBING = ("connection_id", "job_type", "on_conflict", "spec_path", "dry_run")


def _merged(spec_path: str | None, given: dict[str, Any], ctx: click.Context) -> dict[str, Any]:
    """Return the spec in the file with the options over it."""
    from jobrunner.cli.spec_file import check_values, read_spec

    spec = {} if spec_path is None else read_spec(spec_path, extra="airbyte")
    spec |= {_KEYS[name]: value for name, value in given.items() if value is not None}
    if spec.get("connectionId") in (None, ""):
        raise click.UsageError("An Airbyte job needs --connection-id (connectionId in the spec).", ctx)
    check_values(spec, "the spec")  # an argument need not be UTF-8
    return {key: value for key, value in spec.items() if value is not None}


def _read_id() -> str:
    """Return the id of an Airbyte job from standard input: bare, or in the last line of JSON."""
    import sys

    from jobrunner.errors import UsageError

    data = sys.stdin.buffer.read(_LARGEST + 1) if sys.stdin is not None else b""
    if len(data) > _LARGEST:
        raise UsageError("Standard input is larger than 1 MiB: --attach - reads the id of one Airbyte job.")
    text = data.decode("utf-8-sig", "replace").strip()
    if not text:
        raise UsageError("Standard input is empty: --attach - reads the id of an Airbyte job from it.")
    last = text.splitlines()[-1].strip()
    value = next((found for each in (text, last) if (found := _json(each)) is not None), last)
    if isinstance(value, dict):
        value = _id_in(value)
    return str(value)


def _json(text: str) -> Any:
    """Return the value of a JSON text; None where it is none."""
    import json

    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _id_in(said: dict[str, Any]) -> Any:
    """Return the id out of what Airbyte, or a command of ours, said. Raises `UsageError`."""
    from jobrunner.errors import UsageError

    # Our own row has an `id`, too, which is not Airbyte's: it is known by its state.
    keys = ("jobId", "job_id", "external_id", *(() if "state" in said else ("id",)))
    key = next((key for key in keys if key in said), None)
    if key is None:
        raise UsageError("Standard input names no Airbyte job: there is no jobId, external_id or id in it.")
    if said[key] is None:
        raise UsageError(f"Standard input has a {key} without a value: the job has no id in Airbyte yet.")
    return said[key]
