import sqlite3
from pathlib import Path
from typing import Any

import pytest

from jobrunner.database import Database, get_database
from jobrunner.database_url import DatabaseUrl
from jobrunner.errors import SettingsError
from jobrunner.settings import Settings, configure, get_settings

ODD_NAMES = [
    "feature%2Fx",
    "100%",
    "50%41",
    "what?now",
    "a?mode=memory",
    "a#b",
    "with a blank",
    " leading and trailing ",
    "quote'\"quote",
    "back\\slash",
    "semi;colon&and=equals",
    "at@colon:",
    "größe-名前",
    "~",
    "~root",
    "${env:HOME}",
    "file:x",
    "%(here)s",
    "x" * 200,
    "line\nend",
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_data_directory_of_any_name_holds_the_embedded_database(tmp_path: Path, name: str) -> None:
    directory = tmp_path / "data" / name
    configure(data_dir=directory)
    database = get_database()
    assert database.schema_version() is not None
    assert {path.name for path in (tmp_path / "data").iterdir()} == {name}
    with sqlite3.connect(directory / "jobrunner.db") as connection:
        assert connection.execute("SELECT count(*) FROM job").fetchone() == (0,)
    connection.close()
    assert get_settings().records_dir == directory / "processes"


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_url_names_any_path_when_it_is_percent_encoded(tmp_path: Path, name: str) -> None:
    from urllib.parse import quote

    (tmp_path / name).mkdir()
    url = f"sqlite:///{quote(str(tmp_path))}/{quote(name, safe='')}/jobs.db"
    database = Database(Settings(database_url=url))
    with database.read() as connection:
        connection.exec_driver_sql("SELECT 1")
    database.dispose()
    assert (tmp_path / name / "jobs.db").is_file()
    assert DatabaseUrl.parse(database.shown_url).database == str(tmp_path / name / "jobs.db")


def test_two_directories_that_differ_after_a_question_mark_are_two_databases(tmp_path: Path) -> None:
    urls = {Settings(data_dir=tmp_path / name).effective_database_url for name in ("a?1", "a?2", "a")}
    assert len(urls) == 3


def test_an_escape_in_a_path_is_taken_as_it_is_written_where_only_that_leads_to_a_directory(
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path}/x%2Fy/jobs.db"
    assert DatabaseUrl.parse(url).database == f"{tmp_path}/x/y/jobs.db"
    (tmp_path / "x%2Fy").mkdir()
    assert DatabaseUrl.parse(url).database == f"{tmp_path}/x%2Fy/jobs.db"
    (tmp_path / "x" / "y").mkdir(parents=True)
    assert DatabaseUrl.parse(url).database == f"{tmp_path}/x/y/jobs.db"


def test_a_relative_path_and_a_home_in_a_url_are_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert DatabaseUrl.parse("sqlite:///jobs.db").database == f"{Path.cwd()}/jobs.db"
    assert DatabaseUrl.parse("sqlite:///~/jobs.db").database == f"{tmp_path}/jobs.db"


@pytest.mark.parametrize(
    ("given", "arguments"),
    [
        ("postgresql://me@db/jobs", {"host": "db", "user": "me", "dbname": "jobs"}),
        ("POSTGRES://me@db:5433/jobs", {"host": "db", "port": 5433, "user": "me", "dbname": "jobs"}),
        ("  postgresql://db/jobs\n", {"host": "db", "dbname": "jobs"}),
        ("postgresql+psycopg2://db/jobs", {"host": "db", "dbname": "jobs"}),
        ("postgresql://[::1]:5432/jobs", {"host": "::1", "port": 5432, "dbname": "jobs"}),
        ("postgresql://me@[fe80::1%25eth0]/jobs", {"host": "fe80::1%eth0", "user": "me", "dbname": "jobs"}),
        ("postgresql://:5433/jobs", {"port": 5433, "dbname": "jobs"}),
        ("postgresql:///jobs", {"dbname": "jobs"}),
        ("postgresql://me@a:1,b:2/jobs", {"host": "a,b", "port": "1,2", "user": "me", "dbname": "jobs"}),
        ("postgresql://a,b:2/jobs", {"host": "a,b", "port": ",2", "dbname": "jobs"}),
        ("postgresql://[::1]:1,[::2]/jobs", {"host": "::1,::2", "port": "1,", "dbname": "jobs"}),
        ("postgresql:///jobs?host=a:1&host=b:2", {"host": "a,b", "port": "1,2", "dbname": "jobs"}),
        ("postgresql:///jobs?host=a,b&port=1,2", {"host": "a,b", "port": "1,2", "dbname": "jobs"}),
        ("postgresql:///jobs?host=a,b&port=5433", {"host": "a,b", "port": "5433,5433", "dbname": "jobs"}),
        ("postgresql:///jobs?host=[::1]:7", {"host": "::1", "port": 7, "dbname": "jobs"}),
        ("postgresql:///jobs?port=7", {"port": 7, "dbname": "jobs"}),
        ("postgresql:///jobs?host=/run/pg", {"host": "/run/pg", "dbname": "jobs"}),
        ("postgresql://%2Frun%2Fpg/jobs", {"host": "/run/pg", "dbname": "jobs"}),
        ("postgresql:///jobs?host=/run/a:b&port=7", {"host": "/run/a:b", "port": "7", "dbname": "jobs"}),
        (
            "postgresql://u:p%40s%3As%2F%3F%23%25@db/jobs",
            {"host": "db", "user": "u", "password": "p@s:s/?#%", "dbname": "jobs"},
        ),
        (
            "postgresql://u:p@s:s#%@db/jobs",
            {"host": "db", "user": "u", "password": "p@s:s#%", "dbname": "jobs"},
        ),
        ("postgresql://u:@db/jobs", {"host": "db", "user": "u", "dbname": "jobs"}),
        (
            "postgresql://db/a%2Fb%3Fc?sslmode=require&application_name=x+y",
            {"host": "db", "dbname": "a/b?c", "sslmode": "require", "application_name": "x y"},
        ),
        ("postgresql://db", {"host": "db"}),
    ],
)
def test_a_url_of_postgresql_means_what_libpq_takes_it_for(given: str, arguments: dict[str, object]) -> None:
    from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

    url = configure(database_url=given).database
    dialect: Any = PGDialect_psycopg  # it has no types
    _, found = dialect().create_connect_args(url.to_sqlalchemy())
    assert {key: value for key, value in found.items() if value not in ("", None)} == arguments
    assert DatabaseUrl.parse(url.shown).hosts == url.hosts
    assert DatabaseUrl.parse(str(url)).to_sqlalchemy() == url.to_sqlalchemy()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("mysql://u:s3cret-word@db/x", "must begin with sqlite:/// or postgresql://"),
        ("postgresql+asyncpg://u:s3cret-word@db/x", "without +asyncpg"),
        ("jdbc:postgresql://db/x", "must begin with"),
        ("postgresql:db", "must begin with"),
        ("", "must begin with"),
        ("/srv/jobs.db", "must begin with"),
        ("sqlite://jobs.db", "sqlite:///"),
        ("sqlite:////tmp/what?now/jobs.db", "%3F"),
        ("sqlite:////tmp/jobs.db?mode=ro", "%3F"),
        ("sqlite:////tmp/a%00b", "NUL"),
        ("sqlite:////tmp/\udcff.db", "UTF-8"),
        ("postgresql://u:s3cret-word@db:0/x", "port"),
        ("postgresql://u:s3cret-word@db:70000/x", "port"),
        ("postgresql://u:s3cret-word@db:" + "9" * 5000 + "/x", "port"),
        ("postgresql://u:s3cret-word@db:five/x", "port"),
        ("postgresql://u:s3cret-word@db:/x", "port"),
        ("postgresql://u:s3cret-word@db:٣/x", "port"),
        ("postgresql://u:s3cret-word@::1/x", "brackets"),
        ("postgresql://u:s3cret-word@[::1/x", "host"),
        ("postgresql://u:s3cret-word@a b/x", "host"),
        ("postgresql://u:s3cret/word@db/x", "percent-encode"),
        ("postgresql://u:123/s3cret-word@db/x", "percent-encode"),
        ("postgresql://u:123?s3cret-word@db/x", "%3F"),
        ("postgresql://u:s3cret-word%FF@db/x", "UTF-8"),
        ("postgresql://u:s3cret-word@db/x?host=a,b&port=1,2,3", "ports"),
        ("postgresql://u:s3cret-word@db/x?host=a:1,b:2&port=3", "ports"),
    ],
)
@pytest.mark.parametrize("key", ["database_url", "listen_url"])
def test_a_url_that_cannot_be_meant_is_refused_without_showing_its_password(
    key: str, given: str, words: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        configure(**{key: given})
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    for part in ("s3cret", "t-word", "cret-"):
        assert part not in str(caught.value)


PASSWORDS = [
    "p@ss:w/rd?#%",
    "rest@of/the-password",
    "100%25",
    "a b+c",
    "ü\\'\"",
    "[x]",
    "${env:X}",
    "%",
    "@",
    "//",
]


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("key", ["database_url", "listen_url"])
def test_a_password_of_a_variable_may_hold_any_character(
    key: str, password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JR_PW", password)
    settings = configure(
        **{"database_url": "postgresql://db/x", key: "postgresql://me:${env:JR_PW}@db:5433/x"}
    )
    url = settings.database if key == "database_url" else settings.listener
    assert url is not None
    assert (url.username, url.password, url.database) == ("me", password, "x")
    assert [str(host) for host in url.hosts] == ["db:5433"]
    assert url.shown == "postgresql://me:***@db:5433/x"


@pytest.mark.parametrize(
    ("template", "shown"),
    [
        ("${env:WHOLE}", "postgresql://me:***@db:5433/x"),
        ("postgresql://${env:BOTH}@db/x", "postgresql://m%40e:***@db/x"),
        (
            "postgresql://${env:USER_}:${env:PW}@${env:PLACE}/${env:NAME}",
            "postgresql://m%40e:***@db:5433/a%3Fb",
        ),
        ("postgresql://db/x?application_name=${env:NAME}", "postgresql://db/x?application_name=a%3Fb"),
        ("postgresql://db/x?${env:OPTIONS}", "postgresql://db/x?sslmode=require&connect_timeout=3"),
        ("sqlite:///${env:DIRECTORY}/jobs.db", "sqlite:////srv/100%25/a%3Fb/jobs.db"),
    ],
)
def test_a_variable_is_encoded_for_the_place_where_it_stands(
    template: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {
        "WHOLE": "postgresql://me:secret%40word@db:5433/x",
        "BOTH": "m@e:p@ss/w:rd",
        "USER_": "m@e",
        "PW": "p@ss/word",
        "PLACE": "db:5433",
        "NAME": "a?b",
        "OPTIONS": "sslmode=require&connect_timeout=3",
        "DIRECTORY": "/srv/100%/a?b",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert configure(database_url=template).database.shown == shown


def test_what_an_unescaped_password_makes_of_the_options_is_refused_and_not_quoted() -> None:
    with pytest.raises(ValueError, match="impossible name") as caught:
        DatabaseUrl.parse("postgresql:///user:hunter?Battery2@127.0.0.1/db?port=1")
    assert "hunter" not in str(caught.value)
    assert "Battery2" not in str(caught.value)
