"""The kill flag, set so that an error never leaves open whether it was."""

from sqlalchemy import Connection

from jobrunner import identity, statements
from jobrunner.database import Database
from jobrunner.doubt import WriteOnce
from jobrunner.errors import DatabaseError, DatabaseUnavailable
from jobrunner.states import JobState


def request_kill(
    database: Database, job_id: int, by: str | None = None, reason: object = None
) -> JobState | None:
    """Set the kill flag, and return the state that the job is in then; None: there is no such job.

    An error after which the flag stands all the same is none: whoever owns the job obeys it. Raises
    `DatabaseError`, which says so where nobody can tell.
    """

    def look(connection: Connection) -> JobState | None:
        row = statements.get_or_none(connection, job_id)
        return None if row is None or row["kill_requested_at"] is None else JobState(row["state"])

    def unknown(error: DatabaseError) -> DatabaseError:
        return DatabaseUnavailable(
            f"Whether the kill of job {job_id} was recorded is not known: ask for it again, which does no "
            f"harm. {error}"
        )

    return WriteOnce(
        database,
        lambda connection: statements.request_kill(connection, job_id, by or identity.who(), reason),
        look,
        unknown,
    ).do()
