"""The clocks: a monotonic one that counts suspend, and UTC for what is only shown.

Facts (when a job started, when it last beat) come from the database's clock: see
`jobrunner.database`. Waiting and fencing use `monotonic_s`.
"""

import datetime as dt
import sys
import time
from typing import TypeGuard

if sys.platform == "linux":
    # CLOCK_MONOTONIC stands still while a laptop sleeps: a runner would wake up believing that its
    # last beat was a moment ago and act on jobs that were adopted in the meantime.
    _CLOCK_ID = time.CLOCK_BOOTTIME
else:  # macOS: CLOCK_MONOTONIC goes on during sleep there
    _CLOCK_ID = time.CLOCK_MONOTONIC


SECONDS_MOST = 1e9
"""The longest time that a row may hold, about 31 years; the database refuses more."""


def is_duration(value: object) -> TypeGuard[float]:
    """Whether it is a number of seconds that a row can hold: more than 0, at most `SECONDS_MOST`."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= SECONDS_MOST


INTERVAL_LEAST = 0.01
"""Seconds: the shortest heartrate, and the shortest poll interval, that anybody can keep."""


def is_interval(value: object) -> TypeGuard[float]:
    """Whether it is a number of seconds between two beats, or two looks, that can be kept."""
    return is_duration(value) and value >= INTERVAL_LEAST


def monotonic_s() -> float:
    """Return seconds on a clock that never goes back and counts the time asleep."""
    return time.clock_gettime(_CLOCK_ID)


def utcnow() -> dt.datetime:
    """Return the host's time, aware, in UTC: for objects that no database knows yet."""
    return dt.datetime.now(dt.UTC)
