"""`BatchMonitorJob` in a runner, on both databases, against a stub with Batch's own habits."""

import asyncio
import datetime as dt
from pathlib import Path
from typing import Any

import pytest

from jobrunner import BatchMonitorJob
from jobrunner import channel as channel_module
from jobrunner.database import Database, get_database
from jobrunner.runner import Runner
from jobrunner.settings import configure
from jobrunner.states import JobState
from tests.helpers import row_of
from tests.runner.batch_jobs import QuickBatchJob
from tests.runner.support import a_runner, crash, in_loop, look, soon, start, take_over, within
from tests.stubs.aws_wire import FaultKind
from tests.stubs.batch_server import BatchStub
from tests.stubs.moto_batch import moto_batch

pytestmark = pytest.mark.usefixtures("aws")


@pytest.fixture
def database(database_url: str, stub: BatchStub) -> Database:
    """Return the database of this process, whose jobs without a connection of their own are at the stub."""
    return connected(database_url, stub.url)


def connected(database_url: str, url: str, **options: Any) -> Database:
    batch = {"kind": "batch", "endpoint_url": url, "calls_per_s": 500, **options}
    configure(database_url=database_url, connections={"batch_default": batch})
    return get_database()


def a_batch_job(job_class: type[BatchMonitorJob] = BatchMonitorJob, **options: Any) -> BatchMonitorJob:
    return job_class("nightly", "queue", "definition", **{"heartrate": 0.3, "poll_interval": 0.05, **options})


async def submitted(stub: BatchStub, count: int = 1) -> list[str]:
    """Wait until so many jobs are there, and return their ids."""
    await soon(
        lambda: len(stub.job_ids()) >= count, 60
    )  # a doubt that has to be settled first takes its time
    return stub.job_ids()


async def running(
    runner: Runner, stub: BatchStub, job: BatchMonitorJob
) -> tuple[str, asyncio.Future[JobState]]:
    """Start a job, let it run in Batch, and wait until that was seen."""
    end = start(runner, job)
    (external_id,) = await submitted(stub)
    stub.run(external_id)
    await soon(lambda: look(runner.database, job.id, "external_state") == ("RUNNING",))
    return external_id, end


async def shown(database: Database, job: BatchMonitorJob, words: str) -> None:
    """Wait until a job's message holds these words."""
    await soon(lambda: words in (row_of(database, job.id)["message"] or ""))


# --- from the submission to the end ----------------------------------------------------------------


@in_loop
async def test_a_job_is_submitted_once_and_watched_to_its_end(database: Database, stub: BatchStub) -> None:
    async with a_runner(database) as runner:
        job = a_batch_job()
        external_id, end = await running(runner, stub, job)
        stub.succeed(external_id)
        assert await within(end) is JobState.SUCCESS
    row = row_of(database, job.id)
    assert (row["external_id"], row["external_state"]) == (external_id, "SUCCEEDED")
    assert (row["message"], row["connection"], row["name"]) == ("SUCCEEDED", "batch_default", "nightly")
    assert row["detail"]["exit_code"] == 0
    assert row["detail"]["log_streams"]
    (request,) = stub.submitted()
    assert request["jobName"] == f"nightly-{row['submit_token']}"
    assert stub.calls_per_operation()["SubmitJob"] == 1


@in_loop
async def test_a_failure_says_its_cause(database: Database, stub: BatchStub) -> None:
    async with a_runner(database) as runner:
        job = a_batch_job()
        end = start(runner, job)
        (external_id,) = await submitted(stub)
        stub.run(external_id)
        stub.fail(external_id, 137, "OutOfMemoryError: Container killed due to memory usage")
        assert await within(end) is JobState.FAILED
    assert look(database, job.id, "message") == (
        (
            "exit code 137 (SIGKILL): OutOfMemoryError: Container killed due to memory usage; "
            "Essential container in task exited"
        ),
    )


@pytest.mark.parametrize(
    ("options", "fault", "words"),
    [
        (
            {"known_queues": ["other"]},
            None,
            "not accepted: ClientException: Error executing request, Exception : JobQueue queue not found.",
        ),
        (
            {"known_definitions": ["other"]},
            None,
            "not accepted: ClientException: Error executing request, Exception : JobDefinition name ",
        ),
        ({}, "access_denied", "not accepted: permission denied for SubmitJob: User: arn:aws:sts::"),
        ({}, "unknown_token", "not accepted: AWS refused the credentials for SubmitJob: Unrecognized"),
    ],
)
@in_loop
async def test_what_batch_refuses_is_failed_in_its_own_words_and_not_tried_again(
    database: Database, stub: BatchStub, options: dict[str, Any], fault: FaultKind | None, words: str
) -> None:
    for name, value in options.items():
        stub.set(name, value)
    if fault is not None:
        stub.fault("SubmitJob", fault, times=None)
    async with a_runner(database) as runner:
        job = a_batch_job()
        assert await within(start(runner, job)) is JobState.FAILED
    assert row_of(database, job.id)["message"].startswith(words)
    assert stub.calls_per_operation() == {"SubmitJob": 1}


@in_loop
async def test_an_endpoint_that_answers_html_is_told(database: Database, stub: BatchStub) -> None:
    stub.fault("*", "html", times=None, status=200)
    async with a_runner(database) as runner:
        job = a_batch_job()
        assert await within(start(runner, job)) is JobState.FAILED
    assert "and an HTML page, which is not how AWS answers" in row_of(database, job.id)["message"]


@in_loop
async def test_a_throttled_submission_waits_and_says_so(database: Database, stub: BatchStub) -> None:
    stub.fault("SubmitJob", "throttled", times=3)
    async with a_runner(database) as runner:
        job = a_batch_job()
        end = start(runner, job)
        await shown(database, job, "SubmitJob was throttled: TooManyRequestsException")
        (external_id,) = await submitted(stub)
        stub.succeed(external_id)
        assert await within(end) is JobState.SUCCESS
    assert len(stub.submitted()) == 1


@in_loop
async def test_expired_credentials_hold_a_submission_up_and_do_not_end_it(
    database: Database, stub: BatchStub
) -> None:
    stub.fault("SubmitJob", "expired_token", times=None)
    async with a_runner(database) as runner:
        job = a_batch_job()
        end = start(runner, job)
        await shown(database, job, "the AWS credentials for SubmitJob have expired")
        stub.clear_faults()
        (external_id,) = await submitted(stub)
        stub.succeed(external_id)
        assert await within(end) is JobState.SUCCESS


@pytest.mark.parametrize("kind", ["lost_answer", "server_error", "html"])
@in_loop
async def test_a_submission_in_doubt_is_looked_for_and_found(
    database: Database, stub: BatchStub, kind: FaultKind
) -> None:
    stub.set("listing_lag_s", 0.3)
    stub.fault("SubmitJob", kind, performed=True)
    async with a_runner(database) as runner:
        job = a_batch_job()
        end = start(runner, job)
        (external_id,) = await submitted(stub)
        await shown(database, job, "submission in doubt")
        await soon(lambda: look(database, job.id, "external_id") == (external_id,))
        stub.succeed(external_id)
        assert await within(end) is JobState.SUCCESS
    assert len(stub.submitted()) == 1


@in_loop
async def test_a_submission_that_never_arrived_is_made_again_once_proven_absent(
    database: Database, stub: BatchStub
) -> None:
    stub.fault("SubmitJob", "server_error")
    async with a_runner(database) as runner:
        job = a_batch_job(QuickBatchJob)
        end = start(runner, job)
        first_token = job.submit_token
        (external_id,) = await submitted(stub)
        stub.succeed(external_id)
        assert await within(end) is JobState.SUCCESS
    row = row_of(database, job.id)
    assert (row["attempt"], row["submit_token"] != first_token) == (2, True)
    assert len(stub.submitted()) == 1


@in_loop
async def test_a_doubt_that_cannot_be_settled_is_left_to_a_person(
    database: Database, stub: BatchStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobrunner.backends.batch.backend.LISTING_LAG_S", 0.2)
    stub.fault("SubmitJob", "server_error")
    async with a_runner(database) as runner:
        job = a_batch_job()
        assert await within(start(runner, job)) is JobState.FAILED
    message = row_of(database, job.id)["message"]
    assert "checks no signatures" in message
    assert job.submit_token in message
    assert len(stub.submitted()) == 0


# --- watching ------------------------------------------------------------------------------------


@in_loop
async def test_a_job_that_is_not_described_yet_is_waited_for(database: Database, stub: BatchStub) -> None:
    stub.set("appear_after_s", 30)
    async with a_runner(database) as runner:
        job = a_batch_job()
        end = start(runner, job)
        (external_id,) = await submitted(stub)
        stub.forget_calls()
        await soon(lambda: stub.calls_per_operation().get("DescribeJobs", 0) >= 3)
        assert look(database, job.id, "state") == (JobState.RUNNING,)
        stub.set("appear_after_s", 0)
        stub.succeed(external_id)
        assert await within(end) is JobState.SUCCESS


@in_loop
async def test_a_job_that_never_appears_is_lost_after_its_patience(
    database: Database, stub: BatchStub
) -> None:
    stub.set("appear_after_s", 1000)
    async with a_runner(database) as runner:
        job = a_batch_job(QuickBatchJob)
        assert await within(start(runner, job)) is JobState.LOST
    message = row_of(database, job.id)["message"]
    assert message.startswith("it never appeared within ")
    assert message.endswith("AWS Batch does not know it (finished jobs are kept for some days)")


@in_loop
async def test_a_job_that_was_seen_and_vanished_is_lost_after_its_patience(
    database: Database, stub: BatchStub
) -> None:
    async with a_runner(database) as runner:
        job = a_batch_job(QuickBatchJob)
        external_id, end = await running(runner, stub, job)
        stub.vanish(external_id)
        assert await within(end) is JobState.LOST
    assert row_of(database, job.id)["message"].startswith("it was seen, and has been gone for ")


@in_loop
async def test_a_retry_that_waits_once_more_is_shown_and_is_no_end(
    database: Database, stub: BatchStub
) -> None:
    async with a_runner(database) as runner:
        job = a_batch_job(retry_strategy={"attempts": 3}, start_timeout=1.0)
        external_id, end = await running(runner, stub, job)
        stub.retry(external_id, 1)
        await shown(database, job, "RUNNABLE, attempt 2 of 3 after exit code 1")
        submitted_at = row_of(database, job.id)["submit_started_at"]
        await soon(lambda: dt.datetime.now(dt.UTC) > submitted_at + dt.timedelta(seconds=1.5))
        assert look(database, job.id, "state", "cancel_cause") == (JobState.RUNNING, None)
        stub.run(external_id)
        stub.succeed(external_id)
        assert await within(end) is JobState.SUCCESS
    (first, *_) = row_of(database, job.id)["detail"]["attempts"]
    assert (first["exit_code"], first["status_reason"]) == (1, "Essential container in task exited")


@in_loop
async def test_an_array_shows_how_many_children_are_done(database: Database, stub: BatchStub) -> None:
    async with a_runner(database) as runner:
        job = a_batch_job(array_properties={"size": 100})
        end = start(runner, job)
        (external_id,) = await submitted(stub)
        stub.children(external_id, SUCCEEDED=37, FAILED=1, RUNNING=62)
        await shown(database, job, "37 of 100 done, 1 failed")
        stub.children(external_id, SUCCEEDED=99, FAILED=1)
        assert await within(end) is JobState.FAILED
    assert "(99 of 100 done, 1 failed)" in row_of(database, job.id)["message"]


@pytest.mark.parametrize(
    "kind",
    ["throttled", "throttled_400", "server_error", "html", "access_denied", "expired_token", "clock_skew"],
)
@in_loop
async def test_trouble_in_watching_is_shown_and_never_ends_a_job(
    database: Database, stub: BatchStub, kind: FaultKind
) -> None:
    async with a_runner(database) as runner:
        job = a_batch_job()
        external_id, end = await running(runner, stub, job)
        stub.fault("DescribeJobs", kind, times=None)
        await shown(database, job, "status unreadable since ")
        assert look(database, job.id, "state", "external_state") == (JobState.RUNNING, "RUNNING")
        stub.clear_faults()
        await soon(lambda: look(database, job.id, "message") == ("RUNNING",))
        stub.succeed(external_id)
        assert await within(end) is JobState.SUCCESS


@in_loop
async def test_many_jobs_are_described_a_hundred_a_call(database: Database, stub: BatchStub) -> None:
    count = 250
    async with a_runner(database) as runner:
        jobs = [a_batch_job(poll_interval=1.0, heartrate=5.0) for _ in range(count)]
        ends = [start(runner, job) for job in jobs]
        ids = await submitted(stub, count)
        await soon(lambda: all(owned.seen for owned in runner.jobs.values()))
        stub.forget_calls()
        await soon(lambda: sum(call.ids for call in stub.calls) >= 3 * count)
        sizes = [call.ids for call in stub.calls if call.operation == "DescribeJobs"]
        assert max(sizes) <= 100
        assert sum(sizes) / len(sizes) > 20, "they travel together"
        for each in ids:
            stub.succeed(each)
        for end in ends:
            assert await within(end, 60) is JobState.SUCCESS
    assert len(stub.submitted()) == count


@in_loop
async def test_an_event_makes_a_job_due_at_once(database_url: str) -> None:
    with moto_batch() as moto:
        queue_url = moto.make_queue()
        database = connected(database_url, moto.url, events_queue_url=queue_url)
        async with a_runner(database) as runner:
            job = a_batch_job(poll_interval=1000.0)
            end = start(runner, job)
            await soon(lambda: look(database, job.id, "external_state") == ("RUNNABLE",))
            (external_id,) = look(database, job.id, "external_id")
            for _ in range(3):  # told more often than it happened, and of others, too
                await asyncio.to_thread(moto.announce, queue_url, external_id, jobId="876da822")
            moto.succeed(external_id)
            await asyncio.to_thread(moto.announce, queue_url, external_id)
            assert await within(end) is JobState.SUCCESS


# --- ending it -----------------------------------------------------------------------------------


@in_loop
async def test_a_kill_terminates_and_stands_when_batch_has_confirmed_it(
    database: Database, stub: BatchStub
) -> None:
    stub.set("terminate_takes_s", 0.4)
    async with a_runner(database) as runner:
        job = a_batch_job()
        external_id, end = await running(runner, stub, job)
        job.request_kill(by="ana@box2", reason="wrong input file")
        await soon(lambda: "TerminateJob" in stub.calls_per_operation())
        assert look(database, job.id, "state", "cancel_cause") == (JobState.RUNNING, "kill")
        assert await within(end) is JobState.KILLED
    assert row_of(database, job.id)["message"] == (
        "killed by ana@box2: wrong input file (terminated: exit code 137 (SIGKILL))"
    )
    assert stub.job(external_id)["statusReason"] == "jobrunner: wrong input file"


@in_loop
async def test_a_kill_that_batch_denies_says_so_in_the_row(database: Database, stub: BatchStub) -> None:
    stub.fault("TerminateJob", "access_denied", times=None)
    async with a_runner(database) as runner:
        job = a_batch_job()
        end = start(runner, job)
        (external_id,) = await submitted(stub)
        stub.run(external_id)
        job.request_kill()
        await shown(database, job, "RUNNING: cancel not taken: permission denied for TerminateJob: User: ")
        stub.clear_faults()
        assert await within(end) is JobState.KILLED


@in_loop
async def test_a_job_that_ended_before_its_kill_has_its_true_outcome(
    database: Database, stub: BatchStub
) -> None:
    stub.set("terminate_takes_s", 1000)
    async with a_runner(database) as runner:
        job = a_batch_job()
        external_id, end = await running(runner, stub, job)
        job.request_kill()
        await soon(lambda: "TerminateJob" in stub.calls_per_operation())
        stub.succeed(external_id)
        assert await within(end) is JobState.SUCCESS


@in_loop
async def test_past_its_timeout_a_job_is_terminated_and_failed(database: Database, stub: BatchStub) -> None:
    async with a_runner(database) as runner:
        job = a_batch_job(timeout=5.0)  # it is submitted by then
        end = start(runner, job)
        (external_id,) = await submitted(stub)
        stub.run(external_id)
        assert await within(end) is JobState.FAILED
    assert row_of(database, job.id)["message"].startswith(
        "the timeout has passed, and the work was cancelled"
    )
    assert stub.job(external_id)["isTerminated"] is True


@in_loop
async def test_a_job_that_never_starts_is_cancelled_and_tells_what_held_it_up(
    database: Database, stub: BatchStub
) -> None:
    reason = "MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT - The job asks for more than any instance has"
    async with a_runner(database) as runner:
        job = a_batch_job(start_timeout=1.0)
        end = start(runner, job)
        (external_id,) = await submitted(stub)
        stub.runnable(external_id, reason)
        assert await within(end) is JobState.FAILED
    assert look(database, job.id, "message", "cancel_cause") == (
        f"it did not start within 1s: RUNNABLE: {reason}",
        "start_timeout",
    )
    assert reason in stub.job(external_id)["statusReason"]


@in_loop
async def test_a_hundred_and_twenty_kills_are_a_handful_of_calls(
    database: Database, stub: BatchStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However slowly this machine writes that they are cancelled: what is wished meanwhile travels together.
    monkeypatch.setattr(channel_module, "_GATHER_S", 1.0)
    count = 120
    async with a_runner(database) as runner:
        jobs = [a_batch_job(heartrate=5.0, poll_interval=2.0) for _ in range(count)]
        ends = [start(runner, job) for job in jobs]
        await submitted(stub, count)
        await soon(lambda: all(owned.seen for owned in runner.jobs.values()))
        with database.write() as connection:
            connection.exec_driver_sql("UPDATE job SET kill_requested_at = CURRENT_TIMESTAMP")
        for end in ends:
            assert await within(end, 60) is JobState.KILLED
    calls = stub.calls_per_operation()
    assert calls["TerminateJobs"] + calls.get("TerminateJob", 0) <= 30


@in_loop
async def test_a_kill_without_the_plural_call_ends_them_all_the_same(
    database: Database, stub: BatchStub
) -> None:
    stub.set("has_plural", value=False)
    async with a_runner(database) as runner:
        jobs = [a_batch_job() for _ in range(3)]
        ends = [start(runner, job) for job in jobs]
        await submitted(stub, 3)
        for job in jobs:
            job.request_kill()
        for end in ends:
            assert await within(end) is JobState.KILLED


# --- jobs of others, runners that die ----------------------------------------------------------------


@in_loop
async def test_a_job_that_somebody_else_submitted_is_watched_and_obeys_a_kill(
    database: Database, stub: BatchStub
) -> None:
    watched, killed = stub.seed_jobs(2)
    async with a_runner(database) as runner:
        one, other = (
            BatchMonitorJob.attach(each, heartrate=0.3, poll_interval=0.05) for each in (watched, killed)
        )
        ends = [start(runner, job) for job in (one, other)]
        await soon(lambda: look(database, one.id, "external_state") == ("RUNNING",))
        stub.succeed(watched)
        other.request_kill()
        assert [await within(end) for end in ends] == [JobState.SUCCESS, JobState.KILLED]
    assert "SubmitJob" not in stub.calls_per_operation()


@in_loop
async def test_an_adopter_goes_on_watching_the_same_job(database: Database, stub: BatchStub) -> None:
    async with a_runner(database) as first, a_runner(database) as second:
        job = a_batch_job()
        start(first, job)
        (external_id,) = await submitted(stub)
        await soon(lambda: look(database, job.id, "external_id") == (external_id,))
        await crash(first)
        end = take_over(second, job)
        stub.succeed(external_id)
        assert await within(end) is JobState.SUCCESS
    assert len(stub.submitted()) == 1


@in_loop
async def test_running_jobs_go_on_being_watched_once_credentials_are_back(
    database: Database, stub: BatchStub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    path = tmp_path / "credentials"
    profile = "[default]\naws_access_key_id = {}\naws_secret_access_key = secret\n"
    path.write_text(profile.format("AKIAOLD"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    monkeypatch.setattr("jobrunner.backends.batch.connection._RENEW_AFTER_S", 0.0)
    async with a_runner(database) as runner:
        job = a_batch_job()
        external_id, end = await running(runner, stub, job)
        path.unlink()
        stub.fault("DescribeJobs", "expired_token")
        await shown(database, job, "the AWS credentials for DescribeJobs have expired")
        assert look(database, job.id, "state") == (JobState.RUNNING,)
        path.write_text(profile.format("AKIANEW"))
        await soon(lambda: look(database, job.id, "message") == ("RUNNING",))
        stub.succeed(external_id)
        assert await within(end) is JobState.SUCCESS
    assert [stub.calls[at].access_key for at in (0, -1)] == ["AKIAOLD", "AKIANEW"]


@in_loop
async def test_nothing_secret_reaches_the_row_or_the_log(
    database: Database, stub: BatchStub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "hunter2token")
    stub.fault("SubmitJob", "throttled")
    async with a_runner(database) as runner:
        job = a_batch_job()
        end = start(runner, job)
        (external_id,) = await submitted(stub)
        stub.fault("DescribeJobs", "expired_token", times=3)
        await shown(database, job, "status unreadable")
        stub.succeed(external_id)
        await within(end)
    assert "hunter2" not in str(row_of(database, job.id)) + caplog.text
