"""most_recent_job, list and check over a million finished and 10,000 running rows: time in the database."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

from sqlalchemy import Connection, event

from bench.places import Place, bare_postgresql, bare_sqlite, fill, kind, settle
from bench.report import Row
from bench.timing import median, ms
from jobrunner import queries
from jobrunner.database import Database
from jobrunner.states import JobState

_GRACE = 2.1
_TARGET_S = 0.005
_ROUNDS = 15
_MANY = 1000

QUESTIONS: dict[str, Callable[[Connection], object]] = {
    "most_recent_job of any type": lambda c: queries.most_recent(c, None),
    "most_recent_job of one type": lambda c: queries.most_recent(c, ["BatchMonitorJob"]),
    "most_recent_job of a type that never ran": lambda c: queries.most_recent(c, ["AirbyteMonitorJob"]),
    "list": lambda c: queries.listed(c, _GRACE),
    "list --state running": lambda c: queries.listed(c, _GRACE, states=[JobState.RUNNING]),
    "list --state queued,running": lambda c: queries.listed(
        c, _GRACE, states=[JobState.QUEUED, JobState.RUNNING]
    ),
    "list --state failed": lambda c: queries.listed(c, _GRACE, states=[JobState.FAILED]),
    "list --job-type": lambda c: queries.listed(c, _GRACE, job_types=["BatchMonitorJob"]),
    "list --job-type of a type that never ran": lambda c: queries.listed(
        c, _GRACE, job_types=["AirbyteMonitorJob"]
    ),
    "list --name": lambda c: queries.listed(c, _GRACE, name="job 7"),
    "list --dag-id": lambda c: queries.listed(c, _GRACE, dag_id="dag 7"),
    "list --since 30s, with few to show": lambda c: queries.listed(c, _GRACE, since_s=30.0),
    "list --since 1h": lambda c: queries.listed(c, _GRACE, since_s=3600.0),
    "check --allow-multiple": lambda c: queries.alive_ids(c, _GRACE, limit=101),
    "check --allow-multiple --job-type --hostname": lambda c: queries.alive_ids(
        c, _GRACE, job_types=["BatchMonitorJob"], hostname="host-7", limit=101
    ),
    "check": lambda c: queries.alive_ids(c, _GRACE, limit=2),
    # A grace of nothing: every running job is judged, and none is alive.
    "check, and all 10,000 are silent": lambda c: queries.alive_ids(c, 1e-9, limit=2),
}


def measure(place: Place, *, quick: bool) -> Iterator[Row]:
    """Yield the execution time of each question, all its statements together."""
    finished = 100_000 if quick else 1_000_000
    for database in place.databases():
        # The running ones between them: started long ago, and many have come and gone since.
        fill(database, finished // 2, state="success", ended_s_ago=finished // 2)
        fill(database, 10_000)
        fill(database, finished // 2, state="success")
        settle(database)
        for name, ask in QUESTIONS.items():
            sent = _statements(database, ask)
            took = _sqlite_s(database, sent) if database.is_sqlite else _postgresql_s(database, sent)
            yield Row(
                f"{kind(database)}: {name}",
                f"{ms(took)} in {len(sent)} statement{'s' if len(sent) > 1 else ''}",
                "< 5 ms",
                took < _TARGET_S,
                {"seconds": took, "finished": finished},
            )


def _statements(database: Database, ask: Callable[[Connection], object]) -> list[tuple[str, Any]]:
    """Return the statements that a question sends, with their parameters."""
    sent: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        sent.append((statement, parameters))

    event.listen(database.engine, "before_cursor_execute", note)
    try:
        with database.read() as connection:
            ask(connection)
    finally:
        event.remove(database.engine, "before_cursor_execute", note)
    return sent


def _postgresql_s(database: Database, sent: list[tuple[str, Any]]) -> float:
    with closing(bare_postgresql(database)) as driver:

        def explained(statement: str, parameters: Any) -> float:
            query = f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {statement}".encode()
            row = driver.execute(query, parameters).fetchone()
            assert row is not None
            return float(row[0][0]["Execution Time"]) / 1000

        return median([sum(explained(*each) for each in sent) for _ in range(_ROUNDS)])


def _sqlite_s(database: Database, sent: list[tuple[str, Any]]) -> float:
    with closing(bare_sqlite(database)) as driver:

        def timed(statement: str, parameters: Any) -> float:
            if len(driver.execute(statement, parameters).fetchall()) > _MANY:
                # The time in the database, as EXPLAIN ANALYZE tells it: not that of making Python's rows.
                statement = f"SELECT count(*) FROM ({statement})"
            began = time.perf_counter()
            driver.execute(statement, parameters).fetchall()
            return time.perf_counter() - began

        return median([sum(timed(*each) for each in sent) for _ in range(_ROUNDS)])
