"""The words for where a job is, and the one table of what may follow what."""

from enum import StrEnum


class JobState(StrEnum):
    """Where a job is. The last four are terminal and absorbing."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCESS = "success"
    FAILED = "failed"
    KILLED = "killed"
    LOST = "lost"

    @property
    def is_terminal(self) -> bool:
        """Whether the job has ended for good."""
        return self in TERMINAL_STATES


TERMINAL_STATES = frozenset({JobState.SUCCESS, JobState.FAILED, JobState.KILLED, JobState.LOST})

ALLOWED_TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    # A queued job ends only by a kill, and only when nothing of it was ever submitted.
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.KILLED}),
    # running -> running is an adoption (the owner changes), running -> queued a release.
    JobState.RUNNING: frozenset({JobState.RUNNING, JobState.QUEUED}) | TERMINAL_STATES,
} | dict.fromkeys(TERMINAL_STATES, frozenset[JobState]())


def is_allowed(before: JobState, after: JobState) -> bool:
    """Whether a job may go from `before` to `after`."""
    return after in ALLOWED_TRANSITIONS[before]


class Phase(StrEnum):
    """Where the work is in the outside system, in our words."""

    WAITING = "waiting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether the outside work has ended."""
        return self in FINAL_PHASES


FINAL_PHASES = frozenset({Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED})
