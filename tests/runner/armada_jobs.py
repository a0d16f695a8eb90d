"""Jobs of Armada for which all that takes a minute there takes a moment."""

from jobrunner.backends.armada import ArmadaBackend, ArmadaConnection
from jobrunner.backends.base import Backend, Patience
from jobrunner.models.armada_monitor_job import ArmadaMonitorJob
from jobrunner.settings import ConnectionSettings

RESOURCES = {"cpu": "500m", "memory": "1Gi"}
POD = {
    "containers": [
        {"name": "main", "image": "busybox", "resources": {"requests": RESOURCES, "limits": RESOURCES}}
    ]
}


class QuickArmadaJob(ArmadaMonitorJob, job_type="QuickArmadaJob"):
    """A job whose backend has little patience."""

    @classmethod
    def make_backend(cls, connection: ConnectionSettings) -> Backend:
        backend = ArmadaBackend(ArmadaConnection.of(connection), settle_s=0.5)
        backend.patience = Patience(call_s=5.0, appear_s=0.4, vanish_s=0.4)
        return backend
