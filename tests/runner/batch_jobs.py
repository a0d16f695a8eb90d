"""Jobs of AWS Batch for which all that takes minutes there takes a moment."""

from jobrunner import BatchMonitorJob
from jobrunner.backends.base import Backend, Patience
from jobrunner.backends.batch import BatchBackend, BatchConnection
from jobrunner.settings import ConnectionSettings

SEND_WITHIN_S = 1.0
SIGNATURE_LIFETIME_S = 2.0  # and up to a second more: X-Amz-Date tells whole ones
LISTING_LAG_S = 0.2
ABSENT_AFTER_S = SEND_WITHIN_S + SIGNATURE_LIFETIME_S + 1.0 + LISTING_LAG_S


class QuickBatchJob(BatchMonitorJob, job_type="QuickBatchJob"):
    """A job whose backend has little patience, at an endpoint that is known to check signatures."""

    @classmethod
    def make_backend(cls, connection: ConnectionSettings) -> Backend:
        backend = BatchBackend(
            BatchConnection.of(connection), absent_after_s=ABSENT_AFTER_S, checks_signatures=True
        )
        backend.patience = Patience(call_s=5.0, appear_s=0.4, vanish_s=0.4)
        return backend
