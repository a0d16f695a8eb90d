import logging
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

import pytest

from jobrunner import known_secrets
from jobrunner.cli.exits import tell
from jobrunner.errors import BackendError, DatabaseError, words_of
from jobrunner.known_secrets import remember, without_secrets
from jobrunner.logs import get_logger
from jobrunner.redaction import mask_url
from jobrunner.settings import configure

SECRET = "p@ss-word/of the#house"


@pytest.fixture(autouse=True)
def _nothing_known() -> Iterator[None]:
    known_secrets.forget_all()
    yield
    known_secrets.forget_all()


@pytest.mark.parametrize(
    "echo",
    [
        SECRET,
        quote(SECRET, safe=""),
        quote_plus(SECRET),
        "ss-word",
        "ss-word/of the#house@db",
        "of the#house@db",
        "house",
        quote("ss-word/of the#house", safe=""),
    ],
)
def test_a_secret_is_masked_whole_encoded_and_in_part(echo: str) -> None:
    remember(SECRET)
    text = without_secrets(f'could not translate host name "{echo}" to address')
    assert text.startswith('could not translate host name "***')
    for part in ("ss-word", "house", "ss-", "of the"):
        assert part not in text


def test_a_short_secret_is_masked_only_where_it_stands_alone() -> None:
    remember("test")
    assert without_secrets("test, the latest of tests: 'test'") == "***, the latest of tests: '***'"
    remember("x")
    assert without_secrets("x") == "x"


def test_what_is_public_stays_readable_though_a_password_repeats_it() -> None:
    configure(database_url="postgresql://postgres:postgres@db/jobs").database  # noqa: B018
    assert without_secrets('authentication failed for user "postgres"').endswith('"postgres"')


def test_every_error_masks_what_it_says_and_so_does_every_log_line(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    remember(SECRET)
    errors = [DatabaseError(f"refused: {SECRET}"), BackendError(f"no: {SECRET}")]
    texts = [str(error) for error in errors] + [words_of(ValueError(SECRET))]
    with caplog.at_level(logging.INFO, logger="jobrunner"):
        error = ValueError(f"host {SECRET}")
        get_logger("jobrunner.test").error("it failed", why=SECRET, exc_info=error)
        monkeypatch.setenv("JOBRUNNER_DEBUG", "1")
        tell(error)
    texts += [record.getMessage() for record in caplog.records]
    shown = capsys.readouterr().err
    assert "ValueError" in shown
    for text in (*texts, shown):
        assert "***" in text
        assert "ss-word" not in text


@pytest.mark.parametrize("kind", ["airbyte", "armada", "batch", "other"])
@pytest.mark.parametrize(
    "options",
    [
        {"token": SECRET},
        {"client_secret": "${env:ODD}"},
        {"nested": {"password": "${env:ODD}"}},
        {"url": "https://me:${env:ODD}@host/x"},
        {"url": f"https://me:{quote(SECRET, safe='')}@host/x"},
        {"url": "https://host/x?access_token=${env:ODD}"},
    ],
)
def test_the_secrets_of_every_kind_of_connection_are_known_once_it_is_used(
    kind: str, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ODD", SECRET)
    configure(connections={"c": {"kind": kind, **options}}).connection("c", kind)
    assert "ss-word" not in without_secrets(f"the server said: {SECRET} is wrong")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:a@secret/of:mine?x#y@db/jobs",
        "postgresql://me:a secret@db/jobs",
        "postgresql://me:123/secret@db/jobs",
        "postgresql://${env:USER}:secret@db/jobs",
        "postgresql://me:${env:A}secret@db/jobs",
    ],
)
def test_a_shown_url_hides_its_password_however_it_is_written(url: str) -> None:
    assert "secret" not in mask_url(url)


def test_references_stay_as_they_are_in_a_shown_url() -> None:
    url = "postgresql://${env:U}:${env:P}@db/x"
    assert mask_url(url) == url
