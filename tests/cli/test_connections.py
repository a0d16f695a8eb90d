"""`jobrunner connections`: which there are, and whether one of them works."""

from collections.abc import Callable, Iterator

import pytest

from tests.cli.conftest import Answer, CommandLine
from tests.cli.test_asking import on_terminal
from tests.stubs.airbyte_server import AirbyteStub
from tests.stubs.airbyte_server import serving as serving_airbyte
from tests.stubs.batch_server import BatchStub

CONFIGURATION = """\
[connections.eu]
kind = "batch"
region = "eu-west-1"
role_arn = "arn:aws:iam::123456789012:role/jobs"

[connections.air]
kind = "airbyte"
url = "http://user:hush@localhost:8000/api"
client_secret = "hush"
"""


def test_the_default_of_each_kind_is_there_without_any_configuration(jobrunner: CommandLine) -> None:
    lines = [line.split() for line in jobrunner("connections").out.splitlines()]
    assert lines[0] == ["name", "kind", "where", "source"]
    assert ["batch_default", "batch", "-", "default"] in lines
    assert ["process_default", "process", "-", "default"] in lines


def test_what_is_configured_is_shown_with_its_source_and_without_its_secrets(jobrunner: CommandLine) -> None:
    (jobrunner.directory / "jobrunner.toml").write_text(CONFIGURATION)
    variable = "JOBRUNNER_CONNECTIONS__BATCH_DEFAULT__REGION"
    jobrunner.environment[variable] = "us-east-1"
    answer = jobrunner("connections", "--json")
    found = {each["name"]: each for each in answer.json}
    defaults = {"airbyte_default", "armada_default", "batch_default", "process_default"}
    assert list(found) == sorted({"air", "eu"} | defaults)
    assert found["eu"]["options"] == {
        "region": "eu-west-1",
        "role_arn": "arn:aws:iam::123456789012:role/jobs",
    }
    assert found["eu"]["source"].startswith("jobrunner.toml (")
    assert found["batch_default"] == {
        "name": "batch_default",
        "kind": "batch",
        "options": {"region": "us-east-1"},
        "source": f"environment {variable}",
    }
    assert found["air"]["options"]["client_secret"] == "***"
    shown = jobrunner("connections")
    assert "region=eu-west-1, role_arn=" in shown.out
    assert "hush" not in answer.out + shown.out
    for columns in (40, 80, 120):
        lines = on_terminal(jobrunner, columns, "connections").splitlines()
        assert max(len(line) for line in lines) <= columns


def test_a_connection_that_works_is_ok(aws: CommandLine, batch: BatchStub) -> None:
    answer = aws("connections", "test", "batch_default")
    assert (answer.code, answer.words) == (0, "")
    assert answer.out.startswith("batch_default: ok: ")
    assert batch.url in answer.out
    assert aws("connections", "test", "BATCH_DEFAULT", "--json").json["ok"] is True
    found = aws("connections", "--json", "test", "batch_default").json
    assert (found["name"], found["kind"], found["ok"]) == ("batch_default", "batch", True)
    assert batch.submitted() == []
    assert not aws.database.exists()


TROUBLE = [
    ("access_denied", "permission denied"),
    ("expired_token", "have expired"),
    ("unknown_token", "credentials"),
    ("clock_skew", "clock"),
    ("html", "HTML page"),
    ("server_error", "500"),
    ("throttled", "throttled"),
    ("lost_answer", "no clear answer"),
]


@pytest.mark.parametrize(("fault", "words"), TROUBLE)
def test_what_does_not_work_is_one_sentence(
    aws: CommandLine, batch: BatchStub, fault: str, words: str
) -> None:
    batch.fault("*", fault, None)  # type: ignore[arg-type]
    answer = aws("connections", "test", "batch_default")
    assert (answer.code, answer.out) == (1, "")
    assert len(answer.words.splitlines()) == 1
    assert answer.says("batch_default: ", words)
    found = aws("connections", "test", "batch_default", "--json")
    assert (found.code, found.json["ok"]) == (1, False)
    assert words in found.json["message"]


def test_what_cannot_be_asked_for_at_all_is_said(aws: CommandLine) -> None:
    def trouble(**environment: str) -> str:
        answer = aws("connections", "test", "batch_default", **environment)
        assert (answer.code, answer.out) == (1, ""), answer
        assert "Traceback" not in answer.words
        return answer.words

    place = "JOBRUNNER_CONNECTIONS__BATCH_DEFAULT__"
    assert "region" in trouble(AWS_REGION="")
    assert "credentials" in trouble(AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="")
    assert "nope" in trouble(**{f"{place}PROFILE": "nope"})
    assert "127.0.0.1:9" in trouble(**{f"{place}ENDPOINT_URL": "http://127.0.0.1:9"})


def test_a_wrong_setting_of_a_connection_is_bad_input(aws: CommandLine) -> None:
    place = "JOBRUNNER_CONNECTIONS__BATCH_DEFAULT__"
    answer = aws("connections", "test", "batch_default", **{f"{place}REGIO": "x"})
    assert answer.is_refused("'regio'", "region")
    answer = aws("connections", "test", "batch_default", **{f"{place}REGION": "${env:NOT_SET}"})
    assert answer.is_refused("NOT_SET", "connections.batch_default")
    (aws.directory / "jobrunner.toml").write_text(CONFIGURATION)
    assert aws("connections", "test", "other").is_refused('no connection "other"', "configured: air, eu")


def test_without_boto3_it_says_how_to_install_it(aws: CommandLine) -> None:
    error = "ModuleNotFoundError(\"No module named 'boto3'\", name='boto3')"
    (aws.directory / "boto3.py").write_text(f"raise {error}\n")
    assert aws("connections", "test", "batch_default").is_refused("pip install 'jobrunner[aws]'")
    assert aws("connections").code == 0


def test_a_kind_without_a_test_has_nothing_to_test(jobrunner: CommandLine) -> None:
    answer = jobrunner("connections", "test", "process_default")
    assert answer == (0, "process_default: there is nothing to test in a connection of kind process.\n", "")
    assert jobrunner("connections", "test", "process_default", "--json").json["ok"] is None


@pytest.fixture
def foreign(jobrunner: CommandLine) -> CommandLine:
    """The command line beside a third party's backends."""
    (jobrunner.directory / "foreign.py").write_text(
        "import asyncio\n"
        "from jobrunner.backends.base import Patience\n"
        "class Hangs:\n"
        "    patience = Patience(call_s=0.2)\n"
        "    @classmethod\n"
        "    def from_connection(cls, connection):\n"
        "        return cls()\n"
        "    async def check(self):\n"
        "        await asyncio.sleep(60)\n"
        "    async def close(self):\n"
        "        print('closed')\n"
        "class Breaks(Hangs):\n"
        "    async def check(self):\n"
        "        raise LookupError('http://user:hush@host/')\n"
    )
    installed = jobrunner.directory / "foreign-0.1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign\nVersion: 0.1\n")
    (installed / "entry_points.txt").write_text(
        "[jobrunner.backends]\nhangs = foreign:Hangs\nbreaks = foreign:Breaks\n"
    )
    return jobrunner


def test_a_silent_system_is_not_waited_for_longer_than_its_patience(foreign: CommandLine) -> None:
    answer = foreign("connections", "test", "hangs_default")
    assert (answer.code, answer.out) == (1, "closed\n")
    assert answer.says("hangs_default: no answer within 0.2 s")


def test_whatever_a_third_party_raises_is_one_sentence(foreign: CommandLine) -> None:
    answer = foreign("connections", "test", "breaks_default")
    assert answer.code == 1
    assert answer.says("breaks_default: unexpected LookupError: http://user:***@host/")
    assert "hangs_default" in foreign("connections").out


# --- Airbyte ---------------------------------------------------------------------------------------


@pytest.fixture
def airbyte_stub() -> Iterator[AirbyteStub]:
    with serving_airbyte() as served:
        yield served


@pytest.fixture
def airbyte(jobrunner: CommandLine, airbyte_stub: AirbyteStub) -> Callable[..., Answer]:
    """Test a connection to that Airbyte, with some of its settings changed."""

    def test(*arguments: str, **changes: str) -> Answer:
        settings = {
            "KIND": "airbyte",
            "URL": airbyte_stub.url,
            "CLIENT_ID": airbyte_stub.client_id,
            "CLIENT_SECRET": airbyte_stub.client_secret,
            **changes,
        }
        place = "JOBRUNNER_CONNECTIONS__AIRBYTE_DEFAULT__"
        environment = {f"{place}{key}": value for key, value in settings.items()}
        return jobrunner("connections", "test", "airbyte_default", *arguments, **environment)

    return test


def is_one_sentence_of_trouble(answer: Answer, *words: str) -> bool:
    assert (answer.code, answer.out) == (1, ""), answer
    assert len(answer.words.splitlines()) == 1, answer
    assert "hunter2" not in answer.words
    return answer.says("airbyte_default: ", *words)


def test_an_airbyte_that_answers_is_ok(airbyte: Callable[..., Answer], airbyte_stub: AirbyteStub) -> None:
    said = f"Airbyte answered GET /jobs at {airbyte_stub.url}"
    assert airbyte() == (0, f"airbyte_default: ok: {said}\n", "")
    assert airbyte(URL=f"{airbyte_stub.url}/").code == 0
    assert airbyte("--json").json == {
        "name": "airbyte_default",
        "kind": "airbyte",
        "ok": True,
        "message": said,
    }
    assert set(airbyte_stub.counts()) == {"token", "list"}, "it changes nothing"


@pytest.mark.parametrize("wrong", ["CLIENT_ID", "CLIENT_SECRET"])
def test_wrong_credentials_of_airbyte_are_told_without_them(
    airbyte: Callable[..., Answer], airbyte_stub: AirbyteStub, wrong: str
) -> None:
    told = f"Airbyte refused the client id or secret at {airbyte_stub.url}: 401 Invalid client credentials"
    answer = airbyte(**{wrong: "wrong-and-private"})
    assert is_one_sentence_of_trouble(answer, told)
    assert "wrong-and-private" not in answer.words
    found = airbyte("--json", **{wrong: "wrong-and-private"})
    assert (found.code, found.json["ok"], found.json["message"]) == (1, False, told)


@pytest.mark.parametrize(
    "path", ["", "/", "/v1", "/api/v1", "/api/public", "/api/public/v2", "/api/public/v1/jobs"]
)
def test_a_wrong_url_of_airbyte_says_which_is_expected(
    airbyte: Callable[..., Answer], airbyte_stub: AirbyteStub, path: str
) -> None:
    answer = airbyte(URL=f"{airbyte_stub.root}{path}")
    shown = f"{airbyte_stub.root}{path.rstrip('/')}"
    expected = f"ends with /api/public/v1: expected {airbyte_stub.url}, not {shown}"
    assert is_one_sentence_of_trouble(answer, expected)


@pytest.mark.parametrize("kind", ["html", "bad_gateway", "redirect"])
@pytest.mark.parametrize("operation", ["token", "list"])
def test_the_answer_of_a_proxy_is_told_as_what_it_is(
    airbyte: Callable[..., Answer], airbyte_stub: AirbyteStub, operation: str, kind: str
) -> None:
    airbyte_stub.fault(operation, kind, times=None)  # type: ignore[arg-type]
    words = {
        "html": "with 200 and an HTML page, which is not how Airbyte's API answers",
        "bad_gateway": "with 502 and an HTML page",
        "redirect": "with 302 and a redirection, which is not how Airbyte's API answers",
    }
    answer = airbyte()
    assert is_one_sentence_of_trouble(answer, airbyte_stub.url, words[kind])
    assert ("or the proxy in between" in answer.words) == (kind != "bad_gateway")


def test_an_airbyte_where_nobody_listens_is_told(airbyte: Callable[..., Answer]) -> None:
    url = "http://127.0.0.1:9/api/public/v1"
    answer = airbyte(URL=url)
    assert is_one_sentence_of_trouble(answer, f"{url} cannot be reached for POST /applications/token")
    answer = airbyte(URL="http://no-such-host.invalid/api/public/v1")
    assert is_one_sentence_of_trouble(answer, "no-such-host.invalid", "cannot be reached")


def test_a_setting_of_an_airbyte_that_cannot_be_right_is_bad_input(airbyte: Callable[..., Answer]) -> None:
    assert airbyte(URL="localhost:8000").is_refused("'url' must be of the form http:// or https://")
    assert airbyte(URL="http://host:port/api/public/v1").is_refused("'url' names no host, or a port")
    assert airbyte(CA_FILE="/nowhere/ca.pem").is_refused("`ca_file` /nowhere/ca.pem", "cannot be used")
    assert airbyte(TOKEN="hunter2").is_refused("'client_id' and 'token' are different ways to be let in")


def test_without_httpx_a_connection_to_airbyte_says_how_to_install_it(
    airbyte: Callable[..., Answer], jobrunner: CommandLine
) -> None:
    error = "ModuleNotFoundError(\"No module named 'httpx'\", name='httpx')"
    (jobrunner.directory / "httpx.py").write_text(f"raise {error}\n")
    assert airbyte().is_refused("Airbyte needs httpx", "pip install 'jobrunner[airbyte]'")
