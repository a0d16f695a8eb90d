"""`jobrunner wait`: wait until a job has ended, wherever it runs."""

import click

from jobrunner.cli.options import JOB_ID, Duration, complete_ids, json_option


@click.command()
@click.argument("job_id", metavar="ID", type=JOB_ID, shell_complete=complete_ids)
@click.option("--timeout", type=Duration(), help="How long to wait at most; without it, for ever.")
@json_option
def wait(job_id: int, *, timeout: float | None, as_json: bool) -> int:
    """Wait until a job has ended, and exit as it ended; 5 when the time is over first."""
    from jobrunner.cli import spelling
    from jobrunner.cli.exits import CODE_OF_STATE
    from jobrunner.cli.following import looks
    from jobrunner.cli.output import report, report_json, row_as_json, word

    was_unattended = False
    for row in looks(job_id, timeout):
        code = CODE_OF_STATE.get(row["state"])
        if code is not None:
            if as_json:
                report_json(row_as_json(row))
            else:
                report(spelling.ended(row))
            return code
        if spelling.is_unattended(row) and not was_unattended:
            was_unattended = True
            how = "silent" if row["state"] == "running" else "released"
            word(f"job {job_id} is {how}, and nobody watches it now: `jobrunner attach {job_id}` does.")
    raise AssertionError  # `looks` ends only by an error
