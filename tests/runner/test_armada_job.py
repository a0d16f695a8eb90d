"""`ArmadaMonitorJob` in a runner, on both databases, against a stub with Armada's own habits."""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from jobrunner import channel as channel_module
from jobrunner.database import Database, get_database
from jobrunner.models.armada_monitor_job import ArmadaMonitorJob
from jobrunner.runner import Runner
from jobrunner.settings import configure
from jobrunner.states import JobState
from tests.helpers import row_of
from tests.runner.armada_jobs import POD, QuickArmadaJob
from tests.runner.support import a_runner, crash, in_loop, look, soon, start, take_over, within
from tests.stubs.armada_server import ArmadaStub, State, serving

CODE = grpc.StatusCode


@pytest.fixture
def armada() -> Iterator[ArmadaStub]:
    with serving() as stub:
        yield stub


@pytest.fixture
def database(database_url: str, armada: ArmadaStub) -> Database:
    return connected(database_url, armada)


def connected(database_url: str, armada: ArmadaStub, **options: Any) -> Database:
    connection = {"kind": "armada", "url": armada.address, "call_timeout_s": 5, **options}
    configure(database_url=database_url, connections={"armada_default": connection})
    return get_database()


def a_job(job_class: type[ArmadaMonitorJob] = QuickArmadaJob, **options: Any) -> ArmadaMonitorJob:
    return job_class("nightly", "etl", "set", POD, **{"heartrate": 0.3, "poll_interval": 0.05, **options})


async def submitted(armada: ArmadaStub, count: int = 1) -> list[str]:
    """Wait until so many jobs are there, and return their ids."""
    await soon(lambda: len(armada.jobs) >= count)
    return armada.external_ids()


async def running(
    runner: Runner, armada: ArmadaStub, job: ArmadaMonitorJob
) -> tuple[str, asyncio.Future[JobState]]:
    """Start a job, let it run in Armada, and wait until that was seen."""
    end = start(runner, job)
    (external_id,) = await submitted(armada)
    armada.run(external_id)
    await soon(lambda: look(runner.database, job.id, "external_state") == ("RUNNING",))
    return external_id, end


async def shown(database: Database, job: ArmadaMonitorJob, words: str) -> None:
    """Wait until a job's message holds these words."""
    await soon(lambda: words in (row_of(database, job.id)["message"] or ""))


# --- from the submission to the end ----------------------------------------------------------------


@in_loop
async def test_a_job_is_submitted_once_and_watched_to_its_end(database: Database, armada: ArmadaStub) -> None:
    async with a_runner(database) as runner:
        job = a_job()
        external_id, end = await running(runner, armada, job)
        armada.succeed(external_id)
        assert await within(end) is JobState.SUCCESS
    row = row_of(database, job.id)
    assert (row["external_id"], row["external_state"]) == (external_id, "SUCCEEDED")
    assert (row["name"], row["connection"]) == ("nightly", "armada_default")
    assert row["detail"]["cluster"] == "cluster-1"
    assert armada.calls_per_method()["SubmitJobs"] == 1
    assert armada.job(external_id).item.client_id == row["submit_token"]


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        (State.FAILED, "container main failed with exit code 1", "container main failed with exit code 1"),
        (State.FAILED, "", "failed, and Armada gave no reason"),
        (State.PREEMPTED, "evicted for queue urgent", "preempted by Armada: evicted for queue urgent"),
        (State.REJECTED, "no node is so large", "rejected by Armada: no node is so large"),
    ],
)
@in_loop
async def test_whatever_armada_ends_badly_is_failed_with_its_own_reason(
    database: Database, armada: ArmadaStub, state: int, error: str, message: str
) -> None:
    async with a_runner(database) as runner:
        job = a_job()
        external_id, end = await running(runner, armada, job)
        armada.move(external_id, state, error)
        assert await within(end) is JobState.FAILED
    assert look(database, job.id, "message") == (message,)


@in_loop
async def test_an_unknown_queue_is_told_in_armadas_own_words_and_not_tried_again(
    database: Database, armada: ArmadaStub
) -> None:
    armada.known_queues = {"other"}
    async with a_runner(database) as runner:
        job = a_job()
        assert await within(start(runner, job)) is JobState.FAILED
    words = 'not accepted: permission denied for SubmitJobs: could not find queue "etl"'
    assert look(database, job.id, "message") == (words,)
    assert armada.calls_per_method() == {"SubmitJobs": 1}


@pytest.mark.parametrize("code", [CODE.UNAVAILABLE, CODE.INTERNAL, CODE.UNKNOWN, CODE.DEADLINE_EXCEEDED])
@in_loop
async def test_a_submission_whose_answer_was_lost_is_found_and_never_made_twice(
    database: Database, armada: ArmadaStub, code: grpc.StatusCode
) -> None:
    armada.appear_after_s = 0.1
    armada.fault("SubmitJobs", code, "gone", performed=True)
    async with a_runner(database) as runner:
        job = a_job()
        end = start(runner, job)
        (external_id,) = await submitted(armada)
        await soon(lambda: look(database, job.id, "external_id") == (external_id,))
        armada.succeed(external_id)
        assert await within(end) is JobState.SUCCESS
    assert len(armada.jobs) == 1


@in_loop
async def test_a_lost_answer_is_found_where_armada_kept_no_client_id(
    database: Database, armada: ArmadaStub
) -> None:
    """A server that dies between handing a job on and keeping its client id would make a second one."""
    armada.keeps_client_ids = False
    armada.fault("SubmitJobs", CODE.UNAVAILABLE, "gone", performed=True)
    async with a_runner(database) as runner:
        job = a_job()
        end = start(runner, job)
        (external_id,) = await submitted(armada)
        await soon(lambda: look(database, job.id, "external_id") == (external_id,))
        armada.succeed(external_id)
        assert await within(end) is JobState.SUCCESS
    assert len(armada.jobs) == 1


@in_loop
async def test_a_submission_that_never_arrived_is_made_again_under_the_same_token(
    database: Database, armada: ArmadaStub
) -> None:
    armada.fault("SubmitJobs", CODE.INTERNAL, "Failed to send events to Pulsar")
    async with a_runner(database) as runner:
        job = a_job()
        token = job.submit_token
        end = start(runner, job)
        await shown(database, job, "submission in doubt")
        (external_id,) = await submitted(armada)
        armada.succeed(external_id)
        assert await within(end) is JobState.SUCCESS
    assert len(armada.jobs) == 1
    assert armada.job(external_id).item.client_id == token


@in_loop
async def test_a_server_that_is_away_holds_a_submission_up_and_does_not_end_it(
    database: Database, armada: ArmadaStub
) -> None:
    armada.stop()
    async with a_runner(database) as runner:
        job = a_job()
        end = start(runner, job)
        await shown(database, job, f"not submitted yet: {armada.address} cannot be reached for SubmitJobs")
        armada.start()
        (external_id,) = await submitted(armada)
        armada.succeed(external_id)
        assert await within(end) is JobState.SUCCESS
    assert len(armada.jobs) == 1


@in_loop
async def test_a_throttled_submission_waits_and_says_so(database: Database, armada: ArmadaStub) -> None:
    armada.fault("SubmitJobs", CODE.RESOURCE_EXHAUSTED, "too many requests", times=2)
    async with a_runner(database) as runner:
        job = a_job()
        end = start(runner, job)
        await shown(database, job, "SubmitJobs was throttled: too many requests")
        (external_id,) = await submitted(armada)
        armada.succeed(external_id)
        assert await within(end) is JobState.SUCCESS
    assert len(armada.jobs) == 1


# --- watching ------------------------------------------------------------------------------------


@in_loop
async def test_a_job_that_armada_does_not_know_yet_is_waited_for(
    database: Database, armada: ArmadaStub
) -> None:
    armada.appear_after_s = 1000
    async with a_runner(database) as runner:
        job = a_job(ArmadaMonitorJob)
        end = start(runner, job)
        (external_id,) = await submitted(armada)
        armada.forget_calls()
        await soon(lambda: armada.calls_per_method().get("GetJobStatus", 0) >= 3)
        assert look(database, job.id, "state") == (JobState.RUNNING,)
        armada.appear_after_s = 0
        armada.succeed(external_id)
        assert await within(end) is JobState.SUCCESS


@in_loop
async def test_a_job_that_never_appears_is_lost_after_its_patience(
    database: Database, armada: ArmadaStub
) -> None:
    armada.appear_after_s = 1000
    async with a_runner(database) as runner:
        job = a_job()
        assert await within(start(runner, job)) is JobState.LOST
    assert row_of(database, job.id)["message"].startswith("it never appeared within ")


@in_loop
async def test_an_outage_is_shown_and_ends_nothing(database: Database, armada: ArmadaStub) -> None:
    async with a_runner(database) as runner:
        job = a_job()
        external_id, end = await running(runner, armada, job)
        armada.stop()
        await shown(database, job, "status unreadable since ")
        assert look(database, job.id, "state", "external_state") == (JobState.RUNNING, "RUNNING")
        armada.start()
        await shown(database, job, "RUNNING")
        armada.succeed(external_id)
        assert await within(end) is JobState.SUCCESS
    assert "CancelJobs" not in armada.calls_per_method()


@pytest.mark.parametrize(
    "code", [CODE.INTERNAL, CODE.UNAUTHENTICATED, CODE.PERMISSION_DENIED, CODE.UNIMPLEMENTED]
)
@in_loop
async def test_trouble_in_watching_never_ends_a_job(
    database: Database, armada: ArmadaStub, code: grpc.StatusCode
) -> None:
    async with a_runner(database) as runner:
        job = a_job()
        external_id, end = await running(runner, armada, job)
        armada.fault("GetJobStatus", code, "for now", times=None)
        await shown(database, job, "status unreadable since ")
        armada.clear_faults()
        armada.succeed(external_id)
        assert await within(end) is JobState.SUCCESS


@in_loop
async def test_many_jobs_are_asked_about_together_within_the_servers_limit(
    database: Database, armada: ArmadaStub
) -> None:
    count = 120
    armada.max_query_items = 50
    async with a_runner(database) as runner:
        jobs = [a_job(ArmadaMonitorJob, poll_interval=0.5, heartrate=5.0) for _ in range(count)]
        ends = [start(runner, job) for job in jobs]
        ids = await submitted(armada, count)
        await soon(lambda: all(owned.seen for owned in runner.jobs.values()))
        armada.forget_calls()
        await soon(lambda: sum(call.ids for call in armada.calls) >= 3 * count)
        sizes = [call.ids for call in armada.calls if call.method == "GetJobStatus"]
        assert len([size for size in sizes if size > 50]) <= 4, "one call under way each, until it is learnt"
        assert sum(sizes) / len(sizes) > 10, "they travel together"
        for each in ids:
            armada.succeed(each)
        for end in ends:
            assert await within(end, 60) is JobState.SUCCESS
    assert len(armada.jobs) == count


@in_loop
async def test_an_event_makes_a_job_due_at_once(database_url: str, armada: ArmadaStub) -> None:
    database = connected(database_url, armada, events=True)
    async with a_runner(database) as runner:
        job = a_job(ArmadaMonitorJob, poll_interval=1000.0)
        end = start(runner, job)
        (external_id,) = await submitted(armada)
        await soon(lambda: look(database, job.id, "external_state") == ("QUEUED",))
        armada.succeed(external_id)
        assert await within(end) is JobState.SUCCESS


# --- ending it -----------------------------------------------------------------------------------


@in_loop
async def test_a_kill_cancels_by_id_and_stands_when_armada_has_confirmed_it(
    database: Database, armada: ArmadaStub
) -> None:
    armada.cancel_takes_s = 0.3
    async with a_runner(database) as runner:
        job = a_job()
        external_id, end = await running(runner, armada, job)
        (other,) = armada.seed("etl", "set")
        job.request_kill(by="ana", reason="wrong input file")
        assert await within(end) is JobState.KILLED
    assert armada.cancelled_job_sets == []
    assert armada.job(other).cancelled_at_s is None
    assert "wrong input file" in armada.job(external_id).cancel_reason
    assert "wrong input file" in row_of(database, job.id)["message"]


@in_loop
async def test_a_job_that_succeeded_first_is_a_success(database: Database, armada: ArmadaStub) -> None:
    armada.cancel_takes_s = 1000
    async with a_runner(database) as runner:
        job = a_job()
        external_id, end = await running(runner, armada, job)
        job.request_kill()
        await soon(lambda: armada.calls_per_method().get("CancelJobs"))
        armada.succeed(external_id)
        assert await within(end) is JobState.SUCCESS


@in_loop
async def test_a_cancellation_by_others_is_failed_and_says_so(database: Database, armada: ArmadaStub) -> None:
    async with a_runner(database) as runner:
        job = a_job()
        external_id, end = await running(runner, armada, job)
        armada.move(external_id, State.CANCELLED)
        assert await within(end) is JobState.FAILED
    assert "cancelled outside" in row_of(database, job.id)["message"]


@in_loop
async def test_many_kills_are_few_calls(
    database: Database, armada: ArmadaStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However slowly this machine writes that they are cancelled: what is wished meanwhile travels together.
    monkeypatch.setattr(channel_module, "_GATHER_S", 1.0)
    count = 60
    async with a_runner(database) as runner:
        jobs = [a_job(ArmadaMonitorJob, heartrate=5.0, poll_interval=1.0) for _ in range(count)]
        ends = [start(runner, job) for job in jobs]
        await submitted(armada, count)
        await soon(lambda: all(owned.seen for owned in runner.jobs.values()))
        with database.write() as connection:
            connection.exec_driver_sql("UPDATE job SET kill_requested_at = CURRENT_TIMESTAMP")
        for end in ends:
            assert await within(end, 60) is JobState.KILLED
    assert armada.calls_per_method()["CancelJobs"] < count / 2
    assert armada.cancelled_job_sets == []


# --- jobs of others, runners that die ----------------------------------------------------------------


@in_loop
async def test_a_job_that_somebody_else_submitted_is_watched_and_obeys_a_kill(
    database: Database, armada: ArmadaStub
) -> None:
    watched, killed = armada.seed("etl", "their set", 2)
    async with a_runner(database) as runner:
        one, other = (
            ArmadaMonitorJob.attach(*armada.job(each).key, heartrate=0.3, poll_interval=0.05)
            for each in (watched, killed)
        )
        ends = [start(runner, job) for job in (one, other)]
        await soon(lambda: look(database, one.id, "external_state") == ("QUEUED",))
        armada.succeed(watched)
        other.request_kill()
        assert [await within(end) for end in ends] == [JobState.SUCCESS, JobState.KILLED]
    assert "SubmitJobs" not in armada.calls_per_method()
    assert one.name == armada.job(watched).key.job_id


@in_loop
async def test_an_adopter_goes_on_watching_the_same_job(database: Database, armada: ArmadaStub) -> None:
    async with a_runner(database) as first, a_runner(database) as second:
        job = a_job()
        start(first, job)
        (external_id,) = await submitted(armada)
        await soon(lambda: look(database, job.id, "external_id") == (external_id,))
        await crash(first)
        end = take_over(second, job)
        armada.succeed(external_id)
        assert await within(end) is JobState.SUCCESS
    assert len(armada.jobs) == 1


@in_loop
async def test_an_adopter_finds_what_a_dead_runner_submitted(database: Database, armada: ArmadaStub) -> None:
    armada.fault("SubmitJobs", hangs_s=30, performed=True)
    async with a_runner(database) as first, a_runner(database) as second:
        job = a_job()
        start(first, job)
        await soon(lambda: armada.calls_per_method().get("SubmitJobs"))
        await crash(first)
        end = take_over(second, job)
        (external_id,) = await submitted(armada)
        armada.succeed(external_id)
        assert await within(end) is JobState.SUCCESS
    assert len(armada.jobs) == 1


# --- what a process is given -------------------------------------------------------------------------


@pytest.mark.parametrize("is_blocking", [True, False])
@in_loop
async def test_a_given_client_is_used_in_place_of_the_connection(
    database_url: str, armada: ArmadaStub, *, is_blocking: bool
) -> None:
    from armada_client.asyncio_client import ArmadaAsyncIOClient
    from armada_client.client import ArmadaClient

    configure(database_url=database_url)
    channel: Any = (grpc if is_blocking else grpc.aio).insecure_channel(armada.address)
    client = (ArmadaClient if is_blocking else ArmadaAsyncIOClient)(channel)
    async with a_runner(get_database()) as runner:
        job = a_job(ArmadaMonitorJob, armada_client=client)
        external_id, end = await running(runner, armada, job)
        armada.succeed(external_id)
        assert await within(end) is JobState.SUCCESS
    closed = channel.close()
    if not is_blocking:
        await closed


@in_loop
async def test_a_secret_of_the_connection_reaches_no_row_and_no_log(
    database_url: str, armada: ArmadaStub, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    database = connected(database_url, armada, token="hunter2")
    armada.fault("SubmitJobs", CODE.RESOURCE_EXHAUSTED, "Bearer hunter2 asks too often")
    async with a_runner(database) as runner:
        job = a_job()
        end = start(runner, job)
        (external_id,) = await submitted(armada)
        armada.fault("GetJobStatus", CODE.UNAUTHENTICATED, "no user for Bearer hunter2", times=3)
        await shown(database, job, "status unreadable")
        armada.succeed(external_id)
        assert await within(end) is JobState.SUCCESS
    assert {call.authorization for call in armada.calls} == {"Bearer hunter2"}
    assert "hunter2" not in str(row_of(database, job.id)) + caplog.text


@in_loop
async def test_the_old_job_service_may_watch_what_armada_was_given(
    database_url: str, armada: ArmadaStub
) -> None:
    from jobrunner.backends.armada.jobservice import JobServiceClient
    from tests.stubs.jobservice_server import serving as serving_job_service

    database = connected(database_url, armada)
    with serving_job_service() as service, grpc.insecure_channel(service.address) as channel:
        async with a_runner(database) as runner:
            job = a_job(ArmadaMonitorJob, job_service_client=JobServiceClient(channel))
            end = start(runner, job)
            (external_id,) = await submitted(armada)
            service.put(*armada.job(external_id).key, 4)
            assert await within(end) is JobState.SUCCESS
    assert "GetJobStatus" not in armada.calls_per_method()


@pytest.mark.parametrize(
    ("cause", "state", "error"),
    [
        ("preempted", State.PREEMPTED, ""),
        ("oom", State.FAILED, "OOMKilled"),
        ("rejected", State.REJECTED, "no node"),
    ],
)
@in_loop
async def test_work_that_failed_for_a_named_cause_is_submitted_again_under_another_token(
    database: Database, armada: ArmadaStub, cause: str, state: int, error: str
) -> None:
    async with a_runner(database) as runner:
        job = a_job(resubmit={cause: 1})
        first, end = await running(runner, armada, job)
        armada.move(first, state, error)
        second = (await submitted(armada, 2))[-1]
        armada.succeed(second)
        assert await within(end) is JobState.SUCCESS
    one, other = (armada.job(each).item.client_id for each in (first, second))
    assert one != other
    assert row_of(database, job.id)["external_id"] == second


@in_loop
async def test_two_jobs_of_one_runner_reach_each_the_armada_of_its_own_client(
    database_url: str, armada: ArmadaStub
) -> None:
    from armada_client.client import ArmadaClient

    configure(database_url=database_url)
    with (
        serving() as other,
        grpc.insecure_channel(armada.address) as one_channel,
        grpc.insecure_channel(other.address) as other_channel,
    ):
        other.seed("etl", "theirs")  # two Armadas never give the same id
        async with a_runner(get_database()) as runner:
            jobs = [
                a_job(ArmadaMonitorJob, armada_client=ArmadaClient(channel))
                for channel in (one_channel, other_channel)
            ]
            ends = [start(runner, job) for job in jobs]
            for job, stub in zip(jobs, (armada, other), strict=True):
                *_, external_id = await submitted(stub, 2 if stub is other else 1)
                await shown(runner.database, job, "QUEUED")
                assert await asyncio.to_thread(job.poke) is False
                stub.succeed(external_id)
            assert [await within(end) for end in ends] == [JobState.SUCCESS] * 2
    for job, stub in zip(jobs, (armada, other), strict=True):
        *_, made = stub.external_ids()
        assert stub.job(made).item.client_id == row_of(get_database(), job.id)["submit_token"]
