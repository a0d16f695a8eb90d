"""Which seed the short forms of chaos and soak run with."""

import random

from tests.helpers import IS_LONG


def short_seed() -> int:
    """Return the seed of a short form: always the same, and in a long run (JOBRUNNER_TEST_LONG) a new one."""
    return random.randrange(1_000_000) if IS_LONG else 20261128
