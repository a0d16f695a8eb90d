"""What jobrunner keeps is its owner's alone, whatever the umask and whatever stood there before."""

import asyncio
import logging
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobrunner.backends.process import ProcessBackend
from jobrunner.database import Database, get_database
from jobrunner.errors import DatabaseUnavailable
from jobrunner.private import make_private_directory
from jobrunner.settings import Settings, configure


@pytest.fixture(params=[0o022, 0o000, 0o277], ids=["usual", "none", "odd"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def open_to_others(place: Path) -> dict[str, str]:
    found = [place, *place.rglob("*")]
    return {str(path.relative_to(place)): f"{mode_of(path):o}" for path in found if mode_of(path) & 0o077}


def use(database: Database) -> None:
    with database.write() as connection:
        connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS one (id INTEGER)")


@pytest.mark.usefixtures("umask")
def test_the_embedded_database_and_its_log_are_the_owners_alone(tmp_path: Path) -> None:
    database = Database(Settings(data_dir=tmp_path / "made" / "data"))
    with database.held() as connection:  # while it is open, its write-ahead log is there
        use(database)
        connection.exec_driver_sql("SELECT * FROM one")
        names = {path.name for path in (tmp_path / "made" / "data").iterdir()}
        assert names == {"jobrunner.db", "jobrunner.db-wal", "jobrunner.db-shm"}
        assert not open_to_others(tmp_path / "made")
        assert mode_of(tmp_path / "made" / "data") == 0o700
    database.dispose()


def test_an_embedded_database_that_was_left_open_to_others_is_closed(tmp_path: Path) -> None:
    place = tmp_path / "data"
    settings = Settings(data_dir=place)
    use(Database(settings))
    for path in place.iterdir():
        path.chmod(0o644)
    place.chmod(0o755)  # the directory stays as its owner made it
    use(Database(settings))
    assert set(open_to_others(place)) == {"."}


def test_a_shared_database_keeps_the_mode_that_its_users_gave_it(tmp_path: Path) -> None:
    file = tmp_path / "shared.db"
    settings = Settings(database_url=f"sqlite:///{file}")
    database = Database(settings)
    use(database)
    database.dispose()
    assert mode_of(file) == 0o600
    file.chmod(0o666)
    database = Database(settings)
    with database.held() as connection:
        use(database)
        connection.exec_driver_sql("SELECT * FROM one")
        assert {mode_of(path) for path in tmp_path.glob("shared.db*")} == {0o666}


@pytest.mark.usefixtures("umask")
def test_the_records_and_the_output_of_a_command_are_the_owners_alone(tmp_path: Path) -> None:
    records = tmp_path / "made" / "processes"
    it = asyncio.run(ProcessBackend(records).submit({"command": ["sh", "-c", "umask"]}, "token"))
    assert not open_to_others(tmp_path / "made")
    assert {path.name for path in Path(it).iterdir()} >= {"start", "output.log"}


def test_a_command_keeps_the_umask_of_who_started_it(tmp_path: Path) -> None:
    code = (
        "import asyncio, os, sys; os.umask(0o027)\n"
        "from pathlib import Path\n"
        "from jobrunner.backends.process import ProcessBackend\n"
        "spec = {'command': ['sh', '-c', 'umask; echo done']}\n"
        "print(asyncio.run(ProcessBackend(Path(sys.argv[1])).submit(spec, 'token')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    log = Path(done.stdout.strip(), "output.log")
    while "done" not in log.read_text():
        assert Path(done.stdout.strip(), "start").exists()
    assert log.read_text().split()[0] == "0027"


def test_a_directory_that_others_can_write_to_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path.chmod(0o777)
    with caplog.at_level(logging.WARNING):
        make_private_directory(tmp_path)
    assert f"other users may write to {tmp_path}" in caplog.text
    assert mode_of(tmp_path) == 0o777


def test_a_data_directory_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    configure(data_dir=tmp_path / "data")
    with pytest.raises(DatabaseUnavailable, match=r"data for the database cannot be made \(it is not a dir"):
        get_database()
