"""`WorkerJob`: the worker's own row: listed, checked and killed like any job."""

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from jobrunner import registry
from jobrunner.aside import Late, within
from jobrunner.database import get_database
from jobrunner.errors import DatabaseError, JobNotFound, UsageError, error_of_end
from jobrunner.executors.base import WorkerExecutor
from jobrunner.executors.signals import heard_without_loop
from jobrunner.models import BaseJob
from jobrunner.models.start import Start, owner_for

CAPACITY = 10_000
"""Monitor jobs that a worker watches at most, unless it is told otherwise."""
DRAIN_TIMEOUT_S = 600.0
"""Seconds for which a worker that is stopped waits for its child processes, unless it is told otherwise."""
_RELOAD_S = 2.0  # for a last look at its row: the database may not answer


class WorkerJob(BaseJob):
    """A process that takes queued jobs and orphans, watches them, and runs jobs with code in children.

    `capacity`: monitor jobs that it watches at most. `processes`: child processes at most, one for each
    job that runs its own code; without it, one a CPU. `job_types`, `connections`: take only these; none:
    whatever it can serve. `imports`: modules to import, by which job types become known.
    `drain_timeout`: seconds for which it waits for its children when it is stopped. `probe`: (host, port)
    of an HTTP probe. With a `DaskExecutor`, the jobs are spread over a Dask cluster: `capacity` is for each
    of its workers, and `processes` for all; without it, as many as the cluster has threads. Raises
    `UsageError` on a number that cannot be. `served_for`: noted in the row of one that serves for another.
    """

    why_stop: Callable[[], str | None] | None = None
    """Asked before each look, in a thread: why the worker shall stop; None: it goes on."""

    def __init__(
        self,
        executor: Any = None,
        heartrate: float | None = None,
        *,
        capacity: int = CAPACITY,
        processes: int | None = None,
        job_types: Sequence[str] = (),
        connections: Sequence[str] = (),
        imports: Sequence[str] = (),
        drain_timeout: float = DRAIN_TIMEOUT_S,
        probe: tuple[str, int] | None = None,
        served_for: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        is_elsewhere = isinstance(executor, WorkerExecutor)
        spec: dict[str, Any] = {"each": capacity, "capacity": 0} if is_elsewhere else {"capacity": capacity}
        if processes is None and not is_elsewhere:
            processes = os.cpu_count() or 1
        if capacity < 0 or (processes is not None and (processes < 0 or capacity + processes == 0)):
            raise UsageError(
                f"A worker for {capacity} monitor jobs and {processes} processes has nothing to do: "
                "give 0 or more of each, and at least one of them."
            )
        if not 0 <= drain_timeout < float("inf"):
            raise UsageError(f"A drain timeout of {drain_timeout} s cannot be kept: give seconds, 0 or more.")
        spec |= {
            "processes": processes,
            "job_types": list(job_types),
            "connections": list(connections),
            "imports": list(imports),
            "drain_timeout": drain_timeout,
            **(served_for or {}),
        }
        super().__init__(executor, heartrate, spec=spec, **kwargs)
        self.probe = probe

    def run(self) -> None:
        """Work until told to stop, by a signal or a kill.

        On SIGTERM, SIGINT or a kill nothing more is taken, the jobs are given back, and children are
        waited for; nothing outside is cancelled. A second signal ends the process at once. Raises
        `JobKilled` after a kill, `JobLost` when others took it for dead, and what `BaseJob.run` raises.
        """
        from jobrunner.worker.loop import Worker
        from jobrunner.worker.probe import Probe
        from jobrunner.worker.stopping import Stop

        for module in (self.spec or {})["imports"]:  # what cannot be had is said before anything is stored
            registry.load_module(module)
        probe, stop = Probe(self.probe), Stop()
        with (
            self._opened(),
            heard_without_loop(stop.on_signal),
            Start(get_database(), self, owner_for(self), is_wanted=lambda: not stop.is_wished) as start,
        ):
            taken = start.take()
            on_started = getattr(self.executor, "on_started", None)
            if on_started is not None:
                on_started(self.id)
            worker = Worker(start.database, start.owner, taken.claim, self, probe, stop)
            start.has_begun()  # and it ends its row itself: an error leaves that to `start`
            state = asyncio.run(worker.run())
        with suppress(DatabaseError, JobNotFound, Late):  # it would hide how the work itself ended
            within(_RELOAD_S, self.reload)
        error = error_of_end(self.id, state, self.message)
        if error is not None:
            raise error

    @contextmanager
    def _opened(self) -> Iterator[None]:
        executor = self.executor
        if not isinstance(executor, WorkerExecutor):
            yield
            return
        executor.open()
        try:
            yield
        finally:
            executor.close()
