"""What the parts of a worker work with: its runner, its place for code, what it can serve, the database."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from jobrunner.executors.base import CodeJobs
from jobrunner.owned import OwnProcess
from jobrunner.runner import Runner
from jobrunner.worker.serving import Serving

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Means:
    """One worker's, from the moment at which its runner beats until its end."""

    runner: Runner
    code: CodeJobs
    serving: Serving
    itself: OwnProcess
    """The worker's own row."""
    capacity: int
    """Monitor jobs that it watches at most."""

    @property
    def is_fenced(self) -> bool:
        """Whether it may take nothing for now."""
        # Who cannot beat must not take what others would have to take from him.
        return self.runner.beats.is_failing

    async def read(self, ask: Callable[..., _T], *args: object) -> _T:
        """Ask the database. Raises `DatabaseError`."""

        def read() -> _T:
            with self.runner.database.read() as connection:
                return ask(connection, *args)

        return await asyncio.to_thread(read)

    async def write(self, write: Callable[..., _T], *args: object) -> _T:
        """Write on a thread that is not the runner's: there it would wait behind all submissions.

        Raises `DatabaseError`.
        """

        def do() -> _T:
            with self.runner.database.write() as connection:
                return write(connection, *args)

        return await asyncio.to_thread(do)
