"""Where thousands wait, each for something of its own: whether they still want to is asked of all at once.

A timer for each of them would take the event loop for itself.
"""

import asyncio
from collections.abc import Callable
from typing import Any


class WaitingRoom:
    """Lets many wait, on one event loop, and asks them every `look_s` seconds whether they give up."""

    def __init__(self, look_s: float) -> None:
        self._look_s = look_s
        self._waiting: dict[asyncio.Future[None], Callable[[], bool]] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def wait(self, until: asyncio.Future[Any], gives_up: Callable[[], bool]) -> bool:
        """Wait until a future is done, whose result is not looked at; False: `gives_up` has said so first."""
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake(_done: asyncio.Future[Any]) -> None:
            if not mine.done():
                mine.set_result(None)

        until.add_done_callback(wake)
        self._waiting[mine] = gives_up
        self._look_later()
        try:
            await mine
        finally:
            del self._waiting[mine]
            until.remove_done_callback(wake)
        return until.done()

    def _look_later(self) -> None:
        if self._timer is None and self._waiting:
            self._timer = asyncio.get_running_loop().call_later(self._look_s, self._look)

    def _look(self) -> None:
        self._timer = None
        for mine, gives_up in list(self._waiting.items()):
            if not mine.done() and gives_up():
                mine.set_result(None)
        self._look_later()
