"""A beat as Airflow's BaseJob sends it, beside ours.

Airflow itself is not installed: this sends what version 2.11 was seen to send, through the same
library. An ORM session whose connection is tested first, a merge (SELECT), a refresh for the state
(SELECT), the new time, a commit (UPDATE), over a table with Airflow's columns and indexes; on SQLite
over a new connection each time.
"""

import datetime as dt
import random
from collections.abc import Iterator
from contextlib import closing

from sqlalchemy import Engine, Index, NullPool, String, create_engine, event, insert
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from bench.places import RUNNER, Place, fill, kind, settle, url_of
from bench.report import Row
from bench.timing import median, side_by_side
from jobrunner.database import Database
from jobrunner.heartbeat import Beater
from jobrunner.sqltypes import UtcDateTime

JOBS = 10_000


class _Base(DeclarativeBase):
    pass


class AirflowJob(_Base):
    """The table of Airflow 2.11."""

    __tablename__ = "airflow_job"
    __table_args__ = (Index(None, "job_type", "latest_heartbeat"), Index(None, "state", "latest_heartbeat"))

    id: Mapped[int] = mapped_column(primary_key=True)
    dag_id: Mapped[str | None] = mapped_column(String(250))
    state: Mapped[str | None] = mapped_column(String(20))
    job_type: Mapped[str | None] = mapped_column(String(30))
    start_date: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)
    end_date: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)
    latest_heartbeat: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)
    executor_class: Mapped[str | None] = mapped_column(String(500))
    hostname: Mapped[str | None] = mapped_column(String(500))
    unixname: Mapped[str | None] = mapped_column(String(1000))


def measure(place: Place, *, quick: bool) -> Iterator[Row]:
    """Yield beats a second of both, one job at a time, and of ours for many at once."""
    for database in place.databases():
        fill(database, JOBS)
        settle(database)
        yield from _measured(database, rounds=200 if quick else 2000)


def _measured(database: Database, *, rounds: int) -> Iterator[Row]:
    engine = _engine(database)
    now = dt.datetime.now(dt.UTC)
    _Base.metadata.create_all(engine)
    with engine.begin() as connection:
        rows = [
            {"state": "running", "job_type": "SchedulerJob", "latest_heartbeat": now} for _ in range(JOBS)
        ]
        connection.execute(insert(AirflowJob), rows)
    job = AirflowJob(id=17, state="running", job_type="SchedulerJob", latest_heartbeat=now)
    sent: list[str] = []
    listen = (engine, database.engine)
    for each in listen:
        event.listen(each, "before_cursor_execute", lambda *given: sent.append(given[2]))
    pick = random.Random(1)

    with closing(Beater(database, RUNNER, 5.0)) as beater:
        theirs_sent = _count(sent, lambda: _beat_like_airflow(engine, job))
        beater.beat([17], with_time=True)  # it connects
        ours_sent = _count(sent, lambda: beater.beat([17], with_time=True))
        theirs, ours = side_by_side(
            lambda: _beat_like_airflow(engine, job),
            lambda: beater.beat([pick.randint(1, JOBS)], with_time=True),
            rounds=rounds,
        )
        every = list(range(1, JOBS + 1))
        (bulk,) = side_by_side(lambda: beater.beat(every), rounds=max(5, rounds // 100))
    engine.dispose()
    ratio = median(theirs) / median(ours)
    yield Row(
        f"{kind(database)}: beats a second, one job at a time",
        f"ours {1 / median(ours):,.0f} ({ours_sent} statement), like Airflow {1 / median(theirs):,.0f} "
        f"({theirs_sent} statements): {ratio:.1f} times",
        facts={"ours_s": median(ours), "airflow_s": median(theirs), "statements": [ours_sent, theirs_sent]},
    )
    yield Row(
        f"{kind(database)}: beats a second, {JOBS:,} jobs of one runner",
        f"ours {JOBS / median(bulk):,.0f}: {JOBS / median(bulk) * median(theirs):,.0f} times",
        facts={"ours_s": median(bulk)},
    )


def _engine(database: Database) -> Engine:
    if database.is_sqlite:
        return create_engine(url_of(database), poolclass=NullPool)
    return create_engine(url_of(database), pool_pre_ping=True)


def _beat_like_airflow(engine: Engine, job: AirflowJob) -> None:
    with Session(engine, expire_on_commit=False) as session:
        mine = session.merge(job)
        session.refresh(mine)
        mine.latest_heartbeat = dt.datetime.now(dt.UTC)
        session.commit()


def _count(sent: list[str], do: object) -> int:
    sent.clear()
    assert callable(do)
    do()
    return len(sent)
