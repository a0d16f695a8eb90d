"""Names are resolved in bounded time, whatever the system's resolver does."""

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from jobrunner import resolver as module
from jobrunner.database import Database, get_database
from jobrunner.errors import DatabaseUnavailable
from jobrunner.resolver import NotResolved, Resolver
from jobrunner.settings import configure
from tests.helpers import insert_job, until
from tests.postgres import Postgres
from tests.proxy import TcpProxy


class NameServer:
    """Stands in the place of the system's resolver: it can fall silent, or fail."""

    def __init__(self) -> None:
        self.is_silent = False
        self.error: Exception | None = None
        self.asked = 0
        self.free = threading.Event()
        self._ask = socket.getaddrinfo

    def __call__(self, host: str, *args: Any, **kwargs: Any) -> Any:
        self.asked += 1
        if self.is_silent:
            self.free.wait()
        if self.error is not None:
            raise self.error
        return self._ask("127.0.0.1" if host.endswith(".test") else host, *args, **kwargs)


@pytest.fixture
def name_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    """The resolver that everybody asks, with nothing known of before."""
    server = NameServer()
    monkeypatch.setattr(socket, "getaddrinfo", server)
    monkeypatch.setattr("jobrunner.postgres_parameters.resolver", Resolver())
    yield server
    server.free.set()


def test_a_silent_resolver_is_not_waited_for_longer_than_was_asked(name_server: NameServer) -> None:
    name_server.is_silent = True
    with pytest.raises(NotResolved, match=r"'db.test': no answer from the resolver within 0.1 s"):
        Resolver().addresses("db.test", 0.1)


def test_many_who_ask_for_one_name_share_one_thread(name_server: NameServer) -> None:
    resolver = Resolver()
    name_server.is_silent = True
    before = set(threading.enumerate())
    for _ in range(20):
        with pytest.raises(NotResolved):
            resolver.addresses("db.test", 0.01)
    assert name_server.asked == 1
    begun = set(threading.enumerate()) - before
    assert [thread.name for thread in begun if thread.name == "jobrunner-resolver"] == ["jobrunner-resolver"]


@pytest.mark.parametrize("trouble", ["silent", "failing"])
def test_the_addresses_of_before_are_used_while_the_resolver_is_away(
    name_server: NameServer, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    monkeypatch.setattr(module, "_KNOWN_WAIT_S", 0.05)
    resolver = Resolver()
    assert resolver.addresses("db.test", 10) == ("127.0.0.1",)
    if trouble == "silent":
        name_server.is_silent = True
    else:
        name_server.error = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    assert resolver.addresses("db.test", 10) == ("127.0.0.1",)


def test_a_name_that_is_there_no_more_is_an_error_although_it_was_known(name_server: NameServer) -> None:
    resolver = Resolver()
    resolver.addresses("db.test", 10)
    name_server.error = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    with pytest.raises(NotResolved, match="not known"):
        resolver.addresses("db.test", 10)


@pytest.mark.parametrize("host", ["a..b", "x" * 70 + ".test2", "no-such-host.invalid"])
def test_a_name_that_cannot_be_is_an_error_of_the_database_in_one_sentence(host: str) -> None:
    configure(database_url=f"postgresql://postgres@{host}/jobs")
    with pytest.raises(DatabaseUnavailable, match="failed to resolve host"):
        get_database()


def test_a_new_connection_is_opened_while_names_cannot_be_resolved(
    name_server: NameServer, postgres: Postgres, postgres_url: str
) -> None:
    with TcpProxy(postgres.socket_dir) as proxy:
        name = postgres_url.partition("?")[0].rpartition("/")[2]
        configure(database_url=f"postgresql://postgres@db.test:{proxy.port}/{name}")
        database = get_database()
        name_server.is_silent = True
        proxy.cut()
        until(lambda: _is_stored(database))
        database.dispose()


def _is_stored(database: Database) -> bool:
    try:
        return bool(insert_job(database))
    except DatabaseUnavailable:  # of a connection that was cut in this moment
        return False
