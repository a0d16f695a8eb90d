"""A write that the database refuses for its content is told apart from an outage: a retry is of no use."""

from contextlib import closing
from typing import Any

import pytest
from sqlalchemy import text

from jobrunner import statements
from jobrunner.database import Database, get_database
from jobrunner.errors import DatabaseRefused, DatabaseUnavailable
from jobrunner.settings import configure
from jobrunner.states import JobState
from tests.helpers import a_running_job, insert_job, plain_connection

REFUSED: dict[str, dict[str, Any]] = {
    "a number out of range": {"pid": 2**80},
    "a broken check": {"heartrate": -1.0},
}


@pytest.mark.parametrize("what", REFUSED)
def test_values_that_no_database_takes_are_refused(database: Database, what: str) -> None:
    with pytest.raises(DatabaseRefused) as caught:
        insert_job(database, **REFUSED[what])
    assert "\n" not in str(caught.value)
    assert insert_job(database, name="the next write")


def write_past_the_columns_types(database: Database, name: str) -> None:
    """Write text as it is: the types of jobrunner's columns make it one that can be stored."""
    with database.write() as connection:
        connection.execute(text("UPDATE job SET name = :name"), {"name": name})


def test_text_that_no_driver_can_send_is_refused(database: Database) -> None:
    insert_job(database)
    with pytest.raises(DatabaseRefused) as caught:
        write_past_the_columns_types(database, "job\udcff")
    assert "\n" not in str(caught.value)
    write_past_the_columns_types(database, "the next write")


@pytest.mark.parametrize("name", ["a\0b", "x" * 100_000])
def test_text_that_postgresql_cannot_hold_is_refused(postgres_database: Database, name: str) -> None:
    insert_job(postgres_database)
    with pytest.raises(DatabaseRefused):
        write_past_the_columns_types(postgres_database, name)


def test_a_lock_that_is_held_is_an_outage_and_not_a_refusal(postgres_url: str) -> None:
    configure(database_url=postgres_url, lock_timeout_s=0.05)
    database = get_database()
    claim, _ = a_running_job(database)
    with closing(plain_connection(postgres_url)) as holder:
        holder.execute("BEGIN")
        holder.execute("SELECT 1 FROM job FOR UPDATE")
        with pytest.raises(DatabaseUnavailable), database.write() as connection:
            statements.end(connection, claim, JobState.SUCCESS, "done")
