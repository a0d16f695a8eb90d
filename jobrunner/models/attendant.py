"""Who beats for a job of own code while its clean-up runs: its own thread is busy with that."""

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from jobrunner.clock import monotonic_s
from jobrunner.errors import ClaimLost, DatabaseError
from jobrunner.heartbeat import Pacer
from jobrunner.logs import get_logger

log = get_logger(__name__)


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
