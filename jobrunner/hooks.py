"""Hooks of jobs: other people's code, on threads that hold up nobody, not even the end of the process."""

import asyncio
import queue
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from jobrunner.clock import monotonic_s
from jobrunner.logs import get_logger

if TYPE_CHECKING:
    from jobrunner.models import MonitorJob

log = get_logger(__name__)

_AT_ONCE = 8
_QUICK_S = 1.0
"""A hook that takes longer gives up its place to the next one, and goes on beside it."""
_SLOW_MOST = 50
"""Slow hooks of one kind; with so many of them, no more are started until one returns."""
_CLOSE_S = 2.0

_MESSAGES: Mapping[str, str] = MappingProxyType(
    {
        "on_kill": "on_kill takes long: the kill goes on meanwhile",
        "heartbeat_callback": "heartbeat_callback takes long: it is not called again until it returns",
        "judge": "judge takes long: the job goes on unjudged until it returns",
    }
)


class _Threads:
    """Daemon threads, as many as are needed at once: the interpreter does not wait for them at its exit."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._count = 0

    def run(self, work: Callable[[], None]) -> None:
        """Run `work`, which raises nothing, at once."""
        self._work.put(work)
        if not self._idle.acquire(blocking=False):
            with self._lock:
                self._count += 1
            threading.Thread(target=self._serve, name="jobrunner-hook", daemon=True).start()

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            del work  # what it holds is not held while nothing is done
            self._idle.release()

    def close(self) -> None:
        """End the threads: idle ones now, others when their hook returns."""
        for _ in range(self._count):
            self._work.put(None)


@dataclass(slots=True)
class _Kind:
    """The hooks of one name of one class of jobs."""

    free: asyncio.Semaphore
    slow: int = 0
    is_said: bool = False


class Hooks:
    """Calls hooks for a runner, from its event loop.

    Those of one class and name share a few places, so that one kind takes no threads from another. A
    hook that hangs keeps its place for a moment only, and a kind keeps a bounded number of threads.
    """

    def __init__(self) -> None:
        self._threads = _Threads()
        self._kinds: dict[tuple[type, str], _Kind] = {}
        self._calls: dict[asyncio.Future[None], bool] = {}
        """The calls under way, and whether they are given up."""

    async def call(
        self, job: "MonitorJob", name: str, call: Callable[[], None], most_s: float
    ) -> BaseException | None:
        """Call a hook, and return what it raised; the caller may stop waiting at any time.

        `most_s` seconds after this call, and no sooner than a moment after the hook began, one warning names
        the job and the hook; this returns when the hook does.
        With too many of its kind hanging, it is not called, which is said once.
        """
        late_s = monotonic_s() + most_s
        kind = self._kinds.setdefault((type(job), name), _Kind(asyncio.Semaphore(_AT_ONCE)))
        async with kind.free:
            if kind.slow >= _SLOW_MOST:
                self._say_full(kind, job, name)
                return None
            done = self._start(call)
            await asyncio.wait([done], timeout=min(_QUICK_S, most_s))
        if not done.done():
            kind.slow += 1
            try:
                await asyncio.wait([done], timeout=max(0.0, late_s - monotonic_s()))
                if not done.done():
                    self._calls[done] = True
                    log.warning(_MESSAGES[name], job=job.id, hook=name, seconds=most_s)
                    await asyncio.wait([done])
            finally:
                kind.slow -= 1
                kind.is_said = False
        return done.exception()

    def _start(self, call: Callable[[], None]) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def settle(error: BaseException | None) -> None:
            if done.done():
                return
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)
                done.exception()  # whoever called it may be gone

        def run() -> None:
            error: BaseException | None = None
            try:
                call()
            except BaseException as raised:  # noqa: BLE001  # a hook may raise anything, SystemExit too
                error = raised
            if isinstance(error, StopIteration):  # which no future takes
                error = RuntimeError(repr(error))
            with suppress(RuntimeError):  # the loop is closed: nobody waits for it any more
                loop.call_soon_threadsafe(settle, error)

        self._calls[done] = False
        done.add_done_callback(lambda _done: self._calls.pop(done, None))
        self._threads.run(run)
        return done

    @staticmethod
    def _say_full(kind: _Kind, job: "MonitorJob", name: str) -> None:
        if not kind.is_said:
            kind.is_said = True
            log.error(
                f"{name} is not called: too many calls of it have not returned",
                job_type=type(job).__name__,
                job=job.id,
                calls=kind.slow,
            )

    async def close(self) -> None:
        """Start no more; wait for those under way for a moment, and for those given up not at all."""
        waited_for = [done for done, is_given_up in self._calls.items() if not is_given_up]
        if waited_for:
            await asyncio.wait(waited_for, timeout=_CLOSE_S)
        self._threads.close()
