"""`BatchClient`: one job of AWS Batch awaited in your own code, without a database and without a runner."""

import asyncio
import contextvars
import inspect
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from typing import Any, ClassVar, Protocol, Self

from jobrunner.backends.batch.connection import Aws, BatchConnection
from jobrunner.backends.batch.reading import observation_of
from jobrunner.backends.batch.threads import in_daemon_thread
from jobrunner.backends.batch.trouble import AwsError, Kind
from jobrunner.errors import BackendError, JobFailed, UsageError
from jobrunner.logs import get_logger
from jobrunner.settings import get_settings

log = get_logger(__name__)

_sleep = asyncio.sleep  # a name of its own: a test that simulates the clock leaves all others alone

_LONGEST_S = 600.0
_JITTER_S = 1.0

LATER = frozenset({Kind.THROTTLED, Kind.NETWORK, Kind.UNCLEAR})
"""What is asked again: boto3 itself repeats no call of ours, so that the lost ones are among them."""


class Waiters(Protocol):
    """What waits for a job in a way of its own: `BatchWaiters`, or anything with this method.

    It may be a coroutine function. If it is not, it runs in a thread, where it may sleep.
    """

    def wait_for_job(self, job_id: str, /) -> Awaitable[None] | None:
        """Return when the job has ended."""
        ...


class Connected:
    """What asks AWS through one connection, and gives it back.

    `connection`: the name of a configured one (None: `batch_default`), a `BatchConnection`, or an
    open `Aws`, which is shared and stays open. Raises `SettingsError`.
    """

    def __init__(self, connection: str | BatchConnection | Aws | None = None) -> None:
        self._is_own = not isinstance(connection, Aws)
        if connection is None or isinstance(connection, str):
            connection = BatchConnection.of(get_settings().connection(connection, "batch")[1])
        self.aws = connection if isinstance(connection, Aws) else Aws(connection)

    async def close(self) -> None:
        """Give the threads and connections back, unless they are shared; the jobs go on."""
        if self._is_own:
            await self.aws.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()


class BatchClient(Connected):
    """Waits for one job of AWS Batch: `await BatchClient("1234-…").monitor_job()`.

    `max_retries`: looks at a job after the first one, at growing distances (`exponential_delay`).
    `status_retries`: calls for one look, where they are throttled, lost, or answered without the job.
    `waiters`: wait in place of this polling; without a `connection`, that of its `BatchWaiters` is used.

    The constants are defaults for all clients, those that exist already too: set them on the class.
    `DEFAULT_DELAY_MIN` and `DEFAULT_DELAY_MAX` (seconds) bound the random delay where none is given.

    A cancellation (`asyncio.timeout`) goes through at once, and never ends the job.
    Raises `UsageError` for numbers of retries and waiters that cannot be used, `SettingsError`.
    """

    MAX_RETRIES: ClassVar[int] = 4200
    STATUS_RETRIES: ClassVar[int] = 10
    DEFAULT_DELAY_MIN: ClassVar[float] = 1
    DEFAULT_DELAY_MAX: ClassVar[float] = 10

    SUCCESS_STATE: ClassVar[str] = "SUCCEEDED"
    FAILURE_STATE: ClassVar[str] = "FAILED"
    RUNNING_STATE: ClassVar[str] = "RUNNING"
    INTERMEDIATE_STATES: ClassVar[tuple[str, ...]] = (
        "SUBMITTED",
        "PENDING",
        "RUNNABLE",
        "STARTING",
        "RUNNING",
    )

    def __init__(
        self,
        job_id: str | None = None,
        waiters: Waiters | None = None,
        max_retries: int | None = None,
        status_retries: int | None = None,
        connection: str | BatchConnection | Aws | None = None,
    ) -> None:
        if max_retries is not None and max_retries < 0:
            raise UsageError(f"max_retries must be 0 or more, not {max_retries}.")
        if status_retries is not None and status_retries < 1:
            raise UsageError(f"status_retries counts calls, and must be 1 or more, not {status_retries}.")
        if waiters is not None and not callable(getattr(waiters, "wait_for_job", None)):
            raise UsageError(f"Waiters must have wait_for_job(job_id), and {type(waiters).__name__} has not.")
        shared = getattr(waiters, "aws", None)
        super().__init__(shared if connection is None and isinstance(shared, Aws) else connection)
        self.job_id = job_id
        self.waiters = waiters
        self._max_retries = max_retries
        self._status_retries = status_retries

    @property
    def max_retries(self) -> int:
        """How often a job is looked at again: the client's own number, else `MAX_RETRIES`."""
        return self.MAX_RETRIES if self._max_retries is None else self._max_retries

    @property
    def status_retries(self) -> int:
        """How many calls one look may take: the client's own number, else `STATUS_RETRIES`."""
        return self.STATUS_RETRIES if self._status_retries is None else self._status_retries

    # --- one job, to its end ---------------------------------------------------------------------

    async def monitor_job(self) -> dict[str, str]:
        """Wait for the client's job and return `{"status": "success", "message": …}` when it succeeded.

        Raises `UsageError` without a job id, `JobFailed` with the cause, and what `wait_for_job` raises;
        of waiters that are not ours, whatever they raise.
        """
        if not self.job_id:
            raise UsageError("There is no job to monitor: give its id, as in BatchClient('1234-…').")
        if self.waiters is None:
            job = await self._wait(self.job_id, None)
        else:
            await _wait_by(self.waiters, self.job_id)
            job = await self.get_job_description(self.job_id)
        _ensure_success(job)
        message = f"AWS Batch job {self.job_id} succeeded"
        log.info(message)
        return {"status": "success", "message": message}

    async def check_job_success(self, job_id: str) -> bool:
        """Return True where the job has succeeded.

        Raises `JobFailed` with the cause where it failed; `BackendError` where it is not complete, where
        its status is one that nobody knows, and as `get_job_description` does.
        """
        _ensure_success(await self.get_job_description(job_id))
        return True

    async def wait_for_job(self, job_id: str, delay: float | None = None) -> None:
        """Return when the job has ended, however it ended.

        `delay`: seconds before the first look, and again once it was seen running; None: a random one.
        Raises as `poll_job_status` does.
        """
        await self._wait(job_id, delay)

    async def _wait(self, job_id: str, delay: float | None) -> dict[str, Any]:
        job = await self._poll_after(delay, job_id, self._running_states())
        if job["status"] not in self._final_states():
            job = await self._poll_after(delay, job_id, self._final_states())
        log.info("AWS Batch job has ended", job_id=job_id, status=job["status"])
        return job

    # --- one job, to a status --------------------------------------------------------------------

    async def poll_for_job_running(self, job_id: str, delay: float | None = None) -> None:
        """Return when the job is RUNNING, or has ended meanwhile; `delay` and errors as of `wait_for_job`."""
        await self._poll_after(delay, job_id, self._running_states())

    async def poll_for_job_complete(self, job_id: str, delay: float | None = None) -> None:
        """Return when the job is SUCCEEDED or FAILED; `delay` and errors as of `wait_for_job`."""
        await self._poll_after(delay, job_id, self._final_states())

    async def poll_job_status(self, job_id: str, match_status: Collection[str]) -> bool:
        """Look at the job until its status is one of `match_status`, and return True.

        Raises `BackendError` after `max_retries` + 1 looks ("exceed max_retries"), at once where the job
        ended with another status, and as `get_job_description` does; `UsageError` where `match_status`
        names a status that AWS Batch does not have.
        """
        await self._poll(job_id, match_status)
        return True

    async def _poll_after(
        self, delay: float | None, job_id: str, match_status: Collection[str]
    ) -> dict[str, Any]:
        _ensure_id(job_id)
        await self.delay(delay)
        return await self._poll(job_id, match_status)

    async def _poll(self, job_id: str, match_status: Collection[str]) -> dict[str, Any]:
        wanted = self._checked_states(match_status)
        job = await self.get_job_description(job_id)
        tries = 0
        while job["status"] not in wanted:
            if job["status"] in self._final_states():
                raise BackendError(
                    f"AWS Batch job {job_id} has ended, and will not be {' or '.join(wanted)}: {_told(job)}"
                )
            if tries >= self.max_retries:
                raise BackendError(
                    f"AWS Batch job {job_id}: status checks exceed max_retries ({self.max_retries}), "
                    f"and it is not {' or '.join(wanted)}: {_told(job)}"
                )
            tries += 1
            await self.delay(self.exponential_delay(tries))
            job = await self.get_job_description(job_id)
        return job

    async def get_job_description(self, job_id: str) -> dict[str, Any]:
        """Return what DescribeJobs says of the job, in at most `status_retries` calls.

        Asked again: a call that was throttled or lost, and an answer without the job, which is how Batch
        answers right after a submission.
        Raises `AwsError` at once for every other refusal; `BackendError` where the calls are used up
        ("exceeded status_retries", with what became of them), or where there is more than one match.
        """
        _ensure_id(job_id)
        most = self.status_retries
        became: Counter[str] = Counter()
        for tries in range(1, most + 1):
            trouble: AwsError | None = None
            try:
                answer = await self.aws.call("batch", "describe_jobs", jobs=[job_id])
            except AwsError as error:
                if error.kind not in LATER:
                    raise
                trouble = error
                became[error.kind.value] += 1
            else:
                found = _match(job_id, answer)
                if found is not None:
                    log.debug("AWS Batch job looked at", job_id=job_id, status=found["status"])
                    return found
                became["no such job"] += 1
            if tries == most:
                break
            pause_s = self.exponential_delay(tries)
            if trouble is not None:
                pause_s = at_least_s(pause_s, trouble)
            log.info(
                "AWS Batch job is asked for again",
                job_id=job_id,
                after_s=round(pause_s, 1),
                tries=f"{tries} of {most}",
                because=trouble or "the answer is without it",
            )
            await self.delay(pause_s)
        told = ", ".join(f"{what} ({count} x)" for what, count in became.items())
        raise BackendError(
            f"AWS Batch job {job_id} cannot be described: exceeded status_retries ({most}): {told}"
            + (f"; last: {trouble}" if trouble else "")
        ) from trouble

    # --- delays, in seconds ----------------------------------------------------------------------

    @classmethod
    async def delay(cls, delay: float | None = None) -> None:
        """Sleep `delay` seconds, 1 more or less.

        None: a random time between `DEFAULT_DELAY_MIN` and `DEFAULT_DELAY_MAX`.
        """
        if delay is None:
            delay_s = random.uniform(cls.DEFAULT_DELAY_MIN, cls.DEFAULT_DELAY_MAX)  # noqa: S311  # no secret
        else:
            delay_s = cls.add_jitter(delay, width=_JITTER_S)
        await _sleep(delay_s)

    @staticmethod
    def add_jitter(delay: float, width: float = 1, minima: float = 0) -> float:
        """Return a random number of seconds: `delay` +/- `width`, and never less than `minima`.

        All three count by their absolute value. `add_jitter(10, width=5)` is 5 to 15.
        """
        delay, width, minima = abs(delay), abs(width), abs(minima)
        lower = max(minima, delay - width)
        return random.uniform(lower, max(lower, delay + width))  # noqa: S311  # jitter, not a secret

    @staticmethod
    def exponential_delay(tries: int) -> float:
        """Return a random number of seconds to wait after so many tries.

        Between d/3 and d, with d = 1 + (0.6 tries)^2, at most 600. Source: Airflow's BatchClientHook.
        """
        most_s = min(_LONGEST_S, 1 + (0.6 * tries) ** 2)
        return random.uniform(most_s / 3, most_s)  # noqa: S311  # jitter, not a secret

    # --- statuses --------------------------------------------------------------------------------

    @classmethod
    def _final_states(cls) -> tuple[str, ...]:
        return (cls.SUCCESS_STATE, cls.FAILURE_STATE)

    @classmethod
    def _running_states(cls) -> tuple[str, ...]:
        return (cls.RUNNING_STATE, *cls._final_states())

    @classmethod
    def _checked_states(cls, match_status: Collection[str]) -> tuple[str, ...]:
        wanted = (match_status,) if isinstance(match_status, str) else tuple(match_status)
        known = (*cls.INTERMEDIATE_STATES, *cls._final_states())
        unknown = [each for each in wanted if each not in known]
        if unknown or not wanted:
            what = f"there is no status {unknown[0]!r}" if unknown else "match_status is empty"
            raise UsageError(f"No AWS Batch job can match: {what} (known: {', '.join(known)}).")
        return wanted


def at_least_s(pause_s: float, error: AwsError) -> float:
    """Return the pause, or longer where AWS itself said how long, so that no jitter falls below it."""
    return pause_s if error.retry_after_s is None else max(pause_s, error.retry_after_s + _JITTER_S)


def failure_of(job: Mapping[str, Any]) -> JobFailed:
    """Return the error for a job that failed, with the sentence of its cause."""
    return JobFailed(f"AWS Batch job {job['jobId']} failed: {_told(job)}")


def _told(job: Mapping[str, Any]) -> str:
    return observation_of(job).message


def _ensure_success(job: Mapping[str, Any]) -> None:
    status = job["status"]
    if status == BatchClient.SUCCESS_STATE:
        return
    if status == BatchClient.FAILURE_STATE:
        raise failure_of(job)
    if status in BatchClient.INTERMEDIATE_STATES:
        raise BackendError(f"AWS Batch job {job['jobId']} is not complete: {_told(job)}")
    raise BackendError(f"AWS Batch job {job['jobId']} has an unknown status: {status!r}")


def _ensure_id(job_id: str) -> None:
    if not job_id:
        raise UsageError("There is no job to ask for: its id is empty.")


def _match(job_id: str, answer: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the one job of that id; None: the answer is without it. Raises `BackendError` for several."""
    found = [job for job in answer.get("jobs") or () if job.get("jobId") == job_id]
    if len(found) > 1:
        raise BackendError(f"AWS Batch described job {job_id} {len(found)} times in one answer")
    return {"status": "", **found[0]} if found else None


async def _wait_by(waiters: Waiters, job_id: str) -> None:
    """Let waiters wait: a coroutine here, a function that blocks in a thread."""
    wait: Callable[[str], Any] = waiters.wait_for_job
    if inspect.iscoroutinefunction(wait):
        said = wait(job_id)
    else:
        said = await in_daemon_thread(partial(contextvars.copy_context().run, wait, job_id))
    if inspect.isawaitable(said):
        await said
