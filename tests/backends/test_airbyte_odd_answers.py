"""Answers that Airbyte, or whoever stands before it, should not give: none spoils more than itself."""

import asyncio
import datetime as dt
import json
from collections.abc import Iterator
from email.utils import format_datetime
from typing import Any

import pytest

from jobrunner.backends.airbyte import AirbyteBackend, AirbyteConnection, transport
from jobrunner.backends.airbyte.reading import job_of, observation_of
from jobrunner.backends.airbyte.tokens import life_of
from jobrunner.backends.airbyte.trouble import AirbyteError, Call, Kind, of_status
from jobrunner.backends.base import Found, Gone, Observation, RemoteError, Unsure
from jobrunner.clock import utcnow
from jobrunner.errors import BackendError, SettingsError, SubmitRejected, Throttled
from jobrunner.settings import ConnectionSettings
from jobrunner.states import Phase
from tests.backends.airbyte_help import SPEC, a_backend, an_api, in_loop
from tests.stubs.airbyte_server import CONNECTION, HTML, AirbyteStub, serving


@pytest.fixture
def stub() -> Iterator[AirbyteStub]:
    with serving() as served:
        yield served


async def answer_for(backend: AirbyteBackend, job_id: int) -> Observation | Gone | RemoteError:
    return (await backend.fetch([str(job_id)]))[str(job_id)]


async def all_seen(backend: AirbyteBackend, ids: list[int]) -> None:
    """Ask until each job was seen, and no reconciliation is under way."""
    while True:
        answers = await backend.fetch([str(each) for each in ids])
        if backend._feed._reconciling is None and all(
            isinstance(answer, Observation) for answer in answers.values()
        ):
            return


# --- one job ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("job_id", [1005, "1005", 1005.0])
def test_an_id_is_a_number_or_its_text(job_id: Any) -> None:
    job = job_of({"jobId": job_id, "status": "running"})
    assert job is not None
    assert job.id == 1005


@pytest.mark.parametrize("job_id", [None, "", "abc", 0, -1, "-1", True, 12.5, 2**63, "9" * 5000, [1], {}])
def test_what_is_no_id_is_no_job(job_id: Any) -> None:
    assert job_of({"jobId": job_id, "status": "running"}) is None


@pytest.mark.parametrize("status", [None, "", "  ", 7, [], {"a": 1}])
def test_a_job_without_a_status_is_no_job(status: Any) -> None:
    assert job_of({"jobId": 1, "status": status}) is None
    assert job_of({"jobId": 1}) is None


@pytest.mark.parametrize(
    "odd",
    [
        {"startTime": "0001-01-01T00:00:00+14:00"},
        {"startTime": float("nan"), "lastUpdatedAt": 10**30},
        {"startTime": "yesterday", "lastUpdatedAt": ["x"]},
        {"duration": "P99999999999999D"},
        {"duration": 7},
        {"duration": f"PT{'9' * 400}S"},
        {"rowsSynced": "9" * 400, "bytesSynced": 10**400},
        {"rowsSynced": -1, "bytesSynced": True},
        {"rowsSynced": float("inf"), "bytesSynced": "many"},
        {"connectionId": None, "jobType": None},
        {"connectionId": 5, "jobType": {}},
        {"somethingNew": {"a": [1]}},
    ],
)
def test_an_odd_field_is_left_out_and_the_job_is_read(odd: dict[str, Any]) -> None:
    job = job_of({"jobId": 1, "status": "succeeded", **odd})
    assert job is not None
    seen = observation_of(job)
    assert seen.phase is Phase.SUCCEEDED
    assert not {"rows", "bytes", "duration_s"} & seen.detail.keys()
    json.dumps(seen.detail, allow_nan=False)


def test_words_are_such_as_a_database_keeps_and_a_terminal_shows() -> None:
    job = job_of(
        {"jobId": 1, "status": "run\x00ning\ud800\x1b[2J", "connectionId": "\x00", "jobType": "a\nb"}
    )
    assert job is not None
    assert (job.status, job.kind, job.connection_id) == ("run ning [2J", "a b", "")
    long = job_of({"jobId": 1, "status": "x" * 100_000})
    assert long is not None
    assert len(long.status) == 200
    said = of_status(
        Call("GET /jobs/1", "http://h"), 500, {}, '{"message": "no\\u0000\\ud800\\u001b[2J way"}'
    )
    assert str(said) == "http://h answered GET /jobs/1 with 500: no [2J way"


@pytest.mark.parametrize("said", [None, [], "running", 7, {}, {"jobId": 1001}, {"status": "running"}])
@in_loop
async def test_a_get_without_a_job_is_no_verdict(stub: AirbyteStub, said: Any) -> None:
    (job_id,) = stub.seed()
    async with a_backend(stub) as backend:
        stub.say("get", said if said != "running" else '"running"')
        answer = await answer_for(backend, job_id)
        assert isinstance(answer, RemoteError)
        assert "and no job, which is not how Airbyte's API answers" in answer.message
        assert isinstance(await answer_for(backend, job_id), Observation)


@in_loop
async def test_a_job_is_not_taken_for_another(stub: AirbyteStub) -> None:
    """As a cache gives it, whose keys are wrong."""
    asked, other = stub.seed(2)
    async with a_backend(stub) as backend:
        assert isinstance(await answer_for(backend, asked), Observation)
        stub.succeed(other)
        stub.say("get", stub.shown(stub.get(other)), times=3)
        answer = await answer_for(backend, asked)
        assert isinstance(answer, RemoteError)
        assert f"with 200 and the job {other}, which is not how" in answer.message
        troubles = await backend.cancel([str(asked)], "enough")
        assert "delete" not in stub.counts()
        assert f"the job {other}" in troubles[str(asked)].message


# --- lists -----------------------------------------------------------------------------------------


@in_loop
async def test_a_list_that_is_null_is_empty(stub: AirbyteStub) -> None:
    async with a_backend(stub) as backend:
        stub.say("list", {"data": None, "next": ""}, times=2)
        assert "answered GET /jobs" in await backend.check()
        assert await backend.baseline(SPEC) == "0"


@pytest.mark.parametrize("said", ["null", [], {}, {"data": {}}, {"data": "x"}, {"error": "no"}, "[" * 10_000])
@in_loop
async def test_what_is_no_list_is_an_error_and_makes_no_baseline(stub: AirbyteStub, said: Any) -> None:
    async with a_backend(stub) as backend:
        stub.say("list", said)
        with pytest.raises(SubmitRejected, match="which is not how Airbyte's API answers"):
            await backend.baseline(SPEC)


@in_loop
async def test_a_job_in_a_list_that_cannot_be_read_spoils_no_other_and_is_logged_once(
    stub: AirbyteStub, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = stub.seed(2)
    entries = [{"jobId": None, "status": "running"}, "x", None, stub.shown(stub.get(second))]
    async with an_api(stub) as api:
        stub.say("list", {"data": entries}, times=3)
        for _ in range(3):
            page = await api.list_jobs({})
            assert ([job.id for job in page.jobs], page.count) == ([second], 4)
    assert caplog.text.count("lists jobs that cannot be read") <= 1
    assert first


@in_loop
async def test_a_server_that_knows_no_offsets_is_not_read_for_ever(stub: AirbyteStub) -> None:
    ids = stub.seed(150)
    page = {"data": [stub.shown(stub.get(each)) for each in ids[:100]]}
    async with a_backend(stub) as backend:
        stub.say("list", page, times=None)
        async with asyncio.timeout(60):
            await all_seen(backend, ids)
    assert stub.counts()["list"] < 30


@in_loop
async def test_a_page_that_failed_is_asked_for_again(stub: AirbyteStub) -> None:
    """The look before is the one from which the next one counts, unless all its pages were read."""
    ids = stub.seed(150)
    stub.age(3600)
    async with a_backend(stub, overlap_s=0.0) as backend:
        await all_seen(backend, ids)
        for each in ids:
            stub.succeed(each)
        stub.clock_ahead_s = 60.0  # the next look is a minute later, by the server's clock
        stub.say("list", {"data": [stub.shown(stub.get(each)) for each in ids[50:]]})
        stub.fault("list", "server_error")
        with pytest.raises(BackendError, match="500"):
            await backend.fetch([str(each) for each in ids])
        answers = await backend.fetch([str(each) for each in ids])
    assert {answer.phase for answer in answers.values() if isinstance(answer, Observation)} == {
        Phase.SUCCEEDED
    }


@pytest.mark.parametrize("count", [10, 50])
@in_loop
async def test_where_no_list_is_to_be_had_jobs_are_asked_for_by_their_ids_in_turns(
    stub: AirbyteStub, count: int
) -> None:
    """And of whom nothing new is known, that is said: it is not shown as if it were fresh."""
    ids = stub.seed(count)
    stub.fault("list", "server_error", times=None)
    ended: set[int] = set()
    async with a_backend(stub) as backend:
        while backend._feed.trouble is None:
            await backend.fetch([str(each) for each in ids])
        for each in ids:
            stub.succeed(each)
        for _ in range(4):
            for text, answer in (await backend.fetch([str(each) for each in ids])).items():
                if isinstance(answer, Observation):
                    assert answer.phase is Phase.SUCCEEDED
                    ended.add(int(text))
    assert ended == set(ids)


# --- who is not visible ----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 10])
@pytest.mark.parametrize("status", [403, 404, 409])
@in_loop
async def test_a_proxy_that_answers_every_path_so_makes_no_job_gone(
    stub: AirbyteStub, status: int, count: int
) -> None:
    """As an ingress does whose server is away: for as long as it likes, that is no word about a job."""
    ids = stub.seed(count)
    async with a_backend(stub) as backend:
        await all_seen(backend, ids)
        backend._feed._listed_s = float("-inf")  # the last list was long ago
        stub.say("*", "404 page not found", times=None, status=status, content_type="text/plain")
        for _ in range(3):
            try:
                answers = await backend.fetch([str(each) for each in ids])
            except BackendError:
                continue
            assert all(isinstance(answer, RemoteError) for answer in answers.values())
        stub.clear_faults()
        assert isinstance(await answer_for(backend, ids[0]), Observation)


@pytest.mark.parametrize("status", [404, 409])
@in_loop
async def test_a_deleted_job_is_gone_also_where_these_credentials_may_list_nothing(
    stub: AirbyteStub, status: int
) -> None:
    stub.unknown_status, stub.lists_need_workspaces = status, True
    (job_id,) = stub.seed()
    async with a_backend(stub) as backend:
        assert isinstance(await answer_for(backend, job_id), Observation)
        stub.vanish(job_id)
        assert isinstance(await answer_for(backend, job_id), Gone)


@pytest.mark.parametrize("status", [403, 404, 409])
@in_loop
async def test_an_unknown_airbyte_connection_is_refused_in_airbytes_own_words(
    stub: AirbyteStub, status: int
) -> None:
    stub.known_connections, stub.unknown_status, stub.lists_unknown_connections = [], status, False
    async with a_backend(stub) as backend:
        with pytest.raises(SubmitRejected) as caught:
            await backend.baseline(SPEC)
    assert f"could not find connection {CONNECTION}" in str(caught.value)
    assert "`url`" not in str(caught.value), "it is not about the URL"


@in_loop
async def test_a_submission_in_doubt_whose_connection_was_deleted_ends_with_a_named_doubt(
    stub: AirbyteStub,
) -> None:
    stub.known_connections, stub.lists_unknown_connections = [], False
    async with a_backend(stub, doubt_s=0.0) as backend:
        proof = await backend.find(SPEC, "token", utcnow(), baseline="0")
    assert isinstance(proof, Unsure)
    assert proof.retry_at is None
    assert f"could not find connection {CONNECTION}" in proof.reason


# --- a POST that was answered oddly ----------------------------------------------------------------


@pytest.mark.parametrize(
    "said", [HTML, "all is well", "", "null", [], {}, {"jobId": None}, {"jobId": "x"}, {"status": "running"}]
)
@in_loop
async def test_a_post_whose_answer_cannot_be_read_is_in_doubt_and_its_job_is_found(
    stub: AirbyteStub, said: Any
) -> None:
    async with a_backend(stub) as backend:
        baseline = await backend.baseline(SPEC)
        stub.say("post", said, performs=True)
        with pytest.raises(BackendError) as caught:
            await backend.submit(SPEC, "token")
        assert not isinstance(caught.value, (SubmitRejected, Throttled))
        found = await backend.find(SPEC, "token", utcnow(), baseline=baseline)
    assert found == Found(str(stub.job_ids()[0]))
    assert stub.counts()["post"] == 1


@pytest.mark.parametrize("said", [HTML, "x", {}, {"access_token": None}])
@in_loop
async def test_a_post_that_did_not_leave_for_want_of_a_token_is_in_no_doubt(
    stub: AirbyteStub, said: Any
) -> None:
    async with a_backend(stub) as backend:
        await backend.baseline(SPEC)
        stub.expire_tokens()
        stub.say("token", said, times=None)
        with pytest.raises(SubmitRejected):
            await backend.submit(SPEC, "token")
    assert not stub.job_ids()


@in_loop
async def test_an_endless_answer_to_a_post_is_a_doubt(
    stub: AirbyteStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_BODY_MOST", 1024)
    async with a_backend(stub) as backend:
        stub.say("post", " " * 100_000, performs=True)
        with pytest.raises(BackendError) as caught:
            await backend.submit(SPEC, "token")
    assert not isinstance(caught.value, (SubmitRejected, Throttled))


@pytest.mark.parametrize("said", [{"jobId": 1001}, {"jobId": "1001", "status": None}])
@in_loop
async def test_of_a_post_the_id_is_enough(stub: AirbyteStub, said: Any) -> None:
    async with a_backend(stub) as backend:
        stub.say("post", said, performs=True)
        assert await backend.submit(SPEC, "token") == "1001"
        answer = await answer_for(backend, 1001)
    assert isinstance(answer, Observation)
    assert answer.external_state == "running"


# --- later -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead_s", [0, 7200, -7200])
@in_loop
async def test_a_date_to_come_back_at_is_by_the_servers_own_clock(stub: AirbyteStub, ahead_s: float) -> None:
    stub.clock_ahead_s = ahead_s
    (job_id,) = stub.seed()
    at = dt.datetime.fromtimestamp(stub.now() + 40, dt.UTC)
    async with a_backend(stub) as backend:
        stub.fault("get", "throttled", retry_after=format_datetime(at, usegmt=True))
        with pytest.raises(Throttled) as caught:
            await answer_for(backend, job_id)
    assert caught.value.retry_after_s is not None
    assert 20 <= caught.value.retry_after_s <= 41


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7.0),
        ("-5", 0.0),
        ("", None),
        ("soon", None),
        ("nan", 0.0),
        ("Wed, 21 Oct 99999999999999999999 07:28:00 GMT", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
    ],
)
def test_what_a_server_says_of_when_to_come_back_is_read_as_far_as_it_makes_sense(
    text: str, seconds: float | None
) -> None:
    error = of_status(Call("GET /jobs", "http://h"), 429, {"retry-after": text}, "")
    assert (error.kind, error.retry_after_s) == (Kind.THROTTLED, seconds)


@pytest.mark.parametrize("kind", ["server_error", "bad_gateway"])
@in_loop
async def test_an_outage_that_names_its_end_is_waited_for(stub: AirbyteStub, kind: Any) -> None:
    (job_id,) = stub.seed()
    async with a_backend(stub) as backend:
        stub.fault("get", kind, retry_after="13")
        with pytest.raises(Throttled) as caught:
            await answer_for(backend, job_id)
    assert caught.value.retry_after_s == 13


@in_loop
async def test_a_reconciliation_that_is_told_to_come_back_later_does(stub: AirbyteStub) -> None:
    ids = stub.seed(40)
    stub.fault("list", "throttled", times=None, retry_after="300")
    async with a_backend(stub) as backend:
        while backend._feed.trouble is None:
            await backend.fetch([str(each) for each in ids])
        stub.forget_calls()
        for _ in range(3):
            with pytest.raises(Throttled) as caught:
                await backend.fetch([str(each) for each in ids])
            assert caught.value.retry_after_s == 300
        assert stub.counts() == {}, "until then nothing is asked, by id no more than by lists"
        stub.clear_faults()
        backend._feed._reconcile_at_s = 0.0  # it is time
        await all_seen(backend, ids)


# --- tokens ----------------------------------------------------------------------------------------


@in_loop
async def test_a_server_that_takes_another_form_than_before_is_understood_again(stub: AirbyteStub) -> None:
    """As after an upgrade, under a process that runs for months."""
    (job_id,) = stub.seed()
    stub.token_takes = "json"
    async with an_api(stub) as api:
        await api.get_job(job_id)
        stub.token_takes = "form"
        stub.expire_tokens()
        with pytest.raises(AirbyteError, match="415"):
            await api.get_job(job_id)
        assert (await api.get_job(job_id)).id == job_id


@in_loop
async def test_a_token_that_the_server_made_long_ago_lives_as_long_as_it_is_left() -> None:
    claims = "eyJleHAiOiAxOTAwLCAiaWF0IjogMTAwMH0"  # {"exp": 1900, "iat": 1000}
    assert life_of({"expires_in": 900}, f"e30.{claims}.sig", server_now_s=1800.0) == 100
    assert life_of({"expires_in": 900}, f"e30.{claims}.sig", server_now_s=None) == 900


@pytest.mark.parametrize("told", [float("nan"), float("inf"), "nan", None, [], True, {}])
def test_a_life_that_is_no_number_is_a_short_one(told: Any) -> None:
    assert life_of({"expires_in": told}, "opaque", None) == 180


@pytest.mark.parametrize("said", [None, [], {}, {"access_token": None}, {"access_token": 7}, "x", HTML])
@in_loop
async def test_an_answer_without_a_token_is_one_sentence(stub: AirbyteStub, said: Any) -> None:
    async with a_backend(stub) as backend:
        stub.say("token", said, times=None)
        with pytest.raises(AirbyteError) as caught:
            await backend.check()
    assert caught.value.kind is Kind.NOT_AIRBYTE
    assert "token" in str(caught.value)


# --- secrets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("auth", ["client", "bearer", "basic"])
@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 429, 500])
@in_loop
async def test_a_server_that_repeats_what_let_one_in_does_not_put_it_into_a_message(
    stub: AirbyteStub, auth: Any, status: int
) -> None:
    stub.auth = auth
    (job_id,) = stub.seed()
    async with an_api(stub) as api:
        stub.say("get", {"message": "cannot take AUTHORIZATION of hunter2"}, times=None, status=status)
        with pytest.raises(AirbyteError) as caught:
            await api.get_job(job_id)
    assert "cannot take *** of ***" in str(caught.value)


@in_loop
async def test_a_token_as_a_file_has_it_is_sent_without_its_line_end(stub: AirbyteStub) -> None:
    stub.auth = "bearer"
    async with a_backend(stub, {"token": " hunter2\n"}) as backend:
        assert "answered GET /jobs" in await backend.check()


@pytest.mark.parametrize("token", ["hunter2\nx", "hunter2\x00", "hünter2", "", " "])
@in_loop
async def test_a_token_that_no_header_can_have_is_refused_without_being_told(
    stub: AirbyteStub, token: str
) -> None:
    given: dict[str, Any] = {"kind": "airbyte", "token": token}
    with pytest.raises(SettingsError, match="'token' holds a character that no header can have") as caught:
        AirbyteConnection.of(ConnectionSettings(**given))
    assert "nter2" not in str(caught.value)
    async with a_backend(stub) as backend:
        stub.say("token", {"access_token": token, "expires_in": 900})
        with pytest.raises(AirbyteError, match="without one") as told:
            await backend.check()
    assert "nter2" not in str(told.value)


# --- size and what is kept -------------------------------------------------------------------------


@in_loop
async def test_an_endless_answer_is_not_read_to_its_end(
    stub: AirbyteStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_BODY_MOST", 1024 * 1024)
    (job_id,) = stub.seed()
    async with an_api(stub) as api:
        stub.say("get", " " * (4 * 1024 * 1024))
        with pytest.raises(AirbyteError, match="with 200 and more than 1 MiB"):
            await api.get_job(job_id)
        assert (await api.get_job(job_id)).id == job_id


@in_loop
async def test_jobs_that_nobody_asks_about_are_forgotten(
    stub: AirbyteStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where they are asked for one by one, for months, and no list is ever read."""
    now_s = 1000.0
    monkeypatch.setattr("jobrunner.backends.airbyte.backend.monotonic_s", lambda: now_s)
    async with a_backend(stub) as backend:
        for job_id in stub.seed(30):
            stub.succeed(job_id)
            await answer_for(backend, job_id)
            now_s += 1800.0
        assert len(backend._memory.jobs) <= 6


@in_loop
async def test_each_job_has_its_page_however_many_were_watched_before(stub: AirbyteStub) -> None:
    async with a_backend(stub) as backend:
        for job_id in stub.seed(8):
            stub.succeed(job_id)
            answer = await answer_for(backend, job_id)
            assert isinstance(answer, Observation)
            assert answer.detail["page"].endswith(f"jobId={job_id}")


# --- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"url": "http://host:99999/api/public/v1"}, "'url' names no host, or a port that there is not"),
        ({"url": "http://host:abc/api/public/v1"}, "'url' names no host, or a port that there is not"),
        ({"url": "http://[::1/api/public/v1"}, "'url' names no host, or a port that there is not"),
        ({"url": "http://host/api/public/v1?key=hunter2"}, "'url' ends with its path: leave out"),
        ({"config_api_url": "api/v1"}, "'config_api_url' must be of the form http:// or https://"),
        ({"ui_url": "box"}, "'ui_url' must be of the form http:// or https://"),
    ],
)
def test_an_address_that_leads_nowhere_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        AirbyteConnection.of(ConnectionSettings(kind="airbyte", **given))
    assert words in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_authorities_that_cannot_be_read_are_refused_before_anything_is_asked(tmp_path: Any) -> None:
    for path in ("absent.pem", "empty.pem", "~nobody-at-all/ca.pem"):
        (tmp_path / "empty.pem").touch()
        place = path if path.startswith("~") else str(tmp_path / path)
        given: dict[str, Any] = {"kind": "airbyte", "ca_file": place}
        words = r"'ca_file' begins with ~" if path.startswith("~") else r"`ca_file` .* cannot be used"
        with pytest.raises(SettingsError, match=words):
            AirbyteBackend.from_connection(ConnectionSettings(**given))


@pytest.mark.parametrize("proxy", ["foo:bar", "socks9://u:hunter2@127.0.0.1:1"])
@in_loop
async def test_a_proxy_that_cannot_be_used_is_one_sentence(
    stub: AirbyteStub, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    async with a_backend(stub) as backend:
        with pytest.raises(AirbyteError) as caught:
            await backend.check()
    assert caught.value.kind is Kind.SETTINGS
    assert "through the proxy" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_only_airbytes_own_hosts_are_its_cloud() -> None:
    assert AirbyteConnection(url="https://api.airbyte.com/v1").is_cloud
    assert not AirbyteConnection(url="https://notairbyte.com/api/public/v1").is_cloud


@in_loop
async def test_what_a_variable_holds_is_not_told(stub: AirbyteStub, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be the wrong one: a secret's."""
    monkeypatch.setenv("WRONG", "hunter2")
    async with a_backend(stub) as backend:
        for key in ("connectionId", "jobType", "onConflict"):
            with pytest.raises(SubmitRejected) as caught:
                await backend.submit({**SPEC, key: "${env:WRONG}"}, "token")
            assert "hunter2" not in str(caught.value)
            assert f"{key} is '${{env:WRONG}}'" in str(caught.value)
        monkeypatch.setenv("KIND", "refresh")
        await backend.submit({**SPEC, "jobType": "${env:KIND}"}, "token")
    assert stub.get(stub.job_ids()[0]).kind == "refresh"
