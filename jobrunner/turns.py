"""How many jobs of one connection are submitted, or looked for, at once: the others wait for their turn."""

import asyncio
from collections import deque
from collections.abc import Callable

from jobrunner.waiting_room import WaitingRoom


class Turns:
    """Turns at a connection. Waiting for one is no call, so that no deadline of a call runs meanwhile.

    Else thousands of jobs that are submitted or looked for at once, as after the death of their worker, would
    each wait longer among the others than a call may take, and be tried again and again, for ever.

    `at_once`: returns how many there are at present, at least 1. `look_s`: seconds between two questions
    whether those that wait go on waiting.
    """

    def __init__(self, at_once: Callable[[], int], look_s: float = 0.5) -> None:
        self._at_once = at_once
        self._room = WaitingRoom(look_s)
        self._taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def take(self, goes_on_waiting: Callable[[], bool]) -> bool:
        """Wait for a turn; False: `goes_on_waiting` has said no.

        A turn that was taken is to be given back.
        """
        if not self._waiting and self._taken < self._at_once():
            self._taken += 1
            return True
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(mine)
        try:
            return await self._room.wait(mine, lambda: not goes_on_waiting())
        except asyncio.CancelledError:
            if mine.done():
                self.give_back()
            raise
        finally:
            mine.cancel()
            if mine in self._waiting:
                self._waiting.remove(mine)

    def give_back(self) -> None:
        """Let the next ones have their turn."""
        self._taken -= 1
        while self._waiting and self._taken < self._at_once():
            self._taken += 1
            self._waiting.popleft().set_result(None)
