"""Real monitors of an Airbyte job, killed and stopped at each step of its submission: one POST, always."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobrunner.database import Database, get_database
from jobrunner.settings import configure
from jobrunner.states import JobState
from tests.helpers import row_of, until
from tests.runner.support import Monitor, Monitors, monitors
from tests.stubs.airbyte_server import CONNECTION, AirbyteStub, serving


@pytest.fixture
def stub() -> Iterator[AirbyteStub]:
    with serving() as served:
        served.seed(1, connection_id=CONNECTION, status="succeeded")  # an earlier run, which is not ours
        yield served


@pytest.fixture
def database(database_url: str) -> Database:
    configure(database_url=database_url)
    return get_database()


@pytest.fixture
def start(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Monitors]:
    monkeypatch.setattr("tests.runner.support.DRIVER", Path(__file__).with_name("airbyte_driver.py"))
    with monitors(database_url, tmp_path / "data") as started:
        yield started


def begin(start: Monitors, stub: AirbyteStub, **order: object) -> Monitor:
    connection = {
        "kind": "airbyte",
        "url": stub.url,
        "client_id": stub.client_id,
        "client_secret": stub.client_secret,
    }
    return start(airbyte=connection, **order)


def check_watched_to_its_end(monitor: Monitor, database: Database, stub: AirbyteStub) -> None:
    until(lambda: row_of(database, 1)["external_id"] is not None, 30)
    _, made = stub.job_ids()
    assert row_of(database, 1)["external_id"] == str(made)
    stub.succeed(made)
    monitor.end()
    assert monitor.outcome == "success"
    assert stub.counts()["post"] == 1


@pytest.mark.parametrize(
    "point", ["before begin_submit", "after submit", "before record_submitted", "after record_submitted"]
)
def test_a_monitor_killed_at_a_step_of_its_submission_leaves_one_job(
    start: Monitors, database: Database, stub: AirbyteStub, point: str
) -> None:
    monitor = begin(start, stub, at=point, signal=signal.SIGKILL)
    assert monitor.hear("at") == point
    monitor.end()
    assert row_of(database, 1)["state"] is JobState.RUNNING
    check_watched_to_its_end(begin(start, stub, attach=1), database, stub)


@pytest.mark.parametrize("point", ["after begin_submit", "before submit"])
def test_a_monitor_killed_between_intent_and_post_leaves_a_named_doubt_and_no_job(
    start: Monitors, database: Database, stub: AirbyteStub, point: str
) -> None:
    monitor = begin(start, stub, at=point, signal=signal.SIGKILL)
    assert monitor.hear("at") == point
    monitor.end()
    attached = begin(start, stub, attach=1)
    attached.end()
    assert attached.outcome.startswith("JobFailed")
    assert "look for it outside before you start it again" in row_of(database, 1)["message"]
    assert "post" not in stub.counts()


def test_a_monitor_killed_while_its_post_is_on_the_way_leaves_one_job(
    start: Monitors, database: Database, stub: AirbyteStub
) -> None:
    """The job is made when its sender is long dead, and the next one is already looking for it."""
    stub.post_takes_s = 1.0
    monitor = begin(start, stub)
    until(lambda: "post" in stub.counts(), 30)
    monitor.kill()
    check_watched_to_its_end(begin(start, stub, attach=1), database, stub)
