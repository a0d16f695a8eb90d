"""An HTTP probe: /livez and /readyz answer 200 or 503, from a thread that no job can hold up."""

import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from jobrunner.errors import UsageError

LIVE, READY = "/livez", "/readyz"


class Probe:
    """Listens at (host, port) from its making on, and answers while it is entered; None: nowhere.

    Raises `UsageError` where it cannot listen.
    """

    def __init__(self, address: tuple[str, int] | None) -> None:
        self._answers: Mapping[str, Callable[[], bool]] = {}
        self._server: ThreadingHTTPServer | None = None
        if address is None:
            return
        try:
            self._server = ThreadingHTTPServer(address, _handler(self))
        except OSError as error:
            host, port = address
            why = error.strerror or error
            raise UsageError(f"The probe cannot listen on {host}:{port}: {why}.") from error
        self._server.daemon_threads = True

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
        return None if self._server is None else self._server.server_address[1]

    def __enter__(self) -> Self:
        if self._server is not None:
            threading.Thread(target=self._server.serve_forever, name="jobrunner-probe", daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()


def _handler(probe: Probe) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "jobrunner", ""

        def do_GET(self) -> None:
            is_well = probe.ask(self.path.partition("?")[0])
            code, words = {
                None: (404, b"ask for /livez or /readyz\n"),
                True: (200, b"ok\n"),
                False: (503, b"not ok\n"),
            }[is_well]
            self.send_response(code)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Content-Length", str(len(words)))
            self.end_headers()
            self.wfile.write(words)

        def log_message(self, *_args: Any) -> None:
            """Say nothing: a probe asks every few seconds."""

    return Handler
