"""What the kinds of `start` share in describing a new job: what excludes what, and how it is shown."""

from collections.abc import Iterable, Sequence
from typing import Any

import click

from jobrunner.cli.exits import ExitCode
from jobrunner.cli.output import say_json, say_spec, word
from jobrunner.errors import SpecError
from jobrunner.redaction import find_secret


def ensure_only_attached(ctx: click.Context, describing: Iterable[str], more: Sequence[str] = ()) -> None:
    """Refuse whatever describes a new job beside `--attach`.

    `describing`: the names of the parameters that do; `more`: what was given beside the options.
    Raises click's `UsageError`.
    """
    options = {parameter.name: parameter.opts[0] for parameter in ctx.command.params}
    given = [options[name] for name in describing if ctx.params[name] not in (None, (), False)]
    given += more
    if given:
        raise click.UsageError(
            f"--attach watches a job that is there already, and {', '.join(given)} would describe a new one: "
            "leave out the one or the other.",
            ctx,
        )


def ensure_no_secret(option: str, pairs: Iterable[tuple[str, str]], advice: str) -> None:
    """Refuse a pair that holds what looks like a secret; `advice`: who else would see it, and what to do.

    Raises `SpecError`.
    """
    secret = next((name for name, value in pairs if find_secret({name: value})), None)
    if secret is not None:
        reason = "holds what looks like a secret, and everybody who reads the database"
        raise SpecError(f"{option} {secret} {reason}, {advice}")


def show_described(spec: Any, said: str, *, as_json: bool) -> int:
    """Print what a dry run would have submitted, say so, and return the exit code."""
    if as_json:
        say_json(spec)
    else:
        say_spec(spec)
    word(said)
    return ExitCode.SUCCESS
