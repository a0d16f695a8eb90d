"""`ArmadaMonitorJob` over a connection of kind `armada-jobservice`: the old JobService watches."""

import asyncio
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from armada_client.client import ArmadaClient

from jobrunner.backends.armada.jobservice import JobServiceClient
from jobrunner.backends.armada.jobservice import JobState as Seen
from jobrunner.database import Database, get_database
from jobrunner.models.armada_monitor_job import ArmadaMonitorJob
from jobrunner.runner import Runner
from jobrunner.settings import configure
from jobrunner.states import JobState
from tests.helpers import row_of
from tests.runner.armada_jobs import POD
from tests.runner.support import a_runner, in_loop, look, soon, start, within
from tests.runner.test_armada_job import shown, submitted
from tests.stubs.armada_server import ArmadaStub
from tests.stubs.armada_server import serving as serving_armada
from tests.stubs.jobservice_server import JobService, serving

THEIRS = "etl", "their set", "01h3w2wtdchtc80hgyp782shrv"


@pytest.fixture
def service() -> Iterator[JobService]:
    with serving() as service:
        yield service


@pytest.fixture
def armada() -> Iterator[ArmadaStub]:
    with serving_armada() as stub:
        yield stub


@pytest.fixture
def database(database_url: str, service: JobService) -> Database:
    connection = {"kind": "armada-jobservice", "url": service.address, "call_timeout_s": 5}
    configure(database_url=database_url, connections={"old_armada": connection})
    return get_database()


@pytest.fixture
def client(armada: ArmadaStub) -> Iterator[ArmadaClient]:
    with grpc.insecure_channel(armada.address) as channel:
        yield ArmadaClient(channel)


QUICK: dict[str, Any] = {"heartrate": 0.3, "poll_interval": 0.05, "connection": "old_armada"}


async def watched(runner: Runner, service: JobService) -> tuple[ArmadaMonitorJob, asyncio.Future[JobState]]:
    """Watch a job of somebody else, and wait until it was seen to run."""
    service.put(*THEIRS, Seen.RUNNING)
    job = ArmadaMonitorJob.attach(*THEIRS, **QUICK)
    end = start(runner, job)
    await soon(lambda: look(runner.database, job.id, "external_state") == ("RUNNING",))
    return job, end


@pytest.mark.parametrize(
    ("seen", "error", "state", "message"),
    [
        (Seen.SUCCEEDED, "", JobState.SUCCESS, "SUCCEEDED"),
        (Seen.FAILED, "OOMKilled", JobState.FAILED, "OOMKilled"),
        (Seen.DUPLICATE_FOUND, "", JobState.FAILED, "a duplicate: Armada runs the job of the same client id"),
        (Seen.CANCELLED, "", JobState.FAILED, "cancelled outside"),
    ],
)
@in_loop
async def test_a_job_of_somebody_else_is_watched_to_its_end(
    database: Database, service: JobService, seen: Seen, error: str, state: JobState, message: str
) -> None:
    async with a_runner(database) as runner:
        job, end = await watched(runner, service)
        service.put(*THEIRS, seen, error)
        assert await within(end) is state
    row = row_of(database, job.id)
    assert message in row["message"]
    assert row["connection"] == "old_armada"


@in_loop
async def test_the_cache_may_be_fed_late_and_the_service_be_away(
    database: Database, service: JobService
) -> None:
    service.lag = 5
    async with a_runner(database) as runner:
        job, end = await watched(runner, service)
        service.disconnected[THEIRS[:2]] = "event stream broken"
        await shown(database, job, "status unreadable since ")
        await shown(database, job, "the Armada JobService cannot reach Armada: event stream broken")
        service.disconnected.clear()
        service.purge(*THEIRS[:2])
        service.put(*THEIRS, Seen.SUCCEEDED)
        assert await within(end) is JobState.SUCCESS


@in_loop
async def test_a_kill_cannot_be_passed_on_and_says_so_until_the_job_ends(
    database: Database, service: JobService
) -> None:
    async with a_runner(database) as runner:
        job, end = await watched(runner, service)
        job.request_kill(by="ana", reason="wrong input")
        await shown(database, job, "cancel not taken: a connection of kind armada-jobservice can only watch")
        service.put(*THEIRS, Seen.CANCELLED)
        assert await within(end) is JobState.KILLED


@in_loop
async def test_a_submission_over_it_alone_is_refused_in_a_sentence(
    database: Database, service: JobService
) -> None:
    async with a_runner(database) as runner:
        job = ArmadaMonitorJob("nightly", "etl", "set", POD, **QUICK)
        assert await within(start(runner, job)) is JobState.FAILED
    message = row_of(database, job.id)["message"]
    assert message.startswith("not accepted: a connection of kind armada-jobservice can only watch")


@pytest.mark.parametrize(
    ("seen", "state"),
    [(Seen.SUCCEEDED, JobState.SUCCESS), (Seen.FAILED, JobState.FAILED)],
)
@in_loop
async def test_what_a_given_client_submits_is_watched_through_it(
    database: Database,
    service: JobService,
    armada: ArmadaStub,
    client: ArmadaClient,
    seen: Seen,
    state: JobState,
) -> None:
    async with a_runner(database) as runner:
        job = ArmadaMonitorJob("nightly", "etl", "set", POD, armada_client=client, **QUICK)
        end = start(runner, job)
        (external_id,) = await submitted(armada)
        service.put(*armada.job(external_id).key, seen, "why")
        assert await within(end) is state
    assert armada.calls_per_method() == {"SubmitJobs": 1}, "Armada itself is not asked"
    assert armada.job(external_id).item.client_id == row_of(database, job.id)["submit_token"]


@in_loop
async def test_what_a_given_client_submitted_is_cancelled_by_it(
    database: Database, service: JobService, armada: ArmadaStub, client: ArmadaClient
) -> None:
    async with a_runner(database) as runner:
        job = ArmadaMonitorJob("nightly", "etl", "set", POD, armada_client=client, **QUICK)
        end = start(runner, job)
        (external_id,) = await submitted(armada)
        key = armada.job(external_id).key
        service.put(*key, Seen.RUNNING)
        await soon(lambda: look(database, job.id, "external_state") == ("RUNNING",))
        job.request_kill(reason="wrong input")
        await soon(lambda: armada.job(external_id).cancelled_at_s is not None)
        assert look(database, job.id, "state") == (JobState.RUNNING,), "asking is not ending"
        service.put(*key, Seen.CANCELLED)
        assert await within(end) is JobState.KILLED
    assert armada.cancelled_job_sets == []


@in_loop
async def test_a_job_service_client_without_any_connection_watches_and_submits_nowhere(
    database_url: str, service: JobService
) -> None:
    configure(database_url=database_url)
    service.put(*THEIRS, Seen.SUCCEEDED)
    with grpc.insecure_channel(service.address) as channel:
        given: dict[str, Any] = {"job_service_client": JobServiceClient(channel), "poll_interval": 0.05}
        async with a_runner(get_database()) as runner:
            theirs = ArmadaMonitorJob.attach(*THEIRS, **given)
            assert await within(start(runner, theirs)) is JobState.SUCCESS
            ours = ArmadaMonitorJob("nightly", "etl", "set", POD, **given)
            assert await within(start(runner, ours)) is JobState.FAILED
    assert "not accepted: " in row_of(get_database(), ours.id)["message"]
