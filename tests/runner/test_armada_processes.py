"""Real monitors of an Armada job, killed and stopped at each step of its submission: one job, always."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobrunner.database import Database
from jobrunner.states import JobState
from tests.helpers import row_of, until
from tests.runner import support
from tests.runner.support import Monitor, Monitors, monitors
from tests.stubs.armada_server import ArmadaStub, serving


@pytest.fixture
def armada() -> Iterator[ArmadaStub]:
    with serving(appear_after_s=0.1) as stub:
        yield stub


@pytest.fixture
def start(
    database_url: str, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Monitors]:
    monkeypatch.setattr(support, "DRIVER", Path(__file__).with_name("armada_driver.py"))
    with monitors(database_url, tmp_path / "data") as started:
        yield started


def take_over(start: Monitors, armada: ArmadaStub) -> None:
    """Attach another monitor, and let it see the end."""
    attached = start(armada=armada.address, attach=1)
    until(lambda: armada.jobs, 60)
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


@pytest.mark.parametrize("point", ["before send", "after send"])
def test_a_monitor_that_was_stopped_comes_back_to_the_same_job(
    start: Monitors, database: Database, armada: ArmadaStub, point: str
) -> None:
    stopped: Monitor = start(armada=armada.address, at=point, signal=signal.SIGSTOP)
    assert stopped.hear("at") == point
    stopped.until_stopped()
    take_over(start, armada)
    before = row_of(database, 1)
    stopped.send(signal.SIGCONT)
    stopped.end()
    assert stopped.outcome == "claim lost"
    assert row_of(database, 1) == before, "what comes late is not written"
    check_one_job(database, armada)
