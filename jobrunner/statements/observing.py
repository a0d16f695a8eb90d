"""What rows show of their external jobs, written in bulk."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Connection,
    Integer,
    Text,
    and_,
    bindparam,
    func,
    literal_column,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB

from jobrunner.statements.table import (
    plain,
    tables,
)
from jobrunner.states import JobState


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
        text = json.dumps(plain(rows), ensure_ascii=False)
    return text if text.isascii() else text.encode(errors="replace").decode()
