"""The types of our columns: UTC, text and JSON that both databases can hold; and the database's clock."""

import datetime as dt
import json
import re
from functools import lru_cache
from typing import Any

from sqlalchemy import JSON, Boolean, DateTime, Dialect, Float, String, Text, TypeDecorator
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeEngine, UserDefinedType

from jobrunner.states import JobState
from jobrunner.text import TEXT_MOST, storable, storable_detail, storable_json

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_SQLITE_NOW = "strftime('%Y-%m-%d %H:%M:%f', 'now')"
_NUMBER = re.compile(r"-?\d+(\.\d+)?")


class UtcDateTime(TypeDecorator[dt.datetime]):
    """An aware datetime in UTC; a naive one is refused.

    SQLite keeps it as text, `2026-03-01 12:00:00.123`. There, any client may have written anything:
    text that is no time reads as 1970, because a kill flag of a doubtful form is still a kill.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the column's type: text on SQLite, which has no timestamps."""
        return dialect.type_descriptor(String(32) if dialect.name == "sqlite" else DateTime(timezone=True))

    def process_bind_param(self, value: dt.datetime | None, dialect: Dialect) -> Any:
        """Turn an aware datetime into what the driver takes. Raises ValueError on a naive one."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value.isoformat()} has no time zone: give an aware datetime, such as in UTC")
        value = value.astimezone(dt.UTC)
        if dialect.name != "sqlite":
            return value
        # Milliseconds where they say it all: the same text that strftime('%f') writes.
        unit = "milliseconds" if value.microsecond % 1000 == 0 else "microseconds"
        return value.replace(tzinfo=None).isoformat(" ", unit)

    def process_result_value(self, value: Any, dialect: Dialect) -> dt.datetime | None:  # noqa: ARG002
        """Read what the database holds as an aware datetime in UTC."""
        if value is None:
            return None
        if isinstance(value, dt.datetime):
            return value.astimezone(dt.UTC)
        return _parse(str(value))


def _parse(text: str) -> dt.datetime:
    try:
        if _NUMBER.fullmatch(text):
            return dt.datetime.fromtimestamp(float(text), dt.UTC)
        value = dt.datetime.fromisoformat(text)
    except (ValueError, OverflowError, OSError):
        return _EPOCH
    return value.replace(tzinfo=dt.UTC) if value.tzinfo is None else value.astimezone(dt.UTC)


def json_or_text(held: Any) -> Any:
    """Read a JSON column; what is not JSON, as any client of SQLite may write, reads as the text that it is.

    One row that cannot be read must not keep all others from being read.
    """
    try:
        return json.loads(held)
    except TypeError:  # SQLite takes '5' for a number
        return held
    except (ValueError, RecursionError):
        return held.decode(errors="backslashreplace") if isinstance(held, bytes) else str(held)


def decoded_text(held: Any) -> str:
    """Return what a text column holds, readable also where it is a blob."""
    return held.decode(errors="backslashreplace") if isinstance(held, bytes) else str(held)


class BlobText(str):
    """What a text column shows of a blob: it can be read, but no text that is sent equals what is there."""

    __slots__ = ()


def _readable(held: Any) -> Any:
    return BlobText(decoded_text(held)) if isinstance(held, bytes) else held


class StoredText(TypeDecorator[str]):
    """Text of at most `length` characters, in a form that both databases can hold: see `text.storable`.

    Without a `length`, it is a TEXT of at most `text.TEXT_MOST` characters.
    """

    impl = Text
    cache_ok = True

    def __init__(self, length: int | None = None) -> None:
        super().__init__()
        self.length = length
        self._most = length or TEXT_MOST

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:  # noqa: ARG002
        """Choose the column's type by its length."""
        return Text() if self.length is None else String(self.length)

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        """Make a text storable, whoever wrote it."""
        return None if value is None else storable(value, self._most)

    def result_processor(self, dialect: Dialect, coltype: object) -> Any:  # noqa: ARG002
        """Read a text; on SQLite a blob may stand there, which any client may write."""
        return _readable if dialect.name == "sqlite" else None


class StoredJson(TypeDecorator[Any]):
    """JSON, in a form that both databases can hold; `is_detail`: an object of a bounded size."""

    impl = JSON
    cache_ok = True

    def __init__(self, *, is_detail: bool = False) -> None:
        super().__init__(none_as_null=True)
        self.is_detail = is_detail

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the column's type: JSONB on PostgreSQL."""
        return (JSONB if dialect.name == "postgresql" else JSON)(none_as_null=True)

    def coerce_compared_value(self, op: Any, value: Any) -> TypeEngine[Any]:
        """Let a comparison, or an index into it, be that of JSON."""
        return self.impl_instance.coerce_compared_value(op, value)

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:  # noqa: ARG002
        """Make a value storable."""
        if value is None:
            return None
        return storable_detail(value) if self.is_detail else storable_json(value, None)


class StateType(TypeDecorator[JobState]):
    """A `JobState`, kept as its word. A word that is none reads as a state that nothing is done about."""

    impl = String(16)
    cache_ok = True

    def process_bind_param(self, value: JobState | str | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        """Turn a state, or its word, into text. Raises ValueError on an unknown word."""
        return None if value is None else str(JobState(value))

    def process_result_value(self, value: str | None, dialect: Dialect) -> JobState | None:  # noqa: ARG002
        """Read the word as a state."""
        try:
            return None if value is None else JobState(value)
        except ValueError:
            return _unknown_state(decoded_text(value))


@lru_cache(100)
def _unknown_state(word: str) -> JobState:
    state = str.__new__(JobState, word)
    state._name_ = state._value_ = word
    return state


class IdArray(UserDefinedType[str]):
    """An array of ids, given to PostgreSQL as its text, and meant as an array from the first.

    The text is turned into numbers sooner by the server than a list by the driver. A text that is cast there
    would be no constant to the planner: it counts on looking ids up in a hash table, and the executor would
    compare each row with each id.
    """

    cache_ok = True

    def get_col_spec(self, **_kw: Any) -> str:
        return "BIGINT[]"


class db_now(FunctionElement[dt.datetime]):  # noqa: N801  # it reads as the SQL function that it is
    """The database's clock at this very moment: a beat that waited for a lock must not be stale."""

    type = UtcDateTime()
    inherit_cache = True


class db_in(FunctionElement[dt.datetime]):  # noqa: N801
    """The database's clock plus a number of seconds."""

    type = UtcDateTime()
    inherit_cache = True


class age_s(FunctionElement[float]):  # noqa: N801
    """Seconds from a stored time to the database's now, for reading; negative for a time to come."""

    type = Float()
    inherit_cache = True


class same_moment(FunctionElement[bool]):  # noqa: N801
    """Whether a column and a parameter are the same time, however finely either was written."""

    inherit_cache = True


class readable_time(FunctionElement[Any]):  # noqa: N801
    """A time by which rows can be ordered; NULL where a column of times holds none, or one without an end."""

    inherit_cache = True


class at_most(FunctionElement[float]):  # noqa: N801
    """A number column, or the given number where that is less, or where the column holds none."""

    type = Float()
    inherit_cache = True


class waited_s(FunctionElement[float]):  # noqa: N801
    """Seconds since the statement's own transaction began, on PostgreSQL: what it spent on waiting."""

    type = Float()
    inherit_cache = True


class is_set(FunctionElement[bool]):  # noqa: N801
    """Whether a column holds anything at all, for RETURNING.

    SQLite 3.40 answers `x IS NOT NULL` there with 1 whatever x is: every beat would read as a kill.
    """

    type = Boolean()
    inherit_cache = True


@compiles(db_now, "postgresql")
def _now_postgresql(_element: db_now, _compiler: SQLCompiler, **_kw: Any) -> str:
    return "clock_timestamp()"


@compiles(db_now, "sqlite")
def _now_sqlite(_element: db_now, _compiler: SQLCompiler, **_kw: Any) -> str:
    return _SQLITE_NOW


def _arguments(element: FunctionElement[Any], compiler: SQLCompiler, **kw: Any) -> list[str]:
    return [compiler.process(argument, **kw) for argument in element.clauses]


@compiles(db_in, "postgresql")
def _in_postgresql(element: db_in, compiler: SQLCompiler, **kw: Any) -> str:
    (seconds,) = _arguments(element, compiler, **kw)
    return f"clock_timestamp() + make_interval(secs => {seconds})"


@compiles(db_in, "sqlite")
def _in_sqlite(element: db_in, compiler: SQLCompiler, **kw: Any) -> str:
    (seconds,) = _arguments(element, compiler, **kw)
    return f"strftime('%Y-%m-%d %H:%M:%f', 'now', {seconds} || ' seconds')"


@compiles(age_s, "postgresql")
def _age_postgresql(element: age_s, compiler: SQLCompiler, **kw: Any) -> str:
    (when,) = _arguments(element, compiler, **kw)
    # Not extract(): it works in numeric, and judging 10,000 rows takes half as long again. And the
    # clock is read once for them all. 'infinity', which any client may write, cannot be subtracted.
    return f"CASE WHEN isfinite({when}) THEN date_part('epoch', (SELECT clock_timestamp()) - {when}) END"


@compiles(age_s, "sqlite")
def _age_sqlite(element: age_s, compiler: SQLCompiler, **kw: Any) -> str:
    (when,) = _arguments(element, compiler, **kw)
    return f"((SELECT julianday('now')) - julianday({when})) * 86400.0"


@compiles(readable_time, "postgresql")
def _readable_time_postgresql(element: readable_time, compiler: SQLCompiler, **kw: Any) -> str:
    (when,) = _arguments(element, compiler, **kw)
    return f"CASE WHEN isfinite({when}) THEN {when} END"


@compiles(readable_time, "sqlite")
def _readable_time_sqlite(element: readable_time, compiler: SQLCompiler, **kw: Any) -> str:
    (when,) = _arguments(element, compiler, **kw)
    return f"julianday({when})"


@compiles(at_most, "postgresql")
def _at_most_postgresql(element: at_most, compiler: SQLCompiler, **kw: Any) -> str:
    return f"least({', '.join(_arguments(element, compiler, **kw))})"  # NaN is the greatest there


@compiles(at_most, "sqlite")
def _at_most_sqlite(element: at_most, compiler: SQLCompiler, **kw: Any) -> str:
    return f"min({', '.join(_arguments(element, compiler, **kw))})"  # a text is greater than any number


@compiles(waited_s, "postgresql")
def _waited_postgresql(_element: waited_s, _compiler: SQLCompiler, **_kw: Any) -> str:
    # Not statement_timestamp(): each message of the extended protocol sets it anew, also after the wait.
    return "date_part('epoch', clock_timestamp() - transaction_timestamp())"


@compiles(is_set, "postgresql")
def _set_postgresql(element: is_set, compiler: SQLCompiler, **kw: Any) -> str:
    (column,) = _arguments(element, compiler, **kw)
    return f"{column} IS NOT NULL"


@compiles(is_set, "sqlite")
def _set_sqlite(element: is_set, compiler: SQLCompiler, **kw: Any) -> str:
    (column,) = _arguments(element, compiler, **kw)
    return f"typeof({column}) <> 'null'"


@compiles(same_moment, "postgresql")
def _same_postgresql(element: same_moment, compiler: SQLCompiler, **kw: Any) -> str:
    left, right = _arguments(element, compiler, **kw)
    return f"{left} = {right}"


@compiles(same_moment, "sqlite")
def _same_sqlite(element: same_moment, compiler: SQLCompiler, **kw: Any) -> str:
    sides = (f"strftime('%Y-%m-%d %H:%M:%f', {side})" for side in _arguments(element, compiler, **kw))
    # What is no time reads as 1970 (`UtcDateTime`), and so it must compare.
    return " = ".join(f"coalesce({side}, '1970-01-01 00:00:00.000')" for side in sides)


def alive(
    state: ColumnElement[Any],
    latest_heartbeat: ColumnElement[Any],
    heartrate: ColumnElement[Any],
    grace: float,
) -> ColumnElement[bool]:
    """Return the one judgement of liveness (PROTOCOL 4), by the database's clock.

    A beat from the future is not alive: a failover to a slow clock must not keep the dead alive.
    """
    age = age_s(latest_heartbeat)
    return (state == JobState.RUNNING) & (age < heartrate * grace) & (age >= -heartrate)
