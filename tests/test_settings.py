import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobrunner import settings as module
from jobrunner.cli.connections import all_connections
from jobrunner.errors import SettingsError
from jobrunner.settings import ConnectionSettings, Settings, configure, get_settings

WriteToml = Callable[..., Path]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No file and no variable of the machine that runs the tests."""
    for name in list(os.environ):
        if name.upper().startswith("JOBRUNNER_"):
            monkeypatch.delenv(name)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path / "system"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    module.reset()
    yield
    module.reset()


@pytest.fixture
def write_toml() -> WriteToml:
    def write(text: str, directory: str = ".") -> Path:
        path = Path(directory).resolve() / "jobrunner.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


def _problem(**overrides: object) -> str:
    with pytest.raises(SettingsError) as caught:
        configure(**overrides)
    return str(caught.value)


def test_without_any_source_the_database_is_a_file_in_the_data_directory(tmp_path: Path) -> None:
    settings = get_settings()
    assert settings.is_embedded
    if sys.platform == "linux":
        assert settings.data_dir == tmp_path / "data" / "jobrunner"
    assert settings.effective_database_url == f"sqlite:///{settings.data_dir}/jobrunner.db"
    assert settings.effective_listen_url is None
    assert (settings.heartrate, settings.grace_multiplier, settings.prepare_threshold) == (5.0, 2.1, 5)
    assert all(source == "default" for _, _, source in settings.provenance())


@pytest.mark.skipif(sys.platform != "linux", reason="XDG directories")
def test_the_earlier_source_wins_and_tables_merge(
    write_toml: WriteToml, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = write_toml("heartrate = 1\ngrace_multiplier = 3\nhost_grace_s = 10\n", "../system/jobrunner")
    user = write_toml('heartrate = 2\n[connections.a]\nkind = "k"\nurl = "user"\n', "../user/jobrunner")
    here = write_toml('heartrate = 3\npoll_interval = 9\n[connections.a]\nurl = "here"\n')
    monkeypatch.setenv("JOBRUNNER_HEARTRATE", "4")
    configure(host_grace_s=20)

    shown = {key: (value, source) for key, value, source in get_settings().provenance()}
    assert shown["heartrate"] == ("4", "environment JOBRUNNER_HEARTRATE")
    assert shown["poll_interval"] == ("9", f"jobrunner.toml ({here})")
    assert shown["connections.a.url"] == ("here", f"jobrunner.toml ({here})")
    assert shown["connections.a.kind"] == ("k", f"jobrunner.toml ({user})")
    assert shown["grace_multiplier"] == ("3", f"jobrunner.toml ({system})")
    assert shown["host_grace_s"] == ("20", "code")
    assert shown["database_url"] == ("not set", "default")


def test_a_file_named_by_the_environment_is_the_only_file(
    write_toml: WriteToml, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_toml("heartrate = 3\n")
    other = tmp_path / "other.toml"
    other.write_text("poll_interval = 7\n")
    monkeypatch.setenv("JOBRUNNER_CONFIG", str(other))
    assert (get_settings().heartrate, get_settings().poll_interval) == (5.0, 7.0)


def test_a_named_file_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBRUNNER_CONFIG", "/nowhere.toml")
    assert _problem() == "JOBRUNNER_CONFIG names /nowhere.toml, which does not exist: correct it or unset it"


def test_the_environment_reaches_into_a_connection(
    write_toml: WriteToml, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_toml('[connections.Airbyte_Default]\nkind = "airbyte"\nurl = "http://a"\n')
    monkeypatch.setenv("JOBRUNNER_CONNECTIONS__AIRBYTE_DEFAULT__URL", "http://b")
    name, connection = get_settings().connection(None, "airbyte")
    assert (name, connection.get("url")) == ("Airbyte_Default", "http://b")


def test_a_default_connection_made_by_the_environment_alone_has_its_kind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JOBRUNNER_CONNECTIONS__AIRBYTE_DEFAULT__URL", "http://b")
    assert get_settings().connections["airbyte_default"].kind == "airbyte"


@pytest.mark.parametrize("value", ["12345", "0123", "1e5", "true", "null", '"x"'])
def test_a_secret_that_looks_like_a_number_stays_a_text(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("JOBRUNNER_CONNECTIONS__AIRBYTE_DEFAULT__CLIENT_SECRET", value)
    assert get_settings().connection(None, "airbyte")[1].get("client_secret") == value


def test_the_environment_may_give_a_whole_table_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBRUNNER_CONNECTIONS", '{"x": {"kind": "batch", "region": "r"}}')
    assert get_settings().connection("x", "batch")[1].options == {"region": "r"}
    monkeypatch.setenv("JOBRUNNER_CONNECTIONS", '{"x"')
    assert _problem() == "environment JOBRUNNER_CONNECTIONS is not valid JSON: correct it there"


def test_unknown_and_empty_variables_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBRUNNER_HEARTRAT", "1")
    monkeypatch.setenv("JOBRUNNER_HEARTRATE", "")
    assert get_settings().heartrate == 5.0


def test_job_types_have_rates_of_their_own_found_in_any_case(
    write_toml: WriteToml, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_toml("poll_interval = 8\n[job_types.BatchMonitorJob]\nheartrate = 30\n")
    monkeypatch.setenv("JOBRUNNER_JOB_TYPES__BATCHMONITORJOB__POLL_INTERVAL", "60")
    monkeypatch.setenv("JOBRUNNER_JOB_TYPES__OTHERJOB__HEARTRATE", "9")
    settings = get_settings()
    assert (settings.heartrate_for("BatchMonitorJob"), settings.heartrate_for("OtherJob")) == (30, 9)
    assert (settings.poll_interval_for("BatchMonitorJob"), settings.poll_interval_for("OtherJob")) == (60, 8)
    assert settings.heartrate_for("ArmadaMonitorJob") == 5.0
    assert list(settings.job_types) == ["BatchMonitorJob", "otherjob"]


def test_settings_are_read_once_until_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    first = get_settings()
    monkeypatch.setenv("JOBRUNNER_HEARTRATE", "9")
    assert get_settings() is first
    module.reset()
    assert get_settings().heartrate == 9.0


def test_configure_adds_to_what_it_was_told_before() -> None:
    configure(heartrate=1, connections={"a": {"kind": "k", "url": "u"}})
    settings = configure(poll_interval=2, connections={"a": {"url": "v"}, "b": ConnectionSettings(kind="k")})
    assert settings is get_settings()
    assert (settings.heartrate, settings.poll_interval) == (1, 2)
    assert settings.connection("a", "k")[1].options == {"url": "v"}
    assert settings.connection("b", "k")[1].options == {}


def test_a_refused_configure_changes_nothing() -> None:
    before = configure(heartrate=1)
    _problem(heartrate=-1)
    assert get_settings() is before
    assert configure().heartrate == 1


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"heartrat": 1}, 'unknown setting "heartrat" (code): did you mean "heartrate"?'),
        ({"heartrate": 0}, "heartrate = 0 (code) must be 0.01 or more: correct it there"),
        ({"heartrate": "x"}, "heartrate = x (code) must be a number: correct it there"),
        ({"heartrate": float("inf")}, "heartrate = inf (code) must be a finite number: correct it there"),
        ({"grace_multiplier": 1}, "grace_multiplier = 1 (code) must be greater than 1: correct it there"),
        ({"prepare_threshold": -1}, "prepare_threshold = -1 (code) must be 0 or more: correct it there"),
        (
            {"postgres_options": "perhaps"},
            "postgres_options = perhaps (code) must be true or false: correct it there",
        ),
        ({"job_types": 4}, "job_types = a single value (code) must be a table: correct it there"),
        (
            {"job_types": {"A": {"heartrat": 4}}},
            'unknown setting "job_types.A.heartrat" (code): did you mean "heartrate"?',
        ),
        ({"connections": {"a": {"url": "u"}}}, '"connections.a.kind" is missing (code): add it there'),
        (
            {"listen_url": "x://u:hidden@h"},
            "listen_url = x://u:***@h (code) must begin with sqlite:/// or postgresql://: correct it there",
        ),
    ],
)
def test_a_wrong_value_gives_one_sentence(overrides: dict[str, object], sentence: str) -> None:
    assert _problem(**overrides) == sentence


def test_a_wrong_value_in_the_environment_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBRUNNER_HEARTRATE", "-1")
    assert (
        _problem()
        == "heartrate = -1 (environment JOBRUNNER_HEARTRATE) must be 0.01 or more: correct it there"
    )


def test_an_unknown_key_in_the_file_is_an_error(write_toml: WriteToml) -> None:
    path = write_toml("poll_intervall = 3\n")
    assert (
        _problem()
        == f'unknown setting "poll_intervall" (jobrunner.toml ({path})): did you mean "poll_interval"?'
    )


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [("heartrate = 1\nheartrate 2\n", 2, "Expected '='"), ("heartrate = 1\n\nx = '''", 3, "Expected")],
)
def test_a_broken_file_names_its_line(write_toml: WriteToml, text: str, line: int, problem: str) -> None:
    path = write_toml(text)
    assert _problem().startswith(f"{path}, line {line}: {problem}")


def test_an_unreadable_file_is_one_sentence(write_toml: WriteToml) -> None:
    path = Path("jobrunner.toml").absolute()
    path.mkdir()
    assert _problem().startswith(f"jobrunner.toml ({path}) cannot be read (")
    path.rmdir()
    path.write_bytes(b"\xff\xfe")
    assert _problem() == f"jobrunner.toml ({path}) is not UTF-8: save it as UTF-8"


def test_variables_are_filled_in_when_used(write_toml: WriteToml, monkeypatch: pytest.MonkeyPatch) -> None:
    write_toml(
        'database_url = "postgresql://me:${env:DB_PW}@db/x"\n'
        '[connections.a]\nkind = "k"\nclient_secret = "${env:SECRET}"\nscopes = ["${env:SECRET}"]\n'
    )
    settings = get_settings()
    with pytest.raises(
        SettingsError, match=r"^database_url needs the environment variable DB_PW, which is not set"
    ):
        _ = settings.effective_database_url
    with pytest.raises(
        SettingsError, match=r"^connections\.a\.client_secret needs the environment variable SECRET"
    ):
        settings.connection("a", "k")
    monkeypatch.setenv("DB_PW", "pw")
    monkeypatch.setenv("SECRET", "s")
    assert settings.effective_database_url == "postgresql+psycopg://me:pw@db/x"
    assert settings.connection("a", "k")[1].options == {"client_secret": "s", "scopes": ["s"]}
    shown = {key: value for key, value, _ in settings.provenance()}
    assert shown["connections.a.client_secret"] == "${env:SECRET}"
    assert shown["database_url"] == "postgresql://me:${env:DB_PW}@db/x"


def test_a_whole_url_from_a_variable_is_checked_when_used(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = configure(database_url="${env:URL}")
    monkeypatch.setenv("URL", "mysql://me:hidden@db")
    with pytest.raises(SettingsError, match=r"^database_url must begin with sqlite") as caught:
        _ = settings.effective_database_url
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_postgresql_is_reached_by_its_one_driver(scheme: str) -> None:
    settings = configure(database_url=f"{scheme}://db/x")
    assert settings.effective_database_url == "postgresql+psycopg://db/x"
    assert settings.effective_listen_url == "postgresql+psycopg://db/x"
    assert (
        configure(listen_url="postgresql://direct/x").effective_listen_url == "postgresql+psycopg://direct/x"
    )
    assert not settings.is_embedded


def test_a_connection_that_names_none_is_the_default_of_its_kind() -> None:
    assert get_settings().connection(None, "batch") == ("batch_default", ConnectionSettings(kind="batch"))
    configure(connections={"armada_default": {"kind": "armada-jobservice", "url": "u"}})
    assert get_settings().connection(None, "armada")[1].kind == "armada-jobservice"


def test_a_missing_connection_names_the_known_ones() -> None:
    configure(connections={"b": {"kind": "batch"}, "a": {"kind": "airbyte"}})
    with pytest.raises(SettingsError, match=r'^there is no connection "c" \(configured: a, b\): '):
        get_settings().connection("c", "batch")
    with pytest.raises(
        SettingsError, match=r'^connection "a" is of kind "airbyte", not "batch": .*configured: b\)$'
    ):
        get_settings().connection("a", "batch")


def test_nothing_that_is_shown_holds_a_secret() -> None:
    settings = configure(
        database_url="postgresql://me:hidden@db/x",
        connections={
            "a": {"kind": "k", "client_secret": "hidden", "nested": {"token": "hidden"}, "url": "http://x"}
        },
    )
    shown = [str(settings), repr(settings), str(settings.connection("a", "k")), str(settings.provenance())]
    assert not [text for text in shown if "hidden" in text]
    assert "http://x" in shown[2]


def test_arguments_come_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBRUNNER_HEARTRATE", "9")
    assert Settings(heartrate=1).heartrate == 1


def test_the_data_directory_is_absolute(tmp_path: Path) -> None:
    assert configure(data_dir="x").data_dir == tmp_path / "here" / "x"
    assert configure(data_dir="~/x").data_dir == tmp_path / "x"


def test_prepared_statements_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBRUNNER_PREPARE_THRESHOLD", "none")
    assert get_settings().prepare_threshold is None


def test_importing_the_settings_imports_nothing_heavy() -> None:
    code = "import sys, jobrunner.settings; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not {"sqlalchemy", "platformdirs", "tomllib", "rich", "structlog", "httpx"} & set(
        answer.stdout.split()
    )


def test_an_empty_table_in_place_of_a_value_names_its_file(write_toml: WriteToml) -> None:
    path = write_toml("data_dir = {}\n")
    assert _problem() == f"data_dir = a table (jobrunner.toml ({path})) must be a path: correct it there"


def test_an_empty_table_hides_no_other_file_and_is_not_listed(
    write_toml: WriteToml, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_toml('[connections.a]\nkind = "k"\nurl = "user"\n', "../user/jobrunner")
    write_toml("[connections]\n[job_types]\n")
    shown = {key for key, _, _ in get_settings().provenance()}
    assert "connections.a.url" in shown
    assert not shown & {"connections", "job_types"}


_SECRET = "hunter2-Tr0ub4dor"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CONNECTIONS__AIRBYTE_DEFAULT", f'{{"url": "http://a", "client_secret": "{_SECRET}"'),
        ("CONNECTIONS__AIRBYTE_DEFAULT", f"{{'client_secret': '{_SECRET}'}}"),
        ("CONNECTIONS__AIRBYTE_DEFAULT", _SECRET),
        ("CONNECTIONS__AIRBYTE_DEFAULT", f'["{_SECRET}"]'),
        ("CONNECTIONS__AIRBYTE_DEFAULT", f'["{_SECRET}'),
        ("CONNECTIONS", f'{{"airbyte_default": "{_SECRET}"}}'),
        ("CONNECTIONS", f'{{"airbyte_default": ["{_SECRET}"]}}'),
        ("CONNECTIONS", f'{{"airbyte_default": {{"kind": ["{_SECRET}"]}}}}'),
        ("CONNECTIONS__AIRBYTE_DEFAULT__KIND", f"{{'client_secret': '{_SECRET}'}}"),
        ("JOB_TYPES__X", f'{{"password": "{_SECRET}"'),
        ("JOB_TYPES__X", _SECRET),
        ("JOB_TYPES__X__HEARTRATE", f'{{"password": "{_SECRET}"'),
        ("JOB_TYPES", f'["{_SECRET}"]'),
        ("HEARTRATE", f'{{"password": "{_SECRET}"'),
        ("HEARTRATE", f'"password": "{_SECRET}"'),
        ("DATA_DIR", f"postgresql://u:{_SECRET}@h/x"),
    ],
)
def test_a_wrong_value_in_place_of_a_table_is_named_and_not_quoted(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"JOBRUNNER_{variable}", value)
    problem = _problem()
    assert f"environment JOBRUNNER_{variable.partition('__')[0]}" in problem
    assert _SECRET not in problem


@pytest.mark.parametrize(
    "text",
    [
        f"connections = ['{_SECRET}']",
        f"[connections]\nairbyte_default = '{_SECRET}'",
        f"[connections]\nairbyte_default = [{{client_secret = '{_SECRET}'}}]",
        f"[[connections.airbyte_default]]\nclient_secret = '{_SECRET}'",
        f"[connections.airbyte_default]\nkind = {{client_secret = '{_SECRET}'}}",
        f"[job_types]\nX = ['{_SECRET}']",
        f"[job_types.X]\nheartrate = ['{_SECRET}']",
        f"[job_types.X.heartrate]\npassword = '{_SECRET}'",
        f"database_url = ['{_SECRET}']",
        f"[data_dir]\npassword = '{_SECRET}'",
    ],
)
def test_a_wrong_value_in_the_file_is_named_and_not_quoted(text: str, write_toml: WriteToml) -> None:
    write_toml(text)
    problem = _problem()
    assert "jobrunner.toml" in problem
    assert _SECRET not in problem


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("CLIENT_SECRET", f'{{"a": "{_SECRET}"}}'),
        ("CLIENT_SECRET", f'{{"a": ["{_SECRET}"'),
        ("CLIENT_SECRET__A__B", _SECRET),
        ("OPTIONS", f'{{"client_secret": "{_SECRET}"'),
        ("OPTIONS", f"{{'client_secret': '{_SECRET}'}}"),
        ("HEADERS", f'["Authorization: Bearer {_SECRET}"]'),
        ("COMMAND", f'["--password", "{_SECRET}"]'),
        ("ENV", f'[{{"name": "PASSWORD", "value": "{_SECRET}"}}]'),
    ],
)
def test_a_secret_in_any_form_is_masked_where_connections_are_shown(
    option: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOBRUNNER_CONNECTIONS__A__KIND", "k")
    monkeypatch.setenv(f"JOBRUNNER_CONNECTIONS__A__{option}", value)
    settings = get_settings()
    shown = [*settings.provenance(), repr(settings), repr(settings.connections["a"]), all_connections()]
    assert _SECRET not in repr(shown)


def test_a_url_in_place_of_the_file_is_refused_and_not_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBRUNNER_CONFIG", f"postgresql://u:{_SECRET}@h/x")
    assert _problem() == "JOBRUNNER_CONFIG is a URL: name a path"
