"""`jobrunner db restored`: what was live in a backup is held until it is known what became of it."""

from typing import TYPE_CHECKING

import click

from jobrunner.cli.options import JOB_ID, json_option

if TYPE_CHECKING:
    from jobrunner.database import Database
    from jobrunner.restoring import HeldJob


@click.command()
@click.option("--ask", is_flag=True, help="Hold nothing more: ask again about the jobs that are held.")
@click.option(
    "--confirm",
    "confirmed",
    type=JOB_ID,
    multiple=True,
    metavar="ID",
    help="This held job has not run since the backup: it may be run; may be repeated.",
)
@click.option("--confirm-all", is_flag=True, help="None of the held jobs has run since the backup.")
@json_option
def restored(*, ask: bool, confirmed: tuple[int, ...], confirm_all: bool, as_json: bool) -> None:
    """Hold every live job after a backup was restored: it may have run since.

    Stop all workers and monitors before you restore, and run this before you start them again. A job whose
    work is found and seen outside is freed at once; the others are listed, and wait for --confirm, or for
    `jobrunner kill ID`. Jobs that are stored later are not held.
    """
    from jobrunner import restoring
    from jobrunner.cli.output import say, say_json
    from jobrunner.database import get_database

    if sum((ask, bool(confirmed), confirm_all)) > 1:
        raise click.UsageError("Give one of --ask, --confirm and --confirm-all.")
    database = get_database()
    freed: list[int] = []
    held = 0
    if confirmed or confirm_all:
        freed = restoring.confirm(database, None if confirm_all else confirmed)
    elif not ask:
        held = restoring.hold_all(database)
    left = _held(database, ask=not (confirmed or confirm_all))
    if as_json:
        say_json({"held": held, "confirmed": freed, "left": [_as_json(each) for each in left]})
        return
    if freed:
        say(f"{_counted(len(freed))} confirmed")
    elif not ask:
        say(f"{_counted(held)} held, {len(left)} of all that are held not proven")
    _say_left(left)


def _held(database: "Database", *, ask: bool) -> "list[HeldJob]":
    from jobrunner import restoring

    return restoring.prove(database) if ask else restoring.still_held(database)


def _counted(count: int) -> str:
    return f"{count} {'job' if count == 1 else 'jobs'}"


def _as_json(job: "HeldJob") -> dict[str, object]:
    return {"id": job.job_id, "job_type": job.job_type, "name": job.name, "state": job.state, "why": job.why}


def _say_left(left: "list[HeldJob]") -> None:
    from jobrunner.cli.output import Column, say_table, word

    if not left:
        word("No job is held.")
        return
    columns = [Column("id"), Column("type"), Column("name"), Column("state"), Column("why it is held")]
    say_table(columns, [(str(job.job_id), job.job_type, job.name or "", job.state, job.why) for job in left])
    word("`--confirm ID` lets one be run that has not run since; `jobrunner kill ID` ends one that has.")
