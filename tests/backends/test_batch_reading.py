"""What an entry of DescribeJobs becomes: phase, sentence, detail."""

import json
import logging
from typing import Any

import pytest

from jobrunner.backends.batch.reading import observation_of
from jobrunner.states import Phase

STREAM = "definition/default/0123456789abcdef"


def a_job(status: str = "RUNNING", **fields: Any) -> dict[str, Any]:
    return {
        "jobArn": "arn:aws:batch:eu-west-1:123456789012:job/876da822",
        "jobId": "876da822",
        "jobName": "nightly-0123",
        "jobQueue": "arn:aws:batch:eu-west-1:123456789012:job-queue/spot",
        "jobDefinition": "arn:aws:batch:eu-west-1:123456789012:job-definition/etl:7",
        "createdAt": 1790000000000,
        "status": status,
        **fields,
    }


def a_container(**fields: Any) -> dict[str, Any]:
    return {
        "image": "repo/etl",
        "command": ["etl", "--password", "hunter2"],
        "environment": [{"name": "DB", "value": "hunter2"}],
        "logStreamName": STREAM,
        **fields,
    }


def an_attempt(code: int | None = 1, reason: str | None = None, why: str | None = None) -> dict[str, Any]:
    container = {"exitCode": code, "reason": reason, "logStreamName": f"{STREAM}-old"}
    told = {key: value for key, value in container.items() if value is not None}
    return {
        "container": told,
        "statusReason": why or "Essential container in task exited",
        "startedAt": 1790000001000,
        "stoppedAt": 1790000002000,
    }


@pytest.mark.parametrize(
    ("status", "phase"),
    [
        ("SUBMITTED", Phase.WAITING),
        ("PENDING", Phase.WAITING),
        ("RUNNABLE", Phase.WAITING),
        ("STARTING", Phase.WAITING),
        ("RUNNING", Phase.RUNNING),
        ("SUCCEEDED", Phase.SUCCEEDED),
        ("FAILED", Phase.FAILED),
    ],
)
def test_each_of_batchs_words_has_its_phase(status: str, phase: Phase) -> None:
    seen = observation_of(a_job(status))
    assert (seen.phase, seen.external_state) == (phase, status)
    assert seen.message


def test_an_unknown_word_waits_is_shown_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        seen = [observation_of(a_job("HIBERNATING")) for _ in range(3)]
    assert {(each.phase, each.external_state) for each in seen} == {(Phase.WAITING, "HIBERNATING")}
    assert caplog.text.count("HIBERNATING") == 1


@pytest.mark.parametrize("flag", ["isTerminated", "isCancelled"])
def test_a_terminated_job_is_cancelled_and_tells_the_reason(flag: str) -> None:
    seen = observation_of(a_job("FAILED", **{flag: True}, statusReason="too slow"))
    assert (seen.phase, seen.message) == (Phase.CANCELLED, "too slow")


def test_our_own_reason_is_known_again_where_the_flags_are_missing() -> None:
    job = a_job("FAILED", statusReason="jobrunner: too slow")
    assert (observation_of(job).phase, observation_of(job).message) == (Phase.CANCELLED, "terminated")
    stopped = observation_of({**job, "container": a_container(exitCode=143)})
    assert stopped.message == "terminated: exit code 143 (SIGTERM)"
    assert stopped.detail["status_reason"] == "jobrunner: too slow"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {
                "statusReason": "Essential container in task exited",
                "container": a_container(
                    exitCode=137, reason="OutOfMemoryError: Container killed due to memory usage"
                ),
            },
            (
                "exit code 137 (SIGKILL): OutOfMemoryError: Container killed due to memory usage; "
                "Essential container in task exited"
            ),
        ),
        (
            {"statusReason": "Essential container in task exited", "container": a_container(exitCode=3)},
            "exit code 3: Essential container in task exited",
        ),
        (
            {"statusReason": "Host EC2 (instance i-0123456789abcdef0) terminated."},
            "Host EC2 (instance i-0123456789abcdef0) terminated",
        ),
        (
            {"statusReason": "Job attempt duration exceeded timeout", "container": a_container()},
            "Job attempt duration exceeded timeout",
        ),
        (
            {
                "statusReason": "Task failed to start",
                "container": a_container(reason="CannotPullContainerError: no such image"),
            },
            "CannotPullContainerError: no such image; Task failed to start",
        ),
        ({"statusReason": "Dependent Job failed"}, "Dependent Job failed"),
        ({}, "failed, and AWS Batch gave no reason"),
    ],
)
def test_a_failure_is_one_sentence_with_its_cause(fields: dict[str, Any], message: str) -> None:
    assert observation_of(a_job("FAILED", **fields)).message == message


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        ({"container": a_container(exitCode=137, reason="OutOfMemoryError: Container killed")}, "oom"),
        ({"statusReason": "Host EC2 (instance i-0123456789abcdef0) terminated."}, "preempted"),
        ({"container": a_container(exitCode=1)}, ""),
    ],
)
def test_a_cause_that_a_policy_may_name_is_known(fields: dict[str, Any], cause: str) -> None:
    assert observation_of(a_job("FAILED", **fields)).cause == cause
    assert observation_of(a_job("RUNNING", **fields)).cause == ""


def test_the_last_attempt_tells_the_cause_where_the_job_itself_does_not() -> None:
    job = a_job("FAILED", attempts=[an_attempt(1), an_attempt(137, "OutOfMemoryError")])
    assert observation_of(job).message == (
        "exit code 137 (SIGKILL): OutOfMemoryError; Essential container in task exited (after 2 attempts)"
    )


def test_a_retry_goes_back_to_runnable_and_says_so() -> None:
    job = a_job("RUNNABLE", attempts=[an_attempt(1)], retryStrategy={"attempts": 3})
    seen = observation_of(job)
    assert seen.phase is Phase.WAITING
    assert seen.has_started, "a job on its second attempt has started once"
    assert seen.message == ("RUNNABLE, attempt 2 of 3 after exit code 1: Essential container in task exited")


def test_an_attempt_that_still_runs_is_not_counted_as_ended() -> None:
    running = {"container": {"logStreamName": STREAM}, "startedAt": 1790000001000}
    seen = observation_of(a_job("RUNNING", attempts=[running]))
    assert (seen.message, seen.has_started) == ("RUNNING", True)


def test_what_holds_a_job_up_is_quoted() -> None:
    seen = observation_of(a_job("RUNNABLE", statusReason="MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT"))
    assert seen.message == "RUNNABLE: MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT"
    assert not seen.has_started


def test_an_array_tells_how_many_children_are_done() -> None:
    summary = {"SUCCEEDED": 37, "FAILED": 1, "RUNNING": 12, "RUNNABLE": 50, "STARTING": 0}
    job = a_job("PENDING", arrayProperties={"size": 100, "statusSummary": summary})
    seen = observation_of(job)
    assert (seen.phase, seen.message) == (Phase.RUNNING, "37 of 100 done, 1 failed")
    assert seen.detail["array"] == {
        "size": 100,
        "summary": {"SUCCEEDED": 37, "FAILED": 1, "RUNNING": 12, "RUNNABLE": 50},
    }


def test_an_array_none_of_whose_children_has_started_waits() -> None:
    job = a_job("PENDING", arrayProperties={"size": 3, "statusSummary": {"RUNNABLE": 3, "RUNNING": 0}})
    seen = observation_of(job)
    assert (seen.phase, seen.has_started) == (Phase.WAITING, False)
    assert seen.message == "0 of 3 done"


def test_a_failed_array_tells_how_many_children_failed() -> None:
    summary = {"SUCCEEDED": 99, "FAILED": 1}
    job = a_job(
        "FAILED",
        statusReason="Array Child Job failed",
        arrayProperties={"size": 100, "statusSummary": summary},
    )
    assert observation_of(job).message == "Array Child Job failed (99 of 100 done, 1 failed)"


def test_a_multi_node_job_is_where_its_main_node_is() -> None:
    seen = observation_of(a_job("RUNNING", nodeProperties={"numNodes": 4, "mainNode": 0}))
    assert (seen.phase, seen.message) == (Phase.RUNNING, "RUNNING, main node of 4")
    assert seen.detail["nodes"] == {"count": 4, "main": 0}


def test_the_guilty_container_of_an_ecs_task_is_named() -> None:
    containers = [
        {"name": "sidecar", "exitCode": 0},
        {"name": "main", "exitCode": 2, "reason": "bad input", "logStreamName": "main/1"},
    ]
    job = a_job(
        "FAILED",
        statusReason="Essential container in task exited",
        ecsProperties={"taskProperties": [{"containers": containers}]},
    )
    seen = observation_of(job)
    assert seen.message == "exit code 2 in container main: bad input; Essential container in task exited"
    assert seen.detail["log_streams"] == ["main/1"]


def test_a_pod_on_eks_tells_its_cause_by_its_attempts() -> None:
    attempt = {
        "podName": "aws-batch.1",
        "containers": [{"name": "default", "exitCode": 1, "reason": "Error"}],
        "statusReason": "Pod failed",
    }
    job = a_job("FAILED", eksAttempts=[attempt], eksProperties={"podProperties": {"containers": []}})
    seen = observation_of(job)
    assert seen.message == "exit code 1: Error; Pod failed"
    assert seen.detail["attempts"][0]["pod"] == "aws-batch.1"


def test_the_detail_keeps_what_a_person_asks_for() -> None:
    job = a_job(
        "FAILED",
        statusReason="Essential container in task exited",
        startedAt=1790000001000,
        stoppedAt=1790000002500,
        container=a_container(exitCode=3, reason="bad input"),
        attempts=[an_attempt(1), an_attempt(3, "bad input")],
    )
    assert observation_of(job).detail == {
        "job_name": "nightly-0123",
        "queue": "spot",
        "definition": "etl:7",
        "status_reason": "Essential container in task exited",
        "exit_code": 3,
        "reason": "bad input",
        "attempts": [
            {
                "status_reason": "Essential container in task exited",
                "exit_code": 1,
                "log_streams": [f"{STREAM}-old"],
                "started_at": "2026-09-21T14:13:21.000+00:00",
                "stopped_at": "2026-09-21T14:13:22.000+00:00",
            },
            {
                "status_reason": "Essential container in task exited",
                "exit_code": 3,
                "reason": "bad input",
                "log_streams": [f"{STREAM}-old"],
                "started_at": "2026-09-21T14:13:21.000+00:00",
                "stopped_at": "2026-09-21T14:13:22.000+00:00",
            },
        ],
        "log_streams": [STREAM],
        "created_at": "2026-09-21T14:13:20.000+00:00",
        "started_at": "2026-09-21T14:13:21.000+00:00",
        "stopped_at": "2026-09-21T14:13:22.500+00:00",
        "console": "https://eu-west-1.console.aws.amazon.com/batch/home?region=eu-west-1"
        "#jobs/detail/876da822",
    }


def test_no_environment_command_or_parameter_gets_into_the_row() -> None:
    job = a_job(
        container=a_container(secrets=[{"name": "TOKEN", "valueFrom": "hunter2"}]),
        parameters={"key": "hunter2"},
        tags={"owner": "hunter2"},
        attempts=[an_attempt()],
    )
    seen = observation_of(job)
    assert "hunter2" not in json.dumps(seen.detail) + seen.message


def test_an_answer_with_nothing_but_a_status_is_read() -> None:
    seen = observation_of({"jobId": "1", "status": "RUNNING"})
    assert (seen.phase, dict(seen.detail)) == (Phase.RUNNING, {})
