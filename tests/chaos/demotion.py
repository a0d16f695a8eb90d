"""Sessions that are left on an old primary: they live, and each write of theirs is refused."""

import itertools
from contextlib import closing

from tests.helpers import plain_connection

_SQL = """
CREATE TABLE chaos_demoted (
    pid int NOT NULL, since timestamptz NOT NULL, writer text NOT NULL, refusals text NOT NULL
);
CREATE FUNCTION chaos_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE counter text;
BEGIN
    SELECT refusals INTO counter FROM chaos_demoted WHERE pid = pg_backend_pid()
        AND since = (SELECT backend_start FROM pg_stat_get_activity(pg_backend_pid()));
    IF counter IS NOT NULL THEN
        PERFORM nextval(counter);  -- it stands, whatever becomes of the transaction
        RAISE EXCEPTION 'cannot execute % in a read-only transaction', TG_OP USING ERRCODE = '25006';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER chaos_refuse BEFORE INSERT OR UPDATE OR DELETE ON job
    FOR EACH STATEMENT EXECUTE FUNCTION chaos_refuse();
"""
_numbers = itertools.count()


def install(url: str) -> None:
    """Make it possible, in a PostgreSQL that has the schema."""
    with closing(plain_connection(url)) as connection:
        connection.execute(_SQL)


def demote(url: str, writer: str) -> int:
    """Refuse all writes of the sessions that have this name now, for ever; return how many there are."""
    sessions = (
        "SELECT pid, backend_start FROM pg_stat_activity "
        "WHERE application_name = %s AND datname = current_database()"
    )
    with closing(plain_connection(url)) as connection:
        found = connection.execute(sessions, [writer]).fetchall()
        for pid, since in found:
            counter = f"chaos_refusals_{next(_numbers)}"
            # A logged one would jump ahead when PostgreSQL is restarted; these sessions are gone then.
            connection.execute(f"CREATE UNLOGGED SEQUENCE {counter}")
            connection.execute(
                "INSERT INTO chaos_demoted VALUES (%s, %s, %s, %s)", [pid, since, writer, counter]
            )
        return len(found)


def kept(url: str) -> list[str]:
    """Return which sessions wrote again after a write was refused, each a sentence: none was thrown away."""
    found = []
    with closing(plain_connection(url)) as connection:
        for writer, counter in connection.execute("SELECT writer, refusals FROM chaos_demoted").fetchall():
            ((times,),) = connection.execute(f"SELECT last_value FROM {counter}").fetchall()
            if times > 1:
                found.append(f"a session of {writer} was refused {times} writes, and was not thrown away")
    return found
