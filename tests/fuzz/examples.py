"""How many examples are tried: a fixed few in each run of the tests, many others in the long form."""

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, settings

from tests.helpers import IS_LONG

TIMEOUT_S = 7200 if IS_LONG else 300
"""The time that one test may take."""

_LONG = int(os.environ.get("JOBRUNNER_FUZZ_TIMES", "40"))


def examples(count: int, *, times: int = _LONG) -> Callable[[Any], Any]:
    """Return the settings of a test that tries `count` examples, and `times` as many in the long form."""
    return settings(
        max_examples=count * (times if IS_LONG else 1),
        deadline=None,
        derandomize=not IS_LONG,
        database=None,
        print_blob=True,
        phases=[Phase.explicit, Phase.generate, *([Phase.shrink] if IS_LONG else [])],
        suppress_health_check=list(HealthCheck),
    )
