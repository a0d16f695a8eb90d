"""What a runner knows of each monitor job that it owns, and what an answer of the backend means."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import RowMapping

from jobrunner.backends.base import Gone, Observation, Patience
from jobrunner.clock import utcnow
from jobrunner.models.own_run import kill_message
from jobrunner.statements import Claim
from jobrunner.states import JobState, Phase

if TYPE_CHECKING:
    from jobrunner.channel import Channel
    from jobrunner.models import MonitorJob

KILL, DEADLINE = "kill", "deadline"
"""The causes for which a job's work is cancelled (`cancel_cause`)."""


@dataclass(slots=True, eq=False)
class OwnedJob:
    """One job of this runner. The event loop's thread changes it; the beating thread reads it."""

    claim: Claim
    channel: "Channel"
    heartrate: float
    poll_interval: float
    token: str
    external_id: str | None
    job: "MonitorJob"
    deadline_s: float = math.inf
    progress_by_s: float = math.inf
    """When its own step under way will have been completed (PROTOCOL 3); the poller has its own promise."""
    cancel_cause: str | None = None
    kill_seen: bool = False
    seen: bool = False
    gone_since_s: float | None = None
    errors: int = 0
    unreadable_since: str | None = None
    written: tuple[Any, ...] = ()
    """(external_state, message, detail) as the row has them."""
    pending: Observation | None = None
    writing: bool = False
    concluding: bool = False
    over: bool = False
    """Ended, released or lost: nothing is done for it any more."""

    @property
    def job_id(self) -> int:
        """The row's id."""
        return self.claim.job_id


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a job ends."""

    state: JobState
    message: str


def verdict_of(observation: Observation, cancel_cause: str | None, row: RowMapping) -> Verdict:
    """Return how a job ends whose work was seen to have ended.

    Work that ended by itself before the cancellation has its true outcome; a cancellation that
    nobody here wished is a failure, and says so.
    """
    said = observation.message or observation.external_state
    if observation.phase is Phase.SUCCEEDED:
        return Verdict(JobState.SUCCESS, said)
    if observation.phase is Phase.FAILED:
        return Verdict(JobState.FAILED, said)
    if cancel_cause == KILL:
        return Verdict(JobState.KILLED, f"{kill_message(row)} ({said})")
    if cancel_cause is not None:
        return Verdict(
            JobState.FAILED,
            f"{_OUT_OF_TIME.get(cancel_cause, cancel_cause)}, and the work was cancelled ({said})",
        )
    return Verdict(JobState.FAILED, f"cancelled outside, without any wish of ours ({said})")


_OUT_OF_TIME = {DEADLINE: "the timeout has passed", "start_timeout": "it did not start in time"}


def is_lost(owned: OwnedJob, gone: Gone, patience: Patience, now_s: float) -> Verdict | None:
    """Count how long the backend has not known the job; a verdict when that is longer than its patience."""
    if owned.gone_since_s is None:
        owned.gone_since_s = now_s
    waited_s = now_s - owned.gone_since_s
    if gone.certain:
        return Verdict(JobState.LOST, gone.reason)
    if owned.seen and waited_s >= patience.vanish_s:
        return Verdict(JobState.LOST, f"it was seen, and has been gone for {waited_s:.0f} s: {gone.reason}")
    if not owned.seen and waited_s >= patience.appear_s:
        return Verdict(JobState.LOST, f"it never appeared within {waited_s:.0f} s: {gone.reason}")
    return None


def unreadable(since: str | None, message: str) -> tuple[str, str]:
    """Return (since, what the row says) while the status of a job cannot be read."""
    since = since or f"{utcnow():%H:%M} UTC"
    return since, f"status unreadable since {since}: {message}"
