"""Rows as any SQL client may write them: every value that the schema lets through."""

import sqlite3
from collections.abc import Mapping
from typing import Any

import psycopg
from hypothesis import strategies as st

from jobrunner.models import BaseJob
from tests.fuzz.texts import ODD_NUMBERS, ODD_TEXTS

COLUMNS = sorted(column.name for column in BaseJob.__table__.columns if column.name != "id")
EVENT_COLUMNS = ["at", "from_state", "to_state", "actor", "reason"]

_TIMES = [
    "infinity",
    "-infinity",
    "0044-03-15 00:00:00+00 BC",
    "294276-12-31",
    "epoch",
    "now",
    "today",
    "1e9",
    "",
    "-1",
]
_JSONS = [
    "null",
    "[]",
    '"x"',
    "7",
    "{",
    '{"a": NaN}',
    "1e999",
    "[" * 3000,
    '{"resources": 7}',
    '{"resources": {"GPU": "x"}}',
]
_JSONS += [
    '{"run_for_s": "x"}',
    '{"run_for_s": -1}',
    '{"command": 7}',
    '{"args": [], "class": 3}',
    '{"oom": "many"}',
]
_IDS = ["memory-1", "0", "a/b/c", "//", "/etc", "-1", "default:default:x"]
_BLOBS = [b"", b"\x00", b"\xff\xfe", b"text"]

odd_values = st.one_of(
    st.none(),
    st.sampled_from([*ODD_TEXTS, *_TIMES, *_JSONS, *_IDS, *_BLOBS, *ODD_NUMBERS, True, False]),
    st.sampled_from(
        ["queued", "running", "success", "failed", "killed", "lost", "kill", "deadline", "start_timeout"]
    ),
    st.text(max_size=20),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.binary(max_size=8),
)
changes = st.dictionaries(st.sampled_from(COLUMNS), odd_values, min_size=1, max_size=4)
"""Some columns of a row, and what is written into them."""
event_changes = st.dictionaries(st.sampled_from(EVENT_COLUMNS), odd_values, max_size=3)


class Client:
    """A client of its own kind: the bare driver, which knows nothing of jobrunner."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.is_sqlite = isinstance(connection, sqlite3.Connection)

    def write(self, table: str, row_id: int, column: str, value: Any) -> bool:
        """Set one column of one row; False where the database refuses the value."""
        try:
            if self.is_sqlite:
                self.connection.execute(f"UPDATE {table} SET {column} = ? WHERE id = ?", (value, row_id))
            else:
                shown = bytes(value).hex() if isinstance(value, bytes) else value
                text = None if shown is None else str(shown)
                self.connection.execute(
                    f"UPDATE {table} SET {column} = %s WHERE id = {row_id}".replace("%s", _literal(text))
                )
        except (sqlite3.Error, psycopg.Error, OverflowError, UnicodeError, ValueError):
            return False
        return True

    def change(self, job_id: int, wanted: Mapping[str, Any]) -> None:
        """Write what the database takes of these values into a row, column by column."""
        for column, value in wanted.items():
            self.write("job", job_id, column, value)

    def add_event(self, job_id: int, wanted: Mapping[str, Any]) -> None:
        """Add an event to a job, and write odd values into it."""
        statement = (
            "INSERT INTO job_event (job_id, to_state, actor) VALUES (%s, 'running', 'sql') RETURNING id"
        )
        (event_id,) = self.connection.execute(statement % job_id).fetchone()
        for column, value in wanted.items():
            self.write("job_event", event_id, column, value)

    def clear(self) -> None:
        """Delete all jobs."""
        self.connection.execute("DELETE FROM job_event")
        self.connection.execute("DELETE FROM job")


def _literal(text: str | None) -> str:
    # A literal, which takes the type of its column, as at a person's prompt.
    return "NULL" if text is None else "'" + text.replace("'", "''").replace("%", "%%") + "'"
