"""Jobs by the hundred that are stored together, and whose work ends, or is killed, in one moment."""

import queue
import random
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from threading import Event

from sqlalchemy.exc import SQLAlchemyError

from jobrunner.database import get_database
from jobrunner.errors import DatabaseError
from tests.chaos.faults import AWAY, Fault
from tests.chaos.outside import OPEN, Outside, Plan
from tests.helpers import plain_connection

_BEGUN_WITHIN_S = 60.0
_AGAIN_S = 0.2
_LOOK_S = 0.1


class Bursts:
    """Lets bursts come, one after the other, on a thread of its own.

    All jobs of a burst are stored by one transaction. Once the work of each has begun, half of them are
    killed by one UPDATE, and all other work ends in the same moment; of what is killed, every other one
    would end as well.
    """

    def __init__(self, outside: Outside, url: str, rng: random.Random, count: int, is_over: Event) -> None:
        self.count = count
        self._outside, self._url, self._rng, self._is_over = outside, url, rng, is_over
        self._asked: queue.SimpleQueue[Fault] = queue.SimpleQueue()
        self.is_under_way = False

    def ask(self, fault: Fault) -> None:
        """Let a burst come; it is the `fault`, which ends when the burst has."""
        self.is_under_way = True
        self._asked.put(fault)

    def step(self) -> float:
        """Let the next burst come, if one was asked for; return the seconds until the next step."""
        try:
            fault = self._asked.get_nowait()
        except queue.Empty:
            return _LOOK_S
        plans = [self._outside.plan(self._rng, ends_s=float("inf")) for _ in range(self.count)]
        self._store(plans)
        self._until(lambda: all(self._outside.works_of(plan.name) for plan in plans), _BEGUN_WITHIN_S)
        self._end(plans)
        self._until(lambda: not any(map(self._is_open, plans)), _BEGUN_WITHIN_S)
        fault.end()
        self.is_under_way = False
        return _LOOK_S

    def _store(self, plans: list[Plan]) -> None:
        jobs = {plan.name: self._outside.job(plan, self._rng) for plan in plans}
        while not self._is_over.is_set():
            try:
                with get_database().session() as session:
                    for job in jobs.values():
                        job.store(session=session)
                    session.commit()
            except (DatabaseError, SQLAlchemyError):  # the answer alone may be lost: they are stored once
                self._is_over.wait(_AGAIN_S)
                continue
            for plan in plans:
                plan.job = jobs[plan.name]
            return

    def _end(self, plans: list[Plan]) -> None:
        unwanted = self._rng.sample(plans, len(plans) // 2)
        self._kill(unwanted)
        ends_s = time.time()
        endless = {plan.name for plan in unwanted[::2]}
        for plan in plans:
            if plan.name not in endless:
                plan.ends_s = ends_s

    def _kill(self, plans: list[Plan]) -> None:
        jobs = {plan.job.id: plan for plan in plans if plan.job is not None}
        for plan in plans:
            plan.is_unwanted = True
        while not self._is_over.is_set():
            try:
                with closing(plain_connection(self._url)) as connection:
                    rows = connection.execute(kill_statement(self._url, jobs)).fetchall()
            except AWAY:  # then it was done or not: it is done again
                self._is_over.wait(_AGAIN_S)
                continue
            for (job_id,) in rows:
                jobs[job_id].must_be_killed = True
            return

    def _is_open(self, plan: Plan) -> bool:
        works = self._outside.works_of(plan.name)
        return not works or works[0].status == OPEN

    def _until(self, condition: Callable[[], bool], most_s: float) -> None:
        end_s = time.monotonic() + most_s
        while time.monotonic() < end_s and not condition():
            if self._is_over.wait(_LOOK_S):
                return


def kill_statement(url: str, job_ids: Iterable[int]) -> str:
    """Return the UPDATE by which any client kills jobs, and which returns the ids of those that it met."""
    now = "now()" if url.startswith("postgresql") else "datetime('now')"
    return (
        f"UPDATE job SET kill_requested_at = {now}, kill_requested_by = 'chaos' "
        f"WHERE id IN ({', '.join(map(str, job_ids))}) AND state IN ('queued', 'running') "
        "AND kill_requested_at IS NULL RETURNING id"
    )
