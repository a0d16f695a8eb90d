"""Whether a row can be read as the job that it is: any client may have written anything into it."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from jobrunner.clock import INTERVAL_LEAST, SECONDS_MOST, is_interval
from jobrunner.sqltypes import BlobText

_SHOWN = 60  # characters of what stands there

_TEXTS = (
    *("job_type", "name", "dag_id", "connection", "submit_token", "external_id", "external_state"),
    *("host_id", "hostname", "unixname", "executor_class", "cancel_cause", "submit_baseline"),
)


def why_unreadable(row: Mapping[Any, Any], *, is_monitored: bool) -> str | None:
    """Return why a claimed row is no job that can be run, naming the column; None: it can.

    `is_monitored`: it is a monitor job's, which has a token, and columns of its own.
    """
    for name in _TEXTS:
        if not _is_text(row[name]):
            return _why(name, row[name], "a text")
    for name, is_sound, what in (*_OF_ALL, *(_OF_MONITORED if is_monitored else ())):
        if not is_sound(row[name]):
            return _why(name, row[name], what)
    return None


def _why(name: str, held: Any, what: str) -> str:
    shown = repr(held)
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
    return f"its column {name} cannot be read: it holds {shown}, not {what}"


def _is_text(value: Any) -> bool:
    # Most are plain ones: asked thousands of times a second where many jobs are claimed.
    return value is None or type(value) is str or (isinstance(value, str) and not isinstance(value, BlobText))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_policy(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and all(map(_is_count, value.values())))


_Rule = tuple[str, Callable[[Any], bool], str]

_INTERVAL = f"a number of seconds from {INTERVAL_LEAST:g} to {SECONDS_MOST:g}"
_OF_ALL: tuple[_Rule, ...] = (
    ("heartrate", is_interval, _INTERVAL),
    ("claims", _is_count, "a count"),
    ("spec", lambda value: value is None or isinstance(value, dict), "a JSON object"),
)
_OF_MONITORED: tuple[_Rule, ...] = (
    ("submit_token", bool, "the token of a submission"),
    ("attempt", _is_count, "a count"),
    ("poll_interval", lambda value: value is None or is_interval(value), _INTERVAL),
    (
        "start_timeout",
        lambda value: value is None or (_is_number(value) and value > 0),
        "a number of seconds",
    ),
    ("resubmit", _is_policy, "a JSON object of causes and counts"),
)
