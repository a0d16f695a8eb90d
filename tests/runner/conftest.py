"""What starts real monitor processes, on each database or on one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runner.support import Monitors, monitors


@pytest.fixture
def start(database_url: str, tmp_path: Path) -> Iterator[Monitors]:
    with monitors(database_url, tmp_path / "data") as started:
        yield started


@pytest.fixture
def start_on_sqlite(sqlite_url: str, tmp_path: Path) -> Iterator[Monitors]:
    with monitors(sqlite_url, tmp_path / "data") as started:
        yield started


@pytest.fixture
def start_on_postgres(postgres_url: str, tmp_path: Path) -> Iterator[Monitors]:
    with monitors(postgres_url, tmp_path / "data") as started:
        yield started
