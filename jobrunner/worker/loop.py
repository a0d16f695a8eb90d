"""The life of a worker: round after round it has its parts look and take, until it is told to stop."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from jobrunner import registry, statements, worklist
from jobrunner.clock import monotonic_s
from jobrunner.daemon_threads import DaemonThreads
from jobrunner.database import Database
from jobrunner.errors import DatabaseError
from jobrunner.executors.base import CodeJobs, WorkerExecutor, counted
from jobrunner.executors.children import Children
from jobrunner.executors.signals import heard
from jobrunner.log_limits import Trouble
from jobrunner.logs import get_logger
from jobrunner.models.endings import kill_message
from jobrunner.owned import OwnProcess
from jobrunner.runner import Runner
from jobrunner.statements import Claim, Owner
from jobrunner.states import JobState
from jobrunner.worker.claiming import Claiming
from jobrunner.worker.means import Means
from jobrunner.worker.probe import Probe
from jobrunner.worker.serving import Serving
from jobrunner.worker.stopping import Stop
from jobrunner.worker.sweeping import Sweeping
from jobrunner.worker.systemd import Notifier
from jobrunner.worker.taking import Taking
from jobrunner.worker.telling import Telling

if TYPE_CHECKING:
    from jobrunner.worker.job import WorkerJob

log = get_logger(__name__)

LOOK_S = 1.5
"""Seconds between two looks while there is nothing to take."""
_NEXT_S = 0.02  # ... and while there is
_ROUND_S = 30.0  # beyond the database's own deadline: a round that takes longer makes no progress
_SOON_S = 0.05  # ... and while there is more than may be on its way
_IO_THREADS, _LOOK_THREADS = 32, 2
_TELL_S, _LAST_S = 1.0, 2.0  # for what a worker that stops still says in the database
_ROUND_END_S = 3.0  # for the round under way: one that waits for the database is left behind


class Worker:
    """One worker at work: `run` until it is told to stop."""

    def __init__(
        self,
        database: Database,
        owner: Owner,
        claim: Claim,
        job: "WorkerJob",
        probe: Probe | None = None,
        stop: Stop | None = None,
    ) -> None:
        self._probe = probe or Probe(None)
        self._stop = stop or Stop()
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
        self._troubles: dict[str, Trouble] = {}
        self._rounds = 0

    async def run(self) -> JobState:
        """Work until told to stop; return how the worker's own job ended."""
        self._itself = OwnProcess(
            claim=self._claim,
            heartrate=self._job.heartrate,
            good_s=monotonic_s(),
            on_flagged=self._stop.on_flagged,
            on_lost=self._stop.on_lost,
            progress_by_s=monotonic_s() + self._round_s(),
        )
        notifier = Notifier(self.is_well)
        # Few threads by default: names that are slow to resolve, or disks that hang, would keep all waiting.
        asyncio.get_running_loop().set_default_executor(DaemonThreads(_IO_THREADS, "jobrunner-io"))
        self._threads = DaemonThreads(_LOOK_THREADS, "jobrunner-worker")
        with heard(self._stop.on_signal), ExitStack() as at_end:
            at_end.callback(self._threads.shutdown, wait=False, cancel_futures=True)
            async with Runner(self._database, self._owner) as self._runner:
                self._code = self._code_jobs()
                self._set_up()
                self._runner.beat_for(self._itself)
                with self._probe.answering(self.is_well, self.is_ready), notifier:
                    await self._work(notifier)
                    notifier.stopping()
                    await self._drain()
                    await self._end()
        return JobState.LOST if self._stop.is_lost else self._stop.outcome[0]

    def _code_jobs(self) -> CodeJobs:
        executor, spec, runner = self._job.executor, self._job.spec or {}, self._runner
        if isinstance(executor, WorkerExecutor):
            return executor.code_jobs(runner, self._claim, self._job)
        named = runner.owner.executor_class
        return Children(self._database, named, runner.persist, spec["imports"], spec["processes"])

    def _set_up(self) -> None:
        means = Means(*(self._runner, self._code, self._serving, self._itself, self._capacity, self._threads))
        self._means = means
        self._telling = Telling(means, self._stop)
        self._taking = Taking(means, self._telling)
        self._claiming = Claiming(means, self._taking, self._telling)
        self._sweeping = Sweeping(means, self._taking, self._telling, self._stop)

    def stop(self, message: str) -> None:
        """Take nothing more, give the jobs back, and end; the first reason stands."""
        self._stop.wish(message)

    def is_well(self) -> bool:
        """Whether its rounds are on time and its beats are good: what a liveness probe asks."""
        runner = getattr(self, "_runner", None)
        return self._itself.is_making_progress() and not (runner and runner.beats.is_fenced(self._itself))

    def is_ready(self) -> bool:
        """Whether it takes jobs: what a readiness probe asks."""
        if self._rounds == 0 or self._stop.is_wished or self._means.is_fenced:
            return False
        return self._code.is_ready and self.is_well()

    def _round_s(self) -> float:
        return self._database.settings.call_timeout_s + _ROUND_S

    # --- rounds --------------------------------------------------------------------------------------

    async def _work(self, notifier: Notifier) -> None:
        while not self._stop.is_wished:
            self._itself.progress_by_s = monotonic_s() + self._round_s()
            await self._unless_stopped(self._guarded("question whether to go on", self._ask_to_go_on))
            if self._means.is_fenced:
                took = 0
                self._sweeping.restart()
            else:
                took = await self._unless_stopped(self._guarded("look", self._round))
            self._rounds += 1
            notifier.ready(f"watching {counted(len(self._runner.jobs), 'job')}")
            await self._stop.wait(self._pause_s(took))

    async def _unless_stopped(self, part: Coroutine[Any, Any, int]) -> int:
        """Do a part of a round; when the worker is told to stop, it has a moment to end.

        What a statement that is left behind has claimed is beaten for by nobody: others find it silent.
        """
        doing = asyncio.create_task(part)
        told = asyncio.create_task(self._stop.told())
        try:
            await asyncio.wait((doing, told), return_when=asyncio.FIRST_COMPLETED)
            if not doing.done():
                await asyncio.wait((doing,), timeout=_ROUND_END_S)
            return doing.result() if doing.done() else 0
        finally:
            told.cancel()
            doing.cancel()

    def _pause_s(self, took: int) -> float:
        if took:
            return _NEXT_S
        if self._claiming.is_held_back:
            return min(_SOON_S, LOOK_S)
        return LOOK_S * random.uniform(0.9, 1.0)  # noqa: S311  # jitter, not a secret

    async def _ask_to_go_on(self) -> None:
        why = None if self._job.why_stop is None else await asyncio.to_thread(self._job.why_stop)
        if why is not None:
            self.stop(f"stopped: {why}")

    async def _round(self) -> int:
        """Look, and take what there is for us; return how many jobs were taken."""
        todo = await self._means.read(worklist.todo)
        self._taking.windows.settle()
        took = 0
        self._telling.unserved = []
        if todo.has_queued:
            took += await self._guarded("claim", self._claiming.claim)
        else:
            self._claiming.is_held_back = False
        if todo.has_silent:
            took += await self._guarded("sweep", lambda: self._sweeping.sweep(LOOK_S))
        else:
            self._telling.unseen = {}
            self._sweeping.restart()
        await self._guarded("look after code", self._code.look)
        await self._guarded("tell", self._telling.tell)
        return took

    async def _guarded(self, what: str, do: Callable[[], Awaitable[int | None]]) -> int:
        """Do a part of a round. Whatever goes wrong is logged, not each time, and tried again in the next."""
        trouble = self._troubles.setdefault(what, Trouble())
        try:
            done = await do()
        except Exception as error:  # housekeeping must never end the worker
            self._sweeping.restart()
            if trouble.begins():
                trace = None if isinstance(error, DatabaseError) else error
                log.error(f"the {what} of a worker failed", error=error, exc_info=trace)
            return 0
        if trouble.ends():
            log.warning(f"the {what} of a worker works again")
        return done or 0

    # --- the end ----------------------------------------------------------------------------------------

    async def _drain(self) -> None:
        """Give the jobs back, and wait for code that runs; beats go on until then."""
        log.info(
            "the worker takes no more, and gives its jobs back",
            why=None if self._stop.is_lost else self._stop.outcome[1],
            to_release=len(self._runner.jobs),
            running=len(self._code.by_job),
        )
        await self._tell()  # who serves for us stops, too
        await self._runner.stop("released: its worker was stopped")
        if not self._code.is_idle:
            waiting = asyncio.create_task(self._code.wait(self._drain_timeout_s))
            while not waiting.done():
                self._itself.progress_by_s = monotonic_s() + self._round_s()
                await asyncio.wait([waiting], timeout=LOOK_S)
                await self._guarded("look after code", self._code.look)
                await self._tell()
        if self._code.by_job:
            log.warning("code goes on by itself", jobs=sorted(self._code.by_job.keys()))
        self._code.leave()

    async def _tell(self) -> None:
        """Say in the worker's row that it stops, where the database answers."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_TELL_S):
                await self._guarded("tell", self._telling.tell)

    async def _end(self) -> None:
        if self._stop.is_lost:
            return
        state, message = self._stop.outcome
        self._itself.over = True  # a beat that finds it ended has nothing to say
        try:
            async with asyncio.timeout(_LAST_S):
                if state is JobState.KILLED:
                    row = await self._runner.persist(statements.get_or_none, self._claim.job_id)
                    message = message if row is None else kill_message(row)
                await self._runner.persist(statements.end, self._claim, state, message)
        except TimeoutError:
            log.warning("the worker's end could not be written: others will find it silent")
        self._runner.beats.remove(self._itself)
