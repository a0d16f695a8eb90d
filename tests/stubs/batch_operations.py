"""What AWS Batch's API does with the stub's jobs; CloudWatch Logs' GetLogEvents besides."""

import base64
import json
import re
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any

from tests.stubs.aws_wire import Payload, Refused
from tests.stubs.batch_state import ENDED, STARTED, STATUSES, BatchState, Job, arn, short

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_SUMMARY = frozenset(
    (
        *("jobArn", "jobId", "jobName", "createdAt", "status", "statusReason", "startedAt", "stoppedAt"),
        *("arrayProperties", "jobDefinition", "isCancelled", "isTerminated", "shareIdentifier"),
    )
)


class BatchOperations(BatchState):
    """The operations, by name, as functions of a request.

    Attributes that a test sets at any time, besides those of BatchState:
    `known_queues`, `known_definitions`: names; None knows all. `page_size`: at most so many on a page of
    ListJobs, `log_page_size` of GetLogEvents; `has_plural`: False knows no TerminateJobs and CancelJobs.
    """

    def __init__(self, **options: Any) -> None:
        self.known_queues: list[str] | None = None
        self.known_definitions: list[str] | None = None
        self.page_size = 1000
        self.log_page_size = 10_000
        self.has_plural = True
        self._operations: dict[str, Callable[[Payload], Payload | bytes]] = {
            "SubmitJob": self._submit,
            "DescribeJobs": self._describe,
            "ListJobs": self._list,
            "CancelJob": lambda asked: self._stop_one(asked, self._cancel),
            "TerminateJob": lambda asked: self._stop_one(asked, self._terminate),
            "CancelJobs": lambda asked: self._stop_many(asked, self._cancel),
            "TerminateJobs": lambda asked: self._stop_many(asked, self._terminate),
            "DescribeJobQueues": self._queues,
            "DescribeJobDefinitions": self._definitions,
            "GetLogEvents": self._log_events,
        }
        super().__init__(**options)

    # SubmitJob

    def _submit(self, asked: Payload) -> Payload:
        name, queue, definition = asked["jobName"], asked["jobQueue"], asked["jobDefinition"]
        if not _NAME.fullmatch(name):
            raise _refusal("Job name should match valid pattern")
        if self.known_queues is not None and short(queue) not in self.known_queues:
            raise _refusal(f"JobQueue {queue} not found.")
        known = self.known_definitions
        if known is not None and not {short(definition), short(definition).split(":")[0]} & set(known):
            raise _refusal(f"JobDefinition name {definition} does not exist or is not in ACTIVE status")
        if not 2 <= asked.get("arrayProperties", {}).get("size", 2) <= 10_000:
            raise _refusal("Array size must be between 2 and 10,000")
        job = self._make(asked, self.first_status)
        if self.runs_for_s is not None:
            self._after(self.starts_after_s, lambda: self._unless_ended(job.id, self.run))
            self._after(
                self.starts_after_s + self.runs_for_s, lambda: self._unless_ended(job.id, self.succeed)
            )
        return {"jobArn": job.detail["jobArn"], "jobName": name, "jobId": job.id}

    def _unless_ended(self, job_id: str, move: Callable[[str], None]) -> None:
        if job_id in self._jobs and self._jobs[job_id].status not in ENDED:
            move(job_id)

    # DescribeJobs and ListJobs

    def _describe(self, asked: Payload) -> bytes:
        if len(asked["jobs"]) > 100:
            raise _refusal("Maximum number of jobs supported is 100")
        seen_s = time.monotonic() - self.appear_after_s
        found = [self._jobs.get(job_id) for job_id in dict.fromkeys(asked["jobs"])]
        parts = [self._encoded(job) for job in found if job is not None and job.created_s <= seen_s]
        self._random.shuffle(parts)
        return b'{"jobs":[' + b",".join(parts) + b"]}"

    def _list(self, asked: Payload) -> Payload:
        named = [asked[key] for key in ("jobQueue", "arrayJobId", "multiNodeJobId") if asked.get(key)]
        if len(named) != 1:
            raise _refusal("Exactly one of jobQueue, arrayJobId, multiNodeJobId must be provided")
        filters = asked.get("filters") or []
        if asked.get("jobQueue"):
            if self.known_queues is not None and short(named[0]) not in self.known_queues:
                raise _refusal(f"JobQueue {named[0]} not found.")
            queue = short(named[0])
            jobs = [job for job in self._filtered(filters) if short(job.detail["jobQueue"]) == queue]
        else:
            filters = []  # they do not apply to children and nodes
            whole = self._jobs.get(named[0])
            jobs = list(whole.parts) if whole else []
        if not filters:
            status = asked.get("jobStatus", "RUNNING")
            jobs = [job for job in jobs if job.status == status]
        below = int(base64.b64decode(asked["nextToken"])) if asked.get("nextToken") else 1 << 62
        seen_s = time.monotonic() - self.listing_lag_s
        jobs = [job for job in jobs if job.number < below and job.created_s <= seen_s]
        jobs.sort(key=lambda job: -job.number)
        size = min(asked.get("maxResults") or 1000, 100 if filters else 1000, self.page_size)
        answer: Payload = {"jobSummaryList": [self._summary(job) for job in jobs[:size]]}
        if len(jobs) > size:
            answer["nextToken"] = base64.b64encode(str(jobs[size - 1].number).encode()).decode()
        return answer

    def _filtered(self, filters: list[Payload]) -> list[Job]:
        if not filters:
            return [job for job in self._jobs.values() if job.whole is None]
        if len(filters) > 1 or filters[0]["name"] != "JOB_NAME":
            raise _refusal("Only one filter can be used, and this stub knows JOB_NAME")
        found: dict[int, Job] = {}
        for value in filters[0]["values"]:
            wanted = value.lower()
            names = [wanted]
            if wanted.endswith("*"):
                names = [name for name in self._named if name.startswith(wanted[:-1])]
            found.update({job.number: job for name in names for job in self._named.get(name, ())})
        return list(found.values())

    def _summary(self, job: Job) -> Payload:
        detail = json.loads(self._encoded(job))
        summary = {name: value for name, value in detail.items() if name in _SUMMARY}
        container = {k: v for k, v in detail.get("container", {}).items() if k in {"exitCode", "reason"}}
        return {**summary, "container": container} if container else summary

    # CancelJob and TerminateJob

    def _stop_one(self, asked: Payload, stop: Callable[[str, str], None]) -> Payload:
        for name in ("jobId", "reason"):
            if not asked.get(name):
                raise _refusal(f"'{name}' is a required field (cannot be an empty string)")
        stop(asked["jobId"], asked["reason"])
        return {}

    def _stop_many(self, asked: Payload, stop: Callable[[str, str], None]) -> Payload:
        if not self.has_plural:
            raise Refused("", "UnknownOperationException", 404)
        if len(asked["jobs"]) > 50:
            raise _refusal("Maximum number of jobs supported is 50")
        answer: Payload = {"successful": [], "errors": []}
        for job_id in asked["jobs"]:
            code, message = self._refused.get(job_id, ("", ""))
            if code:
                answer["errors"].append({"job": job_id, "code": code, "message": message})
            else:
                stop(job_id, asked["reason"])
                answer["successful"].append(job_id)
        return answer

    def _cancel(self, job_id: str, reason: str) -> None:
        self._stop(job_id, reason, "isCancelled", STATUSES[:3])

    def _terminate(self, job_id: str, reason: str) -> None:
        self._stop(job_id, reason, "isTerminated", STATUSES[:5])

    def _stop(self, job_id: str, reason: str, flag: str, statuses: Iterable[str]) -> None:
        job = self._jobs.get(job_id)
        if job is None or job.status not in statuses:
            return
        job.detail[flag] = True
        job.stop_reason = reason
        job.encoded = None
        if job.is_array:
            for part in job.parts:
                self._stop(part.id, reason, flag, statuses)
            return  # the parent ends with its last child
        delay_s = self.terminate_takes_s if flag == "isTerminated" else 0.0
        exit_code = 137 if job.status in STARTED else None
        self._after(
            delay_s, lambda: self._unless_ended(job_id, lambda id_: self.fail(id_, exit_code, None, reason))
        )

    # Queues, definitions, logs

    def _queues(self, asked: Payload) -> Payload:
        names = [short(name) for name in asked.get("jobQueues") or self.known_queues or ["queue"]]
        return {
            "jobQueues": [
                {
                    "jobQueueName": name,
                    "jobQueueArn": arn("job-queue", name),
                    "state": "ENABLED",
                    "status": "VALID",
                    "priority": 1,
                    "computeEnvironmentOrder": [],
                }
                for name in names
                if self.known_queues is None or name in self.known_queues
            ]
        }

    def _definitions(self, asked: Payload) -> Payload:
        wanted = asked.get("jobDefinitions") or [asked.get("jobDefinitionName", "definition")]
        names = [short(name).split(":")[0] for name in wanted]
        return {
            "jobDefinitions": [
                {
                    "jobDefinitionName": name,
                    "jobDefinitionArn": arn("job-definition", name),
                    "revision": 1,
                    "status": "ACTIVE",
                    "type": "container",
                }
                for name in names
                if self.known_definitions is None or name in self.known_definitions
            ]
        }

    def _log_events(self, asked: Payload) -> Payload:
        stream = self._logs.get((asked.get("logGroupName", ""), asked["logStreamName"]))
        if stream is None:
            raise Refused("The specified log stream does not exist.", "ResourceNotFoundException")
        since, until = asked.get("startTime", 0), asked.get("endTime", 1 << 62)
        events = [event for event in stream if since <= event["timestamp"] < until]
        limit = min(asked.get("limit") or 10_000, 10_000, self.log_page_size)
        token = asked.get("nextToken", "")
        if token:
            position = int(token.split("/")[1])
            start = position if token.startswith("f/") else max(0, position - limit)
            page = events[start : start + limit if token.startswith("f/") else position]
        else:
            start = 0 if asked.get("startFromHead") else max(0, len(events) - limit)
            page = events[start : start + limit]
        return {
            "events": page,
            "nextForwardToken": f"f/{start + len(page)}/s",
            "nextBackwardToken": f"b/{start}/s",
        }


def _refusal(message: str) -> Refused:
    """Return a refusal worded as Batch words its own."""
    return Refused(f"Error executing request, Exception : {message}, RequestId: {uuid.uuid4()}")
