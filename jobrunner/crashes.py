"""What becomes of a job whose step in its runner crashed: it is tried again, and then ends with a word.

Left alone, it would fall silent, be adopted, and crash the next runner's step in the same way, for ever.
"""

import asyncio
from typing import TYPE_CHECKING

from jobrunner import statements, unexpected
from jobrunner.clock import monotonic_s
from jobrunner.errors import ClaimLost, DatabaseRefused, words_of
from jobrunner.heartbeat import lost_because
from jobrunner.owned import OwnedJob
from jobrunner.retry import Retry
from jobrunner.states import JobState

if TYPE_CHECKING:
    from jobrunner.runner import Runner

_TRIES_MOST = 5
_FORGIVEN_S = 3600.0  # after so long without another, a crash no longer counts
_SLACK_S = 15.0


class Crashes:
    """Tries the steps of a runner's jobs again, and ends a job after a few crashes in succession."""

    def __init__(self, runner: "Runner") -> None:
        self._runner = runner
        self._tries: dict[OwnedJob, tuple[Retry, float]] = {}

    def after(self, owned: OwnedJob, error: BaseException) -> None:
        """Take care of a job after a step of it, or something done beside, has crashed with `error`."""
        unexpected.note("a step of a job crashed", error, self._runner.seldom, job=owned.job_id)
        if owned.over:  # the write of its end was the step: the next owner writes it
            owned.settle(error)
            return
        now_s = monotonic_s()
        retry, last_s = self._tries.get(owned, (Retry(), now_s))
        if now_s - last_s > _FORGIVEN_S:
            retry = Retry()
        pause_s = retry.next_s()
        self._tries[owned] = (retry, now_s)
        owned.progress_by_s = now_s + pause_s + _SLACK_S
        # The same values would be refused again.
        is_last = retry.count >= _TRIES_MOST or isinstance(error, DatabaseRefused)
        work = self._give_up(owned, error) if is_last else self._begin_again(owned, pause_s)
        self._runner.spawn(work, owned, is_step=is_last)

    async def _begin_again(self, owned: OwnedJob, pause_s: float) -> None:
        """Go on with a job from what its row says, as a new owner would."""
        await asyncio.sleep(pause_s)
        row = await self._runner.persist(statements.get_or_none, owned.job_id)
        if owned.over or row is None or lost_because(owned.claim, row) is not None:
            return  # the next beat says so
        await self._runner.begin_again(owned, row)

    async def _give_up(self, owned: OwnedJob, error: BaseException) -> None:
        owned.concluding = owned.is_ending = True  # a beat that comes between its end and `finish` is no loss
        outside = f" (its work outside, {owned.external_id}, may go on)" if owned.external_id else ""
        message = f"jobrunner could not go on with this job{outside}: {words_of(error)}"
        try:
            outcome = await self._end(owned, message)
        except DatabaseRefused as refused:
            seldom = self._runner.seldom
            unexpected.note("the message of an end was refused", refused, seldom, job=owned.job_id)
            outcome = await self._end(owned, f"jobrunner could not go on with this job{outside}")
        self._runner.finish(owned, outcome)

    def forget(self, owned: OwnedJob) -> None:
        """Forget a job that is no longer this runner's."""
        self._tries.pop(owned, None)

    async def _end(self, owned: OwnedJob, message: str) -> JobState | ClaimLost:
        if await self._runner.persist(statements.end, owned.claim, JobState.FAILED, message):
            return JobState.FAILED
        row = await self._runner.persist(statements.get_or_none, owned.job_id)
        return ClaimLost(lost_because(owned.claim, row) or f"Job {owned.job_id} has ended.")
