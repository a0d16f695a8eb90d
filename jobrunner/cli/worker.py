"""`jobrunner worker`: take queued jobs and orphans, and run them to their end."""

from collections.abc import Callable
from typing import Any

import click

from jobrunner.cli.options import (
    Duration,
    Label,
    WholeNumber,
    complete_connections,
    job_type_option,
    json_option,
)


class _Address(click.ParamType):  # type: ignore[type-arg]
    """A port, or HOST:PORT."""

    name = "[host:]port"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        """Return the host and the port."""
        if isinstance(value, tuple):
            return value  # converted before
        host, _, port = str(value).rpartition(":")
        if not port.isdecimal() or not 0 < int(port) < 2**16:
            self.fail(f"{value!r} is no port: give one such as 8080, or 0.0.0.0:8080", param, ctx)
        return host.strip("[]") or "127.0.0.1", int(port)


@click.command()
@click.option("--name", type=Label(), help="The worker's own name.")
@click.option(
    "--capacity",
    type=WholeNumber(min=0),
    metavar="N",
    default=10_000,
    show_default=True,
    help="How many jobs it watches at most; with Dask, on each Dask worker.",
)
@click.option(
    "--processes",
    type=WholeNumber(min=0),
    metavar="N",
    help="How many jobs with code of their own it runs at once, each in a process.  "
    "[default: one a CPU; with Dask, one a thread of the cluster]",
)
@click.option(
    "--executor",
    "placed_by",
    type=click.Choice(["local", "dask"]),
    default="local",
    show_default=True,
    help="Where the jobs are run: on this machine, or spread over a Dask cluster.",
)
@click.option(
    "--dask-address",
    metavar="ADDRESS",
    help="The Dask scheduler, such as tcp://10.0.0.1:8786, or local: a cluster on this machine.",
)
@job_type_option
@click.option(
    "--connection",
    "connections",
    multiple=True,
    metavar="NAME",
    shell_complete=complete_connections,
    help="Only jobs that use this connection; may be repeated.",
)
@click.option(
    "--import",
    "imports",
    multiple=True,
    metavar="MODULE",
    help="A module to import, which defines job types; may be repeated.",
)
@click.option("--heartrate", type=Duration(), help="Time between two beats of the worker itself.")
@click.option(
    "--drain-timeout",
    type=Duration(),
    default="10m",
    show_default=True,
    help="How long it waits for its child processes when it is told to stop.",
)
@click.option(
    "--probe-port",
    "probe",
    type=_Address(),
    metavar="[HOST:]PORT",
    help="Answer GET /livez and /readyz here; without HOST, on 127.0.0.1.",
)
@json_option
def worker(
    *,
    placed_by: str,
    dask_address: str | None,
    imports: tuple[str, ...],
    heartrate: float | None,
    drain_timeout: float,
    as_json: bool,
    **given: Any,
) -> int:
    """Take queued jobs and orphans, and run them to their end.

    SIGTERM and Ctrl-C drain: nothing more is taken, the jobs are given back to be taken by others, and
    nothing outside is cancelled. A second signal ends it at once, and loses nothing either.
    """
    from jobrunner import registry
    from jobrunner.cli.exits import ExitCode, code_of
    from jobrunner.cli.output import report, report_json, word
    from jobrunner.cli.start_own import find_modules_here, imports_of
    from jobrunner.errors import JobEndedBadly
    from jobrunner.logs import log_as_lines
    from jobrunner.worker import WorkerJob
    from jobrunner.worker.collector import calm

    log_as_lines()
    find_modules_here()
    for module in imports:
        with imports_of(f"The module {module!r}"):
            registry.load_module(module)
    _ensure_known(given["job_types"], given["connections"])

    def started(job_id: int) -> None:
        if as_json:
            report_json({"id": job_id, "state": "running"})
        else:
            report(f"job {job_id}")
            word(f"worker {job_id} takes jobs: Ctrl-C stops it, and cancels nothing.")

    executor = _executor(placed_by, dask_address, started)
    job = WorkerJob(executor, heartrate, imports=imports, drain_timeout=drain_timeout, **given)
    calm()
    try:
        job.run()
    except JobEndedBadly as error:
        word(f"jobrunner: {error}")
        return code_of(error)
    if job.state.is_terminal:
        word(f"worker {job.id} has {job.message}: its jobs were given back.")
    else:
        word(f"worker {job.id} has stopped. The database did not answer: others find its jobs silent.")
    return ExitCode.SUCCESS


def _executor(placed_by: str, dask_address: str | None, started: Callable[[int], None]) -> Any:
    from jobrunner import registry
    from jobrunner.errors import UsageError

    if placed_by == "local":
        if dask_address is not None:
            raise UsageError("--dask-address is for --executor dask.")
        return registry.load_executor_class("LocalExecutor")(on_started=started)
    if dask_address is None:
        raise UsageError(
            "--executor dask needs --dask-address: tcp://HOST:PORT of a scheduler, "
            "or local for a cluster on this machine."
        )
    return registry.load_executor_class("DaskExecutor")(dask_address, on_started=started)


def _ensure_known(job_types: tuple[str, ...], connections: tuple[str, ...]) -> None:
    """Refuse a type that cannot be loaded here, and a connection that is not configured."""
    from jobrunner import registry
    from jobrunner.cli.connections import all_connections
    from jobrunner.errors import UsageError
    from jobrunner.models import BaseJob

    known = {*registry.job_type_names(), *map(str, BaseJob.__mapper__.polymorphic_map)}
    for job_type in job_types:
        if job_type not in known:
            raise UsageError(
                f"The job type {job_type!r} is not known here: install what registers it, "
                "or --import its module."
            )
    names = [each.name for each in all_connections()]
    for name in connections:
        if name not in names:
            raise UsageError(
                f"There is no connection {name!r}: known are {', '.join(sorted(names)) or 'none'}."
            )
