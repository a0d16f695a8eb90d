"""Judgements by job classes of others: their code may take its time, and may never return."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from jobrunner.backends.base import Observation
from jobrunner.clock import monotonic_s
from jobrunner.hooks import Hooks
from jobrunner.judging import said_of, unjudged
from jobrunner.owned import Judgement, OwnedJob

if TYPE_CHECKING:
    from jobrunner.models import MonitorJob
    from jobrunner.runner import Runner

_JUDGE_S = 60.0
"""Seconds for which a judgement is waited for."""
_WANTED_S = 5.0
"""... and where the job is to be ended: then all that matters is that its work has ended."""
_LOOK_S = 0.5

_Said = tuple[Observation, float | None]


class Judges:
    """Has observations judged beside the event loop, of each job one at a time, and the latest one next.

    `take(owned, observation, interval_s)` is called with each judgement, as long as the job is the runner's
    and at the attempt that was observed. One that does not come in time counts as a `judge` that failed.
    """

    def __init__(
        self,
        runner: "Runner",
        hooks: Hooks,
        take: Callable[[OwnedJob, Observation, float | None], None],
    ) -> None:
        self._runner = runner
        self._hooks = hooks
        self._take = take

    def judge(self, owned: OwnedJob, job: "MonitorJob", observation: Observation) -> None:
        """Have an observation judged, unless a later one comes first."""
        if owned.judgement is None:
            owned.judgement = Judgement()
        mine = owned.judgement
        mine.latest = (owned.attempt, observation)
        if not mine.is_under_way:
            mine.is_under_way = True
            self._runner.spawn(self._judge(owned, job, mine), owned)

    async def _judge(self, owned: OwnedJob, job: "MonitorJob", mine: Judgement) -> None:
        try:
            while mine.latest is not None:
                (attempt, observation), mine.latest = mine.latest, None
                said = await self._said_of(owned, job, mine, observation)
                if self._runner.is_stopping:
                    return  # the call was cut off, perhaps: that says nothing
                if owned.attempt == attempt and not (owned.over or owned.concluding):
                    self._take(owned, *said)
        finally:
            mine.is_under_way = False

    async def _said_of(
        self, owned: OwnedJob, job: "MonitorJob", mine: Judgement, observation: Observation
    ) -> _Said:
        if mine.call is not None and not mine.call.done():
            return unjudged(
                job, observation, self._runner.seldom, "an earlier call of it has not returned"
            ), None
        said: list[_Said] = []
        mine.call = self._runner.spawn(self._call(owned, job, observation, said))
        begun_s = monotonic_s()
        while mine.call is not None and not mine.call.done():
            is_wanted = owned.kill_seen or owned.cancelling
            if monotonic_s() - begun_s >= (_WANTED_S if is_wanted else _JUDGE_S):
                break
            await asyncio.wait([mine.call], timeout=_LOOK_S)
        return (
            said[0]
            if said
            else (unjudged(job, observation, self._runner.seldom, "it has not returned"), None)
        )

    async def _call(
        self, owned: OwnedJob, job: "MonitorJob", observation: Observation, said: list[_Said]
    ) -> None:
        def call() -> None:
            said.append(said_of(job, observation, watched_s, self._runner.seldom))

        watched_s = monotonic_s() - owned.taken_s
        await self._hooks.call(job, "judge", call, _JUDGE_S)
