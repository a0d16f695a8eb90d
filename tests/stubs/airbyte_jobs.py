"""Airbyte's jobs as its server keeps them: their transitions, and what holds for those of one connection."""

import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

WORKSPACE = "c0ffee00-0000-4000-8000-000000000001"
CONNECTION = "11111111-1111-4111-8111-111111111111"

TRANSITIONS = {
    "pending": {"queued", "running", "failed", "cancelled", "incomplete"},
    "queued": {"pending", "running", "cancelled", "failed"},
    "running": {"incomplete", "succeeded", "failed", "cancelled"},
    "incomplete": {"pending", "running", "failed", "cancelled", "succeeded"},
    "succeeded": set[str](),
    "failed": set[str](),
    "cancelled": set[str](),
}
OPEN = ("pending", "queued", "running", "incomplete")


@dataclass(slots=True)
class StubJob:
    """One job; times are those of the server's clock."""

    id: int
    connection_id: str
    kind: str
    created: float
    updated: float
    status: str = "pending"
    rows: int | None = None
    size: int | None = None
    failures: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_open(self) -> bool:
        return self.status not in TRANSITIONS or bool(TRANSITIONS[self.status])


class Refused(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, title: str, message: str = "") -> None:
        super().__init__(message or title)
        self.status = status
        self.title = title
        self.message = message


class AirbyteJobs:
    """The jobs of one server.

    Attributes that a test sets at any time: `known_connections` (None: any UUID is one); `unknown_status`,
    with which a job that is not there is answered; `starts_as`: the status after POST; `cuts_times`: no
    seconds in times; `one_at_a_time`: a second job of a connection is refused; `clock_ahead_s`.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.known_connections: list[str] | None = None
        self.workspace = WORKSPACE
        self.workspaces: dict[str, str] = {}
        self.unknown_status = 404
        self.starts_as = "running"
        self.cuts_times = False
        self.one_at_a_time = True
        self.clock_ahead_s = 0.0
        self._jobs: dict[int, StubJob] = {}
        self._last_id = 1000

    def now(self) -> float:
        return time.time() + self.clock_ahead_s

    # What a test does

    def seed(self, count: int = 1, *, status: str = "running", connection_id: str | None = None) -> list[int]:
        """Make jobs of somebody else, each of a connection of its own unless one is named."""
        with self.lock:
            return [self._make(connection_id or str(uuid.uuid4()), "sync", status).id for _ in range(count)]

    def move(
        self,
        job_id: int,
        status: str,
        *,
        rows: int | None = None,
        size: int | None = None,
        silent: bool = False,
    ) -> None:
        """Let a job change its status. `silent`: without its `updatedAt`, as if the feed had missed it."""
        with self.lock:
            job = self._jobs[job_id]
            if job.status in TRANSITIONS and status in TRANSITIONS and status not in TRANSITIONS[job.status]:
                raise ValueError(f"a job that is {job.status} does not become {status}")
            job.status = status
            job.rows = rows if rows is not None else job.rows
            job.size = size if size is not None else job.size
            if not silent:
                job.updated = self.now()

    def move_all(self, status: str, *, every: int = 1) -> None:
        """Let all jobs, or each so manieth, change their status."""
        with self.lock:
            for job_id in self.job_ids()[::every]:
                self.move(job_id, status)

    def age(self, seconds: float) -> None:
        """Let all that happened have happened so much longer ago."""
        with self.lock:
            for job in self._jobs.values():
                job.created -= seconds
                job.updated -= seconds

    def succeed(self, job_id: int, rows: int = 10, size: int = 1000) -> None:
        with self.lock:
            if self._jobs[job_id].status != "running":
                self.move(job_id, "running")
            self.move(job_id, "succeeded", rows=rows, size=size)

    def fail(self, job_id: int, *failures: dict[str, Any]) -> None:
        with self.lock:
            self._jobs[job_id].failures = list(failures)
            self.move(job_id, "failed")

    def vanish(self, job_id: int) -> None:
        with self.lock:
            del self._jobs[job_id]

    def status(self, job_id: int) -> str:
        with self.lock:
            return self._jobs[job_id].status

    def job_ids(self) -> list[int]:
        with self.lock:
            return sorted(self._jobs)

    # What the server does

    def start(self, connection_id: str, kind: str) -> StubJob:
        with self.lock:
            self.ensure_known(connection_id)
            if self.one_at_a_time and self.running(connection_id) is not None:
                raise Refused(409, "try-again-later", f"A sync is already running for: {connection_id}")
            return self._make(connection_id, kind, self.starts_as)

    def ensure_known(self, connection_id: str) -> None:
        if self.known_connections is not None and connection_id not in self.known_connections:
            titles = {403: "forbidden", 404: "resource-not-found", 409: "state-conflict"}
            title = titles[self.unknown_status]
            raise Refused(self.unknown_status, title, f"could not find connection {connection_id}")

    def running(self, connection_id: str) -> StubJob | None:
        """Return the newest job of the connection that has not ended."""
        open_jobs = [job for job in self._jobs.values() if job.connection_id == connection_id and job.is_open]
        return max(open_jobs, key=lambda job: job.id, default=None)

    def get(self, job_id: int) -> StubJob:
        with self.lock:
            if job_id not in self._jobs:
                titles = {403: "forbidden", 404: "resource-not-found", 409: "state-conflict"}
                raise Refused(
                    self.unknown_status, titles[self.unknown_status], f"could not find job {job_id}"
                )
            return self._jobs[job_id]

    def cancel(self, job_id: int) -> StubJob:
        """End whatever runs on the job's connection, as Airbyte does."""
        with self.lock:
            asked = self.get(job_id)
            job = self.running(asked.connection_id)
            if job is None:
                raise Refused(409, "state-conflict", "Job is not currently running")
            job.status, job.updated = "cancelled", self.now()
            return asked

    def listed(self, query: dict[str, str]) -> list[StubJob]:
        """Return the jobs that pass the filters, in their order: the oldest first unless told otherwise."""
        created, updated = _span(query, "createdAt"), _span(query, "updatedAt")
        with self.lock:
            jobs = [
                job
                for job in self._jobs.values()
                if created[0] <= job.created <= created[1]
                and updated[0] <= job.updated <= updated[1]
                and self._passes(job, query)
            ]
        key, _, direction = query.get("orderBy", "createdAt|ASC").partition("|")
        by = {"createdAt": lambda job: int(job.created), "updatedAt": lambda job: int(job.updated)}[key]
        # No tie-breaker: those of the same second come in whatever order the table has them.
        return sorted(jobs, key=by, reverse=direction == "DESC")

    def _passes(self, job: StubJob, query: dict[str, str]) -> bool:
        workspaces = query.get("workspaceIds", "")
        return (
            job.connection_id == query.get("connectionId", job.connection_id)
            and job.kind == query.get("jobType", job.kind)
            and job.status == query.get("status", job.status)
            and (not workspaces or self.workspace_of(job.connection_id) in workspaces.split(","))
        )

    def workspace_of(self, connection_id: str) -> str:
        return self.workspaces.get(connection_id, self.workspace)

    def shown(self, job: StubJob) -> dict[str, Any]:
        """Return the JobResponse."""
        found: dict[str, Any] = {
            "jobId": job.id,
            "status": job.status,
            "jobType": job.kind,
            "startTime": self._time(job.created),
            "connectionId": job.connection_id,
        }
        if not job.is_open:
            found["lastUpdatedAt"] = self._time(job.updated)
            found["duration"] = f"PT{max(0, round(job.updated - job.created))}S"
        if job.rows is not None:
            found |= {"rowsSynced": job.rows, "bytesSynced": job.size or 0}
        return found

    def _time(self, at: float) -> str:
        form = "%Y-%m-%dT%H:%MZ" if self.cuts_times else "%Y-%m-%dT%H:%M:%SZ"
        return time.strftime(form, time.gmtime(at))

    def _make(self, connection_id: str, kind: str, status: str) -> StubJob:
        self._last_id += 1
        now = self.now()
        job = self._jobs[self._last_id] = StubJob(self._last_id, connection_id, kind, now, now, status)
        return job


def _span(query: dict[str, str], key: str) -> tuple[float, float]:
    start, end = query.get(f"{key}Start"), query.get(f"{key}End")
    return _seconds(start) if start else float("-inf"), _seconds(end) if end else float("inf")


def _seconds(text: str) -> float:
    import datetime as dt

    return dt.datetime.fromisoformat(text).timestamp()
