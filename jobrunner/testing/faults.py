"""Orders for trouble: what a `MemoryBackend` does wrong, in which call, how often and to whom."""

import datetime as dt
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from jobrunner.errors import BackendError, NotSent, SubmitRejected, Throttled


class Fault(StrEnum):
    """A way for a call to go wrong."""

    THROTTLE = "throttle"
    """Raises `Throttled`, with `retry_after_s` where it is given."""
    ERROR = "error"
    """Raises `BackendError`; in `fetch` and `cancel` with `ids`, answers `RemoteError` for just these."""
    TIMEOUT = "timeout"
    """Does nothing, and hangs until it is cancelled."""
    GARBAGE = "garbage"
    """Returns `answer`, whatever that is; by default values of no known type and an id never asked for."""
    VANISH = "vanish"
    """`fetch` answers `Gone`, with `certain` as ordered."""
    SLOW = "slow"
    """Answers rightly, after `delay_s`."""
    LATE = "late"
    """Is paused before anything is done until `Order.release()`, then goes on as if nothing had been."""
    REJECT = "reject"
    """`submit` raises `SubmitRejected`; nothing is made."""
    NOT_MADE = "not made"
    """`submit` raises `BackendError`; nothing is made, and nobody knows."""
    NOT_SENT = "not sent"
    """`submit` raises `NotSent`; nothing is made."""
    ANSWER_LOST = "answer lost"
    """`submit` and `cancel` do their work and then raise `BackendError`."""
    UNSURE = "unsure"
    """`find` answers `Unsure`, with `retry_at` and `message` as ordered."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call that arrived: `keys` are external ids, or the token of `submit` and `find`."""

    method: str
    keys: tuple[str, ...]
    at_s: float


# What makes no sense is refused where it is ordered, not served as something else.
CALLS_OF: dict[Fault, frozenset[str]] = {
    Fault.VANISH: frozenset({"fetch"}),
    Fault.REJECT: frozenset({"submit"}),
    Fault.NOT_MADE: frozenset({"submit"}),
    Fault.NOT_SENT: frozenset({"submit"}),
    Fault.ANSWER_LOST: frozenset({"submit", "cancel"}),
    Fault.UNSURE: frozenset({"find"}),
}
ALL_CALLS = frozenset({"submit", "find", "fetch", "cancel"})


@dataclass(eq=False, slots=True, kw_only=True)
class Order:
    """One order for trouble, as `MemoryBackend.order` returns it.

    `times`: how many calls it still spoils, None for all of them until `stop()`. `ids`: only calls
    that name one of these are spoiled (external ids in `fetch` and `cancel`, tokens in `submit` and
    `find`); None: every call.
    """

    fault: Fault
    call: str
    times: int | None = 1
    ids: frozenset[str] | None = None
    message: str = ""
    retry_after_s: float | None = None
    retry_at: dt.datetime | None = None
    delay_s: float = 0.0
    answer: Any = None
    certain: bool = False
    served: int = 0
    """How many calls it has spoiled so far."""
    _released: threading.Event = field(default_factory=threading.Event)

    def take(self, call: str, keys: Iterable[str]) -> bool:
        """Whether this call is to be spoiled; if so, it is counted."""
        if call != self.call or self.times == 0:
            return False
        if self.ids is not None and self.ids.isdisjoint(keys):
            return False
        self.served += 1
        if self.times is not None:
            self.times -= 1
        return True

    def stop(self) -> None:
        """Spoil no further call, and let the paused ones go on."""
        self.times = 0
        self.release()

    def release(self) -> None:
        """Let the calls go on that are paused by `Fault.LATE`; may be called from any thread."""
        self._released.set()

    @property
    def is_released(self) -> bool:
        """Whether paused calls may go on."""
        return self._released.is_set()

    def concerns(self, key: str) -> bool:
        """Whether the order names this id, or names none and so means all."""
        return self.ids is None or key in self.ids

    def error(self) -> BackendError:
        """Return the error that the call raises."""
        if self.fault is Fault.THROTTLE:
            return Throttled(self.message, retry_after_s=self.retry_after_s)
        if self.fault is Fault.REJECT:
            return SubmitRejected(self.message)
        if self.fault is Fault.NOT_SENT:
            return NotSent(self.message)
        return BackendError(self.message)
