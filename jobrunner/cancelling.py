"""Cancelling a runner's jobs: for a kill, or out of time, until the backend was seen to have done it."""

import asyncio
import math
from contextlib import suppress
from typing import TYPE_CHECKING

from jobrunner.cancel_records import CancelRecords, NotBegun
from jobrunner.cleanups import clean_up
from jobrunner.clock import monotonic_s
from jobrunner.due_queue import Due, DueQueue
from jobrunner.hooks import Hooks
from jobrunner.logs import get_logger
from jobrunner.owned import DEADLINE, KILL, START_TIMEOUT, Cancellation, OwnedJob, Shown
from jobrunner.retry import Retry
from jobrunner.statements import Begun

if TYPE_CHECKING:
    from jobrunner.runner import Runner

log = get_logger(__name__)

_FIRST_S = 0.5  # before the first asking is repeated
_FENCE_LOOK_S = 0.1
_ON_KILL_S = 60.0  # a clean-up that hangs must not stop the kill
_NAP_MOST_S = 2.0  # asyncio's timers stand still while a laptop sleeps; deadlines do not


class Cancelling:
    """Ends the work of jobs for which a cancellation was requested; nothing else cancels anything.

    A kill and a deadline are requested of the job: they are carried out on the attempt that is current. A
    start timeout concerns one attempt. What is under way for an attempt is in its `Cancellation`.
    """

    def __init__(self, runner: "Runner", hooks: Hooks, on_kill_s: float | None = None) -> None:
        self._runner = runner
        self._hooks = hooks
        self._on_kill_s = on_kill_s
        self._records = CancelRecords(runner)
        self._moments: DueQueue[Due] = DueQueue()
        self._moment_set = asyncio.Event()

    def on_flagged(self, ids: list[int]) -> None:
        """Take note of kill flags; of a job that is being submitted, the submission heeds it."""
        for job_id in ids:
            owned = self._runner.jobs.get(job_id)
            if owned is not None and not owned.kill_seen:
                owned.kill_seen = True
                self.heed(owned)

    def heed(self, owned: OwnedJob) -> None:
        """Carry out, on the attempt that is watched, what is requested of the job by now.

        Called when a request comes, and again when another attempt is watched: whatever came between
        two attempts is carried out then.
        """
        if not owned.is_watched or owned.concluding:
            return
        cause = owned.cancellation.cause
        if owned.kill_seen and cause != KILL:
            self._runner.spawn(self._kill(owned), owned)
        elif cause is not None:  # and for a kill its former owner has called `on_kill`
            self._runner.spawn(self._cancel(owned, cause), owned)
        elif monotonic_s() >= owned.deadline_s:
            self._runner.spawn(self._cancel(owned, DEADLINE), owned)

    async def call_on_kill(self, owned: OwnedJob) -> None:
        """Call the job's own `on_kill`, once, and wait for it for a while."""
        most_s = _ON_KILL_S if self._on_kill_s is None else self._on_kill_s
        await clean_up(self._hooks, owned, most_s, self._runner.seldom)

    async def _kill(self, owned: OwnedJob) -> None:
        mine = owned.cancellation
        await self.call_on_kill(owned)
        if owned.cancellation is mine:  # else it is heeded when the new attempt is watched
            await self._cancel(owned, KILL)

    async def _cancel(self, owned: OwnedJob, cause: str) -> None:
        """Ask for the end of the current attempt, and again with back-off, until the poller has seen it."""
        mine, attempt = owned.cancellation, owned.attempt
        if mine.is_begun or owned.over or owned.concluding or attempt.external_id is None:
            return
        mine.is_begun = True
        begun = await self._records.write(owned, attempt, cause)
        if begun is NotBegun.OTHER_ATTEMPT and _stands(owned, mine):
            # Nor would this runner ever cancel that one.
            self._runner.drop(owned, f"Job {owned.job_id} is at another attempt than this runner.")
        if isinstance(begun, NotBegun):
            return
        mine.cause = begun.cause
        reason = _reason(owned, begun)
        retry = Retry(first_s=_FIRST_S, most_s=max(2.0, min(30.0, owned.poll_interval)))
        while _stands(owned, mine):
            if self._runner.beats.is_fenced(owned):
                await asyncio.sleep(_FENCE_LOOK_S)  # a good beat, or its loss, will tell whose it is
                continue
            trouble = await owned.channel.cancel(attempt.external_id, reason)
            if trouble is not None and trouble != mine.trouble:
                job_id = owned.job_id
                owned.channel.seldom.warning(log, "cancel not taken", about=job_id, job=job_id, error=trouble)
            mine.trouble = trouble
            if _stands(owned, mine):
                owned.channel.poller.hurry(owned.job_id)
            await retry.pause()
            if _stands(owned, mine):
                owned.channel.poller.hurry(owned.job_id)

    def on_look(self, owned: OwnedJob, shown: Shown) -> None:
        """Cancel work that a look just showed not to have started, though its time to start is over.

        Only a look from after that moment tells: it may have started unseen, or under a former owner.
        """
        mine = owned.cancellation
        if owned.has_started:
            mine.waited = None
        elif mine.cause is None:  # later words may be about the cancelling
            mine.waited = shown
            is_late = monotonic_s() >= mine.start_by_s
            if is_late and owned.is_watched and not (owned.kill_seen or mine.is_begun):
                self._runner.spawn(self._cancel(owned, START_TIMEOUT), owned)

    # --- moments ---------------------------------------------------------------------------------

    def set_time(self, owned: OwnedJob) -> None:
        """See, at the next of its moments, whether a job is out of time; those that passed count as seen."""
        now_s = monotonic_s()
        moments = (owned.deadline_s, owned.cancellation.start_by_s)
        next_s = min((moment_s for moment_s in moments if moment_s > now_s), default=math.inf)
        if next_s < math.inf:
            if owned.moment is None:
                owned.moment = Due(owned.job_id)
            self._moments.put(owned.moment, next_s)
            self._moment_set.set()

    def forget(self, owned: OwnedJob) -> None:
        """Forget the moments of a job that is no longer this runner's."""
        if owned.moment is not None:
            self._moments.drop(owned.moment)

    async def keep_time(self) -> None:
        """Look at each job when its time has come, for ever."""
        while True:
            first = self._moments.first()
            wait_s = None if first is None else min(_NAP_MOST_S, first.due_s - monotonic_s())
            if first is None or wait_s is None or wait_s > 0:
                self._moment_set.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._moment_set.wait()
                continue
            self._moments.pop_first()
            owned = self._runner.jobs.get(first.job_id)
            if owned is not None and owned.moment is first:
                self._look_at_time(owned)
                self.set_time(owned)

    def _look_at_time(self, owned: OwnedJob) -> None:
        if not owned.is_watched or owned.concluding:
            return  # one that is being submitted is looked at when it is watched
        now_s = monotonic_s()
        if now_s >= owned.deadline_s:
            if not owned.kill_seen:
                self._runner.spawn(self._cancel(owned, DEADLINE), owned)
        elif now_s >= owned.cancellation.start_by_s and not owned.has_started:
            owned.channel.poller.hurry(owned.job_id)  # and `on_look` decides


def _stands(owned: OwnedJob, mine: Cancellation) -> bool:
    """Whether the attempt that this cancellation belongs to is still to be ended."""
    return owned.cancellation is mine and not (owned.over or owned.concluding)


def _reason(owned: OwnedJob, begun: Begun) -> str:
    """Return what the outside is told."""
    mine = owned.cancellation
    if mine.cause != START_TIMEOUT:
        return begun.kill_reason or f"{mine.cause} by jobrunner"
    words = mine.waited.words if mine.waited is not None else ""
    return f"{START_TIMEOUT} by jobrunner after {owned.start_timeout or 0:g}s: {words}".removesuffix(": ")
