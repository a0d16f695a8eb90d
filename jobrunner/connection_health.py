"""Whether a connection can be read, and how long to leave it alone when it cannot."""

import math
from collections.abc import Callable, Sequence
from random import Random

from jobrunner.backends.base import RemoteError
from jobrunner.log_limits import Trouble
from jobrunner.logs import get_logger

log = get_logger(__name__)

ERROR_CAP_S = 30.0
"""The longest back-off after errors, where the poll interval is not longer."""
THROTTLE_CAP_S = 60.0
"""The longest back-off after throttling, where the server does not ask for a longer one."""

_FIRST_S = 1.0
_DOUBLINGS_MOST = 16
_RETRY_AFTER_MOST_S = 3600.0  # a server whose clock is wrong must not stop the watching for a year


class ConnectionHealth:
    """The back-off of one connection; changes are told to `on_health(readable, message)`, and logged.

    A call carries the `round` it was sent in. What was sent before the last trouble proves nothing
    after it: its success does not end the back-off, and its failure does not double it once more.
    """

    def __init__(self, name: str, random: Random, on_health: Callable[[bool, str], None] | None) -> None:
        self.round = 0
        self.failures = 0
        """How often in a row the connection was in trouble; 0: it is readable."""
        self.hold_until_s = -math.inf
        """Until when nothing is asked."""
        self._name = name
        self._random = random
        self._on_health = on_health
        self._since_s = 0.0
        self._trouble = Trouble()
        self._suspect: str | None = None

    def suspects(self, external_id: str) -> bool:
        """Whether this id's failure may be that job's own: no other failed since the last success."""
        if self.failures or self._suspect not in {None, external_id}:
            return False
        self._suspect = external_id
        return True

    def fail(
        self, sent_in: int, errors: Sequence[RemoteError], now_s: float, *, interval_s: float, throttled: bool
    ) -> None:
        """Back off: twice as long each time up to a cap, and at least as long as the server asked."""
        if sent_in == self.round:
            self.round += 1
            self.failures += 1
            cap_s = THROTTLE_CAP_S if throttled else max(interval_s, ERROR_CAP_S)
            wait_s = min(cap_s, min(interval_s, _FIRST_S) * 2 ** min(self.failures - 1, _DOUBLINGS_MOST))
            self.hold_until_s = now_s + wait_s * self._random.uniform(0.5, 1.0)
            if self.failures == 1:
                self._since_s = now_s
                self._tell(readable=False, message=errors[0].message)
        if self.failures and self._trouble.begins():
            log.warning("status unreadable", connection=self._name, error=errors[0].message)
        # A little later than asked, so that not all who were told the same come back at once.
        asked_s = max(_sane(error.retry_after_s) for error in errors) * self._random.uniform(1.0, 1.1)
        self.hold_until_s = max(self.hold_until_s, now_s + asked_s)

    def succeed(self, sent_in: int, now_s: float) -> None:
        """End the back-off, unless the success is older than the trouble."""
        self._suspect = None
        if self.failures and sent_in == self.round:
            self.failures, self.hold_until_s = 0, -math.inf
            after = f"{now_s - self._since_s:.1f} s"
            if self._trouble.ends():
                log.info("status readable again", connection=self._name, after=after)
            self._tell(readable=True, message=f"readable again after {after}")

    def _tell(self, *, readable: bool, message: str) -> None:
        if self._on_health is None:
            return
        try:
            self._on_health(readable, message)
        except Exception as error:  # a listener's trouble must not end the watching
            log.error(  # our loggers have no `exception`
                "a change of health was not taken", connection=self._name, exc_info=error
            )


def _sane(retry_after_s: object) -> float:
    """Return what a server asked to wait, in seconds, where that makes sense."""
    if not isinstance(retry_after_s, (int, float)) or math.isnan(retry_after_s):
        return 0.0
    return min(max(retry_after_s, 0.0), _RETRY_AFTER_MOST_S)
