"""The heartbeat: its rhythm, its health, and the fence that follows from it."""

import math
import random
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from sqlalchemy import Connection, RowMapping
from sqlalchemy.exc import SQLAlchemyError

from jobrunner import statements
from jobrunner.clock import INTERVAL_LEAST, SECONDS_MOST, is_interval, monotonic_s, utcnow
from jobrunner.database import Database, driver_connection
from jobrunner.driver_errors import is_connection_lost
from jobrunner.errors import DatabaseUnavailable, UsageError
from jobrunner.log_limits import Seldom, Trouble
from jobrunner.logs import get_logger
from jobrunner.statements import Beaten, Claim
from jobrunner.states import JobState
from jobrunner.text import brief

log = get_logger(__name__)

_T = TypeVar("_T")

_RETRY_FRACTION = 0.25  # after an error, the next try comes at most this part of a heartrate later
_PATIENCE = 0.5
"""Of a heartrate, how long a held connection may be silent: one beat more has room within the grace."""
_PATIENCE_LEAST_S = 0.5
"""A healthy server is busy with other things for so long, now and then."""
_PATIENCE_MOST_S = 10.0
"""Kill flags are asked for on the same connection: they wait no longer, however seldom a job beats."""
_SLOWER = 1.5
"""How many times as long as lately a slow database may take before its connection is suspected."""


def check_rate(heartrate: float, grace_multiplier: float) -> None:
    """Refuse a rhythm by which nobody could be judged. Raises `UsageError`.

    `heartrate`: seconds between beats. `grace_multiplier`: how many of them may pass in silence.
    """
    if not is_interval(heartrate):
        raise UsageError(
            f"A heartrate of {brief(heartrate, 100)} cannot be kept: give seconds between beats, at least "
            f"{INTERVAL_LEAST:g} and at most {SECONDS_MOST:g}."
        )
    check_grace(grace_multiplier)


def check_grace(grace_multiplier: float) -> None:
    """Refuse a grace within which a beat on time would already be late. Raises `UsageError`."""
    if not (math.isfinite(grace_multiplier) and grace_multiplier > 1):
        raise UsageError(
            f"A grace of {grace_multiplier} heartrates would declare every job dead between two beats: "
            "give more than 1, such as 2.1."
        )


_warned_of_skew = False


def warn_of_skew(database: Database, heartrate: float) -> None:
    """Warn, once a process, that this host's clock and the database's are over `heartrate` seconds apart.

    Nothing depends on the host's clock; but the times in its logs are not those in the rows.
    Raises `DatabaseError`.
    """
    global _warned_of_skew  # noqa: PLW0603  # it is said once
    if _warned_of_skew:
        return
    before = utcnow()
    with database.read() as connection:
        theirs = statements.now(connection)
    # Theirs lies between two of ours, however long the answer took.
    skew_s = max((before - theirs).total_seconds(), (theirs - utcnow()).total_seconds())
    if skew_s > heartrate:
        _warned_of_skew = True
        log.warning(
            f"this host's clock and the database's are {skew_s:.0f} s apart: only the database's counts",
            database=f"{theirs:%Y-%m-%d %H:%M:%SZ}",
        )


class Pacer:
    """The steady rhythm: beats on time fall on `start + n * heartrate`, without drift.

    A beat asked for late comes at once, and the rhythm goes on from there.
    """

    def __init__(self, heartrate: float, clock: Callable[[], float] = monotonic_s) -> None:
        self.heartrate = heartrate
        self._clock = clock
        self._due = clock() + heartrate

    def remaining_s(self) -> float:
        """Return the seconds until the next beat is due; 0 when it is due or late."""
        return max(0.0, self._due - self._clock())

    def keep_time(self) -> None:
        """The beat was waited for: the next one is due one heartrate after this one was."""
        self._due += self.heartrate

    def restart(self) -> None:
        """The beat came late, or was tried again: the next one is due one heartrate from now."""
        self._due = self._clock() + self.heartrate

    def retry_soon(self) -> None:
        """The beat failed: try again with jitter, at most a quarter of a heartrate from now."""
        part = random.uniform(_RETRY_FRACTION / 2, _RETRY_FRACTION)  # noqa: S311  # jitter, not a secret
        self._due = self._clock() + part * self.heartrate


class BeatHealth:
    """Whether beats succeed; said on each change, and at most once a minute.

    `last_good_s` is the moment *before* the last successful beat was sent: what the database holds
    is never older than that.
    """

    def __init__(
        self, heartrate: float, grace_multiplier: float, clock: Callable[[], float] = monotonic_s
    ) -> None:
        check_rate(heartrate, grace_multiplier)
        self._grace_s = heartrate * grace_multiplier
        self._clock = clock
        self.last_good_s = clock()
        self.failing_since_s: float | None = None
        self._trouble = Trouble(clock)

    def succeeded(self, sent_s: float) -> None:
        """A beat sent at `sent_s` (on the monotonic clock) was acknowledged."""
        self.last_good_s = sent_s
        if self.failing_since_s is not None:
            outage_s = self._clock() - self.failing_since_s
            self.failing_since_s = None
            if self._trouble.ends():
                log.warning(f"heartbeat recovered after {outage_s:.1f} s")

    def failed(self, error: BaseException) -> None:
        """A beat was not acknowledged."""
        if self.failing_since_s is None:
            self.failing_since_s = self._clock()
        if self._trouble.begins():
            log.warning("heartbeat failing", error=str(error))

    @property
    def is_fenced(self) -> bool:
        """Whether others may by now have taken what is ours: then nothing is done to the outside."""
        return self._clock() - self.last_good_s > self._grace_s


class Beater:
    """Sends beats over one held connection, from whichever thread uses it, one at a time.

    A connection may be dead without a word: a firewall has forgotten it, or a failover left it at a server
    that nobody reaches. So one that is silent for half a heartrate is given up, and the same is asked at once
    on a new one, which may take as long as any call: it has just answered, so it is the database that is
    slow. Where it was slow lately, the connection is suspected later: a database that works, slowly, gets no
    second connection and no second statement with each beat. What the old connection may still bring to
    the server is a beat by the same runner, under the same fence.

    `heartrate`: seconds between two beats of the job that is beaten for most often.
    """

    def __init__(self, database: Database, runner_id: str, heartrate: float) -> None:
        self.heartrate = heartrate
        self._database = database
        self._runner_id = runner_id
        self._connection: Connection | None = None
        self._driver: Any = None
        self._took_s = 0.0
        """How long beats take lately: the longest counts half as much with each that came after it."""
        self._seldom = Seldom()
        self._lock = threading.Lock()

    def beat(self, ids: Sequence[int], *, with_time: bool = False) -> list[Beaten]:
        """Send one beat for `ids`, on a fresh connection where the held one was lost.

        Raises `DatabaseError`, and then holds no connection any more.
        """
        asked_s = monotonic_s()
        beaten = self._on_held(
            lambda connection: statements.beat(connection, self._runner_id, ids, with_time=with_time)
        )
        # One that found the rows locked, perhaps by the beat that was given up, was quick without any work.
        self._took_s = max(monotonic_s() - asked_s, self._took_s / 2 if beaten else self._took_s)
        return beaten

    def flagged(self) -> list[int]:
        """Ask which of the runner's jobs carry the kill flag, without beating."""
        return self._on_held(lambda connection: statements.flagged(connection, self._runner_id))

    def look(self, ids: Sequence[int]) -> dict[int, RowMapping]:
        """Return who holds the rows now, of those that there are: it waits for no connection of the pool."""
        return self._on_held(lambda connection: dict(statements.look(connection, ids)))

    @property
    def patience_s(self) -> float:
        """How long the held connection may take to answer before another one is tried."""
        usual_s = min(max(_PATIENCE * self.heartrate, _PATIENCE_LEAST_S), _PATIENCE_MOST_S)
        return min(max(usual_s, _SLOWER * self._took_s), self._database.settings.call_timeout_s)

    def _on_held(self, ask: Callable[[Connection], _T]) -> _T:
        with self._lock:
            asked_s, patience_s = monotonic_s(), self.patience_s
            try:
                return self._ask(ask, patience_s)
            except DatabaseUnavailable as error:
                # A server, or a firewall, may have ended it while it was idle: no kill waits for that.
                if not is_connection_lost(error):
                    raise
            if monotonic_s() - asked_s >= patience_s:
                what = "a connection of the heartbeat does not answer: trying a new one"
                self._seldom.warning(log, what, seconds=round(patience_s, 1))
            return self._ask(ask, self._database.settings.call_timeout_s)

    def _ask(self, ask: Callable[[Connection], _T], call_s: float) -> _T:
        try:
            with self._database.translated():
                if self._connection is None:
                    # One of the pool's perhaps, as old as the one that was lost.
                    self._connection = self._database.held(call_s)
                    self._driver = driver_connection(self._connection)
                elif not self._database.is_sqlite:
                    self._driver.call_s = call_s
                return ask(self._connection)
        except BaseException:
            # Whatever went wrong: a demoted primary, for one, stays connected and read-only.
            self._discard()
            raise

    def close(self) -> None:
        """Close the held connection."""
        with self._lock:
            self._discard()

    def _discard(self) -> None:
        connection, self._connection = self._connection, None
        driver, self._driver = self._driver, None
        if connection is not None:
            with suppress(SQLAlchemyError):
                connection.close()
        if driver is not None:  # SQLAlchemy forgets one that it invalidated, without closing it
            with suppress(Exception):
                driver.close()


def lost_because(claim: Claim, row: RowMapping | None) -> str | None:
    """Return why a job whose row did not come back from a beat is no longer ours; None: it is.

    `row` is what `statements.look` found, or None.
    """
    if row is None:
        return f"Job {claim.job_id} was deleted."
    state, runner_id, claims = row["state"], row["runner_id"], row["claims"]
    if state != JobState.RUNNING:
        return f"Job {claim.job_id} was ended as {state} by others."
    if (runner_id, claims) != (claim.runner_id, claim.claims):
        return f"Job {claim.job_id} was taken over by runner {runner_id}."
    return None
