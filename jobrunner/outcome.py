"""How jobs end: what the last answer about their work means, and the one write of it."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, RowMapping

from jobrunner import statements
from jobrunner.backends.base import Gone, Observation, Patience
from jobrunner.clock import monotonic_s
from jobrunner.heartbeat import lost_because
from jobrunner.models.endings import kill_message
from jobrunner.owned import DEADLINE, KILL, START_TIMEOUT, OwnedJob, Shown
from jobrunner.statements import Claim, End
from jobrunner.states import JobState, Phase


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a job ends."""

    state: JobState
    message: str


def not_wanted(owned: OwnedJob) -> Verdict | None:
    """Return how a job ends of which nothing was submitted, where it is to end; None: it is wanted."""
    if owned.kill_seen:
        return Verdict(JobState.KILLED, "killed before it was submitted")
    if monotonic_s() >= owned.deadline_s:
        return Verdict(JobState.FAILED, "the timeout has passed before it was submitted")
    return None


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


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of one job, as its owner knows it."""

    claim: Claim
    external_id: str | None
    """The work that ended; None: it was never submitted."""
    last: Observation | Verdict
    waited: Shown | None = None
    """What was shown last before a start timeout."""
    uncleaned: str | None = None
    """Why the job's own `on_kill` was not called, where it should have been."""
    is_plain: bool = False
    """Whether to leave out all that the outside said, where the database refuses that."""

    def judged(self, row: RowMapping) -> End:
        """Return how the job ends, by what its row says of a cancellation."""
        end = self._judged(row)
        if self.uncleaned is not None:
            end = end._replace(message=f"{end.message}; {self.uncleaned}")
        return _plain(end) if self.is_plain else end

    def _judged(self, row: RowMapping) -> End:
        job_id, claims = self.claim.job_id, self.claim.claims
        if isinstance(self.last, Verdict):
            return End(job_id, claims, self.external_id, self.last.state, self.last.message)
        verdict = verdict_of(self.last, row, self.waited)
        seen = Shown.of(self.last)
        return End(
            job_id,
            claims,
            self.external_id,
            verdict.state,
            verdict.message,
            row["cancel_cause"] or "",
            seen.external_state,
            dict(seen.detail) or None,
        )


def write_ends(
    connection: Connection, runner_id: str, endings: Sequence[Ending]
) -> dict[int, JobState | str | None]:
    """Write how jobs of a runner ended, and return what became of each, by its id; one ending a job.

    The state that stands; or why it is not this runner's to be written; or None, where it is to be tried
    again: somebody holds the row locked, or a cancellation was begun after the end was judged.
    """
    rows = statements.judged_by(connection, [each.claim.job_id for each in endings])
    ends: dict[int, End] = {}
    for each in endings:
        row = rows.get(each.claim.job_id)
        if row is not None:
            ends[each.claim.job_id] = each.judged(row)
    written = set(statements.end_many(connection, runner_id, list(ends.values())))
    outcomes: dict[int, JobState | str | None] = {job_id: ends[job_id].state for job_id in written}
    left = [each for each in endings if each.claim.job_id not in written]
    found = statements.look(connection, [each.claim.job_id for each in left]) if left else {}
    for each in left:
        job_id = each.claim.job_id
        outcomes[job_id] = _as_it_stands(each, ends.get(job_id), found.get(job_id))
    return outcomes


def _as_it_stands(ending: Ending, end: End | None, found: RowMapping | None) -> JobState | str | None:
    """Return what became of an end whose row did not come back."""
    claim = ending.claim
    if found is not None and (found["runner_id"], found["claims"]) == (claim.runner_id, claim.claims):
        state = JobState(found["state"])
        if state.is_terminal:  # an earlier try was taken, and only its answer was lost
            return state
    why = lost_because(claim, found)
    if why is None and found is not None and found["external_id"] != ending.external_id:
        why = f"Job {claim.job_id} has another external id."
    if why is None or end is None:
        return why
    return f"{why} Its outcome here, {end.state}, was not written."


def _plain(end: End) -> End:
    words = f"{end.state}; what the outside said of it could not be stored"
    return end._replace(message=words, external_state=None, detail=None)
