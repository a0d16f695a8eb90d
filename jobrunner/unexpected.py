"""What should never happen, counted: each is a fault of jobrunner itself, caught so that others go on."""

import threading
from typing import Any

from jobrunner.errors import words_of
from jobrunner.log_limits import Seldom
from jobrunner.logs import get_logger

log = get_logger(__name__)

_lock = threading.Lock()
_count = 0


def count() -> int:
    """Return how often it happened in this process: 0 where all is well."""
    return _count


def note(what: str, error: BaseException, seldom: Seldom, **fields: Any) -> None:
    """Count an error that a catch-all has caught, and let `seldom` log it, as the event `unexpected`."""
    global _count  # noqa: PLW0603  # one figure a process
    with _lock:
        _count += 1
    about = (what, *fields.values())
    seldom.error(log, "unexpected", about=about, what=what, error=words_of(error), exc_info=error, **fields)
