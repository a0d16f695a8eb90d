"""`listen_url`, checked: what the listener's thread could not connect with is refused at the start."""

from importlib.util import find_spec

from sqlalchemy.exc import ArgumentError

from jobrunner.errors import SettingsError
from jobrunner.settings import Settings


def check_listen_url(settings: Settings) -> None:
    """Refuse a `listen_url` that PostgreSQL's driver would not take. Raises `SettingsError`."""
    if settings.listen_url is None:
        return
    place = settings.listener
    assert place is not None  # it is what listen_url says
    if place.dialect != "postgresql":
        raise SettingsError(
            f"The listen_url cannot be used: only PostgreSQL notifies, not {place.dialect}. Give one, "
            "such as postgresql://user@host:5432/name, or remove it."
        )
    if find_spec("psycopg") is None:
        return  # the database is not PostgreSQL then, or says so itself
    import psycopg

    url = place.to_sqlalchemy()
    try:
        arguments, options = url.get_dialect()().create_connect_args(url)
        psycopg.conninfo.make_conninfo(*arguments, **options)
    except (ArgumentError, psycopg.Error, TypeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise SettingsError(
            f"The listen_url {place.shown} cannot be used: {reason}. Correct or remove that option."
        ) from None
