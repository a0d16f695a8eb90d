"""The ways from a runner's jobs to their backends, as the jobs' classes say them: found before anything else.

Until its way is found, a job is beaten for, and heeds its kill and its timeout, like any other.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from sqlalchemy import RowMapping

from jobrunner.aside import Aside
from jobrunner.channel import Channel
from jobrunner.clock import monotonic_s
from jobrunner.errors import CodeError, JobrunnerError
from jobrunner.log_limits import Once
from jobrunner.logs import get_logger
from jobrunner.outcome import Verdict, not_wanted
from jobrunner.owned import OwnedJob, Source
from jobrunner.states import JobState
from jobrunner.terms import ASK_S, MAKE_S, Terms, WayNumbers, all_say_the_same, ask_terms, made_backend
from jobrunner.waiting_room import WaitingRoom

if TYPE_CHECKING:
    from jobrunner.answers import Answers
    from jobrunner.models import MonitorJob
    from jobrunner.runner import Runner

log = get_logger(__name__)

_LOOK_S = 0.5  # while a class is waited for: whether the job is still wanted
_SLACK_S = 15.0


class Ways:
    """Finds the way to a job's backend, and keeps it: jobs with the same one share it."""

    def __init__(self, runner: "Runner", answers: "Answers") -> None:
        self._runner = runner
        self._answers = answers
        self._aside = Aside()
        self._numbers = WayNumbers()
        self._known: dict[tuple[type, str | None], Terms | None] = {}
        """The terms of all jobs of a class and a connection; None: each is asked for its own."""
        self._channels: dict[int, Channel] = {}
        self._opening: dict[int, asyncio.Task[Channel]] = {}
        self._said = Once()
        self._room = WaitingRoom(_LOOK_S)

    async def prepare(self, job: "MonitorJob") -> None:
        """Have the way to a job's backend. Raises `JobrunnerError`."""
        asked = self._ask(Source(type(job), lambda: job, job.connection, None))
        terms = asked if isinstance(asked, Terms) else await asked
        self._warn(terms)
        if terms.way not in self._channels:
            await asyncio.shield(self._opening_of(terms))

    async def find(self, owned: OwnedJob, row: RowMapping) -> Verdict | None:
        """Find the way to an owned job's backend; a verdict where the job ends without one.

        Where there may be work outside, a job whose way cannot be found is given back: a mended class, or
        another worker, watches it. So is one that could be served elsewhere.
        """
        is_outside = (
            row["external_id"] is not None
            or row["submit_started_at"] is not None
            or row["held_at"] is not None
        )
        owned.progress_by_s = monotonic_s() + 2 * (ASK_S + MAKE_S) + _SLACK_S
        error: JobrunnerError | None = None
        try:
            if not await self._find(owned, self._giving_up(owned, is_outside=is_outside)):
                is_ended = owned.over or self._runner.is_stopping
                return None if is_ended else not_wanted(owned)
        except JobrunnerError as failed:
            error = failed
        if error is None or owned.over:
            return None
        if not is_outside:
            if (unwanted := not_wanted(owned)) is not None:
                return unwanted
            if isinstance(error, CodeError):  # the class is the same everywhere
                return Verdict(JobState.FAILED, f"nothing was submitted, as it cannot be watched: {error}")
        await self._give_back(owned, error)
        return None

    def _giving_up(self, owned: OwnedJob, *, is_outside: bool) -> Callable[[], bool]:
        """Return what says that the way of a job is not waited for any more."""
        unwanted_by_s: float | None = None

        def gives_up() -> bool:
            nonlocal unwanted_by_s
            if owned.over or self._runner.is_stopping:
                return True
            if is_outside or not_wanted(owned) is None:
                return False
            # Its object is waited for a while: a kill calls its `on_kill`.
            unwanted_by_s = unwanted_by_s or monotonic_s() + ASK_S
            return monotonic_s() >= unwanted_by_s

        return gives_up

    async def _find(self, owned: OwnedJob, gives_up: Callable[[], bool]) -> bool:
        """Find the way, and give it to the job; False: it was given up. Raises `JobrunnerError`."""
        source = owned.source
        assert source is not None
        terms = self._ask(source)
        if not isinstance(terms, Terms):
            try:
                if not await self._room.wait(terms, gives_up):
                    return False
            finally:
                terms.cancel()
            terms = terms.result()
            kind = source.job_class, source.connection
            if kind not in self._known:
                self._known[kind] = terms if all_say_the_same(source.job_class) else None
        self._warn(terms)
        channel = self._channels.get(terms.way)
        if channel is None:
            opening = self._opening_of(terms)
            if not await self._room.wait(opening, gives_up):
                return False
            channel = opening.result()
        owned.job = terms.job if terms.is_kept else None
        owned.is_bound_here, owned.has_callback = terms.is_bound_here, terms.has_callback
        owned.poll_interval = source.poll_interval or terms.poll_interval
        owned.way = channel
        owned.source = None
        return True

    def _ask(self, source: Source) -> Terms | asyncio.Future[Terms]:
        known = self._known.get((source.job_class, source.connection))
        if known is not None:
            return known
        settings = self._runner.database.settings
        return ask_terms(
            *(self._aside, source.job_class, source.make, source.connection, settings, self._numbers)
        )

    def _warn(self, terms: Terms) -> None:
        for flaw in terms.flaws:
            if self._said.is_new(flaw):
                log.warning("a job class is at fault", fault=flaw)

    def _opening_of(self, terms: Terms) -> asyncio.Task[Channel]:
        """Return the task that opens a way: others may wait for the same one."""
        opening = self._opening.get(terms.way)
        if opening is None:
            opening = self._opening[terms.way] = asyncio.create_task(self._made(terms))
            opening.add_done_callback(lambda done: self._opened(terms.way, done))
        return opening

    async def _made(self, terms: Terms) -> Channel:
        backend = await made_backend(self._aside, terms.job, terms.behind)
        answers = self._answers
        return Channel(terms.connection, backend, answers.on_answer, answers.on_health)

    def _opened(self, way: int, done: asyncio.Task[Channel]) -> None:
        self._opening.pop(way, None)
        if not done.cancelled() and done.exception() is None:
            self._channels[way] = done.result()

    async def _give_back(self, owned: OwnedJob, error: JobrunnerError) -> None:
        source = owned.source
        if source is not None and source.on_refused is not None:
            source.on_refused(error)
        await self._runner.give_back(owned, f"released: {error}")
        owned.settle(error)

    async def close(self) -> None:
        """End what is being opened, and close what was."""
        for opening in self._opening.values():
            opening.cancel()
        await asyncio.gather(*(channel.close() for channel in self._channels.values()))
