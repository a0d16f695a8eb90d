"""Every statement that writes a job's row, exactly as PROTOCOL has it, for both databases.

Core statements on the table, never ORM entities: an unknown job_type must not raise, a subclass
filter must not creep in, and memory must never be merged over what others wrote. Every write for an
owner carries his whole claim, (runner_id, claims), and its row count is looked at.
"""

import datetime as dt
import json
import math
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import starmap
from typing import Any, NamedTuple, cast

from sqlalchemy import (
    BigInteger,
    Connection,
    Integer,
    RowMapping,
    Select,
    Table,
    Text,
    Update,
    and_,
    any_,
    bindparam,
    case,
    func,
    insert,
    literal,
    literal_column,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.exc import IntegrityError

from jobrunner import identity, registry
from jobrunner.database import Base
from jobrunner.errors import JobNotFound
from jobrunner.sqltypes import db_in, db_now, is_set, same_moment
from jobrunner.states import TERMINAL_STATES, JobState, is_allowed

_LIVE = (JobState.QUEUED, JobState.RUNNING)


@dataclass(frozen=True, slots=True)
class Owner:
    """Who runs a job: what a claim writes beside the fence."""

    runner_id: str
    executor_class: str
    hostname: str
    unixname: str
    pid: int
    process_started_at: str
    host_id: str


def new_owner(executor_class: str) -> Owner:
    """Return this process as an owner, under a fresh runner_id: never a name that may come again."""
    me = identity.ProcessIdentity.of(os.getpid())
    return Owner(
        runner_id=str(uuid.uuid4()),
        executor_class=executor_class,
        hostname=identity.hostname(),
        unixname=identity.unixname(),
        pid=os.getpid(),
        process_started_at="" if me is None else me.started_at,
        host_id=identity.host_id(),
    )


@dataclass(frozen=True, slots=True)
class Claim:
    """The fence: the job, its owner, and how often it had been claimed by then."""

    job_id: int
    runner_id: str
    claims: int


class Beaten(NamedTuple):
    """A row that came back from a beat: it is still ours, and its kill flag is fresh.

    A named tuple: making 10,000 of them takes 2 ms, and of dataclasses a fifth of their whole beat.
    """

    job_id: int
    claims: int
    kill_requested: bool
    latest_heartbeat: dt.datetime | None = None


@dataclass(frozen=True, slots=True)
class Sighting:
    """A running job as somebody else's, seen at one moment."""

    job_id: int
    runner_id: str | None
    claims: int
    latest_heartbeat: dt.datetime


@cache
def tables() -> tuple[Table, Table]:
    """Return the tables (job, job_event); the models declare them."""
    if "job" not in Base.metadata.tables:  # the models stand above, and nobody imported them yet
        registry.load("jobrunner.models:BaseJob")
    return Base.metadata.tables["job"], Base.metadata.tables["job_event"]


# --- beats ---------------------------------------------------------------------------------------


def beat(conn: Connection, runner_id: str, ids: Sequence[int], *, with_time: bool = False) -> list[Beaten]:
    """Write one heartbeat for each of `ids` that is this runner's, running, and not locked.

    A row that does not come back is no verdict: `look` tells. `with_time`: the time of the beat too,
    which costs a conversion for each row.
    """
    answer = conn.execute(_beat(conn.dialect.name, with_time), {"me": runner_id, "ids": _id_list(conn, ids)})
    if with_time or conn.dialect.name == "sqlite" or answer.cursor is None:
        return list(starmap(Beaten, answer.all()))
    # psycopg's own rows are in memory by now, and need no conversion: SQLAlchemy's would cost a tenth
    # of a large beat. SQLite commits while it fetches, and its error must come through SQLAlchemy.
    return list(starmap(Beaten, answer.cursor.fetchall()))


@cache
def _beat(dialect: str, with_time: bool) -> Any:
    job, _ = tables()
    ours = and_(job.c.runner_id == bindparam("me"), job.c.state == JobState.RUNNING)
    statement = update(job).values(latest_heartbeat=db_now())
    if dialect == "postgresql":
        # SKIP LOCKED: one row held by an open psql session must not silence all the others.
        # Ordered: two multi-row writers must not deadlock.
        mine = (
            select(job.c.id)
            .where(_in_ids(dialect), ours)
            .order_by(job.c.id)
            .with_for_update(key_share=True, skip_locked=True)
            .cte("mine")
            .prefix_with("MATERIALIZED")
        )
        statement = statement.where(job.c.id == mine.c.id)
    else:
        statement = statement.where(_in_ids(dialect), ours)
    told = [job.c.id, job.c.claims, _is_flagged()]
    return statement.returning(*told, *([job.c.latest_heartbeat] if with_time else []))


def _in_ids(dialect: str) -> Any:
    job, _ = tables()
    if dialect == "postgresql":
        # One array, not an expanded IN list: it is parsed once, however many there are. Sent as text,
        # which the server turns into numbers sooner than the driver turns a list into an array.
        return job.c.id == any_(bindparam("ids", type_=Text).cast(ARRAY(BigInteger)))
    values = func.json_each(bindparam("ids")).table_valued("value")
    return job.c.id.in_(select(values.c.value))


def _id_list(conn: Connection, ids: Sequence[int]) -> str:
    listed = ",".join(map(str, ids))
    return f"{{{listed}}}" if conn.dialect.name == "postgresql" else f"[{listed}]"


def _is_flagged() -> Any:
    job, _ = tables()
    return is_set(job.c.kill_requested_at)


def look(conn: Connection, ids: Sequence[int]) -> dict[int, RowMapping]:
    """Read where jobs stand: (id, state, runner_id, claims, external_id, kill_requested).

    A missing id was deleted.
    """
    rows = conn.execute(_look(conn.dialect.name), {"ids": _id_list(conn, ids)}).mappings().all()
    return {row["id"]: row for row in rows}


@cache
def _look(dialect: str) -> Any:
    job, _ = tables()
    flag = _is_flagged().label("kill_requested")
    stands = (job.c.id, job.c.state, job.c.runner_id, job.c.claims, job.c.external_id)
    return select(*stands, flag).where(_in_ids(dialect))


def flagged(conn: Connection, runner_id: str) -> list[int]:
    """Return the ids of this runner's jobs that carry the kill flag."""
    return list(conn.execute(_flagged(), {"me": runner_id}).scalars().all())


@cache
def _flagged() -> Any:
    job, _ = tables()
    return select(job.c.id).where(
        job.c.state == JobState.RUNNING,
        job.c.runner_id == bindparam("me"),
        job.c.kill_requested_at.is_not(None),
    )


# --- storing and claiming ------------------------------------------------------------------------


def store(conn: Connection, values: Mapping[str, Any], owner: Owner | None, actor: str) -> RowMapping:
    """Insert a job and return its row: queued, or, with an `owner`, already claimed by him.

    A foreground start inserts its row claimed, so that no worker can take it in between.
    """
    job, _ = tables()
    state = JobState.QUEUED if owner is None else JobState.RUNNING
    row = {"created_at": db_now(), "latest_heartbeat": db_now()} | dict(values) | {"state": state}
    if owner is not None:
        row |= _owned_by(owner) | {"claims": 1, "start_date": db_now()}
    job_id = _with_event(conn, insert(job).values(row), None, state, actor, "stored")
    assert job_id is not None  # an INSERT that did nothing raises
    return get(conn, job_id)


def claim_queued(conn: Connection, job_id: int, owner: Owner, host_id: str | None = None) -> Claim | None:
    """Claim a queued job that this host can serve; None when it is not there to be claimed.

    `host_id`: another host that this one can serve, beside its own (`identity.can_serve`).
    """
    job, _ = tables()
    guard = [job.c.state == JobState.QUEUED, _is_bound_to(owner.host_id, host_id)]
    return _claim(conn, job_id, owner, JobState.QUEUED, guard, "claimed")


def adopt(conn: Connection, seen: Sighting, owner: Owner, host_id: str | None = None) -> Claim | None:
    """Take over a running job that still stands exactly as it was seen; None when it does not.

    The caller has watched it stand still for a whole grace on his own clock (PROTOCOL 6).
    `host_id`: as for `claim_queued`.
    """
    job, _ = tables()
    guard = [*_stands_as(seen), job.c.adoptable, _is_bound_to(owner.host_id, host_id)]
    return _claim(conn, seen.job_id, owner, JobState.RUNNING, guard, "adopted from a silent runner")


def _is_bound_to(*hosts: str | None) -> Any:
    job, _ = tables()
    return or_(job.c.host_id.is_(None), job.c.host_id.in_([host for host in hosts if host is not None]))


def lose(conn: Connection, seen: Sighting, actor: str, message: str) -> bool:
    """End as `lost` an orphan that nobody can adopt; False when it does not stand as it was sighted.

    The same watching comes before it as before an adoption.
    """
    job, _ = tables()
    statement = update(job).where(*_stands_as(seen))
    values = {"state": JobState.LOST, "end_date": db_now(), "message": message}
    event = (JobState.RUNNING, JobState.LOST, actor, message)
    return _with_event(conn, statement.values(values), *event) is not None


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
            **_owned_by(owner),
        )
    )
    if _with_event(conn, statement, before, JobState.RUNNING, _actor(owner.runner_id), why) is None:
        return None
    row = get(conn, job_id)
    # Somebody may have claimed it again since: then the first beat will tell.
    return Claim(job_id, owner.runner_id, row["claims"]) if row["runner_id"] == owner.runner_id else None


def _owned_by(owner: Owner) -> dict[str, Any]:
    return {
        "runner_id": owner.runner_id,
        "executor_class": owner.executor_class,
        "hostname": owner.hostname,
        "unixname": owner.unixname,
        "pid": owner.pid,
        "process_started_at": owner.process_started_at,
    }


# --- transitions of an owner ---------------------------------------------------------------------


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
    message, seen = _plain(message), {"external_state": external_state, "detail": detail}
    values = {"end_date": db_now(), "message": message} | {
        key: _plain(value) for key, value in seen.items() if value is not None
    }
    return _transition(conn, claim, state, message, guard, values)


def release(conn: Connection, claim: Claim, reason: str) -> bool:
    """Give a job back: queued again, owned by nobody; False when the claim no longer stands."""
    return _transition(conn, claim, JobState.QUEUED, reason, [], {"runner_id": null(), "message": reason})


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
    statement = update(job).where(*_fence(claim), *guard).values(state=after, **values)
    actor = _actor(claim.runner_id)
    return _with_event(conn, statement, JobState.RUNNING, after, actor, reason) is not None


def _fence(claim: Claim) -> list[Any]:
    job, _ = tables()
    return [
        job.c.id == claim.job_id,
        job.c.runner_id == claim.runner_id,
        job.c.claims == claim.claims,
        job.c.state == JobState.RUNNING,
    ]


def _with_event(
    conn: Connection, statement: Any, before: JobState | None, after: JobState, actor: str, reason: str
) -> int | None:
    """Run a change of a job together with its event, and return the job's id; None: no row changed."""
    job, job_event = tables()
    columns = ["job_id", "at", "from_state", "to_state", "actor", "reason"]
    changed = statement.returning(job.c.id)
    if conn.dialect.name == "postgresql":
        # One statement: a process paused between two would hold a row lock that stops sweeps and kills.
        source = changed.cte("changed")
        facts = _event_facts(source.c.id, before, after, actor, reason)
        appended = insert(job_event).from_select(columns, select(*facts)).returning(job_event.c.job_id)
        return cast("int | None", conn.execute(appended).scalar())
    job_id = cast("int | None", conn.execute(changed).scalar())
    if job_id is not None:
        facts = _event_facts(literal(job_id), before, after, actor, reason)
        conn.execute(insert(job_event).from_select(columns, select(*facts)))
    return job_id


def _event_facts(job_id: Any, before: JobState | None, after: JobState, actor: str, reason: str) -> list[Any]:
    _, job_event = tables()
    state = job_event.c.from_state.type
    return [job_id, db_now(), literal(before, state), literal(after, state), literal(actor), literal(reason)]


def _actor(runner_id: str) -> str:
    return f"runner {runner_id}"


# --- submit once, observe, cancel ----------------------------------------------------------------


def begin_submit(
    conn: Connection, claim: Claim, token: str, host_id: str | None = None, baseline: str | None = None
) -> dt.datetime | None:
    """Record that the submission under `token` begins now, and return the database's time of it.

    `host_id` binds the job to this host from here on, where its work runs on the host itself.
    `baseline`: what its backend found outside right before, by which it tells later what is new.
    None: it may not begin, because the claim is lost, a kill is wished, or an external id stands.
    """
    job, _ = tables()
    statement = _owned(claim).where(
        job.c.submit_token == token, job.c.external_id.is_(None), job.c.kill_requested_at.is_(None)
    )
    values: dict[str, Any] = {"submit_started_at": db_now(), "submit_baseline": baseline}
    if host_id is not None:
        values["host_id"] = host_id
    begun = conn.execute(statement.values(values).returning(job.c.submit_started_at)).scalar()
    return cast("dt.datetime | None", begun)


def record_submitted(conn: Connection, job_id: int, token: str, external_id: str) -> bool:
    """Record what the submission under `token` made, whoever holds the claim now.

    What the row said of the submission until then is taken back. False: the row has ended, was
    submitted anew, or holds another id, or another that lives holds this one. In all but the last the caller
    then cancels by id the job that he made, and only that.
    """
    job, _ = tables()
    free = or_(job.c.external_id.is_(None), job.c.external_id == external_id)
    other = job.alias("other")
    is_held = (
        select(other.c.id)
        .where(
            other.c.id != job.c.id,
            other.c.connection == job.c.connection,
            other.c.external_id == external_id,
            other.c.submit_started_at.is_not(None),
            other.c.state.in_(_LIVE),
        )
        .exists()
    )
    statement = update(job).where(
        job.c.id == job_id, job.c.submit_token == token, job.c.state.in_(_LIVE), free, ~is_held
    )
    message = case((job.c.external_id.is_(None), null()), else_=job.c.message)
    try:
        return _one(conn, statement.values(external_id=external_id, message=message))
    except IntegrityError:  # another recorded it at the same moment: the index lets in one
        return False


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
            or_(job.c.state.in_(_LIVE), job.c.submit_started_at >= mine.c.created_at),
        )
    )
    return set(conn.execute(question).scalars().all())


def renew_token(
    conn: Connection, claim: Claim, old_token: str, new_token: str, failed_external_id: str | None = None
) -> bool:
    """Make ready for another submission, in one statement; False when it may not be.

    Never with a kill wished, and only in place of the very attempt that failed or was proven absent.
    """
    job, _ = tables()
    statement = _owned(claim).where(
        job.c.submit_token == old_token,
        job.c.external_id.is_not_distinct_from(failed_external_id),
        job.c.kill_requested_at.is_(None),
    )
    return _one(
        conn,
        statement.values(
            submit_token=new_token,
            attempt=job.c.attempt + 1,
            external_id=null(),
            external_state=null(),
            submit_started_at=null(),
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
        _owned(claim)
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
            resubmit=dict(left),
            message=message,
        )
    )
    event = (JobState.RUNNING, JobState.RUNNING, _actor(claim.runner_id), message)
    return _with_event(conn, statement, *event) is not None


class Sight(NamedTuple):
    """What a row shall show of its external job; a column that is None keeps what it holds."""

    job_id: int
    claims: int
    external_id: str
    external_state: str | None = None
    message: str | None = None
    detail: Mapping[str, Any] | None = None


def observe_many(conn: Connection, runner_id: str, sights: Sequence[Sight]) -> set[int]:
    """Write what the backend said of many of this runner's jobs, and return the ids of those written.

    One sight a job, in one statement. An answer about an earlier id, or under an earlier claim, changes
    nothing. A row that does not come back is no verdict, as after a beat: `look` tells.
    """
    rows = _json_of([list(sight) for sight in sights])
    written = conn.execute(_observe_many(conn.dialect.name), {"me": runner_id, "rows": rows})
    return set(written.scalars().all())


@cache
def _observe_many(dialect: str) -> Any:
    job, _ = tables()
    shown = ("external_state", "message", "detail")
    each, said = _rows_of(dialect)
    # Not by an index on the state: SQLite would go through all running jobs for each of the rows.
    state = job.c.state if dialect == "postgresql" else job.c.state.op("||")(literal_column("''"))
    ours = and_(
        job.c.id == said["job_id"],
        job.c.runner_id == bindparam("me"),
        job.c.claims == said["claims"],
        state == JobState.RUNNING,
        job.c.external_id == said["external_id"],
    )
    statement = update(job)
    if dialect == "postgresql":
        # Ordered and SKIP LOCKED, as the beat is, and for the same reasons.
        mine = (
            select(job.c.id, *(said[name].label(f"said_{name}") for name in shown))
            .select_from(job, each)
            .where(ours)
            .order_by(job.c.id)
            .with_for_update(key_share=True, skip_locked=True, of=job)
            .cte("mine")
            .prefix_with("MATERIALIZED")
        )
        statement = statement.where(job.c.id == mine.c.id)
        said = {name: mine.c[f"said_{name}"] for name in shown}
    else:
        statement = statement.where(ours)
    values = {name: func.coalesce(said[name], job.c[name]) for name in shown}
    return statement.values(values).returning(job.c.id)


def _rows_of(dialect: str) -> tuple[Any, dict[str, Any]]:
    """Return the rows of the parameter `rows` as something to select from, and their columns."""
    rows: Any = bindparam("rows", type_=Text)
    numbers = range(len(Sight._fields))
    if dialect != "postgresql":
        each: Any = func.json_each(rows).table_valued("value")
        values: list[Any] = [func.json_extract(each.c.value, literal_column(f"'$[{n}]'")) for n in numbers]
        return each, dict(zip(Sight._fields, values, strict=True))
    each = func.jsonb_array_elements(rows.cast(JSONB)).table_valued("value")
    values = [each.c.value.op("->>")(literal_column(str(n))) for n in numbers]
    said = dict(zip(Sight._fields, values, strict=True))
    for name, kind in {"job_id": BigInteger, "claims": Integer, "detail": JSONB}.items():
        said[name] = said[name].cast(kind)
    return each, said


def _json_of(rows: list[list[Any]]) -> str:
    """Return rows as JSON that both databases take, whatever a backend has put into its detail."""
    try:
        text = json.dumps(rows, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):
        text = ""
    if not text or "\\u0000" in text:  # which PostgreSQL refuses: one row must not spoil all others
        text = json.dumps(_plain(rows), ensure_ascii=False)
    return text if text.isascii() else text.encode(errors="replace").decode()


def _plain(value: Any) -> Any:
    """Return a value as both databases can hold it: a text is one, and all else has a form in JSON."""
    if isinstance(value, str):
        return value.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()
    if isinstance(value, Mapping):
        return {_plain(str(key)): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return _plain(str(value))


def say_unsubmitted(conn: Connection, claim: Claim, message: str) -> bool:
    """Write why a job that is being submitted has no external id yet."""
    job, _ = tables()
    return _one(conn, _owned(claim).where(job.c.external_id.is_(None)).values(message=_plain(message)))


def begin_cancel(conn: Connection, claim: Claim, cause: str) -> RowMapping | None:
    """Record why the work is being cancelled, before the backend is asked; the first cause stands.

    Returns (cancel_cause, kill_reason) as they are in force, or None when the claim no longer stands.
    """
    job, _ = tables()
    statement = _owned(claim).values(
        cancel_cause=func.coalesce(job.c.cancel_cause, cause),
        cancel_started_at=func.coalesce(job.c.cancel_started_at, db_now()),
    )
    return conn.execute(statement.returning(job.c.cancel_cause, job.c.kill_reason)).mappings().first()


def _owned(claim: Claim) -> Update:
    job, _ = tables()
    return update(job).where(*_fence(claim))


def _one(conn: Connection, statement: Update) -> bool:
    return conn.execute(statement).rowcount == 1


# --- the kill flag -------------------------------------------------------------------------------


def request_kill(conn: Connection, job_id: int, by: str | None, reason: str | None) -> JobState | None:
    """Set the kill flag, once, on a job that has not ended, and return the state it stands in now.

    A queued job of which nothing was ever submitted is killed at once: there is nothing to cancel.
    None: there is no such job. Whoever set the flag first stands as the one who did.
    """
    job, _ = tables()
    flag_is_new = job.c.kill_requested_at.is_(None)
    conn.execute(
        update(job)
        .where(job.c.id == job_id, job.c.state.in_(_LIVE))
        .values(
            kill_requested_by=case((flag_is_new, by), else_=job.c.kill_requested_by),
            kill_reason=case((flag_is_new, reason), else_=job.c.kill_reason),
            kill_requested_at=func.coalesce(job.c.kill_requested_at, db_now()),
        )
    )
    unstarted = update(job).where(
        job.c.id == job_id,
        job.c.state == JobState.QUEUED,
        job.c.kill_requested_at.is_not(None),
        job.c.submit_started_at.is_(None),
        job.c.external_id.is_(None),
    )
    message = "killed before it started" + (f": {reason}" if reason else "")
    _with_event(
        conn,
        unstarted.values(state=JobState.KILLED, end_date=db_now(), message=message),
        JobState.QUEUED,
        JobState.KILLED,
        by or "request_kill",
        message,
    )
    return cast("JobState | None", conn.execute(select(job.c.state).where(job.c.id == job_id)).scalar())


# --- pruning -------------------------------------------------------------------------------------


def prune(conn: Connection, older_than_s: float, batch: int) -> int:
    """Delete at most `batch` jobs that ended longer ago than that, with their events; return how many.

    A parent of a job that has not ended stays. Locked rows are left for the next time.
    """
    job, _ = tables()
    child = job.alias("child")
    has_live_child = (
        select(child.c.id).where(child.c.parent_id == job.c.id, child.c.state.in_(_LIVE)).exists()
    )
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


# --- reading one row -----------------------------------------------------------------------------


def get(conn: Connection, job_id: int) -> RowMapping:
    """Return a job's whole row. Raises `JobNotFound`."""
    row = get_or_none(conn, job_id)
    if row is None:
        raise JobNotFound(f"There is no job {job_id}: `jobrunner list` shows those that there are.")
    return row


def get_or_none(conn: Connection, job_id: int) -> RowMapping | None:
    """Return a job's whole row, or None when there is none."""
    return conn.execute(_by_id(), {"id": job_id}).mappings().first()


@cache
def _by_id() -> Select[Any]:
    job, _ = tables()
    return select(job).where(job.c.id == bindparam("id"))


def now(conn: Connection) -> dt.datetime:
    """Return the database's time."""
    return conn.execute(select(db_now())).scalar_one()
