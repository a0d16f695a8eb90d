"""Writes whose answer may get lost: a look at the database decides whether they were taken."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection

from jobrunner.clock import monotonic_s
from jobrunner.database import Database
from jobrunner.driver_errors import is_connection_lost, is_read_only
from jobrunner.errors import DatabaseError, DatabaseUnavailable
from jobrunner.logs import get_logger
from jobrunner.retry import Retry

log = get_logger(__name__)

_T = TypeVar("_T")

PATIENCE_S = 30.0
"""Seconds for which a database that went away under a write is asked what became of the write."""


def was_lost(error: DatabaseError) -> bool:
    """Whether the connection broke, so that nobody knows what was done; else the database has answered."""
    return is_connection_lost(error) and not is_read_only(error)


@dataclass(slots=True)
class WriteOnce(Generic[_T]):
    """A write that must not be done twice: where its answer is lost, `look` decides.

    `begin`: give what `write` takes, for one transaction; without it, a connection to write with.
    `look`: return what the write left behind; None: nothing, so that it is safe to write again.
    `unknown`: make the error for a database that stays away for `patience_s` after the write was sent;
    without it, the database's own error is raised.
    `waits_to_send`: be as patient before anything is sent; else that is an error at once. `is_wanted`:
    whether to go on waiting.
    """

    database: Database
    write: Callable[[Any], _T]
    look: Callable[[Connection], _T | None]
    unknown: Callable[[DatabaseError], DatabaseError] = lambda error: error
    patience_s: float | None = None
    waits_to_send: bool = False
    is_wanted: Callable[[], bool] = lambda: True
    begin: Callable[[], AbstractContextManager[Any]] | None = None
    _retry: Retry = field(default_factory=lambda: Retry(most_s=2.0))
    _until_s: float = float("inf")
    _was_sent: bool = False
    _may_come_late: bool = False
    """Whether one that was sent may still arrive, after a look that did not find it."""

    def do(self) -> _T:
        """Write, and return what was written, or what `look` found.

        Raises `DatabaseError`: as it came where nothing was left behind, else what `unknown` made, and
        what `write` and `look` raise.
        """
        while True:
            try:
                with (self.begin or self.database.write)() as begun:
                    self._was_sent = True
                    return self.write(begun)
            except DatabaseError as error:
                trouble = error
            if not (self._was_sent or self.waits_to_send):
                raise trouble
            self._may_come_late |= self._was_sent and was_lost(trouble)
            is_known = is_read_only(trouble) and not self._may_come_late  # there is nothing to be found
            found = self._looked() if self._was_sent and not is_known else None
            if found is not None:
                return found
            may_repeat = is_connection_lost(trouble) or self._may_come_late or self.waits_to_send
            if not (may_repeat and isinstance(trouble, DatabaseUnavailable)):
                raise trouble
            self._pause(trouble)

    def _looked(self) -> _T | None:
        """Return what the look found, waiting for a database that does not answer."""
        while True:
            try:
                with self.database.write() as connection:  # what was found may be beaten for, or claimed
                    return self.look(connection)
            except DatabaseUnavailable as error:
                self._may_come_late = True  # nothing is known of it yet
                self._pause(error)

    def _pause(self, trouble: DatabaseError) -> None:
        """Wait before the next try. Raises `DatabaseError` when the patience is over."""
        if self._retry.count == 0:
            patience_s = PATIENCE_S if self.patience_s is None else self.patience_s
            self._until_s = monotonic_s() + patience_s
            what = ", to learn whether a write was taken" if self._may_come_late else ""
            log.warning(f"waiting for the database{what}", error=trouble)
        if monotonic_s() >= self._until_s or not self.is_wanted():
            raise (self.unknown(trouble) if self._may_come_late else trouble) from trouble
        time.sleep(self._retry.next_s())
