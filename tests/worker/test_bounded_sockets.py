"""The sockets of a worker: the probe's, whatever clients do, and the one to a service manager that hangs."""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest

from jobrunner.database import Database
from jobrunner.worker import probe_server
from jobrunner.worker.probe import Probe
from jobrunner.worker.systemd import Notifier
from tests.runner.support import in_loop, soon
from tests.worker.workers import a_worker


@pytest.fixture
def port() -> Iterator[int]:
    """A probe of a process that is live and not ready."""
    probe = Probe(("127.0.0.1", 0)).answering(lambda: True, lambda: False)
    assert probe.port is not None
    with probe:
        yield probe.port


def ask(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(request)
        answer = b""
        while received := client.recv(4096):
            answer += received
    return answer


def get(port: int, path: str = "/livez") -> bytes:
    return ask(port, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())


def test_it_answers(port: int) -> None:
    assert get(port).startswith(b"HTTP/1.1 200 OK\r\n")
    assert get(port).endswith(b"\r\n\r\nok\n")
    assert get(port, "/readyz?verbose").startswith(b"HTTP/1.1 503 ")
    assert get(port, "/").startswith(b"HTTP/1.1 404 ")
    assert ask(port, b"HEAD /livez HTTP/1.0\r\n\r\n").endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (b"POST /livez HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", b"405"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n\n", b"400"),
        (b"GET /livez\n\n", b"400"),
        (b"\r\n\r\n", b"400"),
        (b"GET /" + b"x" * 100_000, b"431"),
        (b"GET /\xff\xfe HTTP/1.1\r\n\r\n", b"404"),
    ],
    ids=["another method", "TLS", "HTTP 0.9", "nothing", "huge", "odd bytes"],
)
def test_it_survives_whatever_is_sent(port: int, request_: bytes, code: bytes) -> None:
    assert ask(port, request_).startswith(b"HTTP/1.1 " + code)
    assert get(port).startswith(b"HTTP/1.1 200 ")


def test_silent_and_slow_connections_are_bounded_and_keep_no_probe_waiting(port: int) -> None:
    me = psutil.Process()
    with ExitStack() as opened:
        kept = [
            opened.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            for _ in range(200)
        ]
        for client in kept[::2]:
            client.send(b"GET /li")
        threads = threading.active_count()
        assert get(port).startswith(b"HTTP/1.1 200 ")
        # Each has two ends in this process; of the probe's only so many are open.
        assert me.num_fds() < len(kept) + probe_server.CONNECTIONS_MOST + 100
        assert threading.active_count() <= threads


def test_a_silent_connection_is_closed(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_server, "REQUEST_S", 0.1)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        assert client.recv(1) == b""


@pytest.fixture
def full_receiver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The socket of a service manager that does not read, and whose queue is full."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            with suppress(BlockingIOError):
                while sender.sendto(b"x", str(tmp_path / "notify")):
                    pass
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield receiver


@in_loop
async def test_a_service_manager_that_does_not_read_holds_up_no_worker(
    database: Database, full_receiver: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    async with a_worker(database) as working:
        await soon(lambda: working.worker._rounds > 5)
        beat = working.row()["latest_heartbeat"]
        await soon(lambda: working.row()["latest_heartbeat"] > beat)


def test_what_was_dropped_is_said_when_there_is_room(full_receiver: socket.socket) -> None:
    notifier = Notifier(lambda: True)
    notifier.ready("watching 0 jobs")
    full_receiver.setblocking(False)
    with suppress(BlockingIOError):
        while full_receiver.recv(100) == b"x":
            pass
    notifier.ready("watching 0 jobs")
    assert full_receiver.recv(100) == b"READY=1\nSTATUS=watching 0 jobs"
    notifier.ready("watching 0 jobs")
    with pytest.raises(BlockingIOError):
        full_receiver.recv(100)
