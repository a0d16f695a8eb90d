"""`jobrunner check`: whether a job is alive, told by the exit code. It imports as little as it can."""

import gc

import click

from jobrunner.cli.options import Grace, ensure_known_types, job_type_option, json_option

_NAMED = 100
"""How many living jobs are named at most: whoever runs thousands asks whether, not which."""


@click.command()
@job_type_option
@click.option("--hostname", help="Only jobs that run on this host.")
@click.option("--local", is_flag=True, help="Only jobs that run on the host where this is asked.")
@click.option("--allow-multiple", is_flag=True, help="More than one alive is well, too.")
@click.option(
    "--grace-multiplier", type=Grace(), help="How many heartrates of silence are alive.  [default: 2.1]"
)
@json_option
def check(
    *,
    job_types: tuple[str, ...],
    hostname: str | None,
    local: bool,
    allow_multiple: bool,
    grace_multiplier: float | None,
    as_json: bool,
) -> int:
    """Tell by the exit code whether a job is alive: 0 alive, 1 not.

    Without --allow-multiple, more than one alive job is 1 as well.
    """
    from jobrunner.cli.exits import ExitCode
    from jobrunner.cli.output import say, say_json, word

    gc.disable()  # imports make much and leave nothing to collect: a tenth of the whole time
    try:
        from jobrunner import identity, queries
        from jobrunner.database import get_database
    finally:
        gc.enable()

    if local and hostname is not None:
        raise click.UsageError("Give --local or --hostname, not both.")
    database = get_database()
    grace = database.settings.grace_multiplier if grace_multiplier is None else grace_multiplier
    with database.read() as connection:
        ids = queries.alive_ids(
            connection,
            grace,
            job_types=job_types or None,
            hostname=identity.hostname() if local else hostname,
            limit=_NAMED + 1 if allow_multiple else 2,  # a second one is one too many, however many there are
        )
        if not ids:
            ensure_known_types(connection, job_types)
    is_well = bool(ids) and (allow_multiple or len(ids) == 1)
    if as_json:
        say_json({"ok": is_well, "alive": ids[:_NAMED], "more": len(ids) > _NAMED})
    else:
        for job_id in ids[:_NAMED]:
            if not say(f"job {job_id} is alive"):
                break
    if len(ids) > _NAMED:
        word(f"More than {_NAMED} are alive: `jobrunner list --state running` shows them.")
    if not ids:
        word("No such job is alive." if job_types or hostname or local else "No job is alive.")
    elif not is_well:
        word("More than one job is alive: --allow-multiple if that is well.")
    return ExitCode.SUCCESS if is_well else ExitCode.FAILED
