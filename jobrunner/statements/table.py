"""What all statements stand on: the tables, an owner, a claim, the fence, and a change with its event."""

import datetime as dt
import math
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

from sqlalchemy import (
    BigInteger,
    Connection,
    RowMapping,
    Select,
    Table,
    Text,
    Update,
    any_,
    bindparam,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY

from jobrunner import identity, registry
from jobrunner.database import Base
from jobrunner.errors import JobNotFound
from jobrunner.sqltypes import db_now
from jobrunner.states import JobState

LIVE = (JobState.QUEUED, JobState.RUNNING)
"""The states in which a job has not ended."""


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


def in_ids(dialect: str) -> Any:
    job, _ = tables()
    if dialect == "postgresql":
        # One array, not an expanded IN list: it is parsed once, however many there are. Sent as text,
        # which the server turns into numbers sooner than the driver turns a list into an array.
        return job.c.id == any_(bindparam("ids", type_=Text).cast(ARRAY(BigInteger)))
    values = func.json_each(bindparam("ids")).table_valued("value")
    return job.c.id.in_(select(values.c.value))


def id_list(conn: Connection, ids: Sequence[int]) -> str:
    listed = ",".join(map(str, ids))
    return f"{{{listed}}}" if conn.dialect.name == "postgresql" else f"[{listed}]"


def is_bound_to(*hosts: str | None) -> Any:
    job, _ = tables()
    return or_(job.c.host_id.is_(None), job.c.host_id.in_([host for host in hosts if host is not None]))


def fence(claim: Claim) -> list[Any]:
    job, _ = tables()
    return [
        job.c.id == claim.job_id,
        job.c.runner_id == claim.runner_id,
        job.c.claims == claim.claims,
        job.c.state == JobState.RUNNING,
    ]


def owned(claim: Claim) -> Update:
    job, _ = tables()
    return update(job).where(*fence(claim))


def is_one(conn: Connection, statement: Update) -> bool:
    return conn.execute(statement).rowcount == 1


def with_event(
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


def actor_of(runner_id: str) -> str:
    return f"runner {runner_id}"


def plain(value: Any) -> Any:
    """Return a value as both databases can hold it: a text is one, and all else has a form in JSON."""
    if isinstance(value, str):
        return value.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return plain(str(value))
