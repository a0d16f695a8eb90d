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

_in_use: dict[str, Backend] = {}


@contextmanager
def use_backend(backend: Backend, connection: str = "memory_default") -> Iterator[None]:
    """Let `MemoryMonitorJob`s of this connection, on any thread, be done by `backend`."""
    before = _in_use.get(connection)
    _in_use[connection] = backend
    try:
        yield
    finally:
        if before is None:
            del _in_use[connection]
        else:
            _in_use[connection] = before


class MemoryMonitorJob(MonitorJob):
    """A job done by whatever backend `use_backend` has put in place. `spec`: a `Plan`'s fields."""

    backend_kind: ClassVar[str] = "memory"
    default_poll_interval: ClassVar[float] = 0.05

    @classmethod
    def make_backend(cls, connection: ConnectionSettings) -> Backend:
        """Return the backend in use for the connection. Raises `SettingsError` outside `use_backend`."""
        name = connection.get("name", "memory_default")
        try:
            return _in_use[name]
        except KeyError:
            raise SettingsError(f"No backend is in use for {name}: put the job into `with use_backend(…)`.") from None
