"""Sessions for `heartbeat_callback`: each class has connections of its own, and what they hold is bounded.

So a callback that hangs takes no connection from other classes, and what it holds keeps others waiting for a
small part of a grace: after that its transaction is rolled back, and its class is not called for a while.
"""

import threading
from typing import TYPE_CHECKING

from sqlalchemy.orm import Session

from jobrunner.clock import monotonic_s
from jobrunner.database import Database
from jobrunner.errors import DatabaseUnavailable
from jobrunner.logs import get_logger
from jobrunner.settings import Settings
from jobrunner.transaction_limit import Limit, Turns

if TYPE_CHECKING:
    from jobrunner.models import BaseJob

log = get_logger(__name__)

_WRITE_PART = 0.1
"""Of a grace, how long a transaction may last from its first write."""
_WRITE_LEAST_S = 0.25
_PATIENCE_PART = 1 / 3
"""Of the time for which others wait for a lock, the most of that."""
_IDLE_PART = 0.8
"""Of the time for which others wait for a row, how long it may stand idle: the server sees to it."""
_REST_GRACES = 10
_REST_MOST_S = 60.0


class HookSessions:
    """Gives sessions to the `heartbeat_callback`s of one process, from any thread.

    `database`: where all of them are to use its connections; else each class has its own ones.
    """

    def __init__(self, settings: Settings, database: Database | None = None) -> None:
        self._settings = settings
        self._shared = database
        self._turns = Turns()
        self._lock = threading.Lock()
        self._databases: dict[type, Database] = {}
        self._rests_until_s: dict[type, float] = {}

    def is_resting(self, job: "BaseJob") -> bool:
        """Whether the class of a job is not to be called now, because a callback of it held up others."""
        return monotonic_s() < self._rests_until_s.get(type(job), 0.0)

    def session(self, job: "BaseJob") -> Session:
        """Return a session for the callback of a job."""
        settings = self._settings
        grace_s = min(job.heartrate, settings.heartrate) * settings.grace_multiplier
        database = self._database_of(type(job))
        patience_s = settings.sqlite_busy_timeout_s if database.is_sqlite else settings.lock_timeout_s
        write_s = min(max(_WRITE_PART * grace_s, _WRITE_LEAST_S), _PATIENCE_PART * patience_s)
        rest_s = min(_REST_GRACES * grace_s, _REST_MOST_S)

        def rest(write_s: float) -> None:
            self._rests_until_s[type(job)] = monotonic_s() + rest_s
            log.warning(
                f"a heartbeat_callback kept what it had written locked for {write_s:.3g} s: its transaction "
                f"is rolled back, and the callbacks of its class are not called for {rest_s:.3g} s",
                job=job.id,
                job_type=type(job).__name__,
            )

        def refuse() -> None:
            if self.is_resting(job):
                name = type(job).__name__
                raise DatabaseUnavailable(
                    f"A heartbeat_callback of {name} kept others waiting: its class writes no more for now."
                )

        limit = Limit(
            write_s=write_s,
            idle_s=_IDLE_PART * patience_s,
            turns=self._turns if database.is_sqlite else None,
            wait_s=patience_s,
            refuse=refuse,
            on_over=rest,
        )
        return database.session(limit)

    def _database_of(self, job_class: type) -> Database:
        if self._shared is not None:
            return self._shared
        with self._lock:
            if job_class not in self._databases:
                self._databases[job_class] = Database(self._settings, has_bounded_pool=False)
            return self._databases[job_class]

    def close(self) -> None:
        """Close the connections, but for those of callbacks that hang."""
        with self._lock:
            for database in self._databases.values():
                database.dispose()
