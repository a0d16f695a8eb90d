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
from jobrunner.errors import DatabaseError, UsageError
from jobrunner.executors.base import CodeJobs, WorkerExecutor
from jobrunner.executors.children import Children
from jobrunner.executors.signals import heard
from jobrunner.logs import get_logger
from jobrunner.models.base_job import object_of
from jobrunner.models.own_run import kill_message
from jobrunner.owned import OwnProcess
from jobrunner.resources import parsed, resources_in
from jobrunner.runner import Runner
from jobrunner.statements import Claim, Owner, Sighting
from jobrunner.states import JobState
from jobrunner.sweeper import StandStill
from jobrunner.worker.probe import Probe
from jobrunner.worker.serving import Served, Serving, Unserved
from jobrunner.worker.share import least, share
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
STOPPING = "stopping"
"""What a worker's `detail` says while it drains."""
_STEPS_MOST = 3_000  # jobs on their way to their submission: each must come to it within its step's time
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
        self._drain_timeout_s: float = spec["drain_timeout"]
        for module in spec["imports"]:
            registry.load_module(module)
        self._serving = Serving(
            database.settings,
            spec["job_types"],
            spec["connections"],
            watches=self._capacity > 0,
            runs_code=spec["processes"] != 0,
        )
        self._still = StandStill(database.settings.grace_multiplier)
        self._stop = asyncio.Event()
        self._outcome: tuple[JobState, str] = (JobState.SUCCESS, "stopped")
        self._is_lost = False
        self._signalled_s: float | None = None
        self._failing: set[str] = set()
        self._passed_over = 0
        self._told: dict[str, Any] = {}
        self._rounds = 0
        self._unserved: list[Unserved] = []

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
                self._code = self._code_jobs()
                self._runner.beat_for(self._itself)
                with self._probe.answering(self.is_well, self.is_ready), notifier:
                    await self._work(notifier)
                    notifier.stopping()
                    await self._drain()
                    await self._end()
        return JobState.LOST if self._is_lost else self._outcome[0]

    def _code_jobs(self) -> CodeJobs:
        executor, spec, runner = self._job.executor, self._job.spec or {}, self._runner
        if isinstance(executor, WorkerExecutor):
            return executor.code_jobs(runner, self._claim, self._job)
        named = runner.owner.executor_class
        return Children(self._database, named, runner.persist, spec["imports"], spec["processes"])

    def is_well(self) -> bool:
        """Whether its rounds are on time and its beats are good: what a liveness probe asks."""
        runner = getattr(self, "_runner", None)
        return self._itself.is_making_progress() and not (runner and runner.beats.is_fenced(self._itself))

    def is_ready(self) -> bool:
        """Whether it takes jobs: what a readiness probe asks."""
        if self._rounds == 0 or self._stop.is_set() or self._is_fenced:
            return False
        return self._code.is_ready and self.is_well()

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
            await self._guarded("question whether to go on", self._ask_to_go_on)
            took = await self._guarded("look", self._round)
            self._rounds += 1
            notifier.ready(f"watching {len(self._runner.jobs):,} jobs")
            with suppress(TimeoutError):
                async with asyncio.timeout(_NEXT_S if took else LOOK_S * random.uniform(0.9, 1.0)):  # noqa: S311
                    await self._stop.wait()

    async def _ask_to_go_on(self) -> int:
        why = None if self._job.why_stop is None else await asyncio.to_thread(self._job.why_stop)
        if why is not None:
            self.stop(f"stopped: {why}")
        return 0

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
        await self._guarded("look after code", self._look_after_code)
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

    async def _look_after_code(self) -> int:
        await self._code.look()
        return 0

    async def _tell(self) -> int:
        """Write into the worker's row what it has, when that changed."""
        found: dict[str, Any] = {
            "jobs": len(self._runner.jobs),
            "processes": len(self._code.by_job),
            "capacity": self._capacity,
            **self._code.detail(),
        }
        if self._unserved:
            found["unserved"] = [each.as_row() for each in self._unserved[:_UNSERVED_MOST]]
        if self._stop.is_set():
            found[STOPPING] = True
        message = self._code.message(len(self._runner.jobs))
        told = {**found, "message": message}
        if told != self._told and not self._is_lost:
            await self._write(statements.tell, self._claim, message, found)
            self._told = told
        return 0

    # --- queued jobs ----------------------------------------------------------------------------------

    async def _claim_some(self) -> int:
        served = self._serving.of(await self._read(worklist.waiting))
        self._unserved = served.unserved
        took = 0
        if served.monitored:
            took += await self._claim_monitored(served)
        if served.coded:
            await self._start_code(served.coded)  # it claims by itself: to look again at once is too early
        return took

    async def _claim_monitored(self, served: Served) -> int:
        most = min(await self._share(served.count), _STEPS_MOST - self._runner.steps)
        if most <= 0:
            return 0
        rows = await self._write(statements.claim_many, self._owner, served.monitored, most, served.host_ids)
        return await self._take(rows)

    async def _share(self, waiting: int) -> int:
        """Return how many of the jobs that wait to take in this round."""
        others = [
            (int((row["detail"] or {}).get("jobs", 0)), room)
            for row in await self._read(worklist.workers, self._database.settings.grace_multiplier)
            if row["id"] != self._claim.job_id and (room := int((row["spec"] or {}).get("capacity", 0)))
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
                self._runner.own(claim, row, object_of(row))  # type: ignore[arg-type]  # only such are claimed
            except Exception as error:  # noqa: BLE001  # its connection cannot be used here, for whatever reason
                log.warning("a job cannot be served here", job=row["id"], error=error)
                self._serving.refuse(row["job_type"], row["connection"], str(error))
                await self._runner.release(claim, f"released: {error}")
            if number % 100 == 99:  # noqa: PLR2004  # the loop has other things to do
                await asyncio.sleep(0)
        await self._tell()
        return len(rows)

    # --- jobs that run their own code -------------------------------------------------------------------

    async def _start_code(self, job_types: list[str]) -> None:
        code = self._code
        texts = set()
        for job_type, text in await self._read(worklist.asked, job_types):
            why, resources = self._why_not(text)
            if why is not None:
                self._unserved.append(Unserved(job_type, None, why, resources))
            elif code.has_room_for(resources):
                texts.add(text)
        if not texts:
            return
        rows = await self._read(worklist.queued, job_types, texts, 10 * code.free)
        fit = [row for row in rows if row["id"] not in code.by_job and not code.is_resting(row["id"])]
        # At random among the oldest: others who choose at the same time shall choose differently.
        for row in random.sample(fit, len(fit)):
            resources = resources_in(row["spec"])
            if code.has_room_for(resources):
                await code.start(row["id"], None, resources)

    def _why_not(self, text: str | None) -> tuple[str | None, dict[str, float]]:
        """Return why code that asks for these resources is not run here, and the resources."""
        try:
            resources = parsed(text)
        except (UsageError, ValueError) as error:
            return f"what it asks for cannot be read: {error}", {}
        return self._code.why_not(resources), resources

    # --- orphans ----------------------------------------------------------------------------------------

    async def _sweep(self) -> int:
        asked_s = monotonic_s()
        rows = await self._read(worklist.silent, _SILENT_MOST)
        if not self._saw_clearly(asked_s):
            self._still.restart()
            return 0
        mine = self._runner.jobs.keys() | self._code.held | {self._claim.job_id}
        others = {row["id"]: row for row in rows if row["id"] not in mine}
        self._still.keep(others.keys())
        orphans = [(row, seen) for row in others.values() if (seen := self._still.look(row)) is not None]
        to_adopt, to_start, to_lose = self._judged(orphans)
        if to_lose:
            await self._runner.call(statements.lose_many, to_lose, identity.who())
        took = 0
        if to_adopt:
            took = await self._adopt(to_adopt)
        if to_start:
            await self._start_again(to_start)
        return took

    async def _start_again(self, orphans: list[Sighting]) -> None:
        seen_of = {seen.job_id: seen for seen in orphans}
        for row in await self._read(statements.get_many, list(seen_of)):
            try:
                resources = resources_in(row["spec"])
            except UsageError:  # stored by other hands: it is left as it is
                continue
            if self._code.why_not(resources) is None and self._code.has_room_for(resources):
                await self._code.start(row["id"], seen_of[row["id"]], resources)

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
            elif not self._code.is_resting(seen.job_id):
                to_start.append(seen)
        return to_adopt, to_start, to_lose

    async def _adopt(self, orphans: list[tuple[RowMapping, Sighting]]) -> int:
        # At random: others who adopt at the same time shall adopt others of them.
        left = random.sample(orphans, len(orphans))
        took, until_s = 0, monotonic_s() + LOOK_S
        # Several times for one look, which costs more than a share where a full worker has died.
        while left and not self._is_fenced and not self._stop.is_set() and monotonic_s() < until_s:
            most = await self._share(len(left))
            if most <= 0:
                break
            some, left = left[:most], left[most:]
            hosts = {row["host_id"] for row, _ in some if row["host_id"] is not None}
            seen = [sighting for _, sighting in some]
            rows = await self._write(statements.adopt_many, seen, self._owner, hosts)
            took += await self._take(rows)
        log.info("adopted from silent runners", jobs=took)
        return took

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
        """Give the jobs back, and wait for code that runs; beats go on until then."""
        log.info(
            "the worker takes no more", to_release=len(self._runner.jobs), running=len(self._code.by_job)
        )
        await self._guarded("tell", self._tell)  # who serves for us stops, too
        await self._runner.stop("released: its worker was stopped")
        if not self._code.is_idle:
            waiting = asyncio.create_task(self._code.wait(self._drain_timeout_s))
            while not waiting.done():
                self._itself.progress_by_s = monotonic_s() + self._round_s()
                await asyncio.wait([waiting], timeout=LOOK_S)
                await self._guarded("look after code", self._look_after_code)
                await self._guarded("tell", self._tell)
        if self._code.by_job:
            log.warning("code goes on by itself", jobs=sorted(self._code.by_job.keys()))
        self._code.leave()

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

    async def _write(self, write: Callable[..., _T], *args: object) -> _T:
        """Write on a thread that is not the runner's: there it would wait behind all submissions."""

        def do() -> _T:
            with self._database.write() as connection:
                return write(connection, *args)

        return await asyncio.to_thread(do)
