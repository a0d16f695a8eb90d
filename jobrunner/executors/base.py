"""What an executor is: it decides where a job's work happens, and gives `executor_class` its name."""

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from jobrunner.models import MonitorJob


@runtime_checkable
class Executor(Protocol):
    """Runs monitor jobs. An object without this method may still lend its class's name to a job."""

    def run_monitor_job(self, job: "MonitorJob") -> None:
        """Run a job that is not stored yet, or queued, to its end.

        Raises `JobFailed`, `JobKilled` or `JobLost` as it ended, `Released` when told to stop first.
        """
        ...
