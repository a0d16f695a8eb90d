"""The old JobService over real gRPC, on a simulated clock: its old names without its old loop."""

import asyncio
import datetime as dt
import importlib.util
import logging
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from jobrunner.backends.armada import jobservice
from jobrunner.backends.armada.connection import ArmadaConnection
from jobrunner.backends.armada.ids import JobKey
from jobrunner.backends.armada.jobservice import (
    JobServiceClient,
    JobServiceError,
    JobState,
    airflow_error,
    armada_error,
    default_job_status_callable,
    search_for_job_complete,
    waiting,
)
from jobrunner.backends.armada.jobservice import jobservice_pb2 as wire
from jobrunner.backends.armada.jobservice_backend import CALLS_AT_ONCE, ONLY_WATCHES, JobServiceBackend
from jobrunner.backends.base import Backend, Gone, Observation, RemoteError, Unsure
from jobrunner.clock import utcnow
from jobrunner.errors import (
    BackendError,
    JobFailed,
    LogsUnavailable,
    SettingsError,
    SubmitRejected,
    UsageError,
)
from jobrunner.settings import ConnectionSettings
from jobrunner.states import Phase
from tests.stubs.jobservice_server import JobService, serving, serving_nothing
from tests.test_docs import PAGES, blocks, commands_of

ROOT = Path(__file__).resolve().parent.parent.parent
JOB = "queue", "job-set", "01h3w2wtdchtc80hgyp782shrv"
QUEUE, JOB_SET, JOB_ID = JOB
ABOUT = f"Armada train:{JOB_ID}"
AWAY = grpc.StatusCode.UNAVAILABLE

Answer = Observation | Gone | RemoteError


class Clock:
    """Time that passes only while the search sleeps; things happen in it when their time has come."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.slept: list[float] = []
        self._later: list[tuple[float, Callable[[], object]]] = []

    @property
    def passed_s(self) -> float:
        return self.now_s - 1000.0

    def at(self, seconds: float, action: Callable[[], object]) -> None:
        self._later.append((1000.0 + seconds, action))

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.slept.append(seconds)
        self.now_s += seconds
        for entry in [entry for entry in self._later if entry[0] <= self.now_s]:
            self._later.remove(entry)
            entry[1]()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(waiting, "_sleep", clock.sleep)
    monkeypatch.setattr(waiting, "_now_s", lambda: clock.now_s)
    return clock


@pytest.fixture
def service() -> Iterator[JobService]:
    with serving() as service:
        yield service


@pytest.fixture
def client(service: JobService) -> Iterator[JobServiceClient]:
    with grpc.insecure_channel(service.address) as channel, JobServiceClient(channel) as client:
        yield client


def search(client: JobServiceClient | None, **options: Any) -> tuple[JobState, str]:
    return search_for_job_complete(QUEUE, JOB_SET, "train", JOB_ID, client, **options)


def put(service: JobService, state: JobState, error: str = "") -> None:
    service.put(*JOB, state, error)


# --- the client -------------------------------------------------------------------------------------


def test_a_look_returns_the_wires_answer_with_state_and_error(
    service: JobService, client: JobServiceClient
) -> None:
    put(service, JobState.FAILED, "exit code 137")
    answer = client.get_job_status(queue=QUEUE, job_set_id=JOB_SET, job_id=JOB_ID)
    assert (answer.state, answer.error) == (JobState.FAILED, "exit code 137")
    assert isinstance(answer, wire.JobServiceResponse)
    assert service.asked == [JOB]


def test_the_service_says_how_it_is(service: JobService, client: JobServiceClient) -> None:
    assert client.health().status == wire.HealthCheckResponse.SERVING
    service.serving = wire.HealthCheckResponse.NOT_SERVING
    assert client.health().status == wire.HealthCheckResponse.NOT_SERVING


def test_every_call_has_a_deadline(service: JobService) -> None:
    with grpc.insecure_channel(service.address) as channel:
        JobServiceClient(channel).get_job_status(*JOB)
        JobServiceClient(channel, call_s=5).get_job_status(*JOB)
    assert 5.1 < service.deadlines_s[0] <= 10.1
    assert service.deadlines_s[1] <= 5.1


def test_a_silent_service_is_not_waited_for_beyond_the_deadline(service: JobService) -> None:
    service.hold()
    with grpc.insecure_channel(service.address) as channel:
        client = JobServiceClient(channel, call_s=0.2)
        with pytest.raises(
            JobServiceError, match=r"^the Armada JobService gave no answer within 0.2 s$"
        ) as late:
            client.get_job_status(*JOB)
    assert (late.value.code, late.value.is_passing) == ("DEADLINE_EXCEEDED", True)


def test_a_service_that_is_away_is_an_error_that_names_its_address() -> None:
    sentence = r"cannot be reached: .*127\.0\.0\.1:1"
    with (
        grpc.insecure_channel("127.0.0.1:1") as channel,
        pytest.raises(JobServiceError, match=sentence) as away,
    ):
        JobServiceClient(channel).get_job_status(*JOB)
    assert away.value.is_passing
    assert isinstance(away.value.__cause__, grpc.RpcError)


def test_another_service_on_the_port_is_an_error_that_names_the_usual_port() -> None:
    sentence = "is no Armada JobService, whose port is usually 60003"
    with serving_nothing() as address, grpc.insecure_channel(address) as channel:
        client = JobServiceClient(channel)
        with pytest.raises(JobServiceError, match=sentence) as other:
            client.health()
    assert not other.value.is_passing


def test_max_workers_is_the_number_of_cpus_and_bounds_the_calls_under_way(
    service: JobService, client: JobServiceClient
) -> None:
    assert client.max_workers == os.cpu_count()
    service.hold()
    with grpc.insecure_channel(service.address) as channel, JobServiceClient(channel, 3) as three:
        futures = [three.get_job_status_future(QUEUE, JOB_SET, f"job-{n}") for n in range(9)]
        assert service.wait_for_under_way(3)
        service.let_go()
        assert {future.result(10).state for future in futures} == {JobState.JOB_ID_NOT_FOUND}
    assert service.under_way_most == 3


def test_a_client_without_parallel_calls_has_no_thread_and_a_closed_one_asks_no_more(
    service: JobService, client: JobServiceClient
) -> None:
    before = set(threading.enumerate())
    client.get_job_status(*JOB)
    new = {thread.name for thread in set(threading.enumerate()) - before}
    assert not [name for name in new if name.startswith("jobrunner")]
    client.close()
    client.close()
    for ask in (client.get_job_status, client.get_job_status_future):
        with pytest.raises(UsageError, match="closed"):
            ask(*JOB)


def test_the_channel_stays_its_owners(service: JobService) -> None:
    with grpc.insecure_channel(service.address) as channel:
        with JobServiceClient(channel) as first:
            first.get_job_status(*JOB)
        JobServiceClient(channel).get_job_status(*JOB)
    with pytest.raises(UsageError, match="can no longer ask"):
        JobServiceClient(channel).get_job_status(*JOB)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda _: JobServiceClient("host:60003"), "needs a grpc.Channel"),
        (lambda channel: JobServiceClient(channel, 0), "max_workers must be 1 or more, not 0"),
        (lambda channel: JobServiceClient(channel, call_s=0), "call_s must be a number of seconds above 0"),
        (lambda channel: JobServiceClient(channel).get_job_status("", "set", "id"), "queue must be a text"),
        (lambda channel: JobServiceClient(channel).get_job_status("q", "set", ""), "job_id must be a text"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_sentence(make: Callable[[Any], Any], sentence: str) -> None:
    with grpc.insecure_channel("127.0.0.1:1") as channel, pytest.raises(UsageError, match=sentence):
        make(channel)


def test_an_asyncio_channel_is_refused() -> None:
    async def main() -> None:
        async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
            with pytest.raises(UsageError, match=r"not Channel of grpc\.aio"):
                JobServiceClient(channel)

    asyncio.run(main())


def test_without_the_extra_it_is_imported_and_says_what_to_install() -> None:
    code = (
        "import sys\n"
        "sys.modules['grpc'] = sys.modules['google'] = sys.modules['armada_client'] = None\n"
        "from jobrunner.backends.armada.jobservice import JobServiceClient, JobState\n"
        "from jobrunner.backends.armada.jobservice_backend import JobServiceBackend\n"
        "from jobrunner.errors import UsageError\n"
        "try:\n"
        "    JobServiceClient(None)\n"
        "except UsageError as error:\n"
        "    print(error)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    sentence = "The Armada JobService needs grpcio, which is not installed: pip install 'jobrunner[armada]'."
    assert told.stdout.strip() == sentence


# --- the wire ---------------------------------------------------------------------------------------


def test_the_states_have_the_numbers_of_the_wire() -> None:
    assert {state.name: int(state) for state in JobState} == dict(wire.JobServiceResponse.State.items())
    assert issubclass(JobState, Enum)
    assert {state.name: int(state) for state in JobState} == {
        "SUBMITTED": 0,
        "DUPLICATE_FOUND": 1,
        "RUNNING": 2,
        "FAILED": 3,
        "SUCCEEDED": 4,
        "CANCELLED": 5,
        "JOB_ID_NOT_FOUND": 6,
        "CONNECTION_ERR": 7,
    }


def test_the_messages_have_the_field_numbers_of_the_wire() -> None:
    question = wire.JobServiceRequest(job_id="a", job_set_id="bc", queue="def")
    assert question.SerializeToString() == b"\x0a\x01a\x12\x02bc\x1a\x03def"
    answer = wire.JobServiceResponse(state=wire.JobServiceResponse.FAILED, error="why")
    assert answer.SerializeToString() == b"\x08\x03\x12\x03why"
    assert (
        wire.HealthCheckResponse(status=wire.HealthCheckResponse.SERVING).SerializeToString() == b"\x08\x01"
    )


@pytest.mark.skipif(importlib.util.find_spec("grpc_tools") is None, reason="grpcio-tools is not installed")
def test_the_generated_code_is_that_of_the_proto(tmp_path: Path) -> None:
    folder = Path(jobservice.__file__).parent
    name = "jobrunner/backends/armada/jobservice/jobservice.proto"
    root = folder.parents[3]
    command = (sys.executable, "-m", "grpc_tools.protoc", "-I", str(root))
    outputs = (f"--python_out={tmp_path}", f"--pyi_out={tmp_path}")
    subprocess.run([*command, *outputs, name], cwd=root, check=True)
    for made in ("jobservice_pb2.py", "jobservice_pb2.pyi"):
        assert (tmp_path / name).with_name(made).read_text() == (folder / made).read_text(), "run: make proto"


def test_the_old_operators_own_generated_code_can_be_in_the_same_process() -> None:
    code = (
        "from google.protobuf import descriptor_pb2, descriptor_pool\n"
        "from jobrunner.backends.armada.jobservice import jobservice_pb2\n"
        "theirs = descriptor_pb2.FileDescriptorProto()\n"
        "jobservice_pb2.DESCRIPTOR.CopyToProto(theirs)\n"
        "theirs.name, theirs.package = 'pkg/api/jobservice/jobservice.proto', 'jobservice'\n"
        "for field in theirs.message_type[1].field, theirs.message_type[2].field:\n"
        "    for each in field:\n"
        "        if each.type_name:\n"
        "            each.type_name = each.type_name.replace('.jobrunner.armada.', '.')\n"
        "descriptor_pool.Default().AddSerializedFile(theirs.SerializeToString())\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT)


# --- the search: its ends ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        (JobState.SUCCEEDED, "", f"{ABOUT} succeeded"),
        (JobState.FAILED, "OOMKilled", f"{ABOUT} failed\nfailed with reason OOMKilled"),
        (JobState.CANCELLED, "", f"{ABOUT} cancelled"),
        (
            JobState.DUPLICATE_FOUND,
            "",
            f"{ABOUT} is a duplicate\nArmada runs the job that was submitted first",
        ),
    ],
)
def test_an_end_is_told_at_once_and_without_a_sleep(
    state: JobState, error: str, message: str, service: JobService, client: JobServiceClient, clock: Clock
) -> None:
    put(service, state, error)
    assert search(client) == (state, message)
    assert clock.slept == []
    assert len(service.asked) == 1


def test_a_running_job_is_looked_at_each_poll_interval_until_it_ends(
    service: JobService, client: JobServiceClient, clock: Clock
) -> None:
    put(service, JobState.SUBMITTED)
    clock.at(6, lambda: put(service, JobState.RUNNING))
    clock.at(100_000, lambda: put(service, JobState.SUCCEEDED))
    assert search(client, poll_interval=2_000.0)[0] is JobState.SUCCEEDED
    assert set(clock.slept) == {2_000.0}
    assert clock.passed_s == 100_000


def test_the_poll_interval_is_three_seconds_as_ever(
    service: JobService, client: JobServiceClient, clock: Clock
) -> None:
    put(service, JobState.RUNNING)
    clock.at(9, lambda: put(service, JobState.SUCCEEDED))
    search(client)
    assert clock.slept == [3.0, 3.0, 3.0]


def test_a_state_that_nobody_knows_waits_and_is_logged_once(
    service: JobService, client: JobServiceClient, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    service.answer(42, times=3)
    put(service, JobState.SUCCEEDED)
    with caplog.at_level(logging.WARNING):
        assert search(client)[0] is JobState.SUCCEEDED
    assert [record.getMessage() for record in caplog.records] == [
        f"Armada job is in a state that nobody knows job={ABOUT} state=42"
    ]


# --- the search: a job that is not found ------------------------------------------------------------


def test_the_first_answers_of_a_cache_that_is_fed_late_are_waited_through(
    service: JobService, client: JobServiceClient, clock: Clock
) -> None:
    service.lag = 5
    put(service, JobState.SUCCEEDED)
    assert search(client) == (JobState.SUCCEEDED, f"{ABOUT} succeeded")
    assert len(service.asked) == 7


def test_a_job_that_is_never_found_is_given_up_after_the_time_out(
    service: JobService, client: JobServiceClient, clock: Clock
) -> None:
    state, message = search(client, time_out_for_failure=60)
    assert state is JobState.JOB_ID_NOT_FOUND
    assert message == f"{ABOUT} could not find a job id and\nhit a timeout"
    assert clock.passed_s == 60


def test_a_healthy_job_that_the_cache_forgets_late_is_not_given_up(
    service: JobService, client: JobServiceClient, clock: Clock
) -> None:
    """The old client counted from the start: after two hours the first NOT_FOUND failed the task."""
    service.lag = 3
    put(service, JobState.RUNNING)
    for hours in range(1, 10):
        clock.at(hours * 3600, lambda: service.purge(QUEUE, JOB_SET))
    clock.at(36_000, lambda: put(service, JobState.SUCCEEDED))
    assert search(client, poll_interval=60)[0] is JobState.SUCCEEDED
    assert clock.passed_s >= 36_000


def test_the_time_of_an_unknown_job_starts_anew_whenever_it_is_seen(
    service: JobService, client: JobServiceClient, clock: Clock
) -> None:
    service.answer(JobState.JOB_ID_NOT_FOUND, times=19)
    service.answer(JobState.RUNNING)
    service.answer(JobState.JOB_ID_NOT_FOUND, times=19)
    put(service, JobState.SUCCEEDED)
    assert search(client, time_out_for_failure=60)[0] is JobState.SUCCEEDED


def test_a_process_that_was_stopped_for_hours_gives_nothing_up(
    service: JobService, client: JobServiceClient, clock: Clock
) -> None:
    service.answer(JobState.JOB_ID_NOT_FOUND, times=3)
    put(service, JobState.SUCCEEDED)
    clock.at(3, lambda: setattr(clock, "now_s", clock.now_s + 50_000))
    assert search(client)[0] is JobState.SUCCEEDED


# --- the search: trouble ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code", ["UNAVAILABLE", "DEADLINE_EXCEEDED", "UNKNOWN", "INTERNAL", "RESOURCE_EXHAUSTED"]
)
def test_passing_trouble_is_asked_through_with_growing_pauses(
    code: str, service: JobService, client: JobServiceClient, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    service.fail(grpc.StatusCode[code], times=12)
    service.answer(JobState.RUNNING)
    service.fail(grpc.StatusCode[code])
    put(service, JobState.SUCCEEDED)
    with caplog.at_level(logging.INFO):
        assert search(client)[0] is JobState.SUCCEEDED
    assert 0.25 <= clock.slept[0] <= 0.5
    assert 15 <= max(clock.slept) <= 30
    assert clock.slept[-2] == 3.0
    assert 0.25 <= clock.slept[-1] <= 0.5, "the next outage begins with a short pause again"
    told = [record.getMessage() for record in caplog.records]
    assert len([each for each in told if "cannot be seen" in each]) == 2
    assert len([each for each in told if "can be asked for again" in each]) == 1


def test_a_service_that_restarts_is_found_again(clock: Clock) -> None:
    service = JobService()
    put(service, JobState.RUNNING)
    with serving(service) as first:
        address = first.address
    options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 50)]
    with grpc.insecure_channel(address, options=options) as channel:
        again = serving(service, port=int(address.rpartition(":")[2]))

        def restart() -> None:
            again.__enter__()
            put(service, JobState.SUCCEEDED)
            grpc.channel_ready_future(channel).result(10)

        clock.at(60, restart)
        try:
            assert search(JobServiceClient(channel))[0] is JobState.SUCCEEDED
        finally:
            again.__exit__(None, None, None)


def test_an_outage_never_counts_as_a_job_that_is_not_found(
    service: JobService, client: JobServiceClient, clock: Clock
) -> None:
    service.answer(JobState.JOB_ID_NOT_FOUND, times=15)
    service.fail(AWAY, times=30)
    service.answer(JobState.JOB_ID_NOT_FOUND, times=5)
    put(service, JobState.SUCCEEDED)
    assert search(client, time_out_for_failure=60)[0] is JobState.SUCCEEDED
    assert clock.passed_s > 400


def test_a_service_that_cannot_reach_armada_is_waited_for(
    service: JobService, client: JobServiceClient, clock: Clock
) -> None:
    put(service, JobState.RUNNING)
    clock.at(3, lambda: service.disconnected.update({(QUEUE, JOB_SET): "event stream broken"}))
    clock.at(300, service.disconnected.clear)
    clock.at(303, lambda: put(service, JobState.SUCCEEDED))
    assert search(client)[0] is JobState.SUCCEEDED
    assert len(service.asked) < 30, "the pauses grow"


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        (
            lambda service: service.answer(JobState.CONNECTION_ERR, "no Armada", times=1000),
            "cannot reach Armada: no Armada",
        ),
        (lambda service: service.fail(AWAY, times=1000), "cannot be reached: ordered: UNAVAILABLE"),
    ],
)
def test_trouble_that_does_not_end_is_given_up_after_the_time_out(
    order: Callable[[JobService], None],
    reason: str,
    service: JobService,
    client: JobServiceClient,
    clock: Clock,
) -> None:
    order(service)
    state, message = search(client)
    assert state is JobState.CONNECTION_ERR
    assert message.startswith(f"{ABOUT} could not be seen for 72")
    assert message.endswith(f" s and\nhit a timeout: the Armada JobService {reason}")
    assert 7200 <= clock.passed_s < 7300


def test_a_short_time_out_for_a_job_that_is_not_found_does_not_shorten_the_patience_with_outages(
    service: JobService, client: JobServiceClient, clock: Clock
) -> None:
    service.fail(AWAY, times=12)
    put(service, JobState.SUCCEEDED)
    assert search(client, time_out_for_failure=5)[0] is JobState.SUCCEEDED
    service.fail(AWAY, times=1000)
    assert search(client, time_out_for_failure=5)[0] is JobState.CONNECTION_ERR
    assert clock.passed_s >= 600


def test_a_service_that_is_away_and_ignorant_in_turn_comes_to_an_end(
    service: JobService, client: JobServiceClient, clock: Clock
) -> None:
    for _ in range(3000):
        service.fail(AWAY)
        service.answer(JobState.JOB_ID_NOT_FOUND)
    assert search(client)[0] is JobState.CONNECTION_ERR
    assert clock.passed_s < 7300


@pytest.mark.parametrize(
    "code", ["UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED", "INVALID_ARGUMENT"]
)
def test_trouble_that_a_person_must_end_is_raised_at_once(
    code: str, service: JobService, client: JobServiceClient, clock: Clock
) -> None:
    service.fail(grpc.StatusCode[code])
    with pytest.raises(JobServiceError, match=f"ordered: {code}"):
        search(client)
    assert clock.slept == []


# --- the search: its callable, its client -----------------------------------------------------------


def test_a_callable_of_ones_own_gets_what_it_got_from_the_old_operator(
    client: JobServiceClient, clock: Clock
) -> None:
    given: list[Mapping[str, Any]] = []

    def status(**arguments: Any) -> wire.JobServiceResponse:
        given.append(arguments)
        return wire.JobServiceResponse(state=wire.JobServiceResponse.SUCCEEDED)

    names = {"armada_queue": QUEUE, "job_set_id": JOB_SET, "job_id": JOB_ID}
    assert search(None, job_status_callable=status)[0] is JobState.SUCCEEDED
    assert search(client, job_status_callable=status)[0] is JobState.SUCCEEDED
    assert given == [names, {**names, "job_service_client": client}]


def test_a_callable_that_takes_no_client_needs_none(clock: Clock) -> None:
    def status(armada_queue: str, job_set_id: str, job_id: str) -> wire.JobServiceResponse:
        return wire.JobServiceResponse(state=wire.JobServiceResponse.FAILED, error="exit code 1")

    assert search(None, job_status_callable=status) == (
        JobState.FAILED,
        f"{ABOUT} failed\nfailed with reason exit code 1",
    )


def test_a_callable_that_needs_a_client_is_not_called_without_one(clock: Clock) -> None:
    def status(armada_queue: str, job_set_id: str, job_id: str, job_service_client: Any) -> Any:
        raise AssertionError

    for each in (default_job_status_callable, status):
        with pytest.raises(UsageError, match="There is no job_service_client"):
            search(None, job_status_callable=each)


def test_a_callables_own_grpc_errors_are_trouble_and_its_other_errors_its_own(clock: Clock) -> None:
    answers: list[Any] = [
        grpc.RpcError("away"),
        wire.JobServiceResponse(state=wire.JobServiceResponse.SUCCEEDED),
    ]

    def status(**_arguments: Any) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert search(None, job_status_callable=status)[0] is JobState.SUCCEEDED
    assert len(clock.slept) == 1
    answers.append(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        search(None, job_status_callable=status)


def test_numbers_that_cannot_be_used_are_refused(client: JobServiceClient) -> None:
    with pytest.raises(UsageError, match="poll_interval must be a number of seconds above 0, not 0"):
        search(client, poll_interval=0)
    with pytest.raises(UsageError, match="time_out_for_failure counts seconds from 0 on, not -1"):
        search(client, time_out_for_failure=-1)


def test_the_default_callable_asks_the_client(service: JobService, client: JobServiceClient) -> None:
    put(service, JobState.RUNNING)
    status = default_job_status_callable(
        armada_queue=QUEUE, job_set_id=JOB_SET, job_id=JOB_ID, job_service_client=client
    )
    assert status.state == JobState.RUNNING
    assert service.asked == [JOB]


@pytest.mark.parametrize("state", JobState)
def test_every_state_but_success_is_an_error(state: JobState) -> None:
    if state is JobState.SUCCEEDED:
        armada_error(state, "train", JOB_ID)
        return
    with pytest.raises(JobFailed) as failed:
        armada_error(state, "train", JOB_ID)
    assert str(failed.value) == f"The Armada job train:{JOB_ID} {state.name}"


def test_a_state_that_nobody_knows_is_an_error_too() -> None:
    with pytest.raises(JobFailed, match=f"^The Armada job train:{JOB_ID} 42$"):
        armada_error(42, "train", JOB_ID)  # type: ignore[arg-type]


def test_an_answer_without_an_error_will_do(clock: Clock) -> None:
    told = search(None, job_status_callable=lambda **_names: SimpleNamespace(state=3))
    assert told == (JobState.FAILED, f"{ABOUT} failed\nfailed with reason ")


def test_the_error_has_its_old_name_too() -> None:
    assert airflow_error is armada_error


# --- the backend ------------------------------------------------------------------------------------


def connection(service: JobService, **options: Any) -> ConnectionSettings:
    return ConnectionSettings.model_validate({"kind": "armada-jobservice", "url": service.address, **options})


def external_id(job_id: str = JOB_ID) -> str:
    return JobKey(QUEUE, JOB_SET, job_id).join()


def fetch(backend: JobServiceBackend, *ids: str) -> Mapping[str, Answer]:
    async def main() -> Mapping[str, Answer]:
        try:
            return await backend.fetch(ids)
        finally:
            await backend.close()

    return asyncio.run(main())


def look(service: JobService, **options: Any) -> Answer:
    return fetch(JobServiceBackend.from_connection(connection(service, **options)), external_id())[
        external_id()
    ]


@pytest.mark.parametrize(
    ("state", "phase", "message"),
    [
        (JobState.SUBMITTED, Phase.WAITING, ""),
        (JobState.RUNNING, Phase.RUNNING, ""),
        (JobState.SUCCEEDED, Phase.SUCCEEDED, ""),
        (JobState.FAILED, Phase.FAILED, "it failed, and the JobService does not say why"),
        (JobState.CANCELLED, Phase.CANCELLED, "cancelled in Armada"),
        (
            JobState.DUPLICATE_FOUND,
            Phase.FAILED,
            "a duplicate: Armada runs the job of the same client id that came first",
        ),
    ],
)
def test_each_state_of_a_job_has_a_phase(
    state: JobState, phase: Phase, message: str, service: JobService
) -> None:
    put(service, state)
    assert look(service) == Observation(phase, state.name, message)


def test_a_failed_job_tells_the_services_reason(service: JobService) -> None:
    put(service, JobState.FAILED, "OOMKilled")
    assert look(service) == Observation(Phase.FAILED, "FAILED", "OOMKilled")


def test_every_state_of_the_wire_has_an_answer(service: JobService) -> None:
    for state in JobState:
        service.answer(state)
        assert look(service) is not None


def test_a_job_that_the_service_does_not_know_is_gone_with_two_hours_of_patience(service: JobService) -> None:
    assert look(service) == Gone("the Armada JobService does not know it")
    assert JobServiceBackend.patience.appear_s == JobServiceBackend.patience.vanish_s == 7200


def test_a_service_that_cannot_reach_armada_says_nothing_of_the_job(service: JobService) -> None:
    service.answer(JobState.CONNECTION_ERR, "event stream broken")
    assert look(service) == RemoteError("the Armada JobService cannot reach Armada: event stream broken")


def test_an_unknown_state_waits_is_shown_and_logged_once(
    service: JobService, caplog: pytest.LogCaptureFixture
) -> None:
    service.answer(42, times=2)
    backend = JobServiceBackend.from_connection(connection(service))
    with caplog.at_level(logging.WARNING):
        answers = fetch(backend, external_id("a"), external_id("b"))
    assert {
        (each.phase, each.external_state) for each in answers.values() if isinstance(each, Observation)
    } == {(Phase.WAITING, "42")}
    assert len([record for record in caplog.records if "nobody knows" in record.getMessage()]) == 1


def test_an_id_of_another_form_is_an_error_and_is_not_asked_about(service: JobService) -> None:
    answer = fetch(JobServiceBackend.from_connection(connection(service)), "01h3w2")["01h3w2"]
    assert answer == RemoteError("'01h3w2' is not of the form QUEUE/JOB_SET/JOB_ID")
    assert service.asked == []


def test_the_link_to_lookout_is_shown_where_the_connection_has_one(service: JobService) -> None:
    put(service, JobState.RUNNING)
    answer = look(service, lookout_url_template="https://lookout.example/?job={job_id}")
    assert isinstance(answer, Observation)
    assert answer.detail == {"lookout": f"https://lookout.example/?job={JOB_ID}"}


def test_an_ids_parts_may_hold_anything(service: JobService) -> None:
    key = JobKey("queue/é", "set 1%", "id")
    service.put(*key, JobState.RUNNING)
    answers = fetch(JobServiceBackend.from_connection(connection(service)), key.join())
    assert isinstance(answers[key.join()], Observation)
    assert service.asked == [tuple(key)]


def test_trouble_with_one_job_is_not_trouble_with_the_others(service: JobService) -> None:
    ids = [external_id(f"job-{n}") for n in range(JobServiceBackend.bulk_limit)]
    for n in range(len(ids)):
        service.put(QUEUE, JOB_SET, f"job-{n}", JobState.RUNNING)
    service.fail(grpc.StatusCode.UNKNOWN)
    answers = fetch(JobServiceBackend.from_connection(connection(service)), *ids)
    assert list(answers) == ids
    assert len([each for each in answers.values() if isinstance(each, RemoteError)]) == 1
    assert len([each for each in answers.values() if isinstance(each, Observation)]) == len(ids) - 1


def test_several_jobs_are_asked_about_at_once_but_not_too_many(service: JobService) -> None:
    service.hold()
    ids = [external_id(f"job-{n}") for n in range(2 * CALLS_AT_ONCE)]

    def let_go_when_there_are_many() -> None:
        service.wait_for_under_way(CALLS_AT_ONCE)
        service.let_go()

    release = threading.Thread(target=let_go_when_there_are_many)
    release.start()
    fetch(JobServiceBackend.from_connection(connection(service)), *ids)
    release.join()
    assert service.under_way_most == CALLS_AT_ONCE


def test_a_silent_service_is_an_error_for_each_job_within_the_deadline(service: JobService) -> None:
    service.hold()
    answer = look(service, call_timeout_s=0.3)
    assert isinstance(answer, RemoteError)
    assert "no answer to GetJobStatus within 0.3 s" in answer.message


def test_a_service_that_is_away_is_an_error_and_not_the_end_of_the_job() -> None:
    service = JobService()
    service.address = "127.0.0.1:1"
    answer = look(service)
    assert isinstance(answer, RemoteError)
    assert answer.message.startswith("127.0.0.1:1 cannot be reached for GetJobStatus")


def test_a_clients_channel_is_used_and_stays_open(service: JobService, client: JobServiceClient) -> None:
    put(service, JobState.RUNNING)
    for _ in range(2):
        answer = fetch(JobServiceBackend(client=client), external_id())[external_id()]
        assert isinstance(answer, Observation)
    assert client.get_job_status(*JOB).state == JobState.RUNNING


class Bringing(grpc.UnaryUnaryClientInterceptor):  # type: ignore[misc]  # grpc has no types
    """Adds a header, as a program adds its own credentials to a channel."""

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        metadata = [*(details.metadata or ()), ("authorization", "Bearer one")]
        return continuation(details._replace(metadata=metadata), request)


def test_a_channel_with_interceptors_is_used_as_it_is(service: JobService) -> None:
    put(service, JobState.RUNNING)
    service.authorization = "Bearer one"
    with grpc.insecure_channel(service.address) as plain:
        client = JobServiceClient(grpc.intercept_channel(plain, Bringing()))
        assert client.get_job_status(*JOB).state == JobState.RUNNING
        assert isinstance(fetch(JobServiceBackend(client=client), external_id())[external_id()], Observation)


def test_a_backend_without_a_connection_and_without_a_client_is_refused() -> None:
    with pytest.raises(UsageError, match="needs a connection, or a JobServiceClient"):
        JobServiceBackend()


def test_a_token_is_sent_as_in_every_connection_to_armada(service: JobService, tmp_path: Path) -> None:
    put(service, JobState.RUNNING)
    service.authorization = "Bearer one"
    assert isinstance(look(service, token="one"), Observation)
    service.authorization = "Basic dXNlcjpwYXNz"
    assert isinstance(look(service, username="user", password="pass"), Observation)
    wrong = look(service, username="user", password="guess")
    assert isinstance(wrong, RemoteError)
    assert "refused the credentials" in wrong.message


def test_a_connection_without_a_url_is_refused_in_a_sentence() -> None:
    with pytest.raises(SettingsError, match="'url' is missing"):
        JobServiceBackend.from_connection(ConnectionSettings(kind="armada-jobservice"))


def check(backend: JobServiceBackend) -> str:
    async def main() -> str:
        try:
            return await backend.check()
        finally:
            await backend.close()

    return asyncio.run(main())


def test_the_check_says_who_answered_and_that_it_only_watches(service: JobService) -> None:
    backend = JobServiceBackend.from_connection(connection(service))
    assert (
        check(backend)
        == f"the Armada JobService answered Health at {service.address}; it can only watch jobs"
    )


def test_the_check_tells_a_service_that_does_not_serve(service: JobService) -> None:
    service.serving = wire.HealthCheckResponse.NOT_SERVING
    with pytest.raises(BackendError, match="answered Health, and does not serve"):
        check(JobServiceBackend.from_connection(connection(service)))
    service.health_fault = grpc.StatusCode.UNKNOWN
    with pytest.raises(BackendError, match="Health Check Failed for Events"):
        check(JobServiceBackend.from_connection(connection(service)))


def test_the_check_names_the_usual_port_where_another_service_listens() -> None:
    with serving_nothing() as address:
        backend = JobServiceBackend(ArmadaConnection(url=address))
        with pytest.raises(BackendError, match="not as the JobService does, whose port is usually 60003"):
            check(backend)


def test_it_can_only_watch(service: JobService) -> None:
    async def main() -> None:
        backend = JobServiceBackend.from_connection(connection(service))
        assert isinstance(backend, Backend)
        with pytest.raises(SubmitRejected, match="can only watch"):
            await backend.submit({}, "token")
        assert await backend.find({}, "token", utcnow()) == Unsure(None, ONLY_WATCHES)
        assert await backend.cancel([external_id()], "no longer wanted") == {
            external_id(): RemoteError(ONLY_WATCHES)
        }
        with pytest.raises(LogsUnavailable, match="can only watch"):
            async for _line in backend.logs(external_id(), dt.datetime.now(dt.UTC)):
                pass
        await backend.close()
        await backend.close()

    asyncio.run(main())
    assert service.asked == []


def test_one_backend_serves_one_event_loop_after_the_other(service: JobService) -> None:
    put(service, JobState.RUNNING)
    backend = JobServiceBackend.from_connection(connection(service))
    for _ in range(2):
        assert isinstance(fetch(backend, external_id())[external_id()], Observation)


# --- the page ---------------------------------------------------------------------------------------

ARMADA_NAMES = (
    *("armada.operators.armada", "ArmadaOperator", "name", "armada_client", "job_service_client"),
    *("armada_queue", "job_request_items", "**kwargs", "BaseOperator", "execute(context)"),
    *("armada.operators.jobservice", "JobServiceClient", "channel", "max_workers", "get_job_status"),
    *(
        "queue",
        "job_set_id",
        "job_id",
        "armada.operators.utils",
        "JobState",
        "SUCCEEDED",
        "FAILED",
        "CANCELLED",
    ),
    *("JOB_ID_NOT_FOUND", "airflow_error", "job_state", "AirflowFailException", "search_for_job_complete"),
    *("default_job_status_callable", "JobServiceResponse", "airflow_task_name", "job_status_callable"),
    "time_out_for_failure",
)
"""Every name of the old ArmadaOperator's reference."""

IN_A_CHECKOUT = (ROOT / "docs" / "conf.py").exists()


@pytest.mark.skipif(not IN_A_CHECKOUT, reason="not in a checkout")
def test_each_name_of_the_armada_operator_is_mapped() -> None:
    section = PAGES["docs/coming-from-airflow.md"].partition("\n## The Armada operator\n")[2]
    section = section.partition("\n## ")[0]
    left = "\n".join(line.split("|")[1] for line in section.splitlines() if line.startswith("| `"))
    assert not [name for name in ARMADA_NAMES if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", left)]


@pytest.mark.skipif(not IN_A_CHECKOUT, reason="not in a checkout")
def test_the_pages_example_waits_for_a_job(service: JobService, tmp_path: Path) -> None:
    page = blocks("docs/coming-from-airflow.md")
    (example,) = [block for block in page if block.what == "armada_job.py"]
    (console,) = [block for block in page if block.what == "armada-jobservice"]
    ((command, shown),) = commands_of(console.text)
    put(service, JobState.SUCCEEDED)
    script = tmp_path / "armada_job.py"
    script.write_text(example.text.replace("localhost:60003", service.address))
    words = shlex.split(command)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), *words[2:]], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == shown
