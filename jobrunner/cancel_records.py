"""Recording why jobs are being cancelled: in bulk, so that no row that is held delays the kill of another."""

from collections.abc import Sequence
from enum import Enum, auto
from typing import TYPE_CHECKING

from sqlalchemy import Connection, RowMapping

from jobrunner import statements
from jobrunner.bulk_writes import Bulk, BulkWriter
from jobrunner.errors import DatabaseError, DatabaseRefused
from jobrunner.heartbeat import lost_because
from jobrunner.logs import get_logger
from jobrunner.owned import OwnedJob
from jobrunner.statements import Attempt, Begun, Cancel, Claim

if TYPE_CHECKING:
    from jobrunner.runner import Runner

log = get_logger(__name__)


class NotBegun(Enum):
    """Why a cancellation is not on record."""

    NOT_OURS = auto()
    """The job has ended, or it is another's: the next beat says so, where it is not known yet."""
    OTHER_ATTEMPT = auto()
    """The row is at another attempt, which the cancellation does not concern."""


class CancelRecords:
    """Records the cancellations of a runner's jobs, fenced by the claim and by the attempt."""

    def __init__(self, runner: "Runner") -> None:
        self._seldom = runner.seldom
        self._writer: BulkWriter[Cancel, Begun | NotBegun] = BulkWriter(
            runner, Bulk("cancellations", write_cancels, _given_up, self._refused, is_step=False)
        )

    async def write(self, owned: OwnedJob, attempt: Attempt, cause: str) -> Begun | NotBegun:
        """Record why an attempt is being cancelled; return the cause that stands, the first one.

        Raises what the database refuses for its content.
        """
        claims = owned.claim.claims
        return await self._writer.write(
            owned, Cancel(owned.job_id, claims, attempt.token, attempt.external_id, cause)
        )

    def _refused(self, owned: OwnedJob, _cancel: Cancel, error: Exception) -> None:
        if isinstance(error, DatabaseRefused) or not isinstance(error, DatabaseError):
            raise error
        about = {"about": owned.job_id, "job": owned.job_id, "error": error}
        self._seldom.warning(log, "a cancellation is refused: trying it again", **about)


def write_cancels(
    connection: Connection, runner_id: str, cancels: Sequence[Cancel]
) -> dict[int, Begun | NotBegun | None]:
    """Record cancellations of jobs of a runner, and return what became of each, by its id; one a job.

    None: it is to be tried again, as somebody holds the row locked.
    """
    answers: dict[int, Begun | NotBegun | None] = {}
    answers |= statements.begin_cancel_many(connection, runner_id, cancels)
    left = [each for each in cancels if each.job_id not in answers]
    found = statements.look(connection, [each.job_id for each in left]) if left else {}
    for each in left:
        answers[each.job_id] = _why_not_begun(each, runner_id, found.get(each.job_id))
    return answers


def _why_not_begun(cancel: Cancel, runner_id: str, row: RowMapping | None) -> NotBegun | None:
    if row is None or lost_because(Claim(cancel.job_id, runner_id, cancel.claims), row) is not None:
        return NotBegun.NOT_OURS
    if (row["submit_token"], row["external_id"]) != (cancel.submit_token, cancel.external_id):
        return NotBegun.OTHER_ATTEMPT
    return None


def _given_up(_owned: OwnedJob) -> NotBegun:
    return NotBegun.NOT_OURS
