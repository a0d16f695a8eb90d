"""The rounds of a worker: it looks for what there is, takes its share, and watches over what it took."""

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import RowMapping

from jobrunner import identity, registry, statements, worklist
from jobrunner.clock import monotonic_s
from jobrunner.database import Database
from jobrunner.errors import DatabaseError
from jobrunner.executors.children import Children
from jobrunner.executors.signals import heard
from jobrunner.logs import get_logger
from jobrunner.models.base_job import object_of
from jobrunner.models.own_run import kill_message
from jobrunner.owned import OwnProcess
from jobrunner.runner import Runner
from jobrunner.statements import Claim, Owner, Sighting
from jobrunner.states import JobState
from jobrunner.sweeper import StandStill
from jobrunner.worker.probe import Probe
from jobrunner.worker.serving import Served, Serving
from jobrunner.worker.share import MOST, least, share
from jobrunner.worker.systemd import Notifier

if TYPE_CHECKING:
    from jobrunner.worker.job import WorkerJob

log = get_logger(__name__)

_T = TypeVar("_T")

LOOK_S = 1.5
"""Seconds between two looks while there is nothing to take."""
PROMPT_S = 1.0
"""Seconds within which a look has to be answered, to make anybody an orphan."""
_NEXT_S = 0.02  # ... and while there is
PATIENT_LOOKS = 3
"""So often others may take their share, before what they left is taken."""
_SILENT_MOST = 20_000  # silent jobs that one look judges
_ROUND_S = 30.0  # beyond the database's own deadline: a round that takes longer makes no progress
_SAME_SIGNAL_S = 0.5  # `timeout`, for one, signals its child, and then the group that the child is in
_UNSERVED_MOST = 20  # kinds of jobs, of which the worker's row says why it does not take them
_LATE = 1.5  # heartrates, after which a beat of our own is late, and so may be those of others
_END_S = 10.0  # how long a worker that stops tries to say so in the database


class Worker:
    """One worker at work: `run` until it is told to stop."""

    def __init__(
        self,
        database: Database,
        owner: Owner,
        claim: Claim,
        job: "WorkerJob",
        probe: Probe | None = None,
    ) -> None:
        self._probe = probe or Probe(None)
        self._database = database
        self._owner = owner
        self._claim = claim
        self._job = job
        spec = job.spec or {}
        self._capacity: int = spec["capacity"]
        self._processes: int = spec["processes"]
        self._drain_timeout_s: float = spec["drain_timeout"]
        for module in spec["imports"]:
            registry.load_module(module)
        self._serving = Serving(database.settings, spec["job_types"], spec["connections"])
        self._still = StandStill(database.settings.grace_multiplier)
        self._stop = asyncio.Event()
        self._outcome: tuple[JobState, str] = (JobState.SUCCESS, "stopped")
        self._is_lost = False
        self._signalled_s: float | None = None
        self._failing: set[str] = set()
        self._passed_over = 0
        self._told: dict[str, Any] = {}
        self._rounds = 0
        self._unserved: list[tuple[str, str | None, str]] = []

    async def run(self) -> JobState:
        """Work until told to stop; return how the worker's own job ended."""
        self._itself = OwnProcess(
            claim=self._claim,
            heartrate=self._job.heartrate,
            good_s=monotonic_s(),
            on_flagged=self._on_flagged,
            on_lost=self._on_lost,
            progress_by_s=monotonic_s() + self._round_s(),
        )
        notifier = Notifier(self.is_well)
        with heard(self._on_signal):
            async with Runner(self._database, self._owner) as self._runner:
                self._children = Children(self._runner, (self._job.spec or {})["imports"])
                self._runner.beat_for(self._itself)
                with self._probe.answering(self.is_well, self.is_ready), notifier:
                    await self._work(notifier)
                    notifier.stopping()
                    await self._drain()
                    await self._end()
        return JobState.LOST if self._is_lost else self._outcome[0]

    def is_well(self) -> bool:
        """Whether its rounds are on time and its beats are good: what a liveness probe asks."""
        runner = getattr(self, "_runner", None)
        return self._itself.is_making_progress() and not (runner and runner.beats.is_fenced(self._itself))

    def is_ready(self) -> bool:
        """Whether it takes jobs: what a readiness probe asks."""
        return self._rounds > 0 and not self._stop.is_set() and not self._is_fenced and self.is_well()

    @property
    def _is_fenced(self) -> bool:
        # Who cannot beat must not take what others would have to take from him.
        return self._runner.beats.is_failing

    def _round_s(self) -> float:
        return self._database.settings.call_timeout_s + _ROUND_S

    # --- rounds --------------------------------------------------------------------------------------

    async def _work(self, notifier: Notifier) -> None:
        while not self._stop.is_set():
            self._itself.progress_by_s = monotonic_s() + self._round_s()
            took = await self._guarded("look", self._round)
            self._rounds += 1
            notifier.ready(f"watching {len(self._runner.jobs):,} jobs")
            with suppress(TimeoutError):
                async with asyncio.timeout(_NEXT_S if took else LOOK_S * random.uniform(0.9, 1.0)):  # noqa: S311
                    await self._stop.wait()

    async def _round(self) -> int:
        """Look, and take what there is for us; return how many jobs were taken."""
        if self._is_fenced:
            self._still.restart()
            return 0
        todo = await self._read(worklist.todo)
        took = 0
        self._unserved = []
        if todo.has_queued:
            took += await self._guarded("claim", self._claim_some)
        if todo.has_silent:
            took += await self._guarded("sweep", self._sweep)
        else:
            self._still.restart()
        await self._guarded("children", self._look_at_children)
        await self._guarded("tell", self._tell)
        return took

    async def _guarded(self, what: str, do: Callable[[], Awaitable[int]]) -> int:
        """Do a part of a round. Whatever goes wrong is said once, and tried again in the next."""
        try:
            done = await do()
        except Exception as error:  # housekeeping must never end the worker
            self._still.restart()
            if what not in self._failing:
                trace = None if isinstance(error, DatabaseError) else error
                log.error(f"the {what} of a worker failed", error=error, exc_info=trace)
            self._failing.add(what)
            return 0
        if what in self._failing:
            self._failing.discard(what)
            log.warning(f"the {what} of a worker works again")
        return done

    async def _look_at_children(self) -> int:
        await self._children.look()
        return 0

    async def _tell(self) -> int:
        """Write into the worker's row what it has, when that changed."""
        found: dict[str, Any] = {
            "jobs": len(self._runner.jobs),
            "processes": len(self._children.by_job),
            "capacity": self._capacity,
        }
        if self._unserved:
            found["unserved"] = [list(each) for each in self._unserved]
        if found != self._told and not self._is_lost:
            message = f"watching {found['jobs']:,} jobs, running {found['processes']:,} processes"
            await self._runner.call(statements.tell, self._claim, message, found)
            self._told = found
        return 0

    # --- queued jobs ----------------------------------------------------------------------------------

    async def _claim_some(self) -> int:
        served = self._serving.of(await self._read(worklist.waiting))
        self._unserved = served.unserved[:_UNSERVED_MOST]
        took = 0
        if served.monitored:
            took += await self._claim_monitored(served)
        if served.coded:
            took += await self._start_children(served.coded)
        return took

    async def _claim_monitored(self, served: Served) -> int:
        most = await self._share(served.count)
        if most <= 0:
            return 0
        rows = await self._runner.call(
            statements.claim_many, self._owner, served.monitored, most, served.host_ids
        )
        return await self._take(rows)

    async def _share(self, waiting: int) -> int:
        """Return how many of the jobs that wait to take in this round."""
        others = [
            (int((row["detail"] or {}).get("jobs", 0)), int((row["spec"] or {}).get("capacity", 0)))
            for row in await self._read(worklist.workers, self._database.settings.grace_multiplier)
            if row["id"] != self._claim.job_id
        ]
        mine = len(self._runner.jobs)
        most = share(mine, self._capacity, waiting, others)
        self._passed_over = self._passed_over + 1 if most == 0 else 0
        if self._passed_over >= PATIENT_LOOKS:
            most = least(mine, self._capacity, waiting, 1 + len(others))
        return most

    async def _take(self, rows: list[RowMapping]) -> int:
        for number, row in enumerate(rows):
            claim = Claim(row["id"], self._owner.runner_id, row["claims"])
            try:
                self._runner.take(claim, row, object_of(row))  # type: ignore[arg-type]  # only such are claimed
            except Exception as error:  # noqa: BLE001  # its connection cannot be used here, for whatever reason
                log.warning("a job cannot be served here", job=row["id"], error=error)
                self._serving.refuse(row["job_type"], row["connection"], str(error))
                await self._runner.release(claim, f"released: {error}")
            if number % 100 == 99:  # noqa: PLR2004  # the loop has other things to do
                await asyncio.sleep(0)
        await self._tell()
        return len(rows)

    # --- jobs that run their own code -------------------------------------------------------------------

    async def _start_children(self, job_types: list[str]) -> int:
        free = self._processes - len(self._children.by_job)
        if free <= 0:
            return 0
        rows = await self._read(worklist.queued, job_types, 10 * self._processes)
        children = self._children
        fit = [
            row["id"]
            for row in rows
            if row["id"] not in children.by_job and not children.is_resting(row["id"])
        ]
        # At random among the oldest: others who choose at the same time shall choose differently.
        some = random.sample(fit, min(free, len(fit)))
        for job_id in some:
            await children.start(job_id)
        return 0  # they claim by themselves: to look again at once would find them still queued

    # --- orphans ----------------------------------------------------------------------------------------

    async def _sweep(self) -> int:
        asked_s = monotonic_s()
        rows = await self._read(worklist.silent, _SILENT_MOST)
        if not self._saw_clearly(asked_s):
            self._still.restart()
            return 0
        mine = self._runner.jobs.keys() | self._children.by_job.keys() | {self._claim.job_id}
        others = {row["id"]: row for row in rows if row["id"] not in mine}
        self._still.keep(others.keys())
        orphans = [(row, seen) for row in others.values() if (seen := self._still.look(row)) is not None]
        to_adopt, to_start, to_lose = self._judged(orphans)
        if to_lose:
            await self._runner.call(statements.lose_many, to_lose, identity.who())
        took = 0
        if to_adopt:
            took = await self._adopt(to_adopt)
        free = self._processes - len(self._children.by_job)
        for seen in to_start[: max(0, free)]:
            await self._children.start(seen.job_id, seen)
        return took

    def _saw_clearly(self, asked_s: float) -> bool:
        """Whether the database was there all the while: else it has kept others from beating, too."""
        beaten_ago_s = monotonic_s() - self._itself.good_s
        return monotonic_s() - asked_s <= PROMPT_S and beaten_ago_s <= _LATE * self._itself.heartrate

    def _judged(
        self, orphans: list[tuple[RowMapping, Sighting]]
    ) -> tuple[list[tuple[RowMapping, Sighting]], list[Sighting], dict[Sighting, str]]:
        """Tell the orphans to watch, to run again, and to lose, of those that are ours to judge."""
        to_adopt: list[tuple[RowMapping, Sighting]] = []
        to_start: list[Sighting] = []
        to_lose: dict[Sighting, str] = {}
        for row, seen in orphans:
            if not row["adoptable"]:
                to_lose[seen] = (
                    f"its process on {row['hostname']} fell silent, and nobody can go on with its code"
                )
            elif not identity.can_serve(row["host_id"]):
                if row["age_s"] >= self._database.settings.host_grace_s:
                    silent_h = row["age_s"] / 3600
                    to_lose[seen] = f"its host {row['hostname']} has been silent for {silent_h:.1f} h"
            elif self._serving.why_not(row["job_type"], row["connection"]) is not None:
                continue  # others may
            elif self._serving.is_monitored(row["job_type"]):
                to_adopt.append((row, seen))
            elif not self._children.is_resting(seen.job_id):
                to_start.append(seen)
        return to_adopt, to_start, to_lose

    async def _adopt(self, orphans: list[tuple[RowMapping, Sighting]]) -> int:
        most = await self._share(len(orphans))
        # At random: others who adopt at the same time shall adopt others of them.
        some = random.sample(orphans, min(most, MOST, len(orphans)))
        hosts = {row["host_id"] for row, _ in some if row["host_id"] is not None}
        rows = await self._runner.call(statements.adopt_many, [seen for _, seen in some], self._owner, hosts)
        log.info("adopted from silent runners", jobs=len(rows))
        return await self._take(rows)

    # --- the end ----------------------------------------------------------------------------------------

    def stop(self, message: str, state: JobState = JobState.SUCCESS) -> None:
        """Take nothing more, give the jobs back, and end; the first reason stands."""
        if not self._stop.is_set():
            self._outcome = (state, message)
            log.info("the worker gives its jobs back", why=message)
            self._stop.set()

    def _on_flagged(self) -> None:
        self.stop("killed", JobState.KILLED)

    def _on_lost(self, why: str) -> None:
        log.error("others took this worker for dead: it stops", why=why)
        self._is_lost = True
        self._stop.set()

    async def _drain(self) -> None:
        """Give the jobs back, and wait for the children; beats go on until then."""
        jobs, children = len(self._runner.jobs), len(self._children.by_job)
        log.info("the worker takes no more", to_release=jobs, children=children)
        await self._runner.stop("released: its worker was stopped")
        if self._children.by_job:
            waiting = asyncio.create_task(self._children.wait(self._drain_timeout_s))
            while not waiting.done():
                self._itself.progress_by_s = monotonic_s() + self._round_s()
                await asyncio.wait([waiting], timeout=LOOK_S)
                await self._guarded("children", self._look_at_children)
        if self._children.by_job:
            log.warning("children go on by themselves", jobs=sorted(self._children.by_job))
        self._children.leave()

    async def _end(self) -> None:
        if self._is_lost:
            return
        state, message = self._outcome
        self._itself.over = True
        self._runner.beats.remove(self._itself)  # no beat comes after the terminal write
        try:
            async with asyncio.timeout(_END_S):
                if state is JobState.KILLED:
                    row = await self._runner.persist(statements.get_or_none, self._claim.job_id)
                    message = message if row is None else kill_message(row)
                await self._runner.persist(statements.end, self._claim, state, message)
        except TimeoutError:
            log.warning("the worker's end could not be written: others will find it silent")

    def _on_signal(self, number: int) -> None:
        name, now_s = signal.Signals(number).name, monotonic_s()
        if self._signalled_s is None:
            self._signalled_s = now_s
            self.stop(f"stopped by {name}")
        elif now_s - self._signalled_s >= _SAME_SIGNAL_S:
            # What is running stays so in the database: others find it silent, and take it over.
            log.warning(f"{name} again: leaving at once")
            os._exit(128 + number)

    # --- asking -----------------------------------------------------------------------------------------

    async def _read(self, ask: Callable[..., _T], *args: object) -> _T:
        def read() -> _T:
            with self._database.read() as connection:
                return ask(connection, *args)

        return await asyncio.to_thread(read)
