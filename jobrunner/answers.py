"""What a backend's answers make of a job: what its row shows, and that it has ended."""

import asyncio
import datetime as dt
from typing import TYPE_CHECKING

from jobrunner import statements
from jobrunner.backends.base import Gone, Observation
from jobrunner.channel import Channel
from jobrunner.clock import monotonic_s, utcnow
from jobrunner.outcome import is_lost
from jobrunner.owned import OwnedJob, Shown
from jobrunner.poller import Answer

if TYPE_CHECKING:
    from jobrunner.runner import Runner

_LOOKS_BEFORE_SHOWN = 2  # one failed look is not worth a word in the row, nor in 100,000 of them


class Answers:
    """Takes the answers for a runner's jobs, on its event loop."""

    def __init__(self, runner: "Runner") -> None:
        self._runner = runner

    def on_answer(self, job_id: int, external_id: str, answer: Answer) -> None:
        """Take the answer of one look at a job."""
        owned = self._runner.jobs.get(job_id)
        if owned is None or owned.concluding or owned.external_id != external_id:
            return
        if isinstance(answer, Observation):
            owned.was_seen()
            if answer.phase.is_final:
                self._runner.conclude(owned, answer)
            else:
                self._show(owned, Shown.of(answer))
        elif isinstance(answer, Gone):
            verdict = is_lost(owned, answer, owned.channel.patience, monotonic_s())
            if verdict is not None:
                self._runner.conclude(owned, verdict)
        else:
            owned.gone_at_s = None
            owned.errors += 1
            if owned.errors >= _LOOKS_BEFORE_SHOWN:
                self._show_unreadable(owned, utcnow(), answer.message)

    def on_health(self, channel: Channel, good: bool, _message: str) -> None:
        """Take note that a whole connection became unreadable: then few of its jobs are asked about."""
        if not good:
            self._runner.spawn(self._show_trouble(channel, utcnow()))

    async def _show_trouble(self, channel: Channel, since: dt.datetime) -> None:
        intervals = [owned.poll_interval for owned in self._runner.jobs.values() if owned.channel is channel]
        await asyncio.sleep(_LOOKS_BEFORE_SHOWN * min(intervals, default=0.0))
        for owned in list(self._runner.jobs.values()):
            if owned.channel is channel and owned.is_watched and channel.trouble is not None:
                self._show_unreadable(owned, since, channel.trouble)

    def _show_unreadable(self, owned: OwnedJob, since: dt.datetime, message: str) -> None:
        if owned.unreadable_since is None:
            owned.unreadable_since = since
            self._show(owned, (owned.shown or Shown()).unreadable(since, message))

    def _show(self, owned: OwnedJob, shown: Shown) -> None:
        if shown == owned.shown and owned.to_show is None:
            return
        owned.to_show = shown
        if owned.writer is None:
            owned.writer = self._runner.spawn(self._write(owned), owned)

    async def _write(self, owned: OwnedJob) -> None:
        try:
            while (latest := owned.to_show) is not None and not (owned.over or owned.concluding):
                owned.to_show = None
                await self._runner.persist(
                    statements.observe, owned.claim, owned.external_id, **latest.columns()
                )
                owned.shown = latest
        finally:
            owned.writer = None
