"""What a connection to PostgreSQL asks for, what it must be, and when it is thrown away."""

import datetime as dt
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import pytest
from sqlalchemy import make_url, text

from jobrunner import schema
from jobrunner.cli.exits import ExitCode, code_of
from jobrunner.cli.main import main
from jobrunner.database import Database, get_database
from jobrunner.errors import DatabaseError, DatabaseUnavailable, SettingsError
from jobrunner.settings import Settings, configure
from tests.helpers import insert_job, plain_connection, plain_sql, row_of
from tests.postgres import Postgres
from tests.proxy import TcpProxy

MOMENT = dt.datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=dt.UTC)


def in_force(database: Database, name: str) -> object:
    with database.read() as connection:
        return connection.execute(text(f"SHOW {name}")).scalar()


def name_of(url: str) -> str:
    return str(make_url(url).database)


def set_for_role(url: str, setting: str) -> None:
    plain_sql(url, f"ALTER ROLE postgres IN DATABASE {name_of(url)} SET {setting}")


@pytest.fixture
def opened() -> Iterator[list[Database]]:
    """Databases to be closed at the end."""
    databases: list[Database] = []
    yield databases
    for database in databases:
        database.dispose()


# --- what the user asks for is kept -----------------------------------------------------------------


def test_options_in_the_url_are_kept_beside_ours(postgres_url: str) -> None:
    configure(database_url=f"{postgres_url}&options=-csearch_path%3Djobs,public")
    database = get_database()
    assert in_force(database, "search_path") == "jobs,public"
    assert in_force(database, "lock_timeout") == "5s"


def test_options_in_the_environment_are_kept_beside_ours(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGOPTIONS", "-c search_path=jobs,public")
    configure(database_url=postgres_url)
    assert in_force(get_database(), "search_path") == "jobs,public"
    assert in_force(get_database(), "lock_timeout") == "5s"


@pytest.mark.parametrize("is_named_in_url", [True, False])
def test_a_service_file_is_heeded_with_its_options(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_named_in_url: bool
) -> None:
    url = make_url(postgres_url)
    (tmp_path / "services").write_text(
        "# ours\n[other]\nhost=nowhere.invalid\n"
        f"[jobs]\nhost={url.query['host']}\nuser=postgres\ndbname={url.database}\n"
        "options=-c search_path=jobs,public\n"
    )
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    if not is_named_in_url:
        monkeypatch.setenv("PGSERVICE", "jobs")
    configure(database_url=f"postgresql://{'?service=jobs' if is_named_in_url else ''}")
    assert in_force(get_database(), "search_path") == "jobs,public"
    assert in_force(get_database(), "lock_timeout") == "5s"


def test_a_service_is_looked_for_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def has_none(_self: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("PGSERVICEFILE", raising=False)
    configure(database_url="postgresql://127.0.0.1:1/jobs?service=jobs")
    monkeypatch.setattr(Path, "expanduser", has_none)
    with pytest.raises(DatabaseUnavailable, match='definition of service "jobs" not found'):
        get_database()


def test_the_users_own_timeouts_win_and_what_jobrunner_depends_on_does_not_yield(postgres_url: str) -> None:
    own = quote(
        "-cstatement_timeout=7s -cdefault_transaction_isolation=serializable -csynchronous_commit=off"
    )
    configure(database_url=f"{postgres_url}&options={own}")
    database = get_database()
    assert in_force(database, "statement_timeout") == "7s"
    assert in_force(database, "transaction_isolation") == "read committed"
    assert in_force(database, "synchronous_commit") == "on"


@pytest.mark.parametrize(
    "setting",
    [
        "DateStyle = 'SQL, DMY'",
        "IntervalStyle = 'iso_8601'",
        "TimeZone = 'Asia/Kathmandu'",
        "client_encoding = 'LATIN1'",
        "statement_timeout = 1",
        "extra_float_digits = -10",
    ],
)
def test_what_a_role_has_set_changes_nothing(postgres_url: str, setting: str) -> None:
    set_for_role(postgres_url, setting)
    configure(database_url=postgres_url)
    database = get_database()
    row = row_of(
        database, insert_job(database, name="žluťoučký 夢", deadline_at=MOMENT, heartrate=0.1234567890123)
    )
    assert (row["name"], row["deadline_at"], row["heartrate"]) == ("žluťoučký 夢", MOMENT, 0.1234567890123)


@pytest.mark.parametrize(("name", "value"), [("PGDATESTYLE", "German"), ("PGCLIENTENCODING", "LATIN1")])
def test_what_the_environment_says_of_dates_and_encoding_changes_nothing(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    configure(database_url=postgres_url)
    database = get_database()
    row = row_of(database, insert_job(database, name="夢", deadline_at=MOMENT))
    assert (row["name"], row["deadline_at"]) == ("夢", MOMENT)


def test_a_datestyle_that_may_not_be_changed_is_refused_in_a_sentence(postgres_url: str) -> None:
    set_for_role(postgres_url, "DateStyle = 'German'")
    configure(database_url=postgres_url, postgres_options=False)
    with pytest.raises(DatabaseError, match=r"DateStyle German, DMY.*ALTER ROLE"):
        get_database()


# --- what a database must be ------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "EUC_JP"])
def test_a_database_that_is_not_utf8_is_refused_in_a_sentence(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], encoding: str
) -> None:
    name = f"encoded_{os.getpid()}"
    postgres.admin(
        f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"
    )
    try:
        configure(database_url=postgres.url(name))
        with pytest.raises(DatabaseError, match=f"encoded in {encoding}.*ENCODING 'UTF8'") as caught:
            get_database()
        assert code_of(caught.value) == ExitCode.USAGE
        monkeypatch.setenv("JOBRUNNER_DATABASE_URL", postgres.url(name))
        for command in ("upgrade", "check"):
            with pytest.raises(SystemExit) as ended:
                main(["db", command])
            assert ended.value.code == ExitCode.USAGE
            assert f"encoded in {encoding}" in capsys.readouterr().err
        assert plain_sql(postgres.url(name), "SELECT count(*) FROM pg_tables WHERE tablename = 'job'") == [
            (0,)
        ]
    finally:
        postgres.drop(name)


def test_a_sqlite_file_in_another_encoding_works(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    with closing(plain_connection(f"sqlite:///{path}")) as connection:
        connection.execute("PRAGMA encoding = 'UTF-16'")
        connection.execute("CREATE TABLE other (x)")
    database = Database(Settings(database_url=f"sqlite:///{path}"))
    schema.upgrade(database)
    assert row_of(database, insert_job(database, name="夢\U0001f4a4"))["name"] == "夢\U0001f4a4"
    database.dispose()


# --- when it is thrown away -------------------------------------------------------------------------


def test_a_pool_that_has_become_read_only_is_thrown_away_by_the_first_who_meets_it(
    postgres_url: str, opened: list[Database]
) -> None:
    set_for_role(postgres_url, "default_transaction_read_only = on")
    database = Database(Settings(database_url=postgres_url))
    opened.append(database)
    with database.read(), database.read(), database.read():  # three connections of the demoted primary
        pass
    with closing(plain_connection(postgres_url)) as connection:
        connection.execute("SET default_transaction_read_only = off")
        connection.execute(f"ALTER ROLE postgres IN DATABASE {name_of(postgres_url)} RESET ALL")
    with pytest.raises(DatabaseUnavailable, match=r"read-only now.*target_session_attrs"):
        insert_job(database)
    for _ in range(5):
        assert insert_job(database)


def test_connections_that_the_server_ended_while_they_were_idle_are_replaced_unseen(
    postgres_database: Database, postgres_url: str
) -> None:
    with postgres_database.read(), postgres_database.read():
        pass
    for _ in range(2):
        plain_sql(
            postgres_url,
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        assert insert_job(postgres_database)


def test_of_several_hosts_the_one_that_may_be_written_to_is_taken(
    postgres: Postgres, postgres_url: str, opened: list[Database]
) -> None:
    with TcpProxy(postgres.socket_dir) as away, TcpProxy(postgres.socket_dir) as there:
        away.is_refusing = True
        hosts = f"127.0.0.1:{away.port},localhost:{there.port}"
        url = f"postgresql://postgres@{hosts}/{name_of(postgres_url)}?target_session_attrs=read-write"
        database = Database(Settings(database_url=url))
        opened.append(database)
        assert insert_job(database)


@pytest.mark.parametrize("url", ["postgresql://postgres@db:port/jobs", "postgresql://a:1,b:port/jobs"])
def test_a_port_that_is_not_a_number_is_refused_in_a_sentence(url: str) -> None:
    with pytest.raises(SettingsError, match="port that is not a number") as caught:
        configure(database_url=url)
    assert code_of(caught.value) == ExitCode.USAGE
