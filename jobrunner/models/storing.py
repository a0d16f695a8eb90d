"""How a job is stored: once, whatever becomes of an answer.

Each store carries the key of its object: where the answer is lost, a look by that key says whether the job
stands there, and to store the same object again makes no second job.
"""

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Connection, RowMapping
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session, SessionTransaction

from jobrunner import identity, statements
from jobrunner.database import get_database
from jobrunner.doubt import WriteOnce
from jobrunner.errors import DatabaseError, DatabaseUnavailable, UsageError
from jobrunner.models.rows import is_stored, refresh, values_of, writing
from jobrunner.text import brief

if TYPE_CHECKING:
    from jobrunner.models.base_job import BaseJob

KEY_MOST = 250
"""Characters of a key at most: what its column holds."""


@dataclass(frozen=True, slots=True)
class Unsettled:
    """What an object has sent to be stored, while nobody knows whether it stands."""

    runner_id: str | None = None
    """Under which it was to be claimed; None: it was to be queued."""
    transaction: "weakref.ref[SessionTransaction] | None" = None
    """The caller's own, which decides; None: the answer was lost."""

    @property
    def is_undecided(self) -> bool:
        """Whether the caller's transaction has not ended yet."""
        transaction = None if self.transaction is None else self.transaction()
        return transaction is not None and transaction.is_active


def check_key(key: object) -> str:
    """Return a caller's own key. Raises `UsageError` where no row could carry it."""
    if not isinstance(key, str) or not 0 < len(key) <= KEY_MOST or not key.isprintable():
        raise UsageError(
            f"The key {brief(key, 300)} cannot be used: give 1 to {KEY_MOST} printable characters."
        )
    return key


def store_queued(job: "BaseJob", session: Session | None = None) -> None:
    """Insert an object as a queued job, once. Raises `DatabaseError`, and `UsageError` for another's key."""
    before = job._unsettled
    if is_stored(job) and (before is None or (session is None and before.is_undecided)):
        return
    job._check_before_storing()
    is_sent_before = before is not None
    if session is not None:
        with writing(session) as connection:  # the caller's transaction decides
            row = _stored(connection, job, is_sent_before=is_sent_before)
        transaction = session.get_transaction()
        refresh(job, row)
        job._unsettled = Unsettled(transaction=None if transaction is None else weakref.ref(transaction))
        return
    database = get_database()
    job._unsettled = before or Unsettled()
    row = WriteOnce(
        database,
        lambda connection: _stored(connection, job, is_sent_before=is_sent_before),
        lambda connection: found(connection, job),
        lambda error: unknown(job, error, "a worker runs it"),
    ).do()
    refresh(job, row)  # not before the commit: what failed may be stored again
    job._unsettled = None


def _stored(connection: Connection, job: "BaseJob", *, is_sent_before: bool) -> RowMapping:
    job_id = statements.store_once(connection, values_of(job), None, identity.who())
    if job_id is not None:
        return readable(connection, job_id)
    row = found(connection, job, is_sent_before=is_sent_before)
    if row is None:
        raise DatabaseError(f"The key {job.key!r} is taken by a job that cannot be seen: try again.")
    return row


def found(connection: Connection, job: "BaseJob", *, is_sent_before: bool = True) -> RowMapping | None:
    """Return the row that has the key of this object; None: there is none.

    A key that the object made itself is nobody else's. One that its caller gave is the object's where the
    object has sent it before, and the row says what was sent. Raises `UsageError` for another's.
    """
    assert job.key is not None  # its constructor has seen to it
    standing = statements.find(connection, job.key)
    if standing is None:
        return None
    row = readable(connection, standing["id"])
    if job._has_made_its_key or (is_sent_before and _says(connection, row, job)):
        return row
    raise UsageError(
        f"The key {job.key!r} is that of job {row['id']} ({row['state']}): nothing was stored. "
        "Give another key, or leave it out."
    )


_SAME = ("job_type", "name", "dag_id", "parent_id", "connection", "spec", "poll_interval", "start_timeout")


def _says(connection: Connection, row: RowMapping, job: "BaseJob") -> bool:
    sent = values_of(job)
    return statements.holds(connection, row["id"], {column: sent[column] for column in _SAME})


def readable(connection: Connection, job_id: int) -> RowMapping:
    """Return the row of a job that stands there. Raises `DatabaseError` naming it where it cannot be read."""
    try:
        return statements.get(connection, job_id)
    except SQLAlchemyError as error:
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            raise
        reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        raise DatabaseError(f"Job {job_id} is stored, but its row cannot be read: {reason}") from error


def unknown(job: "BaseJob", error: DatabaseError, then: str) -> DatabaseError:
    """Return the error for a store of which nobody knows whether it was taken; `then`: what if it was."""
    return DatabaseUnavailable(
        f"{error} The job may have been stored all the same, under the key {job.key}, and {then} then: "
        f"once the database can be reached, `jobrunner list --key {job.key}` shows whether it was."
    )
