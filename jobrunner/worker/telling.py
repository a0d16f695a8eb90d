"""What a worker's own row tells of it: how much it has, and what it does not take and why."""

from typing import Any

from jobrunner import statements
from jobrunner.worker.means import Means
from jobrunner.worker.serving import Unserved
from jobrunner.worker.stopping import Stop

STOPPING = "stopping"
"""What a worker's `detail` says while it drains."""
_UNSERVED_MOST = 20  # kinds of jobs, of which the worker's row says why it does not take them


class Telling:
    """Keeps the worker's row up to date."""

    def __init__(self, means: Means, stop: Stop) -> None:
        self.unserved: list[Unserved] = []
        """What waits and is not served, as far as this round has found."""
        self.unseen: dict[int, str] = {}
        """Silent jobs of this host that are left alone, as their records cannot be seen, and why."""
        self._means = means
        self._stop = stop
        self._told: dict[str, Any] = {}

    async def tell(self) -> None:
        """Write into the worker's row what it has, when that changed. Raises `DatabaseError`."""
        jobs, code = len(self._means.runner.jobs), self._means.code
        found: dict[str, Any] = {
            "jobs": jobs,
            "processes": len(code.by_job),
            "capacity": self._means.capacity,
            **code.detail(),
        }
        if self.unserved:
            found["unserved"] = [each.as_row() for each in self.unserved[:_UNSERVED_MOST]]
        if self.unseen:
            found["unseen"] = {str(job_id): why for job_id, why in list(self.unseen.items())[:_UNSERVED_MOST]}
        if self._stop.is_wished:
            found[STOPPING] = True
        message = code.message(jobs)
        told = {**found, "message": message}
        if told != self._told and not self._stop.is_lost:
            await self._means.write(statements.tell, self._means.itself.claim, message, found)
            self._told = told
