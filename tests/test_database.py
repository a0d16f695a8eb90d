"""Connections, times, and what goes wrong with them: one sentence, no password, the right class."""

import datetime as dt
import os
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import event, text

from jobrunner import queries, statements
from jobrunner.database import Database, get_database
from jobrunner.errors import (
    DatabaseError,
    DatabaseUnavailable,
    JobrunnerError,
    SchemaError,
    SettingsError,
)
from jobrunner.settings import Settings, configure
from jobrunner.sqltypes import UtcDateTime
from tests.helpers import (
    a_running_job,
    an_owner,
    insert_job,
    plain_connection,
    plain_sql,
    row_of,
)
from tests.postgres import Postgres
from tests.proxy import Proxy

MOMENT = dt.datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=dt.UTC)


# --- times ----------------------------------------------------------------------------------------


def test_a_naive_time_never_reaches_the_database(database: Database) -> None:
    naive = dt.datetime(2026, 3, 1, 12)  # noqa: DTZ001
    with pytest.raises(DatabaseError, match="has no time zone: give an aware datetime"):
        insert_job(database, deadline_at=naive)


@pytest.mark.parametrize(
    "moment",
    [MOMENT, MOMENT.replace(microsecond=0), MOMENT.astimezone(dt.timezone(dt.timedelta(hours=-7)))],
)
def test_an_aware_time_comes_back_as_the_same_moment_in_utc(database: Database, moment: dt.datetime) -> None:
    read = row_of(database, insert_job(database, deadline_at=moment))["deadline_at"]
    assert read == moment
    assert read.tzinfo == dt.UTC


def test_every_time_of_the_database_is_aware_and_now(database: Database) -> None:
    row = row_of(database, insert_job(database, an_owner()))
    with database.read() as connection:
        now = statements.now(connection)
    for column in ("created_at", "start_date", "latest_heartbeat"):
        assert row[column].tzinfo == dt.UTC
        assert dt.timedelta(0) <= now - row[column] < dt.timedelta(seconds=30)
    assert abs(now - dt.datetime.now(dt.UTC)) < dt.timedelta(seconds=30)


def test_a_session_in_another_time_zone_reads_the_same_moments(
    postgres_database: Database, postgres_url: str
) -> None:
    job_id = insert_job(postgres_database, deadline_at=MOMENT)
    name = plain_sql(postgres_url, "SELECT current_database()")[0][0]
    plain_sql(postgres_url, f"ALTER ROLE postgres IN DATABASE {name} SET timezone = 'Asia/Kathmandu'")
    other = Database(Settings(database_url=postgres_url))
    assert row_of(other, job_id)["deadline_at"] == MOMENT
    other.dispose()


def test_times_compare_as_moments_however_finely_they_were_written(database: Database) -> None:
    ids = [
        insert_job(database, deadline_at=MOMENT.replace(microsecond=micro)) for micro in (0, 1, 1000, 999999)
    ]
    job, _ = statements.tables()
    with database.read() as connection:
        in_order = connection.execute(job.select().order_by(job.c.deadline_at.desc())).mappings().all()
        later = job.select().where(job.c.deadline_at > MOMENT.replace(microsecond=500))
        assert [row["id"] for row in in_order] == ids[::-1]
        assert {row["id"] for row in connection.execute(later).mappings()} == set(ids[2:])


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("2026-03-01 12:00:00", dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)),
        ("2026-03-01T14:00:00+02:00", dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)),
        ("2026-03-01", dt.datetime(2026, 3, 1, tzinfo=dt.UTC)),
        ("1", dt.datetime(1970, 1, 1, 0, 0, 1, tzinfo=dt.UTC)),
        ("1e400", dt.datetime(1970, 1, 1, tzinfo=dt.UTC)),
        ("9" * 30, dt.datetime(1970, 1, 1, tzinfo=dt.UTC)),
        ("next tuesday", dt.datetime(1970, 1, 1, tzinfo=dt.UTC)),
    ],
)
def test_whatever_text_stands_in_sqlite_reads_as_an_aware_time(
    sqlite_database: Database, written: str, read: dt.datetime
) -> None:
    assert UtcDateTime().process_result_value(written, sqlite_database.engine.dialect) == read


def test_the_age_is_in_seconds_and_negative_for_a_time_to_come(database: Database, database_url: str) -> None:
    claim, _ = a_running_job(database)
    for offset_s in (90, -3600):
        with database.read() as connection:
            moment = statements.now(connection) - dt.timedelta(seconds=offset_s)
        text_of_it = moment.strftime("%Y-%m-%d %H:%M:%S.%f") + ("" if database.is_sqlite else "+00")
        plain_sql(database_url, f"UPDATE job SET latest_heartbeat = '{text_of_it}'")
        with database.read() as connection:
            row = queries.shown(connection, claim.job_id, 2.1)
        assert row is not None
        assert row["age_s"] == pytest.approx(offset_s, abs=10)


# --- what a connection is set to ------------------------------------------------------------------


def setting(database: Database, name: str, *, held: bool = False) -> object:
    if held:
        with database.held() as connection:
            return connection.execute(text(f"SHOW {name}")).scalar()
    with database.read() as connection:
        return connection.execute(text(f"SHOW {name}")).scalar()


def test_postgresql_is_told_all_its_timeouts(postgres_url: str) -> None:
    configure(database_url=postgres_url, statement_timeout_s=11, lock_timeout_s=3, call_timeout_s=21)
    database = get_database()
    assert setting(database, "statement_timeout") == "11s"
    assert setting(database, "lock_timeout") == "3s"
    assert setting(database, "idle_in_transaction_session_timeout") == "21s"
    assert setting(database, "transaction_isolation") == "read committed"
    assert setting(database, "default_transaction_isolation") == "read committed"
    assert setting(database, "application_name") == "jobrunner"


def test_an_application_name_of_ones_own_is_heeded(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(database_url=f"{postgres_url}&application_name=etl")
    assert setting(get_database(), "application_name") == "etl"
    configure(database_url=postgres_url)
    monkeypatch.setenv("PGAPPNAME", "nightly")
    assert setting(get_database(), "application_name") == "nightly"


def test_claims_and_outcomes_wait_for_the_disk_and_beats_do_not(postgres_database: Database) -> None:
    assert setting(postgres_database, "synchronous_commit") == "on"
    assert setting(postgres_database, "synchronous_commit", held=True) == "off"
    assert setting(postgres_database, "synchronous_commit") == "on", "a held connection never comes back"


def test_read_committed_stands_whatever_the_databases_default_is(
    postgres_database: Database, postgres_url: str
) -> None:
    name = plain_sql(postgres_url, "SELECT current_database()")[0][0]
    plain_sql(postgres_url, f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
    other = Database(Settings(database_url=postgres_url))
    assert setting(other, "transaction_isolation") == "read committed"
    other.dispose()


def test_a_pooler_that_takes_no_options_gets_none(postgres_url: str) -> None:
    configure(database_url=postgres_url, postgres_options=False, statement_timeout_s=11)
    assert setting(get_database(), "statement_timeout") == "0"
    # A SET in a pooler's connection would stay for whoever gets it next.
    assert setting(get_database(), "synchronous_commit", held=True) == "on"


def test_sqlite_is_set_up_for_several_processes(sqlite_database: Database) -> None:
    def pragma(name: str) -> object:
        with sqlite_database.read() as connection:
            return connection.execute(text(f"PRAGMA {name}")).scalar()

    assert [pragma(name) for name in ("journal_mode", "foreign_keys", "synchronous")] == ["wal", 1, 2]
    assert pragma("busy_timeout") == 30_000
    with sqlite_database.held() as connection:
        assert connection.execute(text("PRAGMA synchronous")).scalar() == 1


def test_each_statement_of_a_read_stands_alone(database: Database, database_url: str) -> None:
    insert_job(database)
    with database.read() as connection:
        assert connection.execute(text("SELECT count(*) FROM job")).scalar() == 1
        plain_sql(database_url, "DELETE FROM job")
        assert connection.execute(text("SELECT count(*) FROM job")).scalar() == 0


def test_a_beat_is_one_round_trip(postgres: Postgres, postgres_url: str) -> None:
    with Proxy(postgres.socket_dir) as proxy:
        configure(database_url=postgres_url.replace(postgres.socket_dir, proxy.socket_dir))
        database = get_database()
        claim, _ = a_running_job(database)
        with database.held() as connection:
            for _ in range(20):  # psycopg prepares a statement on its way
                statements.beat(connection, claim.runner_id, [claim.job_id])
            before = proxy.turns
            for _ in range(20):
                assert statements.beat(connection, claim.runner_id, [claim.job_id])
            assert proxy.turns - before == 20
        database.dispose()


def test_a_fork_gets_a_pool_of_its_own(database: Database) -> None:
    with database.read():
        child = os.fork()
        if child == 0:
            os._exit(0 if get_database() is not database else 1)
        assert os.waitpid(child, 0)[1] == 0


# --- what goes wrong ------------------------------------------------------------------------------


def trouble_with(url: str, **settings: object) -> JobrunnerError:
    configure(database_url=url, **settings)
    with pytest.raises((DatabaseError, SettingsError)) as caught:
        get_database()
    message = str(caught.value)
    assert "\n" not in message
    assert "s3cret" not in message
    return caught.value


def a_closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_a_server_that_is_not_there_is_unavailable() -> None:
    error = trouble_with(f"postgresql://me:s3cret@127.0.0.1:{a_closed_port()}/jobs")
    assert isinstance(error, DatabaseUnavailable)
    assert "refused" in str(error)


def test_a_name_that_nobody_knows_is_unavailable() -> None:
    assert isinstance(trouble_with("postgresql://me:s3cret@no-such-host.invalid/jobs"), DatabaseUnavailable)


def test_a_database_that_is_not_there_is_unavailable(postgres: Postgres) -> None:
    error = trouble_with(postgres.url("no_such_database").replace("postgres@", "postgres:s3cret@"))
    assert isinstance(error, DatabaseUnavailable)
    assert "no_such_database" in str(error)


@pytest.mark.parametrize("url", ["mysql://me:s3cret@db/jobs", "not a url", "oracle://db", "jobs.db"])
def test_any_other_database_is_refused_by_the_settings(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        configure(database_url=url)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true"])
def test_a_database_in_memory_is_refused_since_no_second_process_could_reach_it(url: str) -> None:
    with pytest.raises(SettingsError, match="in-memory"):
        configure(database_url=url)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    error = trouble_with(f"sqlite:///{tmp_path / 'nowhere' / 'jobs.db'}")
    assert isinstance(error, DatabaseUnavailable)
    assert f"{tmp_path / 'nowhere'}" in str(error)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("buy milk\n" * 500)
    error = trouble_with(f"sqlite:///{tmp_path / 'notes.txt'}")
    assert "not a database" in str(error)
    assert (tmp_path / "notes.txt").read_text().startswith("buy milk")


def test_a_directory_in_the_files_place_is_unavailable(tmp_path: Path) -> None:
    assert isinstance(trouble_with(f"sqlite:///{tmp_path}"), DatabaseUnavailable)


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not hold for root")
def test_a_file_that_may_not_be_written_is_unavailable(sqlite_url: str, tmp_path: Path) -> None:
    (tmp_path / "jobs.db").chmod(0o000)
    assert isinstance(trouble_with(sqlite_url), DatabaseUnavailable)


def test_an_embedded_database_where_no_directory_can_be_made_says_what_to_set(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    configure(data_dir=tmp_path / "file" / "data")
    with pytest.raises(DatabaseUnavailable, match="JOBRUNNER_DATA_DIR"):
        get_database()


def test_a_database_without_tables_names_the_command_that_makes_them(empty_database_url: str) -> None:
    error = trouble_with(empty_database_url)
    assert isinstance(error, SchemaError)
    assert "has no tables of jobrunner: run `jobrunner db upgrade`" in str(error)


def test_an_old_schema_names_the_command_that_upgrades_it(database_url: str) -> None:
    plain_sql(database_url, "UPDATE alembic_version SET version_num = '0000'")
    error = trouble_with(database_url)
    assert isinstance(error, SchemaError)
    assert "at version 0000" in str(error)
    assert "jobrunner db upgrade" in str(error)


def test_a_newer_schema_is_accepted(database_url: str) -> None:
    plain_sql(database_url, "UPDATE alembic_version SET version_num = '0999'")
    configure(database_url=database_url)
    insert_job(get_database())


def test_tables_that_vanish_later_are_a_schema_error(database: Database, database_url: str) -> None:
    plain_sql(database_url, "ALTER TABLE job RENAME TO jobs")
    with pytest.raises(SchemaError, match="jobrunner db upgrade"):
        insert_job(database)


def test_a_locked_sqlite_file_is_unavailable_after_the_busy_timeout(sqlite_url: str) -> None:
    configure(database_url=sqlite_url, sqlite_busy_timeout_s=0.1)
    database = get_database()
    holder = plain_connection(sqlite_url)
    holder.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(DatabaseUnavailable, match="locked"):
            insert_job(database)
        with database.read() as connection:
            assert connection.execute(text("SELECT count(*) FROM job")).scalar() == 0
    finally:
        holder.close()
    insert_job(database)


INSERT = text(
    "INSERT INTO job (job_type, heartrate, created_at, latest_heartbeat, claims, attempt) "
    "VALUES ('Bare', 1, '2026-01-01', '2026-01-01', 0, 0) RETURNING id"
)


@pytest.mark.parametrize("amid", [True, False], ids=["amid a statement", "before its answer is read"])
def test_ctrl_c_amid_a_write_keeps_nobody_from_writing(
    database: Database, database_url: str, amid: bool
) -> None:
    def interrupt(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("INSERT"):
            raise KeyboardInterrupt

    def write_until_interrupted() -> None:
        with database.write() as connection:
            _answer = connection.execute(INSERT)  # the traceback keeps it
            raise KeyboardInterrupt

    if amid:
        event.listen(database.engine, "after_cursor_execute", interrupt)
    with pytest.raises(KeyboardInterrupt) as caught:
        write_until_interrupted()
    if amid:
        event.remove(database.engine, "after_cursor_execute", interrupt)
    stored = 0 if database.is_sqlite else 1  # PostgreSQL has committed the statement by then
    assert plain_sql(database_url, "SELECT count(*) FROM job") == [(stored,)]
    plain_sql(database_url, "UPDATE job SET name = 'somebody else'")  # of another process
    insert_job(database)
    assert plain_sql(database_url, "SELECT count(*) FROM job") == [(stored + 1,)]
    del caught


def test_without_the_extra_postgresql_says_how_to_install_it() -> None:
    code = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from jobrunner.database import Database\n"
        "from jobrunner.settings import Settings\n"
        "try:\n    Database(Settings(database_url='postgresql://h/d'))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.startswith("SettingsError")
    assert "jobrunner[postgres]" in said


def test_an_old_sqlite_is_refused(monkeypatch: pytest.MonkeyPatch, sqlite_url: str) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 0))
    assert "too old" in str(trouble_with(sqlite_url))


# --- a server that says nothing -------------------------------------------------------------------


def through(proxy: Proxy, postgres: Postgres, url: str, **settings: object) -> Database:
    configure(database_url=url.replace(postgres.socket_dir, proxy.socket_dir), call_timeout_s=1, **settings)
    return get_database()


def test_a_call_to_a_server_that_fell_silent_ends_at_its_deadline(
    postgres: Postgres, postgres_url: str
) -> None:
    with Proxy(postgres.socket_dir) as proxy:
        database = through(proxy, postgres, postgres_url)
        proxy.is_silent = True
        begun_s = time.monotonic()
        with pytest.raises(DatabaseUnavailable):
            insert_job(database)
        assert 0.5 < time.monotonic() - begun_s < 20
        proxy.is_silent = False
        insert_job(database)
        database.dispose()


def test_a_commit_to_a_server_that_fell_silent_ends_at_its_deadline(
    postgres: Postgres, postgres_url: str
) -> None:
    from sqlalchemy.exc import SQLAlchemyError

    with Proxy(postgres.socket_dir) as proxy:
        database = through(proxy, postgres, postgres_url)
        begun_s = time.monotonic()
        with database.session() as session:
            session.execute(text("SELECT 1"))
            proxy.is_silent = True
            with pytest.raises(SQLAlchemyError):
                session.commit()
        assert time.monotonic() - begun_s < 20
        database.dispose()


def test_a_new_connection_to_a_server_that_fell_silent_ends_at_its_deadline(
    postgres: Postgres, postgres_url: str
) -> None:
    with Proxy(postgres.socket_dir) as proxy:
        proxy.is_silent = True
        begun_s = time.monotonic()
        with pytest.raises(DatabaseUnavailable):
            through(proxy, postgres, postgres_url, connect_timeout_s=2)
        assert time.monotonic() - begun_s < 20


def test_a_call_that_is_answered_in_time_is_left_alone(postgres_url: str) -> None:
    configure(database_url=postgres_url, call_timeout_s=1.5)
    database = get_database()
    with database.read() as connection:
        for _ in range(4):
            connection.execute(text("SELECT pg_sleep(0.5)"))
