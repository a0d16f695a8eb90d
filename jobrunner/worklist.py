"""What there is for a worker to do: jobs that wait, jobs that may be orphans, and who else is at work.

These questions are asked again and again: while there is nothing, it is one statement a look.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, exists, func, literal, or_, select

from jobrunner.resources import KEY
from jobrunner.sqltypes import age_s, alive
from jobrunner.statements import may_judge, tables
from jobrunner.states import JobState

WORKER = "WorkerJob"
"""The job type of workers."""
_MISSED = 1.1  # heartrates, after which a beat is missed: no later, as the grace is counted from that look on


@dataclass(frozen=True, slots=True)
class Todo:
    """Whether there is anything to look at more closely."""

    has_queued: bool
    has_silent: bool


@dataclass(frozen=True, slots=True)
class Waiting:
    """Queued jobs that need the same: this type, this connection, this host and user, these rules."""

    job_type: str
    connection: str | None
    host_id: str | None
    host_uid: int | None
    needs: int | None
    is_held: bool
    count: int


def todo(conn: Connection) -> Todo:
    """Ask whether any job waits, and whether any running one has missed a beat, in one statement."""
    job, _ = tables()
    queued = exists(select(literal(1)).where(job.c.state == JobState.QUEUED))
    silent = exists(select(literal(1)).where(_has_missed_a_beat()))
    row = conn.execute(select(queued, silent)).one()
    return Todo(*map(bool, row))


def _has_missed_a_beat() -> Any:
    """Return the condition that a running job may be an orphan; whether it is one, our own clock says."""
    job, _ = tables()
    age = age_s(job.c.latest_heartbeat)
    is_late = or_(age > _MISSED * job.c.heartrate, age < -job.c.heartrate)
    return (job.c.state == JobState.RUNNING) & is_late & may_judge()


def waiting(conn: Connection) -> list[Waiting]:
    """Return what waits, by what it needs."""
    job, _ = tables()
    is_held = (job.c.held_at.is_not(None) & job.c.kill_requested_at.is_(None)).label("is_held")
    needs = (job.c.job_type, job.c.connection, job.c.host_id, job.c.host_uid, job.c.needs, is_held)
    statement = select(*needs, func.count()).where(job.c.state == JobState.QUEUED).group_by(*needs)
    return [Waiting(*row) for row in conn.execute(statement)]


def asked(conn: Connection, job_types: list[str]) -> list[tuple[str, str | None]]:
    """Return what queued jobs with code, of these types, ask for: (type, resources as text) each once."""
    job, _ = tables()
    statement = select(job.c.job_type, _resources()).distinct()
    statement = statement.where(job.c.state == JobState.QUEUED, job.c.job_type.in_(job_types))
    return [(job_type, text) for job_type, text in conn.execute(statement)]


def queued(
    conn: Connection, job_types: list[str], resources: Collection[str | None], most: int
) -> list[RowMapping]:
    """Return rows of the oldest queued jobs of these types that ask for one of these (see `asked`)."""
    job, _ = tables()
    statement = select(job).where(
        job.c.state == JobState.QUEUED,
        job.c.job_type.in_(job_types),
        func.coalesce(_resources(), "").in_([text or "" for text in resources]),
    )
    return list(conn.execute(statement.order_by(job.c.id).limit(most)).mappings())


def _resources() -> ColumnElement[str | None]:
    job, _ = tables()
    return cast("ColumnElement[str | None]", job.c.spec[KEY].as_string())


def silent(conn: Connection, most: int) -> list[RowMapping]:
    """Return running jobs that have missed a beat, as far as one has to know them to judge them.

    Not those whose rows somebody holds locked: their owners live, perhaps, and cannot beat.
    """
    job, _ = tables()
    columns = (
        *(job.c.id, job.c.runner_id, job.c.claims, job.c.latest_heartbeat, job.c.heartrate),
        *(job.c.job_type, job.c.connection, job.c.adoptable, job.c.host_id, job.c.hostname),
        job.c.kill_requested_at,
    )
    statement = select(*columns, age_s(job.c.latest_heartbeat).label("age_s"))
    statement = statement.where(_has_missed_a_beat()).order_by(job.c.id).limit(most)
    return list(conn.execute(_unless_locked(conn, statement)).mappings())


def is_locked(conn: Connection, job_id: int) -> bool:
    """Whether a running job has missed a beat, and is none of the `silent` as its row is held locked.

    The row of a job that beats is not locked in order to ask: its next beat would pass over it.
    """
    if conn.dialect.name != "postgresql":
        return False
    job, _ = tables()
    one = select(job.c.id).where(job.c.id == job_id)
    if conn.execute(one.where(_has_missed_a_beat())).first() is None:
        return False
    return conn.execute(_unless_locked(conn, one)).first() is None


def _unless_locked(conn: Connection, statement: Select[Any]) -> Select[Any]:
    """Leave out the rows that somebody holds locked; SQLite has no locks of single rows."""
    if conn.dialect.name != "postgresql":
        return statement
    return statement.with_for_update(read=True, skip_locked=True)


def workers(conn: Connection, grace_multiplier: float) -> list[RowMapping]:
    """Return the rows of the workers that are alive: (id, parent_id, hostname, pid, spec, detail)."""
    job, _ = tables()
    columns = (job.c.id, job.c.parent_id, job.c.hostname, job.c.pid, job.c.spec, job.c.detail)
    statement = select(*columns).where(
        job.c.state == JobState.RUNNING,
        job.c.job_type == WORKER,
        alive(job.c.state, job.c.latest_heartbeat, job.c.heartrate, grace_multiplier),
    )
    return list(conn.execute(statement.order_by(job.c.id)).mappings())
