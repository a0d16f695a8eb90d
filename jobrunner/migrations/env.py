"""Runs the migrations: for `jobrunner db …`, and for the `alembic` command in a checkout."""

from alembic import context
from sqlalchemy import Connection

import jobrunner.models  # noqa: F401  # declares the tables that `alembic check` compares with
from jobrunner.database import Base, Database
from jobrunner.schema import locked
from jobrunner.settings import get_settings


def _run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        compare_type=True,
        compare_server_default=False,
        transaction_per_migration=False,
    )
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    raise SystemExit("Migrations need the database itself: they look at what is there. Leave out --sql.")

given = context.config.attributes.get("connection")
if given is not None:
    _run(given)
else:
    with locked(Database(get_settings())) as connection:
        _run(connection)
