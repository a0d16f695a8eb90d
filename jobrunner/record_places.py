"""Where the records of process jobs are, and whether this process sees them there.

The same path may be another directory: two containers that share a host's pids have mounts of their own.
So each place of records carries a mark, and a job keeps path and mark of the place where its submission
began. Who does not see that place can say nothing about the job.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

MARK = "place"
"""The file in a place of records that holds its mark."""
SEEN_BY = ("host_id", "external_id", "submit_baseline", "submit_started_at")
"""The columns of a row that tell whether the records of its job can be seen."""


def with_mark(place: str, mark: str) -> str:
    """Return what a job's row keeps of its place: mark and path."""
    return f"{mark}:{place}"


def parts_of(baseline: str | None) -> tuple[str | None, str | None]:
    """Return the mark and the path of a place as a row keeps it; an older version kept the path alone."""
    if baseline is None or baseline.startswith("/"):
        return None, baseline
    mark, _, place = baseline.partition(":")
    return mark, place


def mark_of(place: str) -> str | None:
    """Return the mark that a place carries, as it is seen from here; None: none that can be read."""
    try:
        mark = json.loads(Path(place, MARK).read_bytes())["mark"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return mark if isinstance(mark, str) else None


def is_in_sight(baseline: str | None) -> bool:
    """Whether a place that a row keeps is the one that this process sees under its path."""
    mark, place = parts_of(baseline)
    return place is None or mark is None or mark_of(place) == mark


def why_unseen(row: Mapping[Any, Any], mark_of: Callable[[str], str | None] = mark_of) -> str | None:
    """Return why the records of a job cannot be seen from here; None: they can, or there are none yet.

    `row`: its columns `SEEN_BY`. A record directory that is gone
    from a place that is seen counts as seen: it is gone for everybody.
    """
    external_id, baseline = _text(row["external_id"]), _text(row["submit_baseline"])
    if row["host_id"] is None or (external_id is None and row["submit_started_at"] is None):
        return None
    mark, place = parts_of(baseline)
    if mark is None and external_id is not None:
        place = _place_of(external_id)
    if place is None or (external_id is not None and os.path.exists(external_id)):  # noqa: PTH110  (never raises)
        return None
    if mark_of(place) == mark if mark is not None else external_id is None and os.path.isdir(place):  # noqa: PTH112
        return None
    return f"its records in {external_id or place} cannot be seen from here"


def record_of(row: Mapping[Any, Any]) -> str | None:
    """Return the record directory that a job has, or will have; None where it cannot be told."""
    token = _text(row["submit_token"])
    _, place = parts_of(_text(row["submit_baseline"]))
    return _text(row["external_id"]) or (str(Path(place, token)) if place and token else None)


def _text(held: object) -> str | None:
    """Return a text of a row; what else other hands have put there says nothing of a place."""
    return held if isinstance(held, str) else None


def _place_of(external_id: str) -> str | None:
    """Return the place of a record directory; None: that id is none, such as another backend's."""
    path = Path(external_id)
    return str(path.parent) if path.is_absolute() and path.parent.name == "processes" else None
