"""Submit once: the intent, the answer, another token."""

import datetime as dt
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, cast

from sqlalchemy import (
    Connection,
    Update,
    bindparam,
    case,
    null,
    or_,
    select,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.sql.dml import ReturningUpdate

from jobrunner.sqltypes import db_now
from jobrunner.statements.table import (
    LIVE,
    PROTOCOL,
    Claim,
    Manner,
    actor_of,
    bound_fence,
    changing,
    fence_of,
    is_one,
    manner,
    owned,
    tables,
    with_event,
)
from jobrunner.states import JobState


def begin_submit(
    conn: Connection,
    claim: Claim,
    token: str,
    host_id: str | None = None,
    baseline: str | None = None,
    host_uid: int | None = None,
) -> dt.datetime | None:
    """Record that the submission under `token` begins now, and return the database's time of it.

    `host_id` and `host_uid` bind the job to this host and user from here on, where its work runs on the
    host itself.
    `baseline`: what its backend found outside right before, by which it tells later what is new.
    None: it may not begin, because the claim is lost, a kill is wished, or an external id stands.
    """
    binds = {"host_id": host_id, "host_uid": host_uid}
    here = {f"here_{name}": value for name, value in binds.items() if value is not None}
    statement = _begun(manner(conn), frozenset(name for name, value in binds.items() if value is not None))
    given = {**fence_of(claim), "token": token, "baseline": baseline, **here}
    return cast("dt.datetime | None", conn.execute(statement, given).scalar())


@cache  # built once: to build it takes as long as to send it
def _begun(how: Manner, binds: frozenset[str]) -> ReturningUpdate[Any]:
    job, _ = tables()
    statement = changing(how, *bound_fence()).where(
        job.c.submit_token == bindparam("token"),
        job.c.external_id.is_(None),
        job.c.kill_requested_at.is_(None),
    )
    values: dict[str, Any] = {"submit_started_at": db_now(), "submit_baseline": bindparam("baseline")}
    values |= {name: bindparam(f"here_{name}") for name in sorted(binds)}
    if "host_uid" in binds:  # jobrunner 0.1 does not know that work belongs to a user, too
        values["needs"] = PROTOCOL
    return statement.values(values).returning(job.c.submit_started_at)


def record_submitted(conn: Connection, job_id: int, token: str, external_id: str) -> bool:
    """Record what the submission under `token` made, whoever holds the claim now.

    What the row said of the submission until then is taken back. False: the row has ended, was
    submitted anew, or holds another id, or another that lives holds this one. In all but the last the caller
    then cancels by id the job that he made, and only that.
    """
    given = {"recorded_job": job_id, "token": token, "made": external_id}
    try:
        return conn.execute(_recorded(manner(conn)), given).rowcount == 1
    except IntegrityError:  # another recorded it at the same moment: the index lets in one
        return False


@cache  # as above
def _recorded(how: Manner) -> Update:
    job, _ = tables()
    made = bindparam("made", type_=job.c.external_id.type)
    free = or_(job.c.external_id.is_(None), job.c.external_id == made)
    other = job.alias("other")
    is_held = (
        select(other.c.id)
        .where(
            other.c.id != job.c.id,
            other.c.connection == job.c.connection,
            other.c.external_id == made,
            other.c.submit_started_at.is_not(None),
            other.c.state.in_(LIVE),
        )
        .exists()
    )
    mine = changing(
        how,
        job.c.id == bindparam("recorded_job"),
        job.c.submit_token == bindparam("token"),
        job.c.state.in_(LIVE),
    )
    message = case((job.c.external_id.is_(None), null()), else_=job.c.message)
    return mine.where(free, ~is_held).values(external_id=made, message=message)


def held(conn: Connection, job_id: int, external_ids: Sequence[str]) -> set[str]:
    """Return which of these ids other jobs of the same connection hold, by a submission of their own.

    One that has ended holds its id, too, where it was submitted since this job was stored: before that,
    the system outside may have been another, and its numbers come again.
    """
    job, _ = tables()
    mine = job.alias("mine")
    question = (
        select(job.c.external_id)
        .join(mine, mine.c.connection == job.c.connection)
        .where(
            mine.c.id == job_id,
            job.c.id != job_id,
            job.c.external_id.in_(external_ids),
            job.c.submit_started_at.is_not(None),
            or_(job.c.state.in_(LIVE), job.c.submit_started_at >= mine.c.created_at),
        )
    )
    return set(conn.execute(question).scalars().all())


def renew_token(
    conn: Connection, claim: Claim, old_token: str, new_token: str, failed_external_id: str | None = None
) -> bool:
    """Make ready for another submission, in one statement; False when it may not be.

    Never with a kill requested, and only in place of the very attempt that failed or was proven absent.
    A cancellation of that attempt ends with it.
    """
    job, _ = tables()
    statement = owned(conn, claim).where(
        job.c.submit_token == old_token,
        job.c.external_id.is_not_distinct_from(failed_external_id),
        job.c.kill_requested_at.is_(None),
    )
    return is_one(
        conn,
        statement.values(
            submit_token=new_token,
            attempt=job.c.attempt + 1,
            external_id=null(),
            external_state=null(),
            submit_started_at=null(),
            submit_baseline=null(),
            cancel_cause=null(),
            cancel_started_at=null(),
        ),
    )


def resubmit(
    conn: Connection,
    claim: Claim,
    old_token: str,
    new_token: str,
    external_id: str,
    left: Mapping[str, int],
    message: str,
) -> bool:
    """Make ready for another submission of work that failed, as the job's policy wants; append its event.

    `left`: how often it may be done after this, by cause. False: a kill or another cancellation is
    wished, or the row no longer speaks of that work.
    """
    job, _ = tables()
    statement = (
        owned(conn, claim)
        .where(
            job.c.submit_token == old_token,
            job.c.external_id == external_id,
            job.c.kill_requested_at.is_(None),
            job.c.cancel_cause.is_(None),
        )
        .values(
            submit_token=new_token,
            attempt=job.c.attempt + 1,
            external_id=null(),
            external_state=null(),
            submit_started_at=null(),
            submit_baseline=null(),
            resubmit=dict(left),
            message=message,
        )
    )
    event = (JobState.RUNNING, JobState.RUNNING, actor_of(claim.runner_id), message)
    return with_event(conn, statement, *event) is not None


def say_unsubmitted(conn: Connection, claim: Claim, message: str) -> bool:
    """Write why a job that is being submitted has no external id yet."""
    job, _ = tables()
    return is_one(conn, owned(conn, claim).where(job.c.external_id.is_(None)).values(message=message))
