"""Reading jobs again and again until they have ended."""

import time
from collections.abc import Collection, Iterator

from sqlalchemy import RowMapping

from jobrunner import queries
from jobrunner.cli.output import word
from jobrunner.clock import monotonic_s
from jobrunner.database import get_database
from jobrunner.errors import DatabaseError, JobNotFound, WaitTimeout
from jobrunner.log_limits import Trouble

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0


def rows_of(job_ids: Collection[int]) -> dict[int, RowMapping]:
    """Return the rows of all these jobs, by id. Raises `JobNotFound` where one is missing."""
    database = get_database()
    with database.read() as connection:
        rows = queries.shown_all(connection, job_ids, database.settings.grace_multiplier)
    missing = [str(job_id) for job_id in job_ids if job_id not in rows]
    if missing:
        raise JobNotFound(
            f"There is no job {', '.join(missing)}: `jobrunner list` shows those that there are."
        )
    return rows


def looks(job_id: int, timeout_s: float | None = None) -> Iterator[RowMapping]:
    """Yield a job's row, at once and then at most a second apart, for as long as the caller asks.

    A database that fails after the first look is waited for. Raises `WaitTimeout` after
    `timeout_s`, and `JobNotFound`.
    """
    until_s = None if timeout_s is None else monotonic_s() + timeout_s
    row = rows_of([job_id])[job_id]
    pause_s, trouble = _FIRST_PAUSE_S, Trouble()
    while True:
        yield row
        left_s = pause_s if until_s is None else min(pause_s, until_s - monotonic_s())
        if left_s <= 0:
            raise WaitTimeout(f"Job {job_id} is still {row['state']} after {timeout_s:g} s.")
        time.sleep(left_s)
        pause_s = min(1.5 * pause_s, _LONGEST_PAUSE_S)
        try:
            row = rows_of([job_id])[job_id]
        except DatabaseError as error:
            if trouble.begins():
                word(f"jobrunner: waiting for the database: {error}")
        else:
            trouble.ends()
