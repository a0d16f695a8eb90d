"""`jobrunner list` and `jobrunner show`: what there is, and all that is known of one job."""

import datetime as dt
import re
from collections.abc import Mapping, Sequence
from typing import Any

import click

from jobrunner.cli.options import (
    JOB_ID,
    Duration,
    WholeNumber,
    complete_ids,
    ensure_known_types,
    job_type_option,
    json_option,
)
from jobrunner.states import JobState

_MOST = 2**63 - 2
"""What both databases can count to, less the one that shows that there are more."""


class _Since(click.ParamType):  # type: ignore[type-arg]
    """A duration back from now, or an aware time."""

    name = "since"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | dt.datetime:
        """Return seconds, or the time."""
        if not isinstance(value, str):
            return value  # type: ignore[no-any-return]  # converted before
        if not re.match(r"\d{4}-", value):
            return Duration(needs_unit=True).convert(value, param, ctx)
        try:
            when = dt.datetime.fromisoformat(value)
        except ValueError:
            self.fail(
                f"{value!r} is no time: give one such as 2026-03-01T12:00:00Z, or 2h",
                param,
                ctx,
            )
        if when.tzinfo is None:
            self.fail(f"{value!r} has no time zone: add one, such as Z for UTC", param, ctx)
        try:
            return when.astimezone(dt.UTC)
        except OverflowError:
            self.fail(f"{value!r} is before the first or after the last time that there is", param, ctx)


@click.command("list")
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([str(state) for state in JobState]),
    help="Only jobs in this state; may be repeated.",
)
@job_type_option
@click.option("--name", help="Only jobs of this name.")
@click.option("--key", help="Only the job with this key.")
@click.option("--since", type=_Since(), metavar="WHEN", help="Only jobs created since: 2h, 7d, or a time.")
@click.option("--limit", type=WholeNumber(1, _MOST), default=50, show_default=True, help="How many at most.")
@json_option
def list_(
    *,
    states: tuple[str, ...],
    job_types: tuple[str, ...],
    name: str | None,
    key: str | None,
    since: float | dt.datetime | None,
    limit: int,
    as_json: bool,
) -> None:
    """List jobs, newest first.

    The column `beat` says whether a running job is alive or silent, and for how long it has been so.
    """
    from jobrunner import queries
    from jobrunner.cli.output import row_as_json, say_json, word
    from jobrunner.database import get_database

    database = get_database()
    with database.read() as connection:
        ensure_known_types(connection, job_types)
        rows = queries.listed(
            connection,
            database.settings.grace_multiplier,
            states=[JobState(state) for state in states],
            job_types=job_types,
            name=name,
            key=key,
            since_s=since if isinstance(since, float) else None,
            since=since if isinstance(since, dt.datetime) else None,
            limit=limit + 1,
        )
    has_more = len(rows) > limit
    rows = rows[:limit]
    if as_json:
        say_json([row_as_json(row) for row in rows])
    elif rows:
        _say_list(rows, _why_waiting(rows))
    else:
        word(
            "There are no such jobs."
            if states or job_types or any(each is not None for each in (name, key, since))
            else "There are no jobs yet."
        )
    if has_more:
        word(f"There are more than {limit}: --limit shows more of them.")
    _warn_of_released(rows)


def _why_waiting(rows: Sequence[Mapping[Any, Any]]) -> dict[int, str]:
    """Return for queued and silent jobs that no worker takes why that is, by id."""
    from jobrunner import statements, worklist
    from jobrunner.cli import spelling
    from jobrunner.database import get_database

    queued = [row for row in rows if row["state"] == JobState.QUEUED]
    silent = [row for row in rows if row["state"] == JobState.RUNNING and not row["alive"]]
    if not queued and not silent:
        return {}
    database = get_database()
    with database.read() as connection:
        workers = worklist.workers(connection, database.settings.grace_multiplier)
    found = {
        row["id"]: "a worker runs itself"
        if statements.is_worker_row(row)
        else worklist.why_barred_row(row)
        or spelling.why_waiting(
            *(row["job_type"], row["connection"], workers, row["spec"]),
            is_special=worklist.is_special(row),
        )
        for row in queued
    } | {row["id"]: spelling.why_left_alone(row["id"], workers) for row in silent}
    return {job_id: why for job_id, why in found.items() if why is not None}


def _say_list(rows: Sequence[Mapping[Any, Any]], waiting: Mapping[int, str]) -> None:
    from jobrunner.cli import spelling
    from jobrunner.cli.output import Column, say_table

    columns = [
        Column("id"),
        Column("type", drop=2),
        Column("name", drop=5),
        Column("state"),
        Column("beat", drop=6),
        Column("host", drop=1),
        Column("started", drop=3),
        Column("message", drop=0),
    ]
    cells = [
        [
            str(row["id"]),
            row["job_type"],
            row["name"] or "",
            spelling.state(row),
            spelling.beat(row),
            row["hostname"] or "",
            spelling.ago(row["running_s"]),
            ", ".join(filter(None, (spelling.message(row), waiting.get(row["id"])))),
        ]
        for row in rows
    ]
    say_table(columns, cells)


def _warn_of_released(rows: Sequence[Mapping[Any, Any]]) -> None:
    from jobrunner.cli import spelling
    from jobrunner.cli.output import word

    ids = [str(row["id"]) for row in rows if spelling.is_released(row)]
    if ids:
        word(
            f"Nobody watches {', '.join(f'job {job_id}' for job_id in ids)} now, nor any deadline there: "
            f"`jobrunner attach {ids[0]}` does."
        )


@click.command()
@click.argument("job_id", metavar="ID", type=JOB_ID, shell_complete=complete_ids)
@json_option
def show(job_id: int, *, as_json: bool) -> None:
    """Show all columns of a job, whether it is alive, its events and its children."""
    from jobrunner import queries
    from jobrunner.cli.following import rows_of
    from jobrunner.cli.output import row_as_json, say_json, word
    from jobrunner.database import get_database

    row = rows_of([job_id])[job_id]
    with get_database().read() as connection:
        events = queries.events(connection, job_id)
        children = queries.children(connection, job_id)
    if as_json:
        say_json(
            {
                **row_as_json(row),
                "events": [row_as_json(event) for event in events],
                "children": [row_as_json(child) for child in children],
            }
        )
        return
    _say_job(row, events, children)
    for why in _why_waiting([row]).values():
        word(f"job {job_id} is {'queued' if row['state'] == JobState.QUEUED else 'silent'}: {why}.")
    _warn_of_released([row])


def _say_job(
    row: Mapping[Any, Any], events: Sequence[Mapping[Any, Any]], children: Sequence[Mapping[Any, Any]]
) -> None:
    from jobrunner.cli import spelling
    from jobrunner.cli.output import Column, say, say_pairs, say_table

    judged = {"alive", "age_s", "running_s"}
    pairs = [pair for key, value in row.items() if key not in judged for pair in spelling.column(key, value)]
    state = next(index for index, (key, _) in enumerate(pairs) if key == "state") + 1
    pairs.insert(
        state, ("alive", f"{'yes' if row['alive'] else 'no'} (last beat {spelling.ago(row['age_s'])})")
    )
    say_pairs(pairs)
    say("")
    columns = [
        Column("at", drop=1),
        Column("from", drop=3),
        Column("to"),
        Column("actor", drop=2),
        Column("reason"),
    ]
    say_table(
        columns,
        [
            [
                spelling.value(event["at"]),
                spelling.value(event["from_state"]),
                spelling.value(event["to_state"]),
                event["actor"],
                event["reason"] or "",
            ]
            for event in events
        ],
    )
    if children:
        say("")
        say_table(
            [
                Column("child"),
                Column("type", drop=1),
                Column("name", drop=2),
                Column("state"),
                Column("message"),
            ],
            [
                [
                    str(child["id"]),
                    child["job_type"],
                    child["name"] or "",
                    spelling.state(child),
                    child["message"] or "",
                ]
                for child in children
            ],
        )
