"""The clocks: a monotonic one that counts suspend, and UTC for what is only shown.

Facts (when a job started, when it last beat) come from the database's clock: see
`jobrunner.database`. Waiting and fencing use `monotonic_s`.
"""

import datetime as dt
import sys
import time

if sys.platform == "linux":
    # CLOCK_MONOTONIC stands still while a laptop sleeps: a runner would wake up believing that its
    # last beat was a moment ago and act on jobs that were adopted in the meantime.
    _CLOCK_ID = time.CLOCK_BOOTTIME
else:  # macOS: CLOCK_MONOTONIC goes on during sleep there
    _CLOCK_ID = time.CLOCK_MONOTONIC


def monotonic_s() -> float:
    """Return seconds on a clock that never goes back and counts the time asleep."""
    return time.clock_gettime(_CLOCK_ID)


def utcnow() -> dt.datetime:
    """Return the host's time, aware, in UTC: for objects that no database knows yet."""
    return dt.datetime.now(dt.UTC)
