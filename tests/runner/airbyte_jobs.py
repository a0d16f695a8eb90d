"""Jobs of Airbyte for which all that takes minutes there takes a moment."""

from jobrunner.backends.airbyte import AirbyteBackend, AirbyteConnection
from jobrunner.backends.base import Backend, Patience
from jobrunner.models.airbyte_monitor_job import AirbyteMonitorJob
from jobrunner.settings import ConnectionSettings

DOUBT_S = 0.5
CALL_S = 5.0
"""How long a call may take: one that was under way when its process was stopped for longer is given up."""
SEND_WITHIN_S = 1.0
"""How late a POST may leave in a monitor process: less than a takeover takes."""


class QuickAirbyteJob(AirbyteMonitorJob, job_type="QuickAirbyteJob"):
    """A job whose backend has little patience, and holds nothing for fresh."""

    @classmethod
    def make_backend(cls, connection: ConnectionSettings) -> Backend:
        backend = AirbyteBackend(AirbyteConnection.of(connection), doubt_s=DOUBT_S, fresh_s=0.0)
        backend.patience = Patience(call_s=CALL_S, appear_s=0.4, vanish_s=0.4)
        return backend
