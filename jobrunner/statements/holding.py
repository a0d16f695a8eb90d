"""Holds: after a backup was restored, no live row may be claimed until it is known what became of it."""

from sqlalchemy import Connection, RowMapping, case, func, null, select, update

from jobrunner.sqltypes import db_now
from jobrunner.statements.table import LIVE, get_or_none, tables, with_event, with_events
from jobrunner.statements.workers import is_worker
from jobrunner.states import JobState

HELD = "held: the database was restored from a backup, and the job may have run since"
"""What a held row shows until something better is known."""
UNFOUND = "no work of it was found outside, which does not prove that there was none"
"""What is known of a held job whose submission nobody outside knows."""


def hold_live(conn: Connection, actor: str) -> list[int]:
    """Hold every queued or running job that is not held yet, but for workers, and return their ids.

    A hold lasts until `free`, or until the kill flag is set.
    """
    job, _ = tables()
    ids: list[int] = []
    for state in LIVE:
        live = update(job).where(job.c.state == state, ~is_worker(conn), job.c.held_at.is_(None))
        statement = live.values(held_at=db_now(), message=HELD)
        ids += with_events(conn, statement, state, state, actor, HELD)
    return sorted(ids)


def held_rows(conn: Connection) -> list[RowMapping]:
    """Return the rows that are held, in the order of their ids."""
    job, _ = tables()
    statement = select(job).where(job.c.held_at.is_not(None), job.c.state.in_(LIVE)).order_by(job.c.id)
    return list(conn.execute(statement).mappings())


def say_held(conn: Connection, job_id: int, message: str) -> None:
    """Write why a job is still held."""
    job, _ = tables()
    conn.execute(update(job).where(job.c.id == job_id, job.c.held_at.is_not(None)).values(message=message))


def free(conn: Connection, job_id: int, actor: str, reason: str, new_token: str | None = None) -> bool:
    """Let a held job be claimed again; False: it was not held.

    `new_token` replaces the submit token of a job of which no submission was ever begun: where the
    outside was asked for it, the old one may be spent.
    """
    job, _ = tables()
    row = get_or_none(conn, job_id)
    if row is None or row["state"] not in LIVE:
        return False
    unsubmitted = (
        job.c.submit_token.is_not(None) & job.c.external_id.is_(None) & job.c.submit_started_at.is_(None)
    )
    statement = update(job).where(job.c.id == job_id, job.c.held_at.is_not(None), job.c.state == row["state"])
    values = {
        "held_at": null(),
        "message": null(),
        # What was found outside was submitted for this job, though the backup does not know when.
        "submit_started_at": case(
            (job.c.external_id.is_not(None), func.coalesce(job.c.submit_started_at, job.c.created_at)),
            else_=job.c.submit_started_at,
        ),
    }
    if new_token is not None:
        values["submit_token"] = case((unsubmitted, new_token), else_=job.c.submit_token)
    state = JobState(row["state"])
    return with_event(conn, statement.values(values), state, state, actor, reason) is not None
