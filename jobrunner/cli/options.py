"""Options and arguments that several commands share."""

import functools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import click
from click.shell_completion import CompletionItem

from jobrunner.clock import SECONDS_MOST, is_duration
from jobrunner.visible import visible

_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LABEL_MOST = 250
# Control characters, and what Python makes of bytes that are no UTF-8.
_UNSHOWABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([smhd]?)")


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.5 only
    """A time such as 90s, 45m, 12h or 30d, as seconds greater than 0; a bare number is seconds."""

    name = "duration"

    def __init__(self, *, needs_unit: bool = False) -> None:
        self._needs_unit = needs_unit

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the seconds."""
        if isinstance(value, float):
            return value
        found = _DURATION.fullmatch(str(value).strip().lower())
        if found is None or (self._needs_unit and not found[2]):
            self.fail(f"{value!r} is no duration: give one such as 90s, 45m, 12h or 30d", param, ctx)
        seconds = float(found[1]) * _UNITS_S[found[2] or "s"]
        if not is_duration(seconds):
            most_d = int(SECONDS_MOST // _UNITS_S["d"])
            self.fail(f"{value!r} must be more than 0 and at most {most_d}d", param, ctx)
        return seconds


class Grace(click.ParamType):  # type: ignore[type-arg]
    """How many heartrates a job may be silent: a number greater than 1."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        try:
            grace = float(value)
        except ValueError:
            self.fail(f"{value!r} is no number: give more than 1, such as 2.1", param, ctx)
        if not math.isfinite(grace):
            self.fail(f"{value!r} is no finite number: give more than 1, such as 2.1", param, ctx)
        if grace <= 1:
            self.fail(
                f"{value!r} would declare every job dead between two beats: give more than 1, such as 2.1",
                param,
                ctx,
            )
        return grace


class Pair(click.ParamType):  # type: ignore[type-arg]
    """A name and a value, as NAME=VALUE."""

    name = "name=value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Return the name and the value."""
        if isinstance(value, tuple):
            return value  # converted before
        name, separator, rest = str(value).partition("=")
        if not separator or not name:
            self.fail(f"{value!r} is no NAME=VALUE", param, ctx)
        return name, rest


class Resubmission(click.ParamType):  # type: ignore[type-arg]
    """A cause and how often work that failed by it is submitted again, as CAUSE=N."""

    name = "cause=n"
    _MOST = 1000

    def __init__(self, causes: Sequence[str]) -> None:
        self.causes = causes

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        """Return the cause and the number."""
        if isinstance(value, tuple):
            return value  # converted before
        cause, separator, number = str(value).partition("=")
        known = ", ".join(self.causes)
        if not separator:
            self.fail(f"{value!r} is no CAUSE=N: causes are {known}", param, ctx)
        if cause not in self.causes:
            self.fail(f"{cause!r} is no cause of a failure here: known are {known}", param, ctx)
        if not re.fullmatch(r"[0-9]{1,4}", number) or not 1 <= int(number) <= self._MOST:
            self.fail(f"{value!r} must be a number from 1 to {self._MOST} after the =", param, ctx)
        return cause, int(number)

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002  # click calls with all three
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> list[CompletionItem]:
        """Offer the causes."""
        return [CompletionItem(f"{cause}=") for cause in self.causes if cause.startswith(incomplete)]


class Label(click.ParamType):  # type: ignore[type-arg]
    """A text that a column for names can hold."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text."""
        text = str(value)
        if len(text) > _LABEL_MOST:
            self.fail(f"it has {len(text)} characters, and {_LABEL_MOST} is the most", param, ctx)
        if _UNSHOWABLE.search(text):
            self.fail(f"{text!r} holds a character that cannot be shown", param, ctx)
        return text


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--json` to a command, as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")(command)


@dataclass(frozen=True, slots=True)
class JobOptions:
    """What every kind of monitor job takes on its start, as it was given.

    `of_job`: the arguments for the job's class, without those that were left out.
    """

    of_job: dict[str, Any]
    on_exit: Literal["release", "kill"]
    detach: bool
    as_json: bool


def detach_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--detach` to a command that starts a job."""
    return click.option(
        "--detach", is_flag=True, help="Queue the job for a worker, print its id, and do not wait for it."
    )(command)


def job_options(
    work: str, *, default_name: str, is_local: bool = False, causes: Sequence[str] = ()
) -> Callable[..., Any]:
    """Add what every kind of monitor job takes to its command, which gets it as `options`.

    `work`: what is watched, in the words of the help. `default_name`: whose name the job has without
    one of its own. `is_local`: it is on this host, so that there is no connection to choose, and it
    starts at once or never. `causes`: why it may fail and be submitted again.
    """
    added: list[Callable[..., Any]] = [
        click.option("--name", type=Label(), help=f"The job's own name; without it, {default_name}."),
        click.option("--heartrate", type=Duration(), help="Time between two beats."),
        click.option("--poll-interval", type=Duration(), help=f"Time between two looks at {work}."),
        click.option("--timeout", type=Duration(), help=f"Time after which {work} is cancelled."),
    ]
    if not is_local:
        added += [
            click.option(
                "--start-timeout",
                type=Duration(),
                help=f"Time after which {work} is cancelled if it has not begun to run.",
            ),
            click.option(
                "--connection",
                metavar="NAME",
                shell_complete=complete_connections,
                help="The configured connection to use.",
            ),
        ]
    if causes:
        added.append(
            click.option(
                "--resubmit",
                type=Resubmission(causes),
                multiple=True,
                metavar="CAUSE=N",
                help=f"How often {work} is submitted again when it failed by this cause "
                f"({', '.join(causes)}); may be repeated for others.",
            )
        )
    added += [
        click.option(
            "--on-exit",
            type=click.Choice(["release", "kill"]),
            default="release",
            show_default=True,
            help=f"What Ctrl-C and SIGTERM do to {work}: leave it running, or kill it.",
        ),
        detach_option,
        click.option("--dag-id", type=Label(), help="The pipeline that the job belongs to."),
        json_option,
    ]
    names = ["name", "heartrate", "poll_interval", "timeout", "start_timeout", "connection", "dag_id"]

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_options(**given: Any) -> Any:
            of_job = {name: given.pop(name) for name in names if name in given}
            of_job = {name: value for name, value in of_job.items() if value is not None}
            if given.get("resubmit"):
                of_job["resubmit"] = _by_cause(given["resubmit"])
            given.pop("resubmit", None)
            if given["detach"] and given["on_exit"] == "kill":
                raise click.UsageError(
                    "--on-exit kill is about a job in the foreground: leave it away with --detach.",
                    click.get_current_context(),
                )
            options = JobOptions(of_job, given.pop("on_exit"), given.pop("detach"), given.pop("as_json"))
            return command(options=options, **given)

        for option in reversed(added):
            option(with_options)
        return with_options

    return add


def _by_cause(pairs: Sequence[tuple[str, int]]) -> dict[str, int]:
    """Return the numbers by their causes. Raises click's `UsageError` for a cause that is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(cause for cause, _ in pairs if [each for each, _ in pairs].count(cause) > 1)
        raise click.UsageError(
            f"--resubmit {twice} is there twice: give it once.", click.get_current_context()
        )
    return found


def complete_connections(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001
    """Offer the connections to the shell; nothing where the settings cannot be read."""
    try:
        from jobrunner.cli.connections import all_connections

        names = [each.name for each in all_connections()]
    except Exception:  # noqa: BLE001  # a key press must never show an error
        return []
    return [name for name in names if name.startswith(incomplete)]


def complete_ids(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG001
    """Offer the newest jobs to the shell; nothing where the database cannot be asked."""
    try:
        from jobrunner import queries
        from jobrunner.database import get_database

        database = get_database()
        with database.read() as connection:
            rows = queries.listed(connection, database.settings.grace_multiplier, limit=50)
    except Exception:  # noqa: BLE001  # a key press must never show an error
        return []
    return [
        CompletionItem(str(row["id"]), help=visible(f"{row['state']} {row['name'] or row['job_type']}"))
        for row in rows
        if str(row["id"]).startswith(incomplete)
    ]


def complete_types(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001
    """Offer the job types that are installed."""
    from jobrunner import registry

    return [name for name in registry.job_type_names() if name.startswith(incomplete)]


class WholeNumber(click.IntRange):
    """A whole number within bounds."""

    name = "whole number"


class Number(click.FloatRange):
    """A number within bounds."""

    name = "number"


class _JobId(click.IntRange):
    name = "job id"

    def __init__(self) -> None:
        super().__init__(min=1, max=2**63 - 1)  # what both databases can hold


JOB_ID = _JobId()
"""A job's id."""


def job_type_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--job-type` to a command, as `job_types`; it may be given several times."""
    return click.option(
        "--job-type",
        "job_types",
        multiple=True,
        metavar="TYPE",
        shell_complete=complete_types,
        help="Only jobs of this type; may be repeated.",
    )(command)


def ensure_known_types(connection: Any, job_types: Sequence[str]) -> None:
    """Refuse a job type that is neither installed nor in the database. Raises `UsageError`."""
    from jobrunner import queries, registry
    from jobrunner.errors import UsageError

    for job_type in job_types:
        if job_type in registry.JOB_TYPES or queries.has_type(connection, job_type):
            continue
        installed = registry.job_type_names()
        if job_type not in installed:
            known = sorted({*installed, *queries.types(connection)})
            raise UsageError(f"Nobody knows the job type {job_type!r}: known are {', '.join(known)}.")
