"""Why a job failed: from Airbyte's config API, where there is one that answers."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress

from jobrunner.backends.airbyte.client import Api
from jobrunner.backends.airbyte.memory import Known
from jobrunner.backends.airbyte.reading import Job
from jobrunner.backends.airbyte.trouble import AirbyteError
from jobrunner.clock import monotonic_s
from jobrunner.logs import get_logger
from jobrunner.states import Phase

log = get_logger(__name__)

_MOST_S = 10.0  # an end is not kept back for its reason any longer than this
_AT_ONCE = 2
_AGAIN_S = 600.0  # before an API that does not answer is asked again


class Reasons:
    """Asks once for each failed job; that there is no answer is no trouble."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._not_before_s = float("-inf")

    async def explain(self, jobs: Iterable[Known]) -> None:
        """Find out why those of the jobs failed that did, and were not asked about before."""
        asked = [known for known in jobs if _is_failed(known.job) and known.failures is None]
        if self._api.options.config_api is None or not asked or monotonic_s() < self._not_before_s:
            return
        left = iter(asked)

        async def some() -> None:
            for known in left:
                assert known.job is not None
                known.failures = ()
                try:
                    known.failures = await self._api.why_failed(known.job.id)
                except AirbyteError as error:
                    self._not_before_s = monotonic_s() + _AGAIN_S
                    log.info("the reasons of failures are not told", error=str(error))
                    return

        with suppress(TimeoutError):
            async with asyncio.timeout(_MOST_S):
                await asyncio.gather(*(some() for _ in range(_AT_ONCE)))


def _is_failed(job: Job | None) -> bool:
    return job is not None and job.phase is Phase.FAILED
