"""Others' code that may never return: on threads that nobody waits for, a bounded number for each kind."""

import asyncio
import os
import threading
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any, TypeVar

from jobrunner.daemon_threads import SpareThreads

_T = TypeVar("_T")

_AT_ONCE = 16
"""Calls of one kind that may be under way at once, those that hang among them."""


class Late(Exception):
    """A call has not returned in time, or has found no place among those that do not return."""


def begin(call: Callable[[], _T], on_end: Callable[[_T | None, BaseException | None], None]) -> None:
    """Call on a daemon thread, which keeps no process from ending; `on_end` takes the outcome there."""

    def run() -> None:
        try:
            value = call()
        except BaseException as error:  # noqa: BLE001  # others' code may raise anything, SystemExit too
            on_end(None, error)
        else:
            on_end(value, None)

    _spare.run(run)


def _renew() -> None:
    global _spare  # noqa: PLW0603  # a forked process has none of the threads
    _spare = SpareThreads("jobrunner-aside")


_spare = SpareThreads("jobrunner-aside")
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


def within(seconds: float, call: Callable[[], _T]) -> _T:
    """Call from a thread without an event loop, for at most so long. Raises what it raises, and `Late`."""
    done = threading.Event()
    outcome: list[Any] = []

    def on_end(value: _T | None, error: BaseException | None) -> None:
        outcome.extend((value, error))
        done.set()

    begin(call, on_end)
    if not done.wait(seconds):
        raise Late(f"it has not returned within {seconds:g} s")
    value, error = outcome
    if error is not None:
        raise error
    found: _T = value
    return found


class Aside:
    """Makes calls beside an event loop, which goes on meanwhile.

    A call that hangs keeps its place until it returns: so a kind of calls has a bounded number of threads,
    and takes no place from another kind.
    """

    def __init__(self) -> None:
        self._places: dict[Hashable, _Places] = {}

    async def call(self, kind: Hashable, call: Callable[[], _T], within_s: float) -> _T:
        """Call, and return what that returns; raises what it raises, which must be an `Exception`.

        Raises `Late` after `within_s` seconds, and where for so long no earlier call has returned.
        """
        places = self._places.setdefault(kind, _Places())
        await places.take(within_s)
        done = _begun(call)
        done.add_done_callback(lambda _done: places.give_back())
        await asyncio.wait([done], timeout=within_s)
        if not done.done():
            raise Late(f"it has not returned within {within_s:g} s")
        value: _T = done.result()
        return value


class _Places:
    """The places of one kind of calls."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(_AT_ONCE)
        self._returned = 0

    @property
    def are_taken(self) -> bool:
        """Whether there is none left."""
        return self._free.locked()

    async def take(self, within_s: float) -> None:
        """Wait for a place, as long as calls return. Raises `Late` where none has for so many seconds."""
        while self.are_taken:
            before = self._returned
            try:
                async with asyncio.timeout(within_s):
                    await self._free.acquire()
            except TimeoutError:
                if self._returned == before:
                    raise Late(f"{_AT_ONCE} earlier calls of it have not returned") from None
            else:
                return
        await self._free.acquire()

    def give_back(self) -> None:
        """Let another call have the place of one that has returned."""
        self._returned += 1
        self._free.release()


def _begun(call: Callable[[], Any]) -> asyncio.Future[Any]:
    """Begin a call; the future has its outcome, unless its loop is closed by then."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def settle(value: Any, error: BaseException | None) -> None:
        if error is None:
            done.set_result(value)
        else:
            done.set_exception(error)
            done.exception()  # whoever called it may be gone

    def on_end(value: Any, error: BaseException | None) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits for it any more
            loop.call_soon_threadsafe(settle, value, error)

    begin(call, on_end)
    return done
