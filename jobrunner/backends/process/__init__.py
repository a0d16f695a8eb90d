"""Commands on this host, each under a small wrapper that outlives whoever submitted it."""

from jobrunner.backends.process.backend import ProcessBackend, log_path
from jobrunner.backends.process.spec import ProcessSpec

__all__ = ["ProcessBackend", "ProcessSpec", "log_path"]
