"""AWS Batch over real HTTP, as boto3 speaks it: in a thread of the test, or as a process of its own.

`serving(...)` and `serving_apart(...)` both give a `BatchStub`, the latter through POST /_control/.
By hand: python -m tests.stubs.batch_server --port 0 --delay 0.03
"""

import argparse
import asyncio
import contextlib
import dataclasses
import functools
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast, get_args

from tests.stubs.aws_wire import (
    STS,
    Answer,
    FaultKind,
    Payload,
    Refused,
    faulty,
    operation_of,
    refused,
    signature_ahead,
    signature_expired,
    signed_at_s,
    throttled,
)
from tests.stubs.batch_operations import BatchOperations

_CONTROL = "/_control/"


@dataclass(slots=True)
class Call:
    """A request that arrived."""

    operation: str
    at_s: float
    """time.time()"""
    ids: int
    """How many job ids it names."""
    user_agent: str
    access_key: str
    session_token: str
    attempt: str
    """amz-sdk-request: attempt=1; max=1"""
    status: int = 0
    """Of the answer; 0 while there is none."""
    performed: bool = False


@dataclass(slots=True)
class _Fault:
    operation: str
    kind: FaultKind
    left: float
    after: int
    matching: bytes
    performed: bool
    seconds: float
    status: int
    retry_after_s: float | None


class BatchStub(BatchOperations):
    """The jobs, and how badly they are served.

    Attributes that a test sets at any time, besides those of its bases: `delay_s` before each answer;
    `signature_lifetime_s`: a request signed longer ago is refused with nothing performed (None: never; the
    signature tells whole seconds); `clock_ahead_s`: how far this clock is before the client's;
    `calls_per_s`: more are throttled.
    """

    def __init__(self, **options: Any) -> None:
        self.url = ""
        self.delay_s = 0.0
        self.signature_lifetime_s: float | None = 300.0
        self.clock_ahead_s = 0.0
        self.calls_per_s: float | None = None
        self.calls: list[Call] = []
        self.connections = 0
        self.concurrency = 0
        self.max_concurrency = 0
        self._talks: set[asyncio.Task[Any]] = set()
        self._faults: list[_Fault] = []
        self._tokens = (0.0, 0.0)
        super().__init__(**options)

    def fault(
        self,
        operation: str,
        kind: FaultKind,
        times: int | None = 1,
        *,
        after: int = 0,
        matching: str = "",
        performed: bool | None = None,
        seconds: float = 30.0,
        status: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        """Serve an operation ("*": any) badly so many times (None: until cleared).

        `after`: spare so many calls first. `matching`: only where the body holds this text. `performed`: the
        request is performed all the same (so by default: lost_answer, delay, slow_body). `seconds`: of hang,
        delay (both before performing) and slow_body. `status`: of html (200, 502, 503) and server_error.
        """
        if kind not in get_args(FaultKind) or operation not in {"*", *self._operations, *STS}:
            raise ValueError(f"no such fault: {operation} {kind}")
        if performed is None:
            performed = kind in {"lost_answer", "delay", "slow_body"}
        if status is None:
            status = 500 if kind == "server_error" else 502
        left = float("inf") if times is None else times
        fault = _Fault(
            operation, kind, left, after, matching.encode(), performed, seconds, status, retry_after_s
        )
        with self._lock:
            self._faults.append(fault)

    def clear_faults(self) -> None:
        with self._lock:
            self._faults.clear()

    def calls_per_operation(self) -> dict[str, int]:
        with self._lock:
            return dict(Counter(call.operation for call in self.calls))

    def forget_calls(self) -> None:
        """Start the records anew."""
        with self._lock:
            self.calls = []
            self.max_concurrency = self.concurrency

    # Serving

    def _record(self, operation: str, headers: dict[str, str], asked: Payload) -> Call:
        call = Call(
            operation,
            time.time(),
            len(asked.get("jobs", ())),
            headers.get("user-agent", ""),
            headers.get("authorization", "").partition("Credential=")[2].partition("/")[0],
            headers.get("x-amz-security-token", ""),
            headers.get("amz-sdk-request", ""),
        )
        with self._lock:
            self.calls.append(call)
        return call

    def _next_fault(self, operation: str, body: bytes) -> _Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.operation in {operation, "*"} and fault.matching in body:
                    if fault.after > 0:
                        fault.after -= 1
                        continue
                    fault.left -= 1
                    if fault.left <= 0:
                        self._faults.remove(fault)
                    return fault
        return None

    def _is_over_limit(self) -> bool:
        limit = self.calls_per_s
        if limit is None:
            return False
        with self._lock:
            tokens, before_s = self._tokens
            now_s = time.monotonic()
            tokens = min(max(limit, 1.0), tokens + (now_s - before_s) * limit)
            self._tokens = (tokens - 1 if tokens >= 1 else tokens, now_s)
            return tokens < 1

    def _perform(self, call: Call, headers: dict[str, str], asked: Payload) -> Answer:
        lifetime_s = self.signature_lifetime_s
        try:
            if lifetime_s is not None:
                signed_s, now_s = signed_at_s(headers), time.time() + self.clock_ahead_s
                if abs(now_s - signed_s) > lifetime_s:
                    wrong = signature_expired if now_s > signed_s else signature_ahead
                    return refused(wrong(signed_s, now_s, lifetime_s), call.operation)
            if call.operation in STS:
                answer = STS[call.operation]
            elif call.operation in self._operations:
                with self._lock:
                    self._settle()
                    said = self._operations[call.operation](asked)
                answer = Answer(200, said if isinstance(said, bytes) else json.dumps(said).encode())
            else:
                return refused(Refused("", "UnknownOperationException", 404), call.operation)
        except KeyError as error:
            return refused(Refused(f"{error} is missing", "SerializationException"), call.operation)
        except Refused as error:
            return refused(error, call.operation)
        except Exception:  # noqa: BLE001 - a fault of the stub, or of the test; it must not just hang
            traceback.print_exc()
            return refused(Refused("The stub failed", "InternalFailure", 500), call.operation)
        call.performed = True
        return answer

    async def _answer(
        self, call: Call, headers: dict[str, str], body: bytes, asked: Payload
    ) -> tuple[Answer, _Fault | None]:
        fault = self._next_fault(call.operation, body)
        if fault is not None and fault.kind == "hang":
            if fault.performed:
                self._perform(call, headers, asked)
            await asyncio.sleep(fault.seconds)
            return Answer(0, b""), fault
        wait_s = self.delay_s + (fault.seconds if fault is not None and fault.kind == "delay" else 0.0)
        if wait_s:
            await asyncio.sleep(wait_s)
        if self._is_over_limit():
            return refused(throttled(), call.operation), None
        if fault is None:
            return self._perform(call, headers, asked), None
        performed = self._perform(call, headers, asked) if fault.performed else Answer(0, b"")
        answer = faulty(fault.kind, call.operation, fault.status, time.time()) or performed
        if fault.retry_after_s is not None:
            answer = dataclasses.replace(
                answer, headers=f"{answer.headers}Retry-After: {fault.retry_after_s:g}\r\n"
            )
        return answer, fault

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        talk = asyncio.current_task()
        assert talk is not None  # for the type checker
        self._talks.add(talk)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while await self._serve(reader, writer):
                pass
        writer.close()
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await writer.wait_closed()
        self._talks.discard(talk)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines[1:])
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        asked: Payload = json.loads(body) if body.startswith(b"{") else {}
        path = lines[0].split(" ")[1]
        if path.startswith(_CONTROL):
            _send(writer, self._control(path.removeprefix(_CONTROL), asked))
            return True
        call = self._record(operation_of(path, headers, body), headers, asked)
        self.concurrency += 1
        self.max_concurrency = max(self.max_concurrency, self.concurrency)
        try:
            answer, fault = await self._answer(call, headers, body, asked)
        finally:
            self.concurrency -= 1
        if fault is not None and fault.kind in {"lost_answer", "hang"}:
            _reset(writer)
            return False
        call.status = answer.status
        slow_s = fault.seconds if fault is not None and fault.kind == "slow_body" else 0.0
        half = len(answer.body) // 2 if slow_s else 0
        _send(writer, answer, held_back=half)
        if half:
            await asyncio.sleep(slow_s)
            writer.write(answer.body[-half:])
        await writer.drain()
        return True

    def _control(self, name: str, asked: Payload) -> Answer:
        try:
            value = getattr(self, name)
            if callable(value):
                value = value(*asked.get("args", ()), **asked.get("kwargs", {}))
            return Answer(200, json.dumps({"value": value}, default=dataclasses.asdict).encode())
        except Exception as error:  # noqa: BLE001 - the other process is told
            return Answer(200, json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())

    async def listen(self, port: int, stop: asyncio.Event, ready: Callable[[], None]) -> None:
        """Serve on the loopback until `stop` is set."""
        server = await asyncio.start_server(self._converse, "127.0.0.1", port, backlog=1000)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ready()
        await stop.wait()
        server.close()
        talks = list(self._talks)
        for talk in talks:
            talk.cancel()
        await asyncio.gather(*talks, return_exceptions=True)


class _Door:
    """A BatchStub in another process, by its own methods and attributes."""

    def __init__(self, url: str) -> None:
        self.__dict__["_url"] = url

    def _ask(self, name: str, *args: Any, **kwargs: Any) -> Any:
        body = json.dumps({"args": args, "kwargs": kwargs}).encode()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(urllib.request.Request(self._url + _CONTROL + name, body), timeout=60) as answer:
            said = json.loads(answer.read())
        if "error" in said:
            raise RuntimeError(said["error"])
        return said["value"]

    def __getattr__(self, name: str) -> Any:
        if callable(getattr(BatchStub, name, None)):
            return functools.partial(self._ask, name)
        value = self._ask(name)
        return [Call(**each) for each in value] if name == "calls" else value

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("set", name, value)


@contextlib.contextmanager
def serving(**options: Any) -> Iterator[BatchStub]:
    """Serve in a thread of this process; `options` are attributes of the stub."""
    stub = BatchStub(**options)
    ready = threading.Event()
    ends: list[Callable[[], object]] = []

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        ends.append(lambda: loop.call_soon_threadsafe(stop.set))
        await stub.listen(0, stop, ready.set)

    thread = threading.Thread(target=asyncio.run, args=(main(),), name="batch-stub", daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield stub
    finally:
        ends[0]()
        thread.join()


@contextlib.contextmanager
def serving_apart(**options: Any) -> Iterator[BatchStub]:
    """Serve in a process of its own; `options` are attributes of the stub."""
    command = [sys.executable, "-m", __spec__.name, "--options", json.dumps(options)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield reach(json.loads(process.stdout.readline())["url"])


def reach(url: str) -> BatchStub:
    """Return the stub that another process serves at this address."""
    return cast("BatchStub", _Door(url))


def _send(writer: asyncio.StreamWriter, answer: Answer, held_back: int = 0) -> None:
    try:
        phrase = HTTPStatus(answer.status).phrase
    except ValueError:
        phrase = "Unknown"
    head = (
        f"HTTP/1.1 {answer.status} {phrase}\r\nDate: {formatdate(usegmt=True)}\r\n{answer.headers}"
        f"Content-Length: {len(answer.body)}\r\nx-amzn-RequestId: {uuid.uuid4()}\r\n\r\n"
    )
    writer.write(head.encode() + answer.body[: len(answer.body) - held_back])


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _main() -> None:
    parser = argparse.ArgumentParser(description="A stub of AWS Batch; ends at the end of its stdin.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--options", type=json.loads, default={}, help="the stub's attributes, as JSON")
    asked = parser.parse_args()
    stub = BatchStub(**{"delay_s": asked.delay, **asked.options})
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)

    def await_the_end() -> None:
        while os.read(0, 4096):  # sys.stdin's lock, held by a thread, would make the exit fail
            pass
        loop.call_soon_threadsafe(stop.set)

    threading.Thread(target=await_the_end, daemon=True).start()
    await stub.listen(asked.port, stop, lambda: print(json.dumps({"url": stub.url}), flush=True))  # noqa: T201


if __name__ == "__main__":
    asyncio.run(_main())
