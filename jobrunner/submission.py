"""Submit once (PROTOCOL 8): the intent is stored, then the outside is asked, then the answer is stored.

A submission whose answer is not known is never repeated: the backend first proves what became of it.
After a crash or a pause at any step there is one external job, or a `failed` row that names the doubt.
"""

import datetime as dt
import uuid
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection, RowMapping

from jobrunner import identity, statements
from jobrunner.backends.base import SEND_WITHIN_S, Absent, Found, sending_until
from jobrunner.backends.checks import flaw_of_id, seconds_of
from jobrunner.clock import monotonic_s
from jobrunner.errors import (
    BackendDefect,
    DatabaseError,
    DatabaseRefused,
    NotSent,
    SubmitRejected,
    Throttled,
    words_of,
)
from jobrunner.heartbeat import lost_because
from jobrunner.logs import get_logger
from jobrunner.outcome import Verdict, not_wanted
from jobrunner.owned import OwnedJob
from jobrunner.retry import Retry
from jobrunner.statements import Claim
from jobrunner.states import JobState
from jobrunner.text import storable, text_of

if TYPE_CHECKING:
    from jobrunner.runner import Runner

log = get_logger(__name__)

_T = TypeVar("_T")

_SLACK_S = 15.0  # beyond a call's own deadline, for the database's part of a step
_RETRY_AFTER_MOST_S = 3600.0  # a server whose clock is wrong must not hold a job back for a year
_DEFECTS_MOST = 5  # in succession: a backend that cannot prove a submission will not learn it by being asked
_TAKE_BACK_S = 300.0  # how long work is watched to its end whose id cannot be stored
_DOUBT_S = 30.0  # between two questions about the submission of a job that is to be killed, at most
_LOOK_S = 1.0  # while it waits to try again: whether it is still wanted


class _Submission:
    """One job on its way to an external id."""

    def __init__(self, runner: "Runner", owned: OwnedJob, row: RowMapping, *, is_new: bool) -> None:
        self._runner = runner
        self._owned = owned
        self._spec = row["spec"] or {}
        self._started_at: dt.datetime | None = row["submit_started_at"]
        self._created_at: dt.datetime = row["created_at"]
        # An earlier owner may have sent it, or may be about to: that must be known first.
        # So may whoever had it between a backup and its restore.
        self._is_held = row["held_at"] is not None
        was_owned = owned.claim.claims > 1 and not is_new
        self._in_doubt = self._started_at is not None or was_owned or self._is_held
        self._baseline: str | None = row["submit_baseline"]
        self._host_id = identity.host_id() if owned.is_bound_here else None
        self._host_uid = identity.uid() if owned.is_bound_here else None
        self._said: str | None = None
        self._has_turn = False
        self._defects = 0
        """How often in succession the backend's own code failed to prove the submission."""

    async def run(self) -> Verdict | None:
        retry = Retry(first_s=0.2)
        while not self._is_over():
            asked_s = 0.0
            try:
                verdict = await self._try_once()
            except SubmitRejected as error:
                return Verdict(JobState.FAILED, f"not accepted: {words_of(error)}")
            except Throttled as error:
                verdict = None
                asked_s = min(seconds_of(error.retry_after_s) or 0.0, _RETRY_AFTER_MOST_S)
                await (self._say_doubt if self._in_doubt else self._say_not_yet)(words_of(error))
            if verdict is not None or self._owned.external_id is not None:
                return verdict
            await self._rest(max(asked_s, retry.next_s()))
        return None

    async def _try_once(self) -> Verdict | None:
        """Submit it, or look for it, when it is its turn. Raises `SubmitRejected` and `Throttled`."""
        self._has_turn = await self._owned.channel.turns.take(self._goes_on_waiting)
        if self._is_over():
            self._give_back_turn()
            return None
        try:
            # A beat means progress: this step is late when it takes longer than its call may.
            self._owned.progress_by_s = monotonic_s() + 2 * self._owned.channel.patience.call_s + _SLACK_S
            return await (self._find() if self._in_doubt else self._submit())
        finally:
            self._give_back_turn()

    def _goes_on_waiting(self) -> bool:
        # Those whose turn it is get on: each of their calls has its time.
        self._owned.progress_by_s = monotonic_s() + _SLACK_S
        return not (self._is_over() or (self._not_wanted() is not None and self._may_end_now()))

    async def _in_turn(self, call: Awaitable[_T]) -> _T:
        """Await what a turn is for, and give the turn back: what comes then may take its time."""
        try:
            return await call
        finally:
            self._give_back_turn()

    def _give_back_turn(self) -> None:
        if self._has_turn:
            self._has_turn = False
            self._owned.channel.turns.give_back()

    async def _rest(self, seconds: float) -> None:
        """Wait before the next try; a job that is not in doubt ends at once when it is not wanted."""
        until_s = monotonic_s() + seconds
        self._owned.progress_by_s = until_s + _SLACK_S
        while (left_s := until_s - monotonic_s()) > 0 and not self._is_over():
            if self._not_wanted() is not None:
                if self._may_end_now():
                    return
                until_s = min(until_s, monotonic_s() + _DOUBT_S)  # however late its backend wants to be asked
            await self._runner.pause(min(left_s, _LOOK_S))

    def _may_end_now(self) -> bool:
        """Whether a job that is not wanted may end before its external id is known."""
        return not self._in_doubt or self._defects >= _DEFECTS_MOST

    async def _say_not_yet(self, error: str) -> None:
        await self._say(f"not submitted yet: {error}")

    async def _say_doubt(self, reason: str) -> None:
        since = f" since {self._started_at:%H:%M} UTC" if self._started_at is not None else ""
        await self._say(f"submission in doubt{since}: {reason}; asking until it is proven")

    async def _say(self, message: str) -> None:
        """Let the row tell why it goes on without an external id."""
        if message != self._said:
            self._said = message
            try:
                await self._runner.persist(statements.say_unsubmitted, self._owned.claim, message)
            except DatabaseRefused as error:  # it is only shown: the submission goes on
                self._warn("what a job shows cannot be written", words_of(error))

    def _warn(self, event: str, error: str) -> None:
        """Log what the row says, too: of many jobs that wait for one connection, a few stand for all."""
        job_id = self._owned.job_id
        self._owned.channel.seldom.warning(log, event, about=job_id, job=job_id, error=error)

    def _is_over(self) -> bool:
        return self._owned.over or self._runner.is_stopping

    async def _submit(self) -> Verdict | None:
        early = self._not_wanted()
        if early is not None:
            return early
        owned = self._owned
        if not await self._has_baseline():
            return None
        begin = (_begin, owned.claim, owned.token, self._host_id, self._baseline, self._host_uid)
        try:
            begun_s, started_at = await self._runner.call(*begin)
        except DatabaseRefused:
            raise
        except DatabaseError as error:
            self._give_back_turn()  # the rows of others may be free
            await self._say_not_yet(words_of(error))  # which waits for this row, and for the database
            return None
        if started_at is None:
            return await self._why_not_begun()
        self._started_at = started_at
        if owned.start_timeout is not None:
            owned.cancellation.start_by_s = begun_s + owned.start_timeout
        external_id = await self._send(begun_s + SEND_WITHIN_S)
        return None if external_id is None else await self._accept(external_id, is_ours=True)

    async def _accept(self, external_id: str, *, is_ours: bool) -> Verdict | None:
        """Record an external id; a verdict where it cannot be stored. `is_ours`: made just now, by this."""
        flaw = flaw_of_id(external_id)
        if flaw is None:
            try:
                recorded = await self._record(external_id)
            except DatabaseRefused as error:
                flaw = text_of(error)
            else:
                if not recorded and is_ours:
                    await self._undo(external_id)
                return None
        return await self._reject(external_id, flaw)

    async def _reject(self, external_id: str, flaw: str) -> Verdict | None:
        """End work outside that no row can speak of, because its id cannot be stored as it is."""
        owned, shown = self._owned, storable(external_id, 100)
        if self._is_over():
            return None  # whoever has the job next finds it, and does the same
        log.error("an external id cannot be stored", job=owned.job_id, external_id=shown, why=flaw)
        what = f"the backend gave the external id {shown!r}, which cannot be stored: {flaw}"
        await self._say(f"{what}; its work is being cancelled")
        owned.progress_by_s = monotonic_s() + _TAKE_BACK_S + 2 * owned.channel.patience.call_s + _SLACK_S
        reason = "jobrunner cannot store its external id"
        has_ended = await owned.channel.take_back(external_id, reason, _TAKE_BACK_S)
        how = "its work was ended" if has_ended else "its work was not seen to end: look for it outside"
        if owned.kill_seen:
            return Verdict(JobState.KILLED if has_ended else JobState.FAILED, f"killed: {what}; {how}")
        return Verdict(JobState.FAILED, f"{what}; {how}")

    async def _send(self, until_s: float) -> str | None:
        """Send it, and return its external id; None: it was not sent, or it is in doubt.

        Raises `SubmitRejected` and `Throttled`.
        """
        owned, channel = self._owned, self._owned.channel
        try:
            with sending_until(until_s):
                return await self._in_turn(channel.backend.submit(self._spec, owned.token))
        except (SubmitRejected, Throttled):
            raise
        except NotSent as error:
            told = words_of(error)
            if self._said is None:
                self._warn("not submitted yet", told)
            await self._say_not_yet(told)
        except Exception as error:  # noqa: BLE001  # whatever else it was: the job may have been made
            self._in_doubt = True
            told = words_of(error)
            self._warn("submission in doubt", told)
            await self._say_doubt(told)
        return None

    async def _has_baseline(self) -> bool:
        """Learn what is there outside before anything of ours is; False: it could not be learnt yet.

        Raises `SubmitRejected` and `Throttled`.
        """
        backend = self._owned.channel.backend
        if not backend.has_baseline:
            return True
        try:
            self._baseline = await backend.baseline(self._spec)
        except (SubmitRejected, Throttled):
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is: nothing was sent
            await self._say_not_yet(words_of(error))
            return False
        return True

    def _not_wanted(self) -> Verdict | None:
        return not_wanted(self._owned)

    async def _why_not_begun(self) -> Verdict | None:
        """Learn what the row says now: somebody, or a write of ours whose answer was lost, changed it."""
        owned = self._owned
        row = await self._runner.persist(statements.get_or_none, owned.job_id)
        if row is None or lost_because(owned.claim, row) is not None:
            return None  # the next beat says so
        if row["submit_token"] != owned.token:  # renewed by a try whose answer was lost
            owned.start_anew(row["submit_token"])
        self._started_at = row["submit_started_at"]
        owned.external_id = row["external_id"]  # a slow submitter may have recorded it just now
        owned.kill_seen = owned.kill_seen or row["kill_requested_at"] is not None
        return self._not_wanted() if owned.external_id is None else None

    async def _record(self, external_id: str) -> bool:
        """Store the answer, whoever owns the job by now; False: the row does not want it."""
        owned = self._owned
        recorded = await self._runner.persist(
            statements.record_submitted, owned.job_id, owned.token, external_id
        )
        if recorded:
            owned.external_id = external_id
        self._in_doubt = not recorded  # then the next beat says that the job is not ours
        return recorded

    async def _undo(self, external_id: str) -> None:
        """Take back a job that we made too late, unless it is the very one that the row speaks of."""
        job_id = self._owned.job_id
        row = await self._runner.persist(statements.get_or_none, job_id)
        if row is not None and row["external_id"] == external_id:
            return
        if await self._held([external_id]):
            return  # it is another job's: only what nobody holds is taken back
        log.warning("a late submission is taken back", job=job_id, external_id=external_id)
        await self._owned.channel.take_back(external_id, "submitted late: another runner has this job")

    async def _find(self) -> Verdict | None:
        owned, channel = self._owned, self._owned.channel
        since = self._started_at or self._created_at
        try:
            found = await self._in_turn(
                channel.backend.find(
                    self._spec, owned.token, since, baseline=self._baseline, is_held=self._held
                )
            )
        except Throttled:
            raise
        except Exception as error:  # noqa: BLE001  # no answer: it is asked again
            told = words_of(error)
            self._warn("cannot tell yet what became of a submission", told)
            self._defects = self._defects + 1 if isinstance(error, BackendDefect) else 0
            await self._say_doubt(told)
            return self._give_up(told)
        self._defects = 0
        if isinstance(found, Found):
            return await self._accept(found.external_id, is_ours=False)
        if self._is_held and self._started_at is None and (unwanted := self._not_wanted()) is not None:
            return Verdict(unwanted.state, f"{unwanted.message}, as far as is known: {statements.UNFOUND}")
        if isinstance(found, Absent):
            await self._start_anew()
        elif found.retry_at is not None:
            await self._say_doubt(found.reason)
            await self._wait_until(found.retry_at)
        elif self._started_at is None:
            self._in_doubt = False  # nobody ever recorded that he began
        else:
            return Verdict(JobState.FAILED, self._doubt(found.reason))
        return None

    def _doubt(self, reason: str) -> str:
        return f"{reason}: look for it outside before you start it again (token {self._owned.token})"

    def _give_up(self, trouble: str) -> Verdict | None:
        """End a job that is not wanted, and whose backend's own code again and again proves nothing."""
        unwanted = self._not_wanted() if self._defects >= _DEFECTS_MOST else None
        if unwanted is None:
            return None
        why = "a kill was requested" if unwanted.state is JobState.KILLED else "the timeout has passed"
        return Verdict(
            JobState.FAILED,
            self._doubt(f"{why}, and nothing proves what became of its submission: {trouble}"),
        )

    async def _held(self, external_ids: Sequence[str]) -> set[str]:
        return await self._runner.persist(statements.held, self._owned.job_id, list(external_ids))

    async def _start_anew(self) -> None:
        """Proven absent: submit under a new token, so that a late first one finds its own one taken."""
        owned = self._owned
        token = uuid.uuid4().hex
        if self._not_wanted() is None and await self._runner.persist(
            statements.renew_token, owned.claim, owned.token, token
        ):
            owned.start_anew(token)
            self._started_at = None
        self._in_doubt = False

    async def _wait_until(self, retry_at: dt.datetime) -> None:
        now = await self._runner.persist(statements.now)
        # However far away the backend says it is: its clock, or ours, may be wrong.
        await self._rest(min(max(0.0, (retry_at - now).total_seconds()), _RETRY_AFTER_MOST_S))


def _begin(connection: Connection, claim: Claim, token: str, *more: Any) -> tuple[float, dt.datetime | None]:
    """Store the intent; return the moment before it was stored, and when that was by the database."""
    return monotonic_s(), statements.begin_submit(connection, claim, token, *more)


async def submit(
    runner: "Runner", owned: OwnedJob, row: RowMapping, *, is_new: bool = False
) -> Verdict | None:
    """Bring a job to its external id, exactly once; a verdict where it ends without one.

    `is_new`: this owner itself has just made the token, so that nobody can have used it.
    Returns None, too, when the job was lost or the runner told to stop: `owned.external_id` tells.
    """
    return await _Submission(runner, owned, row, is_new=is_new).run()
