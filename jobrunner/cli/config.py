"""`jobrunner config`: which settings are in force, and where each was set."""

import click

from jobrunner.cli.options import json_option


@click.command()
@json_option
def config(*, as_json: bool) -> None:
    """Show the settings that are in force and where each was set; secrets are masked."""
    from jobrunner.cli.exits import tell
    from jobrunner.cli.output import Column, say_json, say_table, word
    from jobrunner.errors import SettingsError
    from jobrunner.settings import get_settings

    settings = get_settings()
    rows = settings.provenance()
    if as_json:
        say_json([{"setting": key, "value": value, "source": source} for key, value, source in rows])
    else:
        say_table([Column("setting"), Column("value", folds=True), Column("source", folds=True)], rows)
    try:
        word(f"The database is {settings.database.shown}")
    except SettingsError as error:
        tell(error)
