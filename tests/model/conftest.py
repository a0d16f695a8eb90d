"""The databases of the model: they need not survive a power cut, and nobody waits long for a locked row."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import event

from jobrunner.database import Database
from jobrunner.settings import Settings
from tests.helpers import plain_sql


@pytest.fixture
def model_database(database_url: str) -> Iterator[Database]:
    """One database for all examples of a test; each of them begins with empty tables."""
    yield from _database(database_url)


@pytest.fixture(scope="module")
def model_sqlite(_sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """One for all mutants: on SQLite, where their SQL is known to the letter."""
    path = tmp_path_factory.mktemp("model") / "jobs.db"
    shutil.copy(_sqlite_template, path)
    yield from _database(f"sqlite:///{path}")


@pytest.fixture
def unindexed_sqlite(sqlite_url: str) -> Iterator[Database]:
    """One without the index by which no two that live hold one external id."""
    plain_sql(sqlite_url, "DROP INDEX ix_job_connection_external_id")
    yield from _database(sqlite_url)


def _database(url: str) -> Iterator[Database]:
    database = Database(Settings(database_url=url, lock_timeout_s=0.05))
    if database.is_sqlite:
        pragma = "PRAGMA synchronous = OFF"
        event.listen(database.engine, "connect", lambda conn, _: conn.execute(pragma).close())
    yield database
    database.dispose()
