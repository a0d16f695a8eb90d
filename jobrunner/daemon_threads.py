"""Threads for calls that may hang: the end of a process waits for none of them."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

from jobrunner.clock import monotonic_s

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Call = tuple["Future[Any]", Callable[..., Any], tuple[Any, ...], dict[str, Any]]

LEFT_S = 1.0
"""Seconds that calls under way have to end, when the threads are closed; then they are left behind."""

_SPARE_S = 2.0


class SpareThreads:
    """As many threads as are needed at once: to start one takes longer than most calls.

    One that nothing is left for waits a little for more, and ends.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._is_closed = False

    def run(self, work: Callable[[], None]) -> None:
        """Run `work`, which raises nothing, at once."""
        if self._idle.acquire(blocking=False):
            self._work.put(work)
        else:
            threading.Thread(target=self._serve, args=(work,), name=self._name, daemon=True).start()

    def _serve(self, work: Callable[[], None] | None) -> None:
        while work is not None:
            work()
            work = None  # what it holds is not held while nothing is done
            work = self._next()

    def _next(self) -> Callable[[], None] | None:
        if self._is_closed:
            return None
        self._idle.release()
        try:
            return self._work.get(timeout=_SPARE_S)
        except queue.Empty:  # where it is counted on by now, its work is on the way
            return None if self._idle.acquire(blocking=False) else self._work.get()

    def close(self) -> None:
        """End the threads: idle ones now, others when their call returns."""
        self._is_closed = True
        while self._idle.acquire(blocking=False):
            self._work.put(None)


class DaemonThreads(ThreadPoolExecutor):
    """As `ThreadPoolExecutor`, but a call that hangs keeps neither an event loop nor the interpreter.

    Those are joined without a bound, by the loop when it ends and by the interpreter at its exit: a
    database that does not answer would hold up a process that is told to stop.
    """

    # Asyncio takes nothing else for its default; of the base class nothing is used but the type.
    def __init__(self, most: int, name: str) -> None:
        super().__init__(most, name)
        self._most = most
        self._name = name
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._guard = threading.Lock()
        self._running: list[threading.Thread] = []
        self._idle = threading.Semaphore(0)
        self._is_closed = False

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> "Future[_T]":
        """Call on one of the threads. Raises RuntimeError after `shutdown`."""
        future: Future[_T] = Future()
        with self._guard:
            if self._is_closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._calls.put((future, fn, args, kwargs))
            if not self._idle.acquire(blocking=False) and len(self._running) < self._most:
                name = f"{self._name}_{len(self._running)}"
                thread = threading.Thread(target=self._serve, name=name, daemon=True)
                self._running.append(thread)
                thread.start()
        return future

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            _do(*call)
            del call  # what it holds is not held while nothing is done
            self._idle.release()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; wait for those under way for a moment, and leave the others behind."""
        with self._guard:
            self._is_closed = True
            running = list(self._running)
        if cancel_futures:
            with suppress(queue.Empty):
                while (call := self._calls.get_nowait()) is not None:
                    call[0].cancel()
        for _ in running:
            self._calls.put(None)
        until_s = monotonic_s() + LEFT_S
        for thread in running if wait else ():
            thread.join(max(0.0, until_s - monotonic_s()))


def _do(future: "Future[Any]", fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        value = fn(*args, **kwargs)
    except BaseException as error:  # noqa: BLE001  # it is raised where it is waited for
        future.set_exception(error)
    else:
        future.set_result(value)
