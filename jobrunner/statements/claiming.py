"""Storing and claiming, adopting, losing."""

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import (
    Connection,
    RowMapping,
    func,
    insert,
    literal,
    update,
)

from jobrunner.sqltypes import db_now, same_moment
from jobrunner.statements.table import (
    Claim,
    Owner,
    Sighting,
    actor_of,
    get,
    is_bound_to,
    tables,
    with_event,
)
from jobrunner.states import JobState


def store(conn: Connection, values: Mapping[str, Any], owner: Owner | None, actor: str) -> RowMapping:
    """Insert a job and return its row: queued, or, with an `owner`, already claimed by him.

    A foreground start inserts its row claimed, so that no worker can take it in between.
    """
    job, _ = tables()
    state = JobState.QUEUED if owner is None else JobState.RUNNING
    row = {"created_at": db_now(), "latest_heartbeat": db_now()} | dict(values) | {"state": state}
    if owner is not None:
        row |= owned_by(owner) | {"claims": 1, "start_date": db_now()}
    job_id = with_event(conn, insert(job).values(row), None, state, actor, "stored")
    assert job_id is not None  # an INSERT that did nothing raises
    return get(conn, job_id)


def claim_queued(conn: Connection, job_id: int, owner: Owner, host_id: str | None = None) -> Claim | None:
    """Claim a queued job that this host can serve; None when it is not there to be claimed.

    `host_id`: another host that this one can serve, beside its own (`identity.can_serve`).
    """
    job, _ = tables()
    guard = [job.c.state == JobState.QUEUED, is_bound_to(owner.host_id, host_id)]
    return _claim(conn, job_id, owner, JobState.QUEUED, guard, "claimed")


def adopt(conn: Connection, seen: Sighting, owner: Owner, host_id: str | None = None) -> Claim | None:
    """Take over a running job that still stands exactly as it was seen; None when it does not.

    The caller has watched it stand still for a whole grace on his own clock (PROTOCOL 6).
    `host_id`: as for `claim_queued`.
    """
    job, _ = tables()
    guard = [*_stands_as(seen), job.c.adoptable, is_bound_to(owner.host_id, host_id)]
    return _claim(conn, seen.job_id, owner, JobState.RUNNING, guard, "adopted from a silent runner")


def lose(conn: Connection, seen: Sighting, actor: str, message: str) -> bool:
    """End as `lost` an orphan that nobody can adopt; False when it does not stand as it was sighted.

    The same watching comes before it as before an adoption.
    """
    job, _ = tables()
    statement = update(job).where(*_stands_as(seen))
    values = {"state": JobState.LOST, "end_date": db_now(), "message": message}
    event = (JobState.RUNNING, JobState.LOST, actor, message)
    return with_event(conn, statement.values(values), *event) is not None


def _stands_as(seen: Sighting) -> list[Any]:
    job, _ = tables()
    return [
        job.c.id == seen.job_id,
        job.c.state == JobState.RUNNING,
        job.c.runner_id.is_not_distinct_from(seen.runner_id),
        job.c.claims == seen.claims,
        same_moment(job.c.latest_heartbeat, literal(seen.latest_heartbeat, job.c.latest_heartbeat.type)),
    ]


def _claim(
    conn: Connection, job_id: int, owner: Owner, before: JobState, guard: Iterable[Any], why: str
) -> Claim | None:
    job, _ = tables()
    statement = (
        update(job)
        .where(job.c.id == job_id, *guard)
        .values(
            state=JobState.RUNNING,
            claims=job.c.claims + 1,
            latest_heartbeat=db_now(),
            start_date=func.coalesce(job.c.start_date, db_now()),
            **owned_by(owner),
        )
    )
    if with_event(conn, statement, before, JobState.RUNNING, actor_of(owner.runner_id), why) is None:
        return None
    row = get(conn, job_id)
    # Somebody may have claimed it again since: then the first beat will tell.
    return Claim(job_id, owner.runner_id, row["claims"]) if row["runner_id"] == owner.runner_id else None


def owned_by(owner: Owner) -> dict[str, Any]:
    return {
        "runner_id": owner.runner_id,
        "executor_class": owner.executor_class,
        "hostname": owner.hostname,
        "unixname": owner.unixname,
        "pid": owner.pid,
        "process_started_at": owner.process_started_at,
    }
