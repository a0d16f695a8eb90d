"""Who beats for a job of own code while its own thread is busy: with a clean-up, or the write of its end."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from jobrunner.clock import monotonic_s
from jobrunner.database import Database
from jobrunner.errors import ClaimLost, DatabaseError
from jobrunner.heartbeat import Beater, BeatHealth, Pacer
from jobrunner.logs import get_logger
from jobrunner.statements import Claim

log = get_logger(__name__)

_EARLY = 0.25
"""Of a heartrate, the time until a beat that failed is tried again, and at least until the first one."""
_LAST_BEAT_S = 1.0


class Attendant:
    """Beats within a `with` block, from a thread of its own; after `most_s` seconds it ends the job instead.

    `beat` may raise `ClaimLost`, and then no more beats are sent. `end` ends the job though the block has
    not ended.
    """

    def __init__(
        self, pacer: Pacer, beat: Callable[[], object], end: Callable[[], None], most_s: float
    ) -> None:
        self._pacer = pacer
        self._beat = beat
        self._end = end
        self._until_s = monotonic_s() + most_s
        self._is_done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="jobrunner-attendant", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_done.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._is_done.wait(min(self._pacer.remaining_s(), self._until_s - monotonic_s())):
                if monotonic_s() >= self._until_s:
                    self._end()
                    return
                self._pacer.restart()
                self._beat()
        except (ClaimLost, DatabaseError) as error:
            log.warning("a job is not attended to any more", error=error)


@contextmanager
def beating_on(database: Database, claim: Claim, pacer: Pacer, health: BeatHealth) -> Iterator[None]:
    """Beat within it, on a thread and a connection of its own: whatever takes long must not lose the job."""
    over = threading.Event()
    args = (database, claim, pacer, health, over)
    thread = threading.Thread(target=_beat_on, args=args, name="jobrunner-end", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(_LAST_BEAT_S)  # one that hangs must not hold up the end


def _beat_on(
    database: Database, claim: Claim, pacer: Pacer, health: BeatHealth, over: threading.Event
) -> None:
    beater = Beater(database, claim.runner_id, pacer.heartrate)
    again_s = _EARLY * pacer.heartrate
    wait_s = max(pacer.remaining_s(), again_s)  # most ends are written by then
    while not over.wait(wait_s):
        sent_s, wait_s = monotonic_s(), again_s
        try:
            if beater.beat([claim.job_id]):  # else it is locked, or no longer ours: the end says so
                health.succeeded(sent_s)
                wait_s = pacer.heartrate
        except DatabaseError as error:
            health.failed(error)
    beater.close()
