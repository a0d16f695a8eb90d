"""The kill flag, and why work is being cancelled."""

from typing import cast

from sqlalchemy import (
    Connection,
    RowMapping,
    case,
    func,
    literal,
    or_,
    select,
    update,
)

from jobrunner.sqltypes import db_now
from jobrunner.statements.table import (
    LIVE,
    Attempt,
    Claim,
    of_attempt,
    owned,
    tables,
    with_event,
)
from jobrunner.states import JobState


def request_kill(conn: Connection, job_id: int, by: str | None, reason: str | None) -> JobState | None:
    """Set the kill flag, once, on a job that has not ended, and return the state it stands in now.

    A queued job of which nothing was ever submitted is killed at once: there is nothing to cancel. Not one
    that is held after a restore, and that the outside may know (`submit_token`): it may have been submitted
    since the backup. None: there is no such job. Whoever set the flag first stands as the one who did.
    """
    job, _ = tables()
    flag_is_new, words = job.c.kill_requested_at.is_(None), job.c.kill_reason.type
    conn.execute(
        update(job)
        .where(job.c.id == job_id, job.c.state.in_(LIVE))
        .values(
            kill_requested_by=case(
                (flag_is_new, literal(by, job.c.kill_requested_by.type)), else_=job.c.kill_requested_by
            ),
            kill_reason=case((flag_is_new, literal(reason, words)), else_=job.c.kill_reason),
            kill_requested_at=func.coalesce(job.c.kill_requested_at, db_now()),
        )
    )
    unstarted = update(job).where(
        job.c.id == job_id,
        job.c.state == JobState.QUEUED,
        job.c.kill_requested_at.is_not(None),
        job.c.submit_started_at.is_(None),
        job.c.external_id.is_(None),
        or_(job.c.held_at.is_(None), job.c.submit_token.is_(None)),
    )
    message = "killed before it started" + (f": {reason}" if reason else "")
    with_event(
        conn,
        unstarted.values(state=JobState.KILLED, end_date=db_now(), message=message),
        JobState.QUEUED,
        JobState.KILLED,
        by or "request_kill",
        message,
    )
    return cast("JobState | None", conn.execute(select(job.c.state).where(job.c.id == job_id)).scalar())


def begin_cancel(conn: Connection, claim: Claim, attempt: Attempt, cause: str) -> RowMapping | None:
    """Record why an attempt's work is being cancelled, before the backend is asked; the first cause stands.

    Returns (cancel_cause, kill_reason) as they are in force. None: the claim no longer stands, or the
    row is at another attempt, which this cancellation does not concern.
    """
    job, _ = tables()
    statement = (
        owned(claim)
        .where(*of_attempt(attempt))
        .values(
            cancel_cause=func.coalesce(job.c.cancel_cause, cause),
            cancel_started_at=func.coalesce(job.c.cancel_started_at, db_now()),
        )
    )
    return conn.execute(statement.returning(job.c.cancel_cause, job.c.kill_reason)).mappings().first()
