"""How many jobs of one connection are submitted, or looked for, at once: the others wait for their turn."""

import asyncio
from collections.abc import Callable


class Turns:
    """Turns at a connection. Waiting for one is no call, so that no deadline of a call runs meanwhile.

    Else thousands of jobs that are submitted or looked for at once, as after the death of their worker, would
    each wait longer among the others than a call may take, and be tried again and again, for ever.
    """

    def __init__(self, at_once: int) -> None:
        self._free = asyncio.Semaphore(at_once)

    async def take(self, goes_on_waiting: Callable[[], bool], look_s: float) -> bool:
        """Wait for a turn; False: `goes_on_waiting`, asked each `look_s` seconds, has said no.

        A turn that was taken is to be given back.
        """
        if not self._free.locked():
            await self._free.acquire()
            return True
        waiting = asyncio.ensure_future(self._free.acquire())
        try:
            while not waiting.done():
                await asyncio.wait([waiting], timeout=look_s)
                if not waiting.done() and not goes_on_waiting():
                    return False
            return waiting.result()
        except asyncio.CancelledError:
            if waiting.done() and not waiting.cancelled():
                self.give_back()
            raise
        finally:
            waiting.cancel()

    def give_back(self) -> None:
        """Let the next one have its turn."""
        self._free.release()
