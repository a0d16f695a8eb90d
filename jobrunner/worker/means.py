"""What the parts of a worker work with: its runner, its place for code, what it can serve, the database."""

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import TypeVar

from sqlalchemy import Connection

from jobrunner.executors.base import CodeJobs
from jobrunner.owned import OwnProcess
from jobrunner.runner import Runner
from jobrunner.statements import Sighting
from jobrunner.sweeper import acting
from jobrunner.worker.serving import Serving
from jobrunner.worker.sight import Sight

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
    threads: Executor
    """The worker's own: whatever hangs on the event loop's threads must not keep it from looking."""
    sight: Sight = field(default_factory=Sight)

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

        return await asyncio.get_running_loop().run_in_executor(self.threads, read)

    async def write(self, write: Callable[..., _T], *args: object) -> _T:
        """Write on a thread that is not the runner's: there it would wait behind all submissions.

        Raises `DatabaseError`.
        """

        def do() -> _T:
            with self.runner.database.write() as connection:
                return write(connection, *args)

        return await asyncio.get_running_loop().run_in_executor(self.threads, do)

    async def act(
        self, seen: Iterable[Sighting], write: Callable[[Connection, list[Sighting]], list[_T]]
    ) -> list[_T]:
        """Have a write take over orphans, or declare them lost, those that may be acted on by then.

        Returns nothing where it had to wait for too long. Raises `DatabaseError`.
        """

        def do() -> list[_T]:
            with acting(self.runner.database) as act:
                good = act.still_good(seen)
                return write(act.connection, good) if good else []

        return await asyncio.get_running_loop().run_in_executor(self.threads, do)
