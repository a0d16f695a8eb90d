"""The schema's life: upgrade, downgrade, and what it stands at. Imports alembic, so only when used."""

from collections.abc import Iterator
from contextlib import contextmanager

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, text

from jobrunner import worklist
from jobrunner.database import SCHEMA_VERSION, Database
from jobrunner.errors import SchemaError, UsageError

_LOCK_KEY = 0x6A6F6272756E  # "jobrun": one upgrade at a time on PostgreSQL


@contextmanager
def locked(database: Database) -> Iterator[Connection]:
    """Give one transaction in which nobody else migrates: concurrent upgrades wait for each other."""
    with database.translated(), database.engine.begin() as connection:
        if not database.is_sqlite:  # SQLite's transaction is IMMEDIATE: the lock is the file's own
            # Waiting for another upgrade, and copying a large table, may take as long as they take.
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
            connection.execute(text("SET LOCAL lock_timeout = 0"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
            connection.execute(text("SET LOCAL lock_timeout = '30s'"))
        yield connection


def upgrade(database: Database, revision: str = "head") -> None:
    """Bring the schema up to `revision`; one that is newer than this version knows is left as it is.

    Raises `UsageError` on an unknown revision, from a newer schema to a given revision, and while a worker
    of an older version beats, `DatabaseError`.
    """
    with locked(database) as connection:
        version = _version(connection)
        if revision == "head" and is_newer(version):
            return
        _refuse_newer(database, version)
        if version is not None and version != (SCHEMA_VERSION if revision == "head" else revision):
            _refuse_beside_workers(connection, database, version)
        _run(command.upgrade, connection, revision)


def _refuse_beside_workers(connection: Connection, database: Database, version: str) -> None:
    """Refuse while workers beat: they are of the version that made this schema, and know no other rules."""
    beating = worklist.workers(connection, database.settings.grace_multiplier)
    if beating:
        which = ", ".join(f"job {row['id']} (process {row['pid']} on {row['hostname']})" for row in beating)
        raise UsageError(
            f"Workers still run on the schema {version} of {database.shown_url}: {which}. "
            "Stop them first, with SIGTERM: their jobs wait until a worker of the other version starts."
        )


def is_newer(version: str | None) -> bool:
    """Whether the schema was made by a newer jobrunner: it has what this one does not know, and works."""
    return version is not None and version > SCHEMA_VERSION


def _refuse_newer(database: Database, version: str | None) -> None:
    if is_newer(version):
        raise UsageError(
            f"The database {database.shown_url} is at revision {version}, and this version of jobrunner "
            f"knows none after {SCHEMA_VERSION}: use the newer jobrunner to take it to another."
        )


def downgrade(database: Database, revision: str) -> None:
    """Take the schema down to `revision`, losing what only the newer one holds.

    Raises as `upgrade`: the workers that beat need what is taken away.
    """
    with locked(database) as connection:
        version = _version(connection)
        _refuse_newer(database, version)
        if version is not None:
            _refuse_beside_workers(connection, database, version)
        _run(command.downgrade, connection, revision)


def upgrade_embedded(database: Database) -> None:
    """Create or upgrade the embedded database, but never under a job that lives.

    Its runner may be of the version that the schema has now.
    """
    with locked(database) as connection:
        version = _version(connection)
        if version is not None and version >= SCHEMA_VERSION:
            return  # another process was first
        if version is not None and _has_live_jobs(connection):
            raise SchemaError(
                f"The database {database.shown_url} is at version {version}, and jobs are queued or running "
                "in it: wait for them to end, or run `jobrunner db upgrade` once no older jobrunner runs."
            )
        _run(command.upgrade, connection, "head")


def revisions() -> list[tuple[str, str]]:
    """Return all migrations, oldest first: (revision, what it does)."""
    scripts = ScriptDirectory.from_config(_config())
    return [(script.revision, script.doc) for script in reversed(list(scripts.walk_revisions()))]


def differences(database: Database) -> list[str]:
    """Return how the schema that stands differs from the models; nothing where it is the same."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    import jobrunner.models  # noqa: F401  # declares the tables
    from jobrunner.database import Base

    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return [str(difference) for difference in compare_metadata(context, Base.metadata)]


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "jobrunner:migrations")
    return config


def _run(do: object, connection: Connection, revision: str) -> None:
    config = _config()
    config.attributes["connection"] = connection
    if not revision.strip():  # which alembic does not refuse but fails an assertion on
        raise UsageError(f"The revision is empty: give one of {_known()}.")
    try:
        do(config, revision)  # type: ignore[operator]
    except CommandError as error:
        raise UsageError(
            f"There is no way to revision {revision!r} ({error}): known are {_known()}."
        ) from error


def _known() -> str:
    return f"{', '.join(name for name, _ in revisions())}, base and head"


def _version(connection: Connection) -> str | None:
    if not connection.dialect.has_table(connection, "alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _has_live_jobs(connection: Connection) -> bool:
    found = connection.execute(text("SELECT 1 FROM job WHERE state IN ('queued', 'running') LIMIT 1"))
    return found.first() is not None
