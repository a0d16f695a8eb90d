"""The kill flag, and why work is being cancelled."""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple, cast

from sqlalchemy import (
    Connection,
    bindparam,
    case,
    func,
    literal,
    or_,
    select,
    update,
)

from jobrunner.sqltypes import db_now
from jobrunner.statements.given import json_of
from jobrunner.statements.table import (
    LIVE,
    of_given,
    tables,
    with_event,
)
from jobrunner.states import JobState
from jobrunner.text import text_of


def request_kill(conn: Connection, job_id: int, by: object, reason: object) -> JobState | None:
    """Set the kill flag, once, on a job that has not ended, and return the state it stands in now.

    `by`, `reason`: text, or whatever has one, such as an error; a kill counts whatever they are.

    A queued job of which nothing was ever submitted is killed at once: there is nothing to cancel. Not one
    that is held after a restore, and that the outside may know (`submit_token`): it may have been submitted
    since the backup. None: there is no such job. Whoever set the flag first stands as the one who did.
    """
    by, reason = (None if given is None else text_of(given) for given in (by, reason))
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


class Cancel(NamedTuple):
    """Why an attempt's work is to be cancelled, and what its job's row must say for that."""

    job_id: int
    claims: int
    submit_token: str | None
    external_id: str | None
    cause: str


class Begun(NamedTuple):
    """A cancellation that is on record, as it is in force."""

    cause: str
    kill_reason: str | None


def begin_cancel_many(conn: Connection, runner_id: str, cancels: Sequence[Cancel]) -> dict[int, Begun]:
    """Record why attempts' work is being cancelled, before the backend is asked; the first cause stands.

    One a job, in one statement; return what is in force, by the jobs' ids. A row that does not come back is
    no verdict: it is no longer this runner's, or it is at another attempt, which the cancellation does not
    concern, or somebody holds it locked; `look` tells these apart.
    """
    if not cancels:
        return {}
    parameters = {"me": runner_id, "rows": json_of([list(each) for each in cancels])}
    begun = conn.execute(_begin_cancel_many(conn.dialect.name), parameters)
    return {job_id: Begun(cause, reason) for job_id, cause, reason in begun.all()}


@cache
def _begin_cancel_many(dialect: str) -> Any:
    job, _ = tables()
    statement, said = of_given(
        dialect,
        Cancel._fields,
        {},
        lambda said: [
            job.c.runner_id == bindparam("me"),
            job.c.submit_token.is_not_distinct_from(said["submit_token"]),
            job.c.external_id.is_not_distinct_from(said["external_id"]),
        ],
        ("cause",),
    )
    return statement.values(
        cancel_cause=func.coalesce(job.c.cancel_cause, said["cause"]),
        cancel_started_at=func.coalesce(job.c.cancel_started_at, db_now()),
    ).returning(job.c.id, job.c.cancel_cause, job.c.kill_reason)
