"""A runner that takes the protocol's steps one at a time, so that anything may come between two of them."""

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import Connection

from jobrunner import heartbeat, statements
from jobrunner.backends.base import Absent, Found
from jobrunner.errors import DatabaseUnavailable
from jobrunner.statements import Attempt, Beaten, Claim, End, Owner, Sight, Sighting
from jobrunner.states import JobState, Phase
from jobrunner.sweeper import StandStill
from tests.helpers import an_owner, begin_cancel
from tests.model.outside import SEND_WITHIN_S, Broken, Kind, Refused, Unreachable
from tests.model.world import GRACE, HEARTRATE, Row, Step, World

_T = TypeVar("_T")
_READING = frozenset({"find", "get", "look", "held"})
_tokens = itertools.count(1)


def new_token() -> str:
    return f"token-{next(_tokens)}"


def unconfirmed(values: Row) -> Row:
    """Return a job as it is inserted: nobody may take it over before its starter knows that it is stored."""
    return {**values, "adoptable": False}


def is_still_ours(claim: Claim, answer: Beaten) -> bool:
    """Judge a beat's answer, as `jobrunner.beats` does: the row may have been claimed again since."""
    return answer.claims == claim.claims


def lost_because(claim: Claim, row: Any) -> str | None:
    """Judge a row that did not come back from a beat."""
    return heartbeat.lost_because(claim, row)


@dataclass(slots=True, eq=False)
class Cancellation:
    """What an owner knows of the cancelling of one attempt: another one begins with a new one."""

    cause: str | None = None
    is_begun: bool = False


@dataclass(slots=True, eq=False)
class Held:
    """A job as its owner knows it, which may no longer be so."""

    claim: Claim
    kind: Kind
    token: str
    external_id: str | None
    in_doubt: bool
    has_begun: bool
    kill_seen: bool
    cancellation: Cancellation
    baseline: str | None
    good_s: float
    may_send: tuple[str, float] | None = None  # the token, and when its intent was stored
    made: tuple[str, str] | None = None  # the token, and what came back
    is_found: bool = False  # what came back was not made just now, but found
    is_ending: bool = False  # its end is to be written, and that write says whose it is
    is_unconfirmed: bool = False  # nobody may take it over yet
    over: bool = False

    @property
    def attempt(self) -> Attempt:
        return Attempt(self.token, self.external_id)

    def begin_anew(self, token: str) -> None:
        """Forget the attempt that failed, or was proven absent."""
        self.token, self.external_id, self.has_begun = token, None, False
        self.cancellation = Cancellation()


@dataclass(frozen=True, slots=True)
class Wish:
    """A cancellation that was decided on for one attempt, and is still to be stored."""

    held: Held
    cancellation: Cancellation
    attempt: Attempt
    cause: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What was fetched, and under which claim; it may be applied much later."""

    claim: Claim
    external_id: str
    phase: Phase


@dataclass(slots=True)
class Runner:
    """One process incarnation: what it believes to own, and what it has seen of others."""

    world: World
    host: str
    serves: frozenset[str]
    origin_s: float
    owner: Owner = field(init=False)
    held: list[Held] = field(default_factory=list)
    unheard: list[Row] = field(default_factory=list)
    """What was sent to be stored, while nobody knows whether it stands."""
    answers: list[Answer] = field(default_factory=list)
    wishes: list[Wish] = field(default_factory=list)
    ends: list[tuple[Held, Answer, End]] = field(default_factory=list)
    sighted: dict[int, Sighting] = field(default_factory=dict)
    paused: bool = False
    cut_off: bool = False
    loses_next_answer: bool = False
    looked_for_s: dict[str, float] = field(default_factory=dict)
    counts: StandStill = field(init=False)

    def __post_init__(self) -> None:
        self.owner = dataclasses.replace(an_owner(), host_id=self.host, pid=4711)
        self.counts = StandStill(GRACE, self.clock)

    def clock(self) -> float:
        """Return the seconds of this host's own clock: another than every other host's."""
        return self.origin_s + self.world.now_s

    @property
    def reaches_database(self) -> bool:
        return not (self.cut_off or self.world.is_down)

    def ask(
        self, name: str, call: Callable[[Connection], _T], claims: tuple[Claim, ...] = (), **told: Any
    ) -> _T:
        """Send one statement. Raises `DatabaseUnavailable`, also where only its answer is lost."""
        if not self.reaches_database:
            raise DatabaseUnavailable("it cannot be reached")
        step = Step(name, self.owner.runner_id, claims, hosts=(self.host,), served=self.serves, **told)
        answer = self.world.read(name, call) if name in _READING else self.world.run(step, call)
        if self.loses_next_answer:
            self.loses_next_answer = False
            raise DatabaseUnavailable("its answer was lost")
        return answer

    def _row(self, job_id: int) -> Row:
        return self.world.rows.get(job_id, {})

    # --- owning ---------------------------------------------------------------------------------

    def start(self, values: Row) -> None:
        """Start a job in the foreground: its row is inserted claimed, and nobody may take it over yet."""
        self.unheard.append(values)
        self.store(values)

    def store(self, values: Row) -> None:
        """Store a job, once, however often it is sent."""
        row = unconfirmed(values)
        job_id = self.ask("store_once", lambda conn: statements.store_once(conn, row, self.owner, "test"))
        if job_id is None:
            self.look_for(values)
        else:
            self._take_started(values, job_id)

    def look_for(self, values: Row) -> None:
        """Look whether a job was stored that is known by its key alone."""
        found = self.ask("find", lambda conn: statements.find(conn, values["key"]))
        if found is None:
            return
        if self._row(found["id"]).get("key") != values["key"]:
            raise Broken("a job is stored once", f"{values['key']} was looked for, and {found} was found")
        self._take_started(values, found["id"])

    def _take_started(self, values: Row, job_id: int) -> None:
        row = dict(self.ask("get", lambda conn: statements.get(conn, job_id)))
        self.unheard.remove(values)
        if row["runner_id"] == self.owner.runner_id and row["state"] == JobState.RUNNING:
            self.take(row, is_new=True)
            self.held[-1].is_unconfirmed = values["adoptable"]

    def confirm(self, held: Held) -> None:
        """Let others take over what is known to be stored."""
        stands = self.ask("confirm", lambda conn: statements.confirm(conn, held.claim), (held.claim,))
        held.is_unconfirmed = False
        if not stands:
            self.drop(held)

    def take(self, row: Row, *, is_new: bool = False) -> None:
        """Believe in a claim, by the row that it returned."""
        claim = Claim(row["id"], self.owner.runner_id, row["claims"])
        self.world.acknowledge(claim)
        for held in self.held:
            if held.claim == claim and not held.over:  # the database lost it, and granted it once more:
                self.drop(held)  # two of one claim could not be told apart, and both would submit
        has_begun = row["submit_started_at"] is not None
        self.held.append(
            Held(
                claim,
                Kind(row["connection"]),
                row["submit_token"],
                row["external_id"],
                in_doubt=has_begun or (claim.claims > 1 and not is_new),
                has_begun=has_begun,
                kill_seen=row["kill_requested_at"] is not None,
                cancellation=Cancellation(row["cancel_cause"]),
                baseline=row["submit_baseline"],
                good_s=self.clock(),
            )
        )

    def claim_many(self, most: int) -> None:
        served = [("Model", kind) for kind in sorted(self.serves)]
        for row in self.ask("claim_many", lambda conn: statements.claim_many(conn, self.owner, served, most)):
            self.take(dict(row))

    def claim(self, job_id: int) -> None:
        """Claim a job that was seen in the queue, whatever became of it since."""
        claim = self.ask("claim_queued", lambda conn: statements.claim_queued(conn, job_id, self.owner))
        self._take_claimed(claim)

    def _take_claimed(self, claim: Claim | None) -> None:
        if claim is not None:
            self.take(dict(self.ask("get", lambda conn: statements.get(conn, claim.job_id))))

    def drop(self, held: Held) -> None:
        """Own a job no longer; what was begun outside comes to its end yet."""
        held.over = True
        self._forget()

    def _forget(self) -> None:
        self.held = [each for each in self.held if not each.over or each.may_send or each.made]

    def beat(self) -> None:
        """Beat for all that is held, and learn what is not ours any more."""
        mine = [held for held in self.held if not held.over]
        ids = sorted({held.claim.job_id for held in mine})
        if not ids:
            return
        sent_s = self.clock()
        beaten = self.ask("beat", lambda conn: statements.beat(conn, self.owner.runner_id, ids))
        answers = {answer.job_id: answer for answer in beaten}
        silent = [held for held in mine if held.claim.job_id not in answers]
        for held in mine:
            answer = answers.get(held.claim.job_id)
            if answer is None:
                continue
            if not is_still_ours(held.claim, answer):
                if not held.is_ending:
                    self.drop(held)
                continue
            held.good_s = sent_s
            held.kill_seen = held.kill_seen or answer.kill_requested
            self.world.acknowledge(held.claim)
        self._look_at(silent)
        for held in self.held:
            if not (held.over or held.is_ending or self.world.stands(held.claim)):
                raise Broken("one owner a claim", f"after a beat, {held.claim} is believed in, and is gone")

    def _look_at(self, silent: list[Held]) -> None:
        if not silent:
            return
        ids = [held.claim.job_id for held in silent]
        rows = self.ask("look", lambda conn: statements.look(conn, ids))
        for held in silent:
            if held.is_ending:
                continue
            if lost_because(held.claim, rows.get(held.claim.job_id)) is not None:
                self.drop(held)

    def release(self, held: Held) -> None:
        self.ask("release", lambda conn: statements.release(conn, held.claim, "stopped"), (held.claim,))
        self.drop(held)

    def release_all(self) -> None:
        """Give everything back that is not on its way to the outside."""
        mine = [held for held in self.held if not (held.over or held.may_send or held.made)]
        claims = tuple(held.claim for held in mine)
        me = self.owner.runner_id
        self.ask("release_many", lambda conn: statements.release_many(conn, me, claims, "stopped"), claims)
        for held in mine:
            self.drop(held)

    # --- sweeping -------------------------------------------------------------------------------

    def look(self) -> None:
        """Look at all that runs elsewhere; a look that fails restarts all counts."""
        if not self.reaches_database:
            self.counts.restart()
            self.sighted.clear()
            return
        mine = {held.claim.job_id for held in self.held if not held.over}
        others = {
            job_id: row
            for job_id, row in self.world.rows.items()
            # A row that somebody holds locked is not shown to a sweeper: see `worklist.silent`.
            if row["state"] == JobState.RUNNING and job_id not in mine and job_id != self.world.locked
        }
        self.counts.keep(set(others))
        found = {job_id: self.counts.look(row) for job_id, row in others.items()}  # type: ignore[arg-type]
        self.sighted = {job_id: seen for job_id, seen in found.items() if seen is not None}

    def adopt(self, job_id: int) -> None:
        """Take over, or lose, one orphan as it was sighted."""
        seen = self.sighted.pop(job_id)
        claim = self.ask("adopt", lambda conn: statements.adopt(conn, seen, self.owner), seen=(seen,))
        self._take_claimed(claim)
        if claim is None and not self._row(job_id).get("adoptable", True):
            self.ask(
                "lose", lambda conn: statements.lose(conn, seen, "sweeper", "it fell silent"), seen=(seen,)
            )

    def adopt_many(self) -> None:
        """Take over all orphans that were sighted, and lose those that nobody can adopt."""
        seen = tuple(self.sighted.values())
        self.sighted.clear()
        rows = self.ask("adopt_many", lambda conn: statements.adopt_many(conn, seen, self.owner), seen=seen)
        for row in rows:
            self.take(dict(row))
        lost = {one: "it fell silent" for one in seen if not self._row(one.job_id).get("adoptable", True)}
        if lost:
            self.ask("lose_many", lambda conn: statements.lose_many(conn, lost, "sweeper"), seen=tuple(lost))

    # --- submitting -----------------------------------------------------------------------------

    def go_on(self, held: Held) -> None:
        """Take the next step for a job: on its way outside, or watching, or cancelling."""
        if held.made is not None:
            self._record(held, *held.made, is_found=held.is_found)
        elif held.may_send is not None:
            self._send(held, *held.may_send)
        elif held.over:
            return
        elif held.is_ending:
            self.write_ends()
        elif held.is_unconfirmed:
            self.confirm(held)
        elif held.external_id is None:
            self._find(held) if held.in_doubt else self._begin(held)
        elif wish := next((each for each in self.wishes if each.held is held), None):
            self._store(wish)
        elif held.kill_seen and not held.cancellation.is_begun:
            self.decide(held, "kill")
            self._store(self.wishes[-1])
        elif held.cancellation.cause is not None and self.clock() - held.good_s <= GRACE * HEARTRATE:
            self._cancel(held)
        else:
            self.fetch(held)

    def _begin(self, held: Held) -> None:
        if held.kill_seen:
            self._end(held, JobState.KILLED, "killed before it was submitted")
            return
        token, begun_s = held.token, self.clock()
        baseline = self.world.outside.baseline() if held.kind is Kind.NUMBERS else None
        host = self.host if held.kind is Kind.RECORD else None
        started_at = self.ask(
            "begin_submit",
            lambda conn: statements.begin_submit(conn, held.claim, token, host, baseline),
            (held.claim,),
            token=token,
        )
        if started_at is not None:
            held.may_send, held.has_begun, held.baseline = (token, begun_s), True, baseline
            return
        row = self.world.rows.get(held.claim.job_id)
        if row is not None and lost_because(held.claim, row) is None:
            if row["submit_token"] != held.token:
                held.begin_anew(row["submit_token"])
            held.has_begun = row["submit_started_at"] is not None
            held.external_id = row["external_id"]
            held.kill_seen = row["kill_requested_at"] is not None

    def _send(self, held: Held, token: str, begun_s: float) -> None:
        held.may_send = None
        if held.kind is Kind.WINDOW and self.clock() - begun_s > SEND_WITHIN_S:
            self._forget()  # too late to be sent, and so nothing is in doubt
            return
        try:
            external_id = self.world.outside.submit(held.kind, token, held.claim.job_id)
        except Refused:
            held.in_doubt = True
        except Unreachable:
            held.in_doubt = True
        else:
            held.made = (token, external_id)
        self._forget()

    def _record(self, held: Held, token: str, external_id: str, *, is_found: bool) -> None:
        job_id = held.claim.job_id
        recorded = self.ask(
            "record_submitted",
            lambda conn: statements.record_submitted(conn, job_id, token, external_id),
            token=token,
        )
        if recorded:
            held.external_id = external_id
        elif not is_found and self._row(job_id).get("external_id") != external_id:
            taken = self.ask("held", lambda conn: statements.held(conn, job_id, [external_id]))
            if not taken:
                self._take_back(external_id)
        held.in_doubt, held.made, held.is_found = not recorded, None, False
        self._forget()

    def _take_back(self, external_id: str) -> None:
        try:
            self.world.outside.cancel(external_id)
        except Unreachable as error:
            raise DatabaseUnavailable("not now") from error  # this step is taken again

    def _find(self, held: Held) -> None:
        """Learn what became of a submission that somebody may have sent."""
        if held.kind is Kind.NUMBERS:
            self._find_by_number(held)
            return
        first_s = self.looked_for_s.setdefault(held.token, self.clock())
        try:
            found = self.world.outside.find(held.kind, held.token, self.clock() - first_s)
        except Unreachable:
            return
        if isinstance(found, Found):
            held.made, held.is_found = (held.token, found.external_id), True
        elif isinstance(found, Absent):
            self.looked_for_s.pop(held.token)
            if not held.kill_seen:
                self._renew(held)
            held.in_doubt = False

    def _find_by_number(self, held: Held) -> None:
        job_id = held.claim.job_id
        try:
            newer = [] if held.baseline is None else self.world.outside.newer_than(held.baseline)
        except Unreachable:
            return
        taken = self.ask("held", lambda conn: statements.held(conn, job_id, newer)) if newer else set()
        free = [external_id for external_id in newer if external_id not in taken]
        if free:
            held.made, held.is_found = (held.token, free[0]), True
        elif held.has_begun:
            self._end(held, JobState.FAILED, f"in doubt: {held.token}")
        else:
            held.in_doubt = False

    def _renew(self, held: Held) -> None:
        old, new = held.token, new_token()
        renewed = self.ask(
            "renew_token",
            lambda conn: statements.renew_token(conn, held.claim, old, new),
            (held.claim,),
            token=old,
        )
        if renewed:
            held.begin_anew(new)

    # --- watching -------------------------------------------------------------------------------

    def fetch(self, held: Held) -> None:
        """Ask how the work is; the answer is applied at another time."""
        if held.over or held.external_id is None:
            return
        try:
            phase = self.world.outside.fetch(held.external_id)
        except Unreachable:
            return  # trouble in watching is no trouble in the job
        self.answers.append(Answer(held.claim, held.external_id, phase))

    def apply(self, answer: Answer, *, again: bool = False) -> None:
        """Let the row know an answer, however old; `again`: its policy wants failed work once more."""
        claim, external_id = answer.claim, answer.external_id
        shown = f"{external_id}:{answer.phase}"
        held = next((each for each in self.held if each.claim == claim and not each.over), None)
        if not answer.phase.is_final:
            sight = Sight(claim.job_id, claim.claims, external_id, shown)
            me = self.owner.runner_id
            self.ask("observe_many", lambda conn: statements.observe_many(conn, me, [sight]), (claim,))
        elif held is None:
            return  # it beats for it no more
        elif answer.phase is Phase.FAILED and again and not held.kill_seen:
            self._resubmit(held, external_id)
        else:
            row = self._row(claim.job_id)
            state = {Phase.SUCCEEDED: JobState.SUCCESS, Phase.FAILED: JobState.FAILED}.get(answer.phase)
            killed = JobState.KILLED if row.get("cancel_cause") == "kill" else JobState.FAILED
            self._end(held, state or killed, f"it ended as {shown}", external_id, shown)

    def _resubmit(self, held: Held, external_id: str) -> None:
        old, new = held.token, new_token()
        done = self.ask(
            "resubmit",
            lambda conn: statements.resubmit(conn, held.claim, old, new, external_id, {}, "once more"),
            (held.claim,),
            token=old,
            external_id=external_id,
        )
        if done:
            held.begin_anew(new)

    def conclude(self, answer: Answer) -> None:
        """Judge how a job ends, by what its row says now; the end is written with others, at another time."""
        held = next((each for each in self.held if each.claim == answer.claim and not each.over), None)
        if held is not None and not held.is_ending and answer.phase.is_final:
            held.is_ending = True
            self.ends.append((held, answer, self._judged(held, answer)))

    def _judged(self, held: Held, answer: Answer) -> End:
        cause = self._row(held.claim.job_id).get("cancel_cause")
        state = {Phase.SUCCEEDED: JobState.SUCCESS, Phase.FAILED: JobState.FAILED}.get(answer.phase)
        cancelled = JobState.KILLED if cause == "kill" else JobState.FAILED
        shown = f"{answer.external_id}:{answer.phase}"
        job_id, claims = held.claim.job_id, held.claim.claims
        return End(job_id, claims, answer.external_id, state or cancelled, shown, cause or "", shown)

    def write_ends(self) -> None:
        """Write all ends that wait, in one statement; what is only held locked is tried again."""
        self.ends = [each for each in self.ends if not each[0].over]
        some = {each[0].claim.job_id: each for each in self.ends}
        if not some:
            return
        claims = tuple(held.claim for held, _, _ in some.values())
        ends = [end for _, _, end in some.values()]
        me = self.owner.runner_id
        written = self.ask("end_many", lambda conn: statements.end_many(conn, me, ends), claims)
        left = [job_id for job_id in some if job_id not in set(written)]
        found = self.ask("look", lambda conn: statements.look(conn, left)) if left else {}
        for job_id, (held, answer, end) in some.items():
            self.ends.remove((held, answer, end))
            row = found.get(job_id)
            is_ours = row is not None and lost_because(held.claim, row) is None
            if row is not None and is_ours and row["external_id"] == answer.external_id:
                self.ends.append((held, answer, self._judged(held, answer)))
            else:
                self.drop(held)

    def _end(
        self,
        held: Held,
        state: JobState,
        message: str,
        external_id: str | None = None,
        shown: str | None = None,
    ) -> None:
        claim = held.claim
        self.ask(
            "end",
            lambda conn: statements.end(
                conn, claim, state, message, external_id=external_id, external_state=shown
            ),
            (claim,),
        )
        # Also where nothing was written, as the row speaks of other work: whoever adopts it finds out.
        self.drop(held)

    # --- cancelling -----------------------------------------------------------------------------

    def decide(self, held: Held, cause: str) -> bool:
        """Decide to cancel the attempt that is watched; to store it is another step."""
        if held.over or held.is_ending or held.external_id is None or held.cancellation.is_begun:
            return False
        held.cancellation.is_begun = True
        self.wishes.append(Wish(held, held.cancellation, held.attempt, cause))
        return True

    def store_wish(self, number: int) -> None:
        """Store a cancellation that was decided on, however long ago."""
        if self.wishes:
            self._store(self.wishes[number % len(self.wishes)])

    def _store(self, wish: Wish) -> None:
        held, attempt = wish.held, wish.attempt
        begun = self.ask(
            "begin_cancel_many",
            lambda conn: begin_cancel(conn, held.claim, attempt, wish.cause),
            (held.claim,),
            token=attempt.token,
            external_id=attempt.external_id,
        )
        self.wishes.remove(wish)
        if begun is not None:
            wish.cancellation.cause = begun.cause
        elif held.cancellation is wish.cancellation and not (held.over or held.is_ending):
            found = self.world.rows.get(held.claim.job_id)
            if found is not None and lost_because(held.claim, found) is None:
                self.drop(held)  # its row is at another attempt: whoever adopts it finds out

    def _cancel(self, held: Held) -> None:
        assert held.external_id is not None
        cause = self._row(held.claim.job_id).get("cancel_cause")
        if cause is None and held.claim.job_id not in self.world.memory.spoiled:
            raise Broken("a kill is never lost", f"{held.external_id} is cancelled without a recorded wish")
        try:
            self.world.outside.cancel(held.external_id)
        except Unreachable:
            return
        self.fetch(held)

    def run_out_of_time(self, held: Held, cause: str = "deadline") -> None:
        """Cancel work whose deadline, or whose time to start, has passed."""
        if held.cancellation.cause is None and self.decide(held, cause):
            self._store(self.wishes[-1])


OWNERS_WRITES: dict[str, Callable[[Connection, Held], object]] = {
    "confirm": lambda conn, held: statements.confirm(conn, held.claim),
    "end": lambda conn, held: statements.end(conn, held.claim, JobState.SUCCESS, "late"),
    "release": lambda conn, held: statements.release(conn, held.claim, "late"),
    "release_many": lambda conn, held: statements.release_many(
        conn, held.claim.runner_id, [held.claim], "late"
    ),
    "begin_submit": lambda conn, held: statements.begin_submit(conn, held.claim, held.token),
    "renew_token": lambda conn, held: statements.renew_token(
        conn, held.claim, held.token, new_token(), held.external_id
    ),
    "resubmit": lambda conn, held: statements.resubmit(
        conn, held.claim, held.token, new_token(), held.external_id or "", {}, "late"
    ),
    "say_unsubmitted": lambda conn, held: statements.say_unsubmitted(conn, held.claim, "late"),
    "begin_cancel_many": lambda conn, held: begin_cancel(conn, held.claim, held.attempt, "deadline"),
    "end_many": lambda conn, held: statements.end_many(
        conn,
        held.claim.runner_id,
        [End(held.claim.job_id, held.claim.claims, held.external_id, JobState.SUCCESS, "late")],
    ),
    "observe_many": lambda conn, held: statements.observe_many(
        conn,
        held.claim.runner_id,
        [Sight(held.claim.job_id, held.claim.claims, held.external_id or "", message="late")],
    ),
    "tell": lambda conn, held: statements.tell(conn, held.claim, "late", {"late": True}),
}
"""What an owner writes, also for one who does not know yet that he is none any more."""


def write(runner: Runner, held: Held, what: str) -> None:
    """Let a runner write under a claim, whether or not it still stands."""
    runner.ask(
        what,
        lambda conn: OWNERS_WRITES[what](conn, held),
        (held.claim,),
        token=held.token,
        external_id=held.external_id,
    )
