"""Writing how jobs ended: in bulk, as one burst of ends must not keep its jobs waiting for long."""

from dataclasses import replace
from typing import TYPE_CHECKING

from jobrunner.backends.base import Observation
from jobrunner.bulk_writes import Bulk, BulkWriter
from jobrunner.errors import DatabaseError
from jobrunner.logs import get_logger
from jobrunner.outcome import Ending, Verdict, write_ends
from jobrunner.owned import OwnedJob
from jobrunner.states import JobState

if TYPE_CHECKING:
    from jobrunner.runner import Runner

log = get_logger(__name__)


class Ends:
    """Writes the ends of a runner's jobs: until that is done, they stay the runner's, and are beaten for."""

    def __init__(self, runner: "Runner") -> None:
        self._seldom = runner.seldom
        self._writer: BulkWriter[Ending, JobState | str] = BulkWriter(
            runner, Bulk("ends", write_ends, _given_up, self._refused, is_step=True)
        )

    async def write(self, owned: OwnedJob, last: Observation | Verdict) -> JobState | str:
        """Write how a job ended; return the state that stands, or why it was not ours to be written."""
        owned.is_ending = True
        ending = Ending(owned.claim, owned.external_id, last, owned.cancellation.waited, owned.uncleaned)
        return await self._writer.write(owned, ending)

    def _refused(self, owned: OwnedJob, ending: Ending, error: Exception) -> Ending | None:
        """Write of it what every database takes; what is refused even then may be taken later."""
        about = {"about": owned.job_id, "job": owned.job_id, "error": error}
        if not ending.is_plain:
            self._seldom.error(log, "an end was refused as it was seen", **about)
            return replace(ending, is_plain=True)
        if not isinstance(error, DatabaseError):
            raise error
        self._seldom.warning(log, "an end is refused: trying it again", **about)
        return None


def _given_up(owned: OwnedJob) -> str:
    return f"Job {owned.job_id} was given up."  # which was said
