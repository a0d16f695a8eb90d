"""How times and states are spelled for people."""

import datetime as dt
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jobrunner.cli.output import one_line
from jobrunner.states import JobState
from jobrunner.worklist import OF_SOME

_NAMED_MOST = 3  # workers; of more, it is said how many
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86400


def duration(seconds: float) -> str:
    """Return seconds in two units at most: `12s`, `5m03s`, `2h05m`, `3d04h`."""
    whole = max(0, int(seconds))
    if whole < _MINUTE_S:
        return f"{whole}s"
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S}m{whole % _MINUTE_S:02}s"
    if whole < _DAY_S:
        return f"{whole // _HOUR_S}h{whole % _HOUR_S // _MINUTE_S:02}m"
    return f"{whole // _DAY_S}d{whole % _DAY_S // _HOUR_S:02}h"


def is_released(row: Mapping[Any, Any]) -> bool:
    """Whether the job's work goes on outside while no runner owns it."""
    return row["state"] == JobState.QUEUED and row["external_id"] is not None


def is_unattended(row: Mapping[Any, Any]) -> bool:
    """Whether the job needs somebody to act on a kill: its owner is silent, or was never replaced.

    `row`: as from `queries.shown`.
    """
    if row["state"] == JobState.QUEUED:
        has_begun = row["external_id"] is not None or row["submit_started_at"] is not None
        # A hold bars no kill, and a row that was restored does not know what was begun since.
        return has_begun or (row["held_at"] is not None and row["kill_requested_at"] is not None)
    return row["state"] == JobState.RUNNING and not row["alive"]


def state(row: Mapping[Any, Any]) -> str:
    """Return the state in words: a queued job with an external id was released, and its work goes on."""
    if is_released(row):
        return "released, running outside"
    return str(row["state"])


def message(row: Mapping[Any, Any]) -> str:
    """Return the job's message in one line; nothing where it only says the state again."""
    text = one_line(row["message"] or "")
    return "" if text == row["state"] else text


def why_waiting(
    job_type: str,
    connection: str | None,
    workers: Sequence[Mapping[Any, Any]],
    spec: Mapping[str, Any] | None = None,
    *,
    is_special: bool = True,
) -> str | None:
    """Return why no worker takes such a queued job; None where one should. `workers`: those alive.

    `spec`: the job's, where resources may stand for which it waits. `is_special`: see `worklist.is_special`.
    """
    if not workers:
        return "no worker is alive; `jobrunner worker` starts one"
    asked = (spec.get("resources") if isinstance(spec, Mapping) else None) or {}
    fitting = [[], [asked], *([[OF_SOME]] if is_special else [])]
    refusals: dict[str, list[int]] = {}
    for worker in workers:
        why = next(
            (
                why
                for kind, name, why, *only_of in _unserved_by(worker)
                if (kind, name) == (job_type, connection) and only_of in fitting
            ),
            None,
        )
        if why is None:
            return None
        refusals.setdefault(why, []).append(worker["id"])
    return "; ".join(f"{_who_does_not(ids)} take it: {why}" for why, ids in refusals.items())


def why_left_alone(job_id: int, workers: Sequence[Mapping[Any, Any]]) -> str | None:
    """Return why workers on the host of a silent job leave it alone; None where none says that it does."""
    refusals: dict[str, list[int]] = {}
    for worker in workers:
        told = worker["detail"].get("unseen") if isinstance(worker["detail"], Mapping) else None
        why = told.get(str(job_id)) if isinstance(told, Mapping) else None
        if isinstance(why, str):
            refusals.setdefault(why, []).append(worker["id"])
    return "; ".join(f"{_who_does_not(ids)} take it: {why}" for why, ids in refusals.items()) or None


def _unserved_by(worker: Mapping[Any, Any]) -> Iterator[list[Any]]:
    """Yield what a worker's row says that it does not take, as far as it can be read."""
    detail = worker["detail"]
    told = detail.get("unserved") if isinstance(detail, Mapping) else None
    for each in told if isinstance(told, list) else ():
        if isinstance(each, list) and len(each) >= 3 and isinstance(each[2], str):  # noqa: PLR2004  # type, connection, why
            yield each


def _who_does_not(worker_ids: Sequence[int]) -> str:
    if len(worker_ids) == 1:
        return f"worker {worker_ids[0]} does not"
    named, others = worker_ids[:_NAMED_MOST], len(worker_ids[_NAMED_MOST:])
    return f"workers {', '.join(map(str, named))}{f' and {others} more' if others else ''} do not"


def beat(row: Mapping[Any, Any]) -> str:
    """Return whether a running job beats, and how long ago it did: `alive 2s`, `silent 5m03s`."""
    if row["state"] != JobState.RUNNING:
        return ""
    how_long = "" if row["age_s"] is None else f" {duration(row['age_s'])}"
    return f"{'alive' if row['alive'] else 'silent'}{how_long}"


def ago(seconds: float | None) -> str:
    """Return how long ago something was; empty where it was not."""
    return "" if seconds is None else f"{duration(seconds)} ago"


def elapsed_s(row: Mapping[Any, Any]) -> float | None:
    """Return how long the job has run, or ran; None before its start."""
    if row["start_date"] is None or (row["end_date"] is None and row["running_s"] is None):
        return None
    if row["end_date"] is not None:
        return float((row["end_date"] - row["start_date"]).total_seconds())
    return float(row["running_s"])


def ended(row: Mapping[Any, Any]) -> str:
    """Return how a job ended, in one line."""
    took = elapsed_s(row)
    after = "" if took is None else f" after {duration(took)}"
    why = f": {row['message']}" if row["message"] else ""
    return f"job {row['id']} {row['state']}{after}{why}"


def value(value: Any) -> str:
    """Return the value of a column."""
    if value is None:
        return "-"
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).isoformat(" ", "milliseconds").replace("+00:00", "Z")
    return _nested(value)


def column(name: str, held: Any) -> Iterator[tuple[str, str]]:
    """Yield a column's name and value; of a JSON column a line for each key and each item of a list."""
    if not isinstance(held, dict):
        yield name, value(held)
        return
    yield name, "" if held else "-"
    for key, item in held.items():
        if isinstance(item, list) and any(isinstance(each, dict) for each in item):
            for number, each in enumerate(item, start=1):
                yield f"  {key} {number}", _nested(each)
        else:
            yield f"  {key}", _nested(item)


def _nested(item: Any) -> str:
    """Return what JSON can hold in one line, `exit_code: 1, reason: OutOfMemory`, without what is empty."""
    if isinstance(item, dict):
        return ", ".join(
            f"{key}: {_in_brackets(inner)}"
            for key, inner in item.items()
            if inner is not None and inner not in ("", [], {})
        )
    if isinstance(item, list):
        if any(isinstance(each, dict | list) for each in item):
            return ", ".join(_in_brackets(each) for each in item)
        return json.dumps(item, ensure_ascii=False)  # so that the words of a command can be told apart
    if isinstance(item, bool):
        return "yes" if item else "no"
    return "-" if item is None else str(item)


def _in_brackets(item: Any) -> str:
    return f"({_nested(item)})" if isinstance(item, dict) else _nested(item)
