"""jobrunner runs and watches long jobs, each of them a database row with a heartbeat.

The public names are imported when they are first used: `import jobrunner` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobrunner.errors import (
        ClaimLost,
        DatabaseError,
        DatabaseUnavailable,
        JobFailed,
        JobKilled,
        JobLost,
        JobNotFound,
        JobrunnerError,
        NotOwner,
        Released,
        SchemaError,
        SettingsError,
        SpecError,
        UsageError,
        WaitTimeout,
    )
    from jobrunner.executors.local import LocalExecutor
    from jobrunner.models import (
        AirbyteMonitorJob,
        ArmadaMonitorJob,
        BaseJob,
        BatchMonitorJob,
        JobEvent,
        MonitorJob,
        ProcessMonitorJob,
    )
    from jobrunner.settings import configure, get_settings
    from jobrunner.states import JobState, Phase
    from jobrunner.worker import WorkerJob

_HOMES = {
    "jobrunner.errors": (
        *("ClaimLost", "DatabaseError", "DatabaseUnavailable", "JobFailed", "JobKilled", "JobLost"),
        *("JobNotFound", "JobrunnerError", "NotOwner", "Released", "SchemaError", "SettingsError"),
        *("SpecError", "UsageError", "WaitTimeout"),
    ),
    "jobrunner.executors.local": ("LocalExecutor",),
    "jobrunner.models": (
        *("AirbyteMonitorJob", "ArmadaMonitorJob", "BaseJob", "BatchMonitorJob", "JobEvent"),
        *("MonitorJob", "ProcessMonitorJob"),
    ),
    "jobrunner.settings": ("configure", "get_settings"),
    "jobrunner.states": ("JobState", "Phase"),
    "jobrunner.worker": ("WorkerJob",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AirbyteMonitorJob",
    "ArmadaMonitorJob",
    "BaseJob",
    "BatchMonitorJob",
    "ClaimLost",
    "DatabaseError",
    "DatabaseUnavailable",
    "JobEvent",
    "JobFailed",
    "JobKilled",
    "JobLost",
    "JobNotFound",
    "JobState",
    "JobrunnerError",
    "LocalExecutor",
    "MonitorJob",
    "NotOwner",
    "Phase",
    "ProcessMonitorJob",
    "Released",
    "SchemaError",
    "SettingsError",
    "SpecError",
    "UsageError",
    "WaitTimeout",
    "WorkerJob",
    "configure",
    "get_settings",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("jobrunner")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'jobrunner' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
