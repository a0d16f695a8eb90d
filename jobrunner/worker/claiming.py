"""Queued jobs: a worker claims its share of those to watch, and starts those that run their own code."""

import random

from jobrunner import statements, worklist
from jobrunner.errors import UsageError
from jobrunner.resources import parsed, resources_in
from jobrunner.worker.means import Means
from jobrunner.worker.serving import Served, Unserved
from jobrunner.worker.taking import Taking
from jobrunner.worker.telling import Telling

_STEPS_MOST = 3_000  # jobs on their way to their submission: each must come to it within its step's time


class Claiming:
    """Takes what waits, as far as it can be served here."""

    def __init__(self, means: Means, taking: Taking, telling: Telling) -> None:
        self._means = means
        self._taking = taking
        self._telling = telling

    async def claim(self) -> int:
        """Take some of the queued jobs, and return how many. Raises `DatabaseError`."""
        served = self._means.serving.of(await self._means.read(worklist.waiting))
        self._telling.unserved = served.unserved
        took = 0
        if served.monitored:
            took += await self._claim_monitored(served)
        if served.coded:
            await self._start_code(served.coded)  # it claims by itself: to look again at once is too early
        return took

    async def _claim_monitored(self, served: Served) -> int:
        means, runner = self._means, self._means.runner
        most = min(await self._taking.share(served.count), _STEPS_MOST - runner.steps)
        if most <= 0:
            return 0
        rows = await means.write(statements.claim_many, runner.owner, served.monitored, most, served.host_ids)
        return await self._taking.own(rows)

    async def _start_code(self, job_types: list[str]) -> None:
        code = self._means.code
        texts = set()
        for job_type, text in await self._means.read(worklist.asked, job_types):
            why, resources = self._why_not(text)
            if why is not None:
                self._telling.unserved.append(Unserved(job_type, None, why, resources))
            elif code.has_room_for(resources):
                texts.add(text)
        if not texts:
            return
        rows = await self._means.read(worklist.queued, job_types, texts, 10 * code.free)
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
        return self._means.code.why_not(resources), resources
