"""`jobrunner start batch`: a job in AWS Batch, submitted once and watched to its end."""

import functools
from collections.abc import Sequence
from typing import Any

import click

from jobrunner.cli.options import Duration, JobOptions, Pair, WholeNumber, job_options

_EPILOG = """\b
Examples:
  jobrunner start batch --job-name nightly --job-queue etl --job-definition import:7
  jobrunner start batch --spec job.yaml --env STAGE=prod --array-size 100
  jobrunner start batch --spec job.yaml --dry-run -- python load.py --day 2026-03-01
  jobrunner start batch --attach 6f3c0b1e-8f0e-4d7a-9f3b-1c2d3e4f5a6b
"""


class _CommandAfterDashes(click.Command):
    """Takes what follows `--` as the container's command, and no stray word before it as one."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the options before `--`."""
        end = args.index("--") if "--" in args else len(args)
        rest = super().parse_args(ctx, args[:end])
        ctx.params["command"] = tuple(args[end + 1 :])
        return rest

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Return the pieces of the usage line."""
        return [*super().collect_usage_pieces(ctx), "[-- CMD...]"]


@click.command("batch", cls=_CommandAfterDashes, epilog=_EPILOG)
@click.option("--job-name", metavar="NAME", help="The job's name in AWS Batch; a token is appended to it.")
@click.option("--job-queue", metavar="QUEUE", help="The queue, by its name or ARN.")
@click.option(
    "--job-definition", metavar="DEFINITION", help="The job definition: its name, NAME:REVISION, or ARN."
)
@click.option(
    "--parameter",
    "parameters",
    type=Pair(),
    multiple=True,
    metavar="NAME=VALUE",
    help="A parameter of the job definition; may be repeated.",
)
@click.option(
    "--env",
    type=Pair(),
    multiple=True,
    metavar="NAME=VALUE",
    help="A variable for the container; may be repeated. Secrets are refused.",
)
@click.option(
    "--array-size",
    type=WholeNumber(2, 10_000),
    metavar="N",
    help="Make it an array job of so many children, 2 to 10000.",
)
@click.option(
    "--attempts",
    type=WholeNumber(1, 10),
    metavar="N",
    help="How often Batch tries the job at most, 1 to 10.",
)
@click.option(
    "--attempt-timeout",
    type=Duration(),
    help="Time after which Batch ends an attempt, 60s at least. --timeout is for the whole job.",
)
@click.option(
    "--depends-on",
    multiple=True,
    metavar="JOB_ID",
    help="A Batch job that has to succeed first; may be repeated.",
)
@click.option(
    "--tag", "tags", type=Pair(), multiple=True, metavar="NAME=VALUE", help="A tag; may be repeated."
)
@click.option("--share-identifier", metavar="NAME", help="The share, in a queue with fair-share scheduling.")
@click.option(
    "--spec",
    "spec_path",
    metavar="FILE",
    help="A SubmitJob request in YAML or JSON, as `aws batch submit-job --cli-input-json` takes it; "
    "`-` is standard input. Options come over it.",
)
@click.option("--attach", metavar="JOB_ID", help="Watch a Batch job that somebody else submitted.")
@click.option("--dry-run", is_flag=True, help="Print the validated request, and submit and store nothing.")
@job_options("the Batch job", default_name="the Batch job's", causes=("preempted", "oom"))
@click.pass_context
def batch(
    ctx: click.Context,
    /,
    *,
    spec_path: str | None,
    attach: str | None,
    dry_run: bool,
    command: Sequence[str],
    options: JobOptions,
    **described: Any,
) -> int:
    """Submit a job to AWS Batch, exactly once, and watch it to its end.

    CMD replaces the command of the job definition. The job outlives this process: Ctrl-C, SIGTERM or a closed
    terminal release it, and `jobrunner attach` takes it over again, on any machine. Durations are such
    as 90s, 45m or 12h; a bare number is seconds.
    """
    from jobrunner.cli.describing import ensure_only_attached, show_described
    from jobrunner.cli.foreground import start_monitor_job
    from jobrunner.extras import require
    from jobrunner.models import BatchMonitorJob

    require("boto3", "aws", "AWS Batch")
    if attach is not None:
        if not attach.strip():
            raise click.UsageError("--attach needs the id of a Batch job.", ctx)
        ensure_only_attached(ctx, _DESCRIBING, ["CMD"] if command else [])
        return start_monitor_job(functools.partial(BatchMonitorJob.attach, attach), options)
    from jobrunner.cli.batch_request import merged
    from jobrunner.cli.spec_file import read_spec

    request = merged({} if spec_path is None else read_spec(spec_path), described, command)
    if dry_run:
        spec = BatchMonitorJob.from_request(request, **options.of_job).spec
        said = "Nothing was submitted. A submission appends a token to jobName, and carries it as a tag too."
        return show_described(spec, said, as_json=options.as_json)
    return start_monitor_job(functools.partial(BatchMonitorJob.from_request, request), options)


_DESCRIBING = (
    *("job_name", "job_queue", "job_definition", "parameters", "env", "array_size", "attempts"),
    *("attempt_timeout", "depends_on", "tags", "share_identifier", "spec_path", "dry_run"),
)
