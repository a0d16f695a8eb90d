"""Armada, by armada-client (the extra `armada`): the backend of `ArmadaMonitorJob`."""

from jobrunner.backends.armada.backend import ArmadaBackend
from jobrunner.backends.armada.connection import ArmadaConnection
from jobrunner.backends.armada.ids import JobKey

__all__ = ["ArmadaBackend", "ArmadaConnection", "JobKey"]
