"""Behind a pooler, server connections are shared: nothing is left set on them, prepared or listened to."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from sqlalchemy import make_url

from jobrunner import postgres_session, schema, statements
from jobrunner.database import Database, driver_connection, get_database
from jobrunner.ears import PostgresEar
from jobrunner.errors import DatabaseError
from jobrunner.heartbeat import Beater
from jobrunner.hints import Hints
from jobrunner.log_limits import Once
from jobrunner.settings import Settings, configure
from jobrunner.states import JobState
from tests.conftest import _forget
from tests.helpers import CodeJob, Run, a_running_job, beat_for_ever, insert_job, plain_sql, until
from tests.pooler import IGNORES_OPTIONS, pgbouncer, seen_by_others
from tests.postgres import Postgres

LISTENED = "SELECT coalesce(string_agg(c, ','), '') FROM pg_listening_channels() c"
SET = "SELECT current_setting('synchronous_commit') || ' ' || current_setting('statement_timeout')"
PREPARED = "SELECT count(*) FROM pg_prepared_statements"


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_session, "_said", Once())


@dataclass(frozen=True)
class Pooled:
    """A database that is reached through a pooler."""

    port: int
    name: str

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{self.name}"


@contextmanager
def pooled_database(
    postgres: Postgres, url: str, *lines: str, pool_mode: str = "transaction"
) -> Iterator[Pooled]:
    with pgbouncer(postgres.socket_dir, *lines, pool_mode=pool_mode) as port:
        yield Pooled(port, str(make_url(url).database))
        _forget()  # its connections, before the pooler ends


@pytest.fixture
def pooled(postgres: Postgres, postgres_url: str) -> Iterator[Pooled]:
    """A PgBouncer that ignores connection options."""
    with pooled_database(postgres, postgres_url, IGNORES_OPTIONS) as pooled:
        yield pooled


def use_the_database(database: Database) -> None:
    """Beat, ask, listen and write, each more often than a statement takes to be prepared."""
    claim, owner = a_running_job(database)
    beater = Beater(database, owner.runner_id, 5.0)
    hints = Hints(database)
    try:
        for _ in range(8):
            assert beater.beat([claim.job_id])
            beater.flagged()
            hints.wait(0.05)
            with database.write() as connection:
                statements.get(connection, claim.job_id)
        until(lambda: hints._listener is not None and hints._listener.has_said_deaf)
    finally:
        beater.close()
        hints.close()


@pytest.mark.parametrize("has_options", [True, False])
def test_nothing_is_left_set_listened_to_or_prepared_for_others(pooled: Pooled, *, has_options: bool) -> None:
    configure(database_url=pooled.url, postgres_options=has_options)
    use_the_database(get_database())
    assert seen_by_others(pooled.port, pooled.name, SET) == {"on 0"}
    assert seen_by_others(pooled.port, pooled.name, LISTENED) == {""}
    assert seen_by_others(pooled.port, pooled.name, PREPARED) == {0}


def test_options_that_do_not_take_are_noticed_and_said_once(
    pooled: Pooled, caplog: pytest.LogCaptureFixture
) -> None:
    configure(database_url=f"{pooled.url}?options=-csearch_path%3Djobs")
    with caplog.at_level(logging.WARNING):
        database = get_database()
        with database.read(), database.read():  # two connections
            pass
    (said,) = [
        record.getMessage() for record in caplog.records if "ignored by a pooler" in record.getMessage()
    ]
    assert "statement_timeout is 0" in said
    assert "lock_timeout is 0" in said
    assert "search_path" in said
    assert "set them on the role" in said


def test_nothing_is_said_where_the_role_has_all_that_is_needed(
    postgres_url: str, pooled: Pooled, caplog: pytest.LogCaptureFixture
) -> None:
    for setting in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"):
        plain_sql(postgres_url, f"ALTER ROLE postgres IN DATABASE {pooled.name} SET {setting} = '7s'")
    configure(database_url=pooled.url)
    get_database()
    assert "pooler" not in caplog.text


def test_a_pooler_that_refuses_options_is_named_with_the_setting_that_helps(
    postgres: Postgres, postgres_url: str
) -> None:
    with pooled_database(postgres, postgres_url) as pooled:
        configure(database_url=pooled.url)
        with pytest.raises(DatabaseError, match="refuses connection options, set postgres_options = false"):
            get_database()
        configure(database_url=pooled.url, postgres_options=False)
        assert insert_job(get_database())


def test_a_pooler_that_knows_no_transactions_is_named_with_the_setting_that_helps(
    postgres: Postgres, postgres_url: str
) -> None:
    with pooled_database(postgres, postgres_url, pool_mode="statement") as pooled:
        configure(database_url=pooled.url, postgres_options=False)
        with pytest.raises(DatabaseError, match="pool_mode = transaction"):
            get_database()


@pytest.mark.parametrize("pool_mode", ["transaction", "session"])
def test_a_listen_url_that_leads_to_a_pooler_is_not_listened_on(
    postgres: Postgres, postgres_url: str, pool_mode: str
) -> None:
    with pooled_database(postgres, postgres_url, IGNORES_OPTIONS, pool_mode=pool_mode) as pooled:
        configure(database_url=postgres_url, listen_url=pooled.url)
        ear = PostgresEar(get_database())
        try:
            with pytest.raises(DatabaseError, match="set listen_url to a direct connection"):
                ear.open()
        finally:
            ear.close()
        assert seen_by_others(pooled.port, pooled.name, LISTENED, times=2) == {""}


def test_a_kill_of_own_code_does_not_wait_for_the_next_beat_behind_a_pooler(
    pooled: Pooled, postgres_url: str
) -> None:
    configure(database_url=pooled.url)
    with Run(CodeJob(beat_for_ever, heartrate=300)) as run:
        plain_sql(postgres_url, "UPDATE job SET kill_requested_at = now()")
        run.join()
    assert run.job.state is JobState.KILLED


def test_the_schema_is_upgraded_through_a_pooler(postgres: Postgres, empty_postgres_url: str) -> None:
    with pooled_database(postgres, empty_postgres_url, IGNORES_OPTIONS) as pooled:
        database = Database(Settings(database_url=pooled.url))
        schema.upgrade(database)
        assert schema.differences(database) == []
        database.dispose()
        assert seen_by_others(pooled.port, pooled.name, SET) == {"on 0"}


def test_a_datestyle_that_cannot_be_changed_behind_a_pooler_is_refused_in_a_sentence(
    postgres: Postgres, postgres_url: str
) -> None:
    with pooled_database(postgres, postgres_url, IGNORES_OPTIONS) as pooled:
        plain_sql(postgres_url, f"ALTER ROLE postgres IN DATABASE {pooled.name} SET DateStyle = 'German'")
        configure(database_url=pooled.url)
        with pytest.raises(DatabaseError, match=r"ALTER ROLE … SET DateStyle = 'ISO'"):
            get_database()


def test_a_datestyle_of_the_environment_is_named_where_a_pooler_passes_it_on(
    pooled: Pooled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGDATESTYLE", "German")
    configure(database_url=pooled.url)
    with pytest.raises(DatabaseError, match=r"DateStyle German.*: unset PGDATESTYLE"):
        get_database()


def test_a_direct_connection_is_proven_to_be_ours_alone(postgres_database: Database) -> None:
    for connection in (postgres_database.held(), postgres_database.engine.connect()):
        with connection:
            session = driver_connection(connection).session
            assert session.is_ours_alone
            assert session.unmet == ()
