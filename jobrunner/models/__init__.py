"""The jobs: `BaseJob`, `MonitorJob`, the monitor jobs of each backend, and `JobEvent`."""

from jobrunner.models.airbyte_monitor_job import AirbyteMonitorJob
from jobrunner.models.armada_monitor_job import ArmadaMonitorJob
from jobrunner.models.base_job import BaseJob, UnknownJob
from jobrunner.models.batch_monitor_job import BatchMonitorJob
from jobrunner.models.job_event import JobEvent
from jobrunner.models.monitor_job import MonitorJob
from jobrunner.models.process_monitor_job import ProcessMonitorJob

__all__ = [
    "AirbyteMonitorJob",
    "ArmadaMonitorJob",
    "BaseJob",
    "BatchMonitorJob",
    "JobEvent",
    "MonitorJob",
    "ProcessMonitorJob",
    "UnknownJob",
]
