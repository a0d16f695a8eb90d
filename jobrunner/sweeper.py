"""Finding orphans: a job counts as one only after standing still for a whole grace before our own eyes."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, RowMapping

from jobrunner import identity, record_places, statements, worklist
from jobrunner.clock import monotonic_s
from jobrunner.database import Database
from jobrunner.errors import DatabaseError, DatabaseUnavailable, JobrunnerError, UsageError
from jobrunner.log_limits import Trouble
from jobrunner.logs import get_logger
from jobrunner.settings import get_settings
from jobrunner.statements import Claim, Owner, Sighting
from jobrunner.states import JobState
from jobrunner.worklist import Judgeable

if TYPE_CHECKING:
    from jobrunner.models import MonitorJob

log = get_logger(__name__)

LOOK_S = 0.5
"""Seconds between two looks at a job that may be an orphan, or less for one that beats faster."""

SILENT_MOST = 20_000
"""Silent jobs that one look is at; the next look is at the next ones."""
PAGE = 2_500
"""Silent jobs of which one statement tells."""
_CHILD_ENDS_S = 30.0
"""Seconds, beyond a heartrate, within which a worker has ended a child that heeds no kill and no SIGTERM."""
_LEAST_GAP_S = 3.0
_ROUNDING_S = 1e-6
_PROMPT_MOST_S = 1.0
_PROMPT_LEAST_S = 0.25
_CONFIRMED = 0.5
"""Heartrates for which an orphan that was handed on must stand still once more: whoever was kept from beating
tries again within a quarter of one."""


def prompt_s(heartrate: float) -> float:
    """Return within how many seconds a look, or a write, must get through to say anything about a job.

    What holds it up for longer holds up the owner's beat, too.
    """
    return min(_PROMPT_MOST_S, max(_PROMPT_LEAST_S, heartrate / 4))


def rate_of(row: Mapping[Any, Any]) -> float:
    """Return the heartrate by which a row is judged, in seconds; of one that cannot be read, a day."""
    rate = row["heartrate"]
    if not isinstance(rate, int | float) or not 0 < rate < worklist.LONGEST_RATE_S:
        return worklist.LONGEST_RATE_S
    return rate


@dataclass(slots=True)
class _Count:
    stand: tuple[Any, ...]
    """Whose the job was, and its latest beat, as it was seen last."""
    looked_s: float
    still_s: float = 0.0
    """For how long it has stood still before our eyes."""


class StandStill:
    """Counts, on our own clock, how long running jobs have shown no beat.

    By this clock a wrong clock of a host or of the database kills nobody. A look that failed, took too long
    (`prompt_s`), or came much too late (we were paused), restarts the count: a database that is away, or
    takes no writes, makes nobody an orphan. So does an act on an orphan that had to wait (`acting`).
    """

    def __init__(self, grace_multiplier: float, clock: Callable[[], float] = monotonic_s) -> None:
        self._grace = grace_multiplier
        self._clock = clock
        self._counts: dict[int, _Count] = {}

    def look(self, row: RowMapping, took_s: float = 0.0, looked_s: float | None = None) -> Sighting | None:
        """Take note of a running job's row; its sighting once it has stood still for a whole grace.

        `took_s`: how long the look took, with the proof that the database takes writes. `looked_s`: when the
        database was looked at last, also for other jobs only; None: when this one was.
        """
        now_s, heartrate, job_id = self._clock(), rate_of(row), row["id"]
        grace_s = heartrate * self._grace
        gap_s = max(_LEAST_GAP_S, heartrate)
        if took_s > prompt_s(heartrate):
            self._counts.pop(job_id, None)
            return None
        stand = row["runner_id"], row["claims"], row["latest_heartbeat"]
        count = self._counts.get(job_id)
        if count is None or count.stand != stand or now_s - max(count.looked_s, looked_s or 0.0) > gap_s:
            self._counts[job_id] = _Count(stand, now_s)
            return None
        # What happened between two looks is not known: one gap alone is no proof.
        count.still_s += min(now_s - count.looked_s, max(LOOK_S, grace_s / 2))
        count.looked_s = now_s
        if count.still_s < grace_s - _ROUNDING_S:
            return None
        return Sighting(job_id, *stand, prompt_s=prompt_s(heartrate), good_until_s=now_s + gap_s)

    def keep(self, job_ids: AbstractSet[int], after: int = 0, until: float = math.inf) -> None:
        """Forget the jobs that are not among these: they beat, or have ended.

        `after`, `until`: between these ids, the latter included, was looked.
        """
        for job_id in self._counts.keys() - job_ids:
            if after < job_id <= until:
                del self._counts[job_id]

    def forget(self, job_ids: Iterable[int]) -> None:
        """Count anew for these jobs: an act on them took nothing, or had to wait."""
        for job_id in job_ids:
            self._counts.pop(job_id, None)

    def restart(self) -> None:
        """Forget all counts: our own view of the database was interrupted."""
        self._counts.clear()


class Lookout:
    """Looks at one job, again and again, until it has ended, waits for a runner, or is an orphan.

    A row that somebody holds locked restarts the count, as does a look that failed, or found that the
    database takes no writes: its owner lives, perhaps, and cannot beat. Both are logged when they begin.
    """

    def __init__(self, job_id: int, grace_multiplier: float) -> None:
        self._job_id = job_id
        self._count = StandStill(grace_multiplier)
        self._failing, self._locked = Trouble(), Trouble()

    @contextmanager
    def trying(self) -> Iterator[None]:
        """Within it look, and act on what is seen: a `DatabaseError` ends only this try."""
        try:
            yield
        except DatabaseError as error:
            self._count.restart()
            if self._failing.begins():
                log.warning("the job cannot be looked at", job=self._job_id, error=error)
        else:
            self._failing.ends()

    def look(self, connection: Connection) -> tuple[RowMapping, Sighting | None]:
        """Return the job's row, and its sighting if it is an orphan.

        Raises `DatabaseError` and `JobNotFound`.
        """
        asked_s = monotonic_s()
        row = statements.get(connection, self._job_id)
        is_running = row["state"] is JobState.RUNNING
        is_late = is_running and worklist.is_silent(connection, self._job_id)
        is_locked = is_late and worklist.is_locked(connection, self._job_id)
        if is_locked:
            if self._locked.begins():
                log.warning(
                    "the job's row is held locked: its owner may live, and cannot beat", job=self._job_id
                )
            self._count.restart()
            return row, None
        self._locked.ends()
        if is_late:
            statements.prove_writable(connection, prompt_s(rate_of(row)))
        return row, self._count.look(row, monotonic_s() - asked_s) if is_running else None

    def restart(self) -> None:
        """Count anew: an act on what was seen took nothing, or had to wait."""
        self._count.restart()


@dataclass(frozen=True, slots=True)
class Acting:
    """A write under way that takes over orphans, or declares them lost."""

    connection: Connection
    asked_s: float
    """When it was asked for, on the monotonic clock."""

    def still_good(self, seen: Iterable[Sighting]) -> list[Sighting]:
        """Return those that may be acted on still: what was seen is fresh, and this write did not wait."""
        now_s = monotonic_s()
        waited_s = now_s - self.asked_s
        return [each for each in seen if waited_s <= each.prompt_s and now_s <= each.good_until_s]


@contextmanager
def acting(database: Database) -> Iterator[Acting]:
    """Give the write in which orphans are taken over, or declared lost: the only way to either.

    It has the write lock of SQLite. Whoever had to wait for that acts on nothing (`Acting.still_good`): the
    owner had to wait as well, and its beat comes next. What a statement waits for on PostgreSQL, it measures
    itself (`statements.adopt_many`).
    """
    asked_s = monotonic_s()
    with database.write() as connection:
        yield Acting(connection, asked_s)


@dataclass(frozen=True, slots=True)
class Look:
    """A look at silent jobs, at all or at some of them."""

    rows: list[tuple[RowMapping, float]]
    """Each job's row, and for how many seconds the database let us wait for it."""
    until: float
    """The id up to which it was looked; infinite: there are no more."""


def look_at_silent(connection: Connection, judgeable: Judgeable, after: int, asked_s: float) -> Look:
    """Return the silent jobs behind the id `after` (see `worklist.silent`), at most `SILENT_MOST`.

    A proof that their owners could beat comes before each statement. What is measured, from `asked_s` on (on
    the monotonic clock), is the database's own time for that: it must not grow with how many they are.
    """
    rows: list[tuple[RowMapping, float]] = []
    while len(rows) < SILENT_MOST:
        statements.prove_writable(connection, _PROMPT_MOST_S)
        found = worklist.silent(connection, judgeable, after, PAGE)
        rows += [(row, found.answered_s - asked_s) for row in found.rows]
        if len(found.rows) < PAGE:
            return Look(rows, math.inf)
        after, asked_s = found.rows[-1]["id"], monotonic_s()
    return Look(rows, after)


def confirmed(database: Database, seen: Sighting, within_s: float) -> Sighting | None:
    """Watch an orphan that another process has sighted stand still once more; None: it does not.

    Between that sighting and now its owner may have been kept from beating, and be about to. Raises
    `DatabaseError` where the looks still fail after `within_s` seconds.
    """
    lookout = Lookout(seen.job_id, _CONFIRMED)
    until_s = monotonic_s() + within_s
    while True:
        look_s = LOOK_S
        with lookout.trying(), database.read() as connection:
            row, orphan = lookout.look(connection)
            if row["state"] is not JobState.RUNNING or _sighting(row) != seen:
                return None
            if orphan is not None:
                return orphan
            look_s = min(LOOK_S, rate_of(row) / 8)
        if monotonic_s() > until_s:
            raise DatabaseUnavailable(f"Job {seen.job_id} cannot be watched: the database takes no writes.")
        time.sleep(look_s)


def _sighting(row: RowMapping) -> Sighting:
    return Sighting(row["id"], row["runner_id"], row["claims"], row["latest_heartbeat"])


def check_servable(job: "MonitorJob", row: Mapping[Any, Any] | None = None) -> None:
    """Refuse, before it is claimed, a job that this process cannot serve.

    `row`: where it stands; None: it is not there yet. Raises `SettingsError` where its connection is not
    configured here, `UsageError` where only another host or user can see its process.
    """
    get_settings().connection(job.connection, job.backend_kind)
    why = worklist.why_barred(job.needs, is_held=job.held_at is not None and job.kill_requested_at is None)
    if why is not None:
        raise UsageError(f"Job {job.id} cannot be taken over: {why}.")
    if job.host_uid not in {None, identity.uid()}:
        user = identity.username(job.host_uid)
        raise UsageError(
            f"Job {job.id} belongs to the user {user}, and only that user can read its records and signal "
            f"its process: run this command as {user}."
        )
    if row is None:
        return
    if not identity.can_serve(row["host_id"], row["external_id"]):
        raise UsageError(
            f"Job {job.id} runs on {job.hostname}, and only there can its process be seen: "
            f"run `jobrunner attach {job.id}` on that host."
        )
    why = record_places.why_unseen(row)
    if why is not None:
        raise UsageError(
            f"Job {job.id} cannot be taken over: {why}. "
            f"Run `jobrunner attach {job.id}` where that directory is mounted."
        )


def claim(connection: Connection, row: RowMapping, owner: Owner, orphan: Sighting | None) -> Claim | None:
    """Claim a job that is there to be claimed: queued, or an orphan as it was sighted; else None."""
    if not identity.can_serve(row["host_id"], row["external_id"]) or record_places.why_unseen(row):
        return None
    if orphan is not None:
        return statements.adopt(connection, orphan, owner, row["host_id"])
    return statements.claim_queued(connection, row["id"], owner, row["host_id"])


def lose_with_its_host(connection: Connection, row: RowMapping, orphan: Sighting) -> bool:
    """End as `lost` an orphan whose work cannot be seen from here, silent for `host_grace_s` by now."""
    is_here = identity.can_serve(row["host_id"], row["external_id"])
    unseen = record_places.why_unseen(row) if is_here else None
    if is_here and unseen is None:
        return False
    silent_s = (statements.now(connection) - row["latest_heartbeat"]).total_seconds()
    if silent_s < get_settings().host_grace_s:
        return False
    if unseen is not None:
        from jobrunner.backends.process.tree import carried  # here: it is hardly ever asked

        if carried([record_places.record_of(row)]):
            return False
    return statements.lose(connection, orphan, identity.who(), why_given_up(row, silent_s, unseen))


def why_given_up(row: RowMapping, silent_s: float | None, unseen: str | None) -> str:
    """Return the message of an orphan that whoever sees its work has left silent for `host_grace_s`.

    `silent_s`: for how long; None: its last beat cannot be read. `unseen`: why its records cannot be seen
    from here; None: its work is on another host.
    """
    silent = (
        "has left no beat that can be read"
        if silent_s is None
        else f"has been silent for {silent_s / 3600:.1f} h"
    )
    if unseen is None:
        return f"its host {row['hostname']} {silent}"
    return f"{unseen}; its runner {silent}, and no process of it lives here"


def is_child_here(row: RowMapping) -> bool:
    """Whether a job's process lives on this host, as a child of a worker, which ends it after a kill."""
    if row["pid"] is None or row["runner_host_id"] != identity.host_id():
        return False
    try:
        runner_id = identity.variable_of(row["pid"], identity.CHILD_VARIABLE)
    except OSError:  # a shortage, which passes: that says nothing about the process
        return True
    return runner_id is not None and runner_id == str(row["runner_id"])


def why_lost(row: RowMapping, *, is_worker: bool, lives: bool = False) -> str:
    """Return the message of an orphan that nobody can adopt; `lives`: its process is seen to."""
    if lives:
        return (
            f"its process {row['pid']} on {row['hostname']} is silent, and nobody has ended it: end it there"
        )
    if is_worker:
        return f"its process on {row['hostname']} fell silent: others take its jobs over"
    return f"its process on {row['hostname']} fell silent, and nobody can go on with its code"


class SeeingOff:
    """Looks, again and again, at a job that runs its own code, and ends it as `lost` once it is an orphan.

    Nobody can go on with its code, and nobody outside can be asked what became of it. `refusal`: raised in
    place of that, for one that somebody else may take over.
    """

    def __init__(self, database: Database, job_id: int, refusal: JobrunnerError | None = None) -> None:
        self._database = database
        self._job_id = job_id
        self._refusal = refusal
        self._silent_s: float | None = None
        """When it was first found to be an orphan whose process lives."""
        self._lookout = Lookout(job_id, database.settings.grace_multiplier)
        self.pause_s = LOOK_S
        """Seconds until the next look."""

    def look(self) -> JobState | None:
        """Return how the job ended; None: it has not yet, as far as can be told."""
        self.pause_s = LOOK_S
        with self._lookout.trying():
            with self._database.read() as connection:
                row, orphan = self._lookout.look(connection)
            state = JobState(row["state"])
            if state.is_terminal:
                return state
            self.pause_s = min(LOOK_S, rate_of(row) / 4)
            if orphan is not None:
                return self._end(row, orphan)
        return None

    def _end(self, row: RowMapping, orphan: Sighting) -> JobState | None:
        if self._refusal is not None:
            raise self._refusal
        lives = is_child_here(row)
        if lives and self._is_being_ended(row):
            return None
        why = why_lost(row, is_worker=statements.is_worker_row(row), lives=lives)
        with acting(self._database) as act:
            lost = [
                statements.lose(act.connection, each, identity.who(), why)
                for each in act.still_good([orphan])
            ]
        if any(lost):
            return JobState.LOST
        self._lookout.restart()
        return None

    def _is_being_ended(self, row: RowMapping) -> bool:
        """Whether its worker may still be about to end its process: the code has time to heed the kill."""
        if self._silent_s is None:
            self._silent_s = monotonic_s()
        return monotonic_s() - self._silent_s < rate_of(row) + _CHILD_ENDS_S


def see_off(database: Database, job_id: int) -> JobState:
    """Wait for the end of a job that runs its own code; end it as `lost` once it is an orphan."""
    seeing = SeeingOff(database, job_id)
    while (state := seeing.look()) is None:
        time.sleep(seeing.pause_s)
    return state
