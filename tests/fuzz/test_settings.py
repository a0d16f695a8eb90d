"""Settings from outside: a `Settings`, or one sentence that names the setting and where it was set."""

import datetime as dt
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import quote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from jobrunner import registry
from jobrunner import settings as module
from jobrunner.database import Database
from jobrunner.errors import JobrunnerError, SettingsError, UsageError
from jobrunner.settings import Settings
from tests.fuzz.examples import TIMEOUT_S, examples
from tests.fuzz.messages import ensure_message, ensure_no_secret
from tests.fuzz.texts import SECRET, any_json, any_scalar, any_text, argument_text

pytestmark = pytest.mark.timeout(TIMEOUT_S)

_KINDS = sorted(registry.BACKENDS)
_OPTIONS = sorted(
    {
        *(
            "url",
            "token",
            "password",
            "username",
            "client_id",
            "client_secret",
            "tls",
            "plaintext",
            "ca_file",
        ),
        *(
            "region",
            "profile",
            "endpoint_url",
            "events_queue_url",
            "workspace_ids",
            "calls_at_once",
            "token_file",
        ),
        *(
            "lookout_url_template",
            "binoculars_url",
            "events",
            "call_timeout_s",
            "role_arn",
            "log_group",
            "retry",
        ),
    }
)
_NAMES = sorted(Settings.model_fields)

_secret_url = st.sampled_from(
    [
        f"postgresql://user:{SECRET}@127.0.0.1/db",
        f"postgresql://user:{quote(SECRET, safe='')}@127.0.0.1:99999/db",
        f"http://user:{SECRET}@127.0.0.1:1",
        f"mysql://user:{SECRET}@h/db",
        f"postgresql:/user:{SECRET}@h",
        f"postgresql://h/db?password={quote(SECRET, safe='')}&x",
        f"sqlite:///x?password={quote(SECRET, safe='')}",
        "${env:FUZZ_SECRET}",
        "postgresql://user:${env:FUZZ_SECRET}@127.0.0.1:1/db",
        "${env:FUZZ_NOT_SET}",
    ]
)
_numbers = st.sampled_from(
    ["1", "0", "-1", "nan", "inf", "1e999", "0.1", " 2 ", "2.5s", "1_0", "٣", "9" * 400]
)
_broken_table = st.sampled_from(
    [
        f'{{"url": "http://a", "client_secret": "{SECRET}"',
        f"{{'client_secret': '{SECRET}'}}",
        f'{{client_secret: "{SECRET}"}}',
        f'{{"password": "{SECRET}"}}',
        f'[{{"name": "DB_PASSWORD", "value": "{SECRET}"}}]',
        f'["Authorization: Bearer {SECRET}"]',
        f'"token": "{SECRET}"',
    ]
)
"""What looks like a table, or is one, where a table may be wanted or not: it is shown nowhere."""
_value = st.one_of(
    _numbers,
    _secret_url,
    _broken_table,
    st.sampled_from(["{", "[1", "{}", "[" * 3000, '{"a": {"b": 1}}']),
    argument_text,
)


_IS_TABLE = re.compile(r"secret['\"]?:|password\"|PASSWORD\"|token\"|Bearer")
_MAY_HOLD_SECRETS = ("url", "password", "token", "secret")


def _as_meant(name: str, value: Any) -> Any:
    """Return the value of a setting, without a secret where nobody would look for one."""
    if isinstance(value, dict):
        return {key: _as_meant(str(key), item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_meant(name, item) for item in value]
    is_misplaced = isinstance(value, str) and "s3cr3t" in value and not _IS_TABLE.search(value)
    return "x" if is_misplaced and not name.lower().endswith(_MAY_HOLD_SECRETS) else value


@contextmanager
def _surroundings(variables: Mapping[str, str], toml: bytes | None) -> Iterator[None]:
    """Be a process with these variables and this `jobrunner.toml`, and no other."""
    path = Path("jobrunner.toml")
    if toml is not None:
        path.write_bytes(toml)
    module.reset()
    try:
        with mock.patch.dict(os.environ, {"FUZZ_SECRET": SECRET, **variables}):
            yield
    finally:
        module.reset()
        path.unlink(missing_ok=True)


def _use_all(settings: Settings) -> None:
    """Ask for everything that settings can be asked for."""
    ensure_no_secret(repr(settings))
    for key, value, source in settings.provenance():
        ensure_no_secret(f"{key} {value} {source}")
    settings.heartrate_for("BatchMonitorJob")
    settings.poll_interval_for("x")
    _told(lambda: settings.effective_database_url, "database_url")
    _told(lambda: settings.effective_listen_url, "listen_url", "database_url")
    _told(lambda: Database(settings).dispose(), "database", "SQLite", "listen_url")
    for name, connection in settings.connections.items():
        ensure_no_secret(repr(connection))
        _told(lambda: _backend(settings, name, connection.kind), name, connection.kind)  # noqa: B023


def _backend(settings: Settings, name: str, kind: str) -> None:
    _, connection = settings.connection(name, kind)
    backend_class = registry.load_backend_class(connection.kind)
    backend_class.from_connection(connection)


def _told(do: Callable[[], object], *names: str) -> None:
    try:
        do()
    except JobrunnerError as error:
        ensure_message(str(error), *(names if all(map(str.isprintable, names)) else ()))


def _try(variables: Mapping[str, str], toml: bytes | None = None) -> None:
    with _surroundings(variables, toml):
        try:
            settings = module.get_settings()
        except SettingsError as error:
            ensure_message(str(error))
            text = str(error)
            sources = [*variables, "jobrunner.toml", "environment"]
            assert any(source in text for source in sources), text
            return
        _use_all(settings)


# --- the environment -----------------------------------------------------------------------------

_variable_names = st.one_of(
    st.sampled_from(_NAMES).map(lambda name: f"JOBRUNNER_{name.upper()}"),
    st.tuples(st.sampled_from(_NAMES), st.sampled_from(["X", "MY JOB", "", "A__B", "__"])).map(
        lambda pair: f"JOBRUNNER_{pair[0].upper()}__{pair[1]}"
    ),
    st.tuples(
        st.sampled_from(["A", "batch_default", "armada_default"]), st.sampled_from(["KIND", *_OPTIONS])
    ).map(lambda pair: f"JOBRUNNER_CONNECTIONS__{pair[0]}__{pair[1]}"),
    st.tuples(
        st.sampled_from(["BatchMonitorJob", "x"]), st.sampled_from(["HEARTRATE", "POLL_INTERVAL", "OTHER"])
    ).map(lambda pair: f"JOBRUNNER_JOB_TYPES__{pair[0]}__{pair[1]}"),
    st.sampled_from(["CONNECTIONS__A", "CONNECTIONS__batch_default", "JOB_TYPES__x"]).map(
        lambda name: f"JOBRUNNER_{name}"
    ),
    argument_text.map(lambda text: f"JOBRUNNER_{text.replace('=', '')}"),
)


@given(st.dictionaries(_variable_names, _value, max_size=4))
@examples(150)
def test_any_environment_gives_settings_or_one_sentence(variables: dict[str, str]) -> None:
    variables.pop("JOBRUNNER_CONFIG", None)
    _try({name: _as_meant(name, value) for name, value in variables.items()})


@given(st.sampled_from(_KINDS), st.dictionaries(st.sampled_from(_OPTIONS), _value, max_size=4))
@examples(100)
def test_any_connection_in_the_environment_gives_a_backend_or_one_sentence(
    kind: str, options: dict[str, str]
) -> None:
    variables = {
        f"JOBRUNNER_CONNECTIONS__A__{key.upper()}": _as_meant(key, value) for key, value in options.items()
    }
    _try({"JOBRUNNER_CONNECTIONS__A__KIND": kind, **variables})


# --- the file ------------------------------------------------------------------------------------


def _as_toml(value: Any) -> str:
    """Write a value as TOML, inline; what TOML cannot hold becomes what a person might write for it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return (
            "{" + ", ".join(f"{_as_toml(str(key))} = {_as_toml(item)}" for key, item in value.items()) + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(map(_as_toml, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value.encode(errors="replace").decode())
    if isinstance(value, dt.datetime):
        return value.isoformat()
    return str(value)


_toml_scalar = st.one_of(any_scalar, _value, st.datetimes())
_toml_tree = st.dictionaries(
    st.one_of(st.sampled_from([*_NAMES, "connections", "job_types"]), any_text),
    st.one_of(
        _toml_scalar,
        any_json(scalars=_toml_scalar),
        st.dictionaries(
            st.sampled_from(["A", "batch_default", "", "a.b", "armada-jobservice_default"]),
            st.dictionaries(
                st.sampled_from(["kind", "heartrate", *_OPTIONS]), _toml_scalar | any_json(), max_size=4
            ),
            max_size=2,
        ),
    ),
    max_size=3,
)


@given(_toml_tree)
@examples(150)
def test_any_table_in_the_file_gives_settings_or_one_sentence(tree: dict[str, Any]) -> None:
    tree = _as_meant("", tree)
    text = "".join(f"{_as_toml(str(key))} = {_as_toml(value)}\n" for key, value in tree.items())
    _try({}, text.encode(errors="replace"))


_toml_pieces = st.lists(
    st.sampled_from(
        [
            "heartrate",
            "=",
            "1",
            "\n",
            "[",
            "]",
            "[[",
            "]]",
            "connections",
            ".",
            '"',
            "'''",
            "{",
            "}",
            "#",
            "nan",
            "\r",
        ]
    ),
    max_size=20,
).map(lambda pieces: "".join(pieces).encode())


@given(
    st.one_of(
        st.binary(max_size=60),
        _toml_pieces,
        st.just(b"\xef\xbb\xbfheartrate = 1"),
        st.just(b"a = " + b"[" * 5000),
    )
)
@examples(150)
def test_any_bytes_in_the_file_give_settings_or_one_sentence(content: bytes) -> None:
    _try({}, content)


# --- URLs ----------------------------------------------------------------------------------------

_url = st.builds(
    "".join,
    st.tuples(
        st.sampled_from(
            [
                "postgresql",
                "postgres",
                "sqlite",
                "postgresql+psycopg",
                "sqlite+pysqlite",
                "mysql",
                "",
                "SQLITE",
                "postgresql+asyncpg",
            ]
        ),
        st.sampled_from(["://", ":///", "", ":", ":////"]),
        st.sampled_from(
            ["", "user@", f"user:{quote(SECRET, safe='')}@", f"user:{SECRET}@", "%zz@", "@@", ":@"]
        ),
        st.sampled_from(
            [
                "",
                "127.0.0.1",
                "[::1]",
                "[::1",
                "127.0.0.1,127.0.0.2",
                "%2Ftmp%2Fnowhere",
                "a b",
                "\ud800".encode(errors="surrogatepass").decode(errors="surrogateescape"),
            ]
        ),
        st.sampled_from(["", ":1", ":0", ":99999", ":x", ":-1", ":1,127.0.0.1:1"]),
        st.sampled_from(["", "/", "/db", "/%00", "/a%2Fb", "/:memory:", "/x?mode=memory", "/d b"]),
        st.sampled_from(
            [
                "",
                "?",
                "?sslmode=no",
                "?connect_timeout=x",
                "?options=-c%20x",
                "?a=b&a=c",
                "?port=x",
                "#f",
                "?host=/nowhere",
                f"?password={quote(SECRET, safe='')}",
            ]
        ),
    ),
)


@given(_url, st.sampled_from(["JOBRUNNER_DATABASE_URL", "JOBRUNNER_LISTEN_URL"]))
@examples(200)
def test_any_url_is_used_or_refused_in_one_sentence(url: str, variable: str) -> None:
    # A path is no secret, whatever it looks like, and nor is a value of which a password is the rest.
    assume(not ("?mode=" in url and "?password=" in url))
    assume(not (url.strip().lower().startswith("sqlite") and "s3cr3t" in url.partition("?")[0]))
    with _surroundings({variable: url, "JOBRUNNER_CONNECT_TIMEOUT_S": "1"}, None):
        try:
            settings = module.get_settings()
            _use_all(settings)
            database = Database(settings)
        except UsageError as error:
            ensure_message(str(error), "database_url", "listen_url", "SQLite", "database")
            return
        except JobrunnerError as error:
            ensure_message(str(error))
            return
        try:
            with database.read():
                pass
        except JobrunnerError as error:
            ensure_message(str(error))
        finally:
            ensure_no_secret(database.shown_url)
            database.dispose()
