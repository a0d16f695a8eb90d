"""moto's AWS over real HTTP, with Batch jobs that move only when the test says so."""

import contextlib
import datetime as dt
import json
import logging
import os
import time
import uuid
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any
from unittest import mock

import boto3
import pytest
from moto.batch.models import Job, batch_backends
from moto.batch_simple.models import BatchSimpleBackend
from moto.core.config import default_user_config
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.moto_api._internal.models import moto_api_backend
from moto.server import ThreadedMotoServer

REGION = "eu-west-1"
LOG_GROUP = "/aws/batch/job"


def aws_environment(url: str | None = None, region: str = REGION) -> dict[str, str]:
    """Return variables that hold fake credentials and keep boto3 from everything of the developer's."""
    variables = {
        "AWS_ACCESS_KEY_ID": "AKIATESTING",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_SESSION_TOKEN": "testing-token",
        "AWS_DEFAULT_REGION": region,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    return variables if url is None else {**variables, "AWS_ENDPOINT_URL": url}


def use_aws_environment(monkeypatch: pytest.MonkeyPatch, url: str | None = None) -> None:
    """Set `aws_environment` and nothing else of AWS's: no profile, no role of the developer's."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in aws_environment(url).items():
        monkeypatch.setenv(name, value)


class MotoBatch:
    """A moto server with the Batch queue `queue` and the job definition `definition` (container, EC2)."""

    def __init__(self, url: str) -> None:
        self.url = url

    def client(self, service: str) -> Any:
        """Return a client of boto3 that needs nothing of the environment."""
        session = boto3.Session("AKIATESTING", "testing", region_name=REGION)
        return session.client(service, endpoint_url=self.url)

    def reset(self) -> None:
        """Forget everything but the queue and the definition, which are made anew."""
        moto_api_backend.reset()
        self.set_up()

    def set_up(self, queue: str = "queue", definition: str = "definition") -> None:
        """Make a role, a compute environment, a queue and a job definition."""
        with contextlib.closing(self.client("iam")) as iam:
            role = iam.create_role(RoleName=f"{queue}-role", AssumeRolePolicyDocument="{}")
        batch = self._batch
        environment = batch.create_compute_environment(
            computeEnvironmentName=f"{queue}-environment",
            type="UNMANAGED",
            state="ENABLED",
            serviceRole=role["Role"]["Arn"],
        )["computeEnvironmentArn"]
        batch.create_job_queue(
            jobQueueName=queue,
            state="ENABLED",
            priority=1,
            computeEnvironmentOrder=[{"order": 1, "computeEnvironment": environment}],
        )
        batch.register_job_definition(
            jobDefinitionName=definition,
            type="container",
            containerProperties={"image": "busybox", "vcpus": 1, "memory": 128, "command": ["true"]},
        )

    @cached_property
    def _batch(self) -> Any:
        return self.client("batch")

    def run(self, job_id: str) -> None:
        job = _job(job_id)
        job.job_started_at = _now()
        job.log_stream_name = job._stream_name
        job._start_attempt()
        job.status = "RUNNING"

    def succeed(self, job_id: str) -> None:
        self._end(job_id, 0, "Essential container in task exited")

    def fail(
        self, job_id: str, exit_code: int = 1, status_reason: str = "Essential container in task exited"
    ) -> None:
        self._end(job_id, exit_code, status_reason)

    def _end(self, job_id: str, exit_code: int, status_reason: str) -> None:
        job = _job(job_id)
        if job.latest_attempt is None:
            self.run(job_id)
        job.exit_code = exit_code
        job.job_stopped_reason = status_reason
        job.latest_attempt["container"]["exitCode"] = exit_code
        job.latest_attempt["statusReason"] = status_reason
        job._mark_stopped(success=exit_code == 0)

    def write_log(self, job_id: str, lines: Iterable[str]) -> None:
        """Add lines to the stream of a job's container."""
        logs = self.client("logs")
        stream = _job(job_id)._stream_name
        with contextlib.suppress(logs.exceptions.ResourceAlreadyExistsException):
            logs.create_log_group(logGroupName=LOG_GROUP)
        with contextlib.suppress(logs.exceptions.ResourceAlreadyExistsException):
            logs.create_log_stream(logGroupName=LOG_GROUP, logStreamName=stream)
        start_ms = int(time.time() * 1000)
        events = [{"timestamp": start_ms + index, "message": line} for index, line in enumerate(lines)]
        logs.put_log_events(logGroupName=LOG_GROUP, logStreamName=stream, logEvents=events)

    def make_queue(self, name: str = "batch-events") -> str:
        """Make an SQS queue and return its URL."""
        with contextlib.closing(self.client("sqs")) as sqs:
            return str(sqs.create_queue(QueueName=name)["QueueUrl"])

    def announce(self, queue_url: str, job_id: str, **detail: Any) -> None:
        """Send what EventBridge sends about a job's state; `detail` replaces fields of the job's."""
        body = json.dumps(event_of({**_job(job_id).describe(), **detail}))
        with contextlib.closing(self.client("sqs")) as sqs:
            sqs.send_message(QueueUrl=queue_url, MessageBody=body)


def event_of(job: dict[str, Any]) -> dict[str, Any]:
    """Return EventBridge's "Batch Job State Change" about a job described as DescribeJobs does."""
    return {
        "version": "0",
        "id": str(uuid.uuid4()),
        "detail-type": "Batch Job State Change",
        "source": "aws.batch",
        "account": DEFAULT_ACCOUNT_ID,
        "time": dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "region": REGION,
        "resources": [job["jobArn"]],
        "detail": job,
    }


@contextlib.contextmanager
def moto_batch() -> Iterator[MotoBatch]:
    """Serve moto on the loopback, its Batch set up; the moto of this process is as before afterwards."""
    logger = logging.getLogger("werkzeug")  # it would tell every request
    level = logger.level
    logger.setLevel(logging.WARNING)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    with (
        mock.patch.object(BatchSimpleBackend, "_mark_job_as_finished", _hold),
        mock.patch.object(Job, "terminate", _terminate),
        mock.patch.dict(default_user_config, {"batch": {"use_docker": False}}),
    ):
        server.start()
        try:
            moto = MotoBatch("http://{}:{}".format(*server.get_host_and_port()))
            moto.reset()
            yield moto
        finally:
            server.stop()
            if server._server is not None:
                server._server.server_close()
            moto_api_backend.reset()
            logger.setLevel(level)


def _hold(self: Any, include_start_attempt: bool, job: Any) -> None:
    self.backend._jobs[job.job_id] = job
    job.status = "RUNNABLE"


def _terminate(self: Any, reason: str) -> None:
    if not self.job_stopped:
        self.stop = True
        self.job_stopped_reason = reason
        self._mark_stopped(success=False)


def _job(job_id: str) -> Any:
    return batch_backends[DEFAULT_ACCOUNT_ID][REGION]._jobs[job_id]


def _now() -> dt.datetime:
    return dt.datetime.now()  # noqa: DTZ005 - as moto keeps its times
