"""What a connection of kind `armada` may say, and what is told when nobody answers as Armada does."""

import asyncio
import datetime as dt
import ipaddress
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from jobrunner.backends.armada import ArmadaBackend, ArmadaConnection
from jobrunner.backends.armada.trouble import ArmadaError
from jobrunner.errors import SettingsError
from jobrunner.settings import ConnectionSettings
from tests.stubs.armada_server import ArmadaStub, serving


def of(**options: Any) -> ArmadaConnection:
    return ArmadaConnection.of(ConnectionSettings(kind="armada", **options))


@pytest.mark.parametrize(
    ("options", "uses_tls"),
    [
        ({"url": "armada.example:443"}, True),
        ({"url": "localhost:50051"}, False),
        ({"url": "127.0.0.1:50051"}, False),
        ({"url": "[::1]:50051"}, False),
        ({"url": "10.0.0.1:50051"}, True),
        ({"url": "localhost:50051", "tls": True}, True),
        ({"url": "armada.example:50051", "plaintext": True}, False),
        ({"url": "armada.example:50051", "tls": "false"}, False),
    ],
)
def test_tls_is_used_but_on_this_host(options: dict[str, Any], *, uses_tls: bool) -> None:
    assert of(**options).uses_tls is uses_tls


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "'url' is missing"),
        (
            {"url": "http://armada.example:50051"},
            "'url' must be HOST:PORT, such as armada.example:50051, without http",
        ),
        ({"url": "armada.example"}, "'url' must be HOST:PORT"),
        ({"url": "armada.example:99999"}, "'url' must be HOST:PORT"),
        ({"urll": "a:1", "url": "a:1"}, "there is no 'urll'"),
        ({"url": "a:1", "tls": True, "plaintext": True}, "contradict"),
        ({"url": "a:1", "token": "x", "username": "u", "password": "p"}, "only one of them"),
        ({"url": "a:1", "username": "u"}, "'username' and 'password' belong together"),
        ({"url": "a:1", "ca_file": "/nowhere/ca.pem"}, "'ca_file' there is no file /nowhere/ca.pem"),
        (
            {"url": "a:1", "lookout_url_template": "https://l/{id}"},
            "may hold {queue}, {job_set} and {job_id} alone",
        ),
        ({"url": "a:1", "lookout_url_template": "https://l/{job_id:5x}"}, "cannot be filled in"),
        ({"url": "a:1", "lookout_url_template": "https://l/{job_id:{0}}"}, "cannot be filled in"),
        ({"url": "a:1", "lookout_url_template": "https://l/{job_id"}, "single brace"),
        ({"url": "a:1", "lookout_url_template": "l/{job_id}"}, "must begin with http:// or https://"),
        ({"url": "a:1", "binoculars_url": "https://b"}, "'binoculars_url' must be HOST:PORT"),
        ({"url": "a:1", "call_timeout_s": 0}, "'call_timeout_s'"),
    ],
)
def test_a_wrong_connection_is_one_sentence(options: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        of(**options)
    assert words in str(caught.value)
    assert str(caught.value).startswith("A connection of kind armada is wrong: ")


def test_no_secret_is_shown() -> None:
    assert "hunter2" not in repr(of(url="a:1", token="hunter2"))
    with pytest.raises(SettingsError) as caught:
        of(url="a:1", token="hunter2", password="hunter2")
    assert "hunter2" not in str(caught.value)


# --- TLS -------------------------------------------------------------------------------------------


class Authority:
    """A certificate authority of this test's own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._sign("Test CA", self.key.public_key(), is_ca=True)
        self.ca_file = self._file("ca.pem", self.certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str) -> tuple[Path, Path]:
        """Return the files of a certificate and its key, for localhost."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(name, key.public_key(), is_ca=False)
        plain = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return (
            self._file(f"{name}.pem", certificate.public_bytes(serialization.Encoding.PEM)),
            self._file(f"{name}.key", plain),
        )

    def _sign(self, name: str, key: Any, *, is_ca: bool) -> x509.Certificate:
        def called(text: str) -> x509.Name:
            return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

        now = dt.datetime.now(dt.UTC)
        hosts = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        return (
            x509.CertificateBuilder()
            .subject_name(called(name))
            .issuer_name(called("Test CA"))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
            .sign(self.key, hashes.SHA256())
        )

    def _file(self, name: str, data: bytes) -> Path:
        path = self.directory / name
        path.write_bytes(data)
        return path


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def secured(authority: Authority) -> Iterator[ArmadaStub]:
    """An Armada that speaks TLS and asks for a client's certificate."""
    certificate, key = authority.issue("server")
    credentials = grpc.ssl_server_credentials(
        [(key.read_bytes(), certificate.read_bytes())],
        authority.ca_file.read_bytes(),
        require_client_auth=True,
    )
    with serving(credentials=credentials) as stub:
        yield stub


def checked(**options: Any) -> str:
    async def main() -> str:
        backend = ArmadaBackend(of(**{"call_timeout_s": 3, **options}))
        try:
            return await backend.check()
        finally:
            await backend.close()

    return asyncio.run(main())


def test_a_private_authority_and_a_clients_certificate_are_used(
    authority: Authority, secured: ArmadaStub
) -> None:
    certificate, key = authority.issue("client")
    told = checked(
        url=secured.address,
        tls=True,
        ca_file=authority.ca_file,
        client_cert_file=certificate,
        client_key_file=key,
        token="abc",
    )
    assert told == f"Armada answered GetJobStatus at {secured.address}, with TLS"
    assert secured.calls[0].authorization == "Bearer abc"


def test_an_authority_that_is_not_known_is_told(secured: ArmadaStub) -> None:
    with pytest.raises(ArmadaError, match=r"cannot be reached for GetJobStatus .*look at `tls`, `ca_file`"):
        checked(url=secured.address, tls=True)


def test_a_plain_call_to_a_server_with_tls_is_told(secured: ArmadaStub) -> None:
    with pytest.raises(ArmadaError, match=r"cannot be reached for GetJobStatus|gave no answer"):
        checked(url=secured.address)


def test_tls_to_a_plain_server_is_told() -> None:
    with serving() as stub, pytest.raises(ArmadaError, match=r"cannot be reached .*look at `tls`"):
        checked(url=stub.address, tls=True)


class _Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_words: Any) -> None:
        """Say nothing."""


def test_another_kind_of_server_is_told() -> None:
    with HTTPServer(("localhost", 0), _Page) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            with pytest.raises(ArmadaError, match=r"localhost:\d+ ") as caught:
                checked(url=f"localhost:{server.server_port}")
        finally:
            server.shutdown()
            thread.join()
    assert "not as Armada does" in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_a_file_whose_name_no_file_can_have_is_not_there() -> None:
    with pytest.raises(SettingsError, match="there is no file"):
        ArmadaConnection.of(
            ConnectionSettings(kind="armada", url="a.example:50051", ca_file=f"/{'a' * 5000}")  # type: ignore[call-arg]
        )
