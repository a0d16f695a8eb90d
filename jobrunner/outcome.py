"""How a job ends: what the last answer about its work means, and the one write of it."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping

from jobrunner import statements
from jobrunner.backends.base import Gone, Observation, Patience
from jobrunner.heartbeat import lost_because
from jobrunner.models.endings import kill_message
from jobrunner.owned import DEADLINE, KILL, START_TIMEOUT, OwnedJob, Shown
from jobrunner.states import JobState, Phase


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a job ends."""

    state: JobState
    message: str


def verdict_of(observation: Observation, row: RowMapping, waited: Shown | None = None) -> Verdict:
    """Return how a job ends whose work was seen to have ended.

    Work that ended by itself before the cancellation has its true outcome; a cancellation that
    nobody here wished is a failure, and says so. `waited`: what was shown last before a start
    timeout; without it, what the row shows.
    """
    said = observation.message or observation.external_state
    cause = row["cancel_cause"]
    if observation.phase is Phase.SUCCEEDED:
        return Verdict(JobState.SUCCESS, said)
    if observation.phase is Phase.FAILED:
        return Verdict(JobState.FAILED, said)
    if cause == KILL:
        return Verdict(JobState.KILLED, f"{kill_message(row)} ({said})")
    if cause == START_TIMEOUT:
        words = (waited or Shown(row["external_state"], row["message"])).words
        return Verdict(JobState.FAILED, f"it did not start within {row['start_timeout'] or 0:g}s: {words}")
    if cause is not None:
        why = "the timeout has passed" if cause == DEADLINE else cause
        return Verdict(JobState.FAILED, f"{why}, and the work was cancelled ({said})")
    return Verdict(JobState.FAILED, f"cancelled outside, without any wish of ours ({said})")


def is_lost(owned: OwnedJob, gone: Gone, patience: Patience, now_s: float) -> Verdict | None:
    """Count how long the backend has not known the job; a verdict when that is longer than its patience.

    Only the time between two such answers counts: what passed without an answer says nothing.
    """
    if owned.gone_at_s is not None:
        owned.gone_s += now_s - owned.gone_at_s
    owned.gone_at_s = now_s
    if gone.certain:
        return Verdict(JobState.LOST, gone.reason)
    if owned.seen and owned.gone_s >= patience.vanish_s:
        return Verdict(
            JobState.LOST, f"it was seen, and has been gone for {owned.gone_s:.0f} s: {gone.reason}"
        )
    if not owned.seen and owned.gone_s >= patience.appear_s:
        return Verdict(JobState.LOST, f"it never appeared within {owned.gone_s:.0f} s: {gone.reason}")
    return None


def write_end(connection: Connection, owned: OwnedJob, last: Observation | Verdict) -> JobState | str:
    """Write how a job ended; return the state that stands, or why it is not ours to be written."""
    claim, external_id = owned.claim, owned.external_id
    seen: dict[str, Any] = {}
    if isinstance(last, Observation):
        row = statements.get_or_none(connection, claim.job_id)
        if row is None:
            return f"Job {claim.job_id} was deleted."
        seen = Shown.of(last).columns()
        del seen["message"]  # the verdict has it
        last = verdict_of(last, row, owned.waited)
    if statements.end(connection, claim, last.state, last.message, external_id=external_id, **seen):
        return last.state
    found = statements.look(connection, [claim.job_id]).get(claim.job_id)
    if found is not None and (found["runner_id"], found["claims"]) == (claim.runner_id, claim.claims):
        state = JobState(found["state"])
        if state.is_terminal:  # an earlier try was taken, and only its answer was lost
            return state
    why = lost_because(claim, found) or f"Job {claim.job_id} has another external id."
    return f"{why} Its outcome here, {last.state}, was not written."
