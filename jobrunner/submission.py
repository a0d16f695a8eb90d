"""Submit once (PROTOCOL 8): the intent is stored, then the outside is asked, then the answer is stored.

A submission whose answer is not known is never repeated: the backend first proves what became of it.
After a crash or a pause at any step there is one external job, or a `failed` row that names the doubt.
"""

import asyncio
import datetime as dt
import uuid
from typing import TYPE_CHECKING

from sqlalchemy import RowMapping

from jobrunner import identity, statements
from jobrunner.backends.base import Absent, Found, sending_until
from jobrunner.clock import monotonic_s
from jobrunner.errors import SubmitRejected, SubmitTooLate, Throttled
from jobrunner.logs import get_logger
from jobrunner.owned import OwnedJob, Verdict
from jobrunner.retry import Retry
from jobrunner.states import JobState

if TYPE_CHECKING:
    from jobrunner.runner import Runner

log = get_logger(__name__)

SEND_WITHIN_S = 10.0
"""How long after the intent was stored a request may still leave: see `backends.base.ensure_in_time`."""

_SLACK_S = 15.0  # beyond a call's own deadline, for the database's part of a step


class _Submission:
    """One job on its way to an external id."""

    def __init__(self, runner: "Runner", owned: OwnedJob, row: RowMapping) -> None:
        self._runner = runner
        self._owned = owned
        self._spec = row["spec"] or {}
        self._started_at: dt.datetime | None = row["submit_started_at"]
        self._created_at: dt.datetime = row["created_at"]
        # An earlier owner may have sent it, or may be about to: that must be known first.
        self._in_doubt = self._started_at is not None or owned.claim.claims > 1
        self._host_id = identity.host_id() if type(owned.job).runs_on_this_host else None

    async def run(self) -> Verdict | None:
        retry = Retry(first_s=0.2)
        while not (self._owned.over or self._runner.is_stopping):
            # A beat means progress: this step is late when it takes longer than its call may.
            self._owned.progress_by_s = monotonic_s() + 2 * self._owned.channel.patience.call_s + _SLACK_S
            try:
                verdict = await (self._find() if self._in_doubt else self._submit())
            except Throttled as error:
                self._owned.progress_by_s += (error.retry_after_s or 0.0) + 60.0
                await retry.pause(error.retry_after_s)
                continue
            if verdict is not None or self._owned.external_id is not None:
                return verdict
            await retry.pause()
        return None

    async def _submit(self) -> Verdict | None:
        early = self._not_wanted()
        if early is not None:
            return early
        owned, backend = self._owned, self._owned.channel.backend
        begun_s = monotonic_s()
        started_at = await self._runner.persist(
            statements.begin_submit, owned.claim, owned.token, self._host_id
        )
        if started_at is None:
            return await self._why_not_begun()
        self._started_at = started_at
        try:
            with sending_until(begun_s + SEND_WITHIN_S):
                async with asyncio.timeout(owned.channel.patience.call_s):
                    external_id = await backend.submit(self._spec, owned.token)
        except SubmitRejected as error:
            return Verdict(JobState.FAILED, f"not accepted: {error}")
        except Throttled:
            raise
        except SubmitTooLate as error:
            self._doubt(error)
        except Exception as error:  # noqa: BLE001  # whatever else it was: the job may have been made
            self._doubt(error)
        else:
            await self._record(external_id)
        return None

    def _doubt(self, error: Exception) -> None:
        self._in_doubt = True
        log.warning("submission in doubt", job=self._owned.job_id, error=f"{type(error).__name__}: {error}")

    def _not_wanted(self) -> Verdict | None:
        if self._owned.kill_seen:
            return Verdict(JobState.KILLED, "killed before it was submitted")
        if monotonic_s() >= self._owned.deadline_s:
            return Verdict(JobState.FAILED, "the timeout has passed before it was submitted")
        return None

    async def _why_not_begun(self) -> Verdict | None:
        owned = self._owned
        row = await self._runner.persist(statements.get_or_none, owned.job_id)
        if row is not None and row["submit_token"] == owned.token and row["external_id"] is not None:
            owned.external_id = row["external_id"]  # a slow submitter recorded it just now
        elif row is not None and row["kill_requested_at"] is not None:
            owned.kill_seen = True
        return self._not_wanted() if owned.external_id is None else None

    async def _record(self, external_id: str) -> None:
        """Store the answer, whoever owns the job by now; where it has another id, take ours back."""
        owned = self._owned
        if not external_id:
            self._doubt(ValueError("the backend returned an empty id"))
            return
        stored = await self._runner.persist(
            statements.record_submitted, owned.job_id, owned.token, external_id
        )
        if stored:
            owned.external_id = external_id
            return
        log.warning("a late submission is taken back", job=owned.job_id, external_id=external_id)
        await owned.channel.cancel(external_id, "submitted late: another runner has this job")
        self._in_doubt = True  # until the next beat says that the job is not ours

    async def _find(self) -> Verdict | None:
        owned = self._owned
        since = self._started_at or self._created_at
        try:
            async with asyncio.timeout(owned.channel.patience.call_s):
                found = await owned.channel.backend.find(self._spec, owned.token, since)
        except Throttled:
            raise
        except Exception as error:  # noqa: BLE001  # no answer: it is asked again
            log.warning(
                "cannot tell yet what became of a submission",
                job=owned.job_id,
                error=f"{type(error).__name__}: {error}",
            )
            return None
        if isinstance(found, Found):
            await self._record(found.external_id)
        elif isinstance(found, Absent):
            await self._start_anew()
        elif found.retry_at is None:
            if self._started_at is not None:
                return Verdict(
                    JobState.FAILED,
                    f"{found.reason}: look for it outside before you start it again (token {owned.token})",
                )
            self._in_doubt = False  # nobody ever recorded that he began
        else:
            await self._wait_until(found.retry_at)
        return None

    async def _start_anew(self) -> None:
        """Proven absent: submit under a new token, so that a late first one finds its own one taken."""
        owned = self._owned
        token = uuid.uuid4().hex
        if self._not_wanted() is None and await self._runner.persist(
            statements.renew_token, owned.claim, owned.token, token
        ):
            owned.token, self._started_at = token, None
        self._in_doubt = False

    async def _wait_until(self, retry_at: dt.datetime) -> None:
        now = await self._runner.persist(statements.now)
        wait_s = max(0.0, (retry_at - now).total_seconds())
        self._owned.progress_by_s += wait_s
        until_s = monotonic_s() + wait_s
        # The loss of the claim and the wish to stop come from elsewhere: they are looked at, too.
        while (left_s := until_s - monotonic_s()) > 0 and not (  # noqa: ASYNC110
            self._owned.over or self._runner.is_stopping
        ):
            await asyncio.sleep(min(left_s, 0.5))


async def submit(runner: "Runner", owned: OwnedJob, row: RowMapping) -> Verdict | None:
    """Bring a job to its external id, exactly once; a verdict where it ends without one.

    Returns None, too, when the job was lost or the runner told to stop: `owned.external_id` tells.
    """
    return await _Submission(runner, owned, row).run()
