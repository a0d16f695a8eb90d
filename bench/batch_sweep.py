"""One look at all jobs of AWS Batch: `python -m bench.batch_sweep URL STUB_URL ROUNDS`."""

import sys

from bench.sweep import Step, tell
from jobrunner import BatchMonitorJob
from tests.stubs.batch_server import BatchStub, reach


class _Batch:
    """AWS Batch as a sweep needs it."""

    def __init__(self, stub: BatchStub) -> None:
        self._stub = stub

    def address(self) -> str:
        return self._stub.url

    def ids(self) -> list[str]:
        return self._stub.job_ids()

    def rest(self) -> None:
        pass  # it lists nothing by time

    def show(self, word: str, every: int) -> None:
        assert every == 1
        self._stub.bump(word)

    def counts(self) -> dict[str, int]:
        return self._stub.calls_per_operation()

    def forget_calls(self) -> None:
        self._stub.forget_calls()


def _main(url: str, stub_url: str, rounds: str) -> None:
    behind = {"kind": "batch", "endpoint_url": stub_url, "region": "eu-west-1"}
    steps = [Step("all", "RUNNING" if number % 2 else "RUNNABLE") for number in range(int(rounds))]
    outside = _Batch(reach(stub_url))
    tell(url, outside, {"batch_default": behind}, BatchMonitorJob.attach, first="RUNNING", steps=steps)


if __name__ == "__main__":
    _main(*sys.argv[1:])
