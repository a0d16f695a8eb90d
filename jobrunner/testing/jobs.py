"""`MemoryMonitorJob`: a monitor job whose outside is a `MemoryBackend` of your test.

outside = MemoryBackend(plan=Plan(run_for_s=0.2))
with use_backend(outside):
    MemoryMonitorJob().run()
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from jobrunner.backends.base import Backend
from jobrunner.errors import SettingsError
from jobrunner.models import MonitorJob
from jobrunner.settings import ConnectionSettings

_in_use: list[Backend] = []


@contextmanager
def use_backend(backend: Backend) -> Iterator[None]:
    """Let the `MemoryMonitorJob`s of this process, on any thread, be done by `backend` meanwhile."""
    _in_use.append(backend)
    try:
        yield
    finally:
        _in_use.remove(backend)


class MemoryMonitorJob(MonitorJob):
    """A job done by the backend that `use_backend` has put in place last. `spec`: a `Plan`'s fields."""

    backend_kind: ClassVar[str] = "memory"
    default_poll_interval: ClassVar[float] = 0.05

    @classmethod
    def make_backend(cls, connection: ConnectionSettings) -> Backend:  # noqa: ARG003  # the test's, not a setting's
        """Return the backend in use. Raises `SettingsError` outside `use_backend`."""
        if not _in_use:
            raise SettingsError("No backend is in use: put the job into `with use_backend(backend):`.")
        return _in_use[-1]
