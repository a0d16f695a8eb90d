import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import make_url

from tests.cli.conftest import CommandLine
from tests.helpers import plain_sql


def test_the_schema_goes_up_and_down(jobrunner: CommandLine) -> None:
    assert jobrunner("db", "current").says("jobrunner db upgrade")
    assert jobrunner("db", "check").code == 1
    assert jobrunner("db", "upgrade", "0001", "--json").json["after"] == "0001"
    revisions = [each["revision"] for each in jobrunner("db", "history", "--json").json]
    newest = max(revisions)
    assert {"0001", newest} <= set(revisions)
    assert jobrunner("db", "upgrade", "--json").json["after"] == newest
    assert "already" in jobrunner("db", "upgrade").out
    assert jobrunner("db", "current").out == f"{newest}\n"
    assert jobrunner("db", "current", "--json").json["revision"] == newest
    assert jobrunner("db", "check").code == 0
    assert jobrunner("db", "check", "--json").json["ok"] is True
    assert "0001" in jobrunner("db", "history").out
    assert jobrunner("db", "downgrade", "base", "--yes", "--json").json["after"] is None


@pytest.mark.parametrize("embedded", [True, False], ids=["embedded", "given"])
def test_a_schema_of_a_newer_version_is_left_as_it_is(jobrunner: CommandLine, *, embedded: bool) -> None:
    where = {} if embedded else {"JOBRUNNER_DATABASE_URL": f"sqlite:///{jobrunner.directory / 'x.db'}"}
    assert jobrunner("db", "upgrade", **where).code == 0
    newest = jobrunner("db", "current", "--json", **where).json["revision"]
    file = jobrunner.database if embedded else jobrunner.directory / "x.db"
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("ALTER TABLE job ADD COLUMN of_a_newer_version TEXT")
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    answer = jobrunner("db", "upgrade", **where)
    assert (answer.code, answer.words) == (0, "")
    assert "is at 9999, newer than this version of jobrunner knows" in answer.out
    assert "nothing to upgrade" in answer.out
    assert jobrunner("db", "upgrade", "--json", **where).json["after"] == "9999"
    assert "newer" in jobrunner("db", "check", **where).out
    assert jobrunner("db", "current", **where).says("newer")
    for step in (("upgrade", newest), ("downgrade", "0001", "--yes"), ("downgrade", "base", "--yes")):
        assert jobrunner("db", *step, **where).is_refused("9999", f"none after {newest}", "newer jobrunner")
    assert jobrunner("start", "process", "--", "true", **where).code == 0


def test_a_schema_that_differs_is_told(jobrunner: CommandLine) -> None:
    assert jobrunner("db", "upgrade").code == 0
    with closing(sqlite3.connect(jobrunner.database)) as connection, connection:
        connection.execute("ALTER TABLE job DROP COLUMN detail")
    answer = jobrunner("db", "check")
    assert answer.code == 1
    assert answer.says("detail")


def test_prune_deletes_old_jobs_and_never_a_live_one(jobrunner: CommandLine) -> None:
    assert jobrunner("db", "upgrade").code == 0
    insert = "INSERT INTO job (job_type, state, heartrate, end_date) VALUES ('X', ?, 5, datetime('now', ?))"
    old = [("success", "-40 days"), ("failed", "-40 days"), ("success", "-1 days"), ("running", "-40 days")]
    with closing(sqlite3.connect(jobrunner.database)) as connection, connection:
        connection.executemany(insert, old)
    assert jobrunner("db", "prune", "--older-than", "30d").out == "2 jobs pruned\n"
    assert [row["id"] for row in jobrunner("list", "--json").json] == [4, 3]
    assert jobrunner("db", "prune", "--older-than", "12h", "--json").json == {"pruned": 1}


def test_prune_goes_on_until_nothing_old_is_left(jobrunner: CommandLine) -> None:
    assert jobrunner("db", "upgrade").code == 0
    values = "'X', 'success', 5, datetime('now', '-9 days')"
    with closing(sqlite3.connect(jobrunner.database)) as connection, connection:
        connection.executemany(
            f"INSERT INTO job (job_type, state, heartrate, end_date) VALUES ({values})", [()] * 2500
        )
    assert jobrunner("db", "prune", "--older-than", "1d").out == "2500 jobs pruned\n"


# --- databases that cannot be used -----------------------------------------------------------------

READERS = [["list"], ["check"], ["show", "1"], ["wait", "1"], ["kill", "1"], ["attach", "1"], ["logs", "1"]]
EVERY = [
    *READERS,
    ["start", "process", "--", "true"],
    ["db", "current"],
    ["db", "prune", "--older-than", "1d"],
]


@pytest.mark.parametrize("command", EVERY, ids=" ".join)
def test_an_unreachable_database_is_one_sentence(jobrunner: CommandLine, command: list[str]) -> None:
    url = "postgresql://me:hush@127.0.0.1:1/jobs"
    answer = jobrunner(*command, JOBRUNNER_DATABASE_URL=url)
    assert answer.is_refused("127.0.0.1")
    assert "hush" not in answer.words


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://x/y", "postgresql://"),
        ("nonsense", "postgresql://"),
        ("sqlite://", "in-memory"),
        ("sqlite:////no/such/directory/x.db", "/no/such/directory"),
        ("postgresql://me@h/${env:JR_NOT_SET}", "JR_NOT_SET"),
    ],
)
@pytest.mark.parametrize("command", [["list"], ["start", "process", "--", "true"]], ids=" ".join)
def test_a_wrong_url_is_one_sentence(
    jobrunner: CommandLine, command: list[str], url: str, words: str
) -> None:
    assert jobrunner(*command, JOBRUNNER_DATABASE_URL=url).is_refused(words)


def test_a_file_that_is_no_database_is_one_sentence(jobrunner: CommandLine) -> None:
    (jobrunner.directory / "x.db").write_text("this is a letter, and no database at all" * 100)
    url = f"sqlite:///{jobrunner.directory / 'x.db'}"
    assert jobrunner("list", JOBRUNNER_DATABASE_URL=url).is_refused("not a database")


def test_a_data_directory_that_cannot_be_made_is_one_sentence(jobrunner: CommandLine) -> None:
    (jobrunner.directory / "taken").write_text("")  # no permission helps against a superuser
    data = str(jobrunner.directory / "taken" / "data")
    for command in (["list"], ["start", "process", "--", "true"]):
        assert jobrunner(*command, JOBRUNNER_DATA_DIR=data).is_refused("JOBRUNNER_DATA_DIR")


def test_a_wrong_setting_is_one_sentence(jobrunner: CommandLine) -> None:
    assert jobrunner("list", JOBRUNNER_HEARTRATE="-1").is_refused("JOBRUNNER_HEARTRATE", "0.01 or more")
    (jobrunner.directory / "jobrunner.toml").write_text("hartrate = 3\n")
    assert jobrunner("config").is_refused("hartrate", 'did you mean "heartrate"?')


@pytest.mark.parametrize("command", [*READERS, ["start", "process", "--", "true"]], ids=" ".join)
def test_a_database_without_tables_names_the_upgrade(
    jobrunner: CommandLine, tmp_path: Path, command: list[str]
) -> None:
    url = f"sqlite:///{tmp_path / 'other.db'}"
    assert jobrunner(*command, JOBRUNNER_DATABASE_URL=url).is_refused("jobrunner db upgrade")


def test_the_commands_work_on_postgresql(jobrunner: CommandLine, empty_postgres_url: str) -> None:
    jobrunner.environment["JOBRUNNER_DATABASE_URL"] = empty_postgres_url
    assert jobrunner("list").is_refused("jobrunner db upgrade")
    assert jobrunner("db", "check").code == 1
    assert jobrunner("db", "upgrade").code == 0
    assert jobrunner("db", "check").code == 0
    answer = jobrunner("start", "process", "--poll-interval", "0.2", "--", "sh", "-c", "echo hi; exit 3")
    assert (answer.code, answer.out) == (1, "job 1\n")
    assert jobrunner("logs", "1").out == "hi\n"
    assert "failed" in jobrunner("list", "--since", "2001-01-01T00:00:00Z").out
    assert jobrunner("check").code == 1
    plain_sql(empty_postgres_url, "UPDATE job SET end_date = end_date - interval '2 days'")
    assert jobrunner("db", "prune", "--older-than", "1d").out == "1 job pruned\n"
    assert jobrunner("db", "downgrade", "base", "--yes").code == 0
    assert make_url(empty_postgres_url).password is None or "password" not in jobrunner("db", "current").words
