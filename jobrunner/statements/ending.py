"""The transitions of an owner: an end, a release."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Connection, RowMapping, Select, Update, bindparam, func, null, or_, select
from sqlalchemy.dialects.postgresql import JSONB

from jobrunner.sqltypes import db_now
from jobrunner.statements.given import json_of
from jobrunner.statements.table import (
    Claim,
    actor_of,
    id_list,
    in_ids,
    of_given,
    owned,
    tables,
    with_event,
    with_events,
)
from jobrunner.states import JobState, is_allowed


class End(NamedTuple):
    """How a job ends, and what its row must say until then.

    `external_id`: the work that ended; None: the job was never submitted. `cause`: the `cancel_cause` by
    which the end was judged, "" where there was none; None: no cause makes a difference. What was seen of
    the work last: None keeps what the row holds.
    """

    job_id: int
    claims: int
    external_id: str | None
    state: JobState
    message: str
    cause: str | None = None
    external_state: str | None = None
    detail: Mapping[str, Any] | None = None


def end_many(conn: Connection, runner_id: str, ends: Sequence[End]) -> list[int]:
    """Write how jobs of this runner ended, in one statement, and return the ids of those written.

    One end a job. A row that does not come back is no verdict: it is no longer ours, or it speaks of
    other work, or of another cause, or somebody holds it locked; `look` and `judged_by` tell these apart.
    """
    if not ends:
        return []
    assert all(is_allowed(JobState.RUNNING, each.state) for each in ends)
    statement = _ended(conn.dialect.name)
    rows = json_of([list(each) for each in ends])
    event = (JobState.RUNNING, None, actor_of(runner_id), None)
    return with_events(conn, statement, *event, rows=rows, me=runner_id)


@cache
def _ended(dialect: str) -> Update:
    """Return an update that ends the jobs in the parameter `rows`, as far as they stand as it says."""
    job, _ = tables()
    statement, said = of_given(
        dialect,
        End._fields,
        {"detail": JSONB()},
        lambda said: [
            job.c.runner_id == bindparam("me"),
            job.c.external_id.is_not_distinct_from(said["external_id"]),
            or_(said["cause"].is_(None), func.coalesce(job.c.cancel_cause, "") == said["cause"]),
        ],
        ("state", "message", "external_state", "detail"),
    )
    return statement.values(
        state=said["state"],
        end_date=db_now(),
        message=said["message"],
        external_state=func.coalesce(said["external_state"], job.c.external_state),
        detail=func.coalesce(said["detail"], job.c.detail),
    )


def judged_by(conn: Connection, ids: Sequence[int]) -> dict[int, RowMapping]:
    """Return what the outcome of seen work depends on, of those of these jobs that there are."""
    question = _judged_by(conn.dialect.name)
    return {row["id"]: row for row in conn.execute(question, {"ids": id_list(conn, ids)}).mappings()}


@cache
def _judged_by(dialect: str) -> Select[Any]:
    job, _ = tables()
    # No column of JSON: other hands may have written what cannot be read, and it must not stop an end.
    wish = (job.c.cancel_cause, job.c.kill_requested_by, job.c.kill_reason, job.c.start_timeout)
    return select(job.c.id, *wish, job.c.external_state, job.c.message).where(in_ids(dialect))


def end(
    conn: Connection,
    claim: Claim,
    state: JobState,
    message: str,
    *,
    external_id: str | None = None,
    external_state: str | None = None,
    detail: Mapping[str, Any] | None = None,
    unless_cancelled: bool = False,
) -> bool:
    """Write a terminal state; False when the claim no longer stands, and then nothing is written.

    With `external_id`, only while the row still speaks of that external job. `external_state` and
    `detail`: what was seen of it last; None keeps what the row holds. `unless_cancelled`: only where no
    cancellation of it was recorded.
    """
    job, _ = tables()
    guard = [] if external_id is None else [job.c.external_id == external_id]
    guard += [job.c.cancel_cause.is_(None)] if unless_cancelled else []
    seen = {"external_state": external_state, "detail": detail}
    values = {"end_date": db_now(), "message": message} | {
        key: value for key, value in seen.items() if value is not None
    }
    return _transition(conn, claim, state, message, guard, values)


def release(conn: Connection, claim: Claim, reason: str) -> bool:
    """Give a job back: queued again, owned by nobody; False when the claim no longer stands."""
    return _transition(conn, claim, JobState.QUEUED, reason, [], {"runner_id": null(), "message": reason})


def release_many(conn: Connection, runner_id: str, claims: Sequence[Claim], reason: str) -> list[int]:
    """Give jobs of this runner back, in one statement, and return the ids of those that were still his.

    A row that somebody holds locked is not among them: `release` waits for it.
    """
    if not claims:
        return []
    rows = json_of([[claim.job_id, claim.claims] for claim in claims])
    statement = _claimed_rows(conn.dialect.name)
    values = {"state": JobState.QUEUED, "runner_id": null(), "message": reason}
    event = (JobState.RUNNING, JobState.QUEUED, actor_of(runner_id), reason)
    return with_events(conn, statement.values(values), *event, rows=rows, me=runner_id)


@cache
def _claimed_rows(dialect: str) -> Update:
    """Return an update of the jobs in the parameter `rows` that are the runner's, under these claims."""
    job, _ = tables()
    statement, _ = of_given(
        dialect, ("job_id", "claims"), {}, lambda _said: [job.c.runner_id == bindparam("me")]
    )
    return statement


def _transition(
    conn: Connection,
    claim: Claim,
    after: JobState,
    reason: str,
    guard: Iterable[Any],
    values: Mapping[str, Any],
) -> bool:
    assert is_allowed(JobState.RUNNING, after)
    statement = owned(conn, claim).where(*guard).values(state=after, **values)
    actor = actor_of(claim.runner_id)
    return with_event(conn, statement, JobState.RUNNING, after, actor, reason) is not None
