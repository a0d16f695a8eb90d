"""Between rows and objects: an object is filled from a row, and a row is never written from an object."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, RowMapping, inspect
from sqlalchemy.orm import Session, configure_mappers, make_transient, make_transient_to_detached
from sqlalchemy.orm.attributes import instance_dict, instance_state, set_committed_value

from jobrunner import identity, statements
from jobrunner.database import get_database
from jobrunner.resources import spec_with
from jobrunner.sqltypes import db_in
from jobrunner.statements import Owner

if TYPE_CHECKING:
    from jobrunner.models.base_job import BaseJob

STORED_COLUMNS = (
    *("job_type", "name", "dag_id", "parent_id", "heartrate", "executor_class", "hostname", "unixname"),
    *("adoptable", "host_id", "connection", "spec", "submit_token", "external_id", "poll_interval"),
    *("start_timeout", "resubmit", "needs", "key"),
)
"""What an object brings into its row when it is stored; all else is the protocol's to write."""


def is_stored(job: "BaseJob") -> bool:
    """Whether the object stands for a row."""
    return instance_state(job).has_identity


def store(connection: Connection, job: "BaseJob", owner: Owner | None) -> RowMapping:
    """Insert the row of a new object, claimed by `owner` or queued, and return it.

    The row of its key that is there already is returned as it stands.
    """
    return statements.store(connection, values_of(job), owner, actor=identity.who())


def values_of(job: "BaseJob") -> dict[str, Any]:
    """Return what a new object brings into its row."""
    values = {key: getattr(job, key) for key in STORED_COLUMNS}
    if values["submit_token"] is None:  # a spec of work outside is its backend's own
        values["spec"] = spec_with(job.spec, job.resources)
    if job.timeout is not None:
        values["deadline_at"] = db_in(job.timeout)
    return values


def refresh(job: "BaseJob", row: RowMapping) -> None:
    """Fill an object from its row, so that memory says what the database says."""
    state = inspect(job)
    if state.has_identity and state.identity != (row["id"],):
        make_transient(job)  # the transaction that had stored it was rolled back, and it was stored anew
    if not state.has_identity:
        if state.session is not None:
            # It is stored now: a later flush of that session must not store it once more.
            state.session.expunge(job)
        for key, value in row.items():
            job.__dict__.pop(key, None)
            set_committed_value(job, key, value)
        make_transient_to_detached(job)
    for key, value in row.items():
        set_committed_value(job, key, value)


def from_row(job_class: type["BaseJob"], row: RowMapping) -> "BaseJob":
    """Return a new detached object of this class for a row, without running its constructor."""
    configure_mappers()  # the first constructor would do it, and there may not have been one
    job: BaseJob = inspect(job_class).class_manager.new_instance()
    # As `refresh` does, at once and not column by column: a worker makes 100,000 of them.
    instance_dict(job).update(row)
    make_transient_to_detached(job)
    return job


@contextmanager
def reading(session: Session | None) -> Iterator[Connection]:
    """Give the session's own connection, or one for a moment."""
    if session is None:
        with get_database().read() as connection:
            yield connection
    else:
        if session.autoflush:  # as every query of the session itself does
            session.flush()
        yield session.connection()


@contextmanager
def writing(session: Session | None) -> Iterator[Connection]:
    """Give the session's own connection (the caller commits), or one write of its own."""
    if session is None:
        with get_database().write() as connection:
            yield connection
    else:
        session.flush()
        yield session.connection()
