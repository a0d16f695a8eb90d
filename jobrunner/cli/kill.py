"""`jobrunner kill`: set the kill flag, and see to the end where nobody else can."""

from typing import TYPE_CHECKING

import click

from jobrunner.cli.options import JOB_ID, complete_ids, json_option

if TYPE_CHECKING:
    from sqlalchemy import RowMapping


@click.command()
@click.argument("job_ids", metavar="ID...", type=JOB_ID, nargs=-1, required=True, shell_complete=complete_ids)
@click.option("--reason", help="Why; kept in the job's row.")
@click.option("--wait", "wait", is_flag=True, help="Wait until each job has ended.")
@json_option
def kill(*, job_ids: tuple[int, ...], reason: str | None, wait: bool, as_json: bool) -> int:
    """Kill jobs, wherever they run.

    The flag is set in the database, and the job's runner obeys it. Where nobody watches the job,
    this command cancels its work itself. Exits with 0 when every wish is recorded, and with --wait
    when every job has ended; 1 when a job is left to be cancelled by somebody else.
    """
    from jobrunner.cli.following import rows_of

    ids = list(dict.fromkeys(job_ids))
    rows_of(ids)  # all of them are there, or nothing is written
    for job_id in ids:
        _request(job_id, reason)
    codes = [_see_to_the_end(job_id, wait=wait, as_json=as_json) for job_id in ids]
    return max(codes)


def _request(job_id: int, reason: str | None) -> None:
    from jobrunner import identity, statements
    from jobrunner.database import get_database

    with get_database().write() as connection:
        statements.request_kill(connection, job_id, identity.who(), reason)


def _see_to_the_end(job_id: int, *, wait: bool, as_json: bool) -> int:
    from jobrunner.cli import spelling
    from jobrunner.cli.exits import ExitCode
    from jobrunner.cli.following import looks
    from jobrunner.cli.output import report_json, row_as_json

    code: int = ExitCode.SUCCESS
    for row in looks(job_id):
        is_left = code != ExitCode.SUCCESS
        if spelling.is_unattended(row) and not is_left:
            code = _cancel_from_here(job_id)
            continue
        if row["state"].is_terminal or not wait or is_left:
            if as_json:
                report_json(row_as_json(row))
            else:
                _tell(row)
            return code
    raise AssertionError  # `looks` ends only by an error


def _cancel_from_here(job_id: int) -> int:
    """Do the runner's work, since there is none; the outcome stands in the row."""
    from jobrunner import registry
    from jobrunner.cli.exits import ExitCode, code_of
    from jobrunner.cli.output import log_as_words, word
    from jobrunner.errors import JobEndedBadly, JobrunnerError, Released

    log_as_words()
    word(f"job {job_id} has no runner now: cancelling its work from here")
    try:
        registry.load_executor_class("LocalExecutor")().finish_kill(job_id)
    except JobEndedBadly:
        pass
    except Released as error:
        word(f"job {job_id} stays marked to be killed: whoever attaches to it next cancels it")
        return code_of(error)
    except JobrunnerError as error:
        word(f"jobrunner: job {job_id} is marked to be killed, but cannot be cancelled from here: {error}")
        return ExitCode.FAILED
    return ExitCode.SUCCESS


def _tell(row: "RowMapping") -> None:
    from jobrunner.cli import spelling
    from jobrunner.cli.output import report

    if row["state"].is_terminal:
        late = "" if row["kill_requested_at"] is not None else "already ended: "
        report(late + spelling.ended(row))
    else:
        report(f"job {row['id']} {spelling.state(row)}, kill requested")
