"""A witness in the database: triggers note each change of a job, who made it, and whose the job was."""

import contextlib
import datetime as dt
from dataclasses import dataclass
from typing import Any

from tests.helpers import plain_connection

WATCHED = (
    *("state", "runner_id", "claims", "pid", "external_id", "submit_token"),
    *("kill_requested_at", "message", "end_date", "cancel_cause"),
)
"""The columns of which a change is noted; a beat changes none of them."""

_COLUMNS = """
    at, writer, job_id, name, job_type, old_state, new_state, old_runner, new_runner, old_claims, new_claims,
    old_pid, new_pid, old_external, new_external, was_flagged"""

_POSTGRES = f"""
CREATE TABLE chaos_history (
    id bigserial PRIMARY KEY, at timestamptz NOT NULL, writer text, job_id bigint, name text, job_type text,
    old_state text, new_state text, old_runner text, new_runner text, old_claims int, new_claims int,
    old_pid int, new_pid int, old_external text, new_external text, was_flagged boolean);
CREATE TABLE chaos_stale_beat (at timestamptz NOT NULL, writer text, job_id bigint);
CREATE TABLE chaos_writer (runner text PRIMARY KEY, writer text NOT NULL);
CREATE FUNCTION chaos_note() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE me text := current_setting('application_name');
BEGIN
    IF NEW.runner_id IS NOT NULL AND (TG_OP = 'INSERT' OR NEW.runner_id IS DISTINCT FROM OLD.runner_id) THEN
        INSERT INTO chaos_writer VALUES (NEW.runner_id::text, me) ON CONFLICT DO NOTHING;
    END IF;
    IF TG_OP = 'INSERT' THEN
        INSERT INTO chaos_history ({_COLUMNS}) VALUES (
            clock_timestamp(), me, NEW.id, NEW.name, NEW.job_type, NULL, NEW.state, NULL, NEW.runner_id,
            NULL, NEW.claims, NULL, NEW.pid, NULL, NEW.external_id, false);
    ELSIF ({", ".join(f"OLD.{name}" for name in WATCHED)})
            IS DISTINCT FROM ({", ".join(f"NEW.{name}" for name in WATCHED)}) THEN
        INSERT INTO chaos_history ({_COLUMNS}) VALUES (
            clock_timestamp(), me, NEW.id, NEW.name, NEW.job_type, OLD.state, NEW.state, OLD.runner_id,
            NEW.runner_id, OLD.claims, NEW.claims, OLD.pid, NEW.pid, OLD.external_id, NEW.external_id,
            OLD.kill_requested_at IS DISTINCT FROM NEW.kill_requested_at);
    ELSIF NEW.runner_id IS NOT NULL AND me NOT IN (
            SELECT writer FROM chaos_writer WHERE runner = NEW.runner_id::text) THEN
        INSERT INTO chaos_stale_beat VALUES (clock_timestamp(), me, NEW.id);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER chaos_note AFTER INSERT OR UPDATE ON job FOR EACH ROW EXECUTE FUNCTION chaos_note();
"""

_NOW = "strftime('%Y-%m-%d %H:%M:%f', 'now')"
_SQLITE = f"""
CREATE TABLE chaos_history (
    id integer PRIMARY KEY, at text NOT NULL, writer text, job_id integer, name text, job_type text,
    old_state text, new_state text, old_runner text, new_runner text, old_claims integer, new_claims integer,
    old_pid integer, new_pid integer, old_external text, new_external text, was_flagged integer);
CREATE TRIGGER chaos_insert AFTER INSERT ON job BEGIN
    INSERT INTO chaos_history ({_COLUMNS}) VALUES (
        {_NOW}, NULL, NEW.id, NEW.name, NEW.job_type, NULL, NEW.state, NULL, NEW.runner_id, NULL, NEW.claims,
        NULL, NEW.pid, NULL, NEW.external_id, 0);
END;
CREATE TRIGGER chaos_update AFTER UPDATE ON job
WHEN {" OR ".join(f"OLD.{name} IS NOT NEW.{name}" for name in WATCHED)} BEGIN
    INSERT INTO chaos_history ({_COLUMNS}) VALUES (
        {_NOW}, NULL, NEW.id, NEW.name, NEW.job_type, OLD.state, NEW.state, OLD.runner_id, NEW.runner_id,
        OLD.claims, NEW.claims, OLD.pid, NEW.pid, OLD.external_id, NEW.external_id,
        OLD.kill_requested_at IS NOT NEW.kill_requested_at);
END;
"""


@dataclass(frozen=True, slots=True)
class Change:
    """One change of a job's row: what stood there, and what stands there now."""

    at_s: float
    """time.time()"""
    writer: str | None
    """The process that made it, by its application_name; SQLite does not tell."""
    job_id: int
    name: str
    job_type: str
    old_state: str | None
    new_state: str
    old_runner: str | None
    new_runner: str | None
    old_claims: int | None
    new_claims: int
    old_pid: int | None
    new_pid: int | None
    old_external: str | None
    new_external: str | None
    was_flagged: bool

    @property
    def is_adoption(self) -> bool:
        """Whether a running job went from one runner to another."""
        return self.old_state == self.new_state == "running" and self.old_runner != self.new_runner

    @property
    def is_loss(self) -> bool:
        return self.old_state == "running" and self.new_state == "lost"

    @property
    def is_end(self) -> bool:
        """Whether it is the change by which the job ended."""
        return self.old_state in {"queued", "running"} and self.new_state not in {"queued", "running"}


@dataclass(frozen=True, slots=True)
class History:
    """All that was noted, oldest first."""

    changes: list[Change]
    writers: dict[str, str]
    """Who claimed as which runner."""
    stale_beats: list[tuple[Any, ...]]


def install(url: str) -> None:
    """Begin to take notes, in a database that has the schema."""
    is_sqlite = url.startswith("sqlite")
    with contextlib.closing(plain_connection(url)) as connection:
        if is_sqlite:
            connection.executescript(_SQLITE)
        else:
            connection.execute(_POSTGRES)


def read(url: str) -> History:
    """Return what was noted."""
    is_sqlite = url.startswith("sqlite")
    with contextlib.closing(plain_connection(url)) as connection:
        rows = connection.execute(f"SELECT {_COLUMNS} FROM chaos_history ORDER BY id").fetchall()
        changes = [Change(_seconds(at), *rest) for at, *rest in rows]
        if is_sqlite:
            return History(changes, {}, [])
        writers = connection.execute("SELECT runner, writer FROM chaos_writer").fetchall()
        stale = connection.execute("SELECT at, writer, job_id FROM chaos_stale_beat").fetchall()
        return History(changes, dict(writers), stale)


def _seconds(at: dt.datetime | str) -> float:
    if isinstance(at, str):
        at = dt.datetime.fromisoformat(at).replace(tzinfo=dt.UTC)
    return at.timestamp()
