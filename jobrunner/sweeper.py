"""Finding orphans: a job counts as one only after standing still for a whole grace before our own eyes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Connection, RowMapping

from jobrunner import identity, statements
from jobrunner.clock import monotonic_s
from jobrunner.errors import UsageError
from jobrunner.settings import get_settings
from jobrunner.statements import Claim, Owner, Sighting

if TYPE_CHECKING:
    from jobrunner.models import MonitorJob

_LEAST_GAP_S = 3.0


@dataclass(slots=True)
class _Count:
    sighting: Sighting
    since_s: float
    looked_s: float


class StandStill:
    """Counts, on our own clock, how long running jobs have shown no beat.

    By this clock a wrong clock of a host or of the database kills nobody. A look that failed, or came
    much too late (we were paused), restarts the count: a database outage makes nobody an orphan.
    """

    def __init__(self, grace_multiplier: float, clock: Callable[[], float] = monotonic_s) -> None:
        self._grace = grace_multiplier
        self._clock = clock
        self._counts: dict[int, _Count] = {}

    def look(self, row: RowMapping) -> Sighting | None:
        """Take note of a running job's row; its sighting once it has stood still for a whole grace."""
        now_s = self._clock()
        seen = Sighting(row["id"], row["runner_id"], row["claims"], row["latest_heartbeat"])
        count = self._counts.get(seen.job_id)
        gap_s = max(_LEAST_GAP_S, row["heartrate"])
        if count is None or count.sighting != seen or now_s - count.looked_s > gap_s:
            self._counts[seen.job_id] = _Count(seen, now_s, now_s)
            return None
        count.looked_s = now_s
        return seen if now_s - count.since_s >= row["heartrate"] * self._grace else None

    def restart(self) -> None:
        """Forget all counts: our own view of the database was interrupted."""
        self._counts.clear()


def check_servable(job: "MonitorJob", host_id: str | None = None) -> None:
    """Refuse, before it is claimed, a job that this process cannot serve.

    `host_id`: the host that its work is bound to. Raises `SettingsError` where its connection is not
    configured here, `UsageError` where only another host can see its process.
    """
    get_settings().connection(job.connection, job.backend_kind)
    if not identity.can_serve(host_id):
        raise UsageError(
            f"Job {job.id} runs on {job.hostname}, and only there can its process be seen: "
            f"run `jobrunner attach {job.id}` on that host."
        )


def claim(connection: Connection, row: RowMapping, owner: Owner, orphan: Sighting | None) -> Claim | None:
    """Claim a job that is there to be claimed: queued, or an orphan as it was sighted; else None."""
    if not identity.can_serve(row["host_id"]):
        return None
    if orphan is not None:
        return statements.adopt(connection, orphan, owner, row["host_id"])
    return statements.claim_queued(connection, row["id"], owner, row["host_id"])
