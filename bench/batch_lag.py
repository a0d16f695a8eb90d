"""How long after a job's end its watcher knows, on a loop whose time jumps to the next timer."""

import asyncio
import random
import selectors
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from bench.report import Row
from jobrunner.backends.base import Backend, Observation, Patience
from jobrunner.backends.batch import BatchClient
from jobrunner.backends.batch.backend import DESCRIBE_MOST
from jobrunner.backends.checks import Answer
from jobrunner.poller import Poller
from jobrunner.states import Phase

INTERVAL_S = 10.0
_ANSWER_S = 0.03
_SPREAD = 0.1  # of the time that jobs take: else all would end at the same point between two looks
_RUNNING = Observation(Phase.RUNNING, "RUNNING")
_SUCCEEDED = Observation(Phase.SUCCEEDED, "SUCCEEDED")


@dataclass(frozen=True)
class Watched:
    """What became of a number of jobs."""

    lags_s: list[float]
    calls: int
    looks: int
    """At one job each."""


def ours(
    count: int, runs_for_s: float, *, arrive_within_s: float, ids_a_call: int = DESCRIBE_MOST, seed: int = 1
) -> Watched:
    """Let one poller watch jobs that begin at any time within `arrive_within_s`, until all have ended."""
    pick = random.Random(seed)
    return _virtually(_watch(count, arrive_within_s, _Outside(runs_for_s, ids_a_call, pick), pick))


def by_the_seeds_formula(count: int, runs_for_s: float, *, seed: int = 1) -> Watched:
    """Let jobs be awaited one by one as `BatchClient.monitor_job` does: its own functions say how long.

    A pause, a look (here the job begins to run), a pause, and then looks at growing distances.
    """
    pick = random.Random(seed)
    lags_s: list[float] = []
    looks = 0
    for _ in range(count):
        end_s = _runs_for_s(runs_for_s, pick)
        now_s = pick.uniform(BatchClient.DEFAULT_DELAY_MIN, BatchClient.DEFAULT_DELAY_MAX)
        tries = 0
        while now_s < end_s:
            tries += 1
            now_s += BatchClient.add_jitter(BatchClient.exponential_delay(tries))
        lags_s.append(now_s - end_s)
        looks += 2 + tries
    return Watched(lags_s, looks, looks)


def one_by_one_row(count: int, ids_a_call: int) -> Row:
    """Return the row of jobs of an hour that begin within ten minutes: how they come to travel together."""
    found = ours(count, 3600.0, arrive_within_s=600.0, ids_a_call=ids_a_call)
    return Row(
        f"{count:,} jobs that came one by one, watched for 1 h",
        f"{found.looks / found.calls:.0f} ids a call; {found.calls:,} calls, {found.looks:,} looks",
        facts={"calls": found.calls, "looks": found.looks},
    )


def _runs_for_s(about_s: float, pick: random.Random) -> float:
    return about_s * pick.uniform(1 - _SPREAD, 1 + _SPREAD)


class _Outside:
    """Jobs that run from the first look on, answered for 30 ms later."""

    patience = Patience(call_s=60.0)

    def __init__(self, runs_for_s: float, bulk_limit: int, pick: random.Random) -> None:
        self.bulk_limit = bulk_limit
        self.ends_s: dict[str, float] = {}
        self.calls = self.looks = 0
        self._runs_for_s = runs_for_s
        self._pick = pick

    async def fetch(self, ids: Sequence[str]) -> Mapping[str, Observation]:
        self.calls += 1
        self.looks += len(ids)
        await asyncio.sleep(_ANSWER_S)
        now_s = asyncio.get_running_loop().time()
        for each in ids:
            if each not in self.ends_s:
                self.ends_s[each] = now_s + _runs_for_s(self._runs_for_s, self._pick)
        return {each: _SUCCEEDED if now_s >= self.ends_s[each] else _RUNNING for each in ids}


async def _watch(count: int, arrive_within_s: float, outside: _Outside, pick: random.Random) -> Watched:
    loop = asyncio.get_running_loop()
    lags_s: list[float] = []
    all_ended = asyncio.Event()

    def on_answer(job_id: int, external_id: str, answer: Answer) -> None:
        if isinstance(answer, Observation) and answer.phase is Phase.SUCCEEDED:
            lags_s.append(loop.time() - outside.ends_s[external_id])
            poller.forget(job_id)
            if len(lags_s) == count:
                all_ended.set()

    poller = Poller(cast("Backend", outside), on_answer, clock=loop.time, random=random.Random(pick.random()))
    polling = asyncio.create_task(poller.run())
    for job_id in range(1, count + 1):
        loop.call_later(pick.uniform(0, arrive_within_s), poller.watch, job_id, f"job-{job_id}", INTERVAL_S)
    await all_ended.wait()
    await poller.close()
    await polling
    return Watched(lags_s, outside.calls, outside.looks)


class _JumpingSelector(selectors.DefaultSelector):
    now_s = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "everything waits for something that never comes"
            self.now_s += timeout
        return ready


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s


def _virtually(main: Coroutine[Any, Any, Watched]) -> Watched:
    with asyncio.Runner(loop_factory=_VirtualLoop) as runner:
        return runner.run(main)
