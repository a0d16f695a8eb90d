"""What an error of a database driver means: an outage, refused content, a lost session, or a missing table.

PostgreSQL's errors are judged by their SQLSTATE, whatever language their text is in. SQLite has none:
there the class of the driver's error decides.
"""

import sqlite3

from sqlalchemy.exc import DBAPIError, SQLAlchemyError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from jobrunner.errors import DatabaseError, DatabaseRefused, DatabaseUnavailable, SchemaError

_MISSING = {"42P01", "42703", "3F000"}  # table, column, schema
_READ_ONLY = "25006"
_HELD = "55P03"  # lock_not_available: NOWAIT, or lock_timeout
_ENDED = {"57P01", "57P02", "57P03", "57P05"}  # shut down, crashed, starting, idle for too long
_CONTENT_CLASSES = {"22", "23", "54"}  # data, constraints, limits such as the size of an index row
_OUTAGE_CLASSES = {
    "08",  # the connection
    "25",  # the state of the transaction
    "40",  # deadlock, serialization
    "53",  # out of memory, disk or connections
    "55",  # a lock that was not available
    "57",  # cancelled, shut down
    "58",  # the operating system
    "F0",
    "XX",
}
_OUTAGES = {"OperationalError", "InterfaceError", "InternalError"}
_CONTENT = {"DataError", "IntegrityError"}
_UNSTORABLE = (UnicodeError, OverflowError)
"""What drivers raise, unwrapped, for a value that they cannot send."""


def translate(error: SQLAlchemyError, shown_url: str) -> DatabaseError:
    """Return our error for one of SQLAlchemy's: what is wrong, and what to do."""
    reason = _first_line(getattr(error, "orig", None) or error)
    if isinstance(error, DBAPIError):
        return _translate_driver(error, reason, shown_url)
    if isinstance(error, PoolTimeoutError):
        return DatabaseUnavailable(f"The database {shown_url} gave no connection in time: {reason}")
    if isinstance(error, StatementError):  # a value was refused before it was sent
        return DatabaseRefused(f"A value cannot be stored in the database {shown_url}: {reason}")
    return DatabaseError(f"The database {shown_url} refused: {reason}")


def refused_value(error: BaseException, shown_url: str) -> DatabaseRefused | None:
    """Return our error for a value that the driver itself could not send; None for any other error."""
    if not isinstance(error, _UNSTORABLE):
        return None
    return DatabaseRefused(f"A value cannot be stored in the database {shown_url}: {_first_line(error)}")


def is_session_lost(error: BaseException) -> bool:
    """Whether no session opened before this error is of use any more.

    A demoted primary keeps its connections open and refuses every write on them.
    """
    state = sqlstate(error) or ""
    return state == _READ_ONLY or state in _ENDED or state.startswith("08")


def is_connection_lost(error: DatabaseError) -> bool:
    """Whether it was the connection that failed: the same call may succeed on a fresh one at once."""
    return isinstance(error.__cause__, DBAPIError) and error.__cause__.connection_invalidated


def is_held(error: DatabaseError) -> bool:
    """Whether somebody holds locked what the call needs, and nothing else is wrong."""
    return isinstance(error.__cause__, DBAPIError) and sqlstate(error.__cause__.orig) == _HELD


def is_read_only(error: DatabaseError) -> bool:
    """Whether the database itself refused a write as it takes none: nothing of it was done."""
    cause = error.__cause__
    return isinstance(cause, DBAPIError) and sqlstate(cause.orig) == _READ_ONLY


def sqlstate(error: BaseException | None) -> str | None:
    """Return PostgreSQL's code for an error; None where it has none."""
    state = getattr(error, "sqlstate", None)
    return state if isinstance(state, str) else None


def is_missing_table(error: DBAPIError) -> bool:
    """Whether a table or a column does not exist."""
    state = sqlstate(error.orig)
    if state is not None:
        return state in _MISSING
    words = str(error.orig)
    return "no such table" in words or "no such column" in words


def _translate_driver(error: DBAPIError, reason: str, shown_url: str) -> DatabaseError:
    if is_missing_table(error):
        return SchemaError(f"The schema of {shown_url} does not fit ({reason}): run `jobrunner db upgrade`.")
    state = sqlstate(error.orig)
    if state == _READ_ONLY:
        return DatabaseUnavailable(
            f"The database {shown_url} is read-only now ({reason}): connect to its primary, or to several "
            "hosts with target_session_attrs=read-write. Where it is the primary, look at "
            "default_transaction_read_only of its user."
        )
    if _is_content(error, state):
        return DatabaseRefused(f"The database {shown_url} refused the content of a write: {reason}")
    if _is_outage(error, state):
        return DatabaseUnavailable(
            f"The database {shown_url} cannot be used now ({reason}){_hint(error, reason)}."
        )
    return DatabaseError(f"The database {shown_url} refused: {reason}")


def _hint(error: DBAPIError, reason: str) -> str:
    if "unsupported startup parameter" in reason:
        return ": a pooler refuses connection options, set postgres_options = false"
    if "statement pooling mode" in reason:
        return (
            ": let the pooler give a connection for a transaction or a session, as by pool_mode = transaction"
        )
    if error.statement is not None:
        return ""
    # Without a statement it was the connection itself that failed.
    if isinstance(error.orig, sqlite3.Error):
        return ": see that this user may read and write that file and its directory"
    return ": see that it runs, and that database_url is right"


def _is_content(error: DBAPIError, state: str | None) -> bool:
    if state is not None:
        return state[:2] in _CONTENT_CLASSES
    return bool(_class_names(error) & _CONTENT)


def _is_outage(error: DBAPIError, state: str | None) -> bool:
    if error.connection_invalidated:
        return True
    if state is not None:
        return state[:2] in _OUTAGE_CLASSES or error.statement is None
    return bool(_class_names(error) & _OUTAGES)


def _class_names(error: DBAPIError) -> set[str]:
    return {base.__name__ for base in type(error.orig).__mro__}


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
