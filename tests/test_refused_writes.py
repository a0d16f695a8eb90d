"""A write that the database refuses for its content is told apart from an outage: a retry is of no use."""

import datetime as dt
import random
import string
from contextlib import closing
from typing import Any

import pytest

from jobrunner import statements
from jobrunner.database import Database, get_database
from jobrunner.errors import DatabaseRefused, DatabaseUnavailable
from jobrunner.settings import configure
from jobrunner.states import JobState
from tests.helpers import a_running_job, insert_job, plain_connection

UNSTORABLE: dict[str, dict[str, Any]] = {
    "a number out of range": {"pid": 2**80},
    "a broken check": {"heartrate": -1.0},
}


@pytest.mark.parametrize("what", UNSTORABLE)
def test_content_that_no_database_takes_is_refused(database: Database, what: str) -> None:
    with pytest.raises(DatabaseRefused) as caught:
        insert_job(database, **UNSTORABLE[what])
    assert "\n" not in str(caught.value)
    assert insert_job(database, name="the next write")


LONG_ID = "".join(random.Random(1).choices(string.ascii_letters, k=9_000))
"""Longer than a row of an index may be, and not to be compressed."""
SUBMITTED = {"connection": "x", "submit_started_at": dt.datetime(2026, 1, 1, tzinfo=dt.UTC)}


@pytest.mark.parametrize("values", [{"heartrate": float("nan")}, {"external_id": LONG_ID, **SUBMITTED}])
def test_content_that_postgresql_cannot_hold_is_refused(
    postgres_database: Database, values: dict[str, Any]
) -> None:
    with pytest.raises(DatabaseRefused):
        insert_job(postgres_database, **values)


def test_a_lock_that_is_held_is_an_outage_and_not_a_refusal(postgres_url: str) -> None:
    configure(database_url=postgres_url, lock_timeout_s=0.05)
    database = get_database()
    claim, _ = a_running_job(database)
    with closing(plain_connection(postgres_url)) as holder:
        holder.execute("BEGIN")
        holder.execute("SELECT 1 FROM job FOR UPDATE")
        with pytest.raises(DatabaseUnavailable), database.write() as connection:
            statements.end(connection, claim, JobState.SUCCESS, "done")
