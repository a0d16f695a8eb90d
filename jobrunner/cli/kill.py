"""`jobrunner kill`: set the kill flag, and see to the end where nobody else can."""

from typing import TYPE_CHECKING

import click

from jobrunner.cli.options import JOB_ID, complete_ids, json_option

if TYPE_CHECKING:
    from sqlalchemy import RowMapping

    from jobrunner.errors import JobrunnerError

CANCEL_WITHIN_S = 60.0
"""Seconds for which jobs that nobody watches are cancelled from here, without --wait."""


@click.command()
@click.argument("job_ids", metavar="ID...", type=JOB_ID, nargs=-1, required=True, shell_complete=complete_ids)
@click.option("--reason", help="Why; kept in the job's row.")
@click.option("--wait", "wait", is_flag=True, help="Wait until each job has ended.")
@json_option
def kill(*, job_ids: tuple[int, ...], reason: str | None, wait: bool, as_json: bool) -> int:
    """Kill jobs, wherever they run.

    The flag is set in the database, and the job's runner obeys it. Where nobody watches the job,
    this command cancels its work itself, for a minute at most without --wait. Exits with 0 when every
    wish is recorded, and with --wait when every job has ended; 1 when a job is left to be cancelled by
    somebody else.
    """
    from jobrunner.cli.exits import ExitCode, tell
    from jobrunner.cli.following import rows_of
    from jobrunner.database import get_database
    from jobrunner.errors import DatabaseError
    from jobrunner.models.kill_flag import request_kill

    ids = list(dict.fromkeys(job_ids))
    rows_of(ids)  # all of them are there, or nothing is written
    codes, flagged = [int(ExitCode.SUCCESS)], []
    for job_id in ids:
        try:
            request_kill(get_database(), job_id, reason=reason)
            flagged.append(job_id)
        except DatabaseError as error:  # of this job; the others are to be killed all the same
            codes.append(tell(error))
    return max(*codes, _see_to_the_ends(flagged, wait=wait, as_json=as_json) if flagged else 0)


def _see_to_the_ends(ids: list[int], *, wait: bool, as_json: bool) -> int:
    """Say how the jobs stand, and see to the ends of those that nobody watches, or with `wait` of all."""
    from jobrunner.cli import spelling
    from jobrunner.cli.exits import ExitCode
    from jobrunner.cli.following import rows_of

    rows = rows_of(ids)
    alone = [job_id for job_id in ids if spelling.is_unattended(rows[job_id])]
    attended = [job_id for job_id in ids if wait and job_id not in alone and not _has_ended(rows[job_id])]
    for job_id in ids:
        if job_id not in alone and job_id not in attended:
            _tell(rows[job_id], as_json=as_json)
    if not alone and not attended:
        return ExitCode.SUCCESS
    return _finish(alone, attended, wait=wait, as_json=as_json)


def _finish(alone: list[int], attended: list[int], *, wait: bool, as_json: bool) -> int:
    """Do the runner's work where there is none; the outcomes stand in the rows."""
    import asyncio

    from jobrunner.cli.exits import code_of
    from jobrunner.cli.following import rows_of
    from jobrunner.cli.output import log_as_words, word
    from jobrunner.database import get_database
    from jobrunner.errors import JobrunnerError
    from jobrunner.executors.killing import Kills

    codes = []

    def on_over(job_id: int, error: JobrunnerError | None) -> None:
        try:
            row = rows_of([job_id])[job_id]
        except JobrunnerError as trouble:
            word(f"jobrunner: it cannot be seen how job {job_id} stands: {trouble}")
            codes.append(code_of(trouble))
            return
        codes.append(_code_of_end(row, error))
        _tell(row, as_json=as_json)

    log_as_words()
    for job_id in alone:
        word(f"job {job_id} has no runner now: cancelling its work from here")
    asyncio.run(Kills(get_database(), None if wait else CANCEL_WITHIN_S, on_over).run(alone, attended))
    return max(codes)


def _code_of_end(row: "RowMapping", error: "JobrunnerError | None") -> int:
    """Return the exit code, and say of a job that is left who cancels it."""
    from jobrunner.cli.exits import ExitCode, as_sentence, code_of
    from jobrunner.cli.output import word
    from jobrunner.errors import JobEndedBadly, Released, WaitTimeout

    job_id = row["id"]
    if error is None or isinstance(error, JobEndedBadly) or _has_ended(row):
        return ExitCode.SUCCESS
    if isinstance(error, Released):
        word(f"job {job_id} stays marked to be killed: whoever attaches to it next cancels it")
        return code_of(error)
    if isinstance(error, WaitTimeout):
        why = f" ({row['message']})" if row["message"] else ""
        word(
            f"jobrunner: job {job_id} was not seen to end within {CANCEL_WITHIN_S:g} s{why}: it stays marked "
            f"to be killed, and a worker, or `jobrunner attach {job_id}`, goes on to cancel it"
        )
    else:
        said = f"job {job_id} is marked to be killed, but cannot be cancelled from here: {error}"
        word(f"jobrunner: {as_sentence(said)}")
    return ExitCode.FAILED


def _has_ended(row: "RowMapping") -> bool:
    return bool(row["state"].is_terminal)


def _tell(row: "RowMapping", *, as_json: bool) -> None:
    from jobrunner.cli import spelling
    from jobrunner.cli.output import report, report_json, row_as_json

    if as_json:
        report_json(row_as_json(row))
    elif row["state"].is_terminal:
        late = "" if row["kill_requested_at"] is not None else "already ended: "
        report(late + spelling.ended(row))
    else:
        report(f"job {row['id']} {spelling.state(row)}, kill requested")
