"""Sessions that are left on an old primary: they live, and each write of theirs is refused."""

from contextlib import closing

from tests.helpers import plain_connection

_SQL = """
CREATE TABLE chaos_demoted (pid int NOT NULL, since timestamptz NOT NULL);
CREATE FUNCTION chaos_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        SELECT FROM chaos_demoted WHERE pid = pg_backend_pid()
        AND since = (SELECT backend_start FROM pg_stat_get_activity(pg_backend_pid()))
    ) THEN
        RAISE EXCEPTION 'cannot execute % in a read-only transaction', TG_OP USING ERRCODE = '25006';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER chaos_refuse BEFORE INSERT OR UPDATE OR DELETE ON job
    FOR EACH STATEMENT EXECUTE FUNCTION chaos_refuse();
"""


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
        return int(connection.execute(f"INSERT INTO chaos_demoted {sessions}", [writer]).rowcount)
