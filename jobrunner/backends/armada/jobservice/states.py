"""The JobService's own words for where a job is."""

from enum import IntEnum
from typing import Protocol


class JobState(IntEnum):
    """What the JobService says of a job, by the numbers of the wire.

    SUCCEEDED, FAILED and CANCELLED are ends, and so is DUPLICATE_FOUND: Armada dropped the job, because one
    of the same client id had been submitted before. JOB_ID_NOT_FOUND: not in the cache, not yet or no
    longer. CONNECTION_ERR: the service knows the job, and has lost its own connection to Armada.
    """

    SUBMITTED = 0
    DUPLICATE_FOUND = 1
    RUNNING = 2
    FAILED = 3
    SUCCEEDED = 4
    CANCELLED = 5
    JOB_ID_NOT_FOUND = 6
    CONNECTION_ERR = 7


class JobStatus(Protocol):
    """What a look at a job brings: the wire's JobServiceResponse, or anything with these two."""

    @property
    def state(self) -> int:
        """A number of `JobState`; a newer service may know more of them."""
        ...

    @property
    def error(self) -> str:
        """Why, where the service says it; else empty."""
        ...


def state_of(status: JobStatus) -> JobState | None:
    """Return the state; None for a number that nobody knows."""
    try:
        return JobState(status.state)
    except ValueError:
        return None
