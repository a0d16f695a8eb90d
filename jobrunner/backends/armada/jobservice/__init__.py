"""Armada's JobService (the extra `armada`): one job awaited in your own code, with its operator's names."""

from jobrunner.backends.armada.jobservice.client import JobServiceClient
from jobrunner.backends.armada.jobservice.states import JobState, JobStatus
from jobrunner.backends.armada.jobservice.trouble import JobServiceError
from jobrunner.backends.armada.jobservice.waiting import (
    airflow_error,
    armada_error,
    default_job_status_callable,
    search_for_job_complete,
)

__all__ = [
    "JobServiceClient",
    "JobServiceError",
    "JobState",
    "JobStatus",
    "airflow_error",
    "armada_error",
    "default_job_status_callable",
    "search_for_job_complete",
]
