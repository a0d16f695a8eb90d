"""A word when a runner's event loop hangs: others' code that blocks it stops all that is done there.

The jobs fall silent then, as they should (a beat means progress), and others take them over.
"""

import asyncio
import sys
import threading
import traceback
from pathlib import Path

from jobrunner.clock import monotonic_s
from jobrunner.logs import get_logger

log = get_logger(__name__)

_EVERY_S = 5.0
_HANGS_S = 15.0
_LOOK_S = 0.5
_FRAMES = 4


class LoopWatch:
    """Asks the running event loop again and again for a sign of life, from a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loops_thread = threading.get_ident()
        self._is_over = threading.Event()
        threading.Thread(target=self._run, name="jobrunner-loop-watch", daemon=True).start()

    def stop(self) -> None:
        """Ask no more."""
        self._is_over.set()

    def _run(self) -> None:
        while not self._is_over.wait(_EVERY_S):
            lives = threading.Event()
            try:
                self._loop.call_soon_threadsafe(lives.set)
            except RuntimeError:  # it is closed
                return
            asked_s = monotonic_s()
            if lives.wait(_HANGS_S) or self._is_over.is_set():
                continue
            log.error(
                "the event loop hangs: no job is watched or killed by this process until it goes on",
                where=self._where(),
            )
            while not lives.wait(_LOOK_S):
                if self._is_over.is_set():
                    return
            log.warning(f"the event loop goes on after {monotonic_s() - asked_s:.0f} s")

    def _where(self) -> str:
        """Return what the loop's thread is at, innermost first."""
        frame = sys._current_frames().get(self._loops_thread)
        stack = traceback.extract_stack(frame)[-_FRAMES:] if frame is not None else []
        return ", called by ".join(
            f"{each.name} ({Path(each.filename).name}:{each.lineno})" for each in reversed(stack)
        )
