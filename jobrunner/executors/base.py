"""What an executor is: it decides where a job's work happens, and gives `executor_class` its name."""

from collections.abc import Container, Mapping, Sized
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from jobrunner.resources import NONE
from jobrunner.statements import Claim, Sighting

if TYPE_CHECKING:
    from jobrunner.models import BaseJob, MonitorJob
    from jobrunner.runner import Runner


@runtime_checkable
class Executor(Protocol):
    """Runs monitor jobs. An object without this method may still lend its class's name to a job."""

    def run_monitor_job(self, job: "MonitorJob") -> None:
        """Run a job that is not stored yet, or queued, to its end.

        Raises `JobFailed`, `JobKilled` or `JobLost` as it ended, `Released` when told to stop first.
        """
        ...


class JobIds(Sized, Container[int], Protocol):
    """Jobs, by their ids."""

    def keys(self) -> Any:
        """Return the ids."""
        ...


class CodeJobs(Protocol):
    """The jobs with code of their own that a worker has started, wherever their code runs.

    What is started claims its job itself, and beats for it.
    """

    @property
    def by_job(self) -> JobIds:
        """The jobs that were started here and have not ended."""
        ...

    @property
    def held(self) -> AbstractSet[int]:
        """Those whose processes are ours: while they run, silence makes none of them an orphan."""
        ...

    @property
    def free(self) -> int:
        """How many more may be started now."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether any can be started at present."""
        ...

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to wait for."""
        ...

    def why_not(self, resources: Mapping[str, float]) -> str | None:
        """Return why no job that asks for these resources can be run at present; None: it can."""
        ...

    def has_room_for(self, resources: Mapping[str, float]) -> bool:
        """Whether one more job that asks for these can be started now."""
        ...

    def is_resting(self, job_id: int) -> bool:
        """Whether a job could not be started, and not long ago."""
        ...

    def resting(self) -> list[int]:
        """Return the jobs that could not be started, and not long ago."""
        ...

    def failed(self) -> list[int]:
        """Return the jobs that could not be started, also those that may be tried again."""
        ...

    async def start(
        self, job_id: int, orphan: Sighting | None = None, resources: Mapping[str, float] = NONE
    ) -> None:
        """Start a queued job, or an orphan as it was sighted; twice asked for the same, once."""
        ...

    async def look(self) -> None:
        """Look after those that run. Raises `DatabaseError`."""
        ...

    async def wait(self, timeout_s: float) -> bool:
        """Start nothing more, and wait until all have ended; False: some go on."""
        ...

    def leave(self) -> None:
        """Leave those that still run to themselves: each beats for its own job, and ends it."""
        ...

    def message(self, jobs: int) -> str:
        """Return what the worker that watches so many jobs says of itself."""
        ...

    def detail(self) -> dict[str, Any]:
        """Return what the worker's row tells besides."""
        ...


@runtime_checkable
class WorkerExecutor(Protocol):
    """An executor that has its own place for a worker's jobs: other machines than the worker's."""

    def open(self) -> None:
        """Reach those machines. Raises `UsageError` where that cannot be."""
        ...

    def code_jobs(self, runner: "Runner", claim: Claim, job: "BaseJob") -> CodeJobs:
        """Return what runs the code jobs of a worker that has this claim, on the running event loop."""
        ...

    def close(self) -> None:
        """Give up the way to them."""
        ...


def counted(count: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun, as in "1 job" and "1,204 jobs"."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"
