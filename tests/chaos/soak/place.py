"""A worker on a thread of the process that is soaked."""

import threading
from typing import Any, Self

from jobrunner.worker import WorkerJob
from tests.chaos.processes import free_port
from tests.chaos.soak.jobs import KINDS_MODULE

_ENDS_WITHIN_S = 240.0


class Place:
    """A worker on a thread of this process; as a context it works."""

    def __init__(self, name: str, **options: Any) -> None:
        self.port = free_port()
        self._why_stop: str | None = None
        self._error: BaseException | None = None
        self._job = WorkerJob(
            name=name,
            heartrate=1.0,
            processes=1,
            probe=("127.0.0.1", self.port),
            imports=[KINDS_MODULE],
            **options,
        )
        self._job.why_stop = lambda: self._why_stop
        self._thread = threading.Thread(target=self._run, name=f"place of {name}")

    def _run(self) -> None:
        try:
            self._job.run()
        except BaseException as error:  # noqa: BLE001  # raised by `check`
            self._error = error

    def check(self) -> None:
        """Raise what it has ended by."""
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._why_stop = "it has worked for long enough"
        self._thread.join(_ENDS_WITHIN_S)
        assert not self._thread.is_alive(), "a worker does not end"
        self.check()
