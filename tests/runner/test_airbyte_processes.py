"""Real monitors of an Airbyte job, killed and stopped at each step of its submission: one POST, always."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobrunner.database import Database, get_database
from jobrunner.settings import configure
from jobrunner.states import JobState
from tests.helpers import row_of, until
from tests.runner.support import Monitor, Monitors
from tests.stubs.airbyte_server import CONNECTION, AirbyteStub, serving


@pytest.fixture
def stub() -> Iterator[AirbyteStub]:
    with serving() as served:
        served.seed(1, connection_id=CONNECTION, status="succeeded")  # an earlier run, which is not ours
        yield served


@pytest.fixture(autouse=True)
def _driver_of_airbyte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.runner.support.DRIVER", Path(__file__).with_name("airbyte_driver.py"))


@pytest.fixture
def database(database_url: str) -> Database:
    configure(database_url=database_url)
    return get_database()


def begin(start: Monitors, stub: AirbyteStub, **order: object) -> Monitor:
    connection = {
        "kind": "airbyte",
        "url": stub.url,
        "client_id": stub.client_id,
        "client_secret": stub.client_secret,
    }
    return start(airbyte=connection, **order)


def struck(start: Monitors, stub: AirbyteStub, point: str, number: int, **order: object) -> Monitor:
    """Return a monitor that was killed or stopped at a point."""
    monitor = begin(start, stub, at=point, signal=number, **order)
    assert monitor.hear("at") == point
    if number == signal.SIGSTOP:
        monitor.until_stopped()
    else:
        monitor.end()
    return monitor


def check_watched_to_its_end(monitor: Monitor, database: Database, stub: AirbyteStub) -> None:
    until(lambda: row_of(database, 1)["external_id"] is not None or monitor.process.poll() is not None)
    _, made = stub.job_ids()
    assert row_of(database, 1)["external_id"] == str(made)
    stub.succeed(made)
    monitor.end()
    assert monitor.outcome == "success"
    assert stub.counts()["post"] == 1


def check_doubt(monitor: Monitor, database: Database) -> None:
    monitor.end()
    assert monitor.outcome.startswith("JobFailed")
    row = row_of(database, 1)
    assert (row["state"], row["external_id"]) == (JobState.FAILED, None)
    assert "look for it outside before you start it again" in row["message"]


# --- killed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "point",
    [
        "before begin_submit",
        "after send",
        "after submit",
        "before record_submitted",
        "after record_submitted",
    ],
)
def test_a_monitor_killed_at_a_step_of_its_submission_leaves_one_job(
    start: Monitors, database: Database, stub: AirbyteStub, point: str
) -> None:
    struck(start, stub, point, signal.SIGKILL)
    assert row_of(database, 1)["state"] is JobState.RUNNING
    check_watched_to_its_end(begin(start, stub, attach=1), database, stub)


@pytest.mark.parametrize("point", ["after begin_submit", "before submit", "before send"])
def test_a_monitor_killed_between_intent_and_post_leaves_a_named_doubt_and_no_job(
    start: Monitors, database: Database, stub: AirbyteStub, point: str
) -> None:
    struck(start, stub, point, signal.SIGKILL)
    check_doubt(begin(start, stub, attach=1), database)
    assert "post" not in stub.counts()


def test_a_monitor_killed_while_its_post_is_on_the_way_leaves_one_job(
    start: Monitors, database: Database, stub: AirbyteStub
) -> None:
    """The job is made when its sender is long dead, and the next one is already looking for it."""
    stub.post_takes_s = 1.0
    monitor = begin(start, stub)
    until(lambda: "post" in stub.counts())
    monitor.kill()
    check_watched_to_its_end(begin(start, stub, attach=1, doubt_s=30.0), database, stub)


# --- stopped, overtaken, and going on ---------------------------------------------------------------


def check_going_on_changes_nothing(stopped: Monitor, database: Database) -> None:
    before = row_of(database, 1)
    stopped.send(signal.SIGCONT)
    stopped.end()
    assert stopped.outcome == "claim lost"
    assert row_of(database, 1) == before, "what comes late is not written"


def check_overtaken(start: Monitors, database: Database, stub: AirbyteStub, point: str) -> None:
    """Stop a monitor; let another take over and finish; let the first one go on."""
    stopped = struck(start, stub, point, signal.SIGSTOP)
    # On a busy machine its own POST may come to be in doubt: half a second would not be enough to find it.
    check_watched_to_its_end(begin(start, stub, attach=1, doubt_s=30.0), database, stub)
    check_going_on_changes_nothing(stopped, database)
    assert stub.counts()["post"] == 1
    assert "delete" not in stub.counts()


# A monitor that is stopped within a write holds SQLite's only lock until it goes on: see PROTOCOL 1.
@pytest.mark.parametrize("point", ["after send", "after submit"])
def test_a_monitor_stopped_once_its_post_was_answered_and_overtaken_leaves_one_job(
    start_on_sqlite: Monitors, sqlite_database: Database, stub: AirbyteStub, point: str
) -> None:
    check_overtaken(start_on_sqlite, sqlite_database, stub, point)


@pytest.mark.parametrize(
    "point", ["before begin_submit", "after send", "before record_submitted", "after record_submitted"]
)
def test_a_monitor_stopped_and_overtaken_leaves_one_job_on_postgresql(
    start_on_postgres: Monitors, postgres_database: Database, stub: AirbyteStub, point: str
) -> None:
    check_overtaken(start_on_postgres, postgres_database, stub, point)


@pytest.mark.parametrize("point", ["after begin_submit", "before submit"])
def test_a_monitor_stopped_before_its_post_and_overtaken_sends_it_no_more(
    start: Monitors, database: Database, stub: AirbyteStub, point: str
) -> None:
    stopped = struck(start, stub, point, signal.SIGSTOP)
    check_doubt(begin(start, stub, attach=1), database)
    check_going_on_changes_nothing(stopped, database)
    assert "post" not in stub.counts()


def test_a_post_that_leaves_when_its_doubt_was_settled_is_taken_back(
    start: Monitors, database: Database, stub: AirbyteStub
) -> None:
    """It was past its last check when it was stopped: nothing could hold it back."""
    stopped = struck(start, stub, "before send", signal.SIGSTOP, call_s=60.0)
    check_doubt(begin(start, stub, attach=1), database)
    check_going_on_changes_nothing(stopped, database)
    _, made = stub.job_ids()
    assert stub.status(made) == "cancelled"
    assert stub.counts()["post"] == 1


def test_a_post_that_leaves_while_it_is_looked_for_is_found(
    start: Monitors, database: Database, stub: AirbyteStub
) -> None:
    stopped = struck(start, stub, "before send", signal.SIGSTOP, call_s=60.0)
    attached = begin(start, stub, attach=1, doubt_s=60.0)
    asked = stub.counts()["list"]
    until(lambda: stub.counts()["list"] > asked)
    stopped.send(signal.SIGCONT)
    stopped.end()
    assert stopped.outcome == "claim lost"
    check_watched_to_its_end(attached, database, stub)
    assert "delete" not in stub.counts()
