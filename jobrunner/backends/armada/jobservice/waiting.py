"""One job of Armada awaited through the JobService, as the old ArmadaOperator did it."""

import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from jobrunner.backends.armada.jobservice.client import JobServiceClient
from jobrunner.backends.armada.jobservice.states import JobState, JobStatus, state_of
from jobrunner.backends.armada.jobservice.trouble import trouble_of
from jobrunner.clock import monotonic_s
from jobrunner.errors import JobFailed, UsageError
from jobrunner.log_limits import Once, Trouble
from jobrunner.logs import get_logger
from jobrunner.retry import Retry

log = get_logger(__name__)

_sleep, _now_s = time.sleep, monotonic_s  # names of their own: a test that simulates time leaves others alone

_FIRST_RETRY_S = 0.5
_LONGEST_RETRY_S = 30.0
_LOOK_MOST_S = 60.0
TROUBLE_LEAST_S = 600.0
"""For how many seconds trouble is looked through, however short `time_out_for_failure` is."""


def default_job_status_callable(
    armada_queue: str, job_set_id: str, job_id: str, job_service_client: JobServiceClient
) -> JobStatus:
    """Ask the service for the job: the wire's answer, with `state` and `error`."""
    return job_service_client.get_job_status(queue=armada_queue, job_set_id=job_set_id, job_id=job_id)


def search_for_job_complete(
    armada_queue: str,
    job_set_id: str,
    airflow_task_name: str,
    job_id: str,
    job_service_client: JobServiceClient | None = None,
    job_status_callable: Callable[..., JobStatus] = default_job_status_callable,
    time_out_for_failure: float = 7200,
    poll_interval: float = 3.0,
) -> tuple[JobState, str]:
    """Look at the job every `poll_interval` seconds until it has ended; return its state and a sentence.

    It ends as SUCCEEDED, FAILED, CANCELLED or DUPLICATE_FOUND. It is given up as JOB_ID_NOT_FOUND once it
    was unknown for `time_out_for_failure` seconds, counted from its first being unknown, and anew
    whenever it is seen. It is given up as CONNECTION_ERR once for as long, and at least 10 minutes, the
    service could not be asked, or said that it cannot reach Armada. Such trouble is looked through at
    growing distances, up to 30 seconds, and its time never counts as that of an unknown job.

    `airflow_task_name`: the name in the sentences. `job_service_client` may be left out only for a
    `job_status_callable` that takes none; it is then called without it.
    Raises `UsageError` for arguments that cannot be used, `JobServiceError` for trouble that does not
    pass by itself, such as refused credentials.
    """
    if not poll_interval > 0:
        raise UsageError(f"poll_interval must be a number of seconds above 0, not {poll_interval:g}.")
    if not time_out_for_failure >= 0:
        raise UsageError(f"time_out_for_failure counts seconds from 0 on, not {time_out_for_failure:g}.")
    arguments: dict[str, Any] = {"armada_queue": armada_queue, "job_set_id": job_set_id, "job_id": job_id}
    if job_service_client is not None:
        arguments["job_service_client"] = job_service_client
    elif _needs_client(job_status_callable):
        raise UsageError(
            "There is no job_service_client: give one, or a job_status_callable that needs none."
        )
    about = f"Armada {airflow_task_name}:{job_id}"
    search = _Search(about, time_out_for_failure, poll_interval)
    while True:
        look = _look(job_status_callable, arguments)
        end = _end_of(about, look) or search.given_up(look)
        if end is not None:
            log.info("Armada job is no longer looked at", job_id=job_id, state=end[0].name)
            return end
        search.pause(look)


def armada_error(job_state: JobState, name: str, job_id: str) -> None:
    """Return where the job succeeded. Raises `JobFailed`, with the state's name, for every other state."""
    if job_state != JobState.SUCCEEDED:
        known = job_state in set(JobState)
        raise JobFailed(f"The Armada job {name}:{job_id} {JobState(job_state).name if known else job_state}")


airflow_error = armada_error
"""`armada_error` by its old name."""


def _needs_client(job_status_callable: Callable[..., Any]) -> bool:
    if job_status_callable is default_job_status_callable:
        return True
    try:
        wanted = inspect.signature(job_status_callable).parameters.get("job_service_client")
    except (TypeError, ValueError):  # not every callable tells
        return False
    return wanted is not None and wanted.default is inspect.Parameter.empty


class _Sight(Enum):
    SEEN = auto()
    UNKNOWN = auto()
    TROUBLE = auto()


@dataclass(frozen=True, slots=True)
class _Look:
    """What one look at the job brought. `state` is None for a number that nobody knows."""

    sight: _Sight
    state: JobState | None
    error: str
    number: int = -1


def _look(job_status_callable: Callable[..., JobStatus], arguments: dict[str, Any]) -> _Look:
    try:
        status = job_status_callable(**arguments)
    except Exception as error:
        trouble = trouble_of(error)
        if trouble is None or not trouble.is_passing:
            raise
        return _Look(_Sight.TROUBLE, None, str(trouble))
    state, why = state_of(status), str(getattr(status, "error", ""))
    if state is JobState.CONNECTION_ERR:
        reason = why or "no reason was given"
        return _Look(_Sight.TROUBLE, state, f"the Armada JobService cannot reach Armada: {reason}")
    sight = _Sight.UNKNOWN if state is JobState.JOB_ID_NOT_FOUND else _Sight.SEEN
    return _Look(sight, state, why, status.state)


def _end_of(about: str, look: _Look) -> tuple[JobState, str] | None:
    told = {
        JobState.SUCCEEDED: f"{about} succeeded",
        JobState.FAILED: f"{about} failed\nfailed with reason {look.error}",
        JobState.CANCELLED: f"{about} cancelled",
        # Armada writes it of the newer one of two jobs with one client id; only the older one ever runs.
        JobState.DUPLICATE_FOUND: f"{about} is a duplicate\nArmada runs the job that was submitted first",
    }
    if look.state is None or look.state not in told:
        return None
    return look.state, told[look.state]


class _Search:
    """How long the job was unknown, how long there was trouble, and how long to wait for the next look.

    The time between two looks is trouble's where either of them was trouble, and the unknown job's where
    both did not find it. So no outage makes a job unknown, and a service that gives both answers in turn
    comes to an end, too.
    """

    def __init__(self, about: str, patience_s: float, poll_interval_s: float) -> None:
        self._about = about
        self._patience_s = patience_s
        self._poll_interval_s = poll_interval_s
        self._unknown_s = 0.0
        self._trouble_s = 0.0
        self._before: _Sight | None = None
        self._looked_s = 0.0
        self._pause_s = 0.0
        self._retry: Retry | None = None
        self._trouble = Trouble(_now_s)
        self._unknown_states = Once()

    def given_up(self, look: _Look) -> tuple[JobState, str] | None:
        """Take note of a look; return what to say where patience is at its end."""
        self._count(look.sight)
        if look.sight is _Sight.UNKNOWN and self._unknown_s >= self._patience_s:
            return JobState.JOB_ID_NOT_FOUND, f"{self._about} could not find a job id and\nhit a timeout"
        if look.sight is _Sight.TROUBLE and self._trouble_s >= max(self._patience_s, TROUBLE_LEAST_S):
            waited = f"could not be seen for {self._trouble_s:.0f} s and\nhit a timeout"
            return JobState.CONNECTION_ERR, f"{self._about} {waited}: {look.error}"
        return None

    def pause(self, look: _Look) -> None:
        """Wait for the next look."""
        if look.sight is _Sight.TROUBLE:
            if self._retry is None:
                self._retry = Retry(first_s=_FIRST_RETRY_S, most_s=_LONGEST_RETRY_S)
            if self._trouble.begins():
                log.warning(
                    "Armada job cannot be seen, and is asked for again", job=self._about, error=look.error
                )
            self._pause_s = self._retry.next_s()
        else:
            if self._retry is not None:
                tries, self._retry = self._retry.count, None
                if self._trouble.ends():
                    log.info("Armada job can be asked for again", job=self._about, after_tries=tries)
            if look.state is None and self._unknown_states.is_new(look.number):
                log.warning("Armada job is in a state that nobody knows", job=self._about, state=look.number)
            self._pause_s = self._poll_interval_s
        _sleep(self._pause_s)

    def _count(self, sight: _Sight) -> None:
        now_s = _now_s()
        # A laptop that slept, or a process that was stopped, has not looked: that time counts for nothing.
        passed_s = min(now_s - self._looked_s, self._pause_s + _LOOK_MOST_S)
        if sight is _Sight.SEEN:
            self._unknown_s = self._trouble_s = 0.0
        elif _Sight.TROUBLE in {sight, self._before} and self._before is not None:
            self._trouble_s += passed_s
        elif self._before is sight:
            self._unknown_s += passed_s
        self._before, self._looked_s = sight, now_s
