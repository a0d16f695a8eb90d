"""The beats of a runner: one thread, one held connection, one statement for all jobs that are due."""

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from jobrunner.bisecting import all_but_refused
from jobrunner.clock import monotonic_s
from jobrunner.database import Database
from jobrunner.errors import DatabaseError
from jobrunner.heartbeat import Beater, BeatHealth, Pacer, lost_because
from jobrunner.hints import Hints, Wake
from jobrunner.log_limits import Once
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
        self._beater = Beater(database, runner_id, database.settings.heartrate)
        self._health = BeatHealth(database.settings.heartrate, self._grace)
        self._on_flagged, self._on_lost, self._on_beaten = on_flagged, on_lost, on_beaten
        self._groups: dict[float, _Group] = {}
        self._lock = threading.Lock()
        self._wake = Wake()
        self._stopping = False
        self._locked: list[OwnedRow] = []
        """Rows that somebody held, and that are to be beaten for again."""
        self._again_s = math.inf
        self._hints = Hints(database, self._wake)
        self._thread: threading.Thread | None = None
        self._has_let_go = False
        self._said = Once()

    def start(self) -> None:
        """Begin to beat."""
        self._thread = threading.Thread(target=self._run, name="jobrunner-beats", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Beat no more; returns when the thread has ended."""
        self._stopping = True
        self._wake.set()
        while (thread := self._thread) is not None and thread.is_alive():
            thread.join()
        self._beater.close()
        self._hints.close()
        self._wake.close()

    def add(self, owned: OwnedRow) -> None:
        """Beat for a job from now on: claiming it was its first beat."""
        with self._lock:
            group = self._groups.get(owned.heartrate)
            is_first = group is None
            if group is None:
                group = self._groups[owned.heartrate] = _Group(Pacer(owned.heartrate))
                self._beater.heartrate = min(self._groups)
            group.jobs[owned.job_id] = owned
        if self._has_let_go:
            self._begin_anew()
        if is_first:  # for others of its rate, the next beat is waited for already
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
                self._beater.heartrate = min(self._groups, default=owned.heartrate)

    def is_fenced(self, owned: OwnedRow) -> bool:
        """Whether no beat for this job succeeded for longer than its grace: it may be another's by now."""
        return self._has_let_go or monotonic_s() - owned.good_s > owned.heartrate * self._grace

    @property
    def is_failing(self) -> bool:
        """Whether the last beat was not acknowledged."""
        return self._health.failing_since_s is not None

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._guarded_round()
        except BaseException as error:  # noqa: BLE001  # raised while another error was being reported
            self._say_once("the thread that beats has ended: another takes its place", error)
        finally:
            if not self._stopping:
                self._succeed()

    def _succeed(self) -> None:
        threading.Event().wait(_CRASH_PAUSE_S)
        try:
            self.start()
        except Exception as error:  # noqa: BLE001  # no thread can be started
            self._let_go(error)

    def _begin_anew(self) -> None:
        with suppress(RuntimeError):  # still no thread can be started: the job stays fenced
            self.start()
            self._has_let_go = False

    def _let_go(self, error: BaseException) -> None:
        """Nobody beats any more, so others may take the jobs: nothing is done for them from now on."""
        self._has_let_go = True
        with suppress(Exception):
            log.error("no beats can be sent any more: this process lets its jobs go", error=error)
        with self._lock:
            jobs = [owned for group in self._groups.values() for owned in group.jobs.values()]
        for owned in jobs:
            self._tell(
                self._on_lost,
                owned,
                f"Job {owned.job_id} was let go: the thread that beats for it has ended.",
            )

    def _guarded_round(self) -> None:
        try:
            self._round()
        except BaseException as error:  # noqa: BLE001  # the beat of all jobs must not end by one fault
            self._health.failed(error)
            self._say_once("a round of beats went wrong", error)
            threading.Event().wait(_CRASH_PAUSE_S)

    def _tell(self, callback: Callable[..., None], *args: Any) -> None:
        """Call back; whatever that raises, the other jobs are beaten for."""
        try:
            callback(*args)
        except BaseException as error:  # noqa: BLE001  # see above
            self._say_once("what a beat reports was not taken", error)

    def _say_once(self, what: str, error: BaseException) -> None:
        if self._said.is_new(f"{what}: {error!r}"):
            log.error(what, error=repr(error), exc_info=error)

    def _round(self) -> None:
        with self._lock:
            wait_s = min((group.pacer.remaining_s() for group in self._groups.values()), default=_IDLE_S)
        wait_s = max(0.0, min(wait_s, self._again_s - monotonic_s()))
        if wait_s > 0:
            hinted = self._hints.wait(wait_s)
            if self._stopping:
                return
            if hinted:
                self._ask_for_flags()
        with self._lock:
            due = [group for group in self._groups.values() if group.pacer.remaining_s() <= 0]
            jobs = [owned for group in due for owned in group.jobs.values()]
        if due:
            self._beat(due, [owned for owned in jobs if self._is_making_progress(owned)])
        elif monotonic_s() >= self._again_s:
            self._beat_again()

    def _is_making_progress(self, owned: OwnedRow) -> bool:
        try:
            return owned.is_making_progress()
        except Exception as error:  # noqa: BLE001  # one job's fault must not silence the others
            self._say_once("a job's progress cannot be judged: it is not beaten for", error)
            return False

    def _ask_for_flags(self) -> None:
        asked_s = monotonic_s()
        try:
            flagged = self._beater.flagged()
        except DatabaseError as error:
            self._health.failed(error)
            self._hints.ask_again()
            return
        except BaseException:
            self._hints.ask_again()
            raise
        # On SQLite every commit of anybody is a hint, and the more jobs there are, the more an answer costs.
        self._hints.rest(_REST * (monotonic_s() - asked_s))
        if flagged:
            self._tell(self._on_flagged, flagged)

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
            self._beat_for(owned for owned in locked if not owned.over and self._is_making_progress(owned))
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
        answers, refused = all_but_refused(self._beater.beat, list(asked))
        self._say_refused({asked.pop(job_id): error for job_id, error in refused.items()})
        beaten: list[OwnedRow] = []
        flagged: list[int] = []
        for answer in answers:
            owned = asked.pop(answer.job_id)
            if answer.claims != owned.claim.claims:
                self._tell(self._on_lost, owned, f"Job {owned.job_id} was claimed again by this runner.")
                continue
            owned.good_s = sent_s
            if owned.has_callback:
                beaten.append(owned)
            if answer.kill_requested:
                flagged.append(answer.job_id)
        if asked:
            self._judge(asked)
        if flagged:
            self._tell(self._on_flagged, flagged)
        if beaten:
            self._tell(self._on_beaten, beaten)

    def _say_refused(self, refused: Mapping[OwnedRow, DatabaseError]) -> None:
        """Say once of each job that its row takes no beat: to others it falls silent, and it alone."""
        for owned, error in refused.items():
            if not owned.is_refused:
                log.error("the database refuses the beat of a job", job=owned.job_id, error=error)
            owned.is_refused = True

    def _judge(self, silent: dict[int, OwnedRow]) -> None:
        """Tell, for rows that did not come back, those that are only locked from those that are lost."""
        asked_s = monotonic_s()
        rows = self._beater.look(list(silent))
        for job_id, owned in silent.items():
            why = lost_because(owned.claim, rows.get(job_id))
            if why is None:
                owned.good_s = asked_s  # ours a moment ago, by the database's own word
                self._locked.append(owned)
                self._again_s = min(self._again_s, monotonic_s() + _AGAIN * owned.heartrate)
            elif not owned.over:
                self._tell(self._on_lost, owned, why)
