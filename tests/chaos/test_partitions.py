"""Workers cut off from the database but not from the backend, and the other way round: all is done once."""

import datetime as dt
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy import make_url

from jobrunner import BatchMonitorJob
from jobrunner.database import Database
from jobrunner.states import JobState
from tests.chaos.namespaces import BACKEND, DATABASE, Host, Network, a_network, why_not
from tests.cli.conftest import CommandLine
from tests.helpers import events_of, plain_sql, row_of, until
from tests.postgres import Postgres
from tests.proxy import socket_of
from tests.stubs.batch_server import BatchStub

HEARTRATE = 1.0
GRACE_S = 2.1 * HEARTRATE
PATIENCE_S = 40.0  # boto3 waits 20 for an answer
LATE_S = 90.0  # TCP sends again after twice as long each time
CHANGES = ("SubmitJob", "TerminateJob", "TerminateJobs", "CancelJob", "CancelJobs")
BRIEF = {
    "JOBRUNNER_HEARTRATE": f"{HEARTRATE}",
    "JOBRUNNER_CALL_TIMEOUT_S": "2",
    "JOBRUNNER_CONNECT_TIMEOUT_S": "2",
    "JOBRUNNER_STATEMENT_TIMEOUT_S": "1.5",
    "JOBRUNNER_LOCK_TIMEOUT_S": "1",
}


class Worker:
    """`jobrunner worker` on a host of its own, with an access key of its own."""

    def __init__(self, host: Host, name: str, directory: Path, environment: dict[str, str]) -> None:
        self.host, self.access_key = host, f"AKIA{name.upper()}"
        out, self._words = directory / f"{name}.out", directory / f"{name}.words"
        self.process = host.start(
            [sys.executable, "-m", "jobrunner.cli.main", "worker", "--name", name],
            {**os.environ, **BRIEF, **environment, "AWS_ACCESS_KEY_ID": self.access_key},
            out,
            self._words,
        )
        until(lambda: out.read_text().endswith("\n") or self.process.poll() is not None, PATIENCE_S)
        assert self.process.poll() is None, self.words
        self.job_id = int(out.read_text().removeprefix("job "))

    @property
    def words(self) -> str:
        return self._words.read_text()

    def ended(self) -> int:
        """Wait for its end, and return its exit code."""
        code = self.process.wait(60)
        assert "Traceback" not in self.words, self.words
        return code

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.ended() == 0


class World:
    """Workers, their database, and an AWS Batch in which jobs run until the test moves them."""

    def __init__(
        self, network: Network, postgres: Postgres, database: Database, stub: BatchStub, directory: Path
    ) -> None:
        self.network, self.database, self.stub, self._directory = network, database, stub, directory
        self.url = str(database.settings.database_url)
        stub.set("first_status", "RUNNING")
        to_database = network.serve(DATABASE, socket_of(postgres.socket_dir))
        to_backend = network.serve(BACKEND, ("127.0.0.1", urlsplit(stub.url).port or 0))
        self._environment = {
            "JOBRUNNER_DATABASE_URL": f"postgresql://postgres@{DATABASE}:{to_database}/{make_url(self.url).database}",
            "JOBRUNNER_CONNECTIONS__BATCH_DEFAULT__ENDPOINT_URL": f"http://{BACKEND}:{to_backend}",
        }

    def start_worker(self, name: str) -> Worker:
        return Worker(self.network.add_host(), name, self._directory, self._environment)

    def store(self, count: int = 1, poll_interval: float = 0.5) -> list[int]:
        jobs = (
            BatchMonitorJob(
                "nightly", "queue", "definition", heartrate=HEARTRATE, poll_interval=poll_interval
            )
            for _ in range(count)
        )
        return [job.store().id for job in jobs]

    def running(self, count: int, poll_interval: float = 0.5) -> list[int]:
        """Store jobs, and wait until all of them were seen to run."""
        ids = self.store(count, poll_interval)
        self.until_all(ids, external_state="RUNNING")
        return ids

    def look(self, job_id: int, *columns: str) -> tuple[Any, ...]:
        row = row_of(self.database, job_id)
        return tuple(row[column] for column in columns)

    def said(self, job_id: int) -> str:
        """Return the message of a job."""
        return str(row_of(self.database, job_id)["message"])

    def until_all(self, ids: list[int], timeout_s: float = PATIENCE_S, **values: object) -> None:
        """Wait until all of these jobs have these values."""
        until(lambda: all(self.look(each, *values) == tuple(values.values()) for each in ids), timeout_s)

    def outside(self, job_id: int) -> str:
        """Return the id of a job's work."""
        return str(row_of(self.database, job_id)["external_id"])

    def kill(self, job_id: int) -> None:
        plain_sql(self.url, f"UPDATE job SET kill_requested_at = now() WHERE id = {job_id}")

    def asked_by(self, worker: Worker, *operations: str) -> int:
        """Return how often a worker has asked AWS Batch for one of these."""
        calls = list(self.stub.calls)
        return sum(call.access_key == worker.access_key and call.operation in operations for call in calls)

    def check_each_was_submitted_once(self, ids: list[int]) -> None:
        made = {each["jobName"]: each["jobId"] for each in self.stub.submitted()}
        assert made == {
            f"nightly-{row['submit_token']}": row["external_id"]
            for row in (row_of(self.database, job_id) for job_id in ids)
        }
        assert len(self.stub.job_ids()) == len(ids)


@pytest.fixture
def world(
    postgres: Postgres, postgres_database: Database, stub: BatchStub, tmp_path: Path
) -> Iterator[World]:
    why = why_not()
    if why is not None:
        pytest.skip(why)
    with a_network() as network:
        yield World(network, postgres, postgres_database, stub, tmp_path)


def test_a_worker_cut_off_from_the_database_changes_nothing_and_its_jobs_go_on_elsewhere(
    world: World,
) -> None:
    stub = world.stub
    a = world.start_worker("a")
    ids = world.running(10)
    succeeds, fails, unwanted, ending, *others = ids
    stub.set("terminate_takes_s", 600.0)
    world.kill(ending)
    until(lambda: world.asked_by(a, "TerminateJob") > 1, PATIENCE_S)  # and so on, as it does not end
    stub.fault("SubmitJob", "delay", seconds=5.0)  # its answer comes when it cannot be recorded any more
    ids += world.store()
    until(lambda: world.asked_by(a, "SubmitJob") == len(ids), PATIENCE_S)
    b = world.start_worker("b")

    world.network.cut(a.host, DATABASE)
    stub.succeed(world.outside(succeeds))
    stub.fail(world.outside(fails), exit_code=3)
    world.kill(unwanted)
    until(lambda: "heartbeat failing" in a.words, PATIENCE_S)  # the kernel alone would take a quarter hour
    world.until_all(ids, claims=2)
    changes, looks = world.asked_by(a, *CHANGES), world.asked_by(a, "DescribeJobs")
    # It goes on looking, for longer than it used to wait between two askings for the end.
    until(lambda: world.asked_by(a, "DescribeJobs") > looks + 8, PATIENCE_S)
    stub.set("terminate_takes_s", 0.0)
    world.until_all([unwanted, ending], state=JobState.KILLED)
    world.until_all([succeeds], state=JobState.SUCCESS)
    world.until_all([fails], state=JobState.FAILED)
    world.until_all([a.job_id], state=JobState.LOST)
    world.until_all([*others, ids[-1]], external_state="RUNNING")
    columns = ("runner_id", "claims", "state", "external_id", "message")
    before = [world.look(each, *columns) for each in (*ids, a.job_id)]

    world.network.heal(a.host, DATABASE)
    assert a.ended() == 4
    assert "others took this worker for dead: it stops" in a.words
    assert [world.look(each, *columns) for each in (*ids, a.job_id)] == before
    assert world.asked_by(a, *CHANGES) == changes
    for each in (*others, ids[-1]):
        stub.succeed(world.outside(each))
    world.until_all([*others, ids[-1]], state=JobState.SUCCESS)
    b.stop()
    world.check_each_was_submitted_once(ids)
    world.until_all(ids, claims=2)
    for each in ids:
        assert [to for _, to in events_of(world.url, each)[:-1]] == ["queued", "running", "running"]


def test_a_worker_cut_off_from_the_backend_keeps_its_jobs_and_hears_of_all_later(
    world: World, tmp_path: Path
) -> None:
    stub = world.stub
    a = world.start_worker("a")
    ids = world.running(4)
    succeeds, fails, unwanted, goes_on = ids
    b = world.start_worker("b")

    world.network.cut(a.host, BACKEND)
    (beaten,) = world.look(goes_on, "latest_heartbeat")
    stub.succeed(world.outside(succeeds))
    stub.fail(world.outside(fails), exit_code=3)
    world.kill(unwanted)
    until(lambda: "status unreadable since" in world.said(goes_on), PATIENCE_S)
    jobrunner = CommandLine(tmp_path)
    jobrunner.environment["JOBRUNNER_DATABASE_URL"] = world.url
    assert "status unreadable since" in jobrunner("show", str(goes_on)).out
    beating, later = (goes_on, unwanted, b.job_id), beaten + dt.timedelta(seconds=5 * GRACE_S)
    until(lambda: min(world.look(each, "latest_heartbeat") for each in beating) > (later,), PATIENCE_S)
    world.until_all([*ids, a.job_id, b.job_id], state=JobState.RUNNING, claims=1)
    assert world.asked_by(a, "TerminateJob") == 0

    world.network.heal(a.host, BACKEND)
    world.until_all([succeeds], state=JobState.SUCCESS)
    world.until_all([fails], state=JobState.FAILED)
    world.until_all([unwanted], state=JobState.KILLED)
    world.until_all([goes_on], message="RUNNING")
    stub.succeed(world.outside(goes_on))
    world.until_all(ids[-1:], state=JobState.SUCCESS)
    world.until_all(ids, claims=1)
    assert world.asked_by(a, "TerminateJob") > 0
    assert b.access_key not in {call.access_key for call in stub.calls}
    a.stop()
    b.stop()
    world.check_each_was_submitted_once(ids)


def test_submissions_whose_answer_is_lost_or_whose_request_comes_late_are_made_once(world: World) -> None:
    stub = world.stub
    a = world.start_worker("a")
    stub.set("delay_s", 0.3)  # so that they go side by side, and leave connections to be used again
    ids = world.running(4, poll_interval=60.0)
    stub.set("delay_s", 0.0)
    stub.fault("SubmitJob", "slow_body", seconds=3.0)
    ids += world.store()
    until(lambda: len(stub.job_ids()) == len(ids), PATIENCE_S)

    world.network.cut(a.host, BACKEND)  # in the middle of the answer
    late = world.store(4)  # of which some are sent over connections that are half open
    told = ("submission in doubt", "not submitted yet")
    until(lambda: all(world.said(each).startswith(told) for each in (ids[-1], *late)), PATIENCE_S)
    assert world.said(ids[-1]).startswith("submission in doubt")
    assert {world.said(each).startswith(told[0]) for each in late} == {True, False}
    assert len(stub.job_ids()) == len(ids)

    world.network.heal(a.host, BACKEND)
    world.until_all([*ids, *late], LATE_S, external_state="RUNNING", claims=1)
    a.stop()
    world.check_each_was_submitted_once([*ids, *late])
