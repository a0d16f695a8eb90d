"""Rows that somebody's SQL has made unreadable: each fails alone, and keeps nobody waiting."""

import sqlite3
from contextlib import closing

import pytest
from click.testing import CliRunner

from jobrunner import statements
from jobrunner.cli.jobs import list_, show
from jobrunner.database import Database
from jobrunner.models import BaseJob
from jobrunner.states import JobState
from jobrunner.testing import use_backend
from jobrunner.worker import WorkerJob
from tests.helpers import an_owner, insert_job, plain_connection, plain_sql, row_of
from tests.runner.support import SOON, a_job, an_outside, in_loop, soon
from tests.worker.workers import a_worker, store, until_state

ENDED_BY_COLUMN = {
    "spec": ["'{broken'", "'[1]'", "'5'", "x'ff00fe'", f"'{'[' * 100_000}'"],
    "resubmit": ["'nonsense'", "'5'", "'[1]'", """'{"oom": -1}'""", """'{"oom": "x"}'"""],
    "heartrate": ["0.0001", "1e-300", "'fast'", "9e999"],
    "poll_interval": ["1e-9", "-1", "'often'", "9e999"],
    "start_timeout": ["'soon'", "-3"],
    "submit_token": ["NULL", "x'80ff'"],
    "name": ["x'ff00fe'"],
    "attempt": ["'first'"],
}
"""Columns and what SQLite takes for them, as SQL; its checks refuse some, which older rows may hold."""
OTHERWISE = {
    "detail": ["""'{"a":'""", "x'00'"],
    "claims": ["'x'", "9223372036854775807", "2147483647", "-7"],
    "connection": ["char(10) || char(27) || '[31m'", "x'80ff'"],
    "job_type": ["'../../x' || char(0) || 'y'", "''", "x'80ff'"],
    "deadline_at": ["'never'", "'9999999-01-01'", "x'80'"],
    "created_at": ["'long ago'"],
    "host_id": ["'x'", "''", "x'80ff'"],
    "parent_id": ["id"],
    "message": ["CAST(x'80ff' AS TEXT)"],
}
"""Those that run all the same, wait for somebody who can serve them, or end in another way."""
POSTGRES_ENDED = {
    "spec": ["'null'", "'[1]'", "'5'", """'"text"'"""],
    "resubmit": ["'5'", "'[1]'", """'{"oom": -1}'"""],
    "heartrate": ["0.0001", "1e-300"],
    "poll_interval": ["1e-9"],
    "submit_token": ["NULL"],
}
POSTGRES_OTHERWISE = {
    "detail": ["'[]'", "'7'"],
    "claims": ["2147483647"],
    "connection": ["chr(10)"],
    "job_type": ["''"],
    "deadline_at": ["'infinity'", "'-infinity'"],
    "created_at": ["'-infinity'"],
    "latest_heartbeat": ["'infinity'", "'4713-01-01 BC'"],
    "parent_id": ["id"],
}


def spoil(url: str, job_id: int, column: str, held: str) -> bool:
    """Write it as any client may; whether the database's checks let it stand."""
    statement = f"UPDATE job SET {column} = {held} WHERE id = {job_id}"
    try:
        plain_sql(url, statement)
    except sqlite3.IntegrityError:
        with closing(plain_connection(url)) as connection:
            connection.execute("PRAGMA ignore_check_constraints = ON")
            connection.execute(statement)
        return False
    return True


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
@in_loop
async def test_an_unreadable_row_fails_alone_and_names_its_column(
    request: pytest.FixtureRequest, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    database: Database = request.getfixturevalue(f"{kind}_database")
    url: str = request.getfixturevalue(f"{kind}_url")
    ended = ENDED_BY_COLUMN if kind == "sqlite" else POSTGRES_ENDED
    otherwise = OTHERWISE if kind == "sqlite" else POSTGRES_OTHERWISE
    with use_backend(an_outside(plan=SOON)):
        columns: dict[int, str] = {}
        for column, held in [(column, held) for column, values in ended.items() for held in values]:
            (job_id,) = store(a_job())
            if spoil(url, job_id, column, held):
                columns[job_id] = column
        for column, held in [(column, held) for column, values in otherwise.items() for held in values]:
            spoil(url, store(a_job())[0], column, held)
        good = store(*(a_job() for _ in range(3)))
        async with a_worker(database) as working:
            await until_state(database, JobState.SUCCESS, *good)
            await soon(lambda: all(row_of(database, job_id)["end_date"] for job_id in columns))
            looks = working.worker._rounds
            await soon(lambda: working.worker._rounds > looks + 5)
    for job_id, column in columns.items():
        state, message = plain_sql(url, f"SELECT state, message FROM job WHERE id = {job_id}")[0]
        if (column, kind) == ("spec", "postgres") and state == "success":
            continue  # JSON's null is no spec, as none is
        assert state == "failed", message
        assert message.startswith(f"its column {column} cannot be read: "), message
    said = [each for each in caplog.messages if "cannot be" in each]
    assert len(said) == len(set(said)), "it is said again and again"


@in_loop
async def test_a_row_with_code_that_cannot_be_read_keeps_no_other_from_its_child(
    sqlite_database: Database, sqlite_url: str
) -> None:
    # The database itself looks into the spec, for resources: SQLite refuses a whole statement for one row.
    bad = [insert_job(sqlite_database, job_type="OwnJob", heartrate=1.0) for _ in range(3)]
    spoil(sqlite_url, bad[0], "spec", "'{broken'")
    spoil(sqlite_url, bad[1], "name", "x'80'")
    spoil(sqlite_url, bad[2], "spec", """'{"resources": "all"}'""")
    spec = {"class": "tests.worker.own_jobs:Good", "args": {}}
    good = insert_job(sqlite_database, job_type="Good", heartrate=1.0, spec=spec)
    async with a_worker(sqlite_database, processes=2):
        await until_state(sqlite_database, JobState.SUCCESS, good)
        await soon(lambda: all(row_of(sqlite_database, each)["end_date"] for each in bad[:2]))
    for job_id in bad[:2]:
        assert "cannot be read" in row_of(sqlite_database, job_id)["message"]


@pytest.mark.parametrize("column", ["heartrate", "latest_heartbeat", "spec", "name"])
@in_loop
async def test_an_orphan_whose_row_cannot_be_read_keeps_no_other_from_being_adopted(
    sqlite_database: Database, sqlite_url: str, column: str
) -> None:
    held = {"heartrate": "'fast'", "latest_heartbeat": "'never'", "spec": "'{'", "name": "x'80'"}[column]
    with use_backend(an_outside(plan=SOON)):
        ids = []
        for _ in range(2):
            job = a_job()
            columns = {"submit_token": job.submit_token, "connection": job.connection, "heartrate": 0.3}
            ids.append(insert_job(sqlite_database, an_owner(), job_type="MemoryMonitorJob", **columns))
        bad, good = ids
        spoil(sqlite_url, bad, column, held)
        async with a_worker(sqlite_database):
            await until_state(sqlite_database, JobState.SUCCESS, good)
            if column in {"spec", "name"}:
                await until_state(sqlite_database, JobState.FAILED, bad)
    row = row_of(sqlite_database, bad)
    if column == "latest_heartbeat":  # nobody beats at a time that cannot be read
        assert row["claims"] == 2


@in_loop
async def test_a_row_whose_beats_are_refused_silences_no_other(
    database: Database, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with use_backend(an_outside()):
        ids = store(*(a_job(heartrate=0.3) for _ in range(4)))
        async with a_worker(database, heartrate=0.3) as working:
            await soon(lambda: working.jobs == set(ids))
            refuse_beats(database_url, ids[1])
            before = {job_id: row_of(database, job_id)["latest_heartbeat"] for job_id in ids}
            for _ in range(3):
                others = [job_id for job_id in ids if job_id != ids[1]]
                seen = {job_id: row_of(database, job_id)["latest_heartbeat"] for job_id in others}
                await soon(
                    lambda seen=seen: all(  # type: ignore[misc]
                        row_of(database, job_id)["latest_heartbeat"] > beat for job_id, beat in seen.items()
                    )
                )
            assert row_of(database, ids[1])["latest_heartbeat"] == before[ids[1]]
            allow_beats(database_url)
    assert len([each for each in caplog.messages if "refuses the beat" in each]) == 1


def refuse_beats(url: str, job_id: int) -> None:
    if url.startswith("sqlite"):
        plain_sql(
            url,
            "CREATE TRIGGER refuse BEFORE UPDATE OF latest_heartbeat ON job "
            f"WHEN NEW.id = {job_id} BEGIN SELECT RAISE(ABORT, 'not this one'); END",
        )
        return
    plain_sql(
        url,
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE 'not this one' USING ERRCODE = 'check_violation'; END $$",
    )
    plain_sql(
        url,
        "CREATE TRIGGER refuse BEFORE UPDATE OF latest_heartbeat ON job FOR EACH ROW "
        f"WHEN (NEW.id = {job_id}) EXECUTE FUNCTION refuse()",
    )


def allow_beats(url: str) -> None:
    plain_sql(url, "DROP TRIGGER refuse" + ("" if url.startswith("sqlite") else " ON job"))


@pytest.mark.parametrize(
    "detail", ["'{'", "'[1]'", """'{"jobs": "many", "unserved": 7}'""", """'{"unserved": [1, []]}'"""]
)
@in_loop
async def test_a_workers_row_that_cannot_be_read_keeps_no_other_worker_from_its_share(
    sqlite_database: Database, sqlite_url: str, detail: str
) -> None:
    with use_backend(an_outside(plan=SOON)):
        other = insert_job(sqlite_database, an_owner(), job_type="WorkerJob", heartrate=60.0)
        spoil(sqlite_url, other, "detail", detail)
        spoil(sqlite_url, other, "spec", """'{"capacity": "vast"}'""")
        ids = store(*(a_job() for _ in range(3)))
        async with a_worker(sqlite_database):
            await until_state(sqlite_database, JobState.SUCCESS, *ids)
        store(a_job())
        listed = CliRunner().invoke(list_, [])
        assert listed.exception is None, listed.output


def test_unreadable_rows_are_listed_and_shown(sqlite_database: Database, sqlite_url: str) -> None:
    everything = {**ENDED_BY_COLUMN, **OTHERWISE, "start_date": ["'once'"], "state": ["'vanished'"]}
    ids = []
    for column, held in [(column, held) for column, values in everything.items() for held in values]:
        ids.append(insert_job(sqlite_database, an_owner()))
        spoil(sqlite_url, ids[-1], column, held)
    for options in ([], ["--json"]):
        listed = CliRunner().invoke(list_, ["--limit", "1000", *options])
        assert listed.exception is None, listed.output
        for job_id in ids:
            shown = CliRunner().invoke(show, [str(job_id), *options])
            assert shown.exception is None, (job_id, shown.output)


def test_a_beat_at_a_time_that_cannot_be_read_is_not_the_most_recent(
    database: Database, database_url: str
) -> None:
    for _ in range(2):
        insert_job(database, an_owner(), job_type="WorkerJob", heartrate=60.0)
    never = "'zzz'" if database_url.startswith("sqlite") else "'infinity'"
    plain_sql(database_url, f"UPDATE job SET latest_heartbeat = {never} WHERE id = 1")
    found = WorkerJob.most_recent_job()
    assert found is not None
    assert found.id == 2
    assert found.is_alive()
    assert not BaseJob.get(1).is_alive()


def test_unreadable_rows_keep_no_other_from_being_pruned(sqlite_database: Database, sqlite_url: str) -> None:
    ids = [insert_job(sqlite_database) for _ in range(4)]
    with closing(plain_connection(sqlite_url)) as connection:
        connection.execute("UPDATE job SET state = 'success', end_date = '2020-01-01 00:00:00'")
    spoil(sqlite_url, ids[0], "spec", "'{'")
    spoil(sqlite_url, ids[1], "parent_id", "id")
    spoil(sqlite_url, ids[2], "end_date", "'never'")
    with sqlite_database.write() as connection:
        pruned = statements.prune(connection, 3600.0, 100)
    assert pruned
    assert [row[0] for row in plain_sql(sqlite_url, "SELECT id FROM job")] == [ids[2]]
