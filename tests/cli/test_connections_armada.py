"""`jobrunner connections test` over the ways to Armada: what works, and a sentence for what does not."""

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import grpc
import pytest

from jobrunner.backends.armada.jobservice import jobservice_pb2 as wire
from tests.backends.test_armada_connection import Authority
from tests.cli.conftest import CommandLine
from tests.stubs.armada_server import ArmadaStub, serving
from tests.stubs.http2_proxy import answering
from tests.stubs.jobservice_server import serving as serving_job_service
from tests.stubs.jobservice_server import serving_nothing

NOBODY = "127.0.0.1:9"


@pytest.fixture
def armada() -> Iterator[ArmadaStub]:
    with serving() as stub:
        yield stub


def connect(jobrunner: CommandLine, url: str, **options: object) -> None:
    """Let the connection `here` lead to this address."""
    lines = [f'{key} = "{value}"' for key, value in {"kind": "armada", "url": url, **options}.items()]
    (jobrunner.directory / "jobrunner.toml").write_text("\n".join(["[connections.here]", *lines]))


def works(jobrunner: CommandLine, sentence: str) -> bool:
    answer = jobrunner("connections", "test", "here")
    assert (answer.code, answer.out, answer.words) == (0, f"here: ok: {sentence}\n", "")
    found = jobrunner("connections", "test", "here", "--json").json
    assert (found["ok"], found["message"]) == (True, sentence)
    return True


def fails(jobrunner: CommandLine, *parts: str) -> bool:
    answer = jobrunner("connections", "test", "here")
    assert (answer.code, answer.out) == (1, ""), answer
    assert len(answer.words.splitlines()) == 1, answer
    return answer.says("here: ", *parts)


@contextmanager
def another_server(handler: type[socketserver.BaseRequestHandler]) -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_words: object) -> None:
        """Say nothing."""


def test_a_connection_that_works_is_ok(jobrunner: CommandLine, armada: ArmadaStub) -> None:
    connect(jobrunner, armada.address)
    assert works(jobrunner, f"Armada answered GetJobStatus at {armada.address}, without TLS")
    assert armada.jobs == {}
    assert not jobrunner.database.exists()


def test_where_nobody_listens_is_told(jobrunner: CommandLine) -> None:
    connect(jobrunner, NOBODY)
    assert fails(jobrunner, f"{NOBODY} cannot be reached for GetJobStatus", "refused")


def test_a_web_server_is_told(jobrunner: CommandLine) -> None:
    with another_server(Page) as url:
        connect(jobrunner, url)
        assert fails(
            jobrunner, f"{url} answered GetJobStatus, but not as Armada does", "the server's gRPC port"
        )


def test_another_grpc_server_is_told(jobrunner: CommandLine) -> None:
    with serving_nothing() as url:
        connect(jobrunner, url)
        assert fails(jobrunner, "not as Armada does", "the server's gRPC port")


def test_a_proxy_without_armada_behind_it_is_told(jobrunner: CommandLine) -> None:
    with answering(503) as url:
        connect(jobrunner, url)
        assert fails(jobrunner, f"a proxy before {url} could not pass on GetJobStatus", "503")


@pytest.mark.parametrize(
    "credentials", [{"token": "hush"}, {"username": "ana", "password": "hush"}], ids=["bearer", "basic"]
)
def test_wrong_credentials_are_told_and_not_shown(
    jobrunner: CommandLine, armada: ArmadaStub, credentials: dict[str, str]
) -> None:
    armada.authorization = "Bearer another"
    connect(jobrunner, armada.address, **credentials)
    assert fails(jobrunner, "Armada refused the credentials for GetJobStatus", "***")
    answer = jobrunner("connections", "test", "here")
    assert not [secret for secret in ("hush", "YW5hOmh1c2g=") if secret in answer.words]
    armada.authorization = "Bearer hush"
    if "token" in credentials:
        assert works(jobrunner, f"Armada answered GetJobStatus at {armada.address}, without TLS")


def test_a_server_that_is_not_trusted_is_told(jobrunner: CommandLine, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("server")
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
    with serving(credentials=credentials) as stub:
        connect(jobrunner, stub.address, tls="true")
        assert fails(jobrunner, "cannot be reached for GetJobStatus", "look at `tls`, `ca_file` and the port")
        connect(jobrunner, stub.address, tls="true", ca_file=authority.ca_file)
        assert works(jobrunner, f"Armada answered GetJobStatus at {stub.address}, with TLS")
        (tmp_path / "no.pem").write_text("not a certificate")
        connect(jobrunner, stub.address, tls="true", ca_file=tmp_path / "no.pem")
        assert fails(jobrunner, "look at `tls`, `ca_file` and the port")


def test_a_silent_server_is_not_waited_for_longer_than_its_deadline(
    jobrunner: CommandLine, armada: ArmadaStub
) -> None:
    armada.fault("GetJobStatus", hangs_s=60)
    connect(jobrunner, armada.address, call_timeout_s="0.5")
    assert fails(jobrunner, "gave no answer to GetJobStatus within 0.5 s")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"url": "http://armada.example:50051"}, "'url' must be HOST:PORT"),
        ({"url": "a:1", "urll": "b:1"}, "there is no 'urll'"),
        ({"url": "a:1", "token": "x y\\nz"}, "'token' is no token"),
        ({"url": "a:1", "token_file": "/nowhere/token"}, "there is no file /nowhere/token"),
        ({"kind": "armada-jobservice", "url": "a"}, "A connection of kind armada-jobservice is wrong"),
    ],
)
def test_a_wrong_setting_is_bad_input(jobrunner: CommandLine, options: dict[str, str], words: str) -> None:
    connect(jobrunner, **options)
    assert jobrunner("connections", "test", "here").is_refused(words)


# --- the old JobService ------------------------------------------------------------------------------


def test_a_job_service_that_serves_is_ok_and_says_that_it_only_watches(jobrunner: CommandLine) -> None:
    with serving_job_service() as service:
        connect(jobrunner, service.address, kind="armada-jobservice")
        sentence = f"the Armada JobService answered Health at {service.address}; it can only watch jobs"
        assert works(jobrunner, sentence)
        service.serving = wire.HealthCheckResponse.NOT_SERVING
        assert fails(jobrunner, "answered Health, and does not serve")
        service.authorization = "Bearer another"
        connect(jobrunner, service.address, kind="armada-jobservice", token="hush")
        assert fails(jobrunner, "refused the credentials for Health")


def test_what_is_no_job_service_is_told(jobrunner: CommandLine, armada: ArmadaStub) -> None:
    connect(jobrunner, armada.address, kind="armada-jobservice")
    assert fails(jobrunner, "not as the JobService does, whose port is usually 60003")
    connect(jobrunner, NOBODY, kind="armada-jobservice")
    assert fails(jobrunner, f"{NOBODY} cannot be reached for Health")
