"""Cancelling a runner's jobs: for a kill, or out of time, until the backend was seen to have done it."""

import asyncio
import heapq
import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

from sqlalchemy import RowMapping

from jobrunner import statements
from jobrunner.clock import monotonic_s
from jobrunner.logs import get_logger
from jobrunner.models.own_run import call_on_kill, has_on_kill
from jobrunner.owned import DEADLINE, KILL, START_TIMEOUT, OwnedJob, Shown
from jobrunner.retry import Retry

if TYPE_CHECKING:
    from jobrunner.runner import Runner

log = get_logger(__name__)

_FIRST_S = 0.5  # before the first asking is repeated
_FENCE_LOOK_S = 0.1
_ON_KILL_S = 60.0  # a clean-up that hangs must not stop the kill
_NAP_MOST_S = 2.0  # asyncio's timers stand still while a laptop sleeps; deadlines do not


class Cancelling:
    """Sees to it that a job for which there is a recorded wish ends; nothing else cancels anything."""

    def __init__(self, runner: "Runner", threads: ThreadPoolExecutor) -> None:
        self._runner = runner
        self._threads = threads
        self._moments: list[tuple[float, int]] = []
        self._moment_set = asyncio.Event()

    def on_flagged(self, ids: list[int]) -> None:
        """Heed kill flags; of a job that is being submitted, the submission heeds it."""
        for job_id in ids:
            owned = self._runner.jobs.get(job_id)
            if owned is not None and not owned.kill_seen:
                owned.kill_seen = True
                if owned.is_watched:
                    self._runner.spawn(self._kill(owned), owned)

    def begin(self, owned: OwnedJob) -> None:
        """Cancel a job, now that it is watched, for what was wished before."""
        if owned.cancel_cause is not None:  # and for a kill its former owner has called `on_kill`
            self._runner.spawn(self._cancel(owned, owned.cancel_cause), owned)
        elif owned.kill_seen:
            self._runner.spawn(self._kill(owned), owned)
        elif monotonic_s() >= owned.deadline_s:
            self._runner.spawn(self._cancel(owned, DEADLINE), owned)

    async def call_on_kill(self, owned: OwnedJob) -> None:
        """Call the job's own `on_kill`, and wait for it for a while."""
        if owned.job is None or not has_on_kill(owned.job):
            return
        call = asyncio.get_running_loop().run_in_executor(self._threads, call_on_kill, owned.job)
        await asyncio.wait([call], timeout=_ON_KILL_S)
        if not call.done():
            log.warning("on_kill takes long: the kill goes on meanwhile", job=owned.job_id)

    async def _kill(self, owned: OwnedJob) -> None:
        await self.call_on_kill(owned)
        await self._cancel(owned, KILL)

    async def _cancel(self, owned: OwnedJob, cause: str) -> None:
        """Ask for the end, and again with back-off, until the poller has seen it."""
        if owned.cancelling:
            return
        owned.cancelling = True
        row = await self._runner.persist(statements.begin_cancel, owned.claim, cause)
        if row is None:
            return  # no longer ours: the next beat says so
        owned.cancel_cause = row["cancel_cause"]
        reason = _reason(owned, row)
        retry = Retry(first_s=_FIRST_S, most_s=max(2.0, min(30.0, owned.poll_interval)))
        while not (owned.over or owned.concluding):
            if self._runner.beats.is_fenced(owned):
                await asyncio.sleep(_FENCE_LOOK_S)  # a good beat, or its loss, will tell whose it is
                continue
            trouble = await owned.channel.cancel(owned.external_id or "", reason)
            if trouble is not None and trouble != owned.cancel_trouble:
                log.warning("cancel not taken", job=owned.job_id, error=trouble)
            owned.cancel_trouble = trouble
            owned.channel.poller.hurry(owned.job_id)
            await retry.pause()
            owned.channel.poller.hurry(owned.job_id)

    def on_look(self, owned: OwnedJob, shown: Shown) -> None:
        """Cancel work that a look just showed not to have started, though its time to start is over.

        Only a look from after that moment tells: it may have started unseen, or under a former owner.
        """
        if owned.has_started:
            owned.waited = None
        elif owned.cancel_cause is None:  # later words may be about the cancelling
            owned.waited = shown
            if monotonic_s() >= owned.start_by_s and owned.is_watched and not owned.kill_seen:
                self._runner.spawn(self._cancel(owned, START_TIMEOUT), owned)

    def at(self, moment_s: float, owned: OwnedJob) -> None:
        """See at `moment_s` (on the monotonic clock) whether a job is out of time, if it is still there."""
        if moment_s < math.inf:
            heapq.heappush(self._moments, (moment_s, owned.job_id))
            self._moment_set.set()

    async def keep_time(self) -> None:
        """Do so, for ever."""
        while True:
            wait_s = min(_NAP_MOST_S, self._moments[0][0] - monotonic_s()) if self._moments else None
            if wait_s is None or wait_s > 0:
                self._moment_set.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._moment_set.wait()
                continue
            _, job_id = heapq.heappop(self._moments)
            owned = self._runner.jobs.get(job_id)
            if owned is None or not owned.is_watched:
                continue  # one that is being submitted is looked at when it is watched
            if monotonic_s() >= owned.deadline_s:
                self._runner.spawn(self._cancel(owned, DEADLINE), owned)
            elif monotonic_s() >= owned.start_by_s and not owned.has_started:
                owned.channel.poller.hurry(owned.job_id)  # and `on_look` decides


def _reason(owned: OwnedJob, row: RowMapping) -> str:
    """Return what the outside is told."""
    if owned.cancel_cause != START_TIMEOUT:
        return row["kill_reason"] or f"{owned.cancel_cause} by jobrunner"
    words = owned.waited.words if owned.waited is not None else ""
    return f"{START_TIMEOUT} by jobrunner after {owned.start_timeout or 0:g}s: {words}".removesuffix(": ")
