"""What a backend's answers make of a job: what its row shows, and that it has ended."""

import asyncio
import datetime as dt
from itertools import islice
from typing import TYPE_CHECKING

from sqlalchemy import Connection

from jobrunner import statements
from jobrunner.backends.base import Gone, Observation
from jobrunner.backends.checks import Answer
from jobrunner.channel import Channel
from jobrunner.clock import monotonic_s, utcnow
from jobrunner.errors import DatabaseError, DatabaseRefused, words_of
from jobrunner.heartbeat import lost_because
from jobrunner.hooks import Hooks
from jobrunner.judges import Judges
from jobrunner.judging import judges_at_once, said_of
from jobrunner.log_limits import Trouble
from jobrunner.logs import get_logger
from jobrunner.outcome import is_lost
from jobrunner.owned import OwnedJob, Shown
from jobrunner.retry import Retry
from jobrunner.statements import Claim, Sight

if TYPE_CHECKING:
    from jobrunner.runner import Runner

log = get_logger(__name__)

_LOOKS_BEFORE_SHOWN = 2  # one failed look is not worth a word in the row, nor in 100,000 of them
_GATHER_S = 0.1  # what is to be shown within this time is written together
_MANY = 50  # rows within that time: a sweep is under way, and more are about to come ...
_MORE_S = 0.4  # ... within this: each statement has its cost, a commit on SQLite the most
_CHUNK = 1_000  # rows a statement: it keeps SQLite's only writer for about 20 ms
_SIZE_MOST = 4_000_000  # characters a statement, about: a few rows may be as long as thousands of others
_DETAIL_SIZE = 100  # characters of one field of a detail, about
_LOCKED_S = 1.0  # until a row that somebody held locked is tried again


class Answers:
    """Takes the answers for a runner's jobs, on its event loop."""

    def __init__(self, runner: "Runner", hooks: Hooks) -> None:
        self._runner = runner
        self._showing = Showing(runner)
        self._judges = Judges(runner, hooks, self._take)
        self._to_show_trouble: dict[Channel, asyncio.TimerHandle] = {}
        """The connections that cannot be read, until their jobs show it."""

    def on_answer(self, job_id: int, external_id: str, answer: Answer) -> None:
        """Take the answer of one look at a job."""
        owned = self._runner.jobs.get(job_id)
        if owned is None or owned.concluding or owned.external_id != external_id:
            return
        if isinstance(answer, Observation):
            self._on_seen(owned, answer)
        elif isinstance(answer, Gone):
            was_gone = owned.gone_at_s is not None
            verdict = is_lost(owned, answer, owned.channel.patience, monotonic_s())
            if verdict is not None:
                self._runner.conclude(owned, verdict)
                return
            if was_gone:  # one such answer right after the submission is nothing to speak of
                self._showing.show(owned, self._last_shown(owned).missing(answer.reason))
            if not owned.seen:  # else it may have started before it vanished
                self._runner.cancelling.on_look(owned, Shown(message=answer.reason))
        else:
            owned.gone_at_s = None
            owned.errors += 1
            if owned.errors >= _LOOKS_BEFORE_SHOWN:
                self._show_unreadable(owned, utcnow(), answer.message)

    def _on_seen(self, owned: OwnedJob, observation: Observation) -> None:
        if owned.job is None:
            self._take(owned, observation)
        elif judges_at_once(owned.job):
            watched_s = monotonic_s() - owned.taken_s
            self._take(owned, *said_of(owned.job, observation, watched_s, self._runner.seldom))
        else:
            self._judges.judge(owned, owned.job, observation)

    def _take(self, owned: OwnedJob, observation: Observation, interval_s: float | None = None) -> None:
        owned.was_seen(observation)
        if observation.phase.is_final:
            self._runner.conclude(owned, observation)
            return
        shown = Shown.of(observation)
        trouble = owned.cancel_trouble
        self._showing.show(owned, shown if trouble is None else shown.uncancelled(trouble))
        self._runner.cancelling.on_look(owned, shown)
        if interval_s is not None:
            owned.channel.poller.pace(owned.job_id, interval_s)

    def on_health(self, channel: Channel, good: bool, _message: str) -> None:
        """Take note that a whole connection became unreadable: then few of its jobs are asked about."""
        before = self._to_show_trouble.pop(channel, None)
        if before is not None:
            before.cancel()
        if not good:
            mine = (owned for owned in self._runner.jobs.values() if owned.way is channel)
            wait_s = _LOOKS_BEFORE_SHOWN * min((owned.poll_interval for owned in mine), default=0.0)
            show = asyncio.get_running_loop().call_later(wait_s, self._show_trouble, channel, utcnow())
            self._to_show_trouble[channel] = show

    def _show_trouble(self, channel: Channel, since: dt.datetime) -> None:
        self._to_show_trouble.pop(channel, None)
        for owned in list(self._runner.jobs.values()):
            if owned.way is channel and owned.is_watched and channel.trouble is not None:
                self._show_unreadable(owned, since, channel.trouble)

    def _show_unreadable(self, owned: OwnedJob, since: dt.datetime, message: str) -> None:
        if owned.unreadable_since is None:
            owned.unreadable_since = since
            self._showing.show(owned, self._last_shown(owned).unreadable(since, message))

    @staticmethod
    def _last_shown(owned: OwnedJob) -> Shown:
        return owned.to_show or owned.shown or Shown()


class Showing:
    """Writes what the rows of a runner's jobs show: one task, in bulk, of each job the latest alone.

    An older look is never written over a newer one, because one write is under way at a time; and none
    after the end, because a row that has ended takes none.
    """

    def __init__(self, runner: "Runner") -> None:
        self._runner = runner
        self._waiting: dict[int, OwnedJob] = {}
        """Whose `to_show` is to be written, in the order in which that is tried."""
        self._writer: asyncio.Task[None] | None = None
        self._trouble = Trouble()

    def show(self, owned: OwnedJob, shown: Shown) -> None:
        """Let a job's row show this, unless it does, or soon will."""
        if shown == (owned.to_show or owned.shown):
            return
        owned.to_show = shown
        self._wait_for(owned)

    def _wait_for(self, owned: OwnedJob) -> None:
        self._waiting[owned.job_id] = owned
        if self._writer is None:
            self._writer = self._runner.spawn(self._write())

    async def _write(self) -> None:
        most, retry = _CHUNK, self._retry()
        try:
            while self._waiting:
                if len(self._waiting) < most:
                    await asyncio.sleep(_GATHER_S)
                if _MANY <= len(self._waiting) < most:
                    await asyncio.sleep(_MORE_S)
                some = self._take(most)
                try:
                    await self._write_some(some)
                    most, retry = min(2 * most, _CHUNK), self._retry()
                    self._trouble.ends()
                except Exception as error:  # noqa: BLE001  # the database's, or of what a backend said
                    is_outage = isinstance(error, DatabaseError) and not isinstance(error, DatabaseRefused)
                    if len(some) == 1 and not is_outage:
                        self._drop(some, error)
                        continue
                    if self._trouble.begins():
                        log.warning("what jobs show cannot be written yet", jobs=len(some), error=error)
                    for owned in some:
                        self._waiting.setdefault(owned.job_id, owned)
                    # Smaller and smaller, and those at the end of the line: so one row that is refused,
                    # for whatever reason, comes to be tried alone, and keeps back no other.
                    most = max(1, len(some) // 2)
                    if is_outage:
                        await retry.pause()
        finally:
            self._writer = None

    def _drop(self, some: dict[OwnedJob, Shown], error: Exception) -> None:
        """Show no more of what was refused for its content: it would be refused again."""
        for owned, shown in some.items():
            known = {"job": owned.job_id, "error": words_of(error)}
            self._runner.seldom.error(log, "what a job shows is refused", about=owned.job_id, **known)
            owned.shown = shown
            if owned.to_show is shown:
                owned.to_show = None

    def _retry(self) -> Retry:
        return Retry(most_s=self._runner.database.settings.heartrate)

    def _take(self, most: int) -> dict[OwnedJob, Shown]:
        some: dict[OwnedJob, Shown] = {}
        size = 0
        for owned in list(islice(self._waiting.values(), most)):
            if size > _SIZE_MOST:
                break
            del self._waiting[owned.job_id]
            if owned.to_show is not None and not (owned.over or owned.concluding):
                some[owned] = owned.to_show
                size += len(owned.to_show.message or "") + _DETAIL_SIZE * len(owned.to_show.detail)
        return some

    async def _write_some(self, some: dict[OwnedJob, Shown]) -> None:
        sights = {
            owned.job_id: Sight(owned.job_id, owned.claim.claims, owned.external_id or "", **shown.columns())
            for owned, shown in some.items()
        }
        locked = await self._runner.call(_observe, self._runner.owner.runner_id, sights)
        for owned, shown in some.items():
            if owned.external_id != sights[owned.job_id].external_id:
                continue  # submitted again meanwhile: its row shows nothing yet of the new work
            if owned.job_id not in locked:
                owned.shown = shown
                if owned.to_show is shown:  # nothing newer came meanwhile
                    owned.to_show = None
        if locked:
            again = [owned for owned in some if owned.job_id in locked]
            asyncio.get_running_loop().call_later(_LOCKED_S, self._try_again, again)

    def _try_again(self, jobs: list[OwnedJob]) -> None:
        for owned in jobs:
            if owned.to_show is not None and not owned.over:
                self._wait_for(owned)


def _observe(connection: Connection, runner_id: str, sights: dict[int, Sight]) -> set[int]:
    """Write them, and return the ids of those that somebody held locked; of the others nothing is left."""
    silent = sights.keys() - statements.observe_many(connection, runner_id, list(sights.values()))
    if not silent:
        return set()
    rows = statements.look(connection, sorted(silent))
    # One that is no longer ours, or speaks of another external job, does not want it: the beat says so.
    return {
        job_id
        for job_id in silent
        if lost_because(Claim(job_id, runner_id, sights[job_id].claims), rows.get(job_id)) is None
        and rows[job_id]["external_id"] == sights[job_id].external_id
    }
