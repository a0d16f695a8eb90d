"""Watching many jobs of one server: what changed, from one request a tick, and now and then the whole truth.

(1) The changes: GET /jobs with `updatedAtStart`, newest first, 100 a page. (2) The reconciliation: at the
start and every ten minutes the jobs that have not ended are listed, and a watched one that no list showed is
asked for by its id. So what (1) missed, because the list has no tie-breaker or a page moved, is seen by (2).
"""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from typing import Any

from jobrunner.backends.airbyte.client import PAGE, Api, Page
from jobrunner.backends.airbyte.memory import Memory
from jobrunner.backends.airbyte.reading import OPEN_STATUSES
from jobrunner.backends.airbyte.trouble import NOT_VISIBLE, AirbyteError, Kind
from jobrunner.clock import monotonic_s, utcnow
from jobrunner.log_limits import Trouble
from jobrunner.logs import get_logger

log = get_logger(__name__)

OVERLAP_S = 90.0
"""How far before the last look each look begins: a change becomes visible a while after its time."""
RECONCILE_EVERY_S = 600.0
FRESH_S = 1.0
"""How old what was read may be, for those who ask a moment later: jobs are not due all at once."""

_NO_DATE_S = 300.0  # where the server tells no time, ours may be wrong by so much
_AGAIN_S = 10.0  # before a reconciliation that failed is tried again
_LOOKERS = 2  # requests by id at once: a list must find a place between them
_PAGES_MOST = 2_000
_TOO_OLD_S = 6 * 3600.0  # the changes of so long are more than the jobs that have not ended
_SAMPLES = 3
_LISTED_GOOD_S = 30.0
_CONNECTIONS_MOST = 100
_NOT_FOR_US = frozenset({Kind.REFUSED, Kind.PERMISSION})


class Feed:
    """Reads the lists of one server into a `Memory`. For one event loop."""

    def __init__(
        self,
        api: Api,
        memory: Memory,
        *,
        overlap_s: float = OVERLAP_S,
        reconcile_every_s: float = RECONCILE_EVERY_S,
        fresh_s: float = FRESH_S,
    ) -> None:
        self._api = api
        self._memory = memory
        self._overlap = dt.timedelta(seconds=overlap_s)
        self._reconcile_every_s = reconcile_every_s
        self._fresh_s = fresh_s
        self._mark: dt.datetime | None = None
        """The server's time at the last look; None: there was none."""
        self._read_s = float("-inf")
        self._listed_s = float("-inf")
        """When the server last gave a list: these credentials do see jobs."""
        self._reading: asyncio.Task[None] | None = None
        self._reconciling: asyncio.Task[None] | None = None
        self._reconcile_at_s = float("-inf")
        self._workspaces = dict.fromkeys(str(each) for each in api.options.workspace_ids)
        self._derived: dict[str, str] | None = None
        """The workspace of each Airbyte connection, where the server lists jobs only by workspace."""
        self.trouble: AirbyteError | None = None
        """Why the last reconciliation failed; None: it did not."""
        self._listing = Trouble()

    async def refresh(self) -> None:
        """Learn what changed since the last look. Raises `AirbyteError`.

        Those who ask at the same time, or a moment later, share one look.
        """
        if self._reading is None and monotonic_s() - self._read_s >= self._fresh_s:
            self._reading = asyncio.create_task(self._read_changes())
            self._reading.add_done_callback(self._on_read)
        if self._reading is not None:
            await asyncio.shield(self._reading)

    def reconcile_when_due(self) -> asyncio.Task[None] | None:
        """Return the reconciliation that is under way, begun where its time has come."""
        if self._reconciling is None and monotonic_s() >= self._reconcile_at_s:
            self._reconciling = asyncio.create_task(self._reconcile())
            self._reconciling.add_done_callback(self._on_reconciled)
        return self._reconciling

    @property
    def is_blind(self) -> bool:
        """Whether no list has ever been read, and cannot be: what is known is only what was asked by id."""
        return self._mark is None and self.trouble is not None

    def reconcile_soon(self) -> None:
        """Let the next look reconcile: there is somebody of whom nothing is known."""
        if self.trouble is None:
            self._reconcile_at_s = float("-inf")

    async def look(self, ids: Iterable[int]) -> None:
        """Ask for jobs by their ids, two at a time, and learn each answer.

        Raises `AirbyteError` where the server asks to come back later.
        """
        left = iter(list(ids))

        async def some() -> None:
            for job_id in left:
                await self.look_at(job_id)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(_LOOKERS):
                    group.create_task(some())
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from None

    async def look_at(self, job_id: int) -> None:
        """Ask for one job by its id, and learn the answer, or what stood in its way."""
        known = self._memory.jobs.get(job_id)
        if known is None or known.is_over:
            return
        known.looked_s = monotonic_s()
        try:
            self._memory.learn(await self._api.get_job(job_id))
        except AirbyteError as error:
            if error.kind not in NOT_VISIBLE:
                known.trouble = str(error)
                if error.kind is Kind.THROTTLED or error.retry_after_s is not None:
                    raise
                return
            await self._take_as_gone(job_id, error)

    async def close(self) -> None:
        """End what is under way."""
        tasks = [task for task in (self._reading, self._reconciling) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # --- the changes ---------------------------------------------------------------------------------

    async def _read_changes(self) -> None:
        begun_s = monotonic_s()
        if begun_s - self._read_s > _TOO_OLD_S:
            self._mark, self._reconcile_at_s = None, float("-inf")
        if self._mark is not None:
            start = self._mark - self._overlap
            mark: dt.datetime | None = None
            async for page in self._pages({"updatedAtStart": _as_time(start), "orderBy": "updatedAt|DESC"}):
                mark = mark or _time_of(page)
            self._mark = mark or self._mark  # only now: what a page that failed had is asked for again
        self._read_s = begun_s

    def _on_read(self, task: asyncio.Task[None]) -> None:
        self._reading = None
        if not task.cancelled():
            task.exception()  # whoever waited has it

    # --- the reconciliation --------------------------------------------------------------------------

    async def _reconcile(self) -> None:
        begun_s = monotonic_s()
        await self._derive_workspaces()
        watched = set(self._memory.open())
        shown: set[int] = set()
        for status in OPEN_STATUSES:
            try:
                async for page in self._pages({"status": status, "orderBy": "createdAt|ASC"}):
                    shown.update(job.id for job in page.jobs)
                    if self._mark is None:
                        self._mark = _time_of(page)
            except AirbyteError as error:
                # An old server does not know every status; those who stand in it are asked for below.
                if error.kind is not Kind.REFUSED or status != "queued":
                    raise
        missing = [
            job_id
            for job_id in watched - shown
            if (known := self._memory.jobs.get(job_id)) is not None and known.looked_s < begun_s
        ]
        await self.look(sorted(missing))

    def _on_reconciled(self, task: asyncio.Task[None]) -> None:
        self._reconciling = None
        wait_s = _AGAIN_S
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            wait_s, self.trouble = self._reconcile_every_s, None
            self._listing.ends()
        else:
            told = AirbyteError(f"{type(error).__name__}: {error}", Kind.UNCLEAR)
            self.trouble = error if isinstance(error, AirbyteError) else told
            wait_s = max(wait_s, min(self.trouble.retry_after_s or 0.0, self._reconcile_every_s))
            if self._listing.begins():
                log.warning("the jobs of an Airbyte server cannot be listed", error=str(self.trouble))
        self._reconcile_at_s = monotonic_s() + wait_s

    # --- pages ---------------------------------------------------------------------------------------

    async def _pages(self, filters: dict[str, Any]) -> AsyncIterator[Page]:
        """Yield page after page, and learn what is in it.

        The offsets are ours, because the server's `next` links drop the filters; a short page is the last,
        and so is one that holds what the one before it held: such a server knows no offsets.
        """
        before: list[int] | None = None
        for number in range(_PAGES_MOST):
            page = await self._page({**filters, "offset": number * PAGE})
            self._listed_s = monotonic_s()
            for job in page.jobs:
                self._memory.learn(job)
            yield page
            ids = [job.id for job in page.jobs]
            if page.count < PAGE or ids == before:
                return
            before = ids

    async def _page(self, filters: dict[str, Any]) -> Page:
        try:
            return await self._api.list_jobs(self._in_workspaces(filters))
        except AirbyteError as error:
            is_for_us = error.kind not in _NOT_FOR_US or filters.get("status") == "queued"
            if is_for_us or self._workspaces or self._derived is not None:
                raise
            self._derived = {}
            await self._derive_workspaces()
            if not self._workspaces:
                raise
            log.info("Airbyte lists jobs only by workspace here", workspaces=len(self._workspaces))
            return await self._api.list_jobs(self._in_workspaces(filters))

    def _in_workspaces(self, filters: dict[str, Any]) -> dict[str, Any]:
        return {**filters, "workspaceIds": list(self._workspaces)} if self._workspaces else filters

    async def _derive_workspaces(self) -> None:
        """Learn the workspaces of the Airbyte connections whose jobs are watched, where that is needed."""
        if self._derived is None:
            return
        if not self._memory.connection_ids():
            await self.look(self._memory.open()[:_SAMPLES])
        for connection_id in self._memory.connection_ids()[:_CONNECTIONS_MOST]:
            if connection_id not in self._derived:
                with suppress(AirbyteError):
                    workspace = await self._api.workspace_of(connection_id)
                    if workspace:
                        self._derived[connection_id] = workspace
                        self._workspaces[workspace] = None

    async def _take_as_gone(self, job_id: int, error: AirbyteError) -> None:
        """Take an answer as "not visible", unless nothing at all is to be seen there."""
        known = self._memory.jobs.get(job_id)
        # A proxy whose server is away answers every path with 404, and lost rights show as 403.
        if monotonic_s() - self._listed_s > _LISTED_GOOD_S:
            try:
                await self._api.list_jobs(self._in_workspaces({"limit": 1}))
                self._listed_s = monotonic_s()
            except AirbyteError as other:
                # Where only the list is refused, Airbyte itself has answered for the job.
                if error.kind is Kind.PERMISSION or other.kind not in _NOT_FOR_US:
                    if known is not None:
                        known.trouble = str(other if other.kind not in NOT_VISIBLE else error)
                    return
        self._memory.gone(job_id)


def _time_of(page: Page) -> dt.datetime:
    return page.at if page.at is not None else utcnow() - dt.timedelta(seconds=_NO_DATE_S)


def _as_time(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
