"""The migrations: up and down with data, many at once, and equal to the models."""

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from jobrunner import database as database_module
from jobrunner import schema
from jobrunner.database import SCHEMA_VERSION, Database, get_database
from jobrunner.errors import SchemaError, UsageError
from jobrunner.models.base_job import FILLFACTOR
from jobrunner.settings import Settings, configure
from tests.helpers import an_owner, insert_job, plain_sql

UPGRADE = """
import sys
from jobrunner.database import Database
from jobrunner.schema import upgrade
from jobrunner.settings import Settings
upgrade(Database(Settings(database_url=sys.argv[1])))
"""

EMBEDDED = """
import sys
from jobrunner.database import get_database
from jobrunner.settings import configure
from jobrunner.models import BaseJob
configure(data_dir=sys.argv[1])
get_database()
assert BaseJob.most_recent_job() is None
"""


@pytest.fixture
def unmigrated(empty_database_url: str) -> Iterator[Database]:
    """A database without any table of ours."""
    configure(database_url=empty_database_url)
    database = Database(Settings(database_url=empty_database_url))
    yield database
    database.dispose()


def tables_of(url: str) -> set[str]:
    catalogue = (
        "SELECT name FROM sqlite_master WHERE type = 'table'"
        if url.startswith("sqlite")
        else "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
    )
    return {name for (name,) in plain_sql(url, catalogue)} - {"sqlite_sequence"}


def indexes_of(url: str) -> dict[str, str]:
    catalogue = (
        "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
        if url.startswith("sqlite")
        else "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"
    )
    return dict(plain_sql(url, catalogue))


def test_the_newest_migration_is_the_one_that_the_code_expects() -> None:
    assert schema.revisions()[-1][0] == SCHEMA_VERSION
    assert all(text for _, text in schema.revisions())


def test_the_migrated_schema_equals_the_models(database: Database) -> None:
    assert schema.differences(database) == []


def test_up_and_down_and_up_again_with_data(unmigrated: Database, empty_database_url: str) -> None:
    for _ in range(2):
        schema.upgrade(unmigrated)
        assert unmigrated.schema_version() == SCHEMA_VERSION
        assert tables_of(empty_database_url) == {"job", "job_event", "alembic_version"}
        insert_job(unmigrated, an_owner(), parent_id=insert_job(unmigrated))
        schema.downgrade(unmigrated, "base")
        assert unmigrated.schema_version() is None
        assert tables_of(empty_database_url) == {"alembic_version"}
    unmigrated.dispose()


def test_each_migration_goes_down_one_step_and_up_again(unmigrated: Database) -> None:
    schema.upgrade(unmigrated)
    insert_job(unmigrated)
    for _ in schema.revisions():
        schema.downgrade(unmigrated, "-1")
    schema.upgrade(unmigrated, "head")
    assert schema.differences(unmigrated) == []
    unmigrated.dispose()


def test_rows_of_the_first_schema_are_kept_and_what_knows_only_that_goes_on_writing(
    unmigrated: Database, empty_database_url: str
) -> None:
    schema.upgrade(unmigrated, "0001")
    insert = "INSERT INTO job (job_type, heartrate) VALUES ('Bare', {})"
    plain_sql(empty_database_url, insert.format(1))
    schema.upgrade(unmigrated)
    plain_sql(empty_database_url, insert.format(2))
    kept = plain_sql(empty_database_url, "SELECT heartrate, start_timeout FROM job ORDER BY id")
    assert kept == [(1.0, None), (2.0, None)]
    schema.downgrade(unmigrated, "0001")
    assert plain_sql(empty_database_url, "SELECT heartrate FROM job ORDER BY id") == [(1.0,), (2.0,)]
    unmigrated.dispose()


def test_an_upgrade_of_what_is_up_to_date_changes_nothing(database: Database, database_url: str) -> None:
    job_id = insert_job(database)
    schema.upgrade(database)
    assert plain_sql(database_url, "SELECT id FROM job") == [(job_id,)]


def test_an_unknown_revision_is_refused_with_those_that_there_are(database: Database) -> None:
    with pytest.raises(UsageError, match="known are 0001"):
        schema.upgrade(database, "4711")
    with pytest.raises(UsageError, match="known are 0001"):
        schema.downgrade(database, "4711")


def test_a_migration_that_fails_leaves_nothing_half_done(
    unmigrated: Database, empty_database_url: str
) -> None:
    from jobrunner.errors import DatabaseError

    plain_sql(empty_database_url, "CREATE TABLE job_event (id INTEGER)")
    with pytest.raises(DatabaseError):
        schema.upgrade(unmigrated)
    assert tables_of(empty_database_url) == {"job_event"}
    unmigrated.dispose()


def test_upgrades_from_several_processes_at_once_are_safe(empty_database_url: str) -> None:
    command = [sys.executable, "-c", UPGRADE, empty_database_url]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for process in processes:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    assert plain_sql(empty_database_url, "SELECT version_num FROM alembic_version") == [(SCHEMA_VERSION,)]


def test_upgrades_from_several_threads_at_once_are_safe(empty_database_url: str) -> None:
    def upgrade(_n: int) -> None:
        database = Database(Settings(database_url=empty_database_url))
        schema.upgrade(database)
        database.dispose()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(upgrade, range(6)))
    assert plain_sql(empty_database_url, "SELECT version_num FROM alembic_version") == [(SCHEMA_VERSION,)]


# --- the embedded database ------------------------------------------------------------------------


def test_the_embedded_database_creates_itself(tmp_path: Path) -> None:
    configure(data_dir=tmp_path / "new" / "data")
    database = get_database()
    assert database.schema_version() == SCHEMA_VERSION
    insert_job(database)


def test_several_first_starts_at_once_create_it_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", EMBEDDED, str(tmp_path / "data")]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(6)]
    for process in processes:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said


def an_old_embedded(tmp_path: Path) -> str:
    configure(data_dir=tmp_path)
    database = get_database()
    insert_job(database)
    url = f"sqlite:///{tmp_path / 'jobrunner.db'}"
    plain_sql(url, "UPDATE alembic_version SET version_num = '0000'")
    database_module._current = None
    database.dispose()
    return url


def test_the_embedded_database_is_not_upgraded_under_a_live_job(tmp_path: Path) -> None:
    url = an_old_embedded(tmp_path)
    with pytest.raises(SchemaError, match=r"at version 0000.*jobs are queued or running"):
        get_database()
    assert plain_sql(url, "SELECT version_num FROM alembic_version") == [("0000",)]


def test_the_embedded_database_looks_only_at_live_jobs(tmp_path: Path) -> None:
    url = an_old_embedded(tmp_path)
    plain_sql(url, "UPDATE job SET state = 'success'")
    with pytest.raises(UsageError, match="0000"):  # it went on to the migrations, which do not know 0000
        get_database()


# --- what the tables are --------------------------------------------------------------------------


def test_pages_are_filled_to_the_same_share_by_model_and_migration(postgres_url: str) -> None:
    options = plain_sql(postgres_url, "SELECT reloptions FROM pg_class WHERE relname = 'job'")
    assert options == [([f"fillfactor={FILLFACTOR}"],)]


def test_no_index_holds_what_changes_with_a_beat(database_url: str) -> None:
    indexes = indexes_of(database_url)
    assert indexes
    assert not [name for name, definition in indexes.items() if "latest_heartbeat" in definition]


def test_beats_stay_on_their_page(postgres_database: Database, postgres_url: str) -> None:
    from jobrunner import statements

    owner = an_owner()
    ids = [insert_job(postgres_database, owner, spec={"text": "x" * 300}) for _ in range(20)]
    counts = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'job'"
    ((updates_before, hot_before),) = plain_sql(postgres_url, counts)
    with postgres_database.write() as connection:
        for _ in range(50):
            assert len(statements.beat(connection, owner.runner_id, ids)) == 20
    plain_sql(postgres_url, "SELECT pg_stat_force_next_flush()")
    with postgres_database.read() as connection:
        connection.exec_driver_sql("SELECT pg_stat_force_next_flush()")
    ((updates, hot),) = plain_sql(postgres_url, counts)
    assert updates - updates_before >= 1000
    assert (hot - hot_before) / (updates - updates_before) > 0.9


def test_the_kill_flag_has_its_trigger(postgres_url: str) -> None:
    triggers = plain_sql(
        postgres_url,
        "SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger "
        "WHERE tgrelid = 'job'::regclass AND NOT tgisinternal AND tgname = 'jobrunner_kill'",
    )
    ((name, definition),) = triggers
    assert name == "jobrunner_kill"
    assert "AFTER UPDATE OF kill_requested_at" in definition


def test_an_id_is_never_used_again(database: Database, database_url: str) -> None:
    first = insert_job(database)
    plain_sql(database_url, "DELETE FROM job")
    assert insert_job(database) > first


@pytest.mark.parametrize(
    "wrong",
    [
        "state = 'paused'",
        "latest_heartbeat = NULL",
        *("heartrate = 0", "heartrate = -1", "heartrate = 1e300"),
        *("poll_interval = 0", "poll_interval = -1", "poll_interval = 1e300"),
        *("start_timeout = 0", "start_timeout = 1e300"),
        *("claims = -1", "attempt = -1"),
    ],
)
def test_the_table_refuses_what_would_mislead_its_readers(
    database: Database, database_url: str, wrong: str
) -> None:
    insert_job(database)
    with pytest.raises(Exception, match=r"(?i)check|null"):
        plain_sql(database_url, f"UPDATE job SET {wrong}")


@pytest.mark.parametrize("column", ["heartrate", "poll_interval", "start_timeout"])
@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_postgresql_refuses_numbers_that_nobody_can_wait_for(
    postgres_database: Database, postgres_url: str, column: str, value: str
) -> None:
    insert_job(postgres_database)
    with pytest.raises(psycopg.errors.CheckViolation):
        plain_sql(postgres_url, f"UPDATE job SET {column} = '{value}'")


@pytest.mark.parametrize("column", ["heartrate", "poll_interval", "start_timeout", "claims", "attempt"])
@pytest.mark.parametrize("value", ["'often'", "9e999", "x'00ff'", "9223372036854775807"])
def test_sqlite_refuses_what_cannot_be_read_as_a_number(
    sqlite_database: Database, sqlite_url: str, column: str, value: str
) -> None:
    insert_job(sqlite_database)
    with pytest.raises(sqlite3.IntegrityError):
        plain_sql(sqlite_url, f"UPDATE job SET {column} = {value}")


def test_an_upgrade_repairs_numbers_that_the_new_schema_refuses(
    unmigrated: Database, empty_database_url: str
) -> None:
    schema.upgrade(unmigrated, "0004")
    on_sqlite = empty_database_url.startswith("sqlite")
    for value in ("9e999", "'fast'") if on_sqlite else ("'NaN'", "'Infinity'"):
        insert = "INSERT INTO job (job_type, heartrate, poll_interval) VALUES ('Bare', {0}, {0})"
        plain_sql(empty_database_url, insert.format(value))
    schema.upgrade(unmigrated)
    rows = plain_sql(empty_database_url, "SELECT heartrate, poll_interval FROM job")
    assert rows == [(5.0, None)] * 2
    unmigrated.dispose()


def test_an_upgrade_waits_for_older_workers_to_stop_and_names_them(
    unmigrated: Database, empty_database_url: str
) -> None:
    schema.upgrade(unmigrated, "0004")
    insert = (
        "INSERT INTO job (job_type, state, heartrate, hostname, pid) VALUES ('{}', 'running', {}, 'mars', 7)"
    )
    plain_sql(empty_database_url, insert.format("WorkerJob", 60))
    plain_sql(empty_database_url, insert.format("Bare", 60))
    with pytest.raises(UsageError, match=r"0004.*: job 1 \(process 7 on mars\)\. Stop them"):
        schema.upgrade(unmigrated)
    assert unmigrated.schema_version() == "0004"
    plain_sql(empty_database_url, "UPDATE job SET heartrate = 0.001 WHERE id = 1")  # it fell silent
    schema.upgrade(unmigrated)
    plain_sql(empty_database_url, "UPDATE job SET heartrate = 60 WHERE id = 1")
    schema.upgrade(unmigrated)  # there is nothing to do
    assert unmigrated.schema_version() == SCHEMA_VERSION
    with pytest.raises(UsageError, match=rf"{SCHEMA_VERSION}.*: job 1 \(process 7 on mars\)\. Stop them"):
        schema.downgrade(unmigrated, "0004")
    assert unmigrated.schema_version() == SCHEMA_VERSION
    unmigrated.dispose()


def test_an_upgrade_waits_for_an_older_worker_of_ones_own_class(
    unmigrated: Database, empty_database_url: str
) -> None:
    schema.upgrade(unmigrated, "0001")
    spec = (
        '{"capacity": 10000, "processes": 2, "job_types": [], "connections": [], "imports": [], '
        '"drain_timeout": 600.0}'
    )  # as 0.1 stored it
    insert = "INSERT INTO job (job_type, state, heartrate, hostname, pid, spec) VALUES "
    plain_sql(empty_database_url, f"{insert} ('NightWorker', 'running', 60, 'mars', 7, '{spec}')")
    with pytest.raises(UsageError, match=r"0001.*: job 1 \(process 7 on mars\)\. Stop them"):
        schema.upgrade(unmigrated)
    unmigrated.dispose()


def test_events_go_with_their_job(database: Database, database_url: str) -> None:
    job_id = insert_job(database)
    with database.write() as connection:
        connection.exec_driver_sql(f"DELETE FROM job WHERE id = {job_id}")
    assert plain_sql(database_url, "SELECT count(*) FROM job_event") == [(0,)]
