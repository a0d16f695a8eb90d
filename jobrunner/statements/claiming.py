"""Storing and claiming, adopting, losing."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import (
    Connection,
    DateTime,
    Float,
    RowMapping,
    Update,
    and_,
    bindparam,
    false,
    func,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from jobrunner.sqltypes import db_now, same_moment, waited_s
from jobrunner.statements.beating import look
from jobrunner.statements.given import json_of
from jobrunner.statements.table import (
    Claim,
    Owner,
    Sighting,
    actor_of,
    get,
    get_many,
    is_one,
    may_claim,
    may_judge,
    none_of,
    of_given,
    owned,
    tables,
    with_event,
    with_events,
)
from jobrunner.states import JobState


def store(conn: Connection, values: Mapping[str, Any], owner: Owner | None, actor: str) -> RowMapping:
    """Insert a job and return its row: queued, or, with an `owner`, already claimed by it.

    The row of a `key` that is there already is returned as it stands.
    """
    job_id = store_once(conn, values, owner, actor)
    if job_id is None:
        standing = find(conn, values["key"])
        assert standing is not None  # nothing else keeps an INSERT from being done
        job_id = standing["id"]
    return get(conn, job_id)


def store_once(conn: Connection, values: Mapping[str, Any], owner: Owner | None, actor: str) -> int | None:
    """Insert a job and return its id; None: its `key` is there already, and nothing was inserted.

    Queued, or, with an `owner`, already claimed by it: a foreground start inserts its row claimed, so that
    no worker can take it in between. The key makes it safe to send again where the answer was lost.
    """
    job, _ = tables()
    state = JobState.QUEUED if owner is None else JobState.RUNNING
    row = {"created_at": db_now(), "latest_heartbeat": db_now()} | dict(values) | {"state": state}
    if owner is not None:
        row |= _owned_by(owner) | {"claims": 1, "start_date": db_now()}
    make = postgresql.insert if conn.dialect.name == "postgresql" else sqlite.insert
    statement = make(job).values(row).on_conflict_do_nothing(index_elements=[job.c.key])
    return with_event(conn, statement, None, state, actor, "stored")


def confirm(conn: Connection, claim: Claim) -> bool:
    """Let others take the job over when its owner dies; False when the claim no longer stands.

    A job that is stored as claimed is inserted without that: nobody shall run it whose owner never learnt
    that it was stored, and has told somebody so.
    """
    return is_one(conn, owned(conn, claim).values(adoptable=True))


def find(conn: Connection, key: str) -> RowMapping | None:
    """Read where the job with this key stands, as `look` does by ids; None: there is none."""
    job, _ = tables()
    job_id = conn.execute(select(job.c.id).where(job.c.key == key)).scalar()
    return None if job_id is None else look(conn, [job_id]).get(job_id)


def holds(conn: Connection, job_id: int, values: Mapping[str, Any]) -> bool:
    """Whether a row holds what these values became when they were stored.

    The database compares: only it, and the types of the columns, say in which form it keeps a value. A tuple
    comes back as a list, a NUL in a name as a visible sign, -0.0 as 0.0.
    """
    job, _ = tables()
    same = (
        job.c[name].is_not_distinct_from(literal(value, job.c[name].type)) for name, value in values.items()
    )
    return conn.execute(select(job.c.id).where(job.c.id == job_id, *same)).scalar() is not None


def claim_queued(conn: Connection, job_id: int, owner: Owner, host_id: str | None = None) -> Claim | None:
    """Claim a queued job that this host can serve; None when it is not there to be claimed.

    `host_id`: another host that this one can serve, beside its own (`identity.can_serve`).
    """
    job, _ = tables()
    guard = [job.c.state == JobState.QUEUED, may_claim(owner, host_id)]
    return _claim(conn, job_id, owner, JobState.QUEUED, guard, "claimed")


def adopt(conn: Connection, seen: Sighting, owner: Owner, host_id: str | None = None) -> Claim | None:
    """Take over a running job that still stands exactly as it was seen; None when it does not.

    The caller has watched it stand still for a whole grace on its own clock (PROTOCOL 6).
    `host_id`: as for `claim_queued`. Also as `adopt_many`.
    """
    rows = adopt_many(conn, [seen], owner, [] if host_id is None else [host_id])
    return Claim(seen.job_id, owner.runner_id, rows[0]["claims"]) if rows else None


def lose(conn: Connection, seen: Sighting, actor: str, message: str) -> bool:
    """End as `lost` an orphan that nobody can adopt; False when it does not stand as it was sighted.

    The same watching comes before it as before an adoption. Also as `lose_many`.
    """
    return bool(lose_many(conn, {seen: message}, actor))


def claim_many(
    conn: Connection,
    owner: Owner,
    served: Collection[tuple[str, str | None]],
    most: int,
    host_ids: Collection[str] = (),
    without: Collection[int] = (),
) -> list[RowMapping]:
    """Claim at most `most` queued jobs of the types and connections `served`, oldest first.

    Returns their rows. `host_ids`: other hosts that this one can serve, beside its own. `without`: jobs that
    are left alone. Rows that others
    are about to claim are passed over, on PostgreSQL, so that several who claim share what there is.
    """
    job, _ = tables()
    guard = and_(job.c.state == JobState.QUEUED, may_claim(owner, *host_ids), _is_of(served))
    guard = and_(guard, *none_of(conn, without))
    some = select(job.c.id).where(guard).order_by(job.c.id).limit(most)
    if conn.dialect.name == "postgresql":
        some = some.with_for_update(key_share=True, skip_locked=True)
        mine = some.cte("mine").prefix_with("MATERIALIZED")
        statement = update(job).where(job.c.id == mine.c.id, guard)
    else:
        statement = update(job).where(job.c.id.in_(some), guard)
    return _claimed(conn, statement, owner, JobState.QUEUED, "claimed")


def adopt_many(
    conn: Connection, seen: Sequence[Sighting], owner: Owner, host_ids: Collection[str] = ()
) -> list[RowMapping]:
    """Take over those of these jobs that still stand as they were sighted, and return their rows.

    As `adopt`, in one statement. A row that somebody holds locked is left for the next time, and so are
    all of them where the statement had to wait for longer than `Sighting.prompt_s`: on PostgreSQL it measures
    that itself, on SQLite the caller does, who holds the write lock by then (`sweeper.acting`).
    """
    if not seen:
        return []
    job, _ = tables()
    statement = _of_sighted(conn.dialect.name).where(job.c.adoptable, may_claim(owner, *host_ids))
    why = "adopted from a silent runner"
    return _claimed(
        conn, statement, owner, JobState.RUNNING, why, rows=_sightings(seen), **_within(conn, seen)
    )


def lose_many(conn: Connection, seen: Mapping[Sighting, str], actor: str) -> list[int]:
    """End as `lost` those that still stand as they were sighted, each with its message; return their ids.

    As `lose`, in one statement, and as `adopt_many` where it had to wait.
    """
    if not seen:
        return []
    statement = _of_sighted(conn.dialect.name, with_message=True).where(may_judge())
    statement = statement.values(state=JobState.LOST, end_date=db_now())
    rows = _sightings(seen, seen.values())
    within = _within(conn, seen)
    return with_events(conn, statement, JobState.RUNNING, JobState.LOST, actor, None, rows=rows, **within)


def _is_of(served: Collection[tuple[str, str | None]]) -> Any:
    job, _ = tables()
    return or_(
        false(),
        *(
            and_(job.c.job_type == job_type, job.c.connection.is_not_distinct_from(connection))
            for job_type, connection in served
        ),
    )


def _sightings(seen: Iterable[Sighting], messages: Iterable[str] | None = None) -> str:
    each = [[one.job_id, one.runner_id, one.claims, one.latest_heartbeat.isoformat(" ")] for one in seen]
    said = [""] * len(each) if messages is None else list(messages)
    return json_of([[*row, message] for row, message in zip(each, said, strict=True)])


def _within(conn: Connection, seen: Iterable[Sighting]) -> dict[str, float]:
    """Return the parameter of a statement of `_of_sighted`: for how many seconds it may have waited."""
    return {"within": min(each.prompt_s for each in seen)} if conn.dialect.name == "postgresql" else {}


@cache
def _of_sighted(dialect: str, *, with_message: bool = False) -> Update:
    """Return an update of the jobs in the parameter `rows`, as far as they stand as they were sighted."""
    job, _ = tables()
    # A lock on the table is waited for before this is evaluated; the owner's beat has waited for it as well.
    is_prompt = [waited_s() <= bindparam("within", type_=Float)] if dialect == "postgresql" else []
    statement, said = of_given(
        dialect,
        ("job_id", "runner_id", "claims", "latest_heartbeat", "message"),
        {"latest_heartbeat": DateTime(timezone=True)},
        lambda said: [
            job.c.runner_id.is_not_distinct_from(said["runner_id"]),
            same_moment(job.c.latest_heartbeat, said["latest_heartbeat"]),
            *is_prompt,
        ],
        ("message",),
    )
    return statement.values(message=said["message"]) if with_message else statement


def _claimed(
    conn: Connection, statement: Update, owner: Owner, before: JobState, why: str, **parameters: Any
) -> list[RowMapping]:
    """Let an update claim, and return the rows of what it claimed."""
    claims = statement.values(_claiming(owner))
    event = (before, JobState.RUNNING, actor_of(owner.runner_id), why)
    ids = with_events(conn, claims, *event, **parameters)
    # Somebody may have claimed one again since.
    return [row for row in get_many(conn, ids) if row["runner_id"] == owner.runner_id] if ids else []


def _claim(
    conn: Connection, job_id: int, owner: Owner, before: JobState, guard: Iterable[Any], why: str
) -> Claim | None:
    job, _ = tables()
    statement = update(job).where(job.c.id == job_id, *guard).values(_claiming(owner))
    if with_event(conn, statement, before, JobState.RUNNING, actor_of(owner.runner_id), why) is None:
        return None
    row = get(conn, job_id)
    # Somebody may have claimed it again since: then the first beat will tell.
    return Claim(job_id, owner.runner_id, row["claims"]) if row["runner_id"] == owner.runner_id else None


def _claiming(owner: Owner) -> dict[str, Any]:
    job, _ = tables()
    return {
        "state": JobState.RUNNING,
        "claims": job.c.claims + 1,
        "latest_heartbeat": db_now(),
        "start_date": func.coalesce(job.c.start_date, db_now()),
        **_owned_by(owner),
    }


def _owned_by(owner: Owner) -> dict[str, Any]:
    return {
        "runner_id": owner.runner_id,
        "executor_class": owner.executor_class,
        "hostname": owner.hostname,
        "unixname": owner.unixname,
        "pid": owner.pid,
        "process_started_at": owner.process_started_at,
        "runner_host_id": owner.host_id,
    }
