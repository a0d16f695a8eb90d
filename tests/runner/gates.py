"""Calls of a runner to the database, held back by a test until something else has come in between."""

import asyncio
from collections.abc import Callable
from typing import Any

from jobrunner.runner import Runner


class Gate:
    """Holds a runner's next calls of one write: before they are sent, or their answers."""

    def __init__(self, runner: Runner, write: str, *, holds_answer: bool = False) -> None:
        self._arrived, self._opened = asyncio.Event(), asyncio.Event()
        self.calls = 0
        real: Callable[..., Any] = runner.call

        async def call(do: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
            if do.__name__ != write:
                return await real(do, *arguments, **options)
            self.calls += 1
            answer = await real(do, *arguments, **options) if holds_answer else None
            self._arrived.set()
            await self._opened.wait()
            return answer if holds_answer else await real(do, *arguments, **options)

        runner.call = call  # type: ignore[method-assign, assignment]

    async def arrived(self) -> None:
        """Wait until a call has come to the gate."""
        await asyncio.wait_for(self._arrived.wait(), 20)

    def open(self) -> None:
        """Let through what is held, and what comes."""
        self._opened.set()
