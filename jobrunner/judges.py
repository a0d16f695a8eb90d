"""Judgements by job classes of others: their code may take its time, and may never return."""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobrunner.backends.base import Observation
from jobrunner.clock import monotonic_s
from jobrunner.hooks import HookCall, Hooks
from jobrunner.judging import said_of, unjudged
from jobrunner.owned import Judgement, OwnedJob
from jobrunner.statements import Attempt

if TYPE_CHECKING:
    from jobrunner.models import MonitorJob
    from jobrunner.runner import Runner

_JUDGE_S = 60.0
"""Seconds for which a `judge` that has begun is waited for; for its turn it waits as long as it takes."""
_WANTED_S = 5.0
"""... and for both, where the job is to be ended: then all that matters is that its work has ended."""
_LOOK_S = 0.5

_Said = tuple[Observation, float | None]


@dataclass(slots=True, eq=False)
class _Case:
    """A judgement that is waited for."""

    owned: OwnedJob
    call: HookCall
    is_given_up: asyncio.Future[BaseException | None]
    wanted_s: float = math.inf
    """When the job was first seen to be one that is to be ended."""

    def is_out_of_time(self, now_s: float) -> bool:
        """Whether it is waited for no more."""
        if _is_settled(self.owned):
            return True
        if self.owned.kill_seen or self.owned.cancelling:
            self.wanted_s = min(self.wanted_s, now_s)
        begun_s = math.inf if self.call.begun_s is None else self.call.begun_s
        return now_s - begun_s >= _JUDGE_S or now_s - self.wanted_s >= _WANTED_S


def _is_settled(owned: OwnedJob) -> bool:
    """Whether nothing more is to be learnt about the job, or at least about its present attempt."""
    return owned.over or owned.concluding


class Judges:
    """Has observations judged beside the event loop, of each job one at a time, and the latest one next.

    `take(owned, observation, interval_s)` is called with each judgement, as long as the job is the runner's
    and at the attempt that was observed. One that has begun and does not come in time counts as a `judge`
    that failed; one that has not begun, as others of its class are under way, is waited for.
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
        self._cases: set[_Case] = set()
        self._is_watching = False

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
            while mine.latest is not None and not _is_settled(owned):
                attempt, said = await self._said_of(owned, job, mine, mine.latest)
                if self._runner.is_stopping:
                    return  # the call was cut off, perhaps: that says nothing
                if said is not None and owned.attempt == attempt:
                    self._take(owned, *said)
        finally:
            mine.is_under_way = False

    async def _said_of(
        self, owned: OwnedJob, job: "MonitorJob", mine: Judgement, latest: tuple[Attempt, Observation]
    ) -> tuple[Attempt, _Said | None]:
        judged = [latest]  # what is judged is what was seen last when it is the turn of this job
        said: list[_Said] = []

        def call() -> None:
            judged[0] = mine.latest or latest
            watched_s = monotonic_s() - owned.taken_s
            said.append(said_of(job, judged[0][1], watched_s, self._runner.seldom))

        if mine.call is not None and not mine.call.ended.done():
            why = "an earlier call of it has not returned"
        else:
            mine.call = self._hooks.call(job, "judge", call, _JUDGE_S)
            why = await self._awaited(owned, mine.call)
        attempt, observation = judged[0]
        if mine.latest is judged[0] or mine.latest is latest:
            mine.latest = None
        if _is_settled(owned):
            return attempt, None
        if said:
            return attempt, said[0]
        return attempt, (unjudged(job, observation, self._runner.seldom, why), None)

    async def _awaited(self, owned: OwnedJob, call: HookCall) -> str:
        """Wait for a judgement as long as it makes sense; return why there is none, if there is none."""
        case = _Case(owned, call, asyncio.get_running_loop().create_future())
        self._cases.add(case)
        if not self._is_watching:
            self._is_watching = True
            self._runner.spawn(self._watch())
        try:
            await asyncio.wait([call.ended, case.is_given_up], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._cases.discard(case)
            others = len(call.kind.under_way)
            self._hooks.withdraw(
                call, f"{others} other calls of it were under way, and the job was to be ended"
            )
        return f"it was not called: {call.why_not}" if call.why_not else "it has not returned"

    async def _watch(self) -> None:
        """Give up what is out of time: one task for thousands that wait."""
        try:
            while self._cases:
                await asyncio.sleep(_LOOK_S)
                now_s = monotonic_s()
                for case in self._cases:
                    if case.is_out_of_time(now_s) and not case.is_given_up.done():
                        case.is_given_up.set_result(None)
        finally:
            self._is_watching = False
