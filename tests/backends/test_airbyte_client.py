"""The calls to Airbyte: how they are let in, how few leave at once, and what their answers mean."""

import asyncio
import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from jobrunner.backends.airbyte import AirbyteConnection, transport
from jobrunner.backends.airbyte.client import Api
from jobrunner.backends.airbyte.tokens import TokenAnswer, Tokens, life_of
from jobrunner.backends.airbyte.trouble import AirbyteError, Kind
from jobrunner.backends.base import sending_until
from jobrunner.clock import monotonic_s
from jobrunner.errors import SettingsError, SubmitTooLate
from jobrunner.settings import ConnectionSettings
from tests.backends.airbyte_help import a_backend, an_api, in_loop, options_of, soon
from tests.stubs.airbyte_server import CONNECTION, AirbyteStub, FaultKind, serving


@pytest.fixture
def stub() -> Iterator[AirbyteStub]:
    with serving() as served:
        yield served


# --- being let in ----------------------------------------------------------------------------------


@pytest.mark.parametrize("auth", ["client", "bearer", "basic", "none"])
@in_loop
async def test_each_way_to_be_let_in_works(
    stub: AirbyteStub, auth: Literal["client", "bearer", "basic", "none"]
) -> None:
    stub.auth = auth
    (job_id,) = stub.seed()
    async with an_api(stub) as api:
        assert (await api.get_job(job_id)).status == "running"
    assert stub.counts().get("token", 0) == (1 if auth == "client" else 0)


@pytest.mark.parametrize(("takes", "tries"), [("json", 1), ("both", 1), ("form", 2)])
@in_loop
async def test_the_token_is_asked_for_as_json_and_then_as_a_form_and_the_form_that_works_is_kept(
    stub: AirbyteStub, takes: Literal["json", "form", "both"], tries: int
) -> None:
    stub.token_takes = takes
    (job_id,) = stub.seed()
    async with an_api(stub) as api:
        await api.get_job(job_id)
        assert stub.counts()["token"] == tries
        stub.expire_tokens()
        await api.get_job(job_id)
        assert stub.counts()["token"] == tries + 1
    sent = [call for call in stub.calls if call.operation == "token"][-1]
    assert sent.body["grant_type"] == sent.body["grant-type"] == "client_credentials"
    assert ("form" in sent.content_type) == (takes == "form")


@in_loop
async def test_fifty_calls_at_once_ask_for_one_token_and_three_are_under_way(stub: AirbyteStub) -> None:
    ids = stub.seed(50)
    stub.delay_s = 0.005
    async with an_api(stub) as api:
        await asyncio.gather(*(api.get_job(each) for each in ids))
    assert stub.counts() == {"token": 1, "get": 50}
    assert stub.max_concurrency <= 3


@in_loop
async def test_a_caller_that_gives_up_takes_the_token_from_nobody_else(stub: AirbyteStub) -> None:
    (job_id,) = stub.seed()
    stub.fault("token", "hang", seconds=0.1)
    async with an_api(stub) as api:
        impatient = asyncio.create_task(api.get_job(job_id))
        other = asyncio.create_task(api.get_job(job_id))
        await asyncio.sleep(0.02)
        impatient.cancel()
        assert (await other).id == job_id
    assert stub.counts()["token"] == 1


@in_loop
async def test_a_token_that_is_no_longer_taken_is_renewed_once_and_the_call_repeated(
    stub: AirbyteStub,
) -> None:
    (job_id,) = stub.seed()
    async with an_api(stub) as api:
        await api.get_job(job_id)
        stub.expire_tokens()
        await asyncio.gather(*(api.get_job(job_id) for _ in range(3)))
        assert stub.counts()["token"] == 2
        stub.forget_calls()
        stub.fault("get", "unauthorized", times=None)
        with pytest.raises(AirbyteError, match="refused the credentials for GET /jobs") as caught:
            await api.get_job(job_id)
    assert caught.value.kind is Kind.CREDENTIALS
    assert stub.counts() == {"get": 2, "token": 1}


@in_loop
async def test_a_post_that_was_not_let_in_is_sent_again_and_makes_one_job(stub: AirbyteStub) -> None:
    async with an_api(stub) as api:
        await api.newest_jobs(CONNECTION)
        stub.expire_tokens()
        await api.post_job(CONNECTION, "sync")
    assert len(stub.job_ids()) == 1
    assert stub.counts()["post"] == 2


@in_loop
async def test_a_token_is_renewed_by_its_own_end_where_that_is_sooner_than_what_the_server_says(
    stub: AirbyteStub,
) -> None:
    stub.jwt_life_s = 0.3  # `expires_in` says 900
    (job_id,) = stub.seed()
    async with an_api(stub) as api:
        until_s = monotonic_s() + 1.0
        while monotonic_s() < until_s:
            await api.get_job(job_id)
    refused = [call for call in stub.calls if call.status == 401]
    assert not refused
    assert stub.counts()["token"] >= 3


def _jwt(claims: dict[str, Any]) -> str:
    part = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"e30.{part}.sig"


@pytest.mark.parametrize(
    ("data", "token", "life_s"),
    [
        ({"expires_in": 900}, _jwt({"exp": 1180, "iat": 1000}), 180),
        ({"expires_in": 900}, _jwt({"exp": 1180}), 180),
        ({"expires_in": 100}, _jwt({"exp": 1180, "iat": 1000}), 100),
        ({"expires_in": "60"}, "opaque", 60),
        ({}, _jwt({"exp": 1300, "iat": 1000}), 300),
        ({}, "opaque", 180),
        ({"expires_in": "soon"}, "a.b.c", 180),
        ({"expires_in": 900}, _jwt({"exp": 10, "iat": 1000}), 0),
    ],
)
def test_a_token_lives_as_long_as_the_smaller_of_what_is_said(
    data: dict[str, Any], token: str, life_s: float
) -> None:
    assert life_of(data, token, server_now_s=1000.0) == life_s


@in_loop
async def test_two_servers_with_the_same_client_id_never_see_each_others_tokens(stub: AirbyteStub) -> None:
    with serving() as other:
        mine, theirs = stub.seed()[0], other.seed()[0]
        async with an_api(stub) as one, an_api(other) as two:
            for _ in range(3):
                await one.get_job(mine)
                await two.get_job(theirs)
        seen = [
            {call.authorization for call in each.calls if call.operation == "get"} for each in (stub, other)
        ]
    assert not seen[0] & seen[1]
    assert (stub.counts()["token"], other.counts()["token"]) == (1, 1)


@in_loop
async def test_a_failed_request_for_a_token_is_forgotten(stub: AirbyteStub) -> None:
    asked = 0

    async def ask(_fields: dict[str, str], _as_form: bool) -> TokenAnswer:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise AirbyteError("502", Kind.UNCLEAR, status=502)
        return TokenAnswer({"access_token": "good"}, 0.0)

    tokens = Tokens(ask, "id", "secret")
    with pytest.raises(AirbyteError, match="502"):
        await tokens.get()
    assert await tokens.get() == "good"
    assert await tokens.get() == "good"
    assert asked == 2


@pytest.mark.parametrize("takes", ["json", "form", "both"])
@in_loop
async def test_a_wrong_secret_is_told_without_it(
    stub: AirbyteStub, takes: Literal["json", "form", "both"]
) -> None:
    stub.token_takes = takes
    async with a_backend(stub, {"client_secret": "wrong-and-private"}) as backend:
        with pytest.raises(AirbyteError) as caught:
            await backend.check()
    assert str(caught.value) == (
        f"Airbyte refused the client id or secret at {stub.url}: 401 Invalid client credentials"
    )


# --- what the answers mean -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("throttled", Kind.THROTTLED, "Airbyte asks to come back later (GET /jobs/{id}: 429 the server says"),
        (
            "server_error",
            Kind.UNCLEAR,
            "{url} answered GET /jobs/{id} with 500: the server says",
        ),
        ("bad_gateway", Kind.UNCLEAR, "{url} answered GET /jobs/{id} with 502 and an HTML page"),
        (
            "html",
            Kind.NOT_AIRBYTE,
            "with 200 and an HTML page, which is not how Airbyte's API answers: ",
        ),
        ("not_json", Kind.NOT_AIRBYTE, "with 200 and something that is no JSON, which is not how"),
        ("redirect", Kind.NOT_AIRBYTE, "with 302 and a redirection, which is not how Airbyte's API answers"),
        ("forbidden", Kind.PERMISSION, "permission denied for GET /jobs/{id}: the server says forbidden"),
        ("dropped", Kind.UNCLEAR, "GET /jobs/{id} got no clear answer from {url}: "),
    ],
)
@in_loop
async def test_each_trouble_is_one_sentence(
    stub: AirbyteStub, fault: FaultKind, kind: Kind, words: str
) -> None:
    (job_id,) = stub.seed()
    stub.fault("get", fault, times=None, retry_after="7")
    async with an_api(stub) as api:
        with pytest.raises(AirbyteError) as caught:
            await api.get_job(job_id)
    assert caught.value.kind is kind
    assert words.format(id=job_id, url=stub.url) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.retry_after_s == (
        7.0 if fault in {"throttled", "server_error", "bad_gateway", "forbidden"} else None
    )


@in_loop
async def test_a_read_that_takes_too_long_ends(stub: AirbyteStub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_READ_S", 0.1)
    stub.fault("get", "hang", seconds=5)
    (job_id,) = stub.seed()
    async with an_api(stub) as api:
        with pytest.raises(AirbyteError, match="no clear answer") as caught:
            await api.get_job(job_id)
    assert caught.value.kind is Kind.UNCLEAR


def test_a_post_and_a_delete_may_take_longer_than_the_server_does() -> None:
    assert transport.LONG_S >= 90
    assert transport._READ_S < 60


@in_loop
async def test_a_server_that_is_not_there_is_told(stub: AirbyteStub) -> None:
    api = Api(AirbyteConnection(url="http://127.0.0.1:1/api/public/v1"))
    with pytest.raises(AirbyteError, match="cannot be reached for GET /jobs") as caught:
        await api.get_job(1)
    assert caught.value.kind is Kind.NETWORK
    await api.close()


@in_loop
async def test_slow_calls_leave_a_place_for_quick_ones(stub: AirbyteStub) -> None:
    stub.post_takes_s = 30.0
    connections = [f"11111111-1111-4111-8111-{n:012d}" for n in range(6)]
    (job_id,) = stub.seed()
    async with an_api(stub) as api:
        posts = [asyncio.create_task(api.post_job(each, "sync")) for each in connections]
        await soon(lambda: stub.counts().get("post", 0) >= 2)
        await api.get_job(job_id)
        assert stub.counts()["post"] == 2
        for post in posts:
            post.cancel()
        await asyncio.wait(posts)


@in_loop
async def test_a_post_that_waited_for_its_place_too_long_does_not_leave(stub: AirbyteStub) -> None:
    async with an_api(stub) as api:
        with sending_until(monotonic_s() - 1), pytest.raises(SubmitTooLate):
            await api.post_job(CONNECTION, "sync")
    assert not stub.job_ids()


@in_loop
async def test_a_post_is_given_up_in_time_while_others_keep_its_place(stub: AirbyteStub) -> None:
    stub.post_takes_s = 30.0
    connections = [f"11111111-1111-4111-8111-{n:012d}" for n in range(2)]
    async with an_api(stub) as api:
        posts = [asyncio.create_task(api.post_job(each, "sync")) for each in connections]
        await soon(lambda: stub.counts().get("post", 0) == len(posts))
        with sending_until(monotonic_s() + 0.2), pytest.raises(SubmitTooLate):
            async with asyncio.timeout(10):
                await api.post_job(CONNECTION, "sync")
        for post in posts:
            post.cancel()
        await asyncio.wait(posts)
        stub.post_takes_s = 0.0
        await api.post_job(CONNECTION, "sync")  # no place was lost
    assert stub.counts()["post"] == len(posts) + 1


# --- the connection and its test -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("", "with 200 and an HTML page, which is not how Airbyte's API answers: the `url` of a self-hosted"),
        ("/api/v1", "with 200 and an HTML page"),
        ("/api/public/v2", "with 200 and an HTML page"),
        ("/api/public/v1/v1", "with 404"),
    ],
)
@in_loop
async def test_a_wrong_url_says_which_is_expected(stub: AirbyteStub, path: str, words: str) -> None:
    stub.auth = "none"
    async with a_backend(stub, {"url": f"{stub.root}{path}"}) as backend:
        with pytest.raises(AirbyteError) as caught:
            await backend.check()
    assert words in str(caught.value)
    assert f"ends with /api/public/v1: expected {stub.url}, not {stub.root}{path}" in str(caught.value)


@in_loop
async def test_a_wrong_url_is_told_by_the_request_for_a_token_too(stub: AirbyteStub) -> None:
    async with a_backend(stub, {"url": stub.root}) as backend:
        with pytest.raises(AirbyteError, match="ends with /api/public/v1"):
            await backend.check()


@in_loop
async def test_the_test_of_a_connection_says_what_answered(stub: AirbyteStub) -> None:
    async with a_backend(stub, {"url": f"{stub.url}/"}) as backend:
        assert await backend.check() == f"Airbyte answered GET /jobs at {stub.url}"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"urll": "x"}, "there is no 'urll' (known: url, client_id"),
        ({"url": "localhost:8000"}, "'url' must be of the form http:// or https://"),
        ({"url": "http://ana:hunter2@host/api/public/v1"}, "'url' holds a user or a password"),
        ({"client_id": "a"}, "'client_id' and 'client_secret' belong together"),
        ({"username": "a"}, "'username' and 'password' belong together"),
        (
            {"token": "hunter2", "client_id": "a", "client_secret": "hunter2"},
            "are different ways to be let in",
        ),
        ({"workspace_ids": "no-uuid"}, "'workspace_ids.0'"),
        ({"calls_at_once": 0}, "'calls_at_once'"),
    ],
)
def test_a_connection_that_is_wrong_is_refused_in_one_sentence(given: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        AirbyteConnection.of(ConnectionSettings(kind="airbyte", **given))
    assert words in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_connection_knows_what_follows_from_its_url() -> None:
    cloud = AirbyteConnection()
    assert (cloud.url, cloud.at_once, cloud.config_api) == ("https://api.airbyte.com/v1", 8, None)
    own = AirbyteConnection(url="http://box:8000/api/public/v1/")
    assert (own.at_once, own.config_api, own.pages) == (3, "http://box:8000/api/v1", "http://box:8000")
    ids = "c0ffee00-0000-4000-8000-000000000001, c0ffee00-0000-4000-8000-000000000002"
    several = AirbyteConnection.model_validate({"workspace_ids": ids, "client_id": 7, "client_secret": 8})
    assert len(several.workspace_ids) == 2
    assert several.client_id == "7"
    assert "8" not in repr(several.client_secret)


@in_loop
async def test_no_secret_stands_in_an_error_that_repeats_it(stub: AirbyteStub) -> None:
    stub.auth = "bearer"
    options = options_of(stub)
    stub.known_connections = []
    api = Api(options)
    with pytest.raises(AirbyteError) as caught:
        await api.post_job("11111111-1111-4111-8111-111111111111", "hunter2")
    assert "hunter2" not in str(caught.value)
    await api.close()


@pytest.mark.timeout(60)
def test_authorities_in_what_is_no_file_hold_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SettingsError, match="it is not a regular file"):
        transport.Transport(tmp_path / "pipe")
