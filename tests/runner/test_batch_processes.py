"""Real monitors of an AWS Batch job, killed and stopped at each step of its submission: one job, always."""

import signal
from collections.abc import Iterator

import pytest

from jobrunner.database import Database
from jobrunner.states import JobState
from tests.helpers import row_of, until
from tests.runner.batch_jobs import LISTING_LAG_S, SIGNATURE_LIFETIME_S
from tests.runner.support import Monitor, Monitors
from tests.stubs.batch_server import BatchStub, serving


@pytest.fixture
def stub(aws: None) -> Iterator[BatchStub]:
    with serving(
        signature_lifetime_s=SIGNATURE_LIFETIME_S,
        listing_lag_s=LISTING_LAG_S,
        appear_after_s=0.1,
        runs_for_s=0.2,
    ) as served:
        yield served


def check_one_job(database: Database, stub: BatchStub) -> None:
    row = row_of(database, 1)
    (made,) = stub.submitted()
    assert (row["state"], row["external_id"]) == (JobState.SUCCESS, made["jobId"])
    assert made["jobName"] == f"nightly-{row['submit_token']}"


def take_over(start: Monitors, stub: BatchStub) -> None:
    """Attach another monitor, and let it see the end."""
    attached = start(batch=stub.url, attach=1)
    attached.end()
    assert attached.outcome == "success"


def check_killed_at(start: Monitors, database: Database, stub: BatchStub, point: str) -> None:
    monitor = start(batch=stub.url, at=point, signal=signal.SIGKILL)
    assert monitor.hear("at") == point
    monitor.end()
    assert row_of(database, 1)["state"] is JobState.RUNNING
    take_over(start, stub)
    check_one_job(database, stub)


@pytest.mark.parametrize("point", ["after begin_submit", "before send", "before record_submitted"])
def test_a_monitor_killed_at_any_step_of_its_submission_leaves_one_job(
    start_on_sqlite: Monitors, sqlite_database: Database, stub: BatchStub, point: str
) -> None:
    check_killed_at(start_on_sqlite, sqlite_database, stub, point)


@pytest.mark.parametrize("point", ["before begin_submit", "after send", "after record_submitted"])
def test_a_monitor_killed_at_any_step_of_its_submission_leaves_one_job_on_postgresql(
    start_on_postgres: Monitors, postgres_database: Database, stub: BatchStub, point: str
) -> None:
    check_killed_at(start_on_postgres, postgres_database, stub, point)


def test_a_monitor_killed_while_its_request_is_on_the_way_leaves_one_job(
    start_on_sqlite: Monitors, sqlite_database: Database, stub: BatchStub
) -> None:
    """The request arrives when its sender is long dead, and the next one is already looking for it."""
    stub.fault("SubmitJob", "delay", seconds=1.5)
    monitor = start_on_sqlite(batch=stub.url)
    monitor.hear("started")
    until(lambda: any(call.operation == "SubmitJob" for call in stub.calls))
    monitor.kill()
    take_over(start_on_sqlite, stub)
    check_one_job(sqlite_database, stub)


def stopped_at(start: Monitors, stub: BatchStub, point: str) -> Monitor:
    stopped = start(batch=stub.url, at=point, signal=signal.SIGSTOP)
    assert stopped.hear("at") == point
    stopped.until_stopped()
    return stopped


def check_stopped_at(start: Monitors, database: Database, stub: BatchStub, point: str) -> None:
    """Stop a monitor; let another take over and finish; let the first one go on."""
    stopped = stopped_at(start, stub, point)
    take_over(start, stub)
    before = row_of(database, 1)
    stopped.send(signal.SIGCONT)
    stopped.end()
    assert stopped.outcome == "claim lost"
    assert row_of(database, 1) == before, "what comes late is not written"
    check_one_job(database, stub)


# A monitor that is stopped within a write holds SQLite's only lock until it goes on: see PROTOCOL 1.
@pytest.mark.parametrize("point", ["after begin_submit", "before send"])
def test_a_monitor_stopped_at_any_step_and_overtaken_submits_nothing(
    start_on_sqlite: Monitors, sqlite_database: Database, stub: BatchStub, point: str
) -> None:
    check_stopped_at(start_on_sqlite, sqlite_database, stub, point)


@pytest.mark.parametrize("point", ["before begin_submit", "after send", "before record_submitted"])
def test_a_monitor_stopped_at_any_step_and_overtaken_submits_nothing_on_postgresql(
    start_on_postgres: Monitors, postgres_database: Database, stub: BatchStub, point: str
) -> None:
    check_stopped_at(start_on_postgres, postgres_database, stub, point)


def test_a_monitor_that_goes_on_while_it_is_looked_for_is_found(
    start_on_sqlite: Monitors, sqlite_database: Database, stub: BatchStub
) -> None:
    """Its signature is still good: the late request makes the job, and nobody else makes another."""
    stopped = stopped_at(start_on_sqlite, stub, "before send")
    # Else how long the takeover takes decided whether it is still good.
    stub.set("signature_lifetime_s", 60.0)
    attached = start_on_sqlite(batch=stub.url, attach=1)
    until(lambda: any(call.operation == "ListJobs" for call in stub.calls))
    stopped.send(signal.SIGCONT)
    stopped.end()
    assert stopped.outcome == "claim lost"
    attached.end()
    assert attached.outcome == "success"
    check_one_job(sqlite_database, stub)
