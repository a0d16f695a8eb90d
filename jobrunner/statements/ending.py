"""The transitions of an owner: an end, a release."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import Connection, Update, bindparam, null, update

from jobrunner.sqltypes import db_now
from jobrunner.statements.given import json_of, plain
from jobrunner.statements.table import (
    Claim,
    actor_of,
    fence,
    of_given,
    tables,
    with_event,
    with_events,
)
from jobrunner.states import JobState, is_allowed


def end(
    conn: Connection,
    claim: Claim,
    state: JobState,
    message: str,
    *,
    external_id: str | None = None,
    external_state: str | None = None,
    detail: Mapping[str, Any] | None = None,
) -> bool:
    """Write a terminal state; False when the claim no longer stands, and then nothing is written.

    With `external_id`, only while the row still speaks of that external job. `external_state` and
    `detail`: what was seen of it last; None keeps what the row holds.
    """
    job, _ = tables()
    guard = [] if external_id is None else [job.c.external_id == external_id]
    message, seen = plain(message), {"external_state": external_state, "detail": detail}
    values = {"end_date": db_now(), "message": message} | {
        key: plain(value) for key, value in seen.items() if value is not None
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
    job, _ = tables()
    statement = update(job).where(*fence(claim), *guard).values(state=after, **values)
    actor = actor_of(claim.runner_id)
    return with_event(conn, statement, JobState.RUNNING, after, actor, reason) is not None
