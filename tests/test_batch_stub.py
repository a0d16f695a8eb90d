"""The stub of AWS Batch, and moto's, do what the real one does where it is easy to get wrong."""

import functools
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError

from tests.helpers import until
from tests.stubs.aws_wire import FaultKind
from tests.stubs.batch_server import BatchStub, reach, serving, serving_apart
from tests.stubs.moto_batch import MotoBatch, aws_environment, moto_batch, use_aws_environment


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[BatchStub]:
    use_aws_environment(monkeypatch)
    with serving() as stub:
        yield stub


@pytest.fixture
def batch(stub: BatchStub) -> Any:
    return a_client(stub.url)


@functools.cache
def a_session() -> Any:
    return boto3.Session("AKIAONE", "secret", "token", "eu-west-1")  # it reads the service models once


def a_client(url: str, service: str = "batch", patience_s: float = 0.5) -> Any:
    config = Config(retries={"total_max_attempts": 1}, read_timeout=patience_s, max_pool_connections=20)
    return a_session().client(service, endpoint_url=url, config=config)


def submit(batch: Any, name: str = "work", **more: Any) -> str:
    asked = {"jobName": name, "jobQueue": "queue", "jobDefinition": "definition", **more}
    return str(batch.submit_job(**asked)["jobId"])


def seen(batch: Any, *job_ids: str) -> dict[str, Any]:
    return {job["jobId"]: job for job in batch.describe_jobs(jobs=list(job_ids))["jobs"]}


def is_in(status: str, batch: Any, job_id: str) -> bool:
    return bool(seen(batch, job_id)[job_id]["status"] == status)


def listed(batch: Any, **asked: Any) -> list[str]:
    answer = batch.list_jobs(**({"jobQueue": "queue"} | asked))
    return [job["jobId"] for job in answer["jobSummaryList"]]


def named(name: str) -> list[dict[str, Any]]:
    return [{"name": "JOB_NAME", "values": [name]}]


def test_a_job_is_described_as_it_moves_with_all_its_attempts(stub: BatchStub, batch: Any) -> None:
    job_id = submit(batch, tags={"token": "t"}, timeout={"attemptDurationSeconds": 60})
    fresh = seen(batch, job_id)[job_id]
    assert (fresh["status"], fresh["tags"], fresh["attempts"]) == ("SUBMITTED", {"token": "t"}, [])
    assert "startedAt" not in fresh

    stub.runnable(job_id, "MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT")
    assert seen(batch, job_id)[job_id]["statusReason"] == "MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT"
    stub.run(job_id)
    running = seen(batch, job_id)[job_id]
    assert running["startedAt"]
    assert "statusReason" not in running
    assert running["container"]["logStreamName"].endswith(f"{job_id}-1")

    stub.retry(job_id, 137, "OutOfMemoryError: Container killed due to memory usage")
    again = seen(batch, job_id)[job_id]
    assert again["status"] == "RUNNABLE"
    assert "startedAt" not in again
    assert again["attempts"][0]["container"]["exitCode"] == 137

    stub.run(job_id)
    assert seen(batch, job_id)[job_id]["container"]["logStreamName"].endswith(f"{job_id}-2")
    stub.fail(job_id, 3)
    failed = seen(batch, job_id)[job_id]
    assert (failed["status"], failed["container"]["exitCode"], len(failed["attempts"])) == ("FAILED", 3, 2)
    stub.succeed(job_id)
    assert seen(batch, job_id)[job_id]["status"] == "FAILED", "an end is final"


def test_a_lost_host_leaves_no_exit_code_and_a_timeout_says_so(stub: BatchStub, batch: Any) -> None:
    lost, late = submit(batch), submit(batch)
    for job_id, ends in ((lost, stub.host_terminated), (late, stub.time_out)):
        stub.run(job_id)
        ends(job_id)
    jobs = seen(batch, lost, late)
    assert "exitCode" not in jobs[lost]["container"]
    assert jobs[lost]["statusReason"].startswith("Host EC2")
    assert jobs[late]["statusReason"] == "Job attempt duration exceeded timeout"


def test_what_is_submitted_is_checked_and_every_request_makes_a_job(stub: BatchStub, batch: Any) -> None:
    stub.known_queues, stub.known_definitions = ["queue"], ["definition"]
    for wrong, told in (
        ({"jobQueue": "nope"}, "JobQueue nope not found."),
        ({"jobDefinition": "nope:3"}, "JobDefinition name nope:3 does not exist or is not in ACTIVE status"),
        ({"jobName": "a.b"}, "Job name should match valid pattern"),
        ({"jobName": "a" * 129}, "Job name should match valid pattern"),
        ({"arrayProperties": {"size": 1}}, "Array size"),
    ):
        with pytest.raises(batch.exceptions.ClientException, match=told):
            submit(batch, **wrong)
    assert stub.submitted() == []
    first = submit(batch, jobQueue="arn:aws:batch:eu-west-1:123456789012:job-queue/queue")
    second = submit(batch, jobDefinition="definition:7", parameters={"a": "b"})
    assert [job["jobId"] for job in stub.submitted("work")] == [first, second]
    assert stub.submitted("work")[1]["parameters"] == {"a": "b"}


def test_at_most_a_hundred_ids_are_described_and_the_unknown_are_absent(stub: BatchStub, batch: Any) -> None:
    ids = stub.seed_jobs(100)
    orders = [[job["jobId"] for job in batch.describe_jobs(jobs=ids)["jobs"]] for _ in range(2)]
    assert sorted(orders[0]) == sorted(ids)
    assert orders != [ids, ids]
    with pytest.raises(batch.exceptions.ClientException, match="Maximum number of jobs supported is 100"):
        batch.describe_jobs(jobs=[*ids, "more"])
    assert list(seen(batch, ids[0], "no-such-job")) == ids[:1]
    stub.vanish(ids[0])
    assert seen(batch, ids[0]) == {}
    assert [call.ids for call in stub.calls] == [100, 100, 101, 2, 1]


def test_a_new_job_appears_late_and_is_listed_later(stub: BatchStub, batch: Any) -> None:
    stub.appear_after_s, stub.listing_lag_s = 30.0, 30.0
    job_id = submit(batch)
    assert seen(batch, job_id) == {}
    stub.appear_after_s = 0.1
    until(lambda: job_id in seen(batch, job_id))
    assert listed(batch, filters=named("work")) == []
    stub.listing_lag_s = 0.1
    assert listed(batch, filters=named("work")) == [job_id]


def test_a_listing_shows_running_jobs_unless_a_name_is_asked_for(stub: BatchStub, batch: Any) -> None:
    waiting, running, other = submit(batch, "Work-1"), submit(batch, "work-2"), submit(batch, "other")
    stub.run(running)
    assert listed(batch) == [running]
    assert listed(batch, jobStatus="SUBMITTED") == [other, waiting]
    assert listed(batch, jobStatus="RUNNING", filters=named("wORK-1")) == [waiting]
    assert listed(batch, filters=named("work*")) == [running, waiting]
    assert listed(batch, filters=named("work")) == []
    assert listed(batch, jobQueue="another", filters=named("work*")) == []
    for asked in ({}, {"jobQueue": "queue", "arrayJobId": waiting}):
        with pytest.raises(batch.exceptions.ClientException, match="Exactly one"):
            batch.list_jobs(**asked)


def test_a_listing_comes_in_pages_of_a_hundred_with_filters(stub: BatchStub, batch: Any) -> None:
    ids = stub.seed_jobs(250, "seed")
    pages = batch.get_paginator("list_jobs").paginate(jobQueue="queue", filters=named("seed"))
    sizes = [[job["jobId"] for job in page["jobSummaryList"]] for page in pages]
    assert [len(page) for page in sizes] == [100, 100, 50]
    assert [job_id for page in sizes for job_id in page] == ids[::-1]
    assert len(listed(batch)) == 250
    assert len(listed(batch, maxResults=7)) == 7


def test_an_array_shows_pending_until_its_last_child_has_ended(stub: BatchStub, batch: Any) -> None:
    job_id = submit(batch, arrayProperties={"size": 3})
    stub.children(job_id, SUCCEEDED=1, RUNNING=1, RUNNABLE=1)
    parent = seen(batch, job_id)[job_id]
    assert parent["status"] == "PENDING"
    assert parent["arrayProperties"]["size"] == 3
    summary = parent["arrayProperties"]["statusSummary"]
    assert {name: count for name, count in summary.items() if count} == {
        "SUCCEEDED": 1,
        "RUNNING": 1,
        "RUNNABLE": 1,
    }
    assert listed(batch, jobQueue="", arrayJobId=job_id) == [f"{job_id}:1"]
    stub.succeed(f"{job_id}:1")
    stub.fail(f"{job_id}:2")
    assert seen(batch, job_id)[job_id]["status"] == "FAILED"
    assert seen(batch, f"{job_id}:0")[f"{job_id}:0"]["arrayProperties"]["index"] == 0


def test_the_nodes_of_a_job_follow_it_and_have_the_logs(stub: BatchStub, batch: Any) -> None:
    job_id = submit(batch, nodeOverrides={"numNodes": 2})
    stub.run(job_id)
    assert listed(batch, jobQueue="", multiNodeJobId=job_id) == [f"{job_id}#1", f"{job_id}#0"]
    jobs = seen(batch, job_id, f"{job_id}#0")
    assert "container" not in jobs[job_id]
    assert jobs[job_id]["nodeProperties"]["mainNode"] == 0
    assert jobs[f"{job_id}#0"]["nodeDetails"] == {"nodeIndex": 0, "isMainNode": True}
    assert jobs[f"{job_id}#0"]["container"]["logStreamName"]


def test_cancel_does_nothing_to_a_running_job_and_terminate_ends_it(stub: BatchStub, batch: Any) -> None:
    waiting, running, done = (submit(batch) for _ in range(3))
    stub.run(running)
    stub.succeed(done)
    for job_id in (waiting, running, done, "no-such-job"):
        batch.cancel_job(jobId=job_id, reason="enough")
    jobs = seen(batch, waiting, running, done)
    assert (jobs[waiting]["status"], jobs[waiting]["statusReason"]) == ("FAILED", "enough")
    assert jobs[waiting]["isCancelled"]
    assert (jobs[running]["status"], jobs[running]["isCancelled"]) == ("RUNNING", False)

    stub.terminate_takes_s = 0.3
    for job_id in (running, done, "no-such-job"):
        batch.terminate_job(jobId=job_id, reason="really")
    ending = seen(batch, running)[running]
    assert (ending["status"], ending["isTerminated"]) == ("RUNNING", True)
    until(lambda: stub.job(running)["status"] != "RUNNING")
    jobs = seen(batch, running, done)
    assert (jobs[running]["status"], jobs[running]["statusReason"]) == ("FAILED", "really")
    assert (jobs[done]["status"], jobs[done]["isTerminated"]) == ("SUCCEEDED", False)


def test_a_job_may_end_by_itself_before_it_is_terminated(stub: BatchStub, batch: Any) -> None:
    stub.terminate_takes_s = 0.2
    job_id = submit(batch)
    stub.run(job_id)
    batch.terminate_job(jobId=job_id, reason="enough")
    stub.succeed(job_id)
    time.sleep(0.2)
    assert seen(batch, job_id)[job_id]["status"] == "SUCCEEDED"


def test_a_terminated_array_takes_its_children_with_it(stub: BatchStub, batch: Any) -> None:
    job_id = submit(batch, arrayProperties={"size": 3})
    stub.children(job_id, SUCCEEDED=1, RUNNING=1)
    batch.terminate_job(jobId=job_id, reason="enough")
    parent = seen(batch, job_id)[job_id]
    assert (parent["status"], parent["statusReason"]) == ("FAILED", "enough")
    assert parent["arrayProperties"]["statusSummary"]["FAILED"] == 2


def test_the_plural_calls_take_fifty_ids_and_fail_in_part(stub: BatchStub, batch: Any) -> None:
    ids = stub.seed_jobs(51)
    with pytest.raises(batch.exceptions.ClientException, match="50"):
        batch.terminate_jobs(jobs=ids, reason="enough")
    stub.refuse(ids[0])
    answer = batch.terminate_jobs(jobs=[ids[0], ids[1], "no-such-job"], reason="enough")
    assert answer["successful"] == [ids[1], "no-such-job"]
    assert [(error["job"], error["code"]) for error in answer["errors"]] == [(ids[0], "ServerException")]
    assert stub.job(ids[0])["status"] == "RUNNING"
    assert stub.job(ids[1])["status"] == "FAILED"
    stub.has_plural = False
    with pytest.raises(ClientError) as caught:
        batch.cancel_jobs(jobs=ids[:2], reason="enough")
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 404


@pytest.mark.parametrize(
    ("kind", "code", "status"),
    [
        ("throttled", "TooManyRequestsException", 429),
        ("throttled_400", "ThrottlingException", 400),
        ("server_error", "ServerException", 500),
        ("html", "502", 502),
        ("access_denied", "AccessDeniedException", 403),
        ("expired_token", "ExpiredTokenException", 403),
        ("unknown_token", "UnrecognizedClientException", 403),
        ("clock_skew", "InvalidSignatureException", 403),
    ],
)
def test_botocore_reads_each_refusal(
    stub: BatchStub, batch: Any, kind: FaultKind, code: str, status: int
) -> None:
    stub.fault("*", kind, times=3, retry_after_s=2)
    sts, logs = a_client(stub.url, "sts"), a_client(stub.url, "logs")
    for ask in (
        lambda: submit(batch),
        sts.get_caller_identity,
        lambda: logs.get_log_events(logGroupName="group", logStreamName="stream"),
    ):
        with pytest.raises(ClientError) as caught:
            ask()
        answer = caught.value.response
        assert (answer["Error"]["Code"], answer["ResponseMetadata"]["HTTPStatusCode"]) == (code, status)
        assert answer["ResponseMetadata"]["HTTPHeaders"]["retry-after"] == "2"
    assert stub.submitted() == []
    submit(batch)


def test_an_html_page_with_200_looks_to_botocore_like_an_empty_answer(stub: BatchStub, batch: Any) -> None:
    stub.fault("DescribeJobs", "html", status=200)
    assert "jobs" not in batch.describe_jobs(jobs=["any"])


def test_a_lost_answer_leaves_a_job(stub: BatchStub, batch: Any) -> None:
    stub.fault("SubmitJob", "lost_answer", matching="unlucky")
    submit(batch, "lucky")
    with pytest.raises(ConnectionClosedError):
        submit(batch, "unlucky")
    assert len(stub.submitted("unlucky")) == 1
    assert (stub.calls[-1].status, stub.calls[-1].performed) == (0, True)
    submit(batch, "unlucky")


@pytest.mark.parametrize("performed", [True, False])
def test_a_hanging_call_is_performed_or_not(stub: BatchStub, batch: Any, *, performed: bool) -> None:
    stub.fault("SubmitJob", "hang", performed=performed)
    with pytest.raises(ReadTimeoutError):
        submit(batch)
    assert len(stub.submitted()) == performed


def test_an_answer_may_stop_in_its_middle(stub: BatchStub, batch: Any) -> None:
    stub.fault("SubmitJob", "slow_body", seconds=0.05)
    submit(batch)
    stub.fault("SubmitJob", "slow_body")
    with pytest.raises(ReadTimeoutError):
        submit(batch)
    assert len(stub.submitted()) == 2


def test_faults_count_skip_and_end(stub: BatchStub, batch: Any) -> None:
    stub.fault("*", "throttled", times=2, after=1)
    batch.describe_jobs(jobs=[])
    for _ in range(2):
        with pytest.raises(ClientError):
            batch.describe_jobs(jobs=[])
    batch.describe_jobs(jobs=[])
    assert [call.status for call in stub.calls] == [200, 429, 429, 200]
    stub.fault("*", "throttled", times=None)
    stub.clear_faults()
    batch.describe_jobs(jobs=[])
    with pytest.raises(ValueError, match="no such fault"):
        stub.fault("DescribeJob", "throttled")


def test_a_request_signed_too_long_ago_performs_nothing(stub: BatchStub, batch: Any) -> None:
    submit(batch, "in-time")
    stub.fault("SubmitJob", "delay", seconds=0.3)
    with ThreadPoolExecutor() as pool:
        sending = pool.submit(submit, a_client(stub.url, patience_s=5), "late")
        until(lambda: len(stub.calls) == 2)
        stub.clock_ahead_s = 301.0  # the request is on its way for minutes
        with pytest.raises(ClientError, match=r"Signature expired: .* is now earlier than"):
            sending.result()
    assert stub.submitted("late") == []
    assert (stub.calls[-1].status, stub.calls[-1].performed) == (403, False)
    stub.clock_ahead_s = -310.0
    with pytest.raises(ClientError, match=r"Signature not yet current: .* is still later than"):
        submit(batch)


def test_calls_over_the_limit_are_throttled(stub: BatchStub, batch: Any) -> None:
    stub.calls_per_s = 0.1
    batch.describe_jobs(jobs=[])
    with pytest.raises(ClientError, match="TooManyRequestsException"):
        batch.describe_jobs(jobs=[])
    stub.calls_per_s = 1000
    batch.describe_jobs(jobs=[])


def test_every_call_is_recorded_with_who_made_it(stub: BatchStub, batch: Any) -> None:
    stub.delay_s = 0.2
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: batch.describe_jobs(jobs=["a", "b"]), range(8)))
    assert stub.calls_per_operation() == {"DescribeJobs": 8}
    assert stub.max_concurrency == 4
    assert stub.connections == 4
    call = stub.calls[0]
    assert (call.ids, call.access_key, call.session_token) == (2, "AKIAONE", "token")
    assert call.user_agent.startswith("Boto3/")
    assert "attempt=1; max=1" in call.attempt


def test_log_events_are_read_in_pages_to_the_same_token(stub: BatchStub, batch: Any) -> None:
    job_id = submit(batch)
    stub.run(job_id)
    stub.write_log(job_id, ["one", "two", "three"])
    stub.log_page_size = 2
    logs = a_client(stub.url, "logs")
    asked = {
        "logGroupName": "/aws/batch/job",
        "logStreamName": stub.job(job_id)["container"]["logStreamName"],
    }
    first = logs.get_log_events(**asked, startFromHead=True)
    second = logs.get_log_events(**asked, startFromHead=True, nextToken=first["nextForwardToken"])
    third = logs.get_log_events(**asked, startFromHead=True, nextToken=second["nextForwardToken"])
    messages = [[event["message"] for event in page["events"]] for page in (first, second, third)]
    assert messages == [["one", "two"], ["three"], []]
    assert third["nextForwardToken"] == second["nextForwardToken"]
    since = logs.get_log_events(**asked, startTime=first["events"][1]["timestamp"])
    assert [event["message"] for event in since["events"]] == ["two", "three"]
    with pytest.raises(logs.exceptions.ResourceNotFoundException):
        logs.get_log_events(**asked | {"logStreamName": "none"})


def test_roles_and_callers_have_names(stub: BatchStub) -> None:
    sts = a_client(stub.url, "sts")
    assert sts.get_caller_identity()["Account"] == "123456789012"
    role = sts.assume_role(RoleArn="arn:aws:iam::123456789012:role/other", RoleSessionName="session")
    assert role["Credentials"]["SessionToken"] == "assumed-token"


def test_jobs_may_run_by_plan_and_all_at_once(stub: BatchStub, batch: Any) -> None:
    stub.starts_after_s, stub.runs_for_s = 0.1, 0.3
    job_id = submit(batch)
    for status in ("SUBMITTED", "RUNNING", "SUCCEEDED"):
        until(functools.partial(is_in, status, batch, job_id))
    ids = stub.seed_jobs(1000, status="RUNNABLE")
    for status in ("STARTING", "RUNNING", "SUCCEEDED"):
        stub.bump()
        assert {job["status"] for job in seen(batch, *ids[:100]).values()} == {status}


def test_the_stub_in_its_own_process_is_driven_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    use_aws_environment(monkeypatch)
    with serving_apart(listing_lag_s=30.0) as stub:
        batch = a_client(stub.url)
        job_id = submit(batch)
        stub.run(job_id)
        stub.amend(job_id, platformCapabilities=["FARGATE"])
        assert seen(batch, job_id)[job_id]["platformCapabilities"] == ["FARGATE"]
        assert listed(batch) == []
        stub.listing_lag_s = 0.0
        assert listed(batch) == [job_id]
        stub.fault("DescribeJobs", "throttled")
        with pytest.raises(ClientError):
            seen(batch, job_id)
        assert [call.status for call in reach(stub.url).calls] == [200, 200, 200, 200, 429]
        with pytest.raises(RuntimeError, match="KeyError"):
            stub.run("no-such-job")
        with pytest.raises(RuntimeError, match="no option listing_lag"):
            stub.set("listing_lag", 1)


@pytest.fixture
def moto(monkeypatch: pytest.MonkeyPatch) -> Iterator[MotoBatch]:
    use_aws_environment(monkeypatch)
    with moto_batch() as moto:
        yield moto


def test_moto_holds_a_job_until_it_is_told(moto: MotoBatch) -> None:
    batch = moto.client("batch")
    first, second, third = submit(batch), submit(batch), submit(batch)
    assert {job["status"] for job in seen(batch, first, second, third).values()} == {"RUNNABLE"}
    for job_id in (first, second, third):
        moto.run(job_id)
    assert {job["status"] for job in seen(batch, first, second, third).values()} == {"RUNNING"}
    moto.succeed(first)
    moto.fail(second, 3)
    batch.terminate_job(jobId=third, reason="enough")
    jobs = seen(batch, first, second, third)
    assert [jobs[job_id]["status"] for job_id in (first, second, third)] == ["SUCCEEDED", "FAILED", "FAILED"]
    assert jobs[second]["attempts"][0]["container"]["exitCode"] == 3
    assert jobs[third]["statusReason"] == "enough"
    moto.reset()
    assert listed(batch, filters=named("work")) == []


def test_moto_has_logs_and_a_queue_of_events(moto: MotoBatch) -> None:
    batch, logs, sqs = moto.client("batch"), moto.client("logs"), moto.client("sqs")
    job_id = submit(batch)
    moto.run(job_id)
    moto.write_log(job_id, ["one", "two"])
    stream = seen(batch, job_id)[job_id]["container"]["logStreamName"]
    events = logs.get_log_events(logGroupName="/aws/batch/job", logStreamName=stream)["events"]
    assert [event["message"] for event in events] == ["one", "two"]
    queue_url = moto.make_queue()
    moto.announce(queue_url, job_id, status="SUCCEEDED")
    (message,) = sqs.receive_message(QueueUrl=queue_url)["Messages"]
    event = json.loads(message["Body"])
    assert (event["detail-type"], event["detail"]["jobId"]) == ("Batch Job State Change", job_id)
    assert event["detail"]["status"] == "SUCCEEDED"


def test_the_environment_of_a_test_has_nothing_of_the_developers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "production")
    use_aws_environment(monkeypatch, "http://127.0.0.1:1")
    assert aws_environment("http://127.0.0.1:1").items() <= os.environ.items()
    client = boto3.Session().client("batch")
    assert client.meta.endpoint_url == "http://127.0.0.1:1"
    assert client.meta.region_name == "eu-west-1"
