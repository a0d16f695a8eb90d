"""`jobrunner connections`: the ways to outside systems, and whether one of them works."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from jobrunner.cli.options import complete_connections, json_option

if TYPE_CHECKING:
    from jobrunner.settings import ConnectionSettings


_CLOSE_S = 5.0


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection as it may be shown: its options with secrets masked, and where they were set."""

    name: str
    kind: str
    options: Mapping[str, str]
    source: str


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def connections(ctx: click.Context, *, as_json: bool) -> None:
    """List the ways to outside systems; secrets are masked.

    Each kind has a connection <kind>_default, which a job uses that names none; it need not be
    configured.
    """
    from jobrunner.cli.output import Column, say_json, say_table

    if ctx.invoked_subcommand is not None:
        return
    known = all_connections()
    if as_json:
        say_json(
            [
                {"name": each.name, "kind": each.kind, "options": each.options, "source": each.source}
                for each in known
            ]
        )
        return
    columns = [
        Column("name", folds=True),
        Column("kind"),
        Column("where", folds=True),
        Column("source", drop=1),
    ]
    say_table(columns, [[each.name, each.kind, _where(each), each.source] for each in known])


@connections.command("test", short_help="Make one harmless call through a connection.")
@click.argument("name", metavar="NAME", shell_complete=complete_connections)
@json_option
@click.pass_context
def test(ctx: click.Context, name: str, *, as_json: bool) -> int:
    """Make one harmless call through a connection, and say what answered or what failed.

    Exits with 0 when it works, or when there is nothing to test, and with 1 when it does not.
    """
    import asyncio

    from jobrunner import registry
    from jobrunner.cli.exits import ExitCode
    from jobrunner.cli.output import log_as_words, say, say_json, word
    from jobrunner.settings import get_settings

    assert ctx.parent is not None
    log_as_words()
    known = {each.name.casefold(): each for each in all_connections()}
    found = known.get(name.casefold())  # without one, `connection` says which there are
    name, connection = get_settings().connection(found.name if found else name, found.kind if found else "")
    backend_class = registry.load_backend_class(connection.kind)
    is_well, sentence = asyncio.run(_check(backend_class, connection))
    if as_json or ctx.parent.params["as_json"]:
        say_json({"name": name, "kind": connection.kind, "ok": is_well, "message": sentence})
    elif is_well is False:
        word(f"{name}: {sentence}")
    else:
        say(f"{name}: {'ok: ' if is_well else ''}{sentence}")
    return ExitCode.FAILED if is_well is False else ExitCode.SUCCESS


def all_connections() -> list[Connection]:
    """Return those that are configured, and each kind's default, by name."""
    from jobrunner.redaction import mask_value
    from jobrunner.settings import get_settings

    settings = get_settings()
    set_at = [(key, source) for key, _, source in settings.provenance()]
    found = [
        Connection(
            name,
            connection.kind,
            {key: mask_value(key, value) for key, value in connection.options.items()},
            ", ".join(
                dict.fromkeys(source for key, source in set_at if key.startswith(f"connections.{name}."))
            ),
        )
        for name, connection in settings.connections.items()
    ]
    configured = {each.name.casefold() for each in found}
    implied = [
        Connection(f"{kind}_default", kind, {}, "default")
        for kind in _kinds()
        if f"{kind}_default" not in configured
    ]
    return sorted([*found, *implied], key=lambda each: each.name)


def _kinds() -> list[str]:
    """Return the kinds of connections; another way to the same kind (`armada-jobservice`) is none."""
    from importlib.metadata import entry_points

    from jobrunner import registry

    kinds = {*registry.BACKENDS, *(entry.name for entry in entry_points(group="jobrunner.backends"))}
    return sorted(kind for kind in kinds if kind.partition("-")[0] not in kinds - {kind})


def _where(connection: Connection) -> str:
    return ", ".join(f"{key}={value}" for key, value in connection.options.items()) or "-"


async def _check(backend_class: Any, connection: "ConnectionSettings") -> tuple[bool | None, str]:
    """Return whether the outside system answers (None: it has no test), and its backend's sentence."""
    from contextlib import suppress

    from jobrunner.backends.guarded import guarded
    from jobrunner.errors import BackendError, UsageError, words_of
    from jobrunner.redaction import mask_url

    backend = guarded(backend_class.from_connection(connection))
    try:
        sentence = await backend.check()
        if sentence is None:
            return None, f"there is nothing to test in a connection of kind {connection.kind}."
        return True, sentence
    except UsageError:
        raise
    except Exception as error:  # noqa: BLE001  # whatever a third party's backend raises
        trouble = words_of(error)
        if trouble == f"no answer within {backend.patience.call_s:g} s":
            return False, f"{trouble}: check the network and the address."
        return False, mask_url(trouble if isinstance(error, BackendError) else f"unexpected {trouble}")
    finally:
        with suppress(Exception):  # whatever a backend raises: it has answered, or not
            await backend.close(_CLOSE_S)
