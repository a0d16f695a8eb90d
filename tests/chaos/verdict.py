"""What must hold after the storm, judged by what was really done outside and by the witness's history."""

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from tests.chaos.faults import CALL_S, GRACE_S, Fault, Faults
from tests.chaos.history import Change, History
from tests.chaos.outside import FAILED, OPEN, SUCCESS, Outside, Plan, Work, key_of
from tests.helpers import plain_connection

_CODE = frozenset({"code", "again"})
_IN_DOUBT = "is listed for the Airbyte connection"  # what a row says that a person must settle
_UNJUDGED = "the work itself had succeeded"  # what a row says whose `judge` went wrong at its end


@dataclass(frozen=True, slots=True)
class Row:
    """How a job ended."""

    state: str
    message: str
    is_flagged: bool


_GONE = Row("queued", "its row is gone", is_flagged=False)


@dataclass(frozen=True, slots=True)
class Lag:
    """How long something went unnoticed, and whether anything else disturbed it meanwhile."""

    seconds: float
    is_disturbed: bool


@dataclass
class Verdict:
    """The figures of a storm. What is in the lists is wrong, each a sentence."""

    jobs: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    adoptions: int = 0
    in_doubt: int = 0
    unjudged: int = 0
    claims_unanswered: int = 0
    """Adoptions of jobs whose owner was never told that its claim was taken, and did nothing for them."""
    false_deaths: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    stale_writes: list[str] = field(default_factory=list)
    wrong_outcomes: list[str] = field(default_factory=list)
    deaths_noticed: list[Lag] = field(default_factory=list)
    """From the death of a runner to the adoption of each of its jobs."""
    ends_noticed: list[Lag] = field(default_factory=list)
    """From the end of each work outside to the end of its job."""

    @property
    def wrongs(self) -> list[str]:
        return [
            *self.false_deaths,
            *self.lost,
            *self.doubled,
            *self.stale_writes,
            *self.wrong_outcomes,
        ]


def read_rows(url: str) -> dict[str, list[Row]]:
    """Return how each job stands, by the name of its plan: one row each, if all is well."""
    query = (
        "SELECT name, state, message, kill_requested_at IS NOT NULL FROM job WHERE job_type != 'WorkerJob'"
    )
    found: dict[str, list[Row]] = defaultdict(list)
    with contextlib.closing(plain_connection(url)) as connection:
        for name, state, message, is_flagged in connection.execute(query).fetchall():
            found[key_of(name)].append(Row(state, message or "", bool(is_flagged)))
    return found


def judge(outside: Outside, rows: dict[str, list[Row]], history: History, faults: Faults) -> Verdict:
    """Compare what the rows say with what happened."""
    verdict = Verdict(wrong_outcomes=list(faults.wrongs))
    changes: dict[str, list[Change]] = defaultdict(list)
    for change in history.changes:
        changes[key_of(change.name)].append(change)
    for plan in outside.plans.values():
        if not plan.is_stored:
            verdict.lost.append(f"{plan.name} could not be stored")
            continue
        row, *more = rows.get(plan.name) or [_GONE]
        works = outside.works_of(plan.name)
        if more:
            verdict.doubled.append(f"{plan.name} was stored once, and is {1 + len(more)} jobs")
        if plan.must_be_killed and not row.is_flagged:
            verdict.lost.append(f"{plan.name}: a kill of it was accepted, and is not in its row")
        verdict.jobs[plan.kind] += 1
        verdict.states[row.state] += 1
        excused = _was_struck(changes[plan.name], history, faults)
        _judge_outcome(verdict, plan, row, works, is_struck=excused)
        _note_end(verdict, changes[plan.name], works, faults)
    claims: dict[int, Change] = {}
    for change in history.changes:
        _judge_change(verdict, change, claims.get(change.job_id), history, faults)
        _note_claim(claims, change)
    verdict.stale_writes += [f"stale beat of job {each[2]} by {each[1]}" for each in history.stale_beats]
    return verdict


def _was_struck(changes: Iterable[Change], history: History, faults: Faults) -> bool:
    """Whether any process that owned the job was silenced at any time."""
    return any(
        faults.silencing(change.new_pid, history.writers.get(change.new_runner or ""), change.at_s, 1e12)
        for change in changes
        if change.new_runner is not None
    )


# --- outcomes ---------------------------------------------------------------------------------------


def _judge_outcome(verdict: Verdict, plan: Plan, row: Row, works: list[Work], *, is_struck: bool) -> None:
    said = f"{plan.name} is {row.state} ({row.message})"
    if row.state in {"queued", "running"}:
        verdict.lost.append(f"{said}: it never ended")
        return
    if len(works) > 1 and plan.kind != "again":
        verdict.doubled.append(f"{said}: {len(works)} works were begun for it")
    if row.state == "killed" and not row.is_flagged:
        verdict.wrong_outcomes.append(f"{said}: nobody wished it")
    if plan.kind == "airbyte" and not works and row.state == "failed" and _IN_DOUBT in row.message:
        verdict.in_doubt += 1
        return
    if plan.kind == "hostile" and row.state == "failed" and _UNJUDGED in row.message:
        verdict.unjudged += 1
        row = replace(row, state=SUCCESS)  # so the work had to end
    allowed = set(_allowed(plan, row, works, is_struck=is_struck))
    if row.state == "lost" and "lost" not in allowed:
        verdict.lost.append(said)
    elif row.state not in allowed:
        seen = ", ".join(work.status for work in works) or "nothing was begun"
        verdict.wrong_outcomes.append(f"{said}: outside: {seen}")


def _allowed(plan: Plan, row: Row, works: list[Work], *, is_struck: bool) -> Iterator[str]:
    """Yield the states in which the job may have ended."""
    if plan.kind in _CODE:
        # Its own process does the work: it may die after the last word of its code.
        ends = [work.status for work in works if work.status != OPEN]
        yield from ends[:1]
        if is_struck:
            yield "failed"
            if plan.kind == "code" or row.is_flagged:
                yield "lost"
        if row.is_flagged:
            yield "killed"
    elif not works:
        if row.is_flagged:
            yield "killed"
    elif plan.kind == "process" and row.is_flagged:
        # A command that is ended says no last word, and may say it while it is being ended.
        yield from ("killed", works[0].status)
    else:
        yield works[0].status


# --- changes ----------------------------------------------------------------------------------------


def _note_claim(claims: dict[int, Change], change: Change) -> None:
    """Keep the claim under which a job stands, for as long as its owner has changed nothing since."""
    if change.new_state == "running" and change.new_claims != change.old_claims:
        claims[change.job_id] = change
    elif not change.was_flagged:  # by anybody
        claims.pop(change.job_id, None)


def _judge_change(
    verdict: Verdict, change: Change, untouched: Change | None, history: History, faults: Faults
) -> None:
    owner = history.writers.get(change.old_runner or "")
    name = key_of(change.name) or change.job_type
    said = (
        f"{name} ({change.old_state} to {change.new_state} by {change.writer}, "
        f"owner {owner}, pid {change.old_pid}, claims {change.old_claims} to {change.new_claims})"
    )
    if change.is_adoption or change.is_loss:
        silencing = faults.silencing(change.old_pid, owner, change.at_s - GRACE_S, change.at_s)
        verdict.adoptions += change.is_adoption
        if not silencing and _was_unanswered(untouched, faults):
            verdict.claims_unanswered += 1
        elif not silencing:
            verdict.false_deaths.append(f"{said} was taken over, and its owner lived")
        else:
            _note_death(verdict, change, silencing, faults)
    if change.old_state is not None and _is_stale(change, owner):
        verdict.stale_writes.append(f"{said} was written by one whose it was not")


def _was_unanswered(untouched: Change | None, faults: Faults) -> bool:
    """Whether the answer of this claim, since which its owner changed nothing, may not have arrived."""
    return untouched is not None and any(
        each.loses_answers and each.overlaps(untouched.at_s, untouched.at_s + CALL_S) for each in faults.log
    )


def _is_stale(change: Change, owner: str | None) -> bool:
    if change.old_state not in {"queued", "running"}:
        return not change.was_flagged or change.old_state != change.new_state
    if change.old_runner != change.new_runner and change.new_runner is not None:
        return change.new_claims != (change.old_claims or 0) + 1
    if change.old_state == "queued" or change.was_flagged or change.is_loss:
        return False
    is_record = change.old_external is None and change.new_external is not None
    if is_record and change.old_state == change.new_state:
        return False  # PROTOCOL 8: by the token, whoever holds the claim
    return owner is not None and change.writer != owner


# --- how soon ---------------------------------------------------------------------------------------


def _note_death(verdict: Verdict, change: Change, silencing: list[Fault], faults: Faults) -> None:
    deaths = [each for each in silencing if change.old_pid in each.pids and each.until_s == float("inf")]
    if deaths:
        died_s = min(each.from_s for each in deaths)
        is_disturbed = _is_disturbed(faults, died_s, change.at_s, change.old_pid)
        verdict.deaths_noticed.append(Lag(change.at_s - died_s, is_disturbed))


def _note_end(verdict: Verdict, changes: list[Change], works: list[Work], faults: Faults) -> None:
    ends = [change.at_s for change in changes if change.is_end]
    for work in works[:1]:
        if work.ended_s is not None and work.status in {SUCCESS, FAILED} and ends:
            lag_s = max(0.0, ends[0] - work.ended_s)
            verdict.ends_noticed.append(Lag(lag_s, _is_disturbed(faults, work.ended_s, ends[0], None)))


def _is_disturbed(faults: Faults, from_s: float, until_s: float, pid: int | None) -> bool:
    """Whether anything befell anybody at that time or shortly before; the death of `pid` is known."""
    since_s = from_s - GRACE_S
    return any(
        each.from_s <= until_s and (each.from_s >= since_s or since_s <= each.until_s < float("inf"))
        for each in faults.log
        if pid is None or pid not in each.pids
    )
