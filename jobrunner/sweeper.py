"""Finding orphans: a job counts as one only after standing still for a whole grace before our own eyes."""

import time
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Connection, RowMapping

from jobrunner import identity, statements, worklist
from jobrunner.clock import monotonic_s
from jobrunner.database import Database
from jobrunner.errors import DatabaseError, UsageError
from jobrunner.logs import get_logger
from jobrunner.settings import get_settings
from jobrunner.statements import Claim, Owner, Sighting
from jobrunner.states import JobState

if TYPE_CHECKING:
    from jobrunner.models import MonitorJob

log = get_logger(__name__)

LOOK_S = 0.5
"""Seconds between two looks at a job that may be an orphan, or less for one that beats faster."""

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

    def keep(self, job_ids: AbstractSet[int]) -> None:
        """Forget the jobs that are not among these: they beat, or have ended."""
        for job_id in self._counts.keys() - job_ids:
            del self._counts[job_id]

    def restart(self) -> None:
        """Forget all counts: our own view of the database was interrupted."""
        self._counts.clear()


class Lookout:
    """Looks at one job, again and again, until it has ended, waits for a runner, or is an orphan.

    A row that somebody holds locked restarts the count, as a look that failed does: its owner lives,
    perhaps, and cannot beat. Both are logged when they begin.
    """

    def __init__(self, job_id: int, grace_multiplier: float) -> None:
        self._job_id = job_id
        self._count = StandStill(grace_multiplier)
        self._is_failing = False
        self._is_locked = False

    @contextmanager
    def trying(self) -> Iterator[None]:
        """Within it look, and act on what is seen: a `DatabaseError` ends only this try."""
        try:
            yield
        except DatabaseError as error:
            self._count.restart()
            if not self._is_failing:
                log.warning("the job cannot be looked at", job=self._job_id, error=error)
            self._is_failing = True
        else:
            self._is_failing = False

    def look(self, connection: Connection) -> tuple[RowMapping, Sighting | None]:
        """Return the job's row, and its sighting if it is an orphan.

        Raises `DatabaseError` and `JobNotFound`.
        """
        row = statements.get(connection, self._job_id)
        is_running = row["state"] is JobState.RUNNING
        is_locked = is_running and worklist.is_locked(connection, self._job_id)
        if is_locked and not self._is_locked:
            log.warning("the job's row is held locked: its owner may live, and cannot beat", job=self._job_id)
        self._is_locked = is_locked
        if is_locked:
            self._count.restart()
            return row, None
        return row, self._count.look(row) if is_running else None


def check_servable(job: "MonitorJob", host_id: str | None = None) -> None:
    """Refuse, before it is claimed, a job that this process cannot serve.

    `host_id`: the host that its work is bound to. Raises `SettingsError` where its connection is not
    configured here, `UsageError` where only another host or user can see its process.
    """
    get_settings().connection(job.connection, job.backend_kind)
    if job.host_uid not in {None, identity.uid()}:
        user = identity.username(job.host_uid)
        raise UsageError(
            f"Job {job.id} belongs to the user {user}, and only that user can read its records and signal "
            f"its process: run this command as {user}."
        )
    if not identity.can_serve(host_id, job.external_id):
        raise UsageError(
            f"Job {job.id} runs on {job.hostname}, and only there can its process be seen: "
            f"run `jobrunner attach {job.id}` on that host."
        )


def claim(connection: Connection, row: RowMapping, owner: Owner, orphan: Sighting | None) -> Claim | None:
    """Claim a job that is there to be claimed: queued, or an orphan as it was sighted; else None."""
    if not identity.can_serve(row["host_id"], row["external_id"]):
        return None
    if orphan is not None:
        return statements.adopt(connection, orphan, owner, row["host_id"])
    return statements.claim_queued(connection, row["id"], owner, row["host_id"])


def lose_with_its_host(connection: Connection, row: RowMapping, orphan: Sighting) -> bool:
    """End as `lost` an orphan whose work only its own host can see, silent for `host_grace_s` by now."""
    if identity.can_serve(row["host_id"], row["external_id"]):
        return False
    silent_s = (statements.now(connection) - row["latest_heartbeat"]).total_seconds()
    if silent_s < get_settings().host_grace_s:
        return False
    why = f"its host {row['hostname']} has been silent for {silent_s / 3600:.1f} h"
    return statements.lose(connection, orphan, identity.who(), why)


def why_lost(row: RowMapping) -> str:
    """Return the message of an orphan that nobody can adopt."""
    if row["job_type"] == worklist.WORKER:
        return f"its process on {row['hostname']} fell silent: others take its jobs over"
    return f"its process on {row['hostname']} fell silent, and nobody can go on with its code"


def see_off(database: Database, job_id: int) -> JobState:
    """Wait for the end of a job that runs its own code; end it as `lost` once it is an orphan.

    Nobody can go on with its code, and nobody outside can be asked what became of it.
    """
    lookout = Lookout(job_id, database.settings.grace_multiplier)
    while True:
        look_s = LOOK_S
        with lookout.trying(), database.write() as connection:
            row, orphan = lookout.look(connection)
            state = JobState(row["state"])
            if state.is_terminal:
                return state
            look_s = min(LOOK_S, row["heartrate"] / 4)
            if orphan is not None:
                statements.lose(connection, orphan, identity.who(), why_lost(row))
                continue
        time.sleep(look_s)
