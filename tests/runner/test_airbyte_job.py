"""`AirbyteMonitorJob`, and what becomes of it in a runner, on both databases, against a stateful Airbyte."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from jobrunner.backends.base import Observation
from jobrunner.database import Database, get_database
from jobrunner.errors import BackendError, JobFailed, SpecError, UsageError
from jobrunner.models.airbyte_monitor_job import AirbyteMonitorJob
from jobrunner.settings import configure
from jobrunner.states import JobState, Phase
from tests.backends.airbyte_help import in_loop
from tests.helpers import row_of
from tests.runner.airbyte_jobs import QuickAirbyteJob
from tests.runner.support import a_runner, crash, look, soon, start, take_over, within
from tests.stubs.airbyte_server import CONNECTION, AirbyteStub, FaultKind, serving


@pytest.fixture
def stub() -> Iterator[AirbyteStub]:
    with serving() as served:
        yield served


@pytest.fixture
def database(database_url: str, stub: AirbyteStub) -> Database:
    """Return the database of this process, whose jobs are at the stub."""
    airbyte = {
        "kind": "airbyte",
        "url": stub.url,
        "client_id": stub.client_id,
        "client_secret": stub.client_secret,
    }
    configure(database_url=database_url, connections={"airbyte_default": airbyte})
    return get_database()


def an_airbyte_job(connection_id: str = CONNECTION, **options: Any) -> QuickAirbyteJob:
    return QuickAirbyteJob(connection_id, **{"heartrate": 0.3, "poll_interval": 0.05, **options})


async def started(stub: AirbyteStub, count: int = 1) -> list[int]:
    await soon(lambda: len(stub.job_ids()) >= count)
    return stub.job_ids()


async def shown(database: Database, job: AirbyteMonitorJob, words: str) -> None:
    """Wait until a job's message holds these words."""
    await soon(lambda: words in (row_of(database, job.id)["message"] or ""))


async def external_state(database: Database, job: AirbyteMonitorJob, word: str) -> None:
    """Wait until a job's row shows this word of Airbyte."""
    await soon(lambda: look(database, job.id, "external_state") == (word,))


# --- the job itself --------------------------------------------------------------------------------


def test_airbytes_job_type_is_not_the_classes() -> None:
    job = AirbyteMonitorJob(CONNECTION.upper(), job_type="refresh", min_rows=5)
    assert job.spec == {
        "connectionId": CONNECTION,
        "jobType": "refresh",
        "onConflict": "adopt",
        "minRows": 5,
    }
    assert (job.name, job.connection) == (f"refresh {CONNECTION}", "airbyte_default")
    assert type(job).__mapper__.polymorphic_identity == "AirbyteMonitorJob"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"connection_id": None}, "needs connectionId: the UUID of the Airbyte connection"),
        (
            {"connection_id": "airbyte_default"},
            "'airbyte_default', which is no UUID of an Airbyte",
        ),
        ({"job_type": "full"}, "jobType is 'full', and must be 'sync', 'reset', 'refresh' or 'clear'"),
        ({"on_conflict": "wait"}, "onConflict is 'wait', and must be 'adopt' or 'fail'"),
        ({"min_rows": -1}, "minRows is -1"),
        ({"min_rows": True}, "minRows is True"),
    ],
)
def test_a_spec_that_is_wrong_is_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError) as caught:
        AirbyteMonitorJob(**{"connection_id": CONNECTION, **arguments})
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"api_version": "1"}, "'1' is no version of Airbyte's API"),
        ({"api_version": "v2"}, "The connection airbyte_default leads to v1 of Airbyte's API, not to v2"),
        ({"max_retry_delay": 5.0}, "is the longest wait of exponential_backoff"),
        ({"exponential_backoff": True, "max_retry_delay": "soon"}, "cannot be kept"),
        ({"resubmit": {"oom": 1}}, "No AirbyteMonitorJob ever fails by the cause 'oom'"),
        ({"exponential_backoff": True, "max_retry_delay": 0.0}, "cannot be kept"),
        ({"external_id": "7"}, "is there already, and is only watched"),
    ],
)
def test_an_option_that_cannot_be_kept_is_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        AirbyteMonitorJob(CONNECTION, **arguments)
    assert words in str(caught.value)


def test_a_spec_may_name_the_environment_and_an_attached_id_too(monkeypatch: pytest.MonkeyPatch) -> None:
    named = AirbyteMonitorJob("${env:ORDERS}").spec or {}
    assert named["connectionId"] == "${env:ORDERS}"
    monkeypatch.setenv("JOB", "12345")
    assert AirbyteMonitorJob.attach("${env:JOB}", min_rows=1).external_id == "12345"
    assert AirbyteMonitorJob.attach(7).spec == {}


@pytest.mark.parametrize("job_id", ["", "abc", "-1", "0", 10**30, True, "1.5", "9" * 5000, "${env:SECRET}"])
def test_what_is_no_job_id_is_not_attached_to(job_id: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    with pytest.raises(UsageError, match="is no job id of Airbyte") as caught:
        AirbyteMonitorJob.attach(job_id)
    assert len(str(caught.value)) < 200
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("key", ["connection_id", "job_type", "on_conflict"])
def test_each_word_of_a_spec_may_come_from_the_environment(key: str) -> None:
    arguments: dict[str, Any] = {"connection_id": CONNECTION, key: "${env:NAME}"}
    job = AirbyteMonitorJob(**arguments)
    assert "${env:NAME}" in (job.spec or {}).values()


@pytest.mark.parametrize(
    ("rows", "phase", "words"),
    [
        (10, Phase.SUCCEEDED, "succeeded"),
        (9, Phase.FAILED, "succeeded in Airbyte, but there were 9 rows, and min_rows is 10"),
        (None, Phase.FAILED, "succeeded in Airbyte, but it does not tell how many rows there were"),
    ],
)
def test_a_success_with_too_few_rows_is_a_failure(rows: int | None, phase: Phase, words: str) -> None:
    job = AirbyteMonitorJob(CONNECTION, min_rows=10)
    detail = {} if rows is None else {"rows": rows}
    judged = job.judge(Observation(Phase.SUCCEEDED, "succeeded", "succeeded", detail))
    assert judged.phase is phase
    assert words in judged.message
    running = Observation(Phase.RUNNING, "running")
    assert job.judge(running) is running
    assert AirbyteMonitorJob(CONNECTION).judge(judged) is judged


def test_exponential_backoff_grows_with_the_time_up_to_its_most() -> None:
    job = AirbyteMonitorJob(CONNECTION, exponential_backoff=True, max_retry_delay=60.0, poll_interval=5.0)
    assert [job.look_interval_s(each) for each in (0, 5, 10, 40, 500)] == [5, 5, 10, 40, 60]
    assert AirbyteMonitorJob(CONNECTION).look_interval_s(500) is None


# --- one look, as a sensor's -------------------------------------------------------------------------


@pytest.mark.usefixtures("database")
def test_a_poke_waits_until_the_job_has_succeeded(stub: AirbyteStub) -> None:
    (job_id,) = stub.seed(1, status="pending")
    sensor = AirbyteMonitorJob.attach(job_id, min_rows=10)
    for status in ("queued", "running", "incomplete", "hibernating", "running"):
        stub.move(job_id, status)
        assert sensor.poke() is False
    stub.succeed(job_id, rows=10)
    assert sensor.poke() is True
    assert stub.counts().keys() <= {"token", "get", "connection"}


@pytest.mark.usefixtures("database")
def test_a_poke_raises_what_a_failure_a_cancellation_and_too_few_rows_are(stub: AirbyteStub) -> None:
    failed, cancelled, empty = stub.seed(3)
    stub.fail(failed, {"failureOrigin": "source", "externalMessage": "no such table"})
    stub.move(cancelled, "cancelled")
    stub.succeed(empty, rows=0)
    for job_id, words in (
        (failed, f"{failed} failed: failed: no such table (source)"),
        (cancelled, f"{cancelled} cancelled: cancelled"),
        (empty, "there were 0 rows, and min_rows is 1"),
    ):
        with pytest.raises(JobFailed) as caught:
            AirbyteMonitorJob.attach(job_id, min_rows=1).poke()
        assert words in str(caught.value)


@pytest.mark.usefixtures("database")
def test_a_poke_that_sees_nothing_is_no_verdict(stub: AirbyteStub) -> None:
    (job_id,) = stub.seed()
    sensor = AirbyteMonitorJob.attach(job_id)
    for kind in ("server_error", "bad_gateway", "html", "dropped", "forbidden", "throttled"):
        stub.fault("get", kind)
        with pytest.raises(BackendError):
            sensor.poke()
    stub.fault("get", "unauthorized")  # once: the token is renewed
    assert sensor.poke() is False
    stub.vanish(job_id)
    with pytest.raises(BackendError, match=f"{job_id} cannot be seen: Airbyte does not show it"):
        sensor.poke()


# --- from the submission to the end ----------------------------------------------------------------


@in_loop
async def test_a_job_is_started_once_and_watched_to_its_end(database: Database, stub: AirbyteStub) -> None:
    async with a_runner(database) as runner:
        job = an_airbyte_job()
        end = start(runner, job)
        (job_id,) = await started(stub)
        await soon(lambda: look(database, job.id, "external_state") == ("running",))
        stub.succeed(job_id, rows=12, size=340)
        assert await within(end) is JobState.SUCCESS
    row = row_of(database, job.id)
    assert (row["external_id"], row["external_state"]) == (str(job_id), "succeeded")
    assert row["message"].startswith("succeeded: 12 rows, 340 bytes")
    assert row["detail"]["rows"] == 12
    assert row["job_type"] == "QuickAirbyteJob"
    assert row["submit_baseline"] == "0"
    assert stub.counts()["post"] == 1


@in_loop
async def test_a_failure_says_its_cause(database: Database, stub: AirbyteStub) -> None:
    async with a_runner(database) as runner:
        job = an_airbyte_job()
        end = start(runner, job)
        (job_id,) = await started(stub)
        stub.fail(job_id, {"failureOrigin": "destination", "externalMessage": "disk full"})
        assert await within(end) is JobState.FAILED
    assert look(database, job.id, "message") == ("failed: disk full (destination)",)


@pytest.mark.parametrize("kind", ["lost_answer", "server_error", "bad_gateway"])
@in_loop
async def test_a_submission_in_doubt_is_found_or_named_and_never_repeated(
    database: Database, stub: AirbyteStub, kind: FaultKind
) -> None:
    stub.seed(1, connection_id=CONNECTION, status="succeeded")
    stub.fault("post", kind)
    async with a_runner(database) as runner:
        job = an_airbyte_job()
        end = start(runner, job)
        if kind == "lost_answer":
            await soon(lambda: look(database, job.id, "external_id") == ("1002",))
            stub.succeed(1002)
            assert await within(end) is JobState.SUCCESS
        else:
            await shown(database, job, "submission in doubt")
            assert await within(end) is JobState.FAILED
            told = row_of(database, job.id)["message"]
            assert f"no sync job that began since is listed for the Airbyte connection {CONNECTION}" in told
            assert "look for it outside before you start it again" in told
    assert stub.counts()["post"] == 1


@pytest.mark.parametrize("is_made", [True, False])
@in_loop
async def test_a_runner_that_dies_in_its_post_leaves_one_job_or_a_named_doubt(
    database: Database, stub: AirbyteStub, is_made: bool
) -> None:
    stub.fault("post", "hang" if is_made else "dropped", seconds=0.3)
    async with a_runner(database) as first, a_runner(database) as second:
        job = an_airbyte_job()
        start(first, job)
        await soon(lambda: "post" in stub.counts())
        await crash(first)
        end = take_over(second, job)
        if is_made:
            (job_id,) = await started(stub)
            await soon(lambda: look(database, job.id, "external_id") == (str(job_id),))
            stub.succeed(job_id)
        assert await within(end) is (JobState.SUCCESS if is_made else JobState.FAILED)
    assert stub.counts()["post"] == 1


@in_loop
async def test_two_jobs_of_one_airbyte_connection_never_watch_the_same(
    database: Database, stub: AirbyteStub
) -> None:
    async with a_runner(database) as runner:
        one, two = an_airbyte_job(), an_airbyte_job()
        end = start(runner, one)
        (job_id,) = await started(stub)
        await soon(lambda: look(database, one.id, "external_id") == (str(job_id),))
        assert await within(start(runner, two)) is JobState.FAILED
        message = row_of(database, two.id)["message"]
        assert "A sync is already running" in message
        assert f"{job_id} of the Airbyte connection {CONNECTION} is watched by another job here" in message
        stub.succeed(job_id)
        assert await within(end) is JobState.SUCCESS


@in_loop
async def test_a_sync_that_runs_already_is_adopted(database: Database, stub: AirbyteStub) -> None:
    (running,) = stub.seed(1, connection_id=CONNECTION)
    async with a_runner(database) as runner:
        job = an_airbyte_job()
        end = start(runner, job)
        await soon(lambda: look(database, job.id, "external_id") == (str(running),))
        stub.succeed(running)
        assert await within(end) is JobState.SUCCESS
    assert stub.job_ids() == [running]


@in_loop
async def test_a_sync_that_runs_already_fails_where_that_is_wished(
    database: Database, stub: AirbyteStub
) -> None:
    stub.seed(1, connection_id=CONNECTION)
    async with a_runner(database) as runner:
        job = an_airbyte_job(on_conflict="fail")
        assert await within(start(runner, job)) is JobState.FAILED
    assert look(database, job.id, "message") == (
        f"not accepted: POST /jobs: 409 A sync is already running for: {CONNECTION}",
    )


# --- watching --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("get", "server_error"),
        ("get", "bad_gateway"),
        ("get", "html"),
        ("get", "throttled"),
        ("*", "dropped"),
        ("*", "forbidden"),
        ("get", "unauthorized"),
        ("token", "bad_gateway"),
    ],
)
@in_loop
async def test_trouble_in_watching_is_shown_and_neither_ends_nor_cancels(
    database: Database, stub: AirbyteStub, operation: Any, kind: FaultKind
) -> None:
    async with a_runner(database) as runner:
        job = an_airbyte_job()
        end = start(runner, job)
        (job_id,) = await started(stub)
        await soon(lambda: look(database, job.id, "external_state") == ("running",))
        stub.expire_tokens()
        stub.fault(operation, kind, times=None)
        await shown(database, job, "status unreadable since ")
        assert look(database, job.id, "state", "external_state") == (JobState.RUNNING, "running")
        stub.clear_faults()
        await soon(lambda: look(database, job.id, "message") == ("running",))
        stub.succeed(job_id)
        assert await within(end) is JobState.SUCCESS
    assert "delete" not in stub.counts()


@in_loop
async def test_a_job_that_vanished_is_lost_after_its_patience(database: Database, stub: AirbyteStub) -> None:
    stub.unknown_status = 403
    async with a_runner(database) as runner:
        job = an_airbyte_job()
        end = start(runner, job)
        (job_id,) = await started(stub)
        await soon(lambda: look(database, job.id, "external_state") == ("running",))
        stub.vanish(job_id)
        assert await within(end) is JobState.LOST
    message = row_of(database, job.id)["message"]
    assert message.startswith("it was seen, and has been gone for ")
    assert message.endswith("there is no such job, or these credentials may not see it")


@in_loop
async def test_a_word_that_no_database_keeps_is_kept_without_what_it_cannot(
    database: Database, stub: AirbyteStub
) -> None:
    async with a_runner(database) as runner:
        job = an_airbyte_job()
        end = start(runner, job)
        (job_id,) = await started(stub)
        stub.move(job_id, "sl\x00ee\ud800ping")
        await external_state(database, job, "sl ee ping")
        stub.say("get", {"message": "no\x00t \ud800now"}, times=None, status=500)
        await shown(database, job, "with 500: no t now")
        stub.clear_faults()
        stub.succeed(job_id)
        assert await within(end) is JobState.SUCCESS


@in_loop
async def test_queued_and_incomplete_and_unknown_words_wait(database: Database, stub: AirbyteStub) -> None:
    stub.starts_as = "pending"
    async with a_runner(database) as runner:
        job = an_airbyte_job()
        end = start(runner, job)
        (job_id,) = await started(stub)
        for status in ("queued", "running", "incomplete", "resting", "running"):
            stub.move(job_id, status)
            await external_state(database, job, status)
        stub.succeed(job_id)
        assert await within(end) is JobState.SUCCESS


@in_loop
async def test_looks_become_rarer_with_exponential_backoff_and_a_kill_is_still_heard(
    database: Database, stub: AirbyteStub
) -> None:
    async with a_runner(database) as runner:
        job = an_airbyte_job(exponential_backoff=True, max_retry_delay=0.4)
        end = start(runner, job)
        (job_id,) = await started(stub)
        await external_state(database, job, "running")
        watch = runner.jobs[job.id].channel.poller._watches[job.id]
        seen = {watch.interval_s}
        while max(seen) < 0.4:
            await asyncio.sleep(0.01)
            seen.add(watch.interval_s)
        assert all(0.05 <= each <= 0.4 for each in seen)
        job.request_kill()
        assert await within(end) is JobState.KILLED
    assert stub.status(job_id) == "cancelled"


@in_loop
async def test_many_jobs_travel_together(database: Database, stub: AirbyteStub) -> None:
    ids = stub.seed(40)
    async with a_runner(database) as runner:
        jobs = [QuickAirbyteJob.attach(each, heartrate=5.0, poll_interval=0.5) for each in ids]
        ends = [start(runner, job) for job in jobs]
        await soon(lambda: all(owned.seen for owned in runner.jobs.values()))
        stub.forget_calls()
        await soon(lambda: stub.counts().get("list", 0) >= 3)
        assert "get" not in stub.counts()
        for each in ids:
            stub.succeed(each)
        for end in ends:
            assert await within(end, 60) is JobState.SUCCESS


# --- ending it -------------------------------------------------------------------------------------


@in_loop
async def test_a_kill_cancels_and_stands_when_airbyte_has_confirmed_it(
    database: Database, stub: AirbyteStub
) -> None:
    stub.cancel_takes_s = 0.3
    async with a_runner(database) as runner:
        job = an_airbyte_job()
        end = start(runner, job)
        (job_id,) = await started(stub)
        await soon(lambda: look(database, job.id, "external_state") == ("running",))
        job.request_kill(by="ana@box2", reason="wrong day")
        assert await within(end) is JobState.KILLED
    assert stub.status(job_id) == "cancelled"
    assert row_of(database, job.id)["message"] == "killed by ana@box2: wrong day (cancelled)"


@in_loop
async def test_a_kill_never_hits_a_newer_run(database: Database, stub: AirbyteStub) -> None:
    async with a_runner(database) as runner:
        job = an_airbyte_job(poll_interval=30.0)
        end = start(runner, job)
        (job_id,) = await started(stub)
        await soon(lambda: look(database, job.id, "external_state") == ("running",))
        stub.succeed(job_id)  # and nobody here has seen it yet
        newer = stub.start(CONNECTION, "sync").id
        job.request_kill()
        assert await within(end) is JobState.SUCCESS
    assert stub.status(newer) == "running"
    assert "delete" not in stub.counts()


@in_loop
async def test_a_cancellation_outside_is_a_failure_that_says_so(
    database: Database, stub: AirbyteStub
) -> None:
    async with a_runner(database) as runner:
        job = an_airbyte_job()
        end = start(runner, job)
        (job_id,) = await started(stub)
        stub.move(job_id, "cancelled")
        assert await within(end) is JobState.FAILED
    assert look(database, job.id, "message") == ("cancelled outside, without any wish of ours (cancelled)",)


@in_loop
async def test_past_its_timeout_a_job_is_cancelled(database: Database, stub: AirbyteStub) -> None:
    async with a_runner(database) as runner:
        job = an_airbyte_job(timeout=3.0)
        end = start(runner, job)
        (job_id,) = await started(stub)
        assert await within(end) is JobState.FAILED
    assert stub.status(job_id) == "cancelled"


@in_loop
async def test_a_job_of_somebody_else_is_watched_and_obeys_a_kill(
    database: Database, stub: AirbyteStub
) -> None:
    watched, killed = stub.seed(2)
    async with a_runner(database) as runner:
        one, other = (
            QuickAirbyteJob.attach(each, heartrate=0.3, poll_interval=0.05) for each in (watched, killed)
        )
        ends = [start(runner, job) for job in (one, other)]
        await soon(lambda: look(database, one.id, "external_state") == ("running",))
        stub.succeed(watched)
        other.request_kill()
        assert [await within(end) for end in ends] == [JobState.SUCCESS, JobState.KILLED]
    assert "post" not in stub.counts()


@in_loop
async def test_nothing_secret_reaches_the_row_or_the_log(
    database: Database, stub: AirbyteStub, caplog: pytest.LogCaptureFixture
) -> None:
    stub.fault("post", "throttled")
    async with a_runner(database) as runner:
        job = an_airbyte_job()
        end = start(runner, job)
        (job_id,) = await started(stub)
        stub.fault("get", "server_error", times=3)
        await shown(database, job, "status unreadable")
        stub.succeed(job_id)
        await within(end)
    tokens = {call.authorization.partition(" ")[2] for call in stub.calls if call.authorization}
    told = str(row_of(database, job.id)) + caplog.text
    assert not [secret for secret in (stub.client_secret, *tokens) if secret in told]
