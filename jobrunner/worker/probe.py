"""An HTTP probe: /livez and /readyz answer 200 or 503, from a thread that no job can hold up."""

import socket
import threading
from collections.abc import Callable, Mapping
from typing import Self

from jobrunner.errors import UsageError
from jobrunner.worker.probe_server import Answer, ProbeServer

LIVE, READY = "/livez", "/readyz"

_NOT_FOUND = Answer(404, "Not Found", "ask for /livez or /readyz\n")
_WELL = Answer(200, "OK", "ok\n")
_NOT_WELL = Answer(503, "Service Unavailable", "not ok\n")


class Probe:
    """Listens at (host, port) from its making on, and answers while it is entered; None: nowhere.

    Raises `UsageError` where it cannot listen.
    """

    def __init__(self, address: tuple[str, int] | None) -> None:
        self._answers: Mapping[str, Callable[[], bool]] = {}
        self._listener: socket.socket | None = None
        self._server: ProbeServer | None = None
        if address is None:
            return
        host, port = address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._listener = socket.create_server(address, family=family)
        except OSError as error:
            why = error.strerror or error
            raise UsageError(f"The probe cannot listen on {host}:{port}: {why}.") from error

    def answering(self, is_live: Callable[[], bool], is_ready: Callable[[], bool]) -> Self:
        """Let these two say whether all is well."""
        self._answers = {LIVE: is_live, READY: is_ready}
        return self

    def ask(self, path: str) -> bool | None:
        """Return what is answered at this path; None: nothing."""
        answer = self._answers.get(path)
        return None if answer is None else answer()

    @property
    def port(self) -> int | None:
        """The port on which it answers."""
        return None if self._listener is None else self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        if self._listener is not None:
            self._server = ProbeServer(self._listener, self._answer)
            threading.Thread(target=self._server.serve, name="jobrunner-probe", daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._server is not None:
            self._server.close()

    def _answer(self, path: str) -> Answer:
        is_well = self.ask(path)
        return _NOT_FOUND if is_well is None else _WELL if is_well else _NOT_WELL
