"""Watching many Airbyte jobs: what it costs, and that nothing is missed."""

from collections.abc import Iterator

import pytest

from jobrunner.backends.airbyte.backend import AirbyteBackend
from jobrunner.backends.base import Gone, Observation, RemoteError
from jobrunner.errors import BackendError, Throttled
from jobrunner.states import Phase
from tests.backends.airbyte_help import a_backend, in_loop, soon
from tests.stubs.airbyte_server import CONNECTION, WORKSPACE, AirbyteStub, serving


@pytest.fixture
def stub() -> Iterator[AirbyteStub]:
    with serving() as served:
        yield served


async def phases(backend: AirbyteBackend, ids: list[int]) -> dict[int, Phase | None]:
    answers = await backend.fetch([str(each) for each in ids])
    return {
        int(each): answer.phase if isinstance(answer, Observation) else None
        for each, answer in answers.items()
    }


async def settled(backend: AirbyteBackend, ids: list[int]) -> None:
    """Ask until each job was seen, and no reconciliation is under way."""
    while None in (await phases(backend, ids)).values() or backend._feed._reconciling is not None:
        pass


@in_loop
async def test_ten_thousand_jobs_cost_one_request_a_tick(stub: AirbyteStub) -> None:
    ids = stub.seed(10_000)
    for job in stub._jobs.values():
        job.updated -= 3600
    async with a_backend(stub) as backend:
        await settled(backend, ids)
        assert stub.counts()["list"] <= 100 + 4  # a page for a hundred, and a short one for each status
        assert stub.counts().get("get", 0) == 0
        for _ in range(5):
            stub.forget_calls()
            seen = await phases(backend, ids)
            assert set(seen.values()) == {Phase.RUNNING}
            assert stub.counts() == {"list": 1}
        for each in ids[:40]:
            stub.succeed(each)
        stub.forget_calls()
        seen = await phases(backend, ids)
        assert [each for each, phase in seen.items() if phase is Phase.SUCCEEDED] == ids[:40]
        assert stub.counts() == {"list": 1}


@in_loop
async def test_what_has_ended_is_never_asked_about_again(stub: AirbyteStub) -> None:
    ids = stub.seed(10)
    async with a_backend(stub) as backend:
        await settled(backend, ids)
        for each in ids:
            stub.succeed(each)
        assert set((await phases(backend, ids)).values()) == {Phase.SUCCEEDED}
        stub.forget_calls()
        for each in ids:
            stub.vanish(each)
        assert set((await phases(backend, ids)).values()) == {Phase.SUCCEEDED}
        assert stub.counts() == {}


@in_loop
async def test_few_jobs_are_asked_for_by_their_ids(stub: AirbyteStub) -> None:
    ids = stub.seed(3)
    stub.workspace = ""
    async with a_backend(stub) as backend:
        await phases(backend, ids)
        stub.forget_calls()
        assert set((await phases(backend, ids)).values()) == {Phase.RUNNING}
        assert stub.counts() == {"get": 3}


@in_loop
async def test_a_change_that_the_feed_missed_is_seen_by_the_reconciliation(stub: AirbyteStub) -> None:
    ids = stub.seed(10)
    for job in stub._jobs.values():
        job.updated -= 3600
    async with a_backend(stub, reconcile_every_s=0.3) as backend:
        await settled(backend, ids)
        stub.move(ids[4], "succeeded", rows=1, silent=True)
        seen: dict[int, Phase | None] = {}

        while seen.get(ids[4]) is not Phase.SUCCEEDED:
            seen = await phases(backend, ids)
        assert set(seen.values()) == {Phase.SUCCEEDED, Phase.RUNNING}
        assert stub.counts()["get"] >= 1


@in_loop
async def test_those_who_ask_a_moment_later_share_the_look(stub: AirbyteStub) -> None:
    ids = stub.seed(20)
    async with a_backend(stub, fresh_s=60.0) as backend:
        await settled(backend, ids)
        stub.forget_calls()
        for start in range(0, 20, 5):
            await phases(backend, ids[start : start + 5])
        assert stub.counts().get("list", 0) == 0


@in_loop
async def test_all_statuses_and_all_pages_are_read(stub: AirbyteStub) -> None:
    ids = [
        *stub.seed(150, status="queued"),
        *stub.seed(150, status="pending"),
        *stub.seed(1, status="incomplete"),
    ]
    async with a_backend(stub) as backend:
        await settled(backend, ids)
        assert stub.counts().get("get", 0) == 0
        for each in ids[:250]:
            stub.succeed(each)
        seen = await phases(backend, ids)
        assert list(seen.values()).count(Phase.SUCCEEDED) == 250
    lists = [call.query for call in stub.calls if call.operation == "list"]
    assert {query["limit"] for query in lists} == {"100"}
    assert all("orderBy" in query for query in lists)


@in_loop
async def test_a_server_that_knows_no_queued_is_watched_all_the_same(stub: AirbyteStub) -> None:
    stub.knows_queued = False
    ids = stub.seed(30)
    async with a_backend(stub) as backend:
        await settled(backend, ids)
        assert set((await phases(backend, ids)).values()) == {Phase.RUNNING}


@in_loop
async def test_a_server_without_a_date_is_watched_all_the_same(stub: AirbyteStub) -> None:
    stub.sends_date = False
    ids = stub.seed(30)
    async with a_backend(stub) as backend:
        await settled(backend, ids)
        stub.succeed(ids[0])
        assert (await phases(backend, ids))[ids[0]] is Phase.SUCCEEDED


@in_loop
async def test_the_servers_clock_may_be_another_than_ours(stub: AirbyteStub) -> None:
    stub.clock_ahead_s = -7200.0
    ids = stub.seed(30)
    async with a_backend(stub) as backend:
        await settled(backend, ids)
        stub.succeed(ids[0])
        assert (await phases(backend, ids))[ids[0]] is Phase.SUCCEEDED


@in_loop
async def test_lists_are_of_the_workspaces_that_the_connection_names(stub: AirbyteStub) -> None:
    ids = stub.seed(30)
    async with a_backend(stub, {"workspace_ids": WORKSPACE}) as backend:
        await settled(backend, ids)
    assert {call.query.get("workspaceIds") for call in stub.calls if call.operation == "list"} == {WORKSPACE}


@in_loop
async def test_workspaces_are_derived_where_the_server_demands_them(stub: AirbyteStub) -> None:
    stub.lists_need_workspaces = True
    ids = stub.seed(30)
    async with a_backend(stub) as backend:
        await settled(backend, ids)
        stub.forget_calls()
        stub.succeed(ids[0])
        assert (await phases(backend, ids))[ids[0]] is Phase.SUCCEEDED
        assert stub.counts() == {"list": 1}


# --- jobs that are not there -----------------------------------------------------------------------


@pytest.mark.parametrize("status", [403, 404, 409])
@pytest.mark.parametrize("others", [0, 10])
@in_loop
async def test_a_job_that_is_not_visible_is_gone_and_back_when_it_is(
    stub: AirbyteStub, status: int, others: int
) -> None:
    stub.unknown_status = status
    (job_id,) = stub.seed()
    ids = [job_id, *stub.seed(others)]
    job = stub._jobs.pop(job_id)
    async with a_backend(stub) as backend:
        await phases(backend, ids)
        answer = (await backend.fetch([str(each) for each in ids]))[str(job_id)]
        assert isinstance(answer, Gone)
        assert not answer.certain
        stub._jobs[job_id] = job
        job.updated = stub.now()
        assert (await phases(backend, ids))[job_id] is Phase.RUNNING


@in_loop
async def test_credentials_that_may_see_nothing_any_more_make_no_job_gone(stub: AirbyteStub) -> None:
    ids = stub.seed(2)
    async with a_backend(stub) as backend:
        await phases(backend, ids)
        stub.fault("*", "forbidden", times=None)
        answers = await backend.fetch([str(each) for each in ids])
    assert all(isinstance(each, RemoteError) for each in answers.values())
    assert all("permission denied for GET /jobs" in each.message for each in answers.values())  # type: ignore[union-attr]


@in_loop
async def test_what_is_no_number_is_gone_for_certain(stub: AirbyteStub) -> None:
    async with a_backend(stub) as backend:
        answers = await backend.fetch(["abc", "١٢"])
    assert [answer.certain for answer in answers.values() if isinstance(answer, Gone)] == [True, True]


# --- outages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["list", "token"])
@pytest.mark.parametrize("kind", ["server_error", "bad_gateway", "html", "dropped", "forbidden"])
@in_loop
async def test_an_outage_is_an_error_and_afterwards_all_is_seen(
    stub: AirbyteStub, operation: str, kind: str
) -> None:
    ids = stub.seed(10)
    async with a_backend(stub) as backend:
        await settled(backend, ids)
        stub.expire_tokens()
        stub.fault(operation, kind, times=None)  # type: ignore[arg-type]
        stub.succeed(ids[0])
        for _ in range(3):
            with pytest.raises(BackendError):
                await phases(backend, ids)
        stub.clear_faults()
        assert (await phases(backend, ids))[ids[0]] is Phase.SUCCEEDED


@pytest.mark.parametrize(("count", "operation"), [(2, "get"), (10, "list")])
@in_loop
async def test_retry_after_is_handed_on(stub: AirbyteStub, count: int, operation: str) -> None:
    ids = stub.seed(count)
    async with a_backend(stub) as backend:
        await settled(backend, ids)
        stub.fault(operation, "throttled", times=None, retry_after="17")  # type: ignore[arg-type]
        with pytest.raises(Throttled) as caught:
            await phases(backend, ids)
    assert caught.value.retry_after_s == 17


@in_loop
async def test_a_failing_reconciliation_is_tried_again_and_those_known_are_watched(
    stub: AirbyteStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobrunner.backends.airbyte.feed._AGAIN_S", 0.05)
    ids = stub.seed(40)
    stub.fault("list", "server_error", times=3)
    async with a_backend(stub) as backend:
        answers = await backend.fetch([str(each) for each in ids])
        assert any(isinstance(each, RemoteError) for each in answers.values())
        await soon(lambda: backend._feed._reconciling is None)
        await settled(backend, ids)


# --- what is told ----------------------------------------------------------------------------------


@in_loop
async def test_a_word_that_nobody_knows_waits_and_is_shown(
    stub: AirbyteStub, caplog: pytest.LogCaptureFixture
) -> None:
    (job_id,) = stub.seed()
    async with a_backend(stub) as backend:
        assert (await phases(backend, [job_id]))[job_id] is Phase.RUNNING
        stub.move(job_id, "hibernating")
        for _ in range(3):
            answer = (await backend.fetch([str(job_id)]))[str(job_id)]
            assert isinstance(answer, Observation)
            assert (answer.phase, answer.external_state) == (Phase.WAITING, "hibernating")
            assert answer.has_started, "it was seen to run before"
        stub.move(job_id, "running")
        assert (await phases(backend, [job_id]))[job_id] is Phase.RUNNING
    assert caplog.text.count("a word that is not known here") <= 1


@in_loop
async def test_a_success_tells_rows_bytes_and_the_page(stub: AirbyteStub) -> None:
    job_id = stub.start(CONNECTION, "sync").id
    stub._jobs[job_id].created -= 90
    stub.succeed(job_id, rows=12_345, size=6_700_000)
    async with a_backend(stub) as backend:
        answer = (await backend.fetch([str(job_id)]))[str(job_id)]
    assert isinstance(answer, Observation)
    assert answer.message == "succeeded: 12,345 rows, 6.7 MB in 90 s"
    assert (answer.detail["rows"], answer.detail["bytes"], answer.detail["duration_s"]) == (
        12_345,
        6_700_000,
        90,
    )
    page = f"{stub.root}/workspaces/{WORKSPACE}/connections/{CONNECTION}/timeline?jobId={job_id}"
    assert answer.detail["page"] == page


@pytest.mark.parametrize("others", [0, 10])
@in_loop
async def test_a_failure_tells_its_reasons_which_are_asked_for_once(stub: AirbyteStub, others: int) -> None:
    ids = [*stub.seed(), *stub.seed(others)]
    async with a_backend(stub) as backend:
        await settled(backend, ids)
        stub.fail(
            ids[0],
            {
                "failureOrigin": "source",
                "failureType": "config_error",
                "externalMessage": "The password\nis wrong for pg://u:hunter2@db",
                "internalMessage": None,
            },
            {"failureOrigin": None, "failureType": None, "externalMessage": None, "internalMessage": None},
        )
        for _ in range(3):
            answer = (await backend.fetch([str(each) for each in ids]))[str(ids[0])]
    assert isinstance(answer, Observation)
    assert answer.message == "failed: The password is wrong for pg://u:***@db (source, config_error)"
    assert answer.detail["failures"][0]["origin"] == "source"
    assert stub.counts()["reasons"] == 1


@in_loop
async def test_without_a_config_api_a_failure_is_a_failure(stub: AirbyteStub) -> None:
    stub.has_config_api = False
    ids = stub.seed(10)
    async with a_backend(stub) as backend:
        await settled(backend, ids)
        for each in ids:
            stub.fail(each, {"externalMessage": "x"})
        answers = await backend.fetch([str(each) for each in ids])
    assert {each.message for each in answers.values()} == {"failed, and Airbyte gave no reason"}  # type: ignore[union-attr]
    assert stub.counts()["reasons"] <= 2


@in_loop
async def test_times_without_seconds_are_read(stub: AirbyteStub) -> None:
    stub.cuts_times = True
    (job_id,) = stub.seed()
    async with a_backend(stub) as backend:
        answer = (await backend.fetch([str(job_id)]))[str(job_id)]
    assert isinstance(answer, Observation)
    assert answer.detail["created_at"].endswith(":00+00:00")
