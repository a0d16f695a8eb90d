"""`AirbyteBackend`: Airbyte behind the one boundary."""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, Self

from jobrunner.backends.airbyte import cancelling
from jobrunner.backends.airbyte.client import Api
from jobrunner.backends.airbyte.connection import AirbyteConnection
from jobrunner.backends.airbyte.feed import FRESH_S, OVERLAP_S, RECONCILE_EVERY_S, Feed
from jobrunner.backends.airbyte.memory import Memory
from jobrunner.backends.airbyte.pages import Pages
from jobrunner.backends.airbyte.reasons import Reasons
from jobrunner.backends.airbyte.submitting import DOUBT_S, IsHeld, Submissions
from jobrunner.backends.airbyte.transport import LONG_S
from jobrunner.backends.airbyte.trouble import AirbyteError, Kind
from jobrunner.backends.base import Absent, Found, Gone, LogLine, Observation, Patience, RemoteError, Unsure
from jobrunner.clock import monotonic_s
from jobrunner.errors import LogsUnavailable, Throttled
from jobrunner.settings import ConnectionSettings

BULK = 100_000
"""Ids a call: one request tells about them all."""
FEW = 3
"""So many watched jobs are asked for by their ids; more, by lists."""

_NEW_BY_ID_MOST = 20
_LISTS_S = 30.0  # how long those wait of whom no list has told yet
_CANCEL_S = 110.0
_AGAIN_S = 30.0  # before one that was not visible is asked for again ...
_GONE_GOOD_S = 120.0  # ... and how long such an answer counts
_GONE = Gone("Airbyte does not show it: there is no such job, or these credentials may not see it")
_NO_ID = Gone("Airbyte's job ids are numbers, and this is none", certain=True)


class AirbyteBackend:
    """Airbyte, by its public API: one request a tick for any number of jobs, and each submitted once.

    `few`: how many watched jobs are still asked for one by one. `doubt_s`: for how many seconds a submission
    whose answer was lost is looked for. The others are those of `Feed`.
    """

    bulk_limit = BULK
    submissions_at_once: int
    patience = Patience(call_s=LONG_S + 30.0, appear_s=180.0, vanish_s=900.0)

    def __init__(
        self,
        options: AirbyteConnection,
        *,
        few: int = FEW,
        doubt_s: float = DOUBT_S,
        overlap_s: float = OVERLAP_S,
        reconcile_every_s: float = RECONCILE_EVERY_S,
        fresh_s: float = FRESH_S,
    ) -> None:
        self.options = options
        # Before a job is submitted, its intent is stored: it is sent soon after, and waits for no other.
        self.submissions_at_once = options.at_once
        self.api = Api(options)
        self._few = few
        self._memory = Memory()
        self._feed = Feed(
            self.api,
            self._memory,
            overlap_s=overlap_s,
            reconcile_every_s=reconcile_every_s,
            fresh_s=fresh_s,
        )
        self._submissions = Submissions(self.api, doubt_s=doubt_s)
        self._reasons = Reasons(self.api)
        self._pages = Pages(self.api)

    @classmethod
    def from_connection(cls, connection: ConnectionSettings) -> Self:
        """Return the backend behind a connection. Raises `SettingsError`."""
        return cls(AirbyteConnection.of(connection))

    @classmethod
    def check_connection(cls, connection: ConnectionSettings) -> None:
        """Refuse settings by which no backend can be made. Raises `SettingsError`."""
        AirbyteConnection.of(connection)

    async def check(self) -> str:
        """List one job, and say what answered. Raises `AirbyteError` with what failed."""
        await self.api.list_jobs({"limit": 1, **self._in_workspaces()})
        return f"Airbyte answered GET /jobs at {self.options.shown_url}"

    def _in_workspaces(self) -> dict[str, list[str]]:
        ids = [str(each) for each in self.options.workspace_ids]
        return {"workspaceIds": ids} if ids else {}

    # --- submitting ------------------------------------------------------------------------------

    async def baseline(self, spec: Mapping[str, Any]) -> str | None:
        """Return the newest job id of the Airbyte connection, before anything is submitted to it.

        Raises what `submit` raises.
        """
        return await self._submissions.baseline(spec)

    async def submit(self, spec: Mapping[str, Any], token: str) -> str:
        """Start the job, in one request that is never repeated, and return its id."""
        job_id, job = await self._submissions.submit(spec, token)
        if job is not None:
            self._memory.expect(job)
        return str(job_id)

    async def find(
        self,
        spec: Mapping[str, Any],
        token: str,
        since: dt.datetime,
        *,
        baseline: str | None = None,
        is_held: IsHeld | None = None,
    ) -> Found | Absent | Unsure:
        """Look for a submission among the connection's newest jobs; it is never said to be absent.

        `baseline`: what `baseline` returned before it. `is_held`: which of some ids other jobs have.
        """
        return await self._submissions.find(spec, token, since, baseline=baseline, is_held=is_held)

    # --- watching --------------------------------------------------------------------------------

    async def fetch(self, ids: Sequence[str]) -> Mapping[str, Observation | Gone | RemoteError]:
        """Tell of jobs: few are asked for by their ids, many by one list of what changed."""
        numbers = {each: int(each) for each in ids if each.isdecimal() and each.isascii()}
        memory = self._memory
        memory.ask(numbers.values(), monotonic_s())
        asked = [number for number in numbers.values() if not memory.jobs[number].is_over]
        are_few = len(memory.open()) <= self._few
        try:
            if asked and are_few:
                await self._feed.look(asked)
            elif asked:
                await self._by_lists(asked)
        except AirbyteError as error:
            raise error.of_reading() from error
        await self._explain(numbers.values(), are_few=are_few)
        return {each: self._answer(numbers[each]) if each in numbers else _NO_ID for each in ids}

    async def _by_lists(self, asked: Sequence[int]) -> None:
        feed, jobs = self._feed, self._memory.jobs
        new = [each for each in asked if jobs[each].job is None and not jobs[each].is_gone]
        if len(new) > _NEW_BY_ID_MOST:
            feed.reconcile_soon()
        reconciling = feed.reconcile_when_due()
        await feed.refresh()
        if feed.is_blind and reconciling is not None:
            await asyncio.wait([reconciling], timeout=_LISTS_S)
        if feed.is_blind:
            await self._by_turns(asked)
            return
        if 0 < len(new) <= _NEW_BY_ID_MOST:
            await feed.look(each for each in new if jobs[each].job is None)
        elif new and reconciling is not None:
            await asyncio.wait([reconciling], timeout=_LISTS_S)
        for each in asked:
            if jobs[each].job is not None:  # that one look at it failed is made good by the lists
                jobs[each].trouble = ""
        before_s = monotonic_s() - _AGAIN_S
        hidden = [each for each in asked if jobs[each].is_hidden and jobs[each].looked_s < before_s]
        hidden.sort(key=lambda each: jobs[each].looked_s)
        await feed.look(hidden[:_NEW_BY_ID_MOST])

    async def _by_turns(self, asked: Sequence[int]) -> None:
        """Ask by id for some of them, and let the others be in trouble: what is known of them grows old."""
        jobs, trouble = self._memory.jobs, self._feed.trouble
        if trouble is not None and (trouble.kind is Kind.THROTTLED or trouble.retry_after_s is not None):
            raise trouble
        in_turn = sorted(asked, key=lambda each: jobs[each].looked_s)
        for each in in_turn[_NEW_BY_ID_MOST:]:
            jobs[each].trouble = str(trouble)
        await self._feed.look(in_turn[:_NEW_BY_ID_MOST])

    async def _explain(self, asked: Iterable[int], *, are_few: bool) -> None:
        """Find out why jobs failed, and where their pages are, as far as that is to be had."""
        jobs = [known for each in asked if (known := self._memory.jobs[each]).is_unexplained]
        await self._reasons.explain(jobs)
        await self._pages.point_to(jobs, may_ask=are_few)
        for known in jobs:
            known.is_explained = known.is_over

    def _answer(self, job_id: int) -> Observation | Gone | RemoteError:
        known = self._memory.jobs[job_id]
        told = known.observation()
        if told is not None:
            return told
        if known.trouble:
            return RemoteError(known.trouble)
        if known.is_gone and monotonic_s() - known.looked_s <= _GONE_GOOD_S:
            return _GONE
        trouble = self._feed.trouble
        return trouble.as_answer() if trouble is not None else RemoteError("the lists are not read yet")

    def logs(self, external_id: str, since: dt.datetime | None) -> AsyncIterator[LogLine]:
        """Raise `LogsUnavailable`: the public API has none."""
        return self._no_logs(external_id, since)

    async def _no_logs(self, external_id: str, _since: dt.datetime | None) -> AsyncIterator[LogLine]:
        known = self._memory.jobs.get(int(external_id)) if external_id.isdecimal() else None
        where = known.page if known is not None and known.page else "the job's page in Airbyte"
        raise LogsUnavailable(f"Airbyte's public API gives no logs: see {where}.")
        yield LogLine("")  # type: ignore[unreachable]  # what makes it a generator

    # --- cancelling ------------------------------------------------------------------------------

    async def cancel(self, ids: Sequence[str], reason: str) -> Mapping[str, RemoteError]:  # noqa: ARG002  # Airbyte takes no reason
        """Ask for the end of jobs, each looked at before and after; see `cancelling`."""
        troubles: dict[str, RemoteError] = {}
        waiting = [each for each in dict.fromkeys(ids) if each.isdecimal() and each.isascii()]
        left = iter(waiting)
        done: set[str] = set()

        async def some() -> None:
            for each in left:
                try:
                    words = await cancelling.cancel(self.api, self._memory, int(each))
                    if words is not None:
                        troubles[each] = RemoteError(words)
                except AirbyteError as error:
                    if error.kind is Kind.THROTTLED:
                        raise Throttled(str(error), retry_after_s=error.retry_after_s) from error
                    troubles[each] = error.as_answer()
                done.add(each)

        try:
            async with asyncio.timeout(_CANCEL_S), asyncio.TaskGroup() as group:
                for _ in range(self.options.at_once):
                    group.create_task(some())
        except TimeoutError:
            pass
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from None
        later = RemoteError("not asked yet: Airbyte takes its time with the cancellations before it")
        return {each: troubles.get(each, later) for each in waiting if each in troubles or each not in done}

    async def close(self) -> None:
        """Give the connections back; the jobs go on."""
        await self._feed.close()
        await self.api.close()
