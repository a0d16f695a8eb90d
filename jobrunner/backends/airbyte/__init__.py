"""Airbyte, by its public API and httpx (the extra `airbyte`): the backend of `AirbyteMonitorJob`."""

from jobrunner.backends.airbyte.backend import AirbyteBackend
from jobrunner.backends.airbyte.connection import AirbyteConnection

__all__ = ["AirbyteBackend", "AirbyteConnection"]
