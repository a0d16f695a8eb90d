"""Settings as files and variables may have them: no traceback, and the place that is wrong is named."""

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from jobrunner import paths
from jobrunner.errors import SettingsError
from jobrunner.registry import load_backend_class
from jobrunner.settings import Settings, configure, get_settings, reset
from jobrunner.visible import visible


def _problem() -> str:
    with pytest.raises(SettingsError) as caught:
        Settings()
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("HEARTRATE", "nan", "must be a finite number"),
        ("HEARTRATE", "1e400", "must be a finite number"),
        ("HEARTRATE", "1e300", "must be 1e+09 or less"),
        ("HEARTRATE", "true", "must be a number"),
        ("HEARTRATE", "\udcff", "holds bytes that are not UTF-8"),
        ("JOB_TYPES__X__HEARTRATE", "nan", "must be a finite number"),
        ("STATEMENT_TIMEOUT_S", "1e-9", "must be 0.001 or more"),
        ("CALL_TIMEOUT_S", "1e7", "must be 2e+06 or less"),
        ("GRACE_MULTIPLIER", "1e300", "must be 1e+06 or less"),
        ("PREPARE_THRESHOLD", "1e999", "must be a whole number"),
        ("DATA_DIR", " ", "is empty"),
        ("DATA_DIR", "~no-such-user/x", "begins with ~"),
        ("DATA_DIR", "a\udcff", "holds bytes that are not UTF-8"),
        ("CONFIG", "~no-such-user/x.toml", "begins with ~"),
        ("CONNECTIONS", '{"a":' * 5000 + "1" + "}" * 5000, "is not valid JSON"),
        ("CONNECTIONS__", "x", "must be a table"),
        ("CONNECTIONS____URL", "x", "is missing"),
        ("CONNECTIONS__\udcff__URL", "x", "is missing"),
    ],
)
def test_an_odd_variable_is_one_sentence_that_names_it(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(f"JOBRUNNER_{name}", value)
    problem = _problem()
    assert words in problem
    assert visible(f"JOBRUNNER_{name}") in problem
    assert len(problem.splitlines()) == 1


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("heartrate = 3\n".encode("utf-16"), "is not UTF-8"),
        ("heartrate = 3\n".encode("utf-16-be"), "line 1"),
        (b"heartrate = 3\nheartrate = 4\n", "line 2"),
        (b"heartrate = true\n", "must be a number"),
        (b"heartrate = 2020-01-01\n", "must be a number"),
        (b"heartrate = [1]\n", "must be a number"),
        (b"database_url = 5\n", "must be a text"),
        (b"data_dir = 5\n", "must be a path"),
        (b'data_dir = "a\\u0000b"\n', "NUL"),
        (b"x = " + b"[" * 100_000, "nested too deeply"),
        (b"heartrate = 1" + b"0" * 5000, "too long"),
        (b"# " + b"x" * 1024 * 1024, "larger than 1 MiB"),
    ],
)
def test_an_odd_file_is_one_sentence_that_names_it(data: bytes, words: str) -> None:
    path = Path("jobrunner.toml").absolute()
    path.write_bytes(data)
    problem = _problem()
    assert words in problem
    assert str(path) in problem


@pytest.mark.parametrize(
    "data", [b"", b"\xef\xbb\xbf", b"\xef\xbb\xbfheartrate = 5\r\n", b"\r\n\r\n# none\r\n"]
)
def test_a_byte_order_mark_and_the_line_ends_of_windows_are_ordinary(data: bytes) -> None:
    Path("jobrunner.toml").write_bytes(data)
    assert Settings().heartrate == 5


def _a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)  # its whole path may be too long


def _a_huge_file(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (os.mkfifo, "is not a regular file"),
        (_a_socket, "cannot be read"),
        (lambda path: path.symlink_to("/dev/zero"), "is not a regular file"),
        (_a_huge_file, "larger than 1 MiB"),
    ],
)
@pytest.mark.parametrize("is_named", [True, False])
def test_what_is_no_file_in_place_of_one_holds_nobody_up(
    make: Callable[[Path], object], words: str, is_named: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path("jobrunner.toml").absolute()
    make(path)
    if is_named:
        monkeypatch.setenv("JOBRUNNER_CONFIG", str(path))
    problem = _problem()
    assert words in problem
    assert str(path) in problem


def test_the_null_device_is_a_file_without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("jobrunner.toml").write_text("heartrate = 7\n")
    monkeypatch.setenv("JOBRUNNER_CONFIG", os.devnull)
    assert Settings().heartrate == 5


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not hold for root")
def test_a_directory_that_may_not_be_searched_holds_no_file_for_this_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "closed" / "jobrunner").mkdir(parents=True)
    (tmp_path / "closed").chmod(0)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "closed"))
    try:
        assert Settings().heartrate == 5
    finally:
        (tmp_path / "closed").chmod(0o700)


def test_without_a_home_the_database_needs_a_place_and_records_have_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(paths, "user_data_dir", lambda: None)
    monkeypatch.setattr(paths, "_TEMPORARY", (str(tmp_path),))
    settings = get_settings()
    with pytest.raises(SettingsError, match=r"there is no home.*JOBRUNNER_DATA_DIR.*JOBRUNNER_DATABASE_URL"):
        _ = settings.database
    directory = tmp_path / f"jobrunner-{os.geteuid()}"
    assert settings.records_dir == settings.records_dir == directory / "processes"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert configure(data_dir=tmp_path / "own").records_dir == tmp_path / "own" / "processes"


def test_a_temporary_directory_that_others_may_write_to_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(paths, "user_data_dir", lambda: None)
    monkeypatch.setattr(paths, "_TEMPORARY", (str(tmp_path),))
    directory = tmp_path / f"jobrunner-{os.geteuid()}"
    directory.mkdir()
    directory.chmod(0o777)
    with pytest.raises(SettingsError, match=r"others may write to it\): set JOBRUNNER_DATA_DIR"):
        _ = get_settings().records_dir
    directory.rmdir()
    directory.symlink_to(tmp_path)
    with pytest.raises(SettingsError, match=r"JOBRUNNER_DATA_DIR"):
        _ = get_settings().records_dir


def test_a_home_that_cannot_hold_data_needs_a_place_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(paths, "user_data_dir", lambda: tmp_path / "file" / "share" / "jobrunner")
    reset()
    with pytest.raises(SettingsError, match=r"cannot be made\): set JOBRUNNER_DATA_DIR"):
        _ = get_settings().database


@pytest.mark.parametrize("home", [None, "", "relative", "~"])
def test_no_home_ever_becomes_a_directory_called_tilde(
    monkeypatch: pytest.MonkeyPatch, home: str | None
) -> None:
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name)
    if home is None:
        monkeypatch.delenv("HOME")
    else:
        monkeypatch.setenv("HOME", home)

    def no_entry(*_of: object) -> None:
        raise KeyError

    monkeypatch.setattr("pwd.getpwuid", no_entry)
    settings = Settings(database_url="sqlite:////tmp/x.db")
    assert settings.data_dir.is_absolute()
    assert "~" not in str(settings.data_dir)
    assert all(path.is_absolute() for path in paths.config_dirs())


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("armada", {"url": "armada.example:50051", "ca_file": "~no-such-user/ca.pem"}),
        ("airbyte", {"ca_file": "~no-such-user/ca.pem"}),
        ("armada", {"url": "::1:50051"}),
        ("armada", {"url": "host:70000"}),
        ("armada", {"url": "host:0"}),
        ("airbyte", {"url": "http://host:70000"}),
        ("airbyte", {"url": "http://[::1"}),
        ("batch", {"endpoint_url": "ftp://host"}),
    ],
)
def test_an_odd_place_of_a_connection_is_one_sentence(kind: str, options: dict[str, str]) -> None:
    configure(connections={"c": {"kind": kind, **options}})
    _, connection = get_settings().connection("c", kind)
    with pytest.raises(SettingsError) as caught:
        load_backend_class(kind).from_connection(connection)
    assert len(str(caught.value).splitlines()) == 1
