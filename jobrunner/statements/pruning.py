"""Pruning."""

from sqlalchemy import (
    Connection,
    select,
)

from jobrunner.sqltypes import db_in
from jobrunner.statements.table import (
    LIVE,
    tables,
)
from jobrunner.states import TERMINAL_STATES


def prune(conn: Connection, older_than_s: float, batch: int) -> int:
    """Delete at most `batch` jobs that ended longer ago than that, with their events; return how many.

    A parent of a job that has not ended stays. Locked rows are left for the next time.
    """
    job, _ = tables()
    child = job.alias("child")
    has_live_child = select(child.c.id).where(child.c.parent_id == job.c.id, child.c.state.in_(LIVE)).exists()
    old = (
        select(job.c.id)
        .where(
            job.c.end_date < db_in(-older_than_s), job.c.state.in_(tuple(TERMINAL_STATES)), ~has_live_child
        )
        .order_by(job.c.end_date)
        .limit(batch)
    )
    if conn.dialect.name == "postgresql":
        old = old.with_for_update(of=job, skip_locked=True)
    return conn.execute(job.delete().where(job.c.id.in_(old))).rowcount
