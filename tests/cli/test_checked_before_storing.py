"""What is wrong for certain is said before anything is stored."""

from pathlib import Path
from typing import Any

import pytest

from jobrunner.database import Database, get_database
from jobrunner.errors import SettingsError
from jobrunner.models import BatchMonitorJob, MonitorJob
from jobrunner.models.airbyte_monitor_job import AirbyteMonitorJob
from jobrunner.models.armada_monitor_job import ArmadaMonitorJob
from jobrunner.settings import configure
from tests.cli.conftest import NAMED, CommandLine
from tests.helpers import CodeJob, plain_sql

WRONG: dict[str, tuple[type[MonitorJob], str, dict[str, Any], str]] = {
    "armada without a url": (ArmadaMonitorJob, "etl/set/job", {}, "'url' is missing"),
    "armada with a wrong url": (ArmadaMonitorJob, "etl/set/job", {"url": "http://x"}, "must be HOST:PORT"),
    "the jobservice without a url": (
        ArmadaMonitorJob,
        "etl/set/job",
        {"kind": "armada-jobservice"},
        "'url' is missing",
    ),
    "airbyte with half its credentials": (AirbyteMonitorJob, "12", {"client_id": "x"}, "belong together"),
    "airbyte with a wrong url": (AirbyteMonitorJob, "12", {"url": "ftp://x"}, "http"),
    "batch with an unknown key": (BatchMonitorJob, "a-job", {"regoin": "eu-west-1"}, "there is no 'regoin'"),
    "batch with a wrong role": (BatchMonitorJob, "a-job", {"role_arn": "admin"}, "must be of the form"),
}


@pytest.mark.parametrize("is_run", [True, False])
@pytest.mark.parametrize("mistake", WRONG)
def test_a_connection_that_is_wrong_stores_nothing(
    sqlite_database: Database, sqlite_url: str, mistake: str, is_run: bool
) -> None:
    job_class, external_id, options, words = WRONG[mistake]
    kind = job_class.backend_kind
    configure(connections={f"{kind}_default": {"kind": kind, **options}})
    get_database()
    job = job_class(external_id=external_id)
    with pytest.raises(SettingsError, match=words):
        job.run() if is_run else job.store()
    assert plain_sql(sqlite_url, "SELECT count(*) FROM job") == [(0,)]


def test_a_client_of_its_own_needs_no_url(sqlite_database: Database) -> None:
    import grpc

    with grpc.insecure_channel("127.0.0.1:1") as channel:
        job = ArmadaMonitorJob(external_id="etl/set/job", armada_client=channel)
        assert job.store().id == 1


@pytest.mark.parametrize("detach", [(), ("--detach",)])
def test_start_armada_without_a_url_leaves_no_job(jobrunner: CommandLine, detach: tuple[str, ...]) -> None:
    answer = jobrunner("start", "armada", "--attach", "etl/set/job", *detach)
    assert answer.is_refused("'url' is missing")
    assert jobrunner("list", "--json").json == []


@pytest.mark.parametrize("detach", [(), ("--detach",)])
def test_start_batch_with_a_wrong_connection_leaves_no_job(aws: CommandLine, detach: tuple[str, ...]) -> None:
    wrong = {"JOBRUNNER_CONNECTIONS__BATCH_DEFAULT__ROLE_ARN": "admin"}
    assert aws("start", "batch", *NAMED, *detach, **wrong).is_refused("must be of the form")
    assert aws("list", "--json").json == []


LISTEN = {
    "a port that is not a number": ("postgresql://postgres@db:port/postgres", "port"),
    "a port that there is not": ("postgresql://postgres@db:99999/postgres", "port"),
    "another database": ("sqlite:////tmp/x.db", "only PostgreSQL notifies"),
    "an unknown option": ("postgresql://postgres@/postgres?sslmod=x", "sslmod"),
    "half an address": ("postgresql://u@[::1/x", "listen_url"),
    "no URL": ("here", "listen_url"),
}


def _use(**settings: Any) -> None:
    configure(**settings)
    get_database()


@pytest.mark.parametrize("mistake", LISTEN)
def test_a_listen_url_that_cannot_be_used_is_refused_at_the_start(
    sqlite_url: str, postgres_url: str, mistake: str
) -> None:
    listen_url, words = LISTEN[mistake]
    for url in (sqlite_url, postgres_url):
        with pytest.raises(SettingsError, match=words):
            _use(database_url=url, listen_url=listen_url)
        assert plain_sql(url, "SELECT count(*) FROM job") == [(0,)]


@pytest.mark.parametrize(
    "listen_url",
    [
        "postgresql://postgres@a:5432,b:5432/postgres",
        "postgresql://u@[::1]:5432/x",
        "postgresql://u@/x?host=/tmp",
    ],
)
def test_a_listen_url_of_another_form_is_taken(sqlite_url: str, listen_url: str) -> None:
    configure(database_url=sqlite_url, listen_url=listen_url)
    CodeJob().store()


@pytest.mark.parametrize("command", [("worker",), ("start", "process", "--", "true"), ("list",)])
def test_every_command_refuses_a_wrong_listen_url(jobrunner: CommandLine, command: tuple[str, ...]) -> None:
    answer = jobrunner(*command, JOBRUNNER_LISTEN_URL="postgresql://u@h/x?sslmod=x")
    assert answer.is_refused("listen_url", 'invalid connection option "sslmod"')


OWN = {
    "a module that exits": ("exits:Job", "SystemExit"),
    "a constructor that exits": ("makes:Exits", "SystemExit"),
    "a constructor that raises": ("makes:Raises", "LookupError: no such table"),
    "a module that panics": ("panics:Job", "Panic: over"),
    "a constructor that panics": ("makes:Panics", "GeneratorExit"),
    "a constructor whose error has no text": ("makes:Mute", "Unspeakable without a text"),
}


@pytest.mark.parametrize("detach", [(), ("--detach",)])
@pytest.mark.parametrize("mistake", OWN)
def test_a_class_that_cannot_be_had_leaves_no_job(
    jobrunner: CommandLine, mistake: str, detach: tuple[str, ...]
) -> None:
    (jobrunner.directory / "exits.py").write_text("raise SystemExit(3)\n")
    (jobrunner.directory / "makes.py").write_text(
        "from jobrunner.models import BaseJob\n"
        "class Exits(BaseJob):\n"
        "    def __init__(self):\n"
        "        raise SystemExit(3)\n"
        "class Raises(BaseJob):\n"
        "    def __init__(self):\n"
        "        raise LookupError('no such table')\n"
        "class Panics(BaseJob):\n"
        "    def __init__(self):\n"
        "        raise GeneratorExit\n"
        "class Unspeakable(Exception):\n"
        "    def __str__(self):\n"
        "        raise ValueError\n"
        "class Mute(BaseJob):\n"
        "    def __init__(self):\n"
        "        raise Unspeakable\n"
    )
    (jobrunner.directory / "panics.py").write_text("class Panic(BaseException): ...\nraise Panic('over')\n")
    path, words = OWN[mistake]
    assert jobrunner("start", path, *detach).is_refused(words)
    assert jobrunner("list", "--json").json == []


def test_a_worker_whose_module_breaks_leaves_no_row(jobrunner: CommandLine) -> None:
    Path(jobrunner.directory, "broken_module.py").write_text("def\n")
    assert jobrunner("worker", "--import", "broken_module").is_refused("broken_module", "SyntaxError")
    assert jobrunner("list", "--json").json == []


def test_own_code_that_panics_is_failed_and_only_its_own_frames_are_shown(jobrunner: CommandLine) -> None:
    Path(jobrunner.directory, "panics.py").write_text(
        "from jobrunner.models import BaseJob\n"
        "class Panic(BaseException): ...\n"
        "class Job(BaseJob):\n"
        "    def _execute(self):\n"
        "        raise Panic('over')\n"
    )
    answer = jobrunner("start", "panics:Job")
    assert answer.code == 1
    assert "job 1 failed after" in answer.words
    assert "raise Panic('over')" in answer.words
    assert "jobrunner/cli" not in answer.words
