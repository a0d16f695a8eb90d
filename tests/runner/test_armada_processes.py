"""Real monitors of an Armada job, killed and stopped at each step of its submission: one job, always."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobrunner.database import Database
from jobrunner.states import JobState
from tests.helpers import row_of, until
from tests.runner import support
from tests.runner.support import Monitor, Monitors
from tests.stubs.armada_server import ArmadaStub, serving


@pytest.fixture
def armada() -> Iterator[ArmadaStub]:
    with serving(appear_after_s=0.1) as stub:
        yield stub


@pytest.fixture(autouse=True)
def _driver_of_armada(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "DRIVER", Path(__file__).with_name("armada_driver.py"))


def take_over(start: Monitors, armada: ArmadaStub) -> None:
    """Attach another monitor, and let it see the end."""
    attached = start(armada=armada.address, attach=1)
    until(lambda: armada.jobs)
    armada.succeed(armada.external_ids()[0])
    attached.end()
    assert attached.outcome == "success"


def check_one_job(database: Database, armada: ArmadaStub) -> None:
    row = row_of(database, 1)
    (made,) = armada.external_ids()
    assert (row["state"], row["external_id"]) == (JobState.SUCCESS, made)
    assert armada.job(made).item.client_id == row["submit_token"]


@pytest.mark.parametrize(
    "point",
    [
        "before begin_submit",
        "after begin_submit",
        "before send",
        "after send",
        "before record_submitted",
        "after record_submitted",
    ],
)
def test_a_monitor_killed_at_any_step_of_its_submission_leaves_one_job(
    start: Monitors, database: Database, armada: ArmadaStub, point: str
) -> None:
    monitor = start(armada=armada.address, at=point, signal=signal.SIGKILL)
    assert monitor.hear("at") == point
    monitor.end()
    assert row_of(database, 1)["state"] is JobState.RUNNING
    take_over(start, armada)
    check_one_job(database, armada)


def test_a_monitor_killed_while_its_request_is_on_the_way_leaves_one_job(
    start: Monitors, database: Database, armada: ArmadaStub
) -> None:
    armada.fault("SubmitJobs", hangs_s=1.0)
    monitor = start(armada=armada.address)
    monitor.hear("started")
    until(lambda: armada.calls_per_method().get("SubmitJobs"))
    monitor.kill()
    take_over(start, armada)
    check_one_job(database, armada)


def stopped_at(start: Monitors, armada: ArmadaStub, point: str) -> Monitor:
    stopped = start(armada=armada.address, at=point, signal=signal.SIGSTOP)
    assert stopped.hear("at") == point
    stopped.until_stopped()
    return stopped


def check_stopped_at(start: Monitors, database: Database, armada: ArmadaStub, point: str) -> None:
    """Stop a monitor; let another take over and finish; let the first one go on."""
    stopped = stopped_at(start, armada, point)
    take_over(start, armada)
    before = row_of(database, 1)
    stopped.send(signal.SIGCONT)
    stopped.end()
    assert stopped.outcome == "claim lost"
    assert row_of(database, 1) == before, "what comes late is not written"
    check_one_job(database, armada)


# A monitor that is stopped within a write holds SQLite's only lock until it goes on: see PROTOCOL 1.
@pytest.mark.parametrize("point", ["after begin_submit", "before send", "after send"])
def test_a_monitor_stopped_at_any_step_and_overtaken_leaves_one_job(
    start_on_sqlite: Monitors, sqlite_database: Database, armada: ArmadaStub, point: str
) -> None:
    check_stopped_at(start_on_sqlite, sqlite_database, armada, point)


@pytest.mark.parametrize(
    "point",
    [
        "before begin_submit",
        "after begin_submit",
        "before send",
        "after send",
        "before record_submitted",
        "after record_submitted",
    ],
)
def test_a_monitor_stopped_at_any_step_and_overtaken_leaves_one_job_on_postgresql(
    start_on_postgres: Monitors, postgres_database: Database, armada: ArmadaStub, point: str
) -> None:
    check_stopped_at(start_on_postgres, postgres_database, armada, point)


def test_a_monitor_that_goes_on_while_it_is_looked_for_makes_no_second_job(
    start: Monitors, database: Database, armada: ArmadaStub
) -> None:
    stopped = stopped_at(start, armada, "before send")
    attached = start(armada=armada.address, attach=1)
    until(lambda: armada.calls_per_method().get("GetJobStatusUsingExternalJobUri"))
    stopped.send(signal.SIGCONT)
    stopped.end()
    assert stopped.outcome == "claim lost"
    until(lambda: row_of(database, 1)["external_id"] is not None)
    armada.succeed(armada.external_ids()[0])
    attached.end()
    assert attached.outcome == "success"
    check_one_job(database, armada)
