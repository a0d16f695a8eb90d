"""`jobrunner db`: the schema's life, and the end of old rows."""

import sys
from typing import TYPE_CHECKING

import click

from jobrunner.cli.options import Duration, json_option
from jobrunner.cli.restored import restored

if TYPE_CHECKING:
    from jobrunner.database import Database

_BATCH = 1000
_NEWER = "newer than this version of jobrunner knows, which works with it"


@click.group()
def db() -> None:
    """Upgrade, check and prune the database."""


@db.command()
@click.argument("revision", default="head")
@json_option
def upgrade(revision: str, *, as_json: bool) -> None:
    """Bring the schema up to REVISION; without one, to the newest."""
    from jobrunner import schema

    database = _database()
    before = database.schema_version()
    schema.upgrade(database, revision)
    _say_step(database, before, as_json=as_json)


@db.command()
@click.argument("revision")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def downgrade(revision: str, *, yes: bool, as_json: bool) -> None:
    """Take the schema down to REVISION, or to `base`: what only the newer one holds is lost."""
    from jobrunner import schema

    database = _database()
    before = database.schema_version()
    if not yes:
        if sys.stdin is None or not sys.stdin.isatty():
            raise click.UsageError("A downgrade loses data, and nobody is here to ask: say --yes.")
        click.confirm(
            f"Take {database.shown_url} from {before or 'no schema'} down to {revision}, and lose data?",
            abort=True,
            err=True,
        )
    schema.downgrade(database, revision)
    _say_step(database, before, as_json=as_json)


@db.command()
@json_option
def current(*, as_json: bool) -> None:
    """Show which revision the schema is at."""
    from jobrunner.cli.output import say, say_json, word
    from jobrunner.database import SCHEMA_VERSION

    database = _database()
    version = database.schema_version()
    if as_json:
        say_json({"database": database.shown_url, "revision": version, "newest": SCHEMA_VERSION})
    elif version is not None:
        say(version)
    if version is None:
        word(f"The database {database.shown_url} has no tables of jobrunner: run `jobrunner db upgrade`.")
    elif version < SCHEMA_VERSION:
        word(f"The newest is {SCHEMA_VERSION}: run `jobrunner db upgrade`.")
    elif version > SCHEMA_VERSION:
        word(f"It is {_NEWER}.")


@db.command()
@json_option
def history(*, as_json: bool) -> None:
    """List the revisions that this version knows, oldest first."""
    from jobrunner import schema
    from jobrunner.cli.output import Column, say_json, say_table

    revisions = schema.revisions()
    if as_json:
        say_json([{"revision": revision, "what": what} for revision, what in revisions])
    else:
        say_table([Column("revision"), Column("what")], revisions)


@db.command()
@json_option
def check(*, as_json: bool) -> int:
    """Tell by the exit code whether the schema is what this version needs: 0 it is, 1 not."""
    from jobrunner import schema
    from jobrunner.cli.exits import ExitCode
    from jobrunner.cli.output import say, say_json, word
    from jobrunner.database import SCHEMA_VERSION

    database = _database()
    version = database.schema_version()
    is_current = version is not None and version >= SCHEMA_VERSION
    # A newer schema has columns that this version does not know, and works.
    differences = schema.differences(database) if version == SCHEMA_VERSION else []
    is_well = is_current and not differences
    if as_json:
        say_json({"ok": is_well, "revision": version, "newest": SCHEMA_VERSION, "differences": differences})
    elif is_well:
        how = "as it should be" if version == SCHEMA_VERSION else _NEWER
        say(f"{database.shown_url} is at {version}, {how}")
    if version is None:
        word(f"The database {database.shown_url} has no tables of jobrunner: run `jobrunner db upgrade`.")
    elif not is_current:
        word(f"{database.shown_url} is at {version}, not {SCHEMA_VERSION}: run `jobrunner db upgrade`.")
    for difference in differences:
        word(f"The schema differs from what revision {version} makes: {difference}")
    return ExitCode.SUCCESS if is_well else ExitCode.FAILED


@db.command()
@click.option(
    "--older-than",
    "older_than_s",
    type=Duration(needs_unit=True),
    required=True,
    help="Delete jobs that ended longer ago than this: 30d, 12h.",
)
@json_option
def prune(*, older_than_s: float, as_json: bool) -> None:
    """Delete jobs that ended long ago, with their events, in batches; never one that is queued or running."""
    from jobrunner import statements
    from jobrunner.cli.output import say, say_json
    from jobrunner.database import get_database

    database = get_database()
    pruned, batch = 0, _BATCH
    while batch == _BATCH:
        with database.write() as connection:
            batch = statements.prune(connection, older_than_s, _BATCH)
        pruned += batch
    if as_json:
        say_json({"pruned": pruned})
    else:
        say(f"{pruned} {'job' if pruned == 1 else 'jobs'} pruned")


db.add_command(restored)


def _database() -> "Database":
    """Return the database as it stands: `get_database` would refuse, or upgrade, an old schema."""
    from jobrunner.database import Database
    from jobrunner.settings import get_settings

    database = Database(get_settings())
    click.get_current_context().call_on_close(database.dispose)
    return database


def _say_step(database: "Database", before: str | None, *, as_json: bool) -> None:
    from jobrunner import schema
    from jobrunner.cli.output import say, say_json

    after = database.schema_version()
    if as_json:
        say_json({"database": database.shown_url, "before": before, "after": after})
    elif schema.is_newer(after):
        say(f"{database.shown_url} is at {after}, {_NEWER}: there is nothing to upgrade")
    elif before == after:
        say(f"{database.shown_url} is at {after or 'no schema'} already")
    else:
        say(f"{database.shown_url} went from {before or 'no schema'} to {after or 'no schema'}")
