"""`WorkerJob`: a process that takes queued jobs and orphans, and runs them to their end."""

from jobrunner.worker.job import WorkerJob

__all__ = ["WorkerJob"]
