"""`BatchBackend`: AWS Batch behind the one boundary."""

import datetime as dt
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Self

from jobrunner.backends.base import (
    SEND_WITHIN_S,
    Absent,
    Found,
    Gone,
    LogLine,
    Observation,
    Patience,
    RemoteError,
    Unsure,
)
from jobrunner.backends.batch import events, logs
from jobrunner.backends.batch.connection import Aws, BatchConnection
from jobrunner.backends.batch.reading import REASON_PREFIX, observation_of
from jobrunner.backends.batch.spec import name_with_token, with_token
from jobrunner.backends.batch.trouble import NOTHING_DONE, AwsError, Kind
from jobrunner.bounded import Bounded, Pages
from jobrunner.clock import monotonic_s
from jobrunner.errors import NotSent, SubmitRejected, Throttled
from jobrunner.logs import get_logger
from jobrunner.settings import ConnectionSettings

log = get_logger(__name__)

DESCRIBE_MOST = 100
"""Ids a call. Source: DescribeJobs."""
TERMINATE_MOST = 50
"""Ids a call. Source: TerminateJobs."""

SIGNATURE_S = 300.0
"""How long AWS accepts a signature, counted from the time that stands in it."""
SKEW_S = 300.0
"""How far ahead the clock of the host that signed may be: its signature lives longer by that."""
LISTING_LAG_S = 60.0
"""How long a new job may be missing in ListJobs, which is eventually consistent."""
ABSENT_AFTER_S = SEND_WITHIN_S + SIGNATURE_S + SKEW_S + LISTING_LAG_S

_REASON_MOST = 1000
_NOBODY = "00000000-0000-0000-0000-000000000000"
_NO_CREDENTIALS_S = 20.0  # a machine's role is sometimes not there for a moment

# A person has to change something before such a request can be taken. What only this moment stands
# in the way of (an expired session, a wrong clock, the network) is waited for.
_FOR_GOOD = frozenset(
    {Kind.REFUSED, Kind.PERMISSION, Kind.CREDENTIALS, Kind.REGION, Kind.SETTINGS, Kind.NOT_AWS}
)


class BatchBackend:
    """AWS Batch, by boto3: 100 ids a call, shared clients, few threads, one limiter around every call.

    `absent_after_s`: for how many seconds after it was first looked for a submission must be missing
    before it counts as absent. `checks_signatures`: whether the endpoint lets in no request that was
    signed too long ago, without which nothing is ever absent; None: it does where it is AWS's own.
    """

    bulk_limit = DESCRIBE_MOST
    patience = Patience(call_s=60.0, appear_s=180.0, vanish_s=900.0)
    events: Callable[[], AsyncIterator[str]]
    """What was heard of jobs; there only where the connection has an `events_queue_url`."""

    def __init__(
        self,
        options: BatchConnection,
        *,
        absent_after_s: float = ABSENT_AFTER_S,
        checks_signatures: bool | None = None,
    ) -> None:
        self.aws = Aws(options)
        self._absent_after_s = absent_after_s
        self._checks_signatures = checks_signatures
        self._looked_for: Bounded[str, float] = Bounded()
        self._without_credentials_s: float | None = None
        self._has_plural = True
        queue_url = options.events_queue_url
        if queue_url is not None:
            self.events = lambda: events.job_ids(self.aws, queue_url)

    @classmethod
    def from_connection(cls, connection: ConnectionSettings) -> Self:
        """Return the backend behind a connection. Raises `SettingsError`."""
        return cls(BatchConnection.of(connection))

    @classmethod
    def check_connection(cls, connection: ConnectionSettings) -> None:
        """Refuse settings by which no backend can be made. Raises `SettingsError`."""
        BatchConnection.of(connection)

    async def check(self) -> str:
        """Ask for a job that nobody has, and say what answered. Raises `AwsError` with what failed."""
        await self.aws.call("batch", "describe_jobs", jobs=[_NOBODY])
        return f"AWS Batch answered DescribeJobs at {await self.aws.endpoint()}"

    # --- submitting ------------------------------------------------------------------------------

    async def submit(self, spec: Mapping[str, Any], token: str) -> str:
        """Submit a job under a name that ends with the token, in one request; return its jobId."""
        try:
            answer = await self.aws.call("batch", "submit_job", **with_token(spec, token))
        except AwsError as error:
            raise self._of_submission(error) from error
        self._without_credentials_s = None
        return str(answer["jobId"])

    def _of_submission(self, error: AwsError) -> Exception:
        told = str(error)
        if error.kind is Kind.THROTTLED:
            return Throttled(told, retry_after_s=error.retry_after_s)
        if error.kind in _FOR_GOOD or (error.kind is Kind.MISSING and self._have_been_missing()):
            return SubmitRejected(told)
        return NotSent(told) if error.kind in NOTHING_DONE else error

    def _have_been_missing(self) -> bool:
        now_s = monotonic_s()
        if self._without_credentials_s is None:
            self._without_credentials_s = now_s
        return now_s - self._without_credentials_s >= _NO_CREDENTIALS_S

    async def find(self, spec: Mapping[str, Any], token: str, since: dt.datetime) -> Found | Absent | Unsure:
        """Look for the submission by its name, until it must have been listed or can no longer arrive.

        The time is counted here, on the monotonic clock, from the first look on: the clocks of hosts,
        of the database and of AWS may differ, and a submission proven absent too early is done twice.
        """
        first_s = self._looked_for.setdefault(token, monotonic_s())
        begun_s = monotonic_s()
        name = name_with_token(spec["jobName"], token)
        found = await self._jobs_named(spec["jobQueue"], name)
        if found:
            self._looked_for.pop(token, None)
            return Found(found[0])
        if begun_s - first_s < min(self._absent_after_s, LISTING_LAG_S):
            return Unsure(since, f"no job {name} is listed yet")
        if not await self._signatures_are_checked():
            return Unsure(
                None,
                f"no job {name} is listed, but this endpoint checks no signatures, and a late submission "
                "cannot be ruled out",
            )
        if begun_s - first_s < self._absent_after_s:
            return Unsure(since, f"no job {name} is listed, but a late submission could still arrive")
        self._looked_for.pop(token, None)
        return Absent()

    async def _jobs_named(self, queue: str, name: str) -> list[str]:
        """Return the jobs of exactly that name, the oldest first."""
        found: list[tuple[int, str]] = []
        question: dict[str, Any] = {
            "jobQueue": queue,
            "filters": [{"name": "JOB_NAME", "values": [name]}],  # with it, jobs in every state are listed
        }
        pages = Pages(f"the list of the jobs {name} in the queue {queue}")
        while True:
            page = await self.aws.call("batch", "list_jobs", **question)
            jobs = page["jobSummaryList"]
            found += [(job.get("createdAt") or 0, job["jobId"]) for job in jobs if job.get("jobName") == name]
            if not page.get("nextToken"):
                return [job_id for _, job_id in sorted(found)]
            question["nextToken"] = page["nextToken"]
            pages.go_on(page["nextToken"])

    async def _signatures_are_checked(self) -> bool:
        if self._checks_signatures is None:
            self._checks_signatures = await self.aws.checks_signatures()
        return self._checks_signatures

    # --- watching --------------------------------------------------------------------------------

    async def fetch(self, ids: Sequence[str]) -> Mapping[str, Observation | Gone | RemoteError]:
        """Describe at most 100 jobs in one call; an id that is not in the answer is gone."""
        if not ids:
            return {}
        answer = await self._ask("describe_jobs", jobs=list(ids))
        seen = {job["jobId"]: job for job in answer["jobs"]}
        gone = Gone("AWS Batch does not know it (finished jobs are kept for some days)")
        return {each: observation_of(seen[each]) if each in seen else gone for each in ids}

    async def _ask(self, operation: str, **params: Any) -> dict[str, Any]:
        try:
            return await self.aws.call("batch", operation, **params)
        except AwsError as error:
            if error.kind is Kind.THROTTLED:
                raise Throttled(str(error), retry_after_s=error.retry_after_s) from error
            raise

    def logs(self, external_id: str, since: dt.datetime | None) -> AsyncIterator[LogLine]:
        """Yield a job's output from CloudWatch Logs, one attempt after the other."""
        return logs.lines(self.aws, external_id, since)

    # --- cancelling ------------------------------------------------------------------------------

    async def cancel(self, ids: Sequence[str], reason: str) -> Mapping[str, RemoteError]:
        """Terminate jobs, whatever their state, 50 a call; the reason becomes their `statusReason`."""
        told = f"{REASON_PREFIX}{' '.join(reason.split())}"[:_REASON_MOST]
        failed: dict[str, RemoteError] = {}
        for start in range(0, len(ids), TERMINATE_MOST):
            batch = list(ids[start : start + TERMINATE_MOST])
            failed |= await self._terminate(batch, told)
        return failed

    async def _terminate(self, ids: list[str], reason: str) -> dict[str, RemoteError]:
        if self._has_plural and len(ids) > 1:
            try:
                answer = await self._ask("terminate_jobs", jobs=ids, reason=reason)
            except AwsError as error:
                if error.kind not in {Kind.REFUSED, Kind.PERMISSION, Kind.SETTINGS, Kind.NOT_AWS}:
                    raise
                # An old endpoint, or a boto3 without it.
                self._has_plural = False
                log.info("TerminateJobs cannot be used here: terminating one by one", error=error)
            else:
                errors = {each.get("job"): each for each in answer.get("errors") or ()}
                return {each: _not_taken(errors[each]) for each in ids if each in errors}
        failed: dict[str, RemoteError] = {}
        for each in ids:
            try:
                await self._ask("terminate_job", jobId=each, reason=reason)
            except AwsError as error:
                failed[each] = RemoteError(str(error))
        return failed

    async def close(self) -> None:
        """Give the clients and threads back; the jobs go on."""
        await self.aws.close()


def _not_taken(error: Mapping[str, Any]) -> RemoteError:
    words = ": ".join(str(error[key]) for key in ("code", "message") if error.get(key))
    return RemoteError(words or "TerminateJobs gave no reason")
