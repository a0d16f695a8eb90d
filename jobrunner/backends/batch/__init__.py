"""AWS Batch, by boto3 (the extra `aws`): the backend of `BatchMonitorJob`, and `BatchClient` for one job."""

from jobrunner.backends.batch.backend import BatchBackend
from jobrunner.backends.batch.client import BatchClient
from jobrunner.backends.batch.connection import BatchConnection
from jobrunner.backends.batch.waiters import BatchWaiters

__all__ = ["BatchBackend", "BatchClient", "BatchConnection", "BatchWaiters"]
