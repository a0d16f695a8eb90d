"""Airbyte's public API over real HTTP, in threads of the test, with the habits of a self-hosted server.

    with serving() as stub:
        stub.url  # http://127.0.0.1:40123/api/public/v1

By hand: python -m tests.stubs.airbyte_server --port 8000
"""

import argparse
import base64
import json
import socket
import struct
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qsl, urlsplit

from tests.stubs.airbyte_jobs import CONNECTION, WORKSPACE, AirbyteJobs, Refused, StubJob

__all__ = ["CONNECTION", "WORKSPACE", "AirbyteStub", "serving"]

PREFIX = "/api/public/v1"
HTML = "<!doctype html><html><body>Airbyte</body></html>"

Operation = Literal["token", "get", "list", "post", "delete", "connection", "reasons", "*"]
# fmt: off
FaultKind = Literal[
    "throttled", "server_error", "bad_gateway", "html", "unauthorized", "forbidden", "not_json",
    "lost_answer", "dropped", "hang", "redirect",
]
# fmt: on
"""lost_answer: done, never answered. dropped: neither. hang: done after `seconds`, whoever still waits."""


@dataclass(slots=True)
class Call:
    """A request that arrived."""

    operation: str
    method: str
    path: str
    query: dict[str, str]
    body: Any
    content_type: str
    authorization: str
    at_s: float
    status: int = 0


@dataclass(slots=True)
class _Fault:
    operation: str
    kind: str
    left: float
    seconds: float
    retry_after: str
    said: Any = None
    status: int = 200


class AirbyteStub(AirbyteJobs):
    """The jobs, and how badly they are served.

    Attributes that a test sets at any time, besides those of `AirbyteJobs`: `auth` (client, bearer, basic or
    none); `token_takes` (json, form or both); `token_life_s`, what `expires_in` says, and `jwt_life_s`, what
    the token itself says and the server keeps to; `post_takes_s`, `cancel_takes_s`; `delay_s` before each
    answer; `has_config_api`; `lists_need_workspaces`; `lists_unknown_connections`, as if they had no jobs;
    `knows_queued`; `sends_date`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.url = ""
        self.root = ""
        self.auth: Literal["client", "bearer", "basic", "none"] = "client"
        self.client_id, self.client_secret = "the-client", "hunter2"
        self.token_takes: Literal["json", "form", "both"] = "both"
        self.token_life_s = 900.0
        self.jwt_life_s: float | None = None
        self.post_takes_s = 0.0
        self.cancel_takes_s = 0.0
        self.delay_s = 0.0
        self.has_config_api = True
        self.lists_need_workspaces = False
        self.knows_queued = True
        self.sends_date = True
        self.lists_unknown_connections = True
        self.calls: list[Call] = []
        self.max_concurrency = 0
        self._concurrency = 0
        self._faults: list[_Fault] = []
        self._tokens: dict[str, float] = {}
        self._threads = threading.Semaphore(5)
        self.stopping = threading.Event()

    def fault(
        self,
        operation: Operation,
        kind: FaultKind,
        times: int | None = 1,
        *,
        seconds: float = 0.0,
        retry_after: str = "",
    ) -> None:
        """Serve an operation badly so many times (None: until cleared)."""
        left = float("inf") if times is None else times
        with self.lock:
            self._faults.append(_Fault(operation, kind, left, seconds, retry_after))

    def say(
        self,
        operation: Operation,
        said: Any,
        times: int | None = 1,
        *,
        status: int = 200,
        content_type: str = "application/json",
        performs: bool = False,
    ) -> None:
        """Answer so many times with this JSON, or this text, in which AUTHORIZATION is what let one in.

        `performs`: what was asked for is done besides.
        """
        left = float("inf") if times is None else times
        text = said if isinstance(said, str) else json.dumps(said)
        kind = "performed" if performs else "said"
        with self.lock:
            fault = _Fault(operation, kind, left, 0.0, "", (text, content_type), status)
            self._faults.append(fault)

    def clear_faults(self) -> None:
        with self.lock:
            self._faults.clear()

    def expire_tokens(self) -> None:
        """Let no token in that was given out so far."""
        with self.lock:
            self._tokens.clear()

    def counts(self) -> dict[str, int]:
        """Return how many requests of each operation arrived."""
        with self.lock:
            return dict(Counter(call.operation for call in self.calls))

    def forget_calls(self) -> None:
        with self.lock:
            self.calls = []

    # Serving

    def next_fault(self, operation: str) -> _Fault | None:
        with self.lock:
            for fault in self._faults:
                if fault.operation in {operation, "*"}:
                    fault.left -= 1
                    if fault.left <= 0:
                        self._faults.remove(fault)
                    return fault
        return None

    def enter(self) -> None:
        """Take one of the five threads of the public API."""
        self._threads.acquire()
        with self.lock:
            self._concurrency += 1
            self.max_concurrency = max(self.max_concurrency, self._concurrency)

    def leave(self) -> None:
        """Give it back."""
        with self.lock:
            self._concurrency -= 1
        self._threads.release()

    def wait(self, seconds: float) -> None:
        self.stopping.wait(seconds)

    def perform(self, call: Call) -> Any:
        """Do what was asked, and return what is said. Raises `Refused`."""
        if call.operation != "token":
            self._ensure_let_in(call)
        doing = {
            "token": self._token,
            "list": lambda call: self._list(call.query),
            "get": lambda call: self.shown(self.get(_id_of(call))),
            "post": self._post,
            "delete": self._delete,
            "connection": self._connection,
            "reasons": self._reasons,
        }.get(call.operation)
        if doing is None:
            raise Refused(404, "Not Found", "Page Not Found")
        return doing(call)

    def _post(self, call: Call) -> dict[str, Any]:
        self.wait(self.post_takes_s)
        return self.shown(self._start(call.body))

    def _delete(self, call: Call) -> dict[str, Any]:
        self.wait(self.cancel_takes_s)
        return self.shown(self.cancel(_id_of(call)))

    def _connection(self, call: Call) -> dict[str, Any]:
        connection_id = call.path.rpartition("/")[2]
        return {
            "connectionId": connection_id,
            "workspaceId": self.workspace_of(connection_id),
            "name": "orders",
        }

    def _reasons(self, call: Call) -> dict[str, Any]:
        if not self.has_config_api:
            raise Refused(404, "Not Found", "Page Not Found")
        job = self.get(int(call.body["id"]))
        summary = {"failures": job.failures} if job.failures else None
        return {"job": {"id": job.id}, "attempts": [{"attempt": {"failureSummary": summary}}]}

    def _start(self, body: Any) -> StubJob:
        if not isinstance(body, dict) or body.keys() - {"connectionId", "jobType"}:
            raise Refused(400, "bad-request", "unknown property")
        if body.get("jobType") not in {"sync", "reset", "refresh", "clear"}:
            raise Refused(
                422, "unprocessable-entity", "jobType: not one of the values accepted for Enum class"
            )
        try:
            return self.start(str(uuid.UUID(body["connectionId"])), body["jobType"])
        except ValueError:
            raise Refused(400, "bad-request", "connectionId: is no UUID") from None

    def _list(self, query: dict[str, str]) -> dict[str, Any]:
        limit, offset = int(query.get("limit", 20)), int(query.get("offset", 0))
        if not 1 <= limit <= 100:
            raise Refused(400, "bad-request", "limit must be between 1 and 100")
        if "connectionId" in query and not self.lists_unknown_connections:
            self.ensure_known(query["connectionId"])
        if query.get("status") == "queued" and not self.knows_queued:
            raise Refused(400, "bad-request", "status: unknown value queued")
        if self.lists_need_workspaces and not query.get("workspaceIds") and not query.get("connectionId"):
            raise Refused(403, "forbidden", "workspaceIds must be given")
        jobs = self.listed(query)
        found: dict[str, Any] = {"data": [self.shown(job) for job in jobs[offset : offset + limit]]}
        if offset + limit < len(jobs):  # the link has lost the filters
            found["next"] = f"{self.url}/jobs?limit={limit}&offset={offset + limit}"
        found["previous"] = ""
        return found

    # Being let in

    def _token(self, call: Call) -> dict[str, Any]:
        is_json = "json" in call.content_type
        if self.token_takes == ("form" if is_json else "json"):
            raise Refused(415, "unsupported-media-type", f"{call.content_type} is not supported")
        sent = call.body if isinstance(call.body, dict) else {}
        if sent.get("client_id") != self.client_id or sent.get("client_secret") != self.client_secret:
            raise Refused(401, "unauthorized", "Invalid client credentials")
        now = self.now()
        life_s = self.token_life_s if self.jwt_life_s is None else self.jwt_life_s
        claims = {"exp": now + life_s, "iat": now, "jti": uuid.uuid4().hex}
        parts = (json.dumps(part).encode() for part in ({"alg": "none"}, claims, {}))
        token = ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)
        with self.lock:
            self._tokens[token] = time.monotonic() + life_s
        return {"access_token": token, "token_type": "Bearer", "expires_in": int(self.token_life_s)}

    def _ensure_let_in(self, call: Call) -> None:
        kind, _, sent = call.authorization.partition(" ")
        with self.lock:
            good_until_s = self._tokens.get(sent, 0.0)
        is_in = {
            "none": True,
            "basic": kind == "Basic" and base64.b64decode(sent) == b"ana:hunter2",
            "bearer": call.authorization == "Bearer hunter2",
            "client": kind == "Bearer" and good_until_s > time.monotonic(),
        }
        if not is_in[self.auth]:
            raise Refused(401, "unauthorized", "Unauthorized")


def _id_of(call: Call) -> int:
    try:
        return int(call.path.rpartition("/")[2])
    except ValueError:
        raise Refused(400, "bad-request", "the id is no number") from None


def _query_of(text: str) -> dict[str, str]:
    """Return the query; of a list, which has its name several times, the values with commas between."""
    found: dict[str, str] = {}
    for key, value in parse_qsl(text, keep_blank_values=True):
        found[key] = f"{found[key]},{value}" if key in found else value
    return found


def _operation_of(method: str, path: str) -> str:
    if path == "/api/v1/jobs/get_without_logs":
        return "reasons"
    below = path.removeprefix(PREFIX)
    if below == path:
        return "page"
    if (method, below) == ("POST", "/applications/token"):
        return "token"
    if below.startswith("/connections/"):
        return "connection"
    if below.startswith("/jobs/"):
        return {"GET": "get", "DELETE": "delete"}.get(method, "page")
    return {("GET", "/jobs"): "list", ("POST", "/jobs"): "post"}.get((method, below), "nothing")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    stub: AirbyteStub
    is_in = False

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def _serve(self) -> None:
        try:
            call = self._read()
            if call.operation == "page":  # the web application answers every path with itself
                self._send(200, HTML, "text/html")
                return
            self.stub.enter()
            self.is_in = True
            self.stub.wait(self.stub.delay_s)
            self._answer(call)
        except (ConnectionError, ValueError):  # the client gave up
            self.close_connection = True
        finally:
            self._leave()

    def _leave(self) -> None:
        if self.is_in:
            self.is_in = False
            self.stub.leave()

    def _read(self) -> Call:
        parts = urlsplit(self.path)
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        content_type = self.headers.get("Content-Type") or ""
        body: Any = None
        if text:
            body = dict(parse_qsl(text)) if "form" in content_type else json.loads(text)
        call = Call(
            _operation_of(self.command, parts.path),
            self.command,
            parts.path,
            _query_of(parts.query),
            body,
            content_type,
            self.headers.get("Authorization") or "",
            time.monotonic(),
        )
        with self.stub.lock:
            self.stub.calls.append(call)
        return call

    def _answer(self, call: Call) -> None:
        fault = self.stub.next_fault(call.operation)
        kind = fault.kind if fault is not None else None
        if fault is not None and kind in {"said", "performed"}:
            if kind == "performed":
                self.stub.perform(call)
            call.status = fault.status
            text, content_type = fault.said
            text = text.replace("AUTHORIZATION", call.authorization.partition(" ")[2])
            self._send(fault.status, text, content_type)
            return
        if fault is not None and kind == "hang":
            self.stub.wait(fault.seconds)
        if fault is not None and kind not in {"lost_answer", "hang"}:
            self._answer_badly(call, fault)
            return
        try:
            status, said = 200, self.stub.perform(call)
        except Refused as error:
            status = error.status
            said = {
                "status": status,
                "type": f"https://reference.airbyte.com/reference/errors#{error.title}",
                "title": error.title,
                "detail": "The request could not be processed.",
                "data": {"message": error.message},
            }
        if kind == "lost_answer":
            self._drop()
            return
        call.status = status
        self._send(status, json.dumps(said), "application/json")

    def _answer_badly(self, call: Call, fault: _Fault) -> None:
        problem = json.dumps({"title": fault.kind, "message": f"the server says {fault.kind}"})
        answers = {
            "throttled": (429, problem, "application/json"),
            "server_error": (500, problem, "application/json"),
            "bad_gateway": (502, HTML, "text/html"),
            "html": (200, HTML, "text/html"),
            "unauthorized": (401, problem, "application/json"),
            "forbidden": (403, problem, "application/json"),
            "not_json": (200, "all is well", "text/plain"),
            "redirect": (302, "", "text/plain"),
        }
        if fault.kind not in answers:
            self._drop()
            return
        status, text, content_type = answers[fault.kind]
        call.status = status
        self._send(status, text, content_type, retry_after=fault.retry_after)

    def _send(self, status: int, text: str, content_type: str, *, retry_after: str = "") -> None:
        body = text.encode()
        lines = [f"HTTP/1.1 {status} X", f"Content-Type: {content_type}", f"Content-Length: {len(body)}"]
        if self.stub.sends_date:
            lines.append(f"Date: {formatdate(self.stub.now(), usegmt=True)}")
        if retry_after:
            lines.append(f"Retry-After: {retry_after}")
        if status == 302:
            lines.append("Location: https://login.example/")
        self._leave()  # before the answer: whoever has it may ask again at once
        self.wfile.write("\r\n".join([*lines, "", ""]).encode() + body)

    def _drop(self) -> None:
        self.close_connection = True
        # Closed with nothing said: a reset.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


@contextmanager
def serving(port: int = 0) -> Iterator[AirbyteStub]:
    """Serve an Airbyte on the loopback."""
    stub = AirbyteStub()
    handler = type("Handler", (_Handler,), {"stub": stub})
    server = _Server(("127.0.0.1", port), handler)
    stub.root = f"http://127.0.0.1:{server.server_address[1]}"
    stub.url = f"{stub.root}{PREFIX}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        stub.stopping.set()
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000)
    with serving(parser.parse_args().port) as served:
        sys.stdout.write(f"{served.url} (client {served.client_id}, secret {served.client_secret})\n")
        sys.stdout.flush()
        threading.Event().wait()
