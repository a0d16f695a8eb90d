"""The state machine: several runners, one database, and all that may befall them, in any order."""

import datetime as dt
from collections.abc import Callable
from contextlib import ExitStack

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from jobrunner import identity, statements
from jobrunner.errors import DatabaseError
from jobrunner.statements import PROTOCOL, Claim
from jobrunner.states import JobState, Phase
from tests.model.invariants import KILL, stand
from tests.model.outside import Broken, Kind
from tests.model.runners import OWNERS_WRITES, Held, Runner, new_token, write
from tests.model.world import HEARTRATE, STEP_S, Row, Step, World

ALL_KINDS = frozenset(Kind)
_SERVED_ON_B = frozenset({Kind.RECORD, Kind.NUMBERS})
BARS = {
    "host_uid": identity.uid() + 1,
    "needs": PROTOCOL + 1,
    "held_at": dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
}
"""What keeps everybody here from claiming a job, by the column that says so."""
_MOST_JOBS = 5
_ROUNDS_TO_END = 60
_MISHAPS_OF_RUNNERS = [
    "pause",
    "resume",
    "resume",
    "crash",
    "cut off",
    "connected",
    "connected",
    "its next answer is lost",
    "its host sleeps",
]
_MISHAPS_OUTSIDE = [
    *(str(phase) for phase in (Phase.SUCCEEDED, Phase.FAILED, Phase.FAILED, Phase.CANCELLED)),
    "somebody starts work by hand",
    "its next answer is lost",
    "down",
    "up",
    "up",
]
_MISHAPS_OF_THE_DATABASE = [
    "the last commit is lost",
    "the last commit is lost",
    "its clock goes back",
    "its clock goes back to a beat",
    "a row is held locked",
    "the row is let go",
    "down",
    "up",
    "up",
    "up",
]

which_runner = st.integers(0, 2)
which = st.integers(0, _MOST_JOBS)


class Machine(RuleBasedStateMachine):
    """What befalls runners, the database and the outside; each rule is one thing that happens."""

    make_world: Callable[[], World]

    def __init__(self) -> None:
        super().__init__()
        self.world = type(self).make_world()
        self.stack = ExitStack()
        self.stack.enter_context(self.world.begun())
        self.stored = 0
        self.broken = False
        self.runners = [self._runner("host a", ALL_KINDS), self._runner("host a", ALL_KINDS)]
        self.runners.append(self._runner("host b", _SERVED_ON_B))

    def _runner(self, host: str, serves: frozenset[Kind]) -> Runner:
        return Runner(self.world, host, frozenset(serves), origin_s=1000.0 * ord(host[-1]))

    # --- helpers: choosing, and what a runner does when the database does not answer -------------

    def _try(self, act: Callable[[], object]) -> None:
        """Let a runner act; an error of the database is no end of anything."""
        try:
            act()
        except DatabaseError:
            pass
        except Broken:
            self.broken = True
            raise

    def _awake(self, number: int) -> Runner | None:
        runner = self.runners[number % len(self.runners)]
        return None if runner.paused else runner

    def _job(self, number: int) -> int | None:
        ids = sorted(self.world.rows)
        return ids[number % len(ids)] if ids else None

    @staticmethod
    def _held(runner: Runner, number: int) -> Held | None:
        return runner.held[number % len(runner.held)] if runner.held else None

    def _values(self, kind: Kind, *, adoptable: bool, bound: bool, barred_by: str = "") -> Row:
        self.stored += 1
        values = {"job_type": "Model", "heartrate": HEARTRATE, "connection": kind, "adoptable": adoptable}
        values |= {barred_by: BARS[barred_by]} if barred_by else {}
        values |= {"submit_token": new_token(), "host_id": "host b" if bound else None}
        return values | {"key": f"key-{values['submit_token']}"}

    @initialize(kinds=st.lists(st.sampled_from(sorted(Kind)), min_size=2, max_size=3), claimed=st.booleans())
    def begin(self, kinds: list[Kind], claimed: bool) -> None:
        for kind in kinds:
            self.queue(kind=kind)
        if claimed:
            self.claim_many(who=0, most=3)

    # --- starting and claiming ------------------------------------------------------------------

    @precondition(lambda self: self.stored < _MOST_JOBS)
    @rule(
        kind=st.sampled_from(sorted(Kind)),
        adoptable=st.sampled_from([True, True, False]),
        bound=st.sampled_from([False, False, True]),
    )
    def queue(self, kind: Kind, adoptable: bool = True, bound: bool = False, barred_by: str = "") -> None:
        is_bound = bound and kind in _SERVED_ON_B
        values = self._values(Kind(kind), adoptable=adoptable, bound=is_bound, barred_by=barred_by)
        step = Step("store")
        if not self.world.is_down:
            self._try(lambda: self.world.run(step, lambda c: statements.store(c, values, None, "test")))

    @precondition(lambda self: self.stored < _MOST_JOBS)
    @rule(who=which_runner, kind=st.sampled_from(sorted(Kind)))
    def start(self, who: int, kind: Kind, adoptable: bool = True, barred_by: str = "") -> None:
        if (runner := self._awake(who)) is not None:
            values = self._values(Kind(kind), adoptable=adoptable, bound=False, barred_by=barred_by)
            self._try(lambda: runner.start(values))

    @rule(who=which_runner, number=which)
    def start_again(self, who: int, number: int = 0) -> None:
        """What was sent to be stored, and never answered, is sent again."""
        if (runner := self._awake(who)) is not None and runner.unheard:
            self._try(lambda: runner.store(runner.unheard[number % len(runner.unheard)]))

    @rule(who=which_runner, number=which)
    def look_for_start(self, who: int, number: int = 0) -> None:
        """What was sent to be stored, and never answered, is looked for."""
        if (runner := self._awake(who)) is not None and runner.unheard:
            self._try(lambda: runner.look_for(runner.unheard[number % len(runner.unheard)]))

    @rule(who=which_runner, most=st.integers(1, 3))
    def claim_many(self, who: int, most: int = 3) -> None:
        if (runner := self._awake(who)) is not None:
            self._try(lambda: runner.claim_many(most))

    @rule(who=which_runner, job=which)
    def claim(self, who: int, job: int) -> None:
        runner, job_id = self._awake(who), self._job(job)
        if runner is not None and job_id is not None:
            self._try(lambda: runner.claim(job_id))

    # --- owning ---------------------------------------------------------------------------------

    @rule(who=which_runner)
    def beat(self, who: int) -> None:
        if (runner := self._awake(who)) is not None:
            self._try(runner.beat)

    @rule(who=which_runner, steps=st.integers(1, 4))
    def go_on_with_all(self, who: int, steps: int = 1) -> None:
        for number in range(_MOST_JOBS):
            runner = self._awake(who)
            if runner is not None and number < len(runner.held):
                self.go_on(who=who, job=number, steps=steps)

    @rule(who=which_runner, job=which, steps=st.integers(1, 4))
    def go_on(self, who: int, job: int, steps: int = 1) -> None:
        for _ in range(steps):
            runner = self._awake(who)
            held = None if runner is None else self._held(runner, job)
            if runner is not None and held is not None:
                self._try(lambda runner=runner, held=held: runner.go_on(held))  # type: ignore[misc]

    @rule(who=which_runner, job=which)
    def fetch(self, who: int, job: int) -> None:
        runner = self._awake(who)
        held = None if runner is None else self._held(runner, job)
        if runner is not None and held is not None:
            self._try(lambda: runner.fetch(held))

    @rule(who=which_runner, number=which, again=st.booleans())
    def apply(self, who: int, number: int = 0, again: bool = False) -> None:
        runner = self._awake(who)
        if runner is not None and runner.answers:
            answer = runner.answers.pop(number % len(runner.answers))
            self._try(lambda: runner.apply(answer, again=again))

    @rule(who=which_runner, job=which, cause=st.sampled_from(["deadline", "start_timeout"]))
    def out_of_time(self, who: int, job: int, cause: str = "deadline") -> None:
        runner = self._awake(who)
        held = None if runner is None else self._held(runner, job)
        if runner is not None and held is not None:
            self._try(lambda: runner.run_out_of_time(held, cause))

    @rule(who=which_runner, job=which, cause=st.sampled_from(["kill", "deadline", "start_timeout"]))
    def decide_to_cancel(self, who: int, job: int = 0, cause: str = "start_timeout") -> None:
        """Its owner decides to cancel an attempt, and something else comes before that is stored."""
        runner = self._awake(who)
        held = None if runner is None else self._held(runner, job)
        if runner is not None and held is not None and (held.kill_seen or cause != "kill"):
            runner.decide(held, cause)

    @rule(who=which_runner, number=which)
    def cancel_late(self, who: int, number: int = 0) -> None:
        if (runner := self._awake(who)) is not None:
            self._try(lambda: runner.store_wish(number))

    @rule(who=which_runner, number=which)
    def conclude(self, who: int, number: int = 0) -> None:
        """Its owner has seen how a job ended; the end is to be written."""
        runner = self._awake(who)
        if runner is not None and runner.answers:
            runner.conclude(runner.answers.pop(number % len(runner.answers)))

    @rule(who=which_runner)
    def write_ends(self, who: int) -> None:
        """A burst of ends is written at once."""
        if (runner := self._awake(who)) is not None:
            self._try(runner.write_ends)

    @rule(who=which_runner, job=which, unsubmitted=st.booleans())
    def say(self, who: int, job: int, unsubmitted: bool) -> None:
        """A job says how it goes, or why it has no external id yet."""
        runner = self._awake(who)
        held = None if runner is None else self._held(runner, job)
        if runner is not None and held is not None and not held.over:
            self._try(lambda: write(runner, held, "say_unsubmitted" if unsubmitted else "tell"))

    @rule(who=which_runner, job=which)
    def release(self, who: int, job: int) -> None:
        runner = self._awake(who)
        held = None if runner is None else self._held(runner, job)
        if runner is not None and held is not None and not (held.over or held.may_send or held.made):
            self._try(lambda: runner.release(held))

    @rule(who=which_runner)
    def release_all(self, who: int) -> None:
        if (runner := self._awake(who)) is not None:
            self._try(runner.release_all)

    @rule(who=which_runner, job=which, what=st.sampled_from(sorted(OWNERS_WRITES)))
    def write_late(self, who: int, job: int, what: str) -> None:
        """Somebody writes under a claim that no longer stands, before he has learnt of it."""
        runner = self._awake(who)
        held = None if runner is None else self._held(runner, job)
        if runner is not None and held is not None and not self.world.stands(held.claim):
            self._try(lambda: write(runner, held, what))

    # --- sweeping -------------------------------------------------------------------------------

    @rule(who=which_runner, job=which, many=st.booleans())
    def adopt(self, who: int, job: int = 0, many: bool = False) -> None:
        runner = self._awake(who)
        if runner is not None and not runner.sighted and self._somebody_is_silent():
            self.wait(steps=5)  # until he has seen it stand still
        if runner is not None and runner.sighted:
            ids = sorted(runner.sighted)
            job_id = ids[job % len(ids)]
            self._try(runner.adopt_many if many else lambda: runner.adopt(job_id))

    def _somebody_is_silent(self) -> bool:
        held = [one.claim for each in self.runners if not (each.paused or each.cut_off) for one in each.held]
        running = [row for row in self.world.rows.values() if row["state"] == JobState.RUNNING]
        return any(Claim(row["id"], row["runner_id"], row["claims"]) not in held for row in running)

    @rule(steps=st.integers(1, 6))
    def wait(self, steps: int = 1) -> None:
        """Time passes: whoever lives beats, and looks for orphans."""
        for _ in range(steps):
            self.world.pass_time(STEP_S)
            for runner in self.runners:
                if not runner.paused:
                    self._try(runner.beat)
                    runner.look()

    # --- killing --------------------------------------------------------------------------------

    @rule(job=which, by=st.sampled_from(["anna", "ben"]))
    def kill(self, job: int, by: str = "anna") -> None:
        job_id = self._job(job)
        if job_id is not None and not self.world.is_down:
            self._try(lambda: self._kill(job_id, by))

    def _kill(self, job_id: int, by: str) -> None:
        step = Step("request_kill")
        state = self.world.run(step, lambda conn: statements.request_kill(conn, job_id, by, f"{by} says so"))
        if state is not None and not state.is_terminal:
            self.world.memory.wished.add(job_id)

    @rule(job=which)
    def kill_by_sql(self, job: int) -> None:
        job_id = self._job(job)
        if job_id is not None and not self.world.is_down:
            self._try(lambda: self.world.kill_by_sql(job_id))

    # --- what befalls a runner ------------------------------------------------------------------

    @rule(who=which_runner, what=st.sampled_from(_MISHAPS_OF_RUNNERS))
    def befall_runner(self, who: int, what: str) -> None:
        runner = self.runners[who]
        if what == "pause":
            runner.paused = True
        elif what == "resume":
            runner.paused = False
        elif what == "crash":  # and another one starts on its host
            self.runners[who] = Runner(self.world, runner.host, runner.serves, runner.origin_s)
        elif what == "its host sleeps":  # and its clock, which counts that, jumps
            runner.paused = True
            self.wait(steps=3)
            runner.paused = False
        elif what == "its next answer is lost":  # what it asks is done
            runner.loses_next_answer = True
        else:
            runner.cut_off = what == "cut off"

    @rule(number=which, what=st.sampled_from(_MISHAPS_OUTSIDE))
    def befall_outside(self, what: str, number: int = 0) -> None:
        outside = self.world.outside
        works = list(outside.works)
        if what in set(Phase):
            if works:
                outside.finish(works[number % len(works)], Phase(what))
        elif what == "somebody starts work by hand":  # where only numbers tell what is new
            if not (outside.is_down or outside.loses_next_answer):
                outside.submit(Kind.NUMBERS, None, None)
        elif what == "its next answer is lost":
            outside.loses_next_answer = True
        else:
            outside.is_down = what == "down"

    @rule(job=which, what=st.sampled_from(_MISHAPS_OF_THE_DATABASE))
    def befall_database(self, what: str, job: int = 0) -> None:
        world, job_id = self.world, self._job(job)
        if what == "the last commit is lost":
            world.fail_over()
        elif what == "its clock goes back":
            world.database_clock_s -= 3600.0
        elif what == "its clock goes back to a beat" and job_id is not None:
            # The next beat looks like one that was seen.
            world.put_clock_to(world.rows[job_id]["latest_heartbeat"])
        elif what == "a row is held locked":
            if job_id is not None and not world.database.is_sqlite:
                world.lock(job_id)
        elif what == "the row is let go":
            world.unlock()
        elif what in {"up", "down"}:
            world.is_down = what == "down"

    # --- what must hold -------------------------------------------------------------------------

    @invariant()
    def what_stands_is_right(self) -> None:
        stand(self.world)

    def teardown(self) -> None:
        try:
            if not self.broken:
                self.come_to_an_end()
        finally:
            self.world.unlock()
            self.stack.close()

    def come_to_an_end(self) -> None:
        """All is well again, and everybody goes on: every wish to end something comes true."""
        world = self.world
        world.is_down = world.outside.is_down = world.outside.loses_next_answer = False
        world.unlock()
        for runner in self.runners:
            runner.paused = runner.cut_off = runner.loses_next_answer = False
        for _ in range(_ROUNDS_TO_END):
            if self._is_at_rest():
                break
            self._one_round()
        for job_id, row in world.rows.items():
            if row["kill_requested_at"] is not None and not JobState(row["state"]).is_terminal:
                raise Broken(KILL, f"job {job_id} is {row['state']} yet")
        stand(world)

    def _is_at_rest(self) -> bool:
        wished = [row for row in self.world.rows.values() if row["kill_requested_at"] is not None]
        in_flight = any(held.may_send or held.made for runner in self.runners for held in runner.held)
        in_flight = in_flight or any(runner.wishes or runner.ends for runner in self.runners)
        return not in_flight and all(JobState(row["state"]).is_terminal for row in wished)

    def _one_round(self) -> None:
        self.wait()
        for runner in self.runners:
            self._try(lambda runner=runner: runner.claim_many(_MOST_JOBS))  # type: ignore[misc]
            if runner.sighted:
                self._try(runner.adopt_many)
            for held in list(runner.held):
                self._try(lambda runner=runner, held=held: runner.go_on(held))  # type: ignore[misc]
            for number in range(len(runner.wishes)):
                self._try(lambda runner=runner, number=number: runner.store_wish(number))  # type: ignore[misc]
            self._try(runner.write_ends)
            for answer in runner.answers:
                self._try(lambda runner=runner, answer=answer: runner.apply(answer))  # type: ignore[misc]
            runner.answers.clear()


def machine_on(make_world: Callable[[], World]) -> type[Machine]:
    """Return the machine over worlds that are made so."""
    return type("ModelOfRunners", (Machine,), {"make_world": staticmethod(make_world)})
