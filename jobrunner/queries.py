"""Every question about jobs that changes nothing. They read rows, never entities."""

import datetime as dt
from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, select

from jobrunner.sqltypes import age_s, alive
from jobrunner.statements import tables
from jobrunner.states import TERMINAL_STATES, JobState


def most_recent(conn: Connection, job_types: Collection[str] | None) -> RowMapping | None:
    """Return the row of the most recent job of these types (None: of any), or None.

    A running one before any other, by its latest heartbeat; else the one last ended, or one that
    waits and has the later heartbeat.
    """
    job, _ = tables()
    of_type = [] if job_types is None else [job.c.job_type.in_(job_types)]
    base = select(job.c.id, job.c.latest_heartbeat).where(*of_type).limit(1)
    running = base.where(job.c.state == JobState.RUNNING).order_by(job.c.latest_heartbeat.desc())
    found = conn.execute(running).first()
    if found is None:
        ended = base.where(job.c.end_date.is_not(None)).order_by(job.c.end_date.desc())
        waiting = base.where(job.c.end_date.is_(None)).order_by(job.c.latest_heartbeat.desc())
        rest = [row for query in (ended, waiting) for row in conn.execute(query)]
        if not rest:
            return None
        found = max(rest, key=lambda row: row.latest_heartbeat)
    return conn.execute(select(job).where(job.c.id == found.id)).mappings().first()


def is_alive(conn: Connection, job_id: int, grace_multiplier: float) -> bool:
    """Judge one job by the database's clock (PROTOCOL 4). A job that is not there is not alive."""
    job, _ = tables()
    verdict = alive(job.c.state, job.c.latest_heartbeat, job.c.heartrate, grace_multiplier)
    return bool(conn.execute(select(verdict).where(job.c.id == job_id)).scalar())


def alive_ids(
    conn: Connection,
    grace_multiplier: float,
    *,
    job_types: Collection[str] | None = None,
    hostname: str | None = None,
    limit: int | None = None,
) -> list[int]:
    """Return the ids of the jobs that are alive, newest first: judged before any limit."""
    job, _ = tables()
    statement = select(job.c.id).where(
        alive(job.c.state, job.c.latest_heartbeat, job.c.heartrate, grace_multiplier)
    )
    if job_types is not None:
        statement = statement.where(job.c.job_type.in_(job_types))
    if hostname is not None:
        statement = statement.where(job.c.hostname == hostname)
    return list(conn.execute(statement.order_by(job.c.id.desc()).limit(limit)).scalars().all())


def listed(
    conn: Connection,
    grace_multiplier: float,
    *,
    states: Collection[JobState] = (),
    job_types: Collection[str] = (),
    name: str | None = None,
    dag_id: str | None = None,
    since_s: float | None = None,
    since: dt.datetime | None = None,
    limit: int = 50,
) -> list[RowMapping]:
    """Return rows for a list, newest first, each with `alive`, `age_s` and `running_s`.

    `since_s`, `since`: only jobs created within so many seconds, or since that time.
    """
    job, _ = tables()
    statement = _judged(grace_multiplier)
    if states:
        statement = statement.where(job.c.state.in_([JobState(state) for state in states]))
    if job_types:
        statement = statement.where(job.c.job_type.in_(job_types))
    if name is not None:
        statement = statement.where(job.c.name == name)
    if dag_id is not None:
        statement = statement.where(job.c.dag_id == dag_id)
    if since_s is not None:
        statement = statement.where(age_s(job.c.created_at) <= since_s)
    if since is not None:
        statement = statement.where(job.c.created_at >= since)
    return list(conn.execute(statement.order_by(job.c.id.desc()).limit(limit)).mappings().all())


def shown(conn: Connection, job_id: int, grace_multiplier: float) -> RowMapping | None:
    """Return one job's whole row with `alive`, `age_s` and `running_s`; None when there is none."""
    job, _ = tables()
    return conn.execute(_judged(grace_multiplier).where(job.c.id == job_id)).mappings().first()


def _judged(grace_multiplier: float) -> Select[Any]:
    job, _ = tables()
    return select(
        job,
        alive(job.c.state, job.c.latest_heartbeat, job.c.heartrate, grace_multiplier).label("alive"),
        age_s(job.c.latest_heartbeat).label("age_s"),
        age_s(job.c.start_date).label("running_s"),
    )


def shown_all(conn: Connection, job_ids: Collection[int], grace_multiplier: float) -> dict[int, RowMapping]:
    """Return the rows of those of `job_ids` that there are, by id, as `shown` has them."""
    job, _ = tables()
    rows = conn.execute(_judged(grace_multiplier).where(job.c.id.in_(job_ids))).mappings()
    return {row["id"]: row for row in rows}


def has_type(conn: Connection, job_type: str) -> bool:
    """Whether there is any job of this type."""
    job, _ = tables()
    return conn.execute(select(job.c.id).where(job.c.job_type == job_type).limit(1)).first() is not None


def types(conn: Connection) -> list[str]:
    """Return the types of the jobs that there are."""
    job, _ = tables()
    return list(conn.execute(select(job.c.job_type).distinct().order_by(job.c.job_type)).scalars().all())


def events(conn: Connection, job_id: int) -> list[RowMapping]:
    """Return a job's events, oldest first."""
    _, job_event = tables()
    statement = select(job_event).where(job_event.c.job_id == job_id).order_by(job_event.c.id)
    return list(conn.execute(statement).mappings().all())


def children(conn: Connection, job_id: int) -> list[RowMapping]:
    """Return the rows of the jobs that this one enqueued, oldest first."""
    job, _ = tables()
    statement = select(job).where(job.c.parent_id == job_id).order_by(job.c.id)
    return list(conn.execute(statement).mappings().all())


def any_live(conn: Connection) -> bool:
    """Whether any job is queued or running: its runner may be of another version."""
    job, _ = tables()
    live = [state for state in JobState if state not in TERMINAL_STATES]
    return conn.execute(select(job.c.id).where(job.c.state.in_(live)).limit(1)).first() is not None
