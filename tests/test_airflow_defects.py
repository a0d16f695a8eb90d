"""The ten defects of the original BaseJob, each reproduced there: that we do not have them."""

import datetime as dt
import os
import signal
import time
from typing import Any

import pytest
from sqlalchemy import exc

from jobrunner import queries
from jobrunner.clock import utcnow
from jobrunner.database import Database, get_database
from jobrunner.errors import ClaimLost, DatabaseError, JobKilled
from jobrunner.heartbeat import Beater
from jobrunner.models import BaseJob
from jobrunner.settings import configure
from jobrunner.states import JobState
from tests.helpers import CodeJob, Run, an_owner, beat_for_ever, insert_job, plain_sql, row_of


def test_1_an_external_kill_is_not_overwritten_by_the_heartbeat(
    database: Database, database_url: str
) -> None:
    def code(job: CodeJob) -> None:
        job.state = JobState.RUNNING  # what memory says is written by nobody
        plain_sql(database_url, "UPDATE job SET kill_requested_at = '2026-01-01 00:00:00'")
        while True:
            job.heartbeat()

    job = CodeJob(code, heartrate=0.05)
    with pytest.raises(JobKilled):
        job.run()
    assert plain_sql(database_url, "SELECT state FROM job") == [("killed",)]


def test_2_the_stored_heartbeat_does_not_lag_one_beat(database: Database) -> None:
    lags: list[float] = []

    def code(job: CodeJob) -> None:
        for _ in range(3):
            job.heartbeat()
            with database.read() as connection:
                row = queries.shown(connection, job.id, 2.1)
            assert row is not None
            lags.append(row["age_s"])

    CodeJob(code, heartrate=0.5).run()
    assert min(lags) < 0.25, "the row is as fresh as the beat, not as the one before"


def test_3_no_transaction_is_open_while_the_job_waits(postgres_database: Database, postgres_url: str) -> None:
    with Run(CodeJob(beat_for_ever, heartrate=0.3)) as run:
        for _ in range(20):
            states = plain_sql(
                postgres_url,
                "SELECT state FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()",
            )
            assert not [state for (state,) in states if state and state.startswith("idle in transaction")]
            time.sleep(0.03)
        run.job.request_kill()


def test_3_no_lock_is_held_while_the_job_waits(sqlite_database: Database, sqlite_url: str) -> None:
    with Run(CodeJob(beat_for_ever, heartrate=30)) as run:
        time.sleep(0.2)
        plain_sql(sqlite_url, "PRAGMA busy_timeout = 0")
        plain_sql(sqlite_url, "UPDATE job SET name = 'written at once'")
        run.job.request_kill()


def test_4_a_clock_that_went_back_neither_stretches_the_wait_nor_keeps_the_dead_alive(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def code(job: CodeJob) -> None:
        hour = dt.timedelta(hours=1)
        monkeypatch.setattr("jobrunner.models.base_job.utcnow", lambda: dt.datetime.now(dt.UTC) - hour)
        begun_s = time.monotonic()
        job.heartbeat()
        assert time.monotonic() - begun_s < 10

    CodeJob(code, heartrate=0.1).run()


def test_4_a_beat_from_the_future_is_not_alive(database: Database, database_url: str) -> None:
    job_id = insert_job(database, an_owner(), job_type="CodeJob", heartrate=10.0)
    later = (utcnow() + dt.timedelta(hours=1)).strftime("%Y-%m-%d %H:%M:%S.000")
    later += "" if database.is_sqlite else "+00"
    plain_sql(database_url, f"UPDATE job SET latest_heartbeat = '{later}'")
    assert not CodeJob.get(job_id).is_alive()
    with database.read() as connection:
        assert queries.alive_ids(connection, 2.1) == []


def test_5_a_row_deleted_under_a_live_job_stays_deleted(database: Database, database_url: str) -> None:
    with Run(CodeJob(beat_for_ever, heartrate=0.05)) as run:
        plain_sql(database_url, "DELETE FROM job")
        assert isinstance(run.join(), ClaimLost)
    assert plain_sql(database_url, "SELECT count(*) FROM job") == [(0,)]


def test_6_ctrl_c_leaves_no_running_row(database: Database) -> None:
    def code(job: CodeJob) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        job.heartbeat()

    job = CodeJob(code, heartrate=30)
    with pytest.raises(KeyboardInterrupt):
        job.run()
    row = row_of(database, job.id)
    assert (row["state"], row["message"]) == (JobState.KILLED, "interrupted from the keyboard")
    assert row["end_date"] is not None


def test_6_an_exit_with_3_is_no_success(database: Database) -> None:
    def code(_job: CodeJob) -> None:
        raise SystemExit(3)

    job = CodeJob(code)
    with pytest.raises(SystemExit):
        job.run()
    assert (job.state, job.message) == (JobState.FAILED, "exited with code 3")


def test_7_on_kill_of_the_job_is_really_called(database: Database) -> None:
    with Run(CodeJob(beat_for_ever, heartrate=30)) as run:
        run.job.request_kill()
        run.join()
    assert run.job.kills == 1  # type: ignore[attr-defined]


def test_8_every_reader_judges_by_the_heartrate_in_the_row(database: Database, database_url: str) -> None:
    slow = insert_job(database, an_owner(), job_type="CodeJob", heartrate=60.0)
    quick = insert_job(database, an_owner(), job_type="CodeJob", heartrate=1.0)
    minute_ago = (
        "strftime('%Y-%m-%d %H:%M:%f', 'now', '-60 seconds')"
        if database.is_sqlite
        else "clock_timestamp() - interval '60 seconds'"
    )
    plain_sql(database_url, f"UPDATE job SET latest_heartbeat = {minute_ago}")
    configure(heartrate=1000)
    assert CodeJob.get(slow).is_alive()
    assert not CodeJob.get(quick).is_alive()
    with get_database().read() as connection:
        assert queries.alive_ids(connection, 2.1) == [slow]


@pytest.mark.parametrize(
    "error",
    [
        exc.OperationalError("beat", {}, Exception("server closed the connection")),
        exc.InterfaceError("beat", {}, Exception("connection already closed")),
        exc.InternalError("beat", {}, Exception("current transaction is aborted")),
        exc.ProgrammingError("beat", {}, Exception("permission denied")),
        exc.DatabaseError("beat", {}, Exception("database disk image is malformed")),
        exc.TimeoutError("QueuePool limit reached"),
        exc.PendingRollbackError("Can't reconnect until invalid transaction is rolled back"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_9_every_database_error_is_forgiven(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    from jobrunner import statements

    def refuse(*_args: Any, **_options: Any) -> None:
        raise error

    def code(job: CodeJob) -> None:
        before = job.latest_heartbeat
        with monkeypatch.context() as patched:
            patched.setattr(statements, "beat", refuse)
            job.heartbeat()
        assert job.latest_heartbeat == before
        job.heartbeat()
        assert job.latest_heartbeat > before

    job = CodeJob(code, heartrate=0.05)
    job.run()
    assert job.state == JobState.SUCCESS


def test_9_an_error_of_the_beat_is_a_database_error_of_ours(sqlite_database: Database) -> None:
    beater = Beater(sqlite_database, "me", 5.0)
    plain_sql(sqlite_database.settings.database_url or "", "DROP TABLE job_event")
    plain_sql(sqlite_database.settings.database_url or "", "DROP TABLE job")
    with pytest.raises(DatabaseError):
        beater.beat([1])
    beater.close()


def test_10_liveness_is_judged_before_any_limit_and_for_every_type(
    database: Database, database_url: str
) -> None:
    alive = insert_job(database, an_owner(hostname="here"), job_type="my.own.Type")
    dead = [insert_job(database, an_owner(hostname="here"), job_type="my.own.Type") for _ in range(5)]
    old = "'2026-01-01 00:00:00'"
    plain_sql(database_url, f"UPDATE job SET latest_heartbeat = {old} WHERE id > {alive}")
    assert alive < min(dead)
    with database.read() as connection:
        assert queries.alive_ids(connection, 2.1, job_types=["my.own.Type"], limit=1) == [alive]
        assert queries.alive_ids(connection, 2.1, hostname="here", limit=1) == [alive]
        assert queries.alive_ids(connection, 2.1, hostname="there") == []
        assert queries.alive_ids(connection, 2.1, job_types=["another.Type"]) == []
    job = BaseJob.get(alive)
    assert job.is_alive()
