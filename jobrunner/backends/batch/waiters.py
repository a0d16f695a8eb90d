"""`BatchWaiters`: waiting for jobs by botocore's waiter models, awaited and cancellable."""

import asyncio
import json
import sys
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from jobrunner.backends.batch.client import LATER, BatchClient, Connected, at_least_s, failure_of
from jobrunner.backends.batch.connection import Aws, BatchConnection
from jobrunner.backends.batch.trouble import AwsError
from jobrunner.errors import BackendError, UsageError
from jobrunner.extras import require
from jobrunner.log_limits import Seldom
from jobrunner.logs import get_logger

log = get_logger(__name__)

_sleep = asyncio.sleep  # see client.py

_GONE_AFTER = 10  # answers in a row without a job that was there


def _acceptor(state: str, *statuses: str) -> dict[str, Any]:
    """Return an acceptor for the answer in which all jobs have one of these statuses."""
    having = f"jobs[?contains(`{json.dumps(statuses)}`, status)]"
    all_of_them = f"jobs && length({having}) == length(jobs)"
    return {"matcher": "path", "argument": all_of_them, "expected": True, "state": state}


def _model(delay_s: int, most: int, *acceptors: dict[str, Any]) -> dict[str, Any]:
    return {
        "operation": "DescribeJobs",
        "delay": delay_s,
        "maxAttempts": most,
        "acceptors": list(acceptors),
    }


_ENDED = (BatchClient.SUCCESS_STATE, BatchClient.FAILURE_STATE)
_ONE_FAILED = {"matcher": "pathAny", "argument": "jobs[].status", "expected": "FAILED", "state": "failure"}

# Source of the names, delays and attempts: Airflow's batch_waiters.json.
_DEFAULTS = {
    "version": 2,
    "waiters": {
        "JobExists": _model(2, 100, _acceptor("success", *BatchClient.INTERMEDIATE_STATES, *_ENDED)),
        "JobRunning": _model(5, 100, _acceptor("success", BatchClient.RUNNING_STATE, *_ENDED)),
        "JobComplete": _model(300, 288, _ONE_FAILED, _acceptor("success", BatchClient.SUCCESS_STATE)),
    },
}


class BatchWaiter:
    """One waiter: `config` is its own copy of the model; its `delay` (seconds) and `max_attempts` can be set.

    `max_missing`: after so many answers in a row without a job that is asked for, it counts as gone.
    """

    def __init__(self, name: str, config: Any, aws: Aws) -> None:
        self.name = name
        self.config = config
        self.max_missing = sys.maxsize
        self._aws = aws
        self._seldom = Seldom()

    async def wait(self, **params: Any) -> None:
        """Ask with `params` (`jobs=[job_id]`, at most 100) until the model says that it is enough.

        A call that was throttled or lost is one attempt like others. Raises `JobFailed` with the cause
        where the model takes a failed job for a failure, `AwsError` at once for every other refusal, and
        `BackendError` where the attempts are used up, or the job is gone.
        """
        from botocore import xform_name

        operation, acceptors = xform_name(self.config.operation), self.config.acceptors
        wanted = frozenset(params.get("jobs") or ())
        attempts = missing = 0
        while True:
            trouble: AwsError | None = None
            try:
                response = await self._aws.call("batch", operation, **params)
            except AwsError as error:
                trouble = error
                response = {"Error": {"Code": error.code, "Message": str(error)}}
            attempts += 1
            is_missing = trouble is None and bool(wanted - _ids(response))
            accepted = None if is_missing else next((a for a in acceptors if a.matcher_func(response)), None)
            if accepted is not None and accepted.state == "success":
                return
            if accepted is not None and accepted.state == "failure":
                raise self._failure(accepted, response) from trouble
            if accepted is None and trouble is not None and trouble.kind not in LATER:
                raise trouble
            if trouble is None:
                missing = missing + 1 if is_missing else 0
            self._ensure_patience(attempts, missing, trouble, response)
            pause_s = self.config.delay if trouble is None else at_least_s(self.config.delay, trouble)
            await _sleep(pause_s)

    def _failure(self, accepted: Any, response: Mapping[str, Any]) -> Exception:
        for job in response.get("jobs") or ():
            if job.get("status") == BatchClient.FAILURE_STATE:
                return failure_of(job)
        return BackendError(f"waiter {self.name} ended with a failure: {accepted.explanation}")

    def _ensure_patience(
        self, attempts: int, missing: int, trouble: AwsError | None, response: Mapping[str, Any]
    ) -> None:
        if missing >= self.max_missing:
            raise BackendError(f"waiter {self.name}: AWS Batch knows the job no more, in {missing} answers")
        if attempts >= self.config.max_attempts:
            statuses = [str(job.get("status")) for job in response.get("jobs") or ()]
            last = str(trouble) if trouble else ", ".join(statuses) or "AWS Batch does not know the job"
            raise BackendError(f"waiter {self.name} exceeded its max_attempts ({attempts}); last: {last}")
        if trouble is not None:
            self._seldom.warning(
                log, "AWS Batch was not asked: the waiter goes on", waiter=self.name, error=trouble
            )


class BatchWaiters(Connected):
    """Waits for jobs by waiter models: JobExists (each 2 s), JobRunning (each 5 s), JobComplete (each 300 s).

    The models give up after 100, 100 and 288 attempts; `wait_for_job` keeps to the first number alone.
    `waiter_config`: models of your own, in botocore's form; `default_config` is a copy to begin with.
    `connection`: as of `BatchClient`. Raises `UsageError` for models that botocore does not read.
    """

    def __init__(
        self,
        connection: str | BatchConnection | Aws | None = None,
        waiter_config: Mapping[str, Any] | None = None,
    ) -> None:
        library = require("botocore.waiter", "aws", "BatchWaiters")
        self._config = deepcopy(dict(waiter_config)) if waiter_config is not None else self.default_config
        try:
            self._model = library.WaiterModel(deepcopy(self._config))
        except (KeyError, library.WaiterConfigError) as error:
            raise UsageError(f"The waiter_config is none of botocore's: {error}.") from error
        super().__init__(connection)

    @property
    def default_config(self) -> dict[str, Any]:
        """A copy of our three models."""
        return deepcopy(_DEFAULTS)

    @property
    def waiter_config(self) -> dict[str, Any]:
        """A copy of the models in use."""
        return deepcopy(self._config)

    def list_waiters(self) -> list[str]:
        """Return the names of the models in use."""
        return list(self._model.waiter_names)

    def get_waiter(self, name: str) -> BatchWaiter:
        """Return a new waiter: `await waiters.get_waiter("JobRunning").wait(jobs=[job_id])`.

        Raises `UsageError` for a name that is not in the models.
        """
        if name not in self._model.waiter_names:
            raise UsageError(f"There is no waiter {name!r} (known: {', '.join(self.list_waiters())}).")
        return BatchWaiter(name, self._model.get_waiter(name), self.aws)

    async def wait_for_job(self, job_id: str, delay: float | None = None) -> None:
        """Let JobExists, JobRunning and JobComplete wait for the job, in turn, each at a jittered pace.

        JobExists gives up after its own attempts. The others have no end: bound them by
        `asyncio.timeout`. `delay`: seconds before the first look; None: a random one.
        Raises as `BatchWaiter.wait` does.
        """
        if not job_id:
            raise UsageError("There is no job to wait for: its id is empty.")
        await BatchClient.delay(delay)
        for name in ("JobExists", "JobRunning", "JobComplete"):
            waiter = self.get_waiter(name)
            waiter.config.delay = BatchClient.add_jitter(waiter.config.delay, width=2, minima=1)
            if name != "JobExists":
                waiter.config.max_attempts, waiter.max_missing = sys.maxsize, _GONE_AFTER
            await waiter.wait(jobs=[job_id])


def _ids(response: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(job.get("jobId", "") for job in response.get("jobs") or ())
