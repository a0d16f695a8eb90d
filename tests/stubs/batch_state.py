"""The jobs of a stubbed AWS Batch, and what a test makes of them."""

import heapq
import itertools
import json
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.stubs.aws_wire import ACCOUNT, ARN, REGION, Payload

STATUSES = ("SUBMITTED", "PENDING", "RUNNABLE", "STARTING", "RUNNING", "SUCCEEDED", "FAILED")
ENDED = frozenset(("SUCCEEDED", "FAILED"))
STARTED = frozenset(("STARTING", "RUNNING"))


@dataclass(slots=True, eq=False)
class Job:
    detail: Payload
    request: Payload
    number: int
    created_s: float
    parts: "list[Job]" = field(default_factory=list)
    whole: "Job | None" = None
    amended: Payload = field(default_factory=dict)
    encoded: bytes | None = None
    tally: Counter[str] = field(default_factory=Counter)
    """How many parts have each status."""
    stop_reason: str | None = None

    @property
    def is_array(self) -> bool:
        return "size" in self.detail.get("arrayProperties", {})

    @property
    def id(self) -> str:
        return str(self.detail["jobId"])

    @property
    def status(self) -> str:
        return str(self.detail["status"])


class BatchState:
    """The jobs and the moves a test makes with them, from any thread.

    Attributes that a test sets at any time: `appear_after_s`: a new job is absent from DescribeJobs so long;
    `listing_lag_s`: from ListJobs. `terminate_takes_s`: from TerminateJob to FAILED. `first_status`: a new
    job's. `starts_after_s`, `runs_for_s`: with the latter a new job runs and succeeds by itself.
    """

    def __init__(self, **options: Any) -> None:
        self.appear_after_s = 0.0
        self.listing_lag_s = 0.0
        self.terminate_takes_s = 0.0
        self.starts_after_s = 0.0
        self.runs_for_s: float | None = None
        self.first_status = "SUBMITTED"
        for name, value in options.items():
            self.set(name, value)
        self._lock = threading.RLock()
        self._jobs: dict[str, Job] = {}
        self._named: dict[str, list[Job]] = {}
        self._numbers = itertools.count(1)
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._refused: dict[str, tuple[str, str]] = {}
        self._logs: dict[tuple[str, str], list[Payload]] = {}
        self._random = random.Random()

    # What a test asks and sets

    def set(self, name: str, value: Any) -> None:
        """Set an attribute, by name: a misspelt one is an error."""
        if name.startswith("_") or not hasattr(self, name):
            raise AttributeError(f"{type(self).__name__} has no option {name}")
        setattr(self, name, value)

    def job(self, job_id: str) -> Payload:
        """Return a job as DescribeJobs would, without any lag."""
        with self._lock:
            self._settle()
            return dict(json.loads(self._encoded(self._jobs[job_id])))

    def job_ids(self) -> list[str]:
        """Return the ids of all jobs but children and nodes, oldest first."""
        with self._lock:
            return [job.id for job in self._jobs.values() if job.whole is None]

    def submitted(self, name: str | None = None) -> list[Payload]:
        """Return the SubmitJob requests that made a job, each with its `jobId`, under one name or all."""
        with self._lock:
            whole = (job for job in self._jobs.values() if job.whole is None and job.request)
            return [
                {**job.request, "jobId": job.id} for job in whole if name in {None, job.detail["jobName"]}
            ]

    # What a test makes of the jobs

    def runnable(self, job_id: str, status_reason: str | None = None) -> None:
        """Let a job wait, with a reason such as MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT."""
        self._move(job_id, "RUNNABLE", statusReason=status_reason)

    def starting(self, job_id: str) -> None:
        self._move(job_id, "STARTING", statusReason=None)

    def run(self, job_id: str) -> None:
        self._move(job_id, "RUNNING", statusReason=None, startedAt=_now_ms(), stoppedAt=None)

    def succeed(self, job_id: str) -> None:
        self._end(job_id, "SUCCEEDED", 0, None, "Essential container in task exited")

    def fail(
        self,
        job_id: str,
        exit_code: int | None = 1,
        reason: str | None = None,
        status_reason: str = "Essential container in task exited",
    ) -> None:
        """End a job: `reason` is the container's (OutOfMemoryError: ...), `status_reason` the job's."""
        self._end(job_id, "FAILED", exit_code, reason, status_reason)

    def time_out(self, job_id: str) -> None:
        self.fail(job_id, 137, None, "Job attempt duration exceeded timeout")

    def host_terminated(self, job_id: str) -> None:
        self.fail(job_id, None, None, "Host EC2 (instance i-0123456789abcdef0) terminated.")

    def retry(
        self,
        job_id: str,
        exit_code: int | None = 1,
        reason: str | None = None,
        status_reason: str = "Essential container in task exited",
    ) -> None:
        """End an attempt and let the job wait for its next one."""
        with self._lock:
            self._record_attempt(self._jobs[job_id], exit_code, reason, status_reason)
            self._move(job_id, "RUNNABLE", startedAt=None)

    def children(self, job_id: str, **summary: int) -> None:
        """Give so many children each status, the furthest status first: `SUCCEEDED=2, RUNNING=1`."""
        with self._lock:
            parts = iter(self._jobs[job_id].parts)
            for status, count in sorted(summary.items(), key=lambda item: -STATUSES.index(item[0])):
                for part in itertools.islice(parts, count):
                    self._reach(part, status)

    def amend(self, job_id: str, **fields: Any) -> None:
        """Replace fields of a job's description by any shape; None removes one."""
        with self._lock:
            job = self._jobs[job_id]
            job.amended.update(fields)
            job.encoded = None

    def vanish(self, job_id: str) -> None:
        """Forget a job, as Batch does some days after its end."""
        with self._lock:
            job = self._jobs.pop(job_id)
            for part in job.parts:
                del self._jobs[part.id]
            if job.whole is None:
                self._named[job.detail["jobName"].lower()].remove(job)

    def seed_jobs(
        self, count: int, name: str = "seed", status: str = "RUNNING", queue: str = "queue"
    ) -> list[str]:
        """Make jobs quickly and return their ids."""
        with self._lock:
            asked = {"jobName": name, "jobQueue": queue, "jobDefinition": "seeded"}
            jobs = [self._make(asked, status, asked=False) for _ in range(count)]
            return [job.id for job in jobs]

    def bump(self, status: str | None = None) -> None:
        """Move every job that has not ended to its next status (the last: SUCCEEDED), or to `status`."""
        with self._lock:
            for job in self._jobs.values():
                if job.whole is None and job.status not in ENDED:
                    status_now = (job.parts[0] if job.is_array else job).status
                    self._reach(job, status or STATUSES[STATUSES.index(status_now) + 1])

    def refuse(self, job_id: str, code: str = "ServerException", message: str = "Try again") -> None:
        """Answer TerminateJobs and CancelJobs with an error for this id; code "" ends it."""
        with self._lock:
            self._refused[job_id] = (code, message)

    def write_log(self, job_id: str, lines: Iterable[str], group: str = "/aws/batch/job") -> None:
        """Add lines to the stream of a job's present or last attempt, a millisecond apart."""
        with self._lock:
            job = self._jobs[job_id]
            attempt = len(job.detail["attempts"]) + (job.status not in ENDED)
            stream = self._logs.setdefault((group, _stream(job, max(1, attempt))), [])
            start = max(_now_ms(), stream[-1]["timestamp"] + 1 if stream else 0)
            stream += [
                {"timestamp": start + index, "message": line, "ingestionTime": start + index}
                for index, line in enumerate(lines)
            ]

    # Moving

    def _settle(self) -> None:
        while self._later and self._later[0][0] <= time.monotonic():
            heapq.heappop(self._later)[2]()

    def _after(self, delay_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._later, (time.monotonic() + delay_s, next(self._numbers), action))
        self._settle()

    def _reach(self, job: Job, status: str) -> None:
        if status in ENDED:
            if status == "SUCCEEDED":
                self.succeed(job.id)
            else:
                self.fail(job.id)
        elif status == "RUNNING":
            self.run(job.id)
        else:
            self._move(job.id, status)

    def _move(self, job_id: str, status: str, **fields: Any) -> None:
        with self._lock:
            job = self._jobs[job_id]
            if status not in ENDED:
                for part in job.parts:
                    self._move(part.id, status, **fields)
                if job.is_array:
                    return  # its children say what it is
            if job.whole is not None:
                job.whole.tally.update({job.status: -1, status: 1})
            job.detail.update({"status": status, **fields})
            for name in [name for name, value in job.detail.items() if value is None]:
                del job.detail[name]
            job.encoded = None
            if job.whole is not None and job.whole.is_array:
                self._follow_children(job.whole)

    def _follow_children(self, parent: Job) -> None:
        parent.encoded = None
        if parent.status not in ENDED:
            parent.detail["status"] = "PENDING"  # while any child is at work
            ended = parent.tally["SUCCEEDED"] + parent.tally["FAILED"]
            if ended == len(parent.parts):
                status = "FAILED" if parent.tally["FAILED"] else "SUCCEEDED"
                reason = (parent.stop_reason or "Array Child Job failed") if status == "FAILED" else None
                self._move(parent.id, status, statusReason=reason, stoppedAt=_now_ms())

    def _end(
        self, job_id: str, status: str, exit_code: int | None, reason: str | None, status_reason: str
    ) -> None:
        with self._lock:
            job = self._jobs[job_id]
            for part in job.parts:
                if part.status not in ENDED:
                    self._end(part.id, status, exit_code, reason, status_reason)
            if job.status in ENDED:
                return
            if not job.is_array:
                self._record_attempt(job, exit_code, reason, status_reason)
            self._move(job_id, status, statusReason=status_reason, stoppedAt=_now_ms())

    def _record_attempt(
        self, job: Job, exit_code: int | None, reason: str | None, status_reason: str
    ) -> None:
        if job.status not in STARTED and exit_code is None:
            return  # it never had a container
        for key in ("exitCode", "reason"):  # a former attempt's
            job.detail.get("container", {}).pop(key, None)
        result = {"exitCode": exit_code, "reason": reason}
        container: Payload = {
            "containerInstanceArn": f"arn:aws:ecs:{REGION}:{ACCOUNT}:container-instance/c/{uuid.uuid4().hex}",
            "taskArn": f"arn:aws:ecs:{REGION}:{ACCOUNT}:task/c/{uuid.uuid4().hex}",
            "logStreamName": _stream(job, len(job.detail["attempts"]) + 1),
            "networkInterfaces": [],
            **{name: value for name, value in result.items() if value is not None},
        }
        attempt = {
            "container": {} if "nodeProperties" in job.detail else container,
            "startedAt": job.detail.setdefault("startedAt", _now_ms()),
            "stoppedAt": _now_ms(),
            "statusReason": status_reason,
        }
        job.detail["attempts"].append(attempt)
        if "container" in job.detail:
            job.detail["container"].update(container)

    # Making

    def _make(self, request: Payload, status: str, *, asked: bool = True) -> Job:
        job = self._add(str(uuid.uuid4()), request, status, request if asked else {})
        if "arrayProperties" in request:
            size = request["arrayProperties"]["size"]
            job.detail["arrayProperties"] = {"size": size}
            for index in range(size):
                part = self._add(f"{job.id}:{index}", request, status, {}, job)
                part.detail["arrayProperties"] = {"index": index, "statusSummary": {}}
        elif "nodeOverrides" in request:
            count = request["nodeOverrides"].get("numNodes", 2)
            job.detail["nodeProperties"] = {"numNodes": count, "mainNode": 0, "nodeRangeProperties": []}
            del job.detail["container"]
            for index in range(count):
                part = self._add(f"{job.id}#{index}", request, status, {}, job)
                part.detail["nodeDetails"] = {"nodeIndex": index, "isMainNode": index == 0}
        return job

    def _add(
        self, job_id: str, request: Payload, status: str, kept: Payload, whole: Job | None = None
    ) -> Job:
        overrides = request.get("containerOverrides", {})
        detail = {
            "jobArn": f"{ARN}:job/{job_id}",
            "jobName": request["jobName"],
            "jobId": job_id,
            "jobQueue": arn("job-queue", request["jobQueue"]),
            "status": status,
            "attempts": [],
            "createdAt": _now_ms(),
            "dependsOn": request.get("dependsOn", []),
            "jobDefinition": arn("job-definition", request["jobDefinition"]),
            "parameters": request.get("parameters", {}),
            "container": {
                "image": "example.org/image:1",
                "command": overrides.get("command", []),
                "environment": overrides.get("environment", []),
                "resourceRequirements": overrides.get("resourceRequirements", []),
                "volumes": [],
                "mountPoints": [],
                "ulimits": [],
                "networkInterfaces": [],
                "secrets": [],
            },
            "tags": request.get("tags", {}),
            "platformCapabilities": ["EC2"],
            "eksAttempts": [],
            "isCancelled": False,
            "isTerminated": False,
        }
        detail |= {k: request[k] for k in ("timeout", "retryStrategy", "shareIdentifier") if k in request}
        if status == "RUNNING":
            detail["startedAt"] = _now_ms()
        job = Job(detail, kept, next(self._numbers), time.monotonic(), whole=whole)
        self._jobs[job_id] = job
        if whole is not None:
            whole.parts.append(job)
            whole.tally[status] += 1
        else:
            self._named.setdefault(request["jobName"].lower(), []).append(job)
        return job

    def _encoded(self, job: Job) -> bytes:
        if job.encoded is None:
            detail = job.detail
            if detail["status"] == "RUNNING" and "container" in detail:
                detail["container"]["logStreamName"] = _stream(job, len(detail["attempts"]) + 1)
            if job.is_array:
                detail["arrayProperties"]["statusSummary"] = dict.fromkeys(STATUSES, 0) | job.tally
            shown = {name: value for name, value in {**detail, **job.amended}.items() if value is not None}
            job.encoded = json.dumps(shown).encode()
        return job.encoded


def _now_ms() -> int:
    return int(time.time() * 1000)


def _stream(job: Job, attempt: int) -> str:
    return f"definition/default/{job.id.replace(':', '_')}-{attempt}"


def short(name_or_arn: str) -> str:
    return name_or_arn.rsplit("/", 1)[-1]


def arn(kind: str, name_or_arn: str) -> str:
    name = short(name_or_arn)
    revision = ":1" if kind == "job-definition" and ":" not in name else ""
    return name_or_arn if name_or_arn.startswith("arn:") else f"{ARN}:{kind}/{name}{revision}"
