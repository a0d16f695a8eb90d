"""The world outside: what was planned, what was begun for it, and the hand that ends each work."""

import itertools
import random
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from jobrunner import BaseJob
from tests.chaos.odd_text import any_of_it

OPEN, SUCCESS, FAILED, KILLED = "open", "success", "failed", "killed"
_NAME_MOST = 250


@dataclass(slots=True)
class Plan:
    """A job as it is meant to be, and what befell it."""

    name: str
    kind: str
    seconds: float
    succeeds: bool
    ends_s: float | None = None
    """time.time() when its work ends, whenever it began; inf: only a kill ends it. None: after `seconds`."""
    job: BaseJob | None = None
    """What was stored, once it was."""
    is_unwanted: bool = False
    """Whether its kill was requested, or tried to be."""
    must_be_killed: bool = False
    """Whether a kill of it was accepted."""

    @property
    def is_stored(self) -> bool:
        return self.job is not None

    def is_due(self, begun_s: float, now_s: float) -> bool:
        """Whether work of it that began then ends by itself now."""
        return now_s >= (begun_s + self.seconds if self.ends_s is None else self.ends_s)


@dataclass(slots=True)
class Work:
    """Work that was begun for a job."""

    key: str
    name: str
    status: str
    begun_s: float
    """time.time(), as is `ended_s`."""
    ended_s: float | None = None


class Side(Protocol):
    """One kind of work: how a job of it is made, what was begun for it, and how it is moved on."""

    kind: str
    share: float
    """Of all jobs, how many are of this kind."""
    is_elsewhere: bool
    """Whether the work is done outside, and ends when it is told to."""

    def environment(self) -> Mapping[str, str]: ...
    def job(self, plan: Plan, rng: random.Random) -> BaseJob: ...
    def statuses(self, over: Collection[str]) -> list[tuple[str, str, str]]:
        """Return key, name and status of all work, but of that whose keys are in `over`."""
        ...

    def end(self, key: str, succeeds: bool) -> None: ...
    def storm(self, rng: random.Random) -> str: ...
    def calm(self) -> None: ...


def key_of(name: str | None) -> str:
    """Return the name of a plan, with which the name of its job begins."""
    return (name or "").partition(" ")[0]


@dataclass
class Outside:
    """All that is outside, and the hand that ends each work when its time has come."""

    sides: dict[str, Side]
    plans: dict[str, Plan] = field(default_factory=dict)
    works: dict[tuple[str, str], Work] = field(default_factory=dict)
    """By the kind and the key."""
    _works_of: dict[str, list[Work]] = field(default_factory=lambda: defaultdict(list))
    _over: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def environment(self) -> dict[str, str]:
        """Return the variables by which a worker reaches all of it."""
        found: dict[str, str] = {}
        for side in self.sides.values():
            found |= side.environment()
        return found

    def plan(self, rng: random.Random, *, ends_s: float | None = None) -> Plan:
        """Think of the next job. `ends_s`: of its work, which then is one that is done elsewhere."""
        sides = [side for side in self.sides.values() if ends_s is None or side.is_elsewhere]
        kind = rng.choices(sides, [side.share for side in sides])[0].kind
        name = f"{kind}-{next(self._numbers)}"
        plan = Plan(name, kind, rng.uniform(1.0, 20.0), rng.random() < 0.8, ends_s)
        self.plans[plan.name] = plan
        return plan

    def job(self, plan: Plan, rng: random.Random) -> BaseJob:
        """Return the job, not yet stored; after the name of its plan its own is odd."""
        job = self.sides[plan.kind].job(plan, rng)
        job.name = f"{plan.name} {any_of_it(rng)}"[:_NAME_MOST]
        job.dag_id = any_of_it(rng, _NAME_MOST)
        return job

    def move(self, *, looks_again: bool = False) -> None:
        """End what is due, and take note of what has begun and ended.

        `looks_again`: also at what had ended before.
        """
        for side in self.sides.values():
            over = self._over[side.kind]
            for key, name, status in side.statuses(() if looks_again else over):
                now_s = time.time()
                work = self.works.get((side.kind, key))
                if work is None:
                    work = self.works[side.kind, key] = Work(key, name, OPEN, now_s)
                    self._works_of[name].append(work)
                if work.status == OPEN and status == OPEN:
                    plan = self.plans[name]
                    if plan.is_due(work.begun_s, now_s):
                        side.end(key, plan.succeeds)
                        work.ended_s = work.ended_s or now_s
                elif work.status == OPEN:
                    work.status, work.ended_s = status, work.ended_s or now_s
                    over.add(key)

    def at_work(self) -> list[Plan]:
        """Return the jobs whose work is not known to have ended, and whose kill nobody requested yet."""
        return [
            plan
            for plan in list(self.plans.values())
            if plan.is_stored
            and not plan.is_unwanted
            and all(work.status == OPEN for work in self.works_of(plan.name))
        ]

    def is_elsewhere(self, plan: Plan) -> bool:
        """Whether its work is done outside, and ends when it is told to."""
        return self.sides[plan.kind].is_elsewhere

    def works_of(self, name: str) -> list[Work]:
        """Return all work that was ever begun for a job."""
        return self._works_of.get(name, [])
