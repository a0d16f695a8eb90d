"""One beat for one job and for 10,000, beside the same statement through the bare driver."""

import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import psycopg
from sqlalchemy.sql.compiler import SQLCompiler

from bench.places import RUNNER, Place, bare_postgresql, bare_sqlite, fill, kind, settle
from bench.report import Row
from bench.timing import median, ms, side_by_side
from jobrunner import statements
from jobrunner.database import Database
from jobrunner.statements import beating

JOBS = 10_000
_LOCKED = 17  # the job whose row somebody else holds


def measure(place: Place, *, quick: bool) -> Iterator[Row]:
    """Yield the ratios ours / bare driver, in speed: 1 is as fast."""
    for database in place.databases():
        fill(database, JOBS)
        settle(database)
        yield from _measured(database, "", quick=quick)
        if database.is_sqlite:
            continue  # a file has one writer: there is no row to hold
        with bare_postgresql(database) as holder, holder.transaction():
            # Nothing is cleared away while a transaction is open: both slow down alike.
            holder.execute("SELECT 1 FROM job WHERE id = %s FOR UPDATE", [_LOCKED])
            yield from _measured(database, ", a row held by another session", quick=quick)


def _measured(database: Database, suffix: str, *, quick: bool) -> Iterator[Row]:
    every = list(range(1, JOBS + 1))
    rounds = 10 if quick or suffix else 60
    yield _compared(database, f"beat of {JOBS:,} jobs{suffix}", lambda: every, 0.9, rounds=rounds)
    pick = random.Random(1)
    one = f"beat of one job{suffix}"
    yield _compared(
        database, one, lambda: [pick.randint(_LOCKED + 1, JOBS)], 0.6, rounds=300 if quick else 3000
    )


def _compared(
    database: Database, what: str, ids: Callable[[], list[int]], target: float, *, rounds: int
) -> Row:
    # Connections of their own for each figure: PostgreSQL chooses a plan by a connection's first uses.
    bare = _bare(database)
    with closing(database.held()) as held, closing(bare) as driver:
        send = _bare_beat(database, driver, with_time=target < 0.9)
        ours, limit = side_by_side(
            lambda: statements.beat(held, RUNNER, ids(), with_time=target < 0.9),
            lambda: send(ids()),
            rounds=rounds,
        )
    # Round by round: what slows one round slows both halves of it.
    ratio = median([bare_s / ours_s for ours_s, bare_s in zip(ours, limit, strict=True)])
    promised = not database.is_sqlite
    return Row(
        f"{kind(database)}: {what}",
        f"{ratio:.2f} of the bare driver ({ms(median(ours))} to {ms(median(limit))})",
        f">= {target}" if promised else "",
        ratio >= target if promised else None,
        {"ratio": ratio, "ours_s": median(ours), "bare_s": median(limit), "rounds": rounds},
    )


def _bare(database: Database) -> psycopg.Connection[Any] | sqlite3.Connection:
    return bare_sqlite(database) if database.is_sqlite else bare_postgresql(database)


def _bare_beat(database: Database, driver: Any, *, with_time: bool) -> Callable[[list[int]], list[Any]]:
    """Return what sends the very text of our statement, with the same parameters, prepared alike."""
    compiled = beating.beat_statement(database.engine.dialect.name, with_time).compile(
        dialect=database.engine.dialect
    )
    assert isinstance(compiled, SQLCompiler)
    text, positions = str(compiled), compiled.positiontup
    cursor = driver.cursor()

    def send(ids: list[int]) -> list[Any]:
        listed = ",".join(map(str, ids))
        values = {"me": RUNNER, "state_1": "running", "ids": f"[{listed}]" if positions else f"{{{listed}}}"}
        if positions:
            return list(cursor.execute(text, tuple(values[name] for name in positions)).fetchall())
        return list(cursor.execute(text, values, prepare=True).fetchall())

    return send
