"""`DaskExecutor`: a worker's jobs are spread over a Dask cluster. The database says whose they are."""

from collections.abc import Callable

from jobrunner.errors import UsageError
from jobrunner.executors.dask_cluster import LOCAL, Cluster
from jobrunner.executors.dask_jobs import DaskJobs
from jobrunner.executors.dask_tasks import Sender
from jobrunner.models import BaseJob
from jobrunner.runner import Runner
from jobrunner.settings import configured
from jobrunner.statements import Claim


class DaskExecutor:
    """Spreads the jobs of one worker over the workers of a Dask cluster.

    `address`: the scheduler's, such as `tcp://10.0.0.1:8786`, or `local`: a cluster of processes on this
    machine, which ends with the worker. `on_started` is called with the worker's own id as soon as it
    stands in the database.
    """

    def __init__(self, address: str = LOCAL, *, on_started: Callable[[int], None] | None = None) -> None:
        self.on_started = on_started
        self._address = address
        self._cluster: Cluster | None = None

    def open(self) -> None:
        """Reach the scheduler. Raises `UsageError` where it cannot be reached, or Dask is not installed."""
        self._cluster = Cluster(self._address)

    def code_jobs(self, runner: Runner, claim: Claim, job: BaseJob) -> DaskJobs:
        """Return what spreads the jobs of a worker that has this claim."""
        if self._cluster is None:
            raise UsageError("A Dask cluster is reached by open() first.")
        spec = {"heartrate": job.heartrate, **(job.spec or {})}
        sender = Sender(claim, configured(), tuple(spec["imports"]))
        return DaskJobs(self._cluster, runner.database, sender, spec)

    def close(self) -> None:
        """Give up the connection, and a cluster of our own."""
        if self._cluster is not None:
            self._cluster.close()
