"""`jobrunner start armada`: a job in Armada, submitted once and watched to its end."""

import functools
from typing import Any

import click

from jobrunner.cli.options import JobOptions, Number, Pair, job_options

_EPILOG = """\b
Examples:
  jobrunner start armada --queue etl --job-set nightly --pod-spec pod.yaml
  jobrunner start armada --queue etl --job-set nightly --pod-spec - --label team=data < pod.yaml
  jobrunner start armada --queue etl --job-set nightly --pod-spec pod.yaml --dry-run
  jobrunner start armada --queue etl --job-set nightly --pod-spec pod.yaml --resubmit preempted=3
  jobrunner start armada --attach etl/nightly/01hkqz7v3n8f4c5d6e7f8g9h0j
"""


@click.command("armada", epilog=_EPILOG)
@click.option("--queue", metavar="QUEUE", help="The queue in Armada.")
@click.option("--job-set", metavar="JOB_SET", help="The job set, which Armada makes where it is new.")
@click.option(
    "--pod-spec",
    "pod_spec_path",
    metavar="FILE",
    help="The pod to run: a Kubernetes pod spec in YAML or JSON; `-` is standard input.",
)
@click.option("--namespace", metavar="NAME", help="The pod's namespace.  [default: default]")
@click.option("--priority", type=Number(min=0), metavar="N", help="0 is the most urgent.  [default: 0]")
@click.option(
    "--label",
    "labels",
    type=Pair(),
    multiple=True,
    metavar="NAME=VALUE",
    help="A label of the pod; may be repeated.",
)
@click.option(
    "--annotation",
    "annotations",
    type=Pair(),
    multiple=True,
    metavar="NAME=VALUE",
    help="An annotation of the pod; may be repeated. Secrets are refused.",
)
@click.option(
    "--attach", metavar="QUEUE/JOB_SET/JOB_ID", help="Watch an Armada job that somebody else submitted."
)
@click.option("--dry-run", is_flag=True, help="Print the validated job, and submit and store nothing.")
@job_options("the Armada job", default_name="queue and job set", causes=("preempted", "oom", "rejected"))
@click.pass_context
def armada(
    ctx: click.Context,
    /,
    *,
    attach: str | None,
    dry_run: bool,
    options: JobOptions,
    **described: Any,
) -> int:
    """Submit a job to Armada, exactly once, and watch it to its end.

    The job outlives this process: Ctrl-C, SIGTERM or a closed terminal release it, and `jobrunner
    attach` takes it over again, on any machine. Durations are such as 90s, 45m or 12h; a bare number is
    seconds.
    """
    from jobrunner.cli.describing import ensure_only_attached, show_described
    from jobrunner.cli.foreground import start_monitor_job
    from jobrunner.extras import require
    from jobrunner.models.armada_monitor_job import ArmadaMonitorJob

    require("armada_client", "armada", "Armada")
    if attach is not None:
        ensure_only_attached(ctx, _DESCRIBING)
        return start_monitor_job(functools.partial(ArmadaMonitorJob.attach, *_parts(ctx, attach)), options)
    make = functools.partial(ArmadaMonitorJob, **_arguments(ctx, described))
    if dry_run:
        said = "Nothing was submitted. A submission carries a token as its client id, which makes it unique."
        return show_described(make(**options.of_job).spec, said, as_json=options.as_json)
    return start_monitor_job(make, options)


_DESCRIBING = (
    "queue",
    "job_set",
    "pod_spec_path",
    "namespace",
    "priority",
    "labels",
    "annotations",
    "dry_run",
)


_ADVICE = "or may see the pod, would see it: let the pod take it from a Kubernetes secret (`secretKeyRef`)."


def _arguments(ctx: click.Context, described: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments for the job's class. Raises click's `UsageError` and `SpecError`."""
    from jobrunner.cli.describing import ensure_no_secret
    from jobrunner.cli.spec_file import read_spec

    names = {"--queue": "queue", "--job-set": "job_set", "--pod-spec": "pod_spec_path"}
    missing = [option for option, name in names.items() if not (described[name] or "").strip()]
    if missing:
        raise click.UsageError(f"An Armada job needs {', '.join(missing)}.", ctx)
    for option, pairs in (("--label", described["labels"]), ("--annotation", described["annotations"])):
        ensure_no_secret(option, pairs, _ADVICE)
    return {
        "queue": described["queue"],
        "job_set_id": described["job_set"],
        "pod_spec": read_spec(described["pod_spec_path"], extra="armada"),
        "namespace": described["namespace"],
        "priority": described["priority"],
        "labels": dict(described["labels"]) or None,
        "annotations": dict(described["annotations"]) or None,
    }


def _parts(ctx: click.Context, attach: str) -> list[str]:
    from jobrunner.backends.armada.ids import JobKey

    try:
        return list(JobKey.split(attach))
    except ValueError:
        raise click.UsageError(
            "--attach needs QUEUE/JOB_SET/JOB_ID; a / within one of them is written as %2F.", ctx
        ) from None
