"""What must hold after every statement, whoever sent it and whenever (PROTOCOL 12)."""

from collections.abc import Mapping, Sequence

from jobrunner import identity
from jobrunner.statements import PROTOCOL, Claim, Sighting
from jobrunner.states import JobState, Phase, is_allowed
from tests.model.outside import Broken, Kind
from tests.model.world import GRACE, HEARTRATE, Row, Step, World

ONE_OWNER = "one owner a claim"
ABSORBING = "terminal is absorbing"
KILL = "a kill is never lost"
ONE_JOB = "one external job a token"
NO_REVIVAL = "a beat never revives"
LIVE_OWNER = "no live owner is adopted"
TRUE_OUTCOME = "the outcome is the true one"
SERVED = "only what can be served is claimed"
ONE_EVENT = "one event a transition"
OWN_ATTEMPT = "a cancellation concerns its own attempt"
STORED_ONCE = "a job is stored once"

OWNERS_WRITES = frozenset(
    {
        "confirm",
        "end",
        "end_many",
        "release",
        "release_many",
        "begin_submit",
        "renew_token",
        "resubmit",
        "say_unsubmitted",
        "begin_cancel_many",
        "observe_many",
        "tell",
    }
)
_CLAIMING = frozenset({"store_once", "claim_queued", "claim_many", "adopt", "adopt_many"})
_OF_SIGHTED = frozenset({"adopt", "adopt_many", "lose", "lose_many"})
_KILL_COLUMNS = ("kill_requested_at", "kill_requested_by", "kill_reason")
_FINAL_PHASE = {JobState.SUCCESS: Phase.SUCCEEDED, JobState.KILLED: Phase.CANCELLED}


def judge(world: World, step: Step, before: Mapping[int, Row], events: Sequence[Row]) -> None:
    """Compare what a statement did to the rows with what it may do. Raises `Broken`."""
    for job_id, new in world.rows.items():
        old = before.get(job_id)
        if old is not None and old != new:
            _judge_row(world, step, old, new)
        if new["claims"] != (0 if old is None else old["claims"]):
            _judge_claim(world, step, old, new)
    _judge_events(world, before, events)
    stand(world)


def _judge_row(world: World, step: Step, old: Row, new: Row) -> None:
    job_id, changed = new["id"], {key for key in new if old[key] != new[key]}
    told = f"{step.name} changed {sorted(changed)} of job {job_id}"
    if JobState(old["state"]).is_terminal:
        invariant = NO_REVIVAL if step.name == "beat" else ABSORBING
        raise Broken(invariant, f"{told}, which had ended as {old['state']}")
    _judge_wishes(step, old, changed, told)
    if step.name == "store_once":
        raise Broken(STORED_ONCE, f"{told}, which was there before")
    if step.name in OWNERS_WRITES:
        stood = Claim(job_id, old["runner_id"], old["claims"])
        if stood not in step.claims or old["state"] != JobState.RUNNING:
            raise Broken(ONE_OWNER, f"{told}, which was {old['state']} of {stood}, not of {step.claims}")
    if step.name == "beat":
        if old["state"] != JobState.RUNNING or changed != {"latest_heartbeat"}:
            raise Broken(NO_REVIVAL, told)
        if old["runner_id"] != step.runner_id:
            raise Broken(ONE_OWNER, f"{told}, which is another's")
    if step.name in _OF_SIGHTED:
        _judge_orphan(world, step, old, told)
    _judge_submission(step, old, new, changed, told)
    _judge_end(world, step, old, new, told)


def _judge_wishes(step: Step, old: Row, changed: set[str], told: str) -> None:
    if old["kill_requested_at"] is not None and changed & set(_KILL_COLUMNS):
        raise Broken(KILL, f"{told}: who wished it first, and when, no longer stands")
    if not set(_KILL_COLUMNS).isdisjoint(changed) and step.name not in {"request_kill", "kill by SQL"}:
        raise Broken(KILL, told)
    if old["cancel_cause"] is not None and "cancel_cause" in changed and step.name != "renew_token":
        raise Broken(KILL, f"{told}: the first cause no longer stands")
    decided_on, stands = (step.token, step.external_id), (old["submit_token"], old["external_id"])
    if step.name == "begin_cancel_many" and decided_on != stands:
        raise Broken(OWN_ATTEMPT, f"{told} for {decided_on}, but it was at {stands}")


def _judge_orphan(world: World, step: Step, old: Row, told: str) -> None:
    seen = [each for each in step.seen if each.job_id == old["id"]]
    stood = Sighting(old["id"], old["runner_id"], old["claims"], old["latest_heartbeat"])
    owner = Claim(old["id"], old["runner_id"], old["claims"])
    beaten_s = world.memory.beaten_s.get(owner)
    if beaten_s is not None and world.now_s - beaten_s < HEARTRATE * GRACE:
        raise Broken(LIVE_OWNER, f"{told} {world.now_s - beaten_s:.0f} s after a beat of its owner")
    if old["state"] != JobState.RUNNING or stood not in seen:
        raise Broken(LIVE_OWNER, f"{told}, which did not stand as it was seen")
    if _is_barred(old):
        raise Broken(SERVED, f"{told}, whose rules are not known here")
    if step.name.startswith("adopt") and not old["adoptable"]:
        raise Broken(SERVED, f"{told}, which is not adoptable")
    if step.name.startswith("adopt") and old["id"] in world.memory.untold:
        raise Broken(STORED_ONCE, f"{told}, of which its starter does not know that it was stored")


def _judge_claim(world: World, step: Step, old: Row | None, new: Row) -> None:
    job_id, claims = new["id"], new["claims"]
    told = f"{step.name} claimed job {job_id} for {new['runner_id']}"
    if step.name not in _CLAIMING or new["runner_id"] != step.runner_id:
        raise Broken(ONE_OWNER, told)
    if claims != (0 if old is None else old["claims"]) + 1 or (job_id, claims) in world.memory.granted:
        raise Broken(ONE_OWNER, f"{told} as claim {claims}, which was granted before")
    world.memory.granted[job_id, claims] = new["runner_id"]
    if old is None:
        world.memory.untold.add(job_id)  # until its answer arrives
        return
    if step.name.startswith("claim") and old["state"] != JobState.QUEUED:
        raise Broken(ONE_OWNER, f"{told}, which was {old['state']} of {old['runner_id']}")
    if old["host_id"] is not None and old["host_id"] not in step.hosts:
        raise Broken(SERVED, f"{told}, which is bound to {old['host_id']}")
    if old["host_uid"] not in {None, identity.uid()} or _is_barred(old):
        raise Broken(SERVED, f"{told}, whose rules bar it")
    if step.name == "claim_many" and old["connection"] not in step.served:
        raise Broken(SERVED, f"{told}, which is of {old['connection']}")


def _is_barred(row: Row) -> bool:
    """Whether nobody of this version may judge a job."""
    is_held = row["held_at"] is not None and row["kill_requested_at"] is None
    return is_held or (row["needs"] or 0) > PROTOCOL


def _judge_submission(step: Step, old: Row, new: Row, changed: set[str], told: str) -> None:
    is_renewed = step.name in {"renew_token", "resubmit"}
    of_this_token = old["submit_token"] == step.token
    if step.name in {"begin_submit", "record_submitted"} or is_renewed:
        if not of_this_token:
            raise Broken(ONE_JOB, f"{told} by the token {step.token}, but it was {old['submit_token']}")
        if step.name != "record_submitted" and old["kill_requested_at"] is not None:
            raise Broken(KILL, f"{told} though its kill was wished")
    if step.name == "begin_submit" and old["external_id"] is not None:
        raise Broken(ONE_JOB, f"{told}, which is {old['external_id']} already")
    if is_renewed and old["external_id"] != step.external_id:
        raise Broken(ONE_JOB, f"{told} in place of {step.external_id}, but it was {old['external_id']}")
    if step.name == "resubmit" and old["cancel_cause"] is not None:
        raise Broken(KILL, f"{told} though it was being cancelled")
    if "submit_token" in changed and not (is_renewed and new["attempt"] == old["attempt"] + 1):
        raise Broken(ONE_JOB, told)
    if "external_id" in changed:
        is_recorded = step.name == "record_submitted" and old["external_id"] is None
        if not (is_renewed or is_recorded):
            raise Broken(ONE_JOB, f"{told}: {old['external_id']} became {new['external_id']}")


def _judge_end(world: World, step: Step, old: Row, new: Row, told: str) -> None:
    shown = new["external_state"]
    if (
        shown is not None
        and shown != old["external_state"]
        and not shown.startswith(f"{new['external_id']}:")
    ):
        raise Broken(TRUE_OUTCOME, f"{told}: it shows {shown}, but is {new['external_id']}")
    if step.name == "say_unsubmitted" and old["external_id"] is not None:
        raise Broken(TRUE_OUTCOME, f"{told}: it says that {old['external_id']} is not submitted")
    work = world.outside.works.get(new["external_id"] or "")
    state = JobState(new["state"])
    if state is old["state"] or not state.is_terminal or state is JobState.LOST or work is None:
        return
    if work.phase is not _FINAL_PHASE.get(state, work.phase) or not work.phase.is_final:
        raise Broken(TRUE_OUTCOME, f"{told}: {state}, but {work.external_id} is {work.phase}")
    if state is JobState.FAILED and work.phase is Phase.SUCCEEDED:
        raise Broken(TRUE_OUTCOME, f"{told}: failed, but {work.external_id} succeeded")
    if work.phase is Phase.CANCELLED and old["cancel_cause"] == "kill" and state is not JobState.KILLED:
        raise Broken(KILL, f"{told}: {state}, but it was cancelled, and a kill stands")


def _judge_events(world: World, before: Mapping[int, Row], events: Sequence[Row]) -> None:
    tails = world.memory.tails
    for event in events:
        job_id, old, new = event["job_id"], event["from_state"], JobState(event["to_state"])
        if old != tails.get(job_id):
            raise Broken(ONE_EVENT, f"job {job_id} was {tails.get(job_id)}, but went from {old} to {new}")
        if old is not None and not is_allowed(JobState(old), new):
            raise Broken(ABSORBING, f"job {job_id} went from {old} to {new}")
        tails[job_id] = new
    told = [event["job_id"] for event in events]
    for job_id, row in world.rows.items():
        old_row = before.get(job_id)
        is_transition = old_row is None or (old_row["state"], old_row["claims"]) != (
            row["state"],
            row["claims"],
        )
        is_told = is_transition or (old_row is not None and old_row["attempt"] != row["attempt"])
        if (
            tails[job_id] != row["state"]
            or told.count(job_id) > is_told
            or is_transition > told.count(job_id)
        ):
            raise Broken(ONE_EVENT, f"job {job_id} is {row['state']}, and its events say {tails[job_id]}")


def stand(world: World) -> None:
    """Judge the rows and the outside as they stand. Raises `Broken`."""
    held: set[tuple[str, str]] = set()
    for job_id, row in world.rows.items():
        state, kind, external_id = JobState(row["state"]), Kind(row["connection"]), row["external_id"]
        if job_id in world.memory.wished and row["kill_requested_at"] is None:
            raise Broken(KILL, f"the wish to end job {job_id} was acknowledged, and is gone")
        if external_id is not None and row["submit_started_at"] is not None and not state.is_terminal:
            if (kind, external_id) in held:
                raise Broken(ONE_JOB, f"two that live hold {external_id}")
            held.add((kind, external_id))
        if kind is Kind.NUMBERS:
            continue  # its numbers tell neither whose work it is nor that there is none
        work = world.outside.works.get(external_id or "")
        if work is not None and work.token != row["submit_token"]:
            raise Broken(ONE_JOB, f"job {job_id} holds {external_id} of {work.token}")
        active = world.outside.active_of(job_id)
        if len(active) > 1:
            raise Broken(ONE_JOB, f"job {job_id} is run twice: {active}")
        has_ended = state.is_terminal and state is not JobState.LOST
        if active and has_ended and job_id not in world.memory.spoiled:
            raise Broken(KILL, f"job {job_id} is {state}, but {active[0].external_id} goes on")
