"""Strikes at the world outside, and kills of jobs: requested by any client, in any words."""

from contextlib import suppress

from jobrunner.errors import DatabaseError, DatabaseUnavailable
from jobrunner.states import JobState
from tests.chaos.bursts import kill_statement
from tests.chaos.faults import AWAY
from tests.chaos.odd_text import any_of_it
from tests.chaos.outside import Plan
from tests.chaos.strikes.hand import Hand
from tests.helpers import plain_sql


class OutsideStrikes(Hand):
    """Servers that misbehave, kills, and bursts."""

    def storm(self) -> None:
        """Let a server refuse, break off or hang all calls for a while."""
        side = self.rng.choice([each for each in self.outside.sides.values() if each.environment()])
        kind = side.storm(self.rng)
        fault = self.faults.note(f"storm of {side.kind}: {kind}")

        def calm() -> None:
            side.calm()
            fault.end()

        self.faults.later(self.rng.uniform(1.0, 8.0), calm)

    def wish_a_kill(self) -> None:
        """Set the kill flag of a job, by plain SQL, as any client would."""
        plan = self._one_at_work()
        if plan is None or plan.job is None:
            return
        plan.is_unwanted = True
        with suppress(*AWAY):  # then it was requested or not: the row says
            if plain_sql(self.url, kill_statement(self.url, [plan.job.id])):
                self._must_be_killed(plan)

    def kill_for_an_odd_reason(self) -> None:
        """Request a kill of a job in words that no database takes as they are: it counts all the same."""
        plan = self._one_at_work()
        if plan is None or plan.job is None:
            return
        plan.is_unwanted = True
        self.faults.note("kill for an odd reason").end()
        by, reason = any_of_it(self.rng), any_of_it(self.rng)
        try:
            state = plan.job.request_kill(by=by, reason=reason)
        except DatabaseUnavailable:
            return  # then it was requested or not: the row says
        except DatabaseError as error:
            self.faults.wrongs.append(f"a kill of {plan.name} by {by[:40]!r} was refused: {error}")
            return
        if state in {JobState.QUEUED, JobState.RUNNING}:
            self._must_be_killed(plan)

    def burst(self) -> None:
        """Store jobs by the hundred, end half of them in one moment, and kill the others in the same one."""
        if not self.bursts.is_under_way:
            self.bursts.ask(self.faults.note(f"burst: {self.bursts.count} jobs"))

    def _one_at_work(self) -> Plan | None:
        plans = self.outside.at_work()
        return self.rng.choice(plans) if plans else None

    def _must_be_killed(self, plan: Plan) -> None:
        """Let nothing but the kill end the work, every other time: a kill that is lost is seen then."""
        plan.must_be_killed = True
        if self.outside.is_elsewhere(plan) and self.rng.random() < 0.5:
            plan.ends_s = float("inf")
