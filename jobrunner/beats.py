"""The beats of a runner: one thread, one held connection, one statement for all jobs that are due."""

import math
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from jobrunner import statements
from jobrunner.clock import monotonic_s
from jobrunner.database import Database
from jobrunner.errors import DatabaseError
from jobrunner.heartbeat import Beater, BeatHealth, Pacer, lost_because
from jobrunner.hints import Hints, Wake, wait_readable
from jobrunner.logs import get_logger
from jobrunner.owned import OwnedRow

log = get_logger(__name__)

_CHUNK = 10_000  # rows a statement: a longer one holds its locks, and SQLite's only writer, for too long
_IDLE_S = 60.0
_CRASH_PAUSE_S = 1.0
_AGAIN = 0.1  # of a heartrate later, a row that was locked is tried again: else it would stand for two
_REST = 20  # times as long as asking for kill flags took, hints are not heeded: a twentieth of a core at most


@dataclass(slots=True)
class _Group:
    """The jobs of one heartrate: they share a rhythm."""

    pacer: Pacer
    jobs: dict[int, OwnedRow] = field(default_factory=dict)


class Beats:
    """Beats for all jobs of a runner, from a thread of its own.

    A job whose poller or own step is behind its own schedule is left out: a beat means progress.
    The callbacks are called on that thread: `on_flagged(ids)` for kill flags, `on_lost(job, why)`
    for a job that is no longer ours, `on_beaten(jobs)` after a good beat for jobs with a callback.
    """

    def __init__(
        self,
        database: Database,
        runner_id: str,
        *,
        on_flagged: Callable[[list[int]], None],
        on_lost: Callable[[OwnedRow, str], None],
        on_beaten: Callable[[list[OwnedRow]], None],
    ) -> None:
        self._database = database
        self._grace = database.settings.grace_multiplier
        self._beater = Beater(database, runner_id)
        self._health = BeatHealth(database.settings.heartrate, self._grace)
        self._on_flagged, self._on_lost, self._on_beaten = on_flagged, on_lost, on_beaten
        self._groups: dict[float, _Group] = {}
        self._lock = threading.Lock()
        self._wake = Wake()
        self._stopping = False
        self._rest_s = 0.0
        self._locked: list[OwnedRow] = []
        """Rows that somebody held, and that are to be beaten for again."""
        self._again_s = math.inf
        self._thread = threading.Thread(target=self._run, name="jobrunner-beats", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def stop(self) -> None:
        """Beat no more; returns when the thread has ended."""
        self._stopping = True
        self._wake.set()
        self._thread.join()
        self._wake.close()

    def add(self, owned: OwnedRow) -> None:
        """Beat for a job from now on: claiming it was its first beat."""
        with self._lock:
            group = self._groups.get(owned.heartrate)
            if group is None:
                group = self._groups[owned.heartrate] = _Group(Pacer(owned.heartrate))
            group.jobs[owned.job_id] = owned
        self._wake.set()

    def remove(self, owned: OwnedRow) -> None:
        """Beat no more for a job: after its terminal write, and when it is not ours any more."""
        with self._lock:
            group = self._groups.get(owned.heartrate)
            # Claimed anew by this very runner, the id may stand for a later claim.
            if group is None or group.jobs.get(owned.job_id) is not owned:
                return
            del group.jobs[owned.job_id]
            if not group.jobs:
                del self._groups[owned.heartrate]

    def is_fenced(self, owned: OwnedRow) -> bool:
        """Whether no beat for this job succeeded for longer than its grace: it may be another's by now."""
        return monotonic_s() - owned.good_s > owned.heartrate * self._grace

    @property
    def is_failing(self) -> bool:
        """Whether the last beat was not acknowledged."""
        return self._health.failing_since_s is not None

    def _run(self) -> None:
        hints = Hints(self._database, self._wake)
        try:
            while not self._stopping:
                try:
                    self._round(hints)
                except Exception as error:  # the beat of all jobs must not end by one fault
                    log.error("a round of beats went wrong", error=error, exc_info=True)
                    threading.Event().wait(_CRASH_PAUSE_S)
        finally:
            self._beater.close()
            hints.close()

    def _round(self, hints: Hints) -> None:
        with self._lock:
            wait_s = min((group.pacer.remaining_s() for group in self._groups.values()), default=_IDLE_S)
        wait_s = max(0.0, min(wait_s, self._again_s - monotonic_s()))
        if wait_s > 0 and self._rest_s > 0:
            wait_readable([], self._wake, min(wait_s, self._rest_s))
            self._rest_s = 0.0
        elif wait_s > 0:
            hinted = hints.wait(wait_s)
            if self._stopping:
                return
            if hinted:
                self._ask_for_flags()
        with self._lock:
            due = [group for group in self._groups.values() if group.pacer.remaining_s() <= 0]
            jobs = [owned for group in due for owned in group.jobs.values()]
        if due:
            self._beat(due, [owned for owned in jobs if owned.is_making_progress()])
        elif monotonic_s() >= self._again_s:
            self._beat_again()

    def _ask_for_flags(self) -> None:
        asked_s = monotonic_s()
        try:
            flagged = self._beater.flagged()
        except DatabaseError as error:
            self._health.failed(error)
            return
        # On SQLite every commit of anybody is a hint, and the more jobs there are, the more an answer costs.
        self._rest_s = _REST * (monotonic_s() - asked_s)
        if flagged:
            self._on_flagged(flagged)

    def _beat(self, due: Sequence[_Group], jobs: list[OwnedRow]) -> None:
        sent_s = monotonic_s()
        try:
            for start in range(0, len(jobs), _CHUNK):
                self._beat_for(jobs[start : start + _CHUNK])
        except DatabaseError as error:
            self._health.failed(error)
            for group in due:
                group.pacer.retry_soon()
            return
        if jobs:
            self._health.succeeded(sent_s)
        for group in due:
            group.pacer.keep_time()
            if group.pacer.remaining_s() <= 0:  # a whole interval late: the rhythm goes on from here
                group.pacer.restart()

    def _beat_again(self) -> None:
        locked, self._locked, self._again_s = self._locked, [], math.inf
        try:
            self._beat_for(owned for owned in locked if not owned.over and owned.is_making_progress())
        except DatabaseError as error:
            self._health.failed(error)
            with self._lock:
                for group in self._groups.values():
                    group.pacer.retry_soon()

    def _beat_for(self, jobs: Iterable[OwnedRow]) -> None:
        asked = {owned.job_id: owned for owned in jobs}
        if not asked:
            return
        sent_s = monotonic_s()
        answers = self._beater.beat(list(asked))
        beaten: list[OwnedRow] = []
        flagged: list[int] = []
        for answer in answers:
            owned = asked.pop(answer.job_id)
            if answer.claims != owned.claim.claims:
                self._on_lost(owned, f"Job {owned.job_id} was claimed again by this runner.")
                continue
            owned.good_s = sent_s
            if owned.has_callback:
                beaten.append(owned)
            if answer.kill_requested:
                flagged.append(answer.job_id)
        if asked:
            self._judge(asked)
        if flagged:
            self._on_flagged(flagged)
        if beaten:
            self._on_beaten(beaten)

    def _judge(self, silent: dict[int, OwnedRow]) -> None:
        """Tell, for rows that did not come back, those that are only locked from those that are lost."""
        asked_s = monotonic_s()
        with self._database.read() as connection:
            rows = statements.look(connection, list(silent))
        for job_id, owned in silent.items():
            why = lost_because(owned.claim, rows.get(job_id))
            if why is None:
                owned.good_s = asked_s  # ours a moment ago, by the database's own word
                self._locked.append(owned)
                self._again_s = min(self._again_s, monotonic_s() + _AGAIN * owned.heartrate)
            elif not owned.over:
                self._on_lost(owned, why)
